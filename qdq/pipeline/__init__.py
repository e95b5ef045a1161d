"""Pipelines over several stages: quantize, repair, and search for a plan that builds."""

from __future__ import annotations

from qdq.pipeline.fixer import fix
from qdq.pipeline.quantize_model import Quantized, quantize
from qdq.pipeline.requantize import Existing

__all__ = [
    "Existing",
    "Quantized",
    "fix",
    "quantize",
]
