"""The savers that are compared, behind one protocol.

Each one is opened the way its documentation says, with its own defaults, in an empty directory of its own.  A
rival's package is imported only when the rival is opened.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

Saver = BaseCheckpointSaver[Any]


@dataclass(frozen=True)
class DiskUse:
    """What a contender's directory takes: allocated blocks, and the lengths that `ls` shows."""

    allocated_bytes: int
    apparent_bytes: int


@dataclass(frozen=True)
class Contender:
    """One saver and how it is opened.

    Attributes:
        module: What `load` imports.
        keeps_whole_states_in: "disk" or "memory" where each put stores all values again, to judge what fits.
        persistent: Whether another process can read what was stored.
        stores: False for the harness alone, which is there to be subtracted, not compared.
    """

    name: str
    label: str
    module: str
    durability: str
    opener: Callable[[Path], AbstractContextManager[Saver]]
    keeps_whole_states_in: str | None = None
    persistent: bool = True
    stores: bool = True

    def load(self) -> None:
        """Import the saver's package, which is no part of opening a store."""
        import_module(self.module)

    def open(self, directory: Path) -> AbstractContextManager[Saver]:
        """Create or open what is in the directory; leaving the context closes it."""
        return self.opener(directory)

    @staticmethod
    def bytes_on_disk(directory: Path) -> DiskUse:
        """All files of the directory: data, write-ahead logs and lock files alike."""
        found = [os.stat(path) for path in directory.rglob("*") if path.is_file()]
        return DiskUse(sum(f.st_blocks for f in found) * 512, sum(f.st_size for f in found))


def _stepwell(directory: Path) -> AbstractContextManager[Saver]:
    from stepwell_langgraph import StepwellSaver

    saver: AbstractContextManager[Saver] = StepwellSaver.from_conn_string(str(directory / "log.stepwell"))
    return saver


def _memory(_: Path) -> AbstractContextManager[Saver]:
    from langgraph.checkpoint.memory import InMemorySaver

    return nullcontext(InMemorySaver())


def _sqlite(directory: Path) -> AbstractContextManager[Saver]:
    from langgraph.checkpoint.sqlite import SqliteSaver

    return SqliteSaver.from_conn_string(str(directory / "checkpoints.sqlite"))


class _Lmdb:
    """LMDBSaver over an environment with room: lmdb's default of 10 MB would end any of the workloads."""

    MAP_BYTES = 256 << 30

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Saver:
        import lmdb
        from langgraph_checkpoint_lmdb import LMDBSaver  # type: ignore[import-untyped]

        self._environment = lmdb.open(str(self._directory), max_dbs=10, map_size=self.MAP_BYTES)
        saver: Saver = LMDBSaver(self._environment)
        return saver

    def __exit__(self, *_: object) -> None:
        self._environment.close()


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
        Contender("stepwell", "StepwellSaver", "stepwell_langgraph", "each call synced, group commit", _stepwell),
        Contender(
            "sqlite",
            "SqliteSaver",
            "langgraph.checkpoint.sqlite",
            "each call synced (WAL, synchronous=FULL)",
            _sqlite,
            keeps_whole_states_in="disk",
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
            _Lmdb,
            keeps_whole_states_in="disk",
        ),
        Contender(
            "nothing",
            "(harness alone)",
            "langgraph.checkpoint.base",
            "none: stores nothing",
            lambda _: nullcontext(_Nothing()),
            persistent=False,
            stores=False,
        ),
    )
}
