"""Reading ahead: while one checkpoint goes into the log, the next ones are read from the source, each in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final, NamedTuple

from stepwell.errors import UsageError
from stepwell_langgraph.sources import Place, Reading, Source, Unreadable

_READERS: Final = 2
_LARGE_BYTES: Final = 1 << 24  # where states are larger, none is read ahead: memory is bounded by one


class Wanted(NamedTuple):
    """What is to be read of a place; the arguments of `Source.read`."""

    place: Place
    whole: bool
    from_parent: bool


class ReadAhead:
    """Reads places in order, some of them before they are asked for, where a source has readers for other threads."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._readers: SimpleQueue[Source] = SimpleQueue()
        self._all: list[Source] = []
        self._pool: ThreadPoolExecutor | None = None

    def readings(
        self, thread_id: str, places: Iterable[Place], want: Callable[[Place], Wanted]
    ) -> Iterator[tuple[Wanted, Reading | Unreadable]]:
        """What the source has at each place.

        Args:
            thread_id: The thread.
            places: Where.
            want: Says, when it is a place's turn to be read, what is wanted of it.
        """
        if not self._has_readers():
            for place in places:
                wanted = want(place)
                yield wanted, _read(self._source, thread_id, wanted)
            return
        assert self._pool is not None
        ahead: deque[tuple[Wanted, Future[Reading | Unreadable]]] = deque()
        last_bytes = 0
        try:
            for place in places:
                wanted = want(place)
                ahead.append((wanted, self._pool.submit(self._read, thread_id, wanted)))
                while len(ahead) > (_READERS if last_bytes < _LARGE_BYTES else 0):
                    wanted, future = ahead.popleft()
                    reading = future.result()
                    last_bytes = 0 if isinstance(reading, Unreadable) else reading.size
                    yield wanted, reading
                    del reading
            while ahead:
                wanted, future = ahead.popleft()
                yield wanted, future.result()
        finally:
            for _, future in ahead:
                future.cancel()

    def close(self) -> None:
        """End the threads, and close their readers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for reader in self._all:
            reader.close()

    def _read(self, thread_id: str, wanted: Wanted) -> Reading | Unreadable:
        reader = self._readers.get()
        try:
            return _read(reader, thread_id, wanted)
        finally:
            self._readers.put(reader)

    def _has_readers(self) -> bool:
        while len(self._all) < _READERS:
            try:
                twin = self._source.twin()
            except UsageError:  # a server that has no room for more
                twin = None
            if twin is None:
                return False
            self._all.append(twin)
            self._readers.put(twin)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_READERS, "stepwell-reading")
        return True


def _read(source: Source, thread_id: str, wanted: Wanted) -> Reading | Unreadable:
    try:
        return source.read(thread_id, wanted.place, whole=wanted.whole, from_parent=wanted.from_parent)
    except Unreadable as error:
        return error
