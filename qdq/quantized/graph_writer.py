"""The graph of a quantized model while it is written anew: the nodes so far, what they quantize, and names for more."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from qdq.arrays import Array
from qdq.graph.bodies import read_tensor_values
from qdq.graph.pairs import count_readers, stored_tensors
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import Source
from qdq.graph.unique_names import UniqueNames
from qdq.quantizer import integer_levels

#: Operators that give nothing below zero, whatever they read, and those that do so where nothing that they read is below it.
_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt", "Softplus")
_KEEPS_SIGN = (
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze",
    "Slice", "Gather", "Split", "Identity", "Concat", "Add", "Mul", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Dropout", QUANTIZE, DEQUANTIZE,
)  # fmt: skip
_SEVERAL = ("Add", "Mul", "Concat")

#: What ONNX Runtime's quantizer appends to the name of a tensor.
_SUFFIX = "_quantized"


class ConvertedNode(msgspec.Struct, frozen=True):
    """A node that had to be written otherwise."""

    node: str
    op: str
    #: What became of it.
    conversion: str


class IntegerFormat(NamedTuple):
    """How an integer tensor is quantized: names of its scale and zero point, "" for none, and the axis of several scales."""

    scale: str
    zero: str
    axis: int | None = None


class ModelWriter:
    """What the graphs of one model share: names, new initializers, and what was converted."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.converted: list[ConvertedNode] = []
        self.initializers: list[onnx.TensorProto] = []
        #: What ONNX Runtime's quantizer leaves in `value_info` are the float tensors, whose names come back.
        self.fresh = UniqueNames(source.model.graph, include_value_info=False).fresh

    def store(self, values: Array, wanted: str) -> onnx.TensorProto:
        """Add an initializer and return it."""
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), self.fresh(wanted))
        self.initializers.append(tensor)
        return tensor

    def note(self, node: onnx.NodeProto, says: str) -> None:
        """Record that a node was converted."""
        self.converted.append(
            ConvertedNode(node.name or next(filter(None, node.output), ""), node.op_type, says)
        )


class GraphWriter:
    """One graph on its way, the main graph or a body; a body sees what the graphs around it store and quantize."""

    def __init__(
        self, model: ModelWriter, graph: onnx.GraphProto, around: GraphWriter | None = None
    ) -> None:
        self.model, self.graph = model, graph
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, onnx.TensorProto] = (
            around.stored if around else {}
        ) | stored_tensors(graph)
        #: Integer tensors by name.
        self.quantized: dict[str, IntegerFormat] = dict(around.quantized) if around else {}
        #: What DynamicQuantizeLinear quantized by the name of its result, and that name by the name of its scale.
        self.dynamic: dict[str, str] = dict(around.dynamic) if around else {}
        self.dynamic_scales: dict[str, str] = dict(around.dynamic_scales) if around else {}
        #: Integer tensors behind a Clip, or a Cast that changes nothing: what these read, and the integers that a Clip leaves.
        self.passed: dict[str, tuple[str, tuple[int, int] | None]] = {}
        #: What integer tensors hold whose Q does not say.
        self.untold: dict[str, tuple[int, int]] = {}
        #: Tensors that hold nothing below zero.
        self.not_negative: set[str] = set()
        #: What the nodes so far make.
        self.made: set[str] = set(around.made) if around else set()
        #: Results of nodes that were folded into others.
        self.folded: set[str] = set()
        self.producers = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self._reads = count_readers(graph)
        self._floats: dict[tuple[str, IntegerFormat], str] = {}
        self._scalars: dict[str, str] = {}

    def only_dequantized(self, tensor: str) -> bool:
        """Whether nothing but DequantizeLinear reads a tensor: no other node, no body, and no caller of the graph."""
        return self._reads[tensor] == sum(
            node.op_type == DEQUANTIZE for node in self.consumers.get(tensor, ())
        )

    def append(self, node: onnx.NodeProto) -> None:
        """Add a node behind those so far."""
        self.nodes.append(node)
        self.made.update(node.output)
        if self._gives_no_negative(node):
            self.not_negative.update(node.output)

    def add(self, op: str, inputs: list[str], wanted: str, **attributes: Any) -> str:
        """Add a node with one result of about this name, and return the name."""
        result = self.model.fresh(wanted)
        self.append(
            helper.make_node(
                op, inputs, [result], name=self.model.fresh(f"{result}_{op}"), **attributes
            )
        )
        return result

    def values(self, name: str) -> Array:
        """Return the values of a stored tensor; raises KeyError for another, and ModelError where they cannot be read."""
        return read_tensor_values(
            self.stored[name], self.model.source.name, self.model.source.folder
        )

    def store(self, values: Array, wanted: str) -> str:
        """Add an initializer to the main graph and return its name."""
        tensor = self.model.store(values, wanted)
        self.stored[tensor.name] = tensor
        return tensor.name

    def to_float(self, tensor: str, form: IntegerFormat) -> str:
        """Return the name of the DequantizeLinear of an integer tensor, which is made where there is none yet."""
        if (tensor, form) not in self._floats:
            axis = {} if form.axis is None else {"axis": form.axis}
            self._floats[tensor, form] = self.add(
                DEQUANTIZE,
                [tensor, *filter(None, form[:2])],
                f"{remove_suffix(tensor)}_dequantized",
                **axis,
            )
            if self.begins_at_zero(form):
                self.not_negative.add(self._floats[tensor, form])
        return self._floats[tensor, form]

    def scalar(self, name: str) -> str:
        """Return the name of a scale or zero point, as a scalar where it is a vector of one number."""
        stored = self.stored.get(name)
        if stored is None or not stored.dims or int(np.prod(stored.dims)) != 1:
            return name
        if name not in self._scalars:
            self._scalars[name] = self.store(self.values(name).reshape(()), f"{name}_scalar")
        return self._scalars[name]

    def holds_several(self, name: str) -> bool:
        """Whether a stored scale holds more than one number."""
        return name in self.stored and int(np.prod(self.stored[name].dims)) > 1

    def levels(self, form: IntegerFormat) -> tuple[int, int] | None:
        """Return the least and the largest integer of a form's type; None where its zero point does not say one."""
        return (
            integer_levels(self.stored[form.zero].data_type) if form.zero in self.stored else None
        )

    def begins_at_zero(self, form: IntegerFormat) -> bool:
        """Whether the least integer of a form stands for zero, so that nothing below zero is left."""
        levels = self.levels(form)
        return levels is not None and bool((self.values(form.zero) == levels[0]).all())

    def _gives_no_negative(self, node: onnx.NodeProto) -> bool:
        if node.op_type in _NOT_NEGATIVE:
            return True
        if node.op_type == "Clip":
            return (
                len(node.input) > 1
                and node.input[1] in self.stored
                and bool((self.values(node.input[1]) >= 0).all())
            )
        data = node.input if node.op_type in _SEVERAL else node.input[:1]
        return node.op_type in _KEEPS_SIGN and all(name in self.not_negative for name in data)


def remove_suffix(name: str, suffix: str = _SUFFIX) -> str:
    """Return a name without what a quantizer appended to it."""
    return name.removesuffix(suffix) or name


def input_name(node: onnx.NodeProto, slot: int | None) -> str:
    """Return the name in an input slot, "" where there is none."""
    return node.input[slot] if slot is not None and len(node.input) > slot else ""


def copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
