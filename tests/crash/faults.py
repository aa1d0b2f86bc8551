"""Every call that a full or a failing disk can refuse, in every operation that changes a log.

An operation is done on a copy of a prepared log while one write, sync, change of length, allocation or creation
fails (`faults.c`), alone or with all that follow it.  Then:

    1. The caller has its acknowledgement or a CapacityError that says the file, the room, and what to do.
    2. What the log holds is what it held, and all of what was acknowledged: meanwhile, afterwards, and opened anew.
    3. Once nothing fails any more, the same log can be appended to, without being opened anew.
    4. The audit is clean, and LMDB's pages are in order.

One liberty: where the failing call was the write of the meta page, and the old numbers could not be written back
either, the operation may be there, whole, though it was refused.

    python tests/crash/faults.py [--share 0.05] [--seed 1] [--only put]     (`make full` plays all)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import errno
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from lmdb import verify as offline

from building import noise, step, wrote
from conformance.calls import checkpoint_of, config_of, new_version
from stepwell import CapacityError, Deletion, ItemDeleted, ItemPut, ItemTouched, Log, UsageError, forking, parse
from stepwell.bundle import export_thread, import_thread
from stepwell.events import ItemEvent
from stepwell_langgraph import StepwellSaver

SOURCE: Final = Path(__file__).with_suffix(".c")

BEFORE, AFTER, SHORT = range(3)
CREATE, WRITE, META, LENGTH, SYNC = (1 << bit for bit in range(5))
ALL: Final = CREATE | WRITE | META | LENGTH | SYNC
SEAL_AFTER_EVENTS: Final = 20
FEWEST_CALLS: Final = 3  # in nearly every operation: two writes and a sync
MEMORY: Final = Path("/dev/shm")  # where syncs cost nothing: that they fail is made up anyway

Content = dict[str, Any]
"""By thread: what it shows; and what the items are and were."""
ITEMS: Final = "all items"
BUNDLE: Final = "bundle"
COMPACTED: Final = "compacted"


class Fault(NamedTuple):
    """What fails.

    Attributes:
        code: What the system says.
        how: BEFORE anything was done, AFTER all of it was, or SHORT, with half of the bytes written.
        lasting: All calls from there on fail.
        kinds: Which kinds of calls.
    """

    code: int
    how: int
    lasting: bool
    kinds: int


FAULTS: Final = [
    *(
        Fault(code, BEFORE, lasting, ALL)
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        for lasting in (False, True)
    ),
    *(Fault(errno.ENOSPC, how, lasting, WRITE) for how in (BEFORE, SHORT) for lasting in (False, True)),
    Fault(errno.EFBIG, BEFORE, True, WRITE | LENGTH),
    *(Fault(errno.EIO, AFTER, lasting, kinds) for kinds in (SYNC, META, ALL) for lasting in (False, True)),
    Fault(errno.ENOSPC, BEFORE, True, SYNC),
    Fault(errno.ENOSPC, BEFORE, True, META),
]


# --- operations: each says which threads it changed with an acknowledgement ---


def _tried(thread_ids: set[str], call: Callable[[], object]) -> set[str]:
    try:
        call()
    except CapacityError as error:
        _check_message(error)
        return set()
    return thread_ids


def _check_message(error: CapacityError) -> None:
    text = str(error)
    assert "agents.stepwell" in text, text
    assert "bytes" in text, text
    assert "prune or delete" in text, text


def _append(saver: StepwellSaver) -> set[str]:
    return _tried({"tail"}, lambda: saver.log.thread("tail").append([step("more", {"x": b"1"})]))


def _append_much(saver: StepwellSaver) -> set[str]:
    content = bytes(range(256)) * 400
    return _tried({"large"}, lambda: saver.log.thread("large").append([step("s", {"x": content[7:] + content})]))


def _group(saver: StepwellSaver) -> set[str]:
    # All but the first join one group, while that is committed.
    threads = [f"g{number}" for number in range(4)]
    tickets = [saver.log.thread(name).begin_append([step("s0"), wrote("s0")]) for name in threads]
    done: set[str] = set()
    for name, ticket in zip(threads, tickets, strict=True):
        done |= _tried({name}, ticket.result)
    return done


def _delete(saver: StepwellSaver) -> set[str]:
    return _tried({"sealed"}, saver.log.thread("sealed").delete)


def _copy(saver: StepwellSaver) -> set[str]:
    return _tried({"copy"}, lambda: saver.log.thread("sealed").copy_to("copy"))


def _prune(saver: StepwellSaver) -> set[str]:
    thread = saver.log.thread("sealed")
    return _tried({"sealed"}, lambda: thread.prune([next(thread.steps()).sequence]))


def _seal(saver: StepwellSaver) -> set[str]:
    return _tried(set(), lambda: saver.log.seal("tail"))


def _seal_in_background(saver: StepwellSaver) -> set[str]:
    folding, thread = saver.log._folding, saver.log.thread("tail")
    done: set[str] = set()
    row = thread.row()
    assert row is not None
    missing = SEAL_AFTER_EVENTS - (row.last - max(row.sealed, row.first - 1))
    events = [step(f"b{number}", {"x": b"%d" % number}) for number in range(missing)]
    done = _tried({"tail"}, lambda: thread.append(events))
    limit = time.monotonic() + 10
    while done and not saver.log.storage.segments(row.number) and "tail" not in folding._failed:
        assert time.monotonic() < limit
        time.sleep(0.001)
    with folding.turn:
        return done


def _label(saver: StepwellSaver) -> set[str]:
    return _tried({"tail"}, lambda: saver.log.thread("tail").label({"team": "red", "turn": 1}))


def _fork(saver: StepwellSaver) -> set[str]:
    with patch.object(forking, "new_id", lambda number, now: "forked"):
        return _tried({"sealed"}, lambda: saver.log.thread("sealed").fork("s3"))


def _fork_into_another(saver: StepwellSaver) -> set[str]:
    with patch.object(forking, "new_id", lambda number, now: "forked"):
        return _tried({"branch"}, lambda: saver.log.thread("sealed").fork("s3", as_="branch"))


def _import(saver: StepwellSaver) -> set[str]:
    bundle = Path(saver.log.path).parents[1] / BUNDLE
    return _tried({"imported"}, lambda: import_thread(saver.log, bundle, as_="imported"))


def _compact(saver: StepwellSaver) -> set[str]:
    try:
        saver.log.compact(Path(saver.log.path).with_name(COMPACTED))
    except (CapacityError, UsageError):  # the one where there is no room, the other where no file can be put
        return set()
    return {COMPACTED}


def _change_items(saver: StepwellSaver) -> set[str]:
    items = saver.log.items
    there = items.get(*_NAMES[0])
    assert there is not None
    changes: list[ItemEvent] = [_item(name, b"new" * 500) for name in _NAMES[1:5]]
    changes += [ItemTouched(*_NAMES[0], there.sequence, 1 << 61), ItemDeleted(*_NAMES[5])]
    return _tried({ITEMS}, lambda: items.submit(changes).result())


def _sweep(saver: StepwellSaver) -> set[str]:
    names = saver.log.items.expired(1000)
    return _tried(
        {ITEMS}, lambda: saver.log.items.submit([ItemDeleted(*each, expired_by=1000) for each in names]).result()
    )


def _forget(saver: StepwellSaver) -> set[str]:
    return _tried({ITEMS}, lambda: saver.log.items.forget(("a",)))


def _prune_items(saver: StepwellSaver) -> set[str]:
    return _tried({ITEMS}, lambda: saver.log.items.prune(saver.log.storage.newest()))


def _seal_items(saver: StepwellSaver) -> set[str]:
    return _tried(set(), saver.log.seal)


def _give_back(saver: StepwellSaver) -> set[str]:
    saver.log.storage.give_back()
    return set()


def _close(saver: StepwellSaver) -> set[str]:
    done = _append(saver)
    saver.log.close()
    return done


def _put(saver: StepwellSaver) -> set[str]:
    return _tried({"agent"}, lambda: saver.put(*_next_checkpoint()))


def _put_writes(saver: StepwellSaver) -> set[str]:
    return _tried({"agent"}, lambda: saver.put_writes(_NEXT_TO, [("messages", ["hello"])], "task"))


def _async_puts(saver: StepwellSaver) -> set[str]:
    async def both() -> list[BaseException | object]:
        first = saver.aput_writes(config_of("new", "", _id(0)), [("messages", ["hello"])], "task")
        return await asyncio.gather(saver.aput(*_next_checkpoint()), first, return_exceptions=True)

    done: set[str] = set()
    for name, outcome in zip(("agent", "new"), asyncio.run(both()), strict=True):
        if isinstance(outcome, CapacityError):
            _check_message(outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            done.add(name)
    return done


def _prune_by_saver(saver: StepwellSaver) -> set[str]:
    return _tried({"agent"}, lambda: saver.prune(["agent"]))


def _delete_by_saver(saver: StepwellSaver) -> set[str]:
    return _tried({"agent"}, lambda: saver.delete_thread("agent"))


def _copy_by_saver(saver: StepwellSaver) -> set[str]:
    return _tried({"copy"}, lambda: saver.copy_thread("agent", "copy"))


OPERATIONS: Final[dict[str, Callable[[StepwellSaver], set[str]]]] = {
    "append": _append,
    "append much": _append_much,
    "group": _group,
    "delete": _delete,
    "copy": _copy,
    "prune": _prune,
    "seal": _seal,
    "seal in background": _seal_in_background,
    "label": _label,
    "fork": _fork,
    "fork into another": _fork_into_another,
    "import": _import,
    "compact": _compact,
    "change items": _change_items,
    "sweep items": _sweep,
    "forget items": _forget,
    "prune items": _prune_items,
    "seal all": _seal_items,
    "give back": _give_back,
    "close": _close,
    "put": _put,
    "put_writes": _put_writes,
    "async puts": _async_puts,
    "prune by saver": _prune_by_saver,
    "delete by saver": _delete_by_saver,
    "copy by saver": _copy_by_saver,
}
OPEN: Final = "open"
CREATION: Final = "create"
USE: Final = "use"


# --- the prepared log ---


_NAMES: Final = [((part,), f"k{number}") for part in "ab" for number in range(4)]


def _item(name: tuple[tuple[str, ...], str], value: bytes, expires_at: int | None = None) -> ItemPut:
    return ItemPut(*name, parse("text", value), expires_at, {"beside": parse("text", value[:4])})


def _id(number: int) -> str:
    return f"1f0b0000-0000-6000-8000-{number:012x}"


_NEXT_TO = config_of("agent", "", _id(5))
_VERSION = new_version()


def _next_checkpoint() -> tuple[Any, ...]:
    values = {"messages": [f"message {number}" for number in range(7)]}
    checkpoint = checkpoint_of(_id(6), values, {"messages": _VERSION}, ts="2026-01-01T00:00:00+00:00")
    return _NEXT_TO, checkpoint, {"source": "loop", "step": 6}, {"messages": _VERSION}


def prepare(path: Path) -> None:
    """A log with sealed and loose events, of engine and saver, and with holes among its pages."""
    with Log.open(path, seal_after_events=SEAL_AFTER_EVENTS) as log:
        for number in range(30):
            log.thread("gone").append([step(f"s{number}", {"x": noise(3000)})])
        for number in range(8):
            log.thread("sealed").append([step(f"s{number}", {"x": noise(900)}), wrote(f"s{number}")])
        for number in range(3):
            log.thread("tail").append([step(f"s{number}", {"x": noise(200)})])
        log.seal("sealed")
        log.thread("gone").delete()
        saver = StepwellSaver(log)
        for number in range(6):
            values = {"messages": [f"message {each}" for each in range(number + 1)]}
            version = {"messages": new_version()}
            config = config_of("agent", "", _id(number - 1) if number else None)
            saver.put(config, checkpoint_of(_id(number), values, version), {"source": "loop", "step": number}, version)
        log.thread("sealed").label({"team": "blue"})
        export_thread(log.thread("sealed"), path.with_name(BUNDLE))
        for number in range(12):
            changes = [_item(name, noise(150), 900 if number % 5 == 4 else None) for name in _NAMES[number % 3 :: 3]]
            log.items.submit([*changes, ItemDeleted(*_NAMES[number % 8])]).result()
        log.items.submit([_item(_NAMES[0], noise(3000), 1 << 60)]).result()
        log.storage.give_back()


def used(path: Path) -> Log:
    """The log after a little use, so that it remembers what it will change."""
    log = Log.open(path, seal_after_events=SEAL_AFTER_EVENTS)
    log.thread("tail").append([step("warm", {"x": b"warm"})])
    log.items.submit([_item(_NAMES[1], b"warm")]).result()
    return log


def content(log: Log) -> Content:
    """What the log shows: all steps of each thread, and the newest and oldest with what they hold; no times."""
    versions = {name: list(log.items.history(*name, attachments=True)) for name in _NAMES}
    now = {(item.namespace, item.key): (item.value, item.expires_at) for item in log.items.scan()}
    found: Content = {
        ITEMS: (
            now,
            {
                name: [None if isinstance(each, Deletion) else (each.value, each.attachments) for each in several]
                for name, several in versions.items()
            },
        )
    }
    for summary in log.threads():
        thread = log.thread(summary.thread_id)
        steps = [(each.step_id, each.parent_id, each.lane) for each in thread.steps()]
        states = [thread.state(each[0], lane=each[2]) for each in {*steps[:1], *steps[-1:]}]
        channels = {state.step_id: state.channels for state in states if state is not None}
        waiting = [thread.writes(each[0]) for each in steps[-1:]] + [thread.writes(_id(0)), thread.writes(_id(5))]
        found[summary.thread_id] = (steps, channels, waiting, summary.labels)
    return found


# --- one case ---


class Case(NamedTuple):
    """One operation, and what fails in it."""

    operation: str
    fault: Fault
    number: int


def play(case: Case, prepared: Path, folder: Path, before: Content, after: Content) -> bool:
    """Play one case; whether the fault was met."""
    for name in folder.iterdir():
        name.unlink()
    path = folder / "agents.stepwell"
    if case.operation != CREATION:
        shutil.copy(prepared, path)
    done: set[str] = set()
    faults = ctypes.CDLL(None)
    arm = (case.number, case.fault.lasting, case.fault.code, case.fault.how, case.fault.kinds)
    opened: Log | None = None
    if case.operation in (OPEN, CREATION):
        faults.fault_arm(*arm)
        with contextlib.suppress(CapacityError):
            opened = Log.open(path)
        struck = faults.fault_disarm()
        log = opened or Log.open(path)
    else:
        log = used(path)
        saver = StepwellSaver(log)
        faults.fault_arm(*arm)
        done = OPERATIONS[case.operation](saver)
        meanwhile = None if case.operation == "close" else content(log)
        struck = faults.fault_disarm()
        if case.operation == "close":
            log = Log.open(path)
        elif meanwhile is not None:
            _compare(meanwhile, before, after, done, may_be_more=struck & META)
    compacted = folder / COMPACTED
    assert compacted.exists() or COMPACTED not in done
    if compacted.exists():
        with Log.open(compacted) as copied:
            assert content(copied) == before, "the compacted log shows something else"
    may_be_more = bool(struck & META) and case.fault.lasting
    _compare(content(log), before, after, done, may_be_more=may_be_more)
    log.thread("later").append([step("s0", {"x": noise(5000)})])
    for name in sorted(before.keys() & {"tail", "sealed"}):
        log.thread(name).append([step("later", {"x": noise(50)}), wrote("later")])
    log.items.submit([_item(_NAMES[2], noise(50))]).result()
    assert log.audit().breaches == []
    seen = content(log)
    log.close()
    with Log.open(path) as log:
        assert content(log) == seen
        assert log.audit().breaches == []
    breaches = offline.verify(str(path), subdir=False)
    assert breaches == [], breaches
    return struck != 0


def _compare(found: Content, before: Content, after: Content, done: set[str], *, may_be_more: int) -> None:
    for name in before.keys() | after.keys() | found.keys():
        if name in done:
            assert found.get(name) == after.get(name), f"{name!r} is not what was acknowledged"
        elif not (may_be_more and found.get(name) == after.get(name)):
            assert found.get(name) == before.get(name), f"{name!r} was changed though the operation was refused"


# --- all cases, in a process under the library ---


def _outcome(operation: str, prepared: Path, folder: Path) -> Content:
    """What the log shows after an operation that nothing disturbs."""
    path = folder / "agents.stepwell"
    path.unlink(missing_ok=True)
    if operation != CREATION:
        shutil.copy(prepared, path)
    log = Log.open(path) if operation in (OPEN, CREATION) else used(path)
    if operation in OPERATIONS:
        OPERATIONS[operation](StepwellSaver(log))
    if operation == "close":
        log = Log.open(path)
    with log:
        return content(log)


def work(folder: Path, share: float, seed: int, only: str | None) -> None:
    """Play the cases, and say how many, as one line of JSON."""
    choice = random.Random(seed)
    prepared, place = folder / "prepared", folder / "work"
    place.mkdir()
    prepare(prepared)
    tally: dict[str, int] = {}
    for operation in (OPEN, CREATION, *OPERATIONS):
        if only is not None and operation != only:
            continue
        before = _outcome(operation if operation in (OPEN, CREATION) else USE, prepared, place)
        after = _outcome(operation, prepared, place)
        for fault in FAULTS:
            numbers: Iterable[int] = itertools.count()
            if share < 1:
                numbers = [choice.randrange(FEWEST_CALLS)] if choice.random() < share else []
            for number in numbers:
                case = Case(operation, fault, number)
                try:
                    if not play(case, prepared, place, before, after):
                        break  # the operation makes fewer calls than that
                except BaseException:
                    print(f"{case}", file=sys.stderr)
                    raise
                tally[operation] = tally.get(operation, 0) + 1
    print(json.dumps(tally))


def run(library: Path, folder: Path, *, share: float, seed: int, only: str | None = None) -> dict[str, int]:
    """Play all cases, or in each operation a share of the faults, each in one call; how many were met, by operation.

    Args:
        library: `faults.c`, built.
        folder: Empty; for the logs.
        share: Of the faults; 1 for all, in each call.
        seed: Chooses faults and calls.
        only: The one operation to be played.
    """
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAULT_FOLDER": str(folder / "work"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, __file__, "--work", str(folder), "--share", str(share), "--seed", str(seed)]
    command += ["--only", only] if only else []
    played = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert played.returncode == 0, f"seed {seed}, exit {played.returncode}:\n{played.stderr[-6000:]}"
    tally: dict[str, int] = json.loads(played.stdout.splitlines()[-1])
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the faults, each in one call (default: all, in all)"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--only", choices=[OPEN, CREATION, *OPERATIONS], help="one operation")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.share, arguments.seed, arguments.only)
        return
    from crash.recorder import build

    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        library = build(folder, SOURCE)
        tally = run(library, folder, share=arguments.share, seed=arguments.seed, only=arguments.only)
    for operation, cases in tally.items():
        print(f"{operation:20} {cases:5}")
    print(f"{'all':20} {sum(tally.values()):5}")


if __name__ == "__main__":
    main()
