"""A branch once more, step by step: what each changed, what its tasks wrote, and what the state was then."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from stepwell.events import StepCommitted
from stepwell.fold import EMPTY, State
from stepwell.history import PAGE_STEPS, History, Link, Step, TaskWrites, View, changed_channels, step_number
from stepwell.inspect import safe_text
from stepwell.patch import Merge
from stepwell.storage import Found

_NANOSECONDS = 1_000_000_000


class Replayed:
    """A step as it is come by.

    Attributes:
        step: The step.
        event: What was appended for it.
        state: What its lane holds after it; each channel is decoded when it is asked for.
        elapsed_seconds: Time since the step before it was committed; None for the first.
    """

    def __init__(
        self, history: History, link: Link, before: State, state: State, ran_on: Found | None, elapsed: float | None
    ) -> None:
        self.step: Step = link.step
        self.event: StepCommitted = link.event
        self.state = View(self.step, state, history.payloads)
        self.elapsed_seconds = elapsed
        self._history = history
        self._before = before
        self._ran_on = ran_on

    @property
    def sequence(self) -> int:
        """The step's position in the thread."""
        return self.step.sequence

    @property
    def step_id(self) -> str:
        """The step's name."""
        return self.step.step_id

    @property
    def parent_id(self) -> str | None:
        """The name of the step that it follows."""
        return self.step.parent_id

    @property
    def lane(self) -> str:
        """The lane that it belongs to."""
        return self.step.lane

    @property
    def created_at(self) -> int:
        """Unix time in nanoseconds at which it was committed."""
        return self.step.created_at

    @property
    def patch(self) -> Merge:
        """What it changed in the channels, as it is stored."""
        return self.event.channels

    @property
    def changed(self) -> list[str]:
        """The channels that it changed."""
        return changed_channels(self.event.channels)

    @cached_property
    def number(self) -> int | None:
        """Its number on the branch, as LangGraph counts."""
        return step_number(self.state.state, self._history.payloads)

    @property
    def metadata(self) -> dict[str, Any]:
        """Its metadata, as LangGraph has them."""
        return self.state.metadata

    @property
    def source(self) -> str | None:
        """What it came from: "input", "loop", "update" or "fork"; None where the log does not say."""
        return self.state.source

    @cached_property
    def writes(self) -> list[TaskWrites]:
        """What was written for it, by task: it took this over."""
        if self._ran_on is None:
            return []
        return self._history.taken(self._ran_on.writes, self._before, self.source)

    def __repr__(self) -> str:
        return safe_text(f"<step {self.number} (#{self.sequence}) of {self.lane!r}: {', '.join(self.changed)}>")


def replay(history: History, lane: int, end: Link, since: int | None = None) -> Iterator[Replayed]:
    """The steps of a branch, oldest first; those after `since`, if that is given, or all."""
    sequences = history.branch(lane, end, since)
    last, earlier = EMPTY, None
    if since is not None:
        last = history.states.state(history.number, since)
        earlier, sequences = last.created_at, sequences[1:]
    for start in range(0, len(sequences), PAGE_STEPS):
        links = history.links(sequences[start : start + PAGE_STEPS])
        parents = history.found(lane, (link.event.parent_id or "" for link in links))
        for (link, before, state), ran_on in zip(history.fold(links, last), parents, strict=True):
            created_at = link.event.created_at
            elapsed = None if earlier is None else (created_at - earlier) / _NANOSECONDS
            yield Replayed(history, link, before, state, ran_on if link.event.parent_id is not None else None, elapsed)
            last, earlier = state, created_at
