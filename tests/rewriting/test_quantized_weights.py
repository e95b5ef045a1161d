"""Weights stored as quantized values: what becomes of each weight, and what reads the result."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from onnx import TensorProto, numpy_helper

import qdq
from qdq.engines.rtx_compiler import build_engine
from qdq.graph.bodies import all_graphs, all_nodes
from qdq.graph.equalized_weights import read_equalizations
from qdq.graph.pairs import QdqPair, find_pairs, stored_tensors
from qdq.quantized.model import QuantizedModel
from qdq.ranges.model_ranges import read_pair_ranges
from qdq.rewriting.quantized_weights import store_weights
from qdq.target import parse_target
from tests.support.body_models import branch, branching, build_if
from tests.support.body_models import samples as body_samples
from tests.support.cli_runner import run as cli
from tests.support.cli_runner import save
from tests.support.equalized_models import make_samples, quantize_equalized
from tests.support.graphs import (
    CALIBRATION,
    DIGITS,
    build,
    convolution,
    draw_graphs,
    models,
    node,
    noise,
    random_feed,
    run,
)
from tests.support.paths import NETWORKS

SM86, SM89 = parse_target("rtx:sm86"), parse_target("rtx:sm89")
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


def quantize(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    """Return a model in INT8 with float weights, calibrated on noise."""
    recovery = qdq.Recovery(guard=0.0, methods="off")
    return qdq.quantize(model, "noise", recovery=recovery, **options).model  # type: ignore[arg-type]


def all_pairs(model: onnx.ModelProto) -> list[QdqPair]:
    """Return the pairs of a model and its bodies."""
    pairs: list[QdqPair] = []
    stored: set[str] = set()
    for graph in all_graphs(model.graph):
        stored.update(stored_tensors(graph))
        pairs += find_pairs(graph, stored)
    return pairs


def stored_weights(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of each stored tensor that a DQ reads, by the name of its result."""
    stored: dict[str, onnx.TensorProto] = {}
    for graph in all_graphs(model.graph):
        stored |= stored_tensors(graph)
    return {p.output: stored[p.tensor].data_type for p in all_pairs(model) if p.q is None}


def gemm(transposed: int) -> onnx.ModelProto:
    shape = (4, 8) if transposed else (8, 4)
    return build(
        [node("Gemm", ["x", "w", "b"], "y", transB=transposed)],
        {"x": [2, 8]}, ["y"], {"w": noise(*shape), "b": noise(4, seed=1)},
    )  # fmt: skip


@draw_graphs(25)
@given(models())
def test_a_generated_graph_computes_the_same_to_the_bit(model: onnx.ModelProto) -> None:
    try:
        quantized = quantize(model)
    except qdq.QdqError:  # nothing to quantize in this one
        return
    stored = store_weights(quantized)
    onnx.checker.check_model(stored, full_check=True)
    feed = random_feed(model)
    for expected, actual in zip(run(quantized, feed), run(stored, feed), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", DIGITS)
def test_a_stored_network_has_no_findings_and_strips_to_its_dequantized_weights(
    tmp_path: Path, name: str
) -> None:
    out, back = tmp_path / "int8.onnx", tmp_path / "float.onnx"
    path = NETWORKS / f"{name}.onnx"
    arguments = ("-o", out, "--data", CALIBRATION, "--store-weights", "quantized")
    assert cli("quantize", path, *arguments)[0] == 0
    assert out.stat().st_size < 0.6 * path.stat().st_size
    assert cli("check", out) == (0, f"{out}: no findings\n", "")
    code, text, _ = cli("strip", out, "-o", back)
    weights = len(stored_weights(onnx.load(out)))
    assert code == 0
    assert f"stored the dequantized values of {weights} of them" in text
    original, stripped = qdq.load(path).model, onnx.load(back)
    assert not all_pairs(stripped)
    assert stored_tensors(stripped.graph).keys() == stored_tensors(original.graph).keys()
    feed = random_feed(original)
    for expected, actual in zip(run(original, feed), run(stripped, feed), strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.1 * np.abs(expected).max())


def test_the_scales_read_back_are_those_of_the_pairs(tmp_path: Path) -> None:
    quantized = quantize(gemm(1))
    stored = store_weights(quantized)
    before = read_pair_ranges(QuantizedModel(quantized))
    after = read_pair_ranges(QuantizedModel(stored))
    assert before.by_tensor == after.by_tensor
    assert before.weights == after.weights
    ranges = qdq.read_given(save(stored, tmp_path / "stored.onnx"))
    again = qdq.quantize(gemm(1), None, given=ranges)
    assert again.model.graph.initializer == quantized.graph.initializer


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_keeps_the_axis_of_its_channels(transposed: int) -> None:
    stored = store_weights(quantize(gemm(transposed)))
    (pair,) = [pair for pair in all_pairs(stored) if pair.q is None]
    assert pair.axis == 1 - transposed
    assert stored_weights(stored) == {"w": TensorProto.INT8}
    assert "w" not in {tensor.name for tensor in stored.graph.initializer}


def test_a_weight_of_two_layers_is_stored_once() -> None:
    model = build(
        [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w"], "y")],
        {"x": [2, 4]}, ["y"], {"w": noise(4, 4)},
    )  # fmt: skip
    stored = store_weights(quantize(model))
    assert stored_weights(stored) == {"w": TensorProto.INT8}


def test_a_weight_that_is_read_in_float_too_keeps_its_floats_and_its_pair() -> None:
    model = build(
        [node("MatMul", ["x", "w"], "a"), node("Add", ["a", "w"], "y")],
        {"x": [4, 4]}, ["y"], {"w": noise(4, 4)},
    )  # fmt: skip
    quantized = quantize(model)
    stored = store_weights(quantized)
    assert stored == quantized


def test_a_weight_in_a_constant_node_is_stored() -> None:
    model = build([node("Constant", [], "w", value=numpy_helper.from_array(noise(4, 4))), node("MatMul", ["x", "w"], "y")], {"x": [2, 4]}, ["y"])  # fmt: skip
    quantized = quantize(model)
    stored = store_weights(quantized)
    assert stored_weights(stored) == {"w": TensorProto.INT8}
    assert "Constant" not in {n.op_type for n in stored.graph.node}
    assert qdq.check(stored) == ()
    assert qdq.validate(model, stored, data="noise").accuracy is not None


def test_the_nodes_that_compute_a_weight_are_not_needed_any_longer() -> None:
    model = build(
        [node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["x", "t"], "y")],
        {"x": [2, 4]}, ["y"], {"w": noise(3, 4)},
    )  # fmt: skip
    stored = store_weights(quantize(model))
    assert stored_weights(stored) == {"t": TensorProto.INT8}
    assert [n.op_type for n in stored.graph.node if n.op_type == "Transpose"] == []
    assert qdq.validate(model, stored, data="noise").accuracy is not None


def test_weights_that_bodies_read_are_stored_once_in_the_main_graph() -> None:
    model = build_if(branch("then", "w"), branch("else", "w"))
    quantized = qdq.quantize(model, body_samples(model)).model
    stored = store_weights(quantized)
    onnx.checker.check_model(stored, full_check=True)
    held = [t.name for t in stored.graph.initializer if t.data_type == TensorProto.INT8 and t.dims[:1] == [4] and len(t.dims) == 2]  # fmt: skip
    assert len(held) == 2
    assert len(stored_weights(stored)) == 3
    for feed in body_samples(model):
        for expected, actual in zip(run(quantized, feed), run(stored, feed), strict=True):
            np.testing.assert_array_equal(actual, expected)
    assert qdq.check(stored) == ()


def test_weights_in_bodies_are_stored() -> None:
    model = branching()
    for graph in list(all_graphs(model.graph))[1:]:
        graph.node[0].input[1] = f"{graph.node[0].output[0]}_w"
        tensor = numpy_helper.from_array(noise(4, 4, seed=9))
        constant = node("Constant", [], graph.node[0].input[1], value=tensor)
        graph.node.insert(0, constant)
    stored = store_weights(qdq.quantize(model, body_samples(model)).model)
    assert set(stored_weights(stored)) == {"then_y_w", "else_y_w", "v"}
    assert not [n for _, n in all_nodes(stored.graph) if n.op_type == "Constant"]
    assert qdq.check(stored) == ()


def test_fp8_weights_are_stored_in_fp8() -> None:
    rules = qdq.load_rules(["tensorrt-fp8"])
    quantized = quantize(gemm(0), rules=rules, targets=[SM89])
    stored = store_weights(quantized)
    assert stored_weights(stored) == {"w": TensorProto.FLOAT8E4M3FN}
    assert qdq.check(stored) == ()
    feed = random_feed(gemm(0))
    np.testing.assert_array_equal(run(stored, feed)[0], run(quantized, feed)[0])


def test_external_data_that_is_left_moves_into_the_file(tmp_path: Path) -> None:
    path, out = tmp_path / "external.onnx", tmp_path / "out" / "int8.onnx"
    out.parent.mkdir()
    onnx.save(convolution(), path, save_as_external_data=True, location="data", size_threshold=0)
    result = qdq.quantize(path, "noise", store_weights="quantized")
    qdq.save(result.model, result.source, out)
    assert [item.name for item in out.parent.iterdir()] == ["int8.onnx"]
    feed = random_feed(convolution())
    expected = run(quantize(convolution()), feed)
    np.testing.assert_array_equal(run(out, feed)[0], expected[0])


def test_the_record_of_equalized_weights_finds_them_after_stripping() -> None:
    weights = {"a": noise(8, 4) * np.float32([[64.0]] + [[1.0]] * 7), "b": noise(8, 8)}
    model = build(
        [node("Gemm", ["x", "a"], "h", transB=1), node("Relu", ["h"], "r"), node("Gemm", ["r", "b"], "y", transB=1)],
        {"x": [2, 4]}, ["y"], weights,
    )  # fmt: skip
    quantized = quantize_equalized(qdq.load(model), make_samples(model))
    assert read_equalizations(quantized)
    stripped = qdq.strip(store_weights(quantized))
    values = {t.name: numpy_helper.to_array(t) for t in stripped.graph.initializer}
    for name, weight in weights.items():
        np.testing.assert_allclose(values[name], weight, atol=np.abs(weight).max() / 30)


@needs_compiler
@pytest.mark.parametrize("name", ["digits_plain", "digits_attention"])
def test_both_forms_give_the_same_engine(name: str) -> None:
    result = qdq.quantize(NETWORKS / f"{name}.onnx", CALIBRATION, targets=[SM86])
    engines = [build_engine(model, SM86) for model in (result.model, store_weights(result.model))]
    kernels = []
    for engine in engines:
        assert not engine.failure
        kernels.append([(layer.kind, layer.bytes) for layer in engine.layers])
    assert kernels[0] == kernels[1]


def test_a_zero_point_other_than_zero_keeps_its_pair() -> None:
    quantized = quantize(gemm(1))
    for tensor in quantized.graph.initializer:
        if tensor.name == "w_zero_point":
            tensor.CopyFrom(numpy_helper.from_array(np.full(4, 3, np.int8), tensor.name))
    assert store_weights(quantized) == quantized


def test_another_form_is_refused() -> None:
    with pytest.raises(qdq.QdqError, match="store_weights: the argument is 'int8'"):
        qdq.quantize(gemm(0), "noise", store_weights="int8")
