"""Casting generated models: valid, idempotent, close, and undone as far as pairs go."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from fuzz.graph_generator import generate_model
from hypothesis import given
from onnx import GraphProto

import qdq
from qdq.data.feeds import NOISE, open_feeds
from qdq.graph.bodies import all_graphs
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source, canonical_bytes
from qdq.runtime.session import exact_options, open_session, run_outputs
from tests.support.graphs import Array, draw_graphs, models, random_feed, run

#: The largest difference of outputs, relative to the largest value of an output.
TOLERANCE = 0.02
SEEDS = range(32)


def run_source(source: Source, feed: dict[str, Array]) -> list[Array]:
    index = GraphIndex(source)
    session = open_session(index, [], exact_options())
    return run_outputs(session, index, list(index.outputs), feed)


def chained_casts(graph: GraphProto) -> list[str]:
    """The Casts of a graph that read the result of another Cast."""
    results = {n.output[0] for n in graph.node if n.op_type == "Cast"}
    return [n.name for n in graph.node if n.op_type == "Cast" and n.input[0] in results]


def repeated_casts(graph: GraphProto) -> list[tuple[str, int]]:
    casts = Counter((n.input[0], n.attribute[0].i) for n in graph.node if n.op_type == "Cast")
    return [key for key, count in casts.items() if count > 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_generated_models_stay_valid_and_close(seed: int) -> None:
    io = "fp16" if seed % 3 == 0 else "keep"
    result = qdq.cast(generate_model(seed), io=io)

    onnx.checker.check_model(result.model, full_check=True)
    again = qdq.cast(result.model, io=io)
    assert canonical_bytes(again.model) == canonical_bytes(result.model)
    for graph in all_graphs(result.model.graph):
        assert chained_casts(graph) == []
        assert repeated_casts(graph) == []
    feed = open_feeds(GraphIndex(result.source), NOISE).first()
    types = {v.name: v.type.tensor_type.elem_type for v in result.model.graph.input}
    cast_feed = {
        name: values.astype(onnx.helper.tensor_dtype_to_np_dtype(types[name]))
        for name, values in feed.items()
    }
    expected = run_source(result.source, feed)
    actual = run_source(result.output_source, cast_feed)
    for before, after in zip(expected, actual, strict=True):
        limit = TOLERANCE * max(1.0, np.abs(before).max(initial=0.0))
        assert np.abs(before.astype(float) - after.astype(float)).max(initial=0.0) <= limit


@pytest.mark.parametrize("seed", SEEDS[:16])
def test_stripping_a_quantized_cast_model_gives_the_cast_float_model(seed: int) -> None:
    recovery = qdq.Recovery(methods="off", guard=False)
    try:
        result = qdq.quantize(generate_model(seed), NOISE, float_type="fp16", recovery=recovery)
    except qdq.QdqError as error:
        assert "nothing to quantize" in str(error)  # noqa: PT017 the other outcome
        return

    assert result.findings == ()
    onnx.checker.check_model(result.model, full_check=True)
    float_model = qdq.cast(result.source).model
    assert canonical_bytes(qdq.strip(result.model)) == canonical_bytes(float_model)
    assert canonical_bytes(qdq.cast(result.model).model) == canonical_bytes(result.model)


@draw_graphs(examples=20)
@given(model=models())
def test_drawn_models_stay_close(model: onnx.ModelProto) -> None:
    result = qdq.cast(model)
    feed = random_feed(model)

    expected, actual = run(result.source.model, feed), run(result.model, feed)

    for before, after in zip(expected, actual, strict=True):
        limit = TOLERANCE * max(1.0, np.abs(before).max(initial=0.0))
        assert np.abs(before - after).max(initial=0.0) <= limit
