"""What the catalogue tells of a thread is what LangGraph tells of its newest checkpoint, at every moment of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from langgraph.types import StateSnapshot

from agents.driver import Run, drive, stepwell
from agents.scenarios import SCENARIOS

pytestmark = pytest.mark.filterwarnings(
    "ignore:create_react_agent has been moved:langgraph.warnings.LangGraphDeprecatedSinceV10"
)

# A graph with joins, static interrupts and questions; a function; tasks by Send; an agent whose tool raises; forks; a
# deep agent.  Under asynchronous durability threads may overtake each other, and coroutines do not.
SCENES = ("form", "workflow", "map_reduce", "tool_breaks", "time_travel")
MODES = (("sync", False), ("exit", False), ("async", True))
PLAYED = [(name, *mode) for name in SCENES for mode in MODES] + [("deep_agent", "async", True)]


class Watched(Run):
    """A run that compares the catalogue with the states of all threads after each call."""

    seen: Counter[str]

    async def invoke(self, given: Any, config: Any = None) -> Any:
        try:
            return await super().invoke(given, config)
        finally:
            await self._check()

    async def update(self, config: Any, values: Any, as_node: str | None = None) -> dict[str, Any]:
        updated = await super().update(config, values, as_node)
        await self._check()
        return updated

    async def _check(self) -> None:
        threads = list(self.saver.threads())  # type: ignore[attr-defined]
        assert threads
        for thread in threads:
            assert thread.status in _expected(await self.state(thread.config))
            assert thread.thread_id in [each.thread_id for each in self.saver.threads(status=thread.status)]  # type: ignore[attr-defined]
            self.seen[thread.status] += 1


def _expected(snapshot: StateSnapshot) -> set[str]:
    failed = {"failed" for task in snapshot.tasks if task.error}
    interrupted = {"interrupted" for _ in snapshot.interrupts}
    return failed | interrupted or {"running" if snapshot.next else "done"}


@pytest.mark.parametrize(("name", "durability", "asynchronous"), PLAYED)
def test_status_at_every_moment(name: str, durability: str, asynchronous: bool, tmp_path: Path) -> None:
    """A thread is interrupted or failed where a task is, done where nothing comes next, and else running."""
    case = SCENARIOS[name]
    if durability not in case.durabilities:
        pytest.skip("LangGraph does not do this in that durability")

    async def play() -> None:
        async with Watched(stepwell(tmp_path / "agents.stepwell"), asynchronous, durability) as run:
            run.seen = Counter()
            await case.scenario(run)
            assert run.seen

    drive(play(), asynchronous)
