"""What a thread shows to its readers, in a form that two runs of one scenario share.

`Portrait` gathers everything LangGraph can read back from a saver about a thread: every checkpoint of every
namespace with its pending writes in order, and every `StateSnapshot` of every graph.  Checkpoint ids, task
ids, generated message ids, version tails and times differ from run to run, so `render` gives them names that
do not:

1.  A namespace's checkpoints are named by their place in it, the oldest first: `ckpt(root#3)`.
2.  Tasks are named by their checkpoint and by their path where a snapshot shows it, else by the place of
    their first pending write: `task(root#3 ~__pregel_push, 2)`.  A namespace carries the task id of the call
    that made it, so namespaces get their names from the outside in.
3.  Whatever identifiers remain are numbered as they first appear, in an order that depends on names only.

Two portraits are equal when the rendered forms are: same values with the same types, same links, same order.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from itertools import count
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.types import Interrupt, StateSnapshot
from pydantic import BaseModel

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
IDENTIFIER = re.compile(rf"{UUID}|(?<![0-9a-f])[0-9a-f]{{32}}(?![0-9a-f])")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")
SHORTEST = len("2024-02-29T12:00:00")  # of all that IDENTIFIER and TIME match
NULL_TASK = "00000000-0000-0000-0000-000000000000"
CONFIG_KEYS = ("thread_id", "checkpoint_ns", "checkpoint_id", "checkpoint_map")

Rendered = Any


@dataclasses.dataclass(frozen=True)
class Portrait:
    """A thread as read back: per namespace what `list` yields, and the snapshots of its graph."""

    checkpoints: Mapping[str, list[CheckpointTuple]]
    snapshots: Mapping[str, list[StateSnapshot]]


class Names:
    """Gives run-independent names to identifiers."""

    def __init__(self, portrait: Portrait) -> None:
        self._names: dict[str, str] = {NULL_TASK: "task(null)"}
        self._versions: dict[str, str] = {}
        self._versions_of_number: defaultdict[str, int] = defaultdict(int)
        self._loose = 0
        self.namespaces: dict[str, str] = {}
        self._name_all(portrait)

    def _name_all(self, portrait: Portrait) -> None:
        by_depth: defaultdict[int, list[str]] = defaultdict(list)
        for namespace in portrait.checkpoints:
            by_depth[len(namespace.split("|")) if namespace else 0].append(namespace)
        for _, level in sorted(by_depth.items()):
            # Two namespaces differ at the latest in the name of the task that called them.
            for namespace in sorted(level, key=lambda ns: IDENTIFIER.sub(self._known_or_blank, ns)):
                self._name_lane(namespace, portrait.checkpoints[namespace], portrait.snapshots[namespace])

    def _name_lane(self, namespace: str, checkpoints: list[CheckpointTuple], snapshots: list[StateSnapshot]) -> None:
        lane = self.namespaces[namespace] = self.text(namespace) or "root"
        places = {}
        for place, saved in enumerate(reversed(checkpoints)):
            places[saved.checkpoint["id"]] = place
            self._names[saved.checkpoint["id"]] = f"ckpt({lane}#{place})"
        for snapshot in reversed(snapshots):
            place = places[snapshot.config["configurable"]["checkpoint_id"]]
            for task in snapshot.tasks:
                self._names.setdefault(task.id, f"task({lane}#{place} {_path(task.path)})")
        for place, saved in enumerate(reversed(checkpoints)):
            for number, (task_id, _, _) in enumerate(saved.pending_writes or []):
                self._names.setdefault(task_id, f"task({lane}#{place} write {number})")

    def _known_or_blank(self, match: re.Match[str]) -> str:
        return self._names.get(match[0], "?")

    def _name(self, match: re.Match[str]) -> str:
        if match[0] not in self._names:
            self._names[match[0]] = f"id({self._loose})"
            self._loose += 1
        return self._names[match[0]]

    def text(self, value: str) -> str:
        if len(value) < SHORTEST:
            return value
        return TIME.sub("<time>", IDENTIFIER.sub(self._name, value))

    def version(self, value: Any) -> str:
        """A version's number and which of the versions with this number it is: forks share numbers."""
        text = str(value)
        if text not in self._versions:
            number = text.split(".")[0].lstrip("0") or "0"
            self._versions[text] = f"{number}.{self._versions_of_number[number]}"
            self._versions_of_number[number] += 1
        return self._versions[text]


def _path(path: tuple[Any, ...]) -> str:
    return ", ".join(part if isinstance(part, str) else repr(part) for part in path if part != ())


def render(portrait: Portrait, notes: Iterable[tuple[str, Any]]) -> Rendered:
    """The portrait and what the scenario noted on the way, in plain lists, dicts and strings."""
    names = Names(portrait)
    renderer = Renderer(names)
    lanes = sorted(names.namespaces.items(), key=lambda item: (item[1] != "root", item[1]))
    return {
        "namespaces": [name for _, name in lanes],
        "notes": [(label, renderer.value(value)) for label, value in notes],
        "snapshots": {
            name: [renderer.snapshot(snapshot) for snapshot in reversed(portrait.snapshots[namespace])]
            for namespace, name in lanes
        },
        "checkpoints": {
            name: [renderer.checkpoint(saved) for saved in reversed(portrait.checkpoints[namespace])]
            for namespace, name in lanes
        },
    }


class Renderer:
    def __init__(self, names: Names) -> None:
        self._names = names

    @property
    def writes(self) -> "WriteRenderer":
        return WriteRenderer(self._names)

    def message_id(self, identifier: str | None) -> Rendered:
        return self.value(identifier)

    def checkpoint(self, saved: CheckpointTuple) -> Rendered:
        checkpoint = dict(saved.checkpoint)
        checkpoint.pop("ts")
        return {
            "config": self.config(saved.config),
            "parent": self.config(saved.parent_config),
            "metadata": self.value(dict(sorted(saved.metadata.items()))),
            "channel_values": self.channel_values(checkpoint.pop("channel_values")),
            "channel_versions": self.versions(checkpoint.pop("channel_versions")),
            "versions_seen": {
                node: self.versions(seen) for node, seen in sorted(checkpoint.pop("versions_seen").items())
            },
            "rest": self.mapping(checkpoint),
            "pending_writes": [
                (self._names.text(task_id), channel, self.writes.value(value))
                for task_id, channel, value in saved.pending_writes or []
            ],
        }

    def snapshot(self, snapshot: StateSnapshot) -> Rendered:
        values = snapshot.values
        return {
            "config": self.config(snapshot.config),
            "parent": self.config(snapshot.parent_config),
            "metadata": self.value(dict(sorted((snapshot.metadata or {}).items()))),
            "values": self.mapping(values) if isinstance(values, dict) else self.value(values),
            "next": list(snapshot.next),
            "tasks": [
                {
                    "id": self._names.text(task.id),
                    "name": task.name,
                    "path": _path(task.path),
                    # An error read back is the text of its repr, one just raised the exception itself.
                    "error": None if task.error is None else str(task.error),
                    "interrupts": self.value(task.interrupts),
                    "state": self.value(task.state),
                    "result": self.writes.value(task.result),
                }
                for task in snapshot.tasks
            ],
            "interrupts": self.value(snapshot.interrupts),
        }

    def config(self, config: Any) -> Rendered:
        if config is None:
            return None
        configurable = config["configurable"]
        return {key: self.value(configurable[key]) for key in CONFIG_KEYS if key in configurable}

    def versions(self, versions: Mapping[str, Any]) -> Rendered:
        return {channel: self._names.version(version) for channel, version in sorted(versions.items())}

    def channel_values(self, values: Mapping[str, Any]) -> Rendered:
        return {
            channel: (self.writes if channel == "__start__" else self).value(value)
            for channel, value in sorted(values.items())
        }

    def mapping(self, mapping: Mapping[str, Any]) -> Rendered:
        """A mapping of LangGraph's own, whose order means nothing."""
        return {key: self.value(mapping[key]) for key in sorted(mapping)}

    def value(self, value: Any) -> Rendered:
        """A value with its types: `True` is not `1`, and an order is kept where the value has one."""
        if type(value) is str:  # nearly all that there is
            return self._names.text(value)
        match value:
            case None | bool() | int() | float() | bytes():
                return value
            case Enum() | Decimal() | datetime():
                return repr(value)
            case str():
                return self._names.text(value)
            case StateSnapshot():
                return self.snapshot(value)
            case Interrupt():
                return ("Interrupt", self.value(value.value), self._names.text(value.id))
            case BaseMessage():
                fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
                identifier = fields.pop("id")
                return (type(value).__name__, self.message_id(identifier), self.mapping(fields))
            case BaseModel():
                return (type(value).__name__, self.mapping(value.__dict__))
            case dict() if "configurable" in value:
                return self.config(value)
            case dict():
                return {self._names.text(str(key)): self.value(item) for key, item in value.items()}
            case list() | tuple():
                return (type(value).__name__, [self.value(item) for item in value])
            case set() | frozenset():
                return (type(value).__name__, sorted((self.value(item) for item in value), key=repr))
            case BaseException():
                return (type(value).__name__, str(value))
            case _ if dataclasses.is_dataclass(value):
                fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
                return (type(value).__name__, self.mapping(fields))
            case _ if hasattr(value, "__slots__"):
                fields = {name: getattr(value, name) for name in value.__slots__}
                return (type(value).__name__, self.mapping(fields))
            case _ if type(value) is object:
                return "object"
        raise TypeError(f"no rendering for {value!r}")


class WriteRenderer(Renderer):
    """Renders what a task wrote or was given, without the generated ids of messages.

    `add_messages` gives a message its id in place, in another thread than the one that saves the write or the
    input: whether what is saved holds the id or None is a race within LangGraph.
    """

    def message_id(self, identifier: str | None) -> Rendered:
        if identifier is None or IDENTIFIER.search(identifier):
            return "generated or none"
        return identifier


def first_difference(expected: Rendered, actual: Rendered) -> str | None:
    """Where two rendered forms differ first, in words, or None."""
    if type(expected) is not type(actual):
        return f": expected {_brief(expected)}, got {_brief(actual)}"
    pairs: Iterable[tuple[Any, Any, Any]]
    if isinstance(expected, dict):
        if list(expected) != list(actual):
            return f": expected keys {list(expected)}, got {list(actual)}"
        pairs = zip(expected, expected.values(), actual.values(), strict=True)
    elif isinstance(expected, list | tuple):
        pairs = zip(count(), expected, actual, strict=False)
    else:
        return None if expected == actual else f": expected {_brief(expected)}, got {_brief(actual)}"
    for place, left, right in pairs:
        if found := first_difference(left, right):
            return f"[{place!r}]{found}"
    if len(expected) != len(actual):
        return f": expected {len(expected)} items, got {len(actual)}"
    return None


def _brief(value: Any, limit: int = 600) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
