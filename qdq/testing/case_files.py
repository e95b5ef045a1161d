"""Files of rule cases."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from qdq.errors import RuleError, UsageError, did_you_mean
from qdq.files.strict_yaml import LocatedMapping, read_documents
from qdq.rules.rule import Rule
from qdq.rules.rule_files import read_rules
from qdq.target import Target, parse_target

_KEYS = (
    "says",
    "before",
    "plan",
    "float",
    "fp32",
    "amax",
    "after",
    "unchanged",
    "targets",
    "engine",
)


#: Beside a field named `float`, the name of the type.
_Number = float


class EngineExpectation(msgspec.Struct, frozen=True):
    """The types in which the compiled engine must run named nodes."""

    target: Target
    int8: tuple[str, ...] = ()
    fp8: tuple[str, ...] = ()
    int4: tuple[str, ...] = ()
    float: tuple[str, ...] = ()


class Case(msgspec.Struct, frozen=True):
    """One graph, and the decisions that the rules must make about it."""

    rule: str
    name: str
    says: str
    #: The float graph as ONNX text.
    text: str
    #: Whether the rule under test must decide nothing here.
    unchanged: bool = False
    plan: tuple[str, ...] = ()
    #: The edges left in float with their rules; None where the case does not specify them.
    float: tuple[str, ...] | None = None
    #: The nodes that compute in float32 with their rules; None where the case is about pairs.
    fp32: tuple[str, ...] | None = None
    #: The largest absolute values of tensors, for rules about ranges.
    amax: tuple[tuple[str, _Number], ...] = ()
    #: The rewritten graph as ONNX text, "" where the case does not specify it.
    after: str = ""
    targets: tuple[Target, ...] = ()
    engine: EngineExpectation | None = None


class _EngineMapping(msgspec.Struct, forbid_unknown_fields=True):
    target: str
    int8: tuple[str, ...] = ()
    fp8: tuple[str, ...] = ()
    int4: tuple[str, ...] = ()
    float: tuple[str, ...] = ()


class _CaseMapping(msgspec.Struct):
    says: str
    before: str = ""
    unchanged: str = ""
    plan: list[str] | None = None
    float: list[str] | None = None
    fp32: list[str] | None = None
    amax: dict[str, _Number] = {}
    after: str = ""
    targets: list[str] = []
    engine: _EngineMapping | None = None


class CaseFiles:
    """The files that hold the cases of one rule file: one for each rule, or one for all."""

    def __init__(self, folder: Path, file: Path, names: tuple[str, ...]) -> None:
        self.folder = folder
        self.shared = folder / f"{file.stem}.yaml"
        self.names = names

    def path(self, rule: str) -> Path:
        """Return the file that holds a rule's cases, or should hold them."""
        separate = self.folder / f"{rule}.yaml"
        if separate.exists() or not self.shared.exists():
            return separate
        return self.shared

    def cases(self, rule: str) -> tuple[Case, ...]:
        """Return a rule's cases; raises RuleError for mistakes in their file."""
        path = self.path(rule)
        return read_cases(path, rule, self.names if path == self.shared else (rule,))


def read_cases(path: Path, rule: str, known: tuple[str, ...] = ()) -> tuple[Case, ...]:
    """Return a rule's cases in a file.

    The file holds the cases of the `known` rules, one rule per YAML document. Raises RuleError
    that names the file, the line and the mistake.
    """
    known = known or (rule,)
    cases: list[Case] = []
    for line, content in read_documents(path) or [(1, None)]:
        if not isinstance(content, LocatedMapping) or content.get("rule") not in known:
            raise _unknown_rule(path, line, content, known)
        if content["rule"] == rule:
            names = [name for name in content if name != "rule"]
            cases += [_read_case(path, rule, name, content) for name in names]
    return tuple(cases)


def _unknown_rule(path: Path, line: int, content: object, known: tuple[str, ...]) -> RuleError:
    """Return the error for a document of a case file that belongs to none of its rules."""
    hint = "."
    if isinstance(content, LocatedMapping):
        hint = did_you_mean(str(content.get("rule")), known)
    names = " or ".join(known)
    return RuleError(f"{path}:{line}: a case file begins with 'rule: {names}'{hint}")


def case_names(rule: Rule) -> tuple[tuple[str, str], ...]:
    """Return the name and the sentence of each case of a rule.

    There are none where its cases are neither beside the rule nor above it.
    """
    file = Path(rule.file)
    rule_names = tuple(other.name for other in read_rules(file))
    files = CaseFiles(cases_folder(file.parent), file, rule_names)
    if not files.path(rule.name).exists():
        return ()
    return tuple((case.name, case.says) for case in files.cases(rule.name))


def parse_case(text: str) -> onnx.ModelProto:
    """Return the model of an ONNX text.

    Weights that are declared without values get random ones, seeded by their name.
    """
    try:
        model = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        raise RuleError(f"the graph is not ONNX text: {_parser_message(error)}") from error
    graph = model.graph
    computed = {name for node in graph.node for name in node.output}
    weights = [value for value in graph.value_info if value.name not in computed]
    for value in weights:
        graph.initializer.append(_random_weight(value))
        graph.value_info.remove(value)
    return model


def _parser_message(error: onnx.parser.ParseError) -> str:
    """Return a parser's message in one line."""
    message = error.args[0]
    text = message.decode() if isinstance(message, bytes) else str(error)
    return normalize_spaces(text)


def _random_weight(value: onnx.ValueInfoProto) -> onnx.TensorProto:
    shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    rng = np.random.default_rng(zlib.crc32(value.name.encode()))
    values = rng.standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, value.name)


def _read_case(path: Path, rule: str, name: str, content: LocatedMapping) -> Case:
    mapping = content[name]
    place = f"{path}:{content.lines[name]}"
    if not isinstance(mapping, LocatedMapping):
        raise RuleError(f"{place}: case {name!r} must be a mapping.")
    for key in mapping:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS)
            raise RuleError(f"{path}:{mapping.lines[key]}: unknown key {key!r}{hint}")
    if not _has_required_keys(mapping):
        raise RuleError(
            f"{place}: case {name!r} needs 'says', and either 'before' with 'plan' or 'fp32', "
            "or 'unchanged'."
        )
    try:
        return _convert_case(rule, name, mapping)
    except (msgspec.ValidationError, UsageError) as error:
        raise RuleError(f"{place}: case {name!r}: {error}") from error


def _has_required_keys(mapping: LocatedMapping) -> bool:
    has_before = "before" in mapping
    if "says" not in mapping or has_before == ("unchanged" in mapping):
        return False
    return has_before == ("plan" in mapping or "fp32" in mapping)


def _convert_case(rule: str, name: str, mapping: LocatedMapping) -> Case:
    """Return the case of a mapping.

    Raises ValidationError for a value of another type, UsageError for an unknown target.
    """
    content = msgspec.convert(mapping, _CaseMapping)
    left_float: tuple[str, ...] | None = None
    if "float" in mapping:
        left_float = tuple(normalize_spaces(line) for line in content.float or ())
    kept: tuple[str, ...] | None = None
    if "fp32" in mapping:
        kept = tuple(normalize_spaces(line) for line in content.fp32 or ())
    return Case(
        rule=rule,
        name=name,
        says=content.says,
        text=content.before or content.unchanged,
        unchanged="unchanged" in mapping,
        plan=tuple(normalize_spaces(line) for line in content.plan or ()),
        float=left_float,
        fp32=kept,
        amax=tuple(content.amax.items()),
        after=content.after,
        targets=tuple(parse_target(text) for text in content.targets),
        engine=_read_expectation(content.engine) if content.engine else None,
    )


def _read_expectation(mapping: _EngineMapping) -> EngineExpectation:
    target = parse_target(mapping.target)
    return EngineExpectation(target, mapping.int8, mapping.fp8, mapping.int4, mapping.float)


def normalize_spaces(text: str) -> str:
    """Return a text in one line, with one space between its words."""
    return " ".join(text.split())


def cases_folder(rules_folder: Path, cases: Path | None = None) -> Path:
    """Return the folder that holds the cases of a folder's rules, or should hold them."""
    candidates: list[Path] = []
    if cases:
        candidates += [cases / rules_folder.name, cases]
    default = rules_folder / "cases"
    candidates.append(default)
    for parent in rules_folder.resolve().parents:
        fixtures = parent / "fixtures" / "rules"
        candidates += [fixtures / rules_folder.name, fixtures]
    for folder in candidates:
        if folder.is_dir() and any(folder.glob("*.yaml")):
            return folder
    return default
