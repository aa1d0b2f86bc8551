"""What has to stay when old checkpoints go: the ancestors that a DeltaChannel is rebuilt from.

A DeltaChannel has no stored value at most checkpoints; LangGraph rebuilds it from the nearest ancestor that
has one and the writes since.  The saver cannot fold those writes, since it does not know the reducer, so the
ancestors stay: hidden, and with nothing but those channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from langgraph.checkpoint.serde.base import SerializerProtocol

from stepwell import format as fmt
from stepwell import reader
from stepwell.fold import State
from stepwell.log import Log

_COUNTERS = "counters_since_delta_snapshot"


def needed_by(log: Log, thread: int, keep: Iterable[int], serde: SerializerProtocol) -> Mapping[int, frozenset[str]]:
    """The steps that some kept ones depend on, each with the channels to keep of it.

    Args:
        log: The log.
        thread: Number of the thread.
        keep: Sequences of the steps to keep.
        serde: Serializer of checkpoints and metadata.
    """
    keep = set(keep)
    payloads = reader.Payloads(log.storage, thread)
    retain: dict[int, frozenset[str]] = {}
    for lane, steps in _by_lane(log, thread, keep).items():
        states = log.reader.states(thread, steps)
        parents = [states[step].parent_id for step in steps]
        found = log.storage.find(thread, lane, [b"" if parent is None else fmt.id_key(parent) for parent in parents])
        for step, parent in zip(steps, found, strict=True):
            # A step whose parent stays needs nothing that its parent does not need.
            if parent.step and parent.step not in keep:
                counted = _counted(states[step], payloads, serde)
                for ancestor, channels in _path(log, thread, lane, states[step], counted, keep).items():
                    retain[ancestor] = retain.get(ancestor, frozenset()) | channels
    return retain


def _by_lane(log: Log, thread: int, steps: Iterable[int]) -> dict[int, list[int]]:
    lanes: dict[int, list[int]] = {}
    wanted = sorted(steps)
    records = log.storage.read(thread, wanted)
    for sequence in wanted:
        if sequence not in records:
            raise reader.missing(log.storage, thread, sequence)
        lanes.setdefault(records[sequence].header.lane, []).append(sequence)
    return lanes


def _counted(state: State, payloads: reader.Payloads, serde: SerializerProtocol) -> set[str] | None:
    """The channels that LangGraph says are delta channels in need of their history; None if it says nothing."""
    fields = reader.typed(state.fields, payloads)
    counters = serde.loads_typed(fields["metadata"]).get(_COUNTERS) if fields else None
    return {name for name in counters if name not in state.channels} if counters else None


def _path(
    log: Log, thread: int, lane: int, state: State, counted: set[str] | None, keep: set[int]
) -> dict[int, frozenset[str]]:
    """The ancestors of one step as far as its delta channels need them.

    Where LangGraph does not say which these are, a channel without a value is taken for one if something was
    written to it; an ordinary channel that was emptied, like a branch that was taken, is written only None.
    """
    seeded: dict[str, int] = {}
    needed = set(counted or ())
    path: list[int] = []
    if counted == set():
        return {}
    for found, ancestor in log.reader.ancestors(thread, lane, fmt.id_key(state.step_id)):
        path.append(found.step)
        if counted is None:
            for pending in reader.writes(log.storage, thread, found.writes):
                name = pending.write.channel
                candidate = name not in state.channels and name not in seeded and not name.startswith("__")
                if candidate and pending.write.value.type != "null":
                    needed.add(name)
        for name in ancestor.channels.keys() - seeded.keys():
            seeded[name] = len(path)
        if counted is not None and counted <= seeded.keys():
            break
    ends = {name: seeded.get(name, len(path)) for name in needed}
    return {
        step: frozenset(name for name, end in ends.items() if index < end)
        for index, step in enumerate(path[: max(ends.values(), default=0)])
        if step not in keep
    }
