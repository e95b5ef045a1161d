"""Matching: the rules that apply to each edge, and the verdict where several do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial

import msgspec

from qdq.errors import RuleError, UsageError, did_you_mean
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, Scene, fact_parameters
from qdq.rules.node_selection import glob_names, split_literal_globs
from qdq.rules.rule import (
    KEEP_FP32,
    KEEP_FP32_OPTION,
    LEAVE_FLOAT_OPTION,
    Rule,
    RuleSet,
    TargetCondition,
)
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

    Also returns the edges of each share-scale rule, by its name. All edges are those of the file;
    those into aliases have no verdict. Raises RuleError where rules disagree about an edge.
    """
    deciding_rules = (rule for rule in rules.rules if rule.then != KEEP_FP32)
    matchers = _make_matchers(deciding_rules, scene.targets)
    verdicts: list[Verdict] = []
    shared: dict[str, list[Edge]] = {}
    for node in scene.index.nodes:
        node_matchers = [matcher for matcher in matchers if matcher.may_apply(scene, node)]
        if not node_matchers:
            continue
        for edge in scene.index.edges_into(node):
            deciding: list[Rule] = []
            for matcher in node_matchers:
                if not matcher.applies(scene, edge):
                    continue
                rule = matcher.rule
                if rule.then == "share-scale":
                    shared.setdefault(rule.name, []).append(scene.index.file_edge(edge))
                else:
                    deciding.append(rule)
            if deciding:
                verdict = resolve_conflict(scene.index.file_edge(edge), deciding)
                verdicts.append(verdict)
    shared_edges = {name: tuple(edges) for name, edges in shared.items()}
    return tuple(verdicts), shared_edges


def match_kept_nodes(scene: Scene, rules: RuleSet) -> dict[str, tuple[Rule, ...]]:
    """Return the keep-fp32 rules that apply to each node of a graph, by the node's label.

    A rule applies to a node if it applies to one of the edges into it. Rules that others of them
    beat are left out.
    """
    keeping_rules = (rule for rule in rules.rules if rule.then == KEEP_FP32)
    matchers = _make_matchers(keeping_rules, scene.targets)
    kept: dict[str, tuple[Rule, ...]] = {}
    for node in scene.index.nodes:
        node_matchers = [matcher for matcher in matchers if matcher.may_apply(scene, node)]
        edges = tuple(scene.index.edges_into(node)) if node_matchers else ()
        applying: list[Rule] = []
        for matcher in node_matchers:
            if any(matcher.applies(scene, edge) for edge in edges):
                applying.append(matcher.rule)
        if applying:
            kept[node.label] = resolve_conflict(edges[0], applying).rules
    return kept


def resolve_conflict(edge: Edge, applying: Iterable[Rule]) -> Verdict:
    """Return the verdict of the applying rules after the beaten ones dropped out.

    Raises RuleError where the remaining rules disagree.
    """
    applying = tuple(applying)
    remaining: list[Rule] = []
    beaten: list[Rule] = []
    for rule in applying:
        is_beaten = any(other.outdoes(rule) for other in applying)
        if is_beaten:
            beaten.append(rule)
        else:
            remaining.append(rule)
    first = remaining[0]
    for other in remaining:
        if other.then != first.then or other.using != first.using:
            raise RuleError(_describe_conflict(edge, first, other))
    return Verdict(edge, tuple(remaining), tuple(beaten))


def _describe_conflict(edge: Edge, first: Rule, other: Rule) -> str:
    first_file = first.file or first.name
    other_file = other.file or other.name
    first_decision = _describe_decision(first)
    other_decision = _describe_decision(other)
    return (
        f"edge {edge}: rule {first.name} decides {first_decision}, "
        f"rule {other.name} decides {other_decision}. "
        f"Add 'beats: [{other.name}]' to {first_file}, "
        f"or 'beats: [{first.name}]' to {other_file}."
    )


def _describe_decision(rule: Rule) -> str:
    decision = f"{rule.then} {rule.using}"
    return decision.strip()


class _RuleMatcher:
    """A rule with its tests: those of the node are run once per node, the others once per edge."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._operators: set[str] = set()
        self._node_facts: list[NodeTest] = []
        for word in rule.where.into:
            if word in NODE_FACTS:
                fact = _bind_numbers(NODE_FACTS[word], rule)
                self._node_facts.append(fact)
            else:
                self._operators.add(word)
        self._edge_tests = _make_edge_tests(rule)

    def may_apply(self, scene: Scene, node: Node) -> bool:
        """Whether the rule's `into` holds for a node."""
        if not self.rule.where.into:
            return True
        if not self._operators.isdisjoint(scene.index.operator_names(node)):
            return True
        return any(fact(scene, node) for fact in self._node_facts)

    def applies(self, scene: Scene, edge: Edge) -> bool:
        """Whether the other conditions hold for an edge into a node for which `into` holds."""
        return all(test(scene, edge) for test in self._edge_tests)


def _make_matchers(rules: Iterable[Rule], targets: Iterable[Target]) -> list[_RuleMatcher]:
    """Return a matcher for each rule that is for one of the targets."""
    matchers: list[_RuleMatcher] = []
    for rule in rules:
        if _is_for_targets(rule, targets):
            matcher = _RuleMatcher(rule)
            matchers.append(matcher)
    return matchers


def _is_for_targets(rule: Rule, targets: Iterable[Target]) -> bool:
    condition = rule.where.target
    if condition is None:
        return True
    return any(_meets_condition(target, condition) for target in targets)


def _meets_condition(target: Target, condition: TargetCondition) -> bool:
    backend = condition.backend
    highest = condition.sm_at_most
    lowest = condition.sm_at_least
    if backend is not None and target.backend != backend:
        return False
    if highest is not None and target.sm > highest:
        return False
    return lowest is None or target.sm >= lowest


def _make_edge_tests(rule: Rule) -> list[EdgeTest]:
    """Return the tests of an edge, all but `into` and `target`, cheapest first."""
    where = rule.where
    tests: list[EdgeTest] = []
    if where.named:
        names, globs = split_literal_globs(where.named)
        test = partial(_is_into_named_node, names, globs)
        tests.append(test)
    if where.tensor:
        test = partial(_is_of_named_tensor, where.tensor)
        tests.append(test)
    if where.from_:
        node_tests = [_make_node_test(word, rule) for word in where.from_]
        test = partial(_is_produced_by, node_tests)
        tests.append(test)
    if where.edge:
        facts = [_bind_numbers(EDGE_FACTS[word], rule) for word in where.edge]
        test = partial(_is_any_fact, facts)
        tests.append(test)
    return tests


def _is_into_named_node(
    literal_names: frozenset[str], globs: tuple[str, ...], scene: Scene, edge: Edge
) -> bool:
    node = scene.index.node(edge)
    names = glob_names(scene.index, node)
    if not literal_names.isdisjoint(names):
        return True
    return any(_matches_glob(name, globs) for name in names)


def _is_of_named_tensor(globs: tuple[str, ...], scene: Scene, edge: Edge) -> bool:
    """Whether a glob matches the tensor that the node reads, or the origin of that alias."""
    names = (edge.tensor, scene.index.file_edge(edge).tensor)
    return any(_matches_glob(name, globs) for name in names)


def _is_produced_by(tests: list[NodeTest], scene: Scene, edge: Edge) -> bool:
    producer = scene.index.producers.get(edge.tensor)
    if producer is None:
        return False
    return any(test(scene, producer) for test in tests)


def _is_any_fact(facts: list[EdgeTest], scene: Scene, edge: Edge) -> bool:
    return any(fact(scene, edge) for fact in facts)


def _make_node_test(word: str, rule: Rule) -> NodeTest:
    if word in NODE_FACTS:
        return _bind_numbers(NODE_FACTS[word], rule)
    return lambda scene, node: word in scene.index.operator_names(node)


def _bind_numbers(fact: Callable[..., bool], rule: Rule) -> Callable[..., bool]:
    """Return a fact with the numbers that the rule states for it."""
    rule_numbers = dict(rule.given)
    numbers: dict[str, float] = {}
    for name in fact_parameters(fact):
        keyword = name.replace("-", "_")
        numbers[keyword] = rule_numbers[name]
    if not numbers:
        return fact
    return partial(fact, **numbers)


def _matches_glob(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def require_matches(index: GraphIndex, rules: Iterable[Rule]) -> None:
    """Raise UsageError for a glob that no name of the graph or of its bodies matches."""
    node_names: list[str] = []
    tensors: list[str] = []
    for scope in index.scopes.values():
        for node in scope.nodes:
            node_names += glob_names(scope, node)
        tensors += scope.consumers
    for rule in rules:
        _require_rule_matches(index, rule, "named", rule.where.named, node_names)
        _require_rule_matches(index, rule, "tensor", rule.where.tensor, tensors)


def _require_rule_matches(
    index: GraphIndex, rule: Rule, key: str, globs: Iterable[str], names: Sequence[str]
) -> None:
    known = set(names)
    unmatched: list[str] = []
    for glob in globs:
        if glob not in known and not any(fnmatchcase(name, glob) for name in names):
            unmatched.append(glob)
    if not unmatched:
        return
    option = KEEP_FP32_OPTION if rule.then == KEEP_FP32 else LEAVE_FLOAT_OPTION
    origin = rule.at(key) if rule.file else option
    kind = "node" if key == "named" else "tensor"
    if len(unmatched) == 1:
        hint = did_you_mean(unmatched[0], names) or "."
        missing, fix = f"no {kind} is named {unmatched[0]!r}{hint}", "Correct it"
    else:
        listed = ", ".join(map(repr, unmatched))
        missing, fix = f"no {kind}s are named {listed}.", "Correct them"
    raise UsageError(f"{index.source.name}: {origin}: {missing} {fix}, or pass --allow-unmatched.")
