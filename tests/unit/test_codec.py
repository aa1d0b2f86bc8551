"""Events as record bodies, and back."""

from __future__ import annotations

import threading

import msgspec
import pytest
import zstandard

from building import noise, step, wrote
from stepwell import CorruptionError, EventTooLargeError, NewerFormatError, codec, dictionary, diff, parse
from stepwell import format as fmt
from stepwell.events import (
    Event,
    ItemPut,
    LaneOpened,
    Sequence,
    StepCommitted,
    ThreadCopied,
    ThreadDeleted,
    ThreadOpened,
    ThreadPruned,
    Write,
    WritesRecorded,
)
from stepwell.patch import Array, Blob, Merge, New, Ref, Value

THREAD, SEQUENCE = 7, 30


def record_of(event: Event, body: codec.Body) -> bytes:
    """A body as storage would stamp it."""
    flags = fmt.FLAG_HIDDEN if isinstance(event, StepCommitted) and event.hidden else 0
    base = event.base if isinstance(event, StepCommitted) else 0
    fields = (body.kind, flags, body.form, 1, 1, event.created_at, base, 0, body.digest, fmt.CHAIN_SEED)
    return fmt.stamp(THREAD, SEQUENCE, *fields)[0] + body.data


def opened(event: Event, body: codec.Body) -> codec.Record:
    """A body's record, proven and taken apart."""
    return codec.open_record(THREAD, SEQUENCE, record_of(event, body))


def round_trip(event: Event, known: codec.Known | None = None, lane: str = "") -> tuple[Event, memoryview]:
    """An event after it was encoded and decoded, and the payload of its record."""
    record = opened(event, codec.encode(event, known))
    return codec.decode(THREAD, record, lane), record.payload


def resolved(event: Event, payloads: dict[int, memoryview]) -> Event:
    """The event with its content as bytes."""

    def read(ref: Ref) -> bytes:
        return bytes(codec.slice_payload(payloads[ref.sequence], ref, THREAD))

    if isinstance(event, StepCommitted):
        channels, fields = codec.resolve(event.channels, read), codec.resolve(event.fields, read)
        assert isinstance(channels, Merge)
        assert isinstance(fields, Merge)
        return codec.with_patches(event, channels, fields)
    if isinstance(event, WritesRecorded):
        writes = []
        for write in event.writes:
            value = codec.resolve(write.value, read)
            assert isinstance(value, Value)
            writes.append(Write(write.index, write.channel, value))
        return codec.with_writes(event, tuple(writes))
    return event


OLD, LATER = [f"message {n} with a longer text" for n in range(40)], "one more message"
MESSAGES = parse("msgpack", msgspec.msgpack.encode(OLD))
APPENDED = diff(MESSAGES, parse("msgpack", msgspec.msgpack.encode([*OLD, LATER])))
assert APPENDED is not None

EVENTS: list[Event] = [
    step("s1", {"short": b"1", "long": b"x" * 1000}, parent="s0", fields={"f": b"y" * 100}, created_at=9),
    step("s1", {"x": noise()}, lane="sub", hidden=True),
    StepCommitted("s2", None, Merge(("gone",), {"messages": APPENDED}), Merge(), base=Sequence(4)),
    StepCommitted("", "", Merge(), Merge()),
    StepCommitted("é\0", None, Merge((), {"": MESSAGES, "\0": Blob("", b"")}), Merge()),
    wrote("s1", [b"1", noise()], task="t", path="~p", lane="sub"),
    WritesRecorded("s1", "t", "", (Write(-3, "__resume__", MESSAGES), Write(2**40, "c", Blob("null", b"")))),
    WritesRecorded("s1", "t", "", ()),
    ThreadOpened("thread", 5),
    LaneOpened("lane", 5),
    ThreadCopied("source", Sequence(9), 5),
    ThreadPruned("thread", Sequence(9), b"c" * 16, 6, 5),
    ThreadDeleted(Sequence(9), b"c" * 16, 5),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_round_trip(event: Event) -> None:
    """Every event comes back with all its fields, its content in the record's payload."""
    lane = event.lane if isinstance(event, StepCommitted | WritesRecorded) else ""
    decoded, payload = round_trip(event, lane=lane)
    again = resolved(decoded, {SEQUENCE: payload})
    if isinstance(event, StepCommitted | WritesRecorded):
        # Runs of elements may be cut otherwise: what they say is the same.
        assert msgspec.structs.replace(again, **bytes_in(again)) == msgspec.structs.replace(event, **bytes_in(event))
    else:
        assert again == event


def bytes_in(event: StepCommitted | WritesRecorded) -> dict[str, object]:
    """The fields that hold content, in a form that does not depend on how runs of elements are cut."""

    def joined(patch: object) -> object:
        if isinstance(patch, Array):
            content = b"".join(piece.content for piece in patch.pieces if isinstance(piece.content, bytes))
            return (patch.type, patch.wrapped, [n for piece in patch.pieces for n in piece.lengths], content)
        if isinstance(patch, Merge):
            return (patch.drop, {key: joined(item) for key, item in patch.changes.items()})
        return patch

    if isinstance(event, StepCommitted):
        return {"channels": joined(event.channels), "fields": joined(event.fields)}
    return {"writes": [(write.index, write.channel, joined(write.value)) for write in event.writes]}


def test_short_content_stays_in_the_event() -> None:
    """Content shorter than a reference has no place in the payload."""
    body = codec.encode(step("s", {"x": noise(codec.SMALLEST_DETACHED_BYTES - 1)}))
    assert body.fresh == []
    assert opened(step("s"), body).payload == b""


def test_small_values_of_items_stay_in_the_event_as_they_are() -> None:
    """An item's value is moved to the payload only if it is large, and compressed only if that may save a page."""
    for size in (codec.LARGEST_ATTACHED_OF_ITEM_BYTES, codec.LARGEST_ATTACHED_OF_ITEM_BYTES + 1):
        body = codec.encode(ItemPut(("a",), "k", Blob("t", bytes(size))))
        assert body.form == fmt.FORM_PLAIN
        assert bool(body.fresh) == (size > codec.LARGEST_ATTACHED_OF_ITEM_BYTES)
    for size in (codec.LARGEST_PLAIN_ITEM_BYTES // 2, codec.LARGEST_PLAIN_ITEM_BYTES):
        body = codec.encode(ItemPut(("a",), "k", Blob("t", bytes(size))))
        assert (body.form == fmt.FORM_PLAIN) == (size < codec.LARGEST_PLAIN_ITEM_BYTES)


def test_equal_content_is_held_once() -> None:
    """Content that occurs twice in one event lies once in its payload."""
    content = noise(500)
    _, payload = round_trip(step("s", {"x": content, "y": content}, fields={"z": content}))
    assert payload == content


def test_equal_elements_are_held_once() -> None:
    """An element that occurs in several lists of one event lies once in its payload."""
    elements = [msgspec.Raw(b"\xc5\x01\x2c" + noise(300)) for _ in range(3)]
    lists = [msgspec.msgpack.encode(each) for each in (elements, elements[::-1], [elements[1]] * 3)]
    event = step("s", {str(number): payload for number, payload in enumerate(lists)})
    decoded, payload = round_trip(event)
    assert payload == b"".join(elements)
    again = resolved(decoded, {SEQUENCE: payload})
    assert isinstance(again, StepCommitted)
    assert bytes_in(again) == bytes_in(event)


def test_known_content_is_referred_to() -> None:
    """Content that the log holds is left out, whole values and single elements alike."""
    content, element = noise(500), b"\xc5\x01\x2c" + noise(300)
    places = {codec.digest_of(content): Ref(5, 10, 500), codec.digest_of(element): Ref(6, 20, len(element))}
    fresh = b"\xc5\x01\x2c" + noise(300)
    listed = msgspec.msgpack.encode([msgspec.Raw(element), msgspec.Raw(fresh)])
    decoded, payload = round_trip(step("s", {"x": content, "list": listed}), places.get)
    assert payload == fresh
    assert isinstance(decoded, StepCommitted)
    assert decoded.channels.changes["x"] == Blob("text", Ref(5, 10, 500))
    array = decoded.channels.changes["list"]
    assert isinstance(array, Array)
    assert [piece.content for piece in array.pieces] == [
        Ref(6, 20, len(element)),
        Ref(SEQUENCE, 0, len(fresh)),
    ]


def test_neighbours_become_one_reference() -> None:
    """Known elements that lie side by side are referred to together."""
    elements = [b"\xc5\x01\x2c" + noise(300) for _ in range(4)]
    size = len(elements[0])
    places = {codec.digest_of(each): Ref(5, n * size, size) for n, each in enumerate(elements)}
    listed = msgspec.msgpack.encode([msgspec.Raw(each) for each in elements])
    decoded, _ = round_trip(step("s", {"list": listed}), places.get)
    assert isinstance(decoded, StepCommitted)
    array = decoded.channels.changes["list"]
    assert isinstance(array, Array)
    assert array.pieces == (New((size,) * 4, Ref(5, 0, 4 * size)),)


def test_fresh_content_is_where_it_says() -> None:
    """Each digest that an encoding names belongs to the bytes at its place in the payload."""
    event = step("s", {"x": noise(100), "list": msgspec.msgpack.encode([noise(90) for _ in range(5)])})
    body = codec.encode(event)
    payload = opened(event, body).payload
    assert len(body.fresh) == 1 + 5 + 1
    for digest, start, length in body.fresh:
        assert codec.digest_of(payload[start : start + length]) == digest


def test_references_of_the_caller_are_kept() -> None:
    """An event may come with references to events before it."""
    event = StepCommitted("s", None, Merge((), {"x": Blob("t", Ref(3, 1, 50))}), Merge())
    assert round_trip(event)[0] == event


def test_compressed_only_if_smaller() -> None:
    """A body is a zstandard frame if that is smaller, and plain if not."""
    for content, form in (
        (b"x" * 5000, fmt.FORM_ZSTD_DICTIONARY),
        (b"x" * 9000, fmt.FORM_ZSTD),
        (noise(5000), fmt.FORM_PLAIN),
        (noise(9000), fmt.FORM_PLAIN),
    ):
        event = step("s", {"x": content})
        body = codec.encode(event)
        assert body.form == form
        assert opened(event, body).payload == content


@pytest.mark.parametrize("length", [5000, 9000])
def test_equal_plain_bodies_have_equal_digests(length: int) -> None:
    """What a checksum takes of a body does not depend on the form that the body is stored in."""
    event = step("s", {"x": b"x" * length})
    body = codec.encode(event)
    known = zstandard.ZstdCompressionDict(dictionary.load()) if length == 5000 else None
    plain = zstandard.ZstdDecompressor(dict_data=known).decompress(body.data)
    assert body.digest == fmt.body_digest(plain)
    one, other = opened(event, body), opened(event, body._replace(form=fmt.FORM_PLAIN, data=plain))
    assert other == one._replace(header=one.header._replace(form=fmt.FORM_PLAIN))
    assert one.body == other.body == plain
    assert one.size == other.size == len(plain)


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event above the limit is refused; one at the limit is not."""
    event = step("s", {"x": noise(5000)})
    size = len(codec.encode(event).data)
    monkeypatch.setattr(fmt, "MAX_BODY_BYTES", size)
    codec.encode(event)
    monkeypatch.setattr(fmt, "MAX_BODY_BYTES", size - 1)
    with pytest.raises(EventTooLargeError, match="exceeds the limit"):
        codec.encode(event)


def test_newer_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of a later version of the library asks for an upgrade."""
    event = step("s")
    monkeypatch.setattr(fmt, "FORMAT_VERSION", 2)
    record = record_of(event, codec.encode(event))
    assert codec.open_record(THREAD, SEQUENCE, record).header.version == 2
    monkeypatch.undo()
    with pytest.raises(NewerFormatError, match="upgrade"):
        codec.open_record(THREAD, SEQUENCE, record)


@pytest.mark.parametrize(
    "plain", [b"", b"\0\0\0\1\xc1", b"\0\0\0\2\x92\x03", b"\xff\xff\xff\xff", b"\0\0\0\3\x92\x63\x01", b"\0" * 9]
)
def test_sound_record_with_a_body_that_is_none(plain: bytes) -> None:
    """A body that no encoder wrote is reported as damage, sound checksum or not."""
    body = codec.Body(fmt.KIND_STEP, plain, fmt.FORM_PLAIN, fmt.body_digest(plain), [])
    record = opened(step("s"), body)
    with pytest.raises(CorruptionError, match="cannot be decoded") as caught:
        codec.decode(THREAD, record)
    assert (caught.value.thread, caught.value.sequence) == (THREAD, SEQUENCE)


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (b"", fmt.FORM_ZSTD),
        (b"not a frame", fmt.FORM_ZSTD),
        (bytes.fromhex("28b52ffd2000010000") + b"rest", fmt.FORM_ZSTD),  # says that it is empty
        (bytes.fromhex("28b52ffd0058010000"), fmt.FORM_ZSTD),  # does not say how long it is
        (bytes.fromhex("28b52ffdc0ffffffffffffff0f010000"), fmt.FORM_ZSTD),  # claims more than a log can hold
        (b"", fmt.FORM_ZSTD_DICTIONARY),
        (b"not a frame", fmt.FORM_ZSTD_DICTIONARY),
        (bytes.fromhex("28b52ffd0058010000"), fmt.FORM_ZSTD_DICTIONARY),
        (b"", fmt.FORM_PLAIN),
        (b"any", 3),
        (b"any", 255),
    ],
)
def test_body_that_is_not_in_its_form(data: bytes, form: int) -> None:
    """A body that cannot be brought into its plain form is reported as damage."""
    body = codec.encode(step("s"))._replace(data=data, form=form)
    with pytest.raises(CorruptionError) as caught:
        opened(step("s"), body)
    assert (caught.value.thread, caught.value.sequence) == (THREAD, SEQUENCE)


def test_parent() -> None:
    """The parent of a step is found without decoding the step, and what is no step is reported as damage."""
    for parent in (None, "", "p", "1ef663ba-28fe-6528-8002-5a559208592c", "\U0001f600"):
        event = step("s", {"x": noise(), "y": b"y"}, parent=parent)
        assert codec.parent_of(THREAD, opened(event, codec.encode(event))) == parent
    sound = opened(step("s"), codec.encode(step("s")))
    for skeleton in (
        b"",
        b"\xc1",
        b"\x92\x03\xa1s",
        b"\x93\x03\xa1s\x07",
        b"\x93\x03\xa1s\xa1\xff",
        b"\x80",
        b"\x91" * 5000,
    ):
        with pytest.raises(CorruptionError, match="cannot be decoded") as caught:
            codec.parent_of(THREAD, sound._replace(skeleton=memoryview(skeleton)))
        assert (caught.value.thread, caught.value.sequence) == (THREAD, SEQUENCE)


@pytest.mark.parametrize("length", [5000, 9000, 400_000])
def test_want_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """If a record does not fit into memory, that is not said to be damage."""

    def starved(*data: object) -> bytes:
        raise MemoryError

    event = step("s", {"x": b"x" * length})
    record = record_of(event, codec.encode(event))
    monkeypatch.setattr(codec, "plain_body", starved)
    with pytest.raises(MemoryError):
        codec.open_record(THREAD, SEQUENCE, record)


@pytest.mark.parametrize("form", [fmt.FORM_ZSTD, fmt.FORM_ZSTD_DICTIONARY])
def test_frame_that_claims_more_than_it_can_hold(form: int) -> None:
    """No memory is asked for on the word of a frame whose blocks cannot hold what it claims; what they can is read."""
    known = zstandard.ZstdCompressionDict(dictionary.load()) if form == fmt.FORM_ZSTD_DICTIONARY else None
    compressor = zstandard.ZstdCompressor(dict_data=known, write_dict_id=False)
    block = 1 << 17
    for content in (b"", b"x" * block, b"x" * (block + 1), noise(block) + b"x" * 3 * block, noise(300_000)):
        frame = compressor.compress(content)
        assert codec.plain_body(frame, form) == content
    # Frames that say their size in 8 bytes, of blocks of 9 bytes: raw, of one byte repeated, or compressed.
    for kind, stored in ((0, b"x" * 9), (1, b"x"), (2, b"x" * 9)):
        for blocks in (1, 3):
            header = 9 << 3 | kind << 1
            body = b"".join((header | (at == blocks - 1)).to_bytes(3, "little") + stored for at in range(blocks))
            for size in (blocks * block + 1, fmt.MAX_BODY_BYTES):
                claims = bytes.fromhex("28b52ffde0") + size.to_bytes(8, "little") + body
                assert zstandard.frame_content_size(claims) == size
                with pytest.raises(ValueError, match="impossible size"):
                    codec.plain_body(claims, form)
    for cut in (b"", b"\0", b"\0\0"):
        with pytest.raises(ValueError, match="impossible size"):
            codec.plain_body(bytes.fromhex("28b52ffde0") + (1 << 29).to_bytes(8, "little") + cut, form)


def test_reference_beyond_the_payload() -> None:
    """A reference to more bytes than an event holds is reported as damage of that event."""
    payload = memoryview(b"0123456789")
    assert codec.slice_payload(payload, Ref(4, 2, 3), THREAD) == b"234"
    for ref in (Ref(4, 8, 3), Ref(4, 11, 0)):
        with pytest.raises(CorruptionError) as caught:
            codec.slice_payload(payload, ref, THREAD)
        assert (caught.value.thread, caught.value.sequence) == (THREAD, 4)


def test_many_threads_at_once() -> None:
    """Threads that encode and decode at the same moment do not disturb each other."""
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(100):
            event = step(f"{number} {turn}", {"x": bytes((number,)) * 2000 + bytes((turn,)) * 2000})
            if round_trip(event)[1] != bytes((number,)) * 2000 + bytes((turn,)) * 2000:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_body_bytes() -> None:
    """A body is laid out as it always was."""
    content = bytes(range(80))
    body = codec.encode(step("s", {"x": content, "y": b"short"}, parent="r", lane="of the header", base=9))
    assert body.data == (
        b"\0\0\0\x31"
        b"\x9a\x03\xa1s\xa1r"  # tag, id, parent
        b"\x93\x06\x90\x82"  # channels: a merge that drops nothing and has two changes
        b"\xa1x\x93\x01\xa4text\x94\x09\0\0\x50"  # a blob: type, reference to this event's payload
        b"\xa1y\x93\x01\xa4text\xc4\x05short"  # a blob that stays here
        b"\x93\x06\x90\x80"  # fields: nothing
        b"\xa0\0\xc2\0\xc0" + content  # lane, base, hidden, time and status are in the header
    )
