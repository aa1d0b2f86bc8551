"""The records of all threads within one transaction, sealed and loose alike, each proven before it is given."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

from stepwell import codec
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import CorruptionError, NewerFormatError, StepwellError
from stepwell.storage import Group, Surveyed
from stepwell.storage.held import Held
from stepwell.storage.segments import Segment, first_of, group_of, unpack
from stepwell.storage.tables import EVENTS, SEGMENTS, Tables

_AFTER_ALL: Final = 1 << 63  # of all sequences


class Records:
    """Reads through segments and loose records.

    Loose events follow all sealed ones; a segment is named by its last sequence.

    Args:
        tables: The tables within one transaction.
        held: What was read before.
        committed: Whether all that the transaction shows is in the log for good.
        once: Whether loose records are read this once, and not worth holding.
    """

    def __init__(self, tables: Tables, held: Held, *, committed: bool = True, once: bool = False) -> None:
        self._tables = tables
        self._held = held
        self._committed = committed
        self._holds_loose = committed and not once
        self._last_read: tuple[int, Segment] | None = None

    def get(self, thread: int, sequence: int) -> Record | None:
        """The record at a sequence, or None.

        Raises:
            CorruptionError: What stands there is not what was written.
        """
        if self._last_read is not None:
            number, segment = self._last_read
            if number == thread and segment.first <= sequence <= segment.last:
                return segment.record(sequence)
        stored = self._tables.get(EVENTS, fmt.event_key(thread, sequence))
        if stored is not None:
            return self._open(thread, sequence, stored)
        found = self._segment_from(thread, sequence)
        if found is None or found.first > sequence:
            return None
        if self._committed:  # within a transaction that writes, segments come and go
            self._last_read = thread, found
        return found.record(sequence)

    def existing(self, thread: int, sequence: int) -> Record:
        """The record at a sequence where there must be one."""
        record = self.get(thread, sequence)
        if record is None:
            raise CorruptionError("the event is missing", thread=thread, sequence=sequence)
        return record

    def header(self, thread: int, sequence: int) -> fmt.Header | None:
        """The header at a sequence, taken as it stands if the record is loose."""
        stored = self._tables.get(EVENTS, fmt.event_key(thread, sequence))
        if stored is None:
            record = self.get(thread, sequence)
            return None if record is None else record.header
        try:
            return fmt.read_header(stored)
        except ValueError as error:
            raise CorruptionError(str(error), thread=thread, sequence=sequence) from error

    def group_begin(self, thread: int, sequence: int) -> int:
        """The first event of an event's group of segments, as they say, unproven; of a loose event, itself."""
        last = next(self._lasts(thread, sequence, _AFTER_ALL), None)
        head = b"" if last is None else self._tables.get(SEGMENTS, fmt.part_key(thread, last, 0)) or b""
        return min(group_of(head), sequence) if 0 <= first_of(head) <= sequence else sequence

    def scan(self, thread: int, after: int, before: int) -> Iterator[Record]:
        """The records between two sequences, both excluded, in order."""
        start = after + 1
        while start < before and (segment := self._segment_from(thread, start)) is not None:
            for sequence in range(max(start, segment.first), min(segment.last + 1, before)):
                yield segment.record(sequence)
            start = segment.last + 1
        for key, stored in self._tables.scan(EVENTS, fmt.event_key(thread, start), fmt.event_key(thread, before)):
            yield self._open(thread, fmt.read_event_key(key)[1], stored)

    def scan_back(self, thread: int, after: int, before: int) -> Iterator[Record]:
        """The records between two sequences, both excluded, in reverse order."""
        low, high = fmt.event_key(thread, after + 1), fmt.event_key(thread, before)
        for key, stored in self._tables.scan_back(EVENTS, low, high):
            before = fmt.read_event_key(key)[1]
            yield self._open(thread, before, stored)
        while before > after + 1 and (segment := self._segment_before(thread, before)) is not None:
            for sequence in range(min(segment.last, before - 1), max(segment.first, after + 1) - 1, -1):
                yield segment.record(sequence)
            before = segment.first

    def survey(self, thread: int, after: int) -> Iterator[Surveyed]:
        """The records after a sequence, or what is wrong with them; a damaged segment stands for all that it held."""
        start = after + 1
        for last in self._lasts(thread, start, _AFTER_ALL):
            try:
                segment = self._load(thread, last)
            except (CorruptionError, NewerFormatError) as error:
                yield Surveyed(last, 0, error)
            else:
                for sequence in range(max(segment.first, start), last + 1):
                    yield Surveyed(sequence, 0, segment.record(sequence))
            start = last + 1
        for key, stored in self._tables.scan(EVENTS, fmt.event_key(thread, after + 1), fmt.event_key(thread + 1, 0)):
            sequence = fmt.read_event_key(key)[1]
            try:
                record: Record | StepwellError = codec.open_record(thread, sequence, stored)
            except (CorruptionError, NewerFormatError) as error:
                record = error
            yield Surveyed(sequence, len(stored), record)

    def sealed(self, thread: int) -> Iterator[tuple[int, int, int]]:
        """First sequence, last sequence and bytes of each segment of a thread, in order, as they say themselves."""
        for last in self._lasts(thread, 0, _AFTER_ALL):
            data = self._stored(thread, last)
            yield first_of(data), last, len(data)

    def payloads(self, thread: int, sequences: Iterable[int]) -> dict[int, memoryview]:
        """The payloads of some events; those that are not there are left out."""
        wanted = sorted(sequences)
        found: dict[int, memoryview] = {}
        for segment in self._segments_of(thread, wanted):
            start, stop = bisect_left(wanted, segment.first), bisect_left(wanted, segment.last + 1)
            found.update((sequence, segment.payload(sequence)) for sequence in wanted[start:stop])
        for sequence in wanted:
            if sequence not in found:
                record = self.get(thread, sequence)
                if record is not None:
                    found[sequence] = record.payload
        return found

    def base(self, thread: int, sequence: int) -> memoryview | None:
        """The state that is kept of a step."""
        segment = self._segment_from(thread, sequence)
        return None if segment is None else segment.bases.get(sequence)

    def bases(self, thread: int) -> Iterator[tuple[int, memoryview]]:
        """The states that are kept of a thread, by sequence; those of damaged segments are left out."""
        for last in self._lasts(thread, 0, _AFTER_ALL):
            with suppress(CorruptionError, NewerFormatError):
                yield from self._load(thread, last).bases.items()

    def last_group(self, thread: int) -> Group:
        """The last segments of a thread, as far as they are one group."""
        segment = self._segment_before(thread, _AFTER_ALL)
        if segment is None:
            return Group()
        before = self._blocks(thread, segment.group, segment.first) if segment.group < segment.first else b""
        return Group(segment.group, before + segment.plain)

    def _segments_of(self, thread: int, wanted: list[int]) -> list[Segment]:
        """The segments that hold any of some events."""
        found: list[Segment] = []
        index = 0
        while index < len(wanted):
            segment = self._segment_from(thread, wanted[index])
            if segment is None:
                break  # this event is loose, and so are all that follow it
            found.append(segment)
            index = bisect_left(wanted, segment.last + 1)
        return found

    def _open(self, thread: int, sequence: int, stored: bytes) -> Record:
        proven = self._held.records.get((thread, sequence)) if self._committed else None
        if proven is not None:
            return codec.proven_record(sequence, proven)
        record = codec.open_record(thread, sequence, stored)
        if self._holds_loose:
            proven = codec.proven_bytes(stored, record)
            self._held.records.put((thread, sequence), proven, len(proven))
        return record

    def _segment_from(self, thread: int, sequence: int) -> Segment | None:
        """The first segment that does not end before a sequence."""
        last = next(self._lasts(thread, sequence, _AFTER_ALL), None)
        return None if last is None else self._load(thread, last)

    def _segment_before(self, thread: int, sequence: int) -> Segment | None:
        """The last segment that begins before a sequence."""
        segment = self._segment_from(thread, sequence - 1)
        if segment is not None and segment.first < sequence:
            return segment
        key = self._tables.previous_key(SEGMENTS, fmt.event_key(thread, 0), fmt.event_key(thread, sequence))
        return None if key is None else self._load(thread, fmt.read_event_key(key)[1])

    def _lasts(self, thread: int, start: int, stop: int) -> Iterator[int]:
        """The last sequences of the segments that end from one sequence up to another, which is excluded."""
        end = fmt.event_key(thread, stop)
        while (key := self._tables.next_key(SEGMENTS, fmt.event_key(thread, start), end)) is not None:
            last = fmt.read_event_key(key)[1]
            yield last
            start = last + 1

    def _load(self, thread: int, last: int) -> Segment:
        segment = self._held.segments.get((thread, last))
        if segment is not None:
            return segment
        data = self._stored(thread, last)
        return self._unpack(thread, last, data, lambda group: self._blocks(thread, group, first_of(data)))

    def _stored(self, thread: int, last: int) -> bytes:
        parts = self._tables.scan(SEGMENTS, fmt.event_key(thread, last), fmt.event_key(thread, last + 1))
        return b"".join(part for _, part in parts)

    def _unpack(self, thread: int, last: int, data: bytes, before: Callable[[int], bytes]) -> Segment:
        segment = unpack(thread, last, data, before)
        if self._committed:
            self._held.segments.put((thread, last), segment, len(segment.plain))
        return segment

    def _blocks(self, thread: int, start: int, stop: int) -> bytes:
        """The plain blocks of the segments from one sequence up to another, which is the first of the next."""
        blocks: list[bytes] = []
        for last in self._lasts(thread, start, stop):
            segment = self._held.segments.get((thread, last))
            if segment is None:
                segment = self._unpack(thread, last, self._stored(thread, last), lambda group: b"".join(blocks))
            blocks.append(segment.plain)
        return b"".join(blocks)
