"""How much encoding some objects is, told without encoding them: is it too much for an event loop?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from types import MemberDescriptorType
from typing import Any, Final

from stepwell_langgraph.fingerprint import IMMUTABLE_TYPES

LIGHT_BYTES: Final = 1 << 16
"""What is encoded, looked up and compressed in less than a millisecond."""

_OBJECT_BYTES: Final = 64  # that an object costs beside its content
_TEXTS: Final = (str, bytes, bytearray, memoryview)
_SEVERAL: Final = (dict, list, tuple, set, frozenset, deque)
_SCALARS: Final = IMMUTABLE_TYPES - {*_TEXTS}


def is_light(objects: Iterable[Any], most_bytes: int = LIGHT_BYTES) -> bool:
    """Whether the objects, with all that they hold, come to no more than some bytes, roughly.

    Never looks at more of them than it takes to say no.
    """
    weight = 0
    found = [*objects]
    for item in found:  # which grows meanwhile
        kind: type = type(item)
        if kind is str:  # first, as most are
            weight += len(item)
        elif kind in _SCALARS:
            continue
        elif isinstance(item, _SEVERAL):
            if len(item) * _OBJECT_BYTES > most_bytes:
                return False
            found += item
            if isinstance(item, dict):
                found += item.values()
        elif isinstance(item, _TEXTS):
            weight += len(item)
        else:
            weight += _look_into(item, kind, found)
        if weight + _OBJECT_BYTES * len(found) > most_bytes:
            return False
    return weight + _OBJECT_BYTES * len(found) <= most_bytes


def _look_into(item: Any, kind: type, found: list[Any]) -> int:
    """Add what an object holds; gives the bytes that it says it has beside that."""
    is_array, slots = _layout(kind)
    for slot in slots:
        try:
            found.append(slot.__get__(item))
        except AttributeError:  # nothing was assigned to it
            continue
    size = 0
    with suppress(Exception):  # these may be properties, which do what they like
        size = int(item.nbytes) if is_array else 0
        found += vars(item).values()
    return size


@lru_cache(maxsize=1024)
def _layout(kind: type) -> tuple[bool, tuple[MemberDescriptorType, ...]]:
    """Whether instances of a class say how many bytes they have, and what they keep outside `__dict__`."""
    members = [vars(base) for base in kind.__mro__]
    slots = (member for names in members for member in names.values() if type(member) is MemberDescriptorType)
    return any("nbytes" in names for names in members), tuple(slots)
