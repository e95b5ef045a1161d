"""Random float models by a seed: layers, residual additions, bodies, functions, odd names."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.graphs import Array

Shape = tuple[int, ...]

#: Prefixes and suffixes that exporters and people put around names.
_NAMES = ("t{}", "/layer{}/Conv", "a b{}", "ä{}", "x{}_scale", "#{}", "t{}:0", "model.{}.weight")
_HALF, _FULL = "float16", "float32"


def generate_model(seed: int) -> onnx.ModelProto:
    """Return the float model of a seed: x, and for some a condition, to some outputs."""
    return GraphMaker(seed).make_model()


class GraphMaker:
    """A graph under construction: its tensors with their shapes."""

    def __init__(self, seed: int) -> None:
        self.rng, self.values = random.Random(seed), np.random.default_rng(seed)
        self.dtype = _HALF if self.rng.random() < 0.15 else _FULL
        # QuantizeLinear takes FP16 from opset 19 on.
        self.opset = self.rng.choice((19, 21) if self.dtype == _HALF else (13, 17, 19, 21))
        self.pattern = self.rng.choice((_NAMES[0], _NAMES[0], *_NAMES))
        self.names_nodes = self.rng.random() < 0.8
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.functions: list[onnx.FunctionProto] = []
        self.shapes: dict[str, Shape] = {}
        self.needs_condition = False
        self.count = 0

    # Tensors and nodes.

    def name(self) -> str:
        self.count += 1
        return self.pattern.format(self.count)

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        """Append a node and return its output."""
        output = self.name()
        domain = attributes.pop("domain", "")
        node = helper.make_node(op, inputs, [output], domain=domain, **attributes)
        node.name = f"{op}_{self.count}" if self.names_nodes else ""
        self.nodes.append(node)
        self.shapes[output] = shape
        return output

    def store(self, array: Array) -> str:
        name = self.name()
        self.weights[name] = array
        return name

    def integers(self, *numbers: int) -> str:
        return self.store(np.array(numbers, np.int64))

    def weight(self, *shape: int) -> str:
        """Return a weight: a new one, one of that shape again, or one computed from constants."""
        same = [
            name for name, w in self.weights.items() if w.shape == shape and w.dtype.kind == "f"
        ]
        if same and self.rng.random() < 0.3:
            return self.rng.choice(same)
        fan = max(1, int(np.prod(shape[1:])))
        array = self.values.standard_normal(shape) / np.sqrt(fan)
        stored = self.store(array.astype(self.dtype))
        how = self.rng.random()
        if how < 0.85:
            return stored
        output = self.name()
        if how < 0.9:
            self.nodes.append(helper.make_node("Identity", [stored], [output]))
        elif how < 0.95:
            factor = self.store(np.array(0.5, self.dtype))
            self.nodes.append(helper.make_node("Mul", [stored, factor], [output]))
        else:
            constant = numpy_helper.from_array(array.astype(self.dtype), output)
            del self.weights[stored]
            self.nodes.append(helper.make_node("Constant", [], [output], value=constant))
        return output

    def pick(self, rank: int) -> str:
        """Return a tensor of a rank, mostly a late one; one is computed where there is none."""
        names = [name for name, shape in self.shapes.items() if len(shape) == rank]
        if not names:
            return self.sequence() if rank == 3 else self.flat()
        return names[-1] if self.rng.random() < 0.6 else self.rng.choice(names)

    def strewn(self, tensor: str) -> str:
        """Return a tensor, sometimes behind nodes that leave it as it is."""
        if self.rng.random() < 0.85:
            return tensor
        shape = self.shapes[tensor]
        kind = self.rng.choice(("Identity", "Dropout", "Cast", "Transposes", "Reshape"))
        if kind == "Cast":
            to = TensorProto.FLOAT16 if self.dtype == _HALF else TensorProto.FLOAT
            return self.add("Cast", [tensor], shape, to=to)
        if kind == "Transposes":
            order = list(range(len(shape)))[::-1]
            turned = self.add("Transpose", [tensor], shape[::-1], perm=order)
            del self.shapes[turned]
            return self.add("Transpose", [turned], shape, perm=order)
        if kind == "Reshape":
            return self.add("Reshape", [tensor, self.integers(*shape)], shape)
        return self.add(kind, [tensor], shape)

    # Layers on images [1,channels,height,width].

    def convolution(self, tensor: str, channels: int, kernel: int = 3) -> str:
        shape = self.shapes[tensor]
        group = shape[1] if channels == shape[1] and self.rng.random() < 0.2 else 1
        inputs = [self.strewn(tensor), self.weight(channels, shape[1] // group, kernel, kernel)]
        if self.rng.random() < 0.5:
            inputs.append(self.weight(channels))
        pad = [kernel // 2] * 4
        return self.add("Conv", inputs, (1, channels, *shape[2:]), group=group, pads=pad)

    def activated(self, tensor: str) -> str:
        kind = self.rng.choice(("Relu", "Relu", "Clip", "Silu", "LeakyRelu", "Sigmoid", "none"))
        shape = self.shapes[tensor]
        if kind == "none":
            return tensor
        if kind == "Clip":
            bounds = [self.store(np.array(bound, self.dtype)) for bound in (0, 6)]
            return self.add("Clip", [tensor, *bounds], shape)
        if kind == "Silu":
            return self.add("Mul", [tensor, self.add("Sigmoid", [tensor], shape)], shape)
        return self.add(kind, [tensor], shape)

    def grow_convolution(self) -> None:
        self.activated(
            self.convolution(self.pick(4), self.rng.choice((2, 4, 8)), self.rng.choice((1, 3)))
        )

    def grow_residual(self) -> None:
        """Append a block whose result is added to its input, in some spelling."""
        start = self.pick(4)
        branch = self.convolution(start, self.shapes[start][1])
        if self.rng.random() < 0.6:
            branch = self.convolution(self.activated(branch), self.shapes[start][1])
        skip = (
            start if self.rng.random() < 0.7 else self.convolution(start, self.shapes[start][1], 1)
        )
        self.activated(self.joined(self.strewn(branch), self.strewn(skip)))

    def joined(self, branch: str, skip: str) -> str:
        shape = self.shapes[branch]
        sides = [branch, skip] if self.rng.random() < 0.5 else [skip, branch]
        kind = self.rng.choice(("Add", "Add", "Add", "Sum", "Sub", "Scaled"))
        if kind == "Sub":
            return self.add("Sub", [branch, self.add("Neg", [skip], shape)], shape)
        if kind == "Scaled":
            scaled = self.add("Mul", [branch, self.store(np.array(0.5, self.dtype))], shape)
            return self.add("Add", [scaled, skip], shape)
        return self.add(kind, sides, shape)

    def grow_pooling(self) -> None:
        tensor = self.pick(4)
        shape, op = self.shapes[tensor], self.rng.choice(("MaxPool", "AveragePool"))
        self.add(op, [tensor], shape, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def grow_concat(self) -> None:
        first, second = self.pick(4), self.pick(4)
        if self.shapes[first][2:] == self.shapes[second][2:]:
            channels = self.shapes[first][1] + self.shapes[second][1]
            if channels <= 16:
                self.add("Concat", [first, second], (1, channels, *self.shapes[first][2:]), axis=1)

    def grow_normalization(self) -> None:
        tensor = self.pick(4)
        channels = self.shapes[tensor][1]
        parameters = [
            self.store(self.values.uniform(0.5, 1.5, channels).astype(self.dtype)) for _ in range(4)
        ]
        self.add("BatchNormalization", [tensor, *parameters], self.shapes[tensor])

    def grow_gate(self) -> None:
        """Append squeeze and excite."""
        tensor = self.pick(4)
        shape = self.shapes[tensor]
        pooled = self.add("GlobalAveragePool", [tensor], (*shape[:2], 1, 1))
        gate = self.add("Sigmoid", [self.convolution(pooled, shape[1], 1)], (*shape[:2], 1, 1))
        self.add("Mul", [tensor, gate], shape)

    # Layers on sequences [1,places,width] and vectors [1,width].

    def sequence(self) -> str:
        tensor = self.pick(4)
        _, channels, high, wide = self.shapes[tensor]
        flat = self.add(
            "Reshape", [tensor, self.integers(1, channels, -1)], (1, channels, high * wide)
        )
        return self.add("Transpose", [flat], (1, high * wide, channels), perm=[0, 2, 1])

    def flat(self) -> str:
        tensor = self.pick(4)
        shape = self.shapes[tensor]
        pooled = self.add("GlobalAveragePool", [tensor], (*shape[:2], 1, 1))
        return self.add("Flatten", [pooled], shape[:2])

    def linear(self, tensor: str, width: int) -> str:
        shape = (*self.shapes[tensor][:-1], width)
        product = self.add(
            "MatMul", [self.strewn(tensor), self.weight(self.shapes[tensor][-1], width)], shape
        )
        return (
            product
            if self.rng.random() < 0.4
            else self.add("Add", [product, self.weight(width)], shape)
        )

    def grow_linear(self) -> None:
        self.linear(self.pick(3), self.rng.choice((4, 8)))

    def grow_classifier(self) -> None:
        tensor = self.pick(2)
        width = self.shapes[tensor][1]
        inputs = [tensor, self.weight(5, width), self.weight(5)][: self.rng.choice((2, 3))]
        self.add("Gemm", inputs, (1, 5), transB=1)

    def grow_attention(self) -> None:
        tensor = self.pick(3)
        _, places, width = self.shapes[tensor]
        query, key, value = (self.linear(tensor, width) for _ in range(3))
        turned = self.add("Transpose", [key], (1, width, places), perm=[0, 2, 1])
        scores = self.add("MatMul", [query, turned], (1, places, places))
        shares = self.add("Softmax", [scores], (1, places, places), axis=-1)
        mixed = self.add("MatMul", [shares, value], (1, places, width))
        self.joined(self.linear(mixed, width), tensor)

    # Bodies and functions.

    def grow_body(self) -> None:
        """Append an If, a Loop or a Scan with a MatMul inside, on a vector [1,width]."""
        tensor = self.pick(2)
        width = self.shapes[tensor][1]
        op = self.rng.choice(("If", "Loop", "Scan"))
        shape = [1, width]
        if op == "If":
            self.needs_condition = True
            branches = [self._body(tensor, width, []) for _ in range(2)]
            self.add(
                "If", ["condition"], (1, width), then_branch=branches[0], else_branch=branches[1]
            )
            return
        state = self.name()
        inputs = [helper.make_tensor_value_info(state, self._type(), shape)]
        if op == "Scan":
            rows = self.store(self.values.standard_normal((3, 1, width)).astype(self.dtype))
            inputs.append(helper.make_tensor_value_info(self.name(), self._type(), shape))
            body = self._body(state, width, inputs)
            self.add("Scan", [tensor, rows], (1, width), body=body, num_scan_inputs=1)
            return
        turn, go_on = self.name(), self.name()
        inputs.insert(0, helper.make_tensor_value_info(go_on, TensorProto.BOOL, []))
        inputs.insert(0, helper.make_tensor_value_info(turn, TensorProto.INT64, []))
        turns, true = self.store(np.array(2)), self.store(np.array(True))
        body = self._body(state, width, inputs, go_on)
        self.add("Loop", [turns, true, tensor], (1, width), body=body)

    def _body(
        self, read: str, width: int, inputs: list[onnx.ValueInfoProto], go_on: str = ""
    ) -> onnx.GraphProto:
        product, result = self.name(), self.name()
        nodes = [
            helper.make_node("MatMul", [read, self._body_weight(width)], [product]),
            helper.make_node(self.rng.choice(("Tanh", "Relu", "Sigmoid")), [product], [result]),
        ]
        outputs = [helper.make_tensor_value_info(result, self._type(), [1, width])]
        if len(inputs) == 2 and not go_on:
            row, joined = inputs[1].name, self.name()
            nodes.append(helper.make_node("Add", [result, row], [joined]))
            outputs[0].name = joined
        if go_on:
            still = self.name()
            nodes.append(helper.make_node("Identity", [go_on], [still]))
            outputs.insert(0, helper.make_tensor_value_info(still, TensorProto.BOOL, []))
        return helper.make_graph(nodes, "body", inputs, outputs)

    def _body_weight(self, width: int) -> str:
        array = self.values.standard_normal((width, width)) / np.sqrt(width)
        return self.store(array.astype(self.dtype))

    def _type(self) -> int:
        return TensorProto.FLOAT16 if self.dtype == _HALF else TensorProto.FLOAT

    def grow_function(self) -> None:
        """Append the call of a function that multiplies by its second operand and activates."""
        if not self.functions:
            steps = [
                helper.make_node("MatMul", ["a", "w"], ["p"]),
                helper.make_node("Relu", ["p"], ["b"]),
            ]
            imports = [helper.make_opsetid("", self.opset)]
            self.functions.append(
                helper.make_function("local", "Dense", ["a", "w"], ["b"], steps, imports)
            )
        tensor = self.pick(3)
        width = self.shapes[tensor][-1]
        self.add("Dense", [tensor, self.weight(width, width)], self.shapes[tensor], domain="local")

    # The whole.

    def make_model(self) -> onnx.ModelProto:
        size = self.rng.choice((4, 6, 8))
        self.shapes["x"] = (1, self.rng.choice((2, 3, 4)), size, size)
        self.grow_convolution()
        for _ in range(self.rng.choice((1, 2, 3, 5, 8))):
            self.rng.choice(_GROWERS)(self)
        outputs = self._outputs()
        inputs = [helper.make_tensor_value_info("x", self._type(), list(self.shapes["x"]))]
        if self.needs_condition:
            inputs.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
        initializers = [numpy_helper.from_array(w, name) for name, w in self.weights.items()]
        graph = helper.make_graph(self.nodes, "generated", inputs, outputs, initializers)
        imports = [helper.make_opsetid("", self.opset)]
        if self.functions:
            imports.append(helper.make_opsetid("local", 1))
        ir = 10 if self.opset == 21 else self.rng.choice((8, 9))
        return helper.make_model(
            graph, opset_imports=imports, functions=self.functions, ir_version=ir
        )

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        """Return every tensor that no node reads, and some others."""
        read = {name for node in self.nodes for name in node.input}
        read |= {
            name
            for node in self.nodes
            for attribute in node.attribute
            for inner in attribute.g.node
            for name in inner.input
        }
        names = [
            name
            for name in self.shapes
            if name != "x" and (name not in read or self.rng.random() < 0.05)
        ]
        return [helper.make_tensor_value_info(n, self._type(), list(self.shapes[n])) for n in names]


_GROWERS: tuple[Callable[[GraphMaker], None], ...] = (
    GraphMaker.grow_convolution,
    GraphMaker.grow_convolution,
    GraphMaker.grow_residual,
    GraphMaker.grow_residual,
    GraphMaker.grow_residual,
    GraphMaker.grow_pooling,
    GraphMaker.grow_concat,
    GraphMaker.grow_normalization,
    GraphMaker.grow_gate,
    GraphMaker.grow_linear,
    GraphMaker.grow_classifier,
    GraphMaker.grow_attention,
    GraphMaker.grow_body,
    GraphMaker.grow_function,
)
