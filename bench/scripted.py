"""Graphs that really run, with models and tools that say what was written before the clock started.

Where a replay would have to write too much of the graph again, the graph itself makes the calls.  A run's time
then includes the graph's, but the time of a call is the saver's alone.

What is said depends on nothing but the message that it follows: a question's text, or the id of the last tool
call that was answered.  So one model serves an agent and its sub-agents at once, in threads or on an event
loop, before and after an interrupt, whatever a middleware shows it of the conversation.
"""

import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

from script import TOOLS, Script

Saver = BaseCheckpointSaver[Any]
Agent = CompiledStateGraph[Any, Any, Any, Any]

_NAMESPACE = uuid.UUID("6f1ef0a5-53b0-4a4a-8f3b-0c7d4c2a9b11")
_APPROVAL = {"decisions": [{"type": "approve"}]}


@dataclass(frozen=True)
class Run:
    """A compiled agent without a saver, and the question that it is asked."""

    agent: Agent
    thread_id: str
    question: HumanMessage

    @property
    def config(self) -> RunnableConfig:
        return {"configurable": {"thread_id": self.thread_id}, "recursion_limit": 10_000}


def play(run: Run, saver: Saver) -> None:
    """Ask, and approve until nothing waits for it."""
    agent = run.agent.copy({"checkpointer": saver})
    state = agent.invoke({"messages": [run.question]}, run.config, durability="sync")
    while "__interrupt__" in state:
        state = agent.invoke(Command(resume=_APPROVAL), run.config, durability="sync")


async def aplay(run: Run, saver: Saver) -> None:
    """The same on an event loop."""
    agent = run.agent.copy({"checkpointer": saver})
    state = await agent.ainvoke({"messages": [run.question]}, run.config, durability="sync")
    while "__interrupt__" in state:
        state = await agent.ainvoke(Command(resume=_APPROVAL), run.config, durability="sync")


@dataclass(frozen=True)
class Lines:
    """All that is said in a run: answers by what they follow, tool results by the query."""

    answers: dict[str, AIMessage] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)

    def converse(self, question: str, answers: list[AIMessage]) -> None:
        """Add a conversation: the first answer follows the question, each next one the calls before it."""
        follows = question
        for answer in answers:
            self.answers[follows] = answer
            if answer.tool_calls:
                follows = str(answer.tool_calls[-1]["id"])


def of_script(script: Script) -> Lines:
    """What a replayed script says, to be said in a real graph."""
    lines = Lines()
    for turn in script.turns:
        lines.converse(str(turn.question.content), [round_.answer for round_ in turn.rounds])
        for round_ in turn.rounds:
            for call, result in zip(round_.answer.tool_calls, round_.results, strict=True):
                lines.results[call["args"]["query"]] = str(result.content)
    return lines


class ScriptedModel(BaseChatModel):
    """A chat model that says its lines, and `otherwise` when it is asked for something else: a summary."""

    answers: Mapping[str, AIMessage]
    otherwise: str = "Nothing."

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        last = messages[-1]
        follows = last.tool_call_id if isinstance(last, ToolMessage) else str(last.content)
        answer = self.answers.get(follows) or AIMessage(self.otherwise)
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages)  # without the detour through a thread


def tools(results: Mapping[str, str]) -> list[BaseTool]:
    """The tools of the scripts, which return what is written for a query."""
    return [_tool(name, results) for name in TOOLS]


def _tool(name: str, results: Mapping[str, str]) -> BaseTool:
    def read(query: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> ToolMessage:
        """What the script says that this query returns."""
        return ToolMessage(results[query], name=name, tool_call_id=tool_call_id, id=result_id(tool_call_id))

    async def aread(query: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> ToolMessage:
        return read(query, tool_call_id)

    return StructuredTool.from_function(read, aread, name=name)


def result_id(call_id: str) -> str:
    """The id of a tool's result, which follows from the call's: LangGraph's would be another in each run."""
    return str(uuid.uuid5(_NAMESPACE, call_id))


Handled = ToolMessage | Command[Any]


class SameIds(AgentMiddleware[Any, Any, Any]):
    """Gives `result_id` to the results of tools that are not ours."""

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Handled]) -> Handled:
        return self._named(handler(request), request.tool_call["id"])

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Handled]]) -> Handled:
        return self._named(await handler(request), request.tool_call["id"])

    def _named(self, handled: Handled, call_id: str) -> Handled:
        messages = [handled] if isinstance(handled, ToolMessage) else (handled.update or {}).get("messages", [])
        for message in messages:
            message.id = result_id(call_id)
        return handled
