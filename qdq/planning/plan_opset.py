"""The opset that a plan needs: by its element types, 16-bit scales and float type."""

from __future__ import annotations

from onnx import TensorProto

from qdq.graph.float_types import FLOAT_TYPES, FloatType
from qdq.graph.index import GraphIndex
from qdq.graph.loader import raise_source_opset
from qdq.graph.opset import FLOAT16_OPSET, default_opset, holds_short_floats
from qdq.graph.source import Source
from qdq.planning.decisions import Plan
from qdq.quantizer import ELEMENT_TYPES, INT8


def source_at_plan_opset(source: Source, plan: Plan, index: GraphIndex | None = None) -> Source:
    """Return a model at the opset that a plan's pairs need, by their element and float types.

    `index` is the model's, where there is one already.
    """
    elements = {p.quantizer.element for p in plan.placements}
    newest = max(elements, key=lambda element: element.opset, default=ELEMENT_TYPES[INT8])
    raised = raise_source_opset(source, newest.opset if elements else 0, newest.label)
    if plan.float_type:
        raised = raise_for_cast(raised, FLOAT_TYPES[plan.float_type])
    is_old = default_opset(raised.model) < FLOAT16_OPSET
    if is_old and holds_short_floats(source.model) and _has_short_float_pair(index or source, plan):
        raised = raise_source_opset(raised, FLOAT16_OPSET, "16-bit")
    return raised


def _has_short_float_pair(model: GraphIndex | Source, plan: Plan) -> bool:
    """Whether a pair of a plan is on a float16 or bfloat16 tensor."""
    index = GraphIndex(model) if isinstance(model, Source) else model
    scopes = index.scopes
    for placement in plan.placements:
        scope = scopes.get(placement.edge.graph, index)
        if scope.elem_type(placement.edge.tensor) in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            return True
    return False


def raise_for_cast(source: Source, float_type: FloatType) -> Source:
    """Return a source at the opset that a cast of its quantized copy needs."""
    if not float_type.is_short:
        return source
    return raise_source_opset(source, max(float_type.opset, FLOAT16_OPSET), float_type.label)
