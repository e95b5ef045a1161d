"""Rule files that leave nodes in float, as searches write them."""

from __future__ import annotations

import msgspec
import yaml

from qdq.planning.plan_request import exact_globs
from qdq.rules.rule import RuleSet

#: The width of YAML, so that no line is folded.
_YAML_WIDTH = 1_000_000


class LeaveFloatRule(msgspec.Struct, frozen=True):
    """A rule that leaves some nodes in float, and what was measured."""

    name: str
    says: str
    because: str
    see: str
    evidence: str
    #: Labels of the nodes.
    nodes: tuple[str, ...]


def format_leave_float_rule(rule: LeaveFloatRule, rules: RuleSet) -> str:
    """Return the rule file; the rule beats all others, and those of `rules` that do so too."""
    rivals = []
    for other in rules.rules:
        if other.then == "quantize" and "*" in other.beats:
            rivals.append(other.name)
    content = {
        "rule": rule.name,
        "says": rule.says,
        "because": rule.because,
        "see": rule.see,
        "evidence": rule.evidence,
        "where": {"named": list(exact_globs(rule.nodes))},
        "then": "leave-float",
        "beats": ["*", *rivals],
    }
    return yaml.safe_dump(content, sort_keys=False, width=_YAML_WIDTH, allow_unicode=True)
