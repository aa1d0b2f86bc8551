"""The replays of bench/ make the calls that LangGraph makes, and their texts are the calibrated ones."""

import asyncio
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from threading import Lock
from typing import Any

import pytest
import zstandard
from langchain.agents import create_agent
from langchain_core.messages import BaseMessage, HumanMessage, message_to_dict
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send

import deep
import measure
import postgres
import react
import replay
import report
import run
import script
import scripted
import threads
from census import Census, digest
from contenders import CONTENDERS
from prose import Prose
from workloads import WORKLOADS, Workload, reader_of

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


def real_agent(said: script.Script, saver: InMemorySaver) -> None:
    """create_agent, run with the script's answers and tool results."""
    lines = scripted.of_script(said)
    graph = create_agent(
        scripted.ScriptedModel(answers=lines.answers), scripted.tools(lines.results), checkpointer=saver
    )
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


def _encoded(value: Any) -> int:
    return len(JsonPlusSerializer().dumps_typed(value)[1])


class Scales(InMemorySaver):
    """Weighs what a real graph stores: bytes by channel, `*` for whole checkpoints, in the main agent and below it."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: Counter[tuple[str, str]] = Counter()
        self.written: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[str] = Counter()
        self.namespaces: set[str] = set()
        self.types: set[tuple[str, type]] = set()
        self._lock = Lock()  # sub-agents put in parallel

    def get_tuple(self, config: Any) -> Any:
        with self._lock:
            self.calls["get_tuple"] += 1
        return super().get_tuple(config)

    def get_delta_channel_history(self, **arguments: Any) -> Any:
        self.calls["get_delta_channel_history"] += 1
        return super().get_delta_channel_history(**arguments)

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        with self._lock:
            kind = self._enter("put", config)
            self.stored[kind, "*"] += _encoded(checkpoint)
            for channel in new_versions:
                if channel in checkpoint["channel_values"]:
                    value = checkpoint["channel_values"][channel]
                    self.stored[kind, channel] += _encoded(value)
                    self.types.add((f"{kind}{channel}", type(value)))
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        with self._lock:
            kind = self._enter("put_writes", config)
            for channel, value in writes:
                self.written[kind, channel] += _encoded(value)
        super().put_writes(config, writes, task_id, task_path)

    def _enter(self, call: str, config: Any) -> str:
        namespace = config["configurable"]["checkpoint_ns"]
        self.calls[call] += 1
        self.namespaces.add(namespace)
        return namespace.partition(":")[0] and "below/"


def test_deep_agents_are_the_recorded_ones() -> None:
    """Calls as recorded one by one, bytes within 15 %; delta channels above, a namespace for each sub-agent below."""
    scales = Scales()
    scripted.play(WORKLOADS["deepagents"].write(), scales)
    assert scales.calls == {"put": 451, "put_writes": 468, "get_tuple": 19, "get_delta_channel_history": 6}
    assert sum(scales.stored[kind, "*"] for kind in ("", "below/")) == pytest.approx(7.56e6, rel=0.15)
    assert scales.written.total() == pytest.approx(4.99e6, rel=0.15)
    assert scales.stored["", "messages"] == pytest.approx(0.499e6, rel=0.15)
    assert len(scales.namespaces) == 1 + 6 * deep.TASKS
    assert {kind for channel, kind in scales.types if channel == "messages"} == {_DeltaSnapshot}
    assert {kind for channel, kind in scales.types if channel == "below/messages"} == {list}
    assert scales.written["below/", "files"] > 0


def test_long_deep_agent_is_read_along_its_history() -> None:
    """The newest checkpoint does not hold the messages: reading them takes the history of the channel."""
    run, scales = deep.long(20, SEED), Scales()
    scripted.play(run, scales)
    assert reader_of(deep.THREAD)(InMemorySaver()) == []
    assert "messages" not in scales.get_tuple(run.config).checkpoint["channel_values"]
    said = script.research(20, SEED).turns[0]
    assert len(deep.reader()(scales)) == 1 + sum(1 + len(round_.results) for round_ in said.rounds)
    assert scales.calls["get_delta_channel_history"] == 1


def test_react_agent_takes_the_state_along() -> None:
    """All but 4 % of what is written are Sends, as recorded, and next to nothing of it is new."""
    scales, census = Scales(), Census()
    scripted.play(WORKLOADS["react-100"].write(), scales)
    assert scales.calls["put"] == 103
    assert scales.written.total() == pytest.approx(28.9e6, rel=0.15)
    assert scales.written["", "__pregel_tasks"] / scales.written.total() == pytest.approx(27.9 / 28.9, abs=0.01)
    assert scales.stored["", "*"] == pytest.approx(79.5e6, rel=0.15)
    scripted.play(WORKLOADS["react-100"].write(), census)
    counts = census.counts(reader_of(react.THREAD)(census))
    assert counts.new_information_bytes == pytest.approx(scales.written["", "messages"], rel=0.02)


def test_threads_take_turns() -> None:
    """Each of the threads sees the calls of a chat of its own, and no two calls in a row are of one thread."""
    together = Recorder()
    threads.play(threads.chats(3, SEED), together)
    for said in threads.chats(3, SEED):
        alone = Recorder()
        replay.message_graph(said, alone)
        assert [put for put in together.puts if _thread(put[0]) == said.thread_id] == alone.puts
        assert [w[:4] for w in together.recorded if _thread(w[0]) == said.thread_id] == [w[:4] for w in alone.recorded]
    assert all(_thread(one[0]) != _thread(next_[0]) for one, next_ in pairwise(together.puts))


def _thread(config: Any) -> str:
    return str(config["configurable"]["thread_id"])


def three_threads() -> Workload:
    return Workload(
        "threads-3",
        "",
        3 * threads.TURNS * 3,
        lambda: threads.chats(3, SEED),
        threads.play,
        lambda: reader_of(*threads.names(3)),
    )


@pytest.mark.parametrize(
    "workload", [WORKLOADS["deepagents-short"], WORKLOADS["react-30"], three_threads()], ids=lambda w: w.name
)
def test_a_workload_is_the_same_in_each_run(workload: Workload) -> None:
    """Contenders are given the same content, whatever LangGraph draws at random: their final states must agree."""
    first, second = measure.census(workload), measure.census(workload)
    assert first["puts"] == workload.puts
    # Files hold the time of day, and two may get the same.
    assert first.pop("new_information_bytes") == pytest.approx(second.pop("new_information_bytes"), abs=100)
    assert first.pop("compressed_bytes") == pytest.approx(second.pop("compressed_bytes"), rel=0.02)
    assert first == second


@pytest.mark.parametrize("name", ["deepagents-short", "react-30"])
def test_graphs_run_alike_on_an_event_loop(name: str) -> None:
    """The asynchronous run of a graph ends in the state of the synchronous one."""
    workload, saver = WORKLOADS[name], InMemorySaver()
    asyncio.run(scripted.aplay(workload.write(), saver))
    assert digest(workload.reader()(saver)) == measure.census(workload)["final_digest"]


def test_census_counts_the_same_with_and_without_its_shortcut() -> None:
    """Leaving unmoved elements unread changes no count; content counts once, whole states at each put."""
    quick, exact = Census(), Census(exact=True)
    for census in (quick, exact):
        replay.create_agent(script.research(20, SEED), census)
    counts, counted_exactly = (census.counts(reader_of("research")(census)) for census in (quick, exact))
    assert counts == counted_exactly
    assert counts.compressed_bytes < counts.new_information_bytes < counts.final_state_bytes * 1.1
    assert counts.whole_states_bytes > 5 * counts.final_state_bytes


def test_census_looks_into_what_holds_other_content() -> None:
    """Messages in a Send, files in a sub-agent's input and late ids are nothing new; other content is."""

    def new_bytes(*values: Any) -> int:
        census = Census()
        for value in values:
            census.put_writes({}, [("any", value)], "task")
        return census.counts([]).new_information_bytes

    said = script.research(4, SEED).turns[0]
    call, messages = said.rounds[0].answer.tool_calls[0], [said.rounds[0].answer, *said.rounds[0].results]
    call_bytes = sum(map(_encoded, [call["name"], call["args"]["query"], call["id"], call["type"]]))
    send = Send("tools", {"__type": "", "tool_call": call, "state": {"messages": messages}})
    assert new_bytes(messages, send) == new_bytes(messages) + call_bytes + _encoded("")
    files = {"/a": {"content": Prose(SEED).text(500)}, "/b": {"content": Prose(SEED + 1).text(500)}}
    assert new_bytes(files, {"files": files, "messages": messages}) == new_bytes(files) + new_bytes(messages)
    early = HumanMessage("who?")
    named = early.model_copy(update={"id": "1"})
    assert new_bytes(early, named) == new_bytes(named, early) == new_bytes(named)
    assert new_bytes([early], [HumanMessage("who else?")]) > new_bytes([early])


@pytest.mark.parametrize("name", ["stepwell", "sqlite", "memory"])
def test_contenders_keep_what_graphs_read(name: str, tmp_path: Path) -> None:
    """A graph that reads its history and is interrupted ends in the same state with every contender."""
    workload, contender = WORKLOADS["deepagents-short"], CONTENDERS[name]
    driven = measure.drive(workload, contender, tmp_path)
    if contender.persistent:
        driven = measure.reopen(workload, contender, tmp_path)
    assert driven["final_digest"] == measure.census(workload)["final_digest"]


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_run(name: str) -> None:
    """Each contender takes a run and, where it stores, gives back the state that was put."""
    workload, contender = WORKLOADS["research-30"], CONTENDERS[name]
    pytest.importorskip(contender.module, reason="a rival that only the benchmark needs")
    if contender.server and postgres.version() is None:
        pytest.skip("no PostgreSQL on this machine")
    # Not in pytest's own folder: a server does not run as root, and to all others that is closed.
    with tempfile.TemporaryDirectory(prefix="stepwell-") as folder:
        os.chmod(folder, 0o711)
        with run.prepared(contender, Path(folder)) as place:
            driven = measure.drive(workload, contender, place.directory)
            assert driven["figures"]["put_median_ms"] > 0
            assert driven["curve"][-1]["puts"] <= workload.puts
            if contender.persistent:
                assert driven["figures"]["disk_bytes"] > 0
                driven = measure.reopen(workload, contender, place.directory)
    if contender.stores:
        assert driven["final_digest"] == measure.census(workload)["final_digest"]


def test_report_shows_losses_and_absences(tmp_path: Path) -> None:
    """A slower figure shows as below 1x, a missing one by its word, an absent contender by its reason."""
    counts = measure.census(WORKLOADS["research-30"])

    def entry(label: str, not_run: str | None = None, **figures: float) -> dict[str, Any]:
        medians = {name: {"median": value} for name, value in figures.items()}
        return {"label": label, "stores": True, "not_run": not_run, "failed": None, "figures": medians, "curves": []}

    measured = {
        "workload": "w",
        "about": "a run",
        "counts": counts,
        "contenders": {
            "sqlite": entry("S", put_median_ms=2.0, disk_bytes=counts["new_information_bytes"] * 150),
            "memory": entry("M", put_median_ms=8.0),
            "lmdb": entry("L", "not run, needs 74 GB of disk"),
        },
    }
    text = report.table(measured)
    assert "| put, whole run: median | 2.00 ms | 8.00 ms (0.25x) |" in text
    assert "| on disk / new information | 150x | - |" in text
    assert "not stored" in text
    assert "L: not run, needs 74 GB of disk." in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    report.write_between_markers(page, text)
    assert page.read_text() == f"before\n{report.START}\n{text}\n{report.END}\nafter\n"
