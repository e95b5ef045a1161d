"""The integers of a plan's weights, rounded by the second moments of the layers' inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from onnx import ModelProto, TensorProto

from qdq.arrays import Array, Feed, Floats
from qdq.graph.bodies import read_tensor_values
from qdq.graph.index import GraphIndex
from qdq.planning.decisions import Placement, Plan, group_by_pair
from qdq.quantized.integer_values import spread_scale
from qdq.quantizer import Quantizer, integer_levels
from qdq.recovery.product_rows import ProductLayout, find_layout
from qdq.recovery.second_moments import Layer, sum_second_moments
from qdq.recovery.weight_rounding import InputMoments, round_by_moments
from qdq.rewriting.inserter import name_scales


class RoundedWeight(msgspec.Struct, frozen=True):
    """The integers of a weight."""

    tensor: str
    #: The name of its pair's scale.
    scale: str
    integers: Array
    #: The squared error of the layer's output on the samples, over that of the nearest integers.
    error_share: float


class _PlannedWeight(msgspec.Struct, frozen=True):
    """A weight to round, with the layers that multiply with it."""

    tensor: str
    quantizer: Quantizer
    scale: TensorProto
    layers: tuple[Layer, ...]

    @property
    def layout(self) -> ProductLayout:
        """The layout of all layers."""
        return self.layers[0][1]


def round_weights(
    index: GraphIndex,
    plan: Plan,
    rewritten: ModelProto,
    feeds: Sequence[Feed],
    libraries: Sequence[Path] = (),
) -> Iterator[RoundedWeight]:
    """Yield the weights of a plan in integers that change the layers' outputs least on samples.

    `rewritten` is the model with the plan's pairs, whose scales stay. Weights in bodies, in FP8 and
    of other layers than Gemm, MatMul and convolutions in two dimensions are left out. Raises
    DataError where ONNX Runtime fails on a sample.
    """
    weights = list(_find_weights(index, plan, rewritten))
    layers = [layer for weight in weights for layer in weight.layers]
    for sums in sum_second_moments(index, layers, feeds, libraries):
        moments: dict[tuple[Layer, ...], InputMoments] = {}
        for weight in weights:
            if weight.layers[0] not in sums:
                continue
            if weight.layers not in moments:
                moments[weight.layers] = _join_moments(weight.layers, sums)
            yield _round_weight(index, weight, moments[weight.layers])
    index.forget_constants()


def _join_moments(layers: tuple[Layer, ...], sums: Mapping[Layer, Floats]) -> InputMoments:
    """Return the moments of the inputs that a weight is multiplied with."""
    joined = np.sum([sums[layer] for layer in layers if layer in sums], axis=0)
    return InputMoments(joined)


def _find_weights(index: GraphIndex, plan: Plan, rewritten: ModelProto) -> Iterator[_PlannedWeight]:
    stored = {tensor.name: tensor for tensor in rewritten.graph.initializer}
    names = name_scales(index, plan)
    for (tensor, quantizer), placements in group_by_pair(plan).items():
        is_integer = integer_levels(quantizer.element.code) is not None
        if quantizer.calibrated or not is_integer or placements[0].edge.graph:
            continue
        layers = tuple(_find_layers(index, placements))
        if len(layers) == len(placements) and len({layout for _, layout in layers}) == 1:
            yield _PlannedWeight(tensor, quantizer, stored[names[tensor, quantizer]], layers)


def _find_layers(index: GraphIndex, placements: Iterable[Placement]) -> Iterator[Layer]:
    """Yield the layers that multiply a computed tensor with a weight in a known layout."""
    for placement in placements:
        data = index.node(placement.edge).inputs[0]
        layout = find_layout(index, placement.edge)
        if layout is not None and not index.is_constant(data):
            yield data, layout


def _round_weight(
    index: GraphIndex, weight: _PlannedWeight, moments: InputMoments
) -> RoundedWeight:
    layout, quantizer = weight.layout, weight.quantizer
    values = index.constant(weight.tensor).astype(np.float32)
    scale = read_tensor_values(weight.scale, index.source.name, index.source.folder)
    steps = spread_scale(scale, values.shape, quantizer.axis or 0, quantizer.block_size)
    steps = np.broadcast_to(steps.astype(np.float32), values.shape)
    levels = integer_levels(quantizer.element.code) or (0, 0)
    integers, share = round_by_moments(
        layout.to_rows(values), layout.to_rows(steps), moments, levels
    )
    return RoundedWeight(weight.tensor, weight.scale.name, layout.from_rows(integers), share)
