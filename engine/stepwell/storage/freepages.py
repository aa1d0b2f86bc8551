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

    page     number u64, 2 unused bytes, flags u16; then lower u16 and upper u16, or number of pages u32 (overflow);
             from 16 the offsets of its nodes, u16 each, up to lower
    branch   node: child page (u16, u16, u16: low to high), key length u16, key
    leaf     node: data length (u16, u16), flags u16, key length u16, key, data or the number of an overflow page
    record   key: transaction u64; data: count u64, then the pages, u64 each, descending; there may be more after it
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import gt
from typing import Final, NamedTuple, Self, cast

from stepwell.storage.datafile import FORMAT, MAGIC, PAGE_HEADER_BYTES, PAGE_SIZES

# Magic, format, of the freeDB: page size, depth, pages (branch, leaf, overflow), records, root; last page, transaction.
_META = struct.Struct("<II16xIxxHQQQQQ48xQQ")
_PAGE = struct.Struct("<QxxHHH")  # number, flags, lower, upper
_OVERFLOW = struct.Struct("<QxxHI")  # number, flags, pages
_NODE = struct.Struct("<HHHH")
_NUMBER = struct.Struct("<Q")
_BRANCH, _LEAF, _OVERFLOW_PAGE = 0x01, 0x02, 0x04
_IN_OVERFLOW: Final = 0x01  # flag of a node
_NO_ROOT: Final = (1 << 64) - 1
_FIRST_PAGE: Final = 2  # 0 and 1 are the meta pages
_DEEPEST: Final = 32

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


def can_read() -> bool:
    """Whether LMDB's files are laid out on this system as described here."""
    return sys.byteorder == "little" and sys.maxsize > 1 << 32


def missing_pages(path: str) -> list[int]:
    """The pages that lie beyond the end of a file though they are not free: all that is missing from it.

    Raises:
        OSError: It cannot be read.
        UnclearError: What is free cannot be told.
    """
    with open(path, "rb", buffering=0) as file:
        descriptor = file.fileno()
        page_bytes = _page_bytes(descriptor)
        heads = [os.pread(descriptor, _META.size, page * page_bytes + PAGE_HEADER_BYTES) for page in range(_FIRST_PAGE)]
        if len(heads[-1]) < _META.size:
            raise UnclearError("there is no second meta page")
        transaction, last = max((written, last) for *_, last, written in map(_META.unpack, heads))
        free = before(_FreeDb(descriptor, transaction).lists, transaction + 1)
        beyond = range(os.fstat(descriptor).st_size // page_bytes, last + 1)
    return sorted(set(beyond).difference(free))


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
    """The transactions that are being read, from what LMDB says of its table of readers.

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
            _, _, transaction = line.split()
            if transaction != "-":  # a slot that somebody keeps, without reading
                readers.append(int(transaction))
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
        return os.fstat(self._descriptor).st_blocks * 512

    def unused_end(self, used_bytes: int) -> Extent | None:
        """What follows the last page in use."""
        length = os.fstat(self._descriptor).st_size - used_bytes
        return Extent(used_bytes, length) if length > 0 else None

    def free(self, transaction: int) -> list[FreeList]:
        """What was free after a transaction, the oldest list first; it must be the newest, or be read by somebody.

        Raises:
            UnclearError: The file does not say so beyond doubt.
        """
        return _FreeDb(self._descriptor, transaction).lists

    def occupied(self, pages: list[int], fewest: int = 1) -> list[Extent]:
        """Where some pages, given in order, have blocks of the disk: runs of `fewest` pages at least."""
        page_bytes = _page_bytes(self._descriptor)
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
        page_bytes = _page_bytes(self._descriptor)
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


class _FreeDb:
    """The tree of what is free, read and checked in every respect that can be checked without the other trees."""

    def __init__(self, descriptor: int, transaction: int) -> None:
        self._descriptor = descriptor
        self._page_bytes = _page_bytes(descriptor)
        meta = self._read((transaction & 1) * self._page_bytes + PAGE_HEADER_BYTES, _META.size)
        magic, format_, page_bytes, depth, *counts, records, root, last, written = _META.unpack(meta)
        if (magic, format_, page_bytes, written) != (MAGIC, FORMAT, self._page_bytes, transaction):
            raise UnclearError(f"no meta page of transaction {transaction}")
        self._last = last
        self._transaction = transaction
        self._depth = depth
        self._visited: list[int] = []
        self._counts = [0, 0, 0]  # pages: branch, leaf, overflow
        self.lists: list[FreeList] = []
        if root == _NO_ROOT:
            return
        if not 0 < depth <= _DEEPEST:
            raise UnclearError(f"a tree of depth {depth}")
        self._walk(root, 1)
        if (self._counts, len(self.lists)) != (counts, records):
            raise UnclearError(f"{self._counts} pages and {len(self.lists)} records, not {counts} and {records}")
        self._check()

    def _check(self) -> None:
        """No page is free twice, and none that the tree itself stands in."""
        pages = before(self.lists, self._transaction + 1)
        if not all(map(gt, pages[1:], pages)):
            raise UnclearError("a page is free twice")
        for page in self._visited:
            place = bisect_left(pages, page)
            if place < len(pages) and pages[place] == page:
                raise UnclearError(f"page {page} is free and in use")

    def _walk(self, number: int, depth: int) -> None:
        page = self._page(number)
        stored, flags, lower, upper = _PAGE.unpack_from(page)
        leaf = depth == self._depth
        if stored != number or flags != (_LEAF if leaf else _BRANCH):
            raise UnclearError(f"page {number} is no page of the tree")
        if not PAGE_HEADER_BYTES < lower <= upper <= len(page) or lower % 2:
            raise UnclearError(f"page {number} has room from {lower} to {upper}")
        self._counts[leaf] += 1
        for (offset,) in struct.iter_unpack("<H", page[PAGE_HEADER_BYTES:lower]):
            if not upper <= offset <= len(page) - _NODE.size:
                raise UnclearError(f"page {number} has a node at {offset}")
            low, high, top, key_bytes = _NODE.unpack_from(page, offset)
            if leaf:
                self._record(page, offset + _NODE.size, low | high << 16, top, key_bytes)
            else:
                self._walk(low | high << 16 | top << 32, depth + 1)

    def _record(self, page: bytes, offset: int, length: int, flags: int, key_bytes: int) -> None:
        start = offset + _NUMBER.size
        if key_bytes != _NUMBER.size or flags & ~_IN_OVERFLOW or length < _NUMBER.size or length % _NUMBER.size:
            raise UnclearError(f"a record has flags {flags}, a key of {key_bytes} bytes and data of {length}")
        if start + (_NUMBER.size if flags & _IN_OVERFLOW else length) > len(page):
            raise UnclearError("a record goes beyond its page")
        (transaction,) = _NUMBER.unpack_from(page, offset)
        last = self.lists[-1].transaction if self.lists else 0
        if not last < transaction <= self._transaction:
            raise UnclearError(f"transaction {transaction} comes after {last}")
        if flags & _IN_OVERFLOW:
            data = self._overflow(_NUMBER.unpack_from(page, start)[0], length)
        else:
            data = page[start : start + length]
        numbers = array("Q", data)
        count = numbers[0]
        if count >= len(numbers):
            raise UnclearError(f"{count} pages in {length} bytes")
        pages = numbers[1 : count + 1]
        if pages and (pages[0] > self._last or pages[-1] < _FIRST_PAGE or not all(map(gt, pages, pages[1:]))):
            raise UnclearError(f"the pages since transaction {transaction} are out of order")
        self.lists.append(FreeList(transaction, pages))

    def _overflow(self, number: int, length: int) -> bytes:
        # The run is longer than it need be if LMDB had reserved more in it than it then put there.
        stored, flags, count = _OVERFLOW.unpack_from(self._page(number))
        if (stored, flags) != (number, _OVERFLOW_PAGE) or count * self._page_bytes < PAGE_HEADER_BYTES + length:
            raise UnclearError(f"page {number} is no run of pages with {length} bytes")
        self._counts[2] += count
        self._visit(number + 1, count - 1)
        return self._read(number * self._page_bytes + PAGE_HEADER_BYTES, length)

    def _page(self, number: int) -> bytes:
        self._visit(number, 1)
        return self._read(number * self._page_bytes, self._page_bytes)

    def _visit(self, number: int, count: int) -> None:
        if not _FIRST_PAGE <= number <= self._last + 1 - count:
            raise UnclearError(f"there is no page {number}")
        if len(self._visited) + count > self._last:
            raise UnclearError("the tree has more pages than the file")
        self._visited += range(number, number + count)

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise UnclearError(f"the file ends at {offset + len(data)}")
        return data


def _page_bytes(descriptor: int) -> int:
    head = os.pread(descriptor, _META.size, PAGE_HEADER_BYTES)
    if len(head) < _META.size:
        raise UnclearError("there is no meta page")
    magic, _, page_bytes, *_ = _META.unpack(head)
    if magic != MAGIC or page_bytes not in PAGE_SIZES:
        raise UnclearError("there is no meta page")
    return int(page_bytes)


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
