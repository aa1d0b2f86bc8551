"""Imports from databases and savers: what arrives, what is left alone, what is said of the rest."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Send

from stepwell import Log, ReadOnlyError, StepCommitted, UsageError, WritesRecorded, changes, inspect
from stepwell_langgraph import StepwellSaver, ahead
from stepwell_langgraph.importing import Import, ImportProgress, import_from
from stepwell_langgraph.sqlite_tables import SqliteTables

Saver = BaseCheckpointSaver[Any]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log.open(tmp_path / "log.stepwell") as opened:
        yield opened
        assert opened.audit().breaches == []


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two threads, one of them with a fork, a sub-graph, and writes of every kind."""
    path = tmp_path_factory.mktemp("template") / "source.db"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        fill(saver)
    return path


@pytest.fixture
def database(template: Path, tmp_path: Path) -> Path:
    """A copy of the template that a test may change."""
    return Path(shutil.copy(template, tmp_path / "source.db"))


def config(thread: str, namespace: str = "", checkpoint_id: str | None = None) -> Any:
    at = {"thread_id": thread, "checkpoint_ns": namespace}
    return {"configurable": at if checkpoint_id is None else {**at, "checkpoint_id": checkpoint_id}}


def put(
    saver: Saver,
    thread: str,
    step: int,
    channels: dict[str, Any],
    *,
    namespace: str = "",
    parent: str | None = None,
    versions: dict[str, Any] | None = None,
    **metadata: Any,
) -> str:
    """Put a checkpoint as LangGraph does; returns its id."""
    checkpoint_id = str(uuid6(clock_seq=step))
    versions = versions or dict.fromkeys(channels, f"{step + 2:032}.5")
    checkpoint: Any = {
        "v": 4,
        "ts": "2026-01-02T03:04:05+00:00",
        "id": checkpoint_id,
        "channel_values": channels,
        "channel_versions": versions,
        "versions_seen": {"node": versions},
        "updated_channels": sorted(channels),
    }
    told: Any = {"source": "loop", "step": step, "parents": {}, **metadata}
    saver.put(config(thread, namespace, parent), checkpoint, told, versions)
    return checkpoint_id


def fill(saver: Saver, steps: int = 12) -> None:
    messages: list[Any] = []
    parent = None
    ids: list[str] = []
    for step in range(steps):
        messages = [*messages, HumanMessage(f"question {step} " + "x" * 100, id=f"q{step}"), AIMessage("a" * 90)]
        channels = {"messages": messages, "files": {f"{n}.txt": "y" * 100 for n in range(step)}, "n": step, "b": b"\0"}
        if step % 3 == 0:
            channels["branch:to:node"] = None
        about: dict[str, Any] = {"customer": f"customer {step // 5}", "tier": step // 3, "note": ["no label"]}
        parent = put(saver, "one", step, channels, parent=parent, run_id=f"run-{step // 4}", **about)
        ids.append(parent)
        at = config("one", "", parent)
        saver.put_writes(at, [("messages", messages[-1:]), ("branch:to:b", None)], f"task-b-{step}", "~b")
        saver.put_writes(at, [("__pregel_tasks", Send("node", {"m": messages}))], f"task-a-{step}", "~c")
        below = put(saver, "one", step, {"inner": step}, namespace=f"sub:{step % 3}", parents={"": parent})
        saver.put_writes(config("one", f"sub:{step % 3}", below), [("inner", {1, 2})], "inner-task")
    saver.put_writes(config("one", "", ids[3]), [("__resume__", ["yes"])], "00000000")
    saver.put_writes(config("one", "", ids[3]), [("__interrupt__", ("ask",)), ("n", 7)], "task-i", "~a")
    fork = put(saver, "one", 99, {"messages": messages[:3], "n": "forked"}, parent=ids[3], source="fork")
    put(saver, "one", 100, {"messages": [*messages[:3], "text"]}, parent=fork)
    saver.put_writes(config("one", "", "never stored"), [("n", 1)], "early")
    put(saver, "two", -1, {})


def told(saver: Saver, thread: str = "one") -> dict[tuple[str, str], Any]:
    """All that a saver says of a thread, in a form that can be compared."""
    return {
        (found.config["configurable"]["checkpoint_ns"], found.checkpoint["id"]): normal(found)
        for found in saver.list({"configurable": {"thread_id": thread}})
    }


def normal(found: CheckpointTuple) -> Any:
    dump = JsonPlusSerializer().dumps_typed
    checkpoint: Any = dict(found.checkpoint)
    channels = {name: dump(value) for name, value in checkpoint.pop("channel_values").items()}
    parent = None if found.parent_config is None else found.parent_config["configurable"]["checkpoint_id"]
    writes = [(task, channel, dump(value)) for task, channel, value in found.pending_writes or []]
    return channels, checkpoint, dict(found.metadata), parent, writes


def heads(saver: Saver, thread: str = "one") -> list[str | None]:
    found = [saver.get_tuple(config(thread, namespace)) for namespace in ("", "sub:0", "sub:1", "sub:2")]
    return [None if each is None else each.checkpoint["id"] for each in found]


def changed(path: Path, query: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(query, values).rowcount > 0


# --- what arrives ---


@pytest.mark.parametrize("page", [1, 2, 64])
def test_everything_arrives(page: int, database: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint reads as the other saver reads it, with its parent, metadata and pending writes in order."""
    monkeypatch.setattr(ahead, "_PAGE", page)
    report = import_from(database, log)
    assert report.problems == []
    assert (report.threads, report.checkpoints, report.present) == (2, 27, 0)
    assert report.verified == 27
    assert report.is_exact
    assert report.before_bytes
    assert report.after_bytes
    with SqliteSaver.from_conn_string(str(database)) as source:
        saver = StepwellSaver(log)
        for thread in ("one", "two"):
            assert told(saver, thread) == told(source, thread)
            assert heads(saver, thread) == heads(source, thread)
    assert [*log.all_threads()] == ["one", "two"]
    assert [write.write.channel for write in log.thread("one").writes("never stored")] == ["n"]


def test_it_is_stored_as_the_saver_stores_it(database: Path, tmp_path: Path, log: Log) -> None:
    """The types and bytes of channels, and the states' structure, are those of the same calls made to the saver."""
    import_from(database, log)
    with StepwellSaver.from_conn_string(":memory:") as saver:
        random.seed(1)
        fill(saver)
        own = {step.step_id[-1:]: step for step in saver.log.thread("one").steps(lane="")}
        assert own
        mine = saver.log.thread("one").state()
        imported = log.thread("one").state()
        assert mine is not None
        assert imported is not None
        assert {name: typed for name, (typed, _) in imported.channels.items()} == {
            name: typed for name, (typed, _) in mine.channels.items()
        }
        assert {name: type(value) for name, value in imported.values.items()} == {
            name: type(value) for name, value in mine.values.items()
        }
        assert imported.fields["metadata"][1].split(b"run")[0][:8] == mine.fields["metadata"][1][:8]
    # What was appended to a list is a splice, not the list anew.
    appended = [event for _, event in log.thread("one").events() if isinstance(event, StepCommitted)]
    patches = [type(event.channels.changes.get("messages")).__name__ for event in appended if event.lane == ""]
    assert patches.count("Splice") == 13
    assert patches.count("Array") == 1


def catalogue(saver: StepwellSaver) -> list[Any]:
    """What lists tell of every thread, but for times; and who is found by that."""
    found = [*saver.threads()]
    asked = [[*saver.threads(status=each.status, filter=each.metadata)] for each in found if each.status is not None]
    return sorted(
        [(each.thread_id, each.status, each.metadata, each.checkpoints) for each in found]
        + [(each.thread_id, "found", {}, 0) for every in asked for each in every],
        key=repr,
    )


def never(*arguments: Any) -> Any:
    pytest.fail("an append was refused, although nobody else appended")


@pytest.mark.parametrize("window", [1, 3, 256])
def test_lists_tell_what_they_do_of_the_savers_own(
    window: int, database: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status and labels are those of the same calls made to the saver, however often labels change on the way."""
    monkeypatch.setattr("stepwell_langgraph.importing._WINDOW_CHECKPOINTS", window)
    monkeypatch.setattr(Import, "_append_now", never)
    assert import_from(database, log).verified == 27
    with StepwellSaver.from_conn_string(":memory:") as saver:
        fill(saver)
        told = catalogue(StepwellSaver(log))
        assert told == catalogue(saver)
        assert ("one", "done", {"customer": "customer 2", "tier": 3}, 26) in told
        own, imported = saver.log.thread("one"), log.thread("one")
        said = [
            [event.status for _, event in thread.events() if isinstance(event, StepCommitted)]
            for thread in (own, imported)
        ]
        assert said[0] == said[1]
        written = [
            sorted(event.status or "" for _, event in thread.events() if isinstance(event, WritesRecorded))
            for thread in (own, imported)
        ]
        assert written[0] == written[1]
    assert import_from(database, log).present == 27
    assert catalogue(StepwellSaver(log)) == told


def ends_with(saver: Saver, given: list[list[tuple[str, Any]]]) -> None:
    """A thread whose newest checkpoint has something to run, and the writes of a few tasks."""
    parent = put(saver, "one", 0, {"branch:to:a": None}, user="u1")
    head = put(saver, "one", 1, {"branch:to:a": None, "branch:to:b": None}, parent=parent, user="u1")
    put(saver, "one", 1, {"n": 1}, namespace="sub:1", parents={"": head})
    for number, writes in enumerate(given):
        saver.put_writes(config("one", "", head), writes, f"task-{number}", f"~{number}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "running"),
        ([[("n", 1)]], "running"),
        ([[("n", 1)], [("__interrupt__", ("ask",))]], "interrupted"),
        ([[("__error__", "broken")], [("n", 1)]], "failed"),
        ([[("__resume__", ["yes"])], [("n", 1)]], "running"),
    ],
)
@pytest.mark.parametrize("make", [InMemorySaver, None])
def test_status_by_writes(
    make: Callable[[], Saver] | None, given: list[list[tuple[str, Any]]], expected: str, tmp_path: Path, log: Log
) -> None:
    """Interrupts, errors and answers that wait for the newest checkpoint tell of the thread; sub-graphs do not."""
    if make is not None:
        source: Any = make()
        ends_with(source, given)
    else:
        source = tmp_path / "other.db"
        with SqliteSaver.from_conn_string(str(source)) as saver:
            ends_with(saver, given)
    assert import_from(source, log).ok
    (found,) = StepwellSaver(log).threads(status=expected, filter={"user": "u1"})
    assert (found.thread_id, found.status, found.metadata, found.checkpoints) == ("one", expected, {"user": "u1"}, 3)


def test_what_is_encrypted_has_no_status(tmp_path: Path, log: Log) -> None:
    """Of a checkpoint in one encrypted piece nobody can say whether something is left to run: better none than wrong.

    Where channels are stored one by one, their names say it.
    """
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    given = [[("__interrupt__", ("ask",))]]
    path = tmp_path / "encrypted.db"
    with closing(sqlite3.connect(path)) as connection:
        source = SqliteSaver(connection, serde=serde)
        ends_with(source, given)
        import_from(path, log)
        head = source.get_tuple(config("one"))
        assert head is not None
        source.put_writes(head.config, [("__error__", "broken")], "another")
        assert import_from(path, log).writes == 1
    (found,) = StepwellSaver(log).threads()
    assert (found.status, found.metadata) == (None, {"user": "u1"})
    with Log.open(":memory:") as other:
        memory = InMemorySaver(serde=serde)
        ends_with(memory, given)
        assert import_from(memory, other).ok
        assert [each.status for each in StepwellSaver(other).threads()] == ["interrupted"]


def test_long_values_are_not_decoded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """That there are Sends is all there is to see, however much they carry."""
    source = InMemorySaver()
    put(source, "one", 0, {"__pregel_tasks": [Send("node", {"m": ["x" * 1000] * 100})]})
    decode = inspect.decode
    lengths: list[int] = []

    def counted(type_: str, payload: Any, **options: Any) -> Any:
        lengths.append(len(payload))
        return decode(type_, payload, **options)

    monkeypatch.setattr(inspect, "decode", counted)
    assert import_from(source, log).ok
    assert max(lengths) < 1000
    assert [each.status for each in StepwellSaver(log).threads()] == ["running"]


def test_states_that_are_not_remembered(database: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is remembered of a parent, its state is read from the log, and what differs is what is stored."""
    monkeypatch.setattr("stepwell_langgraph.importing._WINDOW_CHECKPOINTS", 1)
    monkeypatch.setattr("stepwell_langgraph.receiving._TIPS_BYTES", 0)
    assert import_from(database, log).verified == 27
    with SqliteSaver.from_conn_string(str(database)) as source:
        assert told(StepwellSaver(log)) == told(source)
    steps = [event for _, event in log.thread("one").events() if isinstance(event, StepCommitted) and not event.lane]
    patches = [type(event.channels.changes.get("messages")).__name__ for event in steps]
    assert (patches.count("Splice"), patches.count("Array")) == (13, 1)


def test_the_saver_goes_on_from_there(database: Path, log: Log) -> None:
    """A put that follows an imported checkpoint stores what is new, and reads with what was imported."""
    import_from(database, log)
    saver = StepwellSaver(log)
    head = saver.get_tuple(config("one"))
    assert head is not None
    channels = {**head.checkpoint["channel_values"], "n": "more"}
    new = put(saver, "one", 101, channels, parent=head.checkpoint["id"])
    found = saver.get_tuple(config("one"))
    assert found is not None
    assert found.checkpoint["id"] == new
    assert found.checkpoint["channel_values"] == channels


def test_times_are_those_of_the_source(database: Path, log: Log) -> None:
    """A step says when the checkpoint was made, not when it was imported."""
    import_from(database, log)
    assert {step.created_at for step in log.thread("one").steps()} == {1767323045 * 10**9}


def test_order_is_that_of_the_puts(tmp_path: Path, log: Log) -> None:
    """Where the clock stepped back, the order is that of the rows; a parent that was put again still comes first."""
    path = tmp_path / "source.db"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        first = put(saver, "t", 0, {"n": 0})
        second = put(saver, "t", 1, {"n": 1}, parent=first)
        third = put(saver, "t", 2, {"n": 2}, parent=second)
    changed(
        path, "UPDATE checkpoints SET checkpoint_id = '0' || substr(checkpoint_id, 2) WHERE checkpoint_id = ?", third
    )
    changed(path, "INSERT OR REPLACE INTO checkpoints SELECT * FROM checkpoints WHERE checkpoint_id = ?", first)
    import_from(path, log)
    assert [step.step_id for step in log.thread("t").steps()] == ["0" + third[1:], second, first]


def test_chosen_threads(database: Path, log: Log) -> None:
    """Only the threads that are named are imported; one that is not there is a problem, not the end."""
    report = import_from(database, log, threads=iter(["two", "three", "two"]))
    assert [(problem.thread_id, problem.checkpoint_id) for problem in report.problems] == [("three", None)]
    assert (report.threads, report.checkpoints) == (1, 1)
    assert [*log.all_threads()] == ["two"]


def test_forms_of_a_source(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative and an absolute address, a path and the saver itself are the same database."""
    monkeypatch.chdir(database.parent)
    with SqliteSaver.from_conn_string(str(database)) as saver:
        for source in (f"sqlite:///{database.name}", f"sqlite:///{database}", database, saver):
            with Log.open(":memory:") as log:
                report = import_from(source, StepwellSaver(log))
                assert (report.checkpoints, report.is_exact, report.ok) == (27, True, True)
                assert f"sqlite:///{database.name}" in str(report) or str(database) in str(report)


# --- other savers ---


class Unknown(BaseCheckpointSaver[str]):
    """A saver of which nothing but its methods is known."""

    def __init__(self, saver: Saver) -> None:
        super().__init__()
        self._saver = saver

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        return self._saver.get_tuple(config)

    def list(self, config: Any, **options: Any) -> Iterator[CheckpointTuple]:
        return self._saver.list(config, **options)


@pytest.mark.parametrize("wrap", [lambda saver: saver, Unknown], ids=["InMemorySaver", "unknown"])
def test_savers_as_objects(wrap: Callable[[Saver], Saver], log: Log) -> None:
    """What InMemorySaver holds, and what any saver gives, reads the same afterwards, in the same order."""
    source = InMemorySaver()
    fill(source)
    report = import_from(wrap(source), log)
    assert report.problems == []
    assert report.is_exact == (wrap is not Unknown)
    assert report.verified == report.checkpoints == 27
    assert told(StepwellSaver(log)) == told(source)
    assert heads(StepwellSaver(log)) == heads(source)
    assert import_from(wrap(source), log).present == 27


def test_objects_that_cannot_be_read_are_reported(log: Log) -> None:
    """A saver that fails at one checkpoint, or gives what cannot be encoded, loses no other one."""
    source = InMemorySaver()
    fill(source)
    bad = next(found.checkpoint["id"] for found in source.list(config("one"), filter={"step": 5}))

    class Failing(Unknown):
        def get_tuple(self, config: Any) -> CheckpointTuple | None:
            found = super().get_tuple(config)
            if found is not None and found.checkpoint["id"] == bad:
                raise RuntimeError("no")
            return found

    report = import_from(Failing(source), log)
    assert [problem.checkpoint_id for problem in report.problems] == [bad]
    assert report.checkpoints == 26
    expected = told(source)
    del expected["", bad]
    assert told(StepwellSaver(log)) == expected


# --- again, and after an interruption ---


def test_importing_again_changes_nothing(database: Path, log: Log) -> None:
    """What is there and equal is passed over: not one event comes to it."""
    import_from(database, log)
    before = {summary.thread_id: summary.events for summary in log.threads()}
    for verify in (True, False):
        report = import_from(database, log, verify=verify)
        assert (report.checkpoints, report.present, report.writes, report.ok) == (0, 27, 0, True)
        assert report.verified == (27 if verify else 0)
    assert {summary.thread_id: summary.events for summary in log.threads()} == before


def test_what_came_to_the_source_comes_after(database: Path, log: Log) -> None:
    """An import that is repeated brings new checkpoints and new writes of old ones; what the log got stays."""
    import_from(database, log)
    saver = StepwellSaver(log)
    own = put(saver, "one", 5, {"n": "ours"}, namespace="ours")
    with SqliteSaver.from_conn_string(str(database)) as source:
        head = source.get_tuple(config("one"))
        assert head is not None
        new = put(source, "one", 200, {"n": "theirs"}, parent=head.checkpoint["id"])
        source.put_writes(config("one", "", head.checkpoint["id"]), [("n", 1), ("__resume__", 2)], "late", "~x")
        report = import_from(database, log)
        assert (report.checkpoints, report.present, report.writes, report.ok) == (1, 27, 2, True)
        source.put_writes(config("one", "", head.checkpoint["id"]), [("__resume__", 3)], "late", "~x")
        assert import_from(database, log).writes == 1
        ours = told(saver)
        assert ours.pop(("ours", own))
        assert ours == told(source)
        assert ("", new) in ours


@pytest.mark.parametrize("seed", range(3))
def test_interruptions(seed: int, database: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at any moment, and called again, it goes on; in the end all is there, once."""
    monkeypatch.setattr("stepwell_langgraph.importing._WINDOW_CHECKPOINTS", 3)
    monkeypatch.setattr("stepwell_langgraph.importing._TELL_SECONDS", 0)
    chance = random.Random(seed)
    interrupted = 0

    def progress(state: ImportProgress) -> None:
        nonlocal interrupted
        if chance.random() < 0.3:
            interrupted += 1
            raise KeyboardInterrupt

    while True:
        with suppress(KeyboardInterrupt):
            report = import_from(database, log, progress=progress)
            break
    assert interrupted
    assert (report.checkpoints + report.present, report.verified, report.ok) == (27, 27, True)
    with SqliteSaver.from_conn_string(str(database)) as source:
        assert told(StepwellSaver(log)) == told(source)
    assert log.thread("one").summary().steps == 26  # type: ignore[union-attr]


CHILD = """
import sys
from stepwell import Log
from stepwell_langgraph import importing
importing._WINDOW_CHECKPOINTS = 4
importing._TELL_SECONDS = 0
with Log.open(sys.argv[2]) as log:
    print("ready", flush=True)
    importing.import_from(sys.argv[1], log, progress=lambda state: print(state.checkpoints, flush=True))
"""


def test_kills(tmp_path: Path) -> None:
    """Killed at random moments, and started again, it goes on where it stopped."""
    path, target = tmp_path / "source.db", tmp_path / "log.stepwell"
    with SqliteSaver.from_conn_string(str(path)) as source:
        fill(source, 60)
        for seed in range(int(os.environ.get("STEPWELL_KILLS", "1"))):
            arguments = [sys.executable, "-c", CHILD, f"sqlite:///{path}", str(target)]
            with subprocess.Popen(arguments, stdout=subprocess.PIPE) as child:
                assert child.stdout is not None
                for _ in range(random.Random(seed).randrange(1, 14)):
                    child.stdout.readline()
                time.sleep(random.Random(seed).random() * 0.01)
                child.send_signal(signal.SIGKILL)
        with Log.open(target) as log:
            assert log.audit().breaches == []
            report = import_from(path, log)
            assert report.ok
            assert report.present
            assert told(StepwellSaver(log)) == told(source)
            assert log.audit().breaches == []


def test_others_append_meanwhile(database: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that somebody else appends to while it is imported gets both."""
    monkeypatch.setattr("stepwell_langgraph.importing._WINDOW_CHECKPOINTS", 5)
    monkeypatch.setattr("stepwell_langgraph.importing._TELL_SECONDS", 0)
    thread = log.thread("one")
    read = SqliteTables._read
    count = 0

    def reading(self: SqliteTables, thread_id: str, place: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count % 8 == 0:
            thread.label({"tier": count, "ours": count})
        elif count % 4 == 0:
            thread.append(
                [StepCommitted(f"ours-{count}", None, changes({"n": ("text", b"ours")}), changes({}), "ours")]
            )
        return read(self, thread_id, place, **options)

    monkeypatch.setattr(SqliteTables, "_read", reading)
    report = import_from(database, log)
    assert (report.checkpoints, report.verified, report.ok) == (27, 27, True)
    summary = thread.summary()
    assert summary is not None
    assert summary.labels["customer"] == "customer 2"
    assert summary.labels["ours"] > 8
    with SqliteSaver.from_conn_string(str(database)) as source:
        thread.prune([step.sequence for step in thread.steps() if step.lane != "ours"])
        assert told(StepwellSaver(log)) == told(source)


def test_two_imports_at_once(database: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two imports of one database into one log bring each checkpoint and write once."""
    monkeypatch.setattr("stepwell_langgraph.importing._WINDOW_CHECKPOINTS", 2)
    with ThreadPoolExecutor() as pool:
        reports = [each.result() for each in [pool.submit(import_from, database, log) for _ in range(3)]]
    assert [report.ok for report in reports] == [True] * 3
    assert [report.verified for report in reports] == [27] * 3
    assert sum(report.checkpoints for report in reports) == 27
    assert sum(report.writes for report in reports) == 52
    with SqliteSaver.from_conn_string(str(database)) as source:
        assert told(StepwellSaver(log)) == told(source)


def test_removed_meanwhile(database: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is deleted from the source while it is imported is told; what was read stays, others go on."""
    read = SqliteTables._read

    def reading(self: SqliteTables, thread_id: str, place: Any, **options: Any) -> Any:
        if place.namespace == "sub:1":
            with SqliteSaver.from_conn_string(str(database)) as other:
                other.delete_thread("one")
        return read(self, thread_id, place, **options)

    monkeypatch.setattr(SqliteTables, "_read", reading)
    report = import_from(database, log)
    assert {problem.reason for problem in report.problems} == {"the checkpoint was removed meanwhile"}
    assert report.checkpoints + len(report.problems) == 27
    assert report.verified == report.checkpoints > 1
    assert log.thread("two").row() is not None


def test_the_log_is_never_overwritten(database: Path, log: Log) -> None:
    """A checkpoint that the log holds with other content stays as it is, and is told."""
    import_from(database, log)
    saver = StepwellSaver(log)
    head = saver.get_tuple(config("one"))
    assert head is not None
    before = head.checkpoint["channel_values"]
    changed(database, "UPDATE checkpoints SET metadata = '{}' WHERE checkpoint_id = ?", head.checkpoint["id"])
    changed(database, "UPDATE writes SET type = 'null', value = '' WHERE task_id = 'task-b-2' AND idx = 0")
    report = import_from(database, log)
    assert (report.checkpoints, report.writes, report.present) == (0, 0, 27)
    reasons = [problem.reason for problem in report.problems]
    assert reasons == [
        "the log has another write 0 of task 'task-b-2' than the source",
        "the log has other metadata than the source",
    ]
    again = saver.get_tuple(config("one"))
    assert again is not None
    assert again.checkpoint["channel_values"] == before
    assert again.metadata == head.metadata


def test_comparing_appends_nothing(database: Path, log: Log) -> None:
    """A comparison tells what the log does not have, and leaves it so."""
    import_from(database, log, threads=["two"])
    source = SqliteTables(database)
    with closing(source), closing(ahead.ReadAhead(source)) as readings:
        report = Import(source, readings, log, append=False).run(None)
    assert {problem.reason for problem in report.problems} == {"the log does not have it"}
    assert report.verified == 1
    assert [*log.all_threads()] == ["two"]


# --- a source is only read ---


def test_a_source_is_never_changed(database: Path, log: Log) -> None:
    """The file has the bytes and times that it had; beside it are at most those that SQLite makes for any reader."""
    before = database.read_bytes(), database.stat().st_mtime_ns
    import_from(database, log)
    assert (database.read_bytes(), database.stat().st_mtime_ns) == before
    beside = {path.name: path.stat().st_size for path in database.parent.glob("source.db-*")}
    assert beside.keys() <= {"source.db-shm", "source.db-wal"}
    assert not beside.get("source.db-wal")


def test_a_source_in_use(database: Path, log: Log) -> None:
    """What stands in the write-ahead log only is imported, and whoever writes to the database is not locked out."""
    with SqliteSaver.from_conn_string(str(database)) as saver:
        saver.conn.execute("PRAGMA wal_autocheckpoint = 0")
        new = put(saver, "three", 0, {"n": 1})
        assert Path(f"{database}-wal").stat().st_size
        seen: list[ImportProgress] = []

        def progress(state: ImportProgress) -> None:
            seen.append(state)
            put(saver, "four", 0, {"n": 1})

        report = import_from(database, log, progress=progress)
        assert report.ok
        assert [step.step_id for step in log.thread("three").steps()] == [new]
        assert seen[-1].checkpoints == seen[-1].of_checkpoints == 28
        assert seen[-1].read_bytes
        assert seen[-1].before_bytes
        assert seen[-1].after_bytes


def test_older_tables(tmp_path: Path, log: Log) -> None:
    """A database of the time before task paths, and one without writes, are read."""
    path = tmp_path / "old.db"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        only = put(saver, "t", 0, {"n": 0})
        saver.put_writes(config("t", "", only), [("n", 1)], "task")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE writes DROP COLUMN task_path")
    report = import_from(path, log)
    assert (report.checkpoints, report.writes, report.ok) == (1, 1, True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE writes")
    assert import_from(path, log).present == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("CREATE TABLE something (a)", "no table checkpoints"),
        ("CREATE TABLE checkpoints (thread_id, thread_ts, parent_ts, checkpoint, metadata)", "has no checkpoint_id"),
        ("CREATE VIEW checkpoints AS SELECT 1", "no table checkpoints"),
    ],
)
def test_what_is_no_savers_database(script: str, message: str, tmp_path: Path, log: Log) -> None:
    """Other tables, versions that are not known, and views in place of tables are refused."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(script)
    with pytest.raises(UsageError, match=message):
        import_from(path, log)


def test_what_is_no_source(tmp_path: Path, log: Log) -> None:
    """A file that is not there, no database, and no source at all are refused; nothing is made."""
    (tmp_path / "text").write_text("hello" * 1000)
    for source, message in (
        (tmp_path / "absent.db", "no file"),
        ("sqlite:///absent.db", "no file"),
        ("absent.db", "no file"),
        (tmp_path / "text", "not a database"),
        ("mysql://", "no importing"),
        (7, "no importing"),
    ):
        with pytest.raises(UsageError, match=message):
            import_from(source, log)
    with pytest.raises(UsageError, match="needs a Log"):
        import_from(tmp_path / "text", "log")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.stepwell", "log.stepwell-lock", "text"]


def test_a_log_that_is_only_read(database: Path, tmp_path: Path) -> None:
    """A log that was opened to be read is refused at once."""
    Log.open(tmp_path / "own").close()
    with Log.open(tmp_path / "own", read_only=True) as log, pytest.raises(ReadOnlyError):
        import_from(database, log)


# --- what a stranger's database may hold ---


def test_an_id_that_stands_twice(database: Path, log: Log) -> None:
    """A table without the key that savers give it may hold several checkpoints of one id: that is said."""
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(
            "CREATE TABLE copy AS SELECT * FROM checkpoints; DROP TABLE checkpoints;"
            "ALTER TABLE copy RENAME TO checkpoints;"
            "INSERT INTO checkpoints SELECT * FROM checkpoints WHERE thread_id = 'two' LIMIT 1;"
        )
    report = import_from(str(database), log)
    assert [(problem.thread_id, problem.reason[:28]) for problem in report.problems] == [
        ("two", "there are 2 checkpoints with")
    ]
    assert report.verified == 27


class Gadget:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_pickles_are_never_loaded(database: Path, tmp_path: Path, log: Log) -> None:
    """A checkpoint and a write that are pickles are kept as the bytes that they are, and nothing of them runs."""
    ran = tmp_path / "ran"
    payload = pickle.dumps(Gadget(ran))
    changed(database, "UPDATE checkpoints SET type = 'pickle', checkpoint = ? WHERE thread_id = 'two'", payload)
    changed(database, "UPDATE writes SET type = 'pickle', value = ? WHERE task_id = 'task-b-2' AND idx = 0", payload)
    report = import_from(database, log)
    assert report.ok
    assert report.verified == 27
    assert not ran.exists()
    state = log.thread("two").state()
    assert state is not None
    assert state.fields["checkpoint"] == ("pickle", payload)
    stored = [
        write.write.value for step in log.thread("one").steps() for write in log.thread("one").writes(step.step_id)
    ]
    assert payload in [getattr(value, "content", None) for value in stored if value.type == "pickle"]


def test_a_checkpoint_that_is_one_pickle_reads_as_it_did(database: Path, log: Log) -> None:
    """Whoever trusts pickles gets the values of a checkpoint that was pickled in one piece."""
    serde = JsonPlusSerializer(pickle_fallback=True)
    with SqliteSaver.from_conn_string(str(database)) as source:
        head = source.get_tuple(config("one"))
        assert head is not None
        whole = pickle.dumps(head.checkpoint)
        changed(
            database,
            "UPDATE checkpoints SET type='pickle', checkpoint=? WHERE checkpoint_id=?",
            whole,
            head.checkpoint["id"],
        )
    assert import_from(database, log).ok
    saver = StepwellSaver(log, serde=serde)
    found = saver.get_tuple(config("one"))
    assert found is not None
    assert found.checkpoint == head.checkpoint
    put(saver, "one", 300, {"n": 1}, parent=head.checkpoint["id"])
    history = saver.get_delta_channel_history(config=config("one"), channels=["messages"])
    assert history["messages"]["seed"] == head.checkpoint["channel_values"]["messages"]
    with pytest.raises(NotImplementedError):
        StepwellSaver(log).get_tuple(config("one", "", head.checkpoint["id"]))


def test_encrypted_databases(tmp_path: Path, log: Log) -> None:
    """Without the key, an encrypted database is imported as it is; with it, it reads as it did."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    path = tmp_path / "encrypted.db"
    with closing(sqlite3.connect(path)) as connection:
        source = SqliteSaver(connection, serde=serde)
        fill(source, 4)
        report = import_from(path, log)
        assert report.ok
        assert told(StepwellSaver(log, serde=serde)) == told(source)


def test_checkpoints_of_the_time_of_json(database: Path, log: Log) -> None:
    """A checkpoint in JSON keeps its constructors unread, and reads as it did."""
    message = {"lc": 2, "type": "constructor", "id": ["uuid", "UUID"], "kwargs": {"hex": "12345678" * 4}}
    whole = {
        "v": 1,
        "ts": "2024-01-02T03:04:05+00:00",
        "id": "old",
        "channel_values": {"m": [message], "none": None, "n": 1.5, "text": "é"},
        "channel_versions": {"m": 3},
        "versions_seen": {},
        "pending_sends": [],
    }
    values = ("three", "", "old", None, "json", json.dumps(whole), json.dumps({"source": "loop", "big": 10**30}))
    changed(database, "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?)", *values)
    changed(database, "INSERT INTO writes VALUES ('three', '', 'old', 'task', '', 0, 'm', 'json', '[1]')")
    report = import_from(database, log)
    assert report.ok
    state = log.thread("three").state()
    assert state is not None
    assert json.loads(state.channels["m"][1]) == [message]
    with SqliteSaver.from_conn_string(str(database)) as source:
        assert told(StepwellSaver(log), "three") == told(source, "three")


BAD: Sequence[tuple[str, str]] = (
    ("checkpoint = substr(checkpoint, 1, length(checkpoint) - 3)", "cannot be read as msgpack"),
    ("checkpoint = zeroblob(50)", "cannot be read as msgpack"),
    ("checkpoint = 7", "is int, not bytes"),
    ("checkpoint = NULL", "is NoneType, not bytes"),
    ("type = NULL", "type is None"),
    ("type = 'json'", "cannot be read as json"),
    ("metadata = '{'", "no JSON"),
    ("metadata = replace(hex(zeroblob(50000)), '0', '[')", "no JSON"),
    ("parent_checkpoint_id = x'00'", "parent's id is"),
    ("checkpoint_id = x'00ff'", "not a text"),
    ("checkpoint_id = CAST(x'61ff' AS TEXT)", "surrogate"),
    ("checkpoint_ns = CAST(x'61ff' AS TEXT)", "surrogate"),
)


@pytest.mark.parametrize(("change", "reason"), BAD, ids=range(len(BAD)))
def test_bad_rows_leave_the_others_alone(change: str, reason: str, database: Path, log: Log) -> None:
    """A row that cannot be read is told with its place, and all others are imported; its children too."""
    where = "thread_id = 'one' AND checkpoint_ns = '' AND rowid = (SELECT min(rowid) + 4 FROM checkpoints)"
    changed(database, f"UPDATE checkpoints SET {change} WHERE {where}")
    report = import_from(database, log)
    assert len(report.problems) == 1, report.problems
    assert re.search(reason, report.problems[0].reason)
    assert report.problems[0].thread_id == "one"
    assert (report.checkpoints, report.verified) == (26, 26)
    again = import_from(database, log)
    assert (again.checkpoints, again.present, len(again.problems)) == (0, 26, 1)


@pytest.mark.parametrize("change", ["idx = 'x'", "task_id = x'00'", "channel = CAST(x'ff' AS TEXT)", "value = 1.5"])
def test_bad_writes_leave_the_others_alone(change: str, database: Path, log: Log) -> None:
    """A write that cannot be read is told, and all others are imported."""
    changed(database, f"UPDATE writes SET {change} WHERE task_id = 'task-b-4' AND idx = 0")
    report = import_from(database, log)
    assert len(report.problems) == 1, report.problems
    assert report.verified == report.checkpoints == 27
    assert report.writes == 51


def test_bad_thread_ids(database: Path, log: Log) -> None:
    """A thread whose id is no text, or one of the log's own, is told, and the others are imported."""
    for thread_id in (b"\1\2", "\0stepwell.items"):
        changed(database, "UPDATE checkpoints SET thread_id = ? WHERE thread_id <> 'one'", thread_id)
        report = import_from(database, log)
        assert len(report.problems) == 1
        assert report.verified == 26


def test_a_damaged_file(database: Path, log: Log) -> None:
    """Where pages of the file are damaged, what can be read is imported and the rest is told."""
    data = bytearray(database.read_bytes())
    size = int.from_bytes(data[16:18])
    middle = (len(data) // size // 2) * size
    data[middle : middle + 3 * size] = random.Random(7).randbytes(3 * size)
    database.write_bytes(data)
    report = import_from(database, log)
    assert report.problems
    assert report.verified == report.checkpoints


@pytest.mark.parametrize("seed", range(int(os.environ.get("STEPWELL_DAMAGES", "8"))))
def test_damaged_bytes(seed: int, database: Path) -> None:
    """Whatever bytes stand in rows, nothing is raised, and what is imported is what stands there."""
    chance = random.Random(seed)
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in (("checkpoints", "checkpoint"), ("checkpoints", "metadata"), ("writes", "value")):
            for rowid, data in connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
                if not data or chance.random() < 0.5:
                    continue
                bad = bytearray(data)
                for _ in range(chance.randrange(1, 4)):
                    at = chance.randrange(min(len(bad), chance.choice((8, 100, 1 << 20))))
                    match chance.randrange(3):
                        case 0:
                            bad[at] = chance.randrange(256)
                        case 1:
                            bad[at : at + chance.randrange(9)] = b""
                        case _:
                            bad[at:at] = chance.randbytes(chance.randrange(9))
                    bad = bad or bytearray(b"x")
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (bytes(bad), rowid))
    with Log.open(":memory:") as log:
        report = import_from(database, log)
        assert report.verified == report.checkpoints
        assert report.checkpoints + len(report.problems) == 27
        assert log.audit().breaches == []
        again = import_from(database, log)
        assert (again.checkpoints, again.writes, again.present) == (0, 0, report.checkpoints)


def test_reports_escape_what_strangers_write(tmp_path: Path, log: Log) -> None:
    """A problem as text holds no control character that a stranger put into an id."""
    path = tmp_path / "source.db"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        put(saver, "\x1b[31mred", 0, {})
    changed(path, "UPDATE checkpoints SET checkpoint = x'00', checkpoint_id = char(27) || 'x'")
    text = str(import_from(path, log))
    assert "problem" in text
    assert "\x1b" not in text
