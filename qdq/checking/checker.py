"""`check`: what is wrong with a quantized model, from the nodes as they stand and from the plan of its float graph.

The model is stripped and planned with the same rules; there is no second implementation of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qdq.checking.catalogue import ERROR
from qdq.checking.finding import Finding, make_finding
from qdq.checking.format_checks import Edges, FormatCheck, check_operators
from qdq.checking.placement_checks import (
    Comparison,
    check_pair_types,
    check_placement,
    check_scale_groups,
    compare_pairs,
)
from qdq.checking.structure_checks import check_structure
from qdq.checking.weight_checks import check_weight_scales
from qdq.errors import ModelError, UsageError
from qdq.graph.index import Edge
from qdq.graph.loader import load
from qdq.graph.metadata import LEAVE_FLOAT_KEY, RULES_KEY, SHAPES_KEY, TARGETS_KEY
from qdq.graph.shape_profiles import Profile, parse_profile
from qdq.graph.source import ModelLike, Source
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import find_quantized_nodes, plan_index
from qdq.quantized.model import QuantizedModel
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import load_rules
from qdq.rules.shipped import default_rule_sets, shipped_sets
from qdq.target import Target, parse_target


def check(
    model: ModelLike,
    *,
    rules: RuleSet | None = None,
    targets: Iterable[Target] = (),
    leave_float: Iterable[str] | None = None,
    weights: bool = True,
) -> tuple[Finding, ...]:
    """Return what is wrong with a model's Q/DQ, nothing for a model that is as the rules want it.

    Rules, targets and globs that are not given are those that qdq wrote into the model, else the
    defaults. The values of weights are only read where `weights` is true. Raises ModelError for a model that
    cannot be read, and for one that no plan can be made for and that TensorRT's parser would take.
    """
    source = load(model)
    refused = tuple(check_operators(source))
    try:
        compared = compare_with_plan(source, rules=rules, targets=targets, leave_float=leave_float)
    except ModelError:
        formats = tuple(FormatCheck(source, {}, None).findings())
        if not any(finding.severity == ERROR for finding in (*refused, *formats)):
            raise
        return (*refused, *formats)
    return tuple(_findings(compared, refused, weights))


def read_plan_request(
    source: Source,
    *,
    rules: RuleSet | None = None,
    targets: Iterable[Target] = (),
    leave_float: Iterable[str] | None = None,
) -> PlanRequest:
    """Return the request that a model is planned with.

    What is None or empty is taken from the metadata that qdq wrote into the model, else from the
    defaults for the types that it holds.
    """
    metadata = {entry.key: entry.value for entry in source.model.metadata_props}
    if leave_float is None:
        leave_float = filter(None, metadata.get(LEAVE_FLOAT_KEY, "").split("\n"))
    return PlanRequest(
        rules or load_rules(_recorded_rule_sets(metadata) or default_rule_sets(source)),
        tuple(targets) or recorded_targets(source),
        tuple(leave_float),
        allow_unmatched=True,
        profiles=_written_profiles(metadata, source),
    )


def _recorded_rule_sets(metadata: dict[str, str]) -> tuple[str, ...]:
    """Return the shipped rule sets that qdq wrote into a model."""
    names = metadata.get(RULES_KEY, "").split("\n")
    return tuple(name for name in names if name in shipped_sets())


def compare_with_plan(
    model: ModelLike,
    *,
    rules: RuleSet | None = None,
    targets: Iterable[Target] = (),
    leave_float: Iterable[str] | None = None,
) -> Comparison:
    """Return a model against the plan of its float graph, edge by edge; defaults as for `check`."""
    quantized = QuantizedModel(model)
    request = read_plan_request(
        quantized.original, rules=rules, targets=targets, leave_float=leave_float
    )
    plan = plan_index(quantized.index, request)
    return compare_pairs(quantized, plan, request.rules)


#: Findings about a pair's scales that say more than that they are not the planned ones.
_SCALES_TOLD = ("default-axis", "scale-count", "scale-not-constant")
_AXES = ("wrong-axis", "channel-scales", "weight-per-tensor")


def _findings(
    compared: Comparison, refused: tuple[Finding, ...], weights: bool
) -> Iterator[Finding]:
    quantized = compared.quantized
    if not find_quantized_nodes(quantized.original):
        if count := len(compared.wanted.placements):
            yield make_finding(
                "not-quantized", "", f"holds no Q/DQ; the rules would quantize {count} edges"
            )
        return
    yield from refused
    checked = FormatCheck(quantized.original, _edges_by_pair(quantized), quantized.index)
    formats = tuple(checked.findings())
    yield from formats
    if refused:  # what they become when converted is no pair of the file
        return
    yield from check_structure(quantized)
    told = {finding.where for finding in formats if finding.code in _SCALES_TOLD}
    for finding in (
        *check_placement(compared, frozenset(checked.rescaled)),
        *check_pair_types(compared),
        *check_scale_groups(compared),
    ):
        if not (finding.where in told and finding.code in _AXES):
            yield finding
    if weights:
        yield from check_weight_scales(quantized)


def _edges_by_pair(quantized: QuantizedModel) -> Edges:
    edges: dict[tuple[str, str], tuple[Edge, ...]] = {}
    for each in quantized.edges:
        key = (each.edge.graph, each.pair.output)
        edges[key] = (*edges.get(key, ()), each.edge)
    return edges


def recorded_targets(source: Source) -> tuple[Target, ...]:
    """Return the targets that qdq wrote into a model, none where it wrote none; raises ModelError for words that are no targets."""
    written = {p.key: p.value for p in source.model.metadata_props}
    try:
        return tuple(parse_target(t) for t in written.get(TARGETS_KEY, "").split())
    except UsageError as error:
        raise ModelError(
            f"{source.name}: its metadata {TARGETS_KEY!r} names an {error}; pass --target"
        ) from error


def _written_profiles(written: dict[str, str], source: Source) -> tuple[Profile, ...]:
    try:
        return tuple(
            parse_profile(text) for text in filter(None, written.get(SHAPES_KEY, "").split("\n"))
        )
    except UsageError as error:
        raise ModelError(
            f"{source.name}: its metadata {SHAPES_KEY!r} holds {error}; remove it"
        ) from error
