"""A model that is quantized well, and one change for each defect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.graphs import (
    Array,
    build,
    initializer,
    node,
    noise,
    value,
)

Model = onnx.ModelProto


def good() -> Model:
    """Return a Conv, Relu and Conv as TensorRT wants them, written by hand."""
    return quantized_by_hand(
        {"x": 0.03, "r": 0.2}, {"w": noise(4, 3, 3, 3), "v": noise(2, 4, 1, 1, seed=1)}
    )


def store_parameters(activations: dict[str, float], weights: dict[str, Array]) -> dict[str, Array]:
    """Return weights with the scales and zero points of their pairs and of those of activations."""
    constants: dict[str, Array] = dict(weights)
    for name, scale in activations.items():
        constants[f"{name}_s"] = np.array(scale, np.float32)
        constants[f"{name}_z"] = np.array(0, np.int8)
    for name, weight in weights.items():
        largest = np.abs(weight).reshape(len(weight), -1).max(1)
        constants[f"{name}_s"] = (largest / 127).astype(np.float32)
        constants[f"{name}_z"] = np.zeros(len(weight), np.int8)
    return constants


def quantized_by_hand(activations: dict[str, float], weights: dict[str, Array]) -> Model:
    """Return Q/DQ on x and r with one scale, and on w and v with one scale for each output channel."""
    constants = store_parameters(activations, weights)
    nodes: list[onnx.NodeProto] = []
    nodes += [
        *pair("x"),
        *pair("w", axis=0),
        node("Conv", ["x_dq", "w_dq"], "a", name="first"),
        node("Relu", ["a"], "r", name="relu"),
    ]
    nodes += [*pair("r"), *pair("v", axis=0), node("Conv", ["r_dq", "v_dq"], "y", name="second")]
    return build(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants)


def pair(tensor: str, **attributes: Any) -> list[onnx.NodeProto]:
    """Return a Q and a DQ on a tensor, unnamed, as exporters often leave them."""
    constants = [f"{tensor}_s", f"{tensor}_z"]
    return [
        node("QuantizeLinear", [tensor, *constants], f"{tensor}_q", name="", **attributes),
        node(
            "DequantizeLinear", [f"{tensor}_q", *constants], f"{tensor}_dq", name="", **attributes
        ),
    ]


def store(model: Model, name: str, array: Array | None) -> None:
    """Replace an initializer, or remove it."""
    kept = [t for t in model.graph.initializer if t.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    if array is not None:
        model.graph.initializer.append(numpy_helper.from_array(array, name))


def made_by(model: Model, output: str) -> onnx.NodeProto:
    """Return the node that gives a tensor."""
    nodes: list[onnx.NodeProto] = [n for n in model.graph.node if output in n.output]
    return nodes[0]


def reading(model: Model, name: str) -> onnx.NodeProto:
    """Return the node of a name."""
    nodes: list[onnx.NodeProto] = [n for n in model.graph.node if n.name == name]
    return nodes[0]


def unsigned(model: Model) -> None:
    store(model, "x_z", np.array(0, np.uint8))


def shifted(model: Model) -> None:
    store(model, "x_z", np.array(5, np.int8))


def without_zero_point(model: Model) -> None:
    for output in ("x_q", "x_dq"):
        del made_by(model, output).input[2]


def without_pair(model: Model) -> None:
    reading(model, "second").input[0] = "r"
    drop(model, "r_q", "r_dq")


def drop(model: Model, *outputs: str) -> None:
    """Remove the nodes that give some tensors."""
    for output in outputs:
        model.graph.node.remove(made_by(model, output))


def on_output(model: Model) -> None:
    at = list(model.graph.node).index(reading(model, "relu"))
    store(model, "a_s", np.array(0.1, np.float32))
    store(model, "a_z", np.array(0, np.int8))
    insert(model, at, pair("a"))
    reading(model, "relu").input[0] = "a_dq"


def insert(model: Model, at: int, nodes: list[onnx.NodeProto]) -> None:
    """Put nodes before the one at a position."""
    order = list(model.graph.node)
    order[at:at] = nodes
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def channels_of_activation(model: Model) -> None:
    store(model, "x_s", np.array([0.1, 0.2, 0.3], np.float32))
    store(model, "x_z", np.zeros(3, np.int8))
    for output in ("x_q", "x_dq"):
        made_by(model, output).attribute.append(helper.make_attribute("axis", 1))


def other_axis(model: Model) -> None:
    store(model, "w_s", np.full(3, 0.02, np.float32))
    store(model, "w_z", np.zeros(3, np.int8))
    for output in ("w_q", "w_dq"):
        made_by(model, output).attribute[0].i = 1


def one_scale_for_weight(model: Model) -> None:
    store(model, "w_s", np.array(0.02, np.float32))
    store(model, "w_z", np.array(0, np.int8))
    for output in ("w_q", "w_dq"):
        del made_by(model, output).attribute[:]


def half_a_pair(model: Model) -> None:
    reading(model, "second").input[0] = "r"
    drop(model, "r_dq")
    model.graph.output.append(value("r_q", [1, 4, 4, 4], TensorProto.INT8))


def computed_scale(model: Model) -> None:
    store(model, "x_s", None)
    model.graph.input.append(value("x_s", []))


def negative_scale(model: Model) -> None:
    store(model, "x_s", np.array(-0.1, np.float32))


def zero_in_channel_scales(model: Model) -> None:
    scales = initializer(model, "w_s").copy()
    scales[1] = 0.0
    store(model, "w_s", scales)


#: What is done to the good model, the codes that must be found, and where.
DEFECTS: dict[str, tuple[Callable[[Model], None], set[str], str]] = {
    "uint8": (unsigned, {"uint8"}, "x -> first[0]"),
    "zero point 5": (shifted, {"zero-point"}, "x -> first[0]"),
    "no zero point": (without_zero_point, {"no-zero-point"}, "x -> first[0]"),
    "missing pair": (without_pair, {"half-quantized"}, "r -> second[0]"),
    "unwanted pair": (on_output, {"pair-in-fusion"}, "a -> relu[0]"),
    "per-channel activation": (channels_of_activation, {"channel-scales"}, "x -> first[0]"),
    "wrong weight axis": (other_axis, {"wrong-axis"}, "w -> first[1]"),
    "one scale for a weight": (one_scale_for_weight, {"weight-per-tensor"}, "w -> first[1]"),
    "Q without DQ": (half_a_pair, {"half-quantized"}, "r -> second[0]"),
    "scale from an input": (computed_scale, {"scale-not-constant"}, "x -> first[0]"),
    "negative scale": (negative_scale, {"scale-not-positive"}, "x -> first[0]"),
    "zero scale of a channel": (zero_in_channel_scales, {"scale-not-positive"}, "w -> first[1]"),
}


def stored_as_integers(model: Model, *weights: str, constants: bool = False) -> Model:
    """Return a copy whose weights are stored as int8, read by a DequantizeLinear alone."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    for name in weights:
        weight, scale = initializer(copy, name), initializer(copy, f"{name}_s")
        integers = np.clip(np.rint(weight / scale.reshape(-1, 1, 1, 1)), -128, 127).astype(np.int8)
        drop(copy, f"{name}_q")
        store(copy, name, None)
        if constants:
            insert(
                copy,
                0,
                [node("Constant", [], f"{name}_q", value=numpy_helper.from_array(integers))],
            )
        else:
            store(copy, f"{name}_q", integers)
    return copy
