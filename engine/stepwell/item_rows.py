"""What the tables of items must hold, computed from the events alone.

It shares the form of the rows with the code that keeps them, and nothing else: it looks at each item's versions from
the end, where that goes from one change to the next.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator

from stepwell import format as fmt
from stepwell.events import ItemDeleted, ItemEvent, ItemPut
from stepwell.patch import Ref
from stepwell.storage import ItemName
from stepwell.storage.items import VERSIONS_IN_ROW, ItemRow, Version, pack_item, pack_versions, value_in_row
from stepwell.storage.tables import EXPIRIES, ITEMS, VERSIONS


class Life:
    """An item from one put that created it to its deletion.

    Attributes:
        born: Where that put stands.
        created_at: When it came.
        versions: The puts, and the deletion.
    """

    def __init__(self, born: int, created_at: int) -> None:
        self.born = born
        self.created_at = created_at
        self.versions: list[Version] = []


class History:
    """All lives of one item.

    Attributes:
        lives: In their order.
        newest: Its value now, and when that was put; None while there is none.
        expires_at: When that expires; 0 for never.
    """

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.newest: tuple[ItemPut, int] | None = None
        self.expires_at = 0

    def versions(self) -> list[tuple[Version, int]]:
        """Every version with where its life began."""
        return [(version, life.born) for life in self.lives for version in life.versions]


class ItemRows:
    """The items of one thread."""

    def __init__(self) -> None:
        self._histories: dict[ItemName, History] = {}

    def add(self, sequence: int, header: fmt.Header, event: ItemEvent) -> None:
        """Take the next event."""
        history = self._histories.setdefault((event.namespace, event.key), History())
        if isinstance(event, ItemPut):
            if history.newest is None:
                history.lives.append(Life(sequence, event.born_at or header.created_at))
            version = Version(event.commit or header.commit, sequence, deleted=False)
            history.lives[-1].versions.append(version)
            history.newest, history.expires_at = (event, header.created_at), event.expires_at or 0
        elif history.newest is None:
            return
        elif not isinstance(event, ItemDeleted):
            if event.sequence == history.lives[-1].versions[-1].sequence:
                history.expires_at = event.expires_at
        elif event.expired_by is None or 0 < history.expires_at <= event.expired_by:
            version = Version(event.commit or header.commit, sequence, deleted=True)
            history.lives[-1].versions.append(version)
            history.newest, history.expires_at = None, 0

    def histories(self) -> ItemsView[ItemName, History]:
        """Every item that ever was, with all its lives."""
        return self._histories.items()

    def rows(self, read: Callable[[Ref], bytes]) -> Iterator[tuple[str, bytes, bytes]]:
        """Every row: table, key, value.

        Args:
            read: Gives the content of events.
        """
        for name, history in self._histories.items():
            key, is_literal = fmt.item_place(*name)
            past = history.versions()
            if history.newest is not None:
                past.pop()
            newest_row = 0
            for run in _runs(past):
                newest_row = run[0][0].commit
                packed = pack_versions(run[0][1], [version for version, _ in run])
                yield VERSIONS, fmt.versions_key(key, newest_row), packed
            if history.newest is not None:
                yield ITEMS, key, pack_item(_row(None if is_literal else name, history, newest_row, read))
                if history.expires_at:
                    yield EXPIRIES, fmt.expiry_key(history.expires_at, key), b""


def _runs(past: list[tuple[Version, int]]) -> Iterator[list[tuple[Version, int]]]:
    """Versions as they stand in rows: a row that is full takes those of its last commit, and no others."""
    start = 0
    while start < len(past):
        stop = start + VERSIONS_IN_ROW
        while stop < len(past) and past[stop][0].commit == past[stop - 1][0].commit:
            stop += 1
        yield past[start:stop]
        start = stop


def _row(name: ItemName | None, history: History, newest_row: int, read: Callable[[Ref], bytes]) -> ItemRow:
    assert history.newest is not None
    event, updated_at = history.newest
    life = history.lives[-1]
    version = life.versions[-1]
    return ItemRow(
        version.sequence,
        version.commit,
        updated_at,
        life.born,
        life.created_at,
        newest_row if len(life.versions) > 1 else 0,
        history.expires_at,
        value_in_row(event.value, read),
        name,
    )
