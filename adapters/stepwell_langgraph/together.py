"""Questions of many coroutines that are answered together: one turn in a thread for all that wait.

While a thread answers some, the next ones gather.  A hand-over between threads costs more than most answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from stepwell.loops import turn
from stepwell_langgraph.offload import offload

_Q = TypeVar("_Q")
_A = TypeVar("_A")


class Together(Generic[_Q, _A]):
    """Answers questions in threads, those of one event loop together.

    Args:
        answer: Answers several questions, in their order.  It is called in a thread.
    """

    def __init__(self, answer: Callable[[Sequence[_Q]], Sequence[_A]]) -> None:
        self._answer = answer
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[_Q, asyncio.Future[_A]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, question: _Q) -> _A:
        """The answer to a question, found after this call."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = []
            task = loop.create_task(self._run(loop, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        future: asyncio.Future[_A] = loop.create_future()
        waiting.append((question, future))
        answer = await future
        await turn(loop)
        return answer

    async def _run(self, loop: asyncio.AbstractEventLoop, waiting: list[tuple[_Q, asyncio.Future[_A]]]) -> None:
        taken: list[tuple[_Q, asyncio.Future[_A]]] = []
        try:
            while waiting:
                taken = waiting[:]
                del waiting[:]
                try:
                    answers = await offload(self._answer, [question for question, _ in taken])
                except Exception as error:
                    for _, future in taken:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for (_, future), answer in zip(taken, answers, strict=True):
                        if not future.done():  # given up meanwhile
                            future.set_result(answer)
        finally:
            # Here without a word to some only if the loop comes to its end.
            del self._waiting[loop]
            for _, future in [*taken, *waiting]:
                future.cancel()
