"""The checks of cases of keep-fp32 rules: what stays in float32, and that the cast model runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qdq.data.feeds import NOISE, open_feeds
from qdq.graph.float_types import FP16
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import Source, canonical_bytes
from qdq.precision.cast_model import CastRequest, cast_source
from qdq.precision.float_plan import FloatRequest, plan_float
from qdq.rewriting.model_file import check_onnx
from qdq.rules.rule import KEEP_FP32, RuleSet
from qdq.runtime.session import exact_options, open_session, run_outputs
from qdq.testing.case_files import Case, parse_case

#: The difference that FP16 may make to an output of a case, relative to the output's largest value:
#: eight steps of its precision.
_TOLERANCE = 2.0**-8


def is_float_case(case: Case, rules: RuleSet) -> bool:
    """Whether a case is about what computes in float32."""
    rule = rules.rule(case.rule)
    return case.fp32 is not None or (rule is not None and rule.then == KEEP_FP32)


def list_decisions(case: Case, rules: RuleSet) -> list[str]:
    """Return one line for each node that rules keep in float32: node, rules."""
    request = FloatRequest(FP16, rules, case.targets, dict(case.amax))
    plan = plan_float(GraphIndex(load(parse_case(case.text))), request)
    return [f"{node.node} {node.because}" for node in plan.kept if node.is_by_rule]


def run_cast(case: Case, rules: RuleSet) -> list[str]:
    """Cast the graph of a case, and return the failures of the result."""
    source = load(parse_case(case.text))
    request = CastRequest(FP16, rules, case.targets, dict(case.amax))
    result = cast_source(source, request)
    check_onnx(result.model, Path(case.name))
    failures: list[str] = []
    again = cast_source(load(result.model), request)
    if canonical_bytes(again.model) != canonical_bytes(result.model):
        failures.append("casting the result again changes it")
    return failures + _compare_outputs(result.source, result.output_source)


def _compare_outputs(source: Source, cast_model: Source) -> list[str]:
    """Run both models on noise: a float output must differ by no more than FP16 explains."""
    index = GraphIndex(source)
    cast_index = GraphIndex(cast_model)
    feed = open_feeds(index, NOISE).first()
    names = [name for name in index.outputs if index.is_float(name)]
    expected = run_outputs(open_session(index, [], exact_options()), index, names, feed)
    actual = run_outputs(open_session(cast_index, [], exact_options()), cast_index, names, feed)
    failures: list[str] = []
    for name, before, after in zip(names, expected, actual, strict=True):
        difference = np.max(np.abs(before - after), initial=0.0)
        allowed = _TOLERANCE * max(1.0, float(np.max(np.abs(before), initial=0.0)))
        if not difference <= allowed:
            failures.append(
                f"output {name!r} differs by {difference:.3g}, but FP16 explains {allowed:.3g}"
            )
    return failures
