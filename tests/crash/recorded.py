"""What the recorded program does to a log, and what the log must show after each of its operations.

Every operation and every byte follows from the names of the workload and of the owner, so that who judges an
image knows what was promised without having been told.  An owner is one thread of execution with agent
threads of its own; what it does, it does in order.

    python tests/crash/recorded.py NAME FOLDER              runs one, on FOLDER/agents.stepwell
    python tests/crash/recorded.py recovery FOLDER OWNER    goes on with the file of a crash, as an owner of its own
    python tests/crash/recorded.py NAME FOLDER OWNER        the part of one owner, in a process of its own
    python tests/crash/recorded.py NAME FOLDER OWNER HOLD   the same; it begins when it can read a line from standard
                                                            input, and after HOLD operations waits for its end
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence as Several
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias
from unittest.mock import patch

import lmdb
import msgspec

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the tests' packages are not found

from crash.recorder import NOTES
from stepwell import (
    ItemDeleted,
    ItemPut,
    ItemTouched,
    Log,
    Sequence,
    StepCommitted,
    UsageError,
    Write,
    WritesRecorded,
    changes,
    compact,
    parse,
)
from stepwell.bundle import export_thread, import_thread
from stepwell.patch import Ref, payload_of
from stepwell.storage import ItemName
from stepwell.storage.lmdb import LmdbStorage
from stepwell.writer import Ticket

FILE: Final = "agents.stepwell"
LOCK_SUFFIX: Final = "-lock"
OPENED: Final = "opened"
BEGAN: Final = "began"
DONE: Final = "done"
FORKED: Final = "forked"
"""The id that the engine chooses for a step is shown as this."""
SOON: Final = 1000
LATER: Final = 1 << 61  # times at which items expire

Channels: TypeAlias = dict[str, tuple[str, bytes]]


# --- operations, and what they lead to ---


class Step(NamedTuple):
    """A step as it must be read."""

    step_id: str
    parent_id: str | None
    lane: str
    channels: Channels
    writes: tuple[bytes, ...] = ()


class Append(NamedTuple):
    """Append a step, and what its task wrote if anything.

    Attributes:
        alone: Its patches are based on nothing, so that it need not wait for the append before it.
    """

    thread: str
    step: Step
    alone: bool = False


class Record(NamedTuple):
    """Append what a task wrote for a step that is there."""

    thread: str
    step_id: str
    lane: str
    write: bytes


class Prune(NamedTuple):
    """Keep the newest steps; none deletes the thread."""

    thread: str
    keep: int


class Delete(NamedTuple):
    """Remove a thread."""

    thread: str


class Copy(NamedTuple):
    """Copy a thread."""

    thread: str
    target: str


class Label(NamedTuple):
    """Give a thread labels; None takes one away."""

    thread: str
    labels: dict[str, str | int | None]


class Carry(NamedTuple):
    """Write a thread into a bundle beside the log, and put it from there into the log under another name."""

    thread: str
    target: str
    file: str


class ForkInto(NamedTuple):
    """Begin a new thread with all up to the newest step, and a step of its own."""

    thread: str
    step_id: str
    lane: str
    target: str


class Remember(NamedTuple):
    """Put and delete items, in one append."""

    changes: tuple[ItemPut | ItemDeleted, ...]


class Touch(NamedTuple):
    """Keep an item for longer, if it is there."""

    name: ItemName
    expires_at: int


class Sweep(NamedTuple):
    """Delete the owner's items that expire by a time."""

    by: int


class Forget(NamedTuple):
    """Remove the items of a namespace, and all that they were."""

    prefix: tuple[str, ...]


class PruneItems(NamedTuple):
    """Forget all that items were; of deleted ones nothing is left."""


class Seal(NamedTuple):
    """Seal a thread; nothing that can be read changes."""

    thread: str


class SealAll(NamedTuple):
    """Seal all threads, those of others too; nothing that can be read changes."""


class Reopen(NamedTuple):
    """Close the log and open it again."""


class Compact(NamedTuple):
    """Write the log into a new file beside it, which shows what is shown now."""

    file: str


class CompactInPlace(NamedTuple):
    """Close the log, compact its file unless another process has it open, and open it again."""


Operation: TypeAlias = (
    Append
    | Record
    | Prune
    | Delete
    | Copy
    | Label
    | Carry
    | ForkInto
    | Remember
    | Touch
    | Sweep
    | Forget
    | PruneItems
    | Seal
    | SealAll
    | Reopen
    | Compact
    | CompactInPlace
)


class Held(NamedTuple):
    """An item as it must be read.

    Attributes:
        versions: What it was and is, oldest first; None where it was deleted.
        expires_at: When what it is now expires.
    """

    versions: tuple[bytes | None, ...]
    expires_at: int | None


class Shown(NamedTuple):
    """What is to be read.

    Attributes:
        threads: By thread, its steps in commit order.
        labels: Of each thread that has some.
        items: All that are there, or were.
    """

    threads: dict[str, list[Step]]
    labels: dict[str, dict[str, str | int]]
    items: dict[ItemName, Held]


def carried_out(shown: Shown, operation: Operation) -> Shown:
    """What is to be read after one more operation."""
    threads = {thread: list(steps) for thread, steps in shown.threads.items()}
    labels, items = dict(shown.labels), dict(shown.items)
    match operation:
        case Append(thread, step):
            threads.setdefault(thread, []).append(step)
        case Record(thread, step_id, lane, write):
            steps = threads[thread]
            at = next(i for i, step in enumerate(steps) if (step.step_id, step.lane) == (step_id, lane))
            steps[at] = steps[at]._replace(writes=tuple(sorted((*steps[at].writes, write), key=_task_of)))
        case Prune(thread, keep) if keep:
            threads[thread] = threads[thread][-keep:]
        case Prune(thread, _) | Delete(thread):
            threads.pop(thread, None)
            labels.pop(thread, None)
        case Copy(thread, target) | Carry(thread, target) | ForkInto(thread, _, _, target):
            threads[target] = list(threads[thread])
            if thread in labels:
                labels[target] = labels[thread]
            if isinstance(operation, ForkInto):
                forked = threads[target][-1]
                threads[target].append(Step(FORKED, forked.step_id, forked.lane, forked.channels))
        case Label(thread, changed):
            merged = {**labels.pop(thread, {}), **changed}
            if left := {name: value for name, value in merged.items() if value is not None}:
                labels[thread] = left
        case Remember(changed_items):
            for change in changed_items:
                _remember(items, change)
        case Touch(name, expires_at) if name in items and items[name].versions[-1] is not None:
            items[name] = items[name]._replace(expires_at=expires_at)
        case Sweep(by):
            for name in list(items):
                _remember(items, ItemDeleted(*name, expired_by=by))
        case Forget(prefix):
            items = {name: held for name, held in items.items() if name[0][: len(prefix)] != prefix}
        case PruneItems():
            items = {name: Held(held[0][-1:], held[1]) for name, held in items.items() if held[0][-1] is not None}
        case Touch() | Seal() | SealAll() | Reopen() | Compact() | CompactInPlace():
            pass
    return Shown(threads, labels, items)


def _remember(items: dict[ItemName, Held], change: ItemPut | ItemDeleted) -> None:
    name = change.namespace, change.key
    versions, expires_at = items.get(name, Held((), None))
    if isinstance(change, ItemPut):
        items[name] = Held((*versions, payload_of(change.value, no_reference)), change.expires_at)
    elif versions and versions[-1] is not None:
        by = change.expired_by
        if by is None or (expires_at is not None and expires_at <= by):
            items[name] = Held((*versions, None), None)


def no_reference(ref: Ref) -> bytes:
    """For values whose content is bytes."""
    raise AssertionError(f"a value with its content as bytes holds a reference: {ref}")


def _task_of(write: bytes) -> str:
    """The task that wrote it: a log gives the writes of a step in the order of their tasks."""
    return write[:8].hex()


# --- workloads ---


@dataclass(frozen=True)
class Workload:
    """One way to use a log.

    Attributes:
        name: Decides every byte.
        operations: How many each owner carries out.
        owners: Threads of execution.
        processes: Whether each owner has a process of its own.
        kinds: What they do, by weight.
        sizes: Of a step's new content, in bytes.
        seal_after_events: As for `Log.open`.
        pause_seconds: Between operations.
        map_bytes: So small the map begins, by process; as it is where nothing is said.
        variants: `twice`: the power goes again while the log is used after the first time.
            `pair`: two owners, each with a process of its own.
            `inherited`: the file is there already, made by a process that was killed at once.
            `oldkernel`: LMDB is made to believe in a kernel whose fdatasync is broken.
            `nosync`, `nometasync`: LMDB is told not to sync, or not to sync its meta page, which loses what was
            acknowledged: a judge that does not find it is none.
    """

    name: str
    operations: int = 30
    owners: int = 1
    processes: bool = False
    kinds: dict[str, int] = field(default_factory=lambda: {"append": 6, "fork": 1, "record": 2})
    sizes: tuple[int, ...] = (40, 300, 1500, 5000)
    seal_after_events: int = 1000
    pause_seconds: float = 0.0
    map_bytes: tuple[int, ...] = ()
    variants: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """What `named` takes."""
        return "+".join((self.name, *sorted(self.variants)))


WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload("append", kinds={"append": 6, "fork": 1, "record": 2, "reopen": 1}),
        Workload("groups", operations=9, owners=6, kinds={"append": 2, "record": 1, "alone": 4}),
        Workload("sealing", operations=36, seal_after_events=8, pause_seconds=0.006),
        Workload("growth", operations=8, sizes=(30_000, 100_000, 250_000)),
        Workload("map-growth", operations=16, sizes=(10_000, 60_000), map_bytes=(1 << 17,)),
        Workload("prune", kinds={"append": 6, "record": 2, "prune": 2, "seal": 1}, sizes=(300, 3000, 20_000)),
        Workload("delete", kinds={"append": 8, "record": 2, "delete": 2, "seal": 1}, sizes=(300, 3000, 20_000)),
        Workload(
            "reuse",
            kinds={"append": 6, "prune": 1, "delete": 2, "seal": 4, "reopen": 1},
            sizes=(3000, 20_000, 60_000),
        ),
        Workload(
            "compaction",
            kinds={"append": 6, "prune": 1, "delete": 2, "seal": 1, "compact": 3, "remember": 2, "label": 1},
            sizes=(300, 3000, 20_000),
        ),
        Workload(
            "in-place",
            operations=24,
            kinds={"append": 6, "prune": 1, "delete": 2, "seal": 1, "compact in place": 3, "remember": 2},
            sizes=(300, 3000, 20_000),
        ),
        Workload(
            "processes",
            operations=14,
            owners=2,
            processes=True,
            kinds={
                "append": 6,
                "record": 2,
                "prune": 1,
                "copy": 1,
                "delete": 1,
                "seal": 2,
                "reopen": 1,
                "remember": 2,
                "label": 1,
            },
            sizes=(300, 3000, 20_000),
            seal_after_events=8,
        ),
        Workload(
            "maps",
            operations=10,
            owners=2,
            processes=True,
            kinds={"append": 8, "prune": 1, "delete": 1, "reopen": 1},
            sizes=(10_000, 60_000),
            map_bytes=(1 << 17, 1 << 18),
        ),
        Workload(
            "recovery",
            operations=10,
            kinds={"append": 6, "record": 1, "seal all": 2, "prune": 1, "delete": 1, "reopen": 1, "remember": 2},
            sizes=(300, 3000, 20_000),
        ),
        Workload("copy", kinds={"append": 6, "record": 2, "copy": 3, "seal": 1, "delete": 1}),
        Workload(
            "items",
            operations=40,
            kinds={"remember": 12, "touch": 3, "sweep": 3, "forget": 2, "append": 1, "seal all": 1, "reopen": 1},
            sizes=(40, 300, 3000, 20_000),
            seal_after_events=4,
        ),
        Workload(
            "past-of-items",
            kinds={"remember": 8, "touch": 1, "sweep": 1, "prune items": 2, "seal all": 1},
            sizes=(300, 3000, 20_000),
            seal_after_events=4,
        ),
        Workload(
            "carrying",
            operations=36,
            kinds={"append": 6, "record": 1, "label": 4, "carry": 3, "fork into": 6, "prune": 1, "delete": 1},
            sizes=(300, 3000, 20_000),
        ),
        Workload(
            "everything",
            operations=12,
            owners=3,
            kinds={
                "append": 6,
                "fork": 1,
                "record": 2,
                "alone": 2,
                "prune": 1,
                "copy": 1,
                "delete": 1,
                "remember": 2,
                "label": 1,
            },
            seal_after_events=8,
            pause_seconds=0.003,
        ),
    )
}


def named(text: str) -> Workload:
    """A workload by its name, with any of its variants behind it, each with a `+`."""
    name, *variants = text.split("+")
    workload = replace(WORKLOADS[name], variants=frozenset(variants))
    return replace(workload, owners=2, processes=True) if "pair" in variants else workload


class Owner:
    """The operations of one owner, and what there is to see after each.

    Attributes:
        operations: In order.
        shown: What its threads show after none of them, after the first, ...
    """

    def __init__(self, workload: Workload, number: int) -> None:
        self._rng = random.Random(f"{workload.name} {number}")
        self._workload = workload
        self._name = f"owner{number}"
        self._made = 0
        self._messages: list[str] = []
        self.operations: list[Operation] = []
        self.shown: list[Shown] = [Shown({}, {}, {})]
        for _ in range(workload.operations):
            operation = self._operation(self.shown[-1])
            self.operations.append(operation)
            self.shown.append(carried_out(self.shown[-1], operation))

    def _operation(self, shown: Shown) -> Operation:
        rng = self._rng
        (kind,) = rng.choices([*self._workload.kinds], [*self._workload.kinds.values()])
        thread = rng.choice([f"{self._name}/first", f"{self._name}/first", f"{self._name}/second"])
        if kind in ("remember", "touch", "sweep", "forget", "prune items"):
            return self._operation_on_items(kind)
        steps = shown.threads.get(thread, [])
        if kind == "fork into" and self._ends_with(thread, steps):
            self._made += 1
            return ForkInto(thread, steps[-1].step_id, steps[-1].lane, f"{self._name}/fork{self._made}")
        if not steps or kind in ("append", "fork into"):
            return Append(thread, self._step(steps, rng.choice(["", "", "", "sub"])))
        if kind == "alone":
            return Append(thread, self._step(steps, ""), alone=True)
        target = rng.choice(steps)
        match kind:
            case "fork":
                return Append(thread, self._step([target], target.lane))
            case "record":
                return Record(thread, target.step_id, target.lane, self._content())
            case "prune":
                return Prune(thread, rng.randint(0, 3))
            case "delete":
                return Delete(thread)
            case "copy":
                self._made += 1
                return Copy(thread, f"{self._name}/copy{self._made}")
            case "label":
                names = rng.sample(["team", "turn", "note"], rng.randint(1, 2))
                return Label(thread, {name: rng.choice([None, "red", "blue", 7, 8]) for name in names})
            case "carry":
                self._made += 1
                return Carry(thread, f"{self._name}/carried{self._made}", f"{self._name}-{self._made}.bundle")
            case "seal":
                return Seal(thread)
            case "seal all":
                return SealAll()
            case "reopen":
                return Reopen()
            case "compact":
                self._made += 1
                return Compact(f"{self._name}-compacted{self._made}.stepwell")
            case "compact in place":
                return CompactInPlace()
        raise AssertionError(kind)

    def _ends_with(self, thread: str, steps: list[Step]) -> bool:
        """Whether the newest event of a thread is its newest step: a fork takes no writes that come after it."""
        last = self.operations[-1] if self.operations else None
        return isinstance(last, Append) and (last.thread, [last.step], last.alone) == (thread, steps[-1:], False)

    def _operation_on_items(self, kind: str) -> Operation:
        rng = self._rng
        names = self.item_names()
        match kind:
            case "remember":
                return Remember(tuple(map(self._change, rng.sample(names, rng.randint(1, 3)))))
            case "touch":
                return Touch(rng.choice(names), LATER + rng.randrange(1 << 40))
            case "sweep":
                return Sweep(SOON + 3)
            case "forget":
                return Forget(rng.choice(names)[0])
            case "prune items":
                return PruneItems()
        raise AssertionError(kind)

    def item_names(self) -> list[ItemName]:
        """All that there ever may be."""
        return [((self._name, part), f"k{number}") for part in ("a", "b") for number in range(4)]

    def _change(self, name: ItemName) -> ItemPut | ItemDeleted:
        rng = self._rng
        if rng.random() < 0.2:
            return ItemDeleted(*name)
        content = self._content()
        expires_at = rng.choice([None, None, SOON + rng.randrange(6), LATER])
        return ItemPut(*name, parse("bytes", content), expires_at, {"first": parse("bytes", content[:4])})

    def _step(self, before: list[Step], lane: str) -> Step:
        rng = self._rng
        self._made += 1
        parent = next((step for step in reversed(before) if step.lane == lane), None)
        # A list that grows by an element or two, a text that changes, and bytes that do not compress.
        self._messages += [f"message {self._made} " + "stone " * rng.randint(1, 40) for _ in range(rng.randint(1, 2))]
        channels = {
            "messages": ("msgpack", msgspec.msgpack.encode(self._messages[-12:])),
            "note": ("text", b"note %d" % self._made),
            "noise": ("bytes", self._content()),
        }
        if parent is not None and rng.random() < 0.3:
            channels["noise"] = parent.channels["noise"]
        may_write = "fork into" not in self._workload.kinds
        writes = (self._content(),) if may_write and rng.random() < 0.3 else ()
        return Step(f"step{self._made}", parent.step_id if parent else None, lane, channels, writes)

    def _content(self) -> bytes:
        return self._rng.randbytes(self._rng.choice(self._workload.sizes))


# --- the program that is recorded ---


class _Program:
    """One process.

    Args:
        workload: What is done.
        folder: Where.
        owners: By whom.
        hold: Begin with a line of standard input, and after so many operations wait for its end; 0: wait for nothing.
    """

    def __init__(self, workload: Workload, folder: Path, owners: Several[int], hold: int = 0) -> None:
        self._workload = workload
        self._path = folder / FILE
        self._owners = owners
        self._hold = hold
        self._notes = os.open(folder / NOTES, os.O_WRONLY | os.O_APPEND)
        self._log = self._open()
        self._note(OPENED)

    def run(self) -> None:
        """All its owners, each in its thread."""
        if len(self._owners) == 1:
            self._run_owner(self._owners[0])
        else:
            threads = [threading.Thread(target=self._run_owner, args=(number,)) for number in self._owners]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self._log.close()

    def _open(self) -> Log:
        storage = LmdbStorage(self._path)
        for size in self._workload.map_bytes[self._owners[0] : self._owners[0] + 1]:
            environment = storage._open_environment()
            with environment._alone():
                environment._resize(size)
        return Log(storage, seal_after_events=self._workload.seal_after_events)

    def _note(self, *words: object) -> None:
        os.write(self._notes, " ".join(map(str, words)).encode() + b"\n")

    def _run_owner(self, number: int) -> None:
        waiting: list[tuple[int, list[Ticket]]] = []
        for position, operation in enumerate(Owner(self._workload, number).operations):
            alone = isinstance(operation, Append) and operation.alone
            if self._hold and position == 0:
                sys.stdin.readline()
            elif self._hold and position == self._hold:
                sys.stdin.read()
            if not alone or len(waiting) == 4:
                self._wait(number, waiting)
            self._note(BEGAN, number, position)
            waiting.append((position, self._begin(number, operation)))
            if not alone:
                self._wait(number, waiting)
                time.sleep(self._workload.pause_seconds)
        self._wait(number, waiting)

    def _wait(self, number: int, waiting: list[tuple[int, list[Ticket]]]) -> None:
        for position, tickets in waiting:
            for ticket in tickets:
                ticket.result()
            self._note(DONE, number, position)
        waiting.clear()

    def _begin(self, number: int, operation: Operation) -> list[Ticket]:
        """Carry out an operation of an owner, or begin to: it is done when the tickets are."""
        log = self._log
        match operation:
            case Append(thread_id, step, alone):
                thread = log.thread(thread_id)
                base = None if alone or step.parent_id is None else thread.state(step.parent_id, lane=step.lane)
                change = changes(step.channels, base.values if base else None)
                base_sequence = base.sequence if base else Sequence(0)
                committed = StepCommitted(step.step_id, step.parent_id, change, changes({}), step.lane, base_sequence)
                recorded = (_record(step.step_id, step.lane, write) for write in step.writes)
                return [thread.begin_append([committed, *recorded])]
            case Record(thread_id, step_id, lane, write):
                return [log.thread(thread_id).begin_append([_record(step_id, lane, write)])]
            case Prune(thread_id, keep):
                thread = log.thread(thread_id)
                thread.prune([step.sequence for step in thread.steps()][:keep])
            case Delete(thread_id):
                log.thread(thread_id).delete()
            case Copy(thread_id, target):
                log.thread(thread_id).copy_to(target)
            case Label(thread_id, labels):
                log.thread(thread_id).label(labels)
            case Carry(thread_id, target, file):
                bundle = self._path.with_name(file)
                export_thread(log.thread(thread_id), bundle)
                import_thread(log, bundle, as_=target)
            case ForkInto(thread_id, step_id, lane, target):
                log.thread(thread_id).fork(step_id, lane=lane, as_=target)
            case Remember(changed):
                return [log.items.submit(changed)]
            case Touch(name, expires_at):
                # Others may forget items meanwhile, and values get other sequences by that.
                while (item := log.items.get(*name)) is not None and item.expires_at != expires_at:
                    log.items.submit([ItemTouched(*name, item.sequence, expires_at)]).result()
            case Sweep(by):
                names = [name for name in log.items.expired(by) if name[0][0] == f"owner{number}"]
                return [log.items.submit([ItemDeleted(*name, expired_by=by) for name in names])]
            case Forget(prefix):
                log.items.forget(prefix)
            case PruneItems():
                log.items.prune(log.storage.newest())
            case Seal(thread_id):
                log.seal(thread_id)
            case SealAll():
                log.seal()
            case Reopen():
                log.close()
                self._log = self._open()
            case Compact(file):
                log.compact(self._path.with_name(file))
            case CompactInPlace():
                log.close()
                # Where another process may have it open, being refused is part of the work.
                with suppress(*([UsageError] if self._workload.processes else [])):
                    compact(self._path)
                self._log = self._open()
        return []


def _record(step_id: str, lane: str, write: bytes) -> WritesRecorded:
    return WritesRecorded(step_id, _task_of(write), "", (Write(0, "noise", parse("bytes", write)),), lane)


def run(workload: Workload, folder: Path) -> None:
    """Run a workload on the file of a folder that holds an empty file for notes."""
    if not workload.processes:
        run_part(workload, folder, range(workload.owners))
        return
    others = [subprocess.Popen(part(workload, folder, number)) for number in range(1, workload.owners)]
    run_part(workload, folder, [0])
    codes = [other.wait() for other in others]
    assert not any(codes), f"the other processes ended with {codes}"


def part(workload: Workload, folder: Path, owner: int, hold: int = 0) -> list[str]:
    """The command that runs what one owner does."""
    return [sys.executable, __file__, workload.label, str(folder), str(owner), str(hold)]


def run_part(workload: Workload, folder: Path, owners: Several[int], hold: int = 0) -> None:
    """Run what some owners do, in this process."""
    sync, metasync = ("nosync" not in workload.variants, "nometasync" not in workload.variants)
    if "inherited" in workload.variants:
        lmdb.open(str(folder / FILE), subdir=False).close()
    with patch.object(lmdb, "open", partial(lmdb.open, sync=sync, metasync=metasync)):
        _Program(workload, folder, owners, hold).run()


if __name__ == "__main__":
    label, folder, *rest = sys.argv[1:]
    if rest:
        run_part(named(label), Path(folder), [int(rest[0])], *map(int, rest[1:]))
    else:
        run(named(label), Path(folder))
