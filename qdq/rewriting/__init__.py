"""Rewriting: a model with the Q/DQ pairs of a plan, and its file."""

from __future__ import annotations

from qdq.rewriting.inserter import apply
from qdq.rewriting.model_file import save
from qdq.rewriting.quantized_weights import store_weights

__all__ = [
    "apply",
    "save",
    "store_weights",
]
