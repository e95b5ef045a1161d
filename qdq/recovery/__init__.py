"""Recovery: what makes an INT8 model more accurate without leaving layers in float."""

from __future__ import annotations

from qdq.recovery.equalization import equalize, find_equalizations

__all__ = [
    "equalize",
    "find_equalizations",
]
