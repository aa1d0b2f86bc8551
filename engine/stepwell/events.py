"""The facts that a log is made of.

Each event is immutable.  `StepCommitted` and `WritesRecorded` are what agents produce; the others are rare
and say what happened to a thread as a whole.  Fields that storage must know without decoding (lane, time,
base) travel in the record's header and come back from there.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NewType, TypeAlias

import msgspec

from stepwell import format as fmt
from stepwell.patch import Merge, Value

Sequence = NewType("Sequence", int)
"""Position of an event in its thread, from 1, no gaps, in commit order.  0 stands for "before the first"."""

Commit = NewType("Commit", int)
"""Position of an append in the whole log, from 1, in commit order."""

NOWHERE: Final = Sequence(0)


class Status(StrEnum):
    """What became of a thread, as those who append to it say; equal to its name as a str."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DONE = "done"


_STATUSES: Final[tuple[Status | None, ...]] = (None, *Status)


def status_number(status: Status | None) -> int:
    """A status as it stands in headers and rows."""
    return _STATUSES.index(status)


def status_of(number: int) -> Status | None:
    """Inverse of `status_number`."""
    return _STATUSES[number]


Label: TypeAlias = str | int | float | bool
"""What a label may be."""


class Write(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One value that a task returned for one channel.

    Attributes:
        index: Position in the task's writes.  Of two with the same task and index, the first counts if the
            index is 0 or more, the last if it is negative.
        channel: Name of the channel.
        value: What was returned.
    """

    index: int
    channel: str
    value: Value


class StepCommitted(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_STEP):
    """A checkpoint: the state of one lane after one step, as a patch.

    Attributes:
        step_id: Name of the step, unique in its lane; committing it again replaces what it shows.
        parent_id: The step that it follows, which need not be in the log (yet).
        channels: What changed in the channels since `base`.
        fields: What changed in what the adapter keeps about the step beside its channels.
        lane: Namespace of the graph that took the step.
        base: The step whose state the patches apply to; 0 is the empty state.
        hidden: Kept only for what descends from it: no list shows it.
        created_at: Unix time in nanoseconds; 0 lets the log set it.
        status: What the thread has come to with this step; None says nothing about it.
    """

    step_id: str
    parent_id: str | None
    channels: Merge
    fields: Merge
    lane: str = ""
    base: Sequence = NOWHERE
    hidden: bool = False
    created_at: int = 0
    status: Status | None = None


class WritesRecorded(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_WRITES):
    """What one task returned, waiting for the step after `step_id` to take it over.

    Attributes:
        step_id: The step that the task ran on; it may be committed later than this.
        task_id: Name of the task.
        task_path: Where the task stands among its step's tasks, as sort key.
        writes: What it returned, in order.
        lane: Namespace of the graph that ran the task.
        created_at: Unix time in nanoseconds; 0 lets the log set it.
        status: What the thread has come to with these writes; None says nothing about it.
    """

    step_id: str
    task_id: str
    task_path: str
    writes: tuple[Write, ...]
    lane: str = ""
    created_at: int = 0
    status: Status | None = None


class ThreadOpened(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_THREAD_OPENED):
    """The first event of a thread: its name."""

    thread_id: str
    created_at: int = 0


class LaneOpened(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_LANE_OPENED):
    """The first event of a lane: its name."""

    lane: str
    created_at: int = 0


class ThreadCopied(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_THREAD_COPIED):
    """Everything before this event was copied from another thread."""

    source_thread_id: str
    through: Sequence
    created_at: int = 0


class ThreadPruned(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_THREAD_PRUNED):
    """The first event of a thread that was rewritten: all up to `through` is gone, what was kept follows.

    Attributes:
        thread_id: The thread's name.
        through: Sequence of the last event that was removed.
        chain: The hash chain after that event, from which this one goes on.
        pruned_at: Unix time in nanoseconds of the pruning; `created_at` stays the thread's first time.
        lost: If it was a repair that rewrote the thread: what could not be read of it, as first and last sequences.
        since: Of the thread of items, the commit from which on their past is known; 0 for all of it.
    """

    thread_id: str
    through: Sequence
    chain: bytes
    pruned_at: int
    created_at: int = 0
    lost: tuple[tuple[Sequence, Sequence], ...] = ()
    since: int = 0


class ThreadDeleted(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_THREAD_DELETED):
    """All that is left of a deleted thread.

    Attributes:
        through: Sequence of the last event that was removed.
        chain: The hash chain after that event.
    """

    through: Sequence
    chain: bytes
    created_at: int = 0


class ThreadLabelled(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_THREAD_LABELLED):
    """What changed in the labels of the thread.

    Attributes:
        labels: The labels that are new or have another value; None takes one away.
    """

    labels: dict[str, Label | None]
    created_at: int = 0


class ItemPut(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_ITEM_PUT):
    """An item of the store got a value, whether or not it had one before.

    Attributes:
        namespace: Where it is filed: any texts, from the outermost.
        key: Its key there.
        value: Its value.
        expires_at: Unix time in nanoseconds from which it may be removed; None for never.
        attachments: What an adapter keeps beside this value (such as its vectors), each by its name.
        created_at: Unix time in nanoseconds; 0 lets the log set it.
        commit: The commit that it came with, if the event was moved by a pruning; else 0.
        born_at: Unix time in nanoseconds at which the item was created, if the event that created it is gone; else 0.
    """

    namespace: tuple[str, ...]
    key: str
    value: Value
    expires_at: int | None = None
    attachments: dict[str, Value] = {}
    created_at: int = 0
    commit: int = 0
    born_at: int = 0


class ItemDeleted(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_ITEM_DELETED):
    """An item of the store was deleted; what it was can still be read.  One that is not there is no error.

    Attributes:
        namespace: Where it was filed.
        key: Its key there.
        expired_by: Unix time in nanoseconds: it is deleted only if it expires by then.  None deletes it at once.
        created_at: Unix time in nanoseconds; 0 lets the log set it.
        commit: The commit that it came with, if the event was moved by a pruning; else 0.
    """

    namespace: tuple[str, ...]
    key: str
    expired_by: int | None = None
    created_at: int = 0
    commit: int = 0


class ItemTouched(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=fmt.KIND_ITEM_TOUCHED):
    """An item's value is kept for longer; nothing happens if it is not that value any more.

    Attributes:
        namespace: Where it is filed.
        key: Its key there.
        sequence: Where the value was put.
        expires_at: Unix time in nanoseconds from which it may be removed.
        created_at: Unix time in nanoseconds; 0 lets the log set it.
    """

    namespace: tuple[str, ...]
    key: str
    sequence: Sequence
    expires_at: int
    created_at: int = 0


ItemEvent: TypeAlias = ItemPut | ItemDeleted | ItemTouched

Event: TypeAlias = (
    StepCommitted
    | WritesRecorded
    | ThreadOpened
    | LaneOpened
    | ThreadCopied
    | ThreadPruned
    | ThreadDeleted
    | ThreadLabelled
    | ItemPut
    | ItemDeleted
    | ItemTouched
)
