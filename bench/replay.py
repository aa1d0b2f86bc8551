"""The calls that LangGraph's loop makes of a saver, made without LangGraph's loop.

A graph that runs costs time of its own, which differs from run to run and hides the saver's.  The replay
keeps what the loop keeps (channels, versions, the step, the id of the newest checkpoint) and nothing else,
and calls the saver in the same order with the same arguments.  A test runs the real graph with the same
script and compares.

The rules, as recorded from LangGraph:

1.  An invocation begins with `get_tuple` of the newest checkpoint; its objects are the state from there on.
2.  A superstep is one `put_writes` per task, then one `get_next_version`, then one `put`.  The new version
    goes to every channel that a task wrote or that became empty.
3.  `messages` is a new list at each change, of the same element objects; what was in `put_writes` is what
    appears in the list.  The reducer sets the id of a question in place: after the `put` that holds the
    input, and before or after the `put_writes` that follows (LangGraph runs both at once).
4.  A value of `__start__` and `branch:to:*` lives for one superstep, then the channel has no value;
    `__pregel_tasks` holds the Sends of one superstep, then an empty list.

A thread of a graph makes one call at a time and waits for it, as under durability "sync".  The loop only says
which call comes next; `play` makes the blocking ones, `aplay` the asynchronous ones.
"""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.types import Send

from script import Round, Script, Turn

TASKS = "__pregel_tasks"
_RUNTIME = object()  # stands for LangGraph's Runtime: in the config of every call, not serialisable, never stored


class Call(NamedTuple):
    """A call of a saver's method, by its blocking name."""

    method: str
    arguments: tuple[Any, ...]


Calls = Generator[Call, Any, None]
"""The calls of a loop; each is given what the saver returned."""


def play(calls: Calls, saver: BaseCheckpointSaver[Any]) -> None:
    """Make the blocking calls."""
    returned = None
    try:
        while True:
            call = calls.send(returned)
            returned = getattr(saver, call.method)(*call.arguments)
    except StopIteration:
        return


async def aplay(calls: Calls, saver: BaseCheckpointSaver[Any]) -> None:
    """Make the asynchronous calls."""
    returned = None
    try:
        while True:
            call = calls.send(returned)
            returned = await getattr(saver, f"a{call.method}")(*call.arguments)
    except StopIteration:
        return


@dataclass(frozen=True)
class Task:
    """One task of a superstep: the channel that started it and what it wrote."""

    name: str
    path: str
    trigger: str | None
    writes: Sequence[tuple[str, Any]]


class Loop:
    """The part of LangGraph's loop that a saver sees, for one thread."""

    def __init__(
        self,
        saver: BaseCheckpointSaver[Any],
        script: Script,
        channels: Sequence[str],
        metadata: Mapping[str, str],
    ) -> None:
        self._saver = saver
        self._script = script
        self._channels = channels  # in the order in which LangGraph lists them in channel_values
        self._base: dict[str, Any] = {
            "callbacks": None,
            "metadata": {**metadata, "thread_id": script.thread_id},
            "recursion_limit": 9999,
            "tags": [],
        }
        self._thread = {
            "thread_id": script.thread_id,
            "__pregel_durability": "sync",
            "__pregel_runtime": _RUNTIME,
        }

    def enter(self, turn: Turn) -> Calls:
        """Begin an invocation: load the newest state, put the input."""
        loaded = yield Call("get_tuple", (self._config({}),))
        if loaded is None:
            self._parent: dict[str, str] = {}
            self._step = -1
            self._values: dict[str, Any] = {}
            self._versions: dict[str, Any] = {}
            self._seen: dict[str, dict[str, Any]] = {}
        else:
            checkpoint = loaded.checkpoint
            self._parent = {"checkpoint_id": checkpoint["id"]}
            self._step = loaded.metadata["step"] + 1
            self._values = dict(checkpoint["channel_values"])
            self._versions = dict(checkpoint["channel_versions"])
            self._seen = dict(checkpoint["versions_seen"])
        self._late_id = turn.question_id
        start = Task("__input__", "", None, [("__start__", {"messages": [turn.question]})])
        yield from self._apply([start], "input")
        if not turn.id_comes_late:
            turn.question.id = turn.question_id

    def superstep(self, tasks: Sequence[Task]) -> Calls:
        """Run these tasks: record their writes, then put the state that they lead to."""
        for task in tasks:
            yield Call("put_writes", (self._at(), deque(task.writes), self._script.task_id(), task.path))
        yield from self._apply(tasks, "loop")

    def _apply(self, tasks: Sequence[Task], source: str) -> Calls:
        for task in tasks:
            seen = self._seen.setdefault(task.name, {})
            if task.trigger is not None:
                seen[task.trigger] = self._versions[task.trigger]
        version = self._saver.get_next_version(max(self._versions.values(), default=None), None)
        written: dict[str, list[Any]] = {}
        for task in tasks:
            for channel, value in task.writes:
                written.setdefault(channel, []).append(value)
        moved = {task.trigger: version for task in tasks if task.trigger is not None}
        moved |= dict.fromkeys(written, version)
        if source == "loop":
            moved |= {c: version for c in self._channels if c not in written and self._empty(c)}
        for channel, values in written.items():
            self._write(channel, values)
        self._versions |= moved
        yield from self._put(source, {c: version for c in self._versions if c in moved}, sorted(written))

    def _write(self, channel: str, values: list[Any]) -> None:
        if channel == "messages":
            messages = [message for value in values for message in value]
            for message in messages:
                if message.id is None:
                    message.id = self._late_id
            self._values[channel] = [*self._values.get(channel, ()), *messages]
        else:
            self._values[channel] = values if channel == TASKS else values[-1]

    def _empty(self, channel: str) -> bool:
        """Let go of what lives for one superstep; whether there was anything."""
        if channel == "messages" or channel not in self._values:
            return False
        if channel == TASKS:
            held, self._values[channel] = self._values[channel], []
            return bool(held)
        del self._values[channel]
        return True

    def _put(self, source: str, moved: dict[str, Any], updated: list[str]) -> Calls:
        checkpoint = Checkpoint(
            v=4,
            ts=datetime.now(UTC).isoformat(),
            id=str(uuid6(clock_seq=self._step)),
            channel_values={c: self._values[c] for c in self._channels if c in self._values},
            channel_versions=dict(self._versions),
            versions_seen={name: dict(seen) for name, seen in self._seen.items()},
            updated_channels=updated,
        )
        metadata: Any = {"source": source, "step": self._step, "parents": {}}
        yield Call("put", (self._at(), checkpoint, metadata, moved))
        self._parent = {"checkpoint_id": checkpoint["id"]}
        self._step += 1

    def _config(self, position: Mapping[str, str]) -> Any:
        return {**self._base, "configurable": {**self._thread, **position}}

    def _at(self) -> Any:
        """The config of a write: the namespace, and the newest checkpoint as parent."""
        return self._config({"checkpoint_ns": "", **self._parent})


def create_agent(script: Script, saver: BaseCheckpointSaver[Any]) -> None:
    """The calls of `langchain.agents.create_agent`: each tool call is a Send to a task of its own."""
    play(agent_calls(script, saver), saver)


def agent_calls(script: Script, saver: BaseCheckpointSaver[Any]) -> Calls:
    """What `create_agent` makes, one by one."""
    channels = ("messages", "__start__", TASKS, "branch:to:model")
    loop = Loop(saver, script, channels, {"ls_integration": "langchain_create_agent"})
    for turn in script.turns:
        yield from loop.enter(turn)
        yield from loop.superstep([start(turn, "model")])
        for round_ in turn.rounds:
            sends = [(TASKS, Send("tools", [call])) for call in round_.answer.tool_calls]
            yield from loop.superstep([node("model", [("messages", [round_.answer]), *sends])])
            if round_.results:
                yield from loop.superstep(_tools(round_))


def message_graph(script: Script, saver: BaseCheckpointSaver[Any]) -> None:
    """The calls of a StateGraph(MessagesState) with one node, `chat`."""
    loop = Loop(saver, script, ("messages", "__start__", "branch:to:chat"), {})
    for turn in script.turns:
        play(chat_turn(loop, turn), saver)


def chat_turn(loop: Loop, turn: Turn) -> Calls:
    """What `message_graph` makes of a turn, one by one."""
    yield from loop.enter(turn)
    yield from loop.superstep([start(turn, "chat")])
    for round_ in turn.rounds:
        yield from loop.superstep([node("chat", [("messages", [round_.answer])])])


def start(turn: Turn, first_node: str) -> Task:
    writes = [("messages", [turn.question]), (f"branch:to:{first_node}", None)]
    return Task("__start__", "~__pregel_pull, __start__", "__start__", writes)


def node(name: str, writes: Sequence[tuple[str, Any]]) -> Task:
    return Task(name, f"~__pregel_pull, {name}", f"branch:to:{name}", writes)


def _tools(round_: Round) -> list[Task]:
    return [
        Task(
            "tools",
            f"~__pregel_push, {index:010}, 0000000000",
            None,
            [("messages", [result]), ("branch:to:model", None)],
        )
        for index, result in enumerate(round_.results)
    ]
