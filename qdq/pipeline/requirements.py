"""What the stages of `quantize` require of a plan and of the model that it makes."""

from __future__ import annotations

import onnx

from qdq.errors import ModelError
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source
from qdq.pipeline.buildable import BuildFunction
from qdq.pipeline.quantize_stages import PreparedModel
from qdq.planning.decisions import Plan
from qdq.planning.graph_reasons import describe_left_float, describe_other_layers
from qdq.planning.kernel_reasons import is_refused_by_target


def require_placements(prepared: PreparedModel, index: GraphIndex, plan: Plan) -> None:
    """Raise ModelError for an empty plan, unless the model becomes FP16 or BF16 all the same.

    It is raised there too where the target lacks the format that the rules quantize to.
    """
    lacks_format = is_refused_by_target(plan, prepared.rules)
    if plan.placements or (plan.float_type and not lacks_format):
        return
    source = prepared.source
    other_layers = describe_other_layers(index)
    if other_layers:
        raise ModelError(
            f"{source.path or source.name}: there is nothing to quantize: {other_layers}. "
            "Export the model in float32 or float16."
        )
    rule_sets = ", ".join(plan.rule_sets)
    targets = ", ".join(map(str, plan.targets))
    fix = "Run 'qdq explain' for the reason."
    if prepared.quantized_model is not None:
        fix = "Run 'qdq check' to list its pairs, or 'qdq strip' to remove them."
    if lacks_format and plan.float_type:
        fix = f"Run 'qdq cast' for the model in {plan.float_type.upper()} without pairs."
    raise ModelError(
        f"{source.path or source.name}: the rules {rule_sets} quantize nothing in it for "
        f"{targets}{describe_left_float(plan)}. {fix}"
    )


def require_build(source: Source, build: BuildFunction, model: onnx.ModelProto) -> None:
    """Raise ModelError where the compiler refuses the model with its calibrated scales."""
    refusal = build(model)
    if refusal:
        raise ModelError(
            f"{source.path or source.name}: the model builds with other scales, but not with the "
            f"calibrated ones: {refusal.message}. Try another --method."
        )
