"""Leading tensors out of the bodies of If, Loop and Scan, as further outputs of a copy of the model, so that they can be observed.

A tensor of a Loop or Scan comes out once for each turn, stacked along a new first axis, or where its
dimensions in a Loop are not all known, and so may change with each turn, as one vector. A branch of
an If that lacks a tensor gives a filler in its place: an empty tensor, or inside a Loop or Scan,
where all turns must have one shape, a tensor of the lowest finite value throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from qdq.arrays import Array
from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.operators import REPEATING
from qdq.graph.source import Source

#: Of a Loop's body the first output is the condition, which the Loop itself does not give.
_CONDITION = 1

#: A Loop's inputs before its states: the number of turns and the condition.
_LOOP_INPUTS = 2


class ExposedTensor(msgspec.Struct, frozen=True):
    """A tensor of a body that the main graph has."""

    #: The path of its body.
    graph: str
    tensor: str
    #: How many Loops and Scans stack it.
    levels: int
    #: Whether it comes as a vector, for its dimensions are unknown.
    flat: bool

    def turns(self, values: Array) -> Iterator[Array]:
        """Yield what the tensor held each time that its graph ran; nothing where it did not."""
        if not values.size:
            return
        lowest = np.finfo(values.dtype).min if values.dtype.kind == "f" else None
        for turn in values.reshape(-1, *values.shape[self.levels :]) if self.levels else (values,):
            if lowest is None or turn.flat[0] != lowest or not (turn == lowest).all():
                yield turn


def expose_body_tensors(
    index: GraphIndex, tensors: Iterable[tuple[str, str]]
) -> tuple[Source, dict[str, ExposedTensor]]:
    """Return a copy of the model whose bodies give some tensors, each as (path, name), and these by the names the main graph has for them.

    The names are not declared as outputs of the main graph.
    """
    model = onnx.ModelProto()
    model.CopyFrom(index.source.model)
    graphs = dict(_by_path(index, model.graph))
    exposed: dict[str, ExposedTensor] = {}
    for i, (path, tensor) in enumerate(tensors):
        scope, name, levels = index.scopes[path], tensor, 0
        form = _Form(scope.elem_type(tensor) or onnx.TensorProto.FLOAT, scope.shape(tensor))
        around = _operators_around(scope)
        gathers = "Loop" in around and "Scan" not in around and not form.known
        flat = gathers or (form.dims is None and _repeats(scope))
        if flat:
            form = _Form(form.elem_type, (None,))
        while scope.outer is not None:
            node, body = graphs[scope.outer.path].node[scope.position], graphs[scope.path]
            outside = f"qdq_observed_{i}_{len(scope.path)}"
            if node.op_type == "If":
                _give_filler(node, body, f"{outside}_filler", form, even=_repeats(scope.outer))
            if node.op_type == "Loop" and gathers:
                _gather(node, body, name, outside, form)
                graphs[scope.outer.path].initializer.append(
                    numpy_helper.from_array(form.filler(even=False), _start(outside))
                )
            else:
                _give(node, body, name, outside, form)
            if node.op_type == "If" and not (_repeats(scope.outer) and form.known):
                form = form.unknown()
            if node.op_type in REPEATING and not gathers:
                levels, form = levels + 1, form.stacked()
            name, scope = outside, scope.outer
        exposed[name] = ExposedTensor(path, tensor, levels, flat)
    source = index.source
    return Source(source.path, model, source.digest, source.notes), exposed


class _Form(msgspec.Struct, frozen=True):
    """Element type and dimensions of a tensor, None for what is unknown."""

    elem_type: int
    dims: tuple[int | None, ...] | None

    def stacked(self) -> _Form:
        return _Form(self.elem_type, None if self.dims is None else (None, *self.dims))

    def unknown(self) -> _Form:
        return _Form(self.elem_type, None if self.dims is None else (None,) * len(self.dims))

    @property
    def known(self) -> bool:
        return self.dims is not None and None not in self.dims

    @property
    def spelled(self) -> tuple[int, ...] | None:
        """Dimensions for a Reshape that changes nothing, None where too few are known: ONNX Runtime forgets those of a Loop, its Scan wants them."""
        return (
            None
            if self.dims is None or self.dims.count(None) > 1
            else tuple(-1 if d is None else d for d in self.dims)
        )

    def declared(self, name: str) -> onnx.ValueInfoProto:
        """Return an output of this rank."""
        return helper.make_tensor_value_info(
            name, self.elem_type, None if self.dims is None else [None] * len(self.dims)
        )

    def filler(self, even: bool) -> Array:
        """Return what stands for a tensor that was not made: of its own shape where that must be `even` and is known, else empty."""
        dtype = helper.tensor_dtype_to_np_dtype(self.elem_type)
        if even and self.known:
            return np.full(
                [d for d in self.dims or () if d is not None], np.finfo(dtype).min, dtype
            )
        return np.zeros((0,) * max(len(self.dims or ()), 1), dtype)


def _give(
    node: onnx.NodeProto, body: onnx.GraphProto, tensor: str, outside: str, form: _Form
) -> None:
    """Make a tensor a further output of a body and of its node."""
    _name_outputs(node, len(body.output) - (_CONDITION if node.op_type == "Loop" else 0), outside)
    node.output.append(outside)
    inside = f"{outside}_inside"
    if form.spelled is None:
        body.node.append(helper.make_node("Identity", [tensor], [inside]))
    else:
        body.initializer.append(
            numpy_helper.from_array(np.array(form.spelled, np.int64), f"{outside}_shape")
        )
        body.node.append(helper.make_node("Reshape", [tensor, f"{outside}_shape"], [inside]))
    body.output.append(form.declared(inside))
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)


def _gather(
    node: onnx.NodeProto, body: onnx.GraphProto, tensor: str, outside: str, form: _Form
) -> None:
    """Make the values of a tensor in all turns a further state of a Loop: a vector that each turn adds to, empty at the start."""
    node.input.extend([""] * (_LOOP_INPUTS - len(node.input)))
    states = len(node.input) - _LOOP_INPUTS
    node.input.append(_start(outside))
    _name_outputs(node, states, outside)
    node.output.insert(states, outside)
    before, flat, after = (f"{outside}_{part}" for part in ("before", "flat", "after"))
    body.input.append(form.declared(before))
    body.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), f"{outside}_shape"))
    body.node.append(helper.make_node("Reshape", [tensor, f"{outside}_shape"], [flat]))
    body.node.append(helper.make_node("Concat", [before, flat], [after], axis=0))
    body.output.insert(_CONDITION + states, form.declared(after))


def _start(outside: str) -> str:
    return f"{outside}_start"


def _name_outputs(node: onnx.NodeProto, count: int, outside: str) -> None:
    """Give a node's last outputs, which may be left out where nobody reads them, names up to a count."""
    node.output.extend(f"{outside}_unread_{i}" for i in range(len(node.output), count))


def _give_filler(
    node: onnx.NodeProto, body: onnx.GraphProto, name: str, form: _Form, even: bool
) -> None:
    """Make a filler a further output of the other branch of an If."""
    for _, other in node_bodies(node):
        if other is not body:
            other.node.append(
                helper.make_node(
                    "Constant", [], [name], value=numpy_helper.from_array(form.filler(even))
                )
            )
            other.output.append(form.declared(name))


def _operators_around(scope: GraphIndex) -> set[str]:
    """Return the operators in whose bodies a graph lies."""
    return (
        set()
        if scope.outer is None
        else {scope.outer.nodes[scope.position].op} | _operators_around(scope.outer)
    )


def _repeats(scope: GraphIndex) -> bool:
    """Whether a graph lies in the body of a Loop or Scan."""
    return not _operators_around(scope).isdisjoint(REPEATING)


def _by_path(index: GraphIndex, graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield every graph of a copy with its path in the index."""
    yield index.path, graph
    for node in index.nodes:
        for name, body in node_bodies(graph.node[node.position]):
            yield from _by_path(
                index.scopes[qualified_name(index.path, f"{node.label}.{name}")], body
            )
