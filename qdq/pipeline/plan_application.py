"""A plan and its scales applied to a model: the pairs, and the cast of the float part."""

from __future__ import annotations

from onnx import ModelProto

from qdq.arguments import require_type
from qdq.calibration.scales import Scales
from qdq.graph.float_types import FLOAT_TYPES
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import ModelLike
from qdq.pipeline.float_cast import cast_pairs
from qdq.pipeline.float_options import FloatOptions
from qdq.planning.decisions import Plan
from qdq.planning.plan_edits import require_plan
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.precision.cast_model import CastModel, CastRequest
from qdq.rewriting.inserter import apply_plan


def apply(model: ModelLike, plan: Plan, scales: Scales) -> ModelProto:
    """Return a copy of the model with a Q/DQ pair on every planned edge.

    Where the plan has a float type, the float part is of that type. Raises PlanError where plan,
    scales and model do not belong together, and ModelError where stripping the result does not
    restore the model byte for byte. `qdq.save` runs onnx.checker.
    """
    require_plan(plan)
    require_type(scales, Scales, "scales", "what qdq.calibrate returns")
    index = GraphIndex(source_at_plan_opset(load(model), plan))
    rewritten = apply_plan(index, plan, scales)
    cast_model = cast_applied(index, plan, scales, rewritten, FloatOptions())
    return rewritten if cast_model is None else cast_model.model


def cast_applied(
    index: GraphIndex,
    plan: Plan,
    scales: Scales,
    rewritten: ModelProto,
    options: FloatOptions,
) -> CastModel | None:
    """Return the cast copy of a rewritten model, as its plan states; None where it is float32.

    Its report names the tensors with a pair that the type does not hold.
    """
    if not plan.float_type:
        return None
    request = CastRequest(
        FLOAT_TYPES[plan.float_type],
        targets=plan.targets,
        amax=_list_ranges(scales),
        keeps_scales=options.keeps_scales,
        casts_ends=options.casts_ends,
        kept=plan.keep_fp32 or (),
    )
    return cast_pairs(index.source, rewritten, request)


def _list_ranges(scales: Scales) -> dict[str, float]:
    """Return the largest value that the pair of each tensor represents."""
    return {
        pair.tensor: max(pair.scales) * pair.quantizer.element.largest for pair in scales.by_pair
    }
