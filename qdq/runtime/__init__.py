"""ONNX Runtime: sessions of models, and the devices that they run on."""

from __future__ import annotations

from qdq.runtime.session import Progress, open_session, run_sample

__all__ = [
    "Progress",
    "open_session",
    "run_sample",
]
