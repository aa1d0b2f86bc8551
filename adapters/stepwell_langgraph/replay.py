"""A recorded run once more through today's graph: would its reducers leave the same states?

Each step of the log is made again from the step before it: the writes that its tasks recorded go through the
channels and reducers of the graph as it is now, and what comes out is compared with what was recorded.  No node,
model or tool is called, and nothing is stored, so a production run becomes a regression test.  Values are made with
LangGraph's serializer, which calls what stands in the log: replay logs that you trust.

What it sees: changed, added and removed reducers and channels, and reducers that raise.

What it cannot see:

-   What nodes, models, tools and edges do: their writes are taken as they were recorded.
-   Reducers that give another result each time.  Ids that a reducer makes up are passed over; clocks and random
    numbers would be taken for a change.
-   Managed values and untracked channels, which no checkpoint holds.
-   Inputs, forks, and updates whose writes were not recorded: such steps are taken as they are, as are those of
    durability "exit", where many steps are saved as one.  They are counted in `Replay.passed_over`.
-   A delta channel at a step that stored no snapshot of it: LangGraph itself puts it together with today's reducer.
    A change shows at the first snapshot that differs.
-   Whom a join of branches still waits for: LangGraph fills the very set that it has handed to the saver.
-   Sub-graphs that neither the graph nor `graphs` names, such as agents that a tool calls: `Replay.unknown_lanes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langgraph._internal._config import recast_checkpoint_ns
from langgraph._internal._constants import (
    ERROR,
    ERROR_SOURCE_NODE,
    INPUT,
    INTERRUPT,
    NULL_TASK_ID,
    PUSH,
    RESUME,
    RETURN,
)
from langgraph.channels.base import BaseChannel
from langgraph.channels.delta import DeltaChannel
from langgraph.channels.named_barrier_value import NamedBarrierValue, NamedBarrierValueAfterFinish
from langgraph.checkpoint.base import Checkpoint, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.pregel import Pregel
from langgraph.pregel._algo import PregelTaskWrites, apply_writes
from langgraph.pregel._checkpoint import channels_from_checkpoint, copy_checkpoint, create_checkpoint

from stepwell import inspect, paths
from stepwell.difference import Difference, compare_data
from stepwell.history import Step, TaskWrites
from stepwell.inspect import Data, Typed
from stepwell.paths import ABSENT
from stepwell.replaying import Replayed
from stepwell.thread import Thread
from stepwell_langgraph.addresses import to_config
from stepwell_langgraph.saver import StepwellSaver

_NO_OUTPUT: Final = (ERROR, ERROR_SOURCE_NODE, INTERRUPT, RESUME, RETURN)
_BARRIERS: Final = (NamedBarrierValue, NamedBarrierValueAfterFinish)
_MOST_SHOWN: Final = 10

Graph = Pregel[Any, Any, Any, Any]
_Channels = Mapping[str, BaseChannel[Any, Any, Any]]


@dataclass(frozen=True)
class Divergence:
    """The first step that today's code would not leave as it was recorded.

    Attributes:
        step: The step.
        number: Its number, as LangGraph counts.
        nodes: The nodes whose writes it took over.
        differences: What differs: `old` is what was recorded, `new` what comes out today.
        error: What a reducer raised instead, if it did.
    """

    step: Step
    number: int | None
    nodes: list[str]
    differences: list[Difference]
    error: Exception | None = None

    def __str__(self) -> str:
        lane = f" of lane {self.step.lane!r}" if self.step.lane else ""
        after = f", after {', '.join(self.nodes)}" if self.nodes else ""
        lines = [f"step {self.number} (#{self.step.sequence}){lane}{after} would be another:"]
        if self.error is not None:
            lines.append(f"  {type(self.error).__name__}: {self.error}")
        for each in self.differences[:_MOST_SHOWN]:
            lines.append(f"  {each.path} {each.kind}")
            if each.old is not ABSENT:
                lines.append(f"    recorded: {inspect.summary(each.old, 100)}")
            if each.new is not ABSENT:
                lines.append(f"    today:    {inspect.summary(each.new, 100)}")
        if len(self.differences) > _MOST_SHOWN:
            lines.append(f"  and {len(self.differences) - _MOST_SHOWN} more")
        return inspect.safe_text("\n".join(lines), lines=True)


@dataclass
class Replay:
    """What came of a replay.

    Attributes:
        checked: How many steps were made again and compared.
        passed_over: How many were taken as they were recorded, by the reason.
        unknown_lanes: Lanes of sub-graphs that the graph does not name.
        divergence: The first step that would be another; None if there is none.
    """

    checked: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    unknown_lanes: list[str] = field(default_factory=list)
    divergence: Divergence | None = None

    def __str__(self) -> str:
        lines = [f"{self.checked} steps were made again" + (": all are as they were" if not self.divergence else "")]
        lines += [f"{count} taken as recorded: {reason}" for reason, count in self.passed_over.items()]
        if self.unknown_lanes:
            lines.append(f"{len(self.unknown_lanes)} lanes of graphs that this one does not name")
        if self.divergence:
            lines.append(str(self.divergence))
        return "\n".join(lines)


def replay(
    graph: Graph,
    thread: Thread,
    *,
    lane: str | None = None,
    graphs: Mapping[str, Graph] | None = None,
    serde: SerializerProtocol | None = None,
) -> Replay:
    """Make the steps of a thread again with a graph's own reducers, and tell the first that comes out differently.

    >>> from stepwell import Log
    >>> with Log.open("agent.stepwell", read_only=True) as log:            # doctest: +SKIP
    ...     assert replay(graph, log.thread("user-1")).divergence is None

    Calls no node, model or tool, and stores nothing.  What it cannot see: the text of this module.

    Args:
        graph: The compiled graph; its own checkpointer is not used.
        thread: The recorded run: the branch that ends with the head of each lane.
        lane: One lane of it; None for all: "" is the graph itself, the others are sub-graphs.
        graphs: Graphs that the graph does not name, such as agents that a tool calls, by the name of their lanes
            without the ids of tasks: `{"tools": sub_agent}`.
        serde: What the run was stored with; None takes that of the graph's checkpointer, or LangGraph's own.

    Returns:
        What was compared, and the first step that differs.  Of several lanes, the step that was committed first.

    Raises:
        UsageError: There is no such thread or lane.
        CorruptionError: Something of the thread is damaged.
    """
    given = getattr(graph.checkpointer, "serde", None)
    saver = StepwellSaver(thread.log, serde=serde or given)
    named = {"": graph, **dict(graph.get_subgraphs(recurse=True)), **(graphs or {})}
    result = Replay()
    found: list[Divergence] = []
    for name in [each.lane for each in thread.lanes() if each.head] if lane is None else [lane]:
        known = named.get(recast_checkpoint_ns(name))
        if isinstance(known, Pregel):
            divergence = _Lane(known, saver, thread, name, result).first_divergence()
            found += [divergence] if divergence else []
        else:
            result.unknown_lanes.append(name)
    result.divergence = min(found, key=lambda each: each.step.sequence, default=None)
    return result


class _Lane:
    """One lane, and the graph that it is of."""

    def __init__(self, graph: Graph, saver: StepwellSaver, thread: Thread, name: str, result: Replay) -> None:
        self._graph = graph
        self._saver = saver
        self._thread = thread
        self._name = name
        self._result = result
        self._parent: CheckpointTuple | None = None
        self._carried: _Channels = {}

    def first_divergence(self) -> Divergence | None:
        before: Replayed | None = None
        for step in self._thread.replay(self._name):
            parent, self._parent = self._parent, self._load(step)
            carried, self._carried = self._carried, {}
            reason = self._passed_over(before, parent, step)
            if reason is not None:
                self._result.passed_over[reason] += 1
            else:
                assert parent is not None
                assert before is not None
                divergence = self._made_again(parent, carried, before, step)
                self._result.checked += 1
                if divergence is not None:
                    return divergence
            before = step
        return None

    def _load(self, step: Replayed) -> CheckpointTuple:
        loaded = self._saver.get_tuple(to_config(self._thread.id, self._name, step.step_id))
        assert loaded is not None
        self._graph._migrate_checkpoint(loaded.checkpoint)
        return loaded

    def _passed_over(self, before: Replayed | None, parent: CheckpointTuple | None, step: Replayed) -> str | None:
        """Why a step cannot be made again from the one before it; None if it can."""
        source = step.source
        if source == "input":
            return "an input, whose writes are not recorded"
        if source == "fork":
            return "a fork, which shows what another step does"
        if before is None or parent is None or before.step_id != step.parent_id:
            return "the step before it is not in the log"
        if source not in ("loop", "update"):
            return "it does not say what it came from"
        if before.number is None or step.number != before.number + 1:
            return "several steps were saved as one"
        if source == "update":
            return None if step.writes else "an update whose writes are not recorded"
        written = {task.node for task in step.writes if any(c not in _NO_OUTPUT for c in task.channels)}
        if not written or not self._ran(parent, self._parent) <= written:
            return "not all writes of its tasks are recorded"
        return None

    def _ran(self, parent: CheckpointTuple | None, child: CheckpointTuple | None) -> set[str | None]:
        """The nodes that ran between two checkpoints, as far as what they have seen tells."""
        assert parent is not None
        assert child is not None
        before, after = parent.checkpoint["versions_seen"], child.checkpoint["versions_seen"]
        return {name for name in self._graph.nodes if name in after and after[name] != before.get(name)}

    def _made_again(
        self,
        parent: CheckpointTuple,
        carried: _Channels,
        before: Replayed,
        step: Replayed,
    ) -> Divergence | None:
        assert self._parent is not None
        nodes = [*dict.fromkeys(task.node for task in step.writes if task.node)]
        try:
            channels = self._channels(parent, carried)
            checkpoint = copy_checkpoint(parent.checkpoint)
            self._apply(checkpoint, channels, parent, step)
            made = create_checkpoint(checkpoint, channels, step.number or 0, id=step.step_id)["channel_values"]
        except Exception as error:  # whatever today's reducers raise
            return Divergence(step.step, step.number, nodes, [], error)
        recorded = self._parent.checkpoint
        for name, channel in channels.items():
            if isinstance(channel, DeltaChannel) and name in recorded["channel_values"] and channel.is_available():
                made[name] = _snapshot_like(recorded["channel_values"][name], channel.get())
        differences = self._differences(before, step, made)
        if differences:
            return Divergence(step.step, step.number, nodes, differences)
        self._carried = {name: each for name, each in channels.items() if isinstance(each, DeltaChannel)}
        return None

    def _channels(self, parent: CheckpointTuple, carried: _Channels) -> dict[str, BaseChannel[Any, Any, Any]]:
        """The channels as the graph would have them at a checkpoint.

        A delta channel that was put together for the step before is not put together again.
        """
        values = parent.checkpoint["channel_values"]
        known = {name: channel for name, channel in carried.items() if name not in values}
        specs = {name: spec for name, spec in self._graph.channels.items() if name not in known}
        found, _ = channels_from_checkpoint(specs, parent.checkpoint, saver=self._saver, config=parent.config)
        both = {**found, **known}
        return {name: both[name] for name in self._graph.channels if name in both}

    def _apply(
        self,
        checkpoint: Checkpoint,
        channels: _Channels,
        parent: CheckpointTuple,
        step: Replayed,
    ) -> None:
        """What LangGraph does between the two checkpoints."""
        by_task: dict[str, list[tuple[str, Any]]] = {}
        for task_id, channel, value in parent.pending_writes or []:
            by_task.setdefault(task_id, []).append((channel, value))
        outside = by_task.pop(NULL_TASK_ID, [])
        if outside and step.source == "loop":
            self._write(checkpoint, channels, [PregelTaskWrites((), INPUT, outside, [])])
        tasks = [
            PregelTaskWrites(
                _Place(task.task_path), task.node or "", by_task.get(task.task_id, []), self._triggers(task)
            )
            for task in step.writes
            if task.task_id in by_task and task.task_path
        ]
        self._write(checkpoint, channels, tasks)

    def _write(
        self,
        checkpoint: Checkpoint,
        channels: _Channels,
        tasks: Sequence[PregelTaskWrites],
    ) -> None:
        apply_writes(checkpoint, channels, tasks, self._saver.get_next_version, self._graph.trigger_to_nodes)

    def _triggers(self, task: TaskWrites) -> Sequence[str]:
        if task.is_update:
            return [INTERRUPT]
        node = self._graph.nodes.get(task.node or "")
        if node is None or "__pregel_pull" not in task.task_path:
            return [PUSH]
        return sorted(node.triggers)

    def _differences(self, before: Replayed, step: Replayed, made: dict[str, Any]) -> list[Difference]:
        assert self._parent is not None
        recorded = self._parent.checkpoint["channel_values"]
        known: frozenset[str] | None = None
        found: list[Difference] = []
        for name in dict.fromkeys((*recorded, *made)):
            if isinstance(self._graph.channels.get(name), _BARRIERS):
                continue
            if name in recorded and name in made:
                old, new = self._saver.serde.dumps_typed(made[name]), step.state.raw(name)
                if old == new:
                    continue
            if known is None:
                known = frozenset(_ids_before(before, step))
            then = _settled(self._data(recorded[name]), known) if name in recorded else ABSENT
            now = _settled(self._data(made[name]), known) if name in made else ABSENT
            found += compare_data(paths.to(name), then, now)
        return found

    def _data(self, value: Any) -> Data:
        type_, payload = self._saver.serde.dumps_typed(value)
        return inspect.decode(type_, payload)


class _Place(tuple[Any, ...]):
    """The path of a task that is known as text, which is what LangGraph sorts by."""

    __slots__ = ()

    def __new__(cls, text: str) -> _Place:
        # LangGraph joins the parts of a path after a "~".
        return super().__new__(cls, text.removeprefix("~").split(", "))


def _snapshot_like(recorded: Any, value: Any) -> Any:
    """A value of a delta channel as the recorded checkpoint holds it: within a snapshot, or plain."""
    return type(recorded)(value) if type(recorded).__name__ == "_DeltaSnapshot" else value


def _ids_before(before: Replayed, step: Replayed) -> Iterator[str]:
    """The ids of all objects that a step began with, and of those that were written for it.

    As they are in the log: reducers give ids to the very objects that they are given.
    """
    for channel in before.state:
        yield from _ids_in(before.state[channel])
    for task in step.writes:
        for _, data in task.values:
            yield from _ids_in(data)


def _ids_in(data: Data) -> Iterator[str]:
    if isinstance(data, Typed):
        id_ = data.fields.get("id")
        if isinstance(id_, str):
            yield id_
        yield from _ids_in(data.fields)
    elif isinstance(data, dict):
        for item in data.values():
            yield from _ids_in(item)
    elif isinstance(data, list):
        for item in data:
            yield from _ids_in(item)


def _settled(data: Data, known: frozenset[str]) -> Data:
    """Data without the ids that a reducer made up for messages, which are others each time."""
    if isinstance(data, Typed):
        fields = {name: _settled(item, known) for name, item in data.fields.items()}
        if inspect.is_message(data) and fields.get("id") not in known:
            fields["id"] = None
        return Typed(data.type, fields)
    if isinstance(data, dict):
        return {key: _settled(item, known) for key, item in data.items()}
    if isinstance(data, list):
        return [_settled(item, known) for item in data]
    return data
