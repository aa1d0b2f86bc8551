"""LangGraph's own kit for savers, every capability of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability

from stepwell_langgraph import StepwellSaver


@pytest.mark.parametrize("place", ["file", "memory"])
@pytest.mark.parametrize("capability", list(Capability), ids=lambda capability: capability.value)
async def test_kit_passes(capability: Capability, place: str, tmp_path: Path) -> None:
    """The kit detects the capability and passes every test of it, skipping none."""
    target = ":memory:" if place == "memory" else str(tmp_path / "agents.stepwell")

    @checkpointer_test(name=f"StepwellSaver {place} {capability.value}")
    async def fresh() -> AsyncIterator[BaseCheckpointSaver[str]]:
        async with StepwellSaver.from_conn_string(target) as saver:
            yield saver
            assert saver.log.audit().breaches == []

    report = await validate(fresh, capabilities={capability.value})
    result = report.results[capability.value]
    assert result.failures == []
    assert (result.detected, result.passed) == (True, True)
    assert (result.tests_failed, result.tests_skipped) == (0, 0)
    assert result.tests_passed > 0


async def test_kit_knows_no_other_capability() -> None:
    """A whole run of the kit reports full conformance over the eight capabilities it knows."""

    @checkpointer_test(name="StepwellSaver whole")
    async def fresh() -> AsyncIterator[BaseCheckpointSaver[str]]:
        async with StepwellSaver.from_conn_string(":memory:") as saver:
            yield saver

    report = await validate(fresh)
    assert set(report.results) == {capability.value for capability in Capability}
    assert report.conformance_level() == "FULL"
    assert all(result.detected and result.tests_skipped == 0 for result in report.results.values())
