"""What a damaged file still holds of a log: rows of its tables, and rows that no table leads to any more.

The newer meta page says where the tables begin.  If the two do not fit together, or are gone, the state is
*doubtful*: it is taken from the page that leads to the newest commit, and a commit after it may have been finished.

A leaf that no tree leads to is a *stray*: an old version of a page, unless the page above it is what was damaged.
Which of the two, the list of free pages says: a stray that is not free is *live*.  Where that list cannot be read, or
does not agree with the trees, no stray is.  What else may prove that a stray row belongs to the log is for the caller
to say; that it was written there once, its checksum must show.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple, Self

from stepwell.errors import ConflictError, CorruptionError, NotALogError, UsageError
from stepwell.storage.checksums import plain_value
from stepwell.storage.feed import read_feed
from stepwell.storage.lmdb.freepages import UnclearError, before, read_free
from stepwell.storage.lmdb.pages import (
    FIRST_PAGE,
    FORMAT,
    META_BYTES,
    PAGE_SIZES,
    Damage,
    Meta,
    PageError,
    Pages,
    Row,
    Tree,
    can_read,
    read_meta,
    read_tree,
)
from stepwell.storage.tables import ALL, EVENTS, FEED

_FEWEST_TABLES: Final = 2  # that a page must name to be taken for the one that names them all
_MOST_TRIED: Final = 64  # pages that may name the tables, the latest in the file first
_ROWS_BETWEEN_REPORTS: Final = 1024

Advance = Callable[[int, int], None]
"""Told how many of how many pages were read."""


class Stray(NamedTuple):
    """A row that no table leads to.

    Attributes:
        key: Its key.
        value: Its value.
        is_live: Whether the page that it stands on is none that is free.
    """

    key: bytes
    value: bytes
    is_live: bool


class _Root(NamedTuple):
    """Where the tables begin.

    Attributes:
        tables: The tree that names them.
        meta: The meta page that says so; None if a page was taken for it that looks like it.
    """

    tables: Tree
    meta: Meta | None


class Remains:
    """A file, read and never changed.

    Attributes:
        damage: What was found to be wrong so far, for people.
        by_table: How many pages or rows of each table were found to be wrong.
        is_doubtful: Whether there may have been a later state than the one that is read.
    """

    def __init__(self, path: str, advance: Advance = lambda done, total: None) -> None:
        """Open a file.

        Raises:
            UsageError: There is no file.
            NotALogError: There is something else, or an LMDB file that holds no log.
        """
        if not can_read():
            raise UsageError("files are repaired on POSIX systems of 64 bits, little-endian; copy it to one")
        self.path = path
        self.damage: list[str] = []
        self.by_table: dict[str, int] = {}
        self.is_doubtful = False
        self._advance = advance
        self._last_page = 0
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise NotALogError(f"{path!r} is no file; a log is a single file")
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UsageError(f"there is no file at {path!r} to read: {error}") from error
        try:
            self._before = self._metas_as_they_are()
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        metas = self._metas()
        page_bytes = metas[0].page_bytes if metas else self._likely_page_bytes()
        self._pages = Pages(self._descriptor, page_bytes)
        self._pages.look_for_misplaced()
        root = self._root(metas)
        self._free = self._read_free(root.meta)
        self._tables = {} if root is _NOWHERE else self._read_tables(root.tables)
        if not self._tables.keys() >= set(ALL) and self._free is None:
            # A table is not named, and which pages are in use cannot be told either.
            found = self._best(self._naming_pages())
            if found is not _NOWHERE and found.tables != root.tables:
                self._doubt("the page that names the tables is damaged; an older one was used")
                self._pages = self._pages.again()
                self._tables = self._read_tables(found.tables)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_unchanged(self) -> None:
        """Raise ConflictError if somebody has written to the file since it was opened."""
        now = self._metas_as_they_are()
        if now != self._before:
            raise ConflictError(
                f"the file {self.path!r} was written to while it was read; close all logs on it and repair it again",
                thread="",
                expected=self._before,
                actual=now,
            )

    def rows(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """The rows of a table in order, as far as its tree leads to them; each table once."""
        tree = self._tables.get(table)
        if tree is None:
            self.note(table, f"the table {table}: where it begins is lost")
            return
        rows = self._walk(self._pages, tree, lambda error: self.note(table, f"the table {table}: {error}"))
        for count, (key, stored) in enumerate(rows):
            if count % _ROWS_BETWEEN_REPORTS == 0:
                self._advance(sum(self._pages.met), self._pages.count)
            try:
                yield key, plain_value(table, key, stored)
            except CorruptionError as error:
                self.note(table, f"the table {table}: {error.reason}")

    def rows_again(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """The rows of a table once more; damage is passed over in silence."""
        tree = self._tables.get(table)
        if tree is not None:
            for key, stored in self._walk(self._pages.again(), tree, _ignore):
                with suppress(CorruptionError):
                    yield key, plain_value(table, key, stored)

    def strays(self, key_lengths: frozenset[int]) -> Iterator[Stray]:
        """The rows of all leaves that no table leads to, and whatever may be a row on any page.

        Every table must have been read before.

        Args:
            key_lengths: How long the keys are of the rows that are looked for.
        """
        if self._free is not None and any(self._pages.met[page] for page in self._free if page < self._pages.count):
            self._doubt("pages are in use and free")
            self._free = None
        lost = bool(self.by_table) and self._free is not None
        free = frozenset(self._free or ())
        for number in range(FIRST_PAGE, self._pages.count):
            if number % _ROWS_BETWEEN_REPORTS == 0:
                self._advance(number, self._pages.count)
            if not self._pages.met[number]:
                is_live = lost and number <= self._last_page and number not in free
                yield from self._strays(self._pages.leaf(number, _ignore), key_lengths, is_live=is_live)
            # On a page there may be what is left of rows that were removed: what is sifted out of it is not live.
            yield from self._strays(self._pages.sift(number, key_lengths), key_lengths, is_live=False)

    def _strays(self, rows: list[Row], key_lengths: frozenset[int], *, is_live: bool) -> Iterator[Stray]:
        for row in rows:
            if len(row.key) in key_lengths:
                with suppress(PageError):
                    yield Stray(row.key, self._pages.value(row), is_live)

    # --- where the tables begin ---

    def _metas_as_they_are(self) -> list[tuple[int, int]]:
        return [(meta.transaction, meta.last_page) for meta in self._metas()]

    def _metas(self) -> list[Meta]:
        """The meta pages that can be read."""
        first = self._meta_at(0)
        sizes = [first.page_bytes] if first is not None else sorted(PAGE_SIZES)
        second = [meta for size in sizes if (meta := self._meta_at(size)) is not None and meta.page_bytes == size]
        return [meta for meta in (first, *second) if meta is not None]

    def _meta_at(self, offset: int) -> Meta | None:
        return read_meta(os.pread(self._descriptor, META_BYTES, offset))

    def _root(self, metas: list[Meta]) -> _Root:
        if len(metas) == FIRST_PAGE:
            turns = [meta.transaction & 1 == page or not meta.transaction for page, meta in enumerate(metas)]
            apart = abs(metas[0].transaction - metas[1].transaction)
            if all(turns) and apart <= 1 and all(meta.format == FORMAT for meta in metas):
                newer = max(metas, key=lambda meta: meta.transaction)
                return _Root(newer.tables, newer)
        usable = [_Root(meta.tables, meta) for meta in metas if meta.format == FORMAT]
        if metas and not usable:
            raise NotALogError(f"{self.path!r} has LMDB format {metas[0].format}; a log has format {FORMAT}")
        if usable:
            self._doubt("the two meta pages do not fit together: the last commit may be missing")
            return self._best(usable)
        self._doubt("both meta pages are gone: the newest commit that was found was taken for the last one")
        return self._best(self._naming_pages())

    def _best(self, roots: list[_Root]) -> _Root:
        """The one that leads to the newest commit; of several, that with the fewest pages missing, then the latest."""
        newest = [(self._newest_commit(root), root.meta.transaction if root.meta else 0) for root in roots]
        best = [root for root, commit in zip(roots, newest, strict=True) if commit == max(newest)]
        return min(best, key=self._shortcomings) if len(best) > 1 else best[0] if best else _NOWHERE

    def _newest_commit(self, root: _Root) -> int:
        pages = self._pages.again()
        feed = self._named(pages, root.tables, _ignore).get(FEED)
        rows = () if feed is None else self._walk(pages, feed, _ignore)
        return max((_newest(key, value) for key, value in rows), default=0)

    def _shortcomings(self, root: _Root) -> tuple[int, int]:
        """How many pages are wrong, and how many events are loose: sealing leaves fewer, and has no commit number."""
        wrong: list[PageError] = []
        pages = self._pages.again()
        trees = self._named(pages, root.tables, wrong.append)
        for tree in trees.values():
            for _ in pages.walk(tree, wrong.append):
                pass
        return len(wrong), trees[EVENTS].rows if EVENTS in trees else 0

    def _naming_pages(self) -> list[_Root]:
        """Leaves that name tables of a log, as the tree above all tables has one."""
        names = {table.encode() for table in ALL}
        found: list[_Root] = []
        for number in range(self._pages.count - 1, FIRST_PAGE - 1, -1):
            rows = self._pages.leaf(number, _ignore)
            if len(rows) >= _FEWEST_TABLES and all(row.is_tree and row.key in names for row in rows):
                found.append(_Root(Tree(0, 1, 0, 1, 0, len(rows), number), None))
                if len(found) == _MOST_TRIED:
                    break
        return found

    def _read_tables(self, tables: Tree) -> dict[str, Tree]:
        return self._named(self._pages, tables, lambda error: self.note("", f"the names of the tables: {error}"))

    def _named(self, pages: Pages, tables: Tree, damage: Damage) -> dict[str, Tree]:
        rows = (row for rows in pages.walk(tables, damage) for row in rows)
        names = {table.encode(): table for table in ALL}
        return {names[row.key]: read_tree(row.data) for row in rows if row.is_tree and row.key in names}

    def _read_free(self, meta: Meta | None) -> list[int] | None:
        """The pages that are free; None if that cannot be told."""
        if meta is None:
            return None
        self._last_page = meta.last_page
        try:
            return before(read_free(self._pages, meta), meta.transaction + 1)
        except UnclearError as error:
            self.note("", f"the list of free pages: {error}")
            return None

    def _likely_page_bytes(self) -> int:
        """The size by which the most pages say where they stand."""

        def score(page_bytes: int) -> tuple[int, int, bool]:
            pages = Pages(self._descriptor, page_bytes)
            return *pages.look_for_misplaced(), page_bytes == mmap.PAGESIZE

        best = max(sorted(PAGE_SIZES), key=score)
        if not any(score(best)[:2]):
            raise NotALogError(f"nothing in {self.path!r} looks like a log")
        return best

    def _walk(self, pages: Pages, tree: Tree, damage: Damage) -> Iterator[tuple[bytes, bytes]]:
        def read(row: Row) -> bytes | None:
            try:
                return pages.value(row)
            except PageError as error:
                damage(error)
                return None

        for rows in pages.walk(tree, damage):
            for row in rows:
                value = read(row)
                if value is not None:
                    yield row.key, value

    def note(self, table: str, what: str) -> None:
        """Note what is wrong with a table, or with what is beside all tables (the empty name)."""
        self.by_table[table] = self.by_table.get(table, 0) + 1
        self.damage.append(what)

    def _doubt(self, what: str) -> None:
        self.is_doubtful = True
        self.damage.append(what)


_NOWHERE: Final = _Root(Tree(0, 0, 0, 0, 0, 0, 0), None)


def _newest(key: bytes, stored: bytes) -> int:
    try:
        return max(row.commit for row in read_feed(key, plain_value(FEED, key, stored)))
    except (CorruptionError, struct.error):
        return 0


def _ignore(error: PageError) -> None:
    pass
