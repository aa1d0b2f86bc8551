"""The command line: what it says, to people and to programs, and what it ends with."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from typer.main import get_command

from building import wrote
from stepwell import Log, StepCommitted, Write, WritesRecorded, changes, parse
from stepwell.events import ItemPut
from stepwell_cli import exits, history, screen
from stepwell_cli.main import application, run
from stepwell_langgraph import StepwellCache, StepwellSaver, StepwellStore

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    *("threads", "log", "tree", "show", "diff", "blame", "watch", "grep", "fork", "replay"),
    *("memories", "stats", "audit", "repair", "seal", "compact", "export", "import", "follow"),
)
EVIL = "evil \x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r"


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def items(self) -> list[dict[str, Any]]:
        """Its lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process."""

    def call(*arguments: object) -> Ran:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call


def packed(**values: object) -> dict[str, tuple[str, bytes]]:
    """Values as an adapter gives them."""
    return {name: ("msgpack", msgspec.msgpack.encode(value)) for name, value in values.items()}


def fill(log: Log, thread_id: str, *, evil: str = "") -> None:
    """A thread of five steps: notes grow, a plan changes, a fork, a sub-graph, and writes that wait."""
    thread = log.thread(thread_id)
    notes: list[str] = []
    for number in range(-1, 4):
        head = thread.state()
        notes = [*notes, f"note {number}, long enough to stand by itself {evil}"]
        values = packed(notes=notes, plan={"first": "look", "last": f"act {number}"}, count=number)
        step = StepCommitted(
            f"{number + 2:08x}-1111",
            head.step_id if head else None,
            changes(values, head.values if head else None),
            changes(packed(metadata={"step": number, "source": "loop" if head else "input"})),
            base=head.sequence if head else 0,  # type: ignore[arg-type]
        )
        thread.append([step])
        write = Write(0, "notes", parse(*packed(x=[f"note {number + 1}, long enough to stand by itself {evil}"])["x"]))
        thread.append([WritesRecorded(step.step_id, f"task-{number}", f"~__pregel_pull, think{evil}", (write,))])
    thread.append(
        [wrote("inner", lane="tools:1"), StepCommitted("inner", None, changes(packed(x=1)), changes({}), "tools:1")]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with three threads, made once."""
    path = tmp_path_factory.mktemp("made") / "agent.stepwell"
    with Log.open(path) as log:
        for name in ("user-1", "user-2", "mail@example.org"):
            fill(log, name)
        log.thread("user-1").label({"customer": "acme"})
        log.thread("user-1").fork("1", patch={"count": 77})
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it; sound when the test ends, if it is still there."""
    copy = tmp_path / "agent.stepwell"
    shutil.copy(made, copy)
    yield copy
    with Log.open(copy) as log:
        assert log.audit().breaches == []


def test_every_command_is_there() -> None:
    """The commands are those that the documentation names, and each takes --json."""
    commands = get_command(application()).commands  # type: ignore[attr-defined]
    assert sorted(commands) == sorted(COMMANDS)
    for command in commands.values():
        assert any("--json" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits(command: str, cli: Cli) -> None:
    """The help of each command fits 80 columns, and no line of it is cut short."""
    told = cli(*command.split(), "--help")
    assert told.code == exits.OK
    assert told.out.startswith(f"Usage: stepwell {command}".rstrip())
    assert not set("{}") & set(told.out)
    assert max(map(len, told.out.splitlines())) <= 80
    assert not re.search(r"[a-z,] ?\.\.\.$", told.out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, cli: Cli) -> None:
    """Each command's help ends with an example, on a line that can be copied and that the command takes."""
    *_, last = cli(command, "--help").out.splitlines()
    _, _, line = last.partition("For example: stepwell ")
    name, *arguments = shlex.split(line)
    assert name == command
    get_command(application()).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_tables_of_many_rows(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is shown some rows at a time: every row once, one heading, no blanks at ends."""
    whole = re.sub(r"\d+ ms ago|[\d.]+ s ago", "now", cli("threads", path).out)
    told = cli("stats", path).out.splitlines()
    start = next(number for number, line in enumerate(told) if line.startswith("table"))
    assert len({len(line) for line in told[start:]}) == 1
    monkeypatch.setattr(screen, "_ROWS_AT_ONCE", 1)
    lines = re.sub(r"\d+ ms ago|[\d.]+ s ago", "now", cli("threads", path).out).splitlines()
    assert [line.split() for line in lines] == [line.split() for line in whole.splitlines()]
    assert [line.split()[0] for line in lines] == ["thread", "user-1", "mail@example.org", "user-2"]
    assert all(line == line.rstrip() for line in lines)


def test_tables_on_a_narrow_terminal(path: Path) -> None:
    """What does not fit goes on below: nothing of an id is lost, and no line is wider than the terminal."""
    shown = on_terminal("threads", path, PAGER="cat", COLUMNS="44", NO_COLOR="1").out
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 44
    names = "".join(line.split("  ")[0].strip() for line in lines)
    assert "mail@example.org" in names


def test_threads(cli: Cli, path: Path) -> None:
    """Threads are listed newest first, and found by prefix and label; the rest is told of."""
    assert [item["thread"] for item in cli("threads", path, "--json").items] == ["user-1", "mail@example.org", "user-2"]
    assert [item["thread"] for item in cli("threads", path, "--json", "-p", "mail").items] == ["mail@example.org"]
    (item,) = cli("threads", path, "--json", "--label", "customer=acme").items
    assert item["labels"] == {"customer": "acme"}
    assert item["steps"] == 7
    shown = cli("threads", path, "-n", 2)
    assert shown.code == exits.OK
    assert "user-1" in shown.out
    assert "user-2" not in shown.out
    assert "--all" in shown.out
    assert "user-2" in cli("threads", path, "--all").out
    assert cli("threads", path, "--since", "1h", "--json").items
    assert cli("threads", path, "--since", "9999999w", "--json").items
    assert cli("threads", path, "--since", "1960-01-01", "--json").items
    assert cli("threads", path, "--status", "failed") == (exits.OK, "no such thread\n", "")
    assert cli("threads", path, "--since", "yesterday").code == exits.USAGE


@pytest.mark.parametrize(
    "name", ["user-2@2", "user-2@#9", "user-2@00000004", "user-2@~1", "user-2@head~1", "user-2@3~1"]
)
def test_steps_are_named_in_many_ways(name: str, cli: Cli, path: Path) -> None:
    """Numbers, sequences, ids, beginnings of ids and steps before others name the same step."""
    (item,) = cli("show", path, name, "--json").items
    assert (item["number"], item["sequence"], item["step"]) == (2, 9, "00000004-1111")


def test_show(cli: Cli, path: Path) -> None:
    """A state is shown with what waits on it, and one value in full."""
    (item,) = cli("show", path, "user-2", "--json").items
    assert item["state"]["plan"] == {"first": "look", "last": "act 3"}
    assert item["metadata"] == {"step": 3, "source": "loop"}
    assert [task["node"] for task in item["pending"]] == ["think"]
    shown = cli("show", path, "user-2").out
    assert "note 3, long enough" in shown
    assert "waiting think" in shown
    assert cli("show", path, "user-2", "notes[-1]").out == "note 3, long enough to stand by itself \n"
    (item,) = cli("show", path, "user-2@0", 'plan["last"]', "--json").items
    assert item["value"] == "act 0"
    assert cli("show", path, "user-2", "nothing").code == exits.USAGE
    (item,) = cli("show", path, "user-2", "--lane", "tools:1", "--json").items
    assert item["state"] == {"x": 1}


def test_an_id_with_an_at(cli: Cli, path: Path) -> None:
    """A thread whose id holds an @ is named as it is, with and without a step."""
    assert cli("show", path, "mail@example.org", "--json").items[0]["number"] == 3
    assert cli("show", path, "mail@example.org@1", "--json").items[0]["number"] == 1


def test_log_and_tree(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch is listed newest first, however many steps are read at once, and the tree has every fork."""
    assert [item["number"] for item in cli("log", path, "user-2", "--json").items] == [3, 2, 1, 0, -1]
    items = cli("log", path, "user-1", "--json", "-n", 2).items
    assert [item["number"] for item in items] == [2, 1]
    assert items[0]["source"] == "update"
    assert items[1]["nodes"] == ["think"]
    shown = cli("log", path, "user-2", "-n", 2).out
    assert len(shown.splitlines()) == 3
    assert "--all" in shown
    whole = cli("log", path, "user-2", "--all").out
    assert len(whole.splitlines()) == 5
    monkeypatch.setattr(history, "_STEPS_AT_ONCE", 2)
    assert cli("log", path, "user-2", "--all").out == whole
    assert [item["number"] for item in cli("log", path, "user-2@2", "--json", "-n", 3).items] == [2, 1, 0]
    assert "head" in cli("tree", path, "user-1").out
    (lane, inner) = cli("tree", path, "user-1", "--json").items
    assert [(run["steps"], run["is_head"], run["after"]) for run in lane["runs"]] == [
        (3, False, None),
        (2, False, 0),
        (1, True, 0),
    ]
    assert inner["lane"] == "tools:1"


def test_what_was_pruned_is_not_older(cli: Cli, path: Path) -> None:
    """Nobody is told to look for older steps where there are none any more."""
    with Log.open(path) as log:
        thread = log.thread("user-2")
        thread.prune([thread.resolve(name).sequence for name in ("2", "3")])
    assert len(cli("log", path, "user-2").out.splitlines()) == 2
    assert "--all" in cli("log", path, "user-2", "-n", 1).out
    assert "the first of its branch" in cli("diff", path, "user-2@2").err


def test_a_tree_as_deep_as_forks_go(cli: Cli, tmp_path: Path) -> None:
    """A thread that forks at every step is drawn, and told to programs, which need not nest as deep to read it."""
    with Log.open(tmp_path / "deep.stepwell") as log:
        names = [(f"{number}", side) for number in range(1200) for side in "ab"]
        steps = [
            StepCommitted(n + s, f"{int(n) - 1}a" if n != "0" else None, changes({}), changes({})) for n, s in names
        ]
        log.thread("t").append(steps)
    (item,) = cli("tree", tmp_path / "deep.stepwell", "t", "--json").items
    assert sum(run["steps"] for run in item["runs"]) == len(steps)
    assert cli("tree", tmp_path / "deep.stepwell", "t").code == exits.OK


def test_diff(cli: Cli, path: Path) -> None:
    """Two steps, two branches and two threads are compared; the exit code says whether they differ."""
    told = cli("diff", path, "user-2@1", "@2", "--json")
    assert told.code == exits.FOUND
    assert {item["path"]: item["change"] for item in told.items} == {
        "notes[3]": "added",
        "plan.last": "changed",
        "count": "changed",
    }
    assert cli("diff", path, "user-2@1", "2", "--json").items == told.items
    assert cli("diff", path, "user-2@2", "--json").items == told.items
    same = cli("diff", path, "user-2@2", "mail@example.org@2")
    assert same.code == exits.OK
    assert "no difference" in same.out
    shown = cli("diff", path, "user-1@#7", "user-1").out
    assert "-1" in shown
    assert "+77" in shown


def test_blame_watch_grep(cli: Cli, path: Path) -> None:
    """Where a value comes from, how it changed, and where a text stands."""
    (item,) = cli("blame", path, "user-2", "notes[2]", "--json").items
    assert (item["number"], item["node"]) == (1, "think")
    assert "by think" in cli("blame", path, "user-2", "notes[2]").out
    assert [item["new"] for item in cli("watch", path, "user-2", "count", "--json").items] == [3, 2, 1, 0, -1]
    assert len(cli("watch", path, "user-2", "count", "-n", 2, "--json").items) == 2
    assert "+3" in cli("watch", path, "user-2", "count").out
    newest = cli("watch", path, "user-2", "notes", "-n", 1).out.splitlines()
    assert newest[1] == "    + notes[4]  note 3, long enough to stand by itself "  # not the whole list, twice
    hits = cli("grep", path, "note 2", "--json")
    assert {item["thread"] for item in hits.items} == {"user-1", "user-2", "mail@example.org"}
    assert "note 2" in cli("grep", path, "NOTE 2", "user-2", "-i").out
    assert len(cli("grep", path, "note [0-2]", "user-2", "-e", "-n", 1).out.splitlines()) == 1
    assert len(cli("grep", path, "note 2", "user-2", "-n", 1 << 70, "--json").items) == 1
    assert cli("grep", path, "nowhere") == (exits.FOUND, "", "")


def test_fork(cli: Cli, path: Path) -> None:
    """A fork is the head of its lane; with a name it is a thread of its own."""
    (item,) = cli("fork", path, "user-2@1", "--set", "count=5", "--set", "plan.last=stop", "--json").items
    assert item["parent"] == "00000003-1111"
    state = cli("show", path, "user-2", "--json").items[0]["state"]
    assert (state["count"], state["plan"]["last"]) == (5, "stop")
    assert "forked into copy" in cli("fork", path, "user-2@1", "--as", "copy").out
    assert cli("show", path, "copy", "--json").items[0]["state"]["count"] == 1
    assert cli("fork", path, "user-2@1", "--as", "copy").code == exits.CONFLICT
    assert cli("fork", path, "user-2@1", "--set", "count").code == exits.USAGE


def test_replay(cli: Cli, path: Path) -> None:
    """A branch is gone through from its beginning, with what each task wrote."""
    items = cli("replay", path, "user-2", "--json").items
    assert [item["number"] for item in items] == [-1, 0, 1, 2, 3]
    assert items[1]["tasks"][0]["writes"][0]["channel"] == "notes"
    assert "think wrote notes" in cli("replay", path, "user-2@1", "--since", "0").out
    assert cli("replay", path, "user-2", "--graph", "nowhere").code == exits.USAGE
    assert cli("replay", path, "user-2", "--graph", "nowhere:graph").code == exits.USAGE


def test_stats(cli: Cli, path: Path) -> None:
    """Figures are told of the log, and of one thread."""
    (item,) = cli("stats", path, "--json").items
    assert item["stats"]["threads"] == 3
    assert "threads" in cli("stats", path).out
    (item,) = cli("stats", path, "user-1", "--json").items
    assert item["measured"]["threads"] == 1
    assert "notes" in cli("stats", path, "--measure").out


def test_items_are_no_thread_of_anybody(cli: Cli, path: Path, tmp_path: Path) -> None:
    """What a store keeps is counted and kept in order like all else, and shown and exported as no user's thread."""
    before = cli("threads", path, "--json").out, cli("export", path, "--exact").out
    (events,) = cli("audit", path, "--json").items
    with Log.open(path) as log:
        log.items.submit([ItemPut(("notes",), "k", parse("text", b"an item, note 1" * 99))]).result()
    assert (cli("threads", path, "--json").out, cli("export", path, "--exact").out) == before
    assert cli("threads", path, "--prefix", "\0stepwell.", "--json").items == []
    assert "an item" not in cli("grep", path, "item").out
    assert {item["thread"] for item in cli("follow", path, "--after", 0, "--timeout", 0, "--json").items} == {
        "user-1",
        "user-2",
        "mail@example.org",
    }
    for command in ("show", "log", "tree", "follow", "export", "seal", "stats"):
        assert cli(command, path, "\0stepwell.items").code == exits.USAGE
    assert "x00stepwell" not in cli("show", path, "stepwell.items").err
    (told,) = cli("stats", path, "--measure", "--json").items
    assert told["measured"]["threads"] == 3
    assert told["measured"]["kinds"]["ItemPut"]["events"] == 1
    (audited,) = cli("audit", path, "--json").items
    assert (audited["threads"], audited["events"]) == (events["threads"], events["events"] + 2)
    assert cli("seal", path, "--json").items[0]["sealed_events"] >= 2
    (saved,) = cli("repair", path, tmp_path / "saved.stepwell", "--json").items
    assert saved["events"] == audited["events"]
    with Log.open(tmp_path / "saved.stepwell") as log:
        assert log.items.get(("notes",), "k") is not None


@pytest.fixture
def remembering(path: Path) -> Path:
    """The log with what an agent remembers in it: before `user-1` was forked to 1, and after."""
    with Log.open(path) as log:
        store = StepwellStore(log)
        for number in range(3):
            store.put(("users", "ada"), f"k{number}", {"text": f"note {number}"})
        store.put(("visitors", EVIL), EVIL, {"text": EVIL, "[red]": "[blue]"})
        log.thread("user-1").fork("1")
        store.put(("users", "ada"), "k1", {"text": "else"})
        store.delete(("users", "ada"), "k2")
        StepwellCache(log).set({(("node",), "key"): ("result", None)})
    return path


def test_memories(cli: Cli, remembering: Path) -> None:
    """What is remembered is listed by namespace, as it is and as it was at a step; results of nodes are not."""
    items = cli("memories", remembering, "--json").items
    assert [(item["namespace"], item["key"]) for item in items] == [
        (["users", "ada"], "k0"),
        (["users", "ada"], "k1"),
        (["visitors", EVIL], EVIL),
    ]
    assert items[1]["value"] == {"text": "else"}
    then = cli("memories", remembering, "--at", "user-1@head", "--json").items
    assert [item["value"]["text"] for item in then] == ["note 0", "note 1", "note 2", EVIL]
    assert cli("memories", remembering, "users", "ada", "--at", then[0]["commit"], "--json").items == then[:1]
    assert cli("memories", remembering, "--at", "user-1", "--json").items == then
    assert cli("memories", remembering, "--at", "0s", "--json").items == items
    assert cli("memories", remembering, "--at", "1h").out == "no memory there\n"
    shown = cli("memories", remembering, "-n", 1).out
    assert shown.splitlines()[0] == "users ada"
    assert "--all" in shown
    assert harmless(cli("memories", remembering).out)
    (item,) = cli("memories", remembering, "users", "ada", "--key", "k1", "--json").items
    assert item == items[1]
    versions = cli("memories", remembering, "users", "ada", "--key", "k2", "--history", "--json").items
    assert [item.get("value") for item in versions] == [None, {"text": "note 2"}]
    assert "deleted" in cli("memories", remembering, "users", "ada", "--key", "k2", "--history").out
    assert harmless(cli("memories", remembering, "visitors", EVIL, "-k", EVIL).out)
    for key, says in (("k2", "--history"), ("kk1", "'k1'"), ("\udcff", "surrogate")):
        told = cli("memories", remembering, "users", "ada", "-k", key)
        assert (told.code, says in told.err) == (exits.USAGE, True)
    assert cli("memories", remembering, "--history").code == exits.USAGE
    assert cli("memories", remembering, "-k", "k9", "--history").code == exits.USAGE


def test_memories_are_no_thread(cli: Cli, remembering: Path, tmp_path: Path) -> None:
    """What holds them is shown by its name, and never as a thread of somebody's."""
    (item,) = cli("stats", remembering, "--measure", "--json").items
    assert (item["stats"]["threads"], item["stats"]["items"], item["measured"]["threads"]) == (3, 4, 3)
    assert item["measured"]["items"]["events"] == 7
    assert "memories" in cli("stats", remembering).out
    assert cli("audit", remembering, "--json").items[0]["threads"] == 3
    for command in (("threads",), ("stats", "-m"), ("audit",), ("grep", "x"), ("export",), ("show", "nobody")):
        told = cli(command[0], remembering, *command[1:])
        assert "stepwell.items" not in told.out + told.err
    assert cli("seal", remembering, "--json").items[0]["sealed_events"] > 0
    assert cli("export", remembering, "--to", tmp_path / "all.jsonl", "--json").items[0]["threads"] == 3


def test_upkeep(cli: Cli, path: Path, tmp_path: Path) -> None:
    """A sound log is told to be; sealing and compacting change nothing that can be read."""
    before = cli("show", path, "user-1", "--json").items
    (item,) = cli("audit", path, "--json").items
    assert item["breaches"] == []
    assert "sound" in cli("audit", path).out
    (item,) = cli("seal", path, "--json").items
    assert item["sealed_events"] > 0
    assert cli("seal", path, "user-1").out == "sealed 0 events\n"
    (item,) = cli("compact", path, "--json").items
    assert item["after_bytes"] <= item["before_bytes"]
    assert cli("compact", path, "--into", tmp_path / "copy.stepwell").code == exits.OK
    assert cli("compact", path, "--into", tmp_path / "copy.stepwell").code == exits.USAGE
    assert cli("show", path, "user-1", "--json").items == before
    told = cli("repair", path, tmp_path / "new.stepwell", "--json")
    assert (told.code, told.items[0]["lost_events"]) == (exits.OK, 0)
    assert cli("repair", path, tmp_path / "new.stepwell").code == exits.USAGE


def test_damage(cli: Cli, path: Path, tmp_path: Path) -> None:
    """Broken invariants are listed, with the way out; what is no log is told from what is damaged."""
    broken = tmp_path / "broken.stepwell"
    shutil.copy(path, broken)
    with Log.open(broken) as log:
        row = log.thread("user-1").row()
        assert row is not None
        log.storage.restore([("events", row.number.to_bytes(8) + (4).to_bytes(8), None)])  # type: ignore[attr-defined]
    told = cli("audit", broken)
    assert told.code == exits.FOUND
    assert "stepwell repair" in told.out
    assert "I1" in told.out
    assert cli("audit", broken, "--json").items[0]["breaches"]
    shown = cli("show", broken, "user-1@3")
    assert shown.code in (exits.OK, exits.DAMAGED, exits.USAGE)
    assert "Traceback" not in shown.err
    repaired = cli("repair", broken, tmp_path / "saved.stepwell")
    assert repaired.code in (exits.OK, exits.FOUND)  # the row may still stand on a free page
    assert "could be proven" in repaired.out
    (tmp_path / "text.stepwell").write_text("hello" * 5000)
    assert cli("threads", tmp_path / "text.stepwell").code == exits.DAMAGED


def test_export_and_import(cli: Cli, path: Path, tmp_path: Path) -> None:
    """A thread goes out and comes in, in every form of ours."""
    other = tmp_path / "other.stepwell"
    before = cli("log", path, "user-1", "--json").items
    assert cli("export", path, "user-1", "--to", tmp_path / "one.bundle").code == exits.OK
    assert cli("export", path, "user-1", "--to", tmp_path / "one.bundle").code == exits.USAGE
    assert cli("import", other, tmp_path / "one.bundle", "--json").items[0]["imported"] == "user-1"
    assert cli("log", other, "user-1", "--json").items == before
    refused = cli("import", other, tmp_path / "one.bundle")
    assert refused.code == exits.CONFLICT
    assert "--as" in refused.err
    assert cli("import", other, tmp_path / "one.bundle", "--as", "again").code == exits.OK
    assert cli("export", path, "--to", tmp_path / "all.bundle").code == exits.USAGE
    (item,) = cli("export", path, "--to", tmp_path / "all.jsonl", "--exact", "--json").items
    assert item["threads"] == 3
    last = tmp_path / "last.stepwell"
    assert len(cli("import", last, tmp_path / "all.jsonl", "--json").items) == 3
    assert cli("log", last, "user-1", "--json").items == before
    lines = cli("export", path, "user-2").items
    assert lines[0]["thread"] == "user-2"
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert "--exact" in cli("import", last, tmp_path / "lines.jsonl").err
    data = bytearray((tmp_path / "one.bundle").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.bundle").write_bytes(data)
    assert cli("import", tmp_path / "fresh.stepwell", tmp_path / "bad.bundle").code == exits.DAMAGED
    (tmp_path / "text.bundle").write_text("no bundle")
    assert cli("import", tmp_path / "none.stepwell", tmp_path / "text.bundle").code == exits.DAMAGED
    assert not (tmp_path / "none.stepwell").exists()
    assert "--thread" in cli("import", last, tmp_path / "one.bundle", "--thread", "user-1").err
    assert "JSON Lines" in cli("export", path, "user-1", "--exact", "--to", tmp_path / "two.bundle").err


def test_databases_of_other_savers(cli: Cli, tmp_path: Path) -> None:
    """Threads go into SqliteSaver's tables, and come back as they were; what is wrong with a source is told."""
    first, database, second = (tmp_path / name for name in ("a.stepwell", "b.db", "c.stepwell"))
    with StepwellSaver.from_conn_string(str(first)) as saver:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        for number in range(3):
            checkpoint = {**empty_checkpoint(), "id": f"1f1e96c7-ea56-6975-bfff-{number:012}"}
            checkpoint["channel_values"], checkpoint["channel_versions"] = {"count": number}, {"count": str(number)}
            metadata: Any = {"source": "loop", "step": number}
            config = saver.put(config, checkpoint, metadata, {"count": str(number)})  # type: ignore[arg-type]
            saver.put_writes(config, [("count", number + 1)], "task")
    before = cli("log", first, "t", "--json").items
    told = cli("export", first, "--to", f"sqlite:///{database}", "--json")
    assert (told.code, told.items[0]["checkpoints"], told.items[0]["problems"]) == (exits.OK, 3, [])
    assert "verified" in cli("import", second, f"sqlite:///{database}").out
    assert [item["metadata"] for item in cli("log", second, "t", "--json").items] == [
        item["metadata"] for item in before
    ]
    (again,) = cli("import", second, database, "--json").items
    assert (again["checkpoints"], again["present"]) == (0, 3)
    assert cli("import", second, f"sqlite:///{tmp_path}/none.db").code == exits.USAGE
    assert "--as" in cli("import", second, database, "--as", "u").err
    nobody = "postgresql://localhost:1/nowhere?connect_timeout=1"
    for unreached in (("import", second, nobody), ("export", first, "--to", nobody)):
        assert cli(*unreached).code == exits.USAGE
    assert cli("export", first, "--to", f"sqlite:///{database}").code == exits.USAGE


def test_follow(cli: Cli, path: Path) -> None:
    """What was appended is followed, over the log and in one thread."""
    items = cli("follow", path, "--after", 0, "--timeout", 0, "--json").items
    assert [item["commit"] for item in items] == sorted(item["commit"] for item in items)
    assert {item["thread"] for item in items} == {"user-1", "user-2", "mail@example.org"}
    events = cli("follow", path, "user-2", "--after", 0, "--timeout", 0, "--json").items
    assert [item["sequence"] for item in events] == [*range(1, len(events) + 1)]
    assert "StepCommitted" in cli("follow", path, "user-2", "--after", 0, "--timeout", 0).out
    (labelled,) = (
        item
        for item in cli("follow", path, "user-1", "--after", 0, "--timeout", 0, "--json").items
        if item["event"] == "ThreadLabelled"
    )
    assert labelled["changed"] == ["customer"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("thraeds", "LOG"), "Did you mean 'threads'?"),
        (("show", "LOG", "user-12"), "or 'user-1'?"),
        (("show", "LOG", "user-1@99"), "its steps have the numbers -1 to 3"),
        (("show", "LOG", "user-1@#9999"), "it holds 1 to"),
        (("show", "LOG", "user-1", "--lane", "tool:1"), "tools:1"),
        (("threads", "agent.stepwel"), "no file"),
        (("threads", "LOG", "--jsno"), "--json"),
        (("show", "LOG"), "THREAD"),
        (("import", "sqlite:///x.db", "LOG"), "the log comes first"),
        (("import", "LOG", "nowhere.bundle"), "no file"),
        (("threads", "LOG", "--since", f"{'9' * 400}w"), "is no time"),
        (("fork", "LOG", "user-2", "--set", f"count={'[' * 100_000}"), "nested too deeply"),
        (("grep", "LOG", "(", "-e"), "no regular expression"),
        (("show", "LOG", "user-1\udcff"), "half a surrogate pair"),
        (("show", "LOG", "user-2", "noets[0]"), "did you mean 'notes'"),
        (("show", "LOG", "user-2", "notes[77]"), "notes is there, and it is a list of 5 elements"),
        (("watch", "LOG", "user-2", "noets"), "did you mean 'notes'"),
        (("LOG",), "a command comes first: stepwell threads"),
        (("threads", "LOG", "--since", "yesterday"), "stepwell: 'yesterday' is no time"),
        (("threads", "LOG", "--limit", "x"), "Invalid value for '--limit'"),
    ],
)
def test_helpful_errors(arguments: tuple[str, ...], hint: str, cli: Cli, path: Path) -> None:
    """A mistake gets an answer that names what was likely meant, and exit code 2."""
    told = cli(*(path if argument == "LOG" else argument for argument in arguments))
    assert told.code == exits.USAGE
    assert hint in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


def test_a_mistyped_file(cli: Cli, path: Path) -> None:
    """The file that was meant is named."""
    assert "did you mean 'agent.stepwell'" in cli("threads", path.with_name("agent.stepwel")).err


def test_reading_while_agents_write(cli: Cli, path: Path) -> None:
    """A log that another process has open is read as it is at that moment; what needs it alone is refused."""
    script = (
        "import sys; from stepwell import Log\n"
        f"log = Log.open({str(path)!r})\n"
        "for line in sys.stdin:\n"
        "    print(log.thread('user-1').fork('1', as_=line.strip()).sequence, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for name in ("one", "two"):
            writer.stdin.write(name + "\n")
            writer.stdin.flush()
            assert writer.stdout.readline()
            assert cli("threads", path, "--json").items[0]["thread"] == name
            assert cli("audit", path, "--json").items[0]["breaches"] == []
        refused = cli("compact", path)
        assert refused.code == exits.USAGE
        assert cli("compact", path, "--into", path.with_name("copy.stepwell")).code == exits.OK
        writer.stdin.close()


def test_no_command_at_all(cli: Cli) -> None:
    """Without a command there is the help."""
    assert cli() == cli("--help")


def test_version(cli: Cli) -> None:
    """The version is that of the distribution."""
    assert re.fullmatch(r"stepwell \d+\.\d+\.\d+\S*\n", cli("--version").out)


def test_without_what_it_needs() -> None:
    """Without typer the command says what to install."""
    script = "import sys; sys.modules['typer'] = None; from stepwell_cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr == "stepwell: the command line needs typer: pip install 'stepwell[cli]'\n"


def test_a_terminal_without_the_characters(path: Path) -> None:
    """What the output's encoding has no character for is spelled out."""
    command = [sys.executable, "-m", "stepwell_cli", "tree", str(path), "user-1"]
    ran = subprocess.run(
        command, env=environment(PYTHONIOENCODING="ascii"), capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\\u2514" in ran.stdout


def test_nothing_is_made_by_looking(cli: Cli, tmp_path: Path) -> None:
    """A command that looks at a log that is not there does not make one."""
    for command in (("threads",), ("seal",), ("fork", "x"), ("compact",)):
        assert cli(command[0], tmp_path / "none.stepwell", *command[1:]).code == exits.USAGE
    assert [*tmp_path.iterdir()] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [
    (page.name, line[2:])
    for page in PAGES
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ stepwell ")
]


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_commands_of_the_pages(page: str, line: str) -> None:
    """Each command that a page shows is one, with arguments and options that it takes."""
    words = shlex.split(line.partition(" | ")[0], comments=False)[1:]
    get_command(application()).commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]


def test_pages_show_every_command() -> None:
    """Each command is in the table of the page about the command line, and its output is shown on some page."""
    table = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"| `{command} " not in table] == []
    assert {*COMMANDS} - {line.split()[1] for _, line in SHOWN} == set()


# --- what strangers put into a log ---


def harmless(text: str) -> bool:
    """Whether a terminal shows a text and does nothing else."""
    return all(character.isprintable() or character == "\n" for character in text)


def test_no_control_sequence_is_written(cli: Cli, tmp_path: Path) -> None:
    """Ids, texts, nodes, lanes, labels and paths with control characters are shown, to people and to programs."""
    log_path = tmp_path / "evil.stepwell"
    with Log.open(log_path) as log:
        fill(log, EVIL, evil=EVIL)
        log.thread(EVIL).append([StepCommitted(EVIL, None, changes(packed(**{EVIL: EVIL})), changes({}), EVIL)])
        log.thread(EVIL).label({"who": EVIL})
    for as_json in ((), ("--json",)):
        for command in (
            *(("threads",), ("log", EVIL), ("tree", EVIL), ("show", EVIL), ("show", EVIL, "notes[-1]")),
            *(("show", EVIL, "--lane", EVIL), ("diff", f"{EVIL}@1", "@2"), ("blame", EVIL, "notes[1]")),
            *(
                ("watch", EVIL, "notes"),
                ("grep", "note"),
                ("replay", EVIL),
                ("stats", EVIL),
                ("stats", "-m"),
                ("audit",),
            ),
            *(("follow", "--after", 0, "--timeout", 0), ("follow", EVIL, "--after", 0, "--timeout", 0)),
            *(("export",), ("show", f"{EVIL}x"), ("show", f"{EVIL}@{EVIL}"), ("show", EVIL, EVIL)),
            *(("fork", EVIL, "--as", f"{EVIL} 2 {len(as_json)}"), ("show", EVIL, "--lane", f"{EVIL}x")),
        ):
            told = cli(command[0], log_path, *command[1:], *as_json)
            assert harmless(told.out), command
            assert harmless(told.err), command
            assert "Traceback" not in told.err


class Gadget:
    """An object whose pickle makes a file when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def test_nothing_that_a_log_holds_is_run(cli: Cli, tmp_path: Path) -> None:
    """Pickles, extensions that name functions and absurd nesting are shown as what they are, and nothing is called."""
    marker = tmp_path / "marker"
    call = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(["pathlib", "Path.touch", [str(marker)]]))
    named = msgspec.msgpack.Ext(4, msgspec.msgpack.encode(["os", "system", {"command": f"touch {marker}"}, "run"]))
    deep = b"\x91" * 100_000 + b"\xc0"
    state = {
        **packed(call=call, named=named),
        "deep": ("msgpack", deep),
        "pickled": ("pickle", pickle.dumps(Gadget(marker))),
    }
    log_path = tmp_path / "gadgets.stepwell"
    with Log.open(log_path) as log:
        log.thread("t").append([StepCommitted("s1", None, changes(state), changes(state))])
    for command in (
        *(("show", "t"), ("show", "t", "pickled"), ("show", "t", "named"), ("show", "t", "deep"), ("log", "t")),
        *(("grep", "touch"), ("watch", "t", "call"), ("replay", "t"), ("export", "t", "--states"), ("threads",)),
    ):
        for as_json in ((), ("--json",)):
            told = cli(command[0], log_path, *command[1:], *as_json)
            assert told.code in (exits.OK, exits.FOUND), (command, told.err)
            assert harmless(told.out)
    assert not marker.exists()


# --- processes, pipes and terminals ---


def environment(**more: str) -> dict[str, str]:
    """Variables for a process that finds the tree's own packages."""
    folders = os.pathsep.join(str(ROOT / folder) for folder in ("cli", "engine", "adapters"))
    kept = {name: value for name, value in os.environ.items() if name not in ("PAGER", "LESS", "NO_COLOR", "COLUMNS")}
    return {**kept, "PYTHONPATH": folders, **more}


def test_what_starting_up_imports(path: Path) -> None:
    """Looking at a log imports neither LangGraph nor LangChain, and rich only for tables and terminals."""
    script = (
        "import sys; from stepwell_cli.main import run\n"
        f"assert run(['show', {str(path)!r}, 'user-1', '--json']) == 0\n"
        f"assert run(['log', {str(path)!r}, 'user-1']) == 0\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots & {'rich', 'langgraph', 'langchain', 'langchain_core', 'stepwell_langgraph', 'pydantic'}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_pipe_that_closes(path: Path) -> None:
    """`stepwell ... | head -1` ends quietly."""
    with Log.open(path) as log:
        for _ in range(8):
            log.thread("user-1").append([wrote("x", [b"many bytes " * 20000])])
    command = [sys.executable, "-m", "stepwell_cli", "export", str(path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        ran.stdout.readline()
        ran.stdout.close()
        assert ran.wait(timeout=60) == exits.PIPE_CLOSED
        assert ran.stderr.read() == b""


def on_terminal(*arguments: object, keys: bytes = b"", **variables: str) -> Ran:
    """Run a command on a terminal of 80 columns; keys are typed once something is shown."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "stepwell_cli", *map(str, arguments)]
    shape = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    ran = subprocess.Popen(
        command, env=environment(**{**shape, **variables}), stdin=side, stdout=side, stderr=side, start_new_session=True
    )
    os.close(side)
    shown = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([main], [], [], 0.1)[0]:
            continue
        try:
            piece = os.read(main, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if keys:
            os.write(main, keys) if keys != b"\x03" else os.killpg(ran.pid, signal.SIGINT)
            keys = b""
    os.close(main)
    return Ran(ran.wait(timeout=60), shown.decode(errors="replace"), "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(path: Path, closed: str) -> None:
    """A command whose input or output is closed runs, and no file of the log takes the place of one of them."""
    command = f"exec {shlex.quote(sys.executable)} -m stepwell_cli fork {shlex.quote(str(path))} user-2@1 {closed}"
    ran = subprocess.run(["sh", "-c", command], env=environment(), capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (exits.OK, b"")


def test_a_pager_that_is_none(path: Path) -> None:
    """A pager that no shell could start is left out."""
    assert "note 3" in on_terminal("show", path, "user-2", PAGER='less "').out


def test_colours_are_for_terminals(path: Path) -> None:
    """There are colours on a terminal, none with NO_COLOR, and the lines end at its edge."""
    shown = on_terminal("log", path, "user-1", PAGER="cat")
    assert shown.code == exits.OK
    assert "\x1b[33m" in shown.out
    plain = on_terminal("log", path, "user-1", PAGER="cat", NO_COLOR="1")
    assert "\x1b[33m" not in plain.out
    assert "\x1b[3" not in plain.out
    lines = plain.out.replace("\x1b[2m", "").replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert all(len(line) <= 80 for line in lines)


def test_what_differs_is_not_cut_for_its_place(path: Path) -> None:
    """Where a path leaves no room for what stands there, that goes on a line of its own."""
    shown = on_terminal("diff", path, "user-2@2", "user-2@3", PAGER="cat", COLUMNS="40").out
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert lines[lines.index("+ notes[4]") + 1] == "    note 3, long enough to stand by its…"


def test_progress_is_gone_before_the_report(
    cli: Cli, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shows how far an import is ends before the command says what it did, for they share the screen."""
    database = tmp_path / "b.db"
    assert cli("export", path, "user-2", "--to", f"sqlite:///{database}").code in (exits.OK, exits.FOUND)
    assert cli("export", path, "user-2", "--to", tmp_path / "one.bundle").code == exits.OK
    for source in (database, tmp_path / "one.bundle"):
        order: list[str] = []
        stop, say = screen.Meter.stop, screen.Screen.say

        def stopped(self: screen.Meter, order: list[str] = order, stop: Any = stop) -> None:
            order.append("end")
            stop(self)

        def said(self: screen.Screen, *parts: Any, order: list[str] = order, say: Any = say, **more: Any) -> None:
            order.append("say")
            say(self, *parts, **more)

        with monkeypatch.context() as patched:
            patched.setattr(screen.Meter, "stop", stopped)
            patched.setattr(screen.Screen, "say", said)
            cli("import", tmp_path / f"{source.name}.stepwell", source)
        assert order[0] == "end"
        assert "say" in order


def test_progress_ends_with_the_first_hit(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search through all threads tells how far it is until it has something to show."""
    told: list[str] = []
    monkeypatch.setattr(screen.Meter, "told", lambda self, what, done, total: told.append(f"{done}/{total}"))
    assert cli("grep", path, "nowhere").code == exits.FOUND
    assert told == ["0/3", "1/3", "2/3"]


def test_a_pager_gets_what_is_long(path: Path, tmp_path: Path) -> None:
    """On a terminal the pager of the user shows the output, and may be left early."""
    pager = tmp_path / "pager"
    pager.write_text(f"#!/bin/sh\nhead -n 1 > {tmp_path}/seen\n")
    pager.chmod(0o755)
    shown = on_terminal("log", path, "user-1", PAGER=str(pager))
    assert shown.code == exits.OK
    assert "Traceback" not in shown.out
    assert (tmp_path / "seen").read_text()


def test_ctrl_c(path: Path) -> None:
    """Ctrl-C ends a command with 130, without a traceback."""
    told = on_terminal("follow", path, "--after", 0, keys=b"\x03")
    assert told.code == exits.INTERRUPTED
    assert "Traceback" not in told.out


def test_completion(path: Path) -> None:
    """The shell completes commands and threads."""
    variables = {"_STEPWELL_COMPLETE": "complete_bash", "COMP_WORDS": f"stepwell show {path} user", "COMP_CWORD": "3"}
    command = [sys.executable, "-m", "stepwell_cli"]
    ran = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=60, check=False)
    assert {"user-1", "user-2"} <= set(ran.stdout.split())
