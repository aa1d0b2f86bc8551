"""A file written anew, as small as it can be: in its own place, or beside it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import lmdb

from stepwell.errors import CorruptionError, DiskFullError, StepwellError, UsageError
from stepwell.storage import Compaction
from stepwell.storage.lmdb import freepages, lockfile, registry, room
from stepwell.storage.lmdb.opening import (
    check_file,
    check_pages,
    first_map_bytes,
    identity_if_any,
    open_map,
    open_tables,
)
from stepwell.storage.lmdb.room import LockFile, Reserve
from stepwell.storage.lmdb.trouble import translate, translated
from stepwell.storage.newfile import NewFile, occupied_bytes


def compact(path: str) -> Compaction:
    """See `stepwell.compact`."""
    real_path = os.path.realpath(path)
    if not lockfile.CAN_LOCK:
        raise UsageError(f"this system does not say whether {path!r} is in use; use Log.compact(into=...) instead")
    if not os.path.exists(real_path):
        raise UsageError(f"there is no log at {path!r} to compact")
    with registry.lock:
        if identity_if_any(real_path) in registry.environments or real_path in registry.compacting:
            raise _in_use_error(path, "this process")
        registry.compacting.add(real_path)
    try:
        return _compact_alone(path, real_path)
    finally:
        with registry.lock:
            registry.compacting.discard(real_path)


def _compact_alone(path: str, real_path: str) -> Compaction:
    check_file(path, real_path, read_only=True)
    with new_file(path), translated(path, real_path), ExitStack() as stack:
        # Before the lock file is touched: it raises if this process has the file open by some other way.
        env = open_map(real_path, True, first_map_bytes(), lock=False)
        stack.callback(env.close)
        try:
            lock = stack.enter_context(lockfile.alone(real_path))
        except lockfile.InUseError:
            raise _in_use_error(path, "another process") from None
        # failpoint: compaction-locked
        check_pages(path, real_path)
        open_tables(env, path, read_only=True)
        with NewFile(real_path) as file:
            like = os.stat(real_path)
            if like.st_nlink > 1:
                raise UsageError(
                    f"the log {path!r} has {like.st_nlink} names (hard links), and only one would get the new file; "
                    "remove the others, or use Log.compact(into=...)"
                )
            copy_compactly(env, file, path)
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
            open_map(real_path, False, first_map_bytes()).close()
        # failpoint: compaction-lock-filled
        return Compaction(occupied_bytes(like), occupied_bytes(os.stat(real_path)))


def _in_use_error(path: str, whose: str) -> UsageError:
    return UsageError(
        f"the log {path!r} is open in {whose}, and is compacted in its place only while nobody has it open: "
        "close it there first, or make a smaller copy with Log.compact(into=...)"
    )


def copy_compactly(env: lmdb.Environment, file: NewFile, path: str) -> None:
    """Write what an environment holds into a file that nobody sees yet; `path` is for messages."""
    try:
        env.copyfd(file.fileno(), compact=True)
    except lmdb.IncompatibleError as error:
        raise CorruptionError(f"{path!r}: the log has pages that are neither in use nor free: {error}") from error
    except lmdb.Error as error:
        raise translate(error, path, os.path.dirname(os.path.realpath(path))) from error


@contextmanager
def new_file(path: str) -> Iterator[None]:
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
    with new_file(path):
        file = NewFile(os.path.realpath(path))
    with file:
        try:
            yield file.path
            with new_file(path):
                file.take_name(os.stat(like))
        finally:
            for beside in (LockFile(file.path).path, Reserve(file.path).path):
                with suppress(OSError):
                    os.unlink(beside)
