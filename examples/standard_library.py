"""What the research agent reads: the sources of the Python that runs it.

Every installation has this text, so the agent works on real input with no network.  An answer is the same on
every call (sources are walked in order), and its size lies within the two bounds below.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from functools import cache
from pathlib import Path

SMALLEST_ANSWER_BYTES = 2_048
LARGEST_ANSWER_BYTES = 40_000

_ROOT = Path(sysconfig.get_paths()["stdlib"])
# Tests, generated tables and other people's packages would drown what the library itself says.
_SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
_SHORTEST_SOURCE_BYTES = 2 * SMALLEST_ANSWER_BYTES
_MODULES_PER_SEARCH = 16
_SECTION_BYTES = 8_192  # what one reading of a source takes in, where definitions are short
_DEFINITION = re.compile(r"(?:@|class |def |async def )")


@cache
def sources() -> dict[str, str]:
    """The text of each source file that is long enough to be worth it, by its path inside the library."""
    found = {}
    for path in sorted(_ROOT.rglob("*.py")):
        inside = path.relative_to(_ROOT)
        if _SKIPPED_FOLDERS.isdisjoint(inside.parts) and path.stat().st_size >= _SHORTEST_SOURCE_BYTES:
            found[inside.as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    if not found:
        raise FileNotFoundError(f"no Python sources below {str(_ROOT)!r}: is the standard library installed as source?")
    return found


def search(word: str) -> str:
    """Find a word in the standard library: the modules that mention it most, each with its first mention.

    A word that no module mentions is shortened until one does.
    """
    part = word
    while not (mentions := _mentions(part)) and len(part) > 1:
        part = part[:-1]
    ranked = sorted(mentions, key=lambda module: (-mentions[module], module))
    opening = f"{len(ranked)} modules of the standard library mention {part!r}."
    # A rare word gets more of the text around it, so that every answer is worth a turn.
    for context_lines in (6, 12, 25, 50, 100):
        places = [_first_place(m, part, mentions[m], context_lines) for m in ranked[:_MODULES_PER_SEARCH]]
        answer = "\n\n".join([opening, *places])
        if len(answer.encode()) >= SMALLEST_ANSWER_BYTES:
            break
    return _cut(answer)


def read_source(module: str, line: int) -> str:
    """Read the part of a module that a line stands in: its definition, and what follows if that is short."""
    lines = _lines(module)
    starts = [0, *(i for i, text in enumerate(lines) if _DEFINITION.match(text)), len(lines)]
    wanted = min(max(line, 1), len(lines)) - 1
    first = max(start for start in starts if start <= wanted)
    size, end = 0, first
    while end < len(lines) and (size < _SECTION_BYTES or end not in starts):
        size += len(lines[end].encode()) + 1
        if size > LARGEST_ANSWER_BYTES - 100:  # leaves room for the heading
            break
        end += 1
    while first > 0 and size < SMALLEST_ANSWER_BYTES:  # a short end of a file is read together with what precedes it
        first -= 1
        size += len(lines[first].encode()) + 1
    return _cut(f"[{module} lines {first + 1} to {end} of {len(lines)}]\n" + "\n".join(lines[first:end]))


def read_docs(module: str) -> str:
    """Read a module's documentation: its docstring and those of its classes and functions."""
    text = "\n".join(_lines(module))
    parts = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                name = module if isinstance(node, ast.Module) else node.name
                parts.append(f"{name}\n{docstring}")
    answer = f"[documentation of {module}]\n" + "\n\n".join(parts)
    if len(answer.encode()) < SMALLEST_ANSWER_BYTES:
        answer += f"\n\nThere is no more documentation. The source begins:\n\n{text[:SMALLEST_ANSWER_BYTES]}"
    return _cut(answer)


def _lines(module: str) -> list[str]:
    try:
        return sources()[module].split("\n")
    except KeyError:
        raise ValueError(f"no module {module!r} in the standard library; search names those there are") from None


def _mentions(word: str) -> dict[str, int]:
    return {module: count for module, text in sources().items() if (count := text.count(word))}


def _first_place(module: str, word: str, mentions: int, context_lines: int) -> str:
    lines = _lines(module)
    at = next(i for i, text in enumerate(lines) if word in text)
    around = lines[max(at - context_lines, 0) : at + context_lines + 1]
    heading = f"[{module} line {at + 1}, {mentions} mentions]"
    return "\n".join([heading, *(f"    {text}" for text in around)])


def _cut(answer: str) -> str:
    return answer.encode()[:LARGEST_ANSWER_BYTES].decode(errors="ignore")
