"""The pages of an LMDB 0.9 file, read as plain bytes and without the engine.

The engine trusts what it maps; here nothing is trusted.  Every number, offset and length is checked before it is used,
no page is met twice, and what is not as LMDB writes it is told to the caller and not followed: the rest of the tree is
read on.  What a row says is not looked at.

    page     number u64, 2 unused bytes, flags u16; then lower u16 and upper u16, or number of pages u32 (overflow);
             from 16 the offsets of its nodes, u16 each, up to lower; the nodes stand from upper on
    branch   node: child page (u16, u16, u16: low to high), key length u16, key
    leaf     node: data length (u16, u16), flags u16, key length u16, key, data or the number of an overflow page
    overflow pages in a row that hold one value, from 16 on
    meta     pages 0 and 1, written in turn; from 16: magic, format, 16 unused bytes, two trees (of what is free, and of
             the tables by name; the first says the page size in its first field), last page in use, transaction

Numbers stand as the machine has them; `can_read` says whether that is as described here.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

MAGIC: Final = 0xBEEFC0DE
FORMAT: Final = 1  # engine 0.9
PAGE_SIZES: Final = frozenset(1 << bits for bits in range(9, 17))
PAGE_HEADER_BYTES: Final = 16
FIRST_PAGE: Final = 2  # 0 and 1 are the meta pages

# Of a tree: page size or 0, flags, depth, branch pages, leaf pages, overflow pages, rows, root.
_TREE = struct.Struct("=IHHQQQQQ")
_META = struct.Struct(f"=II16x{_TREE.size}s{_TREE.size}sQQ")  # magic, format, free, tables, last page, transaction
TREE_BYTES: Final = _TREE.size
META_BYTES: Final = PAGE_HEADER_BYTES + _META.size
_PAGE = struct.Struct("=QxxHHH")  # number, flags, lower, upper
_OVERFLOW = struct.Struct("=QxxHI")  # number, flags, pages
_NODE = struct.Struct("=HHHH")
_NUMBER = struct.Struct("=Q")
_NO_ROOT: Final = (1 << 64) - 1
_DEEPEST: Final = 32

_BRANCH, _LEAF, _OVERFLOW_PAGE = 0x01, 0x02, 0x04  # flags of a page
_IN_OVERFLOW, _IS_TREE = 0x01, 0x02  # flags of a node


class PageError(Exception):
    """A page is not as LMDB writes it.

    Attributes:
        page: Its number.
        reason: What is wrong.
    """

    def __init__(self, page: int, reason: str) -> None:
        super().__init__(f"page {page} {reason}")
        self.page = page
        self.reason = reason


Damage = Callable[[PageError], None]
"""Told what is wrong; the walk goes on behind it, unless this raises."""


class Tree(NamedTuple):
    """What is said of a tree where its root is named.

    Attributes:
        flags: Which of LMDB's sorts of tables it is; 0 for the plain one.
        depth: Pages from the root to a leaf, both included; 0 if there is none.
        branches: Number of its branch pages.
        leaves: Number of its leaf pages.
        overflow: Number of pages that hold values which do not fit into a leaf.
        rows: Number of its rows.
        root: Its root page.
    """

    flags: int
    depth: int
    branches: int
    leaves: int
    overflow: int
    rows: int
    root: int


class Meta(NamedTuple):
    """A meta page.

    Attributes:
        format: The file format's number.
        page_bytes: Size of a page.
        free: The tree of what is free.
        tables: The tree of tables by name.
        last_page: The last page in use.
        transaction: Which transaction wrote it; the newer of the two counts.
    """

    format: int
    page_bytes: int
    free: Tree
    tables: Tree
    last_page: int
    transaction: int


class Row(NamedTuple):
    """A row of a leaf.

    Attributes:
        key: Its key.
        flags: Its node's flags.
        length: Bytes of its value.
        data: The value, or where it stands if that is in pages of its own.
    """

    key: bytes
    flags: int
    length: int
    data: bytes

    @property
    def run(self) -> int:
        """The first of the pages that hold the value; 0 if it stands in the leaf."""
        return int(_NUMBER.unpack(self.data)[0]) if self.flags & _IN_OVERFLOW else 0

    @property
    def is_tree(self) -> bool:
        """Whether the value is a tree of its own: a table."""
        return bool(self.flags & _IS_TREE)


def can_read() -> bool:
    """Whether LMDB's files are laid out on this system as described here, and can be read from any place."""
    return sys.byteorder == "little" and sys.maxsize > 1 << 32 and hasattr(os, "pread")


def read_meta(page: bytes) -> Meta | None:
    """The meta page behind some bytes; None if they are none, whatever its format."""
    if len(page) < META_BYTES:
        return None
    magic, format_, free, tables, last_page, transaction = _META.unpack_from(page, PAGE_HEADER_BYTES)
    page_bytes = int(_TREE.unpack(free)[0])
    if magic != MAGIC or page_bytes not in PAGE_SIZES:
        return None
    return Meta(format_, page_bytes, read_tree(free), read_tree(tables), last_page, transaction)


def read_tree(data: bytes) -> Tree:
    """What is said of a tree: half of a meta page, or the value of a row that `is_tree`."""
    return Tree(*_TREE.unpack(data)[1:])


class _Page(NamedTuple):
    """A branch or a leaf."""

    number: int
    data: bytes
    upper: int
    offsets: list[int]


class Pages:
    """The pages of an open file.

    Each page may be met once: one that is met again, in whatever tree, belongs to one of them at most.

    Attributes:
        page_bytes: Size of a page.
        count: How many there are.
        met: For each page, 1 if a tree was found to hold it.

    Args:
        descriptor: The file.
        page_bytes: Size of a page.
        last_page: The last page in use; None for all that the file holds, with zeros for what is cut off the last one.
    """

    def __init__(self, descriptor: int, page_bytes: int, last_page: int | None = None) -> None:
        self._descriptor = descriptor
        self.page_bytes = page_bytes
        size = os.fstat(descriptor).st_size
        self._is_cut = last_page is None and size % page_bytes != 0
        if last_page is None:
            self.count = -(-size // page_bytes)
        else:
            self.count = min(size // page_bytes, last_page + 1)
        self.met = bytearray(self.count)
        self._places: dict[int, int] = {}

    def again(self) -> Pages:
        """The same pages, none of them met."""
        pages = Pages(self._descriptor, self.page_bytes)
        pages._places = self._places
        pages.count = self.count
        pages.met = bytearray(self.count)
        return pages

    def look_for_misplaced(self) -> tuple[int, int]:
        """Find pages that stand where another one should, as after blocks were swapped or put in; they are used then.

        Returns:
            How many pages say that they stand where they do, and how many that they stand elsewhere.
        """
        right = 0
        most = 2 * self.count
        for place in range(FIRST_PAGE, self.count):
            number, flags, _, _ = _PAGE.unpack(self._read(place, place * self.page_bytes, _PAGE.size))
            if flags in (_BRANCH, _LEAF, _OVERFLOW_PAGE):
                if number == place:
                    right += 1
                elif FIRST_PAGE <= number < most:
                    self._places.setdefault(number, place)
        self.count = max(self.count, max(self._places, default=0) + 1)
        self.met.extend(bytes(self.count - len(self.met)))
        return right, len(self._places)

    def meta(self, number: int) -> Meta | None:
        """Meta page 0 or 1; None if there is none."""
        return read_meta(os.pread(self._descriptor, META_BYTES, number * self.page_bytes))

    def walk(self, tree: Tree, damage: Damage) -> Iterator[list[Row]]:
        """The rows of a tree in order of its leaves, and all its pages, met.

        Args:
            tree: The tree.
            damage: Told what is wrong with a page, which is then left out with all below it, or with a row, which
                is left out; and, in the end, if the tree is not what is said of it.
        """
        found = [0, 0, 0, 0]  # branch pages, leaf pages, overflow pages, rows
        if tree.root != _NO_ROOT:
            if 0 < tree.depth <= _DEEPEST:
                yield from self._walk(tree.root, tree.depth, found, damage)
            else:
                damage(PageError(tree.root, f"is the root of a tree of depth {tree.depth}"))
        if tuple(found) != tree[2:6]:
            said = "/".join(map(str, tree[2:6]))
            counted = "/".join(map(str, found))
            damage(PageError(tree.root, f"is the root of {counted} pages and rows, not of {said}"))

    def _walk(self, number: int, depth: int, found: list[int], damage: Damage) -> Iterator[list[Row]]:
        try:
            page = self._page(number, _LEAF if depth == 1 else _BRANCH)
            self._meet(number, 1)
        except PageError as error:
            damage(error)
            return
        found[depth == 1] += 1
        if depth > 1:
            for offset in page.offsets:
                low, high, top, _ = _NODE.unpack_from(page.data, offset)
                yield from self._walk(low | high << 16 | top << 32, depth - 1, found, damage)
            return
        rows: list[Row] = []
        for offset in page.offsets:
            try:
                row = self._row(page, offset)
                if row.run:
                    count = self._run(row)
                    self._meet(row.run, count)
                    found[2] += count
            except PageError as error:
                damage(error if error.page == number else PageError(number, f"has a row on a page that {error.reason}"))
            else:
                rows.append(row)
        found[3] += len(rows)
        yield rows

    def leaf(self, number: int, damage: Damage) -> list[Row]:
        """The rows of a page by itself; none unless it is a leaf.  Nothing is noted as met.

        Args:
            number: The page.
            damage: Told what is wrong with a row, which is left out.
        """
        try:
            page = self._page(number, _LEAF)
        except PageError:
            return []
        rows: list[Row] = []
        for offset in page.offsets:
            try:
                row = self._row(page, offset)
                if row.run:
                    self._run(row)
            except PageError as error:
                damage(error)
            else:
                rows.append(row)
        return rows

    def sift(self, number: int, key_lengths: frozenset[int]) -> list[Row]:
        """What may be rows, anywhere on a page: for one that is damaged.  Some are remains of older ones, or chance.

        Args:
            number: The page.
            key_lengths: How long their keys are.
        """
        try:
            data = self._read(number, number * self.page_bytes, self.page_bytes)
        except PageError:
            return []
        if _OVERFLOW.unpack_from(data)[:2] == (number, _OVERFLOW_PAGE):
            return []
        page = _Page(number, data, PAGE_HEADER_BYTES, [])
        fields = struct.unpack(f"={len(data) // 2}H", data)
        rows: list[Row] = []
        for index in range(PAGE_HEADER_BYTES // 2, len(fields) - 3):
            if fields[index + 3] in key_lengths:
                for flags in (0, _IN_OVERFLOW):  # whatever they say
                    with suppress(PageError):
                        row = self._row(page, 2 * index, flags)
                        if not row.run or FIRST_PAGE <= row.run <= self.count - 1 - row.length // self.page_bytes:
                            rows.append(row)
        return rows

    def value(self, row: Row) -> bytes:
        """The value of a row that was given by one of the above.

        Raises:
            PageError: The file ends before.
        """
        if not row.run:
            return row.data
        place = self._place(row.run, _OVERFLOW_PAGE)
        return self._read(row.run, place * self.page_bytes + PAGE_HEADER_BYTES, row.length)

    def _place(self, number: int, flags: int) -> int:
        """Where a page stands."""
        elsewhere = self._places.get(number)
        if elsewhere is not None:
            head = os.pread(self._descriptor, _PAGE.size, number * self.page_bytes)
            if len(head) < _PAGE.size or _PAGE.unpack(head)[:2] != (number, flags):
                return elsewhere
        return number

    def _page(self, number: int, flags: int) -> _Page:
        self._check(number, 1)
        data = self._read(number, self._place(number, flags) * self.page_bytes, self.page_bytes)
        stored, found, lower, upper = _PAGE.unpack_from(data)
        if (stored, found) != (number, flags):
            raise PageError(number, f"is no {'leaf' if flags == _LEAF else 'branch'} of a tree")
        if not PAGE_HEADER_BYTES < lower <= upper <= self.page_bytes or lower % 2:
            raise PageError(number, f"has room from {lower} to {upper}")
        offsets = [offset for (offset,) in struct.iter_unpack("=H", data[PAGE_HEADER_BYTES:lower])]
        page = _Page(number, data, upper, offsets)
        if flags == _BRANCH:
            for offset in offsets:
                self._key_end(page, offset)
        return page

    def _key_end(self, page: _Page, offset: int) -> int:
        """Where the key of a node ends."""
        if not page.upper <= offset <= self.page_bytes - _NODE.size:
            raise PageError(page.number, f"has a node at {offset}")
        end = offset + _NODE.size + int(_NODE.unpack_from(page.data, offset)[3])
        if end > self.page_bytes:
            raise PageError(page.number, f"has a key that ends at {end}")
        return end

    def _row(self, page: _Page, offset: int, flags: int | None = None) -> Row:
        end = self._key_end(page, offset)
        low, high, stored, _ = _NODE.unpack_from(page.data, offset)
        flags = stored if flags is None else flags
        length = low | high << 16
        here = _NUMBER.size if flags & _IN_OVERFLOW else length
        if flags not in (0, _IN_OVERFLOW, _IS_TREE) or end + here > self.page_bytes:
            raise PageError(page.number, f"has a row with flags {flags} and {length} bytes at {offset}")
        if flags == _IS_TREE and length != _TREE.size:
            raise PageError(page.number, f"has a table described in {length} bytes at {offset}")
        return Row(page.data[offset + _NODE.size : end], flags, length, page.data[end : end + here])

    def _run(self, row: Row) -> int:
        """How many pages the value of a row has to itself."""
        number = row.run
        self._check(number, 1)
        place = self._place(number, _OVERFLOW_PAGE)
        stored, flags, count = _OVERFLOW.unpack(self._read(number, place * self.page_bytes, _OVERFLOW.size))
        # The run is longer than it need be if LMDB had reserved more in it than it then put there.
        if (stored, flags) != (number, _OVERFLOW_PAGE) or count * self.page_bytes < PAGE_HEADER_BYTES + row.length:
            raise PageError(number, f"begins no run of pages with {row.length} bytes")
        self._check(number, count)
        return int(count)

    def _meet(self, number: int, count: int) -> None:
        if any(self.met[number : number + count]):
            raise PageError(number, "is held twice")
        self.met[number : number + count] = b"\1" * count

    def _check(self, number: int, count: int) -> None:
        if not FIRST_PAGE <= number <= self.count - count:
            raise PageError(number, "is missing" if number >= FIRST_PAGE else "is a meta page")

    def _read(self, number: int, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if self._is_cut and offset + length <= self.count * self.page_bytes:
            data = data.ljust(length, b"\0")
        if len(data) != length:
            raise PageError(number, f"is missing: the file ends at {offset + len(data)}")
        return data
