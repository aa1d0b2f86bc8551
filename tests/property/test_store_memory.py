"""What stores hold in memory, against a plain dict: whoever writes, however little they may hold, at every commit."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
import pytest
from langgraph.store.base import PutOp

from stepwell_langgraph import StepwellStore, collection

NAMESPACES: list[tuple[str, ...]] = [
    (), ("a",), ("a", "b"), ("ab",), ("a", "b", "c"), ("x",) * 7 + ("y",), ("x",) * 7 + ("z",), ("é" * 40,),
]  # fmt: skip
KEYS = ["k0", "k1", "", "k" * 70]
FILTERS: list[dict[str, Any] | None] = [None, {"n": 1}, {"n": {"$gte": 2}}]
Model = dict[tuple[tuple[str, ...], str], tuple[int, dict[str, Any]]]


def embed(texts: list[str]) -> list[list[float]]:
    return [[len(text) % 5 + 0.1, text.count("a") + 0.3, text.count("b") + 0.0] for text in texts]


def score(text: str) -> float:
    query, vector = numpy.array(embed(["ab"])[0]), numpy.array(embed([text])[0])
    return float(query @ vector / numpy.linalg.norm(query) / numpy.linalg.norm(vector))


@pytest.mark.parametrize("seed", range(8))
def test_two_stores_on_one_log(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answers as a dict does, and as the dict of then, with pages, budgets and limits that are soon met."""
    for name, value in (("MOST_CHANGES", 12), ("_PAGE_ITEMS", 4), ("_CHANGES_AT_ONCE", 2), ("_MOST_NOTED", 5)):
        monkeypatch.setattr(collection, name, value)
    chance = random.Random(seed)
    few = chance.sample(NAMESPACES, 2 + seed % 3)
    index: Any = {"dims": 3, "embed": embed, "fields": ["text"]}
    budget = [100, 3000, 20_000, 1 << 20][seed % 4]
    model: Model = {}
    past: list[tuple[int | None, Model]] = []
    with ExitStack() as opened:
        stores = [
            opened.enter_context(
                StepwellStore.from_conn_string(tmp_path / "agents.stepwell", index=index, memory_bytes=budget)
            )
            for _ in range(2)
        ]
        for step in range(150):
            store, action = chance.choice(stores), chance.random()
            if action < 0.45:
                batch = {}
                for _ in range(chance.choice([1, 1, 1, 3, 6])):
                    name = chance.choice(few), chance.choice(KEYS)
                    text = "".join(chance.choices("abc", k=chance.randrange(5)))
                    batch.pop(name, None)
                    batch[name] = None if chance.random() < 0.3 else {"text": text, "n": chance.randrange(4)}
                store.batch([PutOp(*name, value) for name, value in batch.items()])
                for place, (name, value) in enumerate(batch.items()):
                    model.pop(name, None)
                    if value is not None:
                        model[name] = step * 10 + place, value
                past.append((store.log.items.commit_at((1 << 62) - 1), dict(model)))
            elif action < 0.7:
                name = chance.choice(few), chance.choice(KEYS)
                item = store.get(*name)
                assert (item and item.value) == (model[name][1] if name in model else None)
            elif action < 0.9:
                commit, then = chance.choice(past) if past and chance.random() < 0.3 else (None, model)
                prefix = chance.choice(NAMESPACES)[: chance.randrange(4)]
                filter_, limit, offset = chance.choice(FILTERS), chance.choice([1, 3, 100]), chance.choice([0, 0, 2])
                wanted = {
                    name: (number, value)
                    for name, (number, value) in then.items()
                    if name[0][: len(prefix)] == prefix
                    and (filter_ is None or (value["n"] == 1 if filter_ == FILTERS[1] else value["n"] >= 2))
                }
                asked: Any = {"filter": filter_, "limit": limit, "offset": offset, "as_of": commit}
                newest = sorted(wanted, key=lambda name: -wanted[name][0])[offset : offset + limit]
                assert [(item.namespace, item.key) for item in store.search(prefix, **asked)] == newest
                best = sorted((score(value["text"]) for _, value in wanted.values()), reverse=True)
                found = [item.score for item in store.search(prefix, query="ab", **asked)]
                assert found == pytest.approx(best[offset : offset + limit], abs=1e-6)
            elif action < 0.97:
                assert store.list_namespaces(limit=100) == sorted({namespace for namespace, _ in model})
            else:
                store.log.seal()
        assert stores[0].log.audit().breaches == []
