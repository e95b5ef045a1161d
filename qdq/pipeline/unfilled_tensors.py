"""Plans without the tensors that no sample filled with values: they have no range.

An operator such as Compress or NonMaxSuppression may select nothing in every sample. The nodes that
read its result stay in float, and the others are quantized.
"""

from __future__ import annotations

from collections.abc import Iterable

from qdq.graph.bodies import qualified_name
from qdq.graph.float_types import FLOAT_TYPES, FP32
from qdq.planning.decisions import Placement, Plan
from qdq.planning.plan_request import PlanRequest, exact_globs
from qdq.ranges.tensor_ranges import Ranges
from qdq.rules.rule import RuleSet


def make_filled_request(
    plan: Plan, rules: RuleSet, unfilled: Iterable[Placement], plans_bfloat16: bool
) -> PlanRequest:
    """Return the request for a plan again, with the nodes of some placements left in float."""
    labels = {qualified_name(item.edge.graph, item.edge.node) for item in unfilled}
    return PlanRequest(
        rules=rules,
        targets=plan.targets,
        leave_float=(*plan.leave_float, *exact_globs(labels)),
        allow_unmatched=True,
        profiles=plan.profiles,
        plans_bfloat16=plans_bfloat16,
        sensitive=plan.sensitive or (),
        float_type=FLOAT_TYPES[plan.float_type or FP32.name],
    )


def has_all_tensors(plan: Plan, ranges: Ranges) -> bool:
    """Whether every activation of a plan was observed."""
    observed = set(ranges.tensors)
    for placement in plan.placements:
        if placement.quantizer.calibrated and placement.edge.qualified_tensor not in observed:
            return False
    return True
