"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import Phase, settings

# The suite draws the same examples every time: new draws are for benchmarks/fuzzing.py, not for CI.
# A failure is reported as it was drawn, for shrinking runs the test for minutes;
# `pytest --hypothesis-profile shrink TEST` shrinks it.
settings.register_profile(
    "suite", derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate]
)
settings.register_profile("shrink", derandomize=True, deadline=None)
settings.load_profile("suite")
