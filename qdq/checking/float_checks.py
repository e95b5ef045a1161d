"""Findings about the float part of a model: its Casts, and the layers that it computes in FP32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnx import TensorProto

from qdq.checking.finding import Finding, make_finding
from qdq.checking.pair_comparison import Comparison
from qdq.graph.aliases import cast_type, is_float_cast, keeps_values
from qdq.graph.bodies import qualified_name
from qdq.graph.float_types import BF16, FP16, SHORT_TYPES, FloatType
from qdq.graph.index import GraphIndex, Node
from qdq.graph.metadata import FLOAT_KEY
from qdq.graph.operands import operands
from qdq.graph.operators import MATRIX_PRODUCTS, WEIGHTED
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.source import Source
from qdq.rules.kernel_tables import explain_refusal
from qdq.target import needs_fp16

#: The types that hold every value of a float type, except itself.
_WIDER: dict[int, tuple[int, ...]] = {
    TensorProto.FLOAT16: (TensorProto.FLOAT, TensorProto.DOUBLE),
    TensorProto.BFLOAT16: (TensorProto.FLOAT, TensorProto.DOUBLE),
    TensorProto.FLOAT: (TensorProto.DOUBLE,),
}

#: The codes of findings about the float part.
FLOAT_CODES = frozenset(
    ("cancelling-casts", "scale-float-type", "fp32-island", "fp32-refused", "fp32-layers")
)


def check_float_part(comparison: Comparison) -> Iterator[Finding]:
    """Yield the findings about the Casts and the layers in float32."""
    quantized = comparison.quantized
    if _has_casts(quantized.graph):
        index = GraphIndex(quantized.source)
        yield from _check_cancelling(index)
        if not _is_cast_by_qdq(quantized.source):
            yield from _check_scale_casts(index)
        yield from _check_islands(comparison)
    yield from _check_layers(comparison)


def _has_casts(graph: QdqGraph) -> bool:
    return any(operator in ("Cast", "CastLike") for _, operator in graph.all_operators)


def _is_cast_by_qdq(source: Source) -> bool:
    """Whether `qdq cast` chose the types, which leaves scales in float32 on request only."""
    return any(entry.key == FLOAT_KEY for entry in source.model.metadata_props)


def _check_cancelling(index: GraphIndex) -> Iterator[Finding]:
    """Yield the Casts back from a type that holds every value of the first one."""
    for scope in index.scopes.values():
        for node in scope.nodes:
            first = scope.producers.get(node.inputs[0]) if node.inputs else None
            if first is None or not _cancels(scope, first, node):
                continue
            names = f"{_name_type(cast_type(scope, node))} to {_name_type(cast_type(scope, first))}"
            problem = f"{first.inputs[0]!r} is cast from {names}, and back without a loss"
            location = qualified_name(scope.path, node.label)
            yield make_finding("cancelling-casts", location, problem)


def _cancels(scope: GraphIndex, first: Node, last: Node) -> bool:
    """Whether two nodes are Casts to a wider type and back, whose result may be replaced."""
    if not is_float_cast(scope, first) or not is_float_cast(scope, last):
        return False
    if _has_fixed_type(scope, last):
        return False
    origin_type = scope.elem_type(first.inputs[0])
    is_back = cast_type(scope, last) == origin_type
    return is_back and cast_type(scope, first) in _WIDER.get(origin_type, ())


def _has_fixed_type(scope: GraphIndex, node: Node) -> bool:
    """Whether the result of a node is an output of its graph, or a constant."""
    result = node.outputs[0]
    return result in scope.outputs or scope.is_constant(result)


def _name_type(elem_type: int) -> str:
    name: str = TensorProto.DataType.Name(elem_type)
    return name.lower()


def _check_scale_casts(index: GraphIndex) -> Iterator[Finding]:
    """Yield the products in 16 bits that read a pair with scales in float32 through a Cast.

    Convolutions are left out: TensorRT-RTX builds the same kernels for them.
    """
    for scope in index.scopes.values():
        products = (node for node in scope.nodes if node.op in MATRIX_PRODUCTS)
        for node in products:
            pairs = [_find_cast_pair(scope, edge.tensor) for edge in operands(scope, node)]
            names = [repr(pair.outputs[0]) for pair in pairs if pair is not None]
            if names:
                layer_type = _name_type(scope.elem_type(node.outputs[0]))
                problem = (
                    f"the {node.op} computes in {layer_type}, and a Cast is between it and the "
                    f"DequantizeLinear of {' and '.join(names)}, which gives float"
                )
                location = qualified_name(scope.path, node.label)
                yield make_finding("scale-float-type", location, problem)


def _find_cast_pair(scope: GraphIndex, tensor: str) -> Node | None:
    """Return the DQ with a float32 result before a Cast to 16 bits; None where there is none."""
    is_cast = False
    producer = scope.producers.get(tensor)
    while producer is not None and keeps_values(scope, producer):
        if is_float_cast(scope, producer):
            ends = scope.elem_type(producer.inputs[0]), cast_type(scope, producer)
            is_cast = ends[0] == TensorProto.FLOAT and ends[1] in (FP16.code, BF16.code)
        producer = scope.producers.get(producer.inputs[0])
    if producer is None or producer.op != "DequantizeLinear" or not is_cast:
        return None
    is_wide = scope.elem_type(producer.outputs[0]) == TensorProto.FLOAT
    return producer if is_wide else None


def _check_islands(comparison: Comparison) -> Iterator[Finding]:
    """Yield the parts in float32 between nodes in the float type of the other layers."""
    quantized = comparison.quantized
    float_type = find_float_type(quantized.index)
    if float_type is None:
        return
    from qdq.checking.float_islands import find_islands  # with it comes the cast

    plan = comparison.plan
    for island in find_islands(quantized, float_type, comparison.rules, plan.targets):
        first = island.costly[0]
        others = f" and {len(island.nodes) - 1} more nodes" if len(island.nodes) > 1 else ""
        problem = (
            f"the {first.op}{others} computes in float32 between nodes in {float_type.label}, "
            "and no rule asks for it"
        )
        location = qualified_name(island.path, first.label)
        fix = (
            f"cast it with qdq cast MODEL -o OUTPUT --to {float_type.name}, where --keep-fp32 "
            "records what must stay"
        )
        yield make_finding("fp32-island", location, problem, fix=fix)


def find_float_type(index: GraphIndex) -> FloatType | None:
    """Return the 16-bit type that most layers of a float graph have; None without such layers."""
    counts: Counter[int] = Counter()
    for scope in index.scopes.values():
        for node in scope.nodes:
            if node.op in WEIGHTED and node.outputs and node.outputs[0]:
                counts[scope.elem_type(node.outputs[0])] += 1
    short_types = [item for item in SHORT_TYPES.values() if counts[item.code]]
    return max(short_types, key=lambda item: counts[item.code], default=None)


def _check_layers(comparison: Comparison) -> Iterator[Finding]:
    """Yield what targets that build Gemms in FP16 only do with the layers in float32."""
    layers = list(_list_wide_layers(comparison))
    for target in filter(needs_fp16, comparison.plan.targets):
        refused: list[str] = []
        built: list[str] = []
        reasons: list[str] = []
        for scope, node in layers:
            name = f"{node.op} {qualified_name(scope.path, node.label)!r}"
            refusal = explain_refusal(scope, node, target)
            if refusal:
                refused.append(name)
                reasons.append(refusal)
            else:
                built.append(name)
        if refused:
            problem = f"{target}: {_count_layers(refused)} in float32; {reasons[0]}"
            yield make_finding("fp32-refused", "", problem)
        if built:
            yield make_finding("fp32-layers", "", f"{target}: {_count_layers(built)} in float32")


def _list_wide_layers(comparison: Comparison) -> Iterator[tuple[GraphIndex, Node]]:
    """Yield the weighted layers in float32, each with its graph."""
    for scope in comparison.view.scopes.values():
        for node in scope.nodes:
            is_wide = bool(node.outputs) and scope.elem_type(node.outputs[0]) == TensorProto.FLOAT
            if is_wide and operands(scope, node):
                yield scope, node


def _count_layers(layers: list[str]) -> str:
    if len(layers) == 1:
        return f"the {layers[0]} computes"
    return f"{len(layers)} layers, the first of them the {layers[0]}, compute"
