"""Checksums of the rows that have none of their own: all but events and segments.

    value as stored = value, then CRC-32 of (the table's name, key, value), u32

It finds accidents, as the hash of a record does.  It covers the key, so a row is not believed in another place.

That a row is absent is proven too.  It would stand between the row before its place and the row after it, however
damaged its own key is; if these two are what was written, there is nothing between them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import repeat
from typing import Final, Protocol
from zlib import crc32

from stepwell.errors import CorruptionError
from stepwell.storage.tables import DERIVED, INDEX, LANES, META, NAMES, THREADS, Tables

CHECKSUM_BYTES: Final = 4
_CHECKSUM = struct.Struct(">I")
_THREAD_BYTES: Final = 8
_BEGUN: Final = {table: crc32(table.encode()) for table in (META, *DERIVED)}
_OF_THREADS: Final = frozenset((THREADS, NAMES, LANES, INDEX))  # whose keys begin with a thread's number

Row = tuple[bytes, bytes]
"""Key and value as stored."""


class StoredTables(Tables, Protocol):
    """Tables with their rows as they are stored."""

    def columns(self, table: str, start: bytes, stop: bytes) -> tuple[list[bytes], list[bytes]]:
        """The keys with start <= key < stop, in order, and the values to them."""

    def neighbours(self, table: str, key: bytes) -> tuple[Row | None, Row | None]:
        """The last row before a key, and the first one at it or after it."""


class CheckedTables:
    """Tables whose rows are what was written, or raise CorruptionError; rows of events and segments as they stand."""

    def __init__(self, stored: StoredTables) -> None:
        self._stored = stored

    def get(self, table: str, key: bytes) -> bytes | None:
        stored = self._stored.get(table, key)
        if table not in _BEGUN:
            return stored
        if stored is not None:
            return checked(table, key, stored)
        self._prove_edge(table, key)
        return None

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[Row]:
        rows = self._stored.scan(table, start, stop)
        return rows if table not in _BEGUN else self._check(table, rows, start, stop)

    def scan_back(self, table: str, start: bytes, stop: bytes) -> Iterator[Row]:
        rows = self._stored.scan_back(table, start, stop)
        return rows if table not in _BEGUN else self._check_back(table, rows, start, stop)

    def keys(self, table: str, start: bytes, stop: bytes) -> list[bytes]:
        if table not in _BEGUN:
            return self._stored.keys(table, start, stop)
        keys, values = self._stored.columns(table, start, stop)
        self._prove_edge(table, start)
        self._prove_last(table, start, stop, keys[-1] if keys else None)
        # Most rows that are asked for in bulk have no value, and are proven all at once.
        if struct.pack(f">{len(keys)}I", *map(crc32, keys, repeat(_BEGUN[table]))) != b"".join(values):
            for key, stored in zip(keys, values, strict=True):
                checked(table, key, stored)
        return keys

    def rows(self, table: str, start: bytes, stop: bytes, *, limit: int | None = None) -> list[Row]:
        rows = self._stored.rows(table, start, stop, limit=limit)
        if table not in _BEGUN:
            return rows
        self._prove_edge(table, start)
        if len(rows) != limit:
            self._prove_last(table, start, stop, rows[-1][0] if rows else None)
        begun, pack = _BEGUN[table], _CHECKSUM.pack
        proven = []
        for key, stored in rows:
            value = stored[:-CHECKSUM_BYTES]
            if stored[-CHECKSUM_BYTES:] != pack(crc32(value, crc32(key, begun))):
                checked(table, key, stored)  # raises and says what is wrong
            proven.append((key, value))
        return proven

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        if table not in _BEGUN:
            return self._stored.next_key(table, start, stop)
        _, after = self._prove_edge(table, start)
        return after[0] if after is not None and after[0] < stop else None

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        if table not in _BEGUN:
            return self._stored.previous_key(table, start, stop)
        before, _ = self._prove_edge(table, stop)
        return before[0] if before is not None and before[0] >= start else None

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._stored.put(table, key, value if table not in _BEGUN else with_checksum(table, key, value))

    def delete(self, table: str, key: bytes) -> None:
        self._stored.delete(table, key)

    def _check(self, table: str, rows: Iterator[Row], start: bytes, stop: bytes) -> Iterator[Row]:
        """The values of rows, the first and the last of which are proven to be so if they are reached."""
        self._prove_edge(table, start)
        last = None
        for last, stored in rows:
            yield last, checked(table, last, stored)
        self._prove_last(table, start, stop, last)

    def _check_back(self, table: str, rows: Iterator[Row], start: bytes, stop: bytes) -> Iterator[Row]:
        """`_check` for rows in reverse order."""
        self._prove_edge(table, stop)
        last = None
        for last, stored in rows:
            yield last, checked(table, last, stored)
        _, after = self._prove_edge(table, start)
        if after is not None and after[0] < stop and after[0] != last:
            raise _out_of_order(table)

    def _prove_last(self, table: str, start: bytes, stop: bytes, last: bytes | None) -> None:
        """Raise unless a row is the last of a range, or there is none; a damaged key may have ended it too soon."""
        before, _ = self._prove_edge(table, stop)
        if before is not None and before[0] >= start and before[0] != last:
            raise _out_of_order(table)

    def _prove_edge(self, table: str, key: bytes) -> tuple[Row | None, Row | None]:
        """The rows beside a place; raises unless they are what was written, and it is their place."""
        before, after = self._stored.neighbours(table, key)
        for row in (before, after):
            if row is not None:
                checked(table, *row)
        if (before is not None and before[0] >= key) or (after is not None and after[0] < key):
            raise _out_of_order(table)
        return before, after


def _out_of_order(table: str) -> CorruptionError:
    return CorruptionError(f"the rows of {table!r} are out of order")


def with_checksum(table: str, key: bytes, value: bytes) -> bytes:
    """A value as it is stored."""
    return value + _CHECKSUM.pack(crc32(value, crc32(key, _BEGUN[table])))


def plain_value(table: str, key: bytes, stored: bytes) -> bytes:
    """The value of a row of any table.

    Raises:
        CorruptionError: It has a checksum, and is not what was written in this place.
    """
    return checked(table, key, stored) if table in _BEGUN else stored


def checked(table: str, key: bytes, stored: bytes) -> bytes:
    """The value of a row.

    Raises:
        CorruptionError: It is not what was written in this place.
    """
    value = stored[:-CHECKSUM_BYTES]
    if stored[-CHECKSUM_BYTES:] != _CHECKSUM.pack(crc32(value, crc32(key, _BEGUN[table]))):
        thread = int.from_bytes(key[:_THREAD_BYTES]) if table in _OF_THREADS else 0
        raise CorruptionError(f"a row of {table!r} is damaged: its checksum does not match", thread=thread or None)
    return value
