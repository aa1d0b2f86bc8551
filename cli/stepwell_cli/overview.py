"""What a log holds as a whole: `threads` and `stats`."""

from __future__ import annotations

import json as json_form
import re
import time
from collections.abc import Mapping
from collections.abc import Sequence as Several
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from stepwell_cli.places import AnyThreadArgument, Command, JsonOption, LogArgument, existing, reading
from stepwell_cli.screen import BAD, FAINT, GOOD, NAME, STRONG, Meter, Part, Screen, ago, moment, size

_STYLES: Final = {"running": NAME, "interrupted": "yellow", "failed": BAD, "done": GOOD}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def threads(
    log: LogArgument,
    prefix: Annotated[
        str, typer.Option("--prefix", "-p", metavar="TEXT", help="Ids that begin with this.", show_default=False)
    ] = "",
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status", "-s", metavar="STATUS", help="running, interrupted, failed or done.", show_default=False
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Threads so labelled.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Changed since: 2d, 3h, 2026-01-31.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many.")] = 50,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All, however many.")] = False,
    json: JsonOption = False,
) -> None:
    """List threads, the one that changed last first."""
    screen = Screen(as_json=json)
    labels = dict(map(_label, label or ()))
    with reading(log) as opened:
        found = opened.threads(
            prefix=prefix,
            status=status or None,
            labels=labels or None,
            updated_since=parse_time(since) if since else 0,
            limit=None if everything else limit + 1,
        )
        if json:
            for summary in found if everything else islice(found, limit):
                screen.emit(summary_json(summary))
            return
        first = next(found, None)
        if first is None:
            screen.say(("no such thread" if prefix or status or label or since else "no thread yet", FAINT))
            return
        rows = chain([first], found)
        with screen.paged():
            screen.table(
                ("thread", "status", ">steps", ">size", ">changed", "labels"),
                map(_row, rows if everything else islice(rows, limit)),
            )
            if next(rows, None) is not None:
                screen.say((f"There are more: --limit {limit * 10}, or --all.", FAINT))


def _row(summary: Any) -> Several[Part]:
    return (
        (summary.thread_id or "''", NAME),
        (summary.status or "-", _STYLES.get(summary.status or "", FAINT)),
        f"{summary.steps:,}",
        size(summary.stored_bytes),
        ago(summary.updated_at),
        (" ".join(f"{name}={value}" for name, value in summary.labels.items()), FAINT),
    )


def stats(
    log: LogArgument,
    thread: AnyThreadArgument = None,
    measure: Annotated[
        bool, typer.Option("--measure", "-m", help="Read everything, and say what the bytes are for.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say how large a log is, and what the room is for.

    With a THREAD, or --measure, every event is read: what takes room is told by
    kind, channel and thread.
    """
    screen = Screen(as_json=json)
    with reading(log) as opened:
        if thread is not None:
            existing(opened.thread(thread))
        told = opened.stats() if thread is None else None
        measured = None
        if thread is not None or measure:
            with Meter() as meter:
                measured = opened.measure(thread, progress=meter.told)
    if json:
        screen.emit(
            {
                "log": str(log),
                "thread": thread,
                "stats": None if told is None else _plain(told),
                "measured": None if measured is None else _plain(measured),
            }
        )
        return
    with screen.paged():
        if told is not None:
            _say_stats(screen, log, told)
        if measured is not None:
            _say_measured(screen, measured)


def _say_stats(screen: Screen, log: Path, told: Any) -> None:
    screen.say((str(log), NAME), f"   {told.threads:,} threads, {told.commit:,} commits")
    if told.file is not None:
        room = told.file
        screen.say(
            "file     ",
            (size(room.disk_bytes), STRONG),
            f" of the disk; it is {size(room.length_bytes)} long, {size(room.free_bytes)} of it free pages",
        )
        screen.say("         ", f"can grow by {size(room.headroom_bytes)}")
    oldest = told.oldest_reader
    since = f"; process {oldest.pid} reads what was there {oldest.age:,} commits ago" if oldest and oldest.age else ""
    if told.items_bytes:
        past = f"with their past they take {size(told.items_bytes)}"
        screen.say("items    ", f"{told.items:,}, memories and results of nodes; {past}")
    screen.say("readers  ", f"{told.readers:,}{since}")
    screen.say()
    screen.table(
        ("table", ">rows", ">size"),
        (((name, NAME), f"{table.rows:,}", size(table.stored_bytes)) for name, table in told.tables.items()),
    )


def _say_measured(screen: Screen, measured: Any) -> None:
    screen.say()
    screen.table(
        ("what is stored", ">events", ">plain", ">stored", ">of it"),
        (
            (
                (name, NAME),
                f"{part.events:,}",
                size(part.plain_bytes),
                size(part.stored_bytes),
                f"{part.stored_bytes / part.plain_bytes:.0%}" if part.plain_bytes else "-",
            )
            for name, part in (("loose", measured.loose), ("sealed", measured.sealed))
        ),
    )
    screen.say()
    screen.table(
        ("kind", ">events", ">plain"),
        (((kind, NAME), f"{part.events:,}", size(part.plain_bytes)) for kind, part in measured.kinds.items()),
    )
    screen.say()
    screen.table(
        ("channel", ">events", ">new content", ">shared"),
        (
            ((name, NAME), f"{part.events:,}", size(part.new_bytes), size(part.shared_bytes))
            for name, part in measured.channels.items()
        ),
    )
    if measured.items.events:
        screen.say()
        screen.table(
            ("items", ">events", ">new content", ">shared", ">stored"),
            [[("with their past", NAME), f"{measured.items.events:,}", *map(size, measured.items[1:])]],
        )
    if measured.largest:
        screen.say()
        screen.table(
            ("largest threads", ">events", ">stored"),
            (((each.thread_id, NAME), f"{each.events:,}", size(each.stored_bytes)) for each in measured.largest),
        )
    if measured.damaged:
        screen.say((f"{measured.damaged:,} damaged events were left out: stepwell audit", BAD))


def _plain(value: Any) -> Any:
    """Figures as JSON has them: what has names is an object."""
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if hasattr(value, "__struct_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def summary_json(summary: Any) -> dict[str, Any]:
    """A thread for programs."""
    return {
        "thread": summary.thread_id,
        "status": summary.status,
        "labels": summary.labels,
        "steps": summary.steps,
        "events": summary.events,
        "writes": summary.writes,
        "lanes": summary.lanes,
        "stored_bytes": summary.stored_bytes,
        "created_at": moment(summary.created_at),
        "updated_at": moment(summary.updated_at),
    }


def _label(text: str) -> tuple[str, Any]:
    """`key=value`, where the value is a number or true or false if it reads as one; `key=null` asks for none."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"a label is written key=value, not {text!r}")
    try:
        return name, json_form.loads(value)
    except (ValueError, RecursionError):
        return name, value


def parse_time(text: str) -> int:
    """A time, or how long ago, as Unix time in nanoseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    try:
        if match:
            return max(time.time_ns() - int(float(match[1]) * _UNITS[match[2]] * 1e9), 0)
        return max(int(datetime.fromisoformat(text).timestamp() * 1e9), 0)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no time: write 45m, 3h, 2d, 1w or 2026-01-31T12:00") from None


COMMANDS: Final[Mapping[str, Command]] = {"threads": threads, "stats": stats}
