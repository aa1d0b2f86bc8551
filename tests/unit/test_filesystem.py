"""Where a log may lie: local and remote file systems, overlays, several paths to one file, read-only media.

What needs mounts runs as root in a process with a table of mounts of its own, which ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from building import step
from stepwell import Log, UsageError
from stepwell.storage.lmdb import filesystem
from stepwell_langgraph import StepwellSaver

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="file systems are told apart on Linux")

PRELUDE = """
import os, subprocess, sys
from building import step
from stepwell import *
folder = sys.argv[1]
path = os.path.join(folder, "agents.stepwell")
def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)
def refused(open_it, *words):
    try:
        open_it().close()
    except StepwellError as error:
        assert all(word in str(error) for word in words), error
        return type(error).__name__
    return "opened"
def ids(log):
    return [found.step_id for found in log.thread("t").steps()]
"""


def run(script: str, folder: Path, *before: str) -> str:
    """What a script prints that runs in a process of its own; it must end well."""
    ended = subprocess.run(
        [*before, sys.executable, "-c", PRELUDE + dedent(script), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, f"ended with {ended.returncode}: {ended.stdout}{ended.stderr}"
    return ended.stdout.strip()


OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    """A folder below which a process with mounts of its own may mount."""
    try:
        subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    return tmp_path


# --- remote file systems ---


@pytest.mark.parametrize("number", filesystem._REMOTE)
def test_remote_file_systems_are_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On each file system that other machines see, opening says which it is and what to do, and makes no file."""
    monkeypatch.setattr(filesystem, "_number_of", lambda real_path: number)
    for read_only in (False, True):
        with pytest.raises(UsageError, match=repr(filesystem._REMOTE[number])) as caught:
            Log.open(tmp_path / "agents.stepwell", read_only=read_only)
        assert "local disk" in str(caught.value)
        assert "network_file_system=True" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_remote_file_system_may_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes the risk can open a log on a network file system, and a saver too."""
    monkeypatch.setattr(filesystem, "_number_of", lambda real_path: 0x6969)
    path = tmp_path / "agents.stepwell"
    with Log.open(path, network_file_system=True) as log:
        log.thread("t").append([step("s0")])
    with pytest.raises(UsageError, match="'nfs'"):
        StepwellSaver.from_conn_string(path)
    with StepwellSaver.from_conn_string(path, network_file_system=True) as saver:
        assert [found.step_id for found in saver.log.thread("t").steps()] == ["s0"]


TABLE = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
23 22 0:20 / /proc rw - proc proc rw
30 22 0:31 / /sshfs rw,nosuid - fuse.sshfs me@host: rw,user_id=0
31 22 0:32 / /gluster rw - fuse.glusterfs host:/volume rw
32 22 0:33 / /s3 rw - fuse.s3fs s3fs rw
33 22 0:34 / /desktop rw - fuse.grpcfuse grpcfuse rw
34 22 0:35 / /unnamed rw - fuse program rw
35 22 0:36 / /rootless rw - fuse.fuse-overlayfs fuse-overlayfs rw,lowerdir=/a:/b
36 22 8:1 / /ntfs rw - fuseblk /dev/sda1 rw,allow_other
37 22 0:37 / /share rw shared:7 master:1 - virtiofs share rw
38 22 0:38 / /host_mark rw - fakeowner /run/host_mark rw
39 22 0:39 / /gvisor rw - 9p none rw,trans=fd,rfdno=4,wfdno=4,aname=/,dfltuid=4294967294
40 22 0:40 / /qemu rw - 9p share rw,trans=virtio,version=9p2000.L
41 22 0:41 / /mnt/c rw - 9p C:\\134 rw,dirsync,aname=drvfs;path=C:\\134;uid=1000,trans=fd,rfd=5,wfd=5
42 22 0:42 / /a\\040b rw - fuse.sshfs me@host: rw
43 22 0:43 / /stacked rw - fuse.sshfs me@host: rw
44 43 0:44 / /stacked rw - unheardof none rw
45 30 0:45 / /sshfs/local rw - unheardof none rw
nonsense
46 22
47 22 0:47 / /no/type rw -
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/sshfs/agents.stepwell", "fuse.sshfs"),
        ("/sshfs/deep/agents.stepwell", "fuse.sshfs"),
        ("/gluster/a", "fuse.glusterfs"),
        ("/s3/a", "fuse.s3fs"),
        ("/desktop/a", "fuse.grpcfuse"),
        ("/unnamed/a", "fuse"),
        ("/share/a", "virtiofs"),
        ("/host_mark/a", "fakeowner"),
        ("/qemu/a", "9p"),
        ("/mnt/c/a", "9p"),
        ("/a b/a", "fuse.sshfs"),
        ("/rootless/a", None),
        ("/ntfs/a", None),
        ("/gvisor/a", None),
        ("/stacked/a", None),
        ("/sshfs/local/a", None),
        ("/sshfs2/a", None),
        ("/no/type/a", None),
        ("/a", None),
    ],
)
def test_file_systems_that_are_told_by_name(
    path: str, kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a number stands for many, the innermost mount says whether the file system is remote."""
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    monkeypatch.setattr(filesystem, "_MOUNTS", str(table))
    monkeypatch.setattr(filesystem, "_number_of", lambda real_path: 0x65735546)
    assert filesystem.remote_kind(path) == kind


def test_what_nobody_tells_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the number nor the table of mounts is to be had, a log is opened."""
    monkeypatch.setattr(filesystem, "_MOUNTS", str(tmp_path / "missing"))
    monkeypatch.setattr(filesystem, "_number_of", lambda real_path: 0x65735546)
    assert filesystem.remote_kind("/a") is None
    monkeypatch.undo()
    monkeypatch.setattr(filesystem, "_statfs", None)
    assert filesystem.remote_kind(str(tmp_path)) is None
    assert not filesystem.is_overlay(str(tmp_path))
    monkeypatch.setattr(filesystem, "_statx", None)
    assert not filesystem.is_mounted_alone("/proc")


@on_linux
def test_file_systems_of_this_machine(tmp_path: Path) -> None:
    """Numbers and names are what the system says, for files, for those that do not exist yet, and for directories."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        number = filesystem._number_of(str(path))
        stated = subprocess.run(["stat", "-f", "-c", "%t", str(tmp_path)], check=True, capture_output=True, text=True)
        assert number == int(stated.stdout, 16)
    assert filesystem._number_of("/proc/self/status") == 0x9FA0
    mount = filesystem.find_mount("/proc/self/status")
    assert mount is not None
    assert (mount.point, mount.kind) == ("/proc", "proc")
    assert filesystem._number_of("/missing/missing") is None
    assert filesystem.is_mounted_alone("/proc")
    assert not filesystem.is_mounted_alone(str(tmp_path / "file"))


@on_linux
def test_a_local_file_system_is_told_by_its_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening on a usual file system reads no table of mounts, which may be long."""
    number = filesystem._number_of(str(tmp_path))
    if number not in filesystem._LOCAL:
        pytest.skip(f"the file system {number:#x} of the tests is not a usual one")
    monkeypatch.setattr(filesystem, "find_mount", None)
    Log.open(tmp_path / "agents.stepwell").close()


# --- several paths to one file ---


def test_hard_links_are_refused(tmp_path: Path) -> None:
    """A file with two names is refused under both, since each would have a lock file of its own, until one is gone."""
    path, other = tmp_path / "agents.stepwell", tmp_path / "other.stepwell"
    with Log.open(path) as log:
        log.thread("t").append([step("s0")])
        other.hardlink_to(path)
        for name in (path, other):
            for read_only in (False, True):
                with pytest.raises(UsageError, match="2 names"):
                    Log.open(name, read_only=read_only)
        log.thread("t").append([step("s1")])
    other.unlink()
    with Log.open(path) as log:
        assert [found.step_id for found in log.thread("t").steps()] == ["s1", "s0"]


def test_a_file_that_was_renamed_while_it_is_open_is_the_same(tmp_path: Path) -> None:
    """A file that is opened by its new name shares the environment that was opened by its old one."""
    old, new = tmp_path / "old.stepwell", tmp_path / "new.stepwell"
    with Log.open(old) as log:
        log.thread("t").append([step("s0")])
        old.rename(new)
        with Log.open(new) as other:
            other.thread("t").append([step("s1")])
            log.thread("t").append([step("s2")])
            assert [found.step_id for found in other.thread("t").steps()] == ["s2", "s1", "s0"]
            assert other.audit().breaches == []


def test_a_directory_that_is_mounted_twice(mounts: Path) -> None:
    """Two paths through a bind mount lead to one environment."""
    script = """
        os.mkdir(folder + "/bound")
        os.mkdir(folder + "/data")
        mount("--bind", folder + "/data", folder + "/bound")
        with Log.open(folder + "/data/a.stepwell") as one, Log.open(folder + "/bound/a.stepwell") as other:
            one.thread("t").append([step("s0")])
            other.thread("t").append([step("s1")])
            print(ids(one), one.storage._environment is other.storage._environment, one.audit().breaches)
        """
    assert run(script, mounts, *OWN_MOUNTS) == "['s1', 's0'] True []"


def test_a_file_that_is_mounted_by_itself_is_refused(mounts: Path) -> None:
    """A file that is mounted without its directory is refused: its lock file would not be the original's."""
    script = """
        Log.open(path).close()
        alone = folder + "/alone.stepwell"
        open(alone, "w").close()
        mount("--bind", path, alone)
        print(refused(lambda: Log.open(alone), "single file", "directory"), os.path.exists(alone + "-lock"))
        """
    assert run(script, mounts, *OWN_MOUNTS) == "UsageError False"


# --- overlays ---

OVERLAY = """
layers = {name: os.path.join(folder, name) for name in ("lower", "upper", "work", "merged")}
mount("-t", "tmpfs", "none", folder)
for layer in layers.values():
    os.mkdir(layer)
with Log.open(layers["lower"] + "/agents.stepwell") as log:
    log.thread("t").append([step("s0")])
os.remove(layers["lower"] + "/agents.stepwell-lock")
def overlay():
    options = f"lowerdir={layers['lower']},upperdir={layers['upper']},workdir={layers['work']}"
    mount("-t", "overlay", "overlay", "-o", options, layers["merged"])
path = layers["merged"] + "/agents.stepwell"
def append(step_id):
    subprocess.run(
        [sys.executable, "-c", "import sys; from building import step; from stepwell import *;"
         "Log.open(sys.argv[1]).thread('t').append([step(sys.argv[2])])", path, step_id], check=True)
"""


@pytest.mark.parametrize("handled", [True, False])
def test_a_file_of_a_lower_layer(handled: bool, mounts: Path) -> None:
    """A reader of a file that a container's image brought sees what others append; left in its layer, it would not."""
    script = f"""
        from stepwell.storage.lmdb import filesystem
        try:
            overlay()
        except subprocess.CalledProcessError:
            print("no overlays")
            sys.exit()
        if not {handled}:
            filesystem.is_overlay = lambda real_path: False
        with Log.open(path, read_only=True) as log:
            append("s1")
            append("s2")
            print(ids(log))
            with Log.open(path) as writer:
                writer.thread("t").append([step("s3")])
                print(ids(writer), writer.audit().breaches)
        with Log.open(layers["lower"] + "/agents.stepwell", read_only=True) as log:
            print(ids(log))
        """
    found = run(OVERLAY + dedent(script), mounts, *OWN_MOUNTS).splitlines()
    if found == ["no overlays"]:
        pytest.skip("there are no overlays here")
    assert (found[0] == "['s2', 's1', 's0']") is handled
    assert found[1:] == ["['s3', 's2', 's1', 's0'] []", "['s0']"]


# --- read-only media and directories ---


def test_a_read_only_medium(mounts: Path) -> None:
    """On a file system that nobody can write, a log is read without a lock file, and opening to write is refused."""
    script = """
        mount("-t", "tmpfs", "none", folder)
        with Log.open(path) as log:
            log.thread("t").append([step("s0")])
        os.remove(path + "-lock")
        mount("-o", "remount,ro", folder)
        with Log.open(path, read_only=True) as log:
            print(ids(log), log.audit().breaches, os.listdir(folder))
        print(refused(lambda: Log.open(path), "read_only=True"))
        """
    expected = "['s0'] [] ['agents.stepwell']\nReadOnlyError"
    assert run(script, mounts, *OWN_MOUNTS) == expected


@pytest.mark.parametrize("lock_file", [True, False])
def test_a_read_only_mount_of_what_others_may_write(lock_file: bool, mounts: Path) -> None:
    """Where only the mount is read-only, a reader could not be told from the outside, and is refused."""
    script = f"""
        mount("-t", "tmpfs", "none", folder)
        os.mkdir(folder + "/data")
        os.mkdir(folder + "/seen")
        Log.open(folder + "/data/a.stepwell").close()
        if not {lock_file}:
            os.remove(folder + "/data/a.stepwell-lock")
        mount("--bind", folder + "/data", folder + "/seen")
        mount("-o", "remount,bind,ro", folder + "/seen")
        print(refused(lambda: Log.open(folder + "/seen/a.stepwell", read_only=True), "lock file", "copy"))
        """
    assert run(script, mounts, *OWN_MOUNTS) == "UsageError"


@pytest.fixture
def seen_by_all() -> Iterator[Path]:
    """A folder that every user can pass through."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        yield Path(made)


@pytest.mark.parametrize(
    ("directory", "lock_file", "expected"),
    [
        (0o555, None, "UsageError"),
        (0o555, 0o444, "UsageError"),
        (0o555, 0o666, "opened"),
        (0o777, None, "opened"),
    ],
)
def test_a_reader_without_rights(directory: int, lock_file: int | None, expected: str, seen_by_all: Path) -> None:
    """Who may not write needs a lock file that may be written; without one, opening to read says so."""
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("another user is needed")
    script = f"""
        with Log.open(path) as log:
            log.thread("t").append([step("s0")])
        os.chmod(path, 0o444)
        if {lock_file} is None:
            os.remove(path + "-lock")
        else:
            os.chmod(path + "-lock", {lock_file or 0})
        os.chmod(folder, {directory})
        os.setgid(65534)
        os.setuid(65534)
        print(refused(lambda: Log.open(path, read_only=True), "lock file", "copy"))
        print(refused(lambda: Log.open(path), "read_only=True"))
        """
    assert run(script, seen_by_all).splitlines() == [expected, "ReadOnlyError"]
