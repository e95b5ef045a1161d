"""Models as other tools write them, made here by ONNX Runtime's own quantizer from float networks
of ours.

The forms that need heavy tools are files of fixtures/peers, which `make_peers.py` there made.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from tests.support.graphs import CALIBRATION, Array, build, node, noise
from tests.support.paths import NETWORKS, PEERS

QOPERATOR = {"quant_format": QuantFormat.QOperator}
#: What ONNX Runtime must be told for TensorRT, as ModelOpt tells it.
FOR_TENSORRT = {
    "activation_type": QuantType.QInt8,
    "per_channel": True,
    "extra_options": {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
    },
}


def vision() -> onnx.ModelProto:
    """Return a convolutional network with every operator of images that ONNX Runtime can quantize:
    `x` [1,3,16,16] to `y` [1,10].
    """
    ints = {
        "sizes": np.array([1, 8, 16, 16], np.int64),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "halves": np.array([4, 4], np.int64),
    }
    nodes = [
        node("Conv", ["x", "stem.w", "stem.b"], "stem", "stem", pads=[1] * 4),
        node("Relu", ["stem"], "stem_relu", "stem_relu"),
        node("Conv", ["stem_relu", "res.w", "res.b"], "res", "res", pads=[1] * 4),
        node("Add", ["res", "stem_relu"], "sum", "sum"),
        node("Relu", ["sum"], "sum_relu", "sum_relu"),
        node("Conv", ["sum_relu", "dw.w"], "dw", "dw", pads=[1] * 4, group=8),
        node("Sigmoid", ["dw"], "gate", "gate"),
        node("Mul", ["dw", "gate"], "silu", "silu"),
        node("MaxPool", ["silu"], "max", "max", kernel_shape=[2, 2], strides=[2, 2]),
        node(
            "ConvTranspose",
            ["max", "up.w", "up.b"],
            "up",
            "up",
            kernel_shape=[2, 2],
            strides=[2, 2],
        ),
        node("LeakyRelu", ["up"], "leaky", "leaky", alpha=0.1),
        node("Resize", ["max", "", "", "sizes"], "wide", "wide", mode="nearest"),
        node("Concat", ["leaky", "wide"], "both", "both", axis=1),
        node("Conv", ["both", "merge.w", "merge.b"], "merge", "merge"),
        node("Clip", ["merge", "zero", "six"], "six_clip", "six_clip"),
        node("Pad", ["six_clip", "pads"], "padded", "padded"),
        node("AveragePool", ["padded"], "mean", "mean", kernel_shape=[3, 3], strides=[2, 2]),
        node("Split", ["mean", "halves"], ["left", "right"], "split", axis=1),
        node("Mul", ["left", "right"], "product", "product"),
        node("Conv", ["product", "last.w", "last.b"], "last", "last"),
        node("GlobalAveragePool", ["last"], "pooled", "pooled"),
        node("Flatten", ["pooled"], "flat", "flat"),
        node("Gemm", ["flat", "head.w", "head.b"], "scores", "head", transB=1),
        node("Softmax", ["scores"], "y", "softmax", axis=1),
    ]
    shapes = {
        "stem.w": (8, 3, 3, 3),
        "res.w": (8, 8, 3, 3),
        "dw.w": (8, 1, 3, 3),
        "up.w": (8, 8, 2, 2),
        "merge.w": (8, 16, 1, 1),
        "last.w": (16, 4, 1, 1),
    }
    biases = {"stem.b": 8, "res.b": 8, "up.b": 8, "merge.b": 8, "last.b": 16, "head.b": 10}
    weights = _scaled({**shapes, "head.w": (10, 16)}) | {
        name: 0.1 * noise(n, seed=n) for name, n in biases.items()
    }
    floats = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    return build(
        nodes,
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 10]},
        {**weights, **ints, **floats},
        opset=17,
    )


def language() -> onnx.ModelProto:
    """Return attention over a table of rows, with every operator of sequences that ONNX Runtime
    can quantize: `ids` [1,8] to `y` [1,8,16].
    """
    heads, ints = (
        [0, 2, 1, 3],
        {"split": np.array([1, 8, 4, 8], np.int64), "merge": np.array([1, 8, 32], np.int64)},
    )
    nodes = [node("Gather", ["table", "ids"], "embedded", "embedding")]
    for part in ("query", "key", "value"):
        nodes += [
            node("MatMul", ["embedded", f"{part}.w"], f"{part}_product", f"{part}_matmul"),
            node("Add", [f"{part}_product", f"{part}.b"], part, f"{part}_bias"),
            node("Reshape", [part, "split"], f"{part}_split", f"{part}_split"),
            node(
                "Transpose",
                [f"{part}_split"],
                f"{part}_heads",
                f"{part}_heads",
                perm=[0, 2, 3, 1] if part == "key" else heads,
            ),
        ]
    nodes += [
        node("MatMul", ["query_heads", "key_heads"], "attention", "attention"),
        node("Mul", ["attention", "root"], "scaled", "scaled"),
        node("Where", ["mask", "scaled", "low"], "masked", "masked"),
        node("Softmax", ["masked"], "weights", "softmax", axis=-1),
        node("MatMul", ["weights", "value_heads"], "mixed", "mixed"),
        node("Transpose", ["mixed"], "mixed_back", "mixed_back", perm=heads),
        node("Reshape", ["mixed_back", "merge"], "merged", "merged"),
        node("MatMul", ["merged", "output.w"], "output", "output"),
        node("Add", ["output", "embedded"], "residual", "residual"),
        node("MatMul", ["residual", "wide.w"], "wide", "wide"),
        node("Relu", ["wide"], "wide_relu", "wide_relu"),
        node("MatMul", ["wide_relu", "narrow.w"], "y", "narrow"),
    ]
    shapes = {
        "query.w": (32, 32),
        "key.w": (32, 32),
        "value.w": (32, 32),
        "output.w": (32, 32),
        "wide.w": (32, 64),
        "narrow.w": (64, 16),
    }
    biases = {
        f"{part}.b": 0.1 * noise(32, seed=i) for i, part in enumerate(("query", "key", "value"))
    }
    floats = {
        "root": np.array(8**-0.5, np.float32),
        "low": np.array(-4, np.float32),
        "table": noise(64, 32, seed=9),
    }
    mask = {"mask": np.tril(np.ones((8, 8), bool))}
    weights = {
        name: (noise(*shape, seed=i) / np.sqrt(shape[0])).astype(np.float32)
        for i, (name, shape) in enumerate(shapes.items())
    }
    constants: dict[str, Array] = {**weights, **biases, **floats, **mask, **ints}
    model = build(nodes, {"ids": [1, 8]}, {"y": [1, 8, 16]}, constants, opset=17)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


def _scaled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return noise that keeps the variance of what it is multiplied with."""
    return {
        name: (noise(*shape, seed=i) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for i, (name, shape) in enumerate(shapes.items())
    }


def feeds(model: onnx.ModelProto, n: int = 8, seed: int = 5) -> list[dict[str, Array]]:
    """Return seeded inputs: the digits for an `image`, row numbers for integers, noise for
    anything else.
    """
    (value,) = (
        i for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}
    )
    if value.name == "image":
        with np.load(CALIBRATION) as data:
            return [{"image": data["image"][i : i + 1]} for i in range(len(data["image"]))]
    shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed)
    if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
        return [{value.name: rng.integers(0, 64, shape)} for _ in range(n)]
    return [{value.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(n)]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the feeds to ONNX Runtime one by one."""

    def __init__(self, samples: list[dict[str, Array]]) -> None:
        self._samples: Iterator[dict[str, Array]] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._samples, None)


def ort_static(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Return the result of ONNX Runtime's `quantize_static` on a float model, with its defaults
    but for `options`.
    """
    with tempfile.TemporaryDirectory() as folder:
        float_path, quantized_path = Path(folder, "float.onnx"), Path(folder, "quantized.onnx")
        onnx.save(model, float_path)
        quantize_static(str(float_path), str(quantized_path), Reader(feeds(model)), **options)
        return onnx.load(quantized_path)


def ort_dynamic(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Return the result of ONNX Runtime's `quantize_dynamic` on a float model."""
    with tempfile.TemporaryDirectory() as folder:
        float_path, quantized_path = Path(folder, "float.onnx"), Path(folder, "quantized.onnx")
        onnx.save(model, float_path)
        quantize_dynamic(str(float_path), str(quantized_path), **options)
        return onnx.load(quantized_path)


#: Options of ONNX Runtime's quantizer, by the name of the form that it then writes.
STATIC: dict[str, dict[str, Any]] = {
    "qdq": {},
    "qdq-uint8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
    "qdq-symmetric": {"extra_options": {"ActivationSymmetric": True}},
    "qdq-uint8-symmetric": {
        "activation_type": QuantType.QUInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "qdq-per-channel": {"per_channel": True},
    "qdq-per-channel-symmetric": {
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True},
    },
    "qdq-shifted-weights": {"extra_options": {"WeightSymmetric": False}},
    "qdq-float-bias": {"extra_options": {"QuantizeBias": False}},
    "qdq-reduced": {"reduce_range": True},
    "qdq-pairs-on-weights": {"per_channel": True, "extra_options": {"AddQDQPairToWeight": True}},
    "qdq-dedicated": {"extra_options": {"DedicatedQDQPair": True}},
    "qdq-contrib": {"extra_options": {"UseQDQContribOps": True}},
    "qdq-for-tensorrt": FOR_TENSORRT,
    "qdq-int16": {"activation_type": QuantType.QInt16},
    "qoperator": QOPERATOR,
    "qoperator-symmetric": {**QOPERATOR, "extra_options": {"ActivationSymmetric": True}},
    "qoperator-per-channel": {
        **QOPERATOR,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    },
    "qoperator-uint8": {
        **QOPERATOR,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QUInt8,
    },
}
#: The same for `quantize_dynamic`.
DYNAMIC: dict[str, dict[str, Any]] = {
    "dynamic": {"weight_type": QuantType.QUInt8},
    "dynamic-per-channel": {"weight_type": QuantType.QUInt8, "per_channel": True},
}
FILES = PEERS


@functools.cache
def network(name: str) -> onnx.ModelProto:
    """Return a float network by name: one of this module, of the digits, or the one of
    fixtures/peers.
    """
    builders = {"vision": vision, "language": language}
    return (
        builders[name]()
        if name in builders
        else onnx.load(
            FILES / "float.onnx" if name == "torch" else NETWORKS / f"digits_{name}.onnx"
        )
    )


@functools.cache
def peer(name: str) -> onnx.ModelProto:
    """Return a quantized model by name: a file of fixtures/peers, or a network and a form of ONNX
    Runtime's as ``vision/qoperator``.
    """
    network_name, _, form = name.partition("/")
    if not form:
        return onnx.load(FILES / f"{name}.onnx")
    if form in DYNAMIC:
        return ort_dynamic(_without_shapes(network(network_name)), **DYNAMIC[form])
    options = dict(STATIC[form])
    if network_name == "language" and form.startswith(
        "qoperator"
    ):  # without it ONNX Runtime 1.32 writes a Where that reads a tensor nobody gives
        options["extra_options"] = {
            **options.get("extra_options", {}),
            "ForceQuantizeNoInputCheck": True,
        }
    return ort_static(network(network_name), **options)


def _without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the shapes of inner tensors, which contradict what `quantize_dynamic`
    makes of a Gemm.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return copy


def network_of(name: str) -> str:
    """Return the name of the float network that a peer was made from."""
    network_name, _, form = name.partition("/")
    words = network_name.split("_")
    return (
        network_name
        if form
        else words[1]
        if words[0] in ("nncf", "modelopt")
        else "vision"
        if words[0] == "quark"
        else "torch"
    )
