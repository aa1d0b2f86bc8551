"""The tables of PostgresSaver and AsyncPostgresSaver, read row by row.

A checkpoint there is JSON, with small values in it, and other values stand in a table of their own under their
channel and version: a value that has the version that it had in the parent is not read again.

The connection is read-only.  Many checkpoints are asked for with one statement, which sees one moment, and come as
the rows of a COPY, the only form in which a driver hands on a row of megabytes as the server sends it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from stepwell.errors import UsageError
from stepwell.patch import array_header
from stepwell_langgraph.sources import Place, Reading, Readings, StoredCheckpoint, StoredWrite, Unreadable, Wanted
from stepwell_langgraph.whole import JSON, MSGPACK, VALUES, Span, Typed, as_msgpack

_PAGE_ROWS: Final = 256
_TABLES: Final[Mapping[str, frozenset[str]]] = {
    "checkpoints": frozenset(
        ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "checkpoint", "metadata")
    ),
    "checkpoint_blobs": frozenset(("thread_id", "checkpoint_ns", "channel", "version", "type", "blob")),
    "checkpoint_writes": frozenset(
        ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx", "channel", "type", "blob")
    ),
}
_EMPTY: Final = "empty"  # the type of a blob that stands for no value
_TASKS: Final = "__pregel_tasks"
_FIRST_WITH_TASKS: Final = 4  # checkpoints before this version leave their Sends among the writes of their parent

_THREADS: Final = """
SELECT thread_id, sum(checkpoints)::bigint FROM (
    SELECT thread_id, count(*) AS checkpoints, min(checkpoint_id COLLATE "C") AS first
    FROM checkpoints GROUP BY thread_id
    UNION ALL
    SELECT thread_id, 0, NULL FROM checkpoint_writes GROUP BY thread_id
) AS found GROUP BY thread_id ORDER BY min(first)
"""
_PLACES: Final = """
SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id FROM checkpoints
WHERE thread_id = %s ORDER BY checkpoint_id COLLATE "C"
"""
_WAITING: Final = """
SELECT DISTINCT checkpoint_ns, checkpoint_id FROM checkpoint_writes w
WHERE thread_id = %s AND NOT EXISTS (
    SELECT 1 FROM checkpoints c WHERE c.thread_id = w.thread_id
    AND c.checkpoint_ns = w.checkpoint_ns AND c.checkpoint_id = w.checkpoint_id
)
"""
# Every row is (place, part, number, four texts, bytes).  A checkpoint comes first, then its values, the Sends of its
# parent's tasks where its version wants them, and the writes that wait for it.  Values are joined as the saver joins
# them, so that a version in JSON means the row that it means to the saver.  OFFSET 0 keeps each table's part a question
# of its own, which is answered by the whole primary key: also where a database has no statistics (yet).
_PARTS: Final = """
COPY (
SELECT at.place, part.* FROM unnest(
    {namespaces}::text[], {ids}::text[], {whole}::boolean[], {from_parent}::boolean[]
) WITH ORDINALITY AS at(namespace, id, whole, from_parent, place)
LEFT JOIN LATERAL (
    SELECT checkpoint, metadata, parent_checkpoint_id, checkpoint -> 'channel_versions' AS versions FROM checkpoints
    WHERE at.whole AND thread_id = {thread} AND checkpoint_ns = at.namespace AND checkpoint_id = at.id OFFSET 0
) AS c ON true
LEFT JOIN LATERAL (
    SELECT checkpoint -> 'channel_versions' AS versions FROM checkpoints
    WHERE at.from_parent AND thread_id = {thread} AND checkpoint_ns = at.namespace
        AND checkpoint_id = c.parent_checkpoint_id OFFSET 0
) AS parent ON true
CROSS JOIN LATERAL (
    SELECT 0 AS part, 0::bigint AS number, c.checkpoint::text AS one, c.metadata::text AS two,
        NULL::text AS three, NULL::text AS four, NULL::bytea AS content
    WHERE c.checkpoint IS NOT NULL
    UNION ALL
    SELECT 1, is_kept::int, v.key, b.type, NULL, NULL, CASE WHEN is_kept THEN NULL ELSE b.blob END
    FROM jsonb_each(CASE jsonb_typeof(c.versions) WHEN 'object' THEN c.versions END) AS v
    CROSS JOIN LATERAL coalesce(parent.versions -> v.key = v.value, false) AS is_kept
    CROSS JOIN LATERAL (
        SELECT type, blob FROM checkpoint_blobs
        WHERE thread_id = {thread} AND checkpoint_ns = at.namespace AND channel = v.key
            AND version = v.value #>> '{{}}' OFFSET 0
    ) AS b
    UNION ALL
    SELECT 2, row_number() OVER (ORDER BY {task_path} COLLATE "C", task_id COLLATE "C", idx),
        type, NULL, NULL, NULL, blob
    FROM checkpoint_writes
    WHERE jsonb_typeof(c.checkpoint -> 'v') = 'number' AND c.checkpoint -> 'v' < {first_with_tasks}
        AND thread_id = {thread} AND checkpoint_ns = at.namespace AND checkpoint_id = c.parent_checkpoint_id
        AND channel = {tasks}
    UNION ALL
    (
        SELECT 3, idx, {task_path}, task_id, channel, type, blob FROM checkpoint_writes
        WHERE thread_id = {thread} AND checkpoint_ns = at.namespace AND checkpoint_id = at.id OFFSET 0
    )
) AS part
ORDER BY at.place, part.part, part.number
) TO STDOUT (FORMAT binary)
"""
_VALUE, _SEND, _WRITE = 1, 2, 3
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # stands before the first row
_ROW: Final = struct.Struct(">h iq ii iq")  # how many columns; the first three of them, each after its length
_LENGTH: Final = struct.Struct(">i")  # -1 is null
_SIZE: Final = "SELECT sum(pg_total_relation_size(name::regclass))::bigint FROM unnest(%s::text[]) AS name"
_COLUMNS: Final = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = ANY(current_schemas(false)) AND table_name = ANY(%s)
"""


class PostgresTables:
    """The checkpoints in a PostgreSQL database.

    Raises:
        UsageError: It cannot be reached, or is no saver's.
    """

    is_exact: Final = True

    def __init__(self, address: str) -> None:
        try:
            self._connection = psycopg.connect(address, autocommit=False, client_encoding="utf8")
        except psycopg.Error as error:
            raise UsageError(f"PostgreSQL cannot be reached: {error}") from error
        self._address = address
        self.label = _without_password(address)
        try:
            self._connection.read_only = True
            self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._has_task_path = self._check_tables()
            self._connection.rollback()
        except BaseException:
            self._connection.close()
            raise

    def size_bytes(self) -> int | None:
        for (size,) in self._rows(_SIZE, [*_TABLES]):
            return int(size)
        return None

    def threads(self) -> Iterator[tuple[str, int]]:
        yield from self._pages(_THREADS)

    def places(self, thread_id: str) -> Iterator[Place]:
        self._connection.rollback()  # from here on another moment
        for namespace, checkpoint_id, parent_id in self._pages(_PLACES, thread_id):
            yield Place(namespace, checkpoint_id, parent_id or None)
        for namespace, checkpoint_id in self._pages(_WAITING, thread_id):
            yield Place(namespace, checkpoint_id, None, exists=False)

    def read(self, thread_id: str, wanted: Sequence[Wanted]) -> Readings:
        done = 0
        try:
            for reading in self._readings(thread_id, wanted):
                yield reading
                done += 1
        except psycopg.Error as error:
            failure = self._unreadable(error)
        else:
            return
        if len(wanted) > 1:  # one of those that are left cannot be read, and the others can be by themselves
            for each in wanted[done:]:
                yield from self.read(thread_id, [each])
        elif wanted[0].whole:  # the writes may be well
            (writes,) = self.read(thread_id, [wanted[0]._replace(whole=False)])
            yield writes if isinstance(writes, Unreadable) else writes._replace(problems=[str(failure)])
        else:
            yield failure

    def twin(self) -> PostgresTables:
        return PostgresTables(self._address)

    def close(self) -> None:
        self._connection.close()

    def _readings(self, thread_id: str, wanted: Sequence[Wanted]) -> Iterator[Reading]:
        rows = self._parts(thread_id, wanted)
        by_place = groupby(rows, attrgetter("place"))
        found = next(by_place, None)
        for number, (place, whole, _) in enumerate(wanted, 1):
            parts: list[_Part] = []
            if found is not None and found[0] == number:
                parts = [*found[1]]
                found = None
            yield _reading(place, parts, whole=whole and place.exists)
            del parts
            if found is None:
                found = next(by_place, None)

    def _parts(self, thread_id: str, wanted: Sequence[Wanted]) -> Iterator[_Part]:
        """What is stored of some places, in their order, each numbered from 1."""
        places = [each.place for each in wanted]
        query = sql.SQL(_PARTS).format(
            thread=thread_id,
            namespaces=[place.namespace for place in places],
            ids=[place.checkpoint_id for place in places],
            whole=[each.whole and each.place.exists for each in wanted],
            from_parent=[each.from_parent for each in wanted],
            task_path=sql.SQL("task_path" if self._has_task_path else "''::text"),
            tasks=_TASKS,
            first_with_tasks=Jsonb(_FIRST_WITH_TASKS),
        )
        self._connection.rollback()  # from here on another moment
        with self._connection.cursor() as cursor, cursor.copy(query) as rows:
            for number, row in enumerate(rows):
                part = _part(row, len(_COPY_HEADER) if number == 0 else 0)
                if part is not None:
                    yield part

    def _rows(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that gives few, or one large one."""
        try:
            with self._connection.cursor(binary=True) as cursor:
                cursor.execute(_trusted(query), values)
                yield from cursor
        except psycopg.Error as error:
            raise self._unreadable(error) from error

    def _pages(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that may give very many, some at a time."""
        try:
            with self._connection.cursor("stepwell_import") as cursor:
                cursor.itersize = _PAGE_ROWS
                cursor.execute(_trusted(query), values)
                yield from cursor
        except psycopg.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> Unreadable:
        if not self._connection.closed:
            self._connection.rollback()  # after an error, a transaction answers nothing any more
        return Unreadable(f"PostgreSQL cannot read it: {str(error).strip()}")

    def _check_tables(self) -> bool:
        columns: dict[str, set[str]] = {}
        for table, column in self._rows(_COLUMNS, [*_TABLES]):
            columns.setdefault(table, set()).add(column)
        for table, needed in _TABLES.items():
            missing = sorted(needed - columns.get(table, set()))
            if missing:
                raise UsageError(
                    f"the table {table} in {self.label} has no {', '.join(missing)}: it is not there, or of a version "
                    "of PostgresSaver that is not known; call setup() of the newest once, or import from your saver"
                )
        return "task_path" in columns["checkpoint_writes"]


def _trusted(query: str) -> sql.SQL:
    """A query of this module; what varies in it goes in as values."""
    text: LiteralString = query
    return sql.SQL(text)


def _object(what: str, text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the {what} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unreadable(f"the {what} is no JSON object")
    return found


class _Part(NamedTuple):
    """A row of what is stored of a place; what its texts mean depends on which part it is."""

    place: int
    part: int
    number: int
    texts: tuple[str | None, ...]
    content: bytes


def _part(row: bytes | bytearray | memoryview, at: int) -> _Part | None:
    """A row of a COPY; None for what ends it."""
    if len(row) - at < _ROW.size:
        return None
    _, _, place, _, part, _, number = _ROW.unpack_from(row, at)
    at += _ROW.size
    values: list[bytes | None] = []
    for _ in range(5):
        (length,) = _LENGTH.unpack_from(row, at)
        at += _LENGTH.size
        values.append(None if length < 0 else bytes(row[at : at + length]))
        at += max(length, 0)
    texts = tuple(None if value is None else value.decode(errors="surrogateescape") for value in values[:4])
    return _Part(place, part, number, texts, values[4] or b"")


def _reading(place: Place, parts: list[_Part], *, whole: bool) -> Reading:
    problems: list[str] = []
    checkpoint = None
    if whole:
        try:
            checkpoint = _checkpoint(place, [part for part in parts if part.part != _WRITE])
        except Unreadable as error:
            problems.append(str(error))
    writes: list[StoredWrite] = []
    for part in parts:
        if part.part == _WRITE:
            path, task_id, channel, type_ = part.texts
            typed = type_ or "null", Span.of(part.content)
            writes.append(StoredWrite(path or "", task_id or "", part.number, channel or "", typed))
    return Reading(checkpoint, writes, problems)


def _checkpoint(place: Place, parts: list[_Part]) -> StoredCheckpoint:
    if not parts:
        raise Unreadable("the checkpoint was removed meanwhile")
    core, metadata = (
        _object(what, text) for what, text in zip(("checkpoint", "metadata"), parts[0].texts, strict=False)
    )
    inline, versions = core.pop(VALUES, None) or {}, core.get("channel_versions") or {}
    if not isinstance(inline, dict) or not isinstance(versions, dict):
        raise Unreadable("the checkpoint's values or versions are no JSON object")
    channels = {name: as_msgpack(value) for name, value in inline.items()}
    unchanged: set[str] = set()
    for part in parts:
        channel, type_ = part.texts[:2]
        if part.part != _VALUE or channel is None or type_ == _EMPTY:
            continue
        if part.number:
            channels.pop(channel, None)
            unchanged.add(channel)
        else:
            channels[channel] = type_ or "null", Span.of(part.content)
    sends = [part for part in parts if part.part == _SEND]
    if sends:
        unchanged.discard(_TASKS)
        channels[_TASKS] = _list_of(sends)
        if versions:
            core["channel_versions"] = {**versions, _TASKS: max(versions.values())}
    return StoredCheckpoint(channels, as_msgpack(core), as_msgpack(metadata), frozenset(unchanged))


def _list_of(sends: list[_Part]) -> Typed:
    """What the saver makes of an old checkpoint's Sends, which stand among its parent's writes."""
    types = {part.texts[0] for part in sends}
    payloads = [part.content for part in sends]
    if types == {MSGPACK}:
        return MSGPACK, Span.of(array_header(len(sends)) + b"".join(payloads))
    if types == {JSON}:
        return JSON, Span.of(b"[" + b",".join(payloads) + b"]")
    raise Unreadable(f"its Sends are of types that make no list: {', '.join(sorted(map(str, types)))}")


def _without_password(address: str) -> str:
    parts = conninfo_to_dict(address)
    user = f"{parts['user']}@" if parts.get("user") else ""
    return f"postgresql://{user}{parts.get('host') or ''}/{parts.get('dbname') or ''}"
