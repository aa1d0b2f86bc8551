"""One saver used from several event loops and threads at once, blocking and asynchronous calls mixed, against a model.

    PYTHONPATH=tests python tests/concurrency/stress.py --seconds 300

Coroutines of several event loops and plain threads take lanes (namespaces of threads of the log) from one heap, make a
few calls on each, and put it back: each lane is written by everybody in turn, with whatever calls they use, and many
lanes of one thread are written at once.  After every call the model says what the saver must show.  Asynchronous calls
are given up now and then: what was given up is there or is not, whole.  Segments are sealed after a few events and the
cache is small, so that both happen all the time.  In the end another saver reads all that is left from the file.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the tests' packages are not found

from conformance.calls import Calls, checkpoint_of, config_of, id_of, new_id, new_version
from property.saver_model import SaverModel, show_tuple
from stepwell import Log
from stepwell_langgraph import StepwellSaver

LOOPS = 2
COROUTINES = 8  # on each loop
THREADS = 4
LANES = 24  # that are written at a time: fewer than there are writers and readers together
THREADS_OF_LOG = 8
LONGEST_LANE = 24
CALLS_IN_A_ROW = 5
SEAL_AFTER_EVENTS = 24
CACHE_BYTES = 1 << 18
_END_SECONDS = 120.0


class DifferenceError(Exception):
    """The saver does not show what the model shows."""


@dataclass(eq=False)
class Lane:
    """A namespace of a thread; whoever has taken it is the only one who writes to it.

    Attributes:
        model: What was put and is known to be there.
        attempted: Every checkpoint id that was ever tried, which is all that others may see.
        head: What was committed last.
        parent: What the next put follows, with these values and versions.
        written: Messages that tasks wrote on top of it, which the next put takes over.
    """

    thread: str
    ns: str
    alone: bool = False
    model: SaverModel = field(default_factory=SaverModel)
    attempted: set[str] = field(default_factory=set)
    values: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    written: list[Any] = field(default_factory=list)
    head: str | None = None
    parent: str | None = None

    def went_to(self, id_: str | None, values: dict[str, Any], versions: dict[str, Any]) -> None:
        """The next put follows this checkpoint."""
        self.parent, self.values, self.versions, self.written = id_, values, versions, []

    @property
    def length(self) -> int:
        return len(self.model.lane(self.thread, self.ns).steps)


@dataclass
class Tally:
    """What was done."""

    calls: int = 0
    given_up: int = 0
    given_up_and_there: int = 0
    lanes: int = 0
    compared: int = 0


class Heap:
    """The lanes that nobody has taken, and how they are renewed."""

    def __init__(self) -> None:
        self.free: SimpleQueue[Lane] = SimpleQueue()
        self.all: list[Lane] = []
        self.retired: list[Lane] = []
        self.tally = Tally()
        self._lock = threading.Lock()
        for _ in range(LANES):
            self.free.put(self.fresh())

    def fresh(self) -> Lane:
        """A lane that nothing was put to: one of many of its thread, or, one in four, alone."""
        with self._lock:
            number = self.tally.lanes
            self.tally.lanes += 1
            alone = number % 4 == 0
            generation = number // (LANES * 4)
            thread = f"alone {number}" if alone else f"thread {generation}.{number % THREADS_OF_LOG}"
            lane = Lane(thread, "" if alone else f"lane:{number}", alone)
            self.all.append(lane)
            return lane

    def count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.tally, name, getattr(self.tally, name) + number)


class Worker:
    """Somebody who makes calls of one kind."""

    def __init__(self, saver: StepwellSaver, heap: Heap, seed: str, *, asynchronous: bool) -> None:
        self._calls = Calls(saver, asynchronous=asynchronous)
        self._heap = heap
        self._rng = random.Random(seed)

    async def work(self, stop: threading.Event) -> None:
        """Take lanes and write to them until it is over."""
        try:
            while not stop.is_set():
                try:
                    lane = self._heap.free.get_nowait()
                except Empty:
                    await self._look_at_another()
                    continue
                for _ in range(self._rng.randint(1, CALLS_IN_A_ROW)):
                    await self._call(lane)
                if lane.length > LONGEST_LANE:
                    await self._retire(lane)
                    lane = self._heap.fresh()
                self._heap.free.put(lane)
        except BaseException:
            stop.set()
            raise

    async def _call(self, lane: Lane) -> None:
        choice = self._rng.random()
        if choice < 0.45 or lane.head is None:
            await self._put(lane)
        elif choice < 0.7:
            await self._put_writes(lane)
        elif choice < 0.9:
            await self._resume(lane)
        elif choice < 0.94 and lane.alone:
            await self._delete_or_copy(lane)
        else:
            await self._look_at_another()
        self._heap.count(calls=1)

    async def _put(self, lane: Lane) -> None:
        id_, moved = new_id(), {"messages": new_version()}
        values = dict(lane.values)
        values["messages"] = [*values.get("messages", ()), *lane.written, self._message()]
        if self._rng.random() < 0.3:
            moved["note"] = new_version()
            if self._rng.random() < 0.5:
                values["note"] = {"text": self._text(200), "number": self._rng.random()}
            else:
                values.pop("note", None)
        versions = {**lane.versions, **moved}
        checkpoint, metadata = (
            checkpoint_of(id_, values, versions),
            {"source": "loop", "step": lane.length, "parents": {}},
        )
        lane.attempted.add(id_)
        parent = lane.parent
        call = self._calls.put(config_of(lane.thread, lane.ns, parent), checkpoint, metadata, moved)
        if not await self._completes(call):
            await self._settle(lane)
            if await self._calls.get_tuple(config_of(lane.thread, lane.ns, id_)) is None:
                return
            self._heap.count(given_up_and_there=1)
        lane.model.put(lane.thread, lane.ns, parent, checkpoint, {**metadata}, moved)
        lane.head = id_
        lane.went_to(id_, values, versions)

    async def _put_writes(self, lane: Lane) -> None:
        assert lane.parent is not None
        id_, task, message = lane.parent, new_id(), self._message()
        writes = [("messages", message), ("note", self._text(50))]
        call = self._calls.put_writes(config_of(lane.thread, lane.ns, id_), writes, task, "~path")
        if not await self._completes(call):
            await self._settle(lane)
            found = await self._calls.get_tuple(config_of(lane.thread, lane.ns, id_))
            if task not in {stored for stored, *_ in found.pending_writes}:
                return
            self._heap.count(given_up_and_there=1)
        lane.model.put_writes(lane.thread, lane.ns, id_, writes, task, "~path")
        lane.written.append(message)

    async def _completes(self, call: Coroutine[Any, Any, Any]) -> bool:
        """Make a call, or give it up after a while."""
        if not self._calls.asynchronous or self._rng.random() < 0.9:
            await call
            return True
        task = asyncio.ensure_future(call)
        for _ in range(self._rng.randint(0, 3)):
            await asyncio.sleep(self._rng.choice([0, 0, 0.001]))
        task.cancel()
        try:
            await task
            return True
        except asyncio.CancelledError:
            self._heap.count(given_up=1)
            return False

    async def _settle(self, lane: Lane) -> None:
        """When this returns, what was asked for in the lane before it is there or never will be."""
        if lane.head is None:
            await self._calls.put_writes(config_of(lane.thread, lane.ns, new_id()), [("x", 1)], new_id())
            return
        id_, task = lane.head, new_id()
        await self._calls.put_writes(config_of(lane.thread, lane.ns, id_), [("x", 1)], task)
        lane.model.put_writes(lane.thread, lane.ns, id_, [("x", 1)], task, "")

    async def _resume(self, lane: Lane) -> None:
        """Read the head, or travel in time, and go on with the objects that are handed out, as an invocation does."""
        id_ = None
        if self._rng.random() < 0.3:
            id_ = self._rng.choice([*lane.model.lane(lane.thread, lane.ns).steps])
        found = await self._calls.get_tuple(config_of(lane.thread, lane.ns, id_))
        self._compare(lane, show_tuple(found), lane.model.show(lane.thread, lane.ns, id_ or lane.head or ""))
        checkpoint = found.checkpoint
        lane.went_to(checkpoint["id"], dict(checkpoint["channel_values"]), dict(checkpoint["channel_versions"]))

    async def _delete_or_copy(self, lane: Lane) -> None:
        if self._rng.random() < 0.5:
            await self._calls.delete_thread(lane.thread)
            lane.model, lane.head = SaverModel(), None
            lane.went_to(None, {}, {})
            return
        copy = f"copy {new_id()}"  # several copy at once
        await self._calls.copy_thread(lane.thread, copy)
        found = await self._calls.list(config_of(copy, lane.ns))
        shown = [{**(show_tuple(each) or {}), "config": None} for each in found]
        expected = [{**(each or {}), "config": None} for each in lane.model.list(lane.thread, lane.ns)]
        self._compare(lane, shown, expected)
        await self._calls.delete_thread(copy)

    async def _look_at_another(self) -> None:
        """Read a lane that others write to: something that was tried is its head, or nothing."""
        lane = self._rng.choice(self._heap.all[-LANES:])
        found = await self._calls.get_tuple(config_of(lane.thread, lane.ns))
        if found is not None and id_of(found.config) not in lane.attempted:
            raise DifferenceError(f"{lane.thread} {lane.ns}: {id_of(found.config)} was never put")

    async def _retire(self, lane: Lane) -> None:
        """Compare all of a lane that is written to no more."""
        found = await self._calls.list(config_of(lane.thread, lane.ns))
        self._compare(lane, [show_tuple(each) for each in found], lane.model.list(lane.thread, lane.ns))
        self._heap.retired.append(lane)

    def _compare(self, lane: Lane, shown: Any, expected: Any) -> None:
        self._heap.count(compared=1)
        if shown != expected:
            raise DifferenceError(f"{lane.thread} {lane.ns}:\n  shown    {shown}\n  expected {expected}")

    def _message(self) -> HumanMessage | AIMessage:
        kind = self._rng.choice([HumanMessage, AIMessage])
        return kind(self._text(self._rng.choice([40, 400, 1500])), id=new_id())

    def _text(self, length: int) -> str:
        return "".join(self._rng.choices("abcdefgh ", k=8)) * (length // 8)


def _run_blocking(work: Coroutine[Any, Any, None]) -> None:
    """Run what never waits for an event loop, without one."""
    with suppress(StopIteration):
        work.send(None)
        raise AssertionError("a blocking call waited for an event loop")


def _run_loop(workers: list[Worker], stop: threading.Event) -> None:
    async def run() -> None:
        await asyncio.gather(*(worker.work(stop) for worker in workers))

    asyncio.run(run())


def stress(path: Path, seconds: float, seed: int) -> Tally:
    """Let everybody work for so long, then compare what is in the file.

    Raises:
        DifferenceError: The saver showed something else than the model.
    """
    heap, stop = Heap(), threading.Event()
    log = Log.open(path, seal_after_events=SEAL_AFTER_EVENTS, cache_bytes=CACHE_BYTES)
    with StepwellSaver(log) as saver, ThreadPoolExecutor(LOOPS + THREADS) as pool:
        running = []
        for number in range(LOOPS):
            names = [f"{seed} {number} {coroutine}" for coroutine in range(COROUTINES)]
            workers = [Worker(saver, heap, name, asynchronous=True) for name in names]
            running.append(pool.submit(_run_loop, workers, stop))
        for number in range(THREADS):
            worker = Worker(saver, heap, f"{seed} {number}", asynchronous=False)
            running.append(pool.submit(_run_blocking, worker.work(stop)))
        stop.wait(seconds)
        stop.set()
        for each in running:
            each.result()
    _compare_file(path, heap, seconds)
    return heap.tally


def _compare_file(path: Path, heap: Heap, seconds: float) -> None:
    """What another saver reads from the file: the lanes written last, then others, for a third of the time."""
    end = time.monotonic() + max(seconds / 3, 1)
    with StepwellSaver.from_conn_string(path) as saver:
        reader = Worker(saver, heap, "", asynchronous=False)
        left = [lane for lane in heap.all if lane not in heap.retired][-LANES:]
        for lane in left + heap.retired[::-1]:
            _run_blocking(reader._retire(lane))
            if time.monotonic() > end:
                break
        report = saver.log.audit()
        if report.breaches:
            raise DifferenceError(str(report.breaches[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    with tempfile.TemporaryDirectory(prefix="stepwell-stress-", dir="/var/tmp") as directory:
        print(stress(Path(directory) / "log.stepwell", asked.seconds, asked.seed))


if __name__ == "__main__":
    main()
