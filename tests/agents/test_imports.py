"""What an agent left with another saver reads the same after it was imported, and the agent goes on from there."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

import postgres
from agents.driver import Run, SaverFile, drive, memory, sqlite, stepwell
from agents.history import first_difference, render
from agents.scenarios import SCENARIOS
from stepwell import Log
from stepwell_langgraph.importing import import_from

pytestmark = pytest.mark.filterwarnings("ignore::langgraph.warnings.LangGraphDeprecatedSinceV10")


def on_postgres(path: Path) -> SaverFile:
    """A saver on a PostgreSQL that runs where the path says."""
    from langgraph.checkpoint.postgres import PostgresSaver

    @contextmanager
    def opened(path: Path) -> Iterator[Any]:
        with PostgresSaver.from_conn_string(postgres.address(path)) as saver:
            saver.setup()
            yield saver

    return SaverFile(path, opened, opened)  # type: ignore[arg-type]  # there are no async runs here


SOURCES: dict[str, Callable[[Path], SaverFile]] = {"sqlite": sqlite, "memory": memory, "postgres": on_postgres}
FULL_MATRIX = os.environ.get("STEPWELL_FULL_MATRIX") == "1"

# What is run where the matrix is not run in full: interrupts, forks, sub-graphs, a failing task, delta channels.
SAMPLE = [
    ("form", "sqlite"),
    ("map_reduce", "sqlite"),
    ("tree_own_memory", "sqlite"),
    ("time_travel", "memory"),
    ("deep_agent", "sqlite"),
]
MATRIX = [
    pytest.param(name, source, id=f"{name}-{source}")
    for name in SCENARIOS
    for source in SOURCES
    if FULL_MATRIX or (name, source) in SAMPLE
]


@pytest.fixture(scope="module")
def server() -> Iterator[Path | None]:
    """Where a PostgreSQL runs, if it is needed."""
    if not FULL_MATRIX or postgres.version() is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        place = Path(name) / "server"
        place.mkdir()
        with postgres.Server(place):
            yield place


@pytest.fixture
def postgres_place(server: Path | None, request: pytest.FixtureRequest) -> Path:
    """The same, without the tables of the test before."""
    if request.node.callspec.params["source"] != "postgres":
        return Path()
    if server is None:
        pytest.skip("no PostgreSQL on this machine")
    import psycopg

    with psycopg.connect(postgres.address(server), autocommit=True) as connection:
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
    return server


async def _read(run: Run) -> tuple[Any, bytes]:
    """All that can be read of the thread: rendered, and as it stands with ids and times."""
    portrait = await run.portrait()
    rendered = render(portrait, [("state", await run.state(subgraphs=True))])
    return rendered, _encoded([[_in_order(saved) for saved in lane] for lane in portrait.checkpoints.values()])


def _in_order(saved: CheckpointTuple) -> list[Any]:
    """A checkpoint with the entries of LangGraph's own dicts in one order, which says nothing there."""
    core = dict(saved.checkpoint)
    values, versions = core.pop("channel_values"), core.pop("channel_versions")
    seen = core.pop("versions_seen")
    own = [sorted(core.items()), sorted(saved.metadata.items()), sorted(versions.items()), sorted(seen)]
    encoded = [(name, _encoded(value)) for name, value in sorted(values.items())]
    return [saved.config, saved.parent_config, own, encoded, saved.pending_writes]


def _encoded(value: Any) -> bytes:
    return JsonPlusSerializer().dumps_typed(value)[1]


async def _go_on(run: Run) -> None:
    """What a process does that comes back: it resumes, whatever there is to resume."""
    with suppress(Exception):  # an agent that waits for an answer, or breaks again; both runs do the same
        await run.invoke(None)


@pytest.mark.parametrize(("name", "source"), MATRIX)
def test_agent_is_imported(name: str, source: str, tmp_path: Path, postgres_place: Path) -> None:
    """Every checkpoint, write and snapshot of an agent's thread reads as it did, byte for byte, and it goes on."""

    place = postgres_place if source == "postgres" else tmp_path / "source"
    address = f"postgresql://{postgres.USER}@/postgres?host={place}"

    async def told() -> None:
        async with Run(SOURCES[source](place), False, "sync") as run:
            await SCENARIOS[name].scenario(run)
            expected, exactly = await _read(run)
            with Log.open(tmp_path / "log") as log:
                given = {"memory": run.saver, "sqlite": place, "postgres": address}[source]
                report = import_from(given, log)
                assert report.problems == []
                assert report.verified == report.checkpoints == sum(1 for _ in run.saver.list(None))
                assert log.audit().breaches == []
                assert import_from(given, log).present == report.checkpoints
            async with Run(stepwell(tmp_path / "log"), False, "sync") as imported:
                assert run._build is not None
                await imported.start(run._build)
                actual, exactly_now = await _read(imported)
                if difference := first_difference(expected, actual):
                    pytest.fail(difference, pytrace=False)
                assert exactly_now == exactly
                await _go_on(imported)
                await _go_on(run)
                if difference := first_difference((await _read(run))[0], (await _read(imported))[0]):
                    pytest.fail(f"gone on: {difference}", pytrace=False)

    drive(told(), False)
