"""Stored values to LangGraph's objects, decoding each stored element once.

A list of a thousand messages is read again and again: at every step of its history, at every invocation.
Decoding a message costs far more than copying it, so an element that is asked for a second time is taken
apart into what may be shared (texts, numbers) and what may not (lists, dicts), and from then on copied:
every object handed out is new, and nothing that can change is shared between two of them.

Only what is proven to be copied exactly is: the copy of a message of langchain-core encodes to the very bytes
that it came from, field by field.  Everything else is decoded each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell.cache import Cache, Shelf
from stepwell.patch import Array, Blob, Content, Map, New, Ref, Value, array_header, read_content, references, wrapped
from stepwell.reader import Payloads
from stepwell_langgraph.fingerprint import IMMUTABLE_TYPES
from stepwell_langgraph.messages import Messages, pattern_of

_TYPE: Final = "msgpack"
_PATTERN_BYTES: Final = 1024  # that a pattern takes beside its content, roughly
# Elements this small cost less to decode all at once than to look for one by one.
_SMALL_ELEMENT_BYTES: Final = 256


class _Pattern(Protocol):
    """What objects are made after; few objects of its own, for the collector of garbage looks at each of them."""

    def make(self) -> Any:
        """A new object."""


class Revival:
    """Decodes what one serializer has encoded.  Thread-safe.

    Remembers elements by where they stand in the log, where nothing ever changes.  Half of the cache at most is
    taken by one thread, which then forgets the elements first that were read first.
    """

    def __init__(self, serde: SerializerProtocol, cache: Cache | None = None) -> None:
        self._serde = serde
        self._decode: Callable[[bytes | memoryview], Any] = _unexpected
        self._by_element = isinstance(serde, JsonPlusSerializer) and type(serde).loads_typed is _LOADS_TYPED
        if isinstance(serde, JsonPlusSerializer):
            self._messages = Messages(serde)
            self._decode = self._messages.decode
            self._wrap = type(self._decode(wrapped(b"\x90")))  # around an empty list: LangGraph's _DeltaSnapshot
        self._patterns: Shelf[int, _Patterns] = Shelf(cache or Cache())

    def values(self, values: Mapping[str, Value], payloads: Payloads, *, often: bool = False) -> dict[str, Any]:
        """New objects from stored values; see `value`."""
        reading = self._begin(values.values(), payloads, often)
        found = {name: self._value(value, reading) for name, value in values.items()}
        self._end(reading)
        return found

    def value(self, value: Value, payloads: Payloads, *, often: bool = False) -> Any:
        """A new object from a stored value.

        Args:
            value: The value.
            payloads: Reads its content.
            often: Whether most of it will be asked for again soon.
        """
        reading = self._begin((value,), payloads, often)
        found = self._value(value, reading)
        self._end(reading)
        return found

    def _begin(self, values: Iterable[Value], payloads: Payloads, often: bool) -> _Reading:
        """Read the content of some values at once, but for what there are patterns of."""
        patterns = self._patterns.get(payloads.thread) or _Patterns()
        known = patterns.by_place
        payloads.fetch({ref.sequence for value in values for ref in references(value) if known.get(ref) is None})
        return _Reading(payloads, patterns, often)

    def _end(self, reading: _Reading) -> None:
        if reading.patterns.by_place:
            self._patterns.put(reading.payloads.thread, reading.patterns, reading.patterns.size_bytes)

    def _value(self, value: Value, reading: _Reading) -> Any:
        if self._by_element and value.type == _TYPE:
            item = self._part(value, reading)
            return self._wrap(item) if isinstance(value, Array | Map) and value.wrapped else item
        return self._serde.loads_typed((value.type, reading.payloads.payload(value)))

    def _part(self, value: Value, reading: _Reading) -> Any:
        if isinstance(value, Blob):
            return self._content(value.content, reading)
        if isinstance(value, Map):
            return {key: self._part(item, reading) for key, item in value.entries.items()}
        items: list[Any] = []
        known = reading.patterns.by_place
        for piece in value.pieces:
            if len(piece.lengths) > 1:
                items.extend(self._run(piece, reading))
                continue
            content = piece.content
            pattern = known.get(content) if type(content) is Ref else None
            items.append(self._content(content, reading) if pattern is None else pattern.make())
        return items

    def _run(self, piece: New, reading: _Reading) -> list[Any]:
        content, lengths = piece.content, piece.lengths
        if not isinstance(content, Ref) or content.length < len(lengths) * _SMALL_ELEMENT_BYTES:
            found: list[Any] = self._decode(array_header(len(lengths)) + read_content(content, reading.payloads.read))
            return found
        start = content.start
        items: list[Any] = []
        for length in lengths:
            items.append(self._content(Ref(content.sequence, start, length), reading))
            start += length
        return items

    def _content(self, content: Content, reading: _Reading) -> Any:
        payloads, patterns, often = reading
        if not isinstance(content, Ref):
            return self._decode(read_content(content, payloads.read))
        known = patterns.by_place
        pattern = known.get(content)
        if pattern is not None:
            return pattern.make()
        data = payloads.view(content)
        most_bytes = self._patterns.cache.most_bytes // 2
        if content not in known and not often:
            patterns.remember(content, None, most_bytes)
            return self._decode(data)
        pattern = self._pattern(data)
        patterns.remember(content, pattern, most_bytes)
        return pattern.make()

    def _pattern(self, data: memoryview) -> _Pattern:
        pattern = self._messages.pattern(data)
        if pattern is not None:
            return pattern
        item = self._decode(data)
        if type(item) in IMMUTABLE_TYPES:
            return _Immutable(item)
        return pattern_of(item, data) or _Encoded(bytes(data), self._decode)


class _Patterns:
    """The patterns of one thread's elements by place.

    Of an element that was decoded once there is None: taking it apart pays only if it is asked for again.
    """

    __slots__ = ("_lock", "by_place", "size_bytes")

    def __init__(self) -> None:
        self.by_place: dict[Ref, _Pattern | None] = {}
        self.size_bytes = 0
        self._lock = threading.RLock()

    def remember(self, ref: Ref, pattern: _Pattern | None, most_bytes: int) -> None:
        """Note the pattern of an element, and forget those that were read first."""
        with self._lock:
            if ref not in self.by_place:  # of two threads that read it at once, one counts it
                self.size_bytes += ref.length + _PATTERN_BYTES
            self.by_place[ref] = pattern
            while self.size_bytes > most_bytes and self.by_place:
                with suppress(RuntimeError):  # another thread has added one
                    ref = next(iter(self.by_place))
                    if self.by_place.pop(ref, self) is not self:
                        self.size_bytes -= ref.length + _PATTERN_BYTES


class _Reading(NamedTuple):
    """What one reading of values goes by."""

    payloads: Payloads
    patterns: _Patterns
    often: bool


_LOADS_TYPED: Final = JsonPlusSerializer.loads_typed


def _unexpected(data: bytes | memoryview) -> Any:
    raise AssertionError("only what JsonPlusSerializer encoded is decoded by element")


class _Immutable:
    """An object that may be handed out again and again."""

    __slots__ = ("_item",)

    def __init__(self, item: Any) -> None:
        self._item = item

    def make(self) -> Any:
        return self._item


class _Encoded:
    """An object that is decoded each time."""

    __slots__ = ("_data", "_decode")

    def __init__(self, data: bytes, decode: Callable[[bytes | memoryview], Any]) -> None:
        self._data = data
        self._decode = decode

    def make(self) -> Any:
        return self._decode(self._data)
