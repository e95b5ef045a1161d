"""Observers: running the float model and collecting statistics of its tensors."""

from __future__ import annotations

from qdq.observers.collection import Observing, observe

__all__ = [
    "Observing",
    "observe",
]
