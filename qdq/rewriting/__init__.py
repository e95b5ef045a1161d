"""Rewriting: a model with the Q/DQ pairs of a plan, and its file."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
