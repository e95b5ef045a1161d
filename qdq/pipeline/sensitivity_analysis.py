"""Which part of a network makes the error of its INT8: of a plan, or of a quantized model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from qdq.arguments import require_callable, to_count
from qdq.calibration.methods import DEFAULT_METHOD
from qdq.data.feeds import DataLike, FeedSample
from qdq.data.sample_recorder import read_samples_again, record_samples
from qdq.errors import DataError, ModelError, UsageError
from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.shape_profiles import ProfilesLike
from qdq.graph.source import ModelLike, Source
from qdq.metrics.metric import Metric
from qdq.metrics.metric_files import MetricLike, to_metric
from qdq.metrics.signal_to_noise import SNR
from qdq.observers.collection import DEFAULT_OBSERVING, Observing
from qdq.pipeline.existing_plan import make_existing_plan
from qdq.pipeline.quantize_model import plan_and_calibrate
from qdq.pipeline.quantize_request import (
    CalibrationOptions,
    PlanningOptions,
    QuantizeRequest,
    to_planning_options,
)
from qdq.pipeline.recovery_options import Recovery
from qdq.pipeline.requantize import REPAIR
from qdq.planning.planner import find_quantized_nodes
from qdq.quantized.model import QuantizedModel
from qdq.ranges.known_ranges import RangesLike, to_known_ranges
from qdq.ranges.tensor_ranges import Ranges
from qdq.rules.rule_files import RulesLike
from qdq.runtime.session import Progress
from qdq.sensitivity.group_ranking import GroupRanking, GroupSensitivity
from qdq.sensitivity.layer_errors import LayerComparison, LayerError
from qdq.sensitivity.layer_groups import GROUPINGS, LAYER
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity
from qdq.sensitivity.scored_tensors import find_scored_tensors
from qdq.target import TargetsLike
from qdq.validation.validator import no_drop_error

#: The samples that a sensitivity is measured with, unless requested otherwise.
DEFAULT_MEASURED = 8

#: The samples that are kept for a metric where the data can be iterated only once.
_MOST_RECORDED = 1 << 16


class SensitivityScores(msgspec.Struct, frozen=True):
    """The scores of the float model and of the whole plan by a metric; larger is better."""

    #: The metric.
    name: str
    float_model: float
    #: With the whole plan in INT8.
    int8: float


class Sensitivity(msgspec.Struct, frozen=True):
    """The losses that the INT8 of each group of a plan makes, the largest first.

    Signal-to-noise ratios are in dB, null where nothing differs.
    """

    #: The float model.
    model: str
    #: The quantized model whose pairs were measured; empty where the pairs are those of a plan.
    quantized: str
    #: The data that the scales were calibrated with; empty where none was run.
    data: str
    #: The number of samples that were measured.
    samples: int
    #: What a group is: `layer`, `tensor` or `block`.
    by: str
    #: The tensors at which noise is measured: the outputs, or the scores before a final Softmax or
    #: Sigmoid.
    measured_at: tuple[str, ...]
    #: The ratio with the whole plan in INT8 at these tensors, and at the outputs.
    int8_snr_db: float
    output_snr_db: float
    #: The share of the multiply-accumulates that the whole plan quantizes.
    int8_work: float
    groups: tuple[GroupSensitivity, ...]
    #: One sentence each about what was not measured.
    notes: tuple[str, ...] = ()
    #: The scores by the metric; absent without one.
    metric: SensitivityScores | msgspec.UnsetType = msgspec.UNSET
    #: The errors of the quantized model's layers in the order of the graph; absent without a
    #: quantized model.
    layers: tuple[LayerError, ...] | msgspec.UnsetType = msgspec.UNSET


class MeasuringOptions(msgspec.Struct, frozen=True):
    """What is measured, and with how many samples."""

    by: str = LAYER
    metric: Metric | None = None
    #: The number of samples; None for the default, which is all with a metric.
    measured: int | None = None
    #: Called after each run with the number of runs so far.
    progress: Progress | None = None

    @property
    def count(self) -> int | None:
        """The number of samples to measure with; None for all."""
        if self.measured is None and self.metric is None:
            return DEFAULT_MEASURED
        return self.measured


class MeasuredSamples(msgspec.Struct, frozen=True):
    """The samples to measure with, and the libraries of custom operators to run them."""

    samples: list[FeedSample]
    libraries: tuple[Path, ...]


def to_measuring_options(
    by: str, metric: MetricLike | None, measured: int | None, progress: Progress | None
) -> MeasuringOptions:
    """Return the options that users pass; raises UsageError for values that do not fit.

    The metric ``snr`` is what is measured without one.
    """
    require_callable(progress, "measuring_progress")
    if by not in GROUPINGS:
        raise UsageError(f"unknown groups {by!r}. Pass layer, tensor or block.")
    loaded = None if metric is None else to_metric(metric)
    if loaded is not None and loaded.name == SNR:
        loaded = None
    if loaded is not None and not loaded.scores_float_model:
        raise no_drop_error(loaded.name)
    count = None if measured is None else to_count(measured, 1, "measured")
    return MeasuringOptions(by, loaded, count, progress)


def measure_sensitivity(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    data: DataLike,
    *,
    quantized: ModelLike | None = None,
    rules: RulesLike | None = None,
    targets: TargetsLike = (),
    method: str = DEFAULT_METHOD,
    weights: str | None = None,
    leave_float: str | Iterable[str] = (),
    batch: int | None = None,
    allow_unmatched: bool = False,
    profiles: ProfilesLike = (),
    given: RangesLike | None = None,
    by: str = LAYER,
    metric: MetricLike | None = None,
    measured: int | None = None,
    observing: Observing = DEFAULT_OBSERVING,
    progress: Progress | None = None,
    measuring_progress: Progress | None = None,
) -> Sensitivity:
    """Return the losses that the INT8 of each group of a float model's plan makes.

    The plan and its scales are those of `quantize` without its guard. With a `quantized` model they
    are its own pairs, and the arguments of plan and calibration have no effect. `by` is "layer",
    "tensor" or "block". Noise is measured with `measured` samples of the data, 8 by default; a
    `metric` is scored over all. Ranges observed earlier, as `given`, need no calibration. Raises
    ModelError, RuleError, DataError, MetricError or UsageError.
    """
    planning = to_planning_options(rules, targets, leave_float, allow_unmatched, profiles)
    known_ranges = to_known_ranges(given)
    calibration = CalibrationOptions(
        data, batch, method, weights, observing, progress, known_ranges
    )
    options = to_measuring_options(by, metric, measured, measuring_progress)
    return _run(load(model), quantized, planning, calibration, options)


def _run(
    source: Source,
    quantized: ModelLike | None,
    planning: PlanningOptions,
    calibration: CalibrationOptions,
    options: MeasuringOptions,
) -> Sensitivity:
    """Run the stages up to the scales, or read those of the quantized model, and measure."""
    if find_quantized_nodes(source):
        raise ModelError(
            f"{source.path or source.name}: the model is quantized already. Pass the float model "
            "that it was made from, and then this one."
        )
    data = record_samples(calibration.data, options.count or _MOST_RECORDED)
    calibration = msgspec.structs.replace(calibration, data=data)
    if quantized is not None:
        return _analyse_quantized(source, QuantizedModel(quantized), calibration, options)
    request = _make_request(source, planning, calibration)
    _, result = plan_and_calibrate(request)
    planned = result.planned
    calibrated = CalibratedPlan(planned.index, planned.plan, result.scales, result.ranges)
    return _analyse(calibrated, _read_samples(planned.index, calibration, options), options)


def _make_request(
    source: Source, planning: PlanningOptions, calibration: CalibrationOptions
) -> QuantizeRequest:
    """Return the request of `quantize` whose plan is measured; observed ranges need no data."""
    if isinstance(calibration.known_ranges, Ranges):
        calibration = msgspec.structs.replace(calibration, data=None)
    recovery = Recovery(guard=False, methods="off")
    return QuantizeRequest(source, REPAIR, planning, calibration, None, recovery, None)


def _read_samples(
    index: GraphIndex, calibration: CalibrationOptions, options: MeasuringOptions
) -> MeasuredSamples:
    """Return the samples to measure with; raises DataError where there are none."""
    if calibration.data is None:
        raise DataError(f"{index.source.name}: sensitivity is measured on samples. Pass data.")
    samples = read_samples_again(index, calibration.data, calibration.batch, options.count)
    return MeasuredSamples(samples, calibration.observing.ort_libraries)


def _analyse(
    calibrated: CalibratedPlan, samples: MeasuredSamples, options: MeasuringOptions
) -> Sensitivity:
    """Rank the groups of a calibrated plan."""
    index = calibrated.index
    sensitivity = PlanSensitivity(
        calibrated, samples.samples, options.by, samples.libraries, options.progress
    )
    ranking = GroupRanking(calibrated, sensitivity, options.metric)
    groups = ranking.run()
    measurement, full = sensitivity.measurement, sensitivity.full
    scores: SensitivityScores | msgspec.UnsetType = msgspec.UNSET
    if options.metric is not None:
        scores = SensitivityScores(options.metric.name, ranking.float_score, ranking.int8_score)
    scored = find_scored_tensors(index, sensitivity.outputs)
    return Sensitivity(
        model=index.source.name,
        quantized="",
        data=calibrated.scales.data,
        samples=measurement.count,
        by=options.by,
        measured_at=tuple(dict.fromkeys(tensor.name for tensor in scored)),
        int8_snr_db=round(to_decibels(measurement.measure(full)), 2),
        output_snr_db=round(to_decibels(measurement.measure_outputs(full)), 2),
        int8_work=round(sensitivity.int8_work, 6),
        groups=groups,
        metric=scores,
    )


def _analyse_quantized(
    source: Source,
    quantized_model: QuantizedModel,
    calibration: CalibrationOptions,
    options: MeasuringOptions,
) -> Sensitivity:
    """Rank the groups of a quantized model's own pairs, and follow its error through the layers."""
    existing = make_existing_plan(source, quantized_model)
    calibrated = existing.calibrated
    samples = _read_samples(calibrated.index, calibration, options)
    labels: set[str] = set()
    for placement in calibrated.plan.placements:
        labels.add(qualified_name(placement.edge.graph, placement.edge.node))
    index = GraphIndex(source)
    comparison = LayerComparison(index, quantized_model, labels, samples.libraries)
    layers = comparison.measure(samples.samples, options.progress)
    return msgspec.structs.replace(
        _analyse(calibrated, samples, options),
        quantized=quantized_model.original.name,
        notes=existing.notes,
        layers=layers,
    )
