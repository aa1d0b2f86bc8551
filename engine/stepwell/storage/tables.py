"""The tables of a log, and how their rows are found; the same for every engine that offers ordered tables.

    threads  thread number              ThreadRow: the catalogue
    names    owner, hash of name        number, name
    events   thread, sequence           record: what is in no segment yet
    segments thread, last sequence,     many records in one block
             part
    lanes    thread, lane               LaneRow
    index    thread, lane, step id      IndexRow; a further row, with the first sequence that it names, more writes
    items    item                       ItemRow: where the newest version stands, and often what it is
    versions item, commit               up to 64 older versions of the item, or more of one commit
    expiries time, item                 nothing: when an item expires
    feed     commit number over 64      place, thread, first sequence and length of each of these appends
    recent   facet, epoch, span, thread nothing: what lists of threads begin with (`catalogue.py`)
    ids      thread id, thread number   nothing: the ids in order
    meta     name                       what the log itself is

Everything but `events`, `segments` and `meta` is derived from the events.  An engine gives transactions over
these tables (`Tables`) and is done: `records.py` reads events, `commit.py` changes, `ordered.py` answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from stepwell import format as fmt
from stepwell.errors import CorruptionError
from stepwell.storage import LaneRow, ThreadRow, unpack_lane, unpack_name, unpack_thread

META: Final = "meta"
THREADS: Final = "threads"
NAMES: Final = "names"
EVENTS: Final = "events"
SEGMENTS: Final = "segments"
LANES: Final = "lanes"
INDEX: Final = "index"
FEED: Final = "feed"
RECENT: Final = "recent"
IDS: Final = "ids"
ITEMS: Final = "items"
VERSIONS: Final = "versions"
EXPIRIES: Final = "expiries"
DERIVED: Final = (THREADS, NAMES, LANES, INDEX, FEED, RECENT, IDS, ITEMS, VERSIONS, EXPIRIES)
ALL: Final = (META, EVENTS, SEGMENTS, *DERIVED)

THREAD_NAMES: Final = 0  # owner of thread ids among the names
ITEMS_OWNER: Final = fmt.name_key(THREAD_NAMES, fmt.ITEMS_THREAD_ID.encode())[8:]  # `name_hash` of the thread of items
PAGE_ROWS: Final = 512  # rows held at once
PAGE_BYTES: Final = 1 << 24  # a page of records ends with the one that goes beyond this
AFTER_ALL: Final = b"\xff" * 64


class Tables(Protocol):
    """Ordered tables of bytes within one transaction."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value, or None."""

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, in order."""

    def scan_back(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, in reverse order."""

    def keys(self, table: str, start: bytes, stop: bytes) -> list[bytes]:
        """All keys with start <= key < stop, in order; for ranges that are known to be small, or wanted whole."""

    def rows(self, table: str, start: bytes, stop: bytes, *, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        """All rows with start <= key < stop, in order, or so many; for what is known to be small, or wanted whole."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a row."""

    def delete(self, table: str, key: bytes) -> None:
        """Remove a row, if it is there."""

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        """The first key with start <= key < stop, without its value."""

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        """The last key with start <= key < stop, without its value."""


def first_page(rows: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The first of some rows, as many as are held at once; none only if there are none."""
    page: list[tuple[bytes, bytes]] = []
    size = 0
    for row in rows:
        page.append(row)
        size += len(row[1])
        if len(page) == PAGE_ROWS or size > PAGE_BYTES:
            break
    return page


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that begin with `prefix`."""
    number = int.from_bytes(prefix) + 1
    return number.to_bytes(len(prefix)) if number >> (8 * len(prefix)) == 0 else AFTER_ALL


def find_thread(tables: Tables, thread_id: str) -> ThreadRow | None:
    name_key = fmt.name_key(THREAD_NAMES, thread_id.encode())
    data = tables.get(NAMES, name_key)
    if data is None:
        return None
    number, found = unpack_name(data)
    data = tables.get(THREADS, fmt.number_key(number))
    row = None if data is None else unpack_thread(data, number)
    if row is None or found != thread_id or row.name_hash != name_key[8:]:
        raise CorruptionError("the catalogue does not match the names", thread=thread_id)
    return row


def find_lane(tables: Tables, thread: int, name: str) -> int | None:
    data = tables.get(NAMES, fmt.name_key(thread, name.encode()))
    if data is None:
        return None
    number, found = unpack_name(data, thread)
    if found != name:
        raise CorruptionError(f"the name of lane {number} does not match its hash", thread=thread)
    if number >> 32:
        raise CorruptionError(f"there can be no lane {number}", thread=thread)
    return number


def load_lane(tables: Tables, thread: int, lane: int) -> LaneRow:
    data = tables.get(LANES, fmt.lane_key(thread, lane))
    if data is None:
        raise CorruptionError(f"lane {lane} is missing", thread=thread)
    return unpack_lane(data, thread)


def load_name(tables: Tables, owner: int, name_hash: bytes) -> str:
    data = tables.get(NAMES, fmt.number_key(owner) + name_hash)
    if data is None:
        raise CorruptionError("a name is missing", thread=owner or None)
    return unpack_name(data, owner)[1]


def last_number(tables: Tables, table: str) -> int:
    row = next(tables.scan_back(table, b"", AFTER_ALL), None)
    return 0 if row is None else fmt.read_number(row[0])
