"""Threads as data: views, writes by task, who put what where, what differs, where text stands, and trees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from building import step
from reading import Book, message
from stepwell import ABSENT, ConflictError, CorruptionError, Log, Sequence, StepCommitted, UsageError, blaming, changes
from stepwell.difference import Difference
from stepwell.fold import State
from stepwell.inspect import Opaque, Typed
from stepwell.reader import Reader
from stepwell.searching import Hit
from stepwell.storage.lmdb import LmdbStorage
from stepwell.storage.lmdb.freepages import oldest_readers


@pytest.fixture
def book() -> Iterator[Book]:
    """A short run: an input, two nodes at once, an update of the state, and a fork."""
    with Log.open(":memory:") as log:
        made = Book(log)
        question = message("q", "what of the tides?")
        made.step("s0", {"__start__": {"messages": [question]}}, source="input")
        made.wrote("s0", "__start__", {"messages": [question]})
        made.step("s1", {"messages": [question]}, "s0")
        answer, note = message("a", "they follow the moon"), {"step 3": {"text": "noted"}}
        made.wrote("s1", "model", {"messages": [answer], "count": 1})
        made.wrote("s1", "notes", {"plan": note, "count": 2})
        made.step("s2", {"messages": [question, answer], "plan": note, "count": 2}, "s1")
        edited = message("q", "what of the moon?")
        made.wrote("s2", "user", {"messages": [edited]}, path="~__interrupt__, 0000000000")
        made.step("s3", {"messages": [edited, answer], "plan": note, "count": 2}, "s2", source="update")
        made.step("s2b", {"messages": [question], "plan": {}}, "s1", source="fork")
        yield made


def test_a_view_decodes_what_is_asked_for(book: Book) -> None:
    """A state is a mapping of data, of which parts can be had by themselves."""
    view = book.thread.view("s2")
    assert set(view) == {"messages", "plan", "count"}
    assert len(view) == 3
    assert "plan" in view
    assert view["count"] == 2
    assert view.find("messages[id=a].content") == "they follow the moon"
    assert view.find("messages[5]") is ABSENT
    assert view.find("none") is ABSENT
    assert (view.kind("messages"), view.length("messages")) == ("array", 2)
    assert (view.kind("count"), view.length("count")) == ("value", None)
    assert view.part("messages", -1) == [message("a", "they follow the moon")]
    assert view.part("messages", 0, 1) == view["messages"][:1]  # type: ignore[index]
    assert view.raw("count") == ("msgpack", b"\x02")
    assert (view.number, view.source, view.step.step_id) == (1, "loop", "s2")
    with pytest.raises(UsageError, match="is no list"):
        view.part("plan")


def test_writes_are_told_by_task(book: Book) -> None:
    """What waits for a step is grouped by the task that wrote it, with the node that it ran."""
    model, notes = book.thread.pending("s1")
    assert (model.node, model.channels) == ("model", ["messages", "count"])
    assert model.values == [("messages", [message("a", "they follow the moon")]), ("count", 1)]
    assert (notes.node, notes.task_id) == ("notes", "task-notes-s1")


def test_a_step_has_the_writes_that_it_took_over(book: Book) -> None:
    """Tasks' writes belong to the step of the loop, an update's to the update, and none to a fork or an input."""
    nodes = {step.step_id: [task.node for task in step.writes] for step in book.thread.replay(until="s3")}
    assert nodes == {"s0": [], "s1": ["__start__"], "s2": ["model", "notes"], "s3": [None]}
    assert [task.is_update for step in book.thread.replay(since="s2", until="s3") for task in step.writes] == [True]
    assert [*book.thread.replay()][-1].writes == []


@pytest.mark.parametrize(
    ("path", "at", "step_id", "node"),
    [
        ("messages[0].content", "s2", "s1", "__start__"),
        ("messages[1].content", "s2", "s2", "model"),
        ("messages[id=a]", "s3", "s2", "model"),
        ("messages[id=q].content", "s3", "s3", None),
        ('plan["step 3"].text', "s3", "s2", "notes"),
        ("count", "s2", "s2", "notes"),
        ("plan", "s2b", "s2b", None),
        ("__start__.messages[0].content", "s0", "s0", None),
    ],
)
def test_who_put_it_there(book: Book, path: str, at: str, step_id: str, node: str | None) -> None:
    """Of two tasks that wrote to a channel, the one whose value stands there; nobody for inputs and forks."""
    change = book.thread.blame(path, at=at)
    assert (change.step.step_id, change.node) == (step_id, node)


def test_every_change_is_told_backwards(book: Book) -> None:
    """Old and new values of each change, the newest first."""
    changes = [
        (change.step.step_id, change.old, change.new) for change in book.thread.watch("messages[0].content", at="s3")
    ]
    assert changes == [
        ("s3", "what of the tides?", "what of the moon?"),
        ("s1", ABSENT, "what of the tides?"),
    ]


@pytest.mark.parametrize("most", [1, 3, 10_000])
def test_many_changes_are_told_one_by_one(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of them are held at once, each is told once, in order, with who did it and what differs."""
    monkeypatch.setattr(blaming, "_FIRST_WINDOW", 8)
    monkeypatch.setattr(blaming, "_MOST_CHANGES", most)
    with Log.open(":memory:") as log:
        book = Book(log)
        notes: list[str] = []
        for number in range(100):
            notes = [*notes, f"note {number} " + "x" * 40]
            book.step(f"s{number}", {"notes": notes, "n": number}, f"s{number - 1}" if number else None, number=number)
            book.wrote(f"s{number}", f"node{number + 1}", {"notes": [f"note {number + 1} " + "x" * 40]})
        told = [*book.thread.watch("notes")]
        assert [change.step.step_id for change in told] == [f"s{number}" for number in reversed(range(100))]
        assert [change.number for change in told] == [*reversed(range(100))]
        assert [change.node for change in told[:-1]] == [f"node{number}" for number in reversed(range(1, 100))]
        assert told[-1].old is ABSENT
        for change, number in zip(told[:-1], reversed(range(1, 100)), strict=True):
            assert change.new == notes[: number + 1]
            assert change.differences == [Difference(f"notes[{number}]", "added", ABSENT, notes[number])]


def test_going_through_changes_reads_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that changed at every step is gone through without reading a state for each: the cost of one walk."""
    with Log.open(":memory:") as log:
        book = Book(log)
        for number in range(400):
            book.step(f"s{number}", {"n": number}, f"s{number - 1}" if number else None, number=number)
            book.wrote(f"s{number}", "count", {"n": number + 1})
        asked: list[int] = []
        states = Reader.states

        def counted(self: Reader, thread: int, sequences: Iterable[int]) -> dict[int, State]:
            asked.extend(wanted := [*sequences])
            return states(self, thread, wanted)

        monkeypatch.setattr(Reader, "states", counted)
        told = [(change.number, change.node, change.new) for change in book.thread.watch("n")]
        assert told == [*((number, "count", number) for number in range(399, 0, -1)), (0, None, 0)]
        assert len(asked) < 20


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("mesages[0]", r"no channel 'mesages' after step #\d+; did you mean 'messages'"),
        ("messages[7]", "messages is there, and it is a list of 1 elements"),
        ("messages[0].contents", r"messages\[0\] is there, and it is a HumanMessage with the fields content"),
    ],
)
def test_where_nothing_stands_it_is_told(book: Book, path: str, says: str) -> None:
    """Blaming what is not there says how far the path leads."""
    with pytest.raises(UsageError, match=says):
        book.thread.blame(path)


def test_who_wrote_a_short_element_is_found(book: Book) -> None:
    """Of several tasks that added to a list, the one whose element it is, however short, wherever it came to stand."""
    book.step("s4", {"notes": ["a"]}, "s3")
    for node, note in (("left", "b"), ("right", "c")):
        book.wrote("s4", node, {"notes": [note], "plans": [{"who": node}]})
    book.step("s5", {"notes": ["a", "b", "c"], "plans": [{"who": "left"}, {"who": "right"}]}, "s4")
    for path, node in (("notes[1]", "left"), ("notes[-1]", "right"), ("plans[1].who", "right"), ("notes", None)):
        assert book.thread.blame(path).node == node, path


def test_the_node_of_what_was_sent_is_found() -> None:
    """A task that was sent runs the node that the Send names."""
    with Log.open(":memory:") as log:
        book = Book(log)
        sends = [Typed("langgraph.types.Send", {"node": name, "arg": "x" * 80}, (2,)) for name in ("one", "two")]
        book.step("s0", {"__pregel_tasks": sends})
        book.wrote("s0", "", {"out": ["a"]}, path="~__pregel_push, 0000000001, 0000000000")
        book.step("s1", {"out": ["a"]}, "s0")
        assert book.thread.pending("s0")[0].node == "two"
        assert book.thread.blame("out[0]").node == "two"


# --- differences ---


def differences(book: Book, a: str, b: str) -> list[tuple[str, str]]:
    return [(each.path, each.kind) for each in book.thread.diff(a, b)]


def test_what_differs_is_told_by_ids_and_keys(book: Book) -> None:
    """Messages by their id, maps by their keys, fields one by one, on one branch or two."""
    assert differences(book, "s1", "s2") == [
        ("messages[id=a]", "added"),
        ("plan", "added"),
        ("count", "added"),
    ]
    assert differences(book, "s2", "s3") == [("messages[id=q].content", "changed")]
    assert differences(book, "s3", "s2b") == [
        ("messages[id=a]", "removed"),
        ("messages[id=q].content", "changed"),
        ('plan["step 3"]', "removed"),
        ("count", "removed"),
    ]
    assert differences(book, "s2", "s2") == []


def test_texts_differ_line_by_line() -> None:
    """Long texts show the lines that changed."""
    with Log.open(":memory:") as log:
        book = Book(log)
        lines = [f"line {n}" for n in range(50)]
        book.step("s0", {"draft": "\n".join(lines)})
        book.step("s1", {"draft": "\n".join([*lines[:20], "another", *lines[21:]])}, "s0")
        (found,) = book.thread.diff("s0", "s1")
        assert [line for line in found.lines() if line[0] in "+-"] == ["-line 20", "+another"]
        assert found._replace(new=7).lines() == []


def test_elements_without_ids_are_lined_up() -> None:
    """Lists of plain values are compared as texts are: what was put in between moves nothing else."""
    with Log.open(":memory:") as log:
        book = Book(log)
        items = [{"n": n, "text": "long enough " * 8} for n in range(6)]
        book.step("s0", {"items": items})
        book.step("s1", {"items": [*items[:2], {"new": True}, *items[2:5], {**items[5], "n": 9}]}, "s0")
        book.step("s2", {"items": items[::-1], "numbers": [1, 2]}, "s1")
        assert differences(book, "s0", "s1") == [("items[2]", "added"), ("items[6].n", "changed")]
        assert ("numbers", "added") in differences(book, "s1", "s2")


def test_messages_that_moved_are_told() -> None:
    """An element that stands elsewhere is moved, not removed and added."""
    with Log.open(":memory:") as log:
        book = Book(log)
        messages = [message(f"m{n}", f"text {n}") for n in range(4)]
        book.step("s0", {"messages": messages})
        book.step("s1", {"messages": [messages[3], *messages[:3]]}, "s0")
        assert differences(book, "s0", "s1") == [("messages[id=m3]", "moved")]


def test_threads_are_compared_too(book: Book) -> None:
    """Two threads differ as two steps do, and part where their ids do, or else their states."""
    book.thread.copy_to("copy")
    copy = book.thread.log.thread("copy")
    assert book.thread.diff("s3", "s3", other=copy) == []
    assert [each.path for each in book.thread.diff("s3", "s2", other=copy)] == ["messages[id=q].content"]
    parted = book.thread.first_divergence("s3", "s2b", other=copy)
    assert (parted.common.step_id, parted.a.step_id, parted.b.step_id) == ("s1", "s2", "s2b")  # type: ignore[union-attr]
    again = Book(book.thread.log, "again")
    again.step("x0", {"__start__": {"messages": [message("q", "what of the tides?")]}}, source="input")
    again.step("x1", {"messages": [message("q", "what of the stars?")]}, "x0")
    parted = book.thread.first_divergence("s3", other=again.thread)
    assert (parted.common.step_id, parted.a.step_id, parted.b.step_id) == ("s0", "s1", "x1")  # type: ignore[union-attr]


# --- text ---


def hits(book: Book, pattern: str, **options: bool) -> list[tuple[str | None, str, str | None]]:
    return [
        (hit.step.step_id if hit.step else None, hit.path, hit.node) for hit in book.thread.grep(pattern, **options)
    ]  # type: ignore[arg-type]


def test_text_is_found_once_where_it_came_from(book: Book) -> None:
    """What many steps repeat is told once, with the step that took it over and the node that wrote it."""
    assert hits(book, "moon") == [
        ("s2", "messages[id=a].content", "model"),
        ("s3", "messages[id=q].content", None),
    ]
    assert hits(book, "TIDES") == []
    assert ("s0", "__start__.messages[id=q].content", None) in hits(book, "TIDES", ignore_case=True)
    assert hits(book, "follow.*moon", regex=True) == [("s2", "messages[id=a].content", "model")]
    assert hits(book, "step 3") == [("s2", 'plan["step 3"]', "notes")]


def test_a_hit_in_a_write_stands_where_the_step_put_it(book: Book) -> None:
    """What a task returned has another place in the state, and an id only there."""
    notes = ["one note, long enough to stand by itself", "another note, long enough to stand by itself"]
    book.step("s4", {"notes": notes[:1]}, "s3")
    book.wrote("s4", "model", {"notes": notes[1:], "messages": [message(None, "without a name")]})  # type: ignore[arg-type]
    book.step("s5", {"notes": notes, "messages": [message("a", "before"), message("m", "without a name")]}, "s4")
    assert hits(book, "another note") == [("s5", "notes[1]", "model")]
    assert hits(book, "without a name") == [("s5", "messages[id=m].content", "model")]
    assert book.thread.view("s5").find("notes[1]") == notes[1]


def test_text_is_found_however_it_is_written(book: Book) -> None:
    """JSON spells out what is not ASCII; halves of surrogate pairs stand nowhere."""
    values = {"told": ("json", b'{"who": "caf\\u00e9"}')}
    book.thread.append([StepCommitted("s9", "s3", changes(values), changes({}))])
    assert hits(book, "caf\u00e9") == [("s9", "told.who", None)]
    assert hits(book, "\ud800") == []
    assert book.thread.view("s1").find("messages[id=\ud800]") is ABSENT


def test_a_hit_shows_the_text_around(book: Book) -> None:
    """The text and where in it the pattern stands, however long it is."""
    book.step("s4", {"long": "x" * 500 + "needle" + "y" * 500}, "s3")
    (hit,) = book.thread.grep("needle")
    assert isinstance(hit, Hit)
    assert hit.text[hit.start : hit.end] == "needle"
    assert len(hit.text) < 100
    assert next(book.thread.grep(re.compile("x+n"))).path == "long"


def test_writes_that_no_step_took_over_are_found_too(book: Book) -> None:
    """They have no step yet."""
    book.wrote("s2b", "model", {"messages": [message("z", "dangling")]})
    assert hits(book, "dangling") == [(None, "messages[id=z].content", "model")]


def test_writes_that_come_after_their_step(book: Book) -> None:
    """What a task wrote may be recorded after the step that took it over: who wrote it is told as well, once."""
    for parent, text in (("s3", "a short word"), ("s2b", "a long one " + "x" * 200)):
        book.step(f"after {parent}", {"notes": [text]}, parent)
        book.wrote(parent, "think", {"notes": [text]})
        assert hits(book, text[:8]) == [(f"after {parent}", "notes[0]", "think")]


def test_what_cannot_be_looked_for_is_refused(book: Book) -> None:
    """Empty patterns and broken expressions are errors."""
    for pattern, regex in (("", False), ("(", True), ("(" * 5000 + ")" * 5000, True), ("a{99999999999}", True)):
        with pytest.raises(UsageError, match=r"empty|no regular expression"):
            list(book.thread.grep(pattern, regex=regex))
    with pytest.raises(UsageError, match="no lane"):
        list(book.thread.grep("x", lane="none"))


# --- trees ---


def test_a_tree_is_drawn(book: Book) -> None:
    """Runs without a fork are one line, branches hang below where they part."""
    book.step("in", {"x": 1}, lane="tools:\x1b[31m")
    lines = [re.sub(r" \(#\d+\)", "", line) for line in book.thread.tree().lines()]
    assert lines == [
        "t",
        "└─ -1..0  2 steps  s1",
        "   ├─ 1..2  2 steps  s3",
        "   └─ 1  1 step   s2b  ← head",
        "lane tools:\\x1b[31m",
        "└─ -1  1 step   in  ← head",
    ]
    assert [lane.lane for lane in book.thread.lanes()] == ["", "tools:\x1b[31m"]


def test_a_loop_of_parents_ends() -> None:
    """Steps that descend from themselves are walked once."""
    with Log.open(":memory:") as log:
        book = Book(log)
        book.step("a", {"n": 1})
        book.step("b", {"n": 2}, "a")
        book.parents["a"] = None
        book.step("a", {"n": 3}, "b", number=1)
        assert [step.step_id for step in book.thread.replay(until="b")] == ["a", "b"]
        assert sum(run.steps for run in book.thread.tree().lanes[""]) == 2
        assert book.thread.blame("n", at="b").step.step_id == "b"


def test_a_thread_of_a_thousand_steps_is_a_flat_tree() -> None:
    """No call for each step: long runs and long chains of forks are drawn all the same."""
    with Log.open(":memory:") as log:
        book = Book(log)
        parent = None
        for n in range(150):
            book.step(f"s{n}", {"n": n}, parent)
            if n % 2 and n < 140:
                book.step(f"f{n}", {"n": -n}, f"s{n}")
            parent = f"s{n}"
        assert str(book.thread.tree()).count("\n") == 2 * 70 + 1


# --- strangers ---


def test_a_pickle_in_a_thread_is_passed_over() -> None:
    """Every way of reading works beside what is never opened."""
    with Log.open(":memory:") as log:
        book = Book(log)
        book.step("s0", {"x": "y"})
        from stepwell import StepCommitted, changes

        event = StepCommitted("s1", "s0", changes({"x": ("pickle", b"cos\nsystem\n")}), changes({}))
        book.thread.append([event])
        assert isinstance(book.thread.view()["x"], Opaque)
        assert book.thread.blame("x").step.step_id == "s1"
        assert [each.kind for each in book.thread.diff("s0", "s1")] == ["changed"]
        assert list(book.thread.grep("system")) == []
        assert len([*book.thread.replay()]) == 2


def test_encrypted_values_are_told_as_such() -> None:
    """What nobody without the key can read is compared by its bytes, and what names something in it says why not."""
    with Log.open(":memory:") as log:
        thread, last = log.thread("t"), None
        for number, sealed in enumerate((b"one", b"two", b"two")):
            values = {"messages": ("msgpack+aes", sealed)}
            made = changes(values, last.values if last else None)
            base = last.sequence if last else Sequence(0)
            thread.append([StepCommitted(f"s{number}", last and last.step_id, made, changes({}), base=base)])
            last = thread.state()
        assert [change.step.step_id for change in thread.watch("messages")] == ["s1", "s0"]
        assert [each.path for each in thread.diff("s0", "s1")] == ["messages"]
        assert thread.diff("s1", "s2") == []
        told = thread.view()["messages"]
        assert isinstance(told, Opaque)
        assert (told.type, told.size_bytes, told.reason) == ("msgpack+aes", 3, "it is encrypted")
        with pytest.raises(UsageError, match="it cannot be looked into: it is encrypted"):
            thread.blame("messages[0]")
        with pytest.raises(UsageError, match="no step with the number 7; its steps have no numbers"):
            thread.view("7")


def test_messages_of_strangers_do_nothing_to_a_terminal() -> None:
    """Whatever stands in names, ids and texts, errors and drawings are printable."""
    with Log.open(":memory:") as log:
        book = Book(log, "\x1b[2J")
        nasty = {"\x1b]0;x\x07": 1, "a\u202eb": 2}
        book.step("\x1b[31mid-1", {"x\x9b1m": nasty, "y": nasty})
        book.step("\x1b[31mid-2", {"x\x9b1m": {}, "y": nasty}, "\x1b[31mid-1")
        thread = book.thread
        shown = [
            repr(thread.view()),
            *map(repr, thread.replay()),
            *map(repr, thread.watch("y")),
            *thread.tree().lines(),
        ]
        for wrong in (lambda: thread.blame("y.z"), lambda: thread.resolve("\x1b[31m"), lambda: thread.blame("z\x1b")):
            with pytest.raises(UsageError) as raised:
                wrong()
            shown.append(str(raised.value))
        assert all(text.isprintable() for text in shown), shown


def test_a_delta_channel_without_a_value_is_told() -> None:
    """Blaming what LangGraph would put together says so, and what to do instead."""
    with Log.open(":memory:") as log:
        book = Book(log)
        book.step("s0", {"n": 1}, counters={"messages": [1, 1]})
        with pytest.raises(UsageError, match="is a delta channel without a value"):
            book.thread.blame("messages[0]")


def test_paused_readers_hold_nothing_open(tmp_path: Path) -> None:
    """Between two steps of any reading no transaction is open, and a thread that goes away is told."""
    with Log.open(tmp_path / "log") as log:
        book = Book(log)
        parent = None
        for n in range(300):
            book.step(f"s{n}", {"n": n, "text": f"needle {n} " + "x" * 80}, parent)
            parent = f"s{n}"
            book.parents[f"s{n}"] = None  # its depth is not asked for
        thread = book.thread
        started = [thread.replay(), thread.watch("n"), thread.grep("needle"), thread.lanes()]
        for iterator in started:
            next(iterator)  # type: ignore[call-overload]
        assert isinstance(log.storage, LmdbStorage)
        assert oldest_readers(log.storage._open_environment().env.readers()) == []
        thread.delete()
        for iterator in started[:2]:
            with pytest.raises((ConflictError, CorruptionError)):
                list(iterator)  # type: ignore[call-overload]


def test_a_branch_behind_a_long_one(memory_log: Log) -> None:
    """A branch is followed over any number of steps of others that lie between, also twice, and to a missing parent."""
    thread = memory_log.thread("thread")
    steps = [step(f"s{n}", {"x": b"%d" % n}, parent=f"s{n - 1}" if n else "lost") for n in range(700)]
    thread.append(steps)
    thread.append([step("fork", {"x": b"fork"}, parent="s300"), step("again", {"x": b"again"}, parent="s10")])
    for end, last in (("fork", 300), ("again", 10), ("s699", 698)):
        found = [each.step_id for each in thread.replay(until=end)]
        assert found == [*(f"s{n}" for n in range(last + 1)), end]
        assert [each.step_id for each in thread.replay(since=f"{end}~3", until=end)] == found[-3:]
    thread.append([step("joined", {"x": b"joined"}, parent="fork")])
    assert thread.resolve("~2").step_id == "s300"
    assert thread.resolve("~302").step_id == "s0"


def test_what_cannot_be_shown_is_told_apart() -> None:
    """Pickles, unknown extensions and values within lists differ by their bytes, however alike they look."""
    with Log.open(":memory:") as log:
        thread = log.thread("t")
        ext = [msgspec.msgpack.Ext(99, bytes([number]) * 9) for number in range(3)]
        states = [
            {"pickled": ("pickle", b"%d" % number), "list": ("msgpack", msgspec.msgpack.encode([ext[0], ext[number]]))}
            for number in range(3)
        ]
        for number, state in enumerate(states):
            thread.append(
                [StepCommitted(f"s{number}", f"s{number - 1}" if number else None, changes(state), changes({}))]
            )
        assert [each.path for each in thread.diff("s0", "s1")] == ["pickled", "list[1]"]
        for path in ("pickled", "list[1]", "list"):
            assert [change.step.step_id for change in thread.watch(path)] == ["s2", "s1", "s0"]
        assert [change.step.step_id for change in thread.watch("list[0]")] == ["s0"]
