"""What was read and proven last, so that it is neither fetched nor checked nor decompressed again.

A thread's sequences are never given twice, so what stood at one once is right for as long as it stands there;
whether it still does, only the tables know.
"""

from __future__ import annotations

from stepwell.cache import Cache, Shelf
from stepwell.storage.segments import Segment


class Held:
    """Segments by thread and last sequence, and loose records by thread and sequence.

    Attributes:
        segments: As they were unpacked.
        records: Header and plain body of each: one object of bytes, which the collector need not look at.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        cache = cache or Cache()
        self.segments: Shelf[tuple[int, int], Segment] = Shelf(cache)
        self.records: Shelf[tuple[int, int], bytes] = Shelf(cache)
