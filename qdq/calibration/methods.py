"""Methods: how what a tensor was seen to hold becomes its range."""

from __future__ import annotations

import re

import msgspec

from qdq.errors import UsageError
from qdq.quantizer import ElementType
from qdq.ranges.histogram import find_least_error_amax
from qdq.ranges.tensor_ranges import TensorRange

DEFAULT_METHOD = "auto"

#: In the place of a method where ranges are said, not chosen.
GIVEN_METHOD = "given"

#: Share of absolute values kept within the range; the default of pytorch-quantization's HistogramCalibrator.
DEFAULT_PERCENT = 99.99

#: What chooses the scales of weights: the largest value of each channel, the least change of the weights, or of what their layer gives.
WEIGHT_METHODS = ("max", "mse", "shift")
_METHOD = re.compile(r"(?P<name>auto|max|mse|percentile|entropy)(:(?P<percent>\d+(\.\d+)?))?")


class Method(msgspec.Struct, frozen=True):
    """How a range becomes an amax, and how the scales of weights are chosen."""

    #: auto, mse, entropy, percentile or max; given, where ranges are said and none is chosen.
    name: str
    percent: float | None = None
    #: One of WEIGHTS.
    weights: str = "shift"

    def __str__(self) -> str:
        name = self.name if self.percent is None else f"{self.name}:{self.percent:g}"
        return (
            name if self.weights == _usual_weights(self.name) else f"{name}, weights {self.weights}"
        )

    def amax(self, seen: TensorRange, element: ElementType) -> float:
        """Return the absolute value that maps to the largest value of a type, in the tensor's unit."""
        if seen.histogram is None or self.name == "max":
            return seen.amax
        if self.percent is not None:
            return seen.histogram.percentile(self.percent)
        if self.name == "auto":
            return find_least_error_amax(seen.weighed, element)
        return (
            seen.histogram.least_divergence(element)
            if self.name == "entropy"
            else seen.histogram.least_error(element)
        )

    @property
    def needs_histogram(self) -> bool:
        """Whether the largest value alone is not enough."""
        return self.name not in ("max", GIVEN_METHOD) or self.weights == "shift"

    @property
    def without_data(self) -> Method:
        """What is left of it where no data was run: TensorRT, too, takes the largest weights where it has a cache."""
        return Method(GIVEN_METHOD, None, "mse" if self.weights == "mse" else "max")


def parse_method(text: str, weights: str | None = None) -> Method:
    """Return the method that ``auto``, ``mse``, ``entropy``, ``max``, ``percentile`` or ``percentile:99.9`` names; raises UsageError for others.

    `weights` is one of WEIGHTS; without it ``max`` takes the largest weights too, and all others ``shift``.
    """
    found = _METHOD.fullmatch(text)
    if not found or (found["name"] != "percentile" and found["percent"]):
        raise UsageError(
            f"unknown method {text!r}: write auto, mse, entropy, percentile, percentile:99.9 or max"
        )
    name, way = found["name"], weights or _usual_weights(found["name"])
    if way not in WEIGHT_METHODS:
        raise UsageError(
            f"unknown way to choose the scales of weights {way!r}: write {', '.join(WEIGHT_METHODS[:-1])} or {WEIGHT_METHODS[-1]}"
        )
    if name != "percentile":
        return Method(name, None, way)
    percent = float(found["percent"] or DEFAULT_PERCENT)
    if not 0.0 < percent <= 100.0:  # noqa: PLR2004 percent
        raise UsageError(f"method {text!r}: a percentile lies above 0 and at most at 100")
    return Method(name, percent, way)


def _usual_weights(name: str) -> str:
    return "max" if name in ("max", GIVEN_METHOD) else "shift"
