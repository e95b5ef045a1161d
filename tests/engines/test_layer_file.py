"""Files of engine layers, as trtexec and the engine inspector write them, against the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import qdq
from qdq.engines.engine import LayerTensor
from qdq.engines.layer_file import find_named_nodes, read_layer_file
from qdq.target import Target
from tests.support.cli_runner import run, save, tiny_model

LABELS = {
    name: name for name in ("conv", "relu", "/a/Conv", "/a/act, 2", "Sigmoid_1", "Mul_2", "b[0], c")
}
TEXT = {
    "Int8": "Thirty-two wide channel vectorized row major Int8 format",
    "FP32": "Row major linear FP32",
    "FP16": "Channel major FP16 format where channel % 8 == 0",
}


def tensor(name: str, dims: list[int], kind: str, new: bool = False) -> dict[str, Any]:
    """Return a tensor as TensorRT up to 10, or from 11 (new), describes it."""
    described: dict[str, Any] = {"Name": name, "Location": "Device", "Dimensions": dims}
    if not new:
        return {**described, "Format/Datatype": TEXT[kind]}
    return {
        **described,
        "Format": TEXT[kind],
        "Datatype": {"FP32": "Float", "FP16": "Half"}.get(kind, kind),
    }


def layer(
    name: str, kind: str, types: str, weights: str = "", new: bool = False, **more: object
) -> dict[str, Any]:
    """Return a layer of one input and one output; `types` reads ``Int8 -> FP32``."""
    read, written = types.split(" -> ")
    described = {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor("i", [1, 4, 8, 8], read, new)],
        "Outputs": [tensor("o", [1, 6, 6, 6], written, new)],
    }
    return {
        **described,
        **({"Weights": {"Type": weights, "Count": 216}} if weights else {}),
        **more,
    }


def engine_of_tiny(gemm: str, new: bool = False) -> dict[str, Any]:
    """Return an engine of `tiny_model` with pairs: its Gemm runs in ``Int8`` or ``Float``."""
    layers = [
        layer("x_QuantizeLinear", "Reformat", "FP32 -> Int8", new=new, Origin="QDQ"),
        layer(
            "conv.weight_QuantizeLinear + conv + relu",
            "CaskConvolution",
            "Int8 -> Int8",
            "Int8",
            new,
        ),
        layer(
            "Reformatting CopyNode for Input Tensor 0 to gemm", "Reformat", "Int8 -> FP32", new=new
        ),
        layer(
            "gemm",
            "MatrixMultiply",
            "Int8 -> FP32" if gemm == "Int8" else "FP32 -> FP32",
            gemm,
            new,
        ),
        layer("squeeze", "NoOp", "FP32 -> FP32", new=new),
    ]
    if not new:
        return {"Layers": layers, "Bindings": ["x", "y"]}
    return {
        "Layers": layers,
        "I/O Tensors": [
            {"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 4, 8, 8]}
        ],
    }


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a float model and the same with pairs."""
    return save(tiny_model(), tmp_path / "model.onnx"), save(
        qdq.quantize(tiny_model(), "noise").model, tmp_path / "model.int8.onnx"
    )


def write(folder: Path, content: object) -> Path:
    path = folder / "engine.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("new", [False, True], ids=["up to TensorRT 10", "from TensorRT 11"])
def test_both_forms_read_alike(tmp_path: Path, new: bool) -> None:
    engine = read_layer_file(
        write(tmp_path, engine_of_tiny("Int8", new)),
        Target("trt", 80),
        {"conv": "conv", "relu": "relu", "gemm": "gemm"},
    )

    assert [la.nodes for la in engine.layers] == [(), ("conv", "relu"), (), ("gemm",), ()]
    assert engine.layers[1].inputs == (LayerTensor("i", (1, 4, 8, 8), "Int8", "32-wide"),)
    assert engine.layers[1].constants == (LayerTensor("weights", (216,), "Int8"),)
    assert engine.layers[3].outputs[0].dtype == "Float"
    assert (engine.kernels, engine.reformats) == (4, 2)
    assert engine.bytes == sum((4 * 256 + 216, 256 + 216 + 216, 256 + 4 * 216, 256 + 4 * 216 + 216))


@pytest.mark.parametrize(
    ("name", "metadata", "nodes"),
    [
        ("conv + relu", "", ("conv", "relu")),
        ("/a/Conv || conv", "", ("/a/Conv", "conv")),
        ("conv + PWN(PWN(Sigmoid_1), Mul_2)", "", ("conv", "Sigmoid_1", "Mul_2")),
        ("/a/act, 2", "", ("/a/act, 2",)),
        ("__myl_Fused_0x1", "[ONNX Layer: conv]\x1f[ONNX Layer: /a/act, 2]", ("conv", "/a/act, 2")),
        ("__myl_Fused_0x1", "[ONNX Layer: conv]\x1e[ONNX Layer: b[0], c]", ("conv", "b[0], c")),
        ("conv", "[ONNX Layer: conv] [ONNX Layer: relu]", ("conv", "relu")),
        ("Reformatting CopyNode for Input Tensor 0 to conv + relu", "[ONNX Layer: conv]", ()),
        ("unknown + conv.weight", "", ()),
    ],
)
def test_layers_are_mapped_to_nodes_by_name_and_metadata(
    name: str, metadata: str, nodes: tuple[str, ...]
) -> None:
    assert find_named_nodes(name, metadata, LABELS) == nodes


def test_an_engine_that_keeps_the_plan_is_clean(files: tuple[Path, Path], tmp_path: Path) -> None:
    quantized = onnx.load(files[1])
    quantize = next(
        n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x"
    )
    content = engine_of_tiny("Int8")
    content["Layers"][0]["Name"] = quantize.name

    code, text, error = run(
        "validate", *files, "--layers", write(tmp_path, content), "--format", "json"
    )

    (engine,) = json.loads(text)["validation"]["engines"]
    assert (code, error) == (0, "")
    assert (engine["kind"], engine["target"], engine["kernels"], engine["reformats"]) == (
        "read",
        "engine.json",
        4,
        2,
    )
    assert [(v["node"], v["int8"]) for v in engine["layers"]] == [("conv", True), ("gemm", True)]
    assert (engine["broken_promises"], engine["unmapped"], engine["standalone_qdq"]) == (
        [],
        [],
        [quantize.name],
    )


def test_a_promise_that_a_real_engine_broke_is_named(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    code, text, _ = run("validate", *files, "--layers", write(tmp_path, engine_of_tiny("Float")))

    assert code == 1
    assert (
        "engine.json: gemm [weighted-inputs, weights-per-channel]: the pairs promise INT8, but the engine runs it as MatrixMultiply Float -> Float -> Float"
        in text
    )
    assert "1 of 2" in text


def test_a_node_that_no_layer_names_is_neither_kept_nor_broken(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    content = engine_of_tiny("Int8")
    content["Layers"][3]["Name"] = "__myl_Fc_myl0_7"

    code, text, _ = run("validate", *files, "--layers", write(tmp_path, content))

    assert code == 0
    assert "no layer of the engine names it: gemm" in text


def test_a_node_without_a_name_is_found_by_its_output(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[3].name = ""
    paths = (
        save(model, tmp_path / "model.onnx"),
        save(qdq.quantize(model, "noise").model, tmp_path / "model.int8.onnx"),
    )
    content = engine_of_tiny("Int8")
    content["Layers"][3] |= {"Name": "__myl_Fc_myl0_7", "Metadata": "[ONNX Layer: node_of_y]"}

    code, text, _ = run(
        "validate", *paths, "--layers", write(tmp_path, content), "--format", "json"
    )

    assert code == 0
    assert json.loads(text)["validation"]["engines"][0]["unmapped"] == []


def test_a_convolution_that_pools_too_shows_its_weights(tmp_path: Path) -> None:
    pooled = layer(
        "conv + relu", "ConvActPool", "Int8 -> Int8", ConvWeights={"Type": "Int8", "Count": 9408}
    )

    (read,) = read_layer_file(
        write(tmp_path, {"Layers": [pooled]}), Target("trt", 80), LABELS
    ).layers

    assert read.constants == (LayerTensor("weights", (9408,), "Int8"),)
