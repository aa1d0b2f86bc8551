"""What the first page of a list of threads costs, by each filter, among very many.

    make bench-catalogue ARGS='--threads 100000'

The log is filled with threads of one append each, over thirty days, in four shuffled quarters, so that no filter finds
its threads side by side but those that are meant to: half of the threads have the label `half`, none of them among the
newest 50,000; ids begin with `old/` and `new/` likewise.  Times are of the wall, and of the processor (which does not
count what else the machine does); the first page is that of a log that was just opened.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from stepwell import Label, Log, Status, StepCommitted, changes
from stepwell.writer import Ticket

SEED = 20_250_601
PAGE = 50
REPEATED = 9
GROUP = 1000
DAY = 86_400 * 10**9
BEGINNING = 1_700_000_000 * 10**9
DAYS = 30


class Page(NamedTuple):
    """What the pages of one filter cost, in milliseconds."""

    found: int
    first: float
    wall: float
    processor: float


def fill(log: Log, threads: int) -> None:
    """Append to each thread once."""
    chance = random.Random(SEED)
    tickets: list[Ticket] = []
    for number, name in enumerate(_order(threads, chance)):
        is_old = number < threads // 2
        status = chance.choices([*Status], (1, 10, 1, 88))[0] if number % (threads // 2) else Status.FAILED
        labels: dict[str, Label | None] = {"user": f"user-{name % (threads // 20)}", "env": "prod"}
        labels["half" if is_old else "other"] = True
        labels["rare"] = number == threads // 4 or None
        prefix = "rare" if number == threads // 3 else "old" if is_old else "new"
        at = BEGINNING + number * DAYS * DAY // threads
        step = StepCommitted("step", None, changes({"x": ("text", b"")}), changes({}), created_at=at, status=status)
        tickets.append(log.thread(f"{prefix}/{name}").begin_append([step], labels=labels))
        if len(tickets) == GROUP:
            _finish(tickets)
    _finish(tickets)


def _order(threads: int, chance: random.Random) -> Iterator[int]:
    for quarter in range(4):
        names = [*range(quarter, threads, 4)]
        chance.shuffle(names)
        yield from names


def _finish(tickets: list[Ticket]) -> None:
    while tickets:
        tickets.pop().result()


def filters(threads: int) -> dict[str, dict[str, Any]]:
    """What is asked for, by what is said of it in the table."""
    middle = BEGINNING + DAYS * DAY // 2
    return {
        "none": {},
        "none, oldest first": {"newest_first": False},
        "status, most threads": {"status": "done"},
        "status, 1 in 100": {"status": "failed"},
        "status, three of them": {"status": ["failed", "interrupted", "running"]},
        "label, one thread": {"labels": {"rare": True}},
        "label, 20 threads": {"labels": {"user": f"user-{threads // 40}"}},
        "label, all threads": {"labels": {"env": "prod"}},
        "label, half, none of the newest": {"labels": {"half": True}},
        "label, no thread": {"labels": {"user": "nobody"}},
        "two labels, 20 threads and half": {"labels": {"half": True, "user": f"user-{threads // 40}"}},
        "two labels, half each, no thread": {"labels": {"half": True, "other": True}},
        "label and status, half and 1 in 100": {"labels": {"half": True}, "status": "failed"},
        "label that is not there, half": {"labels": {"other": None}},
        "prefix, one thread": {"prefix": "rare/"},
        "prefix, the newest half": {"prefix": "new/"},
        "prefix, half, none of the newest": {"prefix": "old/"},
        "prefix, no thread": {"prefix": "none/"},
        "time, the last day": {"updated_since": BEGINNING + (DAYS - 1) * DAY},
        "time, before the middle": {"updated_before": middle},
        "time, before all": {"updated_before": BEGINNING},
        "time and status, 1 in 100": {"updated_before": middle, "status": "failed"},
        "time, status, label and prefix": {
            "updated_before": middle,
            "status": "done",
            "labels": {"half": True},
            "prefix": "old/",
        },
    }


def measure(path: Path, asked: dict[str, Any]) -> Page:
    """The first page, of a log that is opened for it, and the same again."""
    with Log.open(path, read_only=True, verify=False) as log:
        times = [_timed(log, asked) for _ in range(REPEATED + 1)]
    found, first, _ = times[0]
    return Page(found, first, median(wall for _, wall, _ in times[1:]), median(cpu for *_, cpu in times[1:]))


def _timed(log: Log, asked: dict[str, Any]) -> tuple[int, float, float]:
    began, used = time.perf_counter(), time.thread_time()
    found = len([*log.threads(limit=PAGE, **asked)])
    return found, 1e3 * (time.perf_counter() - began), 1e3 * (time.thread_time() - used)


def main() -> None:
    """Fill a log, and print a table."""
    parser = argparse.ArgumentParser(description="What the first page of a list of threads costs.")
    parser.add_argument("--threads", type=int, default=100_000)
    threads = max(parser.parse_args().threads, 100)
    with tempfile.TemporaryDirectory(prefix="stepwell-catalogue-", dir="/var/tmp") as directory:
        path = Path(directory) / "agents.stepwell"
        began = time.perf_counter()
        with Log.open(path) as log:
            fill(log, threads)
        print(
            f"{threads:,} threads, {path.stat().st_size / 1e6:,.0f} MB, filled in {time.perf_counter() - began:.0f} s"
        )
        print(
            f"\n| first page of {PAGE} by | found | just opened, ms | again, ms | processor, ms |"
            "\n|---|--:|--:|--:|--:|"
        )
        for name, asked in filters(threads).items():
            page = measure(path, asked)
            print(f"| {name} | {page.found} | {page.first:.2f} | {page.wall:.2f} | {page.processor:.2f} |")


if __name__ == "__main__":
    main()
