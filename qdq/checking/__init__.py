"""Checks: findings in models that hold Q/DQ, with their catalogue and baselines."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
