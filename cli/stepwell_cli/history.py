"""One thread, step by step: `log`, `tree`, `show`, `replay` and `follow`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stepwell_cli import exits
from stepwell_cli.comparison import NEXT, difference_json, without_next
from stepwell_cli.places import (
    AnyThreadArgument,
    Command,
    JsonOption,
    LaneOption,
    LogArgument,
    ThreadArgument,
    WholeThreadArgument,
    existing,
    lane_of,
    reading,
    refer,
    step_json,
)
from stepwell_cli.screen import (
    BAD,
    FAINT,
    GOOD,
    NAME,
    PLACE,
    STRONG,
    Part,
    Screen,
    clock,
    counted,
    duration,
    local_time,
    moment,
    safe,
    size,
    tame_warnings,
)

if TYPE_CHECKING:
    from stepwell import Thread

_ID_SHOWN: Final = 13  # characters: of a UUID the first two groups, which tell most steps apart
_LARGEST_SHOWN_BYTES: Final = 1 << 16  # of a channel that is not asked for by its path
_ELEMENTS_SHOWN: Final = 3
_STEPS_AT_ONCE: Final = 256
_WIDE: Final = 110  # columns from which lists have room for ids


def log_(
    log: LogArgument,
    thread: ThreadArgument,
    lane: LaneOption = "",
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many steps.")] = 30,
    everything: Annotated[bool, typer.Option("--all", "-a", help="The whole branch.")] = False,
    json: JsonOption = False,
) -> None:
    """List the steps of a branch, newest first.

    For each what ran and what changed. The branch is the one that ends with
    STEP, or with the newest step.
    """
    screen = Screen(as_json=json)
    with reading(log) as opened:
        named = refer(opened, thread)
        name = lane_of(named.thread, lane)
        steps = _newest(named.thread, named.at, name, _STEPS_AT_ONCE if everything else min(limit + 1, _STEPS_AT_ONCE))
        shown = steps if everything else islice(steps, limit)
        if json:
            for step in shown:
                screen.emit(_replayed_json(named.thread, step))
            return
        with screen.paged():
            for step in shown:
                screen.say(*_one_line(screen, step), cut=True)
            if next(steps, None) is not None:
                screen.say((f"There are older ones: --limit {limit * 10}, or --all.", FAINT))


def _newest(thread: Thread, at: str | None, lane: str, page: int) -> Iterator[Any]:
    """The steps of a branch, newest first, replayed page by page."""
    from stepwell import UsageError

    while True:
        try:
            since: int | None = thread.resolve(f"{at or ''}~{page}", lane=lane).sequence
        except UsageError:
            since = None  # the branch is shorter than that, or there is no such step, which replaying says
        yield from reversed([*thread.replay(lane, since=since, until=at)])
        if since is None:
            return
        at = f"#{since}"


def _one_line(screen: Screen, step: Any) -> list[Part]:
    nodes = ", ".join(dict.fromkeys(task.node or "?" for task in step.writes))
    took = "" if step.elapsed_seconds is None else f"+{duration(max(step.elapsed_seconds, 0))}"
    return [
        (f"{_number(step):>5}", PLACE),
        (f"  #{step.sequence:<7}", FAINT),
        (f"{step.step_id[:_ID_SHOWN]:<{_ID_SHOWN}}  " if screen.width >= _WIDE else "", FAINT),
        f"{clock(step.created_at)} ",
        (f"{took:>8}  ", FAINT),
        f"{step.source or '-':<6} ",
        (f"{nodes or '-'}", STRONG),
        (f"  → {', '.join(shown)}" if (shown := without_next(step.changed)) else "", NAME),
    ]


def _number(step: Any) -> str:
    return "-" if step.number is None else str(step.number)


def _replayed_json(thread: Thread, step: Any) -> dict[str, Any]:
    return {
        "thread": thread.id,
        **step_json(step, step.number),
        "source": step.source,
        "nodes": [task.node for task in step.writes],
        "changed": step.changed,
        "elapsed_seconds": step.elapsed_seconds,
        "metadata": _json(step.metadata),
    }


def _json(data: Any) -> Any:
    from stepwell.inspect import to_json

    return to_json(data)


def tree(
    log: LogArgument,
    thread: WholeThreadArgument,
    lane: LaneOption = "",
    json: JsonOption = False,
) -> None:
    """Draw a thread's steps with all forks, lane by lane."""
    screen = Screen(as_json=json)
    with reading(log) as opened:
        found = existing(opened.thread(thread))
        drawn = found.tree(lane=lane_of(found, lane) if lane else None)
        if json:
            for name, runs in drawn.lanes.items():
                screen.emit({"thread": thread, "lane": name, "runs": _runs_json(runs)})
            return
        with screen.paged():
            for line in drawn.lines():
                before, arrow, after = line.partition("  ← ")
                screen.say(before, (arrow + after, GOOD), cut=True)


def _runs_json(runs: Iterable[Any]) -> list[dict[str, Any]]:
    """Runs for programs, each after the one that it branches off from: nested, they would be as deep as forks go."""
    made: list[dict[str, Any]] = []
    stack: list[tuple[Any, int | None]] = [(run, None) for run in reversed([*runs])]
    while stack:
        run, after = stack.pop()
        place = len(made)
        first, last = step_json(run.first, run.first_number), step_json(run.last, run.last_number)
        made.append({"first": first, "last": last, "steps": run.steps, "is_head": run.is_head, "after": after})
        stack += [(branch, place) for branch in run.branches][::-1]
    return made


def show(
    log: LogArgument,
    thread: ThreadArgument,
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="One value, in full: messages[-1].content.", show_default=False),
    ] = None,
    lane: LaneOption = "",
    json: JsonOption = False,
) -> None:
    """Show the state after a step, or one value in it.

    A PATH names a channel and what is inside it: messages[12].content,
    messages[id=abc], plan["step 3"].
    """
    screen = Screen(as_json=json)
    with reading(log) as opened:
        named = refer(opened, thread)
        view = named.thread.view(named.at, lane=lane_of(named.thread, lane))
        if path is not None:
            data = _found(view, path)
            if json:
                screen.emit(
                    {"thread": named.thread.id, **step_json(view.step, view.number), "path": path, "value": _json(data)}
                )
                return
            with screen.paged():
                _say_data(screen, data)
            return
        waiting = named.thread.pending(f"#{view.step.sequence}")
        if json:
            screen.emit(
                {
                    "thread": named.thread.id,
                    **step_json(view.step, view.number),
                    "metadata": _json(view.metadata),
                    "state": {channel: _json(view[channel]) for channel in view},
                    "pending": [_task_json(task) for task in waiting],
                }
            )
            return
        with screen.paged():
            _say_state(screen, named.thread, view, waiting)


def _found(view: Any, path: str) -> Any:
    from stepwell import UsageError
    from stepwell.blaming import nothing_there
    from stepwell.paths import ABSENT, Path

    data = view.find(path)
    if data is ABSENT:
        raise UsageError(nothing_there(view, Path.parse(path)))
    return data


def _task_json(task: Any) -> dict[str, Any]:
    return {
        "task": task.task_id,
        "node": task.node,
        "writes": [{"channel": channel, "value": _json(value)} for channel, value in task.values],
    }


def _say_state(screen: Screen, thread: Thread, view: Any, waiting: list[Any]) -> None:
    step = view.step
    screen.say(
        ("step " + ("-" if view.number is None else str(view.number)), PLACE),
        (f"  #{step.sequence}  ", FAINT),
        step.step_id,
        f"  {local_time(step.created_at)}",
    )
    screen.say("thread ", (thread.id, NAME), *(("  lane ", (step.lane, NAME)) if step.lane else ()))
    if step.parent_id:
        screen.say(("parent " + step.parent_id, FAINT))
    told = {name: value for name, value in view.metadata.items() if value not in (None, {}, [])}
    if told:
        screen.say("metadata ", (", ".join(f"{name}={_summary(value, 60)}" for name, value in told.items()), FAINT))
    following = [channel.removeprefix(NEXT) for channel in view if channel.startswith(NEXT)]
    if following:
        screen.say("next ", (", ".join(following), STRONG))
    for channel in without_next(view):
        screen.say()
        _say_channel(screen, view, channel)
    for task in waiting:
        screen.say()
        screen.say(("waiting ", BAD), (task.node or task.task_id, STRONG))
        for channel, value in task.values:
            if not channel.startswith(NEXT):
                screen.say("  ", (channel, NAME), ": ", _summary(value, 300), cut=True)


def _say_channel(screen: Screen, view: Any, channel: str) -> None:
    length = view.length(channel)
    kind = view.kind(channel)
    if kind == "array" and length is not None:
        screen.say((channel, NAME), (f"  {counted(length, 'element')}", FAINT))
        start = max(length - _ELEMENTS_SHOWN, 0)
        if start:
            screen.say((f"  [0..{start - 1}] ..." if start > 1 else "  [0] ...", FAINT))
        for index, item in enumerate(view.part(channel, start), start):
            screen.say((f"  [{index}] ", PLACE), _summary(item, 500), cut=True)
        return
    payload_bytes = len(view.raw(channel)[1])
    if payload_bytes > _LARGEST_SHOWN_BYTES:
        screen.say((channel, NAME), (f"  {size(payload_bytes)}: show it by its path", FAINT))
        return
    data = view[channel]
    if isinstance(data, dict) and data:
        screen.say((channel, NAME), (f"  {counted(len(data), 'key')}", FAINT))
        for key, item in data.items():
            screen.say("  ", (str(key), PLACE), ": ", _summary(item, 500), cut=True)
        return
    screen.say((channel, NAME), "  ", _summary(data, 500), cut=True)


def _summary(data: Any, width: int) -> str:
    from stepwell.inspect import summary

    return summary(data, width)


def _say_data(screen: Screen, data: Any) -> None:
    """One value in full: a text as it is, everything else as its JSON."""
    import json as json_form

    if isinstance(data, str):
        screen.block(data)
    else:
        screen.block(json_form.dumps(_json(data), indent=2, ensure_ascii=False))


def replay(
    log: LogArgument,
    thread: ThreadArgument,
    graph: Annotated[
        str | None,
        typer.Option(
            "--graph", "-g", metavar="MODULE:NAME", help="Compare with what this graph would do.", show_default=False
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="STEP", help="Begin after this step.", show_default=False)
    ] = None,
    lane: LaneOption = "",
    json: JsonOption = False,
) -> None:
    """Go through a branch again, oldest step first.

    Each step is shown with what its tasks wrote.

    With --graph the recorded writes are given to the graph's own reducers; no
    model and no tool is called. The first step where today's code would come to
    another state is named, and the exit code is 1. This imports your module, and
    makes objects of what the log holds: only for logs that you trust.
    """
    screen = Screen(as_json=json)
    with reading(log) as opened:
        named = refer(opened, thread)
        name = lane_of(named.thread, lane)
        if graph is not None:
            _compare(screen, named.thread, graph, name)
            return
        with screen.paged():
            for step in named.thread.replay(name, since=since, until=named.at):
                if json:
                    item = _replayed_json(named.thread, step)
                    screen.emit({**item, "tasks": [_task_json(task) for task in step.writes]})
                    continue
                screen.say(*_one_line(screen, step), cut=True)
                for task in step.writes:
                    for channel, value in task.values:
                        if channel.startswith(NEXT):
                            continue
                        screen.say(
                            "        ",
                            (task.node or "?", STRONG),
                            " wrote ",
                            (channel, NAME),
                            ": ",
                            _summary(value, 300),
                            cut=True,
                        )


def _compare(screen: Screen, thread: Thread, graph: str, lane: str) -> None:
    module, colon, name = graph.partition(":")
    if not colon:
        raise typer.BadParameter(f"a graph is named module:variable, such as agent:graph, not {graph!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise typer.BadParameter(f"there is no graph {graph!r} here: {error}") from error
    from stepwell_langgraph.replay import replay as replay_graph

    tame_warnings()
    told = replay_graph(found, thread, lane=lane or None)
    divergence = told.divergence
    if screen.is_json:
        screen.emit(
            {
                "thread": thread.id,
                "checked": told.checked,
                "passed_over": dict(told.passed_over),
                "unknown_lanes": told.unknown_lanes,
                "divergence": None if divergence is None else _divergence_json(divergence),
            }
        )
    else:
        screen.block(str(told), BAD if divergence is not None else GOOD)
    if divergence is not None:
        raise typer.Exit(exits.FOUND)


def _divergence_json(divergence: Any) -> dict[str, Any]:
    return {
        **step_json(divergence.step, divergence.number),
        "nodes": divergence.nodes,
        "error": None if divergence.error is None else repr(divergence.error),
        "differences": [difference_json(each) for each in divergence.differences],
    }


def follow(
    log: LogArgument,
    thread: AnyThreadArgument = None,
    after: Annotated[
        int | None,
        typer.Option(
            "--after",
            metavar="N",
            min=0,
            help="Begin after this commit (of a thread: sequence); 0 is the oldest.  [default: now]",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="End when nothing came.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what is appended, as it is appended.

    By any process; Ctrl-C ends it. Without a THREAD, one line for each append to the log; with one, a line for
    each event of the thread.
    """
    screen = Screen(as_json=json)
    with reading(log) as opened:
        if sys.stderr.isatty() and timeout is None:
            sys.stderr.write("waiting for what comes; Ctrl-C ends it\n")
        if thread is None:
            for entry in opened.follow(after=after, timeout_seconds=timeout):
                if json:
                    screen.emit(
                        {
                            "commit": entry.commit,
                            "thread": entry.thread_id,
                            "first": entry.first,
                            "last": entry.last,
                        }
                    )
                else:
                    events = f"#{entry.first}" + (f"..#{entry.last}" if entry.last > entry.first else "")
                    name = (entry.thread_id, NAME) if entry.thread_id is not None else ("(deleted)", BAD)
                    screen.say((f"{entry.commit:>7}  ", FAINT), name, f"  {events}", cut=True)
                screen.flush()
            return
        followed = opened.thread(thread)
        if followed.row() is None:
            sys.stderr.write(f"stepwell: there is no thread {safe(repr(thread))} yet\n")
        for sequence, event in followed.follow(after=after, timeout_seconds=timeout):
            _say_event(screen, followed, sequence, event)
            screen.flush()


def _say_event(screen: Screen, thread: Thread, sequence: int, event: Any) -> None:
    kind = type(event).__name__
    lane = getattr(event, "lane", "")
    step_id = getattr(event, "step_id", None)
    writes = [write.channel for write in getattr(event, "writes", ())]
    if kind == "StepCommitted":
        merge = event.channels
        changed = sorted({*merge.changes, *merge.drop})
    else:
        changed = writes or [*getattr(event, "labels", ())]
    if screen.is_json:
        screen.emit(
            {
                "thread": thread.id,
                "sequence": sequence,
                "event": kind,
                "lane": lane,
                "step": step_id,
                "changed": changed,
                "created_at": moment(event.created_at),
            }
        )
        return
    screen.say(
        (f"#{sequence:<7} ", FAINT),
        f"{clock(event.created_at)}  ",
        (f"{kind:<15} ", STRONG),
        (f"{(step_id or '')[:_ID_SHOWN]:<{_ID_SHOWN}}  " if screen.width >= _WIDE else "", FAINT),
        (", ".join(without_next(changed)), NAME),
        (f"  {lane}" if lane else "", FAINT),
        cut=True,
    )


COMMANDS: Final[Mapping[str, Command]] = {"log": log_, "tree": tree, "show": show, "replay": replay, "follow": follow}
