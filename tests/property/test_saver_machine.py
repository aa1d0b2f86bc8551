"""A state machine: after any calls StepwellSaver shows what the model and InMemorySaver show."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, _DeltaSnapshot

from property.saver_model import Lane, SaverModel, show_history, show_tuple
from stepwell import Log, folding
from stepwell.errors import ConflictError
from stepwell_langgraph import StepwellSaver

THREADS = ("1", "12", "🎉")
NAMESPACES = ("", "sub|deep")
CHANNELS = ("messages", "files", "value", "delta")

# 1, True and 1.0 are equal to Python and different to a reader.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, 1.0, 2**40, float("nan")]),
    st.text(max_size=3),
    st.binary(max_size=3),
)
elements = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.dictionaries(st.text(max_size=2), scalars, max_size=3),
    st.builds(HumanMessage, content=st.text(max_size=5), id=st.none() | st.text(min_size=1, max_size=2)),
    st.lists(scalars, max_size=2).map(tuple),
)
lists = st.lists(elements, max_size=20)
maps = st.dictionaries(st.text(max_size=2) | st.integers(0, 3), elements, max_size=5)
files = st.dictionaries(st.sampled_from("abcdef"), elements | st.lists(elements, max_size=2), min_size=2)
contents = st.one_of(lists, lists, maps, files, elements, lists.map(_DeltaSnapshot))

# What a put does with one channel; see `_changed`.
changes = st.one_of(
    st.tuples(st.sampled_from(["keep", "keep", "omit", "empty"]), st.none()),
    st.tuples(st.just("set"), contents),
    st.tuples(st.just("grow"), lists),
    st.tuples(st.just("adopt"), st.none()),
    st.tuples(st.just("mutate"), scalars),
    st.tuples(st.just("cut"), st.integers(0, 5)),
    st.tuples(st.just("edit"), elements),
    st.tuples(st.just("reverse"), st.none()),
)
# A delta channel moves from version to version without a value, and has a snapshot now and then.
deltas = st.one_of(
    st.tuples(st.sampled_from(["empty", "empty", "keep"]), st.none()),
    st.tuples(st.just("set"), lists.map(_DeltaSnapshot)),
)
# A map of files is mostly changed in place or by a few keys.
edits = st.one_of(
    st.tuples(st.sampled_from(["keep", "omit", "empty", "reverse"]), st.none()),
    st.tuples(st.just("set"), files),
    st.tuples(st.just("mutate"), scalars),
    st.tuples(st.just("mutate"), scalars),
    st.tuples(st.just("grow"), lists),
    st.tuples(st.just("cut"), st.integers(0, 2)),
)
plans = st.fixed_dictionaries({"messages": changes, "value": changes, "files": edits, "delta": deltas})
metadatas = st.fixed_dictionaries(
    {"source": st.sampled_from(["loop", "loop", "loop", "input", "fork"]), "step": st.integers(-2, 9)},
    optional={
        "counters_since_delta_snapshot": st.just({"delta": [1, 2], "messages": [0, 1]}),
        "run_id": st.sampled_from("ab"),
    },
)
# The writes of one task, its id and its path.
batches = st.tuples(
    st.lists(
        st.tuples(st.sampled_from([*CHANNELS, "delta", INTERRUPT, RESUME, ERROR]), elements | lists),
        max_size=4,
    ),
    st.sampled_from(["a", "b", "ab"]),
    st.sampled_from(["", "~1", "~2"]),
)
turns = st.lists(st.tuples(plans, st.lists(batches, max_size=3)), min_size=1, max_size=5)

threads = st.sampled_from(THREADS)
namespaces = st.sampled_from(("", *NAMESPACES))
picks = st.integers(0, 10**6)


def _config(thread: str, ns: str, id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": thread, "checkpoint_ns": ns}
    return {"configurable": configurable if id is None else {**configurable, "checkpoint_id": id}}


def _mutate(value: Any, scalar: Any) -> None:
    """Change something in a value in place, as LangGraph gives messages their ids."""
    if isinstance(value, HumanMessage):
        value.id = f"given {scalar!r}"
        value.additional_kwargs["seen"] = scalar
    elif isinstance(value, dict | list):
        for each in reversed(value if isinstance(value, list) else value.values()):
            if isinstance(each, HumanMessage | dict | list):
                _mutate(each, scalar)
                return
        if isinstance(value, dict):
            value["seen"] = scalar
        else:
            value.append(scalar)


def _changed(current: Any, change: str, argument: Any, adopted: list[Any]) -> Any:
    """The channel's next value, sharing the unchanged elements with the current one as LangGraph does."""
    if isinstance(current, list):
        match change:
            case "grow":
                return [*current, *argument]
            case "adopt":
                return [*current, *adopted]
            case "mutate":
                _mutate(current, argument)
                return list(current)
            case "cut":
                return current[argument:]
            case "edit":
                return [*current[: len(current) // 2], argument, *current[len(current) // 2 + 1 :]]
            case "reverse":
                return current[::-1]
    if isinstance(current, dict):
        match change:
            case "grow":
                return {**current, **{f"{n}": value for n, value in enumerate(argument)}}
            case "mutate":
                _mutate(current, argument)
                return dict(current)
            case "cut":
                return dict(list(current.items())[argument:])
            case "reverse":
                return dict(reversed(current.items()))
    return list(adopted) if change in ("adopt", "reverse") else argument


class SaverMachine(RuleBasedStateMachine):
    """Ids and versions only ever grow, so that the greatest id is the latest commit for InMemorySaver too."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.patching = pytest.MonkeyPatch()
        # States are kept at every sealing, not only where it pays.
        self.patching.setattr(folding, "FEWEST_FOLDED_STEPS", 1)
        self.patching.setattr(folding, "SHARE", 1 << 30)
        self.saver = self._open()
        self.upstream = InMemorySaver()
        self.model = SaverModel()
        self.counter = 0
        # The objects of the last put of each lane, as a running graph holds them.
        self.held: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        # The values of writes since the last put of each lane, which the next put may adopt.
        self.returned: dict[tuple[str, str], list[Any]] = {}
        # The id that the next put of each lane takes, where writes came before it.
        self.awaited: dict[tuple[str, str], str] = {}
        # Threads that InMemorySaver cannot follow: pruned, copied, or with values that it drops.
        self.ours_alone: set[str] = set()

    def _open(self, after: int = folding.SEAL_AFTER_EVENTS) -> StepwellSaver:
        return StepwellSaver(Log.open(self.folder / "agents.stepwell", seal_after_events=after))

    def _count(self) -> int:
        self.counter += 1
        return self.counter

    def _new_id(self) -> str:
        return f"1f0b0000-0000-6000-8000-{self._count():012x}"

    def _put(
        self,
        thread: str,
        ns: str,
        parent: str | None,
        plan: dict[str, Any],
        metadata: Any,
        *,
        unnamed: bool = False,
        again: str | None = None,
    ) -> None:
        lane = (thread, ns)
        current: dict[str, Any] = {}
        versions: dict[str, Any] = {}
        if parent is not None:
            versions = dict(self.model.lane(thread, ns).steps[parent].versions)
            if lane in self.held and self.held[lane][0] == parent:
                current = self.held[lane][1]
            else:
                found = self.saver.get_tuple(_config(thread, ns, parent))
                assert found is not None
                current = found.checkpoint["channel_values"]
        adopted = self.returned.pop(lane, [])
        for value in adopted:
            _mutate(value, "adopted")

        values: dict[str, Any] = {}
        new_versions: dict[str, Any] = {}
        for channel, (change, argument) in plan.items():
            if change in ("keep", "omit"):
                if change == "keep" and channel in current:
                    values[channel] = current[channel]
                continue
            number = self._count()
            new_versions[channel] = versions[channel] = f"{number:032}.0{number * 7919 % 10**16:016}"
            if change != "empty":
                own = adopted if channel == "messages" else []
                values[channel] = _changed(current.get(channel), change, argument, own)
        if unnamed and new_versions:
            dropped = sorted(new_versions)[0]
            if dropped in values:
                del new_versions[dropped]
                self.ours_alone.add(thread)

        id = again or self.awaited.pop(lane, None) or self._new_id()
        checkpoint: Any = {
            "v": 4,
            "id": id,
            "ts": "2025-01-01T00:00:00+00:00",
            "channel_values": values,
            "channel_versions": versions,
            "versions_seen": {"node": dict(versions)},
            "updated_channels": sorted(new_versions),
        }
        config = _config(thread, ns, parent)
        stored = self.saver.put(config, checkpoint, metadata, dict(new_versions))
        assert stored == _config(thread, ns, id)
        self.upstream.put(config, checkpoint, metadata, dict(new_versions))
        self.model.put(thread, ns, parent, checkpoint, metadata, new_versions)
        self.held[lane] = (id, values)

    @rule(thread=threads, ns=namespaces, plan=plans, metadata=metadatas, unnamed=st.integers(0, 9))
    def put(self, thread: str, ns: str, plan: Any, metadata: Any, unnamed: int) -> None:
        visible = self.model.lane(thread, ns).visible()
        self._put(thread, ns, visible[-1].id if visible else None, plan, metadata, unnamed=unnamed == 9)

    @rule(thread=threads, ns=namespaces, pick=picks, plan=plans, metadata=metadatas)
    def fork(self, thread: str, ns: str, pick: int, plan: Any, metadata: Any) -> None:
        visible = self.model.lane(thread, ns).visible()
        parent = visible[pick % len(visible)].id if visible else None
        self._put(thread, ns, parent, plan, metadata)

    @rule(thread=threads, ns=namespaces, pick=picks, plan=plans, metadata=metadatas)
    def put_again(self, thread: str, ns: str, pick: int, plan: Any, metadata: Any) -> None:
        lane = self.model.lane(thread, ns)
        visible = lane.visible()
        if visible:
            step = visible[-1 - pick % min(len(visible), 4)]
            parent = lane.steps.get(step.parent or "")
            if parent is None or not parent.hidden:
                self._put(thread, ns, step.parent, plan, metadata, again=step.id)

    @rule(thread=threads, ns=namespaces, turns=turns, metadata=metadatas)
    def run(self, thread: str, ns: str, turns: list[Any], metadata: Any) -> None:
        for plan, batches in turns:
            self.put(thread, ns, plan, metadata, 0)
            for batch in batches:
                self._put_writes(thread, ns, self.held[thread, ns][0], *batch)

    @rule(thread=threads, ns=namespaces, pick=picks, batch=batches)
    def put_writes(self, thread: str, ns: str, pick: int, batch: Any) -> None:
        visible = self.model.lane(thread, ns).visible()
        if visible:
            self._put_writes(thread, ns, visible[-1 - pick % min(len(visible), 3)].id, *batch)

    @rule(thread=threads, ns=namespaces, batch=batches)
    def put_writes_early(self, thread: str, ns: str, batch: Any) -> None:
        if (thread, ns) not in self.awaited:
            self.awaited[thread, ns] = self._new_id()
        self._put_writes(thread, ns, self.awaited[thread, ns], *batch)

    def _put_writes(self, thread: str, ns: str, id: str, writes: list[tuple[str, Any]], task: str, path: str) -> None:
        config = _config(thread, ns, id)
        self.saver.put_writes(config, writes, task, path)
        self.upstream.put_writes(config, writes, task, path)
        self.model.put_writes(thread, ns, id, writes, task, path)
        self.returned.setdefault((thread, ns), []).extend(value for channel, value in writes if channel == "messages")

    @rule(thread=threads, strategy=st.sampled_from([None, "delete"]))
    def delete_thread(self, thread: str, strategy: str | None) -> None:
        if strategy is None:
            self.saver.delete_thread(thread)
        else:
            self.saver.prune([thread], strategy=strategy)
        for ns in NAMESPACES:
            lane = (thread, ns)
            self.held.pop(lane, None)
            self.returned.pop(lane, None)
            # The next life of the thread begins with an id of this one, and must show nothing of it.
            for id in self.model.lane(thread, ns).steps:
                self.awaited[lane] = id
                break
        self.upstream.delete_thread(thread)
        self.model.delete_thread(thread)
        self.ours_alone.discard(thread)

    @rule(which=st.sets(threads, max_size=2))
    def prune(self, which: set[str]) -> None:
        self.saver.prune(sorted(which))
        for thread in which:
            self.model.prune(thread)
            if self._steps(thread):
                self.ours_alone.add(thread)
            # Whether writes outlive a pruning that their checkpoint did not see is left open.
            for ns in NAMESPACES:
                self.awaited.pop((thread, ns), None)

    @precondition(lambda self: any(self._steps(thread) for thread in THREADS))
    @rule(source=threads, onto=threads)
    def copy_thread(self, source: str, onto: str) -> None:
        if not self._steps(source):
            return
        if self._steps(onto):
            with pytest.raises(ConflictError):
                self.saver.copy_thread(source, onto)
            return
        if onto in self.model.threads:
            # Whether waiting writes alone make a thread is left open.
            self.delete_thread(onto, None)
        self.saver.copy_thread(source, onto)
        self.model.copy_thread(source, onto)
        self.ours_alone.add(onto)

    @rule(after=st.sampled_from([4, 20, folding.SEAL_AFTER_EVENTS]))
    def reopen(self, after: int) -> None:
        self.saver.close()
        self.saver = self._open(after)

    @rule()
    def seal(self) -> None:
        self.saver.log.seal()

    @rule(thread=threads)
    def seal_thread(self, thread: str) -> None:
        self.saver.log.seal(thread)

    @rule(thread=threads)
    def look(self, thread: str) -> None:
        self._compare(thread)

    def _steps(self, thread: str) -> int:
        return sum(len(lane.visible()) for lane in self.model.threads.get(thread, {}).values())

    @staticmethod
    def _settled(lane: Lane, shown: dict[str, Any] | None) -> dict[str, Any] | None:
        """Whether a kept checkpoint still names its pruned parent is left open."""
        step = lane.steps.get(shown["config"][2]) if shown else None
        parent = lane.steps.get(step.parent or "") if step else None
        if shown and parent is not None and parent.hidden and shown["parent"] in (None, parent.id):
            return {**shown, "parent": "pruned"}
        return shown

    def _compare(self, thread: str) -> None:
        savers = [self.saver] if thread in self.ours_alone else [self.saver, self.upstream]
        for saver in savers:
            everything = []
            for ns in NAMESPACES:
                lane = self.model.lane(thread, ns)
                visible = lane.visible()
                latest = saver.get_tuple(_config(thread, ns))
                assert (latest and latest.checkpoint["id"]) == (visible[-1].id if visible else None)
                expected = [self._settled(lane, each) for each in self.model.list(thread, ns)]
                listed = [self._settled(lane, show_tuple(each)) for each in saver.list(_config(thread, ns))]
                assert listed == expected
                everything += expected
                for shown in expected:
                    config = _config(thread, ns, shown["config"][2])
                    assert self._settled(lane, show_tuple(saver.get_tuple(config))) == shown
                    history = saver.get_delta_channel_history(config=config, channels=CHANNELS)
                    for channel in CHANNELS:
                        walked = self.model.history(thread, ns, shown["config"][2], channel)
                        assert walked is None or show_history(history[channel]) == walked
                for step in lane.steps.values():
                    if step.hidden:
                        assert saver.get_tuple(_config(thread, ns, step.id)) is None
            whole = list(saver.list({"configurable": {"thread_id": thread}}))
            assert sorted(each.checkpoint["id"] for each in whole) == sorted(each["config"][2] for each in everything)

    def teardown(self) -> None:
        try:
            for thread in THREADS:
                self._compare(thread)
            assert len(list(self.saver.list(None))) == sum(self._steps(thread) for thread in THREADS)
            assert self.saver.log.audit().breaches == []
        finally:
            self.patching.undo()
            self.saver.close()
            shutil.rmtree(self.folder)


TestSaverMachine = SaverMachine.TestCase
TestSaverMachine.__doc__ = "After any sequence of calls, each saver shows what the model shows, and the audit is clean."
TestSaverMachine.settings = settings(max_examples=settings().max_examples, stateful_step_count=40)
