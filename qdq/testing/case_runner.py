"""Rule cases: small ONNX texts with the plan they must come to, and the checks that every case gets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx

from qdq.calibration.calibrator import choose_scales, observe_job
from qdq.calibration.methods import Method
from qdq.calibration.scales import Scales
from qdq.checking.checker import check, compare_with_plan
from qdq.data.feeds import NOISE, open_feeds
from qdq.errors import QdqError, UsageError, first_line
from qdq.graph.bodies import captured_names, node_bodies
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import Source, canonical_bytes
from qdq.observers.collection import CollectionJob
from qdq.planning.decisions import Plan, left_float_lines, placement_lines
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index, plan_source
from qdq.quantized.stripper import strip
from qdq.rewriting.inserter import apply_plan
from qdq.rewriting.model_file import check_onnx
from qdq.rules.rule import Rule, RuleSet
from qdq.rules.rule_files import RULE_SUFFIXES, load_rules, read_rules, rule_files
from qdq.rules.shipped import DEFAULT_SET, KERNELS_FOLDER, shipped_rules_folder
from qdq.runtime.session import exact_options, open_session
from qdq.testing.case_files import (
    Case,
    CaseFiles,
    EngineExpectation,
    cases_folder,
    normalize_spaces,
    parse_case,
)
from qdq.testing.error_bounds import output_bound
from qdq.validation.validator import validate

_SHUFFLES = 3

#: How scales are chosen for the noise that cases are run with.
_METHOD = Method("max")


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
            read = CaseFiles(where, file, tuple(rule.name for rule in written))
            for rule in written:
                yield from _run_rule(rule, rules, read, engines)


def run_case(case: Case, rules: RuleSet, engines: bool = True) -> tuple[str, ...]:
    """Return what is wrong with a case under some rules, one sentence each; nothing where it holds."""
    try:
        index, made = plan_source(
            load(parse_case(case.text)), PlanRequest(rules, case.targets, allow_unmatched=True)
        )
        source = index.source
        failures = _plan_failures(case, made)
        failures += _shuffle_failures(case, rules, made)
        scales = choose_scales(
            index,
            made,
            observe_job(CollectionJob(index, made, NOISE, _METHOD.needs_histogram)),
            _METHOD,
        )
        failures += _rewrite_failures(case, index, made, scales, rules)
        if engines and case.engine and not failures:
            failures += _engine_failures(case.engine, source, apply_plan(index, made, scales))
    except QdqError as error:
        return (first_line(error),)
    return tuple(failures)


def _parts(path: Path) -> list[Path]:
    """Return the rule file or folder itself, or the set folders inside it."""
    if path.is_file() and path.suffix in RULE_SUFFIXES:
        return [path]
    if not path.is_dir():
        raise UsageError(
            f"{path}: no such folder or rule file; name a folder of rule files, or one that ends in {' or '.join(RULE_SUFFIXES)}"
        )
    if any(path.glob("*.yaml")):
        return [path]
    sets = sorted(
        p
        for p in path.iterdir()
        if p.is_dir() and p.name != KERNELS_FOLDER and any(p.glob("*.yaml"))
    )
    if not sets:
        raise UsageError(f"{path}: holds no rule files (*.yaml), nor do its folders")
    return sets


def _rules_of(path: Path) -> RuleSet:
    """Return a shipped set alone, and a user's folder or file over the default set."""
    folder = path if path.is_dir() else path.parent
    shipped = folder.resolve().parent == shipped_rules_folder().resolve()
    return load_rules([str(folder)] if shipped else [DEFAULT_SET, str(path)])


def _run_rule(rule: Rule, rules: RuleSet, files: CaseFiles, engines: bool) -> Iterator[CaseResult]:
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
        return bool(
            _plan_failures(
                case,
                plan_index(
                    GraphIndex(load(parse_case(case.text))),
                    PlanRequest(rules, case.targets, allow_unmatched=True),
                ),
            )
        )
    except QdqError:
        return True


def _plan_failures(case: Case, made: Plan) -> list[str]:
    lines, left = (
        list(map(normalize_spaces, placement_lines(made))),
        list(map(normalize_spaces, left_float_lines(made))),
    )
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
    wanted = sorted([*placement_lines(made), *left_float_lines(made)])
    for seed in range(_SHUFFLES):
        shuffled = parse_case(case.text)
        _shuffle(shuffled.graph, random.Random(seed))
        other = plan_index(
            GraphIndex(load(shuffled)), PlanRequest(rules, case.targets, allow_unmatched=True)
        )
        if sorted([*placement_lines(other), *left_float_lines(other)]) != wanted:
            return ["the order of nodes changes the plan"]
    return []


def _shuffle(graph: onnx.GraphProto, rng: random.Random) -> None:
    waiting = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    known = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {""}
    del graph.node[:]
    while waiting:
        ready = [
            n
            for n in waiting
            if known.issuperset(
                (*n.input, *(t for _, body in node_bodies(n) for t in captured_names(body)))
            )
        ]
        node = rng.choice(ready or waiting)
        waiting.remove(node)
        known.update(node.output)
        graph.node.append(node)


def _rewrite_failures(
    case: Case, index: GraphIndex, made: Plan, scales: Scales, rules: RuleSet
) -> list[str]:
    source, after = index.source, apply_plan(index, made, scales)
    rewritten = Source(None, after, source.digest)
    stripped = strip(rewritten)
    tests: dict[str, Callable[[], bool]] = {
        "stripping the result does not give the graph back": lambda: (
            canonical_bytes(stripped) == canonical_bytes(source.model)
        ),
        "applying again changes it": lambda: (
            canonical_bytes(apply_plan(GraphIndex(source), made, scales)) == canonical_bytes(after)
        ),
        "checking the result finds something": lambda: (
            not check(rewritten, rules=rules, targets=case.targets, leave_float=())
        ),
        "checking the float graph does not find each placement": lambda: _finds_all(
            case, source, made, rules
        ),
        "the result is not the 'after' that is given": lambda: (
            not case.after or _same_text(case.after, after)
        ),
    }
    failures = [sentence for sentence, test in tests.items() if not test()]
    check_onnx(after.SerializeToString(), Path(case.name))
    return failures + _numeric_failures(index, rewritten, made, scales)


def _finds_all(case: Case, source: Source, made: Plan, rules: RuleSet) -> bool:
    compared = compare_with_plan(source, rules=rules, targets=case.targets, leave_float=())
    return {p.edge for p in compared.missing} == {p.edge for p in made.placements}


def _same_text(text: str, model: onnx.ModelProto) -> bool:
    """Whether a model has the nodes of a text: operators, names, inputs and outputs."""
    wanted = parse_case(text).graph.node
    shape = [(n.op_type, n.name, list(n.input), list(n.output)) for n in model.graph.node]
    return shape == [(n.op_type, n.name, list(n.input), list(n.output)) for n in wanted]


def _numeric_failures(
    index: GraphIndex, rewritten: Source, made: Plan, scales: Scales
) -> list[str]:
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


def _engine_failures(
    expected: EngineExpectation, source: Source, after: onnx.ModelProto
) -> list[str]:
    (report,) = validate(source, after, targets=[expected.target]).engines
    if report.failure:
        return [f"{expected.target}: does not build: {report.failure}"]
    ran = {v.node: "INT8" if v.int8 else "FP8" if v.fp8 else "float" for v in report.layers}
    wanted = {"INT8": expected.int8, "FP8": expected.fp8, "float": expected.float}
    return [
        f"{expected.target}: {n} {_instead(ran.get(n), says)}"
        for says, nodes in wanted.items()
        for n in nodes
        if ran.get(n) != says
    ]


def _instead(ran: str | None, wanted: str) -> str:
    return f"runs in {ran}" if wanted == "float" and ran else f"does not run in {wanted}"
