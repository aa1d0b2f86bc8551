"""The stores that the contract runs over, each in its sync and its async spelling.

A store is opened for one test and run through `StoreCalls`, whose methods block in either spelling.
"""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from langgraph.store.base import BaseStore, IndexConfig, TTLConfig
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore
from langgraph.store.sqlite.aio import AsyncSqliteStore

from stepwell_langgraph import StepwellStore

# Many builds of Python's own module load no extensions, and so have no vectors.
_loads_extensions = hasattr(sqlite3.Connection, "enable_load_extension")
_connect: Any = (sqlite3 if _loads_extensions else import_module("pysqlite3")).connect

WORDS = ("tea", "coffee", "rain", "sun", "dog", "cat", "train", "boat")


class Embedder:
    """Counts a few words of each text; remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls.append(list(texts))
        return [vector_of(text) for text in texts]


def vector_of(text: str) -> list[float]:
    """The vector that `Embedder` makes of a text."""
    found = re.findall(r"[a-z]+", text.lower())
    return [float(found.count(word)) + 0.01 * (place + 1) for place, word in enumerate(WORDS)]


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """How similar two vectors are."""
    return sum(a * b for a, b in zip(left, right, strict=True)) / (math.hypot(*left) * math.hypot(*right))


def index_of(embed: Any, *fields: str) -> IndexConfig:
    """The configuration that all stores take, in the spellings of all of them."""
    return {"dims": len(WORDS), "embed": embed, "fields": list(fields)}


class StoreCalls:
    """A store's methods, the blocking ones or the async ones, which are run to their end on a loop."""

    def __init__(self, store: BaseStore, kind: str, runner: asyncio.Runner | None) -> None:
        self.store = store
        self.kind = kind
        self._runner = runner

    @property
    def is_ours(self) -> bool:
        """Whether the store is a StepwellStore."""
        return isinstance(self.store, StepwellStore)

    def __getattr__(self, name: str) -> Any:
        if self._runner is None:
            return getattr(self.store, name)
        runner, method = self._runner, getattr(self.store, f"a{name}")

        def call(*args: Any, **kwargs: Any) -> Any:
            async def running() -> Any:
                return await method(*args, **kwargs)

            return runner.run(running())

        return call

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the store's loop."""
        assert self._runner is not None
        return self._runner.run(coroutine)


@contextmanager
def opened(
    kind: str, folder: Path, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None
) -> Iterator[StoreCalls]:
    """An empty store: "file", "memory", "InMemoryStore" or "SqliteStore", each also with "async " before it."""
    name = kind.removeprefix("async ")
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if name != kind else None
        store: BaseStore
        if name == "InMemoryStore":
            store = InMemoryStore(index=index)
        elif name == "SqliteStore" and runner is not None:
            asynchronous = AsyncExitStack()

            async def enter() -> BaseStore:
                manager = AsyncSqliteStore.from_conn_string(":memory:", ttl=ttl)
                entered = await asynchronous.enter_async_context(manager)
                await entered.setup()
                return entered

            async def leave() -> None:
                await asynchronous.aclose()

            store = runner.run(enter())
            stack.callback(lambda: runner.run(leave()))
        elif name == "SqliteStore":
            connection = _connect(":memory:", check_same_thread=False, isolation_level=None)
            stack.callback(connection.close)
            settings: Any = None if index is None else {**index, "text_fields": index["fields"]}
            store = SqliteStore(connection, index=settings, ttl=ttl)
            store.setup()
        else:
            target = ":memory:" if name == "memory" else str(folder / "agents.stepwell")
            ours = stack.enter_context(StepwellStore.from_conn_string(target, index=index, ttl=ttl))
            # Every test proves the log's invariants too.
            stack.callback(lambda: _check(ours))
            store = ours
        yield StoreCalls(store, name, runner)


def _check(store: StepwellStore) -> None:
    assert store.log.audit().breaches == []
