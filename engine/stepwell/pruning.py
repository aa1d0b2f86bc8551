"""Rewriting a thread to what is to be kept of it.

A kept step becomes a new event whose patch starts from the nearest kept step before it (the patches between
the two composed into one), or from nothing.  The events go to the end of the thread and everything before
them is removed, in one commit: there is no moment at which half of the thread is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from stepwell import codec, reader
from stepwell import format as fmt
from stepwell.clock import now
from stepwell.content import entry
from stepwell.errors import ConflictError, UsageError
from stepwell.events import Event, Sequence, StepCommitted, ThreadLabelled, ThreadPruned, Write, WritesRecorded
from stepwell.fold import State, fold_writes
from stepwell.patch import Merge, Ref, compose_merges
from stepwell.storage import Append, Entry, Storage, ThreadRow

_END: Final = 1 << 62


class Kept(NamedTuple):
    """What is to be kept of a thread.

    Attributes:
        steps: Sequences of steps to keep as they are, with the writes that wait for them.
        hidden: Sequences of steps to keep hidden, each with the channels whose values and writes are kept for
            what descends from it.
    """

    steps: frozenset[int]
    hidden: Mapping[int, frozenset[str]] = {}


def plan(storage: Storage, thread_id: str, row: ThreadRow, kept: Kept) -> Append:
    """The operation that leaves only some steps of a thread.

    Args:
        storage: Where the log is kept.
        thread_id: The thread.
        row: Its catalogue row, which must still be true when the operation is carried out.
        kept: What to keep.
    """
    retain = {sequence: channels for sequence, channels in kept.hidden.items() if sequence not in kept.steps}
    _check(storage, thread_id, row, kept.steps | retain.keys())
    entries = list(_Rewriting(storage, thread_id, row).entries(kept.steps, retain))
    return Append(thread_id, lambda number, first: entries, row.last, row.number, restart=True)


def _check(storage: Storage, thread_id: str, row: ThreadRow, sequences: frozenset[int]) -> None:
    """Raise UsageError unless all sequences are steps of the thread."""
    inside = [sequence for sequence in sequences if row.first <= sequence <= row.last]
    records = storage.read(row.number, inside)
    if storage.thread(thread_id) != row:
        raise ConflictError(
            f"thread {thread_id!r} was changed meanwhile; choose again",
            thread=thread_id,
            expected=row.last,
            actual=None,
        )
    for sequence in sorted(sequences):
        record = records.get(sequence)
        if record is None or record.header.kind != fmt.KIND_STEP:
            raise UsageError(f"event {sequence} of thread {thread_id!r} is not a step, and only steps can be kept")


class _Rewriting:
    """The events that a thread begins anew with, in order.

    Where each will stand is known, since nobody may append in between, so that they can refer to each
    other's content.
    """

    def __init__(self, storage: Storage, thread_id: str, row: ThreadRow) -> None:
        self._storage = storage
        self._thread_id = thread_id
        self._row = row
        self._payloads = reader.Payloads(storage, row.number)
        self._now = now()
        self._last = row.last
        self._lanes: set[str] = set()
        self._known: dict[bytes, Ref] = {}

    def entries(self, keep: frozenset[int], retain: Mapping[int, frozenset[str]]) -> Iterator[Entry]:
        row = self._row
        head = ThreadPruned(self._thread_id, Sequence(row.last), row.chain, self._now, row.created_at)
        yield self._entry(head)
        if row.labels:
            yield self._entry(ThreadLabelled(dict(row.labels)))
        kept = keep | retain.keys()
        states = reader.Reader(self._storage).states(row.number, kept)
        branches, order = self._branches(kept)
        placed: dict[int, Sequence] = {}
        for sequence in order:
            channels = retain.get(sequence)
            yield self._entry(self._restated(sequence, branches, states[sequence], placed, channels))
            if channels is None:
                placed[sequence] = Sequence(self._last)
        yield from self._writes({(branches[s].lane, branches[s].step_id): retain.get(s) for s in order})

    def _branches(self, kept: frozenset[int]) -> tuple[dict[int, StepCommitted], list[int]]:
        """The kept steps and all that they are based on; and the kept ones in the order of lists."""
        sequences = sorted(kept)
        found = self._storage.branches(self._row.number, sequences, frozenset()).records
        found |= self._storage.read(self._row.number, sequences)
        for sequence in sequences:
            if sequence not in found:
                raise reader.missing(self._storage, self._row.number, sequence)
        records = [*found.values()]
        first_committed: dict[int, int] = {}
        for record in records:
            replaces = record.header.flags & fmt.FLAG_REPLACES
            first_committed[record.sequence] = record.header.previous if replaces else record.sequence
        branches: dict[int, StepCommitted] = {
            sequence: event
            for sequence, event in reader.decoded(self._storage, self._row.number, records)
            if isinstance(event, StepCommitted)
        }
        return branches, sorted(kept, key=lambda sequence: (first_committed[sequence], sequence))

    def _restated(
        self,
        sequence: int,
        branches: dict[int, StepCommitted],
        state: State,
        placed: dict[int, Sequence],
        channels: frozenset[str] | None,
    ) -> StepCommitted:
        event = branches[sequence]
        if channels is not None:
            values = Merge((), {name: value for name, value in state.channels.items() if name in channels})
            return self._step(event, values, Merge(), Sequence(0), hidden=True)
        patches, fields, base = event.channels, event.fields, event.base
        while base and base not in placed:
            if base not in branches:
                base = Sequence(0)  # a base is kept of that step: what comes before it was not read
                break
            before = branches[base]
            patches, fields = compose_merges(before.channels, patches), compose_merges(before.fields, fields)
            base = before.base
        if not base:
            patches, fields = Merge((), dict(state.channels)), Merge((), dict(state.fields))
        return self._step(event, patches, fields, placed.get(base, Sequence(0)), hidden=event.hidden)

    def _step(
        self, event: StepCommitted, channels: Merge, fields: Merge, base: Sequence, *, hidden: bool
    ) -> StepCommitted:
        return StepCommitted(
            event.step_id, event.parent_id, channels, fields, event.lane, base, hidden, event.created_at, event.status
        )

    def _writes(self, kept: dict[tuple[str, str], frozenset[str] | None]) -> Iterator[Entry]:
        recorded: list[WritesRecorded] = []
        committed: set[tuple[str, str]] = set()
        for _, event in reader.events(self._storage, self._row.number, self._row.first - 1, _END):
            if isinstance(event, WritesRecorded):
                recorded.append(event)
            elif isinstance(event, StepCommitted):
                committed.add((event.lane, event.step_id))
        reduced: dict[tuple[str, str], list[WritesRecorded]] = {}
        for event in recorded:
            place = (event.lane, event.step_id)
            if place in kept and kept[place] is not None:
                reduced.setdefault(place, []).append(event)
            elif place in kept or place not in committed:
                # The step may still come: writes may arrive before the step that they wait for.
                yield self._entry(event)
        for place, events in reduced.items():
            yield from map(self._entry, _reduced(events, kept[place] or frozenset()))

    def _entry(self, event: Event) -> Entry:
        event = reader.resolved(event, self._payloads.read)
        body = codec.encode(event, lambda digest, _: self._known.get(digest))
        lane = event.lane if isinstance(event, StepCommitted | WritesRecorded) else None
        # The first event of a lane is preceded by the one that opens it.
        self._last += 1 if lane is None or lane in self._lanes else 2
        if lane is not None:
            self._lanes.add(lane)
        for digest, start, length in body.fresh:
            self._known[digest] = Ref(self._last, start, length)
        return entry(event, body, self._now)


def _reduced(events: list[WritesRecorded], channels: frozenset[str]) -> Iterator[WritesRecorded]:
    """The writes to some channels; those that others have won against are left out, for the others may be too."""
    by_task: dict[tuple[str, str], list[Write]] = {}
    for pending in fold_writes(events):
        if pending.write.channel in channels:
            by_task.setdefault((pending.task_path, pending.task_id), []).append(pending.write)
    first = events[0]
    for (task_path, task_id), writes in by_task.items():
        yield WritesRecorded(first.step_id, task_id, task_path, tuple(writes), first.lane, first.created_at)
