"""Casts of integers that change no value: to their own type, of constants, and repeated ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from qdq.arrays import Array
from qdq.graph.bodies import list_names, node_bodies
from qdq.graph.float_types import FloatType, encode_floats, round_to_type
from qdq.graph.index import GraphIndex
from qdq.graph.pairs import count_readers
from qdq.precision.stored_floats import ModelFiles
from qdq.precision.wide_shapes import read_target, widen_shapes

_INTEGERS = (
    TensorProto.BOOL,
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
)

#: Constants up to this many values are stored in their new type; the file grows by that.
_LARGEST_FOLDED = 1024


def remove_superfluous_casts(
    model_graph: GraphProto, index: GraphIndex, float_type: FloatType, files: ModelFiles
) -> None:
    """Remove the Casts between integers of a cast model that change no value, in bodies too.

    `index` is that of the model before its cast, whose integer tensors have the same types.
    """
    types = _list_types(index)
    while _Removal(model_graph, types, float_type, files).run():
        pass


def _list_types(index: GraphIndex) -> dict[str, int]:
    """Return the types of integer tensors by name; none where bodies use a name for two types."""
    by_name: dict[str, set[int]] = {}
    for scope in index.scopes.values():
        for name in (*scope.inputs, *scope.initializers, *scope.producers):
            by_name.setdefault(name, set()).add(scope.elem_type(name))
    single = {name: kinds.pop() for name, kinds in by_name.items() if len(kinds) == 1}
    return {name: kind for name, kind in single.items() if kind in _INTEGERS}


class _Removal:
    """One graph while its Casts are removed."""

    def __init__(
        self,
        graph: GraphProto,
        types: dict[str, int],
        float_type: FloatType,
        files: ModelFiles,
        redirected: Mapping[str, str] | None = None,
    ) -> None:
        self._graph = graph
        self._types = types
        self._float_type = float_type
        self._files = files
        self._outputs = set(list_names(graph.output))
        inputs = set(list_names(graph.input))
        stored = [tensor for tensor in graph.initializer if tensor.name not in inputs]
        self._constants = {tensor.name: tensor for tensor in stored}
        #: Results that are no longer computed, with the tensor that is read in their place.
        self._redirected = dict(redirected or {})
        self._is_changed = False

    def run(self) -> bool:
        """Remove Casts; returns whether there were any."""
        self._redirected.update(widen_shapes(self._graph, self._types))
        casts: dict[tuple[str, int], str] = {}
        folded: set[str] = set()
        nodes: list[NodeProto] = []
        for node in self._graph.node:
            for slot, name in enumerate(node.input):
                node.input[slot] = self._redirected.get(name, name)
            self._run_bodies(node)
            if node.op_type == "Constant":
                self._constants.update(_read_integers(node))
            if node.op_type == "Cast" and self._is_removed(node, casts):
                continue
            if node.op_type == "Cast" and node.input[0] in self._constants:
                folded.update(self._fold(node))
            nodes.append(node)
        if self._is_changed:
            self._write(nodes, folded)
        return self._is_changed

    def _run_bodies(self, node: NodeProto) -> None:
        for _, body in node_bodies(node):
            defined = {*list_names(body.input), *list_names(body.initializer)}
            for inner_node in body.node:
                defined.update(inner_node.output)
            visible = {k: v for k, v in self._redirected.items() if k not in defined}
            inner = _Removal(body, self._types, self._float_type, self._files, visible)
            self._is_changed |= inner.run()
            for value in body.output:
                value.name = visible.get(value.name, value.name)

    def _is_removed(self, node: NodeProto, casts: dict[tuple[str, int], str]) -> bool:
        """Whether a Cast between integers repeats its input, or an earlier Cast."""
        tensor, result, to = node.input[0], node.output[0], read_target(node)
        if to not in _INTEGERS or result in self._outputs:
            return False
        origin = tensor if self._types.get(tensor) == to else casts.get((tensor, to))
        if origin is None:
            casts[tensor, to] = result
            return False
        self._redirected[result] = origin
        self._is_changed = True
        return True

    def _fold(self, node: NodeProto) -> Iterator[str]:
        """Make a Constant of a Cast of stored integers; yields the name of these."""
        tensor = node.input[0]
        values = self._convert(self._constants[tensor], node)
        if values is None:
            return
        constant = helper.make_node("Constant", [], node.output, name=node.name, value=values)
        node.CopyFrom(constant)
        self._constants.update(_read_integers(node))
        self._is_changed = True
        yield tensor

    def _convert(self, stored: TensorProto, node: NodeProto) -> TensorProto | None:
        """Return stored integers in the type of a Cast; None where that is inexact."""
        to = read_target(node)
        is_short = to == self._float_type.code
        if stored.data_type not in _INTEGERS or np.prod(stored.dims) > _LARGEST_FOLDED:
            return None
        values = self._files.read(stored)
        if is_short:
            floats = round_to_type(values.astype(np.float32), self._float_type)
            content = encode_floats(floats, self._float_type)
            short = TensorProto(data_type=to, dims=stored.dims, raw_data=content)
            return short if np.array_equal(floats, values) else None
        if to not in _INTEGERS:
            return None
        integers: Array = values.astype(helper.tensor_dtype_to_np_dtype(to))
        return numpy_helper.from_array(integers) if np.array_equal(integers, values) else None

    def _write(self, nodes: list[NodeProto], folded: set[str]) -> None:
        """Write the nodes that remain, without the integers that were folded and are not read."""
        copies = GraphProto(node=nodes)
        del self._graph.node[:]
        self._graph.node.extend(copies.node)
        counts = count_readers(self._graph)
        unread = {name for name in folded if not counts[name] and name not in self._outputs}
        positions = [i for i, node in enumerate(self._graph.node) if unread & {*node.output}]
        for position in reversed(positions):
            del self._graph.node[position]
        for position, tensor in reversed(list(enumerate(self._graph.initializer))):
            if tensor.name in unread:
                del self._graph.initializer[position]
        removed = unread | self._redirected.keys()
        for position, value in reversed(list(enumerate(self._graph.value_info))):
            if value.name in removed:
                del self._graph.value_info[position]


def _read_integers(node: NodeProto) -> dict[str, TensorProto]:
    """Return the integers of a Constant by its result; none where it has other values."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type in _INTEGERS:
            return {node.output[0]: attribute.t}
        if attribute.name == "value_int":
            return {node.output[0]: numpy_helper.from_array(np.array(attribute.i, np.int64))}
        if attribute.name == "value_ints":
            return {node.output[0]: numpy_helper.from_array(np.array(attribute.ints, np.int64))}
    return {}
