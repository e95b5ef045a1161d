"""`qdq rules`: the rules of a set, and their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qdq.cli.messages import print_record, print_summary_line
from qdq.cli.options import PATH, force_option, format_option
from qdq.cli.plan_options import read_rule_sets, rules_option
from qdq.cli.rule_details import RuleDetails
from qdq.documentation import locate_page
from qdq.errors import UsageError, did_you_mean
from qdq.files.output import check_output, write_atomic, written_together
from qdq.reports.reference_pages import (
    facts_page,
    find_beating_rules,
    findings_page,
    rule_lines,
    rules_page,
)
from qdq.reports.sections import Section
from qdq.rules.json_schema import rule_schema
from qdq.rules.rule import Rule, RuleSet
from qdq.rules.shipped import shipped_sets
from qdq.testing.case_files import case_names


class _RulesGroup(click.Group):
    """A group whose default is `list`: `qdq rules tensorrt` is `qdq rules list tensorrt`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_default = not args or args[0] not in (*self.commands, "-h", "--help")
        if is_default and not ctx.resilient_parsing:  # the shell completes `list` and `show`
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("rules", cls=_RulesGroup)
def command() -> None:
    """List and show rules, and write their schema and documentation.

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
    """Print the rules of sets, folders and files, each with its reason and its source.

    \b
    Example:
      qdq rules list tensorrt my-rules/
    """
    rules = read_rule_sets(names)
    shipped = ", ".join(shipped_sets())
    line = f"shipped: {shipped}; shown: {', '.join(rules.names)}"
    sections = [Section("Rule sets", (line,)), *map(_rule_section, rules.rules)]
    print_record(layout, rules, sections)


@command.command("show")
@click.argument("name")
@rules_option
@format_option
def _show(name: str, rule_sets: tuple[str, ...], layout: str) -> None:
    """Print the rule NAME in full: sentence, reason, source, evidence, conditions and cases.

    \b
    Example:
      qdq rules show residual-inputs
    """
    rules = read_rule_sets(rule_sets)
    rule = _find_rule(name, rules)
    details = RuleDetails(rule, find_beating_rules(rule, rules), case_names(rule))
    beaten_by = ", ".join(details.beaten_by) or "none of these sets"
    lines = [*rule_lines(rule), f"beaten by: {beaten_by}", f"file: {rule.file}"]
    _add_line(lines, "page", _find_page(rule, rules))
    cases = tuple(f"{case}: {sentence}" for case, sentence in details.cases)
    sections = [_rule_section(rule), Section("Decides", tuple(lines)), Section("Cases", cases)]
    print_record(layout, details, sections)


def _find_page(rule: Rule, rules: RuleSet) -> str:
    """Return the address of a shipped rule's description, "" for a rule of the user."""
    is_shipped = set(rules.names) <= set(shipped_sets())
    return locate_page("rules", rule.name) if is_shipped else ""


def _find_rule(name: str, rules: RuleSet) -> Rule:
    """Return the rule of a name; raises UsageError where there is none."""
    rule = rules.rule(name)
    if rule is None:
        hint = did_you_mean(name, [known.name for known in rules.rules])
        raise UsageError(
            f"no rule {name!r} in {', '.join(rules.names)}{hint} "
            "'qdq rules' lists the rules; pass --rules for those of other sets."
        )
    return rule


@command.command("schema")
def _schema() -> None:
    """Print the JSON Schema of rule files, with which editors complete and check them.

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
    type=PATH,
    required=True,
    metavar="FOLDER",
    help="Folder for rules.md, facts.md, findings.md, json.md and commands.md.",
)
@force_option
def _docs(names: tuple[str, ...], output: Path, force: bool) -> None:
    """Write the generated pages: rules.md, facts.md, findings.md, json.md, commands.md.

    Without SET, rules.md has the rules of all shipped sets.

    \b
    Example:
      qdq rules docs -o docs/ --force
    """
    from qdq.cli.json_records import JSON_RECORDS  # with it come all commands
    from qdq.reports.command_reference import commands_page
    from qdq.reports.json_reference import json_page

    pages = {
        output / "rules.md": rules_page(names),
        output / "facts.md": facts_page(),
        output / "findings.md": findings_page(),
        output / "json.md": json_page(JSON_RECORDS),
        output / "commands.md": commands_page(_find_root_group()),
    }
    for path in pages:
        check_output(path, force)
    with written_together():
        for path, content in pages.items():
            write_atomic(path, content.encode())
    for path in pages:
        print_summary_line(f"wrote {path}")


def _find_root_group() -> click.Group:
    """Return the group of all commands."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    return root


def _rule_section(rule: Rule) -> Section:
    lines = [rule.says]
    _add_line(lines, "because", rule.because)
    _add_line(lines, "see", rule.see)
    _add_line(lines, "evidence", rule.evidence)
    _add_line(lines, "beats", ", ".join(rule.beats))
    return Section(rule.name, tuple(lines))


def _add_line(lines: list[str], label: str, text: str) -> None:
    if text:
        lines.append(f"{label}: {text}")
