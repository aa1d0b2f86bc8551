"""One measurement in this process: `run.py` starts a fresh one for each.

    python measure.py census WORKLOAD
    python measure.py drive  WORKLOAD CONTENDER DIRECTORY
    python measure.py reopen WORKLOAD CONTENDER DIRECTORY

Each prints lines `progress N` and at last one line of JSON.
"""

import argparse
import ctypes
import gc
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver

from census import Census, digest
from contenders import CONTENDERS, Contender
from workloads import WORKLOADS, Workload

CURVE_POINTS = 20

Figures = dict[str, float | None]


@dataclass
class Latencies:
    """How long each call of one method took, in the order of the calls."""

    seconds: list[float] = field(default_factory=list)

    def figures(self, name: str) -> Figures:
        """Median and 99th percentile in ms, over all calls and over the last tenth of them."""
        tenth = max(1, len(self.seconds) // 10)
        last = self.seconds[-tenth:]
        return {
            f"{name}_median_ms": percentile(self.seconds, 0.50),
            f"{name}_p99_ms": percentile(self.seconds, 0.99),
            f"{name}_first_tenth_median_ms": percentile(self.seconds[:tenth], 0.50),
            f"{name}_last_tenth_median_ms": percentile(last, 0.50),
            f"{name}_last_tenth_p99_ms": percentile(last, 0.99),
        }


def percentile(seconds: list[float], share: float) -> float | None:
    """The nearest-rank percentile, in ms; None of nothing."""
    ranked = sorted(seconds)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)] * 1000 if ranked else None


class Meter(BaseCheckpointSaver[Any]):
    """Times the calls that a run makes of a saver, and looks at disk and memory between them."""

    def __init__(self, saver: BaseCheckpointSaver[Any], puts: int, directory: Path) -> None:
        super().__init__(serde=saver.serde)
        self._saver = saver
        self._point_every = max(1, puts // CURVE_POINTS)
        self._directory = directory
        self.put_calls, self.write_calls, self.get_calls = Latencies(), Latencies(), Latencies()
        self.curve: list[dict[str, Any]] = []

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self._saver.get_next_version(current, channel)

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        start = time.perf_counter()
        loaded = self._saver.get_tuple(config)
        self.get_calls.seconds.append(time.perf_counter() - start)
        return loaded

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        start = time.perf_counter()
        stored = self._saver.put(config, checkpoint, metadata, new_versions)
        self.put_calls.seconds.append(time.perf_counter() - start)
        if len(self.put_calls.seconds) % self._point_every == 0:
            self._look()
        return stored

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        start = time.perf_counter()
        self._saver.put_writes(config, writes, task_id, task_path)
        self.write_calls.seconds.append(time.perf_counter() - start)

    def _look(self) -> None:
        puts = self.put_calls.seconds
        disk = Contender.bytes_on_disk(self._directory)
        self.curve.append(
            {
                "puts": len(puts),
                "put_median_ms": percentile(puts[-self._point_every :], 0.5),
                "disk_bytes": disk.allocated_bytes,
                "anonymous_memory_bytes": memory_bytes("RssAnon"),
            }
        )
        print("progress", len(puts), flush=True)


def census(workload: Workload) -> dict[str, Any]:
    """Count what the run consists of."""
    counter = Census(InMemorySaver() if workload.reads_back else None)
    workload.prepare()(counter)
    return asdict(counter.counts(workload.reader()(counter)))


def drive(workload: Workload, contender: Contender, directory: Path) -> dict[str, Any]:
    """Run the workload once against a new store, from opening to closing."""
    contender.load()
    play = workload.prepare()
    gc.collect()
    _give_back_free_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # restarts VmHWM
    resident, written = memory_bytes("VmRSS"), bytes_written()
    cpu, start = time.process_time(), time.perf_counter()
    with contender.open(directory) as saver:
        meter = Meter(saver, workload.puts, directory)
        play(meter)
        ran = time.perf_counter()
        disk_before_close = contender.bytes_on_disk(directory)
        anonymous = memory_bytes("RssAnon")
    closed = time.perf_counter()
    figures: Figures = {
        **meter.put_calls.figures("put"),
        **meter.write_calls.figures("put_writes"),
        **(meter.get_calls.figures("get_tuple") if len(meter.get_calls.seconds) > 1 else {}),
        "run_seconds": ran - start,
        "close_seconds": closed - ran,
        "cpu_seconds": time.process_time() - cpu,
        "peak_memory_growth_bytes": memory_bytes("VmHWM") - resident,
        "anonymous_memory_at_end_bytes": anonymous,
    }
    if contender.persistent:
        disk = contender.bytes_on_disk(directory)
        figures |= {
            "disk_bytes": disk.allocated_bytes,
            "disk_apparent_bytes": disk.apparent_bytes,
            "disk_before_close_bytes": disk_before_close.allocated_bytes,
            "written_bytes": bytes_written() - written,
        }
        return {"figures": figures, "curve": meter.curve}
    return {"figures": figures, "curve": meter.curve, "final_digest": digest(workload.reader()(saver))}


def reopen(workload: Workload, contender: Contender, directory: Path) -> dict[str, Any]:
    """Open a store that another process left behind and read its newest messages."""
    contender.load()
    read = workload.reader()
    start = time.perf_counter()
    with contender.open(directory) as saver:
        opened = time.perf_counter()
        newest = read(saver)
        loaded = time.perf_counter()
    figures = {"open_ms": (opened - start) * 1000, "open_and_load_ms": (loaded - start) * 1000}
    return {"figures": figures, "final_digest": digest(newest)}


def memory_bytes(name: str) -> int:
    """A line of /proc/self/status: VmRSS, VmHWM (its peak), RssAnon (without mapped files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def bytes_written() -> int:
    """Bytes that this process caused to be written to the device, as the kernel counts them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


def _give_back_free_memory() -> None:
    """Return what the preparation freed to the system, so that growth is not hidden in it (glibc only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("census", "drive", "reopen"))
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("contender", choices=CONTENDERS, nargs="?")
    parser.add_argument("directory", type=Path, nargs="?")
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]
    if arguments.what == "census":
        found = census(workload)
    else:
        measure = drive if arguments.what == "drive" else reopen
        found = measure(workload, CONTENDERS[arguments.contender], arguments.directory)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
