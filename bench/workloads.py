"""The workloads, by name."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import replay
import script
import threads
from stores import OnLoop, Saver

SEED = 20_250_601

Read = Callable[[Saver], Sequence[Any]]


class Drive(Protocol):
    """Makes the calls of a run: the blocking ones, or on a loop the asynchronous ones."""

    def __call__(self, saver: Saver, loop: AbstractEventLoop | None = None) -> None: ...


@dataclass(frozen=True)
class Workload:
    """A run of an agent against a saver.

    `write` makes everything that the agent will say; `play` then makes the calls, and is all that is timed.
    `reader` makes what reading needs; the function that it returns then reads the newest messages.

    Attributes:
        puts: How many puts it makes, those of sub-agents included.
        reads_back: Whether the run reads more than the newest checkpoint: earlier ones, pending writes.
        aplay: The same calls by a graph on an event loop, where a graph makes them.
        puts_below: How many of the puts are sub-agents'.
    """

    name: str
    about: str
    puts: int
    write: Callable[[], Any]
    play: Callable[[Any, Saver], None]
    reader: Callable[[], Read]
    reads_back: bool = False
    aplay: Callable[[Any, Saver], Coroutine[Any, Any, None]] | None = None
    puts_below: int = 0

    @property
    def states(self) -> int:
        """How many states of the main graph there will be."""
        return self.puts - self.puts_below

    def prepare(self) -> Drive:
        """Make the content now; the function returned makes the calls, once."""
        content = self.write()

        def drive(saver: Saver, loop: AbstractEventLoop | None = None) -> None:
            if loop is not None and self.aplay is not None:
                loop.run_until_complete(self.aplay(content, saver))
            else:
                self.play(content, saver if loop is None else OnLoop(saver, loop))

        return drive


def reader_of(*thread_ids: str) -> Read:
    """A reader of whole lists of messages: those of the newest checkpoint of each thread, one after the other."""

    def read(saver: Saver) -> list[Any]:
        found = [saver.get_tuple({"configurable": {"thread_id": name, "checkpoint_ns": ""}}) for name in thread_ids]
        return [message for newest in found if newest for message in newest.checkpoint["channel_values"]["messages"]]

    return read


def _later(module: str, function: str, *arguments: Any) -> Callable[..., Any]:
    """A function of a module that is imported when it is called.

    For graphs that really run: their packages are large, and would weigh on the measurements of all others.
    """

    def call(*more: Any) -> Any:
        return getattr(import_module(module), function)(*arguments, *more)

    return call


def _research(supersteps: int) -> Workload:
    return Workload(
        f"research-{supersteps}",
        f"research agent (create_agent), one invocation of {supersteps} supersteps, tool results of 2-40 KB",
        supersteps + 3,
        partial(script.research, supersteps, SEED),
        replay.create_agent,
        partial(reader_of, "research"),
    )


def _chat(turns: int) -> Workload:
    return Workload(
        f"chat-{turns}",
        f"conversation of {turns} turns, each an invocation of its own, messages of 0.4-2.3 KB",
        turns * 3,
        partial(script.chat, turns, SEED),
        replay.message_graph,
        partial(reader_of, "chat"),
    )


def _office(name: str, rounds: int) -> Workload:
    return Workload(
        name,
        f"deep agent with files, todos, summaries; sub-agents: {2 * rounds}, approvals by a human: {rounds}",
        7 + (40 + 2 * 17) * rounds,
        _later("deep", "office", rounds, SEED),
        _later("scripted", "play"),
        _later("deep", "reader"),
        reads_back=True,
        aplay=_later("scripted", "aplay"),
        puts_below=2 * 17 * rounds,
    )


def _deep(supersteps: int) -> Workload:
    return Workload(
        f"deepagents-{supersteps}",
        f"deep agent alone, one invocation of {supersteps} supersteps, tool results of 2-40 KB in a delta channel",
        supersteps + 5,
        _later("deep", "long", supersteps, SEED),
        _later("scripted", "play"),
        _later("deep", "reader"),
        reads_back=True,
        aplay=_later("scripted", "aplay"),
    )


def _react(supersteps: int) -> Workload:
    return Workload(
        f"react-{supersteps}",
        f"create_react_agent, one invocation of {supersteps} supersteps, each tool call takes the whole state along",
        supersteps + 3,
        _later("react", "agent", supersteps, SEED),
        _later("scripted", "play"),
        partial(reader_of, "react"),
        aplay=_later("scripted", "aplay"),
    )


def _threads(count: int) -> Workload:
    return Workload(
        f"threads-{count}",
        f"{count} conversations of {threads.TURNS} turns, interleaved, messages of 0.4-2.3 KB",
        count * threads.TURNS * 3,
        partial(threads.chats, count, SEED),
        threads.play,
        partial(reader_of, *threads.names(count)),
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        _research(30),
        _research(300),
        _research(1000),
        _research(4000),
        _chat(200),
        _office("deepagents-short", 1),
        _office("deepagents", 6),
        _deep(1000),
        _react(30),
        _react(100),
        _threads(200),
    )
}
