"""Convolutions in half precision with pairs in float32, and Casts and aliases around the pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.graphs import Array, noise, value

#: The letters of a chain of nodes: these Casts, `_OPERATORS`, and Q for a pair with float32 scales or
#: q for one with scales of the model's type.
TYPES = {
    "F": TensorProto.FLOAT,
    "H": TensorProto.FLOAT16,
    "B": TensorProto.BFLOAT16,
}
_OPERATORS = {
    "I": "Identity",
    "D": "Dropout",
    "S": "Sum",
    "R": "Relu",
    "P": "MaxPool",
    "T": "Transpose",
}

SHAPE = (2, 8, 6, 6)


class CastModel:
    """A graph under construction: x in one float type, convolutions, y."""

    def __init__(self, float_type: str = "H") -> None:
        self.float_type = float_type
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def chain(self, tensor: str, letters: str, axis: int | None = None, scale: float = 0.03) -> str:
        """Append the nodes of some letters after a tensor and return the last one's result.

        Each result is called after the tensor and the letters so far, as in ``xFQ``.
        """
        for letter in letters:
            result = tensor + letter
            if letter in "Qq":
                dtype = TYPES["F" if letter == "Q" else self.float_type]
                self._add_pair(tensor, result, dtype, axis, scale)
            else:
                self._add_node(tensor, result, letter)
            tensor = result
        return tensor

    def conv(self, tensor: str, name: str, weight: str = "QH", channels: int = SHAPE[1]) -> str:
        """Append a convolution whose weight is float32 before the nodes of some letters."""
        stored = f"{name}.w"
        values = noise(SHAPE[1], channels, 3, 3, seed=len(self.nodes)) / 5
        self._store(stored, values, TensorProto.FLOAT)
        read = self.chain(stored, weight, axis=0, scale=0.004)
        node = helper.make_node("Conv", [tensor, read], [f"{name}.y"], name=name, pads=[1] * 4)
        self.nodes.append(node)
        return f"{name}.y"

    def op(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node and return its result."""
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.y"], name=name, **attributes))
        return f"{name}.y"

    def build(self, output: str, opset: int = 19) -> onnx.ModelProto:
        """Return the model that ends in a tensor."""
        self.nodes.append(helper.make_node("Identity", [output], ["y"], name="end"))
        dtype = TYPES[self.float_type]
        graph = helper.make_graph(
            self.nodes,
            "casts",
            [value("x", SHAPE, dtype)],
            [value("y", SHAPE, dtype)],
            self.weights,
        )
        opset_imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opset_imports, ir_version=9)

    def _add_node(self, tensor: str, result: str, letter: str) -> None:
        attributes: dict[str, Any] = {}
        if letter in TYPES:
            attributes = {"to": TYPES[letter]}
        elif letter == "T":
            attributes = {"perm": [3, 2, 1, 0]}
        elif letter == "P":
            attributes = {"kernel_shape": [3, 3], "pads": [1] * 4}
        op = _OPERATORS.get(letter, "Cast")
        self.nodes.append(helper.make_node(op, [tensor], [result], name=result, **attributes))

    def _add_pair(
        self, tensor: str, result: str, dtype: int, axis: int | None, scale: float
    ) -> None:
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        shape = () if axis is None else (SHAPE[1],)
        scales = np.linspace(scale, 1.3 * scale, SHAPE[1]) if shape else np.array(scale)
        self._store(f"{result}s", scales, dtype)
        self._store(f"{result}z", np.zeros(shape, np.int8), TensorProto.INT8)
        parameters = [f"{result}s", f"{result}z"]
        self.nodes += [
            helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{result}q"], **attributes),
            helper.make_node(
                "DequantizeLinear", [f"{result}q", *parameters], [result], **attributes
            ),
        ]

    def _store(self, name: str, values: Array, dtype: int) -> None:
        typed_values = values.astype(helper.tensor_dtype_to_np_dtype(dtype))
        self.weights.append(numpy_helper.from_array(typed_values, name))


def cast_conv(
    activation: str = "FQH", weight: str = "QH", float_type: str = "H", opset: int = 19
) -> onnx.ModelProto:
    """Return one convolution named ``conv`` with the nodes of some letters before its operands."""
    model = CastModel(float_type)
    data = model.op("Abs", ["x"], "abs")
    return model.build(model.conv(model.chain(data, activation), "conv", weight), opset)


def count_halves(model: onnx.ModelProto) -> int:
    """Return the number of Q and DQ nodes in a model's main graph."""
    ops = [node.op_type for node in model.graph.node]
    return ops.count("QuantizeLinear") + ops.count("DequantizeLinear")
