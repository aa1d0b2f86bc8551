"""Both meta pages after a failure to write one: the disk holds what is seen, and nothing else can come back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from building import step
from stepwell import Log
from stepwell.storage.lmdb import freepages, metapages

PAGE = 4096
TRANSACTION_AT = 16 + 128
LAST_PAGE_AT = 16 + 120

pytestmark = pytest.mark.skipif(not freepages.can_read(), reason="files of LMDB look different here")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of three steps."""
    path = tmp_path / "agents.stepwell"
    with Log.open(path) as log:
        for number in range(3):
            log.thread("t").append([step(f"s{number}")])
    return path


def transactions(path: Path) -> list[int]:
    """The numbers on the two meta pages."""
    data = path.read_bytes()
    return [int.from_bytes(data[at : at + 8], "little") for at in (TRANSACTION_AT, PAGE + TRANSACTION_AT)]


def write(path: Path, offset: int, number: int) -> None:
    """Change a number in the file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(number.to_bytes(8, "little"))


def ids(path: Path) -> list[str]:
    """The steps that a copy of the file shows; it is audited."""
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    with Log.open(copy) as log:
        assert log.audit().breaches == []
        return [each.step_id for each in log.thread("t").steps()]


@pytest.mark.parametrize("lost", [0, 1])
def test_either_page_leads_to_the_newest_state(path: Path, lost: int) -> None:
    """Whichever of the two pages a power cut takes back, the state is the newest."""
    newest = max(transactions(path))
    place = PAGE * ((newest - lost) & 1)
    before = path.read_bytes()[place : place + PAGE]
    metapages.settle(str(path), newest)
    assert sorted(transactions(path)) == [newest - 1, newest]
    if lost == 0:
        write(path, place + TRANSACTION_AT, newest - 2)  # what stood there before the newest
    else:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(before)
    assert ids(path) == ["s2", "s1", "s0"]


def test_a_failed_transaction_does_not_come_back(path: Path) -> None:
    """What LMDB has left of the meta page that it could not write is gone."""
    newest = max(transactions(path))
    older = PAGE * ((newest + 1) & 1)
    write(path, older + LAST_PAGE_AT, 1 << 30)
    metapages.settle(str(path), newest)
    write(path, PAGE * (newest & 1) + TRANSACTION_AT, newest - 2)
    assert ids(path) == ["s2", "s1", "s0"]


@pytest.mark.parametrize("damage", ["other transaction", "no pages"])
def test_what_is_not_understood_is_not_written(path: Path, damage: str) -> None:
    """A file whose newest page is not of that transaction, or that is none of LMDB's, stays as it is."""
    newest = max(transactions(path))
    if damage == "no pages":
        path.write_bytes(b"something else" * 1000)
    before = path.read_bytes()
    with pytest.raises(OSError, match="meta page"):
        metapages.settle(str(path), newest + (damage != "no pages"))
    assert path.read_bytes() == before
