"""Whether a plan file that people may have edited can be carried out on a model: every edit that cannot is an error with its line."""

from __future__ import annotations

import msgspec

from qdq.errors import PlanError, did_you_mean
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import channel_axis
from qdq.planning.decisions import Placement, Plan
from qdq.planning.pair_dependencies import find_unmet_need
from qdq.planning.plan_file import PlanFile
from qdq.quantizer import FORMATS


def require_edits(file: PlanFile, index: GraphIndex) -> None:
    """Raise PlanError, naming file and line, for the first entry of a plan file that the model cannot follow."""
    plan = file.plan
    _require_model(file, msgspec.structs.replace(plan, placements=(), scale_groups=()), index)
    for (graph, label), (op, line) in file.nodes.items():
        _require_node(file, index, (graph, label), op, line)
    for edge, line in file.lines.items():
        if problem := _misplaced(edge, index.node(edge)):
            raise PlanError(f"{file.path}:{line}: {problem}")
    for placement in plan.placements:
        if problem := _misfit(placement, index.scope(placement.edge)):
            raise PlanError(
                f"{file.path}:{file.lines[placement.edge]}: {placement.quantizer} on {placement.edge}: {problem}"
            )
    _require_groups(file, index)
    _require_model(file, plan, index)
    for path, scope in index.scopes.items():
        if unmet := find_unmet_need(scope, (p for p in plan.placements if p.edge.graph == path)):
            edge, missing = unmet
            raise PlanError(
                f"{file.path}:{file.lines[edge]}: a pair on {edge} only costs unless {missing} has one of the same type: "
                "TensorRT runs a layer in that type as a whole or not at all; quantize both or neither"
            )


def _require_model(file: PlanFile, plan: Plan, index: GraphIndex) -> None:
    try:
        require_model(plan, index)
    except PlanError as error:
        raise PlanError(f"{file.path}: {error}") from error


def _require_node(
    file: PlanFile, index: GraphIndex, name: tuple[str, str], op: str, line: int
) -> None:
    graph, label = name
    scope = index.scopes.get(graph)
    if scope is None:
        raise PlanError(
            f"{file.path}:{line}: {index.source.name} has no body {graph!r}{did_you_mean(graph, filter(None, index.scopes))}"
        )
    node = scope.by_label.get(label)
    if node is None:
        raise PlanError(
            f"{file.path}:{line}: {graph or index.source.name} has no node {label!r}{did_you_mean(label, scope.by_label)}"
        )
    if op and op != node.op:
        raise PlanError(
            f"{file.path}:{line}: node {label!r} of {graph or index.source.name} is a {node.op}, not a {op}"
        )


def _misplaced(edge: Edge, node: Node) -> str:
    """Return why an edge is none of a node's, "" where it is one."""
    if edge.slot >= len(node.inputs):
        return f"{node.op} {edge.node!r} has {len(node.inputs)} inputs, so no slot {edge.slot}"
    if edge.tensor != node.inputs[edge.slot]:
        return f"slot {edge.slot} of {edge.node!r} reads {node.inputs[edge.slot]!r}, not {edge.tensor!r}"
    return ""


def _misfit(placement: Placement, index: GraphIndex) -> str:
    """Return why a tensor cannot take a format, "" where it can."""
    edge, quantizer = placement.edge, placement.quantizer
    if index.elem_type(edge.tensor) and not index.is_float(edge.tensor):
        return f"{edge.tensor!r} holds no floats"
    if "-weight" in quantizer.name and not index.is_constant(edge.tensor):
        return f"{edge.tensor!r} is computed; a weight format needs a constant"
    wanted = channel_axis(index, edge) if FORMATS[quantizer.name].per_channel else None
    if wanted is not None and quantizer.axis != wanted:
        return f"the output channels of {edge.tensor!r} lie along axis {wanted}; write 'axis: {wanted}'"
    if quantizer.axis is not None and not FORMATS[quantizer.name].per_channel:
        return "this format has one scale and no axis; remove 'axis'"
    rank = index.rank(edge.tensor)
    if quantizer.axis is not None and rank is not None and quantizer.axis >= rank:
        return f"{edge.tensor!r} has {rank} axes, so no axis {quantizer.axis}"
    return ""


def _require_groups(file: PlanFile, index: GraphIndex) -> None:
    planned = {p.edge.qualified_tensor for p in file.plan.placements}
    for group, line in zip(file.plan.scale_groups, file.groups, strict=True):
        for tensor in group.tensors:
            if tensor not in planned:
                known = tensor in index.consumers or tensor in index.producers
                problem = (
                    "which the plan does not quantize"
                    if known
                    else f"which is no tensor of {index.source.name}{did_you_mean(tensor, planned)}"
                )
                raise PlanError(f"{file.path}:{line}: scale group names {tensor!r}, {problem}")


def require_model(plan: Plan, index: GraphIndex) -> None:
    """Raise PlanError unless the plan was made for this very model."""
    if plan.digest != index.source.digest:
        raise PlanError(
            f"the plan is for {plan.model} with digest {plan.digest[:12]}, but {index.source.name} has {index.source.digest[:12]}; plan again"
        )
    for placement in plan.placements:
        if not _fits(placement, index):
            raise PlanError(
                f"{placement.quantizer} on {placement.edge}: {index.source.name} has no such edge, or none that takes this format; plan again"
            )
    planned = {p.edge.qualified_tensor for p in plan.placements}
    for tensor in (t for group in plan.scale_groups for t in group.tensors):
        if tensor not in planned:
            raise PlanError(
                f"scale_groups names {tensor!r}, which the plan does not quantize; plan again"
            )


def _fits(placement: Placement, index: GraphIndex) -> bool:
    edge, quantizer = placement.edge, placement.quantizer
    if edge.graph not in index.scopes:
        return False
    index = index.scopes[edge.graph]
    node = index.by_label.get(edge.node)
    if (
        node is None
        or not 0 <= edge.slot < len(node.inputs)
        or node.inputs[edge.slot] != edge.tensor
    ):
        return False
    rank = index.rank(edge.tensor)
    fits = quantizer.axis is None or (
        FORMATS[quantizer.name].per_channel and (rank is None or 0 <= quantizer.axis < rank)
    )
    return fits and (quantizer.calibrated or index.is_constant(edge.tensor))
