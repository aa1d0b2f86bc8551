"""Damaged records: decoding gives the event or says what is wrong, and a damaged log never tells a lie.

Each test prints the seed that it drew its damage from; RECORDS_SEED=n repeats it, RECORDS_SEEDS=n tries n.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import combinations

import msgspec
import pytest
import zstandard

from building import get_record, loose, noise, set_record, step, wrote
from stepwell import (
    CorruptionError,
    Log,
    NewerFormatError,
    StepCommitted,
    codec,
    dictionary,
    diff,
    parse,
)
from stepwell import format as fmt
from stepwell.events import Event, LaneOpened, Sequence, ThreadCopied, ThreadDeleted, ThreadOpened, ThreadPruned
from stepwell.patch import Merge
from stepwell.reader import Reader
from stepwell.storage.memory import MemoryStorage

THREAD, SEQUENCE = 5, 77
SEEDS = (
    [int(os.environ["RECORDS_SEED"])]
    if "RECORDS_SEED" in os.environ
    else list(range(int(os.environ.get("RECORDS_SEEDS", 1))))
)


@pytest.fixture(params=SEEDS)
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Where damage comes from; shown if the test fails."""
    print(f"RECORDS_SEED={request.param}")
    return random.Random(request.param)


def flip(record: bytes, rng: random.Random) -> bytes:
    """Change one to three bits."""
    damaged = bytearray(record)
    for _ in range(rng.randint(1, 3)):
        damaged[rng.randrange(len(record))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(record: bytes, rng: random.Random) -> bytes:
    """Take bytes away: at the end, at the beginning, or in the midst."""
    start, end = sorted(rng.randint(0, len(record)) for _ in range(2))
    return rng.choice([record[:start], record[end:], record[:start] + record[end:]])


def blank(record: bytes, rng: random.Random) -> bytes:
    """Write zeros over a part."""
    start, end = sorted(rng.randint(0, len(record)) for _ in range(2))
    return record[:start] + bytes(end - start) + record[end:]


def swap(record: bytes, rng: random.Random) -> bytes:
    """Exchange two parts of equal length."""
    length = rng.randint(1, max(1, len(record) // 4))
    one, other = (rng.randint(0, len(record) - length) for _ in range(2))
    damaged = bytearray(record)
    damaged[one : one + length] = record[other : other + length]
    damaged[other : other + length] = record[one : one + length]
    return bytes(damaged)


def overwrite(record: bytes, rng: random.Random) -> bytes:
    """Write noise over a part."""
    start, end = sorted(rng.randint(0, len(record)) for _ in range(2))
    return record[:start] + rng.randbytes(end - start) + record[end:]


def extend(record: bytes, rng: random.Random) -> bytes:
    """Put bytes at the end, or in the midst."""
    place = rng.choice([len(record), rng.randint(0, len(record))])
    return record[:place] + rng.choice([bytes(9), rng.randbytes(9), record[:9]]) + record[place:]


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [flip, cut, blank, swap, overwrite, extend]


# --- single records ---


def records() -> Iterator[tuple[Event, bytes]]:
    """An event of each kind with what is stored of it, in plain form and as a frame of either form."""
    known = zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(dictionary.load()), write_dict_id=False)
    listed = [msgspec.msgpack.encode([f"message {n} with a text" for n in range(count)]) for count in (40, 44)]
    patch = diff(*(parse("m", payload) for payload in listed))
    assert patch is not None
    events: list[Event] = [
        step("s0", {"x": b"x" * 2000, "m": listed[0]}, parent="p", fields={"f": b"f"}),
        StepCommitted("s1", "s0", Merge(("x",), {"m": patch}), Merge(), base=Sequence(3)),
        step("s2", {"x": random.Random(1).randbytes(400)}, hidden=True),
        step("", {}),
        wrote("s0", [b"1", b"y" * 900, random.Random(2).randbytes(100)], task="task", path="path"),
        ThreadOpened("thread"),
        LaneOpened("a lane with a name that is long enough to be compressed, compressed, compressed, compressed"),
        ThreadCopied("thread", Sequence(3)),
        ThreadPruned("thread", Sequence(3), b"c" * 16, 9),
        ThreadDeleted(Sequence(3), b"c" * 16),
    ]
    for event in events:
        body = codec.encode(event)
        plain = codec.plain_body(body.data, body.form)
        frames = (fmt.FORM_ZSTD, zstandard.compress(plain)), (fmt.FORM_ZSTD_DICTIONARY, known.compress(plain))
        base = event.base if isinstance(event, StepCommitted) else 0
        for form, data in ((fmt.FORM_PLAIN, plain), *frames):
            fields = (body.kind, 0, form, 1, 9, 5, base, 0, body.digest, fmt.CHAIN_SEED)
            record = fmt.stamp(THREAD, SEQUENCE, *fields)[0] + data
            yield codec.decode(THREAD, codec.open_record(THREAD, SEQUENCE, record)), record


RECORDS = list(records())


def told(record: bytes, sound: bytes | None = None) -> Event | None:
    """The event in a record; None if the record is reported as damaged.

    Args:
        record: The record.
        sound: What it was; whatever is not reported has this header (but for what no checksum covers) and payload.
    """
    error: Exception
    try:
        opened = codec.open_record(THREAD, SEQUENCE, record)
        if sound is not None:
            true = codec.open_record(THREAD, SEQUENCE, sound)
            header = true.header._replace(form=opened.header.form, chain=opened.header.chain)
            assert opened == true._replace(header=header)
        return codec.decode(THREAD, opened)
    except (CorruptionError, NewerFormatError) as raised:
        error = raised
    if isinstance(error, CorruptionError):
        assert (error.thread, error.sequence) == (THREAD, SEQUENCE)
    else:
        assert record[0] > fmt.FORMAT_VERSION
    return None


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_record(damage: Callable[[bytes, random.Random], bytes], rng: random.Random) -> None:
    """A record that was damaged in any way is the event that it was, or an error that says where; nothing else."""
    refused = 0
    for event, record in RECORDS:
        for _ in range(30):
            damaged = damage(record, rng)
            found = told(damaged, record)
            assert found is None or found == event
            refused += found is None
    assert refused > 300


def test_every_single_bit() -> None:
    """No single bit of a record can change what the record says."""
    for event, record in RECORDS:
        for position in range(len(record)):
            for bit in range(8):
                damaged = record[:position] + bytes((record[position] ^ 1 << bit,)) + record[position + 1 :]
                assert told(damaged, record) in (None, event)


def test_every_length() -> None:
    """No record can be cut anywhere and say something else than before."""
    for event, record in RECORDS:
        for length in range(len(record)):
            assert told(record[:length]) in (None, event)
            assert told(record[length:]) in (None, event)


def test_any_bytes(rng: random.Random) -> None:
    """Bytes that are no record are never taken for one."""
    for _ in range(500):
        assert told(rng.randbytes(rng.randint(0, 300))) is None
    for _ in range(500):
        head = bytes((1, rng.randint(1, 7), 0, rng.randint(0, 2))) + rng.randbytes(60)
        assert told(head + rng.choice([zstandard.compress(rng.randbytes(50)), rng.randbytes(50)])) is None


def test_other_place() -> None:
    """A record that stands in another place than its own is never taken for what should stand there."""
    for (_, one), (_, other) in combinations(RECORDS, 2):
        for thread, sequence in ((THREAD, SEQUENCE + 1), (THREAD + 1, SEQUENCE), (SEQUENCE, THREAD)):
            for record in (one, other):
                with pytest.raises(CorruptionError):
                    codec.open_record(thread, sequence, record)


# --- whole logs ---

THREADS = ("a", "b")


def made() -> Log:
    """Two threads with two lanes, forks, repetitions, lists that grow, writes, and content that is referred to."""
    log = Log(MemoryStorage(), seal_after_events=1 << 30, seal_after_bytes=1 << 50)
    for name in THREADS:
        thread = log.thread(name)
        for lane in ("", "sub"):
            for number in range(8):
                at = f"s{number - 3}" if number == 6 else f"s{number - 1}"
                before = thread.state(at, lane=lane)
                new = noise(90)
                thread.append([wrote(at, [new, noise(70)], task="t", lane=lane)])
                held = {key: payload for key, (_, payload) in before.channels.items()} if before else {}
                listed = msgspec.msgpack.decode(held["m"]) if "m" in held else ["a first message"] * 5
                held |= {"x": new, "m": msgspec.msgpack.encode([*listed, f"message {number} " * 9])}
                event = step(
                    f"s{number}",
                    held,
                    parent=at,
                    base=before.sequence if before else 0,
                    old=before.values if before else None,
                    lane=lane,
                    hidden=number == 2,
                    fields={"n": b"%d" % number},
                )
                thread.append([event])
            thread.append([step("s1", {"x": noise(90)}, lane=lane)])
    assert log.audit().breaches == []
    return log


Question = tuple[str, str, int | str | None, str]
"""What is read, of which thread, where, in which lane."""


def questions() -> Iterator[Question]:
    """Every read that a log offers."""
    yield from (("threads", "", None, ""), ("feed", "", None, ""))
    for name in THREADS:
        yield from ((what, name, None, "") for what in ("events", "backwards", "all steps", "summary"))
        yield from (("state", name, sequence, "") for sequence in range(1, 42))
        for lane in ("", "sub"):
            yield from ((what, name, None, lane) for what in ("steps", "forks", "state"))
            for step_id in (f"s{number}" for number in range(-1, 9)):
                yield from ((what, name, step_id, lane) for what in ("state", "writes", "ancestors"))


def answer(log: Log, question: Question) -> object:
    """What a log that remembers nothing answers."""
    what, name, at, lane = question
    log.reader = Reader(log.storage)
    thread = log.thread(name)
    if what == "state":
        return thread.state(at, lane=lane)
    if what == "writes":
        return thread.writes(str(at), lane=lane)
    if what == "ancestors":
        row = thread.row()
        found = None if row is None else log.storage.lane(row.number, lane)
        if row is None or found is None:
            return None
        walk = log.reader.ancestors(row.number, found[0], fmt.id_key(str(at)))
        return [(each, state.step_id, sorted(state.channels)) for each, state in walk]
    lists: dict[str, Callable[[], object]] = {
        "threads": lambda: list(log.threads()),
        "feed": lambda: list(log.feed()),
        "summary": thread.summary,
        "events": lambda: list(thread.events()),
        "backwards": lambda: list(thread.events(reverse=True)),
        "all steps": lambda: list(thread.steps()),
        "steps": lambda: list(thread.steps(lane=lane)),
        "forks": lambda: list(thread.forks(lane=lane)),
    }
    return lists[what]()


LOG = made()
STORAGE = LOG.storage
TRUTH = {question: answer(LOG, question) for question in questions()}
SOUND = {(number, sequence): record for number in (1, 2) for sequence, record in loose(STORAGE, number).items()}
Replace = Callable[[dict[tuple[int, int], bytes | None]], None]


@pytest.fixture
def damaged() -> Iterator[Replace]:
    """Replaces records of the log; puts them back when the test ends."""
    changed: set[tuple[int, int]] = set()

    def change(records: dict[tuple[int, int], bytes | None]) -> None:
        for place in changed:
            set_record(STORAGE, *place, SOUND[place])
        changed.clear()
        for place, record in records.items():
            changed.add(place)
            set_record(STORAGE, *place, record)

    yield change
    change({})


def asked_all(places: set[tuple[int, int]]) -> int:
    """Ask every question: the answer is the truth, or an error that names one of the damaged places."""
    errors = 0
    for question, truth in TRUTH.items():
        error: Exception
        try:
            assert answer(LOG, question) == truth, question
            continue
        except (CorruptionError, NewerFormatError) as raised:
            error = raised
        errors += 1
        if isinstance(error, CorruptionError):
            assert (error.thread, error.sequence) in places, question
        else:
            assert any(f"thread {thread}, sequence {sequence}:" in str(error) for thread, sequence in places)
    return errors


def test_the_truth_is_asked(damaged: Replace) -> None:
    """Without damage every question has the answer that it had."""
    damaged({})
    assert asked_all(set()) == 0
    assert len(SOUND) == 2 * (3 + 34)
    assert sum(answer is not None and answer != [] for answer in TRUTH.values()) > 120


def test_damage_to_a_log(damaged: Replace, rng: random.Random) -> None:
    """Whatever happens to one record, every read is true or an error that names it, and so is the audit."""
    for place in rng.sample(sorted(SOUND), 12):
        record = rng.choice(DAMAGES)(SOUND[place], rng)
        if record == SOUND[place]:
            continue
        print(place, record.hex())
        damaged({place: record})
        errors = asked_all({place})
        breaches = [breach[:3] for breach in LOG.audit().breaches]
        assert breaches
        if ("I2", *place) in breaches:
            assert errors > 0
        else:
            # The event is still what it was: only its chain, or how it is stored, is not.
            assert ("I3", *place) in breaches or ("I6", None, None) in breaches
            assert errors == 0


def test_every_byte_of_a_header(damaged: Replace) -> None:
    """A change to any field of a step's header is never believed."""
    place = (1, 9)
    for position in range(fmt.HEADER_BYTES):
        # Version, kind, flags and form have few values; all are tried.
        for value in range(6) if position < 4 else (SOUND[place][position] ^ 1,):
            damaged({place: SOUND[place][:position] + bytes((value,)) + SOUND[place][position + 1 :]})
            asked_all({place})


def test_swapped_records(damaged: Replace, rng: random.Random) -> None:
    """Two records that changed places, within a thread or between two, are both found out."""
    for _ in range(8):
        one, other = rng.sample(sorted(SOUND), 2)
        if rng.random() < 0.5:
            other = (3 - one[0], one[1])
        print(one, other)
        damaged({one: SOUND[other], other: SOUND[one]})
        assert asked_all({one, other}) > 0
        breaches = [breach[:3] for breach in LOG.audit().breaches]
        assert ("I2", *one) in breaches
        assert ("I2", *other) in breaches


def test_repeated_records(damaged: Replace, rng: random.Random) -> None:
    """A record that stands in the place of another one, too, is found out there."""
    for _ in range(8):
        one, other = rng.sample(sorted(SOUND), 2)
        print(one, other)
        damaged({one: SOUND[other]})
        assert asked_all({one}) > 0
        assert ("I2", *one) in [breach[:3] for breach in LOG.audit().breaches]


def test_lost_records(damaged: Replace) -> None:
    """A record that is gone is never missed silently: not where a read depends on it, nor in lists of events."""
    for place in sorted(SOUND):
        damaged({place: None})
        for question, truth in TRUTH.items():
            try:
                found = answer(LOG, question)
            except CorruptionError as raised:
                error = raised
            else:
                assert found == truth, question
                continue
            assert (error.thread, error.sequence) == place, question
        assert LOG.audit().breaches


def test_changes_to_a_damaged_log(rng: random.Random) -> None:
    """A damaged thread can be deleted; copying or pruning it is refused or keeps what is true; others are unharmed."""
    for _ in range(6):
        log = made()
        storage = log.storage
        kept = storage.steps(1, 1, 0, 1)[0].sequence
        place = rng.choice([place for place in sorted(SOUND) if place[0] == 1])
        record = rng.choice(DAMAGES)(get_record(storage, *place), rng)
        print(place, record.hex())
        set_record(storage, *place, record)
        assert [breach for breach in log.audit().breaches if breach.thread not in (1, None)] == []
        before = loose(storage, 1)
        thread = log.thread("a")
        changes: list[Callable[[], None]] = [partial(thread.copy_to, "copy"), partial(thread.prune, [kept])]
        for change in changes:
            with suppress(CorruptionError, NewerFormatError):
                change()
                continue
            assert loose(storage, 1) == before
            assert storage.thread("copy") is None
        thread.delete()
        log.thread("copy").delete()
        assert log.audit().breaches == []
        thread.append([step("s0")])
        log.thread("b").append([step("new")])
        assert log.audit().breaches == []
