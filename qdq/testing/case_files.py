"""Files of rule cases: reading and writing them."""

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

_KEYS = ("says", "before", "plan", "float", "after", "unchanged", "targets", "engine")


class EngineExpectation(msgspec.Struct, frozen=True):
    """What the compiled engine must make of named nodes."""

    target: Target
    int8: tuple[str, ...] = ()
    fp8: tuple[str, ...] = ()
    float: tuple[str, ...] = ()


class Case(msgspec.Struct, frozen=True):
    """One graph, and what the rules must make of it."""

    rule: str
    name: str
    says: str
    #: The float graph as ONNX text.
    text: str
    #: Whether the rule under test must decide nothing here.
    unchanged: bool = False
    plan: tuple[str, ...] = ()
    #: The edges left in float with their rules; None where the case does not say.
    float: tuple[str, ...] | None = None
    #: The rewritten graph as ONNX text, "" where the case does not say.
    after: str = ""
    targets: tuple[Target, ...] = ()
    engine: EngineExpectation | None = None


class _WrittenEngine(msgspec.Struct, forbid_unknown_fields=True):
    target: str
    int8: tuple[str, ...] = ()
    fp8: tuple[str, ...] = ()
    float: tuple[str, ...] = ()


class _Written(msgspec.Struct):
    says: str
    before: str = ""
    unchanged: str = ""
    plan: list[str] | None = None
    float: list[str] | None = None
    after: str = ""
    targets: list[str] = []
    engine: _WrittenEngine | None = None


class CaseFiles:
    """Where the cases of one rule file lie: a file for each rule, or one for all."""

    def __init__(self, folder: Path, file: Path, names: tuple[str, ...]) -> None:
        self.folder, self.shared, self.names = folder, folder / f"{file.stem}.yaml", names

    def path(self, rule: str) -> Path:
        """Return the file that holds a rule's cases, or should."""
        own = self.folder / f"{rule}.yaml"
        return own if own.exists() or not self.shared.exists() else self.shared

    def cases(self, rule: str) -> tuple[Case, ...]:
        """Return a rule's cases; raises RuleError for mistakes in their file."""
        path = self.path(rule)
        return read_cases(path, rule, self.names if path == self.shared else (rule,))


def read_cases(path: Path, rule: str, known: tuple[str, ...] = ()) -> tuple[Case, ...]:
    """Return a rule's cases in a file that holds those of the `known` rules, one rule a YAML document; raises RuleError naming file, line and mistake."""
    known = known or (rule,)
    cases: list[Case] = []
    for line, content in read_documents(path) or [(1, None)]:
        if not isinstance(content, LocatedMapping) or content.get("rule") not in known:
            near = (
                did_you_mean(str(content.get("rule")), known)
                if isinstance(content, LocatedMapping)
                else ""
            )
            raise RuleError(
                f"{path}:{line}: a case file begins with 'rule: {' or '.join(known)}'{near}"
            )
        if content["rule"] == rule:
            cases += [_case(path, rule, name, content) for name in content if name != "rule"]
    return tuple(cases)


def case_names(rule: Rule) -> tuple[tuple[str, str], ...]:
    """Return the name of each case of a rule and what it shows, none where they do not lie beside the rule or above it."""
    file = Path(rule.file)
    files = CaseFiles(cases_folder(file.parent), file, tuple(r.name for r in read_rules(file)))
    return (
        tuple((case.name, case.says) for case in files.cases(rule.name))
        if files.path(rule.name).exists()
        else ()
    )


def parse_case(text: str) -> onnx.ModelProto:
    """Return the model of an ONNX text; weights that are declared without values get seeded random ones."""
    try:
        model = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        said = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise RuleError(f"not ONNX text: {' '.join(said.split())}") from error
    graph = model.graph
    produced = {o for n in graph.node for o in n.output}
    open_weights = [v for v in graph.value_info if v.name not in produced]
    for value in open_weights:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        rng = np.random.default_rng(zlib.crc32(value.name.encode()))
        graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), value.name)
        )
        graph.value_info.remove(value)
    return model


def _case(path: Path, rule: str, name: str, content: LocatedMapping) -> Case:
    given, line = content[name], content.lines[name]
    if not isinstance(given, LocatedMapping):
        raise RuleError(f"{path}:{line}: case {name!r} must be a mapping")
    for key in given:
        if key not in _KEYS:
            raise RuleError(
                f"{path}:{given.lines[key]}: unknown key {key!r}{did_you_mean(key, _KEYS)}"
            )
    if (
        ("before" in given) == ("unchanged" in given)
        or "says" not in given
        or ("before" in given) != ("plan" in given)
    ):
        raise RuleError(
            f"{path}:{line}: case {name!r} needs 'says', and either 'before' with 'plan' or 'unchanged'"
        )
    try:
        written = msgspec.convert(given, _Written)
        return Case(
            rule=rule,
            name=name,
            says=written.says,
            text=written.before or written.unchanged,
            unchanged="unchanged" in given,
            plan=tuple(map(normalize_spaces, written.plan or ())),
            float=tuple(map(normalize_spaces, written.float or ())) if "float" in given else None,
            after=written.after,
            targets=tuple(map(parse_target, written.targets)),
            engine=_expectation(written.engine) if written.engine else None,
        )
    except (msgspec.ValidationError, UsageError) as error:
        raise RuleError(f"{path}:{line}: case {name!r}: {error}") from error


def _expectation(written: _WrittenEngine) -> EngineExpectation:
    return EngineExpectation(parse_target(written.target), written.int8, written.fp8, written.float)


def normalize_spaces(line: str) -> str:
    """Return a line of a plan with one space between its words."""
    return " ".join(line.split())


def cases_folder(rules_folder: Path, cases: Path | None = None) -> Path:
    """Return the folder where the cases of a folder's rules lie, or should where there are none yet."""
    nested = [cases / rules_folder.name, cases] if cases else []
    above = [p / "fixtures" / "rules" for p in rules_folder.resolve().parents]
    known = [
        *nested,
        rules_folder / "cases",
        *(q for p in above for q in (p / rules_folder.name, p)),
    ]
    return next((p for p in known if p.is_dir() and any(p.glob("*.yaml"))), rules_folder / "cases")
