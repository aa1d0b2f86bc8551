"""Sealing: segments and bases change where events lie, and nothing that anybody reads."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from building import (
    FailingStorage,
    all_rows,
    drop_bases,
    get_record,
    get_segment,
    loose,
    noise,
    repack,
    sealing,
    set_record,
    set_segment,
    step,
)
from stepwell import (
    CorruptionError,
    DiskFullError,
    Log,
    StepCommitted,
    Write,
    WritesRecorded,
    changes,
    codec,
    folding,
    parse,
)
from stepwell.reader import Reader
from stepwell.storage import Seal
from stepwell.storage.lmdb import LmdbStorage

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


def test_labels_of_a_thread_with_a_long_tail(memory_log: Log) -> None:
    """Labels alone may come to a thread that is about to be sealed; appending goes on."""
    thread = memory_log.thread("thread")
    thread.append([step(f"s{number}") for number in range(200)])
    thread.label({"customer": "acme"})
    thread.append([step("on")])
    assert memory_log.thread("thread").summary().steps == 201  # type: ignore[union-attr]


def test_few_events_are_read(log: Log) -> None:
    """Reading a state of a sealed thread folds few events, however long the history is."""
    write(log, "one", 400)
    log.seal()
    row = log.thread("one").row()
    assert row is not None
    for each in list(log.thread("one").steps())[::37]:
        found = log.storage.branches(row.number, [each.sequence], frozenset())
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
        kept = log.storage.bases(row.number)
        assert kept
        assert drop_bases(log.storage) == len(kept)
        assert log.storage.bases(row.number) == {}
        log.reader = Reader(log.storage)
        assert everything(log) == before
        assert log.audit().breaches == []
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
    late = Seal("one", row.number, 1, row.last, b"not looked at")
    assert log.submit(late).result().number == 0
    assert log.submit(late._replace(thread_id="nobody")).result().number == 0
    assert log.submit(late._replace(number=row.number + 1)).result().number == 0
    assert everything(log) == before


def test_damage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment, with the states in it, with any byte changed is an error that names it, never another state."""
    monkeypatch.setattr(folding, "FEWEST_FOLDED_STEPS", 5)
    with Log.open(tmp_path / "log.stepwell", **NEVER) as log:
        write(log, "one", 60)
        log.seal()
        row = log.thread("one").row()
        assert row is not None
        [(_, last, _)] = log.storage.segments(row.number)
        rng = random.Random(7)
        assert log.storage.bases(row.number)
        sound = get_segment(log.storage, row.number, last)
        for _ in range(40):
            damaged = bytearray(sound)
            damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
            set_segment(log.storage, row.number, last, bytes(damaged))
            with Log(LmdbStorage(log.path)) as other, pytest.raises(CorruptionError) as caught:
                other.thread("one").state(lane="lane 0")
            assert (caught.value.thread, caught.value.sequence) == (row.number, last)
        set_segment(log.storage, row.number, last, sound)
        assert log.audit().breaches == []


def states_of(log: Log, thread_id: str) -> dict[int, object]:
    """The state after each step, folded by a reader that remembers nothing."""
    row = log.thread(thread_id).row()
    assert row is not None
    steps = [step.sequence for step in log.thread(thread_id).steps()]
    return {sequence: Reader(log.storage).state(row.number, sequence) for sequence in steps}


def test_bases_can_be_rebuilt(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base is what the events fold to: dropped and made anew from them it is the same, and no answer changes."""
    monkeypatch.setattr(folding, "FEWEST_FOLDED_STEPS", 5)
    for turn in range(6):
        write(log, "one", 30, seed=turn, lanes=2)
        log.seal()
    row = log.thread("one").row()
    assert row is not None
    answers, states, kept = everything(log), states_of(log, "one"), log.storage.bases(row.number)
    assert len(kept) > 5
    rows = all_rows(log.storage)
    assert drop_bases(log.storage) == len(kept)
    assert all_rows(log.storage) != rows
    log.reader = Reader(log.storage)
    assert (everything(log), states_of(log, "one")) == (answers, states)
    assert log.audit().breaches == []
    rebuilt = {at: codec.encode_base(Reader(log.storage).state(row.number, at)) for at in kept}
    for at, state in kept.items():
        assert codec.decode_base(row.number, at, rebuilt[at]) == codec.decode_base(row.number, at, state)
    repack(log.storage, row.number, rebuilt)
    log.reader = Reader(log.storage)
    assert log.storage.bases(row.number).keys() == kept.keys()
    assert (everything(log), states_of(log, "one")) == (answers, states)
    assert log.audit().breaches == []
    repack(log.storage, row.number, kept)
    assert all_rows(log.storage) == rows


def test_a_base_in_another_place(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that is kept in another place, of a step or of a thread, is found out and named.

    One of another thread cannot come there but with its segment, which says where it belongs, or by a fault of
    who packed it: that the audit finds.
    """
    monkeypatch.setattr(folding, "FEWEST_FOLDED_STEPS", 5)
    for turn in range(2):
        write(log, "one", 20, seed=turn)
        write(log, "two", 20, seed=turn)
        log.seal()
    (one, other), (foreign, _) = (log.storage.bases(number).items() for number in (1, 2))
    assert foreign[0] == one[0] != other[0]
    assert foreign[1] != one[1]
    for data in (other[1], foreign[1]):
        repack(log.storage, 1, {one[0]: data, other[0]: other[1]})
        assert [breach[:3] for breach in log.audit().breaches] == [("I10", 1, one[0])]
        if data == other[1]:
            with pytest.raises(CorruptionError) as caught:
                Reader(log.storage).state(1, one[0])
            assert (caught.value.thread, caught.value.sequence) == (1, one[0])
    repack(log.storage, 1, dict((one, other)))
    last = log.storage.segments(1)[0][1]
    sound = get_segment(log.storage, 1, last)
    set_segment(log.storage, 1, last, get_segment(log.storage, 2, last))
    with pytest.raises(CorruptionError) as caught:
        Reader(log.storage).state(1, one[0])
    assert (caught.value.thread, caught.value.sequence) == (1, last)
    assert ("I2", 1, last) in [breach[:3] for breach in log.audit().breaches]
    set_segment(log.storage, 1, last, sound)


# --- at the same time ---


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_reading_while_segments_are_swapped_in(path: str) -> None:
    """Who reads in the midst of sealings sees every answer as it is, by this log and by another one on its file."""
    with ExitStack() as stack:
        log = stack.enter_context(Log.open(path, **NEVER))
        write(log, "one", 100, lanes=3)
        logs = [log] if path == ":memory:" else [log, stack.enter_context(Log.open(path, read_only=True))]
        truth, states = everything(log), states_of(log, "one")
        wrong: list[object] = []
        done = threading.Event()

        def read(reading: Log) -> None:
            try:
                while not done.is_set():
                    reading.reader = Reader(reading.storage)
                    if everything(reading) != truth or states_of(reading, "one") != states:
                        wrong.append("another answer")
            except Exception as error:
                wrong.append(error)

        readers = [threading.Thread(target=read, args=(reading,)) for reading in logs * 2]
        for reader in readers:
            reader.start()
        rng = random.Random(5)
        row = log.thread("one").row()
        assert row is not None
        last = 0
        while last < row.last:
            last = min(last + rng.randint(1, 9), row.last)
            steps = [sequence for sequence in states if sequence <= last][-1:]
            bases = {at: codec.encode_base(states[at]) for at in steps}  # type: ignore[arg-type]
            sealed = log.submit(sealing(log.storage, "one", last, bases)).result()
            assert sealed.number == row.number
            time.sleep(0.01)
        done.set()
        for reader in readers:
            reader.join()
        assert wrong == []
        assert log.audit().breaches == []


def test_a_list_goes_on_over_a_sealing(log: Log) -> None:
    """A walk that began before a sealing goes on after it, without a gap and without a repetition."""
    write(log, "one", 700)
    thread = log.thread("one")
    walks: list[Callable[[], Iterator[object]]] = [
        thread.events,
        lambda: thread.events(reverse=True),
        thread.steps,
        lambda: thread.steps(lane="lane 0"),
    ]
    truth = [list(walk()) for walk in walks]
    under_way = [walk() for walk in walks]
    begun = [[next(walk) for _ in range(3)] for walk in under_way]
    assert log.seal() > 1400
    assert [[*start, *walk] for start, walk in zip(begun, under_way, strict=True)] == truth


def test_appending_while_sealing(path: str) -> None:
    """Appends of many threads go on while their thread is sealed again and again; each is there, in its place."""
    with Log.open(path, seal_after_events=4) as log:

        def work(number: int) -> list[int]:
            thread, base, places = log.thread("shared"), 0, []
            for turn in range(40):
                new = {"n": ("text", b"%d %d" % (number, turn)), "same": ("text", b"%d" % number * 200)}
                before = log.thread("shared").state(base) if base else None
                patch = changes(new, before.values if before else None)
                step = StepCommitted(f"{number} {turn}", None, patch, changes({}), f"lane {number}", base)
                base = thread.append([step])
                places.append(base)
            return places

        with ThreadPoolExecutor(4) as pool:
            placed = list(pool.map(work, range(4)))
        for number, places in enumerate(placed):
            for turn, place in enumerate(places):
                state = log.thread("shared").state(place)
                assert state is not None
                assert (state.step_id, state.channels["n"][1]) == (f"{number} {turn}", b"%d %d" % (number, turn))
        assert log.audit().breaches == []
        assert log.storage.segments(1)


def test_a_sealing_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A sealing that cannot be carried out harms nobody: it is told, and tried again when there is more to seal."""
    storage = FailingStorage()
    with Log(storage, seal_after_events=4) as log:
        storage.failure = lambda group: (
            DiskFullError("full") if any(isinstance(operation, Seal) for operation in group) else None
        )
        thread = log.thread("one")
        with caplog.at_level(logging.WARNING, "stepwell"):
            for number in range(8):
                thread.append([step(f"s{number}", {"x": noise()})])
            until(lambda: bool(caplog.records))
        assert 1 <= sum("could not be sealed" in record.message for record in caplog.records) <= 3
        assert log.storage.segments(1) == []
        storage.failure = lambda group: None
        for number in range(8, 16):
            thread.append([step(f"s{number}", {"x": noise()})])
        until(lambda: bool(log.storage.segments(1)))
        assert [each.step_id for each in thread.steps()] == [f"s{number}" for number in reversed(range(16))]
        assert log.audit().breaches == []


def test_want_of_room_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """However often sealing finds no room, one line says so, without a trace, until it has succeeded again."""
    storage = FailingStorage()
    with Log(storage, seal_after_events=4) as log, caplog.at_level(logging.WARNING, "stepwell"):
        storage.failure = lambda group: (
            DiskFullError("full") if any(isinstance(operation, Seal) for operation in group) else None
        )
        for name in ("one", "two", "three"):
            log.thread(name).append([step(f"s{number}") for number in range(4)])
        until(lambda: len(log._folding._failed) == 3)
        assert len(caplog.records) == 1
        storage.failure = lambda group: None
        log.thread("four").append([step(f"s{number}") for number in range(4)])
        until(lambda: bool(log.storage.segments(4)) and not log._folding._has_no_room)
        storage.failure = lambda group: DiskFullError("full") if isinstance(group[0], Seal) else None
        log.thread("five").append([step(f"s{number}") for number in range(4)])
        until(lambda: "five" in log._folding._failed)
        assert log.audit().breaches == []
    assert len(caplog.records) == 2
    assert all("could not be sealed yet" in each.message and each.exc_info is None for each in caplog.records)


def test_damaged_events_stay_loose(log: Log) -> None:
    """A damaged event is not sealed with the rest, as if it were sound; those before it can be."""
    write(log, "one", 20)
    sound = get_record(log.storage, 1, 30)
    set_record(log.storage, 1, 30, sound[:-1])
    with pytest.raises(CorruptionError) as caught:
        log.seal("one")
    assert (caught.value.thread, caught.value.sequence) == (1, 30)
    assert get_record(log.storage, 1, 30) == sound[:-1]
    set_record(log.storage, 1, 30, sound)
    assert log.seal("one") == 42


# --- in several processes ---

ROOT = Path(__file__).parents[2]
PATHS = [str(ROOT / folder) for folder in ("engine", "tests")]

SEALING = """
import sys
path, name, *sys.path[:0] = sys.argv[1:]
from stepwell import Log, StepCommitted, changes
log = Log.open(path, seal_after_events=8, seal_after_bytes=1 << 40)
own, shared, base = log.thread(name), log.thread("shared"), 0
print("ready", flush=True)
sys.stdin.readline()
for index in range(120):
    state = own.state(base) if base else None
    patch = changes({"n": ("text", b"%d" % index), "name": ("text", name.encode() * 99)}, state and state.values)
    base = own.append([StepCommitted(f"{name} {index}", None, patch, changes({}), base=base)])
    whole = changes({"n": ("text", b"%d" % index)})
    place = shared.append([StepCommitted(f"{name} {index}", None, whole, changes({}), name)])
    if index % 10 == 0:
        log.seal("shared")
    print(base, place, flush=True)
log.close()
"""


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs a script."""
    command = [sys.executable, "-c", script, *arguments, *PATHS]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_seal_one_file(tmp_path: Path) -> None:
    """Two processes that append to the same threads and seal them all the time lose nothing, nor does who reads."""
    path = str(tmp_path / "log.stepwell")
    Log.open(path).close()
    children = {name: child(SEALING, path, name) for name in ("a", "b")}
    for process in children.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in children.values():
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    with Log.open(path, read_only=True) as reading:
        while any(process.poll() is None for process in children.values()):
            reading.reader = Reader(reading.storage)
            for name in children:
                state = reading.thread(name).state()
                assert state is None or state.channels["n"][1] == state.step_id.split()[1].encode()
                seen = [int(step.step_id.split()[1]) for step in reading.thread("shared").steps(lane=name)]
                assert seen == list(range(len(seen)))[::-1]
            found = [sequence for sequence, _ in reading.thread("shared").events()]
            assert found == list(range(1, len(found) + 1))
            found = [sequence for sequence, _ in reading.thread("shared").events(reverse=True)]
            assert found == list(range(len(found), 0, -1))
    with Log.open(path) as log:
        for name, process in children.items():
            output, errors = process.communicate()
            assert (process.returncode, errors) == (0, "")
            for index, line in enumerate(output.splitlines()):
                for thread, place in zip((name, "shared"), line.split(), strict=True):
                    state = log.thread(thread).state(int(place))
                    assert state is not None
                    assert (state.step_id, state.channels["n"][1]) == (f"{name} {index}", b"%d" % index)
            assert index == 119
        assert log.audit().breaches == []
        assert len(log.storage.segments(log.thread("shared").row().number)) > 5  # type: ignore[union-attr]


# Each line of the modules that seal is a moment; the process ends at one of them, as if the power went.
STOPPED = """
import os, signal, sys, threading
path, moment, *sys.path[:0] = sys.argv[1:]
from stepwell import Log, folding
from stepwell.storage import commit, ordered, segments
from stepwell.storage.lmdb import elastic, engine, environment, tables
sealing = (folding, commit, ordered, segments, elastic, engine, environment, tables)
files = {module.__file__ for module in sealing}
folding.FEWEST_FOLDED_STEPS = 1
passed = 0
def trace(frame, event, argument):
    if frame.f_code.co_filename not in files:
        return None
    if event == "line":
        global passed
        passed += 1
        if passed == int(moment):
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
log = Log.open(path, seal_after_events=1 << 30, seal_after_bytes=1 << 50)
threading.settrace(trace)
sys.settrace(trace)
log.seal("one")
sys.settrace(None)
print(passed)
"""


def test_killed_between_any_two_steps(tmp_path: Path) -> None:
    """A sealing that is cut off at any moment has happened whole or not at all, and changes no answer."""
    path = tmp_path / "log.stepwell"
    with Log.open(path, **NEVER) as log:
        write(log, "one", 5, lanes=2)
        truth = everything(log)
    whole = path.read_bytes()
    process = child(STOPPED, str(path), "0")
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    moments = int(output)
    assert moments > 500
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    # Chosen evenly, from a beginning that is new each time.
    stride = moments // 16
    seen = set()
    for moment in range(random.Random(seed).randint(1, stride), moments, stride):
        path.write_bytes(whole)
        process = child(STOPPED, str(path), str(moment))
        _, errors = process.communicate()
        # The threads need not pass exactly as many lines in each run.
        assert process.returncode == -signal.SIGKILL or moment > 0.95 * moments, errors
        with Log.open(path, **NEVER) as log:
            assert everything(log) == truth, moment
            assert log.audit().breaches == [], moment
            segments, bases = log.storage.segments(1), log.storage.bases(1)
            assert bool(segments) == bool(bases) == (not loose(log.storage, 1)), moment
            seen.add(bool(segments))
            assert log.seal() == (0 if segments else sum(summary.events for summary in log.threads()))
            assert everything(log) == truth, moment
    assert False in seen


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
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", KILLED, path, *PATHS], stdout=subprocess.PIPE, text=True)
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
