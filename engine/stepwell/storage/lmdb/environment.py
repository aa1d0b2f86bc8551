"""One LMDB environment from its opening to its closing, and the transactions in it.

While its map is changed, it is opened anew, or the process forks, no transaction is open: whoever does that waits until
all have ended, and lets none begin.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import lmdb

from stepwell.errors import CapacityError, ClosedError, CorruptionError, MapFullError, StepwellError, UsageError
from stepwell.storage.lmdb import filesystem, lockfile, metapages, room
from stepwell.storage.lmdb.datafile import Finding
from stepwell.storage.lmdb.opening import (
    Identity,
    check_file,
    check_locked,
    check_pages,
    check_snapshot,
    copy_up,
    first_map_bytes,
    has_address_space,
    identity_if_any,
    open_map,
    open_tables,
    remove_beginning,
)
from stepwell.storage.lmdb.pages import can_read
from stepwell.storage.lmdb.room import LockFile
from stepwell.storage.lmdb.trouble import translate, translated
from stepwell.storage.newfile import sync_directory

_FEW_READERS: Final = 16  # of this process: the first page of the lock file has room for several such
_READERS_WITHOUT_ROOM: Final = 24
_COMMITS_BETWEEN_READER_CHECKS: Final = 32
_LOOK_AGAIN_SECONDS: Final = 0.05  # who would have woken the waiting may have been interrupted before that
_MOST_BYTES: Final = 1 << 26  # of pages that are looked at on opening, of a file that is known


class Environment:
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
        self._verify = verify
        # Where nobody on this machine had the file open, it comes from elsewhere.
        is_known = os.path.exists(real_path + lockfile.SUFFIX)
        self._lock_file = LockFile(real_path)
        self._is_unsettled = False  # LMDB could not write a meta page
        self._is_lost = False  # and the environment was not opened anew since
        found = check_file(path, real_path, read_only)
        if not isinstance(verify, bool) and not is_known and found is Finding.WHOLE:
            self._check_stranger()
        # failpoint: opening-checked
        try:
            self.env, self.tables, self.log_id, self.identity = self._open_settled(read_only)
        except CapacityError:
            if found is Finding.NOTHING:
                remove_beginning(real_path)
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
            check_pages(self.path, self.real_path)
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

    def _open_settled(self, read_only: bool) -> tuple[lmdb.Environment, dict[str, lmdb._Database], bytes, Identity]:
        """Open the file that has the path, while `compact` may put another one there."""
        while True:
            before = identity_if_any(self.real_path)
            try:
                env, tables, log_id = self._open(read_only)
            except CapacityError:
                raise
            except StepwellError:
                if identity_if_any(self.real_path) == before:
                    raise
                continue
            identity = identity_if_any(self.real_path)
            if identity is not None and before in (None, identity):
                return env, tables, log_id, identity
            env.close()

    def _open(
        self, read_only: bool, largest_bytes: int | None = None
    ) -> tuple[lmdb.Environment, dict[str, lmdb._Database], bytes]:
        if largest_bytes is None:
            largest_bytes = first_map_bytes()
        self._lock_file.prepare(self.path)
        with translated(self.path, self.real_path, read_only):
            if read_only and filesystem.is_overlay(self.real_path):
                copy_up(self.real_path)
            env = open_map(self.real_path, read_only, largest_bytes)
            # failpoint: opening-mapped
            try:
                if read_only:
                    check_locked(env, self.path, self.real_path)
                env.reader_check()
                if self._verify is not False:
                    check_snapshot(env.begin, self.path, self.real_path, self._most_bytes())
                tables, log_id = open_tables(env, self.path, read_only)
            except BaseException:
                env.close()
                raise
        return env, tables, log_id

    @property
    def is_closing(self) -> bool:
        """Whether its closing has begun."""
        return self._closed

    def check(self) -> None:
        """Raise unless the engine can follow every page, as somebody asks for certainty who has it open already."""
        with translated(self.path, self.real_path, self._read_only):
            check_snapshot(lambda: self.transaction(write=False), self.path, self.real_path, None)

    def check_place(self) -> None:
        """Raise unless the file is still where it was opened: by that path it is opened anew, and locked."""
        if identity_if_any(self.real_path) != self.identity:
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
            raise translate(error, self.path, self.real_path) from error
        finally:
            self._inside.pop(mark, None)
            self._tell()
        if write:
            self._commits += 1
            if self._commits % _COMMITS_BETWEEN_READER_CHECKS == 0:
                # A reader process that was killed would otherwise keep its pages for ever.  What was committed has
                # not failed if this does: another thread may have closed the environment by now.
                with suppress(lmdb.Error):
                    self.env.reader_check()

    def in_line(self) -> AbstractContextManager[None]:
        """A block in which one process commits at a time; for the thread that writes."""
        return self._lock_file.line()

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
                if not self.env.reader_check():
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
            return self.env

    def _tell(self) -> None:
        if self._alone_thread is not None or self._closed:
            with self._lock:
                self._gate.notify_all()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the log {self.path!r} was closed; open it again with Log.open")

    def _open_anew(self, broken: lmdb.Environment) -> None:
        """After a failure to write a meta page LMDB takes an environment for broken, even for reading."""
        if self.env is not broken:
            return  # somebody else was faster
        self._is_lost = self._is_unsettled = True
        broken.close()
        self.check_place()
        self.env, self.tables, self.log_id = self._open(self._read_only)
        self._is_lost = False

    def _settle(self, newest: int) -> None:
        """Make sure that the disk holds what is seen, before anything is written over what it held before."""
        try:
            if can_read():
                metapages.settle(self.real_path, newest)
        except OSError as error:
            raise room.disk_full(self.path, self.real_path, f"the meta pages cannot be written: {error}") from error
        self._is_unsettled = False

    def _map_bytes(self) -> int:
        return self.env.info()["map_size"]

    def _resize(self, size: int) -> None:
        """Change the size of the map; 0 takes the size that the file says."""
        before = self._map_bytes()
        try:
            # A resizing that fails leaves no map at all, so the room is asked for first.
            if not has_address_space(max(size - before, 1)):
                raise MemoryError
            self.env.set_mapsize(size)
        except (lmdb.Error, OSError, MemoryError, OverflowError) as error:
            if isinstance(error, lmdb.Error):
                self.env.close()
                self.env, self.tables, self.log_id = self._open(self._read_only, before)
            raise MapFullError(
                f"the log {self.path!r} needs a map of {size or 'more'} bytes, and the address space has no room "
                "for it; raise the limit (ulimit -v) or use a 64-bit system"
            ) from error

    def make_writable(self) -> None:
        """Open the file anew for writing: the first handle on it was a read-only one."""
        if not self._read_only:
            return
        self.check_place()
        sync_directory(os.path.dirname(self.real_path))
        with self._alone():
            self.env.close()
            try:
                self.env, self.tables, self.log_id, self.identity = self._open_settled(read_only=False)
                self._read_only = False
            except BaseException:
                # Whoever reads through the other handles goes on as before.
                self.env, self.tables, self.log_id, self.identity = self._open_settled(read_only=True)
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
        self.env.close()
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
            self.env.close()
            self._lock_file.close()
        # failpoint: closed
