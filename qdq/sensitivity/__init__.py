"""Sensitivity: which part of a network makes the error of its INT8, and what to leave in float."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
