"""Thread: one agent's history, appended to, read, and understood as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Several
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stepwell import blaming, branching, difference, forking, naming, pruning, reader, replaying, searching
from stepwell import format as fmt
from stepwell.arguments import END, check_event, check_sequence, check_text
from stepwell.clock import now
from stepwell.content import Encoding, Place
from stepwell.errors import ConflictError, UsageError
from stepwell.events import Commit, Event, Label, Sequence, Status, StepCommitted, status_of
from stepwell.fold import PendingWrite
from stepwell.following import Following, ThreadEvents, is_deletion
from stepwell.history import History, LaneSummary, Link, Step, TaskWrites, View
from stepwell.labels import check_labels
from stepwell.patch import Merge, Value, diff_entries, parse
from stepwell.paths import Path
from stepwell.pruning import Kept
from stepwell.storage import Append, Copy, Delete, Entry, Found, Rewrite, ThreadRow
from stepwell.writer import Ticket

if TYPE_CHECKING:
    from stepwell.log import Log

_PAGE_ROWS: Final = 256
_HOPEFUL_ATTEMPTS: Final = 3  # at rewriting a thread without making others wait


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
            check_event(event)
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
        return None if row is None else summary_of(self.id, row)

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
        for sequence, event in reader.events(self.log.storage, row.number, after, END, reverse=reverse):
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
        return Following(self.log, self.log.watch, events.read, events.after, timeout_seconds, is_deletion)

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


def changes(new: Mapping[str, tuple[str, bytes]], old: Mapping[str, Value] | None = None) -> Merge:
    """The patch that turns `old` into `new`, for a StepCommitted.

    Args:
        new: Type and payload of everything that there shall be.
        old: What there is at the step that the patch is based on, with its content as bytes
            (`Snapshot.values`); None is the empty state.
    """
    parsed = {name: parse(type_, payload) for name, (type_, payload) in new.items()}
    return diff_entries(old or {}, parsed) or Merge()


def summary_of(thread_id: str, row: ThreadRow) -> ThreadSummary:
    """What a row of the catalogue says."""
    events = row.last - row.first + 1
    counts = events, row.steps, row.writes, row.lanes, row.stored_bytes
    times = row.created_at, row.updated_at
    return ThreadSummary(thread_id, *counts, *times, status_of(row.status), row.labels, row.commit)
