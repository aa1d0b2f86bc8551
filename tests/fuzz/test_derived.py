"""Damaged derived rows: whatever they say, nothing but the library's own errors comes out, and the audit names them.

In memory rows of derived tables have no checksum: a read may believe one that was changed.  What it never does is to
take the process down, or to hide the damage from `audit`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import pytest

from building import rows_of, set_row, step, wrote
from fuzz.test_records import DAMAGES, SEEDS, THREADS, Question, answer, made, questions
from stepwell import ItemDeleted, ItemPut, Log, StepwellError, Thread
from stepwell.patch import Blob
from stepwell.storage.memory import MemoryStorage
from stepwell.storage.tables import DERIVED, EXPIRIES, FEED, IDS, INDEX, RECENT

Place = tuple[str, bytes]

KEYS_ONLY = (RECENT, IDS, EXPIRIES)  # whose rows say all that they say in their keys
VALUED = [table for table in DERIVED if table not in KEYS_ONLY]
NAMESPACE = ("users", "ada")
LONG = "k" * 600  # is hashed in keys
MOST_PLACES = 64  # of bytes that are changed in one row


def remember(log: Log) -> None:
    """Put items in: versions in several rows, deleted ones, some that expire, names that keys hold hashes of."""
    for number in range(0, 70, 14):
        puts = [
            ItemPut(NAMESPACE, "often", Blob("text", b"%d" % n), expires_at=1000 + n)
            for n in range(number, number + 14)
        ]
        log.items.submit(puts).result()
    log.items.submit([ItemPut((*NAMESPACE, "x"), LONG, Blob("text", b"x" * 2000), expires_at=5)]).result()
    log.items.submit([ItemPut(NAMESPACE, "gone", Blob("text", b"y")), ItemDeleted(NAMESPACE, "gone")]).result()


def grown() -> Log:
    """The log that records are damaged in, with items, and a step id that has further rows in the index."""
    log = made()
    log.thread("a").append([wrote("s3", task=f"task {number}") for number in range(100)])
    remember(log)
    assert log.audit().breaches == []
    return log


def questions_of_items() -> Iterator[Question]:
    """Everything that can be asked about items."""
    for key in ("often", "gone", LONG, "never"):
        for at in (None, 9, 12, 30):
            yield "item", key, at, ""
        yield "history", key, None, ""
    for what in ("items", "items then", "namespaces", "expired", "version", "changes"):
        yield what, "", None, ""


def reply(log: Log, question: Question) -> object:
    """What a log that remembers nothing answers."""
    what, key, at, _ = question
    items = log.items
    namespace = (*NAMESPACE, "x") if key == LONG else NAMESPACE
    lists: dict[str, Callable[[], object]] = {
        "item": lambda: items.get(namespace, key, at=at),  # type: ignore[arg-type]
        "history": lambda: list(items.history(namespace, key)),
        "items": lambda: list(items.scan(("users",))),
        "items then": lambda: list(items.scan(("users",), at=items.commit_at(1 << 62))),
        "namespaces": lambda: list(items.namespaces()),
        "expired": lambda: items.expired(1020),
        "version": items.version,
        "changes": lambda: list(items.changes(0) or ()),
    }
    return lists[what]() if what in lists else answer(log, question)


LOG = grown()
STORAGE = LOG.storage
QUESTIONS = [*questions(), *questions_of_items()]
TRUTH = {question: reply(LOG, question) for question in QUESTIONS}
SOUND: dict[Place, bytes] = {(table, key): data for table in DERIVED for key, data in rows_of(STORAGE, table).items()}


@pytest.fixture(params=SEEDS)
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Where damage comes from; shown if the test fails."""
    print(f"RECORDS_SEED={request.param}")
    return random.Random(request.param)


@pytest.fixture
def damaged() -> Iterator[Callable[[Place, bytes | None], None]]:
    """Replaces one derived row; puts it back when the test ends."""
    changed: list[Place] = []

    def change(place: Place, data: bytes | None) -> None:
        while changed:
            former = changed.pop()
            set_row(STORAGE, *former, SOUND[former])
        changed.append(place)
        set_row(STORAGE, *place, data)

    yield change
    change(changed[0], SOUND[changed[0]])


def asked(sample: list[Question]) -> int:
    """Ask some questions: there is an answer, or one of the library's errors; how many of these."""
    errors = 0
    for question in sample:
        try:
            reply(LOG, question)
        except StepwellError:
            errors += 1
    return errors


def names(table: str) -> bool:
    """Whether the audit names a derived table."""
    return any(breach.invariant == "I6" and table in breach.what for breach in LOG.audit().breaches)


def test_the_truth_is_asked() -> None:
    """Without damage every question has its answer; rows of every table are there to be damaged."""
    assert {question: reply(LOG, question) for question in QUESTIONS} == TRUTH
    assert {table for table, _ in SOUND} == set(DERIVED)
    assert len(TRUTH["writes", "a", "s3", ""]) > 80  # type: ignore[arg-type]


@pytest.mark.parametrize("table", VALUED)
def test_damage(table: str, damaged: Callable[[Place, bytes | None], None], rng: random.Random) -> None:
    """Whatever happens to a derived row, each read answers or fails as the library does, and the audit names it."""
    places = [place for place in SOUND if place[0] == table]
    for place in rng.sample(places, min(len(places), 4)):
        for damage in DAMAGES:
            data = damage(SOUND[place], rng)
            if data == SOUND[place]:
                continue
            print(place, data.hex())
            damaged(place, data)
            asked(QUESTIONS)
            assert names(table)


@pytest.mark.parametrize("table", VALUED)
def test_every_byte(table: str, damaged: Callable[[Place, bytes | None], None], rng: random.Random) -> None:
    """No byte of a derived row, changed in any way, brings up any other error; of long rows, not every one is tried."""
    places = [place for place in SOUND if place[0] == table]
    errors = 0
    for place in sorted(places, key=lambda place: len(SOUND[place]))[:: max(1, len(places) // 3)]:
        sound = SOUND[place]
        for position in sorted(rng.sample(range(len(sound)), min(len(sound), MOST_PLACES))):
            for bits in (1 << rng.randrange(8), 0xFF):
                print(place, position, bits)
                damaged(place, sound[:position] + bytes((sound[position] ^ bits,)) + sound[position + 1 :])
                errors += asked(rng.sample(QUESTIONS, 25))
    assert errors > 0


@pytest.mark.parametrize("table", DERIVED)
def test_other_values(table: str, damaged: Callable[[Place, bytes | None], None]) -> None:
    """Rows with any number in the place of theirs, or of any other form, bring up no other error."""
    values: list[object] = [
        -1,
        1 << 31,
        1 << 32,
        (1 << 63) - 1,
        1 << 63,
        (1 << 64) - 1,
        0,
        4,
        b"",
        "text",
        None,
        [],
        {},
        True,
        1.5,
    ]
    place = next(place for place in SOUND if place[0] == table)
    rows: list[bytes] = [b"", b"\x00", b"\xc1", b"\x90", b"\x91" * 2000, bytes(8), b"\xff" * 8, b"\xff" * 40]
    with suppress(msgspec.DecodeError):
        row = msgspec.msgpack.decode(SOUND[place])
        if isinstance(row, list):
            rows += [
                msgspec.msgpack.encode([*row[:at], value, *row[at + 1 :]])
                for at in range(0, len(row), 1 if len(row) < 20 else 16)
                for value in values
            ]
            rows += [msgspec.msgpack.encode(row[:length]) for length in range(min(len(row), 20))]
        if table == FEED:
            entry = row[0]
            rows += [
                msgspec.msgpack.encode([[*entry[:at], value, *entry[at + 1 :]]]) for at in range(4) for value in values
            ]
        if table == INDEX:
            rows += [msgspec.msgpack.encode([*row[:3], [value] * many]) for value in values for many in (1, 16)]
    for number, data in enumerate(rows):
        if data != SOUND[place]:
            damaged(place, data)
            print(place, data.hex())
            asked(QUESTIONS[number % 8 :: 8])
            assert names(table)


@pytest.mark.parametrize("table", DERIVED)
def test_missing_and_swapped(table: str, damaged: Callable[[Place, bytes | None], None], rng: random.Random) -> None:
    """A derived row that is gone, or says what another one says, brings up no other error, and the audit names it."""
    places = [place for place in SOUND if place[0] == table]
    for place in rng.sample(places, min(len(places), 4)):
        for data in (None, SOUND[rng.choice(places)]):
            if data != SOUND[place]:
                damaged(place, data)
                asked(QUESTIONS)
                assert names(table)


@pytest.mark.parametrize("table", KEYS_ONLY)
def test_other_keys(table: str, rng: random.Random) -> None:
    """A row under any other key brings up no other error in lists, and the audit names it."""
    for key in [key for place, key in SOUND if place == table]:
        position = rng.randrange(len(key))
        other = key[:position] + bytes((key[position] ^ 1 << rng.randrange(8),)) + key[position + 1 :]
        if (table, other) in SOUND:
            continue
        print(key.hex(), other.hex())
        set_row(STORAGE, table, key, None)
        set_row(STORAGE, table, other, b"")
        for asked_for in ({}, {"prefix": "a"}, {"newest_first": False}, {"status": "done"}, {"updated_since": 1}):
            with suppress(StepwellError):
                list(LOG.threads(**asked_for))  # type: ignore[arg-type]
        asked([question for question in QUESTIONS if question[0] in ("expired", "items", "item")])
        assert names(table)
        set_row(STORAGE, table, other, None)
        set_row(STORAGE, table, key, b"")


CHANGES: tuple[Callable[[Log, Thread], object], ...] = (
    lambda log, thread: thread.append([step("s2", base=5), wrote("s1"), step("s0"), step("s3", lane="other")]),
    lambda log, thread: thread.copy_to("copy"),
    lambda log, thread: log.seal(),
    lambda log, thread: thread.prune([3]),
    lambda log, thread: thread.copy_to("copy of a segment"),
    lambda log, thread: thread.delete(),
    lambda log, thread: thread.append([step("s0")]),
    lambda log, thread: log.items.submit([ItemPut(NAMESPACE, "often", Blob("text", b"new"), expires_at=1)]).result(),
    lambda log, thread: log.items.submit([ItemDeleted(NAMESPACE, "often", expired_by=1 << 62)]).result(),
    lambda log, thread: log.items.prune(20),
    lambda log, thread: log.items.forget(NAMESPACE),
)


@pytest.mark.parametrize("table", VALUED)
def test_changes_to_a_damaged_log(table: str, rng: random.Random) -> None:
    """What is done with a log whose derived rows are damaged is done, or refused with one of the library's errors."""
    for damage in DAMAGES:
        log = Log(MemoryStorage())
        for name in THREADS:
            log.thread(name).append([step("s0", {"x": b"x" * 100}), wrote("s0")])
            log.thread(name).append([step("s1", {"y": b"y"}, base=3), step("s0", lane="sub")])
        remember(log)
        rows = rows_of(log.storage, table)
        key = rng.choice(sorted(rows))
        data = damage(rows[key], rng)
        print(key.hex(), data.hex())
        set_row(log.storage, table, key, data)
        for change in CHANGES:
            with suppress(StepwellError):
                change(log, log.thread("a"))
        log.close()
