"""What checkpoints can be imported from, behind one protocol.

A source gives whatever is stored as it is stored, in types and bytes; it never decodes a user's object, with one
exception: an unknown saver, which has nothing but its public methods (`saver_objects.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from stepwell_langgraph.whole import Typed

SQLITE: Final = "sqlite:///"
POSTGRES: Final = ("postgresql://", "postgres://")


class Unreadable(Exception):
    """Something in a source cannot be read or is not what it should be; the rest of it may be."""


class Place(NamedTuple):
    """One checkpoint of a thread.

    Attributes:
        namespace: Its namespace.
        checkpoint_id: Its id.
        parent_id: The id of the checkpoint that it follows.
        exists: Whether there is a checkpoint, and not only writes that wait for it.
    """

    namespace: str
    checkpoint_id: str
    parent_id: str | None
    exists: bool = True


class StoredWrite(NamedTuple):
    """One pending write."""

    task_path: str
    task_id: str
    index: int
    channel: str
    value: Typed


class StoredCheckpoint(NamedTuple):
    """One checkpoint as a source has it.

    Attributes:
        channels: The value of each channel that has one, but for those in `unchanged`.
        core: The rest of the checkpoint.
        metadata: Its metadata.
        versions: The version of each channel whose value the source keeps by its version.
        unchanged: The channels that have the value that they had under the versions that the caller knew.
    """

    channels: dict[str, Typed]
    core: Typed
    metadata: Typed
    versions: Mapping[str, object] = {}
    unchanged: frozenset[str] = frozenset()


class Source(Protocol):
    """A store of checkpoints, which is only read."""

    @property
    def label(self) -> str:
        """How messages call it; without a password."""

    @property
    def is_exact(self) -> bool:
        """Whether channels and writes come as the bytes that are stored; otherwise they are encoded anew."""

    def size_bytes(self) -> int | None:
        """What it takes of the disk; None if that is not known."""

    def threads(self) -> Iterable[tuple[str, int]]:
        """Every thread with the number of its checkpoints, the oldest thread first."""

    def places(self, thread_id: str) -> Iterable[Place]:
        """Every checkpoint of a thread, in the order in which they were made as far as the source knows it.

        Ids that have only writes come last.
        """

    def checkpoint(self, thread_id: str, place: Place, known: Mapping[str, object]) -> StoredCheckpoint:
        """One checkpoint.

        Args:
            thread_id: Its thread.
            place: Which one.
            known: Versions of channels whose value the caller has: under the same version it need not be read.

        Raises:
            Unreadable: It cannot be read, or is gone.
        """

    def writes(self, thread_id: str, place: Place) -> list[StoredWrite]:
        """The writes that wait for the step after a checkpoint, in any order.

        Raises:
            Unreadable: They cannot be read.
        """

    def close(self) -> None:
        """Give back what it holds."""


def parents_first(places: Iterable[Place]) -> Iterator[Place]:
    """The same places, each after the one that it names as its parent; a loop of parents is cut somewhere."""
    waiting = {(place.namespace, place.checkpoint_id): place for place in places}
    for key in [*waiting]:
        line: list[Place] = []
        while (place := waiting.pop(key, None)) is not None:
            line.append(place)
            key = (place.namespace, place.parent_id or "")
        yield from reversed(line)
