"""Values of the store to and from bytes: what JSON can say, as msgpack (SPEC.md, section 17.7).

What comes back equals what was put, or nothing is put: there are no conversions, but that JSON has one sort of array,
so a tuple comes back as a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from stepwell.errors import UsageError
from stepwell.storage import Item

PLAIN: Final = "msgpack"
"""The type of a stored value, beside its bytes."""

INDEXED: Final = "msgpack+vectors"
"""The type of one that has vectors beside it, so that they need not be looked for beside all others."""

_LEAST_INTEGER: Final = -(1 << 63)
_END_OF_INTEGERS: Final = 1 << 64
_DEEPEST: Final = 256
_STR: Final = frozenset((str,))
_LEAVES: Final = frozenset((str, int, float, bool, type(None)))

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode


def encode(value: Mapping[str, Any]) -> bytes:
    """The bytes of a value.

    Raises:
        UsageError: Something in it is nothing that JSON can say; the message names the place.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"a value of the store is a dict, not {type(value).__name__}: {value!r}")
    if _is_plain(value, 0):
        try:
            return _encode(value)
        except (OverflowError, UnicodeEncodeError):
            pass  # of an integer or a text; where it stands is told below
    return _encode(_plain(dict(value), "value", 0))


def decode(payload: bytes) -> dict[str, Any]:
    """The value behind some bytes, made anew."""
    return _decode(payload)


def value_of(item: Item) -> dict[str, Any]:
    """The value of an item, made anew.

    Raises:
        UsageError: It is none of a store; somebody put it into the log by other means.
    """
    try:
        return _decode(item.value[1])
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"the item {item.key!r} in namespace {item.namespace!r} has a value of type {item.value[0]!r} that no "
            "store has put: read it with log.items.get, and keep such items under another first part"
        ) from error


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a container and all in it is of Python's own types, as nearly always, and no deeper than may be."""
    kind = type(value)
    if kind is dict:
        if not _STR.issuperset(map(type, value)):
            return False
        value = value.values()
    elif kind is not list and kind is not tuple:
        return False
    if depth == _DEEPEST:
        return False
    if _LEAVES.issuperset(map(type, value)):
        return True
    return all(type(element) in _LEAVES or _is_plain(element, depth + 1) for element in value)


def _plain(value: Any, place: str, depth: int) -> Any:
    """A value in Python's own types."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{place} holds half a surrogate pair, which no UTF-8 text can") from None
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        if not _LEAST_INTEGER <= value < _END_OF_INTEGERS:
            raise UsageError(f"{place} is an integer of more than 64 bits: store str(...) of it")
        return int.__int__(value)
    if depth == _DEEPEST:
        raise UsageError(f"{place} is nested more than {_DEEPEST} levels deep")
    if isinstance(value, list | tuple):
        return [_plain(element, f"{place}[{index}]", depth + 1) for index, element in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"{place} has the key {key!r}, a {type(key).__name__}: keys of JSON are strings")
        return {
            _plain(key, f"a key of {place}", depth): _plain(element, f"{place}[{key!r}]", depth + 1)
            for key, element in value.items()
        }
    raise UsageError(
        f"{place} is a {type(value).__name__}, which JSON cannot say: store a text, number, list or dict in its place "
        "(of a date or time its isoformat())"
    )
