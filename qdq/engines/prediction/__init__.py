"""Prediction of a TensorRT engine's layers from the documented fusions, without a GPU."""

from __future__ import annotations

from qdq.engines.prediction.predictor import predict_engine

__all__ = [
    "predict_engine",
]
