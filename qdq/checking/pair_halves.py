"""The two halves of a pair: single Q and DQ nodes as the file has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import msgspec
import onnx

from qdq.arrays import Array
from qdq.graph.bodies import read_tensor_values
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.pairs import PAIR_OPERATORS, QdqPair
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import Source

#: Input slot of the zero point.
_ZERO_POINT = 2

#: Kinds of numpy types that hold no numbers.
_TEXT_KINDS = "OSU"


class PairHalf(msgspec.Struct, frozen=True):
    """A Q or DQ node."""

    node: onnx.NodeProto
    #: The node's label, after the path of its graph.
    label: str
    #: Names of the scale and the zero point, "" for no zero point.
    scale: str
    zero_point: str
    #: Values of both; None where they are computed or absent.
    scales: Array | None
    zeros: Array | None
    #: ONNX type of the quantized values, 0 where it is unknown.
    dtype: int
    #: The axis attribute, None where it is absent.
    axis: int | None
    #: Dimensions and ONNX type of the input; None and 0 where they are unknown.
    dims: tuple[int | None, ...] | None
    input_type: int
    #: Whether the scales are for blocks.
    has_blocks: bool = False

    @property
    def is_quantize(self) -> bool:
        """Whether the node is a QuantizeLinear."""
        return bool(self.node.op_type == QUANTIZE)

    @property
    def reads_stored_values(self) -> bool:
        """Whether the node is a DequantizeLinear of a stored tensor."""
        return self.node.op_type == DEQUANTIZE and self.input_type != 0


class HalfReader:
    """The reader of a model's Q and DQ nodes.

    `float_index` is the index of the float graph, None where the model has none.
    """

    def __init__(self, source: Source, float_index: GraphIndex | None) -> None:
        self.source = source
        self.float_index = float_index

    @cached_property
    def index(self) -> GraphIndex:
        """The index of the model with its pairs, for scales that are computed from constants."""
        return GraphIndex(self.source)

    def read(
        self,
        node: onnx.NodeProto,
        label: str,
        path: str,
        stored: Mapping[str, onnx.TensorProto],
        edges: tuple[Edge, ...],
    ) -> PairHalf:
        """Return a Q or DQ of the graph at a path.

        `stored` holds the tensors that the graph stores, `edges` the edges of the float graph that
        read the pair.
        """
        scale_name = node.input[1]
        zero_name = node.input[_ZERO_POINT] if len(node.input) > _ZERO_POINT else ""
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        scales = self._read_values(scale_name, path, stored)
        zeros = self._read_values(zero_name, path, stored) if zero_name else None
        return PairHalf(
            node=node,
            label=label,
            scale=scale_name,
            zero_point=zero_name,
            scales=scales,
            zeros=zeros,
            dtype=_quantized_type(node, zero_name, attributes, stored),
            axis=attributes.get("axis"),
            dims=self._find_dims(node.input[0], scales, stored, edges),
            input_type=self._find_input_type(node, stored, edges),
            has_blocks=bool(attributes.get("block_size")),
        )

    def _find_input_type(
        self,
        node: onnx.NodeProto,
        stored: Mapping[str, onnx.TensorProto],
        edges: tuple[Edge, ...],
    ) -> int:
        input_type = _stored_type(node.input[0], stored)
        if input_type or self.float_index is None or not edges or node.op_type != QUANTIZE:
            return input_type
        return self.float_index.scope(edges[0]).elem_type(edges[0].tensor)

    def _find_dims(
        self,
        name: str,
        scales: Array | None,
        stored: Mapping[str, onnx.TensorProto],
        edges: tuple[Edge, ...],
    ) -> tuple[int | None, ...] | None:
        """Return the dimensions of a stored tensor, or of a computed one with several scales."""
        if name in stored:
            return tuple(stored[name].dims)
        if self.float_index is None or not edges or scales is None or scales.size <= 1:
            return None
        return self.float_index.scope(edges[0]).shape(edges[0].tensor)

    def _read_values(
        self, name: str, path: str, stored: Mapping[str, onnx.TensorProto]
    ) -> Array | None:
        """Return the values of a constant; None for what is computed or holds no numbers."""
        if name in stored:
            values = read_tensor_values(stored[name], self.source.name, self.source.folder)
        else:
            scope = self.index.scopes.get(path)
            if scope is None or not scope.is_constant(name):
                return None
            values = scope.constant(name)
        return None if values.dtype.kind in _TEXT_KINDS else values


def _stored_type(name: str, stored: Mapping[str, onnx.TensorProto]) -> int:
    """Return the ONNX type of a stored tensor, 0 for others."""
    return stored[name].data_type if name in stored else 0


def _quantized_type(
    node: onnx.NodeProto,
    zero_name: str,
    attributes: Mapping[str, int],
    stored: Mapping[str, onnx.TensorProto],
) -> int:
    """Return the ONNX type of the quantized values, 0 where it is unknown."""
    if zero_name:
        return _stored_type(zero_name, stored)
    if node.op_type == QUANTIZE:
        return attributes.get("output_dtype", 0)
    return _stored_type(node.input[0], stored)


def paired_positions(pairs: Iterable[QdqPair]) -> set[int]:
    """Return the positions of the Q and DQ nodes of some pairs."""
    positions: set[int] = set()
    for pair in pairs:
        positions.add(pair.dq)
        if pair.q is not None:
            positions.add(pair.q)
    return positions


def find_lone_halves(graph: onnx.GraphProto, paired: set[int]) -> Iterator[tuple[int, ...]]:
    """Yield the positions of the Q and DQ nodes that form no plain pair.

    A DQ comes with its Q where only operators on integers are between the two, else alone.
    """
    lone = {
        position
        for position, node in enumerate(graph.node)
        if position not in paired and _is_half(node)
    }
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    yielded: set[int] = set()
    for position in sorted(lone):
        if graph.node[position].op_type != DEQUANTIZE:
            continue
        positions: tuple[int, ...] = (position,)
        upstream = _find_upstream_half(graph, producers, lone, position)
        if upstream is not None and upstream not in yielded:
            positions = (upstream, position)
        yielded.update(positions)
        yield positions
    for position in sorted(lone - yielded):
        yield (position,)


def _is_half(node: onnx.NodeProto) -> bool:
    """Whether a node is a Q or DQ with a scale and a result."""
    return node.op_type in PAIR_OPERATORS and len(node.input) > 1 and bool(node.output)


def _find_upstream_half(
    graph: onnx.GraphProto, producers: Mapping[str, int], lone: set[int], position: int
) -> int | None:
    """Return the position of the first lone half upstream of a node if it is a Q, else None."""
    upstream: int | None = position
    while upstream is not None and (upstream == position or upstream not in lone):
        inputs = graph.node[upstream].input
        upstream = producers.get(inputs[0]) if inputs else None
    if upstream is None or graph.node[upstream].op_type != QUANTIZE:
        return None
    return upstream
