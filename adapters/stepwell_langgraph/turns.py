"""Where the appends of coroutines are encoded: in the event loop if it is quickly done, else in a thread.

Appends of one thread of the log are submitted in the order in which they were asked for, wherever they are encoded: one
that is light waits for a heavy one before it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol
from weakref import WeakValueDictionary

from stepwell.content import NotRecalled
from stepwell.writer import Ticket
from stepwell_langgraph.offload import offload


class Begin(Protocol):
    """Encodes something and submits it."""

    def __call__(self, *, may_read: bool = True) -> Ticket:
        """Raises NotRecalled if the log has to be read for it, and may not be; then it can be called again."""


class Turns:
    """Whose turn it is to be encoded, by event loop and thread of the log."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = WeakValueDictionary()

    async def begin(self, thread_id: str, begin: Begin, *, light: bool) -> Ticket:
        """Begin an append when it is its turn.

        Args:
            thread_id: The thread that it goes to.
            begin: Begins it.
            light: Whether that takes less than a millisecond, unless the log has to be read.
        """
        key = (asyncio.get_running_loop(), thread_id)
        lock = self._locks.get(key)
        if light and (lock is None or not lock.locked()):
            try:
                return begin(may_read=False)
            except NotRecalled:
                pass
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            beginning = asyncio.ensure_future(offload(begin))
            try:
                return await asyncio.shield(beginning)
            except asyncio.CancelledError:
                # The thread goes on: when the caller learns that it was cancelled, nothing is left to happen behind it.
                await asyncio.wait((beginning,))
                raise
