"""A process that is killed while it changes items, a few times; `make kill` kills it more often."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from stepwell import Item, ItemDeleted, ItemPut, Log, parse
from stepwell.events import ItemEvent

ROUNDS = int(os.environ.get("STEPWELL_KILLS", "4"))
KEYS = 5
GROUP = 3


def write(path: str, begun: int) -> None:
    """Change items without end, one number after the other, and say of each when it is durable."""
    with Log.open(path, seal_after_events=16) as log:
        for number in range(begun, 1 << 30):
            log.items.submit(changes_of(number)).result()
            print(number, flush=True)


def changes_of(number: int) -> list[ItemEvent]:
    """What the change of a number is: several items, together."""
    place = ("agents", f"a{number % 2}")
    content = random.Random(number).randbytes(random.Random(number).choice((8, 400, 3000)))
    if number % 7 == 6:
        return [ItemDeleted(place, f"k{number % KEYS}-{each}") for each in range(GROUP)]
    return [ItemPut(place, f"k{number % KEYS}-{each}", parse("n", b"%d " % number + content)) for each in range(GROUP)]


def expected_after(count: int) -> dict[tuple[tuple[str, ...], str], bytes]:
    """What there is when so many numbers were done."""
    held: dict[tuple[tuple[str, ...], str], bytes] = {}
    for number in range(count):
        for change in changes_of(number):
            held.pop((change.namespace, change.key), None)
            if isinstance(change, ItemPut):
                held[change.namespace, change.key] = change.value.content  # type: ignore[union-attr, assignment]
    return held


def test_a_killed_process_loses_no_item(tmp_path: Path) -> None:
    """After SIGKILL at any moment every acknowledged change is there, of the next all or nothing, and the past too."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    dice = random.Random(seed)
    path = tmp_path / "log"
    acknowledged = 0
    for _ in range(ROUNDS):
        command = [sys.executable, __file__, str(path), str(acknowledged)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            first = child.stdout.readline()
            assert int(first) == acknowledged
            time.sleep(dice.random() * 0.15)
            child.send_signal(signal.SIGKILL)
            acknowledged = int(([first, *child.stdout.read().splitlines()])[-1]) + 1
        with Log.open(path) as log:
            found = {(item.namespace, item.key): item.value[1] for item in log.items.scan()}
            done = acknowledged if found == expected_after(acknowledged) else acknowledged + 1
            assert found == expected_after(done)
            acknowledged = done
            assert log.audit().breaches == []
    with Log.open(path, read_only=True) as log:
        puts = sum(number % 7 != 6 for number in range(acknowledged)) * GROUP
        names = [
            (("agents", f"a{half}"), f"k{key}-{each}")
            for half in (0, 1)
            for key in range(KEYS)
            for each in range(GROUP)
        ]
        assert sum(isinstance(version, Item) for name in names for version in log.items.history(*name)) == puts


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))
