"""Another way from a step on: `fork`."""

from __future__ import annotations

import json as json_form
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from stepwell_cli.places import (
    Command,
    JsonOption,
    LaneOption,
    LogArgument,
    ThreadArgument,
    lane_of,
    refer,
    step_json,
    writing,
)
from stepwell_cli.screen import FAINT, NAME, PLACE, Screen


def fork(
    log: LogArgument,
    thread: ThreadArgument,
    as_: Annotated[
        str | None, typer.Option("--as", metavar="THREAD", help="Make it a new thread.", show_default=False)
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=JSON",
            help='Change a value: plan="short", messages[-1].content="Hi".',
            show_default=False,
        ),
    ] = None,
    lane: LaneOption = "",
    json: JsonOption = False,
) -> None:
    """Begin a new branch at a step, as it was or with values changed.

    The agent goes on from it when it is invoked next. What was there stays.
    """
    patch = dict(map(_change, change or ()))
    screen = Screen(as_json=json)
    with writing(log) as opened:
        named = refer(opened, thread)
        made = named.thread.fork(named.at, lane=lane_of(named.thread, lane), as_=as_, patch=patch or None)
        into = as_ if as_ is not None else named.thread.id
        if json:
            number = opened.thread(into).view(int(made.sequence)).number
            screen.emit({"thread": into, **step_json(made, number)})
        else:
            screen.say("forked into ", (into, NAME), (f"  #{made.sequence}", PLACE), (f"  {made.step_id}", FAINT))


def _change(text: str) -> tuple[str, Any]:
    """`path=json`; what is no JSON is a text."""
    path, equals, value = text.partition("=")
    if path.count("[") > path.count("]"):  # messages[id=abc].content=...
        inner, equals, value = value.partition("=")
        path = f"{path}={inner}"
    if not equals:
        raise typer.BadParameter(f"a change is written path=value, not {text!r}")
    try:
        return path, json_form.loads(value)
    except RecursionError:
        raise typer.BadParameter(f"the value of {path!r} is nested too deeply") from None
    except ValueError:
        return path, value


COMMANDS: Final[Mapping[str, Command]] = {"fork": fork}
