"""Search for a plan that builds: the nodes that the compiler refuses stay in float.

The result is also written as a rule file. The search calibrates nothing: every build uses
placeholder scales, because a compiler's refusal depends on types and shapes alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import msgspec
import onnx

from qdq.calibration.scales import PairScale, Scales
from qdq.engines.rtx_compiler import build_engine
from qdq.errors import ModelError, UsageError
from qdq.graph.bodies import qualified_name
from qdq.graph.float_types import FLOAT_TYPES, FP32
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.operands import is_operand
from qdq.graph.pairs import PAIR_OPERATORS
from qdq.graph.shape_inference import known_sizes
from qdq.graph.source import Source
from qdq.pipeline.bisection import (
    BisectionResult,
    CompilerRefusal,
    FloatModelRefusedError,
    find_refused_groups,
)
from qdq.pipeline.leave_float_file import LeaveFloatRule, format_leave_float_rule
from qdq.planning.decisions import Placement, Plan, group_by_pair
from qdq.planning.plan_request import PlanRequest, exact_globs
from qdq.planning.planner import plan_index
from qdq.quantizer import E4M3, INT4
from qdq.rewriting.inserter import apply_plan
from qdq.rules.rule import RuleSet
from qdq.runtime.session import Progress
from qdq.target import Target

#: The suffix of the rule file, in the place of the model's suffix.
RULE_FILE_SUFFIX = ".leave-float.yaml"

#: Builds a model with Q/DQ; returns the compiler's refusal with the labels of the nodes that it
#: names, or None where the model builds.
BuildFunction = Callable[[onnx.ModelProto], CompilerRefusal | None]

_PLACEHOLDER_SCALE = 2.0**-6

#: The names of FP8 in the messages of compilers that refuse a type and not a layer.
_TYPE_NAMES = {
    E4M3: re.compile(r"fp8|float8|e4m3", re.IGNORECASE),
    INT4: re.compile(r"int4", re.IGNORECASE),
}

#: The reason in the rule file that a search writes.
_RULE_REASON = "With all of these in float it builds; with any one of them quantized it does not."


def search_buildable_plan(
    index: GraphIndex,
    plan: Plan,
    rules: RuleSet,
    build: BuildFunction,
    progress: Progress | None = None,
) -> BisectionResult:
    """Return the nodes of a plan that must stay in float so that the rest of it builds.

    The pairs of a node are removed together, and with them the pairs that need them. Raises
    ModelError where the compiler refuses the float model too, or everything that the plan
    quantizes.
    """
    search = _PlanSearch(index, plan, rules, build, progress)
    groups = _list_groups(index, plan)
    name = index.source.name
    try:
        result = find_refused_groups(groups, search.build_without)
    except FloatModelRefusedError as error:
        raise ModelError(
            f"{name}: Q/DQ is not the cause: the compiler refuses the float model too: {error}. "
            "Choose another --target or change the model."
        ) from error
    if groups and not search.plan_without(frozenset(result.groups)).placements:
        messages = "; ".join(refused.message for refused in result.refused)
        raise ModelError(
            f"{name}: nothing that the rules quantize builds: {messages}. "
            "Choose another --target or other --rules."
        )
    return result


class _PlanSearch:
    """Builds of one plan, each with some of its nodes left in float."""

    def __init__(
        self,
        index: GraphIndex,
        plan: Plan,
        rules: RuleSet,
        build: BuildFunction,
        progress: Progress | None,
    ) -> None:
        self._index = index
        self._plan = plan
        self._rules = rules
        self._build = build
        self._progress = progress
        self._count = 0

    def plan_without(self, labels: frozenset[str]) -> Plan:
        """Return the plan with the nodes of some labels left in float."""
        if not labels:
            return self._plan
        request = PlanRequest(
            rules=self._rules,
            targets=self._plan.targets,
            leave_float=(*self._plan.leave_float, *exact_globs(labels)),
            allow_unmatched=True,
            profiles=self._plan.profiles,
            sensitive=self._plan.sensitive or (),
            float_type=FLOAT_TYPES[self._plan.float_type or FP32.name],
        )
        return plan_index(self._index, request)

    def build_without(self, labels: frozenset[str]) -> CompilerRefusal | None:
        """Build the plan with the nodes of some labels left in float; return the refusal."""
        plan = self.plan_without(labels)
        model = self._index.source.model
        if plan.placements:
            scales = _make_placeholder_scales(self._index, plan)
            model = apply_plan(self._index, plan, scales)
        model = _name_nodes_by_label(model, self._index)
        refusal = self._build(model)
        self._count += 1
        if self._progress:
            self._progress(self._count)
        if refusal is None:
            return None
        return _resolve_groups(refusal, plan, model)


def make_build_function(
    source: Source, targets: tuple[Target, ...], shapes: Mapping[str, tuple[int, ...]]
) -> BuildFunction:
    """Return a function that builds models made from `source` with TensorRT-RTX.

    It builds for every rtx target, until one refuses. Raises UsageError where no target is an rtx
    target; the function raises CompilerError where TensorRT-RTX is missing.
    """
    rtx_targets = [target for target in targets if target.backend == "rtx"]
    if not rtx_targets:
        raise UsageError(
            "--until-it-builds builds with TensorRT-RTX, and no target is an rtx target. "
            "Pass --target, such as rtx:sm86."
        )

    def build(model: onnx.ModelProto) -> CompilerRefusal | None:
        model_source = msgspec.structs.replace(source, model=model)
        for target in rtx_targets:
            engine = build_engine(model_source, target, shapes)
            if engine.failure:
                message = f"{engine.compiler} for {target}: {engine.failure}"
                return CompilerRefusal(message, engine.refused_nodes)
        return None

    return build


def leave_float_yaml(name: str, model: str, result: BisectionResult, rules: RuleSet) -> str:
    """Return the rule file that leaves in float the nodes of a search result.

    Passed to --rules with the same sets, it makes the same plan.
    """
    evidence = [f"{', '.join(refused.groups)}: {refused.message}." for refused in result.refused]
    rule = LeaveFloatRule(
        name=name,
        says=f"Leave in float what the compiler refuses in {model}.",
        because=_RULE_REASON,
        see="qdq quantize --until-it-builds",
        evidence=" ".join(evidence),
        nodes=result.groups,
    )
    return format_leave_float_rule(rule, rules)


def _list_groups(index: GraphIndex, plan: Plan) -> list[str]:
    """Return the nodes that a plan quantizes, in the order in which they are suspected.

    A residual Add or a pool depends on a weighted layer, but not the other way round. It comes
    first, so that it is suspected first.
    """
    dependent: dict[str, None] = {}
    weighted: dict[str, None] = {}
    for placement in plan.placements:
        edge = placement.edge
        groups = weighted if is_operand(index.scope(edge), edge) else dependent
        groups[_get_group(edge)] = None
    return list(dependent | weighted)


def _get_group(edge: Edge) -> str:
    """Return the label of an edge's node, after the path of its subgraph: a name for rules."""
    return qualified_name(edge.graph, edge.node)


def _make_placeholder_scales(index: GraphIndex, plan: Plan) -> Scales:
    pairs = []
    for (tensor, quantizer), placements in group_by_pair(plan).items():
        scales = (_PLACEHOLDER_SCALE,) * _count_channels(index, placements[0])
        pairs.append(PairScale(tensor, quantizer, scales))
    return Scales(plan.key, "none", "none", 0, tuple(pairs))


def _count_channels(index: GraphIndex, placement: Placement) -> int:
    """Return the number of scales of a placement, 1 without an axis."""
    quantizer = placement.quantizer
    if quantizer.axis is None:
        return 1
    scope = index.scope(placement.edge)
    tensor = placement.edge.tensor
    shape = known_sizes(scope.shape(tensor)) or scope.constant(tensor).shape
    return math.prod(quantizer.scale_shape(shape))


def _name_nodes_by_label(model: onnx.ModelProto, index: GraphIndex) -> onnx.ModelProto:
    """Return a copy in which each node of the float graph is named by its label there."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    float_nodes = (node for node in copy.graph.node if node.op_type not in PAIR_OPERATORS)
    for node, indexed_node in zip(float_nodes, index.nodes, strict=True):
        node.name = indexed_node.label
    return copy


def _resolve_groups(
    refusal: CompilerRefusal, plan: Plan, model: onnx.ModelProto
) -> CompilerRefusal:
    """Return a refusal whose nodes are groups.

    A Q or DQ stands for the nodes that read it. A message about FP8 or INT4 that names no node
    points to all groups in that type.
    """
    nodes: dict[str, None] = {}
    for name in refusal.nodes:
        nodes.update(dict.fromkeys(_find_float_nodes(model.graph, name)))
    refused = {name for name, words in _TYPE_NAMES.items() if words.search(refusal.message)}
    if nodes or not refused:
        return msgspec.structs.replace(refusal, nodes=tuple(nodes))
    suspects: dict[str, None] = {}
    for placement in plan.placements:
        if placement.quantizer.dtype in refused:
            suspects[_get_group(placement.edge)] = None
    return msgspec.structs.replace(refusal, nodes=(), suspects=tuple(suspects))


def _find_float_nodes(graph: onnx.GraphProto, name: str) -> list[str]:
    """Return the name of a node, or for a Q or DQ the names of the nodes that read its output."""
    pair_node = _find_pair_node(graph, name)
    if pair_node is None:
        return [name]
    names = []
    for reader in graph.node:
        if pair_node.output[0] in reader.input:
            names += _find_float_nodes(graph, reader.name)
    return names


def _find_pair_node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    node: onnx.NodeProto
    for node in graph.node:
        if node.name == name and node.op_type in PAIR_OPERATORS:
            return node
    return None
