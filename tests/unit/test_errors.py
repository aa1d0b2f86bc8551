"""The exception tree, which says what a caller should do."""

from __future__ import annotations

import stepwell
from stepwell import ConflictError, CorruptionError, StepwellError, UsageError, errors

TREE = {
    "UsageError": ["ClosedError", "ReadOnlyError", "ForkedError"],
    "ConflictError": [],
    "CapacityError": ["MapFullError", "DiskFullError", "EventTooLargeError"],
    "FormatError": ["NewerFormatError", "NotALogError"],
    "CorruptionError": ["BundleError"],
}


def test_tree() -> None:
    """Errors are grouped by what to do about them, two levels deep, and no more exist."""
    for group, members in TREE.items():
        parent = getattr(errors, group)
        assert parent.__mro__[1] is StepwellError
        for member in members:
            assert getattr(errors, member).__mro__[1] is parent
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == {"StepwellError", *TREE, *(member for members in TREE.values() for member in members)}


def test_public() -> None:
    """Every error can be imported from the package."""
    assert {name for name in vars(errors) if name.endswith("Error")} <= set(stepwell.__all__)


def test_tree_is_drawn() -> None:
    """The module's docstring draws every error."""
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for group in TREE.items() for name in (group[0], *group[1]))


def test_usage_error_is_a_value_error() -> None:
    """Code that catches the ValueError which other savers raise catches ours."""
    assert issubclass(UsageError, ValueError)


def test_conflict_says_both() -> None:
    """A conflict carries the thread, what was expected and what is there."""
    error = ConflictError("no", thread="t", expected=1, actual=2)
    assert (error.thread, error.expected, error.actual) == ("t", 1, 2)


def test_corruption_says_where() -> None:
    """A corruption names thread and sequence, in its attributes and in its message, and the way out."""
    error = CorruptionError("the checksum does not match", thread="t", sequence=5)
    assert (error.thread, error.sequence, error.reason) == ("t", 5, "the checksum does not match")
    assert "the checksum does not match" in str(error)
    assert "thread 't', sequence 5" in str(error)
    assert "stepwell.repair(path, into)" in str(error)
