"""The savers that are compared, behind one protocol.

Each one is opened the way its documentation says, with its own defaults, in an empty directory of its own.  A
rival's package is imported only when the rival is opened.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from stat import S_ISREG
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

import postgres
from stores import Saver, Store, opened, opened_on_loop
from usage import Usage, usage

LMDB_MAP_BYTES = 256 << 30  # lmdb's default of 10 MB would end any of the workloads
BLOCK_BYTES = 512  # of st_blocks
POOL_SIZE = 20  # this and the options are what the documentation of PostgresSaver opens a pool with
POOL_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0}
SERVER_LOG = "pg_wal"  # a folder that keeps up to a gigabyte for reuse, whatever was stored


@dataclass(frozen=True)
class DiskUse:
    """What a contender's directory takes.

    Attributes:
        allocated_bytes: Blocks of all files but a server's write-ahead log.
        server_log_bytes: Blocks of that log.
        apparent_bytes: The lengths of all files that `ls` shows.
    """

    allocated_bytes: int
    server_log_bytes: int
    apparent_bytes: int


@dataclass(frozen=True)
class Contender:
    """One saver and how it is opened.

    Attributes:
        module: What `load` imports.
        opener: Opens what is in the directory, or makes it; a server's tables are there already.
        keeps_whole_states_in: "disk" or "memory" where each put stores all values again, to judge what fits.
        persistent: Whether another process can read what was stored.
        stores: False for the harness alone, which is there to be subtracted, not compared.
        server: Whether a PostgreSQL server must be running in the directory.
        seal: Puts into its final form what closing leaves as it is, where a saver makes that difference.
    """

    name: str
    label: str
    module: str
    durability: str
    opener: Callable[[Path], AbstractContextManager[Store]]
    keeps_whole_states_in: str | None = None
    persistent: bool = True
    stores: bool = True
    server: bool = False
    seal: Callable[[Saver], object] | None = None

    def load(self) -> None:
        """Import the saver's package, which is no part of opening a store."""
        import_module(self.module)

    def prepare(self, directory: Path) -> None:
        """Once, before a new store is opened: make a server's tables, as its documentation asks for."""
        if self.server:
            from langgraph.checkpoint.postgres import PostgresSaver

            with PostgresSaver.from_conn_string(postgres.address(directory)) as saver:
                saver.setup()

    def open(self, directory: Path) -> AbstractContextManager[Store]:
        """Create or open what is in the directory; leaving the context closes it."""
        return self.opener(directory)

    def settle(self, directory: Path) -> None:
        """After closing: a server writes what it still holds, as closing makes an embedded store do."""
        if self.server:
            postgres.checkpoint(directory)

    def usage(self, directory: Path) -> Usage:
        """What this process and the server, if there is one, have used so far."""
        return usage(postgres.process_id(directory) if self.server else None)

    @staticmethod
    def disk_use(directory: Path) -> DiskUse:
        """All files of the directory: data, write-ahead logs and lock files alike."""
        data, log, lengths = 0, 0, 0
        for path in directory.rglob("*"):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                found = path.lstat()
                if S_ISREG(found.st_mode):
                    lengths += found.st_size
                    if SERVER_LOG in path.parts:
                        log += found.st_blocks * BLOCK_BYTES
                    else:
                        data += found.st_blocks * BLOCK_BYTES
        return DiskUse(data, log, lengths)


def _stepwell(directory: Path) -> AbstractContextManager[Store]:
    from stepwell_langgraph import StepwellSaver

    return opened(StepwellSaver.from_conn_string(str(directory / "log.stepwell")))


def _stepwell_async(directory: Path) -> AbstractContextManager[Store]:
    from stepwell_langgraph import StepwellSaver

    return opened_on_loop(StepwellSaver.from_conn_string(str(directory / "log.stepwell")))


def _seal(saver: Any) -> None:
    saver.log.seal()


def _memory(_: Path) -> AbstractContextManager[Store]:
    from langgraph.checkpoint.memory import InMemorySaver

    return opened(nullcontext(InMemorySaver()))


def _sqlite(directory: Path) -> AbstractContextManager[Store]:
    from langgraph.checkpoint.sqlite import SqliteSaver

    return opened(SqliteSaver.from_conn_string(str(directory / "checkpoints.sqlite")))


def _sqlite_async(directory: Path) -> AbstractContextManager[Store]:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    return opened_on_loop(AsyncSqliteSaver.from_conn_string(str(directory / "checkpoints.sqlite")))


def _postgres(directory: Path) -> AbstractContextManager[Store]:
    from langgraph.checkpoint.postgres import PostgresSaver

    return opened(PostgresSaver.from_conn_string(postgres.address(directory)))


def _postgres_async(directory: Path) -> AbstractContextManager[Store]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    return opened_on_loop(AsyncPostgresSaver.from_conn_string(postgres.address(directory)))


@contextmanager
def _postgres_pool(directory: Path) -> Iterator[Store]:
    from langgraph.checkpoint.postgres import PostgresSaver
    from psycopg_pool import ConnectionPool

    with ConnectionPool(postgres.address(directory), max_size=POOL_SIZE, kwargs=POOL_OPTIONS) as pool:
        yield Store(PostgresSaver(pool))  # type: ignore[arg-type]


def _postgres_pool_async(directory: Path) -> AbstractContextManager[Store]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg_pool import AsyncConnectionPool

    @asynccontextmanager
    async def saver() -> AsyncIterator[Saver]:
        address = postgres.address(directory)
        async with AsyncConnectionPool(address, max_size=POOL_SIZE, kwargs=POOL_OPTIONS, open=False) as pool:
            yield AsyncPostgresSaver(pool)  # type: ignore[arg-type]

    return opened_on_loop(saver())


@contextmanager
def _lmdb(directory: Path) -> Iterator[Store]:
    import lmdb
    from langgraph_checkpoint_lmdb import LMDBSaver  # type: ignore[import-untyped]

    with lmdb.open(str(directory), max_dbs=10, map_size=LMDB_MAP_BYTES) as environment:
        yield Store(LMDBSaver(environment))


class _Nothing(BaseCheckpointSaver[str]):
    """Stores nothing: what is measured with it is the harness."""

    def get_next_version(self, current: str | None, channel: None) -> str:
        return f"{int((current or '0').split('.')[0]) + 1:032}.{0:016}"

    def get_tuple(self, config: Any) -> None:
        return None

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return config

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        return None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(
            "stepwell",
            "StepwellSaver",
            "stepwell_langgraph",
            "each call synced, group commit",
            _stepwell,
            seal=_seal,
        ),
        Contender(
            "stepwell-async",
            "StepwellSaver, async",
            "stepwell_langgraph",
            "each call synced, group commit",
            _stepwell_async,
            seal=_seal,
        ),
        Contender(
            "sqlite",
            "SqliteSaver",
            "langgraph.checkpoint.sqlite",
            "each call synced (WAL, synchronous=FULL)",
            _sqlite,
            keeps_whole_states_in="disk",
        ),
        Contender(
            "sqlite-async",
            "AsyncSqliteSaver",
            "langgraph.checkpoint.sqlite.aio",
            "each call synced (WAL, synchronous=FULL)",
            _sqlite_async,
            keeps_whole_states_in="disk",
        ),
        Contender(
            "postgres",
            "PostgresSaver",
            "langgraph.checkpoint.postgres",
            "each call synced (fsync and synchronous_commit on)",
            _postgres,
            keeps_whole_states_in="disk",
            server=True,
        ),
        Contender(
            "postgres-async",
            "AsyncPostgresSaver",
            "langgraph.checkpoint.postgres.aio",
            "each call synced (fsync and synchronous_commit on)",
            _postgres_async,
            keeps_whole_states_in="disk",
            server=True,
        ),
        Contender(
            "memory",
            "InMemorySaver",
            "langgraph.checkpoint.memory",
            "none: lost with the process",
            _memory,
            keeps_whole_states_in="memory",
            persistent=False,
        ),
        Contender(
            "lmdb",
            "LMDBSaver",
            "langgraph_checkpoint_lmdb",
            "each call synced (lmdb's default)",
            _lmdb,
            keeps_whole_states_in="disk",
        ),
        Contender(
            "nothing",
            "(harness alone)",
            "langgraph.checkpoint.base",
            "none: stores nothing",
            lambda _: opened(nullcontext(_Nothing())),
            persistent=False,
            stores=False,
        ),
    )
}

MANY_CALLERS = {
    "stepwell": CONTENDERS["stepwell"],
    "sqlite": CONTENDERS["sqlite"],
    "postgres": replace(CONTENDERS["postgres"], label="PostgresSaver, pool", opener=_postgres_pool),
    "stepwell-async": replace(CONTENDERS["stepwell-async"], label="StepwellSaver"),
    "sqlite-async": CONTENDERS["sqlite-async"],
    "postgres-async": replace(
        CONTENDERS["postgres-async"], label="AsyncPostgresSaver, pool", opener=_postgres_pool_async
    ),
}
"""Savers as one opens them for many callers at once."""
