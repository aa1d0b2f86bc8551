"""The look at a file before it is mapped into memory."""

from __future__ import annotations

import struct
from itertools import product
from pathlib import Path

import lmdb
import pytest

from stepwell import NotALogError, UsageError
from stepwell.storage.datafile import Finding, inspect

MAGIC = 0xBEEFC0DE


def meta(last_page: int, transaction: int, page_bytes: int = 4096, magic: int = MAGIC, format_: int = 1) -> bytes:
    """A meta page."""
    head = bytes(16) + struct.pack("=II16xI92xQQ", magic, format_, page_bytes, last_page, transaction)
    return head + bytes(page_bytes - len(head) if page_bytes > len(head) else 0)


def found(path: Path, content: bytes) -> Finding:
    """What is found in a file with this content."""
    path.write_bytes(content)
    return inspect(str(path), str(path))


def test_nothing(tmp_path: Path) -> None:
    """No file, or an empty one, is nothing."""
    assert inspect("log", str(tmp_path / "log")) is Finding.NOTHING
    assert found(tmp_path / "log", b"") is Finding.NOTHING


@pytest.mark.parametrize("page_bytes", [512, 4096, 16384, 65536])
@pytest.mark.parametrize("newer", [0, 1])
def test_length(tmp_path: Path, newer: int, page_bytes: int) -> None:
    """A file is whole if it has all pages that the newer meta page speaks of, whichever of the two that is."""
    pages = [meta(5, 8, page_bytes), meta(3, 7, page_bytes)]
    head = b"".join(pages if newer == 0 else pages[::-1])
    for count, finding in ((6, Finding.WHOLE), (9, Finding.WHOLE), (5, Finding.SHORT), (4, Finding.SHORT)):
        assert found(tmp_path / "log", head + bytes((count - 2) * page_bytes)) is finding
    assert found(tmp_path / "log", head + bytes(4 * page_bytes - 1)) is Finding.SHORT


def test_shrunk(tmp_path: Path) -> None:
    """Pages that only the older meta page speaks of may be missing."""
    head = meta(9, 7) + meta(3, 8)
    assert found(tmp_path / "log", head + bytes(2 * 4096)) is Finding.WHOLE


@pytest.mark.parametrize("length", [4096, 4097, 4200, 8191])
def test_second_meta_page(tmp_path: Path, length: int) -> None:
    """A file that ends before the end of its second meta page is short."""
    assert found(tmp_path / "log", (meta(1, 0) + meta(1, 1))[:length]) is Finding.SHORT


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"some text " * 20,
        meta(1, 1)[:150],
        meta(1, 1, magic=MAGIC + 1),
        meta(1, 1, page_bytes=0),
        meta(1, 1, page_bytes=4095),
        meta(1, 1, page_bytes=1 << 20),
        meta(1, 1) + bytes(4096),
        meta(1, 1) + meta(1, 2, magic=0),
    ],
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    """A file without two meta pages of LMDB is no log."""
    with pytest.raises(NotALogError, match="not a stepwell log"):
        found(tmp_path / "log", content)


def test_other_formats(tmp_path: Path) -> None:
    """A file of another format of LMDB is no log, and the message says which format it has."""
    for one, other in product((1, 2, 999), repeat=2):
        if (one, other) != (1, 1):
            with pytest.raises(NotALogError, match=r"LMDB format (2|999)"):
                found(tmp_path / "log", meta(1, 1, format_=one) + meta(1, 2, format_=other))


def test_places(tmp_path: Path) -> None:
    """A folder is no log, and in a folder that does not exist there can be none."""
    with pytest.raises(NotALogError, match="directory"):
        inspect("folder", str(tmp_path))
    with pytest.raises(UsageError, match="does not exist"):
        inspect("log", str(tmp_path / "none" / "log"))


def test_real_files(tmp_path: Path) -> None:
    """Every state of a file that LMDB grows and empties is found to be whole, or is short by free pages only."""
    path = tmp_path / "log"
    with lmdb.open(str(path), subdir=False, max_dbs=2) as env:
        table = env.open_db(b"table")
        for number in range(60):
            with env.begin(write=True, db=table) as transaction:
                transaction.put(b"%d" % number, bytes(5000))
                if number % 7 == 6:
                    transaction.drop(table, delete=False)
            info = env.info()
            expected = path.stat().st_size >= (info["last_pgno"] + 1) * 4096
            assert (inspect(str(path), str(path)) is Finding.WHOLE) == expected
