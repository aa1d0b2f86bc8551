"""Stored values become the objects that JsonPlusSerializer makes of them, each new, and give the same bytes again."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel

from building import step
from stepwell import Log
from stepwell.cache import Cache
from stepwell.patch import Array, Value
from stepwell.reader import Payloads
from stepwell_langgraph.messages import Messages
from stepwell_langgraph.revive import Revival

# Fields that were never validated are stored all the same, with a warning.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


class LoudMessage(HumanMessage):
    """A message of an application's own."""

    volume: int = 11


CALL = {"name": "search", "args": {"q": "x", "n": [1, {"deep": None}]}, "id": "c1", "type": "tool_call"}
BAD = {"name": "search", "args": "{", "id": "c1", "error": "no", "type": "invalid_tool_call"}
USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}

CORPUS: list[Any] = [
    HumanMessage("text"),
    HumanMessage("text", id="1", name="me", additional_kwargs={"a": [1]}, response_metadata={"m": {"n": 1.5}}),
    HumanMessage(["text", {"type": "image_url", "image_url": {"url": "data:"}}]),
    HumanMessage([]),
    HumanMessage("half a pair \ud800"),
    HumanMessage("extra", example=True, colour="red", list_of=[1]),
    HumanMessage("keys", additional_kwargs={1: 2, (1, 2): 3, "t": (1, [2]), "s": {1}, "b": b"b", "none": None}),
    HumanMessage("object", additional_kwargs={"message": HumanMessage("inner"), "path": Path("x")}),
    HumanMessage("large", additional_kwargs={"n": 2**63, "f": float("inf"), "neg": -(2**63), "true": True}),
    SystemMessage("be brief"),
    AIMessage("answer"),
    AIMessage("answer", tool_calls=[CALL, {**CALL, "id": None}], usage_metadata=USAGE),
    AIMessage("", tool_calls=[{**CALL, "args": {}}], invalid_tool_calls=[BAD]),
    AIMessage("", usage_metadata={**USAGE, "input_token_details": {"cache_read": 1}, "output_token_details": {}}),
    AIMessage(
        "",
        additional_kwargs={
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}, "type": "function"}]
        },
    ),
    AIMessage([{"type": "tool_use", "id": "c1", "name": "search", "input": {}}, "text"], response_metadata={"a": {}}),
    AIMessageChunk(
        "chunk", tool_call_chunks=[{"name": "f", "args": "{", "id": "1", "index": 0, "type": "tool_call_chunk"}]
    ),
    ToolMessage("result", tool_call_id="c1"),
    ToolMessage("result", tool_call_id="c1", status="error", artifact={"any": [1]}, name="search"),
    ToolMessage(["part", {"type": "text", "text": "t"}], tool_call_id="c1", artifact=HumanMessage("inner")),
    FunctionMessage("result", name="f"),
    ChatMessage("said", role="critic"),
    RemoveMessage("id"),
    LoudMessage("loud", volume=3),
    HumanMessage.model_construct(content="unchecked", additional_kwargs={}, response_metadata={}),
    HumanMessage.model_construct(content=7, type="human", name=None, id=5, additional_kwargs={}, response_metadata={}),
    AIMessage.model_construct(content="", tool_calls=[{"name": "f"}], usage_metadata={"input_tokens": 1.0}),
    {"a": HumanMessage("in a dict"), 1: [AIMessage("in a list")]},
    [HumanMessage("one"), AIMessage("two", tool_calls=[CALL])],
    "text",
    b"bytes",
    7,
    True,
    None,
    1.5,
    (1, [2], {3}),
    {"k": {"v": []}},
]

texts = st.text(max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(0, 9), inner, max_size=3),
    max_leaves=6,
)
dicts = st.dictionaries(texts, plain, max_size=3)
contents = texts | st.lists(texts | st.dictionaries(texts, plain, max_size=2), max_size=3)
calls = st.fixed_dictionaries({"name": texts, "args": dicts, "id": st.none() | texts, "type": st.just("tool_call")})
counts = st.fixed_dictionaries(
    {name: st.integers(0, 99) for name in USAGE},
    optional={"input_token_details": st.dictionaries(st.sampled_from(["audio", "cache_read"]), st.integers(0, 9))},
)
common = {
    "content": contents,
    "additional_kwargs": dicts,
    "response_metadata": dicts,
    "name": st.none() | texts,
    "id": st.none() | texts,
}
messages: st.SearchStrategy[Any] = st.one_of(
    st.builds(HumanMessage, **common),
    st.builds(SystemMessage, **common),
    st.builds(AIMessage, **common, tool_calls=st.lists(calls, max_size=2), usage_metadata=st.none() | counts),
    st.builds(ToolMessage, **common, tool_call_id=texts, status=st.sampled_from(["success", "error"]), artifact=plain),
)


def unchecked(kind: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Messages with fields that validation never saw: any of them missing, or of another type."""
    fields = {name: plain | dicts | st.lists(calls | dicts, max_size=2) for name in kind.model_fields}
    fields |= {"type": st.just(kind.model_fields["type"].default) | texts}
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind.model_construct(**given))


odd = st.one_of(*map(unchecked, (HumanMessage, SystemMessage, AIMessage, ToolMessage)))


def alike(one: Any, other: Any) -> None:
    """Two objects are the same in type and in all that they hold, down to `True` and `1`."""
    assert type(one) is type(other)
    if isinstance(one, BaseModel):
        assert list(one.__dict__) == list(other.__dict__)
        for name, value in one.__dict__.items():
            alike(value, other.__dict__[name])
        assert one.__pydantic_fields_set__ == other.__pydantic_fields_set__
        alike(one.__pydantic_extra__, other.__pydantic_extra__)
        alike(one.__pydantic_private__, other.__pydantic_private__)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for (key, value), (other_key, other_value) in zip(one.items(), other.items(), strict=True):
            alike(key, other_key)
            alike(value, other_value)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for value, other_value in zip(one, other, strict=True):
            alike(value, other_value)
    else:
        assert one == other or repr(one) == repr(other)


def shake(value: Any) -> None:
    """Change all that can be changed in place, all the way down."""
    if isinstance(value, BaseModel):
        for inner in [*value.__dict__.values()]:
            shake(inner)
        value.__pydantic_fields_set__.add("shaken")
        if value.__pydantic_extra__ is not None:
            value.__pydantic_extra__["shaken"] = 1
        value.__dict__["id"] = "shaken"
    elif isinstance(value, dict):
        for inner in [*value.values()]:
            shake(inner)
        value["shaken"] = "shaken"
    elif isinstance(value, list):
        for inner in [*value]:
            shake(inner)
        value.append("shaken")
    elif isinstance(value, tuple):
        for inner in value:
            shake(inner)


def encoded(serde: JsonPlusSerializer, value: Any) -> bytes | None:
    """A value's bytes; None if the serializer makes something else of it than msgpack."""
    kind, data = serde.dumps_typed(value)
    return data if kind == "msgpack" else None


def encoded_or_error(serde: JsonPlusSerializer, value: Any) -> bytes | str | None:
    """`encoded`, or what the serializer says of a value that it reads but does not write."""
    try:
        return encoded(serde, value)
    except TypeError as error:
        return str(error)


# --- single messages ---


def check_decoding(serde: JsonPlusSerializer, decode: Callable[[bytes], Any], data: bytes) -> None:
    """Whatever was decoded before, what comes out is what the serializer makes of it, or fails alike."""
    try:
        truth = serde.loads_typed(("msgpack", data))
    except Exception as error:
        with pytest.raises(type(error)):
            decode(data)
        return
    for _ in range(3):
        found = decode(data)
        alike(found, truth)
        assert encoded_or_error(serde, found) == encoded_or_error(serde, truth)
        shake(found)


@pytest.mark.parametrize("item", CORPUS, ids=lambda item: type(item).__name__)
def test_decoding(item: Any) -> None:
    """Messages of all kinds and shapes are decoded as the serializer does."""
    serde = JsonPlusSerializer()
    data = encoded(serde, item)
    if data is not None:
        check_decoding(serde, Messages(serde).decode, data)


def test_decoding_all_with_one_memory() -> None:
    """What was learnt of one message is not believed of another one that differs from it."""
    serde = JsonPlusSerializer()
    decode = Messages(serde).decode
    for _ in range(2):
        for item in CORPUS:
            data = encoded(serde, item)
            if data is not None:
                check_decoding(serde, decode, data)


_SERDE = JsonPlusSerializer()
_DECODE = Messages(_SERDE).decode


@given(st.one_of(messages, odd))
@settings(max_examples=300)
def test_any_message(message: Any) -> None:
    """Any message, valid or not, is decoded as the serializer does, whatever was decoded before."""
    try:
        data = encoded(_SERDE, message)
    except TypeError:
        return  # the serializer itself cannot encode it
    assert data is not None
    check_decoding(_SERDE, _DECODE, data)


@given(messages, st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=200)
def test_any_bytes(message: Any, position: int, change: int) -> None:
    """A message of which a byte was changed is decoded as the serializer does, or fails alike."""
    data = bytearray(_SERDE.dumps_typed(message)[1])
    data[position % len(data)] ^= change
    check_decoding(_SERDE, _DECODE, bytes(data))


# --- values of a log ---


class Stored:
    """Values in a log, with what the serializer makes of them."""

    def __init__(self, log: Log, values: list[Any], serde: JsonPlusSerializer) -> None:
        thread = log.thread("t")
        self.truth = [serde.dumps_typed(value) for value in values]
        channels = {str(n): data for n, (_, data) in enumerate(self.truth)}
        at = thread.append([step("s0", channels)])
        row = thread.row()
        assert row is not None
        self.payloads = Payloads(log.storage, row.number)
        state = log.reader.state(row.number, at)
        self.values: list[Value] = [_typed(state.channels[str(n)], kind) for n, (kind, _) in enumerate(self.truth)]


def _typed(value: Value, kind: str) -> Value:
    """The value under the serializer's name for its type."""
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    return type(value)(**{**fields, "type": kind})


LISTS = [
    [item for item in CORPUS if isinstance(item, BaseMessage)],
    [HumanMessage("long " * 99, id=str(n), additional_kwargs={"n": [n]}) for n in range(20)],
    ["x" * 300, b"y" * 300, 7, None, [1, "z" * 300], {"k": "v" * 300}],
]


@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize("sealed", [False, True])
def test_values(memory_log: Log, often: bool, sealed: bool) -> None:
    """Values of a log come out as the serializer makes them, each time new, however often they are asked for."""
    serde = JsonPlusSerializer()
    snapshots = [_DeltaSnapshot(each) for each in LISTS]
    maps = [{str(n): item for n, item in enumerate(each)} for each in LISTS]
    stored = Stored(memory_log, [*CORPUS, *LISTS, *snapshots, *maps], serde)
    if sealed:
        memory_log.seal()
    revival = Revival(serde)
    for _ in range(4):
        for value, typed in zip(stored.values, stored.truth, strict=True):
            found, truth = revival.value(value, stored.payloads, often=often), serde.loads_typed(typed)
            alike(found, truth)
            assert serde.dumps_typed(found) == serde.dumps_typed(truth)
            shake(found)


@given(st.lists(st.one_of(messages, odd, plain), min_size=5, max_size=9), st.booleans())
@settings(max_examples=60)
def test_any_list(items: list[Any], often: bool) -> None:
    """A list of anything comes out as the serializer makes it, and what is done to one shows in no other."""
    serde = JsonPlusSerializer()
    items = [*items, *(HumanMessage("long " * 80, id=str(n)) for n in range(3))]
    try:
        truth = serde.loads_typed(serde.dumps_typed(items))
    except TypeError:
        return  # the serializer itself cannot encode it
    with Log.open(":memory:") as log:
        stored = Stored(log, [items], serde)
        revival = Revival(serde)
        results = [revival.value(stored.values[0], stored.payloads, often=often) for _ in range(4)]
        for number, found in enumerate(results):
            alike(found, truth)
            assert serde.dumps_typed(found) == serde.dumps_typed(truth)
            shake(found)
            for other in results[number + 1 :]:
                alike(other, truth)


def test_results_share_nothing_that_changes(memory_log: Log) -> None:
    """Of two results no list, dict or message is the same object."""
    serde = JsonPlusSerializer()
    stored = Stored(memory_log, LISTS, serde)
    revival = Revival(serde)

    def parts(value: Any) -> list[Any]:
        inner: list[Any] = []
        if isinstance(value, BaseModel):
            inner = [value.__dict__, value.__pydantic_fields_set__, value.__pydantic_extra__]
        elif isinstance(value, dict):
            inner = [*value.values()]
        elif isinstance(value, list | tuple):
            inner = [*value]
        found = [value] if isinstance(value, list | dict | set | BaseModel) else []
        return found + [part for each in inner for part in parts(each)]

    for value in stored.values:
        results = [revival.value(value, stored.payloads, often=True) for _ in range(4)]
        seen = [id(part) for result in results for part in parts(result)]
        assert len(seen) == len({*seen})


def test_other_serializers(memory_log: Log) -> None:
    """A serializer that is not LangGraph's own, or changes how it reads, is asked for every value as a whole."""

    class Reading(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            return ("read", super().loads_typed(data))

    stored = Stored(memory_log, LISTS, JsonPlusSerializer())
    revival = Revival(Reading())
    for value, typed in zip(stored.values, stored.truth, strict=True):
        for _ in range(3):
            kind, found = revival.value(value, stored.payloads)
            assert kind == "read"
            alike(found, JsonPlusSerializer().loads_typed(typed))


def test_memory_is_bounded(memory_log: Log) -> None:
    """However much is read, what is remembered is bounded, and all is still right."""
    serde = JsonPlusSerializer()
    items = [HumanMessage("long " * 99, id=str(n)) for n in range(40)]
    stored = Stored(memory_log, [items], serde)
    assert isinstance(stored.values[0], Array)
    revival = Revival(serde, Cache(20_000))
    truth = serde.loads_typed(stored.truth[0])
    for _ in range(4):
        alike(revival.value(stored.values[0], stored.payloads, often=True), truth)
        patterns = revival._patterns.get(stored.payloads.thread)
        assert patterns is not None
        assert sum(ref.length + 1024 for ref in patterns.by_place) == patterns.size_bytes <= 10_000
        assert patterns.by_place


def test_what_is_remembered_is_counted_once(memory_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count is right if an element is read while it is taken apart elsewhere, and if it cannot be."""
    serde = JsonPlusSerializer()
    lists = [[HumanMessage(f"{name} long " * 99, id=str(n)) for n in range(3)] for name in ("first", "other", "bad")]
    stored = Stored(memory_log, lists, serde)
    revival = Revival(serde, Cache(100_000))
    revival.value(stored.values[0], stored.payloads, often=True)
    pattern = revival._pattern
    nested: list[bool] = []

    def meanwhile(data: memoryview) -> Any:
        if not nested:
            nested.append(True)
            revival.value(stored.values[1], stored.payloads, often=True)
        return pattern(data)

    def failing(data: memoryview) -> Any:
        raise ValueError("cannot be taken apart")

    monkeypatch.setattr(revival, "_pattern", meanwhile)
    revival.value(stored.values[1], stored.payloads, often=True)
    monkeypatch.setattr(revival, "_pattern", failing)
    with pytest.raises(ValueError, match="apart"):
        revival.value(stored.values[2], stored.payloads, often=True)
    patterns = revival._patterns.get(stored.payloads.thread)
    assert patterns is not None
    assert len(patterns.by_place) == 6
    assert sum(ref.length + 1024 for ref in patterns.by_place) == patterns.size_bytes


def test_many_threads_at_once(memory_log: Log) -> None:
    """Threads that read at the same moment, while what is remembered is dropped, get what is right."""
    serde = JsonPlusSerializer()
    items = [AIMessage("long " * 99, id=str(n), tool_calls=[copy.deepcopy(CALL)]) for n in range(30)]
    stored = Stored(memory_log, [items], serde)
    truth = serde.loads_typed(stored.truth[0])
    revival = Revival(serde, Cache(30_000))
    wrong: list[object] = []

    def read() -> None:
        try:
            for turn in range(15):
                found = revival.value(stored.values[0], stored.payloads, often=turn % 2 == 0)
                alike(found, truth)
                shake(found)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
