"""Many agents on one saver in this process: `run_agents.py` starts a fresh one for each measurement.

    python many.py async CONTENDER DIRECTORY --agents 64    coroutines on one event loop
    python many.py sync  CONTENDER DIRECTORY --agents 16    threads, each with blocking calls

Each agent holds one conversation of two turns after the other, all agents at once, with the calls that LangGraph makes
(`replay.py`).  With `--large BYTES` one more of them has a thread whose state has about so many bytes.  All that was
put is read back at the end.  Prints one line of JSON.
"""

import argparse
import asyncio
import gc
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage

import script
import slow_sync
import threads
from contenders import MANY_CALLERS, Contender
from meter import Figures, Meter, percentile
from prose import Prose
from replay import Calls, Loop, aplay, chat_turn, node, play, start
from script import Script
from stores import Saver, Store

SEED = 20_250_601
CHANNELS = ("messages", "__start__", "branch:to:chat")
TICK_SECONDS = 0.001
LARGE_RESULT_BYTES = 12_500
LARGE = "large"


class WrongStateError(Exception):
    """A thread holds something else than what was put."""


class NoSyncsError(Exception):
    """What should have been slow was not."""


class Agent:
    """What one of many does, one thread after the other."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self.scripts = scripts

    def calls(self, saver: Saver) -> Calls:
        """All its calls."""
        for said in self.scripts:
            loop = Loop(saver, said, CHANNELS, {})
            for turn in said.turns:
                yield from chat_turn(loop, turn)

    def messages(self) -> Iterator[tuple[str, list[BaseMessage]]]:
        """What the newest state of each of its threads must hold."""
        for said in self.scripts:
            turns = ((turn.question, *(round_.answer for round_ in turn.rounds)) for turn in said.turns)
            yield said.thread_id, [message for turn in turns for message in turn]


class LargeAgent(Agent):
    """One whose first answer is results of so many bytes; the turns after it come on top of them."""

    def __init__(self, turns: int, size: int) -> None:
        said = script.chat(turns, SEED + 1)
        super().__init__([Script(LARGE, said.turns, said.identifiers)])
        prose = Prose(SEED + 1)
        self._results = [
            ToolMessage(prose.text(LARGE_RESULT_BYTES), tool_call_id=f"call-{number}", id=f"result-{number}")
            for number in range(size // LARGE_RESULT_BYTES)
        ]

    def calls(self, saver: Saver) -> Calls:
        (said,) = self.scripts
        loop = Loop(saver, said, CHANNELS, {})
        first, *others = said.turns
        yield from loop.enter(first)
        yield from loop.superstep([start(first, "chat")])
        yield from loop.superstep([node("chat", [("messages", [*self._results, first.rounds[0].answer])])])
        for turn in others:
            yield from chat_turn(loop, turn)

    def messages(self) -> Iterator[tuple[str, list[BaseMessage]]]:
        for thread_id, messages in super().messages():
            yield thread_id, [messages[0], *self._results, *messages[1:]]


def agents(count: int, chats: int, large_bytes: int) -> list[Agent]:
    """So many agents with so many conversations each, and the large one, if it is asked for."""
    said = threads.chats(count * chats, SEED)
    # Each has a source of identifiers of its own: they run at once.
    own = [Script(each.thread_id, each.turns, random.Random(each.thread_id)) for each in said]
    found = [Agent(own[number::count]) for number in range(count)]
    return [*found, LargeAgent(3, large_bytes)] if large_bytes else found


def on_threads(store: Store, meter: Meter, all_agents: list[Agent]) -> Figures:
    """Each agent in a thread of its own."""
    with ThreadPoolExecutor(len(all_agents)) as pool:
        for done in [pool.submit(play, agent.calls(meter), meter) for agent in all_agents]:
            done.result()
    return {}


def on_loop(store: Store, meter: Meter, all_agents: list[Agent]) -> Figures:
    """Each agent in a coroutine; the longest time that the event loop came late to something that was due."""
    latest = 0.0

    async def watch() -> None:
        nonlocal latest
        while True:
            due = time.perf_counter() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            latest = max(latest, time.perf_counter() - due)

    async def run() -> None:
        watching = asyncio.ensure_future(watch())
        running = []
        for agent in all_agents:
            running.append(asyncio.ensure_future(aplay(agent.calls(meter), meter)))
            await asyncio.sleep(0)  # not all in one turn of the loop
        await asyncio.gather(*running)
        watching.cancel()

    assert store.loop is not None
    store.loop.run_until_complete(run())
    return {"stall_ms": latest * 1000}


def measure(how: str, contender: Contender, directory: Path, all_agents: list[Agent]) -> dict[str, Any]:
    """One run from an empty store to its closing, which is not timed; then what was put is read."""
    contender.load()
    contender.prepare(directory)
    gc.collect()
    gc.freeze()  # as a server does when it has started: what was imported is not looked at again and again
    with contender.open(directory) as store:
        meter = Meter(store.saver)
        syncs = slow_sync.counted()
        used, began = contender.usage(directory), time.perf_counter()
        figures = (on_loop if how == "async" else on_threads)(store, meter, all_agents)
        seconds = time.perf_counter() - began
        spent = contender.usage(directory).since(used)
        puts, writes, gets = meter.put_calls.seconds, meter.write_calls.seconds, meter.get_calls.seconds
        figures |= {
            "puts_per_second": len(puts) / seconds,
            "calls_per_second": len(puts + writes + gets) / seconds,
            "cpu_ms_per_call": spent.cpu_seconds * 1000 / len(puts + writes + gets),
        }
        if (now := slow_sync.counted()) is not None and syncs is not None:
            if now == syncs:
                raise NoSyncsError("not one sync was delayed")
            figures["syncs_per_call"] = (now - syncs) / len(puts + writes + gets)
        for name, calls in (("put", puts), ("put_writes", writes), ("get_tuple", gets)):
            figures |= {f"{name}_median_ms": percentile(calls, 0.5), f"{name}_p99_ms": percentile(calls, 0.99)}
    with contender.open(directory) as store:
        check(store.blocking(store.saver), all_agents)
    return {"figures": figures, "calls": {"put": len(puts), "put_writes": len(writes), "get_tuple": len(gets)}}


def check(saver: Saver, all_agents: list[Agent]) -> None:
    """Raise WrongStateError unless every thread holds what was put last."""
    for agent in all_agents:
        for thread_id, expected in agent.messages():
            found = saver.get_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
            if found is None or found.checkpoint["channel_values"]["messages"] != expected:
                raise WrongStateError(f"thread {thread_id!r} does not hold what was put")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("async", "sync"))
    parser.add_argument("contender", choices=MANY_CALLERS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--chats", type=int, default=8, help="conversations of each agent (%(default)s)")
    parser.add_argument("--large", type=int, default=0, metavar="BYTES", help="of one more agent's state")
    asked = parser.parse_args()
    all_agents = agents(asked.agents, asked.chats, asked.large)
    sys.stdout.write(json.dumps(measure(asked.how, MANY_CALLERS[asked.contender], asked.directory, all_agents)) + "\n")


if __name__ == "__main__":
    main()
