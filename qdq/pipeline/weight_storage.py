"""The form in which a quantized model stores its weights."""

from __future__ import annotations

import msgspec
from onnx import ModelProto

from qdq.arrays import Feed
from qdq.data.sample_recorder import read_samples_again
from qdq.errors import UsageError
from qdq.graph.source import Source
from qdq.pipeline.quantize_request import FLOAT_WEIGHTS, GPTQ_WEIGHTS, QuantizeRequest
from qdq.pipeline.quantize_stages import CalibratedModel
from qdq.pipeline.recovery_job import RecoveryStep
from qdq.recovery.output_snr import OutputSnr
from qdq.recovery.rounded_weights import round_weights
from qdq.rewriting.quantized_weights import store_source_weights

#: The samples that are read, and how many of them measure the gain: one of so many.
_SAMPLES = 144
_MEASURED_EVERY = 9


def store_planned_weights(
    request: QuantizeRequest, calibrated: CalibratedModel, rewritten: ModelProto
) -> tuple[ModelProto, tuple[RecoveryStep, ...]]:
    """Return a rewritten model with its weights in the form that a request states.

    The model itself where they stay floats. With the gain of GPTQ, where that is requested: its
    integers are kept where they raise the signal-to-noise ratio at the outputs.
    """
    if request.store_weights == FLOAT_WEIGHTS:
        return rewritten, ()
    source = calibrated.planned.index.source
    source = msgspec.structs.replace(source, model=rewritten, stamp=None)
    nearest = store_source_weights(source)
    if request.store_weights != GPTQ_WEIGHTS:
        return nearest, ()
    return _store_rounded(request, calibrated, source, nearest)


def _store_rounded(
    request: QuantizeRequest, calibrated: CalibratedModel, source: Source, nearest: ModelProto
) -> tuple[ModelProto, tuple[RecoveryStep, ...]]:
    """Return a rewritten model with the integers of GPTQ, or `nearest` where that is better."""
    planned = calibrated.planned
    feeds, measured_feeds = _read_feeds(request, calibrated)
    libraries = request.calibration.observing.ort_libraries
    weights = list(round_weights(planned.index, planned.plan, source.model, feeds, libraries))
    rounded = store_source_weights(source, {weight.scale: weight.integers for weight in weights})
    snr = OutputSnr(planned.index, measured_feeds, libraries=libraries)
    before, after = snr.measure(nearest), snr.measure(rounded)
    step = RecoveryStep(GPTQ_WEIGHTS, len(weights), before, after, after > before)
    return (rounded if step.is_kept else nearest), (step,)


def _read_feeds(
    request: QuantizeRequest, calibrated: CalibratedModel
) -> tuple[list[Feed], list[Feed]]:
    """Return the samples that moments are summed over, and those that measure the gain.

    They are the same where there are few.
    """
    options = request.calibration
    if options.data is None:
        raise UsageError("GPTQ rounds weights by samples. Pass --data or --images.")
    index = calibrated.planned.index
    samples = read_samples_again(index, options.data, options.batch, _SAMPLES)
    feeds = [sample.feed for sample in samples]
    if len(feeds) < _MEASURED_EVERY:
        return feeds, feeds
    summed = [feed for i, feed in enumerate(feeds) if i % _MEASURED_EVERY]
    return summed, feeds[::_MEASURED_EVERY]
