"""A quantized model seen from its float one: which edge has which quantizer, and with what scales."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx

from qdq.errors import ModelError
from qdq.index import Array, Edge, GraphIndex, node_labels, stored_values
from qdq.loading import ModelLike, Source, load
from qdq.pairs import FoundPair, find_pairs
from qdq.quantizer import ELEMENT_TYPES
from qdq.stripping import strip_model


class QuantizedEdge(msgspec.Struct, frozen=True):
    """An edge of the float graph that a pair stands on."""

    edge: Edge
    pair: FoundPair
    #: Values of the scale and zero point; None where they are no constants.
    scales: Array | None
    zero_points: Array | None
    #: Type that the zero point says, in lower case as ONNX spells it; "" where it is no constant.
    dtype: str = ""


class QuantizedModel:
    """A quantized model, its float graph, and the quantized edges between them."""

    def __init__(self, model: ModelLike) -> None:
        self.source = load(model)
        proto = self.source.model
        self.stripped = strip_model(proto, self.source.name, self.source.folder)
        self.index = GraphIndex(Source(self.source.path, self.stripped, self.source.digest))
        self.edges = _quantized_edges(proto, self.index)

    @property
    def least_opset(self) -> int:
        """The opset that its pairs need, to which its float model was raised."""
        return max((ELEMENT_TYPES[q.dtype].opset for q in self.edges if q.dtype in ELEMENT_TYPES), default=0)

    def labelled(self) -> onnx.ModelProto:
        """Return a copy in which every node that the float graph has too is named by its label there."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.source.model)
        for node, label in zip(copy.graph.node, _float_labels(copy.graph, self.index), strict=True):
            node.name = label
        return copy


def _quantized_edges(model: onnx.ModelProto, index: GraphIndex) -> tuple[QuantizedEdge, ...]:
    graph = model.graph
    pairs = {p.output: p for p in find_pairs(graph)}
    values = _constants(graph, {n for p in pairs.values() for n in (p.scale, p.zero_point) if n}, index)
    types = _types(graph)
    labels = _float_labels(graph, index)
    found = []
    for node, label in zip(graph.node, labels, strict=True):
        if label not in index.by_label or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        float_node = index.by_label[label]
        for slot, name in enumerate(node.input):
            if (pair := pairs.get(name)) and slot < len(float_node.inputs):
                edge = Edge("", label, slot, float_node.inputs[slot])
                found.append(QuantizedEdge(edge, pair, values.get(pair.scale), values.get(pair.zero_point), types.get(pair.zero_point, "")))
    return tuple(found)


def _float_labels(graph: onnx.GraphProto, index: GraphIndex) -> list[str]:
    """Return a unique label for each node: its label in the float graph, or for one that was stripped its own name."""
    by_output = {output: node.label for node in index.nodes for output in node.outputs if output}
    labels = []
    for i, (node, own) in enumerate(zip(graph.node, node_labels(graph), strict=True)):
        label = next((by_output[o] for o in node.output if o in by_output), "")
        if not label:
            label = own
            while label in index.by_label:
                label += f"#{i}"
        labels.append(label)
    return labels


def _constants(graph: onnx.GraphProto, names: set[str], index: GraphIndex) -> dict[str, Array]:
    found = {t.name: stored_values(t, index.source.name, index.source.folder) for t in graph.initializer if t.name in names}
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in names and node.attribute[0].HasField("t"):
            found[node.output[0]] = stored_values(node.attribute[0].t, index.source.name, None)
    return found


def _types(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the element type of every stored tensor; NumPy's would not do, for it has no 8-bit floats of its own."""
    stored = [(t.name, t.data_type) for t in graph.initializer]
    stored += [(n.output[0], n.attribute[0].t.data_type) for n in graph.node if n.op_type == "Constant" and n.attribute and n.attribute[0].HasField("t")]
    return {name: onnx.TensorProto.DataType.Name(code).lower() for name, code in stored}


def require_same_graph(float_index: GraphIndex, quantized: QuantizedModel) -> None:
    """Raise ModelError unless the quantized model, stripped, has the nodes of the float model."""
    ours, theirs = [n.op for n in float_index.nodes], [n.op for n in quantized.index.nodes]
    if ours != theirs:
        raise ModelError(
            f"{quantized.source.name}: without its pairs it is another graph than {float_index.source.name} "
            f"({len(theirs)} nodes against {len(ours)}); pass the float model it was made from"
        )


def largest(values: Array | None) -> float:
    """Return the largest of some scales, NaN where they are unknown."""
    return float(np.max(values)) if values is not None and values.size else float("nan")
