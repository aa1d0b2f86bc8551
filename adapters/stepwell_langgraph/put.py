"""One put: the state that LangGraph hands over, as the event that stores what is new of it."""

from __future__ import annotations

from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, get_checkpoint_metadata
from langgraph.checkpoint.serde.base import SerializerProtocol

from stepwell.content import NotRecalled
from stepwell.errors import ConflictError
from stepwell.events import Sequence, StepCommitted
from stepwell.log import Log
from stepwell.patch import Merge, Patch, size_of
from stepwell.storage import Committed
from stepwell.writer import Ticket
from stepwell_langgraph.addresses import CHECKPOINT, METADATA, check_id, read_address, to_config
from stepwell_langgraph.catalogue import labels_of, status_of_checkpoint
from stepwell_langgraph.memory import Announced, LaneKey, LaneMemory, Memories, recall_parent, value_along_branch
from stepwell_langgraph.translate import Channel, Checks, PlainChannel, to_encode, update
from stepwell_langgraph.weight import LIGHT_BYTES, is_light

_ATTEMPTS: Final = 5
_FIELDS_PER_VALUE: Final = 8  # comparing fields takes so much less than encoding values of as many bytes
_BEGINNINGS: Final = ("input", "update", "fork")  # sources of the first checkpoint of an invocation


class Put:
    """One put, which may need more than one attempt.

    Attributes:
        address: Where it goes.
    """

    def __init__(
        self,
        log: Log,
        memories: Memories,
        serde: SerializerProtocol,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        *,
        exact: bool,
    ) -> None:
        self._log = log
        self._memories = memories
        self._serde = serde
        self._exact = exact
        self.address = read_address(config)
        self._lane: LaneKey = (self.address.thread_id, self.address.lane)
        self._id = check_id("checkpoint id", checkpoint["id"])
        self._checkpoint = checkpoint
        self._metadata = get_checkpoint_metadata(config, metadata)
        self._new_versions = new_versions
        self._memory = LaneMemory()
        self._step: StepCommitted | None = None
        self._attempts = 0

    def is_light(self) -> bool:
        """Whether `begin` takes less than a millisecond: it need not read the log, and there is little to encode."""
        parent_id = self.address.checkpoint_id
        memory = LaneMemory() if parent_id is None else self._memories.peek(self._lane, parent_id)
        if memory is None or (self._looks_at_everything(memory) and memory.size > LIGHT_BYTES):
            return False
        if any(version != memory.versions.get(name) for name, version in self._kept() if memory.versions):
            return False  # the value is in the log
        announced = self._memories.announced(self._lane, parent_id, take=False)
        new: list[Any] = [self._metadata]
        known = memory.checkpoint.size // _FIELDS_PER_VALUE
        for name, value in self._checkpoint["channel_values"].items():
            work = to_encode(memory.channels.get(name), value, self._checks(memory, name, announced), LIGHT_BYTES)
            new += work.unknown
            known += work.known_bytes
            if known > LIGHT_BYTES:
                return False
        return is_light(new, LIGHT_BYTES - known)

    def begin(self, *, may_read: bool = True) -> Ticket:
        """Encode the checkpoint and submit it.

        Raises:
            NotRecalled: The log has to be read for it, and may not be; call it again when it may.
        """
        if self._step is None:
            self._step = self._encoded(may_read=may_read)
        thread = self._log.thread(self.address.thread_id)
        # Of a thread the root graph tells what it is about, and what it has come to.
        labels = {} if self.address.lane else labels_of(self._metadata)
        ticket = thread.begin_append(
            [self._step], incarnation=self._memory.incarnation, may_read=may_read, labels=labels
        )
        self._step = None  # another attempt encodes it anew
        return ticket

    def _encoded(self, *, may_read: bool) -> StepCommitted:
        parent_id = self.address.checkpoint_id
        values = self._checkpoint["channel_values"]
        memory = None if parent_id is None else self._memories.take(self._lane, parent_id, values)
        if memory is None:
            if parent_id is not None and not may_read:
                raise NotRecalled  # it was forgotten a moment ago
            memory = LaneMemory() if parent_id is None else recall_parent(self._log, self._serde, self.address)
        self._memory = memory
        memory.status = None if self.address.lane else status_of_checkpoint(self._checkpoint)
        return StepCommitted(
            self._id,
            parent_id,
            self._channels(memory),
            self._fields(memory),
            self.address.lane,
            memory.sequence,
            status=memory.status,
        )

    def finish(self, committed: Committed) -> RunnableConfig:
        """Remember what is now the head."""
        memory = self._memory
        memory.incarnation = committed.number
        memory.sequence = Sequence(committed.sequences[-1])
        memory.parent_id = self.address.checkpoint_id
        self._memories.put(self._lane, self._id, memory)
        return to_config(self.address.thread_id, self.address.lane, self._id)

    def retry_or_raise(self, error: ConflictError) -> None:
        """The thread was pruned or deleted under this put: encode it anew, unless that happens all the time."""
        self._attempts += 1
        if self._attempts == _ATTEMPTS:
            raise error

    def _channels(self, memory: LaneMemory) -> Merge:
        announced = self._memories.announced(self._lane, self.address.checkpoint_id, take=True)
        values = self._checkpoint["channel_values"]
        versions = self._checkpoint["channel_versions"]
        changes: dict[str, Patch] = {}
        channels: dict[str, Channel] = {}
        for name, value in values.items():
            checks = self._checks(memory, name, announced)
            channel, patch = update(memory.channels.get(name), value, self._serde, checks, moved=checks.moved)
            channels[check_id("channel", name)] = channel
            if patch is not None:
                changes[name] = patch
        for name, version in self._kept():
            if memory.versions.get(name) == version:
                if name in memory.channels:
                    channels[name] = memory.channels[name]
            elif memory.versions:
                stored = value_along_branch(self._log, self._serde, self.address, name, version)
                if stored is not None:
                    channels[name] = PlainChannel(stored, size_of(stored))
                    changes[name] = stored
        drop = tuple(name for name in memory.channels if name not in channels)
        memory.channels = channels
        memory.versions = dict(versions)
        memory.turn += 1
        memory.fresh = False
        return Merge(drop, changes)

    def _kept(self) -> list[tuple[str, str | int | float]]:
        """The channels whose value is not given, but that are not empty either; and the version of each."""
        given, new = self._checkpoint["channel_values"], self._new_versions
        versions = self._checkpoint["channel_versions"]
        return [(name, version) for name, version in versions.items() if name not in given and name not in new]

    def _checks(self, memory: LaneMemory, name: str, announced: Announced) -> Checks:
        """What of a channel this put has to check."""
        version = self._checkpoint["channel_versions"].get(name)
        moved = name in self._new_versions or version != memory.versions.get(name)
        # A channel that moved without any write that was seen may have changed anywhere.
        everything = self._looks_at_everything(memory) or (moved and name not in announced.channels)
        return Checks(memory.turn, everything=everything, announced=announced.objects, moved=moved)

    def _looks_at_everything(self, memory: LaneMemory) -> bool:
        return self._exact or memory.fresh or self._metadata.get("source") in _BEGINNINGS

    def _fields(self, memory: LaneMemory) -> Merge:
        core = {key: value for key, value in self._checkpoint.items() if key != "channel_values"}
        changes: dict[str, Patch] = {}
        for name, fields, value in (
            (CHECKPOINT, memory.checkpoint, core),
            (METADATA, memory.metadata, dict(self._metadata)),
        ):
            patch = fields.update(value, self._serde)
            if patch is not None:
                changes[name] = patch
        return Merge((), changes)
