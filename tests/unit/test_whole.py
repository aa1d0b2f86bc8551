"""Checkpoints taken apart and put together, undecoded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell_langgraph.whole import NotACheckpoint, as_msgpack, put_together, take_apart, time_of

SERDE = JsonPlusSerializer()

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=20
)


def checkpoint(channels: dict[str, Any]) -> dict[str, Any]:
    return {
        "v": 4,
        "ts": "2026-01-02T03:04:05.678901+00:00",
        "id": "1f0e5d3c-0000-6000-8000-000000000000",
        "channel_values": channels,
        "channel_versions": dict.fromkeys(channels, "1"),
        "versions_seen": {},
    }


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=40), values, max_size=5))
def test_parts_decode_to_what_the_whole_held(channels: dict[str, Any]) -> None:
    """Each channel alone decodes to what it was within the checkpoint, and all together to the whole."""
    whole = SERDE.dumps_typed(checkpoint(channels))
    parts = take_apart(*whole)
    expected = SERDE.loads_typed(whole)
    found = {name: SERDE.loads_typed((type_, span.copy())) for name, (type_, span) in parts.channels.items()}
    assert found == expected.pop("channel_values")
    assert SERDE.loads_typed((parts.core[0], parts.core[1].copy())) == expected
    typed = {name: (type_, span.copy()) for name, (type_, span) in parts.channels.items()}
    again = put_together(typed, (parts.core[0], parts.core[1].copy()))
    assert again is not None
    assert again[0] == "msgpack"
    assert len(again[1]) == len(whole[1])
    assert SERDE.loads_typed(again) == SERDE.loads_typed(whole)


def test_parts_have_the_types_of_the_serializer() -> None:
    """A channel's type and bytes are those that the serializer gives the value by itself."""
    channels = {"none": None, "bytes": b"x" * 300, "text": "hello", "list": [1, None, {"a": b""}], "empty": b""}
    parts = take_apart(*SERDE.dumps_typed(checkpoint(channels)))
    for name, value in channels.items():
        type_, span = parts.channels[name]
        assert (type_, span.copy()) == SERDE.dumps_typed(value)


def test_old_checkpoints_in_json() -> None:
    """A checkpoint of the time before msgpack keeps the JSON of each channel, constructors included."""
    message = {"lc": 2, "type": "constructor", "id": ["decimal", "Decimal"], "kwargs": {}}
    whole = json.dumps(checkpoint({"amount": message, "nothing": None, "big": 10**30})).encode()
    parts = take_apart("json", whole)
    assert parts.channels["amount"][0] == "json"
    assert json.loads(parts.channels["amount"][1].copy()) == message
    assert parts.channels["nothing"][0] == "null"
    typed = {name: (type_, span.copy()) for name, (type_, span) in parts.channels.items()}
    again = put_together(typed, (parts.core[0], parts.core[1].copy()))
    assert again is not None
    assert json.loads(again[1]) == json.loads(whole)


def test_longer_forms_are_taken_apart_too() -> None:
    """A map with a longer header than it needs, as other writers make it, has the same channels."""
    type_, plain = SERDE.dumps_typed(checkpoint({"a": "x" * 50}))
    longer = b"\xde" + bytes((0, plain[0] & 0x0F)) + plain[1:]
    assert take_apart(type_, longer).channels.keys() == {"a"}
    assert take_apart(type_, longer).channels["a"][1].copy() == take_apart(type_, plain).channels["a"][1].copy()


@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        ("msgpack", b""),
        ("msgpack", b"\x93\x01\x02\x03"),
        ("msgpack", b"\x81\xa1a\x01"),
        ("msgpack", b"\x81\xaechannel_values\x01"),
        ("msgpack", SERDE.dumps_typed(checkpoint({"a": [1, 2, 3]}))[1][:-5]),
        ("msgpack", b"\x91" * 100_000),
        ("json", b"{"),
        ("json", b'{"v": 1}'),
        ("json", b'{"channel_values": []}'),
        ("json", b"[" * 100_000),
        ("json", b"\xff\xfe"),
    ],
    ids=range(11),
)
def test_what_is_no_checkpoint_is_said_to_be_none(type_: str, payload: bytes) -> None:
    """Bytes that are cut off, of another shape or absurdly nested end in one kind of error."""
    with pytest.raises(NotACheckpoint):
        take_apart(type_, payload)


@pytest.mark.parametrize("type_", ["pickle", "msgpack+aes", "something"])
def test_what_cannot_be_looked_into_stays_whole(type_: str) -> None:
    """Encrypted and pickled checkpoints are kept as the bytes that they are."""
    parts = take_apart(type_, b"cos\nsystem\n")
    assert parts.channels == {}
    assert (parts.core[0], parts.core[1].copy()) == (type_, b"cos\nsystem\n")
    assert put_together({}, (type_, b"cos\nsystem\n")) == (type_, b"cos\nsystem\n")
    assert put_together({"a": ("msgpack", b"\x01")}, (type_, b"cos\nsystem\n")) is None


def test_time_of_a_checkpoint() -> None:
    """The time that a checkpoint says, and 0 for whatever is none."""
    parts = take_apart(*SERDE.dumps_typed(checkpoint({})))
    assert time_of(parts.core) == 1767323045678901000
    assert time_of(take_apart("json", json.dumps(checkpoint({})).encode()).core) == 1767323045678901000
    for said in ("", "yesterday", 5, None, "0001-01-01T00:00:00", "9999-01-01T00:00:00"):
        assert time_of(as_msgpack({"ts": said})) == 0
    assert time_of(as_msgpack({})) == 0
    assert time_of(("pickle", as_msgpack("x")[1])) == 0


def test_plain_data_that_msgpack_cannot_hold() -> None:
    """A number too large for msgpack, or half a surrogate pair, stays JSON, which the serializer reads as well."""
    for value in ({"n": 10**30}, {"s": "\ud800"}):
        type_, span = as_msgpack(value)
        assert type_ == "json"
        assert SERDE.loads_typed((type_, span.copy())) == value
