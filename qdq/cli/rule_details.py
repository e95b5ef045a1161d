"""The record of `qdq rules show`."""

from __future__ import annotations

import msgspec

from qdq.rules.rule import Rule


class RuleDetails(msgspec.Struct, frozen=True):
    """A rule with the rules that beat it and its cases."""

    rule: Rule
    #: The rules that beat it.
    beaten_by: tuple[str, ...]
    #: Its cases: the name and the sentence of each.
    cases: tuple[tuple[str, str], ...]
