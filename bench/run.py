"""The benchmark, in one command.

    python bench/run.py --workload research-1000 --contenders stepwell,sqlite,memory --rounds 3

Every measurement has a process of its own (`measure.py`) and every round of a contender an empty directory
of its own.  The order of the contenders turns round from one round to the next, and a round is made of all workloads
before the next one begins.  The tables go to stdout, progress to stderr when that is a terminal.
"""

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from contenders import CONTENDERS, Contender
from machine import commit, file_system, machine, memory_bytes, versions
from postgres import PostgresError, PostgresNotFoundError, Server
from postgres import find as find_postgres
from report import table
from states import killed_at
from workloads import WORKLOADS, Workload

HERE = Path(__file__).resolve().parent
MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}
ROOM = 1.3  # a contender runs only where this many times the whole states fit; SQLite's pages are not full

MEASUREMENT_SECONDS = 1800  # a process that takes longer hangs
HISTORY_SECONDS = 120  # a history that takes longer is given up, and not tried again

Step = Callable[[int], None]


class MeasurementError(Exception):
    """A measuring process failed; the message is the last line of what it said."""


class TooSlowError(MeasurementError):
    """A measuring process was ended because its time was over."""


@dataclass
class Entry:
    """What all rounds of one contender gave."""

    contender: Contender
    rounds: list[dict[str, float | None]] = field(default_factory=list)
    curves: list[list[dict[str, Any]]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # by figure: why there is none
    not_run: str | None = None  # why it does not fit this machine
    failed: str | None = None  # what went wrong in a round
    longest_seconds: float = 0.0  # that a round took

    def as_json(self) -> dict[str, Any]:
        names = dict.fromkeys(name for figures in self.rounds for name in figures)
        return {
            "label": self.contender.label,
            "durability": self.contender.durability,
            "stores": self.contender.stores,
            "not_run": self.not_run,
            "failed": self.failed,
            "notes": self.notes,
            "figures": {name: _spread([figures.get(name) for figures in self.rounds]) for name in names},
            "curves": self.curves,
        }


class Run:
    """One workload, its content counted, and what the contenders gave so far."""

    def __init__(self, workload: Workload, contenders: list[Contender], parent: Path, reopenings: int) -> None:
        """
        Args:
            reopenings: How many processes of each kind read what a round left.
        """
        self._workload = workload
        self._reopenings = reopenings
        self._contenders = contenders
        self._parent = parent
        self._counts = _measure(["census", workload.name])
        whole = self._counts["whole_states_bytes"]
        self._entries = {c.name: Entry(c, not_run=_not_run(c, whole, parent)) for c in contenders}
        self._orders: list[list[str]] = []

    def round(self, number: int, progress: Progress, end: float) -> None:
        """One more round of every contender, in the order of the last one turned round.

        After the first, those are left out that are not expected to be ready before the end.
        """
        order = []
        for contender in self._contenders if number % 2 == 0 else self._contenders[::-1]:
            entry = self._entries[contender.name]
            start = time.monotonic()
            if entry.not_run or entry.failed or (number > 0 and start + entry.longest_seconds > end):
                continue
            order.append(contender.name)
            title = f"{self._workload.name}: {contender.label}, round {number + 1}"
            bar = progress.add_task(title, total=self._workload.puts)
            try:
                step = partial(_advance, progress, bar)
                _round(self._workload, entry, self._counts, self._parent, step, self._reopenings)
            except (MeasurementError, PostgresError) as error:
                entry.failed = str(error)
            progress.remove_task(bar)
            entry.longest_seconds = max(entry.longest_seconds, time.monotonic() - start)
        self._orders.append(order)

    def as_json(self) -> dict[str, Any]:
        return {
            "workload": self._workload.name,
            "about": self._workload.about,
            "counts": self._counts,
            "orders": self._orders,
            "contenders": {name: entry.as_json() for name, entry in self._entries.items()},
        }


def _advance(progress: Progress, bar: TaskID, puts: int) -> None:
    progress.update(bar, completed=puts)


def _round(workload: Workload, entry: Entry, counts: dict[str, Any], parent: Path, step: Step, reopenings: int) -> None:
    """One contender, from an empty directory to the reading of what it left there; then once more, with a crash."""
    contender = entry.contender
    expected = parent / "expected.json"
    expected.write_text(json.dumps({**counts, "states": []}))
    with prepared(contender, parent) as place:
        subject = [workload.name, contender.name, str(place.directory), "--expected", str(expected)]
        driven = _measure(["drive", *subject], step)
        found = [driven]
        if contender.persistent:
            expected.write_text(json.dumps({**counts, "states": driven["states"]}))
            found += [_reopen(subject, place, reopenings), _history(subject, entry)]
        if contender.seal is not None:
            found.append(_measure(["seal", *subject]))
    digests = [digest for part in found for digest in part.get("final_digests", [part.get("final_digest")])]
    if any(digest not in (None, counts["final_digest"]) for digest in digests):
        raise MeasurementError("gave back another state than was put")
    if contender.persistent:
        found.append(_crash(workload, contender, counts, parent))
    entry.rounds.append({name: value for part in found for name, value in part["figures"].items()})
    entry.notes |= {name: note for part in found for name, note in part["notes"].items()}
    entry.curves.append(driven["curve"])


@dataclass(frozen=True)
class Place:
    """A contender's directory, and the server that runs there, if it needs one."""

    directory: Path
    server: Server | None

    def forget(self) -> None:
        """Make the next reader fetch the files from the disk: neither server nor kernel remembers them."""
        if self.server is not None:
            self.server.stop()
        _drop_from_page_cache(self.directory)
        if self.server is not None:
            self.server.start()


@contextmanager
def prepared(contender: Contender, parent: Path, environment: Mapping[str, str] | None = None) -> Iterator[Place]:
    """An empty directory, which is gone afterwards; a server there runs with this added to its environment."""
    directory = Path(tempfile.mkdtemp(prefix=f"{contender.name}-", dir=parent))
    try:
        if contender.server:
            with Server(directory, environment=environment) as server:
                yield Place(directory, server)
        else:
            yield Place(directory, None)
    finally:
        shutil.rmtree(directory)


def _reopen(subject: list[str], place: Place, reopenings: int) -> dict[str, Any]:
    """Medians over several new processes, with the files in the page cache and without."""
    found: dict[str, list[float]] = {}
    digests: list[str] = []
    notes: dict[str, str] = {}
    for _ in range(reopenings):
        for prefix in ("warm", "cold"):
            if prefix == "cold":
                place.forget()
            opened = _measure(["reopen", *subject])
            digests.append(opened["final_digest"])
            notes |= {f"{prefix}_{name}": note for name, note in opened["notes"].items()}
            for name, value in opened["figures"].items():
                found.setdefault(f"{prefix}_{name}", []).append(value)
    figures = {name: statistics.median(values) for name, values in found.items() if name not in notes}
    return {"figures": figures, "notes": notes, "final_digests": digests}


def _history(subject: list[str], entry: Entry) -> dict[str, Any]:
    """All states of a thread, unless that took too long or too much before."""
    note = entry.notes.get("history_ms")
    if note is None:
        try:
            return _measure(["history", *subject], seconds=HISTORY_SECONDS)
        except TooSlowError:
            note = f"> {HISTORY_SECONDS} s"
        except MeasurementError as error:
            note = f"failed: {error}"
    return {"figures": {}, "notes": {"history_ms": note}}


def _crash(workload: Workload, contender: Contender, counts: dict[str, Any], parent: Path) -> dict[str, Any]:
    """Kill a run when 90 % of its states are put, and let a new process go on."""
    with prepared(contender, parent) as place:
        subject = [workload.name, contender.name, str(place.directory)]
        killed_after = killed_at(workload.states)
        reached = []
        with _started(["crash", *subject]) as (process, said):
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("reached "):
                    process.kill()  # what it printed before it died is read to the end
                    reached.append(json.loads(line.partition(" ")[2]))
            if process.wait() != -signal.SIGKILL or not reached:
                raise MeasurementError(said())
        # Only the states that were seen have known ids; those before them are not asked for.
        digests = {
            position - killed_after: digest
            for position, digest in ((int(p), d) for p, d in counts["digests"].items())
            if 0 <= position - killed_after < len(reached)
        }
        expected = parent / "expected.json"
        expected.write_text(json.dumps({**counts, "digests": digests, "states": reached}))
        return _measure(["recover", *subject, "--expected", str(expected)])


def _measure(arguments: list[str], step: Step | None = None, seconds: float = MEASUREMENT_SECONDS) -> dict[str, Any]:
    """One run of measure.py on the checkout that this file is in.

    Raises:
        TooSlowError: It took longer than that many seconds.
        MeasurementError: It failed.
    """
    line = ""
    with _started(arguments) as (process, said):
        assert process.stdout is not None
        over = threading.Event()

        def end() -> None:
            over.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            for line in process.stdout:
                if step is not None and line.startswith("progress "):
                    step(int(line.split()[1]))
            code = process.wait()
        finally:
            timer.cancel()
        if over.is_set():
            raise TooSlowError(f"took more than {seconds:g} s")
        if code != 0:
            raise MeasurementError(said())
    found: dict[str, Any] = json.loads(line)
    return found


@contextmanager
def _started(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """A process that measures, and the last line of its errors; it is ended with the block at the latest."""
    paths = [str(HERE.parent / "engine"), str(HERE.parent / "adapters"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryFile("w+") as errors:

        def said() -> str:
            errors.seek(0)
            return (errors.read().strip().splitlines() or ["ended without a word"])[-1]

        with subprocess.Popen(
            [sys.executable, str(HERE / "measure.py"), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        ) as process:
            try:
                yield process, said
            finally:
                if process.poll() is None:
                    process.kill()


def _not_run(contender: Contender, whole_states_bytes: int, directory: Path) -> str | None:
    """Why this contender cannot run here, or None."""
    try:
        found = find_spec(contender.module)
        if contender.server:
            find_postgres()
    except ModuleNotFoundError:
        found = None
    except PostgresNotFoundError as error:
        return f"not run, {error}"
    if found is None:
        return f"not run, {contender.module} is not installed"
    place = contender.keeps_whole_states_in
    if place is None:
        return None
    room = shutil.disk_usage(directory).free if place == "disk" else memory_bytes("MemAvailable")
    if whole_states_bytes * ROOM < room * (0.9 if place == "disk" else 0.6):
        return None
    return f"not run, may need {whole_states_bytes * ROOM / 1e9:.0f} GB of {place}"


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
        names = [*known] if text == "all" else text.split(",")
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
        help="names, with commas, or 'all'",
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each contender, if there is time")
    parser.add_argument(
        "--reopenings", type=int, default=2, help="processes that read what a round left, of each kind (%(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start no further round that would not end in this time"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # to stop and remove what was started
    kind = file_system(arguments.directory)
    if kind in MEMORY_FILE_SYSTEMS:
        parser.error(f"--directory {arguments.directory} is on {kind}, where nothing is durable; name one on a disk")
    end = time.monotonic() + arguments.minutes * 60
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
        os.chmod(parent, 0o711)  # the server does not run as root
        runs = [Run(WORKLOADS[name], contenders, Path(parent), arguments.reopenings) for name in arguments.workload]
        for number in range(arguments.rounds):
            for run in runs:
                run.round(number, progress, end)
            results["runs"] = [run.as_json() for run in runs]
            results["load_average_after"] = os.getloadavg()
            if arguments.json is not None:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n\n".join(table(run) for run in results["runs"]))
    # That another saver fails is a result, and stands in the tables.
    entries = [item for run in results["runs"] for item in run["contenders"].items()]
    return int(any(entry["failed"] for name, entry in entries if name.startswith("stepwell")))


if __name__ == "__main__":
    sys.exit(main())
