"""What this process uses of the machine, and what a database server uses on its behalf.

The kernel adds a child's time and bytes to its parent's when the parent has waited for it, so the living processes
below a server account for those that are gone.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_STAT_TIMES = slice(11, 15)  # utime, stime, cutime, cstime: fields 14 to 17 of /proc/PID/stat


@dataclass(frozen=True)
class Usage:
    """CPU time of all threads, and bytes sent to the disk as the kernel counts them."""

    cpu_seconds: float
    written_bytes: int

    def since(self, earlier: "Usage") -> "Usage":
        return Usage(self.cpu_seconds - earlier.cpu_seconds, self.written_bytes - earlier.written_bytes)


def usage(server: int | None = None) -> Usage:
    """Of this process, and of a server process with all below it."""
    cpu, written = time.process_time(), _written_bytes(Path("/proc/self/io"))
    for process in _family(server) if server is not None else ():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile; its parent accounts for it
            cpu += sum(map(int, _after_name(Path(f"/proc/{process}/stat"))[_STAT_TIMES])) / _TICKS
            written += _written_bytes(Path(f"/proc/{process}/io"))
    return Usage(cpu, written)


def memory_bytes(name: str) -> int:
    """A line of /proc/self/status: VmRSS, VmHWM (its peak), RssAnon (without mapped files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _family(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int(_after_name(stat)[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    family = [root]
    for process in family:
        family += children.get(process, ())
    return family


def _after_name(stat: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the second, a name, may hold spaces and brackets."""
    return stat.read_text().rpartition(")")[2].split()


def _written_bytes(path: Path) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("write_bytes:"))
