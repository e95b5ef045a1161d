"""Pools between pairs whose scales stay in float32: no Cast separates them from the pairs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import qdq
from qdq.graph.source import canonical_bytes
from tests.support.float_models import parse
from tests.support.graphs import noise

POOLED = """
g (float[1,8,6,6] x) => (float[1,8] y) {
  [first] a = Conv (x, w)
  r = Relu (a)
  [pool] p = GlobalAveragePool (r)
  [move] f = Flatten (p)
  [last] y = MatMul (f, v)
}"""


def pooled(text: str = POOLED) -> onnx.ModelProto:
    return parse(text, w=noise(8, 8, 1, 1), v=noise(8, 8))


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with pairs, for a target that has an INT8 average pool."""
    return qdq.quantize(model, [{"x": noise(1, 8, 6, 6)}], targets="rtx:sm120").model


def kept(model: onnx.ModelProto, scales: str) -> dict[str, str]:
    return {node.node: node.because for node in qdq.cast(model, scales=scales).plan.kept}


def test_a_pool_between_pairs_and_the_moves_after_it_stay_float32() -> None:
    assert kept(quantized(pooled()), "fp32") == {"pool": "pairs", "move": "pairs"}


@pytest.mark.parametrize("scales", ["float", "fp32"])
def test_no_pair_is_unwanted_then(scales: str) -> None:
    model = qdq.cast(quantized(pooled()), scales=scales).model
    assert qdq.check(model) == ()
    assert qdq.check(qdq.cast(model, scales=scales).model) == ()


def test_no_cast_is_between_the_pool_and_its_pairs() -> None:
    model = qdq.cast(quantized(pooled()), scales="fp32").model
    producers = {name: node for node in model.graph.node for name in node.output}
    (pool,) = (node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    assert producers[pool.input[0]].op_type == "DequantizeLinear"
    (scale,) = (t for t in model.graph.initializer if t.name == producers[pool.input[0]].input[1])
    assert scale.data_type == TensorProto.FLOAT


def test_scales_of_the_layers_leave_the_pool_in_16_bits() -> None:
    assert kept(quantized(pooled()), "float") == {}


def test_a_pool_that_others_read_too_is_cast() -> None:
    text = POOLED.replace("(float[1,8] y)", "(float[1,8] y, float[1,8,1,1] p)")
    assert kept(quantized(pooled(text)), "fp32") == {}


def test_casting_again_writes_the_same_bytes() -> None:
    model = qdq.cast(quantized(pooled()), scales="fp32").model
    again = qdq.cast(model, scales="fp32").model
    assert canonical_bytes(again) == canonical_bytes(model)


def test_pairs_on_embedding_rows_are_wanted_behind_casts() -> None:
    """Built for sm86, they save bytes with Casts around them too."""
    text = """
    g (int64[2,6] ids, int64[2,6] places) => (float[2,6,8] y) {
      [words] a = Gather (t, ids)
      [places_row] b = Gather (u, places)
      [sum] s = Add (a, b)
      [norm] n = LayerNormalization (s, g)
      [last] y = MatMul (n, v)
    }"""
    model = parse(text, t=noise(20, 8), u=noise(9, 8), v=noise(8, 8), g=noise(8))
    indices = np.arange(12).reshape(2, 6) % 9
    samples = [{"ids": indices, "places": indices}]
    options = qdq.FloatOptions("fp16", scales="fp32")
    result = qdq.quantize(model, samples, float_type=options, targets="rtx:sm86")
    quantized_tensors = {placement.edge.tensor for placement in result.plan.placements}
    assert {"a", "b"} <= quantized_tensors
    assert qdq.check(result.model) == ()
