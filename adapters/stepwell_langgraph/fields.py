"""The checkpoint beside its channel values, and its metadata: which entries of them are new.

Both are dicts that mostly repeat those of the step before: versions of all channels, of which one or two moved.  So
entries are compared as the objects that they are, and only those that differ are encoded.  What can change in place is
compared by its encoding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from langgraph.checkpoint.serde.base import SerializerProtocol

from stepwell.patch import DEEPEST_STRUCTURE, Blob, Map, Merge, Patch, Value, diff, parse, parse_entry, size_of
from stepwell_langgraph.translate import by_element, encode_element

_TYPE: Final = "msgpack"
_COMPARABLE: Final = frozenset({str, int, bool, type(None)})  # equal and of one type is the same encoding
_STR: Final = frozenset({str})
_DICTS: Final = frozenset({dict, defaultdict})
_ENTRY_BYTES: Final = 64  # roughly

_Known: TypeAlias = "dict[str, str | int | bool | bytes | _Known | None]"
"""What a dict held: numbers and texts themselves, dicts as such, and everything else encoded."""


class Fields:
    """A dict of a checkpoint, as its last step stored it.

    Attributes:
        size: Bytes of its encoding, roughly, and 64 for each entry.
    """

    __slots__ = ("_known", "_stored", "size")

    def __init__(self, stored: Value | None = None) -> None:
        """Nothing, or what the log holds, with content as bytes."""
        self._stored = stored
        self._known: _Known | None = None
        self.size = 0 if stored is None else size_of(stored)

    def update(self, value: dict[str, Any], serde: SerializerProtocol) -> Patch | None:
        """The patch to a new value; None if nothing changed.  The fields then stand for that value."""
        if not by_element(serde) or not _has_names(value):
            before = self._stored if self._known is None else _value(self._known, _TYPE)
            type_, payload = serde.dumps_typed(value)
            self._stored, self._known = parse(type_, bytes(payload)), None
            self.size = len(payload)
            return diff(before, self._stored)
        known, self.size = _known(value)
        if self._known is not None:
            patch = _difference(self._known, known, _TYPE)
        else:
            patch = diff(self._stored, _value(known, _TYPE))
        self._stored, self._known = None, known
        return patch


def _known(value: Mapping[str, Any], depth: int = 1) -> tuple[_Known, int]:
    """What a dict holds, and how many bytes that is, roughly."""
    known: _Known = {}
    size = _ENTRY_BYTES * len(value)
    for name, item in value.items():
        kind = type(item)
        if kind is str:
            known[name] = item
            size += len(item)
        elif kind in _COMPARABLE:
            known[name] = item
        elif depth < DEEPEST_STRUCTURE and kind in _DICTS and _has_names(copy := dict(item)):
            known[name], inside = _known(copy, depth + 1)  # of a copy: another thread may change it meanwhile
            size += inside
        else:
            known[name] = encoded = encode_element(item)
            size += len(encoded)
    return known, size


def _difference(old: _Known, new: _Known, type_: str) -> Patch | None:
    changes: dict[str, Patch] = {}
    for name, item in new.items():
        before = old.get(name, _NOTHING)
        if before is item:
            continue
        if isinstance(item, dict) and isinstance(before, dict):
            patch = _difference(before, item, "")
        elif isinstance(item, bytes) and isinstance(before, bytes):
            patch = None if item == before else diff(parse_entry(before), parse_entry(item))
        else:
            patch = None if type(item) is type(before) and item == before else _entry(item)
        if patch is not None:
            changes[name] = patch
    names = [*new]
    if names[: len(old)] == [*old]:  # as mostly
        return Merge((), changes) if changes else None
    # A merge keeps entries in their place, and adds others at the end.
    if [name for name in old if name in new] + [name for name in names if name not in old] != names:
        return _value(new, type_)
    return Merge(tuple(name for name in old if name not in new), changes)


def _entry(item: str | int | bool | bytes | _Known | None) -> Value:
    if isinstance(item, dict):
        return _value(item, "")
    return parse_entry(item) if isinstance(item, bytes) else Blob("", encode_element(item))


def _value(known: _Known, type_: str) -> Map:
    return Map(type_, False, {name: _entry(item) for name, item in known.items()})


def _has_names(value: dict[Any, Any]) -> bool:
    """Whether a dict's keys are texts that are encoded as they stand."""
    try:
        return all(map(str.isprintable, value)) and {*map(type, value)} <= _STR
    except TypeError:  # one of them is no text
        return False


_NOTHING: Final = object()
