"""Metrics: numbers for the outputs of a model over some samples, built in or the user's own."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
