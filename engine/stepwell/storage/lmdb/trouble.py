"""LMDB's errors, and the system's, as ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import lmdb

from stepwell.errors import (
    CapacityError,
    CorruptionError,
    MapFullError,
    NotALogError,
    ReadOnlyError,
    StepwellError,
    UsageError,
)
from stepwell.storage.lmdb import lockfile, room
from stepwell.storage.lmdb.lockfile import MAX_READERS

SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.EAGAIN})


@contextmanager
def translated(path: str, real_path: str, read_only: bool = False) -> Iterator[None]:
    """Turn LMDB's errors at opening into ours."""
    try:
        yield
    except lmdb.Error as error:
        raise translate(error, path, real_path, read_only) from error


def scarce(path: str, trouble: Exception) -> CapacityError:
    """The error that says that the system has run out of something."""
    return CapacityError(
        f"the system has no more files, locks, memory or address space for an operation on {path!r}; free some, or "
        f"raise the limit (ulimit -n, ulimit -v), and try again: {trouble}"
    )


def translate(error: lmdb.Error, path: str, real_path: str, read_only: bool = False) -> StepwellError:
    """The error of ours that an error of LMDB stands for; `read_only` if a log is being opened to read."""
    if isinstance(error, lmdb.MapFullError):
        return MapFullError(f"the map of {path!r} is full")
    if isinstance(error, lmdb.ReadersFullError):
        return CapacityError(f"more than {MAX_READERS} readers are on {path!r} at once; read from fewer threads")
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
    if isinstance(error, lmdb.MemoryError) or code in SCARCE:
        return scarce(path, error)
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
