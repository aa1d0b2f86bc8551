"""The cache of node results: alike in ours, InMemoryCache and SqliteCache; and what ours adds."""

from __future__ import annotations

import asyncio
import math
import pickle
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.cache.base import BaseCache
from langgraph.cache.memory import InMemoryCache
from langgraph.cache.sqlite import SqliteCache
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.types import CachePolicy

from stepwell import UsageError
from stepwell_langgraph import StepwellCache, StepwellStore


@pytest.fixture(params=["ours", "InMemoryCache", "SqliteCache"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseCache[Any]]:
    """An empty cache."""
    if request.param == "ours":
        with StepwellCache.from_conn_string(tmp_path / "agents.stepwell") as ours:
            yield ours
            assert ours.log.audit().breaches == []
    elif request.param == "InMemoryCache":
        yield InMemoryCache()
    else:
        opened: SqliteCache[Any] = SqliteCache(path=":memory:")
        with closing(opened._conn):
            yield opened


def test_set_and_get(cache: BaseCache[Any]) -> None:
    """What is there and has not expired is found, by namespace and key."""
    cache.set({(("a", "b"), "k"): ({"n": {1, 2}}, None), (("a",), "k"): ("text", 3600), (("a",), "old"): (1, -1)})
    asked = [(("a", "b"), "k"), (("a",), "k"), (("a",), "old"), (("a",), "nothing")]
    assert cache.get(asked) == {(("a", "b"), "k"): {"n": {1, 2}}, (("a",), "k"): "text"}
    cache.set({(("a",), "k"): ("other", None)})
    assert asyncio.run(cache.aget([(("a",), "k")])) == {(("a",), "k"): "other"}
    assert cache.get([]) == {}


def test_lives_without_end() -> None:
    """A life of more seconds than a log can count is one of hundreds of years."""
    with StepwellCache.from_conn_string(":memory:") as cache:
        for seconds in (sys.maxsize, math.inf):
            cache.set({(("a",), "k"): (seconds, seconds)})  # type: ignore[dict-item]
            assert cache.get([(("a",), "k")]) == {(("a",), "k"): seconds}


def test_clear(cache: BaseCache[Any]) -> None:
    """Some namespaces, without those below them, or all."""
    for namespace in (("a",), ("a", "b"), ("c",)):
        asyncio.run(cache.aset({(namespace, "k"): (1, None)}))
    asked = [(("a",), "k"), (("a", "b"), "k"), (("c",), "k")]
    cache.clear([("a",)])
    assert set(cache.get(asked)) == {(("a", "b"), "k"), (("c",), "k")}
    asyncio.run(cache.aclear())
    assert cache.get(asked) == {}


class State(TypedDict, total=False):
    """Of the graph in the test."""

    n: int


def test_nodes_are_not_run_again(tmp_path: Path) -> None:
    """A result that another process has cached is taken, without the node being run."""
    runs = []

    def double(state: State) -> State:
        runs.append(state["n"])
        return {"n": 2 * state["n"]}

    for _ in range(2):
        with StepwellCache.from_conn_string(tmp_path / "agents.stepwell") as cache:
            builder = StateGraph(State)
            builder.add_node("double", double, cache_policy=CachePolicy(ttl=60))
            builder.add_edge(START, "double")
            graph = builder.compile(cache=cache)
            assert graph.invoke({"n": 2}) == {"n": 4}
            assert asyncio.run(graph.ainvoke({"n": 2})) == {"n": 4}
    assert runs == [2]


def test_stores_do_not_see_it(tmp_path: Path) -> None:
    """Entries are no items of a store on the same log, now or then."""
    with StepwellStore.from_conn_string(tmp_path / "agents.stepwell") as store:
        cache: StepwellCache[Any] = StepwellCache(store.log)
        store.put(("a",), "k", {})
        assert len(store.search(())) == 1
        cache.set({(("a",), "k"): (1, None)})
        assert [item.key for item in store.search(())] == ["k"]
        assert store.list_namespaces() == [("a",)]
        assert len(store.search((), as_of=store.log.items.commit_at(1 << 62))) == 1
        cache.clear()
        assert len(store.search(())) == 1
        with StepwellStore(store.log) as fresh:
            assert fresh.list_namespaces() == [("a",)]


def test_nothing_is_pickled() -> None:
    """What a serializer pickles is refused."""
    with StepwellCache.from_conn_string(":memory:", serde=JsonPlusSerializer(pickle_fallback=True)) as cache:
        with pytest.raises(UsageError, match="pickled"):
            cache.set({(("a",), "k"): (_Strange(), None)})
        assert cache.get([(("a",), "k")]) == {}


class _Strange:
    """No serializer knows it but pickle."""

    def __reduce__(self) -> Any:
        return pickle.loads, (b"",)
