"""The plan: for every edge that gets a pair, the quantizer and its rules; for every other candidate, why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import msgspec

from qdq.errors import ModelError, RuleError
from qdq.graph.bodies import all_nodes, qualified_name
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.loader import load, raise_source_opset
from qdq.graph.operands import channel_axis, operands
from qdq.graph.operators import ARITHMETIC, PLANNED_BODIES
from qdq.graph.quantized_operators import is_quantized
from qdq.graph.shape_profiles import Profile, Shape, extreme_shapes, optimal_shapes, require_shapes
from qdq.graph.source import ModelLike, Source
from qdq.planning.decisions import (
    BODY,
    FUNCTION,
    INCOMPLETE,
    LeftFloat,
    Placement,
    Plan,
    ScaleGroup,
)
from qdq.planning.pair_dependencies import unmet_needs
from qdq.planning.plan_request import PlanRequest
from qdq.planning.scale_groups import DisjointSets
from qdq.quantizer import FORMATS, Quantizer
from qdq.rules.facts import Scene
from qdq.rules.kernel_tables import describe_borrowed_tables
from qdq.rules.matcher import Verdict, match_rules, require_matches
from qdq.rules.rule import RATIO_AT_MOST, RuleSet, leave_float_rule, make_rule_set
from qdq.rules.rule_files import load_rules
from qdq.target import DEFAULT_TARGET, Target


def plan(
    model: ModelLike,
    *,
    rules: RuleSet | None = None,
    targets: Iterable[Target] = (),
    leave_float: Iterable[str] = (),
    allow_unmatched: bool = False,
    profiles: Iterable[Profile] = (),
) -> Plan:
    """Return the plan that the rules make for a float model.

    `leave_float` holds globs of node names to keep in float. With no target the plan is for
    TensorRT on SM 8.0 and up. Rules about shapes go by `profiles` where the model leaves a size
    open, and by nothing else. Raises ModelError for a model that already holds Q/DQ, RuleError
    where rules disagree, UsageError for a glob that nothing matches.
    """
    source = load(model)
    require_float_model(source)
    request = PlanRequest(
        rules or load_rules(),
        tuple(targets),
        tuple(leave_float),
        allow_unmatched,
        tuple(profiles),
    )
    return plan_source(source, request)[1]


def plan_source(source: Source, request: PlanRequest) -> tuple[GraphIndex, Plan]:
    """Return the plan for a model, and the index of the model at the opset that the plan needs."""
    index = GraphIndex(source)
    plan = plan_index(index, request)
    raised = source_at_plan_opset(source, plan)
    if raised is source:
        return index, plan
    index = GraphIndex(raised)
    return index, plan_index(index, request)


def source_at_plan_opset(source: Source, plan: Plan) -> Source:
    """Return a model at the opset that a plan's types need: FP8 needs a later one than INT8."""
    needed = (placement.quantizer.element.opset for placement in plan.placements)
    return raise_source_opset(source, max(needed, default=0))


def plan_index(index: GraphIndex, request: PlanRequest) -> Plan:
    """Return the plan for a model that is indexed already.

    Bodies of If, Loop and Scan are planned as graphs of their own, each with the same rules: TensorRT-RTX
    1.7.1 runs a Conv, Gemm or MatMul in them in INT8 on sm86 and sm120 where both of its pairs stand
    inside the body. With the pair of a tensor from outside standing outside, Conv and Gemm in the
    branches of an If run in float.
    """
    request = _with_defaults(request)
    if not request.allow_unmatched:
        require_matches(index, request.rules.rules)
    profiles = request.profiles
    parts = _plan_scopes(index, optimal_shapes(profiles), request)
    left_float = [item for part in parts for item in part.left_float]
    return Plan(
        model=index.source.name,
        digest=index.source.digest,
        notes=(
            *index.source.notes,
            *describe_borrowed_tables(request.targets),
            *_describe_other_shapes(index, request, parts),
        ),
        targets=request.targets,
        rule_sets=request.rules.names,
        leave_float=request.leave_float,
        placements=tuple(p for part in parts for p in part.placements),
        left_float=(*left_float, *_skipped_bodies(index), *_functions(index)),
        scale_groups=tuple(sorted(group for part in parts for group in part.scale_groups)),
        profiles=profiles,
    )


def _with_defaults(request: PlanRequest) -> PlanRequest:
    """Return a request with the default target, and with its globs as rules."""
    return msgspec.structs.replace(
        request,
        targets=request.targets or (DEFAULT_TARGET,),
        rules=with_leave_float(request.rules, request.leave_float),
    )


def _plan_scopes(
    index: GraphIndex, shapes: Mapping[str, Shape], request: PlanRequest
) -> list[_Part]:
    """Return the decisions in each graph of a model whose inputs have some shapes."""
    require_shapes(index, shapes)
    shaped_index = GraphIndex(index.source, shapes) if shapes else index
    scopes = [scope for scope in shaped_index.scopes.values() if not _skipped(scope)]
    return [_plan_scope(Scene(scope, request.targets), request.rules) for scope in scopes]


def _describe_other_shapes(
    index: GraphIndex, request: PlanRequest, parts: list[_Part]
) -> Iterator[str]:
    """Yield a sentence for each end of the profiles at which the rules decide otherwise."""
    placed = _placed_edges(parts)
    for end, shapes in extreme_shapes(request.profiles).items():
        placed_at_end = _placed_edges(_plan_scopes(index, shapes, request))
        differing = sorted(placed ^ placed_at_end)
        if differing:
            yield f"at the {end} shapes {len(differing)} edges would be decided otherwise, such as {differing[0]}; the plan goes by opt"


def _placed_edges(parts: list[_Part]) -> set[Edge]:
    return {placement.edge for part in parts for placement in part.placements}


class _Part(msgspec.Struct, frozen=True):
    """The part of a plan that lies in one graph."""

    placements: tuple[Placement, ...]
    left_float: tuple[LeftFloat, ...]
    scale_groups: tuple[ScaleGroup, ...]


def _plan_scope(scene: Scene, rules: RuleSet) -> _Part:
    index = scene.index
    verdicts, shared = match_rules(scene, rules)
    placed = {v.edge: _placement(index, v) for v in verdicts if v.then == "quantize"}
    left = {
        v.edge: LeftFloat(v.edge, v.rules[0].name, v.rules[0].says)
        for v in verdicts
        if v.then == "leave-float"
    }
    for edge, missing in unmet_needs(index, placed):
        says = placed.pop(edge).quantizer.element.label
        why = f"needs {missing} in {says}, which {_instead(missing, placed, left)}"
        left[edge] = LeftFloat(edge, INCOMPLETE, why)
    return _Part(
        placements=tuple(placed.values()),
        left_float=tuple(_in_graph_order(index, left)),
        scale_groups=_scale_groups(
            index,
            rules,
            shared,
            {e.qualified_tensor for e, p in placed.items() if p.quantizer.calibrated},
        ),
    )


def with_leave_float(rules: RuleSet, globs: Iterable[str]) -> RuleSet:
    """Return the rule set with one more rule for each `--leave-float` glob."""
    return make_rule_set(rules.names, (*rules.rules, *map(leave_float_rule, globs)))


def find_quantized_nodes(source: Source) -> tuple[str, ...]:
    """Return the operators of the nodes that only a quantized model contains, those in bodies too."""
    return tuple(node.op_type for _, node in all_nodes(source.model.graph) if is_quantized(node))


def require_float_model(source: Source) -> None:
    """Raise ModelError where the model holds quantized operators already."""
    if found := find_quantized_nodes(source):
        raise ModelError(
            f"{source.path or source.name}: is quantized already ({len(found)} nodes such as {found[0]}); "
            "'qdq quantize' repairs it, 'qdq check' says what is in it, and 'qdq strip' gives the float model back"
        )


def _placement(index: GraphIndex, verdict: Verdict) -> Placement:
    edge, name = verdict.edge, verdict.using
    form, constant = FORMATS[name], index.is_constant(edge.tensor)
    rule = verdict.rules[0]
    if form.constant and not constant:
        raise RuleError(
            f"{rule.at('using')}: uses {name} on edge {edge}, but {edge.tensor!r} is computed; a weight format needs a constant"
        )
    if index.elem_type(edge.tensor) and not index.is_float(edge.tensor):
        raise RuleError(
            f"{rule.at('where')}: quantizes edge {edge}, but {edge.tensor!r} holds no floats; narrow the rule's 'where'"
        )
    axis = channel_axis(index, edge) if form.per_channel else None
    return Placement(edge, Quantizer(name, form.dtype, axis), tuple(r.name for r in verdict.rules))


def _instead(edge: Edge, placed: dict[Edge, Placement], left: dict[Edge, LeftFloat]) -> str:
    """Return what happens to an edge that another one needs quantized to its own type."""
    if edge in placed:
        return f"{placed[edge].because[0]} quantizes to {placed[edge].quantizer.element.label}"
    return f"{left[edge].because} leaves in float" if edge in left else "no rule asks for"


def _in_graph_order(index: GraphIndex, left: dict[Edge, LeftFloat]) -> list[LeftFloat]:
    return sorted(left.values(), key=lambda item: (index.node(item.edge).position, item.edge.slot))


def _scale_groups(
    index: GraphIndex, rules: RuleSet, shared: dict[str, tuple[Edge, ...]], quantized: set[str]
) -> tuple[ScaleGroup, ...]:
    """Return the groups of quantized activations that the matched nodes tie together.

    The matched edges of one node are tied to each other, and to what the node gives unless it
    computes that from several of them; whether a tensor is quantized or not, so that a tie reaches
    through any number of nodes.
    """
    ties = DisjointSets()
    for name, edges in shared.items():
        for node, tied in _by_node(index, edges):
            gives = () if node.op in ARITHMETIC else filter(None, node.outputs)
            ties.tie(
                (
                    *(e.qualified_tensor for e in tied),
                    *(qualified_name(index.path, o) for o in gives),
                ),
                name,
            )
    ratios = {
        name: dict(rule.given).get(RATIO_AT_MOST) for name in shared if (rule := rules.rule(name))
    }
    groups = []
    for members, names in ties.groups():
        if len(tensors := sorted(members & quantized)) > 1:
            limits = [float(ratio) for name in names if (ratio := ratios[name])]
            groups.append(
                ScaleGroup(tuple(tensors), tuple(sorted(names)), min(limits, default=None))
            )
    return tuple(sorted(groups))


def _by_node(index: GraphIndex, edges: Iterable[Edge]) -> Iterator[tuple[Node, tuple[Edge, ...]]]:
    """Yield each node with its edges; edges of one node stand together."""
    for label, own in groupby(edges, key=lambda edge: edge.node):
        yield index.by_label[label], tuple(own)


def _skipped(scope: GraphIndex) -> str:
    """Return why a graph is not planned, or "" where it is."""
    if scope.outer is None:
        return ""
    node = scope.outer.nodes[scope.position]
    if node.op not in PLANNED_BODIES:
        return f"lies in a body of {node.op}; only those of If, Loop and Scan are planned"
    if (
        node.op == "If"
        and scope.outer.is_constant(node.inputs[0])
        and bool(scope.outer.constant(node.inputs[0]).all()) != scope.path.endswith("then_branch")
    ):
        return f"never runs: the condition of {node.label} is constant"
    return _skipped(scope.outer)


def _skipped_bodies(index: GraphIndex) -> Iterator[LeftFloat]:
    for scope in index.scopes.values():
        if why := _skipped(scope):
            yield from (
                LeftFloat(both[0], BODY, why)
                for node in scope.nodes
                if (both := operands(scope, node))
            )


def _functions(index: GraphIndex) -> Iterator[LeftFloat]:
    local = {(f.domain, f.name) for f in index.source.model.functions}
    for scope in index.scopes.values() if local else ():
        for node in scope.nodes:
            if (node.proto.domain, node.proto.op_type) in local:
                edge = Edge(scope.path, node.label, 0, node.inputs[0] if node.inputs else "")
                yield LeftFloat(
                    edge,
                    FUNCTION,
                    f"calls the model's own function {node.op}, which ONNX's inliner could not write out",
                )
