"""The engine for files: LMDB, the only module that imports it.

One file, one environment per file and process, counted.  Every commit is synced before it is
acknowledged; the unsafe modes of LMDB (no sync, writable map) are not reachable from here.  No transaction
outlives the call that began it: a reader left open would keep every page that is freed meanwhile.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Several
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import islice, takewhile
from typing import Final, TypeAlias, TypeVar

import lmdb
import msgspec

from stepwell import format as fmt
from stepwell.cache import Cache
from stepwell.errors import (
    CapacityError,
    ClosedError,
    CorruptionError,
    DiskFullError,
    ForkedError,
    MapFullError,
    NotALogError,
    ReadOnlyError,
    StepwellError,
    UsageError,
)
from stepwell.storage import (
    Append,
    Compaction,
    Copy,
    Operation,
    Outcome,
    filesystem,
    freepages,
    lockfile,
    metapages,
    room,
)
from stepwell.storage.checksums import CheckedTables, Row, with_checksum
from stepwell.storage.datafile import META_FORMAT, Finding, LogFormat, inspect, read_format
from stepwell.storage.freepages import PageFile, UnableError, UnclearError
from stepwell.storage.newfile import NewFile, finish, occupied_bytes, sync_directory
from stepwell.storage.occupancy import FileRoom, Occupancy, TableSize, by_age
from stepwell.storage.ordered import TableStorage
from stepwell.storage.pages import can_read
from stepwell.storage.room import LockFile, Reserve
from stepwell.storage.structure import UnsoundError, check
from stepwell.storage.tables import ALL, META, Tables, find_thread

_T = TypeVar("_T")
_Identity: TypeAlias = tuple[int, int]  # device and inode

_FIRST_MAP_BYTES: Final = 1 << 34  # a process has room for thousands of them, and few logs outgrow it
_SMALLEST_MAP_BYTES: Final = 1 << 24
_MAX_READERS: Final = 510  # 64 bytes each in the lock file; a read takes a slot for microseconds
_FEW_READERS: Final = 16  # of this process: the first page of the lock file has room for several such
_READERS_WITHOUT_ROOM: Final = 24
_COMMITS_BETWEEN_READER_CHECKS: Final = 32
_WORTH_A_TURN_BYTES: Final = 1 << 16
_OCCUPIED_SHARE: Final = 4  # in the background: a quarter of what the file takes is worth giving back
_FEWEST_PAGES: Final = 4  # in the background: in a row
_RESERVED_PAGES: Final = 32  # in the background: left for the next few commits
_LOOK_AGAIN_SECONDS: Final = 0.05  # who would have woken the waiting may have been interrupted before that
_HOLD_SECONDS: Final = 0.002  # in the background: that others wait, where finding the pages is not longer
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.EAGAIN})
_MOST_BYTES: Final = 1 << 26  # of pages that are looked at on opening, of a file that is known
_SNAPSHOT_ATTEMPTS: Final = 5
_FIRST_PAGES_BYTES: Final = 2 * mmap.PAGESIZE
_PAGE_BYTES: Final = mmap.PAGESIZE  # of LMDB's files, unless they were made elsewhere
_ROW_BYTES: Final = 64  # of a key and what stands beside it
_LARGEST_SHARING_BYTES: Final = _PAGE_BYTES // 2 - 48  # a larger value has pages of its own
_SECONDS_BETWEEN_LOOKS: Final = 0.01  # at the disk, while it is not low: the bound for that is not passed so soon
_FAR_BYTES: Final = 1 << 32  # from the end of the map
_COMMITS_WHILE_FAR: Final = 64
_META_PAGES: Final = 2
_CHANGED_PAGES: Final = 32  # of trees that a small group changes
_META_TURN: Final = b"turn"  # counts commits that had no other purpose


class LmdbStorage(TableStorage):
    """A log in a file.

    Opening the same file again in one process, by whatever path, gives a second handle on the same
    environment; it is closed when the last handle is.

    Args:
        path: The file.
        read_only: Refuse every change, and do not create the file.
        network_file_system: Open the file even where other machines may see it.
        cache: Where what was read is remembered; None for one of its own.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        verify: bool | int | None = None,
        network_file_system: bool = False,
        cache: Cache | None = None,
    ) -> None:
        super().__init__(cache)
        self.path = os.fspath(path)
        self.read_only = read_only
        self._handle = object()
        self._closers: set[int] = set()
        self._is_own: Callable[[], bool] = bool
        self._environment: _Environment | None
        self._item_version = -1, 0  # a transaction, and what it found
        self._environment = _acquire(self.path, self._handle, read_only, network_file_system, verify)
        self.log_id = self._environment.log_id

    @property
    def key(self) -> str:
        """Equal for all handles on one file."""
        return self._open_environment().real_path

    def commit(self, operations: Several[Operation]) -> list[Outcome]:
        if self.read_only:
            raise ReadOnlyError(f"the log {self.path!r} was opened with read_only=True; open it without to append")
        environment = self._open_environment()
        makes_room = all(map(_makes_room, operations))

        def attempt() -> list[Outcome]:
            with environment.transaction(write=True) as transaction:
                tables = _LmdbTables(transaction, environment.tables)
                moment = transaction.id()
                outcomes, left = self._carry_out(CheckedTables(tables), operations, moment)
                if not makes_room:
                    environment.check_spare_pages(moment - 1, tables.put_bytes)
            # failpoint: group-committed
            self._left = left
            return outcomes

        return environment.retrying(attempt, makes_room)

    def restore(self, rows: Iterable[tuple[str, bytes, bytes | None]]) -> None:
        rows = list(rows)
        # Of a log that is being made, nothing is kept for making room in it.
        self._open_environment().retrying(lambda: super(LmdbStorage, self).restore(rows), makes_room=True)

    @contextmanager
    def _reading(self) -> Iterator[Tables]:
        environment = self._open_environment()
        with environment.transaction(write=False) as transaction:
            yield CheckedTables(_LmdbTables(transaction, environment.tables))

    @contextmanager
    def _writing(self) -> Iterator[tuple[Tables, int]]:
        environment = self._open_environment()
        with environment.transaction(write=True) as transaction:
            yield CheckedTables(_LmdbTables(transaction, environment.tables)), transaction.id()

    def moment(self) -> int:
        # What LMDB says of itself (`env.info`) costs more, and names a transaction before it can be read.
        with self._open_environment().transaction(write=False) as transaction:
            return transaction.id()

    def occupancy(self) -> Occupancy:
        return self._open_environment().occupancy()

    def item_version(self) -> int:
        # Asked for by every read of what is held in memory: while nothing was committed, it need not be read again.
        environment = self._open_environment()
        with environment.transaction(write=False) as transaction:
            moment, version = self._item_version
            if moment == transaction.id():
                return version
            row = find_thread(CheckedTables(_LmdbTables(transaction, environment.tables)), fmt.ITEMS_THREAD_ID)
            version = 0 if row is None else row.last
            self._item_version = transaction.id(), version
            return version

    def give_back(self, least_bytes: int = 0, *, in_background: bool = False) -> int:
        environment = self._open_environment()
        return 0 if self.read_only else environment.give_back(least_bytes, in_background)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Nobody commits while the block runs: who appends waits.  Of a log that is only read, others may."""
        if self.read_only:
            yield
            return
        with self._open_environment().standing_still():
            yield

    def compact(self, into: str) -> Compaction:
        environment = self._open_environment()
        target = os.path.realpath(into)
        with _new_file(into), NewFile(target) as file:
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), into)
            like = os.stat(environment.real_path)
            with environment.transaction(write=False):
                _copy_compactly(environment._env, file, into)
            file.take_name(like)
            return Compaction(occupied_bytes(like), occupied_bytes(os.stat(target)))

    def begin_closing(self, is_own: Callable[[], bool]) -> None:
        """See `Storage.begin_closing`."""
        self._is_own = is_own
        self._closers.add(threading.get_ident())

    def _open_environment(self) -> _Environment:
        environment = self._environment
        if environment is None or (self._closers and threading.get_ident() not in self._closers and not self._is_own()):
            raise ClosedError(f"the log {self.path!r} was closed; open it again with Log.open")
        if environment.pid != os.getpid():
            raise ForkedError.of(self.path, environment.pid)
        return environment

    def close(self) -> None:
        environment = self._environment
        if environment is not None and environment.pid == os.getpid():
            _release(environment, self._handle)  # may be interrupted, and done again
        self._environment = None


class _LmdbTables:
    def __init__(self, transaction: lmdb.Transaction[bytes], tables: dict[str, lmdb._Database]) -> None:
        self._transaction = transaction
        self._tables = tables
        self.put_bytes = 0  # about as many as the values take in pages

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._transaction.get(key, db=self._tables[table])

    def scan(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            for key, value in cursor.iternext():
                if key >= stop:
                    return
                yield key, value

    def scan_back(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            # `stop` is excluded, so the scan begins one before it, or at the very end.
            if not (cursor.prev() if cursor.set_range(stop) else cursor.last()):
                return
            for key, value in cursor.iterprev():
                if key < start:
                    return
                yield key, value

    def rows(self, table: str, start: bytes, stop: bytes, *, limit: int | None = None) -> list[Row]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return []
            return [*islice(takewhile(lambda row: row[0] < stop, cursor.iternext()), limit)]

    def next_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        with self._transaction.cursor(self._tables[table]) as cursor:
            found = cursor.set_range(start) and cursor.key() < stop
            return cursor.key() if found else None

    def previous_key(self, table: str, start: bytes, stop: bytes) -> bytes | None:
        with self._transaction.cursor(self._tables[table]) as cursor:
            found = (cursor.prev() if cursor.set_range(stop) else cursor.last()) and cursor.key() >= start
            return cursor.key() if found else None

    def neighbours(self, table: str, key: bytes) -> tuple[Row | None, Row | None]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            after = cursor.item() if (cursor.set_range(key) if key else cursor.first()) else None
            before = cursor.item() if (cursor.prev() if after else cursor.last()) else None
            return before, after

    def put(self, table: str, key: bytes, value: bytes) -> None:
        size = len(value)
        self.put_bytes += (
            size + _ROW_BYTES if size < _LARGEST_SHARING_BYTES else -(size + 16) // _PAGE_BYTES * -_PAGE_BYTES
        )
        self._transaction.put(key, value, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> None:
        self._transaction.delete(key, db=self._tables[table])


class _Environment:
    """One LMDB environment, shared by all handles on its file."""

    def __init__(self, path: str, real_path: str, read_only: bool, verify: bool | int | None) -> None:
        self.path = path
        self.real_path = real_path
        self.pid = os.getpid()
        self.handles: set[object] = set()
        self._read_only = read_only
        # Reentrant: whoever holds it may be interrupted by a signal handler that comes here too.
        self._lock = threading.RLock()
        self._gate = threading.Condition(self._lock)
        self._alone_thread: int | None = None  # waits until no transaction is open, and lets none begin
        self._inside: dict[object, int] = {}  # transactions open, each with its thread
        self._closed = False
        self._commits = 0
        self._punches = freepages.can_punch()
        self._verify = verify
        # Where nobody on this machine had the file open, it comes from elsewhere.
        is_known = os.path.exists(real_path + lockfile.SUFFIX)
        self._reserve = Reserve(real_path)
        self._lock_file = LockFile(real_path)
        self._is_low = False
        self._looked_at = -_SECONDS_BETWEEN_LOOKS
        self._unchecked_commits = 0
        self._is_unsettled = False  # LMDB could not write a meta page
        self._is_lost = False  # and the environment was not opened anew since
        found = _check_file(path, real_path, read_only)
        if not isinstance(verify, bool) and not is_known and found is Finding.WHOLE:
            self._check_stranger()
        # failpoint: opening-checked
        try:
            self._env, self.tables, self.log_id, self.identity = self._open_settled(read_only)
        except CapacityError:
            if found is Finding.NOTHING:
                _remove_beginning(real_path)
            raise
        self._lock_file.hold()
        if not read_only:
            try:
                # A file that was there may have been made by a process that died before it came to this.
                sync_directory(os.path.dirname(real_path))
            except OSError as error:
                self.close()
                raise room.disk_full(path, real_path, f"its directory cannot be synced: {error}") from error
        # failpoint: opening-name-synced

    def _check_stranger(self) -> None:
        """Look at every page of a file that comes from elsewhere, before there is a lock file that makes it known.

        So it is looked at again if this fails, or does not come to its end.
        """
        try:
            _check_pages(self.path, self.real_path)
        except CorruptionError:
            if not os.path.exists(self.real_path + lockfile.SUFFIX):
                raise
            # Somebody has opened it meanwhile, and may have written over what was looked at.
            self._verify = True

    def _most_bytes(self) -> int | None:
        """How many bytes of pages to look at on opening; None for all."""
        if self._verify is None:
            return _MOST_BYTES
        return None if self._verify is True else self._verify

    def _open_settled(self, read_only: bool) -> tuple[lmdb.Environment, dict[str, lmdb._Database], bytes, _Identity]:
        """Open the file that has the path, while `compact` may put another one there."""
        while True:
            before = _identity_if_any(self.real_path)
            try:
                env, tables, log_id = self._open(read_only)
            except CapacityError:
                raise
            except StepwellError:
                if _identity_if_any(self.real_path) == before:
                    raise
                continue
            identity = _identity_if_any(self.real_path)
            if identity is not None and before in (None, identity):
                return env, tables, log_id, identity
            env.close()

    def _open(
        self, read_only: bool, largest_bytes: int | None = None
    ) -> tuple[lmdb.Environment, dict[str, lmdb._Database], bytes]:
        if largest_bytes is None:
            largest_bytes = _first_map_bytes()
        self._lock_file.prepare(self.path)
        with _translated(self.path, self.real_path, read_only):
            if read_only and filesystem.is_overlay(self.real_path):
                _copy_up(self.real_path)
            env = _open_map(self.real_path, read_only, largest_bytes)
            # failpoint: opening-mapped
            try:
                if read_only:
                    _check_locked(env, self.path, self.real_path)
                env.reader_check()
                if self._verify is not False:
                    _check_snapshot(env.begin, self.path, self.real_path, self._most_bytes())
                tables, log_id = _open_tables(env, self.path, read_only)
            except BaseException:
                env.close()
                raise
        return env, tables, log_id

    def check(self) -> None:
        """Raise unless the engine can follow every page, as somebody asks for certainty who has it open already."""
        with _translated(self.path, self.real_path, self._read_only):
            _check_snapshot(lambda: self.transaction(write=False), self.path, self.real_path, None)

    def check_place(self) -> None:
        """Raise unless the file is still where it was opened: by that path it is opened anew, and locked."""
        if _identity_if_any(self.real_path) != self.identity:
            raise UsageError(
                f"the file of the log {self.path!r} was renamed, replaced or removed while this process has it open; "
                "its lock file is the one beside the old path.  Close all logs on it, move the lock file along or "
                "remove it, and open the file where it is now"
            )

    # Ctrl-C can raise KeyboardInterrupt after any call, between any two lines.  What must not be left undone is the
    # first call of a `finally`, or no call at all: nothing comes before that.

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[lmdb.Transaction[bytes]]:
        """A transaction that ends with the block, whatever happens in it."""
        mark = object()
        try:
            with self._begin(write, mark) as transaction:
                if write and self._is_unsettled:
                    self._settle(transaction.id() - 1)
                yield transaction
        except lmdb.Error as error:
            if isinstance(error.__context__, GeneratorExit):
                return  # interrupted, and dropped after the log was closed: nobody is there to be told
            if self._closed:
                raise self._closed_error() from error
            raise _translate(error, self.path, self.real_path) from error
        finally:
            self._inside.pop(mark, None)
            self._tell()
        if write:
            self._commits += 1
            if self._commits % _COMMITS_BETWEEN_READER_CHECKS == 0:
                # A reader process that was killed would otherwise keep its pages for ever.  What was committed has
                # not failed if this does: another thread may have closed the environment by now.
                with suppress(lmdb.Error):
                    self._env.reader_check()

    @contextmanager
    def standing_still(self) -> Iterator[int]:
        """Nobody commits while the block runs, nor does it; gives the newest transaction."""
        with self.transaction(write=True) as transaction:
            try:
                yield transaction.id() - 1
            finally:
                transaction.abort()

    def _begin(self, write: bool, mark: object) -> lmdb.Transaction[bytes]:
        while True:
            env = self._enter(mark)
            try:
                if self._is_lost:
                    raise lmdb.PanicError("the environment is to be opened anew")
                return env.begin(write=write, buffers=False)
            except lmdb.PanicError:
                self._inside.pop(mark, None)
                with self._alone():
                    self._open_anew(env)
            except lmdb.MapResizedError:
                self._inside.pop(mark, None)
                # Another process has grown the file beyond this one's map.
                with self._alone():
                    self._resize(0)
                # failpoint: map-adopted
            except lmdb.ReadersFullError:
                self._inside.pop(mark, None)
                if not self._env.reader_check():
                    raise

    def _enter(self, mark: object) -> lmdb.Environment:
        """The environment, which stays open and mapped until the mark is taken back."""
        thread = threading.get_ident()
        active = len(self._inside)
        if active >= _FEW_READERS and not self._lock_file.fill() and active >= _READERS_WITHOUT_ROOM:
            trouble = f"{active} readers at once, and its lock file has no room for more"
            raise room.disk_full(self.path, self.real_path, trouble)
        # Signal handlers run between calls.  With nobody to wait for, none is made while the lock is held: a handler
        # that appends waits for the writer, which comes here too.
        with self._lock:
            # Whoever is within a transaction may begin another: waiting for a resizing, which waits for
            # all transactions to end, it would wait for itself.
            while self._alone_thread is not None and thread not in self._inside.values():
                self._refuse_if_alone(thread)
                self._gate.wait(_LOOK_AGAIN_SECONDS)
            if self._closed:
                raise self._closed_error()
            self._inside[mark] = thread
            return self._env

    def _tell(self) -> None:
        if self._alone_thread is not None or self._closed:
            with self._lock:
                self._gate.notify_all()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the log {self.path!r} was closed; open it again with Log.open")

    def _open_anew(self, broken: lmdb.Environment) -> None:
        """After a failure to write a meta page LMDB takes an environment for broken, even for reading."""
        if self._env is not broken:
            return  # somebody else was faster
        self._is_lost = self._is_unsettled = True
        broken.close()
        self.check_place()
        self._env, self.tables, self.log_id = self._open(self._read_only)
        self._is_lost = False

    def _settle(self, newest: int) -> None:
        """Make sure that the disk holds what is seen, before anything is written over what it held before."""
        try:
            if can_read():
                metapages.settle(self.real_path, newest)
        except OSError as error:
            raise room.disk_full(self.path, self.real_path, f"the meta pages cannot be written: {error}") from error
        self._is_unsettled = False

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
        used, largest = _used_bytes(self._env), room.largest_bytes()
        needed = put_bytes + _CHANGED_PAGES * _PAGE_BYTES + room.reserve_bytes(used)
        if used + needed <= largest:
            if largest - used > _FAR_BYTES:
                self._unchecked_commits = _COMMITS_WHILE_FAR
            return
        # A file never gets shorter: near the end of the map it is the free pages in it that count.
        with suppress(UnclearError, OSError), PageFile(self.real_path, self.identity) as file:
            free = sum(len(free.pages) for free in file.free(newest)) * self._env.stat()["psize"]
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
            oldest = min([newest, *freepages.oldest_readers(self._env.readers())])
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
                tables = CheckedTables(_LmdbTables(transaction, self.tables))
                turn = int.from_bytes(tables.get(META, _META_TURN) or b"")
                tables.put(META, _META_TURN, (turn + 1).to_bytes(8))
        except CapacityError:
            return False
        # failpoint: turn-committed
        return True

    def _grow(self, full: MapFullError) -> None:
        with self._alone():
            size, used, largest = self._map_bytes(), _used_bytes(self._env), room.largest_bytes()
            if size >= largest:
                raise MapFullError(
                    f"the log {self.path!r} takes {used:,} bytes and cannot grow: the most is {largest:,} "
                    f"(its map, or ulimit -f), of which {room.reserve_bytes(used):,} are kept for what makes room; "
                    "prune or delete threads, raise the limit, or start a new file"
                ) from full
            # failpoint: map-growing
            self._resize(min(size * 2, largest))
            # failpoint: map-grown

    def _map_bytes(self) -> int:
        return self._env.info()["map_size"]

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
            page_bytes = self._env.stat()["psize"]
            pages = {
                name: _pages(transaction, table)
                for name, table in (*self.tables.items(), ("", self._env.open_db(None, transaction)))
            }
            rows = {name: transaction.stat(table)["entries"] for name, table in self.tables.items()}
            info = self._env.info()
            self._env.reader_check()
            readers: list[tuple[int, int]] = []
            with suppress(UnclearError, ValueError):  # there is no table of readers on a file system that nobody writes
                readers = freepages.active_readers(self._env.readers())
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

    def _resize(self, size: int) -> None:
        """Change the size of the map; 0 takes the size that the file says."""
        before = self._map_bytes()
        try:
            # A resizing that fails leaves no map at all, so the room is asked for first.
            if not _has_address_space(max(size - before, 1)):
                raise MemoryError
            self._env.set_mapsize(size)
        except (lmdb.Error, OSError, MemoryError, OverflowError) as error:
            if isinstance(error, lmdb.Error):
                self._env.close()
                self._env, self.tables, self.log_id = self._open(self._read_only, before)
            raise MapFullError(
                f"the log {self.path!r} needs a map of {size or 'more'} bytes, and the address space has no room "
                "for it; raise the limit (ulimit -v) or use a 64-bit system"
            ) from error

    def _give_back_end(self) -> None:
        """Take from a file what a commit that failed has left at its end, where others may need it."""
        if self._punches:
            with (
                suppress(UnclearError, OSError, StepwellError),
                PageFile(self.real_path, self.identity) as file,
                self.standing_still(),
            ):
                end = file.unused_end(_used_bytes(self._env))
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
            self._env.reader_check()
            newest = transaction.id()
            readers = freepages.oldest_readers(self._env.readers())
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
                oldest = min([newest, *freepages.oldest_readers(self._env.readers())])
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
                time.sleep(_HOLD_SECONDS)

    def make_writable(self) -> None:
        """Open the file anew for writing: the first handle on it was a read-only one."""
        if not self._read_only:
            return
        self.check_place()
        sync_directory(os.path.dirname(self.real_path))
        with self._alone():
            self._env.close()
            try:
                self._env, self.tables, self.log_id, self.identity = self._open_settled(read_only=False)
                self._read_only = False
            except BaseException:
                # Whoever reads through the other handles goes on as before.
                self._env, self.tables, self.log_id, self.identity = self._open_settled(read_only=True)
                raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no transaction of this process is open, and let none begin."""
        thread = threading.get_ident()
        self._refuse_if_alone(thread)
        try:
            self.rest(None)
            yield
        finally:
            if self._alone_thread == thread:
                self._alone_thread = None
            self._wake()

    def rest(self, timeout_seconds: float | None) -> bool:
        """Let no transaction begin, and wait until none is open; False if that took too long."""
        thread = threading.get_ident()
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._lock:
            while self._alone_thread is not None:
                if self._alone_thread == thread or not self._wait(deadline):
                    return False
            self._alone_thread = thread
            try:
                while self._inside:
                    # What this thread has begun was interrupted by what waits here, and does not end before it.
                    if thread in self._inside.values():
                        if deadline is None:
                            raise UsageError(
                                f"the log {self.path!r} needs a larger map, or to be opened for writing, but this call "
                                "interrupted one that reads it: make it outside of signal handlers"
                            )
                        break
                    if not self._wait(deadline):
                        break
                else:
                    return True
            except BaseException:
                self._alone_thread = None
                raise
            self._alone_thread = None
            self._gate.notify_all()
            return False

    def _wait(self, deadline: float | None) -> bool:
        """Wait for something to change; False if there is no time left."""
        if deadline is not None and time.monotonic() >= deadline:
            return False
        self._gate.wait(_LOOK_AGAIN_SECONDS)
        return True

    def _refuse_if_alone(self, thread: int) -> None:
        if self._alone_thread == thread:
            raise UsageError(
                f"the log {self.path!r} is being opened or closed by the call that this one interrupted; "
                "make it outside of signal handlers and finalizers"
            )

    def resume(self) -> None:
        """Let transactions begin again."""
        self._alone_thread = None
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            self._gate.notify_all()

    def abandon(self) -> None:
        """In a forked child: give back its copy of what the parent opened."""
        self._lock = threading.RLock()
        self._gate = threading.Condition(self._lock)
        self._env.close()
        self._lock_file.close()

    def close(self) -> None:
        """Wait for the transactions of other threads; one of this thread was interrupted by this, and fails."""
        thread = threading.get_ident()
        self._closed = True
        with self._lock:
            while self._alone_thread not in (None, thread) or any(
                other != thread for other in list(self._inside.values())
            ):
                self._gate.wait(_LOOK_AGAIN_SECONDS)
            self._env.close()
            self._lock_file.close()
        # failpoint: closed


# --- one environment per file and process ---

_environments: dict[_Identity, _Environment] = {}  # by device and inode: paths may differ
_compacting: set[str] = set()  # files that nobody may open in this process until `compact` is done with them
_registry = threading.RLock()  # a signal handler or a finalizer may close one log while another is opened


def _acquire(
    path: str, handle: object, read_only: bool, network_file_system: bool, verify: bool | int | None
) -> _Environment:
    real_path = os.path.realpath(path)
    _check_place(path, real_path, network_file_system)
    with _registry:
        if real_path in _compacting:
            raise UsageError(f"the log {path!r} is being compacted by this process; open it when that has ended")
        # A file that was removed or replaced is another one: who has the old one open keeps it.
        identity = _identity_if_any(real_path)
        if identity in _in_use:
            raise ForkedError(
                f"this process was forked while a call on the log {path!r} was under way in the thread that forked, or "
                "did not end; it cannot open that log: fork elsewhere, or start a process anew (spawn)"
            )
        environment = None if identity is None else _environments.get(identity)
        if environment is None:
            environment = _Environment(path, real_path, read_only, verify)
            _environments[environment.identity] = environment
        else:
            if verify is True:
                environment.check()
            if not read_only:
                environment.make_writable()
        environment.handles.add(handle)
        return environment


def _release(environment: _Environment, handle: object) -> None:
    with _registry:
        environment.handles.discard(handle)
        if not environment.handles:
            if _environments.get(environment.identity) is environment:
                _environments.pop(environment.identity, None)
            environment.close()


# Whoever forks waits until no transaction is open, so that the child finds environments at rest, can close
# its copies of them, and may open the files for itself.  A commit takes milliseconds.  A fork out of a signal
# handler that interrupted a transaction would wait for itself: the child must do without that file.
_FORK_PATIENCE_SECONDS: Final = 5.0
_at_rest: list[_Environment] = []
_in_use: set[tuple[int, int]] = set()  # in a forked child: what could not be given back


def _before_fork() -> None:
    _registry.acquire()
    for environment in _environments.values():
        if environment.rest(_FORK_PATIENCE_SECONDS):
            _at_rest.append(environment)


def _after_fork_in_parent() -> None:
    while _at_rest:
        _at_rest.pop().resume()
    _registry.release()


def _after_fork_in_child() -> None:
    """The parent's environments may not be used here; ForkedError says so to whoever tries."""
    global _registry
    _registry = threading.RLock()
    _in_use.update(environment.identity for environment in _environments.values() if environment not in _at_rest)
    _environments.clear()
    _compacting.clear()
    while _at_rest:
        _at_rest.pop().abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


# --- opening ---


def _check_place(path: str, real_path: str, network_file_system: bool) -> None:
    """Raise if processes that open the file could miss each other there."""
    kind = None if network_file_system else filesystem.remote_kind(real_path)
    if kind is not None:
        raise UsageError(
            f"the log {path!r} would lie on a file system of type {kind!r}, which another machine, or another "
            "kernel on this one, may write too: memory maps and locks do not reach that far, and the file would be "
            "destroyed.  Put it on a local disk (in a container: a volume, not a folder of the host).  If it is "
            "never open on two machines at once, network_file_system=True takes the risk"
        )
    try:
        status = os.stat(real_path)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        return
    if status.st_nlink > 1:
        finish(real_path)
        status = os.stat(real_path)
    if status.st_nlink > 1:
        raise UsageError(
            f"the log {path!r} has {status.st_nlink} names (hard links): each has a lock file of its own, so "
            "processes that open it by different ones would destroy it.  Remove the other names, or copy the file"
        )
    if filesystem.is_mounted_alone(real_path):
        raise UsageError(
            f"the log {path!r} is mounted as a single file: its lock file is not the one beside the original, so "
            "processes there and here would destroy it.  Mount the directory that it lies in"
        )


def _check_file(path: str, real_path: str, read_only: bool) -> Finding:
    """What is there; raises if the engine must not touch it."""
    try:
        found = inspect(path, real_path)
    except OSError as error:
        if error.errno in _SCARCE:
            raise _scarce(path, error) from error
        raise UsageError(f"there can be no log at {path!r}: {error}") from error
    if found is Finding.NOTHING:
        if read_only:
            raise UsageError(f"there is no log at {path!r} to read; open it without read_only to create it")
    elif found is Finding.SHORT:
        # Pages that were given back before they were ever written may be missing at the end; others may not.  As
        # nobody has grown the file to its pages, nobody is writing to it.
        _check_pages(path, real_path)
    return found


def _check_pages(path: str, real_path: str, transaction: int | None = None, most_bytes: int | None = None) -> None:
    """Raise if the engine cannot follow the pages that a transaction left."""
    if not can_read():
        return
    try:
        check(real_path, transaction, most_bytes)
    except OSError as error:
        if error.errno in _SCARCE:
            raise _scarce(path, error) from error
        raise UsageError(f"the file {path!r} cannot be read: {error}") from error
    except UnsoundError as error:
        raise CorruptionError(f"the file {path!r} was damaged or cut short: {error}") from error


def _check_snapshot(
    begin: Callable[[], AbstractContextManager[lmdb.Transaction[bytes]]],
    path: str,
    real_path: str,
    most_bytes: int | None,
) -> None:
    """Raise if the engine cannot follow the pages of the newest transaction.

    Beginning to read touches no page but the meta pages; from then on LMDB keeps the others as they are.
    """
    for attempt in range(_SNAPSHOT_ATTEMPTS):
        with begin() as transaction:
            number = transaction.id()
            try:
                _check_pages(path, real_path, number, most_bytes)
                return
            except CorruptionError:
                # The second commit after it writes over its meta page, and can be read only when that is durable.
                with begin() as later:
                    overtaken = later.id() > number
                if attempt == _SNAPSHOT_ATTEMPTS - 1 or not overtaken:
                    raise


def _remove_beginning(real_path: str) -> None:
    """Empty a file that has not even the two pages that LMDB begins with: it would not be taken for a new one."""
    if os.name != "posix":
        return
    import fcntl

    with suppress(OSError), open(real_path, "r+b", buffering=0) as file:
        # One at a time: as long as it is too short, nobody but who empties it can make a log of it.
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_size < _FIRST_PAGES_BYTES:
            file.truncate(0)


def _first_map_bytes() -> int:
    return min(_FIRST_MAP_BYTES, room.largest_bytes())


def _open_map(real_path: str, read_only: bool, largest_bytes: int, *, lock: bool = True) -> lmdb.Environment:
    size = largest_bytes
    while True:
        try:
            return lmdb.open(
                real_path,
                map_size=size,
                subdir=False,
                readonly=read_only,
                lock=lock,
                max_dbs=2 * len(ALL),
                max_readers=_MAX_READERS,
            )
        except (lmdb.MemoryError, MemoryError, OverflowError):
            pass
        except lmdb.Error as error:
            if error.code not in (errno.ENOMEM, errno.EINVAL) or size <= _SMALLEST_MAP_BYTES:
                raise
        if size <= _SMALLEST_MAP_BYTES:
            raise MapFullError(
                f"there is not even address space for a map of {size:,} bytes under {real_path!r}; close other logs "
                "or raise ulimit -v"
            )
        # The address space is limited (ulimit -v, 32 bits, many logs): start with half of it at most, since looking at
        # the file takes some too, and so does the program, and grow when it is needed.
        size //= 2
        while size > _SMALLEST_MAP_BYTES and not _has_address_space(2 * size):
            size //= 2


def _has_address_space(length: int) -> bool:
    try:
        if sys.platform == "win32":
            mmap.mmap(-1, length).close()
        else:
            # What cannot be written is not counted as memory.
            mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
    except (OSError, MemoryError, OverflowError):
        return False
    return True


def _copy_up(real_path: str) -> None:
    """Make an overlay put the file into its upper layer now.

    The first who opens it to write has it copied there, and who has the old one mapped by then goes on reading that.
    """
    with suppress(OSError):
        os.close(os.open(real_path, os.O_RDWR | os.O_CLOEXEC))


def _check_locked(env: lmdb.Environment, path: str, real_path: str) -> None:
    """Raise if this reader is in no lock file, so that writers would take pages that it reads.

    LMDB does without one on a read-only file system.  That is right where nobody can write the file at all.
    """
    if env.readers().startswith("(no reader locks)") and not filesystem.is_unchangeable(real_path):
        raise UsageError(
            f"the log {path!r} is mounted read-only here, but may be written elsewhere, by processes that would not "
            "know of this reader: its lock file must be writable.  Mount the directory for writing and pass "
            "read_only=True, or open a copy of the file"
        )


def _open_tables(env: lmdb.Environment, path: str, read_only: bool) -> tuple[dict[str, lmdb._Database], bytes]:
    if not read_only:
        _create_tables(env, path)
        # failpoint: opening-tables-created
    try:
        # Outside any transaction: a table that was opened within one is gone when that was only for reading.
        tables = {table: env.open_db(table.encode(), create=False) for table in ALL}
    except lmdb.NotFoundError:
        raise _foreign(path) from None
    with env.begin() as transaction:
        data = transaction.get(META_FORMAT, db=tables[META])
    if data is None:
        raise _foreign(path)
    return tables, read_format(path, data).log_id


def _create_tables(env: lmdb.Environment, path: str) -> None:
    """Make a new log of an empty environment."""
    with env.begin() as transaction:
        if transaction.stat(env.open_db(None, transaction))["entries"]:
            return
    with env.begin(write=True) as transaction:
        # Another process may have done it between the two transactions.
        if transaction.stat(env.open_db(None, transaction))["entries"]:
            return
        tables = {table: env.open_db(table.encode(), transaction) for table in ALL}
        format_ = LogFormat(fmt.FORMAT_VERSION, fmt.READABLE_FROM_VERSION, os.urandom(16))
        data = with_checksum(META, META_FORMAT, msgspec.msgpack.encode(format_))
        transaction.put(META_FORMAT, data, db=tables[META])
        # failpoint: opening-tables-put


# --- compaction ---


def compact(path: str) -> Compaction:
    """See `stepwell.compact`."""
    real_path = os.path.realpath(path)
    if not lockfile.CAN_LOCK:
        raise UsageError(f"this system does not say whether {path!r} is in use; use Log.compact(into=...) instead")
    if not os.path.exists(real_path):
        raise UsageError(f"there is no log at {path!r} to compact")
    with _registry:
        if _identity_if_any(real_path) in _environments or real_path in _compacting:
            raise _in_use_error(path, "this process")
        _compacting.add(real_path)
    try:
        return _compact_alone(path, real_path)
    finally:
        with _registry:
            _compacting.discard(real_path)


def _compact_alone(path: str, real_path: str) -> Compaction:
    _check_file(path, real_path, read_only=True)
    with _new_file(path), _translated(path, real_path), ExitStack() as stack:
        # Before the lock file is touched: it raises if this process has the file open by some other way.
        env = _open_map(real_path, True, _first_map_bytes(), lock=False)
        stack.callback(env.close)
        try:
            lock = stack.enter_context(lockfile.alone(real_path))
        except lockfile.InUseError:
            raise _in_use_error(path, "another process") from None
        # failpoint: compaction-locked
        _check_pages(path, real_path)
        _open_tables(env, path, read_only=True)
        with NewFile(real_path) as file:
            like = os.stat(real_path)
            if like.st_nlink > 1:
                raise UsageError(
                    f"the log {path!r} has {like.st_nlink} names (hard links), and only one would get the new file; "
                    "remove the others, or use Log.compact(into=...)"
                )
            _copy_compactly(env, file, path)
            env.close()
            lockfile.forget(lock)
            with suppress(OSError):
                if freepages.can_allocate():
                    freepages.allocate(lock, mmap.PAGESIZE)
            # failpoint: compaction-lock-emptied
            file.replace(like)
        # failpoint: compaction-replaced
        # Fills the lock file anew before the lock goes to somebody who waits for it; else who comes next does.
        with suppress(lmdb.Error, StepwellError):
            _open_map(real_path, False, _first_map_bytes()).close()
        # failpoint: compaction-lock-filled
        return Compaction(occupied_bytes(like), occupied_bytes(os.stat(real_path)))


def _in_use_error(path: str, whose: str) -> UsageError:
    return UsageError(
        f"the log {path!r} is open in {whose}, and is compacted in its place only while nobody has it open: "
        "close it there first, or make a smaller copy with Log.compact(into=...)"
    )


def _copy_compactly(env: lmdb.Environment, file: NewFile, path: str) -> None:
    try:
        env.copyfd(file.fileno(), compact=True)
    except lmdb.IncompatibleError as error:
        raise CorruptionError(f"{path!r}: the log has pages that are neither in use nor free: {error}") from error
    except lmdb.Error as error:
        raise _translate(error, path, os.path.dirname(os.path.realpath(path))) from error


@contextmanager
def _new_file(path: str) -> Iterator[None]:
    """Turn what goes wrong with a new file for a path into our errors."""
    try:
        yield
    except FileExistsError as error:
        raise UsageError(
            f"there is something at {path!r} already, which is left as it is; choose another path"
        ) from error
    except OSError as error:
        if error.errno in room.NO_ROOM:
            raise DiskFullError(f"the disk has no room for a new file at {path!r}; free some space: {error}") from error
        raise UsageError(f"no new file can be put at {path!r}: {error}") from error


@contextmanager
def new_log(path: str, like: str) -> Iterator[str]:
    """Where to make a log that has its path, and is durable, when the block has ended well; else nothing is left.

    Args:
        path: Where there is nothing yet.
        like: A file whose permissions and owner it gets.
    """
    with _new_file(path):
        file = NewFile(os.path.realpath(path))
    with file:
        try:
            yield file.path
            with _new_file(path):
                file.take_name(os.stat(like))
        finally:
            for beside in (LockFile(file.path).path, Reserve(file.path).path):
                with suppress(OSError):
                    os.unlink(beside)


def _foreign(path: str) -> NotALogError:
    return NotALogError(f"{path!r} is an LMDB file, but not a stepwell log; it was left as it is")


def _makes_room(operation: Operation) -> bool:
    """Whether there is more room when it is done, so that it may use the reserve."""
    if isinstance(operation, Append):
        return operation.restart and operation.expected_head != 0
    return not isinstance(operation, Copy)


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


def _identity(real_path: str) -> _Identity:
    status = os.stat(real_path)
    return status.st_dev, status.st_ino


def _identity_if_any(real_path: str) -> _Identity | None:
    with suppress(OSError):
        return _identity(real_path)
    return None


# --- errors ---


@contextmanager
def _translated(path: str, real_path: str, read_only: bool = False) -> Iterator[None]:
    """Turn LMDB's errors at opening into ours."""
    try:
        yield
    except lmdb.Error as error:
        raise _translate(error, path, real_path, read_only) from error


def _scarce(path: str, trouble: Exception) -> CapacityError:
    return CapacityError(
        f"the system has no more files, locks, memory or address space for an operation on {path!r}; free some, or "
        f"raise the limit (ulimit -n, ulimit -v), and try again: {trouble}"
    )


def _translate(error: lmdb.Error, path: str, real_path: str, read_only: bool = False) -> StepwellError:
    if isinstance(error, lmdb.MapFullError):
        return MapFullError(f"the map of {path!r} is full")
    if isinstance(error, lmdb.ReadersFullError):
        return CapacityError(f"more than {_MAX_READERS} readers are on {path!r} at once; read from fewer threads")
    if "already open in this process" in str(error):
        return UsageError(
            f"the file {path!r} was replaced, but not its lock file, while this process has the old one open: "
            "close the logs on it, and never replace a log in use"
        )
    code = getattr(error, "code", None)
    # LMDB says "input/output error" of a write that came out short, which is what a full disk does.
    if code in room.NO_ROOM or code == errno.EIO or isinstance(error, lmdb.DiskError):
        return room.disk_full(path, real_path, error, in_doubt=code == errno.EIO)
    if isinstance(error, lmdb.TxnFullError):
        return CapacityError(
            f"the operation on {path!r} changes more than one transaction can; do it in parts: {error}"
        )
    if isinstance(error, lmdb.MemoryError) or code in _SCARCE:
        return _scarce(path, error)
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError | lmdb.IncompatibleError):
        return NotALogError(f"{path!r} is not a log that this engine can read: {error}")
    if isinstance(error, lmdb.ReadonlyError) or code in (errno.EACCES, errno.EPERM, errno.EROFS):
        if read_only:
            return UsageError(
                f"the log {path!r} cannot be read: {error}; a reader writes its place into the lock file beside it, "
                f"{path + lockfile.SUFFIX!r}, which must be writable, or the directory where there is none.  Or open a "
                "copy"
            )
        return ReadOnlyError(f"the log {path!r} cannot be written: {error}; open it with read_only=True to read it")
    return CorruptionError(f"LMDB cannot go on with {path!r}: {error}")
