"""The engine for files: who shares what, what is refused, and what the file does.

What could end the process, or needs another one, runs in a process of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import lmdb
import msgspec
import pytest
from lmdb import verify as offline

import building
from building import noise, step
from stepwell import (
    ClosedError,
    CorruptionError,
    Log,
    NewerFormatError,
    NotALogError,
    ReadOnlyError,
    StepwellError,
    UsageError,
)
from stepwell.storage.checksums import checked, with_checksum
from stepwell.storage.lmdb import LmdbStorage, environment, freepages, opening, registry
from stepwell.storage.lmdb.datafile import LogFormat
from stepwell.storage.lmdb.freepages import UnclearError
from stepwell.storage.lmdb.structure import UnsoundError
from stepwell.storage.tables import ALL

on_linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")

PRELUDE = """
import os, sys
from building import append, noise, step, wrote
from stepwell import *
path = sys.argv[1]
"""


def start(script: str, path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin a script in a process of its own."""
    folders = [
        os.path.dirname(os.path.dirname(os.path.abspath(module.__file__))) for module in (sys.modules["stepwell"],)
    ]
    folders.append(os.path.dirname(os.path.abspath(building.__file__)))
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + dedent(script), str(path), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, path: Path, *arguments: str) -> str:
    """What a script in a process of its own prints; it must end well."""
    process = start(script, path, *arguments)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, f"ended with {process.returncode}: {output}{errors}"
    return output.strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a log can be made; if the test leaves one there, it is sound."""
    return tmp_path / "agents.stepwell"


@pytest.fixture
def made(path: Path) -> Any:
    """A log with three steps, closed."""
    with Log.open(path) as log:
        log.thread("t").append([step("s0"), step("s1", {"x": noise()}, parent="s0"), step("s2", parent="s1")])
    yield path
    with Log.open(path) as log:
        assert log.audit().breaches == []


def ids(log: Log) -> list[str]:
    """The steps of the thread."""
    return [found.step_id for found in log.thread("t").steps()]


# --- one environment per file ---


def test_same_file_twice(path: Path) -> None:
    """Two logs on one file share its environment: each sees at once what the other appends."""
    with Log.open(path) as one, Log.open(str(path)) as other:
        one.thread("t").append([step("s0")])
        other.thread("t").append([step("s1")])
        assert ids(one) == ids(other) == ["s1", "s0"]
        assert one.storage.log_id == other.storage.log_id


def test_other_paths_to_the_same_file(made: Path, tmp_path: Path) -> None:
    """A symbolic link, a relative path and a way round lead to the same environment."""
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to(made)
    folder.symlink_to(tmp_path)
    paths = [made, link, folder / made.name, os.path.relpath(made), made.parent / "." / made.name]
    storages = [LmdbStorage(path) for path in paths]
    assert {storage.key for storage in storages} == {str(made.resolve())}
    assert len({id(storage._environment) for storage in storages}) == 1
    for storage in storages:
        storage.close()


def test_a_link_can_be_where_the_log_is_made(path: Path, tmp_path: Path) -> None:
    """A log opened by a link to nothing is made where the link leads."""
    link = tmp_path / "link"
    link.symlink_to(path)
    with Log.open(link) as log:
        log.thread("t").append([step("s0")])
    assert path.is_file()
    assert link.is_symlink()


def test_closed_with_the_last_handle(made: Path) -> None:
    """The environment lives as long as one of its handles, and is gone with the last."""
    one, other = Log.open(made), Log.open(made)
    one.close()
    one.close()
    other.thread("t").append([step("s3")])
    with pytest.raises(ClosedError, match="closed"):
        list(one.thread("t").steps())
    with pytest.raises(ClosedError, match="closed"):
        one.thread("t").append([step("s4")])
    assert [opened.path for opened in registry.environments.values()] == [str(made)]
    other.close()
    assert registry.environments == {}
    with Log.open(made) as again:
        assert ids(again) == ["s3", "s2", "s1", "s0"]


def test_open_and_close_from_many_threads(made: Path) -> None:
    """Threads that open, use and close one file at the same time do not disturb each other."""
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(15):
                with Log.open(made) as log:
                    log.thread(name).append([step(f"s{number}")])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert registry.environments == {}
    with Log.open(made) as log:
        assert [found.steps for found in log.threads(newest_first=False)] == [3, 15, 15, 15, 15]


def test_a_dropped_log_is_given_back_at_any_moment(path: Path) -> None:
    """A log that is dropped unclosed gives its file back, even if the collector meets it while another is opened."""
    script = """
        import faulthandler, gc
        from stepwell.storage.lmdb import environment, registry
        faulthandler.dump_traceback_later(5, exit=True)
        open_map = environment.open_map
        def opening(*arguments):
            gc.collect()
            return open_map(*arguments)
        environment.open_map = opening
        gc.disable()
        for written in (False, True):
            for other in (path + ".other", path):
                log = Log.open(path)
                if written:
                    log.thread("t").append([step("s0")])
                log.circle = log
                del log
                with Log.open(other) as log:
                    log.thread("t").append([step("s1")])
                    gc.collect()
        while registry.environments:
            pass
        print("done")
        """
    assert run(script, path) == "done"


def test_file_removed_while_it_is_open(path: Path) -> None:
    """Who has a file open that was removed keeps it; who opens the path now gets a new log."""
    old = Log.open(path)
    old.thread("t").append([step("old")])
    path.unlink()
    Path(f"{path}-lock").unlink()
    with Log.open(path) as new:
        assert ids(new) == []
        new.thread("t").append([step("new")])
        old.thread("t").append([step("older")])
        assert (ids(new), ids(old)) == (["new"], ["older", "old"])
        old.close()
        new.thread("t").append([step("newer")])
    with Log.open(path) as again:
        assert ids(again) == ["newer", "new"]
        assert again.audit().breaches == []


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_only_the_data_file_changed_while_it_is_open(path: Path, change: str) -> None:
    """A file that lies where an open one lay, beside that one's lock file, is refused until the old one is closed."""
    with Log.open(path.parent / "other") as other:
        other.thread("t").append([step("other")])
    old = Log.open(path)
    old.thread("t").append([step("old")])
    if change == "removed":
        path.unlink()
    else:
        (path.parent / "other").replace(path)
    with pytest.raises(StepwellError):
        Log.open(path)
    old.thread("t").append([step("older")])
    assert ids(old) == ["older", "old"]
    old.close()
    with Log.open(path) as new:
        assert ids(new) == (["other"] if change == "replaced" else [])
        assert new.audit().breaches == []


# --- read only ---


def test_read_only(made: Path) -> None:
    """A log that is opened to read answers everything, and refuses every change."""
    with Log.open(made, read_only=True) as log:
        assert ids(log) == ["s2", "s1", "s0"]
        state = log.thread("t").state("s1")
        assert state is not None
        assert len(state.channels["x"][1]) == 300
        assert log.audit().breaches == []
        assert len(list(log.feed())) == 1
        thread = log.thread("t")
        for change in (
            lambda: thread.append([step("s3")]),
            thread.delete,
            lambda: thread.copy_to("u"),
            lambda: thread.prune([state.sequence]),
            lambda: log.storage.commit([building.append("t", step("s3"))]),
        ):
            with pytest.raises(ReadOnlyError, match="read_only"):
                change()
        assert ids(log) == ["s2", "s1", "s0"]


def test_read_only_without_a_file(path: Path) -> None:
    """Opening to read makes no file, neither where there is none nor out of an empty one."""
    with pytest.raises(UsageError, match="no log"):
        Log.open(path, read_only=True)
    assert list(path.parent.iterdir()) == []
    path.touch()
    with pytest.raises((UsageError, NotALogError)):
        Log.open(path, read_only=True)
    assert path.read_bytes() == b""


def test_read_only_beside_writable(made: Path) -> None:
    """A handle to read and one to write share a file in either order, and each keeps its rights."""
    for order in ((True, False), (False, True)):
        logs = {read_only: Log.open(made, read_only=read_only) for read_only in order}
        before = ids(logs[True])
        logs[False].thread("t").append([step(f"s{len(before)}")])
        assert ids(logs[True]) == [f"s{len(before)}", *before]
        with pytest.raises(ReadOnlyError):
            logs[True].thread("t").append([step("no")])
        logs[order[0]].close()
        assert len(ids(logs[order[1]])) == len(before) + 1
        logs[order[1]].close()


def test_upgrade_to_writable_fails(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a file that is open to read cannot be opened to write, the handles to read go on."""
    reader = Log.open(made, read_only=True)
    open_map = environment.open_map

    def refused(real_path: str, read_only: bool, *rest: Any) -> lmdb.Environment:
        if not read_only:
            error = lmdb.Error("Permission denied")
            error.code = errno.EACCES
            raise error
        return open_map(real_path, read_only, *rest)

    monkeypatch.setattr(environment, "open_map", refused)
    with pytest.raises((ReadOnlyError, CorruptionError)):
        Log.open(made)
    assert ids(reader) == ["s2", "s1", "s0"]
    reader.close()
    assert registry.environments == {}


def test_a_file_that_was_renamed_while_it_is_open_to_read(made: Path) -> None:
    """Opening it for writing is refused, makes nothing at its old path, and changes nothing for who has it open."""
    old = Log.open(made, read_only=True)
    moved = made.with_name("moved")
    made.rename(moved)
    with pytest.raises(UsageError, match="was renamed"):
        Log.open(moved)
    assert not made.exists()
    assert ids(old) == ["s2", "s1", "s0"]
    old.close()
    with Log.open(moved) as log:
        assert ids(log) == ["s2", "s1", "s0"]


def test_verifying_what_another_thread_has_open(made: Path) -> None:
    """Making sure of a file that is open waits, as every reading does, for who changes its map."""
    with Log.open(made) as log:
        environment = log.storage._environment  # type: ignore[attr-defined]
        others: list[Log] = []
        opening = threading.Thread(target=lambda: others.append(Log.open(made, verify=True)))
        with environment._alone():
            opening.start()
            opening.join(0.2)
            assert opening.is_alive()
        opening.join()
        others[0].close()


def test_a_stranger_that_is_damaged_is_refused_each_time(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a lock file is looked at in full, however often that failed or was broken off."""
    Path(f"{made}-lock").unlink()
    monkeypatch.setattr(environment, "_MOST_BYTES", 0)
    for trouble in (UnsoundError("damaged"), KeyboardInterrupt()):

        def fails(path: str, transaction: object, most_bytes: int | None, trouble: BaseException = trouble) -> None:
            if most_bytes is None:
                raise trouble

        for _ in range(2):
            with monkeypatch.context() as patched:
                patched.setattr(opening, "check", fails)
                with pytest.raises((CorruptionError, KeyboardInterrupt)):
                    Log.open(made)
            assert not Path(f"{made}-lock").exists()
    with Log.open(made) as log:
        assert ids(log) == ["s2", "s1", "s0"]


@on_linux
def test_no_more_files(made: Path) -> None:
    """Where a process may open no more files, opening a log says so, and not that the log is damaged."""
    script = """
        import errno, os
        from stepwell import CapacityError
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for spare in range(8):
            taken = []
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            for _ in range(spare):
                os.close(taken.pop())
            try:
                Log.open(path).close()
            except CapacityError as error:
                assert "ulimit -n" in str(error), error
            else:
                assert spare > 2
            for descriptor in taken:
                os.close(descriptor)
        print(spare)
        """
    assert run("import resource\n" + dedent(script), made) == "7"


def test_read_only_follows_another_process(made: Path) -> None:
    """A log that is open to read shows what another process appends meanwhile."""
    with Log.open(made, read_only=True) as log:
        run("Log.open(path).thread('t').append([step('s3')])", made)
        assert ids(log) == ["s3", "s2", "s1", "s0"]


# --- what is no log ---


def foreign(path: Path, table: bytes | None, rows: dict[bytes, bytes]) -> None:
    """An LMDB file that somebody else made."""
    with lmdb.open(str(path), subdir=False, max_dbs=10) as env, env.begin(write=True) as transaction:
        database = env.open_db(table, transaction) if table else None
        for key, value in rows.items():
            transaction.put(key, value, db=database)
    Path(f"{path}-lock").unlink()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"SQLite format 3\0" + bytes(4096),
        b"a text file\n" * 1000,
        bytes(100),
        bytes(16384),
        bytes(16) + (0xBEEFC0DE).to_bytes(4, sys.byteorder),
        bytes(16) + (0xBEEFC0DE).to_bytes(4, sys.byteorder) + (1).to_bytes(4, sys.byteorder),
        bytes(16) + (0xBEEFC0DE).to_bytes(4, sys.byteorder) + (1).to_bytes(4, sys.byteorder) + bytes(8192),
        bytes(16) + (0xBEEFC0DE).to_bytes(4, sys.byteorder) + (2).to_bytes(4, sys.byteorder) + bytes(8192),
        bytes(16) + (0xBEEFC0DF).to_bytes(4, sys.byteorder) + (1).to_bytes(4, sys.byteorder) + bytes(8192),
    ],
)
def test_other_files(path: Path, content: bytes, read_only: bool) -> None:
    """A file that is no LMDB file of our engine is refused and left as it is, with nothing beside it."""
    path.write_bytes(content)
    with pytest.raises((NotALogError, CorruptionError)):
        Log.open(path, read_only=read_only)
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("table", "rows"),
    [
        (None, {b"key": b"value"}),
        (None, {b"meta": b"a value where we have a table"}),
        (b"theirs", {}),
        (b"theirs", {b"format": b"value"}),
        (b"meta", {}),
        (b"meta", {b"other": b"value"}),
    ],
)
def test_other_lmdb_files(path: Path, table: bytes | None, rows: dict[bytes, bytes], read_only: bool) -> None:
    """An LMDB file that somebody else made, with rows or with an empty table, is refused and left as it is."""
    foreign(path, table, rows)
    before = path.read_bytes()
    with pytest.raises(NotALogError, match="not a"):
        Log.open(path, read_only=read_only)
    assert path.read_bytes() == before
    assert registry.environments == {}
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_empty_lmdb_file(path: Path) -> None:
    """An LMDB file with nothing in it, such as a crash while making a log leaves, becomes one, but not to read."""
    foreign(path, None, {})
    with pytest.raises(NotALogError):
        Log.open(path, read_only=True)
    with Log.open(path) as log:
        log.thread("t").append([step("s0")])
        assert log.audit().breaches == []


def test_places_where_no_log_can_be(tmp_path: Path) -> None:
    """A folder, a place below a file, one in a folder that does not exist and no path at all are refused."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(NotALogError, match="directory"):
        Log.open(tmp_path)
    for wrong in (tmp_path / "no" / "log", tmp_path / "file" / "log", tmp_path / "loop", "a\0b", "", 7, None, b"log"):
        for read_only in (False, True):
            with pytest.raises((UsageError, NotALogError)):
                Log.open(wrong, read_only=read_only)  # type: ignore[arg-type]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "loop"]


def rewrite_format(path: Path, **fields: int | str) -> None:
    """Change what a log says of its format."""
    with lmdb.open(str(path), subdir=False, max_dbs=20) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin(write=True) as transaction:
            stored = checked("meta", b"format", transaction.get(b"format", db=meta) or b"")
            changed = msgspec.structs.replace(msgspec.msgpack.decode(stored, type=LogFormat), **fields)
            stored = with_checksum("meta", b"format", msgspec.msgpack.encode(changed))
            transaction.put(b"format", stored, db=meta)


@pytest.mark.parametrize("read_only", [False, True])
def test_newer_format(path: Path, read_only: bool) -> None:
    """A log that only a later version can read asks for an upgrade; one that it can merely write is read."""
    with Log.open(path) as log:
        log.thread("t").append([step("s0")])
    rewrite_format(path, written=7, readable_from=1)
    with Log.open(path, read_only=read_only) as log:
        assert ids(log) == ["s0"]
    rewrite_format(path, written=7, readable_from=7)
    os.remove(f"{path}-lock")
    before = path.read_bytes()
    with pytest.raises(NewerFormatError, match=r"format 7.*upgrade"):
        Log.open(path, read_only=read_only)
    assert registry.environments == {}
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("read_only", [False, True])
def test_other_engine(path: Path, read_only: bool) -> None:
    """A log that says that it is of another engine is refused, with the engine's name."""
    Log.open(path).close()
    rewrite_format(path, engine="lmdb 1.0")
    with pytest.raises(NotALogError, match=r"lmdb 1\.0"):
        Log.open(path, read_only=read_only)


@pytest.mark.parametrize("stored", [b"", b"\xc1", with_checksum("meta", b"format", b"\xc1")])
def test_format_entry_that_cannot_be_read(path: Path, stored: bytes) -> None:
    """A log whose format entry is damaged is reported as damaged."""
    Log.open(path).close()
    with lmdb.open(str(path), subdir=False, max_dbs=20) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin(write=True) as transaction:
            transaction.put(b"format", stored, db=meta)
    with pytest.raises(CorruptionError, match=r"format|meta"):
        Log.open(path)


@pytest.mark.parametrize("name", [*ALL])
def test_table_that_is_missing(path: Path, name: str) -> None:
    """A log that lacks one of its tables is damaged, and not somebody else's file."""
    Log.open(path).close()
    with lmdb.open(str(path), subdir=False, max_dbs=20) as env:
        table = env.open_db(name.encode(), create=False)
        with env.begin(write=True) as transaction:
            transaction.drop(table)
    with pytest.raises(CorruptionError, match=f"table '{name}'"):
        Log.open(path)


# --- damage to the file ---


@pytest.mark.parametrize("read_only", [False, True])
def test_file_cut_short(path: Path, read_only: bool) -> None:
    """A file of which the end is missing is an error to the program, not its end."""
    with Log.open(path) as log:
        for number in range(20):
            log.thread("t").append([step(f"s{number}", {"x": noise(9000)})])
        # What is written last stands at the end, and takes many pages.
        log.thread("t").append([step("last", {"x": noise(100_000)})])
    whole = path.stat().st_size
    script = """
        for length in map(int, sys.argv[3:]):
            copy = f"{path}.{length}"
            with open(path, "rb") as file:
                content = file.read(length)
            with open(copy, "wb") as file:
                file.write(content)
            try:
                with Log.open(copy, read_only=sys.argv[2] == "True") as log:
                    shown = len(list(log.thread("t").events()))
                    print(length, shown, len(log.audit().breaches), flush=True)
            except (CorruptionError, NotALogError, UsageError) as error:
                print(length, type(error).__name__, flush=True)
        """
    lengths = [
        0,
        1,
        100,
        4096,
        6000,
        8192,
        12288,
        whole // 4,
        whole // 2,
        whole * 3 // 4,
        whole - 40_960,
        whole - 4096,
        whole - 1,
        whole,
    ]
    process = start(script, path, str(read_only), *map(str, lengths))
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), errors
    found = {int(line.split()[0]): line.split()[1:] for line in output.splitlines()}
    assert list(found) == lengths
    assert found[whole] == ["23", "0"]
    # The last page may be one that nothing is in; all else is missed.
    assert all(found[length] in (["CorruptionError"], ["NotALogError"]) for length in lengths[1:-3])
    assert all(found[length] in (["CorruptionError"], ["23", "0"]) for length in lengths[-3:-1])


def test_bytes_overwritten(path: Path) -> None:
    """Bytes of a record that changed in the file are reported, with thread and sequence."""
    contents = [noise(900) for _ in range(20)]
    with Log.open(path) as log:
        log.thread("t").append([step(f"s{number}", {"x": content}) for number, content in enumerate(contents)])
    whole = path.read_bytes()
    for number in (0, 7, 19):
        assert whole.count(contents[number]) == 1
        damaged = path.parent / f"damaged {number}"
        damaged.write_bytes(whole.replace(contents[number][450:], bytes(450)))
        with Log.open(damaged) as log:
            with pytest.raises(CorruptionError) as caught:
                log.thread("t").state(f"s{number}")
            assert (caught.value.thread, caught.value.sequence) == (1, number + 3)
            other = log.thread("t").state(f"s{number ^ 1}")
            assert other is not None
            assert other.channels["x"][1] == contents[number ^ 1]
            assert ("I2", 1, number + 3) in [breach[:3] for breach in log.audit().breaches]


# --- room ---


LIMITED = """
    import resource
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (124 << 20), resource.RLIM_INFINITY))
    log = Log.open(path)
    thread = log.thread("t")
    """


@on_linux
def test_small_address_space_that_grows(path: Path) -> None:
    """A log that began with a small map grows it while it is used, and no append is lost."""
    script = """
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        before = log.storage._environment.env.info()["map_size"]
        tickets = [thread.begin_append([step(f"s{n}", {"x": noise(1 << 20)})]) for n in range(90)]
        other = Log.open(path)
        other.thread("u").append([step("s0")])
        for ticket in tickets:
            ticket.result()
        after = log.storage._environment.env.info()["map_size"]
        assert before <= 64 << 20 < after, (before, after)
        print(len(list(thread.steps())), len(list(other.thread("u").steps())), len(log.audit().breaches))
        """
    assert run(dedent(LIMITED) + dedent(script), path) == "90 1 0"


@on_linux
def test_small_address_space_that_stays(path: Path) -> None:
    """When the map cannot grow, the append that does not fit fails, and all else goes on."""
    script = """
        # What is sealed is held in memory, of which there is none left beside the map.
        log.close()
        log = Log.open(path, seal_after_bytes=1 << 40)
        thread = log.thread("t")
        appended = 0
        try:
            while True:
                thread.append([step(f"s{appended}", {"x": noise(1 << 20)})])
                appended += 1
        except MapFullError as error:
            print(error, file=sys.stderr)
        assert 20 < appended < 100, appended
        assert thread.summary().steps == appended
        assert len(thread.state().channels["x"][1]) == 1 << 20
        thread.append([step("small")])
        thread.prune([thread.state().sequence])
        for number in range(5):
            thread.append([step(f"again {number}", {"x": noise(1 << 20)})])
        print(thread.summary().steps, log.audit().breaches)
        """
    assert run(dedent(LIMITED) + dedent(script), path) == "6 []"


@on_linux
def test_small_address_space_leaves_room(path: Path) -> None:
    """The map takes half of a small address space at most, so that the file can be looked at, and the program go on."""
    script = """
        log.storage._environment.check()
        print(log.storage._environment.env.info()["map_size"] <= 64 << 20, len(bytearray(32 << 20)) >> 20)
        """
    assert run(dedent(LIMITED) + dedent(script), path) == "True 32"


@on_linux
def test_many_logs_in_one_process(path: Path) -> None:
    """A thousand logs are open at once, and the program has address space left."""
    script = """
        import resource
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 8192), limit))
        number = min(1000, limit // 6)
        logs = [Log.open(f"{path}{n}") for n in range(number)]
        logs[-1].thread("t").append([step("s0")])
        print(number == len(logs), len(bytearray(1 << 28)) >> 20)
        """
    assert run(script, path) == "True 256"


def test_a_decision_while_the_map_is_resized(path: Path) -> None:
    """Who reads in the midst of a write does not wait for a resizing, which waits for the write."""
    script = """
        import faulthandler, threading, time
        faulthandler.dump_traceback_later(10, exit=True)
        log = Log.open(path)
        thread = log.thread("t")
        thread.append([step("s0")])
        environment = log.storage._environment
        def resize():
            with environment._alone():
                pass
        resizing = threading.Thread(target=resize)
        def decide(row):
            if not resizing.ident:
                resizing.start()
                while environment._alone_thread is None:
                    pass
                assert len(list(thread.steps())) == 1
        from stepwell.storage import Rewrite
        log.submit(Rewrite("t", decide)).result()
        resizing.join()
        thread.append([step("s1")])
        print(len(list(thread.steps())))
        """
    assert run(script, path) == "2"


@on_linux
def test_another_process_grows_the_file(path: Path) -> None:
    """A process with a small map follows when another one makes the file larger than that."""
    script = """
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        thread.append([step("s0")])
        print("ready", flush=True)
        sys.stdin.readline()
        print(len(list(thread.steps())), flush=True)
        thread.append([step("last", {"x": noise(1 << 20)})])
        print(len(list(thread.steps())), len(log.audit().breaches))
        """
    process = start(dedent(LIMITED) + dedent(script), path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with Log.open(path) as log:
        for number in range(80):
            log.thread("t").begin_append([step(f"{number}", {"x": noise(1 << 20)})])
        log.thread("t").append([step("80")])
        log.seal()  # an audit takes what another process changes meanwhile for a breach
        output, errors = process.communicate("go\n", timeout=60)
        assert (process.returncode, output, errors) == (0, "82\n83 0\n", "")
        assert len(ids(log)) == 83


# --- processes ---


def test_a_fork_may_not_use_the_log(path: Path) -> None:
    """A forked child cannot use what its parent opened, can open the file itself, and harms nobody."""
    script = """
        log = Log.open(path)
        thread = log.thread("t")
        thread.append([step("s0")])
        steps = thread.steps()
        child = os.fork()
        if child == 0:
            refused = 0
            for use in (thread.state, lambda: list(thread.steps()), lambda: list(steps), lambda: list(log.feed()),
                        log.audit, lambda: thread.append([step("s1")]), thread.delete, lambda: thread.begin_append([])):
                try:
                    use()
                except ForkedError as error:
                    refused += str(os.getppid()) in str(error) and "Log.open" in str(error)
            log.close()
            with Log.open(path) as own:
                own.thread("t").append([step("child")])
                own.thread("t").state()
            os._exit(100 + refused)
        status = os.waitpid(child, 0)[1]
        thread.append([step("s1")])
        print(os.waitstatus_to_exitcode(status), [each.step_id for each in thread.steps()], log.audit().breaches)
        log.close()
        """
    assert run(script, path) == "108 ['s1', 'child', 's0'] []"


def test_forks_while_writing(path: Path) -> None:
    """Forks in the midst of appends and reads take nothing from the parent, and each child can open the log."""
    script = """
        import threading
        log = Log.open(path)
        stop = threading.Event()
        def write(name):
            number = 0
            while not stop.is_set():
                log.thread(name).append([step(f"s{number}")])
                number += 1
        def read():
            while not stop.is_set():
                list(log.thread("t0").steps())
        threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(2)] + [threading.Thread(target=read)]
        for each in threads:
            each.start()
        children = []
        for number in range(15):
            child = os.fork()
            if child == 0:
                with Log.open(path) as own:
                    own.thread("child").append([step(f"c{number}")])
                os._exit(0)
            children.append(child)
        ended = [os.waitpid(child, 0)[1] for child in children]
        stop.set()
        for each in threads:
            each.join()
        print(ended.count(0), len(list(log.thread("child").steps())), log.audit().breaches)
        log.close()
        """
    assert run(script, path) == "15 15 []"


def test_who_opens_while_the_second_commit_is_being_written_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB writes over a meta page before it says that there is another transaction: that is no damage."""
    ids, looked = iter([5, 6, 6]), []

    @contextmanager
    def begin() -> Iterator[SimpleNamespace]:
        number = next(ids)
        yield SimpleNamespace(id=lambda: number)

    def check(path: str, real_path: str, transaction: int, most_bytes: int | None) -> None:
        looked.append(transaction)
        if transaction == 5:
            raise CorruptionError("no meta page is of that transaction")

    monkeypatch.setattr(opening, "check_pages", check)
    opening.check_snapshot(begin, "a.stepwell", "a.stepwell", None)  # type: ignore[arg-type]
    assert looked == [5, 6]


def test_a_fork_of_a_log_in_memory(path: Path) -> None:
    """A forked child cannot append to a log in memory: nobody would ever see it."""
    script = """
        log = Log.open(":memory:")
        log.thread("t").append([step("s0")])
        child = os.fork()
        if child == 0:
            try:
                log.thread("t").append([step("s1")])
            except ForkedError:
                log.close()
                os._exit(7)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        log.thread("t").append([step("s1")])
        """
    assert run(script, path) == "7"


def test_two_processes_by_turns(path: Path) -> None:
    """Two processes that append by turns each build on what the other has committed."""
    script = """
        log = Log.open(path)
        thread = log.thread("t")
        for line in sys.stdin:
            state = thread.state()
            old = state.values if state else None
            items = dict(state.channels) if state else {}
            items[line.strip()] = ("text", line.encode())
            base, head = (state.sequence, thread.row().last) if state else (0, 0)
            event = StepCommitted(line.strip(), None, changes(items, old), changes({}), base=base)
            print(thread.append([event], expected_head=head), flush=True)
        print(log.audit().breaches)
        """
    processes = [start(script, path) for _ in range(2)]
    for turn in range(40):
        process = processes[turn % 2]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"s{turn}\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) == turn + 3
    for process in processes:
        assert process.communicate(timeout=60) == ("[]\n", "")
    with Log.open(path) as log:
        state = log.thread("t").state()
        assert state is not None
        assert sorted(state.channels) == sorted(f"s{turn}" for turn in range(40))


def test_two_processes_at_once(path: Path) -> None:
    """Processes that append at the same time lose nothing, and one that loses a race on a head is told."""
    script = """
        log = Log.open(path)
        print("ready", flush=True)
        sys.stdin.readline()
        shared, conflicts = log.thread("shared"), 0
        for number in range(60):
            log.thread(sys.argv[2]).append([step(f"s{number}")])
            while True:
                row = shared.row()
                try:
                    shared.append([step(f"{sys.argv[2]} {number}")], expected_head=row.last if row else 0)
                    break
                except ConflictError:
                    conflicts += 1
        print(log.audit() and "done")
        """
    processes = [start(script, path, name) for name in "ab"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        outputs.append(process.communicate(timeout=60))
    assert outputs == [("done\n", "")] * 2
    with Log.open(path) as log:
        assert {found.thread_id: found.steps for found in log.threads()} == {"shared": 120, "a": 60, "b": 60}
        assert log.audit().breaches == []


def test_processes_that_create_the_log_at_once(tmp_path: Path) -> None:
    """Processes that open a log for the first time at the same moment all get the same one."""
    script = """
        import time
        for line in sys.stdin:
            name, moment = line.split()
            while time.time() < float(moment):
                pass
            with Log.open(name) as log:
                print(log.storage.log_id.hex(), flush=True)
        """
    processes = [start(script, tmp_path) for _ in range(2)]
    for round_ in range(60):
        for number, process in enumerate(processes):
            assert process.stdin is not None
            # The second comes a little later, by another little each time.
            moment = time.time() + 0.003 + number * (round_ % 30) * 0.0001
            process.stdin.write(f"{tmp_path / str(round_)} {moment}\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in processes if process.stdout]
        assert lines[0] == lines[1] != ""
    for process in processes:
        assert process.communicate(timeout=60) == ("", "")


def test_killed_reader(path: Path) -> None:
    """The slot of a reader that was killed in the midst of a read is found free by whoever opens the log next."""
    script = """
        log = Log.open(path)
        log.thread("t").append([step("s0")])
        with log.storage._reading():
            os._exit(9)
        """
    process = start(script, path)
    process.communicate(timeout=60)
    assert process.returncode == 9
    with Log.open(path) as log:
        storage = log.storage
        assert isinstance(storage, LmdbStorage)
        assert storage._environment is not None
        assert "(no active readers)" in storage._environment.env.readers()


# --- no transaction survives a yield ---


def commits_beside_an_iterator(path: Path, kind: str) -> int:
    """Size of the file after 2,000 commits while an iterator of some kind is paused."""
    with Log.open(path, seal_after_events=1 << 30) as log:
        thread = log.thread("t")
        thread.append([step(f"s{number}") for number in range(600)])
        iterators = {
            "events": lambda: thread.events(),
            "backwards": lambda: thread.events(reverse=True),
            "steps": lambda: thread.steps(),
            "lane": lambda: thread.steps(lane=""),
            "feed": lambda: log.feed(),
            "threads": lambda: log.threads(),
        }
        paused = [make() for name, make in iterators.items() if kind in (name, "all")]
        for iterator in paused:
            next(iterator)
        storage = log.storage
        assert isinstance(storage, LmdbStorage)
        assert storage._environment is not None
        assert "(no active readers)" in storage._environment.env.readers()
        for _ in range(2000):
            storage.commit([building.append("u", step("s"))])
        for iterator in paused:
            assert len(list(iterator)) > 0 or kind == "all"
        assert log.audit().breaches == []
    return path.stat().st_size


def test_paused_iterators_cost_nothing() -> None:
    """While iterators of every kind are paused, 2,000 commits make the file no larger than without them."""
    # In memory, if the system has a place for that: these are many commits.
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        without, beside = (commits_beside_an_iterator(Path(folder) / kind, kind) for kind in ("none", "all"))
    assert beside <= without + 65536


def test_readers_are_given_back(made: Path) -> None:
    """A read that fails leaves no reader behind, so any number of them can fail."""
    with Log.open(made) as log:
        storage = log.storage
        assert isinstance(storage, LmdbStorage)
        for _ in range(600):
            with pytest.raises(RuntimeError), storage._reading():
                raise RuntimeError
        assert storage._environment is not None
        assert "(no active readers)" in storage._environment.env.readers()


def test_compacted_copy_is_a_log(made: Path, tmp_path: Path) -> None:
    """A copy of the file, made while nobody writes, is the same log."""
    shutil.copy(made, tmp_path / "copy")
    with Log.open(made) as log, Log.open(tmp_path / "copy") as copy:
        assert ids(copy) == ids(log)
        assert copy.storage.log_id == log.storage.log_id
        copy.thread("t").append([step("s3")])
        assert ids(copy) != ids(log)
        assert copy.audit().breaches == []


# --- room that is given back ---


def taken(path: Path) -> int:
    """How much of the disk a file takes."""
    return path.stat().st_blocks * 512


def unused(log: Log, threads: int = 12, kept: int = 3, steps: int = 40) -> dict[str, list[tuple[str, object]]]:
    """Make most of a log unused: threads of about 160 KB, of which some stay; returns what those hold."""
    for number in range(threads):
        thread = log.thread(f"t{number}")
        for first in range(0, steps, 10):
            thread.append([step(f"s{name}", {"x": noise(3000)}) for name in range(first, first + 10)])
    for number in range(kept, threads):
        log.thread(f"t{number}").delete()
    return holding(log)


def holding(log: Log) -> dict[str, list[tuple[str, object]]]:
    """Every step of every thread, with its state."""
    found: dict[str, list[tuple[str, object]]] = {}
    for summary in log.threads():
        thread = log.thread(summary.thread_id)
        states = [(one.step_id, thread.state(one.sequence)) for one in thread.steps()]
        found[thread.id] = [(name, state and state.channels) for name, state in states]
    return found


def unsealing(path: Path) -> Log:
    """A log that seals nothing by itself."""
    return Log.open(path, seal_after_events=1 << 20, seal_after_bytes=1 << 30)


@pytest.fixture
def punching() -> None:
    """Skips where no holes can be made."""
    if not freepages.can_punch():
        pytest.skip("the system makes no holes")


@pytest.mark.usefixtures("punching")
def test_room_is_given_back(path: Path) -> None:
    """What deletions leave goes back to the file system, once; the log is as it was, and goes on in the holes."""
    with unsealing(path) as log:
        held = unused(log)
        occupied, length = taken(path), path.stat().st_size
        given = log.storage.give_back()
        assert given > occupied // 2
        assert taken(path) <= occupied - given * 9 // 10
        assert path.stat().st_size == length
        assert log.storage.give_back() == 0
        assert log.audit().breaches == []
        assert holding(log) == held
        for name in range(60):
            log.thread("more").append([step(f"s{name}", {"x": noise(3000)})])
        # The pages of the holes are used again before the file grows.
        assert path.stat().st_size == length
        assert {name: states for name, states in holding(log).items() if name != "more"} == held
        assert log.audit().breaches == []
    assert offline.verify(str(path), subdir=False) == []
    with Log.open(path) as log:
        assert {name: states for name, states in holding(log).items() if name != "more"} == held


@pytest.mark.usefixtures("punching")
@pytest.mark.parametrize("how", ["close", "seal", "seal one"])
def test_who_gives_back(path: Path, how: str) -> None:
    """Closing a log that was written gives back what is free, and so does sealing."""
    with unsealing(path) as log:
        unused(log)
        occupied = taken(path)
        if how != "close":
            log.seal("t0" if how == "seal one" else None)
            assert taken(path) < occupied // 2
    assert taken(path) < occupied // 2
    assert offline.verify(str(path), subdir=False) == []


@pytest.mark.usefixtures("punching")
def test_room_is_given_back_in_the_background(path: Path) -> None:
    """A background sealing gives back what is free if it is a quarter of the file, and leaves a little."""
    with unsealing(path) as log:
        unused(log, threads=16)
        least = taken(path) // 4
    # Closing gave it back: fill the holes again.
    with unsealing(path) as log:
        unused(log, threads=16)
        occupied = taken(path)
        log.storage.give_back(1 << 40, in_background=True)
        log.storage.give_back(1 << 40)
        assert taken(path) == occupied
        given = log.storage.give_back(1 << 16, in_background=True)
        assert given >= least
        assert log.storage.give_back(1 << 16, in_background=True) == 0
        assert log.storage.give_back() > 0
    with Log.open(path, seal_after_events=50) as log:
        held = unused(log, threads=24)
        occupied = taken(path)
        for name in range(60):
            log.thread("t0").append([step(f"n{name}", {"x": noise()})])
        deadline = time.monotonic() + 20
        while taken(path) > occupied - (1 << 20) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert taken(path) <= occupied - (1 << 20)
        assert {name: states for name, states in holding(log).items() if name != "t0"} == {
            name: states for name, states in held.items() if name != "t0"
        }
        assert log.audit().breaches == []


@pytest.mark.usefixtures("punching")
def test_appends_go_on_while_room_is_given_back(path: Path) -> None:
    """Threads that append and read while holes are made lose nothing and see nothing else."""
    with unsealing(path) as log:
        held = unused(log)
        done = threading.Event()
        failed: list[BaseException] = []

        def give_back() -> None:
            try:
                while not done.is_set():
                    log.storage.give_back()
                    log.storage.give_back(in_background=True)
            except BaseException as error:
                failed.append(error)

        workers = [threading.Thread(target=give_back) for _ in range(2)]
        for worker in workers:
            worker.start()
        for number in range(60):
            log.thread(f"u{number}").append([step(f"s{name}", {"x": noise(3000)}) for name in range(4)])
            log.thread(f"u{number - 2}").delete()
            if number % 10 == 0:
                assert holding(log).items() >= held.items()
        done.set()
        for worker in workers:
            worker.join()
        assert failed == []
        assert log.audit().breaches == []
    assert offline.verify(str(path), subdir=False) == []


@pytest.mark.usefixtures("punching")
def test_a_reader_keeps_its_pages(path: Path) -> None:
    """What another process still reads is not given back, and the same as before; then it is."""
    script = """
        import lmdb
        env = lmdb.open(path, subdir=False, readonly=True, max_dbs=30)
        names = [key for key, _ in env.begin().cursor()]
        tables = [env.open_db(name, create=False) for name in names]
        transaction = env.begin()
        def seen():
            return [row for table in tables for row in transaction.cursor(table)]
        first = seen()
        print(len(first), flush=True)
        sys.stdin.readline()
        assert seen() == first
        transaction.abort()
        print("ended", flush=True)
        sys.stdin.readline()
    """
    with unsealing(path) as log:
        for name in range(100):
            log.thread("t").append([step(f"s{name}", {"x": noise(3000)})])
        log.storage.give_back()
        with start(script, path) as child:
            assert child.stdin
            assert child.stdout
            assert int(child.stdout.readline()) > 100
            log.thread("t").delete()
            for name in range(5):
                log.thread("u").append([step(f"s{name}")])
            assert log.storage.give_back() < 1 << 17
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "ended\n"
            assert log.storage.give_back() > 100 * 3000
            output, errors = child.communicate("\n", timeout=60)
            assert (child.returncode, output, errors) == (0, "", "")
        assert log.audit().breaches == []


@pytest.mark.usefixtures("punching")
def test_a_killed_reader_keeps_nothing(path: Path) -> None:
    """The slot of a reader that was killed is cleared before it is asked who reads."""
    script = """
        import lmdb, signal
        env = lmdb.open(path, subdir=False, readonly=True, max_dbs=30)
        transaction = env.begin()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with unsealing(path) as log:
        log.thread("t").append([step("s0")])
        with start(script, path) as child:
            child.communicate(timeout=60)
        unused(log)
        assert log.storage.give_back() > 1 << 20


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO, errno.ENOSPC, None])
def test_where_no_holes_can_be_made(path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None) -> None:
    """A system or a file system that refuses makes no difference to anything but the room."""
    calls = 0

    def fallocate(_descriptor: int, mode: int, *_: int) -> int:
        nonlocal calls
        if not mode & 2:
            return 0  # the lock file gets blocks
        calls += 1
        ctypes.set_errno(code or 0)
        return -1

    monkeypatch.setattr(freepages, "_fallocate", None if code is None else fallocate)
    with unsealing(path) as log:
        held = unused(log, threads=4, kept=1)
        occupied = taken(path)
        assert log.storage.give_back() == 0
        assert log.storage.give_back(in_background=True) == 0
        log.seal("t0")
        assert holding(log) == held
        assert taken(path) >= occupied
        assert log.audit().breaches == []
    assert calls == {None: 0, errno.EOPNOTSUPP: 1, errno.ENOSYS: 1}.get(code, calls)
    with Log.open(path) as log:
        assert holding(log) == held


@pytest.mark.usefixtures("punching")
@pytest.mark.parametrize(
    ("function", "answer"),
    [
        ("oldest_readers", UnclearError("nobody knows")),
        ("oldest_readers", []),
        ("before", UnclearError("nobody knows")),
        ("before", OSError(errno.EIO, "the disk fails")),
    ],
)
def test_nothing_is_given_back_in_doubt(
    path: Path, monkeypatch: pytest.MonkeyPatch, function: str, answer: Exception | list[int]
) -> None:
    """Where the readers or the free pages cannot be told, nothing is done, and no caller hears of it."""

    def doubtful(*_: object) -> list[int]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with unsealing(path) as log:
        held = unused(log, threads=4, kept=1)
        monkeypatch.setattr(freepages, function, doubtful)
        occupied = taken(path)
        assert log.storage.give_back() == 0
        assert taken(path) == occupied
        log.seal()
        assert holding(log) == held


@pytest.mark.usefixtures("punching")
def test_a_file_that_was_replaced_is_left_alone(path: Path) -> None:
    """Whoever has an old file open makes no holes in the one that stands at its path now."""
    with unsealing(path) as log:
        unused(log, threads=4, kept=1)
        copy = path.with_name("copy")
        shutil.copy(path, copy)
        os.replace(copy, path)
        whole = path.read_bytes()
        assert log.storage.give_back() == 0
        assert path.read_bytes() == whole


def test_giving_back_needs_an_open_log(path: Path) -> None:
    """A log that is only read, or in memory, gives nothing back; one that is closed says so."""
    with unsealing(path) as log:
        unused(log, threads=4, kept=1)
    with Log.open(path, read_only=True) as log:
        assert log.storage.give_back() == 0
    with pytest.raises(ClosedError):
        log.storage.give_back()
    with Log.open(":memory:") as log:
        unused(log, threads=2, kept=1)
        assert log.storage.give_back() == 0
    with pytest.raises(ClosedError):
        log.storage.give_back()
