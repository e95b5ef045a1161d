"""A graph that is read once has the labels, producers, readers, pairs and stored tensors of the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qdq.errors import ModelError
from qdq.graph.bodies import node_labels
from qdq.graph.pairs import count_readers, find_pairs, stored_tensors
from qdq.graph.qdq_graph import QdqGraph
from tests.support.graphs import draw_graphs
from tests.support.mutations import mutated
from tests.support.pair_models import branches, small


def stored_around(graph: QdqGraph) -> dict[str, onnx.TensorProto]:
    """Return what the graphs around a body store."""
    return {} if graph.outer is None else graph.outer.stored


@draw_graphs(60)
@given(st.integers(0, 10**6), st.integers(0, 3), st.booleans())
def test_a_graph_has_what_the_functions_on_protobuf_find(
    seed: int, count: int, in_body: bool
) -> None:
    start = branches(quantized=True) if in_body else small(x="x_dq", weight=("ws", "wz"))
    model, _ = mutated(start, seed, count)
    main = QdqGraph(model.graph)
    for graph in main.graphs:
        around = stored_around(graph)
        assert graph.labels == node_labels(graph.graph)
        assert graph.readers == count_readers(graph.graph)
        assert graph.pairs == find_pairs(graph.graph, around)
        assert list(graph.stored) == list(around | stored_tensors(graph.graph))
        for name, position in graph.producers.items():
            assert name in graph.graph.node[position].output
    operators = {(node.domain, node.op_type) for part in main.graphs for node in part.nodes}
    assert main.all_operators == operators


def test_a_body_has_its_path_and_what_is_stored_around_it() -> None:
    main = QdqGraph(branches(quantized=True, name="choice").graph)
    bodies = {graph.path: graph for graph in main.graphs}
    assert bodies.keys() == {"", "choice.then_branch", "choice.else_branch"}
    body = bodies["choice.then_branch"]
    assert body.qualified_label(2) == "choice.then_branch/product"
    assert {"s", "z", "w"} <= body.stored.keys()
    assert [pair.output for pair in body.pairs] == ["r_dq"]
    assert main.pairs == ()
    assert body.outer is main
    assert main.readers["w"] == 1


def test_a_parameter_is_read_once() -> None:
    model = small(x="x_dq")
    model.graph.initializer.append(numpy_helper.from_array(np.array(["text"]), "text"))
    graph = QdqGraph(model.graph)
    scale = graph.read_parameter("s")
    assert scale is not None
    assert scale == np.float32(0.5)
    assert graph.read_parameter("s") is scale
    assert graph.read_parameter("text") is None
    assert graph.read_parameter("x") is None
    assert graph.read_parameter("") is None


def test_a_parameter_that_cannot_be_read_is_an_error() -> None:
    model = small(x="x_dq")
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "s")
    scale.raw_data = b"\0"
    with pytest.raises(ModelError, match="model: the values of 's' cannot be read"):
        QdqGraph(model.graph).read_parameter("s")
