"""Small whole files of every kind that qdq reads: what the mutations start from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qdq
from tests.support.body_models import branching
from tests.support.cli_runner import run
from tests.support.graphs import build, node, noise
from tests.support.pair_models import branches, small

SHAPE = (3, 8, 8)
RULE = """\
rule: no-late-relu
says: Leave the inputs of Add in float.
because: >-
  A pair there splits a fusion.
see: https://example.com
evidence: >-
  Seen in an engine.
where: {into: Add}
then: leave-float
beats: [residual-inputs]
"""
CASES = """\
rule: no-late-relu
add:
  says: Both inputs stay in float.
  before: |
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3,4,4] x) => (float[1,3,4,4] y)
    <float[3,3,1,1] w>
    { [first] c = Conv (x, w)
      [add] y = Add (c, x) }
  plan:
    - x -> first[0]  int8-activation  weighted-inputs
    - w -> first[1]  int8-weight-per-channel(axis=0)  weights-per-channel
  float:
    - c -> add[0]  no-late-relu
    - x -> add[1]  no-late-relu
"""
PRESET = """\
fit: crop
size: 8
resize: 10
interpolation: bilinear
antialias: true
channels: rgb
scale: 1/255
mean: [0.485, 0.456, 0.406]
std: [0.229, 0.224, 0.225]
"""
PROJECT = """\
rules: [tensorrt]
targets: [rtx:sm86]
data: noise
method: max
samples: 2
seed: 1
leave_float: ["late*"]
allow_unmatched: true
shapes: ["x=1x3x8x8"]
thresholds: {snr_db: 10}
check: {ignore: [note], per-file-ignores: {"*.old.onnx": [error]}}
"""
TOML_PROJECT = """\
[project]
name = "p"

[tool.qdq]
rules = ["tensorrt"]
targets = ["rtx:sm86"]
leave_float = ["late*"]
allow_unmatched = true

[tool.qdq.thresholds]
snr_db = 10.0

[tool.qdq.check]
ignore = ["note"]
"""
LAYERS = {
    "Layers": [
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Int8 NCHW"}],
            "Outputs": [{"Name": "r", "Dimensions": [1, 4, 8, 8], "Format/Datatype": "Int8 NCHW"}],
            "Weights": {"Type": "Int8", "Count": 108},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
            "Metadata": "[ONNX Layer: conv]\u001e[ONNX Layer: relu]",
        },
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to add",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "r", "Dimensions": [1, 4, 8, 8], "Format": "Float"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 4, 8, 8], "Format": "Half"}],
            "Metadata": "",
        },
    ],
    "Bindings": ["x", "y"],
}


def write_companions(folder: Path) -> None:
    """Write one whole file of every kind; the files that a command reads beside a damaged one."""
    (folder / ".git").mkdir()
    for name in ("pics", "rules", "rules/cases"):
        (folder / name).mkdir()
    write_model(folder / "model.onnx", network())
    np.savez(folder / "data.npz", x=noise(2, *SHAPE, seed=5))
    np.save(folder / "data.npy", noise(2, *SHAPE, seed=5))
    (folder / "inputs.json").write_text(saved_inputs())
    (folder / "pics" / "a.png").write_bytes(picture("PNG"))
    (folder / "preset.yaml").write_text(PRESET)
    (folder / "rules" / "no-late-relu.yaml").write_text(RULE)
    (folder / "rules" / "cases" / "no-late-relu.yaml").write_text(CASES)
    (folder / "layers.json").write_text(json.dumps(LAYERS))
    _run_commands(folder)


def _run_commands(folder: Path) -> None:
    """Write the files that qdq itself writes."""
    at = folder.joinpath
    data = ("--data", at("data.npz"))
    for command in (
        ("plan", at("model.onnx"), "-o", at("plan.yaml")),
        ("calibrate", at("model.onnx"), at("plan.yaml"), *data, "--save-ranges", at("all.ranges"),
         "-o", at("scales.json")),
        ("apply", at("model.onnx"), at("plan.yaml"), at("scales.json"), "-o", at("int8.onnx")),
        ("ranges", "export", at("scales.json"), "--format", "tensorrt-cache", "-o",
         at("given.cache")),
        ("ranges", "export", at("scales.json"), "--format", "yaml", "-o", at("given.yaml")),
        ("ranges", "export", at("scales.json"), "--format", "json", "-o", at("given.json")),
        ("check", at("model.onnx"), "--write-baseline", at("baseline.json")),
    ):  # fmt: skip
        code, _, error = run(*command)
        if code == 2:
            raise RuntimeError(f"{command}: {error}")


def write_model(path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString())


def network() -> onnx.ModelProto:
    """Return conv, relu, a residual add, pooling and a classifier: x [batch,3,8,8]."""
    nodes = [
        node("Conv", ["x", "w0"], "c", name="conv", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "r", name="relu"),
        node("Conv", ["r", "w1", "b1"], "d", name="late", pads=[1, 1, 1, 1]),
        node("Add", ["d", "r"], "s", name="add"),
        node("GlobalAveragePool", ["s"], "p", name="pool"),
        node("Flatten", ["p"], "f", name="flatten"),
        node("Gemm", ["f", "w2"], "y", name="classifier", transB=1),
    ]
    weights = {
        "w0": noise(4, 3, 3, 3),
        "w1": noise(4, 4, 3, 3, seed=1),
        "b1": noise(4, seed=2),
        "w2": noise(5, 4, seed=3),
    }
    return build(nodes, {"x": ["batch", *SHAPE]}, {"y": ["batch", 5]}, weights)


def half_network() -> onnx.ModelProto:
    """Return a MatMul and Add in FP16."""
    nodes = [node("MatMul", ["x", "w"], "m", name="matmul"), node("Add", ["m", "b"], "y")]
    weights = {"w": noise(4, 4).astype(np.float16), "b": noise(4).astype(np.float16)}
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def models() -> list[bytes]:
    """Return float and quantized models, with bodies, of qdq and of other tools."""
    chosen = [
        network(),
        half_network(),
        branching(),
        branches(True),
        small(x="x_dq", c="c_dq", p="p_dq", weight=("ws", "wz")),
        qdq.quantize(network(), "noise", method="max").model,
        _fp8(network()),
    ]
    return [model.SerializeToString() for model in chosen]


def _fp8(model: onnx.ModelProto) -> onnx.ModelProto:
    rules, targets = qdq.load_rules(["tensorrt-fp8"]), [qdq.parse_target("rtx:sm89")]
    return qdq.quantize(model, "noise", method="max", rules=rules, targets=targets).model


def saved_inputs() -> str:
    """Return inputs as Polygraphy saves them."""
    from polygraphy.json import to_json

    text: str = to_json([{"x": noise(1, *SHAPE)}])
    return text


def picture(kind: str) -> bytes:
    """Return a picture of 12 by 10 pixels."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (10, 12, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()
