"""Drives a scenario through LangGraph's sync or async methods, over a saver that can be closed and reopened.

A scenario is written once, as a coroutine that awaits the methods of a `Run`.  In a sync run these call the
sync methods of the graph and never suspend, so the coroutine is stepped by hand and no event loop exists; in
an async run they await the async methods and `asyncio.run` drives all.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import StateSnapshot

from agents.agents import Build, Saver
from agents.history import Portrait, Rendered, render

T = TypeVar("T")


class SaverFile:
    """A saver that `open` makes anew over the same file, in the sync or the async way."""

    def __init__(
        self,
        path: Path,
        open_sync: Callable[[Path], AbstractContextManager[Saver]],
        open_async: Callable[[Path], AbstractAsyncContextManager[Saver]],
        *,
        in_memory: bool = False,
    ) -> None:
        self.path = path
        self.in_memory = in_memory
        self.open_sync = open_sync
        self.open_async = open_async
        self._stack = AsyncExitStack()

    async def open(self, asynchronous: bool) -> Saver:
        if asynchronous:
            return await self._stack.enter_async_context(self.open_async(self.path))
        return self._stack.enter_context(self.open_sync(self.path))

    async def close(self) -> None:
        await self._stack.aclose()


def stepwell(path: Path) -> SaverFile:
    from stepwell_langgraph import StepwellSaver

    def opened(path: Path) -> Any:
        return StepwellSaver.from_conn_string(str(path))

    return SaverFile(path, opened, opened)


def sqlite(path: Path) -> SaverFile:
    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    return SaverFile(
        path,
        lambda path: SqliteSaver.from_conn_string(str(path)),
        lambda path: AsyncSqliteSaver.from_conn_string(str(path)),
    )


def memory(path: Path) -> SaverFile:
    saver = InMemorySaver()

    @asynccontextmanager
    async def opened(path: Path) -> AsyncIterator[Saver]:
        yield saver

    return SaverFile(path, lambda path: nullcontext(saver), opened, in_memory=True)


# What the tests run over: "stepwell" unless the environment names another one, to debug the tests with.
CONTENDER = os.environ.get("STEPWELL_CONTENDER", "stepwell")
CONTENDERS: Mapping[str, Callable[[Path], SaverFile]] = {
    "stepwell": stepwell,
    "sqlite": sqlite,
    "memory": memory,
}


@dataclass
class Run:
    """One run of a scenario: the agent, the saver below it, and what the scenario noted."""

    file: SaverFile
    asynchronous: bool
    durability: str
    thread_id: str = "thread-1"
    notes: list[tuple[str, Any]] = field(default_factory=list)
    _build: Build | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {"configurable": {"thread_id": self.thread_id}, "recursion_limit": 500}

    def at(self, snapshot: StateSnapshot) -> dict[str, Any]:
        """The config that addresses a past checkpoint."""
        return {**self.config, **snapshot.config}

    async def start(self, build: Build) -> None:
        self._build = build
        self.saver = await self.file.open(self.asynchronous)
        self.graph = build(self.saver)

    async def reopen(self, *, compare: bool = True) -> None:
        """Close the saver, open the file, build the agent again; all checkpoints read as before, id by id.

        In memory there is nothing to open: the agent that goes on as it is shows what restarts must not change.
        """
        assert self._build is not None
        if self.file.in_memory:
            return
        before = await self._bytes() if compare else None
        await self.file.close()
        await self.start(self._build)
        if compare:
            assert await self._bytes() == before, "reopening changed the history"

    async def invoke(self, given: Any, config: Any = None) -> Any:
        if self.asynchronous:
            return await self.graph.ainvoke(given, config or self.config, durability=self.durability)
        return self.graph.invoke(given, config or self.config, durability=self.durability)

    async def invoke_and_note(self, label: str, given: Any, config: Any = None) -> Any:
        """Invoke; what it returns belongs to what two runs must share."""
        result = await self.invoke(given, config)
        if isinstance(result, dict) and "__interrupt__" in result:
            # Tasks that interrupt at the same time are reported as they finish: LangGraph leaves this open.
            # The snapshots, which are compared too, show them in the order of the tasks.
            result = {**result, "__interrupt__": sorted(result["__interrupt__"], key=lambda i: repr(i.value))}
        self.note(label, result)
        return result

    async def invoke_all(self, given: Mapping[str, Any]) -> list[Any]:
        """Invoke the agent on many threads at the same time."""
        inputs = list(given.values())
        configs = [{**self.config, "configurable": {"thread_id": thread_id}} for thread_id in given]
        if self.asynchronous:
            return await self.graph.abatch(inputs, configs, durability=self.durability)
        return self.graph.batch(inputs, configs, durability=self.durability)

    async def state(self, config: Any = None, *, subgraphs: bool = False) -> StateSnapshot:
        if self.asynchronous:
            return await self.graph.aget_state(config or self.config, subgraphs=subgraphs)
        return self.graph.get_state(config or self.config, subgraphs=subgraphs)

    async def update(self, config: Any, values: Any, as_node: str | None = None) -> dict[str, Any]:
        if self.asynchronous:
            return await self.graph.aupdate_state(config, values, as_node)
        return self.graph.update_state(config, values, as_node)

    async def history(self, config: Any = None, **options: Any) -> list[StateSnapshot]:
        if self.asynchronous:
            return await _gathered(self.graph.aget_state_history(config or self.config, **options))
        return await _gathered(self.graph.get_state_history(config or self.config, **options))

    async def listing(self, config: Any) -> list[CheckpointTuple]:
        if self.asynchronous:
            return await _gathered(self.saver.alist(config))
        return await _gathered(self.saver.list(config))

    def note(self, label: str, value: Any) -> None:
        """Keep a value for the comparison at the end.

        The object itself is kept: what was handed out once must not change with what comes later.
        """
        self.notes.append((label, value))

    async def portrait(self) -> Portrait:
        """All that can be read of the thread, through `list` without a namespace and `get_state_history`."""
        checkpoints = await self._checkpoints()
        snapshots = {namespace: await self.history(self._thread(checkpoint_ns=namespace)) for namespace in checkpoints}
        return Portrait(checkpoints, snapshots)

    def _thread(self, **more: str) -> dict[str, Any]:
        return {"configurable": {"thread_id": self.thread_id, **more}}

    async def _checkpoints(self) -> dict[str, list[CheckpointTuple]]:
        """By namespace, the newest first; across namespaces LangGraph leaves the order of `list` open."""
        checkpoints: defaultdict[str, list[CheckpointTuple]] = defaultdict(list)
        for saved in await self.listing(self._thread()):
            checkpoints[saved.config["configurable"]["checkpoint_ns"]].append(saved)
        return dict(sorted(checkpoints.items()))

    async def _bytes(self) -> bytes:
        """Every checkpoint as it stands, ids and times included."""
        return JsonPlusSerializer().dumps_typed(await self._checkpoints())[1]

    async def close(self) -> None:
        await self.file.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


async def _gathered(items: Iterable[T] | AsyncIterable[T]) -> list[T]:
    if isinstance(items, AsyncIterable):
        return [item async for item in items]
    return list(items)


Scenario = Callable[[Run], Coroutine[Any, Any, None]]


async def perform(scenario: Scenario, file: SaverFile, asynchronous: bool, durability: str) -> Rendered:
    """Run a scenario, reopen the file, and return what the thread then shows."""
    async with Run(file, asynchronous, durability) as run:
        await scenario(run)
        run.note("final state", await run.state(subgraphs=True))
        await run.reopen()
        run.note("final state, reopened", await run.state(subgraphs=True))
        return render(await run.portrait(), run.notes)


def drive(coroutine: Coroutine[Any, Any, T], asynchronous: bool) -> T:
    """The coroutine's result: from an event loop, or by hand where nothing in it suspends."""
    if asynchronous:
        return asyncio.run(coroutine)
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a sync run suspended")
