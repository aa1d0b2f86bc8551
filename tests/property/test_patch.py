"""The laws that the engine stands on: parse, diff, apply and compose, byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from property.payloads import DELTA_SNAPSHOT, histories, maps, pack, payloads, snapshot
from stepwell.patch import (
    Array,
    Blob,
    Content,
    Joined,
    Map,
    Merge,
    New,
    Patch,
    Ref,
    Splice,
    Value,
    apply,
    compose,
    compose_merges,
    diff,
    diff_entries,
    map_pieces,
    merge_entries,
    parse,
    parse_entry,
    payload_of,
)


def unread(ref: Ref) -> bytes:
    """Stands for content that nobody may look at."""
    raise AssertionError(f"{ref} was read")


def bytes_of(value: Value | Patch, read: Callable[[Ref], bytes] = unread) -> bytes:
    """The payload behind a value."""
    assert isinstance(value, Blob | Array | Map)
    return payload_of(value, read)


class Held:
    """Content moved out of patches, each behind references of its own.

    Args:
        joined: Leave some bytes of each content where they are, between references to the others.
    """

    def __init__(self, *, joined: bool = False) -> None:
        self._joined = joined
        self._contents: list[bytes] = []

    def refer(self, patch: Patch) -> Patch:
        """The same patch with all its content behind references."""
        return map_pieces(patch, self._put, lambda piece: (New(piece.lengths, self._put(piece.content)),))

    def _put(self, content: Content) -> Content:
        assert isinstance(content, bytes)
        if not self._joined or len(content) < 4:
            return self._refer(content)
        one, two, three = (len(content) * part // 4 for part in (1, 2, 3))
        first, second = self._refer(content[one:two]), self._refer(content[two:three])
        return Joined((content[:one], first, second, content[three:]))

    def _refer(self, content: bytes) -> Ref:
        self._contents.append(b"before" + content + b"after")
        return Ref(len(self._contents), len(b"before"), len(content))

    def read(self, ref: Ref) -> bytes:
        """What a reference, or a part of it, stands for."""
        whole = self._contents[ref.sequence - 1]
        assert len(b"before") <= ref.start <= ref.start + ref.length <= len(whole) - len(b"after")
        return whole[ref.start : ref.start + ref.length]


# --- values ---


@given(payloads())
def test_parse_restores(payload: bytes) -> None:
    """Whatever a payload is, parsing it and writing it out gives the same bytes and the same type."""
    value = parse("msgpack", payload)
    assert bytes_of(value) == payload
    assert value.type == "msgpack"
    assert bytes_of(parse_entry(payload)) == payload


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x9f", b"\xdc\x00\x10", b"\x8f", b"\xde\x00\x10", b"\xc8"]))
def test_parse_restores_any_bytes(payload: bytes, start: bytes) -> None:
    """Bytes that are no msgpack, even if they begin like it, come back too."""
    assert bytes_of(parse("", start + payload)) == start + payload


@given(st.lists(st.text(min_size=20), min_size=4), st.dictionaries(st.text(), st.binary(min_size=40), min_size=2))
def test_structure_is_found(elements: list[str], entries: dict[str, bytes]) -> None:
    """Arrays whose elements are worth it and maps with text keys are taken apart, wrapped ones too."""
    for content, shape in ((elements, Array), (entries, Map)):
        plain, wrapped = parse("", pack(content)), parse("", snapshot(pack(content)))
        assert isinstance(plain, shape)
        assert isinstance(wrapped, shape)
        assert (plain.wrapped, wrapped.wrapped) == (False, True)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 31, 32, 255, 256, 65535, 65536])
def test_sizes_of_headers(count: int) -> None:
    """Arrays, maps and keys are restored on both sides of each size at which their header changes."""
    element = "a text of twenty-five bytes"
    for value in ([element] * count, {str(n): element for n in range(count)}, {"k" * count: element * 9}):
        payload = msgspec.msgpack.encode(value)
        for whole in (payload, snapshot(payload)):
            value_ = parse("", whole)
            assert bytes_of(value_) == whole
            assert isinstance(value_, Blob) == (len(payload) < 64)


def header(form: int, count: int, width: str) -> bytes:
    """A msgpack header of the given width, which may be longer than needed."""
    return bytes((form,)) + struct.pack(">" + width, count)


ELEMENT = msgspec.msgpack.encode("a text of some twenty bytes")
KEY, ITEM = msgspec.msgpack.encode("key"), msgspec.msgpack.encode("a text that is long enough" * 4)


@pytest.mark.parametrize(
    "payload",
    [
        header(0xDC, 5, "H") + ELEMENT * 5,
        header(0xDD, 5, "I") + ELEMENT * 5,
        header(0xDD, 500, "I") + ELEMENT * 500,
        header(0xDD, 2**32 - 1, "I") + ELEMENT * 5,
        header(0xDC, 5, "H") + ELEMENT * 4,
        b"\x95" + ELEMENT * 6,
        b"\x95" + ELEMENT * 4 + b"\xc1" * 30,
        header(0xDE, 1, "H") + KEY + ITEM,
        header(0xDF, 1, "I") + KEY + ITEM,
        header(0xDF, 2**32 - 1, "I") + KEY + ITEM,
        b"\x82" + KEY + ITEM + KEY + ITEM,
        b"\x81" + b"\xd9\x03key" + ITEM,
        b"\x81" + b"\xc4\x20" + b"k" * 32 + ITEM,
        b"\x81" + b"\xc4\x03key" + ITEM,
        b"\x81" + b"\x01" + ITEM,
        b"\x81" + b"\xa2\xff\xfe" + ITEM,
        b"\x81" + b"\xa3\xed\xa0\x80" + ITEM,
        b"\x82" + KEY + ITEM + b"\x01" + ITEM,
        b"\x81" + KEY + ITEM + b"\x00",
        b"\x82" + KEY + ITEM + KEY,
        bytes((0xC8,)) + struct.pack(">HB", 5 * len(ELEMENT) + 1, DELTA_SNAPSHOT) + b"\x95" + ELEMENT * 5,
        bytes((0xC7,)) + struct.pack(">BB", 5 * len(ELEMENT) + 1, 8) + b"\x95" + ELEMENT * 5,
        bytes((0xC7,)) + struct.pack(">BB", 5 * len(ELEMENT), DELTA_SNAPSHOT) + b"\x95" + ELEMENT * 5,
    ],
)
def test_other_forms_stay_whole(payload: bytes) -> None:
    """A form that another encoder could choose, a key that stands twice, or a lie is kept as it came."""
    assert len(payload) >= 64
    assert parse("t", payload) == Blob("t", payload)


def test_deep_nesting() -> None:
    """Nesting deeper than any stack is kept as it came."""
    for payload in (b"\x91" * 200_000 + b"\xc0", b"\x81\xa1k" * 200_000 + b"\xc0", b"\x93" * 3000):
        assert bytes_of(parse("", payload)) == payload


@given(maps)
def test_depth_of_structure(entries: dict[str, Any]) -> None:
    """Maps in maps are restored however deep they go."""
    value: Any = {**entries, "text": "of sixty-four bytes or more, so that it is worth taking it apart"}
    for level in range(12):
        value = {"level": level, "inner": value, **entries}
        payload = pack(value)
        assert bytes_of(parse("", payload)) == payload


# --- diff and apply ---


@given(payloads(), payloads())
def test_diff_then_apply(old: bytes, new: bytes) -> None:
    """The patch between any two payloads turns the one into the other, byte for byte."""
    before, after = parse("t", old), parse("t", new)
    patch = diff(before, after)
    assert bytes_of(before if patch is None else apply(patch, before)) == new


@given(histories(2, 2))
def test_diff_then_apply_edits(history: list[bytes]) -> None:
    """The patch for a realistic edit turns the old payload into the new one, there and back."""
    old, new = history
    before, after = parse("t", old), parse("t", new)
    for one, other, payload in ((before, after, new), (after, before, old)):
        patch = diff(one, other)
        assert (patch is None) == (old == new)
        assert bytes_of(one if patch is None else apply(patch, one)) == payload


@given(payloads(), payloads())
def test_diff_of_types(old: bytes, new: bytes) -> None:
    """A change of type is kept, even where the payload stays."""
    for payload in (old, new):
        patch = diff(parse("t", old), parse("u", payload))
        assert patch is not None
        value = apply(patch, parse("t", old))
        assert (bytes_of(value), value.type) == (payload, "u")


@given(histories(3, 6))
def test_diff_of_what_was_patched(history: list[bytes]) -> None:
    """A value that patches have made is as good to compare with as one that was parsed."""
    value = parse("t", history[0])
    for payload in history[1:]:
        patch = diff(value, parse("t", payload))
        value = value if patch is None else apply(patch, value)
        assert bytes_of(value) == payload


@given(histories(2, 2))
def test_apply_leaves_the_old_value(history: list[bytes]) -> None:
    """Applying a patch changes neither the old value nor the patch."""
    before, after = (parse("t", payload) for payload in history)
    patch = diff(before, after)
    assume(patch is not None)
    assert patch is not None
    encoded = msgspec.msgpack.encode(patch)
    apply(patch, before)
    assert bytes_of(before) == history[0]
    assert msgspec.msgpack.encode(patch) == encoded


def test_an_append_is_small() -> None:
    """What is appended to a list, or changed in a map, is all that the patch holds."""
    old = [f"message {n} " * 20 for n in range(1000)]
    patch = diff(parse("", pack(old)), parse("", pack([*old, "the new one"])))
    assert len(msgspec.msgpack.encode(patch)) < 40
    entries = {str(n): "text " * 20 for n in range(1000)}
    patch = diff(parse("", pack(entries)), parse("", pack({**entries, "500": "changed", "new": "entry"})))
    assert len(msgspec.msgpack.encode(patch)) < 60


@given(st.lists(st.integers(0, 30), min_size=5, max_size=60), st.data())
def test_elements_of_the_old_list_are_kept(numbers: list[int], data: st.DataObject) -> None:
    """However the elements of a list are moved, dropped and repeated, no patch holds one of them again."""
    old = [f"element number {number}" for number in numbers]
    new = data.draw(st.lists(st.sampled_from(old), min_size=5, max_size=60))
    patch = diff(parse("", pack(old)), parse("", pack(new)))
    assert patch is None or (isinstance(patch, Splice) and not any(isinstance(piece, New) for piece in patch.pieces))


# --- compose ---


def patches(history: list[bytes]) -> tuple[Value, list[Patch]]:
    """The value at the first step and the patches to the following ones, all content as bytes."""
    values = [parse("t", payload) for payload in history]
    found = (diff(old, new) for old, new in pairwise(values))
    return values[0], [patch for patch in found if patch is not None]


@given(histories(3, 7), st.data())
def test_compose_laws(history: list[bytes], data: st.DataObject) -> None:
    """A run of patches composed in any grouping does what they do one after the other."""
    start, run = patches(history)
    assume(run)
    composed = list(run)
    while len(composed) > 1:
        place = data.draw(st.integers(0, len(composed) - 2))
        composed[place : place + 2] = [compose(composed[place], composed[place + 1])]
    assert bytes_of(apply(composed[0], start)) == history[-1]


@given(histories(3, 7), st.data(), st.booleans())
def test_compose_and_apply_read_nothing(history: list[bytes], data: st.DataObject, joined: bool) -> None:
    """Patches compose and apply with all their content behind references, cut and joined ones included."""
    held = Held(joined=joined)
    start, run = patches(history)
    assume(run)
    composed = [held.refer(patch) for patch in run]
    while len(composed) > 1:
        place = data.draw(st.integers(0, len(composed) - 2))
        composed[place : place + 2] = [compose(composed[place], composed[place + 1])]
    referred = held.refer(start)
    assert isinstance(referred, Blob | Array | Map)
    assert bytes_of(apply(composed[0], referred), held.read) == history[-1]


@given(histories(3, 3))
def test_compose_leaves_its_patches(history: list[bytes]) -> None:
    """Composing changes neither of the two patches."""
    _, run = patches(history)
    assume(len(run) == 2)
    encoded = [msgspec.msgpack.encode(patch) for patch in run]
    compose(*run)
    assert [msgspec.msgpack.encode(patch) for patch in run] == encoded


@given(st.lists(st.tuples(histories(6, 6), st.sets(st.integers(0, 5))), min_size=1, max_size=4), st.data())
def test_channels_compose(channels: list[tuple[list[bytes], set[int]]], data: st.DataObject) -> None:
    """Merges of whole states, in which channels come and go, compose in any grouping."""
    states: list[dict[str, Value]] = []
    for number in range(6):
        present = {str(i): parse("t", h[number]) for i, (h, gone) in enumerate(channels) if number not in gone}
        states.append(present)
    held = Held()
    run = [diff_entries(old, new) or Merge() for old, new in pairwise(states)]
    state = states[0]
    for merge, expected in zip(run, states[1:], strict=True):
        state = merge_entries(merge, state)
        assert {k: bytes_of(v) for k, v in state.items()} == {k: bytes_of(v) for k, v in expected.items()}
    composed = [held.refer(merge) for merge in run]
    while len(composed) > 1:
        place = data.draw(st.integers(0, len(composed) - 2))
        first, second = composed[place : place + 2]
        assert isinstance(first, Merge)
        assert isinstance(second, Merge)
        composed[place : place + 2] = [compose_merges(first, second)]
    assert isinstance(composed[0], Merge)
    state = merge_entries(composed[0], states[0])
    expected = states[-1]
    assert {k: bytes_of(v, held.read) for k, v in state.items()} == {k: bytes_of(v) for k, v in expected.items()}
