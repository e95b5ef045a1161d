"""A plan and its scales applied to a model: the pairs, and the cast of the float part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from onnx import ModelProto

from qdq.arguments import require_type
from qdq.calibration.scales import Scales
from qdq.graph.bodies import qualified_name
from qdq.graph.float_types import FLOAT_TYPES, FloatType
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import ModelLike
from qdq.pipeline.float_options import FloatOptions
from qdq.planning.decisions import Placement, Plan, group_by_pair
from qdq.planning.plan_edits import require_plan
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.precision.cast_model import CastModel, CastRequest, cast_source
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
    cast_model = cast_applied(index, plan, rewritten, FloatOptions())
    return rewritten if cast_model is None else cast_model.model


def cast_applied(
    index: GraphIndex, plan: Plan, rewritten: ModelProto, options: FloatOptions
) -> CastModel | None:
    """Return the cast copy of a rewritten model, as its plan states; None where it is float32."""
    if not plan.float_type:
        return None
    request = CastRequest(
        FLOAT_TYPES[plan.float_type],
        targets=plan.targets,
        keeps_scales=options.keeps_scales,
        casts_ends=options.casts_ends,
        kept=plan.keep_fp32 or (),
    )
    source = msgspec.structs.replace(index.source, model=rewritten, stamp=None)
    return cast_source(source, request)


class Overflow(msgspec.Struct, frozen=True):
    """A tensor whose range exceeds the float type that it gets."""

    tensor: str
    #: The largest absolute value in its range.
    amax: float

    def describe(self, float_type: FloatType) -> str:
        """Return the warning about it, in one sentence and what to do."""
        return (
            f"{self.tensor!r} reaches {self.amax:.6g}, which {float_type.label} does not hold. "
            "Add the nodes that write and read it to 'keep_fp32' of the plan."
        )


def find_overflows(index: GraphIndex, plan: Plan, scales: Scales) -> Iterator[Overflow]:
    """Yield the tensors with a pair whose range the plan's float type does not hold.

    The range is what the pair represents: scale times the largest integer. Tensors whose writer and
    readers all stay in FP32 are left out.
    """
    if not plan.float_type:
        return
    largest = FLOAT_TYPES[plan.float_type].largest
    kept = {node.node for node in plan.keep_fp32 or ()}
    pairs = group_by_pair(plan)
    for pair in scales.by_pair:
        amax = max(pair.scales) * pair.quantizer.element.largest
        nodes = list(_list_nodes(index, pairs[pair.tensor, pair.quantizer]))
        if amax > largest and not kept.issuperset(nodes):
            yield Overflow(pair.tensor, amax)


def _list_nodes(index: GraphIndex, placements: Iterable[Placement]) -> Iterator[str]:
    """Yield the nodes that read the pair of some placements, and the one that writes its tensor."""
    for placement in placements:
        edge = placement.edge
        yield qualified_name(edge.graph, edge.node)
        producer = index.scope(edge).producers.get(edge.tensor)
        if producer is not None:
            yield qualified_name(edge.graph, producer.label)
