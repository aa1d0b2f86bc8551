"""Content within content: the pieces always make the bytes again, and what is known is found wherever it stands."""

from __future__ import annotations

from typing import Any

import msgspec
import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send

from building import noise, step
from stepwell import Log, StepCommitted, codec, nesting
from stepwell.patch import Array, Blob, Ref, payload_of, references


def extension(parts: tuple[int, Any]) -> Any:
    """A value within an object, as the serializer lays objects out."""
    return ormsgpack.Ext(parts[0], packed(parts[1]))


def packed(value: Any) -> bytes:
    """A value in msgpack."""
    return ormsgpack.packb(value, option=ormsgpack.OPT_NON_STR_KEYS)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False),
    st.text(max_size=9),
    st.binary(max_size=9),
    st.integers(0, 3000).map(bytes),
    st.integers(0, 3000).map("x".__mul__),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=20),
        st.dictionaries(st.text(max_size=5) | st.integers(0, 300), inner, max_size=20),
        st.tuples(st.integers(0, 9), inner).map(extension),
    ),
    max_leaves=40,
)


def joined(data: bytes, known: set[bytes]) -> tuple[bytes, list[bytes]]:
    """The pieces joined again, and those that were found."""
    found: list[bytes] = []

    def find(piece: memoryview) -> bytes | None:
        if bytes(piece) not in known:
            return None
        found.append(bytes(piece))
        return found[-1]

    return b"".join(nesting.search(data, find)), found


def asked(data: bytes) -> list[bytes]:
    """The pieces that are looked for."""
    pieces: list[bytes] = []
    nesting.search(data, lambda piece: pieces.append(bytes(piece)))
    return pieces


@given(values, st.data())
def test_pieces_make_the_value_again(value: Any, data: st.DataObject) -> None:
    """Whatever is found of a value in msgpack, the pieces make its bytes again."""
    whole = packed(value)
    pieces = asked(whole)
    known = set(data.draw(st.lists(st.sampled_from(pieces)))) if pieces else set()
    again, found = joined(whole, known)
    assert again == whole
    assert set(found) <= known
    assert bool(found) == bool(known)


@given(st.one_of(st.binary(max_size=5000), st.tuples(st.binary(max_size=6), st.integers(900, 3000))))
def test_pieces_make_any_bytes_again(data: bytes | tuple[bytes, int]) -> None:
    """Bytes that are no msgpack, or not to their end, make themselves again."""
    whole = data if isinstance(data, bytes) else data[0] + bytes(data[1])
    assert joined(whole, set())[0] == whole
    assert joined(whole, {*asked(whole)})[0] == whole


@given(values, st.integers(0, 5000), st.binary(max_size=5))
def test_pieces_make_damaged_msgpack_again(value: Any, cut: int, other: bytes) -> None:
    """Msgpack that was cut, or has other bytes in its midst, makes itself again."""
    whole = packed(value)
    for data in (whole[:cut], whole[:cut] + other + whole[cut:], whole[:cut] + other + whole[cut + len(other) :]):
        assert joined(data, set())[0] == data
        assert joined(data, {*asked(data)})[0] == data


@pytest.mark.parametrize(
    "head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xc9\xff\xff\xff\xff\x05"]
)
def test_impossible_counts(head: bytes) -> None:
    """A header that promises more than there is costs nothing and is kept."""
    data = head + bytes(100_000)
    assert joined(data, set())[0] == data


@pytest.mark.parametrize("levels", [10, 17, 1000])
def test_deep_values(levels: int) -> None:
    """However deep a value is, its bytes are made again."""
    data = packed("x" * 2000)
    for level in range(levels):
        data = (b"\x91" if level % 2 else b"\x81\xa1k") + data
    assert joined(data, set())[0] == data


def test_known_pieces_are_found_wherever_they_stand() -> None:
    """Elements of lists, values of maps and objects are found, however deep, in the widths that msgpack has."""
    serde = JsonPlusSerializer()
    message = HumanMessage(content="text " * 100, id="1")
    element = serde.dumps_typed(message)[1]
    others = [HumanMessage(content=f"{n} " * 200, id=str(n)) for n in range(20)]
    for state in (
        [*others, message],
        {"messages": [message, *others], "n": 1},
        {"deep": {"er": {"list": [[message, *others], others]}}},
        Send("node", {"messages": [*others, message]}),
        [Send("node", {"messages": [*others, message]}), {str(n): "x" * 200 for n in range(70_000 // 200)}],
    ):
        data = serde.dumps_typed(state)[1]
        again, found = joined(data, {element})
        assert again == data
        assert found == [element]


def test_small_pieces_are_not_looked_for() -> None:
    """What is too small to be worth a reference is not asked for, nor is anything in a container of small parts."""
    assert asked(packed(["x" * 200] * 10)) == []
    assert asked(packed([*range(5000)])) == []
    assert asked(packed("x" * 5000)) == []  # the whole was looked for already
    assert len(asked(packed(["x" * 300, "y" * 300, "z" * 500]))) == 3


# --- through a log ---


def test_nested_content_is_stored_once(log: Log) -> None:
    """A value that holds others' content somewhere within it costs little more than what is new, and reads the same."""
    serde = JsonPlusSerializer()
    messages = [AIMessage(content=noise(400).hex(), id=str(n)) for n in range(40)]
    thread = log.thread("t")
    thread.append([step("s0", {"messages": serde.dumps_typed(messages)[1]})])
    before = thread.summary()
    assert before is not None
    sends = [serde.dumps_typed(Send("node", {"messages": messages[:n], "n": n}))[1] for n in (20, 40)]
    for number, data in enumerate(sends, 1):
        thread.append([step(f"s{number}", {"send": data})])
    after = thread.summary()
    assert after is not None
    assert after.stored_bytes - before.stored_bytes < 2000
    for _ in range(2):
        for number, data in enumerate(sends, 1):
            state = thread.state(f"s{number}")
            assert state is not None
            assert state.channels["send"] == ("text", data)
        log.seal()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_encoded_content_reads_the_same(order: list[int], data: st.DataObject) -> None:
    """Whatever the log holds of a value already, its content reads as it was."""
    texts = [bytes([65 + n]) * (250 + 60 * n) for n in range(10)]
    value = [{"k": texts[n], "l": [texts[n - 1], n]} for n in order]
    whole = msgspec.msgpack.encode(value)
    held = [piece for piece in asked(whole) if data.draw(st.booleans())]
    places = {codec.digest_of(piece): Ref(5, sum(map(len, held[:at])), len(piece)) for at, piece in enumerate(held)}
    body = codec.encode(step("s", {"x": whole}), places.get)
    plain = codec.decompress(body.data) if body.form else body.data
    skeleton, payload = codec.split(plain)
    event = msgspec.msgpack.decode(skeleton, type=StepCommitted)
    sources = {0: bytes(payload), 5: b"".join(held)}

    def read(ref: Ref) -> bytes:
        return sources[ref.sequence][ref.start : ref.start + ref.length]

    change = event.channels.changes["x"]
    assert isinstance(change, Array | Blob)
    assert payload_of(change, read) == whole
    assert bool(held) == any(ref.sequence for ref in references(change))
