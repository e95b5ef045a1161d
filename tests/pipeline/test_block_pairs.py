"""INT4 weights in blocks that a model has: they stay to the bit, and sensitivity switches them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

import qdq
from qdq.graph.loader import load
from qdq.rules.shipped import default_rule_sets
from qdq.target import parse_target
from tests.support.cli_runner import refused, save
from tests.support.cli_runner import run as cli
from tests.support.graphs import Array, build, node, noise, random_feed, run
from tests.support.peers import feeds, network, peer

SM86 = parse_target("rtx:sm86")
PEER = "modelopt_language_int4"


def stored_product(
    block: int, *, inputs: int = 256, outputs: int = 8, code: int = TensorProto.INT4, zero: int = 0
) -> ModelProto:
    """Return a MatMul with a weight stored in blocks, as other tools write it."""
    model = build(
        [
            node("DequantizeLinear", ["w_q", "w_s", "w_z"], "w", "dq", axis=0, block_size=block),
            node("MatMul", ["x", "w"], "y", "product"),
        ],
        {"x": [4, inputs]},
        {"y": [4, outputs]},
        {"w_s": np.abs(noise(inputs // block, outputs)) + np.float32(0.01)},
    )
    levels = np.clip(np.rint(4 * noise(inputs, outputs)), -8, 7).astype(int)
    if code == TensorProto.UINT4:
        levels += 8
    blocks = (inputs // block, outputs)
    zeros = np.full(blocks, zero)
    for name, values in (("w_q", levels), ("w_z", zeros)):
        tensor = helper.make_tensor(name, code, values.shape, values.reshape(-1).tolist())
        model.graph.initializer.append(tensor)
    model.opset_import[0].version = 21
    model.ir_version = 10
    return model


def read_pairs(model: ModelProto) -> dict[str, tuple[bytes, bytes]]:
    """Return the integers and the scales of each stored weight, by the layer that reads it."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = {name: item.name for item in model.graph.node for name in item.input}
    pairs: dict[str, tuple[bytes, bytes]] = {}
    for item in model.graph.node:
        if item.op_type == "DequantizeLinear" and item.input[0] in tensors:
            values = (numpy_helper.to_array(tensors[name]) for name in item.input[:2])
            integers, scales = (array.tobytes() for array in values)
            pairs[readers[item.output[0]]] = (integers, scales)
    return pairs


def requantize(model: ModelProto, existing: str, **options: object) -> qdq.Quantized:
    """Return a model as `quantize` makes it of its pairs, for SM 8.6."""
    data = options.pop("data", None)
    return qdq.quantize(model, data, existing=existing, targets=[SM86], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rules", [None, "tensorrt-int4"])
@pytest.mark.parametrize("existing", ["keep", "repair"])
def test_a_peers_integers_and_scales_stay_to_the_bit(existing: str, rules: str | None) -> None:
    original = peer(PEER)
    result = requantize(original, existing, rules=rules, store_weights="quantized")
    assert read_pairs(result.model) == read_pairs(original)
    assert len(read_pairs(original)) == 6
    assert result.findings == ()
    assert result.existing is not None
    assert result.existing.weights == ()
    floats = requantize(original, existing, rules=rules).model
    (feed, *_) = feeds(network("language"))
    np.testing.assert_array_equal(run(floats, feed)[0], run(original, feed)[0])


def test_a_peers_channels_stay_but_for_the_sign_of_their_scales() -> None:
    original = peer("nncf_language_weights")
    data = [dict(feed) for feed in feeds(network("language"))]
    result = requantize(original, "keep", data=data, store_weights="quantized")
    before, after = read_pairs(original), read_pairs(result.model)
    assert before.keys() == after.keys()
    for reader, (integers, scales) in before.items():
        values = np.frombuffer(integers, np.int8).astype(int)
        signs = np.sign(np.frombuffer(scales, np.float32)).astype(int)
        rows = values.reshape(len(signs), -1).T if reader == "embedding" else None
        rows = values.reshape(-1, len(signs)) if rows is None else rows
        # -128 times -1 is no INT8, and TensorRT takes no scale below 0.
        flipped = np.minimum(rows * signs, 127)
        flipped = flipped.T if reader == "embedding" else flipped
        assert after[reader][0] == flipped.astype(np.int8).tobytes()
        assert after[reader][1] == np.abs(np.frombuffer(scales, np.float32)).tobytes()


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_the_size_of_the_blocks_stays_whatever_the_rules_use(block: int) -> None:
    original = stored_product(block)
    assert qdq.check(original, rules="tensorrt-int4", targets=[SM86]) == ()
    for rules in ("tensorrt-int4", "tensorrt-int4-block-64"):
        result = requantize(original, "repair", rules=rules, store_weights="quantized")
        (placement,) = result.plan.placements
        assert placement.quantizer.block_size == block
        assert read_pairs(result.model) == read_pairs(original)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-8, 7), min_size=64, max_size=64),
    st.lists(st.floats(2**-60, 2**60, width=32), min_size=4, max_size=4),
)
def test_any_integers_and_scales_come_back(levels: list[int], scales: list[float]) -> None:
    original = stored_product(16, inputs=32, outputs=2)
    integers = helper.make_tensor("w_q", TensorProto.INT4, (32, 2), levels)
    stored = numpy_helper.from_array(np.array(scales, np.float32).reshape(2, 2), "w_s")
    for tensor in original.graph.initializer:
        if tensor.name in ("w_q", "w_s"):
            tensor.CopyFrom(integers if tensor.name == "w_q" else stored)
    result = requantize(original, "repair", store_weights="quantized")
    assert read_pairs(result.model) == read_pairs(original)


def test_the_default_rules_are_those_of_the_blocks() -> None:
    small, large = stored_product(64), stored_product(128)
    assert default_rule_sets(load(small)) == ("tensorrt-int4-block-64",)
    assert default_rule_sets(load(large)) == ("tensorrt-int4",)


@pytest.mark.parametrize(
    ("block", "code", "zero"),
    [(8, TensorProto.INT4, 0), (64, TensorProto.INT4, 1), (64, TensorProto.UINT4, 8)],
)
@pytest.mark.parametrize("existing", ["keep", "repair"])
def test_other_blocks_are_refused_in_one_line(
    tmp_path: Path, existing: str, block: int, code: int, zero: int
) -> None:
    model = save(stored_product(block, code=code, zero=zero), tmp_path / "model.onnx")
    output = tmp_path / "out.onnx"
    arguments = [model, "-o", output, "--existing", existing, "--rules", "tensorrt-int4"]
    error = refused(tmp_path, "quantize", *arguments)
    assert "w -> product[1]: the scales are per block, and the pair is not in INT4" in error


def test_a_block_without_a_scale_gets_that_of_its_values() -> None:
    original = stored_product(64)
    (scales,) = (tensor for tensor in original.graph.initializer if tensor.name == "w_s")
    values = numpy_helper.to_array(scales).copy()
    values[1, 2] = 0.0
    scales.CopyFrom(numpy_helper.from_array(values, "w_s"))
    result = requantize(original, "repair")
    (weight,) = result.existing.weights if result.existing else ()
    assert weight.reason.startswith("had no scale above 0 in 1 of 32 blocks, first in 10")
    (pair,) = result.scales.by_pair
    expected = values.reshape(-1)
    expected[10] = np.float32(1 / 7)
    np.testing.assert_array_equal(np.array(pair.scales, np.float32), expected)


def test_rules_for_int8_take_the_weight_with_new_scales_and_say_so() -> None:
    original = peer(PEER)
    data = [dict(feed) for feed in feeds(network("language"))]
    result = requantize(original, "repair", data=data, rules="tensorrt")
    assert result.existing is not None
    reasons = {weight.reason for weight in result.existing.weights}
    assert reasons == {"had scales per block of 16"}
    kept = requantize(original, "keep", data=data, rules="tensorrt", store_weights="quantized")
    assert read_pairs(kept.model) == read_pairs(original)
    placed = {placement.edge.node for placement in kept.plan.placements if placement.edge.slot == 0}
    assert placed.isdisjoint(read_pairs(original))


def test_repair_leaves_a_single_block_and_an_old_target_in_float(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    for block, target, rule in (
        (128, "rtx:sm86", "no-partial-blocks"),
        (64, "rtx:sm75", "no-int4-hardware"),
    ):
        model = save(stored_product(block, inputs=128), tmp_path / "model.onnx")
        arguments = [model, "-o", output, "--rules", "tensorrt-int4", "--target", target]
        assert rule in refused(tmp_path, "quantize", *arguments)


def test_a_fix_keeps_the_blocks(tmp_path: Path) -> None:
    path = save(peer(PEER), tmp_path / "model.onnx")
    assert cli("check", "--fix", path, "--target", "rtx:sm86")[0] == 0
    (feed, *_) = feeds(network("language"))
    fixed = onnx.load(path)
    np.testing.assert_array_equal(run(fixed, feed)[0], run(peer(PEER), feed)[0])


def test_stripped_ranges_give_the_same_blocks_again(tmp_path: Path) -> None:
    original = stored_product(64)
    model = save(original, tmp_path / "model.onnx")
    ranges, bare = tmp_path / "ranges.yaml", tmp_path / "float.onnx"
    assert cli("strip", model, "-o", bare, "--ranges", ranges)[0] == 0
    assert "block_size: 64" in ranges.read_text()
    rules = ["--rules", "tensorrt-int4-block-64", "--target", "rtx:sm86"]
    output = tmp_path / "again.onnx"
    options = ["--ranges", ranges, "--store-weights", "quantized", *rules]
    assert cli("quantize", bare, "-o", output, *options)[0] == 0
    assert read_pairs(onnx.load(output)) == read_pairs(original)


def test_ranges_of_blocks_need_an_axis_and_a_number(tmp_path: Path) -> None:
    model = save(stored_product(64), tmp_path / "model.onnx")
    ranges = tmp_path / "ranges.yaml"
    for content in ("{block_size: 64, amax: [1, 2]}", "{axis: 0, block_size: none, amax: [1]}"):
        ranges.write_text(f"w: {content}\n")
        arguments = [model, "-o", tmp_path / "out.onnx", "--ranges", ranges]
        assert "is not a number from 1 on beside an axis" in refused(
            tmp_path, "quantize", *arguments
        )


def products() -> ModelProto:
    """Return two products of 256 values."""
    return build(
        [
            node("MatMul", ["x", "a"], "h", "first"),
            node("Relu", ["h"], "r"),
            node("MatMul", ["r", "b"], "y", "second"),
        ],
        {"x": [4, 256]},
        {"y": [4, 8]},
        {"a": noise(256, 256), "b": noise(256, 8)},
    )


@pytest.mark.parametrize("store", ["float", "quantized"])
def test_sensitivity_switches_the_pairs_of_an_int4_model(store: str) -> None:
    model = products()
    data = [random_feed(model)]
    result = qdq.quantize(model, None, rules="tensorrt-int4", targets=[SM86], store_weights=store)
    planned = qdq.measure_sensitivity(model, data, rules="tensorrt-int4", targets=[SM86])
    measured = qdq.measure_sensitivity(model, data, quantized=result.model)
    assert [group.name for group in measured.groups] == [group.name for group in planned.groups]
    assert measured.int8_snr_db == planned.int8_snr_db
    assert measured.notes == ()
    expected, actual = run(model, data[0])[0], run(result.model, data[0])[0]
    assert measured.output_snr_db == pytest.approx(find_snr(expected, actual), abs=0.02)


def find_snr(expected: Array, actual: Array) -> float:
    """Return the signal-to-noise ratio in dB."""
    noise_power = np.square(actual - expected).sum()
    return float(10 * np.log10(np.square(expected).sum() / noise_power))
