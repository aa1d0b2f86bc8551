"""The command line `stepwell`: a log looked at, kept in order and carried about, without the application's code."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and end the process."""
    try:
        from stepwell_cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"stepwell: the command line needs {error.name}: pip install 'stepwell[cli]'")
    run()
