"""The tables of SqliteSaver and AsyncSqliteSaver, read row by row.

The database is opened read-only, and may be in use.  It may also be a stranger's: its tables must be tables, its
schema may run no function that is not safe, and what is in a row is only ever taken as data.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from stepwell.errors import UsageError
from stepwell_langgraph.sources import (
    Place,
    Reading,
    Readings,
    StoredCheckpoint,
    StoredWrite,
    Unreadable,
    Wanted,
    one_by_one,
)
from stepwell_langgraph.whole import NotACheckpoint, Span, Typed, as_msgpack, take_apart

_BUSY_SECONDS: Final = 60
_CHECKPOINTS: Final = frozenset(
    ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "type", "checkpoint", "metadata")
)
_WRITES: Final = frozenset(
    ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx", "channel", "type", "value")
)
_KEY: Final = frozenset(("thread_id", "checkpoint_ns", "checkpoint_id"))
_BESIDE: Final = ("", "-wal", "-journal")
_AT: Final = "WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"


class SqliteTables:
    """The checkpoints in an SQLite file.

    Raises:
        UsageError: There is no such file, or it is no database of a saver.
    """

    is_exact: Final = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise UsageError(f"there is no file {os.fspath(path)!r} to import from")
        try:
            self._connection = _opened(self._path)
            self._has_task_path = self._check_tables()
        except sqlite3.Error as error:
            raise UsageError(f"{os.fspath(path)!r} cannot be read as a database of SqliteSaver: {error}") from error

    @property
    def label(self) -> str:
        return f"sqlite:///{self._path}"

    def size_bytes(self) -> int:
        size = 0
        for suffix in _BESIDE:
            with suppress(FileNotFoundError):
                size += os.stat(f"{self._path}{suffix}").st_size
        return size

    def threads(self) -> Iterator[tuple[str, int]]:
        seen: set[str] = set()
        by_age = "SELECT thread_id, count(*) FROM checkpoints GROUP BY thread_id ORDER BY min(rowid)"
        for thread_id, count in self._rows(by_age):
            seen.add(thread_id)
            yield thread_id, count
        if self._has_writes:
            for (thread_id,) in self._rows("SELECT DISTINCT thread_id FROM writes"):
                if thread_id not in seen:
                    yield thread_id, 0

    def places(self, thread_id: str) -> Iterator[Place]:
        # Rows are numbered as they are put.  (The plus keeps SQLite from reading the whole table in that order.)
        in_order = (
            "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id FROM checkpoints "
            "WHERE thread_id = ? ORDER BY +rowid"
        )
        stored: set[tuple[str, str]] = set()
        for namespace, checkpoint_id, parent_id in self._rows(in_order, thread_id):
            stored.add((namespace, checkpoint_id))
            yield Place(namespace, checkpoint_id, parent_id or None)
        if self._has_writes:
            waiting = "SELECT DISTINCT checkpoint_ns, checkpoint_id FROM writes WHERE thread_id = ?"
            for namespace, checkpoint_id in self._rows(waiting, thread_id):
                if (namespace, checkpoint_id) not in stored:
                    yield Place(namespace, checkpoint_id, None, exists=False)

    def read(self, thread_id: str, wanted: Sequence[Wanted]) -> Readings:
        return one_by_one(self._read, thread_id, wanted)

    def _read(self, thread_id: str, place: Place, *, whole: bool) -> Reading:
        checkpoint = None
        problems: list[str] = []
        if whole and place.exists:
            try:
                checkpoint = self._checkpoint(thread_id, place, problems)
            except Unreadable as error:
                problems.append(str(error))
        return Reading(checkpoint, self._writes(thread_id, place, problems), problems)

    def twin(self) -> SqliteTables:
        return SqliteTables(self._path)

    def close(self) -> None:
        self._connection.close()

    def _checkpoint(self, thread_id: str, place: Place, problems: list[str]) -> StoredCheckpoint:
        at = thread_id, place.namespace, place.checkpoint_id
        if not self._has_key and (count := next(self._rows(f"SELECT count(*) FROM checkpoints {_AT}", *at))[0]) > 1:
            problems.append(f"there are {count} checkpoints with this id, of which one was taken")
        for type_, checkpoint, metadata in self._rows(f"SELECT type, checkpoint, metadata FROM checkpoints {_AT}", *at):
            if not isinstance(type_, str):
                raise Unreadable(f"the checkpoint's type is {type_!r}, not a text")
            try:
                parts = take_apart(type_, _bytes("checkpoint", checkpoint))
            except NotACheckpoint as error:
                raise Unreadable(str(error)) from error
            return StoredCheckpoint(parts.channels, parts.core, _metadata(metadata))
        raise Unreadable("the checkpoint was removed meanwhile")

    def _writes(self, thread_id: str, place: Place, problems: list[str]) -> list[StoredWrite]:
        if not self._has_writes:
            return []
        task_path = "task_path" if self._has_task_path else "''"
        query = f"SELECT {task_path}, task_id, idx, channel, type, value FROM writes {_AT}"
        writes: list[StoredWrite] = []
        try:
            for path, task_id, index, channel, type_, value in self._rows(
                query, thread_id, place.namespace, place.checkpoint_id
            ):
                if value is not None and not isinstance(value, bytes | str):
                    problems.append(f"write {index!r} of task {task_id!r} is {type(value).__name__}, not bytes")
                else:
                    typed = type_ or "null", Span.of(_bytes("write", value or b""))
                    writes.append(StoredWrite(path, task_id, index, channel, typed))
        except Unreadable as error:
            problems.append(str(error))
        return writes

    def _rows(self, query: str, *values: str) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(query, values)
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise Unreadable(f"SQLite cannot read it: {error}") from error

    def _check_tables(self) -> bool:
        tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "checkpoints" not in tables:
            raise UsageError(f"there is no table checkpoints in {os.fspath(self._path)!r}: no saver has written it")
        self._has_writes = "writes" in tables
        self._check_columns("checkpoints", _CHECKPOINTS)
        key = {row[1] for row in self._connection.execute("PRAGMA table_info(checkpoints)") if row[5]}
        self._has_key = bool(key) and key <= _KEY  # as a saver's table; without, an id may stand there twice
        return self._has_writes and "task_path" in self._check_columns("writes", _WRITES)

    def _check_columns(self, table: str, needed: Iterable[str]) -> set[str]:
        columns = {row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")}
        missing = sorted({*needed} - columns)
        if missing:
            raise UsageError(
                f"the table {table} in {os.fspath(self._path)!r} has no {', '.join(missing)}: it is of a version of "
                "SqliteSaver that is not known; open it once with the newest SqliteSaver, or import from that saver"
            )
        return columns


def _opened(path: Path) -> sqlite3.Connection:
    connection = _connected(f"{path.absolute().as_uri()}?mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        # A database whose last user left cleanly, in a folder that nobody may write to: nothing can change it.
        if os.access(path.parent, os.W_OK) or os.path.exists(f"{path}-wal"):
            raise
        connection = _connected(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
    for setting in ("query_only=ON", "trusted_schema=OFF", "cell_size_check=ON"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _connected(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False)
    # A text that is no UTF-8 is not the end of the others: whoever gets it says which one it is.
    connection.text_factory = lambda data: data.decode(errors="surrogateescape")
    return connection


def _bytes(what: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if not isinstance(value, bytes):
        raise Unreadable(f"the {what} is {type(value).__name__}, not bytes")
    return value


def _metadata(value: Any) -> Typed:
    """Metadata stands as JSON, and is read without a look at what constructors it may name."""
    if value is None:
        return as_msgpack({})
    try:
        return as_msgpack(json.loads(_bytes("metadata", value)))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the metadata are no JSON: {error}") from error
