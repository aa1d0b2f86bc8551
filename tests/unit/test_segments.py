"""Segments: what goes in comes out, and what was changed since is never taken for it."""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell import CorruptionError, NewerFormatError
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.storage import segments
from stepwell.storage.segments import Segment, first_of, pack, unpack

THREAD = 7
HEAD_BYTES = 48  # with the checksum; the frame follows

numbers = st.integers(0, (1 << 64) - 1)
lanes = st.integers(0, (1 << 32) - 1)
octets = st.integers(0, 255)
headers = st.builds(
    fmt.Header, octets, octets, octets, octets, lanes, numbers, numbers, numbers, numbers, st.binary(), st.binary()
)
parts = st.one_of(st.binary(max_size=40), st.integers(0, 3000).map(bytes), st.just(b"text " * 99))
contents = st.lists(st.tuples(headers, parts, parts), min_size=1, max_size=30)
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


@given(rows=contents, first=st.integers(1, 1 << 62), thread=numbers, chain=chains)
def test_round_trip(rows: list[tuple[fmt.Header, bytes, bytes]], first: int, thread: int, chain: bytes) -> None:
    """A segment gives back each record as it went in, whatever it holds."""
    records = records_of(rows, first, chain)
    last = first + len(rows) - 1
    data = pack(thread, records)
    assert first_of(data) == first
    segment = unpack(thread, last, data)
    assert (segment.first, segment.last) == (first, last)
    assert records_in(segment) == [sealed(each, chain if each.sequence == last else b"") for each in records]
    assert [segment.payload(each.sequence) for each in records] == [each.payload for each in records]
    # The order in which they are asked for does not matter.
    assert segment.record(last) == sealed(records[-1], chain)
    assert pack(thread, records_in(segment)) == data


@given(rows=contents, first=st.integers(1, 1 << 62), place=st.tuples(numbers, numbers))
@settings(max_examples=30)
def test_any_other_place(rows: list[tuple[fmt.Header, bytes, bytes]], first: int, place: tuple[int, int]) -> None:
    """A segment is refused wherever it does not belong: in another thread, or at another sequence."""
    last = first + len(rows) - 1
    data = pack(THREAD, records_of(rows, first, bytes(16)))
    for thread, sequence in (place, (THREAD + 1, last), (THREAD, last + 1), (THREAD, first - 1), (last, THREAD)):
        if (thread, sequence) != (THREAD, last):
            with pytest.raises(CorruptionError) as caught:
                unpack(thread, sequence, data)
            assert (caught.value.thread, caught.value.sequence) == (thread, sequence)


RECORDS = made()
SOUND = pack(THREAD, RECORDS)
TRUTH = records_in(unpack(THREAD, 149, SOUND))


def refused(data: bytes) -> bool:
    """Whether a damaged segment is refused; if not, it says what it said before."""
    error: Exception
    try:
        segment = unpack(THREAD, 149, data)
    except (CorruptionError, NewerFormatError) as raised:
        error = raised
    else:
        assert records_in(segment) == TRUTH
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
    """A segment that was cut anywhere is refused; one that goes on after its end says nothing else than before."""
    for length in range(len(SOUND)):
        assert refused(SOUND[:length])
        assert length == 0 or refused(SOUND[length:])
    assert refused(SOUND + b"\0")
    for more in (SOUND[-4:], SOUND):
        refused(SOUND + more)


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
    assert first_of(data) == (-1 if len(data) < 32 else int.from_bytes(data[8:16]))


def test_newer_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of a later version of the library asks for an upgrade, and only if its head is sound."""
    monkeypatch.setattr(fmt, "FORMAT_VERSION", 2)
    data = pack(THREAD, RECORDS)
    assert len(records_in(unpack(THREAD, 149, data))) == 50
    monkeypatch.undo()
    with pytest.raises(NewerFormatError, match="upgrade"):
        unpack(THREAD, 149, data)
    with pytest.raises(CorruptionError):
        unpack(THREAD, 149, data[:9] + b"\xff" + data[10:])


def forged(count: int, plain: bytes, last: int = 149, frame: bytes | None = None) -> bytes:
    """A segment with a sound checksum over a head and a frame that may not fit each other."""
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(plain) if frame is None else frame
    head = SOUND[:4] + count.to_bytes(4) + (last - count + 1).to_bytes(8) + bytes(16)
    covered = fmt.event_key(THREAD, last) + head + frame[:16] + frame[-4:]
    return head + blake2b(covered, digest_size=16).digest() + frame


def test_sound_checksum_over_nonsense() -> None:
    """A segment that no library wrote is refused, though its checksum be right."""
    plain = zstandard.decompress(SOUND[HEAD_BYTES:])
    assert records_in(unpack(THREAD, 149, forged(50, plain)))[:49] == TRUTH[:49]
    for count, other in (
        (0, plain),
        (49, plain),
        (51, plain),
        (150, plain),
        (1, b""),
        (50, plain[:-1]),
        (50, plain + b"x"),
        (2, bytes(95)),
        (1, bytes(40) + b"\xff" * 8),
    ):
        assert refused(forged(count, other)), count
    with pytest.raises(CorruptionError, match="do not fit"):
        unpack(THREAD, 1 << 32, forged((1 << 32) - 1, plain, last=1 << 32))
    for frame in (b"", b"no frame", bytes.fromhex("28b52ffd0058010000"), bytes.fromhex("28b52ffdc0" + "ff" * 8)):
        assert refused(forged(50, b"", frame=frame))


def test_want_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a sound segment does not fit into memory, that is not said to be damage."""

    def starved(data: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(segments.codec, "decompress", starved)
    with pytest.raises(MemoryError):
        unpack(THREAD, 149, SOUND)
