"""What the process ends with, so that scripts can tell one outcome from another.

0   done, and nothing is to be said against it
1   done, and something was found: differences (`diff`), breaches (`audit`), losses (`repair`), or nothing (`grep`)
2   the command cannot be carried out as written
3   the file is damaged, is no log, or is of a newer version
4   something is there already, or was changed meanwhile
5   there is no room, or the system refused to read or write
130 Ctrl-C
141 whoever read the output went away
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
FOUND: Final = 1
USAGE: Final = 2
DAMAGED: Final = 3
CONFLICT: Final = 4
REFUSED: Final = 5
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141


def code_of(error: Exception) -> int | None:
    """The code for an error that is not our own mistake; None for one that is."""
    from stepwell import errors

    if isinstance(error, errors.UsageError):
        return USAGE
    if isinstance(error, errors.CorruptionError | errors.FormatError):
        return DAMAGED
    if isinstance(error, errors.ConflictError):
        return CONFLICT
    if isinstance(error, errors.CapacityError | OSError):
        return REFUSED
    return None
