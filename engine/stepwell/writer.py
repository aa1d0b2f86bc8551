"""Group commit: one thread per open log commits everything that waits, in one transaction with one sync.

    1. A caller submits an operation and gets a ticket.
    2. The writer takes whatever has been submitted by now, in order, and commits it as one group.
    3. Each ticket is resolved with its own outcome.  A refused operation fails alone.
    4. If the group as a whole fails, each operation is tried by itself, so that one which cannot be
       carried out does not take its neighbours with it.

While a group is synced the next one gathers, so the cost of a sync is shared by all who wait for it.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from time import perf_counter
from typing import Final

from stepwell.content import Place, settle
from stepwell.errors import ClosedError, ForkedError, UsageError
from stepwell.loops import Loops, Waiter
from stepwell.observing import Member, Observer, Span, tell
from stepwell.statistics import Tally
from stepwell.storage import Append, Committed, Operation, Outcome, Rewrite, Storage

_ENDING_SECONDS: Final = 1.0
_LARGEST_GROUP: Final = 1024  # bounds one transaction, and with it the pages that LMDB holds in memory


class Ticket:
    """The promise of an outcome: wait for it with `result()` in a thread, or with `await` in a coroutine.

    Giving up the wait does not take the operation back: it may still be committed.
    """

    __slots__ = ("_done", "_hurry", "_outcome", "_places", "_waiters", "mark", "operation")

    def __init__(self, operation: Operation, places: Sequence[Place], hurry: Callable[[], None]) -> None:
        self.operation = operation
        self._hurry = hurry
        self.mark: object = None
        self._places = places
        self._outcome: Outcome | BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()
        self._waiters: list[Waiter] = []

    @property
    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome is not None

    @property
    def places(self) -> Sequence[Place]:
        """Where its events stand; they are told as soon as that is known, and told anew if that changes."""
        return self._places

    @property
    def committed(self) -> Committed | None:
        """What was committed; None while it is not known, or if it failed."""
        return self._outcome if isinstance(self._outcome, Committed) else None

    def result(self) -> Committed:
        """Wait for the operation to be durable.

        Raises:
            StepwellError: It was refused or could not be carried out; nothing of it is in the log.
        """
        if self._outcome is None:
            self._hurry()  # an event loop that waits here will not come to the end of its turn
            with self._done:
                pass
        return self._taken()

    def __await__(self) -> Generator[object, None, Committed]:
        if self._outcome is None:
            from asyncio import get_running_loop

            loop = get_running_loop()
            future = loop.create_future()
            self._waiters.append((loop, future))
            # Without a lock: whoever comes too late to be told finds the outcome.
            if self._outcome is None:
                yield from future
        return self._taken()

    def _taken(self) -> Committed:
        outcome = self._outcome
        assert outcome is not None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def resolve(self, outcome: Outcome | BaseException) -> list[Waiter]:
        """Make the outcome known to threads; returns the coroutines that are still to be told."""
        settle(self._places, durable=isinstance(outcome, Committed))
        self._outcome = outcome
        waiters, self._waiters = self._waiters, []
        self._done.release()
        return waiters


class Writer:
    """The only module that changes a log.  The thread starts with the first operation.

    Attributes:
        notice: Told of every append that was committed: the thread, and what became of it.
        ring: Called after each group, when all who waited for it know.
        tally: What was committed since the log was opened.
        observer: Told of each operation and group; None if nobody wants to know.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._queue: deque[Ticket | None] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()  # not empty: there may be something in the queue
        self._loops = Loops(self._ring)
        # Reentrant: a signal handler or a finalizer may submit or close in the midst of a submission.
        self._lock = threading.RLock()
        self._started = False
        self._claim = threading.Lock()
        self._thread: threading.Thread | None = None  # the one that writes, once it runs
        self._over = threading.Lock()
        self._over.acquire()
        self._closed = False
        self._last: Callable[[], None] | None = None
        self.notice: Callable[[str, Committed], None] = _ignore
        self.ring: Callable[[], None] = _ring_nobody
        self.tally = Tally()
        self.observer: Observer | None = None
        self._pid = os.getpid()

    @property
    def has_run(self) -> bool:
        """Whether anything was ever submitted."""
        return self._started

    @property
    def is_here(self) -> bool:
        """Whether the writer's thread is the one that asks."""
        return self._thread is threading.current_thread()

    def submit(self, operation: Operation, places: Sequence[Place] = ()) -> Ticket:
        """Queue an operation behind all that were submitted before.

        Args:
            operation: What to do.
            places: To be told whether the operation's entries are in the log.

        Raises:
            ClosedError: The log was closed.
            ForkedError: This process is a fork of the one that opened the log.
            UsageError: The writer's own thread asks.
        """
        if self._pid != os.getpid():
            raise ForkedError.of(self._storage.path, self._pid)
        if self.is_here:
            raise UsageError(
                f"a call that changes the log {self._storage.path!r} was made by the thread that writes it, from a "
                "function given to `rewrite` or from a finalizer: it would wait for itself"
            )
        ticket = Ticket(operation, places, self._ring)
        if (observer := self.observer) is not None:
            ticket.mark = tell(observer.submitted, operation)
        with self._lock:
            if self._closed:
                raise self._closed_error()
            if not self._started:
                # Interrupted here, it may have started all the same.  Of several threads the first one writes.
                threading.Thread(target=self._run, name="stepwell-writer", daemon=True).start()
                _running.add(self)
                self._started = True
            # First that the writer will be told: an interruption after it leaves nothing in the queue unseen.
            rings = self._loops.ring_later()
            self._queue.append(ticket)
            if self._closed:  # by a handler that interrupted this: what stands behind the end is carried out by nobody
                try:
                    self._queue.remove(ticket)
                except ValueError:  # the writer has taken it, and tells what becomes of it
                    pass
                else:
                    raise self._closed_error()
            if not rings:
                self._ring()
        # failpoint: operation-queued
        return ticket

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the log {self._storage.path!r} was closed; open it again with Log.open")

    def close(self) -> None:
        """Wait for everything that was submitted, then end the thread."""
        if self._pid != os.getpid():
            return  # in a forked child there is no such thread, and its locks may be held for ever
        self._end()
        self.wait()

    def wait(self) -> None:
        """Wait until the thread has ended, if there is one."""
        if self._started and self._pid == os.getpid():
            with self._over:
                pass
            if self._thread is not None:
                # Nothing is left to be done in it.  A join without end could wait for one that this call interrupted.
                self._thread.join(_ENDING_SECONDS)

    def abandon(self, last: Callable[[], None]) -> None:
        """End the thread once everything that was submitted is done, without waiting for it.

        Args:
            last: To be called then.
        """
        if self._pid != os.getpid():
            return
        self._last = last
        self._end()
        if not self._started or not self._over.locked():
            # Not here: the collector may call this in the middle of anything, with any lock held.
            threading.Thread(target=self._finish, name="stepwell-closing", daemon=True).start()

    def _end(self) -> None:
        with self._lock:
            self._closed = True  # first: nothing may be queued behind the end
            self._queue.append(None)
            self._ring()

    def _ring(self) -> None:
        """Have the writer look at the queue.  One that has not looked yet need not be told again."""
        if self._bell.empty():
            self._bell.put(None)

    def _finish(self) -> None:
        """Call what is to be called last, once."""
        last, self._last = self._last, None
        if last is not None:
            last()

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        self._thread = threading.current_thread()
        group: list[Ticket] = []
        try:
            while group := self._gather():
                # failpoint: group-gathered
                for part in _parts(group):
                    self._commit(part)
            self._finish()
        except BaseException as error:
            # Whatever ends this thread must reach those who wait for it.
            with self._lock:
                self._closed = True
            self._resolve(group + self._drain(), error)
            raise
        finally:
            _running.discard(self)
            self._over.release()
            self._finish()  # for who abandoned this writer a moment ago, and saw it still run

    def _gather(self) -> list[Ticket]:
        while not self._queue:
            self._bell.get()
        group: list[Ticket] = []
        while self._queue and len(group) < _LARGEST_GROUP:
            ticket = self._queue.popleft()
            if ticket is None:
                if group:
                    self._queue.appendleft(None)  # the end was met behind this group: meet it again after it
                break
            group.append(ticket)
        return group

    def _drain(self) -> list[Ticket]:
        rest: list[Ticket] = []
        while self._queue:
            ticket = self._queue.popleft()
            if ticket is not None:
                rest.append(ticket)
        return rest

    def _commit(self, group: list[Ticket]) -> None:
        began = perf_counter()
        try:
            outcomes: list[Outcome] = self._storage.commit([ticket.operation for ticket in group])
        except Exception as error:
            self.tally.failed_groups += 1
            if len(group) == 1:
                self._resolve(group, error)
                if (observer := self.observer) is not None:
                    _observe(observer, group, [error], perf_counter() - began)
            else:
                for ticket in group:
                    # Nobody may refer to where the failed attempt would have put it.
                    if isinstance(ticket.operation, Append) and ticket.operation.placed is not None:
                        ticket.operation.placed(None)
                for ticket in group:
                    self._commit([ticket])
            return
        seconds = perf_counter() - began
        self.tally.group(seconds, len(group))
        waiters: list[Waiter] = []
        # failpoint: group-acknowledging
        for ticket, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Committed) and isinstance(ticket.operation, Append) and not ticket.operation.restart:
                # What was acknowledged was counted before.  What a pruning keeps is put again, and is nothing new.
                self.tally.append(len(outcome.sequences), ticket.operation.stored_bytes())
            waiters += ticket.resolve(outcome)
            # failpoint: ticket-resolved
        self._loops.wake(waiters)
        # failpoint: group-acknowledged
        self.ring()
        for ticket, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Committed) and isinstance(ticket.operation, Append):
                self.notice(ticket.operation.thread_id, outcome)
        if (observer := self.observer) is not None:
            _observe(observer, group, outcomes, seconds)

    def _resolve(self, tickets: list[Ticket], error: BaseException) -> None:
        waiters: list[Waiter] = []
        for ticket in tickets:
            if not ticket.done:
                # Each caller gets an exception of its own: tracebacks grow on the one that is raised.
                waiters += ticket.resolve(_copy_of(error))
        self._loops.wake(waiters)


_running: set[Writer] = set()


def finish_all() -> None:
    """Wait for the writers of logs that were dropped without being closed; at the interpreter's end."""
    for writer in list(_running):
        writer.wait()


def _parts(group: list[Ticket]) -> list[list[Ticket]]:
    """The group, cut so that each Rewrite is alone: it reads what was committed before it."""
    parts: list[list[Ticket]] = [[]]
    for ticket in group:
        if isinstance(ticket.operation, Rewrite):
            parts += [[ticket], []]
        else:
            parts[-1].append(ticket)
    return [part for part in parts if part]


def _ignore(thread_id: str, committed: Committed) -> None:
    pass


def _ring_nobody() -> None:
    pass


def _observe(observer: Observer, group: list[Ticket], outcomes: Sequence[Outcome | Exception], seconds: float) -> None:
    ended = time.time_ns()
    members = [Member(ticket.operation, ticket.mark, each) for ticket, each in zip(group, outcomes, strict=True)]
    tell(observer.committed, members, Span(ended - int(seconds * 1e9), ended))


def _copy_of(error: BaseException) -> BaseException:
    try:
        return copy.copy(error)
    except Exception:  # an exception that cannot be copied is still one that can be raised
        return error
