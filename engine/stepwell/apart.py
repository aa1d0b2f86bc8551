"""Calls that are made in a thread of their own, while the caller waits.

Signal handlers run in the main thread, between any two of its calls.  One that interrupts a call which keeps all others
from committing, and appends, would wait for itself; one that closes the log would leave the call to change a file that
others may have changed meanwhile.  So such a call is made apart: the handler interrupts only the waiting for it.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")

_LOOK_AGAIN_SECONDS: Final = 1.0

_threads: set[int] = set()


def is_here() -> bool:
    """Whether the thread that asks makes such a call."""
    return threading.get_ident() in _threads


def apart(call: Callable[[], _T], stop: Callable[[], None] | None = None) -> _T:
    """Make a call in a thread of its own; what it returns or raises.

    Args:
        call: The call.
        stop: Lets the call end early.  Made, and its end waited for, if the waiting is interrupted; without it the
            call goes on by itself.
    """
    begun: list[int] = []
    returned: list[_T] = []
    raised: list[BaseException] = []
    running = threading.Lock()

    def run() -> None:
        begun.append(threading.get_ident())
        _threads.update(begun)
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)
        _threads.difference_update(begun)
        running.release()

    def wait() -> None:
        # An interruption may come when the lock is taken, and be followed by another waiting.
        while not returned and not raised:
            running.acquire(timeout=_LOOK_AGAIN_SECONDS)

    running.acquire()
    try:
        try:
            # One call, which is interrupted before or after: that of a Thread waits, and can be left halfway.
            _thread.start_new_thread(run, ())
        except RuntimeError:  # the interpreter ends, and starts no thread any more
            run()
        wait()
    except BaseException:
        if stop is not None:
            stop()
            if begun:
                wait()
        raise
    if raised:
        raise raised[0]
    return returned[0]
