"""What the documentation shows does what it says."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepwell
import stepwell_langgraph

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "SPEC.md",
    "bench/README.md",
    "docs/quick-start.md",
    "docs/crash-recovery.md",
    "docs/format.md",
    "docs/command-line.md",
    "docs/how-it-works.md",
    "docs/memory.md",
    "docs/migration.md",
    "docs/operations.md",
)
# A block that needs what a test cannot have says so: ```python no-run
_FENCE = re.compile(r"^```python(?P<no_run> no-run)?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def modules() -> Iterator[str]:
    """Every module of the packages."""
    for package in (stepwell, stepwell_langgraph):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield found.name


def blocks(*, run: bool) -> list[object]:
    """The Python in the pages: what is to be run, or the rest."""
    found: list[object] = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for match in _FENCE.finditer(text):
            if (match["no_run"] is None) == run:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param("\n" * line + match["code"], id=f"{page}:{line}"))
    return found


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings(name: str) -> None:
    """Every example in a docstring shows what it gives."""
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_docstrings_have_examples() -> None:
    """The log's docstring has an example."""
    assert doctest.DocTestFinder().find(stepwell.Log, "Log")[0].examples


@pytest.mark.parametrize("code", blocks(run=True))
def test_pages(code: str, tmp_path: Path) -> None:
    """Every Python block of a page runs as it stands, warnings being errors."""
    script = tmp_path / "block.py"
    script.write_text(code, encoding="utf-8")
    folders = [str(ROOT / folder) for folder in ("engine", "adapters")]
    start = f"import runpy, sys; sys.path[:0] = {folders!r}; runpy.run_path({str(script)!r})"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", start],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr


@pytest.mark.parametrize("code", blocks(run=False))
def test_pages_without_running(code: str) -> None:
    """Every Python block that is not run is Python at least, and imports what there is."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stepwell"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_readme_has_blocks() -> None:
    """The README's examples are found."""
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README yet")
    assert len(blocks(run=True)) >= 2
