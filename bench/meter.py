"""A saver around another one, which times its calls and looks at disk and memory between them."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, DeltaChannelHistory

from states import State
from usage import memory_bytes

CURVE_POINTS = 20

Figures = dict[str, float | None]


@dataclass
class Latencies:
    """How long each call of one method took, in the order of the calls."""

    seconds: list[float] = field(default_factory=list)

    def figures(self, name: str) -> Figures:
        """Median and 99th percentile in ms, over all calls and over the last tenth of them."""
        tenth = max(1, len(self.seconds) // 10)
        last = self.seconds[-tenth:]
        return {
            f"{name}_median_ms": percentile(self.seconds, 0.50),
            f"{name}_p99_ms": percentile(self.seconds, 0.99),
            f"{name}_first_tenth_median_ms": percentile(self.seconds[:tenth], 0.50),
            f"{name}_last_tenth_median_ms": percentile(last, 0.50),
            f"{name}_last_tenth_p99_ms": percentile(last, 0.99),
        }

    def since(self, start: float) -> None:
        """Note the end of a call that began then."""
        self.seconds.append(time.perf_counter() - start)


def percentile(seconds: list[float], share: float) -> float | None:
    """The nearest-rank percentile, in ms; None of nothing."""
    ranked = sorted(seconds)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)] * 1000 if ranked else None


class Meter(BaseCheckpointSaver[Any]):
    """Times the calls of another saver, blocking and asynchronous ones alike.

    What an asynchronous call takes is the time until its await returns.

    Attributes:
        states: What was put in the main graph, in the order of the puts.
        list_calls: For each list, the time spent inside of it, not the consumer's.
    """

    def __init__(
        self,
        saver: BaseCheckpointSaver[Any],
        *,
        puts: int = 0,
        disk_bytes: Callable[[], int] = lambda: 0,
        announce_from: int | None = None,
    ) -> None:
        """
        Args:
            puts: How many are expected, to spread the points of the curve; 0 for no curve.
            disk_bytes: What the store takes on disk at this moment.
            announce_from: Print each state on stdout once its put has returned, from this position on.
        """
        super().__init__(serde=saver.serde)
        self._saver = saver
        self._point_every = max(1, puts // CURVE_POINTS) if puts else 0
        self._disk_bytes = disk_bytes
        self._announce_from = announce_from
        self.put_calls, self.write_calls, self.get_calls = Latencies(), Latencies(), Latencies()
        self.list_calls, self.delta_calls = Latencies(), Latencies()
        self.states: list[State] = []
        self.curve: list[dict[str, Any]] = []

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self._saver.get_next_version(current, channel)

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        start = time.perf_counter()
        loaded = self._saver.get_tuple(config)
        self.get_calls.since(start)
        return loaded

    async def aget_tuple(self, config: Any) -> CheckpointTuple | None:
        start = time.perf_counter()
        loaded = await self._saver.aget_tuple(config)
        self.get_calls.since(start)
        return loaded

    def list(
        self, config: Any, *, filter: Any = None, before: Any = None, limit: int | None = None
    ) -> Iterator[CheckpointTuple]:
        start = time.perf_counter()
        items = iter(self._saver.list(config, filter=filter, before=before, limit=limit))
        item, spent = next(items, None), 0.0
        while item is not None:
            spent += time.perf_counter() - start
            yield item
            start = time.perf_counter()
            item = next(items, None)
        self.list_calls.seconds.append(spent + time.perf_counter() - start)

    async def alist(
        self, config: Any, *, filter: Any = None, before: Any = None, limit: int | None = None
    ) -> AsyncIterator[CheckpointTuple]:
        start = time.perf_counter()
        items = aiter(self._saver.alist(config, filter=filter, before=before, limit=limit))
        item, spent = await anext(items, None), 0.0
        while item is not None:
            spent += time.perf_counter() - start
            yield item
            start = time.perf_counter()
            item = await anext(items, None)
        self.list_calls.seconds.append(spent + time.perf_counter() - start)

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        start = time.perf_counter()
        stored = self._saver.put(config, checkpoint, metadata, new_versions)
        self.put_calls.since(start)
        self._look(config, checkpoint, metadata)
        return stored

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        start = time.perf_counter()
        stored = await self._saver.aput(config, checkpoint, metadata, new_versions)
        self.put_calls.since(start)
        self._look(config, checkpoint, metadata)
        return stored

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        start = time.perf_counter()
        self._saver.put_writes(config, writes, task_id, task_path)
        self.write_calls.since(start)

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        start = time.perf_counter()
        await self._saver.aput_writes(config, writes, task_id, task_path)
        self.write_calls.since(start)

    def get_delta_channel_history(self, *, config: Any, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        start = time.perf_counter()
        history = self._saver.get_delta_channel_history(config=config, channels=channels)
        self.delta_calls.since(start)
        return history

    async def aget_delta_channel_history(
        self, *, config: Any, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        start = time.perf_counter()
        history = await self._saver.aget_delta_channel_history(config=config, channels=channels)
        self.delta_calls.since(start)
        return history

    def _look(self, config: Any, checkpoint: Any, metadata: Any) -> None:
        puts = self.put_calls.seconds
        place = config["configurable"]
        if not place.get("checkpoint_ns"):
            self.states.append(State(place["thread_id"], metadata["step"], checkpoint["id"]))
            if self._announce_from is not None and len(self.states) > self._announce_from:
                print("reached", json.dumps(asdict(self.states[-1])), flush=True)
        if self._point_every and len(puts) % self._point_every == 0:
            self.curve.append(
                {
                    "puts": len(puts),
                    "put_median_ms": percentile(puts[-self._point_every :], 0.5),
                    "disk_bytes": self._disk_bytes(),
                    "anonymous_memory_bytes": memory_bytes("RssAnon"),
                }
            )
            print("progress", len(puts), flush=True)
