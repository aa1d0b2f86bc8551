"""The benchmark of stores measures what it says, with stores that are small."""

from __future__ import annotations

from pathlib import Path

import store


def test_all_is_measured_of_embedded_stores() -> None:
    """Each figure is there for ours and for SqliteStore, and the table has a row for each."""
    scale = store.Scale(items=150, vectors=[40], users=4, rounds=1, puts=5)
    results = {name: store.run(store.CONTENDERS[name], scale) for name in ("stepwell", "sqlite")}
    ours, rival = results["stepwell"], results["sqlite"]
    assert ours.keys() == rival.keys()
    assert len(ours) == 13
    assert all(seconds > 0 for seconds in [*ours.values(), *rival.values()])
    shown = store.table(results).splitlines()
    assert len(shown) == 2 + len(ours)
    assert all(line.endswith("x) |") for line in shown[2:])


def test_the_past_is_measured(tmp_path: Path) -> None:
    """Bytes and times are there, and the file holds what it must."""
    found = store.measure_past(tmp_path, 1_200, 100)
    assert all(figure > 0 for figure in found.values())
    assert found["values, bytes"] > found["values compressed, bytes"] > 1_200 * 20
    assert found["on disk / values compressed"] > 1
