"""What the writer remembers of the tables between two groups, and when it must not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from building import FailingStorage, step, wrote
from stepwell import Log
from stepwell.errors import ConflictError
from stepwell.events import Event
from stepwell.storage import Rewrite, ThreadRow
from stepwell.storage.lmdb import LmdbStorage
from stepwell.storage.remembered import Left, Remembered
from stepwell.storage.tables import FEED, INDEX, LANES, NAMES, THREADS


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Log, Log]]:
    """Two logs on one file, each with a writer of its own, as those of two processes."""
    with Log.open(tmp_path / "a.stepwell") as one, Log.open(tmp_path / "a.stepwell") as other:
        yield one, other


def test_what_others_committed_is_seen(two: tuple[Log, Log]) -> None:
    for number in range(20):
        log = two[number % 3 % 2]
        row = log.thread("t").row()
        log.thread("t").append([step(f"s{number}")], expected_head=row.last if row else 0)
        log.thread(f"t{number}").append([step("s0", lane="sub")])
    assert two[0].audit().breaches == []


def test_a_group_that_changes_nothing_has_no_number_of_its_own(two: tuple[Log, Log]) -> None:
    """LMDB gives its number to the next transaction, which may be somebody else's."""
    one, other = two
    names = "one", "other"
    one.thread("t").append([step("s0")])
    for number in range(3):
        with suppress(ConflictError):
            one.thread("t").append([step("refused")], expected_head=99)
        other.thread("t").append([step(f"other{number}")])
        one.thread("t").append([step(f"one{number}")])
    assert one.audit().breaches == []
    assert {each.step_id for each in one.thread("t").steps()} == {"s0", *(f"{w}{n}" for n in range(3) for w in names)}


def test_a_group_that_failed_leaves_nothing() -> None:
    storage = FailingStorage()
    with Log(storage) as log:
        log.thread("t").append([step("s0")])
        storage.failure = lambda operations: OSError("the disk is gone")
        with pytest.raises(OSError, match="gone"):
            log.thread("t").append([step("s1"), step("s2", lane="new")])
        storage.failure = lambda operations: None
        log.thread("t").append([step("s3", lane="new")])
        assert log.audit().breaches == []


def test_nothing_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    with Log.open(tmp_path / "a.stepwell") as log:
        log.thread("t").append([step("s0")])
        assert isinstance(log.storage, LmdbStorage)
        count_reads(monkeypatch, read)
        log.thread("t").append([step("s1")])
    assert not read.keys() & {THREADS, LANES, NAMES, FEED}


def test_the_index_is_not_read_for_ids_that_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of LangGraph do; with the writes for the step before, which somebody runs on."""
    read: Counter[str] = Counter()
    with Log.open(tmp_path / "a.stepwell") as log:
        log.thread("t").append([step(grown(0))])
        count_reads(monkeypatch, read)
        for number in range(1, 5):
            log.thread("t").append([wrote(grown(number - 1))])
            log.thread("t").append([step(grown(number), parent=grown(number - 1)), wrote(grown(number))])
        monkeypatch.undo()
        assert log.audit().breaches == []
    assert INDEX not in read


@pytest.mark.parametrize("together", [True, False], ids=["one append", "one after the other"])
def test_ids_in_any_order_are_all_found(two: tuple[Log, Log], together: bool) -> None:
    """Steps and writes before and after them, committed once more, of two lanes, by two writers."""
    chosen = random.Random(7)
    committed: Counter[tuple[str, str]] = Counter()
    for turn in range(12):
        events: list[Event] = []
        for _ in range(chosen.randrange(1, 6)):
            id_, lane = grown(chosen.randrange(8)), chosen.choice(["", "sub"])
            is_step = chosen.random() < 0.6
            events.append(step(id_, lane=lane) if is_step else wrote(id_, lane=lane, task=f"{turn} {len(events)}"))
            committed[id_, lane] += not is_step
        log = chosen.choice(two)
        for some in [events] if together else [[event] for event in events]:
            log.thread("t").append(some)
        assert two[0].audit().breaches == []
    for (id_, lane), count in committed.items():
        assert len(two[1].thread("t").writes(id_, lane=lane)) == count


def grown(number: int) -> str:
    """An id that is greater than all those of smaller numbers."""
    return f"1f0b0000-0000-6000-8000-{number:012x}"


def count_reads(monkeypatch: pytest.MonkeyPatch, read: Counter[str]) -> None:
    from stepwell.storage.checksums import CheckedTables

    for name in ("get", "scan", "scan_back"):
        method = getattr(CheckedTables, name)

        def counting(tables: Any, table: str, *where: bytes, method: Any = method) -> Any:
            read[table] += 1
            return method(tables, table, *where)

        monkeypatch.setattr(CheckedTables, name, counting)


def test_so_much_and_no_more() -> None:
    rows = Remembered()
    left = Left(7, rows)
    assert left.at(8) is rows
    assert left.at(9) is not rows
    rows.threads.update((str(number), None) for number in range(1025))
    assert left.at(8) is not rows


def test_whoever_chooses_what_to_keep_gets_a_row_of_his_own(tmp_path: Path) -> None:
    with Log.open(tmp_path / "a.stepwell") as log:
        log.thread("t").append([step("s0")], labels={"user": "ada"})
        given: list[ThreadRow] = []

        def choose(row: ThreadRow) -> None:
            given.append(row)
            row.steps, row.chain = 99, b"another"
            row.labels["user"] = "eve"

        log.submit(Rewrite("t", choose)).result()
        log.thread("t").append([step("s1")])
        assert given[0].last == 4  # the thread, its labels, its lane, the step
        assert log.audit().breaches == []
