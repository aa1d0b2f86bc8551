"""Who put a value there: every change of what stands at a path, newest first.

States are folded forward in windows along the branch, and the windows are gone through backwards, so that the
newest change is found without reading what came long before it.  Patches say what a step left alone, references
which bytes are the same: only what may have changed is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple

from stepwell import inspect, paths
from stepwell.codec import with_patches
from stepwell.difference import Difference, compare_data, compare_values
from stepwell.errors import UsageError
from stepwell.fold import EMPTY, State
from stepwell.history import (
    METADATA,
    SENDS,
    History,
    Link,
    Step,
    TaskWrites,
    View,
    at_index,
    is_match,
    locate,
    near,
    refs,
    split,
    spot_data,
)
from stepwell.patch import Array, Blob, Keep, Map, Merge, Splice, Value, references
from stepwell.paths import ABSENT, Index, Match, Name, Part, Path
from stepwell.storage import Found

_FIRST_WINDOW: Final = 64
_LARGEST_WINDOW: Final = 8192
_GROWTH: Final = 8  # each window begins with a state, which takes longer to read than a few steps
_MOST_CHANGES: Final = 256  # of a window; where there are more, it is gone through in halves
_MOST_PARTS: Final = 1 << 20  # of the values that changes hold


class Change:
    """A step after which something else stands at a path.

    Attributes:
        path: The path.
        step: The step.
    """

    def __init__(self, scene: _Scene, path: Path, link: Link, old: _Found, new: _Found) -> None:
        self.path = str(path)
        self.step: Step = link.step
        self._scene = scene
        self._path = path
        self._old = old
        self._new = new

    @property
    def old(self) -> Any:
        """What stood there before; `ABSENT` if nothing did."""
        return self._old.data

    @property
    def new(self) -> Any:
        """What stands there since; `ABSENT` if nothing does."""
        return self._new.data

    @property
    def differences(self) -> list[Difference]:
        """What differs between the two; of a list or a map, no more is decoded than that."""
        return self._new.differences(self._old)

    @property
    def number(self) -> int | None:
        """The step's number on its branch, as LangGraph counts."""
        return self._scene.of(self.step).view.number

    @property
    def source(self) -> str | None:
        """What the step came from: "input", "loop", "update" or "fork"; None where the log does not say."""
        return self._scene.of(self.step).view.source

    @cached_property
    def tasks(self) -> list[TaskWrites]:
        """The tasks whose writes did it: one, or those of which it cannot be told which.

        There is none where the value came from outside: an input, or an update of the state.
        """
        wrote = [task for task in self._scene.taken_over(self.step) if self._path.channel in task.channels]
        if len(wrote) < 2:
            return wrote
        return self._holding(wrote) or self._like(wrote) or wrote

    def _holding(self, tasks: list[TaskWrites]) -> list[TaskWrites]:
        """Those in whose writes the very bytes stand."""
        places = self._new.places()
        return [task for task in tasks if places.intersection(task.sequences)]

    def _like(self, tasks: list[TaskWrites]) -> list[TaskWrites]:
        """Those that wrote what stands there now."""
        new = self.new
        return [
            task
            for task in tasks
            if any(channel == self._path.channel and self._is_in(new, value) for channel, value in task.values)
        ]

    def _is_in(self, new: Any, written: Any) -> bool:
        """Whether what stands there now is what was written, at the path in it, or in one of its elements."""
        inside = self._path.inside
        if inspect.equal(new, written) or inspect.equal(new, paths.find(written, inside)):
            return True
        return (
            isinstance(written, list)
            and bool(inside)
            and not isinstance(inside[0], Name)
            and any(inspect.equal(new, paths.find(item, inside[1:])) for item in written)
        )

    @property
    def node(self) -> str | None:
        """The node that did it; None if there is none, or it cannot be told."""
        nodes = {task.node for task in self.tasks}
        return nodes.pop() if len(nodes) == 1 else None

    def __repr__(self) -> str:
        who = self.node or self.source or "unknown"
        return inspect.safe_text(f"<{self.path} by {who} in step {self.number} (#{self.step.sequence})>")


class _Found:
    """What stands at a path after a step."""

    def __init__(self, history: History, value: Value | None, path: Path) -> None:
        self._payloads = history.payloads
        self._path = path
        self.index, inside = at_index(value, path.inside, history.payloads)
        self.spot, self.rest = locate(value, inside, history.payloads)
        self.is_kept_in_parts = isinstance(self.spot, Array | Map)

    @property
    def parts(self) -> int:
        """How many parts it is held in."""
        if isinstance(self.spot, Array):
            return len(self.spot.pieces)
        return len(self.spot.entries) if isinstance(self.spot, Map) else 1

    def places(self) -> set[int]:
        """The events that hold its bytes."""
        if self.spot is None:
            return set()
        found = references(self.spot) if isinstance(self.spot, Blob | Array | Map) else refs(self.spot)
        return {ref.sequence for ref in found}

    @property
    def data(self) -> Any:
        # What may be large is decoded each time, so that going through many changes takes the memory of one.
        return self._decoded() if self.is_kept_in_parts else self._small

    @cached_property
    def _small(self) -> Any:
        return self._decoded()

    def _decoded(self) -> Any:
        return ABSENT if self.spot is None else paths.find(spot_data(self.spot, self._payloads), self.rest)

    def differs(self, other: _Found) -> bool:
        """Whether something else stands there."""
        if self.spot == other.spot:
            return False
        if self.is_kept_in_parts and other.is_kept_in_parts and not self.rest:
            return True  # values that are kept in parts are the same if the parts are
        if self.data is ABSENT or other.data is ABSENT:
            return self.data is not other.data
        return not inspect.equal(self.data, other.data)

    def differences(self, old: _Found) -> list[Difference]:
        """What differs from what stood there before."""
        before, after = old.spot, self.spot
        if not self.rest and isinstance(before, Array | Map) and isinstance(after, Array | Map):
            return compare_values(self._path, before, after, self._payloads)
        return [*compare_data(self._path, old.data, self.data)]


class _Circumstances(NamedTuple):
    """What is known of a step beside what it changed.

    Attributes:
        view: The step, with nothing of its state but its metadata.
        before: The state before it, with nothing but what was sent.
        ran_on: Where that state's step and the writes that waited for this one stand.
    """

    view: View
    before: State
    ran_on: Found


class _Scene:
    """What happened around some changes of a branch: found for all of them at once, when it is asked of the first.

    Args:
        history: The thread.
        lane: Number of the lane.
        links: The steps of the branch that the changes are among, oldest first.
        start: The step before them; 0 if they are from the branch's beginning.
    """

    def __init__(self, history: History, lane: int, links: list[Link], start: int) -> None:
        self.changed: set[int] = set()
        self._history = history
        self._lane = lane
        self._links = links
        self._start = start

    def of(self, step: Step) -> _Circumstances:
        return self._all[step.sequence]

    def taken_over(self, step: Step) -> list[TaskWrites]:
        """The writes that a step took over, by task."""
        view, before, ran_on = self.of(step)
        if step.parent_id is None:
            return []
        return self._history.taken(ran_on.writes, before, view.source)

    @cached_property
    def _all(self) -> dict[int, _Circumstances]:
        history = self._history
        links, self._links = self._links, []
        state = history.states.state(history.number, self._start) if self._start else EMPTY
        folded = [
            (View(link.step, after, history.payloads), before)
            for link, before, after in history.fold(map(_told, links), _untouched(state))
            if link.sequence in self.changed
        ]
        parents = history.found(self._lane, (view.step.parent_id or "" for view, _ in folded))
        return {
            view.step.sequence: _Circumstances(view, before, ran_on)
            for (view, before), ran_on in zip(folded, parents, strict=True)
        }


def _told(link: Link) -> Link:
    """A step without what it changed, but for its metadata and what it sent."""
    event = link.event
    return Link(link.sequence, with_patches(event, _only(event.channels, SENDS), _only(event.fields, METADATA)))


def _only(patch: Merge, name: str) -> Merge:
    drop = (name,) if name in patch.drop else ()
    return Merge(drop, {name: patch.changes[name]} if name in patch.changes else {})


def _untouched(state: State) -> State:
    channels = {name: value for name, value in state.channels.items() if name == SENDS}
    fields = {name: value for name, value in state.fields.items() if name == METADATA}
    return State(state.sequence, state.step_id, state.parent_id, channels, fields, state.created_at)


def watch(history: History, lane: int, end: Link, path: Path) -> Iterator[Change]:
    """Every change of what stands at a path, from the end of a branch backwards."""
    size = _FIRST_WINDOW
    window: list[Link] = []
    for page in history.upwards(lane, end):
        for link in page:
            window.append(link)
            if len(window) > size:
                # The oldest is where this window begins, and the newest of the next.
                yield from _changes(history, lane, window, path, whole=False)
                window = [link]
                size = min(size * _GROWTH, _LARGEST_WINDOW)
    yield from _changes(history, lane, window, path, whole=True)


def _changes(history: History, lane: int, window: list[Link], path: Path, *, whole: bool) -> Iterator[Change]:
    """The changes within some steps of a branch, newest first.

    Args:
        history: The thread.
        lane: Number of the lane.
        window: The steps, newest first; the oldest is what the next is compared with, unless it is the first of all.
        path: The path.
        whole: Whether the oldest is the first of all.
    """
    changes = _folded(history, lane, window, path, whole=whole)
    if changes is not None:
        yield from reversed(changes)
        return
    middle = len(window) // 2
    yield from _changes(history, lane, window[: middle + 1], path, whole=False)
    yield from _changes(history, lane, window[middle:], path, whole=whole)


def _folded(history: History, lane: int, window: list[Link], path: Path, *, whole: bool) -> list[Change] | None:
    """The changes within some steps, oldest first; None if they are too many to be held at once.

    Of the states, only the channel is folded.  Arguments as `_changes`.
    """
    links = window[::-1]
    start, value = 0, None
    if not whole:
        start = links.pop(0).sequence
        value = history.channel(start, path.channel)
    last = start
    scene = _Scene(history, lane, links, start)
    found = _Found(history, value, path)
    changes: list[Change] = []
    held = 0
    owed: list[Link] = []  # what leaves the path alone is folded only where something does not
    for link in links:
        follows = link.event.base == last
        last = link.sequence
        owed.append(link)
        if follows and _leaves_alone(history, link.event.channels, path, found.index):
            continue
        if not follows:
            owed = [link]
            value = history.channel(link.event.base, path.channel)
        for each in owed:
            value = history.patched(each, path.channel, value)
        owed.clear()
        now = _Found(history, value, path)
        if now.differs(found):
            changes.append(Change(scene, path, link, found, now))
            scene.changed.add(link.sequence)
            held += now.parts
            if (len(changes) > _MOST_CHANGES or held > _MOST_PARTS) and len(window) > _FIRST_WINDOW:
                return None
        found = now
    return changes


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
    if isinstance(part, Index) and part.at < 0:
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
    return index is None and (isinstance(part, Match) or (isinstance(part, Index) and place <= part.at))


def blame(history: History, lane: int, end: Link, path: Path) -> Change:
    """The change that put there what stands at a path.

    Raises:
        UsageError: Nothing stands there.
    """
    view = history.view(end.sequence)
    if view.find(path) is ABSENT:
        raise UsageError(nothing_there(view, path))
    for change in watch(history, lane, end, path):
        return change
    raise UsageError(f"nothing is known of {path} before step #{end.sequence}")


def nothing_there(view: View, path: Path) -> str:
    """What to say where nothing stands at a path: how far it leads, and what may be meant."""
    where = f"after step #{view.step.sequence}"
    if path.channel not in view:
        if path.channel in view.delta_channels:
            return (
                f"the channel {path.channel!r} is a delta channel without a value {where}: LangGraph puts it together "
                "from a snapshot and what was written since; look for what was written with grep, pending or replay"
            )
        return f"there is no channel {path.channel!r} {where}{near(path.channel, view)}"
    for length in range(len(path) - 1, 0, -1):
        there = Path(path[:length])
        data = view.find(there)
        if data is not ABSENT:
            return f"nothing stands at {path} {where}: {there} is there, and {paths.what_is_there(data)}"
    return f"nothing stands at {path} {where}"
