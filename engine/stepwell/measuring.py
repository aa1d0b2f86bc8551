"""What a log's bytes are for: a walk over every event, by kind, channel and thread.

It reads page by page, each in a transaction of its own, and holds one page of events (16 MiB and one event more at the
most), the names of channels, up to a number of them, and the largest threads.  What is appended, sealed, pruned or
deleted meanwhile is counted as it is found.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from stepwell import codec
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import StepwellError
from stepwell.events import ItemEvent, ItemPut, StepCommitted, WritesRecorded
from stepwell.patch import Blob, Content, Joined, Map, Merge, New, Patch, Ref
from stepwell.storage import Storage, ThreadRow

MOST_NAMES: Final = 4096
_PAGE_THREADS: Final = 256
_PAGE_EVENTS: Final = 128

_KINDS: Final = {
    fmt.KIND_THREAD_OPENED: "ThreadOpened",
    fmt.KIND_LANE_OPENED: "LaneOpened",
    fmt.KIND_STEP: "StepCommitted",
    fmt.KIND_WRITES: "WritesRecorded",
    fmt.KIND_THREAD_COPIED: "ThreadCopied",
    fmt.KIND_THREAD_PRUNED: "ThreadPruned",
    fmt.KIND_THREAD_DELETED: "ThreadDeleted",
    fmt.KIND_THREAD_LABELLED: "ThreadLabelled",
    fmt.KIND_ITEM_PUT: "ItemPut",
    fmt.KIND_ITEM_DELETED: "ItemDeleted",
    fmt.KIND_ITEM_TOUCHED: "ItemTouched",
}


class Compression(NamedTuple):
    """What compressing some events has saved.

    Attributes:
        events: Number of the events.
        plain_bytes: Bytes of their bodies before compression; content that another event holds is not among them.
        stored_bytes: Bytes of their records or segments, headers included, without what a page leaves empty.
    """

    events: int
    plain_bytes: int
    stored_bytes: int

    @property
    def ratio(self) -> float:
        """Stored bytes for each plain one; 0 if there are none."""
        return self.stored_bytes / self.plain_bytes if self.plain_bytes else 0.0


class KindSize(NamedTuple):
    """The events of one kind: how many, and the bytes of their bodies before compression."""

    events: int
    plain_bytes: int


class ContentSize(NamedTuple):
    """The content of one channel or field.

    Attributes:
        events: How often an event said something of it.
        new_bytes: Bytes that these events hold, before compression.
        shared_bytes: Bytes that they refer to, held once by other events.
    """

    events: int
    new_bytes: int
    shared_bytes: int


class ThreadSize(NamedTuple):
    """One thread: how many events, and the bytes of their records and segments."""

    thread_id: str
    events: int
    stored_bytes: int


class ItemsSize(NamedTuple):
    """What is remembered across threads, with its past.

    Attributes:
        events: How many events say something of it.
        new_bytes: Bytes of content that these events hold, before compression.
        shared_bytes: Bytes that they refer to, held once by others of them.
        stored_bytes: Bytes of their records and segments.
    """

    events: int
    new_bytes: int
    shared_bytes: int
    stored_bytes: int


class Measurement(NamedTuple):
    """What a log's bytes are for.

    Attributes:
        threads: Number of threads that were measured; all items together are none.
        loose: Events that are in no segment yet.
        sealed: Events in segments.
        kinds: By the name of the event type, those with most bytes first.
        channels: By channel, those with most new bytes first; written by steps and by tasks.
        fields: By what the adapter keeps beside the channels, likewise.
        other_content: Of channels and fields whose names came after `measuring.MOST_NAMES` others.
        items: What is remembered across threads; of one thread there is nothing.
        largest: The threads with most stored bytes, the largest first.
        damaged: Records and segments that could not be read, and are left out.
    """

    threads: int
    loose: Compression
    sealed: Compression
    kinds: dict[str, KindSize]
    channels: dict[str, ContentSize]
    fields: dict[str, ContentSize]
    other_content: ContentSize
    items: ItemsSize
    largest: list[ThreadSize]
    damaged: int


def measure(
    storage: Storage, thread_id: str | None, largest: int, progress: Callable[[str, int, int], None]
) -> Measurement:
    """See `Log.measure`."""
    sizes = (ThreadSize(name, row.last - row.first + 1, row.stored_bytes) for name, row in _threads(storage, thread_id))
    counted = _Counted(sizes)
    named = (size for size in counted if not size.thread_id.startswith(fmt.OWN_THREADS))
    biggest = heapq.nlargest(largest, named, key=lambda size: size.stored_bytes)
    walk = _Walk(storage, counted.events, progress)
    for name, row in _threads(storage, thread_id):
        walk.thread(row, is_own=name.startswith(fmt.OWN_THREADS))
    return walk.measurement(biggest)


def _threads(storage: Storage, thread_id: str | None) -> Iterator[tuple[str, ThreadRow]]:
    if thread_id is not None:
        row = storage.thread(thread_id)
        if row is not None:
            yield thread_id, row
        return
    after = 0
    while page := storage.threads(after, _PAGE_THREADS):
        yield from page
        after = page[-1][1].number


class _Counted:
    """Sizes of threads, of which the events are added up as they go by."""

    def __init__(self, sizes: Iterable[ThreadSize]) -> None:
        self.events = 0
        self._sizes = sizes

    def __iter__(self) -> Iterator[ThreadSize]:
        for size in self._sizes:
            self.events += size.events
            yield size


class _Names:
    """Sizes by name; what comes when there are too many names is one."""

    def __init__(self) -> None:
        self.sizes: dict[str, tuple[int, int, int]] = {}
        self.others = (0, 0, 0)

    def add(self, name: str, new: int, shared: int) -> None:
        events, new_bytes, shared_bytes = self.sizes.get(name, (0, 0, 0))
        if events or len(self.sizes) < MOST_NAMES:
            self.sizes[name] = events + 1, new_bytes + new, shared_bytes + shared
        else:
            events, new_bytes, shared_bytes = self.others
            self.others = events + 1, new_bytes + new, shared_bytes + shared

    def found(self) -> dict[str, ContentSize]:
        ordered = sorted(self.sizes.items(), key=lambda item: item[1][1], reverse=True)
        return {name: ContentSize(*size) for name, size in ordered}


class _Walk:
    """Adds up the events of one thread after the other."""

    def __init__(self, storage: Storage, total: int, progress: Callable[[str, int, int], None]) -> None:
        self._storage = storage
        self._total = total
        self._progress = progress
        self._done = self._threads = self._damaged = 0
        self._loose = self._sealed = Compression(0, 0, 0)
        self._kinds: dict[str, KindSize] = {}
        self._channels = _Names()
        self._fields = _Names()
        self._items = ItemsSize(0, 0, 0, 0)

    def thread(self, row: ThreadRow, *, is_own: bool) -> None:
        if is_own:
            self._items = self._items._replace(stored_bytes=self._items.stored_bytes + row.stored_bytes)
        else:
            self._threads += 1
        self._loose = _more(self._loose, 0, 0, row.loose_bytes)
        self._sealed = _more(self._sealed, 0, 0, row.stored_bytes - row.loose_bytes)
        after = row.first - 1
        while page := self._storage.survey(row.number, after, _PAGE_EVENTS):
            for surveyed in page:
                if isinstance(surveyed.record, Record):
                    self._record(row.number, surveyed.record)
                else:
                    self._damaged += 1
            self._done += page[-1].sequence - after
            after = page[-1].sequence
            self._progress("measuring events", min(self._done, self._total), self._total)

    def _record(self, thread: int, record: Record) -> None:
        try:
            event = codec.decode(thread, record)
        except StepwellError:
            self._damaged += 1
            return
        if record.is_sealed:
            self._sealed = _more(self._sealed, 1, record.size, 0)
        else:
            self._loose = _more(self._loose, 1, record.size, 0)
        kind = _KINDS[record.header.kind]
        events, plain_bytes = self._kinds.get(kind, (0, 0))
        self._kinds[kind] = KindSize(events + 1, plain_bytes + record.size)
        weigh = _Scale(record.sequence).weigh
        if isinstance(event, StepCommitted):
            for names, merge in ((self._channels, event.channels), (self._fields, event.fields)):
                for name, patch in merge.changes.items():
                    names.add(name, *weigh(patch))
        elif isinstance(event, WritesRecorded):
            for write in event.writes:
                self._channels.add(write.channel, *weigh(write.value))
        elif isinstance(event, ItemEvent):
            values = (event.value, *event.attachments.values()) if isinstance(event, ItemPut) else ()
            weights = [weigh(value) for value in values]
            events, new, shared, stored_bytes = self._items
            new, shared = new + sum(each for each, _ in weights), shared + sum(each for _, each in weights)
            self._items = ItemsSize(events + 1, new, shared, stored_bytes)

    def measurement(self, largest: list[ThreadSize]) -> Measurement:
        others = zip(self._channels.others, self._fields.others, strict=True)
        return Measurement(
            self._threads,
            self._loose,
            self._sealed,
            dict(sorted(self._kinds.items(), key=lambda item: item[1].plain_bytes, reverse=True)),
            self._channels.found(),
            self._fields.found(),
            ContentSize(*(channels + fields for channels, fields in others)),
            self._items,
            largest,
            self._damaged,
        )


class _Scale:
    """Weighs the content of one event: each of its bytes is new once, whatever refers to it."""

    def __init__(self, sequence: int) -> None:
        self._sequence = sequence
        self._met: set[int] = set()

    def weigh(self, patch: Patch) -> tuple[int, int]:
        """Bytes that the event holds, and bytes that it refers to."""
        new = shared = 0
        for content in _contents(patch):
            for part in content.parts if isinstance(content, Joined) else (content,):
                if not isinstance(part, Ref):
                    new += len(part)
                elif part.sequence == self._sequence and part.start not in self._met:
                    self._met.add(part.start)
                    new += part.length
                else:
                    shared += part.length
        return new, shared


def _contents(patch: Patch) -> Iterator[Content]:
    """All content in a patch."""
    if isinstance(patch, Blob):
        yield patch.content
    elif isinstance(patch, Merge | Map):
        for item in (patch.changes if isinstance(patch, Merge) else patch.entries).values():
            yield from _contents(item)
    else:
        pieces: tuple[object, ...] = patch.pieces
        yield from (piece.content for piece in pieces if isinstance(piece, New))


def _more(size: Compression, events: int, plain_bytes: int, stored_bytes: int) -> Compression:
    return Compression(size.events + events, size.plain_bytes + plain_bytes, size.stored_bytes + stored_bytes)
