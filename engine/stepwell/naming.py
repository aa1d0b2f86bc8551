"""Which step is meant: one way of naming it, wherever one is named.

None, "", head      the step that was committed last in its lane
231, "#231"         the step at a sequence, of whichever lane
"17", "-1"          the step of that number, as LangGraph counts; of several, the one on the head's branch
"1f0e3a5c-7b2d"     the step whose id this is, or begins with, or ends with, if there is only one
...~3               three steps before, along the branch
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from stepwell import format as fmt
from stepwell.errors import UsageError
from stepwell.history import History, Link, near, number_in, step_number
from stepwell.inspect import safe_text

_SHORTEST_ID: Final = 4  # characters of a part of an id; fewer are more likely a mistake
_BACK: Final = re.compile(r"(?P<rest>.*?)(?P<back>(?:~[0-9]{0,18})+)", re.DOTALL)
_SEQUENCE: Final = re.compile(r"#[0-9]{1,18}")
_COUNTED: Final = re.compile(r"[+-]?[0-9]{1,18}")
_HEAD: Final = ("", "head", "HEAD")
_END: Final = 1 << 62
_MOST_SHOWN: Final = 5
_MOST_COMPARED: Final = 200


def resolve(history: History, at: int | str | None, lane: str = "") -> Link:
    """The step that is meant.

    Args:
        history: The thread.
        at: What names it.
        lane: The lane to look in; a sequence brings its own.

    Raises:
        UsageError: There is none, or more than one.
    """
    if at is None or isinstance(at, str):
        try:
            (at or "").encode()
        except UnicodeEncodeError:
            raise UsageError(f"{at!r} names no step: it holds half a surrogate pair, which no UTF-8 text can") from None
        return _named(history, at or "", lane)
    if isinstance(at, bool) or not isinstance(at, int):
        raise UsageError(f"a step is named by a sequence (int) or a text, not by {type(at).__name__}: {at!r}")
    return _at_sequence(history, at)


def _named(history: History, text: str, lane: str) -> Link:
    back = _BACK.fullmatch(text)
    if back is not None:
        start = _named(history, back["rest"], lane)
        return _before(history, start, sum(int(count or 1) for count in back["back"].split("~")[1:]))
    if _SEQUENCE.fullmatch(text):
        return _at_sequence(history, int(text[1:]))
    number, row = history.lane(lane)
    if text in _HEAD:
        if not row.head:
            raise UsageError(f"lane {lane!r} of thread {history.thread_id!r} has no step yet")
        return history.link(row.head)
    (found,) = history.found(number, [text])
    if found.step and not found.hidden:
        return history.link(found.step)
    counted = _COUNTED.fullmatch(text) is not None
    if counted:
        link = _numbered(history, number, row.head, int(text))
        if link is not None:
            return link
    link = _part_of_id(history, number, text) if len(text) >= _SHORTEST_ID else None
    if link is not None:
        return link
    raise UsageError(_nothing(history, number, lane, text, counted=counted))


def _at_sequence(history: History, sequence: int) -> Link:
    row = history.row
    record = history.storage.read(history.number, [sequence]).get(sequence) if 0 < sequence < _END else None
    if record is None:
        raise UsageError(
            f"thread {history.thread_id!r} has no event at sequence {sequence}; it holds {row.first} to {row.last}"
        )
    if record.header.kind == fmt.KIND_STEP:
        return history.link(sequence)
    raise UsageError(f"event {sequence} of thread {history.thread_id!r} is not a step{_nearest(history, sequence)}")


def _nearest(history: History, sequence: int) -> str:
    """The steps around a sequence."""
    around = [
        record.sequence
        for low, high, back in ((0, sequence, True), (sequence, _END, False))
        for record in history.storage.scan(history.number, low, high, 64, reverse=back)
        if record.header.kind == fmt.KIND_STEP
    ]
    before = max((each for each in around if each < sequence), default=None)
    after = min((each for each in around if each > sequence), default=None)
    steps = " and ".join(f"#{each}" for each in (before, after) if each is not None)
    return f"; the nearest steps are {steps}" if steps else ""


def _before(history: History, start: Link, count: int) -> Link:
    number, _ = history.lane(start.event.lane)
    passed = 0
    for page in history.upwards(number, start):
        if passed + len(page) > count:
            return page[count - passed]
        passed += len(page)
    if passed == 1:
        raise UsageError(f"step #{start.sequence} is the first of its branch: there is none before it")
    raise UsageError(f"there are only {passed - 1} steps before step #{start.sequence} on its branch, not {count}")


def _numbered(history: History, lane: int, head: int, number: int) -> Link | None:
    if head:
        for page in history.upwards(lane, history.link(head)):
            for link in page:
                if _number(history, link) == number:
                    return link
    others = [link for link in history.steps(lane) if _number(history, link) == number]
    if len(others) > 1:
        raise UsageError(f"{len(others)} steps have the number {number}, on different branches: {_list(others)}")
    return _newest(history, lane, others[0]) if others else None


def _number(history: History, link: Link) -> int | None:
    number = number_in(link.event, history.payloads)
    if number is None and link.event.fields.changes:
        number = step_number(history.states.state(history.number, link.sequence), history.payloads)
    return number


def _part_of_id(history: History, lane: int, text: str) -> Link | None:
    found = [
        link for link in history.steps(lane) if link.event.step_id.startswith(text) or link.event.step_id.endswith(text)
    ]
    if len(found) > 1:
        raise UsageError(f"the ids of {len(found)} steps begin or end with {text!r}: {_list(found)}")
    return _newest(history, lane, found[0]) if found else None


def _newest(history: History, lane: int, link: Link) -> Link:
    """A step as it was committed last."""
    (found,) = history.found(lane, [link.event.step_id])
    return link if found.step == link.sequence else history.link(found.step)


def _list(links: list[Link]) -> str:
    shown = ", ".join(f"{safe_text(link.event.step_id)} (#{link.sequence})" for link in links[:_MOST_SHOWN])
    return shown + (", ..." if len(links) > _MOST_SHOWN else "")


def _nothing(history: History, lane: int, name: str, text: str, *, counted: bool) -> str:
    """What to say where nothing is found."""
    where = f"lane {name!r} of thread {history.thread_id!r}" if name else f"thread {history.thread_id!r}"
    if counted:
        numbers = [number for link in history.steps(lane) if (number := _number(history, link)) is not None]
        known = f"; its steps have {f'the numbers {min(numbers)} to {max(numbers)}' if numbers else 'no numbers'}"
        return f"{where} has no step with the number {text}{known}; a sequence is written #{text.lstrip('+-')}"
    ids = [link.event.step_id for link in islice(history.steps(lane), _MOST_COMPARED)]
    elsewhere = [
        other for number, other, _ in history.lanes() if number != lane and history.found(number, [text])[0].step
    ]
    if elsewhere:
        return f"{where} has no step {text!r}, but lane {elsewhere[0]!r} has"
    return f"{where} has no step {text!r}{near(text, ids)}"
