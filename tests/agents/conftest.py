"""The saver under test, and the audit of every file a test has written."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agents.driver import CONTENDER, CONTENDERS, SaverFile


@pytest.fixture
def make_saver(tmp_path: Path) -> Iterator[Callable[[], SaverFile]]:
    """Makes saver files of the contender; when the test ends, the audit of each reports no breach."""
    files: list[SaverFile] = []

    def make() -> SaverFile:
        files.append(CONTENDERS[CONTENDER](tmp_path / f"{len(files)}.{CONTENDER}"))
        return files[-1]

    yield make
    if CONTENDER == "stepwell":
        for file in files:
            with file.open_sync(file.path) as saver:
                assert saver.log.audit().breaches == []
