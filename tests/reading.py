"""Threads for the tests of reading: steps as an agent leaves them, with their states as plain data beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from stepwell import Log, Sequence, Snapshot, StepCommitted, Thread, Write, WritesRecorded, changes, parse
from stepwell.inspect import Typed, encode

HUMAN = "langchain_core.messages.human.HumanMessage"


def message(id_: str, content: str, **more: Any) -> Typed:
    """A message as data, long enough to be stored by itself."""
    fields = {"content": content, "additional_kwargs": {}, "type": "human", "id": id_, "name": "n" * 40, **more}
    return Typed(HUMAN, fields, (5, "model_validate_json"))


class Book:
    """One thread, and what each of its steps shows.

    Attributes:
        states: The channels after each step, by its id.
        parents: The step that each follows, by its id.
        places: The sequence of each step.
    """

    def __init__(self, log: Log, thread_id: str = "t") -> None:
        self.thread: Thread = log.thread(thread_id)
        self.states: dict[str, dict[str, Any]] = {}
        self.parents: dict[str, str | None] = {}
        self.places: dict[str, int] = {}

    def step(
        self,
        step_id: str,
        channels: Mapping[str, Any],
        parent: str | None = None,
        *,
        source: str = "loop",
        number: int | None = None,
        lane: str = "",
        counters: Mapping[str, list[int]] | None = None,
    ) -> int:
        """Append a step that follows another and shows these channels."""
        before: Snapshot | None = None if parent is None else self.thread.state(parent, lane=lane)
        if number is None:
            number = self.depth(parent)
        fields: dict[str, Any] = {
            "metadata": {"source": source, "step": number, "parents": {}},
            "checkpoint": {"v": 4, "id": step_id, "ts": "2024-01-01T00:00:00+00:00", "channel_versions": {}},
        }
        if counters:
            fields["metadata"]["counters_since_delta_snapshot"] = dict(counters)
        event = StepCommitted(
            step_id,
            parent,
            changes({name: encode(value) for name, value in channels.items()}, before.values if before else None),
            changes({name: encode(value) for name, value in fields.items()}),
            lane,
            before.sequence if before else Sequence(0),
        )
        sequence = self.thread.append([event])
        self.states[step_id], self.parents[step_id] = dict(channels), parent
        self.places[step_id] = sequence
        return sequence

    def wrote(self, step_id: str, node: str, writes: Mapping[str, Any], *, path: str = "", lane: str = "") -> int:
        """Append what a task wrote on a step."""
        recorded = tuple(Write(i, name, parse(*encode(value))) for i, (name, value) in enumerate(writes.items()))
        path = path or f"~__pregel_pull, {node}"
        return self.thread.append([WritesRecorded(step_id, f"task-{node}-{step_id}", path, recorded, lane)])

    def depth(self, parent: str | None) -> int:
        return -1 if parent is None else self.depth(self.parents[parent]) + 1

    def branch(self, step_id: str | None) -> list[str]:
        """The ids of a branch, oldest first."""
        line: list[str] = []
        while step_id is not None:
            line.append(step_id)
            step_id = self.parents[step_id]
        return line[::-1]


def packed(value: Any) -> bytes:
    """Some plain data in msgpack."""
    return msgspec.msgpack.encode(value)
