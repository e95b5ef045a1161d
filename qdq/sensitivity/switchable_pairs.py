"""Pairs of a plan in graphs that are run with any part of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qdq.arrays import Array
from qdq.calibration.scales import PairScale, Scales
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.unique_names import UniqueNames
from qdq.planning.decisions import Placement, Plan
from qdq.quantizer import Quantizer
from qdq.rewriting.stored_scales import store_scales


class SwitchablePair(msgspec.Struct, frozen=True):
    """A pair on one input of one node."""

    placement: Placement
    #: The graph input that switches an activation's pair, or holds a weight. Other names of the
    #: pair begin with it.
    input_name: str
    #: The type of the tensor: ONNX's number.
    elem_type: int
    #: The scales in the tensor's type.
    scales: Array
    is_weight: bool

    @property
    def quantizer(self) -> Quantizer:
        """The format of the pair."""
        return self.placement.quantizer

    @property
    def edge(self) -> Edge:
        """The input of the node."""
        return self.placement.edge

    def make_nodes(self, tensor: str, result: str) -> list[NodeProto]:
        """Return the constants of the pair, its Q and its DQ.

        The constants are nodes, so that bodies can hold them too.
        """
        scale, zero_point = f"{self.input_name}_scale", f"{self.input_name}_zero_point"
        quantized = f"{result}_quantized"
        attributes = self.quantizer.attributes()
        zero_values = TensorProto(
            data_type=self.quantizer.element.code,
            dims=self.scales.shape,
            raw_data=self.quantizer.element.zero_bytes(self.scales.size),
        )
        return [
            helper.make_node("Constant", [], [scale], value=numpy_helper.from_array(self.scales)),
            helper.make_node("Constant", [], [zero_point], value=zero_values),
            helper.make_node(QUANTIZE, [tensor, scale, zero_point], [quantized], **attributes),
            helper.make_node(DEQUANTIZE, [quantized, scale, zero_point], [result], **attributes),
        ]

    def make_switch(self, tensor: str, result: str) -> NodeProto:
        """Return the If that reads a tensor through the pair or directly."""
        on_name, off_name = f"{self.input_name}_on", f"{self.input_name}_off"
        identity = helper.make_node("Identity", [tensor], [off_name])
        return helper.make_node(
            "If",
            [self.input_name],
            [result],
            then_branch=self._make_branch(self.make_nodes(tensor, on_name), on_name),
            else_branch=self._make_branch([identity], off_name),
        )

    def _make_branch(self, nodes: Sequence[NodeProto], output: str) -> onnx.GraphProto:
        value = onnx.ValueInfoProto(name=output)
        value.type.tensor_type.elem_type = self.elem_type
        return helper.make_graph(nodes, f"{output}_branch", [], [value])

    def declare_input(self) -> onnx.ValueInfoProto:
        """Return the graph input of the pair."""
        if self.is_weight:
            return helper.make_tensor_value_info(self.input_name, self.elem_type, None)
        return helper.make_tensor_value_info(self.input_name, TensorProto.BOOL, [])


def list_switchable_pairs(
    index: GraphIndex, plan: Plan, scales: Scales
) -> Iterator[SwitchablePair]:
    """Yield a pair for each placement of a plan, with names that are new to the model."""
    by_pair = {(item.tensor, item.quantizer): item for item in scales.by_pair}
    names = UniqueNames(index.source.model.graph, include_value_info=True)
    for i, placement in enumerate(plan.placements):
        edge = placement.edge
        scope = index.scope(edge)
        is_float = scope.is_float(edge.tensor)
        elem_type = scope.elem_type(edge.tensor) if is_float else TensorProto.FLOAT
        pair_scale = by_pair[edge.qualified_tensor, placement.quantizer]
        yield SwitchablePair(
            placement,
            names.fresh(f"switch_{i}"),
            elem_type,
            _store_pair_scales(scope, placement, elem_type, pair_scale),
            scope.is_constant(edge.tensor),
        )


def _store_pair_scales(
    scope: GraphIndex, placement: Placement, elem_type: int, pair_scale: PairScale
) -> Array:
    """Return the scales of a pair as the rewritten file holds them."""
    quantizer = placement.quantizer
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    values = store_scales(pair_scale.scales, quantizer.element, dtype)
    if not quantizer.block_size:
        return values.reshape(() if quantizer.axis is None else (values.size,))
    shape = scope.constant(placement.edge.tensor).shape
    return values.reshape(quantizer.scale_shape(shape))
