"""Ids of any length and characters, and what is said about those of a wrong type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conformance.calls import Calls, checkpoint_of, config_of, id_of, ids, new_id, shown
from stepwell.errors import UsageError

only_ours = pytest.mark.parametrize("saver", ["file", "memory"], indirect=True)

# Pairs, prefixes and near misses of one another: whatever mixes any two of them up fails.
ALIKE = (
    "1",
    "12",
    "112",
    "01",
    "1 ",
    " 1",
    "1\x00",
    "1\x002",
    "\x00",
    "\x001",
    "1\n",
    "1/2",
    "1|2",
    "1:2",
    "a",
    "A",
    "é",
    "e\u0301",
    "🎉",
    "👩‍👩‍👧",
    "\ufeff1",
    "\uffff",
    "\U0010ffff",
    "null",
    "None",
    "%",
    "_",
    "' OR 1=1 --",
    "../../etc/passwd",
    "x" * 511,
    "x" * 512,
    "x" * 100_000,
    "x" * 100_000 + "y",
    "🎉" * 25_000,
)


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) < 30 else f"{text[:12]}... {len(text)} characters"


class TestAnyCharacters:
    """No id is mistaken for another."""

    async def test_threads(self, calls: Calls) -> None:
        """Thread ids that look alike, or hold one another, name threads of their own."""
        for thread in ALIKE:
            stored = await calls.step(None, {"x": thread}, thread=thread)
            await calls.put_writes(stored, [("x", thread)], "task")
        for thread in ALIKE:
            [found] = await calls.list(config_of(thread, None))
            assert found.config["configurable"]["thread_id"] == thread
            assert found.checkpoint["channel_values"] == {"x": thread}
            assert found.pending_writes == [("task", "x", thread)]
            assert shown(await calls.get_tuple(config_of(thread))) == shown(found)
        listed = {each.config["configurable"]["thread_id"] for each in await calls.list(None)}
        assert listed == set(ALIKE)

    async def test_namespaces(self, calls: Calls) -> None:
        """Namespaces that look alike, or hold one another, are lanes of their own."""
        for ns in ALIKE:
            await calls.step(None, {"x": ns}, ns=ns)
        for ns in ALIKE:
            [found] = await calls.list(config_of(ns=ns))
            assert found.config["configurable"]["checkpoint_ns"] == ns
            assert found.checkpoint["channel_values"] == {"x": ns}
            assert shown(await calls.get_tuple(config_of(ns=ns))) == shown(found)
        listed = await calls.list(config_of(ns=None))
        assert {each.config["configurable"]["checkpoint_ns"] for each in listed} == set(ALIKE)

    async def test_checkpoints(self, calls: Calls) -> None:
        """Checkpoint ids need be neither UUIDs nor short, and each finds its own checkpoint and parent."""
        config = None
        for id in sorted(ALIKE):
            config = await calls.step(config, {"x": id}, id=id)
            await calls.put_writes(config, [("x", id)], "task")
        parent = None
        for id in sorted(ALIKE):
            found = await calls.get_tuple(config_of(id=id))
            assert found.checkpoint["id"] == id
            assert found.checkpoint["channel_values"] == {"x": id}
            assert found.pending_writes == [("task", "x", id)]
            assert (found.parent_config and id_of(found.parent_config)) == parent
            parent = id
        assert ids(await calls.list(config_of())) == sorted(ALIKE, reverse=True)
        before = {"configurable": {"checkpoint_id": "1|2"}}
        assert ids(await calls.list(config_of(), before=before)) == sorted(
            (id for id in ALIKE if id < "1|2"), reverse=True
        )

    async def test_tasks_and_paths(self, calls: Calls) -> None:
        """Task ids and task paths that look alike keep their writes apart, in the order of path and id."""
        stored = await calls.step()
        for task in ALIKE:
            await calls.put_writes(stored, [("x", f"by id {task}")], task)
        for path in ALIKE:
            await calls.put_writes(stored, [("x", f"by path {path}")], f"under {path}", path)
        expected = [(task, "x", f"by id {task}") for task in sorted(ALIKE)]
        expected += [(f"under {path}", "x", f"by path {path}") for path in sorted(ALIKE)]
        assert (await calls.get_tuple(stored)).pending_writes == expected

    async def test_channels(self, calls: Calls) -> None:
        """Channel names that look alike are channels of their own, in values, versions and writes."""
        values = {channel: [channel] for channel in ALIKE}
        stored = await calls.step(None, values)
        await calls.put_writes(stored, [(channel, channel) for channel in ALIKE], "task")
        found = await calls.get_tuple(stored)
        assert found.checkpoint["channel_values"] == values
        assert set(found.checkpoint["channel_versions"]) == set(ALIKE)
        assert found.pending_writes == [("task", channel, channel) for channel in ALIKE]
        head = await calls.step(stored)
        history = await calls.history(head, *ALIKE)
        assert {channel: each["writes"] for channel, each in history.items()} == {
            channel: [("task", channel, channel)] for channel in ALIKE
        }

    async def test_joined_ids(self, calls: Calls) -> None:
        """Ids whose concatenations are equal name different things."""
        triples = [("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd"), ("abc", "", "d")]
        for thread, ns, id in triples:
            await calls.step(None, {"x": [thread, ns, id]}, thread=thread, ns=ns, id=id)
        for thread, ns, id in triples:
            found = await calls.get_tuple(config_of(thread, ns, id))
            assert found.checkpoint["channel_values"] == {"x": [thread, ns, id]}
        assert len(await calls.list(None)) == 4

    async def test_thread_deletion(self, calls: Calls) -> None:
        """Deleting each of many like-named threads in turn leaves the others whole."""
        for thread in ALIKE:
            await calls.step(None, {"x": thread}, thread=thread)
        left = list(ALIKE)
        while left:
            await calls.delete_thread(left.pop(len(left) // 2))
            listed = {each.config["configurable"]["thread_id"] for each in await calls.list(None)}
            assert listed == set(left)

    @only_ours
    async def test_lone_surrogates(self, calls: Calls) -> None:
        """Thread ids that UTF-8 cannot encode are kept apart or refused, never merged."""
        accepted = []
        for thread in ("\ud800", "\ud801", "a\udc00", "?", "\ufffd"):
            try:
                await calls.step(None, {"x": [len(accepted)]}, thread=thread)
            except UsageError:
                continue
            accepted.append(thread)
        for number, thread in enumerate(accepted):
            [found] = await calls.list(config_of(thread))
            assert found.checkpoint["channel_values"] == {"x": [number]}
        assert {"?", "\ufffd"} <= set(accepted)


@contextmanager
def _refused(argument: str) -> Iterator[None]:
    """Expect a UsageError that is also a ValueError and names the argument."""
    with pytest.raises(UsageError, match=argument) as caught:
        yield
    assert isinstance(caught.value, ValueError)


WRONG = ({"an": "object"}, b"bytes", None, ["a", "list"])
MISSING: tuple[dict[str, Any], ...] = (
    {},
    {"configurable": {}},
    {"configurable": {"checkpoint_ns": ""}},
    {"metadata": {"thread_id": "in the wrong place"}},
)


@only_ours
class TestWrongTypes:
    """Ours names the argument that is missing or wrong; InMemorySaver takes anything hashable as an id."""

    @pytest.mark.parametrize("thread", WRONG, ids=_short)
    async def test_thread_id_of_a_wrong_type(self, calls: Calls, thread: Any) -> None:
        """A thread id that is neither text nor a whole number is refused by every method, by name."""
        config = config_of(thread, id="an id")
        with _refused("thread_id"):
            await calls.get_tuple(config)
        with _refused("thread_id"):
            await calls.list(config)
        with _refused("thread_id"):
            await calls.put(config, checkpoint_of(new_id()), {}, {})
        with _refused("thread_id"):
            await calls.put_writes(config, [("x", 1)], "task")
        with _refused("thread_id"):
            await calls.get_delta_channel_history(config=config, channels=["x"])
        with _refused("thread_id"):
            await calls.delete_thread(thread)
        with _refused("thread_id"):
            await calls.copy_thread(thread, "target")
        with _refused("thread_id"):
            await calls.copy_thread("source", thread)
        with _refused("thread_id"):
            await calls.prune([thread])
        assert await calls.list(None) == []

    @pytest.mark.parametrize("config", MISSING, ids=_short)
    async def test_missing_thread_id(self, calls: Calls, config: Any) -> None:
        """A config without a thread id is refused, and the message shows how to give one."""
        with _refused("thread_id"):
            await calls.get_tuple(config)
        with _refused("thread_id"):
            await calls.put(config, checkpoint_of(new_id()), {}, {})
        with _refused("thread_id"):
            await calls.put_writes(config, [("x", 1)], "task")
        with _refused("thread_id"):
            await calls.get_delta_channel_history(config=config, channels=["x"])
        with pytest.raises(UsageError, match="configurable"):
            await calls.get_tuple(config)
        assert await calls.list(None) == []

    @pytest.mark.parametrize("config", MISSING[1:], ids=_short)
    async def test_list_with_missing_thread_id(self, calls: Calls, config: Any) -> None:
        """`list` of a config without a thread id is refused: only None means every thread."""
        await calls.step()
        with _refused("thread_id"):
            await calls.list(config)

    @pytest.mark.parametrize("ns", [{"an": "object"}, b"bytes", 7], ids=_short)
    async def test_namespace_of_a_wrong_type(self, calls: Calls, ns: Any) -> None:
        """A namespace that is not text is refused, by name."""
        with _refused("checkpoint_ns"):
            await calls.get_tuple(config_of(ns=ns))
        with _refused("checkpoint_ns"):
            await calls.put(config_of(ns=ns), checkpoint_of(new_id()), {}, {})
        with _refused("checkpoint_ns"):
            await calls.put_writes(config_of(ns=ns, id="an id"), [("x", 1)], "task")
        with _refused("checkpoint_ns"):
            await calls.list(config_of(ns=ns))

    @pytest.mark.parametrize("id", [{"an": "object"}, b"bytes", 7], ids=_short)
    async def test_checkpoint_id_of_a_wrong_type(self, calls: Calls, id: Any) -> None:
        """A checkpoint id that is not text is refused, by name."""
        with _refused("checkpoint_id"):
            await calls.get_tuple(config_of(id=id))
        with _refused("checkpoint_id"):
            await calls.put(config_of(id=id), checkpoint_of(new_id()), {}, {})
        with _refused("checkpoint_id"):
            await calls.put_writes(config_of(id=id), [("x", 1)], "task")
        with _refused("checkpoint_id"):
            await calls.list(config_of(), before=config_of(id=id))

    async def test_writes_without_checkpoint_id(self, calls: Calls) -> None:
        """Writes whose config names no checkpoint are refused, as they would belong to none."""
        await calls.step()
        with _refused("checkpoint_id"):
            await calls.put_writes(config_of(), [("x", 1)], "task")

    @pytest.mark.parametrize("task", [{"an": "object"}, b"bytes", None, 7], ids=_short)
    async def test_task_id_of_a_wrong_type(self, calls: Calls, task: Any) -> None:
        """A task id that is not text is refused, by name."""
        stored = await calls.step()
        with _refused("task_id"):
            await calls.put_writes(stored, [("x", 1)], task)
        assert (await calls.get_tuple(stored)).pending_writes == []

    async def test_whole_numbers_as_thread_ids(self, calls: Calls) -> None:
        """A whole number as thread id is refused, and the error says to pass its text."""
        for thread in (7, 0, -3, 2**70, True):
            with pytest.raises(UsageError, match=r"thread_id is a str.*str\("):
                await calls.step(None, {"x": 1}, thread=thread)
        assert await calls.list(None) == []
