"""The machine's clock, as far as an event can hold what it says.

It may step back, and nothing is ordered by it.
"""

from __future__ import annotations

import time
from typing import Final

_LATEST: Final = (1 << 62) - 1


def now() -> int:
    """Unix time in nanoseconds, or the nearest that can be stored; never 0, which stands for none."""
    return min(max(time.time_ns(), 1), _LATEST)
