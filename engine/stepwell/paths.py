"""Paths: where in a state something stands, as people write it.

    messages                the channel
    messages[12]            an element; negative numbers count from the end
    messages[id=abc]        the element whose field `id` is that text; quotes where it holds brackets
    messages[12].content    a field of an object, or an entry of a map
    plan["step 3"]          an entry whose name is not a word
    ["branch:to:model"]     a channel whose name is not a word

A path is read from data as `inspect` shows it.  A delta snapshot is what it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

from stepwell.errors import UsageError
from stepwell.inspect import Data, Opaque, Typed, safe_text


class Name(NamedTuple):
    """A field of an object, or an entry of a map."""

    name: str


class Index(NamedTuple):
    """An element of a list, or an entry of a map whose key is a number."""

    at: int


class Match(NamedTuple):
    """The element of a list whose field has a value."""

    field: str
    value: str


Part: TypeAlias = Name | Index | Match


class _Absent:
    """Nothing at all, which None is not."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        return False


ABSENT: Final = _Absent()
"""What stands where a path leads nowhere."""

_WORD: Final = r"[^\W\d][\w:|~/-]*"
_PART: Final = re.compile(
    rf"""(?:(?P<first>^)|\.)(?P<word>{_WORD})
       | \[\s*(?P<index>-?[0-9]{{1,18}})\s*\]
       | \[\s*(?P<text>"(?:[^"\\]|\\.)*")\s*\]
       | \[\s*'(?P<single>[^']*)'\s*\]
       | \[\s*(?P<field>[\w-]+)\s*=\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<bare>[^\]]*))\s*\]""",
    re.VERBOSE,
)
_MOST_NAMES: Final = 20
_PLAIN: Final = re.compile(r"[^\W\d]\w*")


class Path(tuple[Part, ...]):
    """A channel and the way to something in its value."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str | Path) -> Path:
        """A path from its text.

        Raises:
            UsageError: It is none.
        """
        if isinstance(text, Path):
            return text
        parts: list[Part] = []
        place = 0
        while place < len(text):
            match = _PART.match(text, place)
            if match is None or (not place and text.startswith(".")):
                raise UsageError(
                    f"{text!r} is no path from its character {place + 1} on; "
                    'write messages[12].content, messages[id=abc].content or plan["step 3"]'
                )
            parts.append(_part(match))
            place = match.end()
        if not parts or not isinstance(parts[0], Name):
            raise UsageError(f"{text!r} is no path: it begins with the name of a channel, such as messages[12].content")
        return cls(parts)

    @property
    def channel(self) -> str:
        """The channel that it begins with."""
        first = self[0]
        assert isinstance(first, Name)
        return first.name

    @property
    def inside(self) -> tuple[Part, ...]:
        """The way from the channel's value on."""
        return self[1:]

    def __str__(self) -> str:
        return "".join(_text(part, first=not index) for index, part in enumerate(self))

    def __truediv__(self, key: str | int | Part) -> Path:
        part: Part = Name(key) if isinstance(key, str) else Index(key) if isinstance(key, int) else key
        return Path((*self, part))


def to(channel: str, *inside: str | int) -> Path:
    """The path to something in a channel."""
    path = Path((Name(channel),))
    for key in inside:
        path = path / key
    return path


def _part(match: re.Match[str]) -> Part:
    if match["word"] is not None:
        return Name(match["word"])
    if match["index"] is not None:
        return Index(int(match["index"]))
    if match["field"] is not None:
        return Match(match["field"], _unquoted(match["quoted"]) if match["quoted"] else match["bare"].strip())
    return Name(_unquoted(match["text"]) if match["text"] is not None else match["single"])


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise UsageError(f"{text} is no text in quotes") from None


def _text(part: Part, *, first: bool) -> str:
    if isinstance(part, Index):
        return f"[{part.at}]"
    if isinstance(part, Match):
        plain = part.value and part.value == part.value.strip() and not set(part.value) & set('[]"\\')
        return f"[{part.field}={part.value if plain else json.dumps(part.value, ensure_ascii=False)}]"
    if _PLAIN.fullmatch(part.name):
        return part.name if first else f".{part.name}"
    return f"[{json.dumps(part.name, ensure_ascii=False)}]"


def find(data: Data, parts: tuple[Part, ...]) -> Any:
    """What stands at the end of a way; ABSENT if there is nothing."""
    for part in parts:
        data = step(data, part)
        if data is ABSENT:
            break
    return data


def step(data: Data, part: Part) -> Any:
    """What stands one part further; ABSENT if there is nothing."""
    if isinstance(data, Typed):
        if isinstance(part, Name) and part.name in data.fields:
            return data.fields[part.name]
        return step(data.fields["value"], part) if set(data.fields) == {"value"} else ABSENT
    if isinstance(data, dict):
        key = part.name if isinstance(part, Name) else part.at if isinstance(part, Index) else None
        if key in data and part.__class__ is not Match:
            return data[key]
        return ABSENT
    if isinstance(data, list):
        if isinstance(part, Index):
            return data[part.at] if -len(data) <= part.at < len(data) else ABSENT
        if isinstance(part, Match):
            return next((item for item in data if matches(item, part)), ABSENT)
    return ABSENT


def matches(item: Data, part: Match) -> bool:
    """Whether an element is the one that is meant."""
    value = step(item, Name(part.field))
    return value == part.value or (type(value) is int and str(value) == part.value)


def replace(data: Data, parts: tuple[Part, ...], new: Data) -> Data:
    """Data with something else at the end of a way; what it was made from is left as it is.

    A map gets an entry that it did not have; ABSENT takes one away.

    Raises:
        UsageError: The way leads nowhere.
    """
    if not parts:
        return new
    part, *rest = parts
    if isinstance(data, Typed):
        if isinstance(part, Name) and part.name in data.fields:
            fields = {**data.fields, part.name: replace(data.fields[part.name], tuple(rest), new)}
            return Typed(data.type, fields, data._form)
        if set(data.fields) == {"value"}:
            return Typed(data.type, {"value": replace(data.fields["value"], parts, new)}, data._form)
    elif isinstance(data, dict):
        key: str | int | None = part.name if isinstance(part, Name) else part.at if isinstance(part, Index) else None
        if key is not None and (key in data or not rest):
            changed = {**data, key: replace(data.get(key), tuple(rest), new)}
            return {name: item for name, item in changed.items() if item is not ABSENT}
    elif isinstance(data, list):
        places = [index for index, item in enumerate(data) if isinstance(part, Match) and matches(item, part)]
        if isinstance(part, Index) and -len(data) <= part.at < len(data):
            places = [part.at % len(data)]
        if places:
            changed_list = [*data]
            changed_list[places[0]] = replace(data[places[0]], tuple(rest), new)
            return [item for item in changed_list if item is not ABSENT]
    raise UsageError(f"there is no {_text(part, first=False).lstrip('.')} in it: {what_is_there(data)}")


def what_is_there(data: Data) -> str:
    """What a way could go on with, for messages."""
    if isinstance(data, Typed):
        return f"it is a {safe_text(data.name)} with the fields {_names(data.fields)}"
    if isinstance(data, dict):
        return f"its entries are {_names(data)}" if data else "it is an empty map"
    if isinstance(data, list):
        return f"it is a list of {len(data)} elements"
    if isinstance(data, Opaque):
        return f"it cannot be looked into: {safe_text(data.reason)}"
    return f"it is a {type(data).__name__}"


def _names(keys: Iterable[Any]) -> str:
    shown = [*islice(keys, _MOST_NAMES + 1)]
    names = ", ".join(safe_text(str(key)) for key in shown[:_MOST_NAMES])
    return names + (", ..." if len(shown) > _MOST_NAMES else "")
