"""A new branch: a step that shows what an older one does, or that with changes, for an agent to go on from.

The new step follows the old one and has no writes waiting for it, so that whatever ran on the old one runs anew.
Within its thread it is one event.  In a new thread it comes after a copy of all that the old thread held when the
step was committed; both are there at once, or neither is.

What LangGraph looks for in a checkpoint is set as LangGraph sets it: an id of its own that sorts after all others,
the time, where it comes from (`fork`, or `update` where something was changed), and the next number.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from stepwell import codec, inspect, paths, reader
from stepwell import format as fmt
from stepwell.content import entry
from stepwell.errors import ConflictError, UsageError
from stepwell.events import Event, Sequence, StepCommitted, ThreadCopied, ThreadLabelled, WritesRecorded
from stepwell.fold import State
from stepwell.history import History, Link, cut, decoded, index_of
from stepwell.inspect import Data
from stepwell.patch import (
    Array,
    Map,
    Merge,
    Patch,
    Ref,
    Splice,
    Value,
    apply,
    diff,
    parse,
    parse_entry,
    payload_of,
    splice_pieces,
)
from stepwell.paths import ABSENT, Name, Part, Path
from stepwell.storage import Append, Entry

_CHECKPOINT: Final = "checkpoint"
_METADATA: Final = "metadata"
_COUNTERS: Final = "counters_since_delta_snapshot"
_GREGORIAN: Final = 0x01B21DD213814000  # 100 ns from the beginning of the calendar that UUIDs count by to Unix time
_HEAD_EVENTS: Final = (fmt.KIND_THREAD_OPENED, fmt.KIND_THREAD_PRUNED, fmt.KIND_THREAD_COPIED, fmt.KIND_LANE_OPENED)


def forked(history: History, lane: int, at: Link, patch: Mapping[str, Any] | None, now: int) -> StepCommitted:
    """The step that begins a branch.

    Args:
        history: The thread.
        lane: Number of the lane.
        at: The step to go on from.
        patch: What is to be different: values by their paths; `ABSENT` takes something away.
        now: Unix time in nanoseconds.

    Raises:
        UsageError: A path leads nowhere, or a value cannot be stored.
    """
    state = history.states.state(history.number, at.sequence)
    changes = _changes(history, state, patch or {})
    fields, step_id = _fields(history, state, now, "update" if changes.changes or changes.drop else "fork")
    parent_id: str | None = at.event.step_id
    if _would_be_read_through(history, lane, at, state):
        parent_id = at.event.parent_id
    lane_name, status = at.event.lane, at.event.status  # what is left to run is what was left then
    return StepCommitted(step_id, parent_id, changes, fields, lane_name, at.sequence, created_at=now, status=status)


def _would_be_read_through(history: History, lane: int, at: Link, state: State) -> bool:
    """Whether the writes that wait for a step would be taken for part of what a step after it shows.

    LangGraph puts a delta channel together from all that was written on the steps before.  A fork beside the step,
    instead of after it, shows what the step does.
    """
    counters = _entry(decoded_field(history, state, _METADATA), _COUNTERS)
    if not isinstance(counters, dict):
        return False
    (found,) = history.found(lane, [at.event.step_id])
    written = {channel for task in history.writes(found.writes, None) for channel in task.channels}
    return any(channel in written and channel not in state.channels for channel in counters)


def decoded_field(history: History, state: State, name: str) -> Data:
    """One of the fields that the adapter keeps of a step."""
    value = state.fields.get(name)
    return None if value is None else decoded(value, history.payloads)


def _entry(data: Data, key: str) -> Any:
    return data.get(key) if isinstance(data, dict) else None


def _fields(history: History, state: State, now: int, source: str) -> tuple[Merge, str]:
    """What differs in the step's fields, and the id that it gets."""
    metadata, checkpoint = (decoded_field(history, state, name) for name in (_METADATA, _CHECKPOINT))
    number = _entry(metadata, "step")
    number = number + 1 if type(number) is int else None
    step_id = new_id(number or 0, now)
    changes: dict[str, Patch] = {}
    if isinstance(checkpoint, dict) and "id" in checkpoint:
        time = datetime.fromtimestamp(now / 1e9, UTC).isoformat()
        new: dict[str, Data] = {"id": step_id, **({"ts": time} if "ts" in checkpoint else {})}
        changes[_CHECKPOINT] = _with_entries(history, state.fields[_CHECKPOINT], new)
    if isinstance(metadata, dict):
        new = {"source": source, **({"step": number} if number is not None else {})}
        changes[_METADATA] = _with_entries(history, state.fields[_METADATA], new)
    return Merge((), changes), step_id


def _with_entries(history: History, value: Value, new: Mapping[str, Data]) -> Patch:
    """The patch that sets entries of a map."""
    old = reader.resolved_value(value, history.payloads.read)
    changed = old
    for name, data in new.items():
        changed = replaced(changed, (Name(name),), data)
    return diff(old, changed) or Merge()


def _changes(history: History, state: State, patch: Mapping[str, Any]) -> Merge:
    """What differs in the channels."""
    drop: list[str] = []
    changes: dict[str, Value] = {}
    olds: dict[str, Value | None] = {}
    for text, data in patch.items():
        path = Path.parse(text)
        name = path.channel
        if name not in olds:
            value = state.channels.get(name)
            olds[name] = None if value is None else reader.resolved_value(value, history.payloads.read)
        now = changes.get(name, olds[name])
        if not path.inside and data is ABSENT:
            drop.append(name)
        elif not path.inside:
            changes[name] = _stored(data)
        elif now is None:
            raise UsageError(f"there is no channel {name!r} that {path} could stand in; there are {[*state.channels]}")
        else:
            changes[name] = replaced(now, path.inside, data)
    patches = {name: diff(olds[name], value) for name, value in changes.items() if name not in drop}
    return Merge(tuple(drop), {name: each for name, each in patches.items() if each is not None})


def _stored(data: Data) -> Value:
    try:
        return parse(*inspect.encode(data))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _element(data: Data) -> bytes:
    try:
        return inspect.encode_element(data)
    except ValueError as error:
        raise UsageError(str(error)) from error


def replaced(value: Value, inside: tuple[Part, ...], data: Any) -> Value:
    """A value, with its content as bytes, with something else at the end of a way; all else keeps its bytes."""
    part, *rest = inside
    if isinstance(value, Map) and isinstance(part, Name) and (part.name in value.entries or not rest):
        if data is ABSENT and not rest:
            return Map(value.type, value.wrapped, {k: v for k, v in value.entries.items() if k != part.name})
        old = value.entries.get(part.name)
        new = replaced(old, tuple(rest), data) if rest and old is not None else parse_entry(_element(data))
        return Map(value.type, value.wrapped, {**value.entries, part.name: new})
    if isinstance(value, Array) and not isinstance(part, Name):
        index = index_of(value, part, _NO_PAYLOADS)
        if index is not None:
            sources: list[int | bytes] = list(range(value.count))
            if data is ABSENT and not rest:
                del sources[index]
            else:
                element = _at(value, index)
                sources[index] = _element(paths.replace(inspect.decode("msgpack", element), tuple(rest), data))
            return apply(Splice(splice_pieces(sources)), value)
    whole = inspect.decode(value.type, payload_of(value, _unread))
    type_, payload = ("msgpack", _element(paths.replace(whole, inside, data)))
    return parse_entry(payload) if not value.type else parse(type_, payload)


def _at(value: Array, index: int) -> bytes:
    (content,) = cut(value, index, index + 1)
    assert isinstance(content, bytes)
    return content


def _unread(ref: Ref) -> bytes:
    raise AssertionError("the content of a value that is changed is bytes")


class _NoPayloads(reader.Payloads):
    """For values whose content is bytes."""

    def __init__(self) -> None:
        self.thread = 0

    def fetch(self, sequences: object) -> None:
        """There is nothing to fetch."""


_NO_PAYLOADS: Final = _NoPayloads()


def new_id(number: int, now: int) -> str:
    """An id as LangGraph makes them: a UUID of version 6, which sorts by time, and says the step's number.

    Args:
        number: The step's number.
        now: Unix time in nanoseconds.
    """
    ticks = now // 100 + _GREGORIAN
    high, low = ticks >> 12 & ((1 << 48) - 1), ticks & 0x0FFF
    node = int.from_bytes(os.urandom(6))
    return str(uuid.UUID(int=high << 80 | 6 << 76 | low << 64 | 0b10 << 62 | (number & 0x3FFF) << 48 | node))


def into(history: History, target_id: str, at: Link, step: StepCommitted, now: int) -> Append:
    """The operation that makes a new thread of all up to a step, and of the step that begins the branch."""
    if history.storage.thread(target_id) is not None:
        raise ConflictError(
            f"thread {target_id!r} exists already; delete it first or fork to another id",
            thread=target_id,
            expected=0,
            actual=target_id,
        )
    entries = [*_Copying(history).entries(at, step, now)]
    return Append(target_id, lambda number, first: entries, expected_head=0, restart=True)


class _Copying:
    """The events of a thread for a new one, where they stand elsewhere and refer to each other anew."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._places: dict[int, int] = {}
        self._last = 1  # the event that opens the thread
        self._lanes: set[str] = set()

    def entries(self, at: Link, step: StepCommitted, now: int) -> Iterator[Entry]:
        history, after = self._history, 0
        while page := history.storage.scan(history.number, after, at.sequence + 1, 256, reverse=False):
            kept = [record for record in page if record.header.kind not in _HEAD_EVENTS]
            for record, (_, event) in zip(kept, reader.decoded(history.storage, history.number, kept), strict=True):
                yield self._entry(record, event, now)
            after = page[-1].sequence
        yield entry(copied := ThreadCopied(history.thread_id, at.sequence, now), codec.encode(copied), now)
        last = msgspec.structs.replace(step, base=self._place(at.sequence))
        yield entry(last, codec.encode(last), now)

    def _entry(self, record: codec.Record, event: Event, now: int) -> Entry:
        if isinstance(event, ThreadLabelled):
            self._last += 1
            return entry(event, codec.encode(event), now)
        assert isinstance(event, StepCommitted | WritesRecorded)
        body = codec.moved(record, event, lambda ref: Ref(self._place(ref.sequence), ref.start, ref.length))
        self._last += 1 if event.lane in self._lanes else 2  # a lane's first event comes after the one that opens it
        self._lanes.add(event.lane)
        self._places[record.sequence] = self._last
        moved = entry(event, body, now)
        return moved._replace(base=self._place(moved.base)) if moved.base else moved

    def _place(self, sequence: int) -> Sequence:
        place = self._places.get(sequence)
        if place is None:
            raise reader.missing(self._history.storage, self._history.number, sequence)
        return Sequence(place)
