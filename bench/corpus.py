"""Record bodies of graphs that really run, in which nothing is said: what the dictionary is trained on.

A dictionary that has seen a benchmark's words would flatter the benchmark.  So all that a user or a model would
say here (texts, names of nodes, tools, arguments, channels, files and threads, models' versions, tokens) is made
of letters drawn one by one, with the frequencies that they have in English: no word comes twice but by chance.
What repeats is what LangGraph, langchain, deepagents and the providers' packages write of their own accord: field
names, type names, channel names, and how the log lays them out.

The same seed gives the same bodies:

1.  Everything runs in one thread, in the order in which LangGraph submits it (`_Inline`).  The writes of a task
    are put after the reducers saw them, as mostly happens when it runs in threads, and now and then before.
2.  What is drawn is drawn from the seed.
3.  What clocks and the system's random numbers gave (ids, times, names of interrupts) is replaced afterwards, by
    as many characters: the same by the same, and times by times that go forward (`_Scrubber`).
"""

import operator
import random
import re
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypedDict
from unittest.mock import patch

from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import TodoListMiddleware
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolCall
from langchain_core.tools import StructuredTool
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, RemoveMessage, add_messages
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command, Send, interrupt
from langgraph.warnings import LangGraphDeprecatedSinceV10
from pydantic import create_model

from providers import PROVIDERS, Provider
from stepwell import Log
from stepwell_langgraph import StepwellSaver
from wordless import Source

NEVER_FULL_TOKENS = 10_000_000
SMALL_WINDOW_TOKENS = 8_000  # soon full: conversations are summarised
LATE_IDS = 0.1  # of the writes are put before the reducers saw them; recorded: 0 to 24 %
_GREGORIAN = datetime(1582, 10, 15, tzinfo=UTC)  # from where the times in ids count
_END = 1 << 62
_PAGE_ROWS = 500


def bodies(family: str, seed: int, provider: str) -> list[bytes]:
    """The bodies of one run of a family of graphs, in the order in which they were appended."""
    rng = random.Random(f"{family} {seed}")
    speaker = Speaker(Source(rng), PROVIDERS[provider])
    random.seed(f"{family} {seed}")  # versions and ids are drawn from the shared generator
    with patch("langgraph.pregel._executor.get_executor_for_config", _inline), _Saver(rng) as saver:
        FAMILIES[family](speaker, saver)
        found = saver.bodies()
    scrubber = _Scrubber(rng)
    return [scrubber.scrub(body) for body in found]


class _Saver(StepwellSaver):
    """A saver over a log in memory, whose writes wait until the reducers saw them."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(Log.open(":memory:"))
        self._rng = rng
        self._waiting: list[tuple[Any, ...]] = []

    def get_tuple(self, config: Any) -> Any:
        self._flush()
        return super().get_tuple(config)

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        self._flush()
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self._waiting.append((config, writes, task_id, task_path))
        if self._rng.random() < LATE_IDS:
            self._flush()

    def bodies(self) -> list[bytes]:
        self._flush()
        storage = self.log.storage
        found = []
        for _, row in storage.threads(0, _PAGE_ROWS):
            after = 0
            while page := storage.scan(row.number, after, _END, _PAGE_ROWS, reverse=False):
                found += [record.body for record in page]
                after = page[-1].sequence
        return found

    def _flush(self) -> None:
        while self._waiting:
            super().put_writes(*self._waiting.pop(0))


class _Inline(Executor):
    """Runs what is submitted at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@contextmanager
def _inline(_: Any) -> Iterator[Executor]:
    yield _Inline()


class _Scrubber:
    """Replaces what no seed governs, in the bodies of one run."""

    _CHANCE = re.compile(
        rb"(?P<uuid>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
        rb"|(?P<time>20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})"
        rb"|(?P<hash>(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f]))"
    )

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._known: dict[bytes, bytes] = {}
        self._now = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(10 * 365 * 86_400))

    def scrub(self, body: bytes) -> bytes:
        return self._CHANCE.sub(self._replaced, body)

    def _replaced(self, match: re.Match[bytes]) -> bytes:
        found = match[0]
        if found not in self._known:
            make = {"uuid": self._uuid, "time": self._time, "hash": self._hash}[str(match.lastgroup)]
            self._known[found] = make(found.decode()).encode()
        return self._known[found]

    def _uuid(self, found: str) -> str:
        if not self._is_of_now(found):
            return str(uuid.UUID(int=self._rng.getrandbits(128)))
        ticks = (self._tick() - _GREGORIAN) // timedelta(microseconds=1) * 10 + self._rng.randrange(10)
        digits = f"{ticks:015x}"
        return f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}-{found[19:23]}-{self._rng.getrandbits(48):012x}"

    @staticmethod
    def _is_of_now(found: str) -> bool:
        """Whether it is a checkpoint's id: the names of tasks are hashes, and may look like anything."""
        made = _GREGORIAN + timedelta(microseconds=int(found[:8] + found[9:13] + found[15:18], 16) // 10)
        return found[14] == "6" and abs(datetime.now(UTC) - made) < timedelta(days=1)

    def _time(self, _: str) -> str:
        return self._tick().isoformat(timespec="microseconds").removesuffix("+00:00")

    def _hash(self, _: str) -> str:
        return f"{self._rng.getrandbits(128):032x}"

    def _tick(self) -> datetime:
        self._now += timedelta(seconds=self._rng.lognormvariate(-1, 2))
        return self._now


class _Model(GenericFakeChatModel):
    """A model that says one line after another, whatever it is asked."""

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self


class Speaker:
    """Says what a provider's model, its user and their tools could say."""

    def __init__(self, source: Source, provider: Provider) -> None:
        self.source = source
        self.rng = source.rng
        self.name = source.name
        self.text = source.text
        self._provider = provider
        self._model_version = source.digits(8)

    def say(self, *calls: ToolCall, characters: tuple[int, int] = (40, 900)) -> AIMessage:
        return self._provider(self.source, self._model_version, self.text(*characters), list(calls))

    def call(self, name: str, **arguments: Any) -> ToolCall:
        return ToolCall(name=name, args=arguments, id=self.source.call_id(), type="tool_call")

    def ask(self) -> HumanMessage:
        return HumanMessage(self.text(20, 500))

    def model(self, *lines: AIMessage, **fields: Any) -> _Model:
        """A model that says these lines, and then whatever comes to its mind."""
        return _Model(messages=_chained(lines, self.say), **fields)

    def config(self) -> Any:
        name = str(uuid.UUID(int=self.rng.getrandbits(128), version=4)) if self.rng.random() < 0.6 else self.name()
        return {"configurable": {"thread_id": name}, "recursion_limit": 1000}

    def tools(self) -> list[StructuredTool]:
        return [self._tool() for _ in range(self.rng.randint(1, 3))]

    def use(self, tools: list[StructuredTool]) -> list[ToolCall]:
        """One to three calls of these tools."""
        chosen = self.rng.choices(tools, k=self.rng.choices((1, 2, 3), (8, 2, 1))[0])
        return [self.call(tool.name, **{name: self.text(8, 60) for name in tool.args}) for tool in chosen]

    def _tool(self) -> StructuredTool:
        fields: Any = {self.name(): (str, ...) for _ in range(self.rng.randint(1, 2))}
        return StructuredTool(
            name=self.name(),
            description="A tool.",
            args_schema=create_model("Arguments", **fields),
            func=lambda **_: self.text(60, 2500),
        )


def _chained(lines: tuple[AIMessage, ...], otherwise: Callable[[], AIMessage]) -> Iterator[AIMessage]:
    yield from lines
    while True:
        yield otherwise()


# --- families of graphs ---


def _chat(speaker: Speaker, saver: StepwellSaver) -> None:
    """A graph of one node, and now and then a system message, or a conversation that is cleared."""
    node = speaker.name()
    graph = StateGraph(MessagesState)
    graph.add_node(node, lambda state: {"messages": [speaker.say(characters=(40, 1500))]})
    graph.add_edge(START, node)
    agent, config = graph.compile(checkpointer=saver), speaker.config()
    for turn in range(speaker.rng.randint(2, 8)):
        asked: list[Any] = [speaker.ask()]
        if speaker.rng.random() < 0.1:
            asked.insert(0, SystemMessage(speaker.text(50, 400)))
        if turn and speaker.rng.random() < 0.03:
            asked.insert(0, RemoveMessage(id=REMOVE_ALL_MESSAGES))
        agent.invoke({"messages": asked}, config)


def _assistant(speaker: Speaker, saver: StepwellSaver) -> None:
    """`create_agent` with tools."""
    tools = speaker.tools()
    for _ in range(speaker.rng.randint(1, 3)):
        lines = [speaker.say(*speaker.use(tools)) for _ in range(speaker.rng.randint(1, 4))]
        config = speaker.config()
        agent = create_agent(speaker.model(*lines), tools, checkpointer=saver)
        for _ in range(speaker.rng.randint(1, 2)):
            agent.invoke({"messages": [speaker.ask()]}, config)


def _react(speaker: Speaker, saver: StepwellSaver) -> None:
    """`create_react_agent`, whose tool calls take the whole state along."""
    tools = speaker.tools()
    lines = [speaker.say(*speaker.use(tools)) for _ in range(speaker.rng.randint(1, 5))]
    config = speaker.config()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangGraphDeprecatedSinceV10)  # deprecated, and still in wide use
        agent = create_react_agent(speaker.model(*lines), tools, checkpointer=saver, version="v2")
    for _ in range(speaker.rng.randint(1, 3)):
        agent.invoke({"messages": [speaker.ask()]}, config)


def _deep(speaker: Speaker, saver: StepwellSaver) -> None:
    """A deep agent: files, todos, a sub-agent, approvals, and now and then a summary."""
    rng, tools, helper = speaker.rng, speaker.tools(), speaker.name()
    paths = [f"/{speaker.name()}/{speaker.name()}.{rng.choice(('md', 'txt', 'py', 'json'))}" for _ in range(3)]
    report, todos = speaker.text(200, 1500), [speaker.text(10, 40) for _ in range(rng.randint(1, 4))]

    def plan(done: int) -> ToolCall:
        states = ["completed"] * done + ["in_progress"] + ["pending"] * len(todos)
        items = [{"content": text, "status": state} for text, state in zip(todos, states, strict=False)]
        return speaker.call("write_todos", todos=items)

    def delegate() -> ToolCall:
        return speaker.call("task", description=speaker.text(40, 400), subagent_type=helper)

    helped = [
        speaker.say(*speaker.use(tools)),
        speaker.say(speaker.call("write_file", file_path=paths[0], content=speaker.text(100, 800))),
        speaker.say(speaker.call("read_file", file_path=paths[0])),
        speaker.say(),
    ]
    lines = [
        speaker.say(plan(0)),
        speaker.say(*(delegate() for _ in range(rng.randint(1, 2)))),
        speaker.say(*speaker.use(tools)),
        speaker.say(speaker.call("write_file", file_path=paths[1], content=report)),
        speaker.say(
            speaker.call("edit_file", file_path=paths[1], old_string=report[:40], new_string=speaker.text(20, 200))
        ),
        speaker.say(speaker.call("read_file", file_path=paths[1]), speaker.call("ls", path="/")),
        speaker.say(plan(len(todos))),
    ]
    window = rng.choice((NEVER_FULL_TOKENS, SMALL_WINDOW_TOKENS))
    agent = create_deep_agent(
        speaker.model(*lines, profile={"max_input_tokens": window}),
        tools,
        middleware=[TodoListMiddleware()],
        subagents=[
            {
                "name": helper,
                "description": "Helps.",
                "system_prompt": "You help.",
                "model": speaker.model(*helped, profile={"max_input_tokens": window}),
                "middleware": [TodoListMiddleware()] if rng.random() < 0.5 else [],
                "interrupt_on": {},
            }
        ],
        interrupt_on={"write_file": True} if rng.random() < 0.6 else None,
        checkpointer=saver,
    )
    config = speaker.config()
    for _ in range(rng.randint(1, 2)):
        state = agent.invoke({"messages": [speaker.ask()]}, config)
        while "__interrupt__" in state:
            decision = (
                {"type": "approve"} if rng.random() < 0.8 else {"type": "reject", "message": speaker.text(10, 60)}
            )
            state = agent.invoke(Command(resume={"decisions": [decision]}), config)


def _form(speaker: Speaker, saver: StepwellSaver) -> None:
    """A state of the user's own, nodes that ask a human, states changed from outside, forks."""
    text, listed, count, table = names = [speaker.name() for _ in range(4)]
    ask, work = speaker.name(), speaker.name()
    types = (str, Annotated[list[Any], operator.add], int, dict[str, Any])
    state_type: Any = TypedDict("State", {**dict(zip(names, types, strict=True)), "messages": _Messages}, total=False)

    def asking(state: Any) -> Any:
        answer = interrupt({speaker.name(): speaker.text(10, 80)})
        return Command(goto=work, update={text: answer, count: state.get(count, 0) + 1})

    def working(state: Any) -> Any:
        return {
            listed: [{speaker.name(): speaker.text(10, 200)}],
            table: {**state.get(table, {}), speaker.name(): speaker.rng.randrange(10_000)},
            "messages": [speaker.say()],
        }

    graph = StateGraph(state_type)
    graph.add_node(ask, asking, destinations=(work,))
    graph.add_node(work, working)
    graph.add_edge(START, ask)
    agent, config = graph.compile(checkpointer=saver), speaker.config()
    for _ in range(speaker.rng.randint(1, 4)):
        agent.invoke({"messages": [speaker.ask()], listed: []}, config)
        agent.invoke(Command(resume=speaker.text(5, 60)), config)
        agent.update_state(config, {text: speaker.text(5, 60), count: 7}, as_node=work)
    past = list(agent.get_state_history(config))
    agent.invoke(None, past[len(past) // 2].config)


_Messages = Annotated[list[Any], add_messages]


def _fan_out(speaker: Speaker, saver: StepwellSaver) -> None:
    """A node for each of many items, in a graph of its own; one fails once."""
    items, results, item = speaker.name(), speaker.name(), speaker.name()
    plan, work, inner, gather = (speaker.name() for _ in range(4))
    outer_state: Any = TypedDict("Outer", {items: list[str], results: Annotated[list[Any], operator.add]}, total=False)
    inner_state: Any = TypedDict("Inner", {item: str, results: Annotated[list[Any], operator.add]}, total=False)
    faults = iter([False, True])

    def working(state: Any) -> Any:
        if next(faults, False):
            raise RuntimeError(speaker.text(20, 80))
        return {results: [{item: state[item], speaker.name(): speaker.text(20, 400)}]}

    branch = StateGraph(inner_state)
    branch.add_node(inner, working)
    branch.add_edge(START, inner)
    trunk = StateGraph(outer_state)
    trunk.add_node(plan, lambda _: {items: [speaker.text(5, 60) for _ in range(speaker.rng.randint(2, 5))]})
    trunk.add_node(work, branch.compile())
    trunk.add_node(gather, lambda _: {})
    trunk.add_edge(START, plan)
    trunk.add_conditional_edges(plan, lambda state: [Send(work, {item: each}) for each in state[items]], [work])
    trunk.add_edge(work, gather)
    trunk.add_edge(gather, END)
    agent, config = trunk.compile(checkpointer=saver), speaker.config()
    with suppress(RuntimeError):
        agent.invoke({results: []}, config)
    agent.invoke(None, config)


def _workflow(speaker: Speaker, saver: StepwellSaver) -> None:
    """The functional API: an entrypoint that remembers its last result, tasks, a question."""

    def drafting(topic: str) -> dict[str, Any]:
        return {topic[:8].strip(): speaker.text(20, 600)}

    draft = task(drafting, name=speaker.name())

    def writing(topic: str, *, previous: Any = None) -> Any:
        drafts = [draft(topic).result() for _ in range(2)]
        choice = interrupt(speaker.text(10, 80))
        return entrypoint.final(value=drafts[0], save=[*(previous or []), choice])

    writing.__name__ = speaker.name()
    workflow, config = entrypoint(checkpointer=saver)(writing), speaker.config()
    workflow.stream_eager = False  # it would wait for its stream in a thread of its own
    for _ in range(speaker.rng.randint(1, 3)):
        workflow.invoke(speaker.text(10, 60), config)
        workflow.invoke(Command(resume=speaker.text(5, 40)), config)


FAMILIES: dict[str, Callable[[Speaker, StepwellSaver], None]] = {
    "chat": _chat,
    "assistant": _assistant,
    "react": _react,
    "deep": _deep,
    "form": _form,
    "fan-out": _fan_out,
    "workflow": _workflow,
}
