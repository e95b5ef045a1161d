"""The planner: it decides by the rules which edges get a pair and which stay in float."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from qdq.arguments import require_type
from qdq.errors import ModelError, RuleError
from qdq.graph.bodies import all_nodes, qualified_name
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.loader import load
from qdq.graph.operands import block_axis, channel_axis, has_whole_blocks, operands
from qdq.graph.operators import PLANNED_BODIES
from qdq.graph.quantized_operators import is_quantized
from qdq.graph.shape_profiles import (
    ProfilesLike,
    Shape,
    extreme_shapes,
    optimal_shapes,
    require_shapes,
    to_profiles,
)
from qdq.graph.source import ModelLike, Source
from qdq.planning.decisions import (
    BODY,
    FUNCTION,
    INCOMPLETE,
    SENSITIVE,
    LeftFloat,
    Placement,
    Plan,
    ScaleGroup,
    SensitiveLayer,
)
from qdq.planning.graph_reasons import (
    describe_other_types,
    find_graph_reason,
    find_hidden_operands,
)
from qdq.planning.kept_nodes import state_kept_nodes
from qdq.planning.kernel_reasons import state_kernel_rows
from qdq.planning.pair_dependencies import unmet_needs
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.planning.plan_request import PlanRequest, choose_float_type, exact_globs, to_globs
from qdq.planning.scale_groups import find_scale_groups
from qdq.quantizer import FORMATS, Quantizer
from qdq.rules.facts import Scene
from qdq.rules.kernel_tables import describe_borrowed_tables
from qdq.rules.matcher import Verdict, match_rules, require_matches
from qdq.rules.node_selection import describe_selection, make_where
from qdq.rules.rule import (
    LEAVE_FLOAT_OPTION,
    Rule,
    RuleSet,
    leave_float_rule,
    make_rule_set,
    sensitive_rule,
)
from qdq.rules.rule_files import RulesLike, load_rules, to_rule_set
from qdq.stage_log import timed_stage
from qdq.target import DEFAULT_TARGET, TargetsLike, to_targets


def plan(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    *,
    rules: RulesLike | None = None,
    targets: TargetsLike = (),
    leave_float: str | Iterable[str] = (),
    allow_unmatched: bool = False,
    profiles: ProfilesLike = (),
    float_type: str | None = None,
) -> Plan:
    """Return the plan that the rules make for a float model.

    `leave_float` holds globs of node names to keep in float. Without targets the plan is for
    TensorRT on SM 8.0 and up. Rules about shapes use `profiles` where the model leaves a dimension
    open. `float_type` is what the float part becomes, as in `quantize`; None where the targets
    decide. Raises ModelError for a model that already holds Q/DQ, RuleError where rules disagree,
    UsageError for a glob that nothing matches.
    """
    source = load(model)
    require_float_model(source)
    require_type(allow_unmatched, bool, "allow_unmatched", "True or False")
    request = PlanRequest(
        load_rules() if rules is None else to_rule_set(rules),
        to_targets(targets),
        to_globs(leave_float),
        allow_unmatched,
        to_profiles(profiles),
        float_type=choose_float_type(float_type, to_targets(targets)),
    )
    index, plan = plan_source(source, request)
    return state_kept_nodes(plan, index, request)


@timed_stage("planning")
def plan_source(source: Source, request: PlanRequest) -> tuple[GraphIndex, Plan]:
    """Return the plan for a model, and the index of the model at the opset that the plan needs."""
    index = GraphIndex(source)
    plan = plan_index(index, request)
    raised_source = source_at_plan_opset(source, plan, index)
    if raised_source is source:
        return index, plan
    raised_index = GraphIndex(raised_source)
    return raised_index, plan_index(raised_index, request)


def plan_index(index: GraphIndex, request: PlanRequest) -> Plan:
    """Return the plan for a model that is indexed already.

    Bodies of If, Loop and Scan are planned as separate graphs, by the same rules: TensorRT-RTX
    1.7.1 runs a Conv, Gemm or MatMul in them in INT8 on sm86 and sm120 if both of its pairs are
    inside the body. If the pair of a tensor from outside is outside too, Conv and Gemm in the
    branches of an If run in float.
    """
    request = _with_defaults(index, request)
    if not request.allow_unmatched:
        require_matches(index, request.rules.rules)
    shapes, float_type = optimal_shapes(request.profiles), request.float_type
    graph_plans = _plan_graphs(index, shapes, request)
    placements: list[Placement] = []
    left_float: list[LeftFloat] = []
    scale_groups: list[ScaleGroup] = []
    for graph_plan in graph_plans:
        placements += graph_plan.placements
        left_float += graph_plan.left_float
        scale_groups += graph_plan.scale_groups
    left_float += (*_unplanned_bodies(index), *_function_calls(index))
    return Plan(
        model=index.source.name,
        digest=index.source.digest,
        notes=(
            *index.source.notes,
            *describe_borrowed_tables(request.targets),
            *describe_other_types(index, left_float),
            *_describe_other_shapes(index, request, placements),
        ),
        targets=request.targets,
        rule_sets=request.rules.names,
        leave_float=request.leave_float,
        placements=tuple(placements),
        left_float=tuple(_state_gains(left_float, request.sensitive)),
        scale_groups=tuple(sorted(scale_groups)),
        profiles=request.profiles,
        sensitive=request.sensitive or msgspec.UNSET,
        float_type=float_type.name if float_type.is_short else msgspec.UNSET,
    )


def _state_gains(
    left_float: Iterable[LeftFloat], sensitive: Iterable[SensitiveLayer]
) -> Iterator[LeftFloat]:
    """Yield the decisions, those about sensitive layers with the gain that was measured."""
    reasons = {layer.node: layer.reason for layer in sensitive}
    for item in left_float:
        reason = reasons.get(qualified_name(item.edge.graph, item.edge.node))
        if item.because == SENSITIVE and reason:
            yield LeftFloat(item.edge, SENSITIVE, reason)
        else:
            yield item


def _with_defaults(index: GraphIndex, request: PlanRequest) -> PlanRequest:
    """Return a request with the default target, and with its globs as rules."""
    rules = with_leave_float(
        index,
        request.rules,
        request.leave_float,
        request.sensitive,
        allow_unmatched=request.allow_unmatched,
    )
    targets = request.targets or (DEFAULT_TARGET,)
    return msgspec.structs.replace(request, targets=targets, rules=rules)


def with_leave_float(
    index: GraphIndex,
    rules: RuleSet,
    texts: Iterable[str],
    sensitive: Iterable[SensitiveLayer] = (),
    *,
    allow_unmatched: bool = True,
) -> RuleSet:
    """Return the rule set with a rule for each `--leave-float` text, and for sensitive layers.

    Raises UsageError for an operator or a range that the model has not, unless `allow_unmatched`.
    """
    more_rules: list[Rule] = []
    for text in texts:
        where = make_where(index, text, LEAVE_FLOAT_OPTION, allow_unmatched)
        more_rules.append(leave_float_rule(text, where, describe_selection(text)))
    labels = [layer.node for layer in sensitive]
    if labels:
        more_rules.append(sensitive_rule(SENSITIVE, exact_globs(labels)))
    return make_rule_set(rules.names, (*rules.rules, *more_rules))


def _describe_other_shapes(
    index: GraphIndex, request: PlanRequest, placements: Iterable[Placement]
) -> Iterator[str]:
    """Yield a sentence for the min and max shapes of the profiles where the decisions differ."""
    placed_edges = {placement.edge for placement in placements}
    for end, shapes in extreme_shapes(request.profiles).items():
        edges_at_end: set[Edge] = set()
        for graph_plan in _plan_graphs(index, shapes, request):
            edges_at_end.update(placement.edge for placement in graph_plan.placements)
        differing = sorted(placed_edges ^ edges_at_end)
        if differing:
            yield (
                f"At the {end} shapes, {len(differing)} edges would be decided differently, "
                f"such as {differing[0]}. The plan uses the opt shapes."
            )


class _GraphPlan(msgspec.Struct, frozen=True):
    """The decisions in one graph."""

    placements: tuple[Placement, ...]
    left_float: tuple[LeftFloat, ...]
    scale_groups: tuple[ScaleGroup, ...]


def _plan_graphs(
    index: GraphIndex, shapes: Mapping[str, Shape], request: PlanRequest
) -> list[_GraphPlan]:
    """Return the decisions in each graph of a model whose inputs have some shapes."""
    require_shapes(index, shapes)
    shaped_index = GraphIndex(index.source, shapes) if shapes else index
    graph_plans: list[_GraphPlan] = []
    for scope in CompilerView(shaped_index).scopes.values():
        if not _explain_unplanned_body(scope):
            scene = Scene(scope, request.targets, request.float_type)
            graph_plans.append(_plan_graph(scene, request))
    return graph_plans


def _plan_graph(scene: Scene, request: PlanRequest) -> _GraphPlan:
    index = scene.index.file_index
    rules = request.rules
    verdicts, shared = match_rules(scene, rules)
    placed, left_float = _decide(index, verdicts, request.plans_bfloat16)
    for edge, missing in unmet_needs(scene.index, placed):
        label = placed.pop(edge).quantizer.element.label
        outcome = _describe_decision(missing, placed, left_float)
        need = f"A pair here requires one in {label} on {missing}, which {outcome}."
        left_float[edge] = LeftFloat(edge, INCOMPLETE, need)
    calibrated = [p.edge for p in placed.values() if p.quantizer.calibrated]
    in_graph_order = _in_graph_order(index, left_float.values())
    return _GraphPlan(
        placements=tuple(placed.values()),
        left_float=tuple(state_kernel_rows(scene, rules, in_graph_order)),
        scale_groups=find_scale_groups(index, rules, shared, calibrated),
    )


def _decide(
    index: GraphIndex, verdicts: Iterable[Verdict], plans_bfloat16: bool
) -> tuple[dict[Edge, Placement], dict[Edge, LeftFloat]]:
    """Return the edges that get a pair by the verdicts of the rules, and those left in float."""
    placed: dict[Edge, Placement] = {}
    left_float: dict[Edge, LeftFloat] = {}
    for verdict in verdicts:
        if verdict.then != "quantize":
            rule = verdict.rules[0]
            left_float[verdict.edge] = LeftFloat(verdict.edge, rule.name, rule.says)
            continue
        reason = find_graph_reason(index, verdict.edge, plans_bfloat16)
        if reason is None:
            placed[verdict.edge] = _make_placement(index, verdict)
        else:
            left_float[verdict.edge] = reason
    for reason in find_hidden_operands(index, plans_bfloat16):
        left_float.setdefault(reason.edge, reason)
    return placed, left_float


def _make_placement(index: GraphIndex, verdict: Verdict) -> Placement:
    """Return the placement of a verdict; raises RuleError where the format does not fit."""
    edge = verdict.edge
    rule = verdict.rules[0]
    form = FORMATS[verdict.using]
    tensor = edge.tensor
    if form.constant and not index.is_constant(tensor):
        place = rule.at("using")
        raise RuleError(
            f"{place}: the rule uses {verdict.using} on edge {edge}, but {tensor!r} is computed. "
            "A weight format needs a constant."
        )
    if index.elem_type(tensor) and not index.is_float(tensor):
        place = rule.at("where")
        raise RuleError(
            f"{place}: the rule quantizes edge {edge}, but {tensor!r} holds no floats. "
            "Narrow the rule's 'where'."
        )
    axis = channel_axis(index, edge) if form.per_channel else None
    if form.block_size:
        axis = block_axis(index, edge)
        if axis is None or not has_whole_blocks(index, edge, form.block_size):
            raise RuleError(
                f"{rule.at('using')}: the rule uses {verdict.using} on edge {edge}, which has no "
                f"whole blocks of {form.block_size}. Narrow the rule's 'where', or add a rule with "
                "'edge: unblocked-weight' that leaves it in float."
            )
    quantizer = Quantizer(verdict.using, form.dtype, axis)
    rule_names = tuple(rule.name for rule in verdict.rules)
    return Placement(edge, quantizer, rule_names)


def _describe_decision(
    edge: Edge, placed: dict[Edge, Placement], left_float: dict[Edge, LeftFloat]
) -> str:
    """Return the decision about an edge as a relative clause."""
    if edge in placed:
        placement = placed[edge]
        rule_name = placement.because[0]
        element = placement.quantizer.element
        return f"{rule_name} quantizes to {element.label}"
    if edge in left_float:
        item = left_float[edge]
        return f"stays in float ({item.because})"
    return "no rule requests"


def _in_graph_order(index: GraphIndex, left_float: Iterable[LeftFloat]) -> list[LeftFloat]:
    def position(item: LeftFloat) -> tuple[int, int]:
        return index.node(item.edge).position, item.edge.slot

    return sorted(left_float, key=position)


def find_quantized_nodes(source: Source) -> tuple[str, ...]:
    """Return the operator of each node that only quantized models contain, in bodies too."""
    nodes = (node for _, node in all_nodes(source.model.graph))
    return tuple(node.op_type for node in nodes if is_quantized(node))


def require_float_model(source: Source) -> None:
    """Raise ModelError where the model already holds quantized operators."""
    operators = find_quantized_nodes(source)
    if operators:
        raise ModelError(
            f"{source.path or source.name}: the model is quantized already ({len(operators)} nodes "
            f"such as {operators[0]}). 'qdq quantize' fixes it, 'qdq check' inspects it, "
            "'qdq strip' restores the float model."
        )


def _explain_unplanned_body(scope: GraphIndex) -> str:
    """Return the reason why a graph is not planned, or "" where it is."""
    node = scope.owner
    if scope.outer is None or node is None:
        return ""
    if node.op not in PLANNED_BODIES:
        return f"The node is in a body of {node.op}. Only those of If, Loop and Scan are planned."
    if node.op == "If" and _is_dead_branch(scope, scope.outer, node):
        return f"The node never runs: the condition of {node.label} is constant."
    return _explain_unplanned_body(scope.outer)


def _is_dead_branch(branch: GraphIndex, outer: GraphIndex, node: Node) -> bool:
    """Whether the constant condition of an If selects the other branch."""
    condition = node.inputs[0]
    if not outer.is_constant(condition):
        return False
    runs_then_branch = bool(outer.constant(condition).all())
    return runs_then_branch != branch.path.endswith("then_branch")


def _unplanned_bodies(index: GraphIndex) -> Iterator[LeftFloat]:
    """Yield the first operand of each weighted node in a body that is not planned."""
    for scope in index.scopes.values():
        reason = _explain_unplanned_body(scope)
        if not reason:
            continue
        for node in scope.nodes:
            operand_edges = operands(scope, node)
            if operand_edges:
                yield LeftFloat(operand_edges[0], BODY, reason)


def _function_calls(index: GraphIndex) -> Iterator[LeftFloat]:
    """Yield the first input of each node that calls a function of the model."""
    functions = {(function.domain, function.name) for function in index.source.model.functions}
    if not functions:
        return
    for scope in index.scopes.values():
        for node in scope.nodes:
            if (node.proto.domain, node.proto.op_type) in functions:
                tensor = node.inputs[0] if node.inputs else ""
                reason = (
                    f"The node calls the model's function {node.op}, "
                    "which ONNX's inliner could not expand."
                )
                yield LeftFloat(Edge(scope.path, node.label, 0, tensor), FUNCTION, reason)
