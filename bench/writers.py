"""Several processes write to one log, each with many short threads of its own and some that it shares with the others.

    python writers.py DIRECTORY --processes 8 --seconds 60
    python writers.py DIRECTORY --processes 8 --seconds 60 --kill    one of them is killed every second, another begins

Writers are forked, as a server forks its workers, from a process that has imported everything and opened nothing: what
a killed one's successor costs is what the log asks for, not the second that Python's imports take.

Each writer makes the calls that LangGraph makes, one after the other, and says what has returned.  In the end a process
that wrote nothing compares the log with that: every put and every write that was acknowledged is there once, in order;
nothing else is there but what a killed writer was about to be told; and the log proves itself (`Log.audit`).

Prints one line of JSON.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from meter import Figures
from replay import Loop, chat_turn, play
from script import Script
from stores import Saver

CHANNELS = ("messages", "__start__", "branch:to:chat")
TURNS = 2
SHARED_EVERY = 4  # of so many threads one is everybody's
SEED = 20_250_601
KILL_SECONDS = 1.0
END_SECONDS = 60.0

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["writers", "lines", "stepwell_langgraph"])


def start_forking() -> None:
    """Start the process that writers are forked from, if it does not run."""
    known = os.environ.get("PYTHONPATH")
    # It looks for modules where the environment says, not where we do, and passes over those it does not find.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        if known is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = known


class LostError(Exception):
    """The log does not hold what was acknowledged, or holds something else."""


class Step(NamedTuple):
    """A put that is about to be made or has returned, or writes on top of a checkpoint."""

    thread_id: str
    checkpoint_id: str
    task_id: str | None = None


@dataclass
class Told:
    """What one writer has said."""

    acknowledged: list[Step] = field(default_factory=list)
    about_to: Step | None = None


class Acknowledging:
    """Says of each put and each recording of writes that it comes, and that it has returned."""

    def __init__(self, saver: Saver, pipe: Connection) -> None:
        self._saver = saver
        self._pipe = pipe
        self.get_next_version = saver.get_next_version
        self.get_tuple = saver.get_tuple

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> None:
        step = Step(config["configurable"]["thread_id"], checkpoint["id"])
        self._pipe.send((False, step))
        self._saver.put(config, checkpoint, metadata, new_versions)
        self._pipe.send((True, step))

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        place = config["configurable"]
        step = Step(place["thread_id"], place["checkpoint_id"], task_id)
        self._pipe.send((False, step))
        self._saver.put_writes(config, writes, task_id, task_path)
        self._pipe.send((True, step))


def write(path: str, name: str, pipe: Connection) -> None:
    """What a writer's process does."""
    import lines
    from stepwell_langgraph import StepwellSaver

    identifiers = random.Random(name)
    with StepwellSaver.from_conn_string(path) as opened:
        saver: Any = Acknowledging(opened, pipe)
        pipe.send("ready")
        end = pipe.recv()
        for number in count():
            shared = number % SHARED_EVERY == 0
            turns = [lines.TURNS[(number * TURNS + turn) % len(lines.TURNS)] for turn in range(TURNS)]
            mine = Script(f"shared {number}" if shared else f"{name} {number}", turns, identifiers)
            loop = Loop(saver, mine, CHANNELS, {})
            for turn in turns:
                play(chat_turn(loop, turn), saver)
                if time.monotonic() > end:
                    return


class Writer:
    """A writer's process, and what it has told."""

    def __init__(self, path: Path, name: str) -> None:
        self.told = Told()
        self.pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=write, args=(str(path), name, theirs))
        self._process.start()
        theirs.close()

    def await_readiness(self) -> None:
        """Wait until it has opened the log."""
        if self.pipe.recv() != "ready":
            raise LostError("a writer began with something else than it should")

    def begin(self, end: float) -> None:
        """Let it write until the clock, the same for all processes, shows this."""
        self.pipe.send(end)

    def listen(self) -> bool:
        """Take one thing that it said; False at its end."""
        try:
            is_done, step = self.pipe.recv()
        except (EOFError, OSError):  # killed between two words, or within one
            return False
        if is_done:
            self.told.acknowledged.append(step)
        self.told.about_to = None if is_done else step
        return True

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int | None:
        """Wait for its end; gives its exit code."""
        self._process.join(END_SECONDS)
        return self._process.exitcode

    def close(self) -> None:
        """Let nothing of it live on."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()


@contextmanager
def writing(path: Path, number: int) -> Iterator[list[Writer]]:
    """Writers on one log, ready to begin; more may be put to the list, and all are gone afterwards."""
    writers: list[Writer] = []
    try:
        writers += [Writer(path, f"writer {index}") for index in range(number)]
        for writer in writers:
            writer.await_readiness()
        yield writers
    finally:
        for writer in writers:
            writer.close()


def race(path: Path, number: int, seconds: float, *, kill: bool) -> Figures:
    """Let so many processes write for so long, and compare the log with what they were told.

    Raises:
        LostError: It is not what they were told, or one of them failed.
    """
    rng = random.Random(SEED)
    killed: set[Writer] = set()
    start_forking()
    with writing(path, number) as writers:
        began = time.monotonic()
        end = began + seconds
        for writer in writers:
            writer.begin(end)
        running, starting = {writer.pipe: writer for writer in writers}, dict[Any, Writer]()
        next_kill = began + KILL_SECONDS
        while running or starting:
            now = time.monotonic()
            if kill and now > next_kill and now < end - KILL_SECONDS:
                next_kill += KILL_SECONDS
                victim = rng.choice([*running.values()])
                victim.kill()
                killed.add(victim)
                # Nobody waits for it: its first word comes like any other.
                successor = Writer(path, f"writer {len(writers)}")
                writers.append(successor)
                starting[successor.pipe] = successor
            for pipe in wait([*running, *starting], timeout=KILL_SECONDS / 10):
                if pipe in starting:
                    starting[pipe].await_readiness()
                    starting[pipe].begin(end)
                    running[pipe] = starting.pop(pipe)  # type: ignore[index]
                elif not running[pipe].listen():  # type: ignore[index]
                    del running[pipe]  # type: ignore[arg-type]
        elapsed = time.monotonic() - began
        codes = [(writer in killed, writer.end()) for writer in writers]
        if any(code != 0 for was_killed, code in codes if not was_killed):
            raise LostError(f"writers ended with {codes}")
        told = [writer.told for writer in writers]
    check(path, told)
    steps = [step for each in told for step in each.acknowledged]
    return {
        "puts_per_second": sum(step.task_id is None for step in steps) / elapsed,
        "calls_per_second": len(steps) / elapsed,
        "acknowledged": len(steps),
        "killed": len(killed),
    }


def check(path: Path, told: list[Told]) -> None:
    """Raise LostError unless the log holds what was acknowledged, and else only what the killed were about to do."""
    from stepwell_langgraph import StepwellSaver

    expected: dict[str, list[Step]] = {}
    for each in told:
        for step in each.acknowledged:
            expected.setdefault(step.thread_id, []).append(step)
    allowed = {each.about_to for each in told if each.about_to is not None}
    with StepwellSaver.from_conn_string(str(path)) as saver:
        report = saver.log.audit()
        if report.breaches:
            raise LostError(f"the log is not sound: {report.breaches[0]}")
        threads = {thread.thread_id for thread in saver.log.threads()}
        if threads - expected.keys() - {step.thread_id for step in allowed}:
            raise LostError("there are threads that nobody was told of")
        for thread_id in threads | expected.keys():
            found: list[Step] = []
            for each in saver.list({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}):
                step = Step(thread_id, each.checkpoint["id"])
                found += [
                    step,
                    *(step._replace(task_id=task) for task in {task for task, *_ in each.pending_writes or ()}),
                ]
            _compare(thread_id, found[::-1], expected.get(thread_id, []), allowed)


def _compare(thread_id: str, found: list[Step], expected: list[Step], allowed: set[Step]) -> None:
    once = set(found)
    if len(once) != len(found):
        raise LostError(f"thread {thread_id!r} holds something twice")
    if lost := set(expected) - once:
        raise LostError(f"thread {thread_id!r} lost {lost}")
    if foreign := once - set(expected) - allowed:
        raise LostError(f"thread {thread_id!r} holds {foreign}, which was not put")
    if not thread_id.startswith("shared"):
        puts = [step for step in found if step.task_id is None and step not in allowed]
        if puts != [step for step in expected if step.task_id is None and step not in allowed]:
            raise LostError(f"thread {thread_id!r} is in another order")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kill", action="store_true", help="one of them every second")
    asked = parser.parse_args()
    figures = race(asked.directory / "log.stepwell", asked.processes, asked.seconds, kill=asked.kill)
    sys.stdout.write(json.dumps({"figures": figures}) + "\n")


if __name__ == "__main__":
    main()
