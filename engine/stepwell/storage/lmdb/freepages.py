"""Which pages of an LMDB file nothing points to any more, and how their room goes back to the file system.

LMDB never makes its file shorter.  It keeps a tree of what is free, the freeDB: under the number of a
transaction stand the pages that this transaction was the last not to need.  Punching a hole there gives the
blocks back; the length of the file stays, and a page in a hole reads as zeros until it is written again.

Why a hole does no harm.  Write transaction N+1, N being the newest that was committed, overwrites a page of
record T if T < min(N, R), R being the oldest transaction that a reader still reads (`mdb_page_alloc`,
`mdb_find_oldest`).  Holding the lock of the writers we punch exactly those pages, so:

    1. Nobody else allocates, and nobody frees, while we look and punch.
    2. No state from min(N, R) on has the page in a tree: neither a reader's, nor N, nor N-1, to which LMDB falls
       back if the newest meta page is lost.  What stands under T was freed by T or before; or it was
       free when a transaction took it, and was given back by the same transaction.
    3. LMDB does not read what stands in a free page: it fills a page, or a run of pages, in memory and writes
       all of it.  A plain copy of the environment copies zeros instead of old bytes.
    4. It is no write: nothing has to reach the disk in any order, and a crash leaves the hole or the old bytes.

So whatever is wrong with readers or syncs for a hole was wrong for LMDB's own use of the page before.  What is
read here is not believed: unless all of the freeDB is as LMDB writes it, nothing is free.

    record   key: transaction u64; data: count u64, then the pages, u64 each, descending; there may be more after it
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import gt
from typing import Final, NamedTuple, NoReturn, Self, cast

from stepwell.storage.lmdb.pages import FIRST_PAGE, FORMAT, META_BYTES, Meta, PageError, Pages, Row, can_read, read_meta
from stepwell.storage.newfile import occupied_bytes

_NUMBER_BYTES: Final = 8

_KEEP_SIZE: Final = 0x01  # FALLOC_FL_KEEP_SIZE
_PUNCH_HOLE: Final = _KEEP_SIZE | 0x02  # FALLOC_FL_PUNCH_HOLE
_UNABLE: Final = {errno.EOPNOTSUPP, errno.ENOSYS}


class UnclearError(Exception):
    """The file does not say beyond doubt what is free."""


class UnableError(OSError):
    """The system or the file system makes no holes."""


class Extent(NamedTuple):
    """Consecutive bytes of the file."""

    offset: int
    length: int


class FreeList(NamedTuple):
    """Pages that are free since a transaction, the highest first."""

    transaction: int
    pages: array[int]


def can_punch() -> bool:
    """Whether there is a way to make holes at all, and the file is laid out as described here."""
    return _fallocate is not None


def can_allocate() -> bool:
    """Whether there is a way to give blocks to a file without writing to it."""
    return _fallocate is not None


def allocate(descriptor: int, length: int) -> None:
    """Give blocks to the beginning of a file; its length, and what it holds, stay.

    Raises:
        OSError: There is no room, or the file system cannot do it.
    """
    _call_fallocate(descriptor, _KEEP_SIZE, 0, length)


def read_free(pages: Pages, meta: Meta) -> list[FreeList]:
    """What is free by a meta page, the oldest list first; the pages that say so are met.

    Raises:
        UnclearError: It is not told beyond doubt, in every respect that can be checked without the other trees.
    """
    lists: list[FreeList] = []
    try:
        for rows in pages.walk(meta.free, _stop):
            for row in rows:
                lists.append(_read_list(pages, meta, row))
                if len(lists) > 1 and lists[-2].transaction >= lists[-1].transaction:
                    raise UnclearError(f"transaction {lists[-1].transaction} comes after {lists[-2].transaction}")
    except PageError as error:
        raise UnclearError(str(error)) from error
    free = before(lists, meta.transaction + 2)
    if not all(map(gt, free[1:], free)):
        raise UnclearError("a page is free twice")
    for page in free:
        if page < pages.count and pages.met[page]:
            raise UnclearError(f"page {page} is free and in use")
    return lists


def _read_list(pages: Pages, meta: Meta, row: Row) -> FreeList:
    if len(row.key) != _NUMBER_BYTES or row.is_tree or not row.length or row.length % _NUMBER_BYTES:
        raise UnclearError(f"a list of free pages has a key of {len(row.key)} bytes and data of {row.length}")
    transaction = array("Q", row.key)[0]
    numbers = array("Q", pages.value(row))
    count = numbers[0]
    # Of the next transaction where the state of one stands under the number before it, see `metapages.py`.
    if not 0 < transaction <= meta.transaction + 1 or count >= len(numbers):
        raise UnclearError(f"transaction {transaction} lists {count} pages in {row.length} bytes")
    free = numbers[1 : count + 1]
    if free and (free[0] > meta.last_page or free[-1] < FIRST_PAGE or not all(map(gt, free, free[1:]))):
        raise UnclearError(f"the pages since transaction {transaction} are out of order")
    return FreeList(transaction, free)


def _stop(error: PageError) -> NoReturn:
    raise error


def _meta(descriptor: int, offset: int) -> Meta:
    meta = read_meta(os.pread(descriptor, META_BYTES, offset))
    if meta is None or meta.format != FORMAT:
        raise UnclearError(f"there is no meta page at {offset}")
    return meta


def before(lists: list[FreeList], transaction: int, reserve: int = 0) -> list[int]:
    """The pages that are free since before a transaction, in order.

    Args:
        lists: All that are free.
        transaction: The transaction.
        reserve: How many pages to leave out: those that LMDB takes next, the lowest of the oldest lists.
    """
    pages: list[int] = []
    for free in lists:
        if free.transaction < transaction:
            kept = min(reserve, len(free.pages))
            reserve -= kept
            pages += free.pages[: len(free.pages) - kept]
    pages.sort()
    return pages


def in_order_of_use(lists: list[FreeList], transaction: int) -> list[int]:
    """The pages that are free since before a transaction, those that LMDB takes next first."""
    return [page for free in lists if free.transaction < transaction for page in reversed(free.pages)]


def oldest_readers(table: str) -> list[int]:
    """The transactions that are being read; as `active_readers`."""
    return [transaction for _, transaction in active_readers(table)]


def active_readers(table: str) -> list[tuple[int, int]]:
    """Process and transaction of all who are reading, from what LMDB says of its table of readers.

    Raises:
        UnclearError: It cannot be told from that.
    """
    lines = table.splitlines()
    if lines == ["(no active readers)"]:
        return []
    if not lines or lines[0].split() != ["pid", "thread", "txnid"]:
        raise UnclearError(f"no table of readers: {table!r}")
    readers = []
    for line in lines[1:]:
        try:
            pid, _, transaction = line.split()
            if transaction != "-":  # a slot that somebody keeps, without reading
                readers.append((int(pid), int(transaction)))
        except ValueError:
            raise UnclearError(f"no reader: {line!r}") from None
    return readers


class PageFile:
    """The file of an environment, to look at and to punch, never to write."""

    def __init__(self, path: str, identity: tuple[int, int]) -> None:
        """Open the file at a path, if it is the one with that device and inode.

        LMDB's own locks are on the lock file: closing this again takes none of them away.

        Raises:
            OSError: It cannot be opened.
            UnclearError: It is another one.
        """
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        if (status.st_dev, status.st_ino) != identity:
            self.close()
            raise UnclearError(f"{path!r} is another file by now")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def occupied_bytes(self) -> int:
        """How much of the disk the file takes."""
        return occupied_bytes(os.fstat(self._descriptor))

    def unused_end(self, used_bytes: int) -> Extent | None:
        """What follows the last page in use."""
        length = os.fstat(self._descriptor).st_size - used_bytes
        return Extent(used_bytes, length) if length > 0 else None

    def free(self, transaction: int) -> list[FreeList]:
        """What was free after a transaction, the oldest list first; it must be the newest, or be read by somebody.

        Raises:
            UnclearError: The file does not say so beyond doubt.
        """
        page_bytes = _meta(self._descriptor, 0).page_bytes
        meta = _meta(self._descriptor, (transaction & 1) * page_bytes)
        if (meta.page_bytes, meta.transaction) != (page_bytes, transaction):
            raise UnclearError(f"no meta page of transaction {transaction}")
        return read_free(Pages(self._descriptor, page_bytes, meta.last_page), meta)

    def occupied(self, pages: list[int], fewest: int = 1) -> list[Extent]:
        """Where some pages, given in order, have blocks of the disk: runs of `fewest` pages at least."""
        page_bytes = _meta(self._descriptor, 0).page_bytes
        found: list[Extent] = []
        for first, count in _runs(pages):
            if count >= fewest:
                extents = _data(self._descriptor, first * page_bytes, (first + count) * page_bytes)
                found += [extent for extent in extents if extent.length >= fewest * page_bytes]
        return found

    def move_blocks(self, pages: list[int]) -> int:
        """Of some pages that are not in use, take the blocks that the last ones have, and give them to the first.

        Args:
            pages: In the order in which they will be used.

        Returns:
            How many bytes were moved.

        Raises:
            OSError: It went wrong; fewer pages have blocks.
        """
        page_bytes = _meta(self._descriptor, 0).page_bytes
        backed = {
            page
            for offset, length in self.occupied(sorted(pages))
            for page in range(-(-offset // page_bytes), (offset + length) // page_bytes)
        }
        first, last = pages[: len(backed)], pages[len(backed) :]
        for start, count in _runs(sorted(backed.intersection(last))):
            self.punch(Extent(start * page_bytes, count * page_bytes))
        holes = sorted(set(first).difference(backed))
        for start, count in _runs(holes):
            _call_fallocate(self._descriptor, 0, start * page_bytes, count * page_bytes)
        return len(holes) * page_bytes

    def punch(self, extent: Extent) -> None:
        """Give the blocks of an extent back.

        Raises:
            UnableError: The system or the file system cannot.
            OSError: It went wrong; the extent is as it was, or a hole in part.
        """
        _call_fallocate(self._descriptor, _PUNCH_HOLE, extent.offset, extent.length)


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """First page and length of each run."""
    if not pages:
        return
    first = last = pages[0]
    for page in pages:
        if page > last + 1:
            yield first, last + 1 - first
            first = page
        last = page
    yield first, last + 1 - first


def _data(descriptor: int, start: int, stop: int) -> Iterator[Extent]:
    """What is no hole between two places; a file system that does not know its holes says: everything."""
    while start < stop:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # there is no more data up to the end of the file
                raise
            return
        if start >= stop:
            return
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), stop)
        yield Extent(start, end - start)
        start = end


def _call_fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    assert _fallocate is not None
    while _fallocate(descriptor, mode, offset, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise (UnableError if code in _UNABLE else OSError)(code, os.strerror(code))


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    if sys.platform == "linux" and can_read():
        with suppress(OSError, AttributeError):
            function = ctypes.CDLL(None, use_errno=True).fallocate
            function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            return cast("Callable[[int, int, int, int], int]", function)
    return None


# None where there is no such call, or where files of LMDB look different (32 bits, big-endian).
_fallocate: Final = _find_fallocate()
