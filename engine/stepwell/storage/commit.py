"""What each operation changes in the tables: where events are checked, numbered, chained, indexed and sealed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import islice

from stepwell import codec
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import ConflictError, CorruptionError, FormatError, StepwellError
from stepwell.events import (
    Event,
    Label,
    LaneOpened,
    Sequence,
    ThreadCopied,
    ThreadDeleted,
    ThreadLabelled,
    ThreadOpened,
    ThreadPruned,
)
from stepwell.labels import changed, relabelled
from stepwell.storage import (
    Append,
    Committed,
    Copy,
    Delete,
    Entry,
    FeedRow,
    Group,
    LaneRow,
    Operation,
    Outcome,
    Rewrite,
    Seal,
    ThreadRow,
    catalogue,
    index,
    pack_name,
    pack_row,
)
from stepwell.storage import feed as feeding
from stepwell.storage.catalogue import Standing, standing_of
from stepwell.storage.feed import Feed, read_end
from stepwell.storage.held import Held
from stepwell.storage.index import IndexRow
from stepwell.storage.items import Changes
from stepwell.storage.records import Records
from stepwell.storage.remembered import Remembered
from stepwell.storage.segments import cut, pack
from stepwell.storage.tables import (
    EVENTS,
    IDS,
    INDEX,
    ITEMS_OWNER,
    LANES,
    NAMES,
    PAGE_ROWS,
    SEGMENTS,
    THREAD_NAMES,
    THREADS,
    Tables,
    find_lane,
    find_thread,
    first_page,
    last_number,
    load_lane,
    prefix_end,
)


class Commit:
    """One group on its way into the tables: rows are read once, changed in memory, and written at the end.

    Args:
        tables: The tables.
        held: Records that were read lately.
        rows: What is remembered of the tables; what they hold when the group has ended is added.
    """

    def __init__(self, tables: Tables, held: Held, rows: Remembered) -> None:
        self._tables = tables
        self._records = Records(tables, held, committed=False)
        self._rows = rows
        self._changed: dict[int, ThreadRow] = {}
        self._standing: dict[int, Standing | None] = {}  # before this group
        self._changed_lanes: set[tuple[int, int]] = set()
        self._changed_ids: set[tuple[int, int]] = set()  # lanes whose greatest id has another row now
        self._feed_rows = Feed(tables, rows.feed or read_end(tables))
        self._items = Changes(tables)
        self._commit = self._feed_rows.last
        self._changing = False

    def attempt(self, operation: Operation) -> Outcome:
        """Carry out one operation.  One that is refused has changed nothing; one that fails halfway is raised."""
        self._changing = False
        try:
            if isinstance(operation, Append):
                return self._append(operation)
            if isinstance(operation, Delete):
                return self._delete(operation)
            if isinstance(operation, Seal):
                return self._seal(operation)
            if isinstance(operation, Rewrite):
                row = self._thread(operation.thread_id)
                # A copy: the row itself is what the next append goes on from.
                decided = None if row is None else operation.decide(copy.deepcopy(row))
                # failpoint: rewrite-decided
                return Committed(0, 0, ()) if decided is None else self.attempt(decided)
            return self._copy(operation)
        except StepwellError as error:
            if self._changing:
                raise
            return error

    def finish(self) -> bool:
        """Write what was changed; whether anything was."""
        self._items.flush()
        for number, row in self._changed.items():
            self._tables.put(THREADS, fmt.number_key(number), pack_row(row))
            catalogue.move(self._tables, self._standing.get(number), standing_of(row))
        self._feed_rows.flush()
        self._rows.feed = self._feed_rows.end
        self._flush_lanes()
        return bool(self._changed)

    def _begin(self) -> None:
        """From here on the tables change."""
        self._changing = True
        self._commit += 1

    # --- append ---

    def _append(self, operation: Append) -> Committed:
        row = self._thread(operation.thread_id)
        self._check(operation, row)
        entries = operation.entries(row.number if row else 0, row.first if row else 0)
        labels = changed(row.labels if row else {}, operation.labels)
        if not entries and not labels:
            return Committed(row.number if row else 0, 0, ())
        for entry in entries:
            self._check_base(operation, row, entry)
        # failpoint: append-checked
        # What is moved says with which commit it came: those that follow it have higher numbers, also where a repair
        # found nothing else of them.
        for entry in entries:
            if entry.item is not None:
                self._commit = max(self._commit, entry.item.commit)
        self._begin()
        if row is None:
            row = self._open(operation.thread_id)
            if operation.first:
                row.first, row.last = operation.first, operation.first - 1
            else:
                created_at = entries[0].created_at if entries else operation.created_at
                self._record(row, 0, _entry(ThreadOpened(operation.thread_id), None, created_at))
            first = row.first
        else:
            if operation.restart:
                self._clear(row)
                # failpoint: prune-cleared
            first = row.last + 1
        if labels:
            self._label(row, _entry(ThreadLabelled(labels), None, operation.created_at), labels)
        sequences = tuple(self._add(row, entry) for entry in entries)
        self._feed(row, first)
        loose = row.last - max(row.sealed, row.first - 1)
        committed = Committed(row.number, self._commit, sequences, loose, row.loose_bytes)
        if operation.placed is not None:
            operation.placed(committed)
        return committed

    def _check(self, operation: Append, row: ThreadRow | None) -> None:
        head = row.last if row else 0
        if operation.expected_head is not None and operation.expected_head != head:
            raise ConflictError(
                f"thread {operation.thread_id!r} is at sequence {head}, not at {operation.expected_head}: "
                "somebody else appended to it; read it again and decide anew",
                thread=operation.thread_id,
                expected=operation.expected_head,
                actual=head,
            )
        if operation.incarnation and (row is None or row.number != operation.incarnation):
            raise _gone(operation.thread_id, "the thread was deleted")

    def _check_base(self, operation: Append, row: ThreadRow | None, entry: Entry) -> None:
        if operation.restart:
            return  # its entries refer to each other: with `expected_head` the caller knows where they will stand
        if not entry.base:
            return
        if row is not None and self._is_head(row.number, entry):
            return  # as nearly always; the record need not be read
        header = None if row is None else self._records.header(row.number, entry.base)
        if row is None or header is None:
            raise _gone(operation.thread_id, f"there is no event {entry.base} to base a step on")
        if header.kind != fmt.KIND_STEP or header.lane != self._lane_number(row.number, entry.lane or ""):
            raise _gone(operation.thread_id, f"event {entry.base} is not a step of lane {entry.lane!r}")

    def _is_head(self, thread: int, entry: Entry) -> bool:
        """Whether an entry is based on the head of its lane."""
        lane = self._lane_number(thread, entry.lane or "")
        return lane is not None and self._lane_row(thread, lane).head == entry.base

    def _add(self, row: ThreadRow, entry: Entry) -> int:
        if entry.labels is not None:
            return self._label(row, entry, entry.labels)
        if entry.lane is None:
            sequence = self._record(row, 0, entry)
            if entry.item is not None:
                self._items.add(entry, entry.item, sequence, self._commit)
            return sequence
        lane = self._lane_number(row.number, entry.lane)
        if lane is None:
            row.lanes += 1
            lane = row.lanes
            name = entry.lane.encode()
            name_key = fmt.name_key(row.number, name)
            self._tables.put(NAMES, name_key, pack_name(lane, name))
            self._rows.lane_numbers[row.number, entry.lane] = lane
            self._rows.lanes[row.number, lane] = LaneRow(name_key[8:])
            self._rows.last_ids[row.number, lane] = b"", IndexRow()
            self._changed_lanes.add((row.number, lane))
            self._record(row, lane, _entry(LaneOpened(entry.lane), None, entry.created_at))
        if entry.kind == fmt.KIND_STEP:
            return self._step(row, lane, entry)
        sequence = self._record(row, lane, entry, fmt.status_flags(entry.status))
        if entry.kind == fmt.KIND_WRITES:
            row.writes += 1
            found = self._index_writes(row.number, lane, entry, sequence)
            if entry.status and found.step and found.step == self._lane_row(row.number, lane).head:
                step = self._records.header(row.number, found.step)
                said = fmt.STATUS_UNKNOWN if step is None else fmt.read_status(step.flags)
                row.status = _status(said, entry.status) or row.status
        return sequence

    def _label(self, row: ThreadRow, entry: Entry, labels: Mapping[str, Label | None]) -> int:
        row.labels = relabelled(row.labels, labels)
        return self._record(row, 0, entry)

    def _step(self, row: ThreadRow, lane: int, entry: Entry) -> int:
        lane_row = self._lane_row(row.number, lane)
        flags = fmt.status_flags(entry.status)
        before = self._index_row(row.number, lane, entry.step_key)
        if entry.hidden:
            sequence = self._record(row, lane, entry, flags | fmt.FLAG_HIDDEN)
        elif before.step and not before.hidden:
            self._changed_lanes.add((row.number, lane))
            sequence = self._record(row, lane, entry, flags | fmt.FLAG_REPLACES, before.original)
            lane_row.replaced += 1
            if before.original == lane_row.tip:
                lane_row.head = sequence
        else:
            self._changed_lanes.add((row.number, lane))
            sequence = self._record(row, lane, entry, flags, lane_row.tip)
            lane_row.head = lane_row.tip = sequence
            lane_row.steps += 1
            row.steps += 1
        if lane_row.head == sequence:
            # Those who ran on this step may be heard before the step is.
            row.status = _status(entry.status, before.status) or row.status
        found = index.with_step(before, IndexRow(sequence, sequence, entry.hidden))
        if found != before:
            self._put_index_row(row.number, lane, entry.step_key, found)
        return sequence

    def _index_writes(self, thread: int, lane: int, entry: Entry, sequence: int) -> IndexRow:
        """Note an event that records writes for a step id, which may be committed later; returns the id's row."""
        before = self._index_row(thread, lane, entry.step_key)
        found = index.with_writes(before, sequence, entry.status)
        if found != before:
            self._put_index_row(thread, lane, entry.step_key, found)
        if index.is_full(before):
            index.add_further(self._tables, thread, lane, entry.step_key, sequence)
        return found

    def _record(
        self,
        row: ThreadRow,
        lane: int,
        entry: Entry,
        flags: int = 0,
        previous: int = 0,
        sealing: list[Record] | None = None,
    ) -> int:
        sequence = row.last + 1
        header, row.chain = fmt.stamp(
            row.number,
            sequence,
            entry.kind,
            flags,
            entry.form,
            lane,
            self._commit,
            entry.created_at,
            entry.base,
            previous,
            entry.digest,
            row.chain,
        )
        if sealing is None:
            stored = header + entry.body
            self._tables.put(EVENTS, fmt.event_key(row.number, sequence), stored)
            # failpoint: event-put
            row.loose_bytes += len(stored)
            row.stored_bytes += len(stored)
        else:
            sealing.append(Record(sequence, fmt.read_header(header), *codec.split(entry.body)))
        row.last, row.commit = sequence, self._commit
        row.created_at = row.created_at or entry.created_at
        row.updated_at = entry.created_at
        return sequence

    def _feed(self, row: ThreadRow, first: int) -> None:
        self._changed[row.number] = row
        self._feed_rows.append(FeedRow(self._commit, row.number, first, row.last))

    # --- delete and copy ---

    def _delete(self, operation: Delete) -> Committed:
        row = self._thread(operation.thread_id)
        if row is None:
            return Committed(0, 0, ())
        self._begin()
        gone = _entry(ThreadDeleted(Sequence(row.last), row.chain), None, operation.created_at)
        self._clear(row)
        # failpoint: delete-cleared
        name = operation.thread_id.encode()
        self._tables.delete(NAMES, fmt.name_key(THREAD_NAMES, name))
        self._tables.delete(IDS, fmt.sorted_key(name, row.number))
        row.deleted, row.name_hash = True, b""
        sequence = self._record(row, 0, gone)
        self._feed(row, sequence)
        self._rows.threads[operation.thread_id] = None
        return Committed(row.number, self._commit, (sequence,))

    def _copy(self, operation: Copy) -> Committed:
        source = self._thread(operation.source_id)
        if source is None:
            return Committed(0, 0, ())
        existing = self._thread(operation.target_id)
        if existing is not None:
            raise ConflictError(
                f"thread {operation.target_id!r} exists already; delete it first or copy to another id",
                thread=operation.target_id,
                expected=0,
                actual=existing.last,
            )
        self._begin()
        row = self._open(operation.target_id)
        row.first, row.last = source.first, source.first - 1
        opened: Event = ThreadOpened(operation.target_id)
        if source.first > 1:
            opened = ThreadPruned(operation.target_id, Sequence(source.first - 1), fmt.CHAIN_SEED, operation.created_at)
        self._copy_events(source, row, _plain_entry(opened, operation.created_at))
        # failpoint: copy-events-put
        self._copy_derived(source.number, row.number)
        # failpoint: copy-derived-put
        row.lanes, row.steps, row.writes = source.lanes, source.steps, source.writes
        row.status, row.labels = source.status, source.labels
        copied = ThreadCopied(operation.source_id, Sequence(source.last))
        sequence = self._record(row, 0, _entry(copied, None, operation.created_at))
        self._feed(row, row.first)
        return Committed(row.number, self._commit, (sequence,))

    def _copy_events(self, source: ThreadRow, row: ThreadRow, opened: Entry) -> None:
        """Stamp every record anew for the target; what was sealed is sealed again, segment by segment."""
        ends = {last for _, last, _ in self._records.sealed(source.number)}
        bases = dict(self._records.bases(source.number))
        sealing: list[Record] = []
        group = Group()
        after = source.first - 1
        while after < source.last:
            page = [*islice(self._records.scan(source.number, after, source.last + 1), PAGE_ROWS)]
            for record in page:
                sequence, header, body = record.sequence, record.header, record.body
                sealed = sequence <= source.sealed
                created_at = header.created_at
                if sequence == source.first:
                    header, body, created_at = header._replace(kind=opened.kind, lane=0), opened.body, opened.created_at
                stored, form = (body, fmt.FORM_PLAIN) if sealed else codec.compress_body(body)
                entry = Entry(None, header.kind, stored, form, fmt.body_digest(body), created_at, header.base)
                self._record(row, header.lane, entry, header.flags, header.previous, sealing if sealed else None)
                if sequence in ends:
                    kept = {each.sequence: bases[each.sequence] for each in sealing if each.sequence in bases}
                    segment, group = pack(row.number, sealing, kept, group)
                    self._put_segment(row.number, row.last, segment)
                    row.sealed = row.last
                    row.stored_bytes += len(segment)
                    sealing.clear()
            after = page[-1].sequence

    # --- seal ---

    def _seal(self, operation: Seal) -> Committed:
        row = self._thread(operation.thread_id)
        nothing = Committed(0, 0, ())
        if row is None or row.number != operation.number:
            return nothing
        if max(row.sealed, row.first - 1) + 1 != operation.first or operation.last > row.last:
            return nothing
        self._changing = True
        for sequence in range(operation.first, operation.last + 1):
            key = fmt.event_key(row.number, sequence)
            stored = self._tables.get(EVENTS, key)
            if stored is None:
                raise CorruptionError("the event is missing", thread=operation.thread_id, sequence=sequence)
            self._tables.delete(EVENTS, key)
            row.loose_bytes -= len(stored)
            row.stored_bytes -= len(stored)
        # failpoint: seal-records-removed
        self._put_segment(row.number, operation.last, operation.segment)
        row.sealed = operation.last
        row.stored_bytes += len(operation.segment)
        self._changed[row.number] = row
        return Committed(row.number, 0, ())

    def _put_segment(self, thread: int, last: int, segment: bytes) -> None:
        for key, part in cut(thread, last, segment):
            self._tables.put(SEGMENTS, key, part)
            # failpoint: segment-part-put

    def _copy_derived(self, source: int, target: int) -> None:
        self._flush_lanes()
        self._rows.forget_lanes()
        old, new = fmt.number_key(source), fmt.number_key(target)
        for table in (INDEX, LANES):
            for key, value in self._pages(table, old, prefix_end(old)):
                self._tables.put(table, new + key[8:], value)
        for key, value in self._pages(NAMES, old, prefix_end(old)):
            self._tables.put(NAMES, new + key[8:], value)

    def _clear(self, row: ThreadRow) -> None:
        """Remove all events of a thread and what was derived from them."""
        self._flush_lanes()
        self._rows.forget_lanes()
        commits: set[int] = set()
        owner = fmt.number_key(row.number)
        try:
            for record in self._records.scan(row.number, row.first - 1, row.last + 1):
                commits.add(record.header.commit)
        except (CorruptionError, FormatError):
            # A damaged thread can still be removed, but its records do not say which commits it had.
            commits.update(self._commits_of(row.number))
        self._feed_rows.remove(commits)
        for table in (EVENTS, SEGMENTS, INDEX, LANES, NAMES):
            while (doomed := self._tables.next_key(table, owner, prefix_end(owner))) is not None:
                self._tables.delete(table, doomed)
        if row.name_hash == ITEMS_OWNER:
            self._items.clear()
        row.first = row.last + 1
        row.sealed = row.loose_bytes = 0
        row.lanes = row.steps = row.writes = row.stored_bytes = row.created_at = 0
        row.status, row.labels = fmt.STATUS_UNKNOWN, {}

    def _commits_of(self, thread: int) -> Iterator[int]:
        self._feed_rows.flush()
        return (row.commit for row in feeding.scan(self._tables, 0) if row.thread == thread)

    def _pages(self, table: str, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """A scan that may be interleaved with changes, and holds one page at a time."""
        while True:
            page = first_page(self._tables.scan(table, start, stop))
            if not page:
                return
            yield from page
            start = page[-1][0] + b"\0"

    # --- rows ---

    def _open(self, thread_id: str) -> ThreadRow:
        number = max(last_number(self._tables, THREADS), max(self._changed, default=0)) + 1
        name = thread_id.encode()
        name_key = fmt.name_key(THREAD_NAMES, name)
        self._tables.put(NAMES, name_key, pack_name(number, name))
        if name_key[8:] != ITEMS_OWNER:
            self._tables.put(IDS, fmt.sorted_key(name, number), b"")
        row = ThreadRow(number, name_key[8:])
        self._rows.threads[thread_id] = row
        self._changed[number] = row
        return row

    def _thread(self, thread_id: str) -> ThreadRow | None:
        threads = self._rows.threads
        if thread_id not in threads:
            threads[thread_id] = find_thread(self._tables, thread_id)
        row = threads[thread_id]
        if row is not None and row.number not in self._changed and row.number not in self._standing:
            self._standing[row.number] = standing_of(row)
        return row

    def _lane_number(self, thread: int, name: str) -> int | None:
        number = self._rows.lane_numbers.get((thread, name))
        if number is None:
            number = find_lane(self._tables, thread, name)
            if number is not None:
                self._rows.lane_numbers[thread, name] = number
        return number

    def _lane_row(self, thread: int, lane: int) -> LaneRow:
        row = self._rows.lanes.get((thread, lane))
        if row is None:
            row = self._rows.lanes[thread, lane] = load_lane(self._tables, thread, lane)
        return row

    def _index_row(self, thread: int, lane: int, step_key: bytes) -> IndexRow:
        """A step id's row in the index; it is read only if the id comes before the greatest one of its lane."""
        last = self._rows.last_ids.get((thread, lane))
        if last is None:
            last = self._rows.last_ids[thread, lane] = index.last_row(self._tables, thread, lane)
        if step_key == last[0]:
            return last[1]
        return IndexRow() if step_key > last[0] else index.find_row(self._tables, thread, lane, step_key)

    def _put_index_row(self, thread: int, lane: int, step_key: bytes, row: IndexRow) -> None:
        """Give a step id, of which the row was asked for, another one; that of the greatest id is written later."""
        last_key, last_row = self._rows.last_ids[thread, lane]
        if step_key < last_key:
            index.put_row(self._tables, thread, lane, step_key, row)
            return
        if step_key > last_key and (thread, lane) in self._changed_ids:
            index.put_row(self._tables, thread, lane, last_key, last_row)
        self._rows.last_ids[thread, lane] = step_key, row
        self._changed_ids.add((thread, lane))

    def _flush_lanes(self) -> None:
        """Write what was changed of lanes, and the rows of their greatest ids."""
        for thread, lane in self._changed_lanes:
            self._tables.put(LANES, fmt.lane_key(thread, lane), pack_row(self._rows.lanes[thread, lane]))
        self._changed_lanes.clear()
        for thread, lane in self._changed_ids:
            index.put_row(self._tables, thread, lane, *self._rows.last_ids[thread, lane])
        self._changed_ids.clear()


def _status(step: int, writes: int) -> int:
    """What the head of a lane and the writes for it say: that somebody goes on says that no writes are in the way."""
    return step or writes if writes == fmt.STATUS_RUNNING else writes or step


def _gone(thread_id: str, why: str) -> ConflictError:
    return ConflictError(
        f"the append to thread {thread_id!r} refers to what is not there: {why}; read the thread again",
        thread=thread_id,
        expected="what the append was based on",
        actual=None,
    )


def _entry(event: Event, lane: str | None, created_at: int) -> Entry:
    body = codec.encode(event)
    return Entry(lane, body.kind, body.data, body.form, body.digest, created_at)


def _plain_entry(event: Event, created_at: int) -> Entry:
    entry = _entry(event, None, created_at)
    return entry._replace(body=codec.plain_body(entry.body, entry.form), form=fmt.FORM_PLAIN)
