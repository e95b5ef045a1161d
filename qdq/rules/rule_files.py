"""Files and folders of rules: strict YAML, every word known, every mistake named with its line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec

from qdq.arguments import list_items, require_type
from qdq.errors import RuleError, did_you_mean
from qdq.files.command_files import note_input
from qdq.files.strict_yaml import (
    LocatedMapping,
    read_documents,
    read_text,
    read_words,
    read_yaml,
    require_known_keys,
)
from qdq.printable import encodable_name
from qdq.rules.rule import KEEP_FP32, Rule, RuleSet, make_rule_set
from qdq.rules.rule_document import parse_rule
from qdq.rules.shipped import DEFAULT_SET, FLOAT_SET, shipped_rules_folder, shipped_sets

#: The file of a set that takes rules from other sets.
SET_FILE = "set.yaml"
RULE_SUFFIXES = (".yaml", ".yml")

_SET_KEYS = ("set", "says", "takes")
_ALL_RULES = "*"


#: The forms in which the library's functions take rules.
RulesLike = RuleSet | str | Path | Iterable[str | Path]

_ADVICE = "names of rule sets, folders and files, or what qdq.load_rules returns"


def to_rule_set(rules: RulesLike) -> RuleSet:
    """Return rules, of names as `load_rules` does."""
    return rules if isinstance(rules, RuleSet) else load_rules(rules)


def choose_float_rules(rules: RulesLike | None) -> RuleSet:
    """Return the keep-fp32 rules of some rules; those of the shipped set where there are none."""
    rule_set = None if rules is None else to_rule_set(rules)
    if rule_set is None or not any(rule.then == KEEP_FP32 for rule in rule_set.rules):
        return load_rules(FLOAT_SET)
    return rule_set


def load_rules(names: str | Path | Iterable[str | Path] = (DEFAULT_SET,)) -> RuleSet:
    """Return the rules of the named shipped sets, folders and files.

    A rule replaces one of its name from an earlier set. Raises RuleError for an unknown set or any
    mistake in a file.
    """
    names = _list_names(names)
    rules: dict[str, Rule] = {}
    for name in names:
        path = rules_path(name)
        rules.update(_read_rules_at(path))
    set_names = (encodable_name(Path(name).name) for name in names)
    return make_rule_set(set_names, rules.values())


def _list_names(names: str | Path | Iterable[str | Path]) -> list[str]:
    items = list_items(names, (str, Path), "rules", _ADVICE)
    for item in items:
        require_type(item, (str, Path), "rules", _ADVICE)
    return list(map(str, items))


def rules_path(name: str) -> Path:
    """Return the folder of a shipped set, or a user's folder or file.

    Raises RuleError where there is none.
    """
    sets = shipped_sets()
    if name in sets:
        return shipped_rules_folder() / name
    path = Path(name)
    # Unlike pathlib, os.path answers for names that are too long as well.
    if os.path.isdir(path):
        return path
    is_file = os.path.isfile(path)
    if is_file and path.suffix in RULE_SUFFIXES:
        return path
    known_sets = ", ".join(sets)
    problem = f"no such folder or file exists, and the shipped sets are {known_sets}"
    if is_file:
        suffixes = " or ".join(RULE_SUFFIXES)
        problem = f"a rule file ends in {suffixes}"
    hint = did_you_mean(name, sets) or "."
    raise RuleError(f"unknown rule set {name!r}: {problem}{hint}")


def _read_rules_at(path: Path) -> dict[str, Rule]:
    """Return the rules of a file or a folder by name.

    A rule in a folder replaces one of its name that the folder's set file takes.
    """
    if path.is_file():
        return _by_name(read_rules(path))
    rules: dict[str, Rule] = {}
    set_file = path / SET_FILE
    if set_file.is_file():
        rules = _by_name(_read_taken_rules(set_file))
    rules.update(_read_folder(path))
    return rules


def _by_name(rules: Iterable[Rule]) -> dict[str, Rule]:
    return {rule.name: rule for rule in rules}


def _read_folder(folder: Path) -> dict[str, Rule]:
    """Return the rules in the files of a folder by name."""
    rules: dict[str, Rule] = {}
    for file in rule_files(folder):
        for rule in read_rules(file):
            if rule.name in rules:
                place = rule.at("rule")
                other = rules[rule.name].at("rule")
                raise RuleError(
                    f"{place}: rule {rule.name!r} is also defined at {other}. Remove one."
                )
            rules[rule.name] = rule
    return rules


def _read_taken_rules(path: Path) -> list[Rule]:
    """Return the rules that a set file takes from shipped sets.

    Names in their `beats` that are not taken too are removed.
    """
    content = read_yaml(path)
    try:
        rules = _select_taken_rules(content, path.parent.name)
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    names = {rule.name for rule in rules}
    names.add(_ALL_RULES)
    taken = []
    for rule in rules:
        beats = tuple(name for name in rule.beats if name in names)
        reduced_rule = msgspec.structs.replace(rule, beats=beats)
        taken.append(reduced_rule)
    return taken


def _select_taken_rules(content: object, folder_name: str) -> list[Rule]:
    """Return the rules that the content of a set file names; raises RuleError, from its line on."""
    if not isinstance(content, LocatedMapping):
        raise RuleError("1: a set file is a mapping that begins with 'set: NAME'.")
    require_known_keys(content, _SET_KEYS, _SET_KEYS)
    name = read_text(content, "set")
    takes = content["takes"]
    if name != folder_name or not isinstance(takes, LocatedMapping):
        line = content.lines["set"]
        raise RuleError(
            f"{line}: 'set' must be {folder_name!r}, the folder's name, "
            "and 'takes' must map sets to rules."
        )
    require_known_keys(takes, shipped_sets())
    rules: list[Rule] = []
    for set_name in takes:
        rule_names = read_words(takes, set_name)
        line = takes.lines[set_name]
        rules += _select_shipped_rules(set_name, rule_names, line)
    return rules


def _select_shipped_rules(name: str, rule_names: tuple[str, ...], line: int) -> list[Rule]:
    """Return the named rules of a shipped set; all for "*"."""
    folder = shipped_rules_folder() / name
    known = _read_rules_at(folder)
    if rule_names == (_ALL_RULES,):
        return list(known.values())
    rules: list[Rule] = []
    for rule_name in rule_names:
        if rule_name not in known:
            hint = did_you_mean(rule_name, known) or "."
            raise RuleError(f"{line}: set {name} has no rule {rule_name!r}{hint}")
        rules.append(known[rule_name])
    return rules


def rule_files(folder: Path) -> list[Path]:
    """Return a folder's rule files by name.

    Raises RuleError where there are none and the folder takes no rules from other sets, and where
    two files have one stem.
    """
    files: list[Path] = []
    for suffix in RULE_SUFFIXES:
        files += folder.glob(f"*{suffix}")
    files = sorted(path for path in files if path.name != SET_FILE)
    if not files and not (folder / SET_FILE).is_file():
        raise RuleError(
            f"{folder}: the folder holds no rule files (*.yaml). Add one or pass another folder."
        )
    for first, second in pairwise(files):
        if first.stem == second.stem:
            raise RuleError(
                f"{second}: {first.name} would be rule {first.stem!r} too. Remove one of the files."
            )
    return files


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Return the rules in a file, one per YAML document; a single rule has the file's name.

    Raises RuleError with the file, the line, the mistake and the nearest known word.
    """
    if shipped_rules_folder() in path.parents:
        note_input(path)
        return _read_shipped_rules(path)
    return _parse_rules(path)


@cache
def _read_shipped_rules(path: Path) -> tuple[Rule, ...]:
    """Return the rules in a file of the package, which a process parses once."""
    return _parse_rules(path)


def _parse_rules(path: Path) -> tuple[Rule, ...]:
    documents = read_documents(path) or [(1, None)]
    try:
        rules = tuple(parse_rule(content, line, path) for line, content in documents)
        lines = [line for line, _ in documents]
        _require_names(rules, lines, path)
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    return rules


def _require_names(rules: tuple[Rule, ...], lines: list[int], path: Path) -> None:
    """Raise RuleError where a single rule is not named as its file, or a name is repeated."""
    if len(rules) == 1:
        rule = rules[0]
        if rule.name != path.stem:
            line = dict(rule.lines)["rule"]
            raise RuleError(
                f"{line}: the rule's name is {rule.name!r}, but the file's is {path.stem!r}. "
                "Use the same name for both."
            )
        return
    names = [rule.name for rule in rules]
    for name, line in zip(names[1:], lines[1:], strict=True):
        if names.count(name) > 1:
            raise RuleError(f"{line}: the file holds another rule {name!r}. Rename or remove one.")
