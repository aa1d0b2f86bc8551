"""States at any point: from whatever is remembered, in one round trip, never from damage."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from building import FailingStorage, append, noise, set_record, step, wrote
from stepwell import ConflictError, CorruptionError, Log, codec, diff, parse, reader
from stepwell import format as fmt
from stepwell.events import Sequence, StepCommitted, Write, WritesRecorded
from stepwell.fold import EMPTY, State
from stepwell.patch import Array, Blob, Keep, Map, Merge, New, Ref, Splice
from stepwell.reader import Payloads, Reader
from stepwell.storage import Branches, Found
from stepwell.storage.memory import MemoryStorage


class Counting(FailingStorage):
    """A storage that counts what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.records = 0

    def branches(self, thread: int, sequences: object, known: frozenset[int]) -> Branches:
        self.asked.append("branches")
        found = super().branches(thread, sequences, known)  # type: ignore[arg-type]
        self.records += len(found.records)
        return found

    def payloads(self, thread: int, sequences: object) -> dict[int, memoryview]:
        self.asked.append("payloads")
        return super().payloads(thread, sequences)  # type: ignore[arg-type]

    def read(self, thread: int, sequences: object) -> dict[int, codec.Record]:
        self.asked.append("read")
        found = super().read(thread, sequences)  # type: ignore[arg-type]
        self.records += len(found)
        return found


@pytest.fixture
def storage() -> Counting:
    """Thread "t", number 1: a line of 100 steps, each with one more channel, and a fork after the 50th."""
    made = Counting()
    made.commit([append("t", StepCommitted("s0", None, Merge(), Merge()))])
    for number in range(1, 100):
        event = StepCommitted(f"s{number}", None, one(f"c{number}"), Merge(), base=Sequence(number + 2))
        made.commit([append("t", event)])
    made.commit([append("t", StepCommitted("fork", "s50", one("fork"), Merge(), base=Sequence(53)))])
    return made


def one(channel: str) -> Merge:
    """A patch that sets one channel to its name."""
    return Merge((), {channel: Blob("text", channel.encode())})


def channels(state: State) -> list[str]:
    """The channels that a state holds."""
    return list(state.channels)


# --- states ---


def test_any_states(storage: Counting) -> None:
    """The states of steps on several branches are read together, in one round trip, each record once."""
    found = Reader(storage).states(1, [103, 53, 3, 0, 60])
    assert channels(found[103]) == [*(f"c{number}" for number in range(1, 51)), "fork"]
    assert channels(found[53]) == [f"c{number}" for number in range(1, 51)]
    assert channels(found[60]) == [f"c{number}" for number in range(1, 58)]
    assert channels(found[3]) == []
    assert found[0] == EMPTY
    assert storage.asked == ["branches"]
    assert storage.records == 51 + 7 + 1


def test_states_of_nothing(storage: Counting) -> None:
    """The empty state needs no question."""
    assert Reader(storage).states(1, []) == Reader(storage).states(1, [0]) == {0: EMPTY}
    assert storage.asked == []


def test_remembered_states(storage: Counting) -> None:
    """A state that was read lately is not read again, and those based on it need only what came after."""
    remembering = Reader(storage)
    first = remembering.state(1, 100)
    storage.records = 0
    assert remembering.state(1, 100) == first
    assert storage.records == 0
    assert channels(remembering.state(1, 102)) == [f"c{number}" for number in range(1, 100)]
    assert storage.records == 2


def test_memory_is_bounded(storage: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states that were read longest ago are forgotten."""
    monkeypatch.setattr(reader, "_STATES_HELD", 3)
    remembering = Reader(storage)
    for sequence in (10, 20, 30, 10, 40):
        remembering.state(1, sequence)
    storage.asked.clear()
    for sequence in (10, 30, 40):
        remembering.state(1, sequence)
    assert storage.asked == []
    remembering.state(1, 20)
    assert storage.asked == ["branches"]


def test_a_walk_does_not_flush_the_memory(storage: Counting) -> None:
    """Reading many states at once leaves the memory as it was."""
    remembering = Reader(storage)
    remembering.state(1, 102)
    remembering.states(1, range(3, 103))
    storage.asked.clear()
    remembering.state(1, 102)
    assert storage.asked == []


def test_threads_are_remembered_apart(storage: Counting) -> None:
    """The same sequence of another thread is another state."""
    storage.commit([append("u", StepCommitted("s0", None, one("other"), Merge()))])
    remembering = Reader(storage)
    assert channels(remembering.state(1, 3)) == []
    assert channels(remembering.state(2, 3)) == ["other"]


def test_state_without_an_event(storage: Counting) -> None:
    """A step that was never committed is missing; one that was pruned or deleted since is gone."""
    with pytest.raises(CorruptionError, match="missing") as caught:
        Reader(storage).state(1, 200)
    assert (caught.value.thread, caught.value.sequence) == (1, 200)
    with pytest.raises(ConflictError, match="pruned or deleted"):
        Reader(storage).state(9, 1)


def test_event_that_is_no_step(storage: Counting) -> None:
    """An event that is no step has no state."""
    with pytest.raises(CorruptionError, match="not a step"):
        Reader(storage).state(1, 1)


def test_base_that_is_lost(storage: Counting) -> None:
    """A state whose base is lost is reported with the place of the base; the states before are still there."""
    set_record(storage, 1, 50, None)
    with pytest.raises(CorruptionError) as caught:
        Reader(storage).state(1, 60)
    assert (caught.value.thread, caught.value.sequence) == (1, 50)
    assert channels(Reader(storage).state(1, 49)) == [f"c{number}" for number in range(1, 47)]


def test_step_that_does_not_fit() -> None:
    """A step whose patch does not fit its base is reported as damage of that step."""
    storage = MemoryStorage()
    misfit = StepCommitted("s1", None, Merge((), {"x": Splice((Keep(0, 1),))}), Merge(), base=Sequence(3))
    storage.commit([append("t", step("s0", {"x": b"1"}))])
    storage.commit([append("t", misfit)])
    with pytest.raises(CorruptionError, match="does not fit its base 3") as caught:
        Reader(storage).state(1, 4)
    assert caught.value.sequence == 4


# --- ancestors ---


def test_ancestors() -> None:
    """The steps that a step descends from come nearest first, with their states, by parents and not by bases."""
    storage = MemoryStorage()
    for number in range(300):
        parent = f"s{number - 1}" if number else None
        storage.commit([append("t", StepCommitted(f"s{number}", parent, one(f"c{number}"), Merge()))])
    walk: Iterator[tuple[Found, State]] = Reader(storage).ancestors(1, 1, fmt.id_key("s299"))
    assert [(found.step, channels(state)) for found, state in walk] == [
        (number + 3, [f"c{number}"]) for number in range(298, -1, -1)
    ]
    assert list(Reader(storage).ancestors(1, 1, fmt.id_key("s0"))) == []
    assert list(Reader(storage).ancestors(1, 1, fmt.id_key("none"))) == []


def test_ancestors_are_read_as_they_are_needed(storage: Counting) -> None:
    """A walk that is given up early has not read everything."""
    made = Counting()
    for number in range(300):
        parent = f"s{number - 1}" if number else None
        made.commit([append("t", StepCommitted(f"s{number}", parent, one(f"c{number}"), Merge()))])
    next(Reader(made).ancestors(1, 1, fmt.id_key("s299")))
    assert made.records < 100


# --- content ---


def test_payloads() -> None:
    """Content behind references to several events is read in one round trip, and kept."""
    storage = Counting()
    contents = [noise(), noise(), noise()]
    storage.commit([append("t", *(step(f"s{n}", {"x": each}) for n, each in enumerate(contents)))])
    payloads = Payloads(storage, 1)
    payloads.fetch([3, 4])
    assert [payloads.read(Ref(sequence, 10, 20)) for sequence in (3, 4, 3)] == [
        contents[0][10:30],
        contents[1][10:30],
        contents[0][10:30],
    ]
    assert storage.asked == ["payloads"]
    assert payloads.read(Ref(5, 0, 300)) == contents[2]


def test_payloads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is read, what is kept is bounded, and what was dropped is read again."""
    monkeypatch.setattr(reader, "_PAYLOADS_HELD_BYTES", 500)
    storage = Counting()
    contents = [noise() for _ in range(10)]
    storage.commit([append("t", *(step(f"s{n}", {"x": each}) for n, each in enumerate(contents)))])
    payloads = Payloads(storage, 1)
    for _ in range(2):
        assert [payloads.read(Ref(n + 3, 0, 300)) for n in range(10)] == contents
        assert sum(map(len, payloads._held.values())) <= 1000


def test_payload_that_is_gone(memory_log: Log) -> None:
    """Content of an event that was pruned meanwhile is a conflict; of one that is lost, damage."""
    thread = memory_log.thread("t")
    thread.append([step("s0", {"x": noise()}), step("s1")])
    payloads = Payloads(memory_log.storage, 1)
    thread.prune([4])
    with pytest.raises(ConflictError):
        payloads.read(Ref(3, 0, 1))
    storage = MemoryStorage()
    storage.commit([append("t", step("s0", {"x": noise()}), step("s1"))])
    for sequence in (4, 1):
        set_record(storage, 1, sequence, None)
        with pytest.raises(CorruptionError):
            Payloads(storage, 1).read(Ref(sequence, 0, 1))


def test_references() -> None:
    """Every reference in a value is found, however deep."""
    deep = Map(
        "", False, {"a": Blob("", Ref(1, 0, 1)), "b": Array("", False, 2, (New((1,), Ref(2, 0, 1)), New((1,), b"x")))}
    )
    value = Map("t", False, {"c": deep, "d": Blob("", b"x"), "e": Blob("", Ref(3, 0, 1))})
    assert [ref.sequence for ref in reader.references(value)] == [1, 2, 3]


# --- events ---


def test_events_are_whole(memory_log: Log) -> None:
    """Events that refer to others' content are handed out with that content."""
    old = [f"message {n} " * 10 for n in range(50)]
    before = msgspec.msgpack.encode(old)
    after = msgspec.msgpack.encode([*old[10:], "new " * 30])
    patch = diff(parse("m", before), parse("m", after))
    assert patch is not None
    thread = memory_log.thread("t")
    thread.append([WritesRecorded("s0", "task", "", (Write(0, "m", parse("m", before)),))])
    first = step("s0", {"m": before})
    second = StepCommitted("s1", None, Merge((), {"m": patch}), Merge(), base=Sequence(4))
    thread.append([first])
    thread.append([second])
    found = dict(thread.events())
    assert isinstance(found[5], StepCommitted)
    assert found[5].channels == second.channels
    state = thread.state()
    assert state is not None
    assert state.channels["m"][1] == after


def test_writes_that_are_none(memory_log: Log) -> None:
    """What is filed as writes and is none is reported as damage."""
    memory_log.thread("t").append([step("s0"), wrote("s0")])
    assert len(reader.writes(memory_log.storage, 1, [4])) == 1
    assert reader.writes(memory_log.storage, 1, []) == []
    with pytest.raises(CorruptionError, match="does not record writes"):
        reader.writes(memory_log.storage, 1, [3])
    with pytest.raises(CorruptionError, match="missing"):
        reader.writes(memory_log.storage, 1, [9])
    assert memory_log.storage.read(1, [4])[4].header.kind == fmt.KIND_WRITES
