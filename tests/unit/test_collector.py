"""The pause of the garbage collector: it ends, whatever happens, and belongs to whoever began it."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest

from stepwell_langgraph.collector import paused


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_nothing_is_collected_during_a_pause() -> None:
    """Within the block the collector is off, behind it on again."""
    with paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_pause_ends_with_an_error() -> None:
    """A block that raises leaves the collector on."""
    with pytest.raises(ValueError, match="no"), paused():
        raise ValueError("no")
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    """Who has turned the collector off does not find it on after a pause."""
    gc.disable()
    with paused():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_a_pause_is_not_made_longer_by_another() -> None:
    """A pause within a pause, in whatever thread, ends with the first: many of them cannot keep the collector out."""
    entered, leave = threading.Event(), threading.Event()

    def overlap() -> None:
        with paused():
            entered.set()
            leave.wait(10)

    with paused():
        thread = threading.Thread(target=overlap)
        thread.start()
        assert entered.wait(10)
    assert gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process with threads
def test_a_forked_child_collects() -> None:
    """A child that is forked while another thread pauses the collector has it on, and can pause it."""
    entered, leave = threading.Event(), threading.Event()

    def pause() -> None:
        with paused():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=pause)
    thread.start()
    assert entered.wait(10)
    pid = os.fork()
    if not pid:
        collects = gc.isenabled()
        with paused():
            os._exit(0 if collects and not gc.isenabled() else 1)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
