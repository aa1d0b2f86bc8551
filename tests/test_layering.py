"""The engine's modules import only what stands below them, and nothing that would tie it to one framework."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parent.parent / "engine" / "stepwell"

# From the ground up. A module imports from its own layer and from those below; the package itself is the top.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "format", "patch", "events", "nesting", "dictionary", "codec", "fold"),  # data and pure functions
    ("apart", "cache", "clock", "loops", "inspect"),
    ("paths", "labels", "due", "arguments"),
    ("storage.occupancy",),
    ("storage",),  # the protocol that every storage engine follows
    ("storage.tables",),  # rows of ordered tables
    ("storage.index", "storage.feed"),  # rows that hold several things
    ("storage.remembered",),  # rows that one group leaves for the next
    ("storage.catalogue",),  # rows that lists of threads go by
    ("storage.segments",),  # blocks of sealed records
    ("storage.held",),
    ("storage.records",),  # sealed and loose records alike
    ("storage.items",),  # what is remembered across threads
    ("storage.commit",),  # what the operations change
    ("storage.ordered",),  # the whole protocol, for engines that offer ordered tables
    ("storage.checksums", "storage.newfile", "storage.memory"),
    ("storage.lmdb.pages", "storage.lmdb.lockfile", "storage.lmdb.filesystem"),
    ("storage.lmdb.datafile", "storage.lmdb.freepages", "storage.lmdb.metapages"),
    ("storage.lmdb.structure", "storage.lmdb.remains", "storage.lmdb.room"),
    ("storage.lmdb.tables", "storage.lmdb.trouble"),
    ("storage.lmdb.opening",),  # what is looked at before a file is mapped, and while it is
    ("storage.lmdb.environment",),  # its transactions
    ("storage.lmdb.elastic",),  # its room
    ("storage.lmdb.registry",),  # one environment per file and process
    ("storage.lmdb.compaction",),
    ("storage.lmdb.engine",),  # the whole protocol, for files
    ("storage.lmdb",),
    ("observing",),
    ("reader",),
    ("content", "pruning", "history"),
    ("naming", "replaying", "blaming", "difference", "searching"),  # ways of reading a thread as data
    ("branching", "forking"),
    ("statistics", "measuring"),
    ("writer",),
    ("folding", "following"),
    ("item_rows",),
    ("forgetting",),
    ("items",),
    ("audit",),
    ("salvage",),
    ("repairing",),
    ("thread",),
    ("log",),
    ("bundle",),  # a thread as a file of its own
    ("jsonlines",),
    ("telemetry",),
    ("",),
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
GROUND = LAYERS[0]
LMDB = frozenset(module for module in RANK if f"{module}.".startswith("storage.lmdb."))
REPAIR = frozenset({"salvage", "repairing"})

# Who may import what, beside the layers: (the modules it is about, what those never import, why).
FORBIDDEN: tuple[tuple[frozenset[str], tuple[str, ...], str], ...] = (
    (
        frozenset(RANK),
        ("langgraph", "langchain", "langchain_core", "stepwell_langgraph"),
        "the engine knows no framework",
    ),
    (frozenset(RANK) - LMDB, ("lmdb",), "only storage/lmdb speaks to LMDB"),
    (
        frozenset(RANK) - {"telemetry"},
        ("opentelemetry", "stepwell.telemetry"),
        "who does not ask for telemetry does without it",
    ),
    (
        frozenset(RANK) - {"log"} - LMDB - REPAIR,
        ("stepwell.storage.lmdb", "stepwell.storage.memory"),
        "only log.py chooses a storage engine",
    ),
    (
        frozenset(GROUND),
        ("asyncio", "os", "random", "socket", "threading", "time"),
        "the ground layer is data and pure functions",
    ),
)


def module_name(path: Path) -> str:
    """The dotted name below `stepwell`: storage/index.py -> storage.index, storage/__init__.py -> storage."""
    parts = path.relative_to(ENGINE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ENGINE.rglob("*.py"))}


def imports_of(module: str, *, for_types: bool = True) -> set[str]:
    """Every absolute dotted name that a module imports, wherever in it the import stands.

    Args:
        module: Which.
        for_types: With those that only who checks types comes to.
    """
    path = SOURCES[module]
    package = ["stepwell", *path.relative_to(ENGINE).parent.parts]
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), for_types):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # `from stepwell import format` imports a module, `from stepwell.errors import X` a name in one.
            names.update(
                f"{origin}.{alias.name}" if is_engine_module(f"{origin}.{alias.name}") else origin
                for alias in node.names
            )
    return names


def statements(tree: ast.AST, for_types: bool) -> Iterator[ast.AST]:
    """Every node, without what stands under `if TYPE_CHECKING:` if that is not asked for."""
    for node in ast.iter_child_nodes(tree):
        if for_types or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from statements(node, for_types)


def is_engine_module(name: str) -> bool:
    """Whether a dotted name is one of the engine's modules (and not a name within one)."""
    return name == "stepwell" or name.removeprefix("stepwell.") in SOURCES


def engine_imports_of(module: str) -> set[str]:
    """The engine's own modules that a module imports when it runs, named as in the table."""
    modules = filter(is_engine_module, imports_of(module, for_types=False))
    return {name.removeprefix("stepwell").removeprefix(".") for name in modules}


@pytest.mark.parametrize("module", SOURCES)
def test_module_has_a_layer(module: str) -> None:
    """Each module of the engine has its place in the table."""
    assert module in RANK, f"{module!r} is not in LAYERS: give it the lowest place that its imports allow"


@pytest.mark.parametrize("module", [module for module in SOURCES if module in RANK])
def test_module_imports_only_downwards(module: str) -> None:
    """Nothing a module imports stands above it."""
    assert {name for name in engine_imports_of(module) if RANK.get(name, 0) > RANK[module]} == set()


def test_imports_form_no_circle() -> None:
    """Within a layer too, imports run one way."""
    TopologicalSorter({module: engine_imports_of(module) for module in SOURCES}).prepare()


@pytest.mark.parametrize(("about", "never", "why"), FORBIDDEN, ids=[why for *_, why in FORBIDDEN])
def test_forbidden_imports(about: frozenset[str], never: tuple[str, ...], why: str) -> None:
    """The rules beside the layers hold."""
    broken = [
        (module, name)
        for module in sorted(about & SOURCES.keys())
        for name in imports_of(module)
        if any(name == root or name.startswith(f"{root}.") for root in never)
    ]
    assert broken == [], why


@pytest.mark.parametrize("module", sorted(REPAIR))
def test_repair_needs_no_engine(module: str) -> None:
    """A file that no engine opens can be repaired: nothing is imported of any but the reader of damaged files."""
    engines = LMDB | {"storage.memory"}
    assert engine_imports_of(module) & engines == {"storage.lmdb.remains"}
