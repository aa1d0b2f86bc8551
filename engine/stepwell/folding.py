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

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Final

from stepwell import codec, reader
from stepwell import format as fmt
from stepwell.errors import ClosedError, ConflictError
from stepwell.storage import Committed, Operation, Seal, Storage
from stepwell.storage.segments import pack
from stepwell.writer import Ticket

SEAL_AFTER_EVENTS: Final = 256
SEAL_AFTER_BYTES: Final = 1 << 20
_FEWEST_FOLDED_STEPS: Final = 32
_SHARE: Final = 8


class Folding:
    """Seals the threads of one log as they grow."""

    def __init__(
        self,
        storage: Storage,
        read: reader.Reader,
        submit: Callable[[Operation], Ticket],
        after_events: int = SEAL_AFTER_EVENTS,
        after_bytes: int = SEAL_AFTER_BYTES,
    ) -> None:
        self._storage = storage
        self._reader = read
        self._submit = submit
        self._after_events = after_events
        self._after_bytes = after_bytes
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._waiting: set[str] = set()
        self._lock = threading.Lock()
        self._sealing = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._pid = os.getpid()

    def notice(self, thread_id: str, committed: Committed) -> None:
        """Told of each append; starts a sealing if the thread has grown enough."""
        if committed.loose_events < self._after_events and committed.loose_bytes < self._after_bytes:
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
            self._thread.join()

    def abandon(self) -> None:
        """Begin no other sealing, and end the thread without waiting for it."""
        if self._pid != os.getpid():
            return  # in a forked child there is no such thread, and the lock may be held for ever
        with self._lock:
            if not self._closed and self._thread is not None:
                self._queue.put(None)
            self._closed = True

    def _run(self) -> None:
        while (thread_id := self._queue.get()) is not None:
            with self._lock:
                self._waiting.discard(thread_id)
                if self._closed:
                    return
            try:
                self.seal(thread_id, only_full=True)
            except (ConflictError, ClosedError):
                continue  # the thread was pruned or deleted, or the log closed: nothing is left to do

    def seal(self, thread_id: str, *, only_full: bool = False) -> int:
        """Put the loose events of a thread into segments; returns how many.

        Args:
            thread_id: The thread.
            only_full: Leave events loose that do not make a whole segment yet.
        """
        sealed = 0
        while True:
            with self._sealing:
                operation = self._plan(thread_id, only_full)
                if operation is None or not self._submit(operation).result().number:
                    return sealed  # nothing is left, or somebody else was faster
            sealed += operation.last - operation.first + 1

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is sealed by this log while the block runs."""
        with self._sealing:
            yield

    def _plan(self, thread_id: str, only_full: bool) -> Seal | None:
        """The sealing of a thread's oldest loose events, as many as make a segment."""
        row = self._storage.thread(thread_id)
        if row is None:
            return None
        first = max(row.sealed, row.first - 1) + 1
        records: list[bytes] = []
        size = 0
        heads: dict[int, int] = {}
        for sequence, record in self._storage.scan(
            row.number, first - 1, row.last + 1, self._after_events, reverse=False
        ):
            header, body = codec.open_record(row.number, sequence, record)
            records.append(codec.plain_record(record, body))
            size += len(body)
            if header.kind == fmt.KIND_STEP and not header.flags & fmt.FLAG_HIDDEN:
                heads[header.lane] = sequence
            if size >= self._after_bytes:
                break
            # Let those who append go first: a thread that computes would hold them up for milliseconds.
            time.sleep(0)
        full = len(records) >= self._after_events or size >= self._after_bytes
        if not records or (only_full and not full):
            return None
        bases = {
            sequence: base for sequence in heads.values() if (base := self._base(row.number, sequence)) is not None
        }
        return Seal(thread_id, row.number, first, first + len(records) - 1, pack(row.number, first, records), bases)

    def _base(self, thread: int, sequence: int) -> bytes | None:
        """The state after a step, if it is worth keeping."""
        folded = len(self._storage.branches(thread, [sequence], frozenset()).records)
        if folded < _FEWEST_FOLDED_STEPS:
            return None
        state = self._reader.state(thread, sequence)
        pieces = sum(
            1 for value in (*state.channels.values(), *state.fields.values()) for _ in reader.references(value)
        )
        if folded * _SHARE < pieces:
            return None
        return codec.encode_base(thread, sequence, state)
