"""What a run consists of, counted by one rule for every contender: the new information.

New information is the content that a saver cannot avoid keeping: the distinct leaves of all channel values and
writes, each counted once, as JsonPlusSerializer encodes it, not compressed.  What a leaf is:

1.  Lists, tuples, dicts (their values), Sends (their argument), interrupts and snapshots of delta channels are
    looked into, however deep: a file that is passed to a sub-agent with all others, or the messages that a Send
    takes along, are the leaves that they were before.
2.  Everything else is a leaf.  A message is one, whatever it holds, and its id another, because LangGraph gives
    ids to some messages only after they were stored for the first time.
3.  A text that grows is a new leaf each time.

Ids of checkpoints, versions, names, metadata and task paths are not counted, although every saver keeps them.
"""

import hashlib
import threading
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import zstandard
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Interrupt, Send

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Counts:
    """The counts of one run.

    Attributes:
        messages: How many the newest state has, of all threads.
        new_information_bytes: Distinct content, uncompressed: the yardstick for size.
        compressed_bytes: The same content by zstandard, level 3, in blocks of 1 MiB: a floor to compare with.
        whole_states_bytes: The leaves of every checkpoint in full, summed: what storing each state costs.
        final_state_bytes: The leaves of the last checkpoint.
        final_digest: Of the newest messages, see `digest`.
        digests: Of some states of the main graph, by position, see `state_digest`.
    """

    puts: int
    put_writes: int
    messages: int
    new_information_bytes: int
    compressed_bytes: int
    whole_states_bytes: int
    final_state_bytes: int
    final_digest: str
    digests: dict[int, str]


class Newest(BaseCheckpointSaver[str]):
    """A saver that keeps the newest checkpoint of each thread, which is all that a replay reads."""

    def __init__(self) -> None:
        super().__init__()
        self._threads: dict[str, CheckpointTuple] = {}

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        """The newest checkpoint, of new objects, as if it came from a disk."""
        kept = self._threads.get(config["configurable"]["thread_id"])
        return kept and kept._replace(checkpoint=self.serde.loads_typed(self.serde.dumps_typed(kept.checkpoint)))

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        self._threads[config["configurable"]["thread_id"]] = CheckpointTuple(config, checkpoint, metadata)
        return config

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        return None


class Census(BaseCheckpointSaver[str]):
    """A saver that counts, over one that keeps what the run reads.

    Unless `exact`, a leaf that stands where it stood in the previous put is not encoded again: right where
    nothing changes after it was first put.  Of the states of the main graph at `digested` positions it takes digests.
    """

    def __init__(
        self,
        kept: BaseCheckpointSaver[Any] | None = None,
        *,
        exact: bool = False,
        digested: Container[int] = (),
    ) -> None:
        super().__init__()
        self._digested = digested
        self._states = 0
        self._digests: dict[int, str] = {}
        self._kept = kept or Newest()
        self._exact = exact
        self._lock = threading.Lock()  # sub-agents put in parallel
        self._known: set[bytes] = set()
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._block = bytearray()
        self._compressed_bytes = 0
        self._new_bytes = 0
        self._last: dict[tuple[str, str, str], list[tuple[Any, int]]] = {}
        self._whole_bytes = 0
        self._state_bytes = 0
        self._puts = 0
        self._writes = 0

    def get_next_version(self, current: str | None, channel: None) -> str:
        return f"{int((current or '0').split('.')[0]) + 1:032}.{0:016}"

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        with self._lock:
            self._last.clear()  # other objects from here on
        return self._kept.get_tuple(config)

    def get_delta_channel_history(self, *, config: Any, channels: Sequence[str]) -> Any:
        return self._kept.get_delta_channel_history(config=config, channels=channels)

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        place = config["configurable"]["thread_id"], config["configurable"]["checkpoint_ns"]
        with self._lock:
            self._puts += 1
            self._state_bytes = sum(
                self._channel((*place, channel), value) for channel, value in checkpoint["channel_values"].items()
            )
            self._whole_bytes += self._state_bytes
            if not place[1]:
                if self._states in self._digested:
                    self._digests[self._states] = state_digest(checkpoint, metadata)
                self._states += 1
        return self._kept.put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        with self._lock:
            self._writes += 1
            for _, value in writes:
                for leaf in _leaves(value):
                    self._count(leaf)
        self._kept.put_writes(config, writes, task_id, task_path)

    def counts(self, newest: Sequence[Any]) -> Counts:
        """The counts so far, with the run's newest messages as they are read from this saver."""
        return Counts(
            puts=self._puts,
            put_writes=self._writes,
            messages=len(newest),
            new_information_bytes=self._new_bytes,
            compressed_bytes=self._compressed_bytes + len(self._compressor.compress(self._block)),
            whole_states_bytes=self._whole_bytes,
            final_state_bytes=self._state_bytes,
            final_digest=digest(newest, self.serde),
            digests=dict(self._digests),
        )

    def _channel(self, place: tuple[str, str, str], value: Any) -> int:
        last = self._last.get(place, [])
        counted = [
            last[i] if not self._exact and i < len(last) and last[i][0] is leaf else (leaf, self._count(leaf))
            for i, leaf in enumerate(_leaves(value))
        ]
        self._last[place] = counted
        return sum(size for _, size in counted)

    def _count(self, leaf: Any) -> int:
        if isinstance(leaf, BaseMessage) and leaf.id is not None:
            return self._count(leaf.id) + self._count(leaf.model_copy(update={"id": None}))
        encoded = self.serde.dumps_typed(leaf)[1]
        name = hashlib.blake2b(encoded, digest_size=16).digest()
        if name not in self._known:
            self._known.add(name)
            self._new_bytes += len(encoded)
            self._block += encoded
            while len(self._block) >= BLOCK_BYTES:
                self._compressed_bytes += len(self._compressor.compress(self._block[:BLOCK_BYTES]))
                del self._block[:BLOCK_BYTES]
        return len(encoded)


def digest(messages: Sequence[Any], serde: SerializerProtocol | None = None) -> str:
    """A digest of messages' content, equal for every saver that gives back what it was given."""
    serde = serde or JsonPlusSerializer()
    hashed = hashlib.blake2b(digest_size=16)
    for message in messages:
        hashed.update(serde.dumps_typed(message)[1])
    return hashed.hexdigest()


def state_digest(checkpoint: Checkpoint, metadata: CheckpointMetadata) -> str:
    """A digest of the step, the channels that have a value, and the content of the messages.

    Other channels hold times of day, and ids that are drawn at random, in some workloads.
    """
    values = checkpoint["channel_values"]
    messages = values.get("messages", ())
    if isinstance(messages, _DeltaSnapshot):
        messages = messages.value
    return digest([metadata["step"], sorted(values), *messages])


def _leaves(value: Any) -> Iterator[Any]:
    """The parts of a value that are counted, see above; a loop where there is no depth, for long lists."""
    if isinstance(value, Send):
        value = value.arg
    elif isinstance(value, Interrupt | _DeltaSnapshot):
        value = value.value
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    for item in value:
        if isinstance(item, list | tuple | dict | Send | Interrupt | _DeltaSnapshot):
            yield from _leaves(item)
        else:
            yield item
