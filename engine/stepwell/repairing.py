"""A new log out of a damaged one, and the report of what was lost.

What can be proven is collected in the new log's tables (`salvage.py`).  Then:

    1. Of a whole thread everything stays as it is, byte for byte; what is derived is computed from its events.
    2. A thread with a gap is rewritten, as a pruning does: it begins anew behind all its sequences, with a
       `ThreadPruned` that names what is lost.  There follow, in their order, the steps whose states are intact, content
       and all, and the writes.  A step keeps its patches where its base is kept, and else holds its state in full.
    3. A deleted thread whose tombstone is lost gets another one, so that its number is not used again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from stepwell import codec, reader
from stepwell import format as fmt
from stepwell.audit import derive, feed_rows
from stepwell.codec import Record
from stepwell.content import entry
from stepwell.errors import ConflictError, CorruptionError, NotALogError, StepwellError
from stepwell.events import (
    NOWHERE,
    ItemDeleted,
    ItemEvent,
    ItemPut,
    ItemTouched,
    LaneOpened,
    Sequence,
    StepCommitted,
    ThreadLabelled,
    ThreadPruned,
    WritesRecorded,
)
from stepwell.forgetting import moved
from stepwell.patch import Merge, Patch, Ref, references
from stepwell.salvage import Progress, Salvage, StoredRow, put
from stepwell.storage import Append, Delete, Entry, FeedRow, Operation, RawStorage, ThreadRow, pack_name, pack_row
from stepwell.storage.lmdb.remains import Remains
from stepwell.storage.tables import EVENTS, IDS, NAMES, SEGMENTS, THREAD_NAMES, THREADS

_PAGE_EVENTS: Final = 128
_ITEM_KINDS: Final = (fmt.KIND_ITEM_PUT, fmt.KIND_ITEM_DELETED, fmt.KIND_ITEM_TOUCHED)
_GROUP_OPERATIONS: Final = 64
_GROUP_BYTES: Final = 1 << 22
_MOST_TOLD: Final = 20  # of what is wrong with the file, in a report as text


class Loss(NamedTuple):
    """Events in a row that the new log does not hold.

    Attributes:
        first: Sequence of the first, in the damaged log.
        last: Sequence of the last.
        reason: Why.
    """

    first: int
    last: int
    reason: str


class ThreadRepair(NamedTuple):
    """What became of a thread that is not simply as it was.

    Attributes:
        number: Its number.
        thread_id: Its id; None if it was deleted.
        lost_names: New names that the thread, or lanes of it, have, since their own could not be found.
        events: How many of its events were proven.
        lost: The events that are missing.
        left_out: The steps and writes that could be proven, but are not intact without what is missing.
        rewritten: Whether it begins anew: what was kept stands at new sequences.
        found: How many of its events no table led to.
        mended: How many hash chains were wrong, and were computed anew.
    """

    number: int
    thread_id: str | None
    lost_names: tuple[str, ...]
    events: int
    lost: tuple[Loss, ...]
    left_out: tuple[Loss, ...]
    rewritten: bool
    found: int
    mended: int

    def __str__(self) -> str:
        name = "deleted" if self.thread_id is None else repr(self.thread_id)
        if self.thread_id == fmt.ITEMS_THREAD_ID:
            name = "items"
        lines = [f"thread {self.number} ({name}): {self.events:,} events could be proven"]
        for each in self.lost_names:
            lines.append(f"{each!r} is a new name: the old one is lost")
        if self.found:
            lines.append(f"{self.found:,} of them were found outside of the tables")
        if self.mended:
            lines.append(f"the hash chain of {self.mended:,} was computed anew")
        lines += [f"lost: {_place(loss)}: {loss.reason}" for loss in self.lost]
        reasons = Counter(loss.reason for loss in self.left_out)
        lines += [
            f"left out: {count:,} that were not lost: {reason}" for reason, count in reasons.most_common(_MOST_TOLD)
        ]
        if self.rewritten:
            lines.append(
                "it stays deleted, with a new tombstone"
                if self.thread_id is None
                else "it begins anew: what was kept stands at new sequences"
            )
        return "\n    ".join(lines)


class RepairReport(NamedTuple):
    """What a repair found, and what became of it.

    Attributes:
        path: The damaged file, which is as it was.
        into: The new log.
        threads: How many threads it holds, deleted ones included.
        events: How many events it holds.
        repaired: The threads that are not simply as they were, by number.
        damage: What was wrong with the pages of the file.
    """

    path: str
    into: str
    threads: int
    events: int
    repaired: tuple[ThreadRepair, ...]
    damage: tuple[str, ...]

    @property
    def lost_events(self) -> int:
        """How many events are known to be missing."""
        return sum(loss.last - loss.first + 1 for thread in self.repaired for loss in thread.lost)

    @property
    def left_out_events(self) -> int:
        """How many steps and writes are not in the new log though they are not missing."""
        return sum(len(thread.left_out) for thread in self.repaired)

    def __str__(self) -> str:
        lines = [
            f"{self.path} was repaired into {self.into}",
            f"threads: {self.threads:,}, of which {self.threads - len(self.repaired):,} are as they were",
            f"events: {self.events:,}; lost: {self.lost_events:,}; left out: {self.left_out_events:,}",
            *map(str, self.repaired),
            *(f"damage: {what}" for what in self.damage[:_MOST_TOLD]),
        ]
        if len(self.damage) > _MOST_TOLD:
            lines.append(f"damage: and so on, {len(self.damage) - _MOST_TOLD:,} times")
        return "\n".join(lines)


def _place(loss: Loss) -> str:
    return f"event {loss.first}" if loss.first == loss.last else f"events {loss.first} to {loss.last}"


def fill(storage: RawStorage, remains: Remains, into: str, progress: Progress) -> RepairReport:
    """Make a log of what is left of a damaged one.

    Args:
        storage: The new log, in which there is nothing yet.  If this fails it is none.
        remains: What is left.
        into: Where the new log will lie, for the report.
        progress: Told what is being done, and how much of how much of it.

    Raises:
        NotALogError: Nothing can be proven to be of a log.
        ConflictError: The damaged file was written to meanwhile.
    """
    salvage = Salvage(remains, storage, progress)
    salvage.collect()
    if not salvage.held:
        raise NotALogError(f"nothing in {remains.path!r} can be proven to be of a log")
    new = _New(storage, salvage, progress)
    new.make()
    remains.check_unchanged()
    damage = tuple(dict.fromkeys([*remains.damage, *new.damage]))
    return RepairReport(remains.path, into, len(salvage.held), new.events, tuple(new.repaired), damage)


class _New:
    """The new log.

    Attributes:
        events: How many events it holds.
        repaired: The threads that are not simply as they were.
        damage: What is wrong with threads that lack nothing.
    """

    def __init__(self, storage: RawStorage, salvage: Salvage, progress: Progress) -> None:
        self.events = 0
        self.repaired: list[ThreadRepair] = []
        self.damage: list[str] = []
        self._storage = storage
        self._salvage = salvage
        self._progress = progress
        self._ids: set[str] = set()
        self._commits: list[FeedRow] = []
        self._broken: list[int] = []
        self._newest: dict[str, int] = {}  # by id: the thread that was opened last under it

    def make(self) -> None:
        put(self._storage, self._derived())
        put(self._storage, ((table, key, value) for (table, key), value in feed_rows(self._commits).items()))
        self._salvage.find_names({number for number in self._broken if self._salvage.name(number) is None})
        for done, number in enumerate(self._broken):
            self._progress("rewriting threads", done, len(self._broken))
            self._renew(number)
        self.repaired.sort()

    def _derived(self) -> Iterator[StoredRow]:
        """The derived rows of the whole threads; notes which are not."""
        numbers = sorted(self._salvage.held)
        self._newest = {
            name: number for number in numbers if (name := self._salvage.held[number].thread_id) is not None
        }
        for done, number in enumerate(numbers):
            self._progress("deriving tables", done, len(numbers))
            if not self._salvage.is_whole(number) or self._is_gone(number):
                self._broken.append(number)
                continue
            held, derived = self._salvage.held[number], derive(self._storage, number)
            if derived.breaches:
                breach = derived.breaches[0]
                self.damage.append(f"thread {number}, event {breach.sequence}: {breach.what}")
                self._broken.append(number)
                continue
            yield from ((table, key, value) for (table, key), value in derived.rows.items())
            self._commits += derived.commits.values()
            self.events += derived.events
            if held.thread_id is not None:
                self._ids.add(held.thread_id)
            if held.found or held.mended:
                self._tell(number, held.thread_id)

    def _is_gone(self, number: int) -> bool:
        """Whether a thread was deleted, though the event that says so is lost."""
        held, row = self._salvage.held[number], self._salvage.row(number)
        if held.thread_id is not None and self._newest[held.thread_id] != number:
            return True  # or no other could have been opened under its name
        return row is not None and row.deleted and not held.ranges

    def _renew(self, number: int) -> None:
        """Rewrite a thread that is not whole."""
        held, row = self._salvage.held[number], self._salvage.row(number)
        lost = [Loss(*loss) for loss in self._salvage.losses(number)]
        last = max(self._salvage.end(number), held.last)
        chain = held.chain if held.last == last and held.chain else row.chain if row is not None else fmt.CHAIN_SEED
        thread_id = fmt.ITEMS_THREAD_ID if self._holds_items(number) else self._salvage.name(number)
        name = self._free_name(number) if thread_id is None or thread_id in self._ids else thread_id
        self._ids.add(name)
        name_key = fmt.name_key(THREAD_NAMES, name.encode())
        created_at = held.created_at or (row.created_at if row is not None else 0) or time.time_ns()
        standing = ThreadRow(number, name_key[8:], last + 1, last, chain)
        self._storage.restore(
            [
                (NAMES, name_key, pack_name(number, name.encode())),
                # The thread of items stands in no list.
                *([] if name == fmt.ITEMS_THREAD_ID else [(IDS, fmt.sorted_key(name.encode(), number), b"")]),
                (THREADS, fmt.number_key(number), pack_row(standing)),
            ]
        )
        if self._is_gone(number):
            self._commit([Delete(name, created_at)])
            self._remove(number, last)
            self.events += 1
            self._ids.discard(name)
            self._tell(number, None, lost, rewritten=True)
            return
        rewriting = _Rewriting(self._storage, self._salvage, number, last)
        gaps = tuple((Sequence(loss.first), Sequence(loss.last)) for loss in lost)
        first = ThreadPruned(name, Sequence(last), chain, time.time_ns(), created_at, gaps)
        for group in _groups(rewriting.entries(first)):
            # Each in an append of its own, as steps are: what it is based on must be in the log before.
            self._commit([_append(name, number, [each]) for each in group])
        self._remove(number, last)
        self.events += rewriting.last - last
        new_names = [name] if name != thread_id else []
        new_names += rewriting.lost_lanes
        self._tell(number, name, lost, rewriting.left_out, rewritten=True, lost_names=new_names)

    def _holds_items(self, number: int) -> bool:
        """Whether it is the thread of items, whatever is lost of it."""
        for first, _ in self._salvage.held[number].ranges:
            for record in self._storage.scan(number, first - 1, first + 2, 2, reverse=False):
                if record.header.kind in _ITEM_KINDS:
                    return True
        return False

    def _free_name(self, number: int) -> str:
        name = f"lost-name-{number}"
        while name in self._ids:
            name += "+"
        return name

    def _commit(self, operations: Several[Operation]) -> None:
        for outcome in self._storage.commit(operations):
            if isinstance(outcome, StepwellError):
                raise outcome

    def _remove(self, number: int, last: int) -> None:
        """Remove what the rewritten thread was made from."""
        edges = fmt.event_key(number, 0), fmt.event_key(number, last + 1)
        for table in (EVENTS, SEGMENTS):
            while keys := [key for key, _ in islice(self._storage.stored(table, *edges), _PAGE_EVENTS)]:
                self._storage.restore((table, key, None) for key in keys)

    def _tell(
        self,
        number: int,
        thread_id: str | None,
        lost: Iterable[Loss] = (),
        left_out: Iterable[Loss] = (),
        *,
        rewritten: bool = False,
        lost_names: Iterable[str] = (),
    ) -> None:
        held = self._salvage.held[number]
        counts = held.found, held.mended
        self.repaired.append(
            ThreadRepair(
                number, thread_id, tuple(lost_names), held.events, tuple(lost), tuple(left_out), rewritten, *counts
            )
        )


class _Rewriting:
    """The events that a thread with gaps begins anew with.

    Where each will stand is known, since nobody else appends, so that they can refer to each other's content.

    Attributes:
        last: Where the last one so far stands.
        left_out: The steps and writes that are left out though their records were proven.
        lost_lanes: The new names of lanes whose own could not be found.
    """

    def __init__(self, storage: RawStorage, salvage: Salvage, number: int, last: int) -> None:
        self.last = last
        self.left_out: list[Loss] = []
        self.lost_lanes: list[str] = []
        self._storage = storage
        self._salvage = salvage
        self._number = number
        self._held = salvage.held[number]
        self._reader = reader.Reader(storage)
        self._payloads = reader.Payloads(storage, number)
        self._placed: dict[int, Sequence] = {}
        self._opened: dict[int, str] = {}
        self._named: dict[int, str] | None = None
        self._lanes: set[str] = set()

    def entries(self, first: ThreadPruned) -> Iterator[Entry]:
        """Its beginning, then all that was kept."""
        self.last += 1
        first = msgspec.structs.replace(first, since=self._past_begins())
        yield entry(first, codec.encode(first), first.pruned_at)
        for record in self._records():
            event = codec.decode(self._number, record)
            if isinstance(event, LaneOpened):
                self._opened[record.header.lane] = event.lane
            elif isinstance(event, ThreadLabelled):
                self.last += 1
                yield entry(event, codec.encode(event), record.header.created_at)
            elif isinstance(event, StepCommitted):
                restated = self._restated(record.sequence, event)
                if restated is not None:
                    yield self._entry(record, restated)
            elif isinstance(event, WritesRecorded):
                missing = self._missing(write.value for write in event.writes)
                if missing:
                    self.left_out.append(Loss(record.sequence, record.sequence, missing))
                else:
                    yield self._entry(record, event)
            elif isinstance(event, ItemEvent):
                yield from self._item(record, event)

    def _past_begins(self) -> int:
        """The commit from which on the past of items was known."""
        event = next((codec.decode(self._number, record) for record in self._records()), None)
        return event.since if isinstance(event, ThreadPruned) else 0

    def _item(self, record: Record, event: ItemEvent) -> Iterator[Entry]:
        """A change of an item, unless content of it is lost."""
        asked = event.expired_by if isinstance(event, ItemDeleted) else None
        event = moved(record.header, event)
        if isinstance(event, ItemDeleted):
            event = msgspec.structs.replace(event, expired_by=asked)  # what came before it may have spared the item
        elif isinstance(event, ItemPut):
            missing = self._missing((event.value, *event.attachments.values()))
            if missing:
                self.left_out.append(Loss(record.sequence, record.sequence, missing))
                return
        elif isinstance(event, ItemTouched):
            sequence = self._placed.get(event.sequence)
            if sequence is None:
                return  # the value that it is about is lost, and is told of
            event = msgspec.structs.replace(event, sequence=sequence)
        body = codec.moved(record, event, self._moved)
        self.last += 1
        self._placed[record.sequence] = Sequence(self.last)
        yield entry(reader.resolved(event, self._payloads.read), body, record.header.created_at)

    def _records(self) -> Iterator[Record]:
        for first, last in self._held.ranges:
            after = first - 1
            while page := self._storage.scan(self._number, after, last + 1, _PAGE_EVENTS, reverse=False):
                yield from page
                after = page[-1].sequence

    def _restated(self, sequence: int, event: StepCommitted) -> StepCommitted | None:
        """A step on what is kept, or in full; None if its state is not intact."""
        if not event.base or event.base in self._placed:
            missing = self._missing((event.channels, event.fields))
            if not missing:
                return msgspec.structs.replace(event, base=self._placed.get(event.base, NOWHERE))
        try:
            state = self._reader.state(self._number, sequence)
        except (ConflictError, CorruptionError):
            self.left_out.append(Loss(sequence, sequence, "what they are based on is lost"))
            return None
        missing = self._missing((*state.channels.values(), *state.fields.values()))
        if missing:
            self.left_out.append(Loss(sequence, sequence, missing))
            return None
        channels, fields = Merge((), dict(state.channels)), Merge((), dict(state.fields))
        return msgspec.structs.replace(event, channels=channels, fields=fields, base=NOWHERE)

    def _missing(self, patches: Iterable[Patch]) -> str:
        """What some patches refer to that is lost."""
        for patch in patches:
            for ref in references(patch):
                if not self._held.holds(ref.sequence):
                    return f"content of event {ref.sequence} is lost"
        return ""

    def _entry(self, record: Record, event: StepCommitted | WritesRecorded) -> Entry:
        body = codec.moved(record, event, self._moved)
        lane = self._lane(record.header.lane)
        # The first event of a lane is preceded by the one that opens it.
        self.last += 1 if lane in self._lanes else 2
        self._lanes.add(lane)
        self._placed[record.sequence] = Sequence(self.last)
        return entry(event, body, record.header.created_at)._replace(lane=lane)

    def _moved(self, ref: Ref) -> bytes | Ref:
        placed = self._placed.get(ref.sequence)
        return self._payloads.read(ref) if placed is None else Ref(placed, ref.start, ref.length)

    def _lane(self, lane: int) -> str:
        name = self._opened.get(lane)
        if name is None:
            if self._named is None:
                self._named = self._salvage.lane_names(self._number)
            name = self._named.get(lane)
            if name is None:
                name = f"lost-lane-{lane}"
                self.lost_lanes.append(name)
            self._opened[lane] = name
        return name


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries in runs that one commit can hold."""
    group: list[Entry] = []
    size = 0
    for each in entries:
        group.append(each)
        size += len(each.body)
        if len(group) == _GROUP_OPERATIONS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _append(name: str, number: int, entries: list[Entry]) -> Append:
    return Append(name, lambda _, __: entries, incarnation=number)
