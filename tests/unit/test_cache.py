"""What is remembered stays within its budget, and the least recently used goes first."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint

from stepwell import Log, UsageError
from stepwell import cache as caching
from stepwell.cache import Cache, Shelf
from stepwell_langgraph import StepwellSaver

ENTRY = caching._ENTRY_BYTES


def test_shelves_are_apart() -> None:
    """The same key on two shelves is two things."""
    cache = Cache()
    one: Shelf[str, int] = Shelf(cache)
    other: Shelf[str, int] = Shelf(cache)
    one.put("key", 1, 1)
    other.put("key", 2, 1)
    assert (one.get("key"), other.get("key")) == (1, 2)
    assert one.take("key") == 1
    assert (one.get("key"), one.take("key"), other.all_keys()) == (None, None, ["key"])


def test_the_budget_is_shared() -> None:
    """A shelf that is used a lot takes the room of one that is not."""
    cache = Cache(10 * (ENTRY + 100))
    idle: Shelf[int, bytes] = Shelf(cache)
    busy: Shelf[int, bytes] = Shelf(cache)
    for key in range(5):
        idle.put(key, b"", 100)
    for key in range(8):
        busy.put(key, b"", 100)
        idle.get(0)
    assert idle.all_keys() == [4, 0]
    assert busy.all_keys() == [*range(8)]


def test_the_newest_thing_is_always_held() -> None:
    """What is larger than the budget is held until the next thing comes."""
    cache = Cache(0)
    shelf: Shelf[int, str] = Shelf(cache)
    shelf.put(1, "large", 1 << 40)
    assert shelf.get(1) == "large"
    shelf.put(2, "small", 1)
    assert (shelf.get(1), shelf.get(2)) == (None, "small")


@given(st.lists(st.tuples(st.sampled_from(["put", "get", "take"]), st.integers(0, 5), st.integers(0, 400))))
def test_against_a_model(calls: list[tuple[str, int, int]]) -> None:
    """Sizes add up, the order is that of use, and the budget holds."""
    cache = Cache(4 * ENTRY)
    shelf: Shelf[int, int] = Shelf(cache)
    model: dict[int, int] = {}
    for call, key, size in calls:
        if call == "put":
            model.pop(key, None)
            model[key] = size
            shelf.put(key, size, size)
            while sum(each + ENTRY for each in model.values()) > 4 * ENTRY and len(model) > 1:
                del model[next(iter(model))]
        elif call == "get":
            assert shelf.get(key) == model.get(key)
            if key in model:
                model[key] = model.pop(key)
        else:
            assert shelf.take(key) == model.pop(key, None)
        assert shelf.all_keys() == [*model]
        assert cache.size_bytes == sum(each + ENTRY for each in model.values())


def test_many_threads_at_once() -> None:
    """Sizes add up whoever puts, gets and takes at the same moment."""
    cache = Cache(50 * ENTRY)
    shelves: list[Shelf[int, int]] = [Shelf(cache) for _ in range(3)]

    def use(seed: int) -> None:
        for turn in range(2000):
            shelf, key = shelves[(seed + turn) % 3], turn * seed % 40
            (shelf.put(key, 1, key), shelf.get(key), shelf.take(key + 1))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for shelf in shelves:
        for key in shelf.all_keys():
            shelf.take(key)
    assert cache.size_bytes == 0


@pytest.mark.parametrize("wrong", [-1, 1.5, "1", None])
def test_a_budget_is_a_whole_number(wrong: object) -> None:
    """Anything else is refused when the log is opened."""
    with pytest.raises(UsageError, match="cache_bytes"):
        Log.open(":memory:", cache_bytes=wrong)  # type: ignore[arg-type]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells what the process takes")
def test_a_log_that_many_threads_were_touched_in_stays_within_its_budget(tmp_path: Path) -> None:
    """Threads that were written once and read once leave no trace beyond the budget."""
    budget = 1 << 20
    with StepwellSaver(Log.open(tmp_path / "agents.stepwell", cache_bytes=budget)) as saver:

        def touch(first: int, last: int) -> None:
            for number in range(first, last):
                config = {"configurable": {"thread_id": str(number), "checkpoint_ns": ""}}
                checkpoint = empty_checkpoint()
                checkpoint["channel_values"] = {"messages": [HumanMessage(f"{number} " * 200, id=str(number))]}
                checkpoint["channel_versions"] = {"messages": "1"}
                stored = saver.put(
                    config, checkpoint, {"source": "input", "step": -1, "parents": {}}, {"messages": "1"}
                )
                saver.put_writes(stored, [("messages", "answer")], "task")
                assert saver.get_tuple(config) is not None

        touch(0, 400)
        before = resident_bytes()
        touch(400, 1600)
        grown = resident_bytes() - before
        assert saver.log.cache.size_bytes <= budget
        assert grown < 4 * budget, f"{grown:,} bytes more for 1,200 threads"


def test_many_small_elements_count_as_what_is_noted_of_them() -> None:
    """What is remembered of an element takes more than the encoding of a small one."""
    values = {"list": [{"n": n} for n in range(1000)], "map": {str(n): [n] for n in range(1000)}}
    with StepwellSaver(Log.open(":memory:")) as saver:
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = values
        config = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
        saver.put(config, checkpoint, {"source": "input", "step": -1, "parents": {}}, {"list": "1", "map": "1"})
        (memory,) = (saver._memories._lanes.get(("1", "")) or {}).values()
        assert 2000 * 200 < memory.size < 2000 * 400
