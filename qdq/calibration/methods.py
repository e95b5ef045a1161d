"""Calibration methods: how a range is chosen from the statistics of a tensor."""

from __future__ import annotations

import re

import msgspec

from qdq.arguments import require_type
from qdq.errors import UsageError
from qdq.quantizer import ElementType
from qdq.ranges.histogram import find_least_error_amax
from qdq.ranges.tensor_ranges import TensorRange

DEFAULT_METHOD = "auto"

#: The name in the place of a method where ranges are given, not chosen.
GIVEN_METHOD = "given"

#: Percentage of absolute values within the range; the default of pytorch-quantization's
#: HistogramCalibrator.
DEFAULT_PERCENT = 99.99

#: How the scales of weights are chosen: the largest value per channel, the least change of the
#: weights, or the least change of the layer's output.
WEIGHT_METHODS = ("max", "mse", "shift")

_METHOD = re.compile(r"(?P<name>auto|max|mse|percentile|entropy)(:(?P<percent>\d+(\.\d+)?))?")


class Method(msgspec.Struct, frozen=True):
    """How ranges of activations, and scales of weights, are chosen."""

    #: auto, mse, entropy, percentile or max; given where ranges are given and none is chosen.
    name: str
    #: The percentage of a percentile, else None.
    percent: float | None = None
    #: One of WEIGHT_METHODS.
    weights: str = "shift"
    #: How the ranges of a weight's blocks are chosen: max or mse.
    blocks: str = "mse"

    def __str__(self) -> str:
        name = self.name
        if self.percent is not None:
            name = f"{name}:{self.percent:g}"
        if self.weights == _default_weights(self.name):
            return name
        return f"{name}, weights {self.weights}"

    def amax(self, tensor_range: TensorRange, element: ElementType) -> float:
        """Return the absolute value that maps to a type's largest value, in the tensor's unit."""
        histogram = tensor_range.histogram
        if histogram is None or self.name == "max":
            return tensor_range.amax
        if self.percent is not None:
            return histogram.percentile(self.percent)
        if self.name == "auto":
            return find_least_error_amax(tensor_range.weighed, element)
        if self.name == "entropy":
            return histogram.least_divergence(element)
        return histogram.least_error(element)

    @property
    def needs_histogram(self) -> bool:
        """Whether the method needs more than the largest value of a tensor."""
        return self.name not in ("max", GIVEN_METHOD) or self.weights == "shift"

    @property
    def without_data(self) -> Method:
        """The method where no data is run.

        Weights take their largest values, as in TensorRT with a calibration cache, except with
        ``mse``. Blocks of a weight need no data, so they keep their method.
        """
        weights = "mse" if self.weights == "mse" else "max"
        return Method(GIVEN_METHOD, None, weights, self.blocks)


def parse_method(text: str, weights: str | None = None) -> Method:
    """Return a method by its name.

    Names are ``auto``, ``mse``, ``entropy``, ``max``, ``percentile`` and ``percentile:99.9``.
    `weights` is one of WEIGHT_METHODS; it defaults to ``max`` for ``max`` and to ``shift`` for
    other methods. Raises UsageError for other texts.
    """
    require_type(text, str, "method", "'auto', 'mse', 'entropy', 'percentile:99.9' or 'max'")
    match = _METHOD.fullmatch(text)
    name, digits = match.group("name", "percent") if match else ("", None)
    if not name or (digits and name != "percentile"):
        raise UsageError(
            f"unknown method {text!r}. Pass auto, mse, entropy, percentile, percentile:99.9 or max."
        )
    if weights is not None:
        require_type(weights, str, "weights", "the name of a method for weights")
    weight_method = weights or _default_weights(name)
    _require_weight_method(weight_method)
    block_method = "max" if weight_method == "max" else "mse"
    if name != "percentile":
        return Method(name, None, weight_method, block_method)
    percent = float(digits or DEFAULT_PERCENT)
    if not 0.0 < percent <= 100.0:  # noqa: PLR2004 percent
        raise UsageError(
            f"method {text!r}: {percent:g} is no percentile. Pass a number above 0 and up to 100."
        )
    return Method(name, percent, weight_method, block_method)


def _require_weight_method(weight_method: str) -> None:
    if weight_method not in WEIGHT_METHODS:
        others = ", ".join(WEIGHT_METHODS[:-1])
        raise UsageError(
            f"unknown method for weights {weight_method!r}. Pass {others} or {WEIGHT_METHODS[-1]}."
        )


def _default_weights(name: str) -> str:
    """Return how a method chooses the scales of weights where nothing else is requested."""
    return "max" if name in ("max", GIVEN_METHOD) else "shift"
