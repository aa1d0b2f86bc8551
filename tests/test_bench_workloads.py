"""The replays of bench/ make the calls that LangGraph makes, and their texts are the calibrated ones."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import zstandard
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, message_to_dict
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send

import measure
import replay
import report
import script
from census import Census
from contenders import CONTENDERS
from prose import Prose
from workloads import WORKLOADS

SEED = 11


class Recorder(InMemorySaver):
    """Keeps every call, in a form that two runs of the same script have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.versions_asked = 0
        self.loads: list[Any] = []
        self.puts: list[Any] = []
        self.recorded: list[Any] = []
        self.steps: dict[str | None, int | None] = {None: None}
        self.objects: list[list[BaseMessage]] = []  # the elements of `messages`, put by put

    def get_next_version(self, current: str | None, channel: None) -> str:
        self.versions_asked += 1
        return super().get_next_version(current, channel)

    def get_tuple(self, config: Any) -> Any:
        self.loads.append((len(self.puts), self._config(config)))
        return super().get_tuple(config)

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        self.steps[checkpoint["id"]] = metadata["step"]
        shown = {
            **checkpoint,
            "id": int(checkpoint["id"][19:23], 16),  # variant and clock sequence
            "ts": len(checkpoint["ts"]),
            "channel_values": _shown(checkpoint["channel_values"]),
            "channel_versions": _numbers(checkpoint["channel_versions"]),
            "versions_seen": [(node, _numbers(seen)) for node, seen in checkpoint["versions_seen"].items()],
        }
        self.puts.append((self._config(config), shown, dict(metadata), _numbers(new_versions)))
        self.objects.append(list(checkpoint["channel_values"].get("messages", ())))
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self.recorded.append((self._config(config), _shown(writes), len(task_id), task_path, writes))
        super().put_writes(config, writes, task_id, task_path)

    def sorted_writes(self) -> list[Any]:
        """By superstep and task: parallel tasks end in any order."""
        return sorted(
            (write[:4] for write in self.recorded),
            key=lambda w: (w[0]["configurable"]["checkpoint_id"], w[3]),
        )

    def _config(self, config: Any) -> Any:
        configurable = {k: v for k, v in config["configurable"].items() if k != "__pregel_runtime"}
        if "checkpoint_id" in configurable:
            configurable["checkpoint_id"] = self.steps[configurable["checkpoint_id"]]
        return {"configurable": configurable, "metadata": dict(config["metadata"]), "others": sorted(config)}


def _numbers(versions: Any) -> list[tuple[str, int]]:
    """Versions without their random part, in their order."""
    return [(channel, int(version.split(".")[0])) for channel, version in versions.items()]


def _shown(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return message_to_dict(value.model_copy(update={"id": None}))
    if isinstance(value, Send):
        return ("Send", value.node, _shown(value.arg))
    if isinstance(value, dict):
        return [(key, _shown(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return [type(value).__name__, *map(_shown, value)]
    return value


class Scripted(BaseChatModel):
    """Answers with the messages of a script, one after the other."""

    answers: Iterator[BaseMessage]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=next(self.answers))])


def real_agent(said: script.Script, saver: InMemorySaver) -> None:
    """create_agent, run with the script's answers and tool results."""
    rounds = [round_ for turn in said.turns for round_ in turn.rounds]
    results = {
        call["args"]["query"]: result.content
        for round_ in rounds
        for call, result in zip(round_.answer.tool_calls, round_.results, strict=True)
    }

    def read(query: str) -> str:
        """What the script says that this query returns."""
        return str(results[query])

    tools = [StructuredTool.from_function(read, name=name) for name in script.TOOLS]
    graph = create_agent(Scripted(answers=iter([r.answer for r in rounds])), tools, checkpointer=saver)
    for turn in said.turns:
        graph.invoke({"messages": [turn.question]}, {"configurable": {"thread_id": said.thread_id}}, durability="sync")


def real_chat(said: script.Script, saver: InMemorySaver) -> None:
    """A graph of one node, run with the script's answers."""
    answers = iter([turn.rounds[0].answer for turn in said.turns])
    builder = StateGraph(MessagesState)
    builder.add_node("chat", lambda _: {"messages": [next(answers)]})
    builder.add_edge(START, "chat")
    graph = builder.compile(checkpointer=saver)
    for turn in said.turns:
        graph.invoke({"messages": [turn.question]}, {"configurable": {"thread_id": said.thread_id}}, durability="sync")


def two_research_turns() -> script.Script:
    """Two invocations on one thread, so that loading and the second input are seen too."""
    first, second = script.research(16, SEED), script.research(4, SEED + 1)
    return script.Script(first.thread_id, [*first.turns, *second.turns], first.identifiers)


@pytest.mark.parametrize(
    ("write", "real", "replayed"),
    [
        pytest.param(two_research_turns, real_agent, replay.create_agent, id="create_agent"),
        pytest.param(lambda: script.chat(3, SEED), real_chat, replay.message_graph, id="chat"),
    ],
)
def test_replay_is_what_langgraph_does(
    write: Callable[[], script.Script],
    real: Callable[[script.Script, InMemorySaver], None],
    replayed: Callable[[script.Script, InMemorySaver], None],
) -> None:
    """Every call and argument but the random ones, and every object's place, are those of the real graph."""
    expected, got = Recorder(), Recorder()
    real(write(), expected)
    replayed(write(), got)
    assert got.loads == expected.loads
    for mine, theirs in zip(got.puts, expected.puts, strict=True):
        assert mine == theirs
    assert got.sorted_writes() == expected.sorted_writes()
    assert got.versions_asked == expected.versions_asked
    assert _identities(got) == _identities(expected)


def _identities(recorder: Recorder) -> list[list[int]]:
    """For each put, the first place (write or earlier put) that each message object was seen in."""
    places: dict[int, int] = {}
    seen: list[list[int]] = []
    written: dict[Any, list[tuple[str, BaseMessage]]] = {}
    for config, _, _, path, writes in recorder.recorded:
        parent = config["configurable"]["checkpoint_id"]
        for channel, messages in writes:
            if channel == "messages":
                written.setdefault(parent, []).extend((path, message) for message in messages)
    for (config, *_), messages in zip(recorder.puts, recorder.objects, strict=True):
        parent = config["configurable"].get("checkpoint_id")
        for _, message in sorted(written.get(parent, ()), key=lambda pair: pair[0]):
            places.setdefault(id(message), len(places))
        seen.append([places.setdefault(id(message), len(places)) for message in messages])
    return seen


def test_a_change_is_a_new_list_of_the_same_objects() -> None:
    """Lists are never changed in place, since a saver that keeps the last one must be able to compare."""
    recorder = Recorder()
    lists: list[Any] = []
    put = recorder.put

    def keep(config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        lists.append((checkpoint["channel_values"].get("messages"), "messages" in new_versions))
        return put(config, checkpoint, metadata, new_versions)

    recorder.put = keep  # type: ignore[method-assign]
    replay.create_agent(script.research(20, SEED), recorder)
    for (before, _), (after, moved) in pairwise(lists[1:]):
        assert (after is not before) == moved
        assert all(a is b for a, b in zip(before, after, strict=False))


def test_the_same_seed_says_the_same() -> None:
    """Rounds and contenders store the same content, so that sizes can be compared byte for byte."""
    first, second = script.research(12, SEED), script.research(12, SEED)
    assert _shown([r.results for r in first.turns[0].rounds]) == _shown([r.results for r in second.turns[0].rounds])
    assert [r.answer for r in first.turns[0].rounds] == [r.answer for r in second.turns[0].rounds]
    assert Prose(SEED).text(500) != Prose(SEED + 1).text(500)


def test_sizes_are_the_recorded_ones() -> None:
    """Tool results: mean 13.4 KB, percentiles 3.3, 10.3 and 29.6 KB; answers: 1.39 KB; calls per round."""
    rounds = script.research(300, SEED).turns[0].rounds
    results = sorted(_encoded(result) for round_ in rounds for result in round_.results)
    assert mean(results) == pytest.approx(13_400, rel=0.02)
    for share, size in ((0.1, 3_300), (0.5, 10_300), (0.9, 29_600)):
        assert results[round(share * len(results))] == pytest.approx(size, rel=0.08)
    assert mean(_encoded(round_.answer) for round_ in rounds) == pytest.approx(1_390, rel=0.03)
    assert [sum(len(r.results) == calls for r in rounds) for calls in (1, 2, 3)] == [121, 20, 9]


def test_prose_compresses_like_text() -> None:
    """Neither noise nor a repeated sentence: 1.9 to 2.6 times at level 3, more for longer texts."""
    prose, compressor = Prose(SEED), zstandard.ZstdCompressor(level=3)

    def ratio(characters: int) -> float:
        texts = [prose.text(characters).encode() for _ in range(20)]
        return median(len(text) / len(compressor.compress(text)) for text in texts)

    assert ratio(2_000) == pytest.approx(1.92, abs=0.1)
    assert ratio(13_000) == pytest.approx(2.26, abs=0.1)
    assert ratio(40_000) == pytest.approx(2.55, abs=0.15)


def _encoded(message: BaseMessage) -> int:
    return len(JsonPlusSerializer().dumps_typed(message)[1])


def test_census_counts_the_same_with_and_without_its_shortcut() -> None:
    """Leaving unmoved elements unread changes no count; content counts once, whole states at each put."""
    quick, exact = Census(), Census(exact=True)
    for census in (quick, exact):
        replay.create_agent(script.research(20, SEED), census)
    assert quick.counts() == exact.counts()
    counts = quick.counts()
    assert counts.compressed_bytes < counts.new_information_bytes < counts.final_state_bytes * 1.1
    assert counts.whole_states_bytes > 5 * counts.final_state_bytes


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_run(name: str, tmp_path: Path) -> None:
    """Each contender takes a run and, where it stores, gives back the state that was put."""
    if name == "lmdb":
        pytest.importorskip("langgraph_checkpoint_lmdb", reason="a rival that only the benchmark needs")
    workload, contender = WORKLOADS["research-30"], CONTENDERS[name]
    driven = measure.drive(workload, contender, tmp_path)
    assert driven["figures"]["put_median_ms"] > 0
    assert driven["curve"][-1]["puts"] <= workload.puts
    if contender.persistent:
        assert driven["figures"]["disk_bytes"] > 0
        driven = measure.reopen(workload, contender, tmp_path)
    if contender.stores:
        assert driven["final_digest"] == measure.census(workload)["final_digest"]


def test_report_shows_losses_and_absences(tmp_path: Path) -> None:
    """A slower figure shows as below 1x, a missing one by its word, an absent contender by its reason."""
    counts = measure.census(WORKLOADS["research-30"])

    def entry(label: str, not_run: str | None = None, **figures: float) -> dict[str, Any]:
        medians = {name: {"median": value} for name, value in figures.items()}
        return {"label": label, "stores": True, "not_run": not_run, "failed": None, "figures": medians}

    run = {
        "workload": "w",
        "about": "a run",
        "counts": counts,
        "contenders": {
            "sqlite": entry("S", put_median_ms=2.0, disk_bytes=counts["new_information_bytes"] * 150),
            "memory": entry("M", put_median_ms=8.0),
            "lmdb": entry("L", "not run, needs 74 GB of disk"),
        },
    }
    text = report.table(run)
    assert "| put, whole run: median | 2.00 ms | 8.00 ms (0.25x) |" in text
    assert "| on disk / new information | 150x | - |" in text
    assert "not stored" in text
    assert "L: not run, needs 74 GB of disk." in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    report.write_between_markers(page, text)
    assert page.read_text() == f"before\n{report.START}\n{text}\n{report.END}\nafter\n"
