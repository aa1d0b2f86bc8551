"""What a user of the library writes, for the type checker: `test_typing.py` has it checked strictly.

Nothing here is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_type

from stepwell import (
    Breach,
    Change,
    Commit,
    Compaction,
    ConflictError,
    ContentSize,
    CorruptionError,
    Difference,
    Divergence,
    Event,
    FeedEntry,
    Following,
    Histogram,
    Hit,
    Log,
    LogStats,
    Loss,
    PendingWrite,
    RepairReport,
    Replayed,
    Report,
    Sequence,
    Snapshot,
    Step,
    StepCommitted,
    TaskWrites,
    Thread,
    ThreadRepair,
    ThreadSummary,
    Tree,
    View,
    Write,
    WritesRecorded,
    apply,
    changes,
    compact,
    compose,
    diff,
    parse,
    repair,
)
from stepwell.patch import Array, Blob, Map, Merge, Splice
from stepwell_langgraph import StepwellCache, StepwellSaver, StepwellStore, Version


def open_a_log(path: os.PathLike[str]) -> None:
    """A log is opened by any kind of path, and closes with its block."""
    with Log.open(path) as log:
        assert_type(log, Log)
    with Log.open("agents.stepwell", read_only=True) as log:
        assert_type(log.path, str)
        assert_type(log.compact(Path("copy.stepwell")).after_bytes, int)
    assert_type(compact("agents.stepwell"), Compaction)


class NotedLog(Log):
    """A log with something of its own."""

    note: str = ""


def open_another_log() -> None:
    """What is opened is of the class that it was asked of."""
    with NotedLog.open(":memory:") as log:
        assert_type(log, NotedLog)


def write(log: Log) -> None:
    """Appends take the events of steps and writes, and return a sequence."""
    thread = log.thread("t")
    assert_type(thread, Thread)
    step = StepCommitted("s0", None, changes({"x": ("text", b"1")}), changes({}))
    writes = WritesRecorded("s0", "task", "", (Write(0, "x", parse("text", b"1")),))
    assert_type(thread.append([step, writes], expected_head=0), Sequence)
    log.thread(b"t")  # type: ignore[arg-type]
    thread.append(step)  # type: ignore[arg-type]
    thread.append([step], head=0)  # type: ignore[call-arg]
    step.step_id = "s1"  # type: ignore[misc]


async def write_in_a_coroutine(thread: Thread) -> None:
    """A ticket is awaited for what was committed."""
    committed = await thread.begin_append([])
    assert_type(committed.sequences, tuple[int, ...])


def read(log: Log) -> None:
    """What is read may not be there."""
    thread = log.thread("t")
    assert_type(thread.state(), Snapshot | None)
    assert_type(thread.state("s0", lane="sub"), Snapshot | None)
    assert_type(thread.summary(), ThreadSummary | None)
    assert_type(thread.writes("s0"), list[PendingWrite])
    print(thread.state().channels)  # type: ignore[union-attr]
    state = thread.state(Sequence(3))
    if state is not None:
        assert_type(state.channels, dict[str, tuple[str, bytes]])
        changes({"x": ("text", b"2")}, state.values)
        state.sequence = Sequence(4)  # type: ignore[misc]


def iterate(log: Log) -> None:
    """Lists come as iterators."""
    assert_type(log.threads(prefix="t"), Iterator[ThreadSummary])
    assert_type(log.feed(after=5), Iterator[FeedEntry])
    assert_type(log.follow(after=None, timeout_seconds=1), Following[FeedEntry])
    assert_type(next(log.thread("t").follow()), tuple[Sequence, Event])
    assert_type(log.thread("t").steps(), Iterator[Step])
    for sequence, event in log.thread("t").events(reverse=True):
        assert_type(sequence, Sequence)
        assert_type(event, Event)
    for entry in log.feed():
        assert_type(entry.commit, Commit)
        assert_type(entry.thread_id, str | None)


async def follow(log: Log) -> None:
    """Who follows is given what lists give."""
    async for entry in log.follow(after=None):
        assert_type(entry, FeedEntry)
    async for sequence, event in log.thread("t").follow():
        assert_type((sequence, event), tuple[Sequence, Event])
    log.follow(0)  # type: ignore[call-arg]


def look(log: Log) -> None:
    """A log tells about itself; one in memory has no file."""
    stats = log.stats()
    assert_type(stats, LogStats)
    assert_type(stats.writer.commit_seconds, Histogram)
    print(stats.file.disk_bytes)  # type: ignore[union-attr]
    assert_type(log.measure("t", largest=3).channels, dict[str, ContentSize])


def check(log: Log) -> None:
    """An audit reports breaches."""
    report = log.audit()
    assert_type(report, Report)
    assert_type(report.breaches, list[Breach])


def mend(path: str) -> None:
    """A repair reports what was lost, thread by thread."""

    def progress(what: str, done: int, total: int) -> None:
        assert_type((what, done, total), tuple[str, int, int])

    report = repair(path, f"{path}.repaired", progress=progress)
    assert_type(report, RepairReport)
    for thread in report.repaired:
        assert_type(thread, ThreadRepair)
        assert_type(thread.lost, tuple[Loss, ...])


def patches() -> None:
    """A value is a patch too; a patch is not always a value."""
    old, new = parse("msgpack", b""), parse("msgpack", b"")
    assert_type(old, Blob | Array | Map)
    patch = diff(old, new)
    assert_type(patch, Blob | Array | Map | Splice | Merge | None)
    if patch is not None:
        assert_type(apply(patch, old), Blob | Array | Map)
        assert_type(compose(patch, new), Blob | Array | Map | Splice | Merge)
    apply(None, old)  # type: ignore[arg-type]


def errors(thread: Thread) -> None:
    """Errors carry what they are about."""
    try:
        thread.append([])
    except ConflictError as conflict:
        assert_type(conflict.thread, str)
    except CorruptionError as corruption:
        assert_type(corruption.thread, str | int | None)
        assert_type(corruption.sequence, int | None)


def save(path: str) -> None:
    """The saver is opened like LangGraph's own."""
    with StepwellSaver.from_conn_string(path) as saver:
        assert_type(saver, StepwellSaver)
        assert_type(saver.log, Log)


def look_into_a_run(thread: Thread) -> None:
    """A run is read as data."""
    for step in thread.replay(since="-1", until="head~1"):
        assert_type(step, Replayed)
        assert_type(step.state, View)
        assert_type(step.writes, list[TaskWrites])
        assert_type(step.elapsed_seconds, float | None)
    assert_type(thread.blame("messages[-1]"), Change)
    assert_type(thread.watch("plan"), Iterator[Change])
    assert_type(thread.diff("0", 12), list[Difference])
    assert_type(thread.first_divergence("0", other=thread), Divergence)
    assert_type(thread.grep("text"), Iterator[Hit])
    assert_type(thread.tree(), Tree)
    assert_type(thread.fork("17", as_="another", patch={"plan.a": 1}), Step)
    thread.resolve(1.5)  # type: ignore[arg-type]


def remember(path: os.PathLike[str]) -> None:
    """A store and a cache are used as LangGraph's, and asked for the past."""
    with StepwellStore.from_conn_string(path, ttl={"default_ttl": 60.0}) as store:
        assert_type(store, StepwellStore)
        store.put(("users", "ada"), "likes", {"drink": "tea"})
        item = store.get(("users", "ada"), "likes", as_of=datetime.now(UTC))
        assert item is not None
        assert_type(store.history(("users", "ada"), "likes"), list[Version])
        assert_type([found.score for found in store.search(("users",), as_of=7)], list[float | None])
        store.get(("users", "ada"), "likes", as_of=("thread", "checkpoint"))
        store.get(("users", "ada"), "likes", as_of={"configurable": {"thread_id": "thread"}})
        cache: StepwellCache[int] = StepwellCache(store.log)
        assert_type(cache.get([(("node",), "key")]), dict[tuple[tuple[str, ...], str], int])
