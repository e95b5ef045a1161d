"""A graph during its conversion to Q/DQ pairs: nodes so far, integer formats and new names."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import msgspec
import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from qdq.arrays import Array
from qdq.graph.bodies import read_tensor_values
from qdq.graph.pairs import count_readers, stored_tensors
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import Source
from qdq.graph.unique_names import UniqueNames
from qdq.quantizer import integer_levels

#: Operators whose result is never below zero.
_NONNEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt", "Softplus")

#: Operators that combine all of their inputs. Their result is not below zero if no input is.
_COMBINES_INPUTS = ("Add", "Mul", "Concat")

#: Operators whose result is not below zero if their first input is not.
_KEEPS_SIGN = (
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "ReduceMax",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Gather",
    "Split",
    "Identity",
    "DepthToSpace",
    "SpaceToDepth",
    "Expand",
    "Tile",
    "Dropout",
    QUANTIZE,
    DEQUANTIZE,
)

#: The suffix that ONNX Runtime's quantizer appends to the name of a tensor.
_SUFFIX = "_quantized"

#: The last axis of a tensor.
LAST_AXIS = -1

#: The least and the largest integer of a tensor.
Levels = tuple[int, int]


class ConvertedNode(msgspec.Struct, frozen=True):
    """A node that was replaced by float operators and plain pairs."""

    #: Label of the node.
    node: str
    #: Its operator.
    op: str
    #: The conversion, as a sentence whose subject is the operator.
    conversion: str


class IntegerFormat(NamedTuple):
    """How an integer tensor is quantized."""

    #: Names of the tensors that hold the scale and the zero point, "" for none.
    scale: str
    zero_point: str
    #: The axis of several scales.
    axis: int | None = None

    @property
    def parameters(self) -> list[str]:
        """The scale and zero point as the inputs of a Q or DQ."""
        return [name for name in (self.scale, self.zero_point) if name]


class FoldedTensor(NamedTuple):
    """An integer tensor after a Clip or Cast that is folded into the DQ that reads it."""

    #: The tensor that the DQ reads in its place.
    origin: str
    #: The integers that a Clip lets through, None after a Cast alone.
    levels: Levels | None


class ModelWriter:
    """The names, initializers and conversions that the graphs of one model share."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.converted: list[ConvertedNode] = []
        self.initializers: list[TensorProto] = []
        # ONNX Runtime's quantizer leaves the float tensors in `value_info`: their names are reused.
        self.unique_name = UniqueNames(source.model.graph, include_value_info=False).fresh

    def store(self, values: Array, name: str) -> TensorProto:
        """Add an initializer with about this name and return it."""
        contiguous = np.asarray(values, order="C")
        tensor = numpy_helper.from_array(contiguous, self.unique_name(name))
        self.initializers.append(tensor)
        return tensor

    def record(self, node: NodeProto, conversion: str) -> None:
        """Record that a node was converted."""
        name = node.name or next(filter(None, node.output), "")
        converted = ConvertedNode(name, node.op_type, conversion)
        self.converted.append(converted)


class GraphWriter:
    """The main graph or a body during conversion.

    A body inherits the stored and quantized tensors of the graphs around it.
    """

    def __init__(
        self, model: ModelWriter, graph: GraphProto, outer: GraphWriter | None = None
    ) -> None:
        self.model = model
        self.unique_name = model.unique_name
        self.record = model.record
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.stored: dict[str, TensorProto] = {}
        #: Formats of the integer tensors by name.
        self.quantized: dict[str, IntegerFormat] = {}
        #: The input of each DynamicQuantizeLinear by the name of its result.
        self.dynamic_inputs: dict[str, str] = {}
        #: The result of each DynamicQuantizeLinear by the name of its scale.
        self.dynamic_scales: dict[str, str] = {}
        #: Results of the nodes so far.
        self.produced: set[str] = set()
        self.folded_tensors: dict[str, FoldedTensor] = {}
        #: Levels of integer tensors whose Q has no zero point that specifies them.
        self.assumed_levels: dict[str, Levels] = {}
        #: Tensors without values below zero.
        self.nonnegative: set[str] = set()
        #: Results of nodes that were folded into others.
        self.folded_results: set[str] = set()
        self.producers = _map_producers(graph)
        self.consumers = _map_consumers(graph)
        self._readers = count_readers(graph)
        self._dequantized: dict[tuple[str, IntegerFormat], str] = {}
        self._scalars: dict[str, str] = {}
        if outer is not None:
            self._inherit(outer)
        self.stored.update(stored_tensors(graph))

    def _inherit(self, outer: GraphWriter) -> None:
        self.stored.update(outer.stored)
        self.quantized.update(outer.quantized)
        self.dynamic_inputs.update(outer.dynamic_inputs)
        self.dynamic_scales.update(outer.dynamic_scales)
        self.produced.update(outer.produced)

    def is_only_dequantized(self, tensor: str) -> bool:
        """Whether only DequantizeLinear reads a tensor: no other node, body or graph output."""
        consumers = self.consumers.get(tensor, ())
        dequantizers = sum(node.op_type == DEQUANTIZE for node in consumers)
        return self._readers[tensor] == dequantizers

    def append(self, node: NodeProto) -> None:
        """Append a node to the converted graph."""
        self.nodes.append(node)
        self.produced.update(node.output)
        if self._is_nonnegative(node):
            self.nonnegative.update(node.output)

    def append_operator(self, op: str, inputs: list[str], result: str, **attributes: Any) -> None:
        """Append an operator that computes `result`, with a unique name."""
        name = self.unique_name(f"{result}_{op}")
        node = helper.make_node(op, inputs, [result], name=name, **attributes)
        self.append(node)

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append an operator with one result of about this name, and return the result's name."""
        result = self.unique_name(name)
        self.append_operator(op, inputs, result, **attributes)
        return result

    def read_values(self, name: str) -> Array:
        """Return the values of a stored tensor.

        Raises KeyError for any other tensor and ModelError where the values cannot be read.
        """
        source = self.model.source
        return read_tensor_values(self.stored[name], source.name, source.folder)

    def has_stored(self, *names: str) -> bool:
        """Whether all of some tensors are stored."""
        return self.stored.keys() >= set(names)

    def store(self, values: Array, name: str) -> str:
        """Add an initializer with about this name to the main graph, and return its name."""
        tensor = self.model.store(values, name)
        self.stored[tensor.name] = tensor
        return tensor.name

    def dequantize_operand(self, tensor: str, scale: str, zero_point: str, axis: int | None) -> str:
        """Return an operand of a quantized operator in floats.

        `axis` is that of several scales, -1 for the last of a stored tensor.
        """
        if not self.has_several_values(scale):
            scale = self.store_scalar(scale)
            zero_point = self.store_scalar(zero_point)
            return self.dequantize(tensor, IntegerFormat(scale, zero_point))
        if axis == LAST_AXIS:
            stored = self.stored.get(tensor)
            axis = None if stored is None else len(stored.dims) - 1
        return self.dequantize(tensor, IntegerFormat(scale, zero_point, axis))

    def dequantize(self, tensor: str, integer_format: IntegerFormat) -> str:
        """Return the result of the DequantizeLinear of an integer tensor, adding it if needed."""
        key = (tensor, integer_format)
        if key in self._dequantized:
            return self._dequantized[key]
        axis = {} if integer_format.axis is None else {"axis": integer_format.axis}
        inputs = [tensor, *integer_format.parameters]
        name = f"{remove_suffix(tensor)}_dequantized"
        result = self.add(DEQUANTIZE, inputs, name, **axis)
        self._dequantized[key] = result
        if self.has_range_from_zero(integer_format):
            self.nonnegative.add(result)
        return result

    def store_scalar(self, name: str) -> str:
        """Return the name of a scale or zero point; a vector of one number becomes a scalar."""
        tensor = self.stored.get(name)
        if tensor is None or not tensor.dims or _count_elements(tensor) != 1:
            return name
        if name not in self._scalars:
            scalar = self.read_values(name).reshape(())
            self._scalars[name] = self.store(scalar, f"{name}_scalar")
        return self._scalars[name]

    def has_several_values(self, name: str) -> bool:
        """Whether a scale is stored and holds more than one number."""
        return name in self.stored and _count_elements(self.stored[name]) > 1

    def levels(self, integer_format: IntegerFormat) -> Levels | None:
        """Return the least and the largest integer of a format.

        None where the zero point is not stored or is not of an integer type.
        """
        zero_point = self.stored.get(integer_format.zero_point)
        return None if zero_point is None else integer_levels(zero_point.data_type)

    def has_range_from_zero(self, integer_format: IntegerFormat) -> bool:
        """Whether the least integer of a format represents zero, so that no value is below zero."""
        levels = self.levels(integer_format)
        if levels is None:
            return False
        zero_points = self.read_values(integer_format.zero_point)
        return bool((zero_points == levels[0]).all())

    def _is_nonnegative(self, node: NodeProto) -> bool:
        """Whether the results of a node have no values below zero."""
        if node.op_type in _NONNEGATIVE:
            return True
        if node.op_type == "Clip":
            return self._is_clipped_at_zero(node)
        if node.op_type in _COMBINES_INPUTS:
            return self.nonnegative.issuperset(node.input)
        if node.op_type in _KEEPS_SIGN:
            return self.nonnegative.issuperset(node.input[:1])
        return False

    def _is_clipped_at_zero(self, clip: NodeProto) -> bool:
        least = input_name(clip, 1)
        if least not in self.stored:
            return False
        bounds = self.read_values(least)
        return bool((bounds >= 0).all())


def _map_producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Return the node that computes each tensor."""
    producers: dict[str, NodeProto] = {}
    for node in graph.node:
        producers.update(dict.fromkeys(node.output, node))
    return producers


def _map_consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the nodes that read each tensor, one entry per input slot."""
    consumers: defaultdict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    return dict(consumers)


def _count_elements(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims))


def remove_suffix(name: str, suffix: str = _SUFFIX) -> str:
    """Return a name without the suffix that a quantizer appended to it."""
    return name.removesuffix(suffix) or name


def input_name(node: NodeProto, slot: int | None) -> str:
    """Return the name in an input slot, "" where there is none."""
    if slot is None or slot >= len(node.input):
        return ""
    name: str = node.input[slot]
    return name


def describe_node(node: NodeProto) -> str:
    """Return a node's name and operator for a message."""
    return f"node {node.name!r} ({node.op_type})"


def copy_node(node: NodeProto) -> NodeProto:
    """Return a copy of a node."""
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
