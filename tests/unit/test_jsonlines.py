"""Threads as lines of JSON: for reading, and exact ones for another log."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from building import step, wrote
from stepwell import BundleError, ConflictError, FormatError, Log, StepCommitted, StepwellError, UsageError, changes
from stepwell.jsonlines import export_lines, import_lines


def grown(log: Log, name: str = "trip") -> None:
    """A thread with a list that grows, a map that changes, writes, labels, a lane and a fork."""
    thread = log.thread(name)
    notes = [f"note {number}, long enough to stand by itself in a list" for number in range(4)]
    state = {"notes": ("msgpack", msgspec.msgpack.encode(notes)), "count": ("msgpack", msgspec.msgpack.encode(1))}
    fields = changes({"metadata": ("msgpack", msgspec.msgpack.encode({"step": 1}))})
    thread.append([wrote("s1"), StepCommitted("s1", None, changes(state), fields)])
    head = thread.state()
    assert head is not None
    state["notes"] = ("msgpack", msgspec.msgpack.encode([*notes[1:], "one more, which is the only new thing here"]))
    thread.append([StepCommitted("s2", "s1", changes(state, head.values), changes({}), base=head.sequence)])
    thread.append([step("inner", {"x": b"\x00\xff\x1b[2J"}, lane="tools:\x1b[31m")])
    thread.label({"customer": "acme"})


def test_lines_are_events(memory_log: Log) -> None:
    """One line tells of the thread, one of each event, and one ends it; a change is as long as what is new."""
    grown(memory_log)
    lines = [json.loads(line) for line in export_lines(memory_log.thread("trip"))]
    assert lines[0] == {"stepwell": 1, "thread": "trip", "first": 1, "last": 8, "exact": False}
    assert [line["sequence"] for line in lines[1:-1]] == [*range(1, 9)]
    assert [line["event"] for line in lines[1:-1]] == [
        *("opened", "lane", "writes", "step", "step", "lane", "step", "labels"),
    ]
    assert lines[-1]["end"] == "trip"
    first, second = lines[4], lines[5]
    assert first["step"] == "s1"
    assert first["parent"] is None
    assert first["channels"]["changes"]["count"] == {"set": 1}
    assert first["fields"]["changes"]["metadata"] == {"set": {"step": 1}}
    assert second["channels"] == {
        "changes": {
            "notes": {"splice": [{"keep": [1, 3]}, {"new": ["one more, which is the only new thing here"]}]},
        }
    }
    assert lines[8]["labels"] == {"customer": "acme"}


def test_lines_hold_no_control_characters(memory_log: Log) -> None:
    """A line is printable ASCII, whatever the thread holds."""
    grown(memory_log, "evil \x1b]0;owned\x07 \u202e")
    for line in export_lines(memory_log.thread("evil \x1b]0;owned\x07 \u202e"), states=True):
        assert line.endswith("\n")
        assert line[:-1].isprintable()
        assert line.isascii()


def test_states(memory_log: Log) -> None:
    """With states, each step carries what its lane holds after it."""
    grown(memory_log)
    lines = [json.loads(line) for line in export_lines(memory_log.thread("trip"), states=True)]
    assert lines[5]["state"]["count"] == 1
    assert len(lines[5]["state"]["notes"]) == 4


def test_exact_lines_come_back(log: Log, tmp_path: Path) -> None:
    """Threads that were exported exactly are imported as they were."""
    grown(log)
    grown(log, "second")
    path = tmp_path / "all.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for name in ("trip", "second"):
            file.writelines(export_lines(log.thread(name), exact=True))
    with Log.open(tmp_path / "other.stepwell") as other:
        assert [bundle.thread_id for bundle in import_lines(other, path)] == ["trip", "second"]
        for name in ("trip", "second"):
            assert [*other.thread(name).events()] == [*log.thread(name).events()]
        assert other.audit().breaches == []
        with pytest.raises(ConflictError, match="'trip' already"):
            import_lines(other, path)


def test_another_name(memory_log: Log, tmp_path: Path) -> None:
    """One thread may get another name; several cannot get the same."""
    grown(memory_log)
    path = tmp_path / "trip.jsonl"
    path.write_text("".join(export_lines(memory_log.thread("trip"), exact=True)))
    import_lines(memory_log, path, as_="again")
    assert [*memory_log.thread("again").events()][1:] == [*memory_log.thread("trip").events()][1:]
    path.write_text(path.read_text() * 2)
    with pytest.raises(UsageError, match="several threads"):
        import_lines(memory_log, path, as_="third")


def test_what_cannot_be_imported(memory_log: Log, tmp_path: Path) -> None:
    """Lines for reading, damaged lines, missing lines and other files are refused, and nothing is imported."""
    grown(memory_log)
    path = tmp_path / "trip.jsonl"
    path.write_text("".join(export_lines(memory_log.thread("trip"))))
    with Log.open(":memory:") as other:
        with pytest.raises(UsageError, match="--exact"):
            import_lines(other, path)
        lines = [*export_lines(memory_log.thread("trip"), exact=True)]
        for place in range(len(lines)):
            path.write_text("".join(lines[:place] + lines[place + 1 :]))
            with pytest.raises(StepwellError):
                import_lines(other, path)
            path.write_text("".join([*lines[:place], lines[place].replace("1", "2", 1), *lines[place + 1 :]]))
            with pytest.raises(StepwellError):
                import_lines(other, path)
        path.write_text("".join(lines[:-1]))
        with pytest.raises(BundleError, match="does not end"):
            import_lines(other, path)
        for content in (b"", b"hello\n", b"\xff\xfe", b"[]\n", b'{"stepwell": 99}\n', b"[" * 100_000 + b"\n"):
            path.write_bytes(content)
            with pytest.raises(FormatError):
                import_lines(other, path)
        with pytest.raises(UsageError, match="no file"):
            import_lines(other, tmp_path / "none.jsonl")
        assert [*other.threads()] == []
    with pytest.raises(UsageError, match="no thread 'nobody'"):
        export_lines(memory_log.thread("nobody"))
