"""Checksums of rows, and the proof that a row is absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lmdb
import pytest

from stepwell import CorruptionError
from stepwell.storage.checksums import CheckedTables, Row, checked, with_checksum
from stepwell.storage.lmdb.tables import LmdbTables
from stepwell.storage.tables import AFTER_ALL, ALL, EVENTS, FEED, IDS, INDEX, LANES, META, SEGMENTS

KEYS = [bytes(7) + bytes((number,)) for number in (10, 20, 30, 40)]


class Rows:
    """One table, in memory, whose rows stand in an order that keys need not have."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def _at(self, key: bytes) -> int:
        return next((place for place, (found, _) in enumerate(self.rows) if found >= key), len(self.rows))

    def get(self, table: str, key: bytes) -> bytes | None:
        place = self._at(key)
        return self.rows[place][1] if place < len(self.rows) and self.rows[place][0] == key else None

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[Row]:
        for key, value in self.rows[self._at(start) :]:
            if key >= stop:
                return
            yield key, value

    def scan_back(self, table: str, start: bytes, stop: bytes) -> Iterator[Row]:
        for key, value in reversed(self.rows[: self._at(stop)]):
            if key < start:
                return
            yield key, value

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        return next((key for key, _ in self.scan(table, start, stop)), None)

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        return next((key for key, _ in self.scan_back(table, start, stop)), None)

    def neighbours(self, table: str, key: bytes) -> tuple[Row | None, Row | None]:
        place = self._at(key)
        return self.rows[place - 1] if place else None, self.rows[place] if place < len(self.rows) else None

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.delete(table, key)
        self.rows.insert(self._at(key), (key, value))

    def delete(self, table: str, key: bytes) -> None:
        self.rows = [row for row in self.rows if row[0] != key]


def made() -> tuple[Rows, CheckedTables]:
    """A table with four rows."""
    rows = Rows([])
    tables = CheckedTables(rows)
    for key in KEYS:
        tables.put(LANES, key, b"value of " + key)
    return rows, tables


@pytest.mark.parametrize("table", ALL)
def test_every_change_is_found(table: str) -> None:
    """No bit of a row's key or value can change, and no row stand in another table or be cut, without being found."""
    if table in (EVENTS, SEGMENTS):
        return
    key, value = b"k" * 16, b"some value"
    stored = with_checksum(table, key, value)
    assert checked(table, key, stored) == value
    assert len(stored) == len(value) + 4
    changes = [(key, stored[:length]) for length in range(len(stored))]
    changes += [(key, stored[:at] + bytes((stored[at] ^ 1,)) + stored[at + 1 :]) for at in range(len(stored))]
    changes += [(key[:at] + b"K" + key[at + 1 :], stored) for at in range(len(key))]
    for other_key, other in changes:
        with pytest.raises(CorruptionError, match=table):
            checked(table, other_key, other)
    with pytest.raises(CorruptionError):
        checked(FEED if table == META else META, key, stored)


def test_thread_of_a_damaged_row() -> None:
    """The error says the thread where the key begins with its number."""
    for table, thread in ((INDEX, 9), (FEED, None)):
        with pytest.raises(CorruptionError) as caught:
            checked(table, (9).to_bytes(8) + b"rest", b"damaged")
        assert caught.value.thread == thread


def test_events_and_segments_stand_as_they_are() -> None:
    """Rows that have a checksum of their own get no other."""
    rows, tables = Rows([]), CheckedTables(Rows([]))
    tables = CheckedTables(rows)
    for table in (EVENTS, SEGMENTS):
        tables.put(table, b"key", b"record")
        assert rows.rows == [(b"key", b"record")]
        assert tables.get(table, b"key") == b"record"
        assert list(tables.scan(table, b"", AFTER_ALL)) == list(tables.scan_back(table, b"", AFTER_ALL)) == rows.rows
        assert tables.next_key(table, b"", b"z") == tables.previous_key(table, b"", b"z") == b"key"
        assert tables.get(table, b"other") is None


def test_rows_and_absent_rows() -> None:
    """Sound rows are found, and others absent, alone and in ranges."""
    _, tables = made()
    assert [tables.get(LANES, key) for key in KEYS] == [b"value of " + key for key in KEYS]
    for number in (0, 5, 15, 35, 99):
        assert tables.get(LANES, bytes(7) + bytes((number,))) is None
    for start in range(0, 60, 5):
        for stop in range(start, 60, 5):
            low, high = bytes(7) + bytes((start,)), bytes(7) + bytes((stop,))
            expected = [key for key in KEYS if low <= key < high]
            assert [key for key, _ in tables.scan(LANES, low, high)] == expected
            assert [key for key, _ in tables.scan_back(LANES, low, high)] == expected[::-1]
            assert tables.next_key(LANES, low, high) == (expected[0] if expected else None)
            assert tables.previous_key(LANES, low, high) == (expected[-1] if expected else None)


@pytest.mark.parametrize("number", [0, 5, 12, 17, 25, 33, 99])
@pytest.mark.parametrize("victim", range(4))
def test_a_row_whose_key_changed_is_not_absent(victim: int, number: int) -> None:
    """Wherever a damaged key seems to belong, neither looking for the row nor reading its range passes over it."""
    rows, tables = made()
    key = KEYS[victim]
    rows.rows[victim] = bytes(7) + bytes((number,)), rows.rows[victim][1]
    with pytest.raises(CorruptionError):
        tables.get(LANES, key)
    beyond = key[:7] + bytes((key[7] + 1,))
    for reads in (tables.scan, tables.scan_back):
        with pytest.raises(CorruptionError):
            list(reads(LANES, key, beyond))
        with pytest.raises(CorruptionError):
            list(reads(LANES, b"", AFTER_ALL))
    for read in (tables.next_key, tables.previous_key):
        with pytest.raises(CorruptionError):
            read(LANES, key, beyond)


def test_rows_out_of_order() -> None:
    """A place whose neighbours belong on the other side of it is no place."""
    rows, tables = made()
    rows.neighbours = lambda table, key: (rows.rows[2], rows.rows[3])  # type: ignore[method-assign]
    with pytest.raises(CorruptionError, match="out of order"):
        tables.get(LANES, bytes(7) + b"\x0b")


READS: dict[str, Callable[[CheckedTables], Iterable[object]]] = {
    "scan": lambda tables: tables.scan(IDS, b"B", b"C"),
    "scan_back": lambda tables: tables.scan_back(IDS, b"B", b"C"),
    "rows": lambda tables: tables.rows(IDS, b"B", b"C"),
    "keys": lambda tables: tables.keys(IDS, b"B", b"C"),
}


@pytest.mark.parametrize("seems", [b"A", b"z"])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("victim", [0, 3, 11])
def test_a_range_does_not_end_too_soon(victim: int, read: str, seems: bytes, tmp_path: Path) -> None:
    """LMDB looks for the ends of a range by halves, and may miss a damaged key within it, at which reading ends."""
    key = b"B%02d" % victim
    path = tmp_path / "ids"
    with lmdb.open(str(path), subdir=False, max_dbs=1) as env:
        ids = env.open_db(IDS.encode())
        with env.begin(write=True) as transaction:
            for each in [b"%c%02d" % (first, number) for first in b"ABC" for number in range(12)]:
                transaction.put(each, with_checksum(IDS, each, b""), db=ids)
        with env.begin() as transaction:
            tables = CheckedTables(LmdbTables(transaction, {IDS: ids}))
            assert len(list(READS[read](tables))) == 12
        path.write_bytes(path.read_bytes().replace(key, seems + key[1:]))
        with env.begin() as transaction, pytest.raises(CorruptionError):
            list(READS[read](CheckedTables(LmdbTables(transaction, {IDS: ids}))))
