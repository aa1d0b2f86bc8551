"""Values: what the serde can round-trip comes back equal, from the very bytes that the serde made."""

from __future__ import annotations

import dataclasses
import enum
import json
import pickle
import random
import re
import struct
from collections import deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.store.base import Item
from langgraph.types import Command, Interrupt, Send
from pydantic import BaseModel, SecretStr

from conformance.calls import Calls, config_of
from stepwell_langgraph import StepwellSaver

SERDE = JsonPlusSerializer()


@dataclasses.dataclass
class Point:
    x: int
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    name: str


class Model(BaseModel):
    name: str
    nested: dict[str, list[int]] = {}
    when: datetime | None = None


class Open(BaseModel, extra="allow"):
    name: str


class Pair(NamedTuple):
    left: int
    right: list[int]


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


def _tool_call(number: int) -> AIMessage:
    call = {"name": "search", "args": {"query": f"q {number}", "deep": {"k": [1, None]}}, "id": f"c{number}"}
    return AIMessage(
        content=[{"type": "text", "text": f"thinking {number}"}],
        tool_calls=[{**call, "type": "tool_call"}],
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        response_metadata={"model": "m"},
        id=f"a{number}",
    )


def _nested(depth: int) -> Any:
    value: Any = "bottom"
    for level in range(depth):
        value = [value] if level % 2 else {"down": value}
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "largest int": lambda: 2**64 - 1,
    "smallest int": lambda: -(2**63),
    "float": lambda: 0.1,
    "whole float": lambda: 1.0,
    "minus zero": lambda: -0.0,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "empty text": lambda: "",
    "text": lambda: "naïve 中文 🎉 \x00 \u2028",
    "long text": lambda: "words and more words " * 20_000,
    "lone surrogate": lambda: "a\ud800b",
    "bytes": lambda: b"\x00\xff\xc1 not msgpack",
    "empty bytes": lambda: b"",
    "bytes like msgpack": lambda: SERDE.dumps_typed([1, [2]])[1],
    "long bytes": lambda: random.Random(0).randbytes(300_000),
    "bytearray": lambda: bytearray(b"\x01\x02"),
    "bytes inside": lambda: {"b": b"\x00\xff", "list": [b"", b"x"]},
    "empty list": list,
    "empty map": dict,
    "tuple": lambda: (1, (2, [3])),
    "named tuple": lambda: Pair(1, [2]),
    "set": lambda: {1, 2, 3},
    "frozenset": lambda: frozenset({"a"}),
    "set inside": lambda: [{"s": {1, 2}}],
    "deque": lambda: deque([1, 2]),
    "dataclass": lambda: Point(1, ["a"]),
    "frozen dataclass": lambda: Slotted("a"),
    "pydantic model": lambda: Model(name="a", nested={"k": [1]}, when=datetime(2025, 1, 2)),
    "pydantic extra fields": lambda: Open(name="a", more={"k": [1]}),
    "secret": lambda: SecretStr("hush"),
    "datetime": lambda: datetime(2025, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc),  # noqa: UP017
    "naive datetime": lambda: datetime(2025, 1, 2, 3, 4, 5),
    "date": lambda: date(2025, 1, 2),
    "time": lambda: time(1, 2, 3, 4),
    "timedelta": lambda: timedelta(days=1, microseconds=5),
    "time zone": lambda: timezone(timedelta(hours=5, minutes=30)),
    "zone": lambda: ZoneInfo("UTC"),
    "decimal": lambda: Decimal("1.10"),
    "uuid": lambda: UUID(int=7),
    "enum": lambda: Colour.RED,
    "int enum": lambda: Level.HIGH,
    "text enum": lambda: Word.YES,
    "path": lambda: Path("/a/b"),
    "pattern": lambda: re.compile("a+", re.IGNORECASE),
    "addresses": lambda: [IPv4Address("127.0.0.1"), IPv6Network("::/64")],
    "human message": lambda: HumanMessage("hi", id="h", additional_kwargs={"k": [1]}),
    "message without id": lambda: HumanMessage("hi"),
    "system message": lambda: SystemMessage("be brief", id="s"),
    "tool calls": lambda: _tool_call(1),
    "message chunk": lambda: AIMessageChunk(content="par", id="c"),
    "tool message": lambda: ToolMessage("found", tool_call_id="c1", artifact={"rows": [1]}, id="t"),
    "remove message": lambda: RemoveMessage(id="h"),
    "message with extra fields": lambda: HumanMessage("hi", id="h", custom={"deep": [1]}),
    "document": lambda: Document(page_content="text", metadata={"page": 1}),
    "send": lambda: Send("node", {"messages": [HumanMessage("hi", id="h")]}),
    "interrupt": lambda: (Interrupt(value={"question": "?"}, id="i"),),
    "command": lambda: Command(update={"x": 1}, goto=["a"]),
    "item": lambda: Item(
        value={"v": 1},
        key="k",
        namespace=("n",),
        created_at=datetime(2025, 1, 2),
        updated_at=datetime(2025, 1, 2),
    ),
    "snapshot of a list": lambda: _DeltaSnapshot([HumanMessage("hi", id="h"), 1]),
    "snapshot of a map": lambda: _DeltaSnapshot({"a.txt": {"content": ["line"]}}),
    "snapshot of a text": lambda: _DeltaSnapshot("text"),
    "list with snapshot": lambda: [_DeltaSnapshot([1]), [_DeltaSnapshot([2])]],
    "messages": lambda: [
        HumanMessage("hi", id="h"),
        _tool_call(1),
        ToolMessage("r", tool_call_id="c1", id="t"),
    ],
    "mixed list": lambda: [
        None,
        True,
        1,
        1.0,
        "1",
        b"1",
        (1,),
        {1},
        Point(1),
        Colour.RED,
        Decimal(1),
        [],
        {},
    ],
    "equal but of other types": lambda: [1, True, 1.0, 0, False, 0.0, -0.0, "", b"", [], {}],
    "same object twice": lambda: [shared := {"k": [1]}, shared, [shared]],
    "int keys": lambda: {1: "a", 2: {3: "b"}},
    "keys of many types": lambda: {1: "int", "1": "text", None: 0, 2.5: [], False: "bool"},
    "date keys": lambda: {date(2025, 1, 2): 1, UUID(int=1): 2},
    "many keys": lambda: {f"key {n}": [n] for n in range(5_000)},
    "deeply nested": lambda: _nested(200),
    "lists in lists": lambda: [[[[n, [n]] for n in range(10)] for _ in range(10)] for _ in range(10)],
    "file map": lambda: {f"/notes/{n}.md": {"content": ["line"] * n, "created_at": "now"} for n in range(30)},
}


@pytest.fixture
def calls(request: pytest.FixtureRequest, saver: BaseCheckpointSaver[str]) -> Calls:
    """One spelling for each saver, since how a value is stored does not depend on it."""
    return Calls(saver, asynchronous=request.node.callspec.params["saver"] == "memory")


class Recorder:
    """A serde that remembers every (type, bytes) pair that it was asked to load."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, bytes]] = []

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return SERDE.dumps_typed(value)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.loaded.append((data[0], bytes(data[1])))
        return SERDE.loads_typed(data)


async def assert_stored(calls: Calls, config: Any, channel: str, encoded: tuple[str, bytes]) -> None:
    """The value in this checkpoint decodes as `encoded` does, and those very bytes are what is stored."""
    found = (await calls.get_tuple(config)).checkpoint["channel_values"][channel]
    expected = SERDE.loads_typed(encoded)
    assert type(found) is type(expected)
    assert SERDE.dumps_typed(found) == SERDE.dumps_typed(expected)

    recorder = Recorder()
    before, calls.saver.serde = calls.saver.serde, recorder
    try:
        await calls.get_tuple(config)
    finally:
        calls.saver.serde = before
    assert encoded in recorder.loaded


class TestValues:
    """Every value that JsonPlusSerializer round-trips."""

    @pytest.mark.parametrize("name", VALUES)
    async def test_as_channel_value(self, calls: Calls, name: str) -> None:
        """The value comes back as the serde alone would bring it back, from the serde's own bytes."""
        value = VALUES[name]()
        stored = await calls.step(None, {"x": value, "other": 1})
        await assert_stored(calls, stored, "x", SERDE.dumps_typed(value))
        later = await calls.step(stored, {"x": value, "other": 2})
        await assert_stored(calls, later, "x", SERDE.dumps_typed(value))

    @pytest.mark.parametrize("name", VALUES)
    async def test_inside_a_growing_list(self, calls: Calls, name: str) -> None:
        """The value as an element of a changing list leaves the serde's own bytes each time."""
        value, config = VALUES[name](), None
        for grown in (
            [value],
            [value, "after"],
            ["before", value, "after"],
            [value, value],
            [{"in": value}],
            ["x"],
        ):
            config = await calls.step(config, {"x": grown})
            await assert_stored(calls, config, "x", SERDE.dumps_typed(grown))

    @pytest.mark.parametrize("name", VALUES)
    async def test_inside_a_changing_map(self, calls: Calls, name: str) -> None:
        """The value under a key, added to, moved and dropped, leaves the serde's own bytes each time."""
        value, config = VALUES[name](), None
        for changed in (
            {"k": value},
            {"k": value, "z": 1},
            {"z": 1, "k": value},
            {"z": value, "k": 1},
            {"z": 2},
        ):
            config = await calls.step(config, {"x": changed})
            await assert_stored(calls, config, "x", SERDE.dumps_typed(changed))

    @pytest.mark.parametrize("name", VALUES)
    async def test_as_write_and_seed(self, calls: Calls, name: str) -> None:
        """The value comes back as a pending write and as the seed and the writes of a delta history."""
        value = VALUES[name]()
        expected = SERDE.dumps_typed(SERDE.loads_typed(SERDE.dumps_typed(value)))
        root = await calls.step(None, {"x": value})
        await calls.put_writes(root, [("x", value), ("y", [value])], "task")
        head = await calls.step(root)
        pending = (await calls.get_tuple(root)).pending_writes
        assert SERDE.dumps_typed(pending[0][2]) == expected
        history = await calls.get_delta_channel_history(config=head, channels=["x", "y"])
        assert SERDE.dumps_typed(history["x"]["seed"]) == expected
        assert SERDE.dumps_typed(history["x"]["writes"][0][2]) == expected
        assert SERDE.dumps_typed(history["y"]["writes"][0][2]) == SERDE.dumps_typed(
            SERDE.loads_typed(SERDE.dumps_typed([value]))
        )

    async def test_all_in_one_checkpoint(self, calls: Calls) -> None:
        """All these values as channels of one checkpoint stay apart, and stay the same as it grows by one."""
        values = {name: make() for name, make in VALUES.items()}
        first = await calls.step(None, values)
        second = await calls.step(first, {**values, "one more": [1]})
        for config in (first, second):
            found = (await calls.get_tuple(config)).checkpoint["channel_values"]
            for name, value in values.items():
                expected = SERDE.loads_typed(SERDE.dumps_typed(value))
                assert SERDE.dumps_typed(found[name]) == SERDE.dumps_typed(expected), name

    async def test_every_value_after_every_other(self, calls: Calls) -> None:
        """A channel that jumps between values of all kinds shows each one at its own checkpoint."""
        order = [name for name in VALUES if name not in ("many keys", "long bytes", "long text")]
        random.Random(3).shuffle(order)
        config, stored = None, []
        for name in order:
            value = VALUES[name]()
            config = await calls.step(config, {"x": value})
            stored.append((config, SERDE.dumps_typed(value)))
        for config, encoded in stored:
            found = (await calls.get_tuple(config)).checkpoint["channel_values"]["x"]
            assert SERDE.dumps_typed(found) == SERDE.dumps_typed(SERDE.loads_typed(encoded))


class TestListLengths:
    """Lists whose msgpack header changes its width."""

    @pytest.mark.parametrize("length", [0, 1, 14, 15, 16, 17])
    async def test_across_the_boundary(self, calls: Calls, length: int) -> None:
        """A list grown over a boundary, edited there and cut back, is stored as the serde encodes it."""
        items: list[Any] = [f"{n:05}" for n in range(length)]
        config = None
        for value in (
            items,
            [*items, "one more"],
            [*items, "one more", {"and": "another"}],
            ["in front", *items],
            [*items[: length // 2], ["edited"], *items[length // 2 + 1 :]],
            items[:-1],
            items,
        ):
            config = await calls.step(config, {"x": value})
            await assert_stored(calls, config, "x", SERDE.dumps_typed(value))

    @pytest.mark.parametrize("length", [65_535, 65_536])
    async def test_across_the_wide_boundary(self, calls: Calls, length: int) -> None:
        """The same holds where the header is widest."""
        items: list[Any] = [f"{n:05}" for n in range(length)]
        config = None
        for value in (items, [*items, "one more"], items[1:]):
            config = await calls.step(config, {"x": value})
            await assert_stored(calls, config, "x", SERDE.dumps_typed(value))

    @pytest.mark.parametrize("length", [14, 15, 16, 17])
    async def test_messages_across_the_boundary(self, calls: Calls, length: int) -> None:
        """The same holds for lists of messages, whole and inside a delta snapshot."""
        messages = [_tool_call(n) for n in range(length)]
        config = None
        for value in (messages, [*messages, _tool_call(99)], messages[1:], [*messages[1:], _tool_call(100)]):
            config = await calls.step(config, {"x": value, "s": _DeltaSnapshot(value)})
            await assert_stored(calls, config, "x", SERDE.dumps_typed(value))
            await assert_stored(calls, config, "s", SERDE.dumps_typed(_DeltaSnapshot(value)))

    @pytest.mark.parametrize("length", [15, 16, 65_535])
    async def test_maps_across_the_boundary(self, calls: Calls, length: int) -> None:
        """The same holds for maps."""
        entries = {f"{n:05}": n for n in range(length)}
        config = None
        for value in (entries, {**entries, "one more": 1}, dict(list(entries.items())[1:]), entries):
            config = await calls.step(config, {"x": value})
            await assert_stored(calls, config, "x", SERDE.dumps_typed(value))

    @pytest.mark.parametrize("size", [31, 32, 255, 256, 65_535, 65_536, 1 << 20])
    async def test_element_sizes(self, calls: Calls, size: int) -> None:
        """Elements whose own header changes its width are stored as the serde encodes them."""
        config, value = None, []
        for element in ("a" * size, b"b" * size, {"k": "c" * size}, Point(size, ["d" * size])):
            value = [*value, element]
            config = await calls.step(config, {"x": value})
            await assert_stored(calls, config, "x", SERDE.dumps_typed(value))


class PickleSerde:
    """Bytes that are no msgpack at all."""

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return "pickle", pickle.dumps(value)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        assert data[0] == "pickle"
        return pickle.loads(data[1])


class JsonSerde:
    """JSON text."""

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return "json", json.dumps(value).encode()

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        assert data[0] == "json"
        return json.loads(data[1])


class Impostor:
    """Claims the type "msgpack" for bytes that are an array header and then pickle."""

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return "msgpack", b"\x93" + pickle.dumps(value)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        assert data[0] == "msgpack"
        return pickle.loads(bytes(data[1])[1:])


class Salted:
    """Makes other bytes of the same value each time, as a cipher does."""

    def __init__(self) -> None:
        self.random = random.Random(5)

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return "salted", self.random.randbytes(8) + pickle.dumps(value)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(data[1][8:])


class Untyped:
    """The older form of a serde, with `dumps` and `loads` only."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class Subclass(JsonPlusSerializer):
    """JsonPlusSerializer with an encoding of its own for one type."""

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        if isinstance(value, list):
            return "a list", pickle.dumps(value)
        return super().dumps_typed(value)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(data[1]) if data[0] == "a list" else super().loads_typed(data)


SERDES: dict[str, Callable[[], Any]] = {
    "pickle": PickleSerde,
    "json": JsonSerde,
    "claims msgpack": Impostor,
    "salted": Salted,
    "untyped": Untyped,
    "subclass": Subclass,
    "pickle fallback": lambda: JsonPlusSerializer(pickle_fallback=True),
    "encrypted": lambda: EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef"),
    "encrypted pickle": lambda: EncryptedSerializer.from_pycryptodome_aes(serde=PickleSerde(), key=b"k" * 32),
}


def with_serde(saver: BaseCheckpointSaver[str], serde: Any) -> BaseCheckpointSaver[str]:
    """A saver like this one, constructed with `serde`; ours shares the log."""
    if isinstance(saver, StepwellSaver):
        return StepwellSaver(saver.log, serde=serde)
    return InMemorySaver(serde=serde)


class TestSerdes:
    """Serdes other than the default one."""

    @pytest.mark.parametrize("name", SERDES)
    async def test_given_at_construction(self, calls: Calls, name: str) -> None:
        """Values, writes and histories go through the serde that the saver was made with."""
        calls = Calls(with_serde(calls.saver, SERDES[name]()), asynchronous=calls.asynchronous)
        config, stored = None, []
        for number in range(20):
            value = {
                "list": [[n] for n in range(number)],
                "map": {f"k{n}": n for n in range(number)},
                "none": None,
            }
            config = await calls.step(config, value)
            await calls.put_writes(config, [("d", [number]), ("list", number)], "task")
            stored.append((config, value))
        for config, value in stored:
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == value
        found = await calls.list(config_of())
        assert [each.checkpoint["channel_values"] for each in found] == [value for _, value in reversed(stored)]
        history = await calls.history(config_of(), "d", "list")
        assert [value for _, _, value in history["d"]["writes"]] == [[n] for n in range(19)]
        assert history["list"] == {"writes": [("task", "list", 18)], "seed": [[n] for n in range(18)]}

    @pytest.mark.parametrize("name", SERDES)
    async def test_set_afterwards(self, calls: Calls, name: str) -> None:
        """A serde set on a saver in use is honoured from the next call on."""
        calls.saver.serde = SERDES[name]()
        if name == "untyped":
            calls.saver.serde = with_serde(calls.saver, Untyped()).serde
        first = await calls.step(None, {"x": [1, {"k": "v"}]})
        second = await calls.step(first, {"x": [1, {"k": "v"}, 2]})
        assert (await calls.get_tuple(first)).checkpoint["channel_values"] == {"x": [1, {"k": "v"}]}
        assert (await calls.get_tuple(second)).checkpoint["channel_values"] == {"x": [1, {"k": "v"}, 2]}

    async def test_honoured_at_once(self, calls: Calls) -> None:
        """Each put stores the bytes of the serde set just before it, though the objects are the same."""
        plain = calls.saver.serde
        value = [{"n": n} for n in range(20)]
        first = await calls.step(None, {"x": value})
        calls.saver.serde = both = Both()
        second = await calls.step(first, {"x": value})
        await calls.put_writes(second, [("x", value)], "task")
        calls.saver.serde = plain
        third = await calls.step(second, {"x": [*value, "more"]})

        calls.saver.serde = both
        for config, shows, encoded in (
            (first, value, SERDE.dumps_typed(value)),
            (second, value, ("pickle", pickle.dumps(value))),
            (third, [*value, "more"], SERDE.dumps_typed([*value, "more"])),
        ):
            both.loaded.clear()
            assert (await calls.get_tuple(config)).checkpoint["channel_values"]["x"] == shows
            assert encoded in both.loaded
        both.loaded.clear()
        assert (await calls.get_tuple(second)).pending_writes == [("task", "x", value)]
        assert ("pickle", pickle.dumps(value)) in both.loaded

    async def test_loading_is_honoured_at_once(self, calls: Calls) -> None:
        """Each load goes through the serde set just before it, however recently the value was put or read."""
        stored = await calls.step(None, {"x": [1]})
        await calls.get_tuple(stored)
        plain, calls.saver.serde = calls.saver.serde, Shouting()
        assert (await calls.get_tuple(stored)).checkpoint["channel_values"] == {"x": "LOADED"}
        assert (await calls.list(config_of()))[0].checkpoint["channel_values"] == {"x": "LOADED"}
        calls.saver.serde = plain
        assert (await calls.get_tuple(stored)).checkpoint["channel_values"] == {"x": [1]}

    async def test_serde_that_fails_to_load(self, calls: Calls) -> None:
        """An error of the serde reaches the caller as it is, and the next call works."""
        stored = await calls.step(None, {"x": [1]})
        plain, calls.saver.serde = calls.saver.serde, Failing()
        with pytest.raises(struct.error, match="no lists"):
            await calls.get_tuple(stored)
        calls.saver.serde = plain
        assert (await calls.get_tuple(stored)).checkpoint["channel_values"] == {"x": [1]}

    async def test_encrypted_with_another_key(self, calls: Calls) -> None:
        """A value stored through a cipher cannot be read with another key."""
        calls.saver.serde = EncryptedSerializer.from_pycryptodome_aes(key=b"a" * 16)
        stored = await calls.step(None, {"x": ["secret"]})
        calls.saver.serde = EncryptedSerializer.from_pycryptodome_aes(key=b"b" * 16)
        with pytest.raises(ValueError, match="MAC check failed"):
            await calls.get_tuple(stored)
        calls.saver.serde = EncryptedSerializer.from_pycryptodome_aes(key=b"a" * 16)
        assert (await calls.get_tuple(stored)).checkpoint["channel_values"] == {"x": ["secret"]}

    async def test_encryption_added_later(self, calls: Calls) -> None:
        """A thread begun in the clear goes on encrypted, and both parts are read."""
        first = await calls.step(None, {"x": [{"n": 1}]})
        calls.saver.serde = EncryptedSerializer.from_pycryptodome_aes(key=b"a" * 16)
        second = await calls.step(first, {"x": [{"n": 1}, {"n": 2}]})
        assert (await calls.get_tuple(first)).checkpoint["channel_values"] == {"x": [{"n": 1}]}
        assert (await calls.get_tuple(second)).checkpoint["channel_values"] == {"x": [{"n": 1}, {"n": 2}]}


class Failing(JsonPlusSerializer):
    """Cannot load a list."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        value = super().loads_typed(data)
        if isinstance(value, list):
            raise struct.error("no lists")
        return value


class Both:
    """Dumps as pickle, loads pickle and msgpack, and remembers what it loaded."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, bytes]] = []

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return "pickle", pickle.dumps(value)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.loaded.append((data[0], bytes(data[1])))
        return pickle.loads(data[1]) if data[0] == "pickle" else SERDE.loads_typed(data)


class Shouting(JsonPlusSerializer):
    """Loads every list as one word."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        value = super().loads_typed(data)
        return "LOADED" if isinstance(value, list) else value


class TestAllowlist:
    """`with_allowlist`."""

    async def test_clone(self, calls: Calls) -> None:
        """The clone revives the types allowed to it, shares the log, and leaves the original strict."""
        calls.saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
        clone = calls.saver.with_allowlist([(Point.__module__, Point.__name__)])
        assert type(clone) is type(calls.saver)
        assert clone is not calls.saver
        cloned = Calls(clone, asynchronous=calls.asynchronous)

        stored = await calls.step(None, {"x": Point(1, ["a"])})
        assert (await cloned.get_tuple(stored)).checkpoint["channel_values"] == {"x": Point(1, ["a"])}
        assert (await calls.get_tuple(stored)).checkpoint["channel_values"] == {"x": {"x": 1, "tags": ["a"]}}

        later = await cloned.step(stored, {"x": Point(2)})
        await cloned.put_writes(later, [("x", Point(3))], "task")
        assert (await calls.get_tuple(config_of())).config == later
        assert (await cloned.get_tuple(later)).pending_writes == [("task", "x", Point(3))]
        await calls.delete_thread("thread")
        assert await cloned.list(None) == []

    async def test_nothing_to_add(self, calls: Calls) -> None:
        """A clone of a saver that allows every type already stores and finds as the original does."""
        cloned = Calls(calls.saver.with_allowlist([("a", "B")]), asynchronous=calls.asynchronous)
        stored = await cloned.step(None, {"x": Point(1)})
        assert (await calls.get_tuple(stored)).checkpoint["channel_values"] == {"x": Point(1)}
