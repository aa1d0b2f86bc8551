"""To follow a log: what was committed since, then each commit as it comes, from any process.

    1. A follower hangs up a bell, which rings at each commit from here on.
    2. It reads a page after its position.  Commit numbers and sequences rise in commit order, and a commit is seen
       whole or not at all, so nothing can appear later behind a position that was read past.
    3. If there was nothing, it waits for the bell: what was committed after the page was read has rung it.

Each page is a read transaction of its own, of microseconds: nothing is open while a follower waits, or while its user
works on what it was given.  This log's own writer rings after each group.  Commits of others are noticed by one
thread for all who wait, which asks for the moment of the log again and again, soon after a commit, ever less often the
longer there was none; and rings when it is another one.

There is no lock, so that a signal handler may append, close the log or stop a follower that it interrupted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Generic, NamedTuple, Self, TypeVar

from stepwell import format as fmt
from stepwell import reader
from stepwell.errors import ClosedError, ConflictError, StepwellError, UsageError
from stepwell.events import Commit, Event, Sequence, ThreadDeleted
from stepwell.storage import FeedRow, Storage

SHORTEST_PAUSE_SECONDS: Final = 0.001
LONGEST_PAUSE_SECONDS: Final = 0.025
PAUSE_SHARE: Final = 8  # of the time since the last commit
LINGER_SECONDS: Final = 1.0  # of the thread that watches, while nobody waits
ATTEMPTS: Final = 5  # at reading events of a thread that is pruned again and again
_PAGE_EVENTS: Final = 32
_END: Final = 1 << 62


class FeedEntry(NamedTuple):
    """One append, in the order of the whole log.

    Attributes:
        commit: Its position in the log.
        thread_id: The thread that it went to; None if the thread was deleted by the time this was read.
        first: Sequence of its first event.
        last: Sequence of its last event.
        number: The thread's number, which no other thread of the log ever has: tells which one was deleted.
    """

    commit: Commit
    thread_id: str | None
    first: Sequence
    last: Sequence
    number: int


_Item = TypeVar("_Item", bound=FeedEntry | tuple[Sequence, Event])


class _Bell:
    """Wakes a thread."""

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        self._silence.release()

    def wait(self, timeout_seconds: float | None) -> None:
        """Wait until it rings, or has rung already, or the time is up."""
        self._silence.acquire(timeout=-1 if timeout_seconds is None else timeout_seconds)


class _LoopBell:
    """Wakes a coroutine."""

    def __init__(self) -> None:
        from asyncio import get_running_loop  # not above: see writer.py

        self._loop = get_running_loop()
        self._rung = self._loop.create_future()

    def ring(self) -> None:
        with suppress(RuntimeError):  # the loop was closed; nobody waits any more
            self._loop.call_soon_threadsafe(self._resolve)

    async def wait(self, timeout_seconds: float | None) -> None:
        """Wait until it rings, or has rung already, or the time is up."""
        timer = None if timeout_seconds is None else self._loop.call_later(timeout_seconds, self._resolve)
        try:
            await self._rung
        finally:
            if timer is not None:
                timer.cancel()

    def _resolve(self) -> None:
        if not self._rung.done():
            self._rung.set_result(None)


class Watch:
    """Rings when the log has changed.

    Args:
        moment: Gives the moment of the log.

    Attributes:
        closed: Whether the log was closed.
    """

    def __init__(self, moment: Callable[[], int]) -> None:
        self.closed = False
        self._moment = moment
        self._bells: dict[_Bell | _LoopBell, bool] = {}
        self._claim = threading.Lock()  # of the one thread that watches

    def ring(self) -> None:
        """Ring every bell, each for the first and last time."""
        if self._bells:
            for bell in list(self._bells):
                if self._bells.pop(bell, False):
                    bell.ring()

    def close(self) -> None:
        """The log was closed: nobody needs to wait any more."""
        self.closed = True
        self.ring()

    def hang(self, bell: _Bell | _LoopBell) -> None:
        """From here on the next commit rings a bell; one of others, if somebody watches."""
        self._bells[bell] = True

    def take(self, bell: _Bell | _LoopBell) -> None:
        """Nobody listens to a bell any more."""
        self._bells.pop(bell, None)

    def begin(self) -> None:
        """See to it that somebody watches.  What was not noticed before rings once somebody does."""
        if not self._claim.locked():
            threading.Thread(target=self._run, name="stepwell-watch", daemon=True).start()

    def _run(self) -> None:
        # Whoever begins to wait while this thread is about to end has found it watching still, so it looks again.
        while self._bells and not self.closed and self._claim.acquire(blocking=False):
            try:
                self._watch()
            finally:
                self._claim.release()

    def _watch(self) -> None:
        seen = -1  # who waits may have read before this thread began
        changed_at = wanted_at = time.monotonic()
        while not self.closed:
            now = time.monotonic()
            if self._bells:
                wanted_at = now
            elif now - wanted_at > LINGER_SECONDS:
                return
            time.sleep(min(max((now - changed_at) / PAUSE_SHARE, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))
            try:
                moment = self._moment()
            except StepwellError:
                self.ring()  # who waits reads for itself, and learns what is wrong
                continue
            if moment != seen:
                seen, changed_at = moment, time.monotonic()
                self.ring()


class Following(Generic[_Item]):
    """What is committed, as it comes: an iterator, and an asynchronous one; for one consumer at a time.

    It ends when nothing has come for `timeout_seconds`, and may be asked again then, like a file that grows.  It holds
    nothing open: it can be dropped at any moment.  Closing the log ends it with ClosedError; `close` ends it quietly.

    Attributes:
        position: The commit number, or sequence, of what was given last: the `after` to go on from.
    """

    def __init__(
        self,
        owner: object,
        watch: Watch,
        read: Callable[[int], list[_Item]],
        after: int,
        timeout_seconds: float | None,
        is_last: Callable[[_Item], bool] = lambda item: False,
    ) -> None:
        if timeout_seconds is not None and not 0 <= timeout_seconds <= threading.TIMEOUT_MAX:
            raise UsageError(f"timeout_seconds is a number from 0, or None to wait for ever, not {timeout_seconds!r}")
        self.position = after
        self._owner = owner  # a log that nobody has any more is closed
        self._watch = watch
        self._read = read
        self._timeout_seconds = timeout_seconds
        self._is_last = is_last
        self._page: deque[_Item] = deque()
        self._has_ended = False

    def close(self) -> None:
        """End it, from any thread, coroutine or signal handler: whoever waits for it finds it exhausted."""
        self._has_ended = True
        self._watch.ring()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Item:
        """The next one; waits for it.

        Raises:
            StopIteration: Nothing came for `timeout_seconds`, `close` was called, or the thread is deleted.
            ClosedError: The log was closed.
        """
        deadline = self._deadline()
        while not self._is_ready():
            bell = _Bell()
            try:
                self._watch.hang(bell)
                self._check()
                self._page.extend(self._read(self.position))
                if not self._page:
                    left = self._left(deadline)
                    if left == 0:
                        raise StopIteration
                    bell.wait(left)
            finally:
                self._watch.take(bell)
        if self._has_ended:
            raise StopIteration
        item = self._page[0]
        # The last thing that happens: an interruption before it leaves the item to be given, nothing comes after it.
        self.position = item[0]
        return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Item:
        """As `__next__`; the log is read in a thread, and nothing waits in one."""
        from asyncio import to_thread

        deadline = self._deadline()
        while not self._is_ready():
            bell = _LoopBell()
            try:
                self._watch.hang(bell)
                self._check()
                self._page.extend(await to_thread(self._read, self.position))
                if not self._page:
                    left = self._left(deadline)
                    if left == 0:
                        raise StopAsyncIteration
                    await bell.wait(left)
            finally:
                self._watch.take(bell)
        if self._has_ended:
            raise StopAsyncIteration
        item = self._page[0]
        self.position = item[0]
        return item

    def _is_ready(self) -> bool:
        """Whether there is something to give, or never will be; forgets what was given."""
        page = self._page
        while page and page[0][0] <= self.position:
            if self._is_last(page[0]):
                self._has_ended = True
            page.popleft()
        return self._has_ended or bool(page)

    def _check(self) -> None:
        if self._watch.closed:
            raise ClosedError("the log that was followed was closed; open it again and go on after `position`")

    def _deadline(self) -> float | None:
        return None if self._timeout_seconds is None else time.monotonic() + self._timeout_seconds

    def _left(self, deadline: float | None) -> float | None:
        """How long to wait yet; not at all if it was ended, which may have been before the bell hung."""
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        if self._has_ended or left == 0:
            return 0
        self._watch.begin()
        return left


# --- what is followed ---


class Appends:
    """The appends to all threads of a log, in commit order.

    Args:
        storage: Where the log is kept.
        limit: How many commits to look at in one go.
    """

    def __init__(self, storage: Storage, limit: int) -> None:
        self._storage = storage
        self._limit = limit
        self._passed = 0  # up to this commit number there is nothing to give after what was asked for last

    def read(self, after: int) -> list[FeedEntry]:
        """The next appends after a commit number; none if there are no more.  Changes of items are passed over."""
        after = max(after, self._passed)
        while rows := self._storage.feed(after, self._limit):
            if entries := [*self._entries(rows)]:
                return entries
            self._passed = after = rows[-1].commit
        return []

    def _entries(self, rows: list[FeedRow]) -> Iterator[FeedEntry]:
        names: dict[int, str] = {}
        for row in rows:
            if row.thread not in names:
                names.update({found.number: name for name, found in self._storage.threads(row.thread - 1, 1)})
            name = names.get(row.thread)
            if name is None or not name.startswith(fmt.OWN_THREADS):
                yield FeedEntry(Commit(row.commit), name, Sequence(row.first), Sequence(row.last), row.thread)


class ThreadEvents:
    """The events of one thread, from where it is found first up to its deletion.

    Args:
        storage: Where the log is kept.
        thread_id: The thread.
        after: The sequence that was read last; None for the last that there is.

    Raises:
        ConflictError: The thread has not come to that sequence: it was deleted since.
    """

    def __init__(self, storage: Storage, thread_id: str, after: int | None) -> None:
        self._storage = storage
        self._thread_id = thread_id
        row = storage.thread(thread_id)
        last = row.last if row else 0
        self._number = row.number if row else 0
        self.after = last if after is None else after
        if self.after > last:
            raise ConflictError(
                f"thread {thread_id!r} is at sequence {last}, so it is not the one that was read up to {after}: that "
                "was deleted; follow it from the beginning",
                thread=thread_id,
                expected=after,
                actual=last,
            )

    def read(self, after: int) -> list[tuple[Sequence, Event]]:
        """The next events after a sequence, with their content as bytes; none if there are no more."""
        if not self._number:
            row = self._storage.thread(self._thread_id)
            if row is None:
                return []
            self._number = row.number
        for _ in range(ATTEMPTS - 1):
            with suppress(ConflictError):
                return self._page(after)
        return self._page(after)

    def _page(self, after: int) -> list[tuple[Sequence, Event]]:
        records = self._storage.scan(self._number, after, _END, _PAGE_EVENTS, reverse=False)
        payloads = reader.Payloads(self._storage, self._number)
        return [
            (sequence, reader.resolved(event, payloads.read))
            for sequence, event in reader.decoded(self._storage, self._number, records)
        ]


def is_deletion(item: tuple[Sequence, Event]) -> bool:
    """Whether nothing can follow an event of a thread."""
    return isinstance(item[1], ThreadDeleted)
