"""A state machine: whatever is done to items, at every moment they are what a model of plain Python says.

Names are made of what could run together: texts that begin alike, empty ones, NUL, dots, slashes, lengths around what
a key holds.  So every scan of a prefix that gave an item of a sibling would be found out.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from building import step
from stepwell import Deletion, Item, ItemDeleted, ItemPut, ItemTouched, Log, Sequence, parse
from stepwell import format as fmt
from stepwell.events import ItemEvent
from stepwell.storage import ItemName
from stepwell.storage.items import LARGEST_VALUE_IN_ROW_BYTES

PARTS = (
    "alice",
    "alice2",
    "alic",
    "",
    "\0",
    "\0\0",
    "a.b",
    "a/b",
    "a",
    ".",
    "🎉",
    "é",
    "e\u0301",
    "x" * 63,
    "x" * 64,
    "\x7f",
)
TEXTS = st.one_of(st.sampled_from(PARTS), st.text(max_size=4))
NAMESPACES = st.lists(TEXTS, max_size=8).map(tuple)
FEW_NAMES = st.tuples(
    st.sampled_from([("alice",), ("alice2",), ("alice", "\0"), ("alice", ""), (), ("a",) * 7, ("a",) * 8]),
    st.sampled_from(("k", "", "k" * 70)),
)
SIZES = st.sampled_from((0, 1, 70, LARGEST_VALUE_IN_ROW_BYTES, LARGEST_VALUE_IN_ROW_BYTES + 1))
TIMES = st.one_of(st.none(), st.integers(1, 50))


@dataclass(frozen=True)
class Held:
    """What a model holds of a version."""

    value: bytes
    created_at: int
    updated_at: int
    expires_at: int | None
    sequence: int
    commit: int


def of_item(item: Item) -> Held:
    """The same of an item."""
    times = item.created_at, item.updated_at, item.expires_at
    return Held(item.value[1], *times, item.sequence, item.commit)


Moment = dict[ItemName, Held]


class ItemsMachine(RuleBasedStateMachine):
    """The model is the items as they are, their versions, and what was at each commit."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.now: Moment = {}
        self.versions: dict[ItemName, list[Held | int]] = {}  # a number is the commit of a deletion
        self.moments: dict[int, Moment] = {0: {}}
        self.clock = 0
        self.steps = 0
        self.log: Log

    @initialize(in_memory=st.booleans(), seal_after=st.sampled_from((4, 1000)))
    def open(self, in_memory: bool, seal_after: int) -> None:
        self.path = None if in_memory else Path(self.directory.name) / "log"
        self.seal_after = seal_after
        self.log = Log.open(self.path or ":memory:", seal_after_events=seal_after)

    @precondition(lambda self: self.path is not None)
    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = Log.open(self.path or ":memory:", seal_after_events=self.seal_after)

    @rule(changes=st.lists(st.tuples(FEW_NAMES, st.integers(0, 9), SIZES, TIMES), min_size=1, max_size=5))
    def change(self, changes: list[tuple[ItemName, int, int, int | None]]) -> None:
        events: list[ItemEvent] = []
        for name, choice, size, time in changes:
            self.clock += 1
            content = bytes((self.clock % 251,)) * size
            if choice < 6:
                events.append(ItemPut(*name, parse("t", content), time, {}, self.clock))
            elif choice < 8:
                events.append(ItemDeleted(*name, time, self.clock))
            else:
                held = self.now.get(name)
                sequence = Sequence(held.sequence if held and choice == 8 else 1)
                events.append(ItemTouched(*name, sequence, time or 1, self.clock))
        committed = self.log.items.submit(events).result()
        for event, place in zip(events, committed.sequences, strict=True):
            self.apply(event, place, committed.commit)
        self.moments[committed.commit] = dict(self.now)

    def apply(self, event: ItemEvent, sequence: int, commit: int) -> None:
        name = event.namespace, event.key
        held = self.now.get(name)
        versions = self.versions.setdefault(name, [])
        if isinstance(event, ItemPut):
            assert not isinstance(event.value, type(None))
            created_at = held.created_at if held else event.created_at
            payload = event.value.content  # type: ignore[union-attr]
            assert isinstance(payload, bytes)
            self.now[name] = Held(payload, created_at, event.created_at, event.expires_at, sequence, commit)
            versions.append(self.now[name])
        elif held is None:
            return
        elif isinstance(event, ItemTouched):
            if event.sequence == held.sequence:
                self.now[name] = replace(held, expires_at=event.expires_at)
        elif event.expired_by is None or (held.expires_at is not None and held.expires_at <= event.expired_by):
            del self.now[name]
            versions.append(commit)

    @rule()
    def step(self) -> None:
        """Somebody else commits."""
        self.steps += 1
        self.log.thread("t").append([step(f"s{self.steps}")])
        commit = self.log.thread("t").commit_of(f"s{self.steps}")
        assert commit is not None
        self.moments[commit] = dict(self.now)

    @rule()
    def seal(self) -> None:
        self.log.seal()

    @rule(prefix=st.sampled_from([("alice",), ("alice", ""), ("a",) * 7, (), ("none",)]))
    def forget(self, prefix: tuple[str, ...]) -> None:
        self.log.items.forget(prefix)

        def kept(name: ItemName) -> bool:
            return name[0][: len(prefix)] != prefix

        self.moments = {at: {n: h for n, h in moment.items() if kept(n)} for at, moment in self.moments.items()}
        self.versions = {name: versions for name, versions in self.versions.items() if kept(name)}
        self.now = {name: held for name, held in self.now.items() if kept(name)}
        self.learn_sequences()

    @rule(back=st.integers(0, 6))
    def prune(self, back: int) -> None:
        before = sorted(self.moments)[-1 - min(back, len(self.moments) - 1)]
        self.log.items.prune(before)
        newest = max((h.commit if isinstance(h, Held) else h for v in self.versions.values() for h in v), default=0)
        self.moments = {at: moment for at, moment in self.moments.items() if at >= before}
        for name, versions in self.versions.items():
            commits = [each if isinstance(each, int) else each.commit for each in versions]
            shown = [
                each
                for each, following in zip(versions, [*commits, 1 << 62][1:], strict=True)
                if following > min(before, newest)
            ]
            if shown and isinstance(shown[0], int):
                del shown[0]
            self.versions[name] = shown
        self.learn_sequences()

    def learn_sequences(self) -> None:
        """A rewriting gives new sequences; all else must be as it was."""
        for name in self.now:
            item = self.log.items.get(*name)
            assert item is not None
            self.now[name] = replace(self.now[name], sequence=item.sequence)

    @rule(prefix=NAMESPACES, at=st.integers(0, 40))
    def scan(self, prefix: tuple[str, ...], at: int) -> None:
        self.check_scan(prefix, None)
        self.check_scan(prefix, sorted(self.moments)[at % len(self.moments)])

    def check_scan(self, prefix: tuple[str, ...], at: int | None) -> None:
        moment = self.now if at is None else self.moments[at]
        wanted = {name: held for name, held in moment.items() if name[0][: len(prefix)] == prefix}
        found = {(item.namespace, item.key): of_item(item) for item in self.log.items.scan(prefix, at=at)}
        if at is None:
            assert found == wanted
            assert set(self.log.items.namespaces(prefix)) == {namespace for namespace, _ in wanted}
        else:
            assert bare(found) == bare(wanted)

    def teardown(self) -> None:
        try:
            if hasattr(self, "log"):
                with self.log:
                    self.check_everything()
        finally:
            self.directory.cleanup()

    def check_everything(self) -> None:
        for at in (None, *self.moments):
            self.check_scan((), at)
            moment = self.now if at is None else self.moments[at]
            names = [*self.versions, (("alice", "none"), "k")]
            found = dict(zip(names, self.log.items.get_many(names, at=at), strict=True))
            assert {name for name, item in found.items() if item} == moment.keys()
            there = {name: of_item(item) for name, item in found.items() if item}
            assert bare(there) == bare({name: moment[name] for name in there})
        for name, versions in self.versions.items():
            history = list(self.log.items.history(*name))[::-1]
            assert [each.commit if isinstance(each, Deletion) else each.value[1] for each in history] == [
                each if isinstance(each, int) else each.value for each in versions
            ]
        expiring = sorted(held.expires_at for held in self.now.values() if held.expires_at)
        assert [self.now[name].expires_at for name in self.log.items.expired(1 << 62)] == expiring
        assert self.log.audit().breaches == []


def bare(moment: Moment) -> Moment:
    """What a moment of the past says for sure: a touch is no part of it, and a rewriting moves what it keeps."""
    return {name: replace(held, sequence=0, expires_at=None) for name, held in moment.items()}


TestItems = ItemsMachine.TestCase
TestItems.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


@given(st.lists(st.tuples(NAMESPACES, TEXTS), max_size=8, unique=True), st.lists(NAMESPACES, min_size=1, max_size=4))
@settings(max_examples=30)
def test_siblings_are_kept_apart(names: list[ItemName], prefixes: list[tuple[str, ...]]) -> None:
    """Of any names, a scan and a list of any prefix give those whose first parts are equal to it, and no others."""
    with Log.open(":memory:") as log:
        before = log.items.submit([ItemPut(*name, parse("t", b"1")) for name in names]).result().commit
        log.items.submit([ItemDeleted(*name) for name in names[::2]]).result()
        for prefix in [*prefixes, *(namespace for namespace, _ in names)]:
            for at, there in ((None, names[1::2]), (before, names)):
                wanted = {name for name in there if name[0][: len(prefix)] == prefix}
                found = [(item.namespace, item.key) for item in log.items.scan(prefix, at=at)]
                assert len(found) == len(set(found))
                assert set(found) == wanted
            assert set(log.items.namespaces(prefix)) == {n for n, _ in names[1::2] if n[: len(prefix)] == prefix}
        for name in names:
            assert (log.items.get(*name) is None) == (name in names[::2])


@given(st.lists(st.tuples(NAMESPACES, TEXTS), min_size=2, max_size=8, unique=True))
@settings(max_examples=200)
def test_keys_of_items(names: list[ItemName]) -> None:
    """No key is a prefix of another's, each fits LMDB with what stands beside it, a literal one can be read back."""
    keys = [fmt.item_key(*name) for name in names]
    for name, key in zip(names, keys, strict=True):
        assert len(fmt.versions_key(key, 1)) <= 511
        assert len(fmt.expiry_key(1, key)) <= 511
        assert fmt.read_item_key(key) == (name if fmt.item_place(*name)[1] else None)
        assert key[: fmt.namespace_bytes(key)] == fmt.namespace_prefix(name[0])
        assert not [other for other in keys if other is not key and other.startswith(key)]
        assert all(key.startswith(fmt.items_prefix(name[0][:depth])) for depth in range(len(name[0]) + 1))
