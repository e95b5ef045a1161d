"""Biases of a rewritten model, corrected by the mean errors of its layers where that helps."""

from __future__ import annotations

from onnx import ModelProto

from qdq.data.sample_recorder import read_samples_again
from qdq.pipeline.quantize_request import QuantizeRequest
from qdq.pipeline.quantize_stages import CalibratedModel
from qdq.pipeline.recovery import RecoveryStep
from qdq.pipeline.recovery_options import BIAS
from qdq.recovery.bias_correction import apply_bias_corrections, find_bias_corrections
from qdq.recovery.correction_selection import select_corrections
from qdq.recovery.output_snr import OutputSnr

#: The samples that mean errors and their gain are measured with, half of them each.
_SAMPLES = 32


def correct_biases(
    request: QuantizeRequest, calibrated: CalibratedModel, model: ModelProto, is_float: bool
) -> tuple[ModelProto, tuple[RecoveryStep, ...]]:
    """Return a rewritten model with corrected biases, and what that gained.

    The model itself where it is not requested, where there are fewer than two samples, and where
    no correction helps. `is_float` states that the model was float.
    """
    options = request.calibration
    is_requested = BIAS in request.recovery.method_names and request.is_measured(is_float)
    if not is_requested or options.data is None:
        return model, ()
    planned, scales = calibrated.planned, calibrated.scales
    samples = read_samples_again(planned.index, options.data, options.batch, _SAMPLES)
    feeds = [sample.feed for sample in samples]
    found_with, judged_with = feeds[::2], feeds[1::2]
    if not judged_with:
        return model, ()
    libraries = options.observing.ort_libraries
    corrections = find_bias_corrections(
        planned.index, planned.plan, scales, found_with, rewritten=model, libraries=libraries
    )
    snr = OutputSnr(planned.index, judged_with, libraries=libraries)
    selected = select_corrections(model, corrections, snr.measure_samples)
    layers = selected.corrections.layers
    places = len(layers) or len(corrections.layers)
    step = RecoveryStep(BIAS, places, selected.before, selected.after, bool(layers))
    if not layers:
        return model, (step,)
    folder = planned.index.source.folder
    return apply_bias_corrections(model, selected.corrections, folder), (step,)
