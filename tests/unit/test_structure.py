"""The look at every page that the engine would follow."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from lmdb import verify as offline

from building import noise, step, wrote
from stepwell import Log
from stepwell.storage.lmdb.pages import Pages, Tree, read_meta, read_tree
from stepwell.storage.lmdb.structure import UnsoundError, check

PAGE = 4096
HEAD = struct.Struct("<QHHHH")  # number, unused, flags, lower, upper
NODE = struct.Struct("<HHHH")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log with branches, leaves, values of one page and of several, and free pages."""
    path = tmp_path / "log"
    with Log.open(path, seal_after_events=1 << 30, seal_after_bytes=1 << 50) as log:
        for number in range(150):
            log.thread("t").append([step(f"s{number}", {"x": noise(40)}), wrote(f"s{number}")])
        log.seal()
        for number in range(40):
            log.thread("loose").append([step(f"s{number}", {"x": noise(700)})])
        log.thread("loose").append([step("big", {"x": noise(20_000)}), step("larger", {"x": noise(3000)})])
    return path


def tables(path: Path) -> dict[str, Tree]:
    """The trees of a file, that of the free pages and that of the tables among them."""
    with open(path, "rb") as file:
        metas = [read_meta(file.read(PAGE)) for _ in range(2)]
        newer = max((meta for meta in metas if meta), key=lambda meta: meta.transaction)
        rows = [row for leaf in Pages(file.fileno(), PAGE).walk(newer.tables, lambda error: None) for row in leaf]
        return {row.key.decode(): read_tree(row.data) for row in rows} | {"free": newer.free, "main": newer.tables}


def change(path: Path, page: int, change: Callable[[bytearray], object]) -> None:
    """Change a page of a file."""
    content = bytearray(path.read_bytes())
    part = content[page * PAGE : (page + 1) * PAGE]
    change(part)
    content[page * PAGE : (page + 1) * PAGE] = part
    path.write_bytes(content)


def child(path: Path, page: int, index: int = 0) -> int:
    """The page that a node of a branch leads to."""
    content = path.read_bytes()[page * PAGE : (page + 1) * PAGE]
    low, high, top, _ = NODE.unpack_from(content, struct.unpack_from("<H", content, 16 + 2 * index)[0])
    return int(low | high << 16 | top << 32)


def put(layout: str, at: int, *values: int) -> Callable[[bytearray], object]:
    """Write numbers over a place in a page."""
    return lambda page: struct.pack_into(layout, page, at, *values)


def at_node(index: int, layout: str, offset: int, *values: int) -> Callable[[bytearray], object]:
    """Write numbers over a place in a node."""
    return lambda page: struct.pack_into(
        layout, page, struct.unpack_from("<H", page, 16 + 2 * index)[0] + offset, *values
    )


def swap_nodes(page: bytearray) -> None:
    """Let the first two nodes change places."""
    page[16:18], page[18:20] = page[18:20], page[16:18]


def test_sound(path: Path) -> None:
    """A log is sound, with all its pages looked at."""
    trees = tables(path)
    assert trees["index"].depth == 2
    assert trees["events"].overflow > 5
    assert check(str(path))


def test_every_state_of_a_file_is_sound(tmp_path: Path) -> None:
    """Whatever LMDB makes of a file that is filled and emptied is sound."""
    path, rng = tmp_path / "file", random.Random(3)
    with lmdb.open(str(path), subdir=False, max_dbs=4, map_size=1 << 28) as env:
        names = [env.open_db(name) for name in (b"one", b"two", b"three")]
        for number in range(150):
            with env.begin(write=True) as transaction:
                for _ in range(rng.choice((1, 5, 60))):
                    key = b"%06d" % rng.randrange(400)
                    value = bytes(rng.choice((1, 30, 800, 2100, 5000, 30_000)))
                    transaction.put(key * rng.choice((1, 9)), value, db=rng.choice(names))
                if number % 3 == 2:
                    with transaction.cursor(rng.choice(names)) as cursor:
                        cursor.set_range(b"%06d" % rng.randrange(400))
                        while rng.random() < 0.98 and cursor.key():
                            cursor.delete()
                if number % 29 == 28:
                    transaction.drop(rng.choice(names), delete=False)
            assert check(str(path), env.info()["last_txnid"])


def test_both_transactions(path: Path) -> None:
    """What the older meta page is of is as sound as the newest, and no third one is there."""
    with lmdb.open(str(path), subdir=False, readonly=True, max_dbs=1, lock=False) as env:
        newest = env.info()["last_txnid"]
    assert check(str(path), newest)
    assert check(str(path), newest - 1)
    with pytest.raises(UnsoundError, match="transaction"):
        check(str(path), newest + 1)


def test_some_pages(path: Path) -> None:
    """With a bound, leaves and values beyond it are not looked at, and the answer says so."""
    tree = tables(path)["events"]
    change(path, child(path, tree.root), put("<H", 10, 4))
    assert not check(str(path), most_bytes=10 * PAGE)
    with pytest.raises(UnsoundError, match="no leaf"):
        check(str(path), most_bytes=1 << 30)


FAULTS: dict[str, tuple[str, Callable[[bytearray], object]]] = {
    "leaf: other number": ("is no leaf", put("<Q", 0, 3)),
    "leaf: flags of a branch": ("is no leaf", put("<H", 10, 1)),
    "leaf: written flag": ("is no leaf", put("<H", 10, 0x12)),
    "leaf: no nodes": ("room", put("<H", 12, 16)),
    "leaf: odd end of offsets": ("room", put("<H", 12, 21)),
    "leaf: nodes before their offsets": ("room", put("<H", 14, 18)),
    "leaf: nodes after its end": ("room", put("<HH", 12, 5000, 5000)),
    "leaf: one node less": (
        "do not fill",
        lambda page: struct.pack_into("<H", page, 12, HEAD.unpack_from(page)[3] - 2),
    ),
    "leaf: one node more": (
        "do not fill|flags|outside",
        lambda page: struct.pack_into("<H", page, 12, HEAD.unpack_from(page)[3] + 2),
    ),
    "leaf: gap": ("do not fill", lambda page: struct.pack_into("<H", page, 14, HEAD.unpack_from(page)[4] - 2)),
    "leaf: node beyond it": ("outside its page", put("<H", 16, 4094)),
    "leaf: a node twice": ("do not fill", lambda page: page.__setitem__(slice(16, 18), page[18:20])),
    "leaf: nodes swapped": ("do not rise", swap_nodes),
    "leaf: long value": ("do not fill", at_node(0, "<H", 0, 0xFFFF)),
    "leaf: value of gigabytes": ("do not fill", at_node(0, "<H", 2, 0xFFFF)),
    "leaf: long key": ("do not fill", at_node(0, "<H", 6, 0xFFF0)),
    "leaf: empty key": ("do not fill", at_node(0, "<H", 6, 0)),
    "leaf: flag of a table": ("flags", at_node(0, "<H", 4, 2)),
    "leaf: flag of duplicates": ("flags", at_node(0, "<H", 4, 4)),
    "leaf: lower than it may be": ("do not rise", at_node(0, "<Q", 8, 0)),
    "leaf: higher than it may be": ("do not rise", at_node(0, "<B", 8, 0xFF)),
    "branch: other number": ("is no branch", put("<Q", 0, 3)),
    "branch: flags of a leaf": ("is no branch", put("<H", 10, 2)),
    "branch: nodes swapped": ("do not rise", swap_nodes),
    "branch: one node less": (
        "do not fill",
        lambda page: struct.pack_into("<H", page, 12, HEAD.unpack_from(page)[3] - 2),
    ),
    "branch: to a meta page": ("no page 1", at_node(1, "<HHH", 0, 1, 0, 0)),
    "branch: to nowhere": ("no page", at_node(1, "<HHH", 0, 0, 0, 1)),
    "branch: to itself": ("no leaf|twice", lambda page: at_node(1, "<I", 0, HEAD.unpack_from(page)[0])(page)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_a_page(path: Path, name: str) -> None:
    """Whatever is wrong with a page of a tree is found, and told with its number."""
    root = tables(path)["index"].root
    page = root if name.startswith("branch") else child(path, root, 1)
    message, damage = FAULTS[name]
    change(path, page, damage)
    with pytest.raises(UnsoundError, match=message):
        check(str(path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put("<Q", 0, 3), "begins no run"),
        (put("<H", 10, 2), "begins no run"),
        (put("<I", 12, 0), "begins no run"),
        (put("<I", 12, 4), "begins no run"),
        (put("<I", 12, 1 << 31), "no page"),
    ],
)
def test_fault_of_a_value(path: Path, damage: Callable[[bytearray], object], message: str) -> None:
    """A value outside its leaf has pages that say so, as many as it needs, within the file."""
    content = path.read_bytes()
    first = next(
        page
        for page in range(2, len(content) // PAGE)
        if HEAD.unpack_from(content, page * PAGE)[2] == 4
        and struct.unpack_from("<I", content, page * PAGE + 12)[0] == 5
    )
    change(path, first, damage)
    with pytest.raises(UnsoundError, match=message):
        check(str(path))


FIELDS_OF_A_TREE = {"flags": ("H", 4), "depth": ("H", 6), "branches": ("Q", 8), "leaves": ("Q", 16), "rows": ("Q", 32)}


@pytest.mark.parametrize("field", [*FIELDS_OF_A_TREE, "overflow", "root"])
@pytest.mark.parametrize("value", [0, 1, 3, 77, 0xFFFF])
def test_what_is_said_of_a_tree(path: Path, field: str, value: int) -> None:
    """A tree that has not what is said of it, in number, depth, sort or place, is not followed."""
    layout, at = (FIELDS_OF_A_TREE | {"overflow": ("Q", 24), "root": ("Q", 40)})[field]
    trees = tables(path)
    content = path.read_bytes()
    for name, tree in (("index", trees["index"]), ("main", trees["main"])):
        if getattr(tree, field) == value:
            continue
        said = struct.pack("<HHQQQQQ", *tree)
        newest = [page for page in (0, 1, *range(2, len(content) // PAGE)) if said in content[page * PAGE :][:PAGE]]
        damaged = bytearray(content)
        for page in newest:
            place = content.index(said, page * PAGE) - 4
            struct.pack_into("<" + layout, damaged, place + at, value)
        path.write_bytes(damaged)
        with pytest.raises(UnsoundError):
            check(str(path))
        assert name


def test_page_in_use_and_free(path: Path) -> None:
    """A page that a table holds and that is listed as free, too, is found before LMDB gives it out."""
    content, trees = path.read_bytes(), tables(path)
    page = trees["free"].root
    leaf = content[page * PAGE : (page + 1) * PAGE]
    offset = struct.unpack_from("<H", leaf, 16)[0]
    low, _, _, key_bytes = NODE.unpack_from(leaf, offset)
    assert low >= 16
    change(path, page, put("<Q", offset + 8 + key_bytes + 8, trees["index"].root))
    with pytest.raises(UnsoundError, match="free"):
        check(str(path))


@pytest.mark.parametrize("pages", [1, 2, 7, 40])
def test_pages_that_are_missing(path: Path, pages: int) -> None:
    """A file without its end is not followed, unless what is missing is free."""
    content = path.read_bytes()
    with lmdb.open(str(path), subdir=False, readonly=True, max_dbs=1, lock=False) as env:
        last = env.info()["last_pgno"]
    path.write_bytes(content[: (last + 1 - pages) * PAGE + 100])
    with pytest.raises(UnsoundError, match=r"no page|missing"):
        check(str(path))


def test_any_damage_that_the_verifier_finds(path: Path) -> None:
    """What LMDB's own verifier finds in a damaged page of a tree is found here."""
    sound, rng = path.read_bytes(), random.Random(11)
    trees = [tree.root for tree in tables(path).values() if tree.depth]
    found = 0
    for _ in range(300):
        page = rng.choice(trees)
        at = page * PAGE + rng.choice((rng.randrange(64), rng.randrange(PAGE)))
        content = bytearray(sound)
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        breaches = offline.verify(str(path), subdir=False)
        try:
            check(str(path))
        except UnsoundError:
            found += 1
        else:
            # A page that is leaked takes room, and nothing else.
            assert [breach for breach in breaches if "leak" not in breach] == []
    assert found > 40
