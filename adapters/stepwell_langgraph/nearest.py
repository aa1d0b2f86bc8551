"""The vectors of one namespace's items, and those nearest to a query (SPEC.md, section 17.8).

The rows of a matrix are vectors of length one, so that one product gives the cosine of the angle to each.  What is
found so in single precision is measured once more in double precision before it is put in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy

from stepwell.storage import Item
from stepwell_langgraph.collection import Select
from stepwell_langgraph.embedding import VECTORS

Matrix = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

_FIRST_ROWS: Final = 16
_MEASURED_AT_ONCE: Final = 4096  # in double precision they take memory
ROUNDING: Final = 1e-5  # what a score in single precision may be off


class Scored(NamedTuple):
    """An item and how similar it is: the cosine, from -1 to 1."""

    score: float
    item: Item


class Rows:
    """Vectors, each with the item that it belongs to.  Not thread-safe.

    Args:
        dims: Numbers of a vector.  Vectors of another length are left out.
    """

    def __init__(self, dims: int) -> None:
        self._dims = dims
        self._matrix: Matrix = numpy.empty((_FIRST_ROWS, dims), dtype=numpy.float32)
        self._items: list[Item | None] = []
        self._places: dict[str, list[int]] = {}
        self._dead = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of memory, roughly."""
        return self._matrix.nbytes + 200 * len(self._items)

    def __len__(self) -> int:
        return len(self._items) - self._dead

    def add(self, items: Iterable[Item]) -> None:
        """Add the vectors of items that have none here."""
        found = [(item, vectors) for item in items if len(vectors := vectors_of(item, self._dims))]
        if not found:
            return
        stacked = numpy.concatenate([vectors for _, vectors in found])
        first = len(self._items)
        self._reserve(first + len(stacked))
        self._matrix[first : first + len(stacked)] = _units(stacked)
        for item, vectors in found:
            place = len(self._items)
            self._items += [item._replace(attachments={})] * len(vectors)
            self._places[item.key] = [*range(place, len(self._items))]

    def touch(self, item: Item) -> None:
        """The item has the same vectors, but is held in another form."""
        for place in self._places.get(item.key, ()):
            self._items[place] = item

    def discard(self, key: str) -> None:
        """Remove the vectors of an item."""
        for place in self._places.pop(key, ()):
            self._items[place] = None
            self._dead += 1
        if 2 * self._dead > len(self._items) > _FIRST_ROWS:
            self._close_ranks()

    def nearest(self, query: Matrix, count: int, select: Select) -> list[Scored]:
        """The items that are most similar to a query, best first; one with several vectors counts by its best.

        Args:
            query: A vector of length one, or 0.
            count: How many at most.
            select: Which of some items may be among them.
        """
        rows = len(self._items)
        if not rows or count < 1:
            return []
        scores = self._matrix[:rows] @ query
        wanted = 2 * count
        while True:
            chosen = _best(scores, wanted)
            candidates = {item.key: item for place in chosen.tolist() if (item := self._items[place]) is not None}
            found = select([*candidates.values()])
            if len(found) >= count or len(chosen) == rows:
                return self._measured(chosen, {item.key for item in found}, query)[:count]
            wanted *= 8

    def _measured(self, chosen: Any, keys: set[str], query: Matrix) -> list[Scored]:
        """The items with some keys by the best of their vectors that were chosen, in order."""
        places = [place for place in chosen.tolist() if (item := self._items[place]) is not None and item.key in keys]
        best: dict[str, Scored] = {}
        for start in range(0, len(places), _MEASURED_AT_ONCE):
            together = places[start : start + _MEASURED_AT_ONCE]
            for place, score in zip(together, self._exact(together, query), strict=True):
                item = self._items[place]
                assert item is not None
                if item.key not in best or score > best[item.key].score:
                    best[item.key] = Scored(score, item)
        return in_order(best.values())

    def _exact(self, places: list[int], query: Matrix) -> list[float]:
        chosen = self._matrix[places].astype(numpy.float64)
        wide = query.astype(numpy.float64)
        lengths = numpy.linalg.norm(chosen, axis=1) * numpy.linalg.norm(wide)
        cosines = numpy.divide(chosen @ wide, lengths, out=numpy.zeros_like(lengths), where=lengths > 0)
        scores: list[float] = cosines.tolist()
        return scores

    def _reserve(self, rows: int) -> None:
        if rows > len(self._matrix):
            larger = numpy.empty((max(rows, len(self._matrix) * 3 // 2), self._dims), dtype=numpy.float32)
            larger[: len(self._items)] = self._matrix[: len(self._items)]
            self._matrix = larger

    def _close_ranks(self) -> None:
        alive = [place for place, item in enumerate(self._items) if item is not None]
        self._matrix = numpy.ascontiguousarray(self._matrix[alive])
        self._items = [self._items[place] for place in alive]
        self._dead = 0
        self._places = {}
        for place, item in enumerate(self._items):
            assert item is not None
            self._places.setdefault(item.key, []).append(place)


def unit(vector: Matrix) -> Matrix:
    """A query of length one; one without direction stays 0."""
    made: Matrix = _units(vector[None])[0]
    return made


def in_order(scored: Iterable[Scored]) -> list[Scored]:
    """Best first; of equals, the newest."""
    return sorted(scored, key=lambda found: (found.score, found.item.sequence), reverse=True)


def vectors_of(item: Item, dims: int) -> Matrix:
    """The vectors that came with an item, one to a row."""
    _, stored = item.attachments.get(VECTORS, ("", b""))
    if len(stored) % (4 * dims):
        stored = b""
    rows: Matrix = numpy.frombuffer(stored, dtype="<f4").reshape(-1, dims)
    return rows


def _units(vectors: Matrix) -> Matrix:
    wide = vectors.astype(numpy.float64)
    lengths = numpy.linalg.norm(wide, axis=1, keepdims=True)
    made: Matrix = numpy.divide(wide, lengths, out=numpy.zeros_like(wide), where=lengths > 0).astype(numpy.float32)
    return made


def _best(scores: Matrix, count: int) -> Any:
    """Places of the best scores, and of those that may be as good as the last of them."""
    if count >= len(scores):
        return numpy.arange(len(scores))
    last = numpy.partition(scores, len(scores) - count)[len(scores) - count]
    return numpy.flatnonzero(scores >= last - ROUNDING)
