"""A copy of a model with every shape that can be known, for one size of its inputs.

ONNX's shape inference does not compute the pads, sizes and targets that exporters leave behind as
arithmetic on constants and shapes; here they are computed, and inference runs again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from qdq.engines.compilable_model import make_compilable
from qdq.errors import ModelError
from qdq.graph.bodies import node_labels
from qdq.graph.index import GraphIndex, Node
from qdq.graph.source import Source

#: Operators whose inputs from the given slot on say what shape comes out.
_SHAPED_BY = {"Pad": 1, "Reshape": 1, "Slice": 1, "Expand": 1, "Tile": 1, "Resize": 1, "Upsample": 1, "Unsqueeze": 1, "Squeeze": 1, "ConstantOfShape": 0,
              "Range": 0, "Split": 1, "ReduceMean": 1, "ReduceSum": 1}  # fmt: skip

#: Each round knows the shapes that the round before made computable.
_ROUNDS = 6


def with_static_shapes(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> GraphIndex:
    """Return an index of a copy with inputs of the given shapes, 1 where a dimension is dynamic and not given; labels are those of the model."""
    copy = make_compilable(source.model, shapes)
    for node, label in zip(copy.graph.node, node_labels(source.model.graph), strict=True):
        node.name = label
    if _is_dynamic(source.model):  # the shapes written in the file are not the ones asked for
        del copy.graph.value_info[:]
    fixed = msgspec.structs.replace(source, model=copy)
    for _ in range(_ROUNDS):
        index = GraphIndex(fixed)
        if not _fold(index, copy.graph):
            return index
    return GraphIndex(fixed)


def _is_dynamic(model: onnx.ModelProto) -> bool:
    return any(
        not d.HasField("dim_value") or d.dim_value <= 0
        for i in model.graph.input
        for d in i.type.tensor_type.shape.dim
    )


def _fold(index: GraphIndex, graph: onnx.GraphProto) -> bool:
    """Write what can be computed now into the graph, and tell whether there was anything."""
    made = {name: values for node in index.nodes for name, values in _computed(index, node)}
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in made.items())
    kept = [n for n in graph.node if not (n.output and n.output[0] in made)]
    del graph.node[:]
    graph.node.extend(kept)
    return bool(made)


def _computed(index: GraphIndex, node: Node) -> Iterator[tuple[str, np.ndarray]]:
    if node.op == "Shape" and node.attribute("start") is None and node.attribute("end") is None:
        dims = index.shape(node.inputs[0])
        if dims is not None and None not in dims:
            yield node.outputs[0], np.array(dims, np.int64)
    for tensor in node.inputs[_SHAPED_BY.get(node.op, len(node.inputs)) :]:
        producer = index.producers.get(tensor)
        if (
            producer is None
            or producer.op == "Constant"
            or not index.is_constant(tensor)
            or len(producer.outputs) != 1
        ):
            continue
        try:
            yield tensor, index.constant(tensor)
        except ModelError:
            continue
