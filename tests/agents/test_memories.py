"""A deep agent's memories in the store: they outlive the conversation and the process that wrote them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import memories
from stepwell_langgraph import StepwellSaver, StepwellStore


def test_memory_of_a_killed_process(tmp_path: Path) -> None:
    """What an agent has written is read by another conversation in another process, and has its history."""
    path = tmp_path / "agent.stepwell"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}
    killed = subprocess.run([sys.executable, memories.__file__, path, "learn"], env=environment, check=False)
    assert killed.returncode == -9
    with StepwellSaver.from_conn_string(path) as saver, StepwellStore(saver.log) as store:
        agent = memories.make_agent(saver, store, memories.ScriptedModel())
        second: Any = {"configurable": {"thread_id": "second"}}
        state = agent.invoke({"messages": [("user", "What does Ada like?")]}, second)
        assert memories.FACT.strip() in state["messages"][-1].text
        written = store.history(memories.NAMESPACE, memories.KEY)
        assert [version.value["content"] for version in written if version.value] == [memories.FACT]
        first: Any = {"configurable": {"thread_id": "first"}}
        steps = list(agent.get_state_history(first))
        assert store.get(memories.NAMESPACE, memories.KEY, as_of=steps[-1].config) is None
        agent.invoke({"messages": [("user", "Please remember what Ada likes.")]}, second)
        assert len(store.history(memories.NAMESPACE, memories.KEY)) == 2
        assert saver.log.audit().breaches == []


async def test_memory_in_coroutines(tmp_path: Path) -> None:
    """The same agent on an event loop."""
    async with StepwellSaver.from_conn_string(tmp_path / "agent.stepwell") as saver:
        store = StepwellStore(saver.log)
        agent = memories.make_agent(saver, store, memories.ScriptedModel())
        config: Any = {"configurable": {"thread_id": "first"}}
        await agent.ainvoke({"messages": [("user", "Please remember what Ada likes.")]}, config)
        config = {"configurable": {"thread_id": "second"}}
        state = await agent.ainvoke({"messages": [("user", "What does Ada like?")]}, config)
        assert memories.FACT.strip() in state["messages"][-1].text
        assert [item.key for item in await store.asearch(memories.NAMESPACE)] == [memories.KEY]
