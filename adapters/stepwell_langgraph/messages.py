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

from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel

from stepwell_langgraph.fingerprint import IMMUTABLE_TYPES, OPTIONS, encodes_to, model_content, refuse

_MOST_SHAPES: Final = 1024
_STATUSES: Final = ("success", "error")
_TYPE: Final = "msgpack"

_Shape = tuple[Hashable, ...]


class Messages:
    """Decodes messages for one serializer.  Thread-safe."""

    def __init__(self, serde: JsonPlusSerializer) -> None:
        self._serde = serde
        self._hook: Callable[[int, bytes], Any] | None = getattr(serde, "_unpack_ext_hook", None)
        self._known: dict[_Shape, _Kind | None] = {}

    def decode(self, data: bytes | memoryview) -> Any:
        """What the serializer makes of these bytes."""
        parts = self._take_apart(data)
        if parts is None:
            return self._decode(data)
        shape, module, name, fields = parts
        kind = self._known.get(shape)
        if kind is not None:
            return kind.put_together(fields)
        item = self._decode(data)
        if shape not in self._known and len(self._known) < _MOST_SHAPES:
            known = _is_settled(module, name, fields) and _is_just(item, fields)
            self._known[shape] = _Kind(type(item), set(fields)) if known else None
        return item

    def pattern(self, data: bytes | memoryview) -> MessagePattern | None:
        """A pattern of what `decode` makes of these bytes; None if that is no message of a known shape."""
        parts = self._take_apart(data)
        kind = None if parts is None else self._known.get(parts[0])
        if parts is None or kind is None:
            return None
        plan = _plan_of(parts[3])
        return None if plan is None else MessagePattern(kind, parts[3], plan)

    def _take_apart(self, data: bytes | memoryview) -> tuple[_Shape, str, str, dict[str, Any]] | None:
        """Shape, module, name and fields of a message; None if it is none, or one that has to be validated."""
        content = model_content(data) if self._hook is not None else None
        if content is None:
            return None
        try:
            module, name, fields, _ = ormsgpack.unpackb(content, ext_hook=self._hook, option=ormsgpack.OPT_NON_STR_KEYS)
            own = _SHAPES[name](fields)
            if own is None:
                return None
            # All of this at once: it is asked of every message.
            shape = (module, name, fields["type"], *fields, *map(type, fields.values()), *own)
            hash(shape)
        except (ormsgpack.MsgpackDecodeError, TypeError, ValueError, KeyError, AttributeError):
            return None
        return shape, module, name, fields

    def _decode(self, data: bytes | memoryview) -> Any:
        return self._serde.loads_typed((_TYPE, data))  # type: ignore[arg-type]


class MessagePattern:
    """A message that is never handed out, and which parts of it have to be copied."""

    __slots__ = ("_fields", "_kind", "_plan")

    def __init__(self, kind: _Kind, fields: dict[str, Any], plan: _Plan) -> None:
        self._kind = kind
        self._fields = fields
        self._plan = plan

    def make(self) -> BaseModel:
        """A message that shares with others only what cannot change."""
        return self._kind.put_together(_copied(self._fields, self._plan))


_Plan = tuple[tuple[int, Any, "dict[Any, Any] | list[Any]"], ...]
"""The dicts and lists within a dict: in which of them (0: the dict itself) and where each stands, outer ones first."""


def _plan_of(fields: dict[str, Any]) -> _Plan | None:
    """How a dict is copied; None if it holds what cannot be copied."""
    plan: list[tuple[int, Any, Any]] = []
    containers: list[Any] = [fields]
    for index, container in enumerate(containers):  # which grows meanwhile
        for key, value in container.items() if type(container) is dict else enumerate(container):
            if type(value) in (dict, list):
                plan.append((index, key, value))
                containers.append(value)
            elif type(value) not in IMMUTABLE_TYPES:
                return None
    return tuple(plan)


def _copied(fields: dict[str, Any], plan: _Plan) -> dict[str, Any]:
    copies: list[Any] = [fields.copy()]
    for index, key, container in plan:
        copy = copies[index][key] = container.copy()
        copies.append(copy)
    return copies[0]  # type: ignore[no-any-return]


_KINDS: Final[dict[tuple[type[BaseModel], frozenset[str]], _Kind]] = {}


def pattern_of(item: Any, data: bytes | memoryview) -> MessagePattern | None:
    """The pattern of a message that was decoded from some bytes; None if its copies would not be just like it.

    They are if the message encodes to these very bytes, field by field.
    """
    if not isinstance(item, BaseModel) or not type(item).__module__.startswith("langchain_core.messages."):
        return None
    if not _has_nothing_beside(item) or item.__pydantic_fields_set__ != item.__dict__.keys():
        return None
    if not encodes_to(item, data):
        return None
    plan = _plan_of(item.__dict__)
    if plan is None:
        return None
    # The message itself belongs to whoever asked for it.
    fields = _copied(item.__dict__, plan)
    plan = _plan_of(fields)
    assert plan is not None
    names = item.__pydantic_fields_set__
    kind = _KINDS.setdefault((type(item), frozenset(names)), _Kind(type(item), set(names)))
    return MessagePattern(kind, fields, plan)


class _Kind:
    """A class of messages, with the fields that were set."""

    __slots__ = ("_allows_extra", "_class", "_names")

    def __init__(self, class_: type[BaseModel], names: set[str]) -> None:
        self._class = class_
        self._names = names
        self._allows_extra = class_.model_config.get("extra") == "allow"

    def put_together(self, fields: dict[str, Any]) -> BaseModel:
        """A model of these very fields, which become part of it, with nothing beside them."""
        model = _new(self._class)
        _set(model, "__dict__", fields)
        _set(model, "__pydantic_fields_set__", self._names.copy())
        _set(model, "__pydantic_extra__", {} if self._allows_extra else None)
        _set(model, "__pydantic_private__", None)
        return model


_new, _set = object.__new__, object.__setattr__


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


# What validation looks at beside the names and types of the fields, and that differs between messages with the
# same ones; None if it has to look itself.


def _plain(fields: dict[str, Any]) -> _Shape | None:
    content = fields["content"]
    return _NO_MORE if type(content) is str or set(map(type, content)) <= _PARTS else None


def _answer(fields: dict[str, Any]) -> _Shape | None:
    calls = fields["tool_calls"]
    if fields["invalid_tool_calls"] or (not calls and fields["additional_kwargs"].get("tool_calls")):
        return None  # tool calls are read from there
    for call in calls:
        if (*call, *map(type, call.values())) not in _CALLS or call["type"] != "tool_call":
            return None
        if not set(map(type, call["args"])) <= _TEXT:
            return None
    usage = fields["usage_metadata"]
    if _plain(fields) is None:
        return None
    return (bool(calls), *usage, *_counts(usage)) if usage else (bool(calls),)


def _counts(usage: dict[str, Any]) -> Iterator[Hashable]:
    """Types of numbers, and in their place names and types of those that a dict holds; TypeError if there is more."""
    for count in usage.values():
        if type(count) is dict:
            if not set(map(type, count.values())) <= _NUMBER:
                raise TypeError
            yield tuple(count)
        elif type(count) is not int:
            raise TypeError
        else:
            yield int


def _result(fields: dict[str, Any]) -> _Shape | None:
    return _plain(fields) if fields["status"] in _STATUSES else None


_NO_MORE: Final[_Shape] = ()
_PARTS: Final = {str, dict}
_TEXT: Final = {str}
_NUMBER: Final = {int}
_CALLS: Final = {("name", "args", "id", "type", str, dict, kind, str) for kind in (str, type(None))}

_SHAPES: Final[dict[str, Callable[[dict[str, Any]], _Shape | None]]] = {
    "HumanMessage": _plain,
    "SystemMessage": _plain,
    "AIMessage": _answer,
    "ToolMessage": _result,
}
_MODULES: Final = {
    "HumanMessage": "langchain_core.messages.human",
    "SystemMessage": "langchain_core.messages.system",
    "AIMessage": "langchain_core.messages.ai",
    "ToolMessage": "langchain_core.messages.tool",
}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "content": (str, list),
    "additional_kwargs": (dict,),
    "response_metadata": (dict,),
    "name": (str, type(None)),
    "id": (str, type(None)),
    "type": (str,),
    "tool_calls": (list,),
    "invalid_tool_calls": (list,),
    "usage_metadata": (dict, type(None)),
    "tool_call_id": (str,),
    "status": (str,),
}


def _is_settled(module: str, name: str, fields: dict[str, Any]) -> bool:
    """Whether validation leaves all values of these types as it leaves these."""
    return _MODULES[name] == module and all(
        type(value) in _TYPES[field] for field, value in fields.items() if field in _TYPES
    )
