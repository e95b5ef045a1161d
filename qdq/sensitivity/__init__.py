"""Sensitivity: which part of a network makes the error of its INT8, and what to leave in float."""

from __future__ import annotations

from qdq.sensitivity.budget import Budget
from qdq.sensitivity.partial_result import PartialResult
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity

__all__ = ["Budget", "CalibratedPlan", "PartialResult", "PlanSensitivity"]
