"""What an event changed, as data: values, patches, and the pure functions over them.

A channel value arrives as `(type, payload)`, two things that the engine stores and never interprets beyond
the outer shape of msgpack: the elements of an array and the entries of a map can be told apart without
knowing what they mean.

    Value   Blob(type, content)                 bytes as they came
            Array(type, wrapped, count, pieces) a msgpack array, element by element
            Map(type, wrapped, entries)         a msgpack map with text keys, entry by entry
    Patch   a Value                             set it, whatever was there
            Splice(pieces)                      an Array made of kept ranges of the old one and new elements
            Merge(drop, changes)                a Map without `drop`, then with `changes` applied in order

`wrapped` is a `_DeltaSnapshot`: msgpack extension 7 around an array or map, whose inside is patched like any.

Laws (tests/property/test_patch.py):
    parse then `payload_of` gives the bytes back, for any bytes at all;
    `apply(diff(a, b), a) == b`, byte for byte;
    `apply(compose(p, q), s) == apply(q, apply(p, s))`, and compose is associative in effect.

Content is bytes, a Ref to bytes that an event of the same thread holds already, or both in turn.  `apply` and `compose`
only move content about, so a run of patches folds without reading any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, TypeAlias, cast

import msgspec


# On disk: never renumber the tags.
class Ref(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=9):
    """Bytes held by the payload of an event of the same thread.

    Attributes:
        sequence: Which event; 0 is the event that holds this reference.
        start: First byte in that event's payload.
        length: Number of bytes.
    """

    sequence: int
    start: int
    length: int


class Joined(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=10):
    """Bytes in several places, one after the other."""

    parts: tuple[bytes | Ref, ...]


Content: TypeAlias = bytes | Ref | Joined


class New(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=8):
    """Elements in a row: their encodings one after the other, and the length of each."""

    lengths: tuple[int, ...]
    content: Content


class Keep(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=7):
    """`count` elements of the old array from index `start`."""

    start: int
    count: int


class Blob(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=1):
    """A value whose inside is not known."""

    type: str
    content: Content


class Array(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=2):
    """A msgpack array of `count` elements."""

    type: str
    wrapped: bool
    count: int
    pieces: tuple[New, ...]


class Map(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=3):
    """A msgpack map with text keys, in order."""

    type: str
    wrapped: bool
    entries: dict[str, Blob | Array | Map]


class Splice(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=5):
    """The new array, from left to right."""

    pieces: tuple[Keep | New, ...]


class Merge(msgspec.Struct, array_like=True, frozen=True, gc=False, tag_field="tag", tag=6):
    """Entries to remove, then entries to change: one that exists keeps its place, others go to the end."""

    drop: tuple[str, ...] = ()
    changes: dict[str, Blob | Array | Map | Splice | Merge] = {}


Value: TypeAlias = Blob | Array | Map
Patch: TypeAlias = Blob | Array | Map | Splice | Merge

# Structure is looked for only where it can pay: below this many bytes a value is replaced as a whole.
SMALLEST_STRUCTURE_BYTES: Final = 64
# Arrays of scalars cost more to take apart than they can save.
SMALLEST_MEAN_ELEMENT_BYTES: Final = 16
DEEPEST_STRUCTURE: Final = 8

_elements = msgspec.msgpack.Decoder(list[msgspec.Raw])
_entries = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_DELTA_SNAPSHOT: Final = 7  # msgpack extension code of LangGraph's _DeltaSnapshot


class PatchError(ValueError):
    """A patch does not fit the value that it was applied to."""


# --- values from bytes and back ---


def parse(type_: str, payload: bytes) -> Value:
    """The value behind a payload, as finely structured as can be restored byte for byte.

    Never fails: whatever is not msgpack in its shortest form is a Blob.
    """
    inner = _unwrap(payload)
    if inner is not None:
        value = _parse(type_, inner, wrapped=True, depth=0)
        if not isinstance(value, Blob):
            return value
    return _parse(type_, payload, wrapped=False, depth=0)


def parse_entry(payload: bytes) -> Value:
    """`parse` for a value that stands inside a map and so has no type of its own."""
    return _parse("", payload, wrapped=False, depth=1)


def _parse(type_: str, payload: bytes, *, wrapped: bool, depth: int) -> Value:
    if len(payload) >= SMALLEST_STRUCTURE_BYTES and depth < DEEPEST_STRUCTURE:
        first = payload[0]
        try:
            if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
                return _parse_array(type_, payload, wrapped) or Blob(type_, payload)
            if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
                return _parse_map(type_, payload, wrapped, depth) or Blob(type_, payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass
    return Blob(type_, payload)


def _parse_array(type_: str, payload: bytes, wrapped: bool) -> Array | None:
    # The header says how many elements there are before any of them is looked at.
    first = payload[0]
    count = first & 0x0F if first < 0xA0 else int.from_bytes(payload[1 : 3 if first == 0xDC else 5])
    if not count or len(payload) < count * SMALLEST_MEAN_ELEMENT_BYTES:
        return None
    lengths = tuple(memoryview(element).nbytes for element in _elements.decode(payload))
    header = array_header(len(lengths))
    if not payload.startswith(header) or len(header) + sum(lengths) != len(payload):
        return None
    return Array(type_, wrapped, len(lengths), (New(lengths, payload[len(header) :]),))


def _parse_map(type_: str, payload: bytes, wrapped: bool, depth: int) -> Map | None:
    raw = {key: bytes(item) for key, item in _entries.decode(payload).items()}
    # Every header has one shortest form, so equal length means equal bytes: a longer form, or a key that
    # stands twice, would not add up.
    length = len(map_header(len(raw)))
    length += sum(len(text_header(size)) + size for size in (len(key.encode()) for key in raw))
    if length + sum(map(len, raw.values())) != len(payload):
        return None
    entries = {key: _parse("", item, wrapped=False, depth=depth + 1) for key, item in raw.items()}
    return Map(type_, wrapped, entries)


def _unwrap(payload: bytes) -> bytes | None:
    """The inside of a delta snapshot in its shortest form, or None."""
    if len(payload) < SMALLEST_STRUCTURE_BYTES or payload[0] not in (0xC7, 0xC8, 0xC9):
        return None
    size = {0xC7: 1, 0xC8: 2, 0xC9: 4}[payload[0]]
    inner = payload[size + 2 :]
    if payload[: size + 2] != extension_header(len(inner)):
        return None
    return inner


def payload_of(value: Value, read: Callable[[Ref], bytes]) -> bytes:
    """The bytes that a value was parsed from.

    Args:
        value: The value.
        read: Gives the bytes behind a reference.
    """
    if isinstance(value, Blob):
        return read_content(value.content, read)
    parts: list[bytes] = []
    _collect(value, read, parts)
    payload = b"".join(parts)
    return wrapped(payload) if value.wrapped else payload


def wrapped(payload: bytes) -> bytes:
    """A delta snapshot around a payload."""
    return extension_header(len(payload)) + payload


def _collect(value: Value, read: Callable[[Ref], bytes], parts: list[bytes]) -> None:
    if isinstance(value, Blob):
        parts.append(read_content(value.content, read))
    elif isinstance(value, Array):
        parts.append(array_header(value.count))
        parts.extend(read_content(piece.content, read) for piece in value.pieces)
    else:
        parts.append(map_header(len(value.entries)))
        for key, item in value.entries.items():
            text = key.encode()
            parts.append(text_header(len(text)) + text)
            _collect(item, read, parts)


def read_content(content: Content, read: Callable[[Ref], bytes]) -> bytes:
    """The bytes of some content."""
    if isinstance(content, Joined):
        return b"".join(read(part) if isinstance(part, Ref) else part for part in content.parts)
    return read(content) if isinstance(content, Ref) else content


def length_of(content: Content) -> int:
    """Number of bytes of some content."""
    if isinstance(content, Joined):
        return sum(map(length_of, content.parts))
    return content.length if isinstance(content, Ref) else len(content)


def references(value: Patch) -> Iterator[Ref]:
    """Every reference in a value or patch."""
    if isinstance(value, Blob):
        yield from _references(value.content)
    elif isinstance(value, Array | Splice):
        for piece in value.pieces:
            if isinstance(piece, New):
                if isinstance(piece.content, Ref):
                    yield piece.content
                else:
                    yield from _references(piece.content)
    else:
        for item in (value.changes if isinstance(value, Merge) else value.entries).values():
            yield from references(item)


def runs(value: Value) -> Iterator[tuple[Ref, tuple[int, ...]]]:
    """Every reference that is all of some content, with the lengths of the elements in it."""
    if isinstance(value, Blob):
        if isinstance(value.content, Ref):
            yield value.content, (value.content.length,)
    elif isinstance(value, Array):
        for piece in value.pieces:
            if isinstance(piece.content, Ref):
                yield piece.content, piece.lengths
    else:
        for item in value.entries.values():
            yield from runs(item)


def _references(content: Content) -> Iterator[Ref]:
    parts = content.parts if isinstance(content, Joined) else (content,)
    yield from (part for part in parts if isinstance(part, Ref))


def size_of(value: Value) -> int:
    """Bytes of a value's content and keys: its payload but for the headers."""
    if isinstance(value, Blob):
        return length_of(value.content)
    if isinstance(value, Array):
        return sum(sum(piece.lengths) for piece in value.pieces)
    return sum(len(key) + size_of(item) for key, item in value.entries.items())


def array_header(count: int) -> bytes:
    """The shortest msgpack header of an array."""
    if count < 16:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2) if count < 65536 else b"\xdd" + count.to_bytes(4)


def map_header(count: int) -> bytes:
    """The shortest msgpack header of a map."""
    if count < 16:
        return bytes((0x80 | count,))
    return b"\xde" + count.to_bytes(2) if count < 65536 else b"\xdf" + count.to_bytes(4)


def text_header(length: int) -> bytes:
    """The shortest msgpack header of a text of `length` UTF-8 bytes."""
    if length < 32:
        return bytes((0xA0 | length,))
    if length < 256:
        return b"\xd9" + length.to_bytes(1)
    return b"\xda" + length.to_bytes(2) if length < 65536 else b"\xdb" + length.to_bytes(4)


def extension_header(length: int) -> bytes:
    """The shortest msgpack header of a delta snapshot (the fixed forms, below 17 bytes, are never structured)."""
    if length < 256:
        return b"\xc7" + length.to_bytes(1) + bytes((_DELTA_SNAPSHOT,))
    if length < 65536:
        return b"\xc8" + length.to_bytes(2) + bytes((_DELTA_SNAPSHOT,))
    return b"\xc9" + length.to_bytes(4) + bytes((_DELTA_SNAPSHOT,))


# --- diff ---


def diff(old: Value | None, new: Value) -> Patch | None:
    """The patch that turns `old` into `new`; None if they are the same.

    Both values must hold their content as bytes.
    """
    if isinstance(old, Array) and isinstance(new, Array):
        if old.type == new.type and old.wrapped == new.wrapped:
            return _diff_arrays(old, new)
    elif isinstance(old, Map) and isinstance(new, Map):
        if old.type == new.type and old.wrapped == new.wrapped:
            return _diff_maps(old, new)
    elif old == new:
        return None
    return new


def _diff_arrays(old: Array, new: Array) -> Patch | None:
    before, after = list(_split(old)), list(_split(new))
    if before == after:
        return None
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    where: dict[bytes, int] = {}
    for index, element in enumerate(before):
        where.setdefault(element, index)
    sources: list[int | bytes] = list(range(start))
    for element in after[start : len(after) - end]:
        sources.append(where.get(element, element))
    sources.extend(range(len(before) - end, len(before)))
    pieces = splice_pieces(sources)
    return Splice(pieces) if any(isinstance(piece, Keep) for piece in pieces) else new


def splice_pieces(sources: Iterable[int | bytes]) -> tuple[Keep | New, ...]:
    """Pieces of a Splice from its elements: the index of a kept one, the bytes of a new one."""
    pieces: list[Keep | New] = []
    fresh: list[bytes] = []
    start = count = 0
    for source in sources:
        if isinstance(source, int):
            if fresh:
                pieces.append(New(tuple(map(len, fresh)), b"".join(fresh)))
                fresh.clear()
            if count and source == start + count:
                count += 1
                continue
            if count:
                pieces.append(Keep(start, count))
            start, count = source, 1
        else:
            if count:
                pieces.append(Keep(start, count))
                count = 0
            fresh.append(source)
    if count:
        pieces.append(Keep(start, count))
    if fresh:
        pieces.append(New(tuple(map(len, fresh)), b"".join(fresh)))
    return tuple(pieces)


def _common(left: list[bytes], right: list[bytes]) -> int:
    """Length of the common prefix."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def _split(array: Array) -> Iterable[bytes]:
    for piece in array.pieces:
        if not isinstance(piece.content, bytes):
            raise TypeError("diff needs content as bytes, not as references")
        offset = 0
        for length in piece.lengths:
            yield piece.content[offset : offset + length]
            offset += length


def _diff_maps(old: Map, new: Map) -> Patch | None:
    merge = diff_entries(old.entries, new.entries)
    if merge is None and list(old.entries) == list(new.entries):
        return None
    if merge is None or list(_merged_keys(old.entries, merge)) != list(new.entries):
        return new
    return merge


def diff_entries(old: Mapping[str, Value], new: Mapping[str, Value]) -> Merge | None:
    """The Merge that turns the entries of `old` into those of `new`, whatever their order; None if equal."""
    changes: dict[str, Patch] = {}
    for key, value in new.items():
        patch = diff(old.get(key), value)
        if patch is not None:
            changes[key] = patch
    drop = tuple(key for key in old if key not in new)
    return Merge(drop, changes) if drop or changes else None


def _merged_keys(old: Mapping[str, Value], merge: Merge) -> dict[str, None]:
    keys = dict.fromkeys(old)
    for key in merge.drop:
        keys.pop(key, None)
    keys.update(dict.fromkeys(merge.changes))
    return keys


# --- apply ---


def apply(patch: Patch, old: Value | None) -> Value:
    """The value after the patch.

    Raises:
        PatchError: The patch was made for a value of another shape.
    """
    if isinstance(patch, Splice):
        if not isinstance(old, Array):
            raise PatchError(f"a splice needs an array, not {type(old).__name__}")
        return _spliced(patch, old)
    if isinstance(patch, Merge):
        if not isinstance(old, Map):
            raise PatchError(f"a merge needs a map, not {type(old).__name__}")
        return Map(old.type, old.wrapped, merge_entries(patch, old.entries))
    return patch


def merge_entries(merge: Merge, old: Mapping[str, Value]) -> dict[str, Value]:
    """The entries after the merge; `old` is left as it was."""
    entries = dict(old)
    for key in merge.drop:
        entries.pop(key, None)
    for key, patch in merge.changes.items():
        entries[key] = apply(patch, entries.get(key))
    return entries


def _spliced(patch: Splice, old: Array) -> Array:
    count = 0
    pieces: tuple[New, ...] = ()
    for piece in patch.pieces:
        if isinstance(piece, New):
            pieces += (piece,)
            count += len(piece.lengths)
        else:
            if piece.start + piece.count > old.count:
                raise PatchError(f"elements up to {piece.start + piece.count} of {old.count}")
            whole = piece.start == 0 and piece.count == old.count
            # An append keeps everything: that path must not look at the pieces one by one.
            kept = old.pieces if whole else tuple(_new_only(_cut(old.pieces, piece.start, piece.count)))
            pieces = pieces + kept if pieces else kept
            count += piece.count
    return Array(old.type, old.wrapped, count, pieces)


def _new_only(pieces: Iterable[Keep | New]) -> Iterable[New]:
    for piece in pieces:
        assert isinstance(piece, New)
        yield piece


def _cut(pieces: Iterable[Keep | New], start: int, count: int) -> Iterable[Keep | New]:
    """The pieces that make up `count` elements from `start` of what `pieces` make up."""
    for piece in pieces:
        size = piece.count if isinstance(piece, Keep) else len(piece.lengths)
        if start >= size:
            start -= size
            continue
        if count <= 0:
            return
        taken = min(size - start, count)
        if taken == size:
            yield piece
        elif isinstance(piece, Keep):
            yield Keep(piece.start + start, taken)
        else:
            edges = list(accumulate(piece.lengths, initial=0))
            yield New(
                piece.lengths[start : start + taken],
                cut_content(piece.content, edges[start], edges[start + taken]),
            )
        count -= taken
        start = 0


def cut_content(content: Content, start: int, end: int) -> Content:
    """The bytes from `start` up to `end` of some content."""
    if isinstance(content, Ref):
        return Ref(content.sequence, content.start + start, end - start)
    if isinstance(content, bytes):
        return content[start:end]
    parts: list[bytes | Ref] = []
    for part in content.parts:
        length = length_of(part)
        if start < length and end > 0:
            cut = cut_content(part, max(start, 0), min(end, length))
            assert not isinstance(cut, Joined)
            parts.append(cut)
        start, end = start - length, end - length
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))


# --- compose ---


def compose(first: Patch, second: Patch) -> Patch:
    """One patch that does what `first` and then `second` do.

    Raises:
        PatchError: `second` cannot follow `first`.
    """
    if isinstance(second, Splice):
        if isinstance(first, Splice):
            total = sum(p.count if isinstance(p, Keep) else len(p.lengths) for p in first.pieces)
            pieces: list[Keep | New] = []
            for piece in second.pieces:
                if isinstance(piece, New):
                    pieces.append(piece)
                elif piece.start + piece.count > total:
                    raise PatchError(f"elements up to {piece.start + piece.count} of {total}")
                else:
                    pieces.extend(_cut(first.pieces, piece.start, piece.count))
            return Splice(tuple(pieces))
        if isinstance(first, Merge):
            raise PatchError("a splice cannot follow a merge")
        return apply(second, first)
    if isinstance(second, Merge):
        if isinstance(first, Merge):
            return compose_merges(first, second)
        if isinstance(first, Splice):
            raise PatchError("a merge cannot follow a splice")
        return apply(second, first)
    return second


def compose_merges(first: Merge, second: Merge) -> Merge:
    """`compose` for two merges."""
    drop = dict.fromkeys(first.drop)
    changes = dict(first.changes)
    for key in second.drop:
        changes.pop(key, None)
        # Dropping what is not there does nothing, so it needs no proof that the entry existed.
        drop[key] = None
    for key, patch in second.changes.items():
        changes[key] = compose(changes[key], patch) if key in changes else patch
    return Merge(tuple(drop), changes)


# --- content ---


def map_references(patch: Patch, change: Callable[[Ref], bytes | Ref]) -> Patch:
    """The same patch with every reference replaced by what `change` makes of it."""

    if isinstance(patch, Blob):  # as most are
        if isinstance(patch.content, bytes):
            return patch
        if isinstance(patch.content, Ref):
            return Blob(patch.type, change(patch.content))

    def changed(content: Content) -> Content:
        if isinstance(content, bytes):
            return content
        if isinstance(content, Ref):
            return change(content)
        parts = [change(part) if isinstance(part, Ref) else part for part in content.parts]
        known = [part for part in parts if isinstance(part, bytes)]
        return b"".join(known) if len(known) == len(parts) else Joined(tuple(parts))

    return map_pieces(patch, changed, lambda piece: (New(piece.lengths, changed(piece.content)),))


def map_pieces(patch: Patch, blob: Callable[[Content], Content], new: Callable[[New], tuple[New, ...]]) -> Patch:
    """The same patch with the content of blobs and the runs of new elements replaced.

    What nothing is replaced in is not copied.

    Args:
        patch: The patch, left as it is.
        blob: Replaces the content of a Blob; called once for each.
        new: Replaces a run of elements by runs that hold the same elements; called once for each.
    """
    if isinstance(patch, Blob):
        content = blob(patch.content)
        return patch if content is patch.content else Blob(patch.type, content)
    if isinstance(patch, Array):
        return Array(patch.type, patch.wrapped, patch.count, tuple(p for n in patch.pieces for p in new(n)))
    if isinstance(patch, Splice):
        return Splice(tuple(p for piece in patch.pieces for p in (new(piece) if isinstance(piece, New) else (piece,))))
    if isinstance(patch, Merge):
        changes = _map_items(patch.changes, blob, new)
        return Merge(patch.drop, changes) if changes else patch
    entries = _map_items(patch.entries, blob, new)
    return Map(patch.type, patch.wrapped, cast("dict[str, Value]", entries)) if entries else patch


def _map_items(
    items: Mapping[str, Patch], blob: Callable[[Content], Content], new: Callable[[New], tuple[New, ...]]
) -> dict[str, Patch] | None:
    """The items with `map_pieces` done to each; None if that changed nothing."""
    mapped: dict[str, Patch] | None = None
    for key, item in items.items():
        changed = map_pieces(item, blob, new)
        if changed is not item:
            mapped = dict(items) if mapped is None else mapped
            mapped[key] = changed
    return mapped
