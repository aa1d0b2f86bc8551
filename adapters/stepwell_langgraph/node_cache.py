"""StepwellCache: LangGraph's cache of node results on a log (SPEC.md, section 17.9).

An entry is an item in a namespace that begins with a part that no store can name.  Nothing is ever unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final, Self

from langgraph.cache.base import BaseCache, FullKey, Namespace, ValueT
from langgraph.checkpoint.serde.base import SerializerProtocol

from stepwell.clock import now
from stepwell.errors import UsageError
from stepwell.events import ItemDeleted, ItemEvent, ItemPut
from stepwell.log import Log
from stepwell.patch import parse
from stepwell_langgraph.closing import Closing
from stepwell_langgraph.collection import OWN
from stepwell_langgraph.offload import offload

_ROOT: Final = OWN + "cache"
_SECOND: Final = 10**9
_END_OF_TIME: Final = 1 << 62
_REFUSED_TYPE: Final = "pickle"


class StepwellCache(Closing, BaseCache[ValueT]):
    """A cache that outlives the process, for `compile(cache=...)`.  Thread-safe; sync and async in one class.

    >>> with StepwellCache.from_conn_string(":memory:") as cache:
    ...     cache.set({(("node",), "key"): ({"answer": 42}, 60)})
    ...     cache.get([(("node",), "key"), (("node",), "other")])
    {(('node',), 'key'): {'answer': 42}}

    Args:
        log: The log to store in, which may be a saver's or a store's.  Closing the cache leaves it open.
        serde: Serializer of values; LangGraph's JsonPlusSerializer without pickle if None.
    """

    def __init__(self, log: Log, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde)
        self.log = log
        self._owns_log = False

    @classmethod
    def from_conn_string(cls, conn_string: str | os.PathLike[str], *, serde: SerializerProtocol | None = None) -> Self:
        """Open or create the log at a path; ":memory:" is one that is gone when it is closed."""
        cache = cls(Log.open(conn_string), serde=serde)
        cache._owns_log = True
        return cache

    def close(self) -> None:
        """Close the log, if the cache has opened it."""
        if self._owns_log:
            self.log.close()

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """The values of those keys that are there and have not expired."""
        names = [((_ROOT, *namespace), key) for namespace, key in keys]
        moment = now()
        return {
            (tuple(namespace), key): self.serde.loads_typed(item.value)
            for (namespace, key), item in zip(keys, self.log.items.get_many(names), strict=True)
            if item is not None and (item.expires_at is None or moment < item.expires_at)
        }

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """`get` for coroutines."""
        return await offload(self.get, keys)

    def set(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Store values, each for some seconds or for ever, all in one commit.

        Raises:
            UsageError: The serializer pickles a value.
        """
        moment = now()
        events: list[ItemEvent] = []
        for (namespace, key), (value, seconds) in pairs.items():
            type_, payload = self.serde.dumps_typed(value)
            if type_ == _REFUSED_TYPE:
                raise UsageError(f"the value of {key!r} is pickled, which runs code when it is read: use another serde")
            expires_at = None if seconds is None else int(min(max(moment + seconds * _SECOND, 1), _END_OF_TIME))
            events.append(ItemPut((_ROOT, *namespace), key, parse(type_, bytes(payload)), expires_at))
        self.log.items.submit(events).result()

    async def aset(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """`set` for coroutines."""
        await offload(self.set, pairs)

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Remove the entries of some namespaces; or all, with all that they ever were, so that the log gets smaller."""
        if namespaces is None:
            self.log.items.forget((_ROOT,))
            return
        events: list[ItemEvent] = []
        for namespace in {(_ROOT, *namespace) for namespace in namespaces}:
            found = self.log.items.scan(namespace)
            events += [ItemDeleted(namespace, item.key) for item in found if item.namespace == namespace]
        self.log.items.submit(events).result()

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """`clear` for coroutines."""
        await offload(self.clear, namespaces)
