"""What is remembered of a log, up to a number of bytes; what was not used for longest is forgotten first.

One budget serves everything that is remembered, so that what is used most gets the most room, however many threads
the log has.  Whoever remembers something has a shelf of its own for it, and must manage without: forgetting costs time,
or space on disk.  What was stored stays right; only of objects that are changed in place after their put nobody knows
any more (SPEC, 17.2).

There is no lock: a signal handler or a finalizer that closes the log may interrupt any line here, and waits for the
log's writer, which comes here too.  Each line that changes something is a single operation of the interpreter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from contextlib import suppress
from itertools import count
from typing import Any, Final, Generic, TypeAlias, TypeVar

CACHE_BYTES: Final = 1 << 27
_ENTRY_BYTES: Final = 256  # what remembering something costs beside the thing itself, roughly

_Spot: TypeAlias = tuple[int, Hashable]
"""The number of a shelf and the key there: numbers and texts, which the collector need not look at."""

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

_numbers: Final = count()  # of all shelves of the process


class Cache:
    """Things on shelves.  Thread-safe.

    Attributes:
        most_bytes: The budget.  What was put last is held even if it is larger than that by itself.
        size_bytes: What the things take, as far as those who put them know.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self.most_bytes = most_bytes
        self.size_bytes = 0
        self._things: OrderedDict[_Spot, tuple[Any, int]] = OrderedDict()

    def get(self, place: _Spot) -> Any:
        found = self._things.get(place)
        if found is None:
            return None
        try:  # noqa: SIM105 - which takes several times as long
            self._things.move_to_end(place)
        except KeyError:
            pass  # forgotten a moment ago
        return found[0]

    def put(self, place: _Spot, thing: Any, size_bytes: int) -> None:
        entry = thing, size_bytes + _ENTRY_BYTES
        self.take(place)
        while self._things.setdefault(place, entry) is not entry:
            self.take(place)  # of another thread that came between
        self.size_bytes += entry[1]
        with suppress(KeyError):  # the last one was taken by another thread
            while self.size_bytes > self.most_bytes and len(self._things) > 1:
                forgotten = self._things.popitem(last=False)[1]
                self.size_bytes -= forgotten[1]

    def take(self, place: _Spot) -> Any:
        found = self._things.pop(place, None)
        if found is None:
            return None
        self.size_bytes -= found[1]
        return found[0]

    def keys(self, shelf: int) -> list[Any]:
        return [key for number, key in list(self._things) if number == shelf]


class Shelf(Generic[_K, _V]):
    """One sort of things in a cache, by key.  A thing is never None."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._number = next(_numbers)

    def get(self, key: _K) -> _V | None:
        """A thing, which is the last to be forgotten now; None if it is not there."""
        found: _V | None = self.cache.get((self._number, key))
        return found

    def put(self, key: _K, thing: _V, size_bytes: int) -> None:
        """Remember a thing, in place of what had the key before.

        Args:
            key: Its key.
            thing: The thing.
            size_bytes: Bytes of memory that it takes, roughly.
        """
        self.cache.put((self._number, key), thing, size_bytes)

    def take(self, key: _K) -> _V | None:
        """A thing, which then belongs to the caller alone; None if it is not there."""
        taken: _V | None = self.cache.take((self._number, key))
        return taken

    def all_keys(self) -> list[_K]:
        """The keys of all its things, those first that are forgotten first."""
        return self.cache.keys(self._number)
