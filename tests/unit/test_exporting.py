"""Exports to databases and savers: what is in the log is there, and reads the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

from stepwell import Log, StepCommitted, UsageError, Write, WritesRecorded, changes, parse
from stepwell_langgraph import StepwellSaver
from stepwell_langgraph.exporting import ExportProgress, export_to
from stepwell_langgraph.importing import import_from
from unit.test_importing import config, fill, heads, put, told


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[StepwellSaver]:
    """A saver with two threads, one of them with a fork, a sub-graph, and writes of every kind."""
    with StepwellSaver.from_conn_string(tmp_path / "log.stepwell") as opened:
        fill(opened)
        yield opened
        assert opened.log.audit().breaches == []


def rows(path: Path, table: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()


def test_what_is_exported_reads_the_same(saver: StepwellSaver, tmp_path: Path) -> None:
    """SqliteSaver opens the new database, and gives the same checkpoints, heads, and pending writes in order."""
    path = tmp_path / "new.db"
    report = export_to(f"sqlite:///{path}", saver.log)
    assert report.problems == []
    assert (report.threads, report.checkpoints, report.verified) == (2, 27, 27)
    assert report.after_bytes == path.stat().st_size
    with SqliteSaver.from_conn_string(str(path)) as exported:
        for thread in ("one", "two"):
            assert told(exported, thread) == told(saver, thread)
            assert heads(exported, thread) == heads(saver, thread)
        head = exported.get_tuple(config("one"))
        assert head is not None
        put(exported, "one", 200, {"n": 1}, parent=head.checkpoint["id"])
    assert [row for row in rows(path, "writes") if row[2] == "never stored"]


def test_a_database_comes_back_as_it_was(tmp_path: Path) -> None:
    """Imported and exported again, every row of a database is there, and its writes byte for byte."""
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    with SqliteSaver.from_conn_string(str(one)) as source:
        fill(source)
    with Log.open(":memory:") as log:
        assert import_from(one, log).ok
        assert export_to(two, log).ok
        for table in ("checkpoints", "writes"):
            assert len(rows(one, table)) == len(rows(two, table))
        assert sorted(rows(one, "writes")) == sorted(rows(two, "writes"))
        for before, after in zip(rows(one, "checkpoints"), rows(two, "checkpoints"), strict=True):
            assert (before[:5], before[6], len(before[5])) == (after[:5], after[6], len(after[5]))
        assert import_from(two, log).present == 27


def test_into_a_saver(saver: StepwellSaver) -> None:
    """Any saver takes the checkpoints through its own methods, beside what it has, with the indexes of the writes."""
    target = InMemorySaver()
    own = put(target, "theirs", 0, {"n": 1})
    report = export_to(target, saver)
    assert report.problems == []
    assert (report.checkpoints, report.verified) == (27, 27)
    assert told(target) == told(saver)
    assert heads(target) == heads(saver)
    assert target.get_tuple(config("theirs", "", own)) is not None
    original = InMemorySaver()
    fill(original)
    assert sorted(key for writes in target.writes.values() for key in writes) == sorted(
        key for writes in original.writes.values() for key in writes
    )


def test_chosen_threads(saver: StepwellSaver, tmp_path: Path) -> None:
    """Only the threads that are named are exported; one that is not there is a problem."""
    seen: list[ExportProgress] = []
    report = export_to(tmp_path / "new.db", saver, threads=iter(["two", "three"]), progress=seen.append)
    assert [(problem.thread_id, problem.checkpoint_id) for problem in report.problems] == [("three", None)]
    assert (report.checkpoints, report.verified) == (1, 1)
    assert seen[0].of_checkpoints == 1
    assert {row[0] for row in rows(tmp_path / "new.db", "checkpoints")} == {"two"}


def test_forms_that_do_not_fit_together(tmp_path: Path) -> None:
    """Values in JSON beside others in msgpack, from a database that was imported, make one checkpoint again."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        first = put(saver, "t", 0, {"a": [HumanMessage("hello", id="1")]})
        state = saver.log.thread("t").state()
        assert state is not None
        channels = {**state.channels, "b": ("json", b'{"x": [1, 2]}'), "c": ("null", b"")}
        base = state.sequence
        patch = changes(channels, state.values)
        saver.log.thread("t").append([StepCommitted("second", first, patch, changes({}), base=base)])
        assert (
            export_to(tmp_path / "new.db", saver).ok is False
        )  # its fields still say the first one's id, as written here
        found = told(saver, "t")
        with SqliteSaver.from_conn_string(str(tmp_path / "new.db")) as exported:
            there = told(exported, "t")
        assert [each[0]["b"] for each in there.values() if "b" in each[0]] == [
            each[0]["b"] for each in found.values() if "b" in each[0]
        ]


def test_nothing_that_a_log_names_is_called(saver: StepwellSaver, tmp_path: Path) -> None:
    """Of a bare log, metadata and values that have to be put together are data: no class is imported for them."""
    marker = tmp_path / "marker"
    call = msgspec.msgpack.Ext(0, msgspec.msgpack.encode(["os", "mkdir", str(marker)]))
    thread = saver.log.thread("one")
    head = thread.state()
    assert head is not None
    metadata = {"source": "loop", "step": 1, "parents": {}, "gadget": call}
    channels = {**head.channels, "a": ("msgpack", msgspec.msgpack.encode(call)), "b": ("json", b"1")}
    fields = {**head.fields, "metadata": ("msgpack", msgspec.msgpack.encode(metadata))}
    thread.append([StepCommitted("crafted", head.step_id, changes(channels), changes(fields))])
    export_to(tmp_path / "new.db", saver.log, verify=False)
    assert (tmp_path / "new.db").exists()
    assert not marker.exists()


def test_encrypted_values(tmp_path: Path) -> None:
    """With the saver's serializer, encrypted values become an encrypted database that reads the same."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    with StepwellSaver.from_conn_string(":memory:", serde=serde) as saver:
        fill(saver, 4)
        export_to(tmp_path / "new.db", saver, verify=False)
        with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
            assert told(SqliteSaver(connection, serde=serde)) == told(saver)


def test_what_is_pruned_is_told(saver: StepwellSaver, tmp_path: Path) -> None:
    """What stays out of sight after a prune has no form elsewhere: that is said, and the rest is exported."""
    parent = None
    for step in range(3):
        channels = {"delta": ["seed"]} if step == 0 else {}
        versions = {"delta": f"{step + 1:032}.5"}
        counters = {"counters_since_delta_snapshot": {"delta": [step, step]}}
        parent = put(saver, "three", step, channels, parent=parent, versions=versions, **counters)
        saver.put_writes(config("three", "", parent), [("delta", [step])], f"task-{step}")
    saver.prune(["three"])
    report = export_to(tmp_path / "new.db", saver, threads=["three"])
    assert {problem.reason[:26] for problem in report.problems} == {"it is kept out of sight fo"}
    assert (report.checkpoints, report.verified) == (1, 1)


@pytest.mark.parametrize("target", ["file", "saver"])
def test_what_no_saver_can_read_leaves_the_others_alone(saver: StepwellSaver, tmp_path: Path, target: str) -> None:
    """A thread of another program, values that the serializer refuses, and such writes are problems, each told."""
    saver.log.thread("engine").append([StepCommitted("s1", None, changes({"n": ("json", b"1")}), changes({}))])
    unknown = ("of-nobody", b"?")
    fields = saver.log.thread("two").state()
    assert fields is not None
    odd = StepCommitted("s2", None, changes({"n": unknown, "m": ("msgpack", b"\x01")}), changes(fields.fields))
    write = Write(0, "n", parse(*unknown))
    saver.log.thread("odd").append([odd, WritesRecorded("s2", "task", "", (write,))])
    saver.log.thread("waiting").append([odd, WritesRecorded("never", "task", "", (write,))])
    report = export_to(str(tmp_path / "new.db") if target == "file" else InMemorySaver(), saver)
    told_of = {problem.thread_id for problem in report.problems}
    assert told_of == {"engine", "odd", "waiting"}
    assert (report.checkpoints, report.verified) == (27, 27)


def test_another_newest_is_told(tmp_path: Path) -> None:
    """Where the clock stepped back, other savers take another checkpoint for the newest: that is said."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        first = put(saver, "t", 0, {"n": 0})
        thread = saver.log.thread("t")
        state = thread.state()
        assert state is not None
        later = "0" + first[1:]
        thread.append([StepCommitted(later, first, changes({}), changes({}), base=state.sequence)])
        report = export_to(tmp_path / "new.db", saver, verify=False)
        assert [problem.checkpoint_id for problem in report.problems] == [later]
        assert "greatest id" in report.problems[0].reason


def test_targets_that_are_refused(saver: StepwellSaver, tmp_path: Path) -> None:
    """Nothing is written over, and what is no target is said to be none."""
    (tmp_path / "there.db").write_text("mine")
    for target, message in (
        (tmp_path / "there.db", "something at"),
        (f"sqlite:///{tmp_path}/absent/new.db", "no folder"),
        ("mysql://", "no exporting"),
        (7, "no exporting"),
    ):
        with pytest.raises(UsageError, match=message):
            export_to(target, saver)
    with pytest.raises(UsageError, match="needs a Log"):
        export_to(tmp_path / "new.db", "log")  # type: ignore[arg-type]
    assert (tmp_path / "there.db").read_text() == "mine"


def test_an_interrupted_export_leaves_nothing(saver: StepwellSaver, tmp_path: Path) -> None:
    """The file appears when it is complete, and not before."""

    def progress(state: ExportProgress) -> None:
        assert (tmp_path / "new.db-unfinished").exists()
        raise KeyboardInterrupt

    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        export_to(tmp_path / "new.db", saver, progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    # Nor does one that was killed stand in the way.
    (tmp_path / "new.db-unfinished").write_bytes(b"half")
    (tmp_path / "new.db-unfinished-journal").write_bytes(b"half")
    assert export_to(tmp_path / "new.db", saver).verified == 27
    assert sorted(path.name for path in tmp_path.iterdir()) == [*before, "new.db"]
    assert (tmp_path / "new.db").stat().st_mode == (tmp_path / "log.stepwell").stat().st_mode


def test_a_log_that_is_only_read(saver: StepwellSaver, tmp_path: Path) -> None:
    """An export needs nothing but to read."""
    with Log.open(tmp_path / "log.stepwell", read_only=True) as log:
        assert export_to(tmp_path / "new.db", log).verified == 27
