"""Async twins of blocking methods, each derived in one line.

A whole method is handed to a thread, never a part of one: a transaction belongs to the thread that began it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Final, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_END: Final = object()


async def offload(method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a blocking method in a thread."""
    return await asyncio.to_thread(method, *args, **kwargs)


async def offload_iterator(items: Iterator[_T]) -> AsyncIterator[_T]:
    """Take the items of a blocking iterator one by one, each in a thread."""
    try:
        while (item := await asyncio.to_thread(_next, items)) is not _END:
            yield item  # type: ignore[misc]
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            # Cancelled while a thread is still taking an item: the iterator ends with that thread.
            with suppress(ValueError):
                close()


def _next(items: Iterator[_T]) -> _T | object:
    return next(items, _END)
