"""Rules as records: where an edge goes, what to do with it, why, and which rules it beats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from qdq.errors import RuleError, did_you_mean

Then = Literal["quantize", "leave-float", "share-scale"]

#: What `then: share-scale` may be given: how many times a group's range may be as large as a member's own.
RATIO_AT_MOST = "ratio-at-most"

#: The rule that `--leave-float` stands for.
LEAVE_FLOAT_OPTION = "--leave-float"


class TargetCondition(msgspec.Struct, frozen=True):
    """Which targets a rule is for; every line that is given must hold for one target of the plan."""

    sm_at_most: int | None = None
    sm_at_least: int | None = None
    backend: str | None = None


class Where(msgspec.Struct, frozen=True):
    """Which edges a rule applies to: every line that is given must hold, and in a list any word."""

    into: tuple[str, ...] = ()
    from_: tuple[str, ...] = msgspec.field(default=(), name="from")
    edge: tuple[str, ...] = ()
    #: Globs for the consuming node's name, matched in full.
    named: tuple[str, ...] = ()
    #: Globs for the tensor's name, matched in full.
    tensor: tuple[str, ...] = ()
    target: TargetCondition | None = None


class Rule(msgspec.Struct, frozen=True):
    """One sentence about edges: where, then; with its reason, its source and its evidence."""

    name: str
    says: str
    where: Where
    then: Then
    #: Name of a format in `qdq.quantizer.FORMATS`, for `then: quantize`.
    using: str = ""
    #: The numbers that the rule's facts ask for, by parameter; and for `then: share-scale` how far the ranges may lie apart.
    given: tuple[tuple[str, float], ...] = ()
    because: str = ""
    see: str = ""
    evidence: str = ""
    #: Names of rules that drop out where this one applies too; "*" stands for all.
    beats: tuple[str, ...] = ()
    #: The file the rule was read from, "" for one made from an option.
    file: str = ""
    #: The line of each key in the file, those behind `where` included.
    lines: tuple[tuple[str, int], ...] = ()

    def outdoes(self, other: Rule) -> bool:
        """Whether `beats` names the other rule; "*" stands for all but those with a "*" of their own, and in an option for these too."""
        return other.name in self.beats or (
            "*" in self.beats and ("*" not in other.beats or bool(other.file and not self.file))
        )

    def at(self, key: str) -> str:
        """Return where a key of the rule is written, as ``file:line``, or the option's name."""
        line = dict(self.lines).get(key)
        return f"{self.file}:{line}" if line else self.file or self.name


class RuleSet(msgspec.Struct, frozen=True):
    """Rules that have been checked together: names known, no circle in `beats`."""

    names: tuple[str, ...]
    rules: tuple[Rule, ...]

    def rule(self, name: str) -> Rule | None:
        """Return the rule of that name, or None."""
        return next((r for r in self.rules if r.name == name), None)


def make_rule_set(names: Iterable[str], rules: Iterable[Rule]) -> RuleSet:
    """Return the rules as one set, sorted by name so that file order never matters.

    Raises RuleError where `beats` names an unknown rule or rules beat each other in a circle.
    """
    ordered = tuple(sorted(rules, key=lambda r: r.name))
    known = {r.name: r for r in ordered}
    for rule in ordered:
        for beaten in rule.beats:
            if beaten not in known and beaten != "*":
                raise RuleError(
                    f"{rule.at('beats')}: beats names no rule {beaten!r}{did_you_mean(beaten, known)}; correct it, or add --rules with its set"
                )
    for rule in ordered:
        if circle := _circle(rule, known):
            raise RuleError(
                f"{rule.at('beats')}: rules beat each other in a circle: {' beats '.join(circle)}; remove one of these lines"
            )
    return RuleSet(tuple(names), ordered)


def leave_float_rule(glob: str) -> Rule:
    """Return the rule that a user's `--leave-float GLOB` stands for: it beats all others."""
    return Rule(
        name=f"{LEAVE_FLOAT_OPTION} {glob}",
        says=f"Leave in float every input of the nodes named {glob}.",
        where=Where(named=(glob,)),
        then="leave-float",
        because="the user asked for it",
        see="qdq quantize --help",
        beats=("*",),
    )


def _circle(start: Rule, known: dict[str, Rule]) -> list[str]:
    """Return the names on a way from a rule back to itself through `beats`, or nothing."""
    ways = [[start.name]]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        last = known[way[-1]]
        for beaten in (name for name, rule in known.items() if last.outdoes(rule)):
            if beaten == start.name:
                return [*way, beaten]
            if beaten not in seen:
                seen.add(beaten)
                ways.append([*way, beaten])
    return []
