"""What one group of commits leaves for the next: rows that need not be read again."""

from __future__ import annotations

from typing import Final, NamedTuple

from stepwell.storage import LaneRow, ThreadRow
from stepwell.storage.feed import FeedEnd
from stepwell.storage.index import IndexRow

_MOST: Final = 1024  # threads or lanes; a group may bring more, and then the next one reads


class Remembered:
    """Rows as the tables have them, or will when the group that changes them ends.

    Attributes:
        threads: By id; None for one that is not there.
        lanes: By the numbers of thread and lane.
        lane_numbers: By the number of the thread and the name of the lane.
        last_ids: The greatest step id of each lane, with its row of the index: ids grow with time, so one that is
            greater is mostly what comes next, and certainly is not there.
        feed: Where the feed ends; None if that was not read yet.
    """

    __slots__ = ("feed", "lane_numbers", "lanes", "last_ids", "threads")

    def __init__(self) -> None:
        self.threads: dict[str, ThreadRow | None] = {}
        self.lanes: dict[tuple[int, int], LaneRow] = {}
        self.lane_numbers: dict[tuple[int, str], int] = {}
        self.last_ids: dict[tuple[int, int], tuple[bytes, IndexRow]] = {}
        self.feed: FeedEnd | None = None

    def forget_lanes(self) -> None:
        """Forget the lanes of all threads."""
        self.lanes.clear()
        self.lane_numbers.clear()
        self.last_ids.clear()


class Left(NamedTuple):
    """What a group left.

    Attributes:
        moment: The transaction that carried it out.
        rows: What the rows are after it.
    """

    moment: int
    rows: Remembered

    def at(self, moment: int) -> Remembered:
        """The rows for a transaction: those that are remembered, if none came between and they are few."""
        rows = self.rows
        few = max(len(rows.threads), len(rows.lanes), len(rows.lane_numbers), len(rows.last_ids)) <= _MOST
        return self.rows if few and moment == self.moment + 1 else Remembered()
