"""What to do after LMDB could not write a meta page: make the disk agree with what processes see.

A failed write or sync leaves open what the disk holds: perhaps the meta page of a transaction that was reported as
failed.  LMDB writes the old numbers back, into the page cache alone, and the transactions after it use the pages of
the failed one again.  A power cut before all of that has reached the disk could then lead to a state whose pages were
overwritten.  A sync by itself proves nothing: after one that failed the system takes the pages for written.  So
both meta pages are written again, and synced one after the other, before anything else is written:

    1. The older one gets the state of the newest, under the number before it; whatever stood there is gone.
    2. The newest is written as it is.

A crash after each leaves the newest state, or the one before it that the disk held all along.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from stepwell.storage.lmdb.pages import MAGIC, PAGE_HEADER_BYTES, PAGE_SIZES

_HEAD = struct.Struct("=II8x")  # magic, format, address of the map
_STATE_BYTES: Final = 8 + 2 * 48 + 8  # size of the map, two roots, last page: what LMDB writes, up to the transaction
_NUMBER = struct.Struct("=Q")
_PAGE_SIZE = struct.Struct("=I")
_OFFSET: Final = PAGE_HEADER_BYTES + _HEAD.size
_PAGE_SIZE_OFFSET: Final = 8  # in the state


def settle(path: str, newest: int) -> None:
    """Write both meta pages again; for whoever holds the lock of the writers.

    Args:
        path: The file.
        newest: The newest transaction.

    Raises:
        OSError: The disk fails still, or the file does not say what it should; nothing may be written to the log.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        page_bytes = _page_bytes(descriptor)
        places = [(number & 1) * page_bytes + _OFFSET for number in (newest - 1, newest)]
        state = os.pread(descriptor, _STATE_BYTES + _NUMBER.size, places[1])
        if state[_STATE_BYTES:] != _NUMBER.pack(newest):
            raise OSError(f"the newest meta page is not of transaction {newest}")
        for place, number in zip(places, (newest - 1, newest), strict=True):
            data = state[:_STATE_BYTES] + _NUMBER.pack(number)
            if os.pwrite(descriptor, data, place) != len(data):
                raise OSError("a meta page was written in part")
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _page_bytes(descriptor: int) -> int:
    head = os.pread(descriptor, _OFFSET + _PAGE_SIZE_OFFSET + _PAGE_SIZE.size, 0)
    if len(head) == _OFFSET + _PAGE_SIZE_OFFSET + _PAGE_SIZE.size:
        magic, _ = _HEAD.unpack_from(head, PAGE_HEADER_BYTES)
        (page_bytes,) = _PAGE_SIZE.unpack_from(head, _OFFSET + _PAGE_SIZE_OFFSET)
        if magic == MAGIC and page_bytes in PAGE_SIZES:
            return int(page_bytes)
    raise OSError("there is no meta page")
