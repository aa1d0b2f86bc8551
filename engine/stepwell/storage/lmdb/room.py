"""How much room a log has, and the reserve that lets a full one be made smaller.

Deleting takes room at first: LMDB writes what changes beside what was there.  So something is kept from the operations
that only add, for those that make room.

    map    Operations that only add end at the largest map, or the largest file that the process may write, less
           `reserve_bytes`.
    disk   While the file system runs low, a file beside the log (`<path>-reserve`) takes that many bytes.  When an
           operation that makes room finds the disk full, the file is removed, and the operation is tried again.

Where there is plenty of room nothing is kept, and no such file is there.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from stepwell.errors import DiskFullError
from stepwell.storage.lmdb import filesystem, freepages, lockfile
from stepwell.storage.lmdb.freepages import UnableError
from stepwell.storage.newfile import occupied_bytes

if sys.platform != "win32":
    import fcntl
    import resource

# The map is address space, not memory or disk: on 64 bits it is so large that nobody meets its end.
LARGEST_MAP_BYTES: Final = 1 << 40 if sys.maxsize > 1 << 32 else 1 << 28
LOW_BYTES: Final = 1 << 26
SMALLEST_RESERVE_BYTES: Final = 1 << 18
LARGEST_RESERVE_BYTES: Final = 1 << 22
RESERVE_SHARE: Final = 16
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SMALLEST_BYTES: Final = 1 << 14  # of a reserve, where there is no more room
_TEXT: Final = (
    b"This file keeps a little of the disk for deleting from the stepwell log beside it. It may be removed.\n"
)
_LOCK_PAGE_BYTES: Final = mmap.PAGESIZE
_GRANULE_BYTES: Final = 1 << 16  # of maps: a multiple of every page size


def largest_bytes() -> int:
    """How long the file can become, by its map and by what the process may write (`ulimit -f`)."""
    limit = _file_size_limit()
    return LARGEST_MAP_BYTES if limit is None else min(LARGEST_MAP_BYTES, limit // _GRANULE_BYTES * _GRANULE_BYTES)


def reserve_bytes(used_bytes: int) -> int:
    """How much is kept for operations that make room, in a log of that size."""
    return max(SMALLEST_RESERVE_BYTES, min(LARGEST_RESERVE_BYTES, used_bytes // RESERVE_SHARE))


def free_bytes(path: str) -> int | None:
    """How much is free, for all users, on the file system that a file lies on; None if that is not known.

    What a quota leaves is not seen.
    """
    if not hasattr(os, "statvfs"):
        return None
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    if not status.f_blocks:
        return None  # the file system does not count
    return status.f_frsize * status.f_bavail


def described(path: str) -> str:
    """How much room there is, for messages."""
    free = free_bytes(path)
    text = "it is not known how much is free" if free is None else f"{free:,} bytes are free on its file system"
    limit = _file_size_limit()
    return text if limit is None else f"{text}, and this process may write files of {limit:,} bytes (ulimit -f)"


def disk_full(path: str, real_path: str, trouble: object, *, in_doubt: bool = False) -> DiskFullError:
    """The error that says so.

    Args:
        path: The log, as its user calls it.
        real_path: Where it lies.
        trouble: What the system said.
        in_doubt: The system did not say that it was the room.
    """
    free = free_bytes(real_path)
    in_doubt = in_doubt and (free is None or free >= LOW_BYTES)
    what = f"the disk fails, or has no room, under {path!r}" if in_doubt else f"the disk has no room for {path!r}"
    return DiskFullError(
        f"{what}: {described(real_path)}; free some space, or prune or delete threads (for which a little is kept), "
        f"then try again: {trouble}"
    )


def _file_size_limit() -> int | None:
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


class Reserve:
    """The file beside a log that takes blocks of the disk while these run low; all processes share it."""

    def __init__(self, real_path: str) -> None:
        self._log = real_path
        self.path = f"{real_path}-reserve"
        self._may_be_there = True  # another process may have left it

    def look(self, used_bytes: Callable[[], int]) -> bool:
        """Make the file, or remove it, as the room on the disk asks for; whether the disk runs low."""
        free = free_bytes(self._log)
        low = free is not None and free < LOW_BYTES
        if low:
            self._keep(reserve_bytes(used_bytes()))
        elif self._may_be_there:
            self.release()
        return low

    def release(self) -> bool:
        """Remove the file; whether there was one."""
        self._may_be_there = False
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not _is_reserve(descriptor):
                    return False
                os.unlink(self.path)
            finally:
                os.close(descriptor)
            return True
        return False

    def _keep(self, wanted_bytes: int) -> None:
        """Take that many bytes, or as many as there are."""
        with suppress(OSError):
            if occupied_bytes(os.stat(self.path)) >= wanted_bytes:
                return
        self._may_be_there = True
        with suppress(OSError):
            descriptor = self._opened()
            try:
                if _is_reserve(descriptor):
                    while wanted_bytes > _SMALLEST_BYTES and not _take(descriptor, wanted_bytes):
                        wanted_bytes //= 2
            finally:
                os.close(descriptor)

    def _opened(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.write(descriptor, _TEXT) == len(_TEXT):
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
        os.unlink(self.path)  # an empty file would be taken for somebody else's
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_reserve(descriptor: int) -> bool:
    """Whether a file is one of ours, and not what somebody else keeps under that name."""
    return os.pread(descriptor, len(_TEXT), 0) == _TEXT


def _take(descriptor: int, length: int) -> bool:
    """Give a reserve that many bytes; whether there were so many."""
    try:
        if freepages.can_allocate():
            with suppress(UnableError):
                freepages.allocate(descriptor, length)
                return True
        rest = length - len(_TEXT)
        return os.pwrite(descriptor, bytes(rest), len(_TEXT)) == rest
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return False


class LockFile:
    """LMDB's lock file, whose pages it maps and writes to: if one has no block and the disk is full, the process dies.

    So its first page, with room for the readers that there usually are, gets its block before LMDB opens it, and the
    others get theirs when the disk runs low, or when many read at once.

    Processes that commit stand in line for it, too (`line`).
    """

    def __init__(self, real_path: str) -> None:
        self.path = real_path + lockfile.SUFFIX
        # Elsewhere `flock` may be the lock of `fcntl`, which the engine keeps on this file.
        self._has_line = filesystem.remote_kind(real_path) is None
        self._descriptor: int | None = None
        self._whole = False

    def prepare(self, path: str) -> None:
        """Make the file ready to be opened by LMDB.

        It is opened here only where nobody can have it open: closing it would take LMDB's locks away.

        Raises:
            DiskFullError: There is not even room for that.
        """
        with suppress(OSError):
            # Less than a page is what an attempt on a full disk leaves, where blocks are smaller than that.
            if occupied_bytes(os.stat(self.path)) >= _LOCK_PAGE_BYTES:
                return
        if not freepages.can_allocate():
            return
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                freepages.allocate(descriptor, _LOCK_PAGE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            # What else may be wrong with it LMDB will say.
            if error.errno in NO_ROOM:
                raise disk_full(path, os.path.dirname(self.path), f"its lock file: {error}") from error

    def hold(self) -> None:
        """Keep the file open, as long as LMDB has it open."""
        if self._descriptor is None and freepages.can_allocate():
            with suppress(OSError):
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    @contextmanager
    def line(self) -> Iterator[None]:
        """Wait for other processes to end their commits; they wait for the block to end.

        LMDB's mutex would do, but for a process that is killed at the moment when it is woken to take it: nobody wakes
        those who wait behind it, unless somebody else has to wait after them.  Whatever waits for a lock of the file
        system is woken.  In the main thread an interruption could leave it locked.
        """
        descriptor = self._descriptor if self._has_line else None
        if sys.platform == "win32" or descriptor is None:
            yield
            return
        try:
            with suppress(OSError):  # without it the mutex alone is waited for
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def fill(self) -> bool:
        """Give every page its block; whether all have one, as far as that can be told."""
        if not self._whole and self._descriptor is not None:
            with suppress(OSError):
                status = os.fstat(self._descriptor)
                if occupied_bytes(status) < status.st_size:
                    freepages.allocate(self._descriptor, status.st_size)
                self._whole = True
        return self._whole or self._descriptor is None

    def close(self) -> None:
        """To be called when LMDB has closed the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
