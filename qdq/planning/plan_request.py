"""The request for a plan: its rules, targets, globs and shapes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qdq.arguments import list_texts
from qdq.graph.float_types import FP16, FP32, FloatType, parse_float_type
from qdq.graph.shape_profiles import Profile
from qdq.planning.decisions import SensitiveLayer
from qdq.rules.node_selection import exact_glob
from qdq.rules.rule import RuleSet
from qdq.target import Target, needs_fp16


class PlanRequest(msgspec.Struct, frozen=True):
    """The rules that decide a plan, and the conditions that it is made for."""

    rules: RuleSet
    #: The targets of the plan; none means TensorRT on SM 8.0 and up.
    targets: tuple[Target, ...] = ()
    #: Globs of node names to keep in float.
    leave_float: tuple[str, ...] = ()
    #: Whether globs that match nothing are accepted.
    allow_unmatched: bool = False
    #: Shapes for rules about shapes, where the model leaves a dimension open.
    profiles: tuple[Profile, ...] = ()
    #: Whether layers in bfloat16 are planned, as in a model that has pairs on such layers already.
    plans_bfloat16: bool = False
    #: The layers to leave in float because they were measured to be sensitive.
    sensitive: tuple[SensitiveLayer, ...] = ()
    #: The type that the float part of the model gets after its pairs are inserted.
    float_type: FloatType = FP32


def choose_float_type(name: str | None, targets: Iterable[Target]) -> FloatType:
    """Return the type of the float part: without a name FP16 where a target builds no FP32 Gemm.

    Raises UsageError for an unknown name.
    """
    if name is not None:
        return parse_float_type(name, "float_type")
    return FP16 if any(map(needs_fp16, targets)) else FP32


def to_globs(globs: str | Iterable[str]) -> tuple[str, ...]:
    """Return the globs of nodes to keep in float; raises UsageError for what is not text."""
    return list_texts(globs, "leave_float", "globs of node names, such as '/head/*'")


def exact_globs(labels: Iterable[str]) -> tuple[str, ...]:
    """Return one glob per label that matches this label alone, in order of the labels."""
    return tuple(map(exact_glob, sorted(labels)))
