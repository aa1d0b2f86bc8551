"""The past of the store: every version of an item, and the store as it was at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.graph import START, StateGraph
from langgraph.store.base import PutOp

from conformance.store_calls import Embedder, index_of
from stepwell import UsageError
from stepwell_langgraph import StepwellSaver, StepwellStore

NAMESPACE = ("users", "ada")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StepwellStore]:
    """An empty store in a file."""
    with StepwellStore.from_conn_string(tmp_path / "agents.stepwell") as opened:
        yield opened
        assert opened.log.audit().breaches == []


def value_of(item: Any) -> Any:
    return None if item is None else item.value


def test_history(store: StepwellStore) -> None:
    """Every version is there, newest first, deletions and what a batch did together too."""
    before = datetime.now(UTC)
    store.put(NAMESPACE, "k", {"n": 1})
    store.put(NAMESPACE, "k", {"n": 2})
    store.delete(NAMESPACE, "k")
    store.batch([PutOp(NAMESPACE, "k", {"n": 3}), PutOp(NAMESPACE, "other", {"n": 0})])
    versions = store.history(NAMESPACE, "k")
    assert [version.value for version in versions] == [{"n": 3}, None, {"n": 2}, {"n": 1}]
    assert [version.commit for version in versions] == sorted((version.commit for version in versions), reverse=True)
    assert before <= versions[-1].at <= versions[0].at <= datetime.now(UTC)
    assert store.history(NAMESPACE, "k", limit=2) == versions[:2]
    assert store.history(NAMESPACE, "nothing") == []
    assert asyncio.run(store.ahistory(NAMESPACE, "k")) == versions


def test_as_of_commit(store: StepwellStore) -> None:
    """A commit number names the store as it was when that had been committed."""
    store.put(NAMESPACE, "k", {"n": 1})
    store.put(("users", "bob"), "b", {"n": 10})
    store.put(NAMESPACE, "k", {"n": 2})
    store.delete(NAMESPACE, "k")
    deleted, second, first = (version.commit for version in store.history(NAMESPACE, "k"))
    assert value_of(store.get(NAMESPACE, "k", as_of=0)) is None
    assert value_of(store.get(NAMESPACE, "k", as_of=first)) == {"n": 1}
    assert value_of(store.get(NAMESPACE, "k", as_of=second - 1)) == {"n": 1}
    assert value_of(store.get(NAMESPACE, "k", as_of=second)) == {"n": 2}
    assert store.get(NAMESPACE, "k", as_of=deleted) is None
    assert [item.value["n"] for item in store.search(("users",), as_of=second)] == [2, 10]
    assert [item.value["n"] for item in store.search(("users",), as_of=first)] == [1]
    assert [item.value["n"] for item in store.search(("users",), as_of=second, filter={"n": {"$gt": 2}})] == [10]
    assert [item.value["n"] for item in store.search(("users",), as_of=second, offset=1)] == [10]
    assert store.search(("users",), as_of=0) == []

    async def the_same() -> None:
        assert value_of(await store.aget(NAMESPACE, "k", as_of=first)) == {"n": 1}
        assert len(await store.asearch(("users",), as_of=second)) == 2

    asyncio.run(the_same())


def test_as_of_time(store: StepwellStore) -> None:
    """A time names what had been committed by then, in any zone; without a zone it is refused."""
    store.put(NAMESPACE, "k", {"n": 1})
    store.put(NAMESPACE, "k", {"n": 2})
    second, first = store.history(NAMESPACE, "k")
    assert value_of(store.get(NAMESPACE, "k", as_of=datetime.now(UTC).astimezone())) == {"n": 2}
    assert value_of(store.get(NAMESPACE, "k", as_of=datetime.max.replace(tzinfo=UTC))) == {"n": 2}
    assert store.get(NAMESPACE, "k", as_of=datetime.min.replace(tzinfo=UTC)) is None
    assert store.get(NAMESPACE, "k", as_of=datetime(1999, 1, 1, tzinfo=UTC)) is None
    assert store.get(NAMESPACE, "k", as_of=datetime(1969, 1, 1, tzinfo=UTC)) is None
    assert first.at < second.at
    with pytest.raises(UsageError, match="zone"):
        store.get(NAMESPACE, "k", as_of=datetime(2026, 1, 1))


class State(TypedDict):
    """What the agent of the test remembers within its thread."""

    seen: list[Any]


def test_as_of_step(store: StepwellStore) -> None:
    """What an agent believed when it took a step: the config of a checkpoint names the memory of that moment."""
    with StepwellSaver.from_conn_string(store.log.path) as saver:

        def learn(state: State) -> State:
            seen = state.get("seen", [])
            store.put(NAMESPACE, "belief", {"n": len(seen)})
            return {"seen": [*seen, len(seen)]}

        builder = StateGraph(State)
        builder.add_node("learn", learn)
        builder.add_edge(START, "learn")
        graph = builder.compile(checkpointer=saver, store=store)
        config: Any = {"configurable": {"thread_id": "t"}}
        for _ in range(3):
            graph.invoke({}, config, durability="sync")  # else a step may be committed after the next began
        believed = {}
        for past in graph.get_state_history(config):
            item = store.get(NAMESPACE, "belief", as_of=past.config)
            believed[len(past.values.get("seen", []))] = value_of(item)
            checkpoint_id = past.config["configurable"]["checkpoint_id"]
            assert store.get(NAMESPACE, "belief", as_of=("t", checkpoint_id)) == item
            assert [found.value for found in store.search((), as_of=past.config)] == ([item.value] if item else [])
        assert believed == {0: None, 1: {"n": 0}, 2: {"n": 1}, 3: {"n": 2}}
        store.put(NAMESPACE, "belief", {"n": "after"})
        assert value_of(store.get(NAMESPACE, "belief", as_of=config)) == {"n": 2}


@pytest.mark.parametrize(
    "moment",
    [
        -1,
        True,
        "now",
        1.5,
        ("t",),
        ("t", "nothing"),
        {"configurable": {"thread_id": "nobody"}},
        {"configurable": {}},
        (1, 2),
    ],
    ids=repr,
)
def test_moments_that_there_are_not(store: StepwellStore, moment: Any) -> None:
    """What names no moment of this log is refused."""
    with pytest.raises(UsageError):
        store.get(NAMESPACE, "k", as_of=moment)


def test_similar_in_the_past() -> None:
    """A query searches the vectors of that moment."""
    embedder = Embedder()
    with StepwellStore.from_conn_string(":memory:", index=index_of(embedder, "text")) as store:
        store.put(NAMESPACE, "k", {"text": "tea"})
        store.put(NAMESPACE, "other", {"text": "coffee"})
        store.put(NAMESPACE, "k", {"text": "dog"})
        commit = store.history(NAMESPACE, "other")[0].commit
        now, then = (store.search(NAMESPACE, query="tea", as_of=moment) for moment in (None, commit))
        assert [item.value["text"] for item in then] == ["tea", "coffee"]
        assert round(then[0].score or 0, 6) == 1
        assert [item.value["text"] for item in now] != [item.value["text"] for item in then]


PARTS = st.sampled_from(["alice", "alice2", "al", "a\u00e9", "🦄", "a/b", "a b", "x" * 70, "*"])
NAMESPACES = st.lists(PARTS, min_size=1, max_size=8).map(tuple)
CHANGES = st.lists(
    st.tuples(NAMESPACES, st.sampled_from(["", "k", "k2", "y" * 80]), st.booleans()), min_size=1, max_size=15
)


@settings(max_examples=25, deadline=None)
@given(changes=CHANGES, data=st.data())
def test_a_prefix_shows_its_own_items_at_every_moment(changes: list[Any], data: st.DataObject) -> None:
    """Now and at each commit, a search shows what a dict holds under the prefix, newest first, and nothing else."""
    with StepwellStore.from_conn_string(":memory:") as store:
        model: dict[tuple[tuple[str, ...], str], int] = {}
        moments: dict[int, dict[tuple[tuple[str, ...], str], int]] = {0: {}}
        for number, (namespace, key, deletes) in enumerate(changes):
            store.batch([PutOp(namespace, key, None if deletes else {"n": number})])
            model.pop((namespace, key), None)
            if not deletes:
                model[namespace, key] = number
            versions = store.history(namespace, key, limit=1)
            if versions:
                moments[versions[0].commit] = dict(model)
            if number % 5 == 0:
                store.search(())  # so that what is held must be kept up
        prefix = data.draw(NAMESPACES.map(lambda namespace: namespace[:2]) | st.just(()))
        for as_of, moment in ((None, model), *moments.items()):
            shown = [
                (item.namespace, item.key, item.value["n"]) for item in store.search(prefix, limit=99, as_of=as_of)
            ]
            wanted = [(*name, n) for name, n in reversed(moment.items()) if name[0][: len(prefix)] == prefix]
            assert shown == wanted
        assert store.list_namespaces(limit=99) == sorted({namespace for namespace, _ in model})
        with StepwellStore(store.log) as fresh:  # knows nothing but the log
            assert [(item, item.score) for item in fresh.search((), limit=99)] == [
                (item, item.score) for item in store.search((), limit=99)
            ]
        if "*" not in prefix:  # which stands for any part there
            under = {namespace for namespace, _ in model if namespace[: len(prefix)] == prefix}
            assert store.list_namespaces(prefix=prefix, limit=99) == sorted(under)


def test_forgetting(store: StepwellStore) -> None:
    """What is forgotten was never there: not now, not at any commit, not in any history; all else is as it was."""
    store.put(NAMESPACE, "k", {"secret": "tea"})
    store.put((*NAMESPACE, "deeper"), "k", {})
    store.put(("users", "ada2"), "k", {"n": 1})
    store.put(("users", "ada2"), "k", {"n": 2})
    commit = store.history(("users", "ada2"), "k")[0].commit
    assert len(store.search(())) == 3
    store.forget(NAMESPACE)
    assert store.get(NAMESPACE, "k") is None
    assert store.history(NAMESPACE, "k") == []
    assert [item.namespace for item in store.search(())] == [("users", "ada2")]
    assert [item.namespace for item in store.search((), as_of=commit)] == [("users", "ada2")]
    assert [version.value for version in store.history(("users", "ada2"), "k")] == [{"n": 2}, {"n": 1}]
    with pytest.raises(UsageError, match="everything"):
        store.forget(())
