"""The seam between the log and what keeps its bytes: whole operations, never cursors or transactions.

Each method is one round trip and sees one consistent moment of the log; none leaves anything open behind
it.  `lmdb` is the engine for files, `memory.py` the small one for `:memory:`, and one contract suite
(tests/unit/test_storage.py) holds the two against each other.

Storage knows records by their header, and a step by the parent that it names.  It numbers threads and
lanes, gives each event its sequence and each append its commit number, and keeps the derived tables in step
with the events.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Several
from typing import Annotated, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import CorruptionError, StepwellError
from stepwell.events import Commit, Label, Sequence
from stepwell.storage.occupancy import Occupancy


class ItemChange(NamedTuple):
    """What an event says of an item, as storage needs it.

    Attributes:
        key: Namespace and key, as `item_key` makes them.
        name: Namespace and key themselves, if `key` does not say them in full.
        value: Type and payload, if they are small.
        expires_at: Unix time in nanoseconds; 0 for never.
        sequence: Of a touch, the version that it is about.
        expired_by: Of a deletion, the time by which it must expire; 0 for any.
        commit: The commit that the event came with first; 0 for the one that it comes with now.
        born_at: When the item was created; 0 if that is now, or known.
    """

    key: bytes
    name: tuple[tuple[str, ...], str] | None = None
    value: tuple[str, bytes] | None = None
    expires_at: int = 0
    sequence: int = 0
    expired_by: int = 0
    commit: int = 0
    born_at: int = 0


class Item(msgspec.Struct, frozen=True, gc=False):
    """What stood under a key at some moment.

    Attributes:
        namespace: Where it is filed.
        key: Its key there.
        value: Type and payload.
        created_at: Unix time in nanoseconds of the put that created it.
        updated_at: Unix time in nanoseconds of the put of this value.
        commit: The commit of that put.
        sequence: Where it stands among all changes of items.
        expires_at: Unix time in nanoseconds from which it may be removed; None for never.
        attachments: What was put beside the value, type and payload by name; empty unless it was asked for.
    """

    namespace: tuple[str, ...]
    key: str
    value: tuple[str, bytes]
    created_at: int
    updated_at: int
    commit: Commit
    sequence: Sequence
    expires_at: int | None
    attachments: Mapping[str, tuple[str, bytes]] = {}


ItemName: TypeAlias = tuple[tuple[str, ...], str]
"""Namespace and key of an item."""


class Deletion(NamedTuple):
    """That an item was deleted.

    Attributes:
        namespace: Where it was filed.
        key: Its key there.
        deleted_at: Unix time in nanoseconds.
        commit: The commit of the deletion.
        sequence: Where it stands among all changes of items.
    """

    namespace: tuple[str, ...]
    key: str
    deleted_at: int
    commit: Commit
    sequence: Sequence


class Entry(NamedTuple):
    """An event on its way into the log.

    Attributes:
        lane: Name of its lane; None for an event about the thread as a whole.
        kind: Kind of record.
        body: The body as it will stand on disk.
        form: Which form that is.
        digest: `body_digest` of the plain body.
        created_at: Unix time in nanoseconds.
        base: For a step, the step that its patch applies to.
        step_key: For a step and for writes, the step's id in its fixed-width form.
        hidden: For a step, that lists pass over it.
        status: For a step and for writes, what the thread has come to, as a number; 0 says nothing.
        labels: For a change of labels, what is changed.
        item: For an event about an item, what it says of it.
    """

    lane: str | None
    kind: int
    body: bytes
    form: int
    digest: bytes
    created_at: int
    base: int = 0
    step_key: bytes = b""
    hidden: bool = False
    status: int = fmt.STATUS_UNKNOWN
    labels: Mapping[str, Label | None] | None = None
    item: ItemChange | None = None


class Committed(NamedTuple):
    """What became of an operation.

    Attributes:
        number: The thread's number; 0 if nothing was changed.
        commit: The commit number.
        sequences: Where each entry of an append stands.
        loose_events: How many events of the thread are in no segment.
        loose_bytes: How many bytes their records have.
    """

    number: int
    commit: int
    sequences: tuple[int, ...]
    loose_events: int = 0
    loose_bytes: int = 0


class Append(NamedTuple):
    """Add events to the end of a thread, all or none; a thread that does not exist is opened.

    Attributes:
        thread_id: The thread.
        entries: Makes the entries at the last moment, given the thread's number (0: it is new) and the
            sequence of its oldest event: what they refer to must lie there.  May be called more than once.
        expected_head: The last sequence that the thread must have (0: it must not exist); None for any.
        incarnation: The thread number that the entries' bases belong to; 0 for any.
        restart: Remove everything that the thread had: the entries are what it keeps.
        first: Of a thread that does not exist, the sequence of the first entry, which is the event that opens it;
            0 opens it at sequence 1, before the entries.
        placed: Told None when a group begins, and where the entries stand as soon as that is known, which
            is before it is durable: the group may still fail, and begin again.
        labels: What labels the thread shall have, or with None not have; those that it has or lacks already cost
            nothing.
        created_at: Unix time in nanoseconds, of a change of labels.
        stored_bytes: Tells how many bytes the records of the entries have that were made last; 0 if nobody counts.
    """

    thread_id: str
    entries: Callable[[int, int], Several[Entry]]
    expected_head: int | None = None
    incarnation: int = 0
    restart: bool = False
    first: int = 0
    placed: Callable[[Committed | None], None] | None = None
    labels: Mapping[str, Label | None] = {}
    created_at: int = 0
    stored_bytes: Callable[[], int] = int


class Delete(NamedTuple):
    """Remove a thread, all but a tombstone; its id is free again.  A thread that does not exist is no error."""

    thread_id: str
    created_at: int


class Copy(NamedTuple):
    """Copy all of a thread into a new one.  A source that does not exist is no error."""

    source_id: str
    target_id: str
    created_at: int


class Seal(NamedTuple):
    """Put the oldest loose events of a thread into a segment, and keep some states to read from.

    Refused (without error, nothing is changed) if they are not its oldest loose events any more.

    Attributes:
        thread_id: The thread.
        number: Its number.
        first: Sequence of the first of the events.
        last: Sequence of the last.
        segment: The segment that holds them.
    """

    thread_id: str
    number: int
    first: int
    last: int
    segment: bytes


class Rewrite(NamedTuple):
    """Decide what to do with a thread while nobody else can change it.

    Everybody who writes waits meanwhile: this is for what could not be decided beforehand.

    Attributes:
        thread_id: The thread.
        decide: Given the thread's row, says what to do; None does nothing.  It may read the log, which is as
            it was before the group that this operation is alone in.
    """

    thread_id: str
    decide: Callable[[ThreadRow], Append | Delete | None]


Operation: TypeAlias = Append | Delete | Copy | Rewrite | Seal


Outcome: TypeAlias = Committed | StepwellError


Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""What a derived row may say: what is negative or larger is no number, sequence, count, size or time of a log."""

StatusNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=fmt.STATUS_DONE)]


class ThreadRow(msgspec.Struct, array_like=True, gc=False):
    """The catalogue's row of a thread.

    Attributes:
        number: The thread's number, never used again.
        name_hash: Key of the thread's id among the names.
        first: Sequence of its oldest event.
        last: Sequence of its newest event.
        chain: The hash chain after its newest event.
        lanes: Number of lanes opened.
        steps: Number of steps that lists show.
        writes: Number of `WritesRecorded` events.
        sealed: Sequence of its newest event that is in a segment; 0 if none is.
        loose_bytes: Bytes of the records that are in no segment.
        stored_bytes: Bytes of those and of the segments.
        created_at: Unix time in nanoseconds of its first event.
        updated_at: Unix time in nanoseconds of its newest event.
        deleted: Whether only the tombstone is left.
        status: What it has come to, as the heads of its lanes and the writes for them say, as a number; 0 if none does.
        commit: Commit number of its newest append.
        labels: Its labels, in the order of their names.
    """

    number: Number
    name_hash: bytes
    first: Number = 1
    last: Number = 0
    chain: bytes = fmt.CHAIN_SEED
    lanes: Number = 0
    steps: Number = 0
    writes: Number = 0
    sealed: Number = 0
    loose_bytes: Number = 0
    stored_bytes: Number = 0
    created_at: Number = 0
    updated_at: Number = 0
    deleted: bool = False
    status: StatusNumber = fmt.STATUS_UNKNOWN
    commit: Number = 0
    labels: dict[str, Label] = {}


class LaneRow(msgspec.Struct, array_like=True, gc=False):
    """One lane of a thread.

    Attributes:
        name_hash: Key of the lane's name among the names.
        head: The head step: the newest event that carries its id.
        tip: The head step when it was committed first; the chain of `previous` starts here.
        steps: Number of steps that lists show.
        replaced: Number of events that committed a step again.
    """

    name_hash: bytes
    head: Number = 0
    tip: Number = 0
    steps: Number = 0
    replaced: Number = 0


class FeedRow(NamedTuple):
    """One append, in the order of the whole log."""

    commit: int
    thread: int
    first: int
    last: int


class Found(NamedTuple):
    """Where the events of one step id stand.

    Attributes:
        step: The newest event that commits it; 0 if there is none.
        original: The first event that commits it.
        hidden: Whether that event is hidden.
        writes: The events that record writes for it, in commit order.
        status: What the newest of these that says so says that the thread has come to, as a number.
    """

    step: int
    original: int
    hidden: bool
    writes: tuple[int, ...]
    status: int = fmt.STATUS_UNKNOWN


class Query(NamedTuple):
    """Which threads a list shows, and in which order.

    Attributes:
        limit: At most so many.
        prefix: What their ids begin with.
        statuses: What they may have come to, as numbers; None for anything.
        labels: The labels that they have; None stands for none of that name.
        since: Unix time in nanoseconds: only those whose newest event is not older.
        before: Only those whose newest event is older.
        newest_first: Whether the thread that was appended to last comes first, or last.
        edge: Only those whose newest append comes before this commit, or after it where the newest are last.
    """

    limit: int
    prefix: str = ""
    statuses: frozenset[int] | None = None
    labels: Mapping[str, Label | None] = {}
    since: int = 0
    before: int = 1 << 62
    newest_first: bool = True
    edge: int = 1 << 62


class Surveyed(NamedTuple):
    """A record as it was found.

    Attributes:
        sequence: Where it stands; of a damaged segment, where that ends.
        loose_bytes: How many bytes it takes among the loose ones; 0 if it is in a segment.
        record: The record, or what is wrong with it.
    """

    sequence: int
    loose_bytes: int
    record: Record | StepwellError


class Group(NamedTuple):
    """Segments that the next one may continue.

    Attributes:
        first: Sequence of their first event; 0 if there is none.
        plain: Their plain blocks, one after the other.
    """

    first: int = 0
    plain: bytes = b""


class Branches(NamedTuple):
    """What some states are folded from.

    Attributes:
        records: The records of steps, by sequence.
        bases: States to begin with, by sequence, in msgpack.
    """

    records: dict[int, Record]
    bases: dict[int, memoryview]


class Compaction(NamedTuple):
    """What writing a log anew has saved.

    Attributes:
        before_bytes: What the file took of the disk.
        after_bytes: What the new one takes.
    """

    before_bytes: int
    after_bytes: int


class Storage(Protocol):
    """What an engine must do.

    Thread numbers are positive.  Every method raises ClosedError after `close`, and whatever gives records
    proves them first: CorruptionError names the one that is not what was written.
    """

    @property
    def path(self) -> str:
        """Where the log lies, for messages."""

    @property
    def read_only(self) -> bool:
        """Whether `commit` is refused."""

    @property
    def log_id(self) -> bytes:
        """16 random bytes that tell this log from any other."""

    def commit(self, operations: Several[Operation]) -> list[Outcome]:
        """Carry out operations in order and make them durable together.

        An operation that is refused changes nothing and leaves the others alone.  If the whole group
        fails, nothing of it is in the log.

        Raises:
            CapacityError: There is no room; nothing was changed.
        """

    def thread(self, thread_id: str) -> ThreadRow | None:
        """The catalogue row of a thread."""

    def threads(self, after: int, limit: int) -> list[tuple[str, ThreadRow]]:
        """Up to `limit` threads with numbers above `after`, in order of number."""

    def catalogue(self, query: Query) -> list[tuple[str, ThreadRow]]:
        """The first threads that a query asks for; none only if there are none."""

    def lane(self, thread: int, name: str) -> tuple[int, LaneRow] | None:
        """Number and row of a lane."""

    def lanes(self, thread: int, after: int, limit: int) -> list[tuple[int, str, LaneRow]]:
        """Up to `limit` lanes with numbers above `after`: number, name, row."""

    def lane_names(self, thread: int, numbers: set[int], since: int) -> dict[int, str]:
        """The names of lanes, as they were numbered when an event stood at a sequence.

        Raises:
            ConflictError: The thread was pruned or deleted since, and its lanes are numbered anew.
        """

    def read(self, thread: int, sequences: Several[int]) -> dict[int, Record]:
        """The records at some sequences; those that are not there are left out."""

    def payloads(self, thread: int, sequences: Several[int]) -> dict[int, memoryview]:
        """The payloads of some events; those that are not there are left out."""

    def branches(self, thread: int, sequences: Several[int], known: frozenset[int]) -> Branches:
        """What some states are folded from: the records of the steps that they are based on.

        Each branch is followed down to a known state, to one that is kept as a base, or to the empty state.
        """

    def scan(self, thread: int, after: int, before: int, limit: int, *, reverse: bool) -> list[Record]:
        """Up to `limit` records between two sequences, both excluded."""

    def survey(self, thread: int, after: int, limit: int) -> list[Surveyed]:
        """Up to `limit` records after a sequence, or what is wrong with them, in order; for audit.

        A damaged segment is told once, at its last sequence.
        """

    def steps(self, thread: int, lane: int | None, before: int, limit: int) -> list[Record]:
        """Up to `limit` steps that lists show, newest first, each where it was committed first.

        Args:
            thread: Number of the thread.
            lane: Number of the lane; None for all.
            before: Only steps before this sequence; 0 starts at the newest.
            limit: How many.
        """

    def find(self, thread: int, lane: int, step_keys: Several[bytes]) -> list[Found]:
        """Where the events of some step ids stand, one answer for each."""

    def ancestry(self, thread: int, lane: int, step_key: bytes, limit: int) -> list[tuple[bytes, Found]]:
        """Up to `limit` steps that a step descends from, nearest first, as far as they are in the log.

        A step may have been committed again under its own descendant: then the line comes round again.
        """

    def feed(self, after: int, limit: int) -> list[FeedRow]:
        """Up to `limit` appends with commit numbers above `after`, in order."""

    def newest(self) -> int:
        """The newest commit number; 0 in an empty log."""

    def moment(self) -> int:
        """A number that is another one after each commit, of any process; for who asks often.

        Whatever is read after it was given shows that moment or a later one.
        """

    def occupancy(self) -> Occupancy:
        """What the log takes, and who reads it; for any size of log in about the same time."""

    def items(self, names: Several[ItemName], at: int | None, *, attachments: bool) -> list[Item | None]:
        """Some items, as they are or as they were after a commit."""

    def scan_items(
        self, prefix: tuple[str, ...], after: ItemName | None, at: int | None, limit: int, *, attachments: bool
    ) -> list[Item]:
        """Up to `limit` items whose namespaces begin with some parts, in the order of keys; none only at the end."""

    def attached(self, sequences: Several[int], name: str) -> list[bytes | None]:
        """What was put beside some values under a name, by where they were put; None where there is nothing (more)."""

    def namespaces(self, prefix: tuple[str, ...], after: tuple[str, ...] | None, limit: int) -> list[tuple[str, ...]]:
        """Up to `limit` namespaces that hold items and begin with some parts, in the order of keys."""

    def item_versions(self, name: ItemName, before: int, limit: int, *, attachments: bool) -> list[Item | Deletion]:
        """Up to `limit` versions of an item with sequences below `before`, newest first."""

    def item_version(self) -> int:
        """Sequence of the last change of any item; 0 if there was none."""

    def expired_items(self, by: int, limit: int) -> list[ItemName]:
        """Up to `limit` items that expire by a time, those first that expire first."""

    def item_commit_by(self, time: int) -> int:
        """The commit of the last change of an item by a time; 0 if there is none."""

    def derived(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Every row of every derived table: table, key, value; for audit."""

    def segments(self, thread: int) -> list[tuple[int, int, int]]:
        """First sequence, last sequence and bytes of each segment of a thread, in order."""

    def last_group(self, thread: int) -> Group:
        """What the next segment of a thread may continue."""

    def bases(self, thread: int) -> dict[int, memoryview]:
        """The states that are kept of a thread, by sequence; for audit."""

    def event_threads(self) -> list[int]:
        """The numbers of all threads that have events, found from the events themselves; for audit."""

    def give_back(self, least_bytes: int = 0, *, in_background: bool = False) -> int:
        """Give room that the log does not need any more back to the file system; what it holds stays as it is.

        Room that a reader may still look at stays.  Where the system cannot do it, nothing happens.

        Args:
            least_bytes: Do nothing unless there is so much to give back.
            in_background: Do nothing unless it is a quarter of what the log takes, let those who append go first,
                and leave a little for what they append next.

        Returns:
            How many bytes were given back.
        """

    def compact(self, into: str) -> Compaction:
        """Write what the log holds now into a new file, without free pages; see `Log.compact`."""

    def begin_closing(self, is_own: Callable[[], bool]) -> None:
        """Refuse the calls of other threads from now on: many that read without a pause could keep out who closes.

        Args:
            is_own: Whether it is one of the log's own threads that asks; they may finish what they do.
        """

    def close(self) -> None:
        """Give back what the engine holds.  Closing twice is harmless."""


class RawStorage(Storage, Protocol):
    """A storage that is filled row by row: what making a log anew needs."""

    def restore(self, rows: Iterable[tuple[str, bytes, bytes | None]]) -> None:
        """Set rows of tables as they are, unchecked and all together; None removes a row.

        For rows that were proven: it is a log only when all of them are there.
        """

    def stored(self, table: str, start: bytes = ..., stop: bytes = ...) -> Iterator[tuple[bytes, bytes]]:
        """Rows of a table as they are, with start <= key < stop."""


# --- rows as bytes: one form for every engine, so that audit can compare them ---

_encoder = msgspec.msgpack.Encoder()
_Row = TypeVar("_Row")
_thread_row = msgspec.msgpack.Decoder(ThreadRow)
_lane_row = msgspec.msgpack.Decoder(LaneRow)


def pack_row(row: ThreadRow | LaneRow) -> bytes:
    """A row as bytes."""
    return _encoder.encode(row)


def decode_row(decoder: msgspec.msgpack.Decoder[_Row], data: bytes, table: str, thread: int | None = None) -> _Row:
    """What a row of a derived table says.

    Args:
        decoder: Of the rows of this table.
        data: The row.
        table: The table's name.
        thread: Number of the thread that the row is about, where that is known.

    Raises:
        CorruptionError: It is no row of that table.
    """
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"a row of the table {table} cannot be decoded: {error}", thread=thread) from error


def unpack_thread(data: bytes, number: int | None = None) -> ThreadRow:
    """A catalogue row from bytes, of the thread with this number if one is given; raises as `decode_row` does."""
    row = decode_row(_thread_row, data, "threads", number)
    if number is not None and row.number != number:
        raise CorruptionError(f"a row of the table threads says number {row.number}", thread=number)
    return row


def unpack_lane(data: bytes, thread: int | None = None) -> LaneRow:
    """A lane's row from bytes; raises as `decode_row` does."""
    return decode_row(_lane_row, data, "lanes", thread)


def pack_name(number: int, name: bytes) -> bytes:
    """Value of `names`: what the name stands for, and the name."""
    return fmt.number_key(number) + name


def unpack_name(data: bytes, owner: int = 0) -> tuple[int, str]:
    """Inverse of `pack_name`.

    Raises:
        CorruptionError: It is no row of names; of thread `owner`, unless that is 0.
    """
    try:
        return fmt.read_number(data[:8]), data[8:].decode()
    except (struct.error, UnicodeDecodeError) as error:
        reason = f"a row of the table names cannot be decoded: {error}"
        raise CorruptionError(reason, thread=owner or None) from error
