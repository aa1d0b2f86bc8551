"""Many short conversations at once, as one process serves many users: their calls are interleaved."""

from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

import script
from replay import Loop, node, start
from replay import play as make
from script import Script

TURNS = 2


def names(threads: int) -> list[str]:
    """The threads' ids, in the order of their turns."""
    return [f"chat-{number:04}" for number in range(threads)]


def chats(threads: int, seed: int) -> list[Script]:
    """A chat of two turns for each thread."""
    said = script.chat(threads * TURNS, seed)
    return [
        Script(name, said.turns[number * TURNS :][:TURNS], said.identifiers)
        for number, name in enumerate(names(threads))
    ]


def play(scripts: list[Script], saver: BaseCheckpointSaver[Any]) -> None:
    """The calls of graphs with one node, `chat`: a turn in each thread, superstep by superstep in turns."""
    loops = [Loop(saver, said, ("messages", "__start__", "branch:to:chat"), {}) for said in scripts]
    for number in range(TURNS):
        turns = [said.turns[number] for said in scripts]
        for loop, turn in zip(loops, turns, strict=True):
            make(loop.enter(turn), saver)
        for loop, turn in zip(loops, turns, strict=True):
            make(loop.superstep([start(turn, "chat")]), saver)
        for loop, turn in zip(loops, turns, strict=True):
            make(loop.superstep([node("chat", [("messages", [turn.rounds[0].answer])])]), saver)
