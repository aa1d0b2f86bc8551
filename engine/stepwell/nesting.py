"""Content that stands inside other content.

An agent hands whole states about: a `Send` that holds the list of all messages, a dict of files for a
sub-agent.  To the patches these are bytes.  Here they are taken apart, all the way down, into pieces that the log
may hold already (elements of arrays, values of maps, objects) and the bytes between them.

Joining what `search` gives makes the bytes again, always: what is no msgpack is one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

_SMALLEST_FOUND_BYTES: Final = 256  # shorter pieces are not worth a look
SMALLEST_SEARCHED_BYTES: Final = 1024
# Objects such as messages are found as a whole; only those that may be whole states are worth opening.
_SMALLEST_SEARCHED_OBJECT_BYTES: Final = 1 << 16
# A container this large is hardly ever there as a whole: looking for its parts alone reads it once, not twice.
_LARGEST_WHOLE_BYTES: Final = 1 << 16
_SMALLEST_MEAN_BYTES: Final = 128  # of the parts of a container
_DEEPEST: Final = 16
_OBJECT: Final = 5  # msgpack extension code of a pydantic model, in LangGraph's serializer

_raw_elements = msgspec.msgpack.Decoder(list[msgspec.Raw])

_T = TypeVar("_T")


def search(data: bytes, find: Callable[[memoryview], _T | None]) -> list[memoryview | _T]:
    """The pieces of some bytes in order, each that is found replaced by what was found.

    Args:
        data: The bytes, which have been looked for as a whole.
        find: Looks for a piece.
    """
    found: list[memoryview | _T] = []
    _search(memoryview(data), find, found, 0)
    return found


def _search(
    data: memoryview, find: Callable[[memoryview], _T | None], found: list[memoryview | _T], depth: int
) -> None:
    parts = _parts(data) if depth < _DEEPEST else None
    if depth and len(data) >= _SMALLEST_FOUND_BYTES and (parts is None or len(data) <= _LARGEST_WHOLE_BYTES):
        hit = find(data)
        if hit is not None:
            found.append(hit)
            return
    if parts is None:
        found.append(data)
        return
    for part in parts:
        _search(part, find, found, depth + 1)


def _parts(data: memoryview) -> list[memoryview] | None:
    """The header of a container and what it holds; None if there is no use in looking inside."""
    if len(data) < SMALLEST_SEARCHED_BYTES:
        return None
    first = data[0]
    if first in _EXTENSION_HEADERS:
        header = _EXTENSION_HEADERS[first]
        if data[header - 1] == _OBJECT and len(data) < _SMALLEST_SEARCHED_OBJECT_BYTES:
            return None
        return [data[:header], data[header:]]
    for kind, (short, most, widths) in _CONTAINERS.items():
        if short <= first <= most:
            header, count = 1, first & 0x0F
        elif first in widths:
            header = 1 + widths[first]
            count = int.from_bytes(data[1:header])
        else:
            continue
        count *= kind
        if not count or len(data) < count * _SMALLEST_MEAN_BYTES:
            return None
        return _elements(data, header, count)
    return None


# By how many elements one entry counts for: the first bytes of small arrays and maps, and the widths of the
# counts that follow the first bytes of larger ones.
_CONTAINERS: Final = {1: (0x90, 0x9F, {0xDC: 2, 0xDD: 4}), 2: (0x80, 0x8F, {0xDE: 2, 0xDF: 4})}
_EXTENSION_HEADERS: Final = {0xC7: 3, 0xC8: 4, 0xC9: 6}


def _elements(data: memoryview, header: int, count: int) -> list[memoryview] | None:
    """The header and elements of an array, or the header, keys and values of a map."""
    try:
        # A map is laid out as an array of its keys and values.
        elements = _raw_elements.decode(b"".join((b"\xdd", count.to_bytes(4), data[header:])))
    except (msgspec.DecodeError, RecursionError):
        return None
    parts = [data[:header]]
    for element in elements:
        length = memoryview(element).nbytes
        parts.append(data[header : header + length])
        header += length
    return parts
