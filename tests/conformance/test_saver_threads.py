"""Whole threads: copying, pruning, deleting runs. InMemorySaver has none of these, so ours runs alone."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from conformance.calls import Calls, config_of, id_of, ids, new_id, new_version, shown
from stepwell.errors import ConflictError, StepwellError, UsageError
from stepwell_langgraph import StepwellSaver

only_ours = pytest.mark.parametrize("saver", ["file", "memory"], indirect=True)

NAMESPACES = ("", "mid:1", "mid:1|child:2")


async def everything(calls: Calls, thread: str) -> list[dict[str, Any]]:
    """All that a thread shows, without the thread's own id."""
    found = [shown(each) for each in await calls.list(config_of(thread, None))]
    return [{**each, "config": each["config"][1:]} for each in found if each is not None]


async def build(calls: Calls, thread: str) -> None:
    """A thread with three namespaces, a fork, writes out of order, and a delta channel with a snapshot."""
    for ns in NAMESPACES:
        config, stored = None, []
        for number in range(6):
            values: dict[str, Any] = {"messages": [HumanMessage(f"{ns} {n}", id=str(n)) for n in range(number)]}
            versions = {"messages": new_version(), "files": new_version()}
            if number == 2:
                values["files"] = _DeltaSnapshot([f"{ns} snapshot"])
            config = await calls.step(
                config,
                values,
                thread=thread,
                ns=ns,
                versions=versions,
                metadata={"step": number, "run_id": f"run {number % 2}"},
            )
            await calls.put_writes(config, [("files", f"{ns} {number} second")], "a", "~2")
            await calls.put_writes(config, [("files", f"{ns} {number} first"), ("files", 1)], "b", "~1")
            stored.append(config)
        fork = await calls.step(stored[3], {"messages": ["a fork"]}, metadata={"source": "fork", "step": 9})
        await calls.step(stored[5], {"messages": ["the head"]}, metadata={"step": 10})
        await calls.put_writes(fork, [("files", "on the fork")], "c")


async def histories(calls: Calls, thread: str) -> list[Any]:
    """The delta history of the head of each namespace and of each checkpoint listed."""
    configs = [config_of(thread, ns) for ns in NAMESPACES]
    configs += [each.config for each in await calls.list(config_of(thread, None))]
    channels = ["files", "messages", "unknown"]
    return [await calls.get_delta_channel_history(config=config, channels=channels) for config in configs]


@only_ours
class TestCopyThread:
    """`copy_thread`."""

    async def test_copies_everything(self, calls: Calls) -> None:
        """Every namespace, checkpoint, fork, write and their order is in the copy."""
        await build(calls, "source")
        await calls.step(thread="sourc", values={"x": "not this"})
        before = await everything(calls, "source")
        assert await calls.copy_thread("source", "target") is None
        assert await everything(calls, "target") == before
        assert await everything(calls, "source") == before
        assert await histories(calls, "target") == await histories(calls, "source")
        for found in await calls.list(config_of("target", None)):
            assert found.config["configurable"]["thread_id"] == "target"
            if found.parent_config is not None:
                assert found.parent_config["configurable"]["thread_id"] == "target"
            assert shown(await calls.get_tuple(found.config)) == shown(found)
        for ns in NAMESPACES:
            assert (await calls.get_tuple(config_of("target", ns))).metadata["step"] == 10

    async def test_threads_part_afterwards(self, calls: Calls) -> None:
        """What is appended to the source or the copy afterwards shows in that one only."""
        await build(calls, "source")
        await calls.copy_thread("source", "target")
        before = await everything(calls, "source")
        for thread in ("source", "target"):
            head = await calls.get_tuple(config_of(thread))
            messages = [*head.checkpoint["channel_values"]["messages"], thread]
            later = await calls.step(head.config, {"messages": messages})
            await calls.put_writes(head.config, [("x", thread)], "later")
            assert (await calls.get_tuple(later)).checkpoint["channel_values"]["messages"] == [
                "the head",
                thread,
            ]
            assert (await calls.get_tuple(head.config)).pending_writes == [("later", "x", thread)]
        assert len(await everything(calls, "source")) == len(before) + 1
        assert len(await everything(calls, "target")) == len(before) + 1

    async def test_source_deleted(self, calls: Calls) -> None:
        """The copy outlives its source."""
        await build(calls, "source")
        before, walked = await everything(calls, "source"), await histories(calls, "source")
        await calls.copy_thread("source", "target")
        await calls.delete_thread("source")
        assert await everything(calls, "source") == []
        assert await everything(calls, "target") == before
        assert await histories(calls, "target") == walked

    async def test_copy_deleted(self, calls: Calls) -> None:
        """The source outlives its copy, and can be copied to the same id again."""
        await build(calls, "source")
        before = await everything(calls, "source")
        for _ in range(2):
            await calls.copy_thread("source", "target")
            await calls.delete_thread("target")
            assert await everything(calls, "target") == []
            assert await everything(calls, "source") == before

    async def test_copy_of_a_copy(self, calls: Calls) -> None:
        """A copy can be copied, whole, after both its forerunners are gone."""
        await build(calls, "first")
        before = await everything(calls, "first")
        await calls.copy_thread("first", "second")
        await calls.delete_thread("first")
        await calls.copy_thread("second", "third")
        await calls.delete_thread("second")
        assert await everything(calls, "third") == before

    async def test_onto_an_existing_thread(self, calls: Calls) -> None:
        """Copying onto a thread that exists, itself included, is a conflict that changes nothing."""
        await build(calls, "source")
        await calls.step(thread="target", values={"x": 1})
        before = await everything(calls, "source"), await everything(calls, "target")
        with pytest.raises(ConflictError, match="target"):
            await calls.copy_thread("source", "target")
        with pytest.raises(ConflictError, match="source"):
            await calls.copy_thread("source", "source")
        assert (await everything(calls, "source"), await everything(calls, "target")) == before

    async def test_unknown_source(self, calls: Calls) -> None:
        """Copying a thread that does not exist makes no thread."""
        await calls.step(thread="other")
        with suppress(StepwellError):
            await calls.copy_thread("nobody", "target")
        assert await everything(calls, "target") == []
        assert len(await calls.list(None)) == 1
        await calls.step(thread="target")
        assert len(await everything(calls, "target")) == 1

    async def test_waiting_writes(self, calls: Calls) -> None:
        """Writes that wait for a checkpoint wait in the copy too."""
        await calls.step(thread="source")
        waiting = new_id()
        await calls.put_writes(config_of("source", id=waiting), [("x", 1)], "task")
        await calls.copy_thread("source", "target")
        for thread in ("source", "target"):
            await calls.step(thread=thread, id=waiting)
            assert (await calls.get_tuple(config_of(thread))).pending_writes == [("task", "x", 1)]

    async def test_pruned_source(self, calls: Calls) -> None:
        """The copy of a pruned thread shows what the pruned thread shows, delta histories included."""
        await build(calls, "source")
        await calls.prune(["source"])
        await calls.copy_thread("source", "target")
        assert await everything(calls, "target") == await everything(calls, "source")
        assert await histories(calls, "target") == await histories(calls, "source")
        assert len(await everything(calls, "target")) == len(NAMESPACES)

    async def test_other_ids(self, calls: Calls) -> None:
        """Source and target may hold any characters and be prefixes of each other."""
        await build(calls, "1")
        before = await everything(calls, "1")
        for target in ("12", "1\x00", "🎉" * 500):
            await calls.copy_thread("1", target)
            assert await everything(calls, target) == before
        await calls.delete_thread("12")
        assert await everything(calls, "1\x00") == before


async def build_delta(calls: Calls, *, counted: bool, seeded: bool, length: int = 8, ns: str = "") -> list[Any]:
    """A lane with the delta channels `files` and `notes`; `counted` tells of them in the metadata."""
    config, stored = None, []
    for number in range(length):
        values: dict[str, Any] = {"plain": [f"plain {n}" for n in range(number)]}
        if seeded and number == 2:
            values["files"] = _DeltaSnapshot([f"seed of {ns}"])
        if seeded and number == 4:
            values["notes"] = ["a plain seed"]
        metadata: dict[str, Any] = {"source": "loop", "step": number, "parents": {}}
        if counted:
            metadata["counters_since_delta_snapshot"] = {"files": [number, number], "notes": [0, number]}
        versions = {"plain": new_version(), "files": new_version(), "notes": new_version()}
        config = await calls.step(config, values, ns=ns, versions=versions, metadata=metadata)
        await calls.put_writes(config, [("files", {"second": number}), ("plain", number)], "a", "~2")
        await calls.put_writes(config, [("files", {"first": number}), ("notes", number)], "b", "~1")
        stored.append(config)
    return stored


async def delta(calls: Calls, config: Any) -> Any:
    """The history of every delta channel of `build_delta`; the plain one has a value and needs none."""
    return await calls.get_delta_channel_history(config=config, channels=["files", "notes"])


@only_ours
class TestPrune:
    """`prune`."""

    async def test_keep_latest(self, calls: Calls) -> None:
        """Only the newest checkpoint of each namespace is left, showing what it showed, by default too."""
        for thread in ("one", "two", "three"):
            await build(calls, thread)
        untouched = await everything(calls, "three")
        heads = {
            (thread, ns): shown(await calls.get_tuple(config_of(thread, ns)))
            for thread in ("one", "two")
            for ns in NAMESPACES
        }
        assert await calls.prune(["one"], strategy="keep_latest") is None
        await calls.prune(["two"])
        for (thread, ns), head in heads.items():
            assert head is not None
            [found] = await calls.list(config_of(thread, ns))
            assert shown(found) == shown(await calls.get_tuple(config_of(thread, ns)))
            assert {**head, "parent": None} == {**(shown(found) or {}), "parent": None}
        assert len(await calls.list(config_of("one", None))) == len(NAMESPACES)
        assert await everything(calls, "three") == untouched
        assert len(await calls.list(None)) == 2 * len(NAMESPACES) + len(untouched)

    async def test_pruned_checkpoints_are_gone(self, calls: Calls) -> None:
        """A pruned checkpoint is found by no id, no filter, no `before`."""
        stored = await build_delta(calls, counted=True, seeded=True)
        await calls.prune(["thread"])
        for config in stored[:-1]:
            assert await calls.get_tuple(config) is None
            assert await calls.list(config) == []
        assert await calls.list(config_of(), filter={"step": 3}) == []
        assert await calls.list(config_of(), before=stored[-1]) == []
        assert len(await calls.list(config_of(), limit=5)) == 1

    async def test_pending_writes_are_kept(self, calls: Calls) -> None:
        """The kept checkpoint keeps its pending writes, an interrupt among them."""
        head = await calls.step(await calls.step())
        await calls.put_writes(head, [("__interrupt__", ["?"]), ("x", 1)], "task")
        await calls.prune(["thread"])
        assert (await calls.get_tuple(config_of())).pending_writes == [
            ("task", "__interrupt__", ["?"]),
            ("task", "x", 1),
        ]
        await calls.put_writes(head, [("x", 2)], "another task")
        assert len((await calls.get_tuple(config_of())).pending_writes) == 3

    async def test_kept_values_come_from_pruned_checkpoints(self, calls: Calls) -> None:
        """Values that the kept checkpoint shows but a pruned one stored are kept."""
        versions = {"x": new_version(), "y": new_version()}
        root = await calls.step(None, {"x": [1, 2, 3], "y": 0}, versions=versions)
        config = root
        for number in range(5):
            versions = {**versions, "y": new_version()}
            config = await calls.step(config, {"y": number}, versions=versions, new={"y": versions["y"]})
        await calls.prune(["thread"])
        assert (await calls.get_tuple(config_of())).checkpoint["channel_values"] == {"x": [1, 2, 3], "y": 4}
        later = await calls.step(config, {}, versions=versions, new={})
        assert (await calls.get_tuple(later)).checkpoint["channel_values"] == {"x": [1, 2, 3], "y": 4}

    @pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "unseeded"])
    @pytest.mark.parametrize("counted", [True, False], ids=["counted", "uncounted"])
    async def test_delta_history_is_kept(self, calls: Calls, counted: bool, seeded: bool) -> None:
        """The kept checkpoint's delta history is exactly what it was, though one checkpoint is listed.

        It holds with and without counters in the metadata, with and without a seed, pruned twice in a row,
        and as the thread goes on and is pruned again.
        """
        stored = await build_delta(calls, counted=counted, seeded=seeded)
        head = stored[-1]
        before, showed = await delta(calls, head), shown(await calls.get_tuple(head))
        assert before["files"]["writes"]
        assert ("seed" in before["files"]) is seeded
        for _ in range(2):
            await calls.prune(["thread"])
            assert await delta(calls, head) == before
            assert await delta(calls, config_of()) == before
            assert ids(await calls.list(config_of(ns=None))) == [id_of(head)]
            assert {**(shown(await calls.get_tuple(head)) or {}), "parent": 0} == {
                **(showed or {}),
                "parent": 0,
            }

        child = await calls.step(head, {"plain": ["child"]}, metadata={"step": 100})
        grown = await delta(calls, child)
        own = {
            "files": [("b", "files", {"first": 7}), ("a", "files", {"second": 7})],
            "notes": [("b", "notes", 7)],
        }
        for channel, added in own.items():
            assert grown[channel] == {**before[channel], "writes": [*before[channel]["writes"], *added]}

        await calls.put_writes(child, [("files", "later")], "later")
        grandchild = await calls.step(child, {"plain": ["grandchild"]}, metadata={"step": 101})
        before = await delta(calls, grandchild)
        assert before["files"]["writes"] == [*grown["files"]["writes"], ("later", "files", "later")]
        await calls.prune(["thread"])
        assert await delta(calls, grandchild) == before
        assert ids(await calls.list(config_of())) == [id_of(grandchild)]

    async def test_fork_from_the_kept_checkpoint(self, calls: Calls) -> None:
        """Both branches that start at the kept checkpoint have the whole delta history before it."""
        stored = await build_delta(calls, counted=True, seeded=False)
        before = await delta(calls, stored[-1])
        await calls.prune(["thread"])
        for branch in ("left", "right"):
            child = await calls.step(stored[-1], {"plain": [branch]})
            found = (await delta(calls, child))["files"]["writes"]
            assert found == [
                *before["files"]["writes"],
                ("b", "files", {"first": 7}),
                ("a", "files", {"second": 7}),
            ]

    async def test_only_the_branch_of_the_head_is_kept(self, calls: Calls) -> None:
        """The writes of a branch that does not lead to the kept checkpoint do not enter its history."""
        root = await calls.step()
        await calls.put_writes(root, [("files", "root")], "task")
        dead = await calls.step(root)
        await calls.put_writes(dead, [("files", "dead")], "task")
        await calls.step(dead)
        live = await calls.step(root)
        await calls.put_writes(live, [("files", "live")], "task")
        head = await calls.step(live)
        await calls.prune(["thread"])
        history = await calls.get_delta_channel_history(config=head, channels=["files"])
        assert [value for _, _, value in history["files"]["writes"]] == ["root", "live"]
        assert await calls.get_tuple(dead) is None

    async def test_each_namespace_keeps_its_own_history(self, calls: Calls) -> None:
        """Delta histories of several namespaces survive side by side."""
        heads = {ns: (await build_delta(calls, counted=ns == "", seeded=ns != "mid:1", ns=ns))[-1] for ns in NAMESPACES}
        before = {ns: await delta(calls, head) for ns, head in heads.items()}
        await calls.prune(["thread"])
        assert {ns: await delta(calls, head) for ns, head in heads.items()} == before
        found = await calls.list(config_of(ns=None))
        assert sorted(ids(found)) == sorted(id_of(head) for head in heads.values())

    async def test_long_history(self, calls: Calls) -> None:
        """A long unseeded history survives being pruned again and again while it grows."""
        config, expected = await calls.step(), []
        for number in range(60):
            await calls.put_writes(config, [("files", number)], "task")
            expected.append(("task", "files", number))
            config = await calls.step(config)
            if number % 7 == 0:
                await calls.prune(["thread"])
                assert len(await calls.list(config_of())) == 1
        history = await calls.get_delta_channel_history(config=config, channels=["files"])
        assert history == {"files": {"writes": expected}}

    async def test_delete(self, calls: Calls) -> None:
        """The strategy "delete" removes the threads named and no other."""
        for thread in ("1", "12", "2"):
            await build(calls, thread)
        untouched = await everything(calls, "12")
        await calls.prune(["1", "2"], strategy="delete")
        assert await everything(calls, "1") == []
        assert await everything(calls, "2") == []
        assert await everything(calls, "12") == untouched
        assert await calls.get_tuple(config_of("1")) is None
        await build(calls, "1")
        assert len(await everything(calls, "1")) == len(untouched)

    async def test_nothing_to_prune(self, calls: Calls) -> None:
        """Unknown threads and an empty list are no error and make no thread."""
        await build(calls, "kept")
        before = await everything(calls, "kept")
        for strategy in ("keep_latest", "delete"):
            await calls.prune([], strategy=strategy)
            await calls.prune(["nobody"], strategy=strategy)
        assert await everything(calls, "kept") == before
        assert len(await calls.list(None)) == len(before)

    async def test_unknown_strategy(self, calls: Calls) -> None:
        """A strategy that does not exist is refused by name before anything is changed."""
        await build(calls, "thread")
        before = await everything(calls, "thread")
        with pytest.raises(ValueError, match="strategy"):
            await calls.prune(["thread"], strategy="keep_some")
        with pytest.raises(ValueError, match="keep_some"):
            await calls.prune([], strategy="keep_some")
        assert await everything(calls, "thread") == before

    async def test_lost_writes_stay_lost(self, calls: Calls) -> None:
        """A write that gave way to an earlier one of its task and place does not come back when that one goes."""
        root = await calls.step(None, {"plain": 1}, versions={"plain": "1", "files": "1"})
        await calls.put_writes(root, [("plain", "first"), ("files", "kept")], "task")
        await calls.put_writes(root, [("files", "too late"), ("plain", "too late")], "task")
        counters = {"counters_since_delta_snapshot": {"files": [1, 1]}}
        head = await calls.step(
            root, {"plain": 2}, versions={"plain": "2", "files": "2"}, metadata={"step": 1, **counters}
        )
        before = await calls.get_delta_channel_history(config=head, channels=["files"])
        assert before == {"files": {"writes": [("task", "files", "kept")]}}
        await calls.prune(["thread"])
        assert await calls.get_delta_channel_history(config=head, channels=["files"]) == before

    async def test_waiting_writes(self, calls: Calls) -> None:
        """Writes that wait for a checkpoint outlive a pruning that comes between, as a run may be going on."""
        root = await calls.step(await calls.step())
        waiting = new_id()
        await calls.put_writes(config_of(id=waiting), [("x", 1)], "task")
        await calls.prune(["thread"])
        later = await calls.step(root, id=waiting)
        assert (await calls.get_tuple(later)).pending_writes == [("task", "x", 1)]

    async def test_writes_only(self, calls: Calls) -> None:
        """A thread of waiting writes only is pruned without an error, and its checkpoint may still come."""
        waiting = new_id()
        await calls.put_writes(config_of(id=waiting), [("x", 1)], "task")
        await calls.prune(["thread"])
        assert await calls.list(config_of()) == []
        await calls.step(id=waiting)
        assert (await calls.get_tuple(config_of())).checkpoint["id"] == waiting


@only_ours
class TestDeleteForRuns:
    """`delete_for_runs`."""

    async def test_all_of_a_run(self, calls: Calls) -> None:
        """Every checkpoint of the runs goes, in every namespace and thread; the others stay."""
        await build(calls, "one")
        await build(calls, "two")
        expected = {
            thread: [each for each in await everything(calls, thread) if each["metadata"].get("run_id") != "run 1"]
            for thread in ("one", "two")
        }
        assert await calls.delete_for_runs(["run 1", "no such run"]) is None
        for thread, kept in expected.items():
            found = await everything(calls, thread)
            assert [each["config"] for each in found] == [each["config"] for each in kept]
            for each, before in zip(found, kept, strict=True):
                assert {**each, "parent": None} == {**before, "parent": None}
            assert await calls.list(config_of(thread, None), filter={"run_id": "run 1"}) == []

    async def test_values_of_other_runs_stay(self, calls: Calls) -> None:
        """A checkpoint keeps the values that it shows though the run that stored them is deleted."""
        versions = {"x": new_version(), "y": new_version()}
        first = await calls.step(None, {"x": [1, 2], "y": 1}, versions=versions, metadata={"run_id": "old"})
        moved = {**versions, "y": new_version()}
        second = await calls.step(
            first, {"x": [1, 2], "y": 2}, versions=moved, new={"y": moved["y"]}, metadata={"run_id": "new"}
        )
        third = await calls.step(second, {}, versions=moved, new={}, metadata={"run_id": "new"})
        await calls.delete_for_runs(["old"])
        for config in (second, third):
            assert (await calls.get_tuple(config)).checkpoint["channel_values"] == {"x": [1, 2], "y": 2}
        later = await calls.step(third, {}, versions=moved, new={})
        assert (await calls.get_tuple(later)).checkpoint["channel_values"] == {"x": [1, 2], "y": 2}
        assert ids(await calls.list(config_of())) == [id_of(later), id_of(third), id_of(second)]

    async def test_head_of_the_lane(self, calls: Calls) -> None:
        """When the newest run goes, the newest checkpoint that is left becomes the latest."""
        first = await calls.step(None, {"x": 1}, metadata={"run_id": "kept"})
        second = await calls.step(first, {"x": 2}, metadata={"run_id": "gone"})
        await calls.step(second, {"x": 3}, metadata={"run_id": "gone"})
        await calls.delete_for_runs(["gone"])
        found = await calls.get_tuple(config_of())
        assert found.checkpoint["id"] == id_of(first)
        assert found.checkpoint["channel_values"] == {"x": 1}
        later = await calls.step(first, {"x": 4})
        assert ids(await calls.list(config_of())) == [id_of(later), id_of(first)]

    async def test_whole_thread(self, calls: Calls) -> None:
        """When all checkpoints of a thread go, nothing of it is found, and its id can be used anew."""
        stored = await calls.step(None, {"x": 1}, metadata={"run_id": "gone"})
        await calls.put_writes(stored, [("x", 1)], "task")
        await calls.delete_for_runs(["gone"])
        assert await calls.get_tuple(config_of()) is None
        assert await calls.list(None) == []
        again = await calls.step(None, {"x": 2}, id=id_of(stored))
        assert (await calls.get_tuple(again)).pending_writes == []

    async def test_nothing(self, calls: Calls) -> None:
        """No runs, unknown runs, and runs that are only part of a run's id, delete nothing."""
        await calls.step(metadata={"run_id": "run 12"})
        await calls.step(thread="other", metadata={"step": 1})
        await calls.delete_for_runs([])
        await calls.delete_for_runs(["run 1", "run", "", "12"])
        assert len(await calls.list(None)) == 2

    async def test_run_id_from_the_config(self, calls: Calls) -> None:
        """A run id that came in with the config's metadata counts as the checkpoint's."""
        config: Any = {**config_of(), "metadata": {"run_id": "gone"}}
        await calls.step(config, {"x": 1})
        await calls.delete_for_runs(["gone"])
        assert await calls.list(None) == []


@only_ours
class TestDeletedSpaceIsReused:
    """Threads that come and go leave nothing that shows."""

    async def test_many_lives(self, calls: Calls) -> None:
        """A thread id lived through many times, deleted in each way, always shows its present life only."""
        for life in range(9):
            await build(calls, "thread")
            marker = await calls.step(None, {"x": life}, ns="marker")
            assert len(await calls.list(config_of(ns="marker"))) == 1
            assert (await calls.get_tuple(marker)).checkpoint["channel_values"] == {"x": life}
            if life % 3 == 0:
                await calls.delete_thread("thread")
            elif life % 3 == 1:
                await calls.prune(["thread"], strategy="delete")
            else:
                await calls.prune(["thread"])
                await calls.delete_thread("thread")
            assert await calls.list(None) == []


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_reopened(tmp_path: Path, asynchronous: bool) -> None:
    """What copies, prunings and deletions did shows the same after the file is closed and opened again."""
    path = str(tmp_path / "agents.stepwell")
    with StepwellSaver.from_conn_string(path) as saver:
        calls = Calls(saver, asynchronous=asynchronous)
        for thread in ("kept", "pruned", "deleted"):
            await build(calls, thread)
        await calls.copy_thread("kept", "copied")
        await calls.prune(["pruned"])
        await calls.delete_thread("deleted")
        before = {
            thread: (await everything(calls, thread), await histories(calls, thread))
            for thread in ("kept", "pruned", "deleted", "copied")
        }
    with StepwellSaver.from_conn_string(path) as saver:
        calls = Calls(saver, asynchronous=asynchronous)
        for thread, expected in before.items():
            assert (await everything(calls, thread), await histories(calls, thread)) == expected
        assert saver.log.audit().breaches == []


# --- lists of threads ---


async def listed(saver: StepwellSaver, calls: Calls, **asked: Any) -> list[Any]:
    """What `threads` or `athreads` shows, as the calls are made."""
    if calls.asynchronous:
        return [found async for found in saver.athreads(**asked)]
    return list(saver.threads(**asked))


@only_ours
async def test_threads(saver: StepwellSaver, calls: Calls) -> None:
    """Threads are found by what their root graph's checkpoints say of them, newest first."""
    for number in range(6):
        about = {"user": f"u{number % 2}", "tier": number, "step": number, "run_id": f"r{number}", "tags": ["a"]}
        await calls.step(None, {"branch:to:a": None}, thread=f"t{number}", metadata=about)
        await calls.step(None, {"x": number}, thread=f"t{number}", ns="sub:1", metadata={"user": "of the sub-graph"})
    config = await calls.step(None, {"messages": ["done"]}, thread="t1", metadata={"step": 7})
    await calls.put_writes(config, [("messages", 1)], "task")
    failed = await calls.step(None, {"__start__": 1}, thread="t3", metadata={"user": "u9"})
    await calls.put_writes(failed, [("__error__", "it broke")], "task")
    asked = await calls.step(None, {"join:a+b:c": {"b", "a"}}, thread="t4")
    assert [each.status for each in await listed(saver, calls, limit=1)] == ["running"]
    await calls.put_writes(asked, [("__interrupt__", "who?")], "task")
    found = await listed(saver, calls)
    assert [(each.thread_id, each.status) for each in found] == [
        ("t4", "interrupted"),
        ("t3", "failed"),
        ("t1", "done"),
        ("t5", "running"),
        ("t2", "running"),
        ("t0", "running"),
    ]
    assert found[2].metadata == {"user": "u1", "tier": 1}
    assert found[2].config == {"configurable": {"thread_id": "t1"}}
    assert found[2].checkpoints == 3
    assert found[2].created_at <= found[2].updated_at <= found[0].updated_at
    for filter_ in (
        {"user": "u1"},
        {"tier": 4.0},
        {"user": "u1", "tier": True},
        {"user": "u9", "tier": 3},
        {"user": None},
    ):
        expected = [each for each in found if all(each.metadata.get(key) == value for key, value in filter_.items())]
        assert await listed(saver, calls, filter=filter_) == expected
    assert await listed(saver, calls, before=found[2].cursor) == found[3:]
    assert await listed(saver, calls, newest_first=False, status="running", prefix="t") == found[:2:-1]
    middle = found[2].updated_at
    assert await listed(saver, calls, updated_before=middle) == [each for each in found if each.updated_at < middle]
    await calls.put_writes(asked, [("__resume__", "me")], "task")
    assert [each.thread_id for each in await listed(saver, calls, status="running")] == ["t4", "t5", "t2", "t0"]


@only_ours
@pytest.mark.parametrize("filter_", [{"step": 1}, {"run_id": "r"}, {"tags": ["a"]}, {"long": "x" * 300}])
def test_filters_that_find_no_threads(saver: StepwellSaver, filter_: dict[str, Any]) -> None:
    """What tells of a single checkpoint, or is no label, is refused with the way out."""
    with pytest.raises(UsageError, match="use list"):
        saver.threads(filter=filter_)


@only_ours
def test_times_at_the_ends_of_the_calendar(saver: StepwellSaver) -> None:
    """Any datetime bounds a list of threads, whatever its zone, the first and the last that there are as well."""
    saver.put(config_of("t"), empty_checkpoint(), {}, {})
    for zone in (None, UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))):
        first, last = datetime.min.replace(tzinfo=zone), datetime.max.replace(tzinfo=zone)
        assert [each.thread_id for each in saver.threads(updated_since=first, updated_before=last)] == ["t"]
        assert [*saver.threads(updated_before=first)] == [*saver.threads(updated_since=last)] == []
