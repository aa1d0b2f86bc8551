"""Damaged segments and bases: a sealed log tells the truth, or says what is wrong with it, and the audit names it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from building import drop_bases, rows_of, sealing, set_row
from fuzz.test_records import DAMAGES, SEEDS, Question, answer, made, questions
from stepwell import ConflictError, CorruptionError, NewerFormatError, codec
from stepwell import format as fmt
from stepwell.storage.tables import BASES, EVENTS, SEGMENTS

Place = tuple[str, int, int]
"""A table, a thread, a sequence."""

LOG = made()
STORAGE = LOG.storage
# Both threads are the same, so the sequences of their steps are.
ENDS = (9, 20, 30)
TRUTH = {question: answer(LOG, question) for question in questions() if question[0] not in ("threads", "summary")}
BASED = [sequence for name in ("a",) for sequence in (6, 14, 29) if LOG.thread(name).state(sequence)]
for _name, _number in (("a", 1), ("b", 2)):
    for _end in ENDS:
        _kept = [sequence for sequence in BASED if sequence <= _end]
        _states = {at: codec.encode_base(_number, at, LOG.reader.state(_number, at)) for at in _kept}
        assert LOG.submit(sealing(STORAGE, _name, _end, _states)).result().number == _number
assert LOG.audit().breaches == []
SOUND: dict[Place, bytes] = {
    (table, *fmt.read_event_key(key)): data
    for table in (SEGMENTS, BASES)
    for key, data in rows_of(STORAGE, table).items()
}


@pytest.fixture(params=SEEDS)
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Where damage comes from; shown if the test fails."""
    print(f"RECORDS_SEED={request.param}")
    return random.Random(request.param)


def put(place: Place, data: bytes | None) -> None:
    """Change one row."""
    set_row(STORAGE, place[0], fmt.event_key(*place[1:]), data)


@pytest.fixture
def damaged() -> Iterator[Callable[[dict[Place, bytes | None]], None]]:
    """Replaces segments and bases; puts them back when the test ends."""
    changed: set[Place] = set()

    def change(rows: dict[Place, bytes | None]) -> None:
        for place in changed:
            put(place, SOUND[place])
        changed.clear()
        for place, data in rows.items():
            changed.add(place)
            put(place, data)

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
        assert isinstance(error, NewerFormatError) or (error.thread, error.sequence) in places, question  # type: ignore[attr-defined]
    return errors


def breaches() -> set[tuple[str, int | None, int | None]]:
    """What the audit names."""
    return {breach[:3] for breach in LOG.audit().breaches}


def test_the_truth_is_asked() -> None:
    """A sealed log answers as it did before it was sealed, with states to begin at and without."""
    assert asked_all(set()) == 0
    assert len(SOUND) == 2 * (len(ENDS) + len(BASED))
    assert len(BASED) > 1
    assert rows_of(STORAGE, EVENTS)
    drop_bases(STORAGE)
    assert asked_all(set()) == 0
    for place, data in SOUND.items():
        put(place, data)


def test_damage(damaged: Callable[[dict[Place, bytes | None]], None], rng: random.Random) -> None:
    """Whatever happens to a segment or a base, every read is true or an error that names it, and so is the audit."""
    for place in SOUND:
        data = rng.choice(DAMAGES)(SOUND[place], rng)
        if data == SOUND[place]:
            continue
        print(place, data.hex())
        damaged({place: data})
        errors = asked_all({place[1:]})
        named = ("I2" if place[0] == SEGMENTS else "I10", *place[1:]) in breaches()
        # A segment may also still say what it said; but whoever reads a damaged one says so, and so does the audit.
        assert named or errors == 0
        assert errors > 0 or not named or place[0] == BASES


def test_swapped(damaged: Callable[[dict[Place, bytes | None]], None], rng: random.Random) -> None:
    """Two segments, or two bases, that changed places are both found out, within a thread or between two."""
    for table, invariant in ((SEGMENTS, "I2"), (BASES, "I10")):
        places = sorted(place for place in SOUND if place[0] == table)
        for _ in range(4):
            one, other = rng.sample(places, 2)
            damaged({one: SOUND[other], other: SOUND[one]})
            assert asked_all({one[1:], other[1:]}) > 0
            assert {(invariant, *one[1:]), (invariant, *other[1:])} <= breaches()


def test_lost_segments(damaged: Callable[[dict[Place, bytes | None]], None]) -> None:
    """A segment that is gone is never missed silently where a read depends on it."""
    for place in SOUND:
        if place[0] != SEGMENTS:
            continue
        damaged({place: None})
        _, number, last = place
        first = max((end for end in ENDS if end < last), default=0) + 1
        held = range(first, last + 1)
        for question, truth in TRUTH.items():
            # Lists of all events, and what is asked by sequence, cannot know what stood in a gap: audit does.
            if question[0] in ("events", "backwards", "all steps") or question[2] in held:
                continue
            check_lost(question, truth, number, held)
        assert breaches()


def check_lost(question: Question, truth: object, thread: int, held: range) -> None:
    """A question is answered truly, or the answer is that an event of the lost segment is missing."""
    error: Exception
    try:
        assert answer(LOG, question) == truth, question
        return
    except (CorruptionError, ConflictError) as raised:
        error = raised
    if isinstance(error, CorruptionError):
        assert error.thread == thread, question
        assert error.sequence in held, question
    else:
        assert held.start == 1  # before what is now the oldest event: it might have been pruned
