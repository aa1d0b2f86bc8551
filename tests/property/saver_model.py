"""What a saver shows, as dictionaries: the model that the state machine holds the savers against.

A thread is a map of lanes (namespaces), a lane a list of steps in commit order. A step keeps the value of
every channel that it shows; nothing is shared, looked up or patched, so there is little to get wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple, writes_sort_key
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

Encoded = tuple[str, bytes]

SERDE = JsonPlusSerializer()


def encoded(value: Any) -> Encoded:
    """The serde's bytes of a value: equal only for values that are the same in type, order and content."""
    return SERDE.dumps_typed(value)


def normal(value: Encoded) -> Encoded:
    """The bytes of a value after one round trip, which turns tuples into lists, for one."""
    return encoded(SERDE.loads_typed(value))


@dataclass
class Step:
    """One checkpoint and what it shows.

    Attributes:
        hidden: Whether it was pruned; histories still run through it.
        lost: Channels that were kept nothing of beyond this step, as no DeltaChannel can need it.
    """

    id: str
    parent: str | None
    fields: dict[str, Any]
    versions: dict[str, Any]
    values: dict[str, Encoded]
    metadata: dict[str, Any]
    hidden: bool = False
    lost: set[str] = field(default_factory=set)


@dataclass
class Lane:
    """The steps of one namespace in commit order, and the writes of each checkpoint id."""

    steps: dict[str, Step] = field(default_factory=dict)
    writes: dict[str, dict[tuple[str, int], tuple[str, str, Encoded]]] = field(default_factory=dict)

    def visible(self) -> list[Step]:
        """The steps that can be found, oldest first."""
        return [step for step in self.steps.values() if not step.hidden]

    def channels(self) -> set[str]:
        """Every channel that has a value or a write somewhere in the lane."""
        valued = {channel for step in self.steps.values() for channel in step.values}
        return valued | {channel for stored in self.writes.values() for _, channel, _ in stored.values()}

    def ordered_writes(self, id: str) -> list[tuple[str, str, Encoded]]:
        """The writes of a checkpoint as (task, channel, value), in the order in which they are applied."""
        stored = self.writes.get(id, {})
        order = sorted(stored, key=lambda key: writes_sort_key(stored[key][0], *key))
        return [(key[0], stored[key][1], normal(stored[key][2])) for key in order]


class SaverModel:
    """Threads by id."""

    def __init__(self) -> None:
        self.threads: dict[str, dict[str, Lane]] = {}

    def lane(self, thread: str, ns: str) -> Lane:
        """The lane, empty if nothing was stored in it."""
        return self.threads.get(thread, {}).get(ns, Lane())

    def put(
        self,
        thread: str,
        ns: str,
        parent: str | None,
        checkpoint: Mapping[str, Any],
        metadata: Mapping[str, Any],
        new_versions: Mapping[str, Any],
    ) -> None:
        """Store a checkpoint; one put again replaces the former in its place."""
        lane = self.threads.setdefault(thread, {}).setdefault(ns, Lane())
        fields = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        before = lane.steps.get(parent) if parent is not None else None
        values = {channel: encoded(value) for channel, value in checkpoint["channel_values"].items()}
        for channel, version in checkpoint["channel_versions"].items():
            unmoved = channel not in values and channel not in new_versions and before is not None
            if unmoved and before.versions.get(channel) == version and channel in before.values:
                values[channel] = before.values[channel]
        lane.steps[checkpoint["id"]] = Step(
            checkpoint["id"],
            parent,
            copy.deepcopy(fields),
            dict(checkpoint["channel_versions"]),
            values,
            copy.deepcopy(dict(metadata)),
        )

    def put_writes(
        self, thread: str, ns: str, id: str, writes: Sequence[tuple[str, Any]], task: str, path: str
    ) -> None:
        """Store writes: of the same task and position the first ordinary one stays, the last special one."""
        lane = self.threads.setdefault(thread, {}).setdefault(ns, Lane())
        stored = lane.writes.setdefault(id, {})
        for position, (channel, value) in enumerate(writes):
            key = (task, WRITES_IDX_MAP.get(channel, position))
            if key[1] < 0 or key not in stored:
                stored[key] = (path, channel, encoded(value))

    def delete_thread(self, thread: str) -> None:
        """Forget the thread."""
        self.threads.pop(thread, None)

    def copy_thread(self, source: str, target: str) -> None:
        """Make the target what the source is."""
        self.threads[target] = copy.deepcopy(self.threads[source])

    def prune(self, thread: str) -> None:
        """Hide all but the newest step of each lane.

        A channel that has a value at that step needs no history.  Else the counters in the metadata tell
        whether it is a delta channel, or, where there are none, that something was written to it.
        """
        for ns, lane in self.threads.get(thread, {}).items():
            visible = lane.visible()
            for step in visible[:-1]:
                step.hidden = True
            for kept in visible[-1:]:
                counted = kept.metadata.get("counters_since_delta_snapshot")
                for channel in lane.channels():
                    history = self.history(thread, ns, kept.id, channel)
                    written = history and any(value[0] != "null" for _, value in history["writes"])
                    needed = written if counted is None else channel in counted
                    if channel in kept.values or not needed:
                        kept.lost.add(channel)

    def show(self, thread: str, ns: str, id: str) -> dict[str, Any] | None:
        """What `get_tuple` must show of a checkpoint, in the form of `show_tuple`."""
        lane = self.lane(thread, ns)
        step = lane.steps.get(id)
        if step is None or step.hidden:
            return None
        return {
            "config": (thread, ns, id),
            "fields": step.fields,
            "values": {channel: normal(value) for channel, value in step.values.items()},
            "metadata": normal(encoded(step.metadata)),
            "parent": step.parent,
            "writes": lane.ordered_writes(id),
        }

    def list(self, thread: str, ns: str) -> list[dict[str, Any] | None]:
        """What `list` must show of a lane, newest first."""
        return [self.show(thread, ns, step.id) for step in reversed(self.lane(thread, ns).visible())]

    def history(self, thread: str, ns: str, id: str, channel: str) -> dict[str, Any] | None:
        """The delta history of one channel, in the form of `show_history`; None if pruning left it open."""
        lane = self.lane(thread, ns)
        found: dict[str, Any] = {"writes": []}
        step = lane.steps.get(id)
        while step is not None and step.parent in lane.steps:
            if channel in step.lost:
                return None
            step = lane.steps[step.parent]
            own = [(task, value) for task, written, value in lane.ordered_writes(step.id) if written == channel]
            found["writes"] = own + found["writes"]
            if channel in step.values:
                found["seed"] = normal(step.values[channel])
                break
        return found


def show_tuple(found: CheckpointTuple | None) -> dict[str, Any] | None:
    """A saver's tuple in the form of `SaverModel.show`: every value as the serde's bytes."""
    if found is None:
        return None
    configurable = found.config["configurable"]
    fields = {key: value for key, value in found.checkpoint.items() if key != "channel_values"}
    return {
        "config": (configurable["thread_id"], configurable["checkpoint_ns"], configurable["checkpoint_id"]),
        "fields": fields,
        "values": {channel: encoded(value) for channel, value in found.checkpoint["channel_values"].items()},
        "metadata": encoded(found.metadata),
        "parent": found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None,
        "writes": [(task, channel, encoded(value)) for task, channel, value in found.pending_writes or ()],
    }


def show_history(found: Mapping[str, Any]) -> dict[str, Any]:
    """One channel's delta history in the form of `SaverModel.history`."""
    shown: dict[str, Any] = {"writes": [(task, encoded(value)) for task, _, value in found["writes"]]}
    if "seed" in found:
        shown["seed"] = encoded(found["seed"])
    return shown
