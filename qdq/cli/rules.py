"""`qdq rules`: what the rules of a set say, and why."""

from __future__ import annotations

import click

from qdq.cli.options import format_option, rules_of, show
from qdq.reporting import Section
from qdq.rule import Rule
from qdq.rulefile import shipped_sets


@click.command("rules")
@click.argument("names", nargs=-1, metavar="[SET|FOLDER]...")
@format_option
def command(names: tuple[str, ...], layout: str) -> None:
    """Print the rules of a set or folder: what each says, why, and where it is written.

    \b
    Example:
      qdq rules tensorrt
    """
    rules = rules_of(names)
    head = Section("Rule sets", (f"shipped: {', '.join(shipped_sets())}; shown: {', '.join(rules.names)}",))
    show(layout, rules, [head, *map(_section, rules.rules)])


def _section(rule: Rule) -> Section:
    lines = [rule.says, f"because: {rule.because}", f"see: {rule.see}", f"evidence: {rule.evidence}", f"beats: {', '.join(rule.beats)}"]
    return Section(rule.name, tuple(line for line in lines if not line.endswith(": ")))
