"""The savers that the contract runs over, and the two spellings it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from conformance.calls import Calls
from stepwell_langgraph import StepwellSaver


@contextmanager
def _open(kind: str, folder: Path) -> Iterator[BaseCheckpointSaver[str]]:
    if kind == "InMemorySaver":
        yield InMemorySaver()
        return
    target = ":memory:" if kind == "memory" else str(folder / "agents.stepwell")
    with StepwellSaver.from_conn_string(target) as saver:
        yield saver
        # Every test proves the log's invariants too.
        assert saver.log.audit().breaches == []


@pytest.fixture(params=["file", "memory", "InMemorySaver"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An empty saver: ours in a file, ours in memory, LangGraph's own."""
    with _open(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture(params=["sync", "async"])
def calls(request: pytest.FixtureRequest, saver: BaseCheckpointSaver[str]) -> Calls:
    """The saver's methods, the blocking ones and the async ones in turn."""
    return Calls(saver, asynchronous=request.param == "async")
