"""Reading rule files: strict YAML, every word known, every mistake named with its line."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import onnx.defs
import yaml

from qdq.errors import RuleError, did_you_mean
from qdq.facts import EDGE_FACTS, NODE_FACTS, parameters
from qdq.kernels import shipped_rules
from qdq.quantizer import FORMATS
from qdq.rule import RATIO_AT_MOST, Rule, RuleSet, TargetCondition, Where, make_rule_set

DEFAULT_SET = "tensorrt"
KERNELS_FOLDER = "kernels"
#: The file of a set that takes rules from other sets.
SET_FILE = "set.yaml"

_KEYS = ("rule", "says", "because", "see", "evidence", "where", "given", "then", "using", "beats")
_WHERE_KEYS = ("into", "from", "edge", "named", "tensor", "target")
_TARGET_KEYS = ("sm_at_most", "sm_at_least", "backend")
_THENS = ("quantize", "leave-float", "share-scale")
_BACKENDS = ("rtx", "trt")
#: Compute capability 1.0, times ten.
_LEAST_SM = 10


class Located(dict[str, Any]):
    """A YAML mapping that remembers the line of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys and keys that are not words, and remembers lines."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = True) -> dict[Hashable, Any]:
        mapping = Located()
        for key_node, value_node in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise RuleError(f"{line}: YAML reads the key {key_node.value!r} as {key!r}; put it in quotes")
            if key in mapping:
                raise RuleError(f"{line}: the key {key!r} is given twice; remove one")
            mapping[key] = self.construct_object(value_node, deep=True)
            mapping.lines[key] = line
        return mapping  # type: ignore[return-value] # every key was checked to be a word

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:  # PyYAML's, for dates and explicit tags
            raise RuleError(f"{node.start_mark.line + 1}: YAML cannot read {node.value!r} as {node.tag.rpartition(':')[2]}; put it in quotes") from error


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _StrictLoader.construct_mapping)


def read_yaml(path: Path) -> Any:
    """Return a YAML file's content with mappings as `Located`; raises RuleError with file and line."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 a SafeLoader
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RuleError(f"{path}:{line}: not valid YAML: {error.problem}; quote values that begin with a sign") from error
    except RecursionError as error:
        raise RuleError(f"{path}: is nested too deeply; a rule or case file needs a few levels only") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RuleError(f"{path}: cannot be read: {error}") from error


def load_rules(names: Iterable[str] = (DEFAULT_SET,)) -> RuleSet:
    """Return the rules of the named shipped sets and folders; a later folder's rule replaces an earlier one of its name.

    Raises RuleError for an unknown set or any mistake in a file.
    """
    names = tuple(names)
    rules: dict[str, Rule] = {}
    for name in names:
        rules.update(_set_rules(rules_folder(name)))
    return make_rule_set((Path(n).name for n in names), rules.values())


def _set_rules(folder: Path) -> dict[str, Rule]:
    """Return a set's rules by name: those it takes from shipped sets, and its own."""
    taken = {rule.name: rule for rule in _taken_rules(folder / SET_FILE)} if (folder / SET_FILE).is_file() else {}
    return {**taken, **{rule.name: rule for rule in map(read_rule, rule_files(folder))}}


def _taken_rules(path: Path) -> list[Rule]:
    """Return the rules that a set file takes from shipped sets; what they beat and is not taken too is forgotten."""
    content = read_yaml(path)
    try:
        if not isinstance(content, Located):
            raise RuleError("1: a set file is a mapping that begins with 'set: NAME'")
        _known_keys(content, ("set", "says", "takes"), ("set", "says", "takes"))
        takes = content["takes"]
        if _text(content, "set") != path.parent.name or not isinstance(takes, Located):
            raise RuleError(f"{content.lines['set']}: 'set' must be {path.parent.name!r}, as the folder is called, and 'takes' a mapping of sets to rules")
        _known_keys(takes, shipped_sets())
        taken = [rule for name in takes for rule in _chosen(name, _words(takes, name, str), takes.lines[name])]
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    kept = {rule.name for rule in taken}
    return [msgspec.structs.replace(rule, beats=tuple(b for b in rule.beats if b in kept or b == "*")) for rule in taken]


def _chosen(name: str, wanted: tuple[str, ...], line: int) -> list[Rule]:
    """Return the wanted rules of a shipped set, by their names."""
    known = _set_rules(shipped_rules() / name)
    for rule in wanted:
        if rule not in known:
            raise RuleError(f"{line}: set {name} has no rule {rule!r}{did_you_mean(rule, known)}")
    return [known[rule] for rule in wanted]


def rules_folder(name: str) -> Path:
    """Return the folder of a shipped set or of a user's path; raises RuleError where there is neither."""
    shipped = shipped_rules() / name
    if name in shipped_sets():
        return shipped
    if Path(name).is_dir():
        return Path(name)
    raise RuleError(f"unknown rule set {name!r}: not a folder, and the shipped sets are {', '.join(shipped_sets())}{did_you_mean(name, shipped_sets())}")


def shipped_sets() -> list[str]:
    """Return the names of the rule sets that come with qdq."""
    return sorted(p.name for p in shipped_rules().iterdir() if p.is_dir() and p.name != KERNELS_FOLDER)


def rule_files(folder: Path) -> list[Path]:
    """Return a folder's rule files by name; raises RuleError if it holds none and takes none from other sets."""
    files = sorted(p for p in (*folder.glob("*.yaml"), *folder.glob("*.yml")) if p.name != SET_FILE)
    if not files and not (folder / SET_FILE).is_file():
        raise RuleError(f"{folder}: holds no rule files (*.yaml)")
    for first, second in pairwise(files):
        if first.stem == second.stem:
            raise RuleError(f"{second}: {first.name} lies beside it, and both would be rule {first.stem!r}; remove one")
    return files


def read_rule(path: Path) -> Rule:
    """Return the rule in a file; raises RuleError naming file, line, what is wrong and the nearest known word."""
    content = read_yaml(path)
    try:
        return _rule(content, path)
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error


def _rule(content: Any, path: Path) -> Rule:
    if not isinstance(content, Located):
        raise RuleError("1: a rule file is a mapping that begins with 'rule: NAME'")
    _known_keys(content, _KEYS, ("rule", "says", "where", "then"))
    texts = {key: _text(content, key) for key in ("rule", "says", "because", "see", "evidence") if key in content}
    if texts["rule"] != path.stem:
        raise RuleError(f"{content.lines['rule']}: the rule is called {texts['rule']!r} but the file {path.stem!r}; they must be the same")
    then = _one_of(content, "then", _THENS)
    where = _where(content)
    return Rule(
        name=texts.pop("rule"),
        where=where,
        then=then,
        using=_using(content, then),
        given=_given(content, where, then),
        beats=_words(content, "beats", str),
        file=str(path),
        lines=(*content.lines.items(), *content["where"].lines.items()),
        **texts,
    )


def _where(content: Located) -> Where:
    where = content["where"]
    if not isinstance(where, Located) or not where:
        raise RuleError(f"{content.lines['where']}: 'where' needs at least one of {', '.join(_WHERE_KEYS)}")
    _known_keys(where, _WHERE_KEYS)
    return Where(
        into=_words(where, "into", _node_word),
        from_=_words(where, "from", _node_word),
        edge=_words(where, "edge", _edge_word),
        named=_words(where, "named", str),
        tensor=_words(where, "tensor", str),
        target=_target(where),
    )


def _target(where: Located) -> TargetCondition | None:
    if "target" not in where:
        return None
    given, line = where["target"], where.lines["target"]
    if not isinstance(given, Located) or not given:
        raise RuleError(f"{line}: 'target' needs at least one of {', '.join(_TARGET_KEYS)}")
    _known_keys(given, _TARGET_KEYS)
    if "backend" in given:
        _one_of(given, "backend", _BACKENDS)
    for key in ("sm_at_most", "sm_at_least"):
        if key in given and (type(given[key]) is not int or given[key] < _LEAST_SM):
            raise RuleError(f"{given.lines[key]}: {key!r} is {given[key]!r}; write a compute capability times ten, such as 75")
    return TargetCondition(**given)


def _using(content: Located, then: str) -> str:
    if then != "quantize":
        if "using" in content:
            raise RuleError(f"{content.lines['using']}: 'using' goes with 'then: quantize' only; remove it")
        return ""
    if "using" not in content:
        raise RuleError(f"{content.lines['then']}: 'then: quantize' needs 'using': one of {', '.join(FORMATS)}")
    name: str = _one_of(content, "using", FORMATS)
    return name


def _given(content: Located, where: Where, then: str) -> tuple[tuple[str, float], ...]:
    """Return the numbers a rule gives: every parameter of its facts, and for share-scale perhaps the ratio."""
    facts = [f for word in (*where.into, *where.from_, *where.edge) if (f := NODE_FACTS.get(word) or EDGE_FACTS.get(word))]
    needed = {name for fact in facts for name in parameters(fact)}
    given = content.get("given", Located())
    if not isinstance(given, Located):
        raise RuleError(f"{content.lines['given']}: 'given' must name numbers, such as {{channels-below: 16}}")
    _known_keys(given, sorted(needed | ({RATIO_AT_MOST} if then == "share-scale" else set())))
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise RuleError(f"{given.lines[name]}: {name!r} is {value!r}; write a number above 0")
    if missing := sorted(needed - set(given)):
        raise RuleError(f"{content.lines['where']}: its facts ask for {', '.join(missing)}; add 'given: {{{missing[0]}: NUMBER}}'")
    return tuple(sorted(given.items()))


def _known_keys(mapping: Located, known: Iterable[str], required: Iterable[str] = ()) -> None:
    for key in mapping:
        if key not in known:
            raise RuleError(f"{mapping.lines[key]}: unknown key {key!r}{did_you_mean(key, known)}; known are {', '.join(known) or 'none'}")
    for key in required:
        if key not in mapping:
            raise RuleError(f"1: the key {key!r} is missing")


def _text(mapping: Located, key: str) -> str:
    value = mapping[key]
    if not isinstance(value, str) or not value.strip():
        raise RuleError(f"{mapping.lines[key]}: {key!r} must be text, not {value!r}; put it in quotes")
    return " ".join(value.split())


def _one_of(mapping: Located, key: str, known: Iterable[str]) -> Any:
    value, known = mapping[key], tuple(known)
    if value not in known:
        raise RuleError(f"{mapping.lines[key]}: {key!r} is {value!r}; it must be one of {', '.join(known)}{did_you_mean(str(value), known)}")
    return value


def _words(mapping: Located, key: str, check: Callable[[str], str]) -> tuple[str, ...]:
    if key not in mapping:
        return ()
    value, line = mapping[key], mapping.lines[key]
    words = value if isinstance(value, list) else [value]
    if not words or not all(isinstance(w, str) and w for w in words):
        raise RuleError(f"{line}: {key!r} must be a word or a list of words, not {value!r}")
    try:
        return tuple(check(w) for w in words)
    except RuleError as error:
        raise RuleError(f"{line}: {error}") from error


def _node_word(word: str) -> str:
    if word in NODE_FACTS or "." in word or onnx.defs.has(word):
        return word
    if word in EDGE_FACTS:
        raise RuleError(f"{word!r} is a fact about edges; write it behind 'edge'")
    if word[:1].isupper():
        known = {schema.name for schema in onnx.defs.get_all_schemas()}
        raise RuleError(f"{word!r} is not an ONNX operator{did_you_mean(word, known)}; write one of another domain as domain.Operator")
    raise RuleError(f"unknown fact {word!r}{did_you_mean(word, NODE_FACTS)}; 'qdq facts' lists them")


def _edge_word(word: str) -> str:
    if word in EDGE_FACTS:
        return word
    if word in NODE_FACTS or onnx.defs.has(word):
        raise RuleError(f"{word!r} is about nodes; write it behind 'into' or 'from'")
    raise RuleError(f"unknown fact {word!r}{did_you_mean(word, EDGE_FACTS)}; 'qdq facts' lists them")
