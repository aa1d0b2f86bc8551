"""What may be on a disk after the power went, given what a program had done by then.

    - What was written before the last sync of its file that has returned is there.
    - Of what was written since, each sector has any content that it had in the page cache since then, by itself:
      so any subset of the writes is there, in any order, each torn at any sector.
    - The file's length is what it was at that sync, what it is now, or anything between and along the way.
      What was not written, and lies within the length, is zeros.
    - A write with O_DSYNC is there once it has returned, with the pages that it touches and the length it needs.
    - A new name, a new path or a removal is there once the folder was synced; of the others, the first few are.

Invariants: `cached` is what a program reads; `durable` is what is there if nothing else is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from crash.trace import (
    Event,
    Linked,
    Met,
    Noted,
    Reached,
    Removed,
    Renamed,
    Resized,
    SyncBegan,
    SyncEnded,
    SyncWriteBegan,
    SyncWriteEnded,
    Written,
    Zeroed,
)

PAGE_BYTES: Final = 4096


class Rules(NamedTuple):
    """What is assumed of the disk and the kernel.

    Attributes:
        sector_bytes: What is written whole or not at all.
        length_by_fdatasync: fdatasync, and O_DSYNC, make a new length of the file durable; fsync always does.
    """

    sector_bytes: int = 512
    length_by_fdatasync: bool = True


TODAY: Final = Rules()


class Choice(NamedTuple):
    """Which of the possible contents a disk has: a rule, and a seed for what it leaves open.

    Attributes:
        point: How many events had happened.
        kept: Which of the unsynced writes are there: `none`, `all`, `only` or `without` the one with `number`,
            `torn` (those before `number`, and parts of that), a random `subset` of them, or any version of each
            `page`, or of each `sector`.
        number: Of a write.
        length: `old`, `new` or `between`.
        seed: For the rest.
    """

    point: int
    kept: str = "all"
    number: int = 0
    length: str = "new"
    seed: int = 0


@dataclass
class _File:
    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    durable_length: int = 0
    # What may be there instead: of each sector its contents since, and the lengths, each with its event's number.
    versions: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    lengths: list[tuple[int, int]] = field(default_factory=list)

    def numbers(self) -> list[int]:
        """The events whose writes may be there or not."""
        return sorted({number for versions in self.versions.values() for number, _ in versions})


class Disk:
    """The files of one folder, while events happen to them."""

    def __init__(self, rules: Rules = TODAY) -> None:
        self._rules = rules
        self._happened = 0
        self._files: dict[int, _File] = {}
        self._folders: set[int] = set()
        self._paths: dict[str, int] = {}  # what a program sees
        self._durable_paths: dict[str, int] = {}
        self._changes_of_paths: list[tuple[int, Callable[[dict[str, int]], object]]] = []
        self._syncs: dict[int, int] = {}  # by token: the number of the event with which it began

    def apply(self, event: Event) -> None:
        """Let an event happen."""
        self._happened += 1
        match event:
            case Met(file, path, created, is_folder):
                self._files[file] = _File()
                if is_folder:
                    self._folders.add(file)
                elif created:
                    self._change_paths(lambda paths: paths.update({path: file}))
            case Written(file, offset, content):
                self._write(self._files[file], offset, content)
            case Zeroed(file, offset, length):
                length = max(0, min(length, len(self._files[file].cached) - offset))
                self._write(self._files[file], offset, bytes(length))
            case Resized(file, length):
                self._resize(self._files[file], length)
            case Reached(file, length):
                self._resize(self._files[file], max(length, len(self._files[file].cached)))
            case SyncWriteBegan(file, offset, content, token):
                self._syncs[token] = self._happened
                self._write(self._files[file], offset, content)
            case SyncWriteEnded(file, token):
                self._sync_pages(self._files[file], self._syncs.pop(token))
            case SyncBegan(_, token):
                self._syncs[token] = self._happened
            case SyncEnded(file, token, whole):
                self._sync(self._files[file], self._syncs[token], whole)
                if file in self._folders:
                    self._sync_paths(self._syncs[token])
                del self._syncs[token]
            case Renamed(path, new_path):
                self._change_paths(lambda paths: path in paths and paths.update({new_path: paths.pop(path)}))
            case Linked(path, new_path):
                self._change_paths(lambda paths: path in paths and paths.update({new_path: paths[path]}))
            case Removed(path):
                self._change_paths(lambda paths: paths.pop(path, None))
            case Noted():
                pass

    # --- writes and syncs ---

    def _write(self, file: _File, offset: int, content: bytes) -> None:
        size = self._rules.sector_bytes
        end = offset + len(content)
        if not content:
            return
        if end > len(file.cached):
            self._resize(file, end)
        file.cached[offset:end] = content
        for sector in range(offset // size, (end - 1) // size + 1):
            file.versions.setdefault(sector, []).append((self._happened, self._sector(file.cached, sector)))

    def _sector(self, content: bytearray, sector: int) -> bytes:
        size = self._rules.sector_bytes
        return bytes(content[sector * size : (sector + 1) * size]).ljust(size, b"\0")

    def _resize(self, file: _File, length: int) -> None:
        old = len(file.cached)
        if length == old:
            return
        if length < old:
            self._write(file, length, bytes(old - length))
        file.cached[length:] = bytes(max(0, length - old))
        file.lengths.append((self._happened, length))

    def _settle(self, file: _File, sectors: Iterable[int], number: int) -> None:
        """Make durable what some sectors held when an event began."""
        size = self._rules.sector_bytes
        for sector in sectors:
            versions = file.versions.pop(sector)
            done = [content for other, content in versions if other <= number]
            later = [version for version in versions if version[0] > number]
            if later:
                file.versions[sector] = later
            if done:
                file.durable.extend(bytes(max(0, (sector + 1) * size - len(file.durable))))
                file.durable[sector * size : (sector + 1) * size] = done[-1]

    def _settle_length(self, file: _File, number: int) -> None:
        for other, length in file.lengths:
            if other <= number:
                file.durable_length = length
        file.lengths = [each for each in file.lengths if each[0] > number]

    def _sync(self, file: _File, number: int, whole: bool) -> None:
        self._settle(file, list(file.versions), number)
        if whole or self._rules.length_by_fdatasync:
            self._settle_length(file, number)

    def _sync_pages(self, file: _File, number: int) -> None:
        sectors = PAGE_BYTES // self._rules.sector_bytes
        pages = {sector // sectors for sector, versions in file.versions.items() if number in dict(versions)}
        self._settle(file, [sector for sector in file.versions if sector // sectors in pages], number)
        if self._rules.length_by_fdatasync:
            self._settle_length(file, number)

    # --- paths ---

    def _change_paths(self, change: Callable[[dict[str, int]], object]) -> None:
        change(self._paths)
        self._changes_of_paths.append((self._happened, change))

    def _sync_paths(self, number: int) -> None:
        for other, change in self._changes_of_paths:
            if other <= number:
                change(self._durable_paths)
        self._changes_of_paths = [each for each in self._changes_of_paths if each[0] > number]

    # --- what may be there ---

    def contents(self) -> dict[str, bytes]:
        """By path, what a program reads."""
        return {path: bytes(self._files[file].cached) for path, file in self._paths.items()}

    def unsynced_writes(self) -> int:
        """How many writes may be there or not."""
        return sum(len(file.numbers()) for file in self._files.values())

    def is_unsure_of_lengths(self) -> bool:
        """Whether files, or their names, may have another length than they had, or not be there."""
        return bool(self._changes_of_paths) or any(file.lengths for file in self._files.values())

    def image(self, choice: Choice) -> dict[str, bytes]:
        """By path, what is on the disk.  The choice's point is not looked at."""
        rng = random.Random(choice.seed)
        paths = dict(self._durable_paths)
        named = {"old": 0, "new": len(self._changes_of_paths)}.get(choice.length)
        for _, change in self._changes_of_paths[
            : rng.randint(0, len(self._changes_of_paths)) if named is None else named
        ]:
            change(paths)
        # A file may have two paths.
        contents = {file: self._image_of(self._files[file], choice, rng) for file in dict.fromkeys(paths.values())}
        return {path: contents[file] for path, file in paths.items()}

    def _image_of(self, file: _File, choice: Choice, rng: random.Random) -> bytes:
        size = self._rules.sector_bytes
        content = bytearray(file.durable)
        newest = self._newest(file, choice, rng)
        for sector, versions in file.versions.items():
            number = newest(sector)
            for other, version in reversed(versions):
                if other <= number:
                    content.extend(bytes(max(0, sector * size - len(content))))
                    content[sector * size : (sector + 1) * size] = version
                    break
        length = self._length_of(file, choice, rng)
        return bytes(content[:length]).ljust(length, b"\0")

    def _newest(self, file: _File, choice: Choice, rng: random.Random) -> Callable[[int], int]:
        """Of each sector, the event whose version is there, or an earlier one if that changed nothing in it."""
        numbers = file.numbers()
        chosen = numbers[choice.number : choice.number + 1]
        match choice.kept:
            case "none":
                return lambda sector: 0
            case "all":
                return lambda sector: self._happened
            case "only":
                return self._of_set(file, set(chosen))
            case "without":
                return self._of_set(file, set(numbers) - set(chosen))
            case "subset":
                return self._of_set(file, {number for number in numbers if rng.random() < 0.5})
            case "torn":
                return self._torn(file, chosen[0] if chosen else 0, rng)
            case "page":
                sectors = PAGE_BYTES // self._rules.sector_bytes
                pages = sorted({sector // sectors for sector in file.versions})
                cuts = {page: rng.choice([0, *numbers]) for page in pages}
                return lambda sector: cuts[sector // sectors]
            case "sector":
                each = {
                    sector: rng.choice([0, *(number for number, _ in file.versions[sector])])
                    for sector in sorted(file.versions)
                }
                return each.__getitem__
        raise AssertionError(choice)

    @staticmethod
    def _of_set(file: _File, kept: set[int]) -> Callable[[int], int]:
        return lambda sector: max((number for number, _ in file.versions[sector] if number in kept), default=0)

    @staticmethod
    def _torn(file: _File, number: int, rng: random.Random) -> Callable[[int], int]:
        """All writes before one, and its beginning, its end, or some of its sectors."""
        sectors = sorted(sector for sector, versions in file.versions.items() if number in dict(versions))
        cut = rng.randint(0, len(sectors))
        parts = (sectors[:cut], sectors[cut:], [sector for sector in sectors if rng.random() < 0.5])
        there = frozenset(rng.choice(parts))
        return lambda sector: number if sector in there else number - 1

    def _length_of(self, file: _File, choice: Choice, rng: random.Random) -> int:
        lengths = [file.durable_length, *(length for _, length in file.lengths)]
        along_the_way = range(min(lengths), max(lengths), self._rules.sector_bytes)
        candidates: dict[str, list[int]] = {
            "old": lengths[:1],
            "new": lengths[-1:],
            "between": [*lengths, *along_the_way],
        }
        return rng.choice(candidates[choice.length])
