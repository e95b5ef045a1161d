"""A copy of a model with all shapes that can be known for one size of its inputs.

ONNX's shape inference does not compute the pads, sizes and targets that exporters write as
arithmetic on constants and shapes. They are computed here, and inference runs again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from qdq.arrays import Array
from qdq.engines.compilable_model import make_compilable
from qdq.errors import ModelError
from qdq.graph.bodies import node_labels
from qdq.graph.index import GraphIndex, Node
from qdq.graph.source import Source

#: The first input slot that determines the shape of an operator's output.
_FIRST_SHAPE_SLOT = {
    "Pad": 1,
    "Reshape": 1,
    "Slice": 1,
    "Expand": 1,
    "Tile": 1,
    "Resize": 1,
    "Upsample": 1,
    "Unsqueeze": 1,
    "Squeeze": 1,
    "ConstantOfShape": 0,
    "Range": 0,
    "Split": 1,
    "ReduceMean": 1,
    "ReduceSum": 1,
}

#: Each round uses the shapes that the round before made computable.
_ROUNDS = 6


def infer_static_shapes(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> GraphIndex:
    """Return an index of a copy with inputs of the given shapes.

    A dynamic dimension without a given shape is 1. Node labels are those of the model.
    """
    copy = make_compilable(source.model, shapes)
    for node, label in zip(copy.graph.node, node_labels(source.model.graph), strict=True):
        node.name = label
    if _is_dynamic(source.model):  # the shapes written in the file are not the requested ones
        del copy.graph.value_info[:]
    static_source = msgspec.structs.replace(source, model=copy)
    for _ in range(_ROUNDS):
        index = GraphIndex(static_source)
        if not _fold_constants(index, copy.graph):
            return index
    return GraphIndex(static_source)


def _is_dynamic(model: onnx.ModelProto) -> bool:
    for graph_input in model.graph.input:
        for dim in graph_input.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value <= 0:
                return True
    return False


def _fold_constants(index: GraphIndex, graph: onnx.GraphProto) -> bool:
    """Replace the nodes that can be computed now by initializers; return whether there were any."""
    constants: dict[str, Array] = {}
    for node in index.nodes:
        constants.update(_compute_constants(index, node))
    for name, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(values, name))
    kept = []
    for proto in graph.node:
        first_output = proto.output[0] if proto.output else None
        if first_output not in constants:
            kept.append(proto)
    del graph.node[:]
    graph.node.extend(kept)
    return bool(constants)


def _compute_constants(index: GraphIndex, node: Node) -> Iterator[tuple[str, Array]]:
    """Yield the values of a Shape's output, and of inputs that determine a node's output shape."""
    start = node.attribute("start")
    end = node.attribute("end")
    if node.op == "Shape" and start is None and end is None:
        dims = index.shape(node.inputs[0])
        if dims is not None and None not in dims:
            yield node.outputs[0], np.array(dims, np.int64)
    first_slot = _FIRST_SHAPE_SLOT.get(node.op, len(node.inputs))
    for tensor in node.inputs[first_slot:]:
        if not _is_computed_constant(index, tensor):
            continue
        try:
            yield tensor, index.constant(tensor)
        except ModelError:
            continue


def _is_computed_constant(index: GraphIndex, tensor: str) -> bool:
    """Whether a tensor is the only output of a node that computes from constants."""
    producer = index.producers.get(tensor)
    if producer is None or producer.op == "Constant":
        return False
    return index.is_constant(tensor) and len(producer.outputs) == 1
