"""Keys and records, byte by byte."""

from __future__ import annotations

import uuid

import pytest

from stepwell import format as fmt

BODY = b"the body"
DIGEST = fmt.body_digest(BODY)


def stamped(
    thread: int = 7,
    sequence: int = 3,
    form: int = fmt.FORM_PLAIN,
    flags: int = fmt.FLAG_REPLACES,
    chain: bytes = fmt.CHAIN_SEED,
) -> tuple[bytes, bytes]:
    """A header with another number in every field, and the chain after it."""
    return fmt.stamp(thread, sequence, fmt.KIND_STEP, flags, form, 4, 5, 6, 1, 2, DIGEST, chain)


def test_header_bytes() -> None:
    """A header is laid out as it always was."""
    header, after = stamped(form=fmt.FORM_ZSTD)
    assert header == bytes.fromhex(
        "01030101"  # version, kind, flags, form
        "00000004"  # lane
        "0000000000000005"  # commit
        "0000000000000006"  # created_at
        "0000000000000001"  # base
        "0000000000000002"  # previous
        "fc4e7e6d4cf0f57c"  # checksum
        "43ff86288cf7c6537ee9d11bc85b7b38"  # chain
    )
    assert after == header[48:]
    assert len(header) == fmt.HEADER_BYTES


def test_header_round_trip() -> None:
    """Every field of a header comes back."""
    header, after = stamped()
    fields = fmt.read_header(header + BODY)
    assert fields == (1, fmt.KIND_STEP, fmt.FLAG_REPLACES, fmt.FORM_PLAIN, 4, 5, 6, 1, 2, header[40:48], after)


def test_covered_round_trip() -> None:
    """What a checksum covers of a header is all but its hashes, in plain form, and comes back from any place."""
    for form in (fmt.FORM_PLAIN, fmt.FORM_ZSTD):
        header = fmt.read_header(stamped(form=form)[0])
        covered = fmt.pack_covered(header)
        assert len(covered) == fmt.COVERED_BYTES
        plain = header._replace(form=fmt.FORM_PLAIN, checksum=b"", chain=b"")
        assert fmt.read_covered(b"before" + covered, 6) == plain
        assert fmt.read_covered(bytearray(covered), 0, b"chain") == plain._replace(chain=b"chain")


@pytest.mark.parametrize("length", [0, 1, fmt.HEADER_BYTES - 1])
def test_short_record(length: int) -> None:
    """What is shorter than a header is no record."""
    with pytest.raises(ValueError, match="at least 64 bytes"):
        fmt.read_header(stamped()[0][:length])


def test_verify_accepts() -> None:
    """A record is accepted at its place, and goes on from the chain of the one before it."""
    header, after = stamped()
    fmt.verify(7, 3, fmt.read_header(header), DIGEST)
    assert fmt.chain_after(7, 3, fmt.read_header(header), DIGEST, fmt.CHAIN_SEED) == after
    following, last = stamped(sequence=4, chain=after)
    fmt.verify(7, 4, fmt.read_header(following), DIGEST)
    assert fmt.chain_after(7, 4, fmt.read_header(following), DIGEST, after) == last


def test_verify_finds_every_changed_bit() -> None:
    """No bit of a header or a body can change unnoticed, but for those of the form, which says how it is stored."""
    header, after = stamped()
    for position in range(len(header)):
        for bit in range(8):
            damaged = bytearray(header)
            damaged[position] ^= 1 << bit
            found = fmt.read_header(bytes(damaged))
            computed = fmt.chain_after(7, 3, found, DIGEST, fmt.CHAIN_SEED)
            if position == 3:
                fmt.verify(7, 3, found, DIGEST)
                assert computed == found.chain
            elif position < fmt.COVERED_BYTES + fmt.CHECKSUM_BYTES:
                with pytest.raises(ValueError, match="checksum"):
                    fmt.verify(7, 3, found, DIGEST)
                assert (computed == after) == (position >= fmt.COVERED_BYTES)
            else:
                fmt.verify(7, 3, found, DIGEST)
                assert computed != found.chain
    for position in range(len(BODY)):
        body = bytearray(BODY)
        body[position] ^= 1
        with pytest.raises(ValueError, match="checksum"):
            fmt.verify(7, 3, fmt.read_header(header), fmt.body_digest(bytes(body)))
        assert fmt.chain_after(7, 3, fmt.read_header(header), fmt.body_digest(bytes(body)), fmt.CHAIN_SEED) != after


def test_the_form_can_change() -> None:
    """A record stays sound, and so does the chain after it, when its body is stored in another form."""
    plain, after = stamped(form=fmt.FORM_PLAIN)
    packed, same = stamped(form=fmt.FORM_ZSTD)
    assert after == same
    assert plain[:3] + packed[3:4] + plain[4:] == packed


@pytest.mark.parametrize("place", [(7, 2), (7, 4), (6, 3), (3, 7)])
def test_verify_place(place: tuple[int, int]) -> None:
    """A sound record is refused in another thread and at another sequence."""
    header, after = stamped()
    with pytest.raises(ValueError, match="checksum"):
        fmt.verify(*place, fmt.read_header(header), DIGEST)
    assert fmt.chain_after(*place, fmt.read_header(header), DIGEST, fmt.CHAIN_SEED) != after


def test_verify_chain() -> None:
    """A sound record after another event than the one that it was written after has another chain than it says."""
    header = fmt.read_header(stamped()[0])
    assert fmt.chain_after(7, 3, header, DIGEST, fmt.CHAIN_SEED) == header.chain
    assert fmt.chain_after(7, 3, header, DIGEST, b"x" * fmt.CHAIN_BYTES) != header.chain


def test_chain_depends_on_everything_before() -> None:
    """Two histories that differ in one event have different chains ever after."""
    one, other = stamped(sequence=2)[1], stamped(sequence=2, flags=0)[1]
    assert one != other
    assert stamped(chain=one)[1] != stamped(chain=other)[1]


def test_verify_newer_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound record of a later version, or with a flag that is not known, is refused, not guessed at."""
    with pytest.raises(ValueError, match=r"format|flags"):
        fmt.verify(7, 3, fmt.read_header(stamped(flags=fmt.KNOWN_FLAGS + 1)[0]), DIGEST)
    monkeypatch.setattr(fmt, "FORMAT_VERSION", 2)
    header = fmt.read_header(stamped()[0])
    fmt.verify(7, 3, header, DIGEST)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2"):
        fmt.verify(7, 3, header, DIGEST)


# --- keys ---

NUMBERS = [0, 1, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
LANES = [0, 1, 255, 256, 2**32 - 1]


def test_keys_come_back() -> None:
    """What a key was made of can be read from it."""
    for number in NUMBERS:
        assert fmt.read_number(fmt.number_key(number)) == number
        for other in NUMBERS:
            assert fmt.read_event_key(fmt.event_key(number, other)) == (number, other)
        for lane in LANES:
            assert fmt.read_lane_key(fmt.lane_key(number, lane)) == (number, lane)
            assert fmt.read_event_key(fmt.part_key(number, number, lane)) == (number, number)


def test_order_of_keys() -> None:
    """Keys are ordered as the numbers in them."""
    events = [(thread, sequence) for thread in NUMBERS for sequence in NUMBERS]
    assert sorted(events, key=lambda place: fmt.event_key(*place)) == events
    lanes = [(thread, lane) for thread in NUMBERS for lane in LANES]
    assert sorted(lanes, key=lambda place: fmt.lane_key(*place)) == lanes
    parts = [(thread, last, part) for thread in NUMBERS for last in NUMBERS for part in LANES]
    assert sorted(parts, key=lambda place: fmt.part_key(*place)) == parts
    rows = [(thread, lane, name, at) for thread in NUMBERS[:3] for lane in LANES[:3] for name in "ab" for at in NUMBERS]
    keys = [fmt.index_further_key(thread, lane, fmt.id_key(name), at) for thread, lane, name, at in rows]
    # The hash of "a" is the lower one.  An id's own row stands before its further ones.
    assert sorted(keys) == keys
    assert all(fmt.index_key(*row[:2], fmt.id_key(row[2])) < key for row, key in zip(rows, keys, strict=True))


def test_key_bytes() -> None:
    """Keys are laid out as they always were."""
    assert fmt.name_key(0, b"thread").hex() == "0000000000000000bd6bf7e21b032ae200f0def1fbf54f7f"
    plain = fmt.index_key(1, 2, fmt.id_key("a"))
    assert plain.hex() == "0000000000000001000000020127c35e6e9373877f29e562464e46497e"
    named = fmt.index_key(1, 2, fmt.id_key("1ef663ba-28fe-6528-8002-5a559208592c"))
    assert named.hex() == "000000000000000100000002001ef663ba28fe652880025a559208592c"
    assert len(plain) == len(named) == fmt.INDEX_KEY_BYTES
    further = fmt.index_further_key(1, 2, fmt.id_key("a"), 3)
    assert further.hex() == plain.hex() + "0000000000000003"
    assert fmt.part_key(1, 2, 3).hex() == "0000000000000001000000000000000200000003"


def test_uuid_order() -> None:
    """The keys of UUIDs are ordered as their texts, and each holds its UUID."""
    ids = sorted(str(uuid.uuid4()) for _ in range(50))
    assert sorted(ids, key=fmt.id_key) == ids
    assert all(fmt.id_key(each)[1:] == uuid.UUID(each).bytes for each in ids)


@pytest.mark.parametrize(
    "other",
    [
        "1EF663BA-28FE-6528-8002-5A559208592C",
        "1ef663ba28fe652880025a559208592c",
        "{1ef663ba-28fe-6528-8002-5a559208592}",
        "1ef663ba-28fe-6528-80025-a559208592c",
        "1ef663ba-28fe-6528-8002-5a559208592\u0663",
        " 1ef663ba-28fe-6528-8002-5a55920859",
    ],
)
def test_ids_like_uuids(other: str) -> None:
    """Another spelling of a UUID is another id."""
    key = fmt.id_key(other)
    assert key != fmt.id_key("1ef663ba-28fe-6528-8002-5a559208592c")
    assert key[:1] == b"\x01"


def test_hostile_ids() -> None:
    """Ids that differ in anything have different keys, all of one length."""
    ids = ["", "\0", "\0\0", "a", "a\0", "1", "12", "x" * 600, "x" * 601, "é", "e\u0301", "\U0001f389"]
    keys = {fmt.id_key(each) for each in ids}
    assert len(keys) == len(ids)
    assert {len(key) for key in keys} == {fmt.ID_KEY_BYTES}


def test_owners_of_names() -> None:
    """The same name is another name for another owner."""
    assert len({fmt.name_key(owner, b"name") for owner in NUMBERS}) == len(NUMBERS)
