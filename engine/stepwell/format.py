"""Every key and byte on disk, as constants and pure functions (SPEC.md, sections 3 to 5).

All integers are big-endian and of fixed width, so that the order of keys is the order of numbers and no
key of one thread can be a prefix of another's.  Names of any length and characters are interned: their
16-byte hash stands in keys, the name itself stands once in the `names` table.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence as Several
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

# On disk: never renumber.
FORMAT_VERSION: Final = 1  # what this library writes
READABLE_FROM_VERSION: Final = 1  # the oldest library format that can read it

KIND_THREAD_OPENED: Final = 1
KIND_LANE_OPENED: Final = 2
KIND_STEP: Final = 3
KIND_WRITES: Final = 4
KIND_THREAD_COPIED: Final = 5
KIND_THREAD_PRUNED: Final = 6
KIND_THREAD_DELETED: Final = 7
KIND_THREAD_LABELLED: Final = 8
KIND_ITEM_PUT: Final = 9
KIND_ITEM_DELETED: Final = 10
KIND_ITEM_TOUCHED: Final = 11
ITEM_KINDS: Final = frozenset({KIND_ITEM_PUT, KIND_ITEM_DELETED, KIND_ITEM_TOUCHED})

FLAG_REPLACES: Final = 1  # the step's id was committed before in this lane; `previous` names the first time
FLAG_HIDDEN: Final = 2  # the step is kept for what descends from it, and shown to nobody
FLAG_STATUS: Final = 0x1C  # three bits, a number: what became of the thread, as who appended the event knows it
KNOWN_FLAGS: Final = FLAG_REPLACES | FLAG_HIDDEN | FLAG_STATUS
_STATUS_SHIFT: Final = 2

STATUS_UNKNOWN: Final = 0  # the event says nothing about it
STATUS_RUNNING: Final = 1
STATUS_INTERRUPTED: Final = 2
STATUS_FAILED: Final = 3
STATUS_DONE: Final = 4
STATUSES: Final = range(STATUS_DONE + 1)

FORM_PLAIN: Final = 0  # the body stands as it is
FORM_ZSTD: Final = 1  # the body is one zstandard frame
FORM_ZSTD_DICTIONARY: Final = 2  # the body is one zstandard frame, made with the dictionary loose-1.dict

CHAIN_BYTES: Final = 16
CHECKSUM_BYTES: Final = 8
_SEAL_BYTES: Final = 24  # the first 8 are the checksum, all 24 go into the chain
CHAIN_SEED: Final = bytes(CHAIN_BYTES)

# version, kind, flags, form, lane, commit, created_at, base, previous
_HEADER = struct.Struct(">BBBBIQQQQ")
COVERED_BYTES: Final = _HEADER.size  # 40: what the checksum covers of the header, with the form as 0
_FORM_OFFSET: Final = 3
HEADER_BYTES: Final = COVERED_BYTES + CHECKSUM_BYTES + CHAIN_BYTES  # 64

# The largest event body before compression.  LMDB holds values up to 4 GiB, but above 2 GiB single
# write calls have failed on some systems.
MAX_BODY_BYTES: Final = 1 << 30


class Header(NamedTuple):
    """The fixed part of a record: what storage must know without decoding the body.

    A record in a segment has no checksum of its own, and only the last one there says its chain hash.
    """

    version: int
    kind: int
    flags: int
    form: int
    lane: int
    commit: int
    created_at: int
    base: int
    previous: int
    checksum: bytes
    chain: bytes


def body_digest(body: bytes | memoryview) -> bytes:
    """What a record's checksum takes of its body: always of the plain body, whatever form it is stored in."""
    return blake2b(body, digest_size=32).digest()


def stamp(
    thread: int,
    sequence: int,
    kind: int,
    flags: int,
    form: int,
    lane: int,
    commit: int,
    created_at: int,
    base: int,
    previous: int,
    digest: bytes,
    chain: bytes,
) -> tuple[bytes, bytes]:
    """A record's header and the chain hash after it.

    The checksum covers the record's place (thread, sequence) as well as its bytes, so that a record read
    from another place is found out; the chain covers everything before it.  Neither covers the form, so that
    a body may be stored in another one later.

    Args:
        digest: `body_digest` of the body.
        chain: The chain hash before this record.
    """
    covered = _HEADER.pack(FORMAT_VERSION, kind, flags, FORM_PLAIN, lane, commit, created_at, base, previous)
    seal = _seal(thread, sequence, covered, digest)
    after = _chained(chain, seal)
    return b"".join((covered[:_FORM_OFFSET], bytes((form,)), covered[4:], seal[:CHECKSUM_BYTES], after)), after


def read_header(record: bytes | memoryview) -> Header:
    """Take a record's header apart without checking anything but its length."""
    if len(record) < HEADER_BYTES:
        raise ValueError(f"a record has at least {HEADER_BYTES} bytes, this one has {len(record)}")
    checksum = bytes(record[COVERED_BYTES : COVERED_BYTES + CHECKSUM_BYTES])
    chain = bytes(record[COVERED_BYTES + CHECKSUM_BYTES : HEADER_BYTES])
    version, kind, flags, form, lane, commit, created_at, base, previous = _HEADER.unpack_from(record)
    return Header(version, kind, flags, form, lane, commit, created_at, base, previous, checksum, chain)


def status_flags(status: int) -> int:
    """A status as flags of a record."""
    return status << _STATUS_SHIFT


def read_status(flags: int) -> int:
    """Inverse of `status_flags`; other flags do not matter."""
    return (flags & FLAG_STATUS) >> _STATUS_SHIFT


def pack_covered(header: Header) -> bytes:
    """What the checksum covers of a header: all but the hashes, with the form as plain."""
    return _HEADER.pack(*header[:3], FORM_PLAIN, *header[4:9])


def read_covered(data: bytes | bytearray, offset: int, chain: bytes = b"") -> Header:
    """Inverse of `pack_covered`: a header without checksum, and without chain unless it is given."""
    version, kind, flags, form, lane, commit, created_at, base, previous = _HEADER.unpack_from(data, offset)
    return Header(version, kind, flags, form, lane, commit, created_at, base, previous, b"", chain)


def verify(thread: int, sequence: int, header: Header, digest: bytes) -> None:
    """Raise ValueError unless a record is what was written at this place.

    Args:
        thread: Number of the thread that the record was read from.
        sequence: Where in the thread it was read.
        header: Its header.
        digest: `body_digest` of its body.
    """
    if _seal(thread, sequence, pack_covered(header), digest)[:CHECKSUM_BYTES] != header.checksum:
        raise ValueError("the checksum does not match")
    if header.version > FORMAT_VERSION:
        raise ValueError(f"the record is of format {header.version}, this library reads up to {FORMAT_VERSION}")
    if header.flags & ~KNOWN_FLAGS:
        raise ValueError(f"the record has the unknown flags {header.flags & ~KNOWN_FLAGS:#x}")
    if read_status(header.flags) not in STATUSES:
        raise ValueError(f"the record has the unknown status {read_status(header.flags)}")


def chain_after(thread: int, sequence: int, header: Header, digest: bytes, chain: bytes) -> bytes:
    """The chain hash after a record, computed from its content and the hash before it.  Arguments as for `verify`."""
    return _chained(chain, _seal(thread, sequence, pack_covered(header), digest))


def _seal(thread: int, sequence: int, covered: bytes, digest: bytes) -> bytes:
    place = _THREAD_AND_SEQUENCE.pack(thread, sequence)
    return blake2b(b"".join((place, covered, digest)), digest_size=_SEAL_BYTES).digest()


def _chained(chain: bytes, seal: bytes) -> bytes:
    return blake2b(chain + seal, digest_size=CHAIN_BYTES).digest()


# --- keys ---

_NUMBER = struct.Struct(">Q")
_THREAD_AND_SEQUENCE = struct.Struct(">QQ")
_THREAD_SEQUENCE_AND_PART = struct.Struct(">QQI")
_THREAD_AND_LANE = struct.Struct(">QI")

ID_KEY_BYTES: Final = 1 + 16  # form, UUID or hash
INDEX_KEY_BYTES: Final = 8 + 4 + ID_KEY_BYTES  # thread, lane, id

# Ids that begin so are the log's own: nobody else can open a thread under one.
OWN_THREADS: Final = "\0stepwell."
ITEMS_THREAD_ID: Final = OWN_THREADS + "items"

# A text in the key of an item: its length and itself; or, if it is longer, one of these bytes and a hash.
LONGEST_TEXT_IN_KEY_BYTES: Final = 63
PARTS_IN_KEY: Final = 6  # of a namespace; those that follow stand there as one hash
_PATHS_HELD: Final = 256  # of namespaces, as many items are written and read to few
_TEXT_HASHED: Final = b"\x40"
_REST_HASHED: Final = b"\x41"
_NAMESPACE_ENDS: Final = b"\x7f"
_LENGTHS: Final = [bytes((length,)) for length in range(LONGEST_TEXT_IN_KEY_BYTES + 1)]

_HASH_BYTES: Final = 16
_FORM_UUID: Final = b"\x00"
_FORM_HASHED: Final = b"\x01"


def number_key(number: int) -> bytes:
    """Key of `threads` (a thread's number) and of `feed` (a commit number)."""
    return _NUMBER.pack(number)


def read_number(key: bytes) -> int:
    """Inverse of `number_key`."""
    (number,) = _NUMBER.unpack(key)
    return int(number)


def event_key(thread: int, sequence: int) -> bytes:
    """Key of `events`."""
    return _THREAD_AND_SEQUENCE.pack(thread, sequence)


def read_event_key(key: bytes) -> tuple[int, int]:
    """Inverse of `event_key`; of a part's key, the segment's thread and last sequence."""
    thread, sequence = _THREAD_AND_SEQUENCE.unpack_from(key)
    return thread, sequence


def part_key(thread: int, last: int, part: int) -> bytes:
    """Key of `segments`: a part of the segment that ends with an event."""
    return _THREAD_SEQUENCE_AND_PART.pack(thread, last, part)


def lane_key(thread: int, lane: int) -> bytes:
    """Key of `lanes`."""
    return _THREAD_AND_LANE.pack(thread, lane)


def read_lane_key(key: bytes) -> tuple[int, int]:
    """Inverse of `lane_key`."""
    thread, lane = _THREAD_AND_LANE.unpack(key)
    return thread, lane


def name_key(owner: int, name: bytes) -> bytes:
    """Key of `names`: owner 0 holds thread ids, owner N the lane names of thread N."""
    return _NUMBER.pack(owner) + blake2b(name, digest_size=16).digest()


def id_key(identifier: str) -> bytes:
    """The fixed-width stand-in for a step id: its own 16 bytes if it is a UUID in text, else its hash.

    UUIDs keep their order, and the form byte keeps a hash from ever equalling a UUID.
    """
    if len(identifier) == 36:
        digits = identifier.replace("-", "")
        if len(digits) == 32 and digits.isalnum():
            try:
                raw = bytes.fromhex(digits)
            except ValueError:
                raw = b""
            if raw and identifier == _uuid_text(raw):
                return _FORM_UUID + raw
    return _FORM_HASHED + blake2b(identifier.encode(), digest_size=16).digest()


def _uuid_text(raw: bytes) -> str:
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def index_key(thread: int, lane: int, step_key: bytes) -> bytes:
    """Key of `index`: a step id's own row."""
    return _THREAD_AND_LANE.pack(thread, lane) + step_key


def index_further_key(thread: int, lane: int, step_key: bytes, sequence: int) -> bytes:
    """Key of a further row of a step id, by the first event that it names."""
    return index_key(thread, lane, step_key) + _NUMBER.pack(sequence)


# On disk: never change them.
COMMITS_IN_EPOCH: Final = 1024  # of the table `recent`
SPAN_BITS: Final = 36  # 2^36 ns are 69 seconds
MOST_SORTED_BYTES: Final = 448  # of a thread's id in `ids`; with the number behind it within LMDB's 511

_RECENT = struct.Struct(">8sQIQ")
_STATUS_FACET = struct.Struct(">Q")
NUMBER_BYTES: Final = _NUMBER.size


def status_facet(status: int) -> bytes:
    """What the threads of a status stand under in `recent`."""
    return _STATUS_FACET.pack(status)


def label_facet(name: bytes, value: bytes) -> bytes:
    """What the threads with a label stand under in `recent`; another may have the same, and a reader compares.

    Args:
        name: The label's name.
        value: Its value in msgpack, the same for values that are equal.
    """
    return blake2b(len(name).to_bytes(4) + name + value, digest_size=8).digest()


def epoch_of(commit: int) -> int:
    """The epoch of a commit number."""
    return commit // COMMITS_IN_EPOCH


def span_of(time: int) -> int:
    """The span of time in which a Unix time in nanoseconds lies."""
    return time >> SPAN_BITS


def recent_key(facet: bytes, epoch: int, span: int, thread: int) -> bytes:
    """Key of `recent`."""
    return _RECENT.pack(facet, epoch, span, thread)


def read_recent(key: bytes) -> tuple[bytes, int, int, int]:
    """Inverse of `recent_key`."""
    facet, epoch, span, thread = _RECENT.unpack(key)
    return facet, epoch, span, thread


def sorted_key(name: bytes, thread: int) -> bytes:
    """Key of `ids`: keeps the order of ids, as far as they stand in it."""
    return name[:MOST_SORTED_BYTES] + _NUMBER.pack(thread)


def item_key(namespace: Several[str], key: str) -> bytes:
    """Key of `items`, and what those of `versions` and `expiries` are made with.

    Each text is preceded by its length, so no key of one item is a prefix of another's, and all items whose
    namespaces begin with the same parts stand together.
    """
    return _path(tuple(namespace))[0] + _text(key.encode())


def item_place(namespace: tuple[str, ...], key: str) -> tuple[bytes, bool]:
    """The key of an item, and whether it says namespace and key in full."""
    path, is_literal = _path(namespace)
    text = key.encode()
    return path + _text(text), is_literal and len(text) <= LONGEST_TEXT_IN_KEY_BYTES


def items_prefix(parts: Several[str]) -> bytes:
    """What all keys of items begin with whose namespaces begin with these parts.

    Keys of others can begin so too if there are more than `PARTS_IN_KEY` parts.
    """
    return b"".join(_text(part.encode()) for part in parts[:PARTS_IN_KEY]) + _REST_HASHED * (len(parts) > PARTS_IN_KEY)


def namespace_prefix(namespace: Several[str]) -> bytes:
    """What all keys of items of one namespace begin with."""
    return _path(tuple(namespace))[0]


def namespace_bytes(item: bytes) -> int:
    """How many bytes of an item's key its namespace takes; raises ValueError if it is no such key."""
    place = 0
    while (head := item[place : place + 1]) != _NAMESPACE_ENDS:
        if not head or head > _REST_HASHED:
            raise ValueError("it is no key of an item")
        place += 1 + (head[0] if head < _TEXT_HASHED else _HASH_BYTES)
    return place + 1


def read_item_key(item: bytes) -> tuple[tuple[str, ...], str] | None:
    """Namespace and key of an item; None if a hash stands for a part of them.  Raises ValueError if it is no key."""
    end = namespace_bytes(item)
    parts: list[str] = []
    place = 0
    while place < len(item):
        head = item[place]
        if place == end - 1:
            place = end
            continue
        if head > LONGEST_TEXT_IN_KEY_BYTES:
            return None
        parts.append(item[place + 1 : place + 1 + head].decode())
        place += 1 + head
    if place != len(item) or not parts:
        raise ValueError("it is no key of an item")
    return tuple(parts[:-1]), parts[-1]


def versions_key(item: bytes, commit: int) -> bytes:
    """Key of `versions`: the item, and the commit of the first version that the row names."""
    return item + _NUMBER.pack(commit)


def expiry_key(expires_at: int, item: bytes) -> bytes:
    """Key of `expiries`: the time, and the item."""
    return _NUMBER.pack(expires_at) + item


def read_expiry_key(key: bytes) -> tuple[int, bytes]:
    """Inverse of `expiry_key`."""
    return read_number(key[:8]), key[8:]


@lru_cache(maxsize=_PATHS_HELD)
def _path(namespace: tuple[str, ...]) -> tuple[bytes, bool]:
    """What the keys of a namespace's items begin with, and whether it says the namespace in full."""
    parts = [part.encode() for part in namespace]
    path = b"".join(map(_text, parts[:PARTS_IN_KEY]))
    if len(parts) <= PARTS_IN_KEY:
        return path + _NAMESPACE_ENDS, all(len(part) <= LONGEST_TEXT_IN_KEY_BYTES for part in parts)
    rest = b"".join(struct.pack(">I", len(part)) + part for part in parts[PARTS_IN_KEY:])
    return path + _REST_HASHED + blake2b(rest, digest_size=_HASH_BYTES).digest() + _NAMESPACE_ENDS, False


def _text(text: bytes) -> bytes:
    if len(text) <= LONGEST_TEXT_IN_KEY_BYTES:
        return _LENGTHS[len(text)] + text
    return _TEXT_HASHED + blake2b(text, digest_size=_HASH_BYTES).digest()
