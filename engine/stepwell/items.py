"""Items: what agents remember across threads, each under a namespace and a key, with its history.

An item is what the events about it say: `ItemPut`, `ItemDeleted`, `ItemTouched`.  They stand in a thread of the
log's own, so everything that holds of threads holds of them: they are appended in groups, chained, sealed, audited
and repaired.  What there is now, what there was and what expires are tables that follow from them.

A moment is named by a commit number: that of any append of the log, so of any step of any thread too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from contextlib import suppress
from typing import Final

from stepwell import forgetting, reader
from stepwell import format as fmt
from stepwell.arguments import check_str
from stepwell.clock import now
from stepwell.content import ContentMemory, Encoding, Place
from stepwell.errors import ConflictError, UsageError
from stepwell.events import Commit, ItemDeleted, ItemEvent, ItemPut, ItemTouched, Sequence
from stepwell.patch import Array, Blob, Map, Value, references
from stepwell.storage import Append, Deletion, Item, ItemName, Rewrite, Storage, ThreadRow
from stepwell.writer import Ticket

_END: Final = 1 << 62
_STR: Final = frozenset((str,))
_PAGE_ROWS: Final = 512
_HOPEFUL_ATTEMPTS: Final = 3  # at forgetting without making others wait


class Items:
    """The items of one log.  A handle costs nothing and holds nothing.

    >>> from stepwell import ItemDeleted, ItemPut, Log, parse
    >>> log = Log.open(":memory:")
    >>> put = ItemPut(("users", "ada"), "likes", parse("text", b"tea"))
    >>> first = log.items.submit([put]).result().commit
    >>> second = log.items.submit([ItemDeleted(("users", "ada"), "likes")]).result().commit
    >>> log.items.get(("users", "ada"), "likes") is None
    True
    >>> log.items.get(("users", "ada"), "likes", at=first).value
    ('text', b'tea')
    >>> log.close()
    """

    def __init__(
        self, storage: Storage, content: ContentMemory, submit: Callable[[Append | Rewrite, Several[Place]], Ticket]
    ) -> None:
        self._storage = storage
        self._content = content
        self._submit = submit

    # --- writing ---

    def submit(self, changes: Several[ItemEvent]) -> Ticket:
        """Start to append changes, all or none; the ticket's `result()`, or awaiting it, ends it.

        They are durable then, and together: no reader sees some of them.  The result has their commit number.

        Args:
            changes: In the order in which they happen.  None change nothing.

        Raises:
            UsageError: A change holds what cannot be stored.
        """
        for change in changes:
            _check(change)
        try:
            encoding = Encoding(self._content, fmt.ITEMS_THREAD_ID, changes, now())
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            raise UsageError(f"a change of an item holds what cannot be stored: {error}") from error
        operation = Append(
            fmt.ITEMS_THREAD_ID,
            encoding.entries,
            placed=encoding.locate,
            stored_bytes=lambda: encoding.stored_bytes,
        )
        return self._submit(operation, encoding.places)

    def forget(self, prefix: tuple[str, ...]) -> None:
        """Remove all items whose namespaces begin with these parts, and all that they ever were.

        Atomic and durable when it returns.  Nothing of them can be read any more; their bytes are free pages of the
        file, of which holes are made (`Log.seal`), or which a compaction leaves out.  All other items stay as they are,
        and so does their past.  It takes time in proportion to all items and their past.
        """
        _check_name(prefix, "")
        self._rewrite(0, lambda name: name[0][: len(prefix)] != prefix)

    def prune(self, before: int) -> None:
        """Forget what items were before a commit; what `at` shows from that commit on stays.

        Atomic and durable when it returns.  It takes time in proportion to all items and their past.
        """
        _check_number("commit", before)
        self._rewrite(before, lambda name: True)

    def _rewrite(self, before: int, is_kept: Callable[[ItemName], bool]) -> None:
        def decide(row: ThreadRow) -> Append | None:
            return forgetting.plan(self._storage, row, before, is_kept)

        for _ in range(_HOPEFUL_ATTEMPTS):
            with suppress(ConflictError):
                row = self._storage.thread(fmt.ITEMS_THREAD_ID)
                operation = None if row is None else decide(row)
                if operation is not None:
                    self._submit(operation, ()).result()
                return
        self._submit(Rewrite(fmt.ITEMS_THREAD_ID, decide), ()).result()

    # --- reading ---

    def get(
        self, namespace: tuple[str, ...], key: str, *, at: int | None = None, attachments: bool = False
    ) -> Item | None:
        """An item, or None if there is none.

        Args:
            namespace: Where it is filed.
            key: Its key there.
            at: A commit number: as it was when that had been committed.  None for now.
            attachments: Whether to read what was put beside the value.

        Raises:
            UsageError: The past that far back was pruned.
        """
        return self.get_many([(namespace, key)], at=at, attachments=attachments)[0]

    def get_many(
        self, names: Several[ItemName], *, at: int | None = None, attachments: bool = False
    ) -> list[Item | None]:
        """Several items, all of one moment; arguments as for `get`."""
        for namespace, key in names:
            _check_name(namespace, key)
        _check_moment(at)
        found = self._storage.items(names, at, attachments=attachments)
        self._check_unpruned(at)
        return found

    def attached(self, sequences: Several[int], name: str) -> list[bytes | None]:
        """The bytes that were put beside some values under a name.

        Args:
            sequences: Where the values were put, as items say.
            name: The attachment's name.

        Returns:
            For each; None if nothing has that name there, or it was pruned or forgotten.
        """
        return self._storage.attached(sequences, name)

    def scan(
        self,
        prefix: tuple[str, ...] = (),
        *,
        at: int | None = None,
        after: ItemName | None = None,
        limit: int | None = None,
        attachments: bool = False,
    ) -> Iterator[Item]:
        """All items whose namespaces begin with these parts, each namespace together.

        Pages are read as they are needed.  Of now, each page shows another moment; of a commit, all show that one.

        Args:
            prefix: Whole parts.
            at: As for `get`.
            after: Namespace and key of an item, there or not: only those behind it, in the order of scans.
            limit: How many at most; None for all.
            attachments: As for `get`.
        """
        _check_name(prefix, "")
        if after is not None:
            _check_name(*after)
        _check_moment(at)
        left = _END if limit is None else limit
        while left > 0:
            page = self._storage.scan_items(prefix, after, at, min(left, _PAGE_ROWS), attachments=attachments)
            self._check_unpruned(at)
            if not page:
                return
            yield from page
            left -= len(page)
            after = page[-1].namespace, page[-1].key

    def namespaces(self, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """All namespaces that hold items now and begin with these parts, in the order of scans."""
        _check_name(prefix, "")
        after: tuple[str, ...] | None = None
        while page := self._storage.namespaces(prefix, after, _PAGE_ROWS):
            yield from page
            after = page[-1]

    def history(self, namespace: tuple[str, ...], key: str, *, attachments: bool = False) -> Iterator[Item | Deletion]:
        """Every version of an item, newest first, deletions too; arguments as for `get`.

        `expires_at` is what each was put with, but for the value that stands there now.

        Raises:
            ConflictError: Items were pruned or forgotten between two pages.
        """
        _check_name(namespace, key)
        before, first = _END, self._first()
        while True:
            page = self._storage.item_versions((namespace, key), before, _PAGE_ROWS, attachments=attachments)
            if before != _END:
                self._check_numbers(first)
            yield from page
            if len(page) < _PAGE_ROWS:
                return
            before = page[-1].sequence

    def expired(self, by: int, limit: int = _PAGE_ROWS) -> list[ItemName]:
        """Items that expire by a time (Unix, in nanoseconds), those first that expire first.

        To remove them, submit an `ItemDeleted` with `expired_by` of each: who is touched meanwhile then stays.
        """
        _check_number("time", by)
        return self._storage.expired_items(by, limit)

    def version(self) -> Sequence:
        """Where the last change of any item stands; it rises with each, whoever makes it.  0 if there was none.

        Where nothing was committed since the last call, this takes a microsecond.
        """
        return Sequence(self._storage.item_version())

    def changes(self, after: int) -> Iterator[tuple[Sequence, ItemEvent]] | None:
        """All changes after one of them, in their order; None if they are not all there any more.

        Raises:
            ConflictError: Items were pruned or forgotten meanwhile, and changes with them.
        """
        row = self._storage.thread(fmt.ITEMS_THREAD_ID)
        if row is None:
            return iter(())
        if after < row.first and row.first > 1:  # what was pruned since is told by no change
            return None
        return self._changes(row, after)

    def _changes(self, row: ThreadRow, after: int) -> Iterator[tuple[Sequence, ItemEvent]]:
        payloads = reader.Payloads(self._storage, row.number)
        for sequence, event in reader.events(self._storage, row.number, after, row.last + 1):
            if isinstance(event, ItemEvent):
                resolved = reader.resolved(event, payloads.read)
                assert isinstance(resolved, ItemEvent)
                yield sequence, resolved
        self._check_numbers(row.first)

    def commit_at(self, time: int) -> Commit:
        """The last commit by a time (Unix, in nanoseconds) that changed items; 0 if there is none.

        As far as the clocks of those who wrote did not step back.
        """
        _check_number("time", time)
        return Commit(self._storage.item_commit_by(time))

    def _check_unpruned(self, at: int | None) -> None:
        """Raise UsageError if what was read of a moment may have been pruned by then."""
        row = None if at is None else self._storage.thread(fmt.ITEMS_THREAD_ID)
        if at is None or row is None:
            return
        since = forgetting.past_begins(self._storage, row)
        if at < since:
            raise UsageError(f"what items were before commit {since} was pruned; {at} is before that")

    def _first(self) -> int:
        row = self._storage.thread(fmt.ITEMS_THREAD_ID)
        return 1 if row is None else row.first

    def _check_numbers(self, first: int) -> None:
        """Raise ConflictError if what stands at which sequence has changed since the first of them was asked for."""
        if (found := self._first()) != first:
            raise ConflictError(
                "items were pruned or forgotten while their past was read; read it again",
                thread=fmt.ITEMS_THREAD_ID,
                expected=first,
                actual=found,
            )


def _check_moment(at: int | None) -> None:
    if at is not None:
        _check_number("commit", at)


def _check(change: ItemEvent) -> None:
    """Raise UsageError unless a change can be stored."""
    if not isinstance(change, ItemEvent):
        raise UsageError(f"submit takes ItemPut, ItemDeleted and ItemTouched, not {type(change).__name__}")
    _check_name(change.namespace, change.key)
    _check_number("created_at", change.created_at)
    if isinstance(change, ItemTouched):
        _check_number("expires_at", change.expires_at)
        _check_number("sequence", change.sequence)
        return
    if change.commit or (isinstance(change, ItemPut) and change.born_at):
        raise UsageError("commit and born_at say where a pruning has moved a change from: leave them 0")
    if isinstance(change, ItemDeleted):
        _check_number("expired_by", change.expired_by or 0)
        return
    _check_number("expires_at", change.expires_at or 0)
    _check_value(change.value)
    for name, value in change.attachments.items():
        check_str("name of an attachment", name)
        _check_value(value)


def _check_value(value: Value) -> None:
    if isinstance(value, Blob) and isinstance(value.content, bytes):  # as nearly all
        return
    if not isinstance(value, Blob | Array | Map):
        raise UsageError(f"the value of an item is made with parse(type, payload), not a {type(value).__name__}")
    if any(references(value)):
        raise UsageError("the value of an item holds its content as bytes, not as references")


def _check_name(namespace: tuple[str, ...], key: str) -> None:
    is_plain = type(namespace) is tuple and type(key) is str and _STR.issuperset(map(type, namespace))
    if is_plain and key.isascii() and "".join(namespace).isascii():  # as nearly all
        return
    if not isinstance(namespace, tuple):
        raise UsageError(f"a namespace is a tuple of str, not {type(namespace).__name__}: {namespace!r}")
    for part in namespace:
        check_str("part of a namespace", part)
    check_str("key", key)


def _check_number(what: str, number: int) -> None:
    if not isinstance(number, int) or not 0 <= number < 1 << 63:
        raise UsageError(f"the {what} is a whole number from 0, not {number!r}")
