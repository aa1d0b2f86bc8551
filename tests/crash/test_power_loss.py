"""A sample of the images that a power cut can leave; `make crash` judges thousands."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from crash.disk import PAGE_BYTES, TODAY, Rules
from crash.images import Promise
from crash.judge import Failure, judge
from crash.power_loss import IMAGES_OF_A_RECOVERY, WITHOUT_LENGTH, Result, record_workload, run
from crash.recorded import FILE, WORKLOADS, Delete, Owner, carried_out, named
from crash.recorded import run as run_workload
from crash.recorder import NOTES, NoCompilerError, build, record
from crash.trace import (
    Linked,
    Met,
    Noted,
    Reached,
    Removed,
    Renamed,
    Resized,
    SyncBegan,
    SyncEnded,
    SyncWriteBegan,
    SyncWriteEnded,
    Written,
    Zeroed,
)
from stepwell import Log, StepCommitted, changes
from stepwell.storage.lmdb import LmdbStorage, freepages

SEED_VARIABLE = "STEPWELL_CRASH_SEED"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("recorder"))
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def seed() -> int:
    """A new one for every run, unless the environment says which; shown if the test fails."""
    chosen = int(os.environ.get(SEED_VARIABLE) or random.randrange(10**9))
    print(f"{SEED_VARIABLE}={chosen}")
    return chosen


def judged(library: Path, label: str, rules: Rules, images: int, seed: int, folder: Path) -> Result:
    return run(library, named(label), rules, images, seed, folder / label)


def test_nothing_that_was_acknowledged_is_lost_when_the_power_goes(library: Path, seed: int, tmp_path: Path) -> None:
    """On every image each acknowledged operation is there, no other is half there, audit is clean, and all goes on."""
    others = random.Random(seed).sample(sorted(WORKLOADS.keys() - {"everything"}), 2)
    for name, images in (("everything", 60), (others[0], 30), (others[1], 30)):
        result = judged(library, name, TODAY, images, seed, tmp_path)
        assert result.lost == []
        assert result.judged >= images // 2


def test_nothing_is_lost_when_the_power_goes_a_second_time(library: Path, seed: int, tmp_path: Path) -> None:
    """While a log is opened and used after a crash, a second one loses neither what was left nor what came then."""
    name = random.Random(seed).choice(sorted(WORKLOADS))
    result = judged(library, f"{name}+twice", TODAY, IMAGES_OF_A_RECOVERY, seed, tmp_path)
    assert result.lost == []
    assert result.judged >= IMAGES_OF_A_RECOVERY // 2


def test_workloads_do_what_they_are_for(library: Path, tmp_path: Path) -> None:
    """Traces hold sealings, maps and files that grow, new files that take their names, and holes that are filled."""
    for name in ("sealing", "map-growth", "maps", "growth", "reuse", "compaction", "in-place"):
        events = record_workload(library, WORKLOADS[name], tmp_path / name)
        with Log.open(tmp_path / name / "files" / FILE) as log:
            rows = [log.thread(each.thread_id).row() for each in log.threads()]
            assert isinstance(log.storage, LmdbStorage)
            used = log.storage._open_environment().env.info()["last_pgno"] * PAGE_BYTES
        if name == "sealing":
            assert max(row.sealed for row in rows if row is not None) > 8
        elif name in ("map-growth", "maps"):
            assert used > 2 * max(WORKLOADS[name].map_bytes)
        elif name in ("compaction", "in-place"):
            kind = Linked if name == "compaction" else Renamed
            assert sum(isinstance(event, kind) for event in events) > 1
        elif name == "growth":
            assert max(len(event.content) for event in events if isinstance(event, Written)) > 200_000
        elif freepages.can_punch():
            holes = [(at, event) for at, event in enumerate(events) if isinstance(event, Zeroed)]
            assert any(
                isinstance(later, Written) and hole.offset <= later.offset < hole.offset + hole.length
                for at, hole in holes
                for later in events[at:]
            )


def test_what_the_judge_lets_pass(tmp_path: Path) -> None:
    """What was acknowledged and what was begun, whole; nothing less, nothing else, and nothing that is not in order."""
    workload = WORKLOADS["append"]
    (tmp_path / NOTES).touch()
    run_workload(workload, tmp_path)
    path, owner = tmp_path / FILE, Owner(workload, 0)
    there = len(owner.operations)

    def judged_with(done: int, begun: int) -> tuple[str, str]:
        copied = tmp_path / "copied"
        copied.write_bytes(path.read_bytes())
        return judge(copied, Promise(True, (done,), (begun,)), [owner])

    assert judged_with(there, there) == ("whole", f"{there}")
    assert judged_with(there - 3, there)[0] == "whole"
    changing = max(n for n in range(1, there + 1) if owner.shown[n] != owner.shown[n - 1])
    with pytest.raises(Failure, match="acknowledged"):
        judged_with(0, changing - 1)
    owner.shown += [carried_out(owner.shown[-1], Delete("owner0/first"))]
    with pytest.raises(Failure, match="thread owner0/first is there"):
        judged_with(there + 1, there + 1)
    with Log.open(path) as log:
        log.thread("stranger").append([StepCommitted("s", None, changes({}), changes({}))])
    with pytest.raises(Failure, match=r"nobody opened: .*stranger"):
        judged_with(there, there)


@pytest.mark.parametrize("variant", ["nosync", "nometasync"])
def test_a_log_that_is_not_synced_is_found_out(library: Path, seed: int, variant: str, tmp_path: Path) -> None:
    """The simulator sees the loss where LMDB is told not to sync: a clean result means something."""
    assert judged(library, f"append+{variant}", TODAY, 12, seed, tmp_path).lost


def test_the_name_of_a_file_that_another_process_made_is_durable(library: Path, seed: int, tmp_path: Path) -> None:
    """A process that died when it had made the file does not leave it to be lost with what others put into it."""
    assert judged(library, "append+inherited", TODAY, 20, seed, tmp_path).lost == []


def test_a_new_length_is_durable_where_fdatasync_forgets_it(library: Path, seed: int, tmp_path: Path) -> None:
    """LMDB asks for the kernel and the file system, and calls fsync where they forget lengths; else a log is lost."""
    assert judged(library, "append", WITHOUT_LENGTH, 16, seed, tmp_path).lost
    assert judged(library, "append+oldkernel", WITHOUT_LENGTH, 30, seed, tmp_path).lost == []


def test_every_call_is_recorded(library: Path, tmp_path: Path) -> None:
    """The trace holds each write, resizing, hole, sync, name and note of a program, in order, for its folder only."""
    program = """
        import ctypes, os, sys
        folder, outside = sys.argv[1:]
        libc = ctypes.CDLL(None)
        libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
        notes = os.open(f"{folder}/notes", os.O_WRONLY)
        file = os.open(f"{folder}/a", os.O_RDWR | os.O_CREAT)
        os.write(file, b"one")
        os.writev(file, [b"tw", b"o"])
        os.pwrite(file, b"three", 100)
        os.pwritev(file, [b"fo", b"ur"], 200)
        os.write(notes, b"written")
        os.ftruncate(file, 8192)
        libc.fallocate(file, 3, 0, 4096)
        os.posix_fallocate(file, 0, 16384)
        os.fdatasync(file)
        os.fsync(file)
        with_dsync = os.open(f"{folder}/a", os.O_WRONLY | os.O_DSYNC)
        os.pwrite(with_dsync, b"meta", 32)
        other = os.open(outside, os.O_RDWR | os.O_CREAT)
        os.write(other, b"elsewhere")
        os.fsync(other)
        os.rename(f"{folder}/a", f"{folder}/b")
        os.link(f"{folder}/b", f"{folder}/c")
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        again = os.dup(os.open(f"{folder}/b", os.O_RDWR))
        os.write(again, b"four")
        os.unlink(f"{folder}/b")
        """
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = "\n".join(line.strip() for line in program.splitlines())
    command = [sys.executable, "-c", lines, str(folder), str(tmp_path / "outside")]
    a, b = f"{folder}/a", f"{folder}/b"
    assert record(library, folder, command, tmp_path / "trace") == [
        Met(1, a, True, False),
        Written(1, 0, b"one"),
        Written(1, 3, b"two"),
        Written(1, 100, b"three"),
        Written(1, 200, b"four"),
        Noted("written"),
        Resized(1, 8192),
        Zeroed(1, 0, 4096),
        Reached(1, 16384),
        SyncBegan(1, 1),
        SyncEnded(1, 1, False),
        SyncBegan(1, 2),
        SyncEnded(1, 2, True),
        SyncWriteBegan(1, 32, b"meta", 3),
        SyncWriteEnded(1, 3),
        Renamed(a, b),
        Linked(b, f"{folder}/c"),
        Met(2, str(folder), False, True),
        SyncBegan(2, 4),
        SyncEnded(2, 4, True),
        Written(1, 0, b"four"),
        Removed(b),
    ]
