"""Checks of a plan against its model: every edit that the model cannot follow is an error."""

from __future__ import annotations

import msgspec

from qdq.arguments import require_type
from qdq.errors import PlanError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import block_axis, channel_axis, has_whole_blocks
from qdq.planning.decisions import Placement, Plan
from qdq.planning.pair_dependencies import find_unmet_need
from qdq.planning.plan_document import PlanFile
from qdq.quantizer import FORMATS, Quantizer


def require_edits(file: PlanFile, index: GraphIndex) -> None:
    """Raise PlanError, with file and line, for the first entry that the model cannot follow."""
    undecided_plan = msgspec.structs.replace(file.plan, placements=(), scale_groups=())
    _require_model_of_file(file, undecided_plan, index)
    for node_key in file.nodes:
        _require_node(file, index, node_key)
    for edge in file.lines:
        node = index.node(edge)
        problem = _explain_misplaced_edge(edge, node)
        if problem:
            place = file.edge_place(edge)
            raise PlanError(f"{place}: {problem}")
    for placement in file.plan.placements:
        _require_format(file, index, placement)
    _require_groups(file, index)
    _require_kept(file, index)
    _require_model_of_file(file, file.plan, index)
    for scope in CompilerView(index).scopes.values():
        _require_needs(file, scope)


def _require_model_of_file(file: PlanFile, plan: Plan, index: GraphIndex) -> None:
    try:
        require_model(plan, index)
    except PlanError as error:
        raise PlanError(f"{file.path}: {error}") from error


def _require_node(file: PlanFile, index: GraphIndex, node_key: tuple[str, str]) -> None:
    graph, label = node_key
    operator, line = file.nodes[node_key]
    place = file.place(line)
    scope = index.scopes.get(graph)
    if scope is None:
        bodies = filter(None, index.scopes)
        hint = did_you_mean(graph, bodies) or "."
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
    count = len(node.inputs)
    if edge.slot >= count:
        return f"{node.op} {edge.node!r} has {count} inputs, so no slot {edge.slot}."
    tensor = node.inputs[edge.slot]
    if edge.tensor != tensor:
        return f"slot {edge.slot} of {edge.node!r} reads {tensor!r}, not {edge.tensor!r}."
    return ""


def _require_format(file: PlanFile, index: GraphIndex, placement: Placement) -> None:
    edge = placement.edge
    scope = index.scope(edge)
    problem = _explain_unfit_format(placement, scope)
    if problem:
        place = file.edge_place(edge)
        raise PlanError(f"{place}: {placement.quantizer} on {edge}: {problem}")


def _explain_unfit_format(placement: Placement, index: GraphIndex) -> str:
    """Return the reason why a tensor cannot take a format, "" where it can."""
    tensor = placement.edge.tensor
    quantizer = placement.quantizer
    if index.elem_type(tensor) and not index.is_float(tensor):
        return f"{tensor!r} holds no floats."
    if "-weight" in quantizer.name and not index.is_constant(tensor):
        return f"{tensor!r} is computed. A weight format needs a constant."
    form = FORMATS[quantizer.name]
    if form.block_size:
        return _explain_unfit_blocks(placement.edge, quantizer, index)
    if form.per_channel:
        return _explain_unfit_axis(placement.edge, quantizer.axis, index)
    if quantizer.axis is not None:
        return "this format has one scale and no axis. Remove 'axis'."
    return ""


def _explain_unfit_blocks(edge: Edge, quantizer: Quantizer, index: GraphIndex) -> str:
    """Return the reason why a weight has no whole blocks along an axis, "" where it has."""
    axis = block_axis(index, edge)
    if axis is None:
        return f"{edge.tensor!r} is no matrix that a Gemm or MatMul multiplies with."
    if quantizer.axis != axis:
        return f"the blocks of {edge.tensor!r} are along axis {axis}. Write 'axis: {axis}'."
    if not has_whole_blocks(index, edge, quantizer.block_size):
        return f"axis {axis} of {edge.tensor!r} has no whole blocks of {quantizer.block_size}."
    return ""


def _explain_unfit_axis(edge: Edge, axis: int | None, index: GraphIndex) -> str:
    """Return the reason why a tensor has no channels along an axis, "" where it may have."""
    required_axis = channel_axis(index, edge)
    if required_axis is not None and axis != required_axis:
        return (
            f"the output channels of {edge.tensor!r} are on axis {required_axis}. "
            f"Write 'axis: {required_axis}'."
        )
    rank = index.rank(edge.tensor)
    if axis is None or rank is None or axis < rank:
        return ""
    return f"{edge.tensor!r} has {rank} axes, so no axis {axis}."


def _require_groups(file: PlanFile, index: GraphIndex) -> None:
    quantized = _quantized_tensors(file.plan)
    for group, line in zip(file.plan.scale_groups, file.groups, strict=True):
        for tensor in group.tensors:
            if tensor in quantized:
                continue
            place = file.place(line)
            if tensor in index.consumers or tensor in index.producers:
                problem = "which the plan does not quantize."
            else:
                hint = did_you_mean(tensor, quantized) or "."
                problem = f"which is no tensor of {index.source.name}{hint}"
            raise PlanError(f"{place}: the scale group names {tensor!r}, {problem}")


def _require_kept(file: PlanFile, index: GraphIndex) -> None:
    labels = {
        qualified_name(path, label)
        for path, scope in index.scopes.items()
        for label in scope.by_label
    }
    for kept, line in zip(file.plan.keep_fp32 or (), file.kept, strict=True):
        if kept.node not in labels:
            hint = did_you_mean(kept.node, labels) or "."
            raise PlanError(
                f"{file.place(line)}: {index.source.name} has no node {kept.node!r}{hint}"
            )


def _quantized_tensors(plan: Plan) -> set[str]:
    return {placement.edge.qualified_tensor for placement in plan.placements}


def _require_needs(file: PlanFile, scope: CompilerView) -> None:
    """Raise PlanError where a pair in a graph lacks another pair that it requires."""
    placements = (p for p in file.plan.placements if p.edge.graph == scope.path)
    unmet = find_unmet_need(scope, placements)
    if unmet is None:
        return
    edge, missing = unmet
    place = file.edge_place(edge)
    raise PlanError(
        f"{place}: a pair on {edge} has only costs unless {missing} has one of the same type. "
        "TensorRT runs a layer in that type as a whole or not at all. "
        "Quantize both or neither."
    )


def require_plan(plan: object) -> None:
    """Raise UsageError for an argument that is no plan, such as the path of one."""
    require_type(plan, Plan, "plan", "what qdq.plan returns")


def require_model(plan: Plan, index: GraphIndex) -> None:
    """Raise PlanError unless the plan was made for this very model."""
    source = index.source
    if plan.digest != source.digest:
        plan_digest = plan.digest[:12]
        model_digest = source.digest[:12]
        raise PlanError(
            f"the plan is for {plan.model} with digest {plan_digest}, "
            f"but {source.name} has {model_digest}. Make the plan again."
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
    quantizer = placement.quantizer
    if not quantizer.calibrated and not scope.is_constant(edge.tensor):
        return False
    rank = scope.rank(edge.tensor)
    return _fits_rank(quantizer, rank)


def _fits_rank(quantizer: Quantizer, rank: int | None) -> bool:
    """Whether a tensor of some rank, None for unknown, has the axis of a quantizer."""
    axis = quantizer.axis
    if axis is None:
        return True
    form = FORMATS[quantizer.name]
    if not form.per_channel and not form.block_size:
        return False
    return rank is None or 0 <= axis < rank
