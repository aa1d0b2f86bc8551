"""OpenTelemetry's spans and metrics of a log, through its API; nothing else in stepwell imports it.

    pip install 'stepwell[otel]'

    from stepwell import telemetry

    with Log.open("agent.stepwell") as log, telemetry.instrument(log):
        ...

Spans are made when what they are about is over, with the times at which it began and ended, and for an append with the
context in which its caller submitted it.  So an append waits for nothing but that context, and whatever processors
and exporters do happens after those who waited were told.

    stepwell.append      from the submission to durability; child of the caller's span
    stepwell.commit      a group, in a trace of its own; links to the appends in it
    stepwell.seal        events moved into a segment, in a trace of its own
    stepwell.state.read  states were read; child of the caller's span

Metrics, each with the attribute `stepwell.log.path`; what failed has `error.type` as well:

    stepwell.append.duration    s, histogram      from the submission to durability
    stepwell.commit.duration    s, histogram      a group
    stepwell.commit.group_size  {operation}, histogram
    stepwell.events.appended    {event}, counter
    stepwell.bytes.appended     By, counter       records as they are stored
    stepwell.seal.duration      s, histogram
    stepwell.events.sealed      {event}, counter
    stepwell.state.read.duration   s, histogram
    stepwell.log.size           By, gauge         the file up to its last page in use
    stepwell.log.free           By, gauge         of those, in free pages
    stepwell.log.disk_usage     By, gauge
    stepwell.log.headroom       By, gauge         what the file can grow by
    stepwell.log.readers        {reader}, gauge
    stepwell.log.oldest_reader.age  {transaction}, gauge
    stepwell.cache.size         By, gauge
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Several
from contextlib import suppress
from typing import Final, NamedTuple, Self

from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from stepwell.errors import StepwellError, UsageError
from stepwell.log import Log
from stepwell.observing import Member, Span
from stepwell.statistics import GROUP_SIZES, SECONDS, LogStats
from stepwell.storage import Append, Committed, Operation
from stepwell.storage.occupancy import FileRoom

_SCOPE: Final = "stepwell"
_MOST_LINKS: Final = 128  # what OpenTelemetry keeps of a span by default

_instrumented: weakref.WeakKeyDictionary[Log, Telemetry] = weakref.WeakKeyDictionary()


def instrument(
    log: Log,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> Telemetry:
    """Make spans and metrics of what a log does, from now on, until `Telemetry.stop`.

    Args:
        log: The log; of a saver, `saver.log`.
        tracer_provider: Where spans go; None takes the global one.
        meter_provider: Where metrics go; None takes the global one.

    Raises:
        UsageError: The log is instrumented already.
    """
    if log in _instrumented:
        raise UsageError(f"the log {log.path!r} is instrumented already; stop that first")
    telemetry = Telemetry(
        log, trace.get_tracer(_SCOPE, tracer_provider=tracer_provider), metrics.get_meter(_SCOPE, "", meter_provider)
    )
    _instrumented[log] = telemetry
    log.observe(telemetry)
    return telemetry


class _Mark(NamedTuple):
    """What is kept of a submission until it is durable."""

    context: Context
    began: int


class Telemetry:
    """Makes spans and metrics of what one log does.  A context manager, which stops at its end."""

    def __init__(self, log: Log, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._log = weakref.ref(log)
        self._attributes: dict[str, AttributeValue] = {"stepwell.log.path": log.path}
        self._tracer = tracer
        seconds, sizes = list(SECONDS), list(GROUP_SIZES)

        def duration(name: str, what: str) -> metrics.Histogram:
            return meter.create_histogram(name, "s", what, explicit_bucket_boundaries_advisory=seconds)

        self._append_duration = duration("stepwell.append.duration", "From submitting an append to its durability")
        self._commit_duration = duration("stepwell.commit.duration", "Committing a group")
        self._seal_duration = duration("stepwell.seal.duration", "Moving events into a segment")
        self._read_duration = duration("stepwell.state.read.duration", "Reading states")
        self._group_size = meter.create_histogram(
            "stepwell.commit.group_size",
            "{operation}",
            "Operations that share a commit",
            explicit_bucket_boundaries_advisory=sizes,
        )
        self._events = meter.create_counter("stepwell.events.appended", "{event}", "Events appended")
        self._bytes = meter.create_counter("stepwell.bytes.appended", "By", "Bytes of their records")
        self._sealed = meter.create_counter("stepwell.events.sealed", "{event}", "Events moved into segments")
        for name, unit, what, value in _GAUGES:
            meter.create_observable_gauge(name, [self._observing(value)], unit, what)

    def stop(self) -> None:
        """Make no more of them.  Stopping twice is harmless."""
        log = self._log()
        if log is not None and _instrumented.get(log) is self:
            log.observe(None)
            del _instrumented[log]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _observing(
        self, value: Callable[[LogStats], int | None]
    ) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        """A gauge's callback, which says nothing when there is no log any more."""

        def observe(options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
            log = self._log()
            if log is not None and _instrumented.get(log) is self:
                with suppress(StepwellError):  # it was closed
                    found = value(log.stats())
                    if found is not None:
                        yield metrics.Observation(found, self._attributes)

        return observe

    # --- what an observer is told; see `stepwell.observing` ---

    def submitted(self, operation: Operation) -> object:
        return _Mark(context.get_current(), time.time_ns())

    def committed(self, group: Several[Member], span: Span) -> None:
        links: list[Link] = []
        for member in group:
            operation, mark = member.operation, member.mark
            # What is pruned is appended anew, but nothing new.
            if isinstance(operation, Append) and not operation.restart and isinstance(mark, _Mark):
                made = self._append(operation, mark, member.outcome, len(group), span.ended).get_span_context()
                if made.trace_flags.sampled and len(links) < _MOST_LINKS:
                    links.append(Link(made))
        failures = [member.outcome for member in group if not isinstance(member.outcome, Committed)]
        error = failures[0] if len(failures) == len(group) else None  # else it was committed, without some of them
        self._commit_duration.record(_seconds(span), self._with(error))
        self._group_size.record(len(group), self._attributes)
        self._span("stepwell.commit", {"stepwell.commit.group_size": len(group)}, span, error, Context(), links)

    def _append(
        self, operation: Append, mark: _Mark, outcome: Committed | BaseException, group_size: int, ended: int
    ) -> trace.Span:
        attributes: dict[str, AttributeValue] = {
            "stepwell.thread.id": operation.thread_id,
            "stepwell.commit.group_size": group_size,
        }
        error = None
        if isinstance(outcome, Committed):
            events, stored_bytes = len(outcome.sequences), operation.stored_bytes()
            attributes["stepwell.commit.number"] = outcome.commit
            attributes["stepwell.events"] = events
            attributes["stepwell.bytes"] = stored_bytes
            if outcome.sequences:
                attributes["stepwell.sequence"] = outcome.sequences[-1]
            self._events.add(events, self._attributes)
            self._bytes.add(stored_bytes, self._attributes)
        else:
            error = outcome
        span = Span(mark.began, max(ended, mark.began))
        self._append_duration.record(_seconds(span), self._with(error), mark.context)
        return self._span("stepwell.append", attributes, span, error, mark.context)

    def sealed(self, thread_id: str, events: int, plain_bytes: int, stored_bytes: int, span: Span) -> None:
        attributes: dict[str, AttributeValue] = {
            "stepwell.thread.id": thread_id,
            "stepwell.events": events,
            "stepwell.bytes.plain": plain_bytes,
            "stepwell.bytes": stored_bytes,
        }
        self._span("stepwell.seal", attributes, span, None, Context())
        self._seal_duration.record(_seconds(span), self._attributes)
        self._sealed.add(events, self._attributes)

    def read(self, thread: int, states: int, span: Span, error: BaseException | None) -> None:
        attributes = {"stepwell.thread.number": thread, "stepwell.states": states}
        self._span("stepwell.state.read", attributes, span, error, context.get_current())
        self._read_duration.record(_seconds(span), self._with(error))

    def _span(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        span: Span,
        error: BaseException | None,
        parent: Context,
        links: Several[Link] = (),
    ) -> trace.Span:
        """A span that is over already."""
        made = self._tracer.start_span(
            name,
            parent,
            SpanKind.INTERNAL,
            {**self._attributes, **attributes},
            links,
            span.began,
            record_exception=False,
            set_status_on_exception=False,
        )
        if error is not None:
            made.record_exception(error, timestamp=span.ended)
            made.set_attribute("error.type", type(error).__qualname__)
            made.set_status(Status(StatusCode.ERROR, str(error)))
        made.end(span.ended)
        return made

    def _with(self, error: BaseException | None) -> dict[str, AttributeValue]:
        return self._attributes if error is None else {**self._attributes, "error.type": type(error).__qualname__}


def _seconds(span: Span) -> float:
    return (span.ended - span.began) / 1e9


def _of_file(pick: Callable[[FileRoom], int]) -> Callable[[LogStats], int | None]:
    return lambda stats: None if stats.file is None else pick(stats.file)


_GAUGES: Final[tuple[tuple[str, str, str, Callable[[LogStats], int | None]], ...]] = (
    ("stepwell.log.size", "By", "The file up to its last page in use", _of_file(lambda file: file.used_bytes)),
    ("stepwell.log.free", "By", "Free pages of the file", _of_file(lambda file: file.free_bytes)),
    ("stepwell.log.disk_usage", "By", "What the file takes of the disk", _of_file(lambda file: file.disk_bytes)),
    ("stepwell.log.headroom", "By", "What the file can grow by", _of_file(lambda file: file.headroom_bytes)),
    ("stepwell.log.readers", "{reader}", "Who reads at this moment", lambda stats: stats.readers),
    (
        "stepwell.log.oldest_reader.age",
        "{transaction}",
        "Transactions committed since the one that the oldest reader reads",
        lambda stats: 0 if stats.oldest_reader is None else stats.oldest_reader.age,
    ),
    ("stepwell.cache.size", "By", "What this process remembers of the log", lambda stats: stats.cache.size_bytes),
)
