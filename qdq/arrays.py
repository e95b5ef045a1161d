"""Types of the arrays that samples, weights and statistics are held in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

#: A sample, checked.
Feed = dict[str, Array]
