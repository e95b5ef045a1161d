"""Which models qdq takes, and that nothing of them is lost: old opsets, external data, other domains, bodies, half precision."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

import qdq
from qdq.errors import ModelError
from qdq.graph.index import GraphIndex
from qdq.graph.source import canonical_bytes
from qdq.quantized.stripper import strip
from tests.support.cli_runner import run as cli
from tests.support.cli_runner import tiny_model
from tests.support.graphs import (
    build,
    convolution,
    node,
    noise,
    paired_edges,
    random_feed,
    run,
    value,
)
from tests.support.paths import NETWORKS

CONV_WEIGHT = noise(4, 3, 3, 3, seed=1)


def with_tail(
    opset: int,
    tail: list[onnx.NodeProto],
    output: str = "y",
    weights: dict[str, Any] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    """Return Conv [1,3,6,6] -> c [1,4,4,4], and what follows."""
    return build(
        [node("Conv", ["x", "w"], "c"), *tail],
        {"x": [1, 3, 6, 6]},
        [output],
        {"w": CONV_WEIGHT, **(weights or {})},
        opset=opset,
        ir=4,
        **more,
    )


def quantized(model: onnx.ModelProto | Path, **options: Any) -> qdq.Quantized:
    """Return the model quantized on noise, with nothing found in it."""
    result = qdq.quantize(model, "noise", method="max", **options)
    assert result.findings == ()
    return result


OLD = {
    "Clip": [node("Clip", ["c"], "y", min=0.0, max=6.0)],
    "Dropout": [node("Dropout", ["c"], "y", ratio=0.3)],
    "Squeeze": [node("GlobalAveragePool", ["c"], "g"), node("Squeeze", ["g"], "y", axes=[2, 3])],
    "Unsqueeze": [node("Unsqueeze", ["c"], "y", axes=[0])],
    "Softmax": [node("Softmax", ["c"], "y", axis=1)],
    "ReduceSum": [node("ReduceSum", ["c"], "y", axes=[2, 3], keepdims=0)],
    "Pad": [node("Pad", ["c"], "y", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5)],
    "Split": [node("Split", ["c"], ["y", "z"], axis=1, split=[1, 3])],
}


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
@pytest.mark.parametrize("op", sorted(OLD))
def test_an_old_opset_is_raised_with_a_note_and_computes_the_same(op: str, opset: int) -> None:
    model = with_tail(opset, OLD[op])
    result = quantized(model)
    assert f"opset raised from {opset} to 13, which Q/DQ needs" in result.plan.notes
    assert result.source.model.opset_import[0].version == 13
    assert result.source.notes == result.plan.notes
    feed = random_feed(model)
    np.testing.assert_allclose(
        run(result.source.model, feed)[0], run(model, feed)[0], rtol=1e-5, atol=1e-6
    )
    assert canonical_bytes(strip(result.model)) == canonical_bytes(result.source.model)
    np.testing.assert_allclose(run(result.model, feed)[0], run(model, feed)[0], atol=1.0)


@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze", "Softmax", "ReduceSum", "Split"])
def test_opsets_just_below_13_are_raised_too(op: str, opset: int) -> None:
    model = with_tail(opset, OLD[op])
    result = quantized(model)
    assert any(note.startswith(f"opset raised from {opset}") for note in result.plan.notes)
    feed = random_feed(model)
    np.testing.assert_allclose(
        run(result.source.model, feed)[0], run(model, feed)[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_model_of_opset_13_or_newer_is_taken_as_it_is(opset: int) -> None:
    model = convolution(opset)
    source = qdq.load(model)
    assert source.notes == ()
    assert canonical_bytes(source.model) == canonical_bytes(model)


@pytest.mark.parametrize("opset", [1, 6])
def test_opsets_below_7_are_refused_by_number(opset: int) -> None:
    model = convolution()
    model.opset_import[0].version = opset
    with pytest.raises(
        ModelError, match=f"opset {opset} is too old. Export the model with opset 7 or newer"
    ):
        qdq.load(model)


@pytest.mark.parametrize("inside", [False, True])
def test_a_scan_of_opset_8_which_newer_ones_read_otherwise_is_refused(inside: bool) -> None:
    body = helper.make_graph(
        [node("Add", ["s", "i"], "t"), node("Identity", ["t"], "o")],
        "body",
        [value("s", [2]), value("i", [2])],
        [value("t", [2]), value("o", [2])],
    )
    scan = helper.make_node("Scan", ["", "start", "x"], ["last", "y"], num_scan_inputs=1, body=body)
    if inside:
        branch = helper.make_graph([scan], "branch", [], [value("y", [1, 3, 2])])
        scan = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = build(
        [scan], {"start": [1, 2], "x": [1, 3, 2]}, {"y": [1, 3, 2]}, {"c": np.array(True)}, opset=8
    )
    with pytest.raises(
        ModelError,
        match=r"node #0 \(Scan\) has a batch dimension, which Scan lost after opset 8. Export the model with opset 9 or newer",
    ):
        qdq.load(model)


def test_halves_of_pairs_alone_are_sent_to_check_and_strip() -> None:
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q")]
    model = build(
        nodes, {"x": [1, 3]}, ["q"], {"s": np.array(0.5, np.float32), "z": np.array(0, np.int8)}
    )
    with pytest.raises(
        ModelError,
        match=r"quantize nothing in it for .*\. Run 'qdq check' to list its pairs, or 'qdq strip' to remove them",
    ):
        quantized(model)


def test_a_model_without_operators_of_onnx_needs_no_opset_of_onnx() -> None:
    normalizer = helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L2")
    graph = helper.make_graph([normalizer], "trees", [value("x", [1, 3])], [value("y", [1, 3])])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8
    )
    assert qdq.load(model).notes == ()
    assert qdq.plan(model).placements == ()
    assert qdq.check(model) == ()
    assert canonical_bytes(strip(model)) == canonical_bytes(model)


def test_raising_keeps_names_metadata_and_doc_strings() -> None:
    model = with_tail(11, OLD["Squeeze"])
    (
        model.doc_string,
        model.producer_name,
        model.producer_version,
        model.domain,
        model.model_version,
    ) = "of the model", "exporter", "1.2", "org.example", 7
    model.graph.doc_string = "of the graph"
    model.metadata_props.add(key="author", value="someone")
    model.graph.node[0].doc_string = "of the node"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'stem']")
    source = qdq.load(model)
    kept = source.model
    assert (
        kept.doc_string,
        kept.producer_name,
        kept.producer_version,
        kept.domain,
        kept.model_version,
    ) == (
        "of the model",
        "exporter",
        "1.2",
        "org.example",
        7,
    )
    assert [(p.key, p.value) for p in kept.metadata_props] == [("author", "someone")]
    assert [(p.key, p.value) for p in kept.graph.node[0].metadata_props] == [
        ("pkg.torch.onnx.name_scopes", "['', 'stem']")
    ]
    assert kept.graph.node[0].doc_string == "of the node"
    assert kept.graph.doc_string == "of the graph"
    assert [n.name for n in kept.graph.node if n.op_type != "Constant"] == [
        n.name for n in model.graph.node
    ]


@pytest.mark.parametrize("opset", [8, 13])
def test_weights_listed_as_inputs_of_an_ir_3_model_are_weights(opset: int) -> None:
    model = convolution(opset)
    model.ir_version = 3
    model.graph.input.extend(value(t.name, t.dims) for t in model.graph.initializer)
    result = quantized(model)
    assert "IR version raised from 3 to" in " ".join(result.plan.notes)
    assert {(p.edge.tensor, p.quantizer.name) for p in result.plan.placements} == {
        ("x", "int8-activation"), ("w1", "int8-weight-per-channel"), ("r", "int8-activation"), ("w2", "int8-weight-per-channel"),
    }  # fmt: skip
    feed = random_feed(model)
    assert set(feed) == {"x"}
    np.testing.assert_allclose(
        run(result.source.model, feed)[0], run(model, feed)[0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(run(result.model, feed)[0], run(model, feed)[0], atol=0.5)


def save_external(
    model: onnx.ModelProto, folder: Path, data: str = "weights.bin", **more: Any
) -> Path:
    """Write a model with its weights in a file beside it."""
    path = folder / "model.onnx"
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(copy, path, save_as_external_data=True, location=data, size_threshold=0, **more)
    assert (folder / data).stat().st_size > 0
    return path


def test_external_data_goes_along_and_strip_gives_the_input_back(tmp_path: Path) -> None:
    model = convolution()
    path = save_external(model, tmp_path)
    other, third = tmp_path / "other", tmp_path / "third"
    other.mkdir()
    third.mkdir()
    code, _, error = cli(
        "quantize", path, "-o", other / "int8.onnx", "--data", "noise", "--method", "max"
    )
    assert (code, error) == (0, "")
    assert (other / "weights.bin").read_bytes() == (tmp_path / "weights.bin").read_bytes()
    feed = random_feed(model)
    np.testing.assert_allclose(
        run(other / "int8.onnx", feed)[0],
        run(quantized(model).model, feed)[0],
        rtol=1e-5,
        atol=1e-6,
    )
    assert cli("strip", other / "int8.onnx", "-o", third / "float.onnx")[0] == 0
    assert (third / "float.onnx").read_bytes() == path.read_bytes()
    assert (third / "weights.bin").read_bytes() == (tmp_path / "weights.bin").read_bytes()
    assert cli("check", other / "int8.onnx")[0] == 0


def test_copied_external_data_may_be_read_by_whoever_may_read_the_model(tmp_path: Path) -> None:
    path = save_external(convolution(), tmp_path)
    (tmp_path / "out").mkdir()
    assert cli("quantize", path, "-o", tmp_path / "out" / "int8.onnx", "--data", "noise")[0] == 0
    modes = {
        stat.S_IMODE((tmp_path / "out" / name).stat().st_mode)
        for name in ("int8.onnx", "weights.bin")
    }
    assert modes == {stat.S_IMODE(path.stat().st_mode)}


def test_external_data_in_the_same_folder_stays_one_file(tmp_path: Path) -> None:
    path = save_external(convolution(), tmp_path)
    before = (tmp_path / "weights.bin").read_bytes()
    assert cli("quantize", path, "-o", tmp_path / "int8.onnx", "--data", "noise")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.onnx", "model.onnx", "weights.bin"]
    assert (tmp_path / "weights.bin").read_bytes() == before
    run(tmp_path / "int8.onnx", random_feed(convolution()))


def test_external_data_of_an_old_opset_is_quantized(tmp_path: Path) -> None:
    model = with_tail(11, OLD["Squeeze"])
    path = save_external(model, tmp_path)
    (tmp_path / "out").mkdir()
    code, _, error = cli(
        "quantize", path, "-o", tmp_path / "out" / "int8.onnx", "--data", "noise", "--method", "max"
    )
    assert (code, error) == (0, "")
    feed = random_feed(model)
    np.testing.assert_allclose(
        run(tmp_path / "out" / "int8.onnx", feed)[0],
        run(quantized(model).model, feed)[0],
        rtol=1e-5,
        atol=1e-6,
    )


def test_plan_scales_and_model_are_the_same_with_external_data(tmp_path: Path) -> None:
    model = convolution()
    inside, outside = quantized(model), quantized(save_external(model, tmp_path))
    assert outside.plan.placements == inside.plan.placements
    assert outside.scales.by_pair == inside.scales.by_pair


@pytest.mark.parametrize("name", ["digits_cnn", "digits_attention"])
def test_path_modelproto_and_graphsurgeon_graph_give_the_same_plan(name: str) -> None:
    path = NETWORKS / f"{name}.onnx"
    model = onnx.load(path)
    plans = [qdq.plan(form) for form in (path, str(path), model, gs.import_onnx(model))]
    for plan in plans[1:]:
        assert {(str(p.edge), p.quantizer, p.because) for p in plan.placements} == {
            (str(p.edge), p.quantizer, p.because) for p in plans[0].placements
        }
        assert plan.scale_groups == plans[0].scale_groups
    assert plans[0] == plans[1]


def test_other_things_are_refused_by_type() -> None:
    with pytest.raises(ModelError, match="A model cannot be loaded from int"):
        qdq.load(3)  # type: ignore[arg-type]


def test_operators_of_other_domains_pass_through_untouched() -> None:
    nodes = [
        node("Conv", ["x", "w1"], "a"),
        node("Gelu", ["a"], "g", domain="com.microsoft"),
        node("Conv", ["g", "w2"], "y"),
    ]
    weights = {"w1": noise(4, 3, 3, 3, seed=1), "w2": noise(2, 4, 1, 1, seed=2)}
    model = build(
        nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 2, 4, 4]}, weights, domains={"com.microsoft": 1}
    )
    result = quantized(model)
    assert paired_edges(model, result.model) == {("a", 0), ("a", 1), ("y", 0), ("y", 1)}
    assert [n.SerializeToString() for n in result.model.graph.node if n.domain] == [
        nodes[1].SerializeToString()
    ]
    feed = random_feed(model)
    np.testing.assert_allclose(run(result.model, feed)[0], run(model, feed)[0], atol=0.5)


def test_operators_of_unknown_domains_are_planned_around() -> None:
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Mystery", ["a", "x"], "m", domain="org.example"),
        node("Conv", ["m", "w2"], "y"),
    ]
    weights = {"w": noise(4, 3, 3, 3, seed=1), "w2": noise(2, 4, 1, 1, seed=2)}
    model = build(
        nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 2, 4, 4]}, weights, domains={"org.example": 1}
    )
    plan = qdq.plan(model)
    assert {(p.edge.node, p.edge.slot) for p in plan.placements} == {
        ("a_node", 0),
        ("a_node", 1),
        ("y_node", 0),
        ("y_node", 1),
    }
    with pytest.raises(ModelError, match=r"lacks the operator of node m_node .* 'y_node'\.$"):
        qdq.calibrate(model, plan, "noise")


def body(name: str, weight: str) -> onnx.GraphProto:
    """Return a body that convolves x, which comes from outside."""
    return helper.make_graph(
        [node("Conv", ["x", weight], f"{name}_y", name=f"{name}_conv")],
        name,
        [],
        [value(f"{name}_y", [1, 4, 4, 4])],
    )


def branching() -> onnx.ModelProto:
    """Return an If whose branches hold a Conv each, before a Conv of the main graph."""
    model = build(
        [
            node(
                "If",
                ["condition"],
                "i",
                then_branch=body("then", "w"),
                else_branch=body("else", "w"),
            ),
            node("Conv", ["i", "v"], "y"),
        ],
        {"x": [1, 3, 6, 6]},
        {"y": [1, 2, 4, 4]},
        {
            "w": noise(4, 3, 3, 3, seed=1),
            "v": noise(2, 4, 1, 1, seed=2),
            "condition": np.array(True),
        },
    )
    return model


@pytest.mark.parametrize("batch", ["batch", None])
def test_a_dynamic_batch_stays_dynamic(batch: str | None) -> None:
    model = convolution(batch=batch)
    result = quantized(model)
    assert result.model.graph.input[0] == model.graph.input[0]
    for size in (1, 3):
        feed = {"x": noise(size, 3, 6, 6)}
        np.testing.assert_allclose(run(result.model, feed)[0], run(model, feed)[0], atol=0.5)


def half(opset: int, constants: bool = False) -> onnx.ModelProto:
    """Return a float16 Conv, its weight an initializer or a Constant, between casts from and to float32."""
    weight = noise(4, 3, 3, 3, seed=1, dtype=np.float16)
    nodes = [
        node("Cast", ["x"], "h", to=TensorProto.FLOAT16),
        node("Conv", ["h", "w"], "c"),
        node("Cast", ["c"], "y", to=TensorProto.FLOAT),
    ]
    if constants:
        nodes.insert(0, node("Constant", [], "w", value=numpy_helper.from_array(weight)))
    return build(
        nodes, {"x": [1, 3, 6, 6]}, ["y"], None if constants else {"w": weight}, opset=opset
    )


@pytest.mark.parametrize("constants", [False, True], ids=["initializer", "constant"])
@pytest.mark.parametrize("opset", [13, 19, 21])
def test_half_precision_gets_half_precision_scales_and_opset_19(
    opset: int, constants: bool
) -> None:
    model = half(opset, constants)
    result = quantized(model)
    assert result.source.model.opset_import[0].version == max(opset, 19)
    assert bool(result.plan.notes) == (opset < 19)
    assert paired_edges(result.source.model, result.model) == {("c", 0), ("c", 1)}
    scales = [t for t in result.model.graph.initializer if t.name.endswith("_scale")]
    assert {t.data_type for t in scales} == {TensorProto.FLOAT16}
    onnx.checker.check_model(result.model, full_check=True)
    feed = random_feed(model)
    np.testing.assert_allclose(run(result.model, feed)[0], run(model, feed)[0], atol=0.5)


def test_an_all_half_precision_model_takes_half_precision_data() -> None:
    model = build(
        [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "v"], "y")],
        {"x": [1, 3, 6, 6]}, ["y"], {"w": noise(4, 3, 3, 3, dtype=np.float16), "v": noise(2, 4, 1, 1, dtype=np.float16)},
        opset=17, dtype=TensorProto.FLOAT16,
    )  # fmt: skip
    data = [{"x": noise(1, 3, 6, 6, seed=i, dtype=np.float16)} for i in range(3)]
    for method in ("max", "mse", "percentile"):
        result = qdq.quantize(model, data, method=method)
        assert len(result.plan.placements) == 4
        np.testing.assert_allclose(run(result.model, data[0])[0], run(model, data[0])[0], atol=1.0)


def test_float64_is_left_alone() -> None:
    model = build(
        [node("MatMul", ["x", "w"], "y")],
        {"x": [2, 3]},
        ["y"],
        {"w": noise(3, 3, dtype=np.float64)},
        dtype=TensorProto.DOUBLE,
    )
    assert qdq.plan(model).placements == ()
    with pytest.raises(ModelError, match="nothing to quantize: its layer is float64"):
        qdq.quantize(model, "noise")


def test_integer_products_are_left_alone() -> None:
    model = build(
        [node("MatMul", ["x", "w"], "y")],
        {"x": [2, 3]},
        ["y"],
        {"w": np.ones((3, 3), np.int32)},
        dtype=TensorProto.INT32,
    )
    assert qdq.plan(model).placements == ()


def test_what_the_exporter_wrote_survives_quantizing_and_stripping() -> None:
    model = tiny_model()
    model.doc_string, model.producer_name, model.domain, model.model_version = (
        "of the model",
        "exporter",
        "org.example",
        7,
    )
    model.metadata_props.add(key="author", value="someone")
    model.graph.doc_string = "of the graph"
    model.graph.metadata_props.add(key="graph", value="said")
    model.graph.input[0].doc_string = "of the input"
    model.graph.initializer[0].doc_string = "of a weight"
    for item in model.graph.node:
        item.doc_string = f"of {item.name}"
        item.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=f"line of {item.name}")
    model.graph.value_info.append(value("r", ["batch", 6, 6, 6]))
    after = quantized(model).model
    for field in ("doc_string", "producer_name", "domain", "model_version"):
        assert getattr(after, field) == getattr(model, field)
    assert [p for p in after.metadata_props if not p.key.startswith("qdq.")] == list(
        model.metadata_props
    )
    for field in ("doc_string", "metadata_props", "input", "output", "value_info"):
        assert getattr(after.graph, field) == getattr(model.graph, field)
    rest = {n.name: n for n in after.graph.node}
    for item in model.graph.node:
        assert rest[item.name].doc_string == item.doc_string
        assert rest[item.name].metadata_props == item.metadata_props
    assert canonical_bytes(strip(after)) == canonical_bytes(model)


def test_the_pairs_name_their_rules_and_the_model_says_what_made_it() -> None:
    after = quantized(
        tiny_model(), targets=[qdq.parse_target("rtx:sm86")], leave_float=["gemm"]
    ).model
    rules = {
        p.value
        for n in after.graph.node
        if n.op_type.endswith("Linear")
        for p in n.metadata_props
        if p.key == "qdq.rule"
    }
    assert rules == {"weighted-inputs", "weights-per-channel"}
    metadata = {p.key: p.value for p in after.metadata_props}
    assert metadata == {
        "qdq.targets": "rtx:sm86", "qdq.rules": "tensorrt", "qdq.leave-float": "gemm", "qdq.method": "max", "qdq.data": "noise (8 samples)",
        "qdq.batch": "1",
    }  # fmt: skip


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_no_plan_is_made_for_a_model_that_is_quantized_already(domain: str) -> None:
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": CONV_WEIGHT}
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q", domain=domain),
        node("DequantizeLinear", ["q", "s", "z"], "d", domain=domain),
        node("Conv", ["d", "w"], "y"),
    ]
    model = build(
        nodes,
        {"x": [1, 3, 6, 6]},
        {"y": [1, 4, 4, 4]},
        weights,
        domains={domain: 1} if domain else None,
    )
    with pytest.raises(ModelError, match="is quantized already"):
        qdq.plan(model)


def test_the_given_model_is_never_changed() -> None:
    for model in (convolution(), with_tail(11, OLD["Softmax"]), branching(), half(13)):
        before = model.SerializeToString()
        quantized(model)
        assert model.SerializeToString() == before


def test_a_vector_times_a_matrix_is_quantized() -> None:
    model = build([node("MatMul", ["x", "w"], "y")], {"x": [3]}, {"y": [4]}, {"w": noise(3, 4)})
    result = quantized(model)
    assert len(result.plan.placements) == 2
    feed = random_feed(model)
    np.testing.assert_allclose(run(result.model, feed)[0], run(model, feed)[0], atol=0.2)


def test_tensors_that_are_empty_for_some_samples_are_calibrated() -> None:
    nodes = [
        node("Relu", ["x"], "r"), node("ReduceMax", ["r"], "most", axes=[1], keepdims=0), node("Greater", ["most", "zero"], "keep"),
        node("Compress", ["r", "keep"], "kept", axis=0), node("MatMul", ["kept", "w"], "y"),
    ]  # fmt: skip
    model = build(
        nodes, {"x": [2, 3]}, {"y": [None, 4]}, {"w": noise(3, 4), "zero": np.array(0, np.float32)}
    )
    some, none = np.array([[1, 2, 3], [-1, -2, -3]], np.float32), np.full((2, 3), -1, np.float32)
    for data in ([{"x": some}, {"x": none}], [{"x": none}]):
        for method in ("max", "mse"):
            result = qdq.quantize(model, data, method=method)
            run(result.model, {"x": some})


def test_layers_with_sparse_weights_stay_in_float() -> None:
    model = build(
        [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "v"], "y")],
        {"x": [2, 3]},
        {"y": [2, 4]},
        {"v": noise(3, 4)},
    )
    stored, places = (
        helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("w_places", TensorProto.INT64, [2], [0, 4]),
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(stored, places, [3, 3]))
    result = quantized(model)
    assert paired_edges(model, result.model) == {("y", 0), ("y", 1)}
    assert canonical_bytes(strip(result.model)) == canonical_bytes(model)


def test_what_others_left_of_pairs_they_took_out_is_no_obstacle() -> None:
    model = convolution()
    after = quantized(model).model
    model.metadata_props.extend(after.metadata_props)
    model.graph.value_info.extend(
        [value("x_dequantized", [1, 3, 6, 6]), value("x_quantized", [1, 3, 6, 6], TensorProto.INT8)]
    )
    again = quantized(model, leave_float=["y_node"]).model
    assert {p.key: p.value for p in again.metadata_props}["qdq.leave-float"] == "y_node"
    assert len({p.key for p in again.metadata_props}) == len(again.metadata_props)
    stripped = strip(again)
    assert stripped.graph == model.graph
    assert not stripped.metadata_props


FORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, list[int]], dict[str, Any], int]] = {
    "weight of ConstantOfShape": (
        [node("ConstantOfShape", ["s"], "w", value=numpy_helper.from_array(np.array([0.5], np.float32))), node("Conv", ["x", "w"], "y")],
        {"x": [1, 3, 6, 6]}, {"s": np.array([4, 3, 3, 3])}, 2,
    ),
    "weight of a Constant's list": (
        [node("Constant", [], "c", value_floats=[0.1, 0.2, 0.3]), node("Unsqueeze", ["c", "axes"], "w"), node("MatMul", ["x", "w"], "y")],
        {"x": [2, 3]}, {"axes": np.array([1])}, 2,
    ),
    "empty optional input": ([node("Conv", ["x", "w", ""], "y")], {"x": [1, 3, 6, 6]}, {"w": CONV_WEIGHT}, 2),
    "matrix and vector": ([node("MatMul", ["x", "w"], "y")], {"x": [5, 2, 3]}, {"w": noise(3)}, 2),
    "batched weight": ([node("MatMul", ["x", "w"], "y")], {"x": [5, 2, 3]}, {"w": noise(5, 3, 4)}, 2),
    "weight on the left": ([node("MatMul", ["w", "x"], "y")], {"x": [3, 2]}, {"w": noise(4, 3)}, 2),
    "transA": ([node("Gemm", ["x", "w", "b"], "y", transA=1, alpha=0.5)], {"x": [3, 2]}, {"w": noise(3, 4), "b": noise(4)}, 2),
    "a tensor by itself": ([node("MatMul", ["x", "x"], "y")], {"x": [3, 3]}, {}, 2),
    "one weight along two axes": ([node("Gemm", ["x", "w"], "a", transB=1), node("MatMul", ["a", "w"], "y")], {"x": [2, 3]}, {"w": noise(3, 3)}, 4),
    "one dimension": ([node("Conv", ["x", "w"], "y")], {"x": [1, 3, 6]}, {"w": noise(4, 3, 3)}, 2),
    "three dimensions": ([node("Conv", ["x", "w"], "y")], {"x": [1, 3, 4, 4, 4]}, {"w": noise(4, 3, 3, 3, 3)}, 2),
    "scalar input": ([node("Mul", ["x", "k"], "m"), node("Conv", ["m", "w"], "y")], {"x": [1, 3, 6, 6], "k": []}, {"w": CONV_WEIGHT}, 2),
    "a layer that nothing reads": ([node("Conv", ["x", "w"], "y"), node("Conv", ["x", "w"], "unread")], {"x": [1, 3, 6, 6]}, {"w": CONV_WEIGHT}, 2),
}  # fmt: skip


@pytest.mark.parametrize("method", ["max", "mse"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_weighted_layers_of_every_form_are_quantized(form: str, method: str) -> None:
    nodes, inputs, weights, edges = FORMS[form]
    model = build(nodes, inputs, ["y"], weights)
    result = qdq.quantize(model, "noise", method=method)
    assert len(result.plan.placements) == len(paired_edges(model, result.model)) == edges
    assert result.findings == ()
    feed = random_feed(model)
    expected = run(model, feed)[0]
    np.testing.assert_allclose(
        run(result.model, feed)[0], expected, atol=0.08 * max(np.abs(expected).max(), 1.0)
    )


def test_constants_and_inputs_that_are_outputs_stay_outputs() -> None:
    model = build([node("Conv", ["x", "w"], "y")], {"x": [1, 3, 6, 6]}, ["y"], {"w": CONV_WEIGHT})
    model.graph.output.extend([value("x", [1, 3, 6, 6]), value("w", [4, 3, 3, 3])])
    result = quantized(model)
    feed = random_feed(model)
    np.testing.assert_array_equal(run(result.model, feed)[1], feed["x"])
    np.testing.assert_array_equal(run(result.model, feed)[2], CONV_WEIGHT)


@pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.BOOL, TensorProto.INT64])
def test_inputs_that_are_no_floats_are_fed_and_left_alone(dtype: int) -> None:
    model = build(
        [node("Cast", ["i"], "x", to=TensorProto.FLOAT), node("Conv", ["x", "w"], "y")],
        {"i": [1, 3, 6, 6]},
        {"y": [1, 4, 4, 4]},
        {"w": CONV_WEIGHT},
    )
    model.graph.input[0].type.tensor_type.elem_type = dtype
    assert paired_edges(model, quantized(model).model) == {("y", 0), ("y", 1)}


def test_a_model_without_weighted_layers_is_refused_by_name() -> None:
    model = build([node("Relu", ["x"], "y")], {"x": [2, 3]}, ["y"])
    with pytest.raises(ModelError, match="tested: the rules tensorrt quantize nothing in it"):
        qdq.quantize(model, "noise")


def test_constants_are_followed_through_folding() -> None:
    stored = noise(3, 3, 3, 4, seed=5)
    nodes = [
        node("Transpose", ["stored"], "turned", perm=[3, 0, 1, 2]),
        node("Cast", ["half"], "factor", to=TensorProto.FLOAT),
        node("Mul", ["turned", "factor"], "w"),
        node("Conv", ["x", "w"], "y"),
    ]
    model = build(
        nodes, {"x": [1, 3, 6, 6]}, ["y"], {"stored": stored, "half": np.array(0.5, np.float16)}
    )
    index = GraphIndex(qdq.load(model))
    np.testing.assert_array_equal(
        index.constant("w"), stored.transpose(3, 0, 1, 2) * np.float32(0.5)
    )
    result = quantized(model)
    (weight,) = (s for s in result.scales.by_pair if s.tensor == "w")
    assert weight.quantizer.axis == 0
    assert len(weight.scales) == 4


def test_nodes_in_another_order_are_put_in_order_and_nodes_in_a_circle_are_refused(
    tmp_path: Path,
) -> None:
    model = convolution()
    ordered = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(ordered))
    source = qdq.load(model)
    assert [n.op_type for n in source.model.graph.node] == ["Conv", "Relu", "Conv"]
    assert source.notes == ("nodes put in the order that ONNX asks for",)
    assert [n.op_type for n in model.graph.node] == ["Conv", "Relu", "Conv"]
    assert model.graph.node[0].output[0] == "y"
    onnx.checker.check_model(quantized(model).model)
    model.graph.node[2].input[0] = "y"
    with pytest.raises(
        ModelError, match=r"is damaged: node .* needs its own result. Export or download it again."
    ):
        qdq.load(model)
