"""Sealing: segments and bases change where events lie, and nothing that anybody reads."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwell import CorruptionError, Log, StepCommitted, Write, WritesRecorded, changes, parse
from stepwell import format as fmt
from stepwell.storage import Seal
from stepwell.storage.segments import pack, unpack
from stepwell.storage.tables import SEGMENTS

NEVER = {"seal_after_events": 1 << 30, "seal_after_bytes": 1 << 50}


@pytest.fixture(params=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the log of a test lies."""
    return ":memory:" if request.param == "memory" else str(tmp_path / "log.stepwell")


@pytest.fixture
def log(path: str) -> Iterator[Log]:
    """A log that seals only when it is told to, and is sound at the end."""
    with Log.open(path, **NEVER) as log:
        yield log
        assert log.audit().breaches == []


def write(log: Log, thread_id: str, steps: int, seed: int = 0, lanes: int = 1) -> None:
    """Append steps with a growing list, forks, writes and several lanes to a thread."""
    rng = random.Random(seed)
    thread = log.thread(thread_id)
    tips: dict[str, list[str]] = {}
    count = len(list(thread.steps()))
    for index in range(count, count + steps):
        lane = f"lane {rng.randrange(lanes)}"
        known = tips.setdefault(lane, [step.step_id for step in thread.steps(lane=lane)][::-1])
        parent = None if not known else known[-1] if rng.random() < 0.9 else rng.choice(known)
        before = None if parent is None else thread.state(parent, lane=lane)
        text = rng.randbytes(rng.randrange(400)).hex().encode()
        new = {"log": ("text", text), "count": ("text", str(index).encode())}
        patch = changes(new, before.values if before else None)
        thread.append(
            [WritesRecorded(parent or "start", f"task {index}", "", (Write(0, "log", parse("text", text)),), lane)]
        )
        base = before.sequence if before else 0
        thread.append([StepCommitted(f"step {index}", parent, patch, changes({}), lane, base)])
        known.append(f"step {index}")


def everything(log: Log) -> object:
    """All that can be read from a log."""
    return {
        summary.thread_id: (
            list(thread.events()),
            list(thread.events(reverse=True)),
            list(thread.events(after=7)),
            [(step, thread.state(step.sequence)) for step in thread.steps()],
            [thread.writes(step.step_id, lane=step.lane) for step in thread.steps()],
            {lane: list(thread.steps(lane=lane)) for lane in ("lane 0", "lane 1", "lane 2")},
        )
        for summary in log.threads()
        for thread in (log.thread(summary.thread_id),)
    }


def test_sealing_changes_no_answer(log: Log) -> None:
    """Whatever is read from a sealed log is what was read before, and after more was appended and sealed."""
    write(log, "one", 90, lanes=3)
    write(log, "two", 5)
    before = everything(log)
    events = sum(summary.events for summary in log.threads())
    assert log.seal() == events
    assert log.seal() == 0
    assert everything(log) == before
    write(log, "one", 40, seed=1, lanes=3)
    before = everything(log)
    assert log.seal("one") > 0
    assert everything(log) == before


def test_reopened(tmp_path: Path) -> None:
    """A sealed log reads the same in a new process's eyes, and goes on."""
    path = str(tmp_path / "log.stepwell")
    with Log.open(path, **NEVER) as log:
        write(log, "one", 60, lanes=2)
        before = everything(log)
        log.seal()
    with Log.open(path, read_only=True) as log:
        assert everything(log) == before
    with Log.open(path) as log:
        write(log, "one", 3, seed=5, lanes=2)
        assert log.audit().breaches == []


def test_background(path: str) -> None:
    """A log seals by itself once a thread has grown, without anybody waiting for it."""
    with Log.open(path, seal_after_events=16, seal_after_bytes=1 << 30) as log:
        write(log, "one", 60, lanes=2)
        before = everything(log)
        segments = log.storage.segments(log.thread("one").row().number)  # type: ignore[union-attr]
        assert segments
        assert all(last - first == 15 for first, last, _ in segments)
        assert everything(log) == before
        assert log.audit().breaches == []


def test_few_events_are_read(log: Log) -> None:
    """Reading a state of a sealed thread folds few events, however long the history is."""
    write(log, "one", 400)
    log.seal()
    row = log.thread("one").row()
    assert row is not None
    for step in list(log.thread("one").steps())[::37]:
        found = log.storage.branches(row.number, [step.sequence], frozenset())
        assert len(found.records) < 300
    head = log.storage.lane(row.number, "lane 0")
    assert head is not None
    assert len(log.storage.branches(row.number, [head[1].head], frozenset()).records) < 10


def test_bases_can_be_dropped(path: str) -> None:
    """Without any base every state is still the same: they only say where to begin."""
    with Log.open(path, **NEVER) as log:
        write(log, "one", 200)
        log.seal()
        before = everything(log)
        row = log.thread("one").row()
        assert row is not None
        bases = log.storage.bases(row.number)
        assert bases
        with log.storage._writing() as tables:  # type: ignore[attr-defined]
            for sequence in bases:
                tables.delete("bases", fmt.event_key(row.number, sequence))
    if path != ":memory:":
        with Log.open(path) as log:
            assert everything(log) == before
            assert log.audit().breaches == []


def test_copy_prune_delete(log: Log) -> None:
    """Sealed threads are copied, pruned and deleted like any other."""
    write(log, "one", 80, lanes=2)
    log.seal()
    write(log, "one", 5, seed=3, lanes=2)
    log.thread("one").copy_to("copy")
    copied = [type(event) for _, event in log.thread("copy").events()]
    assert copied[1:-1] == [type(event) for _, event in log.thread("one").events()][1:]
    states = [
        thread.state(step.sequence) for thread in (log.thread("one"), log.thread("copy")) for step in thread.steps()
    ]
    half = len(states) // 2
    assert [(s.step_id, s.channels) for s in states[:half] if s] == [
        (s.step_id, s.channels) for s in states[half:] if s
    ]
    assert log.audit().breaches == []
    kept = [step.sequence for step in log.thread("copy").steps()][::3]
    shown = {s.step_id: s.channels for s in map(log.thread("copy").state, kept) if s}
    log.thread("copy").prune(kept)
    assert {
        s.step_id: s.channels for step in log.thread("copy").steps() if (s := log.thread("copy").state(step.sequence))
    } == shown
    log.seal()
    assert {
        s.step_id: s.channels for step in log.thread("copy").steps() if (s := log.thread("copy").state(step.sequence))
    } == shown
    log.thread("one").delete()
    assert log.thread("one").state() is None
    write(log, "one", 3)
    assert log.audit().breaches == []


def test_the_slower_of_two(log: Log) -> None:
    """A sealing of events that are sealed already, or gone, changes nothing."""
    write(log, "one", 20)
    row = log.thread("one").row()
    assert row is not None
    log.seal()
    before = everything(log)
    late = Seal("one", row.number, 1, row.last, b"not looked at", {})
    assert log.submit(late).result().number == 0
    assert log.submit(late._replace(thread_id="nobody")).result().number == 0
    assert log.submit(late._replace(number=row.number + 1)).result().number == 0
    assert everything(log) == before


def test_damage_is_found(tmp_path: Path) -> None:
    """A segment or a base with any byte changed is an error that names its thread, never another state."""
    with Log.open(tmp_path / "log.stepwell", **NEVER) as log:
        write(log, "one", 60)
        log.seal()
        row = log.thread("one").row()
        assert row is not None
        [(_, last, _)] = log.storage.segments(row.number)
        rng = random.Random(7)
        sites = [(SEGMENTS, last), *(("bases", sequence) for sequence in log.storage.bases(row.number))]
        for table, sequence in sites:
            key = fmt.event_key(row.number, sequence)
            with log.storage._writing() as tables:  # type: ignore[attr-defined]
                sound = tables.get(table, key)
            for _ in range(20):
                damaged = bytearray(sound)
                damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
                with log.storage._writing() as tables:  # type: ignore[attr-defined]
                    tables.put(table, key, bytes(damaged))
                with Log(type(log.storage)(log.path)) as other, pytest.raises(CorruptionError) as caught:
                    other.thread("one").state(lane="lane 0")
                assert caught.value.thread in (row.number, "one")
            with log.storage._writing() as tables:  # type: ignore[attr-defined]
                tables.put(table, key, sound)
        assert log.audit().breaches == []


def test_pack() -> None:
    """A segment gives back each record as it went in."""
    rng = random.Random(3)
    records = [rng.randbytes(fmt.HEADER_BYTES) + rng.randbytes(rng.randrange(500)) for _ in range(50)]
    segment = unpack(7, 149, pack(7, 100, records))
    assert [segment.record(sequence) for sequence in range(100, 150)] == records
    for place in ((8, 149), (7, 150)):
        with pytest.raises(CorruptionError):
            unpack(*place, pack(7, 100, records))


KILLED = """
import os, sys, threading
sys.path[:0] = sys.argv[2:]
from stepwell import Log, StepCommitted, changes
log = Log.open(sys.argv[1], seal_after_events=8, seal_after_bytes=1 << 40)
thread, base = log.thread("one"), 0
for index in range(10_000):
    patch = changes({"n": ("text", str(index).encode())}, thread.state().values if base else None)
    base = thread.append([StepCommitted(str(index), None, patch, changes({}), base=base)])
    print(index, flush=True)
"""


def test_killed_while_sealing(tmp_path: Path) -> None:
    """A process that seals all the time and is killed at a random moment leaves a sound log behind, every time."""
    path = str(tmp_path / "log.stepwell")
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    rng = random.Random(seed)
    roots = [str(Path(__file__).parents[2] / folder) for folder in ("engine",)]
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", KILLED, path, *roots], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(rng.randrange(30, 120))]
        child.kill()
        rest = child.stdout.read().split("\n")[:-1]
        child.stdout.close()
        child.wait()
        last = max([*acknowledged, *(int(line) for line in rest if line.isdigit())])
        with Log.open(path) as log:
            assert log.audit().breaches == []
            head = log.thread("one").state(str(last))
            assert head is not None
            assert head.channels["n"] == ("text", str(last).encode())
            log.thread("one").delete()
