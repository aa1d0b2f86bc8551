"""LMDB's lock file from outside: being sure that nobody has an environment open, and that nobody comes to.

Every process that has an environment open, or opens it, holds a shared lock of `fcntl` on the first byte of its
lock file.  Whoever gets that byte for itself knows that there is no such process; one that comes waits for it,
before it opens the file itself (to write it) or after (to read it).

Such a lock belongs to the process: opening and closing the lock file by any other way within it gives the lock
away, the engine's own lock included.  So a process must not ask while it has the environment open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

if sys.platform != "win32":
    import fcntl

SUFFIX: Final = "-lock"
CAN_LOCK: Final = sys.platform != "win32"
MAX_READERS: Final = 510  # 64 bytes each in the lock file; a read takes a slot for microseconds


class InUseError(Exception):
    """Another process has the environment open."""


@contextmanager
def alone(path: str) -> Iterator[int]:
    """Hold the lock that every process needs to open the environment of a file; yields the lock file's descriptor.

    Raises:
        InUseError: Somebody holds it.
        OSError: The lock file cannot be opened.
    """
    descriptor = os.open(path + SUFFIX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if sys.platform != "win32":
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            except (BlockingIOError, PermissionError):
                raise InUseError(path) from None
        yield descriptor
    finally:
        os.close(descriptor)


def forget(descriptor: int) -> None:
    """Empty the lock file, so that nobody takes what it says for true of another file.

    Who waits for the lock believes what the lock file says of the newest transaction; of an empty one LMDB says
    "invalid argument", and who is first to come after that fills it anew.
    """
    os.ftruncate(descriptor, 0)
