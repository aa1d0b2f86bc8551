"""Sealed runs of events: many records in one block, compressed together.

    offset  size  field
    0       1     format version
    1       1     form of the frame, as for records: 1, or 2 for one with the carried dictionary
    2       2     zero
    4       4     number of events
    8       4     number of bases
    12      4     bytes of the frame
    16      8     sequence of the first event
    24      8     sequence of the first event of the group
    32      16    chain hash after the last event
    48      16    checksum over thread, last sequence, the bytes before, and the frame's first 16 and last 4 bytes
    64            one zstandard frame, with its own checksum in its last 4 bytes: rows, skeletons, payloads, bases

    row     = header up to its hashes (40 bytes), skeleton bytes u32, payload bytes u32; the rows stand column by
              column: the first byte of all rows, then the second byte of all rows, and so on
    bases   = of each, sequence u64 and bytes u32; then the states after these steps, in msgpack

Alike stands with alike, which compresses a tenth to a quarter better than whole records in a row.  The two
checksums prove all records at once; their hashes follow from their content and from the chain before them.

Segments that follow each other form groups: each is compressed with the plain blocks of those before it in its
group as dictionary, as if the group were one block, without any of them being written again.  A group ends with
the segment that brings it to `GROUP_BYTES`: so a reader of one segment unpacks no more than that before it.

On disk a segment is cut into parts of `PART_BYTES`, and the rest into smaller ones that share pages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Several
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import Final

from stepwell import codec
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import CorruptionError, NewerFormatError
from stepwell.storage import Group

GROUP_BYTES: Final = 1 << 20
PART_BYTES: Final = 4096 - 16  # fills one page of LMDB, so that any free page will do and none is filled in part
SMALL_PART_BYTES: Final = 474  # with key and place, eight fill a page
_HEAD = struct.Struct(f">BB2xIIIQQ{fmt.CHAIN_BYTES}s")
_BASE = struct.Struct(">QI")
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
        group: Sequence of the first event of its group.
        plain: Its plain block.
        bases: The states after some of its steps, in msgpack, by sequence.
    """

    def __init__(self, first: int, count: int, bases: int, group: int, chain: bytes, plain: bytes) -> None:
        if count * _ROW_BYTES > len(plain):
            raise ValueError(f"{count} events do not fit into {len(plain)} bytes")
        self.first = first
        self.last = first + count - 1
        self.group = group
        self.plain = plain
        self._chain = chain
        self._plain = memoryview(plain)
        self._rows = bytearray(count * _ROW_BYTES)
        for column in range(_ROW_BYTES):
            self._rows[column::_ROW_BYTES] = plain[column * count : (column + 1) * count]
        lengths = list(_LENGTHS.iter_unpack(self._rows))
        self._skeletons = list(accumulate((skeleton for skeleton, _ in lengths), initial=len(self._rows)))
        self._payloads = list(accumulate((payload for _, payload in lengths), initial=self._skeletons[-1]))
        start = self._payloads[-1]
        end = start + bases * _BASE.size
        self.bases: dict[int, memoryview] = {}
        for sequence, length in _BASE.iter_unpack(self._plain[start:end]):
            self.bases[sequence] = self._plain[end : end + length]
            end += length
        if end != len(plain):
            raise ValueError(f"its parts have {end} bytes, the block {len(plain)}")

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


def pack(
    thread: int, records: Several[Record], bases: Mapping[int, bytes | memoryview], before: Group
) -> tuple[bytes, Group]:
    """A segment of consecutive records, and the group that it ends now.

    Args:
        thread: Number of the thread.
        records: The records, of which the last must say its chain hash.
        bases: States after some of the steps among them, in msgpack, by sequence.
        before: The group of the segment before it; if that is large enough, a new one begins.
    """
    first, last = records[0].sequence, records[-1]
    if not before.first or len(before.plain) >= GROUP_BYTES:
        before = Group(first)
    rows = b"".join(
        fmt.pack_covered(record.header) + _ROW_LENGTHS.pack(len(record.skeleton), len(record.payload))
        for record in records
    )
    columns = [rows[column::_ROW_BYTES] for column in range(_ROW_BYTES)]
    skeletons, payloads = [record.skeleton for record in records], [record.payload for record in records]
    lengths = [_BASE.pack(sequence, len(state)) for sequence, state in bases.items()]
    plain = b"".join((*columns, *skeletons, *payloads, *lengths, *bases.values()))
    frame, form = codec.compress_block(plain, before.plain)
    head = _HEAD.pack(
        fmt.FORMAT_VERSION, form, len(records), len(bases), len(frame), first, before.first, last.header.chain
    )
    segment = head + _checksum(thread, last.sequence, head, frame) + frame
    return segment, Group(before.first, before.plain + plain)


def unpack(thread: int, last: int, data: bytes, before: Callable[[int], bytes]) -> Segment:
    """Check a segment and take it apart.

    Args:
        thread: Number of the thread.
        last: Sequence of its last event, by which it was found.
        data: The segment.
        before: Gives the plain blocks of the segments before it from a sequence on.

    Raises:
        CorruptionError: It is not what was written at this place.
        NewerFormatError: A newer version of the library wrote it.
    """
    try:
        version, form, count, bases, frame_bytes, first, group, chain = _HEAD.unpack_from(data)
        head, checksum = data[: _HEAD.size], data[_HEAD.size : _HEAD.size + _CHECKSUM_BYTES]
        frame = memoryview(data)[_HEAD.size + _CHECKSUM_BYTES :]
        if checksum != _checksum(thread, last, head, frame):
            raise ValueError("the checksum of the segment does not match")
        if version > fmt.FORMAT_VERSION:
            raise NewerFormatError(f"thread {thread}: a segment has format {version}; upgrade stepwell")
        if len(frame) != frame_bytes:
            raise ValueError(f"the frame has {len(frame)} bytes, not {frame_bytes}")
        # The checksum covers the size: if memory is short, that is not the segment's fault.
        plain = codec.decompress_block(frame, form, before(group) if group < first else b"")
        segment = Segment(first, count, bases, group, chain, plain)
        if segment.last != last:
            raise ValueError(f"the segment ends at {segment.last}")
    except (ValueError, struct.error, codec.DecompressionError) as error:
        raise CorruptionError(f"the segment is damaged: {error}", thread=thread, sequence=last) from error
    return segment


def cut(thread: int, last: int, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A segment as rows of the table `segments`, key and value of each."""
    full = len(data) // PART_BYTES * PART_BYTES
    edges = *range(0, full, PART_BYTES), *range(full, len(data), SMALL_PART_BYTES), len(data)
    for part, (start, end) in enumerate(pairwise(edges)):
        yield fmt.part_key(thread, last, part), data[start:end]


def first_of(data: bytes) -> int:
    """The sequence that a segment says it begins with; -1 if it is too short to say."""
    return int(_HEAD.unpack_from(data)[5]) if len(data) >= _HEAD.size else -1


def group_of(data: bytes) -> int:
    """The sequence that a segment says its group begins with; -1 if it is too short to say."""
    return int(_HEAD.unpack_from(data)[6]) if len(data) >= _HEAD.size else -1


def _checksum(thread: int, last: int, head: bytes, frame: bytes | memoryview) -> bytes:
    covered = b"".join((fmt.event_key(thread, last), head, frame[:_FRAME_HEAD_BYTES], frame[-_FRAME_CHECKSUM_BYTES:]))
    return blake2b(covered, digest_size=_CHECKSUM_BYTES).digest()
