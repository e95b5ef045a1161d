"""The scales of one pair: from its range, or for a weight from its values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qdq.arrays import Array
from qdq.calibration.methods import Method
from qdq.calibration.scales import PairScale
from qdq.calibration.shared_scales import Amax
from qdq.calibration.weight_scales import least_error_amax, least_shift_amax
from qdq.errors import ModelError
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.operands import channel_amax, reshape_by_channels, split_blocks
from qdq.planning.decisions import Placement
from qdq.quantizer import Quantizer
from qdq.ranges.given_ranges import GivenSummary
from qdq.ranges.given_weights import make_weight_key
from qdq.ranges.tensor_ranges import Ranges

#: The range of a tensor or channel that is zero throughout. Any scale would do; this one is
#: harmless.
DEAD_AMAX = 1.0

_TINY = np.finfo(np.float32).tiny

#: The input slot of a layer's weight.
_WEIGHT_SLOT = 1


class PairScaler:
    """Compute the scales of a plan's pairs, given the ranges of its activations."""

    def __init__(
        self,
        index: GraphIndex,
        ranges: Ranges,
        amax: Amax,
        method: Method,
        summary: GivenSummary | None = None,
        known_weights: Iterable[PairScale] = (),
    ) -> None:
        """Keep the ranges: `amax` by tensor and element type, `summary` for given weights.

        `known_weights` are scales of weights that need not be computed again.
        """
        self._known_weights = {(item.tensor, item.quantizer): item for item in known_weights}
        self._index = index
        self._ranges = {item.tensor: item for item in ranges.by_tensor}
        self._amax = amax
        self._method = method
        self._given_weights = summary.weight_amax if summary else {}

    def compute(self, placements: tuple[Placement, ...], readers: int) -> PairScale:
        """Return the scales of a pair, which may be placed on several edges of one tensor.

        `readers` counts the edges with such a pair that read the tensor or an alias of it.
        """
        tensor = placements[0].edge.qualified_tensor
        quantizer = placements[0].quantizer
        known = self._known_weights.get((tensor, quantizer))
        if known is not None and not quantizer.calibrated:
            return known
        amax = self._find_amax(placements[0], readers)
        to_dtype = amax.dtype.type
        amax = np.where(amax > 0.0, amax, to_dtype(DEAD_AMAX))
        scales = amax / to_dtype(quantizer.element.largest)
        scales = scales.astype(np.float32)
        scales = np.maximum(scales, _TINY)
        return PairScale(tensor, quantizer, tuple(map(float, scales)))

    def _find_amax(self, placement: Placement, readers: int) -> Array:
        tensor = placement.edge.qualified_tensor
        quantizer = placement.quantizer
        if quantizer.calibrated:
            amax = self._amax[tensor, quantizer.dtype]
            return np.array([amax])
        given_amax = self._given_weights.get(make_weight_key(placement))
        if given_amax is None:
            return self._compute_weight_amax(placement.edge, quantizer, readers)
        if all(given_amax):
            return np.array(given_amax)
        largest = self._find_largest(placement.edge, quantizer)
        return np.where(np.array(given_amax) > 0.0, given_amax, largest)

    def _compute_weight_amax(self, edge: Edge, quantizer: Quantizer, readers: int) -> Array:
        """Return the amax of a weight, per channel where the quantizer has an axis."""
        if quantizer.block_size:
            return self._compute_block_amax(edge, quantizer)
        weight = self._read_weight(edge)
        if self._method.weights == "mse":
            return least_error_amax(weight, quantizer.axis, quantizer.element)
        if self._method.weights == "shift" and readers == 1:
            amax = self._compute_least_shift_amax(weight, edge, quantizer)
            if amax is not None:
                return amax
        return channel_amax(weight, quantizer.axis)

    def _compute_block_amax(self, edge: Edge, quantizer: Quantizer) -> Array:
        """Return the amax of each block of a weight, in the order of its scales."""
        if self._method.blocks == "max":
            return self._find_largest(edge, quantizer)
        rows = split_blocks(self._read_weight(edge), quantizer.axis or 0, quantizer.block_size)
        return least_error_amax(rows, 0, quantizer.element)

    def _find_largest(self, edge: Edge, quantizer: Quantizer) -> Array:
        """Return the largest absolute value for each scale of a weight."""
        weight = self._read_weight(edge)
        if not quantizer.block_size:
            return channel_amax(weight, quantizer.axis)
        rows = split_blocks(weight, quantizer.axis or 0, quantizer.block_size)
        return channel_amax(rows, 0)

    def _read_weight(self, edge: Edge) -> Array:
        """Return a weight's values as float32; raises ModelError where one is NaN or Inf."""
        constant = self._index.scope(edge).constant(edge.tensor)
        weight = np.asarray(constant, np.float32)
        _require_finite(weight, self._index.source.name, edge)
        return weight

    def _compute_least_shift_amax(
        self, weight: Array, edge: Edge, quantizer: Quantizer
    ) -> Array | None:
        """Return the amax per channel with the least shift of the layer's output.

        Returns None where the layer's input was not observed, and for other weights than those
        per channel in the second slot.
        """
        if quantizer.axis is None or edge.slot != _WEIGHT_SLOT:
            return None
        node = self._index.node(edge)
        input_range = self._ranges.get(qualified_name(edge.graph, node.inputs[0]))
        moments = input_range.moments if input_range else None
        channels = reshape_by_channels(node, weight)
        if moments is None or channels is None:
            return None
        group = int(node.attribute("group", 1))
        if channels.shape[1] * group != moments.sums.size:
            return None
        mean, variance = moments.mean_and_variance()
        return least_shift_amax(channels, mean, variance, group, quantizer.element)


def _require_finite(weight: Array, model: str, edge: Edge) -> None:
    if not np.isfinite(weight).all():
        label = qualified_name(edge.graph, edge.node)
        raise ModelError(
            f"{model}: weight {edge.tensor!r} holds NaN or Inf. Export the model again, or pass "
            f"--leave-float {label!r}."
        )
