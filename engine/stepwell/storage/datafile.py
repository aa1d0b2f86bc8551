"""A look at an LMDB file before the engine maps it into memory.

The engine trusts the file: where pages are missing, touching the map ends the process with a signal.  So the
two meta pages are read first, as plain bytes, and compared with the length of the file.

    page 0, page 1   16 bytes of page header, then the meta data:
    offset  size  field
    0       4     magic number 0xBEEFC0DE
    4       4     format of the file: 1 for engine 0.9
    24      4     page size
    120     8     last page in use
    128     8     transaction that wrote this meta page: the higher one counts
"""

from __future__ import annotations

import os
import struct
from enum import Enum
from typing import Final, NamedTuple

from stepwell.errors import NotALogError, UsageError

PAGE_HEADER_BYTES: Final = 16
_META = struct.Struct("=II16xI92xQQ")  # magic, format, page size, last page, transaction
_META_BYTES: Final = PAGE_HEADER_BYTES + _META.size
MAGIC: Final = 0xBEEFC0DE
FORMAT: Final = 1
PAGE_SIZES: Final = frozenset(1 << bits for bits in range(9, 17))


class Finding(Enum):
    """What lies at a path."""

    NOTHING = "no file, or an empty one"
    WHOLE = "an LMDB file that is as long as it should be"
    SHORT = "an LMDB file that is shorter than its pages"


class _Meta(NamedTuple):
    page_bytes: int
    last_page: int
    transaction: int


def inspect(path: str, real_path: str) -> Finding:
    """What lies at a path.

    Raises:
        NotALogError: Something that is no LMDB file of our engine; it is left as it is.
        UsageError: Nothing can lie there.
    """
    try:
        with open(real_path, "rb") as file:
            head = file.read(_META_BYTES)
            if not head:
                return Finding.NOTHING
            first = _read_meta(path, head)
            file.seek(first.page_bytes)
            tail = file.read(_META_BYTES)
            # The metas are read before the length: a file that grows meanwhile only gets longer.
            length = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(real_path)):
            raise UsageError(f"the directory of {path!r} does not exist; create it first") from None
        return Finding.NOTHING
    except IsADirectoryError:
        raise NotALogError(f"{path!r} is a directory; a log is a single file") from None
    if len(tail) < _META_BYTES:
        return Finding.SHORT
    newer = max(first, _read_meta(path, tail), key=lambda meta: meta.transaction)
    return Finding.WHOLE if length >= (newer.last_page + 1) * newer.page_bytes else Finding.SHORT


def _read_meta(path: str, page: bytes) -> _Meta:
    if len(page) < _META_BYTES:
        raise NotALogError(f"{path!r} is not a stepwell log; it was left as it is")
    magic, format_, page_bytes, last_page, transaction = _META.unpack_from(page, PAGE_HEADER_BYTES)
    if magic != MAGIC or page_bytes not in PAGE_SIZES:
        raise NotALogError(f"{path!r} is not a stepwell log; it was left as it is")
    if format_ != FORMAT:
        raise NotALogError(f"{path!r} has LMDB format {format_}; a log has format {FORMAT} (engine 0.9)")
    return _Meta(page_bytes, last_page, transaction)
