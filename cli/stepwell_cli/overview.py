"""What a log holds as a whole: `threads` and `stats`."""

from __future__ import annotations

import json as json_form
import re
import time
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from stepwell_cli.places import AnyThreadArgument, JsonOption, LogArgument, existing, reading
from stepwell_cli.screen import BAD, FAINT, GOOD, NAME, STRONG, Meter, Screen, ago, moment, size

_STYLES: Final = {"running": NAME, "interrupted": "yellow", "failed": BAD, "done": GOOD}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(threads)
    app.command()(stats)


def threads(
    log: LogArgument,
    prefix: Annotated[str, typer.Option("--prefix", "-p", help="Ids that begin with this.", show_default=False)] = "",
    status: Annotated[
        list[str] | None,
        typer.Option("--status", "-s", help="running, interrupted, failed or done.", show_default=False),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Threads so labelled.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Changed since: 2d, 3h, 2026-01-31.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
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
            updated_since=_time(since) if since else 0,
            limit=None if everything else limit + 1,
        )
        if json:
            for summary in found if everything else islice(found, limit):
                screen.emit(_summary_json(summary))
            return
        with screen.paged():
            rows = [*found]
            more = not everything and len(rows) > limit
            screen.table(
                ("thread", "status", ">steps", ">size", ">changed", "labels"),
                (
                    (
                        (row.thread_id, NAME),
                        (row.status or "-", _STYLES.get(row.status or "", FAINT)),
                        f"{row.steps:,}",
                        size(row.stored_bytes),
                        ago(row.updated_at),
                        (" ".join(f"{name}={value}" for name, value in row.labels.items()), FAINT),
                    )
                    for row in rows[:limit] if more
                )
                if more
                else (),
            )
            if more:
                screen.say((f"There are more: --limit {limit * 10}, or --all.", FAINT))
