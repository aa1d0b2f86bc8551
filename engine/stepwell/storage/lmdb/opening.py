"""Opening a file: what is looked at before it is mapped, and while it is.

    1. The place: whether processes that open the file could miss each other there.
    2. The file, as plain bytes: whether it is a log, or nothing yet, or something else.
    3. The map, as large as the address space has room for.
    4. The pages: whether LMDB can follow them.
    5. The tables, which a new log gets here.

What is no log is left as it was.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Final, TypeAlias

import lmdb
import msgspec

from stepwell import format as fmt
from stepwell.errors import CorruptionError, MapFullError, NotALogError, UsageError
from stepwell.storage.checksums import with_checksum
from stepwell.storage.lmdb import filesystem, room
from stepwell.storage.lmdb.datafile import META_FORMAT, Finding, LogFormat, inspect, read_format
from stepwell.storage.lmdb.lockfile import MAX_READERS
from stepwell.storage.lmdb.pages import can_read
from stepwell.storage.lmdb.structure import UnsoundError, check
from stepwell.storage.lmdb.trouble import SCARCE, scarce
from stepwell.storage.newfile import finish
from stepwell.storage.tables import ALL, META

Identity: TypeAlias = tuple[int, int]  # device and inode

_FIRST_MAP_BYTES: Final = 1 << 34  # a process has room for thousands of them, and few logs outgrow it
_SMALLEST_MAP_BYTES: Final = 1 << 24
_SNAPSHOT_ATTEMPTS: Final = 5
_FIRST_PAGES_BYTES: Final = 2 * mmap.PAGESIZE


def check_place(path: str, real_path: str, network_file_system: bool) -> None:
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


def check_file(path: str, real_path: str, read_only: bool) -> Finding:
    """What is there; raises if the engine must not touch it."""
    try:
        found = inspect(path, real_path)
    except OSError as error:
        if error.errno in SCARCE:
            raise scarce(path, error) from error
        raise UsageError(f"there can be no log at {path!r}: {error}") from error
    if found is Finding.NOTHING:
        if read_only:
            raise UsageError(f"there is no log at {path!r} to read; open it without read_only to create it")
    elif found is Finding.SHORT:
        # Pages that were given back before they were ever written may be missing at the end; others may not.  As
        # nobody has grown the file to its pages, nobody is writing to it.
        check_pages(path, real_path)
    return found


def check_pages(path: str, real_path: str, transaction: int | None = None, most_bytes: int | None = None) -> None:
    """Raise if the engine cannot follow the pages that a transaction left."""
    if not can_read():
        return
    try:
        check(real_path, transaction, most_bytes)
    except OSError as error:
        if error.errno in SCARCE:
            raise scarce(path, error) from error
        raise UsageError(f"the file {path!r} cannot be read: {error}") from error
    except UnsoundError as error:
        raise CorruptionError(f"the file {path!r} was damaged or cut short: {error}") from error


def check_snapshot(
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
                check_pages(path, real_path, number, most_bytes)
                return
            except CorruptionError:
                # The second commit after it writes over its meta page, and can be read only when that is durable.
                with begin() as later:
                    overtaken = later.id() > number
                if attempt == _SNAPSHOT_ATTEMPTS - 1 or not overtaken:
                    raise


def remove_beginning(real_path: str) -> None:
    """Empty a file that has not even the two pages that LMDB begins with: it would not be taken for a new one."""
    if os.name != "posix":
        return
    import fcntl

    with suppress(OSError), open(real_path, "r+b", buffering=0) as file:
        # One at a time: as long as it is too short, nobody but who empties it can make a log of it.
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_size < _FIRST_PAGES_BYTES:
            file.truncate(0)


def first_map_bytes() -> int:
    return min(_FIRST_MAP_BYTES, room.largest_bytes())


def open_map(real_path: str, read_only: bool, largest_bytes: int, *, lock: bool = True) -> lmdb.Environment:
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
                max_readers=MAX_READERS,
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
        while size > _SMALLEST_MAP_BYTES and not has_address_space(2 * size):
            size //= 2


def has_address_space(length: int) -> bool:
    try:
        if sys.platform == "win32":
            mmap.mmap(-1, length).close()
        else:
            # What cannot be written is not counted as memory.
            mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
    except (OSError, MemoryError, OverflowError):
        return False
    return True


def copy_up(real_path: str) -> None:
    """Make an overlay put the file into its upper layer now.

    The first who opens it to write has it copied there, and who has the old one mapped by then goes on reading that.
    """
    with suppress(OSError):
        os.close(os.open(real_path, os.O_RDWR | os.O_CLOEXEC))


def check_locked(env: lmdb.Environment, path: str, real_path: str) -> None:
    """Raise if this reader is in no lock file, so that writers would take pages that it reads.

    LMDB does without one on a read-only file system.  That is right where nobody can write the file at all.
    """
    if env.readers().startswith("(no reader locks)") and not filesystem.is_unchangeable(real_path):
        raise UsageError(
            f"the log {path!r} is mounted read-only here, but may be written elsewhere, by processes that would not "
            "know of this reader: its lock file must be writable.  Mount the directory for writing and pass "
            "read_only=True, or open a copy of the file"
        )


def open_tables(env: lmdb.Environment, path: str, read_only: bool) -> tuple[dict[str, lmdb._Database], bytes]:
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


def _foreign(path: str) -> NotALogError:
    return NotALogError(f"{path!r} is an LMDB file, but not a stepwell log; it was left as it is")


def _identity(real_path: str) -> Identity:
    status = os.stat(real_path)
    return status.st_dev, status.st_ino


def identity_if_any(real_path: str) -> Identity | None:
    with suppress(OSError):
        return _identity(real_path)
    return None
