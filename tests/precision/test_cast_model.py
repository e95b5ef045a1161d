"""`qdq.cast`: what becomes FP16 or BF16, where Casts are, and what stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import qdq
from qdq.data.feeds import NOISE
from qdq.graph.bodies import all_nodes
from qdq.graph.source import canonical_bytes
from qdq.reports.cast_sections import cast_sections
from qdq.rules.rule import Where, keep_fp32_rule, make_rule_set
from tests.support.body_models import branching, samples
from tests.support.graphs import run

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


def casts(model: onnx.ModelProto) -> list[tuple[str, str, int]]:
    """The Casts of a model: input, output and type."""
    nodes = [node for _, node in all_nodes(model.graph) if node.op_type == "Cast"]
    return [(node.input[0], node.output[0], node.attribute[0].i) for node in nodes]


def stored_types(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


CHAIN = """
g (float[2,4] x) => (float[2,4] y)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{ [product] p = MatMul (x, w)
  [exp] e = Exp (p)
  [sum] y = Add (e, p) }
"""


def test_casts_are_where_types_meet_and_each_is_shared() -> None:
    result = qdq.cast(parse(CHAIN))

    assert casts(result.model) == [
        ("x", "x_float16", TensorProto.FLOAT16),
        ("p", "p_float32", TensorProto.FLOAT),
        ("e", "e_float16", TensorProto.FLOAT16),
        ("y_float16", "y", TensorProto.FLOAT),
    ]
    assert [(kept.node, kept.because) for kept in result.plan.kept] == [
        ("exp", "powers-and-exponentials")
    ]
    assert (result.plan.cast, result.report.casts, result.report.casts_before) == (2, 4, 0)


def test_inputs_and_outputs_are_cast_on_request() -> None:
    model = qdq.cast(parse(CHAIN), io="fp16").model

    types = [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
    assert types == [TensorProto.FLOAT16, TensorProto.FLOAT16]
    assert casts(model) == [
        ("p", "p_float32", TensorProto.FLOAT),
        ("e", "e_float16", TensorProto.FLOAT16),
    ]


def test_a_glob_keeps_nodes_in_fp32() -> None:
    result = qdq.cast(parse(CHAIN), keep_fp32="s*")

    assert ("sum", "--keep-fp32 s*") in [(kept.node, kept.because) for kept in result.plan.kept]


def test_bf16_raises_the_opset_that_its_convolutions_need() -> None:
    text = """
    g (float[1,2,4,4] x) => (float[1,2,4,4] y)
    { [conv] y = Conv (x, w) }
    """.replace("{", "<float[2,2,1,1] w = {1,2,3,4}> {")
    result = qdq.cast(parse(text), "bf16")

    assert result.model.opset_import[0].version == 22
    assert stored_types(result.model) == {"w": TensorProto.BFLOAT16}
    assert [to for _, _, to in casts(result.model)] == [TensorProto.BFLOAT16, TensorProto.FLOAT]


def test_a_weight_read_in_both_types_is_stored_in_both() -> None:
    result = qdq.cast(
        parse("""
    g (float[4] x) => (float[4] y)
    <float[4] w = {1,2,3,4}>
    { [sum] s = Add (x, w)
      [power] y = Pow (s, w) }
    """)
    )

    assert stored_types(result.model) == {
        "w": TensorProto.FLOAT,
        "w_float16": TensorProto.FLOAT16,
    }


def test_casts_that_cancel_are_removed_and_others_are_used() -> None:
    model = qdq.cast(
        parse("""
    g (float[4] x) => (float[4] y)
    { [down] h = Cast <to = 10> (x)
      [relu] r = Relu (h)
      [up] u = Cast <to = 1> (r)
      [tanh] t = Tanh (u)
      [exp] y = Exp (u) }
    """)
    ).model

    assert casts(model) == [("x", "h", TensorProto.FLOAT16), ("r", "u", TensorProto.FLOAT)]
    reading = {node.name: list(node.input) for node in model.graph.node}
    assert reading["tanh"] == ["r"]
    assert reading["exp"] == ["u"]


def test_states_of_loops_and_results_of_branches_are_cast_as_one() -> None:
    model = parse("""
    g (float[2,4] x, bool c) => (float count, float[2,4] y)
    <int64 turns = {3}, bool go = {1}, float one = {1}>
    { [loop] count, s = Loop <body = b (int64 i, bool k, float n, float[2,4] a)
        => (bool k2, float n2, float[2,4] a2) {
        [same] k2 = Identity (k)
        [next] n2 = Add (n, one)
        [twice] a2 = Add (a, a) }> (turns, go, one, x)
      [branch] y = If (c) <then_branch = t () => (float[2,4] p) { [relu] p = Relu (s) },
        else_branch = e () => (float[2,4] q) { [exp] q = Exp (s) }> }
    """)
    result = qdq.cast(model)
    onnx.checker.check_model(result.model, full_check=True)
    feed = {"x": np.ones((2, 4), np.float32), "c": np.array(False)}

    expected, actual = run(model, feed), run(result.model, feed)

    assert [kept.node for kept in result.plan.kept] == ["loop.body/next", "branch.else_branch/exp"]
    for before, after in zip(expected, actual, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3)
    assert ("n", "n_float16", TensorProto.FLOAT16) not in casts(result.model)


def test_sequences_shapes_and_types_without_fp16_stay() -> None:
    result = qdq.cast(
        parse("""
    g (float[2,4] x, float limit) => (float[2,4] y, float[n] r)
    <int64 zero = {0}, float start = {0}, float step = {1}>
    { [sequence] q = SequenceConstruct (x, x)
      [element] y = SequenceAt (q, zero)
      [range] r = Range (start, limit, step) }
    """)
    )

    assert casts(result.model) == []
    assert {kept.node: kept.because for kept in result.plan.kept}["range"] == "type"


def test_resize_scales_stay_fp32() -> None:
    result = qdq.cast(
        parse("""
    g (float[1,2,8,8] x) => (float[1,2,16,16] y)
    <float[4] scales = {1, 1, 2, 2}>
    { [resize] y = Resize <mode = "linear"> (x, , scales) }
    """)
    )

    assert stored_types(result.model) == {"scales": TensorProto.FLOAT}
    assert len(casts(result.model)) == 2


def test_constants_and_attributes_that_state_types_follow() -> None:
    model = qdq.cast(
        parse("""
    g (float[2,4] x) => (float[2,4] y)
    { [half] h = Constant <value_float = 0.5> ()
      [shape] s = Shape (x)
      [ones] o = ConstantOfShape <value = float[1] {1}> (s)
      [sum] a = Add (x, o)
      [product] y = Mul (a, h) }
    """)
    ).model

    values = {node.name: node.attribute[0].t for node in model.graph.node if node.attribute}
    assert values["half"].data_type == TensorProto.FLOAT16
    assert values["ones"].data_type == TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)


def test_parameters_of_a_batch_normalization_stay_fp32_where_fp16_overflows() -> None:
    result = qdq.cast(
        parse("""
    g (float[1,2,4] x) => (float[1,2,4] y)
    <float[2] s = {1,1}, float[2] b = {0,0}, float[2] m = {0,0}, float[2] v = {100000,1}>
    { [norm] y = BatchNormalization (x, s, b, m, v) }
    """)
    )

    assert stored_types(result.model) == {
        "s": TensorProto.FLOAT16,
        "b": TensorProto.FLOAT16,
        "m": TensorProto.FLOAT,
        "v": TensorProto.FLOAT,
    }
    assert result.plan.kept == ()


def test_extremes_keep_what_overflows_and_weights_are_reported() -> None:
    text = """
    g (float[2] x) => (float[2] y)
    <float[2] w = {0.5, 0.00000001}>
    { [scaled] s = Mul (x, w)
      [relu] y = Relu (s) }
    """
    result = qdq.cast(parse(text), amax={"s": 50000.0})

    assert [kept.because for kept in result.plan.kept] == ["overflowing-values"] * 2
    assert result.plan.checked == 1
    (loss,) = qdq.cast(parse(text)).report.losses
    assert (loss.tensor, loss.values, loss.overflowing, loss.lost) == ("w", 2, 0, 1)


def test_the_fill_of_a_mask_becomes_the_largest_value() -> None:
    result = qdq.cast(
        parse("""
    g (float[2,4] x, bool[2,4] m) => (float[2,4] y)
    <float fill = {-100000000}>
    { [masked] t = Where (m, x, fill)
      [soft] y = Softmax (t) }
    """)
    )

    (fill,) = result.model.graph.initializer
    assert numpy_helper.to_array(fill) == np.float16(-65504)
    assert result.report.losses[0].overflowing == 1


@pytest.mark.parametrize("scales", ["float", "fp32"])
def test_a_quantized_model_is_cast_around_its_pairs(scales: str) -> None:
    text = """
    g (float[2,8] x) => (float[2,8] y)
    <float[8,8] w>
    { [product] p = MatMul (x, w)
      [exp] y = Exp (p) }
    """
    model = onnx.parser.parse_model(HEADER + text)
    del model.graph.value_info[:]
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    options = qdq.FloatOptions("fp16", scales)

    result = qdq.quantize(model, NOISE, float_type=options)

    assert result.findings == ()
    types = stored_types(result.model)
    expected = TensorProto.FLOAT16 if scales == "float" else TensorProto.FLOAT
    assert {types["x_scale"], types["w_scale"]} == {expected}
    assert types["w"] == TensorProto.FLOAT16
    onnx.checker.check_model(result.model, full_check=True)
    stripped = canonical_bytes(qdq.strip(result.model))
    if scales == "float":
        assert stripped == canonical_bytes(qdq.cast(result.source).model)
    again = qdq.cast(result.model, scales=scales).model
    assert canonical_bytes(again) == canonical_bytes(result.model)


def test_stripping_cancels_the_casts_around_pairs_in_bodies() -> None:
    model = branching()
    scales = qdq.FloatOptions("fp16", "fp32")
    recovery = qdq.Recovery(methods="off", guard=False)
    result = qdq.quantize(model, samples(model), float_type=scales, recovery=recovery)
    casts_before = [to for _, _, to in casts(qdq.cast(result.source).model)]

    stripped = qdq.strip(result.model)

    assert casts(result.model) != casts(stripped)
    assert [to for _, _, to in casts(stripped)] == casts_before


def test_a_cast_to_the_output_of_a_body_keeps_its_name() -> None:
    model = parse("""
    g (float[2,4] x) => (float[2,4] y)
    <int64 turns = {3}, bool go = {1}>
    { [loop] y = Loop <body = b (int64 i, bool k, float[2,4] a) => (bool k2, float[2,4] a2) {
        [same] k2 = Identity (k)
        [half] a2 = Tanh (a) }> (turns, go, x) }
    """)
    first = qdq.cast(model, keep_fp32="loop").model

    assert "a2_float32" in [result for _, result, _ in casts(first)]
    assert canonical_bytes(qdq.cast(first).model) == canonical_bytes(first)


def test_a_residual_sum_in_float32_keeps_the_plan_of_its_skip() -> None:
    model = parse("""
    g (float[2,16] x) => (float[2,16] y)
    { [first] s = MatMul (x, w)
      [wide] p = MatMul (s, w)
      [narrow] q = MatMul (p, w)
      [sum] r = Add (q, s)
      [last] y = MatMul (r, w) }
    """)
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight / 4, "w"))
    recovery = qdq.Recovery(methods="off", guard=False)
    quantized = qdq.quantize(model, NOISE, recovery=recovery)
    assert ("sum", 1) in [(p.edge.node, p.edge.slot) for p in quantized.plan.placements]

    cast = qdq.cast(quantized.model, keep_fp32="sum").model

    assert [finding for finding in qdq.check(cast) if finding.severity != "note"] == []


def test_sm75_implies_fp16_and_says_so() -> None:
    model = parse(CHAIN.replace("4", "16").replace("w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}", "w"))
    del model.graph.value_info[:]
    model.graph.initializer.append(numpy_helper.from_array(np.eye(16, dtype=np.float32), "w"))

    implied = qdq.quantize(model, NOISE, targets="rtx:sm75")
    with pytest.raises(qdq.QdqError, match="quantize nothing in it for rtx:sm75"):
        qdq.quantize(model, NOISE, targets="rtx:sm75", float_type="fp32")

    assert implied.plan.float_type == "fp16"
    assert [placement.edge.node for placement in implied.plan.placements] == ["product"] * 2
    assert qdq.quantize(model, NOISE, targets="rtx:sm86").cast is None


def test_external_data_is_read_and_written_inside(tmp_path: Path) -> None:
    model = parse(CHAIN)
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (tmp_path / "out").mkdir()

    result = qdq.cast(tmp_path / "m.onnx")
    qdq.save(result.model, result.output_source, tmp_path / "out" / "c.onnx")

    assert (tmp_path / "out" / "c.onnx").exists()
    assert not (tmp_path / "out" / "w.bin").exists()
    assert stored_types(onnx.load(tmp_path / "out" / "c.onnx"))["w"] == TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "fp8"}, "'fp8' is no float type"),
        ({"to": "fp32"}, "'fp32' is the type that the model has"),
        ({"scales": "int8"}, "scales: 'int8' is unknown"),
        ({"io": "bf16"}, "io: 'bf16' is unknown"),
        ({"keep_fp32": "nothing"}, "no node is named 'nothing'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(qdq.QdqError, match=message):
        qdq.cast(parse(CHAIN), **options)  # type: ignore[arg-type]


def test_the_record_names_a_kept_node_whose_result_is_cast() -> None:
    model = qdq.cast(parse(CHAIN), io="fp16", keep_fp32="sum").model
    again = qdq.cast(model, io="fp16")
    assert ("sum", "--keep-fp32 sum") in [(kept.node, kept.because) for kept in again.plan.kept]
    assert canonical_bytes(again.model) == canonical_bytes(model)


def test_what_overflows_all_the_same_is_named() -> None:
    model = parse(CHAIN)
    own = make_rule_set(("own",), (keep_fp32_rule("exp", Where(named=("exp",)), "exp"),))
    amax = {"x": 3.0, "p": 70000.0}

    plan = qdq.cast(model, rules=own, amax=amax).plan

    nodes = [(item.tensor, item.node, item.largest) for item in plan.overflowing]
    assert nodes == [("p", "product", 70000.0), ("p", "sum", 70000.0)]
    assert qdq.cast(model, amax=amax).plan.overflowing == ()


def test_a_report_names_what_overflows() -> None:
    own = make_rule_set(("own",), (keep_fp32_rule("exp", Where(named=("exp",)), "exp"),))
    report = qdq.cast(parse(CHAIN), rules=own, amax={"p": 70000.0}).report

    (section, *_) = cast_sections(report)

    assert section.lines[-1] == (
        "values up to 7e+04 overflow FP16 in product, sum, which no rule keeps in FP32. "
        "Add --rules float, or --keep-fp32 of these nodes."
    )
