"""What the agents live through, one coroutine each: `SCENARIOS` names them all.

Each scenario starts an agent, works with it as an application would, closes and reopens the saver where a
process could have ended, and notes what it saw.  `perform` then reads the whole history.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from langgraph.errors import GraphRecursionError
from langgraph.types import Command, Overwrite, StateSnapshot

from agents import agents
from agents.agents import Breakdown, Fault, human
from agents.driver import Run, Scenario
from agents.history import Rendered


async def desk(run: Run) -> None:
    """Three turns with a plain graph, a restart between them."""
    await run.start(agents.build_desk)
    await run.invoke_and_note("turn 1", {"messages": [human("begin", 1)]})
    await run.reopen()
    await run.invoke_and_note("turn 2", {"messages": [human("go on", 2)], "notes": {"asked": ["twice"]}})
    await run.invoke_and_note("turn 3", {"messages": [human("begin, corrected", 1)]})


async def ledger(run: Run) -> None:
    """State changed in place by the nodes that return it, within a turn and after a restart."""
    await run.start(agents.build_ledger)
    await run.invoke_and_note("first", {"messages": [human("begin", 1)]})
    await run.reopen()
    await run.invoke_and_note("second", {"messages": [human("go on", 2)]})


async def form(run: Run) -> None:
    """Two nodes ask at once; one is answered, then both; static interrupts before and after a node."""
    await run.start(agents.build_form)
    await run.invoke_and_note("asked", {"answers": []})
    paused = await run.state()
    run.note("paused", paused)
    await run.reopen()
    asking = _questions(paused)
    await run.invoke_and_note("first name", Command(resume={asking["first name"]: "Ada"}))
    run.note("half answered", await run.state())
    await run.reopen()
    again = _questions(await run.state())
    both = {again["last name"]: "Lovelace", again["age"]: 36}
    await run.invoke_and_note("both", Command(resume=both, update={"answers": ["by post"]}))
    await run.reopen()
    await run.invoke_and_note("decided", None)
    run.note("after filing", await run.state())
    await run.invoke_and_note("ended", None)


def _questions(paused: StateSnapshot) -> dict[str, str]:
    """The ids of the interrupts by what they ask."""
    return {i.value if isinstance(i.value, str) else i.value["ask"]: i.id for i in paused.interrupts}


async def map_reduce(run: Run) -> None:
    """The last of the tasks fails once; the resumed run calls only that one."""
    fault = Fault()
    await run.start(lambda saver: agents.build_map_reduce(saver, fault, breaking="F"))
    # One at a time, and the last one fails: which results a failing sync run still saves is a race otherwise.
    one_by_one = {**run.config, "max_concurrency": 1}
    with pytest.raises(Breakdown):
        await run.invoke({"items": list("abcdef")}, one_by_one)
    run.note("broken", await run.state())
    await run.reopen()
    await run.invoke_and_note("resumed", None)
    await run.invoke_and_note("again", {"items": list("gh"), "results": [{"item": "extra", "text": "by hand"}]})


async def map_reduce_at_once(run: Run) -> None:
    """One of many tasks that run at the same time fails once."""
    fault = Fault()
    await run.start(lambda saver: agents.build_map_reduce(saver, fault, breaking="D"))
    with pytest.raises(Breakdown):
        await run.invoke({"items": list("abcdefghij")})
    await run.reopen()
    await run.invoke_and_note("resumed", None)


def open_in_the_broken_step(rendered: Rendered, durability: str) -> None:
    """Blanks what the failing superstep had saved when it failed.

    A failing task cancels its siblings: how many had saved their result by then, and whether the others save
    a cancellation, LangGraph leaves open.  The checkpoints, and all that came of them, must be equal.
    """
    for checkpoint in rendered["checkpoints"]["root"]:
        checkpoint["pending_writes"] = [
            write for write in checkpoint["pending_writes"] if "__pregel_push" not in write[0]
        ]
    for snapshot in rendered["snapshots"]["root"]:
        for task in snapshot["tasks"]:
            if task["name"] == "work":
                task["error"] = task["result"] = "open"


def open_in_changed_writes(rendered: Rendered, durability: str) -> None:
    """Blanks the writes of nodes that change what they have returned before.

    A superstep waits for the checkpoint before it but not for the writes: a write that is saved late holds what
    a later node has changed.  What the checkpoints hold must be equal.
    """
    for checkpoint in rendered["checkpoints"]["root"]:
        checkpoint["pending_writes"] = "open"
    for snapshot in rendered["snapshots"]["root"]:
        for task in snapshot["tasks"]:
            task["result"] = "open"


def open_in_barriers(rendered: Rendered, durability: str) -> None:
    """Blanks the barriers that join branches, where checkpoints are saved while the graph goes on.

    A barrier hands its own set to the checkpoint and fills the same set in the next superstep.  In durability
    "async" a checkpoint that is saved late holds the later members: even `InMemorySaver` differs from itself.
    """
    if durability == "async":
        for checkpoint in rendered["checkpoints"]["root"]:
            for channel in checkpoint["channel_values"]:
                if channel.startswith("join:"):
                    checkpoint["channel_values"][channel] = "open"


async def tree_inherited(run: Run) -> None:
    """Sub-graphs two levels deep that inherit the saver, an interrupt in the innermost, two turns."""
    await _tree(run, own_memory=False)


async def tree_own_memory(run: Run) -> None:
    """Sub-graphs two levels deep that keep their history over the turns, an interrupt in the innermost."""
    await _tree(run, own_memory=True)


async def _tree(run: Run, own_memory: bool) -> None:
    await run.start(lambda saver: agents.build_tree(saver, own_memory))
    for topic in ("oaks", "elms"):
        await run.invoke_and_note(f"{topic} asked", {"topic": topic})
        run.note(f"{topic} paused", await run.state(subgraphs=True))
        await run.reopen()
        await run.invoke_and_note(f"{topic} approved", Command(resume=f"yes to {topic}"))


async def tree_edited_inside(run: Run) -> None:
    """The state of a paused sub-graph is read and edited through its own config, then the run goes on."""
    await run.start(lambda saver: agents.build_tree(saver, own_memory=False))
    await run.invoke_and_note("asked", {"topic": "firs"})
    paused = await run.state(subgraphs=True)
    branch = paused.tasks[0].state
    assert isinstance(branch, StateSnapshot)
    leaf = branch.tasks[0].state
    assert isinstance(leaf, StateSnapshot)
    await run.update(branch.config, {"path": ["a word from outside"]})
    await run.update(leaf.config, {"topic": "spruces"})
    run.note("edited", await run.state(subgraphs=True))
    await run.reopen()
    await run.invoke_and_note("resumed", Command(resume="yes"))


async def tree_replayed_inherited(run: Run) -> None:
    """A finished run with inherited sub-graphs is replayed from the checkpoint before them."""
    await _tree_replayed(run, own_memory=False)


async def tree_replayed_own_memory(run: Run) -> None:
    """A second turn with sub-graphs of their own memory is replayed from the checkpoint before them."""
    await _tree_replayed(run, own_memory=True)


async def _tree_replayed(run: Run, own_memory: bool) -> None:
    await run.start(lambda saver: agents.build_tree(saver, own_memory))
    for topic in ("oaks", "elms"):
        await run.invoke({"topic": topic})
        await run.invoke(Command(resume=f"yes to {topic}"))
    await run.reopen()
    before = [snapshot for snapshot in await run.history() if snapshot.next == ("branch",)]
    for number, snapshot in enumerate(before):
        await run.invoke_and_note(f"replayed {number}", None, run.at(snapshot))
        await run.invoke_and_note(f"approved {number}", Command(resume=f"yes, replay {number}"))
        await run.reopen()


async def edits(run: Run) -> None:
    """`update_state` at the head, as different nodes, and at an old checkpoint, which makes a branch."""
    await run.start(agents.build_desk)
    await run.invoke({"messages": [human("begin", 1)]})
    await run.update(run.config, {"log": ["edited at the head"], "turn": 9}, as_node="read")
    run.note("after the edit", await run.state())
    await run.reopen()
    await run.invoke_and_note("gone on", None)
    old = (await run.history())[-2]
    run.note("old", old)
    await run.update(old.config, {"log": ["edited in the past"], "notes": {"branch": True}, "turn": 7}, as_node="read")
    run.note("branched", await run.state())
    await run.reopen()
    await run.invoke_and_note("the branch gone on", None)
    await run.update(run.config, None, as_node=agents.END)
    await run.update(run.config, {"messages": [human("begin, edited", 1)]}, as_node="__input__")


async def time_travel(run: Run) -> None:
    """Old checkpoints are listed, read, replayed and forked with new input."""
    await run.start(agents.build_agent)
    await run.invoke({"messages": [human("what of the tides?", 1)]})
    history = await run.history()
    run.note("the two newest", await run.history(limit=2))
    run.note("before the third", await run.history(before=history[2 % len(history)].config, limit=3))
    run.note("inputs", await run.history(filter={"source": "input"}))
    run.note("a step of the loop", await run.history(filter={"source": "loop", "step": 2}))
    for snapshot in history:
        run.note("read by id", await run.state(snapshot.config))
    await run.reopen()
    middle = history[len(history) // 2]
    await run.invoke_and_note("replayed", None, run.at(middle))
    await run.reopen()
    await run.invoke_and_note("asked anew", {"messages": [human("and of the moons?", 2)]}, run.at(middle))
    oldest = (await run.history())[-1]
    await run.invoke_and_note("from the oldest", {"messages": [human("from the start", 3)]}, run.at(oldest))
    await run.invoke_and_note("answered", Command(resume="the round one"))


async def diary(run: Run) -> None:
    """Delta channels over snapshots and restarts, edited at the head and forked from the past."""
    await run.start(agents.build_diary)
    await run.invoke_and_note("three days", {"entries": [{"day": 0, "text": "bought"}], "index": {"cover": "red"}})
    await run.reopen()
    await run.invoke_and_note("six days", {"entries": [{"day": 3, "text": "found again"}]})
    await run.update(run.config, {"index": {"edited": True}}, as_node="librarian")
    run.note("edited", await run.state())
    await run.reopen()
    history = await run.history()
    run.note("past", await run.state(history[len(history) // 2].config))
    await run.invoke_and_note("forked", {"entries": [{"fork": 1}]}, run.at(history[len(history) // 2]))
    await run.reopen()
    await run.update(run.config, {"entries": Overwrite([{"text": "a new book"}])}, as_node="librarian")
    await run.invoke_and_note("new book", {"index": {"cover": "blue"}})
    await run.invoke_and_note("replayed", None, run.at(history[len(history) // 2]))


async def workflow(run: Run) -> None:
    """An entrypoint asks, is answered, fails after the answer, is resumed, and remembers on the next call."""
    fault = Fault()
    await run.start(lambda saver: agents.build_workflow(saver, fault))
    await run.invoke_and_note("asked", "kites")
    run.note("paused", await run.state())
    await run.reopen()
    with pytest.raises(Breakdown):
        await run.invoke(Command(resume=2))
    run.note("broken", await run.state())
    await run.reopen()
    await run.invoke_and_note("resumed", None)
    await run.invoke_and_note("asked again", "balloons")
    await run.invoke_and_note("answered again", Command(resume=1))


async def tool_agent(run: Run) -> None:
    """`create_agent` through parallel tool calls, a tool that asks, and restarts."""
    await run.start(agents.build_agent)
    await _research(run)


async def react_v1(run: Run) -> None:
    """`create_react_agent` in version 1, where one task runs all tool calls of an answer."""
    await run.start(lambda saver: agents.build_react(saver, "v1"))
    await _research(run)


async def react_v2(run: Run) -> None:
    """`create_react_agent` in version 2, where each tool call is a task that is sent the whole state."""
    await run.start(lambda saver: agents.build_react(saver, "v2"))
    await _research(run)


async def _research(run: Run) -> None:
    await run.invoke_and_note("first", {"messages": [human("what of the tides?", 1)]})
    await run.reopen()
    await run.invoke_and_note("asked", {"messages": [human("and of the tables?", 2)]})
    run.note("paused", await run.state())
    await run.reopen()
    await run.invoke_and_note("answered", Command(resume="the round one"))


async def crowd(run: Run) -> None:
    """Agents on many threads at once, whose names begin alike, each with a history of its own."""
    await run.start(agents.build_agent)
    names = ["1", "12", "1/2", "1|2", "1:2", " 1", "\u00fc", run.thread_id]
    first = {name: {"messages": [human(f"what of tides, asks {name}?", 1)]} for name in names}
    second = {name: {"messages": [human(f"and tables, asks {name}?", 2)]} for name in reversed(names)}
    run.note("first", await run.invoke_all(first))
    await run.reopen()
    await run.invoke_all(second)
    for name in names:
        run.note(name, await run.history({"configurable": {"thread_id": name}}))
    everything = await run.listing(None)
    counts = Counter(saved.config["configurable"]["thread_id"] for saved in everything)
    run.note("checkpoints of all threads", dict(sorted(counts.items())))


async def tool_breaks(run: Run) -> None:
    """A tool of an agent raises; the restarted agent calls it again and goes on."""
    fault = Fault()
    await run.start(lambda saver: agents.build_breaking_agent(saver, fault))
    with pytest.raises(Breakdown):
        await run.invoke({"messages": [human("go", 1)]})
    run.note("broken", await run.state())
    await run.reopen()
    await run.invoke_and_note("resumed", None)


async def long_agent(run: Run) -> None:
    """More than 128 messages in more than 256 events, restarted twice, then the oldest message is edited."""
    await run.start(lambda saver: agents.build_long_agent(saver, pages=32))
    await run.invoke({"messages": [human("read on", 1)]})
    # Reading the whole history takes longer than the run; it is read once, at the end.
    await run.reopen(compare=False)
    await run.invoke({"messages": [human("read on", 2)]})
    await run.reopen(compare=False)
    await run.update(run.config, {"messages": [human("read on, corrected", 1)]}, as_node="model")
    with pytest.raises(GraphRecursionError):
        await run.invoke({"messages": [human("and once more", 3)]}, {**run.config, "recursion_limit": 9})


async def deep_agent(run: Run) -> None:
    """A deep agent with todos, files, parallel sub-agents and approvals, one of them inside a sub-agent."""
    await run.start(agents.build_deep_agent)
    await run.invoke_and_note("to the approval", {"messages": [human("write about tides", 1)]})
    run.note("waiting", await run.state(subgraphs=True))
    await run.reopen()
    await run.invoke_and_note("approved", Command(resume={"decisions": APPROVALS}))
    await run.reopen()
    await run.invoke_and_note("to the printer", {"messages": [human("print it", 2)]})
    run.note("printer waiting", await run.state(subgraphs=True))
    await run.reopen()
    await run.invoke_and_note("printed", Command(resume={"decisions": [{"type": "approve"}]}))


APPROVALS: list[dict[str, Any]] = [
    {
        "type": "edit",
        "edited_action": {
            "name": "edit_file",
            "args": {"file_path": "/draft.md", "old_string": "trial 7", "new_string": "trial 7, repeated"},
        },
    },
    {"type": "reject", "message": "not with these tags"},
]


async def deep_agent_forked(run: Run) -> None:
    """A deep agent that waits is edited, resumed, and then forked from the past where it waited."""
    await run.start(agents.build_deep_agent)
    await run.invoke({"messages": [human("write about tides", 1)]})
    await run.reopen()
    waiting = await run.state()
    await run.invoke_and_note("approved", Command(resume={"decisions": APPROVALS}))
    await run.reopen()
    run.note("as it waited", await run.state(waiting.config))
    await run.invoke_and_note("replayed", None, run.at(waiting))
    both = [{"type": "approve"}, {"type": "approve"}]
    await run.invoke_and_note("approved otherwise", Command(resume={"decisions": both}))
    await run.update(run.config, {"messages": [human("write about tides, corrected", 1)]})


@dataclass(frozen=True)
class Case:
    """A scenario and what, if anything, LangGraph leaves open in its history."""

    scenario: Scenario
    blank_the_open: Callable[[Rendered, str], None] = lambda rendered, durability: None
    durabilities: Sequence[str] = ("sync", "async", "exit")
    is_long: bool = False


SCENARIOS: Mapping[str, Case] = {
    "desk": Case(desk, open_in_barriers),
    # Not "async": a checkpoint saved while the next node changes its values in place holds either.
    "ledger": Case(ledger, open_in_changed_writes, durabilities=("sync", "exit")),
    "form": Case(form, open_in_barriers),
    "map_reduce": Case(map_reduce),
    "map_reduce_at_once": Case(map_reduce_at_once, open_in_the_broken_step),
    "tree_inherited": Case(tree_inherited),
    "tree_own_memory": Case(tree_own_memory),
    "tree_edited_inside": Case(tree_edited_inside),
    "tree_replayed_inherited": Case(tree_replayed_inherited),
    "tree_replayed_own_memory": Case(tree_replayed_own_memory),
    "edits": Case(edits, open_in_barriers),
    "time_travel": Case(time_travel),
    "diary": Case(diary),
    "workflow": Case(workflow),
    "tool_agent": Case(tool_agent),
    "react_v1": Case(react_v1),
    "react_v2": Case(react_v2),
    "crowd": Case(crowd),
    "tool_breaks": Case(tool_breaks),
    "long_agent": Case(long_agent, is_long=True),
    "deep_agent": Case(deep_agent, is_long=True),
    "deep_agent_forked": Case(deep_agent_forked, is_long=True),
}
