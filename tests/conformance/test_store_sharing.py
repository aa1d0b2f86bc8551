"""The store among threads, coroutines, processes and other stores on the same file; and what it embeds again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langgraph.store.base import GetOp, PutOp, SearchOp

from conformance.store_calls import WORDS, Embedder, index_of, vector_of
from stepwell import ForkedError
from stepwell.events import ItemTouched
from stepwell_langgraph import StepwellSaver, StepwellStore

NAMESPACE = ("users", "ada")
IMPORTS = os.pathsep.join(path for path in sys.path if path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the log of the test lies."""
    return tmp_path / "agents.stepwell"


@pytest.fixture
def store(path: Path) -> Iterator[StepwellStore]:
    """An empty store in a file."""
    with StepwellStore.from_conn_string(path) as opened:
        yield opened
        assert opened.log.audit().breaches == []


def value_of(item: Any) -> Any:
    return None if item is None else item.value


# --- one file ---


def test_store_and_saver_share_a_file(path: Path) -> None:
    """Both on one path are one log: opened apart, and closed in any order."""
    saver = StepwellSaver.from_conn_string(path)
    with StepwellStore.from_conn_string(path) as store:
        store.put(NAMESPACE, "k", {"n": 1})
        assert saver.log.items.get(NAMESPACE, "k") is not None
        assert saver.log.storage.log_id == store.log.storage.log_id
    assert saver.log.items.get(NAMESPACE, "k") is not None
    saver.close()


def test_what_another_store_writes_is_seen_at_once(path: Path, store: StepwellStore) -> None:
    """However much of it is held in memory: changes, deletions, new namespaces, and thousands of changes."""
    with StepwellStore.from_conn_string(path) as other:
        for number in range(5):
            store.put(NAMESPACE, f"k{number}", {"n": number})
        for held in (store, other):
            assert len(held.search(())) == 5
            assert value_of(held.get(NAMESPACE, "k0")) == {"n": 0}
        store.put(NAMESPACE, "k0", {"n": "new"})
        store.delete(NAMESPACE, "k1")
        store.put(("new",), "k", {})
        assert [item.key for item in other.search(())] == ["k", "k0", "k4", "k3", "k2"]
        assert value_of(other.get(NAMESPACE, "k0")) == {"n": "new"}
        assert other.get(NAMESPACE, "k1") is None
        assert other.list_namespaces() == [("new",), NAMESPACE]
        for namespace in (NAMESPACE, ("new",)):
            for item in store.search(namespace):
                store.delete(item.namespace, item.key)
        assert other.search(()) == []
        assert other.list_namespaces() == []
        other.batch([PutOp(("many",), f"k{number}", {"n": number}) for number in range(4200)])
        assert len(store.search((), limit=5000)) == 4200
        assert store.log.items.version() == other.log.items.version()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 18, 40])
def test_many_changes_of_one_item_hide_no_others(path: Path, store: StepwellStore, count: int) -> None:
    """However often another store changes an item, what it changes afterwards is seen, by each way of reading."""
    with StepwellStore.from_conn_string(path) as other:
        reads: list[Callable[[], Any]] = [
            lambda: value_of(store.get(NAMESPACE, "other")),
            lambda: value_of(asyncio.run(store.aget(NAMESPACE, "other"))),
            lambda: asyncio.run(store.asearch(NAMESPACE, filter={"other": True}))[0].value,
            lambda: value_of(store.batch([GetOp(NAMESPACE, "other")])[0]),
        ]
        for number, read in enumerate(reads):
            other.put(NAMESPACE, "other", {"n": number, "other": True})
            store.search(NAMESPACE)
            for _ in range(count):
                other.put(NAMESPACE, "often", {})
            other.put(NAMESPACE, "other", {"n": "new", "other": True})
            assert read() == {"n": "new", "other": True}
            assert [item.value["n"] for item in store.search(NAMESPACE, filter={"other": True})] == ["new"]


CHILD = """
import sys
from stepwell_langgraph import StepwellStore

with StepwellStore.from_conn_string(sys.argv[1]) as store:
    print(store.get(("users", "ada"), "k").value["n"], flush=True)
    for line in sys.stdin:
        store.put(("users", "ada"), "k", {"n": int(line)})
        print("put", flush=True)
"""


def child(path: Path, code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": IMPORTS}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment, **pipes)


def test_another_process_and_its_death(path: Path, store: StepwellStore) -> None:
    """Both see what the other has written as soon as it is acknowledged, and a kill takes nothing of it."""
    store.put(NAMESPACE, "k", {"n": 0})
    process = child(path, CHILD)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    for number in range(1, 20):
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "put\n"
        assert value_of(store.get(NAMESPACE, "k")) == {"n": number}
        assert [item.value for item in store.search(NAMESPACE)] == [{"n": number}]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert len(store.history(NAMESPACE, "k")) == 20


def test_a_forked_child_is_told(path: Path, store: StepwellStore) -> None:
    """In a child that was forked while a thread asked, every read says so, and waits for nobody."""
    store.put(NAMESPACE, "k", {"n": 0})
    store.search(NAMESPACE)
    reads: list[Callable[[], Any]] = [
        lambda: store.get(NAMESPACE, "k"),
        lambda: store.search(NAMESPACE),
        lambda: store.batch([GetOp(NAMESPACE, "k")]),
        lambda: store.put(NAMESPACE, "k", {"n": 1}),
        lambda: asyncio.run(store.aget(NAMESPACE, "k")),
    ]
    asking, asked = threading.Event(), threading.Event()

    def ask() -> None:
        with store._present._lock:
            asking.set()
            asked.wait()

    thread = threading.Thread(target=ask)
    thread.start()
    asking.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        process = os.fork()
    if not process:
        signal.alarm(10)
        told = 0
        for read in reads:
            with suppress(ForkedError):
                read()
                told -= 1
            told += 1
        os._exit(0 if told == len(reads) else 1)
    asked.set()
    thread.join()
    assert os.waitpid(process, 0)[1] == 0


def test_touches_bring_nothing_back(path: Path, store: StepwellStore) -> None:
    """What touches an item that another process has deleted meanwhile brings neither it nor its namespace back."""
    with StepwellStore.from_conn_string(path) as other:
        for ahead in (False, True):
            store.put(("gone",), "k", {}, ttl=1)
            assert other.list_namespaces() == [("gone",)]
            item = store.log.items.get(("gone",), "k")
            assert item is not None
            store.delete(("gone",), "k")
            if ahead:
                assert other.list_namespaces() == []
            touch = ItemTouched(("gone",), "k", item.sequence, item.expires_at)
            store.log.items.submit([touch]).result()
            assert other.list_namespaces() == store.list_namespaces() == []


# --- threads and coroutines ---


def test_reads_of_a_batch_are_of_one_moment(path: Path) -> None:
    """While a writer changes two items together, no batch and no search ever sees one without the other."""
    with StepwellStore.from_conn_string(path) as store, StepwellStore.from_conn_string(path) as writer:
        stop = threading.Event()
        writer.batch([PutOp(("a",), "k", {"n": 0}), PutOp(("b",), "k", {"n": 0})])

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                writer.batch([PutOp(("a",), "k", {"n": number}), PutOp(("b",), "k", {"n": number})])

        thread = threading.Thread(target=write)
        thread.start()
        try:
            seen: set[int] = set()
            deadline = time.monotonic() + 60
            turn = 0
            while turn < 150 or (len(seen) < 10 and time.monotonic() < deadline):
                turn += 1
                if turn % 10 == 0:  # as if it had been opened now
                    store._present._forget()
                first, second, found = store.batch([GetOp(("a",), "k"), GetOp(("b",), "k"), SearchOp(())])
                numbers = {item.value["n"] for item in (first, second, *found)}  # type: ignore[union-attr, misc]
                assert len(numbers) == 1
                seen |= numbers
            assert len(seen) >= 10
        finally:
            stop.set()
            thread.join()


def test_threads(store: StepwellStore) -> None:
    """Many threads read and write at once, and each sees what it has written."""
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(30):
                store.put(("users", name), "k", {"n": number})
                assert value_of(store.get(("users", name), "k")) == {"n": number}
                assert [item.value["n"] for item in store.search(("users", name))] == [number]
                store.search(("users",))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"user {number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.search(("users",))) == 6


async def test_coroutines_write_in_order(store: StepwellStore) -> None:
    """Writes of one item are made in the order in which they were asked for, however large each is."""
    sizes = [10, 200_000, 10, 70_000, 10]
    await asyncio.gather(
        *(store.aput(NAMESPACE, "k", {"n": number, "text": "x" * size}) for number, size in enumerate(sizes))
    )
    versions = [version.value["n"] for version in store.history(NAMESPACE, "k") if version.value]
    assert versions == [4, 3, 2, 1, 0]


async def test_coroutines_embed_in_order(path: Path) -> None:
    """An embedder that takes longer for some texts changes nothing about the order; other namespaces do not wait."""
    release = asyncio.Event()

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        if "slow" in texts[0]:
            await release.wait()
        return [vector_of(text) for text in texts]

    async with StepwellStore.from_conn_string(path, index=index_of(embed, "text")) as store:
        slow = asyncio.create_task(store.aput(NAMESPACE, "k", {"text": "slow tea"}))
        await asyncio.sleep(0.01)
        quick = asyncio.create_task(store.aput(NAMESPACE, "k", {"text": "dog"}))
        plain = asyncio.create_task(store.aput(NAMESPACE, "k", {"text": "cat"}, index=False))
        await store.aput(("users", "bob"), "k", {"text": "boat"})
        assert not quick.done()
        release.set()
        await asyncio.gather(slow, quick, plain)
        texts = [version.value["text"] for version in store.history(NAMESPACE, "k") if version.value]
        assert texts == ["cat", "dog", "slow tea"]
        with pytest.raises(ValueError, match="async"):  # as upstream says it
            store.put(NAMESPACE, "k", {"text": "new words"})


async def test_many_coroutines_share_commits(store: StepwellStore) -> None:
    """A hundred coroutines that put at once need few commits, and each finds what it has put."""

    async def use(number: int) -> None:
        await store.aput(("users", f"user {number}"), "k", {"n": number})
        assert value_of(await store.aget(("users", f"user {number}"), "k")) == {"n": number}
        assert len(await store.asearch(("users", f"user {number}"))) == 1

    await asyncio.gather(*(use(number) for number in range(100)))
    assert len(await store.asearch(("users",), limit=200)) == 100


async def test_the_loop_goes_on(path: Path) -> None:
    """Large values, long lists and first reads do not hold the event loop up."""
    async with StepwellStore.from_conn_string(path) as store:
        for batch in range(4):
            puts = [PutOp(("users", f"user {batch}"), f"k{number}", {"n": number}) for number in range(1000)]
            await store.abatch(puts)
        await store.aput(NAMESPACE, "large", {"text": "x" * 3_000_000, "list": list(range(50_000))})
    async with StepwellStore.from_conn_string(path) as store:
        longest = 0.0
        busy = True

        async def watch() -> None:
            nonlocal longest
            while busy:
                begin = time.thread_time()
                await asyncio.sleep(0)
                # What the loop's thread itself has computed between two turns: other threads, and other processes on
                # a machine that is never idle, do not count.
                longest = max(longest, time.thread_time() - begin)

        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)
        assert len(await store.asearch((), filter={"n": {"$gt": 990}}, limit=100)) == 36
        assert len(await store.asearch((), limit=4)) == 4
        assert value_of(await store.aget(NAMESPACE, "large")) is not None
        await store.aput(NAMESPACE, "large", {"text": "y" * 3_000_000, "list": list(range(50_000))})
        await store.aput(NAMESPACE, "k", {"n": 1})
        await store.abatch([PutOp(NAMESPACE, f"k{number}", {"n": number}) for number in range(200)])
        assert len(await store.asearch(NAMESPACE, limit=300)) == 202
        busy = False
        await watcher
    assert longest < 0.02, f"the loop's thread computed for {longest * 1000:.1f} ms between two turns"


# --- embedding ---


class Model(Embeddings):
    """An embedder that says which model it uses."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.documents: list[str] = []
        self.queries: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.documents += texts
        return [vector_of(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.queries.append(text)
        return vector_of(text)


def test_texts_are_embedded_once(path: Path) -> None:
    """A text of the same batch, or one that was embedded lately, is not embedded again."""
    embedder = Embedder()
    with StepwellStore.from_conn_string(path, index=index_of(embedder, "text")) as store:
        store.batch([PutOp(NAMESPACE, "a", {"text": "tea"}), PutOp(NAMESPACE, "b", {"text": "tea"})])
        store.put(NAMESPACE, "a", {"text": "tea", "more": 1})
        store.batch([PutOp(("other",), "c", {"text": "tea"}), PutOp(("other",), "d", {"text": "dog"})])
        assert embedder.calls == [["tea"], ["dog"]]
        assert [round(item.score or 0, 6) for item in store.search((), query="tea", limit=3)] == [1, 1, 1]


def test_texts_of_the_value_before_are_not_embedded_again(path: Path) -> None:
    """In another process too, if the same model is known to have made the vectors; and only then."""

    def put(embed: Any, more: int) -> None:
        with StepwellStore.from_conn_string(path, index=index_of(embed, "texts[*]")) as store:
            store.put(NAMESPACE, "k", {"texts": ["tea", "dog"], "more": more})
            assert [item.key for item in store.search((), query="dog")] == ["k"]

    first, again, another, function = Model("m"), Model("m"), Model("n"), Embedder()
    put(first, 1)
    put(again, 2)
    put(another, 3)
    put(function, 4)
    put(function, 5)
    assert (first.documents, again.documents, another.documents) == (["tea", "dog"], [], ["tea", "dog"])
    assert function.calls == [["tea", "dog"], ["dog"], ["tea", "dog"], ["dog"]]
    assert again.queries == ["dog"]


def test_vectors_are_there_after_closing(path: Path) -> None:
    """Another store on the file finds by the vectors that are in it."""
    for number in range(2):
        embedder = Embedder()
        with StepwellStore.from_conn_string(path, index=index_of(embedder, "text")) as store:
            if number == 0:
                store.batch([PutOp(NAMESPACE, word, {"text": word}) for word in WORDS])
            assert [item.key for item in store.search((), query="cat", limit=1)] == ["cat"]
    assert embedder.calls == [["cat"]]


def test_vectors_are_kept_up_with_the_log(path: Path) -> None:
    """Puts, deletions and other stores' writes are found by the next query, whatever is held."""
    with (
        StepwellStore.from_conn_string(path, index=index_of(Embedder(), "text")) as store,
        StepwellStore.from_conn_string(path, index=index_of(Embedder(), "text")) as other,
    ):
        wanted: dict[str, str] = {}
        for number in range(60):
            word = WORDS[number * 5 % 8]
            writer = store if number % 3 else other
            key = f"k{number * 7 % 20}"
            if number % 4 == 3:
                writer.delete(NAMESPACE, key)
                wanted.pop(key, None)
            else:
                writer.put(NAMESPACE, key, {"text": word})
                wanted[key] = word
            for reader in (store, other):
                found = reader.search(NAMESPACE, query=word, limit=50)
                assert {item.key: item.value["text"] for item in found} == wanted
                best = [item.key for item in found if (item.score or 0) > 0.999]
                assert sorted(best) == sorted(key for key, text in wanted.items() if text == word)


def test_what_does_not_fit_into_memory(path: Path) -> None:
    """A store that may hold next to nothing answers alike."""
    with StepwellStore.from_conn_string(path, index=index_of(Embedder(), "text"), memory_bytes=20_000) as store:
        store.batch([PutOp(("users", f"u{n % 3}"), f"k{n}", {"text": WORDS[n % 8], "n": n}) for n in range(300)])
        assert [item.value["n"] for item in store.search((), limit=5)] == [299, 298, 297, 296, 295]
        assert [item.value["n"] for item in store.search(("users", "u1"), filter={"n": {"$lt": 9}})] == [7, 4, 1]
        found = store.search(("users", "u1"), query="tea", limit=4)
        assert [item.value["text"] for item in found] == ["tea"] * 4
        assert [item.value["n"] for item in found] == [280, 256, 232, 208]
        assert len(store.search((), query="tea", limit=1000)) == 300
        assert store._present._collections.cache.size_bytes < 200_000
