"""Compaction: into another file while the log is in use, and in the place of the file while it is not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

import stepwell
from building import noise, step
from stepwell import CorruptionError, DiskFullError, Log, NotALogError, UsageError, compact
from stepwell.storage.lmdb import compaction, engine, lockfile

alone = pytest.mark.skipif(not lockfile.CAN_LOCK, reason="this system has no such locks")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of which most is free: threads were deleted, and their pages stay in the file."""
    path = tmp_path / "agents.stepwell"
    with Log.open(path) as log:
        for number in range(20):
            log.thread(f"t{number}").append([step(f"s{n}", {"x": noise(3000)}) for n in range(10)])
        log.seal("t0")
        for number in range(5, 20):
            log.thread(f"t{number}").delete()
    return path


def content(path: Path, **options: bool) -> dict[str, list[tuple[int, object]]]:
    """All events, by thread."""
    with Log.open(path, **options) as log:
        return {each.thread_id: list(log.thread(each.thread_id).events()) for each in log.threads()}


def names(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


# --- into another file ---


@pytest.mark.parametrize("read_only", [False, True])
def test_a_compacted_copy_shows_the_same(path: Path, read_only: bool) -> None:
    """The new file is smaller, holds the same events, is in order, and takes appends; the log is as it was."""
    before = content(path)
    target = path.with_name("copy")
    with Log.open(path, read_only=read_only) as log:
        length = os.path.getsize(path)
        saved = log.compact(target)
        assert os.path.getsize(path) == length
    assert target.stat().st_size < length / 2
    assert saved.after_bytes < 2 * target.stat().st_size
    assert content(path) == content(target) == before
    with Log.open(target) as copied:
        assert copied.audit().breaches == []
        copied.thread("t0").append([step("later")])
    assert names(path) == {"agents.stepwell", "agents.stepwell-lock", "copy", "copy-lock"}


def test_a_copy_is_of_one_moment(path: Path) -> None:
    """Appends go on during the copying, and the copy shows the log as it was at some moment of it."""
    stop = threading.Event()
    with Log.open(path) as log:
        thread = log.thread("busy")

        def work() -> None:
            for number in range(10**6):
                if stop.is_set():
                    return
                thread.append([step(f"a{number}"), step(f"b{number}")])

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for number in range(10):
                least = thread.row()
                log.compact(path.with_name(f"copy{number}"))
                most = thread.row()
                with Log.open(path.with_name(f"copy{number}")) as copied:
                    assert copied.audit().breaches == []
                    found = copied.thread("busy").row()
                    last, first, newest = (row.last if row else 0 for row in (found, least, most))
                    assert first <= last <= newest
                    steps = [each.step_id for each in copied.thread("busy").steps()]
                    assert len(steps) % 2 == 0
        finally:
            stop.set()
            worker.join()


def test_a_copy_has_the_permissions_of_the_log(path: Path) -> None:
    """What only its owner may read is not laid open by being copied."""
    path.chmod(0o600)
    with Log.open(path) as log:
        log.compact(path.with_name("copy"))
    assert path.with_name("copy").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere/file")])
def test_a_copy_replaces_nothing(path: Path, make: Callable[[Path], None]) -> None:
    """Where there is something, the copy is refused and leaves no trace; a link that leads nowhere is something."""
    target = path.with_name("copy")
    make(target)
    before = names(path)
    with Log.open(path) as log, pytest.raises(UsageError, match="copy"):
        log.compact(target)
    assert names(path) == before


def test_a_log_is_not_copied_into_itself(path: Path) -> None:
    """Its own path is one where there is something."""
    with Log.open(path) as log:
        with pytest.raises(UsageError, match="already"):
            log.compact(path)
        assert log.audit().breaches == []


def test_a_directory_that_is_not_there(path: Path) -> None:
    """The error names the path."""
    with Log.open(path) as log, pytest.raises(UsageError, match="nowhere"):
        log.compact(path.parent / "nowhere" / "copy")


def test_a_log_in_memory_has_no_file(memory_log: Log, tmp_path: Path) -> None:
    """It is neither copied nor compacted."""
    with pytest.raises(UsageError, match="memory"):
        memory_log.compact(tmp_path / "copy")
    with pytest.raises(UsageError, match="memory"):
        compact(":memory:")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (lmdb.DiskError("full"), DiskFullError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (lmdb.IncompatibleError("page leak"), CorruptionError),
    ],
    ids=["full disk", "Ctrl-C", "leaked pages"],
)
@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=alone)])
def test_nothing_is_left_of_a_failure(
    path: Path, in_place: bool, raised: BaseException, expected: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full, Ctrl-C, or pages that leaked leave the log as it was, and no file beside it."""
    before, there = content(path), names(path)

    class Failing:
        def __init__(self, env: lmdb.Environment) -> None:
            self._env = env

        def __getattr__(self, name: str) -> object:
            return getattr(self._env, name)

        def copyfd(self, descriptor: int, **_: object) -> None:
            os.write(descriptor, b"half")
            raise raised

    copy = compaction.copy_compactly
    for module in (compaction, engine):
        monkeypatch.setattr(module, "copy_compactly", lambda env, file, name: copy(Failing(env), file, name))
    if in_place:
        with pytest.raises(expected):
            compact(path)
    else:
        with Log.open(path) as log, pytest.raises(expected):
            log.compact(path.with_name("copy"))
    assert names(path) == there
    assert content(path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What LMDB says of a disk without room becomes DiskFullError with the path, from the sync too."""

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Log.open(path) as log:
        with open("/dev/full", "wb") as full, monkeypatch.context() as patch:
            patch.setattr(engine.NewFile, "fileno", lambda self: full.fileno())
            with pytest.raises(DiskFullError, match="copy"):
                log.compact(path.with_name("copy"))
        monkeypatch.setattr(os, "fsync", no_room)
        with pytest.raises(DiskFullError, match="copy"):
            log.compact(path.with_name("copy"))
    assert "copy" not in names(path)


# --- in the place of the file ---


@alone
def test_a_file_is_compacted_in_its_place(path: Path) -> None:
    """The file becomes shorter and shows the same; permissions stay, and a link to it is still one."""
    before, length = content(path), path.stat().st_size
    path.chmod(0o640)
    link = path.with_name("link")
    link.symlink_to(path)
    saved = compact(link)
    assert content(path) == before
    assert path.stat().st_size < length / 2
    assert saved.after_bytes <= saved.before_bytes
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(path) == {"agents.stepwell", "agents.stepwell-lock", "link"}
    with Log.open(path) as log:
        assert log.audit().breaches == []
        log.thread("t0").append([step("later")])
    assert compact(path).after_bytes > 0


@alone
def test_a_log_that_this_process_has_open_is_not_replaced(path: Path) -> None:
    """By whatever path it was opened; its handles work on, and other processes still see that it is in use."""
    link = path.with_name("link")
    link.symlink_to(path)
    with Log.open(link) as log:
        with pytest.raises(UsageError, match="this process"):
            compact(path)
        log.thread("t0").append([step("later")])
        other = subprocess.run([sys.executable, "-c", f"import stepwell; stepwell.compact({str(path)!r})"], stderr=-1)
        assert b"another process" in other.stderr
    compact(path)


@alone
def test_a_file_that_is_open_otherwise_is_not_replaced(path: Path) -> None:
    """If this process has it open through LMDB itself, that is found out before its lock could be lost."""
    with lmdb.open(str(path), subdir=False, max_dbs=20) as env:
        with pytest.raises(UsageError, match="open"):
            compact(path)
        other = subprocess.run([sys.executable, "-c", f"import stepwell; stepwell.compact({str(path)!r})"], stderr=-1)
        assert b"another process" in other.stderr
        assert env.stat()


@alone
def test_nobody_opens_a_log_in_the_middle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is told to wait, for opening and for compacting, while one of its threads compacts the file."""

    @contextmanager
    def slowly(descriptor: str) -> Iterator[int]:
        with alone_with(descriptor) as lock:
            inside.set()
            assert go_on.wait(30)
            yield lock

    alone_with = lockfile.alone
    inside, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(lockfile, "alone", slowly)
    worker = threading.Thread(target=compact, args=(path,))
    worker.start()
    try:
        assert inside.wait(30)
        with pytest.raises(UsageError, match="compacted"):
            Log.open(path)
        with pytest.raises(UsageError, match="this process"):
            compact(path)
    finally:
        go_on.set()
        worker.join()
    assert len(content(path)) == 5


@alone
def test_a_file_of_two_names_is_not_replaced(path: Path) -> None:
    """The other name would keep the old file, and the two would go different ways."""
    before = content(path)
    os.link(path, path.with_name("second"))
    with pytest.raises(UsageError, match="2 names"):
        compact(path)
    path.with_name("second").unlink()
    assert content(path) == before


@alone
@pytest.mark.parametrize("read_only", [False, True])
def test_a_name_that_a_crash_left_is_removed(path: Path, read_only: bool) -> None:
    """Who opens a copy whose writer died between giving it its name and taking the other away does the rest."""
    before = content(path)
    with Log.open(path) as log:
        log.compact(path.with_name("copy"))
    os.link(path.with_name("copy"), path.with_name("copy-unfinished"))
    with Log.open(path.with_name("copy"), read_only=read_only) as log:
        assert log.audit().breaches == []
    assert not path.with_name("copy-unfinished").exists()
    assert content(path.with_name("copy")) == before


@alone
@pytest.mark.parametrize("suffix", ["-new", ".new", "-copy"])
def test_another_log_beside_it_is_left_alone(path: Path, suffix: str) -> None:
    """A log that somebody named after this one, as a copy of it, is not taken for a leftover."""
    beside = path.with_name(path.name + suffix)
    with Log.open(path) as log:
        log.compact(beside)
    before = content(beside)
    compact(path)
    assert content(beside) == before


@alone
def test_what_is_no_log_is_left_as_it_is(tmp_path: Path) -> None:
    """Neither a foreign file, nor a foreign LMDB file, nor nothing is touched."""
    with pytest.raises(UsageError, match="no log"):
        compact(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello " * 1000)
    with pytest.raises(NotALogError):
        compact(tmp_path / "text")
    with lmdb.open(str(tmp_path / "foreign"), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"a", b"b")
    foreign = (tmp_path / "foreign").read_bytes()
    with pytest.raises(NotALogError):
        compact(tmp_path / "foreign")
    assert (tmp_path / "text").read_text() == "hello " * 1000
    assert (tmp_path / "foreign").read_bytes() == foreign
    assert not [name for name in names(tmp_path / "foreign") if name.endswith("-unfinished")]


@alone
def test_the_log_is_one_and_the_same(path: Path) -> None:
    """Numbers and the log's own id go on: a compacted log is the same log."""
    with Log.open(path) as log:
        log_id, newest = log.storage.log_id, max(entry.commit for entry in log.feed())
    compact(path)
    with Log.open(path) as log:
        assert log.storage.log_id == log_id
        thread = log.thread("t0")
        row = thread.row()
        assert row is not None
        assert thread.append([step("later")]) == row.last + 1
        assert [entry.commit for entry in log.feed(after=newest)] == [newest + 1]


@alone
def test_a_process_that_was_forked_meanwhile_opens_the_log(path: Path) -> None:
    """A child that a fork made in the middle waits for its parent like any other process."""
    code = f"""if True:
        import os, threading
        from stepwell import Log, compact
        from stepwell.storage import newfile
        forked = []
        replace = newfile.NewFile.replace
        def forking(file, like):
            child = os.fork()
            if not child:
                with Log.open({str(path)!r}) as log:
                    os._exit(len(list(log.threads())) != 5)
            forked.append(child)
            replace(file, like)
        newfile.NewFile.replace = forking
        compact({str(path)!r})
        assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 0
        """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert len(content(path)) == 5


def test_names_are_public() -> None:
    """What users need is in the package."""
    assert {"compact", "Compaction"} <= set(stepwell.__all__)
