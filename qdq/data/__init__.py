"""Calibration data: samples from files, folders, scripts, pictures and iterables."""

from __future__ import annotations

from qdq.data.feeds import NOISE, DataLike, Feeds, Subset, open_feeds
from qdq.data.images import Images

__all__ = [
    "NOISE",
    "DataLike",
    "Feeds",
    "Images",
    "Subset",
    "open_feeds",
]
