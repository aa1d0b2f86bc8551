"""The benchmark, in one command.

    python bench/run.py --workload research-1000 --contenders stepwell,sqlite,memory --rounds 3

Every measurement has a process of its own (`measure.py`) and every round of a contender an empty directory
of its own.  The order of the contenders turns round from one round to the next.  The table goes to stdout,
progress to stderr when that is a terminal.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from contenders import CONTENDERS, Contender
from machine import commit, file_system, machine, memory_bytes, versions
from report import table
from workloads import WORKLOADS, Workload

HERE = Path(__file__).resolve().parent
MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}
REOPENINGS = 3  # of each kind, per round
ROOM = 1.3  # a contender runs only where this many times the whole states fit; SQLite's pages are not full

Step = Callable[[int], None]


class MeasurementError(Exception):
    """A measuring process failed; the message is the last line of what it said."""


@dataclass
class Entry:
    """What all rounds of one contender gave."""

    contender: Contender
    rounds: list[dict[str, float | None]] = field(default_factory=list)
    curves: list[list[dict[str, Any]]] = field(default_factory=list)
    not_run: str | None = None  # why it does not fit this machine
    failed: str | None = None  # what went wrong in a round

    def as_json(self) -> dict[str, Any]:
        names = dict.fromkeys(name for figures in self.rounds for name in figures)
        return {
            "label": self.contender.label,
            "durability": self.contender.durability,
            "stores": self.contender.stores,
            "not_run": self.not_run,
            "failed": self.failed,
            "figures": {name: _spread([figures.get(name) for figures in self.rounds]) for name in names},
            "curves": self.curves,
        }


def run_workload(
    workload: Workload, contenders: list[Contender], rounds: int, parent: Path, progress: Progress
) -> dict[str, Any]:
    """All rounds of all contenders on one workload, as it goes to JSON."""
    counting = progress.add_task(f"{workload.name}: counting its content", total=None)
    counts = _measure(["census", workload.name])
    progress.remove_task(counting)
    entries = {c.name: Entry(c, not_run=_too_large(c, counts["whole_states_bytes"], parent)) for c in contenders}
    orders = []
    for number in range(rounds):
        turned = contenders if number % 2 == 0 else contenders[::-1]
        order = [c for c in turned if not (entries[c.name].not_run or entries[c.name].failed)]
        orders.append([c.name for c in order])
        for contender in order:
            title = f"{workload.name}: {contender.label}, round {number + 1} of {rounds}"
            bar = progress.add_task(title, total=counts["puts"])
            step = partial(_advance, progress, bar)
            try:
                _round(workload, entries[contender.name], counts, parent, step)
            except MeasurementError as error:
                entries[contender.name].failed = str(error)
            progress.remove_task(bar)
    return {
        "workload": workload.name,
        "about": workload.about,
        "counts": counts,
        "orders": orders,
        "contenders": {name: entry.as_json() for name, entry in entries.items()},
    }


def _advance(progress: Progress, bar: TaskID, puts: int) -> None:
    progress.update(bar, completed=puts)


def _round(workload: Workload, entry: Entry, counts: dict[str, Any], parent: Path, step: Step) -> None:
    """One contender, from an empty directory to the reading of what it left there."""
    contender = entry.contender
    directory = Path(tempfile.mkdtemp(prefix=f"{contender.name}-", dir=parent))
    subject = [workload.name, contender.name, str(directory)]
    try:
        driven = _measure(["drive", *subject], step)
        figures = driven["figures"]
        digests = [driven["final_digest"]] if contender.stores and not contender.persistent else []
        if contender.persistent:
            figures |= _reopenings(subject, directory, digests)
    finally:
        shutil.rmtree(directory)
    if any(found != counts["final_digest"] for found in digests):
        raise MeasurementError("gave back another state than was put")
    entry.rounds.append(figures)
    entry.curves.append(driven["curve"])


def _reopenings(subject: list[str], directory: Path, digests: list[str]) -> dict[str, float]:
    """Medians over several new processes, with the files in the page cache and without."""
    found: dict[str, list[float]] = {}
    for _ in range(REOPENINGS):
        for prefix in ("warm", "cold"):
            if prefix == "cold":
                _drop_from_page_cache(directory)
            opened = _measure(["reopen", *subject])
            digests.append(opened["final_digest"])
            for name, value in opened["figures"].items():
                found.setdefault(f"{prefix}_{name}", []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def _measure(arguments: list[str], step: Step | None = None) -> dict[str, Any]:
    """One run of measure.py on the checkout that this file is in."""
    paths = [str(HERE.parent / "engine"), str(HERE.parent / "adapters"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    line = ""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, str(HERE / "measure.py"), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if step is not None and line.startswith("progress "):
                step(int(line.split()[1]))
        if process.wait() != 0:
            errors.seek(0)
            raise MeasurementError((errors.read().strip().splitlines() or ["ended without a word"])[-1])
    found: dict[str, Any] = json.loads(line)
    return found


def _too_large(contender: Contender, whole_states_bytes: int, directory: Path) -> str | None:
    """Why this contender does not fit here, or None."""
    place = contender.keeps_whole_states_in
    if place is None:
        return None
    room = shutil.disk_usage(directory).free if place == "disk" else memory_bytes("MemAvailable")
    if whole_states_bytes * ROOM < room * (0.9 if place == "disk" else 0.6):
        return None
    return f"not run, needs {whole_states_bytes / 1e9:.0f} GB of {place}"


def _drop_from_page_cache(directory: Path) -> None:
    """Make the next reader of these files fetch them from the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _spread(values: list[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": statistics.median(known), "min": min(known), "max": max(known), "rounds": values}


def _names(known: dict[str, Any]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=_names(WORKLOADS), default=["research-1000"], help="names, with commas")
    parser.add_argument(
        "--contenders",
        type=_names(CONTENDERS),
        default=["stepwell", "sqlite", "memory"],
        help="names, with commas",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    arguments = parser.parse_args()
    kind = file_system(arguments.directory)
    if kind in MEMORY_FILE_SYSTEMS:
        parser.error(f"--directory {arguments.directory} is on {kind}, where nothing is durable; name one on a disk")
    contenders = [CONTENDERS[name] for name in arguments.contenders]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    results: dict[str, Any] = {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(arguments.directory),
        "versions": versions(),
        "rounds": arguments.rounds,
        "load_average_before": os.getloadavg(),
        "runs": [],
    }
    with (
        tempfile.TemporaryDirectory(prefix="stepwell-bench-", dir=arguments.directory) as parent,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        for name in arguments.workload:
            results["runs"].append(run_workload(WORKLOADS[name], contenders, arguments.rounds, Path(parent), progress))
    results["load_average_after"] = os.getloadavg()
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n\n".join(table(run) for run in results["runs"]))
    return int(any(entry["failed"] for run in results["runs"] for entry in run["contenders"].values()))


if __name__ == "__main__":
    sys.exit(main())
