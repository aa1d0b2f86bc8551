"""The checkpoint's fields are stored as patches between objects, and read back as the serializer would have them."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell.patch import Blob, Merge, Patch, Value, apply, payload_of
from stepwell_langgraph.fields import Fields

serde = JsonPlusSerializer()


def restored(value: Value) -> tuple[str, bytes]:
    return value.type, payload_of(value, lambda ref: b"")


def follow(fields: Fields, stored: Value | None, value: dict[str, Any]) -> Value:
    """What the log holds after an update, which must be what the serializer makes of the value."""
    patch = fields.update(value, serde)
    after = stored if patch is None else apply(patch, stored)
    assert after is not None
    assert restored(after) == serde.dumps_typed(value)
    return after


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=True),
    st.text(max_size=80),
    st.binary(max_size=80),
    st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    st.lists(st.text(max_size=30), max_size=4),
    st.tuples(st.integers(0, 2)),
    st.frozensets(st.integers(0, 2)),
)
names = st.one_of(st.sampled_from(["ts", "id", "channel_versions", "messages"]), st.text(max_size=5))
values = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=5), max_leaves=12)
fields_of = st.dictionaries(names, values, max_size=6)


@given(st.lists(fields_of, min_size=1, max_size=6))
def test_any_sequence_of_dicts_is_stored_byte_for_byte(sequence: list[dict[str, Any]]) -> None:
    """After each update the log holds the very bytes that the serializer makes of the whole dict."""
    fields, stored = Fields(), None
    for value in sequence:
        stored = follow(fields, stored, value)


@given(st.lists(fields_of, min_size=2, max_size=6))
def test_a_memory_made_from_the_log_goes_on_where_it_was(sequence: list[dict[str, Any]]) -> None:
    """Fields that know only what the log holds give patches that fit it."""
    stored = None
    for value in sequence:
        stored = follow(Fields(stored), stored, value)


def checkpoint(step: int) -> dict[str, Any]:
    versions = {f"channel {index}": f"{index:032}.0.123456789" for index in range(20)}
    versions["messages"] = f"{step:032}.0.987654321"
    seen = {"__input__": {}, "model": {"branch:to:model": f"{step:032}.0.5"}}
    return {"v": 4, "ts": f"at {step}", "id": f"id {step}", "channel_versions": versions, "versions_seen": seen}


def size_of_patch(patch: Patch | None) -> int:
    if isinstance(patch, Merge):
        return sum(len(name) + size_of_patch(change) for name, change in patch.changes.items())
    assert isinstance(patch, Blob)
    assert isinstance(patch.content, bytes)
    return len(patch.content)


def test_only_what_moved_is_in_the_patch() -> None:
    """Of twenty versions one is stored again."""
    fields = Fields()
    fields.update(checkpoint(1), serde)
    patch = fields.update(checkpoint(2), serde)
    assert isinstance(patch, Merge)
    assert set(patch.changes) == {"ts", "id", "channel_versions", "versions_seen"}
    assert size_of_patch(patch) < 250


def test_nothing_is_stored_of_what_did_not_move() -> None:
    """Equal dicts give no patch, be they one object or two."""
    fields, value = Fields(), checkpoint(1)
    fields.update(value, serde)
    assert fields.update(value, serde) is None
    assert fields.update(checkpoint(1), serde) is None


@pytest.mark.parametrize("container", [dict, lambda entries: defaultdict(dict, entries)])
def test_a_dict_that_is_changed_in_place_is_seen(container: Any) -> None:
    """LangGraph goes on with the dicts that it handed over."""
    value = checkpoint(1)
    value["versions_seen"] = container(value["versions_seen"])
    value["list"] = ["a"]
    fields = Fields()
    stored = follow(fields, None, value)
    value["channel_versions"]["messages"] = "moved"
    value["versions_seen"]["model"]["more"] = "moved"
    value["list"].append("b")
    follow(fields, stored, value)


def test_what_python_calls_equal_may_be_encoded_differently() -> None:
    """True is not 1, 1.0 is not 1, and 0.0 is not -0.0."""
    fields, stored = Fields(), None
    for item in (True, 1, 1.0, 0.0, -0.0, False, 0, None, "1", b"1", [1], [True], (1,)):
        stored = follow(fields, stored, {"item": item})


def test_a_serializer_may_be_changed_at_any_time() -> None:
    """A serializer that is not JsonPlus encodes the whole, before and after JsonPlus does."""

    class Other:
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            return "text", repr(obj).encode()

        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            raise AssertionError

    fields, other = Fields(), Other()
    stored = follow(fields, None, checkpoint(1))
    patch = fields.update(checkpoint(2), other)
    assert patch is not None
    stored = apply(patch, stored)
    assert restored(stored) == other.dumps_typed(checkpoint(2))
    follow(fields, stored, checkpoint(3))


def test_the_size_is_that_of_what_is_held() -> None:
    """Texts, encodings and entries count at any depth: the cache goes by it."""
    fields = Fields()
    fields.update(
        {"text": "x" * 10_000, "list": ["x" * 100] * 100, "dict": {str(n): "x" * 100 for n in range(100)}}, serde
    )
    assert 30_000 < fields.size < 50_000


def test_a_dict_may_grow_while_it_is_looked_at() -> None:
    """With durability "async" the next node runs meanwhile, and may hold a dict of the metadata."""
    shared = {str(n): n for n in range(2000)}
    over = threading.Event()

    def change() -> None:
        for n in count():
            if over.is_set():
                return
            shared[f"x{n % 50}"] = n
            if n % 50 == 49:
                for other in range(50):
                    del shared[f"x{other}"]

    interval = sys.getswitchinterval()
    changing = threading.Thread(target=change)
    sys.setswitchinterval(1e-5)
    changing.start()
    try:
        fields = Fields()
        for _ in range(100):
            fields.update({"shared": shared}, serde)
    finally:
        over.set()
        changing.join()
        sys.setswitchinterval(interval)
