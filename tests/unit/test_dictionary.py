"""The dictionary that is carried, and the form of bodies that is made with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest
import zstandard

from building import noise, step
from stepwell import CorruptionError, codec, dictionary
from stepwell import format as fmt

THREAD, SEQUENCE = 7, 30
PLAIN = codec.plain_body(*codec.encode(step("s", {"messages": msgspec.msgpack.encode(["a text", 1] * 90)}))[1:3])


def record_of(plain: bytes, form: int, data: bytes) -> bytes:
    """A record of a step whose body stands in this form."""
    header, _ = fmt.stamp(
        THREAD, SEQUENCE, fmt.KIND_STEP, 0, form, 1, 1, 0, 0, 0, fmt.body_digest(plain), fmt.CHAIN_SEED
    )
    return header + data


def framed(plain: bytes, form: int) -> bytes:
    """A body as one frame, with the dictionary or without."""
    known = zstandard.ZstdCompressionDict(dictionary.load()) if form == fmt.FORM_ZSTD_DICTIONARY else None
    return zstandard.ZstdCompressor(dict_data=known, write_dict_id=False).compress(plain)


def test_the_file_is_the_one_of_the_format() -> None:
    """The carried file has the size and the digest that the format names, and is a zstandard dictionary."""
    content = dictionary.load()
    assert len(content) == dictionary.BYTES
    assert blake2b(content, digest_size=32).hexdigest() == dictionary.DIGEST
    assert zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_FULLDICT).dict_id()


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A dictionary with one wrong byte, and one that is missing, say what to do instead of making unreadable logs."""
    other = tmp_path / "loose-1.dict"
    with pytest.raises(ImportError, match=r"cannot be read .*; install stepwell again"):
        dictionary.load(other)
    other.write_bytes(dictionary.load()[:-1] + b"?")
    with pytest.raises(ImportError, match=r"is not the dictionary .*; install stepwell again"):
        dictionary.load(other)


def test_small_bodies_are_made_with_it() -> None:
    """Bodies up to the limit take the dictionary, larger ones do not, and what does not shrink stays plain."""
    limit = codec.LARGEST_WITH_DICTIONARY_BYTES
    for plain, form in (
        (b"x" * limit, fmt.FORM_ZSTD_DICTIONARY),
        (b"x" * (limit + 1), fmt.FORM_ZSTD),
        (noise(limit), fmt.FORM_PLAIN),
        (noise(limit + 1), fmt.FORM_PLAIN),
        (b"", fmt.FORM_PLAIN),
    ):
        data, found = codec.compress_body(plain)
        assert found == form
        assert codec.plain_body(data, form) == plain


def test_frames_are_what_any_zstandard_reads() -> None:
    """Whoever has the file opens a frame with it; the frame does not name the dictionary, but says its size."""
    data, form = codec.compress_body(PLAIN)
    assert form == fmt.FORM_ZSTD_DICTIONARY
    parameters = zstandard.get_frame_parameters(data)
    assert (parameters.dict_id, parameters.content_size, parameters.has_checksum) == (0, len(PLAIN), False)
    known = zstandard.ZstdCompressionDict(dictionary.FILE.read_bytes())
    assert zstandard.ZstdDecompressor(dict_data=known).decompress(data) == PLAIN


def test_names_that_every_record_has_cost_next_to_nothing() -> None:
    """A body that shares with others only what its packages write is a third of what it is without the dictionary."""
    plain = msgspec.msgpack.encode({"channel_versions": None, "versions_seen": None, "updated_channels": "messages"})
    assert len(codec.compress_body(plain)[0]) * 3 < min(len(plain), len(framed(plain, fmt.FORM_ZSTD))) * 2


def test_every_form_has_the_same_checksum() -> None:
    """A body keeps checksum and chain hash in each of its forms, and is the same record when it is read."""
    forms = {
        fmt.FORM_PLAIN: PLAIN,
        fmt.FORM_ZSTD: framed(PLAIN, fmt.FORM_ZSTD),
        fmt.FORM_ZSTD_DICTIONARY: framed(PLAIN, fmt.FORM_ZSTD_DICTIONARY),
    }
    assert len(set(forms.values())) == 3
    records = [codec.open_record(THREAD, SEQUENCE, record_of(PLAIN, form, data)) for form, data in forms.items()]
    assert [record.header.form for record in records] == [*forms]
    assert len({record.header._replace(form=0) for record in records}) == 1
    assert {record.body for record in records} == {PLAIN}


def test_damage() -> None:
    """A frame with any byte changed, or cut anywhere, is damage or still the body, and never another one."""
    data = framed(PLAIN, fmt.FORM_ZSTD_DICTIONARY)
    damaged = [data[:at] + bytes((data[at] ^ flip,)) + data[at + 1 :] for at in range(len(data)) for flip in (1, 128)]
    broken = [*damaged, *(data[:end] for end in range(len(data)))]
    assert sum(is_damage(each) for each in broken) > 0.98 * len(broken)


def is_damage(data: bytes) -> bool:
    """Whether a body is reported as damage; what is not must be the body."""
    try:
        record = codec.open_record(THREAD, SEQUENCE, record_of(PLAIN, fmt.FORM_ZSTD_DICTIONARY, data))
    except CorruptionError:
        return True
    assert record.body == PLAIN
    return False


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (fmt.FORM_ZSTD_DICTIONARY, fmt.FORM_ZSTD),
        (fmt.FORM_ZSTD_DICTIONARY, fmt.FORM_PLAIN),
        (fmt.FORM_ZSTD_DICTIONARY, 3),
    ],
)
def test_wrong_form(form: int, said: int) -> None:
    """A body that is read in another form than its own, or in one that nobody knows, is damage."""
    with pytest.raises(CorruptionError):
        codec.open_record(THREAD, SEQUENCE, record_of(PLAIN, said, framed(PLAIN, form)))


def test_frame_that_claims_an_impossible_size() -> None:
    """No memory is asked for on the word of a frame."""
    claims = bytes.fromhex("28b52ffdc0000000000000010000010000")  # 1 TiB
    with pytest.raises(CorruptionError, match="impossible size"):
        codec.open_record(THREAD, SEQUENCE, record_of(PLAIN, fmt.FORM_ZSTD_DICTIONARY, claims))


def test_blocks() -> None:
    """A small block is made with the carried dictionary or with what came before it, and has a checksum."""
    sizes = {}
    for before in (b"", noise(200) + PLAIN[20:] + noise(200)):
        frame, form = codec.compress_block(PLAIN, before)
        assert codec.decompress_block(frame, form, before) == PLAIN
        assert zstandard.get_frame_parameters(frame).has_checksum
        assert zstandard.get_frame_parameters(frame).dict_id == 0
        known = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        if not before:
            assert form == fmt.FORM_ZSTD_DICTIONARY
            known = zstandard.ZstdCompressionDict(dictionary.load())
        assert zstandard.ZstdDecompressor(dict_data=known).decompress(frame) == PLAIN
        others = (frame[:-1] + bytes((frame[-1] ^ 1,)), form, before), (frame, fmt.FORM_ZSTD, before + b"other")
        for damaged, other_form, other in others:
            with pytest.raises(codec.DecompressionError):
                codec.decompress_block(damaged, other_form, other)
        sizes[before] = len(frame)
    assert sorted(sizes.values(), reverse=True) == [*sizes.values()]
    assert len(framed(PLAIN, fmt.FORM_ZSTD)) > sizes[b""]


def test_threads_share_the_dictionary() -> None:
    """Bodies come back whole though eight threads compress and decompress at once."""
    bodies = [PLAIN[: 40 + 7 * n] + bytes((n,)) for n in range(60)]

    def round_trip(_: int) -> list[bytes]:
        return [codec.plain_body(*codec.compress_body(body)) for body in bodies * 20]

    with ThreadPoolExecutor(8) as pool:
        assert all(found == bodies * 20 for found in pool.map(round_trip, range(8)))
