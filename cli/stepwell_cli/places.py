"""Where things are: the file of a log, a thread in it, a step of the thread."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import typer

if TYPE_CHECKING:
    from stepwell import Log, Thread

_COMPARED: Final = 1000  # names that a mistyped one is compared with
_COMPLETED: Final = 50
_LOOKED_AT_BYTES: Final = 1 << 22  # of pages, on opening: 30 ms; the library's 64 MiB are for who goes on for longer


def _complete_thread(ctx: typer.Context, incomplete: str) -> list[str]:
    """Threads for the shell to offer; whatever goes wrong offers nothing."""
    try:
        with reading(Path(ctx.params["log"])) as log:
            return [found.thread_id for found in islice(log.threads(prefix=incomplete), _COMPLETED)]
    except Exception:
        return []


Command: TypeAlias = Callable[..., None]
"""What a command runs."""

LogArgument = Annotated[Path, typer.Argument(metavar="LOG", help="The file of the log.", show_default=False)]
ThreadArgument = Annotated[
    str,
    typer.Argument(
        metavar="THREAD[@STEP]", help="The thread, and the step.", autocompletion=_complete_thread, show_default=False
    ),
]
WholeThreadArgument = Annotated[
    str,
    typer.Argument(metavar="THREAD", help="The thread.", autocompletion=_complete_thread, show_default=False),
]
AnyThreadArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[THREAD]", help="The thread; without, all.", autocompletion=_complete_thread, show_default=False
    ),
]
LaneOption = Annotated[
    str, typer.Option("--lane", "-l", metavar="LANE", help="Sub-graph to look at (checkpoint_ns).", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


class Reference(NamedTuple):
    """A step as it was named.

    Attributes:
        thread: Its thread.
        at: The step, as the engine takes it; None is the newest.
    """

    thread: Thread
    at: str | None


@contextmanager
def reading(path: Path) -> Iterator[Log]:
    """A log that is only looked at; others may write to it meanwhile."""
    from stepwell import Log

    check_exists(path)
    with Log.open(path, read_only=True, verify=_LOOKED_AT_BYTES) as log:
        yield log


@contextmanager
def writing(path: Path, *, create: bool = False) -> Iterator[Log]:
    """A log that is changed.  Unless it may be created it must be there."""
    from stepwell import Log

    if not create:
        check_exists(path)
    with Log.open(path) as log:
        yield log


def check_exists(path: Path) -> None:
    """Raise UsageError, with what may have been meant, unless there is a file."""
    from stepwell import UsageError

    if path.exists():
        return
    folder = path.parent
    there = sorted(name for name in os.listdir(folder) if name.endswith(".stepwell")) if folder.is_dir() else []
    hint = nearest(path.name, there)
    if not hint and there:
        hint = f"; in {str(folder)!r} there is {', '.join(map(repr, there[:5]))}"
    raise UsageError(f"there is no file {str(path)!r}{hint}")


def nearest(name: str, names: list[str]) -> str:
    """What to add to an error for a name that is none: those that it may have been meant for."""
    close = difflib.get_close_matches(name, names, 3, 0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def refer(log: Log, text: str) -> Reference:
    """The thread and the step that `THREAD[@STEP]` names.  An id with an @ in it wins over a step.

    Raises:
        UsageError: There is no such thread.
    """
    whole = log.thread(text)
    thread_id, at, step = text.rpartition("@")
    if not at or whole.row() is not None:
        return Reference(existing(whole), None)
    return Reference(existing(log.thread(thread_id)), step or None)


def settled(named: Reference, lane: str) -> tuple[Thread, int]:
    """The thread and the sequence of a step that was named: finding it by its number walks along the branch."""
    return named.thread, named.thread.resolve(named.at, lane=lane).sequence


def existing(thread: Thread) -> Thread:
    """The same thread, if it is in its log."""
    from stepwell import UsageError

    if thread.row() is None:
        names = [found.thread_id for found in islice(thread.log.threads(), _COMPARED)]
        hint = nearest(thread.id, names)
        if not hint:
            hint = (
                f"; there is {', '.join(map(repr, names[:5]))}" if 0 < len(names) <= 5 else "; `stepwell threads` lists"
            )
        raise UsageError(f"the log has no thread {thread.id!r}{hint}")
    return thread


def lane_of(thread: Thread, text: str) -> str:
    """The lane that is meant: its name, or a part of it that no other has.

    Raises:
        UsageError: There is none, or more than one.
    """
    from stepwell import UsageError

    if not text:
        return ""
    names = [lane.lane for lane in thread.lanes()]
    if text in names:
        return text
    found = [name for name in names if text in name]
    if len(found) == 1:
        return found[0]
    if found:
        hint = f"; {len(found)} have it in their names: {', '.join(map(repr, found[:3]))}"
    else:
        hint = nearest(text, names) or f"; `stepwell tree {thread.log.path} {thread.id}` shows them"
    raise UsageError(f"thread {thread.id!r} has no lane {text!r}{hint}")


def step_json(step: Any, number: int | None = None) -> dict[str, Any]:
    """A step for programs."""
    from stepwell_cli.screen import moment

    shown = {"lane": step.lane, "step": step.step_id, "parent": step.parent_id, "sequence": step.sequence}
    return {**shown, "number": number, "created_at": moment(step.created_at)}
