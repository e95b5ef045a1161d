"""The check of a quantized model: its nodes against the format, and its pairs against the plan.

The plan is that of the float graph, which is the model without its pairs. It is made with the same
rules as for quantization; the checks do not implement them a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from qdq.arguments import require_type
from qdq.checking.finding import Finding, make_finding
from qdq.checking.float_checks import check_float_part
from qdq.checking.format_checks import FormatCheck, PairEdges, check_operators
from qdq.checking.pair_comparison import Comparison, compare_pairs
from qdq.checking.placement_checks import check_placement
from qdq.checking.problem import ERROR
from qdq.checking.scale_checks import check_pair_types, check_scale_axes, check_scale_groups
from qdq.checking.structure_checks import check_structure
from qdq.checking.weight_checks import check_weight_scales
from qdq.errors import ModelError, UsageError
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.loader import load
from qdq.graph.metadata import (
    LEAVE_FLOAT_KEY,
    RULES_KEY,
    SENSITIVE_KEY,
    SHAPES_KEY,
    TARGETS_KEY,
)
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.quantized_operators import is_quantized_id
from qdq.graph.shape_profiles import Profile, parse_profile
from qdq.graph.source import ModelLike, Source
from qdq.planning.block_pairs import keep_block_pairs
from qdq.planning.decisions import Plan, SensitiveLayer, parse_sensitive_layer
from qdq.planning.plan_request import PlanRequest, to_globs
from qdq.planning.planner import plan_index
from qdq.quantized.model import QuantizedModel
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import RulesLike, load_rules, to_rule_set
from qdq.rules.shipped import default_rule_sets, shipped_sets
from qdq.target import Target, TargetsLike, parse_target, to_targets

_Parsed = TypeVar("_Parsed")

#: Findings about a pair's format that explain why its scales are not along the planned axis.
_SCALE_CODES = ("default-axis", "scale-count", "scale-not-constant")

#: Findings about the axis of scales, which they explain.
_AXIS_CODES = ("wrong-axis", "channel-scales", "weight-per-tensor")


def check(
    model: ModelLike,
    *,
    rules: RulesLike | None = None,
    targets: TargetsLike = (),
    leave_float: str | Iterable[str] | None = None,
    weights: bool = True,
) -> tuple[Finding, ...]:
    """Return the findings about a model's Q/DQ; none for a model that is as the rules ask.

    Rules, targets and globs that are not passed are those that qdq wrote into the model, else the
    defaults. The values of weights are read only where `weights` is true. Raises ModelError for a
    model that cannot be read, and for a model without a plan that TensorRT's parser would accept.
    """
    require_type(weights, bool, "weights", "True or False")
    source = load(model)
    graph = QdqGraph(source.model.graph, source.location)
    operator_findings = tuple(check_operators(graph))
    try:
        comparison = compare_with_plan(
            source, rules=rules, targets=targets, leave_float=leave_float, graph=graph
        )
    except ModelError:
        findings = (*operator_findings, *FormatCheck(source, graph, {}, None).findings())
        if any(finding.severity == ERROR for finding in findings):
            return findings
        raise
    return tuple(_check_comparison(comparison, operator_findings, weights))


def check_applied(
    source: Source, float_index: GraphIndex, plan: Plan, rules: RuleSet
) -> tuple[Finding, ...]:
    """Return the findings about a model that a plan was applied to, without those about weights.

    `float_index` is that of the planned model. `apply_plan` verified that stripping restores it, so
    that nothing is stripped or planned again.
    """
    quantized = QuantizedModel(source, float_index)
    operator_findings = tuple(check_operators(quantized.original_graph))
    comparison = compare_pairs(quantized, plan, rules)
    return tuple(_check_comparison(comparison, operator_findings, weights=False))


def read_plan_request(
    quantized: QuantizedModel,
    *,
    rules: RulesLike | None = None,
    targets: TargetsLike = (),
    leave_float: str | Iterable[str] | None = None,
) -> PlanRequest:
    """Return the request that a model is planned with.

    A setting that is None or empty is taken from the metadata that qdq wrote into the model, else
    from the defaults for the types in the model.
    """
    source = quantized.original
    metadata = _read_metadata(source)
    if leave_float is None:
        leave_float = _split_lines(metadata, LEAVE_FLOAT_KEY)
    if rules is None:
        rules = load_rules(_recorded_rule_sets(metadata) or default_rule_sets(source))
    return PlanRequest(
        to_rule_set(rules),
        to_targets(targets) or recorded_targets(source),
        to_globs(leave_float),
        allow_unmatched=True,
        profiles=_recorded_profiles(metadata, source),
        plans_bfloat16=quantized.has_bfloat16_layers,
        sensitive=recorded_sensitive_layers(source),
    )


def compare_with_plan(
    model: ModelLike,
    *,
    rules: RulesLike | None = None,
    targets: TargetsLike = (),
    leave_float: str | Iterable[str] | None = None,
    graph: QdqGraph | None = None,
) -> Comparison:
    """Return the comparison of a model with the plan of its float graph.

    The defaults are those of `check`. `graph` is the model's main graph where it was read before.
    """
    quantized = QuantizedModel(model, graph=graph)
    request = read_plan_request(quantized, rules=rules, targets=targets, leave_float=leave_float)
    plan = plan_index(quantized.index, request)
    plan = keep_block_pairs(quantized, plan, request.rules)
    return compare_pairs(quantized, plan, request.rules)


def recorded_targets(source: Source) -> tuple[Target, ...]:
    """Return the targets that qdq wrote into a model, none where it wrote none.

    Raises ModelError for names that are not targets.
    """
    names = _read_metadata(source).get(TARGETS_KEY, "").split()
    try:
        return tuple(parse_target(name) for name in names)
    except UsageError as error:
        reason = str(error).rstrip(".")
        raise ModelError(
            f"{source.name}: the metadata entry {TARGETS_KEY!r} is invalid: {reason}. "
            "Pass --target."
        ) from error


def _read_metadata(source: Source) -> dict[str, str]:
    return {entry.key: entry.value for entry in source.model.metadata_props}


def _split_lines(metadata: dict[str, str], key: str) -> list[str]:
    """Return the lines of a metadata entry that are not empty."""
    return [line for line in metadata.get(key, "").split("\n") if line]


def _recorded_rule_sets(metadata: dict[str, str]) -> tuple[str, ...]:
    """Return the shipped rule sets that qdq wrote into a model."""
    names = _split_lines(metadata, RULES_KEY)
    return tuple(name for name in names if name in shipped_sets())


def recorded_sensitive_layers(source: Source) -> tuple[SensitiveLayer, ...]:
    """Return the layers that qdq left in float by measurement, as it wrote them into a model.

    Raises ModelError for an entry that cannot be read.
    """
    return _parse_lines(source, _read_metadata(source), SENSITIVE_KEY, parse_sensitive_layer)


def _recorded_profiles(metadata: dict[str, str], source: Source) -> tuple[Profile, ...]:
    """Return the shape profiles that qdq wrote into a model."""
    return _parse_lines(source, metadata, SHAPES_KEY, parse_profile)


def _parse_lines(
    source: Source, metadata: dict[str, str], key: str, parse: Callable[[str], _Parsed]
) -> tuple[_Parsed, ...]:
    """Return the items in the lines of a metadata entry; raises ModelError for invalid ones."""
    try:
        return tuple(parse(text) for text in _split_lines(metadata, key))
    except UsageError as error:
        reason = str(error).rstrip(".")
        raise ModelError(
            f"{source.name}: the metadata entry {key!r} is invalid: {reason}. Remove it."
        ) from error


def _check_comparison(
    comparison: Comparison, operator_findings: tuple[Finding, ...], weights: bool
) -> Iterator[Finding]:
    """Yield all findings about a model, with those about unsupported operators first."""
    quantized = comparison.quantized
    if not any(is_quantized_id(*operator) for operator in quantized.original_graph.all_operators):
        yield from _check_float_model(comparison)
        yield from check_float_part(comparison)
        return
    yield from operator_findings
    format_check = FormatCheck(
        quantized.original, quantized.original_graph, _edges_by_pair(quantized), quantized.index
    )
    format_findings = tuple(format_check.findings())
    yield from format_findings
    if operator_findings:  # a pair that such an operator is converted to is not in the file
        return
    yield from check_structure(quantized)
    yield from _check_against_plan(comparison, format_findings, frozenset(format_check.rescaled))
    if weights:
        yield from check_weight_scales(quantized)
    yield from check_float_part(comparison)


def _check_float_model(comparison: Comparison) -> Iterator[Finding]:
    count = len(comparison.plan.placements)
    if count:
        problem = f"the model holds no Q/DQ; the rules would quantize {count} edges"
        yield make_finding("not-quantized", "", problem)


def _check_against_plan(
    comparison: Comparison, format_findings: tuple[Finding, ...], rescaled: frozenset[str]
) -> Iterator[Finding]:
    """Yield the differences from the plan that no finding about the format explains."""
    explained: set[str] = set()
    for finding in format_findings:
        if finding.code in _SCALE_CODES:
            explained.add(finding.where)
    differences = (
        *check_placement(comparison, rescaled),
        *check_scale_axes(comparison),
        *check_pair_types(comparison),
        *check_scale_groups(comparison),
    )
    for finding in differences:
        if finding.where not in explained or finding.code not in _AXIS_CODES:
            yield finding


def _edges_by_pair(quantized: QuantizedModel) -> PairEdges:
    edges: dict[tuple[str, str], tuple[Edge, ...]] = {}
    for quantized_edge in quantized.edges:
        edge = quantized_edge.edge
        key = (edge.graph, quantized_edge.pair.output)
        edges[key] = (*edges.get(key, ()), edge)
    return edges
