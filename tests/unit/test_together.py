"""Questions of coroutines: answered together, each its own answer, errors and cancellation included."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from stepwell_langgraph.together import Together


async def test_those_that_wait_are_answered_together() -> None:
    """What is asked while a thread answers is answered at once afterwards; each gets its own answer."""
    asked: list[list[int]] = []
    begin = threading.Event()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def double(numbers: Sequence[int]) -> list[int]:
        asked.append(list(numbers))
        loop.call_soon_threadsafe(begun.set)
        begin.wait(10)
        return [2 * number for number in numbers]

    together = Together(double)
    first = asyncio.create_task(together.ask(1))
    await begun.wait()
    rest = [asyncio.create_task(together.ask(number)) for number in range(2, 30)]
    await asyncio.sleep(0)
    begin.set()
    assert [await task for task in (first, *rest)] == [2 * number for number in range(1, 30)]
    assert asked == [[1], list(range(2, 30))]
    assert await together.ask(7) == 14


async def test_one_that_gives_up_takes_nobody_along() -> None:
    """Cancelling one wait leaves the others their answers."""
    together: Together[int, int] = Together(lambda numbers: [2 * number for number in numbers])
    given_up, other = asyncio.create_task(together.ask(1)), asyncio.create_task(together.ask(2))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await other == 4
    with pytest.raises(asyncio.CancelledError):
        await given_up


async def test_an_error_is_told_to_all_who_asked() -> None:
    """And the next question is answered again."""
    fails = [True]

    def answer(numbers: Sequence[int]) -> Sequence[int]:
        if fails.pop():
            raise ValueError("no")
        return numbers

    together = Together(answer)
    results = await asyncio.gather(together.ask(1), together.ask(2), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    fails.append(False)
    assert await together.ask(3) == 3


def test_loops_come_and_go() -> None:
    """Each loop has its own line, and leaves nothing behind."""
    together: Together[int, int] = Together(lambda numbers: list(numbers))
    for number in range(3):
        assert asyncio.run(together.ask(number)) == number
    assert together._waiting == {}
