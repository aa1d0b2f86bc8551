"""Payloads to take apart: arbitrary msgpack, in the shortest form and in others, and realistic edits of it."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import ormsgpack
from hypothesis import strategies as st

DELTA_SNAPSHOT = 7

# Keys and scalars long enough that values pass the size from which structure is looked for.
keys = st.one_of(st.text(max_size=4), st.sampled_from(["", "a", "id", "content", "k" * 31, "k" * 32, "é" * 200]))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.sampled_from(["", "word " * 20, "x" * 255, "x" * 256, b"\x93" * 70]),
)
extensions = st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=40))
objects: st.SearchStrategy[Any] = st.recursive(
    st.one_of(scalars, extensions),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=6,
)
lists = st.lists(st.one_of(st.text(min_size=10, max_size=60), objects), max_size=18)
maps = st.dictionaries(keys, st.one_of(st.text(min_size=10, max_size=60), objects), max_size=17)
structures = st.one_of(lists, maps)


def pack(value: Any) -> bytes:
    """Shortest-form msgpack, as LangGraph's serializer writes it."""
    return ormsgpack.packb(_for_ormsgpack(value), option=ormsgpack.OPT_NON_STR_KEYS)


def _for_ormsgpack(value: Any) -> Any:
    if isinstance(value, msgspec.msgpack.Ext):
        return ormsgpack.Ext(value.code, bytes(value.data))
    if isinstance(value, list):
        return [_for_ormsgpack(item) for item in value]
    if isinstance(value, dict):
        return {key: _for_ormsgpack(item) for key, item in value.items()}
    return value


def snapshot(payload: bytes) -> bytes:
    """A delta snapshot around a payload."""
    return ormsgpack.packb(ormsgpack.Ext(DELTA_SNAPSHOT, payload))


def longer_forms(value: Any, choose: Any) -> bytes:
    """msgpack with the header of each array, map and text in any form that can hold it, chosen by `choose(n)`."""
    if isinstance(value, list):
        forms = [b"\xdd" + struct.pack(">I", len(value)), b"\xdc" + struct.pack(">H", len(value))]
        forms += [bytes((0x90 | len(value),))] if len(value) < 16 else []
        return forms[choose(len(forms))] + b"".join(longer_forms(item, choose) for item in value)
    if isinstance(value, dict):
        forms = [b"\xdf" + struct.pack(">I", len(value)), b"\xde" + struct.pack(">H", len(value))]
        forms += [bytes((0x80 | len(value),))] if len(value) < 16 else []
        items = (longer_forms(key, choose) + longer_forms(item, choose) for key, item in value.items())
        return forms[choose(len(forms))] + b"".join(items)
    if isinstance(value, str):
        text = value.encode()
        forms = [b"\xdb" + struct.pack(">I", len(text)), b"\xda" + struct.pack(">H", len(text))]
        forms += [b"\xd9" + bytes((len(text),))] if len(text) < 256 else []
        forms += [bytes((0xA0 | len(text),))] if len(text) < 32 else []
        return forms[choose(len(forms))] + text
    return msgspec.msgpack.encode(value)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """A payload: msgpack of each kind, as one encoder or another writes it, or no msgpack at all."""
    form = draw(st.integers(0, 5))
    if form == 0:
        return draw(st.binary(max_size=200))
    value = draw(st.one_of(structures, structures, objects))
    if form == 1:
        payload = msgspec.msgpack.encode(value)
    elif form == 2:
        payload = longer_forms(value, lambda count: draw(st.integers(0, count - 1)))
    else:
        payload = pack(value)
    if draw(st.integers(0, 4)) == 0:
        payload = snapshot(payload)
    if draw(st.integers(0, 19)) == 0:
        # Cut, or go on after the end.
        payload = payload[: draw(st.integers(0, len(payload)))] + draw(st.binary(max_size=4))
    return payload


@st.composite
def edited(draw: st.DrawFn, value: Any, depth: int = 0) -> Any:
    """What a step could make of a value: elements or entries added, removed, moved, replaced, edited inside."""
    if isinstance(value, list):
        return draw(_edited_list(value, depth))
    if isinstance(value, dict):
        return draw(_edited_map(value, depth))
    return draw(objects)


@st.composite
def _edited_list(draw: st.DrawFn, value: list[Any], depth: int) -> list[Any]:
    new = list(value)
    for edit in draw(st.lists(st.integers(0, 8), max_size=3)):
        place = draw(st.integers(0, len(new)))
        if edit <= 2:
            new.extend(draw(st.lists(scalars, min_size=1, max_size=3)))
        elif edit == 3:
            del new[:place]
        elif edit == 4:
            new.insert(place, draw(objects))
        elif edit == 5 and new:
            other = draw(st.integers(0, len(new) - 1))
            place = min(place, len(new) - 1)
            new[place], new[other] = new[other], new[place]
        elif edit == 6 and place < len(new):
            new[place] = draw(edited(new[place], depth + 1)) if depth < 3 else None
        elif edit == 7 and place < len(new):
            del new[place]
        elif edit == 8 and new:
            new.extend(new[place:])
    return new


@st.composite
def _edited_map(draw: st.DrawFn, value: dict[str, Any], depth: int) -> dict[str, Any]:
    new = dict(value)
    for edit in draw(st.lists(st.integers(0, 5), max_size=3)):
        if edit == 0 or not new:
            new[draw(keys)] = draw(objects)
            continue
        key = draw(st.sampled_from(list(new)))
        if edit <= 2 and depth < 3:
            new[key] = draw(edited(new[key], depth + 1))
        elif edit == 3:
            del new[key]
        elif edit == 4:
            new[key] = new.pop(key)  # the same entry, now the last
        elif edit == 5:
            new = dict(reversed(new.items()))
    return new


@st.composite
def histories(draw: st.DrawFn, shortest: int = 2, longest: int = 6) -> list[bytes]:
    """Payloads of one channel at steps one after the other."""
    value = draw(st.one_of(structures, structures, objects))
    wrapped = draw(st.booleans())
    found: list[bytes] = []
    for _ in range(draw(st.integers(shortest, longest))):
        payload = pack(value)
        found.append(snapshot(payload) if wrapped else payload)
        if draw(st.integers(0, 9)) == 0:
            value = draw(structures)
        elif draw(st.integers(0, 19)) == 0:
            wrapped = not wrapped
        else:
            value = draw(edited(value))
    return found
