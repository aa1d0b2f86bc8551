"""Fingerprints: as long as one compares equal, the serializer would give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.checkpoint.serde.jsonplus import _msgpack_enc
from pydantic import BaseModel

from property.mutation import Counted, Dumped, Note, Point, Priced, Sorted, Whole, elements, mutate
from stepwell_langgraph.fingerprint import IMMUTABLE, Fingerprint, fingerprint

# Pydantic says so when a field was given what its annotation does not allow; it dumps it all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


def _message() -> AIMessage:
    return AIMessage(
        content=[{"type": "text", "text": "thinking", "index": 1}, "and more"],
        id="a",
        name="n",
        additional_kwargs={"deep": {"k": [1, None]}, "other": 0},
        response_metadata={"model": "m", "score": 1.0},
        tool_calls=[{"name": "search", "args": {"q": {"n": 1}, "flags": [True]}, "id": "c", "type": "tool_call"}],
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        custom={"seen": [0, False]},
    )


def _set(path: str, value: Any) -> Callable[[Any], None]:
    """Sets what a dotted path leads to, in attributes, keys and indexes alike."""
    *steps, last = path.split(".")

    def change(owner: Any) -> None:
        for step in steps:
            owner = _at(owner, step)
        if isinstance(owner, BaseModel):
            setattr(owner, last, value)
        else:
            owner[int(last) if isinstance(owner, list) else last] = value

    return change


def _at(owner: Any, step: str) -> Any:
    if isinstance(owner, BaseModel):
        return getattr(owner, step)
    return owner[int(step) if isinstance(owner, list) else step]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "id": _set("id", "b"),
    "id taken away": _set("id", None),
    "name": _set("name", "m"),
    "text for blocks": _set("content", "thinking"),
    "text of a block": _set("content.0.text", "thinking!"),
    "new key of a block": _set("content.0.extra", None),
    "True for 1": _set("content.0.index", True),
    "1.0 for 1": _set("content.0.index", 1.0),
    "bytes for text": _set("content.1", b"and more"),
    "block removed": lambda m: m.content.pop(),
    "block repeated": lambda m: m.content.append(m.content[0]),
    "blocks reversed": lambda m: m.content.reverse(),
    "nested argument": _set("tool_calls.0.args.q.n", 2),
    "nested argument, False for 0": _set("additional_kwargs.other", False),
    "nested argument, 1 for True": _set("tool_calls.0.args.flags.0", 1),
    "new argument": _set("tool_calls.0.args.more", "x"),
    "tool call's id": _set("tool_calls.0.id", "d"),
    "tool call added": lambda m: m.tool_calls.append(dict(m.tool_calls[0])),
    "deep in additional_kwargs": lambda m: m.additional_kwargs["deep"]["k"].append(2),
    "additional_kwargs replaced": _set("additional_kwargs", {}),
    "keys in another order": lambda m: m.additional_kwargs.update(deep=m.additional_kwargs.pop("deep")),
    "response_metadata": _set("response_metadata.model", "n"),
    "response_metadata, 1 for 1.0": _set("response_metadata.score", 1),
    "usage_metadata": _set("usage_metadata.input_tokens", 9),
    "usage_metadata taken away": _set("usage_metadata", None),
    "extra field, deep": _set("custom.seen.0", 1),
    "extra field, False for 0": _set("custom.seen.0", False),
    "extra field added": _set("more", 1),
    "extra field taken away": lambda m: delattr(m, "custom"),
    "invalid tool call": lambda m: m.invalid_tool_calls.append({"name": None, "args": "{", "id": "i", "error": "e"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_kind_of_change_is_seen(change: Callable[[Any], Any]) -> None:
    """Whatever is changed in a message in place, its fingerprint matches no more."""
    message = _message()
    before, bytes_before = fingerprint(message), _msgpack_enc(message)
    change(message)
    assert _msgpack_enc(message) != bytes_before
    assert isinstance(before, Fingerprint)
    assert not before.matches(message)


@given(value=elements, data=st.data())
def test_a_fingerprint_that_matches_means_equal_bytes(value: Any, data: st.DataObject) -> None:
    """After any changes in place, a fingerprint that still matches stands for the same bytes."""
    seen: list[tuple[Fingerprint, bytes]] = []
    for _ in range(data.draw(st.integers(2, 5))):
        mark, encoded = fingerprint(value), _msgpack_enc(value)
        for before, bytes_before in seen:
            assert not before.matches(value) or encoded == bytes_before
        if isinstance(mark, Fingerprint):
            seen.append((mark, encoded))
        mutate(data.draw, value)


@pytest.mark.parametrize("of", ["field", "extra field"])
def test_fields_in_another_order(of: str) -> None:
    """Fields that were deleted and set again are dumped in another order: that is a change too."""
    model = Note(text="a", tags=[1]) if of == "field" else HumanMessage("hi", id="h", custom=1, other=2)
    name = "text" if of == "field" else "custom"
    before, bytes_before = fingerprint(model), _msgpack_enc(model)
    value = getattr(model, name)
    delattr(model, name)
    setattr(model, name, value)
    assert isinstance(before, Fingerprint)
    assert _msgpack_enc(model) == bytes_before or not before.matches(model)


@pytest.mark.parametrize(
    "make",
    [
        _message,
        lambda: HumanMessage("hi"),
        lambda: HumanMessage([{"type": "text", "text": "hi"}], id="h", custom={"deep": [1]}),
        lambda: SystemMessage("be brief"),
        lambda: ToolMessage("found", tool_call_id="c", artifact={"rows": [1, (2, 3)]}),
        lambda: AIMessageChunk(content="par", id="c"),
        lambda: RemoveMessage(id="h"),
        lambda: Document(page_content="text", metadata={"page": 1}),
        lambda: Note(text="a", tags=[1, {"k": 2.0}]),
    ],
)
def test_what_is_common_has_one(make: Callable[[], BaseMessage]) -> None:
    """Messages and plain models have a fingerprint, and it matches for as long as nothing changes."""
    value = make()
    mark = fingerprint(value)
    assert isinstance(mark, Fingerprint)
    assert mark.matches(value)


@pytest.mark.parametrize(
    "value",
    [
        Sorted(names={"a"}),
        Priced(price=1),
        Counted(text="a"),
        Whole(text="a"),
        Dumped(text="a"),
        Note(text="a", inner=Note(text="b")),
        Note(text="a", about={"when": Point(1)}),
        HumanMessage("hi", custom=Point(1)),
        HumanMessage("hi", additional_kwargs={"set": {1, 2}}),
        HumanMessage("hi", additional_kwargs={"large": 2**64}),
        Point(1),
        {1, 2},
        [1],
        {"a": 1},
        (1,),
        bytearray(b"a"),
    ],
    ids=repr,
)
def test_what_cannot_be_judged_has_none(value: Any) -> None:
    """What is dumped by code of its own, holds such an object, or is a container is encoded to be compared."""
    assert fingerprint(value) is None


@pytest.mark.parametrize("value", ["a", 1, True, None, 1.5, b"a"], ids=repr)
def test_what_cannot_change(value: Any) -> None:
    """Scalars are immutable and say so."""
    assert fingerprint(value) is IMMUTABLE
