"""Findings about the edges that pairs are on, compared with the plan of the float graph.

The plan decides where pairs belong. These checks describe a difference by the facts that the rules
use, and leave out differences without effect: a pair before an operator that commutes with
quantization replaces one after it.
"""

from __future__ import annotations

from collections.abc import Iterator

from qdq.checking.carried_pairs import CarriedPairs
from qdq.checking.finding import Finding, make_finding
from qdq.checking.pair_comparison import Comparison, PlanReasons, make_unequal_finding
from qdq.checking.scale_comparison import have_equal_scales
from qdq.graph.aliases import find_origin, is_alias_or_float_cast
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import operands
from qdq.graph.operators import FOLDED_INTO_WEIGHTS, FUSED_AFTER_WEIGHTED, QUANTIZABLE_POOLS
from qdq.graph.residual import find_residual, is_skip
from qdq.planning.decisions import INCOMPLETE, NO_RULE, TYPE, UNUSED, Placement
from qdq.quantized.model import QuantizedEdge

#: Types that only weights have, with activations in float.
_FOUR_BIT_TYPES = ("int4", "uint4", "float4e2m1")

#: The fact of a node that has no INT8 kernel on a target.
_LACKS_KERNEL = "lacks-int8-kernel"


def check_placement(
    comparison: Comparison, rescaled: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Yield the missing and the unplanned pairs that have an effect.

    `rescaled` holds the tensors whose pair has halves of two scales. Separate findings report them.
    """
    reasons = PlanReasons(comparison)
    yield from _check_missing(comparison, reasons, rescaled)
    yield from _check_unplanned(comparison, reasons, rescaled)


def _check_missing(
    comparison: Comparison, reasons: PlanReasons, rescaled: frozenset[str]
) -> Iterator[Finding]:
    """Yield the planned edges without a pair, for a weighted operator only the first."""
    carried = comparison.carried
    missing = _find_missing(comparison, rescaled)
    reported_nodes: set[tuple[str, str]] = set()
    for edge, placement in missing.items():
        scope = comparison.quantized.index.scope(edge)
        operand_edges = operands(scope, scope.node(edge))
        if edge in operand_edges:
            node_key = (edge.graph, edge.node)
            if node_key in reported_nodes or _has_weight_only_pair(operand_edges, carried):
                continue
            reported_nodes.add(node_key)
        rule = placement.because[0]
        if edge in carried.mismatched:
            problem = (
                "the tensor is joined from different scales, and the "
                f"{scope.node(edge).op} after it runs in float"
            )
            yield make_unequal_finding(edge, carried.mismatched[edge], rule, problem)
        else:
            view = comparison.view.scopes[edge.graph]
            code, problem = _describe_missing(view, edge, operand_edges, missing)
            if edge in carried.cast:
                problem = _describe_cast(scope.node(edge), carried.cast[edge])
            yield make_finding(code, edge, problem, rule, reasons.rule_text(rule))


def _find_missing(comparison: Comparison, rescaled: frozenset[str]) -> dict[Edge, Placement]:
    """Return the planned edges without a pair that none is carried to."""
    missing: dict[Edge, Placement] = {}
    for placement in comparison.missing:
        edge = placement.edge
        if edge not in comparison.carried.replaced and edge.tensor not in rescaled:
            missing[edge] = placement
    return missing


def _has_weight_only_pair(operand_edges: tuple[Edge, ...], carried: CarriedPairs) -> bool:
    """Whether an operand has a pair in 4 bits or by blocks.

    Such pairs are for weights alone, with activations in float.
    """
    for edge in operand_edges:
        for pair in carried.find_pairs(edge):
            if pair.pair.block_size or (pair.dtype or pair.stored) in _FOUR_BIT_TYPES:
                return True
    return False


def _describe_missing(
    scope: CompilerView,
    edge: Edge,
    operand_edges: tuple[Edge, ...],
    missing: dict[Edge, Placement],
) -> tuple[str, str]:
    """Return the code and the problem of a planned edge without a pair."""
    node = scope.node(edge)
    if edge in operand_edges:
        for operand in operand_edges:
            if operand not in missing:
                problem = (
                    f"the edge has no Q/DQ pair, but {operand.tensor!r} has one: "
                    f"the {node.op} runs in float"
                )
                return "half-quantized", problem
        return "missing-pair", f"no operand of this {node.op} has a Q/DQ pair"
    if is_skip(scope, node, edge.slot):
        problem = f"the residual {node.op} reads its skip without a Q/DQ pair"
        return "residual-in-float", problem
    if node.op in QUANTIZABLE_POOLS:
        return "pool-in-float", f"the {node.op} reads the tensor without a Q/DQ pair"
    return "missing-pair", "the edge has no Q/DQ pair"


def _describe_cast(node: Node, pair: QuantizedEdge) -> str:
    return (
        f"a Cast that rounds is between the Q/DQ pair on {pair.edge.tensor!r} and this {node.op}, "
        "which runs in float"
    )


def _check_unplanned(
    comparison: Comparison, reasons: PlanReasons, rescaled: frozenset[str]
) -> Iterator[Finding]:
    """Yield the pairs on edges that are not planned.

    Left out are those that replace planned ones and those without a cost, such as on layers that
    the compiler drops, and those in float types that the rules do not decide.
    """
    carried = comparison.carried
    for pair in comparison.unplanned:
        decision = reasons.left_float(pair.edge)
        if decision is not None and decision.because in (TYPE, UNUSED):
            continue
        node = comparison.quantized.index.node(pair.edge)
        is_int32 = "int32" in (pair.stored, pair.dtype)
        if pair.edge in carried.explained or is_int32 or rescaled.intersection(node.outputs):
            continue
        downstream = carried.downstream_pairs(pair)
        if not downstream:
            view = comparison.view.scopes[pair.edge.graph]
            yield _make_unplanned_finding(view, pair, reasons)
        elif not have_equal_scales((pair, *downstream)):
            problem = f"the pairs after this {node.op} have another scale"
            yield make_unequal_finding(pair.edge, (pair, *downstream), "", problem)


def _make_unplanned_finding(
    view: CompilerView, pair: QuantizedEdge, reasons: PlanReasons
) -> Finding:
    rule = ""
    rule_text = NO_RULE
    layer_edge = _skip_casts(view.file_index, pair.edge)
    decision = reasons.left_float(layer_edge)
    if decision is not None:
        rule = decision.because
        rule_text = reasons.rule_text(rule) or decision.reason
    code, problem = _describe_unplanned(view, layer_edge, reasons)
    return make_finding(code, pair.edge, problem, rule, rule_text)


def _skip_casts(scope: GraphIndex, edge: Edge) -> Edge:
    """Return the edge that alone reads the values of an edge after aliases and Casts."""
    node = scope.node(edge)
    while edge.slot == 0 and is_alias_or_float_cast(scope, node):
        readers = scope.edges_from(node.outputs[0])
        if len(readers) != 1 or scope.sole_consumer(node.outputs[0]) is None:
            break
        edge = readers[0]
        node = scope.node(edge)
    return edge


def _describe_unplanned(view: CompilerView, edge: Edge, reasons: PlanReasons) -> tuple[str, str]:
    """Return the code and the problem of a pair on an edge that is not planned.

    There may be aliases and Casts between the pair and the edge.
    """
    scope = view.file_index
    node = scope.node(edge)
    if _lacks_kernel(scope, edge, reasons):
        problem = f"the edge has a Q/DQ pair, but the {node.op} has no INT8 kernel on the target"
        return "no-kernel", problem
    weighted = _find_fused_layer(view, find_origin(scope, edge.tensor))
    if weighted and (node.op in FUSED_AFTER_WEIGHTED or _is_folded(scope, node)):
        problem = f"a Q/DQ pair is between {weighted} and the {node.op} that TensorRT fuses with it"
        return "pair-in-fusion", problem
    if weighted:
        return "pair-on-output", f"a Q/DQ pair is on the output of {weighted}"
    if reasons.is_left_for(edge, from_="weighted"):
        return "pair-on-output", "a Q/DQ pair is on the output of a weighted layer"
    return "unwanted-pair", "the edge has a Q/DQ pair that the rules leave out"


def _lacks_kernel(scope: GraphIndex, edge: Edge, reasons: PlanReasons) -> bool:
    """Whether an edge or, for an incomplete layer, an operand beside it lacks an INT8 kernel."""
    if reasons.is_left_for(edge, into=_LACKS_KERNEL):
        return True
    decision = reasons.left_float(edge)
    if decision is None or decision.because != INCOMPLETE:
        return False
    operand_edges = operands(scope, scope.node(edge))
    return any(reasons.is_left_for(operand, into=_LACKS_KERNEL) for operand in operand_edges)


def _computed_inputs(scope: GraphIndex, node: Node) -> list[str]:
    return [name for name in node.inputs if name and not scope.is_constant(name)]


def _is_folded(scope: GraphIndex, node: Node) -> bool:
    """Whether a node is an Add or Mul of a constant, as for a bias."""
    return node.op in FOLDED_INTO_WEIGHTS and len(_computed_inputs(scope, node)) == 1


def _find_fused_layer(scope: CompilerView, tensor: str) -> str:
    """Return the name of the layer that computes a tensor, "" for others.

    It is a weighted operator with nothing but folded ones, aliases and Casts after it, or a
    residual Add that TensorRT fuses with one.
    """
    producer = scope.producers.get(tensor)
    while producer is not None:
        if _is_folded(scope, producer):
            tensor = _computed_inputs(scope, producer)[0]
        elif is_alias_or_float_cast(scope, producer):
            tensor = producer.inputs[0]
        else:
            break
        producer = scope.producers.get(tensor)
    if producer is None:
        return ""
    if operands(scope, producer):
        return f"the {producer.op} {producer.label!r}"
    if find_residual(scope, producer) is not None:
        return f"the residual {producer.op} {producer.label!r}"
    return ""
