"""Pairs that are carried through operators that move values, to edges where the plan has one."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import onnx

from qdq.checking.scale_comparison import have_equal_scales
from qdq.graph.aliases import can_cast_dequantized, cast_type, keeps_values
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.patterns import carries_pairs, trace_axis_to_input
from qdq.planning.decisions import Placement
from qdq.quantized.model import QuantizedEdge, QuantizedModel


class Carrier(msgspec.Struct, frozen=True):
    """The pairs upstream of an edge that reach it, several where a Concat joins them."""

    pairs: tuple[QuantizedEdge, ...] = ()
    #: The planned axis of scales, as it is at the pairs; None for one scale.
    axis: int | None = None


class _Path(msgspec.Struct, frozen=True):
    """The way from a planned edge upstream to a tensor."""

    planned_edge: Edge
    scope: GraphIndex
    tensor: str
    #: The planned axis of scales, as it is at the tensor.
    axis: int | None
    #: The types that Casts on the way have, from the tensor to the edge.
    cast_types: tuple[int, ...] = ()


class CarriedPairs:
    """Pairs on other edges than planned that have the same effect.

    TensorRT moves a DQ forward past an operator that commutes with quantization, and past a Concat
    whose inputs have one scale. Built with TensorRT-RTX 1.7.1, Conv and MatMul run in INT8 after
    each operator of `can_commute_with_quantization` but Resize, and after the Casts of
    `can_cast_dequantized`.
    """

    def __init__(self, quantized: QuantizedModel, missing: Iterable[Placement]) -> None:
        self.pairs = {pair.edge: pair for pair in quantized.edges}
        self.index = quantized.index
        #: Planned edges that have no pair and need none, each with the pairs that reach it.
        self.replaced: dict[Edge, Carrier] = {}
        #: Edges after a Concat of different scales, which stops the pairs of its inputs.
        self.mismatched: dict[Edge, tuple[QuantizedEdge, ...]] = {}
        #: Edges after Casts that no INT8 kernel takes, each with the pair before the Casts.
        self.cast: dict[Edge, QuantizedEdge] = {}
        #: Edges whose pairs replace planned ones, or are reported with a planned edge.
        self.explained: set[Edge] = set()
        for placement in missing:
            self._trace_placement(placement.edge, placement.quantizer.axis)
        for pairs in self.mismatched.values():
            self.explained.update(pair.edge for pair in pairs)
        for edge, pair in self.cast.items():
            if edge not in self.replaced:
                self.explained.add(pair.edge)

    def find_pairs(self, edge: Edge) -> tuple[QuantizedEdge, ...]:
        """Return the pair on an edge, or else the pairs that are carried to a planned edge."""
        if edge in self.pairs:
            return (self.pairs[edge],)
        return self.replaced.get(edge, Carrier()).pairs

    def _trace_placement(self, edge: Edge, axis: int | None) -> None:
        path = _Path(edge, self.index.scope(edge), edge.tensor, axis)
        carrier = self._find_carrier(path)
        if carrier.pairs:
            self.replaced[edge] = carrier
            self.explained.update(pair.edge for pair in carrier.pairs)

    def _find_carrier(self, path: _Path) -> Carrier:
        """Return the pairs upstream whose DQ reaches a tensor; none where an operator stops it."""
        scope = path.scope
        producer = scope.producers.get(path.tensor)
        if producer is None:
            return Carrier()
        if producer.op == "Concat" and path.axis is None:
            return self._find_joined(path, producer)
        upstream_path = _step_upstream(path, producer)
        if upstream_path is None:
            return Carrier()
        pair = self.pairs.get(scope.edge(producer, 0))
        if pair is None:
            return self._find_carrier(upstream_path)
        if not can_cast_dequantized((_dequantized_type(scope, pair), *upstream_path.cast_types)):
            self.cast[path.planned_edge] = pair
            return Carrier()
        return Carrier((pair,), upstream_path.axis)

    def _find_joined(self, path: _Path, concat: Node) -> Carrier:
        """Return the pairs of all inputs of a Concat if they have one scale, else none."""
        pairs: list[QuantizedEdge] = []
        is_complete = True
        for edge in path.scope.edges_into(concat):
            pair = self.pairs.get(edge)
            if pair is None:
                input_path = msgspec.structs.replace(path, tensor=edge.tensor)
                joined = self._find_carrier(input_path).pairs
            elif can_cast_dequantized((_dequantized_type(path.scope, pair), *path.cast_types)):
                joined = (pair,)
            else:
                joined = ()
            is_complete = is_complete and bool(joined)
            pairs.extend(joined)
        if not is_complete:
            return Carrier()
        if have_equal_scales(pairs):
            return Carrier(tuple(pairs))
        self.mismatched[path.planned_edge] = tuple(pairs)
        return Carrier()

    def downstream_pairs(self, pair: QuantizedEdge) -> tuple[QuantizedEdge, ...]:
        """Return the pairs downstream that make a pair redundant, else none.

        Only operators that commute or join may be in between, and every path must end in a pair.
        """
        scope = self.index.scope(pair.edge)
        node = self.index.node(pair.edge)
        if not _is_passed(scope, node, pair.edge.slot):
            return ()
        downstream: list[QuantizedEdge] = []
        tensors = [name for name in node.outputs if name]
        visited: set[str] = set()
        while tensors:
            tensor = tensors.pop()
            if tensor in visited:
                continue
            visited.add(tensor)
            if _leaves_graph(scope, tensor):
                return ()
            for reader, slot in scope.live_readers(tensor):
                edge = scope.edge(reader, slot)
                if edge in self.pairs:
                    downstream.append(self.pairs[edge])
                elif edge in self.replaced or reader.op == "Shape":
                    continue
                elif _is_passed(scope, reader, edge.slot):
                    tensors.extend(name for name in reader.outputs if name)
                else:
                    return ()
        return tuple(downstream)


def _step_upstream(path: _Path, producer: Node) -> _Path | None:
    """Return the path on the other side of an operator, None where the operator ends it."""
    scope = path.scope
    if producer.op == "Resize" or not carries_pairs(scope, producer):
        return None
    axis = path.axis
    if axis is not None:
        axis = trace_axis_to_input(scope, producer, axis) if keeps_values(scope, producer) else None
        if axis is None:
            return None
    cast_types = path.cast_types
    if cast_type(scope, producer):
        cast_types = (cast_type(scope, producer), *cast_types)
    return msgspec.structs.replace(
        path, tensor=producer.inputs[0], axis=axis, cast_types=cast_types
    )


def _dequantized_type(scope: GraphIndex, pair: QuantizedEdge) -> int:
    """Return the ONNX type of a DQ's result: that of its scale, else that of the tensor."""
    if pair.scales is None:
        return scope.elem_type(pair.edge.tensor)
    return onnx.helper.np_dtype_to_tensor_dtype(pair.scales.dtype)


def _is_passed(scope: GraphIndex, node: Node, slot: int) -> bool:
    """Whether quantization moves past a node from one of its input slots."""
    if node.op == "Concat":
        return True
    return slot == 0 and carries_pairs(scope, node)


def _leaves_graph(scope: GraphIndex, tensor: str) -> bool:
    """Whether a tensor is a graph output or is read by a body."""
    if tensor in scope.outputs:
        return True
    readers = scope.live_readers(tensor)
    return any(slot < 0 for _, slot in readers)
