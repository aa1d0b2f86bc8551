"""What checkpoints can be imported from, behind one protocol.

A source gives whatever is stored as it is stored, in types and bytes; it never decodes a user's object, with one
exception: an unknown saver, which has nothing but its public methods (`saver_objects.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

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
    idx: int
    channel: str
    value: Typed


class StoredCheckpoint(NamedTuple):
    """One checkpoint as a source has it.

    Attributes:
        channels: The value of each channel that has one, but for those in `unchanged`.
        core: The rest of the checkpoint.
        metadata: Its metadata.
        unchanged: The channels whose value is, as the source keeps it, the parent's.
    """

    channels: dict[str, Typed]
    core: Typed
    metadata: Typed
    unchanged: frozenset[str] = frozenset()


class Reading(NamedTuple):
    """What was read of one place.

    Attributes:
        checkpoint: The checkpoint; None if there is none, it was not asked for, or it cannot be read.
        writes: The writes that wait for the step after it, in any order, but for those that cannot be read.
        problems: What cannot be read, and why.
    """

    checkpoint: StoredCheckpoint | None
    writes: list[StoredWrite]
    problems: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Bytes of what was read."""
        values = [] if self.checkpoint is None else [*self.checkpoint.channels.values(), self.checkpoint.core]
        return sum(span.length for _, span in values) + sum(write.value[1].length for write in self.writes)


class Wanted(NamedTuple):
    """What is to be read of a place.

    Attributes:
        place: Which one.
        whole: Whether the checkpoint is asked for, and not only the writes that wait.
        from_parent: Whether the caller has the parent's values, so that those which are the same need not be read.
    """

    place: Place
    whole: bool = True
    from_parent: bool = False


Readings: TypeAlias = Generator[Reading | Unreadable, None, None]


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

    def read(self, thread_id: str, wanted: Sequence[Wanted]) -> Readings:
        """What there is at some places of a thread, in their order; of the readings no more than one is held.

        What cannot be read at all is told in its place.
        """

    def twin(self) -> Source | None:
        """Another reader of the same, for another thread; None if there can be none."""

    def close(self) -> None:
        """Give back what it holds."""


def one_by_one(read: Callable[..., Reading], thread_id: str, wanted: Iterable[Wanted]) -> Readings:
    """`Source.read` by a function that reads one place, `read(thread_id, place, whole=...)`."""
    for place, whole, _ in wanted:
        try:
            yield read(thread_id, place, whole=whole)
        except Unreadable as error:
            yield error


def parents_first(places: Iterable[Place]) -> Iterator[Place]:
    """The same places, each after the one that it names as its parent; a loop of parents is cut somewhere."""
    waiting = {(place.namespace, place.checkpoint_id): place for place in places}
    for key in [*waiting]:
        line: list[Place] = []
        while (place := waiting.pop(key, None)) is not None:
            line.append(place)
            key = (place.namespace, place.parent_id or "")
        yield from reversed(line)
