"""The plan of the float part: which nodes compute in float32, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from onnx import TensorProto

from qdq.graph.bodies import qualified_name
from qdq.graph.compiler_view import CompilerView
from qdq.graph.float_nodes import has_float32, is_type_cast
from qdq.graph.float_types import FloatType
from qdq.graph.index import GraphIndex, Node
from qdq.graph.neighbors import find_input_producer, has_constant_input, list_readers
from qdq.graph.operators import PLANNED_BODIES
from qdq.graph.opset import default_opset
from qdq.graph.patterns import decomposed_normalization_nodes
from qdq.precision.float_neighbors import FloatNeighbors
from qdq.precision.node_types import find_node_types
from qdq.rules.facts import Scene
from qdq.rules.matcher import match_kept_nodes
from qdq.rules.rule import Rule, RuleSet
from qdq.target import Target

#: Reasons that follow from the graph and are no rules.
TYPE = "type"
OPERATOR = "operator"
UNKNOWN_TYPE = "unknown-type"
BODY = "body"
BETWEEN = "between"
NORMALIZATION = "normalization"
PAIRS = "pairs"

_GRAPH_REASONS = (TYPE, OPERATOR, UNKNOWN_TYPE, BODY, BETWEEN, NORMALIZATION, PAIRS)


class KeptNode(msgspec.Struct, frozen=True):
    """A node that computes in float32."""

    #: Label of the node, after the path of its body.
    node: str
    operator: str
    #: The names of rules, or "type", "operator", "unknown-type", "body", "between",
    #: "normalization" or "pairs".
    because: str
    #: The rule's sentence, or the cause in the graph.
    reason: str
    #: Its first output, by which a cast model's metadata names it.
    output: str = ""

    @property
    def is_by_rule(self) -> bool:
        """Whether rules decided it."""
        return self.because not in _GRAPH_REASONS


class OverflowingTensor(msgspec.Struct, frozen=True):
    """A tensor that overflows by its range, around a node that no rule keeps in float32."""

    tensor: str
    #: The label of the node that reads or writes it, after the path of its body.
    node: str
    #: Its largest absolute value.
    largest: float


class FloatPlan(msgspec.Struct, frozen=True):
    """Every decision about the float part of a model."""

    #: ``fp16`` or ``bf16``.
    to: str
    kept: tuple[KeptNode, ...]
    #: The number of nodes with float values that are cast.
    cast: int
    #: The number of tensors whose extremes were checked; 0 where no ranges are known.
    checked: int = 0
    #: What overflows all the same; none with the shipped rules.
    overflowing: tuple[OverflowingTensor, ...] = ()


class FloatRequest(msgspec.Struct, frozen=True):
    """The conditions of a float plan."""

    float_type: FloatType
    rules: RuleSet
    targets: tuple[Target, ...] = ()
    #: The largest absolute value of tensors, by qualified name; from calibration or elsewhere.
    amax: Mapping[str, float] = msgspec.field(default_factory=dict)
    #: Nodes that an earlier cast kept by rules, by first output.
    recorded: Mapping[str, KeptNode] = msgspec.field(default_factory=dict)
    #: Whether the graph's inputs and outputs become the short type too.
    casts_ends: bool = False
    #: Nodes between pairs with scales in float32, by qualified label.
    paired: frozenset[str] = frozenset()


def plan_float(index: GraphIndex, request: FloatRequest) -> FloatPlan:
    """Return which nodes of a float model keep float32 when it is cast, in graph order."""
    kept: list[KeptNode] = []
    overflowing: list[OverflowingTensor] = []
    cast = 0
    view = CompilerView(index)
    for path, scope in index.scopes.items():
        scene = Scene(view.scopes[path], request.targets, request.float_type, request.amax)
        decisions = _decide_graph(scope, scene, request)
        for node in scope.nodes:
            if not has_float32(scope, node) or is_type_cast(scope, node, request.float_type):
                continue
            decision = decisions.get(node.label)
            if decision is None:
                cast += 1
                overflowing.extend(_find_overflowing(scope, node, scene))
            else:
                kept.append(decision)
    checked = len(request.amax)
    plan = FloatPlan(request.float_type.name, tuple(kept), cast, checked)
    return msgspec.structs.replace(plan, overflowing=tuple(overflowing))


def _find_overflowing(scope: GraphIndex, node: Node, scene: Scene) -> Iterator[OverflowingTensor]:
    """Yield the tensors around a node that its new type does not hold."""
    for name in (*node.inputs, *node.outputs):
        largest = scene.largest_value(name)
        if largest is not None and largest > scene.float_type.largest:
            label = qualified_name(scope.path, node.label)
            yield OverflowingTensor(qualified_name(scope.path, name), label, largest)


def _decide_graph(scope: GraphIndex, scene: Scene, request: FloatRequest) -> dict[str, KeptNode]:
    """Return the nodes of one graph that are kept, by label."""
    kept: dict[str, KeptNode] = {}
    by_rule = match_kept_nodes(scene, request.rules)
    for node in scope.nodes:
        if not has_float32(scope, node) or is_type_cast(scope, node, request.float_type):
            continue
        because, reason = _decide_node(scope, node, by_rule.get(node.label, ()), request)
        if because:
            kept[node.label] = _make_kept(scope, node, because, reason)
    for node in _find_normalization_ends(scope, scene.index, kept, request):
        reason = "It scales or shifts a normalization of float32."
        kept[node.label] = _make_kept(scope, node, NORMALIZATION, reason)
    neighbors = FloatNeighbors(scope, request.float_type, request.casts_ends)
    for node in neighbors.list_between(kept.keys()):
        reason = "It computes or moves values between nodes in float32."
        kept[node.label] = _make_kept(scope, node, BETWEEN, reason)
    for node in neighbors.list_before(kept.keys()):
        reason = "It cuts values for nodes in float32, which read one Cast before it."
        kept[node.label] = _make_kept(scope, node, BETWEEN, reason)
    return kept


def _make_kept(scope: GraphIndex, node: Node, because: str, reason: str) -> KeptNode:
    label = qualified_name(scope.path, node.label)
    return KeptNode(label, node.op, because, reason, node.outputs[0])


def _decide_node(
    scope: GraphIndex, node: Node, rules: tuple[Rule, ...], request: FloatRequest
) -> tuple[str, str]:
    """Return why a node computes in float32: what decided it and a sentence, or two ""."""
    body_reason = _explain_body(scope)
    if body_reason:
        return BODY, body_reason
    if rules:
        return ", ".join(rule.name for rule in rules), rules[0].says
    recorded = request.recorded.get(node.outputs[0])
    if recorded is not None:
        return recorded.because, recorded.reason
    if qualified_name(scope.path, node.label) in request.paired:
        return PAIRS, "It runs in INT8 between pairs with scales in float32, which Casts prevent."
    return _explain_type(scope, node, request.float_type)


def _explain_body(scope: GraphIndex) -> str:
    """Return the reason why all nodes of a body stay as they are, or "" where they do not."""
    if scope.owner is None or scope.outer is None:
        return ""
    if scope.owner.op not in PLANNED_BODIES:
        return f"The node is in a body of {scope.owner.op}. Only If, Loop and Scan are cast."
    return _explain_body(scope.outer)


def _explain_type(scope: GraphIndex, node: Node, float_type: FloatType) -> tuple[str, str]:
    """Return why a node cannot be of a type: the kind of reason and a sentence, or two ""."""
    opset = default_opset(scope.source.model)
    types = find_node_types(node.proto, opset, float_type)
    if types is None:
        return OPERATOR, "It is no operator of ONNX, so the types that it supports are unknown."
    inputs = zip(node.inputs, types.inputs, strict=True)
    outputs = zip(node.outputs, types.outputs, strict=True)
    is_allowed = False
    for name, is_short in (*inputs, *outputs):
        elem_type = scope.elem_type(name) if name else TensorProto.INT64
        if elem_type == TensorProto.UNDEFINED and is_short:
            return UNKNOWN_TYPE, f"The element type of {name!r} is unknown."
        if elem_type == TensorProto.FLOAT:
            is_allowed = is_allowed or is_short
    if is_allowed or not has_float32(scope, node):
        return "", ""
    return TYPE, f"{node.op} of opset {opset} has no {float_type.onnx_name}."


def _find_normalization_ends(
    scope: GraphIndex, view: CompilerView, kept: Mapping[str, KeptNode], request: FloatRequest
) -> Iterator[Node]:
    """Yield the scale and shift of each decomposed normalization in float32 that reads float32.

    ONNX Runtime 1.31 fuses a normalization whose scale has another type than its input
    (LayerNormFusion), and refuses the result.
    """
    labels = decomposed_normalization_nodes(view) & kept.keys()
    for division in view.nodes:
        if division.label not in labels or division.op not in ("Div", "Mul"):
            continue
        difference = find_input_producer(view, division, ("Sub",))
        if difference is None or not _is_wide(scope, difference.inputs[0], kept, request):
            continue
        last = [division]
        for operator in ("Mul", "Add"):
            readers = list_readers(view, last, (operator,))
            last = [reader for reader in readers if has_constant_input(view, reader)]
            yield from (scope.by_label[reader.label] for reader in last)


def _is_wide(
    scope: GraphIndex, tensor: str, kept: Mapping[str, KeptNode], request: FloatRequest
) -> bool:
    """Whether a tensor is float32 after the cast: of a kept node, or an input of the model."""
    producer = scope.producers.get(tensor)
    if producer is None:
        return tensor in scope.inputs and scope.outer is None and not request.casts_ends
    return producer.label in kept
