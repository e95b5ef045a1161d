"""The values of a graph's constants, computed only where they are asked for."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np
from onnx import GraphProto

from qdq.arrays import Array
from qdq.errors import ModelError, first_line
from qdq.graph.bodies import captured_names, read_constant, read_tensor_values
from qdq.graph.constant_folding import evaluate_branch, evaluate_node
from qdq.graph.shape_inference import known_sizes

if TYPE_CHECKING:
    from qdq.graph.index import GraphIndex, Node

#: Values up to this many bytes on the way to a constant stay in memory.
_LARGEST_KEPT_BYTES = 1 << 16


class ConstantValues:
    """The values of the constants that one graph defines, kept until they are cleared."""

    def __init__(self, index: GraphIndex) -> None:
        #: Weak, since the index holds this object: a cycle would stay in memory.
        self._index_reference = ref(index)
        self._values: dict[str, Array] = {}

    @property
    def _index(self) -> GraphIndex:
        index = self._index_reference()
        assert index is not None
        return index

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()

    def read(self, tensor: str) -> Array:
        """Return the value of a constant.

        Raises ModelError where its data cannot be read or computed.
        """
        if tensor not in self._values:
            self._values[tensor] = self._evaluate(tensor)
        return self._values[tensor]

    def _evaluate(self, tensor: str) -> Array:
        try:
            return self._compute(tensor)
        except ModelError:
            raise
        except Exception as error:  # ONNX's reference evaluator documents none
            raise ModelError(
                f"{self._index.source.name}: constant {tensor!r} cannot be computed: "
                f"{first_line(error)}. Export the model with its value stored."
            ) from error

    def _compute(self, tensor: str) -> Array:
        stored = self._read_stored(tensor)
        if stored is not None:
            return stored
        nodes = self._find_needed_nodes(tensor)
        readers = Counter(name for node in nodes for name in operand_names(self._index, node))
        values: dict[str, Array] = {}
        for node in nodes:
            values.update(self._run(node, values))
            for name in operand_names(self._index, node):
                readers[name] -= 1
                if not readers[name] and name in values:
                    self._keep_small(name, values.pop(name))
        return values[tensor]

    def _keep_small(self, name: str, value: Array) -> None:
        if value.nbytes <= _LARGEST_KEPT_BYTES:
            self._values[name] = value

    def _find_needed_nodes(self, tensor: str) -> list[Node]:
        """Return the nodes to run for a computed constant, in order of the graph."""
        needed: dict[int, Node] = {}
        pending = [tensor]
        while pending:
            name = pending.pop()
            node = self._index.producers.get(name)
            if node is None or name in self._values or node.position in needed:
                continue
            if node.op == "Constant" and node.attribute("value") is not None:
                continue
            needed[node.position] = node
            pending.extend(operand_names(self._index, node))
        return [needed[position] for position in sorted(needed)]

    def _read_stored(self, tensor: str) -> Array | None:
        """Return the value that an initializer or a Constant stores, None for other tensors."""
        index = self._index
        if tensor in index.initializers:
            stored = index.initializers[tensor]
            return read_tensor_values(stored, index.source.name, index.source.folder)
        node = index.producers[tensor]
        if node.op != "Constant":
            return None
        return read_constant(node.proto, index.source.name, index.source.folder)

    def _run(self, node: Node, values: dict[str, Array]) -> dict[str, Array]:
        """Return the results of a node by name."""
        dims = _known_dims(self._index, node)
        if dims is not None:
            return {node.outputs[0]: _shape_value(node, dims)}
        feeds: dict[str, Array] = {}
        for name in operand_names(self._index, node):
            feeds[name] = values[name] if name in values else self._index.constant(name)
        source = self._index.source
        opsets = source.model.opset_import
        branch = find_taken_branch(self._index, node)
        if branch is None:
            results = evaluate_node(node.proto, feeds, opsets, source.folder)
        else:
            results = evaluate_branch(branch, feeds, opsets, source.folder)
        return dict(zip(node.outputs, results, strict=False))


def operand_names(index: GraphIndex, node: Node) -> tuple[str, ...]:
    """Return the tensors whose values decide the result of a node.

    None for a Shape or Size of known dimensions, and for an If with a constant condition those of
    the branch that it takes.
    """
    if _known_dims(index, node) is not None:
        return ()
    branch = find_taken_branch(index, node)
    return node.read_names if branch is None else tuple(sorted(captured_names(branch)))


def find_taken_branch(index: GraphIndex, node: Node) -> GraphProto | None:
    """Return the branch that an If takes whose condition is constant.

    None for other nodes, and where the condition cannot be computed.
    """
    if node.op != "If" or not node.inputs or not index.is_constant(node.inputs[0]):
        return None
    try:
        takes_then_branch = bool(index.constant(node.inputs[0]).all())
    except ModelError:
        return None
    name = "then_branch" if takes_then_branch else "else_branch"
    return dict(node.bodies).get(name)


def _known_dims(index: GraphIndex, node: Node) -> tuple[int, ...] | None:
    if node.op not in ("Shape", "Size"):
        return None
    return known_sizes(index.shape(node.inputs[0]))


def _shape_value(node: Node, dims: tuple[int, ...]) -> Array:
    """Return the output of a Shape or Size whose input has known dimensions."""
    if node.op == "Size":
        return np.array(math.prod(dims), np.int64)
    start = node.attribute("start")
    end = node.attribute("end")
    return np.array(dims[start:end], np.int64)
