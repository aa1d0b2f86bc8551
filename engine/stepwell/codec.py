"""Events to record bodies and back; the one place that knows how a body is laid out.

    body     = skeleton length u32, skeleton, payload; stored as one zstandard frame if that is smaller,
               which is made with a dictionary if the body is small
    skeleton = the event in msgpack, its larger contents replaced by references
    payload  = those contents, one after the other

Content that the log holds already is written as a reference to the event that holds it (`Known`).
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from itertools import accumulate
from typing import Final, NamedTuple, get_args

import msgspec
import zstandard

from stepwell import dictionary, nesting
from stepwell import format as fmt
from stepwell.errors import CorruptionError, EventTooLargeError, NewerFormatError
from stepwell.events import (
    Event,
    ItemEvent,
    ItemPut,
    LaneOpened,
    Sequence,
    StepCommitted,
    Write,
    WritesRecorded,
    status_of,
)
from stepwell.fold import State
from stepwell.patch import (
    Array,
    Blob,
    Content,
    Joined,
    Map,
    Merge,
    New,
    Patch,
    Ref,
    Value,
    map_pieces,
    map_references,
)

# Shorter contents stay in the skeleton: a reference would not be smaller.
SMALLEST_DETACHED_BYTES: Final = 64
# Shorter elements are not looked for one by one.
SMALLEST_REMEMBERED_BYTES: Final = 64
# Of an item they stay there up to here: what it would save, the compression of a segment saves as well.
LARGEST_ATTACHED_OF_ITEM_BYTES: Final = 512
COMPRESSION_LEVEL: Final = 1
# Up to here an event of an item is stored as it is until it is sealed: it fills no more than half a page.
LARGEST_PLAIN_ITEM_BYTES: Final = 1920
# Up to here the dictionary saves bytes, and time or next to none of it; above, zstandard copies its tables before
# it begins (10 KB take 72 us instead of 48), and most of a body is text, of which it knows nothing.
LARGEST_WITH_DICTIONARY_BYTES: Final = 8192
BLOCK_COMPRESSION_LEVEL: Final = 9
# Entries of the tables that the compressor makes, of 4 bytes each: a quarter of what the level would take, for half
# a percent more.
_BLOCK_TABLES_LOG: Final = 19
# Above, a block has its own names often enough.
LARGEST_BLOCK_WITH_DICTIONARY_BYTES: Final = 16384

_LARGEST_ZSTD_BLOCK_BYTES: Final = 1 << 17

DecompressionError = zstandard.ZstdError

_LENGTH_BYTES: Final = 4
_KINDS: Final = {event: int(event.__struct_config__.tag) for event in get_args(Event)}
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_raw_elements = msgspec.msgpack.Decoder(list[msgspec.Raw])
_parent_decoder: msgspec.msgpack.Decoder[str | None] = msgspec.msgpack.Decoder(str | None)

Known = Callable[[bytes, bool], Ref | None]
"""Where the log holds content with this digest, or None; and whether it is looked for within other content."""


class Fresh(NamedTuple):
    """Content that a body holds for the first time."""

    digest: bytes
    start: int
    length: int


class Body(NamedTuple):
    """An event ready to be committed.

    Attributes:
        kind: What storage files the record under.
        data: The body as it will stand on disk.
        form: Which form that is.
        digest: `body_digest` of the plain body.
        fresh: What later events may refer to.
    """

    kind: int
    data: bytes
    form: int
    digest: bytes
    fresh: list[Fresh]


def digest_of(content: bytes | memoryview) -> bytes:
    """The 16 bytes by which equal content is found again."""
    return blake2b(content, digest_size=16).digest()


def encode(event: Event, known: Known | None = None) -> Body:
    """Lay an event out as a body.

    Args:
        event: The event; references in it must name events of the same thread.
        known: Finds content that the log holds already; None writes everything out.

    Raises:
        EventTooLargeError: The event cannot be held by a log.
    """
    kind = _KINDS[type(event)]
    is_item = kind in fmt.ITEM_KINDS
    packer = _Packer(known, LARGEST_ATTACHED_OF_ITEM_BYTES + 1 if is_item else SMALLEST_DETACHED_BYTES)
    if isinstance(event, StepCommitted):
        skeleton: Event = StepCommitted(
            event.step_id,
            event.parent_id,
            packer.merge(event.channels),
            packer.merge(event.fields),
        )
    elif isinstance(event, WritesRecorded):
        writes = tuple(Write(w.index, w.channel, packer.value(w.value)) for w in event.writes)
        skeleton = WritesRecorded(event.step_id, event.task_id, event.task_path, writes)
    elif isinstance(event, ItemEvent):
        skeleton = with_values(event, packer.value, created_at=0)
    else:
        skeleton = event
    head = _encoder.encode(skeleton)
    size = _LENGTH_BYTES + len(head) + packer.size
    if size > fmt.MAX_BODY_BYTES:
        raise EventTooLargeError(
            f"an event of {size:,} bytes exceeds the limit of {fmt.MAX_BODY_BYTES:,}; "
            "split the value over several channels or keep it outside the state"
        )
    body = b"".join((len(head).to_bytes(_LENGTH_BYTES), head, *packer.parts))
    return _body(kind, body, packer.fresh)


def moved(record: Record, event: Event, change: Callable[[Ref], bytes | Ref]) -> Body:
    """A record's body for another place: its payload stays as it is, and its event refers to others anew.

    Args:
        record: The record.
        event: Its event, or one that shows the same, with absolute references.
        change: Makes of a reference to another event what stands for it there.
    """

    def relative(ref: Ref) -> bytes | Ref:
        return Ref(0, ref.start, ref.length) if ref.sequence == record.sequence else change(ref)

    if isinstance(event, StepCommitted):
        channels = _merge(map_references(event.channels, relative))
        fields = _merge(map_references(event.fields, relative))
        event = StepCommitted(event.step_id, event.parent_id, channels, fields)
    elif isinstance(event, WritesRecorded):
        writes = tuple(Write(w.index, w.channel, _value(map_references(w.value, relative))) for w in event.writes)
        event = WritesRecorded(event.step_id, event.task_id, event.task_path, writes)
    elif isinstance(event, ItemEvent):
        event = with_values(event, lambda value: _value(map_references(value, relative)), created_at=0)
    head = _encoder.encode(event)
    body = b"".join((len(head).to_bytes(_LENGTH_BYTES), head, record.payload))
    return _body(record.header.kind, body, [])


def _body(kind: int, body: bytes, fresh: list[Fresh]) -> Body:
    is_plain = kind in fmt.ITEM_KINDS and len(body) <= LARGEST_PLAIN_ITEM_BYTES
    data, form = (body, fmt.FORM_PLAIN) if is_plain else compress_body(body)
    return Body(kind, data, form, fmt.body_digest(body), fresh)


class _Packer:
    """Moves contents from one event's values into its payload."""

    def __init__(self, known: Known | None, smallest_detached: int) -> None:
        self._smallest_detached = smallest_detached
        self.parts: list[bytes] = []
        self.size = 0
        self.fresh: list[Fresh] = []
        self._known = known
        self._here: dict[bytes, Ref] = {}

    def merge(self, merge: Merge) -> Merge:
        return _merge(map_pieces(merge, self._content, self._run))

    def value(self, value: Value) -> Value:
        return _value(map_pieces(value, self._content, self._run))

    def _content(self, content: Content) -> Content:
        if not isinstance(content, bytes) or len(content) < self._smallest_detached:
            return content
        digest = digest_of(content)
        return self._find(digest) or self._search(content) or self._place(content, digest)

    def _run(self, piece: New) -> tuple[New, ...]:
        content = piece.content
        if not isinstance(content, bytes) or len(content) < self._smallest_detached:
            return (New(piece.lengths, self._content(content)),)
        digest = digest_of(content)
        found = self._find(digest)
        if found:
            return (New(piece.lengths, found),)
        if len(content) < len(piece.lengths) * SMALLEST_REMEMBERED_BYTES or len(piece.lengths) == 1:
            return (New(piece.lengths, self._search(content) or self._place(content, digest)),)
        return self._elements(piece.lengths, content, digest)

    def _elements(self, lengths: tuple[int, ...], content: bytes, digest: bytes) -> tuple[New, ...]:
        """Look for each element of a run, and lay out those that are not known side by side."""
        edges = list(accumulate(lengths, initial=0))
        runs: list[tuple[list[int], Content]] = []
        for index, length in enumerate(lengths):
            element = content[edges[index] : edges[index + 1]]
            element_digest = digest_of(element)
            found = self._find(element_digest) or self._search(element) or self._place(element, element_digest)
            both = _side_by_side(runs[-1][1], found) if runs else None
            if both is not None:
                sizes = runs[-1][0]
                sizes.append(length)
                runs[-1] = (sizes, both)
            else:
                runs.append(([length], found))
        if len(runs) == 1:
            whole = runs[0][1]
            if isinstance(whole, Ref) and whole.sequence == 0:
                self.fresh.append(Fresh(digest, whole.start, whole.length))
        return tuple(New(tuple(sizes), content) for sizes, content in runs)

    def _search(self, content: bytes) -> Joined | None:
        """Content that holds, somewhere within it, what the log has already; None if it does not."""
        if self._known is None or len(content) < nesting.SMALLEST_SEARCHED_BYTES:
            return None
        pieces = nesting.search(content, lambda piece: self._find(digest_of(piece), inside=True))
        if not any(isinstance(piece, Ref) for piece in pieces):
            return None
        parts: list[bytes | Ref] = []
        for piece in pieces:
            part = piece if isinstance(piece, Ref) else bytes(piece)
            both = _side_by_side(parts[-1], part) if parts else None
            if both is not None:
                parts[-1] = both
            else:
                parts.append(part)
        return Joined(tuple(map(self._detached, parts)))

    def _detached(self, part: bytes | Ref) -> bytes | Ref:
        if isinstance(part, Ref) or len(part) < self._smallest_detached:
            return part
        return self._place(part, digest_of(part))

    def _find(self, digest: bytes, *, inside: bool = False) -> Ref | None:
        found = self._here.get(digest)
        if found is None and self._known is not None:
            found = self._known(digest, inside)
        return found

    def _place(self, content: bytes, digest: bytes) -> Ref:
        ref = Ref(0, self.size, len(content))
        self.parts.append(content)
        self.size += len(content)
        self._here[digest] = ref
        self.fresh.append(Fresh(digest, ref.start, ref.length))
        return ref


def _side_by_side(left: Content, right: Content) -> bytes | Ref | None:
    """Both as one, if they are bytes, or lie next to each other."""
    if isinstance(left, bytes) and isinstance(right, bytes):
        return left + right
    if not isinstance(left, Ref) or not isinstance(right, Ref):
        return None
    adjacent = left.sequence == right.sequence and left.start + left.length == right.start
    return Ref(left.sequence, left.start, left.length + right.length) if adjacent else None


class Record(NamedTuple):
    """A record that was proven to be what was written, taken apart.

    Attributes:
        sequence: Where in its thread it stands.
        header: Its header.
        skeleton: Its event, with references for larger contents.
        payload: What references point into.
    """

    sequence: int
    header: fmt.Header
    skeleton: memoryview
    payload: memoryview

    @property
    def is_sealed(self) -> bool:
        """Whether it comes from a segment, which proves all its records at once."""
        return not self.header.checksum

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return _LENGTH_BYTES + len(self.skeleton) + len(self.payload)

    @property
    def body(self) -> bytes:
        """Its body in plain form."""
        return self.body_after(b"")

    def body_after(self, header: bytes) -> bytes:
        """Its body in plain form, behind a header: one copy, however large it is."""
        return b"".join((header, len(self.skeleton).to_bytes(_LENGTH_BYTES), self.skeleton, self.payload))


def decode(thread: int, record: Record, lane: str = "") -> Event:
    """The event in a record, with its references made absolute.

    Args:
        thread: Number of the thread that the record was read from.
        record: The record.
        lane: The namespace behind the header's lane number.

    Raises:
        CorruptionError: The body is no event of the kind that the header says.
    """
    event = as_stored(thread, record)
    sequence, header, _, payload = record

    def absolute(ref: Ref) -> Ref:
        return ref if ref.sequence else Ref(sequence, ref.start, ref.length)

    if isinstance(event, StepCommitted):
        channels, fields = event.channels, event.fields
        if payload:  # without one the event cannot refer to itself
            channels, fields = _merge(map_references(channels, absolute)), _merge(map_references(fields, absolute))
        event = StepCommitted(
            event.step_id,
            event.parent_id,
            channels,
            fields,
            lane,
            Sequence(header.base),
            bool(header.flags & fmt.FLAG_HIDDEN),
            header.created_at,
            status_of(fmt.read_status(header.flags)),
        )
    elif isinstance(event, WritesRecorded):
        writes = event.writes
        if payload:
            writes = tuple(Write(w.index, w.channel, _value(map_references(w.value, absolute))) for w in writes)
        event = WritesRecorded(
            event.step_id,
            event.task_id,
            event.task_path,
            writes,
            lane,
            header.created_at,
            status_of(fmt.read_status(header.flags)),
        )
    elif isinstance(event, ItemEvent):
        if payload:
            event = with_values(
                event, lambda value: _value(map_references(value, absolute)), created_at=header.created_at
            )
        else:
            event = msgspec.structs.replace(event, created_at=header.created_at)
    elif not isinstance(event, LaneOpened):
        event = msgspec.structs.replace(event, created_at=header.created_at)
    else:
        event = LaneOpened(event.lane, header.created_at)
    return event


def as_stored(thread: int, record: Record) -> Event:
    """The event in a record as it stands there: without its lane and time, and its own payload is that of event 0.

    Raises:
        CorruptionError: The body is no event of the kind that the header says.
    """
    try:
        event = _decoder.decode(record.skeleton)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = f"the event cannot be decoded: {error}"
        raise CorruptionError(reason, thread=thread, sequence=record.sequence) from error
    if _KINDS[type(event)] != record.header.kind:
        reason = f"the header says kind {record.header.kind}, the event is a {type(event).__name__}"
        raise CorruptionError(reason, thread=thread, sequence=record.sequence)
    return event


def parent_of(thread: int, record: Record) -> str | None:
    """The parent that a step names, found without decoding the rest of it.

    Raises:
        CorruptionError: The record is no step.
    """
    if record.header.kind != fmt.KIND_STEP:
        raise CorruptionError("the event is not a step", thread=thread, sequence=record.sequence)
    try:
        _, _, parent_id, *_ = _raw_elements.decode(record.skeleton)
        return _parent_decoder.decode(parent_id)
    except (ValueError, RecursionError) as error:
        reason = f"the step cannot be decoded: {error}"
        raise CorruptionError(reason, thread=thread, sequence=record.sequence) from error


def split(body: bytes | memoryview) -> tuple[memoryview, memoryview]:
    """The skeleton and the payload of a body."""
    end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES])
    view = memoryview(body)
    return view[_LENGTH_BYTES:end], view[end:]


def with_patches(event: StepCommitted, channels: Merge, fields: Merge) -> StepCommitted:
    """The same step with other patches."""
    return msgspec.structs.replace(event, channels=channels, fields=fields)


def with_writes(event: WritesRecorded, writes: tuple[Write, ...]) -> WritesRecorded:
    """The same event with other writes."""
    return msgspec.structs.replace(event, writes=writes)


def with_values(event: ItemEvent, change: Callable[[Value], Value], *, created_at: int) -> ItemEvent:
    """The same event with its value and attachments changed, if it has any, and with another time."""
    if not isinstance(event, ItemPut):
        return msgspec.structs.replace(event, created_at=created_at)
    attachments = {name: change(value) for name, value in event.attachments.items()} if event.attachments else {}
    return ItemPut(
        event.namespace,
        event.key,
        change(event.value),
        event.expires_at,
        attachments,
        created_at,
        event.commit,
        event.born_at,
    )


def resolve(patch: Patch, read: Callable[[Ref], bytes]) -> Patch:
    """The same patch with every reference replaced by the bytes behind it."""
    return map_references(patch, read)


def slice_payload(payload: memoryview, ref: Ref, thread: int) -> memoryview:
    """The bytes that a reference names, out of the payload of its event."""
    if ref.start + ref.length > len(payload):
        raise CorruptionError(
            f"a reference to bytes {ref.start} to {ref.start + ref.length} of a payload of {len(payload)}",
            thread=thread,
            sequence=ref.sequence,
        )
    return payload[ref.start : ref.start + ref.length]


def _merge(patch: Patch) -> Merge:
    assert isinstance(patch, Merge)
    return patch


def _value(patch: Patch) -> Value:
    assert isinstance(patch, Blob | Array | Map)
    return patch


def open_record(thread: int, sequence: int, stored: bytes) -> Record:
    """Prove that a record is what was written.

    Args:
        thread: Number of the thread that the record was read from.
        sequence: Where in the thread it was read.
        stored: Header and body as they stand in the table of events.

    Raises:
        CorruptionError: The record is not what was written at this place.
        NewerFormatError: A newer version of the library wrote it.
    """
    try:
        header = fmt.read_header(stored)
        body = stored[fmt.HEADER_BYTES :]
        body = plain_body(body, header.form)
        fmt.verify(thread, sequence, header, fmt.body_digest(body))
        return Record(sequence, header, *split(body))
    except (ValueError, DecompressionError) as error:
        # If memory is short, that is not the record's fault: a frame cannot claim more than its blocks may hold.
        if len(stored) > fmt.HEADER_BYTES and stored[0] > fmt.FORMAT_VERSION:
            raise NewerFormatError(f"thread {thread}, sequence {sequence}: {error}; upgrade stepwell") from error
        raise CorruptionError(str(error), thread=thread, sequence=sequence) from error


def proven_bytes(stored: bytes, record: Record) -> bytes:
    """Header and plain body of a record that was proven, out of what is stored."""
    if record.header.form == fmt.FORM_PLAIN:
        return stored
    return record.body_after(stored[: fmt.HEADER_BYTES])


def proven_record(sequence: int, proven: bytes) -> Record:
    """A record taken apart, out of its `proven_bytes`."""
    return Record(sequence, fmt.read_header(proven), *split(memoryview(proven)[fmt.HEADER_BYTES :]))


class _Frames:
    """Makes and opens the frames of one form.

    Compressors may not be shared between threads at the same moment, and LangGraph starts new threads for
    every run, so they wait in lists (whose pop and append are atomic) instead of in thread-locals.
    """

    def __init__(self, known: zstandard.ZstdCompressionDict | None) -> None:
        self._known = known
        self._compressors: list[zstandard.ZstdCompressor] = []
        self._decompressors: list[zstandard.ZstdDecompressor] = []

    def compress(self, content: bytes | memoryview) -> bytes:
        try:
            compressor = self._compressors.pop()
        except IndexError:
            compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, dict_data=self._known, write_dict_id=False)
        frame = compressor.compress(content)
        self._compressors.append(compressor)
        return frame

    def decompress(self, frame: bytes | memoryview) -> bytes:
        _check_size(frame)
        try:
            decompressor = self._decompressors.pop()
        except IndexError:
            decompressor = zstandard.ZstdDecompressor(dict_data=self._known)
        content = decompressor.decompress(frame)
        self._decompressors.append(decompressor)
        return content


_DICTIONARY: Final = dictionary.load()
_frames: Final = {
    fmt.FORM_ZSTD: _Frames(None),
    fmt.FORM_ZSTD_DICTIONARY: _Frames(dictionary.digested(_DICTIONARY, COMPRESSION_LEVEL)),
}


def compress_body(body: bytes | memoryview) -> tuple[bytes, int]:
    """A body as it stands in a loose record, and which form that is."""
    form = fmt.FORM_ZSTD_DICTIONARY if len(body) <= LARGEST_WITH_DICTIONARY_BYTES else fmt.FORM_ZSTD
    data = _frames[form].compress(body)
    return (data, form) if len(data) < len(body) else (bytes(body), fmt.FORM_PLAIN)


def plain_body(data: bytes, form: int) -> bytes:
    """A body in plain form, out of the form that it is stored in.

    Raises:
        ValueError, DecompressionError: It is not in that form, or the form is unknown.
    """
    if form == fmt.FORM_PLAIN:
        return data
    frames = _frames.get(form)
    if frames is None:
        raise ValueError(f"the body has the unknown form {form}")
    return frames.decompress(data)


def compress_block(block: bytes, before: bytes = b"") -> tuple[bytes, int]:
    """A large block as one zstandard frame, and which form that is; for what is written once and read for ever.

    The frame ends with a checksum of the block, which decompressing it checks.

    Args:
        block: The block.
        before: What the reader will have unpacked already, to refer to.
    """
    form = fmt.FORM_ZSTD if before or len(block) > LARGEST_BLOCK_WITH_DICTIONARY_BYTES else fmt.FORM_ZSTD_DICTIONARY
    parameters = zstandard.ZstdCompressionParameters.from_level(
        BLOCK_COMPRESSION_LEVEL,
        source_size=len(block),
        dict_size=len(before),
        chain_log=_BLOCK_TABLES_LOG,
        hash_log=_BLOCK_TABLES_LOG,
        write_checksum=True,
        write_dict_id=False,
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=_known_to(form, before))
    return compressor.compress(block), form


def decompress_block(frame: bytes | memoryview, form: int, before: bytes = b"") -> bytes:
    """The block behind a frame; raises ValueError or DecompressionError if it is none.

    Args:
        frame: The frame.
        form: Which form it is in.
        before: What it was compressed with.
    """
    if form not in _frames:
        raise ValueError(f"the block has the unknown form {form}")
    _check_size(frame)
    return zstandard.ZstdDecompressor(dict_data=_known_to(form, before)).decompress(frame)


def _known_to(form: int, before: bytes) -> zstandard.ZstdCompressionDict | None:
    """What a block may refer to."""
    if form == fmt.FORM_ZSTD_DICTIONARY:
        return zstandard.ZstdCompressionDict(_DICTIONARY)
    return zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if before else None


def _check_size(frame: bytes | memoryview) -> None:
    """Refuse a frame that claims more than it can hold, before any memory is asked for on its word."""
    size = zstandard.frame_content_size(frame)
    if size > fmt.MAX_BODY_BYTES or (size > _LARGEST_ZSTD_BLOCK_BYTES and size > _most_held(frame)):
        raise ValueError("the frame claims an impossible size")


def _most_held(frame: bytes | memoryview) -> int:
    """How many bytes a frame holds at most, by the headers of its blocks (RFC 8878, section 3.1.1.2)."""
    place, most, is_last = zstandard.frame_header_size(frame), 0, False
    while not is_last and place < len(frame):
        header = int.from_bytes(frame[place : place + 3], "little")
        is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        most += _LARGEST_ZSTD_BLOCK_BYTES if kind > 1 else min(size, _LARGEST_ZSTD_BLOCK_BYTES)
        place += 3 + (1 if kind == 1 else size)  # kind 1 is one byte, repeated
    return most


# --- states, as the fold leaves them ---

_state_decoder = msgspec.msgpack.Decoder(State)


def encode_base(state: State) -> bytes:
    """The state after a step as a segment keeps it.

    Its content is references (larger contents stay in the events that hold them).
    """
    return _encoder.encode(state)


def decode_base(thread: int, sequence: int, data: bytes | memoryview) -> State:
    """The state that a segment keeps of a step.

    Raises:
        CorruptionError: It is none of that step.
    """
    try:
        state = _state_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"the base cannot be decoded: {error}", thread=thread, sequence=sequence) from error
    if state.sequence != sequence:
        raise CorruptionError(f"the base is of event {state.sequence}", thread=thread, sequence=sequence)
    return state
