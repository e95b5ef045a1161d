"""Accuracy of models with plugins: the outputs that can be computed, else the last tensors before."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import qdq
from qdq.errors import ModelError
from qdq.validation.accuracy import Accuracy
from tests.support.cli_runner import run, save
from tests.support.graphs import build, node, noise

WEIGHTS = {"w": noise(4, 3, 3, 3, seed=1), "w2": noise(4, 4, 1, 1, seed=2)}


def detector(*tail: onnx.NodeProto, outputs: tuple[str, ...]) -> onnx.ModelProto:
    """Return two Conv, of the results b and s, and further nodes."""
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["a", "w2"], "b"),
        node("Sigmoid", ["b"], "s"),
        *tail,
    ]
    shapes = {name: [1, 4, 4, 4] for name in outputs}
    return build(nodes, {"x": [1, 3, 6, 6]}, shapes, WEIGHTS)


def accuracy_of(model: onnx.ModelProto) -> Accuracy:
    quantized = qdq.quantize(model, "noise").model
    accuracy = qdq.validate(model, quantized, data="noise").accuracy
    assert accuracy is not None
    return accuracy


def names_of(accuracy: Accuracy) -> list[str]:
    return [output.name for output in accuracy.outputs]


def test_without_plugins_the_outputs_are_compared() -> None:
    accuracy = accuracy_of(detector(outputs=("s",)))
    assert names_of(accuracy) == ["s"]
    assert not accuracy.missing


@pytest.mark.parametrize("operator", ["Nms", "EfficientNMS_TRT", "BatchedNMS_TRT"])
@pytest.mark.parametrize("domain", ["", "TRT"])
def test_the_inputs_of_a_plugin_at_the_end_are_compared(operator: str, domain: str) -> None:
    plugin = node(operator, ["b", "s"], ["n", "y"], "nms", domain=domain)
    accuracy = accuracy_of(detector(plugin, outputs=("n", "y")))
    plain = {output.name: output for output in accuracy_of(detector(outputs=("b", "s"))).outputs}
    assert names_of(accuracy) == ["b", "s"]
    assert {output.name: output for output in accuracy.outputs} == plain
    assert accuracy.missing
    assert accuracy.missing.outputs == ("n", "y")
    assert accuracy.missing.compared == ("b", "s")
    title = f"{domain}.{operator}" if domain else operator
    assert accuracy.missing.nodes == (f"node nms ({title})",)


def test_outputs_beside_a_plugin_are_compared_as_they_are() -> None:
    tail = [node("Nms", ["b"], "n"), node("Add", ["n", "s"], "y"), node("Relu", ["a"], "r")]
    accuracy = accuracy_of(detector(*tail, outputs=("y", "r", "s")))
    assert names_of(accuracy) == ["r", "s", "b"]
    assert accuracy.missing
    assert accuracy.missing.outputs == ("y",)
    assert accuracy.missing.compared == ("b",)


def test_a_tensor_that_no_output_needs_is_not_compared() -> None:
    accuracy = accuracy_of(detector(node("Nms", ["b"], "unread"), outputs=("s",)))
    assert names_of(accuracy) == ["s"]
    assert not accuracy.missing


def test_a_pair_before_the_plugin_counts() -> None:
    model = detector(node("Plug", ["b"], "y"), outputs=("y",))
    quantized = qdq.quantize(model, "noise").model
    pair = [
        node("QuantizeLinear", ["b", "coarse", "zero"], "b_q"),
        node("DequantizeLinear", ["b_q", "coarse", "zero"], "b_dq"),
    ]
    quantized.graph.node[-1].input[0] = "b_dq"
    plugin = quantized.graph.node.pop()
    quantized.graph.node.extend([*pair, plugin])
    for name, array in (("coarse", noise(1)[0] * 0 + 100), ("zero", noise(1).astype("int8")[0])):
        quantized.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    accuracy = qdq.validate(model, quantized, data="noise").accuracy
    assert accuracy is not None
    assert accuracy.outputs[0].snr_db < 10


def test_a_model_that_begins_with_a_plugin_has_no_accuracy() -> None:
    nodes = [node("Decode", ["x"], "d", "decode"), node("Conv", ["d", "w"], "y")]
    model = build(nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 4, 4, 4]}, WEIGHTS)
    ranges = qdq.given_by_hand({"d": 1.0})
    quantized = qdq.quantize(model, None, given=ranges).model
    with pytest.raises(ModelError, match=r"every output depends on node decode \(Decode\), whose"):
        qdq.validate(model, quantized, data="noise")
    report = qdq.validate(model, quantized, targets=[qdq.parse_target("trt:sm80")])
    assert len(report.engines) == 1


def test_the_report_says_what_is_compared_instead(tmp_path: Path) -> None:
    model = detector(node("Nms", ["b"], "y", "nms"), outputs=("y",))
    path = save(model, tmp_path / "model.onnx")
    quantized = tmp_path / "q.onnx"
    assert run("quantize", path, "-o", quantized, "--data", "noise")[0] == 0
    code, out, _ = run("validate", path, quantized, "--data", "noise", "--min-snr", "20")
    assert code == 0
    assert "y: not compared, ONNX Runtime lacks the operator of node nms (Nms)" in out
    assert "b: compared instead, the last tensors before it" in out
    code, out, _ = run("validate", path, quantized, "--data", "noise", "--min-snr", "999")
    assert code == 1
    assert "output 'b': snr_db is" in out


def test_the_compiler_refuses_a_plugin_by_its_name() -> None:
    model = detector(node("Nms", ["b"], "y", "nms"), outputs=("y",))
    quantized = qdq.quantize(model, "noise").model
    (engine,) = qdq.validate(model, quantized, targets=[qdq.parse_target("rtx:sm86")]).engines
    assert engine.failure == "it has no plugin for nms (Nms)"
