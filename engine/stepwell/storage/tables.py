"""What each operation does to a log's tables; the same for every engine that offers ordered tables.

    threads  thread number              ThreadRow: the catalogue
    names    owner, hash of name        number, name
    events   thread, sequence           record: what is in no segment yet
    segments thread, last sequence      many records in one block
    bases    thread, sequence           the state after a step, to begin reading at
    lanes    thread, lane               LaneRow
    index    thread, lane, step id,     the parent's id for a step, nothing for writes
             kind, sequence
    feed     commit number              thread, first and last sequence
    meta     name                       what the log itself is

Everything but `events`, `segments` and `meta` is derived from the events.  An engine gives transactions over these
tables (`Tables`) and is done; this module is where an append is checked, numbered, chained and indexed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from collections.abc import Sequence as Several
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final, Protocol

from stepwell import codec
from stepwell import format as fmt
from stepwell.errors import ConflictError, CorruptionError, FormatError, StepwellError
from stepwell.events import (
    Event,
    LaneOpened,
    Sequence,
    ThreadCopied,
    ThreadDeleted,
    ThreadOpened,
    ThreadPruned,
)
from stepwell.storage import (
    Append,
    Branches,
    Committed,
    Copy,
    Delete,
    Entry,
    FeedRow,
    Found,
    LaneRow,
    Operation,
    Outcome,
    Record,
    Rewrite,
    Seal,
    ThreadRow,
    pack_feed,
    pack_name,
    pack_row,
    unpack_feed,
    unpack_lane,
    unpack_name,
    unpack_thread,
)
from stepwell.storage.segments import EVENTS, SEGMENTS, Events, Held, pack

META: Final = "meta"
THREADS: Final = "threads"
NAMES: Final = "names"
BASES: Final = "bases"
LANES: Final = "lanes"
INDEX: Final = "index"
FEED: Final = "feed"
DERIVED: Final = (THREADS, NAMES, LANES, INDEX, FEED)
ALL: Final = (META, EVENTS, SEGMENTS, BASES, *DERIVED)

_THREAD_NAMES: Final = 0  # owner of thread ids among the names
PAGE_BYTES: Final = 1 << 24  # a page of records ends with the one that goes beyond this
_PAGE_ROWS: Final = 512  # rows held at once while a whole thread is removed or copied
_AFTER_ALL: Final = b"\xff" * 64
_AFTER_ALL_SEQUENCES: Final = 1 << 63


class Tables(Protocol):
    """Ordered tables of bytes within one transaction."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value, or None."""

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, in order."""

    def scan_back(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, in reverse order."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a row."""

    def delete(self, table: str, key: bytes) -> None:
        """Remove a row, if it is there."""

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        """The first key with start <= key < stop, without its value."""

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        """The last key with start <= key < stop, without its value."""


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that begin with `prefix`."""
    number = int.from_bytes(prefix) + 1
    return number.to_bytes(len(prefix)) if number >> (8 * len(prefix)) == 0 else _AFTER_ALL


class TableStorage(ABC):
    """The Storage protocol over an engine's tables."""

    def __init__(self) -> None:
        self._held = Held()

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Tables]:
        """A transaction that sees one moment and changes nothing."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Tables]:
        """A transaction that is durable when its block ends, and undone if the block raises."""

    def commit(self, operations: Several[Operation]) -> list[Outcome]:
        with self._writing() as tables:
            for operation in operations:
                if isinstance(operation, Append) and operation.placed is not None:
                    operation.placed(None)
            commit = _Commit(tables, self._held)
            outcomes = [commit.attempt(operation) for operation in operations]
            commit.finish()
        return outcomes

    def thread(self, thread_id: str) -> ThreadRow | None:
        with self._reading() as tables:
            return _thread(tables, thread_id)

    def threads(self, after: int, limit: int) -> list[tuple[str, ThreadRow]]:
        found: list[tuple[str, ThreadRow]] = []
        with self._reading() as tables:
            for _, data in tables.scan(THREADS, fmt.number_key(after + 1), _AFTER_ALL):
                if len(found) >= limit:
                    break
                row = unpack_thread(data)
                if not row.deleted:
                    found.append((_name(tables, _THREAD_NAMES, row.name_hash), row))
        return found

    def lane(self, thread: int, name: str) -> tuple[int, LaneRow] | None:
        with self._reading() as tables:
            number = _lane_number(tables, thread, name)
            return None if number is None else (number, _lane_row(tables, thread, number))

    def lanes(self, thread: int, after: int, limit: int) -> list[tuple[int, str, LaneRow]]:
        found: list[tuple[int, str, LaneRow]] = []
        with self._reading() as tables:
            start, stop = fmt.lane_key(thread, after + 1), prefix_end(fmt.number_key(thread))
            for key, data in tables.scan(LANES, start, stop):
                if len(found) >= limit:
                    break
                row = unpack_lane(data)
                found.append((fmt.read_lane_key(key)[1], _name(tables, thread, row.name_hash), row))
        return found

    def lane_names(self, thread: int, numbers: set[int]) -> dict[int, str]:
        with self._reading() as tables:
            return {
                number: _name(tables, thread, _lane_row(tables, thread, number).name_hash)
                for number in numbers
                if number and tables.get(LANES, fmt.lane_key(thread, number)) is not None
            }

    def read(self, thread: int, sequences: Several[int]) -> dict[int, bytes]:
        with self._reading() as tables:
            events = Events(tables, self._held)
            found = ((sequence, events.get(thread, sequence)) for sequence in sequences)
            return {sequence: record for sequence, record in found if record is not None}

    def branches(self, thread: int, sequences: Several[int], known: frozenset[int]) -> Branches:
        found = Branches({}, {})
        with self._reading() as tables:
            events = Events(tables, self._held)
            for sequence in sequences:
                following = sequence
                while following and following not in found.records and following not in known:
                    base_state = tables.get(BASES, fmt.event_key(thread, following))
                    if base_state is not None:
                        found.bases[following] = base_state
                        break
                    record = events.get(thread, following)
                    if record is None:
                        break
                    found.records[following] = record
                    base = _header(record, thread, following).base
                    # A base lies before what is based on it, or a damaged record could lead in a circle.
                    following = base if base < following else 0
        return found

    def scan(self, thread: int, after: int, before: int, limit: int, *, reverse: bool) -> list[Record]:
        found: list[Record] = []
        size = 0
        with self._reading() as tables:
            events = Events(tables, self._held)
            for placed in (events.scan_back if reverse else events.scan)(thread, after, before):
                if len(found) >= limit or size > PAGE_BYTES:
                    break
                found.append(placed)
                size += len(placed.record)
        return found

    def steps(self, thread: int, lane: int | None, before: int, limit: int) -> list[Record]:
        found: list[Record] = []
        with self._reading() as tables:
            size = 0
            for sequence, record in self._steps(tables, thread, lane, before):
                if len(found) >= limit or size > PAGE_BYTES:
                    break
                found.append((sequence, record))
                size += len(record)
        return found

    def _steps(self, tables: Tables, thread: int, lane: int | None, before: int) -> Iterator[Record]:
        events = Events(tables, self._held)
        if lane is None:
            for sequence, record in events.scan_back(thread, 0, before or _AFTER_ALL_SEQUENCES):
                # Verified, or a damaged step could pass for something that is not listed.
                header = codec.header_of(thread, sequence, record)
                if header.kind == fmt.KIND_STEP and not header.flags & (fmt.FLAG_REPLACES | fmt.FLAG_HIDDEN):
                    yield sequence, record
            return
        data = tables.get(LANES, fmt.lane_key(thread, lane))
        if data is None:
            raise ConflictError(
                f"lane {lane} of thread {thread} was pruned or deleted while it was read; read it again",
                thread=str(thread),
                expected=lane,
                actual=None,
            )
        following = unpack_lane(data).tip
        if before:
            # A page ends at a step of this lane: going on from there saves the walk from the tip.
            record_before = events.get(thread, before)
            if record_before is not None:
                header = _header(record_before, thread, before)
                shown = not header.flags & (fmt.FLAG_REPLACES | fmt.FLAG_HIDDEN)
                if header.kind == fmt.KIND_STEP and header.lane == lane and shown:
                    following = header.previous
        while following:
            record = _event(events, thread, following)
            if not before or following < before:
                yield following, record
            previous = _header(record, thread, following).previous
            following = previous if previous < following else 0

    def find(self, thread: int, lane: int, step_keys: Several[bytes]) -> list[Found]:
        with self._reading() as tables:
            return [_find(tables, thread, lane, step_key) for step_key in step_keys]

    def ancestry(self, thread: int, lane: int, step_key: bytes) -> list[tuple[bytes, Found]]:
        found: list[tuple[bytes, Found]] = []
        seen = {step_key}
        with self._reading() as tables:
            following = _find(tables, thread, lane, step_key).parent_key
            # A step may have been committed again under its own descendant: each is visited once.
            while following and following not in seen:
                seen.add(following)
                step = _find(tables, thread, lane, following)
                if not step.step:
                    break
                found.append((following, step))
                following = step.parent_key
        return found

    def feed(self, after: int, limit: int) -> list[FeedRow]:
        found: list[FeedRow] = []
        with self._reading() as tables:
            for key, data in tables.scan(FEED, fmt.number_key(after + 1), _AFTER_ALL):
                if len(found) >= limit:
                    break
                found.append(unpack_feed(fmt.read_number(key), data))
        return found

    def derived(self) -> Iterator[tuple[str, bytes, bytes]]:
        for table in DERIVED:
            start = b""
            while True:
                page: list[tuple[bytes, bytes]] = []
                with self._reading() as tables:
                    for row in tables.scan(table, start, _AFTER_ALL):
                        page.append(row)
                        if len(page) == _PAGE_ROWS:
                            break
                for key, value in page:
                    yield table, key, value
                if len(page) < _PAGE_ROWS:
                    break
                start = page[-1][0] + b"\0"

    def event_threads(self) -> list[int]:
        found: list[int] = []
        with self._reading() as tables:
            while True:
                start = fmt.event_key(found[-1] + 1 if found else 0, 0)
                keys = [tables.next_key(table, start, _AFTER_ALL) for table in (EVENTS, SEGMENTS)]
                numbers = [fmt.read_event_key(key)[0] for key in keys if key is not None]
                if not numbers:
                    return found
                found.append(min(numbers))

    def segments(self, thread: int) -> list[tuple[int, int, int]]:
        with self._reading() as tables:
            return list(Events(tables, self._held).sealed(thread))

    def bases(self, thread: int) -> dict[int, bytes]:
        prefix = fmt.number_key(thread)
        with self._reading() as tables:
            rows = tables.scan(BASES, prefix, prefix_end(prefix))
            return {fmt.read_event_key(key)[1]: data for key, data in rows}


class _Commit:
    """One group on its way into the tables: rows are read once, changed in memory, and written at the end."""

    def __init__(self, tables: Tables, held: Held) -> None:
        self._tables = tables
        self._events = Events(tables, held)
        self._threads: dict[str, ThreadRow | None] = {}
        self._changed: dict[int, ThreadRow] = {}
        self._lanes: dict[tuple[int, int], LaneRow] = {}
        self._lane_numbers: dict[tuple[int, str], int] = {}
        self._commit = _last_number(tables, FEED)
        self._changing = False

    def attempt(self, operation: Operation) -> Outcome:
        """Carry out one operation.  One that is refused has changed nothing; one that fails halfway is raised."""
        self._changing = False
        try:
            if isinstance(operation, Append):
                return self._append(operation)
            if isinstance(operation, Delete):
                return self._delete(operation)
            if isinstance(operation, Seal):
                return self._seal(operation)
            if isinstance(operation, Rewrite):
                row = self._thread(operation.thread_id)
                decided = None if row is None else operation.decide(row)
                return Committed(0, 0, ()) if decided is None else self.attempt(decided)
            return self._copy(operation)
        except StepwellError as error:
            if self._changing:
                raise
            return error

    def finish(self) -> None:
        for number, row in self._changed.items():
            self._tables.put(THREADS, fmt.number_key(number), pack_row(row))
        self._changed.clear()
        for (thread, lane), lane_row in self._lanes.items():
            self._tables.put(LANES, fmt.lane_key(thread, lane), pack_row(lane_row))
        self._lanes.clear()
        self._lane_numbers.clear()
        self._threads.clear()

    def _begin(self) -> None:
        """From here on the tables change."""
        self._changing = True
        self._commit += 1

    # --- append ---

    def _append(self, operation: Append) -> Committed:
        row = self._thread(operation.thread_id)
        self._check(operation, row)
        entries = operation.entries(row.number if row else 0, row.first if row else 0)
        if not entries:
            return Committed(row.number if row else 0, 0, ())
        for entry in entries:
            self._check_base(operation, row, entry)
        self._begin()
        if row is None:
            row = self._open(operation.thread_id)
            self._record(row, 0, _entry(ThreadOpened(operation.thread_id), None, entries[0].created_at))
            first = row.last
        else:
            if operation.restart:
                self._clear(row)
            first = row.last + 1
        sequences = tuple(self._add(row, entry) for entry in entries)
        self._feed(row, first)
        loose = row.last - max(row.sealed, row.first - 1)
        committed = Committed(row.number, self._commit, sequences, loose, row.loose_bytes)
        if operation.placed is not None:
            operation.placed(committed)
        return committed

    def _check(self, operation: Append, row: ThreadRow | None) -> None:
        head = row.last if row else 0
        if operation.expected_head is not None and operation.expected_head != head:
            raise ConflictError(
                f"thread {operation.thread_id!r} is at sequence {head}, not at {operation.expected_head}: "
                "somebody else appended to it; read it again and decide anew",
                thread=operation.thread_id,
                expected=operation.expected_head,
                actual=head,
            )
        if operation.incarnation and (row is None or row.number != operation.incarnation):
            raise _gone(operation.thread_id, "the thread was deleted")

    def _check_base(self, operation: Append, row: ThreadRow | None, entry: Entry) -> None:
        if operation.restart:
            return  # its entries refer to each other: with `expected_head` the caller knows where they will stand
        if not entry.base:
            return
        record = None if row is None else self._events.get(row.number, entry.base)
        if row is None or record is None:
            raise _gone(operation.thread_id, f"there is no event {entry.base} to base a step on")
        header = _header(record, row.number, entry.base)
        if header.kind != fmt.KIND_STEP or header.lane != self._lane_number(row.number, entry.lane or ""):
            raise _gone(operation.thread_id, f"event {entry.base} is not a step of lane {entry.lane!r}")

    def _add(self, row: ThreadRow, entry: Entry) -> int:
        if entry.lane is None:
            return self._record(row, 0, entry)
        lane = self._lane_number(row.number, entry.lane)
        if lane is None:
            row.lanes += 1
            lane = row.lanes
            name = entry.lane.encode()
            name_key = fmt.name_key(row.number, name)
            self._tables.put(NAMES, name_key, pack_name(lane, name))
            self._lane_numbers[row.number, entry.lane] = lane
            self._lanes[row.number, lane] = LaneRow(name_key[8:])
            self._record(row, lane, _entry(LaneOpened(entry.lane), None, entry.created_at))
        if entry.kind == fmt.KIND_STEP:
            return self._step(row, lane, entry)
        sequence = self._record(row, lane, entry)
        if entry.kind == fmt.KIND_WRITES:
            row.writes += 1
            key = fmt.index_key(row.number, lane, entry.step_key, fmt.INDEX_WRITES, sequence)
            self._tables.put(INDEX, key, b"")
        return sequence

    def _step(self, row: ThreadRow, lane: int, entry: Entry) -> int:
        lane_row = self._lane_row(row.number, lane)
        if entry.hidden:
            sequence = self._record(row, lane, entry, fmt.FLAG_HIDDEN)
            kind = fmt.INDEX_HIDDEN_STEP
        else:
            kind = fmt.INDEX_STEP
            before = _find(self._tables, row.number, lane, entry.step_key)
            if before.step and not before.hidden:
                sequence = self._record(row, lane, entry, fmt.FLAG_REPLACES, before.original)
                lane_row.replaced += 1
                if before.original == lane_row.tip:
                    lane_row.head = sequence
            else:
                sequence = self._record(row, lane, entry, 0, lane_row.tip)
                lane_row.head = lane_row.tip = sequence
                lane_row.steps += 1
                row.steps += 1
        key = fmt.index_key(row.number, lane, entry.step_key, kind, sequence)
        self._tables.put(INDEX, key, entry.parent_key)
        return sequence

    def _record(
        self,
        row: ThreadRow,
        lane: int,
        entry: Entry,
        flags: int = 0,
        previous: int = 0,
        sealing: list[bytes] | None = None,
    ) -> int:
        sequence = row.last + 1
        header, row.chain = fmt.stamp(
            row.number,
            sequence,
            entry.kind,
            flags,
            entry.form,
            lane,
            self._commit,
            entry.created_at,
            entry.base,
            previous,
            entry.digest,
            row.chain,
        )
        record = header + entry.body
        if sealing is None:
            self._tables.put(EVENTS, fmt.event_key(row.number, sequence), record)
            row.loose_bytes += len(record)
            row.stored_bytes += len(record)
        else:
            sealing.append(record)
        row.last = sequence
        row.created_at = row.created_at or entry.created_at
        row.updated_at = entry.created_at
        return sequence

    def _feed(self, row: ThreadRow, first: int) -> None:
        self._changed[row.number] = row
        feed = FeedRow(self._commit, row.number, first, row.last)
        self._tables.put(FEED, fmt.number_key(self._commit), pack_feed(feed))

    # --- delete and copy ---

    def _delete(self, operation: Delete) -> Committed:
        row = self._thread(operation.thread_id)
        if row is None:
            return Committed(0, 0, ())
        self._begin()
        gone = _entry(ThreadDeleted(Sequence(row.last), row.chain), None, operation.created_at)
        self._clear(row)
        self._tables.delete(NAMES, fmt.name_key(_THREAD_NAMES, operation.thread_id.encode()))
        row.deleted, row.name_hash = True, b""
        sequence = self._record(row, 0, gone)
        self._feed(row, sequence)
        self._threads[operation.thread_id] = None
        return Committed(row.number, self._commit, (sequence,))

    def _copy(self, operation: Copy) -> Committed:
        source = self._thread(operation.source_id)
        if source is None:
            return Committed(0, 0, ())
        existing = self._thread(operation.target_id)
        if existing is not None:
            raise ConflictError(
                f"thread {operation.target_id!r} exists already; delete it first or copy to another id",
                thread=operation.target_id,
                expected=0,
                actual=existing.last,
            )
        self._begin()
        row = self._open(operation.target_id)
        row.first, row.last = source.first, source.first - 1
        opened: Event = ThreadOpened(operation.target_id)
        if source.first > 1:
            opened = ThreadPruned(operation.target_id, Sequence(source.first - 1), fmt.CHAIN_SEED, operation.created_at)
        self._copy_events(source, row, _entry(opened, None, operation.created_at))
        self._copy_derived(source.number, row.number)
        row.lanes, row.steps, row.writes = source.lanes, source.steps, source.writes
        copied = ThreadCopied(operation.source_id, Sequence(source.last))
        sequence = self._record(row, 0, _entry(copied, None, operation.created_at))
        self._feed(row, row.first)
        return Committed(row.number, self._commit, (sequence,))

    def _copy_events(self, source: ThreadRow, row: ThreadRow, opened: Entry) -> None:
        """Stamp every record anew for the target; what was sealed is sealed again, segment by segment."""
        ends = {last for _, last, _ in self._events.sealed(source.number)}
        sealing: list[bytes] = []
        after = source.first - 1
        while after < source.last:
            page = [*islice(self._events.scan(source.number, after, source.last + 1), _PAGE_ROWS)]
            for sequence, record in page:
                header, body = codec.open_record(source.number, sequence, record)
                digest, stored = fmt.body_digest(body), record[fmt.HEADER_BYTES :]
                entry = Entry(None, header.kind, stored, header.form, digest, header.created_at, header.base)
                if sequence == source.first:
                    header, entry = header._replace(lane=0, flags=0, previous=0), opened
                into = sealing if sequence <= source.sealed else None
                if into is not None and entry.form != fmt.FORM_PLAIN:
                    entry = entry._replace(body=codec.decompress(entry.body), form=fmt.FORM_PLAIN)
                self._record(row, header.lane, entry, header.flags, header.previous, into)
                if sequence in ends:
                    segment = pack(row.number, row.last - len(sealing) + 1, sealing)
                    self._tables.put(SEGMENTS, fmt.event_key(row.number, row.last), segment)
                    row.sealed = row.last
                    row.stored_bytes += len(segment)
                    sealing.clear()
            after = page[-1].sequence

    # --- seal ---

    def _seal(self, operation: Seal) -> Committed:
        row = self._thread(operation.thread_id)
        nothing = Committed(0, 0, ())
        if row is None or row.number != operation.number:
            return nothing
        if max(row.sealed, row.first - 1) + 1 != operation.first or operation.last > row.last:
            return nothing
        self._changing = True
        for sequence in range(operation.first, operation.last + 1):
            key = fmt.event_key(row.number, sequence)
            record = self._tables.get(EVENTS, key)
            if record is None:
                raise CorruptionError("the event is missing", thread=operation.thread_id, sequence=sequence)
            self._tables.delete(EVENTS, key)
            row.loose_bytes -= len(record)
            row.stored_bytes -= len(record)
        self._tables.put(SEGMENTS, fmt.event_key(row.number, operation.last), operation.segment)
        row.sealed = operation.last
        row.stored_bytes += len(operation.segment)
        for sequence, base in operation.bases.items():
            self._tables.put(BASES, fmt.event_key(row.number, sequence), base)
        self._changed[row.number] = row
        return Committed(row.number, 0, ())

    def _copy_derived(self, source: int, target: int) -> None:
        self._flush_lanes()
        old, new = fmt.number_key(source), fmt.number_key(target)
        for table in (INDEX, LANES):
            for key, value in self._pages(table, old, prefix_end(old)):
                self._tables.put(table, new + key[8:], value)
        for key, value in self._pages(NAMES, old, prefix_end(old)):
            self._tables.put(NAMES, new + key[8:], value)

    def _clear(self, row: ThreadRow) -> None:
        """Remove all events of a thread and what was derived from them."""
        self._flush_lanes()
        commits: set[int] = set()
        owner = fmt.number_key(row.number)
        try:
            for sequence, record in self._events.scan(row.number, row.first - 1, row.last + 1):
                commits.add(codec.header_of(row.number, sequence, record).commit)
        except (CorruptionError, FormatError):
            # A damaged thread can still be removed, but its records do not say which commits it had.
            commits.update(self._commits_of(row.number))
        for commit in commits:
            self._tables.delete(FEED, fmt.number_key(commit))
        for table in (EVENTS, SEGMENTS, BASES, INDEX, LANES, NAMES):
            while (doomed := self._tables.next_key(table, owner, prefix_end(owner))) is not None:
                self._tables.delete(table, doomed)
        row.first = row.last + 1
        row.sealed = row.loose_bytes = 0
        row.lanes = row.steps = row.writes = row.stored_bytes = row.created_at = 0

    def _commits_of(self, thread: int) -> Iterator[int]:
        for key, data in self._pages(FEED, b"", _AFTER_ALL):
            if unpack_feed(fmt.read_number(key), data).thread == thread:
                yield fmt.read_number(key)

    def _pages(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """A scan that may be interleaved with changes, and holds one page at a time."""
        while True:
            page: list[tuple[bytes, bytes]] = []
            size = 0
            for row in self._tables.scan(table, start, stop):
                page.append(row)
                size += len(row[1])
                if len(page) == _PAGE_ROWS or size > PAGE_BYTES:
                    break
            if not page:
                return
            yield from page
            start = page[-1][0] + b"\0"

    # --- rows ---

    def _open(self, thread_id: str) -> ThreadRow:
        number = max(_last_number(self._tables, THREADS), max(self._changed, default=0)) + 1
        name = thread_id.encode()
        name_key = fmt.name_key(_THREAD_NAMES, name)
        self._tables.put(NAMES, name_key, pack_name(number, name))
        row = ThreadRow(number, name_key[8:])
        self._threads[thread_id] = row
        self._changed[number] = row
        return row

    def _thread(self, thread_id: str) -> ThreadRow | None:
        if thread_id not in self._threads:
            self._threads[thread_id] = _thread(self._tables, thread_id)
        return self._threads[thread_id]

    def _lane_number(self, thread: int, name: str) -> int | None:
        number = self._lane_numbers.get((thread, name))
        if number is None:
            number = _lane_number(self._tables, thread, name)
            if number is not None:
                self._lane_numbers[thread, name] = number
        return number

    def _lane_row(self, thread: int, lane: int) -> LaneRow:
        if (thread, lane) not in self._lanes:
            self._lanes[thread, lane] = _lane_row(self._tables, thread, lane)
        return self._lanes[thread, lane]

    def _flush_lanes(self) -> None:
        for (thread, lane), row in self._lanes.items():
            self._tables.put(LANES, fmt.lane_key(thread, lane), pack_row(row))
        self._lanes.clear()
        self._lane_numbers.clear()


def _gone(thread_id: str, why: str) -> ConflictError:
    return ConflictError(
        f"the append to thread {thread_id!r} refers to what is not there: {why}; read the thread again",
        thread=thread_id,
        expected="what the append was based on",
        actual=None,
    )


def _entry(event: Event, lane: str | None, created_at: int) -> Entry:
    body = codec.encode(event)
    return Entry(lane, body.kind, body.data, body.form, body.digest, created_at)


def _header(record: bytes, thread: int, sequence: int) -> fmt.Header:
    try:
        return fmt.read_header(record)
    except ValueError as error:
        raise CorruptionError(str(error), thread=thread, sequence=sequence) from error


def _event(events: Events, thread: int, sequence: int) -> bytes:
    record = events.get(thread, sequence)
    if record is None:
        raise CorruptionError("the event is missing", thread=thread, sequence=sequence)
    return record


def _thread(tables: Tables, thread_id: str) -> ThreadRow | None:
    name = thread_id.encode()
    data = tables.get(NAMES, fmt.name_key(_THREAD_NAMES, name))
    if data is None:
        return None
    number, found = unpack_name(data)
    row = tables.get(THREADS, fmt.number_key(number))
    if row is None or found != thread_id:
        raise CorruptionError("the catalogue does not match the names", thread=thread_id)
    return unpack_thread(row)


def _lane_number(tables: Tables, thread: int, name: str) -> int | None:
    data = tables.get(NAMES, fmt.name_key(thread, name.encode()))
    if data is None:
        return None
    number, found = unpack_name(data)
    if found != name:
        raise CorruptionError(f"the name of lane {number} does not match its hash", thread=thread)
    return number


def _lane_row(tables: Tables, thread: int, lane: int) -> LaneRow:
    data = tables.get(LANES, fmt.lane_key(thread, lane))
    if data is None:
        raise CorruptionError(f"lane {lane} is missing", thread=thread)
    return unpack_lane(data)


def _name(tables: Tables, owner: int, name_hash: bytes) -> str:
    data = tables.get(NAMES, fmt.number_key(owner) + name_hash)
    if data is None:
        raise CorruptionError("a name is missing", thread=owner or None)
    return unpack_name(data)[1]


def _find(tables: Tables, thread: int, lane: int, step_key: bytes) -> Found:
    prefix = fmt.index_prefix(thread, lane, step_key)
    steps: list[int] = []
    hidden: list[int] = []
    writes: list[int] = []
    parents: dict[int, bytes] = {}
    for key, value in tables.scan(INDEX, prefix, prefix_end(prefix)):
        kind, sequence = fmt.read_index_tail(key)
        if kind == fmt.INDEX_WRITES:
            writes.append(sequence)
        else:
            (hidden if kind == fmt.INDEX_HIDDEN_STEP else steps).append(sequence)
            parents[sequence] = value
    shown = steps or hidden
    if not shown:
        return Found(0, 0, False, b"", tuple(writes))
    return Found(shown[-1], shown[0], not steps, parents[shown[-1]], tuple(writes))


def _last_number(tables: Tables, table: str) -> int:
    row = next(tables.scan_back(table, b"", _AFTER_ALL), None)
    return 0 if row is None else fmt.read_number(row[0])
