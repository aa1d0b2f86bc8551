"""`get_delta_channel_history`: the seed and the writes from which a delta channel is rebuilt.

Every history is also compared with the default walk that LangGraph does over `get_tuple` (`Calls.history`).
"""

from __future__ import annotations

import itertools
import random
from typing import Annotated, Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, _DeltaSnapshot
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from conformance.calls import Calls, config_of, new_id, new_version

FIRST_TASK = "00000000-0000-0000-0000-000000000000"
LAST_TASK = "ffffffff-ffff-ffff-ffff-ffffffffffff"


async def chain(
    calls: Calls,
    length: int,
    *,
    seeds: dict[int, Any] | None = None,
    parent: Any = None,
    start: int = 0,
    ns: str = "",
) -> list[Any]:
    """`length` checkpoints in a row: number n has the write n of channel "ch" and the value `seeds[n]`."""
    config, stored = parent, []
    for number in range(start, start + length):
        values = {"ch": seeds[number]} if seeds and number in seeds else {}
        config = await calls.step(config, values, ns=ns, versions={"ch": new_version()})
        await calls.put_writes(config, [("ch", number)], f"task {number}")
        stored.append(config)
    return stored


def values(history: Any, channel: str = "ch") -> list[Any]:
    """The values written, in order."""
    return [value for _, _, value in history[channel]["writes"]]


class TestWritesAndSeed:
    """What one channel's history holds."""

    async def test_oldest_first(self, calls: Calls) -> None:
        """Writes come oldest first, as (task id, channel, value), from the seed up to the target's parent."""
        stored = await chain(calls, 5, seeds={0: _DeltaSnapshot([])})
        history = await calls.history(stored[-1], "ch")
        assert history["ch"]["writes"] == [(f"task {n}", "ch", n) for n in range(4)]
        assert history["ch"]["seed"] == _DeltaSnapshot([])

    async def test_nearest_snapshot(self, calls: Calls) -> None:
        """The seed is the nearest ancestor's snapshot, and its own writes are the first to replay."""
        stored = await chain(calls, 6, seeds={0: _DeltaSnapshot("far"), 3: _DeltaSnapshot("near")})
        history = await calls.history(stored[-1], "ch")
        assert isinstance(history["ch"]["seed"], _DeltaSnapshot)
        assert history["ch"]["seed"].value == "near"
        assert values(history) == [3, 4]
        history = await calls.history(stored[3], "ch")
        assert history["ch"]["seed"].value == "far"
        assert values(history) == [0, 1, 2]

    async def test_no_seed(self, calls: Calls) -> None:
        """Where no ancestor stores a value, all writes from the root on are there and the seed is omitted."""
        stored = await chain(calls, 4)
        assert await calls.history(stored[-1], "ch") == {"ch": {"writes": [(f"task {n}", "ch", n) for n in range(3)]}}

    async def test_own_writes_and_value_are_left_out(self, calls: Calls) -> None:
        """The target's own writes and its own value are not part of its history."""
        stored = await chain(calls, 3, seeds={0: ["seed"], 2: ["own"]})
        await calls.put_writes(stored[-1], [("ch", "extra")], "more")
        history = await calls.history(stored[-1], "ch")
        assert values(history) == [0, 1]
        assert history["ch"]["seed"] == ["seed"]

    async def test_root(self, calls: Calls) -> None:
        """A root checkpoint has no history."""
        [root] = await chain(calls, 1, seeds={0: ["own"]})
        assert await calls.history(root, "ch") == {"ch": {"writes": []}}

    @pytest.mark.parametrize("seed", [[10, 20], {"a": 1}, "text", 0, False, "", [], {}, None], ids=repr)
    async def test_plain_seed(self, calls: Calls, seed: Any) -> None:
        """A plain value, stored before the channel became a delta channel, is a seed whatever it is."""
        stored = await chain(calls, 4, seeds={0: "older", 1: seed})
        history = await calls.history(stored[-1], "ch")
        assert history["ch"]["seed"] == seed
        assert type(history["ch"]["seed"]) is type(seed)
        assert values(history) == [1, 2]

    async def test_seed_beside_unchanged_versions(self, calls: Calls) -> None:
        """A value that stays at its version over several checkpoints is the seed at the nearest of them."""
        versions = {"ch": new_version()}
        config, stored = None, []
        for number in range(4):
            given = {"ch": ["seed"]} if number == 0 else {}
            config = await calls.step(config, given, versions=versions, new=versions if number == 0 else {})
            await calls.put_writes(config, [("ch", number)], f"task {number}")
            stored.append(config)
        history = await calls.history(stored[-1], "ch")
        assert history["ch"]["seed"] == ["seed"]
        assert values(history) == [2]

    async def test_emptied_channel_is_no_seed(self, calls: Calls) -> None:
        """A version without a value, between a snapshot and the target, does not end the walk nor seed it."""
        stored = await chain(calls, 5, seeds={1: _DeltaSnapshot([1])})
        history = await calls.history(stored[-1], "ch")
        assert history["ch"]["seed"].value == [1]
        assert values(history) == [1, 2, 3]

    async def test_channel_without_a_version(self, calls: Calls) -> None:
        """Writes to a channel that no checkpoint lists are in its history all the same."""
        root = await calls.step()
        await calls.put_writes(root, [("ch", "early")], "task")
        head = await calls.step(root)
        assert values(await calls.history(head, "ch")) == ["early"]

    async def test_many_writes_of_one_task(self, calls: Calls) -> None:
        """All writes of a task to the channel are there in order, those to other channels are not."""
        root = await calls.step()
        writes = [("ch", 0), ("other", "x"), ("ch", 1), (ERROR, "e"), (INTERRUPT, "i"), ("ch", 2)]
        await calls.put_writes(root, writes, "task")
        head = await calls.step(root)
        assert values(await calls.history(head, "ch")) == [0, 1, 2]

    async def test_special_channels(self, calls: Calls) -> None:
        """A special channel has a history like any other."""
        root = await calls.step()
        await calls.put_writes(root, [(INTERRUPT, "first"), ("ch", 1)], "task")
        await calls.put_writes(root, [(INTERRUPT, "last")], "task")
        head = await calls.step(root)
        assert values(await calls.history(head, INTERRUPT), INTERRUPT) == ["last"]

    async def test_messages(self, calls: Calls) -> None:
        """Messages come back as messages, in seeds and in writes."""
        root = await calls.step(None, {"ch": _DeltaSnapshot([HumanMessage("seed", id="0")])})
        await calls.put_writes(root, [("ch", [HumanMessage("write", id="1")])], "task")
        head = await calls.step(root, {}, versions={"ch": new_version()})
        assert await calls.history(head, "ch") == {
            "ch": {
                "writes": [("task", "ch", [HumanMessage("write", id="1")])],
                "seed": _DeltaSnapshot([HumanMessage("seed", id="0")]),
            }
        }


class TestOrder:
    """The order of writes within a checkpoint is `writes_sort_key`."""

    async def test_task_path_before_task_id(self, calls: Calls) -> None:
        """Writes of parallel tasks replay in the order of their paths, not of their ids or arrival."""
        [root] = await chain(calls, 1)
        await calls.put_writes(root, [("ch", "third")], FIRST_TASK, "~pull, 03")
        await calls.put_writes(root, [("ch", "first")], LAST_TASK, "~pull, 01")
        await calls.put_writes(root, [("ch", "second")], "b", "~pull, 02")
        head = await calls.step(root)
        assert values(await calls.history(head, "ch")) == [0, "first", "second", "third"]

    async def test_pathless_writes_first(self, calls: Calls) -> None:
        """Writes without a path, of graph input and updates, come first, by task id."""
        root = await calls.step()
        await calls.put_writes(root, [("ch", "node")], FIRST_TASK, "~pull, a")
        await calls.put_writes(root, [("ch", "input")], LAST_TASK)
        await calls.put_writes(root, [("ch", "update")], "5")
        head = await calls.step(root)
        assert values(await calls.history(head, "ch")) == ["update", "input", "node"]

    async def test_position_within_a_task(self, calls: Calls) -> None:
        """Within a task the order is the position in its list, past ten and a hundred."""
        root = await calls.step()
        await calls.put_writes(root, [("ch", n) for n in range(120)], "task")
        head = await calls.step(root)
        assert values(await calls.history(head, "ch")) == list(range(120))

    async def test_exit_mode(self, calls: Calls) -> None:
        """The writes of a whole "exit" run, under one stub with synthetic ids and paths, replay in order."""
        stub = await calls.step(metadata={"step": -2})
        batches = []
        for step in range(1, 25):
            for task in range(3):
                batches.append(
                    (
                        f"ffffffff-0000-{step:04x}-8{task:03x}-{(7919 * step * (9 - task)) % 4096:012x}",
                        f"~~{step:010}~__pregel_pull, node {task}",
                        (step, task),
                    )
                )
        expected = [[step, task] for step in range(1, 25) for task in range(3)]
        for task_id, path, value in random.Random(4).sample(batches, len(batches)):
            await calls.put_writes(stub, [("ch", value)], task_id, path)
        head = await calls.step(stub, metadata={"source": "loop", "step": 24, "parents": {}})
        assert values(await calls.history(head, "ch")) == expected

    async def test_writes_before_their_checkpoint(self, calls: Calls) -> None:
        """Writes that arrived before their checkpoint, or after its child, take their place in the order."""
        root = await calls.step()
        waiting = new_id()
        await calls.put_writes(config_of(id=waiting), [("ch", "early")], "a", "~1")
        middle = await calls.step(root, id=waiting)
        head = await calls.step(middle)
        await calls.put_writes(middle, [("ch", "late")], "b", "~2")
        await calls.put_writes(root, [("ch", "latest of all")], "c", "~1")
        assert values(await calls.history(head, "ch")) == ["latest of all", "early", "late"]


class TestPath:
    """Which checkpoints a history is made of."""

    async def test_fork(self, calls: Calls) -> None:
        """Only the ancestors on the path contribute, not the other branch of a fork."""
        trunk = await chain(calls, 3, seeds={0: _DeltaSnapshot("trunk")})
        left = await chain(calls, 3, parent=trunk[1], start=10)
        right = await chain(calls, 3, parent=trunk[1], start=20, seeds={21: _DeltaSnapshot("right")})
        assert values(await calls.history(trunk[2], "ch")) == [0, 1]
        assert values(await calls.history(left[2], "ch")) == [0, 1, 10, 11]
        history = await calls.history(right[2], "ch")
        assert values(history) == [21]
        assert history["ch"]["seed"].value == "right"
        history = await calls.history(right[0], "ch")
        assert values(history) == [0, 1]
        assert history["ch"]["seed"].value == "trunk"

    async def test_every_checkpoint_of_a_tree(self, calls: Calls) -> None:
        """In a tree of many forks each checkpoint's history is the path from its root."""
        draw = random.Random(6)
        stored: list[tuple[Any, list[int]]] = []
        for number in range(40):
            parent, path = draw.choice(stored) if stored else (None, [])
            config = await calls.step(parent)
            await calls.put_writes(config, [("ch", number)], f"task {number}")
            stored.append((config, [*path, number]))
        for config, path in stored:
            assert values(await calls.history(config, "ch")) == path[:-1]

    async def test_latest(self, calls: Calls) -> None:
        """A config without a checkpoint id means the latest checkpoint."""
        await chain(calls, 4)
        assert values(await calls.history(config_of(), "ch")) == [0, 1, 2]
        assert values(await calls.history(config_of(ns=None), "ch")) == [0, 1, 2]

    async def test_unknown_checkpoint(self, calls: Calls) -> None:
        """An unknown checkpoint, namespace or thread has an empty history for each channel."""
        await chain(calls, 3)
        expected: dict[str, Any] = {"ch": {"writes": []}, "other": {"writes": []}}
        for config in (
            config_of(id=new_id()),
            config_of(ns="child"),
            config_of("nobody"),
            config_of("nobody", id="x"),
        ):
            assert await calls.history(config, "ch", "other") == expected

    async def test_missing_parent(self, calls: Calls) -> None:
        """A chain whose parent was never stored ends there."""
        stored = await chain(calls, 3, parent=config_of(id=new_id()))
        assert values(await calls.history(stored[-1], "ch")) == [0, 1]

    async def test_waiting_writes_of_a_missing_parent(self, calls: Calls) -> None:
        """Writes that wait for a parent that was never stored are in no history until it comes."""
        absent = new_id()
        await calls.put_writes(config_of(id=absent), [("ch", "waiting")], "task")
        head = await calls.step(config_of(id=absent))
        assert values(await calls.history(head, "ch")) == []
        await calls.step(None, id=absent)
        assert values(await calls.history(head, "ch")) == ["waiting"]

    async def test_reput_parent(self, calls: Calls) -> None:
        """After a checkpoint is put again under another parent, the walk follows the new one."""
        left = await chain(calls, 2, start=10)
        right = await chain(calls, 2, start=20)
        child = await calls.step(left[1])
        head = await calls.step(child)
        assert values(await calls.history(head, "ch")) == [10, 11]
        await calls.step(right[1], id=child["configurable"]["checkpoint_id"])
        assert values(await calls.history(head, "ch")) == [20, 21]

    async def test_namespaces(self, calls: Calls) -> None:
        """The same checkpoint ids in another namespace or thread contribute nothing."""
        shared = [new_id() for _ in range(3)]
        for thread, ns in (("thread", ""), ("thread", "child"), ("other", "")):
            config = None
            for id in shared:
                config = await calls.step(config, thread=thread, ns=ns, id=id)
                await calls.put_writes(config, [("ch", f"{thread} {ns} {id}")], "task")
        for thread, ns in (("thread", ""), ("thread", "child"), ("other", "")):
            history = await calls.history(config_of(thread, ns, shared[-1]), "ch")
            assert values(history) == [f"{thread} {ns} {id}" for id in shared[:2]]

    async def test_several_hundred(self, calls: Calls) -> None:
        """A chain of several hundred checkpoints is walked to its root, and to a seed far back."""
        stored = await chain(calls, 400, seeds={50: _DeltaSnapshot("far back")})
        history = await calls.get_delta_channel_history(config=stored[-1], channels=["ch", "other"])
        assert values(history) == list(range(50, 399))
        assert history["ch"]["seed"].value == "far back"
        assert history["other"] == {"writes": []}
        assert values(await calls.history(stored[50], "ch")) == list(range(50))


class TestSeveralChannels:
    """One call for many channels."""

    async def test_no_channels(self, calls: Calls) -> None:
        """No channels, no histories."""
        [head] = await chain(calls, 1)
        assert await calls.history(head) == {}
        assert await calls.history(config_of("nobody")) == {}

    async def test_each_ends_at_its_own_snapshot(self, calls: Calls) -> None:
        """Each channel's walk ends at its own nearest snapshot, whatever the others need."""
        snapshots = {1: ["a"], 3: ["b", "c"], 4: ["c"], 5: ["e"]}
        config = None
        for number in range(6):
            seeds = {channel: _DeltaSnapshot(f"{channel}{number}") for channel in snapshots.get(number, [])}
            config = await calls.step(config, seeds, versions={channel: new_version() for channel in "abcde"})
            await calls.put_writes(config, [(channel, number) for channel in "abcde"], f"task {number}")
        history = await calls.history(config_of(), *"abcde")
        assert {channel: values(history, channel) for channel in "abcde"} == {
            "a": [1, 2, 3, 4],
            "b": [3, 4],
            "c": [4],
            "d": [0, 1, 2, 3, 4],
            "e": [0, 1, 2, 3, 4],
        }
        seeds = {channel: each["seed"].value for channel, each in history.items() if "seed" in each}
        assert seeds == {"a": "a1", "b": "b3", "c": "c4"}
        for channel in "abcde":
            assert (await calls.history(config_of(), channel))[channel] == history[channel]

    async def test_all_asked_for(self, calls: Calls) -> None:
        """Every channel asked for has an entry, in the order asked, the unknown ones an empty one."""
        await chain(calls, 2)
        history = await calls.history(config_of(), "unknown", "ch", "also unknown")
        assert list(history) == ["unknown", "ch", "also unknown"]
        assert values(history) == [0]

    async def test_random_chains(self, calls: Calls) -> None:
        """On random chains of snapshots, empty and carried versions and shuffled writes both walks agree."""
        draw = random.Random(8)
        for trial in range(4):
            config, versions, stored = None, {}, []
            for _number in range(25):
                given, new = {}, {}
                for channel in "abc":
                    kind = draw.choice(["same", "same", "empty", "snapshot", "plain"])
                    if kind != "same":
                        new[channel] = new_version()
                    if kind == "snapshot":
                        given[channel] = _DeltaSnapshot(draw.random())
                    elif kind == "plain" and draw.random() < 0.3:
                        given[channel] = draw.random()
                versions = {**versions, **new}
                config = await calls.step(config, given, thread=f"{trial}", versions=versions, new=new)
                for task in draw.sample("wxyz", 2):
                    writes = [(draw.choice("abc"), draw.random()) for _ in range(3)]
                    await calls.put_writes(config, writes, task, draw.choice(["", "~1", "~2"]))
                stored.append(config)
                if draw.random() < 0.2:
                    config = draw.choice(stored)
                    versions = (await calls.get_tuple(config)).checkpoint["channel_versions"]
            for config in stored:
                await calls.history(config, *"abc")


def extended(old: list[str], writes: list[list[str]]) -> list[str]:
    """A reducer that depends on the order of the writes."""
    return [*old, *itertools.chain.from_iterable(writes)]


class Delta(TypedDict):
    log: Annotated[list[str], DeltaChannel(extended, snapshot_frequency=3)]


class TestDeltaChannel:
    """A graph with a real DeltaChannel."""

    @pytest.mark.parametrize("durability", ["sync", "async", "exit"])
    async def test_rebuilt_state(self, calls: Calls, durability: Any) -> None:
        """A graph rebuilds its delta channel from the saver, at every past state, as with InMemorySaver."""
        found = []
        for saver in (calls.saver, InMemorySaver()):
            builder = StateGraph(Delta)
            for name in ("left", "right"):
                builder.add_node(name, lambda state, name=name: {"log": [f"{name} {len(state['log'])}"]})
                builder.add_edge(START, name)
            builder.add_node("join", lambda state: {"log": [f"join {len(state['log'])}"]})
            builder.add_edge(["left", "right"], "join")
            builder.add_edge("join", END)
            graph = builder.compile(checkpointer=saver)
            states: list[Any] = []
            for turn in range(4):
                given: Any = {"log": [f"turn {turn}"]}
                if calls.asynchronous:
                    await graph.ainvoke(given, config_of(), durability=durability)
                else:
                    graph.invoke(given, config_of(), durability=durability)
                states.append(graph.get_state(config_of()).values)
            if calls.asynchronous:
                states += [each.values async for each in graph.aget_state_history(config_of())]
            else:
                states += [each.values for each in graph.get_state_history(config_of())]
            found.append(states)
        ours, theirs = found
        assert len(ours[3]["log"]) == 16
        assert ours == theirs
