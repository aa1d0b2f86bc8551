"""Damages the file of a log in every way that a disk, a copy or a careless program can, and asks everything of it.

Every answer is what the intact file says, or an error of the library that tells of damage.  What is judged beside:

    - the interpreter survives: each case runs in a process whose death, or silence, is the case's failure;
    - damage to bytes that nobody uses changes no answer;
    - damage within the values of one thread changes no answer about another;
    - a damaged log can be written to, or refuses, and the threads that were intact stay so.

    python tests/fuzz/damage.py --cases 100000 --seed 1       `make damage`
    python tests/fuzz/damage.py --seed 1 --case 4711          one of them again, in this process
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec
from langgraph.checkpoint.base import empty_checkpoint

from building import step, wrote
from stepwell import CorruptionError, FormatError, ItemDeleted, ItemPut, Log, StepwellError, parse
from stepwell.storage.lmdb.pages import PageError, Pages, Row, Tree, read_meta, read_tree
from stepwell_langgraph import StepwellSaver

PAGE: Final = 4096
UNITS: Final = (1, 512, PAGE)
LONGEST_SECONDS: Final = 60.0  # for one case; what takes longer hangs
LONGEST_LOOK_SECONDS: Final = 5.0  # from one look at them to the next; in what goes beyond, the machine stood still
CASES_BETWEEN_REPORTS: Final = 2000
THREADS: Final = ("sealed", "loose", "copied", "pruned", "agent", "deleted", "nobody")
LANES: Final = ("", "sub")
ITEMS: Final = ((("a",), "k"), (("a",), "k" * 100), (("a", "b"), ""), (("ab",), "rare"), (("ab",), "k\0"))

Damage = Callable[[bytearray, random.Random, "Layout"], None]


# --- the intact file ---


def build(path: Path) -> None:
    """A log with all that a log can hold."""
    rng = random.Random(5)
    with Log.open(path, seal_after_events=1 << 30, seal_after_bytes=1 << 50) as log:
        for name in ("sealed", "loose", "pruned", "deleted"):
            _grow(log, name, rng, 20 if name == "sealed" else 5)
            if name in ("sealed", "pruned"):
                log.seal(name)
                _grow(log, name, rng, 4, first=20)
                log.seal(name)
                _grow(log, name, rng, 2, first=40)
        log.thread("sealed").copy_to("copied")
        steps = list(log.thread("pruned").steps(lane=""))
        log.thread("pruned").prune([steps[0].sequence, steps[2].sequence])
        log.thread("deleted").delete()
        log.seal("pruned")
        saver = StepwellSaver(log)
        config: Any = {"configurable": {"thread_id": "agent", "checkpoint_ns": ""}}
        messages: list[dict[str, str]] = []
        for number in range(8):
            messages.append({"role": "user", "content": rng.randbytes(60).hex()})
            checkpoint = empty_checkpoint()
            checkpoint["id"] = f"1f0e3a5c-7b2d-6c41-8003-{number:012x}"
            checkpoint["ts"] = f"2026-01-0{number + 1}T00:00:00+00:00"
            version = f"{number:032}.0"
            checkpoint["channel_values"] = {"messages": list(messages), "count": number}
            checkpoint["channel_versions"] = {"messages": version, "count": version}
            config = saver.put(config, checkpoint, {"source": "loop", "step": number}, checkpoint["channel_versions"])
            saver.put_writes(config, [("messages", messages[-1]), ("count", number)], task_id=f"task-{number}")
        for name in ("loose", "copied"):
            log.thread(name).append([step("big", {"x": rng.randbytes(9000)}, lane="sub")])
        for name in ("sealed", "loose", "agent"):
            log.thread(name).label({"team": "a", "turn": len(name)})
        _remember(log, rng)
    with Log.open(path) as log:
        assert log.audit().breaches == []


def _remember(log: Log, rng: random.Random) -> None:
    """Items with many versions, sealed and loose, large and small; some are deleted, some expire."""
    for number in range(120):
        value = parse("text", rng.randbytes(rng.choice((20, 20, 1500))))
        key = rng.choice(ITEMS)
        change = ItemPut(*key, value, rng.choice((None, 50)), {"v": parse("f32", bytes(8))})
        log.items.submit([change, ItemDeleted(*rng.choice(ITEMS))] if number % 5 == 0 else [change]).result()
        if number == 90:
            log.seal()


def _grow(log: Log, name: str, rng: random.Random, count: int, first: int = 0) -> None:
    thread = log.thread(name)
    for lane in LANES:
        for number in range(first, first + count):
            before = thread.state(lane=lane)
            new = rng.randbytes(120)
            at = before.step_id if before else "input"
            thread.append([wrote(at, [new, rng.randbytes(70)], task="t", lane=lane)])
            held = {key: payload for key, (_, payload) in before.channels.items()} if before else {}
            listed = msgspec.msgpack.decode(held["m"]) if "m" in held else ["a first message"] * 5
            held |= {
                "x": new,
                "m": msgspec.msgpack.encode([*listed, f"message {number} " * 9 + rng.randbytes(20).hex()]),
            }
            thread.append(
                [
                    step(
                        f"s{number}",
                        held,
                        parent=at,
                        base=before.sequence if before else 0,
                        old=before.values if before else None,
                        lane=lane,
                        fields={"n": b"%d" % number},
                        created_at=1 + number,
                    )
                ]
            )


class Layout(NamedTuple):
    """What stands where in the intact file.

    Attributes:
        trees: Pages of the trees, and the meta pages.
        owners: Of each page that holds values of one thread alone, that thread's number.
        heads: Which of these begin with a page header.
        unused: Pages that no tree holds.
    """

    trees: list[int]
    owners: dict[int, int]
    heads: set[int]
    unused: set[int]


def layout(path: Path) -> Layout:
    """See Layout."""
    trees, owners, heads = {0, 1}, dict[int, int](), set[int]()
    with open(path, "rb") as file:
        metas = [read_meta(file.read(PAGE)) for _ in range(2)]
        newer = max((meta for meta in metas if meta is not None), key=lambda meta: meta.transaction)
        pages = Pages(file.fileno(), newer.page_bytes, newer.last_page)
        met = bytearray(pages.count)

        def walk(tree: Tree, is_of_threads: bool) -> list[Row]:
            rows = [row for leaf in pages.walk(tree, _raise) for row in leaf]
            for row in rows:
                if row.run and is_of_threads:
                    run = range(row.run, row.run + (row.length + 15) // PAGE + 1)
                    owners.update(dict.fromkeys(run, int.from_bytes(row.key[:8])))
                    heads.add(row.run)
            return rows

        walk(newer.free, False)
        for row in walk(newer.tables, False):
            walk(read_tree(row.data), row.key in (b"events", b"segments"))
        met[:] = pages.met
        trees.update(page for page in range(pages.count) if met[page] and page not in owners)
        unused = {page for page in range(2, os.path.getsize(path) // PAGE) if not met[page]}
    return Layout(sorted(trees), owners, heads, unused)


def _raise(error: PageError) -> None:
    raise error


# --- damage ---


def _place(content: bytearray, rng: random.Random, where: Layout, unit: int = 1) -> int:
    """A place in the file, every other time in a page of a tree, and often at the beginning of one."""
    if unit < PAGE and rng.random() < 0.5:
        page = rng.choice(where.trees)
        inside = rng.randrange(160 if rng.random() < 0.5 else PAGE)
        return min(page * PAGE + inside, len(content) - 1) // unit * unit
    if unit == PAGE and rng.random() < 0.5:
        return rng.choice(where.trees) * PAGE
    return rng.randrange(len(content)) // unit * unit


def flip(content: bytearray, rng: random.Random, where: Layout) -> None:
    """Change bits of a byte, or of several in a row."""
    place = _place(content, rng, where)
    for offset in range(rng.choice((1, 1, 1, 2, 8))):
        if place + offset < len(content):
            content[place + offset] ^= 1 << rng.randrange(8)


def field(content: bytearray, rng: random.Random, where: Layout) -> None:
    """Put an odd number where a number stands."""
    size = rng.choice((2, 4, 8))
    place = _place(content, rng, where, 2)
    old = int.from_bytes(content[place : place + size], "little")
    new = rng.choice((0, 1, 2, old + 1, old - 1, old + 2, old ^ 0x10, old * 2, rng.randrange(800), (1 << 8 * size) - 1))
    content[place : place + size] = (new % (1 << 8 * size)).to_bytes(size, "little")


def overwrite(content: bytearray, rng: random.Random, where: Layout) -> None:
    """Write zeros, ones or noise over bytes, sectors or pages."""
    unit = rng.choice(UNITS)
    place = _place(content, rng, where, unit)
    length = max(0, min(unit * rng.choice((1, 1, 2, 5, 20)), len(content) - place))
    content[place : place + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def swap(content: bytearray, rng: random.Random, where: Layout) -> None:
    """Exchange two parts of the file."""
    unit = rng.choice((16, 512, PAGE))
    one, other = (_place(content, rng, where, unit) for _ in range(2))
    first, second = bytes(content[one : one + unit]), bytes(content[other : other + unit])
    if len(first) == len(second) == unit:
        content[one : one + unit], content[other : other + unit] = second, first


def duplicate(content: bytearray, rng: random.Random, where: Layout) -> None:
    """Write a part of the file a second time, over another."""
    unit = rng.choice((8, 512, PAGE))
    one, other = (_place(content, rng, where, unit) for _ in range(2))
    part = bytes(content[one : one + unit])
    content[other : other + len(part)] = part[: len(content) - other]


def insert(content: bytearray, rng: random.Random, where: Layout) -> None:
    """Put bytes in between, so that all that follows moves."""
    unit = rng.choice(UNITS)
    place = _place(content, rng, where, unit)
    length = unit * rng.choice((1, 2, 3))
    content[place:place] = rng.choice((bytes(length), rng.randbytes(length), content[place : place + length]))


def delete(content: bytearray, rng: random.Random, where: Layout) -> None:
    """Take bytes out, so that all that follows moves."""
    unit = rng.choice(UNITS)
    place = _place(content, rng, where, unit)
    del content[place : place + unit * rng.choice((1, 2, 3))]


def cut(content: bytearray, rng: random.Random, where: Layout) -> None:
    """Make the file shorter, or longer."""
    if rng.random() < 0.8:
        unit = rng.choice(UNITS)
        del content[rng.randrange(len(content)) // unit * unit :]
    else:
        content += rng.choice((bytes, rng.randbytes))(rng.randrange(1, 3 * PAGE))


DAMAGES: Final[tuple[tuple[Damage, int], ...]] = (
    (flip, 6),
    (field, 6),
    (overwrite, 4),
    (swap, 2),
    (duplicate, 2),
    (insert, 1),
    (delete, 1),
    (cut, 1),
)


def damaged(sound: bytes, where: Layout, rng: random.Random) -> tuple[bytes, str]:
    """The file after one to three damages, and their names."""
    content = bytearray(sound)
    kinds = rng.choices([kind for kind, _ in DAMAGES], [weight for _, weight in DAMAGES], k=rng.choice((1, 1, 1, 2, 3)))
    for kind in kinds:
        if content:
            kind(content, rng, where)
    # An empty file is a new log.
    return bytes(content) or sound[:1], "+".join(kind.__name__ for kind in kinds)


def changed_places(sound: bytes, content: bytes) -> Iterator[tuple[int, int]]:
    """Of each page that is not as it was: its number, and the first byte in it that differs."""
    for start in range(0, max(len(sound), len(content)), PAGE):
        one, other = sound[start : start + PAGE], content[start : start + PAGE]
        if one != other:
            length = min(len(one), len(other))
            yield start // PAGE, next((at for at in range(length) if one[at] != other[at]), length)


# --- what is asked ---

Question = tuple[str, str, Any]
"""The thread, or none; what is asked, and of what."""


def questions(steps: dict[str, list[int]]) -> list[Question]:
    """Every read, of every thread; states at some sequences."""
    asked: list[Question] = [
        ("", what, None) for what in ("threads", "feed", "namespaces", "expired", "changes", "labelled")
    ]
    asked += [("", "items", at) for at in (None, 240, 300)]
    asked += [("", "item", (at, *name)) for name in ITEMS for at in (None, 220, 260, 310)]
    asked += [("", "history", name) for name in ITEMS]
    for name in THREADS:
        asked += [(name, what, None) for what in ("summary", "events", "backwards", "steps", "list", "tuple")]
        asked += [(name, what, lane) for lane in LANES for what in ("lane steps", "forks", "head")]
        asked += [(name, "at", at) for at in steps.get(name, [])[::5]]
        asked += [
            (name, what, (at, lane)) for lane in LANES for at in ("s3", "s21", "s99") for what in ("id", "writes")
        ]
    return asked


def answer(log: Log, saver: StepwellSaver, question: Question) -> Any:
    """What the log says."""
    name, what, of = question
    thread = log.thread(name)
    config: Any = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
    answers: dict[str, Callable[[], Any]] = {
        "threads": lambda: list(log.threads()),
        "feed": lambda: list(log.feed()),
        "namespaces": lambda: list(log.items.namespaces()),
        "expired": lambda: log.items.expired(60),
        "changes": lambda: list(log.items.changes(0) or ()),
        "items": lambda: list(log.items.scan(at=of, attachments=True)),
        "item": lambda: log.items.get(of[1], of[2], at=of[0]),
        "history": lambda: list(log.items.history(*of)),
        "labelled": lambda: list(log.threads(labels={"turn": 5})),
        "summary": thread.summary,
        "events": lambda: list(thread.events()),
        "backwards": lambda: list(thread.events(reverse=True)),
        "steps": lambda: list(thread.steps()),
        "list": lambda: list(saver.list(config)) if name == "agent" else None,
        "tuple": lambda: saver.get_tuple(config) if name in ("agent", "deleted", "nobody") else None,
        "lane steps": lambda: list(thread.steps(lane=of)),
        "forks": lambda: list(thread.forks(lane=of)),
        "head": lambda: thread.state(lane=of),
        "at": lambda: thread.state(of),
        "id": lambda: thread.state(of[0], lane=of[1]),
        "writes": lambda: thread.writes(of[0], lane=of[1]),
    }
    return answers[what]()


class Intact(NamedTuple):
    """The intact file, and what it says."""

    content: bytes
    where: Layout
    numbers: dict[int, str]
    truth: dict[Question, Any]


def intact() -> Intact:
    """Build the log, and ask it everything."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        build(path)
        with Log.open(path) as log:
            rows = {name: log.thread(name).row() for name in THREADS}
            steps = {name: [found.sequence for found in log.thread(name).steps()] for name in THREADS}
            truth = {question: answer(log, StepwellSaver(log), question) for question in questions(steps)}
            numbers = {row.number: name for name, row in rows.items() if row is not None}
        return Intact(path.read_bytes(), layout(path), numbers, truth)


# --- judging ---


class Verdict(NamedTuple):
    """What became of a case.

    Attributes:
        outcome: In a word.
        fault: What must not be; empty if all is well.
        errors: How many answers were errors.
    """

    outcome: str
    fault: str = ""
    errors: int = 0


def spared(sound: Intact, content: bytes) -> set[str] | None:
    """The threads that a damage cannot have touched; None if it may have touched anything."""
    where, touched = sound.where, set[int]()
    for page, first in changed_places(sound.content, content):
        if page in where.unused or page * PAGE >= len(sound.content):
            continue
        owner = where.owners.get(page)
        if owner is None or (page in where.heads and first < 16) or len(content) < len(sound.content):
            return None
        touched.add(owner)
    return {name for number, name in sound.numbers.items() if number not in touched} | {"nobody", "deleted"}


def judge(sound: Intact, content: bytes, path: Path, rng: random.Random, share: float = 0.15) -> Verdict:
    """Open a damaged file and ask it: what it says must be true, or an error that tells of damage."""
    path.write_bytes(content)
    if rng.random() < 0.5:
        with suppress(FileNotFoundError):
            os.remove(f"{path}-lock")
    untouched = spared(sound, content)
    read_only = rng.random() < 0.3
    errors = 0
    try:
        log = Log.open(path, read_only=read_only)
    except (CorruptionError, FormatError) as error:
        if path.read_bytes() != content:
            return Verdict("refused", "the file was changed although it was refused")
        fault = f"refused, though no page is damaged that the engine follows: {error}" if untouched is not None else ""
        return Verdict("refused", fault)
    except BaseException as error:
        return Verdict("open", "".join(traceback.format_exception(error)))
    try:
        saver = StepwellSaver(log)
        for question, truth in sound.truth.items():
            if rng.random() > share:
                continue
            fault = ask(log, saver, question, truth)
            errors += fault is None
            if fault or (fault is None and untouched is not None and question[0] in untouched):
                return Verdict("read", fault or f"{question}: an error, though its pages are intact")
        if rng.random() < 0.1:
            log.audit()
        if not read_only and rng.random() < 0.3:
            fault = change(log, saver, sound, rng)
            if fault:
                return Verdict("changed", fault)
    except (CorruptionError, FormatError):
        errors += 1
    except BaseException as error:
        return Verdict("used", "".join(traceback.format_exception(error)))
    finally:
        log.close()
    return Verdict("damage was told" if errors else "true", "", errors)


def ask(log: Log, saver: StepwellSaver, question: Question, truth: Any) -> str | None:
    """Empty if the answer is the truth, None if it is an error that tells of damage, and otherwise what is wrong."""
    try:
        found = answer(log, saver, question)
    except (CorruptionError, FormatError):
        return None
    except Exception as error:
        return f"{question}: " + "".join(traceback.format_exception(error))
    return "" if found == truth else f"{question}: {str(found)[:1500]}\nis not\n{str(truth)[:1500]}"


def change(log: Log, saver: StepwellSaver, sound: Intact, rng: random.Random) -> str:
    """Write to a damaged log: that is done or refused, and what other threads say stays true."""
    told = {question for question in sound.truth if ask(log, saver, question, sound.truth[question]) is None}
    changes: list[Callable[[], object]] = [
        lambda: log.thread("new").append([step("s0"), wrote("s0")]),
        lambda: log.items.submit([ItemPut(*name, parse("text", b"new")) for name in ITEMS]).result(),
        lambda: log.items.forget(("ab",)),
        lambda: log.thread("sealed").append([step("s50")]),
        lambda: log.thread("sealed").label({"team": "b"}),
        lambda: log.seal("sealed"),
        lambda: log.thread("sealed").delete(),
        lambda: log.thread("pruned").delete(),
        lambda: log.thread("more").append([step(f"s{number}", {"x": bytes(3000)}) for number in range(9)]),
    ]
    for each in changes:
        with suppress(StepwellError):
            each()
    for question, truth in sound.truth.items():
        if question not in told and question[0] in ("loose", "copied", "agent", "nobody") and rng.random() < 0.3:
            fault = ask(log, saver, question, truth)
            if fault:
                return f"after changes, {fault}"
    return ""


# --- many cases ---


def run_case(sound: Intact, seed: int, case: int, path: Path) -> tuple[str, Verdict]:
    """One case: what was damaged, and what became of it."""
    rng = random.Random(f"{seed} {case}")
    content, kinds = damaged(sound.content, sound.where, rng)
    return kinds, judge(sound, content, path, rng)


def _work(sound: Intact, seed: int, cases: range, pipe: Connection) -> None:
    directory = Path(tempfile.mkdtemp(prefix="stepwell-damage-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        for case in cases:
            pipe.send((case, None, None))
            pipe.send((case, *run_case(sound, seed, case, directory / "log")))
    finally:
        shutil.rmtree(directory)
        pipe.close()


class Tally(NamedTuple):
    """What became of many cases."""

    outcomes: collections.Counter[str]
    faults: list[tuple[int, str, str]]


def run(seed: int, cases: range, workers: int, told: Callable[[str], None] = print) -> Tally:
    """Run cases in processes that may die; each fault is told as soon as it is found."""
    sound = intact()
    context = get_context("fork")
    tally = Tally(collections.Counter(), [])
    running: dict[Connection, tuple[Any, range, int, float]] = {}
    looked, watched = time.monotonic(), 0.0  # time as this process has lived it

    def start(part: range) -> None:
        if part:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(sound, seed, part, theirs))
            process.start()
            theirs.close()
            running[mine] = process, part, part[0], watched

    def note(case: int, kinds: str, fault: str) -> None:
        tally.faults.append((case, kinds, fault))
        told(f"seed {seed}, case {case} ({kinds}): {fault}")

    size = -(-len(cases) // workers)
    for worker in range(workers):
        start(cases[worker * size : (worker + 1) * size])
    while running:
        ready = wait(list(running), timeout=1.0)
        before, looked = looked, time.monotonic()
        watched += min(looked - before, LONGEST_LOOK_SECONDS)
        for pipe in ready:
            assert isinstance(pipe, Connection)
            process, part, *_ = running[pipe]
            try:
                case, kinds, verdict = pipe.recv()
            except EOFError:
                _, _, case, _ = running.pop(pipe)
                process.join()
                if process.exitcode:
                    note(case, "?", f"the interpreter died: exit code {process.exitcode}")
                    tally.outcomes["interpreter crash"] += 1
                    start(range(case + 1, part.stop))
                continue
            running[pipe] = process, part, case, watched
            if verdict is not None:
                tally.outcomes[verdict.outcome] += 1
                if (done := sum(tally.outcomes.values())) % CASES_BETWEEN_REPORTS == 0:
                    told(f"{done:,} cases: {dict(tally.outcomes)}, {len(tally.faults)} faults so far")
                if verdict.fault:
                    note(case, kinds, verdict.fault)
        for process, _, _, since in running.values():
            if watched - since > LONGEST_SECONDS:
                process.kill()
    return tally


def main() -> int:
    """Run cases as the command line says; 1 if any of them is at fault."""
    parser = argparse.ArgumentParser(description="damage the file of a log, and ask it everything")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this one alone, in this process")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    if options.case is not None:
        with tempfile.TemporaryDirectory() as directory:
            kinds, verdict = run_case(intact(), options.seed, options.case, Path(directory) / "log")
        print(kinds, verdict.outcome, verdict.fault)
        return bool(verdict.fault)
    tell = partial(print, flush=True)
    tally = run(options.seed, range(options.first, options.first + options.cases), options.workers, tell)
    print(
        f"{options.cases} cases in {time.monotonic() - began:.0f} s: {dict(tally.outcomes)}, {len(tally.faults)} faults"
    )
    return bool(tally.faults)


if __name__ == "__main__":
    sys.exit(main())
