"""One thread as a file of its own, to be carried into another log (SPEC.md, section 10.1).

    bundle = magic, version, description; blocks; an empty block; BLAKE2b-256 of all before
    block  = form, length, zstandard frame, made with the block before as dictionary
    record = length of the body, header up to its hashes (40 bytes) without commit number, plain body

Sequences, ids, lanes and times are those of the thread, so that references inside it hold wherever it comes to
stand.  Thread numbers, commit numbers and hash chains belong to a log and are made anew.  The bundle of a thread
is the same, byte for byte, in whichever log it stands.

An import believes nothing:

    1. The hash over the whole file is checked.
    2. The events are put into a log in memory, by the code that every append takes, and audited there.
    3. What came out must be what the bundle says, record for record.
    4. All goes into the log in one append.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import BinaryIO, Final, NamedTuple

import msgspec

from stepwell import codec, reader
from stepwell import format as fmt
from stepwell.audit import derive
from stepwell.codec import Record
from stepwell.content import entry
from stepwell.errors import (
    BundleError,
    CapacityError,
    ConflictError,
    CorruptionError,
    FormatError,
    NewerFormatError,
    StepwellError,
    UsageError,
)
from stepwell.events import Event, LaneOpened, ThreadLabelled, ThreadOpened, ThreadPruned
from stepwell.labels import check_labels
from stepwell.log import Log
from stepwell.salvage import Progress
from stepwell.storage import Append, Entry, ThreadRow
from stepwell.storage.newfile import NewFile
from stepwell.thread import Thread

MAGIC: Final = b"\x89SWB\r\n\x1a\n"  # as PNG's: a transfer that changes line ends shows at once
VERSION: Final = 1
BLOCK_BYTES: Final = 1 << 20
SUFFIX: Final = ".bundle"

_HEAD: Final = struct.Struct(">8sB3xI")
_BLOCK: Final = struct.Struct(">BI")
_BODY: Final = struct.Struct(">I")
_HASH_BYTES: Final = 32
_LARGEST_DESCRIPTION_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 20
_PAGE_EVENTS: Final = 256
_LARGEST: Final = (1 << 62) - 1


class Description(msgspec.Struct, frozen=True):
    """What the head of a bundle says.

    Attributes:
        thread_id: The thread's id.
        first: Sequence of its first event; above 1 if it was pruned.
        last: Sequence of its last event.
    """

    thread_id: str
    first: int
    last: int


class Bundle(NamedTuple):
    """A thread that was exported or imported.

    Attributes:
        thread_id: The thread, by the name that it has in the log.
        events: Number of its events.
        bundle_bytes: Length of the file.
    """

    thread_id: str
    events: int
    bundle_bytes: int


def untold(what: str, done: int, total: int) -> None:
    """No progress is told to nobody."""


# --- export ---


def export_thread(thread: Thread, into: str | os.PathLike[str], *, progress: Progress = untold) -> Bundle:
    """Write a thread into a file of its own, which appears whole and durable or not at all.

    The log may be in use; what is appended meanwhile is left out.

    Args:
        thread: The thread.
        into: Path of the file, where nothing may be.
        progress: Called now and then with what is being done, and how much of how much of it.

    Raises:
        UsageError: There is no such thread, or something at the path.
        ConflictError: The thread was pruned or deleted meanwhile.
        CorruptionError: An event of the thread is damaged.
    """
    target = os.path.abspath(into)
    row = thread.row()
    if row is None:
        raise UsageError(f"there is no thread {thread.id!r} in {thread.log.path!r}")
    if os.path.lexists(target):
        raise UsageError(f"there is something at {os.fspath(into)!r} already; export to a path where nothing is")
    with NewFile(target) as unfinished, open(os.dup(unfinished.fileno()), "wb") as file:
        writing = _Hashing(file)
        description = msgspec.msgpack.encode(Description(thread.id, row.first, row.last))
        writing.write(_HEAD.pack(MAGIC, VERSION, len(description)) + description)
        before = b""
        for block in _blocks(thread, row, progress):
            frame, form = codec.compress_block(block, before)
            writing.write(_BLOCK.pack(form, len(frame)) + frame)
            before = block
        writing.write(_BLOCK.pack(0, 0))
        writing.write(writing.hasher.digest())
        size = file.tell()
        file.flush()
        try:
            unfinished.take_name(
                os.stat(thread.log.path) if os.path.exists(thread.log.path) else os.fstat(file.fileno())
            )
        except FileExistsError:
            raise UsageError(f"something came to {os.fspath(into)!r} meanwhile; it is left as it is") from None
    return Bundle(thread.id, row.last - row.first + 1, size)


class _Hashing:
    """Writes, and hashes what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hasher = blake2b(digest_size=_HASH_BYTES)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.hasher.update(data)


def records(thread: Thread, row: ThreadRow, progress: Progress = untold) -> Iterator[Record]:
    """The records of a thread, from its first to the one that was its last when its row was read.

    Raises:
        ConflictError: The thread was pruned or deleted meanwhile.
        CorruptionError: An event of the thread is damaged.
    """
    storage = thread.log.storage
    due = row.first
    while due <= row.last:
        page = storage.scan(row.number, due - 1, row.last + 1, _PAGE_EVENTS, reverse=False)
        if not page or page[0].sequence != due:
            raise reader.missing(storage, row.number, due)
        yield from page
        due += len(page)
        progress("exporting events", due - row.first, row.last - row.first + 1)


def portable(record: Record, thread_id: str, *, is_first: bool) -> tuple[bytes, bytes]:
    """Of a record what is the same in every log: the first 40 bytes of its header, and its plain body."""
    body = record.body
    if is_first and record.header.kind == fmt.KIND_THREAD_PRUNED:
        body = _opening_body(codec.decode(0, record), thread_id)
    return fmt.pack_covered(record.header._replace(commit=0)), body


def _opening_body(event: Event, thread_id: str) -> bytes:
    """The body of a thread's first event in a bundle or a copy: its hash chain begins with zeros."""
    if isinstance(event, ThreadPruned):
        event = msgspec.structs.replace(event, thread_id=thread_id, chain=fmt.CHAIN_SEED, created_at=event.created_at)
    else:
        event = ThreadOpened(thread_id)
    body = codec.encode(event)
    return codec.plain_body(body.data, body.form)


def _blocks(thread: Thread, row: ThreadRow, progress: Progress) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for record in records(thread, row, progress):
        covered, body = portable(record, thread.id, is_first=record.sequence == row.first)
        held += (_BODY.pack(len(body)), covered, body)
        size += len(body)
        if size >= BLOCK_BYTES:
            yield b"".join(held)
            held.clear()
            size = 0
    if held:
        yield b"".join(held)


# --- import ---


def describe(path: str | os.PathLike[str]) -> Description:
    """What a bundle says of itself, unproven.

    Raises:
        UsageError: There is no file at the path.
        FormatError: It is no bundle, or one of a newer version of the library.
    """
    with _opened(path) as file:
        return _description(file, path)


def import_thread(
    log: Log, path: str | os.PathLike[str], *, as_: str | None = None, progress: Progress = untold
) -> Bundle:
    """Put the thread of a bundle into a log: states, ids, writes, times and sequences are as they were.

    Everything is proven before the log is touched.  Then the thread is there, whole and durable, in one append, or
    nothing is.  It takes memory in proportion to the thread's new content.

    Args:
        log: The log.
        path: The bundle.
        as_: Another name for the thread; None keeps its own.
        progress: Called now and then with what is being done, and how much of how much of it.

    Raises:
        UsageError: There is no file at the path.
        FormatError: It is no bundle, or one of a newer version of the library.
        BundleError: It is not what was written.
        ConflictError: The log has a thread with that name.
        CapacityError: There is no room in the log.
    """
    with _opened(path) as file:
        description = _description(file, path)
        size = _prove(file, path, progress)
        events = restore(log, os.fspath(path), description, _stored(file), as_=as_, progress=progress)
    return Bundle(description.thread_id if as_ is None else as_, events, size)


def restore(
    log: Log,
    source: str,
    description: Description,
    stored: Iterable[tuple[bytes, bytes]],
    *,
    as_: str | None = None,
    progress: Progress = untold,
) -> int:
    """Put a thread into a log, out of its records as `portable` makes them; all of it, proven, or nothing.

    Args:
        log: The log.
        source: Where the records come from, for messages.
        description: The thread.
        stored: Its records.  An error of theirs that is a ValueError, struct.error or zstandard's tells of damage.
        as_: Another name for the thread; None keeps its own.
        progress: As of `import_thread`.

    Returns:
        The number of its events.  Raises as `import_thread` does.
    """
    thread = log.thread(description.thread_id if as_ is None else as_)
    row = thread.row()
    if row is not None:
        raise ConflictError(
            f"the log {log.path!r} has a thread {thread.id!r} already; import it under another name",
            thread=thread.id,
            expected=0,
            actual=row.last,
        )
    entries, expected = _entries(stored, source, description, thread.id)
    operation = Append(thread.id, lambda number, first: entries, 0, restart=True, first=description.first)
    _try(operation, expected, source, progress)
    log.submit(operation).result()
    with suppress(CapacityError):  # the thread is there, and is sealed when there is room for that
        log.seal(thread.id)
    return len(expected)


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UsageError(f"there is no file {os.fspath(path)!r}") from None


def _description(file: BinaryIO, path: str | os.PathLike[str]) -> Description:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(MAGIC):
        raise FormatError(f"{os.fspath(path)!r} is no bundle of a thread")
    _, version, length = _HEAD.unpack(head)
    if version > VERSION:
        raise NewerFormatError(f"{os.fspath(path)!r} is a bundle of version {version}; upgrade stepwell")
    try:
        if length > _LARGEST_DESCRIPTION_BYTES:
            raise ValueError(f"a description of {length} bytes")
        description = msgspec.msgpack.decode(file.read(length), type=Description)
        if not 1 <= description.first <= description.last <= _LARGEST:
            raise ValueError(f"events {description.first} to {description.last}")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it does not say what it holds: {error}") from error
    return description


def _prove(file: BinaryIO, path: str | os.PathLike[str], progress: Progress) -> int:
    """Check the hash over the whole file; leaves it at the first block.  Returns the file's length."""
    start = file.tell()
    total = file.seek(0, os.SEEK_END)
    left = total - _HASH_BYTES
    file.seek(0)
    hasher = blake2b(digest_size=_HASH_BYTES)
    while left > 0 and (piece := file.read(min(_PIECE_BYTES, left))):
        hasher.update(piece)
        left -= len(piece)
        progress("checking the bundle", total - left, total)
    if hasher.digest() != file.read():
        raise _damaged(path, "its hash is not that of its content")
    file.seek(start)
    return total


def _entries(
    stored: Iterable[tuple[bytes, bytes]], path: str, description: Description, thread_id: str
) -> tuple[list[Entry], list[bytes]]:
    """The events as an append takes them, and the records as they shall come out of it."""
    entries: list[Entry] = []
    expected: list[bytes] = []
    lanes = {0: ""}
    try:
        for covered, body in stored:
            sequence = description.first + len(expected)
            header = fmt.read_covered(covered, 0)
            if header.version > fmt.FORMAT_VERSION:
                raise NewerFormatError(f"{path!r} holds events of format {header.version}; upgrade stepwell")
            if header.created_at >> 63:
                raise ValueError(f"event {sequence} is of no time")
            if fmt.read_status(header.flags) not in fmt.STATUSES:
                raise ValueError(f"event {sequence} has the unknown status {fmt.read_status(header.flags)}")
            event = codec.decode(0, Record(sequence, header, *codec.split(body)), lanes.get(header.lane, ""))
            if isinstance(event, ThreadLabelled):
                check_labels(event.labels)
            if not expected:
                body = _opening_body(event, thread_id)
            if isinstance(event, LaneOpened):
                lanes[header.lane] = event.lane  # the append opens it anew, before its first event
            else:
                data, form = codec.compress_body(body)
                entries.append(entry(event, codec.Body(header.kind, data, form, fmt.body_digest(body), []), 0))
            expected.append(covered + body)
    except (ValueError, struct.error, KeyError, codec.DecompressionError) as error:
        raise _damaged(path, f"it holds what no thread does: {error}") from error
    except BundleError:
        raise
    except CorruptionError as error:
        raise _damaged(path, error.reason) from error
    if description.first + len(expected) - 1 != description.last:
        raise _damaged(path, f"it holds {len(expected)} events, not {description.last - description.first + 1}")
    return entries, expected


def _stored(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The first 40 bytes of each record's header, and its body."""
    before = b""
    while True:
        form, length = _BLOCK.unpack(file.read(_BLOCK.size))
        if not length:
            return
        before = codec.decompress_block(file.read(length), form, before)
        place = 0
        while place < len(before):
            (size,) = _BODY.unpack_from(before, place)
            start = place + _BODY.size + fmt.COVERED_BYTES
            place = start + size
            if place > len(before):
                raise ValueError("a record goes beyond its block")
            yield before[start - fmt.COVERED_BYTES : start], before[start:place]


def _try(operation: Append, expected: list[bytes], path: str, progress: Progress) -> None:
    """Carry the append out in a log in memory, and see whether it gives a sound thread, the one of the bundle."""
    progress("checking events", 0, len(expected))
    with Log.open(":memory:") as trial:
        try:
            (outcome,) = trial.storage.commit([operation])
            row = trial.storage.thread(operation.thread_id)
        except StepwellError as error:
            raise _damaged(path, f"its events make no thread: {error}") from error
        if isinstance(outcome, StepwellError) or row is None:
            raise _damaged(path, f"its events make no thread: {outcome}")
        breaches = derive(trial.storage, row.number).breaches
        if breaches:
            raise _damaged(path, f"its events make no sound thread: {breaches[0].what} ({breaches[0].invariant})")
        due = row.first
        for wanted in expected:
            if due % _PAGE_EVENTS == 0:
                progress("checking events", due - row.first, len(expected))
            record = trial.storage.read(row.number, [due]).get(due)
            if record is None or fmt.pack_covered(record.header._replace(commit=0)) + record.body != wanted:
                raise _damaged(path, f"event {due} does not fit those before it")
            due += 1
        if due - 1 != row.last:
            raise _damaged(path, f"it lacks what comes after event {due - 1}")


def _damaged(path: str | os.PathLike[str], reason: str) -> BundleError:
    return BundleError(f"the bundle {os.fspath(path)!r} is damaged: {reason}")
