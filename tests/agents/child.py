"""An agent's life in parts, each for a process of its own: `python -m agents.child CONTENDER PATH PART ...`.

A child does one part on the thread in the file, says "ready" and waits to be killed; it closes nothing.  The
child with the last part prints what the thread then shows instead, and ends.
"""

import json
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from langgraph.types import Command

from agents import agents
from agents.agents import human
from agents.driver import CONTENDERS, Run, drive
from agents.history import Rendered, render
from agents.scenarios import APPROVALS

Part = Callable[[Run], Coroutine[Any, Any, None]]


async def write_to_the_approval(run: Run) -> None:
    await run.start(agents.build_deep_agent)
    await run.invoke({"messages": [human("write about tides", 1)]})


async def approve_and_ask_to_print(run: Run) -> None:
    await run.start(agents.build_deep_agent)
    await run.invoke(Command(resume={"decisions": APPROVALS}))
    await run.invoke({"messages": [human("print it", 2)]})


async def approve_the_print(run: Run) -> None:
    await run.start(agents.build_deep_agent)
    await run.invoke_and_note("printed", Command(resume={"decisions": [{"type": "approve"}]}))


def weight(topic: str) -> str:
    return f"{topic} weighs {len(topic)}"


async def work(run: Run) -> None:
    weighed: list[str] = []

    def weigh(topic: str) -> str:
        weighed.append(topic)
        return weight(topic)

    await run.start(lambda saver: agents.build_agent_of_two_tools(saver, weigh, agents.page))
    await run.invoke_and_note("done", {"messages": [human("go", 1)]})
    run.note("weighed", weighed)


async def work_up_to_the_second_tool(run: Run) -> None:
    await run.start(lambda saver: agents.build_agent_of_two_tools(saver, weight, wait_for_the_end))
    await run.invoke({"messages": [human("go", 1)]})


async def go_on(run: Run) -> None:
    def weigh(topic: str) -> str:
        raise AssertionError("the result of this call was stored before the process was killed")

    await run.start(lambda saver: agents.build_agent_of_two_tools(saver, weigh, agents.page))
    await run.invoke_and_note("done", None)


LIVES: Mapping[str, Sequence[Part]] = {
    "deep agent": [write_to_the_approval, approve_and_ask_to_print, approve_the_print],
    "killed in a tool": [work_up_to_the_second_tool, go_on],
    "never killed": [work],
}


async def show(run: Run) -> Rendered:
    run.note("final state", await run.state(subgraphs=True))
    rendered = render(await run.portrait(), run.notes)
    await run.close()
    return json.loads(json.dumps(rendered))


def wait_for_the_end(*_: Any) -> Any:
    print("ready", flush=True)
    sys.stdin.read()
    raise AssertionError("the parent went away")


async def main(contender: str, path: str, life: str, part: str, durability: str, asynchronous: str) -> None:
    run = Run(CONTENDERS[contender](Path(path)), asynchronous == "True", durability)
    await LIVES[life][int(part)](run)
    if int(part) < len(LIVES[life]) - 1:
        wait_for_the_end()
    print(json.dumps(await show(run)))


if __name__ == "__main__":
    drive(main(*sys.argv[1:]), sys.argv[-1] == "True")
