"""Biases of a rewritten model, corrected by the mean errors of its layers where that helps."""

from __future__ import annotations

from onnx import ModelProto

from qdq.data.sample_recorder import read_samples_again
from qdq.pipeline.quantize_request import QuantizeRequest
from qdq.pipeline.quantize_stages import CalibratedModel
from qdq.pipeline.recovery_job import RecoveryStep
from qdq.pipeline.recovery_options import BIAS
from qdq.recovery.bias_correction import apply_bias_corrections, find_bias_corrections
from qdq.recovery.correction_selection import SelectedCorrections, select_corrections
from qdq.recovery.output_snr import OutputSnr

#: The samples that mean errors and their gain are measured with, half of them each.
_SAMPLES = 32


def correct_biases(
    request: QuantizeRequest, calibrated: CalibratedModel, model: ModelProto, is_float: bool
) -> tuple[ModelProto, tuple[RecoveryStep, ...]]:
    """Return a rewritten model with corrected biases, and what that gained.

    The model itself where that is not requested, and where no correction helps. `is_float` states
    that the model was float.
    """
    options = request.calibration
    is_requested = BIAS in request.recovery.method_names and request.is_measured(is_float)
    if not is_requested or options.data is None:
        return model, ()
    planned, scales = calibrated.planned, calibrated.scales
    samples = read_samples_again(planned.index, options.data, options.batch, _SAMPLES)
    feeds = [sample.feed for sample in samples]
    first_feeds, other_feeds = feeds[::2], feeds[1::2]
    libraries = options.observing.ort_libraries
    corrections = find_bias_corrections(
        planned.index, planned.plan, scales, first_feeds, rewritten=model, libraries=libraries
    )
    snr = OutputSnr(planned.index, other_feeds or first_feeds, libraries=libraries)
    selected = select_corrections(model, corrections, snr.measure_samples)
    step = _describe(selected, len(corrections.layers))
    if not step.is_kept:
        return model, (step,)
    folder = planned.index.source.folder
    return apply_bias_corrections(model, selected.corrections, folder), (step,)


def _describe(selected: SelectedCorrections, measured: int) -> RecoveryStep:
    """Return the gain of the selected ones of so many corrections."""
    kept = len(selected.corrections.layers)
    return RecoveryStep(BIAS, kept or measured, selected.before, selected.after, kept > 0)
