"""The collector of garbage, paused while many objects are made at once.

It starts after every 700 new containers, and now and then looks at all objects of the process: a state of a
thousand messages sets it off sixteen times, though none of what is made can be garbage yet.  What it is to find
elsewhere meanwhile, it finds some milliseconds later.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_pausing = threading.Lock()


@contextmanager
def paused() -> Iterator[None]:
    """No garbage is collected while the block runs, in any thread.

    Does nothing if nothing is collected anyway, or within another pause, which ends when it ends: many threads
    that take turns at pausing must not keep the collector out for good.
    """
    pausing = _pausing
    if not gc.isenabled() or not pausing.acquire(blocking=False):
        yield
        return
    try:
        gc.disable()
        yield
    finally:
        gc.enable()
        pausing.release()


def _after_fork() -> None:
    """In a forked child there is no thread that would end a pause of another thread."""
    global _pausing
    if _pausing.locked():
        _pausing = threading.Lock()
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
