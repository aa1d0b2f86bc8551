"""What is too much for an event loop is told from what is not, without looking at all of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.types import Interrupt, Send

from stepwell_langgraph.weight import LIGHT_BYTES, is_light


class Array:
    """What numpy's arrays and others have."""

    nbytes = LIGHT_BYTES + 1


@dataclass(slots=True)
class Slotted:
    """What keeps its content in slots, as LangGraph's own Send does."""

    text: str
    never_assigned: int = field(init=False)


@pytest.mark.parametrize(
    "item",
    [
        "x" * (LIGHT_BYTES + 1),
        b"x" * (LIGHT_BYTES + 1),
        HumanMessage("x" * (LIGHT_BYTES + 1)),
        AIMessage([{"type": "text", "text": "x" * LIGHT_BYTES}]),
        {"key": ["x" * LIGHT_BYTES]},
        {"x" * LIGHT_BYTES: 1},
        deque(("x" * 1000,) * 100),
        [HumanMessage("x")] * 2000,
        Array(),
        Send("node", {"key": "x" * LIGHT_BYTES}),
        Interrupt(value="x" * LIGHT_BYTES, id="1"),
        Slotted("x" * LIGHT_BYTES),
        AIMessage("", extra="x" * LIGHT_BYTES),
    ],
)
def test_heavy(item: Any) -> None:
    """Large texts, arrays, and many small things, however deep they stand."""
    assert not is_light([item])


@pytest.mark.parametrize("item", [None, 1, "x" * 1000, HumanMessage("x" * 1000), {"a": [1, 2, {"b": b"x"}]}, object()])
def test_light(item: Any) -> None:
    """What a step of a chat brings."""
    assert is_light([item])


def test_an_object_may_refuse_to_be_looked_at() -> None:
    """A property that raises is no concern of whoever weighs."""

    class Shy:
        @property
        def nbytes(self) -> int:
            raise RuntimeError

    assert is_light([Shy()])


def test_what_holds_itself_is_heavy() -> None:
    """A cycle ends."""
    item: list[Any] = []
    item.append(item)
    assert not is_light(item)


def test_little_is_looked_at() -> None:
    """A list that is too long is not walked."""

    class Counting(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError

    assert not is_light([Counting([1] * LIGHT_BYTES)])


def test_little_of_many_numbers_is_looked_at() -> None:
    """Numbers count: of lists of them, none is taken up once it is clear that they are too many."""
    taken = 0

    class Counting(list[Any]):
        def __iter__(self) -> Any:
            nonlocal taken
            taken += 1
            return super().__iter__()

    assert not is_light([[Counting(range(500)) for _ in range(500)]])
    assert taken < 5
