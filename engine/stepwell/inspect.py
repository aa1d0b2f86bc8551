"""What stands in a log as data, without the application: nothing that it names is imported or called.

An agent's values are stored by LangGraph's serializer, whose msgpack extensions name classes and what to call
them with.  Here they are shown instead: `Typed` says which type it was and with which fields.  Pickles are never
opened.  Whatever bytes come, `decode` answers, in bounded depth, time and memory: what cannot be shown is an
`Opaque` that says why.

Data are None, bool, int, float, str, bytes, list, dict, Typed and Opaque.  Members of sets are in a fixed order.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import msgspec

DEEPEST: Final = 64
"""Levels of nesting; what lies deeper is not shown."""
MOST_NODES: Final = 4_000_000
"""Values within one value; what comes after is not shown."""
LARGEST_AT_ONCE_BYTES: Final = 1 << 20  # a value of nothing but small things takes 50 times as much memory
LARGEST_JSON_BYTES: Final = 1 << 24

# Extension codes of LangGraph's serializer; the last is shown as the object that it is.
_CALL_ONE, _CALL_MANY, _CALL_NAMED, _METHOD, _MODEL_1, _MODEL_2, _NUMPY, _DELTA = range(8)
_DELTA_TYPE: Final = "langgraph.checkpoint.serde.types._DeltaSnapshot"
_NUMPY_TYPE: Final = "numpy.ndarray"
_SETS: Final = ("builtins.set", "builtins.frozenset")

Data: TypeAlias = "bool | int | float | str | bytes | list[Any] | dict[Any, Any] | Typed | Opaque | None"

_SCALARS: Final = frozenset((type(None), bool, int, float, str, bytes))


class Typed:
    """An object as data.

    Attributes:
        type: Module and name of its class.
        fields: Its fields; what is made of one value (a date, a set, a member of an enum) has the field `value`.
    """

    __slots__ = ("_form", "fields", "type")

    def __init__(self, type: str, fields: dict[str, Any], form: tuple[Any, ...] = ()) -> None:
        self.type = type
        self.fields = fields
        self._form = form  # the extension's code, and what is needed beside the fields to make it again

    @property
    def name(self) -> str:
        """The name of its class, without the module."""
        return self.type.rpartition(".")[2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Typed) and self.type == other.type and self.fields == other.fields

    def __hash__(self) -> int:
        return hash(repr(self))  # it may be a key of a map

    def __repr__(self) -> str:
        return f"Typed({self.type!r}, {self.fields!r})"


class Opaque:
    """Bytes that are not shown.

    Attributes:
        type: What they are, as far as that is known.
        size_bytes: How many.
        reason: Why they are not shown.
        digest: BLAKE2b-64 of them, which tells one from another; empty where they are not at hand.
    """

    __slots__ = ("digest", "reason", "size_bytes", "type")

    def __init__(self, type: str, size_bytes: int, reason: str, digest: str = "") -> None:
        self.type = type
        self.size_bytes = size_bytes
        self.reason = reason
        self.digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"Opaque({self.type!r}, {self.size_bytes}, {self.reason!r}, {self.digest!r})"


def _opaque(type_: str, content: bytes | memoryview, reason: str) -> Opaque:
    return Opaque(type_, len(content), reason, blake2b(content, digest_size=8).hexdigest())


class _Exhausted(Exception):
    """There are more values than are shown."""


def decode(type_: str, payload: bytes | memoryview, *, most_nodes: int = MOST_NODES) -> Data:
    """A payload as data.  Never raises.

    Args:
        type_: The serializer's name for it.
        payload: The bytes.
        most_nodes: How many values within it are shown at most.
    """
    decoder = _DECODERS.get(type_)
    if decoder is None:
        return _opaque(type_, payload, _why_not(type_))
    return _guarded(type_, payload, lambda: decoder(payload, _Settling(most_nodes)))


def _why_not(type_: str) -> str:
    if "pickle" in type_:
        return "pickles are never opened"
    # LangGraph's EncryptedSerializer names the cipher so: msgpack+aes.
    return "it is encrypted" if "+" in type_ else "the type is not known"


def _guarded(type_: str, payload: bytes | memoryview, decoded: Callable[[], Data]) -> Data:
    try:
        return decoded()
    except RecursionError:
        return _opaque(type_, payload, "it is nested too deeply")
    except MemoryError:
        return _opaque(type_, payload, "there is not enough memory for it")
    except _Exhausted:
        return _opaque(type_, payload, "it holds too many values")
    except Exception as error:  # of hostile bytes anything may come
        return _opaque(type_, payload, f"it is damaged: {str(error)[:200]}")


def _msgpack(payload: bytes | memoryview, settling: _Settling) -> Data:
    return settling.opened(payload, 0)


def _json(payload: bytes | memoryview, settling: _Settling) -> Data:
    if len(payload) > LARGEST_JSON_BYTES:
        return _opaque("json", payload, "it is too large")
    return settling.settled(json.loads(bytes(payload), object_hook=_constructed), 0)


_DECODERS: Final[dict[str, Callable[[bytes | memoryview, _Settling], Data]]] = {
    "null": lambda payload, _: None,
    "bytes": lambda payload, _: bytes(payload),
    "bytearray": lambda payload, _: Typed("builtins.bytearray", {"value": bytes(payload)}),
    "text": lambda payload, _: bytes(payload).decode(),
    "json": _json,
    "msgpack": _msgpack,
    "msgpack+vectors": _msgpack,  # of the store, where vectors stand beside it
    "": _msgpack,  # an entry of a map, which has no type of its own
}


def _constructed(value: dict[str, Any]) -> Any:
    """An object of LangChain's JSON form as data."""
    names, kwargs = value.get("id"), value.get("kwargs", {})
    if value.get("lc") in (1, 2) and value.get("type") == "constructor" and isinstance(names, list):
        fields = dict(kwargs) if isinstance(kwargs, dict) else {"kwargs": kwargs}
        if value.get("args"):
            fields["args"] = value["args"]
        return Typed(".".join(map(str, names)), fields)
    return value


class _Settling:
    """Brings what was decoded within the bounds."""

    def __init__(self, most_nodes: int) -> None:
        self._left = most_nodes

    def opened(self, payload: bytes | memoryview, depth: int) -> Data:
        """The data behind msgpack."""
        if len(payload) <= LARGEST_AT_ONCE_BYTES or payload[0] in _TEXTS_AND_BYTES:
            return self.settled(msgspec.msgpack.decode(payload, ext_hook=_extension), depth)
        if depth > DEEPEST:
            return _opaque("msgpack", payload, "it is nested too deeply")
        first = payload[0]
        if first in _EXTENSIONS:
            extension = msgspec.msgpack.decode(payload, type=msgspec.msgpack.Ext)
            return self._extension(extension.code, memoryview(extension.data), depth)
        count = _count(payload)
        self._take(count)
        if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
            return [self.opened(memoryview(item), depth + 1) for item in _elements.decode(payload)]
        entries = _entries.decode(payload)
        return {key: self.opened(memoryview(item), depth + 1) for key, item in entries.items()}

    def _extension(self, code: int, data: memoryview, depth: int) -> Data:
        if code == _DELTA:
            return Typed(_DELTA_TYPE, {"value": self.opened(data, depth + 1)}, (code,))
        parts = [self.opened(memoryview(item), depth + 1) for item in _elements.decode(data)]
        return _object(code, parts, data)

    def settled(self, data: Any, depth: int) -> Data:
        """Data without what lies too deep; members of sets in order."""
        kind = type(data)
        if kind in _SCALARS or kind is Opaque:
            return data  # type: ignore[no-any-return]
        if depth >= DEEPEST:
            return Opaque(kind.__name__, 0, "it is nested too deeply")
        if kind is list:
            self._take(len(data))
            for index, item in enumerate(data):
                if type(item) not in _SCALARS:
                    data[index] = self.settled(item, depth + 1)
        elif kind is dict:
            self._take(len(data))
            if any(type(key) not in _SCALARS for key in data):
                data = {self._key(key, depth): item for key, item in data.items()}
            for key, item in data.items():
                if type(item) not in _SCALARS:
                    data[key] = self.settled(item, depth + 1)
        elif kind is Typed:
            fields = self.settled(data.fields, depth + 1)
            if data.type in _SETS and isinstance(fields, dict) and isinstance(fields.get("value"), list):
                fields["value"].sort(key=repr)
        else:
            return Opaque(kind.__name__, 0, "it is no value of a message pack")
        return data  # type: ignore[no-any-return]

    def _key(self, key: Any, depth: int) -> Any:
        """A key of a map; what holds others is a tuple."""
        if type(key) is not tuple:
            return self.settled(key, depth)
        if depth >= DEEPEST:
            return Opaque("tuple", 0, "it is nested too deeply")
        self._take(len(key))
        return tuple(self._key(item, depth + 1) for item in key)

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _Exhausted


_elements = msgspec.msgpack.Decoder(list[msgspec.Raw])
_entries = msgspec.msgpack.Decoder(dict[Any, msgspec.Raw])
_TEXTS_AND_BYTES: Final = frozenset((0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB))
_EXTENSIONS: Final = frozenset((0xC7, 0xC8, 0xC9))


def _count(payload: bytes | memoryview) -> int:
    """How many elements the header of a large array or map claims."""
    first = payload[0]
    if first < 0xA0:
        return first & 0x0F
    return int.from_bytes(payload[1 : 3 if first in (0xDC, 0xDE) else 5])


def _extension(code: int, data: memoryview) -> Any:
    """What an extension stands for."""
    try:
        if code not in range(8):
            return _opaque(f"msgpack extension {code}", data, "the extension is not known")
        inside = msgspec.msgpack.decode(data, ext_hook=_extension)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _opaque(f"msgpack extension {code}", data, f"it is damaged: {error}")
    if code == _DELTA:
        return Typed(_DELTA_TYPE, {"value": inside}, (code,))
    return _object(code, inside, data)


def _object(code: int, parts: Any, data: memoryview) -> Typed | Opaque:
    """An object from the parts that its extension holds: module, name, and what its class is called with."""
    if code == _NUMPY and isinstance(parts, list) and len(parts) == 4:
        return Typed(_NUMPY_TYPE, dict(zip(("dtype", "shape", "order", "data"), parts, strict=True)), (code,))
    if not isinstance(parts, list) or len(parts) < 3 or not all(isinstance(part, str) for part in parts[:2]):
        return _opaque(f"msgpack extension {code}", data, "it is not as the serializer makes it")
    module, name, given, *more = parts
    type_ = f"{module}.{name}" if module else name
    if code in (_CALL_NAMED, _MODEL_1, _MODEL_2) and isinstance(given, dict) and all(type(k) is str for k in given):
        return Typed(type_, given, (code, *more))
    if code == _CALL_MANY and isinstance(given, list):
        return Typed("re.Pattern" if type_ == "re.compile" else type_, _arguments(type_, given), (code, parts))
    if code == _METHOD and more != ["fromisoformat"]:
        return Typed(type_, {"value": given, "method": more[0] if more else None}, (code, *more))
    return Typed(type_, {"value": given}, (code, *more) if code in (_CALL_ONE, _METHOD) else ())


_ARGUMENTS: Final = {
    "langgraph.types.Send": ("node", "arg", "timeout"),
    "datetime.timedelta": ("days", "seconds", "microseconds"),
    "datetime.timezone": ("offset", "name"),
    "re.compile": ("pattern", "flags"),
}


def _arguments(type_: str, given: list[Any]) -> dict[str, Any]:
    """The fields of an object that is made from a row of arguments."""
    names = _ARGUMENTS.get(type_)
    if names is not None and len(given) <= len(names):
        return dict(zip(names, given, strict=False))
    if type_ == "datetime.date" and len(given) == 3 and all(type(part) is int for part in given):
        year, month, day = given
        return {"value": f"{year:04}-{month:02}-{day:02}"}
    if type_.startswith("pathlib.") and all(type(part) is str for part in given):
        separator = "\\" if "Windows" in type_ else "/"
        root, rest = (given[0], given[1:]) if given and given[0].endswith(("/", "\\")) else ("", given)
        return {"value": root + separator.join(rest) or "."}
    return {"args": given}


# --- the way back ---


def encode(data: Data) -> tuple[str, bytes]:
    """Type and payload of data, as LangGraph's serializer makes them.

    Raises:
        ValueError: It holds what was not decoded, or an object that cannot be made again.
    """
    if data is None:
        return "null", b""
    if isinstance(data, bytes):
        return "bytes", data
    return "msgpack", encode_element(data)


def encode_element(data: Data) -> bytes:
    """The msgpack of data that stands within other data.  Raises as `encode` does."""
    try:
        return msgspec.msgpack.encode(data, enc_hook=_extended)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the value cannot be stored: {error}") from error


def _extended(item: Any) -> Any:
    if not isinstance(item, Typed):
        raise ValueError(f"what was not decoded cannot be stored: {item!r:.200}")
    if not item._form:
        raise ValueError(f"an object of type {item.type} cannot be made from its fields")
    code, *more = item._form
    if code == _DELTA:
        return msgspec.msgpack.Ext(code, encode_element(item.fields["value"]))
    if code == _NUMPY:
        return msgspec.msgpack.Ext(code, encode_element([item.fields[name] for name in item.fields]))
    module, _, name = item.type.rpartition(".")
    if code == _CALL_MANY:
        (parts,) = more
        if _arguments(f"{parts[0]}.{parts[1]}", parts[2]) != item.fields:
            raise ValueError(f"a {item.type} cannot be changed field by field; give it as a whole")
        return msgspec.msgpack.Ext(code, encode_element(parts))
    given = item.fields["value"] if code in (_CALL_ONE, _METHOD) else item.fields
    return msgspec.msgpack.Ext(code, encode_element([module, name, given, *more]))


# --- for programs ---


def to_json(data: Data) -> Any:
    """Data as JSON knows it, in a form that does not change (SPEC, 17.6)."""
    if data is None or isinstance(data, bool | int | str):
        return data
    if isinstance(data, float):
        return data if math.isfinite(data) else {"$float": str(data)}
    if isinstance(data, bytes):
        return {"$bytes": base64.b64encode(data).decode()}
    if isinstance(data, list | tuple):
        return [to_json(item) for item in data]
    if isinstance(data, dict):
        if all(type(key) is str and not key.startswith("$") for key in data):
            return {key: to_json(item) for key, item in data.items()}
        return {"$map": [[to_json(key), to_json(item)] for key, item in data.items()]}
    if isinstance(data, Typed):
        return {"$type": data.type, "fields": to_json(data.fields)}
    return {"$opaque": data.type, "size_bytes": data.size_bytes, "reason": data.reason}


def equal(one: Data, other: Data) -> bool:
    """Whether data are the same, types included: 1, 1.0 and True are not; NaN is itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(item, other[key]) for key, item in one.items())
    if isinstance(one, Typed) and isinstance(other, Typed):
        return one.type == other.type and equal(one.fields, other.fields)
    return one == other or (one != one and other != other)


def texts(data: Data, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every text in some data, keys of maps included, with the way to it."""
    if isinstance(data, str):
        yield place, data
    elif isinstance(data, list):
        for index, item in enumerate(data):
            yield from texts(item, (*place, index))
    elif isinstance(data, Typed):
        yield from texts(data.fields, place)
    elif isinstance(data, dict):
        for key, item in data.items():
            inside = (*place, key if isinstance(key, str | int) else repr(key))
            if isinstance(key, str):
                yield inside, key
            yield from texts(item, inside)


# --- for people ---

# Control characters, what turns the direction of writing, separators of lines, halves of surrogate pairs, and what is
# not to be seen at all: each can make a terminal, or its reader, take a text for something else.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_UNSAFE_IN_LINES: Final = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def safe_text(text: str, *, lines: bool = False) -> str:
    """A text that does nothing to a terminal but show.

    Args:
        text: Any text, of a stranger too.
        lines: Whether ends of lines and tabs stay as they are.
    """
    return (_UNSAFE_IN_LINES if lines else _UNSAFE).sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code == 10:
        return "\\n"
    if code == 9:
        return "\\t"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def summary(data: Data, width: int = 80) -> str:
    """Data in one safe line of at most so many characters, for people."""
    text = safe_text(_summary(data, width))
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _summary(data: Data, width: int, depth: int = 0) -> str:
    if isinstance(data, str):
        shown = data[: width + 1]
        return shown if not depth else repr(shown)
    if isinstance(data, bytes):
        return f"{len(data):,} bytes"
    if isinstance(data, Opaque):
        return f"<{data.type}, {data.size_bytes:,} bytes: {data.reason}>"
    if depth > 4:
        return "…"
    if isinstance(data, list):
        return _joined("[", (_summary(item, width, depth + 1) for item in data), "]", width)
    if isinstance(data, dict):
        pairs = (f"{_summary(key, width, depth + 1)}: {_summary(item, width, depth + 1)}" for key, item in data.items())
        return _joined("{", pairs, "}", width)
    if isinstance(data, Typed):
        if is_message(data):
            content = _summary(data.fields.get("content"), width)
            calls = data.fields.get("tool_calls")
            names = (
                [str(call.get("name")) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
            )
            return f"{data.name}: {content}" + (f" → {', '.join(names)}" if names else "")
        if set(data.fields) == {"value"}:
            return f"{data.name}({_summary(data.fields['value'], width, depth + 1)})"
        pairs = (f"{key}={_summary(item, width, depth + 1)}" for key, item in data.fields.items())
        return _joined(f"{data.name}(", pairs, ")", width)
    return repr(data)


def _joined(before: str, parts: Iterator[str], after: str, width: int) -> str:
    """Parts with commas, no more of them than a line can show."""
    shown: list[str] = []
    length = 0
    for part in parts:
        if length > width:
            shown.append("…")
            break
        shown.append(part)
        length += len(part) + 2
    return before + ", ".join(shown) + after


def is_message(data: Data) -> bool:
    """Whether some data are a message of a conversation."""
    return isinstance(data, Typed) and "content" in data.fields and data.type.endswith("Message")
