"""The workloads, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

import replay
import script

SEED = 20_250_601

Drive = Callable[[BaseCheckpointSaver[Any]], None]


@dataclass(frozen=True)
class Workload:
    """A run of an agent against a saver.

    `write` makes everything that the agent will say; `play` then makes the calls, and is all that is timed.
    """

    name: str
    about: str
    thread_id: str
    puts: int
    write: Callable[[], script.Script]
    play: Callable[[script.Script, BaseCheckpointSaver[Any]], None]

    def prepare(self) -> Drive:
        """Make the content now; the function returned makes the calls, once."""
        return partial(self.play, self.write())


def _research(supersteps: int) -> Workload:
    return Workload(
        f"research-{supersteps}",
        f"research agent (create_agent), one invocation of {supersteps} supersteps, tool results of 2-40 KB",
        "research",
        supersteps + 3,
        partial(script.research, supersteps, SEED),
        replay.create_agent,
    )


def _chat(turns: int) -> Workload:
    return Workload(
        f"chat-{turns}",
        f"conversation of {turns} turns, each an invocation of its own, messages of 0.4-2.3 KB",
        "chat",
        turns * 3,
        partial(script.chat, turns, SEED),
        replay.message_graph,
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        _research(30),
        _research(300),
        _research(1000),
        _research(4000),
        _chat(200),
    )
}
