"""A sample of `make stress`: many event loops and threads on one saver."""

from __future__ import annotations

from pathlib import Path

from concurrency.stress import stress

SECONDS = 20.0


def test_loops_and_threads_on_one_saver(tmp_path: Path) -> None:
    """Sync and async calls of one saver from several event loops and threads at once show what the model shows."""
    tally = stress(tmp_path / "log.stepwell", SECONDS, seed=1)
    assert tally.calls > 200
    assert tally.compared > 20
