"""`qdq rules`: what the rules of a set say, and why."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

from qdq.cli.options import FILE, format_option, rules_of, rules_option, show
from qdq.errors import UsageError, did_you_mean
from qdq.files.output import check_output, write_atomic
from qdq.reports.reference_pages import (
    facts_page,
    find_beating_rules,
    findings_page,
    rule_lines,
    rules_page,
)
from qdq.reports.sections import Section
from qdq.rules.json_schema import rule_schema
from qdq.rules.rule import Rule
from qdq.rules.shipped import shipped_sets
from qdq.testing.case_files import case_names


class _Rules(click.Group):
    """A group that lists where no command is named: `qdq rules tensorrt` is `qdq rules list tensorrt`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "-h", "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("rules", cls=_Rules)
def command() -> None:
    """List and show rules, and write their schema and their documents.

    'qdq rules [SET|FOLDER|FILE]...' is 'qdq rules list'.

    \b
    Example:
      qdq rules tensorrt
      qdq rules show residual-inputs
    """


@command.command("list")
@click.argument("names", nargs=-1, metavar="[SET|FOLDER|FILE]...")
@format_option
def _list(names: tuple[str, ...], layout: str) -> None:
    """Print the rules of sets, folders and files: what each says, why, and where it is written.

    \b
    Example:
      qdq rules list tensorrt my-rules/
    """
    rules = rules_of(names)
    head = Section(
        "Rule sets", (f"shipped: {', '.join(shipped_sets())}; shown: {', '.join(rules.names)}",)
    )
    show(layout, rules, [head, *map(_section, rules.rules)])


class Shown(msgspec.Struct, frozen=True):
    """What `qdq rules show --format json` prints."""

    rule: Rule
    #: The rules that beat it.
    beaten_by: tuple[str, ...]
    #: Its cases: name, and what each shows.
    cases: tuple[tuple[str, str], ...]


@command.command("show")
@click.argument("name")
@rules_option
@format_option
def _show(name: str, rule_sets: tuple[str, ...], layout: str) -> None:
    """Print the rule NAME in full: its sentence, reason, source, evidence, where it holds, what it beats, its cases.

    \b
    Example:
      qdq rules show residual-inputs
    """
    rules = rules_of(rule_sets)
    rule = rules.rule(name)
    if rule is None:
        known = [r.name for r in rules.rules]
        raise UsageError(
            f"no rule {name!r} in {', '.join(rules.names)}{did_you_mean(name, known)}; 'qdq rules' lists them, --rules names others"
        )
    shown = Shown(rule, find_beating_rules(rule, rules), case_names(rule))
    lines = [
        *rule_lines(rule),
        f"beaten by: {', '.join(shown.beaten_by) or 'none of these sets'}",
        f"file: {rule.file}",
    ]
    show(
        layout,
        shown,
        [
            _section(rule),
            Section("Decides", tuple(lines)),
            Section("Cases", tuple(f"{case}: {says}" for case, says in shown.cases)),
        ],
    )


@command.command("schema")
def _schema() -> None:
    """Print the JSON Schema of rule files, which editors complete them by.

    A rule file names it in its first line: '# yaml-language-server: $schema=FILE'.

    \b
    Example:
      qdq rules schema > my-rules/schema.json
    """
    click.echo(json.dumps(rule_schema(), indent=1))


@command.command("docs")
@click.argument("names", nargs=-1, metavar="[SET|FOLDER|FILE]...")
@click.option(
    "-o",
    "--output",
    type=FILE,
    required=True,
    metavar="FOLDER",
    help="Folder for rules.md, facts.md and findings.md.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
def _docs(names: tuple[str, ...], output: Path, force: bool) -> None:
    """Write rules.md, the rules of sets as a document, facts.md, the words they may use, and findings.md, what `qdq check` reports.

    With no SET, all shipped sets.

    \b
    Example:
      qdq rules docs -o docs/ --force
    """
    pages = {
        output / "rules.md": rules_page(names),
        output / "facts.md": facts_page(),
        output / "findings.md": findings_page(),
    }
    for path in pages:
        check_output(path, (), force)
    for path, content in pages.items():
        write_atomic(path, content.encode())
        click.echo(f"wrote {path}")


def _section(rule: Rule) -> Section:
    lines = [
        rule.says,
        f"because: {rule.because}",
        f"see: {rule.see}",
        f"evidence: {rule.evidence}",
        f"beats: {', '.join(rule.beats)}",
    ]
    return Section(rule.name, tuple(line for line in lines if not line.endswith(": ")))
