"""LangGraph's objects to patches, encoding only what is new.

LangGraph sends the whole state at every step; almost all of it is what it sent before, the same objects in
new lists and dicts.  A `LaneMemory` holds, for the head of one lane, which object each stored element came
from.  Encoding a put then is:

    1. Walk the identities of all elements.  One that is not known is encoded.
    2. Check the known ones that may have changed in place: those that a write returned since the last put,
       the last 128 of each channel, and a 32nd of the rest in rotation; all of them at the first put of an
       invocation, with `exact`, and where a channel has a new version but nothing else to show for it.
       A check is exact (`fingerprint`), or encodes and compares.
    3. What is not known, or did change, becomes the patch.

So an in-place change that no write announced is stored within 32 puts.  Closing checks what the last put did
not: what that put did check was stored as it was then, and what happens to the objects later is no concern of
the log's.

Containers are copied before they are walked: with LangGraph's durability "async" the next node runs meanwhile, and
may change them.

A channel's encoding is what the serializer would have made of the whole value, byte for byte: JsonPlus
encodes a list as a header and its elements' encodings, which is checked once at import.  With any other
serializer, and for values that are neither list nor dict, the value is encoded as a whole and compared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from operator import is_, itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from stepwell.codec import digest_of
from stepwell.patch import (
    Array,
    Keep,
    Map,
    Merge,
    New,
    Patch,
    Splice,
    Value,
    array_header,
    diff,
    parse,
    parse_entry,
    splice_pieces,
)
from stepwell_langgraph.fingerprint import IMMUTABLE, Fingerprint, Fingerprints, encodes_to, fingerprint

try:
    from langgraph.checkpoint.serde.jsonplus import _msgpack_enc
except ImportError:  # a private name, so it may go: everything is then encoded as a whole
    _msgpack_enc = None  # type: ignore[assignment]

ROTATION_PUTS: Final = 32
ALWAYS_CHECKED: Final = 128
_GROUP_ELEMENTS: Final = 16
# A value this small is cheaper to encode than to reason about.
_SMALL_BYTES: Final = 4096
_SLOT_BYTES: Final = 64  # of which the encoding takes as long as looking at an element or entry
_SCALARS: Final = (int, float, bool, type(None))
_TYPE: Final = "msgpack"


encode_element: Callable[[Any], bytes] = _msgpack_enc
"""What JsonPlusSerializer makes of an element of a list, or of a value in a dict; None unless `by_element`."""


def _elements_are_separable() -> bool:
    if _msgpack_enc is None:
        return False
    sample = ["text", 1, None, {"key": (b"bytes", 2.5)}, {1, 2}]
    whole = JsonPlusSerializer().dumps_typed(sample)
    return whole == (_TYPE, array_header(len(sample)) + b"".join(map(encode_element, sample)))


_SEPARABLE: Final = _elements_are_separable()


def by_element(serde: SerializerProtocol) -> bool:
    """Whether a serializer encodes lists and dicts as JsonPlusSerializer does: element by element."""
    return (
        _SEPARABLE
        and isinstance(serde, JsonPlusSerializer)
        and type(serde).dumps_typed is JsonPlusSerializer.dumps_typed
        and not serde.pickle_fallback  # it would pickle the whole list for one element
    )


_NOTHING: Final = object()


class Checks:
    """Which of the known objects one put has to check.

    Attributes:
        turn: Number of the put, which says whose turn it is in the rotation.
        everything: Check all of them.
        announced: Identities of the objects that writes returned since the last put.
        moved: Whether the channel has a new version: something about it has changed.
    """

    __slots__ = ("announced", "everything", "moved", "turn")

    def __init__(
        self, turn: int, *, everything: bool, announced: frozenset[int] | set[int], moved: bool = False
    ) -> None:
        self.turn = turn
        self.everything = everything
        self.announced = announced
        self.moved = moved


class Work(NamedTuple):
    """What bringing a channel to a new value takes.

    Attributes:
        unknown: Objects that will be encoded.
        known_bytes: Besides, as much as encoding so many bytes does: known objects are encoded or compared.
    """

    unknown: Sequence[Any]
    known_bytes: int


class _Slot(msgspec.Struct, gc=False, eq=False):
    """One stored element or entry, and the object that it came from.

    Attributes:
        object: The object.
        mark: Its fingerprint.
        digest: Of a list's element; None if it was not needed yet.
        value: Of a dict's entry.
        length: Bytes of its encoding.
        checked: The put at which it was last known to be what is stored.
        turn: Its turn in the rotation.
    """

    object: Any
    mark: Fingerprint | str | None
    digest: bytes | None = None
    value: Value | None = None
    length: int = 0
    checked: int = -1
    turn: int | None = None


class _Rotation:
    """Whose turn it is: each slot once in 32 puts, the slots spread evenly over them."""

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: dict[int, list[_Slot]] = {}

    def add(self, slot: _Slot) -> None:
        """Give a slot its turn, the one that it has had before if it has had one."""
        if slot.mark is not IMMUTABLE:
            if slot.turn is None:
                slot.turn = next(_turns)
            self._turns.setdefault(slot.turn, []).append(slot)

    def due(self, turn: int) -> list[_Slot]:
        return self._turns.get(turn % ROTATION_PUTS, [])


_turns: Final = cycle(range(ROTATION_PUTS))


class _Group:
    """Neighbours in a list, which are checked together."""

    __slots__ = ("_fingerprints", "checked", "slots")

    def __init__(self, slots: list[_Slot]) -> None:
        self.slots = slots
        self.checked = -1
        self._fingerprints: Fingerprints | None = None

    def matches(self) -> bool:
        """Whether all elements are certainly what is stored."""
        if self._fingerprints is None:
            changeable = [slot for slot in self.slots if slot.mark is not IMMUTABLE]
            marks = [slot.mark for slot in changeable if isinstance(slot.mark, Fingerprint)]
            if len(marks) != len(changeable):
                return False
            self._fingerprints = Fingerprints([slot.object for slot in changeable], marks)
        if not self._fingerprints.match():
            self._fingerprints = None  # those of the elements say which it is, and are then taken anew
            return False
        return True


class ListChannel:
    """A list whose elements are stored one by one.

    Attributes:
        size: Bytes of the encoded elements, roughly.
    """

    def __init__(
        self, stored: Callable[[], Sequence[bytes | memoryview]] | None = None, lengths: Sequence[int] = ()
    ) -> None:
        """A channel with nothing in it, or one whose stored elements are known but not what they came from.

        Args:
            stored: Reads the stored elements.
            lengths: How many bytes each of them has.
        """
        self.size = sum(lengths)
        self._stored = stored
        self._lengths = lengths
        self._count = len(lengths)
        self._turn = 0
        self._stored_digests: list[bytes] = []
        self._adopted: list[object] = []
        self._objects: list[object] = []
        self._slots: list[_Slot] = []
        self._by_id: dict[int, _Slot] = {}
        self._groups: list[_Group] = []
        self._queue: deque[tuple[int, _Group]] = deque()  # with the put at which each was checked, that one first

    @property
    def count(self) -> int:
        """Number of elements."""
        return self._count

    def adopt(self, objects: list[object]) -> None:
        """Take the objects that were decoded from the stored elements as what they came from."""
        if len(objects) == self._count:
            self._adopted = list(objects)

    def begins_with(self, item: object) -> bool:
        """Whether the first element came from this very object."""
        objects = self._adopted or self._objects
        return bool(objects) and objects[0] is item

    def work(self, value: list[object], checks: Checks, most_bytes: int) -> Work:
        """What an update would take."""
        objects = self._adopted or self._objects
        count = len(objects)
        grown = count == self._count and len(value) >= count and all(map(is_, objects, value))
        if checks.everything or not grown or (checks.moved and len(value) == count):
            known = self.size + _SLOT_BYTES * len(value)
            if known > most_bytes:
                return Work((), known)
        else:
            last, by_id = self._slots[-ALWAYS_CHECKED:], self._by_id
            announced = [by_id[identity] for identity in checks.announced if identity in by_id]
            encoded = [slot.length for slot in last + announced if slot.mark is None]
            rotated = self.size // ROTATION_PUTS if encoded else 0
            # That each is the object that it was takes a fraction of checking it.
            known = sum(encoded) + rotated + _SLOT_BYTES * (len(last) + count // ROTATION_PUTS) + count
        if grown:
            return Work(value[count:], known)
        identities = set(map(id, objects))
        return Work([item for item in value if id(item) not in identities], known)

    def _settle(self, turn: int) -> None:
        """Look at the objects that were adopted: most are not only read, so that is left until the next put."""
        if self._adopted and self._stored is not None:
            for item, data in zip(self._adopted, self._stored(), strict=True):
                mark = fingerprint(item)
                known = mark is IMMUTABLE or encodes_to(item, data)
                slot = _Slot(item, mark if known else None)
                slot.length = len(data)
                slot.checked = turn if known else -1
                self._remember(slot)
        self._adopted = []

    def update(self, value: list[object], checks: Checks) -> Patch | None:
        """The patch to a new value; None if nothing changed.  The channel then stands for that value."""
        value = list(value)
        self._turn = checks.turn
        self._settle(checks.turn)
        known = len(self._objects)
        if known == self._count and len(value) >= known and all(map(is_, self._objects, value)):
            fresh = value[known:]
            # An element that is there already may have changed before it was added once more.
            again = [self._by_id[id(item)] for item in fresh if id(item) in self._by_id]
            changed = self._check_due(checks) | self._check(again)
            if checks.moved and not changed and not fresh:
                changed = self._check_all()
            if not changed and not again:
                return self._appended(fresh)
            return self._rebuilt(value, changed)
        kept = [slot for slot in (self._by_id.get(id(item)) for item in value) if slot is not None]
        last = self._check(kept[-ALWAYS_CHECKED:])  # which need not be those that were the last
        return self._rebuilt(value, self._check_due(checks) | last)

    def recheck(self) -> Patch | None:
        """The patch that stores what changed in place and was not checked by the last put."""
        if len(self._objects) != self._count:
            return None
        changed = self._check_all()
        return self._rebuilt(list(self._objects), changed) if changed else None

    def _appended(self, objects: list[object]) -> Patch | None:
        if not objects:
            return None
        encoded = [self._encode(item) for item in objects]
        new = New(tuple(map(len, encoded)), b"".join(encoded))
        kept = self._count
        self._count += len(objects)
        return Splice((Keep(0, kept), new)) if kept else Array(_TYPE, False, self._count, (new,))

    def _encode(self, item: object) -> bytes:
        """Encode an element at the end of the list and remember it."""
        slot = self._by_id.get(id(item)) or _Slot(item, None)
        slot.mark = fingerprint(item)
        data = encode_element(item)
        slot.digest, slot.length, slot.checked = digest_of(data), len(data), self._turn
        self._remember(slot)
        self.size += len(data)
        return data

    def _remember(self, slot: _Slot) -> None:
        self._objects.append(slot.object)
        self._slots.append(slot)
        self._by_id[id(slot.object)] = slot
        if len(self._slots) % _GROUP_ELEMENTS == 0:
            self._groups.append(_Group(self._slots[-_GROUP_ELEMENTS:]))
            self._queue.append((self._turn, self._groups[-1]))

    def _check_due(self, checks: Checks) -> dict[int, bytes]:
        """The new encoding of every element whose turn it is and that changed in place, by identity of its slot."""
        if checks.everything:
            return self._check_all()
        start = max(len(self._slots) - ALWAYS_CHECKED, 0)
        whole = -(-start // _GROUP_ELEMENTS)
        groups = self._groups[whole:]
        single = self._slots[start : whole * _GROUP_ELEMENTS]
        single += [self._by_id[identity] for identity in checks.announced if identity in self._by_id]
        share = -(-len(self._queue) // ROTATION_PUTS)
        for _ in range(len(self._queue)):
            put, group = self._queue[0]
            if share <= 0 and self._turn - put < ROTATION_PUTS:
                break
            share -= 1
            self._queue.popleft()
            self._queue.append((self._turn, group))
            groups.append(group)
        return self._check_groups(groups) | self._check(single)

    def _check_all(self) -> dict[int, bytes]:
        return self._check_groups(self._groups)

    def _check_groups(self, groups: Iterable[_Group]) -> dict[int, bytes]:
        """Check some groups, and the last elements, which make no whole group yet."""
        changed = self._check(self._slots[len(self._groups) * _GROUP_ELEMENTS :])
        for group in groups:
            if group.checked == self._turn:
                continue
            group.checked = self._turn
            if group.matches():
                for slot in group.slots:
                    slot.checked = self._turn
            else:
                changed |= self._check(group.slots)
        return changed

    def _check(self, slots: Iterable[_Slot]) -> dict[int, bytes]:
        """The new encoding of every one of these elements that changed in place, by identity of its slot."""
        changed: dict[int, bytes] = {}
        for slot in slots:
            if slot.mark is IMMUTABLE or slot.checked == self._turn:
                continue
            slot.checked = self._turn
            if isinstance(slot.mark, Fingerprint) and slot.mark.matches(slot.object):
                continue
            slot.mark = fingerprint(slot.object)  # before it is encoded: another thread may change it meanwhile
            data = encode_element(slot.object)
            digest = digest_of(data)
            if slot.digest is None:
                self._read_digests()
            if digest != slot.digest:
                slot.digest, slot.length = digest, len(data)
                changed[id(slot)] = data
        return changed

    def _read_digests(self) -> None:
        """Digests of elements that came from the log, where they were never encoded here."""
        if self._stored is not None:
            self._stored_digests = [digest_of(element) for element in self._stored()]
            self._stored = None
            for slot, digest in zip(self._slots, self._stored_digests, strict=False):
                slot.digest = slot.digest or digest

    def _rebuilt(self, value: list[object], changed: dict[int, bytes]) -> Patch | None:
        """The general case: elements were removed, replaced, moved, or changed in place."""
        self._read_digests()
        before, count_before = self._slots, self._count
        place = {id(slot.object): index for index, slot in enumerate(before)}
        # What is stored of a slot that changed is its old encoding, which equals nothing that is new.
        digests = [None if id(slot) in changed else slot.digest for slot in before] or self._stored_digests
        stored_at = {digest: index for index, digest in enumerate(digests) if digest is not None}
        self._objects, self._slots, self._by_id, self._stored_digests = [], [], {}, []
        self._groups = []
        sources: list[int | bytes] = []
        for item in value:
            index = place.get(id(item))
            if index is None:
                data = self._encode(item)
                digest = self._slots[-1].digest
                assert digest is not None
                sources.append(stored_at.get(digest, data))
            else:
                self._remember(before[index])
                sources.append(changed.get(id(before[index]), index))
        oldest = ((min(slot.checked for slot in group.slots), group) for group in self._groups)
        self._queue = deque(sorted(oldest, key=itemgetter(0)))
        self._count = len(value)
        self.size = sum(slot.length for slot in self._slots)
        if sources == list(range(count_before)):
            return None
        pieces = splice_pieces(sources)
        if any(isinstance(piece, Keep) for piece in pieces):
            return Splice(pieces)
        return Array(_TYPE, False, self._count, tuple(piece for piece in pieces if isinstance(piece, New)))


class DictChannel:
    """A dict with text keys, whose entries are stored one by one.

    Attributes:
        size: Bytes of the encoded entries, roughly.
    """

    def __init__(self, stored: Mapping[str, Value] | None = None, size: int = 0) -> None:
        """A channel with nothing in it, or one whose stored entries (with content as bytes) are known."""
        self.size = size
        self._new = stored is None
        self._turn = 0
        self._entries: dict[str, _Slot] = {}
        self._rotation = _Rotation()
        for key, value in (stored or {}).items():
            slot = self._entries[key] = _Slot(_NOTHING, None)
            slot.value = value

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def work(self, value: dict[str, object], checks: Checks, most_bytes: int) -> Work:
        """What an update would take."""
        slots = self._entries
        known = _SLOT_BYTES * len(value)
        if known > most_bytes:
            return Work((), known)
        suspects = [*slots.values()]
        if not checks.everything and not checks.moved:
            announced = [slot for slot in suspects if id(slot.object) in checks.announced]
            suspects = suspects[-ALWAYS_CHECKED:] + self._rotation.due(checks.turn) + announced
        known += sum(slot.length for slot in suspects if slot.mark is not IMMUTABLE)
        unknown = [item for key, item in [*value.items()] if key not in slots or slots[key].object is not item]
        return Work(unknown, known)

    def update(self, value: dict[str, object], checks: Checks) -> Patch | None:
        """The patch to a new value; None if nothing changed.  The channel then stands for that value."""
        self._turn = checks.turn
        before = self._entries
        slots = list(before.values())
        if not checks.everything:
            slots = slots[-ALWAYS_CHECKED:] + self._rotation.due(checks.turn)
        suspects = set(map(id, slots))
        changes: dict[str, Patch] = {}
        self._entries, self._rotation = {}, _Rotation()
        for key, item in value.items():
            slot = before.get(key)
            suspect = slot is not None and (id(slot) in suspects or id(item) in checks.announced)
            if slot is None or slot.object is not item or (suspect and slot.mark is not IMMUTABLE):
                old = None if slot is None else slot.value
                slot = self._encode(slot, item)
                patch = diff(old, _value(slot))
                if patch is not None:
                    changes[key] = patch
            self._entries[key] = slot
            self._rotation.add(slot)
        self.size = sum(slot.length for slot in self._entries.values())
        drop = tuple(key for key in before if key not in value)
        if checks.moved and not changes and not drop:
            changes = self._late_changes()
        kept = [key for key in before if key in value]
        in_order = kept + [key for key in value if key not in before] == list(value)
        if self._new or not in_order:
            self._new = False
            return Map(_TYPE, False, {key: _value(slot) for key, slot in self._entries.items()})
        return Merge(drop, changes) if drop or changes else None

    def recheck(self) -> Patch | None:
        """The patch that stores what changed in place and was not checked by the last put."""
        changes = self._late_changes()
        return Merge((), changes) if changes else None

    def _late_changes(self) -> dict[str, Patch]:
        """What changed in place in the entries that were not checked by this put."""
        changes: dict[str, Patch] = {}
        for key, slot in self._entries.items():
            if slot.object is not _NOTHING and slot.mark is not IMMUTABLE and slot.checked != self._turn:
                old = slot.value
                patch = diff(old, _value(self._encode(slot, slot.object)))
                if patch is not None:
                    changes[key] = patch
        return changes

    def _encode(self, slot: _Slot | None, item: object) -> _Slot:
        data = encode_element(item)
        if slot is None or slot.object is not item:
            # Entries are compared by their encoding: only that an object cannot change is of use here.
            slot = _Slot(item, IMMUTABLE if fingerprint(item) is IMMUTABLE else None)
        slot.value, slot.length, slot.checked = parse_entry(data), len(data), self._turn
        return slot


def _value(slot: _Slot) -> Value:
    assert slot.value is not None
    return slot.value


class PlainChannel:
    """A value that is encoded as a whole.

    Attributes:
        size: Bytes of the encoded value.
        count: Number of parts that are remembered by themselves.
    """

    count: Final = 0

    def __init__(self, stored: Value | None = None, size: int = 0) -> None:
        """A channel with nothing in it, or one whose stored value (with content as bytes) is known."""
        self.size = size
        self._value = stored
        self._object: object = _NOTHING
        self._mark: bytes | None = None
        self._checked = True
        self._serde: SerializerProtocol | None = None

    def work(self, value: object, checks: Checks) -> Work:
        """What an update would take."""
        if value is not self._object or checks.moved:
            return Work((value,), 0)
        return Work((), self.size if self._suspect(checks) else 0)

    def update(self, value: object, serde: SerializerProtocol, checks: Checks, *, moved: bool) -> Patch | None:
        """The patch to a new value; None if nothing changed.  The channel then stands for that value.

        Args:
            value: The value.
            serde: Encodes it.
            checks: What to check if it is the object that it was.
            moved: Whether the channel has a new version.
        """
        if value is self._object and serde is self._serde and not moved:
            self._checked = self._suspect(checks)
            if not self._checked or not self._differs(serde):
                return None
        self._object, self._mark, self._checked, self._serde = value, _mark(value, serde), True, serde
        type_, payload = serde.dumps_typed(value)
        self.size = len(payload)
        new = parse(type_, bytes(payload))
        patch = diff(self._value, new)
        self._value = new
        return patch

    def recheck(self, serde: SerializerProtocol) -> Patch | None:
        """The patch that stores what changed in place and was not checked by the last put."""
        if self._object is _NOTHING or self._checked:
            return None
        return self.update(self._object, serde, Checks(0, everything=True, announced=frozenset()), moved=False)

    def _suspect(self, checks: Checks) -> bool:
        if fingerprint(self._object) is IMMUTABLE:
            return False
        return (
            checks.everything
            or self.size <= _SMALL_BYTES
            or id(self._object) in checks.announced
            or checks.turn % ROTATION_PUTS == 0
        )

    def _differs(self, serde: SerializerProtocol) -> bool:
        """Whether the object may have changed, for a serializer that encodes the same object differently each time."""
        return by_element(serde) or self._mark is None or _mark(self._object, serde) != self._mark


def _mark(value: object, serde: SerializerProtocol) -> bytes | None:
    """What an object is compared by where its encoding is of no use for that: JsonPlus's; None if it has none."""
    if by_element(serde) or not _SEPARABLE:
        return None
    try:
        return digest_of(encode_element(value))
    except Exception:  # whatever a foreign object raises: it is then encoded each time
        return None


Channel = ListChannel | DictChannel | PlainChannel


def update(
    channel: Channel | None, value: Any, serde: SerializerProtocol, checks: Checks, *, moved: bool
) -> tuple[Channel, Patch | None]:
    """Bring a channel to a new value: the channel to go on with, and the patch."""
    if by_element(serde):
        if type(value) is list and _worth_splitting(value):
            channel = channel if isinstance(channel, ListChannel) else ListChannel()
            return channel, channel.update(value, checks)
        if type(value) is dict:
            entries = dict(value)
            if entries and all(type(key) is str and key.isprintable() for key in entries):
                channel = channel if isinstance(channel, DictChannel) else DictChannel()
                return channel, channel.update(entries, checks)
    channel = channel if isinstance(channel, PlainChannel) else PlainChannel()
    return channel, channel.update(value, serde, checks, moved=moved)


def to_encode(channel: Channel | None, value: Any, checks: Checks, most_bytes: int) -> Work:
    """What `update` would take, as far as identities tell; it need not be told beyond some bytes."""
    if isinstance(channel, ListChannel) and type(value) is list:
        return channel.work(value, checks, most_bytes)
    if isinstance(channel, DictChannel) and type(value) is dict:
        return channel.work(value, checks, most_bytes)
    if isinstance(channel, PlainChannel):
        return channel.work(value, checks)
    return Work((value,), 0)


def _worth_splitting(value: list[object]) -> bool:
    """Lists of numbers cost more one by one than as a whole."""
    return bool(value) and not (isinstance(value[0], _SCALARS) and isinstance(value[-1], _SCALARS))
