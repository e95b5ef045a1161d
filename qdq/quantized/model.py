"""A quantized model seen from its float one: which edge has which quantizer, and with what scales."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.errors import ModelError
from qdq.graph.bodies import node_bodies, node_labels, qualified_name, read_tensor_values
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.loader import load
from qdq.graph.pairs import PAIR_OPERATORS, QdqPair, find_pairs, stored_tensors
from qdq.graph.source import ModelLike, Source
from qdq.quantized.converter import convert_to_qdq
from qdq.quantized.stripper import find_renamed_outputs, strip_model
from qdq.quantizer import ELEMENT_TYPES


class QuantizedEdge(msgspec.Struct, frozen=True):
    """An edge of the float graph that a pair stands on."""

    edge: Edge
    pair: QdqPair
    #: Values of the scale and zero point; None where they are no constants.
    scales: Array | None
    zero_points: Array | None
    #: Type that the zero point says, in lower case as ONNX spells it; "" where it is no constant.
    dtype: str = ""
    #: Type of the stored values where the pair is a DQ alone, else "".
    stored: str = ""


class QuantizedModel:
    """A quantized model, its float graph, and the quantized edges between them."""

    def __init__(self, model: ModelLike) -> None:
        #: The model as it was given, and in plain pairs: the same where it had no others.
        self.original = load(model)
        self.source, self.converted = convert_to_qdq(self.original)
        proto = self.source.model
        self.stripped = strip_model(proto, self.source.name, self.source.folder)
        self.index = GraphIndex(Source(self.source.path, self.stripped, self.source.digest))
        self.edges = tuple(_quantized_edges(proto.graph, self.index, {}))

    @property
    def least_opset(self) -> int:
        """The opset that its pairs need, to which its float model was raised."""
        return max(
            (ELEMENT_TYPES[q.dtype].opset for q in self.edges if q.dtype in ELEMENT_TYPES),
            default=0,
        )

    def labelled(self) -> onnx.ModelProto:
        """Return a copy of the given model in which every node that the float graph has too is named by its label there, in bodies too."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.original.model)
        _label(copy.graph, self.index)
        return copy


def _label(graph: onnx.GraphProto, index: GraphIndex) -> None:
    for node, label in zip(graph.node, _float_labels(graph, index), strict=True):
        node.name = label
        for name, body in node_bodies(node):
            if scope := index.scopes.get(qualified_name(index.path, f"{label}.{name}")):
                _label(body, scope)


def _quantized_edges(
    graph: onnx.GraphProto, index: GraphIndex, around: dict[str, onnx.TensorProto]
) -> Iterator[QuantizedEdge]:
    """Yield the quantized edges of a graph and of its bodies; `around` holds the tensors that the graphs around it store."""
    stored = around | stored_tensors(graph)
    pairs = {p.output: p for p in find_pairs(graph, around)}
    values = _values(
        {n for p in pairs.values() for n in (p.scale, p.zero_point) if n}, stored, index
    )
    for node, label in zip(graph.node, _float_labels(graph, index), strict=True):
        if label not in index.by_label or node.op_type in PAIR_OPERATORS:
            continue
        float_node = index.by_label[label]
        for slot, name in enumerate(node.input):
            if (pair := pairs.get(name)) and slot < len(float_node.inputs):
                kept = _type_name(stored.get(pair.tensor)) if pair.q is None else ""
                dtype = _type_name(stored.get(pair.zero_point))
                yield QuantizedEdge(
                    index.edge(float_node, slot),
                    pair,
                    values.get(pair.scale),
                    values.get(pair.zero_point),
                    dtype,
                    kept,
                )
        for name, body in node_bodies(node):
            yield from _quantized_edges(
                body, index.scopes[qualified_name(index.path, f"{label}.{name}")], stored
            )


def _type_name(tensor: onnx.TensorProto | None) -> str:
    """Return the type of a stored tensor in lower case as ONNX spells it, "" for none."""
    return onnx.TensorProto.DataType.Name(tensor.data_type).lower() if tensor is not None else ""


def _float_labels(graph: onnx.GraphProto, index: GraphIndex) -> list[str]:
    """Return a unique label for each node: its label in the float graph, or for one that was stripped its own name."""
    by_output = {output: node.label for node in index.nodes for output in node.outputs if output}
    renamed = find_renamed_outputs(
        graph, find_pairs(graph, index.outer.constants if index.outer else ())
    )
    by_output |= {
        tensor: by_output.pop(name) for tensor, name in renamed.items() if name in by_output
    }
    labels = []
    for i, (node, own) in enumerate(zip(graph.node, node_labels(graph), strict=True)):
        label = next((by_output[o] for o in node.output if o in by_output), "")
        if not label:
            label = own
            while label in index.by_label:
                label += f"#{i}"
        labels.append(label)
    return labels


def _values(
    names: set[str], stored: dict[str, onnx.TensorProto], index: GraphIndex
) -> dict[str, Array]:
    return {
        name: read_tensor_values(stored[name], index.source.name, index.source.folder)
        for name in names
        if name in stored and stored[name].data_type != onnx.TensorProto.STRING
    }


def require_same_graph(float_index: GraphIndex, quantized: QuantizedModel) -> None:
    """Raise ModelError unless the quantized model, stripped, has the nodes of the float model."""
    ours, theirs = (
        [n.op for scope in index.scopes.values() for n in scope.nodes]
        for index in (float_index, quantized.index)
    )
    if ours != theirs:
        raise ModelError(
            f"{quantized.source.name}: without its pairs it is another graph than {float_index.source.name} "
            f"({len(theirs)} nodes against {len(ours)}); pass the float model it was made from"
        )


def largest_scale(values: Array | None) -> float:
    """Return the largest of some scales, NaN where they are unknown."""
    return float(np.max(values)) if values is not None and values.size else float("nan")
