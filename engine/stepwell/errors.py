"""Everything that stepwell raises, grouped by what the caller should do about it.

    StepwellError
    ├── UsageError          fix the calling code      ClosedError, ReadOnlyError, ForkedError
    ├── ConflictError       read again, then retry    carries thread, expected, actual
    ├── CapacityError       give it room              MapFullError, DiskFullError, EventTooLargeError
    ├── FormatError         upgrade the library       NewerFormatError, NotALogError
    └── CorruptionError     restore or repair         BundleError; carries thread, sequence, what was wrong

A UsageError is a ValueError too, so that code which catches what other savers raise keeps working.
"""

from __future__ import annotations


class StepwellError(Exception):
    """The root of every error that stepwell raises on purpose."""


class UsageError(StepwellError, ValueError):
    """The call cannot be carried out as written; nothing was changed."""


class ClosedError(UsageError):
    """The log was used after it had been closed."""


class ReadOnlyError(UsageError):
    """A change was asked of a log that was opened with `read_only=True`."""


class ForkedError(UsageError):
    """A child made by `os.fork` used a log that its parent had opened."""

    @classmethod
    def of(cls, path: str, pid: int) -> ForkedError:
        """The error for a log that process `pid` has opened."""
        return cls(
            f"the log {path!r} was opened by process {pid}, which this process was forked from; open it again here "
            "with Log.open"
        )


class ConflictError(StepwellError):
    """The thread is not as the caller expected it; nothing was changed.

    Attributes:
        thread: The thread's id.
        expected: What the caller expected.
        actual: What the log holds.
    """

    def __init__(self, message: str, *, thread: str, expected: object, actual: object) -> None:
        super().__init__(message)
        self.thread = thread
        self.expected = expected
        self.actual = actual

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class CapacityError(StepwellError):
    """There is no room for the change; nothing was changed."""


class MapFullError(CapacityError):
    """The memory map cannot grow to hold more."""


class DiskFullError(CapacityError):
    """The file system has no room left, or a quota is used up."""


class EventTooLargeError(CapacityError):
    """One event is larger than a log can hold."""


class FormatError(StepwellError):
    """The file cannot be read by this version of the library."""


class NewerFormatError(FormatError):
    """A newer version of the library wrote the file."""


class NotALogError(FormatError):
    """The file is not a stepwell log."""


class CorruptionError(StepwellError):
    """What the log holds is not what was written.

    Attributes:
        thread: The thread's id, or its number where the id is not known.
        sequence: The damaged event's position in the thread; None where it is not one event.
        reason: What was wrong.
    """

    way_out = "restore the file from a backup, or make a new log of all that is intact: stepwell.repair(path, into)"

    def __init__(self, reason: str, *, thread: str | int | None = None, sequence: int | None = None) -> None:
        place = "" if thread is None else f" (thread {thread!r}, sequence {sequence})"
        super().__init__(f"{reason}{place}; {self.way_out}")
        self.thread = thread
        self.sequence = sequence
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class BundleError(CorruptionError):
    """The bundle of a thread is not what was written; nothing was imported."""

    way_out = "export it again, or copy it anew from where it is intact"


def _rebuild(kind: type[StepwellError], args: tuple[object, ...], attributes: dict[str, object]) -> StepwellError:
    """An error as it was, for another process: its message is not made anew."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error
