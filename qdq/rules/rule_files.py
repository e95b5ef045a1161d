"""Reading rule files: strict YAML, every word known, every mistake named with its line."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import onnx.defs

from qdq.errors import RuleError, did_you_mean
from qdq.files.strict_yaml import (
    LocatedMapping,
    read_choice,
    read_documents,
    read_text,
    read_words,
    read_yaml,
    require_known_keys,
)
from qdq.quantizer import FORMATS
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, fact_parameters
from qdq.rules.rule import RATIO_AT_MOST, Rule, RuleSet, TargetCondition, Where, make_rule_set
from qdq.rules.shipped import DEFAULT_SET, shipped_rules_folder, shipped_sets

#: The file of a set that takes rules from other sets.
SET_FILE = "set.yaml"
RULE_SUFFIXES = (".yaml", ".yml")

#: The keys of a rule, of its `where`, of its `target` and its decisions, each with what it means.
KEYS = {
    "rule": "The rule's name, in kebab-case; that of the file, unless the file holds several rules.",
    "says": "The rule in one sentence.",
    "because": "The reason: what TensorRT does.",
    "see": "A document or issue that says so.",
    "evidence": "What was measured, or who found it.",
    "where": "Which edges: all lines must hold, and of a list any word.",
    "given": "The numbers that the facts in 'where' ask for; for share-scale, ratio-at-most.",
    "then": "What happens to these edges.",
    "using": "The number format, for 'then: quantize'.",
    "beats": "Rules that drop out where this one applies too; '*' stands for all.",
}
REQUIRED_KEYS = ("rule", "says", "where", "then")
WHERE_KEYS = {
    "into": "The edge goes into such a node: an ONNX operator, domain.Operator, or a fact about nodes.",
    "from": "The edge's tensor is made by such a node.",
    "edge": "A fact about the edge itself.",
    "named": "The consuming node's name matches the glob, in full.",
    "tensor": "The tensor's name matches the glob, in full.",
    "target": "One of the plan's targets fits.",
}
TARGET_KEYS = {
    "sm_at_most": "The highest compute capability, times ten.",
    "sm_at_least": "The lowest compute capability, times ten.",
    "backend": "The compiler: rtx for TensorRT-RTX, trt for TensorRT.",
}
THENS = {
    "quantize": "Put a Q/DQ pair on the edge.",
    "leave-float": "Keep the edge in float.",
    "share-scale": "Give the quantized tensors that the nodes tie together one scale.",
}
BACKENDS = ("rtx", "trt")

#: Compute capability 1.0, times ten.
LEAST_SM = 10


def load_rules(names: Iterable[str] = (DEFAULT_SET,)) -> RuleSet:
    """Return the rules of the named shipped sets, folders and files; a later one's rule replaces an earlier one of its name.

    Raises RuleError for an unknown set or any mistake in a file.
    """
    names = tuple(names)
    rules: dict[str, Rule] = {}
    for name in names:
        rules.update(_rules_at(rules_path(name)))
    return make_rule_set((Path(n).name for n in names), rules.values())


def _rules_at(path: Path) -> dict[str, Rule]:
    """Return the rules of a file; or of a folder, those it takes from shipped sets first."""
    if path.is_file():
        return {rule.name: rule for rule in read_rules(path)}
    taken = (
        {rule.name: rule for rule in _taken_rules(path / SET_FILE)}
        if (path / SET_FILE).is_file()
        else {}
    )
    own: dict[str, Rule] = {}
    for rule in (rule for file in rule_files(path) for rule in read_rules(file)):
        if rule.name in own:
            raise RuleError(
                f"{rule.at('rule')}: rule {rule.name!r} stands at {own[rule.name].at('rule')} too; remove one"
            )
        own[rule.name] = rule
    return {**taken, **own}


def _taken_rules(path: Path) -> list[Rule]:
    """Return the rules that a set file takes from shipped sets; what they beat and is not taken too is forgotten."""
    content = read_yaml(path)
    try:
        if not isinstance(content, LocatedMapping):
            raise RuleError("1: a set file is a mapping that begins with 'set: NAME'")
        require_known_keys(content, ("set", "says", "takes"), ("set", "says", "takes"))
        takes = content["takes"]
        if read_text(content, "set") != path.parent.name or not isinstance(takes, LocatedMapping):
            raise RuleError(
                f"{content.lines['set']}: 'set' must be {path.parent.name!r}, as the folder is called, and 'takes' a mapping of sets to rules"
            )
        require_known_keys(takes, shipped_sets())
        taken = [
            rule
            for name in takes
            for rule in _chosen(name, read_words(takes, name), takes.lines[name])
        ]
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    kept = {rule.name for rule in taken}
    return [
        msgspec.structs.replace(rule, beats=tuple(b for b in rule.beats if b in kept or b == "*"))
        for rule in taken
    ]


def _chosen(name: str, wanted: tuple[str, ...], line: int) -> list[Rule]:
    """Return the wanted rules of a shipped set, by their names."""
    known = _rules_at(shipped_rules_folder() / name)
    if wanted == ("*",):
        return list(known.values())
    for rule in wanted:
        if rule not in known:
            raise RuleError(f"{line}: set {name} has no rule {rule!r}{did_you_mean(rule, known)}")
    return [known[rule] for rule in wanted]


def rules_path(name: str) -> Path:
    """Return the folder of a shipped set, or a user's folder or file; raises RuleError where there is none."""
    if name in shipped_sets():
        return shipped_rules_folder() / name
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix in RULE_SUFFIXES):
        return path
    problem = (
        f"a rule file ends in {' or '.join(RULE_SUFFIXES)}"
        if path.is_file()
        else f"no folder or file, and the shipped sets are {', '.join(shipped_sets())}"
    )
    raise RuleError(f"unknown rule set {name!r}: {problem}{did_you_mean(name, shipped_sets())}")


def rule_files(folder: Path) -> list[Path]:
    """Return a folder's rule files by name; raises RuleError if it holds none and takes none from other sets."""
    files = sorted(
        p for suffix in RULE_SUFFIXES for p in folder.glob(f"*{suffix}") if p.name != SET_FILE
    )
    if not files and not (folder / SET_FILE).is_file():
        raise RuleError(f"{folder}: holds no rule files (*.yaml)")
    for first, second in pairwise(files):
        if first.stem == second.stem:
            raise RuleError(
                f"{second}: {first.name} lies beside it, and both would be rule {first.stem!r}; remove one"
            )
    return files


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Return the rules in a file, one a YAML document; a rule that is alone is called as its file.

    Raises RuleError naming file, line, what is wrong and the nearest known word.
    """
    documents = read_documents(path) or [(1, None)]
    try:
        rules = tuple(_rule(content, line, path) for line, content in documents)
        if len(rules) == 1 and rules[0].name != path.stem:
            raise RuleError(
                f"{dict(rules[0].lines)['rule']}: the rule is called {rules[0].name!r} but the file {path.stem!r}; they must be the same"
            )
        for rule, (line, _) in zip(rules[1:], documents[1:], strict=True):
            if any(other.name == rule.name and other is not rule for other in rules):
                raise RuleError(
                    f"{line}: the file holds another rule {rule.name!r}; rename or remove one"
                )
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    return rules


def _rule(content: Any, line: int, path: Path) -> Rule:
    if not isinstance(content, LocatedMapping):
        raise RuleError(f"{line}: a rule file is a mapping that begins with 'rule: NAME'")
    require_known_keys(content, KEYS, REQUIRED_KEYS)
    texts = {
        key: read_text(content, key)
        for key in ("rule", "says", "because", "see", "evidence")
        if key in content
    }
    then = read_choice(content, "then", THENS)
    where = _where(content)
    return Rule(
        name=texts.pop("rule"),
        where=where,
        then=then,
        using=_using(content, then),
        given=_given(content, where, then),
        beats=read_words(content, "beats"),
        file=str(path),
        lines=(*content.lines.items(), *content["where"].lines.items()),
        **texts,
    )


def _where(content: LocatedMapping) -> Where:
    where = content["where"]
    if not isinstance(where, LocatedMapping) or not where:
        raise RuleError(
            f"{content.lines['where']}: 'where' needs at least one of {', '.join(WHERE_KEYS)}"
        )
    require_known_keys(where, WHERE_KEYS)
    return Where(
        into=read_words(where, "into", _node_word),
        from_=read_words(where, "from", _node_word),
        edge=read_words(where, "edge", _edge_word),
        named=read_words(where, "named"),
        tensor=read_words(where, "tensor"),
        target=_target(where),
    )


def _target(where: LocatedMapping) -> TargetCondition | None:
    if "target" not in where:
        return None
    given, line = where["target"], where.lines["target"]
    if not isinstance(given, LocatedMapping) or not given:
        raise RuleError(f"{line}: 'target' needs at least one of {', '.join(TARGET_KEYS)}")
    require_known_keys(given, TARGET_KEYS)
    if "backend" in given:
        read_choice(given, "backend", BACKENDS)
    for key in ("sm_at_most", "sm_at_least"):
        if key in given and (type(given[key]) is not int or given[key] < LEAST_SM):
            raise RuleError(
                f"{given.lines[key]}: {key!r} is {given[key]!r}; write a compute capability times ten, such as 75"
            )
    return TargetCondition(**given)


def _using(content: LocatedMapping, then: str) -> str:
    if then != "quantize":
        if "using" in content:
            raise RuleError(
                f"{content.lines['using']}: 'using' goes with 'then: quantize' only; remove it"
            )
        return ""
    if "using" not in content:
        raise RuleError(
            f"{content.lines['then']}: 'then: quantize' needs 'using': one of {', '.join(FORMATS)}"
        )
    name: str = read_choice(content, "using", FORMATS)
    return name


def _given(content: LocatedMapping, where: Where, then: str) -> tuple[tuple[str, float], ...]:
    """Return the numbers a rule gives: every parameter of its facts, and for share-scale perhaps the ratio."""
    facts = [
        f
        for word in (*where.into, *where.from_, *where.edge)
        if (f := NODE_FACTS.get(word) or EDGE_FACTS.get(word))
    ]
    needed = {name for fact in facts for name in fact_parameters(fact)}
    given = content.get("given", LocatedMapping())
    if not isinstance(given, LocatedMapping):
        raise RuleError(
            f"{content.lines['given']}: 'given' must name numbers, such as {{channels-below: 16}}"
        )
    require_known_keys(
        given, sorted(needed | ({RATIO_AT_MOST} if then == "share-scale" else set()))
    )
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise RuleError(f"{given.lines[name]}: {name!r} is {value!r}; write a number above 0")
    if missing := sorted(needed - set(given)):
        raise RuleError(
            f"{content.lines['where']}: its facts ask for {', '.join(missing)}; add 'given: {{{missing[0]}: NUMBER}}'"
        )
    return tuple(sorted(given.items()))


def _node_word(word: str) -> str:
    if word in NODE_FACTS or "." in word or onnx.defs.has(word):
        return word
    if word in EDGE_FACTS:
        raise RuleError(f"{word!r} is a fact about edges; write it behind 'edge'")
    if word[:1].isupper():
        known = {schema.name for schema in onnx.defs.get_all_schemas()}
        raise RuleError(
            f"{word!r} is not an ONNX operator{did_you_mean(word, known)}; write one of another domain as domain.Operator"
        )
    raise RuleError(
        f"unknown fact {word!r}{did_you_mean(word, NODE_FACTS)}; 'qdq facts' lists them"
    )


def _edge_word(word: str) -> str:
    if word in EDGE_FACTS:
        return word
    if word in NODE_FACTS or onnx.defs.has(word):
        raise RuleError(f"{word!r} is about nodes; write it behind 'into' or 'from'")
    raise RuleError(
        f"unknown fact {word!r}{did_you_mean(word, EDGE_FACTS)}; 'qdq facts' lists them"
    )
