"""Bodies come back from every form that they are stored in."""

from __future__ import annotations

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stepwell import codec, dictionary
from stepwell import format as fmt

KNOWN = dictionary.load()

pieces = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda at, length: KNOWN[at : at + length], st.integers(0, len(KNOWN)), st.integers(0, 200)),
    st.builds(lambda byte, times: byte * times, st.binary(min_size=1, max_size=3), st.integers(0, 4000)),
)
bodies = st.lists(pieces, max_size=20).map(b"".join)


@given(bodies)
def test_round_trip(body: bytes) -> None:
    """Whatever form is chosen, it gives the body back, is never larger, and is the one that its size asks for."""
    data, form = codec.compress_body(body)
    assert codec.plain_body(data, form) == body
    if form == fmt.FORM_PLAIN:
        assert data == body
    else:
        assert len(data) < len(body)
        assert (form == fmt.FORM_ZSTD_DICTIONARY) == (len(body) <= codec.LARGEST_WITH_DICTIONARY_BYTES)


@given(bodies, st.sampled_from((fmt.FORM_ZSTD, fmt.FORM_ZSTD_DICTIONARY)), st.integers(1, 12))
def test_frames_of_other_writers(body: bytes, form: int, level: int) -> None:
    """A frame of any level, made by any writer that has the dictionary, is read whatever the size of the body."""
    known = zstandard.ZstdCompressionDict(KNOWN) if form == fmt.FORM_ZSTD_DICTIONARY else None
    frame = zstandard.ZstdCompressor(level=level, dict_data=known, write_dict_id=False).compress(body)
    assert codec.plain_body(frame, form) == body


@given(bodies, bodies)
def test_blocks(block: bytes, before: bytes) -> None:
    """A block comes back from its frame, whatever came before it."""
    for content in (block, before + block):
        frame, form = codec.compress_block(content, before)
        assert codec.decompress_block(frame, form, before) == content
