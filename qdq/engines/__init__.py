"""Engines: compiling with TensorRT-RTX and TensorRT, predicting, and measuring kernels."""

from __future__ import annotations

from qdq.engines.engine import Engine, EngineLayer
from qdq.engines.kernel_probe import probe
from qdq.engines.prediction.predictor import predict_engine
from qdq.engines.rtx_compiler import Compiler, build_engine
from qdq.engines.tensorrt import run_tensorrt

__all__ = [
    "Compiler",
    "Engine",
    "EngineLayer",
    "build_engine",
    "predict_engine",
    "probe",
    "run_tensorrt",
]
