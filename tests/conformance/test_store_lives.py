"""Items that expire: when, what makes their lives begin anew, and who sweeps them away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import GetOp, PutOp, TTLConfig

from stepwell import Log, UsageError
from stepwell_langgraph import StepwellStore
from stepwell_langgraph import store as module

NAMESPACE = ("users", "ada")
MINUTE = 60 * 10**9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The time of the store, in nanoseconds, which stands until the test sets it."""
    moment = [time.time_ns()]
    monkeypatch.setattr(module, "now", lambda: moment[0])
    return moment


def opened(**ttl: object) -> StepwellStore:
    return StepwellStore.from_conn_string(":memory:", ttl=TTLConfig(**ttl))  # type: ignore[typeddict-item]


def expiry_of(store: StepwellStore, key: str = "k") -> int | None:
    item = store.log.items.get(NAMESPACE, key)
    assert item is not None
    return item.expires_at


def settle(store: StepwellStore) -> None:
    """Wait for what nobody waits for."""
    store.put(("settle",), "k", {}, ttl=None)


def test_swept_when_expired(clock: list[int]) -> None:
    """A sweep deletes what has expired, and nothing else; the history stays."""
    with opened(default_ttl=10) as store:
        store.put(NAMESPACE, "k", {"n": 1})
        store.put(NAMESPACE, "longer", {}, ttl=20)
        store.put(NAMESPACE, "for ever", {}, ttl=None)
        assert expiry_of(store) == clock[0] + 10 * MINUTE
        assert store.sweep_ttl() == 0
        clock[0] += 11 * MINUTE
        assert store.sweep_ttl() == 1
        assert sorted(item.key for item in store.search(NAMESPACE)) == ["for ever", "longer"]
        assert [version.value for version in store.history(NAMESPACE, "k")] == [None, {"n": 1}]
        clock[0] += 20 * MINUTE
        assert asyncio.run(store.asweep_ttl()) == 1
        assert store.log.audit().breaches == []


def test_many_are_swept(clock: list[int]) -> None:
    """However many have expired, one sweep deletes them all."""
    with opened(default_ttl=1) as store:
        store.batch([PutOp(NAMESPACE, f"k{number}", {}, ttl=1) for number in range(2500)])
        clock[0] += 2 * MINUTE
        assert store.sweep_ttl() == 2500
        assert store.list_namespaces() == []


@pytest.mark.parametrize("read", ["get", "search", "batch", "aget", "asearch"])
def test_reading_begins_a_life_anew(clock: list[int], read: str) -> None:
    """An item that is read lives for its time from then on."""
    with opened(default_ttl=10) as store:
        store.put(NAMESPACE, "k", {"n": 1})
        clock[0] += 9 * MINUTE
        if read == "get":
            store.get(NAMESPACE, "k")
        elif read == "search":
            store.search(NAMESPACE)
        elif read == "batch":
            store.batch([GetOp(NAMESPACE, "k")])
        elif read == "aget":
            asyncio.run(store.aget(NAMESPACE, "k"))
        else:
            asyncio.run(store.asearch(NAMESPACE))
        settle(store)
        assert expiry_of(store) == clock[0] + 10 * MINUTE
        clock[0] += 9 * MINUTE
        assert store.sweep_ttl() == 0
        item = store.get(NAMESPACE, "k")
        assert item is not None
        assert item.value == {"n": 1}
        assert item.created_at == item.updated_at


def test_reads_that_begin_nothing_anew(clock: list[int]) -> None:
    """Not if the call or the configuration says so, nor the reads of the past, nor where little of a life has gone."""
    with opened(default_ttl=16, refresh_on_read=False) as store:
        store.put(NAMESPACE, "k", {})
        expires_at = expiry_of(store)
        commit = store.history(NAMESPACE, "k")[0].commit
        clock[0] += 8 * MINUTE
        store.get(NAMESPACE, "k")
        store.search(NAMESPACE)
        store.get(NAMESPACE, "k", refresh_ttl=True, as_of=commit)
        store.history(NAMESPACE, "k")
        settle(store)
        assert expiry_of(store) == expires_at
        store.get(NAMESPACE, "k", refresh_ttl=True)
        settle(store)
        assert expiry_of(store) == clock[0] + 16 * MINUTE
        events = store.log.items.version()
        clock[0] += MINUTE - 1
        store.get(NAMESPACE, "k", refresh_ttl=True)
        assert store.log.items.version() == events


def test_putting_again_sets_another_life(clock: list[int]) -> None:
    """The last put says how long an item lives."""
    with opened() as store:
        store.put(NAMESPACE, "k", {}, ttl=1)
        store.put(NAMESPACE, "k", {}, ttl=None)
        clock[0] += 2 * MINUTE
        assert store.sweep_ttl() == 0
        assert expiry_of(store) is None


def test_expired_items_are_shown_until_they_are_swept(clock: list[int]) -> None:
    """As upstream: only `omit_expired` hides them before."""
    for omit in (False, True):
        with opened(default_ttl=1, omit_expired=omit, refresh_on_read=False) as store:
            store.put(NAMESPACE, "k", {})
            store.put(("users", "bob"), "stays", {}, ttl=None)
            clock[0] += 2 * MINUTE
            shown = not omit
            assert (store.get(NAMESPACE, "k") is not None) is shown
            assert len(store.search(())) == 1 + shown
            assert store.list_namespaces() == [NAMESPACE] * shown + [("users", "bob")]
            assert len(store.search((), limit=1)) == 1
            # Of the past it hides nothing.
            commit = store.log.items.commit_at(clock[0])
            assert store.get(NAMESPACE, "k", as_of=commit) is not None
            assert len(store.search((), as_of=commit)) == 2


@pytest.mark.parametrize("ttl", ["soon", float("nan"), float("inf")])
def test_lives_that_are_no_time(ttl: object) -> None:
    """A life is a number of minutes."""
    with opened() as store, pytest.raises(UsageError, match="minutes"):
        store.put(NAMESPACE, "k", {}, ttl=ttl)  # type: ignore[arg-type]


# --- the sweeper ---


def test_sweeper(tmp_path: Path) -> None:
    """It sweeps at intervals until it is stopped; starting it twice starts one."""
    store = StepwellStore.from_conn_string(tmp_path / "agents.stepwell", ttl={"default_ttl": 0.0001})
    with store:
        store.put(NAMESPACE, "k", {})
        sweeping = store.start_ttl_sweeper(sweep_interval_minutes=0.0005)
        store.start_ttl_sweeper(sweep_interval_minutes=0.0005)
        deadline = time.monotonic() + 10
        while store.log.items.get(NAMESPACE, "k") is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert store.log.items.get(NAMESPACE, "k") is None
        assert not sweeping.done()
        assert store.stop_ttl_sweeper(timeout=10)
        assert sweeping.result(timeout=10) is None
        assert store.stop_ttl_sweeper()


def test_sweeper_is_cancelled_by_its_future() -> None:
    """Cancelling what `start_ttl_sweeper` returned stops it."""
    with opened(sweep_interval_minutes=1) as store:
        sweeping = store.start_ttl_sweeper()
        assert sweeping.cancel()
        with pytest.raises(CancelledError):
            sweeping.result()
        assert store.stop_ttl_sweeper(timeout=10)


def test_sweeper_ends_with_the_store() -> None:
    """Closing the store stops it; without a configuration there is none."""
    with opened(sweep_interval_minutes=1) as store:
        sweeping = store.start_ttl_sweeper()
    assert sweeping.result(timeout=10) is None
    with StepwellStore.from_conn_string(":memory:") as store:
        assert store.start_ttl_sweeper().done()


def test_every_start_is_told_of_the_end(tmp_path: Path) -> None:
    """Whoever starts the sweeper is told of its end; while it stops it can be started anew; a closed log ends it."""
    ttl: Any = {"default_ttl": 1}
    with Log.open(tmp_path / "agents.stepwell") as log:
        store = StepwellStore(log, ttl=ttl)
        both = [store.start_ttl_sweeper(), store.start_ttl_sweeper()]
        store._sweeper._stop.set()
        again = store.start_ttl_sweeper(sweep_interval_minutes=0.0005)
        for sweeping in both:
            assert sweeping.result(timeout=10) is None
        assert not again.done()
    assert again.result(timeout=10) is None


def test_sweeper_in_a_coroutine() -> None:
    """The calls may be awaited, as those of AsyncPostgresStore must be."""

    async def main() -> None:
        async with opened(sweep_interval_minutes=1) as store:
            sweeping = await store.start_ttl_sweeper()
            assert not sweeping.done()
            assert await store.stop_ttl_sweeper() is True
            assert sweeping.result(timeout=10) is None

    asyncio.run(main())
