"""Event loops and the writer: who waits for a group is woken a few at a time, and what they submit becomes one group.

Coroutines that are all woken at once keep their loop busy until the last of them has encoded its next append.  So a
loop wakes a few of them, does whatever else is due, and goes on.

What a coroutine submits is in the writer's queue at once, but the writer is told of it only when its loop has nobody
left to wake.  Told of the first one, it would commit that alone, and both would wait for the interpreter's lock
instead of encoding what makes a large group.
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

WOKEN_AT_ONCE: Final = 4  # each of them encodes for less than a millisecond

Waiter: TypeAlias = "tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]"


class Loops:
    """The event loops whose coroutines submit and wait.

    Args:
        ring: Tells the writer to look at its queue.  Thread-safe.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turn] = WeakKeyDictionary()

    def ring_later(self) -> bool:
        """Ring at the end of the turn of the loop that runs in this thread; False if there is none."""
        if "asyncio" not in sys.modules:
            return False
        from asyncio import get_running_loop

        try:
            loop = get_running_loop()
        except RuntimeError:
            return False
        self._turn_of(loop).ring_later(loop)
        return True

    def wake(self, waiters: Iterable[Waiter]) -> None:
        """Wake coroutines: one call into each loop, however many of its coroutines waited.  From any thread."""
        waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for loop, future in waiters:
            waiting.setdefault(loop, []).append(future)
        for loop, futures in waiting.items():
            with suppress(RuntimeError):  # the loop was closed; nobody waits any more
                loop.call_soon_threadsafe(self._wake, loop, futures)

    def _wake(self, loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[None]]) -> None:
        self._turn_of(loop).wake(loop, futures)

    def _turn_of(self, loop: asyncio.AbstractEventLoop) -> _Turn:
        turn = self._turns.get(loop)
        if turn is None:
            turn = self._turns[loop] = _Turn(self._ring)
        return turn


class _Turn:
    """What one loop is about to do, always in its own thread."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._owes_ring = False
        self._futures: deque[asyncio.Future[None]] = deque()
        self._goes_on = False

    def ring_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._owes_ring = True
        self._go_on_later(loop)

    def wake(self, loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[None]]) -> None:
        self._futures += futures
        if not self._goes_on:
            self._go_on(loop)

    def _go_on_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._goes_on:
            loop.call_soon(self._go_on, loop)
            self._goes_on = True

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._goes_on = False
        woken = 0
        while self._futures and woken < WOKEN_AT_ONCE:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(None)
                woken += 1
        if woken:
            self._go_on_later(loop)  # behind those that were woken now
        elif self._owes_ring:
            self._owes_ring = False
            self._ring()
