"""Two writers on one thread: nobody's work is lost or overwritten, and who wants to know is told."""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from building import step
from conformance.calls import checkpoint_of, config_of, id_of
from crash.kill_writer import processes
from stepwell import ConflictError, Log, StepCommitted, Thread
from stepwell_langgraph import StepwellSaver

TURNS = 40


def count_up(log: Log, name: str, turns: int) -> int:
    """Commit steps that each name the head they saw, until so many went in; returns how many were refused."""
    thread, refused = log.thread("counter"), 0
    for _ in range(turns):
        while True:
            row, state = thread.row(), thread.state()
            head = row.last if row else 0
            number = int(state.channels["n"][1]) if state else 0
            conflict = refusal_of(thread, step(f"{name} {number + 1}", {"n": b"%d" % (number + 1)}), head)
            if conflict is None:
                break
            assert (conflict.thread, conflict.expected) == ("counter", head)
            assert isinstance(conflict.actual, int)
            assert conflict.actual > head
            assert str(head) in str(conflict)
            assert str(conflict.actual) in str(conflict)
            refused += 1
    return refused


def refusal_of(thread: Thread, event: StepCommitted, head: int) -> ConflictError | None:
    """Append to a thread that stands at some head; the error if it does not."""
    try:
        thread.append([event], expected_head=head)
    except ConflictError as error:
        return error
    return None


def check_counter(log: Log, turns: int) -> None:
    """Every turn of everybody counts once, in one order."""
    state = log.thread("counter").state()
    assert state is not None
    assert state.channels["n"] == ("text", b"%d" % turns)
    assert [int(each.step_id.split()[1]) for each in log.thread("counter").steps()] == list(range(turns, 0, -1))
    assert log.audit().breaches == []


def test_expected_head_between_threads(tmp_path: Path) -> None:
    """Threads that count up in one place, each naming the head it saw, lose no count."""
    with Log.open(tmp_path / "log") as log:
        threads = [threading.Thread(target=count_up, args=(log, f"t{n}", TURNS)) for n in range(3)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        check_counter(log, 3 * TURNS)


def _count_up(path: str, name: str, pipe: Connection) -> None:
    with Log.open(path) as log:
        pipe.send("ready")
        pipe.recv()
        pipe.send(count_up(log, name, TURNS))


def test_expected_head_between_processes(tmp_path: Path) -> None:
    """Processes that count up in one place lose no count, and each conflict says both heads."""
    pairs = [processes.Pipe() for _ in range(2)]
    children = [
        processes.Process(target=_count_up, args=(str(tmp_path / "log"), f"p{n}", theirs))
        for n, (_, theirs) in enumerate(pairs)
    ]
    for child in children:
        child.start()
    for mine, _ in pairs:
        assert mine.recv() == "ready"
    for mine, _ in pairs:
        mine.send("go")
    for mine, _ in pairs:
        assert mine.recv() >= 0
    for child in children:
        child.join()
        assert child.exitcode == 0
    with Log.open(tmp_path / "log") as log:
        check_counter(log, 2 * TURNS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30))
def test_expected_head_of_any_writers(turns: list[tuple[int, bool]]) -> None:
    """However writers look and append by turns, an append goes in if nobody came between, and else changes nothing."""
    with Log.open(":memory:") as log:
        thread = log.thread("t")
        seen, head, appended = [0, 0, 0], 0, 0
        for number, (writer, looks) in enumerate(turns):
            if looks:
                row = thread.row()
                seen[writer] = row.last if row else 0
                assert seen[writer] == head
                continue
            conflict = refusal_of(thread, step(f"s{number}"), seen[writer])
            if seen[writer] == head:
                assert conflict is None
                appended += 1
                row = thread.row()
                assert row is not None
                assert row.last > head
                seen[writer] = head = row.last
            else:
                assert conflict is not None
                assert (conflict.expected, conflict.actual) == (seen[writer], head)
            assert len(list(thread.steps())) == appended


# --- savers ---


class Strand:
    """One of two writers, each with a saver of its own, that go on from the same checkpoint."""

    def __init__(self, saver: StepwellSaver, name: str) -> None:
        self.saver = saver
        self.name = name
        self.values: dict[str, dict[str, Any]] = {}
        self.last: str | None = None

    def put(self, number: int, parent: str | None, items: list[str]) -> None:
        """Put a checkpoint of this strand and record a write on it."""
        id_ = f"{number:04} {self.name}"
        values = {"items": items, "by": self.name}
        versions = dict.fromkeys(values, f"{number:032}.{self.name}")
        config = config_of("t", "", parent)
        stored = self.saver.put(config, checkpoint_of(id_, values, versions), {"step": number}, versions)
        assert id_of(stored) == id_
        self.saver.put_writes(stored, [("items", id_)], f"task of {self.name}")
        self.values[id_] = values
        self.last = id_

    def go_on(self, first: int, steps: int, items: list[str]) -> None:
        """Put a line of checkpoints, each after the one before it."""
        for number in range(first, first + steps):
            items = [*items, f"{number} of {self.name}"]
            self.put(number, self.last, items)

    @property
    def items(self) -> list[str]:
        assert self.last is not None
        items: list[str] = self.values[self.last]["items"]
        return items


def check_strands(saver: StepwellSaver, strands: list[Strand]) -> None:
    """Every checkpoint of everybody is listed once, found by its id, with its own values and writes."""
    wanted = {id_: (strand, values) for strand in strands for id_, values in strand.values.items()}
    listed = [each.checkpoint["id"] for each in saver.list(config_of("t"))]
    assert sorted(listed) == sorted(wanted)
    for id_, (strand, values) in wanted.items():
        found = saver.get_tuple(config_of("t", "", id_))
        assert found is not None
        assert found.checkpoint["channel_values"] == values
        assert found.pending_writes == [(f"task of {strand.name}", "items", id_)]
    assert saver.log.audit().breaches == []


@pytest.mark.parametrize("apart", [True, False], ids=["a saver each", "one saver"])
def test_two_branches(apart: bool, tmp_path: Path) -> None:
    """Writers that go on from one checkpoint, by turns and at once, make two branches that are both there, listed,
    found by id, and can both go on; the head is what was committed last."""
    path = tmp_path / "agents.stepwell"
    with StepwellSaver.from_conn_string(path) as one, StepwellSaver.from_conn_string(path) as other:
        strands = [Strand(one, "a"), Strand(other if apart else one, "b")]
        strands[0].put(0, None, ["root"])
        strands[1].last = strands[0].last
        for number in range(1, 4):
            for strand in strands:
                strand.put(number, strand.last, [*(strand.items if strand.values else ["root"]), f"{number}"])
                head = one.get_tuple(config_of("t"))
                assert head is not None
                assert head.checkpoint["id"] == strand.last
        check_strands(other, strands)
        threads = [threading.Thread(target=strand.go_on, args=(10, 30, strand.items)) for strand in strands]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_strands(one, strands)
    with StepwellSaver.from_conn_string(path) as saver:
        listed = list(saver.list(config_of("t"), limit=1))
        head = saver.get_tuple(config_of("t"))
        assert head is not None
        assert head.checkpoint == listed[0].checkpoint
        assert head.checkpoint["id"] in {strand.last for strand in strands}
        for strand in strands:
            strand.saver = saver
            strand.go_on(100, 3, strand.items)
        check_strands(saver, strands)


def _go_on(path: str, name: str, root: str, pipe: Connection) -> None:
    with StepwellSaver.from_conn_string(path) as saver:
        strand = Strand(saver, name)
        strand.last = root
        pipe.send("ready")
        pipe.recv()
        strand.go_on(1, 30, ["root"])
        pipe.send((strand.values, strand.last))


def test_two_branches_of_two_processes(tmp_path: Path) -> None:
    """Processes that go on from one checkpoint at the same time lose nothing, and a third goes on with both."""
    path = tmp_path / "agents.stepwell"
    with StepwellSaver.from_conn_string(path) as saver:
        root = Strand(saver, "root")
        root.put(0, None, ["root"])
        strands = [root]
        pairs = [processes.Pipe() for _ in range(2)]
        children = [
            processes.Process(target=_go_on, args=(str(path), name, root.last, theirs))
            for name, (_, theirs) in zip("ab", pairs, strict=True)
        ]
        for child in children:
            child.start()
        for mine, _ in pairs:
            assert mine.recv() == "ready"
        for mine, _ in pairs:
            mine.send("go")
        for name, (mine, _) in zip("ab", pairs, strict=True):
            strand = Strand(saver, name)
            strand.values, strand.last = mine.recv()
            strands.append(strand)
        for child in children:
            child.join()
            assert child.exitcode == 0
        check_strands(saver, strands)
        for strand in strands[1:]:
            strand.go_on(100, 3, strand.items)
            head = saver.get_tuple(config_of("t"))
            assert head is not None
            assert head.checkpoint["id"] == strand.last
        check_strands(saver, strands)
