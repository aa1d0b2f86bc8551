"""Many agents at once in bench/: everybody's calls are made, what is lost is noticed, and the tables show it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import many
import report
import report_agents
import run_agents
import slow_sync
import writers
from contenders import MANY_CALLERS
from many import Agent, WrongStateError
from stepwell_langgraph import StepwellSaver
from writers import LostError, Step, Told


@pytest.mark.parametrize(("how", "name"), [("async", "stepwell-async"), ("sync", "sqlite")])
def test_all_agents_make_their_calls(how: str, name: str, tmp_path: Path) -> None:
    """Each of them holds its conversations, one with a large state among them; what was put is there at the end."""
    found = many.measure(how, MANY_CALLERS[name], tmp_path, many.agents(3, 2, 100_000))
    assert found["calls"] == {"put": 3 * 2 * 6 + 9, "put_writes": 3 * 2 * 4 + 6, "get_tuple": 3 * 2 * 2 + 3}
    expected = {row.figure for row in report_agents.ROWS} - {"syncs_per_call"}
    if how == "sync":
        expected.remove("stall_ms")
    assert expected <= found["figures"].keys()
    assert all(value > 0 for value in found["figures"].values())


def test_a_state_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    """A thread that lacks its last message fails the run."""
    (agent,) = many.agents(1, 1, 0)
    with StepwellSaver.from_conn_string(tmp_path / "log.stepwell") as saver:
        many.play(agent.calls(saver), saver)
        many.check(saver, [agent])
        agent.scripts[0].turns.append(agent.scripts[0].turns[0])
        with pytest.raises(WrongStateError, match="chat-0000"):
            many.check(saver, [agent])


def test_a_busy_loop_is_seen(tmp_path: Path) -> None:
    """The longest stall of the event loop is at least as long as a coroutine kept it busy."""

    class Busy(Agent):
        def calls(self, saver: many.Saver) -> many.Calls:
            many.time.sleep(0.05)
            yield from super().calls(saver)

    (agent,) = many.agents(1, 1, 0)
    found = many.measure("async", MANY_CALLERS["stepwell-async"], tmp_path, [Busy(agent.scripts)])
    assert found["figures"]["stall_ms"] > 40


def test_writers_that_are_killed_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes write to one log, some are killed; all that they were told is there."""
    monkeypatch.setattr(writers, "KILL_SECONDS", 0.4)
    figures = writers.race(tmp_path / "log.stepwell", 2, 1.5, kill=True)
    assert figures["killed"]
    assert figures["acknowledged"]


def test_what_writers_lose_is_noticed(tmp_path: Path) -> None:
    """A step that is missing, or that nobody was told of, fails the run."""
    path = tmp_path / "log.stepwell"
    told = Told()

    class Pipe:
        def send(self, said: tuple[bool, Step]) -> None:
            if said[0]:
                told.acknowledged.append(said[1])

    (agent,) = many.agents(1, 1, 0)
    with StepwellSaver.from_conn_string(path) as saver:
        acknowledging: Any = writers.Acknowledging(saver, Pipe())  # type: ignore[arg-type]
        many.play(agent.calls(acknowledging), acknowledging)
    writers.check(path, [told])
    *others, last = told.acknowledged
    with pytest.raises(LostError, match="was not put"):
        writers.check(path, [Told(others)])
    writers.check(path, [Told(others, about_to=last)])
    lost = last._replace(checkpoint_id="another")
    with pytest.raises(LostError, match="lost"):
        writers.check(path, [Told([*told.acknowledged, lost])])
    with pytest.raises(LostError, match="order"):
        writers.check(path, [Told([last, *others])])


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results become tables between lines of their own; what failed or did not run is said."""
    monkeypatch.setattr(slow_sync, "build", lambda folder: folder)
    runs = [run_agents.Run(scenario, 1, tmp_path) for scenario in run_agents.scenarios(4)]
    for run in runs:
        for number, entry in enumerate(run._entries.values()):
            if number < 2:
                entry.rounds += [dict.fromkeys((row.figure for row in report_agents.ROWS), 10.0 / (number + 1))] * 2
            else:
                entry.not_run = "not run, no PostgreSQL"
    figures = {"puts_per_second": 9.0, "acknowledged": 5, "killed": 1}
    result = {
        "taken": "2026-01-01T00:00:00",
        "commit": "abc",
        "machine": {"cores": 2, "cpu": "cpu", "memory_bytes": 1 << 30, "file_system": "ext4", "system": "Linux"},
        "versions": {"python": "3.11", "sqlite": "3", "langgraph": "1"},
        "rounds": 2,
        "seconds": 60,
        "load_average_before": [0.0],
        "load_average_after": [0.0],
        "scenarios": [run.as_json() for run in runs],
        "writers": [
            {"about": "one", "figures": figures, "failed": None},
            {"about": "eight", "figures": {}, "failed": "lost a step"},
        ],
    }
    source, page = tmp_path / "agents.json", tmp_path / "page.md"
    source.write_text(json.dumps(result))
    page.write_text(f"before\n{report_agents.START}\n{report_agents.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["report.py", str(source), "--write", str(page)])
    report.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `put` per second | 10.0 (2.00x) | 5.00 |" in text
    assert "| `put`: p99 | 10.0 ms (0.5x) | 5.00 ms |" in text
    assert "AsyncPostgresSaver, pool: not run, no PostgreSQL." in text
    assert "eight: lost a step." in text
    assert "| 16 threads, a sync takes 4 ms longer | StepwellSaver |" in text


def test_a_scenario_that_nobody_ran_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler, syncs cannot be made slow, and a line stands in place of the table."""

    def build(_: Path) -> Path:
        raise slow_sync.NoCompilerError("not run, no C compiler")

    monkeypatch.setattr(slow_sync, "build", build)
    run = run_agents.Run(run_agents.scenarios(4)[-1], 1, tmp_path)
    run.round(0)
    assert report_agents._scenario(run.as_json()) == "16 threads, a sync takes 4 ms longer: not run, no C compiler."


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return slow_sync.build(tmp_path_factory.mktemp("library"))
    except slow_sync.NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def slow(library: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which a sync takes 20 ms longer."""
    return slow_sync.environment(library, 20, tmp_path)


SYNCING = """
import os, sys, mmap
name, way = sys.argv[1:]
descriptor = os.open(name, os.O_RDWR | os.O_CREAT | {"sync": os.O_SYNC, "dsync": os.O_DSYNC}.get(way, 0))
parts = {"write": os.write, "pwrite": lambda at, x: os.pwrite(at, x, 0), "writev": lambda at, x: os.writev(at, [x])}
os.ftruncate(descriptor, 4096)
for write in parts.values():
    write(descriptor, b"x")
os.pwritev(descriptor, [b"x"], 0, os.RWF_DSYNC if way == "flag" else 0)
mapped = mmap.mmap(descriptor, 4096)
if way == "msync":
    mapped.flush()
if way in ("fsync", "fdatasync"):
    getattr(os, way)(descriptor)
os.write(os.memfd_create("x"), b"x")
"""


@pytest.mark.parametrize(
    ("way", "syncs"),
    [("none", 0), ("sync", 4), ("dsync", 4), ("flag", 1), ("msync", 1), ("fsync", 1), ("fdatasync", 1)],
)
def test_a_slow_sync_is_one_of_every_kind(
    way: str, syncs: int, slow: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that sync a file are delayed and counted, and no others are."""
    command = [sys.executable, "-ISc", SYNCING, str(tmp_path / "file"), way]
    began = time.monotonic()
    subprocess.run(command, env=slow, check=True)
    took = time.monotonic() - began
    monkeypatch.setenv(slow_sync.COUNT, slow[slow_sync.COUNT])
    assert slow_sync.counted() == syncs
    assert took > syncs * 0.02


def test_a_measurement_has_a_process_of_its_own(slow: dict[str, str], tmp_path: Path) -> None:
    """`run_agents.py` runs its parts by their command lines; where syncs are slow, it counts them."""
    options = ["--agents=2", "--chats=1", "--large=0"]
    found = run_agents._measured("many.py", "async", "stepwell-async", str(tmp_path), *options, environment=slow)
    assert found["calls"]["put"] == 2 * 6
    assert 0.5 < found["figures"]["syncs_per_call"] <= 2
