"""The vectors of a namespace: exact, whatever was added, replaced and removed before."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy
import pytest
from msgspec.structs import replace

from stepwell.events import Commit
from stepwell.events import Sequence as Place
from stepwell.storage import Item
from stepwell_langgraph.embedding import VECTORS
from stepwell_langgraph.nearest import Matrix, Rows, nearest, unit, vectors_of

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
            rows.add([held[key][0]], [vectors_of(held[key][0])])
        if sequence % 20:
            continue
        assert len(rows) == sum(len(vectors) for _, vectors in held.values())
        query = numbers.standard_normal(DIMS).astype(numpy.float32)
        best = [(max(cosine(vector, query) for vector in vectors), found) for found, vectors in held.values()]
        wanted = sorted(best, key=lambda scored: (round(scored[0], 9), scored[1].sequence), reverse=True)
        for count in (1, 5, 100):
            found = nearest([rows], unit(query), count, everything)
            assert [scored.item.key for scored in found] == [one.key for _, one in wanted[:count]]
            assert numpy.allclose([scored.score for scored in found], [score for score, _ in wanted[:count]], atol=1e-6)
        assert nearest([rows], unit(query), 0, everything) == []


def test_a_selection_that_leaves_few() -> None:
    """However rare what is wanted is, it is found, and in order."""
    numbers = numpy.random.default_rng(5)
    rows = Rows(DIMS)
    vectors = numbers.standard_normal((3000, DIMS)).astype(numpy.float32)
    items = [item(f"k{number}", number, vectors[number : number + 1]) for number in range(3000)]
    rows.add(items, map(vectors_of, items))
    query = numbers.standard_normal(DIMS).astype(numpy.float32)
    wanted = sorted(range(0, 3000, 500), key=lambda number: -cosine(vectors[number], query))

    def select(items: Sequence[Item]) -> Sequence[Item]:
        return [found for found in items if found.sequence % 500 == 0]

    assert [scored.item.sequence for scored in nearest([rows], unit(query), 4, select)] == wanted[:4]
    assert [scored.item.sequence for scored in nearest([rows], unit(query), 40, select)] == wanted


def test_vectors_of_another_length() -> None:
    """What another configuration has stored is left out."""
    rows = Rows(DIMS)
    other = item("k", 1, numpy.ones((1, DIMS + 1), dtype=numpy.float32))
    rows.add([other], [vectors_of(other)])
    assert len(rows) == 0
    assert nearest([rows], unit(numpy.ones(DIMS, dtype=numpy.float32)), 3, everything) == []


def test_several_namespaces_are_one() -> None:
    """What is found in many namespaces is what is found in one that holds the same, equal keys and all."""
    numbers = numpy.random.default_rng(8)
    vectors = numbers.standard_normal((400, DIMS)).astype(numpy.float32)
    items = [item(f"k{number // 40}", number, vectors[number : number + 1]) for number in range(400)]
    parts = []
    for part in range(40):
        rows = Rows(DIMS)
        mine = [replace(each, namespace=("a", str(part))) for each in items[part::40]]
        rows.add(mine, map(vectors_of, mine))
        if part == 7:
            rows.discard("k3")
        parts.append(rows)
    query = unit(vectors[5])
    wanted = sorted(range(400), key=lambda number: -cosine(vectors[number], query))
    wanted.remove(3 * 40 + 7)
    for count in (1, 30, 500):
        found = nearest([Rows(DIMS), *parts], query, count, everything)
        assert [scored.item.sequence for scored in found] == wanted[:count]
