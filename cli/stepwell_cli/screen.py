"""What a command says: lines and tables for people, lines of JSON for programs.

Nothing reaches the terminal that could do more there than show: every text goes through `safe_text`, and JSON
escapes whatever is not printable ASCII.  Colours and the pager are for terminals alone.
"""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Several
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self, TypeAlias, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

Part: TypeAlias = str | tuple[str, str]
"""A text, or a text and its style."""

FAINT: Final = "dim"
NAME: Final = "cyan"
PLACE: Final = "yellow"
GOOD: Final = "green"
BAD: Final = "red"
STRONG: Final = "bold"

_UNLIMITED: Final = 1 << 20  # columns, where there is no terminal whose edge a line could meet
_PATIENCE_SECONDS: Final = 1.0
_REFRESH_SECONDS: Final = 0.1
_ROWS_AT_ONCE: Final = 1000


class Screen:
    """Where a command writes its results."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.is_json = as_json
        self._file: IO[str] = sys.stdout
        self._console: Console | None = None

    # --- programs ---

    def emit(self, item: Mapping[str, Any]) -> None:
        """One line of JSON."""
        self._file.write(json.dumps(item, ensure_ascii=True, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Let whoever reads see what there is so far."""
        self._file.flush()

    # --- people ---

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks on."""
        return sys.stdout.isatty()

    @property
    def width(self) -> int:
        """How many columns a line has."""
        return shutil.get_terminal_size().columns if self.is_terminal else _UNLIMITED

    @property
    def console(self) -> Console:
        """The terminal, with colours if it is one."""
        if self._console is None:
            from rich.console import Console

            class Terminal(Console):
                def on_broken_pipe(self) -> None:
                    raise BrokenPipeError  # rich would end the process

            self._console = Terminal(
                file=self._file,
                force_terminal=self.is_terminal,
                width=self.width,
                highlight=False,
                markup=False,
                emoji=False,
                legacy_windows=False,
            )
        return self._console

    def say(self, *parts: Part, cut: bool = False) -> None:
        """One line; `cut` makes it end at the edge of the terminal instead of going on below."""
        if not self.is_terminal:
            self._file.write("".join(map(_plain, parts)) + "\n")
            return
        self.console.print(text(*parts), soft_wrap=not cut, no_wrap=cut, overflow="ellipsis" if cut else "fold")

    def block(self, content: str, style: str = "") -> None:
        """A text of several lines as it is."""
        for line in content.split("\n"):
            self.say((line, style))

    def table(self, columns: Several[str], rows: Iterable[Several[Part]]) -> None:
        """Rows under headings.  A heading that begins with > stands to the right.

        Very many rows are shown some at a time, each time in columns as wide as those need.
        """
        headings: list[Several[Part]] = [[(heading.lstrip(">"), STRONG) for heading in columns]]
        to_the_right = [heading.startswith(">") for heading in columns]
        left = iter(rows)
        widths = [0] * len(columns)
        while page := [*headings, *islice(left, _ROWS_AT_ONCE)]:
            headings = []
            lengths = [[_columns_of(_plain(part)) for part in row] for row in page]
            widths = [max(each) for each in zip(widths, *lengths, strict=True)]
            if self.is_terminal and sum(widths) + 2 * len(widths) - 2 > self.width:
                self._folded(page, to_the_right)
                continue
            for row, row_lengths in zip(page, lengths, strict=True):
                parts: list[Part] = []
                blank = ""  # what stands before the next cell, if there is one
                for part, length, width, is_right in zip(row, row_lengths, widths, to_the_right, strict=True):
                    blank += " " * (width - length) * is_right
                    if length:
                        parts += [blank, part]
                        blank = ""
                    blank += " " * ((0 if is_right else width - length) + 2)
                self.say(*parts)

    def _folded(self, rows: list[Several[Part]], to_the_right: list[bool]) -> None:
        """Rows that are too wide for the terminal: what does not fit goes on below."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
        for is_right in to_the_right:
            table.add_column(justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
        for row in rows:
            table.add_row(*map(text, row))
        self.console.print(table)

    @contextmanager
    def paged(self) -> Iterator[None]:
        """Show what follows page by page if a terminal is too small for it."""
        command = _pager() if self.is_terminal and sys.stdin.isatty() and not self.is_json else None
        if command is None:
            yield
            return
        pager = _Pager(command)
        self._file, self._console = cast("IO[str]", pager), None
        try:
            with suppress(BrokenPipeError):  # who has seen enough leaves the pager, and that is all
                yield
        finally:
            self._file, self._console = sys.stdout, None
            pager.end()


class _Pager(io.TextIOBase):
    """Starts the pager with the first thing that is to be shown, so that nothing is no screen."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def write(self, content: str) -> int:
        if self._process is None:
            environment = {"LESS": "FRX", "LESSSECURE": "1", **os.environ}
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, text=True, encoding="utf-8", env=environment
            )
        assert self._process.stdin is not None
        return self._process.stdin.write(content)

    def flush(self) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.flush()

    def end(self) -> None:
        """Wait until whoever looks has seen enough."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        while True:
            # Ctrl-C means something to the pager; what was shown stays until it is left.
            with suppress(KeyboardInterrupt):
                self._process.wait()
                return


def _pager() -> list[str] | None:
    command = os.environ.get("STEPWELL_PAGER", os.environ.get("PAGER", "less"))
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation that does not end
        return None
    return words if words and words != ["cat"] and shutil.which(words[0]) else None


def text(*parts: Part) -> Text:
    """Parts as one text of rich, harmless."""
    from rich.text import Text

    made = Text()
    for part in parts:
        content, style = part if isinstance(part, tuple) else (part, "")
        made.append(safe(content), style=style or None)
    return made


def _columns_of(content: str) -> int:
    """How many columns a text takes on a terminal."""
    if content.isascii():
        return len(content)
    from rich.cells import cell_len

    return cell_len(content)


def _plain(part: Part) -> str:
    return safe(part if isinstance(part, str) else part[0])


def safe(content: str) -> str:
    """A text in which nothing can do more than show."""
    from stepwell.inspect import safe_text

    return safe_text(content)


def tame_warnings() -> None:
    """Make what libraries log harmless, too: it may name what stands in a log."""
    import logging

    class Harmless(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return safe(super().format(record))

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Harmless())


# --- telling how far it is ---


class Meter:
    """Shows how far something is, on the error stream, once it takes longer than a second.

    Its `told` is what the engine calls as `progress`.
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._shown: Progress | None = None
        self._task: TaskID | None = None
        self._last = 0.0

    def told(self, what: str, done: int, total: int) -> None:
        """Something is so far; a total of 0 says that nobody knows how far that is."""
        moment = time.monotonic()
        if moment - self._begun < _PATIENCE_SECONDS or not sys.stderr.isatty():
            return
        if moment - self._last < _REFRESH_SECONDS and done < total:
            return
        self._last = moment
        if self._shown is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self._shown = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True, highlight=False, markup=False, emoji=False),
                transient=True,
            )
            self._shown.start()
            self._task = self._shown.add_task("", total=None)
        assert self._task is not None
        self._shown.update(self._task, description=safe(what), completed=done, total=total or None)

    def stop(self) -> None:
        """Show nothing any more."""
        self._begun = math.inf
        if self._shown is not None:
            self._shown.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something is going on that cannot tell how far it is, once it takes longer than a second."""
    if not sys.stderr.isatty():
        yield
        return
    import threading

    done = threading.Event()

    def show() -> None:
        if done.wait(_PATIENCE_SECONDS):
            return
        from rich.console import Console

        with Console(stderr=True, highlight=False, markup=False).status(text(what)):
            done.wait()

    teller = threading.Thread(target=show, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


# --- figures ---


def counted(count: int, what: str) -> str:
    """A number of things: 1 step, 2 steps."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def size(count: int) -> str:
    """Bytes, for people."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.5 or unit == "TB":
            break
    return f"{amount:.1f} {unit}" if amount < 99.5 else f"{amount:,.0f} {unit}"


def moment(nanoseconds: int) -> str:
    """A time of the log in UTC, to the microsecond, for programs: 2026-01-31T12:34:56.789012Z."""
    return datetime.fromtimestamp(nanoseconds // 1000 / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def local_time(nanoseconds: int) -> str:
    """A time of the log on this machine's clock, for people: 2026-01-31 12:34:56."""
    return datetime.fromtimestamp(nanoseconds / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock(nanoseconds: int) -> str:
    """A time of the log on this machine's clock, as short as it can be: without the date if that is today's."""
    shown = local_time(nanoseconds)
    return shown[11:] if shown.startswith(local_time(time.time_ns())[:10]) else shown


def duration(seconds: float) -> str:
    """A time that something took, for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86400 * 2:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"


def ago(nanoseconds: int) -> str:
    """How long ago a time of the log is."""
    return duration(max(time.time() - nanoseconds / 1e9, 0)) + " ago"
