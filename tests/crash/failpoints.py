"""Run a program that gets a signal when it reaches a named point of the engine for the n-th time.

    python tests/crash/failpoints.py POINT N SIGNAL PROGRAM [ARGUMENT ...]

The engine's sources name their points in comments, `# failpoint: NAME`.  Only in a process that is started like
this are the comments compiled to calls; everywhere else there is nothing to run, not even a branch.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

ENGINE: Final = Path(__file__).parents[2] / "engine" / "stepwell"
_COMMENT: Final = re.compile(r"^( *)# failpoint: (\S+)$", re.MULTILINE)
_REACH: Final = "_reach_failpoint"


def names() -> Iterator[str]:
    """The points of the engine, in the order of its sources."""
    for path in sorted(ENGINE.rglob("*.py")):
        for _, name in _COMMENT.findall(path.read_text(encoding="utf-8")):
            yield name


def command(name: str, nth: int, sent: signal.Signals, program: Sequence[str]) -> list[str]:
    """The command that runs a program with a signal at a point."""
    return [sys.executable, __file__, name, str(nth), sent.name, *program]


class _Failpoint:
    """The one point at which something happens."""

    def __init__(self, name: str, nth: int, sent: signal.Signals) -> None:
        self._name = name
        self._left = nth
        self._signal = sent
        self._lock = threading.Lock()

    def reach(self, name: str) -> None:
        if name == self._name:
            with self._lock:
                self._left -= 1
                if not self._left:
                    os.kill(os.getpid(), self._signal)


class _Loader(SourceFileLoader):
    """Loads a module with calls for comments, past the cache of compiled modules."""

    failpoint: _Failpoint

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        return self.source_to_code(_COMMENT.sub(rf'\1{_REACH}("\2")', source).encode(), path)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, _REACH, self.failpoint.reach)
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and fullname.partition(".")[0] == "stepwell" and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def main() -> None:
    name, nth, sent, *program = sys.argv[1:]
    assert name in names(), f"the engine has no failpoint {name!r}"
    _Loader.failpoint = _Failpoint(name, int(nth), signal.Signals[sent])
    sys.meta_path.insert(0, _Finder())
    sys.argv = program
    runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
