"""ONNX graphs: loading, an index of edges, and operators and patterns by their role."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
