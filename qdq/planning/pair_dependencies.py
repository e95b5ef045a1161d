"""Which pairs only make sense with others, and plans without some pairs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import msgspec

from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import operands
from qdq.graph.operators import MATRIX_PRODUCTS, QUANTIZABLE_POOLS
from qdq.graph.patterns import multiplied_tensors
from qdq.graph.residual import find_fused_backbone, find_residual_slot
from qdq.planning.decisions import INCOMPLETE, LeftFloat, Placement, Plan
from qdq.rules.reached_edges import find_pool_ends


def remove_placements(
    index: GraphIndex, plan: Plan, unwanted: Container[Placement], why: str
) -> Plan:
    """Return a plan without some placements, and without those that only make sense with them; these stay in float because of `why`."""
    kept: dict[Edge, Placement] = {}
    for path, scope in index.scopes.items():
        placed = {p.edge: p for p in plan.placements if p.edge.graph == path and p not in unwanted}
        for edge, _ in unmet_needs(scope, placed):
            placed.pop(edge)
        kept |= placed
    left = tuple(LeftFloat(p.edge, INCOMPLETE, why) for p in plan.placements if p.edge not in kept)
    reads = {edge.qualified_tensor for edge in kept}
    groups = (
        msgspec.structs.replace(g, tensors=tuple(t for t in g.tensors if t in reads))
        for g in plan.scale_groups
    )
    return msgspec.structs.replace(
        plan,
        placements=tuple(kept.values()),
        left_float=(*plan.left_float, *left),
        scale_groups=tuple(g for g in groups if len(g.tensors) > 1),
    )


def unmet_needs(index: GraphIndex, placed: dict[Edge, Placement]) -> Iterator[tuple[Edge, Edge]]:
    """Yield each placed edge with the edge it needs quantized and that is not, until none is left; the caller removes them."""
    found = True
    while found:
        found = False
        for edge in list(placed):
            dtype = placed[edge].quantizer.dtype
            missing = next(
                (
                    need
                    for need in _needs(index, edge)
                    if need not in placed or placed[need].quantizer.dtype != dtype
                ),
                None,
            )
            if missing is not None:
                found = True
                yield edge, missing


def find_unmet_need(index: GraphIndex, placements: Iterable[Placement]) -> tuple[Edge, Edge] | None:
    """Return the first placed edge that lacks another one it only makes sense with, and that one; None where all is well."""
    return next(unmet_needs(index, {p.edge: p for p in placements}), None)


def _needs(index: GraphIndex, edge: Edge) -> tuple[Edge, ...]:
    """Return the edges without which a pair on this one only costs: TensorRT runs a layer in one type as a whole or not at all."""
    node = index.node(edge)
    if edge in (both := operands(index, node)):
        return both
    if node.op == "Add":
        return _residual_needs(index, node, edge)
    return find_pool_ends(index, node) if node.op in QUANTIZABLE_POOLS else ()


def _residual_needs(index: GraphIndex, add: Node, edge: Edge) -> tuple[Edge, ...]:
    """Return the operands of the layer that an Add is fused with; behind a matrix product the tensor's own reader too."""
    if find_residual_slot(index, add) == edge.slot:
        convolution = find_fused_backbone(index, edge)
        return operands(index, convolution) if convolution else ()
    if find_residual_slot(index, add, MATRIX_PRODUCTS) == edge.slot:
        product = find_fused_backbone(index, edge, MATRIX_PRODUCTS)
        reader = multiplied_tensors(index).get(edge.tensor)
        return (*(operands(index, product) if product else ()), *([reader] if reader else []))
    return ()
