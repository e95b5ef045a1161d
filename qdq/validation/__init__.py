"""Validation: accuracy in ONNX Runtime, and what TensorRT engines run in INT8."""

from __future__ import annotations

from qdq.validation.engine_report import EngineReport
from qdq.validation.validator import Thresholds, Validation, validate

__all__ = [
    "EngineReport",
    "Thresholds",
    "Validation",
    "validate",
]
