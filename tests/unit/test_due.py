"""What is left to run is told of stored bytes as of the objects that they decode to, and nothing is executed."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send

from stepwell import inspect
from stepwell.due import is_telling, status_of_channels

CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "done"),
    ({"messages": ["x"], "join": 1}, "done"),
    ({"__start__": None}, "running"),
    ({"branch:to:node": None}, "running"),
    ({"n": 1, "branch:to:node": "other"}, "running"),
    ({"__pregel_tasks": []}, "done"),
    ({"__pregel_tasks": ()}, "done"),
    ({"__pregel_tasks": [Send("node", {"n": 1})]}, "running"),
    ({"__pregel_tasks": [], "branch:to:node": None}, "running"),
    ({"join:a+b:c": set()}, "done"),
    ({"join:a+b:c": {"a"}}, "done"),
    ({"join:a+b:c": {"b", "a"}}, "running"),
    ({"join:a+b:c": frozenset(("a", "b"))}, "running"),
    ({"join:a:b+c:d": {"a:b", "c"}}, "running"),
    ({"join:a+b:c": (set(), False)}, "done"),
    ({"join:a+b:c": ({"b"}, False)}, "done"),
    ({"join:a+b:c": ({"b", "a"}, True)}, "running"),
    ({"join:a+b:c": [{"b", "a"}, True]}, "running"),
    ({"join:a+b:c": ["a", "b"]}, "done"),
    ({"join:a+b:c": 7}, "done"),
]


@pytest.mark.parametrize(("values", "expected"), CASES)
def test_objects_and_bytes(values: dict[str, Any], expected: str) -> None:
    """Both say the same; channels that cannot make anything run are not looked at."""
    assert status_of_channels(values, values.__getitem__) == expected
    stored = {name: JsonPlusSerializer().dumps_typed(value) for name, value in values.items() if is_telling(name)}
    assert status_of_channels(values, lambda name: inspect.decode(*stored[name])) == expected


class Trap:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was executed",)


@pytest.mark.parametrize("name", ["__pregel_tasks", "join:a+b:c"])
def test_what_cannot_be_looked_at(name: str) -> None:
    """What is pickled or encrypted stays closed, and nothing is told; unless something else says enough."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    for typed in (("pickle", pickle.dumps(Trap())), serde.dumps_typed([]), ("msgpack", b"\xc1"), ("msgpack", b"")):
        assert status_of_channels([name, "n"], lambda _, typed=typed: inspect.decode(*typed)) is None  # type: ignore[misc]
        assert status_of_channels([name, "__start__"], lambda _, typed=typed: inspect.decode(*typed)) == "running"  # type: ignore[misc]
