"""What a checkpoint changes, found in bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell.patch import Keep, Map, Ref, Splice, apply, merge_entries, parse, payload_of
from stepwell_langgraph.sources import Place, parents_first
from stepwell_langgraph.tip import Known, moved_all
from stepwell_langgraph.whole import Span, Typed

SERDE = JsonPlusSerializer()
elements = st.integers(0, 300) | st.text(max_size=40) | st.lists(st.integers(0, 9), max_size=3)
lists = st.lists(elements, max_size=40)


def read(ref: Ref) -> bytes:
    raise AssertionError("there are no references")


def typed(value: Any) -> Typed:
    type_, payload = SERDE.dumps_typed(value)
    # As within a checkpoint: something before, something after.
    return type_, Span(b"before" + payload + b"after", 6, 6 + len(payload))


@given(st.lists(st.one_of(lists, st.dictionaries(st.text(), elements)), min_size=2, max_size=6))
def test_patches_lead_from_value_to_value(values: list[Any]) -> None:
    """One after the other, the patches turn each value into the next, byte for byte."""
    type_, span = typed(values[0])
    stored: Any = parse(type_, span.copy())
    known = Known(type_, span, stored)
    for value in values[1:]:
        patch, known = known.moved(typed(value))
        stored = stored if patch is None else apply(patch, stored)
        assert payload_of(stored, read) == SERDE.dumps_typed(value)[1]


@given(lists, st.lists(st.lists(elements, max_size=20), max_size=5))
def test_lists_that_grow(first: list[Any], more: list[list[Any]]) -> None:
    """Lists that only grow, over the lengths at which their header changes too."""
    value = ["x" * 20] * 10 + first
    stored: Any = parse("msgpack", SERDE.dumps_typed(value)[1])
    known = Known(*typed(value), stored)
    for added in more:
        value = value + added
        patch, known = known.moved(typed(value))
        stored = stored if patch is None else apply(patch, stored)
        assert payload_of(stored, read) == SERDE.dumps_typed(value)[1]


def test_an_append_keeps_all_that_was_there() -> None:
    """Of a list that grew only what is new is in the patch, across the lengths at which the header changes."""
    for count in (14, 15, 16, 65534, 65535, 65536):
        value = ["message number " + "x" * 20] * count
        known = Known(*typed(value))
        assert known.value
        patch, known = Known(*typed(value), known.value).moved(typed([*value, "new", "newer"]))
        assert isinstance(patch, Splice)
        assert patch.pieces[0] == Keep(0, count)
        assert len(patch.pieces) == 2


@pytest.mark.parametrize("rest", [b"", b"\xff", b"\xa5ab", b"\xa1a\xa1b\xa1c"])
def test_elements_that_do_not_add_up_are_no_append(rest: bytes) -> None:
    """A list that says another number of elements than it holds is stored as the bytes that it is."""
    value = ["message number " + "x" * 20] * 5
    before = SERDE.dumps_typed(value)[1]
    after = b"\x97" + before[1:] + rest
    patch, known = Known(*typed(value), parse("msgpack", before)).moved(("msgpack", Span.of(after)))
    assert patch is not None
    assert payload_of(apply(patch, parse("msgpack", before)), read) == after
    assert known.span.copy() == after


def test_names_that_come_stay_and_go() -> None:
    """Names that are not given any more are dropped, unless the source says that they did not change."""
    before: dict[str, Known] = {}
    merge, known = moved_all(before, {"a": typed("1"), "b": typed("2"), "c": typed("3")})
    stored = merge_entries(merge, {})
    merge, known = moved_all(known, {"a": typed("1"), "d": typed("4")}, frozenset("b"))
    assert merge.drop == ("c",)
    assert set(merge.changes) == {"d"}
    stored = merge_entries(merge, stored)
    whole = Map("msgpack", False, stored)
    assert SERDE.loads_typed(("msgpack", payload_of(whole, read))) == {"a": "1", "b": "2", "d": "4"}
    assert known.keys() == {"a", "b", "d"}


def test_parents_come_first() -> None:
    """Places keep their order, but for those that stand before their parent; loops end."""
    a, b, c = Place("", "a", None), Place("", "b", "a"), Place("", "c", "b")
    other = Place("sub", "b", "a")
    orphan = Place("", "z", "not there")
    assert [*parents_first([c, orphan, a, other, b])] == [a, b, c, orphan, other]
    one, two = Place("", "1", "2"), Place("", "2", "1")
    itself = Place("", "3", "3")
    assert {*parents_first([one, two, itself])} == {one, two, itself}
