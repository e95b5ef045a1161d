"""The pieces of a model's content are its serialisation, whatever the model holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper, parser

from qdq.errors import ModelError
from qdq.graph import model_content
from qdq.graph.model_content import iterate_content

LARGE = 1 << 14  # float32 values: a piece of their own
SHAPES = st.sampled_from([(LARGE,), (LARGE + 1, 3), (64, 256, 2), (2, 2), (0,), (), (0, LARGE)])


def make_model(shapes: list[tuple[int, ...]]) -> ModelProto:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17], producer_name: "p">'
        "g (float[N] x) => (float[N] y) { t = Relu (x) y = Abs (t) }"
    )
    for number, shape in enumerate(shapes):
        values = np.full(shape, number, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, f"w{number}"))
    return model


def join(model: ModelProto) -> bytes:
    return b"".join(iterate_content(model))


@settings(deadline=None)
@given(st.lists(SHAPES, max_size=5), st.text(max_size=3), st.booleans())
def test_the_pieces_are_the_serialisation(
    shapes: list[tuple[int, ...]], doc_string: str, has_metadata: bool
) -> None:
    model = make_model(shapes)
    for tensor in model.graph.initializer:
        tensor.doc_string = doc_string  # it is stored before the values
    if has_metadata:
        model.metadata_props.add(key="k", value="v")
        model.graph.metadata_props.add(key="k", value="v")  # stored after the weights
        for tensor in model.graph.initializer:
            tensor.metadata_props.add(key="k", value="v")  # stored after the values

    assert join(model) == model.SerializeToString()


def test_large_values_are_pieces_of_their_own() -> None:
    model = make_model([(LARGE,), (2,), (LARGE, 2)])

    longest = sorted(map(len, iterate_content(model)))[-2:]

    assert longest == [4 * LARGE, 8 * LARGE]


def test_values_that_are_not_raw_are_serialised_as_they_are() -> None:
    model = make_model([(LARGE,)])
    listed = onnx.helper.make_tensor("listed", TensorProto.FLOAT, [LARGE], np.arange(LARGE))
    model.graph.initializer.insert(0, listed)

    assert join(model) == model.SerializeToString()


def test_more_values_than_the_dimensions_need_are_kept() -> None:
    model = make_model([(LARGE,), (LARGE,)])
    model.graph.initializer[0].raw_data += b"more"

    assert join(model) == model.SerializeToString()


@pytest.mark.parametrize("place", ["model", "graph", "weight"])
def test_fields_of_a_newer_onnx_are_kept(place: str) -> None:
    model = make_model([(LARGE,)])
    message = {"model": model, "graph": model.graph, "weight": model.graph.initializer[0]}[place]
    message.MergeFromString(b"\xf8\x7f\x01")  # field 2047, which ONNX does not have

    assert b"\xf8\x7f\x01" in join(model)
    assert join(model) == model.SerializeToString()


def test_a_model_too_large_for_protobuf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model([(LARGE,)])
    monkeypatch.setattr(model_content, "_LARGEST_MESSAGE", model.ByteSize() - 1)

    with pytest.raises(ModelError, match="larger than 2 GiB"):
        join(model)

    monkeypatch.setattr(model_content, "_LARGEST_MESSAGE", model.ByteSize())
    assert join(model) == model.SerializeToString()
