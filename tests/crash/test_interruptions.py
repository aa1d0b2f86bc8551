"""A few of the interruptions of `moments.py`; `make signals` plays all."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from crash import moments

WHAT = {
    "Ctrl-C": "raises KeyboardInterrupt",
    "close": "closes the log",
    "append": "appends to the log",
}


@pytest.mark.parametrize("how", moments.HOWS)
def test_a_call_that_is_interrupted_leaves_nothing_half_done(how: str) -> None:
    """A signal handler may raise, close the log or append at any moment of any call: nothing is half there, wrong or
    in the way afterwards, the log goes on (or was closed), and closes."""
    seed = random.randrange(10**9)
    played = subprocess.run(
        [sys.executable, moments.__file__, "--how", how, "--calls", "24", "--sample", "2", "--seed", str(seed)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    assert played.returncode == 0, f"a handler that {WHAT[how]} did harm: {played.stdout}"
