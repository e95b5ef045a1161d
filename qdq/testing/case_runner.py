"""The runner of rule cases: small ONNX texts, each with its plan, and the checks of every case."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx

from qdq.calibration.calibrator import observe_job
from qdq.calibration.methods import Method
from qdq.calibration.scale_choice import choose_scales
from qdq.calibration.scales import Scales
from qdq.checking.checker import check, compare_with_plan
from qdq.checking.float_checks import FLOAT_CODES
from qdq.data.feeds import NOISE, open_feeds
from qdq.errors import QdqError, UsageError, first_line
from qdq.graph.bodies import captured_names, node_bodies
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import Source, canonical_bytes
from qdq.observers.collection import CollectionJob
from qdq.optional_packages import is_installed
from qdq.planning.decisions import Plan, left_float_lines, placement_lines
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index, plan_source
from qdq.quantized.stripper import strip
from qdq.rewriting.inserter import apply_plan
from qdq.rewriting.model_file import check_onnx
from qdq.rules.rule import Rule, RuleSet
from qdq.rules.rule_files import RULE_SUFFIXES, load_rules, read_rules, rule_files
from qdq.rules.shipped import DEFAULT_SET, KERNELS_FOLDER, shipped_rules_folder
from qdq.runtime.session import exact_options, open_session, run_outputs
from qdq.testing.case_files import (
    Case,
    CaseFiles,
    EngineExpectation,
    cases_folder,
    normalize_spaces,
    parse_case,
)
from qdq.testing.error_bounds import output_bound
from qdq.testing.float_cases import is_float_case, list_decisions, run_cast
from qdq.validation.engine_report import LayerVerdict
from qdq.validation.validator import validate

#: The number of other node orders that each case is planned with.
_SHUFFLES = 3

#: The method that chooses scales for the noise that cases are run with.
_METHOD = Method("max")


class CaseResult(msgspec.Struct, frozen=True):
    """A case, or all cases of a rule, with the failures in it."""

    #: Name of the rule.
    rule: str
    #: Name of the case, or "as a whole".
    case: str
    #: One sentence for each check that failed.
    failures: tuple[str, ...]


def run_cases(path: Path, cases: Path | None = None, engines: bool = True) -> Iterator[CaseResult]:
    """Yield a result for each case of some rules, and one for each rule as a whole.

    `path` is a rule file, a folder of them or a folder of sets. A rule's cases are in a file that
    is named after the rule or after its rule file: in `cases`, else in ``cases`` beside the rules,
    else in the nearest ``fixtures/rules`` above them. `engines` builds the engines that cases ask
    for. Without ONNX Runtime, cases are planned, but no model is rewritten and run.

    Raises RuleError for mistakes in rule or case files, UsageError where there are none.
    """
    for part in _list_parts(path):
        files = rule_files(part) if part.is_dir() else [part]
        rules = _load_rules_of(part)
        folder = cases_folder(part if part.is_dir() else part.parent, cases)
        for file in files:
            rules_of_file = read_rules(file)
            case_files = CaseFiles(folder, file, tuple(rule.name for rule in rules_of_file))
            for rule in rules_of_file:
                yield from _run_rule(rule, rules, case_files, engines)


def can_run_models() -> bool:
    """Whether cases are run as well as planned, for which ONNX Runtime is needed."""
    return is_installed("onnxruntime")


def run_case(case: Case, rules: RuleSet, engines: bool = True) -> tuple[str, ...]:
    """Return the failures of a case under some rules, one sentence each; none where it holds."""
    try:
        return tuple(_run_checks(case, rules, engines))
    except QdqError as error:
        return (first_line(error),)


def _run_checks(case: Case, rules: RuleSet, engines: bool) -> list[str]:
    if is_float_case(case, rules):
        cast_failures = run_cast(case, rules) if can_run_models() else []
        return _float_failures(case, rules) + cast_failures
    index, plan = plan_source(load(parse_case(case.text)), _plan_request(case, rules))
    failures = _plan_failures(case, plan)
    failures += _shuffle_failures(case, rules, plan)
    if not can_run_models():
        return failures
    job = CollectionJob(index, plan, NOISE, _METHOD.needs_histogram)
    scales = choose_scales(index, plan, observe_job(job), _METHOD)
    failures += _rewrite_failures(case, index, plan, scales, rules)
    if engines and case.engine and not failures:
        rewritten = apply_plan(index, plan, scales)
        failures += _engine_failures(case.engine, index.source, rewritten)
    return failures


def _plan_request(case: Case, rules: RuleSet) -> PlanRequest:
    return PlanRequest(rules, case.targets, allow_unmatched=True)


def _list_parts(path: Path) -> list[Path]:
    """Return the rule file or folder itself, or the folders of sets inside it."""
    if path.is_file() and path.suffix in RULE_SUFFIXES:
        return [path]
    if not path.is_dir():
        suffixes = " or ".join(RULE_SUFFIXES)
        raise UsageError(
            f"{path}: there is no such folder or rule file. Pass a folder of rule files, or a file "
            f"that ends in {suffixes}."
        )
    if _holds_rules(path):
        return [path]
    folders = [p for p in path.iterdir() if p.is_dir() and p.name != KERNELS_FOLDER]
    sets = sorted(folder for folder in folders if _holds_rules(folder))
    if not sets:
        raise UsageError(
            f"{path}: the folder holds no rule files (*.yaml), and neither do its subfolders. "
            "Pass a folder of rule files."
        )
    return sets


def _holds_rules(folder: Path) -> bool:
    return any(folder.glob("*.yaml"))


def _load_rules_of(path: Path) -> RuleSet:
    """Return a shipped set alone, and a user's folder or file on top of the default set."""
    folder = path if path.is_dir() else path.parent
    is_shipped = folder.resolve().parent == shipped_rules_folder().resolve()
    return load_rules([str(folder)] if is_shipped else [DEFAULT_SET, str(path)])


def _run_rule(rule: Rule, rules: RuleSet, files: CaseFiles, engines: bool) -> Iterator[CaseResult]:
    path = files.path(rule.name)
    if not path.exists():
        yield CaseResult(rule.name, "", (f"the rule has no cases. Write {path}.",))
        return
    cases = files.cases(rule.name)
    for case in cases:
        yield CaseResult(rule.name, case.name, run_case(case, rules, engines))
    yield CaseResult(rule.name, "", tuple(_rule_failures(rule.name, cases, rules)))


def _rule_failures(rule: str, cases: tuple[Case, ...], rules: RuleSet) -> Iterator[str]:
    """Yield the failures of a rule's cases as a whole: without the rule, one of them must fail."""
    if all(case.unchanged for case in cases):
        yield "the rule has no case that it changes"
    if not any(case.unchanged for case in cases):
        yield "the rule has no near miss: a case that stays 'unchanged'"
    remaining = tuple(_remove_beaten(other, rule) for other in rules.rules if other.name != rule)
    other_rules = RuleSet(rules.names, remaining)
    if cases and not any(_fails(case, other_rules) for case in cases):
        yield "the cases hold without the rule. Write one that needs it."


def _remove_beaten(rule: Rule, name: str) -> Rule:
    """Return a rule that does not beat the rule of a name."""
    beats = tuple(beaten for beaten in rule.beats if beaten != name)
    return msgspec.structs.replace(rule, beats=beats)


def _fails(case: Case, rules: RuleSet) -> bool:
    """Whether a case has another plan under some rules, or none."""
    try:
        if case.fp32 is not None:
            return bool(_float_failures(case, rules))
        index = GraphIndex(load(parse_case(case.text)))
        plan = plan_index(index, _plan_request(case, rules))
    except QdqError:
        return True
    return bool(_plan_failures(case, plan))


def _float_failures(case: Case, rules: RuleSet) -> list[str]:
    """Return the differences from the nodes that must compute in float32."""
    decisions = list_decisions(case, rules)
    if not case.unchanged:
        return _compare_lines("fp32", case.fp32 or (), decisions)
    failures: list[str] = []
    for line in decisions:
        if case.rule in line.replace(",", " ").split():
            failures.append(f"the rule should decide nothing here, but decides: {line}")
    return failures


def _plan_failures(case: Case, plan: Plan) -> list[str]:
    placements = [normalize_spaces(line) for line in placement_lines(plan)]
    left_float = [normalize_spaces(line) for line in left_float_lines(plan)]
    if case.unchanged:
        failures: list[str] = []
        for line in (*placements, *left_float):
            if case.rule in line.replace(",", " ").split():
                failures.append(f"the rule should decide nothing here, but decides: {line}")
        return failures
    failures = _compare_lines("plan", case.plan, placements)
    if case.float is not None:
        failures += _compare_lines("float", case.float, left_float)
    return failures


def _compare_lines(key: str, expected: Iterable[str], actual: Iterable[str]) -> list[str]:
    """Return the lines under a key of the case that are missing, then those that are extra."""
    expected_lines = sorted(expected)
    actual_lines = sorted(actual)
    missing = [f"{key} lacks: {line}" for line in expected_lines if line not in actual_lines]
    extra = [f"{key} also has: {line}" for line in actual_lines if line not in expected_lines]
    return missing + extra


def _shuffle_failures(case: Case, rules: RuleSet, plan: Plan) -> list[str]:
    """Plan the graph with its nodes in other valid orders, which must not change the plan."""
    expected = _sorted_decisions(plan)
    for seed in range(_SHUFFLES):
        model = parse_case(case.text)
        _shuffle_nodes(model.graph, random.Random(seed))
        shuffled_plan = plan_index(GraphIndex(load(model)), _plan_request(case, rules))
        if _sorted_decisions(shuffled_plan) != expected:
            return ["the order of nodes changes the plan"]
    return []


def _sorted_decisions(plan: Plan) -> list[str]:
    return sorted([*placement_lines(plan), *left_float_lines(plan)])


def _shuffle_nodes(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Put the nodes of a graph in a random topological order."""
    remaining = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    available = {""}
    available.update(value.name for value in graph.input)
    available.update(tensor.name for tensor in graph.initializer)
    del graph.node[:]
    while remaining:
        ready = [node for node in remaining if available.issuperset(_names_read(node))]
        node = rng.choice(ready or remaining)
        remaining.remove(node)
        available.update(node.output)
        graph.node.append(node)


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node and its bodies read."""
    names = set(node.input)
    for _, body in node_bodies(node):
        names |= captured_names(body)
    return names


def _rewrite_failures(
    case: Case, index: GraphIndex, plan: Plan, scales: Scales, rules: RuleSet
) -> list[str]:
    source = index.source
    model = apply_plan(index, plan, scales)
    rewritten = Source(None, model, source.digest)
    failures: list[str] = []
    if canonical_bytes(strip(rewritten)) != canonical_bytes(source.model):
        failures.append("stripping the result does not return the original graph")
    second_model = apply_plan(GraphIndex(source), plan, scales)
    if canonical_bytes(second_model) != canonical_bytes(model):
        failures.append("applying the plan again changes the result")
    findings = check(rewritten, rules=rules, targets=case.targets, leave_float=())
    # a case is about pairs: its network may be float32 for a target that refuses that
    if any(finding.code not in FLOAT_CODES for finding in findings):
        failures.append("checking the result yields findings")
    if not _finds_all_placements(case, source, plan, rules):
        failures.append("checking the float graph does not find each placement")
    if case.after and not _has_nodes_of(model, case.after):
        failures.append("the result differs from the graph under 'after'")
    check_onnx(model, Path(case.name))
    return failures + _numeric_failures(index, rewritten, plan, scales)


def _finds_all_placements(case: Case, source: Source, plan: Plan, rules: RuleSet) -> bool:
    """Whether the check of the float graph misses exactly the pairs of the plan."""
    comparison = compare_with_plan(source, rules=rules, targets=case.targets, leave_float=())
    missing_edges = {placement.edge for placement in comparison.missing}
    return missing_edges == {placement.edge for placement in plan.placements}


def _has_nodes_of(model: onnx.ModelProto, text: str) -> bool:
    """Whether a model has the nodes of an ONNX text: operators, names, inputs and outputs."""
    return _describe_nodes(model) == _describe_nodes(parse_case(text))


def _describe_nodes(model: onnx.ModelProto) -> list[tuple[str, str, list[str], list[str]]]:
    return [
        (node.op_type, node.name, list(node.input), list(node.output)) for node in model.graph.node
    ]


def _numeric_failures(
    index: GraphIndex, rewritten: Source, plan: Plan, scales: Scales
) -> list[str]:
    """Run both models on noise: a float output must not differ by more than the scales allow.

    Other outputs may flip at a threshold.
    """
    feed = open_feeds(index, NOISE).first()
    names = list(index.outputs)
    float_outputs = run_outputs(open_session(index, []), index, names, feed)
    quantized_index = GraphIndex(rewritten)
    quantized_session = open_session(quantized_index, [], exact_options())
    quantized_outputs = run_outputs(quantized_session, quantized_index, names, feed)
    bounds = output_bound(index, plan, scales, feed)
    failures: list[str] = []
    for name, expected, actual in zip(names, float_outputs, quantized_outputs, strict=True):
        if expected.dtype.kind != "f":
            continue
        difference = np.abs(expected - actual)
        if not (difference <= bounds[name]).all():
            largest = difference.max()
            allowed = np.max(bounds[name])
            failures.append(
                f"output {name!r} differs by {largest:.3g}, but the scales allow {allowed:.3g}"
            )
    return failures


def _engine_failures(
    expectation: EngineExpectation, source: Source, quantized: onnx.ModelProto
) -> list[str]:
    target = expectation.target
    (report,) = validate(source, quantized, targets=[target]).engines
    if report.failure:
        return [f"{target}: the model does not build: {report.failure}"]
    actual_types = {verdict.node: _engine_type(verdict) for verdict in report.layers}
    expected_types = {
        "INT8": expectation.int8,
        "FP8": expectation.fp8,
        "INT4": expectation.int4,
        "float": expectation.float,
    }
    failures: list[str] = []
    for expected_type, nodes in expected_types.items():
        for node in nodes:
            actual_type = actual_types.get(node)
            if actual_type == expected_type:
                continue
            if expected_type == "float" and actual_type:
                failures.append(f"{target}: {node} runs in {actual_type}")
            else:
                failures.append(f"{target}: {node} does not run in {expected_type}")
    return failures


def _engine_type(verdict: LayerVerdict) -> str:
    """Return the type in which the engine runs a node, or in which it keeps the weight."""
    if verdict.int8:
        return "INT8"
    if verdict.int4:
        return "INT4"
    return "FP8" if verdict.fp8 else "float"
