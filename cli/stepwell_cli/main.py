"""The entry point: which commands there are, and how the process ends."""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

import typer
from typer.main import get_command

from stepwell_cli import branching, comparison, exits, history, overview, transfer, upkeep
from stepwell_cli.screen import safe

app: Final = typer.Typer(
    name="stepwell",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Exit codes: 0 done; 1 something was found (diff, audit, repair), or nothing (grep); 2 wrong usage; "
    "3 damaged, or no log; 4 exists already; 5 no room; 130 Ctrl-C.",
)


@app.callback()
def stepwell() -> None:
    """Look into a stepwell log, compare, fork, check, carry and repair it.

    A log is a file, a thread one agent's history in it, a step one checkpoint.
    Steps are named THREAD@STEP, where STEP is a number as LangGraph counts (17,
    -1), a sequence (#231), an id or the beginning of one, and any of these with
    ~3 for three steps before. Without @STEP the newest step is meant.
    """


for group in (overview, history, comparison, branching, upkeep, transfer):
    group.register(app)


def main() -> NoReturn:
    """Run the command line and end the process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        try:
            code = get_command(app).main(arguments, prog_name="stepwell", standalone_mode=False)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return exits.PIPE_CLOSED
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:
        return _failed(error)
    return code if isinstance(code, int) else exits.OK
