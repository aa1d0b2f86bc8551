"""Which file system a log would lie on, and whether a log can be trusted to it.

LMDB's readers see through a memory map what its writer wrote with `pwrite`, and its locks live in a file that
all processes map.  Both hold where one kernel owns the file, and on no file system behind which another
machine, or another kernel on this one, may have the file open too.

    1. On Linux `statfs` tells most file systems by a number, in a microsecond.
    2. Numbers that stand for many (FUSE, 9p), and those not listed here, are looked up by name in
       /proc/self/mountinfo.
    3. Elsewhere nothing is known, and nothing refused.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, cast

_ON_LINUX: Final = sys.platform == "linux"
_MOUNTS: Final = "/proc/self/mountinfo"

# Numbers from linux/magic.h, and those of modules that are not in the kernel's tree.
_LOCAL: Final = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlay",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0xCA451A4E: "bcachefs",
    0x858458F6: "ramfs",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
}
_REMOTE: Final = {
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x517B: "smb",
    0x564C: "ncp",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x73757245: "coda",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x19830326: "beegfs",
    0x47504653: "gpfs",
    0x20030528: "orangefs",
    0xAAD7AAEA: "panfs",
    0x61636673: "acfs",
    0xBEEFDEAD: "snfs",
    0x01161970: "gfs2",
    0x7461636F: "ocfs2",
    0x786F4256: "vboxsf",
    0xBACBACBC: "vmhgfs",
    0x7C7C6673: "prl_fs",
    0x53464846: "wslfs",
}
_REMOTE_NAMES: Final = frozenset(_REMOTE.values()) | {
    "nfs4",
    "smb3",
    "smbfs",
    "virtiofs",
    "drvfs",
    "lxfs",
    "fakeowner",
    "grpcfuse",
    "osxfs",
    "glusterfs",
    "davfs",
    "pvfs2",
}
# Served by a program on this machine, from a disk of this machine.  What any other program serves, nobody knows.
_LOCAL_FUSE: Final = frozenset(
    f"fuse.{name}"
    for name in (
        "fuse-overlayfs",
        "bindfs",
        "mergerfs",
        "unionfs",
        "encfs",
        "gocryptfs",
        "cryfs",
        "ntfs-3g",
        "ext2",
        "fuse2fs",
        "squashfuse",
        "lxcfs",
        "zfs-fuse",
    )
)
_STATFS_BYTES: Final = 256  # more than any system's struct statfs
_STATX_BYTES: Final = 256
_STATX_ATTRIBUTES: Final = slice(8, 16)
_AT_FDCWD: Final = -100
_MOUNT_ROOT: Final = 0x2000  # STATX_ATTR_MOUNT_ROOT


class Mount(NamedTuple):
    """A line of the table of mounts.

    Attributes:
        point: Where it is mounted.
        kind: Name of the file system's type.
        options: What holds at this place, and
        super_options: what holds of the file system, wherever it is mounted.
    """

    point: str
    kind: str
    options: frozenset[str]
    super_options: frozenset[str]


def remote_kind(real_path: str) -> str | None:
    """The name of the file system that a path lies on, if other machines may see it too; None if it is local.

    Where there is no such file yet, its directory's counts.
    """
    number = _number_of(real_path)
    if number is None or number in _LOCAL:
        return None
    if number in _REMOTE:
        return _REMOTE[number]
    mount = find_mount(real_path)
    return mount.kind if mount is not None and _is_remote(mount) else None


def _is_remote(mount: Mount) -> bool:
    if mount.kind.startswith("fuse.") or mount.kind == "fuse":
        return mount.kind not in _LOCAL_FUSE
    if mount.kind == "9p":
        # gVisor shows a container's own files so; Windows its drives to WSL, and virtual machines their host's folders.
        return "trans=fd" not in mount.super_options or any("drvfs" in option for option in mount.super_options)
    return mount.kind in _REMOTE_NAMES


def is_overlay(real_path: str) -> bool:
    """Whether a file may still lie in a lower layer, from which the first who opens it to write copies it."""
    number = _number_of(real_path)
    if number is None or number in _LOCAL:
        return number is not None and _LOCAL[number] == "overlay"
    mount = find_mount(real_path)
    return mount is not None and mount.kind == "fuse.fuse-overlayfs"


def is_mounted_alone(real_path: str) -> bool:
    """Whether a file is mounted by itself, not with its directory."""
    if _statx is None:
        return False
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if _statx(_AT_FDCWD, os.fsencode(real_path), 0, 0, answer):
        return False
    return bool(int.from_bytes(answer.raw[_STATX_ATTRIBUTES], sys.byteorder) & _MOUNT_ROOT)


def is_unchangeable(real_path: str) -> bool:
    """Whether nobody can write the file: its file system is read-only, and not only where it is mounted here."""
    if not _ON_LINUX:
        return True
    mount = find_mount(real_path)
    # The layers of a container are its own: what is read-only there is so for all who see it.
    return mount is not None and ("ro" in mount.super_options or (mount.kind == "overlay" and "ro" in mount.options))


def find_mount(real_path: str) -> Mount | None:
    """The mount that a path lies on; None where the system does not tell."""
    try:
        with open(_MOUNTS, "rb") as table:
            lines = table.read().splitlines()
    except OSError:
        return None
    found = None
    for line in lines:
        fields = line.split(b" ", 6)
        if len(fields) < 7:
            continue
        point = _unescaped(fields[4])
        # Of those mounted at one place, the last is the one that is seen.
        if _holds(point, real_path) and (found is None or len(point) >= len(found.point)):
            found = _read_mount(point, fields) or found
    return found


def _read_mount(point: str, fields: list[bytes]) -> Mount | None:
    """Read `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`."""
    _, _, right = (b" " + fields[6]).partition(b" - ")
    kind, _, options = os.fsdecode(right).partition(" ")
    if not kind:
        return None
    return Mount(
        point, kind, frozenset(os.fsdecode(fields[5]).split(",")), frozenset(options.rpartition(" ")[2].split(","))
    )


def _unescaped(point: bytes) -> str:
    if b"\\" in point:
        point = re.sub(rb"\\([0-7]{3})", lambda escaped: bytes([int(escaped[1], 8)]), point)
    return os.fsdecode(point)


def _holds(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _number_of(real_path: str) -> int | None:
    if _statfs is None:
        return None
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    for path in (real_path, os.path.dirname(real_path)):
        if not _statfs(os.fsencode(path), answer):
            return int.from_bytes(answer.raw[:4], "little")
    return None


def _find_statfs() -> Callable[[bytes, ctypes.Array[ctypes.c_char]], int] | None:
    # The number stands first everywhere, with a width that varies: little-endian, its low half comes first.
    if not _ON_LINUX or sys.byteorder != "little":
        return None
    function = ctypes.CDLL(None).statfs
    function.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    return cast("Callable[[bytes, ctypes.Array[ctypes.c_char]], int]", function)


def _find_statx() -> Callable[[int, bytes, int, int, ctypes.Array[ctypes.c_char]], int] | None:
    function = getattr(ctypes.CDLL(None), "statx", None) if _ON_LINUX else None
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
    return cast("Callable[[int, bytes, int, int, ctypes.Array[ctypes.c_char]], int] | None", function)


_statfs: Final = _find_statfs()
_statx: Final = _find_statx()
