"""The vectors of namespaces' items, and those nearest to a query (SPEC.md, section 17.8).

The rows of a matrix are vectors of length one, so that one product gives the cosine of the angle to each.  What is
found so in single precision is measured once more in double precision before it is put in order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as Several
from itertools import accumulate, islice
from typing import Any, Final, NamedTuple

import numpy

from stepwell.storage import Item, ItemName
from stepwell_langgraph.collection import Select, bare
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
    """The vectors of one namespace, each with the item that it belongs to.  Not thread-safe.

    Args:
        dims: Numbers of a vector.  Vectors of another length are left out.
        count: How many vectors there will be, as far as is known.
    """

    def __init__(self, dims: int, count: int = _FIRST_ROWS) -> None:
        self._dims = dims
        self._matrix: Matrix = numpy.empty((count, dims), dtype=numpy.float32)
        self._items: list[Item | None] = []
        self._places: dict[str, list[int]] = {}
        self._dead = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of memory, roughly."""
        return self._matrix.nbytes + 200 * len(self._items)

    def __len__(self) -> int:
        return len(self._items) - self._dead

    @property
    def matrix(self) -> Matrix:
        """All vectors, those that were removed too."""
        return self._matrix[: len(self._items)]

    @property
    def items(self) -> Several[Item | None]:
        """The item of each; None if it was removed."""
        return self._items

    def add(self, items: Iterable[Item], stored: Iterable[bytes]) -> None:
        """Add the vectors of items that have none here.

        Args:
            items: The items.
            stored: The vectors of each as they are stored, one behind the other.
        """
        size = 4 * self._dims
        first = place = len(self._items)
        added: list[bytes] = []
        for item, vectors in zip(items, stored, strict=True):
            count, rest = divmod(len(vectors), size)
            if count and not rest:
                added.append(vectors)
                self._items += [bare(item)] * count
                self._places[item.key] = [*range(place, place + count)]
                place += count
        if added:
            self._reserve(place)
            self._matrix[first:place] = _units(numpy.frombuffer(b"".join(added), dtype="<f4").reshape(-1, self._dims))

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

    def _reserve(self, rows: int) -> None:
        held = len(self._matrix)
        if rows > held:
            larger = numpy.empty((max(rows, held * 3 // 2), self._dims), dtype=numpy.float32)
            larger[:held] = self._matrix
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


def nearest(several: Several[Rows], query: Matrix, count: int, select: Select) -> list[Scored]:
    """The items that are most similar to a query, best first; one with several vectors counts by its best.

    Args:
        several: The vectors of some namespaces.
        query: A vector of length one, or 0.
        count: How many at most.
        select: Which of some items may be among them.
    """
    if not several or count < 1:
        return []
    scores = numpy.concatenate([rows.matrix @ query for rows in several])
    firsts = [*accumulate((len(rows.items) for rows in several[:-1]), initial=0)]
    wanted = 2 * count
    while True:
        chosen = _best(scores, wanted)
        places: dict[ItemName, list[Matrix]] = {}
        candidates: list[Item] = []
        for index in chosen.tolist():
            which = bisect_right(firsts, index) - 1
            rows, place = several[which], index - firsts[which]
            item = rows.items[place]
            if item is None:
                continue
            name = item.namespace, item.key
            if name not in places:
                places[name] = []
                candidates.append(item)
            places[name].append(rows.matrix[place])
        found = select(candidates)
        if len(found) >= count or len(chosen) == len(scores):
            return in_order(_measured(found, places, query))[:count]
        wanted *= 8


def _measured(items: Several[Item], vectors: dict[ItemName, list[Matrix]], query: Matrix) -> list[Scored]:
    """Items by the best of their vectors."""
    found: list[Scored] = []
    for start in range(0, len(items), _MEASURED_AT_ONCE):
        together = items[start : start + _MEASURED_AT_ONCE]
        each = [vectors[item.namespace, item.key] for item in together]
        scores = iter(_exact([vector for one in each for vector in one], query))
        found += [Scored(max(islice(scores, len(one))), item) for item, one in zip(together, each, strict=True)]
    return found


def _exact(vectors: list[Matrix], query: Matrix) -> list[float]:
    """The cosine of each vector and a query in double precision, which does not depend on the other vectors."""
    chosen = numpy.array(vectors, dtype=numpy.float64)
    wide = query.astype(numpy.float64)
    lengths = numpy.linalg.norm(chosen, axis=1) * numpy.linalg.norm(wide)
    products = (chosen * wide).sum(axis=1)
    cosines: list[float] = numpy.divide(products, lengths, out=numpy.zeros_like(lengths), where=lengths > 0).tolist()
    return cosines


def unit(vector: Matrix) -> Matrix:
    """A query of length one; one without direction stays 0."""
    made: Matrix = _units(vector[None])[0]
    return made


def in_order(scored: Iterable[Scored]) -> list[Scored]:
    """Best first; of equals, the newest."""
    return sorted(scored, key=lambda found: (found.score, found.item.sequence), reverse=True)


def vectors_of(item: Item) -> bytes:
    """The vectors that came with an item, as they are stored."""
    return item.attachments.get(VECTORS, ("", b""))[1]


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
