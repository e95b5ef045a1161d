"""The record of a run, in Python's logging under the name "qdq": stages with their times, versions.

The library only writes to this logger. Who wants to see it adds a handler, as `qdq --verbose` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("qdq")
LOGGER.addHandler(logging.NullHandler())  # without a handler, logging prints errors itself


@contextmanager
def timed_stage(stage: str) -> Iterator[None]:
    """Record when a stage begins, and the seconds that it took once it has ended.

    It also decorates functions, each call of which is the stage.
    """
    LOGGER.debug("%s begins", stage)
    start = time.monotonic()
    yield
    LOGGER.info("%s took %.2f s", stage, time.monotonic() - start)
