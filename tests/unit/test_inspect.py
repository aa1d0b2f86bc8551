"""A log from a stranger shows what it holds, runs nothing, and does nothing to a terminal."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import ipaddress
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import uuid
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Interrupt, Overwrite, Send
from pydantic import BaseModel

from stepwell import inspect
from stepwell.inspect import DEEPEST, Opaque, Typed, decode, encode, equal, safe_text, summary, to_json


class Mood(enum.Enum):
    CALM = "calm"


@dataclasses.dataclass
class Budget:
    limit: decimal.Decimal


class Plan(BaseModel):
    title: str
    steps: dict[str, list[int]]


Point = collections.namedtuple("Point", "x y")
HERE = __name__


def stored(value: Any) -> Any:
    """A value as LangGraph stores it, shown as data."""
    return decode(*JsonPlusSerializer().dumps_typed(value))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (1 << 60, 1 << 60),
        (1.5, 1.5),
        ("text", "text"),
        (b"bytes", b"bytes"),
        (bytearray(b"bytes"), Typed("builtins.bytearray", {"value": b"bytes"})),
        ([1, (2, 3)], [1, [2, 3]]),
        ({"a": {1: None}}, {"a": {1: None}}),
        (Mood.CALM, Typed(f"{HERE}.Mood", {"value": "calm"})),
        (
            Budget(decimal.Decimal("1.5")),
            Typed(f"{HERE}.Budget", {"limit": Typed("decimal.Decimal", {"value": "1.5"})}),
        ),
        (Plan(title="t", steps={"a": [1]}), Typed(f"{HERE}.Plan", {"title": "t", "steps": {"a": [1]}})),
        (Point(1, 2), Typed(f"{HERE}.Point", {"x": 1, "y": 2})),
        (Send("node", {"x": 1}), Typed("langgraph.types.Send", {"node": "node", "arg": {"x": 1}})),
        ({3, 1, 2}, Typed("builtins.set", {"value": [1, 2, 3]})),
        (frozenset("ab"), Typed("builtins.frozenset", {"value": ["a", "b"]})),
        (collections.deque([1]), Typed("collections.deque", {"value": [1]})),
        (uuid.UUID(int=1), Typed("uuid.UUID", {"value": "0" * 31 + "1"})),
        (pathlib.Path("/a/b"), Typed("pathlib.PosixPath", {"value": "/a/b"})),
        (re.compile("a+", re.I), Typed("re.Pattern", {"pattern": "a+", "flags": 34})),
        (dt.datetime(2024, 2, 29, tzinfo=dt.UTC), Typed("datetime.datetime", {"value": "2024-02-29T00:00:00+00:00"})),
        (dt.date(2024, 2, 9), Typed("datetime.date", {"value": "2024-02-09"})),
        (dt.timedelta(1, 2, 3), Typed("datetime.timedelta", {"days": 1, "seconds": 2, "microseconds": 3})),
        (zoneinfo.ZoneInfo("UTC"), Typed("zoneinfo.ZoneInfo", {"value": "UTC"})),
        (ipaddress.ip_address("::1"), Typed("ipaddress.IPv6Address", {"value": "::1"})),
        (ValueError("bad"), "ValueError('bad')"),
        (
            _DeltaSnapshot([1]),
            Typed("langgraph.checkpoint.serde.types._DeltaSnapshot", {"value": [1]}),
        ),
        (Overwrite([1]), Typed("langgraph.types.Overwrite", {"value": [1], "type": "__overwrite__"})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_agent_stores_is_shown_as_data(value: Any, shown: Any) -> None:
    """Every sort of value that LangGraph's serializer takes comes out as type and fields."""
    found = stored(value)
    assert equal(found, shown)
    assert equal(stored([value]), [shown]) or isinstance(value, bytearray)


def test_messages_are_shown_with_their_fields() -> None:
    """A message is its class and its fields, tool calls and all."""
    message = AIMessage("hi", id="m1", tool_calls=[{"name": "look", "args": {"x": 1}, "id": "c1"}])
    found = stored(message)
    assert found.type == "langchain_core.messages.ai.AIMessage"
    assert found.name == "AIMessage"
    assert found.fields["tool_calls"] == [{"name": "look", "args": {"x": 1}, "id": "c1", "type": "tool_call"}]
    assert summary(found) == "AIMessage: 'hi' → look" or summary(found) == "AIMessage: hi → look"


def test_the_older_json_form_is_shown_too() -> None:
    """Values of LangChain's JSON form are objects as well, of both of its versions."""
    old = {"lc": 2, "type": "constructor", "id": ["builtins", "set"], "args": [[1]], "kwargs": {}}
    new = {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "AIMessage"], "kwargs": {"content": "x"}}
    found = decode("json", json.dumps([old, new, {"lc": 3}]).encode())
    assert found == [
        Typed("builtins.set", {"args": [[1]]}),
        Typed("langchain.schema.AIMessage", {"content": "x"}),
        {"lc": 3},
    ]


def test_paths_of_windows_are_shown_as_texts() -> None:
    """A path is shown as its system writes it."""
    inside = msgspec.msgpack.encode(["pathlib", "WindowsPath", ["c:\\", "a", "b"]])
    found = decode("msgpack", msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inside)))
    assert found == Typed("pathlib.WindowsPath", {"value": "c:\\a\\b"})


def test_a_numpy_array_is_shown_without_numpy() -> None:
    """What numpy would rebuild is shown as its parts."""
    inside = msgspec.msgpack.encode(["<i8", [2], "C", bytes(16)])
    found = decode("msgpack", msgspec.msgpack.encode(msgspec.msgpack.Ext(6, inside)))
    assert found == Typed("numpy.ndarray", {"dtype": "<i8", "shape": [2], "order": "C", "data": bytes(16)})


@pytest.mark.parametrize(
    "value",
    [[HumanMessage("x", id="1")], {"a": Send("n", Plan(title="t", steps={}))}, dt.datetime(2024, 1, 1), None, b"x", 1],
    ids=repr,
)
def test_data_are_stored_again_as_they_were(value: Any) -> None:
    """What was shown can be stored again, byte for byte."""
    type_, payload = JsonPlusSerializer().dumps_typed(value)
    assert encode(decode(type_, payload)) == (type_, payload)


@pytest.mark.parametrize(
    "value", [Opaque("x", 1, "y"), Typed("a.B", {"x": 1}), pytest.param([object()], id="an object"), 1 << 70], ids=repr
)
def test_what_cannot_be_stored_is_refused(value: Any) -> None:
    """What was never decoded, or cannot be made again, is an error and not a guess."""
    with pytest.raises(ValueError, match=r"stored|made"):
        encode(value)


# --- strangers ---


class _Trap:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, (str(self.path),)  # type: ignore[return-value]


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    """A pickle is a placeholder, wherever it stands and whatever it is called."""
    payload = pickle.dumps(_Trap(tmp_path / "made"))
    for type_ in ("pickle", "cloudpickle", "unknown"):
        found = decode(type_, payload)
        assert isinstance(found, Opaque)
        assert found.size_bytes == len(payload)
    assert decode("msgpack", msgspec.msgpack.encode([payload])) == [payload]
    assert not (tmp_path / "made").exists()


GADGETS: list[tuple[int, list[Any]]] = [
    (0, ["os", "mkdir", "{}"]),
    (0, ["builtins", "eval", "__import__('os').mkdir('{}')"]),
    (1, ["os", "mkdir", ["{}"]]),
    (1, ["subprocess", "check_call", [["mkdir", "{}"]]]),
    (2, ["os", "mkdir", {"path": "{}"}]),
    (3, ["pathlib", "Path", "{}", "mkdir"]),
    (4, ["os", "mkdir", {"path": "{}"}]),
    (5, ["os", "mkdir", {"path": "{}"}, "model_validate_json"]),
    (5, ["this", "X", {"x": 1}, "y"]),
]


@pytest.mark.parametrize(("code", "parts"), GADGETS)
def test_named_types_are_neither_imported_nor_called(code: int, parts: list[Any], tmp_path: Path) -> None:
    """Whatever class an extension names, and whatever it would be called with, is only shown."""
    text = msgspec.json.encode(parts).decode().replace("{}", str(tmp_path / "made"))
    inside = msgspec.msgpack.encode(msgspec.json.decode(text))
    before = set(sys.modules)
    found = decode("msgpack", msgspec.msgpack.encode({"x": msgspec.msgpack.Ext(code, inside)}))
    assert isinstance(found, dict)
    assert found["x"].type == f"{parts[0]}.{parts[1]}"
    assert not (tmp_path / "made").exists()
    assert set(sys.modules) == before


def nested(depth: int, kind: str) -> bytes:
    """Msgpack that is nested so deeply."""
    payload = b"\x01"
    for _ in range(depth):
        if kind == "array":
            payload = b"\x91" + payload
        elif kind == "map":
            payload = b"\x81\xa1x" + payload
        elif kind == "key":
            payload = b"\x81\x91" + payload + b"\x01" if payload == b"\x01" else b"\x91" + payload
        else:
            inside = b"\x93\xa1m\xa1n" + payload
            payload = b"\xc9" + len(inside).to_bytes(4) + b"\x00" + inside
    return payload


def depth_of(data: Any) -> int:
    """How deep data are nested, without a call for each level."""
    deepest, waiting = 0, [(data, 1)]
    while waiting:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        if isinstance(item, Typed):
            item = item.fields
        if isinstance(item, dict):
            waiting += [(each, depth + 1) for pair in item.items() for each in pair]
        elif isinstance(item, list | tuple):
            waiting += [(each, depth + 1) for each in item]
    return deepest


@pytest.mark.parametrize("kind", ["array", "map", "extension", "key"])
@pytest.mark.parametrize("depth", [DEEPEST - 10, DEEPEST + 10, 500, 5000])
def test_absurd_nesting_is_shown_as_far_as_it_makes_sense(kind: str, depth: int) -> None:
    """However deep it goes, the answer is shallow, and everything else can work with it."""
    found = decode("msgpack", nested(depth, kind))
    assert depth_of(found) <= 2 * DEEPEST + 4
    json.dumps(to_json(found))
    summary(found)
    assert equal(found, found)
    repr(found)
    if depth > 2 * DEEPEST:
        assert "nested too deeply" in repr(found)


def test_nested_json_is_no_recursion_error() -> None:
    """Brackets without end are a placeholder."""
    found = decode("json", b"[" * 100_000 + b"]" * 100_000)
    assert isinstance(found, Opaque)
    assert depth_of(decode("json", b"[" * 300 + b"]" * 300)) <= DEEPEST + 2


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\x01",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\xa2\xff\xfe",
        b"\xc1",
        b"\x01\x01",
        b"\xd4\xff\x00",
        b"\xd6\x07\xc1\xc1\xc1\xc1",
        b"\xc7\x02\x05\x92\x01",
        b"\x81\x81\x01\x02\x03",
    ],
    ids=bytes.hex,
)
def test_damaged_bytes_are_a_placeholder(payload: bytes) -> None:
    """Headers that lie, texts that are none, and ends that are missing are shown as such."""
    found = decode("msgpack", payload)
    shown = found.fields["value"] if isinstance(found, Typed) else found
    assert isinstance(shown, Opaque)
    assert shown.reason
    assert json.dumps(to_json(found))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["msgpack", "json", "text", "null", "bytes", "pickle", "", "x"]), st.binary(max_size=200))
def test_any_bytes_are_answered(type_: str, payload: bytes) -> None:
    """There are no bytes that raise, and what is shown can be told, compared and printed."""
    found = decode(type_, payload)
    json.dumps(to_json(found), allow_nan=False)
    assert equal(found, decode(type_, payload))
    assert not re.search("[\x00-\x1f\x7f-\x9f]", summary(found))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_changed_bytes_of_real_values_are_answered(data: st.DataObject) -> None:
    """Flipped and cut bytes of what agents store never raise."""
    value = [AIMessage("hi", id="1"), Send("n", {"x": {1, 2}}), Plan(title="t", steps={}), dt.date(2024, 1, 1)]
    payload = bytearray(JsonPlusSerializer().dumps_typed(value)[1])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    found = decode("msgpack", bytes(payload[: data.draw(st.integers(0, len(payload)))]))
    json.dumps(to_json(found), allow_nan=False)


def test_what_holds_too_much_is_not_shown() -> None:
    """A few kilobytes that unpack into many millions of values do not fill the memory."""
    many = b"\xdd" + (3_000_000).to_bytes(4) + bytes(3_000_000)
    assert isinstance(decode("msgpack", many, most_nodes=1_000_000), Opaque)
    rows = b"\xdd" + (40).to_bytes(4) + (b"\xdd" + (100_000).to_bytes(4) + bytes(100_000)) * 40
    found = decode("msgpack", rows, most_nodes=1_000_000)
    assert isinstance(found, Opaque)
    assert "too many" in found.reason


def test_a_large_value_is_shown_as_a_small_one_is() -> None:
    """Above a megabyte values are taken apart piece by piece, to the same data."""
    value = {"messages": [AIMessage("x" * 3000, id=str(n)) for n in range(500)], "text": "y" * 2_000_000, "n": {1: 2}}
    payload = JsonPlusSerializer().dumps_typed(_DeltaSnapshot(value))[1]
    found = decode("msgpack", payload)
    assert isinstance(found, Typed)
    shown = found.fields["value"]
    assert equal(shown["messages"][-1], stored(value["messages"][-1]))
    assert shown["text"] == value["text"]
    assert shown["n"] == {1: 2}


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J\x1b[31m",
        "\x9b31m",
        "\x07\b\r",
        "a\u202eb\u2066c\u200f",
        "\ud800",
        "\u2028",
        "\U000e0041",
        "\x00\x7f",
        "\ufeff\u200b",
    ],
    ids=ascii,
)
def test_no_control_sequence_reaches_a_terminal(text: str) -> None:
    """Escapes, directions of writing, and what is not to be seen are spelt out."""
    for shown in (safe_text(text), safe_text(text, lines=True), summary(text), summary(Typed(text, {text: [text]}))):
        assert shown.isprintable()
        shown.encode()


def test_lines_and_ordinary_text_stay() -> None:
    """Text of any language is left alone; ends of lines are kept where they are wanted."""
    text = "naïve 日本語 👩‍👩‍👧 עברית"
    assert safe_text(text) == text
    assert safe_text("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
    assert safe_text("a\nb") == "a\\nb"


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (float("nan"), {"$float": "nan"}),
        (float("-inf"), {"$float": "-inf"}),
        (b"\x00\xff", {"$bytes": "AP8="}),
        (Typed("m.C", {"x": [1]}), {"$type": "m.C", "fields": {"x": [1]}}),
        (Opaque("pickle", 3, "why"), {"$opaque": "pickle", "size_bytes": 3, "reason": "why"}),
        ({1: "a"}, {"$map": [[1, "a"]]}),
        ({"$type": "no"}, {"$map": [["$type", "no"]]}),
        ({"a": None, "b": True}, {"a": None, "b": True}),
    ],
    ids=repr,
)
def test_the_form_in_json_is_fixed(data: Any, form: Any) -> None:
    """Each sort of data has one form in JSON that no other has."""
    assert to_json(data) == form
    assert json.loads(json.dumps(form, allow_nan=False)) == form


def test_equal_looks_at_types() -> None:
    """1, 1.0 and True differ, NaN is itself, and maps have no order."""
    assert not equal(1, True)
    assert not equal([1], [1.0])
    assert equal(float("nan"), float("nan"))
    assert equal({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not equal(Typed("a", {"x": 1}), Typed("b", {"x": 1}))


def test_texts_are_found_with_their_places() -> None:
    """Every text of a value is told, keys too."""
    data = {"k": ["a", Typed("T", {"f": "b"})]}
    assert list(inspect.texts(data)) == [(("k",), "k"), (("k", 0), "a"), (("k", 1, "f"), "f"), (("k", 1, "f"), "b")]


def test_reading_a_log_imports_no_framework(tmp_path: Path) -> None:
    """Nothing of LangChain or LangGraph is imported by all that the engine offers."""
    script = (
        "import sys, stepwell; from stepwell import inspect, paths, history, naming, searching, forking\n"
        "log = stepwell.Log.open(':memory:'); thread = log.thread('t')\n"
        "x, nothing = stepwell.changes({'x': ('msgpack', b'\\x91\\x01')}), stepwell.changes({})\n"
        "thread.append([stepwell.StepCommitted('s', None, x, nothing)])\n"
        "thread.view()['x']; thread.diff(None); thread.blame('x'); str(thread.tree())\n"
        "list(thread.replay()); list(thread.grep('x')); thread.fork(); log.close()\n"
        "print([name for name in sys.modules if name.startswith(('lang', 'pydantic', 'ormsgpack'))])"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.strip() == "[]"


def test_interrupts_are_shown() -> None:
    """An interrupt is shown as the question that waits."""
    (found,) = stored((Interrupt(value={"ask": "name"}, id="i1"),))
    assert found.fields["value"] == {"ask": "name"}
