"""The two halves of a pair: single Q and DQ nodes as the file has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from typing import Any

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.pairs import QdqPair
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import Source

#: Input slot of the zero point.
_ZERO_POINT = 2

#: Kinds of numpy types that hold no numbers.
_TEXT_KINDS = "OSU"


class PairHalf(msgspec.Struct, frozen=True):
    """A Q or DQ node."""

    #: The operator of the node.
    operator: str
    #: Names of the scale and the zero point, "" for no zero point.
    scale: str
    zero_point: str
    #: Values of both; None where they are computed or absent.
    scales: Array | None
    zeros: Array | None
    #: ONNX type of the scales, 0 where they are computed or absent.
    scale_type: int
    #: ONNX type of the quantized values, 0 where it is unknown.
    dtype: int
    #: The names of the node's attributes.
    attributes: tuple[str, ...]
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
        return self.operator == QUANTIZE

    @property
    def reads_stored_values(self) -> bool:
        """Whether the node is a DequantizeLinear of a stored tensor."""
        return self.operator == DEQUANTIZE and self.input_type != 0


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

    def read(self, graph: QdqGraph, position: int, edges: tuple[Edge, ...]) -> PairHalf:
        """Return the Q or DQ at a position of a graph.

        `edges` are the edges of the float graph that read the pair.
        """
        inputs = graph.inputs[position]
        operator = graph.operators[position]
        zero_name = inputs[_ZERO_POINT] if len(inputs) > _ZERO_POINT else ""
        attributes = {entry.name: entry.i for entry in graph.nodes[position].attribute}
        scales = self._read_values(inputs[1], graph)
        zeros = self._read_values(zero_name, graph) if zero_name else None
        return PairHalf(
            operator=operator,
            scale=inputs[1],
            zero_point=zero_name,
            scales=scales,
            zeros=zeros,
            scale_type=_scale_type(scales),
            dtype=_quantized_type(operator, inputs[0], zero_name, attributes, graph.stored),
            attributes=tuple(attributes),
            axis=attributes.get("axis"),
            dims=self._find_dims(inputs[0], scales, graph.stored, edges),
            input_type=self._find_input_type(operator, inputs[0], graph.stored, edges),
            has_blocks=bool(attributes.get("block_size")),
        )

    def _find_input_type(
        self,
        operator: str,
        name: str,
        stored: Mapping[str, onnx.TensorProto],
        edges: tuple[Edge, ...],
    ) -> int:
        input_type = _stored_type(name, stored)
        if input_type or self.float_index is None or not edges or operator != QUANTIZE:
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

    def _read_values(self, name: str, graph: QdqGraph) -> Array | None:
        """Return the values of a constant; None for what is computed or holds no numbers."""
        stored = graph.stored.get(name)
        if stored is not None and stored.data_type == onnx.TensorProto.STRING:
            graph.location.read_values(stored)  # raises for a damaged one
            return None
        if stored is not None:
            return graph.read_parameter(name)
        scope = self.index.scopes.get(graph.path)
        if scope is None or not scope.is_constant(name):
            return None
        values = scope.constant(name)
        return None if values.dtype.kind in _TEXT_KINDS else values


def _scale_type(scales: Array | None) -> int:
    """Return the ONNX type of scales, 0 where there are none."""
    return 0 if scales is None else _find_onnx_type(scales.dtype)


@cache
def _find_onnx_type(dtype: np.dtype[Any]) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def _stored_type(name: str, stored: Mapping[str, onnx.TensorProto]) -> int:
    """Return the ONNX type of a stored tensor, 0 for others."""
    return stored[name].data_type if name in stored else 0


def _quantized_type(
    operator: str,
    name: str,
    zero_name: str,
    attributes: Mapping[str, int],
    stored: Mapping[str, onnx.TensorProto],
) -> int:
    """Return the ONNX type of the quantized values, 0 where it is unknown."""
    if zero_name:
        return _stored_type(zero_name, stored)
    if operator == QUANTIZE:
        return attributes.get("output_dtype", 0)
    return _stored_type(name, stored)


def paired_positions(pairs: Iterable[QdqPair]) -> set[int]:
    """Return the positions of the Q and DQ nodes of some pairs."""
    positions: set[int] = set()
    for pair in pairs:
        positions.add(pair.dq)
        if pair.q is not None:
            positions.add(pair.q)
    return positions


def find_lone_halves(graph: QdqGraph) -> Iterator[tuple[int, ...]]:
    """Yield the positions of the Q and DQ nodes that form no plain pair.

    A DQ comes with its Q where only operators on integers are between the two, else alone.
    """
    paired = paired_positions(graph.pairs)
    lone = {
        position
        for position in graph.half_positions
        if position not in paired and _is_half(graph, position)
    }
    yielded: set[int] = set()
    for position in sorted(lone):
        if graph.operators[position] != DEQUANTIZE:
            continue
        positions: tuple[int, ...] = (position,)
        upstream = _find_upstream_half(graph, lone, position)
        if upstream is not None and upstream not in yielded:
            positions = (upstream, position)
        yielded.update(positions)
        yield positions
    for position in sorted(lone - yielded):
        yield (position,)


def _is_half(graph: QdqGraph, position: int) -> bool:
    """Whether a Q or DQ node has a scale and a result."""
    return len(graph.inputs[position]) > 1 and bool(graph.outputs[position])


def _find_upstream_half(graph: QdqGraph, lone: set[int], position: int) -> int | None:
    """Return the position of the first lone half upstream of a node if it is a Q, else None."""
    upstream: int | None = position
    while upstream is not None and (upstream == position or upstream not in lone):
        inputs = graph.inputs[upstream]
        upstream = graph.producers.get(inputs[0]) if inputs else None
    if upstream is None or graph.operators[upstream] != QUANTIZE:
        return None
    return upstream
