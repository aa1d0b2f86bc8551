"""How long it takes to look into a long thread: each question in a process of its own.

    python bench/looking.py --steps 10000

The thread is as a chat with tools leaves it: at each step one message more and a counter, and now and then a change
of its plan.  What is told is what a process takes beyond one that only imports stepwell: by the clock, and of the
processor, which other work on the machine disturbs less.  It fails if one takes longer than its limit of the processor.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langgraph.checkpoint.base import CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6

from stepwell_langgraph import StepwellSaver

THREAD = "long"
QUESTIONS = {
    "log": (0.3, "[step for _, step in zip(range(50), thread.steps(lane=''))]"),
    "tree": (0.3, "str(thread.tree())"),
    "show the newest": (0.3, "view = thread.view(); view.part('messages', -5); view['plan']; view.metadata"),
    "show an old one": (0.3, "view = thread.view('17'); view.part('messages', -5); view['plan']; view.metadata"),
    "diff of two in a row": (0.3, "thread.diff('head~1')"),
    "blame of the newest": (1.0, "thread.blame('messages[-1].content').node"),
    "blame of an old one": (1.0, "thread.blame('messages[12].content').node"),
    "blame by id": (1.0, "thread.blame('messages[id=m-5000].content').node"),
    "watch of one entry": (1.0, "[(each.old, each.new, each.number) for each in thread.watch('plan.part3')]"),
    "watch of a counter": (1.0, "[each.new for each in thread.watch('turn')]"),
}
START = "import stepwell; log = stepwell.Log.open({path!r}, read_only=True); thread = log.thread('long')\n"


def write_thread(path: Path, steps: int) -> None:
    """Fill a log with one thread, through the saver."""
    rng = random.Random(1)
    words = [f"word{n}" for n in range(3000)]
    messages: list[AnyMessage] = []
    plan: dict[str, str] = {}
    versions: dict[str, Any] = {}
    version: str | None = None
    config: Any = {"configurable": {"thread_id": THREAD, "checkpoint_ns": ""}}
    with StepwellSaver.from_conn_string(path) as saver:
        for step in range(-1, steps - 1):
            text = " ".join(rng.choices(words, k=45))
            new = (
                ToolMessage(text, tool_call_id=f"c{step}", id=f"m-{step}")
                if step % 2
                else AIMessage(text, id=f"m-{step}")
            )
            writes: list[tuple[str, Any]] = [("messages", [new]), ("turn", step)]
            if step % 50 == 3:
                plan = {**plan, f"part{step % 500 // 50}": f"done at {step}"}
                writes.append(("plan", plan))
            messages = [*messages, new]
            node = "tools" if step % 2 else "model"
            if step >= 0:
                saver.put_writes(config, writes, f"task-{step}", f"~__pregel_pull, {node}")
            version = saver.get_next_version(version, None)
            moved = {channel: version for channel, _ in writes}
            versions |= moved
            values = {"messages": messages, "turn": step, **({"plan": plan} if plan else {})}
            metadata: CheckpointMetadata = {"source": "loop" if step >= 0 else "input", "step": step, "parents": {}}
            checkpoint: Any = {
                "v": 4,
                "id": str(uuid6(clock_seq=step)),
                "ts": "2024-01-01T00:00:00+00:00",
                "channel_values": values,
                "channel_versions": dict(versions),
                "versions_seen": {node: {"messages": version}},
                "updated_channels": sorted(moved),
            }
            config = saver.put(config, checkpoint, metadata, moved)


def measure(code: str, rounds: int) -> tuple[float, float]:
    """Seconds of the clock and of the processor that a process takes: the medians of some rounds."""
    clocks, processors = [], []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(rounds):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        clocks.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(clocks), statistics.median(processors)


def main() -> int:
    """Measure every question; the exit code says whether all were answered in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    late = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.stepwell"
        write_thread(path, options.steps)
        start = START.format(path=str(path))
        idle = measure("import stepwell", options.rounds)
        print(f"{options.steps:,} steps; importing stepwell: {idle[0] * 1e3:.0f} ms, processor {idle[1] * 1e3:.0f} ms")
        for name, (limit, question) in QUESTIONS.items():
            clock, processor = measure(start + question, options.rounds)
            is_late = processor - idle[1] > limit
            late += is_late
            print(
                f"{name:24}{(clock - idle[0]) * 1e3:6.0f} ms, processor {(processor - idle[1]) * 1e3:6.0f} ms"
                f"  (limit {limit * 1e3:.0f} ms)" + ("  LATE" if is_late else "")
            )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
