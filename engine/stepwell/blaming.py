"""Who put a value there: every change of what stands at a path, newest first.

States are folded forward in windows along the branch, and the windows are gone through backwards, so that the
newest change is found without reading what came long before it.  Patches say what a step left alone, references
which bytes are the same: only what may have changed is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

from stepwell import inspect, paths
from stepwell.errors import UsageError
from stepwell.fold import EMPTY, State
from stepwell.history import (
    History,
    Link,
    Spot,
    Step,
    TaskWrites,
    View,
    index_of,
    is_match,
    locate,
    near,
    refs,
    split,
    spot_data,
    step_number,
)
from stepwell.patch import Array, Blob, Keep, Map, Merge, Splice, references
from stepwell.paths import ABSENT, Index, Match, Name, Part, Path

_FIRST_WINDOW: Final = 64
_LARGEST_WINDOW: Final = 2048


class Change:
    """A step after which something else stands at a path.

    Attributes:
        path: The path.
        step: The step.
    """

    def __init__(
        self, history: History, path: Path, link: Link, before: State, state: State, spots: tuple[_Found, _Found]
    ) -> None:
        self.path = str(path)
        self.step: Step = link.step
        self._history = history
        self._path = path
        self._before = before
        self._state = state
        self._spots = spots

    @cached_property
    def old(self) -> Any:
        """What stood there before; `ABSENT` if nothing did."""
        return self._spots[0].data(self._history)

    @cached_property
    def new(self) -> Any:
        """What stands there since; `ABSENT` if nothing does."""
        return self._spots[1].data(self._history)

    @cached_property
    def number(self) -> int | None:
        """The step's number on its branch, as LangGraph counts."""
        return step_number(self._state, self._history.payloads)

    @cached_property
    def source(self) -> str | None:
        """What the step came from: "input", "loop", "update" or "fork"; None where the log does not say."""
        source = View(self.step, self._state, self._history.payloads).metadata.get("source")
        return source if isinstance(source, str) else None

    @cached_property
    def tasks(self) -> list[TaskWrites]:
        """The tasks whose writes did it: one, or those of which it cannot be told which.

        There is none where the value came from outside: an input, or an update of the state.
        """
        if self.step.parent_id is None:
            return []
        history = self._history
        lane, _ = history.lane(self.step.lane)
        (found,) = history.found(lane, [self.step.parent_id])
        wrote = [task for task in history.writes(found.writes, self._before) if self._path.channel in task.channels]
        if len(wrote) < 2:
            return wrote
        return self._holding(wrote) or self._like(wrote) or wrote

    def _holding(self, tasks: list[TaskWrites]) -> list[TaskWrites]:
        """Those in whose writes the very bytes stand."""
        places = self._spots[1].places()
        return [task for task in tasks if places.intersection(task.sequences)]

    def _like(self, tasks: list[TaskWrites]) -> list[TaskWrites]:
        """Those that wrote what stands there now."""
        return [
            task
            for task in tasks
            if any(
                inspect.equal(self.new, value) or inspect.equal(self.new, paths.find(value, self._path.inside))
                for channel, value in task.values
                if channel == self._path.channel
            )
        ]

    @property
    def node(self) -> str | None:
        """The node that did it; None if there is none, or it cannot be told."""
        nodes = {task.node for task in self.tasks}
        return nodes.pop() if len(nodes) == 1 else None

    def __repr__(self) -> str:
        who = self.node or self.source or "unknown"
        return f"<{self.path} by {who} in step {self.number} (#{self.step.sequence})>"


class _Found:
    """What stands at a path of one state, not yet decoded."""

    __slots__ = ("index", "rest", "spot")

    def __init__(self, history: History, state: State, path: Path) -> None:
        value = state.channels.get(path.channel)
        self.spot: Spot | None
        self.spot, self.rest = locate(value, path.inside, history.payloads)
        self.index = None
        if value is not None and isinstance(self.spot, Blob | Array | Map) is False:
            self.index = _first_index(history, value, path.inside)

    def places(self) -> set[int]:
        """The events that hold its bytes."""
        if self.spot is None:
            return set()
        found = references(self.spot) if isinstance(self.spot, Blob | Array | Map) else refs(self.spot)
        return {ref.sequence for ref in found}

    def data(self, history: History) -> Any:
        if self.spot is None:
            return ABSENT
        return paths.find(spot_data(self.spot, history.payloads), self.rest)

    def differs(self, other: _Found, history: History) -> bool:
        """Whether something else stands there."""
        if self.spot == other.spot:
            return False
        if not self.rest and isinstance(self.spot, Array | Map) and type(self.spot) is type(other.spot):
            return True  # values that are kept in parts are compared by these
        one, another = self.data(history), other.data(history)
        return not (one is another or (one is not ABSENT and another is not ABSENT and inspect.equal(one, another)))


def _first_index(history: History, value: Any, inside: tuple[Part, ...]) -> int | None:
    """The place in the array that a way leads through, where it leads through one."""
    for part in inside:
        if isinstance(value, Map) and isinstance(part, Name):
            value = value.entries.get(part.name)
        else:
            return index_of(value, part, history.payloads) if isinstance(value, Array) else None
    return None


def watch(history: History, lane: int, end: Link, path: Path) -> Iterator[Change]:
    """Every change of what stands at a path, from the end of a branch backwards."""
    size = _FIRST_WINDOW
    window: list[Link] = []
    for page in history.upwards(lane, end):
        for link in page:
            window.append(link)
            if len(window) > size:
                # The oldest is where this window begins, and the newest of the next.
                yield from _changes(history, window, path, whole=False)
                window = [link]
                size = min(size * 2, _LARGEST_WINDOW)
    yield from _changes(history, window, path, whole=True)


def _changes(history: History, window: list[Link], path: Path, *, whole: bool) -> list[Change]:
    """The changes within some steps of a branch (newest first), newest first.

    Args:
        history: The thread.
        window: The steps; the oldest is what the others are compared with, unless nothing comes before it.
        path: The path.
        whole: Whether nothing comes before the oldest.
    """
    links = window[::-1]
    start = EMPTY
    if not whole:
        start = history.states.state(history.number, links[0].sequence)
        links = links[1:]
    found = _Found(history, start, path)
    changes: list[Change] = []
    for link, before, state in history.fold(links, start):
        if link.event.base == before.sequence and _leaves_alone(history, link.event.channels, path, found.index):
            continue
        now = _Found(history, state, path)
        if now.differs(found, history):
            changes.append(Change(history, path, link, before, state, (found, now)))
        found = now
    return changes[::-1]


def _leaves_alone(history: History, patch: Any, path: Path, index: int | None) -> bool:
    """Whether a patch certainly changes nothing at a path.

    Args:
        history: The thread.
        patch: The patch of all channels.
        path: The path.
        index: Where the element that the path leads through stands before the patch.
    """
    for part in path:
        if isinstance(patch, Merge) and isinstance(part, Name):
            if part.name in patch.drop:
                return False
            patch = patch.changes.get(part.name)
            if patch is None:
                return True
        elif isinstance(patch, Splice) and not isinstance(part, Name):
            return _keeps(history, patch, part, index)
        else:
            return False
    return False


def _keeps(history: History, splice: Splice, part: Part, index: int | None) -> bool:
    """Whether a splice leaves the element that is meant where it is."""
    if isinstance(part, Index) and part.index < 0:
        return False
    place = 0
    for piece in splice.pieces:
        if isinstance(piece, Keep):
            if index is not None and piece.start == place and piece.start <= index < piece.start + piece.count:
                return True
            place += piece.count
        else:
            if isinstance(part, Match):
                history.payloads.fetch(ref.sequence for ref in refs(piece.content))
                if any(is_match(content, part, history.payloads) for content in split(piece)):
                    return False
            place += len(piece.lengths)
    # Nothing was there, and nothing is: an element by its number may have come with the new ones.
    return index is None and (isinstance(part, Match) or (isinstance(part, Index) and place <= part.index))


def blame(history: History, lane: int, end: Link, path: Path) -> Change:
    """The change that put there what stands at a path.

    Raises:
        UsageError: Nothing stands there.
    """
    state = history.states.state(history.number, end.sequence)
    view = View(end.step, state, history.payloads)
    if view.find(path) is ABSENT:
        raise UsageError(_nothing_there(view, path))
    for change in watch(history, lane, end, path):
        return change
    raise UsageError(f"nothing is known of {path} before step #{end.sequence}")


def _nothing_there(view: View, path: Path) -> str:
    where = f"after step #{view.step.sequence}"
    if path.channel not in view:
        return f"there is no channel {path.channel!r} {where}{near(path.channel, view)}"
    for length in range(len(path) - 1, 0, -1):
        there = Path(path[:length])
        data = view.find(there)
        if data is not ABSENT:
            return f"nothing stands at {path} {where}: {there} is there, and {paths.what_is_there(data)}"
    return f"nothing stands at {path} {where}"
