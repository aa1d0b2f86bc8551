"""Hypothesis profiles: `quick` for every run, `thorough` for a long one.

HYPOTHESIS_PROFILE=thorough pytest tests/property
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A commit waits for the disk, so the time of one example says nothing about the code.
_slow_disk = [HealthCheck.too_slow]

settings.register_profile("quick", max_examples=60, deadline=None, print_blob=True, suppress_health_check=_slow_disk)
settings.register_profile(
    "thorough", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=_slow_disk
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
