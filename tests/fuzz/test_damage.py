"""Damage to the file itself: a sample of the cases that `make damage` runs."""

from __future__ import annotations

import ast
import os
import random
import re
import signal
import subprocess
import sys

import pytest

from fuzz import damage

CASES = 300
SEED = int(os.environ.get("STEPWELL_DAMAGE_SEED", random.SystemRandom().randrange(1 << 32)))


def test_the_log_holds_everything() -> None:
    """The log that is damaged has pages of each sort, all kinds of answers, and nothing in it is found damaged."""
    sound = damage.intact()
    assert len(sound.where.trees) > 20
    assert len(sound.where.owners) > 8
    assert len(set(sound.where.owners.values())) > 1
    assert len(sound.where.unused) > 5
    assert set(sound.numbers.values()) == {"sealed", "loose", "copied", "pruned", "agent"}
    for what in ("summary", "events", "steps", "head", "at", "id", "writes", "list", "tuple", "items", "history"):
        assert any(truth for question, truth in sound.truth.items() if question[1] == what), what


def test_damaged_files() -> None:
    """Whatever happens to the file, every answer is what the intact one says or tells of damage, and nothing dies."""
    print(f"STEPWELL_DAMAGE_SEED={SEED}")
    command = [sys.executable, damage.__file__, "--seed", str(SEED), "--cases", str(CASES), "--workers", "2"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    print(finished.stdout, finished.stderr)
    assert (finished.returncode, finished.stderr) == (0, "")
    found = re.search(r"(\{.*\}), 0 faults", finished.stdout)
    assert found
    outcomes = ast.literal_eval(found[1])
    assert sum(outcomes.values()) == CASES
    assert all(outcomes[outcome] > CASES // 50 for outcome in ("refused", "damage was told", "true"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_death_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that ends its process is at fault, and the cases after it are run all the same."""

    def judge(*_: object) -> damage.Verdict:
        nonlocal cases
        cases += 1
        if cases == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return damage.Verdict("true")

    cases = 0
    monkeypatch.setattr(damage, "judge", judge)
    tally = damage.run(1, range(4), workers=1, told=lambda line: None)
    assert [(case, fault) for case, _, fault in tally.faults] == [(2, "the interpreter died: exit code -9")]
    assert tally.outcomes == {"true": 3, "interpreter crash": 1}
