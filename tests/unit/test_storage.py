"""The contract of a storage: one suite over every engine.

tests/property/test_storage_machine.py holds the engines against a model of plain Python.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from building import (
    all_rows,
    append,
    drop_bases,
    get_record,
    get_segment,
    loose,
    noise,
    rows_of,
    sealing,
    set_record,
    set_segment,
    step,
    wrote,
)
from stepwell import ClosedError, ConflictError, CorruptionError, Log, codec
from stepwell import format as fmt
from stepwell.audit import audit
from stepwell.events import LaneOpened, Sequence, ThreadCopied, ThreadDeleted, ThreadOpened, ThreadPruned
from stepwell.reader import Reader
from stepwell.storage import (
    Append,
    Branches,
    Committed,
    Copy,
    Delete,
    Entry,
    FeedRow,
    Found,
    Group,
    Operation,
    Outcome,
    Query,
    Rewrite,
    ThreadRow,
    segments,
)
from stepwell.storage.feed import COMMITS_IN_ROW
from stepwell.storage.index import WRITES_IN_FURTHER_ROW, WRITES_IN_ROW
from stepwell.storage.lmdb import LmdbStorage
from stepwell.storage.memory import MemoryStorage
from stepwell.storage.ordered import TableStorage
from stepwell.storage.tables import FEED, INDEX

KEYS = {name: fmt.id_key(name) for name in ("s0", "s1", "s2", "s3", "s4", "x")}


def done(storage: TableStorage, operation: Operation) -> Committed:
    """Carry out one operation that is not refused; what an append says of loose events is checked and taken off."""
    (outcome,) = storage.commit([operation])
    assert isinstance(outcome, Committed)
    if isinstance(operation, Append) and outcome.commit:
        records = loose(storage, outcome.number)
        assert (outcome.loose_events, outcome.loose_bytes) == (len(records), sum(map(len, records.values())))
    return bare(outcome)


def bare(outcome: Outcome) -> Committed:
    """An outcome without what it says about loose events."""
    assert isinstance(outcome, Committed)
    return outcome._replace(loose_events=0, loose_bytes=0)


def row_of(storage: TableStorage, thread_id: str = "t") -> ThreadRow:
    """The row of a thread that exists."""
    row = storage.thread(thread_id)
    assert row is not None
    return row


def header(storage: TableStorage, sequence: int, thread: int = 1) -> fmt.Header:
    """The header of the record at a place."""
    return storage.read(thread, [sequence])[sequence].header


def parent(storage: TableStorage, sequence: int, thread: int = 1) -> str | None:
    """The parent that the step at a place names."""
    return codec.parent_of(thread, storage.read(thread, [sequence])[sequence])


def events(storage: TableStorage, thread: int = 1) -> list[object]:
    """All events of a thread."""
    page = storage.scan(thread, 0, 1 << 62, 1000, reverse=False)
    return [codec.decode(thread, record) for record in page]


def sequences(page: list[codec.Record]) -> list[int]:
    """Where the records of a page stand."""
    return [record.sequence for record in page]


# --- append ---


def test_empty(storage: TableStorage) -> None:
    """An empty log answers every question with nothing."""
    assert storage.thread("t") is None
    assert storage.threads(0, 10) == []
    assert storage.catalogue(Query(10)) == []
    assert storage.lane(1, "") is None
    assert storage.lanes(1, 0, 10) == []
    assert storage.lane_names(1, {1, 2}, 1) == {}
    assert storage.read(1, [1, 2]) == {}
    assert storage.payloads(1, [1, 2]) == {}
    assert storage.branches(1, [1], frozenset()) == Branches({}, {})
    assert storage.scan(1, 0, 1 << 62, 10, reverse=False) == []
    assert storage.scan(1, 0, 1 << 62, 10, reverse=True) == []
    assert storage.steps(1, None, 0, 10) == []
    assert storage.find(1, 1, [KEYS["s0"]]) == [Found(0, 0, False, ())]
    assert storage.ancestry(1, 1, KEYS["s0"], 9) == []
    assert storage.feed(0, 10) == []
    assert storage.items([(("a",), "k")], None, attachments=False) == [None]
    assert storage.scan_items((), None, None, 10, attachments=False) == []
    assert storage.namespaces((), None, 10) == []
    assert storage.item_versions((("a",), "k"), 1 << 62, 10, attachments=False) == []
    assert storage.expired_items(1 << 62, 10) == []
    assert storage.item_commit_by(1 << 62) == 0
    assert list(storage.derived()) == []
    assert storage.event_threads() == []
    assert storage.segments(1) == []
    assert storage.bases(1) == {}
    assert storage.last_group(1) == Group()
    assert storage.give_back() == 0


def test_append_opens_thread_and_lane(storage: TableStorage) -> None:
    """The first append of a thread, and the first in a lane, put an event that holds the name before."""
    outcome = done(storage, append("t", step("s0"), step("s1", lane="sub"), step("s2")))
    assert outcome == Committed(1, 1, (3, 5, 6))
    found = events(storage)
    assert found[0] == ThreadOpened("t", 1)
    assert found[1] == LaneOpened("", 1)
    assert found[3] == LaneOpened("sub", 1)
    assert [header(storage, sequence).lane for sequence in range(1, 7)] == [0, 1, 1, 2, 2, 1]
    assert done(storage, append("t", step("s3"), now=2)) == Committed(1, 2, (7,))


def test_records_are_chained(storage: TableStorage) -> None:
    """Each record goes on from the chain of the one before, over all appends of its thread."""
    for number in range(3):
        done(storage, append("t", step(f"s{number}"), wrote(f"s{number}")))
        done(storage, append("other", step("s0")))
    chain = fmt.CHAIN_SEED
    for record in storage.scan(1, 0, 1 << 62, 100, reverse=False):
        digest = fmt.body_digest(record.body)
        chain = fmt.chain_after(1, record.sequence, record.header, digest, chain)
        assert record.header.chain == chain
    assert row_of(storage).chain == chain


def test_thread_row(storage: TableStorage) -> None:
    """The catalogue counts what a thread holds."""
    done(storage, append("t", step("s0"), wrote("s0"), step("s0"), step("h", hidden=True), now=5))
    done(storage, append("t", step("s1", lane="sub"), now=9))
    row = row_of(storage)
    assert (row.number, row.first, row.last, row.lanes, row.steps, row.writes) == (1, 1, 8, 2, 2, 1)
    assert (row.created_at, row.updated_at, row.deleted) == (5, 9, False)
    assert row.stored_bytes == sum(map(len, loose(storage, 1).values()))


def test_empty_append(storage: TableStorage) -> None:
    """An append of nothing changes nothing, not even on a thread that does not exist."""
    assert done(storage, append("t")) == Committed(0, 0, ())
    assert storage.thread("t") is None
    done(storage, append("t", step("s0")))
    before = all_rows(storage)
    assert done(storage, append("t")) == Committed(1, 0, ())
    assert all_rows(storage) == before


def test_expected_head(storage: TableStorage) -> None:
    """An append that expects another head is refused, says both, and changes nothing."""
    done(storage, append("t", step("s0"), expected_head=0))
    before = all_rows(storage)
    for head in (0, 2, 4):
        (refused,) = storage.commit([append("t", step("s1"), expected_head=head)])
        assert isinstance(refused, ConflictError)
        assert (refused.thread, refused.expected, refused.actual) == ("t", head, 3)
    (refused,) = storage.commit([append("new", step("s1"), expected_head=1)])
    assert isinstance(refused, ConflictError)
    assert all_rows(storage) == before
    assert done(storage, append("t", step("s1"), expected_head=3)).sequences == (4,)


def test_incarnation(storage: TableStorage) -> None:
    """An append made for a thread that was deleted is refused, also after its id is in use again."""
    done(storage, append("t", step("s0"), incarnation=0))
    done(storage, append("t", step("s1"), incarnation=1))
    done(storage, Delete("t", 1))
    refused = storage.commit([append("t", step("s2"), incarnation=1)])
    done(storage, append("t", step("s0")))
    refused += storage.commit([append("t", step("s2"), incarnation=1)])
    assert all(isinstance(outcome, ConflictError) for outcome in refused)
    assert done(storage, append("t", step("s2"), incarnation=2)).sequences == (4,)


@pytest.mark.parametrize("base", [1, 2, 5, 7, 99])
def test_base_that_is_no_step(storage: TableStorage, base: int) -> None:
    """A step can be based on a step of its own lane that was there before its append, and on nothing else."""
    done(storage, append("t", step("s0"), step("s1", lane="sub"), wrote("s0")))
    before = all_rows(storage)
    (refused,) = storage.commit([append("t", step("s2"), step("s3", base=base))])
    assert isinstance(refused, ConflictError)
    assert all_rows(storage) == before
    done(storage, append("t", step("s2", base=3), step("s3", lane="sub", base=5)))


def test_base_in_a_new_thread(storage: TableStorage) -> None:
    """A step of a thread or lane that does not exist cannot be based on anything."""
    (refused,) = storage.commit([append("t", step("s0", base=1))])
    assert isinstance(refused, ConflictError)
    done(storage, append("t", step("s0")))
    (refused,) = storage.commit([append("t", step("s1", lane="new", base=3))])
    assert isinstance(refused, ConflictError)


def test_base_from_the_same_group(storage: TableStorage) -> None:
    """A step can be based on one that an earlier operation of the same group appended."""
    outcomes = storage.commit([append("t", step("s0")), append("t", step("s1", base=3))])
    assert [bare(outcome) for outcome in outcomes] == [Committed(1, 1, (3,)), Committed(1, 2, (4,))]


def test_refused_operations_leave_their_neighbours(storage: TableStorage) -> None:
    """In a group, an operation that is refused changes nothing, and those around it are carried out."""
    done(storage, append("there", step("s0")))
    outcomes = storage.commit(
        [
            append("t", step("s0")),
            append("t", step("s1"), expected_head=99),
            append("new", step("s1"), incarnation=99),
            append("t", step("x", lane="never"), step("x", base=99)),
            Copy("t", "there", 1),
            append("t", step("s1", base=3)),
        ]
    )
    assert [isinstance(outcome, Committed) for outcome in outcomes] == [True, False, False, False, False, True]
    assert row_of(storage).last == 4
    assert storage.thread("new") is None
    assert storage.lane(2, "never") is None
    assert [row.commit for row in storage.feed(0, 10)] == [1, 2, 3]


def test_a_group_that_fails(storage: TableStorage) -> None:
    """If making the entries fails, nothing of the whole group is in the log."""

    def broken(number: int, first: int) -> list[Entry]:
        raise RuntimeError("no entries")

    done(storage, append("t", step("s0")))
    before = all_rows(storage)
    group = [append("t", step("s1")), append("new", step("s0")), Delete("t", 1), Append("t", broken)]
    with pytest.raises(RuntimeError, match="no entries"):
        storage.commit(group)
    assert all_rows(storage) == before
    assert done(storage, append("t", step("s1"))) == Committed(1, 2, (4,))


def test_placed(storage: TableStorage) -> None:
    """An append learns when an attempt begins and where its entries stand; a refused one learns nothing more."""
    told: list[object] = []

    def telling(operation: Append, name: str) -> Append:
        return operation._replace(placed=lambda committed: told.append((name, committed)))

    first, second = telling(append("t", step("s0")), "a"), telling(append("t", step("s1"), expected_head=9), "b")
    outcomes = storage.commit([first, second])
    assert told == [("a", None), ("b", None), ("a", outcomes[0])]


def test_entries_are_told_the_thread(storage: TableStorage) -> None:
    """Entries are made for the thread's number and oldest event: 0 and 0 for a new one."""
    told: list[tuple[int, int]] = []

    def asked(operation: Append) -> Append:
        def entries(number: int, first: int) -> Any:
            told.append((number, first))
            return operation.entries(number, first)

        return operation._replace(entries=entries)

    done(storage, asked(append("t", step("s0"))))
    done(storage, asked(append("t", step("s1"))))
    done(storage, asked(append("t", ThreadPruned("t", Sequence(4), row_of(storage).chain, 1), restart=True)))
    done(storage, asked(append("t", step("s1"))))
    assert told == [(0, 0), (1, 1), (1, 1), (1, 5)]


# --- steps ---


def test_committing_a_step_again(storage: TableStorage) -> None:
    """A step id that is committed again keeps its place in lists; its newest event is what it shows."""
    done(storage, append("t", step("s0"), step("s1", parent="s0"), step("s2", parent="s1")))
    done(storage, append("t", step("s1", parent="x")))
    lane, lane_row = storage.lane(1, "") or (0, None)
    assert lane_row is not None
    assert (lane, lane_row.head, lane_row.tip, lane_row.steps, lane_row.replaced) == (1, 5, 5, 3, 1)
    assert storage.find(1, 1, [KEYS["s1"]]) == [Found(6, 4, False, ())]
    assert [parent(storage, sequence) for sequence in (3, 4, 5, 6)] == [None, "s0", "s1", "x"]
    assert sequences(storage.steps(1, 1, 0, 10)) == sequences(storage.steps(1, None, 0, 10)) == [5, 4, 3]
    done(storage, append("t", step("s2")))
    _, lane_row = storage.lane(1, "") or (0, None)
    assert lane_row is not None
    assert (lane_row.head, lane_row.tip) == (7, 5)
    assert header(storage, 7).previous == 5
    assert header(storage, 7).flags == fmt.FLAG_REPLACES


def test_hidden_steps(storage: TableStorage) -> None:
    """A hidden step is found by its id and can be a base, but no list shows it and it is no head."""
    done(storage, append("t", step("s0"), step("s1", parent="s0", hidden=True)))
    done(storage, append("t", step("s2", parent="s1", base=4)))
    assert sequences(storage.steps(1, 1, 0, 10)) == sequences(storage.steps(1, None, 0, 10)) == [5, 3]
    assert storage.find(1, 1, [KEYS["s1"]]) == [Found(4, 4, True, ())]
    assert parent(storage, 4) == "s0"
    assert [key for key, _ in storage.ancestry(1, 1, KEYS["s2"], 9)] == [KEYS["s1"], KEYS["s0"]]
    _, lane_row = storage.lane(1, "") or (0, None)
    assert lane_row is not None
    assert (lane_row.head, lane_row.steps) == (5, 2)
    done(storage, append("t", step("s1")))
    assert storage.find(1, 1, [KEYS["s1"]]) == [Found(6, 6, False, ())]
    assert parent(storage, 6) is None
    assert sequences(storage.steps(1, 1, 0, 10)) == [6, 5, 3]


def test_find(storage: TableStorage) -> None:
    """The events of each step id are found, the writes that arrived before the step included."""
    done(storage, append("t", wrote("s0"), step("s0"), wrote("s0", task="b"), step("s1", parent="s0"), wrote("x")))
    done(storage, append("t", step("s0", lane="sub"), wrote("s1", lane="sub")))
    found = storage.find(1, 1, [KEYS["s0"], KEYS["x"], KEYS["s1"], KEYS["s4"], KEYS["s0"]])
    assert found == [
        Found(4, 4, False, (3, 5)),
        Found(0, 0, False, (7,)),
        Found(6, 6, False, ()),
        Found(0, 0, False, ()),
        Found(4, 4, False, (3, 5)),
    ]
    assert [parent(storage, sequence) for sequence in (4, 6)] == [None, "s0"]
    assert storage.find(1, 2, [KEYS["s1"]]) == [Found(0, 0, False, (10,))]
    assert storage.find(1, 1, []) == []


def test_ancestry(storage: TableStorage) -> None:
    """The parents of a step are found as far as they are in the log, whatever their order in it."""
    done(storage, append("t", step("s2", parent="s1"), step("s0"), step("s1", parent="s0"), step("s4", parent="x")))
    assert [key for key, _ in storage.ancestry(1, 1, KEYS["s2"], 9)] == [KEYS["s1"], KEYS["s0"]]
    assert [found.step for _, found in storage.ancestry(1, 1, KEYS["s2"], 9)] == [5, 4]
    assert storage.ancestry(1, 1, KEYS["s0"], 9) == storage.ancestry(1, 1, KEYS["s4"], 9) == []


def test_ancestry_of_a_loop(storage: TableStorage) -> None:
    """A chain of parents that leads back to itself comes round again, as far as was asked for."""
    done(storage, append("t", step("s0", parent="s2"), step("s1", parent="s0"), step("s2", parent="s1")))
    s0, s1, s2 = (KEYS[name] for name in ("s0", "s1", "s2"))
    assert [key for key, _ in storage.ancestry(1, 1, s2, 7)] == [s1, s0, s2, s1, s0, s2, s1]
    done(storage, append("t", step("s3", parent="s3"), step("s4", parent="s2")))
    assert [key for key, _ in storage.ancestry(1, 1, KEYS["s3"], 2)] == [KEYS["s3"]] * 2
    assert [key for key, _ in storage.ancestry(1, 1, KEYS["s4"], 4)] == [s2, s1, s0, s2]
    assert storage.ancestry(1, 1, s2, 0) == []


def test_branches(storage: TableStorage) -> None:
    """The records that some states are made of are read together, each once, down to what is known already."""
    done(storage, append("t", step("s0")))
    for number, base in enumerate((3, 4, 3, 6), 1):
        done(storage, append("t", step(f"s{number}", base=base)))
    assert sorted(storage.branches(1, [5, 7], frozenset()).records) == [3, 4, 5, 6, 7]
    assert sorted(storage.branches(1, [5], frozenset()).records) == [3, 4, 5]
    assert sorted(storage.branches(1, [5, 7], frozenset([4, 6])).records) == [5, 7]
    assert sorted(storage.branches(1, [99, 3], frozenset()).records) == [3]
    assert storage.branches(1, [], frozenset()) == Branches({}, {})


# --- pages ---


@pytest.fixture
def filled(storage: TableStorage) -> TableStorage:
    """A storage with 30 threads; the first has 20 lanes and 100 steps, some hidden, some committed again."""
    operations: list[Operation] = []
    for number in range(100):
        event = step(f"s{number % 90}", lane=str(number % 20), hidden=number % 7 == 6)
        operations.append(append("t0", event, now=number + 1))
    operations += [append(f"t{number}", step("s0")) for number in range(1, 30)]
    storage.commit([*operations, Delete("t5", 1), Delete("t29", 1)])
    return storage


def paged(page: Callable[[Any], list[Any]], start: Any, following: Callable[[Any], Any], limit: int) -> list[Any]:
    """Everything, page by page."""
    found: list[Any] = []
    while rows := page(start):
        assert len(rows) <= limit
        found += rows
        start = following(rows[-1])
    return found


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_pages(filled: TableStorage, limit: int) -> None:
    """Pages of any size put together are the whole, forwards and backwards, without gaps or repetitions."""
    threads = paged(lambda after: filled.threads(after, limit), 0, lambda row: row[1].number, limit)
    assert [name for name, _ in threads] == [f"t{number}" for number in range(29) if number != 5]
    lanes = paged(lambda after: filled.lanes(1, after, limit), 0, lambda row: row[0], limit)
    assert [(number, name) for number, name, _ in lanes] == [(n + 1, str(n)) for n in range(20)]
    last = row_of(filled, "t0").last
    forwards = paged(lambda a: filled.scan(1, a, 1 << 62, limit, reverse=False), 0, lambda row: row.sequence, limit)
    assert sequences(forwards) == list(range(1, last + 1))
    backwards = paged(lambda b: filled.scan(1, 0, b, limit, reverse=True), 1 << 62, lambda row: row.sequence, limit)
    assert backwards == forwards[::-1]
    feed = paged(lambda after: filled.feed(after, limit), 0, lambda row: row.commit, limit)
    assert [row.commit for row in feed] == [n for n in range(1, 132) if n not in (105, 129)]


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_pages_of_steps(filled: TableStorage, limit: int) -> None:
    """Steps come newest first, each where it was committed first, in one lane and over all."""
    shown = [
        record.sequence
        for record in filled.scan(1, 0, 1 << 62, 1000, reverse=True)
        if (head := record.header).kind == fmt.KIND_STEP and not head.flags & (fmt.FLAG_REPLACES | fmt.FLAG_HIDDEN)
    ]
    assert len(shown) > 70

    def whole(lane: int | None) -> list[int]:
        first = sequences(filled.steps(1, lane, 0, limit))
        return first + (steps_before(lane, first[-1]) if first else [])

    def steps_before(lane: int | None, before: int) -> list[int]:
        found: list[int] = []
        while page := sequences(filled.steps(1, lane, before, limit)):
            assert len(page) <= limit
            found += page
            before = page[-1]
        return found

    assert whole(None) == shown
    for lane in range(1, 21):
        assert whole(lane) == [sequence for sequence in shown if header(filled, sequence).lane == lane]


def test_steps_before_any_sequence(filled: TableStorage) -> None:
    """A page of steps can begin before any sequence, be there a step of the lane or not."""
    shown = sequences(filled.steps(1, 4, 0, 1000))
    for before in range(1, row_of(filled, "t0").last + 3):
        assert sequences(filled.steps(1, 4, before, 1000)) == [each for each in shown if each < before]


def test_scan_bounds(filled: TableStorage) -> None:
    """Both ends of a scan are excluded, and it never leaves its thread."""
    for after, before in ((0, 1), (3, 4), (3, 5), (3, 9), (110, 1 << 62), (500, 600)):
        expected = [n for n in range(1, row_of(filled, "t0").last + 1) if after < n < before]
        assert sequences(filled.scan(1, after, before, 1000, reverse=False)) == expected
        assert sequences(filled.scan(1, after, before, 1000, reverse=True)) == expected[::-1]
    assert filled.scan(1, 0, 1 << 62, 0, reverse=False) == filled.scan(1, 0, 1 << 62, 0, reverse=True) == []
    assert filled.steps(1, None, 0, 0) == filled.steps(1, 1, 0, 0) == []


def test_lane_names(filled: TableStorage) -> None:
    """Names of lanes are found by number; numbers that are no lanes are left out."""
    assert filled.lane_names(1, {0, 1, 20, 21}, 1) == {1: "0", 20: "19"}
    assert filled.lane(1, "19") == (20, filled.lanes(1, 19, 1)[0][2])
    assert filled.lane(1, "20") is None
    assert filled.lane(2, "19") is None


def test_event_threads(filled: TableStorage) -> None:
    """The threads that have events are found from the events, deleted ones included."""
    assert filled.event_threads() == list(range(1, 31))


# --- delete ---


def test_delete(storage: TableStorage) -> None:
    """A deleted thread leaves a tombstone and its place in the feed, nothing else."""
    done(storage, append("other", step("s0")))
    done(storage, append("t", step("s0"), wrote("s0")))
    chain = row_of(storage).chain
    done(storage, append("t", step("s1", lane="sub")))
    chain = row_of(storage).chain
    assert done(storage, Delete("t", 9)) == Committed(2, 4, (7,))
    assert storage.thread("t") is None
    assert [name for name, _ in storage.threads(0, 10)] == ["other"]
    assert events(storage, 2) == [ThreadDeleted(Sequence(6), chain, 9)]
    assert storage.lanes(2, 0, 10) == []
    assert storage.find(2, 1, [KEYS["s0"]]) == [Found(0, 0, False, ())]
    assert storage.feed(0, 10) == [FeedRow(1, 1, 1, 3), FeedRow(4, 2, 7, 7)]


def test_delete_nothing(storage: TableStorage) -> None:
    """Deleting a thread that does not exist, or no longer exists, changes nothing."""
    assert done(storage, Delete("t", 1)) == Committed(0, 0, ())
    done(storage, append("t", step("s0")))
    done(storage, Delete("t", 1))
    before = all_rows(storage)
    assert done(storage, Delete("t", 1)) == Committed(0, 0, ())
    assert all_rows(storage) == before


def test_an_id_can_be_used_again(storage: TableStorage) -> None:
    """A deleted thread's id opens a new thread with a number of its own, also within one group."""
    done(storage, append("t", step("s0"), step("s1")))
    outcomes = storage.commit([Delete("t", 1), append("t", step("s0")), Delete("t", 1), append("t", step("s2"))])
    assert [bare(outcome) for outcome in outcomes] == [
        Committed(1, 2, (5,)),
        Committed(2, 3, (3,)),
        Committed(2, 4, (4,)),
        Committed(3, 5, (3,)),
    ]
    assert (row_of(storage).number, row_of(storage).steps) == (3, 1)
    assert storage.find(3, 1, [KEYS["s0"], KEYS["s2"]])[0].step == 0


# --- copy ---


def test_copy(storage: TableStorage) -> None:
    """A copy answers every question as its source does, under its own number and after its own opening event."""
    done(storage, append("t", step("s0"), wrote("s0"), step("s1", parent="s0"), step("s0")))
    done(storage, append("t", step("s0", lane="sub"), step("h", hidden=True), step("s2", parent="h"), now=2))
    assert done(storage, Copy("t", "u", 7)) == Committed(2, 3, (11,))
    assert storage.lanes(2, 0, 10) == storage.lanes(1, 0, 10)
    keys = [*KEYS.values(), fmt.id_key("h")]
    for lane in (1, 2):
        assert storage.find(2, lane, keys) == storage.find(1, lane, keys)
        assert storage.ancestry(2, lane, KEYS["s2"], 9) == storage.ancestry(1, lane, KEYS["s2"], 9)
        assert sequences(storage.steps(2, lane, 0, 10)) == sequences(storage.steps(1, lane, 0, 10))
    assert events(storage, 2)[1:-1] == events(storage, 1)[1:]
    assert events(storage, 2)[0] == ThreadOpened("u", 7)
    assert events(storage, 2)[-1] == ThreadCopied("t", Sequence(10), 7)
    source, target = row_of(storage), row_of(storage, "u")
    assert (target.lanes, target.steps, target.writes) == (source.lanes, source.steps, source.writes)
    assert storage.feed(2, 10) == [FeedRow(3, 2, 1, 11)]


def test_copies_part(storage: TableStorage) -> None:
    """A copy and its source go on and end without each other."""
    done(storage, append("t", step("s0")))
    done(storage, Copy("t", "u", 1))
    assert done(storage, append("u", step("s1", base=3))).sequences == (5,)
    assert done(storage, append("t", step("s2", base=3))).sequences == (4,)
    done(storage, Delete("t", 1))
    assert sequences(storage.steps(2, 1, 0, 10)) == [5, 3]
    assert done(storage, Copy("u", "t", 1)).number == 3
    done(storage, Delete("u", 1))
    assert sequences(storage.steps(3, 1, 0, 10)) == [5, 3]


def test_copy_to_what_exists(storage: TableStorage) -> None:
    """A copy to an id in use, its own included, is refused; from one that does not exist it makes nothing."""
    done(storage, append("t", step("s0")))
    done(storage, append("u", step("s0")))
    before = all_rows(storage)
    for target in ("t", "u"):
        (refused,) = storage.commit([Copy("t", target, 1)])
        assert isinstance(refused, ConflictError)
        assert (refused.thread, refused.expected, refused.actual) == (target, 0, 3)
    assert done(storage, Copy("none", "new", 1)) == Committed(0, 0, ())
    assert all_rows(storage) == before


def test_copy_within_a_group(storage: TableStorage) -> None:
    """A copy holds what the operations before it in its group appended, and nothing of those after it."""
    outcomes = storage.commit(
        [append("t", step("s0", lane="a")), Copy("t", "u", 1), append("t", step("s1")), append("u", step("s2"))]
    )
    assert [outcome.number for outcome in outcomes if isinstance(outcome, Committed)] == [1, 2, 1, 2]
    assert [name for _, name, _ in storage.lanes(2, 0, 10)] == ["a", ""]
    assert storage.find(2, 2, [KEYS["s1"], KEYS["s2"]])[0].step == 0


def test_copy_of_many_events(storage: TableStorage) -> None:
    """A thread of more events than one page is copied and deleted whole."""
    done(storage, append("t", *(step(f"s{number}") for number in range(1500))))
    done(storage, Copy("t", "u", 1))
    assert sequences(storage.steps(2, 1, 0, 2000)) == sequences(storage.steps(1, 1, 0, 2000))
    done(storage, Delete("t", 1))
    assert len(storage.scan(1, 0, 1 << 62, 2000, reverse=False)) == 1
    assert len(storage.steps(2, 1, 0, 2000)) == 1500


# --- rows that hold several things ---


def index_rows(storage: TableStorage, thread: int) -> list[int]:
    """How many rows of writes each step id of a thread has in the index: its own, and further ones."""
    keys = [key for key in rows_of(storage, INDEX) if key.startswith(fmt.number_key(thread))]
    return sorted(Counter(key[: fmt.INDEX_KEY_BYTES] for key in keys).values())


FIRST_ROWS = WRITES_IN_ROW + WRITES_IN_FURTHER_ROW


@pytest.mark.parametrize(
    ("count", "rows"),
    [
        (1, 1),
        (WRITES_IN_ROW - 1, 1),
        (WRITES_IN_ROW, 1),
        (WRITES_IN_ROW + 1, 2),
        (FIRST_ROWS, 2),
        (FIRST_ROWS + 1, 3),
        (FIRST_ROWS + WRITES_IN_FURTHER_ROW, 3),
        (FIRST_ROWS + WRITES_IN_FURTHER_ROW + 1, 4),
    ],
)
def test_many_writes_on_one_step(storage: TableStorage, count: int, rows: int) -> None:
    """All writes on a step are found in order, however many rows of the index name them, before the step and after."""
    sequences: list[int] = []
    # Ids beside it, and the same one in another lane, are kept apart.
    done(storage, append("t", wrote("s1"), wrote("s0", lane="sub")))
    early = count // 3
    for number in range(count):
        if number == early:
            done(storage, append("t", step("s0", parent="x"), wrote("s1")))
        sequences += done(storage, append("t", wrote("s0", task=str(number)))).sequences
    (found,) = storage.find(1, 1, [KEYS["s0"]])
    (committed,) = storage.steps(1, 1, 0, 10)
    assert found == Found(committed.sequence, committed.sequence, False, tuple(sequences))
    assert len(storage.find(1, 1, [KEYS["s1"]])[0].writes) == 2
    assert len(storage.find(1, 2, [KEYS["s0"]])[0].writes) == 1
    assert index_rows(storage, 1) == [1, 1, rows]
    done(storage, append("t", step("s0"), step("s0", hidden=True)))
    newest = row_of(storage).last - 1
    assert storage.find(1, 1, [KEYS["s0"]]) == [found._replace(step=newest)]
    assert audit(storage).breaches == []
    done(storage, Copy("t", "u", 1))
    assert storage.find(2, 1, [KEYS["s0"]]) == [found._replace(step=newest)]
    assert index_rows(storage, 2) == [1, 1, rows]
    (more,) = done(storage, append("u", wrote("s0"))).sequences
    assert storage.find(2, 1, [KEYS["s0"]])[0].writes == (*sequences, more)
    assert storage.find(1, 1, [KEYS["s0"]])[0].writes == tuple(sequences)
    assert audit(storage).breaches == []
    done(storage, Delete("t", 1))
    assert index_rows(storage, 1) == []
    assert storage.find(2, 1, [KEYS["s0"]])[0].writes == (*sequences, more)


def test_many_writes_are_pruned(log: Log) -> None:
    """A step with several rows of writes keeps all of them when others are pruned, and none when it is gone."""
    thread = log.thread("t")
    base = thread.append([step("s0"), step("s1")])
    for number in range(FIRST_ROWS + 5):
        thread.append([wrote("s0", task=f"a {number}"), wrote("s1", [b"%d" % number], task=f"b {number}")])
    pending = thread.writes("s1")
    assert len(pending) == FIRST_ROWS + 5
    storage = log.storage
    assert isinstance(storage, TableStorage)
    assert index_rows(storage, 1) == [3, 3]
    thread.prune([base])
    assert thread.writes("s1") == pending
    assert thread.writes("s0") == []
    assert log.audit().breaches == []
    thread.copy_to("u")
    log.seal()
    assert log.thread("u").writes("s1") == pending
    thread.delete()
    assert index_rows(storage, 1) == []
    assert log.thread("u").writes("s1") == pending


def test_moment_and_newest(storage: TableStorage) -> None:
    """The moment is another one after each commit and stays otherwise; the newest commit is the last of the feed."""
    moments = [storage.moment(), storage.moment()]
    assert moments[0] == moments[1]
    assert storage.newest() == 0
    for operation in (append("t", step("a")), append("t", step("b")), Delete("t", 1), append("t", step("c"))):
        storage.commit([operation])
        moments.append(storage.moment())
    assert len(set(moments)) == 5
    assert moments == sorted(moments)
    assert storage.newest() == 4
    storage.commit([append("t", step("c"), expected_head=9)])
    assert storage.newest() == 4


def test_feed_over_rows(storage: TableStorage) -> None:
    """The feed is the same over the borders of its rows, from any place on, and with any part of it deleted."""
    appended = {}
    for commit in range(1, 4 * COMMITS_IN_ROW + 2):
        # One thread fills a whole row of the feed by itself, another what stands at the borders.
        name = "inner" if commit // COMMITS_IN_ROW == 2 else "border" if commit % COMMITS_IN_ROW in (0, 63) else "t"
        outcome = done(storage, append(name, step(f"s{commit}")))
        assert outcome.commit == commit
        row = row_of(storage, name)
        first = row.last - len(outcome.sequences) + 1 if commit > 1 and outcome.sequences[0] != 3 else 1
        appended[commit] = FeedRow(commit, row.number, first, row.last)

    def check() -> None:
        expected = [appended[commit] for commit in sorted(appended)]
        assert storage.feed(0, 1000) == expected
        for after in (*range(60, 70), 126, 127, 128, 129, 191, 192, 193, 255, 256, 257, 300, 1000):
            assert storage.feed(after, 1000) == [row for row in expected if row.commit > after]
            assert storage.feed(after, 3) == [row for row in expected if row.commit > after][:3]
        assert {fmt.read_number(key) for key in rows_of(storage, FEED)} == {at // COMMITS_IN_ROW for at in appended}
        assert audit(storage).breaches == []

    check()
    for name in ("inner", "border", "t"):
        number = row_of(storage, name).number
        outcome = done(storage, Delete(name, 1))
        for commit in [commit for commit, row in appended.items() if row.thread == number]:
            del appended[commit]
        appended[outcome.commit] = FeedRow(outcome.commit, number, *outcome.sequences * 2)
        check()
    assert sorted(appended) == [258, 259, 260]


# --- restart ---


def restart(storage: TableStorage, *entries: Any, thread: str = "t") -> Append:
    """The append that a pruning makes."""
    row = row_of(storage, thread)
    first = ThreadPruned(thread, Sequence(row.last), row.chain, 9, row.created_at)
    return append(thread, first, *entries, expected_head=row.last, incarnation=row.number, restart=True)


def test_restart(storage: TableStorage) -> None:
    """A restarted thread holds only what it was restarted with, at sequences that go on, its lanes counted anew."""
    done(storage, append("t", step("s0", lane="a"), step("s1", lane="b"), wrote("s0", lane="a"), now=3))
    chain = row_of(storage).chain
    outcome = done(storage, restart(storage, step("s1", lane="b"), wrote("s1", lane="b")))
    assert outcome == Committed(1, 2, (7, 9, 10))
    row = row_of(storage)
    assert (row.first, row.last, row.lanes, row.steps, row.writes, row.created_at) == (7, 10, 1, 1, 1, 3)
    assert events(storage)[0] == ThreadPruned("t", Sequence(6), chain, 9, 3)
    assert storage.lanes(1, 0, 10)[0][:2] == (1, "b")
    assert storage.lane(1, "a") is None
    assert storage.find(1, 1, [KEYS["s1"], KEYS["s0"]]) == [
        Found(9, 9, False, (10,)),
        Found(0, 0, False, ()),
    ]
    assert storage.feed(0, 10) == [FeedRow(2, 1, 7, 10)]
    assert done(storage, append("t", step("s2", lane="b", base=9), step("s3", lane="a"))).sequences == (11, 13)


def test_restart_with_nothing(storage: TableStorage) -> None:
    """A thread can be restarted with nothing but the event that says so, and be used, copied and deleted then."""
    done(storage, append("t", step("s0")))
    done(storage, restart(storage))
    assert (row_of(storage).first, row_of(storage).last, row_of(storage).lanes) == (4, 4, 0)
    done(storage, Copy("t", "u", 1))
    assert done(storage, append("u", step("s0"))).sequences == (7,)
    done(storage, restart(storage))
    assert done(storage, Delete("t", 1)).sequences == (6,)


def test_copy_of_a_restarted_thread(storage: TableStorage) -> None:
    """What was copied from a pruned thread stands at the same sequences and is based on the same steps."""
    done(storage, append("t", step("s0"), step("s1")))
    done(storage, restart(storage, step("s1")))
    done(storage, append("t", step("s2", base=7)))
    done(storage, Copy("t", "u", 1))
    assert sorted(storage.branches(2, [8], frozenset()).records) == [7, 8]
    assert isinstance(events(storage, 2)[0], ThreadPruned)


# --- seal ---


def grown(storage: TableStorage) -> None:
    """Thread 1 with 12 events: steps at 3 to 8 in a line, writes, and a step in another lane."""
    done(storage, append("t", step("s0")))
    for number in range(1, 6):
        done(storage, append("t", step(f"s{number % 5}", parent=f"s{number - 1}", base=number + 2)))
    done(storage, append("t", wrote("s0"), step("s0", lane="sub"), wrote("s1", [noise(), noise()])))


def answers(storage: TableStorage) -> object:
    """All that sealing must not change."""
    keys = list(KEYS.values())
    return (
        storage.scan(1, 0, 1 << 62, 100, reverse=False)[::-1] == storage.scan(1, 0, 1 << 62, 100, reverse=True),
        events(storage),
        storage.payloads(1, range(20)),
        [sequences(storage.steps(1, lane, before, 100)) for lane in (None, 1, 2) for before in range(15)],
        [storage.find(1, lane, keys) for lane in (1, 2)],
        [storage.ancestry(1, lane, key, 9) for lane in (1, 2) for key in keys],
        [sorted(storage.branches(1, [at], frozenset()).records) for at in range(15)],
        [each.sequence for each in storage.survey(1, 0, 100)],
        storage.feed(0, 10),
        list(storage.event_threads()),
    )


def test_seal(storage: TableStorage) -> None:
    """The oldest loose events move into a segment, whole; nothing that is asked for changes, nor the chain."""
    grown(storage)
    before, row = answers(storage), row_of(storage)
    for first, last in ((1, 4), (5, 5), (6, 12)):
        operation = sealing(storage, "t", last)
        assert storage.commit([operation]) == [Committed(1, 0, ())]
        assert sorted(loose(storage, 1)) == [*range(last + 1, 13)]
        assert storage.segments(1)[-1] == (first, last, len(operation.segment))
        assert answers(storage) == before
        now = row_of(storage)
        assert now.sealed == last
        assert now.loose_bytes == sum(map(len, loose(storage, 1).values()))
        assert now.stored_bytes == now.loose_bytes + sum(size for _, _, size in storage.segments(1))
        assert (now.chain, now.last, now.updated_at) == (row.chain, row.last, row.updated_at)
    (outcome,) = storage.commit([append("t", step("s4", base=8), now=9)])
    assert outcome == Committed(1, 8, (13,), 1, len(loose(storage, 1)[13]))


def test_seal_what_is_not_loose(storage: TableStorage) -> None:
    """Events that are sealed already, are gone, or are not the oldest ones, are not sealed, without an error."""
    grown(storage)
    early, late = sealing(storage, "t", 4), sealing(storage, "t", 9)
    nothing = Committed(0, 0, ())
    for operation in (
        early._replace(thread_id="none"),
        early._replace(number=2),
        early._replace(first=2),
        early._replace(first=0),
        early._replace(last=13),
    ):
        before = all_rows(storage)
        assert storage.commit([operation]) == [nothing]
        assert all_rows(storage) == before
    assert storage.commit([early, late, early]) == [Committed(1, 0, ()), nothing, nothing]
    done(storage, restart(storage, step("s0")))
    before = all_rows(storage)
    assert storage.commit([early, late]) == [nothing, nothing]
    assert all_rows(storage) == before
    assert storage.segments(1) == []


def test_seal_within_a_group(storage: TableStorage) -> None:
    """A sealing stands among other operations, and sees what those before it did."""
    grown(storage)
    operation = sealing(storage, "t")
    outcomes = storage.commit(
        [append("t", step("s4", base=8)), operation, Copy("t", "u", 1), Delete("t", 1), operation]
    )
    assert [bare(outcome) for outcome in outcomes] == [
        Committed(1, 8, (13,)),
        Committed(1, 0, ()),
        Committed(2, 9, (14,)),
        Committed(1, 10, (14,)),
        Committed(0, 0, ()),
    ]
    assert [span[:2] for span in storage.segments(2)] == [(1, 12)]
    assert sorted(loose(storage, 2)) == [13, 14]
    assert storage.segments(1) == []
    assert sequences(storage.steps(2, 1, 0, 10)) == [7, 6, 5, 4, 3]


def test_seal_over_a_lost_event(storage: TableStorage) -> None:
    """If one of the events is not there, the sealing fails and changes nothing."""
    grown(storage)
    operation = sealing(storage, "t")
    record = loose(storage, 1)[7]
    set_record(storage, 1, 7, None)
    before = all_rows(storage)
    with pytest.raises(CorruptionError) as caught:
        storage.commit([operation])
    assert (caught.value.thread, caught.value.sequence) == ("t", 7)
    assert all_rows(storage) == before
    set_record(storage, 1, 7, record)


def test_branches_begin_at_bases(storage: TableStorage) -> None:
    """A branch is followed down to the first state that is kept, and not beyond."""
    grown(storage)
    reader = Reader(storage)
    bases = {at: codec.encode_base(reader.state(1, at)) for at in (4, 7)}
    storage.commit([sealing(storage, "t", 8, bases)])
    assert storage.bases(1) == bases
    for at, records, base in ((8, [8], 7), (7, [], 7), (6, [5, 6], 4), (4, [], 4), (3, [3], 0), (11, [11], 0)):
        found = storage.branches(1, [at], frozenset())
        assert (sorted(found.records), found.bases) == (records, {base: bases[base]} if base else {})
    both = storage.branches(1, [8, 6], frozenset([5]))
    assert (sorted(both.records), both.bases) == ([6, 8], {7: bases[7]})
    assert drop_bases(storage) == 2
    assert sorted(storage.branches(1, [8], frozenset()).records) == [3, 4, 5, 6, 7, 8]
    assert {at: Reader(storage).state(1, at) for at in range(3, 9)} == {at: reader.state(1, at) for at in range(3, 9)}


def test_kept_states_survive_a_copy(storage: TableStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy has the same segments in the same groups, and keeps the same states; so has a copy of it."""
    done(storage, append("t", step("s0", {"x": noise()})))
    for number in range(30):
        done(storage, append("t", step(f"s{number + 1}", {"x": noise()}, base=number + 3)))
    reader = Reader(storage)
    storage.commit([sealing(storage, "t", 7)])
    monkeypatch.setattr(segments, "GROUP_BYTES", len(storage.last_group(1).plain) * 2)
    for last in range(12, 33, 5):
        bases = {at: codec.encode_base(reader.state(1, at)) for at in (last - 2, last)}
        storage.commit([sealing(storage, "t", last, bases)])
    truth = reader.states(1, range(3, 34))
    kept = storage.bases(1)
    assert list(kept) == [10, 12, 15, 17, 20, 22, 25, 27, 30, 32]
    spans = [span[:2] for span in storage.segments(1)]
    groups = [get_segment(storage, 1, last)[24:32] for _, last in spans]
    assert 1 < len(set(groups)) < len(groups)
    done(storage, Copy("t", "u", 1))
    done(storage, Copy("u", "v", 1))
    done(storage, Delete("t", 1))
    assert storage.bases(1) == {}
    for number in (2, 3):
        assert storage.bases(number) == kept
        assert [span[:2] for span in storage.segments(number)] == spans
        assert [get_segment(storage, number, last)[24:32] for _, last in spans] == groups
        for at in (9, 10, 12, 16, 31, 32):
            assert Reader(storage).state(number, at) == truth[at]
            found = storage.branches(number, [at], frozenset())
            assert list(found.bases) == ([max(base for base in kept if base <= at)] if at >= 10 else [])
        # What is sealed next goes on from the copy's own group.
        name = "uv"[number - 2]
        (at,) = done(storage, append(name, step("s", {"x": noise()}, base=33))).sequences
        storage.commit([sealing(storage, name)])
        assert storage.segments(number)[-1][:2] == (33, at)
        assert Reader(storage).state(number, at).step_id == "s"
    assert audit(storage).breaches == []


def test_survey_of_damage(storage: TableStorage) -> None:
    """A damaged segment is told once, where it ends, a damaged loose record in its place; the others are there."""
    grown(storage)
    storage.commit([sealing(storage, "t", 4)])
    storage.commit([sealing(storage, "t", 8)])
    segment, record = get_segment(storage, 1, 8), get_record(storage, 1, 10)
    set_segment(storage, 1, 8, segment[:-1])
    set_record(storage, 1, 10, record[:-1])
    found = storage.survey(1, 0, 100)
    assert [(each.sequence, isinstance(each.record, CorruptionError)) for each in found] == [
        *((sequence, False) for sequence in (1, 2, 3, 4)),
        (8, True),
        (9, False),
        (10, True),
        (11, False),
        (12, False),
    ]
    assert [each.loose_bytes > 0 for each in found] == [each.sequence > 8 for each in found]
    assert [each.sequence for each in storage.survey(1, 2, 3)] == [3, 4, 8]
    assert [each.sequence for each in storage.survey(1, 6, 2)] == [8, 9]
    set_segment(storage, 1, 8, segment)
    set_record(storage, 1, 10, record)


# --- rewrite ---


def test_rewrite(storage: TableStorage) -> None:
    """What to do with a thread can be decided while nobody else can change it, from all that the log holds."""
    done(storage, append("t", step("s0"), step("s1")))

    def decide(row: ThreadRow) -> Append:
        assert row == storage.thread("t")
        assert sequences(storage.steps(1, 1, 0, 10)) == [4, 3]
        return restart(storage, step("s1"))

    assert done(storage, Rewrite("t", decide)) == Committed(1, 2, (5, 7))
    assert sequences(storage.steps(1, 1, 0, 10)) == [7]
    assert done(storage, Rewrite("t", lambda row: Delete("t", 1))) == Committed(1, 3, (8,))
    assert storage.thread("t") is None


def test_rewrite_that_does_nothing(storage: TableStorage) -> None:
    """A decision to do nothing, or about a thread that does not exist, changes nothing."""
    done(storage, append("t", step("s0")))
    before = all_rows(storage)
    assert done(storage, Rewrite("t", lambda row: None)) == Committed(0, 0, ())
    assert done(storage, Rewrite("none", lambda row: pytest.fail("there is no thread"))) == Committed(0, 0, ())
    assert all_rows(storage) == before


def test_rewrite_that_is_refused(storage: TableStorage) -> None:
    """A decision that cannot be carried out, or cannot be made, changes nothing."""

    def undecided(row: ThreadRow) -> None:
        raise ConflictError("cannot decide", thread="t", expected=1, actual=2)

    done(storage, append("t", step("s0")))
    before = all_rows(storage)
    for decide in (lambda row: append("t", step("s1"), expected_head=99), undecided):
        (refused,) = storage.commit([Rewrite("t", decide)])
        assert isinstance(refused, ConflictError)
    assert all_rows(storage) == before


# --- reading while writing, and the end ---


def test_readers_see_whole_groups(storage: TableStorage) -> None:
    """A reader sees all of a group or nothing of it, at any moment."""
    stop = threading.Event()
    torn: list[object] = []

    def read() -> None:
        while not stop.is_set():
            page = storage.scan(1, 0, 1 << 62, 1000, reverse=False)
            if len(page) % 10 not in (0, 2):
                torn.append(len(page))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for group in range(30):
        storage.commit([append("t", *(step(f"{group} {n} {m}") for m in range(5))) for n in range(2)])
    stop.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_large_records(storage: TableStorage) -> None:
    """A record of many pages comes back as it was written."""
    big = noise(3_000_000)
    done(storage, append("t", step("s0", {"x": big})))
    assert storage.read(1, [3])[3].payload == storage.payloads(1, [3])[3] == big


def test_log_id(storage: TableStorage) -> None:
    """Each log has an id of its own."""
    assert len(storage.log_id) == 16
    assert storage.log_id != MemoryStorage().log_id


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_use_after_close(kind: str, tmp_path: Any) -> None:
    """A closed storage refuses every call; closing it again is harmless."""
    storage: TableStorage = LmdbStorage(tmp_path / "log") if kind == "file" else MemoryStorage()
    done(storage, append("t", step("s0")))
    storage.close()
    storage.close()
    calls: list[Callable[[], object]] = [
        lambda: storage.commit([append("t", step("s1"))]),
        lambda: storage.thread("t"),
        lambda: storage.threads(0, 1),
        lambda: storage.catalogue(Query(1)),
        lambda: storage.lane(1, ""),
        lambda: storage.lanes(1, 0, 1),
        lambda: storage.lane_names(1, {1}, 1),
        lambda: storage.read(1, [1]),
        lambda: storage.payloads(1, [1]),
        lambda: storage.survey(1, 0, 1),
        lambda: storage.segments(1),
        lambda: storage.bases(1),
        lambda: storage.last_group(1),
        lambda: storage.give_back(),
        lambda: storage.branches(1, [1], frozenset()),
        lambda: storage.scan(1, 0, 9, 1, reverse=False),
        lambda: storage.steps(1, 1, 0, 1),
        lambda: storage.find(1, 1, [KEYS["s0"]]),
        lambda: storage.ancestry(1, 1, KEYS["s0"], 9),
        lambda: storage.feed(0, 1),
        lambda: storage.newest(),
        lambda: storage.moment(),
        lambda: list(storage.derived()),
        lambda: storage.event_threads(),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="closed"):
            call()
