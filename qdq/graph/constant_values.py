"""The values of a graph's constants, computed only where they are asked for."""

from __future__ import annotations

import math
from collections import Counter
from typing import Protocol

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from qdq.arrays import Array
from qdq.errors import ModelError, first_line
from qdq.graph.bodies import (
    captured_names,
    names_captured_by,
    node_bodies,
    read_constant,
    read_tensor_values,
)
from qdq.graph.constant_folding import evaluate_branch, evaluate_node
from qdq.graph.shape_inference import Dims, known_sizes
from qdq.graph.source import Source

#: Values up to this many bytes on the way to a constant stay in memory.
_LARGEST_KEPT_BYTES = 1 << 16

#: Tensors of more values, in other files, are read again where they are needed.
_MOST_KEPT_VALUES = 1 << 18


class ConstantScope(Protocol):
    """A graph with the graphs around it, as far as constants depend on it."""

    source: Source

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor's value follows from the file alone."""

    def constant(self, tensor: str) -> Array:
        """Return the value of a constant tensor."""

    def shape(self, tensor: str) -> Dims | None:
        """Return a tensor's dimensions."""


class ConstantValues:
    """The values of the constants that one graph defines, kept until they are cleared.

    Its owner is the scope that is passed in: one that held it would never leave the memory.
    """

    def __init__(self, graph: GraphProto) -> None:
        self._nodes = graph.node
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers: dict[str, int] = {}
        for position, node in enumerate(graph.node):
            self._producers.update(dict.fromkeys(node.output, position))
        self._values: dict[str, Array] = {}

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()

    def read(self, scope: ConstantScope, tensor: str) -> Array:
        """Return the value of a constant.

        Raises ModelError where its data cannot be read or computed.
        """
        if tensor in self._values:
            return self._values[tensor]
        value = self._evaluate(scope, tensor)
        if not self._is_large_file_part(tensor):
            self._values[tensor] = value
        return value

    def _is_large_file_part(self, tensor: str) -> bool:
        """Whether a tensor is a large part of another file, which is read again when needed.

        Those of a model of gigabytes would all be in memory. Stored in the model, they are there
        already.
        """
        stored = self._initializers.get(tensor)
        if stored is None or stored.data_location != TensorProto.EXTERNAL:
            return False
        count: int = math.prod(stored.dims)
        return count > _MOST_KEPT_VALUES

    def _evaluate(self, scope: ConstantScope, tensor: str) -> Array:
        try:
            return self._compute(scope, tensor)
        except ModelError:
            raise
        except Exception as error:  # ONNX's reference evaluator documents none
            raise ModelError(
                f"{scope.source.name}: constant {tensor!r} cannot be computed: "
                f"{first_line(error)}. Export the model with its value stored."
            ) from error

    def _compute(self, scope: ConstantScope, tensor: str) -> Array:
        stored = self._read_stored(scope, tensor)
        if stored is not None:
            return stored
        nodes = self._find_needed_nodes(scope, tensor)
        readers: Counter[str] = Counter()
        for node in nodes:
            readers.update(operand_names(scope, node))
        values: dict[str, Array] = {}
        for node in nodes:
            values.update(self._run(scope, node, values))
            for name in operand_names(scope, node):
                readers[name] -= 1
                if not readers[name] and name in values:
                    self._keep_small(name, values.pop(name))
        return values[tensor]

    def _keep_small(self, name: str, value: Array) -> None:
        if value.nbytes <= _LARGEST_KEPT_BYTES:
            self._values[name] = value

    def _find_needed_nodes(self, scope: ConstantScope, tensor: str) -> list[NodeProto]:
        """Return the nodes to run for a computed constant, in order of the graph."""
        needed: dict[int, NodeProto] = {}
        pending = [tensor]
        while pending:
            name = pending.pop()
            position = self._producers.get(name)
            if position is None or position in needed or name in self._values:
                continue
            node = self._nodes[position]
            if not stores_value(node):
                needed[position] = node
                pending.extend(operand_names(scope, node))
        return [needed[position] for position in sorted(needed)]

    def _read_stored(self, scope: ConstantScope, tensor: str) -> Array | None:
        """Return the value that an initializer or a Constant stores, None for other tensors."""
        source = scope.source
        if tensor in self._initializers:
            return read_tensor_values(self._initializers[tensor], source.name, source.folder)
        node = self._nodes[self._producers[tensor]]
        if node.op_type != "Constant":
            return None
        return read_constant(node, source.name, source.folder)

    def _run(
        self, scope: ConstantScope, node: NodeProto, values: dict[str, Array]
    ) -> dict[str, Array]:
        """Return the results of a node by name."""
        dims = _known_dims(scope, node)
        if dims is not None:
            return {node.output[0]: _shape_value(node, dims)}
        feeds: dict[str, Array] = {}
        for name in operand_names(scope, node):
            feeds[name] = values[name] if name in values else scope.constant(name)
        source = scope.source
        opsets = source.model.opset_import
        branch = find_taken_branch(scope, node)
        if branch is None:
            results = evaluate_node(node, feeds, opsets, source.folder)
        else:
            results = evaluate_branch(branch, feeds, opsets, source.folder)
        return dict(zip(node.output, results, strict=False))


def stores_value(node: NodeProto) -> bool:
    """Whether a node is a Constant that stores a tensor."""
    return node.op_type == "Constant" and any(a.name == "value" for a in node.attribute)


def operand_names(scope: ConstantScope, node: NodeProto) -> tuple[str, ...]:
    """Return the tensors whose values decide the result of a node.

    None for a Shape or Size of known dimensions, and for an If with a constant condition those of
    the branch that it takes.
    """
    if _known_dims(scope, node) is not None:
        return ()
    branch = find_taken_branch(scope, node)
    if branch is not None:
        return tuple(sorted(captured_names(branch)))
    names = {*node.input, *names_captured_by(node)}
    return tuple(sorted(names - {""}))


def find_taken_branch(scope: ConstantScope, node: NodeProto) -> GraphProto | None:
    """Return the branch that an If takes whose condition is constant.

    None for other nodes, and where the condition cannot be computed.
    """
    if node.op_type != "If" or not node.input or not scope.is_constant(node.input[0]):
        return None
    try:
        takes_then_branch = bool(scope.constant(node.input[0]).all())
    except ModelError:
        return None
    name = "then_branch" if takes_then_branch else "else_branch"
    return dict(node_bodies(node)).get(name)


def _known_dims(scope: ConstantScope, node: NodeProto) -> tuple[int, ...] | None:
    if node.op_type not in ("Shape", "Size"):
        return None
    return known_sizes(scope.shape(node.input[0]))


def _shape_value(node: NodeProto, dims: tuple[int, ...]) -> Array:
    """Return the output of a Shape or Size whose input has known dimensions."""
    if node.op_type == "Size":
        return np.array(math.prod(dims), np.int64)
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(dims[bounds.get("start") : bounds.get("end")], np.int64)
