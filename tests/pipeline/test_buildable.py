"""`quantize --until-it-builds`: what the compiler refuses goes to float and into a rule file, and nothing else does."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qdq
from qdq.engines.rtx_compiler import build_engine
from qdq.errors import ModelError
from qdq.graph.operands import operands
from qdq.graph.pairs import PAIR_OPERATORS
from qdq.pipeline.bisection import BisectionResult, CompilerRefusal
from qdq.pipeline.buildable import exact_globs, leave_float_yaml, search_buildable_plan
from qdq.pipeline.quantize_request import BuildOptions
from qdq.planning.decisions import Plan
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_source
from qdq.rules.rule import Rule, RuleSet, Where, make_rule_set
from qdq.rules.rule_files import load_rules
from qdq.rules.shipped import shipped_sets
from qdq.target import parse_target
from tests.support.cli_runner import refused, samples, save, tiny_model
from tests.support.cli_runner import run as cli
from tests.support.graphs import CALIBRATION, build, models, node, noise
from tests.support.paths import NETWORKS

SM75, SM86, SM89 = (parse_target(f"rtx:sm{sm}") for sm in (75, 86, 89))
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)

FP8_RULES = """rule: own-fp8-inputs
says: These layers in FP8.
where: {named: NAMED, edge: computed-operand}
then: quantize
using: fp8-activation
beats: ['*']
---
rule: own-fp8-weights
says: These weights in FP8.
where: {named: NAMED, edge: constant-operand}
then: quantize
using: fp8-weight-per-channel
beats: ['*']
"""


def fp8(path: Path, named: str) -> Path:
    """Write rules that ask for FP8 in some nodes on any target."""
    path.write_text(FP8_RULES.replace("NAMED", f"'{named}'"))
    return path


def chain(count: int = 6) -> onnx.ModelProto:
    """Return MatMuls in a row, each followed by a Relu; odd names, which globs would read as more."""
    names = ["plain", "[ab]", "star*", "what?", "", "/a/b"]
    nodes = []
    for i in range(count):
        nodes += [
            node("MatMul", [f"r{i - 1}" if i else "x", f"w{i}"], f"m{i}", name=names[i % 6]),
            node("Relu", [f"m{i}"], f"r{i}"),
        ]
    return build(
        nodes,
        {"x": [4, 16]},
        [f"r{count - 1}"],
        {f"w{i}": noise(16, 16, seed=i) for i in range(count)},
    )


def paired(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that read a DequantizeLinear."""
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return {
        n.name
        for n in model.graph.node
        if n.op_type not in PAIR_OPERATORS and dequantized.intersection(n.input)
    }


class Fake:
    """A compiler that refuses sets of nodes that are quantized together, and may name them, or the Q before them."""

    def __init__(self, *together: set[str], naming: str = "") -> None:
        self.together, self.naming, self.models = together, naming, list[onnx.ModelProto]()

    def __call__(self, model: onnx.ModelProto) -> CompilerRefusal | None:
        self.models.append(model)
        onnx.checker.check_model(model)
        for group in self.together:
            if group <= paired(model):
                return CompilerRefusal(
                    "could not find any implementation", self._named(group, model)
                )
        return None

    def _named(self, group: set[str], model: onnx.ModelProto) -> tuple[str, ...]:
        if self.naming != "Q":
            return tuple(sorted(group)) if self.naming else ()
        read = {i for n in model.graph.node if n.name in group for i in n.input}
        dequantized = {
            i
            for n in model.graph.node
            if n.op_type == "DequantizeLinear" and n.output[0] in read
            for i in n.input[:1]
        }
        return tuple(
            n.name
            for n in model.graph.node
            if n.op_type == "QuantizeLinear" and n.output[0] in dequantized
        )


def searched(
    model: onnx.ModelProto, fake: Fake, rules: RuleSet | None = None
) -> tuple[BisectionResult, Plan]:
    """Return what is found for a plan, and the plan."""
    rules = rules or load_rules()
    index, plan = plan_source(qdq.load(model), PlanRequest(rules))
    return search_buildable_plan(index, plan, rules, fake), plan


@pytest.mark.parametrize("naming", ["", "node", "Q"])
@pytest.mark.parametrize("label", ["plain", "[ab]", "star*", "what?", "#8", "/a/b"])
def test_the_refused_node_is_found_whatever_its_name(label: str, naming: str) -> None:
    result, _ = searched(chain(), Fake({label}, naming=naming))
    assert result.groups == (label,)
    assert result.refused[0].message == "could not find any implementation"
    assert result.builds <= (5 if naming == "node" else 12)


@pytest.mark.parametrize("label", ["plain", "[ab]", "star*", "what?", "#8", "/a/b"])
def test_a_glob_of_a_label_matches_that_node_only(label: str) -> None:
    plan = qdq.plan(chain(), leave_float=exact_globs([label]))
    assert {
        item.edge.node for item in plan.left_float if item.because.startswith("--leave-float")
    } == {label}
    assert len(plan.placements) == 10


def test_of_two_that_are_refused_together_one_stays_in_int8() -> None:
    result, _ = searched(chain(), Fake({"plain", "/a/b"}))
    assert len(result.groups) == 1


def test_the_float_model_is_built_second_and_ends_it_where_it_is_refused() -> None:
    fake = Fake(set())
    with pytest.raises(
        ModelError,
        match="Q/DQ is not the cause: the compiler refuses the float model too: could not find any implementation",
    ):
        searched(chain(), fake)
    assert [bool(paired(model)) for model in fake.models] == [True, False]


def test_where_every_node_is_refused_the_plan_is_too() -> None:
    with pytest.raises(
        ModelError,
        match="nothing that the rules quantize builds: could not find any implementation",
    ):
        searched(chain(2), Fake({"plain"}, {"[ab]"}))


def test_a_residual_pair_goes_with_its_convolution_and_comes_back_without_it() -> None:
    nodes = [
        node("Relu", ["x"], "s", name="stem"), node("Conv", ["s", "w"], "c", name="conv", pads=[1, 1, 1, 1]),
        node("Add", ["c", "s"], "y", name="add"), node("Conv", ["y", "v"], "z", name="last"),
    ]  # fmt: skip
    model = build(
        nodes, {"x": [1, 4, 6, 6]}, ["z"], {"w": noise(4, 4, 3, 3), "v": noise(4, 4, 1, 1)}
    )
    fake = Fake({"conv"})
    assert searched(model, fake)[0].groups == ("conv",)
    assert "add" not in paired(fake.models[-1])
    assert searched(model, Fake({"add"}))[0].groups == ("add",)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(models(), st.data())
def test_no_layer_is_ever_built_half_quantized(model: onnx.ModelProto, data: st.DataObject) -> None:
    rules = load_rules()
    index, plan = plan_source(qdq.load(model), PlanRequest(rules))
    groups = sorted({p.edge.node for p in plan.placements})
    if not groups:
        return
    guilty = data.draw(st.sets(st.sampled_from(groups), min_size=1, max_size=2))
    fake = Fake(*({g} for g in guilty))
    with contextlib.suppress(ModelError):  # where nothing builds
        assert set(search_buildable_plan(index, plan, rules, fake).groups) <= set(groups)
    assert len(fake.models) > 1
    for built in fake.models:
        dequantized = {n.output[0] for n in built.graph.node if n.op_type == "DequantizeLinear"}
        for known in index.nodes:
            (copy,) = (n for n in built.graph.node if n.name == known.label)
            operands_quantized = [copy.input[e.slot] in dequantized for e in operands(index, known)]
            assert len(set(operands_quantized)) <= 1


@pytest.mark.parametrize("has_strong_rule", [False, True])
def test_the_rule_file_makes_the_same_plan_even_against_rules_that_beat_all(
    tmp_path: Path, has_strong_rule: bool
) -> None:
    strong = Rule(
        "strong",
        "Quantize.",
        Where(into=("MatMul",), edge=("computed-operand",)),
        "quantize",
        using="int8-activation",
        beats=("*",),
        file="x.yaml",
    )
    base = load_rules()
    rules = make_rule_set(base.names, (*base.rules, strong)) if has_strong_rule else base
    result, plan = searched(chain(), Fake({"[ab]"}, {"#8"}), rules)
    path = tmp_path / "net.leave-float.yaml"
    path.write_text(leave_float_yaml("net.leave-float", "net.onnx", result, rules))
    written = (
        load_rules([*base.names, str(path)] if not has_strong_rule else [str(path)])
        if not has_strong_rule
        else None
    )
    content = yaml.safe_load(path.read_text())
    assert content["beats"] == (["*", "strong"] if has_strong_rule else ["*"])
    assert (
        "[ab], #8: could not find any implementation." in content["evidence"]
        or "#8, [ab]" in content["evidence"]
    )
    if written is not None:
        again = qdq.plan(chain(), rules=written)
        assert (
            again.placements == qdq.plan(chain(), leave_float=exact_globs(result.groups)).placements
        )
        assert {p.edge.node for p in plan.placements} - {
            p.edge.node for p in again.placements
        } == set(result.groups)


# --- the real compiler -----------------------------------------------------------------------------------------------


@needs_compiler
def test_one_layer_in_fp8_on_sm_86_goes_to_float_and_the_rest_stays_in_int8(tmp_path: Path) -> None:
    fp8_rules, model, out = (
        fp8(tmp_path / "own.yaml", "/head/Gemm"),
        NETWORKS / "digits_cnn.onnx",
        tmp_path / "q.onnx",
    )
    sets = ("--rules", "tensorrt", "--rules", fp8_rules)
    code, text, error = cli(
        "quantize",
        model,
        "-o",
        out,
        "--data",
        CALIBRATION,
        *sets,
        "--target",
        "rtx:sm86",
        "--until-it-builds",
        "--validate",
    )
    assert (code, error) == (0, "")
    assert "left in float: /head/Gemm: TensorRT-RTX " in text
    assert "HW-specific datatypes: fp8_e4m3" in text
    assert "the model builds; the search took 4 builds" in text
    assert "12 of 13" in text
    rule = tmp_path / "q.leave-float.yaml"
    assert f"\nwrote {out}, {rule}\n" in text
    plan = qdq.plan(
        model, rules=load_rules(["tensorrt", str(fp8_rules), str(rule)]), targets=[SM86]
    )
    assert plan.placements == qdq.plan(model, targets=[SM86], leave_float=["/head/Gemm"]).placements
    again = tmp_path / "again.onnx"
    assert (
        cli(
            "quantize",
            model,
            "-o",
            again,
            "--data",
            CALIBRATION,
            *sets,
            "--rules",
            rule,
            "--target",
            "rtx:sm86",
        )[0]
        == 0
    )
    assert onnx.load(again).graph == onnx.load(out).graph
    assert cli("check", out)[0] == 0
    assert onnx.load(out).opset_import[0].version == 17


@needs_compiler
def test_fp8_without_a_name_in_the_words_is_found_by_halving_too() -> None:
    rules = load_rules()
    fp8_rules = [
        Rule(
            f"own-{kind}",
            "FP8.",
            Where(named=("what[?]",), edge=(edge,)),
            "quantize",
            using=using,
            beats=("*",),
            file="own.yaml",
        )
        for kind, edge, using in (
            ("i", "computed-operand", "fp8-activation"),
            ("w", "constant-operand", "fp8-weight-per-channel"),
        )
    ]
    index, plan = plan_source(
        qdq.load(chain()),
        PlanRequest(make_rule_set(rules.names, (*rules.rules, *fp8_rules)), (SM86,)),
    )

    def mute(model: onnx.ModelProto) -> CompilerRefusal | None:
        failure = build_engine(model, SM86).failure
        return CompilerRefusal("refused") if failure else None

    result = search_buildable_plan(
        index, plan, make_rule_set(rules.names, (*rules.rules, *fp8_rules)), mute
    )
    assert result.groups == ("what?",)
    assert result.builds <= 9


@needs_compiler
def test_a_plan_in_fp8_alone_is_refused_as_a_whole_in_four_builds(tmp_path: Path) -> None:
    fp8_rules, done = fp8(tmp_path / "own.yaml", "*"), []
    with pytest.raises(
        ModelError,
        match=r"nothing that the rules quantize builds: TensorRT-RTX .* for rtx:sm86: .*fp8_e4m3\. Choose another",
    ):
        qdq.quantize(
            chain(),
            "noise",
            rules=load_rules([str(fp8_rules)]),
            targets=[SM86],
            until_it_builds=BuildOptions(progress=done.append),
        )
    assert done == [1, 2, 3, 4]
    model = save(chain(), tmp_path / "net.onnx")
    options = ("--data", "noise", "--rules", fp8_rules, "--target", "rtx:sm86", "--until-it-builds")
    assert "nothing that the rules quantize builds" in refused(
        tmp_path, "quantize", model, "-o", tmp_path / "q.onnx", *options
    )


@needs_compiler
@pytest.mark.parametrize("guarded", [True, False], ids=["by the kernel table", "by the compiler"])
def test_what_the_compiler_refuses_in_float_too_is_not_blamed_on_q_dq(
    tmp_path: Path, guarded: bool
) -> None:
    """On SM 7.5 TensorRT-RTX has no FP32 matrix product, with or without Q/DQ."""
    model, data, loose = (
        save(tiny_model(), tmp_path / "net.onnx"),
        samples(tmp_path / "data"),
        tmp_path / "loose.yaml",
    )
    loose.write_text(
        "rule: loose\nsays: All.\nwhere: {edge: [computed-operand, constant-operand]}\nthen: quantize\nusing: int8-activation\n"
    )
    options = (
        "--data",
        data,
        "--target",
        "rtx:sm75",
        "--until-it-builds",
        "--float",
        "fp32",
        *(() if guarded else ("--rules", loose)),
    )
    message = refused(tmp_path, "quantize", model, "-o", tmp_path / "q.onnx", *options)
    assert (
        "Q/DQ is not the cause: the compiler refuses the float model too: TensorRT-RTX " in message
    )
    assert "for rtx:sm75: Cannot compile operation 'gemm'" in message
    assert "FP32 GEMM is not supported" in message


@needs_compiler
def test_what_builds_at_once_gets_no_rule_file(tmp_path: Path) -> None:
    model, out = save(chain(), tmp_path / "net.onnx"), tmp_path / "q.onnx"
    code, text, _ = cli(
        "quantize",
        model,
        "-o",
        out,
        "--data",
        "noise",
        "--target",
        "rtx:sm86",
        "--until-it-builds",
        "--format",
        "json",
    )
    assert (code, json.loads(text)["build_search"]) == (0, {"refused": [], "builds": 1})
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "q.onnx"}


@pytest.mark.parametrize("target", [(), ("--target", "trt:sm80")])
def test_only_rtx_targets_can_be_built_for(tmp_path: Path, target: tuple[str, ...]) -> None:
    model = save(chain(), tmp_path / "net.onnx")
    message = refused(
        tmp_path,
        "quantize",
        model,
        "-o",
        tmp_path / "q.onnx",
        "--data",
        "noise",
        *target,
        "--until-it-builds",
    )
    assert "no target is an rtx target. Pass --target, such as rtx:sm86." in message


def test_a_rule_file_that_exists_is_not_replaced(tmp_path: Path) -> None:
    model = save(chain(), tmp_path / "net.onnx")
    (tmp_path / "q.leave-float.yaml").write_text("mine")
    message = refused(
        tmp_path,
        "quantize",
        model,
        "-o",
        tmp_path / "q.onnx",
        "--data",
        "noise",
        "--target",
        "rtx:sm86",
        "--until-it-builds",
    )
    assert "q.leave-float.yaml: the file exists. Pass --force to replace it" in message


def test_validating_in_the_same_run_compares_with_the_quantized_model(tmp_path: Path) -> None:
    arguments: tuple[Any, ...] = ("--data", CALIBRATION, "--validate", "--format", "json")
    code, text, _ = cli(
        "quantize", NETWORKS / "digits_cnn.onnx", "-o", tmp_path / "q.onnx", *arguments
    )
    assert code == 0
    assert 0 < json.loads(text)["validation"]["accuracy"]["outputs"][0]["max_abs"] < 1
    assert "tensorrt-fp8" in shipped_sets()
