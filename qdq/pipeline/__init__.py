"""Pipelines over several stages: quantize, repair, and search for a plan that builds."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
