"""What is told of a thread is what comparing all of its states, one by one, would tell."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reading import Book, message
from stepwell import Log, inspect, paths
from stepwell.inspect import Typed
from stepwell.paths import ABSENT, Path

EXAMPLES = int(os.environ.get("STEPWELL_EXAMPLES", "20"))

PATHS = [
    "messages",
    "messages[0].content",
    "messages[1]",
    "messages[-1].content",
    "messages[id=m1].content",
    "messages[id=m3]",
    "plan",
    "plan.a",
    'plan["b b"].deep[0]',
    "count",
    "none.such",
]


def next_state(draw: st.DrawFn, state: dict[str, Any], turn: int) -> dict[str, Any]:
    """A state that an agent may leave after another."""
    state = dict(state)
    messages: list[Typed] = [*state.get("messages", [])]
    what = draw(st.sampled_from(["append", "edit", "remove", "front", "move", "same", "clear", "again"]))
    if what in ("append", "front"):
        new = message(f"m{draw(st.integers(0, 5))}", f"text {draw(st.integers(0, 3))}")
        messages = [new, *messages] if what == "front" else [*messages, new]
    elif messages and what == "edit":
        place = draw(st.integers(0, len(messages) - 1))
        old = messages[place].fields
        messages[place] = message(old["id"], draw(st.sampled_from([old["content"], "other"])), extra=turn)
    elif messages and what == "remove":
        messages.pop(draw(st.integers(0, len(messages) - 1)))
    elif what == "move":
        messages = messages[1:] + messages[:1]
    if what == "clear":
        state.pop("messages", None)
    else:
        state["messages"] = messages
    plan = dict(state.get("plan", {}))
    if draw(st.booleans()):
        plan[draw(st.sampled_from(["a", "b b", "c"]))] = {"deep": [draw(st.integers(0, 2))], "text": "long " * 20}
    elif plan and draw(st.booleans()):
        plan.pop(next(iter(plan)))
    state["plan"] = plan
    if draw(st.booleans()):
        state["count"] = draw(st.integers(0, 2))
    return state


@st.composite
def books(draw: st.DrawFn) -> Book:
    """A thread with forks, sealed in part, and written to between."""
    log = Log.open(":memory:")
    book = Book(log)
    ids: list[str] = []
    for turn in range(draw(st.integers(1, 12))):
        parent = draw(st.sampled_from([*ids[-2:], ids[-1]])) if ids else None
        state = next_state(draw, book.states.get(parent or "", {}), turn)
        step_id = f"step-{turn}"
        if parent is not None and draw(st.booleans()):
            book.wrote(parent, f"node{turn % 2}", state)
        book.step(step_id, state, parent)
        ids.append(step_id)
        if draw(st.integers(0, 5)) == 0:
            log.seal()
    return book


def found(state: dict[str, Any], path: Path) -> Any:
    value = state.get(path.channel, ABSENT)
    return value if value is ABSENT else paths.find(value, path.inside)


def same(one: Any, other: Any) -> bool:
    return one is other if one is ABSENT or other is ABSENT else inspect.equal(one, other)


@settings(max_examples=EXAMPLES, deadline=None)
@given(books(), st.data())
def test_what_is_told_is_what_the_states_say(book: Book, data: st.DataObject) -> None:
    """Changes, differences, branches and the tree are what one finds by comparing all states one by one."""
    with book.thread.log:
        a, b = (data.draw(st.sampled_from([*book.states])) for _ in range(2))
        changes_are_told(book, a)
        replay_tells_every_step(book, a, data.draw(st.sampled_from(book.branch(a))))
        differences_are_all_that_differs(book, a, b)
        branches_part_where_their_ids_do(book, a, b)
        every_step_stands_in_the_tree_once(book)


def changes_are_told(book: Book, end: str) -> None:
    """`watch` tells just the steps of the branch after which something else stands at the path; `blame` the last."""
    for text in PATHS:
        path = Path.parse(text)
        expected: list[tuple[str, Any, Any]] = []
        before: Any = ABSENT
        for step_id in book.branch(end):
            now = found(book.states[step_id], path)
            if not same(before, now):
                expected.append((step_id, before, now))
            before = now
        told = [(change.step.step_id, change.old, change.new) for change in book.thread.watch(path, at=end)]
        assert [step_id for step_id, _, _ in told] == [step_id for step_id, _, _ in expected[::-1]], text
        for (_, old, new), (_, old_expected, new_expected) in zip(told, expected[::-1], strict=True):
            assert same(old, old_expected)
            assert same(new, new_expected)
        if before is not ABSENT:
            assert book.thread.blame(text, at=end).step.step_id == expected[-1][0]


def replay_tells_every_step(book: Book, end: str, start: str) -> None:
    """`replay` gives the steps of one branch in order, with the states that they showed and what they changed."""
    line = book.branch(end)
    steps = [*book.thread.replay(until=end)]
    assert [step.step_id for step in steps] == line
    assert [step.number for step in steps] == list(range(-1, len(line) - 1))
    assert steps[0].elapsed_seconds is None
    for before, step in zip([None, *steps], steps, strict=False):
        state = book.states[step.step_id]
        assert dict(step.state).keys() == state.keys()
        assert all(inspect.equal(step.state[name], value) for name, value in state.items())
        old = book.states[before.step_id] if before else {}
        changed = {name for name in {*old, *state} if not same(old.get(name, ABSENT), state.get(name, ABSENT))}
        assert changed <= set(step.changed)
    assert [step.step_id for step in book.thread.replay(since=start, until=end)] == line[line.index(start) + 1 :]


def patched(data: Any, differences: list[Any]) -> Any:
    """Data after the differences that name something by its path alone were carried over."""
    for each in differences:
        path = Path.parse(each.path)
        data = paths.replace(data, tuple(path), each.new)
    return data


def differences_are_all_that_differs(book: Book, a: str, b: str) -> None:
    """Nothing is told of equal states; where only entries and fields differ, these make the one state the other."""
    one, other = book.states[a], book.states[b]
    differences = book.thread.diff(a, b)
    assert (differences == []) == inspect.equal(one, other)
    in_lists = [each for each in differences if "[" in each.path and each.kind != "changed"]
    if not in_lists:
        assert inspect.equal(patched(one, differences), other)
    ids = [[each.fields["id"] for each in state.get("messages", [])] for state in (one, other)]
    if any(len(set(each)) < len(each) for each in ids):
        return  # a path names the first of those with one id
    for each in differences:
        path = Path.parse(each.path)
        if each.kind != "removed" and "id=" in each.path:
            assert same(found(other, path), each.new)
        if each.kind != "added" and "id=" in each.path:
            assert same(found(one, path), each.old)


def branches_part_where_their_ids_do(book: Book, a: str, b: str) -> None:
    """`first_divergence` names the last step that two branches share, and what follows it on each."""
    one, other = book.branch(a), book.branch(b)
    shared = [x for x, y in zip(one, other, strict=False) if x == y]
    told = book.thread.first_divergence(a, b)
    assert (told.common.step_id if told.common else None) == (shared[-1] if shared else None)
    assert (told.a.step_id if told.a else None) == (one[len(shared)] if len(one) > len(shared) else None)
    assert (told.b.step_id if told.b else None) == (other[len(shared)] if len(other) > len(shared) else None)


def every_step_stands_in_the_tree_once(book: Book) -> None:
    """The runs of the tree hold all steps, each after the one that it follows."""
    tree = book.thread.tree()
    waiting = [*tree.lanes[""]]
    steps = 0
    heads = 0
    while waiting:
        run = waiting.pop()
        steps += run.steps
        heads += run.is_head
        line = book.branch(run.last.step_id)
        assert line[-run.steps] == run.first.step_id
        assert len(run.branches) != 1 or run.is_head
        for branch in run.branches:
            assert branch.first.parent_id == run.last.step_id
        waiting += run.branches
    assert steps == len(book.states)
    assert heads == 1
    assert str(tree).count("\n") <= steps
