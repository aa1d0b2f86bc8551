"""The log's side of an import: what a thread has already, and appends that are not waited for one by one.

Where the next append will stand is known beforehand, so that a step can name its base before that is committed.  That
nobody else appended in between is part of each append, and that the one before it went well.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Several
from itertools import groupby
from operator import attrgetter
from typing import Final

from stepwell import inspect, reader
from stepwell.content import Place as Standing
from stepwell.due import status_of_channels
from stepwell.events import Event, Label, Sequence, StepCommitted, Write, WritesRecorded
from stepwell.fold import PendingWrite
from stepwell.format import id_key
from stepwell.labels import changed, relabelled
from stepwell.log import Log
from stepwell.patch import parse
from stepwell.storage import Found
from stepwell.writer import Ticket
from stepwell_langgraph.addresses import CHECKPOINT, METADATA
from stepwell_langgraph.catalogue import labels_of, status_of_writes
from stepwell_langgraph.comparing import Comparison
from stepwell_langgraph.sources import Place, Reading, StoredCheckpoint, StoredWrite
from stepwell_langgraph.tip import Known, Tip, moved_all
from stepwell_langgraph.whole import JSON, MSGPACK, Span, time_of

_TIPS_BYTES: Final = 8 << 20
_LOOKED_INTO_BYTES: Final = 1 << 16


class Arrival:
    """One checkpoint that is under way, or was found to be there.

    Attributes:
        place: Which one.
        checkpoint: What the source has of it; None if that is nothing, or was not looked at.
        writes: The writes that wait for it, in the order in which they are taken over.
        size: Bytes of both.
        base: What is known of its parent.
        was_there: Whether the log had it.
        begins_with: Of lists that were seen to begin with another one's elements, the payload of that, by channel.
        appended_writes: How many writes the log did not have.
        ticket: The append that is under way.
        sequence: Where the step stands, or will stand.
        is_missing: Whether there was something to append, and it was not to be appended.
    """

    __slots__ = (
        "appended_writes",
        "base",
        "begins_with",
        "checkpoint",
        "is_missing",
        "place",
        "sequence",
        "size",
        "ticket",
        "was_there",
        "writes",
    )

    def __init__(self, place: Place, reading: Reading) -> None:
        self.place = place
        self.checkpoint = reading.checkpoint
        self.writes = reading.writes
        self.size = reading.size
        self.base = Tip()
        self.was_there = False
        self.begins_with: Mapping[str, Span] = {}
        self.appended_writes = 0
        self.ticket: Ticket | None = None
        self.sequence = 0
        self.is_missing = False


class Receiver:
    """The log's side of one thread: what is there already, and where the next append will stand.

    Attributes:
        id: Its name.
        number: Its number; 0 while it is not in the log.
    """

    def __init__(self, log: Log, thread_id: str) -> None:
        self.id = thread_id
        self._log = log
        self._thread = log.thread(thread_id)
        self._last: Several[Standing] = ()  # where the events of the last append stand, or will
        self._lanes: dict[str, int] = {}
        self._opening: set[str] = set()  # lanes that appends under way will open
        self._tips: dict[tuple[str, str], Tip] = {}
        self._appended: set[tuple[str, str]] = set()
        self._comparison: Comparison | None = None
        self.look_again()

    def forget(self) -> None:
        """An append was refused: what those after it would have led to is not so."""
        self._tips.clear()
        self._appended.clear()
        self.look_again()

    def look_again(self) -> None:
        """See where the thread stands, while no append is under way."""
        row = self._thread.row()
        self.number = row.number if row else 0
        self._comparison = None
        self._head = row.last if row else 0
        self._labels: Mapping[str, Label] = row.labels if row else {}  # after what is under way
        self._last = ()
        self._lanes.clear()
        self._opening.clear()

    def settled(self) -> None:
        """What was appended is durable: the thread has its number, and of what is known only the latest is kept."""
        row = self._thread.row()
        number = row.number if row else 0
        if number != self.number:  # it is new, or was deleted and made anew
            self._comparison = None
            if self.number:
                self.forget()
        self.number = number
        self._opening.clear()
        held = sum(tip.size for tip in self._tips.values())
        for key in [*self._tips][:-1]:
            if held <= _TIPS_BYTES:
                break
            held -= self._tips.pop(key).size

    def find(self, namespace: str, checkpoint_id: str) -> Found:
        """Where a checkpoint and its writes stand in the log."""
        lane = self._lane(namespace)
        if not lane:
            return Found(0, 0, False, ())
        return self._log.storage.find(self.number, lane, [id_key(checkpoint_id)])[0]

    def base(self, place: Place) -> Tip:
        """What is known of a checkpoint's parent; an empty tip if the log has none."""
        if place.parent_id is None:
            return Tip()
        tip = self._tips.get((place.namespace, place.parent_id))
        if tip is not None:
            return tip
        found = self.find(place.namespace, place.parent_id)
        if not found.step or found.hidden:
            return Tip()
        state = self._log.reader.state(self.number, found.step)
        return Tip.from_state(state, reader.Payloads(self._log.storage, self.number))

    @property
    def comparison(self) -> Comparison:
        """Compares what the thread holds, and remembers what was the same."""
        if self._comparison is None:
            self._comparison = Comparison(reader.Payloads(self._log.storage, self.number))
        return self._comparison

    def writes(self, found: Found) -> dict[tuple[str, int], PendingWrite]:
        """The writes of a checkpoint that are in the log, by task and index."""
        pending = reader.writes(self._log.storage, self.number, found.writes)
        return {(each.task_id, each.write.index): each for each in pending}

    def append(self, item: Arrival, *, dry: bool = False) -> None:
        """Begin to append what the log does not have of a checkpoint and its writes; if `dry`, only see what it is."""
        place, checkpoint = item.place, item.checkpoint
        found = self.find(place.namespace, place.checkpoint_id)
        events: list[Event] = []
        tip: Tip | None = None
        item.was_there = bool(found.step and not found.hidden)
        item.sequence = found.step
        labels: dict[str, Label] = {}
        created_at = 0
        # Of a thread the root graph tells what it is about, and what it has come to; unless nobody can look into it.
        is_root = not place.namespace
        is_told = is_root and not (checkpoint is not None and _is_closed(checkpoint))
        if checkpoint is not None and not item.was_there:
            item.base = self.base(place)
            created_at = time_of(checkpoint.core)
            channels, known = moved_all(item.base.channels, checkpoint.channels, checkpoint.unchanged)
            item.begins_with = {name: each.begins_with for name, each in known.items() if each.begins_with is not None}
            named = {CHECKPOINT: checkpoint.core, METADATA: checkpoint.metadata}
            fields, known_fields = moved_all(item.base.fields, named)
            status = status_of_channels(known, lambda name: _looked_into(known[name])) if is_told else None
            is_told = status is not None
            labels = _labels(checkpoint) if is_root else {}
            step = StepCommitted(
                place.checkpoint_id,
                place.parent_id,
                channels,
                fields,
                place.namespace,
                item.base.sequence,
                created_at=created_at,
                status=status,
            )
            events.append(step)
            tip = Tip(0, known, known_fields)
        missing = self._missing(item, found)
        item.appended_writes = len(missing)
        for (path, task_id), writes in groupby(missing, key=attrgetter("task_path", "task_id")):
            recorded = tuple(
                Write(write.idx, write.channel, parse(write.value[0], write.value[1].copy())) for write in writes
            )
            said = status_of_writes((write.channel, write.value) for write in recorded) if is_told else None
            written = WritesRecorded(place.checkpoint_id, task_id, path, recorded, place.namespace, created_at, said)
            events.append(written)
        item.is_missing = dry and bool(events)
        if not events or dry:
            return
        item.ticket = self._thread.begin_append(events, expected_head=self._head, after=self._last, labels=labels)
        self._last = item.ticket.places
        first = self._room_for(place.namespace, labels)
        self._head = first + len(events) - 1
        if tip is not None:
            item.sequence = tip.sequence = Sequence(first)
            self._tips[place.namespace, place.checkpoint_id] = tip
            self._appended.add((place.namespace, place.checkpoint_id))

    def has_appended(self, place: Place) -> bool:
        """Whether the parent of a checkpoint was appended by this import, and so is what the source has."""
        return (place.namespace, place.parent_id) in self._appended

    def _room_for(self, namespace: str, labels: Mapping[str, Label]) -> int:
        """Where the first event of an append will stand: behind those that open the thread, label it, open the lane."""
        first = self._head + 1
        if first == 1:
            first += 1
        if changes := changed(self._labels, labels):
            self._labels = relabelled(self._labels, changes)
            first += 1
        if not self._lane(namespace) and namespace not in self._opening:
            self._opening.add(namespace)
            first += 1
        return first

    def _lane(self, namespace: str) -> int:
        number = self._lanes.get(namespace, 0)
        if not number and self.number and namespace not in self._opening:
            found = self._log.storage.lane(self.number, namespace)
            if found is not None:
                number = self._lanes[namespace] = found[0]
        return number

    def _missing(self, item: Arrival, found: Found) -> list[StoredWrite]:
        """The writes that the log does not have, or has another value of where the last one counts."""
        if not found.writes:
            return item.writes
        there = self.writes(found)
        missing: list[StoredWrite] = []
        for write in item.writes:
            pending = there.get((write.task_id, write.idx))
            if pending is None or (write.idx < 0 and not self.comparison.is_same(pending.write.value, write.value)):
                missing.append(write)
        return missing


def _is_closed(checkpoint: StoredCheckpoint) -> bool:
    """Whether a checkpoint is one piece that cannot be taken apart: encrypted or pickled."""
    return not (checkpoint.channels or checkpoint.unchanged) and checkpoint.core[0] not in (MSGPACK, JSON)


def _looked_into(known: Known) -> object:
    """A channel's value as data; of a long one only that it is not empty."""
    if known.span.length > _LOOKED_INTO_BYTES:
        return True
    return inspect.decode(known.type, known.span.view())


def _labels(checkpoint: StoredCheckpoint) -> dict[str, Label]:
    """The metadata of a checkpoint that describe its thread."""
    type_, span = checkpoint.metadata
    metadata = inspect.decode(type_, span.view())
    return labels_of(metadata) if isinstance(metadata, dict) else {}
