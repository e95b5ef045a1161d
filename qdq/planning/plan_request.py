"""What a plan is made with."""

from __future__ import annotations

import msgspec

from qdq.graph.shape_profiles import Profile
from qdq.rules.rule import RuleSet
from qdq.target import Target


class PlanRequest(msgspec.Struct, frozen=True):
    """The rules that decide a plan, and what they decide it for."""

    rules: RuleSet
    #: What to plan for; none for TensorRT on SM 8.0 and up.
    targets: tuple[Target, ...] = ()
    #: Globs of node names to keep in float.
    leave_float: tuple[str, ...] = ()
    #: Whether globs that match nothing are accepted.
    allow_unmatched: bool = False
    #: Shapes for rules about shapes, where the model leaves a size open.
    profiles: tuple[Profile, ...] = ()
