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


def is_light(objects: Iterable[Any], most_bytes: int = LIGHT_BYTES) -> bool:
    """Whether the objects, with all that they hold, come to no more than some bytes, roughly.

    Never looks at more of them than it takes to say no.
    """
    weight = 0
    left = [*objects]
    while left:
        item = left.pop()
        weight += _OBJECT_BYTES
        if isinstance(item, _TEXTS):
            weight += len(item)
        elif isinstance(item, _SEVERAL):
            if len(item) * _OBJECT_BYTES > most_bytes:
                return False
            left += [*item, *item.values()] if isinstance(item, dict) else item
        elif type(item) not in IMMUTABLE_TYPES:
            with suppress(Exception):  # these may be properties, which do what they like
                weight += int(getattr(item, "nbytes", 0))  # arrays
                left += vars(item).values()
            kind: type = type(item)
            for slot in _slots(kind):
                with suppress(AttributeError):  # nothing was assigned to it
                    left.append(slot.__get__(item))
        if weight > most_bytes:
            return False
    return True


@lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[MemberDescriptorType, ...]:
    """The attributes that instances of a class keep outside `__dict__`."""
    return tuple(
        member for base in kind.__mro__ for member in vars(base).values() if type(member) is MemberDescriptorType
    )
