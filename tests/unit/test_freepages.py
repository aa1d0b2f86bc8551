"""What is free in an LMDB file, against LMDB itself; and that a hole takes nothing that anybody can still read."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import lmdb
import pytest
from lmdb import verify as offline

from stepwell.storage.lmdb import freepages
from stepwell.storage.lmdb.freepages import Extent, FreeList, PageFile, UnableError, UnclearError, array
from stepwell.storage.lmdb.structure import UnsoundError, check

PAGE = 4096
LAST_PAGE_AT = 16 + 120
TRANSACTION_AT = 16 + 128
FREE_ROOT_AT = 16 + 24 + 40

pytestmark = pytest.mark.skipif(not freepages.can_punch(), reason="the system makes no holes")

Model = dict[bytes, bytes]


def identity(path: Path) -> tuple[int, int]:
    """Device and inode of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino


def page_file(path: Path) -> PageFile:
    """The file, as the engine opens it."""
    return PageFile(str(path), identity(path))


def opened(path: Path) -> lmdb.Environment:
    """An environment that is only LMDB's."""
    return lmdb.open(str(path), subdir=False, map_size=1 << 28)


def fill(env: lmdb.Environment, keys: range, length: int = 2500) -> None:
    """One transaction that puts values of some pages each."""
    with env.begin(write=True) as transaction:
        for key in keys:
            transaction.put(b"%06d" % key, os.urandom(length))


def empty(env: lmdb.Environment, keys: range) -> None:
    """One transaction that deletes them."""
    with env.begin(write=True) as transaction:
        for key in keys:
            transaction.delete(b"%06d" % key)


def newest(env: lmdb.Environment) -> int:
    """The newest transaction."""
    return int(env.info()["last_txnid"])


def listed(path: Path) -> set[int]:
    """All pages that LMDB's own verifier finds in the freeDB, after it found everything in order."""
    with open(path, "rb") as file:
        verifier = offline._Verifier(file, path.stat().st_size)
        assert verifier.verify() == []
        return {page for page, free in enumerate(verifier.free) if free}


def punch(env: lmdb.Environment, path: Path, fewest: int = 1, reserve: int = 0) -> int:
    """What the engine does: holes for all that is free, in a write transaction that changes nothing."""
    given = 0
    with page_file(path) as file, env.begin(write=True) as transaction:
        last = transaction.id() - 1
        oldest = min([last, *freepages.oldest_readers(env.readers())])
        for extent in file.occupied(freepages.before(file.free(last), oldest, reserve), fewest):
            file.punch(extent)
            given += extent.length
        transaction.abort()
    return given


def content(env: lmdb.Environment) -> Model:
    """All that stands in an environment."""
    with env.begin() as transaction, transaction.cursor() as cursor:
        return {bytes(key): bytes(value) for key, value in cursor}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where an environment can be made."""
    return tmp_path / "data"


@pytest.fixture
def env(path: Path) -> Iterator[lmdb.Environment]:
    """An environment with 400 values, of which 300 were deleted, and two commits since."""
    with opened(path) as env:
        fill(env, range(400))
        empty(env, range(50, 350))
        fill(env, range(400, 401))
        fill(env, range(401, 402))
        yield env


# --- what is free ---


@pytest.mark.parametrize("count", [0, 1, 40, 400, 4000])
def test_free_is_what_lmdb_lists(path: Path, count: int) -> None:
    """The lists hold exactly the pages that LMDB's verifier finds, whether they need overflow pages or not."""
    with opened(path) as env:
        fill(env, range(count))
        empty(env, range(count))
        fill(env, range(3))
        with page_file(path) as file:
            lists = file.free(newest(env))
        assert set(freepages.before(lists, newest(env) + 1)) == listed(path)
        assert [free.transaction for free in lists] == sorted(free.transaction for free in lists)


def test_free_in_a_deep_tree(path: Path) -> None:
    """Lists of many transactions, which a reader holds back, are found in a tree with branches."""
    with opened(path) as env:
        fill(env, range(50))
        with env.begin():
            for key in range(400):
                fill(env, range(key % 50, key % 50 + 1))
        with page_file(path) as file:
            lists = file.free(newest(env))
        assert len(lists) > 300
        assert set(freepages.before(lists, newest(env) + 1)) == listed(path)


def test_before_keeps_what_is_used_next() -> None:
    """Only older lists count, and a reserve is the lowest pages of the oldest of them."""
    lists = [FreeList(3, array("Q", [9, 8, 4])), FreeList(5, array("Q", [7, 2])), FreeList(6, array("Q", [3]))]
    assert freepages.before(lists, 6) == [2, 4, 7, 8, 9]
    assert freepages.before(lists, 7, reserve=2) == [2, 3, 7, 9]
    assert freepages.before(lists, 7, reserve=4) == [3, 7]
    assert freepages.before(lists, 3) == []


def test_another_transaction_is_refused(env: lmdb.Environment, path: Path) -> None:
    """A meta page that is not of the transaction asked for says nothing."""
    with page_file(path) as file:
        for transaction in (newest(env) - 2, newest(env) + 1, newest(env) + 2):
            with pytest.raises(UnclearError):
                file.free(transaction)


def test_another_file_is_refused(env: lmdb.Environment, path: Path, tmp_path: Path) -> None:
    """A file with another inode at the path is not touched."""
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    with pytest.raises(UnclearError):
        PageFile(str(other), identity(path))


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_no_free_page(env: lmdb.Environment, path: Path, tmp_path: Path, seed: int) -> None:
    """Of a freeDB with a changed bit, either nothing is believed, or no page is outside the file or free twice."""
    number = newest(env)
    whole = bytearray(path.read_bytes())
    (root,) = struct.unpack_from("<Q", whole, (number & 1) * PAGE + FREE_ROOT_AT)
    draw = random.Random(seed)
    (lower, upper) = struct.unpack_from("<HH", whole, root * PAGE + 12)
    places = [*range(16), *range(16, lower), *range(upper, PAGE)]
    for place in draw.sample(places, 25):
        damaged = bytearray(whole)
        damaged[root * PAGE + place] ^= 1 << draw.randrange(8)
        copy = tmp_path / "copy"
        copy.write_bytes(damaged)
        with page_file(copy) as file:
            try:
                pages = freepages.before(file.free(number), number + 1)
            except UnclearError:
                continue
        assert len(set(pages)) == len(pages)
        assert all(1 < page < len(whole) // PAGE for page in pages)


def garbled(whole: bytes, number: int) -> dict[str, bytes]:
    """Files that are wrong in one way each."""
    meta = (number & 1) * PAGE
    (root,) = struct.unpack_from("<Q", whole, meta + FREE_ROOT_AT)
    (last,) = struct.unpack_from("<Q", whole, meta + LAST_PAGE_AT)

    def with_number(at: int, value: int, form: str = "<Q") -> bytes:
        changed = bytearray(whole)
        struct.pack_into(form, changed, at, value)
        return bytes(changed)

    return {
        "nothing": b"",
        "zeros": bytes(len(whole)),
        "cut": whole[: root * PAGE + 100],
        "root beyond the end": with_number(meta + FREE_ROOT_AT, last + 1),
        "root in a meta page": with_number(meta + FREE_ROOT_AT, 1),
        "depth": with_number(meta + 16 + 24 + 6, 2, "<H"),
        "no depth": with_number(meta + 16 + 24 + 6, 0, "<H"),
        "number of records": with_number(meta + 16 + 24 + 32, 77),
        "number of leaves": with_number(meta + 16 + 24 + 16, 77),
        "flags of the root": with_number(root * PAGE + 10, 1, "<H"),
        "number of the root": with_number(root * PAGE, root + 1),
        "lower above upper": with_number(root * PAGE + 12, 4000, "<H"),
        "node beyond the page": with_number(root * PAGE + 16, 4095, "<H"),
        "last page below what is free": with_number(meta + LAST_PAGE_AT, root),
    }


@pytest.mark.parametrize("what", garbled(bytes(4 * PAGE), 0))
def test_garbled(env: lmdb.Environment, path: Path, tmp_path: Path, what: str) -> None:
    """A file that is not as LMDB writes it has no free pages."""
    copy = tmp_path / "copy"
    copy.write_bytes(garbled(path.read_bytes(), newest(env))[what])
    with pytest.raises(UnclearError), page_file(copy) as file:
        file.free(newest(env))


def test_a_page_in_two_lists(env: lmdb.Environment, path: Path, tmp_path: Path) -> None:
    """A page that is free twice, or free and part of the tree itself, makes everything doubtful."""
    whole = path.read_bytes()
    number = newest(env)
    with page_file(path) as file:
        lists = file.free(number)
    (root,) = struct.unpack_from("<Q", whole, (number & 1) * PAGE + FREE_ROOT_AT)
    page = struct.pack("<Q", lists[-1].pages[0])
    at = whole.index(page, root * PAGE, (root + 1) * PAGE)
    for other in (root, lists[0].pages[0]):
        changed = bytearray(whole)
        struct.pack_into("<Q", changed, at, other)
        copy = tmp_path / "copy"
        copy.write_bytes(changed)
        with pytest.raises(UnclearError), page_file(copy) as file:
            file.free(number)


# --- who reads ---


def test_oldest_readers(env: lmdb.Environment) -> None:
    """The readers that LMDB tells of, with their transactions; slots that nobody reads through do not count."""
    assert freepages.oldest_readers(env.readers()) == []
    with env.begin() as transaction:
        assert freepages.oldest_readers(env.readers()) == [transaction.id()]
        fill(env, range(1))
        with env.begin() as later:
            assert sorted(freepages.oldest_readers(env.readers())) == [transaction.id(), later.id()]
    assert freepages.oldest_readers(env.readers()) == []


@pytest.mark.parametrize(
    "table", ["", "(no reader locks)\n", "pid thread\n", "    pid     thread     txnid\n   12 ab\n", "x\n 1 2 3\n"]
)
def test_unclear_readers(table: str) -> None:
    """A table that is not understood is not taken for an empty one."""
    with pytest.raises(UnclearError):
        freepages.oldest_readers(table)


def test_no_locks_are_unclear(path: Path) -> None:
    """Without a lock file nobody knows who reads."""
    with lmdb.open(str(path), subdir=False, lock=False) as env, pytest.raises(UnclearError):
        freepages.oldest_readers(env.readers())


# --- holes ---


def test_holes(env: lmdb.Environment, path: Path) -> None:
    """Blocks go back, length and content stay, and what is punched once is not punched again."""
    before, length = content(env), path.stat().st_size
    with page_file(path) as file:
        occupied = file.occupied_bytes
        given = punch(env, path)
        assert given > 200 * PAGE
        assert occupied - file.occupied_bytes >= given - 16 * PAGE
    assert path.stat().st_size == length
    assert content(env) == before
    assert punch(env, path) == 0
    listed(path)


def test_fewest_and_reserve(env: lmdb.Environment, path: Path) -> None:
    """Short runs and the reserve keep their blocks."""
    with page_file(path) as file:
        free = freepages.before(file.free(newest(env)), newest(env))
    given = punch(env, path, fewest=4, reserve=32)
    assert given <= (len(free) - 32) * PAGE
    rest = punch(env, path)
    assert given + rest == len(free) * PAGE
    assert rest >= 32 * PAGE


def test_free_pages_are_not_missed(path: Path) -> None:
    """A file that ends before pages that are free lacks nothing; one that ends within a value does."""
    with opened(path) as env:
        fill(env, range(3))
        fill(env, range(3, 6), 40_000)
        empty(env, range(3, 6))
        for _ in range(4):
            fill(env, range(1), 10)  # what stood at the end moves to where there is room before
        last, newest = env.info()["last_pgno"], env.info()["last_txnid"]
        with page_file(path) as file:
            free = freepages.before(file.free(newest), newest + 1)
    at_the_end = next(count for count in range(last) if last - count not in free)
    assert at_the_end > 0
    os.truncate(path, (last + 1 - at_the_end) * PAGE)
    assert check(str(path))
    os.truncate(path, (last - at_the_end) * PAGE)
    with pytest.raises(UnsoundError):
        check(str(path))


def test_runs(tmp_path: Path) -> None:
    """Consecutive pages are one extent, and holes are none."""
    path = tmp_path / "data"
    with opened(path) as env:
        fill(env, range(20))
        with page_file(path) as file:
            assert file.occupied([]) == []
            assert file.occupied([3, 4, 5, 9]) == [Extent(3 * PAGE, 3 * PAGE), Extent(9 * PAGE, PAGE)]
            assert file.occupied([3, 4, 5, 9], fewest=2) == [Extent(3 * PAGE, 3 * PAGE)]
            assert file.occupied([10**6]) == []


def test_nothing_that_a_transaction_freed_just_now(path: Path) -> None:
    """What the newest transaction freed stays: LMDB falls back to the one before if a meta page is lost."""
    with opened(path) as env:
        fill(env, range(200))
        empty(env, range(200))
        assert punch(env, path) == 0
        fill(env, range(1))
        assert punch(env, path) > 150 * PAGE


def test_a_reader_in_another_process(path: Path) -> None:
    """What a reader of an old state sees stays as it is while it reads, and is given back afterwards."""
    with opened(path) as env:
        fill(env, range(300))
        script = """
            import sys, hashlib, lmdb
            env = lmdb.open(sys.argv[1], subdir=False, map_size=1 << 28)
            with env.begin() as transaction:
                def seen():
                    with transaction.cursor() as cursor:
                        return hashlib.sha256(b"".join(key + value for key, value in cursor)).hexdigest()
                print(seen(), flush=True)
                sys.stdin.readline()
                print(seen(), flush=True)
            print("ended", flush=True)
            sys.stdin.readline()
        """
        command = [sys.executable, "-c", dedent(script), str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin
            assert child.stdout
            first = child.stdout.readline()
            assert first.strip()
            empty(env, range(300))
            for key in range(3):
                fill(env, range(key, key + 1))
            # What was free before the child began to read may go, nothing else.
            assert punch(env, path) <= 16 * PAGE
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == first
            assert child.stdout.readline() == "ended\n"
            assert punch(env, path) > 200 * PAGE
            child.communicate("\n", timeout=30)
        assert child.returncode == 0


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens(path: Path, tmp_path: Path, seed: int) -> None:
    """After any series of puts, deletions and holes, every state that somebody can still come to is whole:

    the newest, the one before (LMDB falls back to it if the newest meta page is lost) and each open reader's.
    """
    draw = random.Random(seed)
    models: list[Model] = [{}]
    given = 0
    with opened(path) as env:
        readers: list[tuple[lmdb.Transaction[bytes], Model]] = []
        for _ in range(60):
            model = dict(models[-1])
            with env.begin(write=True) as transaction:
                # Something always changes: a commit that changes nothing is no transaction of LMDB's.
                key, value = b"turn", draw.randbytes(8)
                transaction.put(key, value)
                model[key] = value
                # Each key once: the verifier takes what LMDB makes of a value put twice for damage.
                for number in draw.sample(range(60), draw.choice((0, 2, 30))):
                    key = b"%03d" % number
                    if draw.random() < 0.5:
                        value = draw.randbytes(draw.choice((10, 900, 2500, 5000, 30000)))
                        transaction.put(key, value)
                        model[key] = value
                    else:
                        transaction.delete(key)
                        model.pop(key, None)
            models.append(model)
            if draw.random() < 0.3 and len(readers) < 3:
                readers.append((env.begin(), model))
            if readers and draw.random() < 0.3:
                readers.pop(draw.randrange(len(readers)))[0].abort()
            if draw.random() < 0.7:
                given += punch(env, path)
            for reader, seen in readers:
                with reader.cursor() as cursor:
                    assert dict(cursor) == seen
            assert content(env) == model
            if draw.random() < 0.3 and newest(env) > 2:
                crashed = tmp_path / "crashed"
                whole = bytearray(path.read_bytes())
                assert states_after_a_crash(crashed, whole, newest(env)) == [model, models[-2]]
        for reader, _ in readers:
            reader.abort()
        listed(path)
    assert given


def states_after_a_crash(path: Path, whole: bytearray, number: int) -> list[Model]:
    """What LMDB finds in a copy of the file: as it is, and with the newest meta page taken away."""
    found = []
    for lost in (False, True):
        if lost:
            # Not written at all, as far as LMDB can tell: it has the number of the transaction before last.
            struct.pack_into("<Q", whole, (number & 1) * PAGE + TRANSACTION_AT, number - 2)
        Path(f"{path}-lock").unlink(missing_ok=True)
        path.write_bytes(whole)
        if not lost:
            listed(path)
        with opened(path) as env:
            assert newest(env) == number - lost
            found.append(content(env))
    return found


def test_a_file_system_that_cannot(env: lmdb.Environment, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer "not supported" is told from other errors, which are told as they are."""
    import ctypes
    import errno

    def answer(code: int) -> None:
        def fallocate(*_: int) -> int:
            ctypes.set_errno(code)
            return -1

        monkeypatch.setattr(freepages, "_fallocate", fallocate)

    for code in (errno.EOPNOTSUPP, errno.ENOSYS):
        answer(code)
        with pytest.raises(UnableError):
            punch(env, path)
    answer(errno.EIO)
    with pytest.raises(OSError, match="Input/output error") as raised:
        punch(env, path)
    assert not isinstance(raised.value, UnableError)


def test_blocks_move_to_the_pages_that_are_used_next(tmp_path: Path) -> None:
    """As many free pages have blocks as before, and none that LMDB takes later than one without."""
    path = tmp_path / "data"
    env = opened(path)
    for start in range(0, 60, 20):
        fill(env, range(start, start + 20))
    for start in range(0, 60, 20):
        empty(env, range(start, start + 20))
    fill(env, range(100, 101))
    fill(env, range(101, 102))
    with page_file(path) as file, env.begin(write=True) as transaction:
        last = transaction.id() - 1
        pages = freepages.in_order_of_use(file.free(last), last)
        for page in pages[: len(pages) // 3 : 2]:
            file.punch(Extent(page * PAGE, PAGE))
        backed = sum(extent.length for extent in file.occupied(sorted(pages)))
        taken = file.occupied_bytes
        assert 0 < backed < len(pages) * PAGE
        assert 0 < file.move_blocks(pages) <= len(pages) * PAGE - backed
        # Blocks that were not written yet do not show as data everywhere, but are counted.
        assert file.occupied(sorted(pages[backed // PAGE :])) == []
        assert file.occupied_bytes == taken
        transaction.abort()
    fill(env, range(200, 220))
    env.close()
    assert listed(path)
