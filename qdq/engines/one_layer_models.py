"""Networks of one layer, made from a form: the networks that `qdq probe` compiles.

Weighted layers have pairs on both operands, or on the weight alone where it is in INT4. Other
layers are between an INT8 (FP8) input and output of the network, so that the layer's own kernel is
measured and not the quantization around it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qdq.arrays import Array
from qdq.engines.layer_forms import LayerForm, complete_form
from qdq.engines.measured_layers import LayerOperand, MeasuredLayer, make_layer
from qdq.graph.operators import RECURRENT, WEIGHTED
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT4_LEVELS, INT8_LEVELS

#: Name of the node that is measured in every network.
LAYER = "layer"
_OUTPUT = "y"

#: The opset and the IR version: those of INT4 and scales in blocks, and those of other pairs.
_BLOCK_VERSIONS = (21, 10)
_VERSIONS = (19, 9)
_FLOAT_TYPES = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float16": (TensorProto.FLOAT16, np.float16),
}

#: By kind of pairs; other kinds have no pairs.
_STORED_TYPES = {
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "int4": TensorProto.INT4,
}

#: Scales for data in [-1, 1], which every network reads.
_SCALES = {
    TensorProto.INT8: 1 / INT8_LEVELS,
    TensorProto.FLOAT8E4M3FN: 1 / ELEMENT_TYPES[E4M3].largest,
    TensorProto.INT4: 1 / INT4_LEVELS,
}


def make_network(form: LayerForm, pairs: str = "int8") -> onnx.ModelProto:
    """Return the one-layer network of a form with a kind of pairs, or with ``none``."""
    full_form = complete_form(form)
    network = _Network(full_form.graph, pairs)
    return network.make_model(full_form.operator, make_layer(full_form))


class _Network:
    """A graph under construction."""

    def __init__(self, graph: str, pairs: str) -> None:
        self._elem_type, self._dtype = _FLOAT_TYPES[graph]
        self._graph = onnx.GraphProto(name="one-layer")
        self._stored_type = _STORED_TYPES.get(pairs)

    def make_model(self, operator: str, layer: MeasuredLayer) -> onnx.ModelProto:
        """Return the network of one layer with inferred shapes."""
        is_weighted = operator in WEIGHTED
        inputs = [self._add_operand(operand, is_weighted) for operand in layer.operands]
        outputs = [_OUTPUT]
        if operator in RECURRENT:
            outputs = ["", _OUTPUT]
        node = helper.make_node(operator, inputs, outputs, name=LAYER, **layer.attributes)
        self._graph.node.append(node)
        self._add_output(is_weighted)
        version, ir_version = _BLOCK_VERSIONS if layer.has_blocks else _VERSIONS
        opset = helper.make_opsetid("", version)
        model = helper.make_model(self._graph, opset_imports=[opset], ir_version=ir_version)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)

    def _add_operand(self, operand: LayerOperand, is_weighted: bool) -> str:
        """Add an operand and its pair, and return the tensor that the layer reads."""
        name = operand.name
        if name == "":
            return ""
        stored_type = self._stored_type if operand.has_pair else None
        if operand.is_constant:
            values = self._make_values(operand)
            constant = numpy_helper.from_array(values, name)
            self._graph.initializer.append(constant)
        elif stored_type is not None and not is_weighted:
            self._add_input(operand, stored_type)
            return self._add_dequantize(operand, name)
        else:
            self._add_input(operand, self._elem_type)
        if stored_type is None:
            return name
        quantized = self._add_quantize(operand)
        return self._add_dequantize(operand, quantized)

    def _add_input(self, operand: LayerOperand, elem_type: int) -> None:
        value = helper.make_tensor_value_info(operand.name, elem_type, operand.shape)
        self._graph.input.append(value)

    def _add_output(self, is_weighted: bool) -> None:
        """Add the graph output: float for a weighted layer, else quantized."""
        name = _OUTPUT
        elem_type = self._elem_type
        if self._stored_type is not None and not is_weighted:
            name = self._add_quantize(LayerOperand(_OUTPUT, ()))
            elem_type = self._stored_type
        value = helper.make_tensor_value_info(name, elem_type, None)
        self._graph.output.append(value)

    def _make_values(self, operand: LayerOperand) -> Array:
        """Return the values of a constant: integers as INT64, random ones in [-1, 1]."""
        if not operand.values:
            random = np.random.default_rng(0)
            return random.uniform(-1, 1, operand.shape).astype(self._dtype)
        values = np.array(operand.values)
        if values.dtype != np.int64:
            values = values.astype(self._dtype)
        return np.reshape(values, operand.shape)

    def _add_quantize(self, operand: LayerOperand) -> str:
        return self._add_conversion("QuantizeLinear", operand, operand.name)

    def _add_dequantize(self, operand: LayerOperand, source: str) -> str:
        return self._add_conversion("DequantizeLinear", operand, source)

    def _add_conversion(self, operator: str, operand: LayerOperand, source: str) -> str:
        """Add a Q or DQ of an operand that reads `source`, and return its output."""
        scale = f"{operand.name}_scale"
        zero_point = f"{operand.name}_zero_point"
        output = f"{operand.name}_{operator}"
        if all(constant.name != scale for constant in self._graph.initializer):
            self._add_scale(operand, scale, zero_point)
        inputs = [source, scale, zero_point]
        node = helper.make_node(operator, inputs, [output], name=output)
        if operand.axis is not None:
            axis = helper.make_attribute("axis", operand.axis)
            node.attribute.append(axis)
        if operand.block:
            block_size = helper.make_attribute("block_size", operand.block)
            node.attribute.append(block_size)
        self._graph.node.append(node)
        return output

    def _add_scale(self, operand: LayerOperand, scale: str, zero_point: str) -> None:
        stored_type = self._stored_type or TensorProto.INT8
        shape = operand.scale_shape
        values = np.full(shape, _SCALES[stored_type], self._dtype)
        scales = numpy_helper.from_array(values, scale)
        zeros = [0] * values.size
        zero_points = helper.make_tensor(zero_point, stored_type, shape, zeros)
        self._graph.initializer.extend([scales, zero_points])
