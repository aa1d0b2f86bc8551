"""StepwellStore: LangGraph's long-term memory over a log (SPEC.md, section 17.7).

What agents remember are items of the log: each put and each deletion is an event, so everything has a past.  Sync and
async are one class.  A batch answers its reads first, at one moment, and then makes its writes in one commit.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple, Self, TypeVar
from weakref import WeakValueDictionary

from langgraph.store.base import (
    BaseStore,
    GetOp,
    IndexConfig,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    validate_op_namespace,
)
from langgraph.store.base import Item as StoreItem

from stepwell.clock import now
from stepwell.errors import UsageError
from stepwell.events import ItemDeleted, ItemPut, ItemTouched
from stepwell.log import Log
from stepwell.patch import Blob, Value, parse
from stepwell.storage import Item, ItemName
from stepwell.writer import Ticket
from stepwell_langgraph import values
from stepwell_langgraph.closing import Closing
from stepwell_langgraph.collection import UNKNOWN, Change, Namespace, Past, Present, Put, View
from stepwell_langgraph.embedding import Index, Text
from stepwell_langgraph.filters import Filter
from stepwell_langgraph.moments import AsOf, commit_of, to_datetime
from stepwell_langgraph.offload import offload
from stepwell_langgraph.sweeper import Stopped, Sweeper, Sweeping
from stepwell_langgraph.together import Together
from stepwell_langgraph.weight import LIGHT_BYTES, is_light

MEMORY_BYTES: Final = 1 << 28
"""Memory for items and vectors that are held."""

TTL: Final = "ttl"
"""Attachment of an item: for how many nanoseconds it lives after it was used last, as text."""

_MINUTE: Final = 60 * 10**9
_END_OF_TIME: Final = 1 << 62
_SWEEP_MINUTES: Final = 5
_SWEPT_AT_ONCE: Final = 1024
_SMALLEST_STRUCTURED_BYTES: Final = 256
SLACK: Final = 16  # an item is touched when one part in so many of its life has gone
_PUTS_AT_ONCE: Final = 8  # these are encoded, and the next ones read and shown, in less than a millisecond
_READS_AT_ONCE: Final = 16
_FOUND_AT_ONCE: Final = 128
_TTLS_HELD: Final = 1 << 16

_T = TypeVar("_T")


class Version(NamedTuple):
    """What an item was from some moment on.

    Attributes:
        value: Its value, which nobody else has; None if it was deleted.
        at: When it was put or deleted.
        commit: The commit of that: `as_of=` takes it.
    """

    value: dict[str, Any] | None
    at: datetime
    commit: int


class _Put(NamedTuple):
    """A write of a batch, checked and encoded."""

    name: ItemName
    payload: bytes | None
    ttl: int | None = None
    texts: Sequence[Text] = ()


class StepwellStore(Closing, BaseStore):
    """A LangGraph store whose every item has a history.

    >>> with StepwellStore.from_conn_string(":memory:") as store:
    ...     store.put(("users", "ada"), "likes", {"drink": "tea"})
    ...     store.put(("users", "ada"), "likes", {"drink": "coffee"})
    ...     [version.value for version in store.history(("users", "ada"), "likes")]
    [{'drink': 'coffee'}, {'drink': 'tea'}]

    Thread-safe; sync and async calls may be mixed, from any number of threads and event loops.

    Args:
        log: The log to store in.  Closing the store leaves it open.
        index: LangGraph's IndexConfig: `dims`, `embed` and `fields`.  Without it nothing is embedded.
        ttl: LangGraph's TTLConfig.
        memory_bytes: Memory for items and vectors, which need not be read again.
    """

    supports_ttl = True

    def __init__(
        self,
        log: Log,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if not isinstance(log, Log):
            raise UsageError(
                f"StepwellStore needs a stepwell.Log, not {type(log).__name__}: "
                "use StepwellStore.from_conn_string(path) to open one by its path"
            )
        self.log = log
        self.index_config = index
        self.ttl_config = ttl
        self._index = Index(index) if index else None
        self._present = Present(log.items, memory_bytes, self._index.dims if self._index else 0)
        self._ttls: dict[int, int] = {}
        self._lines = _Lines()
        self._gets = Together(self._present.several)
        self._sweeper = Sweeper(self.sweep_ttl)
        self._owns_log = False

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str | os.PathLike[str],
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        memory_bytes: int = MEMORY_BYTES,
        network_file_system: bool = False,
    ) -> Self:
        """Open or create the log at a path; ":memory:" is one that is gone when it is closed.

        A saver may have the same file open: they share what they can.

        Args:
            conn_string: Where the log lies.
            index: See the class.
            ttl: See the class.
            memory_bytes: See the class.
            network_file_system: See `Log.open`.
        """
        log = Log.open(conn_string, network_file_system=network_file_system)
        try:
            store = cls(log, index=index, ttl=ttl, memory_bytes=memory_bytes)
        except BaseException:
            log.close()
            raise
        store._owns_log = True
        return store

    def setup(self) -> Stopped:
        """Nothing is to be set up.  May be awaited, as stores with a server ask for it."""
        return Stopped(True)

    def close(self) -> None:
        """Stop the sweeper, and close the log if the store has opened it.  Closing twice is harmless."""
        self._sweeper.stop()
        if self._owns_log:
            self.log.close()

    # --- LangGraph's methods that may ask for the past ---

    def get(
        self,
        namespace: tuple[str, ...],
        key: str,
        *,
        refresh_ttl: bool | None = None,
        as_of: AsOf | None = None,
    ) -> StoreItem | None:
        """An item, or None if there is none.

        Args:
            namespace: Where it is filed.
            key: Its key there.
            refresh_ttl: Whether its life begins anew; None for what the configuration says.
            as_of: The moment whose item is wanted; None for now.

        Raises:
            InvalidNamespaceError: A part of the namespace is empty, no str, or holds a period or NUL.
            UsageError: `as_of` names no moment.
        """
        op = GetOp(tuple(namespace), str(key), self._refreshes(refresh_ttl))
        item: Item | None = UNKNOWN
        if as_of is None:
            item = self._plain(self._present.item(_name(op)))
        if item is not UNKNOWN:
            return None if item is None else _shown_item(item)
        found: StoreItem | None = self._read([op], as_of)[0]  # type: ignore[assignment]
        return found

    async def aget(
        self,
        namespace: tuple[str, ...],
        key: str,
        *,
        refresh_ttl: bool | None = None,
        as_of: AsOf | None = None,
    ) -> StoreItem | None:
        """`get` for coroutines."""
        op = GetOp(tuple(namespace), str(key), self._refreshes(refresh_ttl))
        item = self._held(op, as_of)
        if item is UNKNOWN and as_of is None:
            item = self._plain(await self._gets.ask((op.namespace, op.key)))
        if item is not UNKNOWN:
            return None if item is None else _shown_item(item)
        found: StoreItem | None = (await self._aread([op], as_of))[0]  # type: ignore[assignment]
        return found

    def search(
        self,
        namespace_prefix: tuple[str, ...],
        /,
        *,
        query: str | None = None,
        filter: dict[str, Any] | None = None,
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
        as_of: AsOf | None = None,
    ) -> list[SearchItem]:
        """The items in namespaces that begin with some parts: the newest first, or the most similar to a query.

        Args:
            namespace_prefix: The parts; none for all items.
            query: What they shall be similar to.  Without an index it counts for nothing.
            filter: What their values must have.
            limit: How many at most.
            offset: How many to pass over before.
            refresh_ttl: Whether their lives begin anew; None for what the configuration says.
            as_of: The moment whose items are wanted; None for now.

        Raises:
            InvalidNamespaceError: A part of the prefix is empty, no str, or holds a period or NUL.
            UsageError: `as_of` names no moment, or the filter has an operator that there is not.
        """
        op = SearchOp(tuple(namespace_prefix), filter, limit, offset, query, self._refreshes(refresh_ttl))
        found: list[SearchItem] = self._read([op], as_of)[0]  # type: ignore[assignment]
        return found

    async def asearch(
        self,
        namespace_prefix: tuple[str, ...],
        /,
        *,
        query: str | None = None,
        filter: dict[str, Any] | None = None,
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
        as_of: AsOf | None = None,
    ) -> list[SearchItem]:
        """`search` for coroutines."""
        op = SearchOp(tuple(namespace_prefix), filter, limit, offset, query, self._refreshes(refresh_ttl))
        found: list[SearchItem] = (await self._aread([op], as_of))[0]  # type: ignore[assignment]
        return found

    def history(self, namespace: tuple[str, ...], key: str, *, limit: int | None = None) -> list[Version]:
        """Every version of an item, newest first, deletions too; what was pruned from the log is not there any more.

        Args:
            namespace: Where it is filed.
            key: Its key there.
            limit: How many at most; None for all.

        Raises:
            InvalidNamespaceError: A part of the namespace is empty, no str, or holds a period or NUL.
        """
        name = _name(GetOp(tuple(namespace), str(key)))
        found: list[Version] = []
        for version in self.log.items.history(*name):
            if limit is not None and len(found) >= limit:
                break
            if isinstance(version, Item):
                found.append(Version(values.value_of(version), to_datetime(version.updated_at), version.commit))
            else:
                found.append(Version(None, to_datetime(version.deleted_at), version.commit))
        return found

    async def ahistory(self, namespace: tuple[str, ...], key: str, *, limit: int | None = None) -> list[Version]:
        """`history` for coroutines."""
        return await offload(self.history, namespace, key, limit=limit)

    def forget(self, namespace_prefix: tuple[str, ...]) -> None:
        """Remove all items in namespaces that begin with some parts, and all that they ever were.

        When this returns, nothing of them can be read any more, as of no moment.  It takes time in proportion to all
        items and their past.

        Args:
            namespace_prefix: The parts, one at least.

        Raises:
            InvalidNamespaceError: A part is empty, no str, or holds a period or NUL.
            UsageError: There is no part.
        """
        validate_op_namespace(SearchOp(namespace_prefix))
        if not namespace_prefix:
            raise UsageError("forget needs one part of a namespace at least: without any it would forget everything")
        self.log.items.forget(tuple(namespace_prefix))

    async def aforget(self, namespace_prefix: tuple[str, ...]) -> None:
        """`forget` for coroutines."""
        await offload(self.forget, namespace_prefix)

    # --- batches ---

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Answer all reads, at one moment, then make all writes, in one commit.

        The reads see nothing of the writes.  Of several writes of one item the last counts.  When this returns, the
        writes survive a power cut; when it raises, none of them was made.

        Raises:
            InvalidNamespaceError: A part of a namespace is empty, no str, or holds a period or NUL.
            UsageError: An operation asks for what there is not, or a value holds what JSON cannot say.
            CapacityError: There is no room.
        """
        ops = list(ops)
        reads, puts = _split(ops)
        results = self._read([ops[place] for place in reads], None)
        if puts:
            encoded = self._encode(puts)
            ticket, changes = self._begin(encoded, self._vectors(encoded))
            self._present.note(ticket.result(), changes)
        return _placed(len(ops), reads, results)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch` for coroutines.  If it is cancelled, the writes may be made all the same."""
        ops = list(ops)
        reads, puts = _split(ops)
        results = await self._aread([ops[place] for place in reads], None)
        if puts:
            ticket, changes = await self._abegin(puts)
            self._present.note(await ticket, changes)
        return _placed(len(ops), reads, results)

    # --- reading ---

    def _read(self, ops: list[Op], as_of: AsOf | None) -> list[Result]:
        if not ops:
            return []
        question = _Question(ops, self._omit_before() if as_of is None else 0)
        queries = self._index.embed_queries(question.queries) if self._index and question.queries else {}
        results = self._answer(question, queries, as_of)
        self._touch(question.used)
        return results

    async def _aread(self, ops: list[Op], as_of: AsOf | None) -> list[Result]:
        if not ops:
            return []
        question = _Question(ops, self._omit_before() if as_of is None else 0)
        queries = await self._index.aembed_queries(question.queries) if self._index and question.queries else {}
        results = None
        if question.is_quick and as_of is None and not queries:
            results = self._present.ask_now(partial(question.answer, queries))
        if results is None:
            results = await offload(self._answer, question, queries, as_of)
        if self._is_due(question.used):
            await offload(self._touch, question.used)
        return results

    def _held(self, op: GetOp, as_of: AsOf | None) -> Item | None:
        """An item that is in memory, is small and lives for ever, as most are; else UNKNOWN."""
        if as_of is not None:
            return UNKNOWN
        validate_op_namespace(op)
        return self._plain(self._present.held_item((op.namespace, op.key)))

    @staticmethod
    def _plain(item: Item | None) -> Item | None:
        """An item that is quickly shown, or none; UNKNOWN if more is to be thought of."""
        if item is not None and (item.expires_at is not None or len(item.value[1]) > LIGHT_BYTES):
            return UNKNOWN
        return item

    def _answer(self, question: _Question, queries: dict[str, Any], as_of: AsOf | None) -> list[Result]:
        answer = partial(question.answer, queries)
        if as_of is None:
            return self._present.ask(answer)
        question.used.clear()
        results = answer(Past(self.log.items, commit_of(self.log, as_of), self._index.dims if self._index else 0))
        question.used.clear()
        return results

    def _refreshes(self, refresh_ttl: bool | None) -> bool:
        if refresh_ttl is not None:
            return refresh_ttl
        return True if self.ttl_config is None else self.ttl_config.get("refresh_on_read", True)

    def _omit_before(self) -> int:
        """The time by which an item must not have expired to be shown."""
        return now() if self.ttl_config is not None and self.ttl_config.get("omit_expired") else 0

    # --- writing ---

    def _encode(self, puts: Mapping[ItemName, PutOp]) -> list[_Put]:
        return [self._encoded(name, op) for name, op in puts.items()]

    def _encoded(self, name: ItemName, op: PutOp) -> _Put:
        if op.value is None:
            return _Put(name, None)
        payload = values.encode(op.value)
        texts: Sequence[Text] = ()
        if self._index is not None and op.index is not False:
            texts = self._index.texts(values.decode(payload), op.index)
        return _Put(name, payload, _nanoseconds(op.ttl), texts)

    def _vectors(self, puts: list[_Put]) -> dict[bytes, bytes]:
        """The vectors of all texts, by hash."""
        if self._index is None:
            return {}
        vectors, missing = self._known_vectors(puts)
        return {**vectors, **self._index.embed(missing)}

    def _known_vectors(self, puts: list[_Put]) -> tuple[dict[bytes, bytes], list[Text]]:
        """The vectors that need not be made, and the texts whose vectors must be."""
        index = self._index
        assert index is not None
        texts = {text.digest: text for put in puts for text in put.texts}
        known = index.remembered(texts.values())
        if index.may_reuse and len(known) < len(texts):
            names = [put.name for put in puts if put.texts]
            for item in self.log.items.get_many(names, attachments=True):
                if item is not None:
                    known |= index.reusable(item.attachments)
        return known, [text for digest, text in texts.items() if digest not in known]

    def _begin(self, puts: list[_Put], vectors: dict[bytes, bytes]) -> tuple[Ticket, list[Change]]:
        """Submit the writes."""
        moment = now()
        changes = [self._change(put, vectors, moment) for put in puts]
        return self.log.items.submit([_event(change) for change in changes]), changes

    def _change(self, put: _Put, vectors: dict[bytes, bytes], moment: int) -> Change:
        if put.payload is None:
            return ItemDeleted(*put.name)
        attachments: dict[str, tuple[str, bytes]] = {}
        if put.texts:
            assert self._index is not None
            attachments = self._index.attachments(put.texts, vectors)
        expires_at = None
        if put.ttl is not None:
            attachments[TTL] = "text", str(put.ttl).encode()
            expires_at = min(max(moment + put.ttl, 1), _END_OF_TIME)
        type_ = values.INDEXED if put.texts else values.PLAIN
        return Put(*put.name, type_, put.payload, moment, expires_at, attachments)

    async def _abegin(self, puts: Mapping[ItemName, PutOp]) -> tuple[Ticket, list[Change]]:
        namespaces = {namespace for namespace, _ in puts}
        ops = puts.values()
        embeds = self._index is not None and any(op.value is not None and op.index is not False for op in ops)
        light = not embeds and len(puts) <= _PUTS_AT_ONCE and is_light(op.value for op in ops)
        if light and self._lines.are_free(namespaces):
            return self._begin(self._encode(puts), {})
        async with self._lines.turn(namespaces):
            encoded = await offload(self._encode, puts)
            vectors: dict[bytes, bytes] = {}
            if self._index is not None:
                vectors, missing = await offload(self._known_vectors, encoded)
                vectors |= await self._index.aembed(missing)
            return await offload(self._begin, encoded, vectors)

    # --- lives ---

    def _is_due(self, used: list[Item]) -> bool:
        """Whether `_touch` may have anything to do, as far as is known without reading."""
        return any(
            item.sequence not in self._ttls or self._touched(item, self._ttls[item.sequence], now()) for item in used
        )

    def _touch(self, used: list[Item]) -> None:
        """Let the lives of items begin anew; nobody waits for that."""
        moment = now()
        unknown = [item for item in used if item.sequence not in self._ttls]
        if unknown:
            if len(self._ttls) + len(unknown) > _TTLS_HELD:
                self._ttls.clear()
            names = [(item.namespace, item.key) for item in unknown]
            for item in self.log.items.get_many(names, attachments=True):
                if item is not None and TTL in item.attachments:
                    self._ttls[item.sequence] = int(item.attachments[TTL][1])
        events = []
        for item in used:
            expires_at = self._touched(item, self._ttls.get(item.sequence), moment)
            if expires_at:
                events.append(ItemTouched(item.namespace, item.key, item.sequence, expires_at))
        if events and not self.log.storage.read_only:
            self.log.items.submit(events)

    @staticmethod
    def _touched(item: Item, ttl: int | None, moment: int) -> int:
        """When an item that is used now expires; 0 if that is not worth noting."""
        if ttl is None or item.expires_at is None:
            return 0
        expires_at = min(moment + ttl, _END_OF_TIME)
        return expires_at if expires_at - item.expires_at >= ttl // SLACK else 0

    def sweep_ttl(self) -> int:
        """Delete the items that have expired; what they were stays in their history.

        Returns:
            How many had expired.
        """
        swept = 0
        moment = now()
        while names := self.log.items.expired(moment, _SWEPT_AT_ONCE):
            self.log.items.submit([ItemDeleted(*name, expired_by=moment) for name in names]).result()
            swept += len(names)
        return swept

    async def asweep_ttl(self) -> int:
        """`sweep_ttl` for coroutines."""
        return await offload(self.sweep_ttl)

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> Sweeping:
        """Delete expired items at intervals, in a thread, until `stop_ttl_sweeper` or `close`.

        Args:
            sweep_interval_minutes: The interval; None for that of the configuration, or five minutes.

        Returns:
            Ends when the sweeper has stopped; cancelling it stops the sweeper.  Awaiting it waits for nothing.
        """
        if not self.ttl_config:
            sweeping = Sweeping()
            sweeping.set_result(None)
            return sweeping
        minutes = sweep_interval_minutes or self.ttl_config.get("sweep_interval_minutes") or _SWEEP_MINUTES
        return self._sweeper.start(float(minutes) * 60)

    def stop_ttl_sweeper(self, timeout: float | None = None) -> Stopped:
        """Stop the sweeper, if it runs; true if it has ended within some seconds.  May be awaited, or not."""
        return Stopped(self._sweeper.stop(timeout))


class _Question:
    """What the reads of a batch ask for.

    Args:
        ops: The reads, checked here.
        omit_before: The time by which an item must not have expired to be shown.

    Attributes:
        queries: Texts that items shall be similar to.
        is_quick: Whether an event loop has the time to put the answers together.
        used: The items that were found, of those whose lives shall begin anew.
    """

    def __init__(self, ops: Sequence[Op], omit_before: int) -> None:
        self._omit_before = omit_before
        self._count = len(ops)
        self._gets: list[tuple[int, ItemName, bool]] = []
        self._others: list[tuple[int, Callable[[View, dict[str, Any]], Result]]] = []
        self.queries: list[str] = []
        self.is_quick = len(ops) <= _READS_AT_ONCE
        self.used: list[Item] = []
        for place, op in enumerate(ops):
            if isinstance(op, GetOp):
                self._gets.append((place, _name(op), op.refresh_ttl))
                continue
            validate_op_namespace(op)
            if isinstance(op, SearchOp):
                _check_range(op.limit, op.offset)
                wanted = Filter(op.filter) if op.filter else None
                if op.query:
                    self.queries.append(op.query)
                self.is_quick &= op.limit + op.offset <= _FOUND_AT_ONCE
                self._others.append((place, partial(self._search, op, wanted)))
            elif isinstance(op, ListNamespacesOp):
                _check_range(op.limit, op.offset)
                for condition in op.match_conditions or ():
                    if condition.match_type not in ("prefix", "suffix"):
                        raise UsageError(f"Unsupported match type: {condition.match_type!r}")
                self.is_quick &= not omit_before  # which takes a look at the items of each
                self._others.append((place, partial(self._list, op)))

    def answer(self, queries: dict[str, Any], view: View) -> list[Result]:
        """The answers, in the order of the questions.

        Args:
            queries: The vectors of the queries; empty if nothing is embedded.
            view: The moment that they are about.
        """
        self.used.clear()
        answers: list[Result] = [None] * self._count
        if self._gets:
            items = view.get([name for _, name, _ in self._gets])
            for (place, _, refreshes), item in zip(self._gets, items, strict=True):
                if item is not None and self._shown((item,)):
                    self._use(item, refreshes)
                    answers[place] = _shown_item(item)
        for place, answer in self._others:
            answers[place] = answer(view, queries)
        return answers

    def _search(self, op: SearchOp, wanted: Filter | None, view: View, queries: dict[str, Any]) -> list[SearchItem]:
        def select(items: Sequence[Item]) -> Sequence[Item]:
            shown = self._shown(items)
            return shown if wanted is None else wanted.select(shown)

        count = op.offset + op.limit
        prefix = tuple(op.namespace_prefix)
        query = queries.get(op.query) if op.query else None
        scored: list[tuple[float | None, Item]]
        if query is None:
            scored = [(None, item) for item in view.newest(prefix, count, select)]
        else:
            scored = list(view.nearest(prefix, query, count, select))
        found = []
        for score, item in scored[op.offset :]:
            self._use(item, op.refresh_ttl)
            found.append(SearchItem(item.namespace, item.key, values.value_of(item), *_times(item), score))
        return found

    def _list(self, op: ListNamespacesOp, view: View, queries: dict[str, Any]) -> list[Namespace]:
        conditions = op.match_conditions or ()
        namespaces: Iterable[Namespace] = (
            namespace
            for namespace in self._shown_namespaces(view)
            if all(_matches(condition, namespace) for condition in conditions)
        )
        if op.max_depth is not None:
            namespaces = sorted({namespace[: op.max_depth] for namespace in namespaces})
        return list(namespaces)[op.offset : op.offset + op.limit]

    def _shown_namespaces(self, view: View) -> list[Namespace]:
        if not self._omit_before:
            return view.namespaces()
        return [
            namespace
            for namespace in view.namespaces()
            if any(item.namespace == namespace for item in view.newest(namespace, _END_OF_TIME, self._shown))
        ]

    def _shown(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those of some items that are not to be taken for expired."""
        if not self._omit_before:
            return items
        return [item for item in items if item.expires_at is None or item.expires_at > self._omit_before]

    def _use(self, item: Item, refreshes: bool) -> None:
        if refreshes and item.expires_at is not None:
            self.used.append(item)


class _Lines:
    """Writes of coroutines to one namespace are submitted in the order in which they were asked for."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, Namespace], asyncio.Lock] = (
            WeakValueDictionary()
        )

    def are_free(self, namespaces: Iterable[Namespace]) -> bool:
        """Whether nobody writes to the namespaces, or waits to."""
        loop = asyncio.get_running_loop()
        return not any((loop, namespace) in self._locks for namespace in namespaces)

    @asynccontextmanager
    async def turn(self, namespaces: Iterable[Namespace]) -> AsyncIterator[None]:
        """Wait for all who came before."""
        loop = asyncio.get_running_loop()
        locks = [self._locks.setdefault((loop, namespace), asyncio.Lock()) for namespace in sorted(namespaces)]
        entered: list[asyncio.Lock] = []
        try:
            for lock in locks:
                await lock.acquire()
                entered.append(lock)
            yield
        finally:
            for lock in entered:
                lock.release()


def _event(change: Change) -> ItemPut | ItemDeleted:
    if isinstance(change, ItemDeleted):
        return change
    structured = len(change.payload) >= _SMALLEST_STRUCTURED_BYTES
    value = parse(change.type, change.payload) if structured else Blob(change.type, change.payload)
    attachments: dict[str, Value] = {name: Blob(*attached) for name, attached in change.attachments.items()}
    return ItemPut(change.namespace, change.key, value, change.expires_at, attachments, change.created_at)


def _shown_item(item: Item) -> StoreItem:
    created_at, updated_at = _times(item)
    return StoreItem(
        value=values.value_of(item),
        key=item.key,
        namespace=item.namespace,
        created_at=created_at,
        updated_at=updated_at,
    )


def _times(item: Item) -> tuple[datetime, datetime]:
    created_at = to_datetime(item.created_at)
    return created_at, created_at if item.updated_at == item.created_at else to_datetime(item.updated_at)


def _split(ops: Sequence[Op]) -> tuple[list[int], dict[ItemName, PutOp]]:
    """Where the reads stand, and the writes, the last of each item."""
    reads: list[int] = []
    puts: dict[ItemName, PutOp] = {}
    for place, op in enumerate(ops):
        if isinstance(op, PutOp):
            name = _name(op)
            puts.pop(name, None)
            puts[name] = op
        elif isinstance(op, GetOp | SearchOp | ListNamespacesOp):
            reads.append(place)
        else:
            raise UsageError(f"Unknown operation type: {type(op)}")
    return reads, puts


def _placed(count: int, places: list[int], results: list[Result]) -> list[Result]:
    placed: list[Result] = [None] * count
    for place, result in zip(places, results, strict=True):
        placed[place] = result
    return placed


def _name(op: GetOp | PutOp) -> ItemName:
    validate_op_namespace(op)
    if not isinstance(op.key, str):
        raise UsageError(f"a key is a str, not {type(op.key).__name__}: {op.key!r}")
    return tuple(op.namespace), op.key


def _check_range(limit: int, offset: int) -> None:
    for what, number in (("limit", limit), ("offset", offset)):
        if not isinstance(number, int) or number < 0:
            raise UsageError(f"{what} is a whole number from 0, not {number!r}")


def _matches(condition: MatchCondition, namespace: Namespace) -> bool:
    path = condition.path
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", found) for wanted, found in zip(path, part, strict=True))


def _nanoseconds(minutes: float | None) -> int | None:
    if minutes is None:
        return None
    try:
        return int(float(minutes) * _MINUTE)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"ttl is a number of minutes, not {minutes!r}") from None
