"""Items: what callers see, with either engine; tests/property/test_items_machine.py holds them against a model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import astuple, replace

from building import noise, set_record, set_row, step
from stepwell import (
    ClosedError,
    Commit,
    ConflictError,
    CorruptionError,
    Deletion,
    Item,
    ItemDeleted,
    ItemPut,
    ItemTouched,
    Log,
    ReadOnlyError,
    Sequence,
    UsageError,
    parse,
)
from stepwell import format as fmt
from stepwell.events import ItemEvent
from stepwell.folding import SEALED_ITEMS
from stepwell.patch import Array, Blob, New, Ref, Value
from stepwell.storage import segments
from stepwell.storage.checksums import CheckedTables
from stepwell.storage.held import Held
from stepwell.storage.items import LARGEST_VALUE_IN_ROW_BYTES, VERSIONS_IN_ROW
from stepwell.storage.records import Records
from stepwell.storage.tables import EXPIRIES, ITEMS, VERSIONS

ADA = ("users", "ada")


def put(
    key: str = "k",
    value: bytes = b"v",
    *,
    at: tuple[str, ...] = ADA,
    expires_at: int | None = None,
    created_at: int = 0,
    **attachments: bytes,
) -> ItemPut:
    """An item with a value."""
    beside: dict[str, Value] = {name: Blob("f32", payload) for name, payload in attachments.items()}
    return ItemPut(at, key, parse("json", value), expires_at, beside, created_at)


def done(log: Log, *changes: ItemEvent) -> int:
    """Submit changes; their commit."""
    return log.items.submit(changes).result().commit


def _number(number: int) -> bytes:
    return b"%d" % number


def placed(log: Log, change: ItemEvent) -> tuple[Commit, Sequence]:
    """Submit one change; its commit, and where it stands."""
    committed = log.items.submit([change]).result()
    return Commit(committed.commit), Sequence(committed.sequences[0])


def done_each(log: Log, changes: Iterable[ItemEvent]) -> list[int]:
    """Submit changes one by one, and wait for all of them; their commits."""
    return [ticket.result().commit for ticket in [log.items.submit([change]) for change in changes]]


def value(log: Log, key: str = "k", *, at: int | None = None, namespace: tuple[str, ...] = ADA) -> bytes | None:
    """The payload of an item."""
    item = log.items.get(namespace, key, at=at)
    return None if item is None else item.value[1]


def keys(log: Log, *prefix: str, at: int | None = None) -> set[tuple[tuple[str, ...], str]]:
    """The names of what a scan gives, none of them twice."""
    found = [(item.namespace, item.key) for item in log.items.scan(prefix, at=at)]
    assert len(found) == len(set(found))
    return set(found)


# --- now ---


def test_nothing(log: Log) -> None:
    """A log without items answers every question with nothing."""
    assert value(log) is None
    assert value(log, at=7) is None
    assert list(log.items.scan()) == []
    assert list(log.items.namespaces()) == []
    assert list(log.items.history(ADA, "k")) == []
    assert log.items.expired(1 << 62) == []
    assert (log.items.version(), log.items.commit_at(1 << 62)) == (0, 0)
    assert list(log.items.changes(0) or "none") == []
    log.items.forget(())
    log.items.prune(1)
    assert done(log) == 0
    assert log.items.version() == 0


def test_put_and_get(log: Log) -> None:
    """A value comes back byte for byte, with when and where it was put; putting again keeps when it was created."""
    first = placed(log, put(value=b"one", expires_at=50, created_at=10))
    assert log.items.get(ADA, "k") == Item(ADA, "k", ("json", b"one"), 10, 10, *first, 50)
    again = placed(log, put(value=b"two", created_at=20))
    assert log.items.get(ADA, "k") == Item(ADA, "k", ("json", b"two"), 10, 20, *again, None)
    assert value(log, "other") is None
    assert value(log, namespace=("users",)) is None


def test_deleting(log: Log) -> None:
    """What is deleted is gone, and what is put under its key then is a new item."""
    done(log, put(created_at=10))
    done(log, ItemDeleted(ADA, "k"))
    assert value(log) is None
    assert keys(log) == set()
    assert list(log.items.namespaces()) == []
    done(log, put(created_at=30))
    item = log.items.get(ADA, "k")
    assert item is not None
    assert item.created_at == 30
    done(log, ItemDeleted(ADA, "never there"))


def test_changes_are_done_in_order_and_together(log: Log) -> None:
    """The changes of one call have one commit, and the last one for a key counts."""
    commit = done(log, put(value=b"1"), put("other"), ItemDeleted(ADA, "other"), put(value=b"2"), put("third"))
    assert (value(log), keys(log)) == (b"2", {(ADA, "k"), (ADA, "third")})
    assert (value(log, at=commit), keys(log, at=commit - 1)) == (b"2", set())
    assert [item.commit for item in log.items.scan()] == [commit, commit]


def test_a_refused_call_changes_nothing(log: Log) -> None:
    """Where one change cannot be stored, none is."""
    with pytest.raises(UsageError):
        log.items.submit([put(), put("half \ud800 pair")])
    assert keys(log) == set()


def test_large_values(log: Log) -> None:
    """Values of every size come back, whether or not they stand in the item's row."""
    sizes = (0, 1, 64, LARGEST_VALUE_IN_ROW_BYTES, LARGEST_VALUE_IN_ROW_BYTES + 1, 5000, 300_000)
    contents = {f"k{size}": noise(size) for size in sizes}
    done(log, *(put(key, content) for key, content in contents.items()))
    assert {item.key: item.value[1] for item in log.items.scan()} == contents
    log.seal()
    assert {item.key: item.value[1] for item in log.items.scan()} == contents


def test_content_once(log: Log) -> None:
    """What an item's new value shares with what any item holds already is not stored again."""
    shared = noise(2000)
    map_of = [b"\x82\xa1a\xc5" + len(shared).to_bytes(2) + shared + b"\xa1b\xc4\x40" + noise(64) for _ in range(20)]
    for number, content in enumerate(map_of):
        done(log, ItemPut(ADA, f"k{number % 3}", parse("msgpack", content)))
    assert value(log, "k1") == map_of[19]
    row = log.storage.thread(fmt.ITEMS_THREAD_ID)
    assert row is not None
    assert row.stored_bytes < 2 * len(shared) + 20 * 400


def test_attachments(log: Log) -> None:
    """What was put beside a value is read when it is asked for, in every way of reading."""
    commit = done(log, put(vector=b"1" * 400, other=b""), put("plain"), put("large", noise(3000), vector=b"2"))
    item = log.items.get(ADA, "k")
    assert item is not None
    assert item.attachments == {}
    for at in (None, commit):
        item = log.items.get(ADA, "k", at=at, attachments=True)
        assert item is not None
        assert item.attachments == {"vector": ("f32", b"1" * 400), "other": ("f32", b"")}
        found = {each.key: dict(each.attachments) for each in log.items.scan(at=at, attachments=True)}
        assert (found["plain"], found["large"]) == ({}, {"vector": ("f32", b"2")})
    (version,) = log.items.history(ADA, "large", attachments=True)
    assert isinstance(version, Item)
    assert version.attachments == {"vector": ("f32", b"2")}


def test_what_is_attached_by_sequence(log: Log) -> None:
    """What was put beside values is read by where they were put, whatever they are now; what was pruned is None."""
    same = noise(2000)
    puts = [put("a", vector=same), put("b"), put("c", noise(3000), vector=b"2"), put("d", vector=same)]
    sequences = log.items.submit(puts).result().sequences
    wanted = [same, None, b"2", same]
    for _ in range(2):
        assert log.items.attached(sequences, "vector") == wanted
        assert log.items.attached(sequences, "other") == [None] * 4
        assert log.items.attached(sequences[::-1], "vector") == wanted[::-1]
        log.seal()
    deleted = log.items.submit([ItemDeleted(ADA, "a")]).result().sequences
    assert log.items.attached(sequences, "vector") == wanted
    with pytest.raises(CorruptionError, match="is not what the tables of items say"):
        log.items.attached(deleted, "vector")
    with pytest.raises(CorruptionError, match="the event is missing"):
        log.items.attached([deleted[0] + 1], "vector")
    log.items.prune(1 << 40)
    assert log.items.attached([*sequences, *deleted], "vector") == [None] * 5


def test_many_at_once(log: Log) -> None:
    """Several items come in the order in which they were asked for, None for those that are not there."""
    commit = done(log, put("a", b"1"), put("b", b"2"))
    done(log, put("b", b"3"))
    names = [(ADA, "b"), (ADA, "none"), (ADA, "a"), (ADA, "b")]
    assert [item and item.value[1] for item in log.items.get_many(names)] == [b"3", None, b"1", b"3"]
    assert [item and item.value[1] for item in log.items.get_many(names, at=commit)] == [b"2", None, b"1", b"2"]
    assert log.items.get_many([]) == []


def test_awaiting(log: Log) -> None:
    """A ticket can be awaited; so can many at once."""

    async def puts() -> list[int]:
        tickets = [log.items.submit([put(f"k{number}")]) for number in range(50)]
        return [(await ticket).commit for ticket in tickets]

    commits = asyncio.run(puts())
    assert commits == sorted(set(commits))
    assert len(keys(log)) == 50


# --- scans ---


def test_a_prefix_is_whole_parts(log: Log) -> None:
    """A scan gives the items of a namespace and of those within it, and of no sibling."""
    places = [
        ("alice",),
        ("alice", "a"),
        ("alice", "a", "b"),
        ("alice2",),
        ("alic",),
        ("alice\0",),
        ("",),
        ("b", "alice"),
    ]
    done(log, *(put(at=place) for place in places), put(at=()))
    for prefix in [*places, ("alice", ""), ("a",), ("b",)]:
        wanted = {(place, "k") for place in places if place[: len(prefix)] == prefix}
        assert keys(log, *prefix) == wanted
        assert set(log.items.namespaces(prefix)) == {place for place, _ in wanted}
    assert set(log.items.namespaces()) == {*places, ()}


def test_pages(log: Log) -> None:
    """Scans go on behind any item, there or not, and end at their limit; all in one order."""
    for start in range(0, 1200, 100):
        done(log, *(put(f"k{number}", at=("n", str(number % 7))) for number in range(start, start + 100)))
    everything = [(item.namespace, item.key) for item in log.items.scan()]
    assert len(everything) == len(set(everything)) == 1200
    assert [place for place, _ in everything] == sorted(place for place, _ in everything)
    for place in (0, 5, 511, 512, 1199):
        rest = [(item.namespace, item.key) for item in log.items.scan(after=everything[place], limit=600)]
        assert rest == everything[place + 1 : place + 601]
    done(log, ItemDeleted(*everything[5]))
    assert next(log.items.scan(after=everything[5])).key == everything[6][1]
    assert list(log.items.scan(limit=0)) == []
    assert sum(1 for _ in log.items.scan(("n", "3"))) == len([1 for place, _ in everything if place == ("n", "3")])


def test_going_on_behind_what_is_elsewhere(log: Log) -> None:
    """Whatever a scan is to go on behind, it gives nothing of other namespaces, now and then."""
    names = [((who,), key) for who in ("a", "b", "c") for key in ("1", "2")]
    then = done(log, *(put(key, at=namespace) for namespace, key in names))
    done(log, *(put(key, b"new", at=namespace) for namespace, key in names))
    for at in (None, then):
        for after in [*names, (("b",), "1x"), (("",), ""), (("bb",), "0"), (("b", "x"), "")]:
            found = [(item.namespace, item.key) for item in log.items.scan(("b",), after=after, at=at)]
            order = [(item.namespace, item.key) for item in log.items.scan(at=at)]
            behind = names.index(after) + 1 if after in names else None
            if behind is not None:
                assert found == [name for name in order[behind:] if name[0] == ("b",)]
            assert {namespace for namespace, _ in found} <= {("b",)}


def test_a_scan_of_the_past_shows_one_moment(log: Log) -> None:
    """What is changed between two pages of a scan as of a commit is not in it."""
    done(log, *(put(f"k{number:04}") for number in range(1000)))
    commit = done(log, put("k0000", b"new"))
    scan = log.items.scan(at=commit)
    first = next(scan)
    done(log, *(ItemDeleted(ADA, f"k{number:04}") for number in range(1000)), put("late"))
    assert (first.value[1], len(list(scan))) == (b"new", 999)


def test_texts_that_are_too_long_for_a_key(log: Log) -> None:
    """Long parts, long keys and deep namespaces work as others do, and keep apart what differs at the end."""
    deep = tuple("abcdefghij")
    places = [
        ("x" * 600,),
        ("x" * 600, "y"),
        ("x" * 599 + "z",),
        deep,
        (*deep[:9], "z"),
        deep[:7],
        (*deep[:6], "gh"),
        deep[:6],
        ("é" * 32,),
    ]
    done(log, *(put(key, at=place) for place in places for key in ("k", "k" * 700, "k" * 699 + "z")))
    done(log, *(put("gone", at=place) for place in places))
    commit = done(log, *(ItemDeleted(place, "gone") for place in places))
    everything = {(place, key) for place in places for key in ("k", "k" * 700, "k" * 699 + "z")}
    for prefix in [(), *places, deep[:8], deep[:5], ("x" * 600, "z")]:
        wanted = {name for name in everything if name[0][: len(prefix)] == prefix}
        assert keys(log, *prefix) == keys(log, *prefix, at=commit) == wanted
        assert set(log.items.namespaces(prefix)) == {place for place, _ in wanted}
        gone = {(place, "gone") for place, _ in wanted}
        assert keys(log, *prefix, at=commit - 1) == wanted | gone
    assert all(len(list(log.items.history(place, "gone"))) == 2 for place in places)
    assert value(log, "k" * 700, namespace=deep) == b"v"
    assert value(log, "k" * 701, namespace=deep) is None


# --- the past ---


@pytest.mark.parametrize("sealed", [False, True])
def test_as_of_every_commit(log: Log, sealed: bool) -> None:
    """At each commit there is what was there then, also of items with thousands of versions."""
    moments: list[dict[str, bytes]] = [{}]
    changes: list[ItemEvent] = []
    for number in range(500):
        key = f"k{number % 3}"
        moments.append(dict(moments[-1]))
        if number % 50 == 7 and key in moments[-1]:
            del moments[-1][key]
            changes.append(ItemDeleted(ADA, key))
        else:
            moments[-1][key] = b"%d" % number
            changes.append(put(key, moments[-1][key]))
    expected = dict(zip(done_each(log, changes), moments[1:], strict=True))
    if sealed:
        log.seal()
    for commit, then in expected.items():
        assert {item.key: item.value[1] for item in log.items.scan(at=commit)} == then
        assert [value(log, f"k{number}", at=commit) for number in range(3)] == [then.get(f"k{n}") for n in range(3)]


def test_history(log: Log) -> None:
    """All versions of an item come newest first, the deletions between them, each with what it was."""
    one = placed(log, put(value=b"1", created_at=1, expires_at=9))
    done(log, put("other"))
    log.items.submit([put(value=b"2", created_at=2)]).result()
    gone = placed(log, ItemDeleted(ADA, "k", created_at=3))
    four = placed(log, put(value=noise(2000), created_at=4))
    found = list(log.items.history(ADA, "k"))
    assert [type(each) for each in found] == [Item, Deletion, Item, Item]
    assert found[1] == Deletion(ADA, "k", 3, *gone)
    assert found[3] == Item(ADA, "k", ("json", b"1"), 1, 1, *one, 9)
    assert [each.created_at for each in found if isinstance(each, Item)] == [4, 1, 1]
    assert found[0].commit == four[0]
    done(log, ItemDeleted(ADA, "k"))
    assert len(list(log.items.history(ADA, "k"))) == 5
    assert list(log.items.history(ADA, "never")) == []


def test_many_versions_in_one_commit(log: Log) -> None:
    """A key may be put as often as one likes in one call: history shows all, moments show the last."""
    count = 5 * VERSIONS_IN_ROW
    before = done(log, put(value=b"before"))
    commit = done(log, *(put(value=b"%d" % number) for number in range(count)))
    after = done(log, put(value=b"after"))
    shown = [each.value[1] for each in log.items.history(ADA, "k") if isinstance(each, Item)]
    assert shown == [b"after", *(b"%d" % number for number in reversed(range(count))), b"before"]
    assert [value(log, at=at) for at in (before, commit, after)] == [b"before", b"%d" % (count - 1), b"after"]


def test_many_changes_of_one_item_write_its_rows_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often one call changes an item, its rows are written once, and say what each change did."""
    with Log.open(tmp_path / "log") as log:
        done(log, put(value=b"first", expires_at=5))
        written: list[tuple[str, bytes]] = []
        write = CheckedTables.put

        def counted(tables: CheckedTables, table: str, key: bytes, value: bytes) -> None:
            if table in (ITEMS, VERSIONS, EXPIRIES):
                written.append((table, key))
            write(tables, table, key, value)

        monkeypatch.setattr(CheckedTables, "put", counted)
        changes = [put(value=_number(number), expires_at=9) for number in range(500)]
        done(log, *changes[:300], ItemDeleted(ADA, "k"), *changes[300:])
        assert sorted(table for table, _ in written) == [EXPIRIES, ITEMS, VERSIONS]
        shown = [version.value[1] if isinstance(version, Item) else None for version in log.items.history(ADA, "k")]
        assert shown == [*map(_number, range(499, 299, -1)), None, *map(_number, range(299, -1, -1)), b"first"]
        assert log.items.expired(9) == [(ADA, "k")]
        assert log.items.expired(8) == []


def test_moments_of_other_threads(log: Log) -> None:
    """A step's commit names a moment: what there was when the step was taken."""
    done(log, put(value=b"1"))
    log.thread("t").append([step("s1")])
    done(log, put(value=b"2"))
    log.thread("t").append([step("s2", lane="sub")])
    done(log, put(value=b"3"))
    assert value(log, at=log.thread("t").commit_of("s1")) == b"1"
    assert value(log, at=log.thread("t").commit_of("s2", lane="sub")) == b"2"
    assert value(log, at=log.thread("t").commit_of()) == b"1"
    assert log.thread("t").commit_of(3) == log.thread("t").commit_of("s1")
    assert log.thread("t").commit_of("none") is None
    assert log.thread("none").commit_of() is None


@pytest.mark.parametrize("sealed", [False, True])
def test_moments_by_time(log: Log, sealed: bool) -> None:
    """A time names the last change of an item by then."""
    commits = done_each(log, (put(value=b"%d" % number, created_at=10 * number) for number in range(1, 300)))
    if sealed:
        log.seal()
    log.thread("t").append([step("s1", created_at=5)])
    assert [log.items.commit_at(time) for time in (0, 9, 10, 19, 20, 2990, 9999)] == [
        0,
        0,
        commits[0],
        commits[0],
        commits[1],
        commits[-1],
        commits[-1],
    ]
    assert value(log, at=log.items.commit_at(155)) == b"15"


def test_moments_by_time_in_many_groups(memory_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever groups segments form, each time finds its commit, and little of the past is unpacked for it."""
    monkeypatch.setattr(segments, "GROUP_BYTES", 3000)
    log, commits = memory_log, [0]
    for begin in range(1, 400, 20):
        commits += done_each(log, (put(value=noise(60), created_at=10 * n) for n in range(begin, begin + 20)))
        if begin < 350:
            log.seal()
    unpacked: list[int] = []
    unpack = Records._unpack

    def spied(self: Records, thread: int, last: int, *more: Any) -> segments.Segment:
        unpacked.append(last)
        return unpack(self, thread, last, *more)

    monkeypatch.setattr(Records, "_unpack", spied)
    for number in (*range(0, 401, 7), 1, 399, 400):
        for late in (0, 9):
            log.storage._held = Held()  # type: ignore[attr-defined]
            unpacked.clear()
            assert log.items.commit_at(10 * number + late) == commits[number]
            assert len(unpacked) < 8
    log.items.prune(commits[200])
    log.seal()
    assert [log.items.commit_at(10 * number) for number in (0, *range(200, 401))] == [0, *commits[200:]]


def test_version_and_changes(log: Log) -> None:
    """Where the last change stands says whether anything changed, and what changed since can be asked for."""
    assert log.items.version() == 0
    done(log, put("a", b"1"))
    version = log.items.version()
    log.thread("t").append([step("s1")])
    assert log.items.version() == version
    changes: list[ItemEvent] = [put("a", noise(100)), ItemDeleted(ADA, "a"), ItemTouched(ADA, "a", Sequence(2), 5)]
    done(log, *changes)
    assert log.items.version() == version + 3
    found = list(log.items.changes(version) or ())
    assert [sequence for sequence, _ in found] == [version + 1, version + 2, version + 3]
    first = found[0][1]
    assert isinstance(first, ItemPut)
    assert isinstance(changes[0], ItemPut)
    assert (first.key, first.value) == ("a", changes[0].value)
    assert [type(event) for _, event in found] == [ItemPut, ItemDeleted, ItemTouched]
    assert list(log.items.changes(version + 3) or ()) == []


# --- expiry ---


def test_expiry(log: Log) -> None:
    """What expires by a time is found in the order in which it does, and only while that is so."""
    done(log, put("a", expires_at=30), put("b", expires_at=10), put("c"), put("d" * 100, expires_at=20))
    assert log.items.expired(9) == []
    assert log.items.expired(30) == [(ADA, "b"), (ADA, "d" * 100), (ADA, "a")]
    assert log.items.expired(30, 1) == [(ADA, "b")]
    done(log, put("a", expires_at=40), put("b"), ItemDeleted(ADA, "d" * 100))
    assert log.items.expired(39) == []
    assert log.items.expired(40) == [(ADA, "a")]


def test_touching(log: Log) -> None:
    """A touch moves when a value expires and makes no version; of a value that is gone it does nothing."""
    first = log.items.submit([put(expires_at=10, created_at=1)]).result()
    touch = ItemTouched(ADA, "k", Sequence(first.sequences[0]), 20)
    done(log, touch)
    item = log.items.get(ADA, "k")
    assert item is not None
    assert (item.expires_at, item.updated_at, item.commit) == (20, 1, first.commit)
    assert (log.items.expired(19), log.items.expired(20)) == ([], [(ADA, "k")])
    assert len(list(log.items.history(ADA, "k"))) == 1
    done(log, put())
    done(log, touch)
    assert log.items.expired(1 << 62) == []
    done(log, ItemDeleted(ADA, "k"), touch)
    assert value(log) is None
    assert log.items.expired(1 << 62) == []


def test_a_deletion_of_what_has_expired_spares_what_was_touched(log: Log) -> None:
    """A sweeper that comes late deletes nothing that somebody has refreshed, or that never expires."""
    found = log.items.submit([put("a", expires_at=10), put("b", expires_at=10), put("c", expires_at=10)]).result()
    swept = [ItemDeleted(*name, expired_by=15) for name in log.items.expired(15)]
    done(log, ItemTouched(ADA, "a", Sequence(found.sequences[0]), 99), put("b"))
    done(log, *swept, ItemDeleted(ADA, "none", expired_by=15))
    assert keys(log) == {(ADA, "a"), (ADA, "b")}
    assert [type(each) for each in log.items.history(ADA, "a")] == [Item]


# --- forgetting ---


def test_forgetting_a_namespace(log: Log) -> None:
    """Nothing of a forgotten namespace is left anywhere, and all else, its past too, is as it was."""
    secret, kept = noise(3000), noise(3000)
    done(log, put(value=secret), put(at=("users", "adam"), value=kept), put(at=("users", "ada", "x"), value=secret))
    commit = done(log, put(at=("users", "adam"), value=b"new"), put("gone", secret))
    done(log, ItemDeleted(ADA, "gone"))
    log.seal()
    before = log.items.get(("users", "adam"), "k")
    log.items.forget(ADA)
    assert keys(log) == keys(log, at=commit) == {(("users", "adam"), "k")}
    assert [list(log.items.history(ADA, key)) for key in ("k", "gone")] == [[], []]
    assert value(log, namespace=("users", "adam"), at=commit - 1) == kept
    after = log.items.get(("users", "adam"), "k")
    assert before is not None
    assert after == replace(before, sequence=after.sequence if after else Sequence(0))
    row = log.storage.thread(fmt.ITEMS_THREAD_ID)
    assert row is not None
    bodies = b"".join(record.body for record in log.storage.scan(row.number, 0, 1 << 62, 1000, reverse=False))
    assert (secret in bodies, kept in bodies) == (False, True)
    version = log.items.version()
    log.items.forget(ADA)
    assert log.items.version() == version
    log.items.forget(())
    assert keys(log) == set()
    assert done(log, put()) > commit


def test_pruning_the_past(log: Log) -> None:
    """What no moment from a commit on shows is gone; moments from there on are as they were, earlier ones raise."""
    commits = []
    for number in range(40):
        commits.append(
            done(log, put(f"k{number % 4}", b"%d" % number, created_at=number + 1, expires_at=1000 + number))
        )
    commits.append(done(log, ItemDeleted(ADA, "k0", expired_by=5000)))
    commits.append(done(log, ItemTouched(ADA, "k1", log.items.version(), 1)))
    shown = {at: {i.key: astuple(i)[2:6] for i in log.items.scan(at=at)} for at in commits}
    now = {i.key: i for i in log.items.scan()}
    log.items.prune(commits[30])
    for at in commits[30:]:
        assert {i.key: astuple(i)[2:6] for i in log.items.scan(at=at)} == shown[at]
    assert {i.key: replace(i, sequence=now[i.key].sequence) for i in log.items.scan()} == now
    for read in (
        lambda: log.items.get(ADA, "k1", at=commits[29]),
        lambda: log.items.get_many([(ADA, "k1")], at=0),
        lambda: list(log.items.scan(at=commits[0])),
    ):
        with pytest.raises(UsageError, match=f"before commit {commits[30]} was pruned"):
            read()
    assert len(list(log.items.history(ADA, "k1"))) == 3
    assert log.items.changes(5) is None
    assert log.items.commit_at(35) == commits[34]
    log.items.prune(commits[20])
    assert len(list(log.items.history(ADA, "k1"))) == 3
    log.items.prune(1 << 40)
    assert {key: len(list(log.items.history(ADA, key))) for key in ("k0", "k1")} == {"k0": 0, "k1": 1}
    assert {i.key: replace(i, sequence=now[i.key].sequence) for i in log.items.scan()} == now


@pytest.mark.parametrize("read", ["get", "scan", "history", "changes"])
def test_a_pruning_in_the_midst_of_a_read(log: Log, read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruning between two questions of a read hides nothing of what was there: the read is whole, or an error."""
    first = done(log, put(value=b"first"))
    last = done(log, *(put(value=b"%d" % number) for number in range(1030)), put())
    log.seal()  # nobody else asks then
    reads: dict[str, Callable[[], object]] = {
        "get": lambda: value(log, at=first),
        "scan": lambda: [item.value for item in log.items.scan(at=first)],
        "history": lambda: [each.sequence for each in log.items.history(ADA, "k")],
        "changes": lambda: [sequence for sequence, _ in log.items.changes(5) or ()],
    }
    names = {"get": "items", "scan": "scan_items", "history": "item_versions", "changes": "scan"}
    truth, method = reads[read](), getattr(log.storage, names[read])
    asked = 0

    def late(*of: object, **named: object) -> object:
        nonlocal asked
        asked += 1
        if asked == (2 if read in ("history", "changes") else 1):
            monkeypatch.undo()
            log.items.prune(last)
        return method(*of, **named)

    monkeypatch.setattr(log.storage, names[read], late)
    with pytest.raises((UsageError, ConflictError)):
        assert reads[read]() == truth


def test_what_is_pruned_goes_on(log: Log) -> None:
    """After a pruning items are changed, deleted and created as before."""
    for number in range(10):
        done(log, put(value=b"%d" % number, created_at=number + 1))
    log.items.prune(log.items.commit_at(5))
    commit = done(log, put(value=b"new", created_at=50))
    item = log.items.get(ADA, "k")
    assert item is not None
    assert (item.created_at, item.commit) == (1, commit)
    assert [value(log, at=log.items.commit_at(time)) for time in (5, 9, 50)] == [b"4", b"8", b"new"]
    done(log, ItemDeleted(ADA, "k"))
    log.items.prune(commit)
    assert [type(each) for each in log.items.history(ADA, "k")] == [Deletion, Item]
    assert value(log, at=commit) == b"new"


# --- with the rest of the log ---


def test_nobody_else_sees_the_thread_of_items(log: Log) -> None:
    """It is in no list, and no thread can be opened, copied to or deleted under its id."""
    done(log, put())
    log.thread("t").append([step("s1")])
    assert [found.thread_id for found in log.threads()] == ["t"]
    assert list(log.threads(prefix="\0")) == list(log.threads(newest_first=False, prefix="\0")) == []
    assert list(log.all_threads()) == ["t"]
    assert [found.thread_id for found in log.feed()] == ["t"]
    for use in (log.thread, log.seal, log.thread("t").copy_to):
        with pytest.raises(UsageError, match="the log's own"):
            use(fmt.ITEMS_THREAD_ID)
    assert log.thread("\0").summary() is log.thread("\0stepwell").summary() is None


def test_near_misses_leave_the_thread_of_items_out(log: Log) -> None:
    """Who names a thread that is not there is not told of the log's own."""
    done(log, put())
    with pytest.raises(UsageError, match=r"there is no thread 'items'$"):
        log.thread("items").resolve()


def test_sealing_in_the_background(tmp_path: Path) -> None:
    """Items are sealed as they grow, four times as many at once as of other threads, and by `seal`."""
    with Log.open(tmp_path / "log", seal_after_events=20 // SEALED_ITEMS) as log:
        done_each(log, (put(f"k{number % 9}", b"%d" % number) for number in range(100)))
        log.seal()
        row = log.storage.thread(fmt.ITEMS_THREAD_ID)
        assert row is not None
        assert row.sealed == row.last
        lengths = [last - first + 1 for first, last, _ in log.storage.segments(row.number)]
        assert lengths[:-1] == [20] * 5
        assert log.audit().breaches == []


def test_reopening(tmp_path: Path) -> None:
    """Items are there when the log is opened again, to read only as well; a copy of the log has them too."""
    path = tmp_path / "log"
    with Log.open(path) as log:
        commit = done(log, put(value=b"1"), put("gone"))
        done(log, put(value=b"2"), ItemDeleted(ADA, "gone"))
        log.compact(tmp_path / "copy")
    for each in (path, tmp_path / "copy"):
        with Log.open(each, read_only=True) as log:
            assert (value(log), value(log, at=commit), keys(log)) == (b"2", b"1", {(ADA, "k")})
            with pytest.raises(ReadOnlyError):
                done(log, put())
    with pytest.raises(ClosedError):
        value(log)


def test_another_process(tmp_path: Path) -> None:
    """What another process put is there at once, and the version says that something changed."""
    path = tmp_path / "log"
    with Log.open(path) as log:
        done(log, put(value=b"1"))
        version = log.items.version()
        code = (
            "import sys; from stepwell import *; log = Log.open(sys.argv[1]); "
            "log.items.submit([ItemPut(('users', 'ada'), 'k', parse('json', b'2'))]).result(); log.close()"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        assert (value(log), log.items.version()) == (b"2", version + 1)
        assert log.audit().breaches == []


BAD: dict[str, Callable[[Log], object]] = {
    "namespace": lambda log: log.items.get("ada", "k"),  # type: ignore[arg-type]
    "part": lambda log: log.items.get(("a", 1), "k"),  # type: ignore[arg-type]
    "half a pair in a part": lambda log: log.items.get(("\ud800",), "k"),
    "key": lambda log: log.items.get(ADA, b"k"),  # type: ignore[arg-type]
    "prefix": lambda log: list(log.items.scan("ada")),  # type: ignore[arg-type]
    "after": lambda log: list(log.items.scan(after=(ADA, 5))),  # type: ignore[arg-type]
    "commit": lambda log: log.items.get(ADA, "k", at=-1),
    "commit that is no number": lambda log: log.items.get(ADA, "k", at="1"),  # type: ignore[arg-type]
    "time": lambda log: log.items.commit_at(1 << 63),
    "expiry": lambda log: log.items.submit([put(expires_at=-1)]),
    "expiry that is no number": lambda log: log.items.submit([put(expires_at=0.5)]),  # type: ignore[arg-type]
    "value": lambda log: log.items.submit([ItemPut(ADA, "k", b"v")]),  # type: ignore[arg-type]
    "reference": lambda log: log.items.submit([ItemPut(ADA, "k", Blob("t", Ref(1, 0, 1)))]),
    "reference within": lambda log: log.items.submit(
        [ItemPut(ADA, "k", Array("t", False, 1, (New((1,), Ref(1, 0, 1)),)))]
    ),
    "attachment": lambda log: log.items.submit([ItemPut(ADA, "k", Blob("t", b""), None, {"a": b""})]),  # type: ignore[dict-item]
    "attachment's name": lambda log: log.items.submit([ItemPut(ADA, "k", Blob("t", b""), None, {5: Blob("t", b"")})]),  # type: ignore[dict-item]
    "half a pair in a type": lambda log: log.items.submit([ItemPut(ADA, "k", Blob("\ud800", b""))]),
    "commit of a change": lambda log: log.items.submit([replace(put(), commit=1 << 62)]),
    "commit of a deletion": lambda log: log.items.submit([ItemDeleted(ADA, "k", commit=1)]),
    "birth": lambda log: log.items.submit([replace(put(), born_at=5)]),
    "step": lambda log: log.items.submit([step("s1")]),  # type: ignore[list-item]
    "item in a thread": lambda log: log.thread("t").append([put()]),
}


@pytest.mark.parametrize("what", BAD)
def test_misuse(log: Log, what: str) -> None:
    """Whatever cannot be stored or asked for is refused by name, and nothing is changed."""
    with pytest.raises(UsageError):
        BAD[what](log)
    assert log.items.version() == 0


def test_damage_is_an_error(damaged_log: Log) -> None:
    """A row or record of an item that is not what was written raises, and is not taken for another or for absent."""
    log = damaged_log
    first = log.items.submit([put(value=noise(3000), expires_at=5)]).result()
    done(log, put(value=noise(3000), expires_at=5))
    set_record(log.storage, 1, first.sequences[0], None)
    with pytest.raises(CorruptionError):
        list(log.items.history(ADA, "k"))
    key = fmt.item_key(ADA, "k")
    for table, place in ((ITEMS, key), (VERSIONS, fmt.versions_key(key, first.commit))):
        set_row(log.storage, table, place, b"\xff")
        with pytest.raises(CorruptionError):
            value(log, at=first.commit)
        set_row(log.storage, table, place, None)
    assert value(log, at=first.commit) is None
    with pytest.raises(CorruptionError):
        log.items.expired(5)
