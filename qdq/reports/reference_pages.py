"""The rules, facts and findings as Markdown: generated from the rule files, the facts' docstrings and the catalogue of problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from qdq.checking.catalogue import PROBLEMS, SEVERITIES
from qdq.files.strict_yaml import read_yaml
from qdq.quantizer import FORMATS
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, fact_parameters
from qdq.rules.rule import Rule, RuleSet, Where
from qdq.rules.rule_files import SET_FILE, load_rules, rules_path
from qdq.rules.shipped import DEFAULT_SET, shipped_sets
from qdq.testing.case_files import case_names

_MADE = "Made by `qdq rules docs`; do not edit."


def rules_page(names: Iterable[str] = ()) -> str:
    """Return the rules of sets, folders or files as Markdown, each set on its own; with none named all shipped sets, the default first.

    Raises RuleError for mistakes in them.
    """
    names = tuple(names) or (DEFAULT_SET, *(name for name in shipped_sets() if name != DEFAULT_SET))
    parts = [
        "# The rules",
        f"{_MADE} [rule-language.md](rule-language.md) describes the language, [facts.md](facts.md) the words.",
    ]
    told: set[tuple[str, str]] = set()
    for name in names:
        rules = load_rules([name])
        parts += [f"## {rules.names[0]}", *_set_says(name), _contents(rules)]
        for rule in rules.rules:
            if (rule.file, rule.name) not in told:
                parts += _rule_parts(rule, rules)
                told.add((rule.file, rule.name))
    return "\n\n".join(parts) + "\n"


def facts_page() -> str:
    """Return all facts and formats as Markdown."""
    formats = [f"- `{name}`: {form.description}" for name, form in sorted(FORMATS.items())]
    parts = [
        "# The words that rules may use",
        f"{_MADE} CamelCase words are ONNX operators; these are the others. `qdq facts` prints them.",
        "## Facts about nodes, behind `into` and `from`",
        *_fact_lines(NODE_FACTS),
        "## Facts about edges, behind `edge`",
        *_fact_lines(EDGE_FACTS),
        "## Formats, behind `using`",
        "\n".join(formats),
    ]
    return "\n\n".join(parts) + "\n"


def findings_page() -> str:
    """Return every code that `qdq check` reports, as Markdown."""
    parts = [
        "# What qdq check finds",
        "Made by `make docs`; do not edit. `qdq check --codes` prints the list.",
        "An error is what TensorRT refuses or reads otherwise than ONNX means it, a warning what runs but slower or in float, a note what is suspicious.",
    ]
    for severity in SEVERITIES:
        kinds = [problem for problem in PROBLEMS.values() if problem.severity == severity]
        parts += [
            f"## {severity.capitalize()}s",
            "\n".join(f"- [{kind.code}](#{kind.code}): {_plain(kind.title)}" for kind in kinds),
        ]
        for kind in kinds:
            lines = [
                f"- costs: {_plain(kind.cost)}",
                f"- fix: {_plain(kind.fix)}",
                f"- evidence: {_plain(kind.evidence)}",
            ]
            lines += (
                [
                    f"- see: {f'<{kind.see}>' if kind.see.startswith('http') and ' ' not in kind.see else _plain(kind.see)}"
                ]
                if kind.see
                else []
            )
            parts += [f"### {kind.code}", f"{_plain(kind.title)}.", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def rule_lines(rule: Rule) -> list[str]:
    """Return what a rule decides, one line each: where, given, then, beats."""
    lines = [f"where: {_where(rule.where)}"]
    lines += (
        [f"given: {', '.join(f'{word} {number:g}' for word, number in rule.given)}"]
        if rule.given
        else []
    )
    lines += [f"then: {rule.then} {rule.using}".rstrip()]
    lines += (
        [f"beats: {', '.join('all others' if b == '*' else b for b in rule.beats)}"]
        if rule.beats
        else []
    )
    return lines


def find_beating_rules(rule: Rule, rules: RuleSet) -> tuple[str, ...]:
    """Return the names of the rules in a set that beat one."""
    return tuple(
        other.name for other in rules.rules if other.name != rule.name and other.outdoes(rule)
    )


def _where(where: Where) -> str:
    said = {
        "into": where.into,
        "from": where.from_,
        "edge": where.edge,
        "named": where.named,
        "tensor": where.tensor,
    }
    lines = [f"{key} {' or '.join(words)}" for key, words in said.items() if words]
    if where.target:
        conditions = {
            "backend": where.target.backend,
            "sm_at_least": where.target.sm_at_least,
            "sm_at_most": where.target.sm_at_most,
        }
        lines.append(
            f"target {', '.join(f'{key} {value}' for key, value in conditions.items() if value is not None)}"
        )
    return "; ".join(lines)


def _set_says(name: str) -> list[str]:
    file = rules_path(name) / SET_FILE
    return [" ".join(str(read_yaml(file)["says"]).split())] if file.is_file() else []


def _contents(rules: RuleSet) -> str:
    return "\n".join(f"- [{rule.name}](#{rule.name}): {_plain(rule.says)}" for rule in rules.rules)


def _rule_parts(rule: Rule, rules: RuleSet) -> list[str]:
    """Return a rule as a heading, paragraphs and lists."""
    parts = [f"### {rule.name}", _plain(rule.says)]
    parts += [f"Because: {_plain(rule.because)}"] if rule.because else []
    lines = [f"`{line}`" for line in rule_lines(rule)]
    lines += (
        [f"beaten by: {', '.join(f'`{name}`' for name in names)}"]
        if (names := find_beating_rules(rule, rules))
        else []
    )
    lines += (
        [
            f"see: <{rule.see}>"
            if rule.see.startswith("http") and " " not in rule.see
            else f"see: {_plain(rule.see)}"
        ]
        if rule.see
        else []
    )
    lines += [f"evidence: {_plain(rule.evidence)}"] if rule.evidence else []
    parts.append("\n".join(f"- {line}" for line in lines))
    cases = [f"- {name}: {_plain(says)}" for name, says in case_names(rule)]
    return [*parts, "Cases:", "\n".join(cases)] if cases else parts


def _fact_lines(facts: Mapping[str, Callable[..., bool]]) -> list[str]:
    lines = []
    for word, fact in sorted(facts.items()):
        names = fact_parameters(fact)
        asked = f"; asks for {', '.join(f'`{name}`' for name in names)}" if names else ""
        lines.append(f"- **`{word}`**{asked}: {' '.join((fact.__doc__ or '').split())}")
    return ["\n".join(lines)]


def _plain(text: str) -> str:
    """Return text in which Markdown sees no markup."""
    return text.replace("*", r"\*").replace("_", r"\_").replace("<", r"\<")
