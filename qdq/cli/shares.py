"""Shares that options and the project file state as percentages."""

from __future__ import annotations

import math
import re

from qdq.errors import UsageError

#: The value of --guard that switches it off. YAML reads the word as false.
OFF = "off"

_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")


def parse_share(text: str, option: str, alternative: str) -> float:
    """Return the share that a percentage states; raises UsageError for another text."""
    match = _PERCENT.fullmatch(text)
    share = float(match[1]) / 100 if match else math.nan
    if not 0.0 <= share <= 1.0:
        raise UsageError(
            f"{option}: {text!r} is no share. Pass a percentage such as 5%{alternative}."
        )
    return share
