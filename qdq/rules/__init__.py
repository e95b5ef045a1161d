"""Rules: files, the facts that they are written in, matching, and the kernel tables of targets."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
