"""Checking and stripping quantized models that others made: every defect is found by its code, nothing crashes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import qdq
from qdq.checking.checker import check, compare_with_plan
from qdq.checking.finding import Finding
from qdq.graph.loader import load
from qdq.graph.source import canonical_bytes
from qdq.quantized.model import QuantizedModel
from qdq.quantized.stripper import strip
from tests.support.cli_runner import run as cli
from tests.support.defects import (
    DEFECTS,
    Model,
    good,
    insert,
    made_by,
    pair,
    reading,
    store,
    store_parameters,
    stored_as_integers,
)
from tests.support.graphs import (
    CALIBRATION,
    Array,
    build,
    convolution,
    initializer,
    node,
    noise,
    random_feed,
    run,
    value,
)
from tests.support.paths import NETWORKS


def test_a_model_as_the_rules_want_it_has_no_findings() -> None:
    model = good()
    onnx.checker.check_model(model, full_check=True)
    assert check(model) == ()


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_each_defect_is_found_by_its_code_and_nothing_else_is(name: str) -> None:
    model = good()
    damage, codes, where = DEFECTS[name]
    damage(model)
    findings = check(model)
    assert {f.code for f in findings} == codes
    assert where in {f.where for f in findings}
    for finding in findings:
        assert finding.problem
        assert finding.fix
        assert str(finding).startswith(f"{finding.code}: {finding.where}: ")


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_a_damaged_model_can_be_stripped(name: str) -> None:
    model = good()
    DEFECTS[name][0](model)
    stripped = strip(model)
    assert not [n for n in stripped.graph.node if n.op_type == "DequantizeLinear"]
    expected = run(strip(good()), random_feed(good()))[0]
    np.testing.assert_allclose(
        run(stripped, random_feed(stripped))[0], expected, rtol=1e-5, atol=1e-5
    )


def test_defects_are_found_from_the_command_line_with_exit_code_1(tmp_path: Path) -> None:
    paths = {}
    for name in ("good", "uint8", "missing pair"):
        model = good()
        DEFECTS.get(name, (lambda _: None,))[0](model)
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(model, paths[name])
    assert cli("check", paths["good"]) == (0, f"{paths['good']}: no findings\n", "")
    code, out, error = cli("check", *paths.values())
    assert (code, error) == (1, "")
    assert f"{paths['uint8']}: 1 error\n  error uint8: " in out
    assert "\n    x -> first[0]: the tensor is quantized to UINT8" in out
    assert f"{paths['missing pair']}: 1 warning\n" in out
    assert "\n3 models: 1 error, 1 warning; 1 without findings\n" in out


def codes(findings: tuple[Finding, ...]) -> set[str]:
    """Return the codes of some findings."""
    return {f.code for f in findings}


def concatenated(left: float, right: float) -> Model:
    """Return a Concat of two quantized tensors into a quantized Conv, by hand."""
    weights = {"w": noise(2, 6, 1, 1), "u": noise(2, 3, 1, 1, seed=1)}
    constants = store_parameters({"p": left, "q": right, "c": left}, weights)
    nodes = [
        node("Relu", ["x"], "p"), node("Sigmoid", ["x"], "q"), *pair("p"), *pair("q"), *pair("u", axis=0),
        node("Conv", ["p_dq", "u_dq"], "y1", name="left"), node("Conv", ["q_dq", "u_dq"], "y2", name="right"),
        node("Concat", ["p", "q"], "c", axis=1), *pair("c"), *pair("w", axis=0), node("Conv", ["c_dq", "w_dq"], "y", name="after"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 3, 4, 4]}, ["y", "y1", "y2"], constants)


def test_scales_of_a_concat_that_differ_are_found() -> None:
    assert check(concatenated(0.1, 0.1)) == ()
    (finding,) = check(concatenated(0.1, 0.2))
    assert finding.code == "unequal-scales"
    assert "p 0.1" in finding.problem
    assert "q 0.2" in finding.problem


@pytest.mark.parametrize("axis", [0, -4])
def test_an_axis_may_be_counted_from_the_end(axis: int) -> None:
    model = good()
    for output in ("w_q", "w_dq"):
        made_by(model, output).attribute[0].i = axis
    assert check(model) == ()


@pytest.mark.parametrize("constants", [False, True], ids=["initializers", "Constant nodes"])
def test_weights_stored_as_integers_count_as_pairs_and_become_floats(constants: bool) -> None:
    model = stored_as_integers(good(), "w", "v", constants=constants)
    onnx.checker.check_model(model, full_check=True)
    assert check(model) == ()
    stripped = strip(model)
    assert [n.op_type for n in stripped.graph.node] == ["Conv", "Relu", "Conv"]
    onnx.checker.check_model(stripped, full_check=True)
    assert {t.name: t.data_type for t in stripped.graph.initializer} == {
        "w_dq": TensorProto.FLOAT,
        "v_dq": TensorProto.FLOAT,
    }
    exact = numpy_helper.to_array(
        next(t for t in load(good()).model.graph.initializer if t.name == "w")
    )
    np.testing.assert_allclose(
        initializer(stripped, "w_dq"), exact, atol=initializer(good(), "w_s").max() / 2 + 1e-6
    )
    feed = random_feed(model)
    np.testing.assert_allclose(run(stripped, feed)[0], run(model, feed)[0], atol=0.5)


def test_defects_of_stored_integers_are_found() -> None:
    model = stored_as_integers(good(), "w")
    store(model, "w_z", np.full(4, 3, np.int8))
    assert codes(check(model)) == {"zero-point"}
    np.testing.assert_allclose(
        initializer(strip(model), "w_dq"),
        (initializer(model, "w_q").astype(np.float32) - 3)
        * initializer(model, "w_s").reshape(-1, 1, 1, 1),
        rtol=1e-6,
    )
    model = stored_as_integers(good(), "w")
    store(model, "w_q", initializer(model, "w_q").astype(np.uint8))
    store(model, "w_z", np.zeros(4, np.uint8))
    assert codes(check(model)) == {"unsupported-type"}


def test_stored_integers_in_external_data_are_read(tmp_path: Path) -> None:
    model = stored_as_integers(good(), "w", "v")
    path = tmp_path / "int8.onnx"
    onnx.save(
        onnx.ModelProto.FromString(model.SerializeToString()),
        path,
        save_as_external_data=True,
        location="int8.bin",
        size_threshold=0,
    )
    assert check(path) == ()
    feed = random_feed(model)
    np.testing.assert_allclose(run(strip(path), feed)[0], run(strip(model), feed)[0])
    (tmp_path / "out").mkdir()
    assert cli("strip", path, "-o", tmp_path / "out" / "float.onnx")[0] == 0
    np.testing.assert_allclose(
        run(tmp_path / "out" / "float.onnx", feed)[0], run(strip(model), feed)[0]
    )


def test_stored_integers_whose_zero_point_is_computed_stay() -> None:
    model = stored_as_integers(good(), "w")
    store(model, "w_z", None)
    model.graph.input.append(value("w_z", [4], TensorProto.INT8))
    check(model)
    stripped = strip(model)
    assert [n.op_type for n in stripped.graph.node].count("DequantizeLinear") == 1
    onnx.checker.check_model(stripped)


def test_weights_quantized_by_blocks_are_floats_when_stripped() -> None:
    integers = np.random.default_rng(0).integers(-127, 128, (4, 6)).astype(np.int8)
    scales = np.random.default_rng(1).uniform(0.01, 0.02, (2, 6)).astype(np.float32)
    model = build(
        [node("DequantizeLinear", ["w_q", "w_s"], "w", axis=0, block_size=2), node("MatMul", ["x", "w"], "y")],
        {"x": [3, 4]}, ["y"], {"w_q": integers, "w_s": scales}, opset=21, ir=10,
    )  # fmt: skip
    weight = next(t for t in strip(model).graph.initializer if t.name == "w")
    np.testing.assert_array_equal(
        numpy_helper.to_array(weight), integers * np.repeat(scales, 2, axis=0)
    )
    check(model)


def test_a_pair_on_a_graph_output_leaves_the_output_its_name_when_stripped() -> None:
    model = good()
    store(model, "y_s", np.array(0.1, np.float32))
    store(model, "y_z", np.array(0, np.int8))
    insert(model, len(model.graph.node), pair("y"))
    model.graph.output[0].name = "y_dq"
    stripped = strip(model)
    assert [n.op_type for n in stripped.graph.node] == ["Conv", "Relu", "Conv"]
    assert stripped.graph.node[-1].output[0] == stripped.graph.output[0].name == "y_dq"
    run(stripped, random_feed(model))
    check(model)


def test_one_quantizer_with_several_readers_and_double_pairs_are_stripped() -> None:
    model = good()
    made_by(model, "x_q").output[0] = "x_q"
    insert(model, 2, [node("DequantizeLinear", ["x_q", "x_s", "x_z"], "x_dq2", name=""), node("QuantizeLinear", ["x_dq2", "x_s", "x_z"], "x_q2", name=""),
                      node("DequantizeLinear", ["x_q2", "x_s", "x_z"], "x_dq3", name="")])  # fmt: skip
    reading(model, "first").input[0] = "x_dq3"
    stripped = strip(model)
    assert [n.op_type for n in stripped.graph.node] == ["Conv", "Relu", "Conv"]
    assert [t.name for t in stripped.graph.initializer] == ["w", "v"]
    assert {(f.code, f.node) for f in check(model)} == {("duplicate-pair", "#4")}


def test_unnamed_nodes_keep_labels_of_their_own_beside_unnamed_pairs() -> None:
    model = good()
    for item in model.graph.node:
        item.name = ""
    assert check(model) == ()
    quantized = QuantizedModel(model)
    names = [n.name for n in quantized.labelled().graph.node]
    assert len(set(names)) == len(names)
    convolutions = [n.name for n in quantized.labelled().graph.node if n.op_type == "Conv"]
    assert convolutions == [n.label for n in quantized.index.nodes if n.op == "Conv"]


def test_a_float_model_is_one_note_that_counts_what_the_rules_would_quantize() -> None:
    model = convolution()
    (finding,) = check(model)
    assert (finding.code, finding.severity, finding.where) == ("not-quantized", "note", "")
    assert f"{len(qdq.plan(model).placements)} edges" in finding.problem
    assert [p.edge for p in compare_with_plan(model).missing] == [
        p.edge for p in qdq.plan(model).placements
    ]


def test_left_float_globs_rules_and_targets_are_read_from_the_model() -> None:
    model = convolution()
    result = qdq.quantize(
        model, "noise", leave_float=["y_node"], targets=[qdq.parse_target("rtx:sm86")]
    )
    assert check(result.model) == ()
    assert codes(check(result.model, leave_float=())) == {"missing-pair"}
    assert codes(check(result.model, leave_float=("a_node", "y_node"))) == {"unwanted-pair"}


def test_old_quantized_models_are_raised_before_they_are_checked() -> None:
    weights = {"w": noise(4, 3, 3, 3), "s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "xq"), node("DequantizeLinear", ["xq", "s", "z"], "xd"),
        node("QuantizeLinear", ["w", "s", "z"], "wq"), node("DequantizeLinear", ["wq", "s", "z"], "wd"), node("Conv", ["xd", "wd"], "y", name="conv"),
    ]  # fmt: skip
    model = build(nodes, {"x": [1, 3, 6, 6]}, ["y"], weights, opset=10, ir=5)
    assert [(f.code, f.where) for f in check(model)] == [("weight-per-tensor", "w -> conv[1]")]
    assert [n.op_type for n in strip(model).graph.node] == ["Conv"]


class Reader:
    """The first samples of the digits, as onnxruntime.quantization reads them."""

    def __init__(self) -> None:
        with np.load(CALIBRATION) as content:
            images = content["image"][:8]
        self.samples = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.samples, None)


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime.quantization") is None,
    reason="onnxruntime.quantization is not installed",
)
@pytest.mark.parametrize("form", ["QDQ", "QDQ per channel", "QDQ signed", "QOperator"])
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_onnx_runtime_quantized_gets_findings(tmp_path: Path, form: str) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    out = tmp_path / "ort.onnx"
    options: dict[str, Any] = {
        "quant_format": QuantFormat.QOperator if form == "QOperator" else QuantFormat.QDQ,
        "per_channel": form == "QDQ per channel",
    }
    if form == "QDQ signed":
        options |= {
            "activation_type": QuantType.QInt8,
            "weight_type": QuantType.QInt8,
            "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
        }
    quantize_static(str(NETWORKS / "digits_cnn.onnx"), str(out), Reader(), **options)
    findings = check(out)
    assert findings
    if form == "QDQ":
        assert codes(findings) >= {"zero-point", "int32-dequantize"}
    if form == "QDQ signed":
        assert not codes(findings) & {"no-zero-point", "scale-not-constant", "scale-not-positive"}
        assert not [f for f in findings if f.code == "zero-point" and not f.where.endswith("[2]")]
    stripped = strip(out)
    if form.startswith("QDQ"):
        assert [n.op_type for n in stripped.graph.node if n.op_type.endswith("Linear")] == []
        assert stripped.graph.node[-1].output[0] == stripped.graph.output[0].name
        onnx.checker.check_model(stripped)
    if (
        form == "QDQ signed"
    ):  # with a zero point ONNX Runtime drops each Relu, for the clipping of its Q does the same
        feed = next(iter(Reader().samples))
        np.testing.assert_allclose(
            run(stripped, feed)[0], run(NETWORKS / "digits_cnn.onnx", feed)[0], atol=0.5
        )
    assert cli("check", out)[0] == 1


def test_stripping_what_qdq_wrote_removes_what_it_wrote_into_the_model() -> None:
    model = convolution()
    result = qdq.quantize(model, "noise")
    assert any(p.key.startswith("qdq.") for p in result.model.metadata_props)
    assert canonical_bytes(strip(result.model)) == canonical_bytes(model)
