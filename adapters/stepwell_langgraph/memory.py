"""What is remembered of the heads of lanes, so that a put need not read the log.

A memory belongs to one step of one lane.  The put that follows the step takes it, brings it up to date and
gives it back under its own step; a put that finds none has it made from the log.  `get_tuple` makes one as
well, since the objects that it hands out are those that the next put brings back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several
from typing import Any, Final, NamedTuple, TypeAlias

from langgraph.checkpoint.serde.base import SerializerProtocol

from stepwell import reader
from stepwell.cache import Cache, Shelf
from stepwell.events import Sequence, Status
from stepwell.fold import State
from stepwell.format import id_key
from stepwell.log import Log
from stepwell.patch import Array, Map, Ref, Value, read_content, references, size_of
from stepwell.storage import Storage
from stepwell_langgraph.addresses import CHECKPOINT, METADATA, Address, locate
from stepwell_langgraph.fields import Fields
from stepwell_langgraph.translate import Channel, DictChannel, ListChannel, PlainChannel, by_element

_MOST_OF_LANE: Final = 8  # steps of one lane that are remembered at once: forks, and who reads while another writes
_MEMORY_BYTES: Final = 2048  # that remembering an empty state takes, roughly
_ELEMENT_BYTES: Final = 256  # and an element or entry, beside its encoding
_ANNOUNCED_OBJECTS: Final = 1 << 13  # of one step: noted in the event loop, in a millisecond
_ANNOUNCED_BYTES: Final = 64  # that noting one takes, roughly
_ANNOUNCED_DEPTH: Final = 2  # an Overwrite of a list, a dict of lists

LaneKey = tuple[str, str]
"""Thread id and namespace."""


class LaneMemory:
    """What is remembered of the head of one lane.

    Attributes:
        incarnation: Number of the thread.
        sequence: Where the step stands.
        channels: What each channel stands for.
        versions: The version of each channel.
        checkpoint: The checkpoint without its values.
        metadata: Its metadata.
        fresh: Whether the objects were handed out since the last put: the next one begins an invocation.
        turn: Number of puts so far.
        status: What the step said that its thread has come to, if it was put.
    """

    __slots__ = (
        "channels",
        "checkpoint",
        "fresh",
        "incarnation",
        "metadata",
        "parent_id",
        "sequence",
        "status",
        "turn",
        "versions",
    )

    def __init__(self) -> None:
        self.incarnation = 0
        self.sequence = Sequence(0)
        self.parent_id: str | None = None
        self.channels: dict[str, Channel] = {}
        self.versions: Mapping[str, str | int | float] = {}
        self.checkpoint = Fields()
        self.metadata = Fields()
        self.fresh = True
        self.turn = 0
        self.status: Status | None = None

    def knows(self, values: Mapping[str, Any]) -> bool:
        """Whether some of these values hold objects that this memory knows."""
        return any(
            isinstance(channel, ListChannel) and isinstance(value, list) and value and channel.begins_with(value[0])
            for channel, value in ((self.channels.get(name), value) for name, value in values.items())
        )

    @property
    def size(self) -> int:
        """Bytes of the encoded state, and what is noted of each element, roughly: what holding its objects may cost."""
        fields = self.checkpoint.size + self.metadata.size
        channels = self.channels.values()
        return _MEMORY_BYTES + fields + sum(channel.size + _ELEMENT_BYTES * channel.count for channel in channels)


class Memories:
    """The steps that were written or read lately, lane by lane.

    A step may have two memories: one of the objects that were put, for the run that goes on, and one of the
    objects that `get_tuple` handed out, for the run that they begin.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        cache = cache or Cache()
        self._lock = threading.RLock()  # a signal handler or a finalizer may close the saver at any moment
        self._lanes: Shelf[LaneKey, _Lane] = Shelf(cache)
        self._announced: Shelf[tuple[LaneKey, str], Announced] = Shelf(cache)

    def peek(self, lane: LaneKey, step_id: str) -> LaneMemory | None:
        """The memory of a step that `take` would give away, to be looked at only."""
        with self._lock:
            memories = self._lanes.get(lane) or {}
            return memories.get((step_id, True)) or memories.get((step_id, False))

    def size(self, lane: LaneKey, step_id: str | None) -> int | None:
        """The size of the largest memory of a step of a lane (None: of any, as each may be the head)."""
        with self._lock:
            memories = self._lanes.get(lane) or {}
            return max((memories[key].size for key in memories if step_id in (None, key[0])), default=None)

    def take(self, lane: LaneKey, step_id: str, values: Mapping[str, Any]) -> LaneMemory | None:
        """The memory of a step, which then belongs to the caller alone.

        Args:
            lane: The lane.
            step_id: The step.
            values: The channel values that come next: of two memories, they say whose objects they are.
        """
        with self._lock:
            memories = self._lanes.take(lane) or {}
            read, put = memories.pop((step_id, False), None), memories.pop((step_id, True), None)
            self._hold(lane, memories)
        if put is None or (read is not None and not put.knows(values) and read.knows(values)):
            return read
        return put

    def put(self, lane: LaneKey, step_id: str, memory: LaneMemory) -> None:
        """Remember a step; memories that a put made and those that a read made do not replace each other."""
        with self._lock:
            memories = self._lanes.take(lane) or {}
            memories.pop((step_id, not memory.fresh), None)
            memories[step_id, not memory.fresh] = memory
            while len(memories) > _MOST_OF_LANE:
                del memories[next(iter(memories))]
            self._hold(lane, memories)

    def _hold(self, lane: LaneKey, memories: _Lane) -> None:
        if memories:
            self._lanes.put(lane, memories, sum(memory.size for memory in memories.values()))

    def forget(self, thread_id: str) -> None:
        """Forget all lanes of a thread."""
        with self._lock:
            for lane in self._lanes.all_keys():
                if lane[0] == thread_id:
                    self._lanes.take(lane)

    def take_puts(self) -> Several[tuple[LaneKey, str, LaneMemory]]:
        """Every memory that a put made; nothing is remembered afterwards."""
        with self._lock:
            lanes = [(lane, self._lanes.take(lane) or {}) for lane in self._lanes.all_keys()]
        return [
            (lane, step_id, memory)
            for lane, memories in lanes
            for (step_id, by_put), memory in memories.items()
            if by_put
        ]

    def announce(self, lane: LaneKey, step_id: str, writes: Several[tuple[str, Any]]) -> None:
        """Note the objects that a task on a step returned: they may have been changed by it."""
        with self._lock:
            announced = self._announced.take((lane, step_id)) or Announced(set(), set())
            for channel, value in writes:
                announced.channels.add(channel)
                if not _announce(value, announced.objects, _ANNOUNCED_DEPTH):
                    announced.channels.clear()  # too many to note: everything will be looked at
            self._announced.put((lane, step_id), announced, _ANNOUNCED_BYTES * len(announced.objects))

    def announced(self, lane: LaneKey, step_id: str | None, *, take: bool) -> Announced:
        """What was noted for the step after `step_id`; it can be taken once."""
        if step_id is None:
            return Announced(set(), set())
        found = self._announced.take((lane, step_id)) if take else self._announced.get((lane, step_id))
        return found or Announced(set(), set())

    def take_last_put(self, lane: LaneKey, step_id: str | None) -> tuple[str, LaneMemory] | None:
        """The memory that the last put of a lane made, if it is of that step (None: of any)."""
        with self._lock:
            memories = self._lanes.get(lane) or {}
            last = next((step for step, by_put in reversed(memories) if by_put), None)
            if last is None or step_id not in (None, last):
                return None
            memory = memories.pop((last, True))
            self._lanes.take(lane)
            self._hold(lane, memories)
            return last, memory


class Announced(NamedTuple):
    """What the writes of one step said of what may have changed.

    Attributes:
        objects: Identities of the objects that were returned.
        channels: The channels that they were returned for.
    """

    objects: set[int]
    channels: set[str]


def _announce(value: object, announced: set[int], depth: int) -> bool:
    """Note an object and what it holds: elements, entries, and the value that an Overwrite wraps.

    Returns:
        Whether there was room for all of them.
    """
    if len(announced) >= _ANNOUNCED_OBJECTS:
        return False
    announced.add(id(value))
    if not depth:
        return True
    if isinstance(value, dict):
        items: Iterable[object] = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        items = list(value)
    elif type(value).__name__ == "Overwrite":
        items = (getattr(value, "value", None),)
    else:
        return True
    return all(_announce(item, announced, depth - 1) for item in items)


_Lane: TypeAlias = dict[tuple[str, bool], LaneMemory]
"""The memories of one lane by step, and whether a put made them; the latest comes last."""


def recall_step(
    storage: Storage, serde: SerializerProtocol, number: int, state: State, payloads: reader.Payloads
) -> LaneMemory:
    """The memory of a step that was read from the log.

    Args:
        storage: Where the log is kept.
        serde: Serializer of channel values.
        number: Number of the thread.
        state: The state after the step.
        payloads: Reads the thread's content.
    """
    memory = LaneMemory()
    memory.incarnation = number
    memory.sequence = state.sequence
    memory.parent_id = state.parent_id
    split = by_element(serde)
    for name, value in state.channels.items():
        # Only what JsonPlus made of a list or dict: a user's bytes may look the same.
        by_parts = split and value.type == "msgpack"
        if by_parts and isinstance(value, Array) and not value.wrapped:
            # The elements are read only if one of them has to be compared.
            lengths = [length for piece in value.pieces for length in piece.lengths]
            memory.channels[name] = ListChannel(_Elements(storage, number, value).read, lengths)
            continue
        known = reader.resolved_value(value, payloads.read)
        if by_parts and isinstance(known, Map) and not known.wrapped:
            memory.channels[name] = DictChannel(known.entries, size_of(known))
        else:
            memory.channels[name] = PlainChannel(known, size_of(known))
    if state.fields:
        checkpoint = reader.resolved_value(state.fields[CHECKPOINT], payloads.read)
        memory.checkpoint = Fields(checkpoint)
        memory.metadata = Fields(reader.resolved_value(state.fields[METADATA], payloads.read))
        memory.versions = serde.loads_typed((checkpoint.type, payloads.payload(checkpoint)))["channel_versions"]
    return memory


def recall_parent(log: Log, serde: SerializerProtocol, address: Address) -> LaneMemory:
    """The memory of the step that an address names; an empty one if it is not in the log."""
    place = locate(log.storage, address)
    if place is None or address.checkpoint_id is None:
        return LaneMemory()
    found = log.storage.find(place.number, place.lane, [id_key(address.checkpoint_id)])[0]
    if not found.step or found.hidden:
        return LaneMemory()
    state = log.reader.state(place.number, found.step)
    return recall_step(log.storage, serde, place.number, state, reader.Payloads(log.storage, place.number))


def value_along_branch(log: Log, serde: SerializerProtocol, address: Address, name: str, version: Any) -> Value | None:
    """The value, with content as bytes, that a channel has under some version above the step of an address."""
    place = locate(log.storage, address)
    if place is None or address.checkpoint_id is None:
        return None
    payloads = reader.Payloads(log.storage, place.number)
    for _, state in log.reader.ancestors(place.number, place.lane, id_key(address.checkpoint_id)):
        if CHECKPOINT in state.fields:
            checkpoint = serde.loads_typed(reader.typed(state.fields, payloads)[CHECKPOINT])
            if checkpoint["channel_versions"].get(name) == version:
                value = state.channels.get(name)
                return None if value is None else reader.resolved_value(value, payloads.read)
    return None


class _Elements:
    """The stored elements of an array, read when they are needed."""

    def __init__(self, storage: Storage, thread: int, value: Array) -> None:
        self._storage = storage
        self._thread = thread
        self._value = value

    def read(self) -> list[memoryview]:
        payloads = reader.Payloads(self._storage, self._thread)
        payloads.fetch(ref.sequence for ref in references(self._value))
        elements: list[memoryview] = []
        for piece in self._value.pieces:
            ref = piece.content
            data = payloads.view(ref) if isinstance(ref, Ref) else read_content(ref, payloads.read)
            content = memoryview(data)
            offset = 0
            for length in piece.lengths:
                elements.append(content[offset : offset + length])
                offset += length
        return elements
