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
    Label,
    LaneOpened,
    Sequence,
    Status,
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
from stepwell.history import LaneSummary, Step, TaskWrites, View
from stepwell.log import Log, Snapshot, Thread, ThreadSummary, changes, compact, repair
from stepwell.patch import apply, compose, diff, parse
from stepwell.paths import ABSENT
from stepwell.repairing import Loss, RepairReport, ThreadRepair
from stepwell.replaying import Replayed
from stepwell.searching import Hit
from stepwell.storage import Compaction

__all__ = [
    "ABSENT",
    "Breach",
    "BundleError",
    "CapacityError",
    "Change",
    "ClosedError",
    "Commit",
    "Compaction",
    "ConflictError",
    "CorruptionError",
    "Difference",
    "DiskFullError",
    "Divergence",
    "Event",
    "EventTooLargeError",
    "FeedEntry",
    "Following",
    "ForkedError",
    "FormatError",
    "Hit",
    "Label",
    "LaneOpened",
    "LaneSummary",
    "Log",
    "Loss",
    "MapFullError",
    "NewerFormatError",
    "NotALogError",
    "PendingWrite",
    "ReadOnlyError",
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
    "TaskWrites",
    "Thread",
    "ThreadCopied",
    "ThreadDeleted",
    "ThreadOpened",
    "ThreadPruned",
    "ThreadRepair",
    "ThreadSummary",
    "Tree",
    "UsageError",
    "View",
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
