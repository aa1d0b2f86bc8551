"""Lists of threads show what a walk over all threads would, at a cost that does not depend on how many there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from building import all_rows, append, rows_of, set_row, step, wrote
from stepwell import (
    CorruptionError,
    Label,
    Log,
    Status,
    StepCommitted,
    Thread,
    ThreadSummary,
    UsageError,
    WritesRecorded,
)
from stepwell import format as fmt
from stepwell.bundle import export_thread, import_thread
from stepwell.events import ThreadLabelled, status_number
from stepwell.jsonlines import export_lines, import_lines
from stepwell.storage import Append, Query, Storage
from stepwell.storage.memory import MemoryStorage, _MemoryTables
from stepwell.storage.tables import FEED, IDS, RECENT

MINUTE = 60 * 10**9
EPOCH_BEGINS = 1_700_000_000 * 10**9


def says(status: str | None, step_id: str = "s0", **more: Any) -> StepCommitted:
    """A step that says what its thread has come to."""
    event = step(step_id, **more)
    values = {name: getattr(event, name) for name in event.__struct_fields__}
    return StepCommitted(**{**values, "status": None if status is None else Status(status)})


def told(status: str | None, step_id: str = "s0", lane: str = "") -> WritesRecorded:
    """Writes that say what their thread has come to."""
    return WritesRecorded(step_id, "task", "", (), lane, status=None if status is None else Status(status))


def status_of(log: Log, thread_id: str = "t") -> str | None:
    summary = log.thread(thread_id).summary()
    assert summary is not None
    return summary.status


def ids(found: Iterator[ThreadSummary]) -> list[str]:
    return [each.thread_id for each in found]


# --- status ---


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([step("s0")], None),
        ([says("running")], "running"),
        ([says("running"), wrote("s0")], "running"),
        ([says("running"), told("interrupted")], "interrupted"),
        ([says("running"), told("interrupted"), wrote("s0")], "interrupted"),
        ([says("running"), told("interrupted"), told("running")], "running"),
        ([says("running"), told("failed"), says("done", "s1")], "done"),
        ([told("interrupted"), says("running")], "interrupted"),
        ([told("interrupted", "s1"), says("running"), says("running", "s1")], "interrupted"),
        ([told("interrupted", "s1"), says("running")], "running"),
        ([says("running"), says("done", "s1"), told("running")], "done"),
        ([says("running"), says("done", "s1"), told("failed")], "done"),
        ([says("done"), told("running")], "done"),
        ([step("s0"), told("running")], "running"),
        ([says("done"), step("s1")], "done"),
        ([says("failed"), says("done")], "done"),
        ([says("done"), step("s0")], "done"),
        ([says("running"), says("done", "s1"), says("failed")], "done"),
        ([says("done"), says("running", "s1", lane="sub")], "running"),
        (
            [*(told(None, "s0") for _ in range(12)), told("failed"), *(told(None) for _ in range(12)), says("running")],
            "failed",
        ),
    ],
)
def test_status(log: Log, events: list[Any], expected: str | None) -> None:
    """A thread has come to what its head says, and the writes for its head, in whatever order they are stored."""
    for event in events:
        log.thread("t").append([event])
    log.thread("at once").append(events)
    assert status_of(log) == status_of(log, "at once") == expected
    log.thread("t").copy_to("copy")
    log.seal()
    log.thread("copy").copy_to("copy of what was sealed")
    assert status_of(log, "copy") == status_of(log, "copy of what was sealed") == expected
    assert sorted(ids(log.threads(status=expected or []))) == (sorted(log.all_threads()) if expected else [])


def test_status_of_what_is_kept(log: Log) -> None:
    """A pruned thread has come to what its newest kept step had, and goes on from there."""
    thread = log.thread("t")
    places = [
        thread.append([says(status, f"s{number}")])
        for number, status in enumerate(["running", "done", "running", "running"])
    ]
    thread.append([told("failed", "s3")])
    thread.copy_to("u")
    thread.prune([places[1], places[3]])
    assert status_of(log) == "failed"
    thread.prune([place.sequence for place in thread.steps()][-1:])
    assert status_of(log) == "done"
    log.thread("u").prune([places[2]])
    assert status_of(log, "u") == "running"
    log.thread("u").append([told("interrupted", "s2")])
    assert status_of(log, "u") == "interrupted"


@pytest.mark.parametrize("status", ["ended", 1, ["done", "gone"]])
def test_no_status(memory_log: Log, status: Any) -> None:
    """What is no status is refused, in events and in lists."""
    with pytest.raises(UsageError, match="one of running, interrupted, failed, done"):
        memory_log.threads(status=status if isinstance(status, list) else [status])
    with pytest.raises(UsageError, match="one of running"):
        memory_log.thread("t").append([StepCommitted("s", None, step("s").channels, step("s").fields, status=status)])


def by_bundle(thread: Thread, other: Log, folder: Path) -> Log:
    export_thread(thread, folder / "t.bundle")
    import_thread(other, folder / "t.bundle", as_="new")
    return other


def by_lines(thread: Thread, other: Log, folder: Path) -> Log:
    (folder / "t.jsonl").write_text("".join(export_lines(thread, exact=True)))
    import_lines(other, folder / "t.jsonl", as_="new")
    return other


def by_copy(thread: Thread, other: Log, folder: Path) -> Log:
    thread.copy_to("new")
    return thread.log


def by_fork(thread: Thread, other: Log, folder: Path) -> Log:
    thread.fork(as_="new")
    return thread.log


@pytest.mark.parametrize(
    ("carry", "status"), [(by_bundle, "failed"), (by_lines, "failed"), (by_copy, "failed"), (by_fork, "running")]
)
@pytest.mark.parametrize("seal", [False, True])
def test_a_thread_that_is_carried_elsewhere(
    carry: Callable[[Thread, Log, Path], Log], status: str, seal: bool, log: Log, tmp_path: Path
) -> None:
    """It is found by its status and labels there; for a fork nothing waits that failed on the step that it shows."""
    thread = log.thread("t")
    thread.append(
        [says("running"), told("interrupted"), told("running"), says("done", "s1", parent="s0")],
        labels={"customer": "acme", "tier": 1, "gone": True},
    )
    thread.label({"tier": 2.5, "gone": None})
    thread.append([says("running", "s2", parent="s1"), told("failed", "s2"), wrote("s2")])
    if seal:
        log.seal()
    with Log.open(tmp_path / "other") as other:
        target = carry(thread, other, tmp_path)
        labels = {"customer": "acme", "tier": 2.5}
        assert ids(target.threads(status=status, labels=labels))[0] == "new"
        summary = target.thread("new").summary()
        assert summary is not None
        assert (summary.status, summary.labels) == (status, labels)
        said = [event.status for _, event in target.thread("new").events() if isinstance(event, StepCommitted)]
        assert said[:3] == ["running", "done", "running"]
        assert target.audit().breaches == []


# --- labels ---


def test_labels(log: Log) -> None:
    """Labels are set, changed and taken away by name; what changes nothing writes nothing."""
    thread = log.thread("t")
    thread.label({"user": "ada", "tier": 2})
    before = all_rows(log.storage)
    thread.label({"tier": 2.0, "none": None})
    thread.append([], labels={"user": "ada"})
    assert all_rows(log.storage) == before
    assert thread.append([step("s0")], labels={"user": None, "done": False}) == 5
    assert [event for _, event in thread.events() if isinstance(event, ThreadLabelled)][1].labels == {
        "user": None,
        "done": False,
    }
    summary = thread.summary()
    assert summary is not None
    assert list(summary.labels.items()) == [("done", False), ("tier", 2)]
    thread.prune([place.sequence for place in thread.steps()])
    thread.copy_to("copy")
    log.seal()
    for labels in ({"done": 0}, {"tier": 2.0, "done": False, "user": None}, {"tier": 2}):
        assert ids(log.threads(labels=labels)) == ["copy", "t"]
    for labels in ({"done": None}, {"user": "ada"}, {"tier": "2"}, {"tier": 2, "done": True}):
        assert ids(log.threads(labels=labels)) == []


@pytest.mark.parametrize(
    "labels",
    [
        {"a": []},
        {"a": b"x"},
        {"a": float("nan")},
        {"a": 1 << 64},
        {"a": "x" * 256},
        {"\ud800": 1},
        {1: 1},
        {str(n): n for n in range(33)},
    ],
    ids=lambda labels: str(labels)[:20].encode("ascii", "replace").decode(),
)
def test_no_labels(memory_log: Log, labels: Any) -> None:
    """What cannot be a label is refused and changes nothing."""
    with pytest.raises(UsageError, match="label"):
        memory_log.thread("t").label(labels)
    assert list(memory_log.threads()) == []


# --- lists ---

PREFIXES = ("", "a", "ab", "ab/1", "b/", "c")
FILTERS: list[dict[str, Any]] = [
    {},
    {"status": "done"},
    {"status": ["failed", "running"]},
    {"status": []},
    {"labels": {"user": "u3"}},
    {"labels": {"half": True}},
    {"labels": {"half": True, "user": "u3"}},
    {"labels": {"half": None}},
    {"labels": {"user": "nobody"}},
    {"labels": {"half": 1.0}, "status": "interrupted"},
    {"updated_since": EPOCH_BEGINS + 30 * MINUTE},
    {"updated_before": EPOCH_BEGINS + 30 * MINUTE},
    {"updated_since": EPOCH_BEGINS + 20 * MINUTE, "updated_before": EPOCH_BEGINS + 21 * MINUTE},
    {"updated_since": EPOCH_BEGINS + 70 * MINUTE, "status": "done"},
]


def fill(storage: Storage, seed: int, threads: int, appends: int) -> None:
    """Threads that are appended to at random, at times that go forth and back."""
    chance = random.Random(seed)
    names = [f"{chance.choice(('a', 'ab/', 'b/', ''))}{number}" for number in range(threads)]
    operations: list[Append] = []
    for number in range(appends):
        name = chance.choice(names[: 1 + number * threads // appends])
        labels: dict[str, Label | None] = {"user": f"u{names.index(name) % 7}"}
        if chance.random() < 0.3:
            labels["half"] = chance.choice((True, None))
        at = EPOCH_BEGINS + number * 60 * MINUTE // appends + chance.randrange(-5, 5) * MINUTE
        event = says(chance.choice(("running", "done", "failed", "interrupted", None)), f"s{number}", created_at=at)
        operations.append(append(name, event)._replace(labels=labels, created_at=at))
    for start in range(0, appends, 50):
        storage.commit(operations[start : start + 50])


def matches(found: ThreadSummary, asked: dict[str, Any]) -> bool:
    """Whether a thread is one that is asked for, the simple way."""
    statuses = asked.get("status")
    return (
        (statuses is None or found.status in ([statuses] if isinstance(statuses, str) else statuses))
        and all(found.labels.get(name) == value for name, value in asked.get("labels", {}).items())
        and asked.get("updated_since", 0) <= found.updated_at < asked.get("updated_before", 1 << 62)
    )


@pytest.mark.parametrize(("threads", "appends"), [(40, 60), (150, 2600)])
def test_lists_show_what_is_asked_for(log: Log, threads: int, appends: int, monkeypatch: Any) -> None:
    """Every combination of filters, in both orders, in pages of any size, shows what a walk over all threads shows."""
    monkeypatch.setattr("stepwell.storage.catalogue._FEW_WITH_PREFIX", 8)  # so that prefixes are walked, too
    monkeypatch.setattr("stepwell.storage.catalogue._MOST_MISSES", 8)
    fill(log.storage, threads, threads, appends)
    every = [found for name in log.all_threads() if (found := log.thread(name).summary()) is not None]
    every.sort(key=lambda found: -found.cursor)
    assert list(log.threads()) == every
    for asked in FILTERS:
        for prefix in PREFIXES:
            expected = [found for found in every if matches(found, asked) and found.thread_id.startswith(prefix)]
            assert list(log.threads(prefix=prefix, **asked)) == expected
            assert list(log.threads(prefix=prefix, newest_first=False, **asked)) == expected[::-1]
            for newest_first, rest in ((True, expected), (False, expected[::-1])):
                cursor = None
                while page := list(
                    log.threads(prefix=prefix, newest_first=newest_first, limit=7, before=cursor, **asked)
                ):
                    assert page == rest[:7]
                    rest, cursor = rest[7:], page[-1].cursor
                assert rest == []


def test_pages_while_threads_are_appended_to(log: Log) -> None:
    """A list shows no thread twice, and leaves out none but those that were appended to before their turn."""
    names = [f"t{number}" for number in range(600)]
    for name in names:
        log.thread(name).begin_append([step("s0")])
    log.thread(names[-1]).append([step("s1")])
    for newest_first in (True, False):
        found = log.threads(newest_first=newest_first)
        shown = [next(found).thread_id for _ in range(300)]
        rest = [name for name in names if name not in shown]
        moved = [shown[0], shown[-1], rest[0], rest[-1]]
        for name in moved:
            log.thread(name).append([step("more")])
        log.thread("new").append([step("s0")])
        shown += ids(found)
        log.thread("new").delete()
        assert len(shown) == len({*shown})
        assert {*names} - {*shown} <= {*moved}
    assert log.audit().breaches == []


def test_arguments(memory_log: Log) -> None:
    """Arguments of other kinds are refused when the list is asked for, not when it is read."""
    for wrong in ({"prefix": 1}, {"prefix": "\ud800"}, {"updated_since": -1}, {"updated_before": 1.5}, {"before": -1}):
        with pytest.raises(UsageError):
            memory_log.threads(**wrong)  # type: ignore[arg-type]
    assert list(memory_log.threads(limit=0)) == list(memory_log.threads(limit=-1)) == []


# --- rows ---


def test_rows_of_a_thread(log: Log) -> None:
    """A thread stands under its status and each of its labels, until it is deleted."""
    storage = log.storage
    storage.commit([append("t", says("done", created_at=5 << fmt.SPAN_BITS))._replace(labels={"a": 1, "b": "x"})])
    facets = {
        fmt.status_facet(status_number(Status.DONE)),
        fmt.label_facet(b"a", b"\1"),
        fmt.label_facet(b"b", b"\xa1x"),
    }
    assert {fmt.read_recent(key) for key in rows_of(storage, RECENT)} == {(facet, 0, 5, 1) for facet in facets}
    assert list(rows_of(storage, IDS)) == [b"t" + fmt.number_key(1)]
    log.thread("t").delete()
    assert rows_of(storage, RECENT) == rows_of(storage, IDS) == {}
    assert storage.catalogue(Query(10)) == storage.catalogue(Query(10, prefix="t")) == []


class _Counted(_MemoryTables):
    """Tables that count the rows and keys that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.writes = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        self.reads += 1
        return super().get(table, key)

    def keys(self, table: str, start: bytes, stop: bytes) -> list[bytes]:
        found = super().keys(table, start, stop)
        self.reads += 1 + len(found) // 8  # they come in one call, and nothing is decoded
        return found

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        for row in super().scan(table, start, stop):
            self.reads += 1
            yield row

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        self.reads += 1
        return super().next_key(table, start, stop)

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        self.reads += 1
        return super().previous_key(table, start, stop)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.writes += table == RECENT
        super().put(table, key, value)


@contextmanager
def counted() -> Iterator[tuple[Log, _Counted]]:
    storage = MemoryStorage()
    storage._tables = tables = _Counted()
    with Log(storage) as log:
        yield log, tables


def test_a_page_does_not_look_at_all_threads() -> None:
    """The first page of any filter reads a few rows for each thread that it shows, and a few for each epoch."""
    threads = 6_000
    epochs = threads // fmt.COMMITS_IN_EPOCH + 1
    with counted() as (log, tables):
        operations: list[Append] = []
        for number in range(threads):
            old = number < threads // 2
            event = says("failed" if number == 99 else "done", created_at=EPOCH_BEGINS + number * MINUTE)
            labels: dict[str, Label | None] = {"old": old, "user": f"u{number % 600}", "rare": number == 50 or None}
            name = f"{'rare' if number == 77 else 'old' if old else 'new'}/{number}"
            operations.append(append(name, event)._replace(labels=labels))
        log.storage.commit(operations)
        half = EPOCH_BEGINS + threads // 2 * MINUTE
        for asked, expected in (
            ({}, 50),
            ({"status": "failed"}, 1),
            ({"status": "interrupted"}, 0),
            ({"labels": {"old": True}}, 50),
            ({"labels": {"old": False}}, 50),
            ({"labels": {"rare": True}}, 1),
            ({"labels": {"user": "u7"}}, threads // 600),
            ({"labels": {"user": "u7", "old": True}}, threads // 1200),
            ({"labels": {"old": True}, "status": "done"}, 50),
            ({"labels": {"old": False}, "status": "failed"}, 0),
            ({"prefix": "rare/"}, 1),
            ({"prefix": "new/"}, 50),
            ({"prefix": "none"}, 0),
            ({"updated_before": half}, 50),
            ({"updated_since": half, "newest_first": False}, 50),
            ({"updated_before": EPOCH_BEGINS}, 0),
        ):
            tables.reads = 0
            assert len(ids(log.threads(limit=50, **asked))) == expected  # type: ignore[arg-type]
            tried = 1100 if "prefix" in asked else 0  # ids with the prefix, to see whether they are few
            assert tables.reads < 300 + tried + 3 * expected + 16 * epochs, asked
        tables.reads = 0
        assert len(ids(log.threads(limit=50, prefix="old/"))) == 50  # none of the newest: all ids are looked at, once
        assert tables.reads < 2000 + threads // 4


def test_a_list_leaves_no_thread_out_that_the_feed_does_not_name() -> None:
    """Where the feed has lost an append, a list that is ordered by it is an error, and not shorter."""
    with Log.open(":memory:") as log:
        for number in range(200):
            log.thread(f"t{number}").append([step("s")])
        set_row(log.storage, FEED, fmt.number_key(1), None)
        with pytest.raises(CorruptionError, match="feed"):
            list(log.threads())


def test_most_appends_move_nothing() -> None:
    """Appends to a thread leave the order of threads as it is, until its epoch or its status is another."""
    with counted() as (log, tables):
        labels: dict[str, Label | None] = {"user": "ada", "tier": 1}
        for _ in range(3 * fmt.COMMITS_IN_EPOCH):
            log.storage.commit([append("t", says("running", "s"), now=EPOCH_BEGINS)._replace(labels=labels)])
        assert tables.writes == 3 * 4
