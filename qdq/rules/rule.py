"""Rules as records: the edges, the decision, the reason and the rules that are beaten."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from qdq.errors import RuleError, did_you_mean

Then = Literal["quantize", "leave-float", "share-scale", "keep-fp32"]

#: The decision that a node computes in float32 where the rest of the model is cast.
KEEP_FP32 = "keep-fp32"

#: A number of `then: share-scale`: the largest ratio of a group's range to a member's.
RATIO_AT_MOST = "ratio-at-most"

#: The name of the rules that `--leave-float` makes, before the glob.
LEAVE_FLOAT_OPTION = "--leave-float"

#: The name of the rules that `--keep-fp32` makes, before the glob.
KEEP_FP32_OPTION = "--keep-fp32"

_ALL_RULES = "*"


class TargetCondition(msgspec.Struct, frozen=True):
    """The targets of a rule: every stated condition must hold for one target of the plan."""

    #: Largest compute capability, null for any.
    sm_at_most: int | None = None
    #: Smallest compute capability, null for any.
    sm_at_least: int | None = None
    #: `rtx` or `trt`, null for any.
    backend: str | None = None


class Where(msgspec.Struct, frozen=True):
    """The edges that a rule applies to: every stated line must hold, and any word of a list."""

    #: Operators or facts of the node that reads the tensor.
    into: tuple[str, ...] = ()
    #: Operators or facts of the node that makes the tensor.
    from_: tuple[str, ...] = msgspec.field(default=(), name="from")
    #: Facts about the edge itself.
    edge: tuple[str, ...] = ()
    #: Globs for the consuming node's name, matched in full.
    named: tuple[str, ...] = ()
    #: Globs for the tensor's name, matched in full.
    tensor: tuple[str, ...] = ()
    target: TargetCondition | None = None


class Rule(msgspec.Struct, frozen=True):
    """One decision about edges, with its reason, its source and its evidence."""

    #: The name; it is unique in a set.
    name: str
    #: The rule in a sentence.
    says: str
    where: Where
    #: The decision.
    then: Then
    #: Name of a format in `qdq.quantizer.FORMATS`, for `then: quantize`.
    using: str = ""
    #: The numbers that the rule's facts require, by parameter; the ratio of `then: share-scale`.
    given: tuple[tuple[str, float], ...] = ()
    #: Its reason.
    because: str = ""
    #: A document or issue about it.
    see: str = ""
    #: A measurement.
    evidence: str = ""
    #: Names of rules that drop out where this one applies too; "*" means all.
    beats: tuple[str, ...] = ()
    #: The file the rule was read from; "" for a rule from an option.
    file: str = ""
    #: The line of each key in the file, including the keys under `where`.
    lines: tuple[tuple[str, int], ...] = ()

    def outdoes(self, other: Rule) -> bool:
        """Whether `beats` names the other rule.

        "*" names all rules without a "*" in their own `beats`. In an option's rule it names also
        the rules of files that have one.
        """
        if other.name in self.beats:
            return True
        if _ALL_RULES not in self.beats:
            return False
        if _ALL_RULES not in other.beats:
            return True
        return bool(other.file) and not self.file

    def at(self, key: str) -> str:
        """Return the place of a key of the rule as ``file:line``, or the option's name."""
        if not self.file:
            return self.name
        line = dict(self.lines).get(key)
        return f"{self.file}:{line}" if line else self.file


class RuleSet(msgspec.Struct, frozen=True):
    """Rules that were checked together: `beats` names known rules and has no circle."""

    #: The names of the sets, folders and files.
    names: tuple[str, ...]
    rules: tuple[Rule, ...]

    def rule(self, name: str) -> Rule | None:
        """Return the rule of that name, or None."""
        for rule in self.rules:
            if rule.name == name:
                return rule
        return None


def make_rule_set(names: Iterable[str], rules: Iterable[Rule]) -> RuleSet:
    """Return the rules as one set, sorted by name, so that file order never matters.

    Raises RuleError where `beats` names an unknown rule or rules beat each other in a circle.
    """
    ordered = tuple(sorted(rules, key=lambda rule: rule.name))
    known = {rule.name: rule for rule in ordered}
    for rule in ordered:
        _require_known_beaten(rule, known)
    for rule in ordered:
        _require_no_circle(rule, known)
    return RuleSet(tuple(names), ordered)


def _require_known_beaten(rule: Rule, known: dict[str, Rule]) -> None:
    for beaten in rule.beats:
        if beaten not in known and beaten != _ALL_RULES:
            place = rule.at("beats")
            hint = did_you_mean(beaten, known) or "."
            raise RuleError(
                f"{place}: 'beats' names an unknown rule {beaten!r}{hint} "
                "Correct it, or add --rules with its set."
            )


def _require_no_circle(rule: Rule, known: dict[str, Rule]) -> None:
    circle = _find_circle(rule, known)
    if circle:
        place = rule.at("beats")
        path = " beats ".join(circle)
        raise RuleError(
            f"{place}: rules beat each other in a circle: {path}. Remove one of these lines."
        )


def _find_circle(start: Rule, known: dict[str, Rule]) -> list[str]:
    """Return the names on a path from a rule back to itself through `beats`, or an empty list."""
    paths = [[start.name]]
    visited: set[str] = set()
    while paths:
        path = paths.pop()
        last = known[path[-1]]
        for name, rule in known.items():
            if not last.outdoes(rule):
                continue
            if name == start.name:
                return [*path, name]
            if name not in visited:
                visited.add(name)
                paths.append([*path, name])
    return []


def leave_float_rule(text: str, where: Where, nodes: str) -> Rule:
    """Return the rule of a user's `--leave-float TEXT`; it beats all others.

    `nodes` states in words which nodes `where` selects.
    """
    return Rule(
        name=f"{LEAVE_FLOAT_OPTION} {text}",
        says=f"Leave in float every input of {nodes}.",
        where=where,
        then="leave-float",
        because="The user requested it.",
        see="qdq quantize --help",
        beats=(_ALL_RULES,),
    )


def keep_fp32_rule(text: str, where: Where, nodes: str) -> Rule:
    """Return the rule of a user's `--keep-fp32 TEXT`; `nodes` states in words what it selects."""
    return Rule(
        name=f"{KEEP_FP32_OPTION} {text}",
        says=f"Compute {nodes} in float32.",
        where=where,
        then="keep-fp32",
        because="The user requested it.",
        see="qdq cast --help",
    )


def sensitive_rule(name: str, globs: tuple[str, ...]) -> Rule:
    """Return the rule that leaves layers in float by measurement; it beats all others."""
    return Rule(
        name=name,
        says="Leave in float the layers whose INT8 was measured to make much of the error.",
        where=Where(named=globs),
        then="leave-float",
        because="A small part of the layers often makes most of the error.",
        see="qdq sensitivity --help",
        beats=(_ALL_RULES,),
    )
