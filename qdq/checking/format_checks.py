"""Findings about single Q and DQ nodes: formats that TensorRT refuses or misreads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import onnx

from qdq.checking.finding import Finding, make_finding
from qdq.checking.half_checks import (
    QUANTIZED_CONSTANT_TYPES,
    check_half,
    find_unequal_scales,
    required_opsets,
)
from qdq.checking.pair_halves import HalfReader, PairHalf, find_lone_halves, paired_positions
from qdq.checking.problem import REPAIR_FIX
from qdq.graph.bodies import all_nodes, node_bodies, node_labels, qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.opset import default_opset
from qdq.graph.pairs import QdqPair, find_pairs, stored_tensors
from qdq.graph.quantized_operators import (
    DEQUANTIZE,
    DYNAMIC_OPERATORS,
    QUANTIZE,
    is_quantized_operator,
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


def check_operators(source: Source) -> Iterator[Finding]:
    """Yield one finding for each quantized operator that TensorRT lacks."""
    for label, node in all_nodes(source.model.graph):
        if is_quantized_operator(node):
            fix = _QUANTIZE_STATICALLY if node.op_type in DYNAMIC_OPERATORS else ""
            problem = f"TensorRT has no operator {node.op_type}"
            yield make_finding("unsupported-operator", label, problem, fix=fix)


class _GraphContents(msgspec.Struct, frozen=True):
    """A graph or body with its path, and what is read from it once."""

    graph: onnx.GraphProto
    path: str
    #: Labels of the nodes, after the path.
    labels: list[str]
    #: The tensors that this graph and those around it store.
    stored: Mapping[str, onnx.TensorProto]


class FormatCheck:
    """The findings about every Q and DQ of a model.

    `edges` maps each pair to the edges of the float graph that it is on, and `float_index` is the
    index of that graph; empty and None where the model could not be converted to a float one.
    """

    def __init__(self, source: Source, edges: PairEdges, float_index: GraphIndex | None) -> None:
        self.source = source
        self.edges = edges
        self.float_index = float_index
        self.opset = source.given_opset or default_opset(source.model)
        #: Results of the pairs whose halves have different scales; complete once all findings
        #: have been read.
        self.rescaled: set[str] = set()
        self._reader = HalfReader(source, float_index)
        #: Scales of dynamic operators, which have separate findings.
        self._dynamic_scales = _dynamic_outputs(source.model.graph)
        #: Opsets that the pairs require, each with the feature that requires it and its location.
        self._requirements: list[tuple[int, str, Edge | str]] = []

    def findings(self) -> Iterator[Finding]:
        """Yield the findings in the order of the nodes, and the one about the opset last."""
        yield from self._check_graph(self.source.model.graph, {}, "")
        if not self._requirements:
            return
        opset, feature, location = max(self._requirements, key=lambda required: required[0])
        if opset > self.opset:
            problem = f"the model has opset {self.opset}; {feature} needs {opset}"
            fix = f"export with opset {opset} or newer, or {REPAIR_FIX}"
            yield make_finding("opset", location, problem, fix=fix)

    def _check_graph(
        self, graph: onnx.GraphProto, outer_constants: dict[str, onnx.TensorProto], path: str
    ) -> Iterator[Finding]:
        stored = outer_constants | stored_tensors(graph)
        labels = [qualified_name(path, label) for label in node_labels(graph)]
        contents = _GraphContents(graph, path, labels, stored)
        pairs = find_pairs(graph, outer_constants)
        for pair in pairs:
            pair_positions = (pair.dq,) if pair.q is None else (pair.q, pair.dq)
            yield from self._check_halves(contents, pair_positions, pair)
        for positions in find_lone_halves(graph, paired_positions(pairs)):
            yield from self._check_halves(contents, positions, None)
        for label, node in zip(labels, graph.node, strict=True):
            problem = _describe_constant_misuse(node, stored)
            if problem:
                yield make_finding("stored-integers", label, problem)
            for name, body in node_bodies(node):
                yield from self._check_graph(body, stored, f"{label}.{name}")

    def _check_halves(
        self, contents: _GraphContents, positions: tuple[int, ...], pair: QdqPair | None
    ) -> Iterator[Finding]:
        """Yield the findings about a pair, or about lone halves where `pair` is None."""
        nodes = [contents.graph.node[position] for position in positions]
        edges = self._find_edges(contents.path, nodes[-1].output[0])
        halves: list[PairHalf] = []
        for position, node in zip(positions, nodes, strict=True):
            label = contents.labels[position]
            half = self._reader.read(node, label, contents.path, contents.stored, edges)
            halves.append(half)
        location: Edge | str = edges[0] if edges else halves[-1].label
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
                self._requirements.append((opset, feature, location))
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


def _dynamic_outputs(graph: onnx.GraphProto) -> set[str]:
    """Return the results of the operators that compute scales while the model runs."""
    outputs: set[str] = set()
    for _, node in all_nodes(graph):
        if node.op_type in DYNAMIC_OPERATORS:
            outputs.update(node.output)
    return outputs


def _describe_constant_misuse(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> str:
    """Return the problem of a node that reads stored quantized values, "" where there is none.

    Only a DequantizeLinear may read them, and no scalar; the bounds of a Clip are allowed.
    """
    if is_quantized_operator(node) or is_tensorrt_operator(node) or node.op_type == QUANTIZE:
        return ""
    tensor = stored.get(node.input[0]) if node.input else None
    if tensor is None or tensor.data_type not in QUANTIZED_CONSTANT_TYPES:
        return ""
    name = node.input[0]
    type_name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if node.op_type != DEQUANTIZE:
        return f"this {node.op_type} reads {name!r}, which is stored as {type_name}"
    if not tensor.dims:
        return f"this DequantizeLinear reads {name!r}, a scalar that is stored as {type_name}"
    return ""
