"""A quantized model with its float model: the quantized edges and their scales."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property

import msgspec
import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from qdq.arrays import Array
from qdq.errors import ModelError
from qdq.graph.aliases import is_alias_or_float_cast
from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.equalized_weights import find_equalization_entry, undo_equalization
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.loader import load
from qdq.graph.metadata import FLOAT_KEY, METADATA_PREFIX
from qdq.graph.opset import FLOAT16_OPSET
from qdq.graph.pairs import PAIR_OPERATORS, QdqPair
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.row_products import find_row_products
from qdq.graph.source import ModelLike, Source
from qdq.quantized.converter import convert_to_qdq
from qdq.quantized.stripper import find_renamed_outputs, strip_model
from qdq.quantizer import ELEMENT_TYPES

#: The size of float16 and bfloat16.
_SHORT_FLOAT_BYTES = 2


class QuantizedEdge(msgspec.Struct, frozen=True):
    """An edge of the float graph that has a pair."""

    edge: Edge
    pair: QdqPair
    #: Values of the scale and zero point; None where they are not constants.
    scales: Array | None
    zero_points: Array | None
    #: Type of the zero point, ONNX's name in lower case; "" where it is not a constant.
    dtype: str = ""
    #: Type of the stored values where the pair is a DQ alone, else "".
    stored: str = ""


class QuantizedModel:
    """A quantized model, its float graph, and the quantized edges of that graph."""

    def __init__(
        self,
        model: ModelLike,
        float_index: GraphIndex | None = None,
        graph: QdqGraph | None = None,
    ) -> None:
        """`float_index` is that of the float model, where the pairs are known to be plain ones.

        `graph` is the main graph of the model where it was read before.
        """
        #: The model before its conversion to plain pairs, which `source` has.
        self.original = load(model)
        source = self.original
        #: The main graph of that model, with its pairs.
        self.original_graph = graph or QdqGraph(source.model.graph, source.location)
        #: The index of the float model.
        self.index: GraphIndex
        #: The main graph of `source`.
        self.graph = self.original_graph
        if float_index is None:
            self.source, self.converted = convert_to_qdq(source, self.original_graph)
            if self.source is not source:
                self.graph = QdqGraph(self.source.model.graph, self.source.location)
            self.index = self._index_float_model()
        else:
            self.source, self.converted = source, ()
            self.index = float_index
        #: The float model, with equalized weights as they are and the record of them.
        self.stripped = self.index.source.model
        edges = tuple(_find_quantized_edges(self.graph, self.index, {}))
        self.edges = tuple(edge for edge, is_captured in edges if not is_captured)
        #: The edges in bodies that read the result of a pair outside of the body.
        self.captured_edges = tuple(edge for edge, is_captured in edges if is_captured)

    @cached_property
    def restored_index(self) -> GraphIndex:
        """The index of the float model with the weights that it had before equalization."""
        if not find_equalization_entry(self.stripped):
            return self.index
        restored = ModelProto()
        restored.CopyFrom(self.stripped)
        undo_equalization(restored, self.source.name)
        return GraphIndex(Source(self.source.path, restored, self.source.digest))

    @property
    def least_opset(self) -> int:
        """The opset that its pairs need, to which its float model was raised."""
        opset = 0
        for quantized_edge in self.edges:
            element = ELEMENT_TYPES.get(quantized_edge.dtype)
            if element is not None:
                opset = max(opset, element.opset)
            scales = quantized_edge.scales
            if scales is not None and scales.dtype.itemsize == _SHORT_FLOAT_BYTES:
                opset = max(opset, FLOAT16_OPSET)
        return opset

    @property
    def has_bfloat16_layers(self) -> bool:
        """Whether it has a pair on a bfloat16 tensor, or before Casts to one."""
        scopes = self.index.scopes
        if all(TensorProto.BFLOAT16 not in scope.elem_types for scope in scopes.values()):
            return False
        return any(_reaches_bfloat16(scopes[pair.edge.graph], pair.edge) for pair in self.edges)

    def labelled(self) -> ModelProto:
        """Return a copy of the original model whose nodes are named by their labels.

        A node that the float graph has too is named by its label there, in bodies too.
        """
        copy = ModelProto()
        copy.CopyFrom(self.original.model)
        _name_by_labels(self.original_graph, copy.graph, self.index)
        return copy

    def _index_float_model(self) -> GraphIndex:
        source = self.source
        stripped = source.model
        if not _is_float(stripped, self.graph):
            stripped = strip_model(stripped, source.location, self.graph)
        return GraphIndex(Source(source.path, stripped, source.digest))


def _is_float(model: ModelProto, graph: QdqGraph) -> bool:
    """Whether stripping would change nothing: there are no pairs, and qdq wrote no metadata."""
    if any(entry.key.startswith(METADATA_PREFIX) for entry in model.metadata_props):
        return False
    return not any(part.half_positions for part in graph.graphs)


def _reaches_bfloat16(scope: GraphIndex, edge: Edge) -> bool:
    """Whether the tensor of an edge is bfloat16, or becomes so by the Casts after it."""
    pending = [edge]
    while pending:
        edge = pending.pop()
        if scope.elem_type(edge.tensor) == TensorProto.BFLOAT16:
            return True
        node = scope.by_label[edge.node]
        if is_alias_or_float_cast(scope, node):
            pending.extend(scope.edges_from(node.outputs[0]))
    return False


def _name_by_labels(graph: QdqGraph, copy: GraphProto, index: GraphIndex) -> None:
    """Name the nodes of a copy of a graph by their labels."""
    labels = label_by_float_graph(graph, index)
    for node, label in zip(copy.node, labels, strict=True):
        node.name = label
    for position, bodies in graph.bodies.items():
        copies = node_bodies(copy.node[position])
        for (name, body), (_, body_copy) in zip(bodies, copies, strict=True):
            scope = index.scopes.get(qualified_name(index.path, f"{labels[position]}.{name}"))
            if scope is not None:
                _name_by_labels(body, body_copy, scope)


def _find_quantized_edges(
    graph: QdqGraph, index: GraphIndex, outer_pairs: dict[str, QdqPair]
) -> Iterator[tuple[QuantizedEdge, bool]]:
    """Yield the quantized edges of a graph and of its bodies, and whether the pair is outside.

    `outer_pairs` holds the pairs of the graphs around it by result.
    """
    own_pairs = {pair.output: pair for pair in graph.pairs}
    pairs = outer_pairs | own_pairs
    labels = label_by_float_graph(graph, index)
    for position, label in enumerate(labels):
        if graph.operators[position] in PAIR_OPERATORS:
            continue
        float_node = index.by_label.get(label)
        if float_node is None:
            continue
        names = graph.inputs[position][: len(float_node.inputs)]
        for slot, name in enumerate(names):
            pair = pairs.get(name)
            if pair is not None:
                edge = index.edge(float_node, slot)
                yield _make_quantized_edge(edge, pair, graph), pair.output not in own_pairs
        for name, body in graph.bodies.get(position, ()):
            scope = index.scopes.get(qualified_name(index.path, f"{label}.{name}"))
            if scope is not None:  # in a damaged model, a pair in it may have bodies too
                yield from _find_quantized_edges(body, scope, pairs)


def _make_quantized_edge(edge: Edge, pair: QdqPair, graph: QdqGraph) -> QuantizedEdge:
    stored = graph.stored
    return QuantizedEdge(
        edge,
        pair,
        scales=graph.read_parameter(pair.scale),
        zero_points=graph.read_parameter(pair.zero_point),
        dtype=_type_name(stored.get(pair.zero_point)),
        stored=_type_name(stored.get(pair.tensor)) if pair.q is None else "",
    )


def _type_name(tensor: TensorProto | None) -> str:
    """Return the type of a stored tensor, ONNX's name in lower case; "" for none."""
    if tensor is None:
        return ""
    return _name_element_type(tensor.data_type)


@cache
def _name_element_type(code: int) -> str:
    name: str = TensorProto.DataType.Name(code)
    return name.lower()


def label_by_float_graph(graph: QdqGraph, index: GraphIndex) -> list[str]:
    """Return a unique label for each node of a quantized graph.

    It is the node's label in the float graph, or in its graph if the node was stripped.
    """
    labels_by_output = _map_labels(graph, index)
    labels: list[str] = []
    for position, outputs in enumerate(graph.outputs):
        label = _find_label(outputs, labels_by_output)
        if not label:
            label = _make_unique(graph.labels[position], position, index)
        labels.append(label)
    return labels


def _find_label(outputs: tuple[str, ...], labels_by_output: dict[str, str]) -> str:
    for output in outputs:
        if output in labels_by_output:
            return labels_by_output[output]
    return ""


def _make_unique(label: str, position: int, index: GraphIndex) -> str:
    """Return a label that no node of the float graph has."""
    while label in index.by_label:
        label += f"#{position}"
    return label


def _map_labels(graph: QdqGraph, index: GraphIndex) -> dict[str, str]:
    """Return the label in the float graph of the node that computes each tensor."""
    labels: dict[str, str] = {}
    for node in index.nodes:
        for output in filter(None, node.outputs):
            labels[output] = node.label
    renamed = find_renamed_outputs(graph)
    renamed.update(find_row_products(graph))
    moved: dict[str, str] = {}
    for tensor, output in renamed.items():
        if output in labels:
            moved[tensor] = labels.pop(output)
    return labels | moved


def require_same_graph(float_index: GraphIndex, quantized: QuantizedModel) -> None:
    """Raise ModelError unless the quantized model, stripped, has the nodes of the float model.

    Casts, and copies of Constants, do not count in a model that was cast.
    """
    is_cast = any(entry.key == FLOAT_KEY for entry in quantized.stripped.metadata_props)
    excluded = ("Cast", "Constant") if is_cast else ()
    float_operators = _list_operators(float_index, excluded)
    operators = _list_operators(quantized.index, excluded)
    if float_operators != operators:
        float_name = float_index.source.name
        counts = f"{len(operators)} nodes against {len(float_operators)}"
        raise ModelError(
            f"{quantized.source.name}: without its pairs, the graph differs from {float_name}"
            f" ({counts}). Pass the float model it was made from."
        )


def _list_operators(index: GraphIndex, excluded: tuple[str, ...]) -> list[str]:
    """Return the operators of a graph and its bodies in order, without some.

    Those that compute constants are left out too: a weight stored as integers needs none.
    """
    operators: list[str] = []
    for scope in index.scopes.values():
        for node in scope.nodes:
            if not scope.constants.issuperset(filter(None, node.outputs)):
                operators.append(node.op)
    return [operator for operator in operators if operator not in excluded]


def largest_scale(values: Array | None) -> float:
    """Return the largest of some scales, NaN where they are unknown."""
    if values is None or not values.size:
        return float("nan")
    return float(np.max(values))
