"""Insertion of the Q/DQ pairs of a plan into a model, with nothing else changed.

A pair is in the graph of its readers, also where its tensor comes from an enclosing graph. Scales
and zero points are initializers of the main graph, which every body can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qdq.calibration.scales import PairScale, Scales
from qdq.errors import ModelError, PlanError
from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.metadata import (
    BATCH_KEY,
    CAST_KEYS,
    DATA_KEY,
    EQUALIZATION_KEY,
    LEAVE_FLOAT_KEY,
    METHOD_KEY,
    RANGES_KEY,
    RULE_KEY,
    RULES_KEY,
    SENSITIVE_KEY,
    SHAPES_KEY,
    TARGETS_KEY,
    remove_metadata,
)
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.shape_inference import known_sizes
from qdq.graph.source import canonical_bytes, light_copy
from qdq.graph.unique_names import UniqueNames
from qdq.planning.decisions import Placement, Plan, group_by_pair
from qdq.planning.plan_edits import require_model
from qdq.quantized.corrected_biases import read_original_initializers
from qdq.quantized.stripper import strip_model
from qdq.quantizer import Quantizer
from qdq.rewriting.stored_scales import store_scales

_LARGEST_SCALE = float(np.finfo(np.float32).max)


def apply_plan(index: GraphIndex, plan: Plan, scales: Scales) -> ModelProto:
    """Return the rewritten copy of an indexed model."""
    require_model(plan, index)
    if scales.plan != plan.key:
        raise PlanError("the scales were computed for another plan. Calibrate again with this one.")
    rewritten = insert_pairs(index, plan, scales)
    if not is_restored_by_stripping(rewritten, index.source.model):
        raise ModelError(
            f"{index.source.name}: stripping the result does not restore the model."
            " Report this as a defect of qdq."
        )
    return rewritten


def is_restored_by_stripping(rewritten: ModelProto, model: ModelProto) -> bool:
    """Whether stripping a rewritten model restores a model byte for byte.

    The model's weights must come first in the rewritten one, unchanged, except for biases whose
    originals are in its metadata. An equalized model is compared as it is: `equalize` verified that
    undoing restores the model before.
    """
    originals = read_original_initializers(rewritten)
    weights = zip(rewritten.graph.initializer, model.graph.initializer, strict=False)
    for rewritten_weight, weight in weights:
        if originals.get(weight.name, rewritten_weight) != weight:
            return False
    restored = strip_model(light_copy(rewritten))
    expected = strip_model(light_copy(model))
    # a restored bias has its values, which the other light copy may lack
    return canonical_bytes(light_copy(restored)) == canonical_bytes(light_copy(expected))


class _InsertedPair:
    """The nodes and initializers of one pair, with names that are new to the graph."""

    def __init__(
        self, key: tuple[str, Quantizer], placements: tuple[Placement, ...], names: UniqueNames
    ) -> None:
        self.qualified_tensor, self.quantizer = key
        self.placements = placements
        edge = placements[0].edge
        self.graph = edge.graph
        self.tensor = edge.tensor
        self.q = names.fresh(f"{self.tensor}_QuantizeLinear")
        self.dq = names.fresh(f"{self.tensor}_DequantizeLinear")
        self.quantized = names.fresh(f"{self.tensor}_quantized")
        self.output = names.fresh(f"{self.tensor}_dequantized")
        self.scale = names.fresh(f"{self.tensor}_scale")
        self.zero_point = names.fresh(f"{self.tensor}_zero_point")

    def nodes(self) -> tuple[NodeProto, NodeProto]:
        """Return the Q and the DQ."""
        return (
            self._make_node(QUANTIZE, self.q, self.tensor, self.quantized),
            self._make_node(DEQUANTIZE, self.dq, self.quantized, self.output),
        )

    def _make_node(self, op: str, name: str, tensor: str, result: str) -> NodeProto:
        """Return a Q or DQ with the rules that requested it."""
        inputs = [tensor, self.scale, self.zero_point]
        node = helper.make_node(op, inputs, [result], name=name, **self.quantizer.attributes())
        node.metadata_props.add(key=RULE_KEY, value=self._join_rules())
        return node

    def _join_rules(self) -> str:
        rules: set[str] = set()
        for placement in self.placements:
            rules.update(placement.because)
        return ", ".join(sorted(rules))

    def initializers(
        self, scales: PairScale, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> Iterator[TensorProto]:
        """Yield the scale in the tensor's float type, and the zero point 0 in the quantized type.

        Both are scalars, vectors along the axis, or have one value per block.
        """
        element = self.quantizer.element
        values = store_scales(scales.scales, element, dtype)
        yield numpy_helper.from_array(values.reshape(shape), self.scale)
        yield TensorProto(
            name=self.zero_point,
            data_type=element.code,
            dims=shape,
            raw_data=element.zero_bytes(values.size),
        )


def insert_pairs(index: GraphIndex, plan: Plan, scales: Scales) -> ModelProto:
    """Return the rewritten copy of an indexed model, without a test that stripping restores it."""
    pairs = _make_pairs(index, plan)
    model = ModelProto()
    model.CopyFrom(index.source.model)
    _insert_nodes(index, model.graph, pairs)
    _add_initializers(index, model.graph, pairs, scales)
    _write_metadata(model, plan, scales)
    return model


def name_scales(index: GraphIndex, plan: Plan) -> dict[tuple[str, Quantizer], str]:
    """Return the name of the scale that `insert_pairs` gives each pair."""
    names: dict[tuple[str, Quantizer], str] = {}
    for pair in _make_pairs(index, plan):
        names[pair.qualified_tensor, pair.quantizer] = pair.scale
    return names


def _make_pairs(index: GraphIndex, plan: Plan) -> list[_InsertedPair]:
    names = UniqueNames(index.source.model.graph, include_value_info=True)
    return [_InsertedPair(key, group, names) for key, group in group_by_pair(plan).items()]


def _add_initializers(
    index: GraphIndex, graph: GraphProto, pairs: list[_InsertedPair], scales: Scales
) -> None:
    """Add the scales and zero points of pairs to the main graph."""
    scales_by_pair = {(scale.tensor, scale.quantizer): scale for scale in scales.by_pair}
    scopes = index.scopes
    for pair in pairs:
        pair_scale = scales_by_pair.get((pair.qualified_tensor, pair.quantizer))
        if pair_scale is None:
            raise PlanError(
                f"the scales lack tensor {pair.qualified_tensor!r} with {pair.quantizer}."
                " Calibrate again."
            )
        scope = scopes[pair.graph]
        shape = _find_scale_shape(scope, pair.tensor, pair.quantizer)
        _check_scales(pair_scale, math.prod(shape))
        is_float = scope.is_float(pair.tensor)
        elem_type = scope.elem_type(pair.tensor) if is_float else TensorProto.FLOAT
        dtype = helper.tensor_dtype_to_np_dtype(elem_type)
        graph.initializer.extend(pair.initializers(pair_scale, dtype, shape))


def _check_scales(pair_scale: PairScale, expected: int) -> None:
    """Raise PlanError unless a pair has as many scales as needed, all positive and finite."""
    is_valid = all(0.0 < scale <= _LARGEST_SCALE for scale in pair_scale.scales)
    if not is_valid or len(pair_scale.scales) != expected:
        raise PlanError(
            f"the scales of tensor {pair_scale.tensor!r} are not {expected} positive numbers."
            " Calibrate again."
        )


def _find_scale_shape(index: GraphIndex, tensor: str, quantizer: Quantizer) -> tuple[int, ...]:
    """Return the shape of the scales that a tensor needs."""
    if quantizer.axis is None:
        return ()
    shape = known_sizes(index.shape(tensor))
    return quantizer.scale_shape(shape or index.constant(tensor).shape)


def _insert_nodes(index: GraphIndex, graph: GraphProto, pairs: list[_InsertedPair]) -> None:
    """Insert each pair before its first reader in a graph, after the pairs in its bodies."""
    for node in index.nodes:
        for name, body in node_bodies(graph.node[node.position]):
            path = qualified_name(index.path, f"{node.label}.{name}")
            _insert_nodes(index.scopes[path], body, pairs)
    pairs_by_slot = _map_slots(index, pairs)
    if not pairs_by_slot:
        return
    inserted: set[str] = set()
    nodes: list[NodeProto] = []
    for position, node in enumerate(graph.node):
        for slot in range(len(node.input)):
            pair = pairs_by_slot.get((position, slot))
            if pair is None:
                continue
            if pair.q not in inserted:
                inserted.add(pair.q)
                nodes.extend(pair.nodes())
            node.input[slot] = pair.output
        nodes.append(node)
    _replace_nodes(graph, nodes)


def _map_slots(
    index: GraphIndex, pairs: list[_InsertedPair]
) -> dict[tuple[int, int], _InsertedPair]:
    """Return the pair of each quantized input, by the node's position and the slot."""
    pairs_by_slot: dict[tuple[int, int], _InsertedPair] = {}
    for pair in pairs:
        if pair.graph != index.path:
            continue
        for placement in pair.placements:
            edge = placement.edge
            position = index.node(edge).position
            pairs_by_slot[position, edge.slot] = pair
    return pairs_by_slot


def _replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    kept = GraphProto()  # holds copies: most of the nodes belong to the graph
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def _write_metadata(model: ModelProto, plan: Plan, scales: Scales) -> None:
    """Write the metadata from which `check` plans the model again.

    It replaces the metadata of earlier runs. The record of equalized weights stays with them.
    """
    remove_metadata(model, kept=(EQUALIZATION_KEY, *CAST_KEYS))
    metadata = {
        TARGETS_KEY: " ".join(map(str, plan.targets)),
        RULES_KEY: "\n".join(plan.rule_sets),
        LEAVE_FLOAT_KEY: "\n".join(plan.leave_float),
        SENSITIVE_KEY: "\n".join(map(str, plan.sensitive or ())),
        SHAPES_KEY: "\n".join(map(str, plan.profiles)),
        METHOD_KEY: scales.method,
        DATA_KEY: _describe_data(scales),
        BATCH_KEY: scales.batch,
        RANGES_KEY: _describe_ranges(scales),
    }
    for key, value in metadata.items():
        if value:
            model.metadata_props.add(key=key, value=value)


def _describe_data(scales: Scales) -> str:
    return f"{scales.data} ({scales.samples} samples)" if scales.data else ""


def _describe_ranges(scales: Scales) -> str:
    ranges = scales.given_ranges
    if not ranges:
        return ""
    tensors = len(ranges.tensors)
    return f"{ranges.name} ({tensors} tensors)"
