"""Sections about a plan: its decisions, and the search for a plan that builds."""

from __future__ import annotations

from collections import Counter

from qdq.graph.float_types import FLOAT_TYPES, FP32
from qdq.pipeline.bisection import BisectionResult
from qdq.planning.decisions import (
    BODY,
    FUNCTION,
    Plan,
    keep_fp32_lines,
    left_float_lines,
    placement_lines,
)
from qdq.reports.sections import Section, count_noun
from qdq.target import needs_fp16


def plan_summary(plan: Plan, *, is_target_default: bool) -> Section:
    """Return how many edges each rule decided.

    `is_target_default` states that the user passed no target.
    """
    lines = [_summary_line(plan, is_target_default), *plan.notes]
    if plan.float_type:
        lines.insert(1, _describe_float_type(plan))
    count = len(plan.scale_groups)
    if count:
        groups = count_noun(count, "group")
        verb = "shares" if count == 1 else "share"
        lines.append(f"{groups} of tensors {verb} a scale")
    for item in plan.left_float:
        if item.because in (BODY, FUNCTION):
            lines.append(f"left in float: {item.edge}: {item.reason}")
    headers = ("rule", "decision", "edges")
    return Section("Plan", tuple(lines), headers, tuple(_count_decisions(plan)))


def _describe_float_type(plan: Plan) -> str:
    """Return the type of what stays in float, and the target that needs it."""
    label = FLOAT_TYPES[plan.float_type or FP32.name].label
    needing = [str(target) for target in plan.targets if needs_fp16(target)]
    reason = f": {needing[0]} builds no Gemm or MatMul in FP32" if needing else ""
    return f"what stays in float becomes {label}{reason}"


def plan_sections(plan: Plan, *, is_target_default: bool) -> list[Section]:
    """Return a plan in full; `is_target_default` states that the user passed no target."""
    sections = [
        plan_summary(plan, is_target_default=is_target_default),
        Section("Quantized", tuple(placement_lines(plan))),
        Section("Left in float", tuple(left_float_lines(plan))),
    ]
    if plan.float_type:
        sections.append(Section("Computed in FP32", tuple(keep_fp32_lines(plan))))
    return sections


def build_search_section(result: BisectionResult) -> Section:
    """Return the nodes left in float so that the model builds, with the compiler's messages."""
    lines = []
    for refused in result.refused:
        nodes = ", ".join(refused.groups)
        lines.append(f"left in float: {nodes}: {refused.message}")
    builds = count_noun(result.builds, "build")
    lines.append(f"the model builds; the search took {builds}")
    return Section("Building", tuple(lines))


def _summary_line(plan: Plan, is_target_default: bool) -> str:
    targets = ", ".join(map(str, plan.targets))
    if is_target_default:
        targets = f"{targets} (no --target given: TensorRT on SM 8.0 and up)"
    rule_sets = ", ".join(plan.rule_sets)
    count = len(plan.placements)
    return f"{plan.model}: {count} edges quantized, for {targets}, rules {rule_sets}"


def _count_decisions(plan: Plan) -> list[tuple[str, str, int]]:
    """Return the rows of the table: rule, decision, number of edges."""
    quantized = Counter[str]()
    for placement in plan.placements:
        quantized.update(placement.because)
    left_float = Counter[str]()
    for item in plan.left_float:
        left_float[item.because] += 1
    rows = []
    for rule, count in sorted(quantized.items()):
        rows.append((rule, "quantize", count))
    for rule, count in sorted(left_float.items()):
        rows.append((rule, "leave in float", count))
    return rows
