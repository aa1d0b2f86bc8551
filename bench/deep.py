"""Deep agents, of the deepagents package: files, todos, sub-agents, and messages in a delta channel.

`office` follows a recorded run: rounds of ten answers, in each two sub-agents that read and take notes, a
report that waits for approval, and a model whose window is so small that the conversation is summarised.
`long` has no sub-agents and a window that is never full: what a delta channel makes of the longest conversation.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from deepagents import create_deep_agent
from langchain.agents.middleware import TodoListMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolCall

import script
import scripted
from prose import Prose
from scripted import Lines, Run, SameIds, Saver, ScriptedModel

THREAD = "deep"
SMALL_WINDOW_TOKENS = 40_000
NEVER_FULL_TOKENS = 100_000_000
TASKS = 2  # sub-agents at work at the same time


def office(rounds: int, seed: int) -> Run:
    """An agent with files, todos, sub-agents and a human who approves each report."""
    question, lines = _Author(rounds, seed).write()
    model = ScriptedModel(
        answers=lines.answers,
        otherwise=Prose(seed + 1).text(1_500),
        profile={"max_input_tokens": SMALL_WINDOW_TOKENS},
    )
    agent = create_deep_agent(
        model,
        scripted.tools(lines.results),
        middleware=_middleware(),
        subagents=[
            {
                "name": "researcher",
                "description": "Reads and takes notes.",
                "system_prompt": "You read and take notes.",
                "middleware": _middleware(),
                "interrupt_on": {},
            }
        ],
        interrupt_on={"write_file": True},
    )
    return Run(agent, THREAD, question)


def _middleware() -> list[Any]:
    return [TodoListMiddleware(), SameIds()]


def long(supersteps: int, seed: int) -> Run:
    """The research agent of the replays as a deep agent: the same texts in a delta channel."""
    said = script.research(supersteps, seed)
    lines = scripted.of_script(said)
    model = ScriptedModel(answers=lines.answers, profile={"max_input_tokens": NEVER_FULL_TOKENS})
    agent = create_deep_agent(model, scripted.tools(lines.results), middleware=[SameIds()])
    turn = said.turns[0]
    return Run(agent, THREAD, turn.question.model_copy(update={"id": turn.question_id}))


def reader() -> Callable[[Saver], Sequence[Any]]:
    """A reader of the newest messages by `get_state`: a checkpoint, and the history of its delta channels."""
    agent = create_deep_agent(ScriptedModel(answers={}))

    def read(saver: Saver) -> Sequence[Any]:
        state = agent.copy({"checkpointer": saver}).get_state({"configurable": {"thread_id": THREAD}})
        messages: Sequence[Any] = state.values.get("messages", [])
        return messages

    return read


class _Author:
    """Writes what is said in an office: sizes as recorded, see `write`."""

    def __init__(self, rounds: int, seed: int) -> None:
        self._rng = random.Random(f"office {seed}")
        self._prose = Prose(seed)
        self._rounds = rounds
        self._lines = Lines()
        # Two results for a round and two for each of its tasks: a large one with a small one, so that a task's
        # window is never full.
        self._shares = iter(script.spread(rounds * (1 + TASKS), self._rng))

    def write(self) -> tuple[HumanMessage, Lines]:
        """The question, and the lines of everyone: 10 answers in each round, 5 in each task."""
        question = HumanMessage(self._prose.text(900), id=script.new_id(self._rng))
        answers = [answer for number in range(self._rounds) for answer in self._round(number)]
        self._lines.converse(str(question.content), [*answers, self._say()])
        return question, self._lines

    def _round(self, number: int) -> list[AIMessage]:
        report = f"/reports/{number}.md"
        notes = [f"/notes/{number}-{task}.md" for task in range(TASKS)]
        text = self._text(5_000)
        share = next(self._shares)
        return [
            self._say(self._todos(number, "in_progress")),
            self._say(self._search(share)),
            self._say(*[self._task(path) for path in notes]),
            self._say(*[self._call("read_file", file_path=path) for path in notes]),
            self._say(self._search(1 - share)),
            self._say(self._call("write_file", file_path=report, content=text)),
            self._say(self._call("edit_file", file_path=report, old_string=text[:60], new_string=self._text(80))),
            self._say(self._call("read_file", file_path=report), self._call("ls", path="/notes")),
            self._say(self._call("read_file", file_path=notes[0])),
            self._say(self._todos(number, "completed")),
        ]

    def _task(self, notes: str) -> ToolCall:
        description = self._text(700)
        text = self._text(2_000)
        share = next(self._shares)
        self._lines.converse(
            description,
            [
                self._say(self._search(share)),
                self._say(self._call("write_file", file_path=notes, content=text)),
                self._say(self._search(1 - share)),
                self._say(self._call("edit_file", file_path=notes, old_string=text[:60], new_string=self._text(900))),
                self._say(),
            ],
        )
        return self._call("task", description=description, subagent_type="researcher")

    def _search(self, share: float) -> ToolCall:
        """A call whose result is larger than this share of all results."""
        call = script.tool_call(self._rng, self._prose)
        characters = script.result_bytes(share) - script.RESULT_OVERHEAD_BYTES
        self._lines.results[call["args"]["query"]] = self._prose.text(characters)
        return call

    def _todos(self, number: int, status: str) -> ToolCall:
        done = [{"content": f"report {earlier}", "status": "completed"} for earlier in range(number)]
        left = [{"content": f"report {later}", "status": "pending"} for later in range(number + 1, self._rounds)]
        return self._call("write_todos", todos=[*done, {"content": f"report {number}", "status": status}, *left])

    def _call(self, name: str, **arguments: Any) -> ToolCall:
        return ToolCall(name=name, args=arguments, id=f"toolu_01{script.token(self._rng)}", type="tool_call")

    def _say(self, *calls: ToolCall) -> AIMessage:
        return script.answer(self._rng, self._prose.text(self._rng.randint(300, 420)), list(calls))

    def _text(self, characters: int) -> str:
        """A text of about this length, in lines, and without what deepagents trims."""
        return self._prose.text(self._rng.randint(characters // 2, characters * 3 // 2)).replace(". ", ".\n").strip()
