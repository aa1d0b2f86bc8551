"""Messages that are put together without validation: they are what the serializer makes of the same bytes."""

from __future__ import annotations

from typing import Any

import ormsgpack
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell_langgraph.messages import Messages

SERDE = JsonPlusSerializer()


def _answer(number: int, **more: Any) -> AIMessage:
    return AIMessage(
        content=[{"type": "text", "text": f"{number}"}, {"type": "tool_use", "input": {"q": [number]}}],
        id=f"a{number}",
        response_metadata={"model": "m", "usage": {"input_tokens": number, "cache": {"read": 0}}},
        tool_calls=[{"name": "f", "args": {"q": {"n": number}, "l": [1, {}]}, "id": f"c{number}", "type": "tool_call"}],
        usage_metadata={
            "input_tokens": number,
            "output_tokens": 2,
            "total_tokens": number + 2,
            "input_token_details": {"cache_read": 0},
        },
        **more,
    )


FAMILIES: dict[str, list[BaseMessage]] = {
    "questions": [HumanMessage(f"question {n}", id=f"{n}") for n in range(4)],
    "instructions": [SystemMessage(["one", {"type": "text", "text": f"{n}"}]) for n in range(4)],
    "answers": [_answer(n) for n in range(4)],
    "results": [ToolMessage(f"{n}", tool_call_id=f"c{n}", id=f"t{n}", artifact=[{"n": n}]) for n in range(4)],
    "failures": [ToolMessage(f"{n}", tool_call_id=f"c{n}", status="error") for n in range(4)],
    "silent": [AIMessage("", id=f"{n}", usage_metadata=None) for n in range(4)],
    "mixed": [_answer(1), AIMessage("x"), _answer(2), HumanMessage("y"), _answer(3, name="n"), AIMessage("z")],
    "kept": [HumanMessage(f"{n}", more={"n": [n]}) for n in range(4)],
}


def _encoded(message: BaseMessage) -> bytes:
    return SERDE.dumps_typed(message)[1]


def _same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert found.__dict__ == expected.__dict__
    assert list(found.__dict__) == list(expected.__dict__)
    assert repr(found.__dict__) == repr(expected.__dict__)  # True is not 1
    assert found.__pydantic_fields_set__ == expected.__pydantic_fields_set__
    assert found.__pydantic_extra__ == expected.__pydantic_extra__
    assert found.__pydantic_private__ == expected.__pydantic_private__
    assert _encoded(found) == _encoded(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_message_is_what_the_serializer_makes_of_it(family: str) -> None:
    """The first message of a shape and those after it, decoded and copied after a pattern, are as decoded always."""
    messages = Messages(SERDE)
    for message in FAMILIES[family] * 2:
        data = _encoded(message)
        expected = SERDE.loads_typed(("msgpack", data))
        _same(messages.decode(data), expected)
        pattern = messages.pattern(data)
        if pattern is not None:
            _same(pattern.make(), expected)


def test_messages_of_a_known_shape_are_not_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first message of a shape goes through the serializer."""
    messages = Messages(SERDE)
    answers = [_encoded(message) for message in FAMILIES["answers"]]
    messages.decode(answers[0])
    monkeypatch.setattr(messages, "_decode", lambda data: pytest.fail("was validated"))
    assert [messages.decode(data).id for data in answers[1:]] == ["a1", "a2", "a3"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", 1),
        ("content", [1]),
        ("id", 7),
        ("tool_calls", [{"name": "f", "args": {}, "id": "c"}]),
        ("tool_calls", [{"name": "f", "args": {1: 2}, "id": "c", "type": "tool_call"}]),
        ("tool_calls", [{"name": "f", "args": {}, "id": "c", "type": "other"}]),
        ("tool_calls", [7]),
        ("tool_calls", []),
        ("tool_calls", None),
        ("invalid_tool_calls", [{"name": "f", "args": "", "id": "c", "error": None, "type": "invalid_tool_call"}]),
        ("usage_metadata", {"input_tokens": True, "output_tokens": 2, "total_tokens": 3}),
        ("usage_metadata", {"input_tokens": 1.0, "output_tokens": 2, "total_tokens": 3}),
        ("usage_metadata", {"input_tokens": 1}),
        ("usage_metadata", {}),
        ("additional_kwargs", {"tool_calls": [{"function": {"name": "g", "arguments": "{}"}, "id": "d"}]}),
        ("additional_kwargs", []),
        ("type", "human"),
        ("type", ["ai"]),
    ],
)
def test_a_message_that_validation_may_change_is_validated(field: str, value: Any) -> None:
    """A message that is not quite of a known shape is what the serializer makes of it, also after one that is."""
    messages = Messages(SERDE)
    messages.decode(_encoded(_answer(1)))
    fields = {**_answer(2).__dict__, field: value}
    content = ormsgpack.packb(
        ("langchain_core.messages.ai", "AIMessage", fields, "model_validate_json"), option=ormsgpack.OPT_NON_STR_KEYS
    )
    data = ormsgpack.packb(ormsgpack.Ext(5, content))
    for _ in range(3):
        expected = SERDE.loads_typed(("msgpack", data))
        found = messages.decode(data)
        assert type(found) is type(expected)
        assert repr(found) == repr(expected)


def test_copies_share_nothing_that_can_change() -> None:
    """What is done to one copy is seen in no other, nor in copies that are made later."""

    def containers(value: Any) -> list[int]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = [id(value)] if isinstance(value, dict | list) else []
        return own + [identity for item in inner for identity in containers(item)]

    messages = Messages(SERDE)
    data = _encoded(_answer(1))
    messages.decode(data)
    pattern = messages.pattern(data)
    assert pattern is not None
    first, second = pattern.make(), pattern.make()
    assert not set(containers(first.__dict__)) & set(containers(second.__dict__))
    assert first.__pydantic_fields_set__ is not second.__pydantic_fields_set__
    first.__dict__["tool_calls"][0]["args"]["q"]["n"] = "changed"
    first.__dict__["content"].append("changed")
    first.__pydantic_fields_set__.clear()
    _same(second, SERDE.loads_typed(("msgpack", data)))
    _same(pattern.make(), second)
