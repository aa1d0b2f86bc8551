"""Kill a writer at every named point of the engine, at the n-th time it comes there, while another writes.

    python tests/crash/kill_points.py

A cell is a point, a workload that reaches it, and n.  Owner 0 of the workload runs in a process that is killed
there (`failpoints.py`), the other owner, where there is one, in a process that goes on.  Afterwards the log must
show what was acknowledged to each (`judge.py`); nothing less than after a power cut, and it may not be refused.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the tests' packages are not found

from crash import failpoints
from crash.images import promises
from crash.judge import WHOLE, judge_apart, processes
from crash.recorded import FILE, OPENED, Owner, Workload, named, part
from crash.recorder import NOTES
from crash.trace import Noted

POINTS: Final[dict[str, tuple[str, ...]]] = {
    "append-encoded": ("groups+pair",),
    "operation-queued": ("groups+pair", "copy+pair", "items+pair"),
    "group-gathered": ("groups+pair",),
    "group-begun": ("groups+pair", "sealing+pair"),
    "append-checked": ("append+pair", "items+pair", "carrying+pair"),
    "event-put": ("append+pair", "groups+pair", "items+pair", "carrying+pair"),
    "group-put": ("groups+pair", "prune+pair", "sealing+pair", "items+pair"),
    "group-committed": ("groups+pair", "delete+pair", "sealing+pair", "past-of-items"),
    "group-acknowledging": ("groups+pair", "prune+pair"),
    "ticket-resolved": ("groups+pair",),
    "group-acknowledged": ("groups+pair", "copy+pair"),
    "prune-planned": ("prune+pair",),
    "prune-cleared": ("prune+pair", "items+pair", "past-of-items"),
    "rewrite-decided": ("prune+pair",),
    "delete-cleared": ("delete+pair",),
    "copy-events-put": ("copy+pair",),
    "copy-derived-put": ("copy+pair",),
    "seal-read": ("sealing+pair", "reuse+pair"),
    "seal-records-removed": ("sealing+pair", "items+pair"),
    "segment-part-put": ("sealing+pair", "copy+pair", "carrying+pair"),
    "seal-committed": ("sealing+pair",),
    "map-growing": ("map-growth", "maps"),
    "map-grown": ("map-growth", "maps"),
    "map-adopted": ("map-growth+pair", "maps"),
    "turn-committed": ("reuse+pair",),
    "holes-found": ("reuse+pair",),
    "hole-punched": ("reuse+pair",),
    "holes-made": ("reuse+pair",),
    "opening-checked": ("append+pair",),
    "opening-mapped": ("append+pair",),
    "opening-tables-put": ("append", "append+pair"),
    "opening-tables-created": ("append+pair",),
    "opening-name-synced": ("append+pair",),
    "closing-folding-ended": ("append+pair",),
    "closing-writer-ended": ("append+pair",),
    "closing-given-back": ("append+pair",),
    "closed": ("append+pair",),
    "new-file-written": ("compaction+pair", "in-place", "carrying"),
    "new-file-synced": ("compaction+pair", "in-place", "carrying"),
    "new-file-linked": ("compaction+pair", "carrying"),
    "new-file-renamed": ("in-place",),
    "compaction-locked": ("in-place", "in-place+pair"),
    "compaction-lock-emptied": ("in-place",),
    "compaction-replaced": ("in-place",),
    "compaction-lock-filled": ("in-place",),
}
"""By point, the workloads that come there: the first for sure, the others if one process is faster than another."""

TIMES: Final = (1, 2, 3, 5, 8, 13, 21, 34)
LUCK: Final = frozenset({"map-adopted"})
"""Points that not even the first reaches for sure."""

_DEADLINE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.002
_HELD_BACK: Final = 4  # operations of the process that goes on, which it does when the other is dead


class Failure(Exception):
    """Something acknowledged is lost, half there, or does not go on."""


class Cell(NamedTuple):
    """Where to kill.

    Attributes:
        point: Its name.
        workload: Its label.
        nth: At which time it is reached.
    """

    point: str
    workload: str
    nth: int


class Outcome(NamedTuple):
    """What became of a cell.

    Attributes:
        cell: The cell.
        killed: Whether the point was reached so often.
        problem: What is wrong, if anything.
    """

    cell: Cell
    killed: bool
    problem: str = ""


def play(cell: Cell, folder: Path) -> bool:
    """Run a workload, kill its first process, and judge the log; whether the point was reached.

    Raises:
        Failure: The log is not as it must be; it is left in the folder.
    """
    workload = named(cell.workload)
    folder.mkdir(parents=True)
    (folder / NOTES).touch()
    _, *program = part(workload, folder, 0)
    command = failpoints.command(cell.point, cell.nth, signal.SIGKILL, program)
    with _going_on(workload, folder) as go, subprocess.Popen(command) as victim:
        try:
            while victim.poll() is None and OPENED not in _notes(folder, workload.processes):
                time.sleep(_POLL_SECONDS)
            go()
            code = victim.wait(_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure("the process that was to be killed hangs") from None
        finally:
            victim.kill()
    if code not in (0, -signal.SIGKILL):
        raise Failure(f"the process that was to be killed ended with exit code {code}")
    promise = promises([Noted(line) for line in _notes(folder)], workload.owners)[-1]
    owners = [Owner(workload, number) for number in range(workload.owners)]
    for number in range(1, workload.owners):
        if promise.done[number] != len(owners[number].operations):
            raise Failure(f"the process that goes on has done {promise.done[number]} operations")
    outcome, reason = judge_apart(folder / FILE, promise, owners)
    if outcome != WHOLE:
        raise Failure(reason)
    return code != 0


def _notes(folder: Path, without_first: bool = False) -> list[str]:
    """What was noted so far, without the line that the first process to open the log wrote if it does not count."""
    lines = (folder / NOTES).read_text().splitlines()
    return lines[1:] if without_first else lines


@contextmanager
def _going_on(workload: Workload, folder: Path) -> Iterator[Callable[[], None]]:
    """The other owner's process: told to begin by what is yielded, it does its last operations after the block."""
    if not workload.processes:
        yield lambda: None
        return
    hold = workload.operations - _HELD_BACK
    with subprocess.Popen(part(workload, folder, 1, hold), stdin=subprocess.PIPE) as other:
        assert other.stdin is not None
        to_other = other.stdin

        def go() -> None:
            to_other.write(b"go\n")
            to_other.flush()

        try:
            yield go
            to_other.close()
            code = other.wait(_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure("the process that goes on hangs") from None
        finally:
            other.kill()
    if code:
        raise Failure(f"the process that goes on ended with exit code {code}")


# --- many cells ---


def rows() -> list[list[Cell]]:
    """The whole matrix: each point with each of its workloads, at rising n up to the first that is not reached."""
    return [[Cell(point, label, nth) for nth in TIMES] for point, labels in POINTS.items() for label in labels]


def some(count: int, rng: random.Random) -> list[list[Cell]]:
    """A sample: cells of different points, at their first or second time."""
    points = rng.sample(sorted(POINTS), count)
    return [[Cell(point, rng.choice(POINTS[point]), rng.choice([1, 1, 2]))] for point in points]


def run(
    wanted: Sequence[list[Cell]], folder: Path, workers: int, progress: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Play rows of cells, each up to the first that is not reached.

    Args:
        wanted: The rows.
        folder: Takes the files; those of a log that is sound are removed.
        workers: How many at once.
        progress: Told of each outcome.
    """
    pipes: list[Connection] = []
    running = []
    for number in range(workers):
        pipe, theirs = processes.Pipe(duplex=False)
        worker = processes.Process(target=_work, args=(wanted[number::workers], folder, theirs))
        worker.start()
        theirs.close()
        pipes.append(pipe)
        running.append(worker)
    outcomes: list[Outcome] = []
    try:
        while pipes:
            for ready in wait(pipes):
                assert isinstance(ready, Connection)
                try:
                    outcome: Outcome = ready.recv()
                except EOFError:
                    pipes.remove(ready)
                    ready.close()
                    continue
                outcomes.append(outcome)
                progress(outcome)
    finally:
        for worker in running:
            worker.kill()
            worker.join()
            worker.close()
    assert {outcome.cell.point for outcome in outcomes} == {row[0].point for row in wanted}, "a worker ended too early"
    return outcomes


def _work(wanted: Sequence[list[Cell]], folder: Path, pipe: Connection) -> None:
    for row in wanted:
        for cell in row:
            place = folder / "-".join(map(str, cell))
            try:
                outcome = Outcome(cell, play(cell, place))
            except Failure as failure:
                outcome = Outcome(cell, True, str(failure))
            if not outcome.problem:
                shutil.rmtree(place)
            pipe.send(outcome)
            if outcome.problem or not outcome.killed:
                break


def missed(outcomes: Sequence[Outcome]) -> set[str]:
    """Points that were not reached the first time by the workload that should reach them."""
    sure = (outcome for outcome in outcomes if outcome.cell.nth == 1 and not outcome.killed)
    return {cell.point for cell, *_ in sure if cell.workload == POINTS[cell.point][0]} - LUCK


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a writer at every named point of the engine.")
    parser.add_argument("--points", default=",".join(POINTS), help="default: all")
    parser.add_argument("--workers", type=int, default=2, help="cells at once (default: %(default)s)")
    arguments = parser.parse_args()
    chosen = arguments.points.split(",")
    folder = Path(tempfile.mkdtemp(prefix="stepwell-points-"))
    start = time.perf_counter()

    def show(outcome: Outcome) -> None:
        said = f"FAILED: {outcome.problem}" if outcome.problem else "whole" if outcome.killed else "not reached"
        print(f"{outcome.cell.point:<24} {outcome.cell.workload:<16} {outcome.cell.nth:>3}  {said}", flush=True)

    wanted = [row for row in rows() if row[0].point in chosen]
    outcomes = run(wanted, folder, arguments.workers, show)
    failed = [outcome for outcome in outcomes if outcome.problem]
    never = missed(outcomes)
    kills = sum(outcome.killed for outcome in outcomes)
    seconds = time.perf_counter() - start
    print(f"{len(chosen)} points, {len(outcomes)} cells, {kills} kills, {len(failed)} failed ({seconds:.0f} s)")
    if never:
        print(f"never reached: {', '.join(sorted(never))}")
    if failed:
        print(f"the files are in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if failed or never else 0


if __name__ == "__main__":
    sys.exit(main())
