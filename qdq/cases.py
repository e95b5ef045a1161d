"""Rule cases: small ONNX texts with the plan they must come to, and the checks that every case gets."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from qdq.bounds import output_bound
from qdq.calibration import Scales, ranges_of, scales_from
from qdq.checking import check, compared_with_plan
from qdq.errors import QdqError, RuleError, UsageError, did_you_mean, first_line
from qdq.feeds import NOISE, open_feeds
from qdq.index import GraphIndex, bodies_of, captured
from qdq.kernels import shipped_rules
from qdq.loading import Source, canonical_bytes, load
from qdq.methods import Method
from qdq.observation import exact_options, open_session
from qdq.observing import Job
from qdq.planning import Plan, plan_index, plan_source
from qdq.reporting import float_lines, plan_lines
from qdq.rewriting import apply_index, check_onnx
from qdq.rule import Rule, RuleSet
from qdq.rulefile import DEFAULT_SET, KERNELS_FOLDER, RULE_SUFFIXES, load_rules, read_rules, rule_files
from qdq.strictyaml import Located, read_documents
from qdq.stripping import strip
from qdq.target import Target, parse_target
from qdq.validation import validate

_KEYS = ("says", "before", "plan", "float", "after", "unchanged", "targets", "engine")
_SHUFFLES = 3

#: How scales are chosen for the noise that cases are run with.
_METHOD = Method("max")


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


class CaseResult(msgspec.Struct, frozen=True):
    """A case, or all cases of a rule, and what failed in it."""

    rule: str
    case: str
    failures: tuple[str, ...]


def run_cases(path: Path, cases: Path | None = None, engines: bool = True) -> Iterator[CaseResult]:
    """Yield a result for each case of the rules in a file, a folder or its set folders, and one for each rule as a whole.

    A rule's cases lie in a file of the rule's name, or in one of its file's name: in `cases`, else in
    ``cases`` beside the rules, else in the nearest ``fixtures/rules`` above them. `engines` builds the
    engines that cases ask for. Raises RuleError for mistakes in rule or case files, UsageError where
    there are none.
    """
    for part in _parts(path):
        files = rule_files(part) if part.is_dir() else [part]
        rules = _rules_of(part)
        where = cases_folder(part if part.is_dir() else part.parent, cases)
        for file in files:
            written = read_rules(file)
            read = _CaseFiles(where, file, tuple(rule.name for rule in written))
            for rule in written:
                yield from _run_rule(rule, rules, read, engines)


class _CaseFiles:
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
        if not isinstance(content, Located) or content.get("rule") not in known:
            near = did_you_mean(str(content.get("rule")), known) if isinstance(content, Located) else ""
            raise RuleError(f"{path}:{line}: a case file begins with 'rule: {' or '.join(known)}'{near}")
        if content["rule"] == rule:
            cases += [_case(path, rule, name, content) for name in content if name != "rule"]
    return tuple(cases)


def case_names(rule: Rule) -> tuple[tuple[str, str], ...]:
    """Return the name of each case of a rule and what it shows, none where they do not lie beside the rule or above it."""
    file = Path(rule.file)
    files = _CaseFiles(cases_folder(file.parent), file, tuple(r.name for r in read_rules(file)))
    return tuple((case.name, case.says) for case in files.cases(rule.name)) if files.path(rule.name).exists() else ()


def run_case(case: Case, rules: RuleSet, engines: bool = True) -> tuple[str, ...]:
    """Return what is wrong with a case under some rules, one sentence each; nothing where it holds."""
    try:
        index, made = plan_source(load(parse_case(case.text)), rules, case.targets, allow_unmatched=True)
        source = index.source
        failures = _plan_failures(case, made)
        failures += _shuffle_failures(case, rules, made)
        scales = scales_from(index, made, ranges_of(Job(index, made, NOISE, _METHOD.needs_histogram)), _METHOD)
        failures += _rewrite_failures(case, index, made, scales, rules)
        if engines and case.engine and not failures:
            failures += _engine_failures(case.engine, source, apply_index(index, made, scales))
    except QdqError as error:
        return (first_line(error),)
    return tuple(failures)


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
        graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), value.name))
        graph.value_info.remove(value)
    return model


def _case(path: Path, rule: str, name: str, content: Located) -> Case:
    given, line = content[name], content.lines[name]
    if not isinstance(given, Located):
        raise RuleError(f"{path}:{line}: case {name!r} must be a mapping")
    for key in given:
        if key not in _KEYS:
            raise RuleError(f"{path}:{given.lines[key]}: unknown key {key!r}{did_you_mean(key, _KEYS)}")
    if ("before" in given) == ("unchanged" in given) or "says" not in given or ("before" in given) != ("plan" in given):
        raise RuleError(f"{path}:{line}: case {name!r} needs 'says', and either 'before' with 'plan' or 'unchanged'")
    try:
        written = msgspec.convert(given, _Written)
        return Case(
            rule=rule,
            name=name,
            says=written.says,
            text=written.before or written.unchanged,
            unchanged="unchanged" in given,
            plan=tuple(map(_spaced, written.plan or ())),
            float=tuple(map(_spaced, written.float or ())) if "float" in given else None,
            after=written.after,
            targets=tuple(map(parse_target, written.targets)),
            engine=_expectation(written.engine) if written.engine else None,
        )
    except (msgspec.ValidationError, UsageError) as error:
        raise RuleError(f"{path}:{line}: case {name!r}: {error}") from error


def _expectation(written: _WrittenEngine) -> EngineExpectation:
    return EngineExpectation(parse_target(written.target), written.int8, written.fp8, written.float)


def _spaced(line: str) -> str:
    return " ".join(line.split())


def _parts(path: Path) -> list[Path]:
    """Return the rule file or folder itself, or the set folders inside it."""
    if path.is_file() and path.suffix in RULE_SUFFIXES:
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder or rule file; name a folder of rule files, or one that ends in {' or '.join(RULE_SUFFIXES)}")
    if any(path.glob("*.yaml")):
        return [path]
    sets = sorted(p for p in path.iterdir() if p.is_dir() and p.name != KERNELS_FOLDER and any(p.glob("*.yaml")))
    if not sets:
        raise UsageError(f"{path}: holds no rule files (*.yaml), nor do its folders")
    return sets


def _rules_of(path: Path) -> RuleSet:
    """Return a shipped set alone, and a user's folder or file over the default set."""
    folder = path if path.is_dir() else path.parent
    shipped = folder.resolve().parent == shipped_rules().resolve()
    return load_rules([str(folder)] if shipped else [DEFAULT_SET, str(path)])


def cases_folder(rules_folder: Path, cases: Path | None = None) -> Path:
    """Return the folder where the cases of a folder's rules lie, or should where there are none yet."""
    nested = [cases / rules_folder.name, cases] if cases else []
    above = [p / "fixtures" / "rules" for p in rules_folder.resolve().parents]
    known = [*nested, rules_folder / "cases", *(q for p in above for q in (p / rules_folder.name, p))]
    return next((p for p in known if p.is_dir() and any(p.glob("*.yaml"))), rules_folder / "cases")


def _run_rule(rule: Rule, rules: RuleSet, files: _CaseFiles, engines: bool) -> Iterator[CaseResult]:
    if not files.path(rule.name).exists():
        yield CaseResult(rule.name, "", (f"has no cases: write {files.path(rule.name)}",))
        return
    cases = files.cases(rule.name)
    for case in cases:
        yield CaseResult(rule.name, case.name, run_case(case, rules, engines))
    yield CaseResult(rule.name, "", tuple(_rule_failures(rule.name, cases, rules)))


def _rule_failures(rule: str, cases: tuple[Case, ...], rules: RuleSet) -> Iterator[str]:
    """Yield what is wrong with a rule's cases as a whole: without the rule one of them must break."""
    if not any(not c.unchanged for c in cases):
        yield "has no case that it changes"
    if not any(c.unchanged for c in cases):
        yield "has no near miss: a case that stays 'unchanged'"
    without = RuleSet(rules.names, tuple(_forget(r, rule) for r in rules.rules if r.name != rule))
    if cases and not any(_breaks(c, without) for c in cases):
        yield "its cases hold without it; write one that needs it"


def _forget(rule: Rule, name: str) -> Rule:
    return msgspec.structs.replace(rule, beats=tuple(b for b in rule.beats if b != name))


def _breaks(case: Case, rules: RuleSet) -> bool:
    try:
        return bool(_plan_failures(case, plan_index(GraphIndex(load(parse_case(case.text))), rules, case.targets, allow_unmatched=True)))
    except QdqError:
        return True


def _plan_failures(case: Case, made: Plan) -> list[str]:
    lines, left = list(map(_spaced, plan_lines(made))), list(map(_spaced, float_lines(made)))
    if case.unchanged:
        touched = [line for line in [*lines, *left] if case.rule in line.replace(",", " ").split()]
        return [f"should decide nothing, but: {line}" for line in touched]
    failures = _difference("plan", case.plan, lines)
    return failures if case.float is None else failures + _difference("float", case.float, left)


def _difference(what: str, wanted: Iterable[str], got: Iterable[str]) -> list[str]:
    wanted, got = sorted(wanted), sorted(got)
    missing = [f"{what} lacks: {line}" for line in wanted if line not in got]
    return missing + [f"{what} has besides: {line}" for line in got if line not in wanted]


def _shuffle_failures(case: Case, rules: RuleSet, made: Plan) -> list[str]:
    """Plan the graph with its nodes in other orders that are as valid; nothing may change."""
    wanted = sorted([*plan_lines(made), *float_lines(made)])
    for seed in range(_SHUFFLES):
        shuffled = parse_case(case.text)
        _shuffle(shuffled.graph, random.Random(seed))
        other = plan_index(GraphIndex(load(shuffled)), rules, case.targets, allow_unmatched=True)
        if sorted([*plan_lines(other), *float_lines(other)]) != wanted:
            return ["the order of nodes changes the plan"]
    return []


def _shuffle(graph: onnx.GraphProto, rng: random.Random) -> None:
    waiting = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    known = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {""}
    del graph.node[:]
    while waiting:
        ready = [n for n in waiting if known.issuperset((*n.input, *(t for _, body in bodies_of(n) for t in captured(body))))]
        node = rng.choice(ready or waiting)
        waiting.remove(node)
        known.update(node.output)
        graph.node.append(node)


def _rewrite_failures(case: Case, index: GraphIndex, made: Plan, scales: Scales, rules: RuleSet) -> list[str]:
    source, after = index.source, apply_index(index, made, scales)
    rewritten = Source(None, after, source.digest)
    stripped = strip(rewritten)
    tests: dict[str, Callable[[], bool]] = {
        "stripping the result does not give the graph back": lambda: canonical_bytes(stripped) == canonical_bytes(source.model),
        "applying again changes it": lambda: canonical_bytes(apply_index(GraphIndex(source), made, scales)) == canonical_bytes(after),
        "checking the result finds something": lambda: not check(rewritten, rules=rules, targets=case.targets, leave_float=()),
        "checking the float graph does not find each placement": lambda: _finds_all(case, source, made, rules),
        "the result is not the 'after' that is given": lambda: not case.after or _same_text(case.after, after),
    }
    failures = [sentence for sentence, test in tests.items() if not test()]
    check_onnx(after.SerializeToString(), Path(case.name))
    return failures + _numeric_failures(index, rewritten, made, scales)


def _finds_all(case: Case, source: Source, made: Plan, rules: RuleSet) -> bool:
    compared = compared_with_plan(source, rules=rules, targets=case.targets, leave_float=())
    return {p.edge for p in compared.missing} == {p.edge for p in made.placements}


def _same_text(text: str, model: onnx.ModelProto) -> bool:
    """Whether a model has the nodes of a text: operators, names, inputs and outputs."""
    wanted = parse_case(text).graph.node
    shape = [(n.op_type, n.name, list(n.input), list(n.output)) for n in model.graph.node]
    return shape == [(n.op_type, n.name, list(n.input), list(n.output)) for n in wanted]


def _numeric_failures(index: GraphIndex, rewritten: Source, made: Plan, scales: Scales) -> list[str]:
    """Run both models on noise; no float output may differ by more than the scales allow; others may flip at a threshold."""
    feed = open_feeds(index, NOISE).first()
    outputs = list(index.outputs)
    expected = open_session(index, []).run(outputs, feed)
    got = open_session(GraphIndex(rewritten), [], exact_options()).run(outputs, feed)
    bounds = output_bound(index, made, scales, feed)
    return [
        f"output {name!r} differs by {np.abs(a - b).max():.3g}, the scales allow {np.max(bounds[name]):.3g}"
        for name, a, b in zip(outputs, expected, got, strict=True)
        if a.dtype.kind == "f" and not (np.abs(a - b) <= bounds[name]).all()
    ]


def _engine_failures(expected: EngineExpectation, source: Source, after: onnx.ModelProto) -> list[str]:
    (report,) = validate(source, after, targets=[expected.target]).engines
    if report.failure:
        return [f"{expected.target}: does not build: {report.failure}"]
    ran = {v.node: "INT8" if v.int8 else "FP8" if v.fp8 else "float" for v in report.layers}
    wanted = {"INT8": expected.int8, "FP8": expected.fp8, "float": expected.float}
    return [f"{expected.target}: {n} {_instead(ran.get(n), says)}" for says, nodes in wanted.items() for n in nodes if ran.get(n) != says]


def _instead(ran: str | None, wanted: str) -> str:
    return f"runs in {ran}" if wanted == "float" and ran else f"does not run in {wanted}"
