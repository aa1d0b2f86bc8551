"""Log and Thread: the public face of the engine; joins the writer, the reader and the storage."""

from __future__ import annotations

import atexit
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Several
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from stepwell import audit as auditing
from stepwell import blaming, branching, difference, forking, naming, pruning, reader, repairing, replaying, searching
from stepwell import format as fmt
from stepwell.cache import CACHE_BYTES, Cache
from stepwell.clock import now
from stepwell.content import ContentMemory, Encoding, Place, newest_contents
from stepwell.errors import ConflictError, ReadOnlyError, StepwellError, UsageError
from stepwell.events import (
    Commit,
    Event,
    Label,
    Sequence,
    Status,
    StepCommitted,
    WritesRecorded,
    status_number,
    status_of,
)
from stepwell.fold import PendingWrite
from stepwell.folding import SEAL_AFTER_BYTES, SEAL_AFTER_EVENTS, Folding
from stepwell.following import Appends, FeedEntry, Following, ThreadEvents, Watch, is_deletion
from stepwell.history import History, LaneSummary, Link, Step, TaskWrites, View
from stepwell.items import Items
from stepwell.labels import check_labels
from stepwell.measuring import Measurement, measure
from stepwell.observing import Observer
from stepwell.patch import Merge, Value, diff_entries, parse
from stepwell.paths import Path
from stepwell.pruning import Kept
from stepwell.repairing import RepairReport
from stepwell.salvage import Progress
from stepwell.statistics import LogStats, collect
from stepwell.storage import Append, Compaction, Copy, Delete, Entry, Found, Query, Rewrite, Seal, Storage, ThreadRow
from stepwell.storage.lmdb import LmdbStorage, new_log
from stepwell.storage.lmdb import compact as compact_file
from stepwell.storage.memory import MemoryStorage
from stepwell.storage.remains import Remains
from stepwell.writer import Ticket, Writer, finish_all

_END: Final = 1 << 62
_PAGE_ROWS: Final = 256
_LEAST_GIVEN_BACK_BYTES: Final = 1 << 16  # less is not worth what making holes costs, now and when they are filled
_HOPEFUL_ATTEMPTS: Final = 3  # at rewriting a thread without making others wait

IN_MEMORY: Final = ":memory:"


def _untold(what: str, done: int, total: int) -> None:
    """No progress is told to nobody."""


class Snapshot(NamedTuple):
    """What one lane holds after one of its steps, as bytes.

    Attributes:
        sequence: The step's position in its thread.
        step_id: Name of the step.
        parent_id: Name of the step that it follows.
        lane: The lane's name.
        created_at: Unix time in nanoseconds at which the step was committed.
        channels: Type and payload of each channel that has a value.
        fields: Type and payload of what the adapter keeps about the step beside its channels.
        values: The channels as values with their content as bytes, which `changes` compares with.
    """

    sequence: Sequence
    step_id: str
    parent_id: str | None
    lane: str
    created_at: int
    channels: dict[str, tuple[str, bytes]]
    fields: dict[str, tuple[str, bytes]]
    values: dict[str, Value]


class ThreadSummary(NamedTuple):
    """What the catalogue knows of a thread.

    Attributes:
        thread_id: The thread.
        events: Number of its events.
        steps: Number of its steps that lists show.
        writes: Number of its events that record writes.
        lanes: Number of its lanes.
        stored_bytes: Bytes of its records.
        created_at: Unix time in nanoseconds of its first event.
        updated_at: Unix time in nanoseconds of its newest event.
        status: What it has come to, as those who append to it say; None if nobody has.
        labels: Its labels.
        cursor: Where it stands among all threads, for the page behind it (`before`); the commit of its newest append.
    """

    thread_id: str
    events: int
    steps: int
    writes: int
    lanes: int
    stored_bytes: int
    created_at: int
    updated_at: int
    status: Status | None
    labels: dict[str, Label]
    cursor: int


class Log:
    """An append-only log of threads in one file.

    Thread-safe.  Several logs on one file in one process share what they can; several processes may have
    the file open, and each sees what the others have committed as soon as it is committed.

    >>> log = Log.open(":memory:")
    >>> thread = log.thread("demo")
    >>> step = StepCommitted("s1", None, changes({"notes": ("text", b"hello")}), changes({}))
    >>> thread.append([step])
    3
    >>> thread.state().channels
    {'notes': ('text', b'hello')}
    >>> log.close()
    """

    def __init__(
        self,
        storage: Storage,
        *,
        seal_after_events: int = SEAL_AFTER_EVENTS,
        seal_after_bytes: int = SEAL_AFTER_BYTES,
        cache: Cache | None = None,
    ) -> None:
        self.storage = storage
        self.cache = cache or Cache()
        self.reader = reader.Reader(storage, self.cache)
        self.content = ContentMemory(partial(newest_contents, storage, self.reader), self.cache)
        self._writer = Writer(storage)
        self._folding = Folding(storage, self.reader, self._writer.submit, seal_after_events, seal_after_bytes)
        self._writer.notice = self._folding.notice
        self._watch = Watch(storage.moment)
        self._writer.ring = self._watch.ring
        _open_logs.add(self)
        # A log that is dropped without being closed gives everything back all the same.
        self._dropped = weakref.finalize(self, _abandon, self._watch, self._folding, self._writer, storage)
        self._dropped.atexit = False  # the interpreter's end waits for what was submitted, see below

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        verify: bool | int | None = None,
        network_file_system: bool = False,
        seal_after_events: int = SEAL_AFTER_EVENTS,
        seal_after_bytes: int = SEAL_AFTER_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> Self:
        """Open a log, or create it.

        Args:
            path: The file; ":memory:" is a log of its own that is gone when it is closed.
            read_only: Refuse every change, and do not create the file.
            verify: Whether to make sure of every page of the file before it is used (about 2 s for a gigabyte).  None
                does so if nobody had the file open on this machine, and otherwise looks at 64 MiB of pages at most;
                False trusts the file.  A number is how many bytes to look at, of a file that somebody had open.
            network_file_system: Open the log even where other machines may see it.  Whoever has it open on two of
                them at once destroys it.
            seal_after_events: A thread with so many loose events is sealed, in the background; that of items with four
                times as many.
            seal_after_bytes: So is one whose loose records have so many bytes.
            cache_bytes: Memory for what was written and read lately, in bytes: what is in it need not be read,
                decoded or encoded again.  It serves all threads of the log; what was used longest ago is forgotten.

        Raises:
            UsageError: The directory, or with `read_only` the file, does not exist; or the file lies where
                processes could miss each other: on a network file system, under two names (hard links), mounted
                as a single file, or read-only where others can write it.
            NotALogError: There is something else at `path`; it is left as it is.
            NewerFormatError: A newer version of the library wrote it.
            CorruptionError: It is damaged where the storage engine could not bear it.
        """
        path = _checked_path(path)
        if not isinstance(cache_bytes, int) or cache_bytes < 0:
            raise UsageError(f"cache_bytes is a whole number from 0, not {cache_bytes!r}")
        cache = Cache(cache_bytes)
        if path == IN_MEMORY:
            if read_only:
                raise UsageError("a log in memory is new and empty: there is nothing to read in it")
            storage: Storage = MemoryStorage(cache=cache)
            return cls(storage, seal_after_events=seal_after_events, seal_after_bytes=seal_after_bytes, cache=cache)
        storage = LmdbStorage(
            path, read_only=read_only, verify=verify, network_file_system=network_file_system, cache=cache
        )
        return cls(storage, seal_after_events=seal_after_events, seal_after_bytes=seal_after_bytes, cache=cache)

    @property
    def path(self) -> str:
        """Where the log lies."""
        return self.storage.path

    def thread(self, thread_id: str) -> Thread:
        """A handle on a thread, which need not exist yet: its first append opens it."""
        return Thread(self, thread_id)

    @property
    def items(self) -> Items:
        """What is remembered across threads."""
        return Items(self.storage, self.content, self.submit)

    def threads(
        self,
        *,
        prefix: str = "",
        status: str | Iterable[str] | None = None,
        labels: Mapping[str, Label | None] | None = None,
        updated_since: int = 0,
        updated_before: int = _END,
        newest_first: bool = True,
        limit: int | None = None,
        before: int | None = None,
    ) -> Iterator[ThreadSummary]:
        """Threads in the order of their newest appends, without touching a state.

        What a page costs does not grow with the number of threads (SPEC, section 9).  Nothing is held between two
        threads, so an iterator may be paused; it shows each thread once at most, and none that was appended to after
        it began and before it came to it.

        Args:
            prefix: What their ids begin with.
            status: What they have come to, or several of these: "running", "interrupted", "failed", "done".
            labels: Labels that they have, with these values; None stands for none of that name.
            updated_since: Unix time in nanoseconds: only threads whose newest event is not older.
            updated_before: Only threads whose newest event is older.
            newest_first: Whether the thread that was appended to last comes first; else it comes last.
            limit: At most so many.
            before: The `cursor` of a summary: only threads that come behind it in this order.

        Raises:
            UsageError: An argument is not of its kind.
        """
        query = _query(prefix, status, labels, updated_since, updated_before, newest_first, before)
        return self._threads(query, limit)

    def _threads(self, query: Query, limit: int | None) -> Iterator[ThreadSummary]:
        newest = None if query.newest_first else self._newest_commit()
        while limit is None or limit > 0:
            size = _PAGE_ROWS if limit is None else min(limit, _PAGE_ROWS)
            page = self.storage.catalogue(query._replace(limit=size))
            for thread_id, row in page:
                if newest is not None and row.commit > newest:
                    return  # it was appended to meanwhile, and may have been shown
                yield _summary(thread_id, row)
            if len(page) < size:
                return
            query = query._replace(edge=page[-1][1].commit)
            limit = None if limit is None else limit - size

    def _newest_commit(self) -> int:
        return next((row.commit for _, row in self.storage.catalogue(Query(1))), 0)

    def all_threads(self) -> Iterator[str]:
        """The ids of all threads, in the order in which they were opened: each once, whatever happens meanwhile."""
        after = 0
        while True:
            page = self.storage.threads(after, _PAGE_ROWS)
            yield from (thread_id for thread_id, _ in page if not thread_id.startswith(fmt.OWN_THREADS))
            if len(page) < _PAGE_ROWS:
                return
            after = page[-1][1].number

    def feed(self, *, after: int = 0) -> Iterator[FeedEntry]:
        """Every append after a commit number, over all threads, in commit order, up to now.

        Appends whose events were pruned or deleted are left out, and so are changes of items; a deletion shows as an
        append of its own.
        """
        appends = Appends(self.storage, _PAGE_ROWS)
        while page := appends.read(after):
            yield from page
            after = page[-1].commit

    def follow(self, *, after: int | None = 0, timeout_seconds: float | None = None) -> Following[FeedEntry]:
        """Every append after a commit number, and then each as it is committed, by this process or another.

        An iterator, for `for` and for `async for`.  In commit order, each once, none left out but those that the feed
        does not have any more when it is read: `feed` says which.  What this log appends is given at once, what others
        do within 25 ms.  Nothing is held open between two of them, so a follower may be as slow as it likes.

        Args:
            after: The commit number that was seen last; 0 begins with the oldest, None with what is committed from
                now on.
            timeout_seconds: End when nothing was committed for so long; None waits for ever, 0 ends at what there is.

        Returns:
            The iterator; its `position` is the commit number to go on after, also in another process.
        """
        if after is None:
            after = self.storage.newest()
        check_sequence("commit number", after)
        return Following(self, self._watch, Appends(self.storage, _PAGE_ROWS).read, after, timeout_seconds)

    def seal(self, thread_id: str | None = None, *, progress: Progress = _untold) -> int:
        """Put all loose events of one thread, or of all, into segments now.

        Appends need not wait for it: what was appended is durable already, this only makes it smaller and
        quicker to read.  Room of the file that is free then goes back to the file system.

        Args:
            thread_id: The thread; None for all.
            progress: Called after each thread with what is being done, and how much of how much of it.

        Returns:
            How many events were sealed.
        """
        thread_ids = [*self.all_threads()] if thread_id is None else [thread_id]
        sealed = 0
        for done, name in enumerate(thread_ids):
            progress("sealing threads", done, len(thread_ids))
            sealed += self._folding.seal(Thread(self, name).id)
        if thread_id is None:
            sealed += self._folding.seal(fmt.ITEMS_THREAD_ID)
        self.storage.give_back(_LEAST_GIVEN_BACK_BYTES)
        return sealed

    def audit(self, *, progress: Progress = _untold) -> auditing.Report:
        """Check every invariant, and rebuild every derived table to compare it with what is stored.

        Args:
            progress: Called after each thread with what is being done, and how much of how much of it.
        """
        with self._folding.turn:
            return auditing.audit(self.storage, progress)

    def stats(self) -> LogStats:
        """What the log tells about itself: sizes, room, readers, and what this process wrote and how long it took.

        It takes well under a millisecond, whatever the size of the log; `measure` looks at what is stored.

        Raises:
            UsageError: The file was renamed, replaced or removed.
        """
        return collect(self.storage, self.cache, self._writer.tally)

    def measure(self, thread_id: str | None = None, *, largest: int = 10, progress: Progress = _untold) -> Measurement:
        """What the bytes of the log, or of one thread, are for: by kind, channel and thread; what compression saves.

        Reads and decodes every event (about 30 us each), page by page: the log may be in use, nothing is held open, and
        the memory that it takes is bounded.  What is committed meanwhile may be counted or not.

        Args:
            thread_id: Measure one thread; None measures all.
            largest: How many of the largest threads to name.
            progress: Called after each page with what is being done, and how much of how much of it.

        Raises:
            CorruptionError: The catalogue is damaged.  Damaged events are counted.
        """
        return measure(self.storage, thread_id, largest, progress)

    def observe(self, observer: Observer | None) -> None:
        """Tell an observer from now on what the log does; None tells nobody.

        `stepwell.telemetry.instrument` makes OpenTelemetry's spans and metrics of it.
        """
        self._writer.observer = self._folding.observer = self.reader.observer = observer

    def repair(self, into: str | os.PathLike[str], *, progress: Progress = _untold) -> RepairReport:
        """Make a new log of everything in this one that can be proven, and tell what is lost; see `repair`.

        This log is not changed, and appends to it wait meanwhile.
        """
        if not isinstance(self.storage, LmdbStorage):
            return repair(self.path, into)  # which says why it cannot
        with self._folding.turn, self.storage.standing_still():
            return repair(self.storage.key, into, progress=progress)  # its path may be relative to where it was opened

    def compact(self, into: str | os.PathLike[str]) -> Compaction:
        """Write what the log holds now into a new file that is as small as it can be.

        The log may be in use, by this process and by others: the new file shows one moment of it, and pages
        that are freed meanwhile are used again only afterwards.  It is whole and durable when this returns;
        when it raises, or is interrupted, there is none.

        Args:
            into: Path of the new file, where nothing may be.

        Returns:
            What the log takes of the disk, and what the new file takes.

        Raises:
            UsageError: There is something at the path, or no file can be put there; the log is in memory.
            DiskFullError: There is no room for it.
        """
        return self.storage.compact(_checked_path(into))

    def submit(self, operation: Append | Delete | Copy | Rewrite | Seal, places: Several[Place] = ()) -> Ticket:
        """Queue an operation behind all that were submitted before."""
        if self.storage.read_only:
            raise ReadOnlyError(f"the log {self.path!r} was opened with read_only=True; open it without to append")
        return self._writer.submit(operation, places)

    def close(self) -> None:
        """Wait for everything that was submitted and give the file back.

        Closing twice is harmless, also after a close that was interrupted, or at the same time.  Calls that other
        threads are in end well, or with ClosedError.  Called from a signal handler or a finalizer, it closes the log
        under the call that was interrupted; in one of the log's own threads it does not wait.
        """
        if self._folding.is_here or self._writer.is_here:
            _abandon(self._watch, self._folding, self._writer, self.storage)
            return
        self.storage.begin_closing(lambda: self._folding.is_here or self._writer.is_here)
        self._watch.close()
        self._folding.close()
        # failpoint: closing-folding-ended
        self._writer.close()
        # failpoint: closing-writer-ended
        if self._writer.has_run:
            with suppress(StepwellError):  # whether or not room is given back, the log is closed
                self.storage.give_back(_LEAST_GIVEN_BACK_BYTES)
        # failpoint: closing-given-back
        self.storage.close()
        self._dropped.detach()
        _open_logs.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Thread:
    """One agent history.  A handle costs nothing and holds nothing."""

    def __init__(self, log: Log, thread_id: str) -> None:
        if not isinstance(thread_id, str):
            raise UsageError(
                f"a thread id is a str, not {type(thread_id).__name__}: {thread_id!r}; pass str(...) of it"
            )
        check_text("thread id", thread_id)
        if thread_id.startswith(fmt.OWN_THREADS):
            raise UsageError(f"thread ids that begin with {fmt.OWN_THREADS!r} are the log's own; choose another one")
        self.log = log
        self.id = thread_id

    # --- writing ---

    def append(
        self,
        events: Several[Event],
        *,
        expected_head: int | None = None,
        labels: Mapping[str, Label | None] | None = None,
    ) -> Sequence:
        """Append events to the end of this thread, all or none.

        When this returns, the events survive a power cut (SPEC, G1).  When it raises, the thread is as it
        was.  The first append of a thread, and the first of a lane, put an event of their own before.

        Args:
            events: In the order they happened.  An empty list changes nothing.
            expected_head: The last sequence that the thread must have (0: it must not exist); None appends
                after whatever is there.
            labels: As for `label`, in the same commit.

        Returns:
            The sequence of the last of these events; 0 if there was none.

        Raises:
            ConflictError: The thread is not at `expected_head`, or a base is not in it.
            CapacityError: There is no room.
        """
        sequences = self.begin_append(events, expected_head=expected_head, labels=labels).result().sequences
        return Sequence(sequences[-1] if sequences else 0)

    def begin_append(
        self,
        events: Several[Event],
        *,
        expected_head: int | None = None,
        incarnation: int = 0,
        may_read: bool = True,
        labels: Mapping[str, Label | None] | None = None,
        after: Several[Place] = (),
    ) -> Ticket:
        """Start an append; the ticket's `result()`, or awaiting it, ends it.

        Args:
            events: In the order they happened.
            expected_head: As for `append`.
            incarnation: The number of the thread that bases and references in the events belong to, for a
                caller who remembers them over a time in which the thread may have been deleted; 0 for any.
            may_read: Whether there is time to read what the thread holds, to look for content in it.
            labels: As for `append`.
            after: With `expected_head`: the places of an append that is under way, and is to have led to that head.
                If it was refused, so is this one, even where somebody else's events have led there.

        Raises:
            NotRecalled: There is not, and it has to be done: begin again when there is.
        """
        for event in events:
            _check_event(event)
        labels = dict(labels or {})
        check_labels(labels)
        begun = now()
        try:
            encoding = Encoding(self.log.content, self.id, events, begun, may_read=may_read)
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            raise UsageError(f"an event for thread {self.id!r} holds what cannot be stored: {error}") from error
        entries = encoding.entries if not after else partial(self._entries_after, after, expected_head, encoding)
        # failpoint: append-encoded
        operation = Append(
            self.id,
            entries,
            expected_head,
            incarnation,
            placed=encoding.locate,
            labels=labels,
            created_at=begun,
            stored_bytes=lambda: encoding.stored_bytes,
        )
        return self.log.submit(operation, encoding.places)

    def _entries_after(
        self, after: Several[Place], expected_head: int | None, encoding: Encoding, number: int, first: int
    ) -> Several[Entry]:
        if after[-1].sequence != expected_head:
            raise ConflictError(
                f"the append to thread {self.id!r} that this one follows was refused; read the thread again",
                thread=self.id,
                expected=expected_head,
                actual=None,
            )
        return encoding.entries(number, first)

    def label(self, labels: Mapping[str, Label | None]) -> None:
        """Give the thread labels that lists find it by; a thread that does not exist is opened.

        Durable when it returns.  Labels that are not named stay as they are; what changes nothing writes nothing.

        Args:
            labels: By name; None takes a label away.

        Raises:
            UsageError: One is no text, finite number or bool, or is larger than 256 bytes, or there are more than 32.
            CapacityError: There is no room.
        """
        self.append([], labels=labels)

    def delete(self) -> None:
        """Remove the thread and everything that it holds; its id is free again.

        Durable when it returns.  A thread that does not exist is no error.
        """
        self.log.submit(Delete(self.id, now())).result()

    def copy_to(self, target_id: str) -> None:
        """Copy the whole thread to a new id: O(events), atomic, nothing is decoded.

        A thread that does not exist is no error, and makes none.

        Raises:
            ConflictError: There is a thread with that id.
        """
        self.log.submit(Copy(self.id, Thread(self.log, target_id).id, now())).result()

    def prune(self, keep: Iterable[int], *, retain: Mapping[int, frozenset[str]] | None = None) -> None:
        """Rewrite the thread so that only some steps are left, with the writes that wait for them.

        Atomic and durable when it returns.  What is kept reads as before; sequences are new.

        Args:
            keep: Sequences of the steps to keep.
            retain: Sequences of steps to keep hidden, each with the channels whose values and writes are
                kept for what descends from it.

        Raises:
            UsageError: A sequence is not one of a step.
        """
        kept = Kept(frozenset(keep), retain or {})
        self.rewrite(lambda row: kept)

    def rewrite(self, choose: Callable[[ThreadRow], Kept | None]) -> None:
        """`prune` to what a function chooses from the thread as it is; nothing chosen deletes the thread.

        The function may be called several times: while others append, the choice is made again, and in the
        end while they wait.

        Args:
            choose: Given the thread's row, what to keep; None leaves the thread as it is.
        """

        def decide(row: ThreadRow) -> Append | Delete | None:
            kept = choose(row)
            if kept is None:
                return None
            if not kept.steps:
                return Delete(self.id, now())
            return pruning.plan(self.log.storage, self.id, row, kept)

        for _ in range(_HOPEFUL_ATTEMPTS):
            with suppress(ConflictError):
                row = self.row()
                operation = None if row is None else decide(row)
                if operation is None:
                    return
                if isinstance(operation, Delete):
                    break  # an append that came meanwhile must not be deleted with the rest
                # failpoint: prune-planned
                self.log.submit(operation).result()
                return
        self.log.submit(Rewrite(self.id, decide)).result()

    # --- reading ---

    def row(self) -> ThreadRow | None:
        """The catalogue's row; None if the thread does not exist."""
        return self.log.storage.thread(self.id)

    def summary(self) -> ThreadSummary | None:
        """What the catalogue knows of the thread; None if it does not exist."""
        row = self.row()
        return None if row is None else _summary(self.id, row)

    def state(self, at: int | str | None = None, *, lane: str = "") -> Snapshot | None:
        """What a lane holds after one of its steps.

        Args:
            at: A sequence, a step id, or None for the head.
            lane: The lane; a sequence brings its own.

        Returns:
            The state; None if there is no such step.

        Raises:
            CorruptionError: An event that the state depends on is damaged.
        """
        row = self.row()
        sequence = None if row is None else self._locate(row, at, lane)
        if row is None or sequence is None:
            return None
        if isinstance(at, int):
            lane = self._lane_of(row, sequence)
        state = self.log.reader.state(row.number, sequence)
        payloads = reader.Payloads(self.log.storage, row.number)
        return Snapshot(
            state.sequence,
            state.step_id,
            state.parent_id,
            lane,
            state.created_at,
            reader.typed(state.channels, payloads),
            reader.typed(state.fields, payloads),
            {name: reader.resolved_value(value, payloads.read) for name, value in state.channels.items()},
        )

    def commit_of(self, at: int | str | None = None, *, lane: str = "") -> Commit | None:
        """The commit of a step, which names its moment in the whole log; arguments as for `state`."""
        row = self.row()
        sequence = None if row is None else self._locate(row, at, lane)
        if row is None or sequence is None:
            return None
        record = self.log.storage.read(row.number, [sequence]).get(sequence)
        if record is None:
            raise reader.missing(self.log.storage, row.number, sequence)
        return Commit(record.header.commit)

    def _lane_of(self, row: ThreadRow, sequence: int) -> str:
        record = self.log.storage.read(row.number, [sequence]).get(sequence)
        if record is None:
            raise reader.missing(self.log.storage, row.number, sequence)
        number = record.header.lane
        return self.log.storage.lane_names(row.number, {number}, sequence).get(number, "")

    def _locate(self, row: ThreadRow, at: int | str | None, lane: str) -> int | None:
        storage = self.log.storage
        if isinstance(at, int):
            check_sequence("sequence", at)
            record = storage.read(row.number, [at]).get(at)
            if record is None and row.first <= at <= row.last:
                raise reader.missing(storage, row.number, at)
            return at if record is not None and record.header.kind == fmt.KIND_STEP else None
        check_text("lane", lane)
        found = storage.lane(row.number, lane)
        if found is None:
            return None
        if at is None:
            return found[1].head or None
        check_text("step id", at)
        step = self._found(row, found[0], at)
        return step.step if step.step and not step.hidden else None

    def _found(self, row: ThreadRow, lane: int, step_id: str) -> Found:
        """Where the events of a step id stand, in a lane that was there before."""
        (found,) = self.log.storage.find(row.number, lane, [fmt.id_key(step_id)])
        self._check_unpruned(row)
        return found

    def _check_unpruned(self, row: ThreadRow) -> None:
        """Raise ConflictError if lanes may have other numbers than when the thread's row was read."""
        self.log.storage.lane_names(row.number, set(), row.first)

    def events(self, *, after: int = 0, reverse: bool = False) -> Iterator[tuple[Sequence, Event]]:
        """All events with a sequence above `after`, in order or newest first, with their content as bytes.

        Raises:
            ConflictError: The thread was pruned or deleted while a page of it was read.
        """
        row = self.row()
        if row is None:
            return
        payloads = reader.Payloads(self.log.storage, row.number)
        for sequence, event in reader.events(self.log.storage, row.number, after, _END, reverse=reverse):
            yield sequence, reader.resolved(event, payloads.read)

    def follow(
        self, *, after: int | None = 0, timeout_seconds: float | None = None
    ) -> Following[tuple[Sequence, Event]]:
        """All events with a sequence above `after`, and then each as it is committed, by this process or another.

        An iterator, for `for` and for `async for`, as of `Log.follow`.  A thread that does not exist yet is waited for.
        If it is pruned, what was not given by then is gone: a `ThreadPruned` comes, which says up to which sequence,
        then what was kept, at its new sequences.  If it is deleted, a `ThreadDeleted` is the last that comes, and the
        iterator ends; a thread that is opened anew with this id is another one.

        Args:
            after: The sequence that was seen last; 0 begins with the oldest, None with what is committed from now on.
            timeout_seconds: End when nothing was committed to the thread for so long; None waits for ever, 0 ends at
                what there is.

        Raises:
            ConflictError: The thread has not come to that sequence: the one that was read was deleted.
        """
        if after is not None:
            check_sequence("sequence", after)
        events = ThreadEvents(self.log.storage, self.id, after)
        return Following(self.log, self.log._watch, events.read, events.after, timeout_seconds, is_deletion)

    def steps(self, *, lane: str | None = None) -> Iterator[Step]:
        """The steps of one lane, or of all, newest first; a step that was committed again stands once.

        Raises:
            ConflictError: The thread was pruned or deleted while a page of them was read.
        """
        check_text("lane", lane or "")
        storage = self.log.storage
        row = self.row()
        found = None if row is None or lane is None else storage.lane(row.number, lane)
        if row is None or (lane is not None and found is None):
            return
        before = 0
        while True:
            page = storage.steps(row.number, found[0] if found else None, before, _PAGE_ROWS)
            if found:
                self._check_unpruned(row)
            if not page:
                return
            for sequence, event in reader.decoded(storage, row.number, page):
                assert isinstance(event, StepCommitted)
                yield Step(sequence, event.step_id, event.parent_id, event.lane, event.created_at)
            before = page[-1].sequence

    def forks(self, *, lane: str = "") -> Iterator[tuple[str, list[Step]]]:
        """Every step of a lane that more than one step follows, oldest first: its id and what follows it."""
        followers: dict[str, list[Step]] = {}
        for step in self.steps(lane=lane):
            if step.parent_id is not None:
                followers.setdefault(step.parent_id, []).insert(0, step)
        for parent_id, steps in sorted(followers.items(), key=lambda item: item[1][0].sequence):
            if len(steps) > 1:
                yield parent_id, steps

    def writes(self, step_id: str, *, lane: str = "") -> list[PendingWrite]:
        """The writes that wait for the step after `step_id`, in the order in which it takes them over."""
        check_text("step id", step_id)
        check_text("lane", lane)
        storage = self.log.storage
        row = self.row()
        found = None if row is None else storage.lane(row.number, lane)
        if row is None or found is None:
            return []
        sequences = self._found(row, found[0], step_id).writes
        payloads = reader.Payloads(storage, row.number)
        return [
            PendingWrite(
                pending.task_path,
                pending.task_id,
                reader.resolved_write(pending.write, payloads.read),
            )
            for pending in reader.writes(storage, row.number, sequences, lane)
        ]

    # --- understanding: everything as data, without the application ---

    def resolve(self, at: int | str | None = None, *, lane: str = "") -> Step:
        """The step that is meant.

        Args:
            at: A sequence (as int, or as text: "#231"), a step's number as LangGraph counts ("17", "-1"; where forks
                have several, the one on the head's branch), a step id or the beginning or end of one; with "~3", three
                steps before along the branch.  None is the head.
            lane: The lane; a sequence brings its own.

        Raises:
            UsageError: There is no such step, or more than one.
        """
        return naming.resolve(self._history(), at, lane).step

    def lanes(self) -> Iterator[LaneSummary]:
        """The lanes of the thread, in the order in which they were opened."""
        history = self._history()
        for _, name, row in history.lanes():
            yield LaneSummary(name, row.steps, history.link(row.head).step if row.head else None)

    def view(self, at: int | str | None = None, *, lane: str = "") -> View:
        """What a lane holds after one of its steps, as data; each channel is decoded when it is asked for.

        Args:
            at: The step, see `resolve`.
            lane: The lane.

        Raises:
            UsageError: There is no such step.
        """
        history = self._history()
        return history.view(naming.resolve(history, at, lane).sequence)

    def pending(self, at: int | str | None = None, *, lane: str = "") -> list[TaskWrites]:
        """What was written on a step, by task: the step after it takes it over.  Arguments and errors as `view`."""
        history, number, link = self._named(at, lane)
        (found,) = history.found(number, [link.event.step_id])
        return history.writes(found.writes, history.states.state(history.number, link.sequence))

    def replay(
        self, lane: str = "", since: int | str | None = None, until: int | str | None = None
    ) -> Iterator[replaying.Replayed]:
        """The steps of a branch, oldest first, each with what it changed, what was written for it, and its state.

        Any number of steps takes the memory of one state and a few words for each.

        Args:
            lane: The lane.
            since: Begin after this step, see `resolve`; None begins with the first.
            until: End with this step; None ends with the head.

        Raises:
            UsageError: There is no such step, or `since` is not on the branch that ends with `until`.
        """
        history, number, link = self._named(until, lane)
        start = None if since is None else int(naming.resolve(history, since, lane).sequence)
        return replaying.replay(history, number, link, start)

    def diff(
        self, a: int | str | None, b: int | str | None = None, *, lane: str = "", other: Thread | None = None
    ) -> list[difference.Difference]:
        """What differs between two states: messages by their id, maps by their keys, everything as data.

        Args:
            a: The one step, see `resolve`.
            b: The other; they may be on different branches.
            lane: The lane of both; a sequence brings its own.
            other: The thread that `b` is of, if it is another.

        Raises:
            UsageError: There is no such step.
        """
        (history, _, one), (history_b, _, another) = self._named(a, lane), (other or self)._named(b, lane)
        return difference.compare(
            difference.Side(history.states.state(history.number, one.sequence), history.payloads),
            difference.Side(history_b.states.state(history_b.number, another.sequence), history_b.payloads),
        )

    def first_divergence(
        self, a: int | str | None, b: int | str | None = None, *, lane: str = "", other: Thread | None = None
    ) -> branching.Divergence:
        """Where the branches that end with two steps part.  Arguments and errors as `diff`.

        Of two threads without a step id in common, the branches are compared state by state.
        """
        (history, _, one), (history_b, _, another) = self._named(a, lane), (other or self)._named(b, lane)
        return branching.first_divergence((history, one), (history_b, another))

    def watch(self, path: str | Path, *, at: int | str | None = None, lane: str = "") -> Iterator[blaming.Change]:
        """Every change of what stands at a path, newest first, from one step on backwards.

        Args:
            path: Such as `messages[12].content`, `messages[id=abc]`, `plan["step 3"]`; see `stepwell.paths`.
            at: The step to begin with, see `resolve`.
            lane: The lane.

        Raises:
            UsageError: There is no such step, or the path is none.
        """
        history, number, link = self._named(at, lane)
        return blaming.watch(history, number, link, Path.parse(path))

    def blame(self, path: str | Path, *, at: int | str | None = None, lane: str = "") -> blaming.Change:
        """The step, node and task that put there what stands at a path.  Arguments as `watch`.

        Raises:
            UsageError: There is no such step, or nothing stands at the path.
        """
        history, number, link = self._named(at, lane)
        return blaming.blame(history, number, link, Path.parse(path))

    def grep(
        self, pattern: str | re.Pattern[str], *, regex: bool = False, ignore_case: bool = False, lane: str | None = None
    ) -> Iterator[searching.Hit]:
        """Where a text stands in anything that the thread holds, oldest first.

        What steps repeat is searched once.  Pickles are not looked into, nor the fields beside the channels.

        Args:
            pattern: The text, or a compiled regular expression.
            regex: Whether the text is a regular expression.
            ignore_case: Whether upper and lower case are the same.
            lane: One lane; None for all.

        Raises:
            UsageError: The regular expression is none, or there is no such lane.
        """
        history = self._history()
        if lane is not None:
            history.lane(lane)
        return searching.grep(history, pattern, regex=regex, ignore_case=ignore_case).hits(lane)

    def tree(self, *, lane: str | None = None) -> branching.Tree:
        """All steps with their forks, of one lane or of all; `str` of it is a drawing.

        Raises:
            UsageError: There is no such lane.
        """
        return branching.tree(self._history(), lane)

    def fork(
        self,
        at: int | str | None = None,
        *,
        lane: str = "",
        as_: str | None = None,
        patch: Mapping[str, Any] | None = None,
    ) -> Step:
        """Begin a new branch at a step, in this thread or in a new one; it becomes the head of its lane.

        Durable when it returns; when it raises, nothing was changed.  Nothing waits for the new step: what ran on the
        old one runs anew.

        Args:
            at: The step to go on from, see `resolve`.
            lane: The lane.
            as_: Id of a new thread, which gets all that this one held when the step was committed, and the new step;
                None makes the branch here.
            patch: What is to be different: values by their paths, such as `{"messages[id=abc].content": "..."}`;
                `paths.ABSENT` takes something away.

        Returns:
            The new step.

        Raises:
            UsageError: There is no such step, or a path leads nowhere.
            ConflictError: There is a thread with the id `as_`; or this thread was pruned meanwhile.
        """
        history, number, link = self._named(at, lane)
        time = now()
        step = forking.forked(history, number, link, patch, time)
        if as_ is None:
            sequence = self.begin_append([step], incarnation=history.number).result().sequences[-1]
        else:
            target = Thread(self.log, as_)
            operation = forking.into(history, target.id, link, step, time)
            sequence = self.log.submit(operation).result().sequences[-1]
        return Step(Sequence(sequence), step.step_id, step.parent_id, step.lane, time)

    def _history(self) -> History:
        return History(self.log.storage, self.log.reader, self.id)

    def _named(self, at: int | str | None, lane: str) -> tuple[History, int, Link]:
        """The thread, the number of a step's lane, and the step."""
        check_text("lane", lane)
        history = self._history()
        link = naming.resolve(history, at, lane)
        return history, history.lane(link.event.lane)[0], link


def repair(path: str | os.PathLike[str], into: str | os.PathLike[str], *, progress: Progress = _untold) -> RepairReport:
    """Make a new log of everything in a damaged file that can be proven, and tell what is lost.

    The file need not open, and is not changed.  Whole threads stay as they were, event for event; a thread with gaps
    begins anew with the steps whose states are intact, and the writes (SPEC, section 12).  The new log appears at
    `into` when it is complete and durable, with the permissions of the damaged file; if this is interrupted, there is
    nothing.  It has a log id of its own.

    Args:
        path: The damaged file.  Nobody may write to it meanwhile.
        into: Where the new log shall lie, on a disk with room for it; there must be nothing yet.
        progress: Called now and then with what is being done, and how much of how much of it.

    Raises:
        UsageError: There is no file at `path`, or something at `into`.
        NotALogError: Nothing in the file can be proven to be of a log.
        NewerFormatError: A newer version of the library wrote it.
        ConflictError: The file was written to meanwhile.
        CapacityError: There is no room for the new log.
    """
    source, target = _checked_path(path), _checked_path(into)
    if IN_MEMORY in (source, target):
        raise UsageError("a log in memory has no file that could be repaired, or hold what was")
    if os.path.lexists(target):
        raise UsageError(f"there is something at {target!r} already; repair into a file that does not exist")
    remains = Remains(source, lambda done, total: progress("reading pages", done, total))
    with (
        remains,
        new_log(target, source) as unfinished,
        # Nobody else opens it before it has its name, wherever that is.
        Log.open(unfinished, network_file_system=True) as log,
    ):
        assert isinstance(log.storage, LmdbStorage)
        report = repairing.fill(log.storage, remains, target, progress)
        for thread in report.repaired:
            if thread.rewritten and thread.thread_id is not None:
                log._folding.seal(thread.thread_id)
        log.storage.give_back(_LEAST_GIVEN_BACK_BYTES)
    return report


def compact(path: str | os.PathLike[str]) -> Compaction:
    """Make the file of a log as small as it can be, while nobody has the log open.

    A new file is written beside it and takes its place at once: a crash at any moment leaves the old file or
    the new one, whole.  Meanwhile the disk holds both, and whoever opens the log waits for the end.

    Args:
        path: The file.

    Returns:
        What the file took of the disk, and what it takes now.

    Raises:
        UsageError: The log is open, in this process or another, or there is none; nothing was changed.
        DiskFullError: There is no room for the new file; nothing was changed.
        NotALogError: There is something else at `path`; it is left as it is.
    """
    path = _checked_path(path)
    if path == IN_MEMORY:
        raise UsageError("a log in memory has no file to compact")
    return compact_file(path)


def _checked_path(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise UsageError(f"the path of a log is a str or a path, not {type(path).__name__}: {path!r}")
    check_text("path", os.fspath(path))
    if "\0" in os.fspath(path):
        raise UsageError(f"the path {os.fspath(path)!r} holds a NUL character, which no path can")
    return os.fspath(path)


def check_text(what: str, text: str) -> None:
    """Raise UsageError unless the text can be stored."""
    if text.isascii():  # as nearly all, told in a tenth of the time
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} {text!r} holds half a surrogate pair, which no UTF-8 text can") from None


def check_sequence(what: str, number: int) -> None:
    """Raise UsageError unless the number can be a sequence, or 0."""
    if not isinstance(number, int) or not 0 <= number < _END:
        raise UsageError(f"the {what} is a whole number from 0, not {number!r}")


def _check_event(event: Event) -> None:
    """Raise UsageError unless the event is one that callers may append, with fields that can be stored."""
    if not isinstance(event, StepCommitted | WritesRecorded):
        raise UsageError(f"append takes StepCommitted and WritesRecorded, not {type(event).__name__}")
    _check_str("lane", event.lane)
    _check_str("step id", event.step_id)
    if isinstance(event, StepCommitted):
        _check_str("parent id", event.parent_id or "")
        check_sequence("base", event.base)
    else:
        _check_str("task id", event.task_id)
        _check_str("task path", event.task_path)
    check_sequence("created_at", event.created_at)
    _check_status(event.status)


def _check_str(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise UsageError(f"the {what} is a str, not {type(text).__name__}: {text!r}")
    check_text(what, text)


def _check_status(status: object) -> None:
    if status is not None and status not in tuple(Status):
        raise UsageError(f"a status is one of {', '.join(Status)}, not {status!r}")


def _query(
    prefix: str,
    status: str | Iterable[str] | None,
    labels: Mapping[str, Label | None] | None,
    since: int,
    before: int,
    newest_first: bool,
    cursor: int | None,
) -> Query:
    """What `Log.threads` asks the storage for, without a limit."""
    if not isinstance(prefix, str):
        raise UsageError(f"the prefix is a str, not {type(prefix).__name__}: {prefix!r}")
    check_text("prefix", prefix)
    statuses = None if status is None else {status} if isinstance(status, str) else {*status}
    for each in statuses or ():
        _check_status(each)
    check_labels(labels or {})
    for what, time in (("updated_since", since), ("updated_before", before)):
        if not isinstance(time, int) or not 0 <= time <= _END:
            raise UsageError(f"{what} is Unix time in nanoseconds, not {time!r}")
    edge = cursor
    if edge is None:
        edge = _END if newest_first else 0
    check_sequence("cursor", min(edge, _END - 1))
    numbers = None if statuses is None else frozenset(status_number(Status(each)) for each in statuses)
    return Query(0, prefix, numbers, dict(labels or {}), since, before, newest_first, edge)


def changes(new: Mapping[str, tuple[str, bytes]], old: Mapping[str, Value] | None = None) -> Merge:
    """The patch that turns `old` into `new`, for a StepCommitted.

    Args:
        new: Type and payload of everything that there shall be.
        old: What there is at the step that the patch is based on, with its content as bytes
            (`Snapshot.values`); None is the empty state.
    """
    parsed = {name: parse(type_, payload) for name, (type_, payload) in new.items()}
    return diff_entries(old or {}, parsed) or Merge()


def _summary(thread_id: str, row: ThreadRow) -> ThreadSummary:
    events = row.last - row.first + 1
    counts = events, row.steps, row.writes, row.lanes, row.stored_bytes
    times = row.created_at, row.updated_at
    return ThreadSummary(thread_id, *counts, *times, status_of(row.status), row.labels, row.commit)


def _abandon(watch: Watch, folding: Folding, writer: Writer, storage: Storage) -> None:
    watch.close()
    folding.abandon()
    writer.abandon(storage.close)


_open_logs: weakref.WeakSet[Log] = weakref.WeakSet()


@atexit.register
def _close_logs() -> None:
    """What was submitted is committed before the interpreter ends."""
    for log in list(_open_logs):
        with suppress(Exception):  # one log's trouble is not the others'
            log.close()
    finish_all()
