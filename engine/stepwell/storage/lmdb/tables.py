"""A transaction of LMDB as the ordered tables that the storage is made of."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator
from itertools import chain, islice, repeat, takewhile
from typing import Final

import lmdb

from stepwell.storage.checksums import Row

PAGE_BYTES: Final = mmap.PAGESIZE  # of LMDB's files, unless they were made elsewhere
_ROW_BYTES: Final = 64  # of a key and what stands beside it
_LARGEST_SHARING_BYTES: Final = PAGE_BYTES // 2 - 48  # a larger value has pages of its own


class LmdbTables:
    def __init__(self, transaction: lmdb.Transaction[bytes], tables: dict[str, lmdb._Database]) -> None:
        self._transaction = transaction
        self._tables = tables
        self.put_bytes = 0  # about as many as the values take in pages

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._transaction.get(key, db=self._tables[table])

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            for key, value in cursor.iternext():
                if key >= stop:
                    return
                yield key, value

    def scan_back(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            # `stop` is excluded, so the scan begins one before it, or at the very end.
            if not (cursor.prev() if cursor.set_range(stop) else cursor.last()):
                return
            for key, value in cursor.iterprev():
                if key < start:
                    return
                yield key, value

    def columns(self, table: str, start: bytes, stop: bytes) -> tuple[list[bytes], list[bytes]]:
        keys: list[bytes] = []
        with self._transaction.cursor(self._tables[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return [], []
            following = cursor.iternext(values=False)
            for length in chain((8, 64), repeat(512)):
                chunk = [*islice(following, length)]
                keys += chunk
                if len(chunk) < length or chunk[-1] >= stop:
                    break
            del keys[bisect_left(keys, stop) :]
            # Twice through the pages costs less than one tuple for each row.
            if not (cursor.set_range(start) if start else cursor.first()):
                return [], []
            return keys, [*islice(cursor.iternext(keys=False), len(keys))]

    def keys(self, table: str, start: bytes, stop: bytes) -> list[bytes]:
        return self.columns(table, start, stop)[0]

    def rows(self, table: str, start: bytes, stop: bytes, *, limit: int | None = None) -> list[Row]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return []
            return [*islice(takewhile(lambda row: row[0] < stop, cursor.iternext()), limit)]

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        with self._transaction.cursor(self._tables[table]) as cursor:
            found = cursor.set_range(start) and cursor.key() < stop
            return cursor.key() if found else None

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        with self._transaction.cursor(self._tables[table]) as cursor:
            found = (cursor.prev() if cursor.set_range(stop) else cursor.last()) and cursor.key() >= start
            return cursor.key() if found else None

    def neighbours(self, table: str, key: bytes) -> tuple[Row | None, Row | None]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            after = cursor.item() if (cursor.set_range(key) if key else cursor.first()) else None
            before = cursor.item() if (cursor.prev() if after else cursor.last()) else None
            return before, after

    def put(self, table: str, key: bytes, value: bytes) -> None:
        size = len(value)
        self.put_bytes += (
            size + _ROW_BYTES if size < _LARGEST_SHARING_BYTES else -(size + 16) // PAGE_BYTES * -PAGE_BYTES
        )
        self._transaction.put(key, value, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> None:
        self._transaction.delete(key, db=self._tables[table])
