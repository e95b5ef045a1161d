"""A quantized model with its float model: the quantized edges and their scales."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import msgspec
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qdq.arrays import Array
from qdq.errors import ModelError
from qdq.graph.aliases import is_alias_or_float_cast
from qdq.graph.bodies import all_nodes, node_bodies, node_labels, qualified_name, read_tensor_values
from qdq.graph.equalized_weights import find_equalization_entry, undo_equalization
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.loader import load
from qdq.graph.metadata import FLOAT_KEY, METADATA_PREFIX
from qdq.graph.opset import FLOAT16_OPSET
from qdq.graph.pairs import PAIR_OPERATORS, QdqPair, find_pairs, stored_tensors
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

    def __init__(self, model: ModelLike, float_index: GraphIndex | None = None) -> None:
        """`float_index` is that of the float model, where the pairs are known to be plain ones."""
        #: The model before its conversion to plain pairs, which `source` has.
        self.original = load(model)
        #: The index of the float model.
        self.index: GraphIndex
        if float_index is None:
            self.source, self.converted = convert_to_qdq(self.original)
            source = self.source
            stripped = source.model
            if not _is_float(stripped):
                stripped = strip_model(stripped, source.name, source.folder)
            self.index = GraphIndex(Source(source.path, stripped, source.digest))
        else:
            self.source, self.converted = self.original, ()
            self.index = float_index
        #: The float model, with equalized weights as they are and the record of them.
        self.stripped = self.index.source.model
        edges = tuple(_find_quantized_edges(self.source.model.graph, self.index, {}, {}))
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
        return any(_reaches_bfloat16(scopes[pair.edge.graph], pair.edge) for pair in self.edges)

    def labelled(self) -> ModelProto:
        """Return a copy of the original model whose nodes are named by their labels.

        A node that the float graph has too is named by its label there, in bodies too.
        """
        copy = ModelProto()
        copy.CopyFrom(self.original.model)
        _name_by_labels(copy.graph, self.index)
        return copy


def _is_float(model: ModelProto) -> bool:
    """Whether stripping would change nothing: there are no pairs, and qdq wrote no metadata."""
    if any(entry.key.startswith(METADATA_PREFIX) for entry in model.metadata_props):
        return False
    return not any(node.op_type in PAIR_OPERATORS for _, node in all_nodes(model.graph))


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


def _name_by_labels(graph: GraphProto, index: GraphIndex) -> None:
    labels = label_by_float_graph(graph, index)
    for node, label in zip(graph.node, labels, strict=True):
        node.name = label
        for name, body in node_bodies(node):
            path = qualified_name(index.path, f"{label}.{name}")
            scope = index.scopes.get(path)
            if scope is not None:
                _name_by_labels(body, scope)


def _find_quantized_edges(
    graph: GraphProto,
    index: GraphIndex,
    outer_tensors: dict[str, TensorProto],
    outer_pairs: dict[str, QdqPair],
) -> Iterator[tuple[QuantizedEdge, bool]]:
    """Yield the quantized edges of a graph and of its bodies, and whether the pair is outside.

    `outer_tensors` and `outer_pairs` hold what the graphs around it store, and their pairs by
    result.
    """
    stored = outer_tensors | stored_tensors(graph)
    own_pairs = {pair.output: pair for pair in find_pairs(graph, outer_tensors)}
    pairs = outer_pairs | own_pairs
    parameters = _read_parameters(pairs, stored, index)
    labels = label_by_float_graph(graph, index, own_pairs.values())
    for node, label in zip(graph.node, labels, strict=True):
        if label not in index.by_label or node.op_type in PAIR_OPERATORS:
            continue
        for edge, pair in _edges_with_pairs(node, label, index, pairs):
            is_captured = pair.output not in own_pairs
            yield _make_quantized_edge(edge, pair, parameters, stored), is_captured
        for name, body in node_bodies(node):
            path = qualified_name(index.path, f"{label}.{name}")
            scope = index.scopes.get(path)
            if scope is not None:  # in a damaged model, a pair in it may have bodies too
                yield from _find_quantized_edges(body, scope, stored, pairs)


def _read_parameters(
    pairs: dict[str, QdqPair], stored: dict[str, TensorProto], index: GraphIndex
) -> dict[str, Array]:
    """Return the values of the stored scales and zero points of pairs by name."""
    names: set[str] = set()
    for pair in pairs.values():
        names.update((pair.scale, pair.zero_point))
    values: dict[str, Array] = {}
    source = index.source
    for name in names & stored.keys():
        tensor = stored[name]
        if tensor.data_type != TensorProto.STRING:
            values[name] = read_tensor_values(tensor, source.name, source.folder)
    return values


def _edges_with_pairs(
    node: NodeProto, label: str, index: GraphIndex, pairs: dict[str, QdqPair]
) -> Iterator[tuple[Edge, QdqPair]]:
    """Yield the edges of the float graph into a node that have pairs, in slot order."""
    float_node = index.by_label[label]
    inputs = node.input[: len(float_node.inputs)]
    for slot, name in enumerate(inputs):
        pair = pairs.get(name)
        if pair is not None:
            yield index.edge(float_node, slot), pair


def _make_quantized_edge(
    edge: Edge, pair: QdqPair, parameters: dict[str, Array], stored: dict[str, TensorProto]
) -> QuantizedEdge:
    return QuantizedEdge(
        edge,
        pair,
        scales=parameters.get(pair.scale),
        zero_points=parameters.get(pair.zero_point),
        dtype=_type_name(stored.get(pair.zero_point)),
        stored=_type_name(stored.get(pair.tensor)) if pair.q is None else "",
    )


def _type_name(tensor: TensorProto | None) -> str:
    """Return the type of a stored tensor, ONNX's name in lower case; "" for none."""
    if tensor is None:
        return ""
    name: str = TensorProto.DataType.Name(tensor.data_type)
    return name.lower()


def label_by_float_graph(
    graph: GraphProto, index: GraphIndex, pairs: Iterable[QdqPair] | None = None
) -> list[str]:
    """Return a unique label for each node of a quantized graph.

    It is the node's label in the float graph, or in its graph if the node was stripped. `pairs` are
    those of the graph, where they are known.
    """
    if pairs is None:
        pairs = find_pairs(graph, index.outer.constants if index.outer else ())
    labels_by_output = _map_labels(graph, index, pairs)
    labels = node_labels(graph)
    for position, node in enumerate(graph.node):
        label = _find_label(node, labels_by_output)
        if not label:
            label = _make_unique(labels[position], position, index)
        labels[position] = label
    return labels


def _find_label(node: NodeProto, labels_by_output: dict[str, str]) -> str:
    for output in node.output:
        if output in labels_by_output:
            return labels_by_output[output]
    return ""


def _make_unique(label: str, position: int, index: GraphIndex) -> str:
    """Return a label that no node of the float graph has."""
    while label in index.by_label:
        label += f"#{position}"
    return label


def _map_labels(graph: GraphProto, index: GraphIndex, pairs: Iterable[QdqPair]) -> dict[str, str]:
    """Return the label in the float graph of the node that computes each tensor."""
    labels: dict[str, str] = {}
    for node in index.nodes:
        for output in filter(None, node.outputs):
            labels[output] = node.label
    renamed = find_renamed_outputs(graph, pairs)
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
