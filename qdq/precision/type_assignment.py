"""The type of every float tensor of a model that is cast, before any name changes."""

from __future__ import annotations

import msgspec
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.float_nodes import is_type_cast
from qdq.graph.float_types import FloatType
from qdq.graph.index import GraphIndex, Node
from qdq.graph.opset import default_opset
from qdq.graph.pairs import find_pairs, stored_tensors
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.unique_names import UniqueNames
from qdq.precision.body_links import BodyLink, list_body_links
from qdq.precision.cast_scope import CastPair, CastScope, StoredFloats
from qdq.precision.node_types import NodeTypes, find_node_types
from qdq.quantized.model import label_by_float_graph
from qdq.quantizer import ELEMENT_TYPES, ElementType


class CastOptions(msgspec.Struct, frozen=True):
    """How a model is cast."""

    float_type: FloatType
    #: Whether the graph's inputs and outputs become the short type too.
    casts_ends: bool = False
    #: Whether pairs keep scales in float32, with Casts around them.
    keeps_scales: bool = False


class TypeAssignment:
    """Assigns types to the tensors of a model's graphs.

    `kept` holds the qualified labels of the nodes that compute in float32, in the float graph that
    `float_index` indexes.
    """

    def __init__(
        self,
        index: GraphIndex,
        float_index: GraphIndex,
        kept: frozenset[str],
        options: CastOptions,
        model: ModelProto,
    ) -> None:
        self._float_scopes = float_index.scopes
        self._kept = kept
        self._options = options
        self._short = options.float_type.code
        self._opset = default_opset(model)
        self._names = UniqueNames(model.graph, include_value_info=True)
        self.main = self._open_scope(index, model.graph, None, "")
        for name in index.inputs:
            self._set_type(self.main, name, options.casts_ends)
        self._assign_nodes(self.main)

    def is_kept(self, scope: CastScope, position: int) -> bool:
        """Whether a node computes in float32."""
        return scope.labels[position] in self._kept

    def find_types(self, node: NodeProto) -> NodeTypes | None:
        """Return which inputs and outputs of a node may have the short type."""
        return find_node_types(node, self._opset, self._options.float_type)

    def _open_scope(
        self, index: GraphIndex, graph: GraphProto, outer: CastScope | None, path: str
    ) -> CastScope:
        """Return the scope of a graph, whose path in the float graph is `path`."""
        float_scope = self._float_scopes[path]
        labels = label_by_float_graph(QdqGraph(graph), float_scope)
        qualified = [qualified_name(path, label) for label in labels]
        scope = CastScope(index, graph, qualified, self._names, outer)
        for name, tensor in index.initializers.items():
            if tensor.data_type == TensorProto.FLOAT:
                scope.stored[name] = StoredFloats(name, None)
            elif tensor.data_type == self._short:
                scope.types[name] = self._short
        for position, node in enumerate(index.nodes):
            if node.op == "Constant" and is_stored_float(node.proto):
                scope.stored[node.outputs[0]] = StoredFloats(node.outputs[0], position)
        self._add_pairs(scope)
        return scope

    def _add_pairs(self, scope: CastScope) -> None:
        """Register the pairs of a graph, and their scales."""
        around: dict[str, TensorProto] = {}
        outer = scope.outer
        while outer is not None:
            around = stored_tensors(outer.graph) | around
            outer = outer.outer
        stored = around | stored_tensors(scope.graph)
        for pair in find_pairs(scope.graph, around):
            scope.paired.update(filter(_is_position, (pair.q, pair.dq)))
            elem_type = scope.index.elem_type(pair.output)
            if self._options.keeps_scales and elem_type == TensorProto.FLOAT:
                scope.types[pair.output] = elem_type
                scope.named_after[pair.output] = pair.tensor
                scope.wide_pairs.append(pair)
                continue
            element = find_element(stored.get(pair.zero_point))
            scope.pairs[pair.output] = CastPair(pair)
            for name in filter(None, (pair.scale, pair.q_scale)):
                owner = scope.find(name)
                if owner is not None and name in owner.stored:
                    owner.stored[name].element = element

    def _set_type(self, scope: CastScope, name: str, is_short: bool) -> None:
        """Set the type of a float tensor; one that is short already stays so."""
        elem_type = scope.index.elem_type(name)
        if elem_type == self._short or (elem_type == TensorProto.FLOAT and is_short):
            scope.types[name] = self._short
        elif elem_type == TensorProto.FLOAT:
            scope.types[name] = elem_type

    def _assign_nodes(self, scope: CastScope) -> None:
        """Set the types of the results of a graph's nodes, and those in its bodies."""
        for position, node in enumerate(scope.index.nodes):
            is_stored = bool(node.outputs) and node.outputs[0] in scope.stored
            if position in scope.paired or is_stored:
                continue
            if node.bodies:
                self._assign_bodies(scope, position, node)
            elif not self._remove_cast(scope, position, node):
                self._assign_results(scope, position, node)

    def _assign_results(self, scope: CastScope, position: int, node: Node) -> None:
        is_kept = self.is_kept(scope, position)
        types = self.find_types(node.proto)
        for slot, name in enumerate(node.outputs):
            is_short = types is not None and types.outputs[slot] and not is_kept
            if (
                scope.outer is None
                and name in scope.index.outputs
                and is_type_cast(scope.index, node, self._options.float_type)
            ):
                is_short = self._options.casts_ends
            if name:
                self._set_type(scope, name, is_short)

    def _assign_bodies(self, scope: CastScope, position: int, node: Node) -> None:
        """Set the types in the bodies of a node, and those of its results."""
        bodies: list[CastScope] = []
        for name, graph in node_bodies(scope.graph.node[position]):
            index = scope.index.scopes[qualified_name(scope.index.path, f"{node.label}.{name}")]
            path = f"{scope.labels[position]}.{name}"
            bodies.append(self._open_scope(index, graph, scope, path))
        scope.bodies += bodies
        is_kept = self.is_kept(scope, position)
        self._assign_results(scope, position, node)
        for body in bodies:
            for link in list_body_links(node, body.graph):
                self._set_link(node, link, bodies, body, is_kept)
            for value in body.graph.input:
                if value.name not in body.types:
                    self._set_type(body, value.name, False)
            self._assign_nodes(body)

    def _set_link(
        self, node: Node, link: BodyLink, bodies: list[CastScope], body: CastScope, is_kept: bool
    ) -> None:
        """Set the type of a link: float32 where kept nodes compute it in all bodies."""
        is_short = not is_kept
        if is_short and link.body_output is not None:
            is_short = not all(self._is_kept_result(b, link.body_output) for b in bodies)
        results = dict(enumerate(node.outputs))
        result = results.get(-1 if link.node_output is None else link.node_output)
        if result and body.outer is not None:
            self._set_type(body.outer, result, is_short)
        if link.body_input is not None:
            self._set_type(body, body.graph.input[link.body_input].name, is_short)

    def _is_kept_result(self, body: CastScope, position: int) -> bool:
        """Whether a kept node computes an output of a body."""
        if position >= len(body.graph.output):
            return False
        producer = body.index.producers.get(body.graph.output[position].name)
        return producer is not None and self.is_kept(body, producer.position)

    def _remove_cast(self, scope: CastScope, position: int, node: Node) -> bool:
        """Remove a Cast between float32 and the short type where its input is read instead."""
        if node.op != "Cast" or self.is_kept(scope, position):
            return False
        tensor, result = node.inputs[0], node.outputs[0]
        ends = (scope.index.elem_type(tensor), int(node.attribute("to", 0)))
        owner = scope.find(tensor)
        if owner is None or not {TensorProto.FLOAT, self._short}.issuperset(ends):
            return False
        available = owner.type_of(tensor)
        if result in scope.index.outputs:
            is_removed = self._replace_output_cast(scope, owner, node, available)
        elif ends[1] == TensorProto.FLOAT or available in (0, self._short):
            _alias_result(scope, owner, node, available)
            is_removed = True
        else:
            is_removed = self._reuse_cast(scope, owner, tensor, result, self._short)
        if is_removed:
            scope.removed.add(position)
        return is_removed

    def _reuse_cast(
        self, scope: CastScope, owner: CastScope, tensor: str, result: str, elem_type: int
    ) -> bool:
        """Let others read the result of a Cast too, which moves to the node that computes it."""
        if owner is not scope or tensor not in scope.types:
            return False
        casts = scope.casts.setdefault(tensor, {})
        if casts.setdefault(elem_type, result) != result:
            scope.aliases[result] = casts[elem_type]
        scope.known_casts.setdefault((tensor, elem_type), scope.index.producers[result].proto)
        scope.types[casts[elem_type]] = elem_type
        return True

    def _replace_output_cast(
        self, scope: CastScope, owner: CastScope, cast: Node, available: int
    ) -> bool:
        """Remove a Cast to an output where the node before can compute the output itself."""
        tensor, result = cast.inputs[0], cast.outputs[0]
        if scope.outer is not None:
            if owner is scope:
                _alias_result(scope, owner, cast, available)
            return owner is scope
        wanted = output_type(scope, result, self._options)
        if available != wanted:
            casts = scope.casts.get(tensor, {})
            is_first = wanted not in casts and available != 0
            if not is_first or not self._reuse_cast(scope, owner, tensor, result, wanted):
                return False
            scope.aliases[result] = tensor
            return True
        is_computed = tensor in scope.index.producers and tensor in scope.types
        if not is_computed or tensor in scope.index.outputs or tensor in scope.renamed:
            return False
        scope.renamed[tensor] = result
        scope.aliases[result] = tensor
        return True


def _alias_result(scope: CastScope, owner: CastScope, cast: Node, available: int) -> None:
    """Let others read the tensor before a Cast, which stays known where its type is needed."""
    tensor, to = cast.inputs[0], int(cast.attribute("to", 0))
    scope.aliases[cast.outputs[0]] = tensor
    if owner is scope and available not in (0, to):
        scope.known_casts.setdefault((tensor, to), cast.proto)


def output_type(scope: CastScope, name: str, options: CastOptions) -> int:
    """Return the type that an output of the model gets; 0 for others than floats."""
    elem_type = scope.index.elem_type(name)
    short = options.float_type.code
    if elem_type != TensorProto.FLOAT:
        return elem_type if elem_type == short else 0
    return short if options.casts_ends else int(TensorProto.FLOAT)


def _is_position(position: int | None) -> bool:
    return position is not None


def is_stored_float(node: NodeProto) -> bool:
    """Whether a Constant holds float32 values."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return bool(attribute.t.data_type == TensorProto.FLOAT)
        if attribute.name in ("value_float", "value_floats"):
            return True
    return False


def find_element(zero_point: TensorProto | None) -> ElementType | None:
    """Return the type of the integers of a pair, by its zero point."""
    if zero_point is None:
        return None
    for element in ELEMENT_TYPES.values():
        if element.code == zero_point.data_type:
            return element
    return None
