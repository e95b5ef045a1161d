"""Models that onnx.checker rejects are refused before samples are run; plugins are no reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.errors import ModelError
from qdq.graph.onnx_checker import require_valid
from tests.support.cli_runner import refused, run, save
from tests.support.graphs import build, convolution, node, noise

Change = Callable[[onnx.ModelProto], object]

INVALID: list[tuple[Change, str]] = [
    (
        lambda m: m.graph.node[1].attribute.append(helper.make_attribute("alien", 1)),
        r"Unrecognized attribute: alien for operator Relu \(node r_node, Relu\)",
    ),
    (lambda m: m.graph.ClearField("name"), "Field 'name' of 'graph' is required to be non-empty"),
    (lambda m: setattr(m, "ir_version", 999), "ir_version 999"),
    (
        lambda m: m.graph.initializer[0].float_data.append(1.0),
        r"tensor name: w1\) should contain one and only one value field",
    ),
]


@pytest.mark.parametrize(("change", "complaint"), INVALID)
def test_an_invalid_model_is_refused_before_any_sample_is_read(
    change: Change, complaint: str
) -> None:
    model = convolution()
    change(model)

    def samples() -> object:
        raise AssertionError("a sample was read")
        yield

    with pytest.raises(ModelError, match=f"onnx.checker rejects the model: .*{complaint}"):
        qdq.quantize(model, samples)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=complaint):
        require_valid(qdq.load(model))


def test_the_commands_refuse_an_invalid_model_with_its_path(tmp_path: Path) -> None:
    path = save(convolution(), tmp_path / "model.onnx")
    plan, scales, out = (tmp_path / name for name in ("plan.yaml", "scales.json", "out"))
    assert run("plan", path, "-o", plan)[0] == 0
    assert run("calibrate", path, plan, "--data", "noise", "-o", scales)[0] == 0
    model = convolution()
    model.graph.node[1].attribute.append(helper.make_attribute("alien", 1))
    save(model, path)
    for arguments in (
        ("quantize", path, "--data", "noise"),
        ("calibrate", path, plan, "--data", "noise"),
        ("apply", path, plan, scales),
    ):
        message = refused(tmp_path, *arguments, "-o", out)
        complaint = "onnx.checker rejects the model: Unrecognized attribute: alien"
        assert message.startswith(f"qdq: {path}: {complaint}")


def test_external_data_is_checked_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = convolution()
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    require_valid(qdq.load(path))
    broken = onnx.load(path, load_external_data=False)
    broken.graph.node[1].attribute.append(helper.make_attribute("alien", 1))
    onnx.save(broken, path)
    with pytest.raises(ModelError, match="Unrecognized attribute: alien"):
        require_valid(qdq.load(path))


@pytest.mark.parametrize("dtype", [None, TensorProto.FLOAT])
@pytest.mark.parametrize("domain", ["", "TRT"])
def test_outputs_of_plugins_need_no_type_and_no_shape(
    tmp_path: Path, domain: str, dtype: int | None
) -> None:
    nodes = [node("Conv", ["x", "w"], "a"), node("Nms", ["a"], "y", domain=domain)]
    model = build(nodes, {"x": [1, 3, 6, 6]}, {"y": [1]}, {"w": noise(4, 3, 3, 3)})
    del model.graph.output[:]
    output = onnx.ValueInfoProto(name="y")
    if dtype:
        output = helper.make_tensor_value_info("y", dtype, None)
    model.graph.output.append(output)
    result = qdq.quantize(model, "noise")
    qdq.save(result.model, result.source, tmp_path / "q.onnx")
    assert onnx.load(tmp_path / "q.onnx").graph.output[0] == output


def test_a_mistake_beside_a_plugin_is_refused() -> None:
    nodes = [
        node("Conv", ["x", "w"], "a", alien=1),
        node("Nms", ["a"], "y"),
    ]
    model = build(nodes, {"x": [1, 3, 6, 6]}, {"y": [1]}, {"w": noise(4, 3, 3, 3)})
    with pytest.raises(ModelError, match="Unrecognized attribute: alien for operator Conv"):
        qdq.quantize(model, "noise")
