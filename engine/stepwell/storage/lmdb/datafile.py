"""A look at what lies at a path, before the engine maps it into memory.

The engine trusts the file, and makes a lock file beside it.  So the meta pages, and what the log says of itself, are
read first, as plain bytes; what is no log is refused before anything is touched.  Whether the engine can follow the
pages of what is a log, `structure.py` says.
"""

from __future__ import annotations

import os
import stat
import struct
from enum import Enum
from typing import BinaryIO, Final

import msgspec

from stepwell import format as fmt
from stepwell.errors import CorruptionError, FormatError, NewerFormatError, NotALogError, UsageError
from stepwell.storage.checksums import checked
from stepwell.storage.lmdb.pages import (
    FORMAT,
    MAGIC,
    META_BYTES,
    PAGE_SIZES,
    Meta,
    PageError,
    Pages,
    can_read,
    read_meta,
    read_tree,
)
from stepwell.storage.tables import ALL, META

META_FORMAT: Final = b"format"
_ENGINE: Final = "lmdb 0.9"
_META_HEAD: Final = struct.Struct("=Q2xH")  # number, flags
_META_PAGE: Final = 0x08  # flag of a page
_ATTEMPTS: Final = 3  # others may write: what is read in pieces may be of several transactions
_MAGIC_PLACES: Final = {12: "a 32-bit system", 24: "LMDB 1.0"}
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


class LogFormat(msgspec.Struct):
    """What the `meta` table says of a log.

    Attributes:
        written: The format version that its newest records may have.
        readable_from: The oldest library format version that can read it.
        log_id: 16 random bytes that tell this log from any other.
        engine: The storage engine and its file format.
    """

    written: int
    readable_from: int
    log_id: bytes
    engine: str = _ENGINE


class Finding(Enum):
    """What lies at a path."""

    NOTHING = "no file, or an empty one"
    WHOLE = "a log that is as long as it should be"
    SHORT = "a log that is shorter than its pages"


def inspect(path: str, real_path: str) -> Finding:
    """What lies at a path.

    Raises:
        NotALogError: Something that is no log; it is left as it is.
        NewerFormatError: A log that a newer version of the library wrote.
        CorruptionError: A log that is damaged where it says what it is.
        UsageError: Nothing can lie there.
        OSError: It cannot be read.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _inspect(path, real_path)
        except (FormatError, CorruptionError):
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _inspect(path: str, real_path: str) -> Finding:
    try:
        # Before it is opened: opening a pipe would wait for somebody who writes to it.
        mode = stat.S_IFMT(os.stat(real_path).st_mode)
        if mode != stat.S_IFREG:
            raise NotALogError(f"{path!r} is {_KINDS.get(mode, 'no file')}; a log is a single file")
        with open(real_path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return Finding.NOTHING
            newer = _newer_meta(path, file)
            # The metas are read before the length: a file that grows meanwhile only gets longer.
            length = os.fstat(file.fileno()).st_size
            if can_read():
                _check_tables(path, file, newer)
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(real_path)):
            raise UsageError(f"the directory of {path!r} does not exist; create it first") from None
        return Finding.NOTHING
    return Finding.WHOLE if length >= (newer.last_page + 1) * newer.page_bytes else Finding.SHORT


def _newer_meta(path: str, file: BinaryIO) -> Meta:
    head = _read(file, 0)
    first = read_meta(head)
    if first is None:
        raise _no_meta(path, file, head)
    metas = (first, read_meta(tail := _read(file, first.page_bytes)))
    for number, (page, meta) in enumerate(zip((head, tail), metas, strict=True)):
        if meta is not None and meta.format != FORMAT:
            raise NotALogError(
                f"{path!r} has LMDB format {meta.format}, a log has format {FORMAT} (engine 0.9); it was left as "
                "it is: choose another path"
            )
        if meta is None or _META_HEAD.unpack_from(page) != (number, _META_PAGE) or meta.page_bytes != first.page_bytes:
            raise CorruptionError(f"meta page {number} of {path!r} is damaged")
    second = metas[1]
    assert second is not None
    numbers = first.transaction, second.transaction
    # They are written in turn, by transactions that follow each other.
    if numbers != (0, 0) and (numbers[0] % 2 or abs(numbers[0] - numbers[1]) != 1):
        raise CorruptionError(f"the meta pages of {path!r} are of transactions {numbers[0]} and {numbers[1]}")
    return max(first, second, key=lambda meta: meta.transaction)


def _no_meta(path: str, file: BinaryIO, head: bytes) -> FormatError | CorruptionError:
    """Why a file is refused that does not begin with a meta page."""
    for page_bytes in sorted(PAGE_SIZES):
        second = _read(file, page_bytes)
        meta = read_meta(second)
        if meta is not None and (meta.page_bytes, meta.format) == (page_bytes, FORMAT):
            return CorruptionError(f"meta page 0 of {path!r} is damaged")
    magic = struct.pack("=I", MAGIC)
    for place, origin in _MAGIC_PLACES.items():
        if head[place : place + 4] == magic:
            return NotALogError(
                f"{path!r} is a file of {origin}; a log is one of LMDB 0.9 on a 64-bit system, and this was left "
                "as it is: choose another path, or open it where it was written"
            )
    if magic[::-1] in head[: max(_MAGIC_PLACES) + 4]:
        return NotALogError(
            f"{path!r} is an LMDB file of a system with the other byte order; it was left as it is: open it there, and "
            "copy the threads"
        )
    return NotALogError(f"{path!r} is not a stepwell log; it was left as it is: choose another path")


def _check_tables(path: str, file: BinaryIO, newer: Meta) -> None:
    """Raise if the file is no log, or one of another version; what is damaged is passed over."""
    faults: list[PageError] = []
    pages = Pages(file.fileno(), newer.page_bytes, newer.last_page)
    rows = [row for leaf in pages.walk(newer.tables, faults.append) for row in leaf]
    tables = {row.key: read_tree(row.data) for row in rows if row.is_tree}
    missing = [name for name in ALL if name.encode() not in tables]
    if faults or not rows:
        return
    if len(missing) > 1:
        raise NotALogError(
            f"{path!r} is an LMDB file, but not a stepwell log; it was left as it is: choose another path"
        )
    if missing:
        raise CorruptionError(f"the table {missing[0]!r} of {path!r} is missing")
    found = {row.key: row for leaf in pages.walk(tables[META.encode()], faults.append) for row in leaf}
    if not faults and META_FORMAT in found:
        read_format(path, pages.value(found[META_FORMAT]))


def read_format(path: str, stored: bytes) -> LogFormat:
    """What a log says of itself.

    Raises:
        CorruptionError: It cannot be read.
        NewerFormatError: A newer version of the library wrote it.
        NotALogError: It is of another engine.
    """
    try:
        found = msgspec.msgpack.decode(checked(META, META_FORMAT, stored), type=LogFormat)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(f"the format entry of {path!r} cannot be read: {error}") from error
    if found.readable_from > fmt.FORMAT_VERSION:
        raise NewerFormatError(
            f"{path!r} was written in format {found.written}, this library reads up to {fmt.FORMAT_VERSION}; "
            "upgrade stepwell"
        )
    if found.engine != _ENGINE:
        raise NotALogError(f"{path!r} is a log of the engine {found.engine!r}, this one is {_ENGINE!r}")
    return found


def _read(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    return file.read(META_BYTES)
