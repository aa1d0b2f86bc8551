"""Who follows a log is told each commit once, in order, from whatever process, and holds nothing open."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from building import noise, step, wrote
from stepwell import (
    ClosedError,
    ConflictError,
    Event,
    FeedEntry,
    Following,
    ForkedError,
    LaneOpened,
    Log,
    Sequence,
    StepCommitted,
    ThreadDeleted,
    ThreadOpened,
    ThreadPruned,
    UsageError,
    following,
)
from stepwell.storage.lmdb import LmdbStorage

T = TypeVar("T")
PATIENCE_SECONDS = 20.0  # far more than anything here takes

# Appends to threads in turn, without end or so many times; says its first commit.
WRITER = """
import sys
from building import step
from stepwell import Log

path, name, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Log.open(path) as log:
    for number in range(times):
        log.thread(f"{name}-{number % 3}").append([step(f"{name}-{number}")])
        if not number:
            print("begun", flush=True)
"""

# Follows from a commit number on, and prints each commit that it is told.
FOLLOWER = """
import sys
from stepwell import Log

with Log.open(sys.argv[1], read_only=True) as log:
    for entry in log.follow(after=int(sys.argv[2])):
        print(entry.commit, flush=True)
"""


@contextmanager
def program(source: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs a program; killed at the end."""
    command = [sys.executable, "-c", source, *map(str, arguments)]
    # What the tests import, the process finds as well.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[threading.Thread]:
    """A thread that does some work, and is waited for."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def is_waited_for(log: Log) -> bool:
    """Whether somebody waits for the log to change."""
    return bool(log.watch._bells)


def watchers() -> list[threading.Thread]:
    """The threads that watch a log."""
    return [thread for thread in threading.enumerate() if thread.name == "stepwell-watch"]


def ended(follower: Iterator[T]) -> bool:
    """Whether an iterator is exhausted."""
    return next(follower, None) is None


# --- the log ---


def test_what_is_there_and_what_comes(log: Log) -> None:
    """A follower is given what there is, from any place on, then what is appended, each once and in order."""
    for number in range(300):  # more than a page
        log.thread(f"t{number % 7}").append([step(f"s{number}")])
    follower = log.follow()
    assert [next(follower) for _ in range(300)] == list(log.feed())
    log.thread("t0").append([step("a"), step("b")])
    log.thread("new").append([step("c")])
    assert [next(follower), next(follower)] == list(log.feed(after=300))
    assert follower.position == 302
    assert list(log.follow(after=299, timeout_seconds=0)) == list(log.feed(after=299))
    assert list(log.follow(after=1000, timeout_seconds=0)) == []


def test_from_now_on(log: Log) -> None:
    """A follower may begin with what is committed after it was made, also in an empty log."""
    first = log.follow(after=None, timeout_seconds=0)
    log.thread("t").append([step("a")])
    second = log.follow(after=None, timeout_seconds=0)
    log.thread("t").append([step("b")])
    assert [entry.commit for entry in first] == [1, 2]
    assert [entry.commit for entry in second] == [2]


def test_silence(log: Log) -> None:
    """A follower ends when nothing came for as long as it was told to wait, and can be asked again after that."""
    follower = log.follow(timeout_seconds=0.05)
    began = time.monotonic()
    assert ended(follower)
    assert time.monotonic() - began >= 0.05
    log.thread("t").append([step("a")])
    assert [entry.commit for entry in follower] == [1]
    assert ended(follower)
    log.thread("t").append([step("b")])
    assert [entry.commit for entry in follower] == [2]


def test_it_wakes_up(log: Log) -> None:
    """A follower that waits is told of an append of the same log at once."""
    follower = log.follow()
    found: list[FeedEntry] = []
    with in_thread(lambda: found.append(next(follower))):
        until(lambda: is_waited_for(log))
        log.thread("t").append([step("a")])
    assert [(entry.commit, entry.thread_id) for entry in found] == [(1, "t")]
    assert not is_waited_for(log)


def test_another_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another handle or process appends wakes a follower, however often nobody watched for a moment."""
    monkeypatch.setattr(following, "LINGER_SECONDS", 0)
    path = tmp_path / "agents.stepwell"
    with Log.open(path) as log, Log.open(path) as other:
        follower = log.follow(timeout_seconds=PATIENCE_SECONDS)
        for number in range(1, 101):
            other.thread("t").append([step(f"s{number}")])
            assert next(follower).commit == number
            if number % 3:
                time.sleep(0.0005 * (number % 7))


@pytest.mark.parametrize("times", [-1, float("nan"), float("inf")])
def test_wrong_times(memory_log: Log, times: float) -> None:
    """A time to wait is a number from 0 that a machine can count; a place is a number from 0."""
    with pytest.raises(UsageError, match="timeout_seconds"):
        memory_log.follow(timeout_seconds=times)
    with pytest.raises(UsageError, match="commit number"):
        memory_log.follow(after=-1)
    with pytest.raises(UsageError, match="sequence"):
        memory_log.thread("t").follow(after=-1)


def test_many_writers(log: Log) -> None:
    """Several followers of a log that many threads append to are told the same: all of it, in commit order."""
    followers: list[Following[FeedEntry]] = [log.follow() for _ in range(3)]
    seen: list[list[FeedEntry]] = [[] for _ in followers]

    def follow(number: int) -> None:
        for entry in followers[number]:
            seen[number].append(entry)
            if len(seen[number]) == 200:
                return

    def write(name: str) -> None:
        for number in range(50):
            log.thread(f"{name}-{number % 3}").append([step(f"{name}-{number}")])

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(3)]
    threads += [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    expected = list(log.feed())
    assert [entry.commit for entry in expected] == list(range(1, 201))
    assert seen == [expected] * 3


def test_what_goes_between_two_looks(log: Log) -> None:
    """Appends that are pruned or deleted before they are read are left out; that they were is told."""
    for name in ("kept", "pruned", "deleted"):
        log.thread(name).append([step("a")])
        log.thread(name).append([step("b")])
    follower = log.follow(timeout_seconds=0)
    assert next(follower).thread_id == "kept"
    # What is in the page that was read is given still.
    follower = log.follow(after=follower.position, timeout_seconds=0)
    gone = log.thread("deleted").row()
    log.thread("pruned").prune([4])
    log.thread("deleted").delete()
    assert [(entry.commit, entry.thread_id) for entry in follower] == [(2, "kept"), (7, "pruned"), (8, None)]
    assert gone is not None
    assert next(iter(log.feed(after=7))).number == gone.number


def test_nothing_is_open_between(tmp_path: Path) -> None:
    """A follower that pauses keeps no page from being used again: LMDB knows of no reader."""
    with Log.open(tmp_path / "agents.stepwell") as log:
        assert isinstance(log.storage, LmdbStorage)
        environment = log.storage._open_environment().env
        for number in range(10):
            log.thread("t").append([step(f"s{number}")])
        followers = log.follow(), log.thread("t").follow()
        for follower in followers:
            next(follower)
        assert all(line.split()[-1] in ("txnid", "-", "readers)") for line in environment.readers().splitlines())
        waiting = log.thread("other").follow()
        with in_thread(lambda: list(waiting)):
            until(lambda: is_waited_for(log))
            for number in range(100):
                log.thread("u").append([step(f"{number}", {"x": noise(20_000)})])
                log.thread("u").delete()
            assert (tmp_path / "agents.stepwell").stat().st_size < 1 << 19  # a quarter of what was written
            waiting.close()


# --- how it ends ---


def test_closing_the_log(log: Log, tmp_path: Path) -> None:
    """Closing a log ends those who follow it with ClosedError: they cannot know whether they were told everything."""
    closing = Log.open(tmp_path / "other.stepwell")
    errors: list[Exception] = []

    def follow() -> None:
        try:
            next(closing.follow())
        except ClosedError as error:
            errors.append(error)

    with in_thread(follow), in_thread(follow):
        until(lambda: len(closing.watch._bells) == 2)
        closing.close()
    assert len(errors) == 2
    with pytest.raises(ClosedError):
        next(closing.follow())


def test_closing_a_follower(log: Log) -> None:
    """A follower that is closed by another thread ends quietly, while it waits and for good."""
    follower = log.follow()
    found: list[FeedEntry] = []
    with in_thread(lambda: found.extend(follower)):
        until(lambda: is_waited_for(log))
        follower.close()
    log.thread("t").append([step("a")])
    assert ended(follower)
    assert found == []


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_an_interruption(log: Log) -> None:
    """Ctrl-C ends the wait and leaves nothing: the follower goes on with what it would have given."""
    follower = log.follow()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        until(lambda: is_waited_for(log))
        signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), in_thread(interrupt):
        next(follower)
    assert not is_waited_for(log)
    log.thread("t").append([step("a")])
    assert next(follower).commit == 1


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_signal_handler_that_closes(tmp_path: Path) -> None:
    """A signal handler may close the log that the interrupted call follows."""
    log = Log.open(tmp_path / "agents.stepwell")
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        until(lambda: is_waited_for(log))
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: log.close())
    try:
        with pytest.raises(ClosedError), in_thread(interrupt):
            next(log.follow())
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_nobody_watches_for_nobody(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that watches ends soon after the last who waited, and another one begins with the next."""
    monkeypatch.setattr(following, "LINGER_SECONDS", 0.01)
    for name in ("a", "b"):
        follower = log.follow(after=None)
        with in_thread(lambda follower=follower: next(follower)):  # type: ignore[misc]
            until(lambda: is_waited_for(log) and len(watchers()) == 1)
            log.thread(name).append([step(name)])
        until(lambda: not watchers())


def test_a_log_that_is_followed_is_not_dropped(tmp_path: Path) -> None:
    """Who has a follower has the log, if nobody else does."""
    with Log.open(tmp_path / "agents.stepwell") as log:
        log.thread("t").append([step("a")])
    follower = Log.open(tmp_path / "agents.stepwell").follow(timeout_seconds=0)
    assert [entry.commit for entry in follower] == [1]
    events = Log.open(tmp_path / "agents.stepwell").thread("t").follow(timeout_seconds=0)
    assert len(list(events)) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child(tmp_path: Path) -> None:
    """A follower that is carried over a fork is refused as the log is."""
    with Log.open(tmp_path / "agents.stepwell") as log:
        log.thread("t").append([step("a")])
        follower = log.follow(timeout_seconds=0)
        next(follower)
        child = os.fork()
        if not child:
            with suppress(BaseException):
                try:
                    next(follower)
                except ForkedError:
                    os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# --- coroutines ---


async def test_in_a_coroutine(log: Log) -> None:
    """Coroutines follow without holding up their loop, and are told the same as threads."""
    found: list[FeedEntry] = []
    events: list[Event] = []

    async def follow() -> None:
        async for entry in log.follow():
            found.append(entry)
            if len(found) == 20:
                return

    async def follow_thread() -> None:
        async for _, event in log.thread("t").follow():
            events.append(event)
            if len(events) == 22:
                return

    async def append() -> None:
        for number in range(20):
            await log.thread("t").begin_append([step(f"s{number}")])
            await asyncio.sleep(0.001)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(follow(), follow_thread(), append())
    assert found == list(log.feed())
    assert events == [event for _, event in log.thread("t").events()]


async def test_a_cancelled_wait(log: Log) -> None:
    """A wait that is cancelled takes nothing away: the follower gives what comes next."""
    follower = log.follow()
    for number in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(follower)
        assert not is_waited_for(log)
        await log.thread("t").begin_append([step(f"s{number}")])
        assert (await anext(follower)).commit == number + 1


async def test_how_it_ends_in_a_coroutine(log: Log, tmp_path: Path) -> None:
    """Silence and `close` end an `async for`, closing the log raises ClosedError in it."""
    assert [entry async for entry in log.follow(timeout_seconds=0.02)] == []
    follower = log.follow()
    waiting = asyncio.create_task(anext(follower, None))
    await asyncio.to_thread(until, lambda: is_waited_for(log))
    follower.close()
    assert await waiting is None
    closing = Log.open(tmp_path / "other.stepwell")
    last = asyncio.create_task(anext(closing.follow()))
    await asyncio.to_thread(until, lambda: is_waited_for(closing))
    await asyncio.to_thread(closing.close)
    with pytest.raises(ClosedError):
        await last


# --- another process ---


def test_another_process_appends(tmp_path: Path) -> None:
    """Two processes append, one of them is killed: who follows is told every commit, once and in order."""
    path = tmp_path / "agents.stepwell"
    with Log.open(path) as log:
        follower = log.follow(timeout_seconds=PATIENCE_SECONDS)
        seen: list[FeedEntry] = []
        with program(WRITER, path, "killed", 1_000_000) as killed, program(WRITER, path, "whole", 100) as whole:
            while len(seen) < 150 or whole.poll() is None:
                seen.append(next(follower))
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        seen += list(log.follow(after=seen[-1].commit, timeout_seconds=0))
        assert seen == list(log.feed())
        assert [entry.commit for entry in seen] == list(range(1, len(seen) + 1))
        assert sum(str(entry.thread_id).startswith("whole") for entry in seen) == 100
        assert log.audit().breaches == []


def test_a_killed_follower_is_resumed(tmp_path: Path) -> None:
    """A process that follows is killed again and again, and another goes on after what it told last."""
    path = tmp_path / "agents.stepwell"
    told: list[int] = []
    with Log.open(path) as log:
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                log.thread(f"t{len(told) % 5}").append([step(str(time.perf_counter_ns()))])

        with in_thread(write):
            try:
                for round_ in range(1, 3):
                    with program(FOLLOWER, path, told[-1] if told else 0) as process:
                        assert process.stdout is not None
                        while len(told) < 200 * round_:
                            told.append(int(process.stdout.readline()))
                        process.send_signal(signal.SIGKILL)
                        # What it had told by the time it died; a line that was cut is none.
                        told += [int(line) for line in process.stdout if line.endswith("\n")]
            finally:
                stop.set()
        assert told == list(range(1, len(told) + 1))
        # It was killed while it waited or read: its place among LMDB's readers is cleared, and keeps no pages.
        assert log.audit().breaches == []


# --- a thread ---


def test_a_thread(log: Log) -> None:
    """Who follows a thread is given its events with their content, and nothing of other threads."""
    thread = log.thread("t")
    follower = thread.follow(timeout_seconds=0)
    assert ended(follower)
    content = noise(500)
    thread.append([step("a", {"x": content}), wrote("a", [content])])
    log.thread("u").append([step("b")])
    assert list(follower) == list(thread.events())
    log.seal()
    for number in range(70):  # more than a page
        thread.append([step(f"s{number}", {"x": content})])
    assert list(follower) == list(thread.events(after=4))
    assert follower.position == 74
    assert list(thread.follow(after=70, timeout_seconds=0)) == list(thread.events(after=70))
    assert list(thread.follow(after=None, timeout_seconds=0)) == []


def test_a_thread_that_comes_later(log: Log) -> None:
    """A thread that does not exist yet is waited for."""
    follower = log.thread("t").follow()
    found: list[tuple[Sequence, Event]] = []
    with in_thread(lambda: found.append(next(follower))):
        until(lambda: is_waited_for(log))
        log.thread("other").append([step("a")])
        log.thread("t").append([step("a")])
    assert found[0][0] == 1
    assert found[0][1] == ThreadOpened("t", found[0][1].created_at)


def test_a_thread_is_pruned(log: Log) -> None:
    """Who follows a thread is told that it was pruned, up to where, and then what was kept."""
    thread = log.thread("t")
    thread.append([step("a"), step("b", lane="sub"), step("c")])
    follower = thread.follow(timeout_seconds=0)
    assert next(follower)[0] == 1
    follower = thread.follow(after=3, timeout_seconds=0)  # `b` and `c` were not given yet
    row = thread.row()
    assert row is not None
    thread.prune([row.last])
    (sequence, pruned), *kept = list(follower)
    assert isinstance(pruned, ThreadPruned)
    assert (pruned.through, sequence) == (row.last, row.last + 1)
    assert [type(event) for _, event in kept] == [LaneOpened, StepCommitted]
    thread.append([step("d", lane="other")])
    assert [event.lane for _, event in follower if isinstance(event, StepCommitted)] == ["other"]


def test_a_pruning_in_the_midst(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruning between two of the questions that make a page is noticed: no event gets another's lane or content."""
    thread = log.thread("t")
    thread.append([step("a", lane="gone"), step("b", {"x": noise()}, lane="kept")])
    follower = thread.follow(timeout_seconds=0)
    names = log.storage.lane_names

    def late(number: int, numbers: set[int], since: int) -> dict[int, str]:
        monkeypatch.undo()
        thread.prune([5])  # the lane "kept" gets the number that "gone" had
        return names(number, numbers, since)

    monkeypatch.setattr(log.storage, "lane_names", late)
    found = list(follower)
    assert isinstance(found[0][1], ThreadPruned)
    assert [event.lane for _, event in found if isinstance(event, StepCommitted)] == ["kept"]


def test_a_thread_is_deleted(log: Log) -> None:
    """The deletion is the last that who follows a thread is given, whatever is opened under its id then."""
    thread = log.thread("t")
    thread.append([step("a")])
    follower, late = thread.follow(), thread.follow(after=2)
    assert [next(follower)[0] for _ in range(3)] == [1, 2, 3]
    thread.delete()
    thread.append([step("other")])
    for each in (follower, late):
        ((sequence, event),) = list(each)
        assert sequence == 4
        assert isinstance(event, ThreadDeleted)
        assert ended(each)


def test_a_thread_that_is_not_there_any_more(log: Log) -> None:
    """Going on after a sequence that the thread has not come to is refused: it is another thread."""
    thread = log.thread("t")
    with pytest.raises(ConflictError) as caught:
        thread.follow(after=1)
    assert (caught.value.thread, caught.value.expected, caught.value.actual) == ("t", 1, 0)
    thread.append([step("a")])
    assert ended(thread.follow(after=3, timeout_seconds=0))
    with pytest.raises(ConflictError):
        thread.follow(after=4)
