"""Imports from a real PostgreSQL, and exports to it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import postgres
from stepwell import Log, UsageError
from stepwell_langgraph import StepwellSaver, ahead
from stepwell_langgraph.exporting import export_to
from stepwell_langgraph.importing import import_from
from unit.test_importing import config, fill, heads, put, told

pytestmark = pytest.mark.skipif(postgres.version() is None, reason="no PostgreSQL on this machine")


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Where a server runs."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "server"
        Path(name).chmod(0o755)
        place.mkdir()
        with postgres.Server(place):
            yield place


@pytest.fixture
def address(directory: Path) -> str:
    """A new database with the saver's tables."""
    import psycopg
    from langgraph.checkpoint.postgres import PostgresSaver

    with psycopg.connect(postgres.address(directory), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS one")
        connection.execute("CREATE DATABASE one")
    found = f"postgresql://{postgres.USER}@/one?host={directory}"
    with PostgresSaver.from_conn_string(found) as saver:
        saver.setup()
    return found


def execute(address: str, query: Any, *values: Any) -> list[Any]:
    import psycopg

    with psycopg.connect(address) as connection:
        cursor = connection.execute(query, values)
        return cursor.fetchall() if cursor.description else [cursor.rowcount]


def test_texts_arrive_whatever_the_encoding_of_the_client(address: str) -> None:
    """An address may ask for one of its own; what is read is UTF-8."""
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(address) as source, Log.open(":memory:") as log:
        put(source, "thread-é", 1, {"naïf": "é" * 9})
        report = import_from(address + "&client_encoding=latin1", log)
        assert report.problems == []
        (there,) = source.list(config("thread-é"))
        (here,) = StepwellSaver(log).list(config("thread-é"))
        assert here.checkpoint == there.checkpoint
        assert here.metadata == there.metadata


@pytest.mark.parametrize("page", [1, 64])
def test_everything_arrives(page: int, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint reads as PostgresSaver reads it, and importing again, from the saver itself, changes nothing."""
    from langgraph.checkpoint.postgres import PostgresSaver

    monkeypatch.setattr(ahead, "_PAGE", page)
    with PostgresSaver.from_conn_string(address) as source, Log.open(":memory:") as log:
        fill(source)
        execute(address, "UPDATE checkpoint_writes SET task_path = '~z' WHERE task_id = 'task-b-2'")
        report = import_from(address, log)
        assert report.problems == []
        assert (report.checkpoints, report.verified, report.is_exact) == (27, 27, True)
        assert report.before_bytes
        assert "postgresql://bench@" in report.source
        for thread in ("one", "two"):
            assert told(StepwellSaver(log), thread) == told(source, thread)
            assert heads(StepwellSaver(log), thread) == heads(source, thread)
        again = import_from(source, log)
        assert (again.checkpoints, again.present, again.verified, again.writes) == (0, 27, 27, 0)
        head = source.get_tuple(config("one"))
        assert head is not None
        put(source, "one", 300, {**head.checkpoint["channel_values"], "n": 5}, parent=head.checkpoint["id"])
        assert import_from(address, log).checkpoints == 1
        assert told(StepwellSaver(log)) == told(source)
        assert log.audit().breaches == []


def test_bad_rows_leave_the_others_alone(address: str) -> None:
    """A row that cannot be read is told, and all others are imported, with what the server was asked for afterwards."""
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(address) as source, Log.open(":memory:") as log:
        fill(source)
        execute(address, "UPDATE checkpoints SET metadata = '7' WHERE metadata->>'step' = '-1'")
        execute(
            address, "UPDATE checkpoints SET checkpoint = '[]' WHERE metadata->>'step' = '5' AND checkpoint_ns = ''"
        )
        report = import_from(address, log)
        assert len(report.problems) == 2
        assert report.verified == report.checkpoints == 25
        execute(address, "DELETE FROM checkpoints WHERE jsonb_typeof(checkpoint) = 'array' OR metadata = '7'")
        assert told(StepwellSaver(log)).keys() == {
            (found.config["configurable"]["checkpoint_ns"], found.checkpoint["id"])
            for found in source.list({"configurable": {"thread_id": "one"}})
        }


def test_what_the_server_cannot_read_is_told_alone(address: str) -> None:
    """Where the server fails at one value, that checkpoint is told and its writes come, and so do all others."""
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(address) as source, Log.open(":memory:") as log:
        fill(source)
        whole = import_from(address, Log.open(":memory:"))
        ((broken, lost),) = execute(
            address,
            "SELECT b.version, count(*) FROM checkpoint_blobs b JOIN checkpoints c ON b.thread_id = c.thread_id "
            "AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version AND c.checkpoint_ns = b.checkpoint_ns "
            "WHERE b.channel = 'messages' AND b.thread_id = 'one' AND b.checkpoint_ns = '' "
            "GROUP BY b.version ORDER BY b.version DESC LIMIT 1",
        )
        execute(address, "ALTER TABLE checkpoint_blobs RENAME TO blobs")
        execute(
            address,
            "CREATE VIEW checkpoint_blobs AS SELECT thread_id, checkpoint_ns, channel, version, type, "
            "CASE WHEN version = '" + broken + "' THEN decode(repeat('z', length(channel)), 'hex') ELSE blob END "
            "AS blob FROM blobs",
        )
        report = import_from(address, log)
        assert {problem.thread_id for problem in report.problems} == {"one"}
        assert all("PostgreSQL cannot read it" in problem.reason for problem in report.problems)
        assert 1 <= len(report.problems) <= lost
        assert report.checkpoints == report.verified == whole.checkpoints - len(report.problems)
        assert report.writes == whole.writes


def test_versions_that_lie_are_found_out(address: str) -> None:
    """A value that the log has otherwise than the source is told, though its version says that it did not change."""
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(address) as source, Log.open(":memory:") as log:
        fill(source)
        import_from(address, log)
        execute(
            address, "UPDATE checkpoint_blobs SET blob = '\\x90' WHERE channel = 'messages' AND version LIKE '%%3.5'"
        )
        assert any("'messages'" in problem.reason for problem in import_from(address, log).problems)


def test_sends_of_old_checkpoints(address: str) -> None:
    """Checkpoints before version 4 get their Sends from their parent's writes, as the saver gives them."""
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(address) as source, Log.open(":memory:") as log:
        fill(source)
        execute(address, "UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{v}', '3')")
        report = import_from(address, log)
        assert report.problems == []
        for found in StepwellSaver(log).list(config("one")):
            expected = source.get_tuple(found.config)
            assert expected is not None
            assert sorted(found.checkpoint["channel_values"]) == sorted(expected.checkpoint["channel_values"])
            for name, value in found.checkpoint["channel_values"].items():
                assert value == expected.checkpoint["channel_values"][name]
            assert found.checkpoint["channel_versions"] == expected.checkpoint["channel_versions"]


def test_export(address: str) -> None:
    """A log that is exported to PostgreSQL reads the same there."""
    from langgraph.checkpoint.postgres import PostgresSaver

    with StepwellSaver.from_conn_string(":memory:") as saver:
        fill(saver)
        report = export_to(address, saver)
        assert report.problems == []
        assert report.verified == 27
        with PostgresSaver.from_conn_string(address) as exported:
            assert told(exported) == told(saver)


def test_what_is_no_savers_database(directory: Path) -> None:
    """A server that cannot be reached, and a database without the tables, are refused."""
    with Log.open(":memory:") as log:
        with pytest.raises(UsageError, match="has no"):
            import_from(f"postgresql://{postgres.USER}@/template1?host={directory}", log)
        with pytest.raises(UsageError, match="cannot be reached"):
            import_from(f"postgresql://{postgres.USER}:secret@/one?host=/nowhere", log)


def test_nothing_is_written(address: str) -> None:
    """The connection could not write if it wanted to."""
    from stepwell_langgraph.postgres_tables import PostgresTables

    tables = PostgresTables(address)
    try:
        assert json.loads(json.dumps([*tables._rows("SHOW transaction_read_only")])) == [["on"]]
    finally:
        tables.close()
