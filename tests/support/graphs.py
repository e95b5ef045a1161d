"""Small float models for the tests: builders by hand, and a hypothesis strategy for random ones."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.support.paths import NETWORKS

Array = npt.NDArray[Any]

CALIBRATION = NETWORKS / "digits-calibration.npz"
DIGITS = ("digits_cnn", "digits_plain", "digits_attention")

PAIR = ("QuantizeLinear", "DequantizeLinear")


def draw_graphs(examples: int) -> settings:
    """Return the settings of a test that draws so many graphs, without shrinking those that fail."""
    return settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        derandomize=True,
    )


def noise(*shape: int, seed: int = 0, dtype: type = np.float32) -> Array:
    """Return seeded standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def value(
    name: str, shape: Sequence[int | str | None], dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    """Return a graph input or output."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


def node(
    op: str,
    inputs: Sequence[str],
    output: str | Sequence[str],
    name: str | None = None,
    **attributes: Any,
) -> onnx.NodeProto:
    """Return a node, named after its first output unless told otherwise."""
    outputs = [output] if isinstance(output, str) else list(output)
    return helper.make_node(
        op, list(inputs), outputs, name=f"{outputs[0]}_node" if name is None else name, **attributes
    )


def build(
    nodes: Iterable[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Iterable[str] | Mapping[str, Sequence[int | str | None]],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
    domains: Mapping[str, int] | None = None,
    dtype: int = TensorProto.FLOAT,
    **more: Any,
) -> onnx.ModelProto:
    """Return a model of the nodes; outputs given by name alone get the shape that ONNX infers."""
    shapes = outputs if isinstance(outputs, Mapping) else {}
    graph = helper.make_graph(
        list(nodes),
        "tested",
        [value(name, shape, dtype) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shapes.get(name)) for name in outputs],
        [
            numpy_helper.from_array(np.asarray(array), name)
            for name, array in (weights or {}).items()
        ],
    )
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(d, v) for d, v in (domains or {}).items()),
    ]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir, **more)
    if not shapes:
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
        del model.graph.output[:]
        model.graph.output.extend(inferred)
    return model


def convolution(opset: int = 17, batch: int | str | None = 1) -> onnx.ModelProto:
    """Return Conv, Relu, Conv."""
    return build(
        [
            node("Conv", ["x", "w1", "b1"], "a", pads=[1, 1, 1, 1]),
            node("Relu", ["a"], "r"),
            node("Conv", ["r", "w2"], "y"),
        ],
        {"x": [batch, 3, 6, 6]},
        ["y"],
        {"w1": noise(4, 3, 3, 3, seed=1), "b1": noise(4, seed=2), "w2": noise(5, 4, 1, 1, seed=3)},
        opset=opset,
    )


def run(model: onnx.ModelProto | Path | str, feed: Mapping[str, Array]) -> list[Array]:
    """Return what ONNX Runtime computes, each node as it is written.

    Node names are left out of a ModelProto, for ONNX Runtime refuses one that occurs twice.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    content = (
        _nameless(model).SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    )
    outputs: list[Array] = ort.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    ).run(None, dict(feed))
    return outputs


def _nameless(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in copy.graph.node:
        item.name = ""
    return copy


def random_feed(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    """Return noise for every input that must be fed; dynamic dimensions are 2."""
    stored = {t.name for t in model.graph.initializer}
    rng = np.random.default_rng(seed)
    feed = {}
    for value in model.graph.input:
        if value.name not in stored:
            tensor = value.type.tensor_type
            shape = [d.dim_value or 2 for d in tensor.shape.dim]
            feed[value.name] = rng.standard_normal(shape).astype(
                helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            )
    return feed


def initializer(model: onnx.ModelProto, name: str) -> Array:
    """Return the value of an initializer."""
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    array: Array = numpy_helper.to_array(tensor)
    return array


def identities(model: onnx.ModelProto) -> dict[tuple[str, int], str]:
    """Return each edge of a model without Q/DQ as (first output of its node, slot) -> tensor."""
    return {
        (n.output[0], slot): tensor
        for n in model.graph.node
        for slot, tensor in enumerate(n.input)
        if tensor
    }


def paired_edges(before: onnx.ModelProto, after: onnx.ModelProto) -> set[tuple[str, int]]:
    """Return the edges of `before` that a whole Q/DQ pair is on in `after`; fails if anything else
    differs.

    Written without qdq's own code: an edge has a pair if its tensor is reached through a
    DequantizeLinear and a QuantizeLinear that read the same int8 zero point of zeros and the same
    positive scale.
    """
    producers = {output: n for n in after.graph.node for output in n.output}
    stored = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    rest = [n for n in after.graph.node if n.op_type not in PAIR]
    assert [(n.op_type, n.name, list(n.output)) for n in rest] == [
        (n.op_type, n.name, list(n.output)) for n in before.graph.node
    ]
    edges = set()
    for old, new in zip(before.graph.node, rest, strict=True):
        for slot, (was, now) in enumerate(zip(old.input, new.input, strict=True)):
            if was == now:
                continue
            dq = producers[now]
            q = producers[dq.input[0]]
            assert (q.op_type, dq.op_type) == PAIR
            assert q.input[0] == was
            assert list(q.input[1:]) == list(dq.input[1:])
            assert (stored[q.input[1]] > 0).all()
            assert stored[q.input[2]].dtype == np.int8
            assert not stored[q.input[2]].any()
            assert list(q.attribute) == list(dq.attribute)
            edges.add((old.output[0], slot))
    return edges


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Return a copy with its nodes in another order that is as valid."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rng, waiting = random.Random(seed), list(model.graph.node)
    known = {i.name for i in model.graph.input} | {t.name for t in model.graph.initializer} | {""}
    del copy.graph.node[:]
    while waiting:
        chosen = rng.choice([n for n in waiting if known.issuperset(n.input)])
        waiting.remove(chosen)
        known.update(chosen.output)
        copy.graph.node.append(chosen)
    return copy


def renamed(model: onnx.ModelProto, seed: int) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return a copy in which every tensor and node has another name, and the new name of each
    tensor.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    tensors = sorted(
        {n for item in graph.node for n in (*item.input, *item.output)}
        | {i.name for i in (*graph.input, *graph.initializer, *graph.value_info)} - {""}
    )
    numbers = list(range(len(tensors)))
    random.Random(seed).shuffle(numbers)
    names = {
        "": "",
        **{tensor: f"t{number}" for tensor, number in zip(tensors, numbers, strict=True)},
    }
    for item in graph.node:
        item.name = f"renamed/{item.name}" if item.name else ""
        item.input[:] = [names[i] for i in item.input]
        item.output[:] = [names[o] for o in item.output]
    for field in (graph.input, graph.output, graph.initializer, graph.value_info):
        for entry in field:
            entry.name = names[entry.name]
    return copy, names


class _Grower:
    """A graph under construction: the tensors so far, with their shapes."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16), label="weights"))
        self.opset: int = draw(st.integers(13, 21), label="opset")
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (1, 2, 4, 4)}
        self.reusable: dict[tuple[int, ...], list[str]] = {}

    def add(self, op: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """Append a node whose name is its own, empty, or shared with others."""
        output = f"{op.lower()}_{len(self.nodes)}"
        name = self.draw(
            st.sampled_from([f"{op}/{len(self.nodes)}", "", "same", "#3"]), label="name"
        )
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        self.shapes[output] = shape
        return output

    def pick(self, rank: int) -> str:
        """Return one of the tensors of a rank."""
        return str(
            self.draw(
                st.sampled_from(
                    [name for name, shape in self.shapes.items() if len(shape) == rank]
                ),
                label="reads",
            )
        )

    def weight(self, *shape: int) -> str:
        """Return a weight: an initializer, a Constant, one behind Identity or Transpose, or one
        that is used already.
        """
        form = self.draw(
            st.sampled_from(["initializer", "constant", "identity", "transpose", "again"]),
            label="weight",
        )
        known = self.reusable.get(shape, [])
        if form == "again" and known:
            return str(self.draw(st.sampled_from(known)))
        fan_in = max(math.prod(shape[1:]), 1)
        values = (self.rng.standard_normal(shape) / math.sqrt(fan_in)).astype(np.float32)
        name = f"weight_{len(self.nodes)}_{len(self.weights)}"
        if form == "constant":
            self.nodes.append(
                helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values))
            )
        elif form in ("identity", "transpose"):
            order = list(range(len(shape)))[::-1]
            turned = form == "transpose" and len(shape) > 1
            self.weights[f"{name}_stored"] = (
                np.ascontiguousarray(values.transpose(order)) if turned else values
            )
            attributes: dict[str, Any] = {"perm": order} if turned else {}
            self.nodes.append(
                helper.make_node(
                    "Transpose" if turned else "Identity",
                    [f"{name}_stored"],
                    [name],
                    name=name,
                    **attributes,
                )
            )
        else:
            self.weights[name] = values
        self.reusable.setdefault(shape, []).append(name)
        return name

    def grow(self, op: str) -> None:
        """Append one operator, and what it needs before it."""
        if op in OTHERS:
            OTHERS[op](self)
            return
        flat = op in ("Gemm", "MatMul2")
        if flat and not any(len(shape) == 2 for shape in self.shapes.values()):
            self.grow("GlobalAveragePool")
        read = self.pick(2 if flat else 4)
        shape = self.shapes[read]
        special = {
            "Conv": self._conv,
            "Add": self._add,
            "Concat": self._concat,
            "GlobalAveragePool": self._flat,
        }
        if op in ("Gemm", "MatMul2", "MatMul"):
            self._product(op, read, shape)
        elif op in special:
            special[op](read, shape)
        elif op == "ConvTranspose":
            self.add(op, [read, self.weight(shape[1], 2, 1, 1)], (1, 2, *shape[2:]))
        else:
            pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
            turned = (*shape[:2], shape[3], shape[2]) if op == "Transpose" else shape
            self.add(
                op,
                [read],
                turned,
                **{"MaxPool": pool, "AveragePool": pool, "Transpose": {"perm": [0, 1, 3, 2]}}.get(
                    op, {}
                ),
            )

    def _concat(self, read: str, shape: tuple[int, ...]) -> None:
        other = str(
            self.draw(
                st.sampled_from(
                    [n for n, s in self.shapes.items() if len(s) == 4 and s[2:] == shape[2:]]
                ),
                label="other",
            )
        )
        channels = shape[1] + self.shapes[other][1]
        if channels <= 8:
            self.add("Concat", [read, other], (1, channels, *shape[2:]), axis=1)

    def _flat(self, read: str, shape: tuple[int, ...]) -> None:
        pooled = self.add("GlobalAveragePool", [read], (*shape[:2], 1, 1))
        self.add("Flatten", [pooled], (1, shape[1]))

    def _conv(self, read: str, shape: tuple[int, ...]) -> None:
        depthwise = self.draw(st.booleans(), label="depthwise")
        kernel = self.draw(st.sampled_from([1, 3]), label="kernel")
        channels = shape[1] if depthwise else self.draw(st.sampled_from([2, 4]), label="channels")
        inputs = [read, self.weight(channels, 1 if depthwise else shape[1], kernel, kernel)]
        if self.draw(st.booleans(), label="bias"):
            inputs.append(self.weight(channels))
        self.add(
            "Conv",
            inputs,
            (1, channels, *shape[2:]),
            pads=[kernel // 2] * 4,
            group=shape[1] if depthwise else 1,
        )

    def _add(self, read: str, shape: tuple[int, ...]) -> None:
        others = [n for n, s in self.shapes.items() if s == shape]
        other = (
            str(self.draw(st.sampled_from(others)))
            if self.draw(st.booleans(), label="branches")
            else self.weight(1, shape[1], 1, 1)
        )
        terms = [read, other] if len(shape) == 4 else [read, read]
        self.add("Add", terms[:: self.draw(st.sampled_from([1, -1]))], shape)

    def _product(self, op: str, read: str, shape: tuple[int, ...]) -> None:
        size = self.draw(st.sampled_from([2, 3]), label="size")
        if op == "Gemm":
            turned = self.draw(st.booleans(), label="transB")
            weight = self.weight(size, shape[-1]) if turned else self.weight(shape[-1], size)
            self.add("Gemm", [read, weight], (1, size), transB=int(turned))
        elif (
            op == "MatMul" and shape[-1] == shape[-2] and self.draw(st.booleans(), label="computed")
        ):
            self.add("MatMul", [read, read], shape)
        else:
            self.add("MatMul", [read, self.weight(shape[-1], shape[-1])], shape)

    # What follows grows whole patterns, one method for each.

    def integers(self, *values: int) -> str:
        """Return an int64 initializer."""
        name = f"integers_{len(self.nodes)}_{len(self.weights)}"
        self.weights[name] = np.asarray(values, np.int64)
        return name

    def scalar(self, number: float) -> str:
        """Return a float initializer without dimensions."""
        name = f"scalar_{len(self.nodes)}_{len(self.weights)}"
        self.weights[name] = np.asarray(number, np.float32)
        return name

    def positive(self, size: int) -> str:
        """Return a stored vector of positive numbers."""
        name = f"positive_{len(self.nodes)}_{len(self.weights)}"
        self.weights[name] = self.rng.uniform(0.5, 1.5, size).astype(np.float32)
        return name

    def sequence(self) -> str:
        """Return a tensor [1, places, channels]: one of those there are, or a plane turned into
        one.
        """
        known = [name for name, shape in self.shapes.items() if len(shape) == 3]
        if known and self.draw(st.booleans(), label="again"):
            return str(self.draw(st.sampled_from(known), label="reads"))
        read = self.pick(4)
        _, channels, high, wide = self.shapes[read]
        flat = self.add(
            "Reshape", [read, self.integers(1, channels, -1)], (1, channels, high * wide)
        )
        return self.add("Transpose", [flat], (1, high * wide, channels), perm=[0, 2, 1])

    def conv1(self) -> None:
        read = self.sequence()
        _, places, channels = self.shapes[read]
        turned = self.add("Transpose", [read], (1, channels, places), perm=[0, 2, 1])
        self.add("Conv", [turned, self.weight(2, channels, 3)], (1, 2, places), pads=[1, 1])

    def conv3(self) -> None:
        read = self.pick(4)
        _, channels, high, wide = self.shapes[read]
        cube = self.add(
            "Reshape",
            [read, self.integers(1, channels, 1, high, wide)],
            (1, channels, 1, high, wide),
        )
        cube = self.add(
            "Conv",
            [cube, self.weight(2, channels, 1, 3, 3)],
            (1, 2, 1, high, wide),
            pads=[0, 1, 1, 0, 1, 1],
        )
        self.add("Reshape", [cube, self.integers(1, 2, high, wide)], (1, 2, high, wide))

    def recurrent(self) -> None:
        op, gates = self.draw(st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)]), label="cell")
        read = self.sequence()
        _, places, channels = self.shapes[read]
        turned = self.add("Transpose", [read], (places, 1, channels), perm=[1, 0, 2])
        weights = [self.weight(1, gates * 2, channels), self.weight(1, gates * 2, 2)]
        states = self.add(op, [turned, *weights], (places, 1, 1, 2), hidden_size=2)
        merged = self.add("Squeeze", [states, self.integers(1)], (places, 1, 2))
        self.add("Transpose", [merged], (1, places, 2), perm=[1, 0, 2])
        for name in (turned, states, merged):
            self.shapes.pop(name)

    def einsum(self) -> None:
        read = self.sequence()
        _, places, channels = self.shapes[read]
        if self.draw(st.booleans(), label="computed"):
            self.add("Einsum", [read, read], (1, places, places), equation="bij,bkj->bik")
        else:
            self.add(
                "Einsum", [read, self.weight(channels, 3)], (1, places, 3), equation="bij,jk->bik"
            )

    def linear(self, read: str, size: int) -> str:
        """Append a MatMul with a weight and a bias Add."""
        channels = self.shapes[read][-1]
        shape = (*self.shapes[read][:-1], size)
        return self.add(
            "Add",
            [self.add("MatMul", [read, self.weight(channels, size)], shape), self.weight(size)],
            shape,
        )

    def attention(self) -> None:
        read = self.sequence()
        _, places, channels = self.shapes[read]
        query, key, value = (self.linear(read, channels) for _ in range(3))
        turned = self.add("Transpose", [key], (1, channels, places), perm=[0, 2, 1])
        scores = self.add(
            "Mul",
            [self.add("MatMul", [query, turned], (1, places, places)), self.scalar(0.5)],
            (1, places, places),
        )
        if self.draw(st.booleans(), label="mask"):
            scores = self.add("Add", [scores, self.weight(1, 1, places)], (1, places, places))
        mixed = self.add(
            "MatMul",
            [self.add("Softmax", [scores], (1, places, places), axis=-1), value],
            (1, places, channels),
        )
        self.add("Add", [read, self.linear(mixed, channels)], (1, places, channels))

    def layer_norm(self) -> None:
        read = self.sequence()
        shape = self.shapes[read]
        if self.opset >= 17 and self.draw(st.booleans(), label="fused"):
            self.add(
                "LayerNormalization",
                [read, self.weight(shape[-1]), self.weight(shape[-1])],
                shape,
                axis=-1,
            )
            return
        means = {"axes": [-1]} if self.opset < 18 else {}
        axes = [] if self.opset < 18 else [self.integers(-1)]
        mean = self.add("ReduceMean", [read, *axes], (*shape[:-1], 1), **means)
        centred = self.add("Sub", [read, mean], shape)
        spread = self.add(
            "ReduceMean",
            [self.add("Mul", [centred, centred], shape), *axes],
            (*shape[:-1], 1),
            **means,
        )
        self.add(
            "Div",
            [
                centred,
                self.add(
                    "Sqrt",
                    [self.add("Add", [spread, self.scalar(1e-3)], (*shape[:-1], 1))],
                    (*shape[:-1], 1),
                ),
            ],
            shape,
        )

    def feed_forward(self) -> None:
        """Append a residual feed-forward layer with a Gelu spelt out."""
        read = self.sequence()
        shape = self.shapes[read]
        hidden = self.linear(read, 3)
        wide = self.shapes[hidden]
        erf = self.add("Erf", [self.add("Div", [hidden, self.scalar(1.4142)], wide)], wide)
        gated = self.add("Mul", [hidden, self.add("Add", [erf, self.scalar(1.0)], wide)], wide)
        self.add(
            "Add",
            [self.linear(self.add("Mul", [gated, self.scalar(0.5)], wide), shape[-1]), read],
            shape,
        )

    def batch_norm(self) -> None:
        read = self.pick(4)
        channels = self.shapes[read][1]
        self.add(
            "BatchNormalization",
            [read, *(self.positive(channels) for _ in range(4))],
            self.shapes[read],
        )

    def instance_norm(self) -> None:
        read = self.pick(4)
        self.add(
            "InstanceNormalization",
            [read, self.positive(self.shapes[read][1]), self.weight(self.shapes[read][1])],
            self.shapes[read],
        )

    def squeeze_excite(self) -> None:
        read = self.pick(4)
        shape = self.shapes[read]
        pooled = self.add("GlobalAveragePool", [read], (*shape[:2], 1, 1))
        gate = self.add("Conv", [pooled, self.weight(shape[1], shape[1], 1, 1)], (*shape[:2], 1, 1))
        self.add("Mul", [read, self.add("HardSigmoid", [gate], (*shape[:2], 1, 1))], shape)

    def silu(self) -> None:
        read = self.pick(4)
        shape = self.shapes[read]
        convolved = self.add("Conv", [read, self.weight(2, shape[1], 1, 1)], (1, 2, *shape[2:]))
        self.add(
            "Mul",
            [convolved, self.add("Sigmoid", [convolved], (1, 2, *shape[2:]))],
            (1, 2, *shape[2:]),
        )

    def projection(self) -> None:
        """Append a residual Add with a convolution on both sides, one behind the other's
        activation or both next to the fork.
        """
        read = self.pick(4)
        channels = self.shapes[read][1]
        shape = (1, 2, *self.shapes[read][2:])
        branches = [
            self.add("Conv", [read, self.weight(2, channels, 1, 1)], shape) for _ in range(2)
        ]
        if self.draw(st.booleans(), label="deeper"):
            branches[0] = self.add(
                "Conv", [self.add("Relu", branches[:1], shape), self.weight(2, 2, 1, 1)], shape
            )
        self.add("Add", branches[:: self.draw(st.sampled_from([1, -1]), label="sides")], shape)

    def layer_scale(self) -> None:
        read = self.pick(4)
        shape = self.shapes[read]
        branch = self.add(
            "Conv", [read, self.weight(shape[1], 1, 3, 3)], shape, group=shape[1], pads=[1, 1, 1, 1]
        )
        self.add(
            "Add", [self.add("Mul", [branch, self.weight(1, shape[1], 1, 1)], shape), read], shape
        )

    def resize(self) -> None:
        read = self.pick(4)
        _, channels, high, wide = self.shapes[read]
        if max(high, wide) <= 4:
            self.weights.setdefault("scales", np.asarray([1, 1, 2, 2], np.float32))
            self.add(
                "Resize", [read, "", "scales"], (1, channels, 2 * high, 2 * wide), mode="nearest"
            )

    def split(self) -> None:
        read = self.pick(4)
        shape = self.shapes[read]
        half = shape[1] // 2
        if half:
            parts = (half, shape[1] - half)
            first = self.add("Split", [read, self.integers(*parts)], (1, half, *shape[2:]), axis=1)
            second = f"{first}_rest"
            self.nodes[-1].output.append(second)
            self.shapes[second] = (1, parts[1], *shape[2:])

    def slice(self) -> None:
        read = self.pick(4)
        shape = self.shapes[read]
        if shape[3] > 2:
            window = [self.integers(0), self.integers(2), self.integers(3)]
            self.add("Slice", [read, *window], (*shape[:3], 2))

    def pad(self) -> None:
        read = self.pick(4)
        _, channels, high, wide = self.shapes[read]
        if max(high, wide) <= 4:
            self.add(
                "Pad",
                [read, self.integers(0, 0, 1, 1, 0, 0, 1, 1)],
                (1, channels, high + 2, wide + 2),
            )

    def activation(self) -> None:
        read = self.pick(4)
        op = self.draw(
            st.sampled_from(["Clip", "LeakyRelu", "PRelu", "HardSwish", "Tanh", "Elu"]),
            label="activation",
        )
        op = "Elu" if op == "HardSwish" and self.opset < 14 else op
        more = {
            "Clip": [self.scalar(0.0), self.scalar(6.0)],
            "PRelu": [self.weight(self.shapes[read][1], 1, 1)],
        }.get(op, [])
        self.add(op, [read, *more], self.shapes[read])

    def lookup(self) -> None:
        """Append a table of embeddings that constant indices read, beside a sequence that they are
        added to.
        """
        read = self.sequence()
        _, places, channels = self.shapes[read]
        rows = self.add(
            "Gather",
            [self.weight(6, channels), self.integers(*(i % 6 for i in range(places)))],
            (places, channels),
        )
        self.shapes.pop(rows)
        self.add("Add", [read, rows], (1, places, channels))

    def shape_arithmetic(self) -> None:
        """Append a Reshape to a shape that is computed from the tensor's own."""
        read = self.pick(4)
        sizes = self.add("Shape", [read], (4,))
        channels = self.add("Gather", [sizes, self.integers(1)], (1,))
        target = self.add("Concat", [self.integers(1), channels, self.integers(-1)], (3,), axis=0)
        for name in (sizes, channels, target):
            self.shapes.pop(name)
        shape = self.shapes[read]
        self.add("Reshape", [read, target], (1, shape[1], shape[2] * shape[3]))


_USUAL = (
    "Conv",
    "Conv",
    "Conv",
    "Relu",
    "Add",
    "Add",
    "Concat",
    "MaxPool",
    "GlobalAveragePool",
    "Gemm",
    "MatMul",
    "MatMul2",
    "Identity",
)
OPERATORS = (*_USUAL, "AveragePool", "ConvTranspose", "Sigmoid", "Transpose")
#: Patterns of several operators, of other ranks and kinds.
OTHERS = {
    name.replace("_", "-"): getattr(_Grower, name)
    for name in (
        "activation",
        "attention",
        "batch_norm",
        "conv1",
        "conv3",
        "einsum",
        "feed_forward",
        "instance_norm",
        "layer_norm",
        "layer_scale",
        "lookup",
        "pad",
        "projection",
        "recurrent",
        "resize",
        "shape_arithmetic",
        "silu",
        "slice",
        "split",
        "squeeze_excite",
    )
}
EVERYTHING = (*OPERATORS, *OTHERS, "projection", "projection", "projection")


@st.composite
def models(draw: Any, most: int = 9, operators: Sequence[str] = OPERATORS) -> onnx.ModelProto:
    """Return a random float model of these operators with at least one Conv; every tensor that no
    node reads is an output.
    """
    grower = _Grower(draw)
    grower.grow("Conv")
    for op in draw(st.lists(st.sampled_from(operators), max_size=most), label="operators"):
        grower.grow(op)
    read = {i for n in grower.nodes for i in n.input}
    computed = [n for n in grower.shapes if n != "x"]
    outputs = {
        name: grower.shapes[name]
        for name in computed
        if name not in read or draw(st.integers(0, 7), label="output too") == 0
    }
    model = build(
        grower.nodes,
        {"x": grower.shapes["x"]},
        outputs,
        grower.weights,
        opset=grower.opset,
        ir=draw(st.sampled_from([7, 8, 10])),
    )
    if draw(st.booleans(), label="value_info"):
        model = onnx.shape_inference.infer_shapes(model)
    if draw(st.booleans(), label="metadata"):
        model.graph.node[0].doc_string = "said by the exporter"
        model.metadata_props.add(key="exporter", value="of the tests")
    return model
