"""Which rules apply to which edges, and what they come to where several do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import msgspec

from qdq.errors import RuleError, UsageError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, Scene, fact_parameters
from qdq.rules.rule import LEAVE_FLOAT_OPTION, Rule, RuleSet, TargetCondition
from qdq.target import Target

Test = Callable[[Scene, Edge], bool]


class Verdict(msgspec.Struct, frozen=True):
    """What the rules say of one edge."""

    edge: Edge
    #: The rules that apply and were not beaten; all say the same.
    rules: tuple[Rule, ...]
    #: Rules that apply but were beaten by one of `rules` or by each other.
    beaten: tuple[Rule, ...] = ()

    @property
    def then(self) -> str:
        """``quantize`` or ``leave-float``."""
        return self.rules[0].then

    @property
    def using(self) -> str:
        """The format's name, "" for leave-float."""
        return self.rules[0].using


def match_rules(
    scene: Scene, rules: RuleSet
) -> tuple[tuple[Verdict, ...], dict[str, tuple[Edge, ...]]]:
    """Return one verdict for every edge of a graph that a rule applies to, and the edges of each share-scale rule.

    Raises RuleError where rules disagree about an edge.
    """
    judges = [
        _Judge(rule)
        for rule in rules.rules
        if rule.where.target is None or any(_is_for(rule.where.target, t) for t in scene.targets)
    ]
    verdicts: list[Verdict] = []
    shared: dict[str, list[Edge]] = {}
    for node in scene.index.nodes:
        here = [judge for judge in judges if judge.may_apply(scene, node)]
        for edge in scene.index.edges_into(node) if here else ():
            applying = [judge.rule for judge in here if judge.applies(scene, edge)]
            for rule in applying:
                if rule.then == "share-scale":
                    shared.setdefault(rule.name, []).append(edge)
            deciding = [rule for rule in applying if rule.then != "share-scale"]
            if deciding:
                verdicts.append(resolve_conflict(edge, deciding))
    return tuple(verdicts), {name: tuple(edges) for name, edges in shared.items()}


def resolve_conflict(edge: Edge, applying: Iterable[Rule]) -> Verdict:
    """Return what is left of the applying rules once beaten ones have dropped out; raises RuleError if they still disagree."""
    applying = tuple(applying)
    standing = tuple(r for r in applying if not any(o.outdoes(r) for o in applying))
    if {(r.then, r.using) for r in standing} == {(standing[0].then, standing[0].using)}:
        return Verdict(edge, standing, tuple(r for r in applying if r not in standing))
    first = standing[0]
    other = next(r for r in standing if (r.then, r.using) != (first.then, first.using))
    raise RuleError(
        f"edge {edge}: {first.name} says {_outcome(first)} and {other.name} says {_outcome(other)}; "
        f"add 'beats: [{other.name}]' to {first.file or first.name}, or 'beats: [{first.name}]' to {other.file or other.name}"
    )


def _outcome(rule: Rule) -> str:
    return f"{rule.then} {rule.using}".strip()


class _Judge:
    """A rule made ready: what its `where` asks of the node an edge goes into, asked once a node, and of the edge itself."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._ops = frozenset(word for word in rule.where.into if word not in NODE_FACTS)
        self._node_tests = [
            _node_test(word, rule) for word in rule.where.into if word in NODE_FACTS
        ]
        self._edge_tests = _edge_tests(rule)

    def may_apply(self, scene: Scene, node: Node) -> bool:
        """Whether the rule's `into` holds for a node."""
        return (
            not self.rule.where.into
            or node.op in self._ops
            or any(test(scene, node) for test in self._node_tests)
        )

    def applies(self, scene: Scene, edge: Edge) -> bool:
        """Whether the rest holds for an edge into such a node."""
        return all(test(scene, edge) for test in self._edge_tests)


def _edge_tests(rule: Rule) -> list[Test]:
    """Return what must hold for an edge besides `into` and `target`, cheapest first."""
    where, tests = rule.where, list[Test]()
    if where.named:
        tests.append(lambda scene, edge: any(_named(scene, edge, glob) for glob in where.named))
    if where.tensor:
        tests.append(
            lambda scene, edge: any(fnmatchcase(edge.tensor, glob) for glob in where.tensor)
        )
    from_ = [_node_test(word, rule) for word in where.from_]
    if from_:
        tests.append(lambda scene, edge: _made_by(scene, edge, from_))
    if where.edge:
        facts = [_given(EDGE_FACTS[word], rule) for word in where.edge]
        tests.append(lambda scene, edge: any(fact(scene, edge) for fact in facts))
    return tests


def _node_test(word: str, rule: Rule) -> Callable[[Scene, Node], bool]:
    if word in NODE_FACTS:
        return _given(NODE_FACTS[word], rule)
    return lambda _, node: node.op == word


def _given(fact: Callable[..., bool], rule: Rule) -> Callable[..., bool]:
    """Return a fact with the numbers that the rule gives it."""
    given = dict(rule.given)
    numbers: dict[str, Any] = {
        name.replace("-", "_"): given[name] for name in fact_parameters(fact)
    }
    return partial(fact, **numbers) if numbers else fact


def _made_by(scene: Scene, edge: Edge, tests: list[Callable[[Scene, Node], bool]]) -> bool:
    node = scene.index.producers.get(edge.tensor)
    return node is not None and any(test(scene, node) for test in tests)


def _is_for(condition: TargetCondition, target: Target) -> bool:
    return (
        (condition.backend is None or condition.backend == target.backend)
        and (condition.sm_at_most is None or target.sm <= condition.sm_at_most)
        and (condition.sm_at_least is None or target.sm >= condition.sm_at_least)
    )


def _named(scene: Scene, edge: Edge, glob: str) -> bool:
    node = scene.index.node(edge)
    return any(fnmatchcase(name, glob) for name in glob_names(scene.index, node))


def glob_names(index: GraphIndex, node: Node) -> set[str]:
    """Return what a glob may call a node: its label, its name, and in a body its label behind the body's path."""
    return {node.label, node.proto.name or node.label, qualified_name(index.path, node.label)}


def require_matches(index: GraphIndex, rules: Iterable[Rule]) -> None:
    """Raise UsageError for a glob that no name of the graph or of its bodies matches."""
    names = [
        name
        for scope in index.scopes.values()
        for node in scope.nodes
        for name in glob_names(scope, node)
    ]
    tensors = [tensor for scope in index.scopes.values() for tensor in scope.consumers]
    for rule in rules:
        for key, globs, known in (
            ("named", rule.where.named, names),
            ("tensor", rule.where.tensor, tensors),
        ):
            for glob in globs:
                if not any(fnmatchcase(name, glob) for name in known):
                    origin = rule.at(key) if rule.file else LEAVE_FLOAT_OPTION
                    what = "node" if key == "named" else "tensor"
                    raise UsageError(
                        f"{index.source.name}: {origin}: no {what} is named {glob!r}{did_you_mean(glob, known)}; correct it, or pass --allow-unmatched"
                    )
