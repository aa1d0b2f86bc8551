"""The items of the store as they are, held in memory as far as a budget goes, and as they were, read from the log.

1. A question is answered under one lock, at one moment: first, what has changed in the log since the last question
   is read and put into what is held.  Where nothing has changed, that is one look at the log.
2. A namespace that is searched is held whole: its items in the order in which they were put, and their vectors once
   they are asked for.  One that is larger than the budget is read page by page each time.
3. Whatever had to be read from the log may be newer than what is held.  Then the question is asked again; and at
   last of the past, which stands still.
"""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Collection as Sized
from collections.abc import Sequence as Several
from itertools import islice, takewhile
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from msgspec.structs import replace

from stepwell.cache import Cache, Shelf
from stepwell.errors import ConflictError
from stepwell.events import Commit, ItemDeleted, ItemEvent, ItemPut, ItemTouched, Sequence
from stepwell.items import Items
from stepwell.storage import Committed, Item, ItemName
from stepwell_langgraph.embedding import VECTORS
from stepwell_langgraph.values import INDEXED

if TYPE_CHECKING:
    from stepwell_langgraph.nearest import Matrix, Rows, Scored

Namespace: TypeAlias = tuple[str, ...]
Select: TypeAlias = Callable[[Several[Item]], Several[Item]]

_PAGE_ITEMS: Final = 1024
_VECTORS_PAGE_BYTES: Final = 1 << 24
_FIRST_ITEMS: Final = 64
MOST_CHANGES: Final = 4096  # beyond these, what is held is rather read anew
_CHANGES_AT_ONCE: Final = 16
_APPLIED_WHILE_ONE_IS_READ: Final = 16
_MOST_NOTED: Final = 1024
_ATTEMPTS: Final = 2  # once to read what is missing, once to answer
_ITEM_BYTES: Final = 600  # what an item takes beside its value, roughly
_LATEST: Final = (1 << 62) - 1  # Unix time in nanoseconds

OWN: Final = "\0"
"""What the first part of a namespace begins with that is not the store's, but of other adapters."""

UNKNOWN: Final = Item((), "", ("", b""), 0, 0, Commit(0), Sequence(0), None)
"""Stands for an item that is not in memory, there or not."""

_T = TypeVar("_T")
_sequence: Final = attrgetter("sequence")


class Put(NamedTuple):
    """A put of this process.

    Attributes:
        namespace: Where the item is filed.
        key: Its key there.
        type: The type of its value.
        payload: The bytes of its value.
        created_at: Unix time in nanoseconds of the put.
        expires_at: Unix time in nanoseconds from which it may be removed; None for never.
        attachments: What is stored beside the value.
    """

    namespace: Namespace
    key: str
    type: str
    payload: bytes
    created_at: int
    expires_at: int | None
    attachments: dict[str, tuple[str, bytes]]


Change: TypeAlias = Put | ItemDeleted


class View(Protocol):
    """The items at one moment."""

    def get(self, names: Several[ItemName]) -> list[Item | None]:
        """Some items; None for each that is not there."""

    def namespaces(self) -> list[Namespace]:
        """All namespaces that hold items, in order."""

    def newest(self, prefix: Namespace, count: int, select: Select) -> list[Item]:
        """The items in namespaces that begin with some parts, those first that were put last."""

    def nearest(self, prefix: Namespace, query: Matrix, count: int, select: Select) -> list[Scored]:
        """The items there that are most similar to a query, best first; one without vectors is not among them."""


class Collection:
    """The items of one namespace.

    Attributes:
        items: By key, in the order in which they were put.
        rows: Their vectors, if they were asked for.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = {item.key: item for item in sorted(items, key=_sequence)}
        self.rows: Rows | None = None
        self.items_bytes = _weights(self.items.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of memory, roughly."""
        return self.items_bytes + (self.rows.size_bytes if self.rows else 0)

    def change(self, key: str, item: Item | None) -> None:
        """An item is now this; it comes with its attachments if there are rows."""
        before = self.items.get(key)
        held = None if item is None else bare(item)
        if before is not None and held is not None and before.sequence == held.sequence:
            self.items[key] = held  # of the same value only the expiry can have changed
            if self.rows is not None:
                self.rows.touch(held)
            return
        if before is not None:
            del self.items[key]
            self.items_bytes -= _weight(before)
        if self.rows is not None:
            self.rows.discard(key)
        if item is None or held is None:
            return
        last = next(reversed(self.items.values()), held)
        self.items[key] = held
        if last.sequence > held.sequence:  # that one was read when this one had been put, but was not known to be
            self.items = {each.key: each for each in sorted(self.items.values(), key=_sequence)}
        self.items_bytes += _weight(held)
        if self.rows is not None:
            from stepwell_langgraph.nearest import vectors_of

            self.rows.add([item], [vectors_of(item)])


class Present:
    """The items as they are.  Thread-safe.

    Args:
        items: The log's items.
        most_bytes: Memory for what is held.
        dims: Numbers of a vector.
    """

    def __init__(self, items: Items, most_bytes: int, dims: int) -> None:
        self._items = items
        self._dims = dims
        self._most_bytes = most_bytes
        cache = Cache(most_bytes)
        self._collections: Shelf[Namespace, Collection] = Shelf(cache)
        self._single: Shelf[ItemName, Item] = Shelf(cache)
        self._namespaces: list[Namespace] | None = None
        self._too_large: set[Namespace] = set()
        self._position = 0  # the last change that what is held knows of
        self._noted: dict[int, tuple[Committed, Several[Change]]] = {}
        self._noted_size = 0  # bytes of memory that it takes, roughly
        self._paged = False  # whether all of a namespace was
        self._strayed = False  # whether something was read from the log for the question that is answered
        # Reentrant: a signal handler may ask in the midst of a question.
        self._lock = threading.RLock()

    def ask(self, question: Callable[[View], _T]) -> _T:
        """The answer to a question about one moment, which is not before this call."""
        self._check_alive()
        for _ in range(_ATTEMPTS):
            with self._lock:
                self._catch_up(MOST_CHANGES)
                self._strayed = self._paged = False
                answer = question(self)
                if not self._strayed or self._items.version() == self._position:
                    return answer
                if self._paged:  # which takes long, and would again
                    break
        return question(Past(self._items, self._items.commit_at(_LATEST), self._dims))

    def held_item(self, name: ItemName) -> Item | None:
        """An item, if it is in memory and nobody is asking; else UNKNOWN.  Takes a few microseconds."""
        if not self._lock.acquire(blocking=False):
            return UNKNOWN
        try:
            return self.held(name) if self._catch_up(_CHANGES_AT_ONCE) else UNKNOWN
        finally:
            self._lock.release()

    def item(self, name: ItemName) -> Item | None:
        """An item."""
        if not self._lock.acquire(blocking=False):
            self._check_alive()
            with self._lock:
                return self._item(name)
        try:
            return self._item(name)
        finally:
            self._lock.release()

    def _item(self, name: ItemName) -> Item | None:
        self._catch_up(MOST_CHANGES)
        return self.get((name,))[0]

    def several(self, names: Several[ItemName]) -> list[Item | None]:
        """Some items, of one moment."""
        return self.ask(lambda view: view.get(names))

    def ask_now(self, question: Callable[[View], _T]) -> _T | None:
        """The answer if it is in memory and nobody else is asking; else None.  Takes no time to speak of."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if not self._catch_up(_CHANGES_AT_ONCE):
                return None
            self._strayed = False
            return question(_Held(self))
        except _NotHeldError:
            return None
        finally:
            self._lock.release()

    def _check_alive(self) -> None:
        """Raise ClosedError, or ForkedError in a forked child, where nobody may be left to release the lock."""
        self._items.version()

    def note(self, committed: Committed, changes: Several[Change]) -> None:
        """What this process has committed itself, so that it need not be read."""
        size = sum(map(_noted_bytes, changes))
        if len(self._noted) >= _MOST_NOTED or self._noted_size + size > self._most_bytes // 4:
            self._noted.clear()  # nobody asks
            self._noted_size = 0
        self._noted_size += size
        if committed.sequences:
            self._noted[committed.sequences[0]] = committed, changes

    def _catch_up(self, most: int) -> bool:
        """Put what has changed into what is held; False if that is more than reading `most` changes."""
        version = self._items.version()
        if version == self._position:
            return True
        if not self._position or version - self._position > MOST_CHANGES:  # nothing is held yet, or too much is new
            self._forget()
            self._position = version
        while self._position < version:
            noted = self._noted.get(self._position + 1)
            if noted is not None:
                most -= len(noted[1]) // _APPLIED_WHILE_ONE_IS_READ
                if most < 0:
                    return False
                self._apply(self._own(*noted))
                self._position = noted[0].sequences[-1]
                continue
            stop = min((first - 1 for first in list(self._noted) if first > self._position), default=version)
            if stop - self._position > most:
                return False
            changes = self._changes(stop)
            if changes is None:
                self._forget()
                self._position = version
            else:
                self._apply(self._read_changes(changes))
                self._position = stop
        for first in list(self._noted):
            if first <= self._position:
                self._noted.pop(first, None)
        if not self._noted:
            self._noted_size = 0
        return True

    def _changes(self, stop: int) -> dict[ItemName, ItemEvent] | None:
        """The last change of each item that has changed up to a place; None if they cannot be told."""
        changes = self._items.changes(self._position)
        if changes is None:
            return None
        found: dict[ItemName, ItemEvent] = {}
        try:
            for sequence, event in changes:
                if sequence > stop:
                    break
                if not _is_shown(event.namespace):
                    continue
                if isinstance(event, ItemTouched):  # of one that is gone by then it says nothing
                    found.setdefault((event.namespace, event.key), event)
                else:
                    found[event.namespace, event.key] = event
        except ConflictError:
            return None  # they were pruned meanwhile
        return found

    def _read_changes(self, changes: dict[ItemName, ItemEvent]) -> Iterator[tuple[ItemName, Item | None]]:
        """Each item as it is now; UNKNOWN where nobody needs to know."""
        wanted: dict[bool, list[ItemName]] = {False: [], True: []}
        for name, event in changes.items():
            collection = self._collections.get(name[0])
            if collection is not None:
                wanted[collection.rows is not None].append(name)
            elif isinstance(event, ItemPut):
                yield name, UNKNOWN
            else:
                if isinstance(event, ItemDeleted):
                    self._namespaces = None  # which may be gone with it
                self._single.take(name)
        found: list[tuple[ItemName, Item | None]] = []
        for attachments, names in wanted.items():
            if names:
                found += zip(names, self._items.get_many(names, attachments=attachments), strict=True)
        yield from sorted(found, key=lambda change: change[1].sequence if change[1] else 0)

    def _own(self, committed: Committed, changes: Several[Change]) -> Iterator[tuple[ItemName, Item | None]]:
        """Each item as it was committed; UNKNOWN where it is not known when it was created."""
        for sequence, change in zip(committed.sequences, changes, strict=True):
            name = change.namespace, change.key
            if isinstance(change, ItemDeleted):
                if self._collections.get(name[0]) is None:
                    self._namespaces = None
                    self._single.take(name)
                yield name, None
                continue
            before = self.held(name)
            if before is UNKNOWN:
                yield name, UNKNOWN
                continue
            yield (
                name,
                Item(
                    *name,
                    (change.type, change.payload),
                    change.created_at if before is None else before.created_at,
                    change.created_at,
                    Commit(committed.commit),
                    Sequence(sequence),
                    change.expires_at,
                    change.attachments,
                ),
            )

    def _apply(self, changes: Iterable[tuple[ItemName, Item | None]]) -> None:
        changed: dict[Namespace, Collection] = {}
        for name, item in changes:
            namespace, key = name
            if item is not None:
                self._add_namespace(namespace)
            collection = self._collections.get(namespace)
            if collection is None or item is UNKNOWN:
                self._single.take(name)
                if item is not None and item is not UNKNOWN:
                    self._single.put(name, bare(item), _weight(item))
                continue
            self._single.take(name)
            collection.change(key, item)
            changed[namespace] = collection
            if not collection.items:
                self._remove_namespace(namespace)
        for namespace, collection in changed.items():
            self._collections.put(namespace, collection, collection.size_bytes)

    def _add_namespace(self, namespace: Namespace) -> None:
        if self._namespaces is not None:
            place = bisect_left(self._namespaces, namespace)
            if self._namespaces[place : place + 1] != [namespace]:
                self._namespaces = [*self._namespaces[:place], namespace, *self._namespaces[place:]]

    def _remove_namespace(self, namespace: Namespace) -> None:
        if self._namespaces is not None:
            self._namespaces = [each for each in self._namespaces if each != namespace]

    def _forget(self) -> None:
        for namespace in self._collections.all_keys():
            self._collections.take(namespace)
        for name in self._single.all_keys():
            self._single.take(name)
        self._namespaces = None
        self._too_large.clear()

    # --- the view ---

    def get(self, names: Several[ItemName]) -> list[Item | None]:
        found = [self.held(name) for name in names]
        missing = [name for name, item in zip(names, found, strict=True) if item is UNKNOWN]
        if not missing:
            return found
        self._strayed = True
        read = dict(zip(missing, self._items.get_many(missing), strict=True))
        for name, item in read.items():
            if item is not None:
                self._single.put(name, item, _weight(item))
        return [read[name] if item is UNKNOWN else item for name, item in zip(names, found, strict=True)]

    def held(self, name: ItemName) -> Item | None:
        """An item, if it is in memory; else UNKNOWN."""
        item = self._single.get(name)
        if item is not None:
            return item
        collection = self._collections.get(name[0])
        return UNKNOWN if collection is None else collection.items.get(name[1])

    def collection(self, namespace: Namespace) -> Collection | None:
        """A namespace, if it is in memory."""
        return self._collections.get(namespace)

    def held_namespaces(self) -> list[Namespace] | None:
        """All namespaces, if they are in memory."""
        return self._namespaces

    def namespaces(self) -> list[Namespace]:
        if self._namespaces is None:
            self._strayed = True
            self._namespaces = sorted(filter(_is_shown, self._items.namespaces()))
        return self._namespaces

    def newest(self, prefix: Namespace, count: int, select: Select) -> list[Item]:
        parts = []
        for namespace in _under(self.namespaces(), prefix):
            collection = self._load(namespace)
            if collection is None:
                self._paged = True
                parts.append(_newest(self._read(namespace), count, select))
            else:
                parts.append(_first(collection, count, select))
        return _merged(parts, count)

    def nearest(self, prefix: Namespace, query: Matrix, count: int, select: Select) -> list[Scored]:
        from stepwell_langgraph import nearest

        query = nearest.unit(query)
        found: list[Scored] = []
        for together in self._loadable(_under(self.namespaces(), prefix)):
            self._load_rows(together)
            held: list[Rows] = []
            for namespace in together:
                collection = self._collections.get(namespace)
                if collection is not None and collection.rows is not None:
                    held.append(collection.rows)
                else:
                    self._paged = True
                    found += _nearest(self._read(namespace, attachments=True), self._dims, query, count, select)
            found = nearest.in_order([*found, *nearest.nearest(held, query, count, select)])[:count]
        return found

    def _load(self, namespace: Namespace) -> Collection | None:
        """A namespace in memory; None if it is too large."""
        collection = self._collections.get(namespace)
        if collection is not None or namespace in self._too_large:
            return collection
        items: list[Item] = []
        size = 0
        for page in _pages(self._read(namespace)):
            items += page
            size += _weights(page)
            if size > self._most_bytes // 2:
                self._too_large.add(namespace)
                return None
        collection = Collection(items)
        self._collections.put(namespace, collection, collection.size_bytes)
        return collection

    def _loadable(self, namespaces: Iterable[Namespace]) -> Iterator[list[Namespace]]:
        """Some namespaces after the other, as many together as may be read at once."""
        together: list[Namespace] = []
        size = 0
        for namespace in namespaces:
            together.append(namespace)
            collection = self._load(namespace)
            if collection is None or collection.rows is not None:
                continue
            size += 4 * self._dims * sum(map(is_indexed, collection.items.values()))
            if size > self._most_bytes // 4:
                yield together
                together, size = [], 0
        yield together

    def _load_rows(self, namespaces: Iterable[Namespace]) -> None:
        """Put the vectors of namespaces into memory, but of those that are too large.

        They are read in the order in which they were put: those that lie in one block are read together.
        """
        from stepwell_langgraph.nearest import Rows

        loading = {}
        for namespace in namespaces:
            collection = self._load(namespace)
            if collection is not None and collection.rows is None:
                count = sum(map(is_indexed, collection.items.values()))
                loading[namespace] = collection, Rows(self._dims, count)
        if not loading:
            return
        self._strayed = True
        indexed = [item for collection, _ in loading.values() for item in collection.items.values() if is_indexed(item)]
        size = self._most_bytes // 2
        for page in _pages(iter(sorted(indexed, key=_sequence)), max(_VECTORS_PAGE_BYTES // (4 * self._dims), 1)):
            stored = self._items.attached([item.sequence for item in page], VECTORS)
            read: dict[Namespace, tuple[list[Item], list[bytes]]] = {}
            for item, vectors in zip(page, stored, strict=True):
                if vectors is not None:  # or it was pruned meanwhile, which the next look at the log tells
                    together = read.setdefault(item.namespace, ([], []))
                    together[0].append(item)
                    together[1].append(vectors)
            for namespace, (items, added) in read.items():
                loading[namespace][1].add(items, added)
        for namespace, (collection, rows) in loading.items():
            collection.rows = rows
            if collection.size_bytes > size:
                self._too_large.add(namespace)
                self._collections.take(namespace)
            else:
                self._collections.put(namespace, collection, collection.size_bytes)

    def _read(self, namespace: Namespace, *, attachments: bool = False) -> Iterator[Item]:
        """The items of one namespace, without those of namespaces below it, which scans have before them."""
        self._strayed = True
        first = self._items.get(namespace, "", attachments=attachments)
        if first is not None:
            yield first
        for item in self._items.scan(namespace, after=(namespace, ""), attachments=attachments):
            if item.namespace == namespace:
                yield item


class Past:
    """The items as they were after a commit."""

    def __init__(self, items: Items, commit: int, dims: int) -> None:
        self._items = items
        self._at = commit
        self._dims = dims

    def get(self, names: Several[ItemName]) -> list[Item | None]:
        return self._items.get_many(names, at=self._at)

    def namespaces(self) -> list[Namespace]:
        return sorted({item.namespace for item in self._read(())})

    def newest(self, prefix: Namespace, count: int, select: Select) -> list[Item]:
        return _newest(self._read(prefix), count, select)

    def nearest(self, prefix: Namespace, query: Matrix, count: int, select: Select) -> list[Scored]:
        from stepwell_langgraph import nearest

        return _nearest(self._read(prefix, attachments=True), self._dims, nearest.unit(query), count, select)

    def _read(self, prefix: Namespace, *, attachments: bool = False) -> Iterator[Item]:
        items = self._items.scan(prefix, at=self._at, attachments=attachments)
        return (item for item in items if _is_shown(item.namespace))


class _NotHeldError(Exception):
    """Something is not in memory."""


class _Held:
    """What of the present is in memory.  Raises _NotHeldError for all else."""

    def __init__(self, present: Present) -> None:
        self._present = present

    def get(self, names: Several[ItemName]) -> list[Item | None]:
        found = [self._present.held(name) for name in names]
        if (
            any(item is UNKNOWN for item in found)
            or sum(len(item.value[1]) for item in found if item is not None) > _QUICK_BYTES
        ):
            raise _NotHeldError
        return found

    def namespaces(self) -> list[Namespace]:
        namespaces = self._present.held_namespaces()
        if namespaces is None or len(namespaces) > _QUICK_NAMESPACES:
            raise _NotHeldError
        return namespaces

    def newest(self, prefix: Namespace, count: int, select: Select) -> list[Item]:
        parts = []
        looked_at = 0
        for namespace in _under(self.namespaces(), prefix):
            collection = self._present.collection(namespace)
            if collection is None:
                raise _NotHeldError
            looked_at += collection.items_bytes
            if looked_at > _QUICK_BYTES:
                raise _NotHeldError
            parts.append(_first(collection, count, select))
        return _merged(parts, count)

    def nearest(self, prefix: Namespace, query: Matrix, count: int, select: Select) -> list[Scored]:
        raise _NotHeldError


def bare(item: Item) -> Item:
    """An item without what was put beside its value."""
    return replace(item, attachments={}) if item.attachments else item


def is_indexed(item: Item) -> bool:
    """Whether an item has vectors."""
    return item.value[0] == INDEXED


_QUICK_BYTES: Final = 1 << 18  # of items are looked at in less than a millisecond
_QUICK_NAMESPACES: Final = 4096


def _is_shown(namespace: Namespace) -> bool:
    return not namespace or not namespace[0].startswith(OWN)


def _noted_bytes(change: Change) -> int:
    if isinstance(change, ItemDeleted):
        return _ITEM_BYTES
    return len(change.payload) + sum(len(content) for _, content in change.attachments.values()) + _ITEM_BYTES


def _weight(item: Item) -> int:
    return len(item.value[1]) + _ITEM_BYTES


def _weights(items: Sized[Item]) -> int:
    return sum([len(item.value[1]) for item in items]) + _ITEM_BYTES * len(items)


def _under(namespaces: list[Namespace], prefix: Namespace) -> Iterable[Namespace]:
    """Those of some namespaces, which are in order, that begin with some parts."""
    length = len(prefix)
    beginning = islice(namespaces, bisect_left(namespaces, prefix), None)
    return takewhile(lambda namespace: namespace[:length] == prefix, beginning)


def _pages(items: Iterator[Item], count: int = _PAGE_ITEMS) -> Iterator[list[Item]]:
    while page := list(islice(items, count)):
        yield page


def _first(collection: Collection, count: int, select: Select) -> list[Item]:
    """The newest items of a namespace that are wanted: more and more of them are looked at."""
    found: list[Item] = []
    newest = reversed(collection.items.values())
    looked_at = min(max(count, _FIRST_ITEMS), _PAGE_ITEMS)
    while len(found) < count and (page := list(islice(newest, looked_at))):
        found += select(page)
        looked_at = min(4 * looked_at, _PAGE_ITEMS)
    return found[:count]


def _newest(items: Iterator[Item], count: int, select: Select) -> list[Item]:
    return heapq.nlargest(count, (item for page in _pages(items) for item in select(page)), key=_sequence)


def _merged(parts: list[list[Item]], count: int) -> list[Item]:
    return parts[0] if len(parts) == 1 else heapq.nlargest(count, (item for part in parts for item in part), _sequence)


def _nearest(items: Iterator[Item], dims: int, query: Matrix, count: int, select: Select) -> list[Scored]:
    """The nearest of many items, of which a page is in memory at a time."""
    from stepwell_langgraph.nearest import Rows, in_order, nearest, vectors_of

    found: list[Scored] = []
    for page in _pages(items):
        by_namespace: dict[Namespace, list[Item]] = {}
        for item in page:
            by_namespace.setdefault(item.namespace, []).append(item)
        several = []
        for together in by_namespace.values():
            rows = Rows(dims)
            rows.add(together, map(vectors_of, together))
            several.append(rows)
        found = in_order([*found, *nearest(several, query, count, select)])[:count]
    return found
