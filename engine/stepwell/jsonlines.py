"""Threads as lines of JSON, for people, scripts and other tools (SPEC.md, section 10.3).

One line for the thread, one for each of its events, in order, and one that ends it.  What an event changed is given as
data, and so is as long as what is new in it.  With `exact`, each line also carries its record, so that the thread can
be imported again, byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, TextIO

from stepwell import codec, inspect
from stepwell import format as fmt
from stepwell.bundle import Bundle, Description, portable, records, restore, untold
from stepwell.errors import BundleError, FormatError, NewerFormatError, UsageError
from stepwell.events import (
    Event,
    StepCommitted,
    ThreadCopied,
    ThreadLabelled,
    ThreadPruned,
    WritesRecorded,
)
from stepwell.history import History, decoded, split, spot_data
from stepwell.log import Log
from stepwell.patch import Merge, New, Patch, Splice
from stepwell.salvage import Progress
from stepwell.storage import ThreadRow
from stepwell.thread import Thread

VERSION: Final = 1
SUFFIX: Final = ".jsonl"

_NAMES: Final = {
    fmt.KIND_THREAD_OPENED: "opened",
    fmt.KIND_LANE_OPENED: "lane",
    fmt.KIND_STEP: "step",
    fmt.KIND_WRITES: "writes",
    fmt.KIND_THREAD_COPIED: "copied",
    fmt.KIND_THREAD_PRUNED: "pruned",
    fmt.KIND_THREAD_LABELLED: "labels",
}
_HASH_BYTES: Final = 32


# --- export ---


def export_lines(
    thread: Thread, *, exact: bool = False, states: bool = False, progress: Progress = untold
) -> Iterator[str]:
    """A thread as lines of JSON, each with its end of line.

    The log may be in use; what is appended meanwhile is left out.  The memory that it takes is bounded.

    Args:
        thread: The thread.
        exact: Whether each line carries its record, for `import_lines`.
        states: Whether each step carries the whole state after it: then the length grows with steps times state.
        progress: Called now and then with what is being done, and how much of how much of it.

    Raises:
        UsageError: There is no such thread.
        ConflictError: The thread was pruned or deleted meanwhile.
        CorruptionError: An event of the thread is damaged.
    """
    row = thread.row()
    if row is None:
        raise UsageError(f"there is no thread {thread.id!r} in {thread.log.path!r}")
    return _lines(thread, row, exact, states, progress)


def _lines(thread: Thread, row: ThreadRow, exact: bool, states: bool, progress: Progress) -> Iterator[str]:
    hasher = blake2b(digest_size=_HASH_BYTES)
    described = {"stepwell": VERSION, "thread": thread.id, "first": row.first, "last": row.last, "exact": exact}
    history = History(thread.log.storage, thread.log.reader, thread.id)
    for item in (described, *_items(thread, row, history, exact, states, progress)):
        line = json.dumps(item, ensure_ascii=True, allow_nan=False) + "\n"
        hasher.update(line.encode())
        yield line
    yield json.dumps({"end": thread.id, "hash": hasher.hexdigest()}) + "\n"


def _items(
    thread: Thread, row: ThreadRow, history: History, exact: bool, states: bool, progress: Progress
) -> Iterator[dict[str, Any]]:
    lanes: dict[int, str] = {}
    for record in records(thread, row, progress):
        header = record.header
        if header.lane not in lanes:
            lanes.update(thread.log.storage.lane_names(row.number, {header.lane}, record.sequence))
        event = codec.decode(row.number, record, lanes.get(header.lane, ""))
        item: dict[str, Any] = {"sequence": record.sequence, "event": _NAMES[header.kind]}
        item["created_at"] = header.created_at
        if header.lane:
            item["lane"] = lanes[header.lane]
        item.update(_event(event, history))
        if states and isinstance(event, StepCommitted):
            view = history.view(record.sequence)
            item["state"] = {channel: inspect.to_json(view[channel]) for channel in view}
        if exact:
            covered, body = portable(record, thread.id, is_first=record.sequence == row.first)
            item["record"] = base64.b64encode(covered + body).decode()
        yield item


def _event(event: Event, history: History) -> dict[str, Any]:
    told: dict[str, Any]
    if isinstance(event, StepCommitted):
        told = {
            "step": event.step_id,
            "parent": event.parent_id,
            "base": event.base,
            "channels": _merge(event.channels, history),
            "fields": _merge(event.fields, history),
        }
        if event.hidden:
            told["hidden"] = True
        if event.status is not None:
            told["status"] = str(event.status)
        return told
    if isinstance(event, WritesRecorded):
        writes = [
            {
                "index": write.index,
                "channel": write.channel,
                "value": inspect.to_json(decoded(write.value, history.payloads)),
            }
            for write in event.writes
        ]
        told = {"step": event.step_id, "task": event.task_id, "task_path": event.task_path, "writes": writes}
        if event.status is not None:
            told["status"] = str(event.status)
        return told
    if isinstance(event, ThreadCopied):
        return {"source": event.source_thread_id, "through": event.through}
    if isinstance(event, ThreadPruned):
        return {"through": event.through}
    if isinstance(event, ThreadLabelled):
        return {"labels": event.labels}
    return {}


def _merge(merge: Merge, history: History) -> dict[str, Any]:
    told: dict[str, Any] = {"changes": {name: _patch(patch, history) for name, patch in merge.changes.items()}}
    if merge.drop:
        told["drop"] = list(merge.drop)
    return told


def _patch(patch: Patch, history: History) -> dict[str, Any]:
    """What becomes of a value: another one, pieces of the old one and new elements, or changes by key."""
    if isinstance(patch, Merge):
        return {"merge": _merge(patch, history)}
    if isinstance(patch, Splice):
        pieces: list[dict[str, Any]] = []
        for piece in patch.pieces:
            if isinstance(piece, New):
                contents = split(piece)
                pieces.append({"new": [inspect.to_json(spot_data(content, history.payloads)) for content in contents]})
            else:
                pieces.append({"keep": [piece.start, piece.count]})
        return {"splice": pieces}
    return {"set": inspect.to_json(decoded(patch, history.payloads))}


# --- import ---


def import_lines(
    log: Log, path: str | os.PathLike[str], *, as_: str | None = None, progress: Progress = untold
) -> list[Bundle]:
    """Put the threads of a file that was exported with `exact` into a log, each as it was.

    Each thread is proven whole before the log is touched, and is there, durable, in one append, or not at all.  The
    data in the lines are for people: what is imported are the records.

    Args:
        log: The log.
        path: The file.
        as_: Another name for the thread, if it is one; None keeps their own.
        progress: Called now and then with what is being done, and how much of how much of it.

    Raises:
        UsageError: There is no file at the path; it was exported without records; or `as_` is given for several.
        FormatError: It is no such file, or one of a newer version of the library.
        BundleError: It is not what was written.
        ConflictError: The log has a thread with that name; those before it in the file were imported.
        CapacityError: There is no room in the log.
    """
    name = os.fspath(path)
    imported: list[Bundle] = []
    try:
        with open(path, encoding="utf-8") as file:
            while (described := _head(file, name)) is not None:
                if imported and as_ is not None:
                    raise UsageError(f"{name!r} holds several threads, which cannot all be {as_!r}")
                description, hasher = described
                start = file.tell() if file.seekable() else 0
                stored = _stored(file, name, description, hasher)
                events = restore(log, name, description, stored, as_=as_, progress=progress)
                imported.append(Bundle(as_ or description.thread_id, events, file.tell() - start))
    except FileNotFoundError:
        raise UsageError(f"there is no file {name!r}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{name!r} is no export of threads: {error}") from error
    if not imported:
        raise FormatError(f"{name!r} holds no thread")
    return imported


def _head(file: TextIO, name: str) -> tuple[Description, Any] | None:
    """The line of a thread; None at the end of the file."""
    line = file.readline()
    if not line:
        return None
    said = _parsed(line)
    version = said.get("stepwell")
    if not isinstance(version, int):
        raise FormatError(f"{name!r} is no export of threads")
    if version > VERSION:
        raise NewerFormatError(f"{name!r} is of version {version}; upgrade stepwell")
    if said.get("exact") is not True:
        raise UsageError(
            f"{name!r} was exported to be read, without the records; export it with --exact, or as a bundle"
        )
    thread_id, first, last = said.get("thread"), said.get("first"), said.get("last")
    if not isinstance(thread_id, str) or not isinstance(first, int) or not isinstance(last, int):
        raise _damaged(name, "it does not say what it holds")
    hasher = blake2b(line.encode(), digest_size=_HASH_BYTES)
    return Description(thread_id, first, last), hasher


def _stored(file: TextIO, name: str, description: Description, hasher: Any) -> Iterator[tuple[bytes, bytes]]:
    """The records of a thread; ends at the line that ends it, with the hash proven."""
    while line := file.readline():
        said = _parsed(line)
        if "end" in said:
            if said.get("hash") != hasher.hexdigest():
                raise ValueError("its hash is not that of its content")
            return
        hasher.update(line.encode())
        record = said.get("record")
        if not isinstance(record, str):
            raise ValueError("a line has no record")
        try:
            data = base64.b64decode(record, validate=True)
        except binascii.Error as error:
            raise ValueError(f"a record is no base64: {error}") from error
        yield data[: fmt.COVERED_BYTES], data[fmt.COVERED_BYTES :]
    raise ValueError(f"the thread {description.thread_id!r} does not end")


def _parsed(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _damaged(name: str, reason: str) -> BundleError:
    return BundleError(f"{name!r} is damaged: {reason}")
