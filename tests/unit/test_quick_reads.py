"""Coroutines read what is small in the event loop, and what is not, in a thread; both find the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from building import noise
from conformance.calls import checkpoint_of, config_of, new_id, new_version
from stepwell import ClosedError
from stepwell_langgraph import StepwellSaver
from stepwell_langgraph import saver as module


class Watched(JsonPlusSerializer):
    """Notes the threads that it decodes values in."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.threads.add(threading.get_ident())
        return super().loads_typed(data)


def saver_at(path: Path) -> tuple[StepwellSaver, Watched]:
    serde = Watched()
    return StepwellSaver.from_conn_string(path, serde=serde), serde


def put(saver: StepwellSaver, values: dict[str, Any], after: Any = None) -> Any:
    """Put the first checkpoint of the thread, or one after another."""
    versions = {name: new_version() for name in values}
    return saver.put(after or config_of(), checkpoint_of(new_id(), values, versions), {"source": "loop"}, versions)


async def is_read_in_loop(saver: StepwellSaver, serde: Watched, config: Any = None) -> bool:
    serde.threads.clear()
    found = await saver.aget_tuple(config or config_of())
    assert found is not None
    in_loop = serde.threads == {threading.get_ident()}
    assert in_loop or threading.get_ident() not in serde.threads
    assert found == saver.get_tuple(config or config_of())
    return in_loop


async def test_what_is_small_and_was_used_lately(tmp_path: Path) -> None:
    """It stays in the loop: asking a thread for it would take longer."""
    saver, serde = saver_at(tmp_path / "log.stepwell")
    with saver:
        stored = put(saver, {"messages": [HumanMessage("a", id="1")]})
        assert await is_read_in_loop(saver, serde)
        assert await is_read_in_loop(saver, serde)
        assert await is_read_in_loop(saver, serde, stored)


async def test_what_is_large(tmp_path: Path) -> None:
    """It is read in a thread."""
    saver, serde = saver_at(tmp_path / "log.stepwell")
    with saver:
        put(saver, {"x": "x" * module._QUICK_BYTES})
        assert not await is_read_in_loop(saver, serde)


async def test_what_is_large_beside_what_was_read_last(tmp_path: Path) -> None:
    """Reading an earlier checkpoint says nothing of the head."""
    saver, serde = saver_at(tmp_path / "log.stepwell")
    with saver:
        small = put(saver, {"x": 1})
        put(saver, {"x": "x" * module._QUICK_BYTES}, small)
        assert not await is_read_in_loop(saver, serde, small)
        assert await is_read_in_loop(saver, serde, small)
        assert not await is_read_in_loop(saver, serde)


async def test_what_refers_to_something_large_or_has_large_writes(tmp_path: Path) -> None:
    """A small state may be read from large records."""
    saver, serde = saver_at(tmp_path / "log.stepwell")
    with saver:
        stored = put(saver, {"x": 1})
        saver.put_writes(stored, [("x", noise(module._QUICK_RECORDS_BYTES))], "task")
        assert not await is_read_in_loop(saver, serde)


async def test_others_go_on_meanwhile(tmp_path: Path) -> None:
    """Coroutines that do nothing but read leave the loop to what else is due, one after the other or all at once."""
    saver, serde = saver_at(tmp_path / "log.stepwell")
    turns = [0]

    async def other() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def read(times: int) -> None:
        for _ in range(times):
            assert await saver.aget_tuple(config_of())

    with saver:
        put(saver, {"x": 1})
        assert await is_read_in_loop(saver, serde)
        going_on = asyncio.ensure_future(other())
        for readers in ([read(20)], [read(1) for _ in range(20)]):
            turns[0] = 0
            await asyncio.gather(*readers)
            assert turns[0] >= 8
        going_on.cancel()


async def test_what_was_not_used_by_this_saver(tmp_path: Path) -> None:
    """Nobody knows how large it is."""
    saver, serde = saver_at(tmp_path / "log.stepwell")
    with saver, StepwellSaver(saver.log) as other:
        put(other, {"x": 1})
        assert not await is_read_in_loop(saver, serde)
        assert await is_read_in_loop(saver, serde)


async def test_what_much_was_committed_of_since(tmp_path: Path) -> None:
    """All of it has to be folded, so it is read in a thread; then it has been."""
    saver, serde = saver_at(tmp_path / "log.stepwell")
    with saver:
        stored = None
        for number in range(module._QUICK_EVENTS):
            stored = put(saver, {"x": number}, stored)
        assert not await is_read_in_loop(saver, serde)
        assert await is_read_in_loop(saver, serde)


async def test_what_is_sealed(tmp_path: Path) -> None:
    """Whole segments may have to be unpacked for it."""
    saver, serde = saver_at(tmp_path / "log.stepwell")
    with saver:
        put(saver, {"x": 1})
        saver.log.seal()
        assert not await is_read_in_loop(saver, serde)


def put_twice(saver: StepwellSaver, message: HumanMessage, change: Callable[[], None]) -> None:
    """Put a message, and change it before a put that does not look at it: it is too large, and has no new version."""
    versions = {"message": new_version(), "number": new_version()}
    first = checkpoint_of(new_id(), {"message": message, "number": 1}, versions)
    stored = saver.put(config_of(), first, {"source": "loop"}, versions)
    change()
    moved = {"number": new_version()}
    second = checkpoint_of(new_id(), {"message": message, "number": 2}, {**versions, **moved})
    saver.put(stored, second, {"source": "loop"}, moved)


@pytest.mark.parametrize("size", [5_000, 50_000])
async def test_late_changes_are_stored_first(size: int, tmp_path: Path) -> None:
    """An object that was changed in place is handed out as it is now, and is so in the log."""
    saver, _ = saver_at(tmp_path / "log.stepwell")
    message = HumanMessage("a" * size, id="1")
    with saver:
        put_twice(saver, message, lambda: setattr(message, "content", "b" * size))
        found = await saver.aget_tuple(config_of())
        assert found is not None
        assert found.checkpoint["channel_values"]["message"].content == message.content
    with StepwellSaver.from_conn_string(tmp_path / "log.stepwell") as saver:
        assert saver.get_tuple(config_of()) == found


@pytest.mark.parametrize("ending", ["cancelled", "closed"])
async def test_late_changes_are_stored_however_the_reading_ends(ending: str, tmp_path: Path) -> None:
    """Also where no thread is free: nobody else looks at the objects any more."""
    saver, _ = saver_at(tmp_path / "log.stepwell")
    message = HumanMessage("a" * 5_000, id="1")
    busy = threading.Event()
    with ThreadPoolExecutor(1) as threads, saver:
        asyncio.get_running_loop().set_default_executor(threads)
        threads.submit(busy.wait)
        put_twice(saver, message, lambda: setattr(message, "content", "b" * 5_000))
        reading = asyncio.ensure_future(saver.aget_tuple(config_of()))
        await asyncio.sleep(0)
        if ending == "cancelled":
            reading.cancel()
        saver.close()
        busy.set()
        with pytest.raises(asyncio.CancelledError if ending == "cancelled" else ClosedError):
            await reading
    with StepwellSaver.from_conn_string(tmp_path / "log.stepwell") as saver:
        found = saver.get_tuple(config_of())
    assert found is not None
    assert found.checkpoint["channel_values"]["message"].content == message.content


async def test_what_can_be_encoded_no_more_keeps_nobody_from_reading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was put is stored; the late change is told, and left out."""
    saver, _ = saver_at(tmp_path / "log.stepwell")
    message = HumanMessage("a" * 5_000, id="1")
    with saver:
        put_twice(saver, message, lambda: message.additional_kwargs.update(key=object()))
        found = await saver.aget_tuple(config_of())
        assert found is not None
        assert found.checkpoint["channel_values"]["message"] == HumanMessage("a" * 5_000, id="1")
    assert "could not be stored" in caplog.text


async def test_threads_that_are_not_there(tmp_path: Path) -> None:
    saver, _ = saver_at(tmp_path / "log.stepwell")
    with saver:
        assert await saver.aget_tuple(config_of("nobody")) is None
        put(saver, {"x": 1})
        saver.delete_thread("thread")
        assert await saver.aget_tuple(config_of()) is None
