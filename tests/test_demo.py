"""The demo shows what it claims, notices when it does not, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

import demo
import research_agent
import standard_library
from agent_process import conversation_digest, message_digest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {
    "search": standard_library.search,
    "read_source": standard_library.read_source,
    "read_docs": standard_library.read_docs,
}


@pytest.fixture
def demo_environment(tmp_path: Path) -> dict[str, str]:
    """Variables for a demo that finds the sources of this tree and puts its files below `tmp_path`."""
    sources = os.pathsep.join(str(ROOT / folder) for folder in ("engine", "adapters"))
    return os.environ | {"PYTHONPATH": sources, "TMPDIR": str(tmp_path), "COLUMNS": "100"}


def converse(rounds: int) -> list[BaseMessage]:
    """The agent's whole conversation, played without LangGraph."""
    messages: list[BaseMessage] = [HumanMessage(research_agent.first_question(rounds))]
    while True:
        turn = research_agent.next_turn(messages)
        messages.append(turn)
        if not turn.tool_calls:
            return messages
        for call in turn.tool_calls:
            answer = TOOLS[call["name"]](**call["args"])
            messages.append(ToolMessage(answer, name=call["name"], tool_call_id=call["id"]))


def test_demo_holds(demo_environment: dict[str, str], tmp_path: Path) -> None:
    """A short demo ends well, and every claim in it held."""
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--steps", "16"]
    done = subprocess.run(command, env=demo_environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "SIGKILL, during step 16.",
        "It went on where it was: after step 15 came step 16.",
        "only the unfinished one was made again.",
        "Each of the 19 steps that were acknowledged is in the file.",
        "finds no fault.",
        "The state at step 4 of 17",
        "Followed back, the second leads to step 4 of the first.",
        "the agent had the same conversation at every step.",
        "Every claim above held.",
    ):
        assert line in done.stdout
    assert "BROKEN" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_stopping_leaves_nothing(demo_environment: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run ends the agent's process and removes the files."""
    command = [sys.executable, str(ROOT / "examples" / "demo.py")]
    with subprocess.Popen(command, env=demo_environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert any("working: step" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        assert "Stopped." in running.stdout.read()
    assert running.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_answers_are_real_and_bounded() -> None:
    """Every tool answer of a run has the size that the agent's text promises, and hardly one comes twice."""
    answers = [message.text for message in converse(60) if isinstance(message, ToolMessage)]
    sizes = [len(answer.encode()) for answer in answers]
    assert min(sizes) >= standard_library.SMALLEST_ANSWER_BYTES
    assert max(sizes) <= standard_library.LARGEST_ANSWER_BYTES
    assert len(set(answers)) > 0.95 * len(answers)


def test_model_goes_on_from_any_point() -> None:
    """The model's turn follows from the messages alone: cut anywhere, the conversation goes on as before."""
    messages = converse(10)
    turns = [i for i, message in enumerate(messages) if isinstance(message, AIMessage)]
    assert [research_agent.next_turn(messages[:i]) for i in turns] == [messages[i] for i in turns]


class StoredSteps:
    """A checkpointer's history of three steps, of which some are left out or changed."""

    def __init__(self, without: int | None = None, forgetful_at: int | None = None) -> None:
        self.told = []
        self._entries = []
        for step in (-1, 0, 1):
            messages = [HumanMessage(f"message {i}") for i in range(step + 1)]
            digest = conversation_digest([message_digest(message) for message in messages])
            self.told.append({"step": step, "checkpoint_id": f"id {step}", "digest": digest})
            if step != without:
                kept = messages[:-1] if step == forgetful_at else messages
                parent = {"configurable": {"checkpoint_id": f"id {step - 1}"}} if step >= 0 else None
                checkpoint = {"id": f"id {step}", "channel_values": {"messages": kept}}
                self._entries.append(
                    SimpleNamespace(checkpoint=checkpoint, metadata={"step": step}, parent_config=parent)
                )

    def list(self, config: Any) -> Iterator[Any]:
        """The entries, newest first."""
        return reversed(self._entries)


@pytest.mark.parametrize(
    ("stored", "lost", "broken"),
    [
        (StoredSteps(), 0, []),
        (StoredSteps(without=0), 1, ["is in the file, but not steps [0]", "one unbroken line"]),
        (
            StoredSteps(forgetful_at=1),
            0,
            ["exactly the messages the agent had at that step, but not steps [1]"],
        ),
    ],
    ids=["whole", "step lost", "message lost"],
)
def test_loss_is_noticed(stored: StoredSteps, lost: int, broken: list[str]) -> None:
    """The demo's check counts a step that is missing and names one that differs."""
    screen = demo.Screen()
    assert demo.check_nothing_lost(screen, stored, stored.told) == lost
    assert len(screen.failed_claims) == len(broken)
    assert all(part in claim for part, claim in zip(broken, screen.failed_claims, strict=True))
