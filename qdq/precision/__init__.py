"""The float part of a model in FP16 or BF16: which nodes stay in FP32, and the Casts between."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
