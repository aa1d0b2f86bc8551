"""Kills at named points of the engine; `make kill` plays all of them, at every time that they are reached."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import stepwell
from crash import failpoints
from crash.images import promises
from crash.judge import judge
from crash.kill_points import POINTS, Failure, missed, play, run, some
from crash.recorded import FILE, Owner, named, part
from crash.recorder import NOTES
from crash.trace import Noted

SPEC = Path(__file__).parents[2] / "SPEC.md"
SAMPLE = 12
# Opens a log for reading; tells what it shows, and whether its file is the one that has the path.
READER = """
import json, sys
from stepwell import Log
with Log.open(sys.argv[1], read_only=True) as log:
    threads = {each.thread_id: each.steps for each in log.threads()}
    print(json.dumps([threads, log.storage._open_environment().is_gone()]))
"""


def test_every_point_of_the_engine_is_in_the_matrix() -> None:
    """The names in the sources are those that kills are planned for, each stands at one place, and SPEC.md has them."""
    names = list(failpoints.names())
    assert sorted(names) == sorted(POINTS)
    section = SPEC.read_text().partition("\n## 8. ")[2].partition("\n## 9. ")[0]
    assert [name for name in names if f"`{name}`" not in section] == []


def test_nothing_of_a_point_is_left_in_a_process_that_did_not_ask_for_it() -> None:
    """A point is a comment: modules that are imported as usual hold no trace of it."""
    assert not hasattr(stepwell.log, "_reach_failpoint")
    assert "_reach_failpoint" not in stepwell.log.Log.close.__code__.co_names


def test_a_writer_that_is_killed_at_a_point_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    """Killed at any point, a writer leaves what was acknowledged and nothing half, and another writer goes on."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")  # shown if the test fails
    outcomes = run(some(SAMPLE, random.Random(seed)), tmp_path, workers=2)
    assert [outcome for outcome in outcomes if outcome.problem] == []
    assert missed(outcomes) == set()
    assert len(outcomes) == SAMPLE


def test_a_log_that_lost_something_is_found_out(tmp_path: Path) -> None:
    """The judge of a kill sees a file from before the last acknowledged operations: a clean result means something."""
    workload = named("append")
    (tmp_path / NOTES).touch()
    subprocess.run(part(workload, tmp_path, 0), check=True)
    notes = [Noted(line) for line in (tmp_path / NOTES).read_text().splitlines()]
    promise = promises(notes, 1)[-1]
    owner = Owner(workload, 0)
    judge(tmp_path / FILE, promise, [owner])
    changing = max(n for n in range(1, len(owner.shown)) if owner.shown[n] != owner.shown[n - 1])
    owner.shown[-1] = owner.shown[changing - 1]
    with pytest.raises(Exception, match="acknowledged"):
        judge(tmp_path / FILE, promise, [owner])


def is_waiting_for_a_lock(pid: int) -> bool:
    return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="nothing tells who waits for a lock")
@pytest.mark.parametrize("sent", [signal.SIGCONT, signal.SIGKILL], ids=["goes on", "dies"])
@pytest.mark.parametrize(
    "point", ["compaction-locked", "compaction-lock-emptied", "compaction-replaced", "compaction-lock-filled"]
)
def test_who_opens_a_log_while_it_is_compacted_gets_the_right_file(
    point: str, sent: signal.Signals, tmp_path: Path
) -> None:
    """A writer and a reader that come in the middle wait, then have the file that has the path, whatever happened."""
    workload = named("in-place+pair")
    (tmp_path / NOTES).touch()
    with ExitStack() as stack:
        _, *program = part(workload, tmp_path, 0)
        compacting = stack.enter_context(subprocess.Popen(failpoints.command(point, 1, signal.SIGSTOP, program)))
        stack.callback(compacting.kill)
        assert os.WIFSTOPPED(os.waitpid(compacting.pid, os.WUNTRACED)[1])
        writer = stack.enter_context(subprocess.Popen(part(workload, tmp_path, 1)))
        stack.callback(writer.kill)
        command = [sys.executable, "-c", READER, str(tmp_path / FILE)]
        reader = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(reader.kill)
        if point != "compaction-lock-filled":  # from there on the lock is shared
            deadline = time.monotonic() + 30
            while not (is_waiting_for_a_lock(writer.pid) and is_waiting_for_a_lock(reader.pid)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        before = [Noted(line) for line in (tmp_path / NOTES).read_text().splitlines()]
        compacting.send_signal(sent)
        threads, is_gone = json.loads(reader.communicate(timeout=60)[0])
        assert writer.wait(60) == 0
        assert compacting.wait(60) == (0 if sent == signal.SIGCONT else -signal.SIGKILL)
    acknowledged = promises(before, 2)[-1].done[0]
    shown = Owner(workload, 0).shown[acknowledged]
    if sent == signal.SIGKILL:
        read = {name: steps for name, steps in threads.items() if name.startswith("owner0/")}
        assert read == {name: len(steps) for name, steps in shown.items()}
    assert not is_gone
    notes = [Noted(line) for line in (tmp_path / NOTES).read_text().splitlines()]
    judge(tmp_path / FILE, promises(notes, 2)[-1], [Owner(workload, number) for number in range(2)])


def test_a_cell_that_fails_says_so(tmp_path: Path) -> None:
    """A point that the engine does not have ends the process by itself, which is no kill and no success."""
    with pytest.raises(Failure, match="exit code 1"):
        play(some(1, random.Random(0))[0][0]._replace(point="no-such-point"), tmp_path / "cell")
