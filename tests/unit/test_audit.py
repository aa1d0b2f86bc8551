"""Each invariant of SPEC.md, section 11, broken on purpose: the audit names it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import msgspec
import pytest

from building import (
    append,
    drop_bases,
    get_record,
    get_row,
    get_segment,
    loose,
    noise,
    parts_of,
    repack,
    sealing,
    set_record,
    set_row,
    set_segment,
    step,
    wrote,
)
from stepwell import CorruptionError, Log, codec, pruning
from stepwell import format as fmt
from stepwell.audit import Report, audit
from stepwell.events import (
    Event,
    ItemPut,
    LaneOpened,
    Sequence,
    StepCommitted,
    ThreadDeleted,
    ThreadOpened,
    ThreadPruned,
    WritesRecorded,
)
from stepwell.patch import Blob, Keep, Merge, Ref, Splice
from stepwell.reader import Reader
from stepwell.storage import (
    Copy,
    Delete,
    FeedRow,
    Group,
    Storage,
    pack_name,
    pack_row,
    segments,
    unpack_lane,
    unpack_thread,
)
from stepwell.storage.feed import pack_feed, row_number
from stepwell.storage.index import IndexRow, pack_further, pack_index
from stepwell.storage.memory import MemoryStorage
from stepwell.storage.segments import pack
from stepwell.storage.tables import DERIVED, FEED, INDEX, LANES, NAMES, SEGMENTS, THREADS

Change = Callable[[int, fmt.Header, bytes], tuple[fmt.Header, bytes]]


@pytest.fixture
def broken() -> MemoryStorage:
    """A sound log, to be broken.

    Thread 1: 1 opened, 2 lane "", 3 s0, 4 s1, 5 writes, 6 s0 again, 7 lane "sub", 8 s0, 9 s2, 10 hidden.
    Thread 2: the same.
    """
    storage = MemoryStorage()
    content = noise(500)
    for thread in ("t", "u"):
        storage.commit(
            [
                append(thread, step("s0", {"x": content})),
                append(thread, step("s1", {"x": content, "y": b"y"}, parent="s0", base=3)),
                append(thread, wrote("s1", [content]), step("s0")),
                append(thread, step("s0", lane="sub")),
                append(thread, step("s2", parent="s1", base=4), step("h", hidden=True)),
            ]
        )
    assert audit(storage).breaches == []
    return storage


def restamped(storage: Storage, change: Change, thread: int = 1) -> None:
    """Write all records of a thread anew, some changed, with checksums and a chain that are right for them."""
    chain = fmt.CHAIN_SEED
    for record in storage.scan(thread, 0, 1 << 62, 1000, reverse=False):
        sequence = record.sequence
        header, body = change(sequence, record.header, record.body)
        fields = (header.kind, header.flags, fmt.FORM_PLAIN, header.lane, header.commit)
        rest = (header.created_at, header.base, header.previous, fmt.body_digest(body))
        stamp, chain = fmt.stamp(thread, sequence, *fields, *rest, chain)
        set_record(storage, thread, sequence, stamp + body)


def with_header(storage: Storage, at: int, **fields: int) -> None:
    """Change fields in the header of one event."""
    restamped(storage, lambda sequence, header, body: (header._replace(**fields) if sequence == at else header, body))


def with_event(storage: Storage, at: int, event: Event) -> None:
    """Put another event in the place of one."""
    body = codec.encode(event)
    plain = codec.plain_body(body.data, body.form)
    restamped(
        storage,
        lambda sequence, header, old: (header._replace(kind=body.kind), plain) if sequence == at else (header, old),
    )


def found(storage: Storage, sequence: int | None = None) -> set[str]:
    """The invariants that the audit names; at one place, or anywhere."""
    breaches = audit(storage).breaches
    return {breach.invariant for breach in breaches if sequence is None or breach.sequence == sequence}


def named(storage: Storage, invariant: str, sequence: int | None) -> bool:
    """Whether the audit names an invariant at a place of thread 1."""
    places = [(breach.invariant, breach.thread, breach.sequence) for breach in audit(storage).breaches]
    return (invariant, 1 if sequence is not None else None, sequence) in places


# --- sound logs ---


def test_restamping_breaks_nothing(broken: MemoryStorage) -> None:
    """Records that are written anew as they were, in another form, are as sound as before but for their size."""
    restamped(broken, lambda sequence, header, body: (header, body))
    assert found(broken) <= {"I6"}


def test_report(log: Log) -> None:
    """A sound log has no breaches, and the report counts threads and events, deleted threads included."""
    assert log.audit() == Report(0, 0, [])
    log.thread("t").append([step("s0"), wrote("s0")])
    log.thread("u").append([step("s0")])
    log.thread("u").copy_to("v")
    log.thread("u").delete()
    log.thread("t").prune([3])
    assert log.audit() == Report(3, 4 + 4 + 1, [])


def test_every_operation_is_sound(log: Log) -> None:
    """After each of a long row of operations of all kinds there is no breach."""
    thread = log.thread("t")
    for number in range(4):
        thread.append([step(f"s{number}", {"x": noise()}), wrote(f"s{number}", [noise()]), step("s0", lane="sub")])
        thread.append([step("s0", {"x": noise()}), step(f"h{number}", hidden=True)])
        assert log.audit().breaches == []
        thread.copy_to(f"copy {number}")
        assert log.audit().breaches == []
        thread.prune([found.sequence for found in thread.steps()][:2])
        assert log.audit().breaches == []
        log.thread(f"copy {number}").prune([])
        log.thread(f"copy {number}").copy_to(f"copy of {number}")
        log.thread(f"copy {number}").delete()
        assert log.audit().breaches == []


# --- I1: no gaps, and a beginning ---


@pytest.mark.parametrize("sequence", [3, 4, 5, 9])
def test_i1_event_is_missing(broken: MemoryStorage, sequence: int) -> None:
    """I1: an event that is gone is missed where the next one stands."""
    set_record(broken, 1, sequence, None)
    assert named(broken, "I1", sequence + 1)


def test_i1_last_event_is_missing(broken: MemoryStorage) -> None:
    """An event that is gone from the end is missed in the catalogue."""
    set_record(broken, 1, 10, None)
    assert found(broken) == {"I6"}


def test_i1_all_events_are_missing(broken: MemoryStorage) -> None:
    """A thread whose events are all gone is missed in the catalogue."""
    for sequence in range(1, 11):
        set_record(broken, 1, sequence, None)
    assert "I6" in found(broken)


def test_i1_beginning_is_missing(broken: MemoryStorage) -> None:
    """I1: a thread cannot begin in its midst."""
    set_record(broken, 1, 1, None)
    assert named(broken, "I1", 2)


@pytest.mark.parametrize("event", [step("s"), wrote("s"), LaneOpened("x"), ThreadDeleted(Sequence(7), fmt.CHAIN_SEED)])
def test_i1_other_beginning(broken: MemoryStorage, event: Event) -> None:
    """I1: a thread begins with an event that says how it came to be, in its right place."""
    with_event(broken, 1, event)
    assert named(broken, "I1", 1)


@pytest.mark.parametrize(
    "event",
    [
        ThreadOpened("t"),
        ThreadPruned("t", Sequence(3), fmt.CHAIN_SEED, 1),
        ThreadDeleted(Sequence(3), fmt.CHAIN_SEED),
    ],
)
def test_i1_beginning_again(broken: MemoryStorage, event: Event) -> None:
    """I1: what begins a thread, or ends it, stands nowhere in its midst."""
    with_event(broken, 4, event)
    assert named(broken, "I1", 4)


def test_i1_pruned_beginning(broken: MemoryStorage) -> None:
    """I1: a pruned thread begins after what was removed."""
    with Log(broken) as log:
        log.thread("t").prune([4])
        assert audit(broken).breaches == []
        record = broken.scan(1, 0, 1 << 62, 1, reverse=False)[0]
        first, header = record.sequence, record.header
        body = codec.encode(ThreadPruned("t", Sequence(first - 2), fmt.CHAIN_SEED, 1))
        fields = (header.kind, 0, body.form, 0, header.commit, header.created_at, 0, 0, body.digest)
        stamp, _ = fmt.stamp(1, first, *fields, fmt.CHAIN_SEED)
        set_record(broken, 1, first, stamp + body.data)
        assert named(broken, "I1", first)


# --- I2: records ---


def flipped(record: bytes, position: int) -> bytes:
    """The record with one bit changed."""
    return record[:position] + bytes((record[position] ^ 1,)) + record[position + 1 :]


@pytest.mark.parametrize("sequence", range(1, 11))
def test_i2_changed_bits(broken: MemoryStorage, sequence: int) -> None:
    """I2: a record of which any part has changed is named, whatever kind of event it is."""
    record = get_record(broken, 1, sequence)
    for position in (0, 1, 2, 4, 8, 16, 24, 32, 40, 64, len(record) // 2, len(record) - 1):
        set_record(broken, 1, sequence, flipped(record, position))
        assert named(broken, "I2", sequence), position
    for cut in (b"", record[:30], record[:64], record[:-1]):
        set_record(broken, 1, sequence, cut)
        assert named(broken, "I2", sequence)
    set_record(broken, 1, sequence, record)
    assert audit(broken).breaches == []


def test_i2_other_place(broken: MemoryStorage) -> None:
    """I2: a sound record in a place that is not its own is named."""
    for thread, sequence in product((1, 2), range(1, 11)):
        if (thread, sequence) != (1, 4):
            set_record(broken, 1, 4, get_record(broken, thread, sequence))
            assert named(broken, "I2", 4)


def test_i2_newer_record(broken: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """I2: a record that a later version of the library wrote cannot be checked."""
    monkeypatch.setattr(fmt, "FORMAT_VERSION", 9)
    restamped(broken, lambda sequence, header, body: (header, body))
    monkeypatch.undo()
    assert named(broken, "I2", 4)


def test_i2_other_kind(broken: MemoryStorage) -> None:
    """I2: an event of another kind than its header says is named, checksum right or not."""
    with_header(broken, 5, kind=fmt.KIND_STEP)
    assert named(broken, "I2", 5)


# --- I3: the chain ---


@pytest.mark.parametrize("sequence", [1, 4, 10])
def test_i3_changed_chain(broken: MemoryStorage, sequence: int) -> None:
    """I3: a record whose own chain hash has changed is named, and so is the one after it."""
    record = get_record(broken, 1, sequence)
    set_record(broken, 1, sequence, flipped(record, 50))
    assert named(broken, "I3", sequence)
    assert named(broken, "I3", sequence + 1) == (sequence < 10)


def test_i3_rewritten_history(broken: MemoryStorage) -> None:
    """I3: an event that was replaced by another sound one is found by the chain of those after it."""
    records = {sequence: record for sequence, record in loose(broken, 1).items() if sequence > 4}
    with_event(broken, 4, step("s1", {"x": b"forged"}, parent="s0", base=3))
    for sequence, record in records.items():
        set_record(broken, 1, sequence, record)
    assert found(broken, 4) == set()
    assert named(broken, "I3", 5)


# --- I4: lanes ---


@pytest.mark.parametrize("sequence", [3, 5, 9, 10])
def test_i4_lane_that_was_not_opened(broken: MemoryStorage, sequence: int) -> None:
    """I4: a step, and writes, must stand in a lane that was opened."""
    with_header(broken, sequence, lane=3)
    assert named(broken, "I4", sequence)


@pytest.mark.parametrize("lane", [0, 1, 3])
def test_i4_lanes_out_of_order(broken: MemoryStorage, lane: int) -> None:
    """I4: lanes are numbered in the order in which they are opened."""
    with_header(broken, 7, lane=lane)
    assert named(broken, "I4", 7)


def test_i4_lane_used_before_it_was_opened(broken: MemoryStorage) -> None:
    """I4: a lane is opened before it is used."""
    with_header(broken, 4, lane=2, base=0)
    assert named(broken, "I4", 4)


# --- I5: steps ---


@pytest.mark.parametrize(
    ("sequence", "flags"), [(3, fmt.FLAG_REPLACES), (4, fmt.FLAG_REPLACES), (6, 0), (8, fmt.FLAG_REPLACES)]
)
def test_i5_flag_of_repetition(broken: MemoryStorage, sequence: int, flags: int) -> None:
    """I5: a step is marked as a repetition if its id was committed before in its lane, and only then."""
    with_header(broken, sequence, flags=flags)
    assert named(broken, "I5", sequence)


@pytest.mark.parametrize(("sequence", "previous"), [(3, 2), (4, 0), (4, 5), (6, 4), (6, 0), (8, 3), (9, 3), (9, 6)])
def test_i5_previous_step(broken: MemoryStorage, sequence: int, previous: int) -> None:
    """I5: a step names the step before it in its lane, a repetition the first commit of its id."""
    with_header(broken, sequence, previous=previous)
    assert named(broken, "I5", sequence)


@pytest.mark.parametrize(("sequence", "base"), [(4, 1), (4, 2), (9, 5), (9, 8), (9, 99), (4, 4), (4, 9), (8, 3)])
def test_i5_base(broken: MemoryStorage, sequence: int, base: int) -> None:
    """I5: a base is an earlier step of the same lane."""
    with_header(broken, sequence, base=base)
    assert named(broken, "I5", sequence)


def test_i5_patch_that_does_not_fit(broken: MemoryStorage) -> None:
    """I5: a step's patch fits the state of its base."""
    misfit = StepCommitted("s2", "s1", Merge((), {"x": Splice((Keep(0, 9),))}), Merge())
    with_event(broken, 9, misfit)
    assert named(broken, "I5", 9)


@pytest.mark.parametrize("fields", [{"base": 3}, {"previous": 3}, {"flags": fmt.FLAG_HIDDEN}])
@pytest.mark.parametrize("sequence", [1, 2, 5])
def test_i5_of_other_events(broken: MemoryStorage, sequence: int, fields: dict[str, int]) -> None:
    """I5: only a step has a base, a step before it, and flags."""
    with_header(broken, sequence, **fields)
    assert named(broken, "I5", sequence)


# --- I6: derived rows ---


@pytest.mark.parametrize("table", DERIVED)
def test_i6_every_row(table: str) -> None:
    """I6: each row of each derived table is named if it is gone, has another value or another key."""
    again = rebuilt()
    for name, key, value in list(again.derived()):
        if name != table:
            continue
        for other in (None, value + b"x", value[:-1] if value else b"x"):
            set_row(again, table, key, other)
            assert any(breach.invariant == "I6" and table in breach.what for breach in audit(again).breaches)
        set_row(again, table, key, None)
        set_row(again, table, key + b"\0", value)
        breaches = [breach.what for breach in audit(again).breaches]
        assert len([what for what in breaches if table in what]) == 2
        set_row(again, table, key + b"\0", None)
        set_row(again, table, key, value)
    assert audit(again).breaches == []


def rebuilt() -> MemoryStorage:
    """A log with a pruned, a copied and a deleted thread."""
    storage = MemoryStorage()
    for thread in ("t", "u"):
        storage.commit([append(thread, step("s0"), step("s1", parent="s0"), wrote("s1"), step("s0", lane="sub"))])
    storage.commit([Copy("t", "v", 1), Delete("u", 1)])
    storage.commit([append(fmt.ITEMS_THREAD_ID, item("k"), item("k"), item("x" * 99, b"y" * 2000))] * 3)
    row = storage.thread("v")
    assert row is not None
    storage.commit([pruning.plan(storage, "v", row, pruning.Kept(frozenset([4])))])
    assert audit(storage).breaches == []
    return storage


def test_i6_head_of_a_lane(broken: MemoryStorage) -> None:
    """I6: a lane whose row names another head, tip or count is named."""
    key = fmt.lane_key(1, 1)
    data = get_row(broken, LANES, key)
    assert data is not None
    for field in ("head", "tip", "steps", "replaced"):
        row = unpack_lane(data)
        setattr(row, field, getattr(row, field) + 1)
        set_row(broken, LANES, key, pack_row(row))
        assert [breach.invariant for breach in audit(broken).breaches] == ["I6"]


def test_i6_catalogue(broken: MemoryStorage) -> None:
    """I6: a thread whose row says anything that its events do not is named."""
    key = fmt.number_key(1)
    data = get_row(broken, THREADS, key)
    assert data is not None
    for field in ("number", "first", "last", "lanes", "steps", "writes", "stored_bytes", "created_at", "updated_at"):
        row = unpack_thread(data)
        setattr(row, field, getattr(row, field) + 1)
        set_row(broken, THREADS, key, pack_row(row))
        assert [breach.invariant for breach in audit(broken).breaches] == ["I6"]
    for field, value in (("deleted", True), ("chain", bytes(16)), ("name_hash", bytes(16))):
        row = unpack_thread(data)
        setattr(row, field, value)
        set_row(broken, THREADS, key, pack_row(row))
        assert [breach.invariant for breach in audit(broken).breaches] == ["I6"]


def test_i6_rows_of_nobody(broken: MemoryStorage) -> None:
    """I6: rows of a thread, lane, step or commit that is not there are named."""
    key = fmt.id_key("nobody")
    for table, row_key, value in (
        (THREADS, fmt.number_key(99), b"x"),
        (NAMES, fmt.name_key(0, b"nobody"), pack_name(99, b"nobody")),
        (NAMES, fmt.name_key(1, b"nobody"), pack_name(9, b"nobody")),
        (LANES, fmt.lane_key(1, 9), b"x"),
        (INDEX, fmt.index_key(1, 1, key), pack_index(IndexRow(4, 4))),
        (INDEX, fmt.index_further_key(1, 1, fmt.id_key("s1"), 5), pack_further((5,))),
        (FEED, fmt.number_key(row_number(99)), pack_feed([FeedRow(99, 1, 1, 2)])),
    ):
        set_row(broken, table, row_key, value)
        (breach,) = audit(broken).breaches
        assert (breach.invariant, breach.thread, breach.sequence) == ("I6", None, None)
        assert table in breach.what
        assert row_key.hex() in breach.what
        set_row(broken, table, row_key, None)


# --- I7: commits ---


@pytest.mark.parametrize(("sequence", "commit"), [(4, 99), (9, 1), (10, 2)])
def test_i7_commits_that_fall(broken: MemoryStorage, sequence: int, commit: int) -> None:
    """I7: along a thread, commit numbers do not fall."""
    with_header(broken, sequence, commit=commit)
    assert any(breach.invariant == "I7" and breach.thread == 1 for breach in audit(broken).breaches)


def test_i7_commit_of_two_threads(broken: MemoryStorage) -> None:
    """I7: a commit number stands in one thread only."""
    with_header(broken, 10, commit=9)
    restamped(broken, lambda sequence, header, body: (header, body))
    assert any(breach.invariant == "I7" and "two threads" in breach.what for breach in audit(broken).breaches)


# --- I8: references ---


@pytest.mark.parametrize("place", [(3, 400, 101), (3, 501, 0), (2, 0, 1), (9, 0, 1), (10, 0, 1), (99, 0, 1)])
def test_i8_references_of_steps(broken: MemoryStorage, place: tuple[int, int, int]) -> None:
    """I8: a step refers only to bytes that an event at or before it holds."""
    body = Merge((), {"x": Blob("text", Ref(*place))})
    for event in (StepCommitted("s2", "s1", body, Merge()), StepCommitted("s2", "s1", Merge(), body)):
        with_event(broken, 9, event)
        assert named(broken, "I8", 9)


def test_i8_references_of_writes(broken: MemoryStorage) -> None:
    """I8: recorded writes refer only to bytes that an event at or before them holds."""
    event = wrote("s1")
    write = event.writes[0]
    changed = WritesRecorded("s1", "task", "", (type(write)(0, "x", Blob("text", Ref(3, 0, 501))),))
    with_event(broken, 5, changed)
    assert named(broken, "I8", 5)
    good = WritesRecorded("s1", "task", "", (type(write)(0, "x", Blob("text", Ref(3, 0, 500))),))
    with_event(broken, 5, good)
    assert not any(breach.invariant == "I8" for breach in audit(broken).breaches)


def test_i8_content_that_shrank(broken: MemoryStorage) -> None:
    """I8: an event that no longer holds what later ones refer to is found at those."""
    with_event(broken, 3, step("s0", {"x": noise(80)}))
    refer = StepCommitted("s2", "s1", Merge((), {"x": Blob("text", Ref(3, 0, 500))}), Merge())
    with_event(broken, 9, refer)
    assert named(broken, "I8", 9)


# --- I9: segments ---


@pytest.fixture(params=["alone", "grouped"])
def sealed(request: pytest.FixtureRequest, broken: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """The same log with segments of events 1 to 4, 5 and 6, 7 and 8 of each thread, and states kept of 4 and 6.

    Each segment is a group of its own, or all of a thread are one.
    """
    if request.param == "alone":
        monkeypatch.setattr(segments, "GROUP_BYTES", 0)
    for number, name in ((1, "t"), (2, "u")):
        for last in (4, 6, 8):
            kept = {last: Reader(broken).state(number, last)} if last < 8 else {}
            bases = {at: codec.encode_base(state) for at, state in kept.items()}
            broken.commit([sealing(broken, name, last, bases)])
    assert audit(broken).breaches == []
    return broken


def groups_of(storage: Storage, thread: int = 1) -> list[int]:
    """The first sequence of the group of each segment, as the segments say."""
    return [int.from_bytes(get_segment(storage, thread, last)[24:32]) for _, last, _ in storage.segments(thread)]


@pytest.mark.parametrize(("last", "following"), [(4, 5), (6, 7), (8, 9)])
def test_i9_segment_is_missing(sealed: MemoryStorage, last: int, following: int) -> None:
    """I9: a segment that is gone is missed where the events go on, and by the rest of its group."""
    grouped = groups_of(sealed) == [1, 1, 1]
    assert grouped or groups_of(sealed) == [1, 5, 7]
    set_segment(sealed, 1, last, None)
    later = [end for end in (6, 8) if end > last]
    assert [named(sealed, "I2", end) for end in later] == [grouped] * len(later)
    assert named(sealed, "I1", 9 if grouped and last < 8 else following)
    assert named(sealed, "I9", following) == (last == 6)
    assert "I6" in found(sealed)
    assert not any(breach.thread == 2 for breach in audit(sealed).breaches)


def test_i9_segment_out_of_place(sealed: MemoryStorage) -> None:
    """I9: a segment that begins before the one before it ends, or not where that ends, is named."""
    for first in (4, 5, 8):
        records = sealed.scan(1, first - 1, 9, 9, reverse=False)
        sound = get_segment(sealed, 1, 8)
        set_segment(sealed, 1, 8, pack(1, records, {}, Group())[0])
        assert named(sealed, "I9", first)
        set_segment(sealed, 1, 8, sound)
    assert audit(sealed).breaches == []


def test_i9_loose_events_before_a_segment(sealed: MemoryStorage) -> None:
    """I9: sealed events are the oldest; loose ones before them are out of order, sound or not."""
    chain = fmt.CHAIN_SEED
    for record in sealed.scan(1, 0, 5, 9, reverse=False):
        header = record.header
        fields = (header.kind, header.flags, fmt.FORM_PLAIN, header.lane, header.commit, header.created_at)
        rest = (header.base, header.previous, fmt.body_digest(record.body), chain)
        stamp, chain = fmt.stamp(1, record.sequence, *fields, *rest)
        set_record(sealed, 1, record.sequence, stamp + record.body)
    grouped = groups_of(sealed) == [1, 1, 1]
    set_segment(sealed, 1, 4, None)
    # The rest of a group cannot be read without its beginning: then only the segments' own places tell.
    assert named(sealed, "I9" if grouped else "I1", 1)
    assert not any(breach.thread == 2 for breach in audit(sealed).breaches)


def test_i2_of_segments(sealed: MemoryStorage) -> None:
    """I2: a segment that was damaged, or stands in another place than its own, is named at its end."""
    rows = {place: get_segment(sealed, *place) for place in product((1, 2), (4, 6, 8))}
    for place, data in rows.items():
        if place != (1, 6):
            set_segment(sealed, 1, 6, data)
            assert named(sealed, "I2", 6)
    for position in range(0, len(rows[1, 6]), 7):
        set_segment(sealed, 1, 6, flipped(rows[1, 6], position))
        assert named(sealed, "I2", 6) or audit(sealed).breaches == []
    for cut in (rows[1, 6][:30], rows[1, 6][:48], rows[1, 6][:64], rows[1, 6][:-1]):
        set_segment(sealed, 1, 6, cut)
        assert named(sealed, "I2", 6)
    set_segment(sealed, 1, 6, None)
    set_row(sealed, SEGMENTS, fmt.part_key(1, 6, 0), b"")
    assert named(sealed, "I2", 6)


def test_i2_of_a_group(broken: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """I2: with a segment in the midst of a group the later ones of that group are lost, and none but these."""
    thread = "long"
    content = [noise(40) for _ in range(6)]
    for number in range(36):
        broken.commit([append(thread, step(f"s{number}", {"x": content[number % 6]}))])
    broken.commit([sealing(broken, thread, 6)])
    monkeypatch.setattr(segments, "GROUP_BYTES", len(broken.last_group(3).plain) * 5 // 2)
    for last in range(10, 39, 4):
        broken.commit([sealing(broken, thread, last)])
    groups = groups_of(broken, 3)
    firsts = sorted(set(groups))
    assert len(firsts) >= 3
    assert min(groups.count(first) for first in firsts[:2]) >= 3
    assert audit(broken).breaches == []
    lasts = [last for _, last, _ in broken.segments(3)]
    truth = {last: broken.read(3, [last])[last] for last in lasts}
    for damaged in lasts:
        sound = get_segment(broken, 3, damaged)
        # A single bit may stand for the same block: an offset to another copy of the same bytes.
        set_segment(broken, 3, damaged, sound[:-20] + bytes(byte ^ 0xFF for byte in sound[-20:-4]) + sound[-4:])
        group = groups[lasts.index(damaged)]
        lost = [last for last, its in zip(lasts, groups, strict=True) if its == group and last >= damaged]
        # A breach for each of them, once.
        assert [b.sequence for b in audit(broken).breaches if b.invariant == "I2"] == lost
        assert {breach.thread for breach in audit(broken).breaches} <= {3, None}
        for last in lasts:
            if last in lost:
                with pytest.raises(CorruptionError) as caught:
                    broken.read(3, [last])
                # It is told which segment is at fault.
                assert (caught.value.thread, caught.value.sequence) == (3, damaged)
            else:
                assert broken.read(3, [last])[last] == truth[last]
        set_segment(broken, 3, damaged, sound)
    assert audit(broken).breaches == []


def test_i2_of_parts(broken: MemoryStorage) -> None:
    """I2: a segment of which a part is gone, stands twice, in another's place or too many, is named."""
    for thread in ("large", "larger"):
        for number in range(2):
            broken.commit([append(thread, step(f"s{number}", {"x": noise(9000)}))])
            broken.commit([sealing(broken, thread)])
    assert audit(broken).breaches == []
    rows = parts_of(broken, 3, 4)
    assert len(rows) > 4
    assert len({len(part) for part in rows.values()}) == 3
    foreign, earlier = parts_of(broken, 4, 4), parts_of(broken, 3, 3)
    keys = list(rows)
    changes: list[dict[bytes, bytes | None]] = []
    for at, key in enumerate(keys):
        other = keys[at - 1]
        changes += [
            {key: None},
            {key: b""},
            {key: rows[other], other: rows[key]},
            {key: rows[other]},
            {key: list(foreign.values())[min(at, len(foreign) - 1)]},
            {key: list(earlier.values())[min(at, len(earlier) - 1)]},
            {key: rows[key][:-1]},
            {key: rows[key] + b"\0"},
            {key: flipped(rows[key], len(rows[key]) // 2)},
        ]
    changes += [{fmt.part_key(3, 4, len(rows)): part} for part in (b"\0", rows[keys[-1]])]
    changes += [dict.fromkeys(keys[:cut]) for cut in range(1, len(keys))]
    changes += [dict.fromkeys(keys[cut:]) for cut in range(1, len(keys))]
    for change in changes:
        print({key.hex(): part and len(part) for key, part in change.items()})
        for key, part in change.items():
            set_row(broken, SEGMENTS, key, part)
        breaches = audit(broken).breaches
        assert [breach[:3] for breach in breaches if breach.invariant == "I2"] == [("I2", 3, 4)]
        assert {breach.thread for breach in breaches} <= {3, None}
        with pytest.raises(CorruptionError) as caught:
            broken.read(3, [4])
        assert (caught.value.thread, caught.value.sequence) == (3, 4)
        assert broken.read(3, [3])[3].sequence == 3
        for key in (*change, *keys):
            set_row(broken, SEGMENTS, key, rows.get(key))
        assert audit(broken).breaches == []


def test_i3_of_segments(sealed: MemoryStorage) -> None:
    """I3: a segment whose events were replaced by others, sound in themselves, is found by its own chain hash."""
    records = sealed.scan(1, 4, 7, 9, reverse=False)
    forged = codec.encode(step("s0", {"x": b"forged"}))
    skeleton, payload = codec.split(codec.plain_body(forged.data, forged.form))
    other = records[-1]._replace(skeleton=skeleton, payload=payload)
    set_segment(sealed, 1, 6, pack(1, [records[0], other], {}, Group())[0])
    assert named(sealed, "I3", 6)


# --- I10: states that are kept ---


def test_i10_other_state(sealed: MemoryStorage) -> None:
    """I10: a state that is none, is of another step, or is not what the events fold to, is named."""
    kept = {at: bytes(state) for at, state in sealed.bases(1).items()}
    assert kept.keys() == {4, 6}
    sound = kept[6]
    other = Reader(sealed).state(1, 4)
    changed = (
        *(flipped(sound, position) for position in range(len(sound))),
        sound[:-1],
        sound + b"x",
        b"",
        kept[4],
        codec.encode_base(other),
        codec.encode_base(msgspec.structs.replace(other, sequence=Sequence(6))),
        codec.encode_base(msgspec.structs.replace(codec.decode_base(1, 6, sound), parent_id="other")),
    )
    for data in changed:
        repack(sealed, 1, kept | {6: data})
        assert {breach[:3] for breach in audit(sealed).breaches} == {("I10", 1, 6)}
    repack(sealed, 1, kept)
    assert audit(sealed).breaches == []


@pytest.mark.parametrize("at", [1, 2, 5, 7])
def test_i10_state_of_no_step(sealed: MemoryStorage, at: int) -> None:
    """I10: a state can be kept of a step only."""
    repack(sealed, 1, {at: codec.encode_base(Reader(sealed).state(1, 4))})
    assert {breach[:3] for breach in audit(sealed).breaches} == {("I10", 1, at)}


@pytest.mark.parametrize("at", [0, 11, 99])
def test_i10_state_of_no_event(sealed: MemoryStorage, at: int) -> None:
    """I10: a state can be kept of an event only that is there."""
    records = sealed.scan(1, 6, 9, 9, reverse=False)
    segment, _ = pack(1, records, {at: codec.encode_base(Reader(sealed).state(1, 4))}, Group())
    set_segment(sealed, 1, 8, segment)
    assert named(sealed, "I10", at)


def test_bases_may_be_missing(sealed: MemoryStorage) -> None:
    """States that are kept only save reading: without any, a log is sound."""
    assert drop_bases(sealed) == 4
    assert audit(sealed).breaches == []


# --- several at once ---


# --- I11: items ---


def item(key: str, value: bytes = b"v", *, commit: int = 0) -> ItemPut:
    """A put that expires."""
    return ItemPut(("a",), key, Blob("text", value), 5, {}, 0, commit)


def test_i11_item_in_another_thread(broken: MemoryStorage) -> None:
    """I11: a change of an item that stands in a thread of somebody's is named."""
    broken.commit([append("t", item("k"))])
    assert named(broken, "I11", 11)


def test_i11_step_among_items() -> None:
    """I11: what is no change of an item is named in their thread."""
    storage = MemoryStorage()
    storage.commit([append(fmt.ITEMS_THREAD_ID, item("k"), step("s0"))])
    assert [named(storage, "I11", sequence) for sequence in range(1, 5)] == [False, False, True, True]


def test_i11_commits_out_of_order() -> None:
    """I11: a change that says to have come with an earlier commit than the one before it, or a later, is named."""
    storage = MemoryStorage()
    storage.commit([append(fmt.ITEMS_THREAD_ID, item("k"), item("k"), item("k")) for _ in range(3)])
    assert audit(storage).breaches == []
    with_event(storage, 6, item("k", commit=1))
    assert named(storage, "I11", 6)
    with_event(storage, 6, item("k", commit=3))
    assert named(storage, "I11", 6)


@pytest.mark.parametrize("place", [Ref(9, 0, 5), Ref(2, 0, 101), Ref(4, 0, 5)])
def test_i8_references_of_items(place: Ref) -> None:
    """I8: a value or an attachment that refers to bytes which are not there is named."""
    storage = MemoryStorage()
    storage.commit([append(fmt.ITEMS_THREAD_ID, item("k", noise(100)), item("k"), item("k"))])
    with_event(storage, 3, msgspec.structs.replace(item("k"), value=Blob("text", place)))
    assert named(storage, "I8", 3)
    with_event(storage, 3, msgspec.structs.replace(item("k"), attachments={"a": Blob("text", place)}))
    assert named(storage, "I8", 3)


def test_breaches_of_several_threads(broken: MemoryStorage) -> None:
    """One damaged thread does not hide the damage of another, nor make a sound one suspect."""
    broken.commit([append("sound", step("s0"))])
    for thread in (1, 2):
        record = get_record(broken, thread, 4)
        set_record(broken, thread, 4, flipped(record, 70))
    breaches = audit(broken).breaches
    assert {breach.thread for breach in breaches if breach.invariant == "I2"} == {1, 2}
    assert not any(breach.thread == 3 for breach in breaches)
