"""A log's checkpoints into the database of another saver, so that whoever came in can leave.

Into SQLite the rows are written as SqliteSaver would have written them, from the bytes that the log holds.  Other
savers get objects through their public methods.  Afterwards everything is read back from there and compared.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell import reader
from stepwell.errors import UsageError
from stepwell.events import WritesRecorded
from stepwell.fold import PendingWrite, State
from stepwell.format import id_key
from stepwell.log import Log
from stepwell_langgraph.addresses import CHECKPOINT, METADATA, to_config
from stepwell_langgraph.ahead import ReadAhead
from stepwell_langgraph.importing import Import, Problem, disk_bytes
from stepwell_langgraph.saver import StepwellSaver
from stepwell_langgraph.sources import POSTGRES, SQLITE
from stepwell_langgraph.sqlite_tables import SqliteTables
from stepwell_langgraph.whole import VALUES, put_together

_PAGE_STEPS: Final = 16
_TELL_SECONDS: Final = 0.2
_END: Final = 1 << 62

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


class ExportProgress(NamedTuple):
    """How far an export is.

    Attributes:
        thread_id: The thread that is written.
        threads: How many threads are done.
        of_threads: How many there are.
        checkpoints: How many checkpoints are done.
        of_checkpoints: How many there are.
    """

    thread_id: str
    threads: int
    of_threads: int
    checkpoints: int
    of_checkpoints: int


@dataclass
class ExportReport:
    """What an export did.

    Attributes:
        log: What was exported.
        target: Where it went.
        threads: Threads that were looked at.
        checkpoints: Checkpoints that were put there.
        writes: Pending writes that were put there.
        verified: Checkpoints that were read back from there and compared with the log, with their writes.
        problems: What could not be exported, or differs.
        before_bytes: What the log takes of the disk.
        after_bytes: What the target takes of it; None if that is not known.
        seconds: How long it took.
    """

    log: str
    target: str
    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    verified: int = 0
    problems: list[Problem] = field(default_factory=list)
    before_bytes: int = 0
    after_bytes: int | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything was exported, and nothing was found to differ."""
        return not self.problems

    def __str__(self) -> str:
        after = "" if self.after_bytes is None else f" -> {self.after_bytes / 1e6:,.1f} MB"
        lines = [
            f"{self.log} was exported to {self.target}",
            f"threads: {self.threads:,}; checkpoints: {self.checkpoints:,}; pending writes: {self.writes:,}",
            f"verified: {self.verified:,} checkpoints",
            f"on disk: {self.before_bytes / 1e6:,.1f} MB{after}; {self.seconds:,.1f} s",
            *(f"problem: {problem}" for problem in self.problems),
        ]
        return "\n".join(lines)


def export_to(
    target: Any,
    log_or_saver: Log | StepwellSaver,
    *,
    threads: Iterable[str] | None = None,
    verify: bool = True,
    progress: Callable[[ExportProgress], None] | None = None,
) -> ExportReport:
    """Export every checkpoint, pending write and fork to another saver.

    The log is only read, and may be in use; what it gets meanwhile may or may not be exported.

    Args:
        target: "sqlite:///new.db" or the path of a file, where nothing may be: the file appears when it is complete;
            "postgresql://..."; or a saver, which may hold other threads.
        log_or_saver: Where from.  A saver says with which serializer values are decoded, where they have to be.
        threads: The threads to export; None for all.
        verify: Whether to read everything back and compare it with the log.
        progress: Told now and then how far it is.

    Returns:
        What was exported, and every problem.  What stays of pruned checkpoints for the sake of delta channels has no
        form in another saver, and is one.

    Raises:
        UsageError: There is something at the path, or the target is none.
    """
    saver = log_or_saver if isinstance(log_or_saver, StepwellSaver) else None
    log = saver.log if saver is not None else log_or_saver
    if not isinstance(log, Log):
        raise UsageError(f"export_to needs a Log or a StepwellSaver to export, not {type(log).__name__}")
    export = _Export(log, saver.serde if saver is not None else JsonPlusSerializer(), verify, progress)
    if isinstance(target, BaseCheckpointSaver):
        return export.run(_SaverTarget(target, StepwellSaver(log, serde=export.serde)), threads)
    if isinstance(target, str) and target.startswith(POSTGRES):
        from langgraph.checkpoint.postgres import PostgresSaver

        with PostgresSaver.from_conn_string(target) as postgres:
            postgres.setup()
            return export.run(_SaverTarget(postgres, StepwellSaver(log, serde=export.serde)), threads)
    if isinstance(target, os.PathLike) or (isinstance(target, str) and target.startswith(SQLITE)):
        path = Path(target.removeprefix(SQLITE) if isinstance(target, str) else target)
        with _SqliteTarget(path, export.serde) as tables:
            report = export.run(tables, threads)
            tables.finish()
        return report
    raise UsageError(f'there is no exporting to {target!r}: pass "sqlite:///new.db", "postgresql://...", or a saver')


class _Step(NamedTuple):
    """One checkpoint on its way out."""

    thread_id: str
    namespace: str
    state: State
    writes: list[PendingWrite]
    payloads: reader.Payloads


class _Target(Protocol):
    """Where checkpoints go."""

    label: str

    def put(self, step: _Step) -> None:
        """Put a checkpoint there; raises ValueError if it cannot be held there."""

    def put_writes(
        self, thread_id: str, namespace: str, step_id: str, writes: list[PendingWrite], payloads: reader.Payloads
    ) -> None:
        """Put pending writes there; raises ValueError if they cannot be held there."""

    def compare(self, log: Log, threads: Iterable[str]) -> tuple[int, list[Problem]]:
        """Read everything back: how many checkpoints are what the log holds, and what is not."""

    def size_bytes(self) -> int | None:
        """What it takes of the disk; None if that is not known."""


class _Export:
    def __init__(
        self,
        log: Log,
        serde: SerializerProtocol,
        verify: bool,
        progress: Callable[[ExportProgress], None] | None,
    ) -> None:
        self.serde = serde
        self._log = log
        self._verify = verify
        self._progress = progress
        self._told = 0.0

    def run(self, target: _Target, wanted: Iterable[str] | None) -> ExportReport:
        began = time.monotonic()
        report = self._report = ExportReport(self._log.path, target.label, before_bytes=disk_bytes(self._log))
        found = {summary.thread_id: summary.steps for summary in self._log.threads()}
        for thread_id in dict.fromkeys(wanted or ()):
            if thread_id not in found:
                report.problems.append(Problem(thread_id, None, None, "there is no such thread in the log"))
        if wanted is not None:
            found = {thread_id: found[thread_id] for thread_id in dict.fromkeys(wanted) if thread_id in found}
        for thread_id in found:
            self._thread(target, thread_id, len(found), sum(found.values()))
            report.threads += 1
        if self._verify:
            report.verified, problems = target.compare(self._log, found)
            report.problems += problems
        report.after_bytes = target.size_bytes()
        report.seconds = time.monotonic() - began
        return report

    def _thread(self, target: _Target, thread_id: str, of_threads: int, of_checkpoints: int) -> None:
        thread = self._log.thread(thread_id)
        row = thread.row()
        if row is None:
            return
        report = self._report
        storage = self._log.storage
        payloads = reader.Payloads(storage, row.number)
        steps = [(step.lane, step.step_id) for step in thread.steps()][::-1]
        events = 0
        newest: dict[str, str] = {}
        greatest: dict[str, str] = {}
        for start in range(0, len(steps), _PAGE_STEPS):
            page = [(*step, self._found(row.number, *step)) for step in steps[start : start + _PAGE_STEPS]]
            states = self._log.reader.states(row.number, [found.step for _, _, found in page])
            for namespace, step_id, found in page:
                writes = reader.writes(storage, row.number, found.writes)
                events += len(found.writes)
                newest[namespace], greatest[namespace] = step_id, max(step_id, greatest.get(namespace, ""))
                try:
                    target.put(_Step(thread_id, namespace, states[found.step], writes, payloads))
                    target.put_writes(thread_id, namespace, step_id, writes, payloads)
                    report.checkpoints += 1
                    report.writes += len(writes)
                except ValueError as error:
                    report.problems.append(Problem(thread_id, namespace, step_id, str(error)))
                self._tell(thread_id, of_threads, of_checkpoints)
        for namespace, step_id in newest.items():
            if step_id != greatest[namespace]:
                reason = "it is the newest in the log, and other savers take the one with the greatest id for that"
                report.problems.append(Problem(thread_id, namespace, step_id, reason))
        if events < row.writes:
            self._others(target, thread_id, row.number, {*steps}, payloads)

    def _others(
        self, target: _Target, thread_id: str, number: int, steps: set[tuple[str, str]], payloads: reader.Payloads
    ) -> None:
        """Writes that wait for a checkpoint which is not there, and what is hidden."""
        waiting: dict[tuple[str, str], None] = {}
        for record_lane, event in self._recorded(number):
            if (record_lane, event.step_id) not in steps:
                waiting[record_lane, event.step_id] = None
        for namespace, step_id in waiting:
            found = self._found(number, namespace, step_id)
            if found.hidden:
                reason = "it is kept out of sight for delta channels of later ones, which no other saver can hold"
                self._report.problems.append(Problem(thread_id, namespace, step_id, reason))
                continue
            writes = reader.writes(self._log.storage, number, found.writes)
            target.put_writes(thread_id, namespace, step_id, writes, payloads)
            self._report.writes += len(writes)

    def _recorded(self, number: int) -> Iterator[tuple[str, WritesRecorded]]:
        for _, event in reader.events(self._log.storage, number, 0, _END):
            if isinstance(event, WritesRecorded):
                yield event.lane, event

    def _found(self, number: int, namespace: str, step_id: str) -> Any:
        lane = self._log.storage.lane(number, namespace)
        assert lane is not None
        return self._log.storage.find(number, lane[0], [id_key(step_id)])[0]

    def _tell(self, thread_id: str, of_threads: int, of_checkpoints: int) -> None:
        if self._progress is None or time.monotonic() - self._told < _TELL_SECONDS:
            return
        self._told = time.monotonic()
        report = self._report
        self._progress(ExportProgress(thread_id, report.threads, of_threads, report.checkpoints, of_checkpoints))


class _SqliteTarget:
    """A new SQLite file, which gets its name when it is complete."""

    def __init__(self, path: Path, serde: SerializerProtocol) -> None:
        self.label = f"{SQLITE}{path}"
        self._path = path
        self._draft = path.with_name(f"{path.name}.unfinished")
        self._serde = serde
        if os.path.lexists(path):
            raise UsageError(f"there is something at {os.fspath(path)!r} already; export to a file that does not exist")
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {os.fspath(path.parent)!r} to export to")

    def __enter__(self) -> _SqliteTarget:
        self._draft.unlink(missing_ok=True)  # of an export that was killed
        self._connection = sqlite3.connect(self._draft, isolation_level=None)
        self._connection.executescript(_TABLES)
        self._connection.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        for suffix in ("", "-journal"):
            Path(f"{self._draft}{suffix}").unlink(missing_ok=True)

    def finish(self) -> None:
        """Make what was written durable, under its name."""
        self._connection.close()
        try:
            os.link(self._draft, self._path)  # unlike a rename, this replaces nothing
        except FileExistsError:
            raise UsageError(
                f"there is something at {os.fspath(self._path)!r} by now; export to another file"
            ) from None

    def put(self, step: _Step) -> None:
        state = step.state
        channels = reader.typed(state.channels, step.payloads)
        fields = reader.typed(state.fields, step.payloads)
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

    def compare(self, log: Log, threads: Iterable[str]) -> tuple[int, list[Problem]]:
        self._connection.execute("COMMIT")
        with closing(SqliteTables(self._draft)) as source, closing(ReadAhead(source)) as ahead:
            report = Import(source, ahead, log, append=False).run(None)
        return report.verified, report.problems

    def size_bytes(self) -> int:
        with suppress(sqlite3.OperationalError):  # it was compared
            self._connection.execute("COMMIT")
        return self._draft.stat().st_size

    def _encoded(self, channels: dict[str, tuple[str, bytes]], core: tuple[str, bytes]) -> tuple[str, bytes]:
        """A whole of parts that stand in different forms: decoded, and encoded together as a saver would."""
        try:
            values = {name: self._serde.loads_typed(typed) for name, typed in channels.items()}
            return self._serde.dumps_typed({**self._serde.loads_typed(core), VALUES: values})
        except Exception as error:  # of user's types, and of serializers
            raise ValueError(f"its values cannot stand in one checkpoint: {error!r}") from error

    def _metadata(self, typed: tuple[str, bytes]) -> bytes:
        # As SqliteSaver writes it.
        return json.dumps(self._serde.loads_typed(typed), ensure_ascii=False, default=str).encode("utf-8", "ignore")


class _SaverTarget:
    """Any saver, by its public methods."""

    def __init__(self, saver: BaseCheckpointSaver[Any], own: StepwellSaver) -> None:
        self.label = type(saver).__name__
        self._saver = saver
        self._own = own
        self._versions: tuple[tuple[str, str, str], dict[str, Any]] = (("", "", ""), {})

    def put(self, step: _Step) -> None:
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
                values = [
                    (
                        each.write.channel,
                        self._own.serde.loads_typed((each.write.value.type, payloads.payload(each.write.value))),
                    )
                    for each in call
                ]
                try:
                    self._saver.put_writes(config, values, task_id, path)
                except Exception as error:  # as above
                    raise ValueError(f"{self.label} does not take its writes: {error!r}") from error

    def compare(self, log: Log, threads: Iterable[str]) -> tuple[int, list[Problem]]:
        verified = 0
        problems: list[Problem] = []
        for thread_id in threads:
            for step in log.thread(thread_id).steps():
                config = to_config(thread_id, step.lane, step.step_id)
                expected, actual = self._tuple(config), self._saver.get_tuple(config)
                if actual is not None and self._normal(actual) == self._normal(expected):
                    verified += 1
                else:
                    reason = "it is not there" if actual is None else "it reads otherwise there than in the log"
                    problems.append(Problem(thread_id, step.lane, step.step_id, reason))
        return verified, problems

    def size_bytes(self) -> None:
        return None

    def _tuple(self, config: Any) -> CheckpointTuple:
        found = self._own.get_tuple(config)
        if found is None:
            raise ValueError("the checkpoint was removed meanwhile")
        return found

    def _parents_versions(self, step: _Step) -> dict[str, Any]:
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
