"""Small float models for the tests: builders by hand, and a hypothesis strategy for random ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

NETWORKS = Path(__file__).resolve().parent.parent / "fixtures" / "networks"
CALIBRATION = NETWORKS / "digits-calibration.npz"
DIGITS = ("digits_cnn", "digits_plain", "digits_attention")

PAIR = ("QuantizeLinear", "DequantizeLinear")


def noise(*shape: int, seed: int = 0, dtype: type = np.float32) -> Array:
    """Return seeded standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def value(name: str, shape: Sequence[int | str | None], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Return a graph input or output."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


def node(op: str, inputs: Sequence[str], output: str | Sequence[str], name: str | None = None, **attributes: Any) -> onnx.NodeProto:
    """Return a node, named after its first output unless told otherwise."""
    outputs = [output] if isinstance(output, str) else list(output)
    return helper.make_node(op, list(inputs), outputs, name=f"{outputs[0]}_node" if name is None else name, **attributes)


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
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir, **more)
    if not shapes:
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
        del model.graph.output[:]
        model.graph.output.extend(inferred)
    return model


def convolution(opset: int = 17, batch: int | str | None = 1) -> onnx.ModelProto:
    """Return Conv, Relu, Conv."""
    return build(
        [node("Conv", ["x", "w1", "b1"], "a", pads=[1, 1, 1, 1]), node("Relu", ["a"], "r"), node("Conv", ["r", "w2"], "y")],
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
    content = _nameless(model).SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    outputs: list[Array] = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, dict(feed))
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
    for given in model.graph.input:
        if given.name not in stored:
            tensor = given.type.tensor_type
            shape = [d.dim_value or 2 for d in tensor.shape.dim]
            feed[given.name] = rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return feed


def initializer(model: onnx.ModelProto, name: str) -> Array:
    """Return the value of an initializer."""
    (found,) = (t for t in model.graph.initializer if t.name == name)
    array: Array = numpy_helper.to_array(found)
    return array


def identities(model: onnx.ModelProto) -> dict[tuple[str, int], str]:
    """Return each edge of a model without Q/DQ as (first output of its node, slot) -> tensor."""
    return {(n.output[0], slot): tensor for n in model.graph.node for slot, tensor in enumerate(n.input) if tensor}


def paired_edges(before: onnx.ModelProto, after: onnx.ModelProto) -> set[tuple[str, int]]:
    """Return the edges of `before` that a whole Q/DQ pair stands on in `after`; fails where anything else differs.

    Written without qdq's own code: an edge has a pair if its tensor is reached through a DequantizeLinear and
    a QuantizeLinear that read the same int8 zero point of zeros and the same positive scale.
    """
    producers = {output: n for n in after.graph.node for output in n.output}
    stored = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    rest = [n for n in after.graph.node if n.op_type not in PAIR]
    assert [(n.op_type, n.name, list(n.output)) for n in rest] == [(n.op_type, n.name, list(n.output)) for n in before.graph.node]
    found = set()
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
            found.add((old.output[0], slot))
    return found


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
    """Return a copy in which every tensor and node has another name, and the new name of each tensor."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    tensors = sorted({n for item in graph.node for n in (*item.input, *item.output)} | {i.name for i in (*graph.input, *graph.initializer)} - {""})
    numbers = list(range(len(tensors)))
    random.Random(seed).shuffle(numbers)
    names = {"": "", **{tensor: f"t{number}" for tensor, number in zip(tensors, numbers, strict=True)}}
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
        name = self.draw(st.sampled_from([f"{op}/{len(self.nodes)}", "", "same", "#3"]), label="name")
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        self.shapes[output] = shape
        return output

    def pick(self, rank: int) -> str:
        """Return one of the tensors of a rank."""
        return str(self.draw(st.sampled_from([name for name, shape in self.shapes.items() if len(shape) == rank]), label="reads"))

    def weight(self, *shape: int) -> str:
        """Return a weight: an initializer, a Constant, one behind Identity or Transpose, or one that is used already."""
        form = self.draw(st.sampled_from(["initializer", "constant", "identity", "transpose", "again"]), label="weight")
        known = self.reusable.get(shape, [])
        if form == "again" and known:
            return str(self.draw(st.sampled_from(known)))
        values = (self.rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(np.float32)
        name = f"weight_{len(self.nodes)}_{len(self.weights)}"
        if form == "constant":
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values)))
        elif form in ("identity", "transpose"):
            order = list(range(len(shape)))[::-1]
            turned = form == "transpose" and len(shape) > 1
            self.weights[f"{name}_stored"] = np.ascontiguousarray(values.transpose(order)) if turned else values
            attributes = {"perm": order} if turned else {}
            self.nodes.append(helper.make_node("Transpose" if turned else "Identity", [f"{name}_stored"], [name], name=name, **attributes))
        else:
            self.weights[name] = values
        self.reusable.setdefault(shape, []).append(name)
        return name

    def grow(self, op: str) -> None:
        """Append one operator, and what it needs before it."""
        flat = op in ("Gemm", "MatMul2")
        if flat and not any(len(shape) == 2 for shape in self.shapes.values()):
            self.grow("GlobalAveragePool")
        read = self.pick(2 if flat else 4)
        shape = self.shapes[read]
        special = {"Conv": self._conv, "Add": self._add, "Concat": self._concat, "GlobalAveragePool": self._flat}
        if op in ("Gemm", "MatMul2", "MatMul"):
            self._product(op, read, shape)
        elif op in special:
            special[op](read, shape)
        elif op == "ConvTranspose":
            self.add(op, [read, self.weight(shape[1], 2, 1, 1)], (1, 2, *shape[2:]))
        else:
            pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
            self.add(op, [read], shape, **{"MaxPool": pool, "AveragePool": pool, "Transpose": {"perm": [0, 1, 3, 2]}}.get(op, {}))

    def _concat(self, read: str, shape: tuple[int, ...]) -> None:
        other = str(self.draw(st.sampled_from([n for n, s in self.shapes.items() if len(s) == 4 and s[2:] == shape[2:]]), label="other"))
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
        self.add("Conv", inputs, (1, channels, *shape[2:]), pads=[kernel // 2] * 4, group=shape[1] if depthwise else 1)

    def _add(self, read: str, shape: tuple[int, ...]) -> None:
        others = [n for n, s in self.shapes.items() if s == shape]
        other = str(self.draw(st.sampled_from(others))) if self.draw(st.booleans(), label="branches") else self.weight(1, shape[1], 1, 1)
        terms = [read, other] if len(shape) == 4 else [read, read]
        self.add("Add", terms[:: self.draw(st.sampled_from([1, -1]))], shape)

    def _product(self, op: str, read: str, shape: tuple[int, ...]) -> None:
        size = self.draw(st.sampled_from([2, 3]), label="size")
        if op == "Gemm":
            turned = self.draw(st.booleans(), label="transB")
            weight = self.weight(size, shape[-1]) if turned else self.weight(shape[-1], size)
            self.add("Gemm", [read, weight], (1, size), transB=int(turned))
        elif op == "MatMul" and shape[-1] == shape[-2] and self.draw(st.booleans(), label="computed"):
            self.add("MatMul", [read, read], shape)
        else:
            self.add("MatMul", [read, self.weight(shape[-1], shape[-1])], shape)


_USUAL = ("Conv", "Conv", "Conv", "Relu", "Add", "Add", "Concat", "MaxPool", "GlobalAveragePool", "Gemm", "MatMul", "MatMul2", "Identity")
OPERATORS = (*_USUAL, "AveragePool", "ConvTranspose", "Sigmoid", "Transpose")


@st.composite
def models(draw: Any, most: int = 9) -> onnx.ModelProto:
    """Return a random float model with at least one Conv; every tensor that no node reads is an output."""
    grower = _Grower(draw)
    grower.grow("Conv")
    for op in draw(st.lists(st.sampled_from(OPERATORS), max_size=most), label="operators"):
        grower.grow(op)
    read = {i for n in grower.nodes for i in n.input}
    computed = [n for n in grower.shapes if n != "x"]
    outputs = [name for name in computed if name not in read or draw(st.integers(0, 7), label="output too") == 0]
    model = build(grower.nodes, {"x": grower.shapes["x"]}, outputs, grower.weights, opset=grower.opset, ir=draw(st.sampled_from([7, 8, 10])))
    if draw(st.booleans(), label="value_info"):
        model = onnx.shape_inference.infer_shapes(model)
    if draw(st.booleans(), label="metadata"):
        model.graph.node[0].doc_string = "said by the exporter"
        model.metadata_props.add(key="exporter", value="of the tests")
    return model
