"""The reader of LMDB's pages: what it gives is what the engine gives, and it tells what is not as LMDB writes it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from stepwell.storage.lmdb.freepages import before, read_free
from stepwell.storage.lmdb.pages import FIRST_PAGE, PageError, Pages, Row, can_read, read_meta, read_tree

pytestmark = pytest.mark.skipif(not can_read(), reason="LMDB's files look different here")

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
Content = dict[bytes, dict[bytes, bytes]]


def fill(path: Path, seed: int, rounds: int = 30) -> Content:
    """An LMDB file with tables of random rows, some of them removed again; and what it holds."""
    random_ = random.Random(seed)
    content: Content = {name: {} for name in (b"large", b"small", b"empty")}
    sizes = {b"large": (0, 9000), b"small": (0, 40), b"empty": (0, 0)}
    with lmdb.open(str(path), subdir=False, map_size=1 << 26, max_dbs=8, sync=False) as env:
        tables = {name: env.open_db(name) for name in content}
        for _ in range(rounds):
            with env.begin(write=True) as transaction:
                for name in (b"large", b"small"):
                    for _ in range(random_.randrange(40)):
                        key = random_.randbytes(random_.choice((1, 8, 16, 200)))
                        value = random_.randbytes(random_.randint(*sizes[name]))
                        transaction.put(key, value, db=tables[name])
                        content[name][key] = value
                    for key in random_.sample(sorted(content[name]), len(content[name]) // 6):
                        transaction.delete(key, db=tables[name])
                        del content[name][key]
    return content


def fail(error: PageError) -> None:
    """Nothing is wrong with a file that LMDB wrote."""
    pytest.fail(str(error))


@contextmanager
def pages_of(path: Path) -> Iterator[tuple[Pages, bytes]]:
    """The pages of a file, and its newer meta page."""
    with open(path, "rb") as file:
        heads = [os.pread(file.fileno(), PAGE_BYTES, page * PAGE_BYTES) for page in range(FIRST_PAGE)]
        metas = [(meta.transaction, head) for head in heads if (meta := read_meta(head)) is not None]
        _, head = max(metas)
        meta = read_meta(head)
        assert meta is not None
        yield Pages(file.fileno(), meta.page_bytes, meta.last_page), head


def read(path: Path) -> tuple[Content, list[PageError]]:
    """Everything that a walk finds in a file, and everything that it tells to be wrong."""
    content: Content = {}
    told: list[PageError] = []
    with pages_of(path) as (pages, head):
        meta = read_meta(head)
        assert meta is not None
        names: list[Row] = [row for rows in pages.walk(meta.tables, told.append) for row in rows]
        for name in names:
            if name.is_tree:
                found = (row for rows in pages.walk(read_tree(name.data), told.append) for row in rows)
                content[name.key] = {row.key: pages.value(row) for row in found}
    return content, told


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_of_the_engine(tmp_path: Path, seed: int) -> None:
    """A walk gives exactly the rows that were put, in order, with nothing told."""
    path = tmp_path / "file"
    content = fill(path, seed)
    found, told = read(path)
    assert told == []
    assert found == content
    assert all(list(rows) == sorted(rows) for rows in found.values())


@pytest.mark.parametrize("seed", range(8))
def test_every_page_is_met_or_free(tmp_path: Path, seed: int) -> None:
    """The pages that walks through all trees meet, and those that are free, are all pages, and none is both."""
    path = tmp_path / "file"
    fill(path, seed)
    with pages_of(path) as (pages, head):
        meta = read_meta(head)
        assert meta is not None
        free = before(read_free(pages, meta), meta.transaction + 1)
        names = [row for rows in pages.walk(meta.tables, fail) for row in rows]
        for name in names:
            list(pages.walk(read_tree(name.data), fail))
        met = {number for number, is_met in enumerate(pages.met) if is_met}
        assert met.isdisjoint(free)
        assert met.union(free) == set(range(FIRST_PAGE, meta.last_page + 1))


def test_leaf_by_itself(tmp_path: Path) -> None:
    """Every row is on a page that gives it without any tree, and what is no leaf gives none."""
    path = tmp_path / "file"
    content = fill(path, 1)
    with pages_of(path) as (pages, _):
        rows = [row for number in range(pages.count) for row in pages.leaf(number, lambda error: None)]
        found = {(row.key, pages.value(row)) for row in rows}
    assert found.issuperset(item for table in content.values() for item in table.items())


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_told(tmp_path: Path, seed: int) -> None:
    """Whatever a file holds, a walk ends; a row that it gives where it tells nothing is one that was put there."""
    path = tmp_path / "file"
    content = fill(path, seed % 4, rounds=10)
    random_ = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(random_.choice((1, 4, 40))):
        # Structure stands at the beginning of a page, and where the nodes begin.
        page = random_.randrange(FIRST_PAGE, len(data) // PAGE_BYTES)
        at = page * PAGE_BYTES + random_.choice((random_.randrange(48), random_.randrange(PAGE_BYTES)))
        data[at] ^= 1 << random_.randrange(8)
    path.write_bytes(data)
    found, told = read(path)
    if not told:
        assert {name: len(rows) for name, rows in found.items()} == {name: len(rows) for name, rows in content.items()}


@pytest.mark.parametrize("length", [0, 1, 100, PAGE_BYTES, 2 * PAGE_BYTES - 1])
def test_no_meta_page(tmp_path: Path, length: int) -> None:
    """Bytes that end too soon, or that are noise, are no meta page."""
    path = tmp_path / "file"
    fill(path, 0, rounds=1)
    assert read_meta(random.Random(length).randbytes(length)) is None
    assert read_meta(path.read_bytes()[: min(length, 100)]) is None


def test_pages_beyond_the_end(tmp_path: Path) -> None:
    """A file that was cut short gives what is left, and tells of what is missing."""
    path = tmp_path / "file"
    content = fill(path, 2)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES)
    found, told = read(path)
    assert told
    for name, rows in found.items():
        assert rows.items() <= content[name].items()


@pytest.mark.parametrize("lost", [1, PAGE_BYTES - 100])
def test_a_file_that_ends_within_a_page(tmp_path: Path, lost: int) -> None:
    """Without a meta page to say otherwise, what is left of the page counts, with zeros for the rest."""
    path = tmp_path / "file"
    fill(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    with open(path, "rb") as file:
        pages = Pages(file.fileno(), PAGE_BYTES)
        last = len(whole) // PAGE_BYTES - 1
        assert pages.count == last + 1
        assert pages._read(last, last * PAGE_BYTES, PAGE_BYTES) == whole[-PAGE_BYTES:-lost] + bytes(lost)
        with pytest.raises(PageError, match="missing"):
            pages._read(last + 1, len(whole), 16)


def test_trees_that_share_a_page(tmp_path: Path) -> None:
    """A page that two trees hold is given once, and told the second time: no walk goes in circles."""
    path = tmp_path / "file"
    fill(path, 3)
    with pages_of(path) as (pages, head):
        meta = read_meta(head)
        assert meta is not None
        [names] = pages.walk(meta.tables, fail)
        tree = read_tree(names[-1].data)
        first = [row for rows in pages.walk(tree, fail) for row in rows]
        told: list[PageError] = []
        assert first
        assert list(pages.walk(tree, told.append)) == []
        assert "held twice" in str(told[0])


@pytest.mark.parametrize("seed", range(4))
def test_pages_that_were_swapped(tmp_path: Path, seed: int) -> None:
    """Pages that stand in each other's place are found by the number that they say, and all rows are there."""
    path = tmp_path / "file"
    content = fill(path, seed)
    data = path.read_bytes()
    order = list(range(FIRST_PAGE, len(data) // PAGE_BYTES))
    with pages_of(path) as (pages, _):
        # Of pages that hold one value in a row only the first says its number: those stay where they are.
        heads = {n for n in order if data[n * PAGE_BYTES : n * PAGE_BYTES + 8] == n.to_bytes(8, "little")}
        single = sorted(number for number in heads if number + 1 in heads and number < pages.count)
    for one, two in zip(single[::2], single[1::2], strict=False):
        order[one - FIRST_PAGE], order[two - FIRST_PAGE] = two, one
    moved = [data[number * PAGE_BYTES : (number + 1) * PAGE_BYTES] for number in order]
    path.write_bytes(data[: FIRST_PAGE * PAGE_BYTES] + b"".join(moved))
    with pages_of(path) as (pages, head):
        assert pages.look_for_misplaced()[1] > 10
        meta = read_meta(head)
        assert meta is not None
        names = [row for rows in pages.walk(meta.tables, fail) for row in rows]
        found = {name.key: [*pages.walk(read_tree(name.data), fail)] for name in names}
        assert content == {
            name: {row.key: pages.value(row) for rows in leaves for row in rows} for name, leaves in found.items()
        }


def test_rows_of_a_page_without_its_head(tmp_path: Path) -> None:
    """All rows of a leaf are sifted out of it though nothing says any more where they stand."""
    path = tmp_path / "file"
    fill(path, 5)
    with pages_of(path) as (pages, _):
        leaves = {number: rows for number in range(pages.count) if (rows := pages.leaf(number, lambda error: None))}
    data = bytearray(path.read_bytes())
    for number in leaves:
        data[number * PAGE_BYTES : number * PAGE_BYTES + 16] = bytes(16)
    path.write_bytes(data)
    lengths = frozenset(len(row.key) for rows in leaves.values() for row in rows)
    with open(path, "rb") as file:
        pages = Pages(file.fileno(), PAGE_BYTES)
        for number, rows in leaves.items():
            assert pages.leaf(number, fail) == []
            assert {row.key for row in rows if not row.is_tree} <= {row.key for row in pages.sift(number, lengths)}
