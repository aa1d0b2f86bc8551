"""A state machine: after any operations every storage answers what the model answers, byte for byte alike."""

from __future__ import annotations

import shutil
import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from building import all_rows, append, loose, sealing, step, wrote
from property.storage_model import Kept, ModelThread, StorageModel
from stepwell import ConflictError, Event, codec
from stepwell import format as fmt
from stepwell.audit import audit
from stepwell.events import Sequence, ThreadPruned
from stepwell.reader import Reader
from stepwell.storage import Append, Committed, Copy, Delete, Entry, Operation, Seal
from stepwell.storage.lmdb import LmdbStorage
from stepwell.storage.memory import MemoryStorage
from stepwell.storage.ordered import TableStorage

THREADS = ("1", "12", "")
LANES = ("", "a", "a|b")
STEPS = ("s0", "s1", "s2", "s3", "1ef663ba-28fe-6528-8002-5a559208592c")
ALL = 1 << 62

picks = st.integers(0, 10**6)
# Most goes to one thread and one lane, so that they grow long.
threads = st.sampled_from(["1", "1", "1", *THREADS])
lanes = st.sampled_from(["", "", "", *LANES])
step_plans = st.tuples(
    st.just("step"),
    st.sampled_from(STEPS),
    lanes,
    st.sampled_from([None, *STEPS]),
    picks,
    st.booleans(),
)
write_plans = st.tuples(st.just("writes"), st.sampled_from(STEPS), lanes)
plans = st.lists(st.one_of(step_plans, step_plans, step_plans, write_plans), max_size=5)


class Refused(Exception):
    """Raised where entries are made."""


class StorageMachine(RuleBasedStateMachine):
    """Carries out the same operations on the model and on a storage of each engine."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model = StorageModel()
        self.storages: list[TableStorage] = [MemoryStorage(), LmdbStorage(self.folder / "log")]
        self.group: list[Operation] = []
        self.expected: list[tuple[int, int, tuple[int, ...]] | None] = []
        self.sealings: list[Seal] = []
        self.sealed: dict[int, int] = {}  # by thread number: the newest event that is in a segment
        self.now = 1

    # --- operations, gathered into groups ---

    def _gather(self, operation: Operation) -> None:
        self.now += 1
        self.group.append(operation)
        self.expected.append(self.model.carry_out(operation))

    def _events(self, thread: ModelThread | None, plan: list[tuple[Any, ...]]) -> list[Event]:
        events: list[Event] = []
        for kind, name, lane, *rest in plan:
            if kind == "writes":
                events.append(wrote(name, lane=lane))
                continue
            parent, pick, hidden = rest
            steps = [each.sequence for each in thread.events if each.is_step and each.lane == lane] if thread else []
            base = [0, *steps][pick % (len(steps) + 1)]
            events.append(step(name, parent=parent, lane=lane, base=base, hidden=hidden and pick % 3 == 0))
        return events

    @rule(appends=st.lists(st.tuples(threads, plans), min_size=1, max_size=5))
    def append(self, appends: list[tuple[str, list[tuple[Any, ...]]]]) -> None:
        for name, plan in appends:
            self._gather(append(name, *self._events(self.model.named(name), plan), now=self.now))

    @rule(name=threads, plan=plans, pick=picks)
    def append_with_a_condition(self, name: str, plan: list[tuple[Any, ...]], pick: int) -> None:
        thread = self.model.named(name)
        events = self._events(thread, plan)
        head, number = (thread.last, thread.number) if thread else (0, 1)
        if pick % 2:
            head = [None, head, head + 1, max(head - 1, 0)][pick // 2 % 4]
            self._gather(append(name, *events, expected_head=head, now=self.now))
        else:
            self._gather(append(name, *events, incarnation=number + pick // 2 % 2, now=self.now))

    @rule(name=threads, base=st.integers(1, 40), lane=lanes)
    def append_on_any_base(self, name: str, base: int, lane: str) -> None:
        self._gather(append(name, wrote("s0", lane=lane), step("s1", lane=lane, base=base), now=self.now))

    @rule(name=threads, plan=plans)
    def restart(self, name: str, plan: list[tuple[Any, ...]]) -> None:
        thread = self.model.named(name)
        if thread is not None:
            first = ThreadPruned(
                name, Sequence(thread.last), self._chain(thread), self.now, thread.events[0].created_at
            )
            events = self._events(None, plan)
            self._gather(append(name, first, *events, expected_head=thread.last, restart=True, now=self.now))
            self.sealed.pop(thread.number, None)

    def _chain(self, thread: ModelThread) -> bytes:
        self._commit()
        row = self.storages[0].thread(thread.name or "")
        assert row is not None
        return row.chain

    @rule(name=threads)
    def delete(self, name: str) -> None:
        self._gather(Delete(name, self.now))

    @rule(source=threads, new=threads)
    def copy(self, source: str, new: str) -> None:
        before = len(self.model.threads)
        copied = self.model.named(source)
        self._gather(Copy(source, new, self.now))
        if copied is not None and len(self.model.threads) > before and copied.number in self.sealed:
            self.sealed[self.model.threads[-1].number] = self.sealed[copied.number]

    # --- sealing, which no answer shows ---

    @rule(name=threads, size=st.integers(1, 40), kept=st.sets(st.integers(1, 60), max_size=4))
    def plan_sealing(self, name: str, size: int, kept: set[int]) -> None:
        """Pack loose events, and fold some states: both may be out of date when they come to be swapped in."""
        self._commit()
        thread, storage = self.model.named(name), self.storages[0]
        if thread is None:
            return
        first = max(self.sealed.get(thread.number, 0) + 1, thread.events[0].sequence)
        if first <= thread.last:
            last = min(first + size - 1, thread.last)
            steps = {each.sequence for each in thread.events if each.is_step and first <= each.sequence <= last}
            states = Reader(storage).states(thread.number, steps & kept)
            bases = {at: codec.encode_base(states[at]) for at in steps & kept}
            self.sealings.append(sealing(storage, name, last, bases))
            assert self.sealings[-1].first == first

    @precondition(lambda self: self.sealings)
    @rule(pick=picks)
    def seal(self, pick: int) -> None:
        """Swap one in, if what it holds are still the thread's oldest loose events."""
        operation = self.sealings[pick % len(self.sealings)]
        thread = self.model.named(operation.thread_id)
        self.group.append(operation)
        self.expected.append((0, 0, ()))
        if thread is not None and thread.number == operation.number:
            first = max(self.sealed.get(thread.number, 0) + 1, thread.events[0].sequence)
            if first == operation.first:
                self.expected[-1] = (thread.number, 0, ())
                self.sealed[thread.number] = operation.last

    # --- groups ---

    @rule()
    def commit(self) -> None:
        self._commit()

    def _commit(self) -> None:
        for storage in self.storages:
            outcomes = storage.commit(self.group)
            for outcome, expected in zip(outcomes, self.expected, strict=True):
                if expected is None:
                    assert isinstance(outcome, ConflictError)
                else:
                    assert isinstance(outcome, Committed)
                    assert outcome[:3] == expected
        self.group, self.expected = [], []

    @rule(name=threads)
    def fail(self, name: str) -> None:
        """A group that fails as a whole changes nothing."""
        self._commit()

        def broken(number: int, first: int) -> list[Entry]:
            raise Refused

        group = [append(name, step("s0")), Delete(name, 1), append(name, step("s1")), Append("x", broken)]
        for storage in self.storages:
            before = all_rows(storage)
            with pytest.raises(Refused):
                storage.commit(group)
            assert all_rows(storage) == before

    @rule()
    def reopen(self) -> None:
        self._commit()
        self.storages[1].close()
        self.storages[1] = LmdbStorage(self.folder / "log")

    # --- answers ---

    @rule(
        limit=st.integers(1, 5), before=st.integers(0, 40), after=st.integers(0, 40), known=st.sets(st.integers(1, 40))
    )
    def pages(self, limit: int, before: int, after: int, known: set[int]) -> None:
        """Every page, wherever it begins and ends."""
        self._commit()
        for storage in self.storages:
            named = [thread for thread in self.model.threads if thread.name is not None and thread.number > after]
            assert [row.number for _, row in storage.threads(after, limit)] == [t.number for t in named][:limit]
            assert storage.feed(after, limit) == [row for row in self.model.feed() if row.commit > after][:limit]
            for thread in self.model.threads:
                self._check_pages(storage, thread, limit, before, after, frozenset(known))

    def _check_pages(
        self, storage: TableStorage, thread: ModelThread, limit: int, before: int, after: int, known: frozenset[int]
    ) -> None:
        number = thread.number
        inside = [each.sequence for each in thread.events if after < each.sequence < before]
        forwards = storage.scan(number, after, before, limit, reverse=False) if before else []
        assert [record.sequence for record in forwards] == inside[:limit]
        backwards = storage.scan(number, after, before, limit, reverse=True) if before else []
        assert [record.sequence for record in backwards] == inside[::-1][:limit]
        surveyed = storage.survey(number, after, limit)
        assert [each.sequence for each in surveyed] == [e.sequence for e in thread.events if e.sequence > after][:limit]
        lanes = list(enumerate(thread.lanes, 1))
        assert [lane[:2] for lane in storage.lanes(number, after, limit)] == lanes[after : after + limit]
        for lane, name in [*lanes, (None, None)]:
            shown = [each.sequence for each in thread.shown(name) if not before or each.sequence < before][::-1]
            assert [record.sequence for record in storage.steps(number, lane, before, limit)] == shown[:limit]
        bases = set(storage.bases(number))
        for each in (before, after):
            for ends in (frozenset[int](), known):
                found = storage.branches(number, [each], ends)
                branch = sorted(thread.branch(each), reverse=True)
                walked = [*takewhile(lambda at: at not in bases and at not in ends, branch)]  # noqa: B023
                assert sorted(found.records, reverse=True) == walked
                end = branch[len(walked)] if len(walked) < len(branch) else 0
                assert set(found.bases) == {end} & bases - ends

    def teardown(self) -> None:
        self._commit()
        memory, file = self.storages
        assert all_rows(memory) == all_rows(file)
        for storage in self.storages:
            self._check(storage)
            assert audit(storage).breaches == []
            storage.close()
        shutil.rmtree(self.folder)

    def _check(self, storage: TableStorage) -> None:
        named = {thread.name: thread for thread in self.model.threads if thread.name is not None}
        assert [name for name, _ in storage.threads(0, 1000)] == list(named)
        assert storage.feed(0, 1000) == self.model.feed()
        assert storage.event_threads() == [thread.number for thread in self.model.threads]
        for name in THREADS:
            row = storage.thread(name)
            assert (row is None) == (name not in named)
        for thread in self.model.threads:
            self._check_thread(storage, thread)

    def _check_thread(self, storage: TableStorage, thread: ModelThread) -> None:
        number = thread.number
        records = {record.sequence: record for record in storage.scan(number, 0, ALL, 1000, reverse=False)}
        assert list(records) == [each.sequence for each in thread.events]
        assert storage.scan(number, 0, ALL, 1000, reverse=True) == [*records.values()][::-1]
        assert storage.read(number, [*records, thread.last + 1]) == records
        payloads = storage.payloads(number, [*records, thread.last + 1])
        assert payloads == {sequence: record.payload for sequence, record in records.items()}
        stored = loose(storage, number)
        sealed = self.sealed.get(number, 0) if thread.name is not None else 0
        assert list(stored) == [each.sequence for each in thread.events if each.sequence > sealed]
        for each in thread.events:
            self._check_record(thread, each, records[each.sequence], stored.get(each.sequence))
        if thread.name is not None:
            row = storage.thread(thread.name)
            assert row is not None
            writes = sum(each.kind == fmt.KIND_WRITES for each in thread.events)
            loose_bytes = sum(map(len, stored.values()))
            stored_bytes = loose_bytes + sum(size for _, _, size in storage.segments(number))
            counts = (len(thread.lanes), len(thread.shown(None)), writes, stored_bytes)
            assert (row.sealed, row.loose_bytes) == (sealed, loose_bytes)
            assert (row.number, row.first, row.last) == (number, thread.events[0].sequence, thread.last)
            assert (row.lanes, row.steps, row.writes, row.stored_bytes) == counts
            assert (row.created_at, row.updated_at) == (thread.events[0].created_at, thread.events[-1].created_at)
        keys = [fmt.id_key(name) for name in STEPS]
        for lane, lane_name in enumerate(thread.lanes, 1):
            found, lane_row = storage.lane(number, lane_name) or (0, None)
            assert found == lane
            assert lane_row is not None
            shown = thread.shown(lane_name)
            assert (lane_row.head, lane_row.steps) == (thread.head(lane_name), len(shown))
            assert storage.find(number, lane, keys) == [thread.find(lane_name, key) for key in keys]
            for key in keys:
                assert storage.ancestry(number, lane, key, 9) == thread.ancestry(lane_name, key, 9)
        names = dict(enumerate(thread.lanes, 1))
        assert storage.lane_names(number, {0, 1, 2, 3, 4}, 1 << 62) == names

    def _check_record(self, thread: ModelThread, each: Kept, record: codec.Record, stored: bytes | None) -> None:
        header = record.header
        assert (header.kind, header.lane) == (each.kind, thread.lane_number(each.lane))
        assert (header.commit, header.created_at, header.base) == (each.commit, each.created_at, each.base)
        if each.body is not None:
            assert record.body == codec.plain_body(each.body, each.form)
            assert stored is None or stored[fmt.HEADER_BYTES :] == each.body
        if each.is_step and not each.hidden:
            assert header.previous == thread.previous(each)


StorageMachine.TestCase.settings = settings(
    settings.default, max_examples=max(settings.default.max_examples // 3, 1), stateful_step_count=30
)
TestStorageMachine = StorageMachine.TestCase


def test_outcome_compares() -> None:
    """The model's outcomes can be compared with those of a storage."""
    assert Committed(1, 2, (3,), 4, 5)[:3] == (1, 2, (3,))
