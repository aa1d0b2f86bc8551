"""The harness of bench/ leaves nothing behind, notices what a contender lost, and shows what it measured."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

import measure
import postgres
import report
import run
import slow_sync
from contenders import CONTENDERS
from meter import Meter
from states import Expected, State, WrongStateError, digested, killed_at, travelled
from stores import OnLoop, Store
from usage import usage
from workloads import WORKLOADS

WORKLOAD = WORKLOADS["research-30"]
needs_postgres = pytest.mark.skipif(postgres.version() is None, reason="no PostgreSQL on this machine")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that a server may be in: pytest's own are closed to all but root, and their paths are long."""
    with tempfile.TemporaryDirectory(prefix="stepwell-") as path:
        os.chmod(path, 0o711)
        yield Path(path)


@pytest.fixture(scope="module")
def counts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(measure.census(WORKLOAD)))
    return found


@needs_postgres
def test_postgres_runs_and_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server answers on its socket, durably set; time, bytes and syncs are counted; nothing of it is left running.

    One that cannot start says why.
    """
    psycopg = pytest.importorskip("psycopg", reason="a driver that only the benchmark needs")
    directory = place / "server"
    directory.mkdir()
    slow = {}
    with suppress(slow_sync.NoCompilerError):
        slow = slow_sync.environment(slow_sync.build(place), 4, place)
        monkeypatch.setenv(slow_sync.COUNT, slow[slow_sync.COUNT])
    before = usage()
    with postgres.Server(directory, environment=slow) as server:
        process = postgres.process_id(directory)
        if os.geteuid() == 0:
            assert Path(f"/proc/{process}").stat().st_uid != 0
        for _ in range(2):
            with psycopg.connect(postgres.address(directory), autocommit=True) as connection:
                for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                    assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)
                assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
                connection.execute("CREATE TABLE IF NOT EXISTS t AS SELECT generate_series(1, 20000)")
                syncs = slow_sync.counted()
                connection.execute("CREATE TABLE IF NOT EXISTS u AS SELECT generate_series(1, 1000)")
                connection.execute("INSERT INTO u VALUES (0)")
                assert syncs is None or slow_sync.counted() > syncs
            server.stop()
            server.stop()
            server.start()
        process = postgres.process_id(directory)
        postgres.checkpoint(directory)
        spent = usage(process).since(before)
        assert spent.written_bytes > 0
        assert spent.cpu_seconds > usage().since(before).cpu_seconds
    assert not Path(f"/proc/{process}").exists()
    assert not list(directory.glob(".s.PGSQL*"))
    with (directory / "data" / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    with pytest.raises(postgres.PostgresError, match="configuration"):
        server.start()


def test_without_postgres_the_table_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without PostgreSQL measures all others."""
    monkeypatch.setattr(postgres, "_folders", lambda: iter([place]))
    assert postgres.version() is None
    assert "not run, no PostgreSQL" in str(run._not_run(CONTENDERS["postgres"], 1, place))


def test_what_does_not_fit_is_not_run(place: Path) -> None:
    """Whole states that would fill the disk or the memory are not stored."""
    assert "GB of disk" in str(run._not_run(CONTENDERS["sqlite"], 10**18, place))
    assert "GB of memory" in str(run._not_run(CONTENDERS["memory"], 10**18, place))
    assert run._not_run(CONTENDERS["stepwell"], 10**18, place) is None


@pytest.mark.parametrize("name", ["stepwell-async", pytest.param("postgres", marks=needs_postgres)])
def test_a_round_measures_all(name: str, place: Path, counts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the run to the recovery: every figure is there, every state was the one that was put."""
    contender = CONTENDERS[name]
    pytest.importorskip(contender.module)
    # Only what is killed has a process of its own here: each takes seconds to import what it needs.
    monkeypatch.setattr(run, "_measure", lambda arguments, *_, **__: measure.measure(arguments))
    entry = run.Entry(contender)
    run._round(WORKLOAD, entry, counts, place, lambda puts: None, reopenings=1)
    assert entry.notes == {}
    (figures,) = entry.rounds
    expected = {row.figure for row in report.SHORT_ROWS}
    if contender.seal is None:
        expected -= {"sealed_disk_bytes"}
    assert expected <= figures.keys()
    assert all((figures[name] or 0) > 0 for name in expected)
    assert (figures["recovery_first_state_ms"] or 0) < (figures["recovery_first_step_ms"] or 0)
    assert [path.name for path in place.iterdir()] == ["expected.json"]


def test_a_crash_that_loses_a_step_is_noticed(tmp_path: Path, counts: dict[str, Any]) -> None:
    """A store whose newest state is older than what was acknowledged has no recovery latency."""
    contender = CONTENDERS["sqlite"]
    driven = measure.drive(WORKLOAD, contender, tmp_path)
    last = driven["states"][-1]
    expected = Expected.from_json({**counts, "digests": {}, "states": [last]})
    measure.recover(WORKLOAD, contender, tmp_path, expected)
    lost = Expected([State(last["thread_id"], last["step"] + 5, "another")], {}, "")
    with pytest.raises(WrongStateError, match="acknowledged"):
        measure.recover(WORKLOAD, contender, tmp_path, lost)


def test_wrong_states_are_noticed(tmp_path: Path, counts: dict[str, Any]) -> None:
    """A reading that gives another state has a note instead of a figure, and the others keep theirs."""
    contender = CONTENDERS["sqlite"]
    driven = measure.drive(WORKLOAD, contender, tmp_path)
    right = Expected.from_json({**counts, "states": driven["states"]})
    assert measure.reopen(WORKLOAD, contender, tmp_path, right)["notes"] == {}
    travelled_to = next(p for p in travelled(WORKLOAD.states) if p < WORKLOAD.states - 10)
    wrong = Expected(right.states, {**right.digests, travelled_to: "other"}, right.final_digest)
    opened = measure.reopen(WORKLOAD, contender, tmp_path, wrong)
    assert opened["notes"].keys() == {"time_travel_ms"}
    assert "newest_ten_ms" in opened["figures"]
    assert measure._history(Store(InMemorySaver()), wrong)[1].keys() == {"history_ms"}


def test_positions_are_within_the_run() -> None:
    """Every state that is travelled to, listed or recovered has a digest, in the longest run and the shortest."""
    for states in (3, 33, 4003):
        assert {*travelled(states), killed_at(states), states - 1} <= digested(states) <= set(range(states))


def test_an_asynchronous_call_is_timed_inside_the_loop(tmp_path: Path) -> None:
    """The meter sees each await of a saver that is driven by blocking calls, lists and writes too."""
    with CONTENDERS["sqlite-async"].open(tmp_path) as store:
        meter = Meter(store.saver)
        saver = store.blocking(meter)
        assert isinstance(saver, OnLoop)
        WORKLOAD.prepare()(meter, store.loop)
        assert len(list(saver.list(meter.states[-1].thread))) == WORKLOAD.puts == len(meter.put_calls.seconds)
        assert len(meter.list_calls.seconds) == 1
        assert meter.write_calls.seconds


def test_a_measurement_that_takes_too_long_is_ended() -> None:
    """The process is gone and the caller knows why."""
    with pytest.raises(run.TooSlowError):
        run._measure(["census", WORKLOAD.name], seconds=0.01)


def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    """The last line of a process's errors is the message."""
    with pytest.raises(run.MeasurementError, match="No such file"):
        run._measure(["reopen", WORKLOAD.name, "nothing", str(tmp_path), "--expected", str(tmp_path / "none")])


@needs_postgres
def test_an_interrupted_benchmark_leaves_nothing(place: Path) -> None:
    """Ctrl-C in the middle of a run: no server, no measuring process, no file is left."""
    pytest.importorskip("psycopg")
    command = [sys.executable, run.__file__, "--workload", WORKLOAD.name, "--contenders", "postgres", "--rounds", "1"]
    with subprocess.Popen(
        [*command, "--directory", str(place)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not (started := list(place.glob("*/*/.s.PGSQL.5432"))):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            server = postgres.process_id(started[0].parent)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) != 0
        finally:
            process.kill()
    assert not Path(f"/proc/{server}").exists()
    assert list(place.iterdir()) == []


def entry(label: str, /, **figures: float) -> dict[str, Any]:
    """What one contender gave in one round."""
    curve = [{"puts": 10 * n, "put_median_ms": n, "disk_bytes": 1e6 * n, "anonymous_memory_bytes": 1} for n in (1, 2)]
    return {
        "label": label,
        "stores": True,
        "not_run": None,
        "failed": None,
        "notes": {},
        "figures": {name: {"median": value} for name, value in figures.items()},
        "curves": [curve] if figures else [],
    }


@pytest.fixture
def results(tmp_path: Path, counts: dict[str, Any]) -> Path:
    """A small file of results, with a contender of each kind."""
    new = counts["new_information_bytes"]
    recovery = {"recovery_first_state_ms": 3.0, "recovery_first_step_ms": 5.0}
    contenders = {
        "stepwell": entry("Ours", disk_bytes=new, sealed_disk_bytes=new / 2, put_last_tenth_median_ms=4.0, **recovery),
        "sqlite": entry("S", disk_bytes=new * 150, put_last_tenth_median_ms=2.0, history_ms=9.0, **recovery),
        "postgres": entry("P", disk_bytes=new * 50, put_last_tenth_median_ms=9.0, **recovery),
        "memory": entry("M", put_last_tenth_median_ms=1.0),
        "lmdb": entry("L"),
        "nothing": entry("(harness alone)", put_last_tenth_median_ms=0.1),
    }
    contenders["nothing"]["stores"] = False
    contenders["postgres"]["notes"] = {"history_ms": "failed: out of memory", "warm_time_travel_ms": "wrong: step 3"}
    contenders["lmdb"]["not_run"] = "not run, may need 74 GB of disk"
    path = tmp_path / "results.json"
    taken = {
        "taken": "2026-01-01T00:00:00+00:00",
        "commit": "c",
        "machine": {"cores": 2, "cpu": "x", "memory_bytes": 2**34, "file_system": "ext4", "system": "Linux"},
        "versions": {"python": "3", "sqlite": "3", "postgres": None, "langgraph": "1"},
        "rounds": 1,
        "load_average_before": [0.0, 0.0, 0.0],
        "load_average_after": [0.0, 0.0, 0.0],
        "runs": [
            {"workload": name, "about": "a run", "counts": counts, "orders": [], "contenders": contenders}
            for name in (report.HEADLINE, "other")
        ],
    }
    path.write_text(json.dumps(taken))
    return path


def test_report_has_a_short_form_and_a_full_one(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command fills both pages: losses, failures and absences are shown, the harness only in the full one."""
    page, full = tmp_path / "README.md", tmp_path / "all" / "README.md"
    full.parent.mkdir()
    page.write_text(f"before\n{report.START}\n{report.END}\nafter\n")
    import plots

    written = plots.write(results)
    assert [path.name for path in written] == [f"{report.HEADLINE}.png", "other.png"]
    arguments = ["report.py", str(results), "--write", str(page), "--full", str(full)]
    monkeypatch.setattr(sys, "argv", arguments)
    report.main()
    short = page.read_text()
    assert short.startswith("before\n")
    assert short.endswith("\nafter\n")
    assert "| put, last tenth: median | 4.00 ms (0.5x) | 2.00 ms | 9.00 ms (0.22x) | 1.00 ms (2.00x) |" in short
    assert "| on disk / new information | 1.00x | 150x | 50.0x | - |" in short
    assert "| on disk after sealing / new information | 0.5x | - | - | - |" in short
    assert "| full history of a thread | - | 9.00 ms | failed | - |" in short
    assert "P, full history of a thread: failed: out of memory." in short
    assert "L: not run, may need 74 GB of disk." in short
    assert (
        "| other | 1.00x (0.5x), 4.00 ms, lost | 150x, 2.00 ms, lost | 50.0x, 9.00 ms, lost | does not fit |" in short
    )
    assert f"]({report.HEADLINE}.png)" in short
    assert "](all/README.md)" in short
    assert "harness" not in short
    text = full.read_text()
    assert "](../other.png)" in text
    assert text.count("(harness alone)") == 2


def test_pictures_show_every_contender(results: Path) -> None:
    """Each contender that stores has its lines, and those that recover their bars; a label each, none twice."""
    import plots  # and with it matplotlib, which the other processes that collect this module can do without

    figure = plots.picture(json.loads(results.read_text())["runs"][0])
    puts, disk, recovery = figure.axes
    assert (len(puts.lines), len(disk.lines)) == (4, 3 + 1)
    assert [label.get_text() for label in recovery.get_yticklabels()] == ["Ours", "S", "P"]
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["Ours", "S", "P", "M", "new information of the whole run"]
    assert plots.write(results)[0].read_bytes().startswith(b"\x89PNG")
