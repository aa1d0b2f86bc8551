"""A thread that does something at intervals until it is told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Final

from stepwell.errors import ClosedError

_log: Final = logging.getLogger("stepwell")


class Sweeping(Future[None]):
    """Ends when the sweeper has stopped; cancelling it stops the sweeper.

    May be awaited where it is made, as `start_ttl_sweeper` of other async stores asks for: that waits for nothing.
    """

    def __await__(self) -> Generator[None, None, Sweeping]:
        return self
        yield


class Stopped:
    """Whether a sweeper has stopped; may be awaited, or not."""

    def __init__(self, has_stopped: bool) -> None:
        self._has_stopped = has_stopped

    def __bool__(self) -> bool:
        return self._has_stopped

    def __await__(self) -> Generator[None, None, bool]:
        return self._has_stopped
        yield


class Sweeper:
    """Runs something again and again.

    Args:
        sweep: What to run; returns how many things it removed.
    """

    def __init__(self, sweep: Callable[[], int]) -> None:
        self._sweep = sweep
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sweepings: list[Sweeping] = []

    def start(self, interval_seconds: float) -> Sweeping:
        """Begin, unless it runs already; the first sweep comes after one interval."""
        sweeping = Sweeping()
        sweeping.add_done_callback(self._cancelled)
        if self._thread is not None and self._thread.is_alive() and not self._stop.is_set():
            self._sweepings.append(sweeping)
            return sweeping
        self._stop, self._sweepings = threading.Event(), [sweeping]
        arguments = (self._stop, interval_seconds, self._sweepings)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True, name="stepwell-ttl-sweeper")
        self._thread.start()
        return sweeping

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """End it; returns whether it has ended in time."""
        thread = self._thread
        self._stop.set()
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_seconds)
        return not thread.is_alive()

    def _cancelled(self, sweeping: Future[None]) -> None:
        if sweeping.cancelled():
            self._stop.set()

    def _run(self, stop: threading.Event, interval_seconds: float, sweepings: list[Sweeping]) -> None:
        while not stop.wait(interval_seconds):
            try:
                removed = self._sweep()
            except ClosedError:  # by whoever opened the log, and did not close the store
                stop.set()
            except Exception:
                _log.exception("Sweeping of expired items failed; it is tried again")
            else:
                if removed:
                    _log.info("%d expired items were removed", removed)
        for sweeping in sweepings:
            if not sweeping.cancelled():
                sweeping.set_result(None)
