"""Cut the power at every moment: what was acknowledged is on the disk, and nothing else is half there.

    python tests/crash/power_loss.py --images 4000

Workloads are run once each and recorded (`recorder.py`).  From each trace follow the images that a disk may
hold if the power goes at some point (`disk.py`, `images.py`); of these a sample is judged (`judge.py`).
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the tests' packages are not found

from crash import recorded
from crash.disk import TODAY, Choice, Disk, Rules
from crash.images import Promise, choices, images, promises
from crash.judge import LOST, REFUSED, WHOLE, Verdict, judge_all
from crash.recorded import LOCK_SUFFIX, WORKLOADS, Owner, Workload, named, part
from crash.recorder import NoCompilerError, build, record
from crash.trace import Event, Met, SyncBegan, SyncEnded, Written

OLD_KERNEL: Final = "3.5.0"
WITHOUT_LENGTH: Final = Rules(length_by_fdatasync=False)
TORN_META: Final = Rules(sector_bytes=8)
EVERYTHING: Final = (
    *WORKLOADS,
    "append+pair",
    "compaction+pair",
    "items+pair",
    "everything+twice",
    "reuse+twice",
    "in-place+twice",
)
RECOVERY: Final = WORKLOADS["recovery"]
IMAGES_OF_A_RECOVERY: Final = 20
FILES: Final = "files"
_FOLDER: Final = 1 << 20  # numbers that no trace reaches


@dataclass
class Result:
    """What became of the images of one workload.

    Attributes:
        workload: Its label.
        possible: How many images there were to choose from.
        verdicts: Of those that were chosen.
        seconds: That judging took.
    """

    workload: str
    possible: int
    verdicts: list[Verdict]
    seconds: float

    def count(self, outcome: str) -> int:
        return sum(verdict.outcome == outcome for verdict in self.verdicts)

    @property
    def judged(self) -> int:
        """How many different ones were opened."""
        return self.count(WHOLE) + self.count(REFUSED) + self.count(LOST)

    @property
    def lost(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.outcome == LOST]


def record_workload(library: Path, workload: Workload, folder: Path) -> list[Event]:
    """Run a workload; what it did to its files.

    Args:
        library: The built recorder.
        workload: What to run.
        folder: Is created, and takes the files and the trace.
    """
    command = [sys.executable, recorded.__file__, workload.label, str(folder / FILES)]
    return _record(library, command, folder, OLD_KERNEL if "oldkernel" in workload.variants else "")[0]


def _record(library: Path, command: Sequence[str], folder: Path, kernel: str = "") -> tuple[list[Event], int]:
    """What a command did to its files, and how many events at the beginning say what was there before."""
    files = folder / FILES
    files.mkdir(parents=True, exist_ok=True)
    there = {str(path): path.read_bytes() for path in files.iterdir()}
    trace = record(library, files, command, folder / "trace", kernel)
    # The lock file is a map, which is written to by no call and synced by none: the judge makes up what it holds.
    locks = {event.file for event in trace if isinstance(event, Met) and event.path.endswith(LOCK_SUFFIX)}
    events = [event for event in trace if getattr(event, "file", None) not in locks]
    inherited = _inherited(events, there, files)
    events = [*inherited, *events]
    disk = Disk()
    for event in events:
        disk.apply(event)
    for path, content in disk.contents().items():
        assert Path(path).read_bytes() == content, f"the trace does not lead to {path}"
    return events, len(inherited)


def _inherited(events: list[Event], there: dict[str, bytes], folder: Path) -> list[Event]:
    """How the files that were there before came to be there, as events; the others do not tell of it any more."""
    if not there:
        return []
    inherited: list[Event] = [Met(_FOLDER, str(folder), False, True)]
    met = {event.path: event for event in events if isinstance(event, Met) and not event.created}
    for number, (path, content) in enumerate(there.items(), _FOLDER + 1):
        file = met[path].file if path in met else number
        inherited += [Met(file, path, True, False), Written(file, 0, content)]
        inherited += [SyncBegan(file, 0), SyncEnded(file, 0, True)]
        if path in met:
            events.remove(met[path])
    return [*inherited, SyncBegan(_FOLDER, 0), SyncEnded(_FOLDER, 0, True)]


def sample(
    events: Sequence[Event], promised: Sequence[Promise], rules: Rules, count: int, rng: random.Random, after: int = 0
) -> tuple[int, list[Choice]]:
    """How many images there are to choose from, and some of them: an eighth from before the log was opened.

    Args:
        events: The trace.
        promised: What is promised at each point.
        rules: What is assumed of the disk.
        count: How many.
        rng: Chooses.
        after: The point from which on the power may go.
    """
    possible = [choice for choice in choices(events, rules, rng) if choice.point >= after]
    early = [choice for choice in possible if not promised[choice.point].opened]
    late = [choice for choice in possible if promised[choice.point].opened]
    chosen = rng.sample(early, min(len(early), count // 8))
    return len(possible), chosen + rng.sample(late, min(len(late), count - len(chosen)))


def run(library: Path, workload: Workload, rules: Rules, count: int, seed: int, folder: Path) -> Result:
    """Record a workload and judge some of its images.

    Args:
        library: The built recorder.
        workload: What to run.
        rules: What is assumed of the disk.
        count: How many images.
        seed: Decides which of the possible images; the trace itself depends on the machine where threads run.
        folder: Takes the trace, and the files of images that are lost.
    """
    rng = random.Random(f"{seed} {workload.name}")
    events = record_workload(library, workload, folder)
    owners = [Owner(workload, number) for number in range(workload.owners)]
    promised = promises(events, workload.owners)
    twice = "twice" in workload.variants
    possible, chosen = sample(events, promised, rules, count // IMAGES_OF_A_RECOVERY if twice else count, rng)
    start = time.perf_counter()
    verdicts = judge_all(owners, promised, events, rules, chosen, folder)
    if twice:
        whole = {verdict.choice: verdict.reason for verdict in verdicts if verdict.outcome == WHOLE}
        for number, (choice, files) in enumerate(images(events, rules, sorted(whole))):
            there = tuple(map(int, whole[choice].split()))
            place = folder / f"recovery{number}"
            again, more = _run_again(library, owners, there, promised[choice.point], files, rules, rng, place)
            possible, verdicts = possible + again, verdicts + more
    return Result(workload.label, possible, verdicts, time.perf_counter() - start)


def _run_again(
    library: Path,
    owners: list[Owner],
    there: tuple[int, ...],
    promise: Promise,
    files: dict[str, bytes],
    rules: Rules,
    rng: random.Random,
    folder: Path,
) -> tuple[int, list[Verdict]]:
    """Go on with an image of a first crash, and judge images of a second one; how many there are, and the verdicts."""
    (folder / FILES).mkdir(parents=True)
    for path, content in files.items():
        (folder / FILES / Path(path).name).write_bytes(content)
    survivors = len(owners)
    events, inherited = _record(library, part(RECOVERY, folder / FILES, survivors), folder)
    promised = [
        Promise(opened or promise.opened, there + done[survivors:], there + begun[survivors:])
        for opened, done, begun in promises(events, survivors + 1)
    ]
    possible, chosen = sample(events, promised, rules, IMAGES_OF_A_RECOVERY, rng, inherited)
    return possible, judge_all([*owners, Owner(RECOVERY, survivors)], promised, events, rules, chosen, folder)


# --- the whole of it ---


def _line(result: Result) -> str:
    speed = result.judged / max(result.seconds, 0.001)
    return (
        f"{result.workload:<18} {result.judged:>6,} images of {result.possible:>6,} possible: "
        f"{result.count(WHOLE):>6,} whole, {result.count(REFUSED):>3} refused before anything was promised, "
        f"{len(result.lost):>3} lost ({result.seconds:.0f} s, {speed:.0f}/s)"
    )


def _reasons(result: Result) -> str:
    unhappy = (verdict for verdict in result.verdicts if verdict.outcome in (REFUSED, LOST) and verdict.reason)
    said = (verdict.reason.strip().splitlines()[-1] for verdict in unhappy)
    counted = Counter(re.sub(r"'/\S*'", "the file", reason)[:150] for reason in said)
    return "".join(f"\n    {number} x {reason}" for reason, number in counted.most_common(5))


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut the power at every moment and look for what was promised.")
    parser.add_argument("--images", type=int, default=4000, help="how many to judge (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: a new one)")
    parser.add_argument("--workloads", default=",".join(EVERYTHING), help="default: %(default)s; variants: Workload")
    parser.add_argument(
        "--disk",
        choices=("today", "without-length", "torn-meta"),
        default="today",
        help="without-length: fdatasync leaves a file's new length behind, as old kernels did; torn-meta: sectors "
        "of 8 bytes; both break what SPEC.md assumes (section 15), and what is lost there fails nothing",
    )
    arguments = parser.parse_args()
    seed = random.randrange(10**9) if arguments.seed is None else arguments.seed
    names = arguments.workloads.split(",")
    rules = {"today": TODAY, "without-length": WITHOUT_LENGTH, "torn-meta": TORN_META}[arguments.disk]
    folder = Path(tempfile.mkdtemp(prefix="stepwell-power-"))
    print(f"seed {seed}, disk: {arguments.disk}", flush=True)
    try:
        library = build(folder)
    except NoCompilerError as error:
        print(f"not run: {error}", file=sys.stderr)
        return 1
    start, judged, lost = time.perf_counter(), 0, 0
    for name in names:
        result = run(library, named(name), rules, arguments.images // len(names), seed, folder / name)
        judged, lost = judged + result.judged, lost + len(result.lost)
        print(_line(result) + _reasons(result), flush=True)
        if not result.lost:
            shutil.rmtree(folder / name)
    seconds = time.perf_counter() - start
    print(f"{judged:,} images, {lost} lost (seed {seed}, {seconds:.0f} s, {judged / seconds:.0f}/s)")
    if lost:
        print(f"the traces, and the files of the images that are lost, are in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if lost and arguments.disk == "today" else 0


if __name__ == "__main__":
    sys.exit(main())
