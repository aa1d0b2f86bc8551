"""Where exports go: a new file with SqliteSaver's tables, or any saver by its public methods."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from stepwell import reader
from stepwell.errors import UsageError
from stepwell.fold import PendingWrite, State
from stepwell.log import Log
from stepwell.storage.newfile import NewFile
from stepwell_langgraph.addresses import CHECKPOINT, METADATA, to_config
from stepwell_langgraph.ahead import ReadAhead
from stepwell_langgraph.importing import Import, Problem
from stepwell_langgraph.saver import StepwellSaver
from stepwell_langgraph.sources import SQLITE
from stepwell_langgraph.sqlite_tables import SqliteTables
from stepwell_langgraph.whole import VALUES, put_together

# As SqliteSaver makes them.
_TABLES: Final = """
CREATE TABLE checkpoints (
    thread_id TEXT NOT NULL,
    checkpoint_ns TEXT NOT NULL DEFAULT '',
    checkpoint_id TEXT NOT NULL,
    parent_checkpoint_id TEXT,
    type TEXT,
    checkpoint BLOB,
    metadata BLOB,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
);
CREATE TABLE writes (
    thread_id TEXT NOT NULL,
    checkpoint_ns TEXT NOT NULL DEFAULT '',
    checkpoint_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    task_path TEXT NOT NULL DEFAULT '',
    idx INTEGER NOT NULL,
    channel TEXT NOT NULL,
    type TEXT,
    value BLOB,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);
"""
_PUT: Final = "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?)"
_PUT_WRITE: Final = "INSERT INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Step(NamedTuple):
    """One checkpoint on its way out."""

    thread_id: str
    namespace: str
    state: State
    writes: list[PendingWrite]
    payloads: reader.Payloads


class Target(Protocol):
    """Where checkpoints go."""

    label: str

    def put(self, step: Step) -> None:
        """Put a checkpoint there; raises ValueError if it cannot be held there."""

    def put_writes(
        self, thread_id: str, namespace: str, step_id: str, writes: list[PendingWrite], payloads: reader.Payloads
    ) -> None:
        """Put pending writes there; raises ValueError if they cannot be held there."""

    def complete(self) -> None:
        """Everything was put there."""

    def compare(self, log: Log, threads: Iterable[str]) -> tuple[int, list[Problem]]:
        """Read everything back: how many checkpoints are what the log holds, and what is not."""

    def size_bytes(self) -> int | None:
        """What it takes of the disk; None if that is not known."""


class SqliteTarget:
    """A new SQLite file, which gets its name when it is complete.

    Args:
        path: Where nothing may be yet.
        serde: Puts values together that stand in different forms.
        like: A file whose permissions it gets, since it will hold the same; None for those of its owner alone.
    """

    def __init__(self, path: Path, serde: SerializerProtocol, like: os.stat_result | None) -> None:
        self.label = f"{SQLITE}{path}"
        self._path = path
        self._serde = serde
        self._like = like
        if os.path.lexists(path):
            raise UsageError(f"there is something at {os.fspath(path)!r} already; export to a file that does not exist")
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {os.fspath(path.parent)!r} to export to")

    def __enter__(self) -> SqliteTarget:
        self._file = NewFile(os.fspath(self._path.absolute()))
        self._journal = Path(f"{self._file.path}-journal")
        try:
            self._journal.unlink(missing_ok=True)  # of an export that was killed: it would be rolled back into this one
            self._connection = sqlite3.connect(self._file.path, isolation_level=None)
            self._connection.executescript(_TABLES)
            self._connection.execute("BEGIN")
        except BaseException:
            self._file.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._journal.unlink(missing_ok=True)
        self._file.__exit__()

    def finish(self) -> None:
        """Make what was written durable, under its name."""
        self._connection.close()
        try:
            self._file.take_name(self._like or os.stat(self._file.path))
        except FileExistsError:
            raise UsageError(
                f"there is something at {os.fspath(self._path)!r} by now; export to another file"
            ) from None

    def put(self, step: Step) -> None:
        state = step.state
        channels = reader.typed(state.channels, step.payloads)
        fields = reader.typed(state.fields, step.payloads)
        if not {CHECKPOINT, METADATA} <= fields.keys():
            raise ValueError("no LangGraph saver has written it: it has no fields of a checkpoint")
        whole = put_together(channels, fields[CHECKPOINT]) or self._encoded(channels, fields[CHECKPOINT])
        at = (step.thread_id, step.namespace, state.step_id)
        self._connection.execute(_PUT, (*at, state.parent_id, *whole, self._metadata(fields[METADATA])))

    def put_writes(
        self, thread_id: str, namespace: str, step_id: str, writes: list[PendingWrite], payloads: reader.Payloads
    ) -> None:
        for pending in writes:
            write = pending.write
            value = write.value.type, payloads.payload(write.value)
            task = pending.task_id, pending.task_path
            self._connection.execute(
                _PUT_WRITE, (thread_id, namespace, step_id, *task, write.index, write.channel, *value)
            )

    def complete(self) -> None:
        self._connection.execute("COMMIT")

    def compare(self, log: Log, threads: Iterable[str]) -> tuple[int, list[Problem]]:
        with closing(SqliteTables(self._file.path)) as source, closing(ReadAhead(source)) as ahead:
            report = Import(source, ahead, log, append=False).run(None)
        return report.verified, report.problems

    def size_bytes(self) -> int:
        return os.stat(self._file.path).st_size

    def _encoded(self, channels: dict[str, tuple[str, bytes]], core: tuple[str, bytes]) -> tuple[str, bytes]:
        """A whole of parts that stand in different forms: decoded, and encoded together as a saver would."""
        try:
            values = {name: self._serde.loads_typed(typed) for name, typed in channels.items()}
            return self._serde.dumps_typed({**self._serde.loads_typed(core), VALUES: values})
        except Exception as error:  # of user's types, and of serializers
            raise ValueError(f"its values cannot stand in one checkpoint: {error!r}") from error

    def _metadata(self, typed: tuple[str, bytes]) -> bytes:
        # As SqliteSaver writes it.
        try:
            return json.dumps(self._serde.loads_typed(typed), ensure_ascii=False, default=str).encode("utf-8", "ignore")
        except Exception as error:  # as above
            raise ValueError(f"its metadata cannot be read: {error!r}") from error


class SaverTarget:
    """Any saver, by its public methods."""

    def __init__(self, saver: BaseCheckpointSaver[Any], own: StepwellSaver) -> None:
        self.label = type(saver).__name__
        self._saver = saver
        self._own = own
        self._versions: tuple[tuple[str, str, str], dict[str, Any]] = (("", "", ""), {})

    def put(self, step: Step) -> None:
        config = to_config(step.thread_id, step.namespace, step.state.step_id)
        tuple_ = self._tuple(config)
        versions = dict(tuple_.checkpoint["channel_versions"])
        before = self._parents_versions(step)
        new = {name: version for name, version in versions.items() if before.get(name) != version}
        parent = to_config(step.thread_id, step.namespace, step.state.parent_id or "")
        if step.state.parent_id is None:
            del parent["configurable"]["checkpoint_id"]
        try:
            self._saver.put(parent, tuple_.checkpoint, tuple_.metadata, new)
        except Exception as error:  # whatever a saver raises, the other checkpoints may go in
            raise ValueError(f"{self.label} does not take it: {error!r}") from error
        self._versions = (step.thread_id, step.namespace, step.state.step_id), versions

    def put_writes(
        self, thread_id: str, namespace: str, step_id: str, writes: list[PendingWrite], payloads: reader.Payloads
    ) -> None:
        config = to_config(thread_id, namespace, step_id)
        for (path, task_id), group in groupby(writes, key=attrgetter("task_path", "task_id")):
            for call in _calls([*group]):
                try:
                    values = [
                        (
                            each.write.channel,
                            self._own.serde.loads_typed((each.write.value.type, payloads.payload(each.write.value))),
                        )
                        for each in call
                    ]
                    self._saver.put_writes(config, values, task_id, path)
                except Exception as error:  # as above
                    raise ValueError(f"{self.label} does not take its writes: {error!r}") from error

    def complete(self) -> None:
        """Each call was complete."""

    def compare(self, log: Log, threads: Iterable[str]) -> tuple[int, list[Problem]]:
        verified = 0
        problems: list[Problem] = []
        for thread_id in threads:
            for step in log.thread(thread_id).steps():
                config = to_config(thread_id, step.lane, step.step_id)
                try:
                    expected, actual = self._tuple(config), self._saver.get_tuple(config)
                    same = actual is not None and self._normal(actual) == self._normal(expected)
                    reason = "it is not there" if actual is None else "it reads otherwise there than in the log"
                except Exception as error:  # whatever a saver raises, the others may be well
                    same, reason = False, f"it cannot be compared: {error!r}"
                if same:
                    verified += 1
                else:
                    problems.append(Problem(thread_id, step.lane, step.step_id, reason))
        return verified, problems

    def size_bytes(self) -> None:
        return None

    def _tuple(self, config: Any) -> CheckpointTuple:
        try:
            found = self._own.get_tuple(config)
        except Exception as error:  # of user's types, and of serializers
            raise ValueError(f"it cannot be read: {error!r}") from error
        if found is None:
            raise ValueError("the checkpoint was removed meanwhile")
        return found

    def _parents_versions(self, step: Step) -> dict[str, Any]:
        if step.state.parent_id is None:
            return {}
        key = (step.thread_id, step.namespace, step.state.parent_id)
        if self._versions[0] == key:
            return self._versions[1]
        found = self._saver.get_tuple(to_config(*key))
        return {} if found is None else dict(found.checkpoint["channel_versions"])

    def _normal(self, found: CheckpointTuple) -> Any:
        """All that a checkpoint says, in a form that is the same whatever order a database keeps entries in."""
        core = {key: value for key, value in found.checkpoint.items() if key != VALUES}
        values = found.checkpoint["channel_values"]
        dump = self._own.serde.dumps_typed
        parent = (found.parent_config or {}).get("configurable", {}).get("checkpoint_id")
        writes = [(task_id, channel, dump(value)) for task_id, channel, value in found.pending_writes or []]
        encoded = {name: dump(value) for name, value in values.items()}
        return _ordered(core), _ordered(dict(found.metadata)), parent, encoded, writes


def _calls(writes: list[PendingWrite]) -> list[list[PendingWrite]]:
    """The calls of `put_writes` that give a task's writes the indexes that they have: those of special channels are
    fixed, others count from 0 with what stands before them."""
    special = [each for each in writes if each.write.channel in WRITES_IDX_MAP]
    call: list[PendingWrite] = []
    for each in writes:
        if each.write.channel in WRITES_IDX_MAP:
            continue
        while len(call) < each.write.index and special:
            call.append(special.pop(0))
        call.append(each)
    return [part for part in (call, special) if part]


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted((key, _ordered(item)) for key, item in value.items())
    return [_ordered(item) for item in value] if isinstance(value, list) else value
