"""Being alone with a log, from LMDB's lock file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stepwell import Log
from stepwell.storage.lmdb import lockfile

pytestmark = pytest.mark.skipif(not lockfile.CAN_LOCK, reason="this system has no such locks")

OTHER = """
import sys
from stepwell import Log
log = Log.open(sys.argv[1], read_only=len(sys.argv) > 2)
print(flush=True)
input()
"""


@pytest.mark.parametrize("options", [[], ["read only"]], ids=["writing", "reading"])
def test_another_process_has_it_open(options: list[str], tmp_path: Path) -> None:
    """While a process has the log open, to write it or to read it, nobody is alone with it; once it is dead, one is."""
    path = str(tmp_path / "log")
    Log.open(path).close()
    command = [sys.executable, "-c", OTHER, path, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(lockfile.InUseError), lockfile.alone(path):
            pass
        other.kill()
    with lockfile.alone(path):
        pass


def test_nobody_has_it_open(tmp_path: Path) -> None:
    """Where there is no lock file, and after the last process has closed it, one is alone; the log opens afterwards."""
    path = str(tmp_path / "log")
    with lockfile.alone(path):
        pass
    Log.open(path).close()
    with lockfile.alone(path) as descriptor:
        lockfile.forget(descriptor)
    with Log.open(path) as log:
        assert log.audit().breaches == []
