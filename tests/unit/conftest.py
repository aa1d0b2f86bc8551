"""The logs that the tests of the engine run on; each is audited when its test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwell import Log
from stepwell.audit import audit
from stepwell.storage.lmdb import LmdbStorage
from stepwell.storage.memory import MemoryStorage
from stepwell.storage.ordered import TableStorage


@pytest.fixture(params=["file", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """An empty log, in a file and in memory; the test leaves it open and sound."""
    with Log.open(tmp_path / "agents.stepwell" if request.param == "file" else ":memory:") as opened:
        yield opened
        assert opened.audit().breaches == []


@pytest.fixture
def memory_log() -> Iterator[Log]:
    """An empty log in memory, for what no engine can do differently."""
    with Log.open(":memory:") as opened:
        yield opened
        assert opened.audit().breaches == []


@pytest.fixture
def damaged_log() -> Iterator[Log]:
    """An empty log in memory, for a test that breaks it."""
    with Log.open(":memory:") as opened:
        yield opened


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TableStorage]:
    """An empty storage of each engine; the test leaves it open and sound."""
    opened: LmdbStorage | MemoryStorage
    opened = LmdbStorage(tmp_path / "agents.stepwell") if request.param == "file" else MemoryStorage()
    yield opened
    assert audit(opened).breaches == []
    opened.close()
