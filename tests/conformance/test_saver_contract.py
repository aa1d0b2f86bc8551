"""The contract of a saver, run over ours and LangGraph's own alike, through the sync and the async methods.

Where LangGraph's in-memory saver differs by design, the rule stands in a class of its own, over ours alone.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import random
import uuid
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, SCHEDULED, _DeltaSnapshot

from conformance.calls import Calls, checkpoint_of, config_of, id_of, ids, new_id, new_version, shown

only_ours = pytest.mark.parametrize("saver", ["file", "memory"], indirect=True)

TASK = "8c7d1b1e-0000-5000-8000-000000000001"
OTHER_TASK = "1a2b3c4d-0000-5000-8000-000000000002"


class TestPutAndGet:
    """What one put stores, and what comes back."""

    async def test_empty_saver(self, calls: Calls) -> None:
        """A saver that holds nothing finds nothing, whatever is asked."""
        assert await calls.get_tuple(config_of("nobody")) is None
        assert await calls.get_tuple(config_of("nobody", id=new_id())) is None
        assert await calls.list(config_of("nobody")) == []
        assert await calls.list(None) == []

    async def test_round_trip(self, calls: Calls) -> None:
        """Every field of a checkpoint comes back as it was put."""
        versions = {"messages": new_version(), "todo": new_version()}
        checkpoint = checkpoint_of(
            new_id(),
            {"messages": [HumanMessage("hello", id="m1")], "todo": {"a": [1, 2.5, None, True]}},
            versions,
            versions_seen={"__input__": {}, "agent": {"messages": versions["messages"]}},
            updated_channels=["messages", "todo"],
        )
        metadata = {"source": "input", "step": -1, "parents": {"": "an id"}, "note": "kept"}
        stored = await calls.put(config_of(), checkpoint, metadata, versions)

        assert stored == config_of(id=checkpoint["id"])
        expected = {
            "config": ("thread", "", checkpoint["id"]),
            "checkpoint": checkpoint,
            "metadata": metadata,
            "parent": None,
            "writes": [],
        }
        assert shown(await calls.get_tuple(stored)) == expected
        assert shown(await calls.get_tuple(config_of())) == expected
        assert [shown(each) for each in await calls.list(config_of())] == [expected]

    async def test_unknown_fields(self, calls: Calls) -> None:
        """Fields that this version of LangGraph does not name are kept, and absent ones stay absent."""
        checkpoint = checkpoint_of(new_id(), pending_sends=[], from_the_future={"deep": [1]})
        del checkpoint["updated_channels"]
        stored = await calls.put(config_of(), checkpoint, {}, {})
        assert (await calls.get_tuple(stored)).checkpoint == checkpoint

    async def test_get(self, calls: Calls) -> None:
        """`get` returns the checkpoint alone."""
        stored = await calls.step(values={"x": 1})
        assert (await calls.get(config_of()))["id"] == id_of(stored)
        assert await calls.get(config_of("nobody")) is None

    async def test_latest(self, calls: Calls) -> None:
        """Without a checkpoint id, with None and with an empty one, the newest checkpoint is found."""
        first = await calls.step()
        second = await calls.step(first)
        for config in (config_of(), {"configurable": {**config_of()["configurable"], "checkpoint_id": None}}):
            assert (await calls.get_tuple(config)).checkpoint["id"] == id_of(second)
        assert (await calls.get_tuple(config_of(id=""))).checkpoint["id"] == id_of(second)
        assert (await calls.get_tuple(first)).checkpoint["id"] == id_of(first)

    @pytest.mark.parametrize("absent", [None, ""])
    async def test_no_parent(self, calls: Calls, absent: str | None) -> None:
        """A put whose config has no checkpoint id, None or an empty one, has no parent."""
        config = {"configurable": {**config_of()["configurable"], "checkpoint_id": absent}}
        stored = await calls.put(config, checkpoint_of(new_id()), {}, {})
        assert (await calls.get_tuple(stored)).parent_config is None

    async def test_parent(self, calls: Calls) -> None:
        """The checkpoint id of a put's config is its parent, and the parent's config finds the parent."""
        first = await calls.step()
        second = await calls.step(first)
        found = await calls.get_tuple(second)
        assert found.parent_config == first
        assert (await calls.get_tuple(found.parent_config)).checkpoint["id"] == id_of(first)

    async def test_unknown_parent(self, calls: Calls) -> None:
        """A put after a checkpoint that was never stored is accepted and names it as parent."""
        absent = new_id()
        stored = await calls.step(config_of(id=absent), {"x": 1})
        found = await calls.get_tuple(stored)
        assert id_of(found.parent_config) == absent
        assert found.checkpoint["channel_values"] == {"x": 1}
        assert await calls.get_tuple(found.parent_config) is None

    async def test_parent_after_child(self, calls: Calls) -> None:
        """A parent may be put after its child, and both are found."""
        parent, child = new_id(), new_id()
        await calls.step(config_of(id=parent), {"x": 2}, id=child)
        await calls.step(None, {"x": 1}, id=parent)
        assert (await calls.get_tuple(config_of(id=child))).checkpoint["channel_values"] == {"x": 2}
        assert (await calls.get_tuple(config_of(id=parent))).checkpoint["channel_values"] == {"x": 1}

    async def test_reput(self, calls: Calls) -> None:
        """Putting a checkpoint id again replaces its values, metadata and parent and keeps its writes."""
        root = await calls.step()
        first = await calls.step(root, {"x": "old", "gone": 1}, metadata={"step": 1})
        await calls.put_writes(first, [("x", "written")], TASK)
        again = await calls.step(None, {"x": "new"}, id=id_of(first), metadata={"step": 2})
        assert again == first

        found = await calls.get_tuple(first)
        assert found.checkpoint["channel_values"] == {"x": "new"}
        assert found.metadata == {"step": 2}
        assert found.parent_config is None
        assert found.pending_writes == [(TASK, "x", "written")]
        assert ids(await calls.list(config_of())) == [id_of(first), id_of(root)]

    async def test_reput_of_an_older_checkpoint(self, calls: Calls) -> None:
        """Putting an older checkpoint again neither makes it the latest nor changes what its descendants show."""
        root = await calls.step(None, {"x": [1]})
        versions = {"x": new_version(), "y": new_version()}
        middle = await calls.step(root, {"x": [1, 2, 3], "y": {"a": 1}}, versions=versions)
        child = await calls.step(middle, {"x": [1, 2, 3], "y": {"a": 1}}, versions=versions, new={})
        head = await calls.step(child, {"x": [1, 2, 3, 4], "y": {"a": 1, "b": 2}})
        before = [shown(await calls.get_tuple(each)) for each in (head, child)]

        await calls.step(root, {"x": ["other"]}, id=id_of(middle), metadata={"step": 7})
        assert (await calls.get_tuple(middle)).checkpoint["channel_values"] == {"x": ["other"]}
        assert [shown(await calls.get_tuple(each)) for each in (head, child)] == before
        assert ids(await calls.list(config_of())) == [id_of(each) for each in (head, child, middle, root)]
        assert (await calls.get_tuple(config_of())).config == head
        sibling = await calls.step(middle, {"x": ["other", "one"]})
        assert (await calls.get_tuple(sibling)).checkpoint["channel_values"] == {"x": ["other", "one"]}

    async def test_reput_with_same_content(self, calls: Calls) -> None:
        """Putting the same checkpoint twice changes nothing."""
        root = await calls.step()
        checkpoint = checkpoint_of(new_id(), {"x": [1]}, {"x": new_version()})
        for _ in range(2):
            stored = await calls.put(root, checkpoint, {"step": 1}, checkpoint["channel_versions"])
        assert len(await calls.list(config_of())) == 2
        assert (await calls.get_tuple(stored)).checkpoint == checkpoint

    async def test_unserialisable_value(self, calls: Calls) -> None:
        """A value that cannot be serialised is refused, and the checkpoint is absent."""
        first = await calls.step(values={"x": 1})
        with pytest.raises(TypeError):
            await calls.step(first, {"x": object()})
        assert ids(await calls.list(config_of())) == [id_of(first)]
        second = await calls.step(first, {"x": 2})
        assert (await calls.get_tuple(second)).checkpoint["channel_values"] == {"x": 2}

    async def test_no_uuid4(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        """No method draws from `uuid.uuid4`, which users replace in their tests."""

        def refuse() -> uuid.UUID:
            raise AssertionError("uuid4 was called")

        monkeypatch.setattr(uuid, "uuid4", refuse)
        first = await calls.step(values={"x": 1})
        await calls.put_writes(first, [("x", 2)], TASK)
        await calls.step(first, {"x": 2})
        assert len(await calls.list(config_of())) == 2
        await calls.history(config_of(), "x")
        await calls.delete_thread("thread")


class TestChannelValues:
    """A channel's value belongs to its version."""

    async def test_unchanged_channel(self, calls: Calls) -> None:
        """A channel that did not move keeps its value without being named in `new_versions`."""
        versions = {"kept": new_version(), "moved": new_version()}
        first = await calls.step(None, {"kept": [1], "moved": 1}, versions=versions)
        moved = {"moved": new_version()}
        second = await calls.step(first, {"kept": [1], "moved": 2}, versions={**versions, **moved}, new=moved)
        assert (await calls.get_tuple(second)).checkpoint["channel_values"] == {"kept": [1], "moved": 2}
        assert (await calls.get_tuple(first)).checkpoint["channel_values"] == {"kept": [1], "moved": 1}

    async def test_empty_channel(self, calls: Calls) -> None:
        """A channel in `new_versions` without a value became empty: its old value does not come back."""
        start = new_version()
        first = await calls.step(None, {"branch:to:a": None, "x": 1}, versions={"branch:to:a": start, "x": "1"})
        consumed = {"branch:to:a": new_version()}
        second = await calls.step(first, {"x": 1}, versions={**consumed, "x": "1"}, new=consumed)
        third = await calls.step(second, {"x": 1}, versions={**consumed, "x": "1"}, new={})
        assert (await calls.get_tuple(first)).checkpoint["channel_values"] == {"branch:to:a": None, "x": 1}
        for config in (second, third):
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {"x": 1}

    async def test_empty_from_the_start(self, calls: Calls) -> None:
        """A channel whose first version has no value is absent, and may be filled later."""
        first = await calls.step(None, {}, versions={"x": new_version()})
        second = await calls.step(first, {"x": 1})
        assert (await calls.get_tuple(first)).checkpoint["channel_values"] == {}
        assert (await calls.get_tuple(second)).checkpoint["channel_values"] == {"x": 1}

    async def test_omitted_value_at_the_same_version(self, calls: Calls) -> None:
        """A channel listed at its ancestor's version without a value shows the ancestor's value."""
        versions = {"x": new_version(), "y": new_version()}
        first = await calls.step(None, {"x": [1, 2], "y": 1}, versions=versions)
        second = await calls.step(first, {}, versions=versions, new={})
        moved = {"y": new_version()}
        third = await calls.step(second, {"y": 2}, versions={**versions, **moved}, new=moved)
        assert (await calls.get_tuple(second)).checkpoint["channel_values"] == {"x": [1, 2], "y": 1}
        assert (await calls.get_tuple(third)).checkpoint["channel_values"] == {"x": [1, 2], "y": 2}

    async def test_unlisted_channel(self, calls: Calls) -> None:
        """A channel that `channel_versions` no longer lists is not shown."""
        first = await calls.step(None, {"x": 1, "y": 1})
        version = (await calls.get_tuple(first)).checkpoint["channel_versions"]["y"]
        second = await calls.step(first, {"y": 1}, versions={"y": version}, new={})
        assert (await calls.get_tuple(second)).checkpoint["channel_values"] == {"y": 1}

    async def test_back_to_an_older_version(self, calls: Calls) -> None:
        """A checkpoint that goes back to a version of an ancestor shows the value of that version."""
        old, new = new_version(), new_version()
        first = await calls.step(None, {"x": "old"}, versions={"x": old})
        second = await calls.step(first, {"x": "new"}, versions={"x": new})
        third = await calls.step(second, {}, versions={"x": old}, new={})
        assert (await calls.get_tuple(third)).checkpoint["channel_values"] == {"x": "old"}

    @pytest.mark.parametrize("version", [1, 1.5, "1", new_version()])
    async def test_version_types(self, calls: Calls, version: Any) -> None:
        """Versions may be numbers or text, and come back as they were."""
        first = await calls.step(None, {"x": "value"}, versions={"x": version})
        second = await calls.step(first, {}, versions={"x": version}, new={})
        found = (await calls.get_tuple(second)).checkpoint
        assert found["channel_versions"] == {"x": version}
        assert type(found["channel_versions"]["x"]) is type(version)
        assert found["channel_values"] == {"x": "value"}

    async def test_delta_snapshot(self, calls: Calls) -> None:
        """A snapshot stored at a version is shown there, and by the next checkpoint at that version too."""
        versions = {"files": new_version()}
        first = await calls.step(None, {"files": _DeltaSnapshot(["a", "b"])}, versions=versions)
        second = await calls.step(first, {}, versions=versions, new={})
        moved = {"files": new_version()}
        third = await calls.step(second, {}, versions=moved)
        for config in (first, second):
            found = (await calls.get_tuple(config)).checkpoint["channel_values"]["files"]
            assert isinstance(found, _DeltaSnapshot)
            assert found.value == ["a", "b"]
        assert (await calls.get_tuple(third)).checkpoint["channel_values"] == {}

    async def test_growing_list(self, calls: Calls) -> None:
        """Each checkpoint of a growing list shows the list as it was then."""
        config, messages = None, []
        stored = []
        for number in range(20):
            messages = [*messages, HumanMessage(f"message {number}", id=str(number))]
            config = await calls.step(config, {"messages": messages})
            stored.append((config, list(messages)))
        for config, expected in random.Random(1).sample(stored, len(stored)):
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {"messages": expected}

    async def test_every_kind_of_list_change(self, calls: Calls) -> None:
        """Lists that are cut, reordered, edited, emptied, doubled or replaced come back exactly."""
        items = [{"id": n, "text": f"element {n}"} for n in range(12)]
        changes: list[Any] = [
            items,
            items[4:],
            list(reversed(items)),
            [*items[:5], {"id": 99}, *items[6:]],
            [*items[:5], *items[7:]],
            items + items,
            [],
            items[:1],
            {"now": "a map"},
            "now text",
            None,
            items,
        ]
        config = None
        stored = []
        for value in changes:
            config = await calls.step(config, {"x": value})
            stored.append(config)
        for config, value in zip(stored, changes, strict=True):
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {"x": value}

    async def test_every_kind_of_map_change(self, calls: Calls) -> None:
        """Maps whose keys are added, dropped, changed, reordered or nested come back exactly, in order."""
        changes: list[dict[Any, Any]] = [
            {"a": 1, "b": {"c": [1]}},
            {"a": 1, "b": {"c": [1, 2]}},
            {"b": {"c": [1, 2]}, "a": 1},
            {"b": {"c": [1, 2]}, "z": None, "a": 1},
            {"z": None},
            {},
            {1: "int", "1": "text", None: "none", 2.5: "float", False: "bool"},
            {"a": 1},
        ]
        config = None
        stored = []
        for value in changes:
            config = await calls.step(config, {"x": value})
            stored.append(config)
        for config, value in zip(stored, changes, strict=True):
            found = (await calls.get_tuple(config)).checkpoint["channel_values"]["x"]
            assert list(found.items()) == list(value.items())


class TestFreshObjects:
    """Nothing handed out or taken in stays connected with what is stored."""

    async def test_results_are_fresh(self, calls: Calls) -> None:
        """Changing anything that one call returned changes no other result."""
        messages = [HumanMessage("hello", id="m1"), AIMessage("hi", id="m2")]
        stored = await calls.step(
            None,
            {"messages": messages, "map": {"deep": [1]}},
            metadata={"step": 1, "nested": {"list": [1]}},
            versions_seen={"node": {"messages": "1"}},
            updated_channels=["messages"],
        )
        await calls.put_writes(stored, [("messages", [HumanMessage("next", id="m3")])], TASK)
        before = shown(await calls.get_tuple(stored))

        for found in (await calls.get_tuple(stored), (await calls.list(config_of()))[0]):
            values = found.checkpoint["channel_values"]
            values["messages"][0].content = "changed"
            values["messages"].append("more")
            values["map"]["deep"].append(2)
            values["new"] = 1
            found.checkpoint["channel_versions"].clear()
            found.checkpoint["versions_seen"]["node"]["messages"] = "2"
            found.checkpoint["updated_channels"].append("other")
            found.metadata["nested"]["list"].append(2)
            found.metadata["step"] = 2
            found.pending_writes[0][2][0].content = "changed"
            found.pending_writes.clear()

        assert shown(await calls.get_tuple(stored)) == before
        assert [shown(each) for each in await calls.list(config_of())] == [before]

    async def test_history_is_fresh(self, calls: Calls) -> None:
        """Changing a delta history that one call returned changes no other."""
        root = await calls.step(None, {"files": _DeltaSnapshot([["seed"]])})
        await calls.put_writes(root, [("files", ["write"])], TASK)
        head = await calls.step(root, {}, versions={"files": new_version()})
        expected = {"files": {"writes": [(TASK, "files", ["write"])], "seed": _DeltaSnapshot([["seed"]])}}
        found = await calls.history(head, "files")
        assert found == expected
        found["files"]["seed"].value[0].append("changed")
        found["files"]["writes"][0][2].append("changed")
        found["files"]["writes"].clear()
        assert await calls.history(head, "files") == expected

    async def test_arguments_are_copied(self, calls: Calls) -> None:
        """Changing what was put, once the put returned, changes nothing stored."""
        values: dict[str, Any] = {"list": [{"a": [1]}], "message": [HumanMessage("hello", id="m1")]}
        versions = {channel: new_version() for channel in values}
        checkpoint = checkpoint_of(new_id(), values, dict(versions), versions_seen={"node": {"list": "1"}})
        metadata = {"step": 1, "nested": {"list": [1]}}
        new_versions = dict(versions)
        stored = await calls.put(config_of(), checkpoint, metadata, new_versions)
        write: dict[str, Any] = {"deep": [1]}
        writes = [("list", write)]
        await calls.put_writes(stored, writes, TASK)
        before = shown(await calls.get_tuple(stored))
        assert before is not None
        assert before["checkpoint"]["channel_values"]["list"] == [{"a": [1]}]

        values["list"][0]["a"].append(2)
        values["message"][0].content = "changed"
        checkpoint["channel_values"]["new"] = 1
        checkpoint["channel_versions"].clear()
        checkpoint["versions_seen"]["node"]["list"] = "2"
        metadata["nested"]["list"].append(2)
        new_versions.clear()
        write["deep"].append(2)
        writes.clear()
        stored["configurable"]["thread_id"] = "elsewhere"

        found = shown(await calls.get_tuple(config_of(id=checkpoint["id"])))
        assert found == before
        assert found["writes"] == [(TASK, "list", {"deep": [1]})]

    async def test_arguments_are_left_alone(self, calls: Calls) -> None:
        """No method changes what it was given."""
        checkpoint = checkpoint_of(new_id(), {"x": [1]}, {"x": "1"})
        config, metadata, versions = config_of(), {"step": 1}, {"x": "1"}
        writes = [("x", [1])]
        stored = await calls.put(config, checkpoint, metadata, versions)
        await calls.put_writes(stored, writes, TASK)
        assert config == config_of()
        assert checkpoint == checkpoint_of(checkpoint["id"], {"x": [1]}, {"x": "1"})
        assert (metadata, versions, writes) == ({"step": 1}, {"x": "1"}, [("x", [1])])
        assert stored == config_of(id=checkpoint["id"])

    async def test_change_in_place_between_puts(self, calls: Calls) -> None:
        """A recent element changed in place is stored as it was at each put."""
        message = HumanMessage("hello")
        first = await calls.step(None, {"messages": [message]})
        message.id = "given by LangGraph"
        second = await calls.step(first, {"messages": [message]})
        message.content = "edited"
        third = await calls.step(second, {"messages": [message, AIMessage("hi", id="m2")]})

        found = [
            (await calls.get_tuple(each)).checkpoint["channel_values"]["messages"] for each in (first, second, third)
        ]
        assert found == [
            [HumanMessage("hello")],
            [HumanMessage("hello", id="given by LangGraph")],
            [HumanMessage("edited", id="given by LangGraph"), AIMessage("hi", id="m2")],
        ]

    async def test_change_in_place_inside_a_map(self, calls: Calls) -> None:
        """A value of a map that is changed in place, at any depth, is stored as it was at each put."""
        files: dict[str, Any] = {"a.txt": {"lines": ["one"]}, "b.txt": [["deep"]], "c.txt": HumanMessage("hi", id="m")}
        stored, expected = [await calls.step(None, {"files": files, "same": files})], [copy.deepcopy(files)]
        for change in (
            lambda: files["a.txt"]["lines"].append("two"),
            lambda: files["b.txt"][0].append("deeper"),
            lambda: setattr(files["c.txt"], "content", "changed"),
            lambda: files.update({"d.txt": files["a.txt"]}),
            lambda: files["a.txt"].clear(),
        ):
            change()
            stored.append(await calls.step(stored[-1], {"files": dict(files), "same": files}))
            expected.append(copy.deepcopy(files))
        for config, value in zip(stored, expected, strict=True):
            found = (await calls.get_tuple(config)).checkpoint["channel_values"]
            assert found == {"files": value, "same": value}

    async def test_change_of_type_in_place(self, calls: Calls) -> None:
        """A change that Python's equality does not see, 1 to True, is stored."""
        element = {"flag": 1}
        first = await calls.step(None, {"x": [element]})
        element["flag"] = True
        second = await calls.step(first, {"x": [element]})
        assert (await calls.get_tuple(first)).checkpoint["channel_values"]["x"][0]["flag"] is not True
        assert (await calls.get_tuple(second)).checkpoint["channel_values"]["x"][0]["flag"] is True

    async def test_change_of_a_returned_object_then_put(self, calls: Calls) -> None:
        """An object that `get_tuple` returned, changed anywhere and put again, is stored as changed."""
        messages = [HumanMessage(f"message {n}", id=str(n)) for n in range(200)]
        first = await calls.step(None, {"messages": messages})
        loaded = (await calls.get_tuple(first)).checkpoint["channel_values"]["messages"]
        loaded[3].content = "changed"
        second = await calls.step(first, {"messages": loaded})
        found = (await calls.get_tuple(second)).checkpoint["channel_values"]["messages"]
        assert [each.content for each in found[2:5]] == ["message 2", "changed", "message 4"]
        assert (await calls.get_tuple(first)).checkpoint["channel_values"]["messages"][3].content == "message 3"

    async def test_two_results_put_in_turn(self, calls: Calls) -> None:
        """A change in one result does not reach the checkpoint put from another result."""
        first = await calls.step(None, {"x": [{"n": 1}, {"n": 2}]})
        one = (await calls.get_tuple(first)).checkpoint["channel_values"]["x"]
        two = (await calls.get_tuple(first)).checkpoint["channel_values"]["x"]
        one[0]["n"] = "changed"
        second = await calls.step(first, {"x": two})
        third = await calls.step(first, {"x": one})
        assert (await calls.get_tuple(second)).checkpoint["channel_values"]["x"] == [{"n": 1}, {"n": 2}]
        assert (await calls.get_tuple(third)).checkpoint["channel_values"]["x"] == [
            {"n": "changed"},
            {"n": 2},
        ]

    async def test_recycled_addresses(self, calls: Calls) -> None:
        """New objects at the memory addresses of freed ones are not mistaken for them."""
        config = None
        stored = []
        for number in range(50):
            config = await calls.step(config, {"x": [[number, part] for part in range(8)]})
            stored.append(config)
            gc.collect(0)
        for number, config in enumerate(stored):
            found = (await calls.get_tuple(config)).checkpoint["channel_values"]["x"]
            assert found == [[number, part] for part in range(8)]


class TestWrites:
    """Pending writes of a checkpoint."""

    async def test_round_trip(self, calls: Calls) -> None:
        """Writes come back as (task id, channel, value), through get and list."""
        stored = await calls.step()
        await calls.put_writes(stored, [("x", [1]), ("y", None), ("x", {"a": 1})], TASK)
        expected = [(TASK, "x", [1]), (TASK, "y", None), (TASK, "x", {"a": 1})]
        assert (await calls.get_tuple(stored)).pending_writes == expected
        assert (await calls.list(config_of()))[0].pending_writes == expected

    async def test_no_writes(self, calls: Calls) -> None:
        """Putting an empty list of writes is accepted and stores none."""
        stored = await calls.step()
        assert await calls.put_writes(stored, [], TASK) is None
        assert (await calls.get_tuple(stored)).pending_writes == []

    async def test_before_their_checkpoint(self, calls: Calls) -> None:
        """Writes that arrive before their checkpoint are shown once it arrives, and nothing before."""
        root = await calls.step()
        waiting = new_id()
        await calls.put_writes(config_of(id=waiting), [("x", 1)], TASK, "~a")
        await calls.put_writes(config_of(id=waiting), [("x", 2)], OTHER_TASK, "~b")
        assert await calls.get_tuple(config_of(id=waiting)) is None
        assert (await calls.get_tuple(config_of())).checkpoint["id"] == id_of(root)
        assert ids(await calls.list(config_of())) == [id_of(root)]

        stored = await calls.step(root, id=waiting)
        await calls.put_writes(stored, [("x", 3)], "later", "~c")
        expected = [(TASK, "x", 1), (OTHER_TASK, "x", 2), ("later", "x", 3)]
        assert (await calls.get_tuple(stored)).pending_writes == expected
        assert (await calls.list(config_of()))[0].pending_writes == expected

    async def test_before_any_checkpoint(self, calls: Calls) -> None:
        """Writes may be the first thing that a thread ever stores."""
        waiting = new_id()
        await calls.put_writes(config_of("new", id=waiting), [("x", 1)], TASK)
        assert await calls.get_tuple(config_of("new")) is None
        assert await calls.list(None) == []
        await calls.step(thread="new", id=waiting)
        assert (await calls.get_tuple(config_of("new"))).pending_writes == [(TASK, "x", 1)]

    async def test_first_ordinary_write_wins(self, calls: Calls) -> None:
        """An ordinary write of the same task and position again is ignored; further positions are added."""
        stored = await calls.step()
        await calls.put_writes(stored, [("x", "first"), ("y", "first")], TASK, "~a")
        await calls.put_writes(stored, [("z", "second"), ("y", "second"), ("x", "third place")], TASK, "~b")
        assert (await calls.get_tuple(stored)).pending_writes == [
            (TASK, "x", "first"),
            (TASK, "y", "first"),
            (TASK, "x", "third place"),
        ]

    async def test_first_ordinary_write_wins_before_the_checkpoint(self, calls: Calls) -> None:
        """The first ordinary write wins though both come before their checkpoint, or one on either side."""
        waiting = config_of(id=new_id())
        await calls.put_writes(waiting, [("x", "first")], TASK)
        await calls.put_writes(waiting, [("x", "second")], TASK)
        await calls.step(id=id_of(waiting))
        await calls.put_writes(waiting, [("x", "third")], TASK)
        assert (await calls.get_tuple(waiting)).pending_writes == [(TASK, "x", "first")]

    @pytest.mark.parametrize("channel", sorted(WRITES_IDX_MAP))
    async def test_last_special_write_wins(self, calls: Calls, channel: str) -> None:
        """A special write of the same task replaces the one before it, with its path."""
        stored = await calls.step()
        await calls.put_writes(stored, [(channel, "first")], TASK, "~z")
        await calls.put_writes(stored, [("x", 1)], OTHER_TASK, "~m")
        await calls.put_writes(stored, [(channel, "second")], TASK, "~a")
        assert (await calls.get_tuple(stored)).pending_writes == [
            (TASK, channel, "second"),
            (OTHER_TASK, "x", 1),
        ]

    async def test_special_and_ordinary_in_one_call(self, calls: Calls) -> None:
        """In one list, special writes replace while ordinary ones keep their place and their first value."""
        stored = await calls.step()
        await calls.put_writes(stored, [(RESUME, "one"), ("x", 1)], TASK)
        await calls.put_writes(stored, [(RESUME, "two"), ("x", 2), ("y", 3)], TASK)
        await calls.put_writes(stored, [(INTERRUPT, "a"), (INTERRUPT, "b")], OTHER_TASK)
        assert (await calls.get_tuple(stored)).pending_writes == [
            (OTHER_TASK, INTERRUPT, "b"),
            (TASK, RESUME, "two"),
            (TASK, "x", 1),
            (TASK, "y", 3),
        ]

    async def test_order(self, calls: Calls) -> None:
        """Pending writes are in the order of task path, task id and position, however they arrived."""
        stored = await calls.step()
        paths = ["", "~__pregel_pull, a", "~__pregel_pull, b", "~__pregel_push, 0000000003, 0000000000"]
        tasks = [f"task {number}" for number in range(3)]
        batches = [
            (
                path,
                f"{task} of {path}",
                [("x", 0), (ERROR, "e"), ("y", 2), (SCHEDULED, None), (INTERRUPT, "i")],
            )
            for path, task in itertools.product(paths, tasks)
        ]
        expected = sorted(
            (
                (writes_sort_key(path, task, WRITES_IDX_MAP.get(channel, idx)), (task, channel, value))
                for path, task, writes in batches
                for idx, (channel, value) in enumerate(writes)
            ),
            key=lambda each: each[0],
        )
        for path, task, writes in random.Random(2).sample(batches, len(batches)):
            await calls.put_writes(stored, writes, task, path)
        assert (await calls.get_tuple(stored)).pending_writes == [write for _, write in expected]
        assert (await calls.list(config_of()))[0].pending_writes == [write for _, write in expected]

    async def test_task_path_by_name(self, calls: Calls) -> None:
        """The parameter is named `task_path`, as LangGraph passes it only under that name."""
        stored = await calls.step()
        await calls.put_writes(stored, [("x", 2)], task_id="a", task_path="~2")
        await calls.put_writes(stored, writes=[("x", 1)], task_id="b", task_path="~1")
        assert (await calls.get_tuple(stored)).pending_writes == [("b", "x", 1), ("a", "x", 2)]

    async def test_same_task_elsewhere(self, calls: Calls) -> None:
        """Writes of one task id under other checkpoints, namespaces and threads do not touch each other."""
        configs = [
            await calls.step(),
            await calls.step(ns="child"),
            await calls.step(thread="other"),
        ]
        configs.append(await calls.step(configs[0]))
        for number, config in enumerate(configs):
            await calls.put_writes(config, [("x", number)], TASK)
        for number, config in enumerate(configs):
            assert (await calls.get_tuple(config)).pending_writes == [(TASK, "x", number)]

    async def test_same_id_in_another_namespace(self, calls: Calls) -> None:
        """One checkpoint id in two namespaces names two checkpoints, each with its own writes."""
        shared = new_id()
        for ns in ("", "child"):
            stored = await calls.step(ns=ns, id=shared, values={"x": ns})
            await calls.put_writes(stored, [("x", ns)], TASK)
        for ns in ("", "child"):
            found = await calls.get_tuple(config_of(ns=ns, id=shared))
            assert found.checkpoint["channel_values"] == {"x": ns}
            assert found.pending_writes == [(TASK, "x", ns)]

    async def test_exception_value(self, calls: Calls) -> None:
        """The exception of a failed task is stored as its representation."""
        stored = await calls.step()
        await calls.put_writes(stored, [(ERROR, ValueError("no such tool"))], TASK)
        assert (await calls.get_tuple(stored)).pending_writes == [(TASK, ERROR, "ValueError('no such tool')")]


class TestForks:
    """Branches made by naming an older checkpoint as parent."""

    async def test_both_branches_are_reachable(self, calls: Calls) -> None:
        """After a fork every checkpoint of both branches is listed and found by its id."""
        root = await calls.step(None, {"x": [0]})
        left = [await calls.step(root, {"x": [0, 1]})]
        left.append(await calls.step(left[0], {"x": [0, 1, 2]}))
        right = [await calls.step(root, {"x": [0, "a"]})]
        right.append(await calls.step(right[0], {"x": [0, "a", "b"]}))

        everything = [root, *left, *right]
        assert ids(await calls.list(config_of())) == [id_of(each) for each in reversed(everything)]
        expected = [[0], [0, 1], [0, 1, 2], [0, "a"], [0, "a", "b"]]
        for config, value in zip(everything, expected, strict=True):
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {"x": value}
        assert (await calls.get_tuple(config_of())).checkpoint["id"] == id_of(right[1])
        assert (await calls.get_tuple(right[0])).parent_config == root
        assert (await calls.get_tuple(left[0])).parent_config == root

    async def test_branches_keep_their_values(self, calls: Calls) -> None:
        """A channel that one branch moved shows, in the other branch, the value from before the fork."""
        base = {"x": new_version(), "y": new_version()}
        root = await calls.step(None, {"x": "root", "y": "root"}, versions=base)
        moved = {"x": new_version()}
        left = await calls.step(root, {"x": "left", "y": "root"}, versions={**base, **moved}, new=moved)
        right = await calls.step(root, {}, versions=base, new={})
        assert (await calls.get_tuple(left)).checkpoint["channel_values"] == {"x": "left", "y": "root"}
        assert (await calls.get_tuple(right)).checkpoint["channel_values"] == {"x": "root", "y": "root"}

    async def test_fork_as_langgraph_does(self, calls: Calls) -> None:
        """A checkpoint of source "fork" with no new versions copies its parent's state."""
        root = await calls.step(None, {"x": [1], "y": 2})
        await calls.step(root, {"x": [1, 2], "y": 3})
        copied = (await calls.get_tuple(root)).checkpoint
        fork = await calls.put(root, {**copied, "id": new_id()}, {"source": "fork", "step": 5, "parents": {}}, {})
        assert (await calls.get_tuple(fork)).checkpoint["channel_values"] == {"x": [1], "y": 2}
        assert (await calls.get_tuple(config_of())).checkpoint["id"] == id_of(fork)

    async def test_growing_an_old_branch(self, calls: Calls) -> None:
        """Going on from each branch in turn keeps the two apart."""
        root = await calls.step(None, {"x": ["root"]})
        branches: list[tuple[Any, list[Any]]] = [(root, ["root"]), (root, ["root"])]
        for number in range(6):
            config, value = branches[number % 2]
            value = [*value, number]
            branches[number % 2] = (await calls.step(config, {"x": value}), value)
        for config, value in branches:
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {"x": value}


class TestNamespaces:
    """`checkpoint_ns`, one lane of a thread each."""

    NAMESPACES = ("", "mid", "mid:1f", "mid:1f|child:2e", "|".join(f"level{n}:{n}" for n in range(60)))

    async def test_any_depth(self, calls: Calls) -> None:
        """Namespaces of any depth hold checkpoints of their own."""
        stored = {ns: await calls.step(None, {"x": ns}, ns=ns) for ns in self.NAMESPACES}
        for ns, config in stored.items():
            found = await calls.get_tuple(config_of(ns=ns))
            assert shown(found)["config"] == ("thread", ns, id_of(config))
            assert found.checkpoint["channel_values"] == {"x": ns}
            assert ids(await calls.list(config_of(ns=ns))) == [id_of(config)]

    async def test_get_without_namespace(self, calls: Calls) -> None:
        """`get_tuple` without a namespace looks in the root namespace only."""
        child = await calls.step(ns="child")
        assert await calls.get_tuple(config_of(ns=None)) is None
        assert await calls.get_tuple(config_of(ns=None, id=id_of(child))) is None
        root = await calls.step()
        await calls.step(child)
        assert (await calls.get_tuple(config_of(ns=None))).checkpoint["id"] == id_of(root)

    async def test_list_without_namespace(self, calls: Calls) -> None:
        """`list` without a namespace finds the checkpoints of every namespace of the thread."""
        stored = {id_of(await calls.step(None, ns=ns)): ns for ns in self.NAMESPACES}
        await calls.step(thread="other")
        found = await calls.list(config_of(ns=None))
        assert {shown(each)["config"] for each in found} == {("thread", ns, id) for id, ns in stored.items()}
        assert len(found) == len(stored)

    async def test_list_of_the_root(self, calls: Calls) -> None:
        """An empty namespace in `list` means the root alone, not every namespace."""
        root = await calls.step()
        await calls.step(ns="child")
        assert ids(await calls.list(config_of(ns=""))) == [id_of(root)]

    async def test_many(self, calls: Calls) -> None:
        """Hundreds of namespaces in one thread stay apart."""
        for number in range(200):
            await calls.step(None, {"x": number}, ns=f"tools:{number}")
        assert len(await calls.list(config_of(ns=None))) == 200
        for number in (0, 1, 10, 100, 199):
            found = await calls.get_tuple(config_of(ns=f"tools:{number}"))
            assert found.checkpoint["channel_values"] == {"x": number}


class TestList:
    """`list`: order, limits, `before`, all threads."""

    async def test_newest_first(self, calls: Calls) -> None:
        """Checkpoints are listed newest first, each as `get_tuple` shows it."""
        config, stored = None, []
        for number in range(5):
            config = await calls.step(config, {"x": number}, metadata={"step": number})
            await calls.put_writes(config, [("x", number)], TASK)
            stored.append(config)
        found = [shown(each) for each in await calls.list(config_of())]
        assert found == [shown(await calls.get_tuple(each)) for each in reversed(stored)]

    async def test_one_checkpoint(self, calls: Calls) -> None:
        """A config with a checkpoint id lists that checkpoint alone, an unknown id none."""
        first = await calls.step()
        await calls.step(first)
        assert ids(await calls.list(first)) == [id_of(first)]
        assert await calls.list(config_of(id=new_id())) == []

    @pytest.mark.parametrize(("limit", "expected"), [(None, 4), (0, 0), (1, 1), (3, 3), (4, 4), (1000, 4)])
    async def test_limit(self, calls: Calls, limit: int | None, expected: int) -> None:
        """A limit cuts the list from its newest end; none, or one too big, cuts nothing."""
        config, stored = None, []
        for _ in range(4):
            config = await calls.step(config)
            stored.append(id_of(config))
        assert ids(await calls.list(config_of(), limit=limit)) == stored[::-1][:expected]

    async def test_limit_counts_matches(self, calls: Calls) -> None:
        """The limit counts what matches the filter, not what was looked at."""
        config, matching = None, []
        for number in range(9):
            config = await calls.step(config, metadata={"kind": "even" if number % 2 == 0 else "odd"})
            if number % 2 == 0:
                matching.append(id_of(config))
        assert ids(await calls.list(config_of(), filter={"kind": "even"}, limit=3)) == matching[::-1][:3]

    async def test_limit_over_namespaces_and_threads(self, calls: Calls) -> None:
        """The limit is one for the whole list, over namespaces and over threads."""
        for thread in ("a", "b"):
            for ns in ("", "child"):
                await calls.step(await calls.step(thread=thread, ns=ns))
        assert len(await calls.list(config_of("a", None), limit=3)) == 3
        assert len(await calls.list(None, limit=7)) == 7
        assert len(await calls.list(None, limit=9)) == 8

    async def test_before(self, calls: Calls) -> None:
        """`before` leaves out the checkpoint that it names and everything after it."""
        config, stored = None, []
        for _ in range(5):
            config = await calls.step(config)
            stored.append(config)
        found = await calls.list(config_of(), before=stored[3])
        assert ids(found) == [id_of(each) for each in (stored[2], stored[1], stored[0])]
        assert ids(await calls.list(config_of(), before=stored[3], limit=1)) == [id_of(stored[2])]
        assert await calls.list(config_of(), before=stored[0]) == []

    async def test_before_of_another_namespace(self, calls: Calls) -> None:
        """`before` may carry only a checkpoint id, of another namespace: ids compare across the thread."""
        child, root = None, None
        order = []
        for _ in range(3):
            root = await calls.step(root, ns="")
            child = await calls.step(child, ns="mid:1")
            order.append((root, child))
        before = {"configurable": {"checkpoint_id": id_of(order[2][0])}}
        assert ids(await calls.list(config_of(ns="mid:1"), before=before)) == [
            id_of(order[1][1]),
            id_of(order[0][1]),
        ]
        assert ids(await calls.list(config_of(ns="mid:1"), before=before, limit=1)) == [id_of(order[1][1])]
        found = await calls.list(config_of(ns=None), before=before)
        assert set(ids(found)) == {id_of(each) for pair in order[:2] for each in pair}

    async def test_before_an_unknown_id(self, calls: Calls) -> None:
        """`before` may name an id that was never stored."""
        first = await calls.step()
        absent = new_id()
        second = await calls.step(first)
        before = {"configurable": {"checkpoint_id": absent}}
        assert ids(await calls.list(config_of(), before=before)) == [id_of(first)]
        before = {"configurable": {"checkpoint_id": new_id()}}
        assert ids(await calls.list(config_of(), before=before)) == [id_of(second), id_of(first)]

    async def test_all_threads(self, calls: Calls) -> None:
        """`list(None)` finds the checkpoints of every thread and namespace."""
        expected = set()
        for thread in ("a", "b", "ab"):
            for ns in ("", "child"):
                stored = await calls.step(thread=thread, ns=ns, metadata={"thread": thread})
                expected.add((thread, ns, id_of(stored)))
        found = await calls.list(None)
        assert {shown(each)["config"] for each in found} == expected
        assert len(found) == 6
        found = await calls.list(None, filter={"thread": "b"})
        assert {shown(each)["config"] for each in found} == {each for each in expected if each[0] == "b"}

    async def test_configs_are_usable(self, calls: Calls) -> None:
        """The config of a listed tuple finds that tuple, and the parent's config its parent."""
        await calls.step(await calls.step(await calls.step()))
        for each in await calls.list(None):
            assert shown(await calls.get_tuple(each.config)) == shown(each)
            if each.parent_config is not None:
                assert (await calls.get_tuple(each.parent_config)).checkpoint["id"] == id_of(each.parent_config)

    async def test_writing_while_listing(self, calls: Calls) -> None:
        """Puts between two items of a list go through, and the list still shows what was there."""
        config, stored = None, []
        for _ in range(6):
            config = await calls.step(config)
            stored.append(id_of(config))
        found = []
        async for each in calls.stream(config_of()):
            found.append(each.checkpoint["id"])
            config = await calls.step(config)
            await calls.put_writes(config, [("x", 1)], TASK)
        assert [each for each in found if each in stored] == stored[::-1]

    async def test_abandoned_list(self, calls: Calls) -> None:
        """A list that is left half read holds nothing back."""
        config = None
        for _ in range(4):
            config = await calls.step(config)
        for _ in range(200):
            async for _each in calls.stream(config_of()):
                break
        await calls.step(config)
        assert len(await calls.list(config_of())) == 5


class TestMetadata:
    """Metadata: merging with the config, filters on any key and value."""

    async def test_merged_with_the_config(self, calls: Calls) -> None:
        """Metadata is merged with the config's metadata and configurable, as LangGraph defines it."""
        config: Any = {
            "metadata": {"ls_integration": "langgraph", "step": "hidden", "count": 3, "dropped": ["a list"]},
            "configurable": {
                **config_of()["configurable"],
                "user": "ann",
                "ratio": 0.5,
                "flag": True,
                "__pregel_runtime": object(),
                "__pregel_read": print,
                "checkpoint_map": {"": "an id"},
                "langgraph_step": 3,
                "an_object": object(),
            },
            "tags": ["a tag"],
            "callbacks": object(),
        }
        metadata: Any = {"source": "loop", "step": 7, "parents": {}}
        stored = await calls.put(config, checkpoint_of(new_id()), metadata, {})
        found = (await calls.get_tuple(stored)).metadata
        assert found == get_checkpoint_metadata(config, metadata)
        assert found == {
            "source": "loop",
            "step": 7,
            "parents": {},
            "ls_integration": "langgraph",
            "count": 3,
            "user": "ann",
            "ratio": 0.5,
            "flag": True,
        }
        assert found["flag"] is True
        assert stored == config_of(id=id_of(stored))
        assert ids(await calls.list(config_of(), filter={"user": "ann"})) == [id_of(stored)]

    async def test_nul_characters(self, calls: Calls) -> None:
        """NUL characters leave the top-level texts, as upstream does, and stay everywhere else."""
        metadata = {"text": "a\x00b", "nested": {"deep": "a\x00b"}, "key\x00": 1}
        config: Any = {**config_of(), "metadata": {"from_config": "c\x00d"}}
        stored = await calls.put(config, checkpoint_of(new_id()), metadata, {})
        found = (await calls.get_tuple(stored)).metadata
        assert found == {
            "text": "ab",
            "nested": {"deep": "a\x00b"},
            "key\x00": 1,
            "from_config": "cd",
        }
        assert len(await calls.list(config_of(), filter={"key\x00": 1})) == 1
        assert len(await calls.list(config_of(), filter={"text": "ab"})) == 1

    async def test_exit_mode_stub(self, calls: Calls) -> None:
        """The stub of durability "exit" has a step and neither source nor parents, and nothing is made up."""
        stub = await calls.step(metadata={"step": -2})
        await calls.put_writes(
            stub, [("x", 1)], "ffffffff-0000-0001-8000-000000000001", "~~0000000001~__pregel_pull, a"
        )
        head = await calls.step(stub, {"x": [1]}, metadata={"source": "loop", "step": 3, "parents": {}})
        assert (await calls.get_tuple(stub)).metadata == {"step": -2}
        assert ids(await calls.list(config_of())) == [id_of(head), id_of(stub)]
        assert ids(await calls.list(config_of(), filter={"source": "loop"})) == [id_of(head)]
        assert ids(await calls.list(config_of(), filter={"step": -2})) == [id_of(stub)]
        assert ids(await calls.list(config_of(), filter={"source": None})) == [id_of(stub)]

    async def test_delta_counters(self, calls: Calls) -> None:
        """The counters of delta channels come back as lists, as they do from every upstream saver."""
        counters = {"files": (3, 5), "messages": [0, 1]}
        stored = await calls.step(metadata={"step": 1, "counters_since_delta_snapshot": counters})
        found = (await calls.get_tuple(stored)).metadata
        assert found["counters_since_delta_snapshot"] == {"files": [3, 5], "messages": [0, 1]}

    VALUES: tuple[Any, ...] = (
        "text",
        "",
        'it\'s "quoted" \\ {escaped} $.path %s ; --',
        "line\nbreak\ttab",
        "中文 🎉",
        0,
        1,
        -7,
        2**63 - 1,
        1.5,
        1e300,
        True,
        False,
        None,
        [],
        [1, "two", None, [3]],
        {},
        {"a": 1, "b": {"c": [True, None, {"d": 0.5}]}},
    )

    @pytest.mark.parametrize("value", VALUES, ids=repr)
    async def test_filter_by_value(self, calls: Calls, value: Any) -> None:
        """A filter finds exactly the checkpoints whose metadata equals the value, any JSON value."""
        config, stored = None, []
        for each in self.VALUES:
            config = await calls.step(config, metadata={"key": each})
            stored.append((each, id_of(config)))
        found = await calls.list(config_of(), filter={"key": value})
        assert ids(found) == [id for each, id in reversed(stored) if each == value]

    async def test_filter_needs_the_whole_value(self, calls: Calls) -> None:
        """A filter on a map or a list matches the whole of it in any key order, never a part."""
        stored = await calls.step(metadata={"map": {"a": 1, "b": 2}, "list": [1, 2]})
        for matching in (
            {"map": {"b": 2, "a": 1}},
            {"list": [1, 2]},
            {"map": {"a": 1, "b": 2}, "list": [1, 2]},
        ):
            assert ids(await calls.list(config_of(), filter=matching)) == [id_of(stored)]
        for other in (
            {"map": {"a": 1}},
            {"map": {"a": 1, "b": 3}},
            {"list": [2, 1]},
            {"list": [1]},
            {"map": "a"},
        ):
            assert await calls.list(config_of(), filter=other) == []

    async def test_filter_by_unknown_key(self, calls: Calls) -> None:
        """A key that no checkpoint has matches nothing, except None, which an absent key equals."""
        stored = await calls.step(metadata={"step": 1})
        assert await calls.list(config_of(), filter={"nowhere": 1}) == []
        assert await calls.list(config_of(), filter={"step": 1, "nowhere": 1}) == []
        assert ids(await calls.list(config_of(), filter={"nowhere": None})) == [id_of(stored)]

    @pytest.mark.parametrize(
        "key", ["it's", 'say "hi"', "a.b", "a b", "$", "", "中", "a\x00b", "x'; DROP TABLE t; --", "a" * 5000]
    )
    async def test_filter_by_any_key(self, calls: Calls, key: str) -> None:
        """A key is taken literally, whatever characters it holds: a dot is no path, a quote no syntax."""
        stored = await calls.step(metadata={key: "here", "a": {"b": "nested"}})
        await calls.step(stored, metadata={"a": {"b": "here"}})
        assert ids(await calls.list(config_of(), filter={key: "here"})) == [id_of(stored)]

    async def test_filter_by_several_keys(self, calls: Calls) -> None:
        """Every key of a filter must match; an empty filter matches all."""
        first = await calls.step(metadata={"source": "input", "step": 1})
        second = await calls.step(first, metadata={"source": "loop", "step": 1})
        third = await calls.step(second, metadata={"source": "loop", "step": 2})
        assert ids(await calls.list(config_of(), filter={"source": "loop", "step": 1})) == [id_of(second)]
        assert ids(await calls.list(config_of(), filter={"source": "loop"}, before=third)) == [id_of(second)]
        assert len(await calls.list(config_of(), filter={})) == 3
        assert ids(await calls.list(first, filter={"source": "loop"})) == []


class TestThreads:
    """What every saver promises about whole threads and about Python threads."""

    async def test_delete_thread(self, calls: Calls) -> None:
        """Deleting a thread removes its checkpoints and writes of every namespace, and no other thread."""
        kept = {}
        for thread in ("1", "12", "11", "2", "1 ", "1\x00"):
            root = await calls.step(None, {"x": thread}, thread=thread)
            await calls.put_writes(root, [("x", thread)], TASK)
            await calls.step(None, {"x": thread}, thread=thread, ns="child")
            kept[thread] = [shown(each) for each in await calls.list(config_of(thread, None))]
        await calls.delete_thread("1")
        assert await calls.get_tuple(config_of("1")) is None
        assert await calls.list(config_of("1", None)) == []
        del kept["1"]
        for thread, expected in kept.items():
            assert [shown(each) for each in await calls.list(config_of(thread, None))] == expected
        assert len(await calls.list(None)) == 2 * len(kept)

    async def test_delete_unknown_thread(self, calls: Calls) -> None:
        """Deleting a thread that does not exist, or twice, is no error."""
        await calls.step(thread="kept")
        assert await calls.delete_thread("nobody") is None
        await calls.step(thread="gone")
        await calls.delete_thread("gone")
        await calls.delete_thread("gone")
        assert len(await calls.list(None)) == 1

    async def test_deleted_id_is_used_anew(self, calls: Calls) -> None:
        """A thread made again under a deleted id shows nothing of its former life."""
        version = new_version()
        first = await calls.step(None, {"x": "old"}, versions={"x": version})
        await calls.put_writes(first, [("x", "old")], TASK)
        waiting = new_id()
        await calls.put_writes(config_of(id=waiting), [("x", "waiting")], TASK)
        await calls.delete_thread("thread")

        again = await calls.step(None, {}, versions={"x": version}, new={}, id=id_of(first))
        found = await calls.get_tuple(again)
        assert found.checkpoint["channel_values"] == {}
        assert found.pending_writes == []
        later = await calls.step(again, {"x": "new"}, id=waiting)
        assert (await calls.get_tuple(later)).pending_writes == []
        assert len(await calls.list(config_of())) == 2

    async def test_delete_writes_without_checkpoint(self, calls: Calls) -> None:
        """Deleting a thread that holds only waiting writes removes them."""
        waiting = new_id()
        await calls.put_writes(config_of(id=waiting), [("x", 1)], TASK)
        await calls.delete_thread("thread")
        await calls.step(id=waiting)
        assert (await calls.get_tuple(config_of())).pending_writes == []

    async def test_from_other_python_threads(self, calls: Calls) -> None:
        """Sync methods work from any Python thread while the event loop drives the async ones."""
        saver: BaseCheckpointSaver[str] = calls.saver

        async def on_the_loop(thread: str) -> None:
            config = None
            for number in range(5):
                config = await calls.step(config, {"x": number}, thread=thread)
                await calls.put_writes(config, [("x", number)], TASK)

        def elsewhere(thread: str) -> None:
            config = config_of(thread)
            for number in range(5):
                checkpoint = checkpoint_of(new_id(), {"x": number}, {"x": number + 1})
                config = saver.put(config, checkpoint, {"step": number}, {"x": number + 1})
                saver.put_writes(config, [("x", number)], TASK)

        await asyncio.gather(
            *(on_the_loop(f"loop {n}") for n in range(3)),
            *(asyncio.to_thread(elsewhere, f"worker {n}") for n in range(3)),
        )
        for thread in [f"{kind} {n}" for kind in ("loop", "worker") for n in range(3)]:
            found = await calls.list(config_of(thread))
            assert [each.checkpoint["channel_values"]["x"] for each in found] == [4, 3, 2, 1, 0]
            assert [each.pending_writes for each in found] == [[(TASK, "x", n)] for n in (4, 3, 2, 1, 0)]

    async def test_many_at_once(self, calls: Calls) -> None:
        """Many calls in flight at once, writes before and after their checkpoints, all arrive."""
        stored = [config_of(f"thread {n}", id=new_id()) for n in range(40)]
        await asyncio.gather(
            *(
                call
                for config in stored
                for call in (
                    calls.put_writes(config, [("x", 1)], TASK, "~1"),
                    calls.step(thread=config["configurable"]["thread_id"], id=id_of(config), values={"x": 0}),
                    calls.put_writes(config, [("x", 2)], OTHER_TASK, "~2"),
                )
            )
        )
        for config in stored:
            found = await calls.get_tuple(config)
            assert found.checkpoint["channel_values"] == {"x": 0}
            assert found.pending_writes == [(TASK, "x", 1), (OTHER_TASK, "x", 2)]


class TestNextVersion:
    """`get_next_version`."""

    @pytest.mark.parametrize(("current", "number"), [(None, 1), (1, 2), (41, 42), (f"{9:032}.0123", 10), ("7", 8)])
    def test_next(self, saver: BaseCheckpointSaver[str], current: Any, number: int) -> None:
        """The next version counts on from the current one, of whatever type, in LangGraph's form."""
        head, tail = saver.get_next_version(current, None).split(".", 1)
        assert head == f"{number:032}"
        assert len(tail) >= 16
        assert 0 <= float(tail) < 1

    def test_increasing(self, saver: BaseCheckpointSaver[str]) -> None:
        """Versions increase as text, past every power of ten."""
        versions = [saver.get_next_version(None, None)]
        for _ in range(1200):
            versions.append(saver.get_next_version(versions[-1], None))
        assert versions == sorted(versions)
        assert len(set(versions)) == len(versions)

    def test_branches_differ(self, saver: BaseCheckpointSaver[str]) -> None:
        """Two branches that count on from one version get different ones."""
        assert len({saver.get_next_version("5", None) for _ in range(100)}) == 100


@only_ours
class TestBeyondInMemorySaver:
    """Rules that ours keeps and InMemorySaver breaks by design, each with the reason."""

    async def test_latest_is_the_head_by_commit_order(self, calls: Calls) -> None:
        """The latest checkpoint is the one committed last, because ids come from clocks and clocks step back.

        InMemorySaver takes the greatest id as text.
        """
        first = await calls.step(None, {"x": 1}, id="9")
        second = await calls.step(first, {"x": 2}, id="5")
        assert (await calls.get_tuple(config_of())).checkpoint["id"] == id_of(second)
        assert ids(await calls.list(config_of())) == ["5", "9"]
        assert ids(await calls.list(config_of(), limit=1)) == ["5"]
        await calls.step(second, {"x": 3}, id="7")
        assert ids(await calls.list(config_of())) == ["7", "5", "9"]
        assert (await calls.get_tuple(config_of())).checkpoint["channel_values"] == {"x": 3}

    async def test_value_not_named_in_new_versions(self, calls: Calls) -> None:
        """A value is kept though `new_versions` does not name its channel, as SqliteSaver keeps it.

        InMemorySaver stores only what `new_versions` names.
        """
        versions = {"x": new_version(), "y": new_version()}
        first = await calls.step(None, {"x": [1], "y": 1}, versions=versions, new={"y": versions["y"]})
        second = await calls.step(first, {}, versions=versions, new={})
        for config in (first, second):
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {"x": [1], "y": 1}

    async def test_value_without_a_version(self, calls: Calls) -> None:
        """A value is kept though its channel has no version, as SqliteSaver keeps it.

        InMemorySaver shows only channels that have a version.
        """
        stored = await calls.step(None, {"x": [1]}, versions={})
        assert (await calls.get_tuple(stored)).checkpoint["channel_values"] == {"x": [1]}

    async def test_another_value_under_the_same_version(self, calls: Calls) -> None:
        """A value given anew under an unchanged version shows from there on, and its ancestor keeps its own.

        InMemorySaver holds one value for each version and would lose the new one.
        """
        versions = {"x": new_version()}
        first = await calls.step(None, {"x": "old"}, versions=versions)
        second = await calls.step(first, {"x": "new"}, versions=versions, new={})
        third = await calls.step(second, {}, versions=versions, new={})
        assert (await calls.get_tuple(first)).checkpoint["channel_values"] == {"x": "old"}
        assert (await calls.get_tuple(second)).checkpoint["channel_values"] == {"x": "new"}
        assert (await calls.get_tuple(third)).checkpoint["channel_values"] == {"x": "new"}

    async def test_same_version_in_two_branches(self, calls: Calls) -> None:
        """Two branches that reach one version with different values each keep theirs, found along the branch.

        InMemorySaver lets the later value replace the earlier one in both branches.
        """
        root = await calls.step(None, {"x": "root"}, versions={"x": 1})
        left = await calls.step(root, {"x": "left"}, versions={"x": 2})
        right = await calls.step(root, {"x": "right"}, versions={"x": 2})
        left_child = await calls.step(left, {}, versions={"x": 2}, new={})
        right_child = await calls.step(right, {}, versions={"x": 2}, new={})
        for config, expected in (
            (left, "left"),
            (right, "right"),
            (left_child, "left"),
            (right_child, "right"),
        ):
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {"x": expected}

    async def test_looping_parents(self, calls: Calls) -> None:
        """A chain of parents that loops, after a re-put under a descendant, ends every walk.

        InMemorySaver's history never returns from such a chain.
        """
        first = await calls.step(None, {"x": 1})
        second = await calls.step(first, {"x": 2})
        third = await calls.step(second, {"x": 3})
        for number, config in enumerate((first, second, third)):
            await calls.put_writes(config, [("d", number)], TASK)
        await calls.step(third, {"x": 1}, id=id_of(first))

        everything = [first, second, third]
        for config in everything:
            found = await calls.get_tuple(config)
            assert found.checkpoint["id"] == id_of(config)
            history = await calls.get_delta_channel_history(config=config, channels=["d", "x"])
            written = [value for _, _, value in history["d"]["writes"]]
            assert len(written) == len(set(written))
            assert everything.index(config) not in written
        assert sorted(ids(await calls.list(config_of()))) == sorted(id_of(each) for each in everything)
        assert len(await calls.list(None)) == 3
        later = await calls.step(third, {"x": 4})
        assert (await calls.get_tuple(later)).checkpoint["channel_values"] == {"x": 4}

    async def test_looping_parents_without_values(self, calls: Calls) -> None:
        """A walk for a value that no checkpoint of a loop stores ends too.

        InMemorySaver looks values up by version and never walks.
        """
        versions = {"x": new_version()}
        first = await calls.step(None, {}, versions=versions, new={})
        second = await calls.step(first, {}, versions=versions, new={})
        await calls.step(second, {}, id=id_of(first), versions=versions, new={})
        for config in (first, second, config_of()):
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {}
        assert len(await calls.list(config_of())) == 2
        history = await calls.get_delta_channel_history(config=second, channels=["x"])
        assert history == {"x": {"writes": []}}

    async def test_own_parent(self, calls: Calls) -> None:
        """A checkpoint put as its own parent is found, listed once, and ends every walk.

        InMemorySaver's history never returns from it.
        """
        id = new_id()
        stored = await calls.step(config_of(id=id), {"x": 1}, id=id)
        await calls.put_writes(stored, [("d", 1)], TASK)
        assert (await calls.get_tuple(stored)).checkpoint["channel_values"] == {"x": 1}
        assert ids(await calls.list(config_of())) == [id]
        history = await calls.get_delta_channel_history(config=stored, channels=["d"])
        assert history == {"d": {"writes": []}}

    async def test_deleting_while_listing(self, calls: Calls) -> None:
        """A thread deleted between two items of a list breaks neither, as no transaction spans a yield.

        InMemorySaver's dictionary must not change while it is walked.
        """
        for thread in ("a", "b", "c"):
            await calls.step(await calls.step(thread=thread))
        seen = 0
        async for _each in calls.stream(None):
            seen += 1
            await calls.delete_thread("b")
            await calls.step(thread=f"new {seen}")
            if seen > 20:
                break
        assert seen >= 4
        assert await calls.list(config_of("b")) == []

    async def test_put_without_namespace(self, calls: Calls) -> None:
        """A put whose config has no namespace goes to the root namespace, where `get_tuple` looks for it.

        InMemorySaver raises KeyError.
        """
        stored = await calls.put(config_of(ns=None), checkpoint_of(new_id()), {"step": 1}, {})
        assert stored == config_of(id=id_of(stored))
        assert (await calls.get_tuple(config_of())).checkpoint["id"] == id_of(stored)

    async def test_writes_are_all_or_none(self, calls: Calls) -> None:
        """A list of writes of which one cannot be serialised stores none of them.

        InMemorySaver keeps those before the bad one.
        """
        stored = await calls.step()
        with pytest.raises(TypeError):
            await calls.put_writes(stored, [("x", 1), ("y", object())], TASK)
        assert (await calls.get_tuple(stored)).pending_writes == []
        await calls.put_writes(stored, [("x", 2)], TASK)
        assert (await calls.get_tuple(stored)).pending_writes == [(TASK, "x", 2)]
