"""Explanations of the float part: the type that a node computes in, and why it stays float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from qdq.errors import UsageError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.compiler_view import CompilerView
from qdq.graph.float_types import SHORT_TYPES, FloatType
from qdq.graph.index import GraphIndex, Node
from qdq.graph.metadata import FLOAT_KEY
from qdq.graph.source import Source
from qdq.planning.planner import find_quantized_nodes
from qdq.precision.cast_model import read_kept_nodes
from qdq.precision.float_plan import FloatRequest, KeptNode, plan_float
from qdq.quantized.stripper import strip_model
from qdq.rules.facts import Scene
from qdq.rules.node_selection import glob_names, is_selection, list_selected, make_where
from qdq.rules.rule import Rule, RuleSet
from qdq.rules.rule_files import choose_float_rules
from qdq.target import Target


class FloatExplanation(msgspec.Struct, frozen=True):
    """The decision about the float type of one node, with the rule that decided it."""

    #: Label of the node, after the path of its body.
    node: str
    operator: str
    #: ``fp32``, or the 16-bit type that the node is cast to.
    decision: str
    #: The names of rules, a cause in the graph, or "" where the node is cast.
    rule: str
    #: The rule in a sentence, or the cause.
    says: str
    #: The rule's reason.
    because: str = ""
    #: A document or issue about it.
    see: str = ""
    #: A measurement.
    evidence: str = ""
    #: The largest absolute value in the ranges of its inputs and results; None without ranges.
    largest: float | None = None


def find_recorded_type(source: Source) -> FloatType | None:
    """Return the type that `qdq cast` recorded in a model; None where it recorded none."""
    metadata = {entry.key: entry.value for entry in source.model.metadata_props}
    return SHORT_TYPES.get(metadata.get(FLOAT_KEY, ""))


def explain_floats(
    source: Source,
    name: str,
    float_type: FloatType,
    rules: RuleSet,
    targets: tuple[Target, ...] = (),
    amax: Mapping[str, float] | None = None,
) -> tuple[FloatExplanation, ...]:
    """Return the explanations for the nodes of a name, or those that a tensor connects.

    The model may be cast already, and have pairs. `amax` holds the largest absolute values of
    tensors. Raises UsageError for a name that is neither a node's nor a tensor's.
    """
    index = GraphIndex(_strip_source(source))
    float_rules = choose_float_rules(rules)
    request = FloatRequest(
        float_type,
        float_rules,
        targets,
        amax or {},
        read_kept_nodes(source.model, float_type),
    )
    kept = {node.node: node for node in plan_float(index, request).kept}
    view = CompilerView(index)
    rules_by_name = {rule.name: rule for rule in float_rules.rules}
    explanations: list[FloatExplanation] = []
    for scope, node in _find_nodes(index, name):
        label = qualified_name(scope.path, node.label)
        if label not in kept and not _has_floats(scope, node):
            continue
        says = "No rule keeps it in FP32."
        explanation = FloatExplanation(label, node.op, float_type.name, "", says)
        if label in kept:
            explanation = _explain_kept(kept[label], rules_by_name)
        scene = Scene(view.scopes[scope.path], targets, float_type, request.amax)
        largest = _find_largest(scene, node)
        explanations.append(msgspec.structs.replace(explanation, largest=largest))
    return tuple(explanations)


def _find_largest(scene: Scene, node: Node) -> float | None:
    """Return the largest value that was observed around a node."""
    values = map(scene.largest_value, (*node.inputs, *node.outputs))
    return max((value for value in values if value is not None), default=None)


def _strip_source(source: Source) -> Source:
    """Return the source of the model without its pairs."""
    if not find_quantized_nodes(source):
        return source
    stripped = strip_model(source.model, source.location)
    return msgspec.structs.replace(source, model=stripped, stamp=None)


def _has_floats(scope: GraphIndex, node: Node) -> bool:
    tensors = filter(None, (*node.inputs, *node.outputs))
    return any(scope.is_float(tensor) for tensor in tensors)


def _explain_kept(node: KeptNode, rules: Mapping[str, Rule]) -> FloatExplanation:
    rule = rules.get(node.because.split(", ")[0])
    explanation = FloatExplanation(node.node, node.operator, "fp32", node.because, node.reason)
    if rule is None:
        return explanation
    return msgspec.structs.replace(
        explanation, because=rule.because, see=rule.see, evidence=rule.evidence
    )


def _find_nodes(index: GraphIndex, name: str) -> list[tuple[GraphIndex, Node]]:
    """Return the nodes of a name in all graphs, else those that compute or read its tensor."""
    named: list[tuple[GraphIndex, Node]] = []
    for scope in index.scopes.values():
        nodes = [node for node in scope.nodes if name in glob_names(scope, node)]
        named += [(scope, node) for node in nodes]
    connected = named or list(_find_connected(index, name))
    if not connected and is_selection(name):
        where = make_where(index, name, "NAME", allow_unmatched=False)
        connected = list_selected(index, where)
    if connected:
        return connected
    known = [label for scope in index.scopes.values() for label in scope.by_label]
    hint = did_you_mean(name, known) or "."
    raise UsageError(f"{index.source.name}: the model has no node or tensor {name!r}{hint}")


def _find_connected(index: GraphIndex, tensor: str) -> Iterator[tuple[GraphIndex, Node]]:
    for scope in index.scopes.values():
        if tensor in scope.producers:
            yield scope, scope.producers[tensor]
        for reader, slot in scope.consumers.get(tensor, ()):
            if slot >= 0:
                yield scope, reader
