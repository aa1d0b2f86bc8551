"""A log's checkpoints into the database of another saver, so that whoever came in can leave.

Into SQLite the rows are written as SqliteSaver would have written them, from the bytes that the log holds.  Other
savers get objects through their public methods.  Afterwards everything is read back from there and compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell import reader
from stepwell.errors import UsageError
from stepwell.events import WritesRecorded
from stepwell.format import id_key
from stepwell.log import IN_MEMORY, Log
from stepwell.storage import Found
from stepwell.thread import Thread
from stepwell_langgraph.importing import Problem, disk_bytes
from stepwell_langgraph.saver import StepwellSaver
from stepwell_langgraph.sources import POSTGRES, SQLITE
from stepwell_langgraph.targets import SaverTarget, SqliteTarget, Step, Target

_PAGE_STEPS: Final = 16
_TELL_SECONDS: Final = 0.2
_END: Final = 1 << 62


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

    The log is only read, and may be in use; what it gets meanwhile may or may not be exported.  Into SQLite, bytes go
    as they are.  Another saver is given objects, which LangGraph's serializer makes of what the log holds: it calls
    what stands there, so do that with logs that you trust.

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
        UsageError: There is something at the path, the target is none, or it cannot be reached.
    """
    saver = log_or_saver if isinstance(log_or_saver, StepwellSaver) else None
    log = saver.log if saver is not None else log_or_saver
    if not isinstance(log, Log):
        raise UsageError(f"export_to needs a Log or a StepwellSaver to export, not {type(log).__name__}")
    export = _Export(log, saver.serde if saver is not None else JsonPlusSerializer(), verify, progress)
    if isinstance(target, BaseCheckpointSaver):
        return export.run(SaverTarget(target, StepwellSaver(log, serde=export.serde)), threads)
    if isinstance(target, str) and target.startswith(POSTGRES):
        try:
            import psycopg
            from langgraph.checkpoint.postgres import PostgresSaver
        except ImportError as error:
            raise UsageError(
                f"this needs {error.name}: pip install langgraph-checkpoint-postgres 'psycopg[binary]'"
            ) from error

        with ExitStack() as stack:
            try:
                postgres = stack.enter_context(PostgresSaver.from_conn_string(target))
                postgres.setup()
            except psycopg.Error as error:
                raise UsageError(f"PostgreSQL cannot be reached, or not be written to: {error}") from error
            return export.run(SaverTarget(postgres, StepwellSaver(log, serde=export.serde)), threads)
    if isinstance(target, str) and target.startswith(SQLITE):
        target = Path(target.removeprefix(SQLITE))
    if isinstance(target, os.PathLike) or (isinstance(target, str) and "://" not in target):
        path = Path(target)
        like = None if log.path == IN_MEMORY else os.stat(log.path)
        # Bytes go as they are; what has to be decoded by the way calls nothing that a log of a stranger names.
        serde = export.serde if saver is not None else JsonPlusSerializer(allowed_msgpack_modules=None)
        with SqliteTarget(path, serde, like) as tables:
            report = export.run(tables, threads)
            tables.finish()
        return report
    raise UsageError(
        f'there is no exporting to {target!r}: pass "sqlite:///new.db", "postgresql://...", the path of a new SQLite '
        "file, or a saver"
    )


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

    def run(self, target: Target, wanted: Iterable[str] | None) -> ExportReport:
        began = time.monotonic()
        report = self._report = ExportReport(self._log.path, target.label, before_bytes=disk_bytes(self._log))
        summaries = map(Thread.summary, map(self._log.thread, self._log.all_threads()))
        found = {summary.thread_id: summary.steps for summary in summaries if summary is not None}
        asked = None if wanted is None else [*dict.fromkeys(wanted)]
        for thread_id in asked or ():
            if thread_id not in found:
                report.problems.append(Problem(thread_id, None, None, "there is no such thread in the log"))
        if asked is not None:
            found = {thread_id: found[thread_id] for thread_id in asked if thread_id in found}
        for thread_id in found:
            self._thread(target, thread_id, len(found), sum(found.values()))
            report.threads += 1
        target.complete()
        if self._verify:
            report.verified, problems = target.compare(self._log, found)
            report.problems += problems
        report.after_bytes = target.size_bytes()
        report.seconds = time.monotonic() - began
        return report

    def _thread(self, target: Target, thread_id: str, of_threads: int, of_checkpoints: int) -> None:
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
                    target.put(Step(thread_id, namespace, states[found.step], writes, payloads))
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
        self, target: Target, thread_id: str, number: int, steps: set[tuple[str, str]], payloads: reader.Payloads
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
            try:
                target.put_writes(thread_id, namespace, step_id, writes, payloads)
                self._report.writes += len(writes)
            except ValueError as error:
                self._report.problems.append(Problem(thread_id, namespace, step_id, str(error)))

    def _recorded(self, number: int) -> Iterator[tuple[str, WritesRecorded]]:
        for _, event in reader.events(self._log.storage, number, 0, _END):
            if isinstance(event, WritesRecorded):
                yield event.lane, event

    def _found(self, number: int, namespace: str, step_id: str) -> Found:
        lane = self._log.storage.lane(number, namespace)
        assert lane is not None
        return self._log.storage.find(number, lane[0], [id_key(step_id)])[0]

    def _tell(self, thread_id: str, of_threads: int, of_checkpoints: int) -> None:
        if self._progress is None or time.monotonic() - self._told < _TELL_SECONDS:
            return
        self._told = time.monotonic()
        report = self._report
        self._progress(ExportProgress(thread_id, report.threads, of_threads, report.checkpoints, of_checkpoints))
