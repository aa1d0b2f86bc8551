"""What a recorded program did to its files: the records of `recorder.c`, as events."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

_HEADER: Final = struct.Struct("=IIQQQQQ")  # kind, file, offset, length, extra, bytes that follow, 0
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10


class Met(NamedTuple):
    """A file, or the folder itself, was opened for the first time."""

    file: int
    path: str
    created: bool
    is_folder: bool


class Written(NamedTuple):
    """Bytes are in the page cache."""

    file: int
    offset: int
    content: bytes


class Zeroed(NamedTuple):
    """A range reads as zeros: a hole was punched, or the range was zeroed."""

    file: int
    offset: int
    length: int


class Resized(NamedTuple):
    """The file was cut, or extended with zeros."""

    file: int
    length: int


class Reached(NamedTuple):
    """The file is at least so long: room was allocated for it."""

    file: int
    length: int


class SyncWriteBegan(NamedTuple):
    """Bytes are on their way to the disk."""

    file: int
    offset: int
    content: bytes
    token: int


class SyncWriteEnded(NamedTuple):
    """They have arrived."""

    file: int
    token: int


class SyncBegan(NamedTuple):
    """fsync or fdatasync was called; what was written before is on its way."""

    file: int
    token: int


class SyncEnded(NamedTuple):
    """It has arrived.

    Attributes:
        whole: By fsync, not by fdatasync.
    """

    file: int
    token: int
    whole: bool


class Renamed(NamedTuple):
    """A file has another path, and what was there is gone."""

    path: str
    new_path: str


class Linked(NamedTuple):
    """A file has another path too."""

    path: str
    new_path: str


class Removed(NamedTuple):
    """A path is free."""

    path: str


class Noted(NamedTuple):
    """The program said something."""

    text: str


Event: TypeAlias = (
    Met
    | Written
    | Zeroed
    | Resized
    | Reached
    | SyncWriteBegan
    | SyncWriteEnded
    | SyncBegan
    | SyncEnded
    | Renamed
    | Linked
    | Removed
    | Noted
)


def read(path: Path) -> list[Event]:
    """The events of a trace, in order."""
    trace = path.read_bytes()
    events: list[Event] = []
    position = 0
    while position < len(trace):
        kind, file, offset, length, extra, following, _ = _HEADER.unpack_from(trace, position)
        position += _HEADER.size
        events.append(_event(kind, file, offset, length, extra, trace[position : position + following]))
        position += following
    return events


def _event(kind: int, file: int, offset: int, length: int, extra: int, rest: bytes) -> Event:
    match kind:
        case 1 | 2:
            return Met(file, rest.decode(), kind == 1, bool(extra))
        case 3:
            return Written(file, offset, rest)
        case 4:
            return SyncWriteBegan(file, offset, rest, extra)
        case 5:
            return SyncWriteEnded(file, extra)
        case 6:
            return Resized(file, length)
        case 7:
            return _allocated(file, offset, length, extra)
        case 8:
            return SyncBegan(file, extra)
        case 9:
            return SyncEnded(file, extra, bool(offset))
        case 10:
            return Renamed(*rest.decode().split("\0"))
        case 14:
            return Linked(*rest.decode().split("\0"))
        case 11:
            return Removed(rest.decode())
        case 12:
            return Noted(rest.decode())
    raise AssertionError(f"the program did something to file {file} that is not modelled, or that failed: {kind}")


def _allocated(file: int, offset: int, length: int, mode: int) -> Event:
    if mode & _PUNCH_HOLE or mode == _ZERO_RANGE | _KEEP_SIZE:
        return Zeroed(file, offset, length)
    if mode == 0:
        return Reached(file, offset + length)
    if mode == _KEEP_SIZE:
        return Reached(file, 0)
    raise AssertionError(f"fallocate was called in a mode that is not modelled: {mode:#x}")
