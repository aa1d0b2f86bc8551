"""Event loops and the writer: coroutines are woken one at a time, and what they submit becomes one group.

Coroutines that are all woken at once keep their loop busy until the last of them has encoded its next append.  So a
loop wakes one of them, does whatever else is due, and goes on: with those who wait for a group, and with those whom a
thread has answered (`turn`).

What a coroutine submits is in the writer's queue at once, but the writer is told of it only when its loop has nobody
left to wake, or has woken as many as a group holds.  Told of the first one, it would commit that alone, and both would
wait for the interpreter's lock instead of encoding what makes a large group.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio  # a third of the time that importing the engine takes: it is left to who awaits

MOST_BEFORE_RINGING: Final = 64  # coroutines that are woken while the writer is not told of what one has submitted

Waiter: TypeAlias = "tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]"


class Loops:
    """The event loops whose coroutines submit and wait.

    Args:
        ring: Tells the writer to look at its queue.  Thread-safe.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring

    def ring_later(self) -> bool:
        """Ring at the end of the turn of the loop that runs in this thread; False if there is none."""
        if "asyncio" not in sys.modules:
            return False
        from asyncio import get_running_loop

        try:
            loop = get_running_loop()
        except RuntimeError:
            return False
        _line_of(loop).ring_later(loop, self._ring)
        return True

    def wake(self, waiters: Iterable[Waiter]) -> None:
        """Wake coroutines: one call into each loop, however many of its coroutines waited.  From any thread."""
        waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for loop, future in waiters:
            waiting.setdefault(loop, []).append(future)
        for loop, futures in waiting.items():
            with suppress(RuntimeError):  # the loop was closed; nobody waits any more
                loop.call_soon_threadsafe(_wake, loop, futures)


async def turn(loop: asyncio.AbstractEventLoop, *, in_turn: bool = False) -> None:
    """Return when it is this coroutine's turn, which was woken by itself: at once if nobody else was.

    Args:
        loop: The one that it runs on.
        in_turn: It may be its turn already: then the first who asks so does not wait.
    """
    future = _line_of(loop).join(loop, in_turn)
    if future is not None:
        await future


def _wake(loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[None]]) -> None:
    _line_of(loop).wake(loop, futures)


class _Line:
    """Who is to be woken by one loop, always in its own thread."""

    def __init__(self) -> None:
        self._futures: deque[asyncio.Future[None]] = deque()
        self._rings: set[Callable[[], None]] = set()  # of writers that are to be told
        self._woken = 0  # since the first of these was to be told
        self._goes_on = False
        self._in_turn = False  # whether somebody was told that it is his turn already

    def ring_later(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        if not self._rings:
            self._woken = 0
        self._rings.add(ring)
        self._go_on_later(loop)

    def wake(self, loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[None]]) -> None:
        self._futures += futures
        if not self._goes_on:
            self._go_on(loop)

    def join(self, loop: asyncio.AbstractEventLoop, in_turn: bool) -> asyncio.Future[None] | None:
        """What a coroutine that runs must wait for; None if it is the only one so far."""
        if not self._goes_on:
            self._go_on_later(loop)
            return None
        if in_turn and not self._in_turn:
            self._in_turn = True
            return None
        future = loop.create_future()
        self._futures.append(future)
        return future

    def _go_on_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._goes_on:
            loop.call_soon(self._go_on, loop)
            self._goes_on = True

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._goes_on = self._in_turn = False
        while self._futures:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(None)
                self._woken += 1
                self._go_on_later(loop)  # behind the one that was woken now
                break
        if self._rings and (not self._goes_on or self._woken >= MOST_BEFORE_RINGING):
            rings, self._rings, self._woken = self._rings, set(), 0
            for ring in rings:
                ring()


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()


def _line_of(loop: asyncio.AbstractEventLoop) -> _Line:
    line = _lines.get(loop)
    if line is None:
        line = _lines[loop] = _Line()
    return line
