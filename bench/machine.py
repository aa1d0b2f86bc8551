"""What figures were taken on: the machine, the versions of all that takes part, the commit."""

import os
import platform
import sqlite3
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import postgres

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "langgraph-checkpoint-lmdb",
    "langchain-core",
    "deepagents",
    "aiosqlite",
    "psycopg",
    "lmdb",
    "msgspec",
    "ormsgpack",
    "zstandard",
)


def machine(directory: Path) -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes("MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "file_system": file_system(directory),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, the databases and every package that takes part."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "postgres": postgres.version(),
    }
    for package in PACKAGES:
        found[package] = None
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def commit() -> str | None:
    """The commit of the checkout, marked where files differ from it."""
    with suppress(OSError, subprocess.CalledProcessError):
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=HERE,
            check=True,
            capture_output=True,
            text=True,
        )
        return described.stdout.strip()
    return None


def file_system(directory: Path) -> str:
    """The type of the file system that holds the directory."""
    target, best, kind = str(directory.resolve()), "", "unknown"
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mount = before.split()[4]
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind


def memory_bytes(name: str) -> int:
    """A line of /proc/meminfo: MemTotal, MemAvailable."""
    return next(int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith(name + ":"))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
