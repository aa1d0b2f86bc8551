"""Messages of langchain-core from their encoding, without validating again what was valid when it was stored.

Validation takes most of the time that decoding a message takes.  It looks at the shape of the fields (which
there are, of which types, which keys stand in their dicts, in which order) and leaves those of a valid message
as they are.  So it is left to the first message of each shape: if what comes out of it is what went in, field by
field and type by type, further messages of that shape are put together as they stand.

Whatever else validation could look at is part of the shape, or no shape is seen: a tool call that is not quite
one, a number where a text should be, fields of another version.  Such messages are decoded as always.

A message that is asked for again is copied instead, after a pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel

from stepwell_langgraph.fingerprint import IMMUTABLE_TYPES, OPTIONS, encodes_to, model_content, refuse

_MOST_SHAPES: Final = 1024
_CALL: Final = ("name", "args", "id", "type")
_STATUSES: Final = ("success", "error")
_TYPE: Final = "msgpack"

_Shape = tuple[Hashable, ...]


class Messages:
    """Decodes messages for one serializer.  Thread-safe."""

    def __init__(self, serde: JsonPlusSerializer) -> None:
        self._serde = serde
        self._hook: Callable[[int, bytes], Any] | None = getattr(serde, "_unpack_ext_hook", None)
        self._known: dict[_Shape, type[BaseModel] | None] = {}

    def decode(self, data: bytes | memoryview) -> Any:
        """What the serializer makes of these bytes."""
        content = model_content(data) if self._hook is not None else None
        if content is None:
            return self._decode(data)
        try:
            parts = ormsgpack.unpackb(content, ext_hook=self._hook, option=ormsgpack.OPT_NON_STR_KEYS)
            module, name, fields, _ = parts
            shape = _shape(module, name, fields)
        except (ormsgpack.MsgpackDecodeError, TypeError, ValueError, KeyError, AttributeError):
            shape = None
        if shape is None:
            return self._decode(data)
        kind = self._known.get(shape)
        if kind is not None:
            return _put_together(kind, fields, set(fields))
        item = self._decode(data)
        if shape not in self._known and len(self._known) < _MOST_SHAPES:
            self._known[shape] = type(item) if _is_just(item, fields) else None
        return item

    def _decode(self, data: bytes | memoryview) -> Any:
        return self._serde.loads_typed((_TYPE, data))  # type: ignore[arg-type]


class MessagePattern:
    """A message taken apart into what may be shared (texts, numbers) and what may not (lists, dicts)."""

    __slots__ = ("_empty", "_fields", "_filled", "_kind", "_names")

    def __init__(self, message: BaseModel, changeable: dict[str, Any], filled: bytes) -> None:
        self._kind = type(message)
        self._names = _FIELD_SETS.setdefault(frozenset(message.__pydantic_fields_set__), set(message.__dict__))
        self._fields = {name: None if name in changeable else value for name, value in message.__dict__.items()}
        self._empty = tuple((name, type(value)) for name, value in changeable.items() if not value)
        self._filled = filled

    def make(self) -> BaseModel:
        """A message that shares with others only what cannot change."""
        fields = self._fields.copy()
        for name, container in self._empty:
            fields[name] = container()
        if self._filled:
            fields.update(ormsgpack.unpackb(self._filled, option=ormsgpack.OPT_NON_STR_KEYS))
        return _put_together(self._kind, fields, self._names.copy())


_FIELD_SETS: Final[dict[frozenset[str], set[str]]] = {}


def pattern_of(item: Any, data: memoryview) -> MessagePattern | None:
    """The pattern of a message that was decoded from some bytes; None if its copies would not be just like it.

    They are if the message encodes to these very bytes, field by field.
    """
    if not isinstance(item, BaseModel) or not type(item).__module__.startswith("langchain_core.messages."):
        return None
    if not _has_nothing_beside(item) or item.__pydantic_fields_set__ != item.__dict__.keys():
        return None
    if not encodes_to(item, data):
        return None
    changeable = {name: value for name, value in item.__dict__.items() if type(value) not in IMMUTABLE_TYPES}
    if any(type(value) not in (list, dict) for value in changeable.values()):
        return None
    filled = {name: value for name, value in changeable.items() if value}
    packed = ormsgpack.packb(filled, default=refuse, option=OPTIONS) if filled else b""
    if packed and ormsgpack.unpackb(packed, option=ormsgpack.OPT_NON_STR_KEYS) != filled:
        return None
    return MessagePattern(item, changeable, packed)


_new, _set = object.__new__, object.__setattr__


def _put_together(kind: type[BaseModel], fields: dict[str, Any], names: set[str]) -> BaseModel:
    """A model of these very fields, with nothing beside them; both arguments become part of it."""
    model = _new(kind)
    _set(model, "__dict__", fields)
    _set(model, "__pydantic_fields_set__", names)
    _set(model, "__pydantic_extra__", {} if kind.model_config.get("extra") == "allow" else None)
    _set(model, "__pydantic_private__", None)
    return model


def _has_nothing_beside(model: BaseModel) -> bool:
    """Whether `_put_together` of a model's fields would leave nothing out."""
    extra: dict[str, Any] | None = {} if type(model).model_config.get("extra") == "allow" else None
    return model.__pydantic_private__ is None and model.__pydantic_extra__ == extra


def _is_just(item: Any, fields: dict[str, Any]) -> bool:
    """Whether validation left the fields as they are."""
    if not isinstance(item, BaseModel) or not _has_nothing_beside(item):
        return False
    try:
        same = ormsgpack.packb(item.__dict__, default=refuse, option=OPTIONS) == ormsgpack.packb(
            fields, default=refuse, option=OPTIONS
        )
    except (ormsgpack.MsgpackEncodeError, TypeError):
        return False
    return same and item.__dict__ == fields and item.__pydantic_fields_set__ == set(fields)


def _shape(module: str, name: str, fields: dict[str, Any]) -> _Shape | None:
    """All that validation looks at; None if it has to look itself."""
    of_kind = _SHAPES.get((module, name))
    if of_kind is None:
        return None
    content = fields["content"]
    if type(content) is not str and not (type(content) is list and all(type(part) in (str, dict) for part in content)):
        return None
    if type(fields["additional_kwargs"]) is not dict or type(fields["response_metadata"]) is not dict:
        return None
    if type(fields["name"]) not in _TEXTS or type(fields["id"]) not in _TEXTS:
        return None
    own = of_kind(fields)
    return None if own is None else (module, name, fields["type"], type(content), tuple(fields), own)


_TEXTS: Final = (str, type(None))


def _plain(fields: dict[str, Any]) -> _Shape | None:
    return ()


def _answer(fields: dict[str, Any]) -> _Shape | None:
    calls = fields["tool_calls"]
    if fields["invalid_tool_calls"] != [] or type(calls) is not list or not all(map(_is_call, calls)):
        return None
    if not calls and fields["additional_kwargs"].get("tool_calls"):
        return None  # tool calls are read from there
    usage = fields["usage_metadata"]
    return (bool(calls), None if usage is None else _counts(usage))


def _is_call(call: Any) -> bool:
    return (
        type(call) is dict
        and tuple(call) == _CALL
        and type(call["name"]) is str
        and type(call["args"]) is dict
        and all(type(key) is str for key in call["args"])
        and type(call["id"]) in _TEXTS
        and call["type"] == "tool_call"
    )


def _counts(usage: dict[str, Any]) -> _Shape:
    """Names of numbers, in order, all the way down; raises TypeError for anything else."""
    shape: list[Hashable] = []
    for key, count in usage.items():
        shape.append(key)
        if type(count) is dict:
            shape.append(_counts(count))
        elif type(count) is not int:
            raise TypeError
    return tuple(shape)


def _result(fields: dict[str, Any]) -> _Shape | None:
    return () if type(fields["tool_call_id"]) is str and fields["status"] in _STATUSES else None


_SHAPES: Final[dict[tuple[str, str], Callable[[dict[str, Any]], _Shape | None]]] = {
    ("langchain_core.messages.human", "HumanMessage"): _plain,
    ("langchain_core.messages.system", "SystemMessage"): _plain,
    ("langchain_core.messages.ai", "AIMessage"): _answer,
    ("langchain_core.messages.tool", "ToolMessage"): _result,
}
