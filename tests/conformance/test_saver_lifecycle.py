"""A saver's life: set up, used with and without `with`, closed, opened again. It runs over ours alone."""

from __future__ import annotations

import contextlib
import gc
import inspect
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from conformance.calls import Calls, checkpoint_of, config_of, id_of, new_id, shown
from stepwell.errors import ClosedError, UsageError
from stepwell_langgraph import StepwellSaver


@pytest.fixture(params=["file", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where to open a saver."""
    return ":memory:" if request.param == "memory" else str(tmp_path / "agents.stepwell")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file to open savers on."""
    return str(tmp_path / "agents.stepwell")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    """Which spelling to use."""
    flag: bool = request.param
    return flag


class State(TypedDict):
    steps: Annotated[list[str], operator.add]


def graph_over(checkpointer: BaseCheckpointSaver[str]) -> Any:
    """A graph of two nodes in a row."""
    builder = StateGraph(State)
    builder.add_node("one", lambda state: {"steps": ["one"]})
    builder.add_node("two", lambda state: {"steps": ["two"]})
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    builder.add_edge("two", END)
    return builder.compile(checkpointer=checkpointer)


class TestUse:
    """Ways to hold a saver."""

    def test_is_a_saver(self, target: str) -> None:
        """What `from_conn_string` returns is itself a saver, before any `with`."""
        saver = StepwellSaver.from_conn_string(target)
        assert isinstance(saver, BaseCheckpointSaver)
        assert isinstance(saver, StepwellSaver)
        with saver as entered:
            assert entered is saver

    def test_without_with(self, target: str) -> None:
        """A graph compiled with the saver as it is runs, and finds its state again."""
        saver = StepwellSaver.from_conn_string(target)
        graph = graph_over(saver)
        assert graph.invoke({"steps": ["in"]}, config_of("t")) == {"steps": ["in", "one", "two"]}
        assert graph.get_state(config_of("t")).values == {"steps": ["in", "one", "two"]}
        assert len(list(graph.get_state_history(config_of("t")))) == 4
        with saver:
            assert saver.log.audit().breaches == []

    async def test_without_with_async(self, target: str) -> None:
        """The same saver serves `ainvoke` and, afterwards, `invoke`."""
        saver = StepwellSaver.from_conn_string(target)
        graph = graph_over(saver)
        assert await graph.ainvoke({"steps": ["in"]}, config_of("t")) == {"steps": ["in", "one", "two"]}
        assert graph.invoke({"steps": ["again"]}, config_of("t"))["steps"][-3:] == ["again", "one", "two"]
        assert len([each async for each in graph.aget_state_history(config_of("t"))]) == 8
        async with saver:
            assert saver.log.audit().breaches == []

    def test_sync_context(self, target: str) -> None:
        """`with` hands out the saver."""
        with StepwellSaver.from_conn_string(target) as saver:
            stored = saver.put(config_of(), checkpoint_of(new_id(), {"x": 1}, {"x": 1}), {}, {"x": 1})
            assert saver.get_tuple(stored).checkpoint["channel_values"] == {"x": 1}

    async def test_async_context(self, target: str) -> None:
        """`async with` hands out the same kind of saver, for both spellings."""
        async with StepwellSaver.from_conn_string(target) as saver:
            assert isinstance(saver, StepwellSaver)
            stored = await saver.aput(config_of(), checkpoint_of(new_id(), {"x": 1}, {"x": 1}), {}, {"x": 1})
            assert saver.get_tuple(stored).checkpoint["channel_values"] == {"x": 1}

    def test_context_keeps_errors(self, target: str) -> None:
        """An error inside `with` reaches the caller as it is."""
        with pytest.raises(KeyError, match="mine"), StepwellSaver.from_conn_string(target):
            raise KeyError("mine")

    def test_path_object(self, tmp_path: Path) -> None:
        """A path object opens the same file as its text."""
        with StepwellSaver.from_conn_string(tmp_path / "a.stepwell") as saver:
            saver.put(config_of(), checkpoint_of(new_id()), {}, {})
        with StepwellSaver.from_conn_string(str(tmp_path / "a.stepwell")) as saver:
            assert saver.get_tuple(config_of()) is not None

    def test_over_a_log(self, target: str) -> None:
        """A saver made over another one's log sees what that one stored."""
        with StepwellSaver.from_conn_string(target) as saver:
            stored = saver.put(config_of(), checkpoint_of(new_id(), {"x": [1]}, {"x": 1}), {}, {"x": 1})
            other = StepwellSaver(saver.log)
            assert shown(other.get_tuple(stored)) == shown(saver.get_tuple(stored))

    def test_two_memories(self) -> None:
        """Each ":memory:" is a log of its own."""
        with (
            StepwellSaver.from_conn_string(":memory:") as one,
            StepwellSaver.from_conn_string(":memory:") as two,
        ):
            one.put(config_of(), checkpoint_of(new_id()), {}, {})
            assert two.get_tuple(config_of()) is None
            assert list(two.list(None)) == []


class TestSetup:
    """`setup`, which exists for drop-in's sake."""

    def test_ignored(self, target: str) -> None:
        """`setup` may be called and its result ignored, any number of times, without a warning."""
        with StepwellSaver.from_conn_string(target) as saver:
            saver.setup()
            saver.put(config_of(), checkpoint_of(new_id()), {}, {})
            saver.setup()
            gc.collect()
            assert saver.get_tuple(config_of()) is not None

    async def test_awaited(self, target: str) -> None:
        """`setup` may be awaited."""
        async with StepwellSaver.from_conn_string(target) as saver:
            await saver.setup()
            await saver.aput(config_of(), checkpoint_of(new_id()), {}, {})
            await saver.setup()
            assert await saver.aget_tuple(config_of()) is not None


METHODS: dict[str, Callable[[Calls], Any]] = {
    "get_tuple": lambda calls: calls.get_tuple(config_of()),
    "get": lambda calls: calls.get(config_of()),
    "list": lambda calls: calls.list(config_of()),
    "list of all": lambda calls: calls.list(None),
    "put": lambda calls: calls.put(config_of(), checkpoint_of(new_id()), {}, {}),
    "put_writes": lambda calls: calls.put_writes(config_of(id="an id"), [("x", 1)], "task"),
    "delete_thread": lambda calls: calls.delete_thread("thread"),
    "delete_for_runs": lambda calls: calls.delete_for_runs(["run"]),
    "copy_thread": lambda calls: calls.copy_thread("thread", "copy"),
    "prune": lambda calls: calls.prune(["thread"]),
    "history": lambda calls: calls.get_delta_channel_history(config=config_of(), channels=["x"]),
}


class TestClosed:
    """After the end of `with`."""

    @pytest.mark.parametrize("method", METHODS)
    async def test_use_after_close(self, target: str, asynchronous: bool, method: str) -> None:
        """Every method of a closed saver raises ClosedError, which says to open the log again."""
        with StepwellSaver.from_conn_string(target) as saver:
            saver.put(config_of(), checkpoint_of(new_id()), {}, {})
        with pytest.raises(ClosedError, match=r"(?i)open") as caught:
            await METHODS[method](Calls(saver, asynchronous=asynchronous))
        assert isinstance(caught.value, UsageError)

    async def test_use_after_async_close(self, target: str, asynchronous: bool) -> None:
        """The end of `async with` closes as the end of `with` does."""
        async with StepwellSaver.from_conn_string(target) as saver:
            await saver.aput(config_of(), checkpoint_of(new_id()), {}, {})
        with pytest.raises(ClosedError):
            await Calls(saver, asynchronous=asynchronous).get_tuple(config_of())

    def test_half_read_list(self, target: str) -> None:
        """A list that is half read when the saver closes raises ClosedError, or ends, at its next item."""
        with StepwellSaver.from_conn_string(target) as saver:
            for number in range(300):
                saver.put(config_of(f"thread {number}"), checkpoint_of(new_id()), {}, {})
            found: Iterator[Any] = saver.list(None)
            next(found)
        with contextlib.suppress(ClosedError):
            assert len(list(found)) <= 299

    def test_close_after_an_error(self, path: str) -> None:
        """An error inside `with` closes the saver, and the file opens again with what was stored."""
        with contextlib.suppress(KeyError), StepwellSaver.from_conn_string(path) as saver:
            stored = saver.put(config_of(), checkpoint_of(new_id()), {}, {})
            raise KeyError
        with pytest.raises(ClosedError):
            saver.get_tuple(config_of())
        with StepwellSaver.from_conn_string(path) as saver:
            assert saver.get_tuple(config_of()).config == stored


class TestReopened:
    """A file closed and opened again."""

    async def test_everything_is_there(self, path: str, asynchronous: bool) -> None:
        """Checkpoints, writes, waiting writes and empty channels are there after reopening."""
        with StepwellSaver.from_conn_string(path) as saver:
            calls = Calls(saver, asynchronous=asynchronous)
            first = await calls.step(None, {"x": [1, 2], "gone": 1}, versions={"x": "1", "gone": "1"})
            await calls.put_writes(first, [("x", 3)], "task", "~a")
            second = await calls.step(first, {"x": [1, 2]}, versions={"x": "1", "gone": "2"}, new={"gone": "2"})
            waiting = new_id()
            await calls.put_writes(config_of(id=waiting), [("x", 4)], "task")
            before = [shown(each) for each in await calls.list(None)]
        with StepwellSaver.from_conn_string(path) as saver:
            calls = Calls(saver, asynchronous=asynchronous)
            assert [shown(each) for each in await calls.list(None)] == before
            assert (await calls.get_tuple(config_of())).checkpoint["id"] == id_of(second)
            third = await calls.step(second, {"x": [1, 2, 3]}, id=waiting)
            found = await calls.get_tuple(third)
            assert found.checkpoint["channel_values"] == {"x": [1, 2, 3]}
            assert found.pending_writes == [("task", "x", 4)]
            assert (await calls.get_tuple(first)).pending_writes == [("task", "x", 3)]
            assert saver.log.audit().breaches == []

    async def test_changes_after_the_last_put(self, path: str, asynchronous: bool) -> None:
        """What was put or handed out, changed afterwards by its user, is stored as it was when it was put."""
        with StepwellSaver.from_conn_string(path) as saver:
            calls = Calls(saver, asynchronous=asynchronous)
            messages = [HumanMessage(f"message {number}", id=str(number)) for number in range(5)]
            values: dict[str, Any] = {"messages": messages, "map": {"deep": [1]}, "list": [[1], {"a": 1}]}
            first = await calls.step(None, values)
            second = await calls.step(first, {**values, "messages": [*messages, HumanMessage("last", id="5")]})
            before = [shown(await calls.get_tuple(each)) for each in (first, second)]
            messages[2].content = "redacted for display"
            values["map"]["deep"].append(2)
            values["list"][1]["a"] = 2
            found = (await calls.get_tuple(second)).checkpoint["channel_values"]
            found["messages"][3].content = "redacted for display"
            found["list"].clear()
        with StepwellSaver.from_conn_string(path) as saver:
            calls = Calls(saver, asynchronous=asynchronous)
            assert [shown(await calls.get_tuple(each)) for each in (first, second)] == before

    def test_two_savers_on_one_file(self, path: str) -> None:
        """A file opened twice in a process is one log: each saver sees the other's steps and closes alone."""
        with StepwellSaver.from_conn_string(path) as one:
            with StepwellSaver.from_conn_string(path) as two:
                stored = one.put(config_of(), checkpoint_of(new_id(), {"x": [1]}, {"x": 1}), {}, {"x": 1})
                assert shown(two.get_tuple(stored)) == shown(one.get_tuple(stored))
                later = two.put(stored, checkpoint_of(new_id(), {"x": [1, 2]}, {"x": 2}), {}, {"x": 2})
                assert one.get_tuple(config_of()).config == later
                third = one.put(later, checkpoint_of(new_id(), {"x": [1, 2, 3]}, {"x": 3}), {}, {"x": 3})
            assert one.get_tuple(third).checkpoint["channel_values"] == {"x": [1, 2, 3]}
            with pytest.raises(ClosedError):
                two.get_tuple(third)

    def test_graph_goes_on(self, path: str) -> None:
        """A graph over the reopened file goes on where it was."""
        with StepwellSaver.from_conn_string(path) as saver:
            graph_over(saver).invoke({"steps": ["in"]}, config_of("t"))
        with StepwellSaver.from_conn_string(path) as saver:
            assert graph_over(saver).get_state(config_of("t")).values == {"steps": ["in", "one", "two"]}
            again = graph_over(saver).invoke({"steps": ["again"]}, config_of("t"))
            assert again == {"steps": ["in", "one", "two", "again", "one", "two"]}


def test_signatures() -> None:
    """Parameters have the names and defaults that LangGraph's base class gives them."""
    for name, member in inspect.getmembers(BaseCheckpointSaver, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours = inspect.signature(getattr(StepwellSaver, name)).parameters
        for parameter in inspect.signature(member).parameters.values():
            assert parameter.name in ours, f"{name} lacks {parameter.name}"
            assert ours[parameter.name].default == parameter.default, f"{name}({parameter.name})"
            assert ours[parameter.name].kind == parameter.kind, f"{name}({parameter.name})"
