"""One measurement in this process: `run.py` starts a fresh one for each.

    python measure.py census  WORKLOAD                       what the run consists of
    python measure.py drive   WORKLOAD CONTENDER DIRECTORY   the run, in an empty directory
    python measure.py reopen  WORKLOAD CONTENDER DIRECTORY   the newest states, and some of the others
    python measure.py history WORKLOAD CONTENDER DIRECTORY   all states of a thread
    python measure.py seal    WORKLOAD CONTENDER DIRECTORY   what the contender makes of its files when asked
    python measure.py crash   WORKLOAD CONTENDER DIRECTORY   the run, until somebody kills it
    python measure.py recover WORKLOAD CONTENDER DIRECTORY   what was left of that, and one more step

Each prints lines `progress N` or `reached STATE` and at last one line of JSON.  What the states must be comes with
`--expected FILE`, as `states.Expected` reads it.
"""

import argparse
import ctypes
import gc
import json
import resource
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from langchain_core.messages import AIMessage
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver

import machine
from census import Census, digest
from contenders import CONTENDERS, Contender
from meter import Figures, Meter, percentile
from states import NEWEST, Expected, WrongStateError, digested, killed_at, travelled
from stores import Saver, Store
from usage import memory_bytes
from workloads import WORKLOADS, Workload

MEMORY = 0.8  # of what is available: a history that needs more ends in an error, not in the machine's swap


def census(workload: Workload) -> dict[str, Any]:
    """Count what the run consists of."""
    counter = Census(InMemorySaver() if workload.reads_back else None, digested=digested(workload.states))
    workload.prepare()(counter)
    return asdict(counter.counts(workload.reader()(counter)))


def drive(
    workload: Workload, contender: Contender, directory: Path, expected: Expected | None = None
) -> dict[str, Any]:
    """Run the workload once against a new store, from opening to closing.

    A contender that is lost with its process is read here as well; `expected` has the digests for that.
    """
    contender.load()
    contender.prepare(directory)
    play = workload.prepare()
    gc.collect()
    _give_back_free_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # restarts VmHWM
    empty = contender.disk_use(directory)  # a server's files are there already

    def disk_bytes() -> int:
        return contender.disk_use(directory).allocated_bytes - empty.allocated_bytes

    resident, anonymous = memory_bytes("VmRSS"), memory_bytes("RssAnon")
    used, start = contender.usage(directory), time.perf_counter()
    with contender.open(directory) as store:
        meter = Meter(store.saver, puts=workload.puts, disk_bytes=disk_bytes)
        play(meter, store.loop)
        ran = time.perf_counter()
        disk_at_end, anonymous_at_end = disk_bytes(), memory_bytes("RssAnon")
    closed = time.perf_counter()
    contender.settle(directory)
    spent = contender.usage(directory).since(used)
    samples = [point["anonymous_memory_bytes"] for point in meter.curve]
    figures: Figures = {
        **meter.put_calls.figures("put"),
        **meter.write_calls.figures("put_writes"),
        **(meter.get_calls.figures("get_tuple") if len(meter.get_calls.seconds) > 1 else {}),
        "run_seconds": ran - start,
        "close_seconds": closed - ran,
        "cpu_seconds": spent.cpu_seconds,
        "resident_memory_growth_bytes": memory_bytes("VmHWM") - resident,
        "anonymous_memory_growth_bytes": max([*samples, anonymous_at_end]) - anonymous,
    }
    driven: dict[str, Any] = {
        "figures": figures,
        "curve": meter.curve,
        "states": [asdict(state) for state in meter.states],
        "notes": {},
    }
    if contender.persistent:
        disk = contender.disk_use(directory)
        figures |= {
            "disk_bytes": disk.allocated_bytes - empty.allocated_bytes,
            "disk_apparent_bytes": disk.apparent_bytes - empty.apparent_bytes,
            "disk_at_end_bytes": disk_at_end,
            "disk_largest_bytes": max([*(point["disk_bytes"] for point in meter.curve), disk_at_end]),
            "written_bytes": spent.written_bytes,
        }
        if contender.server:
            figures["server_log_bytes"] = disk.server_log_bytes
    elif contender.stores:
        blocking = store.blocking(Meter(store.saver))
        driven["final_digest"] = digest(workload.reader()(blocking))
        if expected is not None:
            found = Expected(meter.states, expected.digests, expected.final_digest)
            read, notes = _reads(store, found)
            history, more_notes = _history(store, found)
            figures |= {f"warm_{name}": value for name, value in read.items()} | history
            driven["notes"] = {f"warm_{name}": note for name, note in notes.items()} | more_notes
    return driven


def reopen(
    workload: Workload, contender: Contender, directory: Path, expected: Expected | None = None
) -> dict[str, Any]:
    """Open a store that another process left behind and read its newest messages; then some other states."""
    contender.load()
    read = workload.reader()
    start = time.perf_counter()
    with contender.open(directory) as store:
        opened = time.perf_counter()
        meter = Meter(store.saver)
        newest = read(store.blocking(meter))
        loaded = time.perf_counter()
        again = _timed(lambda: read(store.blocking(meter)))
        figures: Figures = {
            "open_ms": (opened - start) * 1000,
            "open_and_load_ms": (loaded - start) * 1000,
            "load_again_ms": again,
        }
        if meter.delta_calls.seconds:
            figures["delta_history_ms"] = meter.delta_calls.seconds[0] * 1000
            figures["delta_history_again_ms"] = meter.delta_calls.seconds[-1] * 1000
        notes: dict[str, str] = {}
        if expected is not None:
            more, notes = _reads(store, expected)
            figures |= more
    return {"figures": figures, "notes": notes, "final_digest": digest(newest)}


def history(workload: Workload, contender: Contender, directory: Path, expected: Expected) -> dict[str, Any]:
    """All states of a thread, newest first, after its newest was read."""
    contender.load()
    with contender.open(directory) as store:
        store.blocking(store.saver).get_tuple(expected.states[-1].thread)
        figures, notes = _history(store, expected)
    return {"figures": figures, "notes": notes}


def seal(workload: Workload, contender: Contender, directory: Path, expected: Expected) -> dict[str, Any]:
    """What sealing takes, and what the files take afterwards."""
    assert contender.seal is not None
    contender.load()
    before = contender.usage(directory)
    with contender.open(directory) as store:
        elapsed = _timed(lambda: contender.seal and contender.seal(store.saver))
    spent = contender.usage(directory).since(before)
    return {
        "figures": {
            "sealed_disk_bytes": contender.disk_use(directory).allocated_bytes,
            "seal_ms": elapsed,
            "seal_written_bytes": spent.written_bytes,
        },
        "notes": {},
    }


def crash(workload: Workload, contender: Contender, directory: Path) -> NoReturn:
    """Run until somebody ends this process; each state is printed once its put has returned, from 90 % on."""
    contender.load()
    contender.prepare(directory)
    play = workload.prepare()
    with contender.open(directory) as store:
        play(Meter(store.saver, announce_from=killed_at(workload.states)), store.loop)
        while True:
            signal.pause()


def recover(workload: Workload, contender: Contender, directory: Path, expected: Expected) -> dict[str, Any]:
    """Open what a killed process left, read the newest state of its last thread, commit one step on top of it.

    The step is a superstep as LangGraph makes it: what a task wrote, then the state that it leads to.  The states
    expected are those whose puts are known to have returned: what is found is the last of them or newer.
    """
    contender.load()
    last = expected.states[-1]
    start = time.perf_counter()
    with contender.open(directory) as store:
        saver = store.blocking(Meter(store.saver))
        loaded = saver.get_tuple(last.thread)
        if loaded is None:
            raise WrongStateError(f"nothing is left of {last.thread_id}")
        if "messages" not in loaded.checkpoint["channel_values"]:  # a delta channel's are in its history
            saver.get_delta_channel_history(config=loaded.config, channels=["messages"])
        first_state = time.perf_counter()
        message = AIMessage("Back again.", id="recovered")
        checkpoint, version = _next(saver, loaded.checkpoint, message)
        saver.put_writes(loaded.config, [("messages", [message])], "recovering")
        step: Any = {"source": "loop", "step": loaded.metadata["step"] + 1, "parents": {}}
        stored = saver.put(loaded.config, checkpoint, step, {"messages": version})
        committed = time.perf_counter()
        if loaded.metadata["step"] < last.step:
            raise WrongStateError(f"step {last.step} was acknowledged, {loaded.metadata['step']} is the newest")
        for position in expected.of_thread(last.thread_id):
            if expected.states[position].checkpoint_id == loaded.checkpoint["id"]:
                expected.check(position, loaded)
        found = saver.get_tuple(last.thread)
        if found is None or found.checkpoint["id"] != stored["configurable"]["checkpoint_id"]:
            raise WrongStateError("the step that was committed after the crash is not the newest")
    figures = {
        "recovery_first_state_ms": (first_state - start) * 1000,
        "recovery_first_step_ms": (committed - start) * 1000,
    }
    return {"figures": figures, "notes": {}}


def _next(saver: Saver, checkpoint: Any, message: AIMessage) -> tuple[Any, Any]:
    """A checkpoint that follows another, and the version of the channel that moved."""
    versions, values = checkpoint["channel_versions"], checkpoint["channel_values"]
    version = saver.get_next_version(max(versions.values()), None)
    if isinstance(values.get("messages"), list):  # a delta channel has no value: the write is all there is of it
        values = {**values, "messages": [*values["messages"], message]}
    following = {
        **checkpoint,
        "id": str(uuid6()),
        "ts": datetime.now(UTC).isoformat(),
        "channel_values": values,
        "channel_versions": {**versions, "messages": version},
        "updated_channels": ["messages"],
    }
    return following, version


def _reads(store: Store, expected: Expected) -> tuple[Figures, dict[str, str]]:
    """Time travel to states at random, and the newest ten of the thread that was written last."""
    meter = Meter(store.saver)
    saver = store.blocking(meter)
    figures: Figures = {}
    notes: dict[str, str] = {}
    try:
        for position in travelled(len(expected.states)):
            expected.check(position, saver.get_tuple(expected.states[position].config))
        figures["time_travel_ms"] = percentile(meter.get_calls.seconds, 0.5)
    except WrongStateError as error:
        notes["time_travel_ms"] = f"wrong: {error}"
    try:
        newest = expected.states[-1]
        positions = expected.of_thread(newest.thread_id)[::-1][:NEWEST]
        found = list(saver.list(newest.thread, limit=NEWEST))
        if len(found) != len(positions):
            raise WrongStateError(f"{len(found)} states instead of {len(positions)}")
        for position, loaded in zip(positions, found, strict=True):
            expected.check(position, loaded)
        figures["newest_ten_ms"] = meter.list_calls.seconds[-1] * 1000
    except WrongStateError as error:
        notes["newest_ten_ms"] = f"wrong: {error}"
    return figures, notes


def _history(store: Store, expected: Expected) -> tuple[Figures, dict[str, str]]:
    """Every state of the thread that was written last; each is let go of before the next one is read."""
    meter = Meter(store.saver)
    newest = expected.states[-1]
    positions = iter(expected.of_thread(newest.thread_id)[::-1])
    try:
        for loaded in store.blocking(meter).list(newest.thread):
            position = next(positions, None)
            if position is None:
                raise WrongStateError("more states than were put")
            expected.check(position, loaded)
        if (missing := next(positions, None)) is not None:
            raise WrongStateError(f"step {expected.states[missing].step} and those before it are not there")
    except WrongStateError as error:
        return {}, {"history_ms": f"wrong: {error}"}
    return {"history_ms": meter.list_calls.seconds[-1] * 1000}, {}


def _timed(call: Callable[[], object]) -> float:
    """In ms."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def _give_back_free_memory() -> None:
    """Return what the preparation freed to the system, so that growth is not hidden in it (glibc only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


READINGS = {"drive": drive, "reopen": reopen, "history": history, "seal": seal, "recover": recover}


def measure(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("census", "crash", *READINGS))
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("contender", choices=CONTENDERS, nargs="?")
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--expected", type=Path, help="JSON of the states that must be there")
    asked = parser.parse_args(arguments)
    workload = WORKLOADS[asked.workload]
    if asked.what == "census":
        return census(workload)
    contender = CONTENDERS[asked.contender]
    if asked.what == "crash":
        crash(workload, contender, asked.directory)
    return READINGS[asked.what](
        workload, contender, asked.directory, Expected.from_json(json.loads(asked.expected.read_text()))
    )


def main() -> None:
    limit = int(machine.memory_bytes("MemAvailable") * MEMORY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    print(json.dumps(measure()), flush=True)


if __name__ == "__main__":
    main()
