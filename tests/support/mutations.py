"""Random damage and foreign habits for the pairs of a quantized model, one small change each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qdq.graph.bodies import node_bodies

Graph = onnx.GraphProto
Mutation = Callable[[Graph, random.Random], None]
PAIR = (
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "QLinearAdd",
    "QGemm",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
)

_TYPES = (
    "INT8",
    "UINT8",
    "INT16",
    "UINT16",
    "INT32",
    "INT4",
    "UINT4",
    "FLOAT8E4M3FN",
    "FLOAT8E5M2",
    "FLOAT",
    "INT64",
    "STRING",
    "UNDEFINED",
)


def mutated(model: onnx.ModelProto, seed: int, count: int) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy with some changes, each in the main graph or a body, and what they are
    called.
    """
    copy, rng, names = onnx.ModelProto(), random.Random(seed), []
    copy.CopyFrom(model)
    for _ in range(count):
        mutation = rng.choice(MUTATIONS)
        graphs = [graph for graph in graphs_of(copy.graph) if nodes(graph)]
        if graphs:
            mutation(rng.choice(graphs), rng)
            names.append(mutation.__name__)
    return copy, names


def graphs_of(graph: Graph) -> Iterator[Graph]:
    """Yield a graph and its bodies."""
    yield graph
    for item in graph.node:
        for _, body in node_bodies(item):
            yield from graphs_of(body)


def nodes(graph: Graph, *operators: str) -> list[onnx.NodeProto]:
    """Return the Q and DQ of a graph, or some of them."""
    return [n for n in graph.node if n.op_type in (operators or PAIR)]


def _any(graph: Graph, rng: random.Random, *operators: str) -> onnx.NodeProto:
    candidates = nodes(graph, *operators) or nodes(graph) or list(graph.node)
    return rng.choice(candidates)


def _fresh(graph: Graph) -> str:
    return f"mutant{len(graph.node)}_{len(graph.initializer)}"


def _insert(graph: Graph, before: onnx.NodeProto, *inserted: onnx.NodeProto) -> None:
    order = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    at = next(i for i, n in enumerate(graph.node) if n is before or n == before)
    order[at:at] = inserted
    del graph.node[:]
    graph.node.extend(order)


def _store(graph: Graph, array: np.ndarray) -> str:
    name = _fresh(graph)
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def without_zero_point(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    del node.input[2:]


def without_any_zero_point(graph: Graph, rng: random.Random) -> None:
    for node in nodes(graph):
        del node.input[2:]


def empty_zero_point(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    if len(node.input) > 2:
        node.input[2] = ""


def without_scale(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    del node.input[rng.choice((0, 1)) :]


def empty_scale(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    if len(node.input) > 1:
        node.input[rng.choice((0, 1))] = ""


def without_output(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    if rng.random() < 0.5:
        del node.output[:]
    elif node.output:
        node.output[0] = ""


def odd_scale(graph: Graph, rng: random.Random) -> None:
    values: tuple[Any, ...] = (
        0.0,
        -1.0,
        np.nan,
        np.inf,
        1e-42,
        3e38,
        [0.1],
        [[0.1]],
        [0.1, 0.2],
        [0.1, 0.2, 0.3],
        [],
        np.ones((2, 2)),
        np.float16(0.1),
        np.float64(0.1),
        np.int32(1),
    )
    chosen = rng.choice(values)
    array = (
        np.array(chosen)
        if isinstance(chosen, (np.generic, np.ndarray))
        else np.array(chosen, np.float32)
    )
    name = _store(graph, array)
    for node in nodes(graph) if rng.random() < 0.3 else [_any(graph, rng)]:
        if len(node.input) > 1:
            node.input[1] = name


def odd_zero_point(graph: Graph, rng: random.Random) -> None:
    shape = rng.choice(((), (1,), (2,), (3,), (4,), (0,), (1, 1)))
    code = TensorProto.DataType.Value(rng.choice(_TYPES))
    tensor = TensorProto(
        name=_fresh(graph),
        data_type=code,
        dims=shape,
        raw_data=bytes([rng.choice((0, 5))]) * 8 * int(np.prod(shape)),
    )
    graph.initializer.append(tensor)
    node = _any(graph, rng)
    if len(node.input) > 2:
        node.input[2] = tensor.name


def computed_scale(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    if len(node.input) > 1:
        name = _fresh(graph)
        inserted = helper.make_node(
            rng.choice(("Identity", "Neg", "Unknown")), [node.input[1]], [name]
        )
        kept, node.input[1] = node.input[1], name
        del kept
        _insert(graph, node, inserted)


def scale_from_outside(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    if len(node.input) > 1:
        node.input[1] = _fresh(graph)
        if rng.random() < 0.5:
            graph.input.append(
                helper.make_tensor_value_info(
                    node.input[1], TensorProto.FLOAT, rng.choice(([], [1], ["n"], None))
                )
            )


def odd_axis(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    kept = [a for a in node.attribute if a.name != "axis"]
    del node.attribute[:]
    node.attribute.extend(
        [*kept, helper.make_attribute("axis", rng.choice((-1, -4, 0, 1, 3, 7, -9, 1 << 40)))]
    )


def axis_of_another_type(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", rng.choice((1.5, "one", [0, 1]))))


def blocks(graph: Graph, rng: random.Random) -> None:
    _any(graph, rng).attribute.append(helper.make_attribute("block_size", rng.choice((0, 2, -1))))


def other_attributes(graph: Graph, rng: random.Random) -> None:
    name, value = rng.choice(
        (
            ("output_dtype", 3),
            ("output_dtype", 99),
            ("saturate", 0),
            ("precision", 1),
            ("unknown", "x"),
        )
    )
    _any(graph, rng).attribute.append(helper.make_attribute(name, value))


def equal_names(graph: Graph, rng: random.Random) -> None:
    chosen = rng.choice(("same", ""))
    for node in graph.node:
        node.name = chosen


def vectors(graph: Graph, rng: random.Random) -> None:
    for tensor in graph.initializer:
        if not tensor.dims and rng.random() < 0.5:
            tensor.dims.append(1)


def without_q(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng, "QuantizeLinear")
    for other in graph.node:
        other.input[:] = [
            node.input[0] if node.output and node.input and name == node.output[0] else name
            for name in other.input
        ]
    graph.node.remove(node)


def without_dq(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng, "DequantizeLinear")
    for other in graph.node:
        other.input[:] = [
            node.input[0] if node.output and node.input and name == node.output[0] else name
            for name in other.input
        ]
    graph.node.remove(node)


def removed(graph: Graph, rng: random.Random) -> None:
    graph.node.remove(_any(graph, rng))


def constants_as_nodes(graph: Graph, rng: random.Random) -> None:
    moved = [t for t in graph.initializer if rng.random() < 0.5]
    listed = {t.name for t in moved}
    inserted = [helper.make_node("Constant", [], [t.name], value=t) for t in moved]
    kept = [
        TensorProto.FromString(t.SerializeToString())
        for t in graph.initializer
        if t.name not in listed
    ]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if graph.node:
        _insert(graph, graph.node[0], *inserted)


def constants_as_values(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    if len(node.input) > 1:
        name = _fresh(graph)
        value = rng.choice(
            (
                {"value_float": 0.5},
                {"value_floats": [0.5]},
                {"value_int": 1},
                {},
                {"value_string": "a"},
            )
        )
        node.input[1] = name
        _insert(graph, node, helper.make_node("Constant", [], [name], **value))


def listed_as_inputs(graph: Graph, rng: random.Random) -> None:
    graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in graph.initializer
    )


def initializer_lost(graph: Graph, rng: random.Random) -> None:
    if graph.initializer:
        del graph.initializer[rng.randrange(len(graph.initializer))]


def initializer_twice(graph: Graph, rng: random.Random) -> None:
    if graph.initializer:
        graph.initializer.append(rng.choice(list(graph.initializer)))


def values_lost(graph: Graph, rng: random.Random) -> None:
    if graph.initializer:
        tensor = rng.choice(list(graph.initializer))
        rng.choice(
            (
                lambda: tensor.ClearField("raw_data"),
                lambda: setattr(tensor, "data_type", rng.choice((0, 8, 10, 16, 99))),
                lambda: tensor.dims.append(0),
            )
        )()


def dims_of_another(graph: Graph, rng: random.Random) -> None:
    if graph.initializer:
        rng.choice(list(graph.initializer)).dims.extend(rng.choice(([-1], [1], [2, 2])))


def pair_twice(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng, "DequantizeLinear")
    if len(node.input) < 2 or not node.output:
        return
    kept, once, quantized = node.output[0], _fresh(graph), f"{_fresh(graph)}_q"
    rest = list(node.input[1:])
    node.output[0] = once
    at = next(i for i, n in enumerate(graph.node) if n is node or n == node)
    order = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    order[at + 1 : at + 1] = [
        helper.make_node("QuantizeLinear", [once, *rest], [quantized]),
        helper.make_node("DequantizeLinear", [quantized, *rest], [kept]),
    ]
    del graph.node[:]
    graph.node.extend(order)


def another_dq(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng, "DequantizeLinear")
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    copy.output[:] = [_fresh(graph)]
    graph.node.append(copy)
    graph.output.append(helper.make_tensor_value_info(copy.output[0], TensorProto.FLOAT, None))


def output_of_half(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng)
    if node.output:
        graph.output.append(
            helper.make_tensor_value_info(
                node.output[0],
                rng.choice((TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT)),
                None,
            )
        )


def something_between(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng, "DequantizeLinear")
    if node.input:
        name = _fresh(graph)
        inserted = helper.make_node(
            rng.choice(("Identity", "Relu", "Transpose", "Clip", "MaxPool")),
            [node.input[0]],
            [name],
        )
        node.input[0] = name
        _insert(graph, node, inserted)


def foreign_domain(graph: Graph, rng: random.Random) -> None:
    for node in nodes(graph) if rng.random() < 0.5 else [_any(graph, rng)]:
        node.domain = rng.choice(("com.microsoft", "ai.onnx", "trt", ""))


def reversed_order(graph: Graph, rng: random.Random) -> None:
    order = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    del graph.node[:]
    graph.node.extend(reversed(order))


def circle(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng, "QuantizeLinear")
    if node.input and graph.node[-1].output:
        node.input[0] = rng.choice(
            [node.output[0] if node.output else "", graph.node[-1].output[0]]
        )


def external(graph: Graph, rng: random.Random) -> None:
    if graph.initializer:
        tensor = rng.choice(list(graph.initializer))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(
            key="location", value=rng.choice(("absent.bin", "../absent.bin", ""))
        )


def integers_into_layer(graph: Graph, rng: random.Random) -> None:
    node = _any(graph, rng, "QuantizeLinear")
    readers = [n for n in graph.node if n.op_type not in PAIR and n.input]
    if node.output and readers:
        rng.choice(readers).input[0] = node.output[0]


def sparse(graph: Graph, rng: random.Random) -> None:
    if graph.initializer:
        tensor = graph.initializer[0]
        values = numpy_helper.from_array(np.ones(1, np.float32), tensor.name)
        graph.sparse_initializer.append(
            helper.make_sparse_tensor(
                values, numpy_helper.from_array(np.zeros(1, np.int64)), list(tensor.dims) or [1]
            )
        )
        del graph.initializer[0]


MUTATIONS: tuple[Mutation, ...] = (
    without_zero_point,
    without_any_zero_point,
    empty_zero_point,
    without_scale,
    empty_scale,
    without_output,
    odd_scale,
    odd_zero_point,
    computed_scale,
    scale_from_outside,
    odd_axis,
    axis_of_another_type,
    blocks,
    other_attributes,
    equal_names,
    vectors,
    without_q,
    without_dq,
    removed,
    constants_as_nodes,
    constants_as_values,
    listed_as_inputs,
    initializer_lost,
    initializer_twice,
    values_lost,
    dims_of_another,
    pair_twice,
    another_dq,
    output_of_half,
    something_between,
    foreign_domain,
    reversed_order,
    circle,
    external,
    integers_into_layer,
    sparse,
)
