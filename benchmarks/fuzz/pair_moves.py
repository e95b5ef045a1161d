"""Pairs of a quantized model taken out, put in and moved, as people and other tools place them."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_NEVER_BEHIND_PAIRS = ("QuantizeLinear", "DequantizeLinear", "Loop", "If", "Scan")


def move_pairs(
    model: onnx.ModelProto, amax: Mapping[str, float], rng: random.Random
) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy in which one to three pairs are placed otherwise, and what was done.

    `amax` holds the largest value of the tensors that may get a pair, by name.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        action = rng.choice(("remove", "remove", "add", "move"))
        if action in ("remove", "move"):
            done.append(_remove_pair(copy.graph, rng))
        if action in ("add", "move"):
            done.append(_add_pair(copy.graph, amax, rng))
    return copy, [change for change in done if change]


def _remove_pair(graph: onnx.GraphProto, rng: random.Random) -> str:
    """Let some readers, or all, read what a pair reads."""
    quantizers = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    pairs = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantizers
    ]
    if not pairs:
        return ""
    removed = rng.choice(pairs)
    source = quantizers[removed.input[0]].input[0]
    readers = [
        (node, slot)
        for node in graph.node
        for slot, name in enumerate(node.input)
        if name == removed.output[0]
    ]
    if len(readers) > 1 and rng.random() < 0.5:
        readers = [rng.choice(readers)]
    for node, slot in readers:
        node.input[slot] = source
    _drop_unread(graph)
    return f"removed {source} at {len(readers)} readers"


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove halves of pairs that nothing reads."""
    for op in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in graph.node for name in node.input}
        read |= {output.name for output in graph.output}
        for node in list(graph.node):
            if node.op_type == op and node.output[0] not in read:
                graph.node.remove(node)


def _add_pair(graph: onnx.GraphProto, amax: Mapping[str, float], rng: random.Random) -> str:
    """Put a pair on an edge from one node to another."""
    edges = [
        (position, slot)
        for position, node in enumerate(graph.node)
        if node.op_type not in _NEVER_BEHIND_PAIRS
        for slot, name in enumerate(node.input[:2])
        if amax.get(name, 0.0) > 0
    ]
    if not edges:
        return ""
    position, slot = rng.choice(edges)
    reader = graph.node[position]
    tensor, stem = reader.input[slot], f"added{rng.randrange(1 << 40)}"
    reader.input[slot] = f"{stem}_dq"
    change = f"added {tensor} -> {reader.op_type}[{slot}]"
    constants = (np.array(amax[tensor] / 127, _float_type(graph)), np.array(0, np.int8))
    for array, name in zip(constants, ("scale", "zero_point"), strict=True):
        graph.initializer.append(numpy_helper.from_array(array, f"{stem}_{name}"))
    operands = [f"{stem}_scale", f"{stem}_zero_point"]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    nodes[position:position] = [
        helper.make_node("QuantizeLinear", [tensor, *operands], [f"{stem}_q"]),
        helper.make_node("DequantizeLinear", [f"{stem}_q", *operands], [f"{stem}_dq"]),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return change


def _float_type(graph: onnx.GraphProto) -> type:
    is_half = graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    return np.float16 if is_half else np.float32
