"""Types of the arrays of samples, weights and statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

#: A checked sample: an array per input.
Feed = dict[str, Array]
