"""Observers: running the float model and collecting statistics of its tensors."""

from __future__ import annotations

from qdq.observers.collection import Observing, collect_locally

__all__ = [
    "Observing",
    "collect_locally",
]
