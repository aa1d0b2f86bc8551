"""How much a log takes, as its engine tells without looking at what is stored, and who reads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class TableSize(NamedTuple):
    """What one table takes.

    Attributes:
        rows: Number of its rows.
        stored_bytes: Bytes of its pages in the file; of a log in memory 0, since nobody counts there.
    """

    rows: int
    stored_bytes: int


class Reader(NamedTuple):
    """Somebody who reads the log at this moment, in this process or another.

    Attributes:
        pid: The process.
        age: Transactions that were committed since the one that it reads.  No page that was freed meanwhile is used
            again before it ends: the file grows instead.
    """

    pid: int
    age: int


class FileRoom(NamedTuple):
    """What the file takes, and how far it can grow; all in bytes.

    Attributes:
        length_bytes: How long the file is.
        disk_bytes: What it takes of the disk, which is less where it has holes.
        used_bytes: Up to its last page in use.
        free_bytes: Of those, in pages of no table: they are used again before the file grows.  The few pages that
            list them are counted among them.
        map_bytes: The map that this process has of it now; it is made larger when it is full.
        headroom_bytes: What the file can still grow by, up to the largest map or the largest file that the process
            may write, less the reserve that is kept for deleting.
        disk_free_bytes: What is free on its file system for all users; None where the system does not tell.
    """

    length_bytes: int
    disk_bytes: int
    used_bytes: int
    free_bytes: int
    map_bytes: int
    headroom_bytes: int
    disk_free_bytes: int | None


class Occupancy(NamedTuple):
    """What an engine tells of a log without looking at what is stored.

    Attributes:
        tables: What each table takes, by name.
        file: What the file takes; None of a log in memory.
        readers: Who reads at this moment, the oldest first.
    """

    tables: dict[str, TableSize]
    file: FileRoom | None
    readers: tuple[Reader, ...]


def by_age(readers: Iterable[tuple[int, int]], newest: int) -> tuple[Reader, ...]:
    """Readers, the oldest first, from the process and the transaction of each."""
    return tuple(
        sorted((Reader(pid, max(newest - transaction, 0)) for pid, transaction in readers), key=lambda each: -each.age)
    )
