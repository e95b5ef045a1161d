"""Sensitivity: which part of a network makes the error of its INT8, and what to leave in float."""

from __future__ import annotations

from qdq.sensitivity.budget import Budget, search_budget
from qdq.sensitivity.guard import guard_plan
from qdq.sensitivity.layer_groups import LayerGroup, find_layer_groups
from qdq.sensitivity.partial_result import PartialResult
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity

__all__ = [
    "Budget",
    "CalibratedPlan",
    "LayerGroup",
    "PartialResult",
    "PlanSensitivity",
    "find_layer_groups",
    "guard_plan",
    "search_budget",
]
