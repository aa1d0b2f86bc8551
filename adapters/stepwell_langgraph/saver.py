"""StepwellSaver: LangGraph's checkpointer over a log (SPEC.md, section 17).

A checkpoint is a step: its channel values are the step's channels, the rest of it and its metadata are the
step's fields.  A `checkpoint_ns` is a lane.  Sync and async are one class: a put is encoded where it is
called, joins the group that is committed next, and is waited for in a thread or awaited in a coroutine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import islice
from typing import Any, Final, Self, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
)
from langgraph.checkpoint.serde.base import SerializerProtocol, maybe_add_typed_methods

from stepwell import reader
from stepwell.errors import ClosedError, ConflictError, ForkedError, UsageError
from stepwell.events import Sequence as Sequence_
from stepwell.events import StepCommitted, Write, WritesRecorded
from stepwell.fold import PendingWrite as StoredWrite
from stepwell.fold import State
from stepwell.format import id_key
from stepwell.log import Log
from stepwell.loops import turn
from stepwell.patch import Blob, Merge, Patch, Value, parse
from stepwell.pruning import Kept
from stepwell.storage import Found, ThreadRow
from stepwell.writer import Ticket
from stepwell_langgraph import retention
from stepwell_langgraph.addresses import CHECKPOINT, METADATA, Address, check_id, locate, read_address, to_config
from stepwell_langgraph.catalogue import SavedThread, saved_threads, status_of_writes
from stepwell_langgraph.closing import Closing
from stepwell_langgraph.collector import paused
from stepwell_langgraph.memory import LaneKey, LaneMemory, Memories, recall_step
from stepwell_langgraph.offload import offload, offload_iterator
from stepwell_langgraph.put import Put
from stepwell_langgraph.revive import Revival
from stepwell_langgraph.translate import ListChannel, PlainChannel
from stepwell_langgraph.turns import Begin, Turns
from stepwell_langgraph.weight import is_light

_log: Final = logging.getLogger("stepwell")

_ATTEMPTS: Final = 5
_FIRST_PAGE: Final = 16
_LARGEST_PAGE: Final = 256
_QUICK_BYTES: Final = 1 << 14  # of a state, and of what is noted of its elements
_QUICK_RECORDS_BYTES: Final = 1 << 17  # of a whole thread, compressed
_QUICK_EVENTS: Final = 12

_T = TypeVar("_T")
_Page = list[tuple[str, Found]]  # a name of its own: the saver has a method `list`


class StepwellSaver(Closing, BaseCheckpointSaver[str]):
    """A LangGraph checkpointer that stores what is new.

    Use it as it is, or as a context manager, sync or async:

    >>> with StepwellSaver.from_conn_string(":memory:") as saver:
    ...     config = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
    ...     saver.get_tuple(config) is None
    True

    Thread-safe; sync and async calls may be mixed, from any number of threads and event loops.

    Args:
        log: The log to store in.
        serde: Serializer of channel values; JsonPlusSerializer if None.
        exact: Look at every object of the state at every put.  Without it, an object that is changed in
            place, is not returned by any write, and is not among the last 128 of its channel, is stored up
            to 32 puts later.
    """

    def __init__(self, log: Log, *, serde: SerializerProtocol | None = None, exact: bool = False) -> None:
        if not isinstance(log, Log):
            raise UsageError(
                f"StepwellSaver needs a stepwell.Log, not {type(log).__name__}: "
                "use StepwellSaver.from_conn_string(path) to open one by its path"
            )
        self._serde: SerializerProtocol = BaseCheckpointSaver.serde  # the base class reads it before it sets it
        self.log = log
        self._revival = Revival(self._serde, log.cache)
        super().__init__(serde=serde)
        self.exact = exact
        self._memories = Memories(log.cache)
        self._turns = Turns()

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str | os.PathLike[str],
        *,
        serde: SerializerProtocol | None = None,
        exact: bool = False,
        network_file_system: bool = False,
    ) -> Self:
        """Open or create the log at a path; ":memory:" is one that is gone when it is closed.

        Args:
            conn_string: Where the log lies.
            serde: Serializer of channel values; JsonPlusSerializer if None.
            exact: See the class.
            network_file_system: See `Log.open`.
        """
        return cls(Log.open(conn_string, network_file_system=network_file_system), serde=serde, exact=exact)

    def setup(self) -> _Done:
        """Nothing is to be set up.  May be awaited, as savers with a server ask for it."""
        return _Done()

    def close(self) -> None:
        """Close the log.  Closing twice is harmless.

        Objects that were changed in place, and that the last put of their lane did not look at, are stored first.
        """
        try:
            for lane, step_id, memory in self._memories.take_puts():
                with _forgotten_if_not_stored(lane):
                    ticket = self._begin_late_step(lane, step_id, memory)
                    if ticket is not None:
                        ticket.result()
        finally:
            self.log.close()

    # --- put ---

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint.  When this returns it survives a power cut.

        Raises:
            UsageError: The config names no thread, or an id is not a str.
            CapacityError: There is no room; nothing was stored.
        """
        put = self._put(config, checkpoint, metadata, new_versions)
        while True:
            try:
                return put.finish(put.begin().result())
            except ConflictError as error:
                put.retry_or_raise(error)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`put` for coroutines.  If it is cancelled, the checkpoint may be stored all the same."""
        put = self._put(config, checkpoint, metadata, new_versions)
        while True:
            try:
                ticket = await self._turns.begin(put.address.thread_id, put.begin, light=put.is_light())
                return put.finish(await ticket)
            except ConflictError as error:
                put.retry_or_raise(error)

    def _put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Put:
        return Put(self.log, self._memories, self.serde, config, checkpoint, metadata, new_versions, exact=self.exact)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task returned.  When this returns it survives a power cut.

        Raises:
            UsageError: The config names no thread or no checkpoint, or an id is not a str.
            CapacityError: There is no room; nothing was stored.
        """
        _, begin = self._writes(config, writes, task_id, task_path)
        begin().result()

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """`put_writes` for coroutines.  If it is cancelled, the writes may be stored all the same."""
        thread_id, begin = self._writes(config, writes, task_id, task_path)
        light = is_light(value for _, value in writes)
        await (await self._turns.begin(thread_id, begin, light=light))

    def _writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> tuple[str, Begin]:
        """The thread that they go to, and what encodes them and submits them."""
        address = read_address(config)
        if address.checkpoint_id is None:
            raise UsageError("put_writes needs a checkpoint_id in the config: the checkpoint that the task ran on")
        step_id = address.checkpoint_id
        check_id("task_id", task_id)
        check_id("task_path", task_path)
        # Before anything is encoded: the put that takes the writes over may overtake this call.
        self._memories.announce((address.thread_id, address.lane), step_id, writes)

        def begin(*, may_read: bool = True) -> Ticket:
            recorded = tuple(
                Write(WRITES_IDX_MAP.get(channel, index), check_id("channel", channel), self._value(value))
                for index, (channel, value) in enumerate(writes)
            )
            status = None if address.lane else status_of_writes(writes)
            event = WritesRecorded(step_id, task_id, task_path, recorded, address.lane, status=status)
            return self.log.thread(address.thread_id).begin_append([event], may_read=may_read)

        return address.thread_id, begin

    def _value(self, value: Any) -> Value:
        type_, payload = self.serde.dumps_typed(value)
        return parse(type_, bytes(payload))

    def _catching_up(self, address: Address) -> Iterator[Ticket]:
        """Store the late changes of a head before it is read, for what is handed out replaces its objects.

        Gives the ticket of what is stored, if there is anything, to who would rather await it than wait here; left
        there, it is stored all the same.
        """
        lane = (address.thread_id, address.lane)
        taken = self._memories.take_last_put(lane, address.checkpoint_id)
        if taken is not None:
            step_id, memory = taken
            with _forgotten_if_not_stored(lane):
                ticket = self._begin_late_step(lane, step_id, memory)
                if ticket is not None:
                    yield ticket
                    memory.sequence = Sequence_(ticket.result().sequences[-1])
                self._memories.put(lane, step_id, memory)

    def _begin_late_step(self, lane: LaneKey, step_id: str, memory: LaneMemory) -> Ticket | None:
        """Submit a head once more, if objects of it were changed in place since they were checked."""
        place = locate(self.log.storage, Address(*lane, step_id))
        if place is None or place.head != memory.sequence or place.number != memory.incarnation:
            return None
        changes = self._late_changes(memory)
        if not changes:
            return None
        merge = Merge((), changes)
        step = StepCommitted(step_id, memory.parent_id, merge, Merge(), lane[1], memory.sequence, status=memory.status)
        return self.log.thread(lane[0]).begin_append([step], incarnation=memory.incarnation)

    def _late_changes(self, memory: LaneMemory) -> dict[str, Patch]:
        changes: dict[str, Patch] = {}
        for name, channel in memory.channels.items():
            patch = channel.recheck(self.serde) if isinstance(channel, PlainChannel) else channel.recheck()
            if patch is not None:
                changes[name] = patch
        return changes

    # --- get ---

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that a config names, or the head of its namespace: what was committed last.

        Raises:
            UsageError: The config names no thread, or an id is not a str.
            CorruptionError: Something that the checkpoint depends on is damaged.
        """
        address = read_address(config)
        for _ in self._catching_up(address):
            pass
        return self._read(address)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`get_tuple` for coroutines."""
        address = read_address(config)
        # Between those who read in the loop, it does what else is due.
        await turn(asyncio.get_running_loop(), in_turn=True)
        row = self.log.storage.thread(address.thread_id)
        if row is None:
            return None
        if not self._is_quickly_read(address, row):
            return await offload(self.get_tuple, config)
        for ticket in self._catching_up(address):
            with suppress(Exception):  # who waits for it next meets what it raises
                await ticket
        return self._read(address)

    def _is_quickly_read(self, address: Address, row: ThreadRow) -> bool:
        """Whether reading a checkpoint takes about a millisecond, which a thread would take longer to be asked for.

        Its state is small, as a put or a read has found lately; so is all that it may refer to, and what was written
        for it; and little was committed since a state was last read.
        """
        size = self._memories.size((address.thread_id, address.lane), address.checkpoint_id)
        if size is None or size > _QUICK_BYTES or row.sealed or row.loose_bytes > _QUICK_RECORDS_BYTES:
            return False
        return row.last - max(self.log.reader.latest(row.number), row.first) < _QUICK_EVENTS

    def _read(self, address: Address) -> CheckpointTuple | None:
        with paused():
            return self._retrying(address.thread_id, lambda: self._get_tuple(address))

    def _get_tuple(self, address: Address) -> CheckpointTuple | None:
        storage = self.log.storage
        place = locate(storage, address)
        if place is None:
            return None
        number, lane_number, head = place
        if address.checkpoint_id is None:
            sequence = head
        else:
            found = storage.find(number, lane_number, [id_key(address.checkpoint_id)])[0]
            sequence = 0 if found.hidden else found.step
        if not sequence:
            return None
        state = self.log.reader.state(number, sequence)
        found = storage.find(number, lane_number, [id_key(state.step_id)])[0]
        payloads = reader.Payloads(storage, number)
        tuple_ = self._tuple(address.thread_id, address.lane, state, found, payloads)
        self._seed(address, number, state, tuple_, payloads)
        return tuple_

    def _tuple(
        self,
        thread_id: str,
        namespace: str,
        state: State,
        found: Found,
        payloads: reader.Payloads,
        *,
        often: bool = False,
    ) -> CheckpointTuple:
        fields = reader.typed(state.fields, payloads)
        checkpoint: Checkpoint = self.serde.loads_typed(fields[CHECKPOINT])
        within = self._values_within(state, payloads)
        checkpoint["channel_values"] = {**within, **self._revival.values(state.channels, payloads, often=often)}
        writes = reader.writes(self.log.storage, payloads.thread, found.writes, namespace)
        return CheckpointTuple(
            config=to_config(thread_id, namespace, state.step_id),
            checkpoint=checkpoint,
            metadata=self.serde.loads_typed(fields[METADATA]),
            parent_config=None if state.parent_id is None else to_config(thread_id, namespace, state.parent_id),
            pending_writes=[self._pending(pending, payloads) for pending in writes],
        )

    def _values_within(self, state: State, payloads: reader.Payloads) -> dict[str, Any]:
        """The values of a checkpoint that was imported in one piece, since it was encrypted or pickled."""
        core = state.fields.get(CHECKPOINT)
        if state.channels or not isinstance(core, Blob):
            return {}
        whole: dict[str, Any] = self.serde.loads_typed((core.type, payloads.payload(core)))
        return whole.get("channel_values") or {}

    def _pending(self, pending: StoredWrite, payloads: reader.Payloads) -> PendingWrite:
        return pending.task_id, pending.write.channel, self._revival.value(pending.write.value, payloads)

    def _retrying(self, thread_id: str, read: Callable[[], _T]) -> _T:
        """Read again if the thread was pruned or deleted meanwhile: what was there may have seemed absent."""
        for _ in range(_ATTEMPTS - 1):
            before = self._generation(thread_id)
            with suppress(ConflictError):
                result = read()
                if self._generation(thread_id) == before:
                    return result
        return read()

    def _generation(self, thread_id: str) -> tuple[int, int] | None:
        """What changes when a thread is deleted, made anew, or pruned."""
        row = self.log.storage.thread(thread_id)
        return None if row is None else (row.number, row.first)

    def _seed(
        self, address: Address, number: int, state: State, tuple_: CheckpointTuple, payloads: reader.Payloads
    ) -> None:
        """The objects handed out are what the next put brings back: remember what they came from."""
        memory = recall_step(self.log.storage, self.serde, number, state, payloads)
        for name, value in tuple_.checkpoint["channel_values"].items():
            channel = memory.channels.get(name)
            if isinstance(channel, ListChannel) and type(value) is list:
                channel.adopt(value)
        self._memories.put((address.thread_id, address.lane), state.step_id, memory)

    # --- list ---

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first; nothing is held between two of them, so an iterator may be paused.

        Args:
            config: The thread; with `checkpoint_ns`, one namespace of it instead of all; with
                `checkpoint_id`, that checkpoint.  None means every thread, one after the other.
            filter: Metadata that must be equal, key by key.
            before: Only checkpoints whose id is smaller than the one in this config.
            limit: At most so many.

        Raises:
            UsageError: The config names no thread, or an id is not a str.
        """
        address = None if config is None else read_address(config)
        before_id = None if before is None else (before.get("configurable") or {}).get("checkpoint_id")
        if before_id is not None:
            check_id("checkpoint_id", before_id)
        tuples = self._list(address, filter or {}, before_id)
        return tuples if limit is None else islice(tuples, max(int(limit), 0))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """`list` for coroutines."""
        tuples = self.list(config, filter=filter, before=before, limit=limit)
        async for tuple_ in offload_iterator(tuples):
            yield tuple_

    def _list(
        self, address: Address | None, filter_: dict[str, Any], before_id: str | None
    ) -> Iterator[CheckpointTuple]:
        if address is None:
            for thread_id in self.log.all_threads():
                yield from self._list(Address(thread_id, None, None), filter_, before_id)
            return
        for attempt in range(_ATTEMPTS):
            shown = False
            try:
                for tuple_ in self._list_thread(address, filter_, before_id):
                    shown = True
                    yield tuple_
                return
            except ConflictError:
                if shown:
                    return  # a thread that is deleted or pruned while its list is paused has nothing more to show
                if attempt == _ATTEMPTS - 1:
                    raise

    def _list_thread(
        self, address: Address, filter_: dict[str, Any], before_id: str | None
    ) -> Iterator[CheckpointTuple]:
        generation = self._generation(address.thread_id)
        if generation is None:
            return
        number = generation[0]
        for page in self._pages(number, address, before_id):
            states = self.log.reader.states(number, [found.step for _, found in page])
            payloads = reader.Payloads(self.log.storage, number)
            if self._generation(address.thread_id) != generation:
                raise ConflictError(
                    f"thread {address.thread_id!r} was pruned or deleted while it was listed; list it again",
                    thread=address.thread_id,
                    expected=generation,
                    actual=None,
                )
            for namespace, found in page:
                state = states.pop(found.step)
                if filter_:
                    metadata = self.serde.loads_typed(reader.typed(state.fields, payloads)[METADATA])
                    if any(metadata.get(key) != value for key, value in filter_.items()):
                        continue
                often = address.checkpoint_id is None
                with paused():
                    tuple_ = self._tuple(address.thread_id, namespace, state, found, payloads, often=often)
                yield tuple_

    def _pages(self, number: int, address: Address, before_id: str | None) -> Iterator[Sequence[tuple[str, Found]]]:
        """Where the checkpoints that may be asked for stand, newest first, and the names of their lanes."""
        storage = self.log.storage
        lane = None if address.namespace is None else storage.lane(number, address.namespace)
        if address.namespace is not None and lane is None:
            return
        if address.checkpoint_id is not None:
            lanes = (
                [(lane[0], address.lane)]
                if lane
                else [(lane_number, name) for lane_number, name, _ in self._lanes(number)]
            )
            key = id_key(address.checkpoint_id)
            places = [(name, storage.find(number, lane_number, [key])[0]) for lane_number, name in lanes]
            wanted = before_id is None or address.checkpoint_id < before_id
            yield [(name, found) for name, found in places if wanted and found.step and not found.hidden]
            return
        before, size = 0, _FIRST_PAGE
        while True:
            records = storage.steps(number, lane[0] if lane else None, before, size)
            if not records:
                return
            page: _Page = []
            for record, (_, event) in zip(records, reader.decoded(storage, number, records), strict=True):
                assert isinstance(event, StepCommitted)
                if before_id is None or event.step_id < before_id:
                    key = id_key(event.step_id)
                    page.append((event.lane, storage.find(number, record.header.lane, [key])[0]))
            yield [(name, found) for name, found in page if found.step and not found.hidden]
            before, size = records[-1].sequence, min(2 * size, _LARGEST_PAGE)

    def _lanes(self, number: int) -> Iterator[tuple[int, str, int]]:
        """Number, name and head of every lane of a thread."""
        after = 0
        while page := self.log.storage.lanes(number, after, _LARGEST_PAGE):
            for lane_number, name, row in page:
                yield lane_number, name, row.head
            after = page[-1][0]

    def threads(
        self,
        *,
        status: str | Iterable[str] | None = None,
        filter: dict[str, Any] | None = None,
        prefix: str = "",
        updated_since: datetime | None = None,
        updated_before: datetime | None = None,
        newest_first: bool = True,
        limit: int | None = None,
        before: int | None = None,
    ) -> Iterator[SavedThread]:
        """Threads in the order of their newest checkpoints and writes, without reading any of these.

        What a page costs does not grow with the number of threads, and nothing is held between two of them.

        Args:
            status: What they have come to, or several of these: "running", "interrupted", "failed", "done".  A run that
                was killed, or stopped before or after a node, is "running": something is left to run.
            filter: Metadata that must be equal, key by key, as for `list`; None stands for none.  Of a thread those
                count that its checkpoints had last: texts, numbers and bools that describe the thread, and not its
                steps (`step`, `source`, `parents`) or runs (`run_id`).
            prefix: What their ids begin with.
            updated_since: Only threads in which something was stored since.
            updated_before: Only threads in which nothing was stored since.
            newest_first: Whether the thread in which something was stored last comes first; else it comes last.
            limit: At most so many.
            before: The `cursor` of a thread: only those that come behind it.

        Raises:
            UsageError: An argument is not of its kind, or the filter names what threads cannot be found by.
        """
        return saved_threads(
            self.log,
            status=status,
            filter=filter,
            prefix=prefix,
            updated_since=updated_since,
            updated_before=updated_before,
            newest_first=newest_first,
            limit=limit,
            before=before,
        )

    async def athreads(
        self,
        *,
        status: str | Iterable[str] | None = None,
        filter: dict[str, Any] | None = None,
        prefix: str = "",
        updated_since: datetime | None = None,
        updated_before: datetime | None = None,
        newest_first: bool = True,
        limit: int | None = None,
        before: int | None = None,
    ) -> AsyncIterator[SavedThread]:
        """`threads` for coroutines."""
        found = self.threads(
            status=status,
            filter=filter,
            prefix=prefix,
            updated_since=updated_since,
            updated_before=updated_before,
            newest_first=newest_first,
            limit=limit,
            before=before,
        )
        async for thread in offload_iterator(found):
            yield thread

    # --- delta channels ---

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What some channels were written since their nearest stored value, in one walk up the branch.

        Args:
            config: The checkpoint to start from, which itself does not count; without an id, the head.
            channels: Names of channels.
        """
        if not channels:
            return {}
        address = read_address(config)
        with paused():
            return self._retrying(address.thread_id, lambda: self._history(address, channels))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """`get_delta_channel_history` for coroutines."""
        return await offload(self.get_delta_channel_history, config=config, channels=channels)

    def _history(self, address: Address, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        history: dict[str, DeltaChannelHistory] = {name: {"writes": []} for name in channels}
        remaining = set(channels)
        place = locate(self.log.storage, address)
        if place is None:
            return history
        number, lane_number, head = place
        payloads = reader.Payloads(self.log.storage, number)
        if address.checkpoint_id is not None:
            key = id_key(address.checkpoint_id)
        else:
            key = id_key(self.log.reader.state(number, head).step_id) if head else b""
        for found, state in self.log.reader.ancestors(number, lane_number, key):
            for pending in reversed(reader.writes(self.log.storage, number, found.writes)):
                if pending.write.channel in remaining:
                    history[pending.write.channel]["writes"].append(self._pending(pending, payloads))
            for name in remaining & state.channels.keys():
                history[name]["seed"] = self._revival.value(state.channels[name], payloads)
                remaining.discard(name)
            for name, value in self._values_within(state, payloads).items():
                if name in remaining:
                    history[name]["seed"] = value
                    remaining.discard(name)
            if not remaining:
                break
        for entry in history.values():
            entry["writes"].reverse()
        return history

    # --- whole threads ---

    def delete_thread(self, thread_id: str) -> None:
        """Remove a thread with everything that it holds; its id is free again."""
        self.log.thread(check_id("thread_id", thread_id)).delete()
        self._memories.forget(thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """`delete_thread` for coroutines."""
        await offload(self.delete_thread, thread_id)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread to a new id, with all namespaces, forks and pending writes, in one commit.

        Raises:
            ConflictError: There is a thread with the target's id.
        """
        target = check_id("target_thread_id", target_thread_id)
        self.log.thread(check_id("source_thread_id", source_thread_id)).copy_to(target)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`copy_thread` for coroutines."""
        await offload(self.copy_thread, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove what is old from some threads, each in one commit.

        What a DeltaChannel of a kept checkpoint is rebuilt from is kept with it, out of sight.

        Args:
            thread_ids: The threads; those that do not exist are passed over.
            strategy: "keep_latest" keeps the head of each namespace, "delete" nothing.

        Raises:
            UsageError: There is no such strategy.
        """
        if strategy not in ("keep_latest", "delete"):
            raise UsageError(f'there is no strategy {strategy!r}: pass "keep_latest" or "delete"')
        if isinstance(thread_ids, str):
            raise UsageError(f"prune takes a list of thread ids: pass [{thread_ids!r}]")
        for thread_id in [check_id("thread_id", thread_id) for thread_id in thread_ids]:
            if strategy == "delete":
                self.delete_thread(thread_id)
            else:
                # A thread without any head holds writes that wait for their step, which may still come.
                self._rewrite(thread_id, lambda number: {head for _, _, head in self._lanes(number) if head} or None)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """`prune` for coroutines."""
        await offload(self.prune, thread_ids, strategy=strategy)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints of some runs, with the writes that wait for them; reads the whole log.

        What a DeltaChannel of a checkpoint that stays is rebuilt from is kept with it, out of sight.
        """
        runs = {check_id("run_id", run_id) for run_id in run_ids}
        if not runs:
            return
        for thread_id in [*self.log.all_threads()]:
            self._rewrite(thread_id, lambda number: self._without_runs(number, runs))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`delete_for_runs` for coroutines."""
        await offload(self.delete_for_runs, run_ids)

    def _without_runs(self, number: int, runs: set[str]) -> set[int] | None:
        """The steps of a thread that do not belong to the runs; None if none does."""
        keep: set[int] = set()
        doomed = False
        payloads = reader.Payloads(self.log.storage, number)
        for page in self._pages(number, Address("", None, None), None):
            states = self.log.reader.states(number, [found.step for _, found in page])
            for _, found in page:
                metadata = self.serde.loads_typed(reader.typed(states[found.step].fields, payloads)[METADATA])
                if metadata.get("run_id") in runs:
                    doomed = True
                else:
                    keep.add(found.step)
        return keep if doomed else None

    def _rewrite(self, thread_id: str, choose: Callable[[int], set[int] | None]) -> None:
        """Keep only the chosen steps of a thread, and what delta channels need."""

        def kept(row: ThreadRow) -> Kept | None:
            keep = choose(row.number)
            if keep is None:
                return None
            return Kept(frozenset(keep), retention.needed_by(self.log, row.number, keep, self.serde))

        self.log.thread(thread_id).rewrite(kept)
        self._memories.forget(thread_id)

    # --- the rest ---

    @property
    def serde(self) -> SerializerProtocol:
        """The serializer of channel values; may be replaced at any time."""
        return self._serde

    @serde.setter
    def serde(self, serde: SerializerProtocol) -> None:
        self._serde = maybe_add_typed_methods(serde)
        self._revival = Revival(self._serde, self.log.cache)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """The version after `current`: a number, and a random tail that differs between forks."""
        number = 0 if current is None else current if isinstance(current, int) else int(current.split(".")[0])
        return f"{number + 1:032}.{random.random():016}"


@contextmanager
def _forgotten_if_not_stored(lane: LaneKey) -> Iterator[None]:
    """What keeps late changes from being stored keeps nobody from reading on.  The block remembers the lane last."""
    try:
        yield
    except (ConflictError, ClosedError, ForkedError):
        pass  # pruned, deleted, or the log is not ours any more: nothing is left to correct
    except Exception:
        # What was put is stored; an object that cannot be encoded any more must keep nobody from reading on.
        _log.warning("Late changes of thread %r could not be stored", lane[0], exc_info=True)


class _Done:
    """Something that has been done already: may be awaited, or not."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield
