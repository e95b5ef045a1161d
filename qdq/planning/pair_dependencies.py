"""Dependencies between pairs: the pairs that a pair requires, and plans without some pairs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import msgspec

from qdq.graph.aliases import find_tensor_before_casts
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import operands
from qdq.graph.operators import MATRIX_PRODUCTS, QUANTIZABLE_POOLS
from qdq.graph.patterns import multiplied_tensors
from qdq.graph.residual import find_residual
from qdq.planning.decisions import INCOMPLETE, LeftFloat, Placement, Plan, ScaleGroup
from qdq.rules.reached_edges import find_pool_ends


def remove_placements(
    index: GraphIndex, plan: Plan, unwanted: Container[Placement], why: str
) -> Plan:
    """Return a plan without some placements and those that depend on them.

    The removed edges stay in float with the reason `why`.
    """
    kept: dict[Edge, Placement] = {}
    for scope in CompilerView(index).scopes.values():
        kept |= _kept_placements(scope, plan, unwanted)
    removed = (p.edge for p in plan.placements if p.edge not in kept)
    left_float = [LeftFloat(edge, INCOMPLETE, why) for edge in removed]
    return msgspec.structs.replace(
        plan,
        placements=tuple(kept.values()),
        left_float=(*plan.left_float, *left_float),
        scale_groups=_kept_groups(plan, kept),
    )


def _kept_placements(
    scope: CompilerView, plan: Plan, unwanted: Container[Placement]
) -> dict[Edge, Placement]:
    """Return the placements in one graph that are not unwanted and whose dependencies remain."""
    placed: dict[Edge, Placement] = {}
    for placement in plan.placements:
        if placement.edge.graph == scope.path and placement not in unwanted:
            placed[placement.edge] = placement
    for edge, _ in unmet_needs(scope, placed):
        placed.pop(edge)
    return placed


def _kept_groups(plan: Plan, kept: Iterable[Edge]) -> tuple[ScaleGroup, ...]:
    """Return the scale groups among the kept tensors; those of a single tensor are dropped."""
    quantized = {edge.qualified_tensor for edge in kept}
    groups: list[ScaleGroup] = []
    for group in plan.scale_groups:
        tensors = tuple(tensor for tensor in group.tensors if tensor in quantized)
        if len(tensors) > 1:
            reduced_group = msgspec.structs.replace(group, tensors=tensors)
            groups.append(reduced_group)
    return tuple(groups)


def find_dependents(index: GraphIndex, plan: Plan) -> dict[Edge, tuple[Edge, ...]]:
    """Return for each edge of a plan the placed edges that cannot have a pair without its pair."""
    dependents: dict[Edge, list[Edge]] = {}
    placed = {placement.edge for placement in plan.placements}
    scopes = CompilerView(index).scopes
    for edge in placed:
        for required in _required_edges(scopes[edge.graph], edge):
            if required != edge and required in placed:
                dependents.setdefault(required, []).append(edge)
    return {edge: tuple(sorted(edges)) for edge, edges in dependents.items()}


def unmet_needs(index: CompilerView, placed: dict[Edge, Placement]) -> Iterator[tuple[Edge, Edge]]:
    """Yield each placed edge with an edge that it requires and that has no pair of its type.

    All edges are those of the file.
    The caller must remove the yielded edge from `placed`. The search ends when no unmet need
    remains.
    """
    is_complete = False
    while not is_complete:
        is_complete = True
        for edge in list(placed):
            missing = _find_missing_edge(index, edge, placed)
            if missing is not None:
                is_complete = False
                yield edge, missing


def _find_missing_edge(
    index: CompilerView, edge: Edge, placed: dict[Edge, Placement]
) -> Edge | None:
    quantizer = placed[edge].quantizer
    if quantizer.is_weight_only:
        return None
    for required in _required_edges(index, edge):
        if required not in placed:
            return required
        other_quantizer = placed[required].quantizer
        if other_quantizer.dtype != quantizer.dtype:
            return required
    return None


def find_unmet_need(
    index: CompilerView, placements: Iterable[Placement]
) -> tuple[Edge, Edge] | None:
    """Return the first placed edge that requires another pair, and that edge, or None."""
    placed = {placement.edge: placement for placement in placements}
    return next(unmet_needs(index, placed), None)


def _required_edges(index: CompilerView, file_edge: Edge) -> tuple[Edge, ...]:
    """Return the edges without which a pair on this edge has only costs.

    TensorRT runs a layer in one type as a whole or not at all.
    """
    node = index.by_label.get(file_edge.node)
    if node is None:  # a pair before an alias
        return ()
    edge = index.edge(node, file_edge.slot)
    if node.op in QUANTIZABLE_POOLS:
        required = find_pool_ends(index, node)
    else:
        required = _edges_of_layer(index, node, edge)
    return tuple(map(index.file_edge, required))


def _edges_of_layer(index: CompilerView, node: Node, edge: Edge) -> tuple[Edge, ...]:
    """Return the operands of a layer for one of them, and for a skip of its sum.

    After a matrix product, an operator that multiplies the skip itself is required too.
    """
    operand_edges = operands(index, node)
    if edge in operand_edges:
        return operand_edges
    residual = find_residual(index, node)
    if residual is not None:
        return operands(index, residual.backbone) if edge.slot in residual.skips else ()
    residual = find_residual(index, node, MATRIX_PRODUCTS)
    if residual is None or edge.slot not in residual.skips:
        return ()
    required = operands(index, residual.backbone)
    tensor = find_tensor_before_casts(index, edge.tensor)
    reader = multiplied_tensors(index).get(tensor)
    return required if reader is None else (*required, reader)
