"""Checks of a plan against its model: every edit that the model cannot follow is an error."""

from __future__ import annotations

import msgspec

from qdq.errors import PlanError, did_you_mean
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import channel_axis
from qdq.planning.decisions import Placement, Plan
from qdq.planning.pair_dependencies import find_unmet_need
from qdq.planning.plan_document import PlanFile
from qdq.quantizer import FORMATS


def require_edits(file: PlanFile, index: GraphIndex) -> None:
    """Raise PlanError, with file and line, for the first entry that the model cannot follow."""
    undecided_plan = msgspec.structs.replace(file.plan, placements=(), scale_groups=())
    _require_model_of_file(file, undecided_plan, index)
    for node_key in file.nodes:
        _require_node(file, index, node_key)
    for edge, line in file.lines.items():
        problem = _explain_misplaced_edge(edge, index.node(edge))
        if problem:
            raise PlanError(f"{file.path}:{line}: {problem}")
    for placement in file.plan.placements:
        _require_format(file, index, placement)
    _require_groups(file, index)
    _require_model_of_file(file, file.plan, index)
    for scope in index.scopes.values():
        _require_needs(file, scope)


def _require_model_of_file(file: PlanFile, plan: Plan, index: GraphIndex) -> None:
    try:
        require_model(plan, index)
    except PlanError as error:
        raise PlanError(f"{file.path}: {error}") from error


def _require_node(file: PlanFile, index: GraphIndex, node_key: tuple[str, str]) -> None:
    graph, label = node_key
    operator, line = file.nodes[node_key]
    place = f"{file.path}:{line}"
    scope = index.scopes.get(graph)
    if scope is None:
        hint = did_you_mean(graph, filter(None, index.scopes)) or "."
        raise PlanError(f"{place}: {index.source.name} has no body {graph!r}{hint}")
    scope_name = graph or index.source.name
    node = scope.by_label.get(label)
    if node is None:
        hint = did_you_mean(label, scope.by_label) or "."
        raise PlanError(f"{place}: {scope_name} has no node {label!r}{hint}")
    if operator and operator != node.op:
        raise PlanError(
            f"{place}: node {label!r} of {scope_name} is a {node.op}, not a {operator}."
        )


def _explain_misplaced_edge(edge: Edge, node: Node) -> str:
    """Return the reason why an edge is no input of a node, "" where it is one."""
    if edge.slot >= len(node.inputs):
        return f"{node.op} {edge.node!r} has {len(node.inputs)} inputs, so no slot {edge.slot}."
    tensor = node.inputs[edge.slot]
    if edge.tensor != tensor:
        return f"slot {edge.slot} of {edge.node!r} reads {tensor!r}, not {edge.tensor!r}."
    return ""


def _require_format(file: PlanFile, index: GraphIndex, placement: Placement) -> None:
    problem = _explain_unfit_format(placement, index.scope(placement.edge))
    if problem:
        line = file.lines[placement.edge]
        raise PlanError(f"{file.path}:{line}: {placement.quantizer} on {placement.edge}: {problem}")


def _explain_unfit_format(placement: Placement, index: GraphIndex) -> str:
    """Return the reason why a tensor cannot take a format, "" where it can."""
    tensor = placement.edge.tensor
    quantizer = placement.quantizer
    if index.elem_type(tensor) and not index.is_float(tensor):
        return f"{tensor!r} holds no floats."
    if "-weight" in quantizer.name and not index.is_constant(tensor):
        return f"{tensor!r} is computed. A weight format needs a constant."
    if not FORMATS[quantizer.name].per_channel:
        if quantizer.axis is not None:
            return "this format has one scale and no axis. Remove 'axis'."
        return ""
    required_axis = channel_axis(index, placement.edge)
    if required_axis is not None and quantizer.axis != required_axis:
        return (
            f"the output channels of {tensor!r} are on axis {required_axis}. "
            f"Write 'axis: {required_axis}'."
        )
    rank = index.rank(tensor)
    if quantizer.axis is not None and rank is not None and quantizer.axis >= rank:
        return f"{tensor!r} has {rank} axes, so no axis {quantizer.axis}."
    return ""


def _require_groups(file: PlanFile, index: GraphIndex) -> None:
    quantized = _quantized_tensors(file.plan)
    for group, line in zip(file.plan.scale_groups, file.groups, strict=True):
        for tensor in group.tensors:
            if tensor in quantized:
                continue
            if tensor in index.consumers or tensor in index.producers:
                problem = "which the plan does not quantize."
            else:
                hint = did_you_mean(tensor, quantized) or "."
                problem = f"which is no tensor of {index.source.name}{hint}"
            raise PlanError(f"{file.path}:{line}: the scale group names {tensor!r}, {problem}")


def _quantized_tensors(plan: Plan) -> set[str]:
    return {placement.edge.qualified_tensor for placement in plan.placements}


def _require_needs(file: PlanFile, scope: GraphIndex) -> None:
    """Raise PlanError where a pair in a graph lacks another pair that it requires."""
    placements = (p for p in file.plan.placements if p.edge.graph == scope.path)
    unmet = find_unmet_need(scope, placements)
    if unmet is None:
        return
    edge, missing = unmet
    raise PlanError(
        f"{file.path}:{file.lines[edge]}: a pair on {edge} has only costs unless {missing} has one "
        "of the same type. TensorRT runs a layer in that type as a whole or not at all. "
        "Quantize both or neither."
    )


def require_model(plan: Plan, index: GraphIndex) -> None:
    """Raise PlanError unless the plan was made for this very model."""
    source = index.source
    if plan.digest != source.digest:
        raise PlanError(
            f"the plan is for {plan.model} with digest {plan.digest[:12]}, but {source.name} has "
            f"{source.digest[:12]}. Make the plan again."
        )
    for placement in plan.placements:
        if not _fits_model(placement, index):
            raise PlanError(
                f"{placement.quantizer} on {placement.edge}: {source.name} has no such edge, or "
                "none that takes this format. Make the plan again."
            )
    quantized = _quantized_tensors(plan)
    for group in plan.scale_groups:
        for tensor in group.tensors:
            if tensor not in quantized:
                raise PlanError(
                    f"'scale_groups' names {tensor!r}, which the plan does not quantize. "
                    "Make the plan again."
                )


def _fits_model(placement: Placement, index: GraphIndex) -> bool:
    edge = placement.edge
    scope = index.scopes.get(edge.graph)
    if scope is None:
        return False
    node = scope.by_label.get(edge.node)
    if node is None or not 0 <= edge.slot < len(node.inputs):
        return False
    if node.inputs[edge.slot] != edge.tensor:
        return False
    if not placement.quantizer.calibrated and not scope.is_constant(edge.tensor):
        return False
    return _fits_axis(placement, scope)


def _fits_axis(placement: Placement, scope: GraphIndex) -> bool:
    quantizer = placement.quantizer
    if quantizer.axis is None:
        return True
    if not FORMATS[quantizer.name].per_channel:
        return False
    rank = scope.rank(placement.edge.tensor)
    return rank is None or 0 <= quantizer.axis < rank
