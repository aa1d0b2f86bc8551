"""From results (JSON of `run.py`) to a Markdown table.

    python bench/report.py bench/results/*.json                     prints the tables
    python bench/report.py bench/results/*.json --write README.md   puts them between its two marker lines

A cell is the median over the rounds, then how many times less it is than SqliteSaver's (0.5x: twice as much).
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINE = "sqlite"
START = "<!-- bench: made by bench/report.py -->"
END = "<!-- bench: end -->"

Show = Callable[[float], str]


def _significant(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 1 else f"{value:.2g}"


def _ms(value: float) -> str:
    return f"{_significant(value)} ms"


def _seconds(value: float) -> str:
    return f"{_significant(value)} s"


def _megabytes(value: float) -> str:
    return f"{_significant(value / 1e6)} MB"


@dataclass(frozen=True)
class Row:
    """One figure of the table; `missing` is what a contender without it shows."""

    title: str
    figure: str
    show: Show
    missing: str = "-"


ROWS = (
    Row("put, last tenth: median", "put_last_tenth_median_ms", _ms),
    Row("put, last tenth: p99", "put_last_tenth_p99_ms", _ms),
    Row("put, first tenth: median", "put_first_tenth_median_ms", _ms),
    Row("put, whole run: median", "put_median_ms", _ms),
    Row("put, whole run: p99", "put_p99_ms", _ms),
    Row("put_writes, last tenth: median", "put_writes_last_tenth_median_ms", _ms),
    Row("put_writes, last tenth: p99", "put_writes_last_tenth_p99_ms", _ms),
    Row("put_writes, whole run: median", "put_writes_median_ms", _ms),
    Row("put_writes, whole run: p99", "put_writes_p99_ms", _ms),
    Row("get_tuple of an invocation, last tenth: median", "get_tuple_last_tenth_median_ms", _ms),
    Row("whole run", "run_seconds", _seconds),
    Row("CPU", "cpu_seconds", _seconds),
    Row("on disk", "disk_bytes", _megabytes, "not stored"),
    Row("on disk, before closing", "disk_before_close_bytes", _megabytes, "not stored"),
    Row("written to disk", "written_bytes", _megabytes, "not stored"),
    Row("peak memory growth", "peak_memory_growth_bytes", _megabytes),
    Row("new process: open and load newest", "warm_open_and_load_ms", _ms, "lost"),
    Row("the same, files not in memory", "cold_open_and_load_ms", _ms, "lost"),
)


def table(run: dict[str, Any]) -> str:
    """The Markdown of one workload's results."""
    counts, entries = run["counts"], run["contenders"]
    new = counts["new_information_bytes"]
    head = [
        f"**{run['workload']}**: {run['about']}.",
        f"{counts['puts']:,} `put`, {counts['put_writes']:,} `put_writes`, {counts['messages']:,} messages.",
        f"New information: {_megabytes(new)}; by zstandard level 3 in 1 MiB blocks:",
        f"{_megabytes(counts['compressed_bytes'])}; the whole state at every step:",
        f"{_megabytes(counts['whole_states_bytes'])}.",
    ]
    shown = {name: entry for name, entry in entries.items() if entry["figures"]}
    lines = ["| | " + " | ".join(entry["label"] for entry in shown.values()) + " |"]
    lines.append("|---|" + "--:|" * len(shown))
    for row in ROWS:
        medians = {name: _median(entry, row.figure) for name, entry in shown.items()}
        if all(median is None for median in medians.values()):
            continue
        base = medians.get(BASELINE)
        cells = [
            _cell(row, median, None if name == BASELINE or not entries[name]["stores"] else base)
            for name, median in medians.items()
        ]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
        if row.figure == "disk_bytes":
            shares = ["-" if m is None else f"{_significant(m / new)}x" for m in medians.values()]
            lines.append("| on disk / new information | " + " | ".join(shares) + " |")
    reasons = [(entry["label"], entry["not_run"] or entry["failed"]) for entry in entries.values()]
    absent = [f"{label}: {reason}." for label, reason in reasons if reason]
    return "\n".join([" ".join(head), "", *lines, *(["", *absent] if absent else [])])


def document(results: list[dict[str, Any]]) -> str:
    """All tables, with what they were taken on."""
    parts = []
    for result in results:
        machine, versions = result["machine"], result["versions"]
        parts += [table(run) for run in result["runs"]]
        rounds = f"Medians of {result['rounds']} rounds" if result["rounds"] > 1 else "One round"
        parts.append(
            f"{rounds}, {result['taken'][:10]}, commit {result['commit'] or 'none'}: {machine['cores']} cores"
            f" ({machine['cpu']}), {machine['memory_bytes'] / 2**30:.0f} GiB, {machine['file_system']},"
            f" {machine['system']}, Python {versions['python']}, SQLite {versions['sqlite']},"
            f" langgraph {versions['langgraph']}; load average {result['load_average_before'][0]:.1f} before,"
            f" {result['load_average_after'][0]:.1f} after."
        )
    return "\n\n".join(parts)


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the marker lines of a file."""
    before, start, rest = path.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"{path}: no lines {START!r} and {END!r}")
    path.write_text(f"{before}{START}\n{text}\n{END}{after}")


def _median(entry: dict[str, Any], figure: str) -> float | None:
    spread = entry["figures"].get(figure)
    return None if spread is None else spread["median"]


def _cell(row: Row, median: float | None, base: float | None) -> str:
    if median is None:
        return row.missing
    times = f" ({_significant(base / median)}x)" if base is not None and median > 0 else ""
    return row.show(median) + times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--write", type=Path, help="a file with the marker lines, such as README.md")
    arguments = parser.parse_args()
    text = document([json.loads(path.read_text()) for path in arguments.results])
    if arguments.write is None:
        sys.stdout.write(text + "\n")
    else:
        write_between_markers(arguments.write, text)


if __name__ == "__main__":
    main()
