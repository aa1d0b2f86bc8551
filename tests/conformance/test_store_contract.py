"""What every LangGraph store does alike: one suite over ours, InMemoryStore and SqliteStore, sync and async.

Where these differ from each other, `test_store_differences.py` says what ours does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchItem,
    SearchOp,
)

from conformance.store_calls import WORDS, Embedder, StoreCalls, cosine, index_of, opened, vector_of

KINDS = ("file", "async memory", "InMemoryStore", "async InMemoryStore", "SqliteStore", "async SqliteStore")
EMBEDDING_KINDS = ("file", "async memory", "InMemoryStore", "async InMemoryStore", "SqliteStore")
NAMESPACE = ("users", "ada")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreCalls]:
    """An empty store."""
    with opened(request.param, tmp_path) as calls:
        yield calls


@pytest.fixture
def embedder() -> Embedder:
    """What embeds the texts of the test."""
    return Embedder()


@pytest.fixture(params=EMBEDDING_KINDS)
def indexed(request: pytest.FixtureRequest, tmp_path: Path, embedder: Embedder) -> Iterator[StoreCalls]:
    """An empty store that embeds the field `text`."""
    with opened(request.param, tmp_path, index=index_of(embedder, "text")) as calls:
        yield calls


def keys(found: list[SearchItem]) -> list[str]:
    return [item.key for item in found]


# --- items ---


def test_put_then_get(store: StoreCalls) -> None:
    """What was put is there, with its namespace, its key and its times."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    value = {
        "text": "tea",
        "n": 1,
        "x": 2.5,
        "yes": True,
        "none": None,
        "list": [1, "a", {"b": []}],
        "map": {"ü": "🦄"},
    }
    store.put(NAMESPACE, "likes", value)
    item = store.get(NAMESPACE, "likes")
    assert type(item) is Item
    assert (item.namespace, item.key, item.value) == (NAMESPACE, "likes", value)
    for moment in (item.created_at, item.updated_at):
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        assert before <= moment <= datetime.now(UTC) + timedelta(seconds=1)


def test_absent_item(store: StoreCalls) -> None:
    """What was never put is None."""
    assert store.get(NAMESPACE, "likes") is None
    assert store.get(("nobody",), "likes") is None
    store.put(NAMESPACE, "likes", {})
    assert store.get(("users",), "likes") is None
    assert store.get((*NAMESPACE, "deeper"), "likes") is None


def test_put_again_replaces(store: StoreCalls) -> None:
    """The whole value is replaced, nothing of the old one stays."""
    store.put(NAMESPACE, "likes", {"drink": "tea", "old": 1})
    store.put(NAMESPACE, "likes", {"drink": "coffee"})
    assert store.get(NAMESPACE, "likes").value == {"drink": "coffee"}
    assert len(store.search(NAMESPACE)) == 1


def test_delete(store: StoreCalls) -> None:
    """A deleted item is gone from gets, searches; deleting what is not there is no error."""
    store.put(NAMESPACE, "likes", {"drink": "tea"})
    store.put(NAMESPACE, "stays", {})
    store.delete(NAMESPACE, "likes")
    store.delete(NAMESPACE, "likes")
    store.delete(("nobody",), "likes")
    assert store.get(NAMESPACE, "likes") is None
    assert keys(store.search(NAMESPACE)) == ["stays"]


def test_put_none_deletes(store: StoreCalls) -> None:
    """A put without a value is a deletion."""
    store.put(NAMESPACE, "likes", {"drink": "tea"})
    store.batch([PutOp(NAMESPACE, "likes", None)])
    assert store.get(NAMESPACE, "likes") is None


@pytest.mark.parametrize(
    "key", ["", "a.b", "a/b", "*", "%", "_", "'; drop table store; --", "\u00e9", "🦄", "x" * 2000]
)
def test_any_key(store: StoreCalls, key: str) -> None:
    """A key is data, whatever it holds."""
    store.put(NAMESPACE, key, {"key": key})
    store.put(NAMESPACE, "other", {})
    assert store.get(NAMESPACE, key).value == {"key": key}
    assert sorted(keys(store.search(NAMESPACE))) == sorted([key, "other"])


@pytest.mark.parametrize("part", ["a b", "a/b", "*", "%", "_", "?", "[a]", "'", "\u00e9", "🦄", "alice2", "x" * 600])
def test_any_namespace_part(store: StoreCalls, part: str) -> None:
    """A part is data; what it looks like to a pattern matches nothing else."""
    store.put(("users", part), "k", {"part": part})
    store.put(("users", "alice"), "k", {})
    store.put(("usersx", part), "k", {})
    assert store.get(("users", part), "k").value == {"part": part}
    assert [item.namespace for item in store.search(("users", part))] == [("users", part)]
    assert store.list_namespaces(prefix=("users",), max_depth=2) == sorted([("users", part), ("users", "alice")])


@pytest.mark.parametrize("namespace", [(), ("a", ""), ("a.b",), ("a", "b\x00"), ("langgraph", "x"), ("a", 1)])
def test_namespaces_that_are_refused(store: StoreCalls, namespace: tuple[Any, ...]) -> None:
    """Empty namespaces and parts, periods, NUL, other types and the root "langgraph" are refused by put."""
    with pytest.raises(InvalidNamespaceError):
        store.put(namespace, "k", {})
    if namespace not in ((), ("langgraph", "x")):
        for call in (store.get, store.delete):
            with pytest.raises(InvalidNamespaceError):
                call(namespace, "k")
        with pytest.raises(InvalidNamespaceError):
            store.search(namespace)
        with pytest.raises(InvalidNamespaceError):
            store.list_namespaces(prefix=namespace)


def test_tuples_become_lists(store: StoreCalls) -> None:
    """JSON has one sort of array.  (InMemoryStore keeps Python's objects, and so is not asked.)"""
    if store.kind == "InMemoryStore":
        pytest.skip("keeps the objects")
    store.put(NAMESPACE, "k", {"pair": (1, (2, 3))})
    assert store.get(NAMESPACE, "k").value == {"pair": [1, [2, 3]]}


# --- search ---


@pytest.fixture
def filled(store: StoreCalls) -> StoreCalls:
    """A store with ten items in two namespaces, and two beside them."""
    for number in range(10):
        value = {
            "n": number,
            "kind": "even" if number % 2 == 0 else "odd",
            "half": number / 2,
            "name": f"item {number}",
        }
        store.put(("users", "ada" if number < 6 else "bob"), f"k{number}", value)
    store.put(("users2",), "beside", {"n": 3, "kind": "odd"})
    store.put(("user",), "beside", {"n": 3, "kind": "odd"})
    return store


def test_search_by_prefix(filled: StoreCalls) -> None:
    """A prefix is made of whole parts; none is every item."""
    assert sorted(keys(filled.search(("users",)))) == [f"k{number}" for number in range(10)]
    assert sorted(keys(filled.search(("users", "bob")))) == ["k6", "k7", "k8", "k9"]
    assert filled.search(("users", "bob", "k6")) == []
    assert filled.search(("use",)) == []
    assert len(filled.search((), limit=100)) == 12
    assert all(type(item) is SearchItem and item.score is None for item in filled.search(()))


def test_limit_and_offset(filled: StoreCalls) -> None:
    """Pages follow each other without overlap, and the default limit is ten."""
    assert len(filled.search(())) == 10
    everything = keys(filled.search(("users",), limit=100))
    assert everything == [
        key for offset in (0, 4, 8) for key in keys(filled.search(("users",), limit=4, offset=offset))
    ]
    assert filled.search(("users",), offset=10) == []
    assert filled.search(("users",), limit=0) == []


@pytest.mark.parametrize(
    ("filter_", "wanted"),
    [
        ({"kind": "odd"}, {1, 3, 5, 7, 9}),
        ({"kind": "odd", "n": 3}, {3}),
        ({"n": 3.0}, {3}),
        ({"n": {"$eq": 4}}, {4}),
        ({"kind": {"$eq": "even"}}, {0, 2, 4, 6, 8}),
        ({"kind": {"$ne": "odd"}}, {0, 2, 4, 6, 8}),
        ({"n": {"$ne": 4}}, {0, 1, 2, 3, 5, 6, 7, 8, 9}),
        ({"n": {"$gt": 7}}, {8, 9}),
        ({"n": {"$gte": 7}}, {7, 8, 9}),
        ({"n": {"$lt": 2}}, {0, 1}),
        ({"n": {"$lte": 2}}, {0, 1, 2}),
        ({"half": {"$gt": 1.4, "$lt": 2.6}}, {3, 4, 5}),
        ({"n": {"$gt": 2}, "kind": "odd"}, {3, 5, 7, 9}),
        ({"n": {"$gt": 8.5}}, {9}),
        ({"n": {"$gt": True}}, {2, 3, 4, 5, 6, 7, 8, 9}),
        ({"missing": "x"}, set()),
        ({"missing": None}, set(range(10))),
        ({"missing": {"$eq": None}}, set(range(10))),
        ({"n": None}, set()),
        ({"n": "3"}, set()),
        ({"kind": 1}, set()),
        ({}, set(range(10))),
        (None, set(range(10))),
    ],
)
def test_filters(filled: StoreCalls, filter_: dict[str, Any] | None, wanted: set[int]) -> None:
    """Filters compare fields of the value; several must all hold."""
    found = filled.search(("users",), filter=filter_, limit=100)
    assert {item.value["n"] for item in found} == wanted
    assert len(filled.search(("users",), filter=filter_, limit=2)) == min(2, len(wanted))


def test_filter_by_list(store: StoreCalls) -> None:
    """A list matches a list that has the same elements in the same order."""
    for key, tags in (("ab", ["a", "b"]), ("ba", ["b", "a"]), ("a", ["a"]), ("none", None)):
        store.put(NAMESPACE, key, {"tags": tags})
    assert keys(store.search(NAMESPACE, filter={"tags": ["a", "b"]})) == ["ab"]


def test_filter_by_truth(store: StoreCalls) -> None:
    """True and false match themselves."""
    store.put(NAMESPACE, "yes", {"done": True})
    store.put(NAMESPACE, "no", {"done": False})
    assert keys(store.search(NAMESPACE, filter={"done": True})) == ["yes"]
    assert keys(store.search(NAMESPACE, filter={"done": {"$ne": True}})) == ["no"]


def test_numbers_written_as_text_are_compared_with_numbers(store: StoreCalls) -> None:
    """ "10" is more than 9."""
    store.put(NAMESPACE, "k", {"n": "10"})
    assert keys(store.search(NAMESPACE, filter={"n": {"$gt": 9}})) == ["k"]
    assert keys(store.search(NAMESPACE, filter={"n": {"$lt": 9}})) == []


def test_unknown_operator(filled: StoreCalls) -> None:
    """An operator that there is not is refused."""
    with pytest.raises(ValueError, match=r"Unsupported operator"):
        filled.search(("users",), filter={"n": {"$near": 3}})


def test_filter_values_are_data(filled: StoreCalls) -> None:
    """No text in a filter is ever taken for anything else."""
    for text in ("' OR 1=1 --", "odd' OR 'a'='a", "*", "%"):
        assert filled.search(("users",), filter={"kind": text}) == []


def test_query_without_index(filled: StoreCalls) -> None:
    """Where nothing is embedded, a query counts for nothing."""
    assert len(filled.search(("users",), query="tea", limit=100)) == 10


# --- namespaces ---


@pytest.fixture
def tree(store: StoreCalls) -> StoreCalls:
    """A store with a tree of namespaces."""
    for namespace in (
        ("a", "b", "c"),
        ("a", "b", "d", "e"),
        ("a", "b", "d", "i"),
        ("a", "b", "f"),
        ("a", "c", "f"),
        ("b", "a", "f"),
        ("a",),
        ("ab", "b"),
    ):
        store.put(namespace, "one", {})
        store.put(namespace, "two", {})
    return store


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"prefix": ("a", "b")}, ["a b c", "a b d e", "a b d i", "a b f"]),
        ({"prefix": ("a", "b"), "max_depth": 3}, ["a b c", "a b d", "a b f"]),
        ({"prefix": ("a",), "max_depth": 1}, ["a"]),
        ({"suffix": ("f",)}, ["a b f", "a c f", "b a f"]),
        ({"suffix": ("b",)}, ["ab b"]),
        ({"prefix": ("a",), "suffix": ("f",)}, ["a b f", "a c f"]),
        ({"prefix": ("a", "*", "f")}, ["a b f", "a c f"]),
        ({"prefix": ("*", "a")}, ["b a f"]),
        ({"suffix": ("a", "*")}, ["b a f"]),
        ({"suffix": ("*", "*", "*", "*")}, ["a b d e", "a b d i"]),
        ({"prefix": ("nothing",)}, []),
        ({"limit": 2}, ["a", "a b c"]),
        ({"limit": 2, "offset": 6}, ["ab b", "b a f"]),
        ({"max_depth": 2, "offset": 1, "limit": 3}, ["a b", "a c", "ab b"]),
    ],
)
def test_list_namespaces(tree: StoreCalls, arguments: dict[str, Any], wanted: list[str]) -> None:
    """Namespaces by prefix, suffix and depth, sorted, a page at a time; a star is any one part."""
    assert tree.list_namespaces(**arguments) == [tuple(path.split()) for path in wanted]


# --- batches ---


def test_batch_in_order(store: StoreCalls) -> None:
    """Results stand where their operations stand, and a write has none."""
    store.put(NAMESPACE, "a", {"n": 1})
    results = store.batch(
        [
            PutOp(NAMESPACE, "b", {"n": 2}),
            GetOp(NAMESPACE, "a"),
            SearchOp(NAMESPACE, limit=5),
            PutOp(NAMESPACE, "c", {"n": 3}),
            ListNamespacesOp((MatchCondition("prefix", ("users",)),)),
            GetOp(NAMESPACE, "nothing"),
        ]
    )
    assert results[0] is None
    assert results[1].value == {"n": 1}
    assert keys(results[2]) == ["a"]
    assert results[3] is None
    assert results[4] == [NAMESPACE]
    assert results[5] is None
    assert sorted(keys(store.search(NAMESPACE))) == ["a", "b", "c"]


def test_reads_of_a_batch_see_nothing_of_its_writes(store: StoreCalls) -> None:
    """Whatever the order, reads come first."""
    store.put(NAMESPACE, "a", {"n": 1})
    results = store.batch([PutOp(NAMESPACE, "a", {"n": 2}), GetOp(NAMESPACE, "a"), PutOp(("new",), "k", {})])
    assert results[1].value == {"n": 1}
    assert store.get(NAMESPACE, "a").value == {"n": 2}


def test_last_write_of_a_batch_counts(store: StoreCalls) -> None:
    """Of several writes of one item the last is made."""
    store.batch([PutOp(NAMESPACE, "a", {"n": 1}), PutOp(NAMESPACE, "b", {"n": 1}), PutOp(NAMESPACE, "a", {"n": 2})])
    assert store.get(NAMESPACE, "a").value == {"n": 2}
    store.batch([PutOp(NAMESPACE, "a", None), PutOp(NAMESPACE, "a", {"n": 3})])
    assert store.get(NAMESPACE, "a").value == {"n": 3}
    store.batch([PutOp(NAMESPACE, "a", {"n": 4}), PutOp(NAMESPACE, "a", None)])
    assert store.get(NAMESPACE, "a") is None


def test_empty_batch(store: StoreCalls) -> None:
    """Nothing in, nothing out."""
    assert store.batch([]) == []


def test_large_batch(store: StoreCalls) -> None:
    """Hundreds of writes and reads at once."""
    store.batch([PutOp(NAMESPACE, f"k{number}", {"n": number}) for number in range(300)])
    found = store.batch([GetOp(NAMESPACE, f"k{number}") for number in range(300)])
    assert [item.value["n"] for item in found] == list(range(300))
    assert len(store.search(NAMESPACE, limit=1000)) == 300


# --- semantic search ---


def test_most_similar_first(indexed: StoreCalls) -> None:
    """Items come by their cosine similarity to the query, which is their score."""
    texts = {"a": "tea and tea", "b": "coffee", "c": "tea coffee", "d": "dog cat"}
    for key, text in texts.items():
        indexed.put(NAMESPACE, key, {"text": text})
    found = indexed.search(NAMESPACE, query="tea")
    wanted = {key: cosine(vector_of("tea"), vector_of(text)) for key, text in texts.items()}
    assert keys(found) == sorted(texts, key=lambda key: -wanted[key]) == ["a", "c", "d", "b"]
    assert all(math.isclose(item.score, wanted[item.key], abs_tol=1e-6) for item in found)
    assert keys(indexed.search(NAMESPACE, query="tea", limit=2)) == ["a", "c"]


def test_similar_within_prefix_and_filter(indexed: StoreCalls) -> None:
    """Namespace and filter are applied before the limit."""
    for number in range(20):
        indexed.put(
            ("users", f"u{number % 4}"), f"k{number}", {"text": "tea " * (20 - number), "even": number % 2 == 0}
        )
    indexed.put(("users2",), "beside", {"text": "tea"})
    found = indexed.search(("users", "u1"), query="tea", limit=50)
    assert {item.namespace for item in found} == {("users", "u1")}
    assert len(found) == 5
    found = indexed.search(("users",), query="tea " * 20, filter={"even": True}, limit=3)
    assert keys(found) == ["k0", "k2", "k4"]


def test_items_that_are_not_indexed_have_no_score(indexed: StoreCalls) -> None:
    """`index=False` leaves an item out of the scores, and `index=[...]` names other fields."""
    indexed.put(NAMESPACE, "no", {"text": "tea"}, index=False)
    indexed.put(NAMESPACE, "other", {"text": "dog", "title": "tea"}, index=["title"])
    indexed.put(NAMESPACE, "yes", {"text": "coffee"})
    found = [item for item in indexed.search(NAMESPACE, query="tea") if item.score is not None]
    assert keys(found) == ["other", "yes"]
    assert indexed.get(NAMESPACE, "no").value == {"text": "tea"}


def test_best_of_several_vectors(indexed: StoreCalls) -> None:
    """An item with several vectors is found once, by the best of them."""
    notes = [{"text": "dog"}, {"text": "tea"}, {"text": "rain"}]
    indexed.put(NAMESPACE, "several", {"notes": notes}, index=["notes[*].text"])
    indexed.put(NAMESPACE, "one", {"text": "coffee"})
    found = indexed.search(NAMESPACE, query="tea", limit=2)
    assert keys(found) == ["several", "one"]
    assert math.isclose(found[0].score, 1.0, abs_tol=1e-6)


def test_one_embedding_call_for_a_batch(indexed: StoreCalls, embedder: Embedder) -> None:
    """All texts of a batch are embedded in one call."""
    indexed.batch([PutOp(NAMESPACE, f"k{number}", {"text": f"tea {WORDS[number]}"}) for number in range(8)])
    assert len(embedder.calls) == 1
    assert sorted(embedder.calls[0]) == sorted(f"tea {word}" for word in WORDS)
