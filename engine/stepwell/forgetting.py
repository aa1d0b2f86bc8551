"""Rewriting the thread of items to what is to be kept of it.

What is kept is put once more, in its order, behind all that there was, and each event says with which commit it came
first: so the past that is kept reads as before.  Everything before is removed, in the same commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from typing import Final

from msgspec.structs import replace

from stepwell import codec, reader
from stepwell import format as fmt
from stepwell.clock import now
from stepwell.codec import Record
from stepwell.content import entry
from stepwell.events import Event, ItemDeleted, ItemEvent, ItemPut, Sequence, ThreadPruned
from stepwell.item_rows import ItemRows
from stepwell.patch import Ref
from stepwell.storage import Append, Entry, ItemName, Storage, ThreadRow
from stepwell.storage.items import Version

_PAGE_EVENTS: Final = 256


def plan(
    storage: Storage, row: ThreadRow, before: int, is_kept: Callable[[ItemName], bool] = lambda name: True
) -> Append | None:
    """The operation that forgets some items, and what others were before some commit; None if there is nothing to do.

    Args:
        storage: Where the log is kept.
        row: The row of the thread of items, which must still be true when the operation is carried out.
        before: What no moment from this commit on shows is forgotten.
        is_kept: Which items are to be kept at all.
    """
    rows = ItemRows()
    newest = changes = 0
    for record in _records(storage, row):
        event = codec.decode(row.number, record)
        if isinstance(event, ItemEvent):
            rows.add(record.sequence, record.header, event)
            newest = commit_of(record.header, event)
            changes += 1
    since = max(min(before, newest), past_begins(storage, row))
    born: dict[int, int] = {}
    expiries: dict[int, int | None] = {}
    for name, history in rows.histories():
        if is_kept(name):
            for life in history.lives:
                shown = _shown_since(life.versions, since)
                born.update((version.sequence, 0) for version in shown)
                if shown and shown[0].sequence != life.born:
                    born[shown[0].sequence] = life.created_at
            if history.newest is not None:
                expiries[history.lives[-1].versions[-1].sequence] = history.expires_at or None
    if len(born) == changes:
        return None
    entries = [*_Moving(storage, row).entries(since, born, expiries)]
    return Append(fmt.ITEMS_THREAD_ID, lambda number, first: entries, row.last, row.number, restart=True)


def past_begins(storage: Storage, row: ThreadRow) -> int:
    """The commit from which on the past of items is known; 0 if all of it is."""
    record = storage.read(row.number, [row.first]).get(row.first) if row.first > 1 else None
    event = None if record is None else codec.decode(row.number, record)
    return event.since if isinstance(event, ThreadPruned) else 0


def moved(header: fmt.Header, event: ItemEvent) -> ItemEvent:
    """An event as it is put once more: it says with which commit it came first.

    What it did is known by then, so a deletion asks for nothing any more.
    """
    if isinstance(event, ItemPut):
        return replace(event, commit=commit_of(header, event))
    if isinstance(event, ItemDeleted):
        return replace(event, commit=commit_of(header, event), expired_by=None)
    return event


def commit_of(header: fmt.Header, event: ItemEvent) -> int:
    """The commit that an event came with first."""
    return (event.commit if isinstance(event, ItemPut | ItemDeleted) else 0) or header.commit


def _shown_since(versions: Several[Version], since: int) -> list[Version]:
    """The versions of one life that some moment from a commit on shows, and the deletion that ends it."""
    shown = [
        version
        for version, following in zip(versions, [*versions[1:], None], strict=True)
        if following is None or following.commit > since
    ]
    return [] if len(shown) == 1 and shown[0].deleted else shown


def _records(storage: Storage, row: ThreadRow) -> Iterator[Record]:
    after = row.first - 1
    while page := storage.scan(row.number, after, row.last + 1, _PAGE_EVENTS, reverse=False):
        yield from page
        after = page[-1].sequence


class _Moving:
    """The events that the thread begins anew with, in order.

    Where each will stand is known, since nobody may append in between, so that they can refer to each other's content.
    """

    def __init__(self, storage: Storage, row: ThreadRow) -> None:
        self._storage = storage
        self._row = row
        self._payloads = reader.Payloads(storage, row.number)
        self._now = now()
        self._last = row.last
        self._known: dict[bytes, Ref] = {}

    def entries(self, since: int, born: dict[int, int], expiries: dict[int, int | None]) -> Iterator[Entry]:
        """The beginning, then all that is kept.

        Args:
            since: The commit that the past begins with.
            born: What is kept, by sequence; with when its item was created, if what says so is not kept.
            expiries: Of what is there now, when it expires.
        """
        row = self._row
        last, created_at = Sequence(row.last), row.created_at
        yield self._entry(ThreadPruned(fmt.ITEMS_THREAD_ID, last, row.chain, self._now, created_at, since=since))
        for record in _records(self._storage, row):
            if record.sequence not in born:
                continue
            event = codec.decode(row.number, record)
            assert isinstance(event, ItemEvent)
            event = moved(record.header, event)
            if isinstance(event, ItemPut):
                event = replace(
                    event,
                    born_at=born[record.sequence] or event.born_at,
                    expires_at=expiries.get(record.sequence, event.expires_at),
                )
            yield self._entry(reader.resolved(event, self._payloads.read))

    def _entry(self, event: Event) -> Entry:
        self._last += 1
        body = codec.encode(event, lambda digest, _: self._known.get(digest))
        for digest, start, length in body.fresh:
            self._known[digest] = Ref(self._last, start, length)
        return entry(event, body, self._now)
