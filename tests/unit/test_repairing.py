"""A new log out of a damaged one: what is kept, what is told, and what never comes back."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from building import all_rows, get_record, get_segment, noise, set_record, set_row, set_segment, step, wrote
from stepwell import (
    ConflictError,
    ItemDeleted,
    ItemPut,
    Log,
    Loss,
    NewerFormatError,
    NotALogError,
    RepairReport,
    Sequence,
    Status,
    ThreadRepair,
    UsageError,
    WritesRecorded,
    repair,
)
from stepwell import format as fmt
from stepwell.events import ItemTouched, ThreadPruned
from stepwell.patch import Blob
from stepwell.storage import Group
from stepwell.storage.lmdb import LmdbStorage, opening
from stepwell.storage.lmdb.datafile import LogFormat
from stepwell.storage.segments import pack
from stepwell.storage.tables import EVENTS, META, NAMES, SEGMENTS, THREAD_NAMES, THREADS

PAGE_BYTES = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    with Log.open(path, seal_after_events=1 << 20) as log:
        assert isinstance(log.storage, LmdbStorage)
        assert log.storage._environment is not None
        log.storage._environment._punches = False  # old versions of pages stay in the file
        yield log


def grow(log: Log, thread_id: str, steps: int, *, lane: str = "") -> None:
    """Append steps, each with two channels, of which one changes, and writes that the next step takes over."""
    thread = log.thread(thread_id)
    for _ in range(steps):
        before = thread.state(lane=lane)
        count = len([*thread.steps(lane=lane)])
        channels = {} if before is None else {name: value for name, (_, value) in before.channels.items()}
        written = thread.writes(before.step_id, lane=lane) if before is not None else []
        channels[f"c{count % 2}"] = noise()
        if written:
            channels["taken"] = bytes(written[0].write.value.content)  # type: ignore[union-attr, arg-type]
        events = [
            step(
                f"{lane}{count}",
                channels,
                parent=before.step_id if before else None,
                base=before.sequence if before else 0,
                old=before.values if before else None,
                lane=lane,
            ),
            wrote(f"{lane}{count}", [noise()], lane=lane),
        ]
        thread.append(events)


def states(log: Log, thread_id: str, lane: str = "") -> dict[str, object]:
    """What each step of a lane shows, by its id."""
    thread = log.thread(thread_id)
    found = {}
    for each in thread.steps(lane=lane):
        state = thread.state(each.step_id, lane=lane)
        assert state is not None
        writes = [(pending.task_id, pending.write) for pending in thread.writes(each.step_id, lane=lane)]
        found[each.step_id] = (state.parent_id, state.created_at, state.channels, writes)
    return found


def forget(log: Log, path: Path) -> Path:
    """A copy of a log without the old versions of pages: what its tables do not hold is nowhere in the file."""
    assert isinstance(log.storage, LmdbStorage)
    assert log.storage._environment is not None
    copy = path.parent / "alone" / "log"
    copy.parent.mkdir()
    log.storage._environment.env.copy(str(copy), compact=True)
    return copy


def repaired(path: Path, check: Callable[[Log, RepairReport], None]) -> RepairReport:
    """Repair a log, and look at the new one, which must be sound and go on."""
    into = path.with_suffix(".repaired")
    before = path.read_bytes()
    report = repair(path, into)
    with Log.open(into) as log:
        assert log.audit().breaches == []
        assert path.read_bytes() == before
        check(log, report)
        for summary in [*log.threads()]:
            grow(log, summary.thread_id, 1)
        grow(log, "new", 1)
        assert log.audit().breaches == []
    return report


def test_whole_log(log: Log, path: Path) -> None:
    """A log without damage is repaired into one with the same rows: what is derived is what the writer had written."""
    for name in ("a", "b", "c", "gone"):
        grow(log, name, 20)
        grow(log, name, 3, lane="inner")
    log.seal("a")
    grow(log, "a", 5)
    log.thread("a").copy_to("copy")
    log.thread("gone").delete()
    log.thread("b").prune([each.sequence for each in log.thread("b").steps()][:4])
    rows = all_rows(log.storage)

    def check(new: Log, report: RepairReport) -> None:
        assert all_rows(new.storage) == rows
        assert report.repaired == ()
        assert report.damage == ()
        assert (report.threads, report.events, report.lost_events) == (5, log.audit().events, 0)
        assert new.storage.log_id != log.storage.log_id

    repaired(path, check)


def test_damaged_record(log: Log, path: Path) -> None:
    """Where one record is damaged, the report names it; what does not need it is kept, and says so in the thread."""
    grow(log, "a", 10)
    grow(log, "b", 3)
    intact = states(log, "a"), states(log, "b")
    record = get_record(log.storage, 1, 11)
    set_record(log.storage, 1, 11, record[:-1] + bytes([record[-1] ^ 1]))

    def check(new: Log, report: RepairReport) -> None:
        [thread] = report.repaired
        assert (thread.number, thread.thread_id, thread.events, thread.rewritten) == (1, "a", 21, True)
        assert [(loss.first, loss.last) for loss in thread.lost] == [(11, 11)]
        kept = states(new, "a")
        assert kept.items() <= intact[0].items()
        # Event 11 is the fifth step; the steps after it are based on it, and their bases' bases are.
        assert sorted(kept) == ["0", "1", "2", "3"]
        assert len(thread.left_out) == 5
        assert states(new, "b") == intact[1]
        _, first = next(new.thread("a").events())
        assert isinstance(first, ThreadPruned)
        assert (first.thread_id, first.through, first.lost) == ("a", 22, ((11, 11),))
        assert "event 11" in str(report)

    repaired(forget(log, path), check)


def test_damaged_writes(log: Log, path: Path) -> None:
    """Without writes that are lost, the steps are kept whose states do not hold what was written there."""
    grow(log, "a", 6)
    intact = states(log, "a")
    set_record(log.storage, 1, 6, None)  # the second step's writes, which the third takes over

    def check(new: Log, report: RepairReport) -> None:
        [thread] = report.repaired
        assert thread.lost == (Loss(6, 6, "nothing that is left holds it"),)
        assert [loss.first for loss in thread.left_out] == [7]
        kept = states(new, "a")
        assert sorted(kept) == ["0", "1", "3", "4", "5"]
        assert {name: kept[name] for name in kept if name != "1"} == {
            name: intact[name] for name in kept if name != "1"
        }

    repaired(forget(log, path), check)


def test_state_that_a_segment_keeps(log: Log, path: Path) -> None:
    """A step whose base is lost is restated in full where its state is kept and all its content is there."""
    thread = log.thread("a")
    base = thread.append([step("first", {"c": noise()})])
    for count in range(80):
        state = thread.state()
        assert state is not None
        base = thread.append([step(str(count), {"c": noise()}, base=base, old=state.values)])
        if count == 39:
            log.seal()
    log.seal()
    [(_, middle, _), (_, last, _)] = log.storage.segments(1)
    assert last in log.storage.bases(1)
    intact = states(log, "a")
    segment = get_segment(log.storage, 1, middle)
    # The second segment stands in a group of its own, so that it can be read without the first.
    records = log.storage.scan(1, middle, last + 1, 1 << 20, reverse=False)
    alone, _ = pack(1, records, log.storage.bases(1), Group())
    set_segment(log.storage, 1, last, alone)
    set_segment(log.storage, 1, middle, segment[:-1] + bytes([segment[-1] ^ 1]))

    def check(new: Log, report: RepairReport) -> None:
        [found] = report.repaired
        assert [loss[:2] for loss in found.lost] == [(1, middle)]
        assert states(new, "a") == {"79": intact["79"]}
        assert len(found.left_out) == 39

    repaired(forget(log, path), check)


def test_damaged_segment_whose_records_are_found(log: Log, path: Path) -> None:
    """Records that an old page still holds take the place of a damaged segment: the thread is whole again."""
    for _ in range(4):
        grow(log, "a", 10)
        log.seal("a")
    grow(log, "a", 2)
    told = [*log.thread("a").events()]
    last = log.storage.segments(1)[-1][1]
    segment = get_segment(log.storage, 1, last)
    set_segment(log.storage, 1, last, segment[:-1] + bytes([segment[-1] ^ 1]))

    def check(new: Log, report: RepairReport) -> None:
        [thread] = report.repaired
        assert (thread.rewritten, thread.found, thread.lost) == (False, 20, ())
        assert [*new.thread("a").events()] == told

    repaired(path, check)


def test_wrong_hash_chain(log: Log, path: Path) -> None:
    """A hash chain that is wrong in one record is computed anew, and the thread is whole."""
    grow(log, "a", 5)
    row = log.thread("a").row()
    record = bytearray(get_record(log.storage, 1, 5))
    record[fmt.HEADER_BYTES - 1] ^= 1
    set_record(log.storage, 1, 5, bytes(record))

    def check(new: Log, report: RepairReport) -> None:
        [thread] = report.repaired
        assert (thread.rewritten, thread.mended, thread.lost) == (False, 1, ())
        found = new.thread("a").row()
        assert row is not None
        assert found is not None
        assert found.chain == row.chain

    repaired(forget(log, path), check)


def test_lost_tombstone(log: Log, path: Path) -> None:
    """A deleted thread whose tombstone is lost stays deleted, and its number is not used again."""
    grow(log, "a", 3)
    grow(log, "b", 3)
    log.thread("b").delete()
    row = [*log.storage.event_threads()]
    assert row == [1, 2]
    set_record(log.storage, 2, 9, None)

    def check(new: Log, report: RepairReport) -> None:
        [thread] = report.repaired
        assert (thread.number, thread.thread_id, thread.rewritten) == (2, None, True)
        assert [summary.thread_id for summary in new.threads()] == ["a"]
        assert new.storage.event_threads() == [1, 2]
        assert "deleted" in str(thread)

    repaired(forget(log, path), check)


def test_status_and_labels(log: Log, path: Path) -> None:
    """A thread with a gap keeps its labels, and has come to what its newest intact step and the writes for it say."""
    for name in ("a", "b"):
        log.thread(name).label({"user": name, "tier": 1})
        grow(log, name, 2)
        log.thread(name).append([WritesRecorded("1", "asks", "", (), status=Status.INTERRUPTED)], labels={"tier": 2})
    set_record(log.storage, 1, 1, None)

    def check(new: Log, report: RepairReport) -> None:
        assert [thread.number for thread in report.repaired] == [1]
        for name in ("a", "b"):
            (found,) = new.threads(labels={"user": name, "tier": 2}, status="interrupted", prefix=name)
            assert found.labels == {"tier": 2, "user": name}
        assert [found.thread_id for found in new.threads()] == ["a", "b"]

    repaired(forget(log, path), check)


def test_lost_names(log: Log, path: Path) -> None:
    """Names come from the table of names where their events are lost, and are new where that is lost too."""
    for name in ("a", "b", "c"):
        grow(log, name, 2)
    for number in (1, 2, 3):
        set_record(log.storage, number, 1, None)
        set_record(log.storage, number, 2, None)
    set_row(log.storage, NAMES, fmt.name_key(THREAD_NAMES, b"b"), None)
    set_row(log.storage, NAMES, fmt.name_key(3, b""), None)

    def check(new: Log, report: RepairReport) -> None:
        names = list(new.all_threads())
        assert names == ["a", "lost-name-2", "c"]
        assert [thread.lost_names for thread in report.repaired] == [(), ("lost-name-2",), ("lost-lane-1",)]
        assert [thread.lost[0][:2] for thread in report.repaired] == [(1, 2)] * 3
        assert sorted(states(new, "a")) == ["0", "1"]

    repaired(forget(log, path), check)


def test_all_events_of_a_thread_are_lost(log: Log, path: Path) -> None:
    """A thread of which only the catalogue knows begins anew, empty, behind its old sequences."""
    grow(log, "a", 3)
    for sequence in range(1, 9):
        set_record(log.storage, 1, sequence, None)

    def check(new: Log, report: RepairReport) -> None:
        [thread] = report.repaired
        assert (thread.events, [loss[:2] for loss in thread.lost]) == (0, [(1, 8)])
        [(sequence, first)] = [*new.thread("a").events()]
        assert isinstance(first, ThreadPruned)
        assert sequence == 9

    repaired(forget(log, path), check)


@pytest.mark.parametrize("pages", [(0, 1), (0,), (1,)])
def test_meta_pages(log: Log, path: Path, pages: tuple[int, ...]) -> None:
    """Without either meta page, or both, everything is found."""
    grow(log, "a", 12)
    log.seal()
    grow(log, "b", 4)
    rows = {key: value for key, value in all_rows(log.storage).items() if key[0] not in (THREADS, NAMES)}
    log.close()
    data = bytearray(path.read_bytes())
    for page in pages:
        data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(data)

    def check(new: Log, report: RepairReport) -> None:
        assert all_rows(new.storage).items() >= rows.items()
        assert report.damage

    repaired(path, check)


def test_what_was_deleted_does_not_come_back(log: Log, path: Path) -> None:
    """Old versions of pages hold deleted threads and pruned events: none of them is taken, whatever page is damaged."""
    for name in ("a", "gone", "pruned"):
        grow(log, name, 12)
    log.thread("gone").delete()
    log.thread("pruned").prune([next(log.thread("pruned").steps()).sequence])
    grow(log, "a", 3)
    kept = {name: states(log, name) for name in ("a", "pruned")}
    log.close()
    data = path.read_bytes()
    for page in range(2, len(data) // PAGE_BYTES):
        damaged, into = path.with_name(f"damaged-{page}"), path.with_name(f"repaired-{page}")
        damaged.write_bytes(data[: page * PAGE_BYTES] + bytes(PAGE_BYTES) + data[(page + 1) * PAGE_BYTES :])
        repair(damaged, into)
        with Log.open(into, read_only=True) as new:
            assert new.audit().breaches == []
            assert {summary.thread_id for summary in new.threads()} == {"a", "pruned"}
            for name, intact in kept.items():
                assert states(new, name).keys() <= intact.keys()


def test_open_log(log: Log, path: Path, tmp_path: Path) -> None:
    """An open log is repaired as it is, while appends wait."""
    grow(log, "a", 3)
    began, ended = threading.Event(), threading.Event()

    def append() -> None:
        grow(log, "a", 1)
        ended.set()

    writer = threading.Thread(target=append)

    def progress(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if not began.is_set():
            began.set()
            writer.start()
        assert not ended.is_set()

    report = log.repair(tmp_path / "new", progress=progress)
    writer.join()
    assert (report.events, log.audit().events) == (8, 10)


def test_nothing_is_left_of_a_repair_that_ends_early(log: Log, path: Path) -> None:
    """A repair that is interrupted leaves no file behind, and the damaged one as it was."""
    grow(log, "a", 3)
    log.close()
    before = path.read_bytes()

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "deriving tables":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(path, path.with_suffix(".new"), progress=interrupt)
    assert sorted(os.listdir(path.parent)) == ["log", "log-lock"]
    assert path.read_bytes() == before


def test_what_a_killed_repair_left_is_no_part_of_the_next(log: Log, path: Path) -> None:
    """A repair begins with nothing, whatever a killed one left in the place where it writes, and cleans up."""
    grow(log, "a", 3)
    target = path.with_suffix(".new")
    left = Path(f"{target}-unfinished")
    with Log.open(left) as other:
        grow(other, "stranger", 3)
    report = repair(path, target)
    assert (report.threads, report.repaired) == (1, ())
    with Log.open(target) as new:
        assert [thread.thread_id for thread in new.threads()] == ["a"]
        assert new.audit().breaches == []
    assert sorted(os.listdir(path.parent)) == ["log", "log-lock", "log.new", "log.new-lock"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_permissions(log: Log, path: Path) -> None:
    """Nobody may read the new log who might not read the damaged one, at no moment."""
    grow(log, "a", 3)
    path.chmod(0o600)
    target = path.with_suffix(".new")
    modes = []

    def look(what: str, done: int, total: int) -> None:
        if what == "deriving tables":
            modes.append(Path(f"{target}-unfinished").stat().st_mode & 0o777)

    repair(path, target, progress=look)
    assert {*modes, target.stat().st_mode & 0o777} == {0o600}


def test_a_new_log_that_outgrows_its_map(log: Log, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map of the new log grows like any other."""
    for number in range(8):
        log.thread(f"t{number}").append([step("s0", {"x": noise(200_000)})])
    log.close()
    monkeypatch.setattr(opening, "_FIRST_MAP_BYTES", 1 << 18)

    def check(new: Log, report: RepairReport) -> None:
        assert (report.threads, report.repaired) == (8, ())

    repaired(path, check)


def test_open_log_by_a_relative_path(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the file is repaired that has the log's path in another directory than it was opened in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with Log.open("elsewhere/relative") as other:
        grow(other, "other", 1)
    with Log.open("relative") as log:
        grow(log, "a", 1)
        monkeypatch.chdir(tmp_path / "elsewhere")
        log.repair("repaired")
    with Log.open("repaired") as new:
        assert [thread.thread_id for thread in new.threads()] == ["a"]


def test_a_file_that_is_written_to_meanwhile(log: Log, path: Path) -> None:
    """If somebody commits to the damaged file while it is read, there is no new log but an error."""
    grow(log, "a", 3)

    def commit(what: str, done: int, total: int) -> None:
        if what == "deriving tables":
            grow(log, "a", 1)

    with pytest.raises(ConflictError, match="close all logs"):
        repair(path, path.with_suffix(".new"), progress=commit)
    assert not path.with_suffix(".new").exists()


def test_refusals(log: Log, path: Path, tmp_path: Path) -> None:
    """A target that exists, a source that does not, what is no log and a log in memory are refused; nothing is made."""
    grow(log, "a", 1)
    other = tmp_path / "other"
    other.write_bytes(b"text, and no log at all" * 1000)
    with pytest.raises(UsageError, match="already"):
        repair(path, other)
    assert other.read_bytes().startswith(b"text")
    with pytest.raises(UsageError, match="no file"):
        repair(tmp_path / "missing", tmp_path / "new")
    with pytest.raises(NotALogError):
        repair(other, tmp_path / "new")
    with Log.open(":memory:") as memory, pytest.raises(UsageError, match="memory"):
        memory.repair(tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["log", "log-lock", "other"]


def test_report_as_text() -> None:
    """A report reads as what happened, thread by thread, and does not run on."""
    thread = ThreadRepair(3, "trip", ("lost-lane-2",), 9, (Loss(4, 6, "why"),), (Loss(7, 7, "that"),) * 2, True, 1, 1)
    text = str(RepairReport("old", "new", 5, 40, (thread,), ("page 7 is no leaf of a tree",) * 30))
    assert text.splitlines()[:4] == [
        "old was repaired into new",
        "threads: 5, of which 4 are as they were",
        "events: 40; lost: 3; left out: 2",
        "thread 3 ('trip'): 9 events could be proven",
    ]
    assert "lost: events 4 to 6: why" in text
    assert "left out: 2 that were not lost: that" in text
    assert len(text.splitlines()) < 40


def test_parts_that_are_beside_each_other(log: Log, path: Path) -> None:
    """A segment of which one part is lost for good is lost with the rest of its group, and with nothing else."""
    for _ in range(3):
        grow(log, "a", 10)
        log.seal("a")
    grow(log, "b", 5)
    intact = states(log, "b")
    first, last, _ = log.storage.segments(1)[1]
    parts = [key for key in all_rows(log.storage) if key[0] == SEGMENTS and key[1].startswith(fmt.event_key(1, last))]
    set_row(log.storage, SEGMENTS, parts[0][1], noise(4080))

    def check(new: Log, report: RepairReport) -> None:
        assert [thread.number for thread in report.repaired] == [1]
        [thread] = report.repaired
        assert states(new, "b") == intact
        assert [loss[:2] for loss in thread.lost] == [(first, log.storage.segments(1)[-1][1])]

    repaired(forget(log, path), check)


def test_newer_format(log: Log, path: Path) -> None:
    """A log of a newer format is not taken for a damaged one; a byte that only looks like it is damage."""
    grow(log, "a", 2)
    record = get_record(log.storage, 1, 3)
    set_record(log.storage, 1, 3, b"\x09" + record[1:])
    copy = forget(log, path)
    assert repair(copy, copy.with_suffix(".new")).repaired[0].lost[0][:2] == (3, 3)
    format_ = LogFormat(9, 9, log.storage.log_id)
    set_row(log.storage, META, b"format", msgspec.msgpack.encode(format_))
    with pytest.raises(NewerFormatError, match="upgrade"):
        repair(path, path.with_suffix(".new"))
    assert not path.with_suffix(".new").exists()


def test_a_deletion_that_spared_an_item_spares_it_again(log: Log, path: Path) -> None:
    """What had not expired when its expiry was looked at is there after a repair, whatever other change is lost."""
    put = log.items.submit([ItemPut(("a",), "kept", Blob("text", b"v"), expires_at=100)]).result()
    log.items.submit([ItemTouched(("a",), "kept", Sequence(put.sequences[0]), 1000)]).result()
    log.items.submit([ItemDeleted(("a",), "kept", expired_by=200)]).result()
    lost = log.items.submit([ItemPut(("a",), "lost", Blob("text", b"v"))]).result().sequences[0]
    log.items.submit([ItemPut(("a",), "gone", Blob("text", b"v"), expires_at=100)]).result()
    log.items.submit([ItemDeleted(("a",), "gone", expired_by=200)]).result()
    record = get_record(log.storage, 1, lost)
    set_record(log.storage, 1, lost, record[:-1] + bytes((record[-1] ^ 1,)))

    def check(new: Log, report: RepairReport) -> None:
        assert [(item.key, item.expires_at) for item in new.items.scan()] == [("kept", 1000)]
        assert "thread 1 (items)" in str(report)

    repaired(forget(log, path), check)


def test_a_name_that_was_given_again(log: Log, path: Path) -> None:
    """A thread under whose name another one was opened was deleted, whatever else is lost."""
    grow(log, "a", 2)
    first = {key: value for key, value in all_rows(log.storage).items() if key[0] == EVENTS}
    log.thread("a").delete()
    grow(log, "a", 3)
    intact = states(log, "a")
    set_record(log.storage, 1, 7, None)
    for (table, key), value in first.items():
        set_row(log.storage, table, key, value)
    set_row(log.storage, THREADS, fmt.number_key(1), None)

    def check(new: Log, report: RepairReport) -> None:
        [thread] = report.repaired
        assert (thread.number, thread.thread_id) == (1, None)
        assert states(new, "a") == intact

    repaired(forget(log, path), check)


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_no_file(tmp_path: Path, kind: str) -> None:
    """What is there but is no file is no log, and nobody waits for it."""
    path = tmp_path / "there"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(NotALogError, match="no file"):
        repair(path, tmp_path / "new")


def test_the_thread_of_items_is_told_as_such() -> None:
    """A report names no thread that nobody can have made."""
    report = str(ThreadRepair(9, fmt.ITEMS_THREAD_ID, (), 5, (), (), rewritten=False, found=1, mended=0))
    assert report.startswith("thread 9 (items): 5 events")
    assert "\\x00" not in report
