"""The facts of keep-fp32 rules: where 16 bits lose values that the result depends on.

Facts about values read those that are stored in the file, and the extremes that calibration
observed. Without calibration the latter are unknown, and their facts are false.
"""

from __future__ import annotations

import math

from qdq.graph.compiler_view import CompilerView
from qdq.graph.float_parameters import can_stay_float32, constant_amax
from qdq.graph.index import Edge, Node
from qdq.graph.patterns import attention_masks, decomposed_normalization_nodes
from qdq.graph.power_sums import power_sum_nodes
from qdq.graph.shape_inference import known_sizes
from qdq.graph.shape_values import counter_nodes, phase_nodes, shape_nodes
from qdq.rules.fact_registry import Scene, edge_fact, node_fact

#: The names of the facts that only keep-fp32 rules use.
FLOAT_FACTS = (
    "shape-arithmetic",
    "loop-counter",
    "phase",
    "decomposed-normalization",
    "power-sum",
    "long-sum",
    "long-softmax",
    "beyond-range",
    "below-range",
    "vanishing-constant",
    "overflowing-constant",
)

_SUMS_ALONG_AXES = (
    "ReduceSum",
    "ReduceMean",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
)
_SOFTMAXES = ("Softmax", "LogSoftmax")

#: Operators that a value beyond the range of FP16 may enter as the largest one of FP16: bounds,
#: and the fill of what an attention must not see.
_SATURATES = ("Clip", "Max", "Min", "Pad", "Where")
_SCALARS_OF_MASKS = ("Mul", "Add", "Sub")


@node_fact
def shape_arithmetic(scene: Scene, node: Node) -> bool:
    """A node that computes a shape, an index or a size in floats.

    Its result depends on shapes and constants alone, or enters Reshape, Resize, Slice and similar
    operators as a shape.
    """
    return node.label in shape_nodes(scene.index)


@node_fact
def loop_counter(scene: Scene, node: Node) -> bool:
    """A node of a Loop's body that computes a state of one value, such as a counter."""
    return node.label in counter_nodes(scene.index)


@node_fact
def phase(scene: Scene, node: Node) -> bool:
    """A Sin or Cos, or a node that computes its angle from positions."""
    return node.label in phase_nodes(scene.index)


@node_fact
def decomposed_normalization(scene: Scene, node: Node) -> bool:
    """A node of a normalization that is written with ReduceMean, Pow, Sqrt and Div.

    All of them but the scale and the shift after the division.
    """
    return node.label in decomposed_normalization_nodes(scene.index)


@node_fact
def power_sum(scene: Scene, node: Node) -> bool:
    """A node that brings the values of an Exp or Pow back: Sqrt, Log, Div or Reciprocal.

    Also the sums between both, as in a norm, or in a Softmax that is written out.
    """
    return node.label in power_sum_nodes(scene.index)


@node_fact
def long_sum(scene: Scene, node: Node, *, values_above: float) -> bool:
    """A ReduceSum, ReduceMean or similar over more than `values-above` values.

    Also one over an unknown number of values.
    """
    if node.op not in _SUMS_ALONG_AXES:
        return False
    count = _count_summed(scene.index, node)
    return count is None or count > values_above


def _count_summed(index: CompilerView, node: Node) -> int | None:
    """Return the number of values that a reduction sums into one; None where it is unknown."""
    shape = index.shape(node.inputs[0])
    if shape is None:
        return None
    axes = node.attribute("axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        if not index.is_constant(node.inputs[1]):
            return None
        axes = index.constant(node.inputs[1]).ravel().tolist()
    if not axes:
        axes = range(len(shape))
    sizes = known_sizes(tuple(shape[axis] for axis in axes))
    return None if sizes is None else math.prod(sizes)


@node_fact
def long_softmax(scene: Scene, node: Node, *, length_above: float) -> bool:
    """A Softmax or LogSoftmax over rows of more than `length-above` values."""
    if node.op not in _SOFTMAXES:
        return False
    shape = scene.index.shape(node.inputs[0])
    if not shape:
        return False
    length = shape[node.attribute("axis", -1)]
    return length is not None and length > length_above


@node_fact
def beyond_range(scene: Scene, node: Node, *, headroom: float) -> bool:
    """A node that reads or writes values which overflow the float type.

    Their largest value in calibration, times `headroom`, exceeds the type's largest.
    """
    limit = scene.float_type.largest / headroom
    for tensor in (*node.inputs, *node.outputs):
        amax = scene.largest_value(tensor)
        if amax is not None and amax > limit:
            return True
    return False


@node_fact
def below_range(scene: Scene, node: Node) -> bool:
    """A node that reads or writes a tensor whose values are all subnormal in the float type.

    Their largest value in calibration is above 0 and below the type's least normal value.
    """
    for tensor in (*node.inputs, *node.outputs):
        amax = scene.largest_value(tensor)
        if amax is not None and 0 < amax < scene.float_type.least_normal:
            return True
    return False


@edge_fact
def vanishing_constant(scene: Scene, edge: Edge) -> bool:
    """A stored tensor, not 0, whose values all become 0 in the float type, such as 1e-12."""
    amax = _constant_amax(scene, edge)
    return amax is not None and 0 < amax < scene.float_type.least / 2


@edge_fact
def overflowing_constant(scene: Scene, edge: Edge) -> bool:
    """A stored finite value that the float type does not hold.

    Except for the bounds of Clip, Max and Min and the fill of masks, which work as the largest
    value that it holds.
    """
    amax = _constant_amax(scene, edge)
    if amax is None or not scene.float_type.largest < amax < math.inf:
        return False
    node = scene.index.node(edge)
    if node.op in _SATURATES:
        return False
    return not _computes_mask(scene, node)


def _constant_amax(scene: Scene, edge: Edge) -> float | None:
    """Return the largest absolute value of a constant that becomes short, None for others."""
    index = scene.index
    if can_stay_float32(index, index.node(edge), edge.slot):
        return None
    return constant_amax(index, edge.tensor)


def _computes_mask(scene: Scene, node: Node) -> bool:
    """Whether a node scales a mask that is added to attention scores."""
    index = scene.index
    masks = attention_masks(index)
    while node.op in _SCALARS_OF_MASKS:
        if node.label in masks:
            return True
        readers = index.live_readers(node.outputs[0])
        if len(readers) < 1:
            return False
        node = readers[0][0]
    return False
