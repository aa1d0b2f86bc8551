"""The engine for files: LMDB, the only package that imports it.

One file, one environment per file and process, counted.  Every commit is synced before it is
acknowledged; the unsafe modes of LMDB (no sync, writable map) are not reachable from here.  No transaction
outlives the call that began it: a reader left open would keep every page that is freed meanwhile.
"""

from __future__ import annotations

from stepwell.storage.lmdb.compaction import compact, new_log
from stepwell.storage.lmdb.engine import LmdbStorage

__all__ = ("LmdbStorage", "compact", "new_log")
