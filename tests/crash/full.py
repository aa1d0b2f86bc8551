"""A log in a place that is really full: a small file system, a limit on files, a small map.

A process of its own fills the place with whatever adds to a log, until nothing fits any more.  Then, in rounds:

    1. Whatever adds is refused with a CapacityError that says the room; what was acknowledged is there, and read.
    2. What makes room (deleting, pruning, sealing) is carried out, out of the reserve.
    3. Appending goes on in what was freed, in the same open log.

In the end the log is closed and opened while the place is full, read-only as well, emptied, and given room from outside
where it has an outside.  A process that dies (SIGBUS, SIGXFSZ) fails its test.

    python tests/crash/full.py [--rounds 6] [--place tmpfs] [--seed 1]     (`make full` plays all places)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from building import noise, step, wrote
from conformance.calls import checkpoint_of, config_of, new_id, new_version
from stepwell import CapacityError, DiskFullError, ItemPut, Log, MapFullError, Thread, parse
from stepwell.storage.lmdb import room
from stepwell_langgraph import StepwellSaver

MAP_BYTES: Final = 2 << 20
FILE_SYSTEM_BYTES: Final = 3 << 20
JOURNALED_BYTES: Final = 16 << 20
PLACES: Final = ("map", "file size", "tmpfs", "ext4", "tmpfs with neighbours")
THREADS: Final = 6
MEMORY: Final = Path("/dev/shm")  # where syncs cost nothing


class UnavailableError(Exception):
    """The machine does not allow such a place; the message says why."""


class Book:
    """What was acknowledged.

    Attributes:
        steps: By thread, the ids of its steps in order.
        items: By key, the value.
    """

    def __init__(self) -> None:
        self.steps: dict[str, list[str]] = {}
        self.items: dict[str, bytes] = {}

    def check(self, log: Log) -> None:
        found = {
            each.thread_id: [s.step_id for s in log.thread(each.thread_id).steps()][::-1] for each in log.threads()
        }
        assert found.keys() == self.steps.keys(), found.keys() ^ self.steps.keys()
        for name, ids in self.steps.items():
            assert found[name] == ids, f"{name}: {found[name][-5:]} instead of {ids[-5:]}"
            state = log.thread(name).state(ids[-1])
            assert state is not None
        assert {item.key: item.value[1] for item in log.items.scan()} == self.items


class Filler:
    """Adds to a log in every way, and notes what was acknowledged."""

    def __init__(self, log: Log, book: Book, choice: random.Random) -> None:
        self.log = log
        self._saver = StepwellSaver(log)
        self._book = book
        self._choice = choice
        self._count = 0

    def add(self, largest: int) -> int:
        """Add something of up to that size, in one of the ways; returns how much was acknowledged.

        Raises:
            CapacityError: Nothing was.
        """
        size = self._choice.randrange(largest // 4, largest)
        ways: list[Callable[[int], int]] = [
            self._append,
            self._group,
            self._put,
            self._put_writes,
            self._puts,
            self._remember,
        ]
        return self._choice.choice(ways)(size)

    def fill(self, largest: int = 40_000) -> int:
        """Add ever smaller pieces until not even a small one fits; returns how much was added."""
        added = 0
        while largest >= 400:
            try:
                added += self.add(largest)
            except CapacityError as error:
                check_message(error)
                largest //= 2
        return added

    def _name(self, prefix: str) -> tuple[str, str]:
        self._count += 1
        return f"{prefix}{self._choice.randrange(THREADS)}", new_id()

    def _note(self, thread: str, step_id: str) -> None:
        self._book.steps.setdefault(thread, []).append(step_id)

    def _append(self, size: int) -> int:
        thread, step_id = self._name("engine")
        self.log.thread(thread).append([step(step_id, {"x": noise(size)})])
        self._note(thread, step_id)
        return size

    def _group(self, size: int) -> int:
        """Several callers, one of them large: those that fit are not taken along by it."""
        begun = []
        for each in (size // 8, size, size // 8):
            thread, step_id = self._name("engine")
            begun.append(
                (thread, step_id, each, self.log.thread(thread).begin_append([step(step_id, {"x": noise(each)})]))
            )
        added, refused = 0, None
        for thread, step_id, each, ticket in begun:
            try:
                ticket.result()
            except CapacityError as error:
                refused = error
            else:
                self._note(thread, step_id)
                added += each
        if not added and refused is not None:
            raise refused
        return added

    def _remember(self, size: int) -> int:
        """Two items together, under keys that may be there already."""
        new = {f"k{number}": noise(size // 2) for number in self._choice.sample(range(8), 2)}
        self.log.items.submit([ItemPut(("all",), key, parse("n", value)) for key, value in new.items()]).result()
        self._book.items.update(new)
        return size

    def _checkpoint(self, size: int) -> tuple[str, str, tuple[Any, ...]]:
        thread, step_id = self._name("saver")
        version = {"x": new_version()}
        checkpoint = checkpoint_of(step_id, {"x": noise(size)}, version)
        return thread, step_id, (config_of(thread), checkpoint, {"source": "loop", "step": self._count}, version)

    def _put(self, size: int) -> int:
        thread, step_id, arguments = self._checkpoint(size)
        self._saver.put(*arguments)
        self._note(thread, step_id)
        return size

    def _put_writes(self, size: int) -> int:
        thread = next((name for name in self._book.steps if name.startswith("saver")), None)
        if thread is None:
            return 0
        config = config_of(thread, "", self._book.steps[thread][-1])
        self._saver.put_writes(config, [("x", noise(size))], new_id())
        return size

    def _puts(self, size: int) -> int:
        async def both() -> list[Any]:
            return await asyncio.gather(*(self._saver.aput(*each[2]) for each in puts), return_exceptions=True)

        # Of one thread each: of two puts at once into one lane nobody says which comes first.
        puts = [self._checkpoint(each) for each in (size, size // 4)]
        if puts[0][0] == puts[1][0]:
            puts.pop()
        added, refused = 0, None
        for (thread, step_id, _), outcome in zip(puts, asyncio.run(both()), strict=True):
            if isinstance(outcome, CapacityError):
                refused = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                self._note(thread, step_id)
                added += size
        if not added and refused is not None:
            raise refused
        return added


def check_message(error: CapacityError) -> None:
    """An error of capacity names the file, says the room, and what to do."""
    text = str(error)
    assert isinstance(error, MapFullError | DiskFullError), text
    assert "log.stepwell" in text, text
    assert "bytes" in text, text
    assert "prune or delete threads" in text, text


def rounds(path: Path, count: int, seed: int, neighbour: Path | None) -> dict[str, int]:
    """Fill the place and make room again, several times; how much was added in all.

    Args:
        path: The log, which does not exist.
        count: How often.
        seed: Chooses what is added.
        neighbour: A file of somebody else on the same disk, which takes what is free each time.
    """
    choice, book = random.Random(seed), Book()
    if neighbour is not None:
        neighbour.write_bytes(bytes(1 << 20))
    log = Log.open(path)
    filler = Filler(log, book, choice)
    tally = {"first": filler.fill(), "again": 0, "pruned": 0, "not pruned": 0}
    assert tally["first"] > 100_000
    for number in range(count):
        if neighbour is not None:
            take_all(neighbour)
        book.check(log)
        refused(log, log.thread("new"))
        with suppress(CapacityError):
            source = max(book.steps)
            log.thread(source).copy_to("copy")
            book.steps["copy"] = book.steps[source][:]
            log.thread("copy").delete()
            del book.steps["copy"]
        with suppress(CapacityError):
            Log.open(path.with_name("other.log.stepwell")).close()
        make_room(log, book, number, tally)
        book.check(log)
        if choice.random() < 0.3:
            log.storage.give_back()
        again = filler.fill()
        assert again > 100_000 or neighbour is not None, f"round {number}: {again} bytes were added after making room"
        assert again > 0, f"round {number}: nothing could be added after making room"
        tally["again"] += again
        assert log.audit().breaches == []
        if choice.random() < 0.5:
            log.close()
            log = Log.open(path)
            filler = Filler(log, book, choice)
    if neighbour is not None:
        neighbour.unlink()
        assert filler.add(30_000) > 0, "there is room again, and nothing can be added"
    log.close()
    with Log.open(path, read_only=True) as log:
        book.check(log)
    with Log.open(path) as log:
        book.check(log)
        for name in [*book.steps]:
            log.thread(name).delete()
        log.items.forget(("all",))
        log.thread("last").append([step("s0"), wrote("s0")])
        assert log.audit().breaches == []
    return tally


def make_room(log: Log, book: Book, number: int, tally: dict[str, int]) -> None:
    """Delete half of the threads, or prune all of them to their newest step, by the engine or by the saver; and forget
    the items, or what they were."""
    names = sorted(book.steps)
    if number % 2 == 0:
        log.items.forget(("all",))
        book.items.clear()
    else:
        try:
            log.items.prune(log.storage.newest())
        except CapacityError as error:  # what is kept is written anew first
            check_message(error)
    if number % 3 == 0:
        for name in names[: len(names) // 2 + 1]:
            log.thread(name).delete()
            del book.steps[name]
        return
    if number % 3 == 2:
        with suppress(CapacityError):
            log.seal()  # what does not compress takes as much room again for a moment
    for name in names:
        thread = log.thread(name)
        try:
            if number % 3 == 1:
                thread.prune([next(thread.steps()).sequence])
            else:
                StepwellSaver(log).prune([name])
        except CapacityError as error:
            # What is kept is written anew, and may need more pages in a row than there are; deleting does not.
            check_message(error)
            tally["not pruned"] += 1
            thread.delete()
            del book.steps[name]
        else:
            tally["pruned"] += 1
            book.steps[name] = book.steps[name][-1:]


def refused(log: Log, thread: Thread) -> None:
    """What adds more than there can be is refused, and changes nothing."""
    before = {each.thread_id: each.events for each in log.threads()}
    try:
        thread.append([step("s", {"x": noise(JOURNALED_BYTES)})])
    except CapacityError as error:
        check_message(error)
    else:
        raise AssertionError("there was room")
    assert {each.thread_id: each.events for each in log.threads()} == before


def take_all(neighbour: Path) -> None:
    """Let somebody else use all that is free on the disk."""
    with suppress(OSError), neighbour.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def inside(place: str, path: Path, count: int, seed: int) -> None:
    """In a process of its own, which the place is made for: play, and say what was added, as one line of JSON."""
    if place == "map":
        room.LARGEST_MAP_BYTES = MAP_BYTES  # type: ignore[misc]
    if place == "file size":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (MAP_BYTES, MAP_BYTES))
    neighbour = path.with_name("neighbour") if place.endswith("neighbours") else None
    print(json.dumps(rounds(path, count, seed, neighbour)))


@contextmanager
def mounted(place: str, folder: Path) -> Iterator[Path]:
    """A small file system of a kind, or just a folder, as the place asks for.

    Raises:
        UnavailableError: It cannot be had here.
    """
    if not place.startswith(("tmpfs", "ext4")):
        yield folder
        return
    if not sys.platform.startswith("linux"):
        raise UnavailableError(f"small file systems are made for Linux here, this is {sys.platform}")
    point = folder / "mounted"
    point.mkdir()
    if place == "ext4":
        if shutil.which("mkfs.ext4") is None:
            raise UnavailableError("there is no mkfs.ext4")
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(JOURNALED_BYTES)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image), str(point)]
    else:
        command = ["mount", "-t", "tmpfs", "-o", f"size={FILE_SYSTEM_BYTES}", "none", str(point)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise UnavailableError(f"a file system cannot be mounted: {made.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def run(place: str, folder: Path, *, count: int, seed: int) -> dict[str, int]:
    """Play in one place; how many bytes were added at first, and in what was freed.

    Raises:
        UnavailableError: The machine does not allow it.
    """
    with mounted(place, folder) as point:
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, __file__, "--inside", str(point / "log.stepwell"), "--place", place]
        command += ["--rounds", str(count), "--seed", str(seed)]
        played = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert played.returncode == 0, f"{place}, seed {seed}, exit {played.returncode}:\n{played.stderr[-6000:]}"
        assert "Traceback" not in played.stderr, played.stderr
        tally: dict[str, int] = json.loads(played.stdout.splitlines()[-1])
        return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--place", choices=PLACES, help="one place (default: all)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        inside(arguments.place, arguments.inside, arguments.rounds, arguments.seed)
        return
    print(f"seed {arguments.seed}")
    for place in [arguments.place] if arguments.place else PLACES:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            try:
                tally = run(place, Path(folder), count=arguments.rounds, seed=arguments.seed)
            except UnavailableError as error:
                print(f"{place:22} left out: {error}")
                continue
        print(
            f"{place:22} {tally['first']:>12,} bytes at first, {tally['again']:>12,} in what was freed; "
            f"{tally['pruned']} threads pruned, {tally['not pruned']} could only be deleted"
        )


if __name__ == "__main__":
    main()
