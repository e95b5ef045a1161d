"""A plan that builds: what the compiler refuses of it is left in float, and written down as a rule.

Nothing is calibrated for the search. Every build uses scales that stand in for the real ones, for a
compiler's refusal follows from types and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import msgspec
import onnx
import yaml

from qdq.calibration.scales import PairScale, Scales
from qdq.engines.rtx_compiler import build_engine
from qdq.errors import ModelError, UsageError
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.operands import is_operand
from qdq.graph.pairs import PAIR_OPERATORS
from qdq.graph.source import Source
from qdq.pipeline.bisection import (
    BisectionResult,
    CompilerRefusal,
    FloatModelRefusedError,
    find_refused_groups,
)
from qdq.planning.decisions import Placement, Plan, group_by_pair
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index
from qdq.quantizer import E4M3
from qdq.rewriting.inserter import apply_plan
from qdq.rules.rule import RuleSet
from qdq.target import Target

#: The suffix that takes the place of the model's for the rule file beside it.
RULE_FILE_SUFFIX = ".leave-float.yaml"

#: Builds a model with Q/DQ, and returns the compiler's refusal with labels of nodes that it names, or None.
BuildFunction = Callable[[onnx.ModelProto], CompilerRefusal | None]

#: Called after each build with the number done.
BuildProgress = Callable[[int], None]
_STAND_IN_SCALE = 2.0**-6

#: How compilers spell FP8 where they refuse a type and not a layer.
_FP8_WORDS = re.compile(r"fp8|float8|e4m3", re.IGNORECASE)
_WIDE = 1_000_000


def search_buildable_plan(
    index: GraphIndex,
    plan: Plan,
    rules: RuleSet,
    build: BuildFunction,
    progress: BuildProgress | None = None,
) -> BisectionResult:
    """Return which nodes of a plan must be left in float so that what remains builds, with the compiler's words.

    A node's pairs are left out together, and with them those that need them. Raises ModelError where the
    compiler refuses the float model too, or all that the plan would quantize.
    """
    # A residual Add or a pool goes with the layer that it needs, but not the other way: it comes first, so that it is suspected first.
    groups = list(
        dict.fromkeys(
            _group(p.edge)
            for p in sorted(plan.placements, key=lambda p: is_operand(index.scope(p.edge), p.edge))
        )
    )
    count = 0

    def without(left: frozenset[str]) -> Plan:
        return (
            plan_index(
                index,
                PlanRequest(
                    rules,
                    plan.targets,
                    (*plan.leave_float, *exact_globs(left)),
                    True,
                    plan.profiles,
                ),
            )
            if left
            else plan
        )

    def attempt(left: frozenset[str]) -> CompilerRefusal | None:
        nonlocal count
        made = without(left)
        model = _labelled(
            apply_plan(index, made, _stand_in(index, made))
            if made.placements
            else index.source.model,
            index,
        )
        refusal = build(model)
        count += 1
        if progress:
            progress(count)
        return None if refusal is None else _pointing(refusal, made, model)

    try:
        found = find_refused_groups(groups, attempt)
    except FloatModelRefusedError as error:
        raise ModelError(
            f"{index.source.name}: Q/DQ is not the cause: the compiler refuses the float model too: {error}; choose another --target or change the model"
        ) from error
    if groups and not without(frozenset(found.groups)).placements:
        words = "; ".join(guilt.message for guilt in found.refused)
        raise ModelError(
            f"{index.source.name}: nothing that the rules quantize builds: {words}; choose another --target or other --rules"
        )
    return found


def make_build_function(
    source: Source, targets: tuple[Target, ...], shapes: Mapping[str, tuple[int, ...]]
) -> BuildFunction:
    """Return what builds a model, made from `source`, with TensorRT-RTX for every rtx target until one refuses.

    Raises UsageError where no target is an rtx target, and when called CompilerError where TensorRT-RTX is missing.
    """
    compiled = [target for target in targets if target.backend == "rtx"]
    if not compiled:
        raise UsageError(
            "--until-it-builds builds with TensorRT-RTX: name a --target such as rtx:sm86"
        )

    def build(model: onnx.ModelProto) -> CompilerRefusal | None:
        for target in compiled:
            engine = build_engine(msgspec.structs.replace(source, model=model), target, shapes)
            if engine.failure:
                return CompilerRefusal(
                    f"{engine.compiler} for {target}: {engine.failure}", engine.refused_nodes
                )
        return None

    return build


def exact_globs(labels: Iterable[str]) -> tuple[str, ...]:
    """Return a glob for each label that matches it and nothing else, in order of the labels."""
    return tuple(re.sub(r"([\[*?])", r"[\1]", label) for label in sorted(labels))


def leave_float_yaml(name: str, model: str, found: BisectionResult, rules: RuleSet) -> str:
    """Return the rule file that leaves in float what a search found: passed to --rules with the same sets, it makes the same plan."""
    rivals = [r.name for r in rules.rules if r.then == "quantize" and "*" in r.beats]
    rule = {
        "rule": name,
        "says": f"Leave in float what the compiler refuses in {model}.",
        "because": "With all of these in float it builds; with any one of them quantized it does not.",
        "see": "qdq quantize --until-it-builds",
        "evidence": " ".join(
            f"{', '.join(guilt.groups)}: {guilt.message}." for guilt in found.refused
        ),
        "where": {"named": list(exact_globs(found.groups))},
        "then": "leave-float",
        "beats": ["*", *rivals],
    }
    return yaml.safe_dump(rule, sort_keys=False, width=_WIDE, allow_unicode=True)


def _group(edge: Edge) -> str:
    """Return the node of an edge, in a body behind the body's path: a name that rules may use."""
    return qualified_name(edge.graph, edge.node)


def _stand_in(index: GraphIndex, plan: Plan) -> Scales:
    pairs = tuple(
        PairScale(tensor, quantizer, (_STAND_IN_SCALE,) * _channels(index, placements[0]))
        for (tensor, quantizer), placements in group_by_pair(plan).items()
    )
    return Scales(plan.key, "none", "none", 0, pairs)


def _channels(index: GraphIndex, placement: Placement) -> int:
    scope, tensor, axis = (
        index.scope(placement.edge),
        placement.edge.tensor,
        placement.quantizer.axis,
    )
    return (
        1
        if axis is None
        else int(
            (scope.shape(tensor) or scope.constant(tensor).shape)[axis]
            or scope.constant(tensor).shape[axis]
        )
    )


def _labelled(model: onnx.ModelProto, index: GraphIndex) -> onnx.ModelProto:
    """Return a copy in which each node of the float graph is named by its label there."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node, known in zip(
        (n for n in copy.graph.node if n.op_type not in PAIR_OPERATORS), index.nodes, strict=True
    ):
        node.name = known.label
    return copy


def _pointing(refusal: CompilerRefusal, plan: Plan, model: onnx.ModelProto) -> CompilerRefusal:
    """Return a refusal that points to groups: for a Q or DQ to the nodes behind it, and for a type that no node is named with to all of it."""
    named = tuple(
        dict.fromkeys(label for name in refusal.nodes for label in _behind(model.graph, name))
    )
    if named or not _FP8_WORDS.search(refusal.message):
        return msgspec.structs.replace(refusal, nodes=named)
    kind = dict.fromkeys(_group(p.edge) for p in plan.placements if p.quantizer.dtype == E4M3)
    return msgspec.structs.replace(refusal, nodes=(), suspects=tuple(kind))


def _behind(graph: onnx.GraphProto, name: str) -> list[str]:
    """Return the name of a node, or for a Q or DQ those of the nodes that read what it gives."""
    for node in graph.node:
        if node.name == name and node.op_type in PAIR_OPERATORS:
            return [
                label
                for reader in graph.node
                if node.output[0] in reader.input
                for label in _behind(graph, reader.name)
            ]
    return [name]
