"""The model of a disk, by itself: what must be there after a crash, what may, and what cannot."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from crash.disk import PAGE_BYTES, TODAY, Choice, Disk, Rules
from crash.trace import (
    Event,
    Linked,
    Met,
    Reached,
    Removed,
    Renamed,
    Resized,
    SyncBegan,
    SyncEnded,
    SyncWriteBegan,
    SyncWriteEnded,
    Written,
    Zeroed,
)

FILE, OTHER, FOLDER = 1, 2, 3
PATH, OTHER_PATH = "/log/a", "/log/b"
A, B, C = (letter * PAGE_BYTES for letter in (b"a", b"b", b"c"))
SECTOR = TODAY.sector_bytes

KINDS = ("none", "all", "only", "without", "torn", "subset", "page", "sector")
LENGTHS = ("old", "new", "between")


def synced(file: int, token: int, whole: bool = True) -> list[Event]:
    return [SyncBegan(file, token), SyncEnded(file, token, whole)]


CREATED: list[Event] = [Met(FILE, PATH, True, False), Met(FOLDER, "/log", False, True), *synced(FOLDER, 99)]


def possible(events: Iterable[Event], rules: Rules = TODAY, seeds: int = 30) -> list[dict[str, bytes]]:
    """Many of the contents that a disk may have after some events."""
    disk = Disk(rules)
    for event in events:
        disk.apply(event)
    writes = range(max(1, disk.unsynced_writes()))
    return [
        disk.image(Choice(0, kept, number, length, seed))
        for kept in KINDS
        for number in writes
        for length in LENGTHS
        for seed in range(seeds)
    ]


def contents(events: Iterable[Event], rules: Rules = TODAY) -> set[bytes]:
    """Of a file whose name is durable."""
    return {image[PATH] for image in possible([*CREATED, *events], rules)}


def test_what_was_synced_is_there_and_what_was_not_may_be() -> None:
    """After a sync there is one content; of a write after it, any set of sectors is there, and no other bytes."""
    assert contents([Written(FILE, 0, A), *synced(FILE, 1)]) == {A}
    found = contents([Written(FILE, 0, A), *synced(FILE, 1), Written(FILE, 0, B)])
    assert {A, B} < found
    for content in found:
        sectors = [content[start : start + SECTOR] for start in range(0, PAGE_BYTES, SECTOR)]
        assert set(sectors) <= {A[:SECTOR], B[:SECTOR]}


def test_a_sync_speaks_of_what_was_written_before_it_began() -> None:
    """A write during a sync may be there or not when the sync has returned."""
    during: list[Event] = [Written(FILE, 0, A), SyncBegan(FILE, 1), Written(FILE, 0, B), SyncEnded(FILE, 1, True)]
    assert {A, B} < contents(during)
    assert contents([*during, *synced(FILE, 2)]) == {B}


def test_writes_arrive_in_any_order_but_not_over_newer_ones() -> None:
    """Of two writes to different pages the later may be there alone; what a sync wrote is not taken back."""
    found = contents([Written(FILE, 0, A + A), *synced(FILE, 1), Written(FILE, 0, B), Written(FILE, PAGE_BYTES, B)])
    assert {A + A, A + B, B + A, B + B} < found
    over = contents([Written(FILE, 0, A), Written(FILE, 0, B), *synced(FILE, 1), Written(FILE, 0, C)])
    assert not any(b"a" in content for content in over)


def test_an_earlier_version_of_a_sector_may_be_there() -> None:
    """A page that was written back between two writes to it shows the first of them."""
    assert A in contents([Written(FILE, 0, C), *synced(FILE, 1), Written(FILE, 0, A), Written(FILE, 0, B)])


def test_a_write_with_dsync_is_there_when_it_has_returned() -> None:
    """Before that it may be; with it comes the rest of its page, and other pages stay unsure."""
    start = [Written(FILE, 0, A + A), *synced(FILE, 1), Written(FILE, 2048, b"w"), Written(FILE, PAGE_BYTES, B)]
    meta = b"m" * 120
    assert {A[:32] + meta + A[152:2048], A[:2048]} == {
        content[:2048] for content in contents([*start, SyncWriteBegan(FILE, 32, meta, 2)])
    }
    found = contents([*start, SyncWriteBegan(FILE, 32, meta, 2), SyncWriteEnded(FILE, 2)])
    assert {content[:PAGE_BYTES] for content in found} == {A[:32] + meta + A[152:2048] + b"w" + A[2049:]}
    assert {A, B} < {content[PAGE_BYTES:] for content in found}


@pytest.mark.parametrize("whole", [True, False], ids=["fsync", "fdatasync"])
def test_a_new_length(whole: bool) -> None:
    """It is old, new or between until a sync; fdatasync may be one that leaves it behind, fsync never is."""
    grown = [Written(FILE, 0, A), *synced(FILE, 1), Written(FILE, PAGE_BYTES, B)]
    lengths = {len(content) for content in contents(grown)}
    assert {PAGE_BYTES, PAGE_BYTES + SECTOR, 2 * PAGE_BYTES} < lengths
    assert any(content == A + bytes(PAGE_BYTES) for content in contents(grown)), "longer, but not written"
    assert contents([*grown, *synced(FILE, 2, whole)]) == {A + B}
    forgetful = contents([*grown, *synced(FILE, 2, whole)], Rules(length_by_fdatasync=False))
    assert forgetful == {A + B} if whole else {A, A + B} < forgetful


def test_holes_and_cuts_read_as_zeros() -> None:
    """A punched hole and a cut are there or not until a sync, and a file that is extended again is empty there."""
    start = [Written(FILE, 0, A + B), *synced(FILE, 1)]
    punched = [*start, Zeroed(FILE, 0, PAGE_BYTES)]
    assert {A + B, bytes(PAGE_BYTES) + B} < contents(punched)
    assert contents([*punched, *synced(FILE, 2)]) == {bytes(PAGE_BYTES) + B}
    beyond = [*start, Zeroed(FILE, PAGE_BYTES, 100 * PAGE_BYTES), *synced(FILE, 2)]
    assert contents(beyond) == {A + bytes(PAGE_BYTES)}
    cut = [*start, Resized(FILE, PAGE_BYTES), Resized(FILE, 2 * PAGE_BYTES), *synced(FILE, 2)]
    assert contents(cut) == {A + bytes(PAGE_BYTES)}
    reached = [*start, Reached(FILE, PAGE_BYTES), Reached(FILE, 3 * PAGE_BYTES), *synced(FILE, 2)]
    assert contents(reached) == {A + B + bytes(PAGE_BYTES)}


def test_names_are_durable_when_their_folder_was_synced() -> None:
    """A file that was synced itself may have no name; a renamed one has the old or the new."""
    new = [Met(FOLDER, "/log", False, True), Met(FILE, PATH, True, False), Written(FILE, 0, A), *synced(FILE, 1)]
    assert {frozenset(image) for image in possible(new)} == {frozenset(), frozenset({PATH})}
    assert {frozenset(image) for image in possible([*new, *synced(FOLDER, 2)])} == {frozenset({PATH})}
    other = [Met(OTHER, OTHER_PATH, True, False), Written(OTHER, 0, B), *synced(OTHER, 3), *synced(FOLDER, 4)]
    renamed = [*new, *synced(FOLDER, 2), *other, Renamed(OTHER_PATH, PATH)]
    assert {tuple(sorted(image.items())) for image in possible(renamed)} == {
        ((PATH, A), (OTHER_PATH, B)),
        ((PATH, B),),
    }
    linked = [*new, *synced(FOLDER, 2), Written(FILE, 0, B), Linked(PATH, OTHER_PATH)]
    both = [image for image in possible(linked) if OTHER_PATH in image]
    assert both
    assert all(image[OTHER_PATH] == image[PATH] for image in both), "one file with two names"
    assert {frozenset(image) for image in possible(linked)} == {frozenset({PATH}), frozenset({PATH, OTHER_PATH})}
    removed = [*renamed, *synced(FOLDER, 5), Removed(PATH), *synced(FOLDER, 6)]
    assert {frozenset(image) for image in possible(removed)} == {frozenset()}
