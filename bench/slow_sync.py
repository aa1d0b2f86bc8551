"""Syncs that take longer: `slow_sync.c`, compiled and preloaded into whatever stores something.

Server disks with power-loss protection and laptops' caches acknowledge a sync in a tenth of a millisecond; volumes of
clouds and disks without such protection take 1 to 10 ms.  What is preloaded delays every sync of every contender alike,
a database server's too, and counts them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("slow_sync.c")
COUNT = "SLOW_SYNC_COUNT"
COUNT_BYTES = 8


class NoCompilerError(Exception):
    """It cannot be built or preloaded here; the message says why."""


def build(folder: Path) -> Path:
    """The library, in a folder.

    Raises:
        NoCompilerError: There is no C compiler, or this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise NoCompilerError("not run, preloading is for Linux")
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        raise NoCompilerError("not run, no C compiler")
    library = folder / "slow_sync.so"
    subprocess.run([compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def environment(library: Path, milliseconds: float, folder: Path) -> dict[str, str]:
    """What the environment of those must say whose syncs take so much longer and are counted in this folder."""
    count = folder / "syncs"
    count.write_bytes(bytes(COUNT_BYTES))
    count.chmod(0o666)  # the server does not run as root
    return {
        "LD_PRELOAD": str(library),
        "SLOW_SYNC_MICROSECONDS": str(round(milliseconds * 1000)),
        COUNT: str(count),
    }


def counted() -> int | None:
    """The syncs so far of all that are counted together with this process; None if it is not counted."""
    path = os.environ.get(COUNT)
    return None if path is None else int.from_bytes(Path(path).read_bytes(), sys.byteorder)
