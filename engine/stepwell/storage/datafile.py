"""A look at an LMDB file before the engine maps it into memory.

The engine trusts the file: where pages are missing, touching the map ends the process with a signal.  So the
two meta pages are read first, as plain bytes, and compared with the length of the file.
"""

from __future__ import annotations

import os
from enum import Enum

from stepwell.errors import NotALogError, UsageError
from stepwell.storage.pages import FORMAT, META_BYTES, Meta, read_meta


class Finding(Enum):
    """What lies at a path."""

    NOTHING = "no file, or an empty one"
    WHOLE = "an LMDB file that is as long as it should be"
    SHORT = "an LMDB file that is shorter than its pages"


def inspect(path: str, real_path: str) -> Finding:
    """What lies at a path.

    Raises:
        NotALogError: Something that is no LMDB file of our engine; it is left as it is.
        UsageError: Nothing can lie there.
    """
    try:
        with open(real_path, "rb") as file:
            head = file.read(META_BYTES)
            if not head:
                return Finding.NOTHING
            first = _read_meta(path, head)
            file.seek(first.page_bytes)
            tail = file.read(META_BYTES)
            # The metas are read before the length: a file that grows meanwhile only gets longer.
            length = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(real_path)):
            raise UsageError(f"the directory of {path!r} does not exist; create it first") from None
        return Finding.NOTHING
    except IsADirectoryError:
        raise NotALogError(f"{path!r} is a directory; a log is a single file") from None
    if len(tail) < META_BYTES:
        return Finding.SHORT
    newer = max(first, _read_meta(path, tail), key=lambda meta: meta.transaction)
    return Finding.WHOLE if length >= (newer.last_page + 1) * newer.page_bytes else Finding.SHORT


def _read_meta(path: str, page: bytes) -> Meta:
    meta = read_meta(page)
    if meta is None:
        raise NotALogError(f"{path!r} is not a stepwell log; it was left as it is")
    if meta.format != FORMAT:
        raise NotALogError(f"{path!r} has LMDB format {meta.format}; a log has format {FORMAT} (engine 0.9)")
    return meta
