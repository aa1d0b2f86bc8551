"""From results (JSON of `run.py`) to pictures beside them, one for each workload.

    python bench/plots.py bench/results/*.json

Three parts: what a put takes and what is on disk over the run, both on logarithmic scales, and how long after a crash
the first state is read and the first new step is durable.  Medians over the rounds.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, StrMethodFormatter

# An asynchronous saver is drawn like its blocking twin, dashed.
COLORS = {
    "stepwell": "#0b6e4f",
    "sqlite": "#c8553d",
    "postgres": "#2f5d8a",
    "lmdb": "#b8860b",
    "memory": "#6b6b6b",
}
ASYNC = "-async"
DOTS_PER_INCH = 120


def picture(run: dict[str, Any]) -> Figure:
    """The three parts for one workload."""
    shown = {name: entry for name, entry in run["contenders"].items() if entry["stores"] and entry["curves"]}
    figure = Figure(figsize=(13, 4.9), layout="constrained")
    figure.suptitle(f"{run['workload']}: {run['about']}", fontsize=11)
    puts, disk, recovery = figure.subplots(1, 3)
    lines = [_curve(puts, name, entry, "put_median_ms", 1) for name, entry in shown.items()]
    puts.set(title="one put", xlabel="puts so far", yscale="log")
    puts.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g} ms"))
    for name, entry in shown.items():
        if "disk_bytes" in entry["figures"]:
            _curve(disk, name, entry, "disk_bytes", 1e6)
    new = run["counts"]["new_information_bytes"] / 1e6
    lines.append(disk.axhline(new, color="black", linewidth=0.9, linestyle=":"))
    disk.set(title="on disk", xlabel="puts so far", yscale="log")
    disk.yaxis.set_major_formatter(FuncFormatter(lambda mb, _: f"{mb:g} MB"))
    _recovery(recovery, shown)
    for part in (puts, disk):
        part.grid(which="major", linewidth=0.4, alpha=0.5)
        part.yaxis.set_minor_formatter("")
        part.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for part in (puts, disk, recovery):
        part.spines[["top", "right"]].set_visible(False)
    labels = [*(entry["label"] for entry in shown.values()), "new information of the whole run"]
    figure.legend(lines, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def write(path: Path) -> list[Path]:
    """Draw all workloads of a file of results; the pictures lie beside it."""
    written = []
    for run in json.loads(path.read_text())["runs"]:
        target = path.with_name(f"{run['workload']}.png")
        picture(run).savefig(target, dpi=DOTS_PER_INCH, metadata={"Software": None})
        written.append(target)
    return written


def _curve(part: Axes, name: str, entry: dict[str, Any], figure: str, unit: float) -> Any:
    points = [
        (same[0]["puts"], statistics.median(point[figure] for point in same) / unit)
        for same in zip(*entry["curves"], strict=True)
    ]
    (line,) = part.plot(
        [puts for puts, _ in points],
        [value for _, value in points],
        color=_color(name),
        linestyle="--" if name.endswith(ASYNC) else "-",
        linewidth=2.2 if name == "stepwell" else 1.4,
    )
    return line


def _recovery(part: Axes, shown: dict[str, dict[str, Any]]) -> None:
    """Two bars for each contender: a light one to the first new step, over it a dark one to the first state."""
    recovered = {name: entry for name, entry in shown.items() if "recovery_first_step_ms" in entry["figures"]}
    for row, (name, entry) in enumerate(recovered.items()):
        state, step = (
            entry["figures"][figure]["median"] for figure in ("recovery_first_state_ms", "recovery_first_step_ms")
        )
        part.barh(row, step, height=0.62, color=_color(name), alpha=0.35)
        part.barh(row, state, height=0.62, color=_color(name))
        part.annotate(f" {state:.0f} / {step:.0f} ms", (step, row), va="center", fontsize=8)
    part.set_yticks(range(len(recovered)), [entry["label"] for entry in recovered.values()], fontsize=8)
    part.invert_yaxis()
    part.margins(x=0.3)
    part.set_xlim(left=0)
    part.set(title="after SIGKILL: first state / first new step", xlabel="ms from opening, in a new process")


def _color(name: str) -> str:
    return COLORS.get(name.removesuffix(ASYNC), "#9b59b6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    for path in parser.parse_args().results:
        for written in write(path):
            print(written)


if __name__ == "__main__":
    main()
