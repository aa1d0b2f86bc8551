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
from stepwell import Log
from stepwell.storage.lmdb import LmdbStorage

SPEC = Path(__file__).parents[2] / "SPEC.md"
SAMPLE = 10
# Opens a log for reading, and tells what it shows once there is nothing more to read from its standard input.
READER = """
import json, sys
from stepwell import Log
with Log.open(sys.argv[1], read_only=True) as log:
    sys.stdin.read()
    print(json.dumps({each.thread_id: each.steps for each in log.threads()}))
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
@pytest.mark.parametrize(
    ("point", "sent", "turns"),
    [
        ("compaction-locked", signal.SIGCONT, 0),
        ("compaction-lock-emptied", signal.SIGKILL, 0),
        ("compaction-lock-emptied", signal.SIGKILL, 1),
        ("compaction-replaced", signal.SIGKILL, 0),
        ("compaction-replaced", signal.SIGKILL, 1),
        ("compaction-replaced", signal.SIGCONT, 1),
        ("compaction-lock-filled", signal.SIGCONT, 0),
    ],
)
def test_who_opens_a_log_while_it_is_compacted_gets_the_right_file(
    point: str, sent: signal.Signals, turns: int, tmp_path: Path
) -> None:
    """A writer and a reader that come in the middle wait, then have the file that has the path, whatever happened.

    The number of the last transaction, odd or even, says which meta page of the old file was the newest: taken for
    true of the new file, one of the two would show an empty log.
    """
    workload = named("in-place+pair")
    (tmp_path / NOTES).touch()
    with Log.open(tmp_path / FILE) as log:
        assert isinstance(log.storage, LmdbStorage)
        for _ in range(turns):
            log.storage._open_environment()._turn()
    with ExitStack() as stack:

        def start(command: list[str]) -> subprocess.Popen[bytes]:
            started = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(started.kill)
            return started

        _, *program = part(workload, tmp_path, 0)
        compacting = start(failpoints.command(point, 1, signal.SIGSTOP, program))
        assert os.WIFSTOPPED(os.waitpid(compacting.pid, os.WUNTRACED)[1])
        writer = start(part(workload, tmp_path, 1))
        reader = start([sys.executable, "-c", READER, str(tmp_path / FILE)])
        if point != "compaction-lock-filled":  # from there on the lock is shared
            deadline = time.monotonic() + 30
            while not (is_waiting_for_a_lock(writer.pid) and is_waiting_for_a_lock(reader.pid)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        compacting.send_signal(sent)
        assert writer.wait(60) == 0
        assert compacting.wait(60) == (0 if sent == signal.SIGCONT else -signal.SIGKILL)
        read = json.loads(reader.communicate(timeout=60)[0])
    notes = [Noted(line) for line in (tmp_path / NOTES).read_text().splitlines()]
    promise = promises(notes, 2)[-1]
    owners = [Owner(workload, number) for number in range(2)]
    shown = [owner.shown[done].threads for owner, done in zip(owners, promise.done, strict=True)]
    assert promise.done[1] == workload.operations
    assert read == {name: len(steps) for each in shown for name, steps in each.items()}
    judge(tmp_path / FILE, promise, owners)


def test_a_cell_that_fails_says_so(tmp_path: Path) -> None:
    """A point that the engine does not have ends the process by itself, which is no kill and no success."""
    with pytest.raises(Failure, match="exit code 1"):
        play(some(1, random.Random(0))[0][0]._replace(point="no-such-point"), tmp_path / "cell")
