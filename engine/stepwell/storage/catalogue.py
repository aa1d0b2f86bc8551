"""The catalogue in the order of activity: how lists find threads newest first, whatever they filter by.

    recent  facet, epoch, span, thread -> nothing
    ids     thread id, thread number   -> nothing

A *facet* is a status, or a label with its value; a thread stands in `recent` once for its status and once for each
label.  Its *epoch* is that of its newest append (1,024 commits), its *span* that of its newest event (69 seconds), so
its rows move when one of these changes, and most appends touch none.  A list goes from epoch to epoch:

    1. Epochs in which one of its facets has no thread are passed over by looking for the next key.
    2. In an epoch, the threads are those that stand under all facets, in spans that can be meant; few are not compared.
    3. Their order within it is that of their commits: as their rows say, or, of many, as the feed does.
    4. Each row is compared with all that is asked for; facets and spans only spare looking at others.

So what a page costs depends on the page, and on the epochs and keys that are passed over for it, not on the threads
that are there.  Of ids that begin with a prefix, few are looked up one by one.  Where they are many the newest threads
are looked at first; only if few of those match, all numbers with the prefix are taken, as one more facet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from operator import itemgetter
from typing import Final, NamedTuple

from stepwell import format as fmt
from stepwell.errors import CorruptionError
from stepwell.events import Label
from stepwell.labels import facet_of
from stepwell.storage import Query, ThreadRow, unpack_thread
from stepwell.storage.feed import read_feed, row_number
from stepwell.storage.tables import (
    FEED,
    IDS,
    ITEMS_OWNER,
    RECENT,
    THREAD_NAMES,
    THREADS,
    Tables,
    load_name,
    prefix_end,
)

_FEW: Final = 32  # threads whose rows are read rather than the feed of their epoch, of up to 16 rows
_FEW_WITH_PREFIX: Final = 1024
_MOST_MISSES: Final = 512  # threads with another prefix, before all numbers with the right one are taken
_LAST_EPOCH: Final = fmt.epoch_of((1 << 62) - 1)

_number_in = itemgetter(slice(-fmt.NUMBER_BYTES, None))
"""The number of the thread that a key of `recent` or `ids` is about, as a key."""


class Standing(NamedTuple):
    """Where a thread stands in `recent`."""

    number: int
    epoch: int
    span: int
    status: int
    labels: Mapping[str, Label]

    def keys(self) -> set[bytes]:
        """The keys of its rows."""
        facets = {fmt.status_facet(self.status), *(facet_of(name, value) for name, value in self.labels.items())}
        return {fmt.recent_key(facet, self.epoch, self.span, self.number) for facet in facets}


def standing_of(row: ThreadRow) -> Standing | None:
    """Where a thread stands; None if it was deleted, or is in no list."""
    if row.deleted or row.name_hash == ITEMS_OWNER:
        return None
    return Standing(row.number, fmt.epoch_of(row.commit), fmt.span_of(row.updated_at), row.status, row.labels)


def move(tables: Tables, before: Standing | None, after: Standing | None) -> None:
    """Put the rows of a thread where they belong."""
    if before == after:
        return
    old, new = (set() if standing is None else standing.keys() for standing in (before, after))
    for key in old - new:
        tables.delete(RECENT, key)
    for key in new - old:
        tables.put(RECENT, key, b"")


def find(tables: Tables, query: Query) -> list[tuple[str, ThreadRow]]:
    """See `Storage.catalogue`."""
    return [*islice(_found(tables, query), query.limit)]


def _found(tables: Tables, query: Query) -> Iterator[tuple[str, ThreadRow]]:
    if not query.prefix:
        yield from _matching(tables, query, _walk(tables, query))
        return
    start = query.prefix.encode()[: fmt.MOST_SORTED_BYTES]
    stop = prefix_end(start)
    few = [*islice(tables.scan(IDS, start, stop), _FEW_WITH_PREFIX + 1)]
    if len(few) <= _FEW_WITH_PREFIX:
        rows = _loaded(tables, (_number_in(key) for key, _ in few))
        yield from _matching(tables, query, _in_order(rows, query))
        return
    misses = 0
    for row in _walk(tables, query):
        found = [*_matching(tables, query, [row])]
        yield from found
        misses += not found
        if misses > _MOST_MISSES:
            known = set(map(_number_in, tables.keys(IDS, start, stop)))
            behind = query._replace(edge=row.commit)
            yield from _matching(tables, behind, _walk(tables, behind, known))
            return


def _walk(tables: Tables, query: Query, known: set[bytes] | None = None) -> Iterator[ThreadRow]:
    """The threads that facets and spans do not rule out, in order; of those whose keys are known, if some are."""
    for epoch, members in _epochs(tables, query, known):
        yield from _ordered(tables, query, epoch, members)


def _matching(tables: Tables, query: Query, rows: Iterable[ThreadRow]) -> Iterator[tuple[str, ThreadRow]]:
    """The threads that are asked for, with their ids."""
    for row in rows:
        if (
            _is_behind(query, row.commit)
            and query.since <= row.updated_at < query.before
            and (query.statuses is None or row.status in query.statuses)
            and all(row.labels.get(name) == value for name, value in query.labels.items())
        ):
            thread_id = load_name(tables, THREAD_NAMES, row.name_hash)
            if thread_id.startswith(query.prefix):
                yield thread_id, row


def _ordered(tables: Tables, query: Query, epoch: int, members: set[bytes]) -> Iterator[ThreadRow]:
    """Threads of one epoch in the order of their newest commits."""
    if len(members) <= _FEW:
        yield from (row for row in _in_order(_loaded(tables, members), query) if _is_behind(query, row.commit))
        return
    first = epoch * fmt.COMMITS_IN_EPOCH
    start, stop = (fmt.number_key(row_number(commit)) for commit in (first, first + fmt.COMMITS_IN_EPOCH))
    newest: dict[int, int] = {}
    for key, data in tables.scan(FEED, start, stop):
        newest.update((row.thread, row.commit) for row in read_feed(key, data))
    numbers = ((commit, fmt.number_key(thread)) for thread, commit in newest.items())
    ordered = sorted((place for place in numbers if place[1] in members), reverse=query.newest_first)
    if len(ordered) != len(members):
        raise CorruptionError(f"the tables {RECENT} and {FEED} do not match")
    yield from _loaded(tables, (key for commit, key in ordered if _is_behind(query, commit)))


def _is_behind(query: Query, commit: int) -> bool:
    return commit < query.edge if query.newest_first else commit > query.edge


def _loaded(tables: Tables, keys: Iterable[bytes]) -> Iterator[ThreadRow]:
    for key in keys:
        data = tables.get(THREADS, key)
        if data is None:
            raise CorruptionError("a thread of the catalogue is missing", thread=fmt.read_number(key))
        yield unpack_thread(data, fmt.read_number(key))


def _in_order(rows: Iterable[ThreadRow], query: Query) -> list[ThreadRow]:
    return sorted(rows, key=lambda row: row.commit, reverse=query.newest_first)


def _epochs(tables: Tables, query: Query, known: set[bytes] | None) -> Iterator[tuple[int, set[bytes]]]:
    """The epochs that have threads under all facets that are asked for, in order, with the keys of these threads."""
    sought = [[facet_of(name, value)] for name, value in query.labels.items() if value is not None]
    if query.statuses is not None or not sought:
        statuses = fmt.STATUSES if query.statuses is None else query.statuses
        sought.append([fmt.status_facet(status) for status in statuses])
    spans = fmt.span_of(query.since), fmt.span_of(query.before - 1) + 1
    unions = [_Union(tables, facets, *spans, newest_first=query.newest_first) for facets in sought]
    step = -1 if query.newest_first else 1
    epoch = min(fmt.epoch_of(query.edge), _LAST_EPOCH)
    while 0 <= epoch <= _LAST_EPOCH:
        agreed = epoch
        for union in unions:
            following = union.next(agreed)
            if following is None:
                return
            agreed = following
        if agreed == epoch:
            members = unions[0].members(epoch, known)
            for union in unions[1:]:
                if len(members) > _FEW:
                    members = union.members(epoch, members)
            if members:
                yield epoch, members
            agreed += step
        epoch = agreed


class _Union:
    """The threads that stand under any of some facets, in a range of spans."""

    def __init__(self, tables: Tables, facets: list[bytes], low: int, high: int, *, newest_first: bool) -> None:
        self._tables = tables
        self._low = low
        self._high = high
        self._newest_first = newest_first
        self._next: dict[bytes, int | None] = {}
        self._facets = facets

    def next(self, epoch: int) -> int | None:
        """The first epoch from one on, that included, in which there is such a thread."""
        found = [each for facet in self._facets if (each := self._next_of(facet, epoch)) is not None]
        return (max if self._newest_first else min)(found, default=None)

    def members(self, epoch: int, known: set[bytes] | None) -> set[bytes]:
        """The keys of such threads in an epoch; of those that are known, if some are."""
        found: set[bytes] = set()
        for facet in self._facets:
            if self._next_of(facet, epoch) == epoch:
                edges = (fmt.recent_key(facet, epoch, span, 0) for span in (self._low, self._high))
                keys = map(_number_in, self._tables.keys(RECENT, *edges))
                found.update(keys if known is None else known.intersection(keys))
        return found

    def _next_of(self, facet: bytes, epoch: int) -> int | None:
        if facet in self._next:
            known = self._next[facet]
            if known is None or (known <= epoch if self._newest_first else known >= epoch):
                return known
        found = self._next[facet] = self._sought(facet, epoch)
        return found

    def _sought(self, facet: bytes, epoch: int) -> int | None:
        if self._newest_first:
            edge = fmt.recent_key(facet, 0, 0, 0)
            while (key := self._tables.previous_key(RECENT, edge, self._key(facet, epoch, self._high))) is not None:
                _, found, span, _ = fmt.read_recent(key)
                if found == epoch and span >= self._low:
                    return epoch
                if found == epoch and not epoch:
                    return None
                epoch = min(found, epoch - 1)
            return None
        edge = prefix_end(facet)
        while (key := self._tables.next_key(RECENT, self._key(facet, epoch, self._low), edge)) is not None:
            _, found, span, _ = fmt.read_recent(key)
            if found == epoch and span < self._high:
                return epoch
            epoch = max(found, epoch + 1)
        return None

    def _key(self, facet: bytes, epoch: int, span: int) -> bytes:
        return fmt.recent_key(facet, epoch, span, 0)
