"""quantize on models that are quantized already: what is kept, completed, removed and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import qdq
from qdq.errors import DataError, ModelError, QdqError, UsageError
from qdq.pipeline.fixer import fix
from qdq.quantized.model import QuantizedModel
from tests.support.cli_runner import refused, save
from tests.support.cli_runner import run as cli
from tests.support.graphs import build, models, noise, random_feed, run, value
from tests.support.graphs import node as _node
from tests.support.peers import (
    FOR_TENSORRT,
    QOPERATOR,
    feeds,
    language,
    ort_dynamic,
    ort_static,
    vision,
)


def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return _node(op, inputs, output, output, **attributes)


def pair(
    tensor: str, name: str = "", scale: str = "", zero: str = "z", **attributes: object
) -> list[onnx.NodeProto]:
    """Return a pair on a tensor, which gives `name`."""
    name, scale = name or f"{tensor}_d", scale or f"{tensor}_s"
    return [
        node("QuantizeLinear", [tensor, scale, zero], f"{name}_q", **attributes),
        node("DequantizeLinear", [f"{name}_q", scale, zero], name, **attributes),
    ]


def block(*missing: str, **changed: np.ndarray) -> onnx.ModelProto:
    """Return a residual block and a head whose tensors have pairs, but for those that are missing."""
    weights = {
        "w": noise(4, 4, 3, 3, seed=1),
        "v": noise(4, 4, 3, 3, seed=2),
        "h": noise(3, 4, seed=3),
    }
    scales = {"x_s": 0.05, "a_s": 0.04, "f_s": 0.01, "r_s": 0.03}
    channels = {
        f"{name}_s": (np.abs(w).reshape(len(w), -1).max(1) / 127).astype(np.float32)
        for name, w in weights.items()
    }
    nodes: list[onnx.NodeProto] = []

    def read(tensor: str, **attributes: object) -> str:
        if tensor in missing:
            return tensor
        if f"{tensor}_d" not in {n.output[0] for n in nodes}:
            nodes.extend(
                pair(tensor, zero=f"{tensor}_z" if tensor in weights else "z", **attributes)
            )
        return f"{tensor}_d"

    nodes.append(node("Conv", [read("x"), read("w", axis=0)], "c", pads=[1] * 4))
    nodes.append(node("Relu", ["c"], "a"))
    nodes.append(node("Conv", [read("a"), read("v", axis=0)], "b", pads=[1] * 4))
    nodes.append(node("Add", ["b", "a" if "skip" in missing else read("a")], "s"))
    nodes.append(node("Relu", ["s"], "r"))
    nodes.append(node("GlobalAveragePool", [read("r")], "g"))
    nodes.append(node("Flatten", ["g"], "f"))
    nodes.append(node("Gemm", [read("f"), read("h", axis=0)], "y", transB=1))
    stored = weights | channels | {k: np.float32(v) for k, v in scales.items()} | {"z": np.int8(0)}
    stored |= {f"{name}_z": np.zeros(len(w), np.int8) for name, w in weights.items()} | changed
    used = {n for item in nodes for n in item.input}
    return build(nodes, {"x": [1, 4, 8, 8]}, ["y"], {k: v for k, v in stored.items() if k in used})


def store_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a block in which the weight w is stored in INT8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    (position,) = (i for i, item in enumerate(graph.node) if item.output[0] == "w_d_q")
    del graph.node[position]
    (stored,) = (item for item in graph.initializer if item.name == "w")
    integers = np.random.default_rng(0).integers(-127, 128, tuple(stored.dims)).astype(np.int8)
    stored.CopyFrom(onnx.numpy_helper.from_array(integers, "w_d_q"))
    return copy


def scales(model: onnx.ModelProto) -> dict[str, list[float]]:
    """Return the scales of every quantized edge."""
    return {
        str(q.edge): np.ravel(q.scales).tolist()
        for q in QuantizedModel(model).edges
        if q.scales is not None
    }


SAMPLES = [{"x": noise(1, 4, 8, 8, seed=i)} for i in range(4)]


def test_a_model_that_is_as_the_rules_want_it_keeps_every_pair_and_needs_no_data() -> None:
    model = block()
    result = qdq.quantize(model, None)
    assert scales(result.model) == scales(model)
    assert result.existing is not None
    assert (
        result.existing.changes.pairs,
        result.existing.coarser,
        result.existing.weights,
        result.existing.calibrated,
    ) == ((), (), (), ())
    assert run(result.model, SAMPLES[0])[0].tolist() == run(model, SAMPLES[0])[0].tolist()


def test_a_missing_residual_pair_gets_the_scale_that_the_tensor_has_elsewhere() -> None:
    result = qdq.quantize(block("skip"), None)
    assert scales(result.model) == scales(block())


def test_a_range_comes_through_operators_that_commute() -> None:
    nodes = [
        *pair("x"),
        node("MatMul", ["x_d", "w"], "m"),
        node("Transpose", ["x"], "t", perm=[1, 0]),
        node("MatMul", ["v", "t"], "n"),
    ]
    weights = {"x_s": np.float32(0.05), "z": np.int8(0), "w": noise(32, 32), "v": noise(32, 32)}
    result = qdq.quantize(build(nodes, {"x": [32, 32]}, ["m", "n"], weights), None)
    assert scales(result.model)["t -> n[1]"] == [pytest.approx(0.05)]


def test_what_nothing_says_is_calibrated_and_nothing_else() -> None:
    result = qdq.quantize(block("f", "x"), SAMPLES)
    before, after = scales(block("f", "x")), scales(result.model)
    assert {edge: after[edge] for edge in before} == before
    assert result.existing.calibrated == ("f", "x")
    assert set(after) - set(before) == {"x -> c[0]", "f -> y[0]"}


def test_without_data_what_nothing_says_is_asked_for(tmp_path: Path) -> None:
    path = save(block("f", "x"), tmp_path / "model.onnx")
    message = refused(tmp_path, "quantize", path, "-o", tmp_path / "out.onnx")
    assert (
        "qdq: model.onnx: the model's own quantization has no range for 2 planned tensors: 'f', 'x'. Pass --data"
        in message
    )


def test_pairs_that_the_rules_forbid_go() -> None:
    model = block()
    extra = pair("c", "c_pair", "a_s")
    at = next(i for i, n in enumerate(model.graph.node) if n.name == "a")
    model.graph.node[at].input[0] = "c_pair"
    for item in reversed(extra):
        model.graph.node.insert(at, item)
    result = qdq.quantize(model, None)
    assert scales(result.model) == scales(block())
    assert [(c.kind, str(c.edge)) for c in result.existing.changes.pairs] == [
        ("removed", "c -> a[0]")
    ]


def test_keep_leaves_them_where_they_are_and_adds_what_is_missing() -> None:
    model = block("skip")
    at = next(i for i, n in enumerate(model.graph.node) if n.name == "a")
    model.graph.node[at].input[0] = "c_pair"
    for item in reversed(pair("c", "c_pair", "a_s")):
        model.graph.node.insert(at, item)
    kept = qdq.quantize(model, None, existing="keep")
    assert scales(kept.model) == scales(block()) | {"c -> a[0]": [pytest.approx(0.04)]}
    assert {str(p.edge): p.because for p in kept.plan.placements}["c -> a[0]"] == ("existing",)
    assert [f.where for f in kept.findings] == ["c -> a[0]"]


def test_replace_calibrates_everything_anew() -> None:
    replaced = qdq.quantize(block("skip"), SAMPLES, existing="replace", method="max")
    fresh = qdq.quantize(qdq.strip(block()), SAMPLES, method="max")
    assert scales(replaced.model) == scales(fresh.model)
    with pytest.raises(DataError, match="data"):
        qdq.quantize(block("skip"), None, existing="replace")


def test_pairs_of_one_tensor_with_different_scales_become_one_with_the_larger_range() -> None:
    model = block("skip", a_s2=np.float32(0.06))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.06), "other_s"))
    at = next(i for i, n in enumerate(model.graph.node) if n.name == "s")
    model.graph.node[at].input[1] = "a_other"
    for item in reversed(pair("a", "a_other", "other_s")):
        model.graph.node.insert(at, item)
    result = qdq.quantize(model, None)
    assert {edge: s for edge, s in scales(result.model).items() if edge.startswith("a ->")} == {
        edge: [pytest.approx(0.06)] for edge in ("a -> b[0]", "a -> s[1]")
    }
    assert [(c.kind, str(c.edge), c.ratio) for c in result.existing.changes.pairs] == [
        ("rescaled", "a -> b[0]", pytest.approx(1.5))
    ]


def test_inputs_of_a_concat_get_one_scale() -> None:
    nodes = [
        *pair("x"),
        *pair("u"),
        node("Concat", ["x_d", "u_d"], "k", axis=1),
        *pair("k"),
        node("MatMul", ["k_d", "w"], "y"),
    ]
    nodes += [node("MatMul", [f"{tensor}_d", "v"], f"{tensor}_y") for tensor in "xu"]
    weights = {
        "x_s": np.float32(0.05),
        "u_s": np.float32(0.03),
        "k_s": np.float32(0.05),
        "z": np.int8(0),
        "w": noise(64, 32),
        "v": noise(32, 32),
    }
    result = qdq.quantize(
        build(nodes, {"x": [2, 32], "u": [2, 32]}, ["y", "x_y", "u_y"], weights), None
    )
    assert {name: s for name, s in scales(result.model).items() if len(s) == 1} == {
        edge: [pytest.approx(0.05)] for edge in ("k -> y[0]", "x -> x_y[0]", "u -> u_y[0]")
    }
    assert [(s.tensor, s.own_amax) for s in result.scales.shared if s.own_amax < s.amax] == [
        ("u", pytest.approx(0.03 * 127))
    ]


def test_weights_with_one_scale_keep_their_integers_in_every_channel() -> None:
    qparams = {"w_s": np.float32(0.02), "w_z": np.int8(0)}
    result = qdq.quantize(block(**qparams), None)
    assert scales(result.model)["w -> c[1]"] == [pytest.approx(0.02)] * 4
    np.testing.assert_allclose(
        run(result.model, SAMPLES[0])[0], run(block(**qparams), SAMPLES[0])[0], atol=1e-6
    )


def test_weights_with_scales_along_another_axis_get_new_ones_and_are_named() -> None:
    model = block()
    for item in model.graph.node:
        if item.name.startswith("w_d"):
            item.attribute[0].i = 1
    result = qdq.quantize(model, None)
    assert [(w.tensor, w.reason) for w in result.existing.weights] == [
        ("w", "had scales along axis 1, not 0")
    ]
    np.testing.assert_allclose(
        scales(result.model)["w -> c[1]"], scales(block())["w -> c[1]"], rtol=1e-6
    )


def test_scales_in_half_precision_and_integers_with_scales_alone_are_read() -> None:
    stored = np.random.default_rng(0).integers(-127, 128, (32, 32)).astype(np.int8)
    nodes = [
        *pair("x"),
        node("DequantizeLinear", ["w", "w_s", "zw"], "wd", axis=1),
        node("MatMul", ["x_d", "wd"], "y"),
    ]
    weights = {
        "x_s": np.float16(0.05),
        "z": np.int8(0),
        "w": stored,
        "w_s": np.full(32, 0.01, np.float16),
        "zw": np.zeros(32, np.int8),
    }
    model = build(
        nodes, {"x": [2, 32]}, {"y": [2, 32]}, weights, opset=19, ir=9, dtype=TensorProto.FLOAT16
    )
    result = qdq.quantize(model, None)
    assert scales(result.model)["x -> y[0]"] == [float(np.float16(0.05))]
    assert set(scales(result.model)["wd -> y[1]"]) == {float(np.float16(0.01))}
    assert {t.data_type for t in result.model.graph.initializer} == {
        TensorProto.FLOAT16,
        TensorProto.INT8,
    }


@pytest.mark.parametrize(
    ("zero", "times"),
    [
        (np.uint8(0), 255 / 127),
        (np.uint8(128), None),
        (np.uint8(64), 191 / 127),
        (np.int8(-20), 147 / 127),
    ],
)
def test_asymmetric_activations_become_symmetric_and_say_what_that_costs(
    zero: np.generic, times: float | None
) -> None:
    nodes = [*pair("x"), node("MatMul", ["x_d", "w"], "y")]
    result = qdq.quantize(
        build(
            nodes, {"x": [2, 32]}, ["y"], {"x_s": np.float32(0.05), "z": zero, "w": noise(32, 32)}
        ),
        None,
    )
    assert [c.step_ratio for c in result.existing.coarser] == (
        [pytest.approx(times)] if times else []
    )
    assert scales(result.model)["x -> y[0]"] == [pytest.approx(0.05 * (times or 1))]


def test_with_data_what_would_be_coarser_is_calibrated_within_its_range() -> None:
    nodes = [*pair("x"), node("MatMul", ["x_d", "w"], "y")]
    for scale, narrower in ((0.05, True), (0.001, False)):
        weights = {"x_s": np.float32(scale), "z": np.uint8(64), "w": noise(32, 32)}
        model = build(nodes, {"x": [2, 32]}, ["y"], weights)
        result = qdq.quantize(model, [{"x": noise(2, 32)}], method="max")
        (calibrated,) = scales(result.model)["x -> y[0]"]
        whole = scales(qdq.quantize(model, None).model)["x -> y[0]"][0]
        assert (calibrated < whole) == narrower
        assert calibrated == pytest.approx(min(whole, np.abs(noise(2, 32)).max() / 127))
        assert result.existing.calibrated == ("x",)


def test_sixteen_bits_are_refused_with_the_way_out(tmp_path: Path) -> None:
    nodes = [*pair("x"), node("MatMul", ["x_d", "w"], "y")]
    weights = {"x_s": np.float32(0.05), "z": np.uint16(0), "w": noise(32, 32)}
    path = save(
        build(nodes, {"x": [2, 32]}, {"y": [2, 32]}, weights, opset=21, ir=10),
        tmp_path / "model.onnx",
    )
    message = refused(tmp_path, "quantize", path, "-o", tmp_path / "out.onnx")
    assert (
        "model.onnx: tensor 'x' is quantized to uint16, and INT8 of the same range has steps 516 times as large (at most 4 are allowed)"
        in message
    )
    assert "Pass --existing replace with --data" in message
    assert (
        cli(
            "quantize",
            path,
            "-o",
            tmp_path / "out.onnx",
            "--data",
            "noise",
            "--existing",
            "replace",
        )[0]
        == 0
    )


def test_channel_scales_of_an_activation_become_the_largest() -> None:
    nodes = [*pair("x", zero="zx", axis=1), node("Conv", ["x_d", "w"], "y")]
    weights = {
        "x_s": np.float32([0.01, 0.03, 0.02, 0.01]),
        "zx": np.zeros(4, np.int8),
        "w": noise(4, 4, 1, 1),
    }
    result = qdq.quantize(build(nodes, {"x": [1, 4, 8, 8]}, ["y"], weights), None)
    assert scales(result.model)["x -> y[0]"] == [pytest.approx(0.03)]


def test_an_activation_with_a_scale_of_zero_is_calibrated() -> None:
    result = qdq.quantize(block(x_s=np.float32(0)), SAMPLES)
    assert result.existing.calibrated == ("x",)


@pytest.mark.parametrize("unusable", [0.0, np.nan, np.inf])
def test_a_channel_without_a_usable_scale_gets_one_from_its_weights(unusable: float) -> None:
    weight = noise(4, 4, 3, 3, seed=1)
    weight[1] *= 5.0 / np.abs(weight[1]).max()
    weight[3] *= 1e-3 / np.abs(weight[3]).max()
    model = block(w=weight, w_s=np.float32([0.01, unusable, 0.02, unusable]))
    (finding,) = (f for f in qdq.check(model) if f.code == "scale-not-positive")
    assert f"the scale 'w_s' is {unusable:g} in channel 1 of 4" in finding.problem
    result = qdq.quantize(model, SAMPLES)
    expected = np.float32([0.01, 5 / 127, 0.02, 1e-3 / 127])
    assert scales(result.model)["w -> c[1]"] == pytest.approx(expected.tolist())
    (rescaled,) = result.existing.weights
    assert str(rescaled.reason) == (
        "had no scale above 0 in 2 of 4 channels, first in 1; the other channels keep theirs"
    )
    fixed = fix(block(w=weight, w_s=np.float32([0.01, unusable, 0.02, unusable])))
    assert fixed is not None
    assert scales(fixed.model)["w -> c[1]"] == pytest.approx(expected.tolist())


def test_a_weight_with_one_scale_of_zero_gets_scales_from_its_values() -> None:
    weight = noise(4, 4, 3, 3, seed=1)
    model = block(w=weight, w_s=np.float32(0), w_z=np.int8(0))
    for item in model.graph.node:
        if item.output[0] in ("w_d", "w_d_q"):
            del item.attribute[:]
    result = qdq.quantize(model, SAMPLES)
    expected = np.abs(weight).max((1, 2, 3)) / 127
    assert scales(result.model)["w -> c[1]"] == pytest.approx(expected.tolist())


def test_a_stored_channel_with_a_scale_of_zero_stays_zero() -> None:
    model = block(w_s=np.float32([0.01, 0, 0.02, 0.01]))
    integers = store_integers(model)
    assert "scale-not-positive" in {f.code for f in qdq.check(integers)}
    result = qdq.quantize(integers, SAMPLES)
    feed = random_feed(result.model)
    (output,) = run(result.model, feed)
    assert np.isfinite(output).all()
    assert scales(result.model)["w_d -> c[1]"] == pytest.approx([0.01, 1 / 127, 0.02, 0.01])


def test_a_dynamically_quantized_model_is_calibrated_or_refused(tmp_path: Path) -> None:
    model = ort_dynamic(language())
    path = save(model, tmp_path / "model.onnx")
    assert "Pass --data to calibrate what is missing" in refused(
        tmp_path, "quantize", path, "-o", tmp_path / "out.onnx"
    )
    result = qdq.quantize(model, feeds(language()))
    assert {c.op for c in result.existing.converted} >= {"MatMulInteger"}
    assert qdq.check(result.model) == ()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{}, QOPERATOR, FOR_TENSORRT], ids=["qdq", "qoperator", "for tensorrt"]
)
def test_what_onnx_runtime_quantized_is_repaired_without_data_and_loses_nothing(
    options: dict[str, object],
) -> None:
    model, samples = vision(), feeds(vision())
    ort_model = ort_static(model, **options)
    repaired_model = qdq.quantize(ort_model, None).model
    assert qdq.check(repaired_model) == ()
    exact = np.concatenate([run(model, f)[0].ravel() for f in samples])
    errors = [
        np.linalg.norm(np.concatenate([run(m, f)[0].ravel() for f in samples]) - exact)
        for m in (repaired_model, ort_model)
    ]
    assert errors[0] < 1.25 * errors[1]


def test_ranges_of_the_caller_win_over_those_of_the_model(tmp_path: Path) -> None:
    ranges = tmp_path / "r.yaml"
    ranges.write_text("x: {scale: 0.5}\nw: {axis: 0, scale: [1, 2, 3, 4]}\n")
    result = qdq.quantize(block(), None, given=qdq.read_given(ranges))
    assert scales(result.model)["x -> c[0]"] == [0.5]
    assert scales(result.model)["w -> c[1]"] == [1, 2, 3, 4]
    assert scales(result.model)["a -> b[0]"] == [pytest.approx(0.04)]
    observed = qdq.quantize(qdq.strip(block()), SAMPLES).ranges
    with pytest.raises(UsageError, match="existing replace"):
        qdq.quantize(block(), None, given=observed)
    with pytest.raises(UsageError, match="Pass one of keep, repair, replace"):
        qdq.quantize(block(), None, existing="both")


def test_everything_that_was_found_comes_back_from_the_ranges_that_strip_writes(
    tmp_path: Path,
) -> None:
    path = save(block(), tmp_path / "model.onnx")
    for name in ("r.yaml", "r.json"):
        assert (
            cli(
                "strip", path, "-o", tmp_path / "float.onnx", "--ranges", tmp_path / name, "--force"
            )[0]
            == 0
        )
        assert (
            cli(
                "quantize",
                tmp_path / "float.onnx",
                "-o",
                tmp_path / "again.onnx",
                "--ranges",
                tmp_path / name,
                "--force",
            )[0]
            == 0
        )
        assert scales(onnx.load(tmp_path / "again.onnx")) == scales(block())
    assert (
        cli(
            "strip",
            path,
            "-o",
            tmp_path / "float.onnx",
            "--ranges",
            tmp_path / "r.cache",
            "--force",
        )[0]
        == 0
    )
    cached = qdq.read_given(tmp_path / "r.cache")
    assert {r.tensor for r in cached.by_tensor} == {"x", "a", "r", "f"}


def test_the_report_says_what_became_of_the_quantization(tmp_path: Path) -> None:
    path = save(ort_static(vision(), **QOPERATOR), tmp_path / "model.onnx")
    code, out, _ = cli(
        "quantize", path, "-o", tmp_path / "out.onnx", "--report", tmp_path / "r.json"
    )
    assert code == 0
    assert "Was quantized already" in out
    assert "QLinearConv becomes Conv between DequantizeLinear and QuantizeLinear" in out
    assert "tensors become symmetric INT8, with larger steps" in out
    existing = json.loads((tmp_path / "r.json").read_text())["existing"]
    assert set(existing) == {"mode", "converted", "coarser", "weights", "calibrated", "changes"}
    assert existing["mode"] == "repair"
    assert {c["op"] for c in existing["converted"]} >= {"QLinearConv", "QLinearAdd", "MaxPool"}
    assert (
        cli("quantize", tmp_path / "out.onnx", "-o", tmp_path / "b.onnx", "--format", "json")[0]
        == 0
    )


def test_a_float_model_has_no_such_part(tmp_path: Path) -> None:
    path = save(qdq.strip(block()), tmp_path / "model.onnx")
    code, out, _ = cli(
        "quantize", path, "-o", tmp_path / "out.onnx", "--data", "noise", "--format", "json"
    )
    assert code == 0
    assert "existing" not in json.loads(out)


def test_fixing_adds_only_what_the_model_itself_says() -> None:
    fixed = fix(block("skip"))
    assert fixed is not None
    assert scales(fixed.model) == scales(block())
    partly = fix(block("f", "skip"))
    assert partly is not None
    assert scales(partly.model) == scales(block("f"))
    assert qdq.check(partly.model)
    assert fix(qdq.strip(block())) is None


def test_a_pair_on_a_graph_output_goes_and_the_output_keeps_its_name() -> None:
    model = block()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "y_s"))
    model.graph.node.extend(pair("y", "out"))
    del model.graph.output[:]
    model.graph.output.append(value("out", [1, 3]))
    result = qdq.quantize(model, None)
    assert [o.name for o in result.model.graph.output] == ["out"]
    assert scales(result.model) == {
        name.replace("y[", "y["): s for name, s in scales(block()).items()
    }
    np.testing.assert_allclose(
        run(result.model, SAMPLES[0])[0], run(block(), SAMPLES[0])[0], atol=1e-5
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=models(), seed=st.integers(0, 9))
def test_repairing_what_qdq_wrote_changes_nothing(model: onnx.ModelProto, seed: int) -> None:
    try:
        quantized = qdq.quantize(model, [random_feed(model, seed)], allow_unmatched=True)
    except QdqError:
        assume(False)
    again = qdq.quantize(quantized.model, None, rules=None)
    assert scales(again.model) == scales(quantized.model)
    assert again.existing.changes.pairs == ()
    assert (
        qdq.strip(again.model).SerializeToString() == qdq.strip(quantized.model).SerializeToString()
    )


def test_integers_that_go_by_blocks_are_refused_by_name() -> None:
    integers = np.random.default_rng(0).integers(-127, 128, (64, 32)).astype(np.int8)
    nodes = [
        *pair("x"),
        node("DequantizeLinear", ["w", "w_s"], "wd", axis=0, block_size=32),
        node("MatMul", ["x_d", "wd"], "y"),
    ]
    weights = {
        "x_s": np.float32(0.05),
        "z": np.int8(0),
        "w": integers,
        "w_s": np.full((2, 32), 0.01, np.float32),
    }
    model = build(nodes, {"x": [2, 64]}, {"y": [2, 32]}, weights, opset=21, ir=10)
    with pytest.raises(
        ModelError,
        match=r"wd -> y\[1\]: the scales are per block, and the pair is not in INT4 .* Pass --existing replace",
    ):
        qdq.quantize(model, None)
    assert qdq.quantize(model, [{"x": noise(2, 64)}], existing="replace").plan.placements


def test_a_model_of_an_old_ir_version_with_initializers_that_are_no_inputs_is_read() -> None:
    old = build(
        [*pair("x"), node("MatMul", ["x_d", "w"], "y")],
        {"x": [2, 32]},
        {"y": [2, 32]},
        {"x_s": np.float32(0.05), "z": np.int8(0), "w": noise(32, 32)},
        opset=11,
        ir=3,
    )
    assert qdq.load(old).notes[0] == "opset raised from 11 to 13, which Q/DQ needs"
    assert scales(qdq.quantize(old, None).model)["x -> y[0]"] == [pytest.approx(0.05)]
