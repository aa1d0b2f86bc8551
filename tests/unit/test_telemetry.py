"""OpenTelemetry is told of what a log does, through its API, and only where somebody asks for it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from building import FailingStorage, noise, step, wrote
from stepwell import ConflictError, DiskFullError, Log, UsageError
from stepwell_langgraph import StepwellSaver

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stepwell import telemetry

PATIENCE_SECONDS = 20.0


class Seen(NamedTuple):
    """What was exported."""

    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader
    tracers: TracerProvider
    meters: MeterProvider

    def named(self, name: str, count: int) -> list[ReadableSpan]:
        """The spans of a name, in order; waits until there are so many."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = [span for span in self.spans.get_finished_spans() if span.name == name]
            if len(found) >= count or time.monotonic() > deadline:
                assert len(found) == count
                return found
            time.sleep(0.001)

    def values(self) -> dict[str, float]:
        """Each metric's value, of a histogram how many there were."""
        found: dict[str, float] = {}
        data = self.metrics.get_metrics_data()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
            for point in metric.data.data_points:
                value = point.value if hasattr(point, "value") else point.count
                found[metric.name] = found.get(metric.name, 0) + value
        return found


@pytest.fixture
def seen() -> Iterator[Seen]:
    """Exporters that keep in memory what they are given."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    yield Seen(spans, reader, tracers, meters)
    tracers.shutdown()
    meters.shutdown()


@pytest.fixture
def traced(log: Log, seen: Seen) -> Iterator[Log]:
    """A log that is instrumented."""
    with telemetry.instrument(log, tracer_provider=seen.tracers, meter_provider=seen.meters):
        yield log


def parent_of(span: ReadableSpan) -> int | None:
    """The id of a span's parent."""
    return None if span.parent is None else span.parent.span_id


def test_an_append(traced: Log, seen: Seen) -> None:
    """An append is a span of its caller's, from the submission to durability, and says what became of it."""
    thread = traced.thread("t")
    before = time.time_ns()
    with seen.tracers.get_tracer("test").start_as_current_span("caller") as caller:
        thread.append([step("a", {"x": noise()}), wrote("a")])
    after = time.time_ns()
    (span,) = seen.named("stepwell.append", 1)
    row = thread.row()
    assert row is not None
    assert parent_of(span) == caller.get_span_context().span_id
    assert dict(span.attributes or {}) == {
        "stepwell.log.path": traced.path,
        "stepwell.thread.id": "t",
        "stepwell.commit.group_size": 1,
        "stepwell.commit.number": 1,
        "stepwell.sequence": 4,
        "stepwell.events": 2,
        "stepwell.bytes": row.stored_bytes - own_bytes(traced),
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time <= span.end_time <= after
    assert span.status.is_ok or span.status.is_unset


def own_bytes(log: Log) -> int:
    """Bytes of the records that the log itself put before the first step: thread and lane are opened."""
    return sum(surveyed.loose_bytes for surveyed in log.storage.survey(1, 0, 2))


def test_a_group(seen: Seen) -> None:
    """A commit is a span in a trace of its own, with links to the appends in it, whose callers it stands beside."""
    storage = FailingStorage()
    with Log(storage) as grouped:
        with telemetry.instrument(grouped, tracer_provider=seen.tracers, meter_provider=seen.meters):
            with storage.gate:
                tickets = [grouped.thread("first").begin_append([step("a")])]
                while grouped._writer._queue:
                    pass
                tickets += [grouped.thread(f"t{number}").begin_append([step("a")]) for number in range(5)]
                tickets += [grouped.thread("t0").begin_append([step("b")], expected_head=77)]
            outcomes = [ticket.result() for ticket in tickets[:-1]]
            with pytest.raises(ConflictError):
                tickets[-1].result()
            first, second = seen.named("stepwell.commit", 2)
        assert len(outcomes) == 6
    appends = seen.named("stepwell.append", 7)
    assert (first.attributes or {})["stepwell.commit.group_size"] == 1
    assert (second.attributes or {})["stepwell.commit.group_size"] == 6
    assert parent_of(second) is None
    assert [link.context.span_id for link in second.links] == [span.context.span_id for span in appends[1:]]
    assert {(span.attributes or {})["stepwell.commit.group_size"] for span in appends[1:]} == {6}
    refused = appends[-1]
    assert (refused.attributes or {})["error.type"] == "ConflictError"
    assert not refused.status.is_ok
    assert not refused.status.is_unset
    assert [event.name for event in refused.events] == ["exception"]
    assert second.status.is_unset  # it was committed, without the one that was refused


def test_a_failure(seen: Seen) -> None:
    """A commit that fails says so, and so does each append in it."""
    storage = FailingStorage()
    storage.failure = lambda operations: DiskFullError("full")
    with Log(storage) as log:
        with telemetry.instrument(log, tracer_provider=seen.tracers, meter_provider=seen.meters):
            with pytest.raises(DiskFullError):
                log.thread("t").append([step("a")])
            for name in ("stepwell.append", "stepwell.commit"):
                (span,) = seen.named(name, 1)
                assert (span.attributes or {})["error.type"] == "DiskFullError"
        assert log.stats().writer.failed_groups == 1
        assert seen.values()["stepwell.append.duration"] == 1
        assert "stepwell.events.appended" not in seen.values()


def test_sealing_and_reading(traced: Log, seen: Seen) -> None:
    """A sealing is a span in a trace of its own; reading a state is one of its caller's."""
    thread = traced.thread("t")
    thread.append([step("a", {"x": noise()})])
    assert traced.seal() == 3
    (sealing,) = seen.named("stepwell.seal", 1)
    attributes = sealing.attributes or {}
    assert (attributes["stepwell.thread.id"], attributes["stepwell.events"]) == ("t", 3)
    assert [(1, 3, attributes["stepwell.bytes"])] == traced.storage.segments(1)
    seen.spans.clear()
    with seen.tracers.get_tracer("test").start_as_current_span("caller") as caller:
        thread.state()
    (reading,) = seen.named("stepwell.state.read", 1)
    assert parent_of(reading) == caller.get_span_context().span_id
    assert (reading.attributes or {})["stepwell.states"] == 1
    assert (reading.attributes or {})["stepwell.thread.number"] == 1


async def test_callers_in_coroutines(tmp_path: Path, seen: Seen) -> None:
    """Each of many coroutines, and what it hands to threads, is the parent of its own appends and reads."""
    tracer = seen.tracers.get_tracer("test")
    expected: dict[str, int] = {}
    with StepwellSaver.from_conn_string(str(tmp_path / "agents.stepwell")) as saver:

        async def call(thread_id: str) -> None:
            with tracer.start_as_current_span(thread_id) as span:
                expected[thread_id] = span.get_span_context().span_id
                large = {"x": "y" * 200_000}  # is encoded in a thread
                checkpoint = {**empty_checkpoint(), "channel_values": large, "channel_versions": {"x": 1}}
                config = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
                await saver.aput(config, checkpoint, {}, {"x": 1})  # type: ignore[arg-type,typeddict-item]
                assert await saver.aget_tuple(config) is not None  # type: ignore[arg-type]

        with telemetry.instrument(saver.log, tracer_provider=seen.tracers, meter_provider=seen.meters):
            await asyncio.gather(*(call(f"t{number}") for number in range(10)))
            appends = seen.named("stepwell.append", 10)
    found = {(span.attributes or {})["stepwell.thread.id"]: parent_of(span) for span in appends}
    assert found == expected
    reads = {parent_of(span) for span in seen.spans.get_finished_spans() if span.name == "stepwell.state.read"}
    assert reads <= set(expected.values())
    assert reads


def test_metrics(traced: Log, seen: Seen) -> None:
    """The metrics add up to what was done, and gauges say what `stats` does; none says what is in the log."""
    for number in range(10):
        traced.thread(f"t{number}").append([step("a"), step("b")])
    with pytest.raises(ConflictError):
        traced.thread("t0").append([step("c")], expected_head=1)
    traced.seal()
    traced.thread("t1").state()
    seen.named("stepwell.append", 11)
    seen.named("stepwell.commit", 21)
    found, stats = seen.values(), traced.stats()
    assert found["stepwell.events.appended"] == stats.writer.events == 20
    assert found["stepwell.bytes.appended"] == stats.writer.stored_bytes
    assert found["stepwell.append.duration"] == 11
    assert found["stepwell.commit.duration"] == found["stepwell.commit.group_size"] == stats.writer.groups == 21
    assert found["stepwell.seal.duration"] == 10
    assert found["stepwell.events.sealed"] == 40
    assert found["stepwell.state.read.duration"] >= 1
    assert found["stepwell.cache.size"] == stats.cache.size_bytes
    assert found["stepwell.log.readers"] == 0
    if stats.file is not None:
        assert found["stepwell.log.size"] == stats.file.used_bytes
        assert found["stepwell.log.headroom"] == stats.file.headroom_bytes
    data = seen.metrics.get_metrics_data()
    assert data is not None
    keys = {
        key
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
        for key in point.attributes or {}
    }
    assert keys <= {"stepwell.log.path", "error.type"}


def test_the_table_of_metrics(traced: Log, seen: Seen) -> None:
    """Every metric is in the module's table, with its unit."""
    traced.thread("t").append([step("a")])
    traced.thread("t").state()
    traced.seal()
    seen.named("stepwell.commit", 2)
    data = seen.metrics.get_metrics_data()
    assert data is not None
    assert telemetry.__doc__ is not None
    rows = {line.split()[0]: line for line in telemetry.__doc__.splitlines() if line.startswith("    stepwell.")}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        assert f" {metric.unit}, " in rows[metric.name]


def test_stopping(log: Log, seen: Seen) -> None:
    """When it was stopped a log is as it was: nothing is told, and it may be instrumented anew; twice at once not."""
    first = telemetry.instrument(log, tracer_provider=seen.tracers, meter_provider=seen.meters)
    with pytest.raises(UsageError, match="already"):
        telemetry.instrument(log)
    first.stop()
    first.stop()
    log.thread("t").append([step("a")])
    assert log._writer.observer is None
    second = telemetry.instrument(log, tracer_provider=seen.tracers, meter_provider=seen.meters)
    first.stop()
    log.thread("t").append([step("b")])
    seen.named("stepwell.append", 1)
    second.stop()
    assert "stepwell.log.size" not in seen.values()


def test_an_observer_that_fails(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """What an observer raises is logged, and is nobody's trouble."""

    class Failing:
        def __getattr__(self, name: str) -> object:
            def fail(*args: object) -> None:
                raise RuntimeError(name)

            return fail

    log.observe(Failing())  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "stepwell"):
        log.thread("t").append([step("a")])
        assert log.thread("t").state() is not None
        assert log.seal() == 3
    log.observe(None)
    told = {str(record.exc_info[1]) for record in caplog.records if record.exc_info}
    assert {"submitted", "read", "sealed"} <= told


def test_providers_that_nobody_set(log: Log) -> None:
    """Without an SDK the API does nothing, and so do spans and metrics."""
    with telemetry.instrument(log):
        log.thread("t").append([step("a")])
    assert not trace.get_current_span().is_recording()


def test_nothing_is_imported(tmp_path: Path) -> None:
    """Who does not ask for telemetry has nothing of OpenTelemetry in the process, though it is installed."""
    program = f"""
import sys
from building import step
from stepwell import Log

with Log.open({str(tmp_path / "log")!r}) as log:
    log.thread("t").append([step("a")])
    log.thread("t").state()
    log.seal()
    log.stats(), log.measure()
    list(log.follow(timeout_seconds=0))
print([name for name in sys.modules if name == "stepwell.telemetry" or name.startswith("opentelemetry")])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr
