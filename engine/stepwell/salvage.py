"""What can be proven of a damaged log, put into the tables of a new one.

    1. The rows that the trees of the file lead to are taken over as they are: each record once its checksum is right
       for its thread and sequence, each segment once all of it is.
    2. A thread is whole if its events go, without a gap, from a beginning to the end that the catalogue states.  For
       threads that are not, all other leaves of the file are looked through (`Remains`).  Out of those a record is
       taken only if it belongs to the log beyond doubt:
           it stands on a live page;
           or the event after it is in the log, and has the hash chain that goes on from it;
           or the catalogue states its sequence and its hash chain as the thread's last;
           or, if the file does not say for sure what its last commit was, it goes on from the last event of its thread.
       Never one before the beginning of its thread, which was pruned or deleted, nor one beyond its stated end.

Rows of derived tables are evidence and no more: what they say is believed where a hash or another table agrees.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby, islice, product
from typing import Final

import msgspec

from stepwell import codec
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import CorruptionError, FormatError, NewerFormatError, StepwellError
from stepwell.events import ThreadDeleted, ThreadOpened, ThreadPruned
from stepwell.storage import Group, RawStorage, ThreadRow, unpack_lane, unpack_name, unpack_thread
from stepwell.storage.checksums import plain_value
from stepwell.storage.feed import read_feed
from stepwell.storage.lmdb.remains import Remains
from stepwell.storage.segments import cut, pack
from stepwell.storage.tables import (
    EVENTS,
    FEED,
    IDS,
    INDEX,
    LANES,
    META,
    NAMES,
    RECENT,
    SEGMENTS,
    THREAD_NAMES,
    THREADS,
)

_END: Final = 1 << 62
_PAGE_EVENTS: Final = 128
_SURVEYED_EVENTS: Final = 1024  # at once: a segment is unpacked for each page of it
_BATCH_ROWS: Final = 4096
_BATCH_BYTES: Final = 1 << 24
_MOST_TRIED: Final = 64  # ways to put a segment together
_BEGINNINGS: Final = (fmt.KIND_THREAD_OPENED, fmt.KIND_THREAD_PRUNED, fmt.KIND_THREAD_DELETED)
_CHAIN_OFFSET: Final = fmt.HEADER_BYTES - fmt.CHAIN_BYTES

_EVENT_KEY_BYTES: Final = len(fmt.event_key(0, 0))
_PART_KEY_BYTES: Final = len(fmt.part_key(0, 0, 0))
_NAME_KEY_BYTES: Final = len(fmt.name_key(0, b""))
_LANE_KEY_BYTES: Final = len(fmt.lane_key(0, 0))
_KEY_LENGTHS: Final = frozenset((_EVENT_KEY_BYTES, _PART_KEY_BYTES, _NAME_KEY_BYTES))

_META_FORMAT: Final = b"format"

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much of it."""

StoredRow = tuple[str, bytes, bytes | None]
"""Table, key and value, for `RawStorage.restore`."""


def put(storage: RawStorage, rows: Iterable[StoredRow]) -> None:
    """Set rows of tables as they are, as many at once as memory should hold."""
    batch: list[StoredRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[2] or b"")
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            storage.restore(batch)
            batch, size = [], 0
    if batch:
        storage.restore(batch)


class Proven:
    """What is proven of one thread.

    Attributes:
        ranges: First and last sequences of events without a gap between, in order.
        begins: Whether the first of all is one that a thread can begin with.
        is_tombstone: Whether it says that the thread was deleted.
        thread_id: The name that it says; None if it says none, or is not there.
        created_at: Time of the first event; 0 if there is none.
        chain: The hash chain after the last event; empty if that is not known.
        mended: How many hash chains were wrong.
        found: How many events no table led to.
    """

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.begins = False
        self.is_tombstone = False
        self.thread_id: str | None = None
        self.created_at = 0
        self.chain = b""
        self.mended = 0
        self.found = 0

    @property
    def events(self) -> int:
        """How many there are."""
        return sum(last - first + 1 for first, last in self.ranges)

    @property
    def first(self) -> int:
        """Sequence of the first event; 0 if there is none."""
        return self.ranges[0][0] if self.ranges else 0

    @property
    def last(self) -> int:
        """Sequence of the last event; 0 if there is none."""
        return self.ranges[-1][1] if self.ranges else 0

    def add(self, sequence: int) -> bool:
        """Note the next event; returns whether it follows the one before it."""
        follows = bool(self.ranges) and sequence == self.last + 1
        if follows:
            self.ranges[-1] = (self.ranges[-1][0], sequence)
        else:
            self.ranges.append((sequence, sequence))
        return follows

    def holds(self, sequence: int) -> bool:
        """Whether an event is there."""
        index = bisect_right(self.ranges, (sequence, _END)) - 1
        return index >= 0 and sequence <= self.ranges[index][1]

    def missing(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges between two sequences, both included, that are not there."""
        for start, end in self.ranges:
            if first < start:
                yield first, min(start - 1, last)
            first = max(first, end + 1)
        if first <= last:
            yield first, last


class _Format(msgspec.Struct):
    """What the table `meta` says of who can read the log."""

    readable_from: int


class _Found:
    """Rows of one thread beside those that are proven, by sequence; each value with whether it is live."""

    def __init__(self) -> None:
        self.records: dict[int, dict[bytes, bool]] = {}
        self.parts: dict[int, dict[int, dict[bytes, bool]]] = {}

    def add(self, key: bytes, value: bytes, *, is_live: bool) -> None:
        _, sequence = fmt.read_event_key(key)
        if len(key) == _EVENT_KEY_BYTES:
            values = self.records.setdefault(sequence, {})
        else:
            part = int.from_bytes(key[_EVENT_KEY_BYTES:])
            values = self.parts.setdefault(sequence, {}).setdefault(part, {})
        values[value] = is_live or values.get(value, False)


class Salvage:
    """Puts the events that can be proven into the tables of a new log, and knows what is missing.

    Attributes:
        held: What is proven of each thread, by number; threads that are only known to have been there too.

    Args:
        remains: What is left of the damaged log.
        storage: The new log, in which there is nothing yet.  It has no derived rows when this is done.
        progress: Told how far it is.
    """

    def __init__(self, remains: Remains, storage: RawStorage, progress: Progress) -> None:
        self.held: dict[int, Proven] = {}
        self._remains = remains
        self._storage = storage
        self._progress = progress
        self._rows: dict[int, ThreadRow] = {}
        self._ends: dict[int, int] = {}  # by the feed
        self._failed: dict[int, dict[int, str]] = {}  # what is wrong with what stands at a sequence
        self._found: dict[int, _Found] = {}
        self._readable_from = 0
        self._has_newer = False
        self._names: dict[int, str] = {}
        self._lane_names: dict[int, dict[bytes, bytes]] = {}  # rows of lanes' names that no table led to

    def collect(self) -> None:
        """Find and prove all that there is.

        Raises:
            NewerFormatError: A newer version of the library wrote the log.
        """
        self._read_tables()
        numbers = sorted({*self._storage.event_threads(), *self._rows})
        for done, number in enumerate(numbers):
            self._progress("checking threads", done, len(numbers))
            self.held[number] = self._survey(number)
        if self._has_newer and self._readable_from > fmt.FORMAT_VERSION:
            # Either alone may be a damaged byte.
            raise NewerFormatError(
                f"{self._remains.path!r} is of format {self._readable_from}, this library reads up to "
                f"{fmt.FORMAT_VERSION}; upgrade stepwell"
            )
        if self._remains.by_table or self._remains.is_doubtful or not all(map(self.is_whole, numbers)):
            self._read_strays()
            for number in sorted(self._found):
                self._complete(number)
        for number, held in list(self.held.items()):
            if not held.ranges and number not in self._rows and number not in self._ends:
                del self.held[number]  # nothing but a key says that there was such a thread

    def row(self, number: int) -> ThreadRow | None:
        """What the catalogue says of a thread."""
        return self._rows.get(number)

    def end(self, number: int) -> int:
        """The last sequence that a thread is known to have had."""
        row = self._rows.get(number)
        known = max(self.held[number].last if number in self.held else 0, self._ends.get(number, 0))
        if row is None or row.last <= known or (number in self._ends and FEED not in self._remains.by_table):
            return known
        return row.last

    def is_whole(self, number: int) -> bool:
        """Whether all events of a thread are there."""
        held = self.held[number]
        if len(held.ranges) != 1 or not held.begins:
            return False
        row = self._rows.get(number)
        return held.last == self.end(number) or (row is not None and held.chain == row.chain)

    def losses(self, number: int) -> Iterator[tuple[int, int, str]]:
        """What is missing of a thread: first and last sequence, and why."""
        held, row = self.held[number], self._rows.get(number)
        first = held.first if held.begins else 1 if row is None else min(row.first, held.first or row.first)
        failed = self._failed.get(number, {})
        for start, end in held.missing(first, self.end(number)):
            reasons = dict.fromkeys(reason for at, reason in sorted(failed.items()) if start <= at <= end)
            why = "; ".join([*islice(reasons, 3)]) or "nothing that is left holds it"
            yield start, end, why if held.begins or row is not None or start > 1 else f"{why}, or it was pruned before"

    def name(self, number: int) -> str | None:
        """The id of a thread, from its first event or from the table of names; None if it is lost."""
        return self.held[number].thread_id or self._names.get(number)

    def find_names(self, numbers: set[int]) -> None:
        """Look for the ids of threads in the table of names."""
        for key, value in self._remains.rows_again(NAMES):
            self._note_name(key, value, numbers)

    def lane_names(self, number: int) -> dict[int, str]:
        """The names of a thread's lanes, as far as the tables say them or lead to them."""
        owner = fmt.number_key(number)
        found: dict[int, str] = {}
        for key, value in self._remains.rows_again(NAMES):
            named = _named(number, key, value) if key.startswith(owner) else None
            if named is not None:
                found[named[0]] = named[1]
        hashes = {key[8:]: value for key, value in self._lane_names.get(number, {}).items()}
        for key, value in self._remains.rows_again(LANES):
            if key.startswith(owner) and len(key) == _LANE_KEY_BYTES:
                with suppress(CorruptionError):
                    stray = hashes.get(unpack_lane(value, number).name_hash)
                    if stray is not None:
                        found.setdefault(fmt.read_lane_key(key)[1], unpack_name(stray)[1])
        return found

    # --- what the trees lead to ---

    def _read_tables(self) -> None:
        for key, value in self._remains.rows(THREADS):
            try:
                number = int.from_bytes(key)
                row = unpack_thread(value, number)
                if row.last < _END:  # what is beyond it is no sequence
                    self._rows[number] = row
            except StepwellError as error:
                self._remains.note(THREADS, _reason(error))
        self._put(self._proven(self._remains.rows(EVENTS)))
        parts = self._remains.rows(SEGMENTS)
        self._put((SEGMENTS, key, value) for key, value in parts if _is_part(key))
        for key, value in self._remains.rows(FEED):
            try:
                for append in read_feed(key, value):
                    self._ends[append.thread] = max(append.last, self._ends.get(append.thread, 0))
            except (CorruptionError, ValueError) as error:
                self._remains.note(FEED, f"a row of the table {FEED} cannot be read: {error}")
        for table in (META, NAMES, LANES, INDEX, RECENT, IDS):
            # Mostly so that their pages are known not to be strays.
            for key, value in self._remains.rows(table):
                if (table, key) == (META, _META_FORMAT):
                    with suppress(msgspec.MsgspecError):
                        self._readable_from = msgspec.msgpack.decode(value, type=_Format).readable_from

    def _proven(self, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[StoredRow]:
        for key, value in rows:
            if len(key) == _EVENT_KEY_BYTES:
                thread, sequence = fmt.read_event_key(key)
                try:
                    codec.open_record(thread, sequence, value)
                except (CorruptionError, FormatError) as error:
                    self._fail(thread, sequence, error)
                else:
                    yield EVENTS, key, value

    def _fail(self, thread: int, sequence: int, error: StepwellError) -> None:
        """Note what is wrong with what stands somewhere."""
        self._failed.setdefault(thread, {})[sequence] = _reason(error)
        self._has_newer |= isinstance(error, NewerFormatError)

    def _put(self, rows: Iterable[StoredRow]) -> None:
        put(self._storage, rows)

    # --- one thread ---

    def _survey(self, number: int) -> Proven:
        """What the new log holds of a thread, made as it must be on the way.

        Segments that are not whole are taken out, wrong hash chains of loose records are put right, and what stands
        before a beginning, and so was there before that, is removed.
        """
        held = Proven()
        held.found = self.held[number].found if number in self.held else 0
        chain = b""  # not known
        after = 0
        while page := self._storage.survey(number, after, _SURVEYED_EVENTS):
            mended: list[StoredRow] = []
            for sequence, loose_bytes, record in page:
                after = sequence
                if not isinstance(record, Record):
                    self._fail(number, sequence, record)
                    self._take_out(number, sequence)
                    continue
                if not held.add(sequence):
                    chain = b""
                header = record.header
                if header.kind in _BEGINNINGS:
                    chain = self._begin(number, held, record)
                held.created_at = held.created_at or header.created_at
                if chain:
                    chain = fmt.chain_after(number, sequence, header, fmt.body_digest(record.body), chain)
                if chain and loose_bytes and chain != header.chain:
                    held.mended += 1
                    mended.append(self._mended(number, sequence, chain))
                chain = chain or header.chain
            if mended:
                self._storage.restore(mended)
        held.chain = chain
        return held

    def _begin(self, number: int, held: Proven, record: Record) -> bytes:
        """Note what a beginning says; returns the hash chain before it."""
        event = codec.decode(number, record)
        assert isinstance(event, ThreadOpened | ThreadPruned | ThreadDeleted)
        if record.sequence != held.first:
            self._put((table, key, None) for table, key in self._keys(number, 0, record.sequence))
            held.ranges[:] = [(record.sequence, record.sequence)]
        held.begins = True
        held.is_tombstone = isinstance(event, ThreadDeleted)
        held.thread_id = None if isinstance(event, ThreadDeleted) else event.thread_id
        held.created_at = record.header.created_at
        return fmt.CHAIN_SEED if isinstance(event, ThreadOpened) else event.chain

    def _mended(self, number: int, sequence: int, chain: bytes) -> StoredRow:
        [(key, stored)] = self._storage.stored(
            EVENTS, fmt.event_key(number, sequence), fmt.event_key(number, sequence + 1)
        )
        return EVENTS, key, stored[:_CHAIN_OFFSET] + chain + stored[fmt.HEADER_BYTES :]

    def _keys(self, number: int, start: int, stop: int) -> list[tuple[str, bytes]]:
        """Where the events from one sequence up to another, which is excluded, stand."""
        edges = fmt.event_key(number, start), fmt.event_key(number, stop)
        return [(table, key) for table in (EVENTS, SEGMENTS) for key, _ in self._storage.stored(table, *edges)]

    def _take_out(self, number: int, last: int) -> None:
        """Remove a segment that is not whole; its parts may be of use yet."""
        parts = list(self._storage.stored(SEGMENTS, fmt.event_key(number, last), fmt.event_key(number, last + 1)))
        found = self._found.setdefault(number, _Found())
        for key, value in parts:
            found.add(key, value, is_live=True)
        self._storage.restore((SEGMENTS, key, None) for key, _ in parts)

    # --- what no tree leads to ---

    def _read_strays(self) -> None:
        nameless = {number for number, held in self.held.items() if held.thread_id is None}
        for key, value, is_live in self._remains.strays(_KEY_LENGTHS):
            if len(key) == _NAME_KEY_BYTES:
                try:
                    value = plain_value(NAMES, key, value)
                except CorruptionError:
                    continue
                self._note_name(key, value, nameless)
                owner = fmt.read_number(key[:8])
                if owner in self.held and not self.is_whole(owner) and _named(owner, key, value) is not None:
                    self._lane_names.setdefault(owner, {})[key] = value
            else:
                number, sequence = fmt.read_event_key(key)
                if self._is_wanted(number, sequence):
                    self._found.setdefault(number, _Found()).add(key, value, is_live=is_live)

    def _is_wanted(self, number: int, sequence: int) -> bool:
        """Whether an event may be one that is missing."""
        doubtful = self._remains.is_doubtful
        held = self.held.get(number)
        if sequence >= _END:
            return False
        if held is None:
            # A thread that is in the catalogue is known; who is in none is new, or was in a part of it that is lost.
            return THREADS in self._remains.by_table or (doubtful and number > max(self.held, default=0))
        if held.holds(sequence) or (held.begins and sequence < held.first):
            return False
        row = self._rows.get(number)
        if row is not None and sequence < row.first and not held.begins:
            return False
        return doubtful or sequence <= self.end(number) or (row is None and number not in self._ends)

    def _note_name(self, key: bytes, value: bytes, numbers: set[int]) -> None:
        # A thread's number is never used again, nor is its name ever another: an old row says the same.
        named = _named(THREAD_NAMES, key, value)
        if named is not None and named[0] in numbers:
            self._names[named[0]] = named[1]

    def _complete(self, number: int) -> None:
        """Take what is missing of a thread out of what was found."""
        found = self._found.pop(number)
        before = self.held.setdefault(number, Proven())
        untrusted = {last for last, parts in sorted(found.parts.items()) if not self._put_segment(number, last, parts)}
        live = ((at, value) for at, values in found.records.items() for value, is_live in values.items() if is_live)
        self._put_records(number, ((at, value) for at, value in live if not self._is_there(number, at)))
        for sequence in sorted(untrusted.union(found.records), reverse=True):
            if sequence in untrusted:
                self._keep_if_linked(number, sequence)
            elif not self._is_there(number, sequence):
                self._put_records(number, self._linked(number, sequence, found.records[sequence]))
        self._put_in_order(number)
        if self._remains.is_doubtful:
            self._go_on(number, found)
        self._found.pop(number, None)
        after = self._survey(number)
        after.found = max(after.events - before.events, 0) + before.found
        self.held[number] = after

    def _put_segment(self, number: int, last: int, parts: dict[int, dict[bytes, bool]]) -> bool:
        """Put a segment together; returns whether it is known to belong to the log, as it is if a part does."""
        if self._is_there(number, last) or sorted(parts) != list(range(len(parts))):
            return True
        for values in islice(product(*(parts[part] for part in sorted(parts))), _MOST_TRIED):
            rows = [(SEGMENTS, fmt.part_key(number, last, part), value) for part, value in enumerate(values)]
            self._storage.restore(rows)
            try:
                self._storage.read(number, [last])
            except (CorruptionError, FormatError):
                self._storage.restore((SEGMENTS, key, None) for _, key, _ in rows)
            else:
                return any(parts[part][value] for part, value in enumerate(values))
        return True

    def _keep_if_linked(self, number: int, last: int) -> None:
        record = self._storage.read(number, [last]).get(last)
        if record is not None and not self._is_linked(number, last, record.header.chain):
            self._put((table, key, None) for table, key in self._keys(number, last, last + 1))

    def _is_there(self, number: int, sequence: int) -> bool:
        return bool(self._storage.read(number, [sequence]))

    def _put_records(self, number: int, records: Iterable[tuple[int, bytes]]) -> None:
        self._put(self._proven((fmt.event_key(number, sequence), stored) for sequence, stored in records))

    def _linked(self, number: int, sequence: int, values: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        """The record at a sequence from which the log goes on."""
        for stored in values:
            try:
                record = codec.open_record(number, sequence, stored)
            except (CorruptionError, FormatError):
                continue  # its chain may be right, and another copy of it whole
            if self._is_linked(number, sequence, record.header.chain):
                yield sequence, stored
                return

    def _is_linked(self, number: int, sequence: int, chain: bytes) -> bool:
        """Whether the log says that the hash chain was this after an event."""
        row = self._rows.get(number)
        if row is not None and (row.last, row.chain) == (sequence, chain):
            return True
        while True:
            sequence += 1
            record = self._storage.read(number, [sequence]).get(sequence)
            if record is None or record.header.kind in _BEGINNINGS:
                return False
            chain = fmt.chain_after(number, sequence, record.header, fmt.body_digest(record.body), chain)
            if record.header.chain:
                return chain == record.header.chain

    def _go_on(self, number: int, found: _Found) -> None:
        """Take the events that come after the last one, as far as the hash chain goes on."""
        held = self._survey(number)
        last, chain = held.last, held.chain or fmt.CHAIN_SEED
        following = True
        while following:
            following = False
            for stored in found.records.get(last + 1, ()):
                after = _chain_after(number, last, chain, stored)
                if after:
                    self._put_records(number, [(last + 1, stored)])
                    last, chain, following = last + 1, after, True
                    break

    def _put_in_order(self, number: int) -> None:
        """Seal the loose records that were found before a segment: those hold the oldest events."""
        segments = [first for first, _, _ in self._storage.segments(number)]
        if not segments:
            return
        stop = fmt.event_key(number, segments[-1])
        early = [fmt.read_event_key(key)[1] for key, _ in self._storage.stored(EVENTS, fmt.event_key(number, 0), stop)]
        for _, run in groupby(enumerate(early), lambda place: place[1] - place[0]):
            sequences = [sequence for _, sequence in run]
            for start in range(0, len(sequences), _PAGE_EVENTS):
                page = sequences[start : start + _PAGE_EVENTS]
                records = self._storage.read(number, page)
                segment, _ = pack(number, [records[sequence] for sequence in page], {}, Group())
                self._storage.restore(
                    [
                        *((SEGMENTS, key, part) for key, part in cut(number, page[-1], segment)),
                        *((EVENTS, fmt.event_key(number, sequence), None) for sequence in page),
                    ]
                )


def _chain_after(number: int, last: int, chain: bytes, stored: bytes) -> bytes:
    """The hash chain after a record, if it follows the event `last` with that chain before it; else nothing."""
    try:
        record = codec.open_record(number, last + 1, stored)
        if record.header.kind in _BEGINNINGS:
            event = codec.decode(number, record)
            if isinstance(event, ThreadPruned | ThreadDeleted) and (event.through, event.chain) != (last, chain):
                return b""
    except (CorruptionError, FormatError):
        return b""
    after = fmt.chain_after(number, last + 1, record.header, fmt.body_digest(record.body), chain)
    return after if after == record.header.chain else b""


def _is_part(key: bytes) -> bool:
    """Whether a key can be one of a segment's part: what is damaged may say anything."""
    return len(key) == _PART_KEY_BYTES and fmt.read_event_key(key)[1] < _END


def _named(owner: int, key: bytes, value: bytes) -> tuple[int, str] | None:
    """What a row of names says, if the hash in its key is that of the name."""
    try:
        number, name = unpack_name(value, owner)
    except CorruptionError:
        return None
    return (number, name) if key == fmt.name_key(owner, name.encode()) else None


def _reason(error: StepwellError) -> str:
    return error.reason if isinstance(error, CorruptionError) else str(error)
