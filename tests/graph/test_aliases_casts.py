"""Which Casts behind a DQ leave the layer after them in INT8, as TensorRT-RTX 1.7.1 builds it."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from qdq.graph.aliases import can_cast_dequantized, cast_type, is_float_cast, keeps_values
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from tests.support.cast_models import CastModel

TYPES = {
    "F": TensorProto.FLOAT,
    "H": TensorProto.FLOAT16,
    "B": TensorProto.BFLOAT16,
    "D": TensorProto.DOUBLE,
}


@pytest.mark.parametrize(
    "types",
    ["F", "H", "FH", "FB", "FF", "HH", "FHH", "FHFH", "HFH", "BFB", "HBH", "BHB", "FDF", "HFHFH"],
)
def test_casts_behind_which_a_layer_multiplies_in_int8(types: str) -> None:
    assert can_cast_dequantized([TYPES[letter] for letter in types])


@pytest.mark.parametrize("types", ["HF", "BF", "HB", "BH", "FHF", "FBF", "FBH", "FHB", "HFB"])
def test_casts_behind_which_it_multiplies_in_float(types: str) -> None:
    assert not can_cast_dequantized([TYPES[letter] for letter in types])


def test_which_nodes_keep_the_values_of_their_input() -> None:
    model = CastModel()
    index = GraphIndex(load(model.build(model.chain("x", "FHHIDSTPRF"))))
    kept = [node.label for node in index.nodes if keeps_values(index, node)]
    casts = [node.label for node in index.nodes if is_float_cast(index, node)]
    assert kept == [
        "xF",
        "xFH",
        "xFHH",
        "xFHHI",
        "xFHHID",
        "xFHHIDS",
        "xFHHIDST",
        "xFHHIDSTPRF",
        "end",
    ]
    assert casts == ["xF", "xFH", "xFHH", "xFHHIDSTPRF"]
    assert cast_type(index, index.by_label["xF"]) == TensorProto.FLOAT
    assert cast_type(index, index.by_label["xFHHI"]) == 0
