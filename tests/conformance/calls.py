"""A saver seen through one spelling, so that each test is written once for the sync and the async methods.

`Calls` forwards every method; `step` puts a checkpoint shaped as LangGraph shapes it; `shown` reduces a
`CheckpointTuple` to what a caller can see in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointTuple,
    DeltaChannelHistory,
)

_numbers = count(1)


def new_id() -> str:
    """A checkpoint id shaped like LangGraph's uuid6, greater than every id before it."""
    return f"1f0b0000-0000-6000-8000-{next(_numbers):012x}"


def new_version() -> str:
    """A channel version shaped like LangGraph's, greater than every version before it."""
    return f"{next(_numbers):032}.0{next(_numbers):016}"


def config_of(thread: Any = "thread", ns: str | None = "", id: str | None = None) -> RunnableConfig:
    """A config naming a thread, a namespace (None leaves it out) and a checkpoint (None leaves it out)."""
    configurable: dict[str, Any] = {"thread_id": thread}
    if ns is not None:
        configurable["checkpoint_ns"] = ns
    if id is not None:
        configurable["checkpoint_id"] = id
    return {"configurable": configurable}


def id_of(config: RunnableConfig) -> str:
    """The checkpoint id that a config names."""
    checkpoint_id: str = config["configurable"]["checkpoint_id"]
    return checkpoint_id


def checkpoint_of(
    id: str,
    values: Mapping[str, Any] | None = None,
    versions: ChannelVersions | None = None,
    **fields: Any,
) -> Checkpoint:
    """A checkpoint with every field that LangGraph sends."""
    checkpoint: dict[str, Any] = {
        "v": 4,
        "id": id,
        "ts": "2025-01-01T00:00:00+00:00",
        "channel_values": dict(values or {}),
        "channel_versions": dict(versions or {}),
        "versions_seen": {},
        "updated_channels": None,
    }
    return {**checkpoint, **fields}


def shown(found: CheckpointTuple | None) -> Any:
    """What a tuple shows: which checkpoint it is, its content, its parent, its pending writes."""
    if found is None:
        return None
    configurable = found.config["configurable"]
    return {
        "config": (
            str(configurable["thread_id"]),
            configurable.get("checkpoint_ns", ""),
            configurable["checkpoint_id"],
        ),
        "checkpoint": found.checkpoint,
        "metadata": found.metadata,
        "parent": id_of(found.parent_config) if found.parent_config else None,
        "writes": list(found.pending_writes or ()),
    }


def ids(found: list[CheckpointTuple]) -> list[str]:
    """The checkpoint ids of listed tuples, in order."""
    return [each.checkpoint["id"] for each in found]


class Calls:
    """A saver's methods, each awaited here, whether the blocking or the async twin runs underneath."""

    def __init__(self, saver: BaseCheckpointSaver[str], *, asynchronous: bool) -> None:
        self.saver = saver
        self.asynchronous = asynchronous

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self.call, name)

    async def call(self, name: str, *args: Any, **named: Any) -> Any:
        """Call the method `name`, or await its async twin."""
        if self.asynchronous:
            return await getattr(self.saver, f"a{name}")(*args, **named)
        return getattr(self.saver, name)(*args, **named)

    async def stream(self, config: RunnableConfig | None, **criteria: Any) -> AsyncIterator[CheckpointTuple]:
        """List lazily, one tuple at a time."""
        if self.asynchronous:
            async for each in self.saver.alist(config, **criteria):
                yield each
        else:
            for each in self.saver.list(config, **criteria):
                yield each

    async def list(self, config: RunnableConfig | None, **criteria: Any) -> list[CheckpointTuple]:
        """List everything at once."""
        return [each async for each in self.stream(config, **criteria)]

    async def history(self, config: RunnableConfig, *channels: str) -> dict[str, DeltaChannelHistory]:
        """The delta-channel history, checked against the default walk over the same saver's `get_tuple`."""
        found = await self.get_delta_channel_history(config=config, channels=list(channels))
        if self.asynchronous:
            walked = await BaseCheckpointSaver.aget_delta_channel_history(
                self.saver, config=config, channels=list(channels)
            )
        else:
            walked = BaseCheckpointSaver.get_delta_channel_history(self.saver, config=config, channels=list(channels))
        assert found == walked
        return dict(found)

    async def step(
        self,
        parent: RunnableConfig | None = None,
        values: Mapping[str, Any] | None = None,
        *,
        thread: Any = "thread",
        ns: str = "",
        id: str | None = None,
        versions: ChannelVersions | None = None,
        new: ChannelVersions | None = None,
        metadata: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> RunnableConfig:
        """Put a checkpoint after `parent`; without it, the first one of the lane `thread`, `ns`.

        Args:
            parent: The config that an earlier put returned; it also fixes thread and namespace.
            values: The channel values. Each gets a new version unless `versions` says otherwise.
            versions: The channel versions of the checkpoint.
            new: `new_versions` of the put; all of `versions` by default.
        """
        if versions is None:
            versions = {channel: new_version() for channel in values or {}}
        if parent is None:
            parent = config_of(thread, ns)
        checkpoint = checkpoint_of(id or new_id(), values, versions, **fields)
        if metadata is None:
            metadata = {"source": "loop", "step": 0, "parents": {}}
        stored: RunnableConfig = await self.put(parent, checkpoint, metadata, versions if new is None else new)
        return stored
