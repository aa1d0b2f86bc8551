"""stepwell: an embedded, event-sourced, append-only checkpoint log for long-running agents."""

from stepwell.audit import Breach, Report
from stepwell.blaming import Change
from stepwell.branching import Divergence, Run, Tree
from stepwell.difference import Difference
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
from stepwell.events import (
    Commit,
    Event,
    ItemDeleted,
    ItemPut,
    ItemTouched,
    Label,
    LaneOpened,
    Sequence,
    Status,
    StepCommitted,
    ThreadCopied,
    ThreadDeleted,
    ThreadLabelled,
    ThreadOpened,
    ThreadPruned,
    Write,
    WritesRecorded,
)
from stepwell.fold import PendingWrite
from stepwell.following import FeedEntry, Following
from stepwell.history import LaneSummary, Step, TaskWrites, View
from stepwell.items import Items
from stepwell.log import Log, compact, repair
from stepwell.measuring import Compression, ContentSize, KindSize, Measurement, ThreadSize
from stepwell.observing import Observer
from stepwell.patch import apply, compose, diff, parse
from stepwell.paths import ABSENT
from stepwell.repairing import Loss, RepairReport, ThreadRepair
from stepwell.replaying import Replayed
from stepwell.searching import Hit
from stepwell.statistics import CacheStats, Histogram, LogStats, WriterStats
from stepwell.storage import Compaction, Deletion, Item
from stepwell.storage.occupancy import FileRoom, Reader, TableSize
from stepwell.thread import Snapshot, Thread, ThreadSummary, changes

__all__ = [
    "ABSENT",
    "Breach",
    "BundleError",
    "CacheStats",
    "CapacityError",
    "Change",
    "ClosedError",
    "Commit",
    "Compaction",
    "Compression",
    "ConflictError",
    "ContentSize",
    "CorruptionError",
    "Deletion",
    "Difference",
    "DiskFullError",
    "Divergence",
    "Event",
    "EventTooLargeError",
    "FeedEntry",
    "FileRoom",
    "Following",
    "ForkedError",
    "FormatError",
    "Histogram",
    "Hit",
    "Item",
    "ItemDeleted",
    "ItemPut",
    "ItemTouched",
    "Items",
    "KindSize",
    "Label",
    "LaneOpened",
    "LaneSummary",
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
    "Replayed",
    "Report",
    "Run",
    "Sequence",
    "Snapshot",
    "Status",
    "Step",
    "StepCommitted",
    "StepwellError",
    "TableSize",
    "TaskWrites",
    "Thread",
    "ThreadCopied",
    "ThreadDeleted",
    "ThreadLabelled",
    "ThreadOpened",
    "ThreadPruned",
    "ThreadRepair",
    "ThreadSize",
    "ThreadSummary",
    "Tree",
    "UsageError",
    "View",
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
