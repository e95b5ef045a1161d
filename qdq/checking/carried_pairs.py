"""Pairs that are carried through operators that move values, to edges where the plan has one."""

from __future__ import annotations

from qdq.checking.pair_comparison import (
    Comparison,
    has_one_scale,
    have_equal_scales,
    pair_scale_axis,
)
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operators import MOVES_VALUES
from qdq.graph.patterns import can_commute_with_quantization, trace_axis_to_input
from qdq.quantized.model import QuantizedEdge


class CarriedPairs:
    """Pairs on other edges than planned that have the same effect.

    TensorRT moves a DQ forward past an operator that commutes with quantization, and past a Concat
    whose inputs have one scale. Built with TensorRT-RTX 1.7.1, Conv and MatMul run in INT8 after
    each operator of `can_commute_with_quantization` but Resize.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.pairs = {pair.edge: pair for pair in comparison.quantized.edges}
        self.index = comparison.quantized.index
        #: Planned edges that have no pair and need none, as one upstream reaches them.
        self.replaced: set[Edge] = set()
        #: Edges after a Concat of different scales, which stops the pairs of its inputs.
        self.mismatched: dict[Edge, tuple[QuantizedEdge, ...]] = {}
        #: Edges whose pairs replace planned ones, or are reported with a mismatched edge.
        self.explained: set[Edge] = set()
        for placement in comparison.missing:
            self._trace_placement(placement.edge, placement.quantizer.axis)
        for pairs in self.mismatched.values():
            self.explained.update(pair.edge for pair in pairs)

    def _trace_placement(self, edge: Edge, axis: int | None) -> None:
        scope = self.index.scope(edge)
        carriers = self._upstream_pairs(scope, edge.tensor, axis, edge)
        if carriers:
            self.replaced.add(edge)
            self.explained.update(pair.edge for pair in carriers)

    def _upstream_pairs(
        self, scope: GraphIndex, tensor: str, axis: int | None, planned_edge: Edge
    ) -> tuple[QuantizedEdge, ...]:
        """Return the pairs upstream whose DQ reaches a tensor; none where an operator stops it."""
        producer = scope.producers.get(tensor)
        if producer is None:
            return ()
        if producer.op == "Concat" and axis is None:
            return self._joined_pairs(scope, producer, planned_edge)
        if producer.op == "Resize" or not can_commute_with_quantization(scope, producer):
            return ()
        input_axis: int | None = None
        if axis is not None:
            if producer.op in MOVES_VALUES:
                input_axis = trace_axis_to_input(scope, producer, axis)
            if input_axis is None:
                return ()
        pair = self.pairs.get(scope.edge(producer, 0))
        if pair is None:
            return self._upstream_pairs(scope, producer.inputs[0], input_axis, planned_edge)
        if pair_scale_axis(pair, scope) == input_axis or has_one_scale(pair):
            return (pair,)
        return ()

    def _joined_pairs(
        self, scope: GraphIndex, concat: Node, planned_edge: Edge
    ) -> tuple[QuantizedEdge, ...]:
        """Return the pairs of all inputs of a Concat if they have one scale, else none."""
        pairs: list[QuantizedEdge] = []
        is_complete = True
        for edge in scope.edges_into(concat):
            if not edge.tensor:
                continue
            if edge in self.pairs:
                pairs.append(self.pairs[edge])
                continue
            upstream = self._upstream_pairs(scope, edge.tensor, None, planned_edge)
            is_complete = is_complete and bool(upstream)
            pairs.extend(upstream)
        if not is_complete:
            return ()
        if have_equal_scales(pairs):
            return tuple(pairs)
        self.mismatched[planned_edge] = tuple(pairs)
        return ()

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


def _is_passed(scope: GraphIndex, node: Node, slot: int) -> bool:
    """Whether quantization moves past a node from one of its input slots."""
    if node.op == "Concat":
        return True
    return slot == 0 and can_commute_with_quantization(scope, node)


def _leaves_graph(scope: GraphIndex, tensor: str) -> bool:
    """Whether a tensor is a graph output or is read by a body."""
    if tensor in scope.outputs:
        return True
    readers = scope.live_readers(tensor)
    return any(slot < 0 for _, slot in readers)
