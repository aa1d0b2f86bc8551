"""The images of a crash that a trace leads to, and what each must show.

Between two changes of what may be on the disk lies one moment, whatever the program said meanwhile: what it
had acknowledged at the end of the moment must be there, and nothing that it began only after its beginning can.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from crash.disk import Choice, Disk, Rules
from crash.recorded import BEGAN, DONE, OPENED
from crash.trace import Event, Noted, SyncBegan

_EACH_WRITE_UP_TO: Final = 12  # unsynced writes; of more, as many are chosen
_RANDOM: Final = ("subset", "page", "sector", "torn", "torn", "sector")


class Promise(NamedTuple):
    """What a log must show.

    Attributes:
        opened: It can be opened.
        done: Of each owner, how many operations are there at least.
        begun: Of each owner, how many are there at most.
    """

    opened: bool
    done: tuple[int, ...]
    begun: tuple[int, ...]


def promises(events: Sequence[Event], owners: int) -> list[Promise]:
    """What is promised at each point, for the moment that begins there."""
    opened, done, begun = False, [0] * owners, [0] * owners
    before = [(opened, tuple(done), tuple(begun))]
    for event in events:
        match event.text.split() if isinstance(event, Noted) else ():
            case [word] if word == OPENED:
                opened = True
            case [word, owner, position] if word == BEGAN:
                begun[int(owner)] = int(position) + 1
            case [word, owner, position] if word == DONE:
                done[int(owner)] = int(position) + 1
        before.append((opened, tuple(done), tuple(begun)))
    found: list[Promise] = []
    late = before[-1]
    for point in range(len(events), -1, -1):
        if point == len(events) or changes_the_disk(events[point]):
            late = before[point]
        found.append(Promise(late[0], late[1], before[point][2]))
    return found[::-1]


def changes_the_disk(event: Event) -> bool:
    """Whether other contents are possible after an event than before."""
    return not isinstance(event, Noted | SyncBegan)


def choices(events: Sequence[Event], rules: Rules, rng: random.Random) -> Iterator[Choice]:
    """What may be on the disk at every point, the random part of it anew at each call, in the order of points."""
    disk = Disk(rules)
    for point, event in enumerate(events, 1):
        disk.apply(event)
        if changes_the_disk(event):
            yield from _choices_at(point, disk, rng)


def _choices_at(point: int, disk: Disk, rng: random.Random) -> Iterator[Choice]:
    writes = disk.unsynced_writes()
    lengths = ("new", "old", "between") if disk.is_unsure_of_lengths() else ("new",)
    if not writes and len(lengths) == 1:
        yield Choice(point)
        return
    for length in lengths:
        for kept in ("all", "none"):
            yield Choice(point, kept, 0, length, rng.getrandbits(32))
    each = range(writes) if writes <= _EACH_WRITE_UP_TO else sorted(rng.sample(range(writes), _EACH_WRITE_UP_TO))
    for number in each:
        if writes > 1:
            yield Choice(point, "only", number, rng.choice(lengths), rng.getrandbits(32))
            yield Choice(point, "without", number, rng.choice(lengths), rng.getrandbits(32))
    for kept in _RANDOM:
        number = rng.randrange(max(writes, 1))
        yield Choice(point, kept, number, rng.choice(lengths), rng.getrandbits(32))


def images(
    events: Sequence[Event], rules: Rules, chosen: Sequence[Choice]
) -> Iterator[tuple[Choice, dict[str, bytes]]]:
    """The files of each choice, which stand in the order of points."""
    disk = Disk(rules)
    happened = 0
    for choice in chosen:
        for event in events[happened : choice.point]:
            disk.apply(event)
        happened = choice.point
        yield choice, disk.image(choice)
