"""A checkpoint in one piece, as SqliteSaver stores it, taken apart into its channels and put together again, undecoded.

    whole checkpoint = one msgpack map, or one JSON object, with the channel values as one entry among others
    taken apart      = (type, bytes) of each channel, and (type, bytes) of the rest: what the log keeps

Only the outer shape is looked at, so nothing that a stranger's checkpoint names is imported or called.  A channel's
bytes are what the serializer makes of the value alone, and decode to what they decode to within the whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from stepwell.patch import map_header, text_header

VALUES: Final = "channel_values"
MSGPACK: Final = "msgpack"
JSON: Final = "json"

_entries: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_LATEST: Final = 1 << 62  # that an event can hold
_NIL: Final = b"\xc0"
_BYTES_HEADERS: Final = {0xC4: 2, 0xC5: 3, 0xC6: 5}  # header bytes of msgpack's three forms of bytes


class NotACheckpoint(ValueError):
    """The bytes are not what a checkpoint is stored as."""


class Span(NamedTuple):
    """Bytes within others, which stay where they are: a state of megabytes is not copied to be looked at."""

    data: bytes
    start: int
    end: int

    @classmethod
    def of(cls, data: bytes) -> Span:
        """All of some bytes."""
        return cls(data, 0, len(data))

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.end - self.start

    def view(self, start: int = 0) -> memoryview:
        """The bytes from `start`, where they lie."""
        return memoryview(self.data)[self.start + start : self.end]

    def copy(self) -> bytes:
        """A copy of the bytes."""
        return self.data[self.start : self.end]

    def begins_with(self, prefix: bytes | memoryview, at: int = 0) -> bool:
        """Whether some bytes stand there from `at`."""
        return self.data.startswith(prefix, self.start + at, self.end)

    def equals(self, other: bytes | memoryview) -> bool:
        """Whether they are the same bytes."""
        return self.length == len(other) and self.begins_with(other)


Typed = tuple[str, Span]
"""A type and a payload, as `dumps_typed` gives them."""


class Parts(NamedTuple):
    """A checkpoint taken apart.

    Attributes:
        channels: The value of each channel that has one.
        core: The rest of it.
    """

    channels: dict[str, Typed]
    core: Typed


def take_apart(type_: str, payload: bytes) -> Parts:
    """The channels of a checkpoint, and the rest.

    What cannot be looked into (encrypted, pickled) has no channels, and is its own rest.

    Raises:
        NotACheckpoint: It is said to be msgpack or JSON, and is no checkpoint in it.
    """
    try:
        if type_ == MSGPACK:
            return _take_msgpack_apart(payload)
        if type_ == JSON:
            return _take_json_apart(payload)
    except (ValueError, RecursionError, MemoryError) as error:  # of both decoders
        raise NotACheckpoint(f"the checkpoint cannot be read as {type_}: {error}") from error
    return Parts({}, (type_, Span.of(payload)))


def put_together(channels: Mapping[str, tuple[str, bytes]], core: tuple[str, bytes]) -> tuple[str, bytes] | None:
    """Inverse of `take_apart`; None if the parts are of types that no whole can hold together."""
    type_, rest = core
    types = {type_ for type_, _ in channels.values()}
    if type_ == MSGPACK and types <= {MSGPACK, "null", "bytes", "bytearray"}:
        entries = _entries.decode(rest)
        values = [map_header(len(channels))]
        for name, value in channels.items():
            values += (_text(name), _within(*value))
        core_entries = b"".join(_text(key) + bytes(item) for key, item in entries.items())
        return type_, b"".join((map_header(len(entries) + 1), core_entries, _text(VALUES), *values))
    if type_ == JSON and types <= {JSON, "null"}:
        whole = json.loads(rest)
        whole[VALUES] = {name: json.loads(data) if kind == JSON else None for name, (kind, data) in channels.items()}
        return type_, json.dumps(whole).encode()
    return None if channels else core


def time_of(core: Typed) -> int:
    """When a checkpoint says that it was made, as Unix time in nanoseconds; 0 if it does not say."""
    type_, span = core
    try:
        if type_ == MSGPACK:
            said: Any = msgspec.msgpack.decode(_entries.decode(span.view())["ts"], type=str)
        else:
            said = json.loads(span.copy())["ts"] if type_ == JSON else ""
        time = int(datetime.fromisoformat(said).timestamp() * 1_000_000) * 1000
        return time if 0 < time < _LATEST else 0
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError):
        return 0


def _take_msgpack_apart(payload: bytes) -> Parts:
    entries = _split(Span.of(payload))
    values = entries.pop(VALUES, None)
    if values is None:
        raise NotACheckpoint("there are no channel values in it")
    channels = {name: _alone(value) for name, value in _split(values).items()}
    core = b"".join((map_header(len(entries)), *(_text(key) + item.copy() for key, item in entries.items())))
    return Parts(channels, (MSGPACK, Span.of(core)))


def _split(span: Span) -> dict[str, Span]:
    """The entries of a map, where they stand."""
    raw = _entries.decode(span.view())
    spans: dict[str, Span] = {}
    at = span.start + len(map_header(len(raw)))
    for key, item in raw.items():
        at += len(_text(key))
        length = memoryview(item).nbytes
        spans[key] = Span(span.data, at, at + length)
        at += length
    if at != span.end:  # a longer form of a header, or a key that stands twice
        return {key: Span.of(bytes(item)) for key, item in raw.items()}
    return spans


def _alone(span: Span) -> Typed:
    """What the serializer calls a value that stands by itself."""
    first = span.data[span.start]
    if span.length == 1 and first == _NIL[0]:
        return "null", Span.of(b"")
    if first in _BYTES_HEADERS:
        return "bytes", Span(span.data, span.start + _BYTES_HEADERS[first], span.end)
    return MSGPACK, span


def _within(type_: str, data: bytes) -> bytes:
    """Inverse of `_alone`; an array of bytes is bytes within a whole, as the serializer has it."""
    if type_ == "null":
        return _NIL
    if type_ == MSGPACK:
        return data
    size = len(data)
    if size < 256:
        return b"\xc4" + size.to_bytes(1) + data
    return (b"\xc5" + size.to_bytes(2) if size < 65536 else b"\xc6" + size.to_bytes(4)) + data


def _text(text: str) -> bytes:
    data = text.encode()
    return text_header(len(data)) + data


def _take_json_apart(payload: bytes) -> Parts:
    whole = json.loads(payload)
    values = whole.pop(VALUES, None) if isinstance(whole, dict) else None
    if not isinstance(values, dict):
        raise NotACheckpoint("there are no channel values in it")
    return Parts({name: as_json(value) for name, value in values.items()}, as_json(whole))


def as_json(value: Any) -> Typed:
    """A value of JSON as JSON, which a serializer decodes to what it was within a whole checkpoint."""
    return ("null", Span.of(b"")) if value is None else (JSON, Span.of(json.dumps(value).encode()))


def as_msgpack(value: Any) -> Typed:
    """Plain data, as JSON has it, in the form that the serializer gives it; as JSON where msgpack has no form."""
    if value is None:
        return "null", Span.of(b"")
    try:
        return MSGPACK, Span.of(msgspec.msgpack.encode(value))
    except (OverflowError, UnicodeEncodeError, ValueError):
        return as_json(value)
