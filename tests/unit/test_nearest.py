"""The vectors of a namespace: exact, whatever was added, replaced and removed before."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy
import pytest

from stepwell.events import Commit
from stepwell.events import Sequence as Place
from stepwell.storage import Item
from stepwell_langgraph.embedding import VECTORS
from stepwell_langgraph.nearest import Matrix, Rows, unit

DIMS = 12


def item(key: str, sequence: int, vectors: Matrix, value: bytes = b"") -> Item:
    attached = {VECTORS: ("float32", vectors.astype("<f4").tobytes())}
    return Item(("a",), key, ("msgpack", value), 0, 0, Commit(sequence), Place(sequence), None, attached)


def everything(items: Sequence[Item]) -> Sequence[Item]:
    return items


def cosine(left: Matrix, right: Matrix) -> float:
    wide, other = left.astype(float), right.astype(float)
    lengths = float(numpy.linalg.norm(wide) * numpy.linalg.norm(other))
    return float(wide @ other) / lengths if lengths else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_as_a_plain_loop_finds_them(seed: int) -> None:
    """Scores and order are those of a loop over all vectors, ties and vectors of zeros included."""
    chance = random.Random(seed)
    numbers = numpy.random.default_rng(seed)
    rows = Rows(DIMS)
    held: dict[str, tuple[Item, Matrix]] = {}
    for sequence in range(1, 400):
        key = f"k{chance.randrange(60)}"
        rows.discard(key)
        held.pop(key, None)
        if chance.random() < 0.75:
            vectors = numbers.standard_normal((chance.choice([1, 1, 3]), DIMS)).astype(numpy.float32)
            if chance.random() < 0.2:
                vectors[:] = chance.choice([0.0, 1.0])
            held[key] = item(key, sequence, vectors), vectors
            rows.add([held[key][0]])
        if sequence % 20:
            continue
        assert len(rows) == sum(len(vectors) for _, vectors in held.values())
        query = numbers.standard_normal(DIMS).astype(numpy.float32)
        best = [(max(cosine(vector, query) for vector in vectors), found) for found, vectors in held.values()]
        wanted = sorted(best, key=lambda scored: (round(scored[0], 9), scored[1].sequence), reverse=True)
        for count in (1, 5, 100):
            found = rows.nearest(unit(query), count, everything)
            assert [scored.item.key for scored in found] == [one.key for _, one in wanted[:count]]
            assert numpy.allclose([scored.score for scored in found], [score for score, _ in wanted[:count]], atol=1e-6)
        assert rows.nearest(unit(query), 0, everything) == []


def test_a_selection_that_leaves_few() -> None:
    """However rare what is wanted is, it is found, and in order."""
    numbers = numpy.random.default_rng(5)
    rows = Rows(DIMS)
    vectors = numbers.standard_normal((3000, DIMS)).astype(numpy.float32)
    rows.add(item(f"k{number}", number, vectors[number : number + 1]) for number in range(3000))
    query = numbers.standard_normal(DIMS).astype(numpy.float32)
    wanted = sorted(range(0, 3000, 500), key=lambda number: -cosine(vectors[number], query))

    def select(items: Sequence[Item]) -> Sequence[Item]:
        return [found for found in items if found.sequence % 500 == 0]

    assert [scored.item.sequence for scored in rows.nearest(unit(query), 4, select)] == wanted[:4]
    assert [scored.item.sequence for scored in rows.nearest(unit(query), 40, select)] == wanted


def test_vectors_of_another_length() -> None:
    """What another configuration has stored is left out."""
    rows = Rows(DIMS)
    rows.add([item("k", 1, numpy.ones((1, DIMS + 1), dtype=numpy.float32))])
    assert len(rows) == 0
    assert rows.nearest(unit(numpy.ones(DIMS, dtype=numpy.float32)), 3, everything) == []
