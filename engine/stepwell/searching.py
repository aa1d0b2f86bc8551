"""Looking for text in everything that a thread holds.

Each content is searched once, in the event that brought it: what later steps repeat are references.  What a task
wrote is told with the step that took it over.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple

from stepwell import inspect, paths, reader
from stepwell.errors import UsageError
from stepwell.events import Sequence, StepCommitted, WritesRecorded
from stepwell.history import History, Step, as_step, content_of, number_in, split
from stepwell.inspect import Data, Typed
from stepwell.patch import Blob, Content, Map, Merge, New, Patch, Ref
from stepwell.paths import Match, Path

_END: Final = 1 << 62
_AROUND: Final = 40  # characters shown before and after
_STEPS_REMEMBERED: Final = 4096


_Place = tuple[str, str, int, int]
"""A path, the text around what was found there, and where in it that begins and ends."""


_Mark = tuple[str, str, int]


class Hit(NamedTuple):
    """A place where the text stands.

    Attributes:
        step: The step that shows it; None for what a task wrote and no step took over.
        number: The step's number on its branch, as LangGraph counts.
        lane: The lane.
        path: Where it stands in the state; of what a task wrote and no step took over, in the write.
        node: The node that wrote it, where a task did.
        sequence: The event that holds it.
        text: The text around it.
        start: Where it begins in that text.
        end: Where it ends.
    """

    step: Step | None
    number: int | None
    lane: str
    path: str
    node: str | None
    sequence: Sequence
    text: str
    start: int
    end: int


def grep(history: History, pattern: str | re.Pattern[str], *, regex: bool, ignore_case: bool) -> _Search:
    """A search for a text, or for what matches a regular expression.

    Raises:
        UsageError: The regular expression is none.
    """
    if isinstance(pattern, re.Pattern):
        return _Search(history, pattern, None)
    if not pattern:
        raise UsageError("there is nothing to look for: the pattern is empty")
    try:
        compiled = re.compile(pattern if regex else re.escape(pattern), re.IGNORECASE if ignore_case else 0)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from error
    literal = None if regex or ignore_case else pattern.encode(errors="surrogatepass")
    return _Search(history, compiled, literal)


class _Search:
    """One search.

    Args:
        history: The thread.
        pattern: What to look for.
        literal: The bytes that must stand wherever it matches, if they are known.
    """

    def __init__(self, history: History, pattern: re.Pattern[str], literal: bytes | None) -> None:
        self._history = history
        self._pattern = pattern
        self._literal = literal
        self._waiting: dict[tuple[str, str], list[Hit]] = {}
        self._children: OrderedDict[tuple[str, str], tuple[Step, int | None, set[_Mark]]] = OrderedDict()

    def hits(self, lane: str | None = None) -> Iterator[Hit]:
        """Every place, in the order in which the log came to hold them."""
        history = self._history
        for sequence, event in reader.events(history.storage, history.number, 0, _END):
            if isinstance(event, WritesRecorded) and lane in (None, event.lane):
                yield from self._of_writes(sequence, event)
            elif isinstance(event, StepCommitted) and lane in (None, event.lane):
                yield from self._of_step(sequence, event)
        for hits in self._waiting.values():
            yield from hits

    def _of_writes(self, sequence: Sequence, event: WritesRecorded) -> Iterator[Hit]:
        place = (event.lane, event.step_id)
        taken = self._children.get(place)
        found: list[Hit] = []
        node: str | None = None
        for write in event.writes:
            for path, text, start, end in self._of_patch(sequence, paths.to(write.channel), write.value):
                node = node or self._node(event)
                found.append(Hit(None, None, event.lane, path, node, sequence, text, start, end))
        if taken is None and found:
            self._waiting.setdefault(place, []).extend(found)
        elif taken is not None:  # the step was committed before what it took over
            step, number, told = taken
            yield from (hit._replace(step=step, number=number) for hit in found if _mark(hit) not in told)

    def _node(self, event: WritesRecorded) -> str | None:
        history = self._history
        lane, _ = history.lane(event.lane)
        (ran_on,) = history.found(lane, [event.step_id])
        state = history.states.state(history.number, ran_on.step) if ran_on.step else None
        return history.node(event.task_id, event.task_path, state)

    def _of_step(self, sequence: Sequence, event: StepCommitted) -> Iterator[Hit]:
        step = as_step(sequence, event)
        number = number_in(event, self._history.payloads)
        place = (event.lane, event.parent_id or "")
        told = set[_Mark]()
        waiting = self._waiting.pop(place, ())
        places = self._places(event, {_mark(hit)[0] for hit in waiting})
        for hit in waiting:
            mark = _mark(hit)
            told.add(mark)
            yield hit._replace(step=step, number=number, path=places.get(mark, hit.path))
        late: dict[_Mark, str | None] | None = None
        for channel, patch in event.channels.changes.items():
            for path, text, start, end in self._of_patch(sequence, paths.to(channel), patch):
                hit = Hit(step, number, event.lane, path, None, sequence, text, start, end)
                if _mark(hit) not in told:
                    told.add(_mark(hit))
                    late = self._late(sequence, event) if late is None else late
                    yield hit._replace(node=late.get(_mark(hit)))
        if event.parent_id is not None:
            self._children[place] = step, number, told
            if len(self._children) > _STEPS_REMEMBERED:
                self._children.popitem(last=False)

    def _late(self, sequence: Sequence, event: StepCommitted) -> dict[_Mark, str | None]:
        """The nodes of what tasks wrote for a step and what was recorded after it, by marks of hits."""
        history = self._history
        lane, _ = history.lane(event.lane)
        (ran_on,) = history.found(lane, [event.parent_id or ""])
        after = [each for each in ran_on.writes if each > sequence] if event.parent_id is not None else []
        records = history.storage.read(history.number, after) if after else {}
        nodes: dict[_Mark, str | None] = {}
        for _, recorded in reader.decoded(history.storage, history.number, [*records.values()]):
            assert isinstance(recorded, WritesRecorded)
            for write in recorded.writes:
                for _, text, start, _ in self._of_patch(None, paths.to(write.channel), write.value):
                    nodes.setdefault((write.channel, text, start), self._node(recorded))
        return nodes

    def _places(self, event: StepCommitted, channels: set[str]) -> dict[_Mark, str]:
        """Where the text stands in some channels of the state, as far as a step changed them: by marks of hits."""
        found: dict[_Mark, str] = {}
        for channel in channels & event.channels.changes.keys():
            for path, text, start, _ in self._of_patch(None, paths.to(channel), event.channels.changes[channel]):
                found.setdefault((channel, text, start), path)
        return found

    def _of_patch(self, sequence: int | None, path: Path, patch: Patch) -> Iterator[_Place]:
        """Where the text stands in what a patch brings: of that event alone, or of any if there is no sequence."""
        if isinstance(patch, Blob):
            yield from self._of_content(sequence, path, patch.content, patch.type)
        elif isinstance(patch, Map | Merge):
            for key, item in (patch.entries if isinstance(patch, Map) else patch.changes).items():
                if isinstance(patch, Map):
                    yield from self._of_text(path / key, key)
                yield from self._of_patch(sequence, path / key, item)
        else:
            index = 0
            for piece in patch.pieces:
                if isinstance(piece, New) and self._may_hold(sequence, piece.content):
                    for offset, content in enumerate(split(piece)):
                        yield from self._of_content(sequence, path / (index + offset), content, "msgpack")
                index += len(piece.lengths) if isinstance(piece, New) else piece.count

    def _of_content(self, sequence: int | None, path: Path, content: Content, type_: str) -> Iterator[_Place]:
        if not self._may_hold(sequence, content, is_plain=type_ != "json"):
            return
        payloads = self._history.payloads
        data = inspect.decode(type_, content_of(content, payloads))
        yield from self._of_data(path, data)

    def _of_data(self, path: Path, data: Data) -> Iterator[_Place]:
        if isinstance(data, str):
            yield from self._of_text(path, data)
        elif isinstance(data, Typed):
            here = Path((*path[:-1], Match("id", data.fields["id"]))) if _has_id(path, data) else path
            for name, item in data.fields.items():
                yield from self._of_data(here if name == "value" else here / name, item)
        elif isinstance(data, dict):
            for key, item in data.items():
                inside = path / (key if isinstance(key, str | int) else repr(key))
                if isinstance(key, str):
                    yield from self._of_text(inside, key)
                yield from self._of_data(inside, item)
        elif isinstance(data, list):
            for index, item in enumerate(data):
                yield from self._of_data(path / index, item)

    def _of_text(self, path: Path, text: str) -> Iterator[_Place]:
        for match in self._pattern.finditer(text):
            first = max(match.start() - _AROUND, 0)
            around = text[first : match.end() + _AROUND]
            yield str(path), around, match.start() - first, match.end() - first

    def _may_hold(self, sequence: int | None, content: Content, *, is_plain: bool = True) -> bool:
        """Whether an event brings content that the text may stand in; what is not plain spells characters out."""
        parts = (content,) if isinstance(content, bytes | Ref) else content.parts
        own = [part for part in parts if isinstance(part, bytes) or sequence in (None, part.sequence)]
        if not own or self._literal is None or not is_plain:
            return bool(own)
        return any(self._literal in bytes(content_of(part, self._history.payloads)) for part in own)


def _mark(hit: Hit) -> _Mark:
    """What is the same of a hit in a write, and in the step that took it over; short contents stand in both."""
    return Path.parse(hit.path).channel, hit.text, hit.start


def _has_id(path: Path, data: Typed) -> bool:
    """Whether an element is better named by its id than by its place, which in a write is not that in the state."""
    return len(path) > 1 and isinstance(path[-1], paths.Index) and isinstance(data.fields.get("id"), str)
