"""Ranges of tensors: what observers collected or users specify, and the files that hold them."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
