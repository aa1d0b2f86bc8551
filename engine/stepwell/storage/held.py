"""What was read and proven last, so that it is neither fetched nor checked nor decompressed again.

A thread's sequences are never given twice, so what stood at one once is right for as long as it stands there;
whether it still does, only the tables know.

Caches have no locks: each line that changes one is a single operation of the interpreter.  A signal handler or a
finalizer that closes the log may interrupt any line, and waits for the writer, which comes here too.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Final, Generic, TypeVar

from stepwell.codec import Record
from stepwell.storage.segments import Segment

_SEGMENTS_BYTES: Final = 1 << 25
_RECORDS_BYTES: Final = 1 << 23

_T = TypeVar("_T")


class _Latest(Generic[_T]):
    """The latest of some things by thread and sequence, up to a number of bytes; at least one."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._things: OrderedDict[tuple[int, int], tuple[_T, int]] = OrderedDict()
        self._size = 0

    def get(self, thread: int, sequence: int) -> _T | None:
        found = self._things.get((thread, sequence))
        if found is None:
            return None
        with suppress(KeyError):  # dropped a moment ago
            self._things.move_to_end((thread, sequence))
        return found[0]

    def put(self, thread: int, sequence: int, thing: _T, size: int) -> None:
        kept = thing, size
        if self._things.setdefault((thread, sequence), kept) is kept:
            self._size += size
        with suppress(KeyError):  # dropped by somebody else
            while self._size > self._most_bytes and len(self._things) > 1:
                dropped = self._things.popitem(last=False)[1]
                self._size -= dropped[1]


class Held:
    """Segments by their last sequence, and loose records."""

    def __init__(self) -> None:
        self.segments = _Latest[Segment](_SEGMENTS_BYTES)
        self.records = _Latest[Record](_RECORDS_BYTES)
