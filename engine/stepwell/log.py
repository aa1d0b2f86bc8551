"""Log: the public face of the engine; joins the writer, the reader and the storage."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Several
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final, Self

from stepwell import audit as auditing
from stepwell import format as fmt
from stepwell import reader, repairing
from stepwell.apart import apart
from stepwell.apart import is_here as is_apart
from stepwell.arguments import END, check_sequence, check_status, check_text, checked_path
from stepwell.cache import CACHE_BYTES, Cache
from stepwell.content import ContentMemory, Place, newest_contents
from stepwell.errors import ReadOnlyError, StepwellError, UsageError
from stepwell.events import Label, Status, status_number
from stepwell.folding import SEAL_AFTER_BYTES, SEAL_AFTER_EVENTS, Folding
from stepwell.following import Appends, FeedEntry, Following, Watch
from stepwell.items import Items
from stepwell.labels import check_labels
from stepwell.measuring import Measurement, measure
from stepwell.observing import Observer
from stepwell.repairing import RepairReport
from stepwell.salvage import Progress
from stepwell.statistics import LogStats, collect
from stepwell.storage import Append, Compaction, Copy, Delete, Query, Rewrite, Seal, Storage
from stepwell.storage.lmdb import LmdbStorage, new_log
from stepwell.storage.lmdb import compact as compact_file
from stepwell.storage.lmdb.remains import Remains
from stepwell.storage.memory import MemoryStorage
from stepwell.thread import Thread, ThreadSummary, summary_of
from stepwell.writer import Ticket, Writer, finish_all

_PAGE_ROWS: Final = 256
_LEAST_GIVEN_BACK_BYTES: Final = 1 << 16  # less is not worth what making holes costs, now and when they are filled

IN_MEMORY: Final = ":memory:"


def _untold(what: str, done: int, total: int) -> None:
    """No progress is told to nobody."""


class Log:
    """An append-only log of threads in one file.

    Thread-safe.  Several logs on one file in one process share what they can; several processes may have
    the file open, and each sees what the others have committed as soon as it is committed.

    >>> from stepwell import Log, StepCommitted, changes
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
        self.watch = Watch(storage.moment)
        self._writer.ring = self.watch.ring
        _open_logs.add(self)
        # A log that is dropped without being closed gives everything back all the same.
        self._dropped = weakref.finalize(self, _abandon, self.watch, self._folding, self._writer, storage)
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
        path = checked_path(path)
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
        updated_before: int = END,
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
                yield summary_of(thread_id, row)
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
        return Following(self, self.watch, Appends(self.storage, _PAGE_ROWS).read, after, timeout_seconds)

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
        storage = self.storage
        is_interrupted = False

        def told(what: str, done: int, total: int) -> None:
            if is_interrupted:
                raise KeyboardInterrupt
            progress(what, done, total)

        def interrupt() -> None:
            nonlocal is_interrupted
            is_interrupted = True

        def carry_out() -> RepairReport:
            with self._folding.turn, storage.standing_still():
                return repair(storage.key, into, progress=told)  # its path may be relative to where it was opened

        return apart(carry_out, interrupt)

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
        return self.storage.compact(checked_path(into))

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
        if self._folding.is_here or self._writer.is_here or is_apart():
            _abandon(self.watch, self._folding, self._writer, self.storage)
            return
        self.storage.begin_closing(lambda: self._folding.is_here or self._writer.is_here)
        self.watch.close()
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
    source, target = checked_path(path), checked_path(into)
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
    path = checked_path(path)
    if path == IN_MEMORY:
        raise UsageError("a log in memory has no file to compact")
    return compact_file(path)


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
        check_status(each)
    check_labels(labels or {})
    for what, time in (("updated_since", since), ("updated_before", before)):
        if not isinstance(time, int) or not 0 <= time <= END:
            raise UsageError(f"{what} is Unix time in nanoseconds, not {time!r}")
    edge = cursor
    if edge is None:
        edge = END if newest_first else 0
    check_sequence("cursor", min(edge, END - 1))
    numbers = None if statuses is None else frozenset(status_number(Status(each)) for each in statuses)
    return Query(0, prefix, numbers, dict(labels or {}), since, before, newest_first, edge)


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
