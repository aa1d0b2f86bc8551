"""Content that the log holds already is referred to, and never wrongly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from building import (
    FailingStorage,
    get_record,
    get_segment,
    noise,
    set_record,
    set_segment,
    step,
    wrote,
)
from stepwell import (
    ConflictError,
    CorruptionError,
    DiskFullError,
    Log,
    StepCommitted,
    StepwellError,
    WritesRecorded,
    codec,
    pruning,
)
from stepwell.cache import Cache
from stepwell.content import ContentMemory, NotYetPlaced, Place, settle
from stepwell.patch import Merge, Ref, diff_entries, payload_of
from stepwell.writer import Ticket

DIGEST = codec.digest_of(b"content")


def remembered(
    number: int = 1, sequence: int = 5, *, durable: bool = True, cache: Cache | None = None
) -> tuple[ContentMemory, Place]:
    """A memory that holds one content of thread "t", and where that stands."""
    memory, place = ContentMemory(cache=cache), Place()
    memory.remember("t", place, [codec.Fresh(DIGEST, 10, 7)])
    place.number, place.sequence = number, sequence
    if durable:
        settle([place], durable=True)
    return memory, place


def test_durable_content_is_found() -> None:
    """Content that is in the log for good is found by anybody, in its own thread only."""
    memory, _ = remembered()
    assert memory.find("t", DIGEST) == (1, Ref(5, 10, 7))
    assert memory.find("t", DIGEST, 1, 5) == (1, Ref(5, 10, 7))
    assert memory.find("other", DIGEST) is None
    assert memory.find("t", codec.digest_of(b"other")) is None


def test_content_on_its_way() -> None:
    """Content that is not in the log for good can be used by the writer only, once it has a place."""
    memory, place = remembered(durable=False)
    with pytest.raises(NotYetPlaced):
        memory.find("t", DIGEST)
    assert memory.find("t", DIGEST, 1, 5) == (1, Ref(5, 10, 7))
    place.number = place.sequence = 0
    assert memory.find("t", DIGEST, 1, 5) is None
    with pytest.raises(NotYetPlaced):
        memory.find("t", DIGEST)


def test_content_that_failed() -> None:
    """Content of an append that failed is forgotten."""
    memory, place = remembered(durable=False)
    settle([place], durable=False)
    assert memory.find("t", DIGEST) is None


@pytest.mark.parametrize(("number", "first"), [(2, 1), (1, 6)])
def test_content_that_is_gone(number: int, first: int) -> None:
    """Content of a thread that was deleted, or pruned since, is forgotten when the writer asks."""
    memory, _ = remembered()
    assert memory.find("t", DIGEST, number, first) is None
    assert memory.find("t", DIGEST) is None


def test_memory_is_bounded() -> None:
    """What was used longest ago is forgotten first."""
    memory, place = remembered(cache=Cache(1400))
    digests = [DIGEST, b"second", b"third"]
    memory.remember("t", place, [codec.Fresh(b"second", 0, 1)])
    memory.find("t", DIGEST)
    memory.remember("t", place, [codec.Fresh(b"third", 0, 1)])
    assert [memory.find("t", digest) is not None for digest in digests] == [True, False, True]


# --- through a log ---


def grown_by(log: Log, event: StepCommitted | WritesRecorded, thread: str = "t") -> int:
    """How many bytes an append adds to a thread."""
    before = log.thread(thread).summary()
    log.thread(thread).append([event])
    after = log.thread(thread).summary()
    assert after is not None
    return after.stored_bytes - (before.stored_bytes if before else 0)


def shown(log: Log, step_id: str, channel: str = "x") -> bytes:
    """What a channel holds at a step."""
    state = log.thread("t").state(step_id)
    assert state is not None
    return state.channels[channel][1]


def test_content_of_a_write_is_taken_over(memory_log: Log) -> None:
    """The step that takes over what a task wrote stores it as a reference, the next one too."""
    big, element = noise(5000), noise(5000)
    listed = msgspec.msgpack.encode([noise(100), element, noise(100)])
    memory_log.thread("t").append([step("s0"), wrote("s0", [big, element])])
    assert grown_by(memory_log, step("s1", {"x": big})) < 200
    assert grown_by(memory_log, step("s2", {"x": noise(10), "y": big})) < 200
    assert grown_by(memory_log, step("s3", {"x": listed})) > 5000  # an element is the value with its header
    assert grown_by(memory_log, step("s4", {"x": listed})) < 200
    assert [shown(memory_log, "s1"), shown(memory_log, "s2", "y"), shown(memory_log, "s4")] == [big, big, listed]


def test_threads_share_nothing(memory_log: Log) -> None:
    """Content of another thread is not referred to: each thread can be deleted by itself."""
    big = noise(5000)
    memory_log.thread("other").append([step("s0", {"x": big})])
    assert grown_by(memory_log, step("s1", {"x": big})) > 5000
    memory_log.thread("other").delete()
    assert shown(memory_log, "s1") == big


def test_nothing_refers_to_a_deleted_thread(memory_log: Log) -> None:
    """A thread that was deleted and opened again holds its content itself."""
    big = noise(5000)
    memory_log.thread("t").append([step("s0", {"x": big})])
    memory_log.thread("t").delete()
    assert grown_by(memory_log, step("s1", {"x": big})) > 5000
    assert shown(memory_log, "s1") == big


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_nothing_refers_to_two_threads_of_one_name(memory_log: Log, order: tuple[str, str]) -> None:
    """Of contents of a thread and of one that had its name before, only those that are still there are referred to."""
    contents, thread = {"old": noise(5000), "new": noise(5000)}, memory_log.thread("t")
    thread.append([step("s0", {"x": contents["old"]})])
    thread.delete()
    thread.append([step("s0", {"x": contents["new"]})])
    assert grown_by(memory_log, step("s1", {name: contents[name] for name in order})) > 5000
    assert [shown(memory_log, "s1", name) for name in order] == [contents[name] for name in order]


def test_a_run_of_known_elements(memory_log: Log) -> None:
    """A list of elements that lie side by side in another event is found again where they lie, not elsewhere."""
    thread = memory_log.thread("t")
    elements = [msgspec.Raw(msgspec.msgpack.encode(noise())) for _ in range(4)]
    listed = [msgspec.msgpack.encode(part) for part in (elements, elements[1:3], elements[1:3])]
    thread.append([step("s0", {"x": noise(), "y": listed[0]})])
    for number in (1, 2):
        assert grown_by(memory_log, step(f"s{number}", {"x": listed[number]})) < 200
    assert [shown(memory_log, "s0", "y"), shown(memory_log, "s1"), shown(memory_log, "s2")] == listed


def test_nothing_refers_to_what_was_pruned(memory_log: Log) -> None:
    """After a pruning, content that went with it is written again, and then referred to again."""
    big, thread = noise(5000), memory_log.thread("t")
    thread.append([step("s0", {"x": big}), step("s1", {"x": b"small"})])
    thread.prune([state.sequence for state in [thread.state("s1")] if state])
    assert grown_by(memory_log, step("s2", {"x": big})) > 5000
    assert grown_by(memory_log, step("s3", {"x": big})) < 200
    assert [shown(memory_log, "s2"), shown(memory_log, "s3")] == [big, big]


# --- in a process that goes on with a thread ---


MESSAGES = [msgspec.Raw(msgspec.msgpack.encode({"text": noise(400).hex(), "n": n})) for n in range(20)]
FILES = msgspec.Raw(msgspec.msgpack.encode({f"file {n}": noise(300) for n in range(5)}))
STATE = {"messages": msgspec.msgpack.encode(MESSAGES), "files": bytes(FILES)}
# What a task is sent: the whole state, somewhere within a value.
INLINED = msgspec.msgpack.encode([{"messages": MESSAGES, "files": FILES, "new": noise(50)}])


def pending(log: Log, step_id: str) -> list[bytes]:
    """What the writes that wait at a step hold."""
    return [
        payload_of(found.write.value, lambda ref: pytest.fail("a reference"))
        for found in log.thread("t").writes(step_id)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log that another process has written: a state with messages and files, and the thread has gone on since."""
    path = tmp_path / "log.stepwell"
    with Log.open(path) as log:
        base = log.thread("t").append([step("s0", STATE)])
        log.thread("t").append([step("s1", base=base), step("hidden", {"x": noise()}, hidden=True), wrote("s1")])
        log.thread("other").append([step("s0")])
    return path


@pytest.mark.parametrize("sealed", [False, True])
def test_content_of_the_newest_state_is_found_again(path: Path, sealed: bool) -> None:
    """A write that holds the whole state within it is stored as references, though another process wrote the state."""
    if sealed:
        with Log.open(path) as log:
            assert log.seal("t") > 0
    with Log.open(path) as log:
        assert grown_by(log, wrote("s1", [INLINED], task="sent")) < len(INLINED) // 10
        assert pending(log, "s1") == [INLINED, b"written"]
        # Other threads share nothing with it.
        assert grown_by(log, wrote("s0", [INLINED], task="sent"), "other") > len(INLINED) // 2
        assert log.audit().breaches == []
    with Log.open(path) as log:
        assert pending(log, "s1") == [INLINED, b"written"]


def test_the_newest_state_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest state is read when content is first looked for within other content, and not again."""
    with Log.open(path) as log:
        asked: list[str] = []
        recall = log.content._recall

        def noted(thread_id: str) -> Iterable[tuple[Place, codec.Fresh]]:
            asked.append(thread_id)
            return recall(thread_id)

        monkeypatch.setattr(log.content, "_recall", noted)
        log.thread("t").append([wrote("s1", [noise(), b"short"], task="a")])
        assert asked == []
        for task in ("b", "c"):
            log.thread("t").append([wrote("s1", [msgspec.msgpack.encode([{"x": noise(2000)}])], task=task)])
        assert asked == ["t"]
        log.thread("new").append([wrote("s1", [INLINED])])
        assert asked == ["t", "new"]
        log.cache.most_bytes = 0
        for thread in ("other", "t"):
            log.thread(thread).append([wrote("s1", [msgspec.msgpack.encode([{"x": noise(2000)}])], task="d")])
        assert asked == ["t", "new", "other", "t"]
        assert log.audit().breaches == []


def test_nothing_of_a_thread_that_was_deleted_is_found_again(path: Path) -> None:
    """What was found again of a thread is not referred to from one that has its name later."""
    with Log.open(path) as log:
        log.thread("t").append([wrote("s1", [INLINED], task="sent")])
        log.thread("t").delete()
        log.thread("t").append([step("s1"), wrote("s1", [INLINED])])
        assert pending(log, "s1") == [INLINED]
        assert log.audit().breaches == []


@pytest.mark.parametrize("sealed", [False, True])
def test_a_damaged_state_does_not_stop_appends(path: Path, sealed: bool) -> None:
    """If the newest state cannot be read, what is appended is stored whole, and reads as it was written."""
    with Log.open(path) as log:
        if sealed:
            assert log.seal("t") > 0
            (_, last, _) = log.storage.segments(1)[0]
            segment = get_segment(log.storage, 1, last)
            set_segment(log.storage, 1, last, segment[:-9] + bytes(9))
        else:
            record = get_record(log.storage, 1, 3)
            set_record(log.storage, 1, 3, record[:-1] + bytes((record[-1] ^ 1,)))
    with Log.open(path) as log:
        assert grown_by(log, wrote("new", [INLINED], task="sent")) > len(INLINED) // 2
        assert pending(log, "new") == [INLINED]
        log.thread("t").append([step("s2", {"x": INLINED})])
        assert shown(log, "s2") == INLINED
        with pytest.raises(CorruptionError):
            log.thread("t").state("s1")
        assert {breach.invariant for breach in log.audit().breaches} >= {"I2"}


# --- with appends that overtake each other ---


@pytest.fixture
def failing() -> FailingStorage:
    """A storage whose commits can be held back."""
    return FailingStorage()


def queued_behind(storage: FailingStorage, log: Log) -> Ticket:
    """Keep the writer busy with an append to another thread, so that what is submitted next becomes one group."""
    storage.gate.acquire()
    blocker = log.thread("blocker").begin_append([step("b")])
    while log._writer._queue:
        pass
    return blocker


def test_content_of_the_same_group(failing: FailingStorage) -> None:
    """An append refers to content of one that is committed in the same group."""
    big = noise(5000)
    with Log(failing) as log:
        queued_behind(failing, log)
        tickets = [log.thread("t").begin_append([step(f"s{number}", {"x": big})]) for number in range(5)]
        failing.gate.release()
        for ticket in tickets:
            ticket.result()
        assert len(failing.groups) == 2
        summary = log.thread("t").summary()
        assert summary is not None
        assert summary.stored_bytes < 6000
        assert [shown(log, f"s{number}") for number in range(5)] == [big] * 5
        assert log.audit().breaches == []


def test_content_of_a_refused_append(failing: FailingStorage) -> None:
    """An append does not refer to one that was refused before it, in the same group or later."""
    big = noise(5000)
    with Log(failing) as log:
        log.thread("t").append([step("s")])
        queued_behind(failing, log)
        refused = log.thread("t").begin_append([step("s0", {"x": big})], expected_head=99)
        tickets = [log.thread("t").begin_append([step(f"s{number}", {"x": big})]) for number in (1, 2)]
        failing.gate.release()
        with pytest.raises(StepwellError):
            refused.result()
        for ticket in tickets:
            ticket.result()
        log.thread("t").append([step("s3", {"x": big})])
        assert [shown(log, f"s{number}") for number in (1, 2, 3)] == [big] * 3
        assert log.audit().breaches == []


def test_places_of_a_failed_attempt(failing: FailingStorage) -> None:
    """When a group fails and its appends are tried one by one, none refers to where another would have stood."""
    x, y = noise(), noise()
    with Log(failing) as log:
        thread = log.thread("t")
        head = thread.append([step("s0")])
        queued_behind(failing, log)
        # Does not fit on the disk, neither in the group nor alone.
        large = thread.begin_append([step("z1", {"q": noise(400)}), step("z2"), step("z3", {"y": y})])
        failing.failure = lambda group: DiskFullError("full") if large.operation in group else None
        # A conflict in the group, fine without `large`; must wait for its turn because of `y`.
        tickets = [thread.begin_append([step("a", {"y": y, "x": x})], expected_head=head)]
        tickets += [thread.begin_append([step("b", {"x": x})])]
        tickets += [thread.begin_append([step(name, {"x": noise()})]) for name in "cdefg"]
        failing.gate.release()
        with pytest.raises(DiskFullError):
            large.result()
        assert [ticket.result().sequences[0] - head for ticket in tickets] == list(range(1, 8))
        assert [shown(log, "a"), shown(log, "a", "y"), shown(log, "b")] == [x, y, x]
        assert log.audit().breaches == []


def test_nothing_refers_to_what_was_pruned_when_a_group_is_tried_again(failing: FailingStorage) -> None:
    """An append that was encoded anew since its thread had been pruned does not go back to its first encoding."""
    big = noise(5000)
    with Log(failing) as log:
        thread = log.thread("t")
        head = thread.append([step("s0", {"x": big}), step("s1")])
        thread.prune([head])
        queued_behind(failing, log)
        failing.failure = lambda group: DiskFullError("full") if len(group) > 1 else None
        tickets = [thread.begin_append([step("s2", {"x": big})]), log.thread("other").begin_append([step("o")])]
        failing.gate.release()
        for ticket in tickets:
            ticket.result()
        assert shown(log, "s2") == big
        assert grown_by(log, step("s3", {"x": big})) < 200
        assert log.audit().breaches == []


def test_layout_of_an_encoding_that_was_replaced(failing: FailingStorage) -> None:
    """An append that is encoded again when its turn comes is found by its last layout only."""
    old, first, second, pending = noise(), noise(), noise(), noise()
    elements = [msgspec.Raw(msgspec.msgpack.encode(each)) for each in (first, second)]
    run = msgspec.msgpack.encode(elements)
    with Log(failing) as log:
        thread = log.thread("t")
        head = thread.append([step("s0", {"x": old}), step("s1")])
        row = thread.row()
        assert row is not None
        queued_behind(failing, log)
        # When its turn comes, `a` finds `old` gone, and half of its run in `c`, which had to wait for `pending`.
        log.submit(pruning.plan(failing, "t", row, pruning.Kept(frozenset([head]))))
        tickets = [
            thread.begin_append([step("s2", {"x": pending})]),
            thread.begin_append([step("c", {"a": pending, "b": msgspec.msgpack.encode([elements[0], "x" * 99])})]),
            thread.begin_append([step("a", {"old": old, "x": run})]),
        ]
        failing.gate.release()
        for ticket in tickets:
            ticket.result()
        thread.append([step("d", {"x": run})])
        assert [shown(log, "a"), shown(log, "d")] == [run, run]
        # Nor does what was said of the layout before stay "on its way" for ever.
        kept = [log.content._places.get(key) for key in log.content._places.all_keys()]
        assert kept
        assert all(found is not None and (found[0].durable or found[0].failed) for found in kept)
        assert log.audit().breaches == []


def test_references_name_events_before(memory_log: Log) -> None:
    """Events of one append that hold the same content hold it once each, or refer to an event before them."""
    big, thread = noise(5000), memory_log.thread("t")
    thread.append([step("s0", {"x": big}), step("s1", {"x": big}), wrote("s1", [big])])
    thread.append([step("s2", {"x": big})])
    assert [shown(memory_log, f"s{number}") for number in range(3)] == [big] * 3


def test_references_of_the_caller(memory_log: Log) -> None:
    """A caller may refer to content itself, but not into a thread that was deleted since."""
    big, thread = noise(5000), memory_log.thread("t")
    thread.append([step("s0", {"x": big})])
    row = thread.row()
    assert row is not None
    state = memory_log.reader.state(row.number, row.last)
    event = StepCommitted("s1", "s0", diff_entries({}, state.channels) or Merge(), Merge())
    thread.begin_append([event], incarnation=row.number).result()
    assert shown(memory_log, "s1") == big
    thread.delete()
    thread.append([step("new")])
    with pytest.raises(ConflictError):
        thread.begin_append([event], incarnation=row.number).result()
