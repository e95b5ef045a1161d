"""The results of the stages of `quantize`, each made from those before it."""

from __future__ import annotations

import msgspec

from qdq.calibration.methods import Method
from qdq.calibration.scales import Scales
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source
from qdq.pipeline.bisection import BisectionResult
from qdq.pipeline.buildable import BuildFunction
from qdq.pipeline.recovery_job import RecoveryStep
from qdq.planning.decisions import Plan, SensitiveLayer
from qdq.quantized.model import QuantizedModel
from qdq.ranges.given_ranges import GivenSummary
from qdq.ranges.known_ranges import KnownRanges
from qdq.ranges.tensor_ranges import Ranges
from qdq.rules.rule import RuleSet
from qdq.sensitivity.partial_result import PartialResult


class PreparedModel(msgspec.Struct, frozen=True):
    """The float model and everything that was read from the model passed in."""

    #: The float model.
    source: Source
    #: The model passed in; None where it is float.
    quantized_model: QuantizedModel | None
    rules: RuleSet
    method: Method
    #: The layers that an earlier run left in float by measurement.
    sensitive: tuple[SensitiveLayer, ...]
    #: The ranges passed in, and those of the model's pairs.
    known_ranges: KnownRanges | None


class PlannedModel(msgspec.Struct, frozen=True):
    """The plan and its index; with `until_it_builds` also the search for it."""

    index: GraphIndex
    plan: Plan
    build: BuildFunction | None = None
    build_search: BisectionResult | None = None


class CalibratedModel(msgspec.Struct, frozen=True):
    """The plan with its scales, and the ranges that they were chosen from."""

    #: Without the nodes that read a tensor which no sample filled.
    planned: PlannedModel
    scales: Scales
    ranges: Ranges
    summary: GivenSummary | None
    #: What the guard or a budget measured, or why it did not.
    partial: PartialResult | str | None = None
    #: The methods that were tried to recover accuracy in INT8.
    recovery: tuple[RecoveryStep, ...] = ()
