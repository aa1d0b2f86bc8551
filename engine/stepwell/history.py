"""A thread for reading along its branches: who follows whom, what each step shows, and what tasks wrote.

A branch is walked up by the parents that steps name, and read downwards.  Nothing is decoded before it is asked
for, no question to the storage stays open between two steps, and a thread of any length takes the memory of one
page of events and one state, and a few words for each step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec

from stepwell import format as fmt
from stepwell import inspect, paths, reader
from stepwell.errors import CorruptionError, UsageError
from stepwell.events import Sequence, StepCommitted, WritesRecorded
from stepwell.fold import EMPTY, State, fold_writes
from stepwell.inspect import Data
from stepwell.patch import (
    Array,
    Blob,
    Content,
    Map,
    Merge,
    New,
    PatchError,
    Ref,
    Value,
    apply,
    cut_content,
    references,
)
from stepwell.storage import Found, LaneRow, Storage, ThreadRow

PAGE_STEPS: Final = 256
METADATA: Final = "metadata"
_COUNTERS: Final = "counters_since_delta_snapshot"
SENDS: Final = "__pregel_tasks"
_UPDATE: Final = "~__interrupt__"
_PULL: Final = re.compile(r"__pregel_pull, ([^,~]+)")
_PUSH: Final = re.compile(r"__pregel_push, (\d+)")


class Step(NamedTuple):
    """One step of a thread, without its state.

    Attributes:
        sequence: Its position in the thread.
        step_id: Its name.
        parent_id: Name of the step that it follows.
        lane: The lane that it belongs to.
        created_at: Unix time in nanoseconds at which it was committed.
    """

    sequence: Sequence
    step_id: str
    parent_id: str | None
    lane: str
    created_at: int


class LaneSummary(NamedTuple):
    """What a thread says of one of its lanes.

    Attributes:
        lane: Its name.
        steps: How many steps lists show.
        head: The step that was committed last; None if none was.
    """

    lane: str
    steps: int
    head: Step | None


class Link(NamedTuple):
    """A step on a branch.

    Attributes:
        sequence: Where its newest event stands.
        event: That event.
    """

    sequence: Sequence
    event: StepCommitted

    @property
    def step(self) -> Step:
        """The step."""
        return as_step(self.sequence, self.event)


class TaskWrites:
    """What one task wrote, which waits for the next step or was taken over by it.

    Attributes:
        task_id: Name of the task.
        task_path: Where it stands among the tasks of its step.
        node: Name of the node that it ran; None where the log does not say.
        sequences: The events that hold it.
    """

    def __init__(
        self,
        task_id: str,
        task_path: str,
        node: str | None,
        sequences: tuple[Sequence, ...],
        stored: list[tuple[str, Value]],
        payloads: reader.Payloads,
    ) -> None:
        self.task_id = task_id
        self.task_path = task_path
        self.node = node
        self.sequences = sequences
        self.stored = stored
        self._payloads = payloads

    @property
    def is_update(self) -> bool:
        """Whether it is no task, but an update of the state."""
        return self.task_path.startswith(_UPDATE)

    @property
    def channels(self) -> list[str]:
        """The channels that it wrote to, in the order of its writes."""
        return [*dict.fromkeys(channel for channel, _ in self.stored)]

    @cached_property
    def values(self) -> list[tuple[str, Data]]:
        """Each write: its channel, and what was written to it."""
        return [(channel, decoded(value, self._payloads)) for channel, value in self.stored]

    def __repr__(self) -> str:
        return inspect.safe_text(
            f"<{self.node or self.task_path or 'outside of any task'}: {', '.join(self.channels)}>"
        )


class View(Mapping[str, Data]):
    """The channels of one state as data, each decoded when it is asked for.

    Attributes:
        step: The step after which the lane holds this.
    """

    def __init__(self, step: Step, state: State, payloads: reader.Payloads) -> None:
        self.step = step
        self.state = state
        self._payloads = payloads
        self._decoded: dict[str, Data] = {}

    def __getitem__(self, channel: str) -> Data:
        if channel not in self._decoded:
            self._decoded[channel] = decoded(self.state.channels[channel], self._payloads)
        return self._decoded[channel]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state.channels)

    def __len__(self) -> int:
        return len(self.state.channels)

    def __contains__(self, channel: object) -> bool:
        return channel in self.state.channels

    def find(self, path: str | paths.Path) -> Any:
        """What stands at a path; `paths.ABSENT` if nothing does.  Of a list, only what it takes is decoded."""
        return read(self.state, paths.Path.parse(path), self._payloads)

    def kind(self, channel: str) -> str:
        """Whether a channel is kept as an "array", a "map", or a "value"."""
        value = self.state.channels[channel]
        return "array" if isinstance(value, Array) else "map" if isinstance(value, Map) else "value"

    def length(self, channel: str) -> int | None:
        """How many elements or entries a channel has, without decoding it; None where that cannot be told."""
        value = self.state.channels[channel]
        return value.count if isinstance(value, Array) else len(value.entries) if isinstance(value, Map) else None

    def part(self, channel: str, start: int = 0, stop: int | None = None) -> list[Data]:
        """Some elements of a list, as of a slice; the others are not decoded.

        Raises:
            UsageError: The channel is no list.
        """
        value = self.state.channels[channel]
        if isinstance(value, Array):
            contents = cut(value, *slice(start, stop).indices(value.count)[:2])
            self._payloads.fetch(ref.sequence for content in contents for ref in refs(content))
            return [inspect.decode("msgpack", content_of(content, self._payloads)) for content in contents]
        whole = self[channel]
        if not isinstance(whole, list):
            raise UsageError(f"the channel {channel!r} is no list: {paths.what_is_there(whole)}")
        return whole[start:stop]

    def raw(self, channel: str) -> tuple[str, bytes]:
        """Type and payload of a channel."""
        value = self.state.channels[channel]
        return value.type, self._payloads.payload(value)

    @cached_property
    def fields(self) -> dict[str, Data]:
        """What the adapter keeps about the step beside its channels."""
        return {name: decoded(value, self._payloads) for name, value in self.state.fields.items()}

    @property
    def metadata(self) -> dict[str, Any]:
        """The step's metadata, as LangGraph has them."""
        metadata = self.fields.get(METADATA)
        return metadata if isinstance(metadata, dict) else {}

    @property
    def delta_channels(self) -> list[str]:
        """The channels that LangGraph puts together from what was written, as far as it says so."""
        counters = self.metadata.get(_COUNTERS)
        return [*counters] if isinstance(counters, dict) else []

    @property
    def number(self) -> int | None:
        """The step's number on its branch, as LangGraph counts; None where it is not counted."""
        return step_number(self.state, self._payloads)

    @property
    def source(self) -> str | None:
        """What the step came from: "input", "loop", "update" or "fork"; None where the log does not say."""
        source = self.metadata.get("source")
        return source if isinstance(source, str) else None

    def __repr__(self) -> str:
        return inspect.safe_text(f"<state after step #{self.step.sequence}: {', '.join(self)}>")


class History:
    """One thread as it is now."""

    def __init__(self, storage: Storage, states: reader.Reader, thread_id: str) -> None:
        row = storage.thread(thread_id)
        if row is None:
            raise UsageError(f"there is no thread {thread_id!r}{_near_threads(storage, thread_id)}")
        self.storage = storage
        self.states = states
        self.thread_id = thread_id
        self.row: ThreadRow = row
        self.number = row.number
        self.payloads = reader.Payloads(storage, row.number)

    # --- lanes ---

    def lanes(self) -> Iterator[tuple[int, str, LaneRow]]:
        """Number, name and row of each lane, in the order in which they were opened."""
        after = 0
        while page := self.storage.lanes(self.number, after, PAGE_STEPS):
            yield from page
            after = page[-1][0]

    def lane(self, name: str) -> tuple[int, LaneRow]:
        """Number and row of a lane.

        Raises:
            UsageError: There is none of that name.
        """
        found = self.storage.lane(self.number, name)
        if found is None:
            raise UsageError(f"thread {self.thread_id!r} has no lane {name!r}{near(name, self.lane_names())}")
        return found

    def lane_names(self) -> list[str]:
        return [name for _, name, _ in self.lanes()]

    # --- steps ---

    def steps(self, lane: int | None, before: int = 0) -> Iterator[Link]:
        """Every step that lists show, newest first; one that was committed again stands once, where it was first."""
        while page := self.storage.steps(self.number, lane, before, PAGE_STEPS):
            self._check_unpruned()
            for sequence, event in reader.decoded(self.storage, self.number, page):
                assert isinstance(event, StepCommitted)
                yield Link(sequence, event)
            before = page[-1].sequence

    def found(self, lane: int, step_ids: Iterable[str]) -> list[Found]:
        """Where the events of some step ids stand."""
        found = self.storage.find(self.number, lane, [fmt.id_key(step_id) for step_id in step_ids])
        self._check_unpruned()
        return found

    def _check_unpruned(self) -> None:
        """Raise ConflictError if lanes may have other numbers than when the thread's row was read."""
        self.storage.lane_names(self.number, set(), self.row.first)

    def link(self, sequence: int) -> Link:
        """A step as the end of a branch."""
        (link,) = self.links([sequence])
        return link

    def links(self, sequences: Iterable[int]) -> list[Link]:
        """Some steps, in the order of their sequences in the argument."""
        wanted = [*sequences]
        records = self.storage.read(self.number, wanted)
        for sequence in wanted:
            if sequence not in records:
                raise reader.missing(self.storage, self.number, sequence)
        found: list[Link] = []
        for sequence, event in reader.decoded(self.storage, self.number, [records[each] for each in wanted]):
            if not isinstance(event, StepCommitted):
                raise UsageError(f"event {sequence} of thread {self.thread_id!r} is not a step")
            found.append(Link(sequence, event))
        return found

    def view(self, sequence: int) -> View:
        """The state after a step."""
        return View(self.link(sequence).step, self.states.state(self.number, sequence), self.payloads)

    # --- branches ---

    def upwards(self, lane: int, end: Link) -> Iterator[list[Link]]:
        """A branch from its end to its beginning, the end included, page by page, nearest first.

        It ends where a parent is not in the log, or comes round again.
        """
        yield [end]
        seen = {int(end.sequence)}
        last = end
        # In a lane where no step was committed again, and none is hidden, a parent is found further down the list.
        listed = self.storage.lane(self.number, end.event.lane)
        if listed is not None and not listed[1].replaced:
            for page in self._listed(lane, end):
                seen.update(link.sequence for link in page)
                last = page[-1]
                yield page
        while last.event.parent_id is not None:
            line = self.storage.ancestry(self.number, lane, fmt.id_key(last.event.step_id), PAGE_STEPS)
            fresh: list[int] = []
            for _, found in line:
                if found.step in seen:
                    break
                seen.add(found.step)
                fresh.append(found.step)
            if not fresh:
                return
            page = self.links(fresh)
            last = page[-1]
            yield page
            if len(page) < PAGE_STEPS:
                return

    def _listed(self, lane: int, end: Link) -> Iterator[list[Link]]:
        wanted, before = end.event.parent_id, int(end.sequence)
        while wanted is not None and (records := self.storage.steps(self.number, lane, before, PAGE_STEPS)):
            page: list[Link] = []
            for sequence, event in reader.decoded(self.storage, self.number, records):
                assert isinstance(event, StepCommitted)
                if event.step_id == wanted:
                    page.append(Link(sequence, event))
                    wanted = event.parent_id
                    if wanted is None:
                        break
            before = records[-1].sequence
            if not page and wanted is not None:
                # Other branches lie between: however long they are, the index knows where the parent is.
                (found,) = self.found(lane, [wanted])
                if not 0 < found.step < before:
                    return
                page.append(self.link(found.step))
                wanted, before = page[-1].event.parent_id, found.step
            yield page

    def branch(self, lane: int, end: Link, since: int | None = None) -> list[int]:
        """The sequences of the steps of a branch, from its beginning or from another step on, oldest first.

        Raises:
            UsageError: That other step is not on the branch.
        """
        sequences: list[int] = []
        for page in self.upwards(lane, end):
            for link in page:
                sequences.append(link.sequence)
                if link.sequence == since:
                    return sequences[::-1]
        if since is not None:
            raise UsageError(
                f"step #{since} does not come before step #{end.sequence} on its branch; "
                "see where they part with first_divergence"
            )
        return sequences[::-1]

    def fold(self, links: Iterable[Link], state: State = EMPTY) -> Iterator[tuple[Link, State, State]]:
        """Steps that follow each other: each with the state before it on its branch, and the state after it.

        Args:
            links: The steps, oldest first.
            state: What was before the first.
        """
        for link in links:
            base = state if link.event.base == state.sequence else self._state(link.event.base)
            before, state = state, reader.folded(base, link.event, self.number, link.sequence)
            yield link, before, state

    def pages(self, sequences: list[int]) -> Iterator[Link]:
        """Steps, read page by page."""
        for start in range(0, len(sequences), PAGE_STEPS):
            yield from self.links(sequences[start : start + PAGE_STEPS])

    def _state(self, sequence: int) -> State:
        return self.states.state(self.number, sequence) if sequence else EMPTY

    def channel(self, sequence: int, name: str) -> Value | None:
        """A channel after a step; None if it is empty."""
        return self._state(sequence).channels.get(name)

    def patched(self, link: Link, name: str, old: Value | None) -> Value | None:
        """A channel after a step, folded by itself.

        Args:
            link: The step.
            name: The channel.
            old: What it was after the step's base.
        """
        if name in link.event.channels.drop:
            old = None
        patch = link.event.channels.changes.get(name)
        if patch is None:
            return old
        try:
            return apply(patch, old)
        except PatchError as error:
            reason = f"the step does not fit its base {link.event.base}: {error}"
            raise CorruptionError(reason, thread=self.number, sequence=link.sequence) from error

    # --- writes ---

    def taken(self, sequences: Iterable[int], before: State | None, source: str | None) -> list[TaskWrites]:
        """The writes that a step from such a source took over, by task.

        What waits for a step is taken over by the step of the loop that follows it, and not by an input, a fork, or an
        update beside it; an update records its own writes.

        Args:
            sequences: Where the events stand that record what waited.
            before: What the lane held when the tasks ran.
            source: The source.
        """
        if source in ("input", "fork"):
            return []
        return [
            task for task in self.writes(sequences, before) if source is None or task.is_update == (source == "update")
        ]

    def writes(self, sequences: Iterable[int], state: State | None) -> list[TaskWrites]:
        """The writes that count of some events that record them, by task.

        Args:
            sequences: Where the events stand.
            state: What the lane held when the tasks ran, which names the nodes of what was sent.
        """
        wanted = [*sequences]
        records = self.storage.read(self.number, wanted) if wanted else {}
        recorded: list[WritesRecorded] = []
        places: dict[str, list[Sequence]] = {}
        for sequence, event in reader.decoded(self.storage, self.number, [*records.values()]):
            assert isinstance(event, WritesRecorded)
            recorded.append(event)
            places.setdefault(event.task_id, []).append(sequence)
        tasks: dict[tuple[str, str], list[tuple[str, Value]]] = {}
        for pending in fold_writes(recorded):
            place = (pending.task_id, pending.task_path)
            tasks.setdefault(place, []).append((pending.write.channel, pending.write.value))
        return [
            TaskWrites(id_, path, self.node(id_, path, state), tuple(places[id_]), stored, self.payloads)
            for (id_, path), stored in tasks.items()
        ]

    def node(self, task_id: str, task_path: str, state: State | None) -> str | None:
        """The node that a task ran, as its path says, or what was sent to it."""
        pulled = _PULL.findall(task_path)
        if pulled:
            return str(pulled[-1]).strip()
        pushed = _PUSH.search(task_path)
        if pushed is None or state is None or task_path.count("~") > 1:
            return None
        sent = read(state, paths.to(SENDS, int(pushed[1]), "node"), self.payloads)
        return sent if isinstance(sent, str) else None


def as_step(sequence: Sequence, event: StepCommitted) -> Step:
    return Step(sequence, event.step_id, event.parent_id, event.lane, event.created_at)


class _Metadata(msgspec.Struct):
    step: Any = None


_metadata = msgspec.msgpack.Decoder(_Metadata)


def number_in(event: StepCommitted, payloads: reader.Payloads) -> int | None:
    """The number that a step's own patch gives it; None if it gives none."""
    patch = event.fields.changes.get(METADATA)
    if isinstance(patch, Merge | Map):
        entry = (patch.changes if isinstance(patch, Merge) else patch.entries).get("step")
        number = decoded(entry, payloads) if isinstance(entry, Blob) else None
    elif isinstance(patch, Blob):
        try:
            number = _metadata.decode(content_of(patch.content, payloads)).step
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            number = None
    else:
        number = None
    return number if type(number) is int else None


def step_number(state: State, payloads: reader.Payloads) -> int | None:
    """The number that a step has on its branch, as LangGraph counts."""
    number = read_value(state.fields.get(METADATA), (paths.Name("step"),), payloads)
    return number if type(number) is int else None


# --- data out of values ---


def decoded(value: Value, payloads: reader.Payloads) -> Data:
    """A stored value as data."""
    if not isinstance(value, Map) or value.wrapped:
        return inspect.decode(value.type, payloads.payload(value))
    payloads.fetch(ref.sequence for ref in references(value))
    return {key: decoded(item, payloads) for key, item in value.entries.items()}


def content_of(content: Content, payloads: reader.Payloads) -> bytes | memoryview:
    """The bytes of some content."""
    if isinstance(content, Ref):
        return payloads.view(content)
    if isinstance(content, bytes):
        return content
    return b"".join(part if isinstance(part, bytes) else payloads.view(part) for part in content.parts)


def refs(content: Content) -> Iterator[Ref]:
    """Every reference in some content."""
    parts = (content,) if isinstance(content, bytes | Ref) else content.parts
    yield from (part for part in parts if isinstance(part, Ref))


def cut(value: Array, start: int, stop: int) -> list[Content]:
    """The contents of some elements of an array, one by one."""
    if start > value.count // 2:  # nearer to the end
        rest = value.count
        pieces: list[New] = []
        for piece in reversed(value.pieces):
            if rest <= start:
                break
            rest -= len(piece.lengths)
            pieces.append(piece)
        return _cut(pieces[::-1], start - rest, stop - rest)
    return _cut(value.pieces, start, stop)


def _cut(pieces: Iterable[New], start: int, stop: int) -> list[Content]:
    found: list[Content] = []
    for piece in pieces:
        size = len(piece.lengths)
        if start < size and stop > 0:
            found += split(piece, max(start, 0), min(stop, size))
        start, stop = start - size, stop - size
        if stop <= 0:
            break
    return found


def split(piece: New, start: int = 0, stop: int | None = None) -> list[Content]:
    """The contents of elements that stand in a row, one by one."""
    lengths = piece.lengths
    if len(lengths) == 1:
        return [piece.content][start:stop]
    stop = len(lengths) if stop is None else stop
    place = sum(lengths[:start])
    found: list[Content] = []
    for length in lengths[start:stop]:
        found.append(cut_content(piece.content, place, place + length))
        place += length
    return found


def read(state: State, path: paths.Path, payloads: reader.Payloads) -> Any:
    """What stands at a path of a state."""
    return read_value(state.channels.get(path.channel), path.inside, payloads)


def read_value(value: Value | None, inside: tuple[paths.Part, ...], payloads: reader.Payloads) -> Any:
    """What stands on a way into a stored value."""
    spot, rest = locate(value, inside, payloads)
    if spot is None:
        return paths.ABSENT
    return paths.find(spot_data(spot, payloads), rest)


Spot = Value | Content
"""What is stored by itself within a value: a value, or the content of an element."""


def locate(
    value: Value | None, inside: tuple[paths.Part, ...], payloads: reader.Payloads
) -> tuple[Spot | None, tuple[paths.Part, ...]]:
    """The innermost thing that is stored by itself on a way into a value, and the rest of the way.

    Nothing is decoded, but elements that are looked for by a field.
    """
    while value is not None and inside:
        part = inside[0]
        if isinstance(value, Map) and isinstance(part, paths.Name):
            value, inside = value.entries.get(part.name), inside[1:]
        elif isinstance(value, Array) and not isinstance(part, paths.Name):
            index = index_of(value, part, payloads)
            if index is None:
                return None, inside
            return cut(value, index, index + 1)[0], inside[1:]
        else:
            break
    return value, inside


def at_index(
    value: Value | None, inside: tuple[paths.Part, ...], payloads: reader.Payloads
) -> tuple[int | None, tuple[paths.Part, ...]]:
    """The place in the first array that a way leads through, and the way with that place in it.

    There is no place where it leads through no array, or to nothing in it.
    """
    for number, part in enumerate(inside):
        if isinstance(value, Map) and isinstance(part, paths.Name):
            value = value.entries.get(part.name)
        elif isinstance(value, Array) and not isinstance(part, paths.Name):
            index = index_of(value, part, payloads)
            place = paths.Index(value.count if index is None else index)
            return index, (*inside[:number], place, *inside[number + 1 :])
        else:
            break
    return None, inside


def index_of(value: Array, part: paths.Part, payloads: reader.Payloads) -> int | None:
    """The place of an element in an array."""
    if isinstance(part, paths.Index):
        index = part.at + value.count if part.at < 0 else part.at
        return index if 0 <= index < value.count else None
    assert isinstance(part, paths.Match)
    index = 0
    payloads.fetch(ref.sequence for ref in references(value))
    for piece in value.pieces:
        if may_hold(piece.content, part, payloads):
            for offset, content in enumerate(split(piece)):
                if is_match(content, part, payloads):
                    return index + offset
        index += len(piece.lengths)
    return None


def may_hold(content: Content, part: paths.Match, payloads: reader.Payloads) -> bool:
    """Whether an element with this field may stand in some content, as far as its bytes tell."""
    value = part.value.encode(errors="surrogatepass")  # which stands in no text that is stored
    return value in bytes(content_of(content, payloads)) or part.value.lstrip("-").isdigit()


def is_match(content: Content, part: paths.Match, payloads: reader.Payloads) -> bool:
    """Whether an element is the one that a path means."""
    if not may_hold(content, part, payloads):
        return False
    return paths.matches(inspect.decode("msgpack", content_of(content, payloads)), part)


def spot_data(spot: Spot, payloads: reader.Payloads) -> Data:
    """What is stored by itself, as data."""
    if isinstance(spot, Blob | Array | Map):
        return decoded(spot, payloads)
    payloads.fetch(ref.sequence for ref in refs(spot))
    return inspect.decode("msgpack", content_of(spot, payloads))


def changed_channels(patch: Merge) -> list[str]:
    """The channels that a patch touches."""
    return [*dict.fromkeys((*patch.drop, *patch.changes))]


# --- near misses ---


def near(name: str, names: Iterable[str]) -> str:
    """What somebody may have meant, as the end of a message."""
    known = [*names]
    close = get_close_matches(name, known, n=3, cutoff=0.5) or [each for each in known if name and name in each][:3]
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(map(repr, known[:8]))
    return f"; there {'is' if len(known) == 1 else 'are'} {shown}{', ...' if len(known) > 8 else ''}" if known else ""


def _near_threads(storage: Storage, thread_id: str) -> str:
    names = (name for name, _ in storage.threads(0, 1000))
    return near(thread_id, (name for name in names if not name.startswith(fmt.OWN_THREADS)))
