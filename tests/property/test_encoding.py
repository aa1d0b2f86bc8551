"""Encoding without re-encoding: what is stored is what was put, whatever is changed in place between puts.

`Run` drives a saver as a graph does, with the objects of one put coming back in the next, and knows of every
checkpoint which bytes the serializer made of each channel at the moment of its put.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer, _msgpack_enc

from property.mutation import (
    Counted,
    Dumped,
    Loose,
    Note,
    Point,
    Sorted,
    change_dict,
    change_list,
    elements,
    messages,
    mutate,
    names,
    plain,
    scalars,
)
from stepwell import DiskFullError
from stepwell_langgraph import StepwellSaver

Encoded = tuple[str, bytes]
Lane = tuple[str, str]

PLAIN = JsonPlusSerializer()
ENCRYPTED = EncryptedSerializer.from_pycryptodome_aes(key=b"sixteen bytes ok")
# What the promise says: these are looked at in every put, all others once in so many puts.
ALWAYS_CHECKED = 128
ROTATION_PUTS = 32

# Pydantic says so when a field was given what its annotation does not allow; it dumps it all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


def decrypted(encoded: Encoded) -> Encoded:
    """Type and bytes as they were before encryption, if they were encrypted."""
    kind, _, cipher = encoded[0].partition("+")
    return (kind, ENCRYPTED.cipher.decrypt(cipher, encoded[1])) if cipher else encoded


def normal(encoded: Encoded) -> Encoded:
    """The bytes of a value after one round trip, in which pydantic validates it, for one."""
    return PLAIN.dumps_typed(PLAIN.loads_typed(decrypted(encoded)))


def config_of(lane: Lane, id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": lane[0], "checkpoint_ns": lane[1]}
    return {"configurable": configurable if id is None else {**configurable, "checkpoint_id": id}}


class Step:
    """One put: where, the very objects, and what the serializer made of them then.

    Attributes:
        decoded: Whether there may be objects in it that were read from a saver.
    """

    def __init__(
        self, lane: Lane, id: str, values: dict[str, Any], versions: dict[str, str], *, decoded: bool = False
    ) -> None:
        self.lane = lane
        self.id = id
        self.values = values
        self.versions = versions
        self.decoded = decoded
        self.encoded = {name: PLAIN.dumps_typed(value) for name, value in values.items()}


class Run:
    """A saver under test beside InMemorySaver, and every step that was put in the two."""

    def __init__(self, saver: StepwellSaver) -> None:
        self.saver = saver
        self.upstream = InMemorySaver()
        self.steps: list[Step] = []
        self._numbers = count(1)

    def put(
        self,
        lane: Lane,
        parent: Step | None,
        values: dict[str, Any],
        *,
        decoded: bool = False,
        still: frozenset[str] | set[str] = frozenset(),
        source: str = "loop",
        saver: StepwellSaver | None = None,
    ) -> Step:
        """Put the values under a parent.

        Args:
            lane: Thread and namespace.
            parent: The step to follow.
            values: The channels.
            decoded: Whether objects in them were read from a saver.
            still: Channels whose version does not move.
            source: The metadata's source.
            saver: The saver to put through.
        """
        number = next(self._numbers)
        before = parent.versions if parent else {}
        moved = {name: f"{number:032}.0" for name in values if name not in still or name not in before}
        versions = {name: moved.get(name) or before[name] for name in values}
        checkpoint: Any = {
            "v": 4,
            "id": f"1f0b0000-0000-6000-8000-{number:012x}",
            "ts": "2025-01-01T00:00:00+00:00",
            "channel_values": dict(values),
            "channel_versions": versions,
            "versions_seen": {},
            "updated_channels": sorted(moved),
        }
        step = Step(lane, checkpoint["id"], values, versions, decoded=decoded)
        config = config_of(lane, parent.id if parent else None)
        metadata: Any = {"source": source, "step": number, "parents": {}}
        (saver or self.saver).put(config, checkpoint, metadata, moved)
        self.upstream.put(config, checkpoint, metadata, moved)
        self.steps.append(step)
        return step

    def put_writes(self, step: Step, writes: list[tuple[str, Any]]) -> None:
        """Record what a task of the step returned."""
        self.saver.put_writes(config_of(step.lane, step.id), writes, f"task {next(self._numbers)}")

    def stored(self, step: Step) -> dict[str, Encoded]:
        """What the log holds of a step, as bytes, past every memory that a saver may have."""
        state = self.saver.log.thread(step.lane[0]).state(step.id, lane=step.lane[1])
        assert state is not None
        return {name: decrypted(encoded) for name, encoded in state.channels.items()}

    def assert_stored(self, step: Step) -> None:
        """What the log holds is what the serializer made at the put."""
        stored = self.stored(step)
        if step.decoded:
            # What was read may be written in other words: what counts is what it is read as.
            assert {name: normal(each) for name, each in stored.items()} == {
                name: normal(each) for name, each in step.encoded.items()
            }
        else:
            assert stored == step.encoded

    def assert_like_upstream(self) -> None:
        """Every step, read through a saver that remembers nothing, is what InMemorySaver shows."""
        reader = StepwellSaver(self.saver.log, serde=ENCRYPTED)
        for step in self.steps:
            found, expected = (
                saver.get_tuple(config_of(step.lane, step.id)).checkpoint["channel_values"]
                for saver in (reader, self.upstream)
            )
            assert {name: PLAIN.dumps_typed(value) for name, value in found.items()} == {
                name: PLAIN.dumps_typed(value) for name, value in expected.items()
            }
            for name, value in found.items():
                assert type(value) is type(expected[name])


# --- exact ---

LANES = (("1", ""), ("1", "sub"), ("2", ""))
CHANNELS = ("messages", "items", "files", "value")

contents = {
    "messages": st.lists(messages, max_size=5),
    "items": st.lists(elements, max_size=5),
    "files": st.dictionaries(names, elements, max_size=4),
    "value": st.one_of(elements, st.lists(st.integers(0, 2), max_size=40), st.dictionaries(st.integers(0, 2), scalars)),
}


def next_value(data: st.DataObject, name: str, value: Any, shared: list[Any]) -> Any:
    """What a channel holds next: the same object, the same container changed, a new one around the same objects."""
    kind = data.draw(st.sampled_from(["same", "changed", "new container", "new container", "shared", "other"]))
    if kind == "shared" and type(value) is list and shared:
        return [*value, data.draw(st.sampled_from(shared))]
    if kind == "other" or (kind != "same" and type(value) not in (list, dict)):
        return data.draw(contents[name])
    if kind == "new container":
        value = list(value) if type(value) is list else dict(value)
    if kind in ("changed", "new container"):
        own = messages if name == "messages" else elements
        (change_list if type(value) is list else change_dict)(data.draw, value, own)
    return value


@given(data=st.data())
def test_exact_stores_what_was_put(data: st.DataObject) -> None:
    """With `exact` each step holds, for ever, what the serializer made of the objects at its put, and upstream too."""
    with StepwellSaver.from_conn_string(":memory:", exact=True) as saver:
        run = Run(saver)
        savers = [saver, saver.with_allowlist([("some", "Type")])]
        tips: dict[Lane, Step] = {}
        for _ in range(data.draw(st.integers(2, 9))):
            lane = data.draw(st.sampled_from(LANES))
            own = [step for step in run.steps if step.lane == lane]
            tip = tips.get(lane)
            action = data.draw(st.sampled_from(["put", "put", "put", "fork", "resume", "writes", "serde", "look"]))
            match action:
                case "fork" if own:
                    tips[lane] = data.draw(st.sampled_from(own))
                case "resume" if tip:
                    found = data.draw(st.sampled_from(savers)).get_tuple(config_of(lane, tip.id))
                    held = found.checkpoint["channel_values"]
                    tips[lane] = Step(lane, tip.id, held, tip.versions, decoded=True)
                case "look" if tip:
                    found = saver.get_tuple(config_of(lane, tip.id))
                    for _ in range(3):
                        mutate(data.draw, found.checkpoint)
                case "writes" if tip:
                    returned = [item for value in tip.values.values() for item in _items(value)]
                    run.put_writes(tip, [("messages", item) for item in returned])
                case "serde":
                    for each in savers:
                        each.serde = ENCRYPTED if each.serde is not ENCRYPTED else PLAIN
                case _:
                    values = dict(tip.values) if tip else {}
                    shared = [item for step in run.steps for value in step.values.values() for item in _items(value)]
                    for name in CHANNELS:
                        if data.draw(st.integers(0, 9)) == 0:
                            values.pop(name, None)
                        else:
                            before = values.get(name, [] if name != "files" else {})
                            values[name] = next_value(data, name, before, shared)
                    for _ in range(data.draw(st.integers(0, 3))):
                        mutate(data.draw, values)
                    # `mutate` may have changed the dict of channels itself.
                    values = {name: value for name, value in values.items() if name in CHANNELS}
                    decoded = any(step.decoded for step in run.steps) or bool(tip and tip.decoded)
                    used = data.draw(st.sampled_from(savers))
                    tips[lane] = run.put(lane, tip, values, decoded=decoded, saver=used)
                    run.assert_stored(tips[lane])
                    mutate(data.draw, values[data.draw(st.sampled_from(sorted(values)))] if values else [])
        for step in run.steps:
            run.assert_stored(step)
        run.assert_like_upstream()
        assert saver.log.audit().breaches == []


def _items(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return list(value.values()) if isinstance(value, dict) else [value]


def test_exact_sees_a_large_value_whose_version_stands() -> None:
    """With `exact` a change deep in a large value is stored even if LangGraph says that nothing moved."""
    with StepwellSaver.from_conn_string(":memory:", exact=True) as saver:
        run = Run(saver)
        values = {"table": tuple([n] for n in range(5_000)), "numbers": list(range(5_000)), "messages": _messages(300)}
        tip = run.put(LANES[0], None, values)
        for change in range(3):
            values["table"][2_000].append(change)
            values["numbers"][2_000] = change
            values["messages"][2].content = f"{change}"
            tip = run.put(LANES[0], tip, values, still=set(values))
            run.assert_stored(tip)


# --- without exact: the promise ---


def _messages(count: int) -> list[Any]:
    """Messages, models, dataclasses and containers of all kinds in turn."""
    return [_element(number) for number in range(count)]


def _element(number: int) -> Any:
    call = {"name": "search", "args": {"q": f"{number}", "n": [1, 0]}, "id": f"c{number}", "type": "tool_call"}
    kinds = (
        lambda: HumanMessage(f"question {number}", id=None if number % 2 else f"{number}"),
        lambda: AIMessage("", tool_calls=[call], usage_metadata=dict.fromkeys(USAGE, number)),
        lambda: ToolMessage("found", tool_call_id=f"c{number}", additional_kwargs={"n": 1}),
        lambda: AIMessage([{"type": "text", "text": f"answer {number}"}], id=f"a{number}"),
        lambda: SystemMessage("be brief", response_metadata={"n": {"deep": [number]}}),
        lambda: HumanMessage("hi", custom={"seen": number}),
        lambda: Note(text=f"{number}", about={"n": 1}, inner=Note(text="inner")),
        lambda: Loose(text=f"{number}", more=[1]),
        lambda: Sorted(names={"a"}),
        lambda: Counted(text=f"{number}"),
        lambda: Dumped(text=f"{number}"),
        lambda: Point(number, [0]),
        lambda: {"number": number, "flags": [True, 0]},
        lambda: [number, {"k": 1.0}],
        lambda: {number},
    )
    return kinds[number % len(kinds)]()


USAGE = ("input_tokens", "output_tokens", "total_tokens")


class Promise:
    """Holds one lane of a saver without `exact` to what it promises, element by element.

    Attributes:
        announced: Identities of the objects that writes returned since the last put.
        begins: Whether the next put is the first of an invocation.
    """

    def __init__(self, run: Run) -> None:
        self.announced: set[int] = set()
        self.begins = True
        self._run = run
        self._last: dict[tuple[str, int], bytes] = {}
        self._late: dict[tuple[str, int], int] = {}
        self._held: list[Any] = []

    def check(self, step: Step) -> int:
        """Compare what is stored of the newest step with its objects; the number of those that are stored late."""
        stored = self._run.stored(step)
        last, late = {}, {}
        assert stored.keys() == step.values.keys()
        for name, value in step.values.items():
            rows = list(_rows(value, stored[name]))
            for place, (item, now, held) in enumerate(rows):
                key = (name, id(item))
                # What was read may be stored in other words: what counts is what it is read as.
                if held != now and normal(("msgpack", held)) != normal(("msgpack", now)):
                    late[key] = self._late.get(key, 0) + 1
                    where = f"{name}[{place}] of {len(rows)}: {item!r}"
                    assert held == self._last.get(key), f"never was what is stored: {where}"
                    assert not self.begins, f"late at the first put: {where}"
                    assert id(item) not in self.announced, f"late although a write returned it: {where}"
                    assert place < len(rows) - ALWAYS_CHECKED or len(rows) == 1, f"late among the last: {where}"
                    assert late[key] < ROTATION_PUTS, f"late for {late[key]} puts: {where}"
                last[key] = held
        self._last, self._late = last, late
        self._held = list(step.values.values())
        self.announced.clear()
        self.begins = False
        return len(late)


def _rows(value: Any, stored: Encoded) -> Iterator[tuple[Any, bytes, bytes]]:
    """The parts of a channel that are checked one by one: object, its encoding now, the encoding that is stored."""
    items: list[Any]
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        items, split = value, msgspec.msgpack.decode(stored[1], type=list[msgspec.Raw])
    elif isinstance(value, dict) and value:
        entries = msgspec.msgpack.decode(stored[1], type=dict[str, msgspec.Raw])
        assert list(entries) == list(value)
        items, split = list(value.values()), list(entries.values())
    else:
        yield value, PLAIN.dumps_typed(value)[1], stored[1]
        return
    assert len(items) == len(split)
    for item, held in zip(items, split, strict=True):
        yield item, _msgpack_enc(item), bytes(held)


@given(data=st.data(), seed=st.randoms(use_true_random=False))
# An example is long, as a shorter one would say nothing of the rotation; shrinking it would not end.
@settings(
    max_examples=max(settings().max_examples // 10, 1),
    phases=set(Phase) - {Phase.shrink},
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)
def test_the_promise_about_changes_in_place(data: st.DataObject, seed: Any) -> None:
    """Announced changes, those in the last 128, and all at the first put are stored at once, others within 32 puts."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        run = Run(saver)
        root: dict[str, Any] = {
            "messages": _messages(data.draw(st.sampled_from([200, 260, 400]))),
            "files": {f"{n}": _element(n) for n in range(data.draw(st.sampled_from([20, 160])))},
            "numbers": list(range(2_000)),
            "table": tuple([n] for n in range(900)),
        }
        # A sub-graph holds the same objects and takes its own steps.
        held = {LANES[0]: root, LANES[1]: {**root, "messages": root["messages"][:150]}}
        tips = {lane: run.put(lane, None, values) for lane, values in held.items()}
        promises = {lane: Promise(run) for lane in held}
        for lane, promise in promises.items():
            promise.check(tips[lane])
        for _ in range(data.draw(st.integers(40, 55))):
            lane = LANES[seed.random() < 0.2]
            promise, values, decoded = promises[lane], dict(held[lane]), False
            if seed.random() < 0.04:
                values = saver.get_tuple(config_of(lane, tips[lane].id)).checkpoint["channel_values"]
                values["table"] = tuple(values["table"])
                promise.begins = decoded = True
            for _ in range(seed.randrange(4)):
                _change_something(data, seed, values)
            _change_containers(seed, values)
            if seed.random() < 0.3:
                returned = seed.choice(_items(values[seed.choice(["messages", "files"])]))
                wrapped = seed.choice([returned, [returned], (returned,), {"k": returned}])
                run.put_writes(tips[lane], [("messages", wrapped)])
                promise.announced.add(id(returned))
                mutate(data.draw, returned)
            source = seed.choice(["loop"] * 30 + ["input", "update", "fork"])
            promise.begins = promise.begins or source != "loop"
            still = {name for name in values if name in ("numbers", "table") or seed.random() < 0.2}
            still = set() if decoded else still
            tips[lane] = run.put(lane, tips[lane], values, decoded=decoded, still=still, source=source)
            held[lane] = values
            promise.check(tips[lane])
        assert saver.log.audit().breaches == []


def _change_containers(seed: Any, values: dict[str, Any]) -> None:
    """What reducers do to a list and a dict: put after put, all of it is seen."""
    if seed.random() < 0.8:
        values["messages"] = [*values["messages"], *[_element(seed.randrange(1000)) for _ in range(2)]]
    if seed.random() < 0.1:
        index = seed.randrange(len(values["messages"]))
        values["messages"] = values["messages"][:index] + values["messages"][index + 1 :]
    if seed.random() < 0.1:
        values["messages"].insert(seed.randrange(len(values["messages"])), _element(seed.randrange(1000)))
    if seed.random() < 0.1:
        values["messages"] = values["messages"][::-1]
    if seed.random() < 0.2:
        values["files"] = {**values["files"], f"new {seed.random()}": _element(seed.randrange(1000))}


def _change_something(data: st.DataObject, seed: Any, values: dict[str, Any]) -> None:
    """One change in place, anywhere: in an element, or in a value that is stored as a whole."""
    match seed.choice(["messages", "messages", "files", "numbers", "table"]):
        case "numbers":
            values["numbers"][seed.randrange(2_000)] = seed.choice([1, True, 1.0])
        case "table":
            values["table"][seed.randrange(900)].append(seed.choice([1, True, 1.0]))
        case name:
            mutate(data.draw, seed.choice(_items(values[name])))


def test_a_change_that_nothing_announces_waits_for_its_turn() -> None:
    """The rotation is at work: such a change is stored late, by the 32nd put, and no other element is touched."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        run, lane = Run(saver), LANES[0]
        promise, values = Promise(run), {"messages": _messages(400)}
        tip = run.put(lane, None, values)
        promise.check(tip)
        late = []
        for message in values["messages"][:200]:
            change(message)
        for _ in range(ROTATION_PUTS):
            more = HumanMessage("more")
            run.put_writes(tip, [("messages", [more])])
            values = {"messages": [*values["messages"], more]}
            tip = run.put(lane, tip, values)
            late.append(promise.check(tip))
        assert late[0] > 100
        assert late == sorted(late, reverse=True)
        assert late[-1] == 0


def change(item: Any) -> None:
    """One change in place to anything that `_element` makes."""
    match item:
        case BaseMessage():
            item.additional_kwargs["changed"] = True
        case Note() | Loose() | Dumped():
            item.text += "!"
        case Counted():
            item._seen += 1
        case Sorted():
            item.names.add("z")
        case Point():
            item.tags.append(1)
        case dict():
            item["changed"] = True
        case list():
            item.append(True)
        case set():
            item.add("z")


@pytest.mark.parametrize("index", [0, 1, 150, 271, 399])
def test_objects_handed_out_are_checked_at_the_first_put(index: int) -> None:
    """Whatever is changed in what get_tuple returned is in the first put that brings it back."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        run, lane = Run(saver), LANES[0]
        tip = run.put(lane, None, {"messages": _messages(400), "files": {f"{n}": _element(n) for n in range(200)}})
        for _ in range(3):
            values = saver.get_tuple(config_of(lane)).checkpoint["channel_values"]
            change(values["messages"][index])
            change(values["files"][f"{index % 200}"])
            values["messages"] = [*values["messages"], HumanMessage("next")]
            tip = run.put(lane, tip, values, decoded=True)
            run.assert_stored(tip)


def test_an_announcement_is_for_the_branch_that_it_was_made_on() -> None:
    """A put on one branch does not use up what a write announced for the next put on another."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        run, lane = Run(saver), LANES[0]
        messages = _messages(400)
        root = run.put(lane, None, {"messages": _messages(3)})
        one = run.put(lane, root, {"messages": messages})
        other = run.put(lane, root, {"messages": _messages(4)})
        run.put_writes(one, [("messages", [messages[0]])])
        change(messages[0])
        run.put(lane, other, {"messages": _messages(5)})
        run.assert_stored(run.put(lane, one, {"messages": [*messages, HumanMessage("next")]}))


# --- what is stored stays ---


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.stepwell"


def _reopened(path: Path, run: Run) -> Run:
    """The same steps, seen through the file opened again."""
    run.saver.close()
    run.saver = StepwellSaver.from_conn_string(path)
    return run


@given(data=st.data())
@settings(max_examples=max(settings().max_examples // 4, 1))
def test_close_leaves_what_the_last_put_looked_at(data: st.DataObject) -> None:
    """What happens after the last put to objects that it looked at reaches no stored step, at close neither."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "agents.stepwell"
        run = Run(StepwellSaver.from_conn_string(path))
        values: dict[Lane, dict[str, Any]] = {}
        tips: dict[Lane, Step] = {}
        for number in range(data.draw(st.integers(1, 4))):
            for lane in LANES[: data.draw(st.integers(1, 3))]:
                own = values.setdefault(lane, {"messages": [], "files": {}, "value": data.draw(elements)})
                own["messages"] = [*own["messages"], *data.draw(st.lists(elements, max_size=4))]
                own["files"] = {**own["files"], f"{number}": data.draw(elements)}
                tips[lane] = run.put(lane, tips.get(lane), dict(own))
                mutate(data.draw, own[data.draw(st.sampled_from(sorted(own)))])
        run = _reopened(path, run)
        for step in run.steps:
            run.assert_stored(step)
        assert run.saver.log.audit().breaches == []
        run.saver.close()


def _run_with_late_changes(path: Path) -> tuple[Run, Step]:
    """A run whose last put did not look at all that had been changed before; its last step."""
    run = Run(StepwellSaver.from_conn_string(path))
    promise, lane = Promise(run), LANES[0]
    values = {
        "messages": _messages(400),
        "files": {f"{number}": _element(number) for number in range(300)},
        "table": tuple([number] for number in range(900)),
    }
    tip = run.put(lane, None, values)
    promise.check(tip)
    for item in [*values["messages"], *values["files"].values(), *values["table"]]:
        change(item)
    more, file = HumanMessage("more"), _element(1)
    run.put_writes(tip, [("messages", [more]), ("files", {"more": file})])
    values = {**values, "messages": [*values["messages"], more], "files": {**values["files"], "more": file}}
    tip = run.put(lane, tip, values, still={"table"})
    assert promise.check(tip) > 300
    return run, tip


def test_close_stores_what_the_last_put_did_not_look_at(path: Path) -> None:
    """Changes that the rotation had not come to are in the head after closing; the step before stays as it was."""
    run, _ = _run_with_late_changes(path)
    run = _reopened(path, run)
    for step in run.steps:
        run.assert_stored(step)
    assert run.saver.log.audit().breaches == []
    run.saver.close()


def test_close_without_a_change_writes_nothing(path: Path) -> None:
    """Closing after puts and reads leaves the log with the events that it had."""
    for serde in (PLAIN, ENCRYPTED):
        run = Run(StepwellSaver.from_conn_string(path, serde=serde))
        tip = run.put(LANES[0], None, {"messages": _messages(40), "value": Point(1), "numbers": [1, 2]})
        run.put(LANES[0], tip, tip.values, still=set(tip.values))
        run.saver.get_tuple(config_of(LANES[0], tip.id))
        before = run.saver.log.thread(LANES[0][0]).summary()
        assert _reopened(path, run).saver.log.thread(LANES[0][0]).summary() == before
        run.saver.delete_thread(LANES[0][0])
        run.saver.close()


def test_a_reader_of_the_head_does_not_keep_close_from_it(path: Path) -> None:
    """What the last put did not look at is stored at close even if the head was read in between."""
    run, tip = _run_with_late_changes(path)
    run.saver.get_tuple(config_of(LANES[0]))
    _reopened(path, run).assert_stored(tip)
    run.saver.close()


def test_late_changes_that_could_not_be_stored_are_not_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full when a head is read, the next put stores what could not be stored then."""
    run, tip = _run_with_late_changes(path)

    def full(operations: object) -> list[Any]:
        raise DiskFullError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(run.saver.log.storage, "commit", full)
        run.saver.get_tuple(config_of(LANES[0]))
    more = HumanMessage("still more")
    run.put_writes(tip, [("messages", [more]), ("files", {})])
    values = {**tip.values, "messages": [*tip.values["messages"], more]}
    run.assert_stored(run.put(LANES[0], tip, values))
    run.saver.close()


def test_close_leaves_what_only_was_read(path: Path) -> None:
    """Objects that get_tuple handed out and nobody put may be changed at will: no stored step shows it."""
    run = Run(StepwellSaver.from_conn_string(path))
    first = run.put(LANES[0], None, {"messages": _messages(20), "files": {"a": {"n": 1}}})
    run.put(LANES[0], first, {"messages": _messages(21), "files": {"a": {"n": 1}}})
    run = _reopened(path, run)
    for step in run.steps:
        found = run.saver.get_tuple(config_of(step.lane, step.id)).checkpoint["channel_values"]
        for item in [*found["messages"], *found["files"].values()]:
            change(item)
    run = _reopened(path, run)
    for step in run.steps:
        run.assert_stored(step)
    run.saver.close()


def test_a_log_that_is_only_read_can_be_closed(path: Path) -> None:
    """Changing what a read-only saver handed out neither reaches the file nor disturbs its close."""
    run = Run(StepwellSaver.from_conn_string(path))
    step = run.put(LANES[0], None, {"messages": _messages(20)})
    run.saver.close()
    reader = StepwellSaver(type(run.saver.log).open(path, read_only=True))
    for item in reader.get_tuple(config_of(LANES[0])).checkpoint["channel_values"]["messages"]:
        change(item)
    reader.close()
    run.saver = StepwellSaver.from_conn_string(path)
    run.assert_stored(step)
    run.saver.close()


def test_close_leaves_the_ends_of_other_branches(path: Path) -> None:
    """A branch that was left keeps its end as it was put, whatever becomes of its objects."""
    run, left = _run_with_late_changes(path)
    held = run.stored(left)
    head = run.put(LANES[0], run.steps[0], {"messages": _messages(3)})
    for item in left.values["messages"]:
        change(item)
    run = _reopened(path, run)
    assert run.stored(left) == held
    run.assert_stored(head)
    run.saver.close()


def test_what_was_put_and_what_is_handed_out_are_apart() -> None:
    """Nothing that is done to the objects of a put or of a read changes what any later read returns."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        run, lane = Run(saver), LANES[0]
        tip = None
        for number in range(6):
            values = {"messages": _messages(20 + number), "files": {f"{n}": _element(n) for n in range(15)}}
            tip = run.put(lane, tip, values, source="input")
        handed_out = [saver.get_tuple(config_of(lane)), *saver.list(config_of(lane))]
        for found in handed_out:
            for item in [*found.checkpoint["channel_values"]["messages"], *_items(found.checkpoint["channel_values"])]:
                change(item)
            found.checkpoint["channel_versions"].clear()
            found.metadata.clear()
        for step in run.steps:
            for item in step.values["messages"]:
                change(item)
            step.values["files"].clear()
        for step in run.steps:
            run.assert_stored(step)
        for found in saver.list(config_of(lane)):
            assert len(found.checkpoint["channel_values"]["files"]) == 15
            assert found.metadata["source"] == "input"


@given(values=st.lists(plain, min_size=1, max_size=4))
def test_writes_are_stored_as_they_were(values: list[Any]) -> None:
    """A write shows what was returned when it was recorded, whatever becomes of the object."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        run, lane = Run(saver), LANES[0]
        tip = run.put(lane, None, {"messages": []})
        before = [normal(PLAIN.dumps_typed(value)) for value in values]
        message = HumanMessage("hi", additional_kwargs={"values": values})
        run.put_writes(tip, [("messages", message)])
        message.id = "given"
        values.append("more")
        found = saver.get_tuple(config_of(lane)).pending_writes[0][2]
        assert found.id is None
        assert [PLAIN.dumps_typed(value) for value in found.additional_kwargs["values"]] == before


def test_lanes_are_put_from_many_threads() -> None:
    """Threads that put their own lanes with objects that they share store, each, what they put."""
    shared = _messages(150)
    with StepwellSaver.from_conn_string(":memory:") as saver:
        runs = [Run(saver) for _ in range(4)]
        failed: list[BaseException] = []

        def drive(number: int) -> None:
            try:
                tip, own = None, list(shared)
                for _ in range(40):
                    own = [*own, HumanMessage(f"{number}")]
                    tip = runs[number].put((f"{number % 2}", f"{number}"), tip, {"messages": own, "all": list(shared)})
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=drive, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        for run in runs:
            for step in run.steps:
                run.assert_stored(step)
        assert saver.log.audit().breaches == []


def test_copies_share_nothing() -> None:
    """A copied thread goes on from the same objects without either thread seeing the other's changes."""
    with StepwellSaver.from_conn_string(":memory:") as saver:
        run = Run(saver)
        values = {"messages": _messages(200)}
        tip = run.put(("1", ""), None, values)
        saver.copy_thread("1", "2")
        copied = copy.copy(tip)
        copied.lane = ("2", "")
        change(values["messages"][199])
        grown = {"messages": [*values["messages"], HumanMessage("next")]}
        steps = [run.put(("2", ""), copied, grown), run.put(("1", ""), tip, grown)]
        for step in [tip, copied, *steps]:
            run.assert_stored(step)
