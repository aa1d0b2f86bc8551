"""The check of every invariant (SPEC.md, section 11).

Events are read in order and checked one by one; from them every derived row is computed anew, by code that
shares nothing with the code that wrote it, and compared with what is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from stepwell import codec, reader
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import CorruptionError, StepwellError
from stepwell.events import (
    Event,
    ItemEvent,
    ItemPut,
    ItemTouched,
    LaneOpened,
    Sequence,
    StepCommitted,
    ThreadDeleted,
    ThreadLabelled,
    ThreadOpened,
    ThreadPruned,
    WritesRecorded,
)
from stepwell.fold import EMPTY, State, fold
from stepwell.item_rows import ItemRows
from stepwell.labels import facet_of
from stepwell.patch import Patch, PatchError, references
from stepwell.storage import FeedRow, LaneRow, Storage, Surveyed, ThreadRow, pack_name, pack_row
from stepwell.storage.feed import pack_feed, row_number
from stepwell.storage.index import WRITES_IN_FURTHER_ROW, WRITES_IN_ROW, IndexRow, pack_further, pack_index
from stepwell.storage.tables import FEED, IDS, INDEX, LANES, NAMES, RECENT, THREADS

_PAGE_EVENTS = 256


class Breach(NamedTuple):
    """One invariant that does not hold.

    Attributes:
        invariant: Its name in SPEC.md, section 11.
        thread: Number of the thread; None if it is not one thread's.
        sequence: Where in the thread; None if it is not one event's.
        what: What was found.
    """

    invariant: str
    thread: int | None
    sequence: int | None
    what: str


class Report(NamedTuple):
    """What an audit found.

    Attributes:
        threads: Number of threads, deleted ones included, without the log's own.
        events: Number of events.
        breaches: Every invariant that does not hold; empty for a sound log.
    """

    threads: int
    events: int
    breaches: list[Breach]


def audit(storage: Storage, progress: Callable[[str, int, int], None] | None = None) -> Report:
    """Check every invariant of a log.

    Appends of other threads and processes may go on meanwhile, but can show as breaches of what is derived.

    Args:
        storage: Where the log is kept.
        progress: Called after each thread with what is being done, and how much of how much of it.
    """
    expected: dict[tuple[str, bytes], bytes] = {}
    breaches: list[Breach] = []
    events = own = 0
    threads = storage.event_threads()
    commits: dict[int, FeedRow] = {}
    for done, number in enumerate(threads):
        if progress is not None:
            progress("checking threads", done, len(threads))
        thread = derive(storage, number)
        breaches += thread.breaches
        events += thread.events
        expected.update(thread.rows)
        own += thread.is_own
        for commit, row in thread.commits.items():
            if commit in commits:
                breaches.append(Breach("I7", number, row.first, f"commit {commit} stands in two threads"))
            commits[commit] = row
    expected.update(feed_rows(commits.values()))
    for table, key, value in storage.derived():
        wanted = expected.pop((table, key), None)
        if wanted != value:
            what = "should not be there" if wanted is None else "differs from what the events say"
            breaches.append(Breach("I6", None, None, f"a row of {table} {what}: {key.hex()}"))
    for table, key in expected:
        breaches.append(Breach("I6", None, None, f"a row of {table} is missing: {key.hex()}"))
    return Report(len(threads) - own, events, breaches)


class Derived(NamedTuple):
    """What follows from the events of one thread.

    Attributes:
        rows: Every row of a derived table that is about this thread alone, by table and key.
        commits: Its part of the feed, by commit number.
        events: Number of its events.
        breaches: What is wrong with the events themselves; without any, the rows are right.
        is_own: Whether it is the log's own thread.
    """

    rows: dict[tuple[str, bytes], bytes]
    commits: dict[int, FeedRow]
    events: int
    breaches: list[Breach]
    is_own: bool


def derive(storage: Storage, number: int) -> Derived:
    """Read a thread from its first event to its last, and compute from that all that is derived of it."""
    thread = _Thread(storage, number)
    thread.read()
    return Derived(thread.rows(), thread.commits, thread.events, thread.breaches, thread.is_own)


def feed_rows(commits: Iterable[FeedRow]) -> dict[tuple[str, bytes], bytes]:
    """The rows of the feed that name some commits."""
    return {
        (FEED, fmt.number_key(number)): pack_feed([*rows])
        for number, rows in groupby(sorted(commits), lambda row: row_number(row.commit))
    }


class _Entry(NamedTuple):
    """The events of one step id: those that commit it, and those that record writes for it; and what these say."""

    shown: list[int]
    hidden: list[int]
    writes: list[int]
    said: list[int]


class _Thread:
    """One thread, read from its first event to its last."""

    def __init__(self, storage: Storage, number: int) -> None:
        self._storage = storage
        self._number = number
        self._lanes: dict[int, LaneRow] = {}
        self._lane_names: dict[int, str] = {}
        self._index: dict[tuple[int, bytes], _Entry] = {}
        self._payload_bytes: dict[int, int] = {}
        self._steps: dict[int, int] = {}
        self._said: dict[int, int] = {}
        self._states: dict[int, State] = {0: EMPTY}
        self._followers: Counter[int] = Counter()
        self._first_of_id: dict[tuple[int, str], int] = {}
        self._items = ItemRows()
        self._item_commit = 0
        self._id: str | None = None
        self._deleted = False
        self._row = ThreadRow(number, b"", 0)
        self._bases: dict[int, memoryview] = {}
        self._first_sealed = 0
        self._last_commit = 0
        self.events = 0
        self.commits: dict[int, FeedRow] = {}
        self.breaches: list[Breach] = []

    def read(self) -> None:
        self._check_segments()
        self._bases = self._storage.bases(self._number)
        self._count_followers()
        for sequence, loose_bytes, record in self._records():
            self.events += 1
            self._row.loose_bytes += loose_bytes
            self._row.stored_bytes += loose_bytes
            if isinstance(record, StepwellError):
                self._breach("I2", sequence, str(record))
            else:
                self._event(record)
        if self._first_sealed not in (0, self._row.first):
            self._breach("I9", self._row.first, f"the first segment begins at {self._first_sealed}")
        for sequence in self._bases:
            self._breach("I10", sequence, "a state is kept of what is no step")

    def _check_segments(self) -> None:
        """Segments follow each other without a gap, and hold the oldest events."""
        row = self._row
        for first, last, size in self._storage.segments(self._number):
            if row.sealed and first != row.sealed + 1:
                self._breach("I9", first, f"the segment before it ends at {row.sealed}")
            if not row.sealed:
                self._first_sealed = first
            row.sealed = last
            row.stored_bytes += size

    def _check_base(self, sequence: int) -> None:
        """A state that is kept is what the events fold to."""
        data = self._bases.pop(sequence, None)
        if data is not None and sequence in self._states:
            try:
                kept = codec.decode_base(self._number, sequence, data)
            except CorruptionError as error:
                self._breach("I10", sequence, error.reason)
            else:
                if kept != self._states[sequence]:
                    self._breach("I10", sequence, "the state that is kept is not what the events fold to")

    def _count_followers(self) -> None:
        """How many steps are based on each, so that a state is held no longer than it is needed."""
        for _, _, record in self._records():
            if isinstance(record, Record) and record.header.kind == fmt.KIND_STEP:
                self._followers[record.header.base] += 1

    def _records(self) -> Iterator[Surveyed]:
        """All records of the thread in order, or what is wrong with them."""
        after = 0
        while page := self._storage.survey(self._number, after, _PAGE_EVENTS):
            yield from page
            after = page[-1].sequence

    def _breach(self, invariant: str, sequence: int, what: str) -> None:
        self.breaches.append(Breach(invariant, self._number, sequence, what))

    def _event(self, record: Record) -> None:
        sequence, header = record.sequence, record.header
        try:
            event = codec.decode(self._number, record)
        except CorruptionError as error:
            self._breach("I2", sequence, str(error))
            return
        row = self._row
        if not row.first:
            row.first, row.last = sequence, sequence - 1
            row.created_at = header.created_at
            self._opening(sequence, event)
        elif self._deleted or isinstance(event, ThreadOpened | ThreadPruned | ThreadDeleted):
            self._breach("I1", sequence, f"a {type(event).__name__} cannot stand there")
        if sequence != row.last + 1:
            self._breach("I1", sequence, f"it follows {row.last}")
        chain = fmt.chain_after(self._number, sequence, header, fmt.body_digest(record.body), row.chain)
        if header.chain not in (b"", chain):
            self._breach("I3", sequence, "the hash chain is broken before this event")
        status = fmt.read_status(header.flags)
        flags = header.flags & ~fmt.FLAG_STATUS if isinstance(event, WritesRecorded) else header.flags
        if not isinstance(event, StepCommitted) and (header.base or header.previous or flags):
            self._breach("I5", sequence, "only a step has a base, a step before it, and flags")
        row.last, row.chain, row.updated_at = sequence, header.chain or chain, header.created_at
        row.commit = header.commit
        self._payload_bytes[sequence] = len(record.payload)
        self._commit(header.commit, sequence)
        if isinstance(event, LaneOpened):
            self._lane(header.lane, event, sequence)
        elif isinstance(event, ThreadLabelled):
            labels = {**row.labels, **event.labels}
            row.labels = {name: value for name in sorted(labels) if (value := labels[name]) is not None}
        elif isinstance(event, StepCommitted):
            self._step(header, event, sequence)
        elif isinstance(event, WritesRecorded):
            row.writes += 1
            self._known_lane(header.lane, sequence)
            for write in event.writes:
                self._references(write.value, sequence)
            entry = self._entry(header.lane, event.step_id)
            entry.writes.append(sequence)
            if status:
                entry.said.append(status)
                if entry.shown and entry.shown[-1] == self._lanes[header.lane].head:
                    self._judge(entry)
        if isinstance(event, ItemEvent):
            self._item(header, event, sequence)
        elif self._id == fmt.ITEMS_THREAD_ID and sequence != row.first:
            self._breach("I11", sequence, "it stands in the thread of items, and changes none")

    def _item(self, header: fmt.Header, event: ItemEvent, sequence: int) -> None:
        if self._id != fmt.ITEMS_THREAD_ID:
            self._breach("I11", sequence, "an item is changed outside of the thread of items")
        if isinstance(event, ItemPut):
            for value in (event.value, *event.attachments.values()):
                self._references(value, sequence)
        if not isinstance(event, ItemTouched):
            commit = event.commit or header.commit
            if not self._item_commit <= commit <= header.commit:
                self._breach("I11", sequence, f"the change of an item came with commit {commit}, out of order")
            self._item_commit = commit
        self._items.add(sequence, header, event)

    def _entry(self, lane: int, step_id: str) -> _Entry:
        return self._index.setdefault((lane, fmt.id_key(step_id)), _Entry([], [], [], []))

    def _opening(self, sequence: int, event: Event) -> None:
        """The first event names the thread and says where its hash chain begins."""
        if isinstance(event, ThreadOpened) and sequence == 1:
            self._id = event.thread_id
        elif isinstance(event, ThreadPruned) and sequence == event.through + 1:
            self._id, self._row.chain = event.thread_id, event.chain
        elif isinstance(event, ThreadDeleted) and sequence == event.through + 1:
            self._deleted, self._row.chain = True, event.chain
        else:
            self._breach("I1", sequence, f"a thread cannot begin with {type(event).__name__}")

    def _commit(self, commit: int, sequence: int) -> None:
        if commit < self._last_commit:
            self._breach("I7", sequence, f"commit {commit} comes after a later one")
        before = self.commits.get(commit)
        row = FeedRow(commit, self._number, sequence, sequence)
        self.commits[commit] = row if before is None else before._replace(last=sequence)
        self._last_commit = max(commit, self._last_commit)

    def _lane(self, lane: int, event: LaneOpened, sequence: int) -> None:
        if lane != len(self._lanes) + 1:
            self._breach("I4", sequence, f"lane {lane} is opened as number {len(self._lanes) + 1}")
        self._row.lanes += 1
        name_key = fmt.name_key(self._number, event.lane.encode())
        self._lanes[lane] = LaneRow(name_key[8:])
        self._lane_names[lane] = event.lane

    def _known_lane(self, lane: int, sequence: int) -> LaneRow:
        if lane not in self._lanes:
            self._breach("I4", sequence, f"lane {lane} was never opened")
            self._lanes[lane] = LaneRow(b"")
        return self._lanes[lane]

    def _step(self, header: fmt.Header, event: StepCommitted, sequence: int) -> None:
        lane = self._known_lane(header.lane, sequence)
        if not event.hidden:
            original = self._first_of_id.setdefault((header.lane, event.step_id), sequence)
            replaces = original != sequence
            if replaces != bool(header.flags & fmt.FLAG_REPLACES):
                self._breach("I5", sequence, "the flag for a step that was committed before is wrong")
            if header.previous != (original if replaces else lane.tip):
                self._breach("I5", sequence, f"it follows step {header.previous} of its lane")
            if replaces:
                lane.replaced += 1
                lane.head = sequence if original == lane.tip else lane.head
            else:
                lane.head = lane.tip = sequence
                lane.steps += 1
                self._row.steps += 1
        entry = self._entry(header.lane, event.step_id)
        (entry.hidden if event.hidden else entry.shown).append(sequence)
        self._said[sequence] = fmt.read_status(header.flags)
        if lane.head == sequence:
            self._judge(entry)
        self._references(event.channels, sequence)
        self._references(event.fields, sequence)
        self._fold(header, event, sequence)

    def _fold(self, header: fmt.Header, event: StepCommitted, sequence: int) -> None:
        if event.base and self._steps.get(event.base) != header.lane:
            self._breach("I5", sequence, f"its base {event.base} is no step of its lane")
        base = self._states.get(event.base)
        if base is not None:
            try:
                self._states[sequence] = fold(base, event, Sequence(sequence))
            except PatchError as error:
                self._breach("I5", sequence, f"it does not fit its base {event.base}: {error}")
        self._steps[sequence] = header.lane
        self._check_base(sequence)
        self._followers[event.base] -= 1
        for done in (event.base, sequence):
            if done and not self._followers[done]:
                self._states.pop(done, None)

    def _judge(self, entry: _Entry) -> None:
        """What the thread has come to, when this is the head of its lane."""
        step, writes = self._said[entry.shown[-1]], (entry.said or [fmt.STATUS_UNKNOWN])[-1]
        if step and writes in (fmt.STATUS_UNKNOWN, fmt.STATUS_RUNNING):
            self._row.status = step
        elif writes:
            self._row.status = writes

    def _references(self, patch: Patch, sequence: int) -> None:
        for ref in references(patch):
            end = ref.start + ref.length
            if end > self._payload_bytes.get(ref.sequence, -1) or ref.sequence > sequence:
                self._breach("I8", sequence, f"it refers to bytes that event {ref.sequence} does not hold")

    @property
    def is_own(self) -> bool:
        """Whether it is the log's own."""
        return self._id is not None and self._id.startswith(fmt.OWN_THREADS)

    def rows(self) -> dict[tuple[str, bytes], bytes]:
        """Every derived row of the thread but its part of the feed."""
        number = self._number
        rows: dict[tuple[str, bytes], bytes] = {}
        row = self._row
        row.deleted = self._deleted
        if self._id is not None:
            name = self._id.encode()
            name_key = fmt.name_key(0, name)
            row.name_hash = name_key[8:]
            rows[NAMES, name_key] = pack_name(number, name)
        if self._id not in (None, fmt.ITEMS_THREAD_ID):
            rows[IDS, fmt.sorted_key(name, number)] = b""
            facets = [fmt.status_facet(row.status), *(facet_of(label, value) for label, value in row.labels.items())]
            place = fmt.epoch_of(row.commit), fmt.span_of(row.updated_at), number
            rows.update(((RECENT, fmt.recent_key(facet, *place)), b"") for facet in facets)
        rows[THREADS, fmt.number_key(number)] = pack_row(row)
        for lane, lane_row in self._lanes.items():
            rows[LANES, fmt.lane_key(number, lane)] = pack_row(lane_row)
        for lane, lane_name in self._lane_names.items():
            name = lane_name.encode()
            rows[NAMES, fmt.name_key(number, name)] = pack_name(lane, name)
        for (lane, step_key), entry in self._index.items():
            steps = entry.shown or entry.hidden
            original, newest = (steps[0], steps[-1]) if steps else (0, 0)
            hidden = bool(steps) and not entry.shown
            row_of_id = IndexRow(original, newest, hidden, tuple(entry.writes[:WRITES_IN_ROW]), (entry.said or [0])[-1])
            rows[INDEX, fmt.index_key(number, lane, step_key)] = pack_index(row_of_id)
            for start in range(WRITES_IN_ROW, len(entry.writes), WRITES_IN_FURTHER_ROW):
                further = tuple(entry.writes[start : start + WRITES_IN_FURTHER_ROW])
                rows[INDEX, fmt.index_further_key(number, lane, step_key, further[0])] = pack_further(further)
        if self._id == fmt.ITEMS_THREAD_ID and not self.breaches:
            payloads = reader.Payloads(self._storage, number)
            rows.update({(table, key): value for table, key, value in self._items.rows(payloads.read)})
        return rows
