"""`replay`: recorded runs of every agent go through its graph again, as it was and with a changed reducer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.channels.delta import DeltaChannel
from langgraph.channels.last_value import LastValue
from langgraph.pregel import Pregel

from agents import agents
from agents.driver import Run, drive, stepwell
from agents.scenarios import SCENARIOS
from stepwell import Log, Thread, inspect
from stepwell_langgraph.replay import replay

FULL_MATRIX = os.environ.get("STEPWELL_FULL_MATRIX") == "1"

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:create_react_agent has been moved:langgraph.warnings.LangGraphDeprecatedSinceV10"
    ),
    pytest.mark.skipif(os.environ.get("STEPWELL_CONTENDER", "stepwell") != "stepwell", reason="it reads our logs"),
]

# Runs that others in the list are like; all are replayed where the matrix is run in full.
ALIKE = {"crowd", "map_reduce_at_once", "tree_replayed_inherited", "tree_own_memory", "time_travel", "tool_breaks"}

Recorded = tuple[Pregel[Any, Any, Any, Any], Thread]


def recorded(name: str, path: Path, durability: str) -> tuple[Pregel[Any, Any, Any, Any], Path]:
    """A run of a scenario: the graph that was run, and its log."""
    file = stepwell(path / f"{name}.stepwell")

    async def live() -> Pregel[Any, Any, Any, Any]:
        async with Run(file, False, durability) as run:
            await SCENARIOS[name].scenario(run)
            return run.graph

    return drive(live(), False), file.path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Pregel[Any, Any, Any, Any], Path]]:
    """The runs that were recorded; each is recorded once."""
    return {}


@pytest.fixture
def reading(
    runs: dict[str, tuple[Pregel[Any, Any, Any, Any], Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Recorded]]:
    """Records a scenario, and opens what it left; the graph may be changed."""
    logs: list[Log] = []

    def record(name: str, durability: str = "sync", variant: str = "") -> Recorded:
        key = f"{name}-{durability}{variant}"
        if key not in runs:
            runs[key] = recorded(name, tmp_path_factory.mktemp("runs"), durability)
        graph, path = runs[key]
        graph = graph.copy()
        graph.channels = dict(graph.channels)
        graph.nodes = dict(graph.nodes)
        logs.append(Log.open(path, read_only=True))
        return graph, logs[-1].thread("thread-1")

    yield record
    for log in logs:
        log.close()


MATRIX = [
    pytest.param(name, durability, id=f"{name}-{durability}")
    for name, case in SCENARIOS.items()
    for durability in case.durabilities
    if FULL_MATRIX
    or (not case.is_long and name not in ALIKE and (durability == "sync" or name in ("desk", "workflow")))
]


@pytest.mark.parametrize(("name", "durability"), MATRIX)
def test_an_unchanged_graph_leaves_the_same_states(
    name: str, durability: str, reading: Callable[..., Recorded]
) -> None:
    """Nothing is reported of a graph that is as it was when the run was recorded, and nearly all steps are checked."""
    graph, thread = reading(name, durability)
    result = replay(graph, thread)
    assert result.divergence is None, str(result)
    if durability != "exit":
        assert result.checked > 0
        assert set(result.passed_over) <= {
            "an input, whose writes are not recorded",
            "a fork, which shows what another step does",
            "an update whose writes are not recorded",
        }
    assert "all are as they were" in str(result)


def broken(graph: Pregel[Any, Any, Any, Any], channel: str, size: int) -> None:
    """Give a channel a reducer that loses the last element, once there are so many."""
    spec = graph.channels[channel]
    assert isinstance(spec, BinaryOperatorAggregate | DeltaChannel)
    changed = spec.copy()
    old = spec.operator if isinstance(spec, BinaryOperatorAggregate) else spec.reducer

    def reducer(left: Any, right: Any) -> Any:
        made = old(left, right)
        return made[:-1] if len(made) >= size else made

    if isinstance(changed, BinaryOperatorAggregate):
        changed.operator = reducer
    else:
        changed.reducer = reducer
    graph.channels[channel] = changed


def first_step(thread: Thread, channel: str, size: int) -> str:
    """The first step that took over a write to a channel, and holds so many elements in it."""
    for step in thread.replay():
        if step.source == "input" or channel not in step.state:
            continue
        value = step.state[channel]
        if isinstance(value, inspect.Typed):
            value = value.fields["value"]  # a snapshot of a delta channel
        elif any(channel in task.channels for task in step.writes) is False:
            continue
        if isinstance(value, list) and len(value) >= size:
            return step.step_id
    raise AssertionError("no step holds so many")


@pytest.mark.parametrize(
    ("name", "channel", "size"),
    [
        ("desk", "log", 5),
        ("ledger", "messages", 142),
        ("form", "answers", 3),
        ("map_reduce", "results", 8),
        ("tree_inherited", "path", 4),
        ("edits", "log", 6),
        ("diary", "entries", 7),
        ("tool_agent", "messages", 7),
        ("react_v1", "messages", 5),
        ("react_v2", "messages", 7),
    ],
)
def test_a_changed_reducer_is_found_at_its_step(
    name: str, channel: str, size: int, reading: Callable[..., Recorded]
) -> None:
    """The first step that the changed reducer makes another is named, with what differs, in the middle of a run."""
    graph, thread = reading(name)
    broken(graph, channel, size)
    result = replay(graph, thread, lane="")
    assert result.divergence is not None
    assert result.divergence.step.step_id == first_step(thread, channel, size), str(result)
    assert {each.path.split("[")[0] for each in result.divergence.differences} == {channel}
    assert any(each.kind == "removed" for each in result.divergence.differences)
    assert f"step {result.divergence.number} " in str(result)
    assert "recorded: " in str(result)


def test_a_changed_reducer_of_a_deep_agent_is_found(
    reading: Callable[..., Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages are a delta channel: the first snapshot that differs is named."""
    build = agents.build_deep_agent

    def often(saver: Any) -> Any:
        graph = build(saver)
        channel = graph.channels["messages"].copy()  # type: ignore[union-attr]
        channel.snapshot_frequency = 3
        graph.channels["messages"] = channel
        return graph

    monkeypatch.setattr(agents, "build_deep_agent", often)
    graph, thread = reading("deep_agent", variant=" with snapshots")
    assert replay(graph, thread).divergence is None
    broken(graph, "messages", 6)
    result = replay(graph, thread)
    assert result.divergence is not None
    assert result.divergence.step.step_id == first_step(thread, "messages", 6), str(result)


def test_sub_graphs_are_made_again_too(reading: Callable[..., Recorded]) -> None:
    """A reducer of an inner graph is found in its lane; lanes of graphs that nobody names are told."""
    graph, thread = reading("tree_inherited")
    inner = dict(graph.get_subgraphs(recurse=True))["branch"]
    assert isinstance(inner, Pregel)
    changed = inner.copy()
    changed.channels = dict(inner.channels)
    broken(changed, "path", 2)
    result = replay(graph, thread, graphs={"branch": changed})
    assert result.divergence is not None
    assert result.divergence.step.lane.startswith("branch:")
    deep, thread = reading("deep_agent")
    assert {lane.split(":")[0] for lane in replay(deep, thread).unknown_lanes} == {"tools"}


def test_channels_that_came_and_went_are_found(reading: Callable[..., Recorded]) -> None:
    """A channel that the graph has no more is a difference at the first step that had it."""
    graph, thread = reading("workflow")
    del graph.channels["__previous__"]
    result = replay(graph, thread)
    assert result.divergence is not None
    assert [(each.path, each.kind) for each in result.divergence.differences] == [("__previous__", "removed")]
    desk, thread = reading("desk")
    desk.channels["plan"] = LastValue(dict)
    assert replay(desk, thread).divergence is None


def test_a_reducer_that_raises_is_told(reading: Callable[..., Recorded]) -> None:
    """What today's reducer raises is reported with the step, and does not end the replay in an error."""
    graph, thread = reading("tool_agent")
    spec = graph.channels["messages"].copy()  # type: ignore[union-attr]

    def reducer(left: Any, right: Any) -> Any:
        raise TypeError("not any more \x1b[31m")

    spec.operator = reducer  # type: ignore[union-attr]
    graph.channels["messages"] = spec
    result = replay(graph, thread)
    assert result.divergence is not None
    assert isinstance(result.divergence.error, TypeError)
    assert "not any more \\x1b[31m" in str(result)


def test_nothing_is_called_and_nothing_is_stored(reading: Callable[..., Recorded]) -> None:
    """No node, model or tool runs, and the log, which is open for reading only, stays as it is."""
    graph, thread = reading("tool_agent")
    row = thread.row()
    for name, node in graph.nodes.items():
        graph.nodes[name] = node.copy({"bound": None})
    assert replay(graph, thread).divergence is None
    assert thread.row() == row
