"""What recovery works on: a calibrated plan and what it was made with."""

from __future__ import annotations

import msgspec

from qdq.calibration.methods import Method
from qdq.data.feeds import DataLike, FeedSample
from qdq.data.sample_recorder import read_samples_again
from qdq.graph.float_types import FLOAT_TYPES, FP32
from qdq.observers.collection import Observing
from qdq.pipeline.recovery_options import Recovery
from qdq.planning.decisions import Plan
from qdq.planning.plan_request import PlanRequest
from qdq.ranges.given_ranges import GivenRanges, GivenSummary
from qdq.rules.rule import RuleSet
from qdq.sensitivity.plan_sensitivity import CalibratedPlan

#: Below this gain in dB a model stays as it is.
LEAST_GAIN_DB = 1.0


class RecoveryStep(msgspec.Struct, frozen=True):
    """One method that was tried, and what it gained."""

    #: "equalize", "clip", "refine", "gptq" or "bias".
    method: str
    #: How many tensors or layers it changed.
    places: int
    #: The signal-to-noise ratio in dB without and with it: at the scores, before a final Softmax
    #: or Sigmoid; for "gptq" and "bias" at the outputs.
    before_db: float
    after_db: float
    is_kept: bool


class RecoveryJob(msgspec.Struct, frozen=True):
    """A calibrated plan, and what it was made with."""

    calibrated: CalibratedPlan
    rules: RuleSet
    method: Method
    given_ranges: GivenRanges | None
    summary: GivenSummary | None
    data: DataLike
    batch: int | None
    observing: Observing
    options: Recovery

    def read_samples(self, count: int | None) -> list[FeedSample]:
        """Return some samples of the data, or all for None."""
        return read_samples_again(self.calibrated.index, self.data, self.batch, count)


def repeat_request(plan: Plan, rules: RuleSet) -> PlanRequest:
    """Return the request that a plan of a float model was made by."""
    return PlanRequest(
        rules=rules,
        targets=plan.targets,
        leave_float=plan.leave_float,
        allow_unmatched=True,
        profiles=plan.profiles,
        sensitive=plan.sensitive or (),
        float_type=FLOAT_TYPES[plan.float_type or FP32.name],
    )
