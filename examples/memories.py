"""A deep agent whose memories outlive its conversations, and the process: saver and store in one file.

    python memories.py agent.stepwell learn     writes a memory in one conversation, and is killed in the next call
    python memories.py agent.stepwell recall    another process, another conversation: the memory is there
    python memories.py agent.stepwell history   every version of it, and what it was at each step of the agent

Files below /memories/ are items of the store; all others belong to their conversation.  The model is a script, so that
the example needs no key and no network.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepagents import create_deep_agent
from deepagents.backends import CompositeBackend, StateBackend, StoreBackend
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from stepwell_langgraph import StepwellSaver, StepwellStore

NAMESPACE = ("memories", "ada")
MEMORY = "/memories/likes.md"
KEY = "/likes.md"  # as the backend names it within the route
FACT = "Ada likes tea.\n"


class ScriptedModel(BaseChatModel):
    """Writes a memory when it is told to remember something, and else reads it."""

    dies_after_writing: bool = False

    @property
    def _llm_type(self) -> str:
        return "script"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> ScriptedModel:
        """The script knows the tools."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            if self.dies_after_writing:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = AIMessage(f"Done: {last.text}")
        elif isinstance(last, HumanMessage) and "remember" in last.text:
            answer = _call("write_file", file_path=MEMORY, content=FACT)
        else:
            answer = _call("read_file", file_path=MEMORY)
        return ChatResult(generations=[ChatGeneration(message=answer)])


def _call(tool: str, **arguments: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": tool, "args": arguments, "id": f"call-{tool}", "type": "tool_call"}])


def make_agent(saver: StepwellSaver, store: StepwellStore, model: BaseChatModel) -> Any:
    """A deep agent that keeps its conversations, and its memories beside them."""
    return create_deep_agent(
        model,
        checkpointer=saver,
        store=store,
        backend=CompositeBackend(
            default=StateBackend(),
            routes={"/memories/": StoreBackend(namespace=lambda runtime: NAMESPACE)},
        ),
    )


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("what", choices=["learn", "recall", "history"])
    given = parser.parse_args()
    with StepwellSaver.from_conn_string(given.path) as saver, StepwellStore(saver.log) as store:
        if given.what == "learn":
            agent = make_agent(saver, store, ScriptedModel(dies_after_writing=True))
            agent.invoke({"messages": [("user", "Please remember what Ada likes.")]}, _config("first"))
        elif given.what == "recall":
            agent = make_agent(saver, store, ScriptedModel())
            state = agent.invoke({"messages": [("user", "What does Ada like?")]}, _config("second"))
            print(state["messages"][-1].text)
        else:
            for version in store.history(NAMESPACE, KEY):
                print(version.commit, version.at.isoformat(), version.value)
            agent = make_agent(saver, store, ScriptedModel())
            for past in agent.get_state_history(_config("first")):
                memory = store.get(NAMESPACE, KEY, as_of=past.config)
                print(past.metadata["step"], memory.value["content"] if memory else None)


def _config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


if __name__ == "__main__":
    main()
