"""The compiled part: statistics of tensors and the search for weight scales, written in C.

It is optional. Where it is missing, numpy computes the same bytes. `library` finds and loads it;
`tensor_measurement` and `scale_search` call it with arrays.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
