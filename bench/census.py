"""What a run consists of, counted by one rule for every contender: the new information.

New information is the content that a saver cannot avoid keeping: the distinct encodings (JsonPlusSerializer,
not compressed) of list elements, of dict values and of other channel values, over all checkpoints and writes,
each counted once.  Ids, versions, metadata and task paths are not counted, although every saver keeps them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zstandard
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Counts:
    """The counts of one run.

    Attributes:
        new_information_bytes: Distinct content, uncompressed: the yardstick for size.
        compressed_bytes: The same content by zstandard, level 3, in blocks of 1 MiB: a floor to compare with.
        whole_states_bytes: The channel values of every checkpoint in full, summed: what storing each costs.
        final_state_bytes: The channel values of the last checkpoint.
        final_digest: Of the newest checkpoint's messages, see `digest`.
    """

    puts: int
    put_writes: int
    messages: int
    new_information_bytes: int
    compressed_bytes: int
    whole_states_bytes: int
    final_state_bytes: int
    final_digest: str


class Census(BaseCheckpointSaver[str]):
    """A saver that counts, and keeps only the newest checkpoint.

    Unless `exact`, an element that stands where it stood in the previous put is not encoded again: right
    where, as in the replays, nothing changes after it was first put.
    """

    def __init__(self, *, exact: bool = False) -> None:
        super().__init__()
        self._exact = exact
        self._known: set[bytes] = set()
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._block = bytearray()
        self._compressed_bytes = 0
        self._new_bytes = 0
        self._last: dict[str, list[tuple[Any, int]]] = {}
        self._whole_bytes = 0
        self._state_bytes = 0
        self._puts = 0
        self._writes = 0
        self._newest: tuple[Any, Any, Any] | None = None

    def get_next_version(self, current: str | None, channel: None) -> str:
        return f"{int((current or '0').split('.')[0]) + 1:032}.{0:016}"

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        if self._newest is None:
            return None
        loaded_config, checkpoint, metadata = self._newest
        self._last.clear()  # other objects from here on
        return CheckpointTuple(loaded_config, self.serde.loads_typed(self.serde.dumps_typed(checkpoint)), metadata)

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        self._puts += 1
        self._state_bytes = sum(self._channel(*item) for item in checkpoint["channel_values"].items())
        self._whole_bytes += self._state_bytes
        self._newest = (config, checkpoint, metadata)
        return config

    def put_writes(self, config: Any, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        self._writes += 1
        for _, value in writes:
            for part in _parts(value):
                self._count(part)

    def counts(self) -> Counts:
        """The counts so far."""
        messages = self._newest[1]["channel_values"]["messages"] if self._newest else []
        return Counts(
            puts=self._puts,
            put_writes=self._writes,
            messages=len(messages),
            new_information_bytes=self._new_bytes,
            compressed_bytes=self._compressed_bytes + len(self._compressor.compress(self._block)),
            whole_states_bytes=self._whole_bytes,
            final_state_bytes=self._state_bytes,
            final_digest=digest(messages, self.serde),
        )

    def _channel(self, channel: str, value: Any) -> int:
        parts = _parts(value)
        last = self._last.get(channel, [])
        counted = [
            last[i] if not self._exact and i < len(last) and last[i][0] is part else (part, self._count(part))
            for i, part in enumerate(parts)
        ]
        self._last[channel] = counted
        return sum(size for _, size in counted)

    def _count(self, part: Any) -> int:
        encoded = self.serde.dumps_typed(part)[1]
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


def _parts(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    return [value]
