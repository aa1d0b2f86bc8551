"""Which states of a run are looked at again, and how they are known.

The id of a checkpoint is another in each run, so a state is named by its position: how many states the main graph
had put before it.  The census takes digests of the states at some positions; whatever a contender gives back for one
of these must have the same digest.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from census import state_digest

TRAVELS = 20
NEWEST = 10
RECOVERED = 30  # positions after the one at which a run is killed: a fast run gets that far before it dies
KILLED_AT = 0.9  # of the run
SEED = 20_250_602


class WrongStateError(Exception):
    """A contender gave back something else than was put."""


@dataclass(frozen=True)
class State:
    """One state of a main graph, in one run."""

    thread_id: str
    step: int
    checkpoint_id: str

    @property
    def config(self) -> Any:
        return {**self.thread, "configurable": {**self.thread["configurable"], "checkpoint_id": self.checkpoint_id}}

    @property
    def thread(self) -> Any:
        """The config of its thread's newest state."""
        return {"configurable": {"thread_id": self.thread_id, "checkpoint_ns": ""}}


def travelled(states: int) -> list[int]:
    """The positions that time travel goes to, in its order."""
    return random.Random(SEED).sample(range(states), min(TRAVELS, states))


def killed_at(states: int) -> int:
    """The position at which a run is killed."""
    return int(states * KILLED_AT)


def digested(states: int) -> frozenset[int]:
    """All positions that the census takes a digest of."""
    killed = killed_at(states)
    newest = range(max(0, states - NEWEST), states)
    return frozenset([*travelled(states), *newest, *range(killed, min(killed + RECOVERED, states))])


@dataclass(frozen=True)
class Expected:
    """The states that one run has put, with the digests of some.

    Attributes:
        final_digest: Of the newest messages.
    """

    states: Sequence[State]
    digests: Mapping[int, str]
    final_digest: str

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Expected":
        return cls(
            [State(**state) for state in found["states"]],
            {int(position): digest for position, digest in found["digests"].items()},
            found["final_digest"],
        )

    def check(self, position: int, loaded: CheckpointTuple | None) -> None:
        """
        Raises:
            WrongStateError: This is not what was put there.
        """
        state = self.states[position]
        if loaded is None:
            raise WrongStateError(f"step {state.step} of {state.thread_id} is not there")
        if (loaded.checkpoint["id"], loaded.metadata.get("step")) != (state.checkpoint_id, state.step):
            raise WrongStateError(f"another checkpoint than step {state.step} of {state.thread_id}")
        digest = self.digests.get(position)
        if digest is not None and state_digest(loaded.checkpoint, loaded.metadata) != digest:
            raise WrongStateError(f"step {state.step} of {state.thread_id} holds something else than was put")

    def of_thread(self, thread_id: str) -> list[int]:
        """The positions of one thread's states, oldest first."""
        return [position for position, state in enumerate(self.states) if state.thread_id == thread_id]
