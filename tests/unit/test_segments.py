"""Segments: what goes in comes out, and what was changed since is never taken for it."""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell import CorruptionError, NewerFormatError, codec
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.storage import Group, segments
from stepwell.storage.segments import PART_BYTES, SMALL_PART_BYTES, Segment, cut, first_of, pack, unpack

THREAD = 7
HEAD_BYTES = 64  # with the checksum; the frame follows

numbers = st.integers(0, (1 << 64) - 1)
lanes = st.integers(0, (1 << 32) - 1)
octets = st.integers(0, 255)
headers = st.builds(
    fmt.Header, octets, octets, octets, octets, lanes, numbers, numbers, numbers, numbers, st.binary(), st.binary()
)
parts = st.one_of(st.binary(max_size=40), st.integers(0, 3000).map(bytes), st.just(b"text " * 99))
contents = st.lists(st.tuples(headers, parts, parts), min_size=1, max_size=30)
states = st.dictionaries(octets, parts, max_size=4)
chains = st.binary(min_size=fmt.CHAIN_BYTES, max_size=fmt.CHAIN_BYTES)


def records_of(rows: list[tuple[fmt.Header, bytes, bytes]], first: int, chain: bytes) -> list[Record]:
    """Consecutive records, of which the last says its chain hash."""
    records = [
        Record(sequence, header, memoryview(skeleton), memoryview(payload))
        for sequence, (header, skeleton, payload) in enumerate(rows, first)
    ]
    return [*records[:-1], records[-1]._replace(header=records[-1].header._replace(chain=chain))]


def sealed(record: Record, chain: bytes) -> Record:
    """What a segment gives of a record: plain, without a checksum, its chain hash only if it is the last."""
    return record._replace(header=record.header._replace(form=fmt.FORM_PLAIN, checksum=b"", chain=chain))


def records_in(segment: Segment) -> list[Record]:
    """All records of a segment."""
    return [segment.record(sequence) for sequence in range(segment.first, segment.last + 1)]


def made(count: int = 50, first: int = 100, seed: int = 3) -> list[Record]:
    """Records such as events have."""
    rng = random.Random(seed)
    words = [rng.randbytes(4).hex().encode() for _ in range(9)]

    def part() -> bytes:
        return b" ".join(rng.choices(words, k=rng.randrange(30)))

    rows = [
        (fmt.Header(1, 3 + n % 2, 0, 1, 1, n, 10**18 + n, n, n, b"c" * 8, b"h" * 16), part(), part())
        for n in range(count)
    ]
    return records_of(rows, first, b"chain after last")


NO_GROUP = Group()


def alone(group: int) -> bytes:
    """What is asked of a segment that is the first of its group: nothing."""
    raise AssertionError(f"a block of group {group} was asked for")


def packed(
    records: list[Record], bases: dict[int, bytes] | None = None, before: Group = NO_GROUP, *, thread: int = THREAD
) -> bytes:
    """A segment, without the group that it ends."""
    return pack(thread, records, bases or {}, before)[0]


@given(rows=contents, first=st.integers(1, 1 << 62), thread=numbers, chain=chains, kept=states)
def test_round_trip(
    rows: list[tuple[fmt.Header, bytes, bytes]], first: int, thread: int, chain: bytes, kept: dict[int, bytes]
) -> None:
    """A segment gives back each record and each state as it went in, whatever it holds."""
    records = records_of(rows, first, chain)
    last = first + len(rows) - 1
    bases = {first + at % len(rows): state for at, state in kept.items()}
    data, group = pack(thread, records, bases, Group())
    assert first_of(data) == first
    segment = unpack(thread, last, data, alone)
    assert (segment.first, segment.last) == (first, last)
    assert group == (segment.group, segment.plain)
    assert segment.group == first
    assert records_in(segment) == [sealed(each, chain if each.sequence == last else b"") for each in records]
    assert [segment.payload(each.sequence) for each in records] == [each.payload for each in records]
    assert segment.bases == bases
    # The order in which they are asked for does not matter.
    assert segment.record(last) == sealed(records[-1], chain)
    assert pack(thread, records_in(segment), segment.bases, Group()) == (data, group)


@given(groups=st.lists(contents, min_size=1, max_size=5), first=st.integers(1, 1 << 62), kept=states)
@settings(max_examples=30)
def test_round_trip_of_groups(
    groups: list[list[tuple[fmt.Header, bytes, bytes]]], first: int, kept: dict[int, bytes]
) -> None:
    """Segments that follow each other come back, each given only those before it in its group."""
    group, sequence = Group(), first
    plains: list[bytes] = []
    for rows in groups:
        records = records_of(rows, sequence, bytes(16))
        last = records[-1].sequence
        bases = {last: [*kept.values()][-1]} if kept else {}
        data, group = pack(THREAD, records, bases, group)
        segment = unpack(THREAD, last, data, {first: b"".join(plains)}.__getitem__)
        plains.append(segment.plain)
        assert records_in(segment) == [sealed(each, bytes(16) if each.sequence == last else b"") for each in records]
        assert segment.group == group.first == first
        assert group.plain == b"".join(plains)
        sequence = last + 1


def test_groups_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group ends with the segment that brings it to its size; the next one needs none before it."""
    one = packed(made(10, 100))
    plain = len(unpack(THREAD, 109, one, alone).plain)
    monkeypatch.setattr(segments, "GROUP_BYTES", 2 * plain + 1)
    group, firsts, longest = Group(), [], 0
    for first in range(100, 200, 10):
        data, group = pack(THREAD, made(10, first), {}, group)
        assert int.from_bytes(data[24:32]) == group.first
        firsts.append(group.first)
        longest = max(longest, len(group.plain))
    assert firsts == [100, 100, 100, 130, 130, 130, 160, 160, 160, 190]
    assert longest == 3 * plain


def test_group_saves_bytes() -> None:
    """What stands in a segment before it in its group takes next to no room again."""
    rng = random.Random(5)
    rows = [(RECORDS[0].header, rng.randbytes(20), rng.randbytes(2000)) for _ in range(20)]
    one, group = pack(THREAD, records_of(rows, 100, bytes(16)), {}, Group())
    other, _ = pack(THREAD, records_of(rows, 120, bytes(16)), {}, group)
    assert len(one) > 40_000
    assert len(other) < 1_000


@given(rows=contents, first=st.integers(1, 1 << 62), place=st.tuples(numbers, numbers))
@settings(max_examples=30)
def test_any_other_place(rows: list[tuple[fmt.Header, bytes, bytes]], first: int, place: tuple[int, int]) -> None:
    """A segment is refused wherever it does not belong: in another thread, or at another sequence."""
    last = first + len(rows) - 1
    data = packed(records_of(rows, first, bytes(16)))
    for thread, sequence in (place, (THREAD + 1, last), (THREAD, last + 1), (THREAD, first - 1), (last, THREAD)):
        if (thread, sequence) != (THREAD, last):
            with pytest.raises(CorruptionError) as caught:
                unpack(thread, sequence, data, alone)
            assert (caught.value.thread, caught.value.sequence) == (thread, sequence)


def test_another_group() -> None:
    """A segment is refused if what is before it in its group is not what it was packed after."""
    _, group = pack(THREAD, made(50, 50, seed=4), {}, Group())
    data = packed(RECORDS, {}, group)
    assert records_in(unpack(THREAD, 149, data, {50: group.plain}.__getitem__)) == TRUTH
    for before in (b"", group.plain[:-1], group.plain + b"x", bytes(len(group.plain))):
        with pytest.raises(CorruptionError) as caught:
            unpack(THREAD, 149, data, lambda group: before)  # noqa: B023
        assert (caught.value.thread, caught.value.sequence) == (THREAD, 149)
    errors = 0
    for position in range(0, len(group.plain), 7):
        before = group.plain[:position] + bytes((group.plain[position] ^ 1,)) + group.plain[position + 1 :]
        try:
            # It need not refer to each byte.
            assert records_in(unpack(THREAD, 149, data, lambda group: before)) == TRUTH  # noqa: B023
        except CorruptionError:
            errors += 1
    assert errors > 20


@given(st.binary(max_size=3 * PART_BYTES))
def test_parts(data: bytes) -> None:
    """A segment is cut into parts that fill a page and smaller ones, at keys in order, and is their sum."""
    rows = list(cut(THREAD, 149, data))
    assert b"".join(part for _, part in rows) == data
    assert [key for key, _ in rows] == [fmt.part_key(THREAD, 149, part) for part in range(len(rows))]
    full = len(data) // PART_BYTES
    sizes = [len(part) for _, part in rows]
    assert sizes[:full] == [PART_BYTES] * full
    assert all(size == SMALL_PART_BYTES for size in sizes[full:-1])
    assert all(0 < size <= SMALL_PART_BYTES for size in sizes[full:])


RECORDS = made()
BASES = {110: b"state of 110" * 9, 149: b"", 100: b"state of 100"}
SOUND = packed(RECORDS, BASES)
TRUTH = records_in(unpack(THREAD, 149, SOUND, alone))


def refused(data: bytes) -> bool:
    """Whether a damaged segment is refused; if not, it says what it said before."""
    error: Exception
    try:
        segment = unpack(THREAD, 149, data, lambda group: b"")
    except (CorruptionError, NewerFormatError) as raised:
        error = raised
    else:
        assert records_in(segment) == TRUTH
        assert segment.bases == BASES
        return False
    assert isinstance(error, NewerFormatError) or (error.thread, error.sequence) == (THREAD, 149)
    return True


def test_every_single_bit() -> None:
    """No single bit can change what a segment says; of its head, none is without meaning."""
    for position in range(len(SOUND)):
        for bit in range(8):
            damaged = SOUND[:position] + bytes((SOUND[position] ^ 1 << bit,)) + SOUND[position + 1 :]
            assert refused(damaged) or position >= HEAD_BYTES, (position, bit)


def test_every_length() -> None:
    """A segment that was cut anywhere is refused, and so is one that goes on after its end."""
    for length in range(len(SOUND)):
        assert refused(SOUND[:length])
        assert length == 0 or refused(SOUND[length:])
    assert refused(SOUND + b"\0")
    for more in (SOUND[-4:], SOUND):
        assert refused(SOUND + more)


@given(data=st.data())
def test_any_damage(data: st.DataObject) -> None:
    """Bytes that were replaced, moved or left out never make other records."""
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(SOUND)), st.integers(0, len(SOUND)))))
    other = data.draw(st.one_of(st.binary(max_size=60), st.just(bytes(end - start)), st.just(SOUND[:40])))
    damaged = SOUND[:start] + other + SOUND[end:]
    assert refused(damaged) or damaged[:HEAD_BYTES] == SOUND[:HEAD_BYTES]


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Bytes that are no segment are never taken for one."""
    assert refused(data)
    assert refused(SOUND[:HEAD_BYTES] + data)
    assert first_of(data) == (-1 if len(data) < 48 else int.from_bytes(data[16:24]))


def test_newer_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of a later version of the library asks for an upgrade, and only if its head is sound."""
    monkeypatch.setattr(fmt, "FORMAT_VERSION", 2)
    data = packed(RECORDS)
    assert len(records_in(unpack(THREAD, 149, data, alone))) == 50
    monkeypatch.undo()
    with pytest.raises(NewerFormatError, match="upgrade"):
        unpack(THREAD, 149, data, alone)
    with pytest.raises(CorruptionError):
        unpack(THREAD, 149, data[:17] + b"\xff" + data[18:], alone)


def forged(count: int, plain: bytes, last: int = 149, frame: bytes | None = None, bases: int = len(BASES)) -> bytes:
    """A segment with a sound checksum over a head and a frame that may not fit each other."""
    frame, form = codec.compress_block(plain) if frame is None else (frame, fmt.FORM_ZSTD)
    first = (last - count + 1).to_bytes(8)
    counts = b"".join(number.to_bytes(4) for number in (count, bases, len(frame)))
    head = bytes((1, form, 0, 0)) + counts + first + first + bytes(16)
    covered = fmt.event_key(THREAD, last) + head + frame[:16] + frame[-4:]
    return head + blake2b(covered, digest_size=16).digest() + frame


def test_sound_checksum_over_nonsense() -> None:
    """A segment that no library wrote is refused, though its checksum be right."""
    plain = codec.decompress_block(SOUND[HEAD_BYTES:], SOUND[1])
    assert records_in(unpack(THREAD, 149, forged(50, plain), alone))[:49] == TRUTH[:49]
    for count, bases, other in (
        (0, 3, plain),
        (49, 3, plain),
        (51, 3, plain),
        (150, 3, plain),
        (1, 3, b""),
        (50, 3, plain[:-1]),
        (50, 3, plain + b"x"),
        (50, 2, plain),
        (50, 4, plain),
        (50, 0, plain),
        (50, (1 << 32) - 1, plain),
        (2, 0, bytes(95)),
        (1, 0, bytes(40) + b"\xff" * 8),
        (1, 1, bytes(48) + bytes(8) + b"\xff" * 4),
        (1, 1, bytes(48) + bytes(11)),
    ):
        assert refused(forged(count, other, bases=bases)), (count, bases)
    with pytest.raises(CorruptionError, match="do not fit"):
        unpack(THREAD, 1 << 32, forged((1 << 32) - 1, plain, last=1 << 32), alone)
    for frame in (b"", b"no frame", bytes.fromhex("28b52ffd0058010000"), bytes.fromhex("28b52ffdc0" + "ff" * 8)):
        assert refused(forged(50, b"", frame=frame))


def test_want_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a sound segment does not fit into memory, that is not said to be damage."""

    def starved(*data: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(codec, "decompress_block", starved)
    with pytest.raises(MemoryError):
        unpack(THREAD, 149, SOUND, alone)
