"""An opened saver, and the event loop that its asynchronous methods run on, if they are what is measured."""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, DeltaChannelHistory

Saver = BaseCheckpointSaver[Any]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Store:
    """A saver that is open.

    Attributes:
        loop: Where its asynchronous methods are called; None if its blocking ones are.
    """

    saver: Saver
    loop: asyncio.AbstractEventLoop | None = None

    def blocking(self, saver: Saver) -> Saver:
        """A saver around this one, with methods that block, for those who make calls one after the other."""
        return saver if self.loop is None else OnLoop(saver, self.loop)


@contextmanager
def opened(saver: AbstractContextManager[Saver]) -> Iterator[Store]:
    """A saver whose blocking methods are measured."""
    with saver as entered:
        yield Store(entered)


@contextmanager
def opened_on_loop(saver: AbstractAsyncContextManager[Saver]) -> Iterator[Store]:
    """A saver whose asynchronous methods are measured."""
    loop = asyncio.new_event_loop()
    try:
        entered = loop.run_until_complete(saver.__aenter__())
        try:
            yield Store(entered, loop)
        finally:
            loop.run_until_complete(saver.__aexit__(None, None, None))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class OnLoop(BaseCheckpointSaver[Any]):
    """Blocking methods that run the asynchronous ones of another saver, from the thread that the loop belongs to.

    Waking the loop for each call costs 20-50 us, so whoever times the calls must do it inside of it.
    """

    def __init__(self, saver: Saver, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(serde=saver.serde)
        self._saver = saver
        self._loop = loop

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self._saver.get_next_version(current, channel)

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        return self._wait(self._saver.aget_tuple(config))

    def list(
        self, config: Any, *, filter: Any = None, before: Any = None, limit: int | None = None
    ) -> Iterator[CheckpointTuple]:
        items = aiter(self._saver.alist(config, filter=filter, before=before, limit=limit))
        while (item := self._wait(anext(items, None))) is not None:
            yield item

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return self._wait(self._saver.aput(config, checkpoint, metadata, new_versions))

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self._wait(self._saver.aput_writes(config, writes, task_id, task_path))

    def get_delta_channel_history(self, *, config: Any, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        return self._wait(self._saver.aget_delta_channel_history(config=config, channels=channels))

    def _wait(self, awaitable: Awaitable[_T]) -> _T:
        async def wait() -> _T:
            return await awaitable

        return self._loop.run_until_complete(wait())
