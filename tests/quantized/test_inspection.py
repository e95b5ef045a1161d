"""`qdq inspect`: what is in a model, float or quantized."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qdq
from qdq.quantized.inspection import inspect
from qdq.reports.inspection_sections import format_bytes
from tests.support.cli_runner import refused, run, samples, save, tiny_model
from tests.support.defects import good
from tests.support.paths import NETWORKS, PEERS


def test_a_float_model_has_its_interface_operators_and_bytes(tmp_path: Path) -> None:
    path = save(tiny_model(), tmp_path / "tiny.onnx")
    inspection = qdq.inspect(path)

    assert [(value.name, value.type, value.shape) for value in inspection.inputs] == [
        ("x", "float", ("batch", 4, 8, 8))
    ]
    assert [(value.name, value.shape) for value in inspection.outputs] == [("y", ("batch", 5))]
    assert inspection.operators == {"Conv": 1, "Relu": 1, "Flatten": 1, "Gemm": 1}
    assert (inspection.opsets, inspection.ir_version) == ({"ai.onnx": 17}, 8)
    weights = onnx.load(path).graph.initializer
    size = sum(numpy_helper.to_array(tensor).nbytes for tensor in weights)
    assert [(item.type, item.tensors, item.bytes) for item in inspection.stored] == [
        ("float", 4, size)
    ]
    assert inspection.file_bytes == path.stat().st_size
    assert (inspection.precisions, inspection.pairs, inspection.recorded) == ({"FP32": 2}, {}, {})


def test_a_quantized_model_has_precisions_pairs_and_what_qdq_recorded(tmp_path: Path) -> None:
    model, output = save(tiny_model(), tmp_path / "tiny.onnx"), tmp_path / "tiny.int8.onnx"
    data = samples(tmp_path / "d")
    words = ("--data", data, "--target", "trt:sm80", "--guard", "off")
    assert run("quantize", model, "-o", output, *words)[0] in (0, 1)

    inspection = inspect(output)
    assert sum(inspection.pairs.values()) == len(inspection.layers) * 2
    assert inspection.precisions == {"INT8": 2}
    assert [layer.node for layer in inspection.layers] == ["conv", "gemm"]
    assert inspection.layers[0].data == "int8"
    assert inspection.layers[0].weight == "int8 along axis 0"
    assert inspection.layers[0].weight_shape == (6, 4, 3, 3)
    assert inspection.layers[0].rules
    assert inspection.recorded["qdq.targets"] == "trt:sm80"
    assert inspection.recorded["qdq.rules"] == "tensorrt"
    assert {"qdq.method", "qdq.data"} <= set(inspection.recorded)


def test_a_layer_with_a_pair_on_one_operand_alone_is_float() -> None:
    model = good()
    first = next(node for node in model.graph.node if node.name == "first")
    first.input[1] = "w"
    layer = inspect(model).layers[0]
    assert (layer.precision, layer.data, layer.weight) == ("FP32", "int8", "")


@pytest.mark.parametrize(
    ("name", "precisions"),
    [
        ("modelopt_language_fp8", {"FP8": 6, "FP32": 2}),
        ("modelopt_language_int4", {"INT4": 6, "FP32": 2}),
        ("modelopt_cnn_fp16", {"INT8": 12, "FP16": 1}),
        ("torch_clip", {"UINT8 x INT8": 4, "FP32": 1}),
        ("nncf_language_weights", {"FP32": 8}),
    ],
)
def test_models_of_other_tools_have_the_precision_of_each_layer(
    name: str, precisions: dict[str, int]
) -> None:
    assert inspect(PEERS / f"{name}.onnx").precisions == precisions


def test_external_data_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (file,) = inspect(path).external_data
    assert (file.location, file.bytes) == ("w.bin", (tmp_path / "w.bin").stat().st_size)
    assert "of external data in w.bin" in run("inspect", path)[1]


def test_values_of_four_bits_take_half_a_byte_and_texts_their_length() -> None:
    four_bits = helper.make_tensor("i", TensorProto.INT4, [5], [1, 2, 3, 4, 5])
    text = helper.make_tensor("t", TensorProto.STRING, [2], [b"ab", b"c"])
    half = numpy_helper.from_array(np.zeros(3, np.float16), "h")
    graph = helper.make_graph([], "g", [], [], [four_bits, text, half])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    sizes = {item.type: item.bytes for item in inspect(model).stored}
    assert sizes == {"int4": 3, "string": 3, "float16": 6}


def test_initializers_among_the_inputs_are_none(tmp_path: Path) -> None:
    model = tiny_model()
    tensor = model.graph.initializer[0]
    value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    model.graph.input.append(value)
    assert [tensor.name for tensor in inspect(model).inputs] == ["x"]


def test_the_text_has_a_row_for_each_layer_on_request(tmp_path: Path) -> None:
    path = save(good(), tmp_path / "good.onnx")
    code, out, err = run("inspect", path)
    assert (code, err) == (0, "")
    assert "  2 weighted layers: 2 INT8\n  4 quantized edges: 4 int8\n" in out
    assert "Layers" not in out
    rows = run("inspect", path, "--layers")[1].splitlines()[-2:]
    assert [row.split()[:4] for row in rows] == [
        ["first", "Conv", "INT8", "int8"],
        ["second", "Conv", "INT8", "int8"],
    ]


def test_json_has_the_layers(tmp_path: Path) -> None:
    path = save(good(), tmp_path / "good.onnx")
    answer = json.loads(run("inspect", path, "--format", "json")[1])
    assert answer["qdq_json"] == 2
    assert [layer["node"] for layer in answer["layers"]] == ["first", "second"]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    assert "m.onnx" in refused(tmp_path, "inspect", tmp_path / "m.onnx")


def test_it_needs_no_onnx_runtime(tmp_path: Path) -> None:
    path = save(good(), tmp_path / "good.onnx")
    code = (
        "import sys; from qdq.cli import main; code = main(['inspect', sys.argv[1]]);"
        "sys.exit(code or 'onnxruntime' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (25_600_000, "25.6 MB"),
        (3e12, "3000 GB"),
    ],
)
def test_bytes_are_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_the_versions_are_those_of_the_file(tmp_path: Path) -> None:
    model = onnx.load(NETWORKS / "digits_plain.onnx")
    path = save(model, tmp_path / "old.onnx")
    for inspection in (qdq.inspect(path), qdq.inspect(model)):
        assert (inspection.opsets["ai.onnx"], inspection.ir_version) == (11, 6)
        assert "IR version raised from 6 to 7" in inspection.notes
    assert "opset: ai.onnx 11; IR version 6" in run("inspect", path)[1]
