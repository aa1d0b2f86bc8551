"""A file kept in order: `audit`, `repair`, `seal` and `compact`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from stepwell_cli import exits
from stepwell_cli.places import (
    AnyThreadArgument,
    Command,
    JsonOption,
    LogArgument,
    check_exists,
    existing,
    reading,
    writing,
)
from stepwell_cli.screen import BAD, FAINT, GOOD, NAME, STRONG, Meter, Screen, size, waiting

_BREACHES_SHOWN: Final = 20


def audit(log: LogArgument, json: JsonOption = False) -> None:
    """Check every invariant of a log, event by event.

    The exit code is 1 if one is broken, 3 if the file cannot even be opened.
    """
    screen = Screen(as_json=json)
    with reading(log) as opened, Meter() as meter:
        report = opened.audit(progress=meter.told)
    if json:
        screen.emit(
            {
                "log": str(log),
                "threads": report.threads,
                "events": report.events,
                "breaches": [breach._asdict() for breach in report.breaches],
            }
        )
    else:
        screen.say((str(log), NAME), f": {report.threads:,} threads, {report.events:,} events")
        if not report.breaches:
            screen.say(("sound", GOOD), ": every invariant holds")
        for invariant, count in sorted(Counter(breach.invariant for breach in report.breaches).items()):
            screen.say((f"{invariant}", STRONG), (f": {count:,} breaches (SPEC.md, section 11)", BAD))
        for breach in report.breaches[:_BREACHES_SHOWN]:
            place = "" if breach.thread is None else f"thread {breach.thread}"
            place += "" if breach.sequence is None else f" #{breach.sequence}"
            screen.say(
                "  ", (f"{breach.invariant} {place}: " if place else f"{breach.invariant}: ", FAINT), breach.what
            )
        if len(report.breaches) > _BREACHES_SHOWN:
            screen.say((f"  and {len(report.breaches) - _BREACHES_SHOWN:,} more: --json has all", FAINT))
        if report.breaches:
            screen.say(f"What is intact can be saved: stepwell repair {log} NEW-FILE")
    if report.breaches:
        raise typer.Exit(exits.FOUND)


def repair(
    log: LogArgument,
    into: Annotated[
        Path, typer.Argument(metavar="INTO", help="The new log; nothing may be there yet.", show_default=False)
    ],
    json: JsonOption = False,
) -> None:
    """Make a new log of all that can be proven in a damaged one.

    The damaged file is not changed, and need not open. The exit code is 1 if
    anything is lost.
    """
    import stepwell

    check_exists(log)
    screen = Screen(as_json=json)
    with Meter() as meter:
        report = stepwell.repair(log, into, progress=meter.told)
    if json:
        told = {**report._asdict(), "lost_events": report.lost_events, "left_out_events": report.left_out_events}
        told["repaired"] = [
            {
                **thread._asdict(),
                "lost": [loss._asdict() for loss in thread.lost],
                "left_out": [loss._asdict() for loss in thread.left_out],
            }
            for thread in report.repaired
        ]
        screen.emit(told)
    else:
        screen.block(str(report))
    if report.lost_events or report.left_out_events:
        raise typer.Exit(exits.FOUND)


def seal(log: LogArgument, thread: AnyThreadArgument = None, json: JsonOption = False) -> None:
    """Compress all that is loose now, and give free room back.

    This happens by itself in the background; it is worth it before a file is
    copied, or when an agent is done.
    """
    screen = Screen(as_json=json)
    with writing(log) as opened, Meter() as meter:
        if thread is not None:
            existing(opened.thread(thread))
        sealed = opened.seal(thread, progress=meter.told)
    if json:
        screen.emit({"log": str(log), "thread": thread, "sealed_events": sealed})
    else:
        screen.say(f"sealed {sealed:,} events")


def compact(
    log: LogArgument,
    into: Annotated[
        Path | None,
        typer.Option("--into", "-o", metavar="FILE", help="Write a second file instead.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make the file as small as it can be.

    A new file is written beside the log and takes its place at once; a crash or
    Ctrl-C leaves the old one. Nobody may have the log open meanwhile. With
    --into the log may be in use, and stays as it is.
    """
    import stepwell

    check_exists(log)
    screen = Screen(as_json=json)
    with waiting(f"writing {into or log} anew"):
        if into is None:
            done = stepwell.compact(log)
        else:
            with reading(log) as opened:
                done = opened.compact(into)
    if json:
        told = {"before_bytes": done.before_bytes, "after_bytes": done.after_bytes}
        screen.emit({"log": str(log), "into": None if into is None else str(into), **told})
    else:
        where = f"{into}: " if into else ""
        screen.say(where, size(done.before_bytes), " → ", (size(done.after_bytes), STRONG))


COMMANDS: Final[Mapping[str, Command]] = {"audit": audit, "repair": repair, "seal": seal, "compact": compact}
