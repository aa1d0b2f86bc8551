"""What a log must hold after a kill: every acknowledged operation, of the others all or nothing.

The ledger takes the lines that writers reported and compares them with what a fresh process found in the
file.  What was announced and not acknowledged may be there, whole; the ledger then takes it over.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Place = tuple[str, str]
"""Namespace and checkpoint id."""


@dataclass
class Book:
    """One thread: digests of its checkpoints in commit order, and of its tasks' writes."""

    steps: dict[Place, str] = field(default_factory=dict)
    writes: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def heads(self) -> dict[str, str]:
        """The newest checkpoint of each namespace."""
        return dict(self.steps.keys())

    def prune(self) -> None:
        """Keep the heads, with their writes and those that still wait for their checkpoint."""
        kept = set(self.heads().items())
        self.writes = {
            place: found for place, found in self.writes.items() if place[:2] in kept or place[:2] not in self.steps
        }
        self.steps = {place: found for place, found in self.steps.items() if place in kept}


class Ledger:
    """All threads.

    Attributes:
        acknowledged: How many operations were.
        common: The thread that several writers put into at once.
    """

    def __init__(self, common: str) -> None:
        self.acknowledged = 0
        self.common = common
        self._books: dict[str, Book] = {}
        # What was announced and not acknowledged, by writer and number.
        self._open: dict[tuple[str, int], dict[str, Any]] = {}

    def note(self, writer: str, fact: Mapping[str, Any]) -> None:
        """Take one line of a writer."""
        if "op" in fact:
            self._open[writer, fact["op"]] = dict(fact)
        elif "done" in fact:
            _carry_out(self._books, self._open.pop((writer, fact["done"])))
            self.acknowledged += 1

    def settle(self, found: Mapping[str, Any]) -> list[str]:
        """Compare with what is in the file, take over what is there, and say what is wrong."""
        wrong = [f"audit: {breach}" for breach in found["breaches"]]
        if not found["goes_on"]:
            wrong.append("the file cannot be appended to")
        actual: dict[str, Book] = {}
        for thread in found["steps"].keys() | found["writes"].keys():
            actual[thread] = Book(found["steps"].get(thread, {}), found["writes"].get(thread, {}))
        pending: dict[str, list[dict[str, Any]]] = {}
        for fact in self._open.values():
            pending.setdefault(fact.get("target", fact["thread"]), []).append(fact)
        books: dict[str, Book] = {}
        for thread in sorted(self._books.keys() | actual.keys()):
            before, now = self._books.get(thread, Book()), actual.get(thread, Book())
            # In commit order, which the file is listed in backwards.
            now.steps = dict(reversed(now.steps.items()))
            heads = {ns: id for (name, ns), id in found["heads"].items() if name == thread}
            if heads != now.heads():
                wrong.append(f"{thread!r}: the heads are {heads}, the newest checkpoints {now.heads()}")
            wrong += [
                f"{thread!r}: {problem}" for problem in self._compare(thread, before, now, pending.get(thread, []))
            ]
            books[thread] = now
        self._books = {thread: book for thread, book in books.items() if book.steps or book.writes}
        self._open.clear()
        return wrong

    def _compare(self, thread: str, before: Book, now: Book, pending: list[dict[str, Any]]) -> list[str]:
        whole = [fact for fact in pending if fact["kind"] not in ("put", "writes")]
        if whole:
            assert len(pending) == 1, f"an agent does one thing at a time: {pending}"
            books = {**self._books, thread: copy.deepcopy(before)}
            _carry_out(books, whole[0])
            after = books.get(thread, Book())
            if _same(now, before) or _same(now, after):
                return []
            return [f"a {whole[0]['kind']} was half done: {problem}" for problem in _differences(now, after)]
        begun = copy.deepcopy(before)
        for fact in pending:
            _carry_out({thread: begun}, fact)
        wrong = _differences(now, before, may_have=begun)
        if thread != self.common:
            # The puts of one agent are committed in the order in which it made them.
            order = [place for place in begun.steps if place in now.steps]
            if dict(order) != now.heads():
                wrong.append(f"the newest checkpoints are {now.heads()}, not those that were put last")
        return wrong


def _carry_out(books: dict[str, Book], fact: Mapping[str, Any]) -> None:
    book = books.setdefault(fact["thread"], Book())
    match fact["kind"]:
        case "put":
            book.steps[fact["ns"], fact["id"]] = fact["digest"]
        case "writes":
            book.writes[fact["ns"], fact["id"], fact["task"]] = fact["digest"]
        case "prune":
            book.prune()
        case "delete":
            del books[fact["thread"]]
        case "copy":
            books[fact["target"]] = copy.deepcopy(book)


def _same(left: Book, right: Book) -> bool:
    return left.steps == right.steps and left.writes == right.writes


def _differences(now: Book, before: Book, *, may_have: Book | None = None) -> list[str]:
    """What is missing, wrong, or there without having been put."""
    begun = may_have or before
    wrong = []
    for what, found, acknowledged, announced in (
        ("checkpoint", now.steps, before.steps, begun.steps),
        ("write", now.writes, before.writes, begun.writes),
    ):
        wrong += [f"{what} {place} is lost" for place in acknowledged.keys() - found.keys()]
        for place, digest in found.items():
            if place not in announced:
                wrong.append(f"{what} {place} should not be there")
            elif digest not in (announced[place], acknowledged.get(place)):
                wrong.append(f"{what} {place} is not what was put")
    return wrong
