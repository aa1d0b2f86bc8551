"""The matrix: every scenario, in every durability, sync and async, against `InMemorySaver`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.driver import SaverFile, drive, memory, perform
from agents.history import first_difference
from agents.scenarios import SCENARIOS

FULL_MATRIX = os.environ.get("STEPWELL_FULL_MATRIX") == "1"

# `create_react_agent` is deprecated for `create_agent`, and both are what users run.
pytestmark = pytest.mark.filterwarnings(
    "ignore:create_react_agent has been moved:langgraph.warnings.LangGraphDeprecatedSinceV10"
)

# What a long scenario runs in where the matrix is not run in full: each durability and each way of calling.
SAMPLE = [("sync", True), ("async", False), ("exit", True)]


MATRIX = [
    pytest.param(name, durability, asynchronous, id=f"{name}-{durability}-{calls}")
    for name, case in SCENARIOS.items()
    for durability in case.durabilities
    for asynchronous, calls in ((False, "invoke"), (True, "ainvoke"))
    if FULL_MATRIX or not case.is_long or (durability, asynchronous) in SAMPLE
]


@pytest.mark.parametrize(("name", "durability", "asynchronous"), MATRIX)
def test_history_equals_that_of_the_in_memory_saver(
    name: str, durability: str, asynchronous: bool, make_saver: Callable[[], SaverFile]
) -> None:
    """An agent leaves the same states and the same history as with `InMemorySaver`, restarts included."""
    case = SCENARIOS[name]
    expected, actual = (
        drive(perform(case.scenario, file, asynchronous, durability), asynchronous)
        for file in (memory(Path()), make_saver())
    )
    for rendered in (expected, actual):
        case.blank_the_open(rendered, durability)
    if difference := first_difference(expected, actual):
        pytest.fail(difference, pytrace=False)
