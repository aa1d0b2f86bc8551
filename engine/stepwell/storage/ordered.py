"""The Storage protocol over any engine that offers ordered tables: what each question reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final

from stepwell import codec
from stepwell import format as fmt
from stepwell.cache import Cache
from stepwell.codec import Record
from stepwell.errors import ConflictError, CorruptionError
from stepwell.storage import (
    Append,
    Branches,
    Deletion,
    FeedRow,
    Found,
    Group,
    Item,
    ItemName,
    LaneRow,
    Operation,
    Outcome,
    Query,
    Surveyed,
    ThreadRow,
    catalogue,
    unpack_lane,
    unpack_thread,
)
from stepwell.storage import feed as feeding
from stepwell.storage.commit import Commit
from stepwell.storage.held import Held
from stepwell.storage.index import find_step
from stepwell.storage.items import Items
from stepwell.storage.records import Records
from stepwell.storage.remembered import Left, Remembered
from stepwell.storage.tables import (
    AFTER_ALL,
    DERIVED,
    EVENTS,
    LANES,
    PAGE_BYTES,
    SEGMENTS,
    THREAD_NAMES,
    THREADS,
    Tables,
    find_lane,
    find_thread,
    first_page,
    load_lane,
    load_name,
    prefix_end,
)

_AFTER_ALL_SEQUENCES: Final = 1 << 63


class TableStorage(ABC):
    """The Storage protocol over an engine's tables."""

    def __init__(self, cache: Cache | None = None) -> None:
        self._held = Held(cache)
        self._left: Left | None = None

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Tables]:
        """A transaction that sees one moment and changes nothing."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[tuple[Tables, int]]:
        """A transaction that is durable when its block ends, and undone if the block raises; and its number."""

    def commit(self, operations: Several[Operation]) -> list[Outcome]:
        with self._writing() as (tables, moment):
            outcomes, left = self._carry_out(tables, operations, moment)
        self._left = left
        return outcomes

    def _carry_out(self, tables: Tables, operations: Several[Operation], moment: int) -> tuple[list[Outcome], Left]:
        """Change the tables as a group of operations asks for.

        Args:
            tables: The tables.
            operations: The group.
            moment: Number of the transaction.

        Returns:
            What became of each, and what is to be remembered as `_left` if the transaction is committed.
        """
        # failpoint: group-begun
        left, self._left = self._left, None
        rows = Remembered() if left is None else left.at(moment)
        for operation in operations:
            if isinstance(operation, Append) and operation.placed is not None:
                operation.placed(None)
        commit = Commit(tables, self._held, rows)
        outcomes = [commit.attempt(operation) for operation in operations]
        changed = commit.finish()
        # failpoint: group-put
        # A transaction that changed nothing is none: the next one has its number.
        return outcomes, Left(moment if changed else moment - 1, rows)

    def restore(self, rows: Iterable[tuple[str, bytes, bytes | None]]) -> None:
        with self._writing() as (tables, _):
            for table, key, value in rows:
                if value is None:
                    tables.delete(table, key)
                else:
                    tables.put(table, key, value)

    def thread(self, thread_id: str) -> ThreadRow | None:
        with self._reading() as tables:
            return find_thread(tables, thread_id)

    def threads(self, after: int, limit: int) -> list[tuple[str, ThreadRow]]:
        found: list[tuple[str, ThreadRow]] = []
        with self._reading() as tables:
            for key, data in tables.scan(THREADS, fmt.number_key(after + 1), AFTER_ALL):
                if len(found) >= limit:
                    break
                row = unpack_thread(data, fmt.read_number(key))
                if not row.deleted:
                    found.append((load_name(tables, THREAD_NAMES, row.name_hash), row))
        return found

    def catalogue(self, query: Query) -> list[tuple[str, ThreadRow]]:
        with self._reading() as tables:
            return catalogue.find(tables, query)

    def lane(self, thread: int, name: str) -> tuple[int, LaneRow] | None:
        with self._reading() as tables:
            number = find_lane(tables, thread, name)
            return None if number is None else (number, load_lane(tables, thread, number))

    def lanes(self, thread: int, after: int, limit: int) -> list[tuple[int, str, LaneRow]]:
        found: list[tuple[int, str, LaneRow]] = []
        with self._reading() as tables:
            start, stop = fmt.lane_key(thread, after + 1), prefix_end(fmt.number_key(thread))
            for key, data in tables.scan(LANES, start, stop):
                if len(found) >= limit:
                    break
                row = unpack_lane(data, thread)
                found.append((fmt.read_lane_key(key)[1], load_name(tables, thread, row.name_hash), row))
        return found

    def lane_names(self, thread: int, numbers: set[int], since: int) -> dict[int, str]:
        with self._reading() as tables:
            data = tables.get(THREADS, fmt.number_key(thread))
            first = 0 if data is None else unpack_thread(data, thread).first
            if since < first:
                raise ConflictError(
                    f"thread {thread} was pruned or deleted while it was read; read it again",
                    thread=str(thread),
                    expected=since,
                    actual=first,
                )
            return {
                number: load_name(tables, thread, load_lane(tables, thread, number).name_hash)
                for number in numbers
                if number and tables.get(LANES, fmt.lane_key(thread, number)) is not None
            }

    def read(self, thread: int, sequences: Several[int]) -> dict[int, Record]:
        with self._reading() as tables:
            records = Records(tables, self._held)
            found = ((sequence, records.get(thread, sequence)) for sequence in sequences)
            return {sequence: record for sequence, record in found if record is not None}

    def payloads(self, thread: int, sequences: Several[int]) -> dict[int, memoryview]:
        with self._reading() as tables:
            return Records(tables, self._held).payloads(thread, sequences)

    def branches(self, thread: int, sequences: Several[int], known: frozenset[int]) -> Branches:
        found = Branches({}, {})
        with self._reading() as tables:
            records = Records(tables, self._held)
            for sequence in sequences:
                following = sequence
                while following and following not in found.records and following not in known:
                    record = records.get(thread, following)
                    if record is None:
                        break
                    state = records.base(thread, following) if record.is_sealed else None
                    if state is not None:
                        found.bases[following] = state
                        break
                    found.records[following] = record
                    base = record.header.base
                    # A base lies before what is based on it, or a damaged record could lead in a circle.
                    following = base if base < following else 0
        return found

    def scan(self, thread: int, after: int, before: int, limit: int, *, reverse: bool) -> list[Record]:
        found: list[Record] = []
        size = 0
        with self._reading() as tables:
            records = Records(tables, self._held, once=True)
            for record in islice(_all_records(tables, records, thread, after, before, reverse), limit):
                found.append(record)
                size += record.size
                if size > PAGE_BYTES:
                    break
        return found

    def survey(self, thread: int, after: int, limit: int) -> list[Surveyed]:
        with self._reading() as tables:
            found: list[Surveyed] = []
            size = 0
            for surveyed in islice(Records(tables, Held()).survey(thread, after), limit):
                found.append(surveyed)
                size += surveyed.record.size if isinstance(surveyed.record, Record) else 0
                if size > PAGE_BYTES:
                    break
            return found

    def last_group(self, thread: int) -> Group:
        with self._reading() as tables:
            # Who seals writes, and need not hold what only readers ask for.
            return Records(tables, Held()).last_group(thread)

    def steps(self, thread: int, lane: int | None, before: int, limit: int) -> list[Record]:
        found: list[Record] = []
        with self._reading() as tables:
            size = 0
            for record in islice(self._steps(tables, thread, lane, before), limit):
                found.append(record)
                size += record.size
                if size > PAGE_BYTES:
                    break
        return found

    def _steps(self, tables: Tables, thread: int, lane: int | None, before: int) -> Iterator[Record]:
        records = Records(tables, self._held)
        if lane is None:
            yield from filter(_shown, _all_records(tables, records, thread, 0, before or _AFTER_ALL_SEQUENCES, True))
            return
        data = tables.get(LANES, fmt.lane_key(thread, lane))
        if data is None:
            raise ConflictError(
                f"lane {lane} of thread {thread} was pruned or deleted while it was read; read it again",
                thread=str(thread),
                expected=lane,
                actual=None,
            )
        following = unpack_lane(data, thread).tip
        if before:
            # A page ends at a step of this lane: going on from there saves the walk from the tip.
            page_end = records.get(thread, before)
            if page_end is not None and page_end.header.lane == lane and _shown(page_end):
                following = page_end.header.previous
        while following:
            record = records.existing(thread, following)
            if not _shown(record) or record.header.lane != lane:
                raise CorruptionError(f"it is no step of lane {lane}", thread=thread, sequence=following)
            if not before or following < before:
                yield record
            previous = record.header.previous
            following = previous if previous < following else 0

    def find(self, thread: int, lane: int, step_keys: Several[bytes]) -> list[Found]:
        with self._reading() as tables:
            return [find_step(tables, thread, lane, step_key) for step_key in step_keys]

    def ancestry(self, thread: int, lane: int, step_key: bytes, limit: int) -> list[tuple[bytes, Found]]:
        found: list[tuple[bytes, Found]] = []
        with self._reading() as tables:
            records = Records(tables, self._held)
            step = find_step(tables, thread, lane, step_key)
            while step.step and len(found) < limit:
                parent_id = codec.parent_of(thread, records.existing(thread, step.step))
                if parent_id is None:
                    break
                parent_key = fmt.id_key(parent_id)
                step = find_step(tables, thread, lane, parent_key)
                if step.step:
                    found.append((parent_key, step))
        return found

    def feed(self, after: int, limit: int) -> list[FeedRow]:
        with self._reading() as tables:
            return [*islice(feeding.scan(tables, after), limit)]

    def newest(self) -> int:
        with self._reading() as tables:
            return feeding.read_end(tables).last

    def items(self, names: Several[ItemName], at: int | None, *, attachments: bool) -> list[Item | None]:
        with self._reading() as tables:
            items = Items(tables, Records(tables, self._held), attachments=attachments)
            return [items.get(name, at) for name in names]

    def scan_items(
        self, prefix: tuple[str, ...], after: ItemName | None, at: int | None, limit: int, *, attachments: bool
    ) -> list[Item]:
        found: list[Item] = []
        size = 0
        with self._reading() as tables:
            items = Items(tables, Records(tables, self._held), attachments=attachments)
            for item in items.scan(prefix, after, at, limit):
                found.append(item)
                size += len(item.value[1])
                if size > PAGE_BYTES:
                    break
        return found

    def attached(self, sequences: Several[int], name: str) -> list[bytes | None]:
        with self._reading() as tables:
            items = Items(tables, Records(tables, self._held, once=True))
            return [*items.attached(sequences, name)]

    def namespaces(self, prefix: tuple[str, ...], after: tuple[str, ...] | None, limit: int) -> list[tuple[str, ...]]:
        with self._reading() as tables:
            return [*islice(Items(tables, Records(tables, self._held)).namespaces(prefix, after), limit)]

    def item_versions(self, name: ItemName, before: int, limit: int, *, attachments: bool) -> list[Item | Deletion]:
        with self._reading() as tables:
            items = Items(tables, Records(tables, self._held), attachments=attachments)
            return [*islice(items.versions(name, before), limit)]

    def item_version(self) -> int:
        with self._reading() as tables:
            row = find_thread(tables, fmt.ITEMS_THREAD_ID)
            return 0 if row is None else row.last

    def expired_items(self, by: int, limit: int) -> list[ItemName]:
        with self._reading() as tables:
            return [*islice(Items(tables, Records(tables, self._held)).expired(by), limit)]

    def item_commit_by(self, time: int) -> int:
        with self._reading() as tables:
            return Items(tables, Records(tables, self._held)).commit_by(time)

    def derived(self) -> Iterator[tuple[str, bytes, bytes]]:
        for table in DERIVED:
            for key, value in self.stored(table):
                yield table, key, value

    def stored(self, table: str, start: bytes = b"", stop: bytes = AFTER_ALL) -> Iterator[tuple[bytes, bytes]]:
        while True:
            with self._reading() as tables:
                page = first_page(tables.scan(table, start, stop))
            if not page:
                return
            yield from page
            start = page[-1][0] + b"\0"

    def event_threads(self) -> list[int]:
        found: list[int] = []
        with self._reading() as tables:
            while True:
                start = fmt.event_key(found[-1] + 1 if found else 0, 0)
                keys = [tables.next_key(table, start, AFTER_ALL) for table in (EVENTS, SEGMENTS)]
                numbers = [fmt.read_event_key(key)[0] for key in keys if key is not None]
                if not numbers:
                    return found
                found.append(min(numbers))

    def segments(self, thread: int) -> list[tuple[int, int, int]]:
        with self._reading() as tables:
            return list(Records(tables, self._held).sealed(thread))

    def bases(self, thread: int) -> dict[int, memoryview]:
        with self._reading() as tables:
            return dict(Records(tables, Held()).bases(thread))


def _all_records(
    tables: Tables, records: Records, thread: int, after: int, before: int, reverse: bool
) -> Iterator[Record]:
    """The records between two sequences, both excluded; one that the catalogue says is there and is not is an error."""
    found = (records.scan_back if reverse else records.scan)(thread, after, before)
    data = tables.get(THREADS, fmt.number_key(thread))
    if data is None:
        yield from found
        return
    row = unpack_thread(data, thread)
    low, high = max(after + 1, row.first), min(before - 1, row.last)
    step, due = (-1, high) if reverse else (1, low)
    for record in found:
        if low <= due <= high and (record.sequence - due) * step > 0:
            break
        yield record
        if low <= record.sequence <= high:
            due = record.sequence + step
    if low <= due <= high:
        raise CorruptionError("the event is missing", thread=thread, sequence=due)


def _shown(record: Record) -> bool:
    """Whether a record is a step that lists show, where it was committed first."""
    return record.header.kind == fmt.KIND_STEP and not record.header.flags & (fmt.FLAG_REPLACES | fmt.FLAG_HIDDEN)
