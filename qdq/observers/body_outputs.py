"""Outputs for the tensors in bodies of If, Loop and Scan, in a copy of the model, to observe them.

A tensor of a Loop or Scan comes out once for each iteration, stacked along a new first axis. In a
Loop its dimensions may change with each iteration where they are not all known: then it comes out
as one vector. A branch of an If that lacks a tensor has a filler in its place. That is an empty
tensor, or inside a Loop or Scan, where all iterations must have one shape, a tensor of the lowest
finite value throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from qdq.arrays import Array
from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.operators import REPEATING
from qdq.graph.source import Source

#: The first output of a Loop's body is the condition, which is no output of the Loop itself.
_CONDITION = 1

#: A Loop's inputs before its states: the number of iterations and the condition.
_LOOP_INPUTS = 2

#: Attributes of a Scan with one number for each output that is stacked.
_SCAN_ATTRIBUTES = ("scan_output_axes", "scan_output_directions")


class ExposedTensor(msgspec.Struct, frozen=True):
    """A tensor of a body that is an output of the main graph."""

    #: The path of its body.
    graph: str
    tensor: str
    #: How many Loops and Scans stack it.
    levels: int
    #: Whether it comes as a vector, because its dimensions are unknown.
    is_flat: bool

    def split_iterations(self, values: Array) -> Iterator[Array]:
        """Yield the tensor's values of each run of its graph; nothing where it did not run."""
        if not values.size:
            return
        iterations: Iterable[Array] = (values,)
        if self.levels:
            iterations = values.reshape(-1, *values.shape[self.levels :])
        if values.dtype.kind != "f":
            yield from iterations
            return
        filler = np.finfo(values.dtype).min
        for iteration in iterations:
            if iteration.flat[0] != filler or not (iteration == filler).all():
                yield iteration


def expose_body_tensors(
    index: GraphIndex, tensors: Iterable[tuple[str, str]]
) -> tuple[Source, dict[str, ExposedTensor]]:
    """Return a copy of the model whose bodies have tensors as outputs, and these tensors.

    Each of `tensors` is a path and a name. The result has them by their names in the main graph,
    which are not declared as its outputs.
    """
    model = ModelProto()
    model.CopyFrom(index.source.model)
    graphs = dict(_iterate_graphs(index, model.graph))
    exposed: dict[str, ExposedTensor] = {}
    for number, (path, tensor) in enumerate(tensors):
        exposure = _Exposure(graphs, index.scopes[path], tensor, f"qdq_observed_{number}")
        while exposure.scope.outer is not None:
            exposure.expose_to(exposure.scope.outer)
        exposed[exposure.name] = ExposedTensor(path, tensor, exposure.levels, exposure.is_flat)
    source = index.source
    return Source(source.path, model, source.digest, source.notes), exposed


class _TensorForm(msgspec.Struct, frozen=True):
    """Element type and dimensions of a tensor, None for an unknown one."""

    elem_type: int
    dims: tuple[int | None, ...] | None

    def stack(self) -> _TensorForm:
        """Return the form with a new first axis."""
        if self.dims is None:
            return self
        return _TensorForm(self.elem_type, (None, *self.dims))

    def forget_dims(self) -> _TensorForm:
        """Return the form with the rank alone."""
        if self.dims is None:
            return self
        unknown = (None,) * len(self.dims)
        return _TensorForm(self.elem_type, unknown)

    @property
    def known_dims(self) -> tuple[int, ...] | None:
        """The dimensions, None where one of them is not known."""
        if self.dims is None:
            return None
        known: list[int] = []
        for dim in self.dims:
            if dim is None:
                return None
            known.append(dim)
        return tuple(known)

    @property
    def reshape_dims(self) -> tuple[int, ...] | None:
        """Dimensions for a Reshape that changes nothing, None where too few are known.

        ONNX Runtime forgets the dimensions of a Loop, but its Scan requires them.
        """
        if self.dims is None or self.dims.count(None) > 1:
            return None
        return tuple(-1 if dim is None else dim for dim in self.dims)

    def declare(self, name: str) -> ValueInfoProto:
        """Return a declaration of an output of this rank."""
        dims = self.forget_dims().dims
        return helper.make_tensor_value_info(name, self.elem_type, dims)

    def make_filler(self) -> Array:
        """Return a tensor of the lowest value where the dimensions are known, else an empty one."""
        dims = self.known_dims
        if dims is None:
            return self.make_empty()
        dtype = helper.tensor_dtype_to_np_dtype(self.elem_type)
        lowest = np.finfo(dtype).min
        return np.full(dims, lowest, dtype)

    def make_empty(self) -> Array:
        """Return an empty tensor of this rank, at least a vector."""
        dtype = helper.tensor_dtype_to_np_dtype(self.elem_type)
        rank = max(len(self.dims or ()), 1)
        return np.zeros((0,) * rank, dtype)


class _Exposure:
    """One tensor of a body, exposed in the graphs around it one after another."""

    def __init__(
        self, graphs: dict[str, GraphProto], scope: GraphIndex, tensor: str, prefix: str
    ) -> None:
        self._graphs = graphs
        self._prefix = prefix
        elem_type = scope.elem_type(tensor) or TensorProto.FLOAT
        self._form = _TensorForm(elem_type, scope.shape(tensor))
        #: Whether Loops collect the iterations in one vector, because dimensions may change.
        self._is_collected = self._form.known_dims is None and _is_in_loops(scope)
        has_rank = self._form.dims is not None
        self.is_flat = self._is_collected or (not has_rank and _is_repeated(scope))
        if self.is_flat:
            self._form = _TensorForm(self._form.elem_type, (None,))
        #: The graph that has the tensor by now, and its name there.
        self.scope = scope
        self.name = tensor
        #: How many Loops and Scans stack it by now.
        self.levels = 0

    def expose_to(self, outer: GraphIndex) -> None:
        """Make the tensor an output of the node whose body has it."""
        body = self._graphs[self.scope.path]
        outer_graph = self._graphs[outer.path]
        node = outer_graph.node[self.scope.position]
        output = f"{self._prefix}_{len(self.scope.path)}"
        is_repeated = _is_repeated(outer)
        if node.op_type == "If":
            _add_fillers(node, body, f"{output}_filler", self._form, is_repeated)
        if node.op_type == "Loop" and self._is_collected:
            _add_state(node, body, self.name, output, self._form)
            start = numpy_helper.from_array(self._form.make_empty(), _start_name(output))
            outer_graph.initializer.append(start)
        else:
            _add_output(node, body, self.name, output, self._form)
        self._update_form(node.op_type, is_repeated)
        self.name = output
        self.scope = outer

    def _update_form(self, op: str, is_repeated: bool) -> None:
        """Set the form that the tensor has outside a node."""
        if op == "If" and (not is_repeated or self._form.known_dims is None):
            self._form = self._form.forget_dims()
        if op in REPEATING and not self._is_collected:
            self.levels += 1
            self._form = self._form.stack()


def _add_output(
    node: NodeProto, body: GraphProto, tensor: str, output: str, form: _TensorForm
) -> None:
    """Add a tensor to the outputs of a body and of its node."""
    outputs_before = len(body.output)
    if node.op_type == "Loop":
        outputs_before -= _CONDITION
    _name_outputs(node, outputs_before, output)
    node.output.append(output)
    body_output = f"{output}_inside"
    dims = form.reshape_dims
    if dims is None:
        body.node.append(helper.make_node("Identity", [tensor], [body_output]))
    else:
        _add_reshape(body, tensor, body_output, f"{output}_shape", dims)
    body.output.append(form.declare(body_output))
    for attribute in node.attribute:
        if attribute.name in _SCAN_ATTRIBUTES:
            attribute.ints.append(0)


def _add_state(
    node: NodeProto, body: GraphProto, tensor: str, output: str, form: _TensorForm
) -> None:
    """Add a state to a Loop: a vector, empty at the start, that collects a tensor's values.

    Each iteration appends its values.
    """
    missing_inputs = _LOOP_INPUTS - len(node.input)
    node.input.extend([""] * missing_inputs)
    states = len(node.input) - _LOOP_INPUTS
    node.input.append(_start_name(output))
    _name_outputs(node, states, output)
    node.output.insert(states, output)
    before = f"{output}_before"
    flat = f"{output}_flat"
    after = f"{output}_after"
    body.input.append(form.declare(before))
    _add_reshape(body, tensor, flat, f"{output}_shape", (-1,))
    body.node.append(helper.make_node("Concat", [before, flat], [after], axis=0))
    body.output.insert(_CONDITION + states, form.declare(after))


def _add_reshape(
    body: GraphProto, tensor: str, output: str, shape_name: str, dims: tuple[int, ...]
) -> None:
    shape = numpy_helper.from_array(np.array(dims, np.int64), shape_name)
    body.initializer.append(shape)
    body.node.append(helper.make_node("Reshape", [tensor, shape_name], [output]))


def _start_name(output: str) -> str:
    """Return the name of the initial value of a Loop's state."""
    return f"{output}_start"


def _name_outputs(node: NodeProto, count: int, output: str) -> None:
    """Name the last outputs of a node, which may be omitted where nothing reads them."""
    for number in range(len(node.output), count):
        node.output.append(f"{output}_unread_{number}")


def _add_fillers(
    node: NodeProto, body: GraphProto, name: str, form: _TensorForm, is_repeated: bool
) -> None:
    """Add a filler to the outputs of the other branch of an If.

    It has the tensor's dimensions where the If `is_repeated` in a Loop or Scan.
    """
    filler = form.make_filler() if is_repeated else form.make_empty()
    for _, branch in node_bodies(node):
        if branch is not body:
            value = numpy_helper.from_array(filler)
            branch.node.append(helper.make_node("Constant", [], [name], value=value))
            branch.output.append(form.declare(name))


def _find_enclosing_operators(scope: GraphIndex) -> set[str]:
    """Return the operators whose bodies a graph is in."""
    operators: set[str] = set()
    while scope.outer is not None and scope.owner is not None:
        operators.add(scope.owner.op)
        scope = scope.outer
    return operators


def _is_in_loops(scope: GraphIndex) -> bool:
    """Whether a graph is in the body of a Loop, and in that of no Scan."""
    operators = _find_enclosing_operators(scope)
    return "Loop" in operators and "Scan" not in operators


def _is_repeated(scope: GraphIndex) -> bool:
    """Whether a graph is in the body of a Loop or Scan."""
    return not _find_enclosing_operators(scope).isdisjoint(REPEATING)


def _iterate_graphs(index: GraphIndex, graph: GraphProto) -> Iterator[tuple[str, GraphProto]]:
    """Yield every graph of a copy with its path in the index."""
    yield index.path, graph
    for node in index.nodes:
        for name, body in node_bodies(graph.node[node.position]):
            path = qualified_name(index.path, f"{node.label}.{name}")
            yield from _iterate_graphs(index.scopes[path], body)
