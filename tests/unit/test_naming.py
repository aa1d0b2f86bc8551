"""A step is found by whatever names it, and what names none, or several, is an error that helps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reading import Book
from stepwell import Log, UsageError

IDS = ["1f0e3a5c-7b2d-6c41-8003-9a5e4d7f2b16", "1f0e3a5c-7b2d-6c41-8004-000000000001", "12345-first"]


@pytest.fixture
def book() -> Iterator[Book]:
    """Steps -1, 0, 1 and a fork of 0: another step 1, which is the head; and a lane with one step."""
    with Log.open(":memory:") as log:
        made = Book(log)
        made.step("12345-first", {"n": 1})
        made.wrote("12345-first", "node", {"n": 2})
        made.step(IDS[0], {"n": 2}, "12345-first")
        made.step("left", {"n": 3}, IDS[0])
        made.step(IDS[1], {"n": 4}, IDS[0])
        made.step("inner", {"n": 5}, lane="tools:1")
        yield made


@pytest.mark.parametrize(
    ("name", "step_id"),
    [
        (None, IDS[1]),
        ("", IDS[1]),
        ("head", IDS[1]),
        ("head~", IDS[0]),
        ("head~2", "12345-first"),
        ("left~1~1", "12345-first"),
        (3, "12345-first"),
        ("#3", "12345-first"),
        ("#3~0", "12345-first"),
        ("-1", "12345-first"),
        ("0", IDS[0]),
        ("1", IDS[1]),
        ("12345", "12345-first"),
        ("left", "left"),
        (IDS[0], IDS[0]),
        ("1f0e3a5c-7b2d-6c41-8003", IDS[0]),
        ("9a5e4d7f2b16", IDS[0]),
    ],
)
def test_a_step_is_found_by_what_names_it(book: Book, name: int | str | None, step_id: str) -> None:
    """Sequences, numbers, ids, parts of ids and ways back all name steps."""
    assert book.thread.resolve(name).step_id == step_id


def test_a_lane_is_looked_in_by_its_name(book: Book) -> None:
    """Heads and numbers are those of the lane, and a sequence brings its own."""
    assert book.thread.resolve(lane="tools:1").step_id == "inner"
    assert book.thread.resolve("-1", lane="tools:1").step_id == "inner"
    assert book.thread.resolve(book.places["inner"]).lane == "tools:1"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("7", r"no step with the number 7; its steps have the numbers -1 to 1; a sequence is written #7"),
        ("1f0e", "the ids of 2 steps begin or end with '1f0e': "),
        ("lefd", r"no step 'lefd'; did you mean 'left'\?"),
        ("inner", "but lane 'tools:1' has"),
        ("#4", "event 4 of thread 't' is not a step; the nearest steps are #3 and #5"),
        (99, "no event at sequence 99; it holds 1 to"),
        (0, "no event at sequence 0"),
        (-1, "no event at sequence -1"),
        ("head~9", r"only 2 steps before step #7 on its branch, not 9"),
        ("#3~1", "step #3 is the first of its branch: there is none before it"),
        ("#\u00b2", "no step '#\u00b2'"),
        ("\u0663", "no step '\u0663'"),
        ("9" * 5000, "no step '999"),
        ("#" + "9" * 5000, "no step '#999"),
        ("~" + "9" * 5000, "no step '~999"),
        ("~" * 5000, "not 5000"),
        ("\ud800", "half a surrogate pair"),
        (True, "not by bool"),
        (1.5, "not by float"),
    ],
)
def test_what_names_no_step_is_told(book: Book, name: int | str, says: str) -> None:
    """The error says what there is instead."""
    with pytest.raises(UsageError, match=says):
        book.thread.resolve(name)


def test_a_number_that_two_branches_have_is_told() -> None:
    """Where neither is on the head's branch, both are listed."""
    with Log.open(":memory:") as log:
        book = Book(log)
        for step_id in ("a", "b", "c"):
            book.step(f"root-{step_id}", {"n": 1}, number=ord(step_id))
        for step_id in ("a", "b"):
            book.step(f"leaf-{step_id}", {"n": 2}, f"root-{step_id}", number=500)
        book.step("end", {"n": 2}, "root-c", number=501)
        with pytest.raises(UsageError, match=r"2 steps have the number 500, on different branches: leaf-b"):
            book.thread.resolve("500")
        assert book.thread.resolve(str(ord("a"))).step_id == "root-a"


def test_a_step_that_was_committed_again_is_found_as_it_is_now(book: Book) -> None:
    """A re-put replaces what a name finds, also where it is found by its number or a part of its id."""
    again = book.step(IDS[0], {"n": 22}, "12345-first")
    for name in ("0", IDS[0][:30], "head~1"):
        assert book.thread.resolve(name).sequence == again
    assert book.thread.view("0")["n"] == 22


def test_threads_and_lanes_have_near_misses(book: Book) -> None:
    """Names of threads and lanes that are not there are told with what is like them."""
    with pytest.raises(UsageError, match=r"no lane 'tool:1'; did you mean 'tools:1'"):
        book.thread.tree(lane="tool:1")
    with pytest.raises(UsageError, match=r"no thread 'tt'; did you mean 't'\?"):
        book.thread.log.thread("tt").view()
    with pytest.raises(UsageError, match="does not come before step"):
        list(book.thread.replay(since="left", until=IDS[1]))
