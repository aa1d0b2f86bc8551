"""The room that an environment has: it grows where a commit does not fit, and gives back what is free.

A commit that does not fit is tried again: after a small one, which lets LMDB use what was freed last; then with a
larger map, or on a full disk with the blocks of free pages that LMDB would use later; at last, if it makes room, with
the reserve.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

import lmdb

from stepwell.errors import CapacityError, DiskFullError, MapFullError, StepwellError
from stepwell.storage.checksums import CheckedTables
from stepwell.storage.lmdb import freepages, room
from stepwell.storage.lmdb.environment import Environment
from stepwell.storage.lmdb.freepages import PageFile, UnableError, UnclearError
from stepwell.storage.lmdb.room import Reserve
from stepwell.storage.lmdb.tables import PAGE_BYTES, LmdbTables
from stepwell.storage.newfile import occupied_bytes, sync_directory
from stepwell.storage.occupancy import FileRoom, Occupancy, TableSize, by_age
from stepwell.storage.tables import META

_T = TypeVar("_T")

_WORTH_A_TURN_BYTES: Final = 1 << 16
_OCCUPIED_SHARE: Final = 4  # in the background: a quarter of what the file takes is worth giving back
_FEWEST_PAGES: Final = 4  # in the background: in a row
_RESERVED_PAGES: Final = 32  # in the background: left for the next few commits
_HOLD_SECONDS: Final = 0.002  # in the background: that others wait, where finding the pages is not longer
_SECONDS_BETWEEN_LOOKS: Final = 0.01  # at the disk, while it is not low: the bound for that is not passed so soon
_FAR_BYTES: Final = 1 << 32  # from the end of the map
_COMMITS_WHILE_FAR: Final = 64
_META_PAGES: Final = 2
_CHANGED_PAGES: Final = 32  # of trees that a small group changes
_META_TURN: Final = b"turn"  # counts commits that had no other purpose


class ElasticEnvironment(Environment):
    """An environment that makes room for what is committed, and gives back what is free."""

    def __init__(self, path: str, real_path: str, read_only: bool, verify: bool | int | None) -> None:
        self._punches = freepages.can_punch()
        self._reserve = Reserve(real_path)
        self._is_low = False
        self._looked_at = -_SECONDS_BETWEEN_LOOKS
        self._unchecked_commits = 0
        super().__init__(path, real_path, read_only, verify)

    def retrying(self, attempt: Callable[[], _T], makes_room: bool) -> _T:
        """Run a commit, again where it does not fit: after a turn, with a larger map, or with the reserve."""
        if not makes_room:
            self._look_at_room()
        turned = moved = released = False
        try:
            while True:
                try:
                    return attempt()
                except (MapFullError, DiskFullError) as error:
                    if not turned:
                        turned = True
                        if self._turn():
                            continue
                    if isinstance(error, MapFullError):
                        self._grow(error)
                    elif not moved and self._move_blocks():
                        moved = True
                    elif makes_room and not released and self._reserve.release():
                        released = True
                        # A file system with a journal gives blocks out again when that they are free is in it.
                        with suppress(OSError):
                            sync_directory(os.path.dirname(self.real_path))
                    else:
                        self._give_back_end()
                        raise
        finally:
            if released:
                self._refill()

    def check_spare_pages(self, newest: int, put_bytes: int) -> None:
        """Raise MapFullError where what is put would leave too little of the map for what makes room.

        Args:
            newest: The transaction before the one that is under way.
            put_bytes: What it puts.
        """
        if self._unchecked_commits:
            self._unchecked_commits -= 1
            return
        used, largest = _used_bytes(self.env), room.largest_bytes()
        needed = put_bytes + _CHANGED_PAGES * PAGE_BYTES + room.reserve_bytes(used)
        if used + needed <= largest:
            if largest - used > _FAR_BYTES:
                self._unchecked_commits = _COMMITS_WHILE_FAR
            return
        # A file never gets shorter: near the end of the map it is the free pages in it that count.
        with suppress(UnclearError, OSError), PageFile(self.real_path, self.identity) as file:
            free = sum(len(free.pages) for free in file.free(newest)) * self.env.stat()["psize"]
            if largest - used + free < needed:
                raise MapFullError(f"the map of {self.path!r} is full")

    def _move_blocks(self) -> int:
        """Let the pages that are used next have the blocks of those that are used last; how many bytes were moved.

        LMDB uses free pages in an order of its own: on a full disk one hole among the first would be in the way of
        all that follow.
        """
        if not self._punches:
            return 0
        with (
            suppress(UnclearError, OSError, StepwellError),
            PageFile(self.real_path, self.identity) as file,
            self.standing_still() as newest,
        ):
            oldest = min([newest, *freepages.oldest_readers(self.env.readers())])
            return file.move_blocks(freepages.in_order_of_use(file.free(newest), oldest))
        return 0

    def _look_at_room(self) -> None:
        """Before anything is added: keep something of a disk that runs low."""
        now = time.monotonic()
        if not self._is_low and now - self._looked_at < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked_at = now
        self._is_low = self._reserve.look(self._used_bytes)
        if self._is_low:
            self._lock_file.fill()

    def _refill(self) -> None:
        """Something used the reserve to make room: free pages of the file give it back."""
        with suppress(StepwellError):
            self._turn()
            self.give_back(0, in_background=False, most_bytes=room.reserve_bytes(self._used_bytes()))
            self._look_at_room()

    def _turn(self) -> bool:
        """Commit something small: LMDB gives out again what one commit freed only in the second after it."""
        try:
            with self.transaction(write=True) as transaction:
                tables = CheckedTables(LmdbTables(transaction, self.tables))
                turn = int.from_bytes(tables.get(META, _META_TURN) or b"")
                tables.put(META, _META_TURN, (turn + 1).to_bytes(8))
        except CapacityError:
            return False
        # failpoint: turn-committed
        return True

    def _grow(self, full: MapFullError) -> None:
        with self._alone():
            size, used, largest = self._map_bytes(), _used_bytes(self.env), room.largest_bytes()
            if size >= largest:
                raise MapFullError(
                    f"the log {self.path!r} takes {used:,} bytes and cannot grow: the most is {largest:,} "
                    f"(its map, or ulimit -f), of which {room.reserve_bytes(used):,} are kept for what makes room; "
                    "prune or delete threads, raise the limit, or start a new file"
                ) from full
            # failpoint: map-growing
            self._resize(min(size * 2, largest))
            # failpoint: map-grown

    def _used_bytes(self) -> int:
        mark = object()
        try:
            env = self._enter(mark)
            return 0 if self._is_lost else _used_bytes(env)
        finally:
            self._inside.pop(mark, None)
            self._tell()

    def occupancy(self) -> Occupancy:
        """See `Storage.occupancy`."""
        self.check_place()
        with self.transaction(write=False) as transaction:
            newest = transaction.id()
            page_bytes = self.env.stat()["psize"]
            pages = {
                name: _pages(transaction, table)
                for name, table in (*self.tables.items(), ("", self.env.open_db(None, transaction)))
            }
            rows = {name: transaction.stat(table)["entries"] for name, table in self.tables.items()}
            info = self.env.info()
            self.env.reader_check()
            readers: list[tuple[int, int]] = []
            with suppress(UnclearError, ValueError):  # there is no table of readers on a file system that nobody writes
                readers = freepages.active_readers(self.env.readers())
                readers.remove((os.getpid(), newest))  # this one
        status = os.stat(self.real_path)
        used, largest = (info["last_pgno"] + 1) * page_bytes, room.largest_bytes()
        in_use = (_META_PAGES + sum(pages.values())) * page_bytes
        file = FileRoom(
            length_bytes=status.st_size,
            disk_bytes=occupied_bytes(status),
            used_bytes=used,
            free_bytes=max(used - in_use, 0),
            map_bytes=info["map_size"],
            headroom_bytes=max(largest - used - room.reserve_bytes(used), 0),
            disk_free_bytes=room.free_bytes(self.real_path),
        )
        tables = {name: TableSize(rows[name], pages[name] * page_bytes) for name in rows}
        return Occupancy(tables, file, by_age(readers, newest))

    def _give_back_end(self) -> None:
        """Take from a file what a commit that failed has left at its end, where others may need it."""
        if self._punches:
            with (
                suppress(UnclearError, OSError, StepwellError),
                PageFile(self.real_path, self.identity) as file,
                self.standing_still(),
            ):
                end = file.unused_end(_used_bytes(self.env))
                if end is not None:
                    file.punch(end)

    def give_back(self, least_bytes: int, in_background: bool, most_bytes: int | None = None) -> int:
        """See `Storage.give_back`; no more than a number of bytes, if one is given."""
        if not self._punches or (in_background and self._is_low):
            return 0  # where room is scarce, what is free now is what the log will need next
        given = 0
        # What cannot be told, or cannot be done, leaves the file larger than it need be: that is no failure.
        with suppress(UnclearError, OSError, CapacityError), PageFile(self.real_path, self.identity) as file:
            now, later = self._look(file, in_background)
            if in_background:
                least_bytes, later = max(least_bytes, file.occupied_bytes // _OCCUPIED_SHARE), 0
            if not now + later or now + later < least_bytes:
                return 0
            try:
                for part in self._punch(file, in_background, most_bytes):
                    given += part
                if most_bytes is None and later >= _WORTH_A_TURN_BYTES:
                    self._turn()
                    for part in self._punch(file, in_background):
                        given += part
            except UnableError:
                self._punches = False
        return given

    def _look(self, file: PageFile, in_background: bool) -> tuple[int, int]:
        """How many bytes can be given back now, and how many more after another commit; nobody waits for it."""
        with self.transaction(write=False) as transaction:
            self.env.reader_check()
            newest = transaction.id()
            readers = freepages.oldest_readers(self.env.readers())
            if newest not in readers:
                raise UnclearError("the table of readers does not show this reader")
            readers.remove(newest)
            lists = file.free(newest)
            fewest, reserve = _sparing(in_background)
            totals = [
                sum(extent.length for extent in file.occupied(freepages.before(lists, limit, reserve), fewest))
                for limit in (min([newest, *readers]), min([newest + 1, *readers]))
            ]
            return totals[0], totals[1] - totals[0]

    def _punch(self, file: PageFile, in_background: bool, most_bytes: int | None = None) -> Iterator[int]:
        """Give back what can be given back now, with pauses in the background; yields how many bytes each time."""
        fewest, reserve = _sparing(in_background)
        complete = False
        while not complete:
            given = 0
            began = time.monotonic()
            # Nobody takes pages, or frees any, until the holes are made.
            with self.standing_still() as newest:
                oldest = min([newest, *freepages.oldest_readers(self.env.readers())])
                extents = file.occupied(freepages.before(file.free(newest), oldest, reserve), fewest)
                # failpoint: holes-found
                # At least half of the time is spent on holes, however long the list is.
                stop = time.monotonic() + max(_HOLD_SECONDS, time.monotonic() - began)
                for extent in extents:
                    if in_background and time.monotonic() > stop:
                        break
                    if most_bytes is not None and given >= most_bytes:
                        complete = True
                        break
                    file.punch(extent)
                    # failpoint: hole-punched
                    given += extent.length
                else:
                    complete = True
            # failpoint: holes-made
            yield given
            if not complete:
                time.sleep(_HOLD_SECONDS)  # those who waited to append go first


def _used_bytes(env: lmdb.Environment) -> int:
    """How long the file is up to its last page in use."""
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


def _pages(transaction: lmdb.Transaction[bytes], table: lmdb._Database) -> int:
    """How many pages a table takes."""
    stat = transaction.stat(table)
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]


def _sparing(in_background: bool) -> tuple[int, int]:
    """Of how many pages in a row a hole is made, and how many pages stay as they are."""
    return (_FEWEST_PAGES, _RESERVED_PAGES) if in_background else (1, 0)
