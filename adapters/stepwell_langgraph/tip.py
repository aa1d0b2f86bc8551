"""What an import knows of a step that others follow: its values as bytes, to find what the next checkpoint changes.

Nothing is decoded.  A list that only grew, which is what nearly every step does to a list of megabytes, is recognised
by comparing memory: the old elements are a prefix of the new ones, and only what comes after them is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from stepwell import reader
from stepwell.events import Sequence
from stepwell.fold import State
from stepwell.patch import Array, Keep, Merge, New, Patch, Splice, Value, array_header, diff, parse, payload_of
from stepwell_langgraph.whole import Span, Typed

_elements: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Known:
    """One value that the log holds.

    Attributes:
        type: Its type.
        span: Its payload.
        begins_with: The payload of a list whose elements it was seen to begin with; None if there is none.
    """

    __slots__ = ("_count", "_value", "begins_with", "span", "type")

    def __init__(
        self, type_: str, span: Span, value: Value | None = None, count: int = 0, begins_with: Span | None = None
    ) -> None:
        self.type = type_
        self.span = span
        self.begins_with = begins_with
        self._value = value
        # Of a list that the log holds element by element; else 0.
        self._count = count or (value.count if isinstance(value, Array) and not value.wrapped else 0)

    def moved(self, new: Typed) -> tuple[Patch | None, Known]:
        """The patch to a new value (None if it is the same), and what is known of that one."""
        type_, span = new
        if type_ == self.type:
            if span.equals(self.span.view()):
                return None, Known(type_, span, self._value, self._count)
            if self._count and (appended := self._appended(span)) is not None:
                count = self._count + len(appended.lengths)
                return Splice((Keep(0, self._count), appended)), Known(type_, span, None, count, self.span)
        value = parse(type_, span.copy())
        return diff(self.value, value), Known(type_, span, value)

    @property
    def value(self) -> Value:
        """The value with its content as bytes."""
        if self._value is None:
            self._value = parse(self.type, self.span.copy())
        return self._value

    def _appended(self, span: Span) -> New | None:
        """The elements that come after those that are known, if that is all the difference."""
        count = _count(span)
        header, known = len(array_header(count)), len(array_header(self._count))
        if count <= self._count or not span.begins_with(array_header(count)):
            return None
        if not span.begins_with(self.span.view(known), header):
            return None
        rest = span.view(header + self.span.length - known)
        try:
            elements = _elements.decode(b"".join((_longest_header(count - self._count), rest)))
        except (ValueError, RecursionError):
            return None
        lengths = tuple(memoryview(element).nbytes for element in elements)
        return New(lengths, bytes(rest)) if sum(lengths) == len(rest) else None


class Tip:
    """What the log holds after one step.

    Attributes:
        sequence: The step's position in its thread.
        channels: The value of each channel that has one.
        fields: What is kept beside them.
    """

    __slots__ = ("channels", "fields", "sequence")

    def __init__(
        self,
        sequence: int = 0,
        channels: Mapping[str, Known] | None = None,
        fields: Mapping[str, Known] | None = None,
    ) -> None:
        self.sequence = Sequence(sequence)
        self.channels = channels or {}
        self.fields = fields or {}

    @classmethod
    def from_state(cls, state: State, payloads: reader.Payloads) -> Tip:
        """The tip of a step that is in the log."""
        return cls(state.sequence, _known(state.channels, payloads), _known(state.fields, payloads))

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return sum(known.span.length for known in self.channels.values())


def moved_all(
    old: Mapping[str, Known], new: Mapping[str, Typed], unchanged: frozenset[str] = frozenset()
) -> tuple[Merge, dict[str, Known]]:
    """The patch that turns known values into new ones, and what is known then.

    Args:
        old: The known values.
        new: The new ones.
        unchanged: Names that keep their value without being in `new`.
    """
    changes: dict[str, Patch] = {}
    known: dict[str, Known] = {name: old[name] for name in old if name in unchanged}
    for name, (type_, span) in new.items():
        before = old.get(name)
        if before is None:
            changes[name] = value = parse(type_, span.copy())
            known[name] = Known(type_, span, value)
        else:
            patch, known[name] = before.moved((type_, span))
            if patch is not None:
                changes[name] = patch
    drop = tuple(name for name in old if name not in known)
    return Merge(drop, changes), known


def _known(values: Mapping[str, Value], payloads: reader.Payloads) -> dict[str, Known]:
    known: dict[str, Known] = {}
    for name, stored in values.items():
        value = reader.resolved_value(stored, payloads.read)
        known[name] = Known(value.type, Span.of(payload_of(value, payloads.read)), value)
    return known


def _count(span: Span) -> int:
    """How many elements an array says it has; 0 if it is none."""
    if not span.length:
        return 0
    first = span.data[span.start]
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    size = {0xDC: 2, 0xDD: 4}.get(first, 0)
    return int.from_bytes(span.data[span.start + 1 : span.start + 1 + size])


def _longest_header(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4)
