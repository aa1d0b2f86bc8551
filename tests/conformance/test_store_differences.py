"""Where LangGraph's stores differ from each other, or from what they say: what ours does (SPEC.md, section 17.7)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langgraph.store.base import InvalidNamespaceError, PutOp, SearchOp

from conformance.store_calls import Embedder, index_of
from stepwell import Log, UsageError, parse
from stepwell.events import ItemPut
from stepwell_langgraph import StepwellSaver, StepwellStore

NAMESPACE = ("users", "ada")


@pytest.fixture
def store() -> Iterator[StepwellStore]:
    """An empty store in memory."""
    with StepwellStore.from_conn_string(":memory:") as opened:
        yield opened
        assert opened.log.audit().breaches == []


@pytest.fixture
def embedder() -> Embedder:
    """What embeds the texts of the test."""
    return Embedder()


def keys(found: Sequence[Any]) -> list[str]:
    return [item.key for item in found]


# --- order and times ---


def test_newest_first(store: StepwellStore) -> None:
    """Without a query, what was put last comes first, in the order of commits and within a batch."""
    store.put(("b",), "1", {})
    store.put(("a",), "2", {})
    store.batch([PutOp(("c",), "3", {}), PutOp(("a",), "4", {})])
    store.put(("b",), "1", {"again": True})
    assert keys(store.search(())) == ["1", "4", "3", "2"]


def test_creation_time_stays(store: StepwellStore) -> None:
    """Putting again keeps the time of creation, as in PostgresStore; deleting ends it."""
    store.put(NAMESPACE, "k", {"n": 1})
    first = store.get(NAMESPACE, "k")
    store.put(NAMESPACE, "k", {"n": 2})
    second = store.get(NAMESPACE, "k")
    assert first is not None
    assert second is not None
    assert first.created_at == first.updated_at == second.created_at < second.updated_at
    assert second.created_at.tzinfo is UTC
    store.delete(NAMESPACE, "k")
    store.put(NAMESPACE, "k", {"n": 3})
    third = store.get(NAMESPACE, "k")
    assert third is not None
    assert third.created_at == third.updated_at > second.updated_at


def test_results_are_fresh(store: StepwellStore) -> None:
    """Changing what a call returned, or what was put, changes nothing else."""
    value = {"list": [1]}
    store.put(NAMESPACE, "k", value)
    value["list"].append(2)
    for found in (store.get(NAMESPACE, "k"), store.search(NAMESPACE)[0]):
        assert found is not None
        assert found.value == {"list": [1]}
        found.value["list"].append(3)
    again = store.get(NAMESPACE, "k")
    assert again is not None
    assert again.value == {"list": [1]}


# --- namespaces ---


def test_namespaces_hold_items(store: StepwellStore) -> None:
    """A namespace is there as long as it holds an item, and reading makes none."""
    store.get(("asked",), "k")
    store.put(("gone",), "k", {})
    store.delete(("gone",), "k")
    store.put(("here",), "k", {})
    assert store.list_namespaces() == [("here",)]


def test_namespaces_are_sorted_part_by_part(store: StepwellStore) -> None:
    """A part that begins like another comes after all below that one."""
    for namespace in (("a-b",), ("a", "b"), ("a",), ("a", "a"), ("\u00e9",), ("z",), ("🦄",)):
        store.put(namespace, "k", {})
    assert store.list_namespaces() == [("a",), ("a", "a"), ("a", "b"), ("a-b",), ("z",), ("\u00e9",), ("🦄",)]


def test_batches_refuse_what_methods_refuse(store: StepwellStore) -> None:
    """An operation in a batch is checked as SqliteStore and PostgresStore check it; nothing of the batch is made."""
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(("a",), "k", {}), PutOp(("a.b",), "k", {})])
    with pytest.raises(InvalidNamespaceError):
        store.batch([SearchOp(("a\x00",))])
    assert store.search(()) == []
    store.batch([PutOp((), "k", {}), PutOp(("langgraph",), "k", {})])  # which upstream takes too
    assert store.list_namespaces() == [(), ("langgraph",)]


# --- values ---


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 1, tzinfo=UTC),
        b"bytes",
        {1, 2},
        UUID(int=1),
        pytest.param(object(), id="an object"),
        1 << 64,
        {1: "key"},
        "\ud800",
        [[datetime(2026, 1, 1, tzinfo=UTC)]],
    ],
    ids=repr,
)
def test_values_that_json_cannot_say(store: StepwellStore, value: Any) -> None:
    """What could only come back as something else is refused, the place named, and nothing is stored."""
    with pytest.raises(UsageError, match=r"value\['field'\]"):
        store.put(NAMESPACE, "k", {"field": value})
    with pytest.raises(UsageError):
        asyncio.run(store.aput(NAMESPACE, "k", {"field": value}))
    assert store.get(NAMESPACE, "k") is None


def test_values_that_are_kept_as_they_are(store: StepwellStore) -> None:
    """Numbers that JSON has no word for, large integers, and texts of enumerations come back equal."""

    class Colour(StrEnum):
        RED = "red"

    store.put(NAMESPACE, "k", {"nan": math.nan, "inf": -math.inf, "large": (1 << 64) - 1, "red": Colour.RED, "\0": ""})
    item = store.get(NAMESPACE, "k")
    assert item is not None
    assert math.isnan(item.value.pop("nan"))
    assert item.value == {"inf": -math.inf, "large": (1 << 64) - 1, "red": "red", "\0": ""}
    assert type(item.value["red"]) is str


@pytest.mark.parametrize("value", ["text", [1], 7])
def test_values_that_are_no_dicts(store: StepwellStore, value: Any) -> None:
    """A value is a mapping."""
    with pytest.raises(UsageError, match="dict"):
        store.put(NAMESPACE, "k", value)


# --- filters ---


@pytest.mark.parametrize(
    ("filter_", "wanted"),
    [
        ({"a.b": 1}, {"dot"}),
        ({"'); drop table": 1}, {"quote"}),
        ({"a": {"b": 1}}, {"nested"}),
        ({"a": {"b": {"$gte": 1}}}, {"nested", "nested 2"}),
        ({"a": {"b": 1, "c": None}}, {"nested"}),
        ({"a": {}}, {"nested", "nested 2"}),
        ({"list": [1, {"$gt": 1}]}, {"list"}),
        ({"list": (1, 2)}, {"list"}),
        ({"list": {"$eq": (1, 2)}}, {"list"}),
        ({"text": {"$gt": "b"}}, {"text"}),
        ({"text": {"$gt": 1}}, set()),
        ({"text": {"$ne": "x"}}, {"text"}),
        ({"text": {"$ne": None}}, {"text"}),
        ({"absent": {"$gt": 1}}, set()),
        ({"absent": {"$lt": 1}}, set()),
        ({"field0": 1}, {"field0"}),
    ],
)
def test_filters(store: StepwellStore, filter_: dict[str, Any], wanted: set[str]) -> None:
    """Keys are literal, maps and lists may nest conditions, and what is in no order matches no comparison."""
    for key, value in {
        "dot": {"a.b": 1},
        "quote": {"'); drop table": 1},
        "nested": {"a": {"b": 1}},
        "nested 2": {"a": {"b": 2, "c": 3}},
        "list": {"list": [1, 2]},
        "text": {"text": "c"},
        "field0": {"field0": 1},
    }.items():
        store.put(NAMESPACE, key, value)
    assert set(keys(store.search(NAMESPACE, filter=filter_))) == wanted


@pytest.mark.parametrize("key", ['quo"te', "back\\slash", "line\nfeed", "\0", "", "field0", "é🦄"])
def test_filter_keys_hold_any_characters(store: StepwellStore, key: str) -> None:
    """A key is a key of the value whatever it holds, alone and beside others; one that no value can have is absent."""
    store.put(NAMESPACE, "yes", {key: 1, "n": 2})
    store.put(NAMESPACE, "no", {"other": 1, "n": 2})
    for filter_ in ({key: 1}, {key: {"$gt": 0}, "n": 2}, {"n": 2, key: 1}):
        assert [item.key for item in store.search(NAMESPACE, filter=filter_)] == ["yes"]
    assert [item.key for item in store.search(NAMESPACE, filter={key: None, "n": 2})] == ["no"]
    assert store.search(NAMESPACE, filter={"\ud800": 1}) == []
    assert len(store.search(NAMESPACE, filter={"\ud800": None})) == 2


@pytest.mark.parametrize(
    "made",
    [
        None,
        pytest.param(iter(()), id="an iterator"),
        [],
        [1.0, 2.0],
        [[[1.0], 2.0]],
        [["tea", 1.0]],
        [[1j, 1.0]],
        [[1e300, 1.0]],
        [[float("nan"), 1.0]],
    ],
    ids=repr,
)
def test_embedders_that_make_no_vectors(made: Any) -> None:
    """Whatever is no list of vectors is refused, nothing is stored, and other items stay as they were."""
    results: list[Any] = [[[1.0, 0.0]]]
    with StepwellStore.from_conn_string(
        ":memory:", index={"dims": 2, "embed": lambda texts: results[-1], "fields": ["text"]}
    ) as store:
        store.put(NAMESPACE, "before", {"text": "tea"})
        results.append(made)
        with pytest.raises(UsageError, match="the embedder made"):
            store.batch([PutOp(NAMESPACE, "plain", {}), PutOp(NAMESPACE, "k", {"text": "coffee"})])
        results.append([[1.0, 0.0]])
        assert [item.key for item in store.search(NAMESPACE, query="tea")] == ["before"]
        assert len(store.search(NAMESPACE)) == 1


@pytest.mark.parametrize(
    "stored", [("json", b'{"n": 1}'), ("null", b""), ("pickle", b"\x80\x04K\x01."), ("msgpack", b"\x01")]
)
def test_items_that_no_store_has_put(store: StepwellStore, stored: tuple[str, bytes]) -> None:
    """An item that somebody put into the log by other means is named where it is met; others are found without it."""
    store.put(NAMESPACE, "ours", {"n": 1})
    store.log.items.submit([ItemPut(("theirs",), "k", parse(*stored))]).result()
    calls: list[Callable[[], Any]] = [
        lambda: store.get(("theirs",), "k"),
        lambda: store.search(()),
        lambda: store.search((), filter={"n": 1}),
        lambda: store.history(("theirs",), "k"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"'k' in namespace \('theirs',\)"):
            call()
    assert [item.key for item in store.search(NAMESPACE, filter={"n": 1})] == ["ours"]
    store.delete(("theirs",), "k")
    assert [item.key for item in store.search(())] == ["ours"]


def test_filters_are_checked_before_anything_is_found(store: StepwellStore) -> None:
    """A filter that cannot be is refused though nothing would be compared."""
    for filter_ in ({"n": {"$near": 1}}, {"n": {"$gt": 1, "x": 2}}, {1: 2}, "n"):
        with pytest.raises(UsageError):
            store.search(NAMESPACE, filter=filter_)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "offset"), [(-1, 0), (1, -1), (1.5, 0), (None, 0)])
def test_limits_and_offsets_count(store: StepwellStore, limit: Any, offset: Any) -> None:
    """A limit or offset that is no whole number from 0 is refused."""
    with pytest.raises(UsageError, match="whole number"):
        store.search(NAMESPACE, limit=limit, offset=offset)
    with pytest.raises(UsageError, match="whole number"):
        store.list_namespaces(limit=limit, offset=offset)


# --- semantic search ---


def test_putting_again_replaces_vectors(embedder: Embedder) -> None:
    """Vectors belong to a value: none of an older value is found."""
    with StepwellStore.from_conn_string(":memory:", index=index_of(embedder, "text")) as store:
        store.put(NAMESPACE, "k", {"text": "tea"})
        store.put(NAMESPACE, "other", {"text": "dog"})
        assert keys(store.search(NAMESPACE, query="tea")) == ["k", "other"]
        store.put(NAMESPACE, "k", {"text": "tea"}, index=False)
        assert keys(store.search(NAMESPACE, query="tea")) == ["other"]
        store.put(NAMESPACE, "k", {"text": "tea"})
        store.delete(NAMESPACE, "other")
        assert keys(store.search(NAMESPACE, query="dog")) == ["k"]


def test_items_without_vectors_are_not_found_by_a_query(embedder: Embedder) -> None:
    """As in SqliteStore and PostgresStore, and not as in InMemoryStore, which fills up with them."""
    with StepwellStore.from_conn_string(":memory:", index=index_of(embedder, "text")) as store:
        store.put(NAMESPACE, "yes", {"text": "tea"})
        store.put(NAMESPACE, "no", {"text": "tea"}, index=False)
        store.put(NAMESPACE, "other", {"no": "text"})
        assert keys(store.search(NAMESPACE, query="tea")) == ["yes"]
        assert len(store.search(NAMESPACE)) == 3


def test_many_vectors_hide_nobody(embedder: Embedder) -> None:
    """However many vectors the best items have, as many items are found as were asked for."""
    with StepwellStore.from_conn_string(":memory:", index=index_of(embedder, "notes[*]")) as store:
        for number in range(5):
            store.put(NAMESPACE, f"many {number}", {"notes": ["tea"] * 50})
        store.put(NAMESPACE, "last", {"notes": ["dog"]})
        found = store.search(NAMESPACE, query="tea", limit=6)
        assert keys(found) == [*(f"many {number}" for number in (4, 3, 2, 1, 0)), "last"]
        assert keys(store.search(NAMESPACE, query="tea", limit=2, offset=4)) == ["many 0", "last"]


def test_whole_values_are_embedded_by_default(embedder: Embedder) -> None:
    """Without fields, and for the path "$", the text is the value as JSON, its keys sorted."""
    with StepwellStore.from_conn_string(":memory:", index={"dims": 8, "embed": embedder}) as store:
        store.put(NAMESPACE, "k", {"b": "tea", "a": [1, "ü"]})
        store.put(NAMESPACE, "j", {"b": "dog"}, index=["$"])
        assert embedder.calls == [['{"a": [1, "ü"], "b": "tea"}'], ['{"b": "dog"}']]


def test_vectors_without_direction(embedder: Embedder) -> None:
    """A vector of zeros is similar to nothing: its score is 0."""
    with StepwellStore.from_conn_string(":memory:", index={"dims": 2, "embed": _first_letters}) as store:
        store.put(NAMESPACE, "zero", {"text": "z"}, index=["text"])
        store.put(NAMESPACE, "b", {"text": "b"}, index=["text"])
        assert [(item.key, item.score) for item in store.search(NAMESPACE, query="b")] == [("b", 1.0), ("zero", 0.0)]
        assert {item.score for item in store.search(NAMESPACE, query="z")} == {0.0}


def _first_letters(texts: Sequence[str]) -> list[list[float]]:
    return [[float(text[0] == "a"), float(text[0] == "b")] for text in texts]


@pytest.mark.parametrize(
    "embed",
    [lambda texts: [], lambda texts: [[1.0]] * len(texts), lambda texts: [[math.nan] * 8] * len(texts)],
    ids=["too few", "too short", "not finite"],
)
def test_embedders_that_are_wrong(embed: Any) -> None:
    """A vector that cannot be is refused, and nothing of the batch is stored."""
    with StepwellStore.from_conn_string(":memory:", index=index_of(embed, "text")) as store:
        with pytest.raises(UsageError, match="embedder"):
            store.batch([PutOp(NAMESPACE, "a", {}), PutOp(NAMESPACE, "k", {"text": "tea"})])
        assert store.search(NAMESPACE) == []


@pytest.mark.parametrize(
    "config",
    [
        {"dims": 8},
        {"embed": len},
        {"dims": 0, "embed": len},
        {"dims": 8, "embed": len, "text_fields": ["a"]},
        {"dims": 8, "embed": len, "distance_type": "l2"},
        {"dims": 8, "embed": len, "fields": [1]},
    ],
)
def test_configurations_that_are_wrong(config: Any) -> None:
    """What an index asks for and is not there is refused when the store is opened, and the log is closed again."""
    with pytest.raises(ValueError, match=r"index|embed|distance_type|fields"):
        StepwellStore.from_conn_string(":memory:", index=config)


# --- opening ---


def test_async_and_sync_in_one(tmp_path: Path) -> None:
    """Sync methods may be called where a loop runs: nothing waits for that loop."""

    async def both() -> None:
        async with StepwellStore.from_conn_string(tmp_path / "agents.stepwell") as store:
            await store.setup()
            store.put(NAMESPACE, "sync", {"n": 1})
            await store.aput(NAMESPACE, "async", {"n": 2})
            assert store.get(NAMESPACE, "async") == await store.aget(NAMESPACE, "async")
            assert keys(await store.asearch(NAMESPACE)) == keys(store.search(NAMESPACE)) == ["async", "sync"]
            await store.adelete(NAMESPACE, "sync")
            assert await store.alist_namespaces() == [NAMESPACE]
            assert len(await store.ahistory(NAMESPACE, "sync")) == 2

    asyncio.run(both())


def test_store_of_a_log_leaves_it_open() -> None:
    """Who opened the log closes it."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        with StepwellStore(saver.log) as store:
            store.put(NAMESPACE, "k", {})
        assert list(saver.list(None)) == []
        with StepwellStore(saver.log) as store:
            assert store.get(NAMESPACE, "k") is not None


def test_store_needs_a_log() -> None:
    """A path is not a log."""
    with pytest.raises(UsageError, match="from_conn_string"):
        StepwellStore("agents.stepwell")  # type: ignore[arg-type]


def test_items_are_no_threads(store: StepwellStore) -> None:
    """A saver on the same log does not list what the store keeps."""
    store.put(NAMESPACE, "k", {})
    assert list(StepwellSaver(store.log).list(None)) == []
    assert list(store.log.threads()) == []


def test_log_that_is_only_read(tmp_path: Path) -> None:
    """A store on a log that is opened for reading reads."""
    path = tmp_path / "agents.stepwell"
    with StepwellStore.from_conn_string(path, ttl={"default_ttl": 1}) as store:
        store.put(NAMESPACE, "k", {"n": 1})
    with Log.open(path, read_only=True) as log:
        store = StepwellStore(log)
        item = store.get(NAMESPACE, "k")
        assert item is not None
        assert item.value == {"n": 1}
        with pytest.raises(UsageError, match="read_only"):
            store.put(NAMESPACE, "k", {})
