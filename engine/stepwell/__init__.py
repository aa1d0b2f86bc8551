"""stepwell: an embedded, event-sourced, append-only checkpoint log for long-running agents."""

from stepwell.audit import Breach, Report
from stepwell.errors import (
    CapacityError,
    ClosedError,
    ConflictError,
    CorruptionError,
    DiskFullError,
    EventTooLargeError,
    ForkedError,
    FormatError,
    MapFullError,
    NewerFormatError,
    NotALogError,
    ReadOnlyError,
    StepwellError,
    UsageError,
)
from stepwell.events import Commit, Event, Sequence, StepCommitted, Write, WritesRecorded
from stepwell.fold import PendingWrite
from stepwell.log import FeedEntry, Log, Snapshot, Step, Thread, ThreadSummary, changes, compact
from stepwell.patch import apply, compose, diff, parse
from stepwell.storage import Compaction

__all__ = [
    "Breach",
    "CapacityError",
    "ClosedError",
    "Commit",
    "Compaction",
    "ConflictError",
    "CorruptionError",
    "DiskFullError",
    "Event",
    "EventTooLargeError",
    "FeedEntry",
    "ForkedError",
    "FormatError",
    "Log",
    "MapFullError",
    "NewerFormatError",
    "NotALogError",
    "PendingWrite",
    "ReadOnlyError",
    "Report",
    "Sequence",
    "Snapshot",
    "Step",
    "StepCommitted",
    "StepwellError",
    "Thread",
    "ThreadSummary",
    "UsageError",
    "Write",
    "WritesRecorded",
    "apply",
    "changes",
    "compact",
    "compose",
    "diff",
    "parse",
]
