"""Bias correction: the means of layers come back, and stripping returns the float biases."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from onnx import TensorProto, helper, numpy_helper

import qdq
from qdq.errors import ModelError
from qdq.graph.index import GraphIndex
from qdq.graph.metadata import BIASES_KEY
from qdq.graph.source import canonical_bytes
from qdq.pipeline.quantize_model import Quantized
from qdq.quantized.corrected_biases import checksum_values
from qdq.recovery.bias_correction import (
    BiasCorrections,
    apply_bias_corrections,
    find_bias_corrections,
    read_bias_corrections,
)
from qdq.rewriting.inserter import is_restored_by_stripping
from tests.support.body_models import branching
from tests.support.graphs import (
    Array,
    build,
    draw_graphs,
    initializer,
    models,
    node,
    noise,
    random_feed,
    run,
)

SAMPLES = 4


def feeds(model: onnx.ModelProto, count: int = SAMPLES) -> list[dict[str, Array]]:
    return [random_feed(model, seed) for seed in range(count)]


def find(quantized: Quantized, samples: list[dict[str, Array]]) -> BiasCorrections:
    return find_bias_corrections(
        GraphIndex(quantized.source), quantized.plan, quantized.scales, samples, shrinkage=0.0
    )


def quantize(model: onnx.ModelProto) -> tuple[Quantized, BiasCorrections]:
    """Return a model quantized with its samples, and the corrections from them."""
    samples = feeds(model)
    quantized = qdq.quantize(model, samples, method="max")
    return quantized, find(quantized, samples)


def corrected(model: onnx.ModelProto) -> onnx.ModelProto:
    quantized, corrections = quantize(model)
    return apply_bias_corrections(quantized.model, corrections)


def layer(op: str = "Conv", bias: Array | None = None, **attributes: object) -> onnx.ModelProto:
    """Return one layer whose weight the tests round coarsely."""
    weights = {"w": noise(4, 3, 1, 1, seed=1)}
    if bias is not None:
        weights["b"] = bias
    inputs = ["x", "w"] if bias is None else ["x", "w", "b"]
    return build([node(op, inputs, "y", **attributes)], {"x": [2, 3, 5, 5]}, ["y"], weights)


def by_form() -> dict[str, onnx.ModelProto]:
    """Return a model for each place that a bias may be in."""
    matrix, row = noise(6, 5, seed=1), noise(5, seed=2)
    constant = helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(row))
    rows = {"x": [4, 6]}
    gemm = node("Gemm", ["x", "w", "b"], "y")
    return {
        "conv": layer(bias=noise(4)),
        "conv_without": layer(),
        "conv_transpose": build(
            [node("ConvTranspose", ["x", "w"], "y")],
            {"x": [1, 3, 5, 5]}, ["y"], {"w": noise(3, 4, 1, 1)},
        ),
        "conv_add": build(
            [node("Conv", ["x", "w"], "c"), node("Add", ["b", "c"], "y")],
            {"x": [2, 3, 5, 5]}, ["y"], {"w": noise(4, 3, 1, 1), "b": noise(1, 4, 1, 1)},
        ),
        "conv_norm": build(
            [node("Conv", ["x", "w"], "c"), node("BatchNormalization", ["c", "s", "b", "m", "v"], "y")],
            {"x": [2, 3, 5, 5]}, ["y"],
            {"w": noise(4, 3, 1, 1), "b": noise(4), "m": noise(4), "s": abs(noise(4)) + 1, "v": abs(noise(4)) + 1},
        ),
        "gemm": build([gemm], rows, ["y"], {"w": matrix, "b": row}),
        "gemm_without": build([node("Gemm", ["x", "w"], "y", beta=0.5)], rows, ["y"], {"w": matrix}),
        "gemm_beta": build(
            [node("Gemm", ["x", "w", "b"], "y", beta=0.5)], rows, ["y"], {"w": matrix, "b": row}
        ),
        "gemm_scalar": build([gemm], rows, ["y"], {"w": matrix, "b": np.float32([2.0])}),
        "constant": build([constant, gemm], rows, ["y"], {"w": matrix}),
        "matmul_add": build(
            [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "y")],
            {"x": [2, 4, 6]}, ["y"], {"w": matrix, "b": row},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("form", list(by_form()))
def test_the_mean_of_a_layer_comes_back_in_every_form_of_its_bias(form: str) -> None:
    model = by_form()[form]
    quantized, corrections = quantize(model)
    after = apply_bias_corrections(quantized.model, corrections)
    errors = [_mean_errors(model, variant) for variant in (quantized.model, after)]

    assert len(corrections.layers) == 1
    assert errors[0] > 1e-4
    assert errors[1] < errors[0] * 1e-2
    assert canonical_bytes(qdq.strip(after)) == canonical_bytes(model)
    onnx.checker.check_model(after, full_check=True)


def _mean_errors(model: onnx.ModelProto, variant: onnx.ModelProto) -> float:
    """Return the largest channel mean of the error over the samples."""
    channel_axis = 1 if len(run(model, random_feed(model))[0].shape) > 3 else -1
    errors = [run(model, feed)[0] - run(variant, feed)[0] for feed in feeds(model)]
    stacked = np.moveaxis(np.stack(errors), channel_axis if channel_axis < 0 else 2, 0)
    return float(abs(stacked.reshape(len(stacked), -1).mean(1)).max())


@draw_graphs(12)
@given(models(most=6))
def test_stripping_a_corrected_model_returns_the_float_model_byte_for_byte(
    model: onnx.ModelProto,
) -> None:
    if not qdq.plan(model).placements:
        return
    quantized, corrections = quantize(model)
    before = canonical_bytes(quantized.model)
    after = apply_bias_corrections(quantized.model, corrections)

    assert canonical_bytes(qdq.strip(after)) == canonical_bytes(model)
    assert is_restored_by_stripping(after, model)
    assert canonical_bytes(quantized.model) == before
    onnx.checker.check_model(after, full_check=True)
    assert qdq.check(after) == ()


def test_the_mean_of_several_layers_moves_back() -> None:
    model = _chain()
    quantized, corrections = quantize(model)
    after = apply_bias_corrections(quantized.model, corrections)
    before_error = _mean_errors(model, quantized.model)

    assert len(corrections.layers) == 6
    assert _mean_errors(model, after) < before_error * 0.6


def _chain() -> onnx.ModelProto:
    """Return six convolutions whose errors of the mean add up."""
    nodes, weights, read = [], {}, "x"
    for i in range(6):
        weights[f"w{i}"] = noise(8, 8, 1, 1, seed=i) / 8 + 0.25
        nodes.append(node("Conv", [read, f"w{i}"], f"c{i}"))
        nodes.append(node("Relu", [f"c{i}"], f"r{i}"))
        read = f"r{i}"
    nodes.pop()
    return build(nodes, {"x": [1, 8, 6, 6]}, ["c5"], weights)


def test_a_shared_bias_stays_for_its_other_reader() -> None:
    model = build(
        [node("Conv", ["x", "w", "b"], "a"), node("Conv", ["a", "v", "b"], "y")],
        {"x": [1, 4, 5, 5]}, ["y"],
        {"w": noise(4, 4, 1, 1), "v": noise(4, 4, 1, 1, seed=1), "b": noise(4)},
    )  # fmt: skip
    quantized, corrections = quantize(model)
    after = apply_bias_corrections(
        quantized.model, msgspec.structs.replace(corrections, layers=corrections.layers[:1])
    )
    first, second = (n.input[2] for n in after.graph.node if n.op_type == "Conv")

    assert (first, second) == ("b_corrected_bias", "b")
    assert (initializer(after, "b") == initializer(model, "b")).all()
    assert (initializer(after, first) != initializer(model, "b")).any()
    assert canonical_bytes(qdq.strip(after)) == canonical_bytes(model)


def test_a_bias_that_is_a_result_too_stays() -> None:
    model = layer(bias=noise(4))
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [4]))
    after = corrected(model)

    assert (initializer(after, "b") == initializer(model, "b")).all()
    assert canonical_bytes(qdq.strip(after)) == canonical_bytes(model)


def test_layers_without_a_constant_bias_of_their_own_are_left_out() -> None:
    lone = build([node("MatMul", ["x", "w"], "y")], {"x": [4, 6]}, ["y"], {"w": noise(6, 5)})
    computed = build(
        [node("Gemm", ["x", "w", "c"], "y")], {"x": [4, 6], "c": [4, 5]}, ["y"], {"w": noise(6, 5)}
    )

    assert quantize(lone)[1].layers == ()
    assert quantize(computed)[1].layers == ()


def test_layers_in_bodies_are_left_out() -> None:
    model = branching()
    samples = [feed | {"c": np.array(True)} for feed in feeds(model)]
    quantized = qdq.quantize(model, samples, method="max")
    after = apply_bias_corrections(quantized.model, find(quantized, samples))

    assert canonical_bytes(after) == canonical_bytes(quantized.model)


def test_a_half_precision_bias_stays_half_precision() -> None:
    model = build(
        [node("Conv", ["x", "w"], "y")], {"x": [2, 3, 5, 5]}, ["y"],
        {"w": noise(4, 3, 1, 1, dtype=np.float16)}, dtype=TensorProto.FLOAT16, opset=19, ir=9,
    )  # fmt: skip
    after = corrected(model)
    conv = next(n for n in after.graph.node if n.op_type == "Conv")

    assert initializer(after, conv.input[2]).dtype == np.float16
    assert canonical_bytes(qdq.strip(after)) == canonical_bytes(model)


def test_a_corrected_model_is_not_corrected_again() -> None:
    model = layer(bias=noise(4))
    quantized, corrections = quantize(model)
    after = apply_bias_corrections(quantized.model, corrections)

    with pytest.raises(ModelError, match=r"^tested: its biases are corrected already\. Strip"):
        apply_bias_corrections(after, corrections)


def test_corrections_of_another_model_are_refused() -> None:
    _, corrections = quantize(layer(bias=noise(4)))
    other = build(
        [node("Conv", ["x", "w"], "z")], {"x": [1, 3, 5, 5]}, ["z"], {"w": noise(4, 3, 1, 1)}
    )

    with pytest.raises(ModelError, match=r"^tested: it has no layer 'y_node' to correct\. Pass"):
        apply_bias_corrections(other, corrections)


def test_repairing_a_corrected_model_removes_its_corrections() -> None:
    model = layer(bias=noise(4))
    quantized, corrections = quantize(model)
    after = apply_bias_corrections(quantized.model, corrections)
    repaired = qdq.quantize(after, None)

    assert canonical_bytes(qdq.strip(repaired.model)) == canonical_bytes(model)
    assert (initializer(repaired.model, "b") == initializer(model, "b")).all()


@pytest.mark.parametrize("existing", ["keep", "repair", "replace"])
def test_every_mode_reads_a_corrected_model(existing: str) -> None:
    after = corrected(_chain())
    result = qdq.quantize(after, feeds(after), existing=existing)

    assert canonical_bytes(qdq.strip(result.model)) == canonical_bytes(_chain())


@pytest.mark.parametrize("form", list(by_form()))
def test_the_corrections_of_a_model_are_read_back(form: str) -> None:
    quantized, corrections = quantize(by_form()[form])
    after = apply_bias_corrections(quantized.model, corrections)
    index = GraphIndex(quantized.source)
    again = read_bias_corrections(after, index, quantized.plan)

    assert canonical_bytes(apply_bias_corrections(quantized.model, again)) == canonical_bytes(after)
    assert read_bias_corrections(quantized.model, index, quantized.plan).layers == ()


def test_a_correction_is_no_difference_of_pairs() -> None:
    model = _chain()
    quantized, corrections = quantize(model)
    after = apply_bias_corrections(quantized.model, corrections)
    difference = qdq.diff(quantized.model, after)
    ((key, old, new),) = difference.metadata

    assert not difference.pairs + difference.weights + difference.nodes_added
    assert (key, old) == (BIASES_KEY, "")
    assert new.startswith("6 corrected biases (")


DAMAGE = {
    "no json": ("{", "cannot be read: "),
    "another form": ('[{"type": "scaled"}]', "cannot be read: "),
    "unknown tensor": (
        '[{"type": "changed", "tensor": "q", "original": "", "checksum": 1}]',
        "does not fit: the bias 'q' is not in the graph",
    ),
    "other values": (
        '[{"type": "changed", "tensor": "b", "original": "", "checksum": 1}]',
        "does not fit: the bias 'b' has changed since its correction",
    ),
    "no reader": (
        '[{"type": "added", "tensor": "b", "node": "y", "slot": 1, "original": null, "checksum": CHECKSUM}]',
        "does not fit: the bias 'b' is not read by the node of 'y'",
    ),
    "no node": (
        '[{"type": "added", "tensor": "b", "node": "z", "slot": 2, "original": null, "checksum": CHECKSUM}]',
        "does not fit: the bias 'b' is not read by the node of 'z'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "fact"), list(DAMAGE.values()), ids=list(DAMAGE))
def test_damaged_metadata_gets_one_line(value: str, fact: str) -> None:
    after = corrected(layer(bias=noise(4)))
    (entry,) = (e for e in after.metadata_props if e.key == BIASES_KEY)
    checksum = str(checksum_values(initializer(after, "b")))
    entry.value = value.replace("CHECKSUM", checksum)

    for read in (qdq.strip, qdq.check):
        with pytest.raises(ModelError) as raised:
            read(after)
        message = str(raised.value)
        assert message.startswith(f"tested: its metadata '{BIASES_KEY}' {fact}")
        assert message.endswith("Quantize the float model again.")
        assert "\n" not in message


def test_a_damaged_original_gets_one_line() -> None:
    after = corrected(layer(bias=noise(4)))
    (entry,) = (e for e in after.metadata_props if e.key == BIASES_KEY)
    entry.value = entry.value.replace('"original":"', '"original":"AAAA')

    with pytest.raises(ModelError, match="the bias 'b' is damaged"):
        qdq.strip(after)


def test_a_bias_in_another_file_stays_there(tmp_path: Path) -> None:
    model = layer(bias=noise(4))
    path = tmp_path / "model.onnx"
    external = layer(bias=noise(4))
    onnx.save(external, path, save_as_external_data=True, location="w.data", size_threshold=0)
    samples = feeds(model)
    quantized = qdq.quantize(path, samples, method="max")
    corrections = find(quantized, samples)
    after = apply_bias_corrections(quantized.model, corrections, tmp_path)
    in_memory, _ = quantize(model)
    expected = apply_bias_corrections(in_memory.model, corrections)
    feed = samples[0]
    output = tmp_path / "corrected.onnx"
    qdq.save(after, quantized.source, output)
    restored = tmp_path / "restored.onnx"
    qdq.save(qdq.strip(output), qdq.load(output), restored)

    assert np.array_equal(run(output, feed)[0], run(expected, feed)[0])
    assert restored.read_bytes() == path.read_bytes()


def test_a_bias_that_would_overflow_stays_as_it_is() -> None:
    model = build(
        [node("Conv", ["x", "w"], "y")], {"x": [2, 3, 5, 5]}, ["y"],
        {"w": noise(4, 3, 1, 1, dtype=np.float16)}, dtype=TensorProto.FLOAT16, opset=19, ir=9,
    )  # fmt: skip
    quantized, corrections = quantize(model)
    (correction,) = corrections.layers
    huge = msgspec.structs.replace(correction, addend=(1e5, 0.0, 0.0, 0.0))
    after = apply_bias_corrections(
        quantized.model, msgspec.structs.replace(corrections, layers=(huge,))
    )

    assert canonical_bytes(after) == canonical_bytes(quantized.model)
