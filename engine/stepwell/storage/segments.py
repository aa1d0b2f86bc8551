"""Sealed runs of events: many records in one block, compressed together.

    offset  size  field
    0       1     format version
    1       3     zero
    4       4     number of events
    8       8     sequence of the first event
    16      16    checksum over thread, last sequence, the bytes before, and the frame
    32            one zstandard frame: all headers, all body lengths (u32), all plain bodies

A record comes out of a segment as it went in, but for the form of its body, which its own checksum and the
hash chain do not cover.  `Events` reads through segments and loose records alike.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as Several
from hashlib import blake2b
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

from stepwell import codec
from stepwell import format as fmt
from stepwell.errors import CorruptionError, NewerFormatError

EVENTS: Final = "events"
SEGMENTS: Final = "segments"

_HEAD = struct.Struct(">B3xIQ")
_CHECKSUM_BYTES: Final = 16
_LENGTH = struct.Struct(">I")
_HELD_BYTES: Final = 1 << 25


class Segment:
    """A segment taken apart: gives each of its records.

    Attributes:
        first: Sequence of its first event.
        last: Sequence of its last event.
        size: Bytes that holding it takes.
    """

    def __init__(self, first: int, plain: bytes, count: int) -> None:
        self.first = first
        self.last = first + count - 1
        self.size = len(plain)
        self._plain = plain
        lengths_end = count * (fmt.HEADER_BYTES + _LENGTH.size)
        lengths = struct.unpack_from(f">{count}I", plain, count * fmt.HEADER_BYTES)
        self._edges = list(accumulate(lengths, initial=lengths_end))
        if self._edges[-1] != len(plain):
            raise ValueError(f"the bodies end at {self._edges[-1]} of {len(plain)} bytes")

    def record(self, sequence: int) -> bytes:
        """The record of one of its events, with its body in plain form."""
        index = sequence - self.first
        header = self._plain[index * fmt.HEADER_BYTES : (index + 1) * fmt.HEADER_BYTES]
        return header + self._plain[self._edges[index] : self._edges[index + 1]]


def pack(thread: int, first: int, records: Several[bytes]) -> bytes:
    """A segment of consecutive records, which must have their bodies in plain form."""
    headers = [record[: fmt.HEADER_BYTES] for record in records]
    bodies = [record[fmt.HEADER_BYTES :] for record in records]
    lengths = [_LENGTH.pack(len(body)) for body in bodies]
    frame = codec.compress_block(b"".join((*headers, *lengths, *bodies)))
    head = _HEAD.pack(fmt.FORMAT_VERSION, len(records), first)
    return head + _checksum(thread, first + len(records) - 1, head, frame) + frame


def unpack(thread: int, last: int, data: bytes) -> Segment:
    """Check a segment and take it apart.

    Raises:
        CorruptionError: It is not what was written at this place.
        NewerFormatError: A newer version of the library wrote it.
    """
    try:
        version, count, first = _HEAD.unpack_from(data)
        head, checksum = data[: _HEAD.size], data[_HEAD.size : _HEAD.size + _CHECKSUM_BYTES]
        frame = data[_HEAD.size + _CHECKSUM_BYTES :]
        if checksum != _checksum(thread, last, head, frame):
            raise ValueError("the checksum of the segment does not match")
        if version > fmt.FORMAT_VERSION:
            raise NewerFormatError(f"thread {thread}: a segment has format {version}; upgrade stepwell")
        segment = Segment(first, codec.decompress(frame), count)
        if segment.last != last:
            raise ValueError(f"the segment ends at {segment.last}")
    except (ValueError, struct.error, codec.DecompressionError) as error:
        raise CorruptionError(f"the segment is damaged: {error}", thread=thread, sequence=last) from error
    return segment


def _checksum(thread: int, last: int, head: bytes, frame: bytes) -> bytes:
    hasher = blake2b(fmt.event_key(thread, last), digest_size=_CHECKSUM_BYTES)
    hasher.update(head)
    hasher.update(frame)
    return hasher.digest()


class Held:
    """The segments that were read last, up to a number of bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: OrderedDict[tuple[int, int], Segment] = OrderedDict()
        self._size = 0

    def get(self, thread: int, last: int) -> Segment | None:
        """A segment that was read before."""
        with self._lock:
            segment = self._segments.get((thread, last))
            if segment is not None:
                self._segments.move_to_end((thread, last))
            return segment

    def put(self, thread: int, segment: Segment) -> None:
        """Hold a segment; a thread's sequences are never given twice, so it stays right."""
        with self._lock:
            if (thread, segment.last) not in self._segments:
                self._segments[thread, segment.last] = segment
                self._size += segment.size
            while self._size > _HELD_BYTES and len(self._segments) > 1:
                self._size -= self._segments.popitem(last=False)[1].size


class _Tables(Protocol):
    def get(self, table: str, key: bytes) -> bytes | None: ...

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]: ...

    def scan_back(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]: ...

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None: ...

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None: ...


class Placed(NamedTuple):
    """A record and where it stands."""

    sequence: int
    record: bytes


class Events:
    """The events of all threads within one transaction, sealed and loose."""

    def __init__(self, tables: _Tables, held: Held) -> None:
        self._tables = tables
        self._held = held

    def get(self, thread: int, sequence: int) -> bytes | None:
        """The record at a sequence, or None."""
        record = self._tables.get(EVENTS, fmt.event_key(thread, sequence))
        if record is None:
            segment = self._segment_from(thread, sequence)
            return segment.record(sequence) if segment is not None and segment.first <= sequence else None
        return record

    def scan(self, thread: int, after: int, before: int) -> Iterator[Placed]:
        """The records between two sequences, both excluded, in order."""
        start = after + 1
        while start < before and (segment := self._segment_from(thread, start)) is not None:
            for sequence in range(max(start, segment.first), min(segment.last + 1, before)):
                yield Placed(sequence, segment.record(sequence))
            start = segment.last + 1
        for key, record in self._tables.scan(EVENTS, fmt.event_key(thread, start), fmt.event_key(thread, before)):
            yield Placed(fmt.read_event_key(key)[1], record)

    def scan_back(self, thread: int, after: int, before: int) -> Iterator[Placed]:
        """The records between two sequences, both excluded, in reverse order."""
        low, high = fmt.event_key(thread, after + 1), fmt.event_key(thread, before)
        for key, record in self._tables.scan_back(EVENTS, low, high):
            before = fmt.read_event_key(key)[1]
            yield Placed(before, record)
        # Loose events follow all sealed ones, so what is left lies in segments.
        while before > after + 1 and (segment := self._segment_before(thread, before)) is not None:
            for sequence in range(min(segment.last, before - 1), max(segment.first, after + 1) - 1, -1):
                yield Placed(sequence, segment.record(sequence))
            before = segment.first

    def sealed(self, thread: int) -> Iterator[tuple[int, int, int]]:
        """First sequence, last sequence and bytes of each segment of a thread, in order."""
        for key, data in self._tables.scan(SEGMENTS, fmt.event_key(thread, 0), fmt.event_key(thread + 1, 0)):
            last = fmt.read_event_key(key)[1]
            yield self._open(thread, last, data).first, last, len(data)

    def _segment_from(self, thread: int, sequence: int) -> Segment | None:
        """The first segment that does not end before a sequence."""
        key = self._tables.next_key(SEGMENTS, fmt.event_key(thread, sequence), fmt.event_key(thread + 1, 0))
        return None if key is None else self._load(thread, key)

    def _segment_before(self, thread: int, sequence: int) -> Segment | None:
        """The last segment that begins before a sequence."""
        segment = self._segment_from(thread, sequence - 1)
        if segment is not None and segment.first < sequence:
            return segment
        key = self._tables.previous_key(SEGMENTS, fmt.event_key(thread, 0), fmt.event_key(thread, sequence))
        return None if key is None else self._load(thread, key)

    def _load(self, thread: int, key: bytes) -> Segment:
        last = fmt.read_event_key(key)[1]
        segment = self._held.get(thread, last)
        if segment is not None:
            return segment
        data = self._tables.get(SEGMENTS, key)
        assert data is not None  # its key was met in this very transaction
        return self._open(thread, last, data)

    def _open(self, thread: int, last: int, data: bytes) -> Segment:
        segment = self._held.get(thread, last)
        if segment is None:
            segment = unpack(thread, last, data)
            self._held.put(thread, segment)
        return segment
