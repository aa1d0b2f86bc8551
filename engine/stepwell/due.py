"""Whether something is left to run after a step, as the channels of a LangGraph state say (SPEC.md, section 17.5).

Some say it by their name alone: an input that waits, an edge that was taken.  Of Sends, and of a join that waits for
several, the value tells.  Values may be LangGraph's objects, or the data that `inspect` makes of what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from stepwell.events import Status
from stepwell.inspect import Opaque, Typed

INPUT: Final = "__start__"
SENDS: Final = "__pregel_tasks"
_BRANCH: Final = "branch:to:"
_JOIN: Final = "join:"
_TUPLE: Final = "builtins.tuple"
_SETS: Final = ("builtins.set", "builtins.frozenset")


def is_telling(name: str) -> bool:
    """Whether a channel can make something run next."""
    return name in (INPUT, SENDS) or name.startswith((_BRANCH, _JOIN))


def status_of_channels(names: Iterable[str], value: Callable[[str], Any]) -> Status | None:
    """Running if something is left to run, else done; None if that stands where nobody can look.

    Args:
        names: The channels that have a value.
        value: Gives the value of one; asked only for those whose value tells.
    """
    is_known = True
    for name in names:
        if name == INPUT or name.startswith(_BRANCH):
            return Status.RUNNING
        if name == SENDS or name.startswith(_JOIN):
            due = _is_due(name, value(name))
            if due:
                return Status.RUNNING
            is_known = is_known and due is not None
    return Status.DONE if is_known else None


def _is_due(name: str, value: Any) -> bool | None:
    """Whether there are Sends, or all have come to a join; None if the value cannot be looked at."""
    value = _opened(value)
    if isinstance(value, Opaque):
        return None
    if name == SENDS:
        return bool(value)
    seen = _opened(value[0]) if isinstance(value, tuple | list) and value else value  # a deferred join has a flag, too
    if isinstance(seen, Opaque):
        return None
    if not isinstance(seen, set | frozenset) or not seen:
        return False
    # The channel is named after those that it waits for, who are all here if together they are as long.
    return len("+".join(map(str, seen))) == len(name[len(_JOIN) :].rpartition(":")[0])


def _opened(value: Any) -> Any:
    """A tuple or set that is shown as data, as what it is."""
    if isinstance(value, Typed) and isinstance(items := value.fields.get("value"), list):
        if value.type == _TUPLE:
            return tuple(items)
        if value.type in _SETS:
            return set(map(str, items))
    return value
