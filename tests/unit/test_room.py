"""The reserve of a disk that runs low, the lock file that must have blocks, and what an error says of the room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from building import step
from stepwell import DiskFullError, Log
from stepwell.storage.lmdb import elastic, filesystem, freepages, room
from stepwell.storage.lmdb.room import LockFile, Reserve

needs_fallocate = pytest.mark.skipif(not freepages.can_allocate(), reason="the system gives no blocks beforehand")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a log may lie."""
    return tmp_path / "agents.stepwell"


def taken(path: Path) -> int:
    """How much of the disk a file takes."""
    return path.stat().st_blocks * 512


def test_reserve_grows_with_the_log() -> None:
    """The reserve is a share of the log, within bounds."""
    assert room.reserve_bytes(0) == room.SMALLEST_RESERVE_BYTES
    assert room.reserve_bytes(32 << 20) == (32 << 20) // room.RESERVE_SHARE
    assert room.reserve_bytes(1 << 40) == room.LARGEST_RESERVE_BYTES


def test_there_is_a_reserve_only_while_the_disk_runs_low(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next append after the disk ran low makes the file, the next after there is room again removes it."""
    monkeypatch.setattr(elastic, "_SECONDS_BETWEEN_LOOKS", 0.0)
    reserve = Path(f"{path}-reserve")
    with Log.open(path) as log:
        log.thread("t").append([step("s0")])
        assert not reserve.exists()
        monkeypatch.setattr(room, "LOW_BYTES", 1 << 60)
        log.thread("t").append([step("s1")])
        assert taken(reserve) >= room.SMALLEST_RESERVE_BYTES
        assert b"stepwell" in reserve.read_bytes()[:200]
    assert reserve.exists()  # whoever opens the log on a full disk must be able to delete from it
    monkeypatch.undo()
    with Log.open(path) as log:
        log.thread("t").append([step("s2")])
    assert not reserve.exists()


def test_a_reserve_grows_where_it_is_too_small(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reserve that could not be taken in whole is completed later."""
    path.touch()
    monkeypatch.setattr(room, "LOW_BYTES", 1 << 60)
    assert Reserve(str(path)).look(lambda: 0)
    before = taken(Path(f"{path}-reserve"))
    assert Reserve(str(path)).look(lambda: 64 << 20)
    assert before < taken(Path(f"{path}-reserve")) == pytest.approx(room.LARGEST_RESERVE_BYTES, rel=0.1)


@pytest.mark.parametrize("content", [b"", b"something else", bytes(1 << 20)])
def test_what_somebody_else_keeps_under_that_name_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """A file of that name that is no reserve is neither used nor removed."""
    reserve = Path(f"{path}-reserve")
    reserve.write_bytes(content)
    for low in (1 << 60, 0):
        monkeypatch.setattr(room, "LOW_BYTES", low)
        with Log.open(path) as log:
            log.thread("t").append([step(f"s{low}")])
            log.thread("t").delete()
    assert reserve.read_bytes() == content
    assert not Reserve(str(path)).release()


def test_a_file_system_that_does_not_count_is_not_low(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not known how much is free, nothing is kept."""

    def unknown(_: str) -> os.statvfs_result:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "statvfs", unknown)
    path.touch()
    assert not Reserve(str(path)).look(lambda: 0)
    assert "not known" in room.described(str(path))


@needs_fallocate
def test_the_lock_file_has_blocks_before_it_is_mapped(path: Path) -> None:
    """Its first page before LMDB opens it, also where less than a page has a block; all others when it is filled."""
    lock = Path(f"{path}-lock")
    file = LockFile(str(path))
    file.prepare(str(path))
    assert taken(lock) >= 4096
    lock.write_bytes(b"")
    file.prepare(str(path))
    assert taken(lock) >= 4096
    with Log.open(path) as log:
        assert taken(lock) < 1 << 15 <= lock.stat().st_size
        file.hold()
        assert file.fill()
        assert taken(lock) >= lock.stat().st_size
        log.thread("t").append([step("s0")])
    file.close()


@needs_fallocate
def test_no_room_for_a_lock_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a log on a full disk is an error, where it was a signal that ended the process."""

    def full(_descriptor: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(freepages, "allocate", full)
    with pytest.raises(DiskFullError, match="lock file"):
        Log.open(path)
    monkeypatch.undo()
    with Log.open(path) as log:
        log.thread("t").append([step("s0")])


def test_readers_beyond_what_the_lock_file_has_room_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many readers at once need more of the lock file; if there is no room for it, some are refused, and none dies."""
    with Log.open(path) as log:
        log.thread("t").append([step("s0")])
        environment = log.storage._environment  # type: ignore[attr-defined]
        monkeypatch.setattr(environment._lock_file, "fill", lambda: False)
        marks = [object() for _ in range(24)]
        begun = [environment._begin(False, mark) for mark in marks]
        with pytest.raises(DiskFullError, match="24 readers"):
            log.thread("t").summary()
        monkeypatch.undo()
        assert log.thread("t").summary() is not None
        for transaction, mark in zip(begun, marks, strict=True):
            transaction.abort()
            del environment._inside[mark]


_HOLDER = """
import fcntl, sys
with open(sys.argv[1], "rb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@needs_fallocate
@pytest.mark.parametrize("is_remote", [False, True])
def test_who_commits_stands_in_line(path: Path, monkeypatch: pytest.MonkeyPatch, is_remote: bool) -> None:
    """A process waits for the one that is at it, and goes on when that one is killed; reading waits for nobody."""
    monkeypatch.setattr(filesystem, "remote_kind", lambda real_path: "nfs" if is_remote else None)
    with Log.open(path, network_file_system=True) as log:
        log.thread("t").append([step("s0")])
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, f"{path}-lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            appending = threading.Thread(target=log.thread("t").append, args=([step("s1")],))
            appending.start()
            appending.join(2.0 if is_remote else 0.1)
            assert appending.is_alive() != is_remote
            assert log.thread("t").state() is not None
            holder.kill()
            appending.join(10.0)
        assert [each.step_id for each in log.thread("t").steps()] == ["s1", "s0"]


def test_errors_say_the_room_and_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is little room, that is the trouble; where there is enough, the disk may fail."""
    path.touch()
    error = room.disk_full("my log", str(path), "no space left", in_doubt=True)
    for part in ("'my log'", "the disk fails, or has no room", "bytes are free", "prune or delete", "no space left"):
        assert part in str(error)
    monkeypatch.setattr(room, "LOW_BYTES", 1 << 60)
    assert "fails" not in str(room.disk_full("my log", str(path), "no space left", in_doubt=True))
