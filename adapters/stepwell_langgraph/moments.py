"""Moments of a log, as users name them: a time, a commit number, or a step of a thread."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from langchain_core.runnables import RunnableConfig

from stepwell.errors import UsageError
from stepwell.log import Log
from stepwell_langgraph.addresses import Address, check_id, read_address

AsOf: TypeAlias = datetime | int | RunnableConfig | tuple[str, str]
"""A time with its zone; a commit number; the config of a thread, or thread id and checkpoint id: when that
checkpoint was committed, or the head of the thread if the config names none."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = (1 << 62) - 1  # Unix time in nanoseconds
_MICROSECOND: Final = timedelta(microseconds=1)


def commit_of(log: Log, as_of: AsOf) -> int:
    """The number of the last commit that belongs to the moment.

    Raises:
        UsageError: It names no moment, or a step that is not in the log.
    """
    if isinstance(as_of, datetime):
        if as_of.tzinfo is None:
            raise UsageError(
                f"as_of needs a time with its zone, not {as_of!r}: pass datetime.now(timezone.utc) or alike"
            )
        return log.items.commit_at(min(max(to_nanoseconds(as_of), 0), _LATEST))
    if isinstance(as_of, int) and not isinstance(as_of, bool):
        if as_of < 0:
            raise UsageError(f"as_of is a commit number from 0, not {as_of!r}")
        return as_of
    if isinstance(as_of, Mapping):
        address = read_address(as_of)
    elif isinstance(as_of, tuple) and len(as_of) == 2:
        address = Address(check_id("thread_id", as_of[0]), None, check_id("checkpoint_id", as_of[1]))
    else:
        raise UsageError(
            f"as_of is a datetime, a commit number, the config of a thread or (thread_id, checkpoint_id), not {as_of!r}"
        )
    commit = log.thread(address.thread_id).commit_of(address.checkpoint_id, lane=address.lane)
    if commit is None:
        raise UsageError(
            f"as_of names no checkpoint of the log {log.path!r}: there is no {address.checkpoint_id or 'checkpoint'!r} "
            f"in thread {address.thread_id!r}, namespace {address.lane!r}"
        )
    return commit


def to_datetime(nanoseconds: int) -> datetime:
    """A moment of Unix time, to the microsecond."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return _EPOCH + timedelta(0, seconds, rest // 1000)  # by name it takes twice as long


def to_nanoseconds(moment: datetime) -> int:
    """Inverse of `to_datetime`."""
    return (moment - _EPOCH) // _MICROSECOND * 1000
