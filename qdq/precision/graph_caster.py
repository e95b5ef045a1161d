"""The cast of a model's graphs: inputs in the types that nodes need, and the Casts between."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from qdq.graph.bodies import all_graphs
from qdq.graph.float_parameters import find_wide_slots
from qdq.graph.index import GraphIndex, Node
from qdq.graph.pairs import QdqPair
from qdq.graph.quantized_operators import DEQUANTIZE
from qdq.precision.body_links import list_body_links
from qdq.precision.cast_scope import CastPair, CastScope, StoredFloats, make_cast
from qdq.precision.node_types import TYPE_ATTRIBUTES
from qdq.precision.stored_floats import (
    ModelFiles,
    WeightLoss,
    make_short_scales,
    make_short_tensor,
    read_constant_tensor,
    write_constant_tensor,
)
from qdq.precision.type_assignment import CastOptions, TypeAssignment, output_type
from qdq.quantized.corrected_biases import AddedBias, CorrectedBias

_FLOAT = int(TensorProto.FLOAT)


class GraphCaster:
    """Casts the graphs of a model in place.

    `index` is the model's, `float_index` that of the model without pairs, `kept` holds the labels
    there of the nodes that compute in float32.
    """

    def __init__(
        self,
        model: ModelProto,
        index: GraphIndex,
        float_index: GraphIndex,
        kept: frozenset[str],
        options: CastOptions,
    ) -> None:
        self._model = model
        self._options = options
        self._short = options.float_type.code
        self._files = ModelFiles(index.source.name, index.source.folder)
        self._types = TypeAssignment(index, float_index, kept, options, model)
        self._main = self._types.main
        #: What stored values lose.
        self.losses: list[WeightLoss] = []
        #: The names of the short copies of stored tensors that are read in both types.
        self.copies: dict[str, str] = {}
        self._new_names: dict[str, str] = {}

    def run(self, records: tuple[CorrectedBias, ...] = ()) -> tuple[CorrectedBias, ...]:
        """Cast the model, and return the records of its corrected biases with the new names."""
        self._keep_outputs()
        followed = [self._follow(record) for record in records]
        for scope in self._main.scopes:
            self._read_inputs(scope)
        scopes = tuple(self._main.scopes)
        clones = {id(scope): self._write_pairs(scope) for scope in reversed(scopes)}
        for scope in scopes:
            self._store(scope)
        for scope in reversed(scopes):  # bodies first: writing its nodes copies their bodies
            self._write_types(scope)
            self._write_nodes(scope, clones[id(scope)])
        for graph in all_graphs(self._model.graph):
            self._rename(graph)
        return tuple(self._name_original(record) for record in followed)

    def _follow(self, record: CorrectedBias) -> CorrectedBias:
        return self.follow_bias(record) if isinstance(record, AddedBias) else record

    def _name_original(self, record: CorrectedBias) -> CorrectedBias:
        if not isinstance(record, AddedBias):
            return record
        return msgspec.structs.replace(record, original=self.final_name(record.original))

    def follow_bias(self, record: AddedBias) -> AddedBias:
        """Return the record of an added bias with the names that tensors have after the cast.

        The original bias is stored in the type of the added one.
        """
        node = self._main.index.producers[record.node]
        wanted = self._wanted_types(self._main, node.position, node)[record.slot]
        original = record.original
        if original is not None:
            original = self._main.read(original, wanted)
        name = self._main.renamed.get(record.node, record.node)
        return msgspec.structs.replace(record, node=name, original=original)

    def final_name(self, name: str | None) -> str | None:
        """Return the name that a tensor has in the cast model."""
        return self._new_names.get(name, name) if name is not None else None

    def _keep_outputs(self) -> None:
        """Let the outputs of the model keep their names, and their types unless these are cast."""
        for value in self._main.graph.output:
            name = value.name
            wanted = output_type(self._main, name, self._options)
            current = self._main.types.get(name, 0)
            if current and wanted and current != wanted:
                self._main.renamed[name] = self._main.fresh_name(name, current)
                self._main.casts.setdefault(name, {})[wanted] = name

    def _read_inputs(self, scope: CastScope) -> None:
        """Let the nodes of a graph read their inputs in the types that they need."""
        for position, node in enumerate(scope.index.nodes):
            if position in scope.paired or position in scope.removed:
                continue
            proto = scope.graph.node[position]
            wanted = self._wanted_types(scope, position, node)
            for slot, name in enumerate(node.inputs):
                if name and wanted[slot]:
                    proto.input[slot] = scope.read(name, wanted[slot])
            self._set_attributes(scope, node, proto)
        if scope.outer is None:
            for value in scope.graph.output:
                self._demand_output(scope, value.name)

    def _demand_output(self, scope: CastScope, name: str) -> None:
        """Read an output of the model in its type, for stored values and results of pairs."""
        wanted = output_type(self._main, name, self._options)
        if wanted:
            scope.read(name, wanted)

    def _wanted_types(self, scope: CastScope, position: int, node: Node) -> list[int]:
        """Return the type in which a node needs each input; 0 for those that hold no floats."""
        types = self._types.find_types(node.proto)
        is_kept = self._types.is_kept(scope, position)
        wide = find_wide_slots(scope.index, node, self._options.float_type)
        wanted: list[int] = []
        for slot, name in enumerate(node.inputs):
            elem_type = scope.index.elem_type(name) if name else 0
            if slot in wide:
                elem_type = elem_type and _FLOAT
            elif elem_type in (_FLOAT, 0):
                is_short = types is not None and types.inputs[slot] and not is_kept
                elem_type = self._short if is_short and elem_type else _FLOAT
                if types is not None and slot in types.any_type:
                    elem_type = scope.type_of(name) or _FLOAT
            elif elem_type != self._short:
                elem_type = 0
            wanted.append(elem_type)
        for name, slot in self._linked_inputs(scope, position, node):
            wanted[slot] = name
        return wanted

    def _linked_inputs(
        self, scope: CastScope, position: int, node: Node
    ) -> Iterator[tuple[int, int]]:
        """Yield the type and slot of the inputs of a node that bodies read as theirs.

        Outputs of the bodies are read in the types of the node's.
        """
        for body in self._bodies_of(scope, position, node):
            for link in list_body_links(node, body.graph):
                wanted = 0
                if link.body_input is not None:
                    wanted = body.types.get(body.graph.input[link.body_input].name, 0)
                elif link.node_output is not None and link.node_output < len(node.outputs):
                    wanted = scope.types.get(node.outputs[link.node_output], 0)
                if wanted and link.node_input is not None:
                    yield wanted, link.node_input
                if wanted and link.body_output is not None:
                    value = body.graph.output[link.body_output]
                    value.name = body.read(value.name, wanted)
                    value.type.tensor_type.elem_type = wanted

    def _bodies_of(self, scope: CastScope, position: int, node: Node) -> Iterator[CastScope]:
        for body in scope.bodies:
            if body.index.owner is not None and body.index.owner.label == node.label:
                yield body

    def _set_attributes(self, scope: CastScope, node: Node, proto: NodeProto) -> None:
        """Let the attributes of a node state the type of its result."""
        result = node.outputs[0] if node.outputs else ""
        current = scope.types.get(result, 0)
        if not current or scope.index.elem_type(result) != _FLOAT:
            return
        if node.op == "ConstantOfShape" and current == self._short:
            value = _find_attribute(proto, "value")
            stored = TensorProto(data_type=_FLOAT, dims=[1], raw_data=bytes(4))
            if value is not None:
                stored = value.t
            short, _ = make_short_tensor(stored, stored.name, self._options.float_type, self._files)
            _set_attribute(proto, "value", short)
        name = TYPE_ATTRIBUTES.get(node.op, "")
        if name and (_find_attribute(proto, name) is not None or current == self._short):
            _set_attribute(proto, name, current)

    def _write_pairs(self, scope: CastScope) -> dict[int, list[NodeProto]]:
        """Write the pairs of a graph in the types that are read, last first.

        Returns the nodes to insert after some positions.
        """
        added: dict[int, list[NodeProto]] = {}
        for pair in scope.wide_pairs:
            self._widen_pair(scope, pair)
        for cast_pair in reversed(tuple(scope.pairs.values())):
            dq = cast_pair.pair.dq
            if not cast_pair.names:
                self._name_unread(scope, cast_pair)
            for number, (wanted, name) in enumerate(tuple(cast_pair.names.items())):
                nodes = self._pair_nodes(scope, cast_pair, number > 0)
                self._set_pair_inputs(scope, cast_pair, nodes, wanted)
                nodes[-1].output[0] = name
                if number:
                    added.setdefault(dq, []).extend(nodes)
        return added

    def _widen_pair(self, scope: CastScope, pair: QdqPair) -> None:
        """Let a pair with float32 scales read its tensor in float32, a weight through a Cast."""
        if pair.q is None:
            return
        owner = scope.find(pair.tensor)
        if owner is None or pair.tensor not in owner.stored:
            scope.graph.node[pair.q].input[0] = scope.read(pair.tensor, _FLOAT)
            return
        short = scope.read(pair.tensor, self._short)
        if pair.tensor not in owner.wide_casts:
            wide = scope.fresh_name(pair.tensor, _FLOAT)
            owner.wide_casts[pair.tensor] = make_cast(short, wide, _FLOAT)
        scope.graph.node[pair.q].input[0] = owner.wide_casts[pair.tensor].output[0]

    def _name_unread(self, scope: CastScope, cast_pair: CastPair) -> None:
        """Give a pair that nothing reads the type of its tensor."""
        elem_type = scope.type_of(cast_pair.pair.tensor) or _FLOAT
        scope.read(cast_pair.pair.output, elem_type)

    def _pair_nodes(self, scope: CastScope, cast_pair: CastPair, is_copy: bool) -> list[NodeProto]:
        """Return the Q and DQ of a pair, or copies of them with names of their own."""
        positions = [cast_pair.pair.q, cast_pair.pair.dq]
        nodes = [scope.graph.node[i] for i in positions if i is not None]
        if not is_copy:
            return nodes
        copies: list[NodeProto] = []
        for node in nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = scope.fresh_name(node.name or node.output[0], _FLOAT)
            copies.append(copy)
        if len(copies) > 1:
            copies[0].output[0] = scope.fresh_name(copies[0].output[0], _FLOAT)
            copies[1].input[0] = copies[0].output[0]
        return copies

    def _set_pair_inputs(
        self, scope: CastScope, cast_pair: CastPair, nodes: list[NodeProto], wanted: int
    ) -> None:
        pair = cast_pair.pair
        for node in nodes:
            is_dequantize = node.op_type == DEQUANTIZE
            scale = pair.scale if is_dequantize else pair.q_scale
            node.input[1] = scope.read(scale, wanted)
            if not is_dequantize:
                node.input[0] = scope.read(pair.tensor, wanted)

    def _store(self, scope: CastScope) -> None:
        """Store the constants of a graph in the types that are read."""
        initializers = {tensor.name: tensor for tensor in scope.graph.initializer}
        for stored in scope.stored.values():
            name = stored.names.get(self._short)
            if name is None:
                continue
            is_replaced = _FLOAT not in stored.names
            if is_replaced:
                self._new_names[name] = stored.name
                name = stored.name
            if stored.position is None:
                original = initializers[stored.name]
            else:
                original = read_constant_tensor(scope.graph.node[stored.position])
            if not is_replaced:
                self.copies[stored.name] = name
            short = self._convert(stored, original, name)
            if stored.position is None and is_replaced:
                original.CopyFrom(short)
            elif stored.position is None:
                scope.graph.initializer.append(short)
            elif is_replaced:
                write_constant_tensor(scope.graph.node[stored.position], short)

    def _convert(self, stored: StoredFloats, original: TensorProto, name: str) -> TensorProto:
        float_type = self._options.float_type
        if stored.element is not None:
            element = stored.element
            return make_short_scales(original, name, float_type, element, self._files)
        short, loss = make_short_tensor(original, name, float_type, self._files)
        if loss is not None:
            self.losses.append(loss)
        return short

    def _write_types(self, scope: CastScope) -> None:
        """Write the new types of a graph's inputs, outputs and intermediate tensors."""
        types = dict(scope.types)
        for stored in scope.stored.values():
            if stored.names.keys() == {self._short}:
                types[stored.name] = self._short
        for cast_pair in scope.pairs.values():
            types.update((name, elem_type) for elem_type, name in cast_pair.names.items())
        for value in (*scope.graph.input, *scope.graph.value_info):
            if types.get(value.name) == self._short:
                value.type.tensor_type.elem_type = self._short
        for value in scope.graph.output if scope.outer is None else ():
            wanted = output_type(scope, value.name, self._options)
            if wanted and value.type.HasField("tensor_type"):
                value.type.tensor_type.elem_type = wanted
        _remove_value_info(scope)

    def _write_nodes(self, scope: CastScope, added: dict[int, list[NodeProto]]) -> None:
        """Write the nodes of a graph with the Casts after those whose results they read."""
        nodes: list[NodeProto] = []
        for name in (*scope.index.inputs, *scope.index.initializers):
            nodes.extend(scope.cast_nodes(name))
        for position, node in enumerate(scope.index.nodes):
            proto = scope.graph.node[position]
            if position not in scope.removed:
                for slot, name in enumerate(proto.output):
                    proto.output[slot] = scope.renamed.get(name, name)
                nodes.append(proto)
                nodes.extend(self._copy_constant(scope, position, node))
            for name in node.outputs:
                if name not in scope.aliases:
                    nodes.extend(scope.cast_nodes(name))
            nodes.extend(added.get(position, ()))
        copies = GraphProto(node=nodes)
        del scope.graph.node[:]
        scope.graph.node.extend(copies.node)

    def _copy_constant(self, scope: CastScope, position: int, node: Node) -> Iterator[NodeProto]:
        """Yield a copy of a Constant that is read in both types."""
        stored = scope.stored.get(node.outputs[0]) if node.outputs else None
        if stored is None or stored.position is None or len(stored.names) < 2:  # noqa: PLR2004 types
            return
        name = stored.names[self._short]
        original = read_constant_tensor(scope.graph.node[position])
        short = self._convert(stored, original, name)
        yield helper.make_node("Constant", [], [name], name=f"{name}_Constant", value=short)

    def _rename(self, graph: GraphProto) -> None:
        """Use the old names of stored tensors that are read in the short type alone."""
        for node in graph.node:
            for slot, name in enumerate(node.input):
                node.input[slot] = self._new_names.get(name, name)
        for value in graph.output:
            value.name = self._new_names.get(value.name, value.name)


def _remove_value_info(scope: CastScope) -> None:
    """Remove the types of the results of Casts that are removed."""
    removed = scope.aliases.keys() - scope.index.outputs.keys()
    remaining = [value for value in scope.graph.value_info if value.name not in removed]
    if len(remaining) < len(scope.graph.value_info):
        copies = GraphProto(value_info=remaining)
        del scope.graph.value_info[:]
        scope.graph.value_info.extend(copies.value_info)


def _find_attribute(node: NodeProto, name: str) -> AttributeProto | None:
    for attribute in node.attribute:
        if attribute.name == name:
            known: AttributeProto = attribute
            return known
    return None


def _set_attribute(node: NodeProto, name: str, value: TensorProto | int) -> None:
    attribute = _find_attribute(node, name)
    new = helper.make_attribute(name, value)
    if attribute is None:
        node.attribute.append(new)
    else:
        attribute.CopyFrom(new)
