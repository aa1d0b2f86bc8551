"""Log and Thread: what callers see."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from building import append, noise, step, wrote
from stepwell import (
    ClosedError,
    ConflictError,
    ItemPut,
    Items,
    Log,
    Sequence,
    Snapshot,
    Step,
    StepCommitted,
    Thread,
    UsageError,
    Write,
    WritesRecorded,
    changes,
    parse,
)
from stepwell import format as fmt
from stepwell.events import LaneOpened, ThreadCopied, ThreadDeleted, ThreadOpened, ThreadPruned
from stepwell.patch import Blob, Merge


def loaded(thread: Thread, at: int | str | None = None, lane: str = "") -> Snapshot:
    """A state that exists."""
    state = thread.state(at, lane=lane)
    assert state is not None
    return state


def taken(thread: Thread, step_id: str, *, lane: str = "", parent: str | None = None, **channels: bytes) -> int:
    """Append a step after which the lane's head holds these channels too."""
    before = thread.state(lane=lane)
    held = {name: payload for name, (_, payload) in before.channels.items()} if before else {}
    event = step(
        step_id,
        {**held, **channels},
        parent=parent,
        base=before.sequence if before else 0,
        lane=lane,
        old=before.values if before else None,
    )
    return thread.append([event])


def ids(thread: Thread, lane: str | None = None) -> list[str]:
    """The ids of the steps, newest first."""
    return [found.step_id for found in thread.steps(lane=lane)]


# --- append ---


def test_append(log: Log) -> None:
    """An append returns the sequence of its last event, and gives the events in the order they were appended."""
    thread = log.thread("t")
    assert thread.append([step("s0"), wrote("s0")]) == 4
    assert thread.append([]) == 0
    assert thread.append([step("s1", lane="sub")]) == 6
    kinds = [type(event) for _, event in thread.events()]
    assert kinds == [ThreadOpened, LaneOpened, StepCommitted, WritesRecorded, LaneOpened, StepCommitted]


def test_events_come_back(log: Log) -> None:
    """Every field of an event that was appended is in the event that is read, content as bytes."""
    first = step("s0", {"x": b"1", "y": noise()}, parent="p", fields={"f": b"f"}, lane="sub", created_at=5)
    writes = (Write(0, "x", parse("text", b"1")), Write(-3, "y", Blob("null", b"")))
    second = WritesRecorded("s0", "task", "~path", writes, "sub", 6)
    hidden = step("s1", base=3, lane="sub", hidden=True, created_at=7)
    log.thread("t").append([first, second])
    log.thread("t").append([hidden])
    assert [event for _, event in log.thread("t").events()][2:] == [first, second, hidden]


def test_times(log: Log) -> None:
    """An event without a time of its own gets the time of its append."""
    before = time.time_ns()
    log.thread("t").append([step("s0"), step("s1", created_at=5)])
    after = time.time_ns()
    assert before <= loaded(log.thread("t"), "s0").created_at <= after
    assert loaded(log.thread("t"), "s1").created_at == 5


@pytest.mark.parametrize("far", [-(10**18), -1, 0, 1 << 62, 1 << 63, 1 << 70])
def test_clocks_that_are_wrong(log: Log, far: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says, steps stand in the order of their commits, and times are the nearest that can be."""
    clock = iter([10**18, 5, far, 10**18, far, far, 7])
    thread = log.thread("t")
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    for number in range(4):
        thread.append([step(f"s{number}")])
    kept = min(max(far, 1), (1 << 62) - 1)
    assert [(each.step_id, each.created_at) for each in thread.steps()] == [
        ("s3", 10**18),
        ("s2", kept),
        ("s1", 5),
        ("s0", 10**18),
    ]
    assert loaded(thread).step_id == "s3"
    thread.copy_to("copy")
    thread.prune([loaded(thread).sequence])
    assert [(each.step_id, each.created_at) for each in thread.steps()] == [("s3", 10**18)]
    thread.delete()
    assert [found.thread_id for found in log.threads()] == ["copy"]
    assert [found.thread_id for found in log.feed()] == ["copy", None]


def test_expected_head(log: Log) -> None:
    """An append that saw another head than there is is refused and says both; nothing was changed."""
    thread = log.thread("t")
    thread.append([step("s0")], expected_head=0)
    with pytest.raises(ConflictError) as caught:
        thread.append([step("s1")], expected_head=0)
    assert (caught.value.thread, caught.value.expected, caught.value.actual) == ("t", 0, 3)
    with pytest.raises(ConflictError):
        thread.append([], expected_head=2)
    assert thread.append([step("s1")], expected_head=3) == 4
    assert ids(thread) == ["s1", "s0"]


def test_base_that_is_not_there(log: Log) -> None:
    """A step based on what is no step of its lane is refused."""
    thread = log.thread("t")
    thread.append([step("s0"), wrote("s0"), step("s1", lane="sub")])
    for base in (1, 2, 4, 6, 99):
        with pytest.raises(ConflictError, match="read the thread again"):
            thread.append([step("s2", base=base)])
    assert ids(thread) == ["s1", "s0"]


WRONG: dict[str, Any] = {
    "base below 0": step("s", base=-1),
    "base too large": step("s", base=2**64),
    "time below 0": step("s", created_at=-1),
    "time too large": step("s", created_at=2**64),
    "lane": step("s", lane="\ud800"),
    "step id": step("\udfff"),
    "parent id": step("s", parent="\ud800"),
    "step id of writes": wrote("\ud800"),
    "task id": wrote("s", task="\ud800"),
    "task path": wrote("s", path="\ud800"),
    "lane of writes": wrote("s", lane="\ud800"),
    "channel": StepCommitted("s", None, Merge((), {"\ud800": Blob("t", b"")}), Merge()),
    "field": StepCommitted("s", None, Merge(), Merge((), {"\ud800": Blob("t", b"")})),
    "type": StepCommitted("s", None, Merge((), {"x": Blob("\ud800", b"")}), Merge()),
    "channel of a write": WritesRecorded("s", "t", "", (Write(0, "\ud800", Blob("t", b"")),)),
    "index too large": WritesRecorded("s", "t", "", (Write(2**64, "x", Blob("t", b"")),)),
    "index too small": WritesRecorded("s", "t", "", (Write(-(2**63) - 1, "x", Blob("t", b"")),)),
    "id that is no text": StepCommitted(7, None, Merge(), Merge()),  # type: ignore[arg-type]
    "opening": ThreadOpened("t"),
    "opening of a lane": LaneOpened("t"),
    "copying": ThreadCopied("t", Sequence(1)),
    "pruning": ThreadPruned("t", Sequence(1), b"", 1),
    "deletion": ThreadDeleted(Sequence(1), b""),
    "text": "event",
    "nothing": None,
}


@pytest.mark.parametrize("what", WRONG)
def test_events_that_cannot_be_stored(memory_log: Log, what: str) -> None:
    """An event that cannot be stored, or is not for callers to append, is refused as the caller's mistake."""
    memory_log.thread("t").append([step("s0")])
    with pytest.raises(UsageError):
        memory_log.thread("t").append([step("s1"), WRONG[what]])
    assert ids(memory_log.thread("t")) == ["s0"]


@pytest.mark.parametrize("thread_id", [7, None, b"t", {"thread": "t"}, "\ud800"])
def test_thread_ids(memory_log: Log, thread_id: Any) -> None:
    """A thread id that is no text that can be stored is refused."""
    with pytest.raises(UsageError):
        memory_log.thread(thread_id)


def test_hostile_ids(log: Log) -> None:
    """Threads, lanes and steps with any text as id are kept apart."""
    names = ["", "1", "12", "1\0", "\0", "x" * 3000, "\U0001f389", "a|b", "\xff", "é", "e\u0301"]
    for name in names:
        taken(log.thread(name), name, lane=name, x=name.encode())
    assert list(log.all_threads()) == names
    for name in names:
        assert [found.thread_id for found in log.threads(prefix=name)] == [
            each for each in names[::-1] if each.startswith(name)
        ]
    for name in names:
        thread = log.thread(name)
        assert loaded(thread, name, lane=name).channels["x"] == ("text", name.encode())
        assert [each for each in names if thread.state(each, lane=each)] == [name]
    for name in names:
        for other in names:
            log.thread("lanes").append([step(other, {"x": (name + other).encode()}, lane=name)])
    for name in names:
        for other in names:
            assert loaded(log.thread("lanes"), other, lane=name).channels["x"][1] == (name + other).encode()


# --- state ---


def test_state(log: Log) -> None:
    """A state is found by its sequence, by its id and as the head, and says where it stands."""
    thread = log.thread("t")
    first, second = taken(thread, "s0", x=b"0"), taken(thread, "s1", parent="s0", x=b"1", y=b"y")
    found = loaded(thread)
    assert found == loaded(thread, "s1") == loaded(thread, second)
    assert (found.sequence, found.step_id, found.parent_id, found.lane) == (second, "s1", "s0", "")
    assert found.channels == {"x": ("text", b"1"), "y": ("text", b"y")}
    assert loaded(thread, first).channels == loaded(thread, "s0").channels == {"x": ("text", b"0")}


def test_state_that_is_not_there(log: Log) -> None:
    """There is no state of what is no step, or not of this lane, or of a thread that does not exist."""
    thread = log.thread("t")
    assert [thread.state(), thread.state(1), thread.state("s0")] == [None] * 3
    thread.append([step("s0"), wrote("w0")])
    for at in (0, 1, 2, 4, 5, 10**15, "s1", "w0", ""):
        assert thread.state(at) is None
    assert thread.state(lane="sub") is None
    assert thread.state("s0", lane="sub") is None
    assert log.thread("other").state("s0") is None


@pytest.mark.parametrize("at", [-1, 2**63, 2**64])
def test_state_at_what_is_no_sequence(memory_log: Log, at: int) -> None:
    """A number that no event can have as its sequence is refused, or there is no such step."""
    memory_log.thread("t").append([step("s0")])
    with suppress(UsageError):
        assert memory_log.thread("t").state(at) is None


def test_state_of_an_id_that_cannot_be(memory_log: Log) -> None:
    """An id that no step can have is refused, or there is no such step."""
    memory_log.thread("t").append([step("s0")])
    for ask in (
        lambda: memory_log.thread("t").state("\ud800"),
        lambda: memory_log.thread("t").state("s0", lane="\ud800"),
        lambda: memory_log.thread("t").writes("\ud800") or None,
    ):
        with suppress(UsageError):
            assert ask() is None


def test_head_is_the_newest_commit(log: Log) -> None:
    """The head of a lane is the step that was committed last, whatever its id, and each lane has its own."""
    thread = log.thread("t")
    for name in ("9", "5", "1"):
        taken(thread, name)
    taken(thread, "a", lane="sub", x=b"sub")
    assert loaded(thread).step_id == "1"
    assert loaded(thread, lane="sub").channels == {"x": ("text", b"sub")}
    assert loaded(thread, loaded(thread, lane="sub").sequence).lane == "sub"


def test_forks(log: Log) -> None:
    """Steps can follow any earlier step, each with the state of its own branch."""
    thread = log.thread("t")
    taken(thread, "s0", x=b"0")
    root = loaded(thread)
    for name in ("a", "b", "c"):
        thread.append([step(name, {"x": name.encode()}, parent="s0", base=root.sequence, old=root.values)])
        thread.append(
            [step(name + "1", {"x": b"0", "y": name.encode()}, parent=name, base=root.sequence, old=root.values)]
        )
    assert [loaded(thread, name + "1").channels["y"][1] for name in "abc"] == [b"a", b"b", b"c"]
    assert [(parent, [each.step_id for each in steps]) for parent, steps in thread.forks()] == [("s0", ["a", "b", "c"])]
    assert list(thread.forks(lane="sub")) == []


def test_committing_a_step_again(log: Log) -> None:
    """A step id that is committed again shows the new state in its old place; descendants keep what they had."""
    thread = log.thread("t")
    taken(thread, "s0", x=b"0")
    first = taken(thread, "s1", x=b"1")
    taken(thread, "s2", y=b"2")
    again = thread.append([step("s1", {"x": b"again"}, parent="s0")])
    assert ids(thread) == ["s2", "s1", "s0"]
    assert [each.sequence for each in thread.steps()][1] == first
    assert loaded(thread, "s1").channels == loaded(thread, again).channels == {"x": ("text", b"again")}
    assert loaded(thread, first).channels == {"x": ("text", b"1")}
    assert loaded(thread).channels == {"x": ("text", b"1"), "y": ("text", b"2")}
    head = thread.append([step("s2", {"x": b"head"})])
    assert loaded(thread).sequence == head


def test_hidden_steps(log: Log) -> None:
    """A hidden step is in no list and has no id, but what is based on it holds what it holds."""
    thread = log.thread("t")
    hidden = thread.append([step("h", {"x": b"hidden"}, hidden=True)])
    assert thread.state() is None
    assert thread.state("h") is None
    before = loaded(thread, hidden)
    thread.append([step("s0", {"x": b"hidden", "y": b"y"}, base=hidden, old=before.values)])
    assert ids(thread) == ["s0"]
    assert loaded(thread).channels == {"x": ("text", b"hidden"), "y": ("text", b"y")}


def test_snapshots_are_the_callers(log: Log) -> None:
    """Changing a state that was handed out changes no other."""
    thread = log.thread("t")
    taken(thread, "s0", x=b"0")
    first = loaded(thread)
    first.channels["x"] = ("text", b"changed")
    first.channels["y"] = ("text", b"new")
    first.values.clear()
    first.fields["f"] = ("text", b"new")
    again = loaded(thread)
    assert again.channels == {"x": ("text", b"0")}
    assert again.fields == {}
    assert list(again.values) == ["x"]
    taken(thread, "s1", z=b"z")
    assert loaded(thread).channels == {"x": ("text", b"0"), "z": ("text", b"z")}


def test_content_of_any_size(log: Log) -> None:
    """Values from nothing to megabytes come back as they were, beside each other."""
    thread = log.thread("t")
    contents = {str(size): noise(size) for size in (0, 1, 31, 63, 64, 65, 255, 4096, 70_000, 2_000_000)}
    thread.append([step("s0", contents)])
    assert {name: payload for name, (_, payload) in loaded(thread).channels.items()} == contents


# --- lists ---


def test_steps(log: Log) -> None:
    """Steps come newest first, of one lane or of all, each with its parent, lane and time."""
    thread = log.thread("t")
    for number in range(600):
        lane = "sub" if number % 3 == 0 else ""
        ticket = thread.begin_append([step(f"s{number}", lane=lane, parent="p", created_at=number + 1)])
    ticket.result()
    found = list(thread.steps())
    assert [each.step_id for each in found] == [f"s{number}" for number in range(599, -1, -1)]
    assert found[0] == Step(Sequence(603), "s599", "p", "", 600)
    assert ids(thread, "sub") == [f"s{number}" for number in range(597, -1, -3)]
    assert ids(thread, "none") == []
    assert list(log.thread("none").steps()) == []


def test_events_from_both_ends(log: Log) -> None:
    """Events come in order, or newest first, after any sequence."""
    thread = log.thread("t")
    thread.append([step(f"s{number}") for number in range(600)])
    assert [sequence for sequence, _ in thread.events()] == list(range(1, 603))
    assert [sequence for sequence, _ in thread.events(after=598)] == [599, 600, 601, 602]
    assert [sequence for sequence, _ in thread.events(after=300, reverse=True)] == list(range(602, 300, -1))
    assert list(thread.events(after=602)) == list(log.thread("none").events()) == []


def test_writes(log: Log) -> None:
    """Writes are found with their step, before it was committed and after, and in its lane only."""
    thread = log.thread("t")
    big = noise()
    thread.append([wrote("s0", [b"1", big], task="b", path="2")])
    thread.append([step("s0")])
    thread.append([wrote("s0", [b"0"], task="a", path="1"), wrote("s0", [b"other"], lane="sub")])
    found = thread.writes("s0")
    assert [(each.task_id, each.task_path, each.write.index) for each in found] == [
        ("a", "1", 0),
        ("b", "2", 0),
        ("b", "2", 1),
    ]
    assert [each.write.value for each in found] == [Blob("text", b"0"), Blob("text", b"1"), Blob("text", big)]
    assert [each.write.value for each in thread.writes("s0", lane="sub")] == [Blob("text", b"other")]
    assert thread.writes("s1") == thread.writes("s0", lane="none") == log.thread("none").writes("s0") == []


def test_threads(log: Log) -> None:
    """Threads are listed newest first, those with a prefix alone if asked; or as they were opened."""
    names = [f"{letter}{number}" for number in range(150) for letter in "ab"]
    for name in names:
        log.thread(name).begin_append([step("s0")])
    log.thread(names[0]).delete()  # after all that were submitted before
    assert list(log.all_threads()) == names[1:]
    assert [found.thread_id for found in log.threads()] == names[:0:-1]
    assert [found.thread_id for found in log.threads(prefix="a1")] == [n for n in names[::-1] if n.startswith("a1")]
    assert list(log.threads(prefix="c")) == []


def test_summary(log: Log) -> None:
    """The catalogue says how much a thread holds, and since when."""
    thread = log.thread("t")
    assert thread.summary() is None
    thread.append([step("s0", created_at=5), wrote("s0"), step("s1", lane="sub", hidden=True)])
    summary = thread.summary()
    assert summary is not None
    assert (summary.thread_id, summary.events, summary.steps, summary.writes, summary.lanes) == ("t", 6, 1, 1, 2)
    assert 0 < summary.stored_bytes < 2000
    assert summary.created_at <= summary.updated_at
    assert list(log.threads()) == [summary]


# --- feed ---


def test_feed(log: Log) -> None:
    """The feed has every append of every thread in commit order, after any of them."""
    for number in range(600):
        log.thread(f"t{number % 7}").begin_append([step(f"s{number}"), wrote(f"s{number}")])
    last = log.thread("t0").append([step("last")])
    found = list(log.feed())
    assert [entry.commit for entry in found] == list(range(1, 602))
    assert [entry.thread_id for entry in found] == [*(f"t{number % 7}" for number in range(600)), "t0"]
    assert (found[0].first, found[0].last, found[7].first, found[7].last) == (1, 4, 5, 6)
    assert (found[-1].first, found[-1].last) == (last, last)
    assert list(log.feed(after=598)) == found[598:]
    assert list(log.feed(after=601)) == []


def test_feed_after_changes(log: Log) -> None:
    """A deletion and a pruning stand in the feed in place of what they took away."""
    for name in ("a", "b"):
        for number in range(3):
            log.thread(name).append([step(f"s{number}")])
    log.thread("a").delete()
    log.thread("b").prune([loaded(log.thread("b")).sequence])
    found = [(entry.commit, entry.thread_id) for entry in log.feed()]
    assert found == [(7, None), (8, "b")]


def test_feed_of_threads_opened_meanwhile(log: Log) -> None:
    """A thread that is opened while the feed is read has its name there."""
    for number in range(300):
        log.thread("t").begin_append([step(f"s{number}")])
    log.thread("t").append([step("last")])
    feed = log.feed()
    next(feed)
    log.thread("new").append([step("s0")])
    assert list(feed)[-1].thread_id == "new"


# --- delete and copy ---


def test_delete(log: Log) -> None:
    """A deleted thread is gone from every list, and its id can be used again for another history."""
    thread = log.thread("t")
    taken(thread, "s0", x=b"old")
    thread.append([wrote("s0")])
    thread.delete()
    assert thread.summary() is None
    assert list(log.threads()) == list(thread.steps()) == list(thread.events()) == thread.writes("s0") == []
    thread.delete()
    assert thread.state("s0") is None
    taken(thread, "s1", x=b"new")
    assert ids(thread) == ["s1"]
    assert loaded(thread).channels == {"x": ("text", b"new")}


def test_append_based_on_a_deleted_thread(log: Log) -> None:
    """An append that belongs to a thread which was deleted meanwhile is refused, though the sequences would fit."""
    thread = log.thread("t")
    taken(thread, "s0", x=b"old")
    row = thread.row()
    assert row is not None
    thread.delete()
    taken(thread, "s0", x=b"new")
    with pytest.raises(ConflictError):
        thread.begin_append([step("s1", base=3)], incarnation=row.number).result()
    assert ids(thread) == ["s0"]


def test_copy(log: Log) -> None:
    """A copy shows what its source shows, and each goes on alone."""
    thread, copy = log.thread("t"), log.thread("u")
    for number in range(5):
        taken(thread, f"s{number}", **{f"c{number}": noise()})
    thread.append([wrote("s4", [noise()])])
    thread.copy_to("u")
    assert ids(copy) == ids(thread)
    for name in ids(thread):
        assert loaded(copy, name) == loaded(thread, name)
        assert copy.writes(name) == thread.writes(name)
    taken(copy, "more", x=b"copy")
    thread.delete()
    assert ids(copy) == ["more", "s4", "s3", "s2", "s1", "s0"]
    assert len(loaded(copy).channels) == 6


def test_copy_to_what_exists(log: Log) -> None:
    """A copy onto a thread that exists is refused; a copy of nothing makes nothing."""
    for name in ("t", "u"):
        log.thread(name).append([step("s0")])
    with pytest.raises(ConflictError, match="exists already"):
        log.thread("t").copy_to("u")
    with pytest.raises(ConflictError):
        log.thread("t").copy_to("t")
    log.thread("none").copy_to("new")
    with pytest.raises(UsageError):
        log.thread("t").copy_to("\ud800")
    assert list(log.all_threads()) == ["t", "u"]


# --- iterators and changes meanwhile ---

ITERATORS: dict[str, Callable[[Thread], Any]] = {
    "events": lambda thread: thread.events(),
    "backwards": lambda thread: thread.events(reverse=True),
    "steps": lambda thread: thread.steps(),
    "lane": lambda thread: thread.steps(lane="sub"),
}


@pytest.mark.parametrize("kind", ITERATORS)
def test_iterating_while_appending(log: Log, kind: str) -> None:
    """What is appended while an iterator is paused takes nothing away from what it yields, and repeats nothing."""
    thread = log.thread("t")
    thread.append([step(f"s{number}", lane="sub") for number in range(600)])
    expected = list(ITERATORS[kind](thread))
    iterator = ITERATORS[kind](thread)
    found = [next(iterator)]
    thread.append([step("new", lane="sub"), step("s5", lane="sub")])
    found += iterator
    assert found[: len(expected)] == expected
    assert len(found) == len(expected) + (2 if kind == "events" else 0)


@pytest.mark.parametrize("change", ["delete", "prune", "reopen"])
@pytest.mark.parametrize("kind", ITERATORS)
def test_iterating_while_the_thread_goes(log: Log, kind: str, change: str) -> None:
    """An iterator of a thread that is deleted or pruned meanwhile ends or says so; it never speaks of damage."""
    thread = log.thread("t")
    thread.append([step("first", lane="a")])
    thread.append([step(f"s{number}", {"x": noise()}, lane="sub") for number in range(600)])
    expected = list(ITERATORS[kind](thread))
    iterator = ITERATORS[kind](thread)
    found = [next(iterator)]
    if change == "prune":
        thread.prune([3])
    else:
        thread.delete()
        if change == "reopen":
            thread.append([step("another", lane="sub")])
    with suppress(ConflictError):
        for each in iterator:
            found.append(each)
    if kind in ("steps", "lane", "backwards"):
        assert found == expected[: len(found)]


# --- closing ---


def test_use_after_close(tmp_path: Path) -> None:
    """A closed log refuses everything, through handles that were made before, too."""
    with Log.open(tmp_path / "log") as other:
        thread, items = other.thread("t"), other.items
        thread.append([step("s0")])
    uses: dict[str, Callable[[], object]] = {
        "state": thread.state,
        "summary": thread.summary,
        "row": thread.row,
        "events": lambda: list(thread.events()),
        "steps": lambda: list(thread.steps()),
        "forks": lambda: list(thread.forks()),
        "writes": lambda: thread.writes("s0"),
        "threads": lambda: list(other.threads()),
        "all_threads": lambda: list(other.all_threads()),
        "label": lambda: thread.label({"user": "ada"}),
        "feed": lambda: list(other.feed()),
        "follow": lambda: next(other.follow()),
        "follow of a thread": lambda: next(thread.follow()),
        "audit": other.audit,
        "stats": other.stats,
        "measure": other.measure,
        "seal": other.seal,
        "compact": lambda: other.compact(tmp_path / "new"),
        "repair": lambda: other.repair(tmp_path / "new"),
        "seal of a thread": lambda: other.seal("t"),
        "submit": lambda: other.submit(append("t", step("s1"))),
        "append": lambda: thread.append([step("s1")]),
        "append of nothing": lambda: thread.append([]),
        "begin_append": lambda: thread.begin_append([step("s1")]),
        "delete": thread.delete,
        "copy_to": lambda: thread.copy_to("u"),
        "prune": lambda: thread.prune([]),
        "rewrite": lambda: thread.rewrite(lambda row: None),
        "resolve": thread.resolve,
        "lanes": lambda: list(thread.lanes()),
        "view": thread.view,
        "commit_of": thread.commit_of,
        "pending": thread.pending,
        "replay": lambda: list(thread.replay()),
        "diff": lambda: thread.diff(None),
        "first_divergence": lambda: thread.first_divergence(None),
        "watch": lambda: list(thread.watch("x")),
        "blame": lambda: thread.blame("x"),
        "grep": lambda: list(thread.grep("x")),
        "tree": thread.tree,
        "fork": thread.fork,
        "submit of items": lambda: items.submit([ItemPut(("a",), "k", parse("text", b"v"))]),
        "forget": lambda: items.forget(("a",)),
        "prune of items": lambda: items.prune(1),
        "get": lambda: items.get(("a",), "k"),
        "get_many": lambda: items.get_many([(("a",), "k")]),
        "attached": lambda: items.attached([1], "v"),
        "scan": lambda: list(items.scan()),
        "namespaces": lambda: list(items.namespaces()),
        "history": lambda: list(items.history(("a",), "k")),
        "expired": lambda: items.expired(1),
        "version": items.version,
        "changes": lambda: list(items.changes(0) or ()),
        "commit_at": lambda: items.commit_at(1),
    }
    for use in uses.values():
        with pytest.raises(ClosedError, match="closed"):
            use()
    public = {
        name for kind in (Log, Thread, Items) for name, member in vars(kind).items() if inspect.isfunction(member)
    }
    tried = {name.split()[0] for name in uses}
    assert {name for name in public if not name.startswith("_")} - tried == {"thread", "close", "observe"}
    other.close()
    other.close()


def test_close_commits_what_was_submitted(tmp_path: Path) -> None:
    """When a log has been closed, everything that was submitted before is in the file."""
    with Log.open(tmp_path / "log") as log:
        tickets = [log.thread(f"t{number % 3}").begin_append([step(f"s{number}")]) for number in range(500)]
    assert all(ticket.committed for ticket in tickets)
    with Log.open(tmp_path / "log") as log:
        assert sum(found.steps for found in log.threads()) == 500


def test_closing_from_several_threads(tmp_path: Path) -> None:
    """A log can be closed by several threads at once; nothing that was submitted is lost."""
    log = Log.open(tmp_path / "log")
    tickets = [log.thread("t").begin_append([step(f"s{number}", {"x": noise(20_000)})]) for number in range(500)]
    threads = [threading.Thread(target=log.close) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ticket.committed for ticket in tickets)


@pytest.mark.parametrize("hold", ["log", "thread", "ticket", "nothing"])
def test_end_of_the_program(tmp_path: Path, hold: str) -> None:
    """What was submitted is committed when the program ends without closing its log, whatever it still holds."""
    script = f"""
import sys
from building import step
from stepwell import Log
def main():
    log = Log.open(sys.argv[1])
    thread = log.thread("t")
    for number in range(300):
        ticket = thread.begin_append([step(f"s{{number}}")])
    return {{"log": log, "thread": thread, "ticket": ticket}}.get({hold!r})
held = main()
"""
    folders = [str(Path(fmt.__file__).parents[1]), str(Path(__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {folders!r}\n{script}"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")
    with Log.open(tmp_path / "log") as log:
        assert len(ids(log.thread("t"))) == 300
        assert log.audit().breaches == []


def test_memory_logs_are_apart() -> None:
    """Each log in memory is one of its own."""
    with Log.open(":memory:") as one, Log.open(":memory:") as other:
        one.thread("t").append([step("s0")])
        assert list(other.threads()) == []


# --- changes ---


def test_changes() -> None:
    """The patch for a step is empty if nothing changed, and names what did."""
    first = changes({"x": ("text", b"1"), "y": ("text", b"1")})
    assert list(first.changes) == ["x", "y"]
    old = {"x": parse("text", b"1"), "y": parse("text", b"1")}
    assert changes({"x": ("text", b"1"), "y": ("text", b"1")}, old) == Merge()
    assert changes({"x": ("text", b"2")}, old) == Merge(("y",), {"x": Blob("text", b"2")})
    assert changes({"x": ("other", b"1"), "y": ("text", b"1")}, old) == Merge((), {"x": Blob("other", b"1")})


async def test_appends_from_coroutines(log: Log) -> None:
    """Coroutines append by awaiting tickets, in the order in which each submits."""

    async def work(name: str) -> list[int]:
        return [(await log.thread(name).begin_append([step(f"s{n}")])).sequences[0] for n in range(20)]

    assert await asyncio.gather(*(work(f"t{n}") for n in range(10))) == [list(range(3, 23))] * 10


def test_operations_of_the_storage_are_seen(log: Log) -> None:
    """A log keeps nothing of its own about a thread: what reaches the storage by another way is shown."""
    taken(log.thread("t"), "s0", x=b"0")
    loaded(log.thread("t"))
    log.storage.commit([append("t", step("s1", {"x": b"1"}))])
    assert loaded(log.thread("t")).step_id == "s1"


def test_an_append_follows_another_that_is_under_way(log: Log) -> None:
    """It may name the head that the other will lead to; if that one is refused so is it, whatever led to that head."""
    thread = log.thread("t")
    first = thread.begin_append([step("s0")], expected_head=0)
    second = thread.begin_append([step("s1", base=3)], expected_head=3, after=first.places)
    assert second.result().sequences == (4,)
    thread.append([step("theirs", base=3)])
    refused = thread.begin_append([step("s2", base=4)], expected_head=4, after=second.places)
    following = thread.begin_append([step("s3", base=5)], expected_head=5, after=refused.places)
    for ticket in (refused, following):
        with pytest.raises(ConflictError):
            ticket.result()
    assert [found.step_id for found in thread.steps()] == ["theirs", "s1", "s0"]
