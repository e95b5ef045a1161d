"""One ONNX Runtime session in which each pair of a plan can be switched on and off.

Every activation that a node reads through a pair becomes an If: it computes Q and DQ, or returns
the tensor. Weights become inputs, which are fed as they are or rounded. With everything switched
off the session computes the float model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qdq.arrays import Array, Feed
from qdq.calibration.scales import PairScale, Scales
from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.operands import operands
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import Source
from qdq.graph.unique_names import UniqueNames
from qdq.planning.decisions import Placement, Plan
from qdq.quantizer import Quantizer
from qdq.rewriting.stored_scales import store_scales
from qdq.runtime.session import exact_options, open_session, sample_errors

#: A pair as one node reads it: graph, label of the node, tensor, quantizer.
_ReadKey = tuple[str, str, str, Quantizer]


class _ReadPair(msgspec.Struct, frozen=True):
    """The placements of one pair on the inputs of one node, which are switched together."""

    placements: tuple[Placement, ...]
    #: The graph input that switches an activation's pair, or holds a weight.
    input_name: str
    #: The scales in the tensor's type, and the type of the zero point.
    scales: Array
    is_weight: bool

    @property
    def quantizer(self) -> Quantizer:
        """The format of the pair."""
        return self.placements[0].quantizer


class SwitchableSession:
    """Runs of a model with any part of the pairs of a plan."""

    def __init__(
        self,
        index: GraphIndex,
        plan: Plan,
        scales: Scales,
        outputs: Sequence[str],
        libraries: Iterable[Path] = (),
    ) -> None:
        """Open the session; raises ModelError where ONNX Runtime rejects the model.

        Runs use one thread each, so that several at a time use the cores best.
        """
        self._index = index
        self._outputs = list(outputs)
        unique_outputs = list(dict.fromkeys(self._outputs))
        self._pairs = _list_read_pairs(index, plan, scales)
        self._weights = _Weights(index, [pair for pair in self._pairs if pair.is_weight])
        model = _make_switchable_model(index, self._pairs, unique_outputs)
        self._shapes = _add_shape_outputs(index, model.graph)
        source = Source(index.source.path, model, index.source.digest, notes=("switchable",))
        options = exact_options()
        options.intra_op_num_threads = 1
        self._session = open_session(GraphIndex(source), [], options, libraries=libraries)
        self._on = ort.OrtValue.ortvalue_from_numpy(np.array(True))
        self._off = ort.OrtValue.ortvalue_from_numpy(np.array(False))

    def run(self, feed: Feed, quantized: Collection[Placement]) -> list[Array]:
        """Return the outputs for a sample, with the pairs of some placements.

        Raises DataError where ONNX Runtime fails.
        """
        unique_outputs = list(dict.fromkeys(self._outputs))
        values = dict(zip(unique_outputs, self._run(unique_outputs, feed, quantized), strict=True))
        return [values[name] for name in self._outputs]

    def measure_shapes(self, feed: Feed) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what the weighted nodes of the main graph read and compute.

        The names are those of the tensors. Raises DataError where ONNX Runtime fails.
        """
        if not self._shapes:  # ONNX Runtime takes no names for all names
            return {}
        results = self._run(list(self._shapes.values()), feed, ())
        shapes: dict[str, tuple[int, ...]] = {}
        for tensor, shape in zip(self._shapes, results, strict=True):
            shapes[tensor] = tuple(int(size) for size in shape)
        return shapes

    def _run(self, outputs: list[str], feed: Feed, quantized: Collection[Placement]) -> list[Array]:
        inputs: dict[str, ort.OrtValue] = {}
        for name, values in feed.items():
            inputs[name] = ort.OrtValue.ortvalue_from_numpy(values)
        for pair in self._pairs:
            is_on = pair.placements[0] in quantized
            if pair.is_weight:
                inputs[pair.input_name] = self._weights.read(pair.input_name, is_rounded=is_on)
            else:
                inputs[pair.input_name] = self._on if is_on else self._off
        with sample_errors(self._index):
            results = self._session.run_with_ort_values(outputs, inputs)
            return [np.asarray(result.numpy()) for result in results]


def _list_read_pairs(index: GraphIndex, plan: Plan, scales: Scales) -> tuple[_ReadPair, ...]:
    """Return the pairs of a plan, one for each node that reads it."""
    by_pair = {(item.tensor, item.quantizer): item for item in scales.by_pair}
    names = UniqueNames(index.source.model.graph, include_value_info=True)
    by_read: dict[_ReadKey, list[Placement]] = {}
    for placement in plan.placements:
        edge = placement.edge
        key = (edge.graph, edge.node, edge.tensor, placement.quantizer)
        by_read.setdefault(key, []).append(placement)
    pairs: list[_ReadPair] = []
    for placements in by_read.values():
        first = placements[0]
        pair_scale = by_pair[first.edge.qualified_tensor, first.quantizer]
        pairs.append(
            _ReadPair(
                tuple(placements),
                names.fresh(f"switch_{len(pairs)}"),
                _store_pair_scales(index, first, pair_scale),
                index.scope(first.edge).is_constant(first.edge.tensor),
            )
        )
    return tuple(pairs)


def _store_pair_scales(index: GraphIndex, placement: Placement, pair_scale: PairScale) -> Array:
    """Return the scales of a pair as the rewritten file holds them."""
    elem_type = _float_type(index, placement)
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    values = store_scales(pair_scale.scales, placement.quantizer.element, dtype)
    return values.reshape(() if placement.quantizer.axis is None else (values.size,))


def _float_type(index: GraphIndex, placement: Placement) -> int:
    """Return ONNX's number of a quantized tensor's float type."""
    scope = index.scope(placement.edge)
    tensor = placement.edge.tensor
    return scope.elem_type(tensor) if scope.is_float(tensor) else TensorProto.FLOAT


class _Weights:
    """The values of the weights of some pairs, as they are and rounded."""

    def __init__(self, index: GraphIndex, pairs: Sequence[_ReadPair]) -> None:
        self._values: dict[tuple[str, bool], ort.OrtValue] = {}
        by_tensor: dict[tuple[str, str], ort.OrtValue] = {}
        rounded: dict[tuple[str, str, Quantizer], ort.OrtValue] = {}
        for pair in pairs:
            edge = pair.placements[0].edge
            scope = index.scope(edge)
            tensor_key = (edge.graph, edge.tensor)
            if tensor_key not in by_tensor:
                values = np.ascontiguousarray(scope.constant(edge.tensor))
                by_tensor[tensor_key] = ort.OrtValue.ortvalue_from_numpy(values)
            value = by_tensor[tensor_key]
            key = (*tensor_key, pair.quantizer)
            if key not in rounded:
                rounded[key] = _round_weight(index, pair, value)
            self._values[pair.input_name, False] = value
            self._values[pair.input_name, True] = rounded[key]
        index.forget_constants()

    def read(self, input_name: str, is_rounded: bool) -> ort.OrtValue:
        """Return the value to feed for a pair."""
        return self._values[input_name, is_rounded]


def _round_weight(index: GraphIndex, pair: _ReadPair, value: ort.OrtValue) -> ort.OrtValue:
    """Return a weight after its Q and DQ."""
    elem_type = _float_type(index, pair.placements[0])
    inputs = [helper.make_tensor_value_info("weight", elem_type, None)]
    outputs = [helper.make_tensor_value_info("rounded", elem_type, None)]
    nodes, initializers = _make_pair(pair, "weight", "rounded", "pair_")
    graph = helper.make_graph(nodes, "rounding", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=index.source.model.opset_import)
    model.ir_version = index.source.model.ir_version
    session = open_session(GraphIndex(Source(None, model, "")), [], exact_options())
    result: ort.OrtValue = session.run_with_ort_values(["rounded"], {"weight": value})[0]
    return result


def _make_pair(
    pair: _ReadPair, tensor: str, result: str, prefix: str
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the Q and the DQ of a pair, and their scale and zero point."""
    scale_name, zero_name, quantized = f"{prefix}scale", f"{prefix}zero", f"{prefix}quantized"
    axis: dict[str, Any] = {}
    if pair.quantizer.axis is not None:
        axis["axis"] = pair.quantizer.axis
    nodes = [
        helper.make_node(QUANTIZE, [tensor, scale_name, zero_name], [quantized], **axis),
        helper.make_node(DEQUANTIZE, [quantized, scale_name, zero_name], [result], **axis),
    ]
    zero_point = TensorProto(
        name=zero_name,
        data_type=pair.quantizer.element.code,
        dims=pair.scales.shape,
        raw_data=bytes(pair.scales.size),
    )
    return nodes, [numpy_helper.from_array(pair.scales, scale_name), zero_point]


def _make_switchable_model(
    index: GraphIndex, pairs: Sequence[_ReadPair], outputs: Sequence[str]
) -> ModelProto:
    """Return a copy of a model that reads every pair through a switch."""
    model = ModelProto()
    model.CopyFrom(index.source.model)
    for pair in pairs:
        elem_type: int = TensorProto.BOOL
        shape: list[int] | None = []
        if pair.is_weight:
            elem_type = _float_type(index, pair.placements[0])
            shape = None
        value = helper.make_tensor_value_info(pair.input_name, elem_type, shape)
        model.graph.input.append(value)
    by_slot: dict[tuple[str, str, int], _ReadPair] = {}
    for pair in pairs:
        for placement in pair.placements:
            edge = placement.edge
            by_slot[edge.graph, edge.node, edge.slot] = pair
    _switch_inputs(index, model.graph, by_slot)
    _select_outputs(model.graph, outputs)
    return model


def _switch_inputs(
    index: GraphIndex, graph: GraphProto, by_slot: Mapping[tuple[str, str, int], _ReadPair]
) -> None:
    """Replace the quantized inputs of the nodes of a graph and of its bodies by switches."""
    nodes: list[NodeProto] = []
    for node in index.nodes:
        proto = graph.node[node.position]
        for name, body in node_bodies(proto):
            path = qualified_name(index.path, f"{node.label}.{name}")
            _switch_inputs(index.scopes[path], body, by_slot)
        pairs = {}
        for slot in range(len(proto.input)):
            pair = by_slot.get((index.path, node.label, slot))
            if pair is not None:
                pairs[slot] = pair
        nodes.extend(_switch_node(index, proto, pairs))
        nodes.append(proto)
    kept = GraphProto()  # holds copies: most of the nodes belong to the graph
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def _switch_node(
    index: GraphIndex, proto: NodeProto, pairs: Mapping[int, _ReadPair]
) -> Iterable[NodeProto]:
    """Replace the quantized inputs of a node; return the switches that it reads now."""
    switches: dict[str, NodeProto] = {}
    for slot, pair in pairs.items():
        if pair.is_weight:
            proto.input[slot] = pair.input_name
            continue
        if pair.input_name not in switches:
            elem_type = _float_type(index, pair.placements[0])
            switches[pair.input_name] = _make_switch(pair, proto.input[slot], elem_type)
        proto.input[slot] = switches[pair.input_name].output[0]
    return switches.values()


def _make_switch(pair: _ReadPair, tensor: str, elem_type: int) -> NodeProto:
    """Return the If that reads a tensor through a pair or directly."""
    prefix = f"{pair.input_name}_"
    on_name, off_name = f"{prefix}on", f"{prefix}off"
    nodes, initializers = _make_pair(pair, tensor, on_name, prefix)
    on_value = onnx.ValueInfoProto(name=on_name)
    on_value.type.tensor_type.elem_type = elem_type
    off_value = onnx.ValueInfoProto(name=off_name)
    off_value.type.tensor_type.elem_type = elem_type
    through_pair = helper.make_graph(nodes, f"{prefix}pair", [], [on_value], initializers)
    directly = helper.make_graph(
        [helper.make_node("Identity", [tensor], [off_name])], f"{prefix}float", [], [off_value]
    )
    return helper.make_node(
        "If",
        [pair.input_name],
        [f"{prefix}value"],
        then_branch=through_pair,
        else_branch=directly,
    )


def _select_outputs(graph: GraphProto, outputs: Sequence[str]) -> None:
    """Replace the outputs of a graph by some of its tensors."""
    declared = {value.name: value for value in graph.output}
    selected = []
    for name in outputs:
        selected.append(declared.get(name, onnx.ValueInfoProto(name=name)))
    kept = GraphProto(output=selected)
    del graph.output[:]
    graph.output.extend(kept.output)


def _add_shape_outputs(index: GraphIndex, graph: GraphProto) -> dict[str, str]:
    """Add the shape of each tensor around a weighted node as an output; return their names."""
    names = UniqueNames(graph, include_value_info=True)
    outputs: dict[str, str] = {}
    for node in index.nodes:
        if not operands(index, node):
            continue
        for tensor in (*node.inputs[:2], node.outputs[0]):
            if tensor in outputs:
                continue
            name = names.fresh(f"{tensor}_shape")
            graph.node.append(helper.make_node("Shape", [tensor], [name]))
            value = helper.make_tensor_value_info(name, TensorProto.INT64, None)
            graph.output.append(value)
            outputs[tensor] = name
    return outputs
