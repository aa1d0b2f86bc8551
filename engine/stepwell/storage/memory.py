"""The engine behind `:memory:`: the tables of `tables.py` in sorted lists, gone when it is closed."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from stepwell.cache import Cache
from stepwell.errors import ClosedError, ForkedError, UsageError
from stepwell.storage import Compaction
from stepwell.storage.occupancy import Occupancy, TableSize
from stepwell.storage.ordered import TableStorage
from stepwell.storage.tables import ALL, Tables


class MemoryStorage(TableStorage):
    """A log that lives as long as the process keeps it open.

    Readers and the writer take turns: nothing here is ever slow enough for that to matter.
    """

    path = ":memory:"
    read_only = False

    def __init__(self, *, cache: Cache | None = None) -> None:
        super().__init__(cache)
        self.log_id = os.urandom(16)
        self._tables: _MemoryTables | None = _MemoryTables()
        self._lock = threading.RLock()
        self._commits = 0
        self._pid = os.getpid()

    @contextmanager
    def _reading(self) -> Iterator[Tables]:
        self._check_process()
        with self._lock:
            yield self._open_tables()

    @contextmanager
    def _writing(self) -> Iterator[tuple[Tables, int]]:
        self._check_process()
        with self._lock:
            tables = self._open_tables()
            try:
                yield tables, self._commits + 1
            except BaseException:
                tables.undo()
                raise
            tables.keep()
            self._commits += 1

    def moment(self) -> int:
        with self._reading():
            return self._commits

    def occupancy(self) -> Occupancy:
        with self._reading():
            return Occupancy(
                {table: TableSize(rows, 0) for table, rows in self._open_tables().counts().items()}, None, ()
            )

    def give_back(self, least_bytes: int = 0, *, in_background: bool = False) -> int:
        with self._reading():
            return 0  # Python takes back what is deleted at once

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError(f"the log in memory belongs to process {self._pid}, which this process was forked from")

    def _open_tables(self) -> _MemoryTables:
        if self._tables is None:
            raise ClosedError("the log in memory was closed, and its content is gone; open a new one")
        return self._tables

    def compact(self, into: str) -> Compaction:
        raise UsageError("a log in memory has no file to make a smaller copy of; copy its threads into another log")

    def begin_closing(self, is_own: Callable[[], bool]) -> None:
        pass  # nobody is kept out: readers take turns with who closes

    def close(self) -> None:
        if self._pid == os.getpid():
            with self._lock:
                self._tables = None


class _MemoryTables:
    """Each table is a dict and its keys in order; a journal of old values makes a group undoable."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[bytes, bytes]] = {table: {} for table in ALL}
        self._keys: dict[str, list[bytes]] = {table: [] for table in ALL}
        self._journal: list[tuple[str, bytes, bytes | None]] = []

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._rows[table].get(key)

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows, keys = self._rows[table], self._keys[table]
        for index in range(bisect_left(keys, start), bisect_left(keys, stop)):
            yield keys[index], rows[keys[index]]

    def scan_back(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows, keys = self._rows[table], self._keys[table]
        for index in range(bisect_left(keys, stop) - 1, bisect_left(keys, start) - 1, -1):
            yield keys[index], rows[keys[index]]

    def keys(self, table: str, start: bytes, stop: bytes) -> list[bytes]:
        keys = self._keys[table]
        return keys[bisect_left(keys, start) : bisect_left(keys, stop)]

    def rows(self, table: str, start: bytes, stop: bytes, *, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        return [*islice(self.scan(table, start, stop), limit)]

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        keys = self._keys[table]
        index = bisect_left(keys, start)
        return keys[index] if index < len(keys) and keys[index] < stop else None

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        keys = self._keys[table]
        index = bisect_left(keys, stop) - 1
        return keys[index] if index >= 0 and keys[index] >= start else None

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._journal.append((table, key, self._rows[table].get(key)))
        self._set(table, key, value)

    def delete(self, table: str, key: bytes) -> None:
        if key in self._rows[table]:
            self._journal.append((table, key, self._rows[table][key]))
            self._set(table, key, None)

    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        return {table: len(keys) for table, keys in self._keys.items()}

    def keep(self) -> None:
        """Make what was changed since the last call final."""
        self._journal.clear()

    def undo(self) -> None:
        """Take back what was changed since the last `keep`."""
        while self._journal:
            self._set(*self._journal.pop())

    def _set(self, table: str, key: bytes, value: bytes | None) -> None:
        rows, keys = self._rows[table], self._keys[table]
        if value is None:
            del rows[key]
            del keys[bisect_left(keys, key)]
        else:
            if key not in rows:
                insort(keys, key)
            rows[key] = value
