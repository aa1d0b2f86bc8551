"""Group commit: who is committed with whom, and what each caller is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from itertools import count, pairwise

import pytest

from building import FailingStorage, append, step
from stepwell import ClosedError, ConflictError, DiskFullError, writer
from stepwell.loops import MOST_BEFORE_RINGING, _wake, turn
from stepwell.storage import Append, Committed, Operation, Rewrite, ThreadRow
from stepwell.writer import Ticket, Writer


@pytest.fixture
def storage() -> FailingStorage:
    """A storage whose commits can be held back and made to fail."""
    return FailingStorage()


@pytest.fixture
def pool(storage: FailingStorage) -> Iterator[Writer]:
    """A writer, closed when the test ends."""
    opened = Writer(storage)
    yield opened
    opened.close()


_numbers = count()


def operation(thread: str = "t", *, expected_head: int | None = None) -> Append:
    """An append of one step."""
    return append(thread, step(f"s{next(_numbers)}"), expected_head=expected_head)


class Held:
    """While this lasts, what is submitted gathers in one group."""

    def __init__(self, storage: FailingStorage, opened: Writer) -> None:
        self._storage = storage
        self._writer = opened

    def __enter__(self) -> None:
        self._storage.gate.acquire()
        self._writer.submit(operation("blocker"))
        self._writer._ring()  # here an event loop may not come to the end of its turn
        while self._writer._queue:
            pass

    def __exit__(self, *error: object) -> None:
        self._storage.gate.release()


def fails_with(error: BaseException, *bad: Operation) -> Callable[[Several[Operation]], BaseException | None]:
    """Fails each group that holds one of the bad operations."""
    return lambda group: error if any(each is one for each in group for one in bad) else None


# --- groups ---


def test_order(pool: Writer) -> None:
    """What one caller submits is committed in that order."""
    tickets = [pool.submit(operation()) for _ in range(200)]
    sequences = [ticket.result().sequences[0] for ticket in tickets]
    assert sequences == sorted(sequences)
    commits = [ticket.result().commit for ticket in tickets]
    assert commits == list(range(1, 201))


def test_one_group(storage: FailingStorage, pool: Writer) -> None:
    """What is submitted while a commit runs is committed together after it, in order."""
    with Held(storage, pool):
        tickets = [pool.submit(operation(f"t{number % 3}")) for number in range(30)]
    for ticket in tickets:
        ticket.result()
    assert [len(group) for group in storage.groups] == [1, 30]
    assert storage.groups[1] == [ticket.operation for ticket in tickets]


def test_largest_group(storage: FailingStorage, pool: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is bounded; what is beyond it comes next."""
    monkeypatch.setattr(writer, "_LARGEST_GROUP", 4)
    with Held(storage, pool):
        tickets = [pool.submit(operation()) for _ in range(10)]
    assert [ticket.result().commit for ticket in tickets] == list(range(2, 12))
    assert [len(group) for group in storage.groups] == [1, 4, 4, 2]


def test_a_rewrite_is_alone(storage: FailingStorage, pool: Writer) -> None:
    """What decides on the thread as it is is a group of its own, between those submitted before and after it."""
    seen: list[int] = []

    def decide(row: ThreadRow) -> None:
        seen.append(row.last)

    with Held(storage, pool):
        before = [pool.submit(operation()) for _ in range(2)]
        rewrite = pool.submit(Rewrite("t", decide))
        after = [pool.submit(operation()) for _ in range(2)]
    assert [ticket.result().sequences for ticket in (*before, *after)] == [(3,), (4,), (5,), (6,)]
    assert rewrite.result().number == 0
    assert [len(group) for group in storage.groups] == [1, 2, 1, 2]
    assert seen == [4]


def test_many_threads(storage: FailingStorage, pool: Writer) -> None:
    """Callers in many threads each get their own outcome."""
    found: dict[str, list[int]] = {}

    def work(name: str) -> None:
        found[name] = [pool.submit(operation(name)).result().sequences[0] for _ in range(50)]

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A thread's first two events open it and its lane.
    assert found == {f"t{number}": list(range(3, 53)) for number in range(8)}


# --- errors ---


def test_a_refusal_is_the_callers_alone(storage: FailingStorage, pool: Writer) -> None:
    """An operation that is refused fails; the others of its group are committed with it in one transaction."""
    with Held(storage, pool):
        first, refused, last = (pool.submit(operation(expected_head=head)) for head in (0, 99, 3))
    assert (first.result().sequences, last.result().sequences) == ((3,), (4,))
    with pytest.raises(ConflictError) as caught:
        refused.result()
    assert (caught.value.expected, caught.value.actual) == (99, 3)
    assert len(storage.groups) == 2


def test_a_failure_is_the_callers_alone(storage: FailingStorage, pool: Writer) -> None:
    """If a group fails as a whole, each operation is tried by itself, in order."""
    bad = operation()
    storage.failure = fails_with(DiskFullError("full"), bad)
    with Held(storage, pool):
        tickets = [pool.submit(each) for each in (operation(), bad, operation())]
    assert tickets[0].result().sequences == (3,)
    assert tickets[2].result().sequences == (4,)
    with pytest.raises(DiskFullError):
        tickets[1].result()
    assert [len(group) for group in storage.groups] == [1, 3, 1, 1, 1]


def test_the_writer_goes_on(storage: FailingStorage, pool: Writer) -> None:
    """After a failure of any kind, the next operation is committed."""
    for error in (DiskFullError("full"), ValueError("x"), OSError(5, "I/O error"), RuntimeError(), KeyError("k")):
        bad = operation()
        storage.failure = fails_with(error, bad)
        with pytest.raises(type(error)):
            pool.submit(bad).result()
        pool.submit(operation()).result()


class AwkwardError(Exception):
    """An error that cannot be made of its `args`."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def test_an_awkward_error(storage: FailingStorage, pool: Writer) -> None:
    """An error that cannot be built anew reaches its caller, and ends nothing."""
    bad = operation()
    storage.failure = fails_with(AwkwardError("a", "b"), bad)
    with pytest.raises(AwkwardError):
        pool.submit(bad).result()
    pool.submit(operation()).result()


def test_entries_that_cannot_be_made(storage: FailingStorage, pool: Writer) -> None:
    """An operation whose entries cannot be made fails alone, and nothing of it is in the log."""

    def broken(number: int, first: int) -> list[object]:
        raise RuntimeError("no entries")

    with Held(storage, pool):
        before = pool.submit(operation())
        failed = pool.submit(Append("t", broken))  # type: ignore[arg-type]
        after = pool.submit(operation())
    assert (before.result().sequences, after.result().sequences) == ((3,), (4,))
    with pytest.raises(RuntimeError, match="no entries"):
        failed.result()


class Death(BaseException):
    """Ends a thread."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dying_writer_tells_everybody(storage: FailingStorage) -> None:
    """When the writer's thread ends, all who wait fail, in threads and coroutines, and nobody can join them."""
    dying = Writer(storage)
    storage.failure = lambda group: Death("over")
    with Held(storage, dying):
        tickets = [dying.submit(operation()) for _ in range(3)]
        waiting = asyncio.ensure_future(_outcome(tickets[2]))
        await asyncio.sleep(0)
    for ticket in tickets[:2]:
        with pytest.raises(Death):
            await asyncio.to_thread(ticket.result)
    assert isinstance(await waiting, Death)
    with pytest.raises(ClosedError):
        dying.submit(operation())
    dying.close()


# --- closing ---


def test_close_waits(storage: FailingStorage) -> None:
    """When a writer has been closed, everything that was submitted has its outcome."""
    closing = Writer(storage)
    tickets = [closing.submit(operation()) for _ in range(300)]
    closing.close()
    assert all(ticket.done for ticket in tickets)
    assert [ticket.result().commit for ticket in tickets] == list(range(1, 301))


def test_every_close_waits(storage: FailingStorage) -> None:
    """Whoever closes, be it the second or third, goes on only when everything has its outcome."""
    closing = Writer(storage)
    waited: list[bool] = []
    with Held(storage, closing):
        tickets = [closing.submit(operation()) for _ in range(100)]

        def close() -> None:
            closing.close()
            waited.append(all(ticket.done for ticket in tickets))

        threads = [threading.Thread(target=close) for _ in range(3)]
        for thread in threads:
            thread.start()
        threads[0].join(0.05)
    for thread in threads:
        thread.join()
    assert waited == [True] * 3


def test_use_after_close(pool: Writer) -> None:
    """A closed writer takes nothing on; closing it again is harmless."""
    pool.submit(operation()).result()
    pool.close()
    with pytest.raises(ClosedError, match="closed"):
        pool.submit(operation())
    pool.close()


def test_close_unused(storage: FailingStorage) -> None:
    """A writer that never wrote has no thread to end."""
    unused = Writer(storage)
    unused.close()
    with pytest.raises(ClosedError):
        unused.submit(operation())
    assert storage.groups == []


@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
def test_a_handler_that_closes_in_the_midst_of_a_submission(
    used: bool, storage: FailingStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would stand behind the end is refused: nobody would carry it out, and its caller would wait for ever."""
    closing = Writer(storage)
    if used:
        closing.submit(operation()).result()
    monkeypatch.setattr(closing._loops, "ring_later", closing.close)  # a signal handler may run at its beginning
    with pytest.raises(ClosedError):
        closing.submit(operation())
    assert len(storage.groups) == used


# --- waiting ---


async def _outcome(ticket: Ticket) -> object:
    try:
        return await ticket
    except BaseException as error:
        return error


def test_result_again(pool: Writer) -> None:
    """An outcome can be asked for any number of times, from any number of threads."""
    ticket = pool.submit(operation())
    first = ticket.result()
    found: list[Committed] = []
    threads = [threading.Thread(target=lambda: found.append(ticket.result())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [first] * 5
    assert ticket.done
    assert ticket.committed == first


def test_committed(storage: FailingStorage, pool: Writer) -> None:
    """A ticket shows what was committed once that is known, and nothing for one that failed."""
    with Held(storage, pool):
        ticket, refused = pool.submit(operation()), pool.submit(operation(expected_head=99))
        assert (ticket.done, ticket.committed) == (False, None)
    assert ticket.result() == ticket.committed
    with pytest.raises(ConflictError):
        refused.result()
    assert (refused.done, refused.committed) == (True, None)


async def test_await(storage: FailingStorage, pool: Writer) -> None:
    """Coroutines wait for outcomes without a thread each, and get errors as they are."""
    with Held(storage, pool):
        heads = [None if number % 10 else 10_000 for number in range(1000)]
        tickets = [pool.submit(operation(expected_head=head)) for head in heads]
        waiting = asyncio.gather(*map(_outcome, tickets))
        await asyncio.sleep(0)
        threads = threading.active_count()
    outcomes = await waiting
    assert [isinstance(outcome, Committed) for outcome in outcomes] == [head is None for head in heads]
    assert all(isinstance(o, ConflictError) for o, head in zip(outcomes, heads, strict=True) if head)
    assert threads < 20


async def test_await_again(pool: Writer) -> None:
    """A ticket can be awaited when its outcome is known, and by several coroutines at once."""
    ticket = pool.submit(operation())
    first = await ticket
    assert await ticket == first
    assert await asyncio.gather(*(_outcome(ticket) for _ in range(3))) == [first] * 3
    another = pool.submit(operation())
    outcomes = await asyncio.gather(*(_outcome(another) for _ in range(3)))
    assert outcomes == [another.result()] * 3


async def test_one_call_into_the_loop(storage: FailingStorage, pool: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many coroutines of a loop wait for a group, the loop is woken once for all of them."""
    loop = asyncio.get_running_loop()
    calls: list[object] = []
    call_soon_threadsafe = loop.call_soon_threadsafe

    def counting(callback: Callable[..., object], *args: object) -> asyncio.Handle:
        if callback == _wake:
            calls.append(args)
        return call_soon_threadsafe(callback, *args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
    with Held(storage, pool):
        waiting = asyncio.gather(*(_outcome(pool.submit(operation())) for _ in range(100)))
        await asyncio.sleep(0)
    await waiting
    assert len(calls) == 1


def test_several_loops(storage: FailingStorage, pool: Writer) -> None:
    """Coroutines of several event loops wait for the same tickets, and each loop is woken."""
    found: list[list[object]] = []
    started = threading.Barrier(5)
    with Held(storage, pool):
        tickets = [pool.submit(operation()) for _ in range(20)]

        async def wait() -> None:
            waiting = asyncio.gather(*map(_outcome, tickets))
            await asyncio.sleep(0)
            await asyncio.to_thread(started.wait, 10)
            found.append(await waiting)

        threads = [threading.Thread(target=asyncio.run, args=(wait(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait(10)
    for thread in threads:
        thread.join()
    assert found == [[ticket.result() for ticket in tickets]] * 4


async def test_cancelled_await(storage: FailingStorage, pool: Writer) -> None:
    """Giving up the wait takes nothing back, and disturbs no one else who waits."""
    with Held(storage, pool):
        ticket = pool.submit(operation())
        patient, hasty = asyncio.ensure_future(_outcome(ticket)), asyncio.ensure_future(_await(ticket))
        await asyncio.sleep(0)
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
    assert await patient == ticket.result()
    assert ticket.result().sequences == (3,)


async def _await(ticket: Ticket) -> Committed:
    return await ticket


def test_a_loop_that_is_gone(storage: FailingStorage, pool: Writer) -> None:
    """A loop that was closed while one of its coroutines waited is passed over; the others are woken."""

    async def give_up(ticket: Ticket) -> None:
        waiting = asyncio.ensure_future(_await(ticket))
        await asyncio.sleep(0)
        waiting.cancel()

    with Held(storage, pool):
        tickets = [pool.submit(operation()) for _ in range(2)]
        asyncio.run(give_up(tickets[0]))
    assert [ticket.result().sequences for ticket in tickets] == [(3,), (4,)]
    pool.submit(operation()).result()


# --- event loops ---


async def test_a_turn_is_one_group(storage: FailingStorage, pool: Writer) -> None:
    """What coroutines submit in one turn of their loop is one group, and so is what they submit when they are woken."""

    async def two() -> None:
        await pool.submit(operation())
        await pool.submit(operation())

    await asyncio.gather(*(two() for _ in range(40)))
    assert [len(group) for group in storage.groups] == [40] * 2


async def test_others_have_their_turn(storage: FailingStorage, pool: Writer) -> None:
    """Of many coroutines that wait for one group, one is woken before the loop does something else."""
    woken, seen = 0, []

    async def wait() -> None:
        nonlocal woken
        await pool.submit(operation())
        woken += 1

    async def watch() -> None:
        while woken < 100:
            seen.append(woken)
            await asyncio.sleep(0)

    await asyncio.gather(watch(), *(wait() for _ in range(100)))
    assert max(after - before for before, after in pairwise([*seen, 100])) == 1


async def test_those_whom_threads_have_answered_take_turns(storage: FailingStorage, pool: Writer) -> None:
    """Of coroutines that are woken by something else, one at a time goes on, together with those of a group."""
    loop, gone_on = asyncio.get_running_loop(), 0
    seen: list[int] = []
    answered = asyncio.Event()

    async def go_on(after: Callable[[], Awaitable[object]]) -> None:
        nonlocal gone_on
        await after()
        gone_on += 1

    async def ask() -> None:
        await answered.wait()
        await turn(loop)

    async def append() -> None:
        await pool.submit(operation())

    async def watch() -> None:
        answered.set()
        while gone_on < 40:
            seen.append(gone_on)
            await asyncio.sleep(0)

    await turn(loop)  # alone, at once
    await asyncio.gather(*(go_on(each) for each in (ask, append) * 20), watch())
    assert max(after - before for before, after in pairwise([*seen, 40])) == 1


async def test_whose_turn_it_may_be_already(pool: Writer) -> None:
    """Of those who ask so, one goes on with the one that was alone so far; the others wait."""
    gone_on = []

    async def ask(number: int) -> None:
        await turn(asyncio.get_running_loop(), in_turn=True)
        gone_on.append(number)

    tasks = [asyncio.ensure_future(ask(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert gone_on == [0, 1]
    await asyncio.wait(tasks, timeout=10)
    assert gone_on == [0, 1, 2, 3, 4]


async def test_a_coroutine_that_is_given_up_in_the_line(pool: Writer) -> None:
    """Those behind it have their turn."""
    tasks = [asyncio.ensure_future(turn(asyncio.get_running_loop())) for _ in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.wait(tasks, timeout=10)
    assert [task.cancelled() for task in tasks] == [False, False, True, False, False]


async def test_a_line_without_end_keeps_no_append_waiting(pool: Writer) -> None:
    """The writer is told of an append though its loop always has somebody left to wake."""
    loop, turns, is_over = asyncio.get_running_loop(), 0, False

    async def read_on() -> None:
        nonlocal turns
        while not is_over:
            await turn(loop)
            turns += 1

    readers = asyncio.gather(*(read_on() for _ in range(2 * MOST_BEFORE_RINGING)))
    await asyncio.sleep(0)
    before = turns
    await asyncio.wait_for(_await(pool.submit(operation())), timeout=10)
    assert turns - before >= MOST_BEFORE_RINGING
    is_over = True
    await readers


async def test_blocking_in_a_loop(pool: Writer) -> None:
    """Whoever waits in an event loop as in a thread is not kept waiting for the end of the loop's turn."""
    assert pool.submit(operation()).result().sequences == (3,)
    first, second = pool.submit(operation()), pool.submit(operation())
    assert second.result().sequences == (5,)
    assert first.done


def test_a_loop_that_ends_before_its_turn(storage: FailingStorage, pool: Writer) -> None:
    """What was submitted in a loop that ended there and then comes with what is submitted next, and before it."""

    async def submit() -> Ticket:
        return pool.submit(operation())

    loop = asyncio.new_event_loop()
    coroutine = submit()
    with pytest.raises(StopIteration) as returned, running(loop):
        coroutine.send(None)
    loop.close()
    left: Ticket = returned.value.value
    assert pool.submit(operation()).result().sequences == (4,)
    assert left.result().sequences == (3,)


def test_close_in_a_turn(storage: FailingStorage) -> None:
    """Closing waits for what a coroutine submitted in the same turn."""
    closing = Writer(storage)

    async def submit_and_close() -> bool:
        ticket = closing.submit(operation())
        closing.close()
        return ticket.done

    assert asyncio.run(submit_and_close())


@contextmanager
def running(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """The loop is taken to run in this thread."""
    asyncio._set_running_loop(loop)
    try:
        yield
    finally:
        asyncio._set_running_loop(None)
