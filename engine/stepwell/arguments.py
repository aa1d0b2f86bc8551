"""What callers give, checked before anything is done with it: paths, texts, sequences, events."""

from __future__ import annotations

import os
from typing import Final

from stepwell.errors import UsageError
from stepwell.events import Event, Status, StepCommitted, WritesRecorded

END: Final = 1 << 62  # above every sequence, commit number and time


def checked_path(path: str | os.PathLike[str]) -> str:
    """A path as text; raises UsageError unless it can be one."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise UsageError(f"the path of a log is a str or a path, not {type(path).__name__}: {path!r}")
    check_text("path", os.fspath(path))
    if "\0" in os.fspath(path):
        raise UsageError(f"the path {os.fspath(path)!r} holds a NUL character, which no path can")
    return os.fspath(path)


def check_text(what: str, text: str) -> None:
    """Raise UsageError unless the text can be stored."""
    if text.isascii():  # as nearly all, told in a tenth of the time
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} {text!r} holds half a surrogate pair, which no UTF-8 text can") from None


def check_str(what: str, text: object) -> None:
    """Raise UsageError unless it is a text that can be stored."""
    if not isinstance(text, str):
        raise UsageError(f"the {what} is a str, not {type(text).__name__}: {text!r}")
    check_text(what, text)


def check_sequence(what: str, number: int) -> None:
    """Raise UsageError unless the number can be a sequence, or 0."""
    if not isinstance(number, int) or not 0 <= number < END:
        raise UsageError(f"the {what} is a whole number from 0, not {number!r}")


def check_event(event: Event) -> None:
    """Raise UsageError unless the event is one that callers may append, with fields that can be stored."""
    if not isinstance(event, StepCommitted | WritesRecorded):
        raise UsageError(f"append takes StepCommitted and WritesRecorded, not {type(event).__name__}")
    check_str("lane", event.lane)
    check_str("step id", event.step_id)
    if isinstance(event, StepCommitted):
        check_str("parent id", event.parent_id or "")
        check_sequence("base", event.base)
    else:
        check_str("task id", event.task_id)
        check_str("task path", event.task_path)
    check_sequence("created_at", event.created_at)
    check_status(event.status)


def check_status(status: object) -> None:
    """Raise UsageError unless it is a status, or none."""
    if status is not None and status not in tuple(Status):
        raise UsageError(f"a status is one of {', '.join(Status)}, not {status!r}")
