"""What the store holds in memory: in order whatever was read when, and within its budget."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
from langgraph.store.base import PutOp

from stepwell.events import Commit, Sequence
from stepwell.storage import Item
from stepwell_langgraph import StepwellStore, nearest
from stepwell_langgraph.collection import Collection, Present, Put


def item(key: str, sequence: int) -> Item:
    return Item(("a",), key, ("msgpack", b"\x80"), 0, 0, Commit(sequence), Sequence(sequence), None, {})


@pytest.mark.parametrize("seed", range(3))
def test_in_the_order_of_puts(seed: int) -> None:
    """What was read while others wrote may be newer than changes that are told afterwards: the order stays."""
    chance = random.Random(seed)
    newest = {f"k{number}": item(f"k{number}", number + 1) for number in range(20)}
    collection = Collection(newest.values())
    for sequence in range(21, 200, 3):
        told = [item(f"k{chance.randrange(20)}", sequence + each) for each in range(3)]
        chance.shuffle(told)
        for each in told:
            if each.sequence > newest[each.key].sequence:
                newest[each.key] = each
                collection.change(each.key, each)
    assert [*collection.items.values()] == sorted(newest.values(), key=lambda each: each.sequence)
    assert collection.items_bytes == Collection(newest.values()).items_bytes


def test_vectors_are_read_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of many namespaces holds the vectors of some at a time, and finds what one with room finds."""
    dims, budget = 64, 1 << 19
    numbers = numpy.random.default_rng(1)
    index: Any = {"dims": dims, "embed": lambda texts: numbers.standard_normal((len(texts), dims)), "fields": ["text"]}
    with StepwellStore.from_conn_string(":memory:", index=index, memory_bytes=budget) as store:
        for number in range(40):
            store.batch([PutOp(("a", str(number)), f"k{each}", {"text": f"{number} {each}"}) for each in range(60)])
        largest = 0
        load = Present._load_rows

        def measured(present: Present, namespaces: Any) -> None:
            nonlocal largest
            together = [*namespaces]
            load(present, together)
            held = [collection for each in together if (collection := present.collection(each)) is not None]
            if present is store._present:
                largest = max(largest, sum(each.rows.size_bytes for each in held if each.rows is not None))
                assert len(together) * 60 * 4 * dims <= budget

        monkeypatch.setattr(Present, "_load_rows", measured)
        query = numbers.standard_normal((1, dims))
        monkeypatch.setattr(store._index.embeddings, "func", lambda texts: query)  # type: ignore[union-attr]
        found = store.search(("a",), query="q", limit=25)
        assert 0 < largest <= budget
        roomy = StepwellStore(store.log, index={**index, "embed": lambda texts: query})
        assert [(each.key, each.score) for each in found] == [
            (each.key, each.score) for each in roomy.search(("a",), query="q", limit=25)
        ]


def test_few_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many vectors, only those of items that a filter lets pass are measured in double precision."""
    dims = 8
    numbers = numpy.random.default_rng(1)
    index: Any = {"dims": dims, "embed": lambda texts: numbers.standard_normal((len(texts), dims)), "fields": ["text"]}
    measured: list[int] = []
    exact = nearest._exact

    def counted(vectors: list[nearest.Matrix], query: nearest.Matrix) -> list[float]:
        measured.append(len(vectors))
        return exact(vectors, query)

    monkeypatch.setattr(nearest, "_exact", counted)
    with StepwellStore.from_conn_string(":memory:", index=index) as store:
        store.batch([PutOp(("a",), f"k{each}", {"text": f"{each}", "n": each % 300}) for each in range(600)])
        assert {each.key for each in store.search(("a",), query="q", filter={"n": 7})} == {"k7", "k307"}
        assert store.search(("a",), query="q", filter={"n": -1}) == []
    assert sum(measured) == 2


def test_who_only_writes_holds_little() -> None:
    """What was put is held for the next read, within the budget; beyond it, the next read finds it in the log."""
    budget = 1 << 20
    with StepwellStore.from_conn_string(":memory:", memory_bytes=budget) as store:
        store.search(())
        for number in range(100):
            store.put(("a",), f"k{number}", {"text": "x" * 20_000})
            held = [change for _, changes in store._present._noted.values() for change in changes]
            assert sum(len(change.payload) for change in held if isinstance(change, Put)) <= budget // 4
        assert len(store.search((), limit=200)) == 100
        store.put(("a",), "one more", {})
        assert store.search(())[0].key == "one more"
