"""What a log tells about itself, and what a walk over it finds its bytes to be for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from building import append, noise, sealing, set_record, step, wrote
from stepwell import (
    Histogram,
    ItemDeleted,
    ItemPut,
    Log,
    LogStats,
    Sequence,
    UsageError,
    WritesRecorded,
    measuring,
)
from stepwell import format as fmt
from stepwell.patch import Blob
from stepwell.statistics import GROUP_SIZES, SECONDS, Tally
from stepwell.storage import ordered
from stepwell.storage.lmdb import LmdbStorage
from stepwell.storage.lmdb.tables import LmdbTables
from stepwell.storage.occupancy import Reader
from stepwell.storage.ordered import TableStorage
from stepwell.storage.tables import ALL

# Reads the log at one moment until it is killed, as no call of ours does.
READER = """
import sys, time
from stepwell import Log

log = Log.open(sys.argv[1], read_only=True)
with log.storage._open_environment().transaction(write=False):
    print("reading", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file_log(tmp_path: Path) -> Iterator[Log]:
    """An empty log in a file."""
    with Log.open(tmp_path / "agents.stepwell") as opened:
        yield opened


# --- stats ---


def test_of_an_empty_log(log: Log) -> None:
    """A log that nothing was written to says so."""
    stats = log.stats()
    assert (stats.commit, stats.threads, stats.readers, stats.oldest_reader) == (0, 0, 0, None)
    assert stats.tables.keys() == set(ALL)
    assert stats.writer.groups == stats.writer.events == stats.writer.commit_seconds.count == 0
    assert stats.writer.commit_seconds.mean == stats.writer.commit_seconds.quantile(0.99) == 0
    assert stats.cache.most_bytes == log.cache.most_bytes


def test_of_what_was_written(log: Log) -> None:
    """Rows, commits, appends, events and bytes are those that were written."""
    for number in range(30):
        log.thread(f"t{number % 5}").append([step(f"s{number}", {"x": noise()}), wrote(f"s{number}")])
    log.thread("t0").delete()
    stats = log.stats()
    assert (stats.commit, stats.threads) == (31, 5)
    assert stats.tables["events"].rows == 4 * (12 + 2) + 1
    assert stats.writer.appends == 30
    assert stats.writer.events == 60
    own = 4 * 2 * 100  # a thread and a lane are opened, in about so many bytes each
    kept = sum(summary.stored_bytes for summary in log.threads())
    assert kept - own < stats.writer.stored_bytes * 4 / 5 < kept
    assert stats.writer.groups == stats.writer.group_sizes.count == stats.writer.commit_seconds.count == 31
    assert stats.writer.group_sizes.total == 31
    assert 0 < stats.writer.commit_seconds.mean < 10
    assert stats.cache.size_bytes == log.cache.size_bytes > 0
    log.seal()
    assert log.stats().tables["events"].rows == 1  # what is left of the deleted thread
    assert log.stats().tables["segments"].rows > 0


def test_items_that_were_written(log: Log) -> None:
    """Changes of items count as what is appended, with the bytes of their records."""
    for number in range(5):
        log.items.submit([ItemPut(("a",), "k", Blob("t", noise(1000))), ItemDeleted(("a",), f"{number}")]).result()
    stats, row = log.stats().writer, log.storage.thread("\0stepwell.items")
    assert (stats.appends, stats.events) == (5, 10)
    assert row is not None
    assert row.stored_bytes - 200 < stats.stored_bytes < row.stored_bytes


def test_of_the_file(file_log: Log) -> None:
    """What the file takes is what the system says, and its pages are those of the tables, or free."""
    path = Path(file_log.path)
    for number in range(50):
        file_log.thread(f"t{number}").append([step("s", {"x": noise(5000)})])
    full = file_log.stats().file
    assert full is not None
    for number in range(45):
        file_log.thread(f"t{number}").delete()
    stats = file_log.stats()
    file = stats.file
    assert file is not None
    status = path.stat()
    assert (file.length_bytes, file.disk_bytes) == (status.st_size, status.st_blocks * 512)
    assert 0 < file.used_bytes <= file.length_bytes
    assert 2 * full.free_bytes < file.free_bytes < file.used_bytes
    in_tables = sum(table.stored_bytes for table in stats.tables.values())
    assert file.used_bytes - file.free_bytes - in_tables in range(3 * 4096, 6 * 4096)  # meta pages, list of tables
    assert file.map_bytes == 1 << 34
    assert (1 << 40) - file.used_bytes - (1 << 22) <= file.headroom_bytes < 1 << 40
    assert file.disk_free_bytes is None or file.disk_free_bytes > 0


def test_the_oldest_reader(file_log: Log) -> None:
    """Who reads an old state is told by its process, and by how many commits it has missed; who died is not."""
    file_log.thread("t").append([step("a")])
    command = [sys.executable, "-c", READER, file_log.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for number in range(7):
                file_log.thread("t").append([step(f"{number}")])
            assert isinstance(file_log.storage, LmdbStorage)
            with file_log.storage._open_environment().transaction(write=False):
                file_log.thread("t").append([step("b")])
                stats = file_log.stats()
        finally:
            process.kill()
    assert stats.readers == 2
    assert stats.oldest_reader == Reader(process.pid, 8)
    assert file_log.stats().readers == 0


def test_of_one_moment(file_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of any size is asked as much: what `stats` looks at does not grow with what is stored."""
    looks = 0
    for name in ("get", "scan", "scan_back", "next_key", "previous_key", "neighbours"):

        def counting(*args: object, method: object = getattr(LmdbTables, name)) -> object:
            nonlocal looks
            looks += 1
            return method(*args)  # type: ignore[operator]

        monkeypatch.setattr(LmdbTables, name, counting)
    counts = []
    for threads in (1, 200):
        for number in range(threads):
            file_log.thread(f"t{number}").append([step(f"s{threads}", {"x": noise()})])
        looks = 0
        file_log.stats()
        counts.append(looks)
    assert counts[0] == counts[1] < 10


def test_while_others_write(log: Log) -> None:
    """Counts only grow, and add up to what was written, whoever looks meanwhile."""
    seen: list[LogStats] = []

    def write(name: str) -> None:
        for number in range(40):
            log.thread(name).append([step(f"s{number}")])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(log.stats())
    for thread in threads:
        thread.join()
    writer = log.stats().writer  # what was acknowledged is counted
    assert (writer.appends, writer.events, writer.group_sizes.total) == (240, 240, 240)
    events = [stats.writer.events for stats in seen]
    assert events == sorted(events)


def test_failed_groups(log: Log) -> None:
    """An append that is refused is in a group that was committed, and is no append that was."""
    with pytest.raises(Exception, match="somebody else"):
        log.thread("t").append([step("a")], expected_head=3)
    writer = log.stats().writer
    assert (writer.groups, writer.failed_groups, writer.appends, writer.events) == (1, 0, 0, 0)


def test_what_is_kept_is_not_written_anew(log: Log) -> None:
    """A pruning, a deletion and a sealing are groups, but no appends."""
    log.thread("t").append([step("a"), step("b")])
    log.seal()
    log.thread("t").prune([4])
    log.thread("t").delete()
    writer = log.stats().writer
    assert (writer.groups, writer.appends, writer.events) == (4, 1, 2)


def test_of_a_file_that_went_away(tmp_path: Path) -> None:
    """A file that was renamed while it is open is told, not measured."""
    path = tmp_path / "agents.stepwell"
    with Log.open(path) as log:
        log.thread("t").append([step("a")])
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(UsageError, match="renamed"):
            log.stats()


def test_histogram() -> None:
    """A histogram counts each size once, in the first bucket that holds it, and names a bound for each share."""
    tally = Tally()
    for seconds, size in ((0.0001, 1), (0.00011, 2), (0.003, 3), (0.004, 1024), (100.0, 5000)):
        tally.group(seconds, size)
        tally.append(2, 3)
    stats = tally.stats()
    assert (stats.groups, stats.appends, stats.events, stats.stored_bytes) == (5, 5, 10, 15)
    found = dict(zip((*SECONDS, None), stats.commit_seconds.counts, strict=True))
    assert {bound: count for bound, count in found.items() if count} == {0.0001: 1, 0.0002: 1, 0.005: 2, None: 1}
    found = dict(zip((*GROUP_SIZES, None), stats.group_sizes.counts, strict=True))
    assert {bound: count for bound, count in found.items() if count} == {1: 1, 2: 1, 4: 1, 1024: 1, None: 1}
    assert stats.group_sizes.mean == pytest.approx(6030 / 5)
    assert [stats.commit_seconds.quantile(share) for share in (0.1, 0.2, 0.4, 0.8)] == [0.0001, 0.0001, 0.0002, 0.005]
    assert stats.commit_seconds.quantile(1) == float("inf")
    assert Histogram((1.0,), (0, 0), 0.0).mean == 0


# --- measure ---


def fill(log: Log) -> dict[str, bytes]:
    """Three threads, of different sizes; the content of each channel that was written first."""
    contents = {"messages": noise(3000), "notes": noise(1000)}
    for name, steps in (("large", 40), ("small", 3), ("other", 10)):
        thread = log.thread(name)
        for number in range(steps):
            thread.append([step(f"s{number}", contents, fields={"metadata": b"m" * 100}), wrote(f"s{number}", [b"w"])])
    return contents


def test_what_the_bytes_are_for(log: Log) -> None:
    """Each byte that an event holds is counted once, for its channel; what it refers to, for that as shared."""
    contents = fill(log)
    found = log.measure()
    assert found.threads == 3
    assert {name: kind.events for name, kind in found.kinds.items()} == {
        "StepCommitted": 53,
        "WritesRecorded": 53,
        "ThreadOpened": 3,
        "LaneOpened": 3,
    }
    for name, content in contents.items():
        size = found.channels[name]
        assert size == (53, 3 * len(content), 50 * len(content))
    assert found.channels["x"] == (53, 53, 0)
    assert found.fields["metadata"] == (53, 3 * 100, 50 * 100)
    assert list(found.channels) == ["messages", "notes", "x"]
    assert [size.thread_id for size in found.largest] == ["large", "other", "small"]
    summary = log.thread("large").summary()
    assert summary is not None
    assert found.largest[0] == ("large", summary.events, summary.stored_bytes)
    assert found.damaged == 0
    assert log.measure(largest=1).largest == found.largest[:1]


def test_compression(log: Log) -> None:
    """Loose and sealed events are told apart, and both add up to the catalogue; sealing changes no plain byte."""
    fill(log)
    before = log.measure()
    assert before.sealed == (0, 0, 0)
    assert before.sealed.ratio == 0
    stored = sum(summary.stored_bytes for summary in log.threads())
    assert before.loose.stored_bytes == stored
    assert before.loose.events == sum(kind.events for kind in before.kinds.values()) == 112
    assert before.loose.plain_bytes == sum(kind.plain_bytes for kind in before.kinds.values())
    log.seal("large")
    between = log.measure()
    assert (between.loose.events, between.sealed.events) == (112 - 82, 82)
    assert between.loose.plain_bytes + between.sealed.plain_bytes == before.loose.plain_bytes
    sealed = sum(size for _, _, size in log.storage.segments(1))
    assert between.sealed.stored_bytes == sealed
    assert 0 < between.sealed.ratio == sealed / between.sealed.plain_bytes
    log.seal()
    after = log.measure()
    assert after.loose == (0, 0, 0)
    assert (after.kinds, after.channels, after.fields) == (before.kinds, before.channels, before.fields)


def test_one_thread(log: Log) -> None:
    """One thread can be measured by itself; one that does not exist is nothing."""
    fill(log)
    found = log.measure("small")
    assert (found.threads, found.loose.events) == (1, 8)
    assert [size.thread_id for size in found.largest] == ["small"]
    nothing = log.measure("nobody")
    assert (nothing.threads, nothing.kinds, nothing.largest) == (0, {}, [])


def test_progress(log: Log) -> None:
    """It is told how far it has come, up to the end."""
    fill(log)
    told: list[tuple[str, int, int]] = []
    log.measure(progress=lambda *each: told.append(each))
    assert told[-1] == ("measuring events", 112, 112)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})


def test_items_are_measured(log: Log) -> None:
    """Items are measured as what they are, and are no thread."""
    fill(log)
    before = log.measure()
    beside = {"f32": Blob("f32", b"v" * 40)}
    log.items.submit([ItemPut(("users",), "k", Blob("text", noise(5000)), None, beside)]).result()
    log.items.submit([ItemDeleted(("users",), "k")]).result()
    found = log.measure(largest=10)
    assert found.threads == before.threads
    row = log.storage.thread(fmt.ITEMS_THREAD_ID)
    assert row is not None
    assert (before.items, found.items) == ((0, 0, 0, 0), (2, 5040, 0, row.stored_bytes))
    assert found.channels == before.channels
    assert {found.kinds[kind].events for kind in ("ItemPut", "ItemDeleted")} == {1}
    assert found.largest == before.largest


def test_bounded_memory(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages end with so many bytes, and names are held up to a number of them: the sums stay."""
    fill(log)
    expected = log.measure()
    pages: list[int] = []
    survey = TableStorage.survey

    def noted(self: TableStorage, thread: int, after: int, limit: int) -> list[object]:
        page = survey(self, thread, after, limit)
        pages.append(len(page))
        return list(page)

    monkeypatch.setattr(TableStorage, "survey", noted)
    monkeypatch.setattr(ordered, "PAGE_BYTES", 500)
    monkeypatch.setattr(measuring, "MOST_NAMES", 1)
    found = log.measure()
    assert max(pages) < 20
    assert found.kinds == expected.kinds
    assert len(found.channels) == len(found.fields) == 1
    sizes = [*found.channels.values(), *found.fields.values(), found.other_content]
    wanted = [*expected.channels.values(), *expected.fields.values()]
    assert sum(size.new_bytes for size in sizes) == sum(size.new_bytes for size in wanted)


def test_nothing_is_open(file_log: Log) -> None:
    """Whoever measures holds no reader while it tells how far it has come, and others append meanwhile."""
    fill(file_log)
    readers: list[int] = []

    def look(what: str, done: int, total: int) -> None:
        readers.append(file_log.stats().readers)
        file_log.thread("late").append([step(f"{done}")])

    assert file_log.measure("large", progress=look).loose.events == 82
    assert set(readers) == {0}


def test_damage_is_counted(damaged_log: Log) -> None:
    """Events that are damaged are left out and counted, and the rest is measured."""
    fill(damaged_log)
    set_record(damaged_log.storage, 1, 7, b"damaged")
    found = damaged_log.measure()
    assert found.damaged == 1
    assert found.loose.events == 111


def test_storages_agree(storage: TableStorage) -> None:
    """What an engine tells of its tables is what is in them."""
    storage.commit([append("t", step("a"), wrote("a")), append("u", step("a"))])
    storage.commit([sealing(storage, "t")])
    tables = storage.occupancy().tables
    rows = {"events": 3, "segments": 1, "threads": 2, "names": 4, "lanes": 2, "index": 2, "feed": 1}
    assert {name: table.rows for name, table in tables.items() if name in rows} == rows


def test_writes_are_of_their_channels(log: Log) -> None:
    """What tasks wrote is counted for the channel that they wrote to."""
    event = wrote("a", [noise(700), noise(200)])
    assert isinstance(event, WritesRecorded)
    assert log.thread("t").append([event]) == Sequence(3)
    assert log.measure().channels == {"x": (2, 900, 0)}
