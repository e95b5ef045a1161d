"""Plans: what the rules decide for every edge, before a byte of the model changes."""

from __future__ import annotations

from qdq.planning.decisions import LeftFloat, Placement, Plan, ScaleGroup
from qdq.planning.explanation import explain
from qdq.planning.plan_diff import diff_plans
from qdq.planning.plan_file import read_plan
from qdq.planning.planner import plan

__all__ = [
    "LeftFloat",
    "Placement",
    "Plan",
    "ScaleGroup",
    "diff_plans",
    "explain",
    "plan",
    "read_plan",
]
