"""State at a point, and the bytes behind it.

Nothing here holds a transaction: each question to the storage is answered whole, and what is built from the
answers is plain data.  A branch is folded forward once, however many of its states are asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from stepwell import codec
from stepwell.cache import Cache, Shelf
from stepwell.codec import Record
from stepwell.errors import ConflictError, CorruptionError
from stepwell.events import Event, ItemPut, Sequence, StepCommitted, Write, WritesRecorded
from stepwell.fold import EMPTY, PendingWrite, State, fold, fold_writes
from stepwell.observing import Observer, Span, tell
from stepwell.patch import Array, Blob, Map, Merge, PatchError, Ref, Value, payload_of, references
from stepwell.storage import Found, Storage

_PAGE_EVENTS: Final = 256
_FIRST_ANCESTORS: Final = 64
_PAYLOADS_HELD_BYTES: Final = 1 << 25
_STATES_HELD: Final = 16  # of one thread
_STATE_BYTES: Final = 4096  # what a state takes beside the references that it shares with others, roughly
_REFERENCE_BYTES: Final = 200
_STATES_PER_CALL: Final = 4


class Payloads:
    """The payloads of one thread's events, read as they are needed; the latest are held.

    Attributes:
        thread: Number of the thread.
    """

    def __init__(self, storage: Storage, thread: int) -> None:
        self.thread = thread
        self._storage = storage
        self._held: dict[int, memoryview] = {}
        self._held_bytes = 0

    def read(self, ref: Ref) -> bytes:
        """The bytes behind a reference."""
        return bytes(self.view(ref))

    def view(self, ref: Ref) -> memoryview:
        """The bytes behind a reference, where they lie."""
        payload = self._held.get(ref.sequence)
        if payload is None:
            self.fetch((ref.sequence,))
            payload = self._held[ref.sequence]
        return codec.slice_payload(payload, ref, self.thread)

    def fetch(self, sequences: Iterable[int]) -> None:
        """Read some events' payloads in one round trip, unless they are held already."""
        wanted = sorted({sequence for sequence in sequences if sequence not in self._held})
        if not wanted:
            return
        payloads = self._storage.payloads(self.thread, wanted)
        if self._held_bytes > _PAYLOADS_HELD_BYTES:
            self._held.clear()
            self._held_bytes = 0
        for sequence in wanted:
            if sequence not in payloads:
                raise missing(self._storage, self.thread, sequence)
            self._held[sequence] = payloads[sequence]
            self._held_bytes += len(payloads[sequence])

    def payload(self, value: Value) -> bytes:
        """The bytes that a value was parsed from."""
        self.fetch(ref.sequence for ref in references(value))
        return payload_of(value, self.read)


def missing(storage: Storage, thread: int, sequence: int) -> ConflictError | CorruptionError:
    """The error for an event that should be there: was it pruned since, or is it lost?"""
    oldest = storage.scan(thread, 0, 1 << 63, 1, reverse=False)
    if not oldest or sequence < oldest[0].sequence:
        return ConflictError(
            f"thread {thread} was pruned or deleted while it was read; read it again",
            thread=str(thread),
            expected=sequence,
            actual=oldest[0].sequence if oldest else None,
        )
    return CorruptionError("the event is missing", thread=thread, sequence=sequence)


class Reader:
    """Reads states, and remembers those that were read last.

    A state never changes once it is committed, so one that is remembered is right for ever; it names its
    content by reference and so costs little to keep.

    Attributes:
        observer: Told of each reading; None if nobody wants to know.
    """

    def __init__(self, storage: Storage, cache: Cache | None = None) -> None:
        self.observer: Observer | None = None
        self._storage = storage
        self._held: Shelf[int, dict[int, State]] = Shelf(cache or Cache())

    def state(self, thread: int, sequence: int) -> State:
        """The state after one step.

        Args:
            thread: Number of the thread.
            sequence: Where the step stands.

        Raises:
            ConflictError: The thread was pruned or deleted meanwhile.
            CorruptionError: An event is damaged or missing.
        """
        return self.states(thread, (sequence,))[sequence]

    def states(self, thread: int, sequences: Iterable[int]) -> dict[int, State]:
        """The states after some steps; 0 is the empty state.  Raises as `state` does."""
        observer = self.observer
        if observer is None:
            return self._states(thread, sequences)
        failure: BaseException | None = None
        began = time.time_ns()
        wanted = list(sequences)
        try:
            return self._states(thread, wanted)
        except BaseException as error:
            failure = error
            raise
        finally:
            tell(observer.read, thread, len(wanted), Span(began, time.time_ns()), failure)

    def _states(self, thread: int, sequences: Iterable[int]) -> dict[int, State]:
        wanted = sorted(set(sequences) - {0}, reverse=True)
        found = self._remembered(thread)
        missing_ones = [sequence for sequence in wanted if sequence not in found]
        events: dict[int, StepCommitted] = {}
        if missing_ones:
            records, bases = self._storage.branches(thread, missing_ones, frozenset(found))
            events = {sequence: _step(thread, record) for sequence, record in records.items()}
            found.update({sequence: codec.decode_base(thread, sequence, data) for sequence, data in bases.items()})
        followers = Counter(event.base for event in events.values())
        kept = {0, *wanted}
        for sequence in sorted(events):
            event = events.pop(sequence)
            base = found.get(event.base)
            if base is None:
                raise missing(self._storage, thread, event.base)
            found[sequence] = folded(base, event, thread, sequence)
            followers[event.base] -= 1
            # A state is dropped with the last one that is based on it, unless it was asked for.
            if not followers[event.base] and event.base not in kept:
                del found[event.base]
        for sequence in wanted:
            if sequence not in found:
                raise missing(self._storage, thread, sequence)
        result = {sequence: found[sequence] for sequence in wanted}
        self._remember(thread, result)
        return {0: EMPTY, **result}

    def latest(self, thread: int) -> int:
        """The last step of a thread whose state is remembered; 0 if none is."""
        return max(self._held.get(thread) or (0,))

    def _remembered(self, thread: int) -> dict[int, State]:
        return {**(self._held.get(thread) or {}), 0: EMPTY}

    def _remember(self, thread: int, states: dict[int, State]) -> None:
        if len(states) > _STATES_PER_CALL:
            return  # a walk through history, which does not come back to where it was
        held = dict(self._held.get(thread) or {})
        for sequence, state in states.items():
            held.pop(sequence, None)
            held[sequence] = state
        held = dict([*held.items()][-_STATES_HELD:])
        # Those of one thread share most of what they refer to.
        self._held.put(thread, held, sum(map(_size, states.values())) + _STATE_BYTES * len(held))

    def ancestors(self, thread: int, lane: int, step_key: bytes) -> Iterator[tuple[Found, State]]:
        """The steps that a step descends from, nearest first, with their states; the step itself is left out."""
        seen = {step_key}
        size = _FIRST_ANCESTORS
        while line := self._storage.ancestry(thread, lane, step_key, size):
            page: list[Found] = []
            for step_key, found in line:
                if step_key in seen:
                    break
                seen.add(step_key)
                page.append(found)
            states = self.states(thread, [found.step for found in page])
            for found in page:
                yield found, states[found.step]
            if len(page) < size:
                return
            size *= 2


def _size(state: State) -> int:
    """Bytes of memory that a state takes by itself, roughly."""
    return _REFERENCE_BYTES * sum(len(value.pieces) for value in state.channels.values() if isinstance(value, Array))


def _step(thread: int, record: Record) -> StepCommitted:
    event = codec.decode(thread, record)
    if not isinstance(event, StepCommitted):
        raise CorruptionError("the event is not a step", thread=thread, sequence=record.sequence)
    return event


def folded(base: State, event: StepCommitted, thread: int, sequence: int) -> State:
    """`fold`, with a misfit reported as the corruption that it is."""
    try:
        return fold(base, event, Sequence(sequence))
    except PatchError as error:
        reason = f"the step does not fit its base {event.base}: {error}"
        raise CorruptionError(reason, thread=thread, sequence=sequence) from error


def events(
    storage: Storage, thread: int, after: int, before: int, *, reverse: bool = False
) -> Iterator[tuple[Sequence, Event]]:
    """The events between two sequences, both excluded, page by page."""
    while True:
        page = storage.scan(thread, after, before, _PAGE_EVENTS, reverse=reverse)
        if not page:
            return
        yield from decoded(storage, thread, page)
        if reverse:
            before = page[-1].sequence
        else:
            after = page[-1].sequence


def decoded(storage: Storage, thread: int, page: list[Record]) -> Iterator[tuple[Sequence, Event]]:
    """Events from records, with the names of their lanes; raises ConflictError if the thread was pruned meanwhile."""
    if not page:
        return
    oldest = min(record.sequence for record in page)
    names = storage.lane_names(thread, {record.header.lane for record in page}, oldest)
    for record in page:
        yield Sequence(record.sequence), codec.decode(thread, record, names.get(record.header.lane, ""))


def writes(storage: Storage, thread: int, sequences: Iterable[int], lane: str = "") -> list[PendingWrite]:
    """The writes that count of some events that record them."""
    wanted = list(sequences)
    if not wanted:
        return []
    records = storage.read(thread, wanted)
    recorded: list[WritesRecorded] = []
    for sequence in wanted:
        if sequence not in records:
            raise missing(storage, thread, sequence)
        event = codec.decode(thread, records[sequence], lane)
        if not isinstance(event, WritesRecorded):
            raise CorruptionError("the event does not record writes", thread=thread, sequence=sequence)
        recorded.append(event)
    return fold_writes(recorded)


def resolved(event: Event, read: Callable[[Ref], bytes]) -> Event:
    """The same event with all content as bytes."""
    if isinstance(event, StepCommitted):
        channels, fields = codec.resolve(event.channels, read), codec.resolve(event.fields, read)
        assert isinstance(channels, Merge)
        assert isinstance(fields, Merge)
        return codec.with_patches(event, channels, fields)
    if isinstance(event, WritesRecorded):
        return codec.with_writes(event, tuple(resolved_write(write, read) for write in event.writes))
    if isinstance(event, ItemPut):
        return codec.with_values(event, lambda value: resolved_value(value, read), created_at=event.created_at)
    return event


def resolved_value(value: Value, read: Callable[[Ref], bytes]) -> Value:
    """The same value with all content as bytes."""
    patch = codec.resolve(value, read)
    assert isinstance(patch, Blob | Array | Map)
    return patch


def resolved_write(write: Write, read: Callable[[Ref], bytes]) -> Write:
    """The same write with its content as bytes."""
    return Write(write.index, write.channel, resolved_value(write.value, read))


def typed(values: Mapping[str, Value], payloads: Payloads) -> dict[str, tuple[str, bytes]]:
    """Values as `(type, payload)`."""
    payloads.fetch(ref.sequence for value in values.values() for ref in references(value))
    return {name: (value.type, payloads.payload(value)) for name, value in values.items()}
