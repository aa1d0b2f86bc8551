"""A state machine: whatever is done to a log in a file, every state is what a model of plain Python says.

The model holds whole states; it knows nothing of patches, references or sequences that a pruning gives out.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from building import drop_bases
from property.payloads import edited, pack, snapshot, structures
from stepwell import (
    Log,
    Sequence,
    Snapshot,
    StepCommitted,
    Thread,
    WritesRecorded,
    apply,
    changes,
    compose,
    folding,
    parse,
)
from stepwell import reader as reading
from stepwell.events import Event, Write
from stepwell.fold import EMPTY, fold
from stepwell.patch import Map, Merge, Value, payload_of
from stepwell.writer import Ticket

THREADS = ("1", "12")
LANES = ("", "", "sub")
STEPS = tuple(f"s{number}" for number in range(7))
CHANNELS = ("messages", "files", "value")
Content = dict[str, tuple[str, bytes]]


@dataclass
class ModelStep:
    """A step with all that its lane holds after it."""

    step_id: str
    parent: str | None
    lane: str
    values: dict[str, Any]
    channels: Content
    fields: Content
    hidden: bool
    created_at: int
    sequence: int = 0


@dataclass
class ModelWrites:
    """What a task wrote."""

    step_id: str
    lane: str
    task: str
    index: int
    contents: list[tuple[str, bytes]]


@dataclass
class ModelThread:
    """A thread as what happened in it, in order."""

    happened: list[ModelStep | ModelWrites] = field(default_factory=list)

    def all_steps(self, lane: str | None = None) -> list[ModelStep]:
        """Every step that was committed, hidden and replaced ones too."""
        return [e for e in self.happened if isinstance(e, ModelStep) and (lane is None or e.lane == lane)]

    def shown(self, lane: str | None = None) -> list[ModelStep]:
        """The first commit of each step that lists show, oldest first."""
        first: dict[tuple[str, str], ModelStep] = {}
        for each in self.all_steps(lane):
            if not each.hidden:
                first.setdefault((each.lane, each.step_id), each)
        return list(first.values())

    def find(self, lane: str, step_id: str) -> ModelStep | None:
        """What a step shows: its newest commit."""
        found = [each for each in self.all_steps(lane) if each.step_id == step_id and not each.hidden]
        return found[-1] if found else None

    def writes(self, lane: str, step_id: str) -> list[tuple[str, int, str, bytes]]:
        """The writes that count, in order."""
        kept: dict[tuple[str, int], tuple[str, bytes]] = {}
        for each in self.happened:
            if isinstance(each, ModelWrites) and (each.lane, each.step_id) == (lane, step_id):
                for place, content in enumerate(each.contents, each.index):
                    if place < 0 or (each.task, place) not in kept:
                        kept[each.task, place] = content
        return [(task, place, *content) for (task, place), content in sorted(kept.items())]

    def pruned(self, keep: list[ModelStep], retain: dict[int, frozenset[str]]) -> ModelThread:
        """What a pruning leaves."""
        firsts = {(each.lane, each.step_id): each.sequence for each in reversed(self.shown())}
        kept: list[ModelStep] = []
        for each in self.all_steps():
            first = each.sequence if each.hidden else firsts[each.lane, each.step_id]
            if any(each is one for one in keep):
                kept.append(replace(each, sequence=first * 10**6 + each.sequence))
            elif each.sequence in retain:
                channels = retain[each.sequence]
                left = {name: content for name, content in each.channels.items() if name in channels}
                values = {name: each.values[name] for name in left}
                place = first * 10**6 + each.sequence
                kept.append(replace(each, channels=left, values=values, fields={}, hidden=True, sequence=place))
        kept.sort(key=lambda each: each.sequence)
        whole = {(each.lane, each.step_id) for each in keep}
        partly = {(e.lane, e.step_id): retain[e.sequence] for e in self.all_steps() if e.sequence in retain}
        committed = {(each.lane, each.step_id) for each in self.all_steps()}
        after = ModelThread(list(kept))
        for each in self.happened:
            if isinstance(each, ModelWrites):
                place = (each.lane, each.step_id)
                if place in whole or place not in committed or (place in partly and "w" in partly[place]):
                    after.happened.append(each)
        return after


class LogMachine(RuleBasedStateMachine):
    """Does the same to the model and to a log in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.patching = pytest.MonkeyPatch()
        # States are kept at every sealing, not only where it pays.
        self.patching.setattr(folding, "FEWEST_FOLDED_STEPS", 1)
        self.patching.setattr(folding, "SHARE", 1 << 30)
        self.log = Log.open(self.folder / "log")
        self.model: dict[str, ModelThread] = {}
        self.pending: list[tuple[Ticket, list[ModelStep | ModelWrites]]] = []
        self.clock = 1

    @initialize(seed=st.integers(0, 10**6))
    def begin(self, seed: int) -> None:
        """What is checked at the end is chosen by chance, too."""
        self.random = random.Random(seed)

    # --- appends ---

    @rule(data=st.data(), name=st.sampled_from(THREADS), count=st.integers(1, 3))
    def append(self, data: st.DataObject, name: str, count: int) -> None:
        """Steps based on any earlier ones, their ids new or not, and writes, in one append."""
        self._settle()
        happened: list[ModelStep | ModelWrites] = []
        events: list[Event] = []
        for _ in range(count):
            made, event = data.draw(st.sampled_from([self._step, self._step, self._writes]))(data, name)
            happened.append(made)
            events.append(event)
        # Not awaited yet: appends that follow at once are committed with it.
        self.pending.append((self.log.thread(name).begin_append(events), happened))

    def _step(self, data: st.DataObject, name: str) -> tuple[ModelStep, Event]:
        thread = self.model.get(name, ModelThread())
        lane = data.draw(st.sampled_from(LANES))
        bases = thread.all_steps(lane)
        base = data.draw(st.sampled_from([None, *bases, *bases[-1:] * 3])) if bases else None
        values = dict(base.values) if base else {}
        for channel in data.draw(st.sets(st.sampled_from(CHANNELS), max_size=2)):
            if channel not in values:
                values[channel] = data.draw(structures)
            elif data.draw(st.integers(0, 9)):
                values[channel] = data.draw(edited(values[channel]))
            else:
                del values[channel]
        wrapped = data.draw(st.booleans())
        channels = {
            channel: ("msgpack", snapshot(pack(value)) if wrapped and channel == "files" else pack(value))
            for channel, value in values.items()
        }
        self.clock += 1
        fields = {"clock": ("int", b"%d" % self.clock), "same": ("text", b"x" * 100)}
        made = ModelStep(
            data.draw(st.sampled_from(STEPS)),
            base.step_id if base else None,
            lane,
            values,
            channels,
            fields,
            data.draw(st.integers(0, 9)) == 0,
            self.clock,
        )
        old = self.log.thread(name).state(base.sequence) if base else None
        patch = changes(made.channels, old.values if old else None)
        old_fields = {key: parse(*content) for key, content in old.fields.items()} if old else None
        event = StepCommitted(
            made.step_id,
            made.parent,
            patch,
            changes(made.fields, old_fields),
            lane,
            Sequence(base.sequence if base else 0),
            made.hidden,
            made.created_at,
        )
        return made, event

    def _writes(self, data: st.DataObject, name: str) -> tuple[ModelWrites, Event]:
        thread = self.model.get(name, ModelThread())
        # Often the very bytes that a step holds, as when the next step takes a write over.
        held = [content for each in thread.all_steps() for content in each.channels.values()]
        contents = [("msgpack", pack(value)) for value in data.draw(st.lists(structures, max_size=2))]
        contents += data.draw(st.lists(st.sampled_from(held), max_size=2)) if held else []
        lane, step_id = data.draw(st.sampled_from(LANES)), data.draw(st.sampled_from(STEPS))
        made = ModelWrites(step_id, lane, data.draw(st.sampled_from("ab")), data.draw(st.integers(-2, 1)), contents)
        writes = tuple(Write(made.index + n, "w", parse(*content)) for n, content in enumerate(contents))
        return made, WritesRecorded(step_id, made.task, "", writes, lane)

    @rule()
    def settle(self) -> None:
        """Wait for what was appended."""
        self._settle()

    def _settle(self) -> None:
        for ticket, happened in self.pending:
            for each, sequence in zip(happened, ticket.result().sequences, strict=True):
                if isinstance(each, ModelStep):
                    each.sequence = sequence
            thread = self.model.setdefault(ticket.operation.thread_id, ModelThread())  # type: ignore[union-attr]
            thread.happened += happened
        self.pending.clear()

    @rule(data=st.data(), name=st.sampled_from(THREADS))
    def append_at_once(self, data: st.DataObject, name: str) -> None:
        """Several appends of the same content, submitted before any is committed."""
        self._settle()
        for _ in range(3):
            made, event = self._writes(data, name)
            self.pending.append((self.log.thread(name).begin_append([event]), [made]))
        same, _ = self._step(data, name)
        for _ in range(2):
            step = replace(same, parent=None)
            event = StepCommitted(
                step.step_id,
                None,
                changes(step.channels),
                changes(step.fields),
                step.lane,
                hidden=step.hidden,
                created_at=step.created_at,
            )
            self.pending.append((self.log.thread(name).begin_append([event]), [step]))

    # --- whole threads ---

    @rule(name=st.sampled_from(THREADS), chance=st.integers(0, 3))
    def delete(self, name: str, chance: int) -> None:
        """Delete a thread; not too often."""
        if chance == 0:
            self._settle()
            self.log.thread(name).delete()
            self.model.pop(name, None)

    @rule(name=st.sampled_from(THREADS))
    def copy(self, name: str) -> None:
        """Copy a thread in the place of the other."""
        self._settle()
        other = THREADS[1 - THREADS.index(name)]
        if name in self.model and other not in self.model:
            self.log.thread(name).copy_to(other)
            self.model[other] = ModelThread([replace(each) for each in self.model[name].happened])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), name=st.sampled_from(THREADS))
    def prune(self, data: st.DataObject, name: str) -> None:
        """Keep some steps, and some more hidden."""
        self._settle()
        thread = self.model.get(name)
        steps = thread.all_steps() if thread else []
        if thread is None or not steps:
            return
        chosen = data.draw(st.lists(st.sampled_from(range(len(steps))), min_size=1, unique=True))
        keep = [steps[index] for index in chosen]
        spare = [each for index, each in enumerate(steps) if index not in chosen]
        retain: dict[int, frozenset[str]] = {}
        for each in data.draw(st.lists(st.sampled_from(spare), max_size=2)) if spare else []:
            # A step that is shown is shown whole: its writes cannot be kept in part.
            if all((each.lane, each.step_id) != (one.lane, one.step_id) for one in keep):
                retain[each.sequence] = data.draw(st.frozensets(st.sampled_from([*CHANNELS, "w"])))
        self.log.thread(name).prune([each.sequence for each in keep], retain=retain)
        self.model[name] = after = thread.pruned(keep, retain)
        found = [(q, e) for q, e in self.log.thread(name).events() if isinstance(e, StepCommitted)]
        expected = [(each.lane, each.step_id, each.hidden) for each in after.all_steps()]
        assert [(e.lane, e.step_id, e.hidden) for _, e in found] == expected
        for each, (sequence, _) in zip(after.all_steps(), found, strict=True):
            each.sequence = sequence

    @rule(after=st.sampled_from([3, 10, folding.SEAL_AFTER_EVENTS]))
    def reopen(self, after: int) -> None:
        """Close the log and open it again; from now on it may seal by itself."""
        self.log.close()
        self._settle()
        self.log = Log.open(self.folder / "log", seal_after_events=after)

    # --- what changes nothing ---

    @rule(name=st.sampled_from([None, *THREADS]), settle=st.booleans())
    def seal(self, name: str | None, settle: bool) -> None:
        """Seal all that is loose, while appends are on their way or not."""
        if settle:
            self._settle()
        self.log.seal(name)

    @rule(chance=st.integers(0, 2))
    def forget_bases(self, chance: int) -> None:
        """Without the states that are kept everything is read from the events."""
        if chance == 0:
            with self.log._folding.turn:
                drop_bases(self.log.storage)
            self.log.reader = reading.Reader(self.log.storage)

    # --- what must hold ---

    @invariant()
    def heads(self) -> None:
        """The heads of all lanes are as the model says, all the time."""
        if not self.pending:
            for name, thread in self.model.items():
                for lane in set(LANES):
                    shown = thread.shown(lane)
                    head = thread.find(lane, shown[-1].step_id) if shown else None
                    self._check_state(self.log.thread(name).state(lane=lane), head)

    def teardown(self) -> None:
        self._settle()
        try:
            assert self.log.audit().breaches == []
            names = [found.thread_id for found in self.log.threads()]
            assert sorted(names) == sorted(self.model)
            with Log.open(self.folder / "log") as other:
                for log in (self.log, other):
                    for name, thread in self.model.items():
                        self._check_thread(log.thread(name), thread)
            for name in self.model:
                self._check_patches(self.log.thread(name))
        finally:
            self.patching.undo()
            self.log.close()
            shutil.rmtree(self.folder)

    def _check_thread(self, thread: Thread, model: ModelThread) -> None:
        for each in model.all_steps():
            self._check_state(thread.state(each.sequence), each)
        for lane in (None, *set(LANES)):
            found = [(each.sequence, each.lane, each.step_id) for each in thread.steps(lane=lane)]
            assert found == [(each.sequence, each.lane, each.step_id) for each in model.shown(lane)][::-1]
        for lane in set(LANES):
            for step_id in STEPS:
                self._check_state(thread.state(step_id, lane=lane), model.find(lane, step_id))
                writes = [
                    (each.task_id, each.write.index, each.write.value.type, payload_of(each.write.value, _unread))
                    for each in thread.writes(step_id, lane=lane)
                ]
                assert writes == model.writes(lane, step_id)

    def _check_state(self, state: Snapshot | None, model: ModelStep | None) -> None:
        assert (state is None) == (model is None)
        if state is not None and model is not None:
            assert (state.sequence, state.step_id, state.lane) == (model.sequence, model.step_id, model.lane)
            assert (state.parent_id, state.created_at) == (model.parent, model.created_at)
            assert state.channels == model.channels
            assert state.fields == model.fields

    def _check_patches(self, thread: Thread) -> None:
        """Folding the steps of a branch one by one is the same as composing any runs of them, content unread."""
        row = thread.row()
        assert row is not None
        storage = self.log.storage
        events: dict[int, StepCommitted] = {
            sequence: event
            for sequence, event in reading.events(storage, row.number, 0, 1 << 62)
            if isinstance(event, StepCommitted)
        }
        for sequence in events:
            branch: list[StepCommitted] = []
            following = sequence
            while following:
                branch.insert(0, events[following])
                following = events[following].base
            state = EMPTY
            for event in branch:
                state = fold(state, event, Sequence(sequence))
            runs: list[Merge] = []
            for event in branch:
                if runs and self.random.random() < 0.6:
                    composed = compose(runs[-1], event.channels)
                    assert isinstance(composed, Merge)
                    runs[-1] = composed
                else:
                    runs.append(event.channels)
            value: Value = Map("", False, {})
            for run in runs:
                value = apply(run, value)
            assert isinstance(value, Map)
            payloads = reading.Payloads(storage, row.number)
            assert reading.typed(value.entries, payloads) == reading.typed(state.channels, payloads)


def _unread(ref: object) -> bytes:
    raise AssertionError(f"{ref} was handed out")


LogMachine.TestCase.settings = settings(
    settings.default, max_examples=max(settings.default.max_examples // 4, 1), stateful_step_count=20
)
TestLogMachine = LogMachine.TestCase
