"""The branches of a thread as a tree, and where two of them part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from stepwell import codec
from stepwell.difference import Side, compare
from stepwell.history import History, Link, Step, number_in, step_number
from stepwell.inspect import safe_text
from stepwell.patch import Patch

_ID_SHOWN: Final = 13  # characters: of a UUID the first two groups, which tell most steps apart


class Run(NamedTuple):
    """Steps that follow each other without a fork.

    Attributes:
        first: The oldest of them.
        last: The newest of them.
        steps: How many they are.
        first_number: The number of the oldest, as LangGraph counts.
        last_number: The number of the newest.
        is_head: Whether the newest is the head of its lane.
        branches: What follows the newest, in the order in which it was committed: nothing, or two runs or more.
    """

    first: Step
    last: Step
    steps: int
    first_number: int | None
    last_number: int | None
    is_head: bool
    branches: list[Run]


class Tree(NamedTuple):
    """All steps of a thread, by lane.

    Attributes:
        thread_id: The thread.
        lanes: The runs that begin each lane; more than one where steps do not descend from one another.
    """

    thread_id: str
    lanes: dict[str, list[Run]]

    def lines(self) -> Iterator[str]:
        """The tree in lines for a terminal, with nothing in them that could harm one."""
        for lane, runs in self.lanes.items():
            yield f"lane {safe_text(lane)}" if lane else safe_text(self.thread_id)
            stack = [(run, "", index == len(runs) - 1) for index, run in enumerate(runs)][::-1]
            while stack:
                run, indent, is_last = stack.pop()
                yield f"{indent}{'└─' if is_last else '├─'} {_described(run)}"
                inner = indent + ("   " if is_last else "│  ")
                last = len(run.branches) - 1
                stack += [(branch, inner, index == last) for index, branch in enumerate(run.branches)][::-1]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _described(run: Run) -> str:
    first, last = run.first_number, run.last_number
    if first is None or last is None:
        name = f"#{run.first.sequence}" + (f"..#{run.last.sequence}" if run.steps > 1 else "")
    else:
        name = f"{first}" + (f"..{last}" if run.steps > 1 else "")
    steps = "1 step " if run.steps == 1 else f"{run.steps:,} steps"
    head = "  ← head" if run.is_head else ""
    return f"{name}  {steps}  {safe_text(run.last.step_id[:_ID_SHOWN])} (#{run.last.sequence}){head}"


def tree(history: History, lane: str | None = None) -> Tree:
    """The tree of one lane, or of all."""
    if lane is not None:
        number, row = history.lane(lane)
        lanes = [(number, lane, row.head)]
    else:
        lanes = [(number, name, row.head) for number, name, row in history.lanes()]
    return Tree(history.thread_id, {name: _runs(history, number, head) for number, name, head in lanes})


def _runs(history: History, lane: int, head: int) -> list[Run]:
    links = [*history.steps(lane)]
    links.reverse()
    head_id = history.link(head).event.step_id if head else None
    known = {link.event.step_id for link in links}
    followers: dict[str | None, list[Link]] = {}
    for link in links:
        parent = link.event.parent_id
        followers.setdefault(parent if parent in known else None, []).append(link)
    placed: set[str] = set()
    made = [_run(history, link, followers, head_id, placed) for link in followers.get(None, [])]
    for link in links:  # steps that descend from themselves hang on none of the others
        if link.event.step_id not in placed:
            made.append(_run(history, link, followers, head_id, placed))
    return made


def _run(
    history: History, start: Link, followers: dict[str | None, list[Link]], head_id: str | None, placed: set[str]
) -> Run:
    """A run with everything that follows it, without a call for each level."""
    top: list[Run] = []
    waiting = [(start, top)]
    while waiting:
        first, siblings = waiting.pop()
        last, count = first, 1
        placed.add(first.event.step_id)
        while True:
            nexts = [link for link in followers.get(last.event.step_id, []) if link.event.step_id not in placed]
            if len(nexts) != 1 or last.event.step_id == head_id:
                break
            last, count = nexts[0], count + 1
            placed.add(last.event.step_id)
        branches: list[Run] = []
        numbers = _number(history, first), _number(history, last)
        siblings.append(Run(first.step, last.step, count, *numbers, last.event.step_id == head_id, branches))
        waiting += [(link, branches) for link in nexts][::-1]
    return top[0]


def _number(history: History, link: Link) -> int | None:
    number = number_in(link.event, history.payloads)
    if number is None and link.event.fields.changes:
        number = step_number(history.states.state(history.number, link.sequence), history.payloads)
    return number


class Divergence(NamedTuple):
    """Where two branches part.

    Attributes:
        common: The last step that both have; None if they share none.
        a: The first step of the one branch after it; None if that branch ends there.
        b: The first step of the other branch after it; None likewise.
    """

    common: Step | None
    a: Step | None
    b: Step | None


def first_divergence(one: tuple[History, Link], other: tuple[History, Link]) -> Divergence:
    """Where two branches part, of one lane or of two threads that have steps of the same ids.

    Branches that share no id are compared state by state: they part where the states first differ.
    """
    a, b = _branch(*one), _branch(*other)
    ids = {step_id: place for place, (step_id, _) in enumerate(a)}
    place_b = next((place for place in range(len(b) - 1, -1, -1) if b[place][0] in ids), None)
    if place_b is not None:
        place_a = ids[b[place_b][0]]
    else:
        shared = _alike(one[0], [sequence for _, sequence in a], other[0], [sequence for _, sequence in b])
        place_a = place_b = shared - 1
    return Divergence(_step(one[0], a, place_a), _step(one[0], a, place_a + 1), _step(other[0], b, place_b + 1))


def _branch(history: History, end: Link) -> list[tuple[str, int]]:
    lane, _ = history.lane(end.event.lane)
    links = [(link.event.step_id, int(link.sequence)) for page in history.upwards(lane, end) for link in page]
    return links[::-1]


def _step(history: History, branch: list[tuple[str, int]], place: int) -> Step | None:
    return history.link(branch[place][1]).step if 0 <= place < len(branch) else None


def _alike(one: History, a: list[int], other: History, b: list[int]) -> int:
    """How many states two branches have in common from their beginnings."""
    walk_a, walk_b = one.fold(one.pages(a)), other.fold(other.pages(b))
    for count, ((link_a, _, state_a), (link_b, _, state_b)) in enumerate(zip(walk_a, walk_b, strict=False)):
        if _patch(one, link_a) != _patch(other, link_b) and compare(
            Side(state_a, one.payloads), Side(state_b, other.payloads)
        ):
            return count
    return min(len(a), len(b))


def _patch(history: History, link: Link) -> Patch:
    return codec.resolve(link.event.channels, history.payloads.read)
