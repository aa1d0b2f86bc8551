"""A fork is a branch that agents go on from, here or in a new thread, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AnyMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from msgspec.structs import replace

from building import step
from reading import Book, message
from stepwell import ABSENT, ConflictError, Log, ReadOnlyError, Status, StepCommitted, UsageError
from stepwell.forking import new_id
from stepwell_langgraph import StepwellSaver


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    seen: Annotated[list[str], DeltaChannel(lambda old, batches: [*old, *(x for batch in batches for x in batch)])]
    plan: dict[str, Any]


def answer(state: State) -> State:
    said = state["messages"][-1].content
    return {"messages": [("ai", f"You said {said}")], "seen": [str(said)], "plan": {"heard": said}}  # type: ignore[list-item,typeddict-item]


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[StepwellSaver]:
    with StepwellSaver.from_conn_string(tmp_path / "log") as opened:
        yield opened
        assert opened.log.audit().breaches == []


def graph_of(saver: StepwellSaver) -> Any:
    return StateGraph(State).add_node(answer).add_edge(START, "answer").compile(checkpointer=saver)


def config(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


def steps(saver: StepwellSaver, thread_id: str) -> list[StepCommitted]:
    return [event for _, event in saver.log.thread(thread_id).events() if isinstance(event, StepCommitted)]


def contents(state: dict[str, Any]) -> list[str]:
    return [each.content for each in state["messages"]]


@pytest.mark.parametrize("as_", [None, "other"])
def test_an_agent_goes_on_from_a_fork(saver: StepwellSaver, as_: str | None) -> None:
    """The fork is the latest state, what ran there runs anew with what was changed, and the original stays."""
    graph = graph_of(saver)
    graph.invoke({"messages": [("user", "one")]}, config("t"))
    graph.invoke({"messages": [("user", "two")]}, config("t"))
    thread = saver.log.thread("t")
    before = list(graph.get_state_history(config("t")))
    asked = thread.view("0")["messages"][0].fields["id"]  # type: ignore[index]
    step = thread.fork("0", as_=as_, patch={f"messages[id={asked}].content": "three"})
    forked = graph.get_state(config(as_ or "t"))
    assert forked.config["configurable"]["checkpoint_id"] == step.step_id
    assert forked.next == ("answer",)
    assert (forked.metadata["source"], forked.metadata["step"]) == ("update", 1)
    assert contents(graph.invoke(None, config(as_ or "t"))) == ["three", "You said three"]
    again = graph.invoke({"messages": [("user", "four")]}, config(as_ or "t"))
    assert contents(again) == ["three", "You said three", "four", "You said four"]
    assert again["seen"] == ["three", "four"]
    history = list(graph.get_state_history(config("t")))
    assert [each.config for each in history][-len(before) :] == [each.config for each in before]
    assert history[-len(before) :] == before


@pytest.mark.parametrize("number", ["0", "1", "2", "3", "4"])
@pytest.mark.parametrize("as_", [None, "other"])
def test_a_fork_shows_what_the_step_does(saver: StepwellSaver, number: str, as_: str | None) -> None:
    """Also of delta channels, which LangGraph puts together from what was written on the steps before."""
    graph = graph_of(saver)
    graph.invoke({"messages": [("user", "one")]}, config("t"))
    graph.invoke({"messages": [("user", "two")]}, config("t"))
    thread = saver.log.thread("t")
    at = thread.resolve(number)
    then = graph.get_state({"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": at.step_id}})
    step = thread.fork(number, as_=as_)
    now = graph.get_state(config(as_ or "t"))
    assert now.config["configurable"]["checkpoint_id"] == step.step_id > at.step_id
    assert now.values == then.values
    assert now.next == then.next
    assert now.metadata["source"] == "fork"


def test_a_new_thread_holds_all_up_to_the_step(saver: StepwellSaver) -> None:
    """Every step and write before it is there, in its place, and nothing after it."""
    graph = graph_of(saver)
    for text in ("one", "two", "three"):
        graph.invoke({"messages": [("user", text)]}, config("t"))
    saver.log.seal()
    thread = saver.log.thread("t")
    thread.fork("4", as_="u")
    copy = saver.log.thread("u")
    old, new = list(thread.replay(until="4")), list(copy.replay())
    assert [step.step_id for step in new][:-1] == [step.step_id for step in old]
    assert [[task.values for task in step.writes] for step in new][:-1] == [
        [task.values for task in step.writes] for step in old
    ]
    assert thread.diff("4", None, other=copy) == []
    assert new[-1].created_at >= old[-1].created_at


@pytest.mark.parametrize("as_", [None, "other"])
@pytest.mark.parametrize(
    ("at", "patch", "status"),
    [
        ("-1", None, "running"),
        ("0", None, "running"),
        ("1", None, "done"),
        ("0", {"plan": {"x": 1}}, "running"),
        ("0", {'["branch:to:answer"]': ABSENT}, "done"),
        ("0", {'["branch:to:answer"]': 7}, "running"),
        ("1", {'["branch:to:answer"]': None}, "running"),
        ("1", {'["branch:to:nobody"]': None}, "done"),
        ("1", {'["__pregel_tasks"]': []}, "done"),
    ],
)
def test_what_a_thread_has_come_to_with_a_fork(
    saver: StepwellSaver, at: str, patch: dict[str, Any] | None, status: str, as_: str | None
) -> None:
    """A fork says whether something is left to run in what it shows, and a new thread is about what the old one is."""
    at_user = {"configurable": {"thread_id": "t"}, "metadata": {"user": "u1"}}
    graph_of(saver).invoke({"messages": [("user", "one")]}, at_user)
    thread = saver.log.thread("t")
    thread.label({"customer": "acme"})
    before = [event.status for _, event in thread.events() if isinstance(event, StepCommitted)]
    step = thread.fork(at, as_=as_, patch=patch)
    forked = saver.log.thread(as_ or "t")
    summary = forked.summary()
    assert summary is not None
    assert (summary.status, summary.labels) == (status, {"customer": "acme", "user": "u1"})
    found = [each.thread_id for each in saver.threads(status=status, filter={"customer": "acme"})]
    assert found[0] == (as_ or "t")
    said = [event.status for _, event in forked.events() if isinstance(event, StepCommitted)]
    assert said[-1] == status
    assert said[:-1] == before[: len(said) - 1]
    assert forked.resolve().step_id == step.step_id
    assert bool(graph_of(saver).get_state(config(forked.id)).next) == (status == "running")
    graph_of(saver).invoke(None, config(forked.id))
    assert {each.status for each in saver.threads()} == {"done"}


def test_a_fork_of_a_pruned_thread_is_whole(saver: StepwellSaver) -> None:
    """What was pruned away is not missed: places and references are made anew."""
    graph = graph_of(saver)
    for text in ("one", "two"):
        graph.invoke({"messages": [("user", text)]}, config("t"))
    saver.prune(["t"])
    graph.invoke({"messages": [("user", "three")]}, config("t"))
    step = saver.log.thread("t").fork("head~1", as_="u")
    assert step.lane == ""
    state = graph.invoke(None, config("u"))
    assert contents(state)[-2:] == ["three", "You said three"]
    assert state["seen"] == ["one", "two", "three"]


@pytest.fixture
def book() -> Iterator[Book]:
    with Log.open(":memory:") as log:
        made = Book(log)
        state = {"messages": [message(f"m{n}", f"text {n}") for n in range(4)], "plan": {"a": {"b": 1}}, "n": 1}
        made.step("s0", state)
        made.step("s1", {**state, "n": 2}, "s0")
        yield made
        assert log.audit().breaches == []


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ({"n": 7}, [("n", "changed")]),
        ({"n": ABSENT}, [("n", "removed")]),
        ({"new": [1]}, [("new", "added")]),
        ({"plan.a.b": "x", "plan.c": None}, [("plan.a.b", "changed"), ("plan.c", "added")]),
        ({"plan.a": ABSENT}, [("plan.a", "removed")]),
        ({"messages[id=m3]": ABSENT}, [("messages[id=m3]", "removed")]),
        (
            {"messages[id=m1].content": "y", "messages[0].name": None},
            [("messages[id=m0].name", "changed"), ("messages[id=m1].content", "changed")],
        ),
        ({}, []),
    ],
    ids=str,
)
def test_just_what_is_asked_for_is_different(book: Book, patch: dict[str, Any], told: list[tuple[str, str]]) -> None:
    """Channels, entries, elements and fields are changed, added and taken away by their paths."""
    step = book.thread.fork("s1", patch=patch)
    assert [(each.path, each.kind) for each in book.thread.diff("s1", step.step_id)] == told
    for path, value in patch.items():
        assert book.thread.view().find(path) is value or book.thread.view().find(path) == value
    assert step.parent_id == "s1"


def test_what_was_not_changed_keeps_its_bytes(book: Book) -> None:
    """Elements beside the one that was changed are references to what the log holds."""
    before = book.thread.view("s1").state.channels["messages"]
    book.thread.fork("s1", patch={"messages[1].content": "z"})
    after = book.thread.view().state.channels["messages"]
    from stepwell.history import cut

    assert [x == y for x, y in zip(cut(before, 0, 4), cut(after, 0, 4), strict=True)] == [True, False, True, True]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        ({"none.x": 1}, "no channel 'none'"),
        ({"plan.q.x": 1}, "there is no q in it: its entries are a"),
        ({"messages[9].content": 1}, r"there is no \[9\] in it"),
        ({"messages[0].nothing": 1}, "HumanMessage with the fields content"),
        ({"n": object()}, "cannot be stored"),
        ({"a..b": 1}, "is no path"),
    ],
)
def test_a_fork_that_cannot_be_made_changes_nothing(book: Book, patch: dict[str, Any], says: str) -> None:
    """A wrong path or value is an error, and nothing was appended."""
    row = book.thread.row()
    for as_ in (None, "new"):
        with pytest.raises(UsageError, match=says):
            book.thread.fork("s1", as_=as_, patch=patch)
    assert book.thread.row() == row
    assert book.thread.log.thread("new").row() is None


def test_a_thread_that_exists_is_not_forked_over(book: Book) -> None:
    """The id of a new thread must be free."""
    with pytest.raises(ConflictError, match="exists already"):
        book.thread.fork("s1", as_="t")


def test_a_log_that_is_only_read_is_not_forked_in(tmp_path: Path) -> None:
    """Reading and forking are two things."""
    with Log.open(tmp_path / "log") as log:
        Book(log).step("s0", {"n": 1})
    with Log.open(tmp_path / "log", read_only=True) as log, pytest.raises(ReadOnlyError):
        log.thread("t").fork()


def test_ids_sort_by_time_and_say_the_number() -> None:
    """Ids of forks are UUIDs of version 6, as LangGraph makes them."""
    import uuid

    now = 1_700_000_000_000_000_000
    one, other = new_id(7, now), new_id(7, now + 1000)
    assert one < other
    parsed = uuid.UUID(one)
    assert (parsed.version, parsed.variant, parsed.clock_seq) == (6, uuid.RFC_4122, 7)
    assert new_id(-1, now).split("-")[3] == "bfff"


def test_labels_and_status_go_with_a_fork(book: Book) -> None:
    """A thread that a fork makes has the labels of the thread, and has come to what the step says."""
    thread = book.thread
    done, failed = (replace(step(name), status=status) for name, status in (("a", Status.DONE), ("b", Status.FAILED)))
    thread.append([done], labels={"user": "ada", "turn": 1})
    thread.append([failed], labels={"user": None, "turn": 2})
    for as_ in ("u", None):
        thread.fork("a", as_=as_)
        summary = thread.log.thread(as_ or thread.id).summary()
        assert summary is not None
        assert summary.status == Status.DONE
        assert summary.labels == {"turn": 2}
