"""The tables of PostgresSaver and AsyncPostgresSaver, read row by row.

A checkpoint there is JSON, with small values in it, and other values stand in a table of their own under their
channel and version: a value that has the version that it had in the parent is not read again.

The connection is read-only, and each checkpoint is read with its writes in one transaction, which sees one moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from stepwell.errors import UsageError
from stepwell.patch import array_header
from stepwell_langgraph.sources import Place, Reading, StoredCheckpoint, StoredWrite, Unreadable
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

_AT: Final = "WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s"
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
_CHECKPOINT: Final = """
SELECT c.checkpoint::text, c.metadata::text, p.checkpoint -> 'channel_versions'
FROM checkpoints c
LEFT JOIN checkpoints p ON p.thread_id = c.thread_id AND p.checkpoint_ns = c.checkpoint_ns
    AND p.checkpoint_id = c.parent_checkpoint_id
WHERE c.thread_id = %s AND c.checkpoint_ns = %s AND c.checkpoint_id = %s
"""
# As the saver joins them, so that a version in JSON means the row that it means to the saver.
_BLOBS: Final = """
SELECT b.channel, b.type, CASE WHEN b.channel = ANY(%s) THEN NULL ELSE b.blob END
FROM checkpoints c
CROSS JOIN LATERAL jsonb_each_text(c.checkpoint -> 'channel_versions') AS v
JOIN checkpoint_blobs b ON b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns
    AND b.channel = v.key AND b.version = v.value
WHERE c.thread_id = %s AND c.checkpoint_ns = %s AND c.checkpoint_id = %s
"""
_SENDS: Final = f"""
SELECT type, blob FROM checkpoint_writes
WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s AND channel = '{_TASKS}'
ORDER BY task_path COLLATE "C", task_id COLLATE "C", idx
"""
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
            self._connection = psycopg.connect(address, autocommit=False)
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

    def read(self, thread_id: str, place: Place, *, whole: bool = True, from_parent: bool = False) -> Reading:
        self._connection.rollback()  # from here on another moment
        checkpoint = None
        problems: list[str] = []
        if whole and place.exists:
            try:
                checkpoint = self._checkpoint(thread_id, place, from_parent)
            except Unreadable as error:
                problems.append(str(error))
        return Reading(checkpoint, self._writes(thread_id, place), problems)

    def twin(self) -> PostgresTables:
        return PostgresTables(self._address)

    def close(self) -> None:
        self._connection.close()

    def _checkpoint(self, thread_id: str, place: Place, from_parent: bool) -> StoredCheckpoint:
        at = (thread_id, place.namespace, place.checkpoint_id)
        for checkpoint, metadata, parent_versions in self._rows(_CHECKPOINT, *at):
            core = _object("checkpoint", checkpoint)
            inline, versions = core.pop(VALUES, None) or {}, core.get("channel_versions") or {}
            if not isinstance(inline, dict) or not isinstance(versions, dict):
                raise Unreadable("the checkpoint's values or versions are no JSON object")
            before = parent_versions if from_parent and isinstance(parent_versions, dict) else {}
            kept = [name for name, version in versions.items() if name in before and before[name] == version]
            channels = {name: as_msgpack(value) for name, value in inline.items()}
            unchanged: set[str] = set()
            for channel, type_, blob in self._rows(_BLOBS, kept, *at):
                if type_ == _EMPTY:
                    continue
                if channel in kept:
                    channels.pop(channel, None)
                    unchanged.add(channel)
                else:
                    channels[channel] = type_, Span.of(blob or b"")
            if place.parent_id is not None and _is_older(core):
                unchanged.discard(_TASKS)
                self._add_sends(thread_id, place, core, channels)
            fields = as_msgpack(core), as_msgpack(_object("metadata", metadata))
            return StoredCheckpoint(channels, *fields, frozenset(unchanged))
        raise Unreadable("the checkpoint was removed meanwhile")

    def _writes(self, thread_id: str, place: Place) -> list[StoredWrite]:
        task_path = "task_path" if self._has_task_path else "''"
        query = f"SELECT {task_path}, task_id, idx, channel, type, blob FROM checkpoint_writes {_AT}"
        return [
            StoredWrite(path, task_id, index, channel, (type_ or "null", Span.of(blob or b"")))
            for path, task_id, index, channel, type_, blob in self._rows(
                query, thread_id, place.namespace, place.checkpoint_id
            )
        ]

    def _add_sends(self, thread_id: str, place: Place, core: dict[str, Any], channels: dict[str, Typed]) -> None:
        """What the saver does when it reads an old checkpoint: its Sends stand among its parent's writes."""
        sends = [*self._rows(_SENDS, thread_id, place.namespace, place.parent_id)]
        if not sends:
            return
        types = {type_ for type_, _ in sends}
        payloads = [bytes(blob) for _, blob in sends]
        if types == {MSGPACK}:
            channels[_TASKS] = MSGPACK, Span.of(array_header(len(sends)) + b"".join(payloads))
        elif types == {JSON}:
            channels[_TASKS] = JSON, Span.of(b"[" + b",".join(payloads) + b"]")
        else:
            raise Unreadable(f"its Sends are of types that make no list: {', '.join(map(str, sorted(types)))}")
        versions = core.get("channel_versions") or {}
        if versions:
            core["channel_versions"] = {**versions, _TASKS: max(versions.values())}

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


def _object(what: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the {what} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unreadable(f"the {what} is no JSON object")
    return found


def _is_older(core: Mapping[str, Any]) -> bool:
    version = core.get("v")
    return isinstance(version, int | float) and version < _FIRST_WITH_TASKS


def _without_password(address: str) -> str:
    parts = conninfo_to_dict(address)
    user = f"{parts['user']}@" if parts.get("user") else ""
    return f"postgresql://{user}{parts.get('host') or ''}/{parts.get('dbname') or ''}"
