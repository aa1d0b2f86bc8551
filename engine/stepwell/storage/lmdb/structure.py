"""Whether the engine can follow the pages of a file, seen before it does.

LMDB has no checksums of pages and believes what they say: an offset that leads out of a page, a page that is not
what its parent takes it for, or one that is free and in use ends the process, or damages the file further.  So
what LMDB would follow is followed here first, as plain bytes.  In a sound file

    1. a page has its own number, has the flags of its place, and lies within the file;
    2. the nodes of a page fill it from `upper` to its end without gap or overlap, so each lies within it;
    3. keys rise, within a page and from page to page, as the keys that lead there say;
    4. a leaf is as deep as its tree says, a branch leads to two pages or more, and a leaf holds a row or more;
    5. a value outside its leaf has a run of pages that is long enough;
    6. no page is in use twice, or in use and free, and each tree has as many pages and rows as it says.

What a value says is not looked at: it has a checksum.  `pages.py` reads the same pages where they are damaged;
this is for sound ones, stops at the first fault, and takes less than half a microsecond for a row.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from operator import lt
from typing import Final

from stepwell.storage.lmdb.freepages import UnclearError, before, read_free
from stepwell.storage.lmdb.pages import (
    FIRST_PAGE,
    META_BYTES,
    PAGE_HEADER_BYTES,
    TREE_BYTES,
    Meta,
    Pages,
    Tree,
    read_meta,
    read_tree,
)

_PAGE = struct.Struct("<QxxHHH")  # number, flags, lower, upper
_OVERFLOW = struct.Struct("<QxxHI")  # number, flags, pages
_NODE = struct.Struct("<IHH")  # length, or low half of the child; flags, or its high half; bytes of the key
_NUMBER = struct.Struct("<Q")
_BRANCH, _LEAF, _OVERFLOW_PAGE = 0x01, 0x02, 0x04  # flags of a page
_IN_OVERFLOW, _IS_TREE = 0x01, 0x02  # flags of a node
_NO_ROOT: Final = (1 << 64) - 1
_DEEPEST: Final = 31  # LMDB's cursors go no deeper
_LONGEST_KEY: Final = 511
_BEYOND: Final = b"\xff" * (_LONGEST_KEY + 1)  # after every key
_INTEGER_KEYS: Final = 0x08
_OF_ENVIRONMENT: Final = 0x4000  # the environment's flag for a single file stands among those of the free tree


_Bounds = tuple[int, bytes, bytes]
"""A page, and its keys' bounds: the first is the lowest that it may have, the second lies beyond."""


class UnsoundError(Exception):
    """The engine could not follow the file; says which page is wrong, and how."""


def check(path: str, transaction: int | None = None, most_bytes: int | None = None) -> bool:
    """Raise unless the file of an environment is sound, as one transaction left it.

    Nothing that the transaction left may be written over meanwhile: either nobody writes, or somebody reads it.

    Args:
        path: The file.
        transaction: One of the two that its meta pages are of; None for the newer.
        most_bytes: How much to look at: the pages above the leaves first, then the smallest tables; None for all.

    Returns:
        Whether all pages were looked at.

    Raises:
        OSError: The file cannot be read.
        UnsoundError: It is not sound.
    """
    with open(path, "rb", buffering=0) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Check(content, _meta(content, transaction), most_bytes).run(file.fileno())
        except struct.error as error:
            raise UnsoundError(f"a node lies outside its page: {error}") from error


def _meta(content: mmap.mmap, transaction: int | None) -> Meta:
    first = read_meta(content[:META_BYTES])
    second = read_meta(content[first.page_bytes : first.page_bytes + META_BYTES]) if first is not None else None
    metas = [meta for meta in (first, second) if meta is not None and transaction in (None, meta.transaction)]
    if not metas:
        raise UnsoundError("no meta page is of that transaction" if transaction else "there is no meta page")
    meta = max(metas, key=lambda meta: meta.transaction)
    if meta.free.flags & ~_OF_ENVIRONMENT != _INTEGER_KEYS or meta.tables.flags:
        raise UnsoundError(f"the meta page has flags {meta.free.flags:#x} and {meta.tables.flags:#x}")
    return meta


class _Check:
    def __init__(self, content: mmap.mmap, meta: Meta, most_bytes: int | None) -> None:
        self._content = content
        self._meta = meta
        self._page_bytes = meta.page_bytes
        self._end = min(meta.last_page + 1, len(content) // meta.page_bytes)
        self._most = self._end if most_bytes is None else most_bytes // meta.page_bytes
        self._used: list[int] = []
        self._values: list[tuple[int, int]] = []  # of the tree that is followed, outside its leaves: page, length

    def run(self, descriptor: int) -> bool:
        """See `check`."""
        free = self._free(descriptor)
        trees: list[Tree] = []
        if not self._leaves(self._meta.tables, self._branches(self._meta.tables), trees):
            return False
        if any(tree.flags for tree in trees):
            raise UnsoundError("a table is of a sort that a log has not")
        ways = [(tree, self._branches(tree)) for tree in sorted(trees, key=lambda tree: tree.leaves)]
        if not all(self._leaves(tree, leaves) for tree, leaves in ways):
            return False
        pages = sorted([*self._used, *free])
        if not all(map(lt, pages, pages[1:])):
            twice = next(page for page, following in pairwise(pages) if page == following)
            raise UnsoundError(f"page {twice} is in use twice, or in use and free")
        return True

    def _free(self, descriptor: int) -> list[int]:
        """The free pages; those that say so are in use."""
        pages = Pages(descriptor, self._page_bytes, self._meta.last_page)
        try:
            lists = read_free(pages, self._meta)
        except UnclearError as error:
            raise UnsoundError(f"what is free cannot be told: {error}") from error
        # A transaction that frees anything says so under its own number, and each but the first does.  Where LMDB
        # could not write a meta page, the newest state may stand under the number before it, too.
        if lists and lists[-1].transaction - self._meta.transaction not in (0, 1):
            raise UnsoundError(f"transaction {self._meta.transaction} has the free pages of {lists[-1].transaction}")
        free = before(lists, self._meta.transaction + 2)
        beyond = len(free) - bisect_left(free, pages.count)
        if beyond != self._meta.last_page + 1 - pages.count:
            raise UnsoundError(f"pages are missing from page {pages.count} on")
        page = pages.met.find(1)
        while page >= 0:
            self._used.append(page)
            page = pages.met.find(1, page + 1)
        return free

    def _branches(self, tree: Tree) -> list[_Bounds]:
        """The leaves of a tree, by what its branches say."""
        if tree.root == _NO_ROOT:
            return []
        if not 0 < tree.depth <= _DEEPEST:
            raise UnsoundError(f"page {tree.root} is the root of a tree of depth {tree.depth}")
        level: list[_Bounds] = [(tree.root, b"", _BEYOND)]
        branches = 0
        for _ in range(tree.depth - 1):
            branches += len(level)
            level = [below for bounds in level for below in self._branch(*bounds)]
        if (branches, len(level)) != (tree.branches, tree.leaves):
            raise UnsoundError(f"page {tree.root} leads to {branches} branches and {len(level)} leaves")
        return level

    def _branch(self, number: int, low: bytes, high: bytes) -> Iterator[_Bounds]:
        page, upper, offsets = self._page(number, _BRANCH)
        keys, children, ends = [], [], [upper]
        for offset in offsets:
            child, top, key_bytes = _NODE.unpack_from(page, offset)
            end = offset + _NODE.size + key_bytes
            keys.append(page[offset + _NODE.size : end])
            children.append(child | top << 32)
            ends.append(end + (end & 1))
        self._check_nodes(number, offsets, ends)
        # The first key is not looked at, by LMDB either: what leads to this page says as much.
        keys[0] = low
        self._check_keys(number, keys, low, high)
        if len(keys) < 2:
            raise UnsoundError(f"page {number} is a branch to one page")
        return zip(children, keys, [*keys[1:], high], strict=True)

    def _leaves(self, tree: Tree, leaves: list[_Bounds], trees: list[Tree] | None = None) -> bool:
        """Look at the leaves of a tree, and at the values outside them; whether at all of them.

        Args:
            tree: The tree.
            leaves: Its leaves.
            trees: Takes the trees that are found in it, where there may be such.
        """
        self._values = []
        rows = 0
        for bounds in leaves:
            if len(self._used) > self._most:
                return False
            rows += self._leaf(*bounds, trees)
        if len(self._used) + len(self._values) > self._most:
            return False
        overflow = self._runs()
        if (overflow, rows) != (tree.overflow, tree.rows):
            raise UnsoundError(f"page {tree.root} leads to {rows} rows and {overflow} pages outside leaves")
        return True

    def _leaf(self, number: int, low: bytes, high: bytes, trees: list[Tree] | None) -> int:
        page, upper, offsets = self._page(number, _LEAF)
        keys: list[bytes] = []
        ends = [upper]
        add_key, add_end, node_at = keys.append, ends.append, _NODE.unpack_from
        for offset in offsets:
            length, flags, key_bytes = node_at(page, offset)
            start = offset + 8
            end = start + key_bytes
            add_key(page[start:end])
            if not flags:
                end += length
            elif flags == _IN_OVERFLOW:
                self._values.append((_NUMBER.unpack_from(page, end)[0], length))
                end += 8
            elif flags == _IS_TREE and trees is not None and length == TREE_BYTES:
                trees.append(read_tree(page[end : end + TREE_BYTES]))
                end += TREE_BYTES
            else:
                raise UnsoundError(f"page {number} has a node with flags {flags:#x}")
            add_end(end + (end & 1))
        self._check_nodes(number, offsets, ends)
        self._check_keys(number, keys, low or b"\0", high)
        return len(keys)

    def _runs(self) -> int:
        """How many pages the values have that stand outside their leaves."""
        content, page_bytes, end = self._content, self._page_bytes, self._end
        before = len(self._used)
        for number, length in self._values:
            if not FIRST_PAGE <= number < end:
                raise UnsoundError(f"there is no page {number}")
            stored, flags, count = _OVERFLOW.unpack_from(content, number * page_bytes)
            # The run is longer than it need be if LMDB had reserved more in it than it then put there.
            if stored != number or flags != _OVERFLOW_PAGE or count * page_bytes < PAGE_HEADER_BYTES + length:
                raise UnsoundError(f"page {number} begins no run of pages with {length} bytes")
            if number + count > end:
                raise UnsoundError(f"there is no page {number + count - 1}")
            if count == 1:
                self._used.append(number)
            else:
                self._used += range(number, number + count)
        return len(self._used) - before

    def _page(self, number: int, flags: int) -> tuple[bytes, int, tuple[int, ...]]:
        """A page of a tree, where its nodes begin, and where each of them does."""
        if not FIRST_PAGE <= number < self._end:
            raise UnsoundError(f"there is no page {number}")
        page = self._content[number * self._page_bytes : (number + 1) * self._page_bytes]
        stored, found, lower, upper = _PAGE.unpack_from(page)
        if (stored, found) != (number, flags):
            raise UnsoundError(f"page {number} is no {'leaf' if flags == _LEAF else 'branch'}")
        if not PAGE_HEADER_BYTES < lower <= upper <= self._page_bytes or lower % 2:
            raise UnsoundError(f"page {number} has room from {lower} to {upper}")
        if len(self._used) >= self._end:
            raise UnsoundError(f"page {number} is in use twice")
        self._used.append(number)
        return page, upper, struct.unpack_from(f"<{(lower - PAGE_HEADER_BYTES) // 2}H", page, PAGE_HEADER_BYTES)

    def _check_nodes(self, number: int, offsets: tuple[int, ...], ends: list[int]) -> None:
        """Where one node ends, another begins, or the page ends; `ends` has where the first one begins, too."""
        if sorted(ends) != sorted([*offsets, self._page_bytes]):
            raise UnsoundError(f"the nodes of page {number} do not fill it")

    def _check_keys(self, number: int, keys: list[bytes], low: bytes, high: bytes) -> None:
        if not (low <= keys[0] and keys[-1] < high and all(map(lt, keys, keys[1:]))):
            raise UnsoundError(f"the keys of page {number} do not rise")
        if max(map(len, keys)) > _LONGEST_KEY:
            raise UnsoundError(f"page {number} has a key of {max(map(len, keys))} bytes")
