"""Recovery: what makes an INT8 model more accurate without leaving layers in float."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
