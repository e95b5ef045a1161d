"""Reasons for layers left in float that name the row of a kernel table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from qdq.graph.index import Edge
from qdq.planning.decisions import LeftFloat, Plan
from qdq.quantizer import E4M3, FORMATS, INT4
from qdq.rules.block_facts import LACKS_INT4_KERNEL
from qdq.rules.facts import Scene
from qdq.rules.kernel_tables import explain_missing_block_kernel, explain_missing_kernel
from qdq.rules.rule import Rule, RuleSet


def state_kernel_rows(
    scene: Scene, rules: RuleSet, left_float: Iterable[LeftFloat]
) -> Iterator[LeftFloat]:
    """Yield the decisions of a graph, with the rows of kernel tables that say the same.

    A row is added where a rule about targets, or about INT4 kernels, leaves in float what another
    rule quantizes to FP8 or INT4.
    """
    for item in left_float:
        rule = rules.rule(item.because)
        if rule is not None and _is_about_kernels(rule):
            yield _add_row(scene, rules, rule, item)
        else:
            yield item


def is_refused_by_target(plan: Plan, rules: RuleSet) -> bool:
    """Whether a rule about targets leaves in float what other rules quantize."""
    for item in plan.left_float:
        rule = rules.rule(item.because)
        if rule is not None and rule.where.target is not None and rule.beats:
            return True
    return False


def _is_about_kernels(rule: Rule) -> bool:
    return rule.where.target is not None or LACKS_INT4_KERNEL in rule.where.edge


def _add_row(scene: Scene, rules: RuleSet, rule: Rule, item: LeftFloat) -> LeftFloat:
    """Return a decision with the row of the first target that has one."""
    for name in rule.beats:
        beaten = rules.rule(name)
        if beaten is None or not beaten.using:
            continue
        row = _find_row(scene, item.edge, beaten.using)
        if row:
            reason = f"{item.reason.rstrip('.')}. {row}"
            return msgspec.structs.replace(item, reason=reason)
    return item


def _find_row(scene: Scene, edge: Edge, using: str) -> str | None:
    """Return the row that refuses a format on an edge, or None."""
    form = FORMATS[using]
    index, float_type = scene.index, scene.float_type
    for target in scene.targets:
        row = None
        if form.dtype == INT4:
            row = explain_missing_block_kernel(index, edge, target, form.block_size, float_type)
        elif form.dtype == E4M3:
            node = index.node(edge)
            row = explain_missing_kernel(index, node, target, "fp8", float_type)
        if row:
            return row
    return None
