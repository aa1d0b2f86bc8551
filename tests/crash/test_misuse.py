"""Forks, closing at the wrong moment, signals, and ends of the interpreter: nothing is lost, half there, or hangs.

What could hang or end the process runs in one of its own, which Python tells to turn warnings into errors.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from typing import Any, cast

import pytest

from building import noise, step
from stepwell import ClosedError, Log, repairing
from stepwell.storage.lmdb import freepages
from stepwell.storage.lmdb.freepages import PageFile

PRELUDE = """
import asyncio, atexit, gc, os, random, signal, sys, threading, time
signal.alarm(60)
from building import noise, step, wrote
from conformance.calls import checkpoint_of, config_of
from stepwell import *
from stepwell.storage import Rewrite
from stepwell_langgraph import StepwellSaver
path = sys.argv[1]
acknowledged = os.open(path + ".acknowledged", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def acknowledge(thread, step_id):
    os.write(acknowledged, f"{thread} {step_id}\\n".encode())
def append(log, thread, number):
    log.thread(thread).append([step(f"s{number}"), wrote(f"s{number}")])
    acknowledge(thread, f"s{number}")
def keep_appending(log, thread, pause=0):
    number = 0
    while True:
        try:
            append(log, thread, number)
        except ClosedError:
            return
        number += 1
        if pause:
            time.sleep(pause)
"""

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")


def run(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + dedent(script), str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def output_of(script: str, path: Path) -> str:
    """What a script prints that ends well and complains of nothing."""
    ended = run(script, path)
    assert (ended.returncode, ended.stderr) == (0, ""), f"{ended.returncode}: {ended.stdout}{ended.stderr}"
    return ended.stdout.strip()


def check(path: Path) -> int:
    """Whatever was acknowledged is there, whatever is there is whole; returns how much was acknowledged."""
    lines = Path(f"{path}.acknowledged").read_text().split("\n")
    assert lines.pop() == ""
    with Log.open(path) as log:
        assert log.audit().breaches == []
        found = {}
        for summary in log.threads():
            thread = log.thread(summary.thread_id)
            steps = [each.step_id for each in thread.steps()]
            assert summary.thread_id == "saved" or all(thread.writes(step_id) for step_id in steps)
            found[summary.thread_id] = set(steps)
    missing = [line for line in lines if line.split()[1] not in found.get(line.split()[0], ())]
    assert missing == []
    return len(lines)


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a log can be made; in memory if possible, for thousands of syncs that these tests are not about."""
    memory = "/dev/shm"
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder) / "agents.stepwell"


# --- forks ---


@forking
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_forks_at_any_moment(end: str, path: Path) -> None:
    """While threads append and seal, children of children of the main thread and of another get ForkedError from what
    they inherit, can open the log for themselves, and end in any way without disturbing the parent."""
    script = f"""
        log = Log.open(path, seal_after_events=8)
        saver = StepwellSaver(log)
        inherited = log.thread("t0").events()
        threads = [threading.Thread(target=keep_appending, args=(log, f"t{{n}}", 0.002)) for n in range(2)]
        for each in threads:
            each.start()
        while os.path.getsize(path + ".acknowledged") < 100:
            time.sleep(0.001)
        next(inherited)
        pending = [log.thread("pending").begin_append([step(f"p{{n}}"), wrote(f"p{{n}}")]) for n in range(20)]

        def refused(use):
            try:
                use()
            except ForkedError:
                return True
            except ClosedError:
                return closed

        closed = False
        def live(name, depth):
            global closed
            signal.alarm(50)
            uses = [
                lambda: log.thread("t0").append([step("no")]), log.thread("t0").state, lambda: list(log.threads()),
                lambda: list(inherited if depth else log.feed()), log.audit,
                log.seal, lambda: log.seal("t0"), lambda: log.thread("t0").delete(),
                lambda: saver.put(config_of("t0"), checkpoint_of("no"), {{}}, {{}}),
                lambda: saver.get_tuple(config_of("t0")), lambda: list(saver.list(None)),
                lambda: asyncio.run(saver.aput(config_of("t0"), checkpoint_of("no"), {{}}, {{}})),
                lambda: log.items.submit([ItemPut(("a",), "k", parse("text", b"no"))]),
                lambda: log.items.get(("a",), "k"), lambda: list(log.items.scan()), lambda: log.items.forget(()),
                lambda: log.thread("t0").label({{"no": 1}}), lambda: log.thread("t0").fork(),
                lambda: next(log.follow()), lambda: log.compact(path + ".no"), lambda: log.repair(path + ".no"),
            ]
            failed = [number for number, use in enumerate(uses) if not refused(use)]
            if failed:
                print("not refused:", failed)
                sys.stdout.flush()
                os._exit(1)
            if depth:
                log.close()
                closed = True
            own = Log.open(path, seal_after_events=8)
            for number in range(5):
                append(own, name, number)
            if depth:
                grandchild = os.fork()
                if not grandchild:
                    live(name + ".", depth - 1)
                assert os.waitpid(grandchild, 0)[1] == 0
                append(own, name, 5)
                own.close()
            if name.startswith("of-main"):
                {end}
            os._exit(0)  # a thread that ends ends no process

        children = []
        def fork(name):
            for number in range(3):
                child = os.fork()
                if not child:
                    live(f"{{name}}{{number}}", 1)
                children.append(child)
        other = threading.Thread(target=fork, args=("of a thread",))
        other.start()
        fork("of-main")
        other.join()
        statuses = [os.waitpid(child, 0)[1] for child in children]
        append(log, "after", 0)
        assert all(ticket.result() for ticket in pending)
        log.close()
        for each in threads:
            each.join()
        print(statuses)
        """.replace("of a thread", "of-a-thread")
    assert output_of(script, path) == "[0, 0, 0, 0, 0, 0]"
    assert check(path) > 60


@forking
def test_a_fork_out_of_a_signal_handler(path: Path) -> None:
    """A fork in the midst of a read of the same thread does not wait for it; the child is told that it cannot go on."""
    script = """
        log = Log.open(path)
        append(log, "t", 0)
        def fork():
            began = time.monotonic()
            child = os.fork()
            if not child:
                signal.alarm(50)
                for use in (lambda: Log.open(path), log.thread("t").state):
                    try:
                        use()
                    except ForkedError:
                        continue
                    os._exit(1)
                log.close()
                os._exit(0)
            print(os.waitpid(child, 0)[1], time.monotonic() - began < 4)
        environment = log.storage._environment
        with environment.transaction(write=False):
            fork()
        append(log, "t", 1)
        log.close()
        """
    assert output_of(script, path) == "0 True"
    assert check(path) == 2


@forking
def test_multiprocessing_by_fork(path: Path) -> None:
    """Workers that multiprocessing forks, which get the saver by inheritance, are told, and may open their own."""
    script = """
        import multiprocessing
        log = Log.open(path)
        saver = StepwellSaver(log)
        append(log, "t", 0)
        def work(name):
            try:
                saver.get_tuple(config_of("t"))
            except ForkedError as error:
                assert "Log.open" in str(error)
                with StepwellSaver.from_conn_string(path) as own:
                    append(own.log, name, 0)
                return
            raise AssertionError
        workers = [multiprocessing.get_context("fork").Process(target=work, args=(f"w{n}",)) for n in range(3)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        append(log, "t", 1)
        print([each.exitcode for each in workers])
        """
    assert output_of(script, path) == "[0, 0, 0]"
    assert check(path) == 5


# --- closing ---


def test_closing_while_threads_are_in_calls(path: Path) -> None:
    """Each call of each thread ends well or with ClosedError when the log is closed by several threads; none hangs."""
    script = """
        rounds = 0
        for round in range(8):
            log = Log.open(path, seal_after_events=8)
            saver = StepwellSaver(log)
            strange = []
            def work(use):
                try:
                    while True:
                        use()
                except ClosedError:
                    pass
                except BaseException as error:
                    strange.append(error)
            count = iter(range(10**9))
            def put():
                id_ = f"c{round:03}{next(count):09}"
                saver.put(config_of("saved"), checkpoint_of(id_, {"x": [1]}, {"x": id_}), {}, {"x": id_})
            uses = [
                lambda: append(log, f"a{round}", next(count)),
                put,
                lambda: saver.get_tuple(config_of("saved")),
                lambda: list(log.thread("a0").steps()),
                lambda: log.items.submit([ItemPut(("a",), "k", parse("text", b"v"))]).result(),
                lambda: list(log.feed()),
                log.seal,
                log.audit,
            ]
            threads = [threading.Thread(target=work, args=(use,)) for use in uses]
            for each in threads:
                each.start()
            time.sleep(0.05)
            closing = [threading.Thread(target=close) for close in (log.close, saver.close, log.close)]
            for each in closing:
                each.start()
            for each in closing + threads:
                each.join()
            assert not strange, strange
            assert threading.active_count() == 1, threading.enumerate()
        print("done")
        """
    assert output_of(script, path) == "done"
    with Log.open(path) as log:
        assert log.audit().breaches == []


def test_closing_while_coroutines_are_in_calls(path: Path) -> None:
    """Each coroutine ends well or with ClosedError when the saver is closed beside it; what ended well is there."""
    script = """
        async def main(round):
            saver = StepwellSaver.from_conn_string(path)
            outcomes = {"closed": 0}
            async def put(number):
                id_ = f"c{round:02}{number:04}"
                config = config_of("t", "", None)
                await saver.aput(config, checkpoint_of(id_, {"x": [number]}, {"x": id_}), {}, {"x": id_})
                return id_
            async def read(number):
                await saver.aget_tuple(config_of("t"))
                return [each async for each in saver.alist(config_of("t"), limit=3)] and None
            async def write(number):
                await saver.aput_writes(config_of("t", "", "c"), [("x", 1)], f"task {number}")
            calls = [asyncio.ensure_future(use(number)) for number in range(60) for use in (put, read, write)]
            await asyncio.sleep(random.random() * 0.05)
            if round % 2:
                await saver.__aexit__(None, None, None)
            else:
                await asyncio.gather(*(asyncio.to_thread(saver.close) for _ in range(3)))
            ended = await asyncio.gather(*calls, return_exceptions=True)
            strange = [each for each in ended if isinstance(each, Exception) and not isinstance(each, ClosedError)]
            assert not strange, strange
            return {each for each in ended if isinstance(each, str)}
        put = set()
        for round in range(4):
            put |= asyncio.run(main(round))
        with StepwellSaver.from_conn_string(path) as saver:
            found = {each.checkpoint["id"]: each.checkpoint["channel_values"] for each in saver.list(config_of("t"))}
            assert put <= found.keys()
            assert all(values == {"x": [int(id_[3:])]} for id_, values in found.items())
            print(saver.log.audit().breaches)
        """
    assert output_of(script, path) == "[]"


@pytest.mark.parametrize("where", ["main", "writer", "folding", "another log's opening"])
def test_closing_in_a_finalizer(where: str, path: Path) -> None:
    """A finalizer may close the log in whatever thread the collector meets it, the log's own ones too."""
    script = f"""
        from stepwell.storage.lmdb import environment, registry
        where = {where!r}
        class Owner:
            def __init__(self, saver):
                self.saver, self.circle = saver, self
            def __del__(self):
                self.saver.close()
                sys.stdout.write("closed\\n")
        log = Log.open(path, seal_after_events=8)
        saver = StepwellSaver(log)
        append(log, "t", 0)
        def collect(row=None):
            global owner
            del owner
            gc.collect()
        owner = Owner(saver)
        if where == "main":
            collect()
        elif where == "writer":
            log.submit(Rewrite("t", collect)).result()
        elif where == "folding":
            plan = log._folding._plan
            def planning(*arguments):
                if "owner" in globals():
                    collect()
                return plan(*arguments)
            log._folding._plan = planning
            keep_appending(log, "t")
        else:
            open_map = environment.open_map
            def opening(*arguments):
                if "owner" in globals():
                    collect()
                return open_map(*arguments)
            environment.open_map = opening
            Log.open(path + ".other").close()
        while registry.environments:
            time.sleep(0.01)
        try:
            append(log, "t", 100)
        except ClosedError:
            sys.stdout.write("refused\\n")
        """
    assert sorted(output_of(script, path).split()) == ["closed", "refused"]
    assert check(path) >= 1


def test_a_call_by_the_thread_that_writes(path: Path) -> None:
    """A function given to `rewrite` that changes the log is told that it would wait for itself."""
    script = """
        with Log.open(path) as log:
            append(log, "t", 0)
            try:
                log.submit(Rewrite("t", lambda row: append(log, "t", 1))).result()
            except UsageError as error:
                print("itself" in str(error))
            append(log, "t", 2)
        """
    assert output_of(script, path) == "True"
    assert check(path) == 2


# --- signals ---


def test_ctrl_c_again_and_again(path: Path) -> None:
    """Hundreds of interruptions in the midst of commits, reads and waits: all goes on, and what is there is right."""
    script = """
        random.seed(int.from_bytes(os.urandom(4)))
        class Hit(KeyboardInterrupt):
            pass
        hits, armed = 0, False
        def interrupt(number, frame):
            global hits
            signal.setitimer(signal.ITIMER_REAL, random.random() * 0.003 + 0.0003)
            if armed:
                hits += 1
                raise Hit
        log = Log.open(path, seal_after_events=64)
        saver = StepwellSaver(log)
        threads = [threading.Thread(target=keep_appending, args=(log, "beside"))]
        threads[0].start()
        signal.signal(signal.SIGALRM, interrupt)
        number, truth, last = 0, {}, None
        stop = time.monotonic() + 2
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        def go_on():
            return time.monotonic() < stop or hits <= 100
        while go_on():
            try:
                armed = True
                while go_on():
                    number += 1
                    id_ = f"c{number:06}"
                    values = {"x": [f"m{n}" for n in range(number % 50)], "y": number}
                    truth[id_] = values
                    saver.put(config_of("saved", "", last), checkpoint_of(id_, values, {"x": id_, "y": id_}), {},
                              {"x": id_, "y": id_})
                    last = id_
                    append(log, "mine", number)
                    saver.get_tuple(config_of("saved"))
                    list(saver.list(config_of("saved"), limit=5))
                armed = False
            except Hit:
                armed = False
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        for found in saver.list(config_of("saved")):
            assert found.checkpoint["channel_values"] == truth[found.checkpoint["id"]]
        saver.close()
        threads[0].join()
        print(gc.isenabled())
        """
    assert output_of(script, path) == "True"
    assert check(path) > 50


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", -15), ("SIGINT", -2)])
def test_signals_without_a_handler(name: str, code: int, path: Path) -> None:
    """A program that a signal ends, or Ctrl-C, while it commits has lost nothing that was acknowledged."""
    script = f"""
        log = Log.open(path)
        threading.Thread(target=keep_appending, args=(log, "beside"), daemon=True).start()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.{name})).start()
        keep_appending(log, "main")
        """
    ended = run(script, path)
    assert ended.returncode == code
    if name == "SIGINT":
        assert ended.stderr.strip().endswith("KeyboardInterrupt")
        assert ended.stderr.count("Traceback") == 1
    else:
        assert ended.stderr == ""
    assert check(path) > 0


def _append(log: Log, path: Path) -> None:
    log.thread("handler").append([step("s0")])


def _close(log: Log, path: Path) -> None:
    log.thread("waiting").begin_append([step("s0")])
    log.close()


def _close_and_go_on(log: Log, path: Path) -> None:
    log.close()
    with Log.open(path) as again:
        again.thread("again").append([step("s0", {f"x{number}": noise(60_000) for number in range(8)})])


@pytest.mark.skipif(not freepages.can_punch(), reason="no holes are made in files here")
@pytest.mark.parametrize("act", [_append, _close, _close_and_go_on])
@pytest.mark.parametrize("call", ["seal", "close", "repair"])
def test_a_handler_while_nobody_may_commit(
    call: str, act: Callable[[Log, Path], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler may append, or close the log and use the file, while a call makes holes or repairs: it does not wait
    for itself, and no holes are made afterwards in what came to stand there."""
    log = Log.open(path)
    log.thread("kept").append([step("s0", {"x": noise()})])
    log.thread("gone").append([step("s0", {f"x{number}": noise(60_000) for number in range(8)})])
    log.thread("gone").delete()
    interrupted: list[bool] = []

    def handle(number: int, frame: object) -> None:
        with suppress(ClosedError):
            act(log, path)

    def interrupting(function: Callable[..., Any]) -> Callable[..., Any]:
        def interrupt_and_call(*arguments: Any) -> Any:
            if not interrupted:
                interrupted.append(True)
                signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGUSR1)
            return function(*arguments)

        return interrupt_and_call

    monkeypatch.setattr(PageFile, "punch", interrupting(PageFile.punch))
    monkeypatch.setattr(repairing, "fill", interrupting(repairing.fill))
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with suppress(ClosedError):
            log.repair(path.with_suffix(".repaired")) if call == "repair" else getattr(log, call)()
    finally:
        signal.signal(signal.SIGUSR1, before)
    log.close()
    assert interrupted
    with Log.open(path) as log:
        assert log.audit().breaches == []
        threads = {each.thread_id for each in log.threads()}
        assert threads >= {"kept"} | ({"again"} if act is _close_and_go_on else set())
        assert all(log.thread(name).state() for name in threads)


def test_a_handler_that_closes_and_exits(path: Path) -> None:
    """A handler for SIGTERM that closes the saver and exits, the usual one, ends the program quietly."""
    script = """
        saver = StepwellSaver.from_conn_string(path)
        def end(number, frame):
            saver.close()
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        threads = [threading.Thread(target=keep_appending, args=(saver.log, f"t{n}")) for n in range(2)]
        for each in threads:
            each.start()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        keep_appending(saver.log, "main")
        """
    assert output_of(script, path) == ""
    assert check(path) > 0


async def test_cancelled_puts(path: Path) -> None:
    """Of puts that are cancelled at any moment each is there or not, whole, and those that follow are right."""
    script = """
        async def main():
            random.seed(5)
            async with StepwellSaver.from_conn_string(path) as saver:
                last, done = None, set()
                for number in range(150):
                    id_ = f"c{number:06}"
                    values = {"x": [f"m{n}" for n in range(number)], "y": number}
                    versions = {"x": id_, "y": id_}
                    put = asyncio.ensure_future(
                        saver.aput(config_of("t", "", last), checkpoint_of(id_, values, versions), {}, versions))
                    writes = asyncio.ensure_future(saver.aput_writes(config_of("t", "", id_), [("x", number)], "task"))
                    for _ in range(random.randrange(4)):
                        await asyncio.sleep(0)
                    if number % 3:
                        put.cancel()
                        writes.cancel()
                    for call in (put, writes):
                        try:
                            await call
                        except asyncio.CancelledError:
                            continue
                        if call is put:
                            last = id_
                            done.add(id_)
                found = {each.checkpoint["id"]: each async for each in saver.alist(config_of("t"))}
                assert done <= found.keys()
                for id_, each in found.items():
                    number = int(id_[1:])
                    assert each.checkpoint["channel_values"] == {"x": [f"m{n}" for n in range(number)], "y": number}
                    assert each.pending_writes in ([], [("task", "x", number)])
                print(len(done) < 150, saver.log.audit().breaches)
        asyncio.run(main())
        """
    assert output_of(script, path) == "True []"


# --- the end of the interpreter ---

ENDS = {
    "unclosed": "",
    "sys.exit": "sys.exit(0)",
    "daemon threads": """
        for n in range(3):
            threading.Thread(target=keep_appending, args=(log, f"daemon{n}"), daemon=True).start()
        time.sleep(0.1)
        """,
    "threads": """
        def work(name):
            for number in range(100):
                append(log, name, number)
        for n in range(3):
            threading.Thread(target=work, args=(f"thread{n}",)).start()
        """,
    "sys.exit beside daemon threads": """
        threading.Thread(target=keep_appending, args=(log, "daemon"), daemon=True).start()
        time.sleep(0.1)
        sys.exit(0)
        """,
    "at exit": """
        atexit.register(lambda: append(log, "late", 0))
        """,
    "a saver with late changes": """
        values = {"x": [{"n": n} for n in range(500)]}
        saver.put(config_of("saved"), checkpoint_of("c", values, {"x": "1"}), {}, {"x": "1"})
        values["x"][3]["n"] = "changed"
        """,
    "coroutines nobody waited for": """
        async def main():
            async def put(n):
                await saver.aput(config_of("saved"), checkpoint_of(f"c{n}"), {}, {})
            tasks = [asyncio.ensure_future(put(n)) for n in range(50)]
            await asyncio.sleep(0)
        asyncio.run(main())
        """,
    "a loop that was left": """
        loop = asyncio.new_event_loop()
        async def wait():
            for n in range(20):
                await log.thread("loop").begin_append([step(f"l{n}"), wrote(f"l{n}")])
                acknowledge("loop", f"l{n}")
        loop.run_until_complete(wait())
        tickets = [log.thread("loop").begin_append([step(f"m{n}"), wrote(f"m{n}")]) for n in range(20)]
        loop.close()
        """,
}


@pytest.mark.parametrize("end", ENDS)
def test_ends_of_the_interpreter(end: str, path: Path) -> None:
    """However a program ends, what it submitted before is committed, without a word, a warning or a hang."""
    script = """
        log = Log.open(path, seal_after_events=8)
        saver = StepwellSaver(log)
        tickets = [log.thread("t").begin_append([step(f"s{n}"), wrote(f"s{n}")]) for n in range(200)]
        """
    assert output_of(dedent(script) + dedent(ENDS[end]), path) == ""
    check(path)
    with Log.open(path) as log:
        assert len(list(log.thread("t").steps())) == 200


def test_an_error_ends_the_program(path: Path) -> None:
    """An error that nobody catches is all that is said, and what was submitted before is committed."""
    script = """
        log = Log.open(path)
        tickets = [log.thread("t").begin_append([step(f"s{n}"), wrote(f"s{n}")]) for n in range(200)]
        raise KeyError("mine")
        """
    ended = run(script, path)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("KeyError: 'mine'")
    assert ended.stderr.count("Traceback") == 1
    with Log.open(path) as log:
        assert len(list(log.thread("t").steps())) == 200
