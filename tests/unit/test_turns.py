"""Coroutines' appends are encoded where they do not hold up the event loop, and submitted in order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send

from stepwell import UsageError
from stepwell_langgraph import StepwellSaver, memory
from stepwell_langgraph.put import Put
from stepwell_langgraph.turns import Turns
from stepwell_langgraph.weight import LIGHT_BYTES

CONFIG: Any = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
STEP: Any = {"source": "loop", "step": 1, "parents": {}}


class Watched(JsonPlusSerializer):
    """Notes the threads that it encodes values in."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.threads.append(threading.get_ident())
        return super().dumps_typed(obj)


def checkpoint(value: Any, version: str = "1") -> Checkpoint:
    made = empty_checkpoint()
    made["id"] = str(uuid6())
    made["channel_values"] = {"value": value}
    made["channel_versions"] = {"value": version}
    return made


@pytest.fixture
def saver() -> Any:
    with StepwellSaver.from_conn_string(":memory:", serde=Watched()) as saver:
        yield saver


@pytest.mark.parametrize(("size", "in_loop"), [(100, True), (LIGHT_BYTES * 2, False)])
async def test_what_is_large_is_encoded_in_a_thread(saver: Any, size: int, in_loop: bool) -> None:
    """What is small stays: handing it over would cost more."""
    stored = await saver.aput(CONFIG, checkpoint("x" * size), STEP, {"value": "1"})
    await saver.aput_writes(stored, [("value", "x" * size)], "task")
    mine = threading.get_ident()
    assert {thread == mine for thread in saver.serde.threads} == {in_loop}
    loaded = await saver.aget_tuple(CONFIG)
    assert loaded.checkpoint["channel_values"] == {"value": "x" * size}
    assert loaded.pending_writes == [("task", "value", "x" * size)]


async def test_a_log_that_has_to_be_read_is_read_in_a_thread(tmp_path: Path) -> None:
    """A process that goes on with a thread looks into what it holds, and its memory of the head is made, elsewhere."""
    messages = [HumanMessage(f"{number} " * 500, id=str(number)) for number in range(20)]
    path = tmp_path / "agents.stepwell"
    with StepwellSaver.from_conn_string(path) as saver:
        stored = saver.put(CONFIG, checkpoint(messages), STEP, {"value": "1"})
    with StepwellSaver.from_conn_string(path) as saver:
        readers: set[int] = set()
        payloads = saver.log.storage.payloads

        def noted(*asked: Any) -> Any:
            readers.add(threading.get_ident())
            return payloads(*asked)

        saver.log.storage.payloads = noted  # type: ignore[method-assign]
        await saver.aput_writes(stored, [("__pregel_tasks", Send("node", {"messages": messages}))], "task")
        await saver.aput(stored, checkpoint("small", "2"), STEP, {"value": "2"})
        assert readers
        assert threading.get_ident() not in readers


def appends() -> tuple[threading.Event, list[str], Callable[..., Any]]:
    """What lets those go that wait, the names of those that were submitted, and what makes one that may wait."""
    slow, began = threading.Event(), list[str]()

    def begin(name: str, wait: bool = False) -> Any:
        def begin(*, may_read: bool = True) -> Any:
            if wait:
                slow.wait(10)
            began.append(name)

        return begin

    return slow, began, begin


async def test_order_is_that_of_the_calls(saver: Any) -> None:
    """A light call waits for a heavy one of its thread before it, and for none of another thread."""
    slow, began, begin = appends()
    turns = Turns()
    tasks = [
        asyncio.create_task(turns.begin("1", begin("heavy", True), light=False)),
        asyncio.create_task(turns.begin("1", begin("light"), light=True)),
        asyncio.create_task(turns.begin("2", begin("other"), light=True)),
    ]
    await asyncio.sleep(0.05)
    assert began == ["other"]
    slow.set()
    await asyncio.gather(*tasks)
    assert began == ["other", "heavy", "light"]
    assert not turns._lines


async def test_a_light_call_does_not_overtake_one_that_is_just_about_to_go() -> None:
    """What is called in the moment in which a heavy call ends waits for what waited for that one."""
    slow, began, begin = appends()
    turns = Turns()

    async def heavy_then_light() -> None:
        await turns.begin("1", begin("first", True), light=False)
        await turns.begin("1", begin("third"), light=True)

    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(heavy_then_light())]
    await asyncio.sleep(0.05)
    tasks.append(asyncio.create_task(turns.begin("1", begin("second"), light=True)))
    await asyncio.sleep(0)
    slow.set()
    await asyncio.gather(*tasks)
    assert began == ["first", "second", "third"]


async def test_a_call_that_was_given_up_while_it_is_encoded_comes_before_the_next() -> None:
    """What a thread is encoding is submitted all the same: it must not become the head behind a later call's back."""
    slow, began, begin = appends()
    turns = Turns()
    given_up = asyncio.create_task(turns.begin("1", begin("given up", True), light=False))
    await asyncio.sleep(0.05)
    for _ in range(2):  # the second time it does not even wait for the thread
        given_up.cancel()
        await asyncio.sleep(0.01)
    assert given_up.cancelled()
    later = asyncio.create_task(turns.begin("1", begin("later"), light=True))
    await asyncio.sleep(0.05)
    assert began == []
    slow.set()
    await later
    assert began == ["given up", "later"]
    assert all(line.length == 0 for line in turns._lines.values())


def _files(text: str, count: int = 100) -> list[dict[str, Any]]:
    return [{"name": str(n), "lines": [f"{text} {n} {line}" for line in range(100)]} for n in range(count)]


FILES = _files("old")
NAMED = {str(n): file for n, file in enumerate(FILES)}
NUMBERS = {str(n): n for n in range(5000)}
CHATTER = [HumanMessage("x" * 100, id=str(n)) for n in range(2000)]


@pytest.mark.parametrize(
    ("before", "after", "writes"),
    [
        (FILES, _files("new"), True),  # as many as before, but others
        (FILES, [*FILES, 1], True),  # the last ones are encoded to be compared
        (NAMED, {**NAMED, "new": 1}, True),
        (NUMBERS, {**NUMBERS, "new": 1}, True),  # so many that to walk them takes long
        (CHATTER, CHATTER[1:], True),
        (CHATTER, [*CHATTER, HumanMessage("new")], False),  # no write was seen, so all are looked at
    ],
)
async def test_what_is_known_but_has_to_be_looked_at_is_looked_at_in_a_thread(
    monkeypatch: Any, before: Any, after: Any, writes: bool
) -> None:
    """A put that encodes or walks much of what it knows does not do so in the event loop."""
    saver = StepwellSaver.from_conn_string(":memory:")
    stored = await saver.aput(CONFIG, checkpoint(before), STEP, {"value": "1"})
    if writes:
        await saver.aput_writes(stored, [("value", 1)], "task")
    encoders: list[int] = []
    channels = Put._channels

    def noted(*asked: Any) -> Any:
        encoders.append(threading.get_ident())
        return channels(*asked)

    monkeypatch.setattr(Put, "_channels", noted)
    await saver.aput(stored, checkpoint(after, "2"), STEP, {"value": "2"})
    assert encoders
    assert threading.get_ident() not in encoders
    loaded = await saver.aget_tuple(CONFIG)
    assert loaded is not None
    assert loaded.checkpoint["channel_values"] == {"value": after}
    saver.close()


async def test_a_value_of_another_version_is_looked_for_in_a_thread(saver: Any, monkeypatch: Any) -> None:
    """A channel that is named, but not given, has its value in the log."""
    first = await saver.aput(CONFIG, checkpoint("old"), STEP, {"value": "1"})
    second = await saver.aput(first, checkpoint("new", "2"), STEP, {"value": "2"})
    readers: list[int] = []
    ancestors = saver.log.reader.ancestors

    def noted(*asked: Any) -> Any:
        readers.append(threading.get_ident())
        return ancestors(*asked)

    monkeypatch.setattr(saver.log.reader, "ancestors", noted)
    again = checkpoint(None, "1")
    again["channel_values"] = {}
    await saver.aput(second, again, STEP, {})
    assert readers
    assert threading.get_ident() not in readers
    assert (await saver.aget_tuple(CONFIG)).checkpoint["channel_values"] == {"value": "old"}


async def test_a_memory_that_is_forgotten_in_the_last_moment_is_made_in_a_thread(saver: Any, monkeypatch: Any) -> None:
    """Whether a put is light is told before it begins; what it was told by may be gone by then."""
    stored = await saver.aput(CONFIG, checkpoint("old"), STEP, {"value": "1"})
    monkeypatch.setattr(saver._memories, "take", lambda *asked: None)
    makers: list[int] = []
    recall = memory.recall_parent

    def noted(*asked: Any) -> Any:
        makers.append(threading.get_ident())
        return recall(*asked)

    monkeypatch.setattr("stepwell_langgraph.put.recall_parent", noted)
    await saver.aput(stored, checkpoint("new", "2"), STEP, {"value": "2"})
    assert makers
    assert threading.get_ident() not in makers


async def test_a_call_that_is_given_up_lets_the_next_one_go(saver: Any) -> None:
    """Cancelling a call that waits, or that is being encoded, leaves nothing locked."""
    calls = [
        asyncio.create_task(saver.aput(CONFIG, checkpoint("x" * LIGHT_BYTES * 2, str(n)), STEP, {"value": str(n)}))
        for n in range(4)
    ]
    await asyncio.sleep(0)
    for call in calls[:3]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert not calls[3].cancelled()
    await asyncio.wait_for(saver.aput(CONFIG, checkpoint("after"), STEP, {"value": "9"}), 10)
    loaded = await saver.aget_tuple(CONFIG)
    assert loaded.checkpoint["channel_values"] == {"value": "after"}


async def test_who_is_cancelled_while_a_thread_encodes_ends_after_it(saver: Any) -> None:
    """Nothing happens behind the back of somebody who was told that a call was cancelled; the next one waits, too."""
    going, done = threading.Event(), []
    turns = Turns()

    def slowly(*, may_read: bool = True) -> Any:
        going.wait(10)
        done.append("cancelled")

    first = asyncio.create_task(turns.begin("1", slowly, light=False))
    second = asyncio.create_task(turns.begin("1", lambda may_read=True: done.append("next"), light=True))  # type: ignore
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0.05)
    assert not first.done()
    going.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert done[0] == "cancelled"  # the next one may have had its turn before this line has its own
    await second
    assert done == ["cancelled", "next"]


@pytest.mark.parametrize("size", [10, LIGHT_BYTES * 2])
async def test_errors_reach_the_caller(saver: Any, size: int) -> None:
    """What cannot be stored is told to whoever asked for it, wherever it was encoded."""
    with pytest.raises(UsageError):
        await saver.aput_writes({"configurable": {"thread_id": "1"}}, [("value", "x" * size)], "task")
    with pytest.raises(UsageError):
        await saver.aput(CONFIG, {**checkpoint("x" * size), "id": 7}, STEP, {})
    with pytest.raises(TypeError):
        await saver.aput_writes(await saver.aput(CONFIG, checkpoint(1), STEP, {}), [("v", ["x" * size, open])], "task")


async def test_the_loop_goes_on_while_a_large_state_is_stored(tmp_path: Path) -> None:
    """Ticks of the loop go on while five megabytes are encoded, compressed and committed."""
    messages = [HumanMessage(f"{number} " * 1500, id=str(number)) for number in range(1000)]
    async with StepwellSaver.from_conn_string(tmp_path / "agents.stepwell") as saver:
        ticks: list[float] = []

        async def tick() -> None:
            while True:
                ticks.append(time.perf_counter())
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        await saver.aput(CONFIG, checkpoint(messages), STEP, {"value": "1"})
        ticking.cancel()
        assert len(ticks) > 20
