"""What is said in a run: every message and identifier, made before anything is timed.

The messages are real langchain_core objects.  Those of the assistant have the fields that
langchain-anthropic fills in (content blocks, response metadata with usage, usage metadata), tool results
are 2-40 KB of text.  Sizes follow a recorded research agent: tool results of 3.3 / 10.3 / 29.6 KB at the
10th, 50th and 90th percentile and 13.4 KB in the mean, assistant messages of 1.4 KB, one tool call in 81 %
of the rounds, two in 13 %, three in 6 %.
"""

import bisect
import math
import random
import uuid
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolCall, ToolMessage

from prose import Prose

MODEL = "claude-sonnet-4-5-20250929"
TOOLS = ("search", "read_page")

# Encoded sizes of tool results at cumulative shares; between two points the size's logarithm grows evenly.
_RESULT_SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)
_RESULT_BYTES = (2_000, 3_300, 10_300, 29_600, 40_000)
RESULT_OVERHEAD_BYTES = 330  # what a ToolMessage takes around its text
_LATE_IDS = 0.1  # LangGraph runs the reducer while writes are stored; recorded: 0 to 24 % of the turns
_CALL_SHARES = (0.81, 0.94)  # cumulative: one call, at most two; the rest makes three


@dataclass(frozen=True)
class Round:
    """One answer of the model and the results of the tools that it calls, in the order of the calls."""

    answer: AIMessage
    results: list[ToolMessage] = field(default_factory=list)


@dataclass(frozen=True)
class Turn:
    """A question and the rounds that follow until the model calls no tool."""

    question: HumanMessage  # without an id, as users pass it
    question_id: str  # the id that the messages' reducer gives it
    id_comes_late: bool  # the reducer runs after the question's `put_writes`, not before
    rounds: list[Round]


@dataclass(frozen=True)
class Script:
    """All turns of one thread, and the source of the identifiers that the replay needs."""

    thread_id: str
    turns: list[Turn]
    identifiers: random.Random

    def task_id(self) -> str:
        return new_id(self.identifiers)


def research(supersteps: int, seed: int) -> Script:
    """A research agent: one question, then a tool round in every two supersteps, then the answer."""
    rng = random.Random(f"research {seed}")
    prose = Prose(seed)
    tool_rounds = supersteps // 2
    call_counts = [1 + bisect.bisect_right(_CALL_SHARES, share) for share in spread(tool_rounds, rng)]
    sizes = iter([result_bytes(share) for share in spread(sum(call_counts), rng)])
    rounds = []
    for count in call_counts:
        calls = [tool_call(rng, prose) for _ in range(count)]
        results = [
            ToolMessage(
                prose.text(next(sizes) - RESULT_OVERHEAD_BYTES),
                name=call["name"],
                tool_call_id=call["id"],
                id=new_id(rng),
            )
            for call in calls
        ]
        rounds.append(Round(answer(rng, prose.text(rng.randint(300, 420)), calls), results))
    rounds.append(Round(answer(rng, prose.text(1200), [])))
    question = Turn(HumanMessage(prose.text(926)), new_id(rng), rng.random() < _LATE_IDS, rounds)
    return Script("research", [question], rng)


def chat(turns: int, seed: int) -> Script:
    """A conversation: short questions, answers of a paragraph, no tools."""
    rng = random.Random(f"chat {seed}")
    prose = Prose(seed)
    return Script(
        "chat",
        [
            Turn(
                HumanMessage(prose.text(rng.randint(80, 450))),
                new_id(rng),
                rng.random() < _LATE_IDS,
                [Round(answer(rng, prose.text(rng.randint(400, 1540)), []))],
            )
            for _ in range(turns)
        ],
        rng,
    )


def answer(rng: random.Random, text: str, calls: list[ToolCall]) -> AIMessage:
    """An assistant's message with the fields of a langchain-anthropic answer that was not streamed."""
    written, cached, sent = rng.randint(40, 900), rng.randint(0, 60_000), rng.randint(4, 4_000)
    content: list[str | dict[str, Any]] = [{"text": text, "type": "text"}]
    content += [{"id": c["id"], "input": c["args"], "name": c["name"], "type": "tool_use"} for c in calls]
    return AIMessage(
        content if calls else text,
        id=f"lc_run--{new_id(rng)}-0",
        tool_calls=calls,
        response_metadata={
            "id": f"msg_01{token(rng)}",
            "model": MODEL,
            "stop_reason": "tool_use" if calls else "end_turn",
            "stop_sequence": None,
            "usage": {
                "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached,
                "input_tokens": sent,
                "output_tokens": written,
                "server_tool_use": None,
                "service_tier": "standard",
            },
            "model_name": MODEL,
            "model_provider": "anthropic",
        },
        usage_metadata={
            "input_tokens": sent + cached,
            "output_tokens": written,
            "total_tokens": sent + cached + written,
            "input_token_details": {
                "cache_read": cached,
                "cache_creation": 0,
                "ephemeral_5m_input_tokens": 0,
                "ephemeral_1h_input_tokens": 0,
            },
        },
    )


def tool_call(rng: random.Random, prose: Prose) -> ToolCall:
    query = prose.text(rng.randint(15, 45))
    return ToolCall(name=rng.choice(TOOLS), args={"query": query}, id=f"toolu_01{token(rng)}", type="tool_call")


def result_bytes(share: float) -> int:
    upper = max(1, bisect.bisect_left(_RESULT_SHARES, share))
    low, high = _RESULT_SHARES[upper - 1], _RESULT_SHARES[upper]
    start, end = math.log(_RESULT_BYTES[upper - 1]), math.log(_RESULT_BYTES[upper])
    return round(math.exp(start + (end - start) * (share - low) / (high - low)))


def spread(count: int, rng: random.Random) -> list[float]:
    """Shares spread evenly over 0 to 1, shuffled: runs of any length have the same distribution."""
    shares = [(i + 0.5) / count for i in range(count)]
    rng.shuffle(shares)
    return shares


def new_id(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def token(rng: random.Random) -> str:
    return "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz123456789", k=22))
