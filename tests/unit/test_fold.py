"""The fold of steps into states, and of recorded writes into those that count."""

from __future__ import annotations

import pytest

from building import step, wrote
from stepwell.events import Sequence, StepCommitted
from stepwell.fold import EMPTY, PendingWrite, fold, fold_writes
from stepwell.patch import Blob, Keep, Merge, PatchError, Splice


def test_fold_from_nothing() -> None:
    """The first state holds what the first step set, and says which step that was."""
    event = step("s1", {"x": b"1"}, parent="s0", fields={"f": b"2"}, created_at=7)
    state = fold(EMPTY, event, Sequence(3))
    assert (state.sequence, state.step_id, state.parent_id, state.created_at) == (3, "s1", "s0", 7)
    assert state.channels == {"x": Blob("text", b"1")}
    assert state.fields == {"f": Blob("text", b"2")}


def test_fold_patches() -> None:
    """A step changes the channels that its patch names, drops those that it drops and keeps the others."""
    before = fold(EMPTY, step("s1", {"x": b"1", "y": b"1", "z": b"1"}), Sequence(1))
    after = fold(before, step("s2", {"x": b"2", "z": b"1", "new": b"1"}, old=before.channels), Sequence(2))
    assert {name: value.content for name, value in after.channels.items()} == {
        "x": b"2",
        "z": b"1",
        "new": b"1",
    }


def test_fold_leaves_the_old_state() -> None:
    """The state before is as it was, and shares what did not change with the state after."""
    before = fold(EMPTY, step("s1", {"x": b"1", "y": b"1"}), Sequence(1))
    after = fold(before, step("s2", {"x": b"2", "y": b"1"}, old=before.channels), Sequence(2))
    assert before.channels["x"] == Blob("text", b"1")
    assert after.channels["y"] is before.channels["y"]
    assert EMPTY.channels == {}


def test_fold_misfit() -> None:
    """A step that was made for another state is refused."""
    event = StepCommitted("s", None, Merge((), {"x": Splice((Keep(0, 1),))}), Merge())
    with pytest.raises(PatchError):
        fold(EMPTY, event, Sequence(1))


def contents(pending: list[PendingWrite]) -> list[object]:
    """What the writes hold."""
    return [each.write.value.content for each in pending if isinstance(each.write.value, Blob)]


def test_ordinary_writes_keep_the_first() -> None:
    """Of two writes with the same task and index, the first counts."""
    assert contents(fold_writes([wrote("s", [b"1", b"2"]), wrote("s", [b"3", b"4", b"5"])])) == [b"1", b"2", b"5"]


def test_special_writes_keep_the_last() -> None:
    """Of two writes with the same task and negative index, the last counts."""
    events = [wrote("s", [b"1"], first_index=-2), wrote("s", [b"2"], first_index=-2)]
    assert contents(fold_writes(events)) == [b"2"]


def test_writes_of_other_tasks() -> None:
    """The same index of another task is another write."""
    assert len(fold_writes([wrote("s", task="a"), wrote("s", task="b")])) == 2


def test_order_of_writes() -> None:
    """Writes are ordered by the path of their task, then its name, then their index."""
    events = [
        wrote("s", [b"6"], task="A", path="2"),
        wrote("s", [b"4", b"5"], task="b", path="1"),
        wrote("s", [b"2", b"3"], task="a", path="1"),
        wrote("s", [b"1"], task="a", path="1", first_index=-1),
        wrote("s", [b"0"], task="z", path=""),
    ]
    assert contents(fold_writes(events)) == [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]
    assert fold_writes([]) == []
