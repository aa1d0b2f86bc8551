"""From results of `run_agents.py` to Markdown.

A cell is the median over the rounds.  Behind it: how many times SqliteSaver's rate, or how many times less than
SqliteSaver's time.
"""

from dataclasses import dataclass
from typing import Any

START = "<!-- bench-agents: made by bench/report.py -->"
END = "<!-- bench-agents: end -->"


@dataclass(frozen=True)
class Row:
    """One figure of a scenario's table."""

    title: str
    figure: str
    unit: str = " ms"
    is_rate: bool = False


ROWS = (
    Row("`put` per second", "puts_per_second", "", is_rate=True),
    Row("`put`: median", "put_median_ms"),
    Row("`put`: p99", "put_p99_ms"),
    Row("`put_writes`: p99", "put_writes_p99_ms"),
    Row("`get_tuple`: p99", "get_tuple_p99_ms"),
    Row("longest stall of the event loop", "stall_ms"),
    Row("CPU per call", "cpu_ms_per_call"),
    Row("syncs per call", "syncs_per_call", ""),
)


def tables(result: dict[str, Any]) -> str:
    """All tables of one result."""
    parts = [_scenario(run) for run in result["scenarios"]]
    if result["writers"]:
        parts.append(_writers(result["writers"], result["seconds"]))
    parts.append(_taken(result))
    return "\n\n".join(parts)


def _scenario(run: dict[str, Any]) -> str:
    entries = {name: entry for name, entry in run["contenders"].items() if entry["figures"]}
    if not entries:
        return f"{run['about']}: {next(filter(None, map(_why_absent, run['contenders'].values())))}."
    base = next((entry for name, entry in entries.items() if name.startswith("sqlite")), None)
    lines = _head(run["about"], [entry["label"] for entry in entries.values()])
    for row in ROWS:
        cells = [_cell(row, entry, None if entry is base else base) for entry in entries.values()]
        if any(cells):
            lines.append(f"| {row.title} | " + " | ".join(cell or "-" for cell in cells) + " |")
    absent = [f"{entry['label']}: {why}." for entry in run["contenders"].values() if (why := _why_absent(entry))]
    return "\n".join([*lines, *(["", "  \n".join(absent)] if absent else [])])


def _why_absent(entry: dict[str, Any]) -> str | None:
    why: str | None = entry["not_run"] or entry["failed"]
    return why


def _writers(writers: list[dict[str, Any]], seconds: float) -> str:
    lines = _head(f"processes that write to one log for {seconds:g} s", [each["about"] for each in writers])
    rows = (
        ("`put` per second, all together", "puts_per_second"),
        ("calls acknowledged, each of them there once", "acknowledged"),
        ("killed", "killed"),
    )
    for title, figure in rows:
        cells = [_number(each["figures"][figure]) if not each["failed"] else "failed" for each in writers]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    failed = [f"{each['about']}: {each['failed']}." for each in writers if each["failed"]]
    return "\n".join([*lines, *(["", "  \n".join(failed)] if failed else [])])


def _taken(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    rounds = f"Medians of {result['rounds']} rounds" if result["rounds"] > 1 else "One round"
    return (
        f"{rounds}, {result['taken'][:10]}, commit {result['commit'] or 'none'}: {machine['cores']} cores"
        f" ({machine['cpu']}), {machine['memory_bytes'] / 2**30:.0f} GiB, {machine['file_system']},"
        f" {machine['system']}, Python {versions['python']}, SQLite {versions['sqlite']},"
        f" {versions.get('postgres') or 'no PostgreSQL'}, langgraph {versions['langgraph']};"
        f" load average {result['load_average_before'][0]:.1f} before, {result['load_average_after'][0]:.1f} after."
    )


def _head(first: str, columns: list[str]) -> list[str]:
    return [f"| {first} | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]


def _cell(row: Row, entry: dict[str, Any], base: dict[str, Any] | None) -> str:
    median = _median(entry, row.figure)
    if median is None:
        return ""
    compared = None if base is None else _median(base, row.figure)
    times = ""
    if compared and median:
        times = f" ({_number(median / compared if row.is_rate else compared / median)}x)"
    return _number(median) + row.unit + times


def _median(entry: dict[str, Any], figure: str) -> float | None:
    spread = entry["figures"].get(figure)
    return None if spread is None else spread["median"]


def _number(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 1 else f"{value:.2g}"
