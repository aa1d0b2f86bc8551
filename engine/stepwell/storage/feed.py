"""The feed: every append of the log in commit order, 64 of them to a row.

A row of its own for each would take more room than what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from typing import Annotated, Final, NamedTuple

import msgspec

from stepwell import format as fmt
from stepwell.storage import FeedRow, Number, decode_row
from stepwell.storage.tables import AFTER_ALL, FEED, Tables

# On disk: never change it.
COMMITS_IN_ROW: Final = 64

_Place = Annotated[int, msgspec.Meta(ge=0, lt=COMMITS_IN_ROW)]
_Entry = tuple[_Place, Number, Number, Number]  # commit modulo the above, thread, first sequence, last minus first
_Entries = Annotated[list[_Entry], msgspec.Meta(min_length=1)]

_encoder = msgspec.msgpack.Encoder()
_entries: msgspec.msgpack.Decoder[list[_Entry]] = msgspec.msgpack.Decoder(_Entries)


def row_number(commit: int) -> int:
    """Which row holds a commit."""
    return commit // COMMITS_IN_ROW


def pack_feed(rows: Several[FeedRow]) -> bytes:
    """The appends of one row as bytes."""
    return _encoder.encode([_entry(row) for row in rows])


def _unpack(data: bytes) -> list[_Entry]:
    return decode_row(_entries, data, FEED)


def scan(tables: Tables, after: int) -> Iterator[FeedRow]:
    """The appends with commit numbers above `after`, in order."""
    for key, data in tables.scan(FEED, fmt.number_key(row_number(after + 1)), AFTER_ALL):
        yield from (row for row in read_feed(key, data) if row.commit > after)


def read_feed(key: bytes, data: bytes) -> list[FeedRow]:
    """The appends that a row of the feed names; raises CorruptionError if it is none."""
    start = fmt.read_number(key) * COMMITS_IN_ROW
    return [FeedRow(start + place, thread, first, first + more) for place, thread, first, more in _unpack(data)]


def _entry(row: FeedRow) -> _Entry:
    return row.commit % COMMITS_IN_ROW, row.thread, row.first, row.last - row.first


class FeedEnd(NamedTuple):
    """Where the feed ends.

    Attributes:
        last: The newest commit number.
        number: The number of its row.
        entries: What that row holds.
    """

    last: int
    number: int
    entries: list[_Entry]


def read_end(tables: Tables) -> FeedEnd:
    """Where the feed ends, by the tables."""
    newest = next(tables.scan_back(FEED, b"", AFTER_ALL), None)
    if newest is None:
        return FeedEnd(0, 0, [])
    number, entries = fmt.read_number(newest[0]), _unpack(newest[1])
    return FeedEnd(number * COMMITS_IN_ROW + entries[-1][0], number, entries)


class Feed:
    """The end of the feed within one group: rows are read once, changed in memory, and written by `flush`.

    Args:
        tables: The tables.
        end: Where the feed ends in them.

    Attributes:
        last: The newest commit number.
    """

    def __init__(self, tables: Tables, end: FeedEnd) -> None:
        self._tables = tables
        self._rows = {end.number: end.entries}
        self._changed: set[int] = set()
        self.last = end.last

    @property
    def end(self) -> FeedEnd:
        """Where it ends now."""
        number = row_number(self.last)
        return FeedEnd(self.last, number, self._row(number))

    def append(self, row: FeedRow) -> None:
        """Add an append; commit numbers rise."""
        number = row_number(row.commit)
        self._row(number).append(_entry(row))
        self._changed.add(number)
        self.last = row.commit

    def remove(self, commits: Iterable[int]) -> None:
        """Take appends out whose events are gone."""
        doomed: dict[int, set[int]] = {}
        for commit in commits:
            doomed.setdefault(row_number(commit), set()).add(commit % COMMITS_IN_ROW)
        for number, places in doomed.items():
            row = self._row(number)
            row[:] = [entry for entry in row if entry[0] not in places]
        self._changed.update(doomed)

    def flush(self) -> None:
        """Write what was changed."""
        for number in self._changed:
            key = fmt.number_key(number)
            if self._rows[number]:
                self._tables.put(FEED, key, _encoder.encode(self._rows[number]))
            else:
                self._tables.delete(FEED, key)
        self._changed.clear()

    def _row(self, number: int) -> list[_Entry]:
        if number not in self._rows:
            data = self._tables.get(FEED, fmt.number_key(number))
            self._rows[number] = [] if data is None else _unpack(data)
        return self._rows[number]
