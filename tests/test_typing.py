"""The types that users see are those that they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def mypy(path: str) -> subprocess.CompletedProcess[str]:
    """What mypy says of a file, by the repository's own settings, which are strict."""
    pytest.importorskip("mypy")
    return subprocess.run([sys.executable, "-m", "mypy", path], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_typed_examples() -> None:
    """Code that uses the library rightly passes the type checker, and each wrong use in it is found."""
    checked = mypy("tests/typed_examples.py")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_examples_are_checked(tmp_path: Path) -> None:
    """The type checker does look: one more wrong use is reported, and one that is none, too."""
    examples = (ROOT / "tests" / "typed_examples.py").read_text(encoding="utf-8")
    wrong = tmp_path / "wrong_examples.py"
    wrong.write_text(examples + "\nopen_a_log(7)\nopen_another_log()  # type: ignore[arg-type]\n", encoding="utf-8")
    checked = mypy(str(wrong))
    assert checked.returncode == 1
    errors = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert len(errors) == 2
    assert "arg-type" in errors[0]
    assert "unused-ignore" in errors[1]


def test_packages_are_typed() -> None:
    """Every package says that it brings its own types."""
    for package in ("engine/stepwell", "engine/stepwell/storage", "adapters/stepwell_langgraph"):
        assert (ROOT / package / "py.typed").is_file()
