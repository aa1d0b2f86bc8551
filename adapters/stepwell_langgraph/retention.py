"""What has to stay when old checkpoints go: the ancestors that a DeltaChannel is rebuilt from.

A DeltaChannel has no stored value at most checkpoints; LangGraph rebuilds it from the nearest ancestor that
has one and the writes since.  The saver cannot fold those writes, since it does not know the reducer, so the
ancestors stay: hidden, and with nothing but those channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from langgraph.checkpoint.serde.base import SerializerProtocol

from stepwell import reader
from stepwell import format as fmt
from stepwell.fold import State
from stepwell.storage import Storage

_COUNTERS = "counters_since_delta_snapshot"


def needed_by(
    storage: Storage, thread: int, keep: Iterable[int], serde: SerializerProtocol
) -> Mapping[int, frozenset[str]]:
    """The steps that some kept ones depend on, each with the channels to keep of it.

    Args:
        storage: Where the log is kept.
        thread: Number of the thread.
        keep: Sequences of the steps to keep.
        serde: Serializer of checkpoints and metadata.
    """
    keep = set(keep)
    payloads = reader.Payloads(storage, thread)
    retain: dict[int, frozenset[str]] = {}
    for sequence, state in reader.states(storage, thread, keep).items():
        if not sequence:
            continue
        certain, possible = _valueless(state, payloads, serde)
        if not certain and not possible:
            continue
        record = storage.read(thread, [sequence])[sequence]
        lane = fmt.read_header(record).lane
        for step, channels in _path(storage, thread, lane, state, certain, possible, keep).items():
            retain[step] = retain.get(step, frozenset()) | channels
    return retain


def _valueless(
    state: State, payloads: reader.Payloads, serde: SerializerProtocol
) -> tuple[set[str], set[str]]:
    """The channels without a value that are delta channels, and those that may be."""
    fields = reader.typed(state.fields, payloads)
    if not fields:
        return set(), set()
    checkpoint, metadata = serde.loads_typed(fields["checkpoint"]), serde.loads_typed(fields["metadata"])
    empty = {name for name in checkpoint["channel_versions"] if name not in state.channels}
    counters = metadata.get(_COUNTERS)
    return (empty & set(counters), set()) if counters else (set(), empty)


def _path(
    storage: Storage,
    thread: int,
    lane: int,
    state: State,
    certain: set[str],
    possible: set[str],
    keep: set[int],
) -> dict[int, frozenset[str]]:
    """The ancestors of one step as far as its channels need them.

    A channel that only may be a delta channel is taken for one if something was written to it: an ordinary
    channel that was emptied, like a branch that was taken, is written nothing but None.
    """
    remaining = certain | possible
    seeded: dict[str, int] = {}
    written: set[str] = set(certain)
    path: list[int] = []
    for found, ancestor in reader.ancestors(storage, thread, lane, fmt.id_key(state.step_id)):
        path.append(found.step)
        for pending in reader.writes(storage, thread, found.writes):
            if pending.write.channel in remaining and pending.write.value.type != "null":
                written.add(pending.write.channel)
        for name in remaining & ancestor.channels.keys():
            seeded[name] = len(path)
            remaining.discard(name)
        if not remaining:
            break
    length = max((seeded.get(name, len(path)) for name in written), default=0)
    return {
        step: frozenset(name for name in written if index < seeded.get(name, len(path)))
        for index, step in enumerate(path[:length])
        if step not in keep
    }
