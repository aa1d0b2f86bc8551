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
from stepwell.events import (
    Commit,
    Event,
    LaneOpened,
    Sequence,
    StepCommitted,
    ThreadCopied,
    ThreadDeleted,
    ThreadOpened,
    ThreadPruned,
    Write,
    WritesRecorded,
)
from stepwell.fold import PendingWrite
from stepwell.following import FeedEntry, Following
from stepwell.log import Log, Snapshot, Step, Thread, ThreadSummary, changes, compact, repair
from stepwell.measuring import Compression, ContentSize, KindSize, Measurement, ThreadSize
from stepwell.observing import Observer
from stepwell.patch import apply, compose, diff, parse
from stepwell.repairing import Loss, RepairReport, ThreadRepair
from stepwell.statistics import CacheStats, Histogram, LogStats, WriterStats
from stepwell.storage import Compaction
from stepwell.storage.occupancy import FileRoom, Reader, TableSize

__all__ = [
    "Breach",
    "CacheStats",
    "CapacityError",
    "ClosedError",
    "Commit",
    "Compaction",
    "Compression",
    "ConflictError",
    "ContentSize",
    "CorruptionError",
    "DiskFullError",
    "Event",
    "EventTooLargeError",
    "FeedEntry",
    "FileRoom",
    "Following",
    "ForkedError",
    "FormatError",
    "Histogram",
    "KindSize",
    "LaneOpened",
    "Log",
    "LogStats",
    "Loss",
    "MapFullError",
    "Measurement",
    "NewerFormatError",
    "NotALogError",
    "Observer",
    "PendingWrite",
    "ReadOnlyError",
    "Reader",
    "RepairReport",
    "Report",
    "Sequence",
    "Snapshot",
    "Step",
    "StepCommitted",
    "StepwellError",
    "TableSize",
    "Thread",
    "ThreadCopied",
    "ThreadDeleted",
    "ThreadOpened",
    "ThreadPruned",
    "ThreadRepair",
    "ThreadSize",
    "ThreadSummary",
    "UsageError",
    "Write",
    "WriterStats",
    "WritesRecorded",
    "apply",
    "changes",
    "compact",
    "compose",
    "diff",
    "parse",
    "repair",
]
