"""`fold(state, event) -> state`: what a lane holds after a step.

Pure, and cheap in what it copies: a state shares everything that an event did not change with the state
before it.
"""

from __future__ import annotations

import msgspec

from stepwell.events import NOWHERE, Sequence, StepCommitted, Write, WritesRecorded
from stepwell.patch import Value, merge_entries


class State(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one lane of a thread holds after one of its steps.

    Attributes:
        sequence: The step's position in its thread; 0 is the empty state that every lane starts from.
        step_id: Name of the step.
        parent_id: Name of the step that it follows.
        channels: The value of each channel that has one.
        fields: What the adapter keeps about the step beside its channels.
        created_at: Unix time in nanoseconds at which the step was committed.
    """

    sequence: Sequence = NOWHERE
    step_id: str = ""
    parent_id: str | None = None
    channels: dict[str, Value] = {}
    fields: dict[str, Value] = {}
    created_at: int = 0


EMPTY = State()


def fold(state: State, event: StepCommitted, sequence: Sequence) -> State:
    """The state after `event`.

    Args:
        state: The state after the event's base.
        event: A step.
        sequence: Where the event stands in its thread.

    Raises:
        PatchError: The event was not made for this state.
    """
    return State(
        sequence,
        event.step_id,
        event.parent_id,
        merge_entries(event.channels, state.channels),
        merge_entries(event.fields, state.fields),
        event.created_at,
    )


class PendingWrite(msgspec.Struct, frozen=True, gc=False):
    """A write that waits for the next step, with what it is sorted by."""

    task_path: str
    task_id: str
    write: Write


def fold_writes(recorded: list[WritesRecorded]) -> list[PendingWrite]:
    """The writes that count, in the order in which a step takes them over.

    Args:
        recorded: All events of one step id, in commit order.
    """
    kept: dict[tuple[str, int], PendingWrite] = {}
    for event in recorded:
        for write in event.writes:
            place = (event.task_id, write.index)
            if write.index < 0 or place not in kept:
                kept[place] = PendingWrite(event.task_path, event.task_id, write)
    return sorted(kept.values(), key=lambda pending: (pending.task_path, pending.task_id, pending.write.index))
