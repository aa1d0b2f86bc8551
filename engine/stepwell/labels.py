"""Labels: a few named values that say what a thread is about, so that lists find it without touching a state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from stepwell import format as fmt
from stepwell.errors import UsageError
from stepwell.events import Label

MOST_LABELS: Final = 32
LARGEST_LABEL_BYTES: Final = 256  # name and value in msgpack, together

_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1  # of the integers of msgpack

_encoder = msgspec.msgpack.Encoder()


def changed(labels: Mapping[str, Label], changes: Mapping[str, Label | None]) -> dict[str, Label | None]:
    """Which of some changes do change labels."""
    return {name: value for name, value in changes.items() if labels.get(name) != value}


def relabelled(labels: Mapping[str, Label], changes: Mapping[str, Label | None]) -> dict[str, Label]:
    """The labels after a `ThreadLabelled`, in the order of their names; None takes one away."""
    merged = {**labels, **changes}
    return {name: value for name in sorted(merged) if (value := merged[name]) is not None}


def facet_of(name: str, value: Label) -> bytes:
    """What the threads with a label stand under in `recent`: the same for values that are equal, as 1, True and 1.0."""
    number = int(value) if not isinstance(value, str) and value == int(value) else value
    plain = number if not isinstance(number, int) or _SMALLEST <= number <= _LARGEST else float(number)
    return fmt.label_facet(name.encode(), _encoder.encode(plain))


def is_label(name: object, value: object) -> bool:
    """Whether a name and a value can be a label: a number that a log can hold, or text, and not too large."""
    if not isinstance(name, str) or not isinstance(value, str | int | float):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        return False
    try:
        return len(_encoder.encode((name, value))) <= LARGEST_LABEL_BYTES
    except (UnicodeEncodeError, TypeError):  # half a surrogate pair; a class of its own
        return False


def check_labels(labels: Mapping[str, Label | None]) -> None:
    """Raise UsageError unless all can be labels; None stands for none."""
    if len(labels) > MOST_LABELS:
        raise UsageError(f"a thread has up to {MOST_LABELS} labels, not {len(labels)}: keep the others in its state")
    for name, value in labels.items():
        if not is_label(name, "" if value is None else value):
            raise UsageError(
                f"the label {name!r} is {value!r}: a label is a text, a finite number or a bool, of up to "
                f"{LARGEST_LABEL_BYTES} bytes with its name, and None to take it away"
            )
