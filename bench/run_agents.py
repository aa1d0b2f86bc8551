"""Many agents at once, in one command: in one process, and in several on one log.

    python bench/run_agents.py --rounds 3 --json bench/results/agents.json

Each measurement has a process of its own (`many.py`, `writers.py`) and an empty directory of its own; the order of the
contenders turns round from one round to the next.  The tables go to stdout.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import postgres
import slow_sync
from contenders import MANY_CALLERS
from machine import commit, file_system, machine, versions
from report_agents import tables
from run import MEMORY_FILE_SYSTEMS, Entry, MeasurementError, prepared

HERE = Path(__file__).resolve().parent
LARGE_BYTES = 5_000_000
MEASUREMENT_SECONDS = 900  # beside the time that is asked for; a process that takes longer hangs


@dataclass(frozen=True)
class Scenario:
    """Agents at once on one saver of one process.

    Attributes:
        sync_ms: By how much every sync of everybody takes longer than on the disk that there is.
    """

    name: str
    about: str
    how: str
    agents: int
    contenders: tuple[str, ...]
    large_bytes: int = 0
    sync_ms: float = 0


ASYNC = ("stepwell-async", "sqlite-async", "postgres-async")
SYNC = ("stepwell", "sqlite", "postgres")
WRITERS = (("one", 1, ()), ("eight", 8, ()), ("eight, one of them killed every second", 8, ("--kill",)))


def scenarios(sync_ms: float) -> tuple[Scenario, ...]:
    """All of them; in the last ones every sync takes so much longer."""
    slow = f"a sync takes {sync_ms:g} ms longer"
    return (
        Scenario("async-64", "64 coroutines", "async", 64, ASYNC),
        Scenario("async-64-large", "64 coroutines, one more with a state of 5 MB", "async", 64, ASYNC, LARGE_BYTES),
        Scenario("sync-16", "16 threads", "sync", 16, SYNC),
        Scenario("async-64-slow", f"64 coroutines, {slow}", "async", 64, ASYNC, sync_ms=sync_ms),
        Scenario("sync-16-slow", f"16 threads, {slow}", "sync", 16, SYNC, sync_ms=sync_ms),
    )


class Run:
    """One scenario, and what the contenders gave so far."""

    def __init__(self, scenario: Scenario, chats: int, parent: Path) -> None:
        self._scenario = scenario
        self._chats = chats
        self._parent = parent
        missing = "not run, no PostgreSQL" if postgres.version() is None else None
        named = {name: MANY_CALLERS[name] for name in scenario.contenders}
        self._entries = {name: Entry(c, not_run=missing if c.server else None) for name, c in named.items()}
        self._library: Path | None = None
        if scenario.sync_ms:
            try:
                self._library = slow_sync.build(parent)
            except slow_sync.NoCompilerError as error:
                for entry in self._entries.values():
                    entry.not_run = str(error)

    def round(self, number: int) -> None:
        """One more round of every contender, in the order of the last one turned round."""
        asked = self._scenario
        for name, entry in [*self._entries.items()][:: 1 if number % 2 == 0 else -1]:
            if entry.not_run or entry.failed:
                continue
            options = [f"--agents={asked.agents}", f"--chats={self._chats}", f"--large={asked.large_bytes}"]
            try:
                slower = self._environment()
                with prepared(entry.contender, self._parent, slower) as place:
                    found = _measured("many.py", asked.how, name, str(place.directory), *options, environment=slower)
                entry.rounds.append(found["figures"])
            except (MeasurementError, postgres.PostgresError) as error:
                entry.failed = str(error)

    def _environment(self) -> dict[str, str]:
        """What makes the syncs of a round slow, if they are to be."""
        if self._library is None:
            return {}
        return slow_sync.environment(self._library, self._scenario.sync_ms, self._parent)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self._scenario.name,
            "about": self._scenario.about,
            "contenders": {name: entry.as_json() for name, entry in self._entries.items()},
        }


def _measured(
    program: str, *arguments: str, seconds: float = 0, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a program of this folder gives, run on the checkout that it is in."""
    paths = [str(HERE.parent / "engine"), str(HERE.parent / "adapters"), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / program), *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=MEASUREMENT_SECONDS + seconds,
        )
    except subprocess.TimeoutExpired:
        raise MeasurementError("took too long") from None
    if done.returncode != 0:
        raise MeasurementError((done.stderr.strip().splitlines() or ["ended without a word"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _writers(seconds: float, parent: Path) -> list[dict[str, Any]]:
    """Processes that write to one log: one, several, and several of which one is killed every second."""
    found = []
    for about, number, options in WRITERS:
        with tempfile.TemporaryDirectory(dir=parent) as directory:
            asked = [directory, f"--processes={number}", f"--seconds={seconds}", *options]
            try:
                figures, failed = _measured("writers.py", *asked, seconds=seconds)["figures"], None
            except MeasurementError as error:
                figures, failed = {}, str(error)
        found.append({"about": about, "processes": number, "figures": figures, "failed": failed})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of each contender (%(default)s)")
    parser.add_argument("--chats", type=int, default=8, help="conversations of each agent (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="that several processes write for (%(default)g)")
    parser.add_argument("--sync-ms", type=float, default=4, help="that dear syncs take longer (%(default)g)")
    parser.add_argument("--only", help="the one scenario to measure, by its name, and no writers")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # to stop and remove what was started
    kind = file_system(asked.directory)
    if kind in MEMORY_FILE_SYSTEMS:
        parser.error(f"--directory {asked.directory} is on {kind}, where nothing is durable; name one on a disk")
    results: dict[str, Any] = {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(asked.directory),
        "versions": versions(),
        "rounds": asked.rounds,
        "seconds": asked.seconds,
        "load_average_before": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory(prefix="stepwell-bench-", dir=asked.directory) as parent:
        os.chmod(parent, 0o711)  # the server does not run as root
        chosen = [each for each in scenarios(asked.sync_ms) if asked.only in (None, each.name)]
        runs = [Run(scenario, asked.chats, Path(parent)) for scenario in chosen]
        for number in range(asked.rounds):
            for run in runs:
                run.round(number)
        results["scenarios"] = [run.as_json() for run in runs]
        results["writers"] = _writers(asked.seconds, Path(parent)) if asked.only is None else []
    results["load_average_after"] = os.getloadavg()
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(tables(results) + "\n")
    entries = [entry for run in results["scenarios"] for entry in run["contenders"].values()]
    return int(any(each["failed"] for each in entries + results["writers"]))


if __name__ == "__main__":
    sys.exit(main())
