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


class IndexRow(msgspec.Struct, array_like=True):
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


def add_step(tables: Tables, thread: int, lane: int, step_key: bytes, before: IndexRow, found: IndexRow) -> None:
    """Note an event that commits a step id.

    Args:
        tables: The tables.
        thread: Number of the thread.
        lane: Number of the lane.
        step_key: The id in fixed-width form.
        before: Its row.
        found: The event as `step` and `original`, and whether it is hidden.
    """
    if before.step and found.hidden and not before.hidden:
        return
    same_sort = before.step and before.hidden == found.hidden
    row = IndexRow(
        before.original if same_sort else found.original,
        found.step,
        found.hidden,
        before.writes,
        before.status,
    )
    tables.put(INDEX, fmt.index_key(thread, lane, step_key), pack_index(row))


def add_writes(tables: Tables, thread: int, lane: int, step_key: bytes, sequence: int, status: int) -> IndexRow:
    """Note an event that records writes for a step id, which may be committed later; returns the id's row."""
    row = find_row(tables, thread, lane, step_key)
    key = fmt.index_key(thread, lane, step_key)
    row.status = status or row.status
    is_full = len(row.writes) == WRITES_IN_ROW
    if not is_full:
        row.writes += (sequence,)
    if status or not is_full:
        tables.put(INDEX, key, pack_index(row))
    if not is_full:
        return row
    last = tables.previous_key(INDEX, key + b"\0", prefix_end(key))
    more = () if last is None else _unpack_further(thread, tables.get(INDEX, last) or b"")
    if last is None or len(more) == WRITES_IN_FURTHER_ROW:
        last, more = fmt.index_further_key(thread, lane, step_key, sequence), ()
    tables.put(INDEX, last, pack_further((*more, sequence)))
    return row
