"""The form in which a quantized model stores its weights."""

from __future__ import annotations

import msgspec
from onnx import ModelProto

from qdq.pipeline.quantize_request import FLOAT_WEIGHTS, QuantizeRequest
from qdq.pipeline.quantize_stages import CalibratedModel
from qdq.rewriting.quantized_weights import store_source_weights


def store_planned_weights(
    request: QuantizeRequest, calibrated: CalibratedModel, rewritten: ModelProto
) -> ModelProto:
    """Return a rewritten model with its weights in the form that a request states.

    The model itself where they stay floats.
    """
    if request.store_weights == FLOAT_WEIGHTS:
        return rewritten
    source = calibrated.planned.index.source
    return store_source_weights(msgspec.structs.replace(source, model=rewritten, stamp=None))
