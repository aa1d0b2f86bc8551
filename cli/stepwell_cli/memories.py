"""What agents remember across threads, now, at a moment, and all that it ever was: `memories`."""

from __future__ import annotations

import json as json_form
import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stepwell_cli.overview import parse_time
from stepwell_cli.places import Command, JsonOption, LogArgument, nearest, reading, refer, settled
from stepwell_cli.screen import BAD, FAINT, GOOD, NAME, PLACE, Screen, clock, moment

if TYPE_CHECKING:
    from stepwell import Log

_SHOWN: Final = 400
_COMPARED: Final = 1000  # keys that a mistyped one is compared with
_OTHERS: Final = "\0"  # namespaces that begin so are other adapters': results of nodes, for one


def memories(
    log: LogArgument,
    namespace: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAMESPACE]...", help="Its parts, outermost first; without, all.", show_default=False),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", "-k", metavar="KEY", help="This one, in full.", show_default=False)
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="MOMENT",
            help="As they were: THREAD@STEP, a commit, 3h, 2026-01-31T12:00.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="All that KEY ever was, newest first.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many.")] = 50,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All, however many.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what agents remember across threads: the store's items.

    Those of a namespace and of all below it; with --key one of them, in full.
    With --at they are as the agent found them at that step, or at that time.
    """
    if history and (key is None or at is not None):
        raise typer.BadParameter("--history is of one key, and of all times: give --key, and no --at")
    screen = Screen(as_json=json)
    prefix = tuple(namespace or ())
    with reading(log) as opened, screen.paged():
        if key is not None:
            for version in _versions(opened, prefix, key, at, history=history):
                if json:
                    screen.emit(_item_json(version))
                else:
                    _say_version(screen, version, whole=not history)
            return
        found = (item for item in opened.items.scan(prefix, at=_commit(opened, at)) if _is_of_a_store(item.namespace))
        heading, count = None, 0
        for count, item in enumerate(found, 1):
            if count > limit and not everything:
                if not json:
                    screen.say((f"There are more: --limit {limit * 10}, or --all.", FAINT))
                break
            if json:
                screen.emit(_item_json(item))
                continue
            if item.namespace != heading:
                screen.say((shlex.join(heading := item.namespace) or "(no namespace)", NAME))
            screen.say("  ", (item.key, PLACE), "  ", _summary(item), cut=True)
        if not count and not json:
            screen.say(("no memory there", FAINT))


def _is_of_a_store(namespace: tuple[str, ...]) -> bool:
    return not (namespace and namespace[0].startswith(_OTHERS))


def _commit(log: Log, text: str | None) -> int | None:
    """The commit of a moment: a step's, a number, or the last one by a time."""
    if text is None:
        return None
    if re.fullmatch("[0-9]{1,18}", text):
        return int(text)
    if "@" not in text and log.thread(text).row() is None:
        return log.items.commit_at(parse_time(text))
    thread, sequence = settled(refer(log, text), "")
    return thread.commit_of(sequence)


def _versions(log: Log, namespace: tuple[str, ...], key: str, at: str | None, *, history: bool) -> Iterator[Any]:
    """One memory: as it is or was, or all that it ever was."""
    from stepwell import UsageError

    now = () if history else log.items.get_many([(namespace, key)], at=_commit(log, at))
    found = log.items.history(namespace, key) if history else filter(None, now)
    first = next(found, None)
    if first is not None:
        yield from chain([first], found)
    elif not history and any(log.items.history(namespace, key)):
        raise UsageError(f"nothing is remembered under {key!r} in {namespace!r} then; --history tells what was")
    else:
        keys = [other.key for other in islice(log.items.scan(namespace), _COMPARED) if other.namespace == namespace]
        raise UsageError(f"nothing is remembered under {key!r} in {namespace!r}{nearest(key, keys)}")


def _say_version(screen: Screen, version: Any, *, whole: bool) -> None:
    time = getattr(version, "deleted_at", None) or version.updated_at
    screen.say((version.key, PLACE), (f"  commit {version.commit}", FAINT), f"  {clock(time)}")
    if not hasattr(version, "value"):
        screen.say("    ", ("deleted", BAD))
    elif whole:
        screen.block(json_form.dumps(_json(version), indent=2, ensure_ascii=False))
    else:
        screen.say("    ", (f"+{_summary(version)}", GOOD), cut=True)


def _summary(item: Any) -> str:
    from stepwell.inspect import decode, summary

    return summary(decode(*item.value), _SHOWN)


def _json(item: Any) -> Any:
    from stepwell.inspect import decode, to_json

    return to_json(decode(*item.value))


def _item_json(item: Any) -> dict[str, Any]:
    """A memory, or its deletion, for programs."""
    told: dict[str, Any] = {"namespace": item.namespace, "key": item.key, "commit": item.commit}
    if not hasattr(item, "value"):
        return {**told, "deleted_at": moment(item.deleted_at)}
    expires_at = None if item.expires_at is None else moment(item.expires_at)
    times = {"created_at": moment(item.created_at), "updated_at": moment(item.updated_at), "expires_at": expires_at}
    return {**told, "value": _json(item), **times}


COMMANDS: Final[Mapping[str, Command]] = {"memories": memories}
