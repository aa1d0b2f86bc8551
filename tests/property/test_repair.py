"""A log that was damaged anywhere is repaired into what can be proven of it, and the report says what is missing."""

from __future__ import annotations

import os
import random

import pytest

from property import repairs
from property.repairs import DAMAGES


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_anywhere(kind: str) -> None:
    """Whatever was damaged: the new log is sound, holds nothing that was not there, and all that was not touched."""
    chosen = os.environ.get("STEPWELL_REPAIR_SEED")
    seeds = [int(chosen)] if chosen else [0, random.SystemRandom().randrange(1 << 30)]
    for seed in seeds:
        try:
            repairs.try_case(kind, seed)
        except repairs.Verdict as verdict:
            pytest.fail(f"STEPWELL_REPAIR_SEED={seed}: {verdict}")


@pytest.mark.parametrize(("kind", "seed"), [("cut", 4), ("no_metas_and_more", 17)])
def test_damage_that_was_repaired_wrongly_once(kind: str, seed: int) -> None:
    """A file that ends within a page, and one without meta pages in which the state before a sealing stands, too."""
    repairs.try_case(kind, seed)
