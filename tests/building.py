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
from stepwell.storage import Append, Operation, Outcome, Seal, Storage
from stepwell.storage.held import Held
from stepwell.storage.memory import MemoryStorage
from stepwell.storage.ordered import TableStorage
from stepwell.storage.segments import pack
from stepwell.storage.tables import AFTER_ALL, BASES, DERIVED, EVENTS, SEGMENTS, Tables


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
    """The storage's operation that puts the loose events of a thread, up to one of them, into a segment."""
    row = storage.thread(thread_id)
    assert row is not None
    first = max(row.sealed, row.first - 1) + 1
    last = row.last if last is None else last
    records = storage.scan(row.number, first - 1, last + 1, 1 << 30, reverse=False)
    return Seal(thread_id, row.number, first, last, pack(row.number, records), bases or {})


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
    with storage._writing() as tables:
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
    tables = (EVENTS, SEGMENTS, BASES, *DERIVED)
    return {(table, key): value for table in tables for key, value in rows_of(storage, table).items()}


def drop_bases(storage: Storage) -> int:
    """Remove every state that is kept to begin reading at; how many there were."""
    rows = rows_of(storage, BASES)
    for key in rows:
        set_row(storage, BASES, key, None)
    return len(rows)


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
    def _writing(self) -> Iterator[Tables]:
        with super()._writing() as tables:
            yield tables
            error = self.failure(self.groups[-1]) if self.groups else None
            if error is not None:
                raise error
