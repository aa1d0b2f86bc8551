"""The storage of a log in a file: every operation is one transaction of LMDB."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from functools import partial

from stepwell import format as fmt
from stepwell.apart import apart
from stepwell.cache import Cache
from stepwell.errors import ClosedError, ForkedError, ReadOnlyError
from stepwell.storage import Append, Compaction, Copy, Operation, Outcome
from stepwell.storage.checksums import CheckedTables
from stepwell.storage.lmdb.compaction import copy_compactly, new_file
from stepwell.storage.lmdb.elastic import ElasticEnvironment
from stepwell.storage.lmdb.registry import acquire, release
from stepwell.storage.lmdb.tables import LmdbTables
from stepwell.storage.newfile import NewFile, occupied_bytes
from stepwell.storage.occupancy import Occupancy
from stepwell.storage.ordered import TableStorage
from stepwell.storage.tables import Tables, find_thread


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
        self._environment: ElasticEnvironment | None
        self._item_version = -1, 0  # a transaction, and what it found
        self._environment = acquire(self.path, self._handle, read_only, network_file_system, verify)
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
                tables = LmdbTables(transaction, environment.tables)
                moment = transaction.id()
                outcomes, left = self._carry_out(CheckedTables(tables), operations, moment)
                if not makes_room:
                    environment.check_spare_pages(moment - 1, tables.put_bytes)
            # failpoint: group-committed
            self._left = left
            return outcomes

        with environment.in_line():
            return environment.retrying(attempt, makes_room)

    def restore(self, rows: Iterable[tuple[str, bytes, bytes | None]]) -> None:
        rows = list(rows)
        # Of a log that is being made, nothing is kept for making room in it.
        self._open_environment().retrying(lambda: super(LmdbStorage, self).restore(rows), makes_room=True)

    @contextmanager
    def _reading(self) -> Iterator[Tables]:
        environment = self._open_environment()
        with environment.transaction(write=False) as transaction:
            yield CheckedTables(LmdbTables(transaction, environment.tables))

    @contextmanager
    def _writing(self) -> Iterator[tuple[Tables, int]]:
        environment = self._open_environment()
        with environment.transaction(write=True) as transaction:
            yield CheckedTables(LmdbTables(transaction, environment.tables)), transaction.id()

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
            row = find_thread(CheckedTables(LmdbTables(transaction, environment.tables)), fmt.ITEMS_THREAD_ID)
            version = 0 if row is None else row.last
            self._item_version = transaction.id(), version
            return version

    def give_back(self, least_bytes: int = 0, *, in_background: bool = False) -> int:
        environment = self._open_environment()
        if self.read_only or environment.is_closing:  # this may have interrupted its closing
            return 0
        call = partial(environment.give_back, least_bytes, in_background)
        return call() if in_background else apart(call)

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
        with new_file(into), NewFile(target) as file:
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), into)
            like = os.stat(environment.real_path)
            with environment.transaction(write=False):
                copy_compactly(environment.env, file, into)
            file.take_name(like)
            return Compaction(occupied_bytes(like), occupied_bytes(os.stat(target)))

    def begin_closing(self, is_own: Callable[[], bool]) -> None:
        """See `Storage.begin_closing`."""
        self._is_own = is_own
        self._closers.add(threading.get_ident())

    def _open_environment(self) -> ElasticEnvironment:
        environment = self._environment
        if environment is None or (self._closers and threading.get_ident() not in self._closers and not self._is_own()):
            raise ClosedError(f"the log {self.path!r} was closed; open it again with Log.open")
        if environment.pid != os.getpid():
            raise ForkedError.of(self.path, environment.pid)
        return environment

    def close(self) -> None:
        environment = self._environment
        if environment is not None and environment.pid == os.getpid():
            release(environment, self._handle)  # may be interrupted, and done again
        self._environment = None


def _makes_room(operation: Operation) -> bool:
    """Whether there is more room when it is done, so that it may use the reserve."""
    if isinstance(operation, Append):
        return operation.restart and operation.expected_head != 0
    return not isinstance(operation, Copy)
