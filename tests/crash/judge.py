"""Whether a log that lies on an image of a crashed disk shows what was promised, and goes on.

Each image is opened by a process of its own, forked from one that has loaded everything and opened nothing: an
image that ends its process is seen, and is a failure like any other.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final, NamedTuple

from lmdb import verify as offline

from crash.disk import Choice, Rules
from crash.images import Promise, images
from crash.recorded import (
    FILE,
    FORKED,
    LOCK_SUFFIX,
    Carry,
    Compact,
    CompactInPlace,
    Held,
    Owner,
    Shown,
    Step,
    no_reference,
)
from crash.trace import Event
from stepwell import Item, ItemPut, Log, StepCommitted, StepwellError, changes, compact, parse
from stepwell.bundle import import_thread
from stepwell.patch import payload_of
from stepwell.storage import ItemName, newfile

_DEADLINE_SECONDS: Final = 60
_LOCK_BYTES: Final = 32768

WHOLE: Final = "whole"
REFUSED: Final = "refused"
LOST: Final = "lost"
REPEATED: Final = "repeated"

processes = multiprocessing.get_context("forkserver")


class Verdict(NamedTuple):
    """What became of one image.

    Attributes:
        choice: The image.
        outcome: WHOLE; REFUSED, by an error of ours while nothing was promised; LOST; or REPEATED, if an equal
            image with an equal promise was judged before.
        reason: What is wrong; of a whole one, how many operations of each owner are there.
    """

    choice: Choice
    outcome: str
    reason: str = ""


class Failure(Exception):
    """An image does not show what it must."""


# --- one image ---


def judge(path: Path, promise: Promise, owners: Sequence[Owner]) -> tuple[str, str]:
    """Open a log as after a crash, and use it.

    Returns:
        WHOLE and how many operations of each owner are there, or REFUSED and why.

    Raises:
        Failure: Something is lost, half there, or does not go on.
    """
    try:
        log = Log.open(path)
    except StepwellError as error:
        if promise.opened:
            raise Failure(f"it cannot be opened: {error}") from error
        return REFUSED, str(error)
    with log:
        there = [_check_owner(log, number, owner, promise) for number, owner in enumerate(owners)]
        shown = [owner.shown[count] for owner, count in zip(owners, there, strict=True)]
        others = {found.thread_id for found in log.threads()}.difference(*(each.threads for each in shown))
        _demand(not others, f"there are threads that nobody opened: {others}")
        strange = {found.namespace for found in log.items.scan()} - {name[0] for each in shown for name in each.items}
        _demand(not strange, f"there are items that nobody put: {strange}")
        _check_audit(log)
        for thread_id in ("after the crash", *sorted(shown[0].threads)[:1]):
            _check_going_on(log, thread_id)
        for number, owner in enumerate(owners):
            _check_copies(log, path, number, owner, promise.done[number])
            _check_bundles(path, owner, promise.done[number])
    _check_pages(path)
    if any(isinstance(operation, CompactInPlace) for owner in owners for operation in owner.operations):
        _check_compaction(path)
    return WHOLE, " ".join(map(str, there))


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failure(otherwise)


def _check_owner(log: Log, number: int, owner: Owner, promise: Promise) -> int:
    """How many operations are there: all that were acknowledged, and of the rest the first few, each whole."""
    found = _shown(log, f"owner{number}/", owner.item_names())
    done, begun = promise.done[number], promise.begun[number]
    allowed = owner.shown[done : max(done, begun) + 1]
    if found not in allowed:
        raise Failure(f"owner {number}, {done} acknowledged, {begun} begun: {_difference(allowed[0], found)}")
    return done + allowed.index(found)


def _shown(log: Log, prefix: str, names: Sequence[ItemName]) -> Shown:
    """What a log shows of the threads whose ids begin with something, and of some items."""
    threads = list(log.threads(prefix=prefix))
    held = {name: _item(log, name) for name in names}
    return Shown(
        {each.thread_id: _steps_of(log, each.thread_id) for each in threads},
        {each.thread_id: each.labels for each in threads if each.labels},
        {name: item for name, item in held.items() if item.versions},
    )


def _item(log: Log, name: ItemName) -> Held:
    versions = list(log.items.history(*name, attachments=True))[::-1]
    now = log.items.get(*name, attachments=True)
    _demand(
        now == versions[-1] if versions and isinstance(versions[-1], Item) else now is None,
        f"the item {name} is {now}, its last version {versions[-1:]}",
    )
    for each in versions:
        if isinstance(each, Item):
            _demand(each.attachments["first"][1] == each.value[1][:4], f"{name} has attachments of another value")
    return Held(tuple(each.value[1] if isinstance(each, Item) else None for each in versions), now and now.expires_at)


def _steps_of(log: Log, thread_id: str) -> list[Step]:
    thread = log.thread(thread_id)
    found: list[Step] = []
    for step in thread.steps():
        state = thread.state(step.sequence)
        _demand(state is not None, f"step {step.step_id} of {thread_id} has no state")
        assert state is not None
        values = [each.write.value for each in thread.writes(step.step_id, lane=step.lane)]
        writes = tuple(payload_of(value, no_reference) for value in values)
        step_id = step.step_id if step.step_id.startswith("step") else FORKED
        found.append(Step(step_id, step.parent_id, step.lane, state.channels, writes))
    return found[::-1]


def _difference(expected: Shown, found: Shown) -> str:
    """The first thing that differs, in few words."""
    for thread in sorted(expected.threads.keys() | found.threads.keys()):
        wanted, there = expected.threads.get(thread), found.threads.get(thread)
        if wanted is None or there is None:
            return f"thread {thread} is {'there' if wanted is None else 'not there'}"
        if wanted != there:
            names = [[step.step_id for step in steps] for steps in (wanted, there)]
            return f"thread {thread} should show the steps {names[0]} and shows {names[1]}, or their content differs"
    if expected.labels != found.labels:
        return f"the labels should be {expected.labels} and are {found.labels}"
    for name in sorted(expected.items.keys() | found.items.keys()):
        one, other = (_in_short(shown.items.get(name, Held((), None))) for shown in (expected, found))
        if one != other:
            return f"the item {name} should be {one} and is {other}"
    return "nothing differs from what was acknowledged"


def _in_short(held: Held) -> str:
    versions = ["deleted" if each is None else f"{each[:4].hex()}.. ({len(each)})" for each in held.versions]
    return f"{versions}, expires {held.expires_at}"


def _check_audit(log: Log) -> None:
    breaches = log.audit().breaches
    _demand(not breaches, f"the audit finds {len(breaches)} breaches: {breaches[:3]}")


def _check_going_on(log: Log, thread_id: str) -> None:
    """One more step can be appended, and read."""
    thread = log.thread(thread_id)
    channels = {"later": ("text", thread_id.encode() * 200)}
    sequence = thread.append([StepCommitted("one more", None, changes(channels), changes({}), "later")])
    state = thread.state(lane="later")
    _demand(state is not None and (state.sequence, state.channels) == (sequence, channels), "what is appended is lost")
    name = ("after the crash",), thread_id
    log.items.submit([ItemPut(*name, parse("text", b"put"))]).result()
    item = log.items.get(*name)
    _demand(item is not None and item.value[1] == b"put", "the item that is put is lost")


def _check_pages(path: Path) -> None:
    problems = offline.verify(str(path), subdir=False)  # type: ignore[no-untyped-call]
    _demand(not problems, f"the pages of {path.name} are not in order: {problems[:3]}")


def _check_copies(log: Log, path: Path, number: int, owner: Owner, done: int) -> None:
    """Each compacted copy shows what its owner's threads showed, or is not there; the next one is there again."""
    missing = None
    for position, operation in enumerate(owner.operations):
        if not isinstance(operation, Compact):
            continue
        target = path.with_name(operation.file)
        if not target.exists():
            _demand(position >= done, f"the copy {target.name} was acknowledged and is not there")
            missing = missing or target
            continue
        with Log.open(target) as copied:
            found = _shown(copied, f"owner{number}/", owner.item_names())
            _demand(found == owner.shown[position], f"the copy {target.name} does not show what the log showed")
            _check_audit(copied)
            _check_going_on(copied, "after the crash")
        _check_pages(target)
    if missing is not None:
        log.compact(missing)
        _demand(missing.exists(), f"the copy {missing.name} cannot be made")
        _demand(not _draft_of(missing).exists(), f"something is left beside {missing.name}")


def _check_bundles(path: Path, owner: Owner, done: int) -> None:
    """Each bundle holds the thread as it was, or is not there."""
    for position, operation in enumerate(owner.operations):
        if not isinstance(operation, Carry):
            continue
        bundle = path.with_name(operation.file)
        if not bundle.exists():
            _demand(position >= done, f"the bundle {bundle.name} was acknowledged and is not there")
            continue
        with Log.open(":memory:") as log:
            import_thread(log, bundle, as_="carried")
            found = _steps_of(log, "carried")
        _demand(found == owner.shown[position].threads[operation.thread], f"{bundle.name} holds another thread")


def _check_compaction(path: Path) -> None:
    """The file can be compacted, and shows the same afterwards."""
    before = _everything(path)
    compact(path)
    _demand(not _draft_of(path).exists(), f"something is left beside {path.name}")
    _demand(_everything(path) == before, "compacted, the log shows something else")
    with Log.open(path) as log:
        _check_audit(log)
        _check_going_on(log, "after compaction")
    _check_pages(path)


def _everything(path: Path) -> Shown:
    with Log.open(path) as log:
        names = [(item.namespace, item.key) for item in log.items.scan() if item.attachments]
        return _shown(log, "", names)


def _draft_of(path: Path) -> Path:
    return path.with_name(path.name + newfile.SUFFIX)


# --- many images ---


def judge_all(
    owners: Sequence[Owner],
    promised: Sequence[Promise],
    events: Sequence[Event],
    rules: Rules,
    chosen: Sequence[Choice],
    folder: Path,
) -> list[Verdict]:
    """Judge images in as many processes as there are processors.

    Args:
        owners: Who did what was recorded.
        promised: What is promised at each point.
        events: The trace.
        rules: What is assumed of the disk.
        chosen: The images.
        folder: Takes the files of those that are lost.
    """
    count = max(1, min(len(os.sched_getaffinity(0)), len(chosen)))
    pipes: list[Connection] = []
    workers = []
    # Nothing is synced here for the sake of durability: where there is a file system in memory, it is used.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="stepwell-crash-", dir=memory) as scratch:
        for number in range(count):
            # In the order of points, so that each worker goes through the trace once.
            share = sorted(chosen[number::count])
            pipe, theirs = processes.Pipe(duplex=False)
            arguments = (owners, promised, events, rules, share, Path(scratch) / str(number), folder, theirs)
            worker = processes.Process(target=_work, args=arguments)
            worker.start()
            theirs.close()
            pipes.append(pipe)
            workers.append(worker)
        try:
            verdicts = list(_received(pipes))
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
                worker.close()
    assert len(verdicts) == len(chosen), "a worker ended before its work did"
    return verdicts


def _received(pipes: list[Connection]) -> Iterator[Verdict]:
    open_pipes = list(pipes)
    while open_pipes:
        for pipe in wait(open_pipes):
            assert isinstance(pipe, Connection)
            try:
                yield pipe.recv()
            except EOFError:
                open_pipes.remove(pipe)
                pipe.close()


def _work(
    owners: Sequence[Owner],
    promised: Sequence[Promise],
    events: Sequence[Event],
    rules: Rules,
    chosen: list[Choice],
    scratch: Path,
    folder: Path,
    pipe: Connection,
) -> None:
    judged: set[tuple[bytes, Promise]] = set()
    gc.freeze()  # children share what is not touched
    for choice, files in images(events, rules, chosen):
        promise = promised[choice.point]
        key = _digest(files), promise
        if key in judged:
            pipe.send(Verdict(choice, REPEATED))
            continue
        judged.add(key)
        _lay_out(scratch, files, random.Random(choice.seed))
        outcome, reason = judge_apart(scratch / FILE, promise, owners)
        if outcome == LOST:
            _lay_out(folder / f"image-{'-'.join(map(str, choice))}", files, random.Random(choice.seed))
        pipe.send(Verdict(choice, outcome, reason))


def _digest(files: dict[str, bytes]) -> bytes:
    hashed = hashlib.blake2b(digest_size=16)
    for path, content in sorted(files.items()):
        hashed.update(b"%d %d " % (len(path), len(content)) + path.encode() + content)
    return hashed.digest()


def _lay_out(folder: Path, files: dict[str, bytes], rng: random.Random) -> None:
    """The files of an image, and a lock file: it is written by no call, and may hold anything, or not be there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, content in files.items():
        (folder / os.path.basename(path)).write_bytes(content)
    noise = rng.randbytes(_LOCK_BYTES)
    lock = rng.choice([None, b"", bytes(_LOCK_BYTES), noise, noise[:1000]])
    if lock is not None:
        (folder / (FILE + LOCK_SUFFIX)).write_bytes(lock)


def judge_apart(path: Path, promise: Promise, owners: Sequence[Owner]) -> tuple[str, str]:
    """`judge` in a process that is forked from this one, which must have one thread; LOST and why where it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            gc.disable()
            signal.alarm(_DEADLINE_SECONDS)
            os.close(reading)
            try:
                answer = judge(path, promise, owners)
            except Failure as failure:
                answer = LOST, str(failure)
            except BaseException:
                answer = LOST, traceback.format_exc()[-4000:]
            os.write(writing, "\0".join(answer).encode()[:32768])
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        outcome, _, reason = pipe.read().decode().partition("\0")
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return LOST, f"the process that opened it ended with {name}"
    return outcome, reason
