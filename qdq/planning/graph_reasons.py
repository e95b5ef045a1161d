"""Edges that stay in float because of the graph, whatever the rules request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from onnx import TensorProto

from qdq.graph.constant_chains import depends_on_file_alone, explain_unknown_value
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import operands
from qdq.graph.operators import WEIGHTED
from qdq.planning.decisions import CONSTANT, TYPE, UNKNOWN, UNUSED, LeftFloat, Plan

#: Float types whose tensors get no pair, by their name.
_OTHER_FLOATS: dict[int, str] = {TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}

_OPERANDS = 2


def find_graph_reason(index: GraphIndex, edge: Edge, plans_bfloat16: bool) -> LeftFloat | None:
    """Return why an edge stays in float whatever the rules request, None where rules decide.

    ONNX Runtime has no convolution or matrix product in bfloat16, so such layers cannot be
    calibrated: they are planned only where a model has pairs on them already.
    """
    node = index.node(edge)
    if not index.is_live(node):
        return LeftFloat(edge, UNUSED, "No output of the model depends on the node.")
    if depends_on_file_alone(index, node):
        return LeftFloat(
            edge,
            CONSTANT,
            "The node computes a constant. The pair belongs right before the layer that reads it.",
        )
    elem_type = index.elem_type(edge.tensor)
    float_type = _OTHER_FLOATS.get(elem_type)
    is_planned = plans_bfloat16 and elem_type == TensorProto.BFLOAT16
    if float_type is not None and not is_planned:
        reason = f"The tensor is {float_type}. Pairs are placed on float32 and float16 tensors."
        return LeftFloat(edge, TYPE, reason)
    unknown = _explain_unknown(index, edge, node)
    if unknown:
        return LeftFloat(edge, UNKNOWN, unknown)
    return None


def _explain_unknown(index: GraphIndex, edge: Edge, node: Node) -> str:
    """Return why the value of an operand, or of a node that only builds one, is unknown."""
    tensors = list(filter(None, node.outputs))
    if edge in operands(index, node):
        tensors.insert(0, edge.tensor)
    reasons = (explain_unknown_value(index, tensor) for tensor in tensors)
    return next(filter(None, reasons), "")


def find_hidden_operands(index: GraphIndex, plans_bfloat16: bool) -> Iterator[LeftFloat]:
    """Yield the edges of weighted operators that count as no operands because of the graph."""
    for node in index.nodes:
        if node.op not in WEIGHTED or operands(index, node):
            continue
        for slot, tensor in enumerate(node.inputs[:_OPERANDS]):
            if not tensor:
                continue
            reason = find_graph_reason(index, index.edge(node, slot), plans_bfloat16)
            if reason is not None:
                yield reason


def describe_other_types(index: GraphIndex, left_float: Iterable[LeftFloat]) -> Iterator[str]:
    """Yield a sentence for each float type that keeps edges in float."""
    counts: Counter[str] = Counter()
    for item in left_float:
        if item.because == TYPE:
            elem_type = index.scope(item.edge).elem_type(item.edge.tensor)
            counts[_OTHER_FLOATS[elem_type]] += 1
    for float_type, count in sorted(counts.items()):
        edges = "edge stays" if count == 1 else "edges stay"
        tensors = "its tensor is" if count == 1 else "their tensors are"
        yield f"{count} {edges} in float because {tensors} {float_type}."


def describe_other_layers(index: GraphIndex) -> str:
    """Return how many weighted layers have other float types, "" where others remain or none is."""
    counts: Counter[str] = Counter()
    for scope in index.scopes.values():
        for node in scope.nodes:
            float_type = _find_other_type(scope, node)
            if float_type:
                counts[float_type] += 1
            elif operands(scope, node):
                return ""
    layers = sum(counts.values())
    types = " and ".join(sorted(counts))
    if not layers:
        return ""
    subject = "layer is" if layers == 1 else f"{layers} layers are"
    return f"its {subject} {types}"


def _find_other_type(index: GraphIndex, node: Node) -> str:
    if node.op not in WEIGHTED or not index.is_live(node):
        return ""
    for tensor in node.inputs[:_OPERANDS]:
        float_type = _OTHER_FLOATS.get(index.elem_type(tensor))
        if float_type is not None:
            return float_type
    return ""


def describe_left_float(plan: Plan) -> str:
    """Return the rule that leaves most edges of a plan in float, in brackets; "" without one."""
    reasons = Counter((item.because, item.reason) for item in plan.left_float)
    for (rule, reason), _ in reasons.most_common(1):
        return f" ({rule}: {reason.rstrip('.')})"
    return ""
