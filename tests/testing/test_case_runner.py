"""The harness behind `qdq test`: each of its checks can fail, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest

from qdq.graph.index import GraphIndex, Node
from qdq.planning.decisions import Plan
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index
from qdq.rules import facts
from qdq.rules.rule_files import load_rules
from qdq.testing import case_runner
from qdq.testing.case_runner import CaseResult, run_cases
from tests.support.cli_runner import run

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n    g (float[1,4,8,8] x) => (float[1,3,8,8] y)\n    <float[4,4,1,1] v, float[3,4,1,1] w>\n    '
#: Two convolutions, of which the rule `keep` leaves the one that reads a Relu in float.
CHAIN = HEAD + "{ [a] p = Conv (x, v)\n      [relu] r = Relu (p)\n      [b] y = Conv (r, w) }"
PLAIN = HEAD + "{ [a] p = Conv (x, v)\n      [tanh] r = Tanh (p)\n      [b] y = Conv (r, w) }"
RULE = "rule: keep\nsays: Leave in float what reads a Relu.\nwhere: {from: Relu}\nthen: leave-float\nbeats: ['*']\n"
PLAN = [
    "x -> a[0]  int8-activation  weighted-inputs",
    "v -> a[1]  int8-weight-per-channel(axis=0)  weights-per-channel",
]


def hit(*more: str, plan: list[str] = PLAN, text: str = CHAIN) -> str:
    """Return a case that the rule changes, with a plan and further lines."""
    lines = [
        "hit:",
        "  says: It reads a Relu.",
        "  before: |",
        f"    {text}",
        "  plan:",
        *(f"    - {line}" for line in plan),
        *(f"  {line}" for line in more),
    ]
    return "\n".join(lines) + "\n"


def near(text: str = PLAIN) -> str:
    """Return a near miss."""
    return f"near:\n  says: It reads a Tanh.\n  unchanged: |\n    {text}\n"


def results(
    folder: Path, *cases: str, rule: str = RULE, engines: bool = False
) -> dict[str, tuple[str, ...]]:
    """Return what is wrong by case, "" for the rule as a whole, of one rule over the shipped set."""
    rules = folder / "mine"
    (rules / "cases").mkdir(parents=True)
    (rules / "keep.yaml").write_text(rule)
    (rules / "cases" / "keep.yaml").write_text("rule: keep\n" + "".join(cases))
    return {result.case: result.failures for result in run_cases(rules, engines=engines)}


def test_a_rule_whose_cases_hold_passes(tmp_path: Path) -> None:
    assert results(
        tmp_path,
        hit(
            "float: ['r -> b[0]  keep', 'p -> relu[0]  no-weighted-outputs', 'w -> b[1]  incomplete']"
        ),
        near(),
    ) == {
        "hit": (),
        "near": (),
        "": (),
    }


def test_a_wrong_line_in_plan_and_float_is_named_with_the_right_one(tmp_path: Path) -> None:
    wrong = PLAN[0].replace("weighted-inputs", "weighted-input")

    failures = results(tmp_path, hit("float: ['r -> b[0]  kept']", plan=[wrong, PLAN[1]]), near())[
        "hit"
    ]

    assert f"plan lacks: {' '.join(wrong.split())}" in failures
    assert f"plan also has: {' '.join(PLAN[0].split())}" in failures
    assert "float lacks: r -> b[0] kept" in failures
    assert "float also has: r -> b[0] keep" in failures


def test_a_plan_of_too_few_lines_fails(tmp_path: Path) -> None:
    assert results(tmp_path, hit(plan=PLAN[:1]), near())["hit"] == (
        f"plan also has: {' '.join(PLAN[1].split())}",
    )


def test_an_unchanged_case_that_the_rule_decides_fails(tmp_path: Path) -> None:
    assert results(tmp_path, hit(), near(CHAIN))["near"] == (
        "the rule should decide nothing here, but decides: r -> b[0] keep",
    )


def test_a_rule_without_near_miss_or_without_change_fails_as_a_whole(tmp_path: Path) -> None:
    assert results(tmp_path / "a", hit())[""] == (
        "the rule has no near miss: a case that stays 'unchanged'",
    )
    assert "the rule has no case that it changes" in results(tmp_path / "b", near())[""]


def test_a_rule_that_no_case_needs_fails_as_a_whole(tmp_path: Path) -> None:
    full_plan = [
        *PLAN,
        "r -> b[0]  int8-activation  weighted-inputs",
        "w -> b[1]  int8-weight-per-channel(axis=0)  weights-per-channel",
    ]

    assert results(tmp_path, hit(plan=full_plan, text=PLAIN), near())[""] == (
        "the cases hold without the rule. Write one that needs it.",
    )


def test_a_rule_without_cases_fails(tmp_path: Path) -> None:
    (tmp_path / "keep.yaml").write_text(RULE)

    assert list(run_cases(tmp_path)) == [
        CaseResult(
            "keep", "", (f"the rule has no cases. Write {tmp_path / 'cases' / 'keep.yaml'}.",)
        )
    ]


def test_a_rule_that_depends_on_the_order_of_nodes_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(_: facts.Scene, node: Node) -> bool:
        """Stands among the first two nodes."""
        return node.position < 2

    monkeypatch.setitem(facts.NODE_FACTS, "early", early)
    text = (
        HEAD
        + "{ [one] p = Abs (x)\n      [two] q = Neg (x)\n      [three] r = Exp (x)\n      [s] s = Sum (p, q, r)\n      [b] y = Conv (s, w) }"
    )
    plan = [
        "s -> b[0]  int8-activation  weighted-inputs",
        "w -> b[1]  int8-weight-per-channel(axis=0)  weights-per-channel",
    ]

    assert (
        "the order of nodes changes the plan"
        in results(
            tmp_path,
            hit(plan=plan, text=text),
            near(),
            rule=RULE.replace("from: Relu", "into: early"),
        )["hit"]
    )


AFTER = """after: |
    {head}{{ [x_QuantizeLinear] x_quantized = QuantizeLinear (x, x_scale, x_zero_point)
      [x_DequantizeLinear] x_dequantized = DequantizeLinear (x_quantized, x_scale, x_zero_point)
      [v_QuantizeLinear] v_quantized = QuantizeLinear <axis = 0> (v, v_scale, v_zero_point)
      [v_DequantizeLinear] v_dequantized = DequantizeLinear <axis = 0> (v_quantized, v_scale, v_zero_point)
      [a] p = Conv ({first}, v_dequantized)
      [relu] r = Relu (p)
      [b] y = Conv (r, w) }}"""


def test_an_after_is_compared_with_the_result(tmp_path: Path) -> None:
    right, wrong = (AFTER.format(head=HEAD, first=first) for first in ("x_dequantized", "x"))

    assert results(tmp_path / "a", hit(right), near())["hit"] == ()
    assert results(tmp_path / "b", hit(wrong), near())["hit"] == (
        "the result differs from the graph under 'after'",
    )


def compiled(monkeypatch: pytest.MonkeyPatch, *, failure: str = "", **int8: bool) -> None:
    """Let the compiler answer with whether each node runs in INT8, or with a failure."""
    layers = [
        SimpleNamespace(node=node, int8=yes, fp8=False, int4=False) for node, yes in int8.items()
    ]
    monkeypatch.setattr(
        case_runner,
        "validate",
        lambda *_, **__: SimpleNamespace(engines=[SimpleNamespace(layers=layers, failure=failure)]),
    )


def test_an_engine_that_does_otherwise_fails_the_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expectation = "engine: {target: 'rtx:sm86', int8: [a], float: [b]}"
    compiled(monkeypatch, a=True, b=False)
    assert results(tmp_path / "a", hit(expectation), near(), engines=True)["hit"] == ()

    compiled(monkeypatch, a=False, b=True)
    assert results(tmp_path / "b", hit(expectation), near(), engines=True)["hit"] == (
        "rtx:sm86: a does not run in INT8",
        "rtx:sm86: b runs in INT8",
    )
    assert results(tmp_path / "c", hit(expectation), near(), engines=False)["hit"] == ()

    compiled(monkeypatch, failure="no implementation")
    assert results(tmp_path / "d", hit(expectation), near(), engines=True)["hit"] == (
        "rtx:sm86: the model does not build: no implementation",
    )


def test_a_difference_beyond_what_the_scales_allow_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_runner, "output_bound", lambda *_: {"y": np.float32(1e-9)})

    (failure,) = results(tmp_path, hit(), near())["hit"]

    assert failure.startswith("output 'y' differs by ")
    assert failure.endswith(", but the scales allow 1e-09")


def spoilt(change: Callable[[onnx.ModelProto], object]) -> Callable[..., onnx.ModelProto]:
    """Return `apply_index` with a defect: the model is changed after it."""
    apply = case_runner.apply_plan

    def apply_badly(*arguments: object) -> onnx.ModelProto:
        model = apply(*arguments)  # type: ignore[arg-type]
        change(model)
        return model

    return apply_badly


def drop_a_pair(model: onnx.ModelProto) -> None:
    """Lead the first convolution past its input's pair, as a rewriter that forgets an edge would."""
    next(n for n in model.graph.node if n.name == "a").input[0] = "x"


def test_a_result_that_lacks_a_pair_is_found_by_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_runner, "apply_plan", spoilt(drop_a_pair))

    assert "checking the result yields findings" in results(tmp_path, hit(), near())["hit"]


def test_a_result_that_does_not_strip_to_the_graph_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        case_runner,
        "apply_plan",
        spoilt(lambda model: setattr(model.graph, "doc_string", "changed")),
    )

    assert (
        "stripping the result does not return the original graph"
        in results(tmp_path, hit(), near())["hit"]
    )


def test_a_rewriter_that_answers_otherwise_the_second_time_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(100))
    monkeypatch.setattr(
        case_runner,
        "apply_plan",
        spoilt(lambda model: setattr(model, "producer_version", str(next(times)))),
    )

    assert "applying the plan again changes the result" in results(tmp_path, hit(), near())["hit"]


def test_a_placement_that_check_does_not_ask_for_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        case_runner, "compare_with_plan", lambda *_, **__: SimpleNamespace(missing=())
    )

    assert results(tmp_path, hit(), near())["hit"] == (
        "checking the float graph does not find each placement",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("junk", "not ONNX text: "),
        (CHAIN.replace("Relu (p)", "Rulu (p)"), "Rulu"),
        (CHAIN.replace("(r, w)", "(q, w)"), "q"),
    ],
    ids=["no-text", "unknown-operator", "unknown-tensor"],
)
def test_a_graph_that_is_none_fails_its_case_only(tmp_path: Path, text: str, message: str) -> None:
    failures = results(tmp_path, hit(text=text), near())

    assert any(message in failure for failure in failures["hit"])
    assert failures["near"] == ()


def test_the_command_counts_what_holds_and_ends_with_1_if_something_does_not(
    tmp_path: Path,
) -> None:
    results(tmp_path, hit(plan=PLAN[:1]), near())

    code, out, err = run("test", tmp_path / "mine", "--no-engines")

    assert (code, err) == (1, "")
    assert (
        out
        == f"FAILED keep: hit\n         plan also has: {' '.join(PLAN[1].split())}\nok     keep: near\nok     keep: as a whole\n2 of 3 hold\n"
    )


def test_every_plan_of_the_shuffled_graph_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def forgetful(index: GraphIndex, request: PlanRequest) -> Plan:
        nonlocal calls
        calls += 1
        plan = plan_index(index, request)
        return plan if calls < 3 else msgspec.structs.replace(plan, left_float=())

    monkeypatch.setattr(case_runner, "plan_index", forgetful)

    assert "the order of nodes changes the plan" in results(tmp_path, hit(), near())["hit"]


SECOND = "rule: other\nsays: Leave in float what reads a Tanh.\nwhere: {from: Tanh}\nthen: leave-float\nbeats: [weighted-inputs]\n"
OTHER_HIT = hit(text=PLAIN).replace("Relu", "Tanh")
OTHER_NEAR = near(CHAIN).replace("Tanh", "Relu")


def several(folder: Path) -> Path:
    """Write a file of two rules and return it."""
    (folder / "cases").mkdir()
    (folder / "team.yaml").write_text(f"{RULE}---\n{SECOND}")
    return folder / "team.yaml"


def ran(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return what is wrong by rule and case."""
    return {(result.rule, result.case): result.failures for result in run_cases(path)}


def test_a_file_of_several_rules_runs_the_cases_of_each_from_one_file_or_its_own(
    tmp_path: Path,
) -> None:
    path = several(tmp_path)
    expected = {(rule, case): () for rule in ("keep", "other") for case in ("hit", "near", "")}
    first, second = f"rule: keep\n{hit()}{near()}", f"rule: other\n{OTHER_HIT}{OTHER_NEAR}"

    (tmp_path / "cases" / "team.yaml").write_text(f"{first}---\n{second}")
    assert ran(path) == ran(tmp_path) == expected

    (tmp_path / "cases" / "team.yaml").write_text(first)
    assert ran(path)["other", ""] != ()
    (tmp_path / "cases" / "other.yaml").write_text(second)
    assert ran(path) == expected


def test_rules_of_a_file_overlay_a_shipped_set(tmp_path: Path) -> None:
    path = several(tmp_path)

    rules = load_rules(["tensorrt", str(path)])

    assert rules.names == ("tensorrt", "team.yaml")
    assert (rules.rule("other") or rules.rules[0]).at("then") == f"{path}:10"
    assert rules.rule("keep") is not None
    assert rules.rule("weighted-inputs") is not None


def test_a_rule_about_names_does_not_fail_the_cases_of_others_that_lack_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "named.yaml").write_text(
        "rule: named\nsays: Leave it.\nwhere: {named: elsewhere}\nthen: leave-float\nbeats: [weighted-inputs]\n"
    )
    (tmp_path / "mine" / "keep.yaml").write_text(RULE)
    (tmp_path / "mine" / "cases").mkdir()
    (tmp_path / "mine" / "cases" / "keep.yaml").write_text(f"rule: keep\n{hit()}{near()}")

    failures = {
        (result.rule, result.case): result.failures for result in run_cases(tmp_path / "mine")
    }

    assert failures["keep", "hit"] == failures["keep", "near"] == failures["keep", ""] == ()


def test_outputs_that_hold_no_floats_are_not_held_to_the_scales(tmp_path: Path) -> None:
    text = CHAIN.replace("=> (float[1,3,8,8] y)", "=> (bool[1,3,8,8] y)").replace(
        "y = Conv (r, w) }", "c = Conv (r, w)\n      [over] y = Greater (c, p0) }"
    )
    text = text.replace("float[3,4,1,1] w>", "float[3,4,1,1] w, float[1] p0>")
    assert results(tmp_path, hit(text=text), near())["hit"] == ()


def test_a_result_that_onnx_refuses_fails_its_case_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: object) -> None:
        raise onnx.checker.ValidationError("no such attribute\n==> Context: somewhere")

    monkeypatch.setattr("onnx.checker.check_model", refuse)
    assert (
        "onnx.checker rejects the result: no such attribute"
        in results(tmp_path, hit(), near())["hit"][0]
    )


@pytest.mark.parametrize("weights", ["float[4,6,1,1] v", "float[4,4,9,9] v"])
def test_a_case_that_cannot_be_run_fails_by_name(tmp_path: Path, weights: str) -> None:
    text = CHAIN.replace("float[4,4,1,1] v", weights)
    failures = results(tmp_path, hit(text=text), near())["hit"]
    assert len(failures) == 1
    assert "ONNX Runtime" in failures[0]
