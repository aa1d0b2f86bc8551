"""What an import costs: a run's checkpoints in another saver's database, imported into a log by a process of its own.

    python bench/importing.py --workload research-1000 --sources sqlite,postgres

The database is made by the saver itself from the calls of a workload (bench/workloads.py), which takes far longer than
the import.  Measured are the sizes on disk before and after, the time with and without verification, and the largest
memory of the process, that of the interpreter and its libraries included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import postgres
import workloads
from contenders import CONTENDERS, Contender
from machine import machine
from usage import memory_bytes

SOURCES = ("sqlite", "postgres")


@dataclass(frozen=True)
class Measurement:
    """One import.

    Attributes:
        verified: Checkpoints that were read back and compared.
        peak_bytes: Largest resident memory of the process.
        start_bytes: Resident memory before the import: the interpreter and its libraries.
    """

    workload: str
    source: str
    checkpoints: int
    writes: int
    verified: int
    problems: int
    seconds: float
    cpu_seconds: float
    before_bytes: int
    after_bytes: int
    peak_bytes: int
    start_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.workload} from {self.source}: {self.checkpoints:,} checkpoints, {self.writes:,} writes, "
            f"{self.verified:,} verified, {self.problems} problems\n"
            f"    {self.before_bytes / 1e6:,.1f} MB -> {self.after_bytes / 1e6:,.2f} MB on disk\n"
            f"    {self.seconds:,.1f} s ({self.cpu_seconds:,.1f} s of CPU): "
            f"{self.checkpoints / self.seconds:,.0f} checkpoints per second\n"
            f"    memory: {self.peak_bytes / 1e6:,.0f} MB at most, {self.start_bytes / 1e6:,.0f} MB before it began"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure imports of other savers' databases.")
    parser.add_argument("--workload", default="research-300", choices=workloads.WORKLOADS)
    parser.add_argument("--sources", default="sqlite,postgres", help="of " + ", ".join(SOURCES))
    parser.add_argument("--directory", type=Path, help="where SQLite files go; one that is there is used again")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--child", nargs=2, metavar=("SOURCE", "LOG"), help=argparse.SUPPRESS)
    parser.add_argument("--no-verify", action="store_true", help="do not read back and compare")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(imported(*given.child, verify=not given.no_verify)))
        return
    found: list[Measurement] = []
    for name in given.sources.split(","):
        with tempfile.TemporaryDirectory() as own:
            Path(own).chmod(0o755)  # a server runs as somebody else
            kept = given.directory is not None and not CONTENDERS[name].server
            place = (given.directory if kept else Path(own)) / f"{given.workload}-{name}"
            found.append(measured(given.workload, name, place, verify=not given.no_verify))
    for each in found:
        print(each)
    if given.json:
        given.json.write_text(
            json.dumps({"machine": machine(Path()), "imports": [asdict(each) for each in found]}, indent=1)
        )


def measured(workload: str, name: str, place: Path, *, verify: bool) -> Measurement:
    """Import the database of one saver, which is made unless it is there."""
    with source(CONTENDERS[name], workload, place) as address, tempfile.TemporaryDirectory() as target:
        options = [] if verify else ["--no-verify"]
        command = [sys.executable, __file__, *options, "--child", address, f"{target}/log.stepwell"]
        told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout)
    return Measurement(workload, name, **told)


@contextmanager
def source(contender: Contender, workload: str, place: Path) -> Iterator[str]:
    """The address of a database with a workload's checkpoints."""
    is_new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    with postgres.Server(place) if contender.server else nullcontext():
        if is_new:
            fill(contender, workload, place)
        if contender.server:
            yield f"postgresql://{postgres.USER}@/postgres?host={place}"
        else:
            yield f"sqlite:///{place}/checkpoints.sqlite"


def fill(contender: Contender, workload: str, place: Path) -> None:
    drive = workloads.WORKLOADS[workload].prepare()
    contender.load()
    contender.prepare(place)
    with contender.open(place) as store:
        drive(store.saver)
    contender.settle(place)


def imported(address: str, log: str, *, verify: bool) -> dict[str, Any]:
    """Import in this process, which has done nothing else."""
    from stepwell import Log
    from stepwell_langgraph.importing import import_from

    start, cpu, began = memory_bytes("VmRSS"), time.process_time(), time.monotonic()
    with Log.open(log) as target:
        report = import_from(address, target, verify=verify)
    seconds = time.monotonic() - began  # until the log is closed
    return {
        "checkpoints": report.checkpoints,
        "writes": report.writes,
        "verified": report.verified,
        "problems": len(report.problems),
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "before_bytes": report.before_bytes,
        "after_bytes": os.stat(log).st_blocks * 512,
        "peak_bytes": memory_bytes("VmHWM"),
        "start_bytes": start,
    }


if __name__ == "__main__":
    main()
