"""Rewriting a thread: what is kept reads as before, what is not is gone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from building import FailingStorage, get_record, loose, noise, set_record, step, wrote
from stepwell import ConflictError, CorruptionError, Log, Snapshot, Thread, UsageError, pruning
from stepwell.events import StepCommitted, ThreadPruned, WritesRecorded
from stepwell.jsonlines import export_lines
from stepwell.patch import Merge, Splice
from stepwell.pruning import Kept
from stepwell.storage import ThreadRow


def built(thread: Thread, count: int = 12, lane: str = "") -> dict[str, int]:
    """A line of steps with a growing list and changing channels, writes at each; where each step stands."""
    places: dict[str, int] = {}
    for number in range(count):
        before = thread.state(lane=lane)
        listed = msgspec.msgpack.encode([f"message {n} " * 12 for n in range(number + 5)])
        channels = {"list": listed, f"c{number}": noise(100), "number": str(number).encode()}
        if before and number % 4:
            channels = {**{name: payload for name, (_, payload) in before.channels.items()}, **channels}
        event = step(
            f"s{number}",
            channels,
            parent=f"s{number - 1}" if number else None,
            base=before.sequence if before else 0,
            lane=lane,
            old=before.values if before else None,
            fields={"n": str(number).encode()},
            created_at=1000 + number,
        )
        places[f"s{number}"] = thread.append([event, wrote(f"s{number}", [noise(100)], lane=lane)]) - 1
    return places


def content(state: Snapshot | None) -> object:
    """All that a state shows but its sequence, which is new after a pruning."""
    assert state is not None
    return state._replace(sequence=0, values=dict.fromkeys(state.values))  # type: ignore[arg-type]


def kept(thread: Thread, names: list[str], lane: str = "") -> list[object]:
    """What some steps and their writes show."""
    return [(content(thread.state(name, lane=lane)), thread.writes(name, lane=lane)) for name in names]


def ids(thread: Thread, lane: str | None = None) -> list[str]:
    """The ids of the steps, newest first."""
    return [found.step_id for found in thread.steps(lane=lane)]


@pytest.mark.parametrize(
    "names",
    [
        ["s11"],
        ["s0"],
        ["s5", "s6", "s11"],
        ["s0", "s4", "s8"],
        [f"s{number}" for number in range(12)],
        [f"s{number}" for number in range(1, 12, 2)],
    ],
)
def test_kept_steps_read_as_before(log: Log, names: list[str]) -> None:
    """Kept steps show the same state, parent, time and writes; the others are gone with theirs."""
    thread = log.thread("t")
    places = built(thread)
    before = kept(thread, names)
    thread.prune([places[name] for name in names])
    assert ids(thread) == names[::-1]
    assert kept(thread, names) == before
    for name in places.keys() - set(names):
        assert thread.state(name) is None
        assert thread.writes(name) == []


def test_kept_nothing(log: Log) -> None:
    """A thread of which no step is kept is deleted, whatever should have been retained; its id can be used again."""
    thread = log.thread("t")
    for retain in ({}, {3: frozenset({"list"})}):
        built(thread)
        thread.prune([], retain=retain)
        assert thread.summary() is None
        assert list(log.threads()) == []
    thread.append([step("new", {"x": b"x"})])
    assert ids(thread) == ["new"]


def test_sequences_go_on(log: Log) -> None:
    """No sequence is used twice: the rewritten events stand after all that were."""
    thread = log.thread("t")
    places = built(thread)
    row = thread.row()
    assert row is not None
    thread.prune([places["s3"]])
    assert next(thread.events())[0] == row.last + 1
    opening = next(thread.events())[1]
    assert isinstance(opening, ThreadPruned)
    assert (opening.through, opening.chain, opening.thread_id) == (row.last, row.chain, "t")
    for sequence in places.values():
        assert thread.state(sequence) is None


def test_room_is_given_back(log: Log) -> None:
    """What was pruned takes no room; what is kept is not stored larger than it was."""
    thread = log.thread("t")
    places = built(thread, 40)
    before = thread.summary()
    thread.prune(list(places.values()))
    same = thread.summary()
    thread.prune([thread.state().sequence] if thread.state() else [])  # type: ignore[union-attr]
    after = thread.summary()
    assert before is not None
    assert same is not None
    assert after is not None
    assert same.stored_bytes < before.stored_bytes * 1.1
    assert after.stored_bytes < before.stored_bytes / 4


def test_patches_between_kept_steps_are_composed(log: Log) -> None:
    """A kept step is based on the kept step before it, and its list is still an edit of that one's."""
    thread = log.thread("t")
    places = built(thread)
    thread.prune([places["s5"], places["s7"]])
    events = {event.step_id: event for _, event in thread.events() if isinstance(event, StepCommitted)}
    assert events["s5"].base == 0
    assert events["s7"].base == next(each.sequence for each in thread.steps() if each.step_id == "s5")
    assert isinstance(events["s7"].channels.changes["list"], Splice)


def test_forks_are_kept(log: Log) -> None:
    """Steps on several branches keep their states, whether what they part from is kept or not."""
    thread = log.thread("t")
    places = built(thread, 6)
    root = thread.state("s2")
    assert root is not None
    for name in ("a", "b"):
        thread.append([step(name, {"x": name.encode()}, parent="s2", base=root.sequence, old=root.values)])
    names = ["s5", "a", "b"]
    before = kept(thread, names)
    thread.prune([found.sequence for found in thread.steps() if found.step_id in names])
    assert kept(thread, names) == before
    assert places["s2"] < min(found.sequence for found in thread.steps())


def test_lanes_are_kept_apart(log: Log) -> None:
    """Steps of several lanes are kept with their lanes; a lane of which nothing is kept is gone."""
    thread = log.thread("t")
    for lane in ("gone", "", "sub"):
        built(thread, 5, lane)
    before = [kept(thread, ["s4"], lane) for lane in ("", "sub")]
    thread.prune([found.sequence for found in thread.steps() if found.step_id == "s4" and found.lane != "gone"])
    assert [kept(thread, ["s4"], lane) for lane in ("", "sub")] == before
    assert thread.state(lane="gone") is None
    assert ids(thread, "gone") == []
    summary = thread.summary()
    assert summary is not None
    assert (summary.lanes, summary.steps) == (2, 2)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
@pytest.mark.parametrize("offset", range(9))
def test_both_commits_of_a_step(memory_log: Log, offset: int, order: list[int]) -> None:
    """Of a step that was committed again, both can be kept, and the newer one still counts."""
    thread = memory_log.thread("t")
    thread.append([step(f"p{number}") for number in range(offset + 1)])
    old = thread.append([step("x", {"x": b"old"})])
    new = thread.append([step("x", {"x": b"new"}), step("after", {"y": b"y"}, base=old)]) - 1
    after = thread.state("after")
    thread.prune([[old, new][each] for each in order] + [new + 1])
    state = thread.state("x")
    assert state is not None
    assert state.channels == {"x": ("text", b"new")}
    assert content(thread.state("after")) == content(after)
    assert ids(thread) == ["after", "x"]


def test_only_the_newer_commit_of_a_step(log: Log) -> None:
    """A step that was committed again keeps its place in lists when only its newest event is kept."""
    thread = log.thread("t")
    thread.append([step("a"), step("x", {"x": b"old"}), step("b")])
    new = thread.append([step("x", {"x": b"new"})])
    keep = {found.step_id: found.sequence for found in thread.steps()} | {"x": new}
    thread.prune(keep.values())
    assert ids(thread) == ["b", "x", "a"]
    state = thread.state("x")
    assert state is not None
    assert state.channels == {"x": ("text", b"new")}


def test_writes_that_came_first(log: Log) -> None:
    """Writes for a step that was not committed yet are kept: the step may still come."""
    thread = log.thread("t")
    places = built(thread, 3)
    thread.append([wrote("later", [b"early"])])
    thread.prune([places["s2"]])
    assert len(thread.writes("later")) == 1
    thread.append([step("later")])
    assert len(thread.writes("later")) == 1


# --- hidden ---


def test_retained_steps(log: Log) -> None:
    """A retained step is hidden and holds only the named channels and their writes; the kept ones are whole."""
    thread = log.thread("t")
    places = built(thread, 6)
    thread.append([wrote("s2", [b"of another task"], task="other")])
    whole = thread.state("s2")
    before = kept(thread, ["s5"])
    assert whole is not None
    retain = {places["s2"]: frozenset({"list", "x"}), places["s3"]: frozenset[str](), places["s5"]: frozenset[str]()}
    thread.prune([places["s5"]], retain=retain)
    assert ids(thread) == ["s5"]
    assert kept(thread, ["s5"]) == before
    assert thread.state("s2") is None
    hidden = {
        event.step_id: sequence
        for sequence, event in thread.events()
        if isinstance(event, StepCommitted) and event.hidden
    }
    assert hidden.keys() == {"s2", "s3"}
    state = thread.state(hidden["s2"])
    assert state is not None
    assert state.channels == {"list": whole.channels["list"]}
    assert (state.fields, state.parent_id, state.created_at) == ({}, "s1", 1002)
    assert len(thread.writes("s2")) == 2
    assert thread.writes("s3") == []


def test_retained_writes_of_other_channels(log: Log) -> None:
    """Of the writes at a retained step, those to other channels are gone."""
    thread = log.thread("t")
    places = built(thread, 2)
    thread.prune([places["s1"]], retain={places["s0"]: frozenset({"list"})})
    assert thread.writes("s0") == []
    assert len(thread.writes("s1")) == 1
    assert not any(isinstance(event, WritesRecorded) and not event.writes for _, event in thread.events())


def test_pruned_again(log: Log) -> None:
    """A thread can be pruned again and again, hidden steps kept or not, with appends in between."""
    thread = log.thread("t")
    places = built(thread, 8)
    thread.prune([places[f"s{n}"] for n in (5, 6, 7)], retain={places["s4"]: frozenset({"list"})})
    before = kept(thread, ["s6", "s7"])
    hidden = next(q for q, e in thread.events() if isinstance(e, StepCommitted) and e.hidden)
    steps = {found.step_id: found.sequence for found in thread.steps()}
    thread.prune([steps["s6"], steps["s7"], hidden])
    assert kept(thread, ["s6", "s7"]) == before
    assert thread.state("s4") is None
    assert ids(thread) == ["s7", "s6"]
    built(thread, 3)
    thread.prune([found.sequence for found in thread.steps()])
    assert ids(thread) == ["s2", "s1", "s0", "s7", "s6"]
    assert kept(thread, ["s6", "s7"]) == before


# --- what is refused ---


@pytest.mark.parametrize("sequence", [-1, 0, 1, 2, 4, 999, 2**64])
def test_what_cannot_be_kept(memory_log: Log, sequence: int) -> None:
    """Only steps of the thread can be kept, shown or hidden; anything else is the caller's mistake."""
    thread = memory_log.thread("t")
    thread.append([step("s0"), wrote("s0")])
    for keep, retain in (([3, sequence], None), ([3], {sequence: frozenset[str]()})):
        with pytest.raises(UsageError):
            thread.prune(keep, retain=retain)
    assert ids(thread) == ["s0"]


def test_append_after_the_plan() -> None:
    """What was planned for a thread that got another event since, or was deleted, is refused; nothing is lost."""
    storage = FailingStorage()
    with Log(storage) as log:
        thread = log.thread("t")
        head = thread.append([step("s0"), step("s1")])
        row = thread.row()
        assert row is not None
        operation = pruning.plan(storage, "t", row, Kept(frozenset([head])))
        thread.append([step("s2")])
        with pytest.raises(ConflictError):
            log.submit(operation).result()
        assert ids(thread) == ["s2", "s1", "s0"]
        thread.delete()
        thread.append([step("s0"), step("s1")])
        with pytest.raises(ConflictError):
            log.submit(operation).result()
        assert log.audit().breaches == []


@pytest.mark.parametrize("overtaken", range(4))
def test_append_while_it_is_chosen(log: Log, overtaken: int) -> None:
    """While others append, the choice is made again, on the thread as it is then, until it holds."""
    thread, seen = log.thread("t"), list[int]()
    thread.append([step("s0"), step("s1")])

    def newest(row: ThreadRow) -> Kept:
        seen.append(row.last)
        if len(seen) <= overtaken:
            thread.append([step(f"other {len(seen)}")])
        return Kept(frozenset([seen[-1]]))

    thread.rewrite(newest)
    assert seen == list(range(4, 5 + overtaken))
    assert ids(thread) == [f"other {overtaken}" if overtaken else "s1"]


def test_rewrite_to_nothing(log: Log) -> None:
    """A choice of no steps deletes the thread; no choice at all leaves it as it is."""
    thread = log.thread("t")
    thread.append([step("s0")])
    thread.rewrite(lambda row: None)
    assert ids(thread) == ["s0"]
    thread.rewrite(lambda row: Kept(frozenset()))
    assert thread.summary() is None
    thread.rewrite(lambda row: pytest.fail("there is nothing to choose from"))


def test_append_while_the_thread_is_to_be_deleted(log: Log) -> None:
    """A thread that got a step after it was to be deleted is chosen from again, and not deleted blindly."""
    thread, calls = log.thread("t"), list[int]()
    thread.append([step("s0")])

    def unless_new(row: ThreadRow) -> Kept | None:
        calls.append(row.last)
        if len(calls) == 1:
            thread.append([step("new")])
        return Kept(frozenset()) if row.last == 3 else None

    thread.rewrite(unless_new)
    assert calls == [3, 4]
    assert ids(thread) == ["new", "s0"]


def test_thread_that_does_not_exist(log: Log) -> None:
    """Pruning nothing makes nothing."""
    log.thread("none").prune([])
    assert list(log.threads()) == []


def test_damage(damaged_log: Log) -> None:
    """A pruning that would need a damaged event changes nothing."""
    thread = damaged_log.thread("t")
    places = built(thread, 4)
    record = get_record(damaged_log.storage, 1, places["s1"])
    set_record(damaged_log.storage, 1, places["s1"], record[:-1] + bytes((record[-1] ^ 1,)))
    before = loose(damaged_log.storage, 1)
    with pytest.raises(CorruptionError) as caught:
        thread.prune([places["s3"]])
    assert caught.value.sequence == places["s1"]
    assert loose(damaged_log.storage, 1) == before


def test_empty_patches(log: Log) -> None:
    """Steps that changed nothing, or dropped everything, are kept as such."""
    thread = log.thread("t")
    thread.append([step("s0", {"x": b"x"})])
    thread.append([StepCommitted("s1", None, Merge(), Merge(), base=thread.steps().__next__().sequence)])
    thread.append([StepCommitted("s2", None, Merge(("x",)), Merge(), base=thread.steps().__next__().sequence)])
    states = [thread.state(name) for name in ("s1", "s2")]
    thread.prune([found.sequence for found in thread.steps() if found.step_id != "s0"])
    assert [content(thread.state(name)) for name in ("s1", "s2")] == list(map(content, states))


READS: dict[str, Callable[[Thread], object]] = {
    "events": lambda thread: list(thread.events()),
    "events, newest first": lambda thread: list(thread.events(reverse=True)),
    "steps": lambda thread: list(thread.steps()),
    "steps of a lane": lambda thread: list(thread.steps(lane="kept")),
    "forks": lambda thread: list(thread.forks(lane="kept")),
    "state by sequence": lambda thread: thread.state(5),
    "state by id": lambda thread: thread.state("s", lane="kept"),
    "state": lambda thread: thread.state(lane="kept"),
    "writes": lambda thread: thread.writes("s", lane="kept"),
    "view": lambda thread: dict(thread.view("s", lane="kept")),
    "pending": lambda thread: [task.values for task in thread.pending("s", lane="kept")],
    "tree": lambda thread: str(thread.tree(lane="kept")),
    "replay": lambda thread: [each.step for each in thread.replay("kept")],
    "lines": lambda thread: list(export_lines(thread)),
}


def pruned_before(question: int, thread: Thread, read: Callable[[Thread], object]) -> tuple[object, int]:
    """What is read if the thread is pruned before one of the questions to the storage, and how many these are."""
    storage, asked = thread.log.storage, 0

    def spied(method: Callable[..., object]) -> Callable[..., object]:
        def call(*of: Any, **named: Any) -> object:
            nonlocal asked
            asked += 1
            if asked == question:
                patched.undo()
                thread.prune([5])  # the lane "kept" gets the number that "gone" had
            return method(*of, **named)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in ("thread", "lane", "lanes", "lane_names", "find", "read", "scan", "steps", "branches", "ancestry"):
            patched.setattr(storage, name, spied(getattr(storage, name)))
        try:
            return read(thread), asked
        except ConflictError:
            return None, asked


@pytest.mark.parametrize("read", READS)
def test_a_pruning_between_two_questions_of_a_read(memory_log: Log, read: str) -> None:
    """What is read while a pruning numbers the lanes anew is as before it or as after it, or a ConflictError."""
    ask = READS[read]
    for question in range(1, 50):
        thread = memory_log.thread(f"{read} {question}")
        thread.append([step("s", {"x": b"other"}, lane="gone"), step("s", {"x": b"right"}, lane="kept")])
        thread.append([wrote("s", [b"other"], lane="gone"), wrote("s", [b"right"], lane="kept")])
        before = ask(thread)
        found, asked = pruned_before(question, thread, ask)
        if asked < question:
            assert question > 2
            return
        after = ask(thread)
        if isinstance(found, list) and isinstance(before, list) and isinstance(after, list):
            assert all(each in before or each in after for each in found)
        else:
            assert found in (None, before, after)
    pytest.fail("there is no end of questions")


def test_a_pruning_while_another_one_is_planned(memory_log: Log) -> None:
    """What it is planned of is not there any more: a ConflictError, after which it is planned anew."""
    for question in range(1, 50):
        thread = memory_log.thread(f"{question}")
        thread.append([step("s", lane="gone"), step("s", lane="kept")])
        row = thread.row()
        assert row is not None
        plan = partial(pruning.plan, memory_log.storage, thread.id, row, Kept(frozenset([5])))
        _, asked = pruned_before(question, thread, lambda thread: plan())  # noqa: B023 - called in this turn
        if asked < question:
            assert question > 2
            return
    pytest.fail("there is no end of questions")
