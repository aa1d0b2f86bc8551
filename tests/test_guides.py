"""The guides that are one session each: what they print is what stands in them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SESSIONS = ("docs/time-travel.md",)
_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```$)?", re.MULTILINE | re.DOTALL)
_END = "\x00\n"
# What differs from run to run: ids, and where writes that are stored at the same time stand.
_OPEN = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}\b|#\d+|(?<=after )\d+|(?<=into )\d+|(?<=and )\d+")


@pytest.mark.parametrize("page", SESSIONS)
def test_a_guide_shows_what_it_does(page: str, tmp_path: Path) -> None:
    """Its Python blocks run one after the other, and each prints the text that follows it."""
    blocks = [*_BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]
    assert len(blocks) > 2
    script = tmp_path / "session.py"
    script.write_text(f"\nprint({_END[:-1]!r})\n".join(block["code"] for block in blocks), encoding="utf-8")
    folders = [str(ROOT / folder) for folder in ("engine", "adapters")]
    start = f"import runpy, sys; sys.path[:0] = {folders!r}; runpy.run_path({str(script)!r})"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-X", "utf8", "-c", start],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    printed = ran.stdout.split(_END)
    for block, text in zip(blocks, printed, strict=True):
        assert _OPEN.sub("...", text) == _OPEN.sub("...", block["shown"] or "")
