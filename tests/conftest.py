"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# The suite draws the same examples every time: a new draw that fails is found by fuzzing, not by CI.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")
