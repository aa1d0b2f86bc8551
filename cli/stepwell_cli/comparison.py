"""Two states against each other, and where a value comes from: `diff`, `blame`, `watch` and `grep`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stepwell_cli import exits
from stepwell_cli.places import (
    AnyThreadArgument,
    Command,
    JsonOption,
    LaneOption,
    LogArgument,
    Reference,
    ThreadArgument,
    existing,
    lane_of,
    reading,
    refer,
    settled,
    step_json,
)
from stepwell_cli.screen import BAD, FAINT, GOOD, NAME, PLACE, STRONG, Meter, Part, Screen, clock

if TYPE_CHECKING:
    from stepwell import Log, Thread

_SIGNS: Final = {"added": ("+", GOOD), "removed": ("-", BAD), "changed": ("~", PLACE), "moved": (">", PLACE)}
_LINE_STYLES: Final = {"+": GOOD, "-": BAD, "@": FAINT}
_TEXT_SHOWN: Final = 400
_DIFFERENCES_SHOWN: Final = 10  # of one change

NEXT: Final = "branch:to:"  # channels by which LangGraph says which node is next begin with it

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Such as messages[12].content.", show_default=False)]


def diff(
    log: LogArgument,
    thread: ThreadArgument,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[[THREAD]@STEP]", help="What to compare with; without, the step before.", show_default=False
        ),
    ] = None,
    lane: LaneOption = "",
    json: JsonOption = False,
) -> None:
    """Compare two states, of whichever steps and threads.

    With one step, it is compared with the step before it. Messages are compared
    by their id, maps by their keys, texts line by line. The exit code is 1 if
    anything differs, as of diff(1).
    """
    screen = Screen(as_json=json)
    with reading(log) as opened:
        new = refer(opened, thread)
        name = lane_of(new.thread, lane)
        if other is None:
            old = Reference(new.thread, f"{new.at or ''}~1")
        else:
            old, new = new, _second(opened, new, other)
        sides = settled(old, name), settled(new, name)
        (old_thread, old_sequence), (new_thread, new_sequence) = sides
        differences = old_thread.diff(old_sequence, new_sequence, other=new_thread)
        if json:
            for each in differences:
                screen.emit(difference_json(each))
        else:
            with screen.paged():
                for sign, style, (of, sequence) in zip(("---", "+++"), (BAD, GOOD), sides, strict=True):
                    _say_side(screen, sign, style, of, sequence)
                following = [each for each in differences if NEXT in each.path]
                for each in differences:
                    if each not in following:
                        _say_difference(screen, each)
                if following:
                    told = ", ".join(f"{each.path} {each.kind}" for each in following)
                    screen.say((f"which node is next: {told}", FAINT))
                if not differences:
                    screen.say(("no difference", FAINT))
    if differences:
        raise typer.Exit(exits.FOUND)


def without_next(channels: Iterable[str]) -> list[str]:
    """Channels without those by which LangGraph says which node is next."""
    return [channel for channel in channels if not channel.startswith(NEXT)]


def difference_json(each: Any) -> dict[str, Any]:
    """A difference for programs."""
    return {"path": each.path, "change": each.kind, "old": _json_or_none(each.old), "new": _json_or_none(each.new)}


def _second(log: Log, first: Reference, text: str) -> Reference:
    """What a step is compared with: `@STEP` and a bare step mean the same thread."""
    if text.startswith("@"):
        return Reference(first.thread, text[1:] or None)
    if "@" not in text and log.thread(text).row() is None:
        return Reference(first.thread, text)
    return refer(log, text)


def _say_side(screen: Screen, sign: str, style: str, thread: Thread, sequence: int) -> None:
    view = thread.view(sequence)
    number = "" if view.number is None else f"step {view.number}  "
    screen.say((f"{sign} ", style), (thread.id, NAME), (f"  {number}#{sequence}  {view.step.step_id}", FAINT), cut=True)


def _say_difference(screen: Screen, each: Any, margin: str = "") -> None:
    sign, style = _SIGNS[each.kind]
    lines = each.lines()
    if lines:
        screen.say(margin, (f"{sign} ", style), (each.path, STRONG))
        for line in lines:
            screen.say(f"{margin}    ", (line, _LINE_STYLES.get(line[:1], "")))
        return
    if each.kind == "changed":
        screen.say(margin, (f"{sign} ", style), (each.path, STRONG))
        screen.say(f"{margin}    ", (f"-{_summary(each.old)}", BAD), cut=True)
        screen.say(f"{margin}    ", (f"+{_summary(each.new)}", GOOD), cut=True)
        return
    head: list[Part] = [margin, (f"{sign} ", style), (each.path, STRONG)]
    shown = _summary(each.old if each.kind == "removed" else each.new)
    if len(margin) + 2 + len(each.path) + 2 + len(shown) <= screen.width:
        screen.say(*head, f"  {shown}")
    else:
        screen.say(*head)
        screen.say(f"{margin}    ", shown, cut=True)


def _summary(data: Any) -> str:
    from stepwell.inspect import summary
    from stepwell.paths import ABSENT

    return "(nothing)" if data is ABSENT else summary(data, _TEXT_SHOWN)


def _json_or_none(data: Any) -> Any:
    from stepwell.inspect import to_json
    from stepwell.paths import ABSENT

    return None if data is ABSENT else to_json(data)


def blame(
    log: LogArgument, thread: ThreadArgument, path: PathArgument, lane: LaneOption = "", json: JsonOption = False
) -> None:
    """Say which step, node and task put there what stands at a path."""
    screen = Screen(as_json=json)
    with reading(log) as opened:
        named = refer(opened, thread)
        change = named.thread.blame(path, at=named.at, lane=lane_of(named.thread, lane))
        if json:
            screen.emit(_change_json(named.thread.id, change))
        else:
            _say_change(screen, change)


def watch(
    log: LogArgument,
    thread: ThreadArgument,
    path: PathArgument,
    lane: LaneOption = "",
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many changes.")] = 20,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All, however many.")] = False,
    json: JsonOption = False,
) -> None:
    """List the changes of what stands at a path, newest first."""
    from stepwell import UsageError
    from stepwell.blaming import nothing_there
    from stepwell.paths import Path

    screen = Screen(as_json=json)
    with reading(log) as opened, screen.paged():
        named = refer(opened, thread)
        name = lane_of(named.thread, lane)
        changes = named.thread.watch(path, at=named.at, lane=name)
        first = next(changes, None)
        if first is None:
            raise UsageError(nothing_there(named.thread.view(named.at, lane=name), Path.parse(path)))
        for count, change in enumerate(chain([first], changes)):
            if count == limit and not everything:
                if not json:
                    screen.say((f"There are older ones: --limit {limit * 10}, or --all.", FAINT))
                break
            if json:
                screen.emit(_change_json(named.thread.id, change))
            else:
                _say_change(screen, change)


def _change_json(thread_id: str, change: Any) -> dict[str, Any]:
    return {
        "thread": thread_id,
        **step_json(change.step, change.number),
        "path": change.path,
        "node": change.node,
        "source": change.source,
        "tasks": [task.task_id for task in change.tasks],
        "old": _json_or_none(change.old),
        "new": _json_or_none(change.new),
    }


def _say_change(screen: Screen, change: Any) -> None:
    by = change.node or change.source or "?"
    number = "-" if change.number is None else str(change.number)
    parts: list[Part] = [
        (f"step {number}", PLACE),
        (f"  #{change.step.sequence}", FAINT),
        f"  {clock(change.step.created_at)}  by ",
        (by, STRONG),
        (f"  {change.step.step_id}", FAINT),
    ]
    screen.say(*parts)
    differences = change.differences
    for each in differences[:_DIFFERENCES_SHOWN]:
        if each.path != change.path:  # somewhere inside
            _say_difference(screen, each, "    ")
            continue
        if each.kind != "added":
            screen.say("    ", (f"-{_summary(each.old)}", BAD), cut=True)
        screen.say("    ", (f"+{_summary(each.new)}", GOOD), cut=True)
    if len(differences) > _DIFFERENCES_SHOWN:
        screen.say((f"    and {len(differences) - _DIFFERENCES_SHOWN:,} more: stepwell diff", FAINT))


def grep(
    log: LogArgument,
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="The text.", show_default=False)],
    thread: AnyThreadArgument = None,
    regex: Annotated[bool, typer.Option("--regex", "-e", help="PATTERN is a regular expression.")] = False,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Upper and lower case are alike.")] = False,
    lane: LaneOption = "",
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many places.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find a text in all that threads hold, past states too.

    The exit code is 1 if it stands nowhere, as of grep(1).
    """
    screen = Screen(as_json=json)
    count = 0
    with reading(log) as opened, Meter() as meter, screen.paged():
        names = [thread] if thread is not None else [each.thread_id for each in opened.threads()]
        for number, name in enumerate(names):
            meter.told(name, number, len(names))
            searched = existing(opened.thread(name)) if thread is not None else opened.thread(name)
            inside = lane_of(searched, lane) if lane else None
            left = None if limit is None else min(limit - count, sys.maxsize)
            for hit in islice(searched.grep(pattern, regex=regex, ignore_case=ignore_case, lane=inside), left):
                count += 1
                meter.stop()  # from here on there is something else to see
                if json:
                    screen.emit(_hit_json(name, hit))
                else:
                    _say_hit(screen, name if thread is None else None, hit)
            if limit is not None and count >= limit:
                break
    if not count:
        raise typer.Exit(exits.FOUND)


def _hit_json(thread_id: str, hit: Any) -> dict[str, Any]:
    return {
        "thread": thread_id,
        "lane": hit.lane,
        "sequence": hit.sequence,
        "step": None if hit.step is None else hit.step.step_id,
        "number": hit.number,
        "path": hit.path,
        "node": hit.node,
        "text": hit.text,
        "start": hit.start,
        "end": hit.end,
    }


def _say_hit(screen: Screen, thread_id: str | None, hit: Any) -> None:
    where = f"#{hit.sequence}" if hit.number is None else str(hit.number)
    parts: list[Part] = []
    if thread_id is not None:
        parts.append((thread_id, NAME))
    parts += [
        (f"@{where}", PLACE),
        (f" {hit.path}", FAINT),
        (f" by {hit.node}" if hit.node else "", FAINT),
        ("" if hit.step is not None else " (waiting)", BAD),
        ": ",
        hit.text[: hit.start],
        (hit.text[hit.start : hit.end], f"{STRONG} {BAD}"),
        hit.text[hit.end :],
    ]
    screen.say(*parts)


COMMANDS: Final[Mapping[str, Command]] = {"diff": diff, "blame": blame, "watch": watch, "grep": grep}
