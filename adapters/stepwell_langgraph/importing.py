"""Checkpoints of another saver into a log, as they are stored there, and the proof that they arrived.

    1. Threads are taken one after the other, the checkpoints of each in the order in which they were made, but none
       before its parent.  One checkpoint and the writes that wait for it are one append: both are there, or neither.
    2. What changes from the parent's state is found in bytes, and nothing is decoded (`tip.py`).
    3. Appends are not waited for one by one: where the next one will stand is known beforehand, and that nobody else
       appended in between is part of each append.  So many are committed with one sync.
    4. Once some megabytes of states are under way, all of them are awaited, read back from the log, and compared
       with what the source gave, byte by byte.  Then they are let go.

A checkpoint that the log has already is compared instead of appended.  So an import that was interrupted, at any
moment, goes on where it stopped when it is called again; and an import that is repeated brings what is new.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell.arguments import check_text
from stepwell.errors import ConflictError, CorruptionError, EventTooLargeError, ReadOnlyError, UsageError
from stepwell.fold import State
from stepwell.log import IN_MEMORY, Log
from stepwell.storage.newfile import occupied_bytes
from stepwell_langgraph.ahead import ReadAhead
from stepwell_langgraph.receiving import Arrival, Receiver
from stepwell_langgraph.saver import StepwellSaver
from stepwell_langgraph.saver_objects import MemoryObject, SaverObject, address_of, is_memory
from stepwell_langgraph.sources import (
    POSTGRES,
    SQLITE,
    Place,
    Reading,
    Source,
    StoredCheckpoint,
    StoredWrite,
    Unreadable,
    Wanted,
    parents_first,
)
from stepwell_langgraph.sqlite_tables import SqliteTables

_WINDOW_BYTES: Final = 24 << 20
_WINDOW_CHECKPOINTS: Final = 256
_ATTEMPTS: Final = 100
_TELL_SECONDS: Final = 0.2


class Problem(NamedTuple):
    """Something that could not be imported as it is, or that is not what it should be.

    Texts are the source's own: whoever prints them on a terminal must escape them.

    Attributes:
        thread_id: Its thread.
        namespace: Its namespace; None where it is about the whole thread.
        checkpoint_id: Its checkpoint; None where it is about the whole thread.
        reason: What is wrong.
    """

    thread_id: str
    namespace: str | None
    checkpoint_id: str | None
    reason: str

    def __str__(self) -> str:
        place = (
            "" if self.checkpoint_id is None else f", namespace {self.namespace!r}, checkpoint {self.checkpoint_id!r}"
        )
        return f"thread {self.thread_id!r}{place}: {self.reason}"


class ImportProgress(NamedTuple):
    """How far an import is.

    Attributes:
        thread_id: The thread that is read.
        threads: How many threads are done.
        of_threads: How many there are.
        checkpoints: How many checkpoints are done.
        of_checkpoints: How many there are.
        read_bytes: Bytes of state that were read.
        before_bytes: What the source takes of the disk; None if that is not known.
        after_bytes: What the log takes of the disk by now.
    """

    thread_id: str
    threads: int
    of_threads: int
    checkpoints: int
    of_checkpoints: int
    read_bytes: int
    before_bytes: int | None
    after_bytes: int


@dataclass
class ImportReport:
    """What an import did.

    Attributes:
        source: What was imported.
        log: Where it went.
        threads: Threads that were looked at.
        checkpoints: Checkpoints that were appended.
        present: Checkpoints that were there already.
        writes: Pending writes that were appended.
        verified: Checkpoints that were read back and compared with the source, with their writes.
        is_exact: Whether channels and writes were compared with the bytes that the source stores; otherwise, of an
            unknown saver, with what the serializer makes of its objects.
        problems: What could not be imported, or differs.
        before_bytes: What the source takes of the disk; None if that is not known.
        after_bytes: What the log takes of the disk.
        seconds: How long it took.
    """

    source: str
    log: str
    threads: int = 0
    checkpoints: int = 0
    present: int = 0
    writes: int = 0
    verified: int = 0
    is_exact: bool = True
    problems: list[Problem] = field(default_factory=list)
    before_bytes: int | None = None
    after_bytes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything was imported, and nothing was found to differ."""
        return not self.problems

    def __str__(self) -> str:
        per_second = (self.checkpoints + self.present) / self.seconds if self.seconds else 0
        before = "" if self.before_bytes is None else f"{_megabytes(self.before_bytes)} -> "
        compared = "byte by byte" if self.is_exact else "by value"
        lines = [
            f"{self.source} was imported into {self.log}",
            f"threads: {self.threads:,}; checkpoints: {self.checkpoints:,}; there already: {self.present:,}; "
            f"pending writes: {self.writes:,}",
            f"verified {compared}: {self.verified:,} checkpoints",
            f"on disk: {before}{_megabytes(self.after_bytes)}; {self.seconds:,.1f} s, {per_second:,.0f} checkpoints/s",
            *(f"problem: {problem}" for problem in self.problems),
        ]
        return "\n".join(lines)


def import_from(
    source: Any,
    log_or_saver: Log | StepwellSaver,
    *,
    threads: Iterable[str] | None = None,
    verify: bool = True,
    progress: Callable[[ImportProgress], None] | None = None,
) -> ImportReport:
    """Import every checkpoint, pending write and fork of another saver.

    The source is only read, and may be in use; what it gets meanwhile may or may not be imported.  Nothing that it
    holds is executed: of SQLite, PostgreSQL and InMemorySaver no object is decoded, pickles stay the bytes that they
    are.  Only the objects of other savers are made by their own serializer.

    Everything that was appended is durable when this returns, and most of it when it is interrupted: calling it again
    goes on from there.  What the log holds already is left as it is; where it differs from the source, that is a
    problem in the report.

    Memory is bounded by one state, about 64 MiB, and the ids of one thread.

    Args:
        source: "sqlite:///path.db", "postgresql://...", the path of an SQLite file, or a saver.
        log_or_saver: Where to.
        threads: The threads to import; None for all.
        verify: Whether to read everything back and compare it with the source.  Without, a checkpoint whose id the
            log has is passed over unseen.
        progress: Told now and then how far it is, and at the end.

    Returns:
        What was imported, and every problem: one row that cannot be read leaves the others alone.

    Raises:
        UsageError: There is no such source, or it is no saver's.
        CapacityError: There is no room in the log.
        ConflictError: Others append to a thread without a pause.
    """
    log = log_or_saver.log if isinstance(log_or_saver, StepwellSaver) else log_or_saver
    if not isinstance(log, Log):
        raise UsageError(f"import_from needs a Log or a StepwellSaver to import into, not {type(log).__name__}")
    if log.storage.read_only:
        raise ReadOnlyError(f"the log {log.path!r} was opened with read_only=True; open it without to import into it")
    opened = _opened(source, getattr(log_or_saver, "serde", None) or JsonPlusSerializer())
    ahead = ReadAhead(opened)
    try:
        return Import(opened, ahead, log, verify=verify, progress=progress).run(threads)
    finally:
        ahead.close()
        opened.close()


class Import:
    """One import, or one comparison of a source with a log that holds it already.

    Args:
        source: Where from.
        ahead: Reads the source.
        log: Where to.
        verify: Whether to compare.
        append: Whether to append what the log does not have, which otherwise is a problem.
        progress: Told now and then how far it is.
    """

    def __init__(
        self,
        source: Source,
        ahead: ReadAhead,
        log: Log,
        *,
        verify: bool = True,
        append: bool = True,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> None:
        self._source = source
        self._ahead = ahead
        self._log = log
        self._verify = verify
        self._append = append
        self._progress = progress
        self._told = 0.0
        self._read_bytes = 0
        self._done = 0
        self._of_threads = self._of_checkpoints = 0
        self._window: list[tuple[Receiver, list[Arrival]]] = []  # what is under way, by thread
        self._held_checkpoints = self._held_bytes = 0
        self.report = ImportReport(source.label, log.path, is_exact=source.is_exact)

    def run(self, wanted: Iterable[str] | None) -> ImportReport:
        """Take the threads that are wanted; None for all."""
        began = time.monotonic()
        report = self.report
        asked = None if wanted is None else [*dict.fromkeys(wanted)]
        try:
            report.before_bytes = self._source.size_bytes()
            found = dict(self._source.threads())
        except Unreadable as error:
            raise UsageError(f"the threads in {self._source.label} cannot be listed: {error}") from error
        for thread_id in asked or ():
            if thread_id not in found:
                self._problem(thread_id, None, "there is no such thread in the source")
        if asked is not None:
            found = {thread_id: found[thread_id] for thread_id in asked if thread_id in found}
        self._of_threads, self._of_checkpoints = len(found), sum(found.values())
        for thread_id in found:
            self._thread(thread_id)
            report.threads += 1
            self._tell(thread_id)
        self._settle()
        if self._append:
            self._log.seal()
        report.after_bytes = disk_bytes(self._log)
        report.seconds = time.monotonic() - began
        self._tell("", now=True)
        return report

    def _thread(self, thread_id: str) -> None:
        try:
            _check("thread id", thread_id)
            thread = Receiver(self._log, thread_id)
            places = [*parents_first(self._source.places(thread_id))]
        except (Unreadable, UsageError) as error:  # one of the latter is an id that the log keeps for itself
            self._problem(thread_id, None, str(error))
            return
        asked: set[tuple[str, str]] = set()

        def want(place: Place) -> Wanted:
            """What is asked for while what comes before may still be under way."""
            try:
                _check_place(place)
            except Unreadable:
                return Wanted(place, whole=False, from_parent=False)
            found = thread.find(place.namespace, place.checkpoint_id)
            if found.step and not found.hidden:
                return Wanted(place, whole=self._verify, from_parent=False)
            asked.add((place.namespace, place.checkpoint_id))
            return Wanted(place, whole=True, from_parent=(place.namespace, place.parent_id) in asked)

        items: list[Arrival] = []
        self._window.append((thread, items))
        for wanted, reading in self._ahead.readings(thread_id, places, want):
            item = self._begin(thread, wanted.place, reading)
            if item is not None:
                items.append(item)
                self._held_checkpoints += 1
                self._held_bytes += item.size
                self._read_bytes += item.size
            self._done += wanted.place.exists
            if self._held_bytes > _WINDOW_BYTES or self._held_checkpoints >= _WINDOW_CHECKPOINTS:
                self._settle()
                items = []
                self._window.append((thread, items))
                self._tell(thread_id)

    def _begin(self, thread: Receiver, place: Place, reading: Reading | Unreadable) -> Arrival | None:
        """Begin to append what the log does not have of what was read."""
        try:
            _check_place(place)
            if isinstance(reading, Unreadable):
                raise reading
            for reason in reading.problems:
                self._problem(thread.id, place, reason)
            item = Arrival(place, self._checked(thread, place, reading))
            self._begin_append(thread, item)
        except (Unreadable, EventTooLargeError, CorruptionError) as error:
            self._problem(thread.id, place, str(error))
            return None
        return item

    def _checked(self, thread: Receiver, place: Place, reading: Reading) -> Reading:
        """What was read, without what no log can hold; the writes in the order in which they are taken over."""
        checkpoint, writes = reading.checkpoint, []
        try:
            _check_checkpoint(checkpoint)
        except Unreadable as error:
            self._problem(thread.id, place, str(error))
            checkpoint = None
        for write in reading.writes:
            try:
                _check_write(write)
                writes.append(write)
            except Unreadable as error:
                self._problem(thread.id, place, str(error))
        return Reading(checkpoint, sorted(writes, key=_order))

    def _begin_append(self, thread: Receiver, item: Arrival) -> None:
        if item.checkpoint is not None and item.checkpoint.unchanged and not thread.has_appended(item.place):
            (reading,) = self._source.read(thread.id, [Wanted(item.place)])
            if isinstance(reading, Unreadable):
                raise reading
            item.checkpoint = reading.checkpoint
        thread.append(item, dry=not self._append)
        if item.is_missing:
            raise Unreadable("the log does not have it")

    def _settle(self) -> None:
        """Wait for everything that is under way, and compare what the log then holds."""
        for thread, items in self._window:
            self._await(thread, items)
            thread.settled()
            for item in items:
                self.report.writes += item.appended_writes
                if item.place.exists and item.sequence:
                    self.report.present += item.was_there
                    self.report.checkpoints += not item.was_there
            if self._verify and items:
                self._compare(thread, items)
        self._window.clear()
        self._held_checkpoints = self._held_bytes = 0

    def _await(self, thread: Receiver, items: list[Arrival]) -> None:
        refused = [item for item in items if not self._is_durable(thread, item)]
        if refused:  # somebody else appended to the thread
            thread.forget()
        for item in refused:
            self._append_now(thread, item)

    def _append_now(self, thread: Receiver, item: Arrival) -> None:
        """Append by itself what was refused in a row."""
        for _ in range(_ATTEMPTS):
            thread.look_again()
            item.ticket = None
            try:
                self._begin_append(thread, item)
            except (Unreadable, EventTooLargeError, CorruptionError) as error:
                self._give_up(thread, item, error)
            if self._is_durable(thread, item):
                return
        raise ConflictError(
            f"others append to thread {thread.id!r} without a pause: import it when they are done",
            thread=thread.id,
            expected=None,
            actual=None,
        )

    def _is_durable(self, thread: Receiver, item: Arrival) -> bool:
        """Wait for an append; False if it was refused, and has to be begun anew."""
        try:
            if item.ticket is not None:
                item.ticket.result()
        except ConflictError:
            return False
        except EventTooLargeError as error:
            self._give_up(thread, item, error)
        return True

    def _give_up(self, thread: Receiver, item: Arrival, error: Exception) -> None:
        self._problem(thread.id, item.place, str(error))
        item.ticket, item.checkpoint, item.writes, item.appended_writes, item.sequence = None, None, [], 0, 0

    def _compare(self, thread: Receiver, window: list[Arrival]) -> None:
        """Read back what the source gave, and tell where it differs."""
        items = [item for item in window if item.checkpoint is not None]
        bases = [item.base.sequence for item in items if item.checkpoint is not None and item.checkpoint.unchanged]
        states = self._log.reader.states(thread.number, [*(item.sequence for item in items), *bases])
        for item in window:
            try:
                reason = self._compared(thread, item, states)
            except CorruptionError as error:
                reason = str(error)
            if reason is not None:
                self._problem(thread.id, item.place, reason)
            else:
                self.report.verified += item.checkpoint is not None

    def _compared(self, thread: Receiver, item: Arrival, states: dict[int, State]) -> str | None:
        """What the log does not have as the source has it; None if all is well."""
        if item.checkpoint is not None:
            state = states[item.sequence]
            if state.parent_id != item.place.parent_id:
                return f"its parent is {state.parent_id!r} in the log, and {item.place.parent_id!r} in the source"
            parent = states[item.base.sequence] if item.checkpoint.unchanged else state
            reason = thread.comparison.difference(item.checkpoint, state, parent, item.begins_with)
            if reason is not None:
                return reason
        if not item.writes:
            return None
        there = thread.writes(thread.find(item.place.namespace, item.place.checkpoint_id))
        for write in item.writes:
            pending = there.get((write.task_id, write.idx))
            if pending is None:
                return f"the log has no write {write.idx} of task {write.task_id!r}"
            where = (pending.task_path, pending.write.channel)
            if where != (write.task_path, write.channel) or not thread.comparison.is_same(
                pending.write.value, write.value
            ):
                return f"the log has another write {write.idx} of task {write.task_id!r} than the source"
        return None

    def _problem(self, thread_id: str, place: Place | None, reason: str) -> None:
        namespace, checkpoint_id = (None, None) if place is None else (place.namespace, place.checkpoint_id)
        self.report.problems.append(Problem(thread_id, namespace, checkpoint_id, reason))

    def _tell(self, thread_id: str, *, now: bool = False) -> None:
        if self._progress is None or (not now and time.monotonic() - self._told < _TELL_SECONDS):
            return
        self._told = time.monotonic()
        report = self.report
        after = disk_bytes(self._log)
        self._progress(
            ImportProgress(
                thread_id,
                report.threads,
                self._of_threads,
                self._done,
                self._of_checkpoints,
                self._read_bytes,
                report.before_bytes,
                after,
            )
        )


def _opened(source: Any, serde: SerializerProtocol) -> Source:
    if isinstance(source, BaseCheckpointSaver):
        address = address_of(source)
        if address is None:
            return MemoryObject(source) if is_memory(source) else SaverObject(source, serde)
        return _opened(address, serde) if address.startswith(SQLITE) else _postgres(address)
    if isinstance(source, os.PathLike) or (isinstance(source, str) and "://" not in source):
        return SqliteTables(source)
    if isinstance(source, str) and source.startswith(SQLITE):
        return SqliteTables(source.removeprefix(SQLITE))
    if isinstance(source, str) and source.startswith(POSTGRES):
        return _postgres(source)
    raise UsageError(
        f'there is no importing from {source!r}: pass "sqlite:///path.db", "postgresql://...", the path of an SQLite '
        "file, or a saver"
    )


def _postgres(address: str) -> Source:
    try:
        from stepwell_langgraph.postgres_tables import PostgresTables
    except ImportError as error:
        raise UsageError(
            "importing from PostgreSQL needs the driver that PostgresSaver uses: pip install 'psycopg[binary]'"
        ) from error
    return PostgresTables(address)


def _order(write: StoredWrite) -> tuple[str, str, int]:
    return write.task_path, write.task_id, write.idx


def _check(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise Unreadable(f"the {what} is {text!r}, not a text")
    try:
        check_text(what, text)
    except UsageError as error:
        raise Unreadable(str(error)) from error


def _check_place(place: Place) -> None:
    _check("namespace", place.namespace)
    _check("checkpoint id", place.checkpoint_id)
    _check("parent's id", place.parent_id or "")


def _check_checkpoint(checkpoint: StoredCheckpoint | None) -> None:
    if checkpoint is not None:
        for name, (type_, _) in checkpoint.channels.items():
            _check("name of a channel", name)
            _check("type of a channel", type_)
        _check("checkpoint's type", checkpoint.core[0])


def _check_write(write: StoredWrite) -> None:
    for what, text in (("task path", write.task_path), ("task id", write.task_id), ("channel", write.channel)):
        _check(f"{what} of a pending write", text)
    _check("type of a pending write", write.value[0])
    if type(write.idx) is not int:
        raise Unreadable(f"the index of a pending write is {write.idx!r}, not a whole number")


def disk_bytes(log: Log) -> int:
    """What the file of a log takes of the disk; 0 for one in memory."""
    return 0 if log.path == IN_MEMORY else occupied_bytes(os.stat(log.path))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
