"""How long commands take as whole processes, on a log of many threads and on a thread of many steps.

Each is run several times; the table has medians, less what the interpreter takes to start and end: time of the wall,
and of the processor, which does not count what else the machine does.  The exit code is 1 if one takes more of the
processor's than it may.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from langchain_core.messages import AIMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from stepwell import Log, StepCommitted, changes
from stepwell_langgraph import StepwellSaver

ROOT = Path(__file__).resolve().parent.parent
QUICK_MS = 300
PATIENT_MS = 1000
GROUP = 1000


def make_threads(path: Path, count: int) -> None:
    """A log of threads of one step each."""
    values = {"notes": ("msgpack", msgspec.msgpack.encode("hello"))}
    fields = {"metadata": ("msgpack", msgspec.msgpack.encode({"source": "input", "step": -1}))}
    with Log.open(path) as log:
        for start in range(0, count, GROUP):
            tickets = [
                log.thread(f"user-{number}").begin_append([StepCommitted("s1", None, changes(values), changes(fields))])
                for number in range(start, min(start + GROUP, count))
            ]
            for ticket in tickets:
                ticket.result()


def make_steps(path: Path, count: int) -> None:
    """One thread whose messages grow at every third step, whose plan changes at every hundredth, with a fork."""
    with StepwellSaver.from_conn_string(str(path)) as saver:
        config: Any = {"configurable": {"thread_id": "long", "checkpoint_ns": ""}}
        messages: list[AIMessage] = []
        plan: dict[str, str] = {}
        middle = config
        for number in range(count):
            checkpoint = empty_checkpoint()
            checkpoint["id"] = str(uuid6(clock_seq=number))
            new: dict[str, Any] = {"count": f"{number:032}"}
            if number % 3 == 0:
                messages = [*messages, message(number)]
                new["messages"] = f"{number:032}"
            if number % 100 == 0:
                plan = {**plan, f"step {number}": f"do {number}"}
                new["plan"] = f"{number:032}"
            checkpoint["channel_values"] = {"messages": messages, "plan": plan, "count": number}
            checkpoint["channel_versions"] = {
                "messages": f"{number // 3 * 3:032}",
                "plan": f"{number // 100 * 100:032}",
                "count": f"{number:032}",
            }
            config = saver.put(config, checkpoint, {"source": "loop", "step": number - 1, "parents": {}}, new)
            if number % 3 == 2:
                saver.put_writes(config, [("messages", [message(number + 1)])], f"t{number}", "~__pregel_pull, think")
            if number == count // 2:
                middle = config
        checkpoint["id"] = str(uuid6(clock_seq=1))
        saver.put(middle, checkpoint, {"source": "fork", "step": count // 2, "parents": {}}, {})


def message(number: int) -> AIMessage:
    return AIMessage(f"Message {number}: {'the quick brown fox jumps over it. ' * 5}{number * 7919}", id=f"m{number}")


def milliseconds(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """How long a process of the interpreter takes, by the wall's clock and by the processor's."""
    begun = time.perf_counter()
    ran = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(ran.pid, 0)
    ran.returncode = os.waitstatus_to_exitcode(status)
    taken = (time.perf_counter() - begun) * 1000
    if ran.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(arguments)} ended with {ran.returncode}")
    return taken, (usage.ru_utime + usage.ru_stime) * 1000


def medians(arguments: list[str], environment: dict[str, str], rounds: int) -> tuple[float, float]:
    """The median of each, of some runs after a first one that fills the caches."""
    milliseconds(arguments, environment)
    walls, processors = zip(*(milliseconds(arguments, environment) for _ in range(rounds)), strict=True)
    return statistics.median(walls), statistics.median(processors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=100_000, help="threads of the one log")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the other's thread")
    parser.add_argument("--rounds", type=int, default=7, help="how often each command is run")
    options = parser.parse_args()
    folders = os.pathsep.join(str(ROOT / folder) for folder in ("cli", "engine", "adapters"))
    environment = {**os.environ, "PYTHONPATH": folders}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    middle = options.steps // 2
    commands = [
        (QUICK_MS, "threads many"),
        (QUICK_MS, "threads many --prefix user-5 --json"),
        (QUICK_MS, "show many user-5"),
        (QUICK_MS, "log long long"),
        (QUICK_MS, "tree long long"),
        (QUICK_MS, f"show long long@{middle}"),
        (QUICK_MS, f"diff long long@{middle - 100} @{middle}"),
        (PATIENT_MS, "blame long long messages[10].content"),
        (PATIENT_MS, "watch long long plan --all"),
        (PATIENT_MS, "watch long long count"),
        (PATIENT_MS, "watch long long messages"),
        (PATIENT_MS, f"watch long long@{options.steps - 2} count --limit {options.steps // 10}"),
    ]
    late = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.stepwell" for name in ("many", "long")}
        make_threads(paths["many"], options.threads)
        make_steps(paths["long"], options.steps)
        own = medians(["-c", "pass"], environment, options.rounds)
        print(f"{options.threads:,} threads, {options.steps:,} steps; the interpreter alone: {own[0]:.0f} ms\n")
        print("   wall  processor    bound")
        for bound, command in commands:
            name, log, *rest = command.split()
            arguments = ["-m", "stepwell_cli", name, str(paths[log]), *rest]
            wall, processor = medians(arguments, environment, options.rounds)
            late += processor - own[1] > bound
            print(f"{wall - own[0]:7.0f}  {processor - own[1]:9.0f}  {bound:7,}  stepwell {command}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
