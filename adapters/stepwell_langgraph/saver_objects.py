"""Savers that are imported from as objects: InMemorySaver by what it holds, any other by its public methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeGuard

from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.base import SerializerProtocol

from stepwell_langgraph.addresses import to_config
from stepwell_langgraph.sources import (
    SQLITE,
    Place,
    Reading,
    Readings,
    StoredCheckpoint,
    StoredWrite,
    Unreadable,
    Wanted,
    one_by_one,
)
from stepwell_langgraph.whole import Span, Typed

_EMPTY: Final = "empty"


def is_memory(saver: BaseCheckpointSaver[Any]) -> TypeGuard[InMemorySaver]:
    """Whether a saver holds its checkpoints as InMemorySaver does."""
    if not isinstance(saver, InMemorySaver):
        return False
    entries = [*chain.from_iterable(lane.values() for lanes in saver.storage.values() for lane in lanes.values())]
    return all(isinstance(entry, tuple) and len(entry) == 3 for entry in entries)


class MemoryObject:
    """The checkpoints that an InMemorySaver holds, as it encoded them."""

    is_exact: Final = True

    def __init__(self, saver: InMemorySaver) -> None:
        self._saver = saver
        self.label = type(saver).__name__

    def size_bytes(self) -> None:
        return None

    def threads(self) -> Iterator[tuple[str, int]]:
        counts = {thread_id: sum(map(len, lanes.values())) for thread_id, lanes in [*self._saver.storage.items()]}
        for thread_id, _, _ in [*self._saver.writes]:
            counts.setdefault(thread_id, 0)
        yield from counts.items()

    def places(self, thread_id: str) -> Iterator[Place]:
        lanes = self._saver.storage.get(thread_id, {})
        found = [
            Place(namespace, checkpoint_id, parent_id or None)
            for namespace, lane in lanes.items()
            for checkpoint_id, (_, _, parent_id) in lane.items()
        ]
        yield from sorted(found, key=lambda place: str(place.checkpoint_id))
        for thread, namespace, checkpoint_id in [*self._saver.writes]:
            if thread == thread_id and checkpoint_id not in lanes.get(namespace, {}):
                yield Place(namespace, checkpoint_id, None, exists=False)

    def read(self, thread_id: str, wanted: Sequence[Wanted]) -> Readings:
        return one_by_one(self._read, thread_id, wanted)

    def _read(self, thread_id: str, place: Place, *, whole: bool) -> Reading:
        problems: list[str] = []
        checkpoint = None
        if whole and place.exists:
            try:
                checkpoint = self._checkpoint(thread_id, place)
            except Unreadable as error:
                problems.append(str(error))
        return Reading(checkpoint, self._writes(thread_id, place), problems)

    def twin(self) -> None:
        return None

    def close(self) -> None:
        """It belongs to the caller."""

    def _checkpoint(self, thread_id: str, place: Place) -> StoredCheckpoint:
        try:
            core, metadata, _ = self._saver.storage[thread_id][place.namespace][place.checkpoint_id]
        except KeyError:
            raise Unreadable("the checkpoint was removed meanwhile") from None
        channels: dict[str, Typed] = {}
        for name, version in self._saver.serde.loads_typed(core)["channel_versions"].items():
            blob = self._saver.blobs.get((thread_id, place.namespace, name, version))
            if blob is not None and blob[0] != _EMPTY:
                channels[name] = _typed(blob)
        return StoredCheckpoint(channels, _typed(core), _typed(metadata))

    def _writes(self, thread_id: str, place: Place) -> list[StoredWrite]:
        stored = self._saver.writes.get((thread_id, place.namespace, place.checkpoint_id), {})
        return [
            StoredWrite(path, task_id, index, channel, _typed(value))
            for (task_id, index), (_, channel, value, path) in stored.items()
        ]


class SaverObject:
    """The checkpoints of any saver, as its public methods give them.

    Those give objects, which are encoded anew.  They do not give the path and index of a pending write: of writes
    whose order would be another without them, the order stands in place of the path.
    """

    is_exact: Final = False

    def __init__(self, saver: BaseCheckpointSaver[Any], serde: SerializerProtocol) -> None:
        self._saver = saver
        self._serde = serde
        self._places: dict[str, list[Place]] = {}
        self.label = type(saver).__name__

    def size_bytes(self) -> None:
        return None

    def threads(self) -> Iterator[tuple[str, int]]:
        for found in self._saver.list(None):
            at = found.config["configurable"]
            self._places.setdefault(at["thread_id"], []).append(_place(found))
        oldest_first = sorted(
            self._places, key=lambda name: min(str(place.checkpoint_id) for place in self._places[name])
        )
        for thread_id in oldest_first:
            yield thread_id, len(self._places[thread_id])

    def places(self, thread_id: str) -> Iterator[Place]:
        yield from sorted(self._places.pop(thread_id), key=lambda place: str(place.checkpoint_id))

    def read(self, thread_id: str, wanted: Sequence[Wanted]) -> Readings:
        return one_by_one(self._read, thread_id, wanted)

    def _read(self, thread_id: str, place: Place, *, whole: bool) -> Reading:
        found = self._tuple(thread_id, place)
        return Reading(self._checkpoint(found) if whole else None, self._writes(found))

    def twin(self) -> None:
        return None

    def close(self) -> None:
        """It belongs to the caller."""

    def _checkpoint(self, found: CheckpointTuple) -> StoredCheckpoint:
        core = {key: value for key, value in found.checkpoint.items() if key != "channel_values"}
        channels = {name: self._typed(value) for name, value in found.checkpoint["channel_values"].items()}
        return StoredCheckpoint(channels, self._typed(core), self._typed(dict(found.metadata)))

    def _writes(self, found: CheckpointTuple) -> list[StoredWrite]:
        pending = found.pending_writes or []
        counts: Counter[str] = Counter()
        writes: list[StoredWrite] = []
        for task_id, channel, value in pending:
            index = WRITES_IDX_MAP.get(channel)
            if index is None:
                index = counts[task_id]
                counts[task_id] += 1
            writes.append(StoredWrite("", task_id, index, channel, self._typed(value)))
        if writes == sorted(writes, key=lambda write: (write.task_id, write.idx)):
            return writes
        order = {task_id: number for number, task_id in enumerate(dict.fromkeys(task_id for task_id, _, _ in pending))}
        return [write._replace(task_path=f"~imported, {order[write.task_id]:010}") for write in writes]

    def _tuple(self, thread_id: str, place: Place) -> CheckpointTuple:
        try:
            found = self._saver.get_tuple(to_config(thread_id, place.namespace, place.checkpoint_id))
        except Exception as error:  # whatever a saver raises, the other checkpoints may be well
            raise Unreadable(f"{self.label} cannot read it: {error!r}") from error
        if found is None:
            raise Unreadable("the checkpoint was removed meanwhile")
        return found

    def _typed(self, value: Any) -> Typed:
        try:
            return _typed(self._serde.dumps_typed(value))
        except Exception as error:  # of user's types, and of serializers
            raise Unreadable(f"a value cannot be encoded: {error!r}") from error


def _place(found: CheckpointTuple) -> Place:
    at = found.config["configurable"]
    parent = (found.parent_config or {}).get("configurable", {}).get("checkpoint_id")
    return Place(at.get("checkpoint_ns", ""), at["checkpoint_id"], parent or None)


def _typed(typed: tuple[str, bytes]) -> Typed:
    type_, payload = typed
    return type_, Span.of(bytes(payload))


def address_of(saver: BaseCheckpointSaver[Any]) -> str | None:
    """Where the database of a SqliteSaver or PostgresSaver is, so that its tables can be read; None if not known."""
    module = type(saver).__module__
    connection: Any = getattr(saver, "conn", None)
    if module == "langgraph.checkpoint.sqlite":
        path = next((row[2] for row in connection.execute("PRAGMA database_list") if row[1] == "main"), "")
        return f"{SQLITE}{path}" if path else None
    information = getattr(connection, "info", None)  # a pool of connections has none
    if module == "langgraph.checkpoint.postgres" and information is not None:
        from psycopg.conninfo import make_conninfo

        return make_conninfo(**{**information.get_parameters(), "password": information.password or None})
    return None
