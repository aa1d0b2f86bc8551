"""Threads in and out of a log: `export` and `import`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stepwell_cli import exits
from stepwell_cli.places import AnyThreadArgument, Command, JsonOption, LogArgument, existing, reading, writing
from stepwell_cli.screen import BAD, FAINT, GOOD, NAME, STRONG, Meter, Screen, counted, size, tame_warnings

if TYPE_CHECKING:
    from stepwell import Log

_ELSEWHERE: Final = ("sqlite:", "postgresql:", "postgres:")
_LINES: Final = (".jsonl", ".ndjson")


def export(
    log: LogArgument,
    thread: AnyThreadArgument = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            "-o",
            metavar="WHERE",
            help="FILE.bundle, FILE.jsonl, sqlite:///FILE or postgresql://...  [default: JSON Lines to the screen]",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="JSON Lines that can be imported again.")] = False,
    states: Annotated[bool, typer.Option("--states", help="JSON Lines with the whole state at each step.")] = False,
    json: JsonOption = False,
) -> None:
    """Write threads out: bundle, JSON Lines, SQLite or PostgreSQL.

    A bundle is one thread in a file of its own, checksummed, for another log.
    JSON Lines are for reading, one event a line. The databases are
    what LangGraph's own savers read; for PostgreSQL, its serializer makes objects
    of what the log holds: only for logs that you trust. The log may be in use.
    """
    screen = Screen(as_json=json)
    if (exact or states) and to is not None and (to.startswith(_ELSEWHERE) or not to.endswith(_LINES)):
        raise typer.BadParameter(
            "--exact and --states are for JSON Lines: to the screen, or to a file that ends with .jsonl"
        )
    with reading(log) as opened:
        if thread is not None:
            existing(opened.thread(thread))
        if to is not None and to.startswith(_ELSEWHERE):
            _export_elsewhere(screen, opened, thread, to)
        elif to is not None and not to.endswith(_LINES):
            _export_bundle(screen, opened, thread, to)
        else:
            _export_lines(screen, opened, thread, to, exact, states)


def _export_bundle(screen: Screen, log: Log, thread: str | None, to: str) -> None:
    from stepwell.bundle import export_thread

    if thread is None:
        names = [found.thread_id for found in log.threads(limit=2)]
        if len(names) != 1:
            raise typer.BadParameter("a bundle holds one thread: name it; or write all to a file that ends with .jsonl")
        (thread,) = names
    with Meter() as meter:
        done = export_thread(log.thread(thread), to, progress=meter.told)
    _say(screen, "exported", to, [done])


def _export_lines(screen: Screen, log: Log, thread: str | None, to: str | None, exact: bool, states: bool) -> None:
    from stepwell import UsageError
    from stepwell.jsonlines import export_lines

    names = [*log.all_threads()] if thread is None else [thread]

    def lines(meter: Meter) -> Iterator[str]:
        if thread is not None:
            yield from export_lines(log.thread(thread), exact=exact, states=states, progress=meter.told)
            return
        for number, name in enumerate(names):
            meter.told(f"exporting {name}", number, len(names))
            yield from export_lines(log.thread(name), exact=exact, states=states)

    with Meter() as meter:
        if to is None:
            for line in lines(meter):
                sys.stdout.write(line)
            return
        try:
            file = open(to, "x", encoding="utf-8")  # noqa: SIM115 - it is removed if this does not come to its end
        except FileExistsError:
            raise UsageError(f"there is something at {to!r} already; export to a path where nothing is") from None
        try:
            with file:
                events = 0
                for line in lines(meter):
                    events += file.write(line) > 0
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(to)
            raise
    length = os.path.getsize(to)
    if screen.is_json:
        screen.emit({"to": to, "threads": len(names), "lines": events, "bytes": length})
    else:
        screen.say(
            f"exported {counted(len(names), 'thread')} to ",
            (to, NAME),
            f": {counted(events, 'line')}, ",
            (size(length), STRONG),
        )


def _export_elsewhere(screen: Screen, log: Log, thread: str | None, to: str) -> None:
    from stepwell_langgraph.exporting import export_to

    tame_warnings()
    with Meter() as meter:
        report: Any = export_to(to, log, threads=None if thread is None else [thread], progress=_told(meter))
    _say_report(screen, report)


def import_(
    log: LogArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="FILE.bundle, FILE.jsonl, sqlite:///FILE or postgresql://...", show_default=False
        ),
    ],
    as_: Annotated[
        str | None, typer.Option("--as", metavar="THREAD", help="Another name for the thread.", show_default=False)
    ] = None,
    thread: Annotated[
        list[str] | None,
        typer.Option(
            "--thread", "-t", metavar="THREAD", help="Of another saver, this thread only.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Bring threads in: a bundle, or another saver's database.

    Exact JSON Lines come in as well. LOG is made if it is not there. Everything
    is verified: of a bundle nothing is imported unless all of it can be, and an
    import from a database goes on where it was interrupted. Threads that exist
    are left as they are.
    """
    from stepwell.bundle import describe, import_thread

    if str(log).startswith(_ELSEWHERE):
        raise typer.BadParameter(f"the log comes first: stepwell import {source} {log}")
    screen = Screen(as_json=json)
    is_file = not source.startswith(_ELSEWHERE)
    if is_file and not os.path.exists(source):
        raise typer.BadParameter(f"there is no file {source!r}")
    is_database = not is_file or _is_sqlite(source)
    if is_database and as_ is not None:
        raise typer.BadParameter("--as is for a file of one thread; those of a database keep their names")
    if not is_database and thread:
        raise typer.BadParameter("--thread is for databases; a file comes in whole")
    if not is_database and not source.endswith(_LINES):
        describe(source)  # before a log is made for what is no bundle
    with writing(log, create=True) as opened, _hinting():
        if is_database:
            from stepwell_langgraph.importing import import_from

            with Meter() as meter:
                report = import_from(
                    Path(source) if is_file else source, opened, threads=thread or None, progress=_told(meter)
                )
            _say_report(screen, report)
            return
        with Meter() as meter:
            if source.endswith(_LINES):
                from stepwell.jsonlines import import_lines

                bundles = import_lines(opened, source, as_=as_, progress=meter.told)
            else:
                bundles = [import_thread(opened, source, as_=as_, progress=meter.told)]
        _say(screen, "imported", str(log), bundles)


@contextmanager
def _hinting() -> Iterator[None]:
    from stepwell import ConflictError

    try:
        yield
    except ConflictError as error:
        error.add_note("here that is: --as NAME")
        raise


def _is_sqlite(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _told(meter: Meter) -> Any:
    """Progress as the importer tells it."""

    def told(progress: Any) -> None:
        before, after = getattr(progress, "before_bytes", None), getattr(progress, "after_bytes", None)
        sizes = [size(each) for each in (before, after) if each is not None]
        what = "  ".join((progress.thread_id, " → ".join(sizes)))
        meter.told(what, progress.checkpoints, progress.of_checkpoints)

    return told


def _say(screen: Screen, done: str, where: str, bundles: list[Any]) -> None:
    for each in bundles:
        if screen.is_json:
            screen.emit({done: each.thread_id, "where": where, "events": each.events, "bytes": each.bundle_bytes})
        else:
            joined = " into " if done == "imported" else " to "
            figures = f": {counted(each.events, 'event')}, "
            screen.say(
                f"{done} ", (each.thread_id, NAME), joined, (where, NAME), figures, (size(each.bundle_bytes), STRONG)
            )


def _say_report(screen: Screen, report: Any) -> None:
    if screen.is_json:
        told = {name: value for name, value in vars(report).items() if not name.startswith("_")}
        told["problems"] = [problem._asdict() for problem in report.problems]
        screen.emit(told)
    else:
        screen.block(str(report), GOOD if report.ok else BAD)
        if not report.ok:
            screen.say((f"{len(report.problems):,} problems", FAINT))
    if not report.ok:
        raise typer.Exit(exits.FOUND)


COMMANDS: Final[Mapping[str, Command]] = {"export": export, "import": import_}
