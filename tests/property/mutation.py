"""Values as agents hold them, and everything that can happen to one of them in place.

`elements` draws messages, models, dataclasses, containers and scalars.  `mutate` picks one mutable object
inside a value, however deep, and changes it without replacing it, as reducers and careless nodes do.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel, PlainSerializer, PrivateAttr, computed_field, field_serializer, model_serializer

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Note(BaseModel):
    """Nothing of its own: what pydantic makes of fields."""

    text: str
    tags: list[Any] = []
    about: dict[str, Any] = {}
    inner: Note | None = None


class Loose(BaseModel, extra="allow"):
    """Fields that its class does not know."""

    text: str


class Sorted(BaseModel):
    """A serializer of a field's own."""

    names: set[str]
    count: int = 0

    @field_serializer("names")
    def _in_order(self, names: set[str]) -> list[Any]:
        return sorted(names, key=repr)


class Priced(BaseModel):
    """A serializer in an annotation."""

    price: Annotated[int, PlainSerializer(lambda value: f"{value}", return_type=str)]


class Counted(BaseModel):
    """A computed field that depends on a private attribute."""

    text: str
    _seen: int = PrivateAttr(default=0)

    @computed_field
    def seen(self) -> int:
        return self._seen


class Whole(BaseModel):
    """A serializer of the whole model."""

    text: str
    tags: list[Any] = []

    @model_serializer
    def _as_dict(self) -> dict[str, Any]:
        return {"tags": list(self.tags), "text": self.text}


class Dumped(BaseModel):
    """A `model_dump` of its own, which shows what is in no field."""

    text: str
    _note: str = PrivateAttr(default="")

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"text": self.text + self._note}


@dataclasses.dataclass
class Point:
    x: Any
    tags: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Slotted:
    name: Any


# 1, True and 1.0 are equal to Python and different to a reader.
scalars = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 2**40, 0.0, 1.0, -0.0, 0.5, "", "a", "é🎉", b"", b"\xff"]),
    st.text(max_size=4),
)
names = st.sampled_from(["a", "b", "ab", "k", "content", "id"])
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(names, inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
    ),
    max_leaves=5,
)
maps = st.dictionaries(names, plain, max_size=3)
blocks = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=4)),
        st.builds(lambda part: {"type": "image_url", "image_url": {"url": "data:", "part": part}}, plain),
    ),
    max_size=3,
)
contents = st.one_of(st.text(max_size=8), blocks)
ids = st.none() | st.text("abc", min_size=1, max_size=3)
tool_calls = st.lists(
    st.builds(lambda args, id: {"name": "search", "args": args, "id": id, "type": "tool_call"}, maps, st.text("xyz")),
    max_size=2,
)
usages = st.none() | st.builds(
    lambda number: {"input_tokens": number, "output_tokens": 1, "total_tokens": number + 1}, st.integers(0, 9)
)
_common = {"content": contents, "id": ids, "additional_kwargs": maps, "response_metadata": maps}

messages = st.one_of(
    st.builds(HumanMessage, **_common, name=st.none() | st.text("ab", min_size=1)),
    st.builds(AIMessage, **_common, tool_calls=tool_calls, usage_metadata=usages),
    st.builds(ToolMessage, **_common, tool_call_id=st.text("xyz"), artifact=plain),
    st.builds(SystemMessage, **_common),
    st.builds(lambda extra, id: HumanMessage("hi", id=id, custom=extra), plain, ids),
)
models = st.one_of(
    st.builds(Note, text=st.text(max_size=4), tags=st.lists(plain, max_size=2), about=maps),
    st.builds(lambda text, inner: Note(text=text, inner=Note(text=inner)), st.text(max_size=4), st.text(max_size=4)),
    st.builds(lambda text, extra: Loose(text=text, more=extra), st.text(max_size=4), plain),
    st.builds(Sorted, names=st.sets(st.text("abc", max_size=2), max_size=3)),
    st.builds(Priced, price=st.integers(0, 3)),
    st.builds(Counted, text=st.text(max_size=4)),
    st.builds(Whole, text=st.text(max_size=4), tags=st.lists(plain, max_size=2)),
    st.builds(Dumped, text=st.text(max_size=4)),
)
elements = st.one_of(
    messages,
    messages,
    models,
    plain,
    st.builds(Point, plain, st.lists(plain, max_size=2)),
    st.builds(Slotted, plain),
    st.sets(scalars, max_size=3),
    st.lists(plain, max_size=2).map(deque),
)

_TWINS = {"1": True, "True": 1.0, "1.0": 1, "0": False, "False": 0.0, "0.0": -0.0, "-0.0": 0, "''": b"", "b''": ""}


def twin(value: Any) -> Any:
    """A value that is equal, or nearly so, but another to a reader; the value itself if there is none."""
    return _TWINS.get(repr(value), value)


def parts(value: Any) -> Iterator[Any]:
    """Every mutable object in a value, the value itself first."""
    if isinstance(value, BaseModel):
        yield value
        for item in [*value.__dict__.values(), *(value.__pydantic_extra__ or {}).values()]:
            yield from parts(item)
    elif dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, dict):
        yield value
        for item in value.values():
            yield from parts(item)
    elif isinstance(value, list | deque | tuple):
        if not isinstance(value, tuple):
            yield value
        for item in value:
            yield from parts(item)
    elif isinstance(value, set):
        yield value


def mutate(draw: Draw, value: Any) -> bool:
    """Change something inside a value in place; False if nothing in it can be changed."""
    found = list(parts(value))
    if not found:
        return False
    part = draw(st.sampled_from(range(len(found))))
    _change(draw, found[part])
    return True


def _change(draw: Draw, part: Any) -> None:
    if isinstance(part, BaseMessage):
        _change_message(draw, part)
    elif isinstance(part, BaseModel):
        _change_model(draw, part)
    elif dataclasses.is_dataclass(part):
        name = draw(st.sampled_from([field.name for field in dataclasses.fields(part)]))
        setattr(part, name, _other(draw, getattr(part, name)))
    elif isinstance(part, dict):
        change_dict(draw, part, plain)
    elif isinstance(part, list | deque):
        change_list(draw, part, plain)
    else:
        part.symmetric_difference_update({draw(scalars)})


def _other(draw: Draw, value: Any) -> Any:
    return draw(st.one_of(st.just(twin(value)), plain))


def _change_message(draw: Draw, message: BaseMessage) -> None:
    match draw(st.sampled_from(["id", "id", "content", "extra", "field", "text"])):
        case "id":
            message.id = draw(ids)
        case "content":
            message.content = draw(contents)
        case "extra":
            message.custom = draw(plain)
        case "field":
            name = draw(st.sampled_from(["additional_kwargs", "response_metadata"]))
            setattr(message, name, draw(maps))
        case "text":
            message.name = draw(ids)


def _change_model(draw: Draw, model: BaseModel) -> None:
    match model:
        case Note() | Whole():
            if draw(st.booleans()):
                model.text = draw(st.text(max_size=4))
            else:
                model.tags = draw(st.lists(plain, max_size=2))
        case Loose():
            setattr(model, draw(st.sampled_from(["text", "more", "other"])), draw(st.text(max_size=4)))
        case Sorted():
            model.names = draw(st.sets(st.text("abc", max_size=2), max_size=3))
        case Priced():
            model.price += 1
        case Counted():
            model._seen += 1
        case Dumped():
            model._note += "!"


def change_dict(draw: Draw, part: dict[Any, Any], values: st.SearchStrategy[Any]) -> None:
    """Change a dict in place, the order of its keys included."""
    key = draw(st.sampled_from(list(part))) if part else None
    match draw(st.sampled_from(["set", "twin", "remove", "reorder", "add"])) if part else "add":
        case "set":
            part[key] = draw(values)
        case "twin":
            part[key] = twin(part[key])
        case "remove":
            del part[key]
        case "reorder":
            part[key] = part.pop(key)
        case "add":
            part[draw(names)] = draw(values)


def change_list(draw: Draw, part: list[Any] | deque[Any], values: st.SearchStrategy[Any]) -> None:
    """Change a list in place: what stands in it, how often, and in which order."""
    index = draw(st.integers(0, len(part) - 1)) if part else 0
    match draw(st.sampled_from(["set", "twin", "remove", "insert", "reverse", "repeat"])) if part else "insert":
        case "set":
            part[index] = draw(values)
        case "twin":
            part[index] = twin(part[index])
        case "remove":
            del part[index]
        case "insert":
            part.insert(index, draw(values))
        case "reverse":
            part.reverse()
        case "repeat":
            part.append(part[index])
