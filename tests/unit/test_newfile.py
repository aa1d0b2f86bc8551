"""A file that appears whole, or not at all."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from stepwell import UsageError
from stepwell.storage.newfile import SUFFIX, NewFile


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def like(tmp_path: Path) -> os.stat_result:
    """A file that only its owner may read."""
    path = tmp_path / "like"
    path.touch(0o600)
    return path.stat()


def names(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} - {"like"}


def test_a_name_is_taken(target: Path, like: os.stat_result) -> None:
    """The file has its name alone, and permissions as it was told."""
    with NewFile(str(target)) as file:
        os.write(file.fileno(), b"whole")
        assert names(target) == {target.name + SUFFIX}
        file.take_name(like)
        assert names(target) == {target.name}
    assert target.read_bytes() == b"whole"
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.stat().st_nlink == 1


def test_what_is_there_is_not_replaced_unasked(target: Path, like: os.stat_result) -> None:
    """`take_name` leaves a file of that name as it is, though it came in the last moment; `replace` replaces it."""
    with NewFile(str(target)) as file:
        os.write(file.fileno(), b"new")
        target.write_bytes(b"old")
        with pytest.raises(FileExistsError):
            file.take_name(like)
        assert target.read_bytes() == b"old"
        file.replace(like)
    assert target.read_bytes() == b"new"
    assert names(target) == {target.name}


def test_nothing_is_left_of_a_failure(target: Path) -> None:
    """A block that ends without a name, or is interrupted, leaves no file."""

    def write_half() -> None:
        with NewFile(str(target)) as file:
            os.write(file.fileno(), b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert names(target) == set()


def test_what_a_dead_process_left_is_removed(target: Path, like: os.stat_result) -> None:
    """A draft that nobody writes any more is not gone on with, and not emptied where it has its name already."""
    draft = target.with_name(target.name + SUFFIX)
    draft.write_bytes(b"of old")
    os.link(draft, target)
    with NewFile(str(target)) as file:
        os.write(file.fileno(), b"new")
        assert target.read_bytes() == b"of old"
        file.replace(like)
    assert target.read_bytes() == b"new"
    assert names(target) == {target.name}


def test_two_do_not_write_the_same_file(target: Path) -> None:
    """While one writes, another thread or process is refused."""
    with NewFile(str(target)), pytest.raises(UsageError, match="writing"):
        NewFile(str(target))
    NewFile(str(target)).__exit__()


def test_many_at_once(target: Path, like: os.stat_result) -> None:
    """Of many that want the same name one gets it, each writes a file of its own, and nothing else is left."""
    taken: list[int] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for _ in range(20):
            try:
                with NewFile(str(target)) as file:
                    os.write(file.fileno(), b"%d" % number)
                    file.take_name(like)
                    taken.append(number)
            except (UsageError, FileExistsError):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % number for number in taken] == [target.read_bytes()]
    assert names(target) == {target.name}


def test_where_there_are_no_links(target: Path, like: os.stat_result, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links the file is renamed, and what is there is left all the same."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    for content in (b"first", b"second"):
        with NewFile(str(target)) as file:
            os.write(file.fileno(), content)
            if content == b"first":
                file.take_name(like)
            else:
                with pytest.raises(FileExistsError):
                    file.take_name(like)
    assert target.read_bytes() == b"first"
    assert names(target) == {target.name}
