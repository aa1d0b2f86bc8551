"""Reading ahead: while one checkpoint goes into the log, two readers take turns to read the next from the source.

page of places     0 1 2 3 4 5 ...      what is wanted of each is asked when its page begins
first reader       0   2   4            each reads its places of the page as one question to the source,
second reader        1   3   5          and answers one place after the other
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final

from stepwell.errors import UsageError
from stepwell_langgraph.sources import Place, Reading, Source, Unreadable, Wanted

_READERS: Final = 2
_PAGE: Final = 64  # places that a reader is asked for at once
_LARGE_BYTES: Final = 1 << 24  # where states are larger, none is read ahead: memory is bounded by one


class ReadAhead:
    """Reads places in order, some of them before they are asked for, where a source has readers for other threads."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._readers: list[_Reader] = []

    def readings(
        self, thread_id: str, places: Iterable[Place], want: Callable[[Place], Wanted]
    ) -> Iterator[tuple[Wanted, Reading | Unreadable]]:
        """What the source has at each place.

        Args:
            thread_id: The thread.
            places: Where.
            want: Says, a page before it is a place's turn at most, what is wanted of it.
        """
        readers = self._opened()
        if not readers:
            for wanted in map(want, places):
                (reading,) = self._source.read(thread_id, [wanted])
                yield wanted, reading
            return
        left = iter(places)
        ahead: deque[tuple[Wanted, Future[Reading | Unreadable]]] = deque()
        is_large = False
        try:
            while page := [*map(want, islice(left, _PAGE * len(readers)))]:
                for number, reader in enumerate(readers):
                    reader.begin(thread_id, page[number :: len(readers)])
                for number, wanted in enumerate(page):
                    ahead.append((wanted, readers[number % len(readers)].next()))
                    while len(ahead) > (0 if is_large else len(readers)):
                        asked, future = ahead.popleft()
                        reading = future.result()
                        is_large = isinstance(reading, Reading) and reading.size >= _LARGE_BYTES
                        yield asked, reading
                        del reading, future
            while ahead:
                asked, future = ahead.popleft()
                yield asked, future.result()
                del future
        finally:
            for _, future in ahead:
                future.cancel()

    def close(self) -> None:
        """End the threads, and close their readers."""
        for reader in self._readers:
            reader.close()

    def _opened(self) -> list[_Reader]:
        """The readers; none if the source has not enough of them."""
        while len(self._readers) < _READERS:
            try:
                twin = self._source.twin()
            except UsageError:  # a server that has no room for more
                twin = None
            if twin is None:
                return []
            self._readers.append(_Reader(twin))
        return self._readers


class _Reader:
    """A source that is read in a thread of its own."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._readings = source.read("", [])
        self._thread = ThreadPoolExecutor(1, "stepwell-reading")

    def begin(self, thread_id: str, wanted: list[Wanted]) -> None:
        """Ask for some places, once what was asked for before is read."""
        self._thread.submit(self._begin, thread_id, wanted)

    def next(self) -> Future[Reading | Unreadable]:
        """What there is at the next place."""
        return self._thread.submit(self._next)

    def close(self) -> None:
        self._thread.submit(self._begin, "", [])  # what is still under way ends
        self._thread.shutdown()
        self._source.close()

    def _begin(self, thread_id: str, wanted: list[Wanted]) -> None:
        self._readings.close()
        self._readings = self._source.read(thread_id, wanted)

    def _next(self) -> Reading | Unreadable:
        return next(self._readings)
