"""Coroutines' appends are encoded where they do not hold up the event loop, and submitted in order."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send

from stepwell import UsageError
from stepwell_langgraph import StepwellSaver
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


async def test_order_is_that_of_the_calls(saver: Any) -> None:
    """A light call waits for a heavy one of its thread before it, and for none of another thread."""
    slow, began = threading.Event(), []
    turns = Turns()

    def begin(name: str, wait: bool) -> Any:
        def begin(*, may_read: bool = True) -> Any:
            if wait:
                slow.wait(10)
            began.append(name)

        return begin

    tasks = [
        asyncio.create_task(turns.begin("1", begin("heavy", True), light=False)),
        asyncio.create_task(turns.begin("1", begin("light", False), light=True)),
        asyncio.create_task(turns.begin("2", begin("other", False), light=True)),
    ]
    await asyncio.sleep(0.05)
    assert began == ["other"]
    slow.set()
    await asyncio.gather(*tasks)
    assert began == ["other", "heavy", "light"]
    assert not turns._locks


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
    assert done == ["cancelled"]
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
