"""What single operations of the engine cost, on the values of a research agent of 1,000 supersteps.

    make bench-micro

The figures are for comparing one change of the code with the next; what a saver costs an agent is measured by
`bench/run.py`.  Each group of benchmarks is a table of its own, in which the brackets say how many times slower
than the group's fastest one a row is.  In the group `append` the fastest is what no append can do without: the
same record, put into an empty LMDB file by a transaction of its own and synced.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

import script
from stepwell import Log, Sequence, StepCommitted, codec
from stepwell import format as fmt
from stepwell.content import ContentMemory, Encoding
from stepwell.fold import EMPTY, State, fold
from stepwell.patch import Array, Blob, Keep, Map, Merge, New, Patch, Splice, apply, compose, diff, parse, payload_of
from stepwell.storage import Append, Committed
from stepwell.storage.lmdb import LmdbStorage

SUPERSTEPS = 1000
SEED = 20_250_601
APPENDS = 300
THREAD = 1  # the number that records are made for
SERDE = JsonPlusSerializer()

Run = Callable[..., Any]
Value = Blob | Array | Map


class Conversation(NamedTuple):
    """The messages of the agent: the encoding of each, and of their list."""

    elements: list[bytes]
    payload: bytes

    @property
    def value(self) -> Value:
        return parse("msgpack", self.payload)

    def first(self, count: int) -> Value:
        """The list when it had so many messages."""
        kept = apply(Splice((Keep(0, count),)), self.value)
        return parse("msgpack", payload_of(kept, _no_reference))

    def step(self, number: int, base: int) -> StepCommitted:
        """The step that adds one message."""
        element = self.elements[number]
        added = Splice((Keep(0, number), New((len(element),), element))) if number else self.first(1)
        changed: dict[str, Patch] = {"messages": added}
        parent = f"step-{number - 1}" if number else None
        return StepCommitted(f"step-{number}", parent, Merge((), changed), Merge(), base=Sequence(base))


@pytest.fixture(scope="module")
def said() -> Conversation:
    turn = script.research(SUPERSTEPS, SEED).turns[0]
    messages = [turn.question, *(message for round_ in turn.rounds for message in (round_.answer, *round_.results))]
    return Conversation([SERDE.dumps_typed(m)[1] for m in messages], SERDE.dumps_typed(messages)[1])


@pytest.fixture(scope="module")
def records(said: Conversation) -> list[bytes]:
    """A step for each message, as they stand in a log."""
    return [_record(number + 1, said.step(number, number)) for number in range(len(said.elements))]


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's: /tmp is often in memory, where a sync costs nothing.
    with tempfile.TemporaryDirectory(prefix="stepwell-micro-", dir="/var/tmp") as found:
        yield Path(found)


def _no_reference(_: object) -> bytes:
    raise AssertionError("content is bytes here")


def _record(sequence: int, event: StepCommitted) -> bytes:
    body = codec.encode(event)
    header, _ = fmt.stamp(
        THREAD, sequence, body.kind, 0, body.form, 1, sequence, 1, sequence - 1, sequence - 1, body.digest, bytes(16)
    )
    return header + body.data


def _decoded(sequence: int, record: bytes) -> StepCommitted:
    event = codec.decode(THREAD, codec.open_record(THREAD, sequence, record))
    assert isinstance(event, StepCommitted)
    return event


@pytest.mark.benchmark(group="values")
def test_parse(benchmark: Run, said: Conversation) -> None:
    """Taking the whole list apart, as the first put of a process does."""
    assert isinstance(benchmark(parse, "msgpack", said.payload), Array)


@pytest.mark.benchmark(group="values")
def test_payload(benchmark: Run, said: Conversation) -> None:
    """Putting it together again."""
    assert benchmark(payload_of, said.value, _no_reference) == said.payload


@pytest.mark.benchmark(group="patches")
def test_diff_of_an_added_message(benchmark: Run, said: Conversation) -> None:
    """Two lists that differ in their last message, compared by content."""
    patch = benchmark(diff, said.first(len(said.elements) - 1), said.value)
    assert isinstance(patch, Splice)


@pytest.mark.benchmark(group="patches")
def test_diff_of_a_removed_message(benchmark: Run, said: Conversation) -> None:
    """Two lists that differ by a message in the middle."""
    middle = len(said.elements) // 2
    cut = apply(Splice((Keep(0, middle), Keep(middle + 1, len(said.elements) - middle - 1))), said.value)
    patch = benchmark(diff, said.value, parse("msgpack", payload_of(cut, _no_reference)))
    assert isinstance(patch, Splice)


@pytest.mark.benchmark(group="patches")
def test_apply_an_added_message(benchmark: Run, said: Conversation) -> None:
    """The patch of a step, applied to the state before it."""
    last = len(said.elements) - 1
    patch = said.step(last, last).channels.changes["messages"]
    assert payload_of(benchmark(apply, patch, said.first(last)), _no_reference) == said.payload


@pytest.mark.benchmark(group="patches")
def test_compose_all(benchmark: Run, said: Conversation) -> None:
    """The patches of all steps made one."""
    patches = [said.step(number, number).channels.changes["messages"] for number in range(len(said.elements))]
    composed = benchmark(reduce, compose, patches)
    assert payload_of(apply(composed, None), _no_reference) == said.payload


@pytest.mark.benchmark(group="records")
@pytest.mark.parametrize("size", ["p10", "p50", "p90"])
def test_encode(benchmark: Run, said: Conversation, size: str) -> None:
    """From a step that adds one message, small, middling or large, to a compressed body."""
    number = _by_size(said, size)
    assert benchmark(codec.encode, said.step(number, number)).fresh


@pytest.mark.benchmark(group="records")
@pytest.mark.parametrize("size", ["p10", "p50", "p90"])
def test_open(benchmark: Run, said: Conversation, records: list[bytes], size: str) -> None:
    """From a stored record to a body that was proven to be what was written."""
    number = _by_size(said, size)
    record = benchmark(codec.open_record, THREAD, number + 1, records[number])
    assert said.elements[number] in bytes(record.body)


@pytest.mark.benchmark(group="reading")
def test_open_and_decode_all(benchmark: Run, records: list[bytes]) -> None:
    """All records of the run, as a reader without any shortcut sees them."""
    decoded = benchmark(lambda: [_decoded(number + 1, record) for number, record in enumerate(records)])
    assert len(decoded) == len(records)


@pytest.mark.benchmark(group="reading")
def test_fold_all(benchmark: Run, records: list[bytes]) -> None:
    """From the decoded events of the run to its newest state, whose content stays references."""
    events = [_decoded(number + 1, record) for number, record in enumerate(records)]

    def fold_all() -> State:
        state = EMPTY
        for number, event in enumerate(events):
            state = fold(state, event, Sequence(number + 1))
        return state

    value = benchmark(fold_all).channels["messages"]
    assert isinstance(value, Array)
    assert value.count == len(events)


@pytest.mark.benchmark(group="append")
def test_append(benchmark: Any, said: Conversation, directory: Path) -> None:
    """An append by one thread to a log that nobody else uses, one message at a time."""
    with Log.open(directory / "log.stepwell") as log:
        thread = log.thread("research")
        heads = [0]

        def prepare() -> tuple[Any, Any]:
            return ([said.step(len(heads) - 1, heads[-1])],), {}

        def append(events: list[StepCommitted]) -> None:
            heads.append(thread.append(events))

        benchmark.pedantic(append, setup=prepare, rounds=APPENDS)
        newest = thread.state()
        assert newest is not None
        assert len(heads) == APPENDS + 1


@pytest.mark.benchmark(group="append")
def test_commit_of_an_encoded_step(benchmark: Any, said: Conversation, directory: Path) -> None:
    """The same without encoding and without the writer's thread: what the tables of a log cost beside the record."""
    storage = LmdbStorage(directory / "log.stepwell")
    memory = ContentMemory()
    heads = [0]

    def prepare() -> tuple[Any, Any]:
        encoding = Encoding(memory, "research", [said.step(len(heads) - 1, heads[-1])], len(heads))
        return (Append("research", encoding.entries, placed=encoding.locate),), {}

    def commit(operation: Append) -> None:
        (outcome,) = storage.commit([operation])
        assert isinstance(outcome, Committed)
        heads.append(outcome.sequences[-1])

    benchmark.pedantic(commit, setup=prepare, rounds=APPENDS)
    assert len(heads) == APPENDS + 1
    storage.close()


@pytest.mark.benchmark(group="append")
def test_bare_commit(benchmark: Any, records: list[bytes], directory: Path) -> None:
    """The same records, each put by an LMDB transaction that does nothing else."""
    with lmdb.open(str(directory / "bare.lmdb"), subdir=False, map_size=1 << 30) as environment:
        numbers = iter(range(APPENDS))

        def prepare() -> tuple[Any, Any]:
            number = next(numbers)
            return (fmt.event_key(THREAD, number + 1), records[number]), {}

        def commit(key: bytes, record: bytes) -> None:
            with environment.begin(write=True) as transaction:
                transaction.put(key, record)

        benchmark.pedantic(commit, setup=prepare, rounds=APPENDS)


def _by_size(said: Conversation, size: str) -> int:
    ranked = sorted(range(1, len(said.elements)), key=lambda number: len(said.elements[number]))
    return ranked[len(ranked) * int(size[1:]) // 100]
