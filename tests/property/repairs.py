"""A log with everything in it, ways to damage its file, and the judge of what a repair makes of that.

As a program: many such cases, `python tests/property/repairs.py --cases 4000`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import msgspec

from building import sealing, step, wrote
from stepwell import ItemDeleted, ItemPut, Log, NotALogError, RepairReport, codec, parse, reader, repair
from stepwell import format as fmt
from stepwell.events import ItemEvent, ItemTouched, StepCommitted, WritesRecorded
from stepwell.forgetting import moved
from stepwell.storage.lmdb import LmdbStorage
from stepwell.storage.lmdb.pages import Pages, Row, read_meta, read_tree
from stepwell.storage.tables import EVENTS, SEGMENTS

PAGE_BYTES = 4096
SECTOR_BYTES = 512


# --- the log ---


def build(path: Path, seed: int, *, holes: bool) -> None:
    """A log with loose and sealed events in groups, lanes, forks, copies, pruned and deleted threads, and large values.

    Args:
        path: Where to put it.
        seed: What is random in it follows from this.
        holes: Whether room is given back on closing; if not, old versions of pages stay in the file.
    """
    dice = random.Random(seed)
    with Log.open(path, seal_after_events=1 << 20) as log:
        assert isinstance(log.storage, LmdbStorage)
        assert log.storage._environment is not None
        log.storage._environment._punches = holes
        for name in ("sealed", "loose", "mixed", "deleted", "pruned", "tiny"):
            _grow(
                log,
                name,
                {"loose": 30, "tiny": 2, "deleted": 20}.get(name, 70),
                dice,
                seals=name not in ("loose", "tiny"),
            )
        log.thread("mixed").copy_to("copy")
        log.thread("deleted").delete()
        _change_items(log, dice, 40)
        if seed % 4 > 1:
            log.items.prune(log.items.commit_at(1 << 62) - 20)
        log.storage.commit([sealing(log.storage, fmt.ITEMS_THREAD_ID)])
        steps = [step.sequence for step in log.thread("pruned").steps(lane="")]
        log.thread("pruned").prune(steps[: len(steps) // 2])
        _grow(log, "again", 8, dice, seals=False)
        log.thread("again").delete()
        _grow(log, "again", 6, dice, seals=False)
        for name in ("mixed", "copy", "pruned", "sealed"):
            _grow(log, name, 12, dice, seals=False)
            _change_items(log, dice, 12)
        if seed % 2:
            log.seal("sealed")


def _change_items(log: Log, dice: random.Random, count: int) -> None:
    shared = dice.randbytes(400)
    for _ in range(count):
        place = (dice.choice("ab"), *"deeper than a key"[: dice.choice((0, 0, 9))]), dice.choice("xyz")
        changes: list[ItemEvent] = []
        value = msgspec.msgpack.encode({"a": shared, "b": dice.randbytes(dice.choice((5, 200, 2500)))})
        expires_at = dice.choice((None, dice.getrandbits(40) + 1))
        changes.append(ItemPut(*place, parse("msgpack", value), expires_at, {"vector": parse("f", dice.randbytes(90))}))
        if dice.random() < 0.3:
            changes.append(ItemDeleted((dice.choice("ab"),), "x", expired_by=dice.choice((None, 1 << 39))))
        found = log.items.get(*place)
        if found is not None:
            changes.append(ItemTouched(*place, found.sequence, dice.getrandbits(40) + 1))
        log.items.submit(changes).result()


def _grow(log: Log, name: str, steps: int, dice: random.Random, *, seals: bool) -> None:
    thread = log.thread(name)
    for count in range(steps):
        lane = dice.choice(("", "", "", "child|1"))
        before = thread.state(lane=lane)
        step_id = f"{name}-{lane}-{count}-{dice.getrandbits(30)}"
        channels = {} if before is None else {key: value for key, (_, value) in before.channels.items()}
        for channel in dice.sample("abcd", 2):
            channels[channel] = dice.randbytes(dice.choice((20, 100, 300, 2500)))
        again = before is not None and dice.random() < 0.1
        thread.append(
            [
                step(
                    before.step_id if again and before is not None else step_id,
                    channels,
                    parent=before.step_id if before is not None and not again else None,
                    base=before.sequence if before is not None else 0,
                    lane=lane,
                    old=before.values if before is not None else None,
                    created_at=dice.getrandbits(40) + 1,
                )
            ]
        )
        if dice.random() < 0.6:
            # What a task wrote is what the next step takes over: content that events share.
            taken = [channels[dice.choice(sorted(channels))], dice.randbytes(90)]
            thread.append([wrote(step_id, taken, lane=lane, task=f"task-{count}")])
        if seals and count % 17 == 16 and count < steps - 5:
            log.seal(name)


# --- what a log says ---


@dataclass
class Told:
    """What a log says of one thread.

    Attributes:
        thread_id: Its id; None if it was deleted.
        records: By sequence, the record as it was written, whatever form it stands in.
        shown: By sequence, of each step and each event with writes, all that can be read of it.
        feed: Its appends in order.
        chain: The hash chain after its last event.
        shown_apart_from_lane: The same without the names of lanes.
        places: Where its events stand in the file, as first and last byte of each row and of each run of pages.
    """

    thread_id: str | None = None
    records: dict[int, bytes] = field(default_factory=dict)
    shown: dict[int, bytes] = field(default_factory=dict)
    shown_apart_from_lane: dict[int, bytes] = field(default_factory=dict)
    feed: list[tuple[int, int, int]] = field(default_factory=list)
    chain: bytes = b""
    places: list[tuple[int, int]] = field(default_factory=list)


def describe(path: Path) -> dict[int, Told]:
    """All that a log says, by number of thread."""
    told: dict[int, Told] = {}
    with Log.open(path, read_only=True) as log:
        storage = log.storage
        assert isinstance(storage, LmdbStorage)
        ids = {row.number: (name, row.chain) for name, row in storage.threads(0, 1 << 20)}
        for number in storage.event_threads():
            thread = told[number] = Told()
            if number in ids:
                thread.thread_id, thread.chain = ids[number]
            records = storage.scan(number, 0, 1 << 62, 1 << 20, reverse=False)
            lanes = {n: name for n, name, _ in storage.lanes(number, 0, 1 << 20)}
            payloads = reader.Payloads(storage, number)
            steps = [record.sequence for record in records if record.header.kind == fmt.KIND_STEP]
            states = reader.Reader(storage).states(number, steps)
            for record in records:
                header = record.header
                thread.records[record.sequence] = fmt.pack_covered(header) + record.body
                event = codec.decode(number, record, lanes.get(header.lane, ""))
                if isinstance(event, StepCommitted):
                    state = states[record.sequence]
                    values = [(name, payloads.payload(value)) for name, value in state.channels.items()]
                    values += [(name, payloads.payload(value)) for name, value in state.fields.items()]
                    names = [event.step_id, event.parent_id, str(event.hidden)]
                elif isinstance(event, WritesRecorded):
                    values = [(f"{w.index} {w.channel}", payloads.payload(w.value)) for w in event.writes]
                    names = [event.step_id, event.task_id, event.task_path]
                elif isinstance(event, ItemTouched):
                    continue  # what it is about may be left out, and it with that
                elif isinstance(event, ItemEvent):
                    said_of = reader.resolved(moved(header, event), payloads.read)
                    values, names = [], [repr(said_of)]
                else:
                    continue
                said = repr((names, event.created_at, values)).encode()
                thread.shown_apart_from_lane[record.sequence] = blake2b(said, digest_size=16).digest()
                lane = event.lane if isinstance(event, StepCommitted | WritesRecorded) else ""
                thread.shown[record.sequence] = blake2b(lane.encode() + said, digest_size=16).digest()
        for row in storage.feed(0, 1 << 20):
            told[row.thread].feed.append((row.commit, row.first, row.last))
    return told


def locate(data: bytes, path: Path, told: dict[int, Told]) -> None:
    """Note where the events of each thread stand in an intact file."""
    with open(path, "rb") as file:
        metas = [meta for page in (0, 1) if (meta := read_meta(data[page * PAGE_BYTES :])) is not None]
        pages = Pages(file.fileno(), PAGE_BYTES)
        [names] = pages.walk(max(metas, key=lambda meta: meta.transaction).tables, _fail)
        for name in names:
            if name.key.decode() in (EVENTS, SEGMENTS):
                for rows in pages.walk(read_tree(name.data), _fail):
                    for row in rows:
                        _note_places(data, row, told[fmt.read_event_key(row.key)[0]].places)


def _note_places(data: bytes, row: Row, places: list[tuple[int, int]]) -> None:
    # What stands there several times does so in old versions too: all of them count.
    at = -1
    while (at := data.find(row.key + row.data, at + 1)) >= 0:
        places.append((at - 8, at + len(row.key) + len(row.data)))  # with the head of the node
    if row.run:
        start = row.run * PAGE_BYTES
        places.append((start, start + 16 + row.length))


def _fail(error: Exception) -> None:
    raise error


# --- damage ---


def _flip(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _flip_structure(data: bytearray, dice: random.Random) -> None:
    page = dice.randrange(len(data) // PAGE_BYTES)
    data[page * PAGE_BYTES + dice.randrange(64)] ^= 1 << dice.randrange(8)


def _flip_many(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((4, 20))):
        _flip(data, dice)


def _zero_sector(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data) // SECTOR_BYTES) * SECTOR_BYTES
    data[at : at + SECTOR_BYTES] = bytes(SECTOR_BYTES)


def _page(data: bytearray, dice: random.Random) -> int:
    return dice.randrange(len(data) // PAGE_BYTES) * PAGE_BYTES


def _zero_page(data: bytearray, dice: random.Random) -> None:
    at = _page(data, dice)
    data[at : at + PAGE_BYTES] = bytes(PAGE_BYTES)


def _noise_page(data: bytearray, dice: random.Random) -> None:
    at = _page(data, dice)
    data[at : at + PAGE_BYTES] = dice.randbytes(PAGE_BYTES)


def _swap_pages(data: bytearray, dice: random.Random) -> None:
    one, two = _page(data, dice), _page(data, dice)
    data[one : one + PAGE_BYTES], data[two : two + PAGE_BYTES] = (
        data[two : two + PAGE_BYTES],
        data[one : one + PAGE_BYTES],
    )


def _double_page(data: bytearray, dice: random.Random) -> None:
    one, two = _page(data, dice), _page(data, dice)
    data[one : one + PAGE_BYTES] = data[two : two + PAGE_BYTES]


def _cut(data: bytearray, dice: random.Random) -> None:
    del data[len(data) - dice.randrange(1, len(data) // 3) :]


def _no_metas(data: bytearray, dice: random.Random) -> None:
    data[: 2 * PAGE_BYTES] = dice.choice((bytes(2 * PAGE_BYTES), dice.randbytes(2 * PAGE_BYTES)))


def _one_meta(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(2) * PAGE_BYTES
    data[at : at + PAGE_BYTES] = bytes(PAGE_BYTES)


def _no_metas_and_more(data: bytearray, dice: random.Random) -> None:
    _no_metas(data, dice)
    dice.choice((_flip, _zero_sector, _zero_page))(data, dice)


def _insert(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    data[at:at] = dice.randbytes(dice.choice((1, SECTOR_BYTES, PAGE_BYTES)))


DAMAGES: dict[str, Callable[[bytearray, random.Random], None]] = {
    function.__name__.strip("_"): function
    for function in (
        _flip,
        _flip_structure,
        _flip_many,
        _zero_sector,
        _zero_page,
        _noise_page,
        _swap_pages,
        _double_page,
        _cut,
        _no_metas,
        _one_meta,
        _no_metas_and_more,
        _insert,
    )
}


# --- the judge ---


class Verdict(Exception):
    """A repair did what it must not."""


def judge(truth: dict[int, Told], data: bytes, damaged: bytes, path: Path, report: RepairReport) -> str:
    """Compare a repaired log with the intact one; returns in a word how it went."""
    with Log.open(path) as log:
        breaches = log.audit().breaches
    if breaches:
        raise Verdict(f"audit: {breaches[:3]}")
    result = describe(path)
    repaired = {thread.number: thread for thread in report.repaired}
    outcome = "whole"
    for number, told in result.items():
        if number not in truth:
            raise Verdict(f"thread {number} was never there")
        true = truth[number]
        lost_names = repaired[number].lost_names if number in repaired else ()
        if told.thread_id != true.thread_id and told.thread_id not in lost_names:
            raise Verdict(f"thread {number} is {told.thread_id!r}, not {true.thread_id!r}")
        if number in repaired and repaired[number].rewritten:
            outcome = "rewritten"
            _judge_rewritten(
                true,
                told,
                (*repaired[number].lost, *repaired[number].left_out),
                lanes_are_lost=any("-lane-" in name for name in lost_names),
                end_is_lost=all(f"the table {table}:" in "\n".join(report.damage) for table in ("threads", "feed")),
            )
        elif (told.records, told.shown, told.chain) != (true.records, true.shown, true.chain):
            _judge_shorter(number, true, told, report)
            outcome = "shorter"
        elif told.feed != true.feed:
            raise Verdict(f"thread {number}: the feed is {told.feed[:5]}, not {true.feed[:5]}")
    for number in truth.keys() - result.keys():
        outcome = "gone"
        if not report.damage:
            raise Verdict(f"thread {number} is gone, and nobody says why")
    for number, true in truth.items():
        untouched = all(damaged[start:end] == data[start:end] for start, end in true.places)
        if untouched and (number not in result or result[number].records != true.records):
            raise Verdict(f"thread {number} ({true.thread_id}) is not as it was, though nothing of it was damaged")
    return outcome


def _judge_rewritten(
    true: Told, told: Told, lost: tuple[tuple[int, int, str], ...], *, lanes_are_lost: bool, end_is_lost: bool
) -> None:
    """Exactly what the report says is missing; and the end, if nothing that is left can say where that was."""
    missing = {sequence for first, last, _ in lost for sequence in range(first, min(last, 1 << 20) + 1)}
    wanted, found = true.shown, told.shown
    if lanes_are_lost:
        wanted, found = true.shown_apart_from_lane, told.shown_apart_from_lane
    kept = [shown for sequence, shown in wanted.items() if sequence not in missing]
    if end_is_lost:
        kept = kept[: len(found)]
    if [*found.values()] != kept:
        wrong = Counter(found.values()) - Counter(wanted.values())
        raise Verdict(f"{len(wrong)} of {len(found)} steps and writes never were, {len(kept)} should be there")
    if not missing.intersection(true.records):
        raise Verdict("a thread was rewritten that lost nothing")


def _judge_shorter(number: int, true: Told, told: Told, report: RepairReport) -> None:
    """A thread may end too early if everything that says so is lost, and then the report says that much is."""
    begin = dict(list(true.records.items())[: len(told.records)])
    if told.records != begin:
        raise Verdict(f"thread {number} is another")
    if not report.damage:
        raise Verdict(f"thread {number} ends at {max(told.records)}, not at {max(true.records)}, and nobody says why")


_logs: dict[tuple[int, bool], tuple[bytes, dict[int, Told]]] = {}


def intact(seed: int, *, holes: bool) -> tuple[bytes, dict[int, Told]]:
    """The bytes of an intact log, and what it says."""
    if (seed, holes) not in _logs:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "log"
            build(path, seed, holes=holes)
            data, told = path.read_bytes(), describe(path)
            locate(data, path, told)
            _logs[seed, holes] = data, told
    return _logs[seed, holes]


def try_case(kind: str, seed: int, logs: int = 2) -> str:
    """Damage a log and judge its repair; everything follows from the kind and the seed."""
    dice = random.Random(f"{kind} {seed}")
    data, truth = intact(seed % logs, holes=bool(seed // logs % 2))
    damaged = bytearray(data)
    DAMAGES[kind](damaged, dice)
    with tempfile.TemporaryDirectory() as directory:
        path, into = Path(directory) / "damaged", Path(directory) / "repaired"
        path.write_bytes(damaged)
        try:
            report = repair(path, into)
        except NotALogError:
            if kind in ("insert", "cut"):  # all that says where tables begin, and what is free, may be gone
                return "nothing"
            raise
        if path.read_bytes() != damaged:
            raise Verdict("the damaged file was changed")
        return judge(truth, data, bytes(damaged), into, report)


def _tried(case: tuple[str, int]) -> tuple[str, int, str]:
    kind, seed = case
    try:
        return kind, seed, try_case(kind, seed)
    except Exception as error:  # whatever it is, it is the case's result
        return kind, seed, f"WRONG: {type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--kinds", default=",".join(DAMAGES))
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    cases = [(kinds[index % len(kinds)], options.first + index // len(kinds)) for index in range(options.cases)]
    began = time.monotonic()
    outcomes: Counter[tuple[str, str]] = Counter()
    wrong = 0
    with ProcessPoolExecutor(options.processes) as pool:
        for kind, seed, outcome in pool.map(_tried, cases, chunksize=8):
            if outcome.startswith("WRONG"):
                wrong += 1
                print(f"{kind} {seed}: {outcome}", flush=True)
            outcomes[kind, outcome.split(":")[0]] += 1
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:20} {outcome:10} {count:6,}")
    print(f"{len(cases):,} cases in {time.monotonic() - began:.0f} s, {wrong:,} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
