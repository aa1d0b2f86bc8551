"""What a storage must answer, computed from plain lists of events with no index of any kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stepwell import format as fmt
from stepwell.storage import Append, Copy, Delete, Entry, FeedRow, Found, Operation


@dataclass(frozen=True)
class Kept:
    """One event of a thread."""

    sequence: int
    kind: int
    lane: str | None
    commit: int
    created_at: int
    base: int = 0
    key: bytes = b""
    parent: bytes = b""
    hidden: bool = False
    body: bytes | None = None  # None: made by the storage
    form: int = fmt.FORM_PLAIN

    @property
    def is_step(self) -> bool:
        """Whether it commits a step."""
        return self.kind == fmt.KIND_STEP


@dataclass
class ModelThread:
    """A thread as the list of its events."""

    number: int
    name: str | None
    last: int = 0
    events: list[Kept] = field(default_factory=list)

    @property
    def lanes(self) -> list[str]:
        """Names of the lanes, in the order of their numbers."""
        return [each.lane for each in self.events if each.kind == fmt.KIND_LANE_OPENED and each.lane is not None]

    def lane_number(self, name: str | None) -> int:
        """Number of a lane; 0 for the thread as a whole."""
        return 0 if name is None else self.lanes.index(name) + 1

    def shown(self, lane: str | None) -> list[Kept]:
        """The steps that lists show, each where it was committed first, oldest first; of one lane, or of all."""
        seen: set[tuple[str | None, bytes]] = set()
        found: list[Kept] = []
        for each in self.events:
            if each.is_step and not each.hidden and (lane is None or each.lane == lane):
                if (each.lane, each.key) not in seen:
                    found.append(each)
                seen.add((each.lane, each.key))
        return found

    def find(self, lane: str, key: bytes) -> Found:
        """Where the events of one step id stand."""
        mine = [each for each in self.events if each.lane == lane and each.key == key]
        writes = tuple(each.sequence for each in mine if each.kind == fmt.KIND_WRITES)
        steps = [each for each in mine if each.is_step and not each.hidden]
        hidden = [each for each in mine if each.is_step and each.hidden]
        shown = steps or hidden
        if not shown:
            return Found(0, 0, False, b"", writes)
        return Found(shown[-1].sequence, shown[0].sequence, not steps, shown[-1].parent, writes)

    def ancestry(self, lane: str, key: bytes, limit: int) -> list[tuple[bytes, Found]]:
        """The parents of a step, nearest first."""
        line: list[tuple[bytes, Found]] = []
        parent = self.find(lane, key).parent_key
        while parent and len(line) < limit:
            found = self.find(lane, parent)
            if not found.step:
                break
            line.append((parent, found))
            parent = found.parent_key
        return line

    def head(self, lane: str) -> int:
        """The newest event of the step of a lane that was first committed last."""
        shown = self.shown(lane)
        return self.find(lane, shown[-1].key).step if shown else 0

    def previous(self, event: Kept) -> int:
        """What a step's header names: the first event of its id, or the step shown before it."""
        before = [each for each in self.shown(event.lane) if each.sequence < event.sequence]
        same = [each.sequence for each in before if each.key == event.key]
        return same[0] if same else before[-1].sequence if before else 0

    def branch(self, sequence: int) -> set[int]:
        """A step and all that it is based on."""
        by_sequence = {each.sequence: each for each in self.events}
        found: set[int] = set()
        while sequence in by_sequence:
            found.add(sequence)
            sequence = by_sequence[sequence].base
        return found


class StorageModel:
    """A log as a list of threads."""

    def __init__(self) -> None:
        self.threads: list[ModelThread] = []
        self.commits = 0

    def named(self, name: str) -> ModelThread | None:
        """The thread that has a name now."""
        return next((thread for thread in self.threads if thread.name == name), None)

    def feed(self) -> list[FeedRow]:
        """Every append whose events are still there, in commit order."""
        rows: dict[int, FeedRow] = {}
        for thread in self.threads:
            for each in thread.events:
                row = rows.get(each.commit, FeedRow(each.commit, thread.number, each.sequence, each.sequence))
                rows[each.commit] = row._replace(last=each.sequence)
        return [rows[commit] for commit in sorted(rows)]

    def carry_out(self, operation: Operation) -> tuple[int, int, tuple[int, ...]] | None:
        """Number, commit and sequences of what was done; None if it is refused."""
        if isinstance(operation, Append):
            return self._append(operation)
        if isinstance(operation, Delete):
            return self._delete(operation)
        return self._copy(operation)

    def _append(self, operation: Append) -> tuple[int, int, tuple[int, ...]] | None:
        thread = self.named(operation.thread_id)
        if operation.expected_head not in (None, thread.last if thread else 0):
            return None
        if operation.incarnation and (thread is None or thread.number != operation.incarnation):
            return None
        entries = operation.entries(thread.number if thread else 0, thread.events[0].sequence if thread else 0)
        if not entries:
            return (thread.number if thread else 0, 0, ())
        if not operation.restart and not all(_can_be_based(entry, thread) for entry in entries):
            return None
        self.commits += 1
        if thread is None:
            thread = self._open(operation.thread_id, entries[0].created_at)
        elif operation.restart:
            thread.events.clear()
        sequences = tuple(self._add(thread, entry) for entry in entries)
        return (thread.number, self.commits, sequences)

    def _open(self, name: str, created_at: int) -> ModelThread:
        thread = ModelThread(len(self.threads) + 1, name)
        self.threads.append(thread)
        self._put(thread, fmt.KIND_THREAD_OPENED, None, created_at)
        return thread

    def _put(self, thread: ModelThread, kind: int, lane: str | None, created_at: int, *rest: object) -> int:
        thread.last += 1
        thread.events.append(Kept(thread.last, kind, lane, self.commits, created_at, *rest))  # type: ignore[arg-type]
        return thread.last

    def _add(self, thread: ModelThread, entry: Entry) -> int:
        if entry.lane is not None and entry.lane not in thread.lanes:
            self._put(thread, fmt.KIND_LANE_OPENED, entry.lane, entry.created_at)
        rest = (entry.base, entry.step_key, entry.parent_key, entry.hidden, entry.body, entry.form)
        return self._put(thread, entry.kind, entry.lane, entry.created_at, *rest)

    def _delete(self, operation: Delete) -> tuple[int, int, tuple[int, ...]]:
        thread = self.named(operation.thread_id)
        if thread is None:
            return (0, 0, ())
        self.commits += 1
        thread.events.clear()
        thread.name = None
        sequence = self._put(thread, fmt.KIND_THREAD_DELETED, None, operation.created_at)
        return (thread.number, self.commits, (sequence,))

    def _copy(self, operation: Copy) -> tuple[int, int, tuple[int, ...]] | None:
        source = self.named(operation.source_id)
        if source is None:
            return (0, 0, ())
        if self.named(operation.target_id) is not None:
            return None
        self.commits += 1
        thread = ModelThread(len(self.threads) + 1, operation.target_id, source.events[0].sequence - 1)
        self.threads.append(thread)
        self._put(thread, source.events[0].kind, None, operation.created_at)
        for each in source.events[1:]:
            rest = (each.base, each.key, each.parent, each.hidden, each.body, each.form)
            self._put(thread, each.kind, each.lane, each.created_at, *rest)
        sequence = self._put(thread, fmt.KIND_THREAD_COPIED, None, operation.created_at)
        return (thread.number, self.commits, (sequence,))


def _can_be_based(entry: Entry, thread: ModelThread | None) -> bool:
    if not entry.base:
        return True
    events: Iterable[Kept] = thread.events if thread else ()
    return any(each.sequence == entry.base and each.is_step and each.lane == entry.lane for each in events)
