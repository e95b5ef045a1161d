"""The same graph with other names and its nodes in another order, bodies too."""

from __future__ import annotations

import random

import onnx

from tests.support.mutations import graphs_of


def rename(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """Return a copy in which every tensor and node of the graph and its bodies is renamed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graphs = list(graphs_of(copy.graph))
    names = {
        name for graph in graphs for node in graph.node for name in (*node.input, *node.output)
    }
    names |= {i.name for g in graphs for i in (*g.input, *g.output, *g.initializer, *g.value_info)}
    numbers = rng.sample(range(10 * len(names)), len(names))
    new = {name: f"n{n}" for name, n in zip(sorted(names), numbers, strict=True)} | {"": ""}
    for graph in graphs:
        for node in graph.node:
            node.name = f"node{rng.randrange(1 << 40)}" if node.name else ""
            node.input[:] = [new[name] for name in node.input]
            node.output[:] = [new[name] for name in node.output]
        for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            item.name = new[item.name]
    return copy


def shuffle(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """Return a copy with the nodes of the main graph in another valid order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    waiting = list(model.graph.node)
    computed = {name for node in waiting for name in node.output}
    del copy.graph.node[:]
    while waiting:
        ready = [node for node in waiting if computed.isdisjoint(_all_inputs(node))]
        chosen = rng.choice(ready)
        waiting.remove(chosen)
        computed.difference_update(chosen.output)
        copy.graph.node.append(chosen)
    return copy


def _all_inputs(node: onnx.NodeProto) -> set[str]:
    """Return what a node and its bodies read."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for graph in graphs_of(attribute.g):
                names.update(name for inner in graph.node for name in inner.input)
    return names
