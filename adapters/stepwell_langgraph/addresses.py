"""What a RunnableConfig names, checked once, at the edge; and where that stands in a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from langchain_core.runnables import RunnableConfig

from stepwell.arguments import check_text
from stepwell.errors import UsageError
from stepwell.storage import Storage

# The fields of a step: the checkpoint without its channel values, and its metadata.
CHECKPOINT: Final = "checkpoint"
METADATA: Final = "metadata"


class Address(NamedTuple):
    """The thread, namespace and checkpoint that a config names."""

    thread_id: str
    namespace: str | None
    checkpoint_id: str | None

    @property
    def lane(self) -> str:
        """The namespace; the root graph's where none is named."""
        return self.namespace or ""


def read_address(config: RunnableConfig) -> Address:
    """The address in a config.

    Raises:
        UsageError: `thread_id` is missing, or something in it is not a str.
    """
    configurable = config.get("configurable") if isinstance(config, Mapping) else None
    if not isinstance(configurable, Mapping):
        raise UsageError('the config names no thread: pass config={"configurable": {"thread_id": "..."}} to the graph')
    if configurable.get("thread_id") is None:
        raise UsageError(
            'thread_id is missing from the config: pass {"configurable": {"thread_id": "..."}}, '
            "with one id for each conversation"
        )
    namespace = configurable.get("checkpoint_ns")
    checkpoint_id = configurable.get("checkpoint_id")
    return Address(
        check_id("thread_id", configurable["thread_id"]),
        None if namespace is None else check_id("checkpoint_ns", namespace),
        check_id("checkpoint_id", checkpoint_id) if checkpoint_id else None,
    )


def check_id(argument: str, value: Any) -> str:
    """The value, if it is a str.

    Raises:
        UsageError: It is something else.
    """
    if not isinstance(value, str):
        raise UsageError(
            f"{argument} is a str, not {type(value).__name__}: {value!r}; pass str(...) of it if that is the id"
        )
    check_text(argument, value)
    return value


def to_config(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    """The config that names a checkpoint."""
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            "checkpoint_id": checkpoint_id,
        }
    }


class Place(NamedTuple):
    """Where a lane stands in a log: the numbers of its thread and of itself, and its head."""

    number: int
    lane: int
    head: int


def locate(storage: Storage, address: Address) -> Place | None:
    """Where the lane of an address stands; None if it is not in the log."""
    row = storage.thread(address.thread_id)
    lane = None if row is None else storage.lane(row.number, address.lane)
    return None if row is None or lane is None else Place(row.number, lane[0], lane[1].head)
