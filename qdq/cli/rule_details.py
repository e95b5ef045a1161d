"""The record of `qdq rules show`."""

from __future__ import annotations

import msgspec

from qdq.rules.rule import Rule


class RuleDetails(msgspec.Struct, frozen=True):
    """The record that `qdq rules show --format json` prints."""

    rule: Rule
    #: The rules that beat it.
    beaten_by: tuple[str, ...]
    #: Its cases: the name and the sentence of each.
    cases: tuple[tuple[str, str], ...]
