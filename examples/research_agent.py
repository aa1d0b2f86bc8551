"""A research agent that reads the standard library: a real LangGraph agent around a scripted model.

The model needs no key and no network.  What it does next follows from the conversation alone (`next_turn`),
as for a real model at temperature zero: given a saved conversation, it goes on where that ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver

import standard_library

SYSTEM_PROMPT = "You are a careful researcher. You read before you answer, and you say where you read it."

_ROUNDS_PER_WORD = 4  # one search, then three rounds of reading
_WORDS_AT_RISK = (
    "fsync, atomic, checksum, flush, truncate, backup, corrupt, overwrite, rename, lock, commit, tempfile, "
    "unlink, crc32, digest, EINTR, close, finally, restore, recover, missing, partial, retry, duplicate, "
    "consistent, integrity, snapshot, history, append, persist, buffer, signal, killed, interrupted, race, "
    "stale, verify, cleanup"
)
_WORDS_ON_TIME = "timeout, deadline, monotonic, elapsed"

_FOUND = re.compile(r"^\[(?P<module>\S+) line (?P<line>\d+), (?P<mentions>\d+) mentions\]$", re.MULTILINE)
_READ = re.compile(r"\[(?P<module>\S+) lines (?P<first>\d+) to (?P<last>\d+) of \d+\]")


def first_question(rounds: int) -> str:
    """What the agent is asked at the start."""
    return (
        "How does Python's standard library take care that nothing is lost or damaged? "
        f"Look for these words: {_WORDS_AT_RISK}. Take {rounds} rounds of reading, then answer."
    )


def other_question(rounds: int) -> str:
    """What the agent is asked instead, on the second branch."""
    return (
        "Leave that. How does the standard library wait, and give up waiting? "
        f"Look for these words: {_WORDS_ON_TIME}. Take {rounds} rounds of reading, then answer."
    )


@tool
def search(word: str) -> str:
    """Find a word in the sources of the standard library."""
    return standard_library.search(word)


@tool
def read_source(module: str, line: int) -> str:
    """Read the part of a module's source that a line stands in."""
    return standard_library.read_source(module, line)


@tool
def read_docs(module: str) -> str:
    """Read the documentation that a module's source carries."""
    return standard_library.read_docs(module)


def saver_class(kind: str) -> Any:
    """The checkpointer to work with, `stepwell` or `sqlite`: the one line that differs between the two."""
    if kind == "stepwell":
        from stepwell_langgraph import StepwellSaver as Saver
    else:
        from langgraph.checkpoint.sqlite import SqliteSaver as Saver
    return Saver


def build_agent(checkpointer: BaseCheckpointSaver[Any], middleware: Sequence[AgentMiddleware] = ()) -> Any:
    """The agent as a compiled LangGraph graph."""
    return create_agent(
        ScriptedResearcher(),
        tools=[search, read_source, read_docs],
        system_prompt=SYSTEM_PROMPT,
        middleware=middleware,
        checkpointer=checkpointer,
    )


class ScriptedResearcher(BaseChatModel):
    """A chat model that answers by `next_turn`."""

    @property
    def _llm_type(self) -> str:
        return "scripted-researcher"

    def bind_tools(self, tools: Any, **kwargs: Any) -> ScriptedResearcher:
        """The script knows its tools already."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=next_turn(messages))])


def next_turn(messages: Sequence[BaseMessage]) -> AIMessage:
    """The researcher's next message, derived from the conversation and from nothing else.

    For each word of the newest question: search it, read the first place found, read a module's
    documentation, then read two further places at once.  What was read before is passed over.
    """
    asked_at = max(i for i, message in enumerate(messages) if isinstance(message, HumanMessage))
    question = messages[asked_at].text
    words, rounds = _words_and_rounds(question)
    turns = [m for m in messages[asked_at:] if isinstance(m, AIMessage) and m.tool_calls]
    done = len(turns)
    if done >= rounds:
        return _message(messages, _report(messages[asked_at:], words), [])

    word = words[done // _ROUNDS_PER_WORD % len(words)]
    stage = done % _ROUNDS_PER_WORD
    if stage == 0:
        calls: list[tuple[str, dict[str, Any]]] = [("search", {"word": word})]
    else:
        places = _unread_places(messages)
        if stage == 1:
            calls = [("read_source", _at(places[0]))]
        elif stage == 2:
            calls = [("read_docs", {"module": _undocumented(messages, places)})]
        else:
            calls = [("read_source", _at(place)) for place in places[:2]]
    return _message(messages, _note(messages, word, calls), calls)


def _message(messages: Sequence[BaseMessage], text: str, calls: list[tuple[str, dict[str, Any]]]) -> AIMessage:
    read_tokens = sum(len(m.text) for m in messages) // 4  # the usual rule of thumb: a token is four characters
    written_tokens = len(text) // 4
    return AIMessage(
        content=text,
        tool_calls=[
            # The place in the conversation names the call, so that a repeated turn repeats its ids.
            {"name": name, "args": args, "id": f"call_{len(messages)}{letter}", "type": "tool_call"}
            for (name, args), letter in zip(calls, "abcdefgh", strict=False)
        ],
        usage_metadata={
            "input_tokens": read_tokens,
            "output_tokens": written_tokens,
            "total_tokens": read_tokens + written_tokens,
        },
        response_metadata={
            "model_name": "scripted-researcher",
            "stop_reason": "tool_use" if calls else "end_turn",
        },
    )


def _words_and_rounds(question: str) -> tuple[list[str], int]:
    words = re.search(r"these words: ([^.]+)\.", question)
    rounds = re.search(r"Take (\d+) rounds", question)
    if words is None or rounds is None:
        raise ValueError(f"the scripted researcher understands only the questions of this module, not {question!r}")
    return words[1].split(", "), int(rounds[1])


def _tool_answers(messages: Sequence[BaseMessage], name: str) -> list[str]:
    return [m.text for m in messages if isinstance(m, ToolMessage) and m.name == name]


def _unread_places(messages: Sequence[BaseMessage]) -> list[re.Match[str]]:
    """The places that searches found, those not read yet first, and the newest search before older ones."""
    found = [place for answer in reversed(_tool_answers(messages, "search")) for place in _FOUND.finditer(answer)]
    seen: dict[str, list[range]] = {}
    for answer in _tool_answers(messages, "read_source"):
        if read := _READ.match(answer):
            seen.setdefault(read["module"], []).append(range(int(read["first"]), int(read["last"]) + 1))

    def was_read(place: re.Match[str]) -> bool:
        return any(int(place["line"]) in lines for lines in seen.get(place["module"], ()))

    return sorted(found, key=was_read)  # sorting is stable: within each half the order stays


def _undocumented(messages: Sequence[BaseMessage], places: list[re.Match[str]]) -> str:
    seen = {call["args"]["module"] for call in _calls(messages) if call["name"] == "read_docs"}
    modules = [place["module"] for place in places]
    return next((module for module in modules if module not in seen), modules[0])


def _calls(messages: Sequence[BaseMessage]) -> list[Any]:
    return [call for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]


def _at(place: re.Match[str]) -> dict[str, Any]:
    return {"module": place["module"], "line": int(place["line"])}


def _note(messages: Sequence[BaseMessage], word: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """What the researcher says before it calls its tools: what it just saw, and where it looks next."""
    said = []
    if isinstance(messages[-1], ToolMessage):
        heading, _, body = messages[-1].text.partition("\n")
        telling = [line.strip() for line in body.splitlines() if len(line.strip()) > 40][:4]
        said.append(f"{heading.strip('[].')}. What stands out:")
        said.extend(f"- {line}" for line in telling)
    aims = " and ".join(f"{name}({', '.join(f'{k}={v!r}' for k, v in args.items())})" for name, args in calls)
    said.append(f"The word under study is {word!r}. Next I call {aims}.")
    return "\n".join(said)


def _report(messages: Sequence[BaseMessage], words: list[str]) -> str:
    """The final answer: for each word that was searched, the modules that speak of it most."""
    lines = ["This is what I read."]
    for word, answer in zip(words, _tool_answers(messages, "search"), strict=False):
        leaders = ", ".join(f"{m['module']} ({m['mentions']})" for m in list(_FOUND.finditer(answer))[:4])
        lines.append(f"- {word}: most often in {leaders}")
    calls = _calls(messages)
    modules = {call["args"]["module"] for call in calls if "module" in call["args"]}
    lines.append(f"In all: {len(calls)} tool calls, {len(modules)} modules opened.")
    return "\n".join(lines)
