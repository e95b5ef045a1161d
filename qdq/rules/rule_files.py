"""Files and folders of rules: strict YAML, every word known, every mistake named with its line."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import msgspec

from qdq.errors import RuleError, did_you_mean
from qdq.files.strict_yaml import (
    LocatedMapping,
    read_documents,
    read_text,
    read_words,
    read_yaml,
    require_known_keys,
)
from qdq.rules.rule import Rule, RuleSet, make_rule_set
from qdq.rules.rule_document import parse_rule
from qdq.rules.shipped import DEFAULT_SET, shipped_rules_folder, shipped_sets

#: The file of a set that takes rules from other sets.
SET_FILE = "set.yaml"
RULE_SUFFIXES = (".yaml", ".yml")

_SET_KEYS = ("set", "says", "takes")
_ALL_RULES = "*"


def load_rules(names: Iterable[str] = (DEFAULT_SET,)) -> RuleSet:
    """Return the rules of the named shipped sets, folders and files.

    A rule replaces one of its name from an earlier set. Raises RuleError for an unknown set or any
    mistake in a file.
    """
    names = tuple(names)
    rules: dict[str, Rule] = {}
    for name in names:
        rules.update(_read_rules_at(rules_path(name)))
    set_names = [Path(name).name for name in names]
    return make_rule_set(set_names, rules.values())


def rules_path(name: str) -> Path:
    """Return the folder of a shipped set, or a user's folder or file.

    Raises RuleError where there is none.
    """
    sets = shipped_sets()
    if name in sets:
        return shipped_rules_folder() / name
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix in RULE_SUFFIXES):
        return path
    problem = f"no such folder or file exists, and the shipped sets are {', '.join(sets)}"
    if path.is_file():
        problem = f"a rule file ends in {' or '.join(RULE_SUFFIXES)}"
    hint = did_you_mean(name, sets) or "."
    raise RuleError(f"unknown rule set {name!r}: {problem}{hint}")


def _read_rules_at(path: Path) -> dict[str, Rule]:
    """Return the rules of a file or a folder by name.

    A rule in a folder replaces one of its name that the folder's set file takes.
    """
    if path.is_file():
        return {rule.name: rule for rule in read_rules(path)}
    rules: dict[str, Rule] = {}
    if (path / SET_FILE).is_file():
        rules = {rule.name: rule for rule in _read_taken_rules(path / SET_FILE)}
    rules.update(_read_folder(path))
    return rules


def _read_folder(folder: Path) -> dict[str, Rule]:
    """Return the rules in the files of a folder by name."""
    rules: dict[str, Rule] = {}
    for file in rule_files(folder):
        for rule in read_rules(file):
            if rule.name in rules:
                other = rules[rule.name].at("rule")
                raise RuleError(
                    f"{rule.at('rule')}: rule {rule.name!r} is also defined at {other}. Remove one."
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
    names = {rule.name for rule in rules} | {_ALL_RULES}
    taken = []
    for rule in rules:
        beats = tuple(name for name in rule.beats if name in names)
        taken.append(msgspec.structs.replace(rule, beats=beats))
    return taken


def _select_taken_rules(content: object, folder_name: str) -> list[Rule]:
    """Return the rules that the content of a set file names; raises RuleError, from its line on."""
    if not isinstance(content, LocatedMapping):
        raise RuleError("1: a set file is a mapping that begins with 'set: NAME'.")
    require_known_keys(content, _SET_KEYS, _SET_KEYS)
    takes = content["takes"]
    if read_text(content, "set") != folder_name or not isinstance(takes, LocatedMapping):
        raise RuleError(
            f"{content.lines['set']}: 'set' must be {folder_name!r}, the folder's name, "
            "and 'takes' must map sets to rules."
        )
    require_known_keys(takes, shipped_sets())
    rules: list[Rule] = []
    for name in takes:
        rules += _select_shipped_rules(name, read_words(takes, name), takes.lines[name])
    return rules


def _select_shipped_rules(name: str, rule_names: tuple[str, ...], line: int) -> list[Rule]:
    """Return the named rules of a shipped set; all for "*"."""
    known = _read_rules_at(shipped_rules_folder() / name)
    if rule_names == (_ALL_RULES,):
        return list(known.values())
    for rule_name in rule_names:
        if rule_name not in known:
            hint = did_you_mean(rule_name, known) or "."
            raise RuleError(f"{line}: set {name} has no rule {rule_name!r}{hint}")
    return [known[rule_name] for rule_name in rule_names]


def rule_files(folder: Path) -> list[Path]:
    """Return a folder's rule files by name.

    Raises RuleError where there are none and the folder takes no rules from other sets, and where
    two files have one stem.
    """
    files: list[Path] = []
    for suffix in RULE_SUFFIXES:
        files += (path for path in folder.glob(f"*{suffix}") if path.name != SET_FILE)
    files.sort()
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
    documents = read_documents(path) or [(1, None)]
    try:
        rules = tuple(parse_rule(content, line, path) for line, content in documents)
        _require_names(rules, [line for line, _ in documents], path)
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    return rules


def _require_names(rules: tuple[Rule, ...], lines: list[int], path: Path) -> None:
    """Raise RuleError where a single rule is not named as its file, or a name is repeated."""
    if len(rules) == 1:
        rule = rules[0]
        if rule.name != path.stem:
            raise RuleError(
                f"{dict(rule.lines)['rule']}: the rule's name is {rule.name!r}, but the file's is "
                f"{path.stem!r}. Use the same name for both."
            )
        return
    names = [rule.name for rule in rules]
    for name, line in zip(names[1:], lines[1:], strict=True):
        if names.count(name) > 1:
            raise RuleError(f"{line}: the file holds another rule {name!r}. Rename or remove one.")
