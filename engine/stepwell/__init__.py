"""stepwell: an embedded, event-sourced, append-only checkpoint log for long-running agents."""

from stepwell.audit import Breach, Report
from stepwell.errors import (
    BundleError,
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
from stepwell.events import Commit, Event, Label, Sequence, Status, StepCommitted, Write, WritesRecorded
from stepwell.fold import PendingWrite
from stepwell.log import FeedEntry, Log, Snapshot, Step, Thread, ThreadSummary, changes, compact, repair
from stepwell.patch import apply, compose, diff, parse
from stepwell.repairing import Loss, RepairReport, ThreadRepair
from stepwell.storage import Compaction

__all__ = [
    "Breach",
    "BundleError",
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
    "Label",
    "Log",
    "Loss",
    "MapFullError",
    "NewerFormatError",
    "NotALogError",
    "PendingWrite",
    "ReadOnlyError",
    "RepairReport",
    "Report",
    "Sequence",
    "Snapshot",
    "Status",
    "Step",
    "StepCommitted",
    "StepwellError",
    "Thread",
    "ThreadRepair",
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
    "repair",
]
