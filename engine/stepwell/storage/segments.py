"""Sealed runs of events: many records in one block, compressed together.

    offset  size  field
    0       1     format version
    1       3     zero
    4       4     number of events
    8       8     sequence of the first event
    16      16    chain hash after the last event
    32      16    checksum over thread, last sequence, the bytes before, and the frame's first 16 and last 4 bytes
    48            one zstandard frame, with its own checksum in its last 4 bytes: rows, skeletons, payloads

    row     = header up to its hashes (40 bytes), skeleton bytes u32, payload bytes u32; the rows stand column by
              column: the first byte of all rows, then the second byte of all rows, and so on

Alike stands with alike, which compresses a tenth to a quarter better than whole records in a row.  The two
checksums prove all records at once; their hashes follow from their content and from the chain before them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence as Several
from hashlib import blake2b
from itertools import accumulate
from typing import Final

from stepwell import codec
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import CorruptionError, NewerFormatError

_HEAD = struct.Struct(f">B3xIQ{fmt.CHAIN_BYTES}s")
_CHECKSUM_BYTES: Final = 16
_FRAME_HEAD_BYTES: Final = 16  # it says that there is a checksum, and the size
_FRAME_CHECKSUM_BYTES: Final = 4
_ROW_LENGTHS = struct.Struct(">II")
_LENGTHS = struct.Struct(f">{fmt.COVERED_BYTES}xII")
_ROW_BYTES: Final = _LENGTHS.size


class Segment:
    """A segment taken apart: gives each of its records.

    Attributes:
        first: Sequence of its first event.
        last: Sequence of its last event.
        size: Bytes that holding it takes.
    """

    def __init__(self, first: int, count: int, chain: bytes, plain: bytes) -> None:
        if count * _ROW_BYTES > len(plain):
            raise ValueError(f"{count} events do not fit into {len(plain)} bytes")
        self.first = first
        self.last = first + count - 1
        self.size = len(plain)
        self._chain = chain
        self._plain = memoryview(plain)
        self._rows = bytearray(count * _ROW_BYTES)
        for column in range(_ROW_BYTES):
            self._rows[column::_ROW_BYTES] = plain[column * count : (column + 1) * count]
        lengths = list(_LENGTHS.iter_unpack(self._rows))
        self._skeletons = list(accumulate((skeleton for skeleton, _ in lengths), initial=len(self._rows)))
        self._payloads = list(accumulate((payload for _, payload in lengths), initial=self._skeletons[-1]))
        if self._payloads[-1] != len(plain):
            raise ValueError(f"the events end at {self._payloads[-1]} of {len(plain)} bytes")

    def record(self, sequence: int) -> Record:
        """One of its records."""
        index = sequence - self.first
        header = fmt.read_covered(self._rows, index * _ROW_BYTES, self._chain if sequence == self.last else b"")
        skeleton = self._plain[self._skeletons[index] : self._skeletons[index + 1]]
        return Record(sequence, header, skeleton, self.payload(sequence))

    def payload(self, sequence: int) -> memoryview:
        """The payload of one of its events."""
        index = sequence - self.first
        return self._plain[self._payloads[index] : self._payloads[index + 1]]


def pack(thread: int, records: Several[Record]) -> bytes:
    """A segment of consecutive records, of which the last must say its chain hash."""
    rows = b"".join(
        fmt.pack_covered(record.header) + _ROW_LENGTHS.pack(len(record.skeleton), len(record.payload))
        for record in records
    )
    columns = [rows[column::_ROW_BYTES] for column in range(_ROW_BYTES)]
    skeletons, payloads = [record.skeleton for record in records], [record.payload for record in records]
    frame = codec.compress_block(b"".join((*columns, *skeletons, *payloads)))
    last = records[-1]
    head = _HEAD.pack(fmt.FORMAT_VERSION, len(records), records[0].sequence, last.header.chain)
    return head + _checksum(thread, last.sequence, head, frame) + frame


def unpack(thread: int, last: int, data: bytes) -> Segment:
    """Check a segment and take it apart.

    Raises:
        CorruptionError: It is not what was written at this place.
        NewerFormatError: A newer version of the library wrote it.
    """
    try:
        version, count, first, chain = _HEAD.unpack_from(data)
        head, checksum = data[: _HEAD.size], data[_HEAD.size : _HEAD.size + _CHECKSUM_BYTES]
        frame = memoryview(data)[_HEAD.size + _CHECKSUM_BYTES :]
        if checksum != _checksum(thread, last, head, frame):
            raise ValueError("the checksum of the segment does not match")
        if version > fmt.FORMAT_VERSION:
            raise NewerFormatError(f"thread {thread}: a segment has format {version}; upgrade stepwell")
        # The checksum covers the size: if memory is short, that is not the segment's fault.
        segment = Segment(first, count, chain, codec.decompress(frame))
        if segment.last != last:
            raise ValueError(f"the segment ends at {segment.last}")
    except (ValueError, struct.error, codec.DecompressionError) as error:
        raise CorruptionError(f"the segment is damaged: {error}", thread=thread, sequence=last) from error
    return segment


def first_of(data: bytes) -> int:
    """The sequence that a segment says it begins with; -1 if it is too short to say."""
    return int(_HEAD.unpack_from(data)[2]) if len(data) >= _HEAD.size else -1


def _checksum(thread: int, last: int, head: bytes, frame: bytes | memoryview) -> bytes:
    covered = b"".join((fmt.event_key(thread, last), head, frame[:_FRAME_HEAD_BYTES], frame[-_FRAME_CHECKSUM_BYTES:]))
    return blake2b(covered, digest_size=_CHECKSUM_BYTES).digest()
