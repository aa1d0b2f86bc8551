"""Full and failing disks, full maps: a sample of what `make full` plays in whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from crash import faults, full
from crash.recorder import NoCompilerError, build

SHARE = 0.08


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where syncs cost nothing, if there is such a place."""
    if full.MEMORY.is_dir():
        with TemporaryDirectory(dir=full.MEMORY) as name:
            yield Path(name)
    else:
        yield tmp_path


@pytest.fixture
def seed() -> int:
    """Chooses what is played; shown if the test fails."""
    chosen = random.randrange(10**9)
    print(f"seed {chosen}")
    return chosen


def test_any_call_of_any_operation_may_be_refused(folder: Path, seed: int, tmp_path: Path) -> None:
    """A write, sync or allocation that fails loses nothing, leaves nothing half done, and is over when it is over."""
    try:
        library = build(tmp_path, faults.SOURCE)
    except NoCompilerError as error:
        pytest.skip(str(error))
    tally = faults.run(library, folder, share=SHARE, seed=seed)
    assert sum(tally.values()) > 10


@pytest.mark.parametrize("place", ["map", "tmpfs with neighbours"])
def test_a_full_place_is_emptied_and_filled_again(place: str, folder: Path, seed: int) -> None:
    """Where nothing fits any more all reads go on, threads can be deleted, and appends go on in what they freed."""
    try:
        tally = full.run(place, folder, count=2, seed=seed)
    except full.UnavailableError as error:
        pytest.skip(str(error))
    assert tally["again"] > 0
