"""Findings about single Q and DQ nodes: formats that TensorRT refuses or misreads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from qdq.checking.finding import Finding, make_finding
from qdq.checking.half_checks import (
    QUANTIZED_CONSTANT_TYPES,
    check_half,
    find_unequal_scales,
    required_opsets,
)
from qdq.checking.pair_halves import HalfReader, PairHalf, find_lone_halves
from qdq.checking.problem import REPAIR_FIX
from qdq.graph.bodies import all_nodes
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.opset import default_opset
from qdq.graph.pairs import QdqPair
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.quantized_operators import (
    DEQUANTIZE,
    DYNAMIC_OPERATORS,
    QUANTIZE,
    is_quantized_operator,
    is_quantized_operator_id,
    is_tensorrt_operator,
)
from qdq.graph.source import Source

#: The edges of the float graph that read the result of a DQ, by the path of its graph and the name
#: of that tensor.
PairEdges = Mapping[tuple[str, str], tuple[Edge, ...]]

#: The fix for a dynamic operator.
_QUANTIZE_STATICALLY = (
    "quantize the float model statically, in Q/DQ; these scales are computed while the model runs"
)

#: The fix for the zero point of integers that enter or leave the model. No conversion may change
#: the values of its inputs and outputs.
_FEED_FLOATS = (
    "feed and read floats, or INT8 with zero point 0; qdq does not change what the inputs and "
    "outputs of a model hold"
)


def check_operators(graph: QdqGraph) -> Iterator[Finding]:
    """Yield one finding for each quantized operator that TensorRT lacks."""
    if not any(is_quantized_operator_id(*operator) for operator in graph.all_operators):
        return
    for label, node in all_nodes(graph.graph):
        if is_quantized_operator(node):
            fix = _QUANTIZE_STATICALLY if node.op_type in DYNAMIC_OPERATORS else ""
            problem = f"TensorRT has no operator {node.op_type}"
            yield make_finding("unsupported-operator", label, problem, fix=fix)


class FormatCheck:
    """The findings about every Q and DQ of a model.

    `graph` is the main graph of the model. `edges` maps each pair to the edges of the float graph
    that it is on, and `float_index` is the index of that graph; empty and None where the model
    could not be converted to a float one.
    """

    def __init__(
        self, source: Source, graph: QdqGraph, edges: PairEdges, float_index: GraphIndex | None
    ) -> None:
        self.graph = graph
        self.edges = edges
        self.float_index = float_index
        self.opset = source.given_opset or default_opset(source.model)
        #: Results of the pairs whose halves have different scales; complete once all findings
        #: have been read.
        self.rescaled: set[str] = set()
        self._reader = HalfReader(source, float_index)
        #: Scales of dynamic operators, which have separate findings.
        self._dynamic_scales = _dynamic_outputs(graph)
        #: The opset that the pairs require, the feature that requires it and its location.
        self._requirement: tuple[int, str, Edge | str] = (0, "", "")

    def findings(self) -> Iterator[Finding]:
        """Yield the findings in the order of the nodes, and the one about the opset last."""
        yield from self._check_graph(self.graph)
        opset, feature, location = self._requirement
        if opset > self.opset:
            problem = f"the model has opset {self.opset}; {feature} needs {opset}"
            fix = f"export with opset {opset} or newer, or {REPAIR_FIX}"
            yield make_finding("opset", location, problem, fix=fix)

    def _check_graph(self, graph: QdqGraph) -> Iterator[Finding]:
        for pair in graph.pairs:
            pair_positions = (pair.dq,) if pair.q is None else (pair.q, pair.dq)
            yield from self._check_halves(graph, pair_positions, pair)
        for positions in find_lone_halves(graph):
            yield from self._check_halves(graph, positions, None)
        misused = _find_misused_constants(graph)
        for position in sorted({*misused, *graph.bodies}):
            if position in misused:
                label = graph.qualified_label(position)
                yield make_finding("stored-integers", label, misused[position])
            for _, body in graph.bodies.get(position, ()):
                yield from self._check_graph(body)

    def _check_halves(
        self, graph: QdqGraph, positions: tuple[int, ...], pair: QdqPair | None
    ) -> Iterator[Finding]:
        """Yield the findings about a pair, or about lone halves where `pair` is None."""
        last = positions[-1]
        edges = self._find_edges(graph.path, graph.outputs[last][0])
        location: Edge | str = edges[0] if edges else graph.qualified_label(last)
        halves = [self._reader.read(graph, positions[0], edges)]
        if len(positions) > 1 and not _repeats_quantize(graph, pair, halves[0]):
            halves.append(self._reader.read(graph, last, edges))
        is_clean = True
        for finding in self._check_each_half(halves, location, pair):
            is_clean = False
            yield finding
        if pair is not None and is_clean:
            yield from self._check_equal_scales(halves, location, pair)

    def _check_equal_scales(
        self, halves: list[PairHalf], location: Edge | str, pair: QdqPair
    ) -> Iterator[Finding]:
        unequal = find_unequal_scales(halves)
        if unequal is not None:
            self.rescaled.add(pair.output)
            q_scale, dq_scale = unequal
            problem = f"the scale of the Q is {q_scale:.6g}, that of its DQ {dq_scale:.6g}"
            yield make_finding("unequal-halves", location, problem)

    def _check_each_half(
        self, halves: list[PairHalf], location: Edge | str, pair: QdqPair | None
    ) -> Iterator[Finding]:
        """Yield the problems of some halves, each code once."""
        codes: set[str] = set()
        for half in halves:
            for opset, feature in required_opsets(half):
                if opset > self._requirement[0]:
                    self._requirement = (opset, feature, location)
            if half.scale in self._dynamic_scales:
                continue
            for code, problem in check_half(half, self.opset):
                if code not in codes:
                    codes.add(code)
                    fix = _FEED_FLOATS if pair is None and code == "zero-point" else ""
                    yield make_finding(code, location, problem, fix=fix)

    def _find_edges(self, path: str, tensor: str) -> tuple[Edge, ...]:
        """Return the edges of the float graph that a pair is on, by the result of its DQ.

        For a lone half these are the edges that read a tensor of the same name.
        """
        edges = self.edges.get((path, tensor))
        if edges:
            return edges
        scope = self.float_index.scopes.get(path) if self.float_index is not None else None
        return scope.edges_from(tensor) if scope is not None else ()


def _repeats_quantize(graph: QdqGraph, pair: QdqPair | None, quantize: PairHalf) -> bool:
    """Whether the DQ of a pair has the parameters of its Q, and no other problems.

    Each problem of a pair is reported once. INT32 is one that a DQ has alone.
    """
    if pair is None or quantize.attributes or quantize.dtype == onnx.TensorProto.INT32:
        return False
    parameters = pair.scale, pair.zero_point
    is_same = parameters == (pair.q_scale, pair.q_zero_point)
    return is_same and not graph.nodes[pair.dq].attribute


def _dynamic_outputs(graph: QdqGraph) -> set[str]:
    """Return the results of the operators that compute scales while the model runs."""
    outputs: set[str] = set()
    for part in graph.graphs:
        for position, operator in enumerate(part.operators):
            if operator in DYNAMIC_OPERATORS:
                outputs.update(part.outputs[position])
    return outputs


def _find_misused_constants(graph: QdqGraph) -> dict[int, str]:
    """Return the problems of nodes that read stored quantized values, by position.

    Only a DequantizeLinear may read them, and no scalar; the bounds of a Clip are allowed.
    """
    problems: dict[int, str] = {}
    for position, names in enumerate(graph.inputs):
        tensor = graph.stored.get(names[0]) if names else None
        if tensor is None or tensor.data_type not in QUANTIZED_CONSTANT_TYPES:
            continue
        problem = _describe_misuse(graph.nodes[position], tensor, names[0])
        if problem:
            problems[position] = problem
    return problems


def _describe_misuse(node: onnx.NodeProto, tensor: onnx.TensorProto, name: str) -> str:
    """Return the problem of a node whose first input is stored as quantized values, "" for none."""
    if is_quantized_operator(node) or is_tensorrt_operator(node) or node.op_type == QUANTIZE:
        return ""
    type_name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if node.op_type != DEQUANTIZE:
        return f"this {node.op_type} reads {name!r}, which is stored as {type_name}"
    if not tensor.dims:
        return f"this DequantizeLinear reads {name!r}, a scalar that is stored as {type_name}"
    return ""
