"""The feed: every append of the log in commit order, 64 of them to a row.

A row of its own for each would take more room than what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from typing import Final

import msgspec

from stepwell import format as fmt
from stepwell.storage import FeedRow
from stepwell.storage.tables import AFTER_ALL, FEED, Tables

# On disk: never change it.
COMMITS_IN_ROW: Final = 64

_encoder = msgspec.msgpack.Encoder()
_entries = msgspec.msgpack.Decoder(list[tuple[int, int, int, int]])


def row_number(commit: int) -> int:
    """Which row holds a commit."""
    return commit // COMMITS_IN_ROW


def pack_feed(rows: Several[FeedRow]) -> bytes:
    """The appends of one row as bytes."""
    return _encoder.encode([(row.commit % COMMITS_IN_ROW, row.thread, row.first, row.last - row.first) for row in rows])


def unpack_feed(number: int, data: bytes) -> list[FeedRow]:
    """Inverse of `pack_feed`."""
    start = number * COMMITS_IN_ROW
    return [FeedRow(start + place, thread, first, first + more) for place, thread, first, more in _entries.decode(data)]


def scan(tables: Tables, after: int) -> Iterator[FeedRow]:
    """The appends with commit numbers above `after`, in order."""
    for key, data in tables.scan(FEED, fmt.number_key(row_number(after + 1)), AFTER_ALL):
        yield from (row for row in unpack_feed(fmt.read_number(key), data) if row.commit > after)


class Feed:
    """The end of the feed within one group: rows are read once, changed in memory, and written by `flush`.

    Attributes:
        last: The newest commit number.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._rows: dict[int, list[FeedRow]] = {}
        self.last = 0
        newest = next(tables.scan_back(FEED, b"", AFTER_ALL), None)
        if newest is not None:
            number = fmt.read_number(newest[0])
            self._rows[number] = unpack_feed(number, newest[1])
            self.last = self._rows[number][-1].commit

    def append(self, row: FeedRow) -> None:
        """Add an append; commit numbers rise."""
        self._row(row_number(row.commit)).append(row)
        self.last = row.commit

    def remove(self, commits: Iterable[int]) -> None:
        """Take appends out whose events are gone."""
        doomed: dict[int, set[int]] = {}
        for commit in commits:
            doomed.setdefault(row_number(commit), set()).add(commit)
        for number, gone in doomed.items():
            kept = [row for row in self._row(number) if row.commit not in gone]
            self._rows[number][:] = kept

    def flush(self) -> None:
        """Write what was changed."""
        for number, rows in self._rows.items():
            key = fmt.number_key(number)
            if rows:
                self._tables.put(FEED, key, pack_feed(rows))
            else:
                self._tables.delete(FEED, key)
        self._rows.clear()

    def _row(self, number: int) -> list[FeedRow]:
        if number not in self._rows:
            data = self._tables.get(FEED, fmt.number_key(number))
            self._rows[number] = [] if data is None else unpack_feed(number, data)
        return self._rows[number]
