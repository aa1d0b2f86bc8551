"""What LangGraph tells of a thread as a whole: what it has come to, and what it is about (SPEC.md, section 17.5).

The root graph speaks for its thread.  A checkpoint with which nothing is left to run is the end of a run; an interrupt
and an error are written by the task that they end, and an answer by who resumes.  Metadata of the root graph's
checkpoints that describe the thread, and not one step or one run of it, are its labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import EXCLUDED_METADATA_KEYS, Checkpoint
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME

from stepwell.due import status_of_channels
from stepwell.errors import UsageError
from stepwell.events import Label, Status
from stepwell.labels import LARGEST_LABEL_BYTES, MOST_LABELS, is_label
from stepwell.log import Log

_OF_ONE_STEP: Final = frozenset({"source", "step", "parents", "writes", "run_id", *EXCLUDED_METADATA_KEYS})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = 1 << 62


class SavedThread(NamedTuple):
    """What is known of a thread without reading any of its checkpoints.

    Attributes:
        thread_id: The thread.
        status: "running" (something is left to run), "interrupted", "failed" or "done"; None if nothing told.
        metadata: The metadata of its checkpoints that describe the thread.
        checkpoints: How many checkpoints it has, in all namespaces.
        created_at: When it was begun.
        updated_at: When something was stored in it last.
        config: The config that names it.
        cursor: Where it stands among all threads, for the page behind it (`before`).
    """

    thread_id: str
    status: Status | None
    metadata: dict[str, Label]
    checkpoints: int
    created_at: datetime
    updated_at: datetime
    config: RunnableConfig
    cursor: int


def saved_threads(
    log: Log,
    *,
    status: str | Iterable[str] | None,
    filter: dict[str, Any] | None,
    prefix: str,
    updated_since: datetime | None,
    updated_before: datetime | None,
    newest_first: bool,
    limit: int | None,
    before: int | None,
) -> Iterator[SavedThread]:
    """See `StepwellSaver.threads`."""
    for name, value in (filter or {}).items():
        if name in _OF_ONE_STEP or not is_label(name, "" if value is None else value):
            raise UsageError(
                f"threads cannot be found by the metadata {name!r}: {value!r}, which tells of one checkpoint or run, "
                f"or is no text, number or bool of up to {LARGEST_LABEL_BYTES} bytes; use list(None, filter=...), "
                "which looks at every checkpoint"
            )
    summaries = log.threads(
        prefix=prefix,
        status=status,
        labels=filter,
        updated_since=0 if updated_since is None else _nanoseconds(updated_since),
        updated_before=_LATEST if updated_before is None else _nanoseconds(updated_before),
        newest_first=newest_first,
        limit=None if limit is None else max(int(limit), 0),
        before=before,
    )
    return (
        SavedThread(
            each.thread_id,
            each.status,
            each.labels,
            each.steps,
            _datetime(each.created_at),
            _datetime(each.updated_at),
            {"configurable": {"thread_id": each.thread_id}},
            each.cursor,
        )
        for each in summaries
    )


def status_of_checkpoint(checkpoint: Checkpoint) -> Status | None:
    """Whether something is left to run after a checkpoint of a StateGraph or a function."""
    values = checkpoint["channel_values"]
    return status_of_channels(values, values.__getitem__)


def status_of_writes(writes: Iterable[tuple[str, Any]]) -> Status | None:
    """What the writes of a task say of its thread; ordinary ones say nothing."""
    channels = {channel for channel, _ in writes}
    if ERROR in channels:
        return Status.FAILED
    if INTERRUPT in channels:
        return Status.INTERRUPTED
    return Status.RUNNING if RESUME in channels else None


def labels_of(metadata: Mapping[str, Any]) -> dict[str, Label]:
    """The metadata of a checkpoint that describe its thread, as far as they can be labels."""
    labels = {name: value for name, value in metadata.items() if name not in _OF_ONE_STEP and is_label(name, value)}
    return labels if len(labels) <= MOST_LABELS else dict([*labels.items()][:MOST_LABELS])


def _nanoseconds(time: datetime) -> int:
    if not isinstance(time, datetime):
        raise UsageError(f"a time is a datetime, not {type(time).__name__}: {time!r}")
    try:
        local = time if time.tzinfo is not None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # so near to the first year or the last that no zone matters
        local = time.replace(tzinfo=UTC)
    microseconds = (local - _EPOCH) // timedelta(microseconds=1)
    return min(max(microseconds * 1000, 0), _LATEST)


def _datetime(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
