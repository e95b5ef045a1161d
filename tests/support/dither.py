"""How far noise of the size of the scales moves a quantized model's outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.graphs import Array, run
from tests.support.mutations import graphs_of

#: Draws of the noise, and the factor between the largest deviation among them and the bound.
#: Rounding errors of one sample can all point the same direction, which draws do not.
DRAWS, MARGIN = 8, 4.0

#: Float rounding in either runtime, as a share of an output's largest value.
_FLOAT_SHARE = 1e-4


def rounding_bounds(quantized: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """Return a bound of what rounding by the model's pairs does to its outputs, by experiment.

    Each pair is replaced by uniform noise of its scale's width, as rounding makes, so that the
    bound is as large as the network amplifies its scales: through loops, saturation and all.
    Clipping is not allowed for. Each bound is a number for a whole output.
    """
    reference = run(without_pairs(quantized), feed)
    largest = [np.zeros(()) for _ in reference]
    for seed in range(DRAWS):
        noisy = run(with_noise(quantized, seed), feed)
        for i, (calm, moved) in enumerate(zip(reference, noisy, strict=True)):
            largest[i] = np.maximum(largest[i], np.abs(moved - calm).max(initial=0.0))
    bounds = []
    for deviation, calm in zip(largest, reference, strict=True):
        share = max(_FLOAT_SHARE, 2 * float(np.finfo(calm.dtype).eps))  # of float16: 2**-9
        float_error = share * max(1.0, float(np.abs(calm).max(initial=0.0)))
        bounds.append(np.asarray(MARGIN * deviation + float_error))
    return bounds


def without_pairs(quantized: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that computes with floats what the pairs round."""
    return with_noise(quantized, 0, width=0.0)


def with_noise(quantized: onnx.ModelProto, seed: int, width: float = 1.0) -> onnx.ModelProto:
    """Return a copy in which every pair adds noise of `width` times its scale to its tensor."""
    copy = onnx.ModelProto()
    copy.CopyFrom(quantized)
    graphs = list(graphs_of(copy.graph))
    weights = {t.name: numpy_helper.to_array(t) for g in graphs for t in g.initializer}
    rng = np.random.default_rng(seed)
    for graph in reversed(graphs):  # bodies first: replacing the nodes of a graph copies its own
        _replace_pairs(graph, weights, rng, width)
    return copy


def _replace_pairs(
    graph: onnx.GraphProto, weights: Mapping[str, Array], rng: np.random.Generator, width: float
) -> None:
    quantizers = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear"}
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in quantizers:
            source, output = quantizers[node.input[0]].input[0], node.output[0]
            scale = weights[node.input[1]]
            if source in weights:
                rounded = weights[source] + _weight_noise(weights[source], scale, node, rng) * width
                stored = numpy_helper.from_array(rounded.astype(weights[source].dtype), output)
                graph.initializer.append(stored)
            else:
                nodes += _noise_nodes(source, output, float(scale.max()) * width, rng)
        elif node.op_type != "QuantizeLinear":
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)


def _weight_noise(
    weight: Array, scale: Array, node: onnx.NodeProto, rng: np.random.Generator
) -> Array:
    """Return the same error for every turn of a loop, as rounding a weight makes."""
    if scale.ndim:
        axes = [a.i for a in node.attribute if a.name == "axis"] or [1]
        shape = [1] * weight.ndim
        shape[axes[0]] = -1
        scale = scale.reshape(shape)
    return rng.uniform(-0.5, 0.5, weight.shape) * scale


def _noise_nodes(
    source: str, output: str, width: float, rng: np.random.Generator
) -> list[onnx.NodeProto]:
    """Return nodes that add noise, another in every turn of a loop."""
    drawn = helper.make_node(
        "RandomUniformLike",
        [source],
        [f"{output}_noise"],
        low=-width / 2,
        high=width / 2,
        seed=float(rng.integers(1 << 20)),
    )
    return [drawn, helper.make_node("Add", [source, f"{output}_noise"], [output])]
