"""The agents under test: real graphs around scripted models.

Each `build_*` function takes a saver and returns a compiled graph, so that a scenario can build the same
agent again over a reopened file, as a restarted process would.  The models are functions of the conversation
they are shown and of nothing else: what they answer is the same in every run, in every fork and after a
restart.  What must fail once is told so by a `Fault`, which outlives the graph.
"""

import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, TypedDict

from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import TodoListMiddleware
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCall, tool_call
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.channels.delta import DeltaChannel
from langgraph.channels.topic import Topic
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import create_react_agent
from langgraph.pregel import Pregel
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

Saver = BaseCheckpointSaver[Any]
Build = Callable[[Saver], Pregel[Any, Any, Any, Any]]


class Breakdown(RuntimeError):
    """What a node raises when a `Fault` tells it to."""


class Fault:
    """Lets the first `times` calls of `strike` raise, and all later ones pass."""

    def __init__(self, times: int = 1) -> None:
        self._left = times
        self._lock = threading.Lock()

    def strike(self) -> None:
        with self._lock:
            if self._left == 0:
                return
            self._left -= 1
        raise Breakdown("the first attempt fails")


class ScriptedModel(BaseChatModel):
    """A chat model whose n-th answer in a conversation is the n-th line of its script."""

    role: str
    script: list[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self

    def _answer(self, messages: list[BaseMessage]) -> ChatResult:
        turn = sum(isinstance(message, AIMessage) for message in messages)
        answer = self.script[turn % len(self.script)].model_copy(deep=True)
        answer.id = f"{self.role}-{turn}"
        for number, call in enumerate(answer.tool_calls):
            call["id"] = f"{self.role}-{turn}-call-{number}"
        answer.usage_metadata = UsageMetadata(input_tokens=90 + turn, output_tokens=9, total_tokens=99 + turn)
        answer.response_metadata = {"model_name": "scripted", "stop_reason": "end_turn", "turn": turn}
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._answer(messages)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._answer(messages)


def say(text: str, *calls: ToolCall) -> AIMessage:
    """A line of a script; with calls, its content is in blocks, as providers with tools send it."""
    if not calls:
        return AIMessage(text)
    return AIMessage([{"type": "text", "text": text}], tool_calls=list(calls))


def call(name: str, **args: Any) -> ToolCall:
    return tool_call(name=name, args=args, id=None)


def human(text: str, number: int) -> HumanMessage:
    # The id is given, so that nothing in a history depends on when LangGraph assigns one.
    return HumanMessage(text, id=f"human-{number}")


def page(topic: str, paragraphs: int = 3) -> str:
    return "\n\n".join(
        f"{number}. On {topic}: what was observed in trial {number * 7} agrees with what was expected of it."
        for number in range(paragraphs)
    )


@tool
def look_up(topic: str, tool_call_id: Annotated[str, InjectedToolCallId], paragraphs: int = 3) -> ToolMessage:
    """Return a page of text on a topic."""
    # With an id of its own.  The message of a tool that ran beside one that asks is applied anew at each read
    # until the answer comes; without an id, or saved before it got one, it would get another each time.
    return ToolMessage(page(topic, paragraphs), tool_call_id=tool_call_id, id=f"for-{tool_call_id}")


@tool
def add(left: int, right: int) -> int:
    """Add two numbers."""
    return left + right


@tool
def ask_human(question: str) -> str:
    """Ask the person in charge."""
    return f"the answer to {question!r} is {interrupt({'question': question})!r}"


@tool
def publish(title: str, tags: list[str]) -> str:
    """Publish a report."""
    return f"published {title!r} under {', '.join(tags)}"


class Mood(Enum):
    CALM = "calm"
    BUSY = "busy"


@dataclass
class Budget:
    limit: Decimal
    spent: list[int] = field(default_factory=list)


class Plan(BaseModel):
    title: str
    steps: dict[str, list[int]]


def merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """The reducer of a dict channel; None removes a key."""
    return {key: value for key, value in {**left, **right}.items() if value is not None}


class DeskState(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    log: Annotated[list[str], operator.add]
    notes: Annotated[dict[str, Any], merge]
    seen: Annotated[set[str], operator.or_]
    posts: Annotated[Sequence[tuple[str, int]], Topic]
    latest: Annotated[Any, UntrackedValue]
    budget: Budget
    plan: Plan
    mood: Mood
    due: datetime
    seal: bytes
    turn: int


def build_desk(saver: Saver) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Two branches that join, a loop, removal and editing of messages, and values of many types."""

    def read(state: DeskState) -> DeskState:
        turn = state.get("turn", 0) + 1
        # No serializer takes an object(): an untracked value must not reach the saver.
        return {"turn": turn, "log": [f"read {turn}"], "latest": object()}

    def count(state: DeskState) -> DeskState:
        turn = state["turn"]
        old = state.get("budget", Budget(Decimal("10.50")))
        return {
            "budget": Budget(old.limit - Decimal(turn) / 4, [*old.spent, turn]),
            "notes": {
                f"turn {turn}": {"sum": turn * 1.5, "parts": [turn, True, None]},
                f"turn {turn - 2}": None,
            },
            "log": [f"count {turn}"],
            "posts": [("count", turn)],
        }

    def reflect(state: DeskState) -> DeskState:
        turn = state["turn"]
        return {
            "plan": Plan(title=f"plan {turn}", steps={"do": list(range(turn)), "check": [turn]}),
            "mood": Mood.BUSY if turn % 2 else Mood.CALM,
            "seen": {f"turn {turn}", "any"},
            "due": datetime(2024, 2, 29, 12, turn, tzinfo=UTC),
            "seal": bytes(range(turn)),
            "log": [f"reflect {turn}"],
            "posts": [("reflect", turn)],
        }

    def answer(state: DeskState) -> DeskState:
        turn = state["turn"]
        messages: list[AnyMessage] = [AIMessage(f"answer {turn}", id=f"answer-{turn}")]
        if turn == 2:
            messages.append(AIMessage("answer 1, corrected", id="answer-1"))
        if any(message.id == f"answer-{turn - 2}" for message in state["messages"]):
            messages.append(RemoveMessage(id=f"answer-{turn - 2}"))
        return {"messages": messages}

    def enough(state: DeskState) -> str:
        return END if state["turn"] % 3 == 0 else "read"

    graph = StateGraph(DeskState)
    graph.add_node("read", read)
    graph.add_node("count", count)
    graph.add_node("reflect", reflect)
    graph.add_node("answer", answer, defer=True)
    graph.add_edge(START, "read")
    graph.add_edge("read", "count")
    graph.add_edge("read", "reflect")
    graph.add_edge(["count", "reflect"], "answer")
    graph.add_conditional_edges("answer", enough)
    return graph.compile(checkpointer=saver)


class LedgerState(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    items: list[Any]
    table: dict[str, Any]
    budget: Budget
    round: int


def build_ledger(saver: Saver) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Nodes that change in place what the state gave them, and return the very same objects."""

    def open_ledger(state: LedgerState) -> LedgerState:
        lines = [AIMessage(f"line {n}", id=f"line-{n}", tool_calls=[call("book", n=n)]) for n in range(140)]
        return {
            "messages": lines,
            "items": [[0]],
            "table": {"a": {"b": [1]}},
            "budget": Budget(Decimal(9)),
            "round": 0,
        }

    def book(state: LedgerState) -> LedgerState:
        turn = state["round"] + 1
        state["items"].append([turn])
        state["items"][0].append(turn)
        state["table"]["a"]["b"][0] = True if turn % 2 else 1
        state["table"][f"round {turn}"] = state["items"][-1]
        state["budget"].spent.append(turn)
        return {**state, "messages": [], "round": turn}

    def correct(state: LedgerState) -> LedgerState:
        turn = state["round"]
        oldest, middle, newest = (state["messages"][place] for place in (1, 70, -1))
        assert isinstance(oldest, AIMessage)
        oldest.tool_calls[0]["args"]["n"] = f"corrected in round {turn}"
        middle.additional_kwargs.setdefault("rounds", []).append(turn)
        newest.content = f"{newest.content} and {turn}"
        return {"messages": [oldest, middle, newest, AIMessage("corrected", id=f"corrected-{turn}")]}

    graph = StateGraph(LedgerState)
    graph.add_node("open", open_ledger)
    graph.add_node("book", book)
    graph.add_node("correct", correct)
    graph.add_conditional_edges(START, lambda state: "book" if "round" in state else "open", ["book", "open"])
    graph.add_edge("open", "book")
    graph.add_edge("book", "correct")
    graph.add_conditional_edges("correct", lambda state: END if state["round"] % 3 == 0 else "book")
    return graph.compile(checkpointer=saver)


class FormState(TypedDict, total=False):
    answers: Annotated[list[str], operator.add]
    route: str


def build_form(saver: Saver) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Two nodes that ask at the same time, one of them twice, then a node that routes by `Command`."""

    def name(state: FormState) -> FormState:
        first = interrupt({"ask": "first name"})
        last = interrupt({"ask": "last name", "first": first})
        return {"answers": [f"{first} {last}"]}

    def age(state: FormState) -> FormState:
        return {"answers": [str(interrupt("age"))]}

    def clerk(state: FormState) -> FormState:
        return {"answers": ["stamped"]}

    def decide(state: FormState) -> Command[str]:
        return Command(goto="file" if len(state["answers"]) < 5 else END, update={"route": "file"})

    def file(state: FormState) -> FormState:
        return {"answers": ["filed"]}

    graph = StateGraph(FormState)
    graph.add_node("name", name)
    graph.add_node("age", age)
    graph.add_node("clerk", clerk)
    graph.add_node("decide", decide, destinations=("file", END))
    graph.add_node("file", file)
    for node in ("name", "age", "clerk"):
        graph.add_edge(START, node)
    graph.add_edge(["name", "age", "clerk"], "decide")
    graph.add_edge("file", END)
    return graph.compile(checkpointer=saver, interrupt_before=["decide"], interrupt_after=["file"])


class MapState(TypedDict, total=False):
    items: list[str]
    results: Annotated[list[dict[str, Any]], operator.add]
    report: str


class MapTask(TypedDict):
    item: str
    place: int
    total: int


def build_map_reduce(saver: Saver, fault: Fault, breaking: str) -> CompiledStateGraph[Any, Any, Any, Any]:
    """One task for each item; the task of the item `breaking` meets the fault."""

    def scatter(state: MapState) -> list[Send]:
        items = state["items"]
        return [Send("work", {"item": item, "place": i, "total": len(items)}) for i, item in enumerate(items)]

    def work(given: MapTask) -> MapState:
        if given["item"] == breaking:
            fault.strike()
        return {"results": [{"item": given["item"], "text": page(given["item"], given["place"] + 1)}]}

    def gather(state: MapState) -> MapState:
        return {"report": ", ".join(f"{r['item']}: {len(r['text'])}" for r in state["results"])}

    graph = StateGraph(MapState)
    graph.add_node("plan", lambda state: {"items": [item.upper() for item in state["items"]]})
    graph.add_node("work", work)
    graph.add_node("gather", gather)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", scatter, ["work"])
    graph.add_edge("work", "gather")
    graph.add_edge("gather", END)
    return graph.compile(checkpointer=saver)


class TreeState(TypedDict, total=False):
    topic: str
    path: Annotated[list[str], operator.add]


def build_tree(saver: Saver, own_memory: bool) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A graph in a graph in a graph, the innermost with an interrupt.

    With `own_memory` the two inner graphs are compiled with `checkpointer=True` and keep their state from
    turn to turn; otherwise they inherit the saver for the length of one call.
    """

    def note(text: str) -> Callable[[TreeState], TreeState]:
        return lambda state: {"path": [f"{text} of {state['topic']} after {len(state.get('path', []))}"]}

    def approve(state: TreeState) -> TreeState:
        verdict = interrupt({"approve": state["topic"]})
        return {"path": [f"verdict {verdict}"]}

    leaf = StateGraph(TreeState)
    leaf.add_node("prepare", note("leaf"))
    leaf.add_node("approve", approve)
    leaf.add_edge(START, "prepare")
    leaf.add_edge("prepare", "approve")

    branch = StateGraph(TreeState)
    branch.add_node("enter", note("branch in"))
    branch.add_node("leaf", leaf.compile(checkpointer=own_memory or None))
    branch.add_node("leave", note("branch out"))
    branch.add_edge(START, "enter")
    branch.add_edge("enter", "leaf")
    branch.add_edge("leaf", "leave")

    trunk = StateGraph(TreeState)
    trunk.add_node("root", note("root"))
    trunk.add_node("branch", branch.compile(checkpointer=own_memory or None))
    trunk.add_node("crown", note("crown"))
    trunk.add_edge(START, "root")
    trunk.add_edge("root", "branch")
    trunk.add_edge("branch", "crown")
    return trunk.compile(checkpointer=saver)


def extend(old: list[Any], batches: Sequence[list[Any]]) -> list[Any]:
    return [*(old or []), *(item for batch in batches for item in batch)]


def update_all(old: dict[str, Any], batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for batch in ({}, old or {}, *batches) for key, value in batch.items()}


class DiaryState(TypedDict, total=False):
    entries: Annotated[list[dict[str, Any]], DeltaChannel(extend, snapshot_frequency=3)]
    index: Annotated[dict[str, Any], DeltaChannel(update_all, snapshot_frequency=5)]
    day: int


def build_diary(saver: Saver) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Two delta channels with snapshots at different paces, one written by two nodes in one superstep."""

    def morning(state: DiaryState) -> DiaryState:
        day = state.get("day", 0) + 1
        return {"day": day, "entries": [{"day": day, "text": page(f"morning {day}", 1)}]}

    def evening(state: DiaryState) -> DiaryState:
        day = state["day"]
        return {"entries": [{"day": day, "text": "evening", "so far": len(state["entries"])}]}

    def librarian(state: DiaryState) -> DiaryState:
        day = state["day"]
        return {"index": {f"day {day % 4}": day}, "entries": [{"day": day, "text": "shelved"}]}

    graph = StateGraph(DiaryState)
    graph.add_node("morning", morning)
    graph.add_node("evening", evening)
    graph.add_node("librarian", librarian)
    graph.add_edge(START, "morning")
    graph.add_edge("morning", "evening")
    graph.add_edge("morning", "librarian")
    graph.add_conditional_edges("evening", lambda state: END if state["day"] % 3 == 0 else "morning")
    return graph.compile(checkpointer=saver)


def build_workflow(saver: Saver, fault: Fault) -> Pregel[Any, Any, Any, Any]:
    """An entrypoint that remembers its last results, calls tasks, asks, and fails once after the answer."""

    @task
    def draft(topic: str, version: int) -> dict[str, Any]:
        return {"topic": topic, "version": version, "text": page(topic, version)}

    @entrypoint(checkpointer=saver)
    def workflow(topic: str, *, previous: list[Any] | None = None) -> Any:
        drafts = [draft(topic, version).result() for version in (1, 2)]
        choice = interrupt({"choose": [d["version"] for d in drafts]})
        fault.strike()
        final = draft(f"{topic} as chosen", choice).result()
        return entrypoint.final(value=final["text"], save=[*(previous or []), {"topic": topic, "chosen": choice}])

    return workflow


TOOLS: list[BaseTool] = [look_up, add, ask_human]

RESEARCH = [
    say("I look it up.", call("look_up", topic="tides"), call("add", left=40, right=2)),
    say("Once more, longer.", call("look_up", topic="moons", paragraphs=12)),
    say("The tides follow the moons."),
    say("I should ask.", call("look_up", topic="tables"), call("ask_human", question="which table?")),
    say("Then it is settled."),
]


def build_agent(saver: Saver) -> CompiledStateGraph[Any, Any, Any, Any]:
    return create_agent(
        ScriptedModel(role="agent", script=RESEARCH),
        TOOLS,
        system_prompt="You answer from what you look up.",
        checkpointer=saver,
    )


def build_breaking_agent(saver: Saver, fault: Fault) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An agent one of whose tools meets the fault."""

    @tool
    def fetch(topic: str) -> str:
        """Fetch a page."""
        fault.strike()
        return page(topic)

    script = [
        say("First this.", call("add", left=1, right=2)),
        say("Then that.", call("fetch", topic="reefs")),
        say("Done."),
    ]
    return create_agent(ScriptedModel(role="agent", script=script), [add, fetch], checkpointer=saver)


def build_agent_of_two_tools(
    saver: Saver, weigh: Callable[[str], str], fetch: Callable[[str], str]
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An agent that calls two tools at once, whose work the caller gives."""

    @tool("weigh")
    def weigh_tool(topic: str) -> str:
        """Weigh a thing."""
        return weigh(topic)

    @tool("fetch")
    def fetch_tool(topic: str) -> str:
        """Fetch a page."""
        return fetch(topic)

    script = [
        say("First this.", call("weigh", topic="sand")),
        say("Then both.", call("weigh", topic="reefs"), call("fetch", topic="reefs")),
        say("Done."),
    ]
    return create_agent(ScriptedModel(role="agent", script=script), [weigh_tool, fetch_tool], checkpointer=saver)


def build_long_agent(saver: Saver, pages: int) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An agent that looks up so many pages in each turn, now and then two at a time."""
    turn = [
        say(
            f"Page {number}.",
            call("look_up", topic=f"item {number}", paragraphs=1 + number % 4),
            *([call("add", left=number, right=1)] if number % 5 == 0 else []),
        )
        for number in range(pages)
    ]
    return create_agent(ScriptedModel(role="agent", script=[*turn, say("Read.")]), TOOLS, checkpointer=saver)


def build_react(saver: Saver, version: str) -> CompiledStateGraph[Any, Any, Any, Any]:
    return create_react_agent(
        ScriptedModel(role="react", script=RESEARCH),
        TOOLS,
        prompt="You answer from what you look up.",
        checkpointer=saver,
        version=version,
    )


def todos(*done: bool) -> list[dict[str, str]]:
    return [
        {"content": f"part {number}", "status": "completed" if is_done else "in_progress"}
        for number, is_done in enumerate(done)
    ]


EDITOR_IN_CHIEF = [
    say("I plan.", call("write_todos", todos=todos(False, False))),
    say(
        "Two of you, please.",
        call("task", description="Read on tides.", subagent_type="reader"),
        call("task", description="Count the moons.", subagent_type="counter"),
    ),
    say(
        "I write the draft.",
        call("write_file", file_path="/draft.md", content=page("the draft", 6)),
        call("write_todos", todos=todos(True, False)),
    ),
    say(
        "Now the last touches.",
        call("edit_file", file_path="/draft.md", old_string="trial 7", new_string="trial seven"),
        call("publish", title="Tides", tags=["sea", "moon"]),
        call("look_up", topic="epilogues"),
    ),
    say("I read it again.", call("read_file", file_path="/draft.md")),
    say("Published.", call("write_todos", todos=todos(True, True))),
    say("All is done."),
    say("The printer knows.", call("task", description="Print it.", subagent_type="printer")),
    say("It is printed."),
]

READER = [
    say("I look.", call("look_up", topic="tides", paragraphs=8)),
    say("I keep it.", call("write_file", file_path="/notes/tides.md", content=page("tides", 4))),
    say("Tides rise and fall."),
]

COUNTER = [
    say("I count.", call("add", left=1, right=1)),
    say("I keep it.", call("write_file", file_path="/notes/moons.md", content="two moons\n")),
    say("There are two."),
]

PRINTER = [
    say("I print.", call("publish", title="Paper", tags=["print"])),
    say("Printed on paper."),
]


def build_deep_agent(saver: Saver) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A deep agent with todos, files, three sub-agents, and tools that wait for approval.

    `edit_file` and `publish` wait in the main agent; the printer, a sub-agent, waits before it publishes.
    """
    return create_deep_agent(
        ScriptedModel(role="chief", script=EDITOR_IN_CHIEF),
        [look_up, add, publish],
        system_prompt="You lead an editorial office.",
        middleware=[TodoListMiddleware()],
        subagents=[
            {
                "name": "reader",
                "description": "Reads.",
                "system_prompt": "You read.",
                "model": ScriptedModel(role="reader", script=READER),
                "interrupt_on": {},
            },
            {
                "name": "counter",
                "description": "Counts.",
                "system_prompt": "You count.",
                "model": ScriptedModel(role="counter", script=COUNTER),
                "interrupt_on": {},
            },
            {
                "name": "printer",
                "description": "Prints.",
                "system_prompt": "You print.",
                "model": ScriptedModel(role="printer", script=PRINTER),
                "interrupt_on": {"publish": True},
            },
        ],
        interrupt_on={"edit_file": True, "publish": True},
        checkpointer=saver,
    )
