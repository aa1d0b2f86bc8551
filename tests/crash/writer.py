"""The child that is killed: agents that write through StepwellSaver and tell what was acknowledged.

Each operation is announced before its call, with a digest of what it stores, and reported done after the
call has returned.  A line is one write to a pipe, so a killed child leaves no half of one.
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import json
import os
import random
import signal
import threading
import traceback
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from stepwell.events import WritesRecorded
from stepwell.patch import Ref, Value, payload_of
from stepwell_langgraph import StepwellSaver

SERDE = JsonPlusSerializer()
MODES = ("sync", "threads", "async")
COMMON = "common"
"""The one thread that every writer puts into."""

_MOST_MESSAGES = 14
_METHODS = {
    "put": "put",
    "writes": "put_writes",
    "prune": "prune",
    "copy": "copy_thread",
    "delete": "delete_thread",
}
_WORDS = ("checkpoint", "ledger", "granite", "reef", "stepwell", "monsoon", "archive", "lantern", "tide", "kiln")


def digest(*parts: Any) -> str:
    """A short name for the encoding of some values."""
    return hashlib.blake2b(SERDE.dumps_typed(parts)[1], digest_size=12).hexdigest()


def digest_of_step(values: dict[str, Any], fields: dict[str, Any], metadata: dict[str, Any], parent: str | None) -> str:
    """A digest of all that a checkpoint shows, whatever the order of keys."""
    core = {key: value for key, value in fields.items() if key != "channel_values"}
    return digest(*(sorted(each.items()) for each in (values, core, metadata)), parent)


def digest_of_tuple(found: CheckpointTuple) -> str:
    """`digest_of_step` for a checkpoint that was read."""
    parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
    values = found.checkpoint["channel_values"]
    return digest_of_step(values, {**found.checkpoint}, {**found.metadata}, parent)


def digest_of_writes(writes: Sequence[tuple[str, tuple[str, bytes]]]) -> str:
    """A digest of a task's writes: channels with the type and bytes of each value."""
    return hashlib.blake2b(repr(writes).encode(), digest_size=12).hexdigest()


def config_of(thread: str, ns: str, id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": thread, "checkpoint_ns": ns}
    return {"configurable": configurable if id is None else {**configurable, "checkpoint_id": id}}


class Reports:
    """What the parent is told."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._numbers = count(1)

    def tell(self, **fact: Any) -> None:
        line = json.dumps(fact).encode() + b"\n"
        assert len(line) <= 4096, "longer lines may be torn"
        os.write(self._pipe.fileno(), line)

    def begin(self, kind: str, thread: str, **fact: Any) -> int:
        number = next(self._numbers)
        self.tell(op=number, kind=kind, thread=thread, **fact)
        return number

    def done(self, number: int) -> None:
        self.tell(done=number)


class Lane:
    """One namespace as a running graph holds it: the head, its values, and the steps it may go back to."""

    def __init__(self, ns: str) -> None:
        self.ns = ns
        self.head: str | None = None
        self.values: dict[str, Any] = {"messages": [], "files": {}, "todos": [0]}
        self.versions: dict[str, str] = {}
        self.past: list[str] = []


class Agent:
    """Runs one thread as LangGraph would, and now and then prunes, copies, deletes or forks it.

    Args:
        saver: Where to.
        reports: Whom to tell.
        thread: Id of the thread.
        prefix: What ids of this agent begin with; greater in every life than in the lives before.
        rng: Decides everything.
        asynchronous: Whether the async methods are called.
        pool: Runs blocking calls that belong together; None runs them one by one.
        shared: The namespace to keep to, in a thread that others write too.
    """

    def __init__(
        self,
        saver: StepwellSaver,
        reports: Reports,
        thread: str,
        prefix: str,
        rng: random.Random,
        *,
        asynchronous: bool,
        pool: ThreadPoolExecutor | None = None,
        shared: str | None = None,
    ) -> None:
        self._saver = saver
        self._reports = reports
        self._thread = thread
        self._prefix = prefix
        self._rng = rng
        self._asynchronous = asynchronous
        self._pool = pool
        self._shared = shared
        self._numbers = count(1)
        self._lanes: dict[str, Lane] = {}
        self._copies = 0

    async def turn(self) -> None:
        """One operation, or a superstep with its writes."""
        lane = self._lane()
        if lane.head is None and self._rng.random() < 0.8:
            await self._resume(lane, None)
        chance = self._rng.random()
        if self._shared is None and chance < 0.04:
            await self._call("prune", {}, [self._thread])
            for each in self._lanes.values():
                each.past.clear()
        elif self._shared is None and chance < 0.07:
            await self._copy()
        elif self._shared is None and chance < 0.085:
            await self._call("delete", {}, self._thread)
            self._lanes.clear()
        elif chance < 0.17 and lane.past:
            await self._resume(lane, self._rng.choice(lane.past))
            await self._step(lane)
        elif chance < 0.22:
            await self._resume(lane, None)
        else:
            await self._step(lane)

    def _lane(self) -> Lane:
        ns = self._shared
        if ns is None:
            sub = f"tools:{self._rng.randrange(3)}"
            ns = self._rng.choice(["", "", "", sub, f"{sub}|inner"])
        return self._lanes.setdefault(ns, Lane(ns))

    async def _step(self, lane: Lane) -> None:
        rng = self._rng
        id = self._new_id()
        messages = [self._message() for _ in range(rng.choice([1, 1, 2, 3]))]
        name, text = f"{rng.randrange(9)}.md", self._text()
        # Writes may come before their checkpoint: some of these are for the one that is put next.
        early = [(id, [("messages", [self._message()]), ("branch:to:model", None)])] if rng.random() < 0.2 else []
        results = [(lane.head, [("messages", message), ("files", {name: text})]) for message in messages]
        for step, writes in early + results:
            if step is not None:
                await self._writes(lane, step, writes)
        for message in messages:
            message.id = message.id or self._new_id()
        values = dict(lane.values)
        values["messages"] = [*values["messages"], *messages]
        if len(values["messages"]) > _MOST_MESSAGES:
            values["messages"] = [HumanMessage(self._text(), id=self._new_id()), *values["messages"][-4:]]
        values["files"] = {**values["files"], name: text}
        if rng.random() < 0.3:
            values["todos"] = [rng.randrange(100) for _ in range(rng.randrange(1, 9))]
        calls: list[Coroutine[Any, Any, None]] = [self._put(lane, id, values)]
        if lane.head is not None and rng.random() < 0.3:
            calls.append(self._writes(lane, lane.head, [("messages", self._message())]))
        await self._together(calls)
        lane.head, lane.values = id, values
        lane.past.append(id)
        del lane.past[:-8]

    async def _put(self, lane: Lane, id: str, values: dict[str, Any]) -> None:
        moved = {
            name: self._new_id()
            for name, value in values.items()
            if lane.head is None or value is not lane.values[name]
        }
        lane.versions = {**lane.versions, **moved, "branch:to:model": self._new_id()}
        checkpoint: Any = {
            "v": 4,
            "id": id,
            "ts": "2025-01-01T00:00:00+00:00",
            "channel_values": values,
            "channel_versions": dict(lane.versions),
            "versions_seen": {"model": dict(lane.versions)},
            "updated_channels": sorted(moved),
        }
        metadata: Any = {"source": "loop", "step": self._rng.randrange(1000), "parents": {}}
        facts = {"ns": lane.ns, "id": id, "digest": digest_of_step(values, checkpoint, metadata, lane.head)}
        config = config_of(self._thread, lane.ns, lane.head)
        moved["branch:to:model"] = lane.versions["branch:to:model"]
        await self._call("put", facts, config, checkpoint, metadata, moved)

    async def _writes(self, lane: Lane, id: str, writes: list[tuple[str, Any]]) -> None:
        task = self._new_id()
        encoded = [(channel, SERDE.dumps_typed(value)) for channel, value in writes]
        facts = {"ns": lane.ns, "id": id, "task": task, "digest": digest_of_writes(encoded)}
        await self._call("writes", facts, config_of(self._thread, lane.ns, id), writes, task, "~__pregel_pull")

    async def _copy(self) -> None:
        target = f"{self._thread} copy {self._copies % 3}"
        self._copies += 1
        # The copies of former lives are in the way: what is not there is deleted as well.
        number = self._reports.begin("delete", target)
        await self._method("delete_thread", target)
        self._reports.done(number)
        await self._call("copy", {"target": target}, self._thread, target)

    async def _resume(self, lane: Lane, id: str | None) -> None:
        """Go on from what the saver hands out: the head, or an older step."""
        found: CheckpointTuple | None = await self._method("get_tuple", config_of(self._thread, lane.ns, id))
        if found is None:
            assert id is None, f"{id!r} was acknowledged and is gone"
            return
        lane.head = found.checkpoint["id"]
        lane.values = found.checkpoint["channel_values"]
        lane.versions = dict(found.checkpoint["channel_versions"])

    async def _call(self, kind: str, facts: dict[str, Any], *arguments: Any) -> None:
        number = self._reports.begin(kind, self._thread, **facts)
        await self._method(_METHODS[kind], *arguments)
        self._reports.done(number)

    async def _method(self, name: str, *arguments: Any) -> Any:
        if self._asynchronous:
            return await getattr(self._saver, f"a{name}")(*arguments)
        return getattr(self._saver, name)(*arguments)

    async def _together(self, calls: list[Coroutine[Any, Any, None]]) -> None:
        self._rng.shuffle(calls)
        if self._asynchronous:
            await asyncio.gather(*calls)
        elif self._pool is not None:
            list(self._pool.map(drive, calls))
        else:
            for call in calls:
                await call

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers):06}"

    def _text(self) -> str:
        return " ".join(self._rng.choices(_WORDS, k=self._rng.choice([3, 30, 300])))

    def _message(self) -> BaseMessage:
        id = self._new_id() if self._rng.random() < 0.5 else None
        match self._rng.randrange(3):
            case 0:
                return HumanMessage(self._text(), id=id)
            case 1:
                call = {"name": "search", "args": {"q": self._text()}, "id": self._new_id(), "type": "tool_call"}
                return AIMessage("", tool_calls=[call], id=id)
            case _:
                return ToolMessage(self._text(), tool_call_id=self._new_id(), id=id)


def drive(call: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that awaits nothing but blocking calls."""
    try:
        call.send(None)
    except StopIteration:
        return
    raise AssertionError("a blocking call awaited something")


def write(path: str, name: str, life: int, seed: int, mode: str, pipe: Connection, control: Connection) -> None:
    """Write until the control pipe says stop, or until this process is killed."""
    faulthandler.register(signal.SIGUSR1)  # who waits for it too long asks where it stands
    reports = Reports(pipe)
    reports.tell(started=True)
    with StepwellSaver.from_conn_string(path) as saver:
        reports.tell(opened=True)
        agents = _agents(saver, reports, name, life, seed, mode)
        if mode == "async":
            asyncio.run(_write_async(agents, control))
        else:
            stopped = threading.Event()
            threads = [threading.Thread(target=_write, args=(agent, stopped)) for agent in agents]
            for thread in threads:
                thread.start()
            with suppress(EOFError):
                control.recv()
            stopped.set()
            for thread in threads:
                thread.join()
    reports.tell(closed=True)


def _agents(saver: StepwellSaver, reports: Reports, name: str, life: int, seed: int, mode: str) -> list[Agent]:
    """An agent for the thread in common and one, or some, with threads of their own."""
    pool = ThreadPoolExecutor(4) if mode == "threads" else None
    agents = []
    for index in range(1 if mode == "sync" else 3):
        rng = random.Random(f"{seed} {name} {life} {index}")
        prefix = f"{life:06}-{name}-{index}"
        agents.append(Agent(saver, reports, f"{name} {index}", prefix, rng, asynchronous=mode == "async", pool=pool))
    rng = random.Random(f"{seed} {name} {life} {COMMON}")
    ns = rng.choice(["", name])
    agents.append(
        Agent(saver, reports, COMMON, f"{life:06}-{name}-{COMMON}", rng, asynchronous=mode == "async", shared=ns)
    )
    return agents


def _write(agent: Agent, stopped: threading.Event) -> None:
    try:
        while not stopped.is_set():
            drive(agent.turn())
    except BaseException:
        traceback.print_exc()
        os._exit(1)


async def _write_async(agents: list[Agent], control: Connection) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(control.fileno(), stopped.set)

    async def work(agent: Agent) -> None:
        while not stopped.is_set():
            await agent.turn()

    await asyncio.gather(*map(work, agents))


def inspect(path: str, pipe: Connection) -> None:
    """What a process that opens the file afresh finds in it; then it goes on with it, and sends both."""
    with StepwellSaver.from_conn_string(path) as saver:
        log = saver.log
        report = log.audit()
        steps: dict[str, dict[tuple[str, str], str]] = {}
        heads: dict[tuple[str, str], str] = {}
        writes: dict[str, dict[tuple[str, str, str], str]] = {}
        for found in saver.list(None):
            place = found.config["configurable"]
            at = (place["checkpoint_ns"], place["checkpoint_id"])
            steps.setdefault(place["thread_id"], {})[at] = digest_of_tuple(found)
        for summary in log.threads():
            thread = summary.thread_id
            for ns in {ns for ns, _ in steps.get(thread, {})}:
                head = saver.get_tuple(config_of(thread, ns))
                assert head is not None
                heads[thread, ns] = head.checkpoint["id"]
            for _, event in log.thread(thread).events():
                if isinstance(event, WritesRecorded):
                    encoded = [(each.channel, _plain(each.value)) for each in event.writes]
                    place = (event.lane, event.step_id, event.task_id)
                    writes.setdefault(thread, {})[place] = digest_of_writes(encoded)
        goes_on = _go_on(saver, len(heads))
    pipe.send({"breaches": report.breaches, "steps": steps, "heads": heads, "writes": writes, "goes_on": goes_on})


def _plain(value: Value) -> tuple[str, bytes]:
    def read(ref: Ref) -> bytes:
        raise AssertionError(f"an event with its content as bytes holds a reference: {ref}")

    return value.type, payload_of(value, read)


def _go_on(saver: StepwellSaver, number: int) -> bool:
    """Whether the file takes another thread, shows it, and lets it go again."""
    config = config_of("inspection", "")
    checkpoint: Any = {
        "v": 4,
        "id": f"{number}",
        "ts": "",
        "channel_values": {"messages": [HumanMessage("still there?")]},
        "channel_versions": {"messages": "1"},
        "versions_seen": {},
        "updated_channels": None,
    }
    stored = saver.put(config, checkpoint, {"source": "input", "step": -1, "parents": {}}, {"messages": "1"})
    saver.put_writes(stored, [("messages", AIMessage("yes"))], "task")
    found = saver.get_tuple(config)
    saver.delete_thread("inspection")
    return (
        found is not None
        and found.checkpoint["channel_values"]["messages"][0].content == "still there?"
        and (found.pending_writes or [])[0][2].content == "yes"
        and saver.get_tuple(config) is None
        and saver.log.audit().breaches == []
    )


# --- a writer that is not killed, for readers to look at ---

_SHOWN_MESSAGES = 20
SNAPSHOT_EVERY = 10


def steady_id(number: int) -> str:
    """The id of a steady writer's checkpoint."""
    return f"{number:08}"


def steady_values(number: int) -> dict[str, Any]:
    """The channels of its checkpoint `number`; `log` is a delta channel, which has a value now and then."""
    rng = random.Random(number)
    first = max(1, number - _SHOWN_MESSAGES)
    values: dict[str, Any] = {
        "messages": [HumanMessage(f"{n} " + _WORDS[n % 10] * 50, id=f"{n}") for n in range(first, number + 1)],
        "notes": {f"{n % 5}": f"note {n}" for n in range(first, number + 1)},
        "random": rng.randbytes(300),
    }
    if number % SNAPSHOT_EVERY == 0:
        values["log"] = _DeltaSnapshot(list(range(1, number)))
    return values


def write_steadily(path: str, thread: str, steps: int, prune_every: int, delete_every: int, pipe: Connection) -> None:
    """Put checkpoints 1, 2, ... and a write on each; send (kind, number) after each call has returned.

    Args:
        path: The file.
        thread: The thread.
        steps: How many.
        prune_every: After so many, copy the thread to another and prune it; 0 is never.
        delete_every: After so many, delete the thread; 0 is never.
        pipe: Told.
    """
    with StepwellSaver.from_conn_string(path) as saver:
        config = config_of(thread, "")
        for number in range(1, steps + 1):
            values = steady_values(number)
            versions = dict.fromkeys(("messages", "notes", "random", "log"), f"{number:032}")
            checkpoint: Any = {
                "v": 4,
                "id": steady_id(number),
                "ts": "2025-01-01T00:00:00+00:00",
                "channel_values": values,
                "channel_versions": versions,
                "versions_seen": {},
                "updated_channels": sorted(versions),
            }
            config = saver.put(config, checkpoint, {"source": "loop", "step": number, "parents": {}}, versions)
            pipe.send(("step", number))
            saver.put_writes(config, [("log", number)], f"task {number}")
            pipe.send(("write", number))
            if prune_every and number % prune_every == 0:
                saver.delete_thread("copy")
                saver.copy_thread(thread, "copy")
                saver.prune([thread])
            if delete_every and number % delete_every == 0:
                saver.delete_thread(thread)
                config = config_of(thread, "")
    pipe.send(("end", steps))
