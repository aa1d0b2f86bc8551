"""What differs between two states, as people would say it: messages by their id, maps by their keys, text by line.

Elements that are the same bytes are found by their references, and not decoded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator
from collections.abc import Sequence as Several
from difflib import SequenceMatcher, unified_diff
from typing import Any, Final, NamedTuple

from stepwell import inspect, paths
from stepwell.fold import State
from stepwell.history import content_of, cut, decoded, refs
from stepwell.inspect import Data, Typed
from stepwell.patch import Array, Content, Map, Value, references
from stepwell.paths import ABSENT, Index, Match, Path
from stepwell.reader import Payloads

_MOST_PAIRS: Final = 250_000  # of unnamed elements; more are compared place by place
_MOST_LINES: Final = 5_000


class Difference(NamedTuple):
    """Something that differs.

    Attributes:
        path: Where it stands: in the new state, or, if it was removed, in the old one.
        kind: "added", "removed", "changed", or "moved" to another place of its list.
        old: What stood there; `ABSENT` if nothing did.
        new: What stands there; `ABSENT` if nothing does.
    """

    path: str
    kind: str
    old: Any
    new: Any

    def lines(self) -> list[str]:
        """How a text differs, line by line, in the form of `diff -u` without its head; nothing if it is no text."""
        if not isinstance(self.old, str) or not isinstance(self.new, str):
            return []
        old, new = self.old.splitlines(), self.new.splitlines()
        if max(len(old), len(new)) > _MOST_LINES:
            return [*(f"-{line}" for line in old), *(f"+{line}" for line in new)]
        return [*unified_diff(old, new, lineterm="", n=2)][2:]


class Side(NamedTuple):
    """One of the two states."""

    state: State
    payloads: Payloads


def compare(old: Side, new: Side) -> list[Difference]:
    """What differs between the channels of two states, channel by channel."""
    one = old.payloads.thread == new.payloads.thread
    comparing = _Comparing(old.payloads, new.payloads, same_thread=one)
    before, after = old.state.channels, new.state.channels
    found: list[Difference] = []
    for channel in dict.fromkeys((*before, *after)):
        found += comparing.values(paths.to(channel), before.get(channel), after.get(channel))
    return found


def compare_values(path: Path, old: Value, new: Value, payloads: Payloads) -> list[Difference]:
    """What differs between two values of one thread that stood at a path one after the other."""
    return [*_Comparing(payloads, payloads, same_thread=True).values(path, old, new)]


class _Comparing:
    """Compares what is stored; what is the same bytes is not decoded."""

    def __init__(self, old: Payloads, new: Payloads, *, same_thread: bool) -> None:
        self._old = old
        self._new = new
        self._same_thread = same_thread

    def values(self, path: Path, old: Value | None, new: Value | None) -> Iterator[Difference]:
        if self._same_thread and old == new:
            return
        if isinstance(old, Map) and isinstance(new, Map) and not old.wrapped and not new.wrapped:
            for key in dict.fromkeys((*old.entries, *new.entries)):
                yield from self.values(path / key, old.entries.get(key), new.entries.get(key))
        elif isinstance(old, Array) and isinstance(new, Array) and old.wrapped == new.wrapped:
            yield from self._arrays(path, old, new)
        else:
            yield from compare_data(
                path,
                ABSENT if old is None else decoded(old, self._old),
                ABSENT if new is None else decoded(new, self._new),
            )

    def _arrays(self, path: Path, old: Array, new: Array) -> Iterator[Difference]:
        same = _same_pieces(old, new) if self._same_thread else 0
        before, after = cut(old, same, old.count), cut(new, same, new.count)
        if self._same_thread:
            start, end = _alike(before, after, lambda one, other: one == other)
        else:
            self._old.fetch(ref.sequence for ref in references(old))
            self._new.fetch(ref.sequence for ref in references(new))
            start, end = _alike(
                before, after, lambda one, other: content_of(one, self._old) == content_of(other, self._new)
            )
        middle_old = _opened(before[start : len(before) - end], self._old)
        middle_new = _opened(after[start : len(after) - end], self._new)
        yield from _lists(path, middle_old, middle_new, same + start)


def _same_pieces(old: Array, new: Array) -> int:
    """How many elements two lists share at their beginnings, as far as they are kept in the same pieces."""
    same = 0
    for one, other in zip(old.pieces, new.pieces, strict=False):
        if one != other:
            break
        same += len(one.lengths)
    return same


def _opened(contents: list[Content], payloads: Payloads) -> list[Data]:
    payloads.fetch(ref.sequence for content in contents for ref in refs(content))
    return [inspect.decode("msgpack", content_of(content, payloads)) for content in contents]


def _alike(old: Several[Any], new: Several[Any], same: Callable[[Any, Any], bool]) -> tuple[int, int]:
    """How many elements two lists share at their beginnings, and then at their ends."""
    most = min(len(old), len(new))
    start = 0
    while start < most and same(old[start], new[start]):
        start += 1
    end = 0
    while end < most - start and same(old[-1 - end], new[-1 - end]):
        end += 1
    return start, end


def compare_data(path: Path, old: Any, new: Any) -> Iterator[Difference]:
    """What differs between data."""
    if old is ABSENT or new is ABSENT:
        if old is not new:
            yield Difference(str(path), "added" if old is ABSENT else "removed", old, new)
    elif isinstance(old, dict) and isinstance(new, dict) and all(isinstance(k, str | int) for k in (*old, *new)):
        for key in dict.fromkeys((*old, *new)):
            yield from compare_data(path / key, old.get(key, ABSENT), new.get(key, ABSENT))
    elif isinstance(old, Typed) and isinstance(new, Typed) and old.type == new.type:
        if old.fields.keys() == {"value"} == new.fields.keys():
            yield from compare_data(path, old.fields["value"], new.fields["value"])
        else:
            yield from compare_data(path, old.fields, new.fields)
    elif isinstance(old, list) and isinstance(new, list):
        start, end = _alike(old, new, inspect.equal)
        yield from _lists(path, old[start : len(old) - end], new[start : len(new) - end], start)
    elif not inspect.equal(old, new):
        yield Difference(str(path), "changed", old, new)


def _lists(path: Path, old: list[Data], new: list[Data], start: int) -> Iterator[Difference]:
    """What differs between lists of which the first `start` elements are the same."""
    before, after = _by_id(old), _by_id(new)
    if before is not None and after is not None:
        yield from _named(path, before, after)
    elif len(old) * len(new) > _MOST_PAIRS:
        yield from _side_by_side(path, old, new, start, start)
    else:
        marks_old, marks_new = [repr(item) for item in old], [repr(item) for item in new]
        matcher = SequenceMatcher(None, marks_old, marks_new, autojunk=False)
        for kind, i1, i2, j1, j2 in matcher.get_opcodes():
            if kind != "equal":
                yield from _side_by_side(path, old[i1:i2], new[j1:j2], start + i1, start + j1)


def _side_by_side(path: Path, old: list[Data], new: list[Data], at_old: int, at_new: int) -> Iterator[Difference]:
    common = min(len(old), len(new))
    for index in range(common):
        yield from compare_data(path / Index(at_new + index), old[index], new[index])
    for index in range(common, len(old)):
        yield Difference(str(path / Index(at_old + index)), "removed", old[index], ABSENT)
    for index in range(common, len(new)):
        yield Difference(str(path / Index(at_new + index)), "added", ABSENT, new[index])


def _by_id(items: list[Data]) -> dict[Hashable, Data] | None:
    """The elements of a list by their ids; None if not every one has an id of its own."""
    found: dict[Hashable, Data] = {}
    for item in items:
        fields = item.fields if isinstance(item, Typed) else item if isinstance(item, dict) else {}
        id_ = fields.get("id")
        if not isinstance(id_, str) or id_ in found:
            return None
        found[id_] = item
    return found


def _named(path: Path, old: dict[Hashable, Data], new: dict[Hashable, Data]) -> Iterator[Difference]:
    for id_, item in old.items():
        if id_ not in new:
            yield Difference(str(path / Match("id", str(id_))), "removed", item, ABSENT)
    for id_, item in new.items():
        place = path / Match("id", str(id_))
        if id_ in old:
            yield from compare_data(place, old[id_], item)
        else:
            yield Difference(str(place), "added", ABSENT, item)
    order_old, order_new = [id_ for id_ in old if id_ in new], [id_ for id_ in new if id_ in old]
    if order_old != order_new:
        places = {id_: place for place, id_ in enumerate(order_old)}
        stayed = _longest_rise([places[id_] for id_ in order_new])
        for id_ in order_new:
            if places[id_] not in stayed:
                yield Difference(str(path / Match("id", str(id_))), "moved", old[id_], new[id_])


def _longest_rise(numbers: list[int]) -> set[int]:
    """The most numbers of a row, all different, that rise from left to right: the fewest others moved."""
    ends: list[int] = []  # the smallest number that a rise of each length ends with
    before: dict[int, int | None] = {}
    for number in numbers:
        place = bisect_left(ends, number)
        before[number] = ends[place - 1] if place else None
        ends[place : place + 1] = [number]
    rise: set[int] = set()
    number_or_none = ends[-1] if ends else None
    while number_or_none is not None:
        rise.add(number_or_none)
        number_or_none = before[number_or_none]
    return rise
