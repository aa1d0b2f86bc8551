"""Stores of long-term memory: StepwellStore against SqliteStore and PostgresStore, single calls and many async users.

    python bench/store.py --items 100000 --vectors 10000,100000 --json bench/results/stores.json

Each store is opened as its documentation says, with its own defaults, in an empty directory; "sqlite-wal" is
SqliteStore in the mode that SqliteSaver sets for itself.  All hold the same items and the same vectors of 384
dimensions.  A store is opened anew before it is read; its first search, which may have to load, is shown apart from the
median of those that follow.

What a past costs is measured of ours alone: updates of few items, then the bytes on disk beside those that the values
take when they are compressed together, and how long a look at a moment takes in a log that was just opened.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy
import zstandard
from langgraph.store.base import BaseStore, GetOp, IndexConfig, PutOp

import machine
import postgres
from prose import Prose

DIMS = 384
USERS = 100
BATCH = 1_000
UPDATED = 1_000  # items whose past is measured
BLOCK = 1 << 20
WORDS = [
    "tea",
    "coffee",
    "rain",
    "sun",
    "dog",
    "cat",
    "train",
    "boat",
    "house",
    "garden",
    "letter",
    "answer",
    "question",
    "river",
    "city",
    "night",
]


def embed(texts: Sequence[str]) -> list[list[float]]:
    """Vectors of no meaning, the same for the same text."""
    seeds = [int.from_bytes(text.encode()[-8:]) for text in texts]
    return [numpy.random.default_rng(seed).standard_normal(DIMS, dtype=numpy.float32).tolist() for seed in seeds]


INDEX: IndexConfig = {"dims": DIMS, "embed": embed, "fields": ["text"]}


@dataclass(frozen=True)
class Contender:
    """A store and how it is opened.

    Attributes:
        opener: Opens what is in the directory; with an index or without.
        async_opener: The same for its async methods.
        server: Whether a PostgreSQL server must be running in the directory.
    """

    name: str
    opener: Callable[[Path, IndexConfig | None], AbstractContextManager[BaseStore]]
    async_opener: Callable[[Path], AbstractAsyncContextManager[BaseStore]]
    server: bool = False


def _stepwell(directory: Path, index: IndexConfig | None) -> AbstractContextManager[BaseStore]:
    from stepwell_langgraph import StepwellStore

    return StepwellStore.from_conn_string(directory / "log.stepwell", index=index)


def _stepwell_async(directory: Path) -> AbstractAsyncContextManager[BaseStore]:
    from stepwell_langgraph import StepwellStore

    return StepwellStore.from_conn_string(directory / "log.stepwell")


@contextmanager
def _sqlite(directory: Path, index: IndexConfig | None, *, wal: bool = False) -> Iterator[BaseStore]:
    from langgraph.store.sqlite import SqliteStore

    # Many builds of Python's own module load no extensions, and so have no vectors.
    connect: Any = sqlite3.connect
    if index is not None and not hasattr(sqlite3.Connection, "enable_load_extension"):
        import pysqlite3

        connect = pysqlite3.connect
    connection = connect(str(directory / "store.sqlite"), check_same_thread=False, isolation_level=None)
    settings: Any = None if index is None else {**index, "text_fields": index["fields"]}
    try:
        if wal:
            connection.execute("PRAGMA journal_mode=WAL")
        store = SqliteStore(connection, index=settings)
        store.setup()
        yield store
    finally:
        connection.close()


def _sqlite_wal(directory: Path, index: IndexConfig | None) -> AbstractContextManager[BaseStore]:
    return _sqlite(directory, index, wal=True)


@asynccontextmanager
async def _sqlite_async(directory: Path) -> AsyncIterator[BaseStore]:
    from langgraph.store.sqlite.aio import AsyncSqliteStore

    async with AsyncSqliteStore.from_conn_string(str(directory / "store.sqlite")) as store:
        await store.setup()
        yield store


@contextmanager
def _postgres(directory: Path, index: IndexConfig | None) -> Iterator[BaseStore]:
    from langgraph.store.postgres import PostgresStore

    with PostgresStore.from_conn_string(postgres.address(directory), index=index) as store:  # type: ignore[arg-type]
        store.setup()
        yield store


@asynccontextmanager
async def _postgres_async(directory: Path) -> AsyncIterator[BaseStore]:
    from langgraph.store.postgres import AsyncPostgresStore

    async with AsyncPostgresStore.from_conn_string(postgres.address(directory)) as store:
        await store.setup()
        yield store


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("stepwell", _stepwell, _stepwell_async),
        Contender("sqlite", _sqlite, _sqlite_async),
        Contender("sqlite-wal", _sqlite_wal, _sqlite_async),
        Contender("postgres", _postgres, _postgres_async, server=True),
    )
}


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    items: int
    vectors: list[int]
    users: int
    rounds: int
    puts: int = 100


def item(number: int) -> tuple[tuple[str, ...], str, dict[str, Any]]:
    """Namespace, key and value of the item with a number."""
    chance = random.Random(number)
    text = " ".join(chance.choices(WORDS, k=16))
    value = {"text": f"{text} {number:07}", "kind": chance.choice(WORDS), "score": chance.random()}
    return ("users", f"user {number % USERS}", "memories"), f"memory {number}", value


class Clock:
    """Times of one contender."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def take(self, name: str, times: int, call: Callable[[int], Any], *, first: bool = False) -> None:
        """The median of some calls; the first of them apart, if it may have to load."""
        taken = []
        for number in range(times + first):
            begin = time.perf_counter()
            call(number)
            taken.append(time.perf_counter() - begin)
        if first:
            self.seconds[f"{name}, first"] = taken.pop(0)
        self.seconds[name] = statistics.median(taken)


def measure(contender: Contender, directory: Path, scale: Scale, clock: Clock) -> None:
    """Plain items: single calls, batches, searches."""
    with contender.opener(directory, None) as store:
        _fill(store, range(scale.items), index=False)
    with contender.opener(directory, None) as store:
        chance = random.Random(1)
        some = [item(chance.randrange(scale.items)) for _ in range(1_000)]
        clock.take("get", len(some), lambda n: store.get(*some[n][:2]))
        clock.take("get again", len(some), lambda n: store.get(*some[n][:2]))
        hundred = [GetOp(*each[:2]) for each in some[:100]]
        clock.take("batch of 100 gets", 20, lambda n: store.batch(hundred))
        kind, rare = {"kind": "tea"}, {"kind": "tea", "score": {"$gt": 0.9999}}
        clock.take("search all, filter", 5, lambda n: store.search(("users",), filter=kind), first=True)
        clock.take("search all, rare filter", 5, lambda n: store.search(("users",), filter=rare))
        one = [("users", f"user {n % USERS}") for n in range(50)]
        clock.take("search one user, filter", 50, lambda n: store.search(one[n], filter=kind))
        clock.take("put", scale.puts, lambda n: store.put(("new",), f"{n}", item(n)[2]))
        batches = [[PutOp(("new",), f"{n} {m}", item(m)[2]) for m in range(100)] for n in range(scale.puts // 5)]
        clock.take("batch of 100 puts", len(batches), lambda n: store.batch(batches[n]))


def measure_vectors(contender: Contender, directory: Path, vectors: int, clock: Clock) -> None:
    """Semantic search over so many vectors, in one namespace prefix."""
    with contender.opener(directory, INDEX) as store:
        _fill(store, range(vectors), index=None)
    with contender.opener(directory, INDEX) as store:
        queries = [f"what is it {n:07}" for n in range(11)]
        embed_seconds = statistics.median(_timed(partial(embed, [query])) for query in queries)
        name = f"semantic search, {vectors:,} vectors"
        clock.take(name, 10, lambda n: store.search(("users",), query=queries[n]), first=True)
        clock.seconds[name] -= embed_seconds


async def measure_users(contender: Contender, directory: Path, scale: Scale, clock: Clock) -> None:
    """Many users at once: each gets, searches and puts, one after the other."""
    async with contender.async_opener(directory) as store:

        async def read(user: int) -> None:
            for n in range(scale.rounds):
                await store.aget(*item(user + n * USERS)[:2])

        async def use(user: int) -> None:
            for n in range(scale.rounds):
                namespace, key, value = item(user + n * USERS)
                await store.aget(namespace, key)
                await store.aput(namespace, key, value)
                await store.asearch(namespace, filter={"kind": "tea"})

        for name, work, calls in (("aget", read, 1), ("aget, aput, asearch", use, 3)):
            begin = time.perf_counter()
            await asyncio.gather(*(work(user) for user in range(scale.users)))
            seconds = time.perf_counter() - begin
            clock.seconds[f"{scale.users} users: {name}, each call"] = seconds / (scale.users * scale.rounds * calls)


def measure_past(directory: Path, updates: int, characters: int) -> dict[str, float]:
    """Updates of `UPDATED` items, ten to a batch: bytes on disk after sealing, and looks at moments, each first."""
    from stepwell_langgraph import StepwellStore

    prose, chance = Prose(characters), random.Random(2)
    puts = [
        PutOp(
            ("users", f"user {n % USERS}", "memories"),
            f"memory {n % UPDATED}",
            {"text": prose.text(characters), "n": n},
        )
        for n in range(updates)
    ]
    path = directory / "log.stepwell"
    with StepwellStore.from_conn_string(path) as store:
        for start in range(0, updates, 10):
            store.batch(puts[start : start + 10])
        store.log.seal()
    values = b"".join(msgspec.msgpack.encode(put.value) for put in puts)
    compress = zstandard.ZstdCompressor(level=3).compress
    compressed = sum(len(compress(values[start : start + BLOCK])) for start in range(0, len(values), BLOCK))
    moments = []
    for put in chance.sample(puts, 20):
        with StepwellStore.from_conn_string(path) as store:
            commit = chance.randrange(UPDATED // 10 + 1, updates // 10)
            moments.append(_timed(partial(store.get, put.namespace, put.key, as_of=commit)))
    return {
        "values, bytes": len(values),
        "values compressed, bytes": compressed,
        "on disk, bytes": path.stat().st_blocks * 512,
        "on disk / values compressed": path.stat().st_blocks * 512 / compressed,
        "get as of a commit, first: median, seconds": statistics.median(moments),
        "get as of a commit, first: largest, seconds": max(moments),
    }


def _fill(store: BaseStore, numbers: range, *, index: bool | None) -> None:
    for start in range(0, len(numbers), BATCH):
        chosen: Any = False if index is False else None
        store.batch([PutOp(*item(n), index=chosen) for n in numbers[start : start + BATCH]])


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@contextmanager
def _place(contender: Contender) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="stepwell-", dir="/var/tmp") as folder:
        directory = Path(folder)
        if contender.server:
            with postgres.Server(directory, extension="vector"):
                yield directory
        else:
            yield directory


def run(contender: Contender, scale: Scale) -> dict[str, float]:
    """All times of one contender, in seconds."""
    clock = Clock()
    with _place(contender) as directory:
        measure(contender, directory, scale, clock)
        asyncio.run(measure_users(contender, directory, scale, clock))
    for vectors in scale.vectors:
        with _place(contender) as directory:
            try:
                measure_vectors(contender, directory, vectors, clock)
            except Exception as error:  # no pgvector, no module that loads extensions: that is a result too
                print(f"{contender.name}: no vectors: {error}")
                break
    return clock.seconds


def table(results: dict[str, dict[str, float]]) -> str:
    """The times as a page shows them, and how many times less ours are."""
    names = list(results)
    lines = [f"| | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    ours = results.get("stepwell", {})
    for what in dict.fromkeys(what for seconds in results.values() for what in seconds):
        cells = []
        for name in names:
            seconds = results[name].get(what)
            if seconds is None:
                cells.append("-")
            elif name == "stepwell" or what not in ours:
                cells.append(_shown(seconds))
            else:
                cells.append(f"{_shown(seconds)} ({seconds / ours[what]:.1f}x)")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--vectors", default="10000,100000")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10, help="of each user")
    parser.add_argument("--updates", type=int, default=100_000, help="of 1,000 items, to measure their past")
    parser.add_argument("--characters", default="400,1000", help="of the values of these updates")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    scale = Scale(given.items, [int(n) for n in given.vectors.split(",") if n], given.users, given.rounds)
    results = {}
    for name in given.contenders.split(","):
        results[name] = run(CONTENDERS[name], scale)
        print(f"{name}: done")
    print(table(results))
    past = {}
    for characters in given.characters.split(",") if given.updates else []:
        with tempfile.TemporaryDirectory(prefix="stepwell-", dir="/var/tmp") as folder:
            past[characters] = measure_past(Path(folder), given.updates, int(characters))
        print(f"{given.updates:,} updates of {characters} characters:")
        print("".join(f"  {what}: {found:,.4g}\n" for what, found in past[characters].items()))
    if given.json is not None:
        found = {
            "machine": machine.machine(Path("/var/tmp")),
            "versions": machine.versions(),
            "commit": machine.commit(),
            "scale": vars(given) | {"json": None},
            "seconds": results,
            "past": past,
        }
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
