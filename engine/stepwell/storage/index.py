"""The index: where the events of each step id stand, one row for each id of a lane.

The row names the step's events and the first writes for it.  A step that very many tasks ran on has further rows
for the rest of the writes, so that recording one more never rewrites more than a few of them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from stepwell import format as fmt
from stepwell.storage import Found, Number, StatusNumber, decode_row
from stepwell.storage.tables import INDEX, Tables, prefix_end

# On disk: audit and foreign readers count on these.
WRITES_IN_ROW: Final = 16
WRITES_IN_FURTHER_ROW: Final = 64


class IndexRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the index says of a step id.

    Attributes:
        original: The first event that commits the id; 0 if there is none.
        step: The newest one.
        hidden: Whether these are hidden steps, which count only where there are no others.
        writes: The first events that record writes for it.
        status: What the newest writes that say so say that the thread has come to.
    """

    original: Number = 0
    step: Number = 0
    hidden: bool = False
    writes: tuple[Number, ...] = ()
    status: StatusNumber = fmt.STATUS_UNKNOWN


_encoder = msgspec.msgpack.Encoder()
_row = msgspec.msgpack.Decoder(IndexRow)
_sequences = msgspec.msgpack.Decoder(tuple[Number, ...])


def pack_index(row: IndexRow) -> bytes:
    """An id's row as bytes."""
    return _encoder.encode(row)


def pack_further(sequences: tuple[int, ...]) -> bytes:
    """A further row of writes as bytes; its key names the first of them."""
    return _encoder.encode(sequences)


def _unpack(thread: int, data: bytes) -> IndexRow:
    return decode_row(_row, data, INDEX, thread)


def _unpack_further(thread: int, data: bytes) -> tuple[int, ...]:
    return decode_row(_sequences, data, INDEX, thread)


def find_row(tables: Tables, thread: int, lane: int, step_key: bytes) -> IndexRow:
    """A step id's own row; one that names nothing if it has none."""
    data = tables.get(INDEX, fmt.index_key(thread, lane, step_key))
    return IndexRow() if data is None else _unpack(thread, data)


def find_step(tables: Tables, thread: int, lane: int, step_key: bytes) -> Found:
    """Where the events of a step id stand."""
    row = find_row(tables, thread, lane, step_key)
    writes = row.writes
    if len(writes) == WRITES_IN_ROW:
        # The id's own row comes first, and has been read.
        key = fmt.index_key(thread, lane, step_key)
        for _, more in tables.scan(INDEX, key + b"\0", prefix_end(key)):
            writes += _unpack_further(thread, more)
    return Found(row.step, row.original, row.hidden, writes, row.status)


def last_row(tables: Tables, thread: int, lane: int) -> tuple[bytes, IndexRow]:
    """The greatest id of a lane in fixed-width form, and its own row; an empty one if the lane has none."""
    lane_key = fmt.lane_key(thread, lane)
    key = tables.previous_key(INDEX, lane_key, prefix_end(lane_key))
    if key is None:
        return b"", IndexRow()
    step_key = key[len(lane_key) : fmt.INDEX_KEY_BYTES]
    return step_key, find_row(tables, thread, lane, step_key)


def put_row(tables: Tables, thread: int, lane: int, step_key: bytes, row: IndexRow) -> None:
    """Write a step id's own row."""
    tables.put(INDEX, fmt.index_key(thread, lane, step_key), pack_index(row))


def with_step(before: IndexRow, found: IndexRow) -> IndexRow:
    """A step id's row with one more event that commits it.

    Args:
        before: The row.
        found: The event as `step` and `original`, and whether it is hidden.
    """
    if before.step and found.hidden and not before.hidden:
        return before
    same_sort = before.step and before.hidden == found.hidden
    return IndexRow(
        before.original if same_sort else found.original,
        found.step,
        found.hidden,
        before.writes,
        before.status,
    )


def with_writes(before: IndexRow, sequence: int, status: int) -> IndexRow:
    """A step id's row with one more event that records writes for it, if there is room; else see `add_further`."""
    writes = before.writes if is_full(before) else (*before.writes, sequence)
    return IndexRow(before.original, before.step, before.hidden, writes, status or before.status)


def is_full(row: IndexRow) -> bool:
    """Whether no more writes go into a row."""
    return len(row.writes) == WRITES_IN_ROW


def add_further(tables: Tables, thread: int, lane: int, step_key: bytes, sequence: int) -> None:
    """Note an event that records writes for a step id whose own row is full."""
    key = fmt.index_key(thread, lane, step_key)
    last = tables.previous_key(INDEX, key + b"\0", prefix_end(key))
    more = () if last is None else _unpack_further(thread, tables.get(INDEX, last) or b"")
    if last is None or len(more) == WRITES_IN_FURTHER_ROW:
        last, more = fmt.index_further_key(thread, lane, step_key, sequence), ()
    tables.put(INDEX, last, pack_further((*more, sequence)))
