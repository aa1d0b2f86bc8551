"""What a log tells about itself at any moment, without looking at what it stores.

What is stored, and who reads, the storage tells from its own counts.  What this process has written since it opened
the log the writer counts as it goes, once for each group: it alone changes the counts, so there is no lock, and whoever
reads them in the midst of a group sees some of it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

import msgspec

from stepwell import format as fmt
from stepwell.cache import Cache
from stepwell.events import Commit
from stepwell.storage import Storage
from stepwell.storage.occupancy import FileRoom, Reader, TableSize
from stepwell.storage.tables import ITEMS, THREADS

SECONDS: Final = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
GROUP_SIZES: Final = tuple(float(1 << power) for power in range(11))  # powers of two, up to the largest group


class Histogram(msgspec.Struct, frozen=True):
    """How often something had which size.

    Attributes:
        bounds: The largest size of each bucket but the last, which has none.
        counts: How often a size was in each bucket; one more than `bounds`.
        total: The sum of all sizes.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How often it was anything."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """The mean size; 0 if there was none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """A size that at least so large a share of all sizes does not exceed: the bound of a bucket.

        Infinity where only the last bucket holds that share; 0 if there was none.
        """
        wanted, reached = share * self.count, 0
        if not wanted:
            return 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            reached += count
            if reached >= wanted:
                return bound
        return float("inf")


class WriterStats(NamedTuple):
    """What this process has written through this log since it was opened.

    Attributes:
        groups: Groups that were committed, each with one sync.
        failed_groups: Groups that could not be; each operation of one is tried by itself then.
        appends: Appends that were committed.
        events: Events in them, without those that the log adds (a thread or a lane is opened).
        stored_bytes: Bytes of their records.
        commit_seconds: How long committing a group took, waiting for other processes and the syncs included.
        group_sizes: Operations in a group.
    """

    groups: int
    failed_groups: int
    appends: int
    events: int
    stored_bytes: int
    commit_seconds: Histogram
    group_sizes: Histogram


class CacheStats(NamedTuple):
    """What is remembered of the log in this process.

    Attributes:
        size_bytes: What it takes of the memory, about.
        most_bytes: The budget, `Log.open(cache_bytes=)`.
    """

    size_bytes: int
    most_bytes: int


class LogStats(NamedTuple):
    """What a log tells about itself at one moment.

    Attributes:
        commit: The newest commit number.
        threads: Threads that were ever opened, deleted ones included.
        items: What is remembered across threads now, each by its namespace and key.
        items_bytes: Bytes of the records and segments that hold it, with its past.
        tables: Rows and bytes of each table: `events` are the loose events, `segments` the sealed ones, the others
            are derived.
        file: What the file takes of disk and map; None of a log in memory.
        readers: How many read at this moment, of all processes.
        oldest_reader: The one who reads the oldest state; None if nobody reads.
        cache: What this process remembers.
        writer: What this process has written.
    """

    commit: Commit
    threads: int
    items: int
    items_bytes: int
    tables: dict[str, TableSize]
    file: FileRoom | None
    readers: int
    oldest_reader: Reader | None
    cache: CacheStats
    writer: WriterStats


class Tally:
    """The counts of one writer, which is the only one to change them."""

    def __init__(self) -> None:
        self.failed_groups = 0
        self._appends = self._events = self._stored_bytes = self._operations = 0
        self._seconds = 0.0
        self._by_seconds = [0] * (len(SECONDS) + 1)
        self._by_power = [0] * 64  # of two

    def group(self, seconds: float, operations: int) -> None:
        """Count a group that was committed."""
        self._by_seconds[bisect_left(SECONDS, seconds)] += 1
        self._by_power[(operations - 1).bit_length()] += 1
        self._seconds += seconds
        self._operations += operations

    def append(self, events: int, stored_bytes: int) -> None:
        """Count one of its appends."""
        self._appends += 1
        self._events += events
        self._stored_bytes += stored_bytes

    def stats(self) -> WriterStats:
        """What was counted so far."""
        seconds = Histogram(SECONDS, tuple(self._by_seconds), self._seconds)
        powers = len(GROUP_SIZES)
        by_size = *self._by_power[:powers], sum(self._by_power[powers:])
        sizes = Histogram(GROUP_SIZES, by_size, self._operations)
        return WriterStats(
            seconds.count, self.failed_groups, self._appends, self._events, self._stored_bytes, seconds, sizes
        )


def collect(storage: Storage, cache: Cache, tally: Tally) -> LogStats:
    """What a log tells about itself; for any size of log in about the same time."""
    occupancy = storage.occupancy()
    own = storage.thread(fmt.ITEMS_THREAD_ID)
    return LogStats(
        commit=Commit(storage.newest()),
        threads=occupancy.tables[THREADS].rows - (own is not None),
        items=occupancy.tables[ITEMS].rows,
        items_bytes=0 if own is None else own.stored_bytes,
        tables=occupancy.tables,
        file=occupancy.file,
        readers=len(occupancy.readers),
        oldest_reader=occupancy.readers[0] if occupancy.readers else None,
        cache=CacheStats(cache.size_bytes, cache.most_bytes),
        writer=tally.stats(),
    )
