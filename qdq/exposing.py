"""Leading tensors out of the bodies of If, Loop and Scan, as further outputs of a copy of the model, so that they can be observed.

A tensor of a Loop or Scan comes out once for each turn, stacked along a new first axis. A branch of
an If that lacks a tensor gives a filler in its place: an empty tensor, or inside a Loop or Scan,
where all turns must have one shape, a tensor of the lowest finite value throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from qdq.index import Array, GraphIndex, bodies_of, qualified
from qdq.loading import Source

_REPEATING = ("Loop", "Scan")
#: Of a Loop's body the first output is the condition, which the Loop itself does not give.
_CONDITION = 1


class Exposed(msgspec.Struct, frozen=True):
    """A tensor of a body that an output of the main graph gives."""

    #: The path of its graph and its name.
    graph: str
    tensor: str
    #: How many Loops and Scans stack it.
    levels: int

    def turns(self, values: Array) -> Iterator[Array]:
        """Yield what the tensor held each time that its graph ran; nothing where it did not."""
        if not values.size:
            return
        lowest = np.finfo(values.dtype).min if values.dtype.kind == "f" else None
        for turn in values.reshape(-1, *values.shape[self.levels :]) if self.levels else (values,):
            if lowest is None or turn.flat[0] != lowest or not (turn == lowest).all():
                yield turn


def expose(index: GraphIndex, tensors: Iterable[tuple[str, str]]) -> tuple[Source, dict[str, Exposed]]:
    """Return a copy of the model whose bodies give some tensors, each as (path, name), and these by the names that the main graph gets them under.

    The names are not declared as outputs of the main graph.
    """
    model = onnx.ModelProto()
    model.CopyFrom(index.source.model)
    graphs = dict(_by_path(index, model.graph))
    exposed: dict[str, Exposed] = {}
    for i, (path, tensor) in enumerate(tensors):
        scope, name, levels = index.scopes[path], tensor, 0
        given = _Given(scope.elem_type(tensor) or onnx.TensorProto.FLOAT, scope.shape(tensor))
        while scope.outer is not None:
            node, body = graphs[scope.outer.path].node[scope.position], graphs[scope.path]
            outside = f"qdq_observed_{i}_{len(scope.path)}"
            if node.op_type == "If":
                _give_filler(node, body, f"{outside}_filler", given if not levels and _repeats(scope.outer) else msgspec.structs.replace(given, shape=None))
            _give(node, body, name, outside, given.elem_type)
            levels += node.op_type in _REPEATING
            name, scope = outside, scope.outer
        exposed[name] = Exposed(path, tensor, levels)
    source = index.source
    return Source(source.path, model, source.digest, source.notes), exposed


class _Given(msgspec.Struct, frozen=True):
    """What is known of a tensor."""

    elem_type: int
    shape: tuple[int | None, ...] | None


def _give(node: onnx.NodeProto, body: onnx.GraphProto, tensor: str, outside: str, elem_type: int) -> None:
    """Make a tensor a further output of a body and of its node."""
    node.output.extend([""] * (len(body.output) - (_CONDITION if node.op_type == "Loop" else 0) - len(node.output)))
    node.output.append(outside)
    body.node.append(helper.make_node("Identity", [tensor], [f"{outside}_inside"]))
    body.output.append(helper.make_tensor_value_info(f"{outside}_inside", elem_type, None))
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)


def _give_filler(node: onnx.NodeProto, body: onnx.GraphProto, name: str, given: _Given) -> None:
    """Make a filler a further output of the other branches of an If."""
    known = tuple(d for d in given.shape or (None,) if d is not None)
    shape = known if len(known) == len(given.shape or (None,)) else (0,)
    dtype = helper.tensor_dtype_to_np_dtype(given.elem_type)
    values = np.full(shape, np.finfo(dtype).min if np.issubdtype(dtype, np.floating) else 0, dtype)
    for _, other in bodies_of(node):
        if other is not body:
            other.node.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values)))
            other.output.append(helper.make_tensor_value_info(name, given.elem_type, None))


def _repeats(scope: GraphIndex) -> bool:
    """Whether a graph lies in the body of a Loop or Scan."""
    return scope.outer is not None and (scope.outer.nodes[scope.position].op in _REPEATING or _repeats(scope.outer))


def _by_path(index: GraphIndex, graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield every graph of a copy with its path in the index."""
    yield index.path, graph
    for node in index.nodes:
        for name, body in bodies_of(graph.node[node.position]):
            yield from _by_path(index.scopes[qualified(index.path, f"{node.label}.{name}")], body)
