"""Matching: the rules that apply to each edge, and the verdict where several do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial

import msgspec

from qdq.errors import RuleError, UsageError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, Scene, fact_parameters
from qdq.rules.rule import LEAVE_FLOAT_OPTION, Rule, RuleSet, TargetCondition
from qdq.target import Target

NodeTest = Callable[[Scene, Node], bool]
EdgeTest = Callable[[Scene, Edge], bool]


class Verdict(msgspec.Struct, frozen=True):
    """The decision of the rules about one edge."""

    edge: Edge
    #: The rules that apply and were not beaten; all decide the same.
    rules: tuple[Rule, ...]
    #: Rules that apply but were beaten by one of `rules` or by each other.
    beaten: tuple[Rule, ...] = ()

    @property
    def then(self) -> str:
        """``quantize`` or ``leave-float``."""
        return self.rules[0].then

    @property
    def using(self) -> str:
        """The format's name; "" for leave-float."""
        return self.rules[0].using


def match_rules(
    scene: Scene, rules: RuleSet
) -> tuple[tuple[Verdict, ...], dict[str, tuple[Edge, ...]]]:
    """Return a verdict for each edge of a graph that a rule applies to.

    Also returns the edges of each share-scale rule, by its name. Raises RuleError where rules
    disagree about an edge.
    """
    matchers = [_RuleMatcher(rule) for rule in rules.rules if _is_for_targets(rule, scene.targets)]
    verdicts: list[Verdict] = []
    shared: dict[str, list[Edge]] = {}
    for node in scene.index.nodes:
        node_matchers = [matcher for matcher in matchers if matcher.may_apply(scene, node)]
        if not node_matchers:
            continue
        for edge in scene.index.edges_into(node):
            applying = [m.rule for m in node_matchers if m.applies(scene, edge)]
            deciding = [rule for rule in applying if rule.then != "share-scale"]
            for rule in applying:
                if rule.then == "share-scale":
                    shared.setdefault(rule.name, []).append(edge)
            if deciding:
                verdicts.append(resolve_conflict(edge, deciding))
    return tuple(verdicts), {name: tuple(edges) for name, edges in shared.items()}


def resolve_conflict(edge: Edge, applying: Iterable[Rule]) -> Verdict:
    """Return the verdict of the applying rules after the beaten ones dropped out.

    Raises RuleError where the remaining rules disagree.
    """
    applying = tuple(applying)
    remaining = tuple(rule for rule in applying if not _is_beaten(rule, applying))
    first = remaining[0]
    for other in remaining:
        if (other.then, other.using) != (first.then, first.using):
            raise RuleError(_describe_conflict(edge, first, other))
    beaten = tuple(rule for rule in applying if rule not in remaining)
    return Verdict(edge, remaining, beaten)


def _is_beaten(rule: Rule, applying: tuple[Rule, ...]) -> bool:
    return any(other.outdoes(rule) for other in applying)


def _describe_conflict(edge: Edge, first: Rule, other: Rule) -> str:
    first_file = first.file or first.name
    other_file = other.file or other.name
    return (
        f"edge {edge}: rule {first.name} decides {_describe_decision(first)}, "
        f"rule {other.name} decides {_describe_decision(other)}. "
        f"Add 'beats: [{other.name}]' to {first_file}, or 'beats: [{first.name}]' to {other_file}."
    )


def _describe_decision(rule: Rule) -> str:
    return f"{rule.then} {rule.using}".strip()


class _RuleMatcher:
    """A rule with its tests: those of the node are run once per node, the others once per edge."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._operators = frozenset(word for word in rule.where.into if word not in NODE_FACTS)
        facts = [word for word in rule.where.into if word in NODE_FACTS]
        self._node_tests = [_make_node_test(word, rule) for word in facts]
        self._edge_tests = _make_edge_tests(rule)

    def may_apply(self, scene: Scene, node: Node) -> bool:
        """Whether the rule's `into` holds for a node."""
        if not self.rule.where.into or node.op in self._operators:
            return True
        return any(test(scene, node) for test in self._node_tests)

    def applies(self, scene: Scene, edge: Edge) -> bool:
        """Whether the other conditions hold for an edge into a node for which `into` holds."""
        return all(test(scene, edge) for test in self._edge_tests)


def _make_edge_tests(rule: Rule) -> list[EdgeTest]:
    """Return the tests of an edge, all but `into` and `target`, cheapest first."""
    where = rule.where
    tests: list[EdgeTest] = []
    if where.named:
        tests.append(partial(_is_into_named_node, where.named))
    if where.tensor:
        tests.append(partial(_is_of_named_tensor, where.tensor))
    if where.from_:
        node_tests = [_make_node_test(word, rule) for word in where.from_]
        tests.append(partial(_is_produced_by, node_tests))
    if where.edge:
        facts = [_bind_numbers(EDGE_FACTS[word], rule) for word in where.edge]
        tests.append(partial(_is_any_fact, facts))
    return tests


def _is_into_named_node(globs: tuple[str, ...], scene: Scene, edge: Edge) -> bool:
    names = glob_names(scene.index, scene.index.node(edge))
    return any(_matches_glob(name, globs) for name in names)


def _is_of_named_tensor(globs: tuple[str, ...], _: Scene, edge: Edge) -> bool:
    return _matches_glob(edge.tensor, globs)


def _is_produced_by(tests: list[NodeTest], scene: Scene, edge: Edge) -> bool:
    producer = scene.index.producers.get(edge.tensor)
    return producer is not None and any(test(scene, producer) for test in tests)


def _is_any_fact(facts: list[EdgeTest], scene: Scene, edge: Edge) -> bool:
    return any(fact(scene, edge) for fact in facts)


def _make_node_test(word: str, rule: Rule) -> NodeTest:
    if word in NODE_FACTS:
        return _bind_numbers(NODE_FACTS[word], rule)
    return lambda _, node: node.op == word


def _bind_numbers(fact: Callable[..., bool], rule: Rule) -> Callable[..., bool]:
    """Return a fact with the numbers that the rule states for it."""
    rule_numbers = dict(rule.given)
    numbers: dict[str, float] = {}
    for name in fact_parameters(fact):
        numbers[name.replace("-", "_")] = rule_numbers[name]
    return partial(fact, **numbers) if numbers else fact


def _is_for_targets(rule: Rule, targets: Iterable[Target]) -> bool:
    condition = rule.where.target
    return condition is None or any(_meets_condition(target, condition) for target in targets)


def _meets_condition(target: Target, condition: TargetCondition) -> bool:
    if condition.backend is not None and target.backend != condition.backend:
        return False
    if condition.sm_at_most is not None and target.sm > condition.sm_at_most:
        return False
    return condition.sm_at_least is None or target.sm >= condition.sm_at_least


def _matches_glob(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def glob_names(index: GraphIndex, node: Node) -> set[str]:
    """Return the names of a node that a glob may match.

    They are its label, its name, and in a body the label after the body's path.
    """
    return {node.label, node.proto.name or node.label, qualified_name(index.path, node.label)}


def require_matches(index: GraphIndex, rules: Iterable[Rule]) -> None:
    """Raise UsageError for a glob that no name of the graph or of its bodies matches."""
    node_names: list[str] = []
    tensors: list[str] = []
    for scope in index.scopes.values():
        for node in scope.nodes:
            node_names += glob_names(scope, node)
        tensors += scope.consumers
    for rule in rules:
        for glob in rule.where.named:
            _require_match(index, rule, "named", glob, node_names)
        for glob in rule.where.tensor:
            _require_match(index, rule, "tensor", glob, tensors)


def _require_match(
    index: GraphIndex, rule: Rule, key: str, glob: str, names: Iterable[str]
) -> None:
    if any(fnmatchcase(name, glob) for name in names):
        return
    origin = rule.at(key) if rule.file else LEAVE_FLOAT_OPTION
    kind = "node" if key == "named" else "tensor"
    hint = did_you_mean(glob, names) or "."
    raise UsageError(
        f"{index.source.name}: {origin}: no {kind} is named {glob!r}{hint} "
        "Correct it, or pass --allow-unmatched."
    )
