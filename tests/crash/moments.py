"""Interrupt a call at each moment at which Python handles signals, one after the other.

CPython looks for signals when a function written in Python begins, and when the call of one written in C has
returned.  A profile function sees exactly these moments, so the n-th one of a call can be chosen: there
KeyboardInterrupt is raised, as Ctrl-C does, or something is called, as a signal handler of the user's would.

    python tests/crash/moments.py --call put --how Ctrl-C
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the tests' packages are not found

from building import noise, step, wrote
from conformance.calls import checkpoint_of, config_of
from stepwell import ClosedError, Item, ItemDeleted, ItemPut, Log, parse
from stepwell.bundle import export_thread, import_thread
from stepwell_langgraph import StepwellSaver, StepwellStore

_PATIENCE_SECONDS = 60.0
HOWS = ("Ctrl-C", "close", "append")


class Moments:
    """Counts the moments while its block runs, and does something at one of them.

    Attributes:
        passed: How many there were.

    Args:
        at: The number of the moment, from 1; 0 for none.
        act: What to do; may raise.
    """

    def __init__(self, at: int = 0, act: Callable[[], None] | None = None) -> None:
        self.passed = 0
        self._at = at
        self._act = act

    def __enter__(self) -> Self:
        # An exception out of a finalizer goes nowhere, so no moment is to be one of a finalizer's.
        gc.collect()
        gc.set_threshold(1 << 30)
        sys.setprofile(self._see)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(None)
        gc.set_threshold(700, 10, 10)

    def _see(self, frame: FrameType, event: str, function: Any) -> None:
        waits = event == "c_call" and getattr(function, "__name__", "") in ("acquire", "get")
        if waits or event in ("call", "c_return"):
            self.passed += 1
            if self.passed == self._at and self._act is not None:
                self._act()


def interrupt() -> None:
    """What Ctrl-C does: Python's handler raises KeyboardInterrupt, that of an event loop cancels its main task."""
    signal.raise_signal(signal.SIGINT)


# --- the calls ---


class Failure(Exception):
    """An interrupted call left something half done, or something in the way."""


@dataclass
class World:
    """A log with something in it, and a saver and a store over it; what the calls under test need.

    Attributes:
        truth: Channel values of each checkpoint that was put, whether or not the call returned.
    """

    path: Path
    log: Log = field(init=False)
    saver: StepwellSaver = field(init=False)
    store: StepwellStore = field(init=False)
    truth: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = Log.open(self.path, seal_after_events=1 << 20)
        self.saver = StepwellSaver(self.log)
        self.store = StepwellStore(self.log, ttl={"default_ttl": 60, "refresh_on_read": True})
        thread = self.log.thread("t")
        thread.append([step("s0", {"x": b"0"}), wrote("s0")])
        thread.append([step("s1", {"x": b"1", "y": b"2" * 5000}, parent="s0")])
        for number in range(4):
            self.put(number)
        self.log.thread("other").append([step("s0", {"x": b"0"})])
        self.log.thread("other").label({"team": "red"})
        export_thread(self.log.thread("other"), self.beside(".bundle"))
        for turn in (-2, -1):
            self.remember(turn)
        self.store.put(("notes", "ada"), "old", {"text": "tea"})
        # Room that sealing and closing give back.
        self.log.thread("gone").append([step("s0", {"x": noise(150_000)})])
        self.log.thread("gone").delete()

    def opened_again(self) -> World:
        """What is in the file once it was closed."""
        again = World.__new__(World)
        again.path, again.truth, again.log = self.path, self.truth, Log.open(self.path)
        again.saver, again.store = StepwellSaver(again.log), StepwellStore(again.log)
        return again

    def beside(self, suffix: str) -> Path:
        """A path beside the log."""
        return self.path.with_name(self.path.name + suffix)

    def remember(self, turn: int) -> None:
        """Put items in one append; the one before the last has expired."""
        names = [(("group", "a"), f"k{number}") for number in range(4)]
        value = parse("text", b"%d " % turn + b"v" * 2000 * (turn % 2))
        self.log.items.submit([ItemPut(*name, value, 1 if turn == -1 else None) for name in names]).result()

    def values(self, number: int) -> dict[str, Any]:
        """The state after a number of puts: a list that grows, a dict that changes, a value."""
        items = [f"message {index}" for index in range(5 * number + 5)]
        return {"messages": items, "files": {f"f{number % 3}": "x" * number, "same": "y"}, "last": number}

    def put(self, number: int) -> None:
        """Put the checkpoint of a number after the one before it."""
        id_ = f"c{number:06}"
        values = self.values(number)
        self.truth[id_] = values
        config = config_of("saved", "", f"c{number - 1:06}" if number else None)
        versions = dict.fromkeys(values, f"{number + 1:032}.0")
        self.saver.put(config, checkpoint_of(id_, values, versions), {"step": number}, versions)

    def check(self) -> None:
        """Whatever is there is whole and true, and what goes on is too."""
        for found in self.saver.list(config_of("saved")):
            id_ = found.checkpoint["id"]
            if found.checkpoint["channel_values"] != self.truth[id_]:
                raise Failure(f"checkpoint {id_} shows {found.checkpoint['channel_values']}, not {self.truth[id_]}")
        items = [item.value for item in self.log.items.scan(("group",))]
        if len(items) not in (0, 4) or len({*items}) > 1:
            raise Failure(f"of items that change together there are {items}")
        for found in self.store.search(("notes",)):
            if found.value not in ({"text": "tea"}, {"text": "new"}):
                raise Failure(f"an item is {found.value}")
        breaches = self.log.audit().breaches
        if breaches:
            raise Failure(f"audit: {breaches}")
        self._check_files()

    def _check_files(self) -> None:
        """What was made beside the log is whole, or is not there."""
        for suffix in (".compacted", ".repaired"):
            if self.beside(suffix).exists():
                with Log.open(self.beside(suffix)) as log:
                    if log.audit().breaches or log.thread("t").state() is None:
                        raise Failure(f"what is at {log.path} is not whole")
        for suffix in (".bundle", ".exported"):
            if self.beside(suffix).exists():
                with Log.open(":memory:") as log:
                    import_thread(log, self.beside(suffix), as_="proven")


Call = Callable[[World, int], object]


def _put(world: World, turn: int) -> None:
    world.put(len(world.truth))


def _put_writes(world: World, turn: int) -> None:
    config = config_of("saved", "", f"c{len(world.truth) - 1:06}")
    world.saver.put_writes(config, [("messages", "a"), ("last", 1)], f"task {turn}")


def _append(world: World, turn: int) -> None:
    world.log.thread("t").append([step(f"a{turn}", {"x": b"%d" % turn}), wrote(f"a{turn}", [b"v" * 100])])


def _append_to_a_new_thread(world: World, turn: int) -> None:
    world.log.thread(f"new {turn}").append([step("a"), wrote("a")])


def _copy(world: World, turn: int) -> None:
    world.log.thread("other").copy_to(f"copy {turn}")


def _delete(world: World, turn: int) -> None:
    world.log.thread("t").delete()


def _prune(world: World, turn: int) -> None:
    state = world.log.thread("t").state()
    assert state is not None
    world.log.thread("t").prune([state.sequence])


def _fork(world: World, turn: int) -> None:
    world.log.thread("t").fork("s1")


def _fork_into_another(world: World, turn: int) -> None:
    world.log.thread("t").fork("s1", as_=f"forked {turn}")


def _delete_items(world: World, turn: int) -> None:
    world.log.items.submit([ItemDeleted(("group", "a"), f"k{number}") for number in range(4)]).result()


def _read_items(world: World, turn: int) -> None:
    items = world.log.items
    at = next(each.commit for each in items.history(("group", "a"), "k0") if isinstance(each, Item))
    list(items.scan(("group",), at=at, attachments=True))
    list(items.changes(0) or ())
    list(items.namespaces())
    items.expired(10)


def _search(world: World, turn: int) -> None:
    world.store.search(("notes",), filter={"text": "tea"})
    world.store.get(("notes", "ada"), "old")
    world.store.history(("notes", "ada"), "old")


async def _use_in_a_loop(world: World, turn: int) -> None:
    """What an agent does in a superstep."""
    last = f"c{len(world.truth) - 1:06}"
    await asyncio.gather(
        world.saver.aget_tuple(config_of("saved")),
        world.saver.aput_writes(config_of("saved", "", last), [("messages", "a")], f"loop {turn}"),
        world.store.aput(("notes", "ada"), f"k{turn}", {"text": "new"}),
        world.store.aget(("notes", "ada"), "old"),
    )
    await world.store.asearch(("notes",))


async def _follow_in_a_loop(world: World, turn: int) -> None:
    async for _ in world.log.follow(timeout_seconds=0.002):
        pass


def _open_another(world: World, turn: int) -> None:
    with Log.open(world.path.with_suffix(".other")) as log:
        log.thread("t").append([step(f"s{turn}")])


def _open_again(world: World, turn: int) -> None:
    with Log.open(world.path) as log:
        log.thread("t").state()


CALLS: dict[str, Call] = {
    "append": _append,
    "append to a new thread": _append_to_a_new_thread,
    "copy": _copy,
    "delete": _delete,
    "prune": _prune,
    "seal": lambda world, turn: world.log.seal(),
    "audit": lambda world, turn: world.log.audit(),
    "state": lambda world, turn: world.log.thread("t").state(),
    "steps": lambda world, turn: list(world.log.thread("t").steps()),
    "events": lambda world, turn: list(world.log.thread("t").events()),
    "threads": lambda world, turn: list(world.log.threads()),
    "feed": lambda world, turn: list(world.log.feed()),
    "follow": lambda world, turn: list(world.log.follow(timeout_seconds=0.002)),
    "follow a thread": lambda world, turn: list(world.log.thread("t").follow(timeout_seconds=0.002)),
    "stats": lambda world, turn: world.log.stats(),
    "measure": lambda world, turn: world.log.measure(),
    "writes": lambda world, turn: world.log.thread("t").writes("s0"),
    "label": lambda world, turn: world.log.thread("t").label({"team": "blue", "turn": turn}),
    "labelled threads": lambda world, turn: list(world.log.threads(labels={"team": "red"})),
    "fork": _fork,
    "fork into another": _fork_into_another,
    "export": lambda world, turn: export_thread(world.log.thread("t"), world.beside(".exported")),
    "import": lambda world, turn: import_thread(world.log, world.beside(".bundle"), as_=f"imported {turn}"),
    "compact": lambda world, turn: world.log.compact(world.beside(".compacted")),
    "repair": lambda world, turn: world.log.repair(world.beside(".repaired")),
    "items": _read_items,
    "put items": lambda world, turn: world.remember(turn),
    "delete items": _delete_items,
    "forget items": lambda world, turn: world.log.items.forget(("group",)),
    "prune items": lambda world, turn: world.log.items.prune(world.log.storage.newest()),
    "store put": lambda world, turn: world.store.put(("notes", "ada"), "old", {"text": "new"}),
    "store search": _search,
    "sweep": lambda world, turn: world.store.sweep_ttl(),
    "superstep in a loop": lambda world, turn: asyncio.run(_use_in_a_loop(world, turn)),
    "follow in a loop": lambda world, turn: asyncio.run(_follow_in_a_loop(world, turn)),
    "open another": _open_another,
    "open again": _open_again,
    "close": lambda world, turn: world.saver.close(),
    "put": _put,
    "put_writes": _put_writes,
    "get_tuple": lambda world, turn: world.saver.get_tuple(config_of("saved")),
    "list": lambda world, turn: list(world.saver.list(config_of("saved"))),
    "history": lambda world, turn: world.saver.get_delta_channel_history(
        config=config_of("saved"), channels=["messages", "missing"]
    ),
    "prune of the saver": lambda world, turn: world.saver.prune(["saved"]),
    "delete_thread": lambda world, turn: world.saver.delete_thread("saved"),
}


def count_moments(name: str, folder: Path) -> int:
    """How many moments a call has."""
    world = World(folder / "counted.stepwell")
    with Moments() as moments:
        CALLS[name](world, 0)
    world.saver.close()
    return moments.passed


def interrupt_at(name: str, at: int, folder: Path, how: str) -> None:
    """Interrupt one call at one moment, and see that everything goes on.

    Args:
        name: The call.
        at: The moment.
        folder: Where to make the log.
        how: "Ctrl-C", or what a signal handler does: "close" or "append".
    """
    path = folder / f"{at}.stepwell"
    world = World(path)
    acts: dict[str, Callable[[], None]] = {
        "Ctrl-C": interrupt,
        "close": world.saver.close,
        "append": lambda: _append_if_open(world.log),
    }
    expected = {"Ctrl-C": KeyboardInterrupt, "close": ClosedError, "append": ()}[how]
    kept: BaseException | None = None
    try:
        with Moments(at, acts[how]):
            CALLS[name](world, 1)
    except expected as error:
        kept = error  # with the frames that it went through, as a notebook keeps the last error
    if how != "close" and name != "close":
        world.log.thread("after").append([step("s0")])
        if name not in ("delete_thread", "prune of the saver"):
            world.put(len(world.truth))
        world.check()
    world.saver.close()
    world.saver.close()
    again = world.opened_again()
    again.check()
    for thread in ("t", "new 1", "copy 1", "imported 1", "forked 1"):
        _check_whole(again.log, thread)
    again.saver.close()
    del kept
    for each in folder.glob(path.name + "*"):
        each.unlink()


def _append_if_open(log: Log) -> None:
    with suppress(ClosedError):
        log.thread("handler").append([step("s0")])


def _check_whole(log: Log, thread_id: str) -> None:
    """Of a step and the writes that were appended with it, both are there or neither; what was copied is whole."""
    steps = {found.step_id for found in log.thread(thread_id).steps()}
    copied = {"copy 1": {"s0"}, "imported 1": {"s0"}, "forked 1": {"s0", "s1"}}.get(thread_id, set())
    if steps and not copied <= steps:
        raise Failure(f"{thread_id!r} holds only {steps}")
    for step_id in steps & {"a", "a1"}:
        if not log.thread(thread_id).writes(step_id):
            raise Failure(f"of an append to {thread_id!r} only the step is there")


def play(name: str, how: str, each: int, sample: int, seed: int) -> int:
    """Interrupt a call at some of its moments; returns at how many.

    Args:
        name: The call.
        how: See `interrupt_at`.
        each: Distance between two moments.
        sample: How many moments to choose of these at random; 0 for all.
        seed: Of the choice.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        moments = range(1, count_moments(name, folder) + 1, each)
        chosen = random.Random(f"{seed} {name} {how}").sample(moments, min(sample or len(moments), len(moments)))
        for at in sorted(chosen):
            faulthandler.dump_traceback_later(_PATIENCE_SECONDS, exit=True)
            try:
                interrupt_at(name, at, folder, how)
            except BaseException as error:
                error.add_note(f"{name!r} was interrupted at moment {at}: {how}")
                raise
        faulthandler.cancel_dump_traceback_later()
    return len(chosen)


def main() -> None:
    """Read the command line, and play."""
    parser = argparse.ArgumentParser(description="Interrupt calls at each moment at which Python handles signals.")
    parser.add_argument("--call", choices=CALLS, help="one call instead of all")
    parser.add_argument("--calls", type=int, default=len(CALLS), help="so many calls, at random")
    parser.add_argument("--how", choices=HOWS, help="one way instead of all")
    parser.add_argument("--each", type=int, default=1, help="pass over moments: 1 plays all, 10 every tenth")
    parser.add_argument("--sample", type=int, default=0, help="so many moments of each call, at random")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9), help="of the choice")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    total = 0
    chosen = random.Random(options.seed).sample(list(CALLS), options.calls)
    for name in [options.call] if options.call else sorted(chosen, key=list(CALLS).index):
        for how in [options.how] if options.how else HOWS:
            played = play(name, how, options.each, options.sample, options.seed)
            print(f"{name}, {how}: {played} moments", flush=True)
            total += played
    print(f"{total} interruptions")


if __name__ == "__main__":
    main()
