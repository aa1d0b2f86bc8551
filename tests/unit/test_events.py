"""The event types."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from building import step
from stepwell import Event, Write
from stepwell import format as fmt
from stepwell.patch import Blob

TYPES = get_args(Event)


def test_kinds() -> None:
    """Each event type has a kind of its own, and each kind a type."""
    kinds = {value for name, value in vars(fmt).items() if name.startswith("KIND_")}
    assert sorted(type_.__struct_config__.tag for type_ in TYPES) == sorted(kinds)
    assert len(kinds) == len(TYPES) == 11


@pytest.mark.parametrize("type_", TYPES)
def test_immutable(type_: type[msgspec.Struct]) -> None:
    """An event cannot be changed."""
    assert type_.__struct_config__.frozen
    assert Write.__struct_config__.frozen


def test_compares_by_content() -> None:
    """Two events with the same content are equal."""
    assert step("s", {"x": b"1"}) == step("s", {"x": b"1"})
    assert step("s", {"x": b"1"}) != step("s", {"x": b"2"})
    assert Write(0, "x", Blob("text", b"1")) == Write(0, "x", Blob("text", b"1"))
