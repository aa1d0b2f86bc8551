"""A thread carried from one log to another is the same thread, or nothing is carried at all."""

from __future__ import annotations

import random
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest

from building import FailingStorage, noise, step, wrote
from stepwell import (
    BundleError,
    ConflictError,
    DiskFullError,
    FormatError,
    Log,
    NewerFormatError,
    StepwellError,
    Thread,
    UsageError,
    bundle,
    codec,
)
from stepwell import format as fmt
from stepwell.bundle import Description, describe, export_thread, import_thread
from stepwell.events import Sequence, Status, StepCommitted, ThreadDeleted, ThreadOpened, ThreadPruned
from stepwell.storage import Seal

SHARED = b"told twice, so that the second time is a reference to the first" * 4


def grown(log: Log, name: str = "trip", steps: int = 12) -> Thread:
    """A thread with lanes, writes, a fork, a step that was committed again, references, and sealed events."""
    thread = log.thread(name)
    thread.append([wrote("s0", [SHARED]), step("s0", {"notes": SHARED + noise()}, fields={"metadata": b"first"})])
    for number in range(1, steps):
        head = thread.state()
        assert head is not None
        channels = {"notes": SHARED + noise(), "more": b"m" * number}
        thread.append(
            [step(f"s{number}", channels, parent=f"s{number - 1}", base=head.sequence, old=head.values), wrote("s0")]
        )
        if number == steps // 2:
            log.seal(name)
    thread.append([step("inner", {"x": b"1"}, lane="tools:1"), step("s3", {"notes": b"again"}, parent="s2")])
    thread.label({"customer": "acme", "tier": 2})
    thread.label({"tier": None})
    failed = msgspec.structs.replace(wrote("s3", [b"broke"]), status=Status.FAILED)
    thread.append([failed])
    thread.append([step("branch", {"notes": b"another way"}, parent="s2"), wrote("later", lane="tools:1")])
    return thread


def shown(thread: Thread) -> object:
    """All that a thread shows, but for what belongs to its log."""
    steps = [*thread.steps()]
    return (
        steps,
        [thread.state(each.sequence) for each in steps],
        [(each.step_id, thread.writes(each.step_id, lane=each.lane)) for each in steps],
        [*thread.events()],
        thread.summary() and thread.summary()._replace(stored_bytes=0, cursor=0),  # type: ignore[union-attr]
    )


def test_round_trip(log: Log, tmp_path: Path) -> None:
    """States, ids, writes, history, times and sequences of an imported thread are those of the exported one."""
    thread = grown(log)
    exported = export_thread(thread, tmp_path / "trip.bundle")
    with Log.open(tmp_path / "other.stepwell") as other:
        other.thread("before").append([step("s")])
        imported = import_thread(other, tmp_path / "trip.bundle")
        assert imported == exported == ("trip", thread.summary().events, (tmp_path / "trip.bundle").stat().st_size)  # type: ignore[union-attr]
        assert shown(other.thread("trip")) == shown(thread)
        assert other.audit().breaches == []
        export_thread(other.thread("trip"), tmp_path / "again.bundle")
    assert (tmp_path / "again.bundle").read_bytes() == (tmp_path / "trip.bundle").read_bytes()


@pytest.mark.parametrize("how", ["pruned", "copied", "pruned and copied"])
def test_round_trip_of_a_thread_that_begins_late(how: str, memory_log: Log, tmp_path: Path) -> None:
    """A thread that was pruned or copied keeps its sequences, and goes on."""
    thread = grown(memory_log)
    if "pruned" in how:
        steps = [*thread.steps(lane="")]
        thread.prune([steps[0].sequence, steps[3].sequence], retain={steps[5].sequence: frozenset({"notes"})})
    if "copied" in how:
        thread.copy_to("copy")
        thread = memory_log.thread("copy")
    export_thread(thread, tmp_path / "trip.bundle")
    with Log.open(tmp_path / "other.stepwell") as other:
        import_thread(other, tmp_path / "trip.bundle")
        into = other.thread(thread.id)
        assert [*into.events()][1:] == [*thread.events()][1:]
        assert [into.state(each.sequence) for each in into.steps()] == [
            thread.state(each.sequence) for each in thread.steps()
        ]
        assert other.audit().breaches == []
        export_thread(into, tmp_path / "again.bundle")
        head = into.state()
        assert head is not None
        into.append([step("on", {"notes": b"it goes on"}, parent=head.step_id)])
        assert other.audit().breaches == []
    assert (tmp_path / "again.bundle").read_bytes() == (tmp_path / "trip.bundle").read_bytes()


def test_another_name(log: Log, tmp_path: Path) -> None:
    """A thread that exists is left as it is; under another name the bundle comes in beside it."""
    thread = grown(log)
    before = [*thread.events()]
    export_thread(thread, tmp_path / "trip.bundle")
    with pytest.raises(ConflictError, match="'trip' already"):
        import_thread(log, tmp_path / "trip.bundle")
    imported = import_thread(log, tmp_path / "trip.bundle", as_="trip 2")
    assert imported.thread_id == "trip 2"
    assert [*thread.events()] == before
    assert [*log.thread("trip 2").events()][1:] == before[1:]


def test_a_deleted_name_is_free(memory_log: Log, tmp_path: Path) -> None:
    """A thread that was deleted comes back out of its bundle."""
    thread = grown(memory_log)
    before = shown(thread)
    export_thread(thread, tmp_path / "trip.bundle")
    thread.delete()
    import_thread(memory_log, tmp_path / "trip.bundle")
    assert shown(thread) == before


def test_what_cannot_be_exported(memory_log: Log, tmp_path: Path) -> None:
    """A thread that does not exist, and a path where something is, are refused; nothing is left behind."""
    with pytest.raises(UsageError, match="no thread 'nobody'"):
        export_thread(memory_log.thread("nobody"), tmp_path / "nobody.bundle")
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UsageError, match="already"):
        export_thread(grown(memory_log), tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken").read_text() == "mine"


def test_an_export_that_is_interrupted_leaves_nothing(memory_log: Log, tmp_path: Path) -> None:
    """Ctrl-C in the middle of an export leaves no file."""

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_thread(grown(memory_log), tmp_path / "trip.bundle", progress=interrupt)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("moment", ["checking the bundle", "checking events"])
def test_an_import_that_is_interrupted_leaves_nothing(moment: str, memory_log: Log, tmp_path: Path) -> None:
    """Ctrl-C at any moment before the append leaves no thread."""
    export_thread(grown(memory_log, steps=30), tmp_path / "trip.bundle")

    def interrupt(what: str, done: int, total: int) -> None:
        if what == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_thread(memory_log, tmp_path / "trip.bundle", as_="again", progress=interrupt)
    assert [each.thread_id for each in memory_log.threads()] == ["trip"]


def test_an_import_that_leaves_no_room_for_sealing(memory_log: Log, tmp_path: Path) -> None:
    """The thread is there when its append was durable: that there is no room to seal it is no failure of the import."""
    exported = grown(memory_log, steps=30)
    export_thread(exported, tmp_path / "trip.bundle")
    storage = FailingStorage()
    storage.failure = lambda group: DiskFullError("full") if isinstance(group[0], Seal) else None
    with Log(storage) as log:
        import_thread(log, tmp_path / "trip.bundle")
        assert list(log.thread("trip").steps()) == list(exported.steps())
        assert log.audit().breaches == []


def test_a_thread_that_is_pruned_meanwhile(memory_log: Log, tmp_path: Path) -> None:
    """An export that the thread's pruning comes between says so, and leaves no file."""
    thread = grown(memory_log, steps=200)

    def prune(what: str, done: int, total: int) -> None:
        thread.prune([next(thread.steps()).sequence])

    with pytest.raises(ConflictError, match="read it again"):
        export_thread(thread, tmp_path / "trip.bundle", progress=prune)
    assert [*tmp_path.iterdir()] == []


def test_many_blocks(memory_log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of many blocks is read as one of a single block is."""
    monkeypatch.setattr(bundle, "BLOCK_BYTES", 500)
    thread = grown(memory_log)
    export_thread(thread, tmp_path / "trip.bundle")
    import_thread(memory_log, tmp_path / "trip.bundle", as_="again")
    assert [*memory_log.thread("again").events()][1:] == [*thread.events()][1:]


def test_every_damage_is_found(memory_log: Log, tmp_path: Path) -> None:
    """Each single byte that is changed, and each cut, is told, and nothing is imported."""
    path = tmp_path / "small.bundle"
    memory_log.thread("small").append([step("s1", {"x": b"1"}), wrote("s1")])
    export_thread(memory_log.thread("small"), path)
    whole = path.read_bytes()
    with Log.open(":memory:") as other:
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
            with pytest.raises((BundleError, FormatError)):
                import_thread(other, path)
            path.write_bytes(whole[:place])
            with pytest.raises((BundleError, FormatError)):
                import_thread(other, path)
        path.write_bytes(whole + b"\0")
        with pytest.raises(BundleError, match="export it again"):
            import_thread(other, path)
        assert [*other.threads()] == []
        assert other.audit().threads == 0


def rehashed(data: bytes) -> bytes:
    """A bundle whose last hash is right, whatever it holds."""
    return data + blake2b(data, digest_size=32).digest()


def test_what_is_no_bundle(memory_log: Log, tmp_path: Path) -> None:
    """Another file, a missing one, and one of a newer version are told apart."""
    path = tmp_path / "trip.bundle"
    with pytest.raises(UsageError, match="no file"):
        describe(path)
    path.write_bytes(b"SQLite format 3\0" * 10)
    with pytest.raises(FormatError, match="no bundle"):
        describe(path)
    path.unlink()
    export_thread(grown(memory_log), path)
    assert describe(path) == Description("trip", 1, memory_log.thread("trip").summary().events)  # type: ignore[union-attr]
    data = path.read_bytes()
    path.write_bytes(rehashed(data[:8] + b"\2" + data[9:-32]))
    with pytest.raises(NewerFormatError, match="upgrade"):
        import_thread(memory_log, path, as_="new")


def crafted(path: Path, records: list[tuple[fmt.Header, bytes]], first: int = 1, last: int | None = None) -> None:
    """A bundle with right hashes and any records."""
    said = last if last is not None else first + len(records) - 1
    head = msgspec.msgpack.encode(Description("crafted", first, said))
    plain = b"".join(len(body).to_bytes(4) + fmt.pack_covered(header) + body for header, body in records)
    frame, form = codec.compress_block(plain)
    data = bundle.MAGIC + bytes((1, 0, 0, 0)) + len(head).to_bytes(4) + head
    path.write_bytes(rehashed(data + bytes([form]) + len(frame).to_bytes(4) + frame + bytes(5)))


def stored(log: Log, name: str) -> list[tuple[fmt.Header, bytes]]:
    """The records of a thread as a bundle has them."""
    row = log.thread(name).row()
    assert row is not None
    page = log.storage.scan(row.number, 0, row.last + 1, 1000, reverse=False)
    return [(record.header._replace(commit=0), record.body) for record in page]


def test_what_strangers_make(memory_log: Log, tmp_path: Path) -> None:
    """A bundle with right hashes and wrong events is refused: order, bases, lanes, flags, references, times, kinds."""
    path = tmp_path / "crafted.bundle"
    thread = memory_log.thread("crafted")
    first = step("s1", {"x": SHARED})
    thread.append([wrote("s1", [SHARED]), first])
    head = thread.state()
    assert head is not None
    thread.append([step("s2", {"x": SHARED + b"!"}, parent="s1", base=head.sequence, old=head.values)])
    good = stored(memory_log, "crafted")
    crafted(path, good)
    with Log.open(":memory:") as other:
        import_thread(other, path)
        assert [*other.thread("crafted").events()] == [*thread.events()]

        def changed(place: int, **fields: object) -> list[tuple[fmt.Header, bytes]]:
            header, body = good[place]
            return [*good[:place], (header._replace(**fields), body), *good[place + 1 :]]  # type: ignore[arg-type]

        event = StepCommitted("s9", None, first.channels, first.fields)
        wild = codec.encode(event)
        reference = codec.encode(wrote("s1", [SHARED]), lambda digest, inside: codec.Ref(77, 0, len(SHARED)))
        bad: list[tuple[str, list[tuple[fmt.Header, bytes]]]] = [
            ("no opening", good[1:]),
            ("nothing", []),
            ("twice opened", [good[0], *good]),
            ("base later", changed(3, base=5)),
            ("base itself", changed(3, base=4)),
            ("base nowhere", changed(4, base=1 << 40)),
            ("lane unopened", changed(3, lane=9)),
            ("previous", changed(4, previous=1)),
            ("flags", changed(3, flags=1)),
            ("unknown flags", changed(3, flags=0x40)),
            ("hidden", changed(3, flags=2)),
            ("commit", changed(3, commit=7)),
            ("time", changed(3, created_at=1 << 63)),
            ("kind", changed(3, kind=4)),
            ("unknown kind", changed(3, kind=99)),
            ("no lane", changed(3, lane=0)),
            ("version", changed(3, version=9)),
            ("body cut", [*good[:4], (good[4][0], good[4][1][:-3])]),
            ("no body", [*good[:4], (good[4][0], b"")]),
            ("reference", [*good[:2], (good[2][0], codec.plain_body(reference.data, reference.form)), *good[3:]]),
            ("another step", [*good[:4], (good[4][0]._replace(previous=0), codec.plain_body(wild.data, wild.form))]),
        ]
        other.thread("crafted").delete()
        for event in (
            ThreadOpened("x"),
            ThreadPruned("x", Sequence(5), bytes(32), 1),
            ThreadDeleted(Sequence(5), bytes(32)),
        ):
            body = codec.encode(event)
            header = good[0][0]._replace(kind=body.kind)
            bad.append((type(event).__name__, [*good, (header, codec.plain_body(body.data, body.form))]))
        for what, records in bad:
            crafted(path, records)
            with pytest.raises((BundleError, NewerFormatError)):
                import_thread(other, path, as_=what)
        for first_, last in ((1, 99), (7, None), (1 << 62, (1 << 62) + 4), (1, 2)):
            crafted(path, good, first_, last)
            with pytest.raises(BundleError):
                import_thread(other, path)
        assert [*other.threads()] == []
        assert other.audit().breaches == []


def test_any_bytes_with_right_hashes(memory_log: Log, tmp_path: Path) -> None:
    """Whatever stands in a bundle, an import gives a sound thread or a typed error and no thread."""
    path = tmp_path / "wild.bundle"
    grown(memory_log, steps=4)
    good = stored(memory_log, "trip")
    chance = random.Random(20261126)
    with Log.open(":memory:") as other:
        for _ in range(150):
            records = [*good]
            place = chance.randrange(len(records))
            header, body = records[place]
            raw = bytearray(fmt.pack_covered(header) + body)
            for _ in range(chance.randrange(1, 4)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            records[place] = fmt.read_covered(raw, 0), bytes(raw[fmt.COVERED_BYTES :])
            crafted(path, records)
            try:
                import_thread(other, path)
            except StepwellError:
                assert [*other.threads()] == []
            else:
                assert other.audit().breaches == []
                other.thread("crafted").delete()
