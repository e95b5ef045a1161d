"""The multiply-accumulates of weighted layers, from the shapes of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onnx import helper

from qdq.arrays import Feed
from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operands import einsum_labels, operands
from qdq.graph.operators import RECURRENT
from qdq.graph.shape_inference import known_sizes
from qdq.graph.unique_names import UniqueNames
from qdq.runtime.session import run_sample
from qdq.sensitivity.graph_segments import extract_segment, split_graph
from qdq.sensitivity.shared_weights import SharedWeights

#: Shapes by tensor.
Shapes = Mapping[str, tuple[int, ...]]

_MATRIX_AXES = 2
_SPATIAL_AXIS = 2


def count_work(index: GraphIndex, shapes: Shapes) -> dict[str, int]:
    """Return the multiply-accumulates of each weighted node of a model, by its label.

    `shapes` are those of a sample's tensors in the main graph. In bodies, one iteration counts,
    with the shapes that the file states; layers of unknown size count nothing.
    """
    work: dict[str, int] = {}
    for path, scope in index.scopes.items():
        known_shapes = shapes if not path else {}
        for node in scope.nodes:
            if operands(scope, node):
                label = qualified_name(path, node.label)
                work[label] = _count_node(scope, node, known_shapes)
    return work


def measure_shapes(
    index: GraphIndex, outputs: Iterable[str], feed: Feed, libraries: Sequence[Path] = ()
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what the weighted nodes of the main graph read and compute.

    The names are those of the tensors. They follow from the shapes of a sample; where they depend
    on its values too, the sample is run. Only nodes that `outputs` need count. Raises ModelError or
    DataError where ONNX Runtime fails.
    """
    sized = GraphIndex(index.source, {name: values.shape for name, values in feed.items()})
    shapes: dict[str, tuple[int, ...]] = {}
    unknown: list[str] = []
    for tensor in _list_operands(index, outputs):
        sizes = known_sizes(sized.shape(tensor))
        if sizes is None:
            unknown.append(tensor)
        else:
            shapes[tensor] = tuple(sizes)
    if unknown:
        shapes.update(_run_shapes(index, outputs, unknown, feed, libraries))
    return shapes


def _list_operands(index: GraphIndex, outputs: Iterable[str]) -> list[str]:
    tensors: dict[str, None] = {}
    for segment in split_graph(index, outputs, (), 1):
        for node in segment.nodes:
            if operands(index, node):
                tensors |= dict.fromkeys((*node.inputs[:2], node.outputs[0]))
                tensors.pop("", None)
    return list(tensors)


def _run_shapes(
    index: GraphIndex,
    outputs: Iterable[str],
    tensors: Iterable[str],
    feed: Feed,
    libraries: Sequence[Path],
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of some tensors of a sample."""
    names = UniqueNames(index.source.model.graph, include_value_info=True)
    (segment,) = split_graph(index, outputs, (), 1)
    nodes = [node.proto for node in segment.nodes]
    shape_names: dict[str, str] = {}
    for tensor in tensors:
        shape_names[tensor] = names.fresh(f"{tensor}_shape")
        nodes.append(helper.make_node("Shape", [tensor], [shape_names[tensor]]))
    weights = SharedWeights(index, libraries)
    computed = list(shape_names.values())
    model = extract_segment(index, segment, nodes, computed, weights.declared)
    inputs = {name: feed[name] for name in segment.inputs}
    shapes = dict(run_sample(weights.open_session(model, {}), index, computed, inputs))
    return {tensor: tuple(map(int, shapes[name])) for tensor, name in shape_names.items()}


def _count_node(index: GraphIndex, node: Node, shapes: Shapes) -> int:
    data, weight = (_find_shape(index, tensor, shapes) for tensor in node.inputs[:2])
    result = _find_shape(index, node.outputs[0], shapes)
    if not data or not weight:
        return 0
    if node.op in RECURRENT:
        # [steps, batch] times W [directions, gates * hidden, inputs] and R [.., .., hidden]
        states = _find_shape(index, node.inputs[2], shapes)
        return math.prod(data[:-1]) * (math.prod(weight) + math.prod(states))
    if node.op == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if not result:
        return 0
    if node.op == "Conv":
        return math.prod(result) * math.prod(weight[1:])
    return math.prod(result) * _count_summed(node, data)


def _count_summed(node: Node, data: tuple[int, ...]) -> int:
    """Return the number of products that are summed into a value of a matrix product."""
    if node.op == "Gemm" and node.attribute("transA", 0):
        return data[0]
    labels = einsum_labels(node) if node.op == "Einsum" else None
    if labels is None:
        return data[-1]
    first, _, result = labels
    sizes = [size for label, size in zip(first, data, strict=False) if label not in result]
    return math.prod(sizes)


def _find_shape(index: GraphIndex, tensor: str, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of a tensor, () where it is not known."""
    if tensor in shapes:
        return shapes[tensor]
    dims = index.shape(tensor)
    sizes = known_sizes(dims) if dims is not None else None
    return tuple(sizes or ())
