"""The look at a file before it is mapped into memory."""

from __future__ import annotations

import os
import socket
import struct
from itertools import product
from pathlib import Path

import lmdb
import pytest

from stepwell import CorruptionError, Log, NotALogError, UsageError
from stepwell.storage.lmdb.datafile import Finding, inspect

MAGIC = 0xBEEFC0DE


def meta(
    last_page: int,
    transaction: int,
    page_bytes: int = 4096,
    magic: int = MAGIC,
    format_: int = 1,
    number: int | None = None,
    flags: int = 8,
) -> bytes:
    """A meta page; every other transaction writes page 1.  It says that there are no tables."""
    number = transaction % 2 if number is None else number
    trees = struct.pack("=IHH4QqIHH4Qq", page_bytes, 8, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0, -1)
    head = (
        struct.pack("=Q2xH4xII16x", number, flags, magic, format_) + trees + struct.pack("=QQ", last_page, transaction)
    )
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
    pages = (
        [meta(5, 8, page_bytes), meta(3, 7, page_bytes)]
        if newer == 0
        else [meta(3, 6, page_bytes), meta(5, 7, page_bytes)]
    )
    head = b"".join(pages)
    for count, finding in ((6, Finding.WHOLE), (9, Finding.WHOLE), (5, Finding.SHORT), (4, Finding.SHORT)):
        assert found(tmp_path / "log", head + bytes((count - 2) * page_bytes)) is finding
    assert found(tmp_path / "log", head + bytes(4 * page_bytes - 1)) is Finding.SHORT


def test_shrunk(tmp_path: Path) -> None:
    """Pages that only the older meta page speaks of may be missing."""
    head = meta(3, 8) + meta(9, 7)
    assert found(tmp_path / "log", head + bytes(2 * 4096)) is Finding.WHOLE


@pytest.mark.parametrize(
    "content",
    [
        *((meta(1, 0) + meta(1, 1))[:length] for length in (4096, 4097, 4200)),
        meta(1, 2) + bytes(4096),
        bytes(4096) + meta(1, 1),
        bytes(512) + meta(1, 1, 512),
        meta(1, 2) + meta(1, 1, magic=0),
        meta(1, 2) + meta(1, 1, 8192),
        meta(1, 2, number=1) + meta(1, 1),
        meta(1, 2) + meta(1, 1, number=0),
        meta(1, 2, flags=2) + meta(1, 1),
        meta(1, 2) + meta(1, 1, flags=24),
    ],
)
def test_damaged_meta_page(tmp_path: Path, content: bytes) -> None:
    """A file of which one meta page is there and the other one is not is a damaged log."""
    with pytest.raises(CorruptionError, match=r"meta page [01] of .*log' is damaged"):
        found(tmp_path / "log", content)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 2), (2, 5), (4, 1), (8, 8), (0, 3), (3, 3)])
def test_transactions_of_meta_pages(tmp_path: Path, one: int, other: int) -> None:
    """Meta pages that are not of transactions in a row, each in its place, are damaged."""
    content = meta(1, one, number=0) + meta(1, other, number=1)
    with pytest.raises(CorruptionError, match=f"of transactions {one} and {other}"):
        found(tmp_path / "log", content)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"some text " * 20,
        b"some text " * 2000,
        b"SQLite format 3\0" + bytes(20000),
        meta(1, 0)[:150],
        meta(1, 0, magic=MAGIC + 1),
        meta(1, 0, page_bytes=0),
        meta(1, 0, page_bytes=4095),
        meta(1, 0, page_bytes=1 << 20),
    ],
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    """A file without any meta page of LMDB is no log."""
    with pytest.raises(NotALogError, match=r"not a stepwell log; .* choose another path"):
        found(tmp_path / "log", content)


def test_other_formats(tmp_path: Path) -> None:
    """A file of another format of LMDB is no log, and the message says which format it has."""
    for one, other in product((1, 2, 999), repeat=2):
        if (one, other) != (1, 1):
            with pytest.raises(NotALogError, match=r"LMDB format (2|999)"):
                found(tmp_path / "log", meta(1, 2, format_=one) + meta(1, 1, format_=other))


@pytest.mark.parametrize(
    ("content", "origin"),
    [
        (bytes(24) + struct.pack("=II", MAGIC, 3) + bytes(8192), r"LMDB 1\.0"),
        (bytes(12) + struct.pack("=II", MAGIC, 1) + bytes(8192), "32-bit"),
        (bytes(16) + struct.pack("=I", MAGIC)[::-1] + bytes(8192), "byte order"),
        (bytes(12) + struct.pack("=I", MAGIC)[::-1] + bytes(8192), "byte order"),
    ],
)
def test_other_machines(tmp_path: Path, content: bytes, origin: str) -> None:
    """A file of LMDB 1.0, of a 32-bit system or of the other byte order is told as that."""
    with pytest.raises(NotALogError, match=origin):
        found(tmp_path / "log", content)


def test_places(tmp_path: Path) -> None:
    """What is no file is no log, and in a folder that does not exist there can be none."""
    with pytest.raises(NotALogError, match="directory"):
        inspect("folder", str(tmp_path))
    with pytest.raises(NotALogError, match="device"):
        inspect("null", os.devnull)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotALogError, match="pipe"):  # and does not wait for somebody to write to it
        inspect("pipe", str(tmp_path / "pipe"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(NotALogError, match="socket"):
            inspect("socket", str(tmp_path / "socket"))
    with pytest.raises(UsageError, match="does not exist"):
        inspect("log", str(tmp_path / "none" / "log"))


def test_real_files(tmp_path: Path) -> None:
    """Every state of a file that LMDB grows and empties is found to be whole, or is short by free pages only."""
    path = tmp_path / "log"
    Log.open(path).close()
    with lmdb.open(str(path), subdir=False, max_dbs=20) as env:
        table = env.open_db(b"table")
        for number in range(60):
            with env.begin(write=True, db=table) as transaction:
                transaction.put(b"%d" % number, bytes(5000))
                if number % 7 == 6:
                    transaction.drop(table, delete=False)
            info = env.info()
            expected = path.stat().st_size >= (info["last_pgno"] + 1) * 4096
            assert (inspect(str(path), str(path)) is Finding.WHOLE) == expected
