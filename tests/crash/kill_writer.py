"""Kill a writer with SIGKILL at random moments: nothing acknowledged is lost, nothing half is left.

    python tests/crash/kill_writer.py --rounds 200

A round starts one writer or several on the file, kills one of them (in start-up, in the middle of an
operation, anywhere), lets the others go on, and has a fresh process compare the file with what was
acknowledged.  The same file is used for several rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the tests' packages are not found

from crash.ledger import Ledger
from crash.writer import COMMON, MODES, inspect, write

ROUNDS_PER_FILE = 8
_DEADLINE_SECONDS = 60.0
_HEAVY = ("langchain_core.messages", "langgraph.checkpoint.serde.jsonplus", "lmdb", "msgspec", "zstandard", "pytest")

# Every child is forked from a process that has imported what takes long and has opened nothing.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(list(_HEAVY))


class Failure(Exception):
    """Something acknowledged is lost, or something that should not be is there."""


@dataclass
class Tally:
    """What was done so far."""

    rounds: int = 0
    kills: int = 0
    acknowledged: int = 0


class Child:
    """A writer process and the two pipes to it."""

    def __init__(self, name: str, path: Path, life: int, seed: int, mode: str) -> None:
        self.name = name
        self._rest = b""
        self._pipe, theirs = processes.Pipe(duplex=False)
        their_control, self._control = processes.Pipe(duplex=False)
        arguments = (str(path), name, life, seed, mode, theirs, their_control)
        self._process = processes.Process(target=write, args=arguments)
        self._process.start()
        theirs.close()
        their_control.close()

    def fileno(self) -> int:
        return self._pipe.fileno()

    def read(self) -> list[dict[str, Any]] | None:
        """The lines that have come; None at the end."""
        chunk = os.read(self.fileno(), 1 << 16)
        if not chunk:
            assert self._rest == b"", "a line was torn"
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        """Ask it to end."""
        self._control.send("stop")

    def show(self) -> None:
        """Let it print where its threads stand."""
        pid = self._process.pid
        if pid is not None and self._process.exitcode is None:
            os.kill(pid, signal.SIGUSR1)
            self._process.join(1.0)

    def end(self) -> int | None:
        """Wait for its end; the exit code, None if it did not come to an end."""
        self._process.join(_DEADLINE_SECONDS)
        return self._process.exitcode

    def close(self) -> None:
        """Let nothing of it live on."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()
        self._control.close()


class Round:
    """Some writers on one file; when the block ends, so have they."""

    def __init__(self, children: list[Child], ledger: Ledger) -> None:
        self._children = {child.name: child for child in children}
        self._reading = dict(self._children)
        self._ledger = ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.close()

    def follow(self, until: Callable[[str, dict[str, Any]], bool] | None, seconds: float) -> None:
        """Take lines for so long, or until one that is waited for; then at once.  None: until all have ended."""
        deadline = time.perf_counter() + seconds
        while self._reading:
            left = deadline - time.perf_counter()
            if left <= 0:
                return
            ready, _, _ = select.select(list(self._reading.values()), [], [], left)
            for child in ready:
                facts = child.read()
                if facts is None:
                    del self._reading[child.name]
                for fact in facts or ():
                    self._ledger.note(child.name, fact)
                met = [until is not None and until(child.name, fact) for fact in facts or ()]
                if any(met):
                    return

    def kill(self, name: str) -> None:
        self._children[name].kill()

    def show(self, name: str) -> None:
        self._children[name].show()

    def stop(self, name: str) -> None:
        self._children[name].stop()

    def end(self, expected: dict[str, int]) -> None:
        """Take all that is left to read, and see that each writer ended as it should."""
        self.follow(None, _DEADLINE_SECONDS)
        for name, child in self._children.items():
            code = child.end()
            if code != expected[name]:
                raise Failure(f"writer {name} ended with exit code {code}, not {expected[name]}")


def play(path: Path, ledger: Ledger, rng: random.Random, life: int, writers: int) -> int:
    """One round up to the end of its writers; how many were killed."""
    names = [f"w{number}" for number in range(writers)]
    children = [Child(name, path, life, rng.getrandbits(32), rng.choice(MODES)) for name in names]
    with Round(children, ledger) as round_:
        victim = rng.choice(names)
        _wait_for_the_moment(round_, victim, rng)
        round_.kill(victim)
        expected = {victim: -signal.SIGKILL}
        others = [name for name in names if name != victim]
        if others:
            _see_them_go_on(round_, others)
        for name in others:
            killed = rng.random() < 0.5
            expected[name] = -signal.SIGKILL if killed else 0
            (round_.kill if killed else round_.stop)(name)
        round_.end(expected)
    return list(expected.values()).count(-signal.SIGKILL)


def _wait_for_the_moment(round_: Round, victim: str, rng: random.Random) -> None:
    kind = rng.choice(["any", "any", "started", "opened", "put", "writes", "prune", "prune", "copy", "copy", "delete"])
    if kind == "any":
        round_.follow(lambda *_: False, 10 ** rng.uniform(-4, -0.3))
        return

    def begins(name: str, fact: dict[str, Any]) -> bool:
        return name == victim and (fact.get("kind") == kind or kind in fact)

    for _ in range(1 if kind in ("started", "opened") else rng.choice([1, 2, 3])):
        round_.follow(begins, 2.0)
    # From within the operation to some operations later; a sleep would be too coarse.
    moment = time.perf_counter() + 10 ** rng.uniform(-5, -2)
    while time.perf_counter() < moment:
        pass


def _see_them_go_on(round_: Round, others: list[str]) -> None:
    """Each of the writers that live acknowledges a few more operations."""
    left = dict.fromkeys(others, 5)

    def enough(name: str, fact: dict[str, Any]) -> bool:
        if name in left and "done" in fact:
            left[name] -= 1
        return all(number <= 0 for number in left.values())

    round_.follow(enough, _DEADLINE_SECONDS)
    stuck = [name for name, number in left.items() if number > 0]
    if stuck:
        for name in stuck:
            round_.show(name)
        raise Failure(f"after another writer was killed these did not go on: {stuck}")


def find(path: Path) -> dict[str, Any]:
    """What a process that opens the file afresh finds."""
    pipe, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=inspect, args=(str(path), theirs))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = pipe.recv()
    except EOFError:
        raise Failure("the file cannot be read after the kill: see the traceback above") from None
    finally:
        process.join()
        pipe.close()
        process.close()
    return found


def run(
    rounds: int, seed: int, writers: int, folder: Path, progress: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """Play rounds.

    Args:
        rounds: How many.
        seed: Decides everything but the moments, which depend on the machine too.
        writers: Processes that write the same file at once.
        folder: Where the files go; a file that is sound is removed.
        progress: Told after each round.

    Raises:
        Failure: Something is not as it must be; the file is left in `folder`.
    """
    tally = Tally()
    rng = random.Random(seed)
    while tally.rounds < rounds:
        file = folder / f"{tally.rounds}"
        file.mkdir()
        path, ledger = file / "agents.stepwell", Ledger(COMMON)
        before = tally.acknowledged
        for _ in range(min(ROUNDS_PER_FILE, rounds - tally.rounds)):
            tally.kills += play(path, ledger, rng, tally.rounds, writers)
            wrong = ledger.settle(find(path))
            tally.rounds += 1
            tally.acknowledged = before + ledger.acknowledged
            if wrong:
                raise Failure(f"round {tally.rounds}, {path}:\n  " + "\n  ".join(wrong[:20]))
            progress(tally)
        shutil.rmtree(file)
    return tally


def _report(tally: Tally, seed: int, lost: str, seconds: float) -> str:
    return (
        f"{tally.rounds:,} rounds, {tally.kills:,} kills, {tally.acknowledged:,} acknowledged operations, "
        f"lost {lost} (seed {seed}, {seconds:.0f} s)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a writer with SIGKILL at random moments.")
    parser.add_argument("--rounds", type=int, default=200, help="how often to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: a new one)")
    parser.add_argument("--writers", type=int, default=1, help="processes on the file (default: %(default)s)")
    arguments = parser.parse_args()
    seed = random.randrange(10**9) if arguments.seed is None else arguments.seed
    folder = Path(tempfile.mkdtemp(prefix="stepwell-kill-"))
    latest, start = Tally(), time.perf_counter()
    try:
        latest = _run_with_progress(arguments.rounds, seed, arguments.writers, folder)
    except Failure as failure:
        print(f"FAILED (seed {seed}, {arguments.writers} writers): {failure}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(_report(latest, seed, "0", time.perf_counter() - start))
    return 0


def _run_with_progress(rounds: int, seed: int, writers: int, folder: Path) -> Tally:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("killing the writer"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[acknowledged]:,} acknowledged"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=rounds, acknowledged=0)

        def show(tally: Tally) -> None:
            bar.update(task, completed=tally.rounds, acknowledged=tally.acknowledged)

        return run(rounds, seed, writers, folder, show)


if __name__ == "__main__":
    sys.exit(main())
