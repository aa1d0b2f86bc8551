"""What an observer of a log is told: who wants to trace or meter a log gives it one (`Log.observe`).

Without one each place that would tell it costs the look at an attribute.  An observer must be quick, since the log's
own threads call it, though only after those who waited were told; what it raises is logged, and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Final, NamedTuple, ParamSpec, Protocol, TypeVar

from stepwell.storage import Committed, Operation

_log: Final = logging.getLogger("stepwell")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Span(NamedTuple):
    """When something happened: Unix times in nanoseconds."""

    began: int
    ended: int


class Member(NamedTuple):
    """An operation of a group.

    Attributes:
        operation: The operation.
        mark: What the observer gave when it was submitted; None if it was not observed then.
        outcome: What became of it, or why it failed.
    """

    operation: Operation
    mark: object
    outcome: Committed | BaseException


class Observer(Protocol):
    """Told of what a log does."""

    def submitted(self, operation: Operation) -> object:
        """An operation is about to be queued, in the thread and context of its caller; the answer is its mark."""

    def committed(self, group: Several[Member], span: Span) -> None:
        """A group was committed, or failed, and everybody who waited for it knows; in the writer's thread."""

    def sealed(self, thread_id: str, events: int, plain_bytes: int, stored_bytes: int, span: Span) -> None:
        """Events of a thread went into a segment of `stored_bytes`; in the thread that sealed them."""

    def read(self, thread: int, states: int, span: Span, error: BaseException | None) -> None:
        """States of a thread, by its number, were read or could not be; in the thread and context of the caller."""


def tell(told: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
    """Call a method of an observer, whatever it does."""
    try:
        return told(*args, **kwargs)
    except Exception:
        _log.warning("An observer of the log failed", exc_info=True)
        return None
