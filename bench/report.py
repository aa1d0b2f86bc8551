"""From results (JSON of `run.py` and `run_agents.py`) to Markdown.

    python bench/report.py bench/results/*.json                                prints all tables
    python bench/report.py bench/results/*.json --full bench/results/README.md writes them to a page of their own
    python bench/report.py bench/results/*.json --write README.md              puts a short form between marker lines

Results of `run_agents.py` have marker lines of their own, and one form.

A cell is the median over the rounds, then how many times less it is than SqliteSaver's (0.5x: twice as much).
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report_agents

BASELINE = "sqlite"
HEADLINE = "research-1000"  # the workload of the short form's table and picture
SUMMARY = ("stepwell", "sqlite", "postgres", "lmdb", "memory")  # its contenders; the asynchronous twins are alike
START = "<!-- bench: made by bench/report.py -->"
END = "<!-- bench: end -->"

FULL_HEAD = """# Results

Made by `bench/report.py` from the JSON beside it; [../README.md](../README.md) says how to read it."""

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


def _times(value: float) -> str:
    return f"{_significant(value)}x"


@dataclass(frozen=True)
class Row:
    """One figure of the table.

    Attributes:
        missing: What a contender without it shows.
        per_new: It is shown as a share of the new information, and not compared.
    """

    title: str
    figure: str
    show: Show
    missing: str = "-"
    per_new: bool = False


PUT_LAST_TENTH = Row("put, last tenth: median", "put_last_tenth_median_ms", _ms)
DISK_PER_NEW = Row("on disk / new information", "disk_bytes", _times, per_new=True)
SEALED_PER_NEW = Row("on disk after sealing / new information", "sealed_disk_bytes", _times, per_new=True)
COLD_OPEN = Row("new process: the same, files not in memory", "cold_open_and_load_ms", _ms, "lost")

ROWS = (
    PUT_LAST_TENTH,
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
    DISK_PER_NEW,
    Row("on disk after sealing", "sealed_disk_bytes", _megabytes),
    SEALED_PER_NEW,
    Row("on disk before closing", "disk_at_end_bytes", _megabytes, "not stored"),
    Row("on disk before closing / new information", "disk_at_end_bytes", _times, per_new=True),
    Row("on disk, largest during the run", "disk_largest_bytes", _megabytes, "not stored"),
    Row("on disk, largest during the run / new information", "disk_largest_bytes", _times, per_new=True),
    Row("a server's write-ahead log beside that", "server_log_bytes", _megabytes),
    Row("written to disk", "written_bytes", _megabytes, "not stored"),
    Row("sealing: time", "seal_ms", _ms),
    Row("sealing: written to disk", "seal_written_bytes", _megabytes),
    Row("memory growth: anonymous, largest sample", "anonymous_memory_growth_bytes", _megabytes),
    Row("memory growth: resident, peak (mapped files count)", "resident_memory_growth_bytes", _megabytes),
    Row("new process: open and load newest", "warm_open_and_load_ms", _ms, "lost"),
    COLD_OPEN,
    Row("new process: open, files not in memory", "cold_open_ms", _ms, "lost"),
    Row("load newest again, same process", "warm_load_again_ms", _ms, "lost"),
    Row("delta channel's history alone, same process", "warm_delta_history_again_ms", _ms, "lost"),
    Row("time travel: a state at random", "warm_time_travel_ms", _ms),
    Row("newest ten", "warm_newest_ten_ms", _ms),
    Row("full history of a thread", "history_ms", _ms),
    Row("after SIGKILL: open and load first state", "recovery_first_state_ms", _ms, "lost"),
    Row("after SIGKILL: until a new step is durable", "recovery_first_step_ms", _ms, "lost"),
)

SHORT_FIGURES = (
    "put_last_tenth_median_ms",
    "put_last_tenth_p99_ms",
    "put_writes_last_tenth_median_ms",
    "put_writes_last_tenth_p99_ms",
    "cpu_seconds",
    "disk_bytes",
    "sealed_disk_bytes",
    "written_bytes",
    "anonymous_memory_growth_bytes",
    "warm_open_and_load_ms",
    "cold_open_and_load_ms",
    "warm_time_travel_ms",
    "warm_newest_ten_ms",
    "history_ms",
    "recovery_first_state_ms",
    "recovery_first_step_ms",
)
SHORT_ROWS = tuple(row for row in ROWS if row.figure in SHORT_FIGURES)


def table(run: dict[str, Any], rows: Sequence[Row] = ROWS, *, harness: bool = True) -> str:
    """The Markdown of one workload's results, the harness alone among them or not."""
    entries = {name: entry for name, entry in run["contenders"].items() if harness or entry["stores"]}
    new = run["counts"]["new_information_bytes"]
    shown = {name: entry for name, entry in entries.items() if entry["figures"]}
    lines = _head(entry["label"] for entry in shown.values())
    for row in rows:
        medians = {name: _median(entry, row.figure) for name, entry in shown.items()}
        if all(m is None and row.figure not in _notes(shown[name]) for name, m in medians.items()):
            continue
        base = medians.get(BASELINE)
        cells = [
            _cell(row, shown[name], median, new, None if name == BASELINE or not entries[name]["stores"] else base)
            for name, median in medians.items()
        ]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    reasons = [(entry["label"], entry["not_run"] or entry["failed"]) for entry in entries.values()]
    titles = {row.figure: row.title for row in reversed(rows)}
    reasons += [
        (f"{entry['label']}, {titles[figure]}", note)
        for entry in shown.values()
        for figure, note in _notes(entry).items()
        if figure in titles
    ]
    most = max((len(entry["curves"]) for entry in shown.values()), default=0)
    reasons += [
        (entry["label"], f"{len(entry['curves'])} of {most} rounds, for time")
        for entry in shown.values()
        if len(entry["curves"]) < most
    ]
    absent = [f"{label}: {reason}." for label, reason in reasons if reason]
    return "\n".join([_about(run), "", *lines, *(["", "  \n".join(absent)] if absent else [])])


def summary(runs: Iterable[dict[str, Any]]) -> str:
    """A row for each workload: what is on disk over new information, a late put, opening and loading."""
    found = list(runs)
    labels = {name: run["contenders"][name]["label"] for name in SUMMARY for run in found if name in run["contenders"]}
    lines = _head(labels.values(), "workload")
    for run in found:
        cells = [_summary_cell(run, run["contenders"].get(name)) for name in labels]
        lines.append(f"| {run['workload']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def full(results: list[tuple[Path, dict[str, Any]]], page: Path | None) -> str:
    """All tables, with what they were taken on, and the pictures where there are any."""
    parts = []
    for path, result in results:
        for run in result["runs"]:
            parts.append(f"## {run['workload']}\n\n{table(run)}")
            parts += _picture(path, run, page)
        parts.append(_taken(result))
    return "\n\n".join(parts)


def short(results: list[tuple[Path, dict[str, Any]]], page: Path | None, full_page: Path | None) -> str:
    """The table of the headline, then a row for each workload."""
    parts = []
    for path, result in results:
        for run in result["runs"]:
            if run["workload"] == HEADLINE:
                parts += [table(run, SHORT_ROWS, harness=False), *_picture(path, run, page), _taken(result)]
    parts.append(
        "Every workload: on disk after closing / new information (after sealing in brackets), median `put` in the last"
        " tenth of the run, and opening and loading the newest state in a new process, files not in memory."
    )
    parts.append(summary(run for _, result in results for run in result["runs"]))
    if full_page is not None:
        parts.append(f"All figures: [{_relative(full_page, page)}]({_relative(full_page, page)}).")
    return "\n\n".join(parts)


def write_between_markers(path: Path, text: str, first: str = START, last: str = END) -> None:
    """Replace what stands between the marker lines of a file."""
    before, start, rest = path.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not (start and end):
        raise SystemExit(f"{path}: no lines {first!r} and {last!r}")
    path.write_text(f"{before}{first}\n{text}\n{last}{after}")


def _about(run: dict[str, Any]) -> str:
    counts = run["counts"]
    return (
        f"**{run['workload']}**: {run['about']}."
        f" {counts['puts']:,} `put`, {counts['put_writes']:,} `put_writes`, {counts['messages']:,} messages."
        f" New information: {_megabytes(counts['new_information_bytes'])}; by zstandard level 3 in 1 MiB blocks:"
        f" {_megabytes(counts['compressed_bytes'])}; the whole state at every step:"
        f" {_megabytes(counts['whole_states_bytes'])}."
    )


def _taken(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    # As many as were asked for, if there was time.
    most = max((len(entry["curves"]) for run in result["runs"] for entry in run["contenders"].values()), default=0)
    rounds = f"Medians of {most} rounds where nothing else is said" if most > 1 else "One round"
    return (
        f"{rounds}, {result['taken'][:10]}, commit {result['commit'] or 'none'}: {machine['cores']} cores"
        f" ({machine['cpu']}), {machine['memory_bytes'] / 2**30:.0f} GiB, {machine['file_system']},"
        f" {machine['system']}, Python {versions['python']}, SQLite {versions['sqlite']},"
        f" {versions.get('postgres') or 'no PostgreSQL'}, langgraph {versions['langgraph']};"
        f" load average {result['load_average_before'][0]:.1f} before, {result['load_average_after'][0]:.1f} after."
    )


def _picture(path: Path, run: dict[str, Any], page: Path | None) -> list[str]:
    """The picture of a workload as the page shows it, if it lies beside the results."""
    picture = path.with_name(f"{run['workload']}.png")
    return [f"![{run['workload']}: a put, the disk, a crash]({_relative(picture, page)})"] if picture.exists() else []


def _relative(path: Path, page: Path | None) -> str:
    return os.path.relpath(path, page.parent) if page is not None else str(path)


def _head(labels: Iterable[str], first: str = "") -> list[str]:
    columns = list(labels)
    return [f"| {first} | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]


def _median(entry: dict[str, Any], figure: str) -> float | None:
    spread = entry["figures"].get(figure)
    return None if spread is None else spread["median"]


def _notes(entry: dict[str, Any]) -> dict[str, str]:
    notes: dict[str, str] = entry.get("notes", {})
    return notes


def _cell(row: Row, entry: dict[str, Any], median: float | None, new: float, base: float | None) -> str:
    if row.figure in _notes(entry):
        return _notes(entry)[row.figure].partition(":")[0]
    if row.per_new:
        return row.missing if median is None else row.show(median / new)
    if median is None:
        return row.missing
    times = f" ({_times(base / median)})" if base is not None and median > 0 else ""
    return row.show(median) + times


def _summary_cell(run: dict[str, Any], entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not measured"
    if not entry["figures"]:
        return "failed" if entry["failed"] else "does not fit" if "may need" in entry["not_run"] else "not run"
    new = run["counts"]["new_information_bytes"]
    disk, sealed, put, opened = (
        _cell(row, entry, _median(entry, row.figure), new, None)
        for row in (DISK_PER_NEW, SEALED_PER_NEW, PUT_LAST_TENTH, COLD_OPEN)
    )
    return ", ".join([disk if sealed == SEALED_PER_NEW.missing else f"{disk} ({sealed})", put, opened])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--write", type=Path, help="a file with the marker lines, such as README.md")
    parser.add_argument("--full", type=Path, help="a file for all tables, which is replaced")
    arguments = parser.parse_args()
    results = [(path, json.loads(path.read_text())) for path in arguments.results]
    of_agents = [result for _, result in results if "scenarios" in result]
    results = [(path, result) for path, result in results if "runs" in result]
    for result in of_agents:
        if arguments.write is None:
            sys.stdout.write(report_agents.tables(result) + "\n")
        else:
            write_between_markers(arguments.write, report_agents.tables(result), report_agents.START, report_agents.END)
    if not results:
        return
    if arguments.full is not None:
        arguments.full.write_text(f"{FULL_HEAD}\n\n{full(results, arguments.full)}\n")
    if arguments.write is not None:
        write_between_markers(arguments.write, short(results, arguments.write, arguments.full))
    if arguments.full is None and arguments.write is None:
        sys.stdout.write(full(results, None) + "\n")


if __name__ == "__main__":
    main()
