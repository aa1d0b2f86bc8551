"""Where the log holds content: the memory that lets an append refer to bytes instead of repeating them.

What a step takes over from its task's writes is usually what was recorded a moment ago.  This memory maps
the digest of each content that was appended lately to the place where it stands, per thread.  It is a
cache: forgetting costs space on disk, never correctness.

A process that goes on with a thread which it did not begin has appended nothing of it.  What tasks hand about as a
whole (all messages in a `Send`, all files) stands in the newest state, whose contents are noted when content is
first looked for within other content.

An append is encoded in its caller's thread.  Only if it holds the same content as one that is still on its
way into the log must it wait for its turn, since only the writer knows where that one will stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Several
from contextlib import suppress
from itertools import accumulate
from typing import Final

import msgspec

from stepwell import codec
from stepwell import format as fmt
from stepwell.cache import Cache, Shelf
from stepwell.codec import Fresh
from stepwell.errors import StepwellError, UsageError
from stepwell.events import (
    Event,
    ItemEvent,
    ItemPut,
    ItemTouched,
    StepCommitted,
    ThreadLabelled,
    WritesRecorded,
    status_number,
)
from stepwell.patch import Ref, references, runs
from stepwell.reader import Payloads, Reader
from stepwell.storage import Committed, Entry, ItemChange, Storage
from stepwell.storage.items import value_in_row

_CONTENT_BYTES: Final = 300  # what remembering a content takes, roughly
_RECALLED_BYTES: Final = 100  # and that a thread was recalled


class Place(msgspec.Struct, gc=False, eq=False):
    """The event that holds some content.

    Attributes:
        number: Its thread's number, once known.
        sequence: Its sequence, once known; the group that it belongs to may still fail.
        durable: Whether it is in the log for good.
        failed: Whether it never will be.
    """

    number: int = 0
    sequence: int = 0
    durable: bool = False
    failed: bool = False

    def lies_in(self, number: int, first: int) -> bool:
        """Whether the event is one of a thread that begins at `first`."""
        return self.number == number and self.sequence >= first


def newest_contents(storage: Storage, reader: Reader, thread_id: str) -> Iterator[tuple[Place, Fresh]]:
    """Each content of the newest state of the lane that a thread began with.

    Elements of arrays one by one, and the rest as it stands.
    """
    row = storage.thread(thread_id)
    lanes = [] if row is None else storage.lanes(row.number, 0, 1)
    if row is None or not lanes or not lanes[0][2].head:
        return
    state = reader.state(row.number, lanes[0][2].head)
    payloads = Payloads(storage, row.number)
    places: dict[int, Place] = {}
    for value in state.channels.values():
        payloads.fetch(ref.sequence for ref in references(value))
        for ref, lengths in runs(value):
            place = places.setdefault(ref.sequence, Place())
            place.number, place.sequence, place.durable = row.number, ref.sequence, True
            view = payloads.view(ref)
            edges = accumulate(lengths, initial=0)
            for start, length in zip(edges, lengths, strict=False):
                yield place, Fresh(codec.digest_of(view[start : start + length]), ref.start + start, length)


def _nothing(thread_id: str) -> Iterable[tuple[Place, Fresh]]:
    return ()


class NotYetPlaced(Exception):
    """The content stands in an event whose sequence is not known yet."""


class NotRecalled(Exception):
    """What the newest state holds is to be looked at, and the caller has no time to read it."""


class ContentMemory:
    """The latest contents of all threads of one log.

    Args:
        recall: Reads what the newest state of a thread holds: each content with its place.
        cache: Where contents are remembered; None for one of its own.
    """

    def __init__(
        self, recall: Callable[[str], Iterable[tuple[Place, Fresh]]] = _nothing, cache: Cache | None = None
    ) -> None:
        cache = cache or Cache()
        self._recall = recall
        self._recalled: Shelf[str, bool] = Shelf(cache)
        self._places: Shelf[tuple[str, bytes], tuple[Place, int, int]] = Shelf(cache)

    def find(
        self, thread_id: str, digest: bytes, incarnation: int | None = None, first: int = 0
    ) -> tuple[int, Ref] | None:
        """A reference to content with this digest, and the number of the thread that holds it.

        Args:
            thread_id: The thread.
            digest: Digest of the content.
            incarnation: The thread's number, which only the writer knows for sure, and only when it is the
                append's turn; None accepts durable content of any.
            first: Sequence of the thread's oldest event.

        Raises:
            NotYetPlaced: An event that is on its way into the log holds it; ask again when it is your turn.
        """
        found = self._places.get((thread_id, digest))
        if found is None:
            return None
        place, start, length = found
        stale = incarnation is not None and place.sequence and not place.lies_in(incarnation, first)
        if place.failed or stale:
            self._places.take((thread_id, digest))
            return None
        if incarnation is None and not place.durable:
            raise NotYetPlaced
        if not place.sequence:
            return None  # it comes after this append, or was refused
        return place.number, Ref(place.sequence, start, length)

    def recall(self, thread_id: str, *, may_read: bool) -> bool:
        """Note what the newest state of a thread holds, once; returns whether that was done now.

        Raises:
            NotRecalled: It would have to be read, and may not be.
        """
        if self._recalled.get(thread_id):
            return False
        if not may_read:
            raise NotRecalled
        self._recalled.put(thread_id, True, _RECALLED_BYTES)
        with suppress(StepwellError):  # what cannot be read now is stored again, and told to whoever reads it
            for place, fresh in self._recall(thread_id):
                if self._places.get((thread_id, fresh.digest)) is None:
                    self._remember(thread_id, place, fresh)
        return True

    def remember(self, thread_id: str, place: Place, fresh: Iterable[Fresh]) -> None:
        """Note what an event holds that no event before it did."""
        for content in fresh:
            self._remember(thread_id, place, content)

    def _remember(self, thread_id: str, place: Place, fresh: Fresh) -> None:
        self._places.put((thread_id, fresh.digest), (place, fresh.start, fresh.length), _CONTENT_BYTES)


def settle(places: Iterable[Place], *, durable: bool) -> None:
    """Tell places what became of their events."""
    for place in places:
        place.durable, place.failed = durable, not durable


class Encoding:
    """The entries of one append, with what the log holds already left out.

    Attributes:
        places: Where each event will stand.
        stored_bytes: Bytes of the records, as they were encoded last.

    Raises:
        NotRecalled: The log would have to be read, and `may_read` is not set.
    """

    def __init__(
        self, memory: ContentMemory, thread_id: str, events: Several[Event], now: int, *, may_read: bool = True
    ) -> None:
        self.places: list[Place] = []
        self.stored_bytes = 0
        self._memory = memory
        self._thread_id = thread_id
        self._events = events
        self._now = now
        self._may_read = may_read
        self._number: int | None = None
        self._oldest = 0
        self._early: list[Entry] | None = None
        with suppress(NotYetPlaced):
            self._early = self._encode(None, 0)

    def entries(self, number: int, first: int) -> list[Entry]:
        """The entries, for a thread of this number whose oldest event stands at `first`."""
        if self._early is not None and (not self._oldest or (self._number == number and self._oldest >= first)):
            return self._early
        self._early = None  # from here on it is another encoding that `_oldest` and the places are about
        return self._encode(number, first)

    def locate(self, committed: Committed | None) -> None:
        """Note where the events stand, before that is durable; None takes back what an attempt said."""
        for index, place in enumerate(self.places):
            place.number = committed.number if committed else 0
            place.sequence = committed.sequences[index] if committed else 0

    def _encode(self, incarnation: int | None, first: int) -> list[Entry]:
        self._number, self._oldest = incarnation, 0
        # What an encoding before this one said about where its content lies is not true of this one.
        settle(self.places, durable=False)
        self.places[:] = [Place() for _ in self._events]
        bodies = [
            codec.encode(event, lambda digest, inside: self._known(digest, incarnation, first, inside=inside))
            for event in self._events
        ]
        self.stored_bytes = 0
        for place, body in zip(self.places, bodies, strict=True):
            self.stored_bytes += fmt.HEADER_BYTES + len(body.data)
            self._memory.remember(self._thread_id, place, body.fresh)
        return [entry(event, body, self._now) for event, body in zip(self._events, bodies, strict=True)]

    def _known(self, digest: bytes, incarnation: int | None, first: int, *, inside: bool) -> Ref | None:
        found = self._memory.find(self._thread_id, digest, incarnation, first)
        # The writer, which knows the incarnation, has no time to read.
        if (
            found is None
            and inside
            and incarnation is None
            and self._memory.recall(self._thread_id, may_read=self._may_read)
        ):
            found = self._memory.find(self._thread_id, digest, incarnation, first)
        if found is None:
            return None
        number, ref = found
        if self._number is None:
            self._number = number
        if number != self._number:
            return None  # the thread was deleted and opened again in between: one of the two is gone
        self._oldest = min(self._oldest or ref.sequence, ref.sequence)
        return ref


def entry(event: Event, body: codec.Body, now: int) -> Entry:
    """An event and its body as storage wants them."""
    created_at = event.created_at or now
    if isinstance(event, StepCommitted):
        return Entry(
            event.lane,
            body.kind,
            body.data,
            body.form,
            body.digest,
            created_at,
            event.base,
            fmt.id_key(event.step_id),
            event.hidden,
            status_number(event.status),
        )
    if isinstance(event, WritesRecorded):
        key = fmt.id_key(event.step_id)
        status = status_number(event.status)
        return Entry(event.lane, body.kind, body.data, body.form, body.digest, created_at, step_key=key, status=status)
    labels = event.labels if isinstance(event, ThreadLabelled) else None
    change = _change(event) if isinstance(event, ItemEvent) else None
    return Entry(None, body.kind, body.data, body.form, body.digest, created_at, labels=labels, item=change)


def _change(event: ItemEvent) -> ItemChange:
    key, is_literal = fmt.item_place(event.namespace, event.key)
    name = None if is_literal else (event.namespace, event.key)
    if isinstance(event, ItemPut):
        stored = value_in_row(event.value, _unreadable)
        return ItemChange(key, name, stored, event.expires_at or 0, 0, 0, event.commit, event.born_at)
    if isinstance(event, ItemTouched):
        return ItemChange(key, name, None, event.expires_at, event.sequence)
    return ItemChange(key, name, expired_by=event.expired_by or 0, commit=event.commit)


def _unreadable(ref: Ref) -> bytes:
    raise UsageError(f"the value refers to event {ref.sequence}; values of items hold their content as bytes")
