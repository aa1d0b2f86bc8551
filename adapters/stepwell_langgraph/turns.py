"""Where the appends of coroutines are encoded: in the event loop if it is quickly done, else in a thread.

Appends of one thread of the log are submitted in the order in which they were asked for, wherever they are encoded: one
that is light waits for a heavy one before it, even for one that was given up while a thread encodes it: that one may
still be submitted, and must not come after what was asked for later.
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
        self._lines: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], _Line] = WeakValueDictionary()

    async def begin(self, thread_id: str, begin: Begin, *, light: bool) -> Ticket:
        """Begin an append when it is its turn.

        Args:
            thread_id: The thread that it goes to.
            begin: Begins it.
            light: Whether that takes less than a millisecond, unless the log has to be read.
        """
        key = (asyncio.get_running_loop(), thread_id)
        line = self._lines.get(key)
        if light and (line is None or not line.length):
            try:
                return begin(may_read=False)
            except NotRecalled:
                pass
        if line is None:
            line = self._lines[key] = _Line()
        return await line.encode(begin)


class _Line:
    """Appends of one thread of the log that wait for each other.

    Attributes:
        length: How many wait or are encoded.  (A lock that was released a moment ago seems free to whoever comes
            before the one that waits for it wakes up.)
    """

    def __init__(self) -> None:
        self.length = 0
        self._lock = asyncio.Lock()

    async def encode(self, begin: Begin) -> Ticket:
        """Begin an append in a thread, behind those that came before."""
        self.length += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self.length -= 1
            raise
        encoding = asyncio.ensure_future(offload(begin))
        encoding.add_done_callback(self._leave)
        try:
            return await asyncio.shield(encoding)
        except asyncio.CancelledError:
            # The thread goes on: when the caller learns that it was cancelled, nothing is left to happen behind it.
            await asyncio.wait((encoding,))
            raise

    def _leave(self, _: asyncio.Future[Ticket]) -> None:
        self.length -= 1
        self._lock.release()
