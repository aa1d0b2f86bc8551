"""Agents whose process is killed with SIGKILL, and another process that goes on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agents.child import LIVES, show
from agents.driver import CONTENDER, Run, SaverFile, drive, memory
from agents.history import Rendered, first_difference

DEADLINE_SECONDS = 60


@contextmanager
def child(file: SaverFile, life: str, part: int, durability: str, asynchronous: bool) -> Iterator[Any]:
    """A child process with one part of a life; killed at the end if it has not ended by itself."""
    arguments = [CONTENDER, str(file.path), life, str(part), durability, str(asynchronous)]
    with subprocess.Popen(
        [sys.executable, "-m", "agents.child", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def last_part(file: SaverFile, life: str, durability: str, asynchronous: bool) -> Rendered:
    with child(file, life, len(LIVES[life]) - 1, durability, asynchronous) as process:
        shown, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    return json.loads(shown)


def unkilled(life: str, durability: str, asynchronous: bool) -> Rendered:
    """What the thread shows when one process lives the whole life with an `InMemorySaver`."""

    async def live() -> Rendered:
        file = memory(Path())
        for part in LIVES[life]:
            run = Run(file, asynchronous, durability)
            await part(run)
        return await show(run)

    return drive(live(), asynchronous)


def assert_same(expected: Rendered, actual: Rendered) -> None:
    if difference := first_difference(expected, actual):
        pytest.fail(difference, pytrace=False)


@pytest.mark.parametrize(
    ("durability", "asynchronous"),
    [("sync", False), ("async", True), ("exit", False)],
    ids=["sync-invoke", "async-ainvoke", "exit-invoke"],
)
def test_a_deep_agent_killed_at_its_interrupts_goes_on_in_another_process(
    durability: str, asynchronous: bool, make_saver: Callable[[], SaverFile]
) -> None:
    """Killed at an approval, then at one inside a sub-agent, the thread ends as if never killed."""
    file, life = make_saver(), "deep agent"
    for part in range(len(LIVES[life]) - 1):
        with child(file, life, part, durability, asynchronous) as process:
            assert process.stdout.readline() == "ready\n"
        assert process.returncode == -9
    actual = last_part(file, life, durability, asynchronous)
    assert_same(unkilled(life, durability, asynchronous), actual)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["invoke", "ainvoke"])
def test_an_agent_killed_inside_a_tool_repeats_that_tool_only(
    asynchronous: bool, make_saver: Callable[[], SaverFile]
) -> None:
    """The sibling call, whose result another process could read before the kill, is not made again."""
    file, life = make_saver(), "killed in a tool"
    with child(file, life, 0, "sync", asynchronous) as process:
        assert process.stdout.readline() == "ready\n"
        wait_until_stored(file, "reefs weighs 5")
    assert process.returncode == -9
    actual = last_part(file, life, "sync", asynchronous)
    expected = unkilled("never killed", "sync", asynchronous)
    assert expected["notes"].pop(1) == ["weighed", ["list", ["sand", "reefs"]]]
    for checkpoint in actual["checkpoints"]["root"]:
        # A run that resumes marks all versions as seen by interrupts; the one never killed had none to pass.
        checkpoint["versions_seen"].pop("__interrupt__", None)
    assert_same(expected, actual)


def wait_until_stored(file: SaverFile, content: str) -> None:
    """Read the file of the living child until the message is among the pending writes."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with file.open_sync(file.path) as saver:
            for saved in saver.list({"configurable": {"thread_id": "thread-1"}}):
                for _, channel, value in saved.pending_writes or []:
                    if channel == "messages" and any(message.content == content for message in value):
                        return
        time.sleep(0.02)
    pytest.fail(f"{content!r} was not stored in {DEADLINE_SECONDS} s")
