"""An agent is killed in the middle of its work and comes back: the whole of stepwell in one run.

Every number shown is measured in this run, and every claim is checked: the exit code is 0 only if all held.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent_process import AgentProcess, AgentProcessError, conversation_digest, message_digest

THREAD = "research"
CONFIG: dict[str, Any] = {"configurable": {"thread_id": THREAD, "checkpoint_ns": ""}}
FEWEST_STEPS = 16  # the first pair of tool calls in the middle of a run needs as many
FORK_ROUNDS = 4


class Screen:
    """What the reader sees: sections, sentences, checked claims and progress, on a terminal or in a log."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._section = 0
        self.failed_claims: list[str] = []

    def title(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/bold]")

    def section(self, text: str) -> None:
        self._section += 1
        self._console.print(f"\n[bold cyan]{self._section}. {text}[/bold cyan]")

    def say(self, text: str) -> None:
        """Show sentences, wrapped."""
        for line in textwrap.wrap(text, width=90):
            self.show(line)

    def show(self, line: str = "") -> None:
        """Show one line as it is."""
        self._console.print(f"   {line}".rstrip(), markup=False)

    def claim(self, text: str, held: bool) -> None:
        """Show a claim together with whether it held; a broken one makes the demo fail."""
        if not held:
            self.failed_claims.append(text)
        mark = "[green]ok[/green]    " if held else "[bold red]BROKEN[/bold red]"
        self._console.print(f"   {mark} ", end="")
        self._console.print(text, markup=False)

    def table(self, table: Table) -> None:
        self._console.print()
        self._console.print(table)

    @contextmanager
    def progress(self, what: str, last: int) -> Iterator[Any]:
        """Yield `show(step, note)`: a live bar on a terminal, a few lines elsewhere."""
        if self._console.is_terminal:
            bar = Progress(
                TextColumn("   {task.description}"),
                BarColumn(),
                TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            task = bar.add_task(what, total=last, note="")
            with bar:
                yield lambda step, note="": bar.update(task, completed=step, note=note)
        else:
            shown = 0

            def show(step: int, note: str = "") -> None:
                nonlocal shown
                if step * 4 // last > shown:
                    shown = step * 4 // last
                    self.show(f"{what}: step {step} of {last}   {note}")

            yield show


@dataclass
class Run:
    """What one or more agent processes reported about one thread."""

    saved: list[dict[str, Any]] = field(default_factory=list)
    started_calls: list[str] = field(default_factory=list)
    saved_calls: set[str] = field(default_factory=set)
    opened: dict[str, Any] = field(default_factory=dict)
    loaded: dict[str, Any] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)

    def note(self, event: dict[str, Any]) -> None:
        """Take in one event of `agent_process`."""
        match event["event"]:
            case "saved":
                self.saved.append(event)
            case "tool started":
                self.started_calls.append(event["call"])
            case "result saved":
                self.saved_calls.add(event["call"])
            case "opened":
                self.opened = event
            case "loaded":
                self.loaded = event
            case "holding":
                self.held = event

    @property
    def last_step(self) -> int:
        return self.saved[-1]["step"] if self.saved else -1


def run_until_killed(screen: Screen, process: AgentProcess, path: Path, last_step: int) -> Run:
    """Follow the agent until it is between two tool calls of one step, then kill it."""
    run = Run()
    with process, screen.progress("working", last_step) as show:
        for event in process:
            run.note(event)
            if event["event"] == "saved":
                show(run.last_step, f"file {_size(_bytes_on_disk(path))}")
            # In the held step one call has its result saved and the other never gets there.
            if run.held and _sibling(run.held["call"]) in run.saved_calls:
                process.kill()  # what it had reported until then is still read
    if not process.killed:
        raise AgentProcessError("the agent finished before it could be killed in the middle of a step")
    return run


def run_to_the_end(screen: Screen, process: AgentProcess, path: Path, last_step: int) -> Run:
    """Follow the agent until it has answered."""
    run = Run()
    with process, screen.progress("working", last_step) as show:
        for event in process:
            run.note(event)
            if event["event"] == "saved":
                show(run.last_step, f"file {_size(_bytes_on_disk(path))}")
    return run


def check_nothing_lost(screen: Screen, saver: Any, told: list[dict[str, Any]]) -> int:
    """Hold what the agent was told is saved against what the file says; return how many steps it lacks."""
    stored, parents = {}, {}
    with screen.progress("reading the whole history", told[-1]["step"]) as show:
        for count, entry in enumerate(saver.list(CONFIG), -1):
            one, parent = entry.checkpoint["id"], entry.parent_config
            messages = entry.checkpoint["channel_values"].get("messages", [])
            stored[one] = (entry.metadata["step"], _digest(messages))
            parents[one] = parent["configurable"]["checkpoint_id"] if parent else None
            show(count)
    lost = [event["step"] for event in told if event["checkpoint_id"] not in stored]
    differing = [
        event["step"]
        for event in told
        if event["checkpoint_id"] in stored and stored[event["checkpoint_id"]] != (event["step"], event["digest"])
    ]
    ids = [event["checkpoint_id"] for event in told]
    screen.claim(f"Each of the {len(told)} steps that were acknowledged is in the file{_which(lost)}.", not lost)
    screen.claim(f"Each holds exactly the messages the agent had at that step{_which(differing)}.", not differing)
    screen.claim(
        "The steps form one unbroken line, from the question to the answer.",
        [parents.get(one) for one in ids] == [None, *ids[:-1]]
        and [event["step"] for event in told] == list(range(-1, len(told) - 1)),
    )
    return len(lost)


def travel_back(screen: Screen, agent: Any, told: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Show the state at a past step; return the config that names it."""
    then = next(event for event in told if event["step"] == step)
    config = {"configurable": CONFIG["configurable"] | {"checkpoint_id": then["checkpoint_id"]}}
    began = time.perf_counter()
    state = agent.get_state(config)
    spent_ms = (time.perf_counter() - began) * 1000
    messages = state.values["messages"]
    screen.show(f"The state at step {step} of {told[-1]['step']}, read in {spent_ms:.1f} ms:")
    screen.show(f"  messages       {len(messages)} (at the end: {told[-1]['messages']})")
    screen.show(f"  last message   {_excerpt(messages[-1].text)}")
    screen.show(f"  next to run    {', '.join(state.next)}")
    screen.claim("This is what the agent knew at that step, to the byte.", _digest(messages) == then["digest"])
    return config


def fork(screen: Screen, agent: Any, told: list[dict[str, Any]], past: dict[str, Any], past_step: int) -> None:
    """Ask something else at a past step, and show that both lines of work exist."""
    from research_agent import other_question

    past_messages = agent.get_state(past).values["messages"]
    question = other_question(FORK_ROUNDS)
    screen.show(f"At step {past_step} it is asked something else: {_excerpt(question)}")
    agent.invoke({"messages": [{"role": "user", "content": question}]}, past, durability="sync")

    first_end = {"configurable": CONFIG["configurable"] | {"checkpoint_id": told[-1]["checkpoint_id"]}}
    first, second = agent.get_state(first_end), agent.get_state(CONFIG)
    first_messages, second_messages = first.values["messages"], second.values["messages"]
    second_step = second.metadata["step"]
    stem, fork_step = f"step -1 ... step {past_step}", past_step + 1
    screen.show()
    for joint, end, messages in (
        (f"{stem} --+", told[-1]["step"], first_messages),
        (f"{'+':>{len(stem) + 4}}", second_step, second_messages),
    ):
        screen.show(f"{joint}-- step {fork_step} ... step {end:<5} {len(messages)} messages")
    screen.show()
    screen.claim("The first line of work is untouched.", _digest(first_messages) == told[-1]["digest"])
    screen.claim(
        "The second has the same past and an answer of its own.",
        _digest(second_messages[: len(past_messages)]) == _digest(past_messages)
        and second_messages[-1].text.startswith("This is what I read.")
        and second_messages[-1].text != first_messages[-1].text,
    )
    screen.claim(
        f"Followed back, the second leads to step {past_step} of the first.",
        past["configurable"]["checkpoint_id"] in _ancestors(agent, second, second_step - past_step),
    )


def demonstrate(screen: Screen, folder: Path, steps: int) -> None:
    """The story from the first question to the summary."""
    rounds = steps // 2
    last_step = 2 * rounds + 1  # a model turn and a tool turn for each round, and the answer
    path, sqlite_path = folder / "agent.stepwell", folder / "agent.sqlite"

    screen.title("stepwell: an agent that is killed and comes back")
    screen.say(
        "An agent works in steps: a turn of its model, a turn of its tools, and so on. A checkpointer saves "
        "its state at each step. The agent here is LangGraph's create_agent. Its model is a script, so that "
        "it needs no key and no network; all else is real."
    )

    screen.section("A research agent starts")
    screen.say(f"It reads this Python's standard library, {rounds} rounds of it, in a process of its own.")
    # A little past the middle: there is work to lose by then, and work left to do.
    kill_from = int(steps * 0.56)
    process = AgentProcess("stepwell", path, THREAD, rounds, hold_from_step=kill_from)
    before = run_until_killed(screen, process, path, last_step)

    screen.section("It is killed in the middle of a step")
    screen.say(
        f"SIGKILL, during step {before.held['step']}. That step makes two tool calls at once: one had "
        f"finished, the other had not. By then {len(before.saved)} steps, -1 to {before.last_step}, had been "
        "acknowledged as saved."
    )

    screen.section("It is started again on the same thread")
    process = AgentProcess("stepwell", path, THREAD, rounds, resume=True)
    after = run_to_the_end(screen, process, path, last_step)
    load_ms, first_step_ms = after.opened["ms"] + after.loaded["ms"], after.saved[0]["since_open_ms"]
    screen.show(f"File opened and state loaded ({after.loaded['messages']} messages): {load_ms:.1f} ms")
    screen.show(f"First new step on disk, its own work included: {first_step_ms:.1f} ms after opening")
    screen.claim(
        f"It went on where it was: after step {before.last_step} came step {after.saved[0]['step']}.",
        after.loaded["step"] == before.last_step and after.saved[0]["step"] == before.last_step + 1,
    )
    screen.claim(
        "Of the two tool calls under way, only the unfinished one was made again.",
        after.started_calls[0] == before.held["call"] and not before.saved_calls & set(after.started_calls),
    )
    told = before.saved + after.saved
    disk_bytes = _bytes_on_disk(path)

    from research_agent import build_agent, saver_class

    with saver_class("stepwell").from_conn_string(str(path)) as saver:
        agent = build_agent(saver)

        screen.section("Was anything lost?")
        lost = check_nothing_lost(screen, saver, told)
        report = saver.log.audit()
        screen.claim(f"The log's own audit of its {report.events} events finds no fault.", not report.breaches)
        new_bytes = _new_information(saver, agent.get_state(CONFIG).values["messages"])

        screen.section("Back in time")
        past_step = steps // 6 * 2  # even: the tools have answered and it is the model's turn
        past = travel_back(screen, agent, told, past_step)

        screen.section("A second branch")
        fork(screen, agent, told, past, past_step)

    screen.section("What it takes on disk")
    screen.say("The same agent once more, never killed, with LangGraph's SqliteSaver:")
    process = AgentProcess("sqlite", sqlite_path, THREAD, rounds)
    rival = run_to_the_end(screen, process, sqlite_path, last_step)
    rival_bytes = _bytes_on_disk(sqlite_path)
    screen.claim(
        "Killed or not, under either saver, the agent had the same conversation at every step.",
        [event["digest"] for event in told] == [event["digest"] for event in rival.saved],
    )

    summary = Table(title="What this run showed", title_justify="left", title_style="bold")
    summary.add_column("")
    summary.add_column("stepwell", justify="right")
    summary.add_column("SqliteSaver", justify="right")
    for row in (
        ("steps saved", f"{len(told)}", f"{len(rival.saved)}"),
        ("acknowledged steps lost in the kill", f"{lost}", "not killed"),
        ("recovery: file opened, state loaded", f"{load_ms:.1f} ms", ""),
        ("recovery: first new step on disk", f"{first_step_ms:.1f} ms", ""),
        ("saving a step: median at the start", _median_ms(told, 0), _median_ms(rival.saved, 0)),
        ("saving a step: median at the end", _median_ms(told, -1), _median_ms(rival.saved, -1)),
        ("saving all steps", _total_seconds(told), _total_seconds(rival.saved)),
        ("new information in the conversation", _size(new_bytes), _size(new_bytes)),
        ("file on disk", _size(disk_bytes), _size(rival_bytes)),
        ("file / new information", f"{disk_bytes / new_bytes:.2f}", f"{rival_bytes / new_bytes:.2f}"),
    ):
        summary.add_row(*row)
    screen.table(summary)


def _digest(messages: list[Any]) -> str:
    return conversation_digest([message_digest(message) for message in messages])


def _sibling(call: str) -> str:
    """The first of the two calls whose second is this one: call_7b -> call_7a."""
    return call[:-1] + "a"


def _which(steps: list[int]) -> str:
    return f", but not steps {steps}" if steps else ""


def _ancestors(agent: Any, state: Any, at_most: int) -> list[str]:
    found = []
    while state.parent_config is not None and len(found) < at_most:
        found.append(state.parent_config["configurable"]["checkpoint_id"])
        state = agent.get_state(state.parent_config)
    return found


def _new_information(saver: Any, messages: list[Any]) -> int:
    """Bytes of distinct content: each message as the checkpointer's serializer writes it, once."""
    return sum(len(written) for written in {saver.serde.dumps_typed(message)[1] for message in messages})


def _bytes_on_disk(path: Path) -> int:
    """The file and what its engine keeps beside it (a lock file, a write-ahead log)."""
    total = 0
    for part in path.parent.glob(f"{path.name}*"):
        try:
            total += part.stat().st_size
        except FileNotFoundError:  # SQLite removes its write-ahead log when it closes
            continue
    return total


def _median_ms(saved: list[dict[str, Any]], tenth: int) -> str:
    """The median time that saving took, over the first (0) or the last (-1) tenth of the steps."""
    count = max(len(saved) // 10, 1)
    part = saved[:count] if tenth == 0 else saved[-count:]
    return f"{statistics.median(event['ms'] for event in part):.2f} ms"


def _total_seconds(saved: list[dict[str, Any]]) -> str:
    return f"{sum(event['ms'] for event in saved) / 1000:.2f} s"


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.0f} MB"


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return f"{flat[:80]}..." if len(flat) > 80 else flat


def _check_space(folder: Path, steps: int) -> None:
    # SqliteSaver stores the whole state at each step, so its file grows with the square of the steps.
    needed = int(2 * 400e6 * (steps / 300) ** 2)
    free = shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(
            f"{str(folder)!r} has {_size(free)} free and the comparison may need {_size(needed)}: "
            "choose another disk with --keep DIR or TMPDIR, or fewer --steps"
        )


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; 0 when every claim held, 1 when one did not, 130 when it was stopped."""
    parser = argparse.ArgumentParser(
        description="A LangGraph agent is killed in the middle of a step, comes back, travels in time and "
        "forks; then the file it left is compared with SqliteSaver's. Takes about half a minute.",
        epilog="Nothing leaves this machine: the model is a script and the text it reads is Python's own.",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=300,
        metavar="N",
        help=f"how far the agent goes, at least {FEWEST_STEPS} (300)",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="write the files to this new folder and leave them there"
    )
    arguments = parser.parse_args()
    if arguments.steps < FEWEST_STEPS:
        parser.error(f"--steps must be at least {FEWEST_STEPS}")
    if arguments.keep:
        try:
            arguments.keep.mkdir(parents=True)
        except FileExistsError:
            parser.error(f"--keep must name a folder that does not exist yet, and {str(arguments.keep)!r} does")

    signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C: children are ended and temporary files removed
    screen = Screen()
    began = time.perf_counter()
    place = nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory(prefix="stepwell-demo-")
    try:
        with place as folder:
            _check_space(Path(folder), arguments.steps)
            demonstrate(screen, Path(folder), arguments.steps)
    except KeyboardInterrupt:
        screen.show()
        screen.say("Stopped. The agent's process is ended" + ("." if arguments.keep else " and its files are removed."))
        return 130
    except AgentProcessError as error:
        screen.show(f"The demo could not go on: {error}")
        return 1
    screen.show()
    if arguments.keep:
        screen.say(f"The files are in {arguments.keep}.")
    for claim in screen.failed_claims:
        screen.say(f"BROKEN: {claim}")
    verdict = "Every claim above held" if not screen.failed_claims else "Not every claim held"
    screen.say(f"{verdict}. The demo took {time.perf_counter() - began:.0f} s.")
    return 1 if screen.failed_claims else 0


if __name__ == "__main__":
    sys.exit(main())
