"""Events and raw rows for the tests of the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Several
from contextlib import contextmanager

from stepwell import Event, Sequence, StepCommitted, Write, WritesRecorded, changes, codec, parse
from stepwell import format as fmt
from stepwell.content import entry
from stepwell.patch import Value
from stepwell.storage import Append, Group, Operation, Outcome, Seal, Storage, pack_row, unpack_thread
from stepwell.storage.held import Held
from stepwell.storage.memory import MemoryStorage
from stepwell.storage.ordered import TableStorage
from stepwell.storage.records import Records
from stepwell.storage.segments import cut, pack
from stepwell.storage.tables import AFTER_ALL, DERIVED, EVENTS, SEGMENTS, THREADS, Tables


def noise(length: int = 300) -> bytes:
    """Bytes that no event holds yet and that do not compress."""
    return os.urandom(length)


def step(
    step_id: str,
    channels: Mapping[str, bytes] | None = None,
    *,
    parent: str | None = None,
    base: int = 0,
    lane: str = "",
    old: Mapping[str, Value] | None = None,
    fields: Mapping[str, bytes] | None = None,
    hidden: bool = False,
    created_at: int = 0,
) -> StepCommitted:
    """A step after which its lane holds `channels`, given what it holds at `base`."""
    typed = {name: ("text", payload) for name, payload in (channels or {}).items()}
    kept = {name: ("text", payload) for name, payload in (fields or {}).items()}
    return StepCommitted(step_id, parent, changes(typed, old), changes(kept), lane, Sequence(base), hidden, created_at)


def wrote(
    step_id: str,
    values: Iterable[bytes] = (b"written",),
    *,
    task: str = "task",
    path: str = "",
    lane: str = "",
    first_index: int = 0,
) -> WritesRecorded:
    """What a task wrote to channel `x`, one write for each value."""
    writes = tuple(Write(first_index + i, "x", parse("text", value)) for i, value in enumerate(values))
    return WritesRecorded(step_id, task, path, writes, lane)


def append(
    thread_id: str,
    *events: Event,
    expected_head: int | None = None,
    incarnation: int = 0,
    restart: bool = False,
    now: int = 1,
) -> Append:
    """The storage's operation for an append, without any memory of contents."""
    entries = [entry(event, codec.encode(event), now) for event in events]
    return Append(thread_id, lambda number, first: entries, expected_head, incarnation, restart)


def sealing(
    storage: Storage, thread_id: str, last: int | None = None, bases: Mapping[int, bytes] | None = None
) -> Seal:
    """The storage's operation that puts the loose events of a thread, up to one of them, into a segment.

    Args:
        storage: The storage.
        thread_id: The thread.
        last: The last of the events; None for all.
        bases: The states that the segment keeps, by sequence.
    """
    row = storage.thread(thread_id)
    assert row is not None
    first = max(row.sealed, row.first - 1) + 1
    last = row.last if last is None else last
    records = storage.scan(row.number, first - 1, last + 1, 1 << 30, reverse=False)
    segment, _ = pack(row.number, records, bases or {}, storage.last_group(row.number))
    return Seal(thread_id, row.number, first, last, segment)


# --- behind the log's back ---


def get_row(storage: Storage, table: str, key: bytes) -> bytes | None:
    """A row as it stands in a table."""
    assert isinstance(storage, TableStorage)
    with storage._reading() as tables:
        return tables.get(table, key)


def set_row(storage: Storage, table: str, key: bytes, value: bytes | None) -> None:
    """Change a row as no operation would; None removes it.  The storage forgets what it has read."""
    assert isinstance(storage, TableStorage)
    storage._held = Held()
    with storage._writing() as (tables, _):
        if value is None:
            tables.delete(table, key)
        else:
            tables.put(table, key, value)


def rows_of(storage: Storage, table: str) -> dict[bytes, bytes]:
    """All rows of a table, as they stand."""
    assert isinstance(storage, TableStorage)
    with storage._reading() as tables:
        return dict(tables.scan(table, b"", AFTER_ALL))


def get_record(storage: Storage, thread: int, sequence: int) -> bytes:
    """A loose record as it stands."""
    record = get_row(storage, EVENTS, fmt.event_key(thread, sequence))
    assert record is not None
    return record


def set_record(storage: Storage, thread: int, sequence: int, record: bytes | None) -> None:
    """Damage a log."""
    set_row(storage, EVENTS, fmt.event_key(thread, sequence), record)


def loose(storage: Storage, thread: int) -> dict[int, bytes]:
    """The loose records of a thread as they stand, by sequence."""
    found = ((fmt.read_event_key(key), record) for key, record in rows_of(storage, EVENTS).items())
    return {sequence: record for (number, sequence), record in found if number == thread}


def all_rows(storage: Storage) -> dict[tuple[str, bytes], bytes]:
    """Every row of a log: two logs with equal rows answer alike."""
    tables = (EVENTS, SEGMENTS, *DERIVED)
    return {(table, key): value for table in tables for key, value in rows_of(storage, table).items()}


def parts_of(storage: Storage, thread: int, last: int) -> dict[bytes, bytes]:
    """The rows that hold the parts of a segment, as they stand."""
    place = fmt.event_key(thread, last)
    return {key: part for key, part in rows_of(storage, SEGMENTS).items() if key.startswith(place)}


def get_segment(storage: Storage, thread: int, last: int) -> bytes:
    """A segment as it stands."""
    return b"".join(parts_of(storage, thread, last).values())


def set_segment(storage: Storage, thread: int, last: int, segment: bytes | None) -> None:
    """Put bytes in the place of a segment, cut as a segment is; None removes it."""
    for key in parts_of(storage, thread, last):
        set_row(storage, SEGMENTS, key, None)
    for key, part in cut(thread, last, segment or b""):
        set_row(storage, SEGMENTS, key, part)


def repack(storage: Storage, thread: int, bases: Mapping[int, bytes | memoryview]) -> None:
    """Pack all segments of a thread again, with these states in the place of those that they keep."""
    assert isinstance(storage, TableStorage)
    storage._held = Held()
    with storage._writing() as (tables, _):
        records = Records(tables, Held(), committed=False)
        group, packed, size = Group(), dict[int, bytes](), 0
        for first, last, old_bytes in records.sealed(thread):
            kept = {at: state for at, state in bases.items() if first <= at <= last}
            packed[last], group = pack(thread, [*records.scan(thread, first - 1, last + 1)], kept, group)
            size += len(packed[last]) - old_bytes
        start, stop = fmt.event_key(thread, 0), fmt.event_key(thread + 1, 0)
        for key in [key for key, _ in tables.scan(SEGMENTS, start, stop)]:
            tables.delete(SEGMENTS, key)
        for last, segment in packed.items():
            for key, part in cut(thread, last, segment):
                tables.put(SEGMENTS, key, part)
        row = unpack_thread(tables.get(THREADS, fmt.number_key(thread)) or b"")
        row.stored_bytes += size
        tables.put(THREADS, fmt.number_key(thread), pack_row(row))


def drop_bases(storage: Storage) -> int:
    """Pack all segments again without the states that they keep to begin reading at; how many there were."""
    dropped = 0
    for thread in storage.event_threads():
        kept = storage.bases(thread)
        if kept:
            repack(storage, thread, {})
            dropped += len(kept)
    return dropped


class FailingStorage(MemoryStorage):
    """A log in memory whose commits can be made to wait, and to fail as a whole after all was done.

    Attributes:
        failure: Asked with the operations of each group; what it returns is raised.
        groups: The operations of each commit that was tried.
        gate: A commit does not begin while this is held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: Callable[[Several[Operation]], BaseException | None] = lambda operations: None
        self.groups: list[list[Operation]] = []
        self.gate = threading.Lock()

    def commit(self, operations: Several[Operation]) -> list[Outcome]:
        with self.gate:
            self.groups.append(list(operations))
            return super().commit(operations)

    @contextmanager
    def _writing(self) -> Iterator[tuple[Tables, int]]:
        with super()._writing() as writing:
            yield writing
            error = self.failure(self.groups[-1]) if self.groups else None
            if error is not None:
                raise error
