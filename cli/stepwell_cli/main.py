"""The entry point: which commands there are, and how the process ends."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperCommand
from typer.main import get_command

from stepwell_cli import branching, comparison, exits, history, memories, overview, transfer, upkeep
from stepwell_cli.places import Command
from stepwell_cli.screen import safe

COMMANDS: Final[Mapping[str, Command]] = {
    name: command
    for group in (overview, history, comparison, memories, branching, upkeep, transfer)
    for name, command in group.COMMANDS.items()
}


EXAMPLES: Final[Mapping[str, str]] = {
    "threads": "threads agent.stepwell --status failed --since 2d",
    "stats": "stats agent.stepwell --measure",
    "log": "log agent.stepwell anna -n 100",
    "tree": "tree agent.stepwell anna",
    "show": "show agent.stepwell anna@17 'messages[-1].content'",
    "replay": "replay agent.stepwell anna --graph agent:graph",
    "follow": "follow agent.stepwell anna --after 0",
    "diff": "diff agent.stepwell anna@16 anna@17",
    "blame": "blame agent.stepwell anna 'plan[\"step 3\"]'",
    "watch": "watch agent.stepwell anna plan",
    "grep": "grep agent.stepwell 'Villa Rosa' anna",
    "memories": "memories agent.stepwell users anna --key likes",
    "fork": "fork agent.stepwell anna@17 --set budget=150",
    "audit": "audit agent.stepwell",
    "repair": "repair agent.stepwell repaired.stepwell",
    "seal": "seal agent.stepwell",
    "compact": "compact agent.stepwell",
    "export": "export agent.stepwell anna --to anna.bundle",
    "import": "import agent.stepwell sqlite:///agent.db",
}

_LINE_END: Final = re.compile(r"\s*\n\s*")  # within what a database, for one, says


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"stepwell {version('stepwell')}")
        raise typer.Exit


def stepwell(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and exit.")
    ] = False,
) -> None:
    """Look into a stepwell log, compare, fork, check, carry and repair it.

    A log is a file, a thread one agent's history in it, a step one checkpoint.
    Steps are named THREAD@STEP, where STEP is a number as LangGraph counts (17,
    -1), a sequence (#231), an id or the beginning of one, and any of these with
    ~3 for three steps before. Without @STEP the newest step is meant.
    """


class _Documented(TyperCommand):
    """A command whose usage names its arguments as its help does."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


def application(commands: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line, with all of its commands or with those that are needed: each takes time to be made."""
    app = typer.Typer(
        name="stepwell",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
        epilog="Exit codes: 0 done; 1 something was found (diff, audit, repair), or nothing (grep); 2 wrong usage; "
        "3 damaged, or no log; 4 exists already; 5 no room; 130 Ctrl-C.",
    )
    app.callback()(stepwell)
    for name in commands:
        app.command(name, cls=_Documented, epilog=f"For example: stepwell {EXAMPLES[name]}")(COMMANDS[name])
    return app


def main() -> NoReturn:
    """Run the command line and end the process."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed, and no file of ours must come to have its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open as long as we do
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal has no character for
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    needed = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    try:
        try:
            code = get_command(application(needed)).main(
                arguments or ["--help"], prog_name="stepwell", standalone_mode=False
            )
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return exits.PIPE_CLOSED
    except SystemExit as error:  # typer's answer to a pipe that was closed
        if isinstance(error.__context__, BrokenPipeError):
            _forget_output()
            return exits.PIPE_CLOSED
        raise
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:
        return _failed(error)
    return code if isinstance(code, int) else exits.OK


def _failed(error: Exception) -> int:
    """Say what went wrong in a line or two; what is our own mistake keeps its traceback."""
    if isinstance(error, typer.Abort):
        return exits.INTERRUPTED
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        _complain(_message_of(error), f"{context.command_path} --help" if context else "")
        return exits.USAGE
    code = exits.code_of(error)
    if code is None:
        raise error
    from stepwell import BundleError, CorruptionError

    is_log = isinstance(error, CorruptionError) and not isinstance(error, BundleError)
    hint = "stepwell repair LOG NEW-FILE" if is_log else ""
    _complain("; ".join((str(error), *getattr(error, "__notes__", ()))), hint)
    return code


def _message_of(error: typer.TyperException) -> str:
    """What was wrong with a command as it was written."""
    if isinstance(error, typer.BadParameter) and error.param is None:
        return error.message  # it says itself what it is about
    message = error.format_message()
    name = message.removeprefix("No such command '").rstrip(".").rstrip("'")
    if name != message and os.path.exists(name):
        return f"a command comes first: stepwell threads {name}"
    return message


def _complain(message: str, hint: str) -> None:
    red, plain = ("\x1b[31m", "\x1b[0m") if _has_colour() else ("", "")
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else 1 << 20
    lines = textwrap.wrap(
        f"stepwell: {safe(_LINE_END.sub(' ', message))}", width, break_long_words=False, break_on_hyphens=False
    )
    lines[0] = f"{red}stepwell:{plain}{lines[0].removeprefix('stepwell:')}"
    if hint:
        lines.append(f"Try: {hint}")
    sys.stderr.write("\n".join(lines) + "\n")


def _has_colour() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _forget_output() -> None:
    """Nobody reads any more: what is still to be written must not raise at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
