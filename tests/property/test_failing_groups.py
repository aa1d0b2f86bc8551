"""Groups that fail as a whole and are tried again, one operation at a time, while threads are pruned and deleted."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Several
from contextlib import suppress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from building import FailingStorage, noise, step
from stepwell import DiskFullError, Log, StepwellError, pruning
from stepwell.storage import Delete, Operation
from stepwell.writer import Ticket

THREADS = ("a", "b")
# Few contents, so that most appends refer to what others hold.
CONTENTS = [noise(300 * 3**n) for n in range(4)]
ELEMENTS = [msgspec.Raw(msgspec.msgpack.encode(noise(400).hex())) for _ in range(6)]


class _Failures:
    """When commits fail: never, the first time, as long as several operations are together, or now and then."""

    def __init__(self, rng: random.Random) -> None:
        self._tried = 0
        kinds: list[Callable[[Several[Operation]], bool]] = [
            lambda group: False,
            lambda group: self._tried == 1,
            lambda group: len(group) > 1,
            lambda group: rng.random() < 0.4,
        ]
        self._fails = rng.choice(kinds)

    def __call__(self, group: Several[Operation]) -> DiskFullError | None:
        self._tried += 1
        return DiskFullError("full") if self._fails(group) else None


def submit(log: Log, step_id: str, value: bytes, rng: random.Random) -> Ticket:
    """Append a step with a value to some thread, or remove something of the thread."""
    thread = log.thread(rng.choice(THREADS))
    row, steps = thread.row(), [each.sequence for each in thread.steps()]
    chance = rng.random()
    if chance < 0.8 or row is None or not steps:
        return thread.begin_append([step(step_id, {"x": value, "y": rng.choice(CONTENTS)})])
    if chance < 0.95:
        return log.submit(pruning.plan(log.storage, thread.id, row, pruning.Kept(frozenset(steps[:1]))))
    return log.submit(Delete(thread.id, 1))


@given(st.integers(0, 2**32))
def test_what_is_there_is_whole_however_often_its_group_was_tried(seed: int) -> None:
    """Each step that is there shows what was appended, and audit is clean: no attempt leaves traces in the next."""
    rng = random.Random(seed)
    storage = FailingStorage()
    values: dict[str, bytes] = {}
    with Log(storage) as log:
        for turn in range(5):
            storage.failure = _Failures(rng)
            tickets = []
            with storage.gate:  # what is submitted meanwhile becomes one group, but for the first
                for number in range(rng.randint(1, 6)):
                    elements = msgspec.msgpack.encode(rng.sample(ELEMENTS, rng.randint(1, 5)))
                    values[f"{turn} {number}"] = rng.choice([*CONTENTS, elements])
                    tickets.append(submit(log, f"{turn} {number}", values[f"{turn} {number}"], rng))
            for ticket in tickets:
                with suppress(StepwellError):
                    ticket.result()
            storage.failure = lambda group: None
            for thread in map(log.thread, THREADS):
                for each in list(thread.steps()):
                    state = thread.state(each.step_id)
                    assert state is not None
                    assert state.channels["x"][1] == values[each.step_id]
                newest = [each.sequence for each in thread.steps()][:1]
                if rng.random() < 0.4:
                    thread.prune(newest)
            assert log.audit().breaches == []
