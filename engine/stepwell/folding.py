"""When to seal, and what a sealing leaves behind.

Once a thread has many loose events they go into a segment: read, packed and compressed in a background
thread, outside any transaction and any caller's commit, then swapped in by one short transaction.  If
somebody else (another process, a pruning) was faster, the swap finds that they are not loose any more and
changes nothing.  A crash at any moment leaves either the loose events or the segment.

With a segment come bases: the state after the newest step of a lane, as references, so that a reader need not
fold from the beginning.  One is kept when what lies between it and the base before it is worth at least an
eighth of it: so all bases together take no more than in proportion to the events, and reading any state
takes no more than in proportion to the state.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from queue import SimpleQueue
from typing import Final, NamedTuple

from stepwell import codec, reader
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import CapacityError, ClosedError, ConflictError, ForkedError, StepwellError
from stepwell.events import StepCommitted
from stepwell.fold import EMPTY, State
from stepwell.observing import Observer, Span, tell
from stepwell.patch import references
from stepwell.storage import Committed, Operation, Seal, Storage
from stepwell.storage.segments import pack
from stepwell.writer import Ticket

_log: Final = logging.getLogger("stepwell")

SEAL_AFTER_EVENTS: Final = 128
SEAL_AFTER_BYTES: Final = 1 << 19
SEALED_ITEMS: Final = 4  # times as many changes of items: they are small, and all stand in one thread
_PAGE_EVENTS: Final = 8
_PAUSE_SECONDS: Final = 0.0005
_LOOK_AGAIN_SECONDS: Final = 0.05
FEWEST_FOLDED_STEPS: Final = 32
SHARE: Final = 8
_MOST_CARRIED: Final = 8  # threads
_LEAST_GIVEN_BACK_BYTES: Final = 1 << 20


class Folding:
    """Seals the threads of one log as they grow.

    Attributes:
        observer: Told of each sealing; None if nobody wants to know.
    """

    def __init__(
        self,
        storage: Storage,
        read: reader.Reader,
        submit: Callable[[Operation], Ticket],
        after_events: int = SEAL_AFTER_EVENTS,
        after_bytes: int = SEAL_AFTER_BYTES,
    ) -> None:
        self.observer: Observer | None = None
        self._storage = storage
        self._reader = read
        self._submit = submit
        self._after_events = after_events
        self._after_bytes = after_bytes
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._waiting: set[str] = set()
        self._failed: dict[str, int] = {}  # sequences to wait for before another attempt
        self._has_no_room = False
        self._has_ended = False
        self._lock = threading.Lock()  # of the writer's thread and of the folding one; no other may wait for them
        self._sealing = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ends: OrderedDict[str, _Ends] = OrderedDict()
        self._pid = os.getpid()

    def notice(self, thread_id: str, committed: Committed) -> None:
        """Told of each append; starts a sealing if the thread has grown enough."""
        if not self._is_full(thread_id, committed.loose_events, committed.loose_bytes):
            return
        if max(committed.sequences, default=0) < self._failed.get(thread_id, 0):
            return
        with self._lock:
            if self._closed or thread_id in self._waiting:
                return
            self._waiting.add(thread_id)
            self._queue.put(thread_id)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="stepwell-folding", daemon=True)
                thread.start()
                self._thread = thread

    def close(self) -> None:
        """Wait for the sealing that is under way, and begin no other."""
        self.abandon()
        if self._thread is not None and self._pid == os.getpid():
            while not self._has_ended:  # a join without end could wait for one that this call interrupted
                self._thread.join(_LOOK_AGAIN_SECONDS)

    def abandon(self) -> None:
        """Begin no other sealing, and end the thread without waiting for it."""
        if self._pid != os.getpid():
            return  # in a forked child there is no such thread, and the lock may be held for ever
        self._closed = True
        self._queue.put(None)

    @property
    def is_here(self) -> bool:
        """Whether the folding thread is the one that asks."""
        return self._thread is threading.current_thread()

    def _run(self) -> None:
        try:
            self._seal_what_is_full()
        finally:
            self._has_ended = True

    def _seal_what_is_full(self) -> None:
        while (thread_id := self._queue.get()) is not None:
            with self._lock:
                self._waiting.discard(thread_id)
            # Whoever has its turn may be closing the log, in a signal handler, and wait for this thread.
            while not self._sealing.acquire(timeout=_LOOK_AGAIN_SECONDS):
                if self._closed:
                    return
            try:
                if self._closed:
                    return
                self.seal(thread_id, only_full=True)
                self._failed.pop(thread_id, None)
                self._has_no_room = False
                self._storage.give_back(_LEAST_GIVEN_BACK_BYTES, in_background=True)
            except (ConflictError, ClosedError):
                continue  # the thread was pruned or deleted, or the log closed: nothing is left to do
            except CapacityError as error:
                # Where there is no room for one there is none for the next: it is told once, until there is some.
                if not self._has_no_room:
                    _log.warning("The events of thread %r could not be sealed yet: %s", thread_id, error)
                self._has_no_room = True
                self._put_off(thread_id)
            except Exception:
                _log.warning("The events of thread %r could not be sealed", thread_id, exc_info=True)
                self._put_off(thread_id)
            finally:
                self._sealing.release()

    def _put_off(self, thread_id: str) -> None:
        """What was appended is safe without it; another attempt is made when there is more to seal."""
        with suppress(StepwellError):
            row = self._storage.thread(thread_id)
            self._failed[thread_id] = 0 if row is None else row.last + self._after_events

    def seal(self, thread_id: str, *, only_full: bool = False) -> int:
        """Put the loose events of a thread into segments; returns how many.

        Args:
            thread_id: The thread.
            only_full: Leave events loose that do not make a whole segment yet, and take pauses, so that those who
                append meanwhile are not held up.
        """
        sealed = 0
        while True:
            began = time.time_ns()
            with self.turn:
                run = self._plan(thread_id, only_full)
                # failpoint: seal-read
                if run is None:
                    return sealed  # nothing is left
                operation = run.operation()
                if not self._submit(operation).result().number:
                    return sealed  # somebody else was faster
                # failpoint: seal-committed
                self._carry(thread_id, run.ends())
            sealed += len(run.records)
            if (observer := self.observer) is not None:
                plain_bytes = sum(record.size for record in run.records)
                span = Span(began, time.time_ns())
                tell(observer.sealed, thread_id, len(run.records), plain_bytes, len(operation.segment), span)
            if only_full and self._closed:
                return sealed  # others may append for ever, and who closes waits

    def _carry(self, thread_id: str, ends: _Ends) -> None:
        """Remember where the lanes of a thread stand, so that its next sealing need not read it."""
        self._ends[thread_id] = ends
        while len(self._ends) > _MOST_CARRIED:
            self._ends.popitem(last=False)

    @property
    def turn(self) -> AbstractContextManager[bool]:
        """Nothing is sealed by others of this log within it.

        Raises:
            ForkedError: In a forked child, where whoever had its turn will never end it.
        """
        if self._pid != os.getpid():
            raise ForkedError.of(self._storage.path, self._pid)
        return self._sealing

    def _plan(self, thread_id: str, only_full: bool) -> _Run | None:
        """A thread's oldest loose events, as many as make a segment."""
        row = self._storage.thread(thread_id)
        if row is None:
            return None
        first = max(row.sealed, row.first - 1) + 1
        if first > row.last or (only_full and not self._is_full(thread_id, row.last - first + 1, row.loose_bytes)):
            return None
        ends = self._ends.pop(thread_id, None)
        run = _Run(self._storage, self._reader, thread_id, row.number, ends)
        size = 0
        stop = min(row.last, first + self._most_events(thread_id) - 1) + 1
        for record in self._records(row.number, first, stop, politely=only_full):
            run.add(record)
            size += record.size
            if size >= self._after_bytes:
                break
        return run if run.records else None

    def _records(self, thread: int, first: int, stop: int, *, politely: bool) -> Iterator[Record]:
        """The loose records from one up to another, which is excluded."""
        while first < stop:
            page = self._storage.scan(thread, first - 1, stop, _PAGE_EVENTS, reverse=False)
            if not page:
                return
            yield from page
            first = page[-1].sequence + 1
            if politely:
                # Python runs one thread at a time, and gives up its turn after 5 ms if it is not asleep.
                time.sleep(_PAUSE_SECONDS)

    def _is_full(self, thread_id: str, events: int, size: int) -> bool:
        return events >= self._most_events(thread_id) or size >= self._after_bytes

    def _most_events(self, thread_id: str) -> int:
        """How many events a segment has."""
        return self._after_events * (SEALED_ITEMS if thread_id == fmt.ITEMS_THREAD_ID else 1)


class _Ends(NamedTuple):
    """Where lanes of a thread stood after its last segment.

    Attributes:
        thread: Number of the thread.
        states: By lane, the state after its newest step.
        depths: By lane, steps from there down to the nearest state that is kept.
    """

    thread: int
    states: dict[int, State]
    depths: dict[int, int]


class _Run:
    """Consecutive events on their way into a segment, folded as they come.

    Attributes:
        records: The records so far.

    Args:
        storage: Where the log is kept.
        read: Reads the states that lanes stood at before, unless they are known.
        thread_id: The thread.
        thread: Its number.
        before: Where some lanes stood before.
    """

    def __init__(
        self, storage: Storage, read: reader.Reader, thread_id: str, thread: int, before: _Ends | None
    ) -> None:
        self.records: list[Record] = []
        self._storage = storage
        self._reader = read
        self._thread_id = thread_id
        self._thread = thread
        self._before = before if before is not None and before.thread == thread else _Ends(thread, {}, {})
        self._states: dict[int, State] = {}  # by lane: the state after its newest step in the run
        self._depths: dict[int, int] = {}  # by lane: steps from there down to the nearest state that is kept

    def add(self, record: Record) -> None:
        """Take the next record."""
        self.records.append(record)
        if record.header.kind == fmt.KIND_STEP and not record.header.flags & fmt.FLAG_HIDDEN:
            lane, base = record.header.lane, record.header.base
            state = self._at(lane, base)
            event = codec.decode(self._thread, record)
            assert isinstance(event, StepCommitted)
            self._states[lane] = reader.folded(state, event, self._thread, record.sequence)
            self._depths[lane] += 1

    def _at(self, lane: int, base: int) -> State:
        """The state that a step of a lane is based on; its depth is noted."""
        state = self._states.get(lane)
        if state is not None and state.sequence == base:
            return state
        state = self._before.states.get(lane)
        if state is not None and state.sequence == base:
            self._depths[lane] = self._before.depths[lane]
            return state
        self._depths[lane] = len(self._storage.branches(self._thread, [base], frozenset()).records)
        return self._reader.state(self._thread, base) if base else EMPTY

    def operation(self) -> Seal:
        """The sealing of the records."""
        group = self._storage.last_group(self._thread)
        segment, _ = pack(self._thread, self.records, self._kept(), group)
        first, last = self.records[0].sequence, self.records[-1].sequence
        return Seal(self._thread_id, self._thread, first, last, segment)

    def ends(self) -> _Ends:
        """Where the lanes of the run stand after it."""
        depths = {lane: 0 if self._is_worth_keeping(lane) else depth for lane, depth in self._depths.items()}
        return _Ends(self._thread, self._states, depths)

    def _kept(self) -> dict[int, bytes]:
        """The states of lanes that are worth keeping, by sequence."""
        states = (state for lane, state in self._states.items() if self._is_worth_keeping(lane))
        return {state.sequence: codec.encode_base(state) for state in states}

    def _is_worth_keeping(self, lane: int) -> bool:
        return self._depths[lane] >= max(FEWEST_FOLDED_STEPS, _pieces(self._states[lane]) / SHARE)


def _pieces(state: State) -> int:
    values = (*state.channels.values(), *state.fields.values())
    return sum(1 for value in values for _ in references(value))
