"""Async twins of blocking methods, each derived in one line.

A whole method is handed to a thread, never a part of one: a transaction belongs to the thread that began it.  Where
threads have answered many at once, one coroutine goes on at a time, and the loop does what else is due between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Final, ParamSpec, TypeVar

from stepwell.loops import turn

_P = ParamSpec("_P")
_T = TypeVar("_T")

_END: Final = object()


async def offload(method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a blocking method in a thread."""
    result = await asyncio.to_thread(method, *args, **kwargs)
    await turn(asyncio.get_running_loop())
    return result


async def offload_iterator(items: Iterator[_T]) -> AsyncIterator[_T]:
    """Take the items of a blocking iterator one by one, each in a thread."""
    try:
        while (item := await offload(_next, items)) is not _END:
            yield item  # type: ignore[misc]
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            # Cancelled while a thread is still taking an item: the iterator ends with that thread.
            with suppress(ValueError):
                close()


def _next(items: Iterator[_T]) -> _T | object:
    return next(items, _END)
