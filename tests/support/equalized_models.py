"""Chains of layers whose channels differ in range, and what equalization makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto

from qdq.graph.equalized_weights import Equalization
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source
from qdq.observers.observer import RunSettings
from qdq.pipeline.quantize_model import quantize
from qdq.planning.planner import plan
from qdq.recovery.equalization import equalize, find_equalizations
from tests.support.graphs import Array, build, node, random_feed

#: What stands between two layers of a chain.
LINKS = ("nothing", "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "scale", "norm", "skip")
#: Those after which float16 has no subnormal values, for weights and inputs that are short numbers.
HALF_LINKS = ("nothing", "Relu", "MaxPool")
LAYERS = ("plain", "grouped", "depthwise", "transposed", "split")
_SIZE = 8
_CHANNELS = 8


def make_samples(model: onnx.ModelProto, count: int = 2) -> list[dict[str, Array]]:
    """Return samples of noise for a model."""
    return [random_feed(model, seed) for seed in range(count)]


def equalize_model(
    model: onnx.ModelProto, samples: list[dict[str, Array]] | None
) -> tuple[Source, tuple[Equalization, ...]]:
    """Return the equalized source of a model, by the default plan."""
    from qdq.graph.loader import load

    source = load(model)
    equalizations = find_equalizations(
        GraphIndex(source), plan(source), samples, RunSettings(cores=1)
    )
    return equalize(source, equalizations), equalizations


def quantize_equalized(source: Source, samples: list[dict[str, Array]]) -> onnx.ModelProto:
    """Return the quantized form of an equalized source."""
    return quantize(source, samples).model


class ChainBuilder:
    """Adds layers and what is between them to a chain of [1, 8, 8, 8] tensors."""

    def __init__(self, seed: int, dtype: type = np.float32) -> None:
        self._random = np.random.default_rng(seed)
        self._dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.tensor = "x"

    def weight(self, *shape: int, spread: int = 0) -> str:
        """Return the name of a new weight of multiples of 1/16, spread by factors of its rows.

        The products and sums of such values are exact in float16, too.
        """
        name = f"w{len(self.weights)}"
        values = self._random.integers(-8, 9, shape) / 16
        if spread:
            most = min(spread, 3) if self._dtype is np.float16 else spread
            exponents = self._random.integers(0, most + 1, shape[0])
            values *= np.exp2(exponents).reshape(-1, *[1] * (len(shape) - 1))
        self.weights[name] = values.astype(self._dtype)
        return name

    def add(self, op: str, *operands: str, **attributes: Any) -> str:
        """Add a node that reads the last tensor and some weights."""
        output = f"t{len(self.nodes)}"
        self.nodes.append(node(op, [self.tensor, *operands], output, **attributes))
        self.tensor = output
        return output

    def add_layer(self, kind: str) -> None:
        """Add a layer, with rows of weights that differ in range."""
        groups = {"plain": 1, "grouped": 2, "depthwise": _CHANNELS, "transposed": 2, "split": 4}[
            kind
        ]
        weight = self.weight(_CHANNELS, _CHANNELS // groups, 3, 3, spread=5)
        op = "ConvTranspose" if kind == "transposed" else "Conv"
        bias = (self.weight(_CHANNELS),) if kind != "split" else ()
        self.add(op, weight, *bias, group=groups, pads=[1, 1, 1, 1])

    def add_link(self, kind: str) -> None:
        """Add the operators between two layers."""
        if kind == "PRelu":
            self.add("PRelu", self.weight(_CHANNELS, 1, 1))
        elif kind in ("Relu", "LeakyRelu"):
            self.add(kind)
        elif kind in ("MaxPool", "AveragePool"):
            self.add(kind, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == "scale":
            self.add("Mul", self.weight(_CHANNELS, 1, 1, spread=4))
            self.add("Add", self.weight(_CHANNELS, 1, 1))
        elif kind == "norm":
            names = [self.weight(_CHANNELS) for _ in range(3)]
            variance = f"v{len(self.weights)}"
            self.weights[variance] = np.ones(_CHANNELS, self._dtype)
            self.add("BatchNormalization", *names, variance)
        elif kind == "skip":
            skipped = self.tensor
            self.add_layer("plain")
            self.add("Add", skipped)

    def build(self, outputs: int = 1) -> onnx.ModelProto:
        """Return the model of the chain."""
        dtype = TensorProto.FLOAT16 if self._dtype is np.float16 else TensorProto.FLOAT
        names = [item.output[0] for item in self.nodes[-outputs:]]
        return build(
            self.nodes, {"x": [1, _CHANNELS, _SIZE, _SIZE]}, names, self.weights, dtype=dtype
        )


@st.composite
def convolution_chains(draw: st.DrawFn, dtype: type = np.float32) -> onnx.ModelProto:
    """Draw layers with operators between them."""
    chain = ChainBuilder(draw(st.integers(0, 1 << 16)), dtype)
    is_half = dtype is np.float16
    chain.add_layer("plain")
    for _ in range(1 if is_half else draw(st.integers(1, 3))):
        chain.add_link(draw(st.sampled_from(HALF_LINKS if is_half else LINKS)))
        chain.add_layer(draw(st.sampled_from(LAYERS)))
    return chain.build()


@st.composite
def matrix_chains(draw: st.DrawFn, dtype: type = np.float32) -> onnx.ModelProto:
    """Draw a normalization before three matrix products, or Gemm after Gemm."""
    chain = ChainBuilder(draw(st.integers(0, 1 << 16)), dtype)
    elem_type = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    if draw(st.booleans()):
        scale, bias = chain.weight(16, spread=5), chain.weight(16)
        normalized = chain.add("LayerNormalization", scale, bias)
        for _ in range(3):
            chain.tensor = normalized
            chain.add("MatMul", chain.weight(16, 12))
        names = [item.output[0] for item in chain.nodes[-3:]]
        shape = [1, 5, 16]
    else:
        transposed = draw(st.integers(0, 1))
        chain.add("Gemm", chain.weight(12, 16, spread=5), chain.weight(12), transB=1)
        chain.add(draw(st.sampled_from(("Relu", "LeakyRelu", "Identity"))))
        dims = (8, 12) if transposed else (12, 8)
        chain.add("Gemm", chain.weight(*dims), chain.weight(1, 8), transB=transposed)
        names = [chain.tensor]
        shape = [5, 16]
    return build(chain.nodes, {"x": shape}, names, chain.weights, dtype=elem_type)
