"""The cast of the float part of what `quantize` rewrote."""

from __future__ import annotations

import msgspec
from onnx import ModelProto

from qdq.graph.float_types import FloatType
from qdq.graph.row_products import write_row_products
from qdq.graph.source import Source
from qdq.pipeline.bisection import CompilerRefusal
from qdq.pipeline.buildable import BuildFunction
from qdq.pipeline.float_extremes import sample_extremes
from qdq.pipeline.float_options import FloatOptions
from qdq.pipeline.quantize_request import QuantizeRequest
from qdq.pipeline.quantize_stages import CalibratedModel
from qdq.planning.decisions import Plan
from qdq.precision.cast_model import CastModel, CastRequest, cast_source
from qdq.ranges.tensor_ranges import Ranges
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import choose_float_rules


def cast_rewritten(
    request: QuantizeRequest, calibrated: CalibratedModel, rules: RuleSet, model: ModelProto
) -> CastModel | None:
    """Return the cast copy of a rewritten model; None where it stays float32."""
    options = request.floats
    plan = calibrated.planned.plan
    float_type = options.choose(plan.targets)
    if not float_type.is_short:
        return None
    source = calibrated.planned.index.source
    extremes = sample_extremes(calibrated.planned.index, request.calibration)
    for name, amax in list_extremes(calibrated.ranges).items():
        extremes[name] = max(amax, extremes.get(name, 0.0))
    cast_request = _make_request(float_type, plan, rules, options)
    cast_request = msgspec.structs.replace(cast_request, amax=extremes)
    return cast_pairs(source, model, cast_request)


def cast_pairs(source: Source, model: ModelProto, request: CastRequest) -> CastModel:
    """Return the cast copy of a model with pairs, with its products as compilers keep INT4."""
    rewritten = msgspec.structs.replace(source, model=model, stamp=None)
    cast_model = cast_source(rewritten, request)
    cast_copy = msgspec.structs.replace(source, model=cast_model.model, stamp=None)
    return msgspec.structs.replace(cast_model, model=write_row_products(cast_copy))


def _make_request(
    float_type: FloatType, plan: Plan, rules: RuleSet, options: FloatOptions
) -> CastRequest:
    return CastRequest(
        float_type,
        choose_float_rules(rules),
        plan.targets,
        keeps_scales=options.keeps_scales,
        casts_ends=options.casts_ends,
    )


def list_extremes(ranges: Ranges | None) -> dict[str, float]:
    """Return the largest absolute value of each tensor that was observed, by qualified name."""
    if ranges is None:
        return {}
    return {item.tensor: item.amax for item in ranges.by_tensor if item.seen and item.filled}


def build_cast_models(
    build: BuildFunction, source: Source, plan: Plan, rules: RuleSet, options: FloatOptions
) -> BuildFunction:
    """Return a function that builds the cast copies of models, for a plan in a short type."""
    float_type = options.choose(plan.targets)
    if not float_type.is_short:
        return build
    request = _make_request(float_type, plan, rules, options)

    def build_model(model: ModelProto) -> CompilerRefusal | None:
        rewritten = msgspec.structs.replace(source, model=model, stamp=None)
        return build(cast_source(rewritten, request).model)

    return build_model
