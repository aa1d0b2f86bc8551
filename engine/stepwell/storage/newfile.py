"""A file that appears whole, or not at all.

    1. It is written under a name of its own beside its target, `<target>-unfinished`, locked by whoever writes it.
    2. It is synced.
    3. It takes the target's name: by a link, which replaces nothing, or by a rename, which replaces what is there.
    4. The directory is synced.

A crash before 3 leaves the target as it was, and `<target>-unfinished`, which the next attempt removes.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Final, Self

from stepwell.errors import UsageError

if sys.platform != "win32":
    import fcntl

SUFFIX: Final = "-unfinished"  # what is there is removed: it must be no name that somebody gives to a log

_NO_LINKS: Final = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}


class NewFile:
    """A file on its way; when the block ends, it has the target's name or is gone.

    Attributes:
        target: The path that it is for.
        path: Where it is until then.

    Raises:
        UsageError: Another one is on its way to the same target.
        OSError: It cannot be created.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.path = target + SUFFIX
        self._descriptor = self._claim()
        self._is_draft = True

    def _claim(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if not _lock(descriptor):
                    raise UsageError(f"another process is writing {self.path!r}; let it end, or choose another path")
                status = os.fstat(descriptor)
                if _is_at(status, self.path):
                    if not status.st_size and status.st_nlink == 1:
                        return descriptor
                    # Somebody died over it.  It is not emptied: it may have its second name already.
                    os.unlink(self.path)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def fileno(self) -> int:
        """The descriptor to write through."""
        return self._descriptor

    def take_name(self, like: os.stat_result) -> None:
        """Give the file its name, which nobody must have yet; it is durable when this returns.

        Args:
            like: A file whose permissions it gets, and whose owner, if this process may give it to that one.

        Raises:
            FileExistsError: Something has that name; it is left as it is.
        """
        with suppress(PermissionError):
            self._give_to(like)
        self._finish(like)
        try:
            os.link(self.path, self.target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self.target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.target) from None
            os.rename(self.path, self.target)
        # failpoint: new-file-linked
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        self._is_draft = False
        sync_directory(os.path.dirname(self.target))

    def replace(self, like: os.stat_result) -> None:
        """Put the file in the place of what has its name; it is durable when this returns.

        Args:
            like: A file whose permissions and owner it gets.
        """
        self._give_to(like)
        self._finish(like)
        os.replace(self.path, self.target)
        self._is_draft = False
        # failpoint: new-file-renamed
        sync_directory(os.path.dirname(self.target))

    def _give_to(self, like: os.stat_result) -> None:
        if sys.platform != "win32":
            mine = os.fstat(self._descriptor)
            if (mine.st_uid, mine.st_gid) != (like.st_uid, like.st_gid):
                os.fchown(self._descriptor, like.st_uid, like.st_gid)

    def _finish(self, like: os.stat_result) -> None:
        # failpoint: new-file-written
        if sys.platform != "win32":
            os.fchmod(self._descriptor, like.st_mode & 0o7777)
        os.fsync(self._descriptor)
        # failpoint: new-file-synced

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_draft:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        os.close(self._descriptor)


def finish(target: str) -> None:
    """Take away the second name of a file whose writer died, or is about to take it away itself."""
    with suppress(OSError):
        if os.path.samefile(target + SUFFIX, target):
            os.unlink(target + SUFFIX)


def occupied_bytes(status: os.stat_result) -> int:
    """What a file takes of the disk."""
    return status.st_size if sys.platform == "win32" else status.st_blocks * 512


def sync_directory(directory: str) -> None:
    """Make the names in a directory durable; a synced file without a name would be lost."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:
        return  # who may pass through a directory but not read it cannot sync it either
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Keep other processes and other threads from writing the same file; False if one does."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_at(status: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(status, os.stat(path))
    except FileNotFoundError:
        return False
