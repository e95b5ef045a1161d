"""Casting generated models: valid, idempotent, close, and undone as far as pairs go."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import onnx
import pytest
from fuzz.graph_generator import generate_model
from hypothesis import given
from onnx import GraphProto

import qdq
from qdq.data.feeds import NOISE, open_feeds
from qdq.graph.bodies import all_graphs, node_bodies, qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source, canonical_bytes
from qdq.precision.float_plan import PAIRS
from qdq.runtime.session import exact_options, open_session, run_outputs
from tests.support.graphs import Array, draw_graphs, models, random_feed, run

#: The largest difference of outputs, relative to the largest value of an output.
TOLERANCE = 0.02
SEEDS = range(32)
#: The share of nodes that are kept in float32.
KEPT_SHARE = 0.25
OFF = qdq.Recovery(methods="off", guard=False)


def has_bodies_and_functions(model: onnx.ModelProto) -> bool:
    return bool(model.functions) and any(node_bodies(node) for node in model.graph.node)


#: Seeds of models with bodies and functions.
NESTED_SEEDS = [seed for seed in range(150) if has_bodies_and_functions(generate_model(seed))]
CAST_OPTIONS = [("fp16", "keep"), ("bf16", "keep"), ("fp16", "fp16")]


def quantized(seed: int, floats: str | qdq.FloatOptions) -> qdq.Quantized | None:
    """The quantized model of a seed; None where nothing in it can be quantized."""
    try:
        return qdq.quantize(generate_model(seed), NOISE, float_type=floats, recovery=OFF)
    except qdq.QdqError as error:
        assert "nothing to quantize" in str(error)  # noqa: PT017 the other outcome
        return None


def count_operators(model: onnx.ModelProto) -> Counter[str]:
    """The operators of a model but for Casts, in bodies too."""
    counts: Counter[str] = Counter()
    for graph in all_graphs(model.graph):
        counts.update(node.op_type for node in graph.node if node.op_type != "Cast")
    return counts


def drawn_labels(source: Source, seed: int) -> list[str]:
    """Globs of about a quarter of a model's nodes, in bodies too."""
    rng = random.Random(seed)
    labels = [
        qualified_name(path, node.label)
        for path, scope in GraphIndex(source).scopes.items()
        for node in scope.nodes
    ]
    return [label for label in labels if rng.random() < KEPT_SHARE]


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


@pytest.mark.parametrize("seed", NESTED_SEEDS)
def test_casting_twice_gives_the_same_bytes(seed: int) -> None:
    to, io = CAST_OPTIONS[seed % len(CAST_OPTIONS)]
    source = qdq.load(generate_model(seed))
    kept = drawn_labels(source, seed)
    first, second = (
        qdq.cast(generate_model(seed), to, io=io, keep_fp32=kept).model for _ in range(2)
    )

    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    again = qdq.cast(first, to, io=io)
    assert canonical_bytes(again.model) == canonical_bytes(first)
    onnx.checker.check_model(first, full_check=True)


@pytest.mark.parametrize("seed", NESTED_SEEDS)
def test_stripping_what_stays_float32_gives_the_float_model(seed: int) -> None:
    result = quantized(seed, "fp32")

    if result is not None:
        assert result.cast is None
        assert canonical_bytes(qdq.strip(result.model)) == canonical_bytes(result.source.model)


@pytest.mark.parametrize("seed", sorted({*SEEDS[:12], *NESTED_SEEDS}))
def test_stripping_a_quantized_cast_model_gives_the_cast_float_model(seed: int) -> None:
    to, io = CAST_OPTIONS[seed % len(CAST_OPTIONS)]
    result = quantized(seed, qdq.FloatOptions(to, io=io))
    if result is None:
        return

    assert result.findings == ()
    onnx.checker.check_model(result.model, full_check=True)
    float_model = qdq.cast(result.source, to, io=io).model
    assert canonical_bytes(qdq.strip(result.model)) == canonical_bytes(float_model)
    again = qdq.cast(result.model, to, io=io)
    assert canonical_bytes(again.model) == canonical_bytes(result.model)


@pytest.mark.parametrize("seed", NESTED_SEEDS)
def test_nodes_kept_in_float32_break_no_plan(seed: int) -> None:
    result = quantized(seed, "fp32")
    if result is None:
        return
    kept = drawn_labels(result.source, seed)
    cast = qdq.cast(result.model, keep_fp32=kept)

    assert [finding for finding in qdq.check(cast.model) if finding.severity != "note"] == []
    float_model = qdq.cast(qdq.strip(cast.source), keep_fp32=kept).model
    assert canonical_bytes(qdq.strip(cast.model)) == canonical_bytes(float_model)


@pytest.mark.parametrize("seed", NESTED_SEEDS)
def test_scales_in_float32_leave_the_cast_float_model_except_for_places(seed: int) -> None:
    """The Casts are elsewhere: after the tensor itself, or after its pair."""
    result = quantized(seed, qdq.FloatOptions("fp16", scales="fp32"))
    if result is None or result.cast is None:
        return
    pools = [kept.node for kept in result.cast.plan.kept if kept.because == PAIRS]
    stripped = qdq.strip(result.model)
    expected = qdq.cast(result.source, keep_fp32=pools).model

    assert count_operators(stripped) == count_operators(expected)
    assert all(chained_casts(graph) == [] for graph in all_graphs(stripped.graph))
    feed = open_feeds(GraphIndex(result.source), NOISE).first()
    outputs = zip(run(stripped, feed), run(expected, feed), strict=True)
    assert all(np.array_equal(*pair) for pair in outputs)


@draw_graphs(examples=20)
@given(model=models())
def test_drawn_models_stay_close(model: onnx.ModelProto) -> None:
    result = qdq.cast(model)
    feed = random_feed(model)

    expected, actual = run(result.source.model, feed), run(result.model, feed)

    for before, after in zip(expected, actual, strict=True):
        limit = TOLERANCE * max(1.0, np.abs(before).max(initial=0.0))
        assert np.abs(before - after).max(initial=0.0) <= limit
