"""A few rounds of the kill test; `make kill` plays 200."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from crash.kill_writer import run


@pytest.mark.parametrize(("rounds", "writers"), [(7, 1), (3, 2)], ids=["one writer", "two writers"])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(rounds: int, writers: int, tmp_path: Path) -> None:
    """After SIGKILL at any moment every acknowledged operation is there, no other is half there, and all go on."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")  # shown if the test fails
    tally = run(rounds, seed, writers, tmp_path)
    assert tally.rounds == rounds
    assert tally.kills >= rounds
