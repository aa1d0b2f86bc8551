"""Items: what stands under each namespace and key now, what stood there before, and what expires when.

    items     item             where the newest version stands, and its value if that is small
    versions  item, commit     the versions before it, deletions too: 64 to a row, or more of one commit
    expiries  time, item       nothing

What there is now is one row away.  What there was after some commit is two: the row of versions that begins with
that commit or before it, and the record of the version.  An item that was put once has no row of versions.

All of it follows from the events of the items' thread, in their order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Several
from itertools import accumulate, islice
from operator import lt
from typing import Final, NamedTuple

import msgspec

from stepwell import codec
from stepwell import format as fmt
from stepwell.codec import Record
from stepwell.errors import CorruptionError
from stepwell.events import Commit, Event, ItemDeleted, ItemEvent, ItemPut, Sequence
from stepwell.patch import Blob, Ref, Value, array_header, payload_of, size_of
from stepwell.storage import Deletion, Entry, Item, ItemChange, ItemName, Number, decode_row
from stepwell.storage.records import Records
from stepwell.storage.tables import EXPIRIES, ITEMS, PAGE_ROWS, VERSIONS, Tables, find_thread, prefix_end

# On disk: audit and foreign readers count on these.
VERSIONS_IN_ROW: Final = 64
LARGEST_VALUE_IN_ROW_BYTES: Final = 1024

_AFTER_ALL: Final = (1 << 63) - 1  # commits, and sequences


class ItemRow(msgspec.Struct, array_like=True, gc=False):
    """An item as it is.

    Attributes:
        sequence: Where its value was put.
        commit: The commit of that.
        updated_at: Unix time in nanoseconds of that.
        born: Where the item was created.
        created_at: Unix time in nanoseconds of that.
        versions: The commit in the key of its newest row of versions; 0 if there is none since it was created.
        expires_at: Unix time in nanoseconds from which it may be removed; 0 for never.
        value: Type and payload; None if they are too large to stand here.
        name: Namespace and key, if hashes stand for parts of them in the row's key.
    """

    sequence: Number
    commit: Number
    updated_at: Number
    born: Number
    created_at: Number
    versions: Number = 0
    expires_at: Number = 0
    value: tuple[str, bytes] | None = None
    name: tuple[tuple[str, ...], str] | None = None


class Version(NamedTuple):
    """One version of an item.

    Attributes:
        commit: The commit that it came with.
        sequence: Where it stands.
        deleted: Whether it is a deletion.
    """

    commit: int
    sequence: int
    deleted: bool


_encoder = msgspec.msgpack.Encoder()
_item_row = msgspec.msgpack.Decoder(ItemRow)
_item_rows = msgspec.msgpack.Decoder(list[ItemRow])
_numbers = msgspec.msgpack.Decoder(list[int])


def pack_item(row: ItemRow) -> bytes:
    """An item's row as bytes."""
    return _encoder.encode(row)


def pack_versions(born: int, versions: Iterable[Version]) -> bytes:
    """A row of versions as bytes.

    Args:
        born: Where the item was created that the first of them is a version of.
        versions: In their order.
    """
    row = [born]
    commit, lead = 0, 0
    for version in versions:
        row += _differences(version, commit, lead)
        commit, lead = version.commit, version.sequence - version.commit
    return _encoder.encode(row)


def value_in_row(value: Value, read: Callable[[Ref], bytes]) -> tuple[str, bytes] | None:
    """Type and payload of a value that is small enough to stand in its item's row."""
    if isinstance(value, Blob) and isinstance(value.content, bytes):  # as most are
        return (value.type, value.content) if len(value.content) <= LARGEST_VALUE_IN_ROW_BYTES else None
    if size_of(value) > LARGEST_VALUE_IN_ROW_BYTES:
        return None
    payload = payload_of(value, read)
    return (value.type, payload) if len(payload) <= LARGEST_VALUE_IN_ROW_BYTES else None


def _differences(version: Version, commit: int, lead: int) -> tuple[int, int]:
    """A version by how it differs from the one before it: commit, and how far its sequence is ahead of that.

    Most changes come alone in their commit, and so keep that distance while nobody else commits.
    """
    return version.commit - commit, (version.sequence - version.commit - lead) << 1 | version.deleted


def _unpack_item(data: bytes) -> ItemRow:
    return decode_row(_item_row, data, ITEMS)


def _unpack_items(rows: list[bytes]) -> list[ItemRow]:
    try:
        return _item_rows.decode(array_header(len(rows)) + b"".join(rows))
    except (ValueError, RecursionError):
        return [*map(_unpack_item, rows)]  # raises and says what is wrong


def _unpack_versions(key: bytes, data: bytes) -> tuple[int, list[Version]]:
    """Where the item was created that the first version of a row is one of, and the versions, in their order."""
    born, *rest = decode_row(_numbers, data, VERSIONS) or [0]
    commits = list(accumulate(rest[::2]))
    leads = accumulate(each >> 1 for each in rest[1::2])
    versions = [
        Version(commit, commit + lead, bool(flagged & 1))
        for commit, lead, flagged in zip(commits, leads, rest[1::2], strict=False)
    ]
    sequences = [0, *(version.sequence for version in versions), _AFTER_ALL]
    if (
        not versions
        or min(rest[::2]) < 0
        or commits[0] != fmt.read_number(key[-fmt.NUMBER_BYTES :])
        or not all(map(lt, sequences, sequences[1:]))
        or not 0 < born <= sequences[1]
    ):
        raise CorruptionError(f"a row of the table {VERSIONS} cannot be decoded: it names no versions in their order")
    return born, versions


# --- changing ---


class Changes:
    """What a group of operations changes: the rows of each item are read once, and written once at its end.

    Args:
        tables: The tables.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._changing: dict[bytes, _Changing] = {}

    def add(self, entry: Entry, said: ItemChange, sequence: int, commit: int) -> None:
        """Do what an event says of an item.

        Args:
            entry: The event.
            said: What it says.
            sequence: Where it was put.
            commit: Its commit.
        """
        item = self._changing.get(said.key)
        if item is None:
            data = self._tables.get(ITEMS, said.key)
            item = self._changing[said.key] = _Changing(None if data is None else _unpack_item(data))
        row = item.row
        if row is not None:
            if row.name != said.name:
                raise CorruptionError(f"two items have one hash: {row.name!r} and {said.name!r}")
            if not 0 < row.sequence < sequence or row.commit > commit:
                raise CorruptionError(f"a row of the table {ITEMS} says what cannot have been before event {sequence}")
        if entry.kind == fmt.KIND_ITEM_PUT:
            item.put(entry.created_at, said, sequence, said.commit or commit)
        elif row is not None and entry.kind == fmt.KIND_ITEM_DELETED:
            if not said.expired_by or 0 < row.expires_at <= said.expired_by:
                item.delete(sequence, said.commit or commit)
        elif row is not None and row.sequence == said.sequence:
            row.expires_at = said.expires_at

    def clear(self) -> None:
        """Remove what is derived of all items."""
        self._changing.clear()
        for table in (ITEMS, VERSIONS, EXPIRIES):
            while (doomed := self._tables.next_key(table, b"", b"\xff")) is not None:
                self._tables.delete(table, doomed)

    def flush(self) -> None:
        """Write what has changed."""
        for key, item in self._changing.items():
            row = item.row
            if item.past:
                newest = self._archive(key, item)
                if row is not None and row.sequence != row.born:
                    row.versions = newest
            expires_at = 0 if row is None else row.expires_at
            if item.expires_at != expires_at:
                if item.expires_at:
                    self._tables.delete(EXPIRIES, fmt.expiry_key(item.expires_at, key))
                if expires_at:
                    self._tables.put(EXPIRIES, fmt.expiry_key(expires_at, key), b"")
            if row is not None:
                self._tables.put(ITEMS, key, pack_item(row))
            elif item.was_there:
                self._tables.delete(ITEMS, key)
        self._changing.clear()

    def _archive(self, key: bytes, item: _Changing) -> int:
        """Note versions among those that were; returns the commit in the key of the last row."""
        first = item.newest_row or self._newest_row(key)
        numbers: list[int] = []
        last = lead = 0
        if first:
            data = self._tables.get(VERSIONS, fmt.versions_key(key, first))
            if data is None:
                raise CorruptionError(f"a row of the table {VERSIONS} is missing")
            numbers = decode_row(_numbers, data, VERSIONS)
            last, lead = sum(numbers[1::2]), sum(each >> 1 for each in numbers[2::2])
            version = item.past[0][0]
            if not first <= last <= version.commit or not 0 < last + lead < version.sequence:
                raise CorruptionError(f"a row of the table {VERSIONS} does not come before version {version.sequence}")
        for version, born in item.past:
            if not numbers or (len(numbers) > 2 * VERSIONS_IN_ROW and last != version.commit):
                if numbers:
                    self._tables.put(VERSIONS, fmt.versions_key(key, first), _encoder.encode(numbers))
                numbers, first, last, lead = [born], version.commit, 0, 0
            numbers += _differences(version, last, lead)
            last, lead = version.commit, version.sequence - version.commit
        self._tables.put(VERSIONS, fmt.versions_key(key, first), _encoder.encode(numbers))
        return first

    def _newest_row(self, key: bytes) -> int:
        last = self._tables.previous_key(VERSIONS, key, prefix_end(key))
        return 0 if last is None else fmt.read_number(last[-8:])


class _Changing:
    """An item that a group changes.

    Attributes:
        row: Its row as it is now; None if there is none.
        past: The versions that are to be noted among those that were, and where the item of each was created.
        was_there: Whether it had a row before.
        expires_at: When it expired then; 0 for never.
        newest_row: The commit in the key of its newest row of versions then; 0 if that is not known.
    """

    __slots__ = ("expires_at", "newest_row", "past", "row", "was_there")

    def __init__(self, row: ItemRow | None) -> None:
        self.row = row
        self.past: list[tuple[Version, int]] = []
        self.was_there = row is not None
        self.expires_at = 0 if row is None else row.expires_at
        self.newest_row = 0 if row is None else row.versions

    def put(self, at: int, said: ItemChange, sequence: int, commit: int) -> None:
        """It has another value."""
        row = self.row
        if row is None:
            born, created_at, versions = sequence, said.born_at or at, 0
        else:
            born, created_at, versions = row.born, row.created_at, row.versions
            self.past.append((Version(row.commit, row.sequence, False), born))
        self.row = ItemRow(sequence, commit, at, born, created_at, versions, said.expires_at, said.value, said.name)

    def delete(self, sequence: int, commit: int) -> None:
        """It is deleted."""
        row = self.row
        assert row is not None
        self.past.append((Version(row.commit, row.sequence, False), row.born))
        self.past.append((Version(commit, sequence, True), row.born))
        self.row = None


# --- reading ---


class Items:
    """The items within one transaction.

    Args:
        tables: The tables.
        records: Reads the events.
        attachments: Whether to give what was put beside the values.
    """

    def __init__(self, tables: Tables, records: Records, *, attachments: bool = False) -> None:
        self._tables = tables
        self._records = records
        self._attachments = attachments
        self._number = 0

    def get(self, name: ItemName, at: int | None = None) -> Item | None:
        """An item, as it is or as it was after a commit."""
        key = fmt.item_key(*name)
        data = self._tables.get(ITEMS, key)
        if data is not None:
            row = _unpack_item(data)
            if row.name is not None and row.name != name:
                return None
            if at is None or row.commit <= at:
                return self._now(key, name, row)
        item = None if at is None else self._then(key, at)
        return item if item is None or (item.namespace, item.key) == name else None

    def scan(self, prefix: tuple[str, ...], after: ItemName | None, at: int | None, limit: int) -> Iterator[Item]:
        """The items whose namespaces begin with some parts, as they are or as they were after a commit."""
        if at is None:
            return islice(self._scan_now(prefix, after, min(limit, PAGE_ROWS)), limit)
        return islice(self._scan_then(prefix, after, at), limit)

    def namespaces(self, prefix: tuple[str, ...], after: tuple[str, ...] | None) -> Iterator[tuple[str, ...]]:
        """The namespaces that hold items and begin with some parts."""
        begin = fmt.items_prefix(prefix)
        start, stop = begin, prefix_end(begin)
        if after is not None:
            start = max(begin, prefix_end(fmt.namespace_prefix(after)))
        while True:
            found = next(self._tables.scan(ITEMS, start, stop), None)
            if found is None:
                return
            key, data = found
            namespace = _name(key, _unpack_item(data))[0]
            if namespace[: len(prefix)] == prefix:
                yield namespace
            start = prefix_end(key[: fmt.namespace_bytes(key)])

    def versions(self, name: ItemName, before: int) -> Iterator[Item | Deletion]:
        """The versions of an item with sequences below `before`, newest first."""
        key = fmt.item_key(*name)
        data = self._tables.get(ITEMS, key)
        if data is not None:
            row = _unpack_item(data)
            if row.sequence < before and row.name in (None, name):
                yield self._now(key, name, row)
        for place, data in self._tables.scan_back(VERSIONS, key, prefix_end(key)):
            born, versions = _unpack_versions(place, data)
            for index in range(len(versions) - 1, -1, -1):
                version = versions[index]
                if version.sequence >= before:
                    continue
                if version.deleted:
                    record, event = self._event(version.sequence)
                    if not isinstance(event, ItemDeleted):
                        raise self._misplaced(version.sequence)
                    at = record.header.created_at
                    yield Deletion(*name, at, Commit(version.commit), Sequence(version.sequence))
                else:
                    yield self._read(key, version, _born(born, versions, index))

    def expired(self, by: int) -> Iterator[ItemName]:
        """The items that expire by a time, in the order in which they do."""
        for place, _ in self._tables.scan(EXPIRIES, b"", fmt.number_key(by + 1)):
            expires_at, key = fmt.read_expiry_key(place)
            data = self._tables.get(ITEMS, key)
            row = None if data is None else _unpack_item(data)
            if row is None or row.expires_at != expires_at:
                raise CorruptionError(f"the tables {ITEMS} and {EXPIRIES} do not match")
            yield _name(key, row)

    def commit_by(self, time: int) -> int:
        """The commit of the last change by a time; 0 if there is none."""
        row = find_thread(self._tables, fmt.ITEMS_THREAD_ID)
        if row is None:
            return 0
        low, high = row.first, row.last  # the last one by then stands between; or there is none, and the first is none
        # First by what a group of segments begins with, which is read without the rest of it.  Then within that group.
        passed = low  # up to here there is no other group than that of `low`
        while passed < high:
            middle = (passed + high + 1) // 2
            begin = self._records.group_begin(row.number, middle)
            if begin <= passed:
                passed = middle
            elif self._time(row.number, begin) <= time:
                low, passed = begin, middle
            else:
                high = begin - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._time(row.number, middle) <= time:
                low = middle
            else:
                high = middle - 1
        record, event = self._event(low)
        if not isinstance(event, ItemEvent):
            return 0
        return (event.commit if isinstance(event, ItemPut | ItemDeleted) else 0) or record.header.commit

    def _time(self, thread: int, sequence: int) -> int:
        header = self._records.header(thread, sequence)
        if header is None:
            raise CorruptionError("the event is missing", thread=thread, sequence=sequence)
        return header.created_at

    def _scan_now(self, prefix: tuple[str, ...], after: ItemName | None, page_rows: int) -> Iterator[Item]:
        start, stop = self._edges(prefix, after)
        path = b"\xff"
        begin = 2  # of the text in a key of the same namespace
        namespace: tuple[str, ...] = ()
        is_exact = len(prefix) <= fmt.PARTS_IN_KEY
        while page := self._tables.rows(ITEMS, start, stop, limit=page_rows):
            for (key, _), row in zip(page, _unpack_items([data for _, data in page]), strict=True):
                if row.name is None and key.startswith(path) and len(key) == begin + key[begin - 1]:
                    name = namespace, key[begin:].decode()
                else:
                    name = _name(key, row)
                    namespace, path = name[0], key[: fmt.namespace_bytes(key)]
                    begin = len(path) + 1
                if not is_exact and namespace[: len(prefix)] != prefix:
                    continue
                if row.value is None or self._attachments:
                    yield self._now(key, name, row)
                else:
                    yield _shown(name, row, row.value)
            start = page[-1][0] + b"\0"

    def _scan_then(self, prefix: tuple[str, ...], after: ItemName | None, at: int) -> Iterator[Item]:
        begin, stop = self._edges(prefix, after)
        items = self._tables.scan(ITEMS, begin, stop)
        pending = next(items, None)
        while True:
            key = self._tables.next_key(VERSIONS, begin, stop)
            item = None if key is None else key[:-8]
            if pending is not None and (item is None or pending[0] <= item):
                item = pending[0]
                row = _unpack_item(pending[1])
                pending = next(items, None)
                found = self._now(item, _name(item, row), row) if row.commit <= at else self._then(item, at)
            elif item is not None:
                found = self._then(item, at)
            else:
                return
            begin = prefix_end(item)
            if found is not None and found.namespace[: len(prefix)] == prefix:
                yield found

    def _edges(self, prefix: tuple[str, ...], after: ItemName | None) -> tuple[bytes, bytes]:
        begin = fmt.items_prefix(prefix)
        start = begin if after is None else max(begin, prefix_end(fmt.item_key(*after)))
        return start, prefix_end(begin)

    def _then(self, key: bytes, at: int) -> Item | None:
        """What an item was after a commit that came before its row."""
        last = self._tables.previous_key(VERSIONS, key, fmt.versions_key(key, min(at, _AFTER_ALL) + 1))
        if last is None:
            return None
        born, versions = _unpack_versions(last, self._tables.get(VERSIONS, last) or b"")
        index = bisect_right(versions, at, key=lambda version: version.commit) - 1
        if index < 0 or versions[index].deleted:
            return None
        return self._read(key, versions[index], _born(born, versions, index))

    def _now(self, key: bytes, name: ItemName, row: ItemRow) -> Item:
        if row.value is None or self._attachments:
            return self._read(key, Version(row.commit, row.sequence, deleted=False), row.born, row)
        return _shown(name, row, row.value)

    def attached(self, sequences: Iterable[int], name: str) -> Iterator[bytes | None]:
        """What was put beside values under a name; None where there is nothing, or was pruned."""
        thread = find_thread(self._tables, fmt.ITEMS_THREAD_ID)
        for sequence in sequences:
            if thread is None or sequence < thread.first:
                yield None
                continue
            record, event = self._event(sequence)
            if not isinstance(event, ItemPut):
                raise self._misplaced(sequence)
            attached = event.attachments.get(name)
            yield None if attached is None else self._contents(record, (attached,))[0]

    def _read(self, key: bytes, version: Version, born: int, row: ItemRow | None = None) -> Item:
        """An item as a version of it was, from its event."""
        record, event = self._event(version.sequence)
        if not isinstance(event, ItemPut) or fmt.item_key(event.namespace, event.key) != key:
            raise self._misplaced(version.sequence)
        if row is not None:
            created_at, expires_at = row.created_at, row.expires_at or None
        elif born == version.sequence:
            created_at, expires_at = event.born_at or record.header.created_at, event.expires_at
        else:
            first, birth = self._event(born)
            if not isinstance(birth, ItemPut):
                raise self._misplaced(born)
            created_at, expires_at = birth.born_at or first.header.created_at, event.expires_at
        wanted = (event.value, *event.attachments.values()) if self._attachments else (event.value,)
        value, *attachments = zip((each.type for each in wanted), self._contents(record, wanted), strict=True)
        return Item(
            event.namespace,
            event.key,
            value,
            created_at,
            record.header.created_at,
            Commit(version.commit),
            Sequence(version.sequence),
            expires_at,
            dict(zip(event.attachments, attachments, strict=False)),
        )

    def _contents(self, record: Record, values: Several[Value]) -> list[bytes]:
        """The bytes that values of a record's event, as it is stored, were parsed from."""

        def read(ref: Ref) -> bytes:
            holder = self._records.existing(self._number, ref.sequence) if ref.sequence else record
            return bytes(codec.slice_payload(holder.payload, ref, self._number))

        return [payload_of(value, read) for value in values]

    def _event(self, sequence: int) -> tuple[Record, Event]:
        """An event as it is stored, and its record."""
        if not self._number:
            row = find_thread(self._tables, fmt.ITEMS_THREAD_ID)
            if row is None:
                raise CorruptionError("items have a row, but no thread")
            self._number = row.number
        record = self._records.existing(self._number, sequence)
        return record, codec.as_stored(self._number, record)

    def _misplaced(self, sequence: int) -> CorruptionError:
        return CorruptionError("the event is not what the tables of items say", thread=self._number, sequence=sequence)


def _shown(name: ItemName, row: ItemRow, value: tuple[str, bytes]) -> Item:
    """An item whose value stands in its row."""
    namespace, key = name
    commit, sequence = Commit(row.commit), Sequence(row.sequence)
    return Item(namespace, key, value, row.created_at, row.updated_at, commit, sequence, row.expires_at or None)


def _born(born: int, versions: list[Version], index: int) -> int:
    """Where the item was created that a version is one of."""
    for before in range(index - 1, -1, -1):
        if versions[before].deleted:
            return versions[before + 1].sequence
    return born


def _name(key: bytes, row: ItemRow) -> ItemName:
    """Namespace and key of an item, from the key of its row or from the row."""
    try:
        name = fmt.read_item_key(key)
    except ValueError as error:
        raise CorruptionError(f"a key of the table {ITEMS} cannot be read: {error}") from error
    if name is None:
        name = row.name
        if name is None or fmt.item_key(*name) != key:
            raise CorruptionError(f"a row of the table {ITEMS} does not say its name")
    return name
