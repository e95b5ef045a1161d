"""Products behind an attention that keep an INT4 weight: where they are written so, and undone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

import qdq
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.row_products import find_row_products, remove_row_products
from qdq.target import parse_target
from qdq.validation.validator import validate
from tests.support.cli_runner import run as cli
from tests.support.cli_runner import save
from tests.support.graphs import build, node, noise, random_feed, run

SM86 = parse_target("rtx:sm86")
OUT = "out"
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


def attention(
    width: int = 256, heads: int = 8, *, is_transposed: bool = True, is_computed: bool = False
) -> ModelProto:
    """Return an attention of one head size, and the products around it.

    With `is_computed` the shape of the last Reshape is computed, as exporters of torch leave it.
    """
    size = width // heads
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", f"w{name}"], f"{name}0", f"{name}_product"),
            node("Reshape", [f"{name}0", "split"], f"{name}1"),
            node("Transpose", [f"{name}1"], f"{name}2", perm=order),
        ]
    nodes += [
        node("MatMul", ["q2", "k2"], "scores", "scores"),
        node("Softmax", ["scores"], "shares", axis=-1),
        node("MatMul", ["shares", "v2"], "mixed", "mixed"),
    ]
    moved = "mixed"
    if is_transposed:
        nodes.append(node("Transpose", ["mixed"], "moved", perm=[0, 2, 1, 3]))
        moved = "moved"
    join = "join"
    if is_computed:
        nodes += [node("Shape", ["x"], "dims"), node("Gather", ["dims", "first"], "row_count")]
        nodes.append(node("Unsqueeze", ["row_count", "zero"], "rows"))
        nodes.append(node("Concat", ["one", "rows", "rest"], "computed", axis=0))
        join = "computed"
    nodes += [
        node("Reshape", [moved, join], "joined"),
        node("MatMul", ["joined", "wo"], "y", OUT),
    ]
    weights = {f"w{name}": 0.1 * noise(width, width) for name in "qkvo"}
    shapes = {"split": np.array([1, 16, heads, size]), "join": np.array([1, 16, width])}
    if is_computed:
        shapes |= {"first": np.array(1), "zero": np.array([0]), "one": np.array([1])}
        shapes["rest"] = np.array([width])
        del shapes["join"]
    return build(nodes, {"x": [1, 16, width]}, {"y": [1, 16, width]}, weights | shapes)


def quantize(model: ModelProto, float_type: str = "fp16", **options: object) -> ModelProto:
    """Return the model with INT4 weights, and the rest in another type."""
    result = qdq.quantize(  # type: ignore[call-overload]
        model, None, rules="tensorrt-int4", targets=[SM86], float_type=float_type, **options
    )
    assert result.findings == ()
    return result.model  # type: ignore[no-any-return]


@pytest.mark.parametrize("store", ["float", "quantized"])
@pytest.mark.parametrize("float_type", ["fp16", "bf16"])
def test_the_output_projection_gets_a_matrix_for_each_row(float_type: str, store: str) -> None:
    model = quantize(attention(), float_type, store_weights=store)
    (output,) = find_row_products(QdqGraph(model.graph)).values()
    assert output == ("y_float16" if float_type == "fp16" else "y_bfloat16")
    onnx.checker.check_model(model, full_check=True)
    assert qdq.check(model) == ()


def test_a_computed_shape_changes_nothing() -> None:
    model = quantize(attention(is_computed=True))
    assert len(find_row_products(QdqGraph(model.graph))) == 1
    feed = random_feed(attention())
    expected = run(quantize(attention()), feed)[0]
    np.testing.assert_allclose(run(model, feed)[0], expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("model", "float_type", "rules"),
    [
        (attention(), "fp32", "tensorrt-int4"),
        (attention(is_transposed=False), "fp16", "tensorrt-int4"),
        (attention(), "fp16", "tensorrt-fp8"),
    ],
)
def test_other_products_stay_as_they_are(model: ModelProto, float_type: str, rules: str) -> None:
    data = None if "int4" in rules else [random_feed(model)]
    target = "rtx:sm89" if "fp8" in rules else "rtx:sm86"
    result = qdq.quantize(model, data, rules=rules, targets=[target], float_type=float_type)
    assert find_row_products(QdqGraph(result.model.graph)) == {}


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.sampled_from([4, 8, 16]), st.booleans())
def test_removing_gives_the_model_before_and_stripping_the_cast_one(
    heads: int, is_stored: bool
) -> None:
    store = "quantized" if is_stored else "float"
    model = quantize(attention(heads=heads), store_weights=store)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    remove_row_products(bare)
    assert find_row_products(QdqGraph(bare.graph)) == {}
    assert [n.op_type for n in bare.graph.node].count("Squeeze") == 0
    assert qdq.strip(bare).SerializeToString() == qdq.strip(model).SerializeToString()
    feed = random_feed(attention(heads=heads))
    # ONNX Runtime multiplies the one in FP16 and the other in FP32, with Casts.
    np.testing.assert_allclose(run(bare, feed)[0], run(model, feed)[0], rtol=0.01, atol=0.01)
    once = bare.SerializeToString()
    remove_row_products(bare)
    assert bare.SerializeToString() == once


def test_the_pairs_are_read_behind_the_changed_product(tmp_path: Path) -> None:
    path = save(quantize(attention()), tmp_path / "model.onnx")
    code, text, _ = cli("explain", path, OUT, "--rules", "tensorrt-int4")
    assert code == 0, text
    again = qdq.quantize(
        path, None, rules="tensorrt-int4", targets=[SM86], existing="keep", float_type="fp16"
    )
    assert again.existing is not None
    assert again.existing.changes.pairs == ()
    assert len(find_row_products(QdqGraph(again.model.graph))) == 1


@needs_compiler
def test_the_engine_keeps_the_weight_in_int4() -> None:
    float_model = attention()
    model = quantize(float_model)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    remove_row_products(bare)
    kept: list[int] = []
    for candidate in (model, bare):
        (engine,) = validate(float_model, candidate, targets=[SM86]).engines
        assert not engine.failure
        kept.append(sum(layer.int4 for layer in engine.layers))
        assert (engine.broken_promises == ()) == (candidate is model)
    assert kept == [4, 3]


def test_a_second_cast_changes_nothing() -> None:
    model = quantize(attention())
    again = qdq.cast(model, "fp16", targets=[SM86]).model
    assert again.graph == model.graph
    names = list(find_row_products(QdqGraph(model.graph)))
    assert list(find_row_products(QdqGraph(again.graph))) == names
