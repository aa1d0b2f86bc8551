"""Damaged segments: a sealed log tells the truth, or says what is wrong with it, and the audit names it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from building import drop_bases, get_segment, parts_of, rows_of, sealing, set_row, set_segment
from fuzz.test_records import DAMAGES, SEEDS, Question, answer, made, questions
from stepwell import ConflictError, CorruptionError, NewerFormatError, codec
from stepwell.storage import segments
from stepwell.storage.tables import EVENTS, SEGMENTS
from stepwell.storage.tables import THREADS as THREADS_TABLE

Place = tuple[int, int]
"""A thread, and the last sequence of a segment."""

LOG = made()
STORAGE = LOG.storage
# Both threads are the same, so the sequences of their steps are.
ENDS = (9, 16, 20, 30)
TRUTH = {question: answer(LOG, question) for question in questions() if question[0] not in ("threads", "summary")}
BASED = [sequence for sequence in (6, 14, 29) if LOG.thread("a").state(sequence)]
GROUPS = {9: 1, 16: 1, 20: 17, 30: 17}
for _name, _number in (("a", 1), ("b", 2)):
    for _end in ENDS:
        _states = {at: codec.encode_base(LOG.reader.state(_number, at)) for at in BASED if at <= _end}
        with pytest.MonkeyPatch.context() as _patch:
            # Two segments to a group.
            _patch.setattr(segments, "GROUP_BYTES", len(STORAGE.last_group(_number).plain) + (_end in (16, 30)))
            assert LOG.submit(sealing(STORAGE, _name, _end, _states)).result().number == _number
assert LOG.audit().breaches == []
SOUND: dict[Place, bytes] = {
    (number, last): get_segment(STORAGE, number, last) for number in (1, 2) for _, last, _ in STORAGE.segments(number)
}


def group_from(place: Place) -> set[Place]:
    """A segment, and those after it in its group."""
    number, last = place
    return {(number, end) for end in ENDS if GROUPS[end] == GROUPS[last] and end >= last}


@pytest.fixture(params=SEEDS)
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Where damage comes from; shown if the test fails."""
    print(f"RECORDS_SEED={request.param}")
    return random.Random(request.param)


def put(place: Place, data: bytes | None) -> None:
    """Change one segment."""
    set_segment(STORAGE, *place, data)


@pytest.fixture
def damaged() -> Iterator[Callable[[dict[Place, bytes | None]], None]]:
    """Replaces segments; puts them back when the test ends."""
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
    assert len(SOUND) == 2 * len(ENDS)
    assert len(BASED) > 1
    assert list(STORAGE.bases(1)) == list(STORAGE.bases(2)) == BASED
    assert {place: int.from_bytes(segment[24:32]) for place, segment in SOUND.items()} == {
        (number, last): GROUPS[last] for number, last in SOUND
    }
    assert rows_of(STORAGE, EVENTS)
    catalogue = rows_of(STORAGE, THREADS_TABLE)
    assert drop_bases(STORAGE) == 2 * len(BASED)
    assert LOG.audit().breaches == []
    assert asked_all(set()) == 0
    for key, row in catalogue.items():
        set_row(STORAGE, THREADS_TABLE, key, row)
    for place, data in SOUND.items():
        put(place, data)
    assert LOG.audit().breaches == []


def test_damage(damaged: Callable[[dict[Place, bytes | None]], None], rng: random.Random) -> None:
    """Whatever happens to a segment, every read is true or an error that names it, and the audit names its group."""
    for place in SOUND:
        data = rng.choice(DAMAGES)(SOUND[place], rng)
        if data == SOUND[place]:
            continue
        print(place, data.hex())
        damaged({place: data})
        errors = asked_all({place})
        named = ("I2", *place) in breaches()
        # A segment may also still say what it said; but whoever reads a damaged one says so, and so does the audit.
        assert named or errors == 0
        assert errors > 0 or not named
        assert {(found, *where) for found, *where in breaches() if found == "I2"} == (
            {("I2", *lost) for lost in group_from(place)} if named else set()
        )


def test_swapped(damaged: Callable[[dict[Place, bytes | None]], None], rng: random.Random) -> None:
    """Two segments that changed places are both found out, within a thread or between two."""
    for _ in range(8):
        one, other = rng.sample(sorted(SOUND), 2)
        damaged({one: SOUND[other], other: SOUND[one]})
        assert asked_all({one, other}) > 0
        assert {("I2", *one), ("I2", *other)} <= breaches()


def test_parts(damaged: Callable[[dict[Place, bytes | None]], None], rng: random.Random) -> None:
    """A part of a segment that is gone, or stands in the place of another one, is found out."""
    for place in SOUND:
        rows = parts_of(STORAGE, *place)
        assert len(rows) > 1
        key, other = rng.sample(sorted(rows), 2)
        for change in ({key: None}, {key: rows[other], other: rows[key]}, {key: rows[other]}):
            damaged({place: SOUND[place]})
            for changed, part in change.items():
                set_row(STORAGE, SEGMENTS, changed, part)
            assert asked_all({place}) > 0
            assert {breach for breach in breaches() if breach[0] == "I2"} == {
                ("I2", *lost) for lost in group_from(place)
            }


def test_lost_segments(damaged: Callable[[dict[Place, bytes | None]], None]) -> None:
    """A segment that is gone is never missed silently where a read depends on it."""
    for place in SOUND:
        damaged({place: None})
        number, last = place
        first = max((end for end in ENDS if end < last), default=0) + 1
        held = range(first, last + 1)
        for question, truth in TRUTH.items():
            # Lists of all events, and what is asked by sequence, cannot know what stood in a gap: audit does.
            if question[0] in ("events", "backwards", "all steps") or question[2] in held:
                continue
            check_lost(question, truth, number, held)
        assert breaches()
        assert {("I2", *lost) for lost in group_from(place) - {place}} <= breaches()


def check_lost(question: Question, truth: object, thread: int, held: range) -> None:
    """A question is answered truly, or the answer is that an event of the lost segment, or one after it, is missing."""
    error: Exception
    try:
        assert answer(LOG, question) == truth, question
        return
    except (CorruptionError, ConflictError) as raised:
        error = raised
    if isinstance(error, CorruptionError):
        assert error.thread == thread, question
        assert error.sequence in held or (thread, error.sequence) in group_from((thread, held[-1])), question
    else:
        assert held.start == 1  # before what is now the oldest event: it might have been pruned
