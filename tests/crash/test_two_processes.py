"""One process writes, this one reads the same file at the same time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import lmdb
import pytest
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from building import append, step
from crash.kill_writer import processes
from crash.writer import SNAPSHOT_EVERY, config_of, steady_id, steady_values, write_steadily
from stepwell.log import Log
from stepwell_langgraph import StepwellSaver

SERDE = JsonPlusSerializer()
THREAD = "thread"
HEAD = config_of(THREAD, "")
# A read that the machine interrupts keeps what is freed in that moment from being used again at once.
SLACK_BYTES = 4 << 20


@contextmanager
def writing(path: Path, steps: int, prune_every: int = 0, delete_every: int = 0) -> Iterator[Connection]:
    """A process that writes; the pipe on which it tells what it has done."""
    pipe, theirs = processes.Pipe(duplex=False)
    arguments = (str(path), THREAD, steps, prune_every, delete_every, theirs)
    process = processes.Process(target=write_steadily, args=arguments)
    process.start()
    theirs.close()
    try:
        yield pipe
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
        pipe.close()


def latest(pipe: Connection) -> tuple[str, int]:
    """Wait for the writer's next message; the latest one that has come."""
    told: tuple[str, int] = pipe.recv()
    while told[0] != "end" and pipe.poll():
        told = pipe.recv()
    return told


def read_only(path: Path) -> StepwellSaver:
    return StepwellSaver(Log.open(path, read_only=True))


readers = pytest.mark.parametrize("opened", [read_only, StepwellSaver.from_conn_string], ids=["read_only", "normal"])


def number_of(found: CheckpointTuple) -> int:
    """The number of a checkpoint, whose content must be what the writer put under it."""
    number = int(found.checkpoint["id"])
    expected = steady_values(number)
    values = found.checkpoint["channel_values"]
    assert {name: SERDE.dumps_typed(value) for name, value in values.items()} == {
        name: SERDE.dumps_typed(value) for name, value in expected.items()
    }
    assert found.metadata["step"] == number
    for task, channel, value in found.pending_writes or ():
        assert (task, channel, value) == (f"task {number}", "log", number)
    return number


@readers
def test_a_reader_sees_each_step_as_soon_as_it_is_acknowledged(
    opened: Callable[[Path], StepwellSaver], tmp_path: Path
) -> None:
    """Once the writer's call has returned, another process finds the step or the write, whole, and the head."""
    path, steps = tmp_path / "agents.stepwell", 200
    with writing(path, steps) as pipe:
        told = pipe.recv()
        with opened(path) as saver:
            while told[0] != "end":
                kind, number = told
                found = saver.get_tuple(config_of(THREAD, "", steady_id(number)))
                assert found is not None
                assert number_of(found) == number
                if kind == "write":
                    assert len(found.pending_writes or ()) == 1
                head = saver.get_tuple(HEAD)
                assert head is not None
                assert number_of(head) >= number
                told = pipe.recv()
            head = saver.get_tuple(HEAD)
            assert head is not None
            assert number_of(head) == steps
            assert saver.log.audit().breaches == []


@readers
def test_lists_and_histories_agree_with_themselves_during_writing(
    opened: Callable[[Path], StepwellSaver], tmp_path: Path
) -> None:
    """A list is a run of steps without a gap down to the first, and a delta history is complete, at any moment."""
    path, steps = tmp_path / "agents.stepwell", 200
    with writing(path, steps) as pipe:
        told = pipe.recv()
        with opened(path) as saver:
            seen = []
            while told[0] != "end":
                listed = [number_of(each) for each in saver.list(HEAD)]
                assert listed == list(range(listed[0], 0, -1))
                assert listed[0] >= told[1]
                seen.append(listed[0])
                for number in (listed[0], max(1, listed[0] - SNAPSHOT_EVERY), 1):
                    config = config_of(THREAD, "", steady_id(number))
                    history = saver.get_delta_channel_history(config=config, channels=["log"])["log"]
                    seed = history["seed"].value if "seed" in history else []
                    assert seed + [value for _, _, value in history["writes"]] == list(range(1, number))
                    assert ("seed" in history) == (number > SNAPSHOT_EVERY)
                told = latest(pipe)
            assert seen == sorted(seen)
            assert len(set(seen)) > 1


@readers
def test_a_reader_meets_no_error_while_threads_are_rewritten(
    opened: Callable[[Path], StepwellSaver], tmp_path: Path
) -> None:
    """While another process prunes, copies and deletes, every read gives something whole or nothing."""
    path, steps = tmp_path / "agents.stepwell", 200
    with writing(path, steps, prune_every=7, delete_every=21) as pipe:
        told = pipe.recv()
        with opened(path) as saver:
            while told[0] != "end":
                for config in (HEAD, config_of("copy", "")):
                    found = saver.get_tuple(config)
                    if found is not None:
                        number_of(found)
                        saver.get_delta_channel_history(config=config, channels=["log"])
                    listed = [number_of(each) for each in saver.list(config)]
                    assert listed == sorted(set(listed), reverse=True)
                for each in saver.list(None):
                    number_of(each)
                told = latest(pipe)
            assert saver.log.audit().breaches == []


@readers
def test_a_thread_that_is_pruned_is_never_seen_empty(opened: Callable[[Path], StepwellSaver], tmp_path: Path) -> None:
    """Pruning keeps the head, so at every moment another process sees and lists at least that."""
    path, steps = tmp_path / "agents.stepwell", 150
    with writing(path, steps, prune_every=2) as pipe:
        told = pipe.recv()
        with opened(path) as saver:
            while told[0] != "end":
                head = saver.get_tuple(HEAD)
                assert head is not None
                assert number_of(head) >= told[1]
                listed = [number_of(each) for each in saver.list(HEAD)]
                assert listed
                assert listed[0] >= number_of(head)
                told = latest(pipe)


@pytest.mark.parametrize("work", ["reads", "a paused list"])
def test_a_reader_does_not_make_the_file_grow(work: str, tmp_path: Path) -> None:
    """With a reader on it the file is as large as without: a transaction left open would make it 25 MB, not 0.5."""
    sizes = []
    for reading in (False, True):
        path, steps = tmp_path / f"{reading}.stepwell", 300
        with writing(path, steps) as pipe:
            told = pipe.recv()
            with read_only(path) as saver:
                paused = []
                while told[0] != "end":
                    if reading and work == "reads":
                        assert saver.get_tuple(HEAD)
                        assert list(saver.list(HEAD, limit=3))
                    elif reading and told == ("step", 20):
                        paused.append(saver.list(None))
                        assert next(paused[0])
                    told = pipe.recv()
                assert not paused or len(list(paused[0])) >= 19
        sizes.append(os.path.getsize(path))
    alone, with_reader = sizes
    assert with_reader <= alone + SLACK_BYTES


def _die_while_reading(path: str) -> None:
    with lmdb.open(path, subdir=False, readonly=True).begin():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_reader_that_was_killed_does_not_make_the_file_grow(tmp_path: Path) -> None:
    """What a process held that died in the middle of a read is used again: its transaction died with it."""
    path, steps = tmp_path / "agents.stepwell", 300
    with writing(path, steps) as pipe:
        pipe.recv()
        reader = processes.Process(target=_die_while_reading, args=(str(path),))
        reader.start()
        reader.join()
        assert reader.exitcode == -signal.SIGKILL
        reader.close()
        while latest(pipe)[0] != "end":
            pass
    assert os.path.getsize(path) <= SLACK_BYTES


PAUSED: dict[str, Callable[[StepwellSaver], Iterator[object]]] = {
    "list": lambda saver: saver.list(None),
    "list of a thread": lambda saver: saver.list(HEAD),
    "events": lambda saver: saver.log.thread(THREAD).events(),
    "events from the end": lambda saver: saver.log.thread(THREAD).events(reverse=True),
    "steps": lambda saver: saver.log.thread(THREAD).steps(),
    "threads": lambda saver: saver.log.threads(),
    "feed": lambda saver: saver.log.feed(),
}


def test_paused_iterators_during_ten_thousand_commits(tmp_path: Path) -> None:
    """Iterators of every kind that are paused keep no page: after 10,000 commits the file is as large as without."""
    memory = "/dev/shm"
    sizes: dict[bool, int] = {}
    for pausing in (False, True):
        with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
            path = Path(folder) / "agents.stepwell"
            with StepwellSaver.from_conn_string(path) as saver:
                for number in range(1, 301):
                    id_ = steady_id(number)
                    saver.put(HEAD, {**empty_checkpoint(), "id": id_}, {"step": number}, {})
                paused = [begin(saver) for begin in PAUSED.values()] if pausing else []
                for iterator in paused:
                    assert next(iterator)
                for number in range(10_000):
                    saver.log.storage.commit([append(f"other {number % 100}", step(f"s{number}"))])
                sizes[pausing] = os.path.getsize(path)
                for iterator in paused:
                    for _ in iterator:
                        pass
    assert sizes[True] <= sizes[False] * 1.05 + (1 << 16)
