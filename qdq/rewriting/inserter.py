"""Plan and Scales -> the model with its pairs: nodes and initializers are added, nothing else changes.

A pair stands in the graph that its readers lie in, also where what it quantizes comes from outside;
scales and zero points are initializers of the main graph, which every body sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qdq.calibration.scales import PairScale, Scales
from qdq.errors import ModelError, PlanError
from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.metadata import (
    BATCH_KEY,
    DATA_KEY,
    LEAVE_FLOAT_KEY,
    METHOD_KEY,
    RANGES_KEY,
    RULE_KEY,
    RULES_KEY,
    SHAPES_KEY,
    TARGETS_KEY,
    remove_metadata,
)
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import ModelLike, canonical_bytes, light_copy
from qdq.graph.unique_names import UniqueNames
from qdq.planning.decisions import Placement, Plan, group_by_pair
from qdq.planning.plan_edits import require_model
from qdq.planning.planner import source_at_plan_opset
from qdq.quantized.stripper import strip_model
from qdq.quantizer import Quantizer


def apply(model: ModelLike, plan: Plan, scales: Scales) -> onnx.ModelProto:
    """Return a copy of the model with a Q/DQ pair on every planned edge.

    Raises PlanError where plan, scales and model do not belong together, and ModelError where
    stripping the result does not give the model back byte for byte. `qdq.save` runs onnx.checker.
    """
    index = GraphIndex(source_at_plan_opset(load(model), plan))
    return apply_plan(index, plan, scales)


def apply_plan(index: GraphIndex, plan: Plan, scales: Scales) -> onnx.ModelProto:
    """Return the rewritten copy of a model that is indexed already."""
    require_model(plan, index)
    if scales.plan != plan.key:
        raise PlanError("the scales were computed for another plan; calibrate again with this one")
    rewritten = _rewrite(index, plan, scales)
    if not is_restored_by_stripping(rewritten, index.source.model):
        raise ModelError(
            f"{index.source.name}: stripping the result does not give the model back; please report this as a defect of qdq"
        )
    return rewritten


def is_restored_by_stripping(rewritten: onnx.ModelProto, model: onnx.ModelProto) -> bool:
    """Whether stripping a rewritten model gives a model back byte for byte: its weights stand first, unchanged, and the rest comes back."""
    weights = zip(rewritten.graph.initializer, model.graph.initializer, strict=False)
    return all(a == b for a, b in weights) and canonical_bytes(
        strip_model(light_copy(rewritten))
    ) == canonical_bytes(strip_model(light_copy(model)))


class _Pair:
    """The nodes and initializers of one pair, with names the graph does not use yet."""

    def __init__(
        self, key: tuple[str, Quantizer], placements: tuple[Placement, ...], names: UniqueNames
    ) -> None:
        (self.read, self.quantizer), self.placements = key, placements
        self.graph, self.tensor = placements[0].edge.graph, placements[0].edge.tensor
        self.q = names.fresh(f"{self.tensor}_QuantizeLinear")
        self.dq = names.fresh(f"{self.tensor}_DequantizeLinear")
        self.quantized = names.fresh(f"{self.tensor}_quantized")
        self.output = names.fresh(f"{self.tensor}_dequantized")
        self.scale = names.fresh(f"{self.tensor}_scale")
        self.zero_point = names.fresh(f"{self.tensor}_zero_point")

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Yield the Q and the DQ, each with the rules that asked for it."""
        rules = ", ".join(sorted({name for p in self.placements for name in p.because}))
        axis: dict[str, Any] = {} if self.quantizer.axis is None else {"axis": self.quantizer.axis}
        steps = (
            (QUANTIZE, self.q, self.tensor, self.quantized),
            (DEQUANTIZE, self.dq, self.quantized, self.output),
        )
        for op, name, source, result in steps:
            node = onnx.helper.make_node(
                op, [source, self.scale, self.zero_point], [result], name=name, **axis
            )
            node.metadata_props.add(key=RULE_KEY, value=rules)
            yield node

    def initializers(
        self, scales: PairScale, dtype: type[np.float16] | type[np.float32]
    ) -> Iterator[onnx.TensorProto]:
        """Yield the scale, of the tensor's own float type, and the zero point 0 of the quantized type: scalars, or vectors along the axis."""
        shape = () if self.quantizer.axis is None else (len(scales.scales),)
        values = np.maximum(np.array(scales.scales, dtype), np.finfo(dtype).tiny)
        yield numpy_helper.from_array(values.reshape(shape), self.scale)
        yield onnx.TensorProto(
            name=self.zero_point,
            data_type=self.quantizer.element.code,
            dims=shape,
            raw_data=bytes(values.size),
        )


def _rewrite(index: GraphIndex, plan: Plan, scales: Scales) -> onnx.ModelProto:
    names = UniqueNames(index.source.model.graph, include_value_info=True)
    pairs = [_Pair(key, placements, names) for key, placements in group_by_pair(plan).items()]
    model = onnx.ModelProto()
    model.CopyFrom(index.source.model)
    _insert(index, model.graph, pairs)
    by_pair = {(s.tensor, s.quantizer): s for s in scales.by_pair}
    for pair in pairs:
        if (pair.read, pair.quantizer) not in by_pair:
            raise PlanError(
                f"the scales lack tensor {pair.read!r} with {pair.quantizer}; calibrate again"
            )
        scope, pair_scale = index.scopes[pair.graph], by_pair[pair.read, pair.quantizer]
        _check_scales(scope, pair.tensor, pair_scale)
        half = scope.elem_type(pair.tensor) == onnx.TensorProto.FLOAT16
        model.graph.initializer.extend(
            pair.initializers(pair_scale, np.float16 if half else np.float32)
        )
    _sign(model, plan, scales)
    return model


def _check_scales(index: GraphIndex, tensor: str, pair: PairScale) -> None:
    axis, largest = pair.quantizer.axis, float(np.finfo(np.float32).max)
    known = index.shape(tensor) if axis is not None else None
    wanted = 1 if axis is None else (known and known[axis]) or index.constant(tensor).shape[axis]
    if len(pair.scales) != wanted or not all(0.0 < s <= largest for s in pair.scales):
        raise PlanError(
            f"the scales of tensor {pair.tensor!r} are not {wanted} positive numbers; calibrate again"
        )


def _insert(index: GraphIndex, graph: onnx.GraphProto, pairs: list[_Pair]) -> None:
    """Put each pair before the first node of its graph that reads it, and lead its edges through it; bodies get theirs first."""
    for node in index.nodes:
        for name, body in node_bodies(graph.node[node.position]):
            _insert(index.scopes[qualified_name(index.path, f"{node.label}.{name}")], body, pairs)
    by_edge = {
        (index.node(p.edge).position, p.edge.slot): pair
        for pair in pairs
        if pair.graph == index.path
        for p in pair.placements
    }
    if not by_edge:
        return
    written: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for position, node in enumerate(graph.node):
        for slot in range(len(node.input)):
            pair = by_edge.get((position, slot))
            if pair is None:
                continue
            if pair.q not in written:
                written.add(pair.q)
                nodes.extend(pair.nodes())
            node.input[slot] = pair.output
        nodes.append(node)
    kept = onnx.GraphProto()
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def _sign(model: onnx.ModelProto, plan: Plan, scales: Scales) -> None:
    """Write into the model what `check` needs to plan it again, in place of what an earlier run may have left there."""
    remove_metadata(model)
    facts = {
        TARGETS_KEY: " ".join(map(str, plan.targets)),
        RULES_KEY: "\n".join(plan.rule_sets),
        LEAVE_FLOAT_KEY: "\n".join(plan.leave_float),
        SHAPES_KEY: "\n".join(map(str, plan.profiles)),
        METHOD_KEY: scales.method,
        DATA_KEY: f"{scales.data} ({scales.samples} samples)" if scales.data else "",
        BATCH_KEY: scales.batch,
        RANGES_KEY: f"{scales.given_ranges.name} ({len(scales.given_ranges.tensors)} tensors)"
        if scales.given_ranges
        else "",
    }
    for key, value in facts.items():
        if value:
            model.metadata_props.add(key=key, value=value)
