"""Q/DQ propagation: DQ moved forward and Q backward past the operators that commute with them.

TensorRT dequantizes as late and quantizes as early as it can: an operator commutes with Q if
Q(Op(x)) == Op(Q(x)), and with DQ if Op(DQ(x)) == DQ(Op(x)) (TensorRT documentation, explicit
quantization, Q/DQ propagation). The documentation proves it for MaxPool and disproves it for
AveragePool; for operators that only move values, and for Relu with a zero point of zero, it
follows from the definition. A Q after a Concat moves onto every input (Model Optimizer,
`get_concat_eliminated_tensors`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
from onnx import TensorProto

from qdq.engines.prediction.fused_casts import (
    feeds_only_quantize,
    find_last_cast,
    list_cast_types,
    walk_back,
)
from qdq.errors import ModelError
from qdq.graph.aliases import (
    can_cast_dequantized,
    is_alias,
    is_float_cast,
    keeps_values,
)
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex, Node
from qdq.graph.pairs import PAIR_OPERATORS
from qdq.graph.patterns import can_commute_with_quantization
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE

#: Operators that commute with Q and DQ beside those that move, pick or repeat values: the maximum
#: with a zero point of zero, and the joining of tensors with one scale.
_COMMUTES = ("Relu", "Concat")

#: TensorRT's type of each quantized ONNX type. UINT8 is imported as INT8 (onnx-tensorrt,
#: QuantDequantLinearHelper).
_QUANTIZED_TYPES: dict[int, str] = {
    TensorProto.INT8: "Int8",
    TensorProto.UINT8: "Int8",
    TensorProto.FLOAT8E4M3FN: "FP8",
}
_WEIGHT_TYPES: dict[int, str] = {
    **_QUANTIZED_TYPES,
    getattr(TensorProto, "INT4", -1): "Int4",
}

_DATA_SLOT = 0
_SCALE_SLOT = 1
_PAD_VALUE_SLOT = 2

#: The slot under which a node reads what its bodies capture.
_CAPTURED_SLOT = -1


class Quantization(msgspec.Struct, frozen=True):
    """How a tensor is quantized: tensors with equal ones can be exchanged without arithmetic."""

    #: ``Int8`` or ``FP8``.
    dtype: str
    #: The scale in hexadecimal, so that equal scales are equal texts.
    scale: str


class SlotRead(msgspec.Struct, frozen=True):
    """The tensor that one input slot reads, as it is or through a Q and a DQ."""

    tensor: str
    quantization: Quantization | None = None
    #: Labels of the Q and the DQ, "" where there is none.
    q: str = ""
    dq: str = ""


#: A node and the slot with which it reads a tensor.
TensorReader = tuple[Node, int]
_Requirements = dict[str, Quantization]


class QuantizationFlow:
    """Which tensors of a graph are read and written in a quantized type."""

    def __init__(self, index: CompilerView) -> None:
        self.index = index
        #: Tensors that the builder computes, such as weights.
        self.folded = _find_folded_tensors(index)
        #: By output of a Q or DQ: the tensor that is read in its place.
        self._reads: dict[str, SlotRead] = {}
        #: The nodes and slots that read each tensor as it is, without a Q.
        self.float_readers: dict[str, list[TensorReader]] = defaultdict(list)
        #: The reads of each tensor through a Q.
        self.quantized_reads: dict[str, list[SlotRead]] = defaultdict(list)
        #: The nodes that read each tensor, with or without a Q.
        self.readers: dict[str, list[Node]] = defaultdict(list)
        #: Tensors that a DQ has moved past: they are quantized already.
        self.dequantized: dict[str, SlotRead] = {}
        #: The nodes that compute: no constants and no pairs, nor what reaches no output.
        self.nodes = tuple(self._collect_nodes())
        #: Names of graph outputs by the tensor that they read.
        self.outputs = {self.read(name).tensor: name for name in index.outputs}
        #: The quantization that all readers of a tensor require.
        self.required = self._find_required()

    def read(self, tensor: str) -> SlotRead:
        """Return the read of a tensor, past any Q and DQ before it."""
        return self._reads.get(tensor, SlotRead(tensor))

    def inputs(self, node: Node) -> tuple[tuple[int, SlotRead], ...]:
        """Return the slots of a node that read computed tensors, each with its read."""
        reads = []
        for slot, tensor in enumerate(node.inputs):
            if tensor and tensor not in self.folded:
                reads.append((slot, self.read(tensor)))
        return tuple(reads)

    def reads(self, node: Node) -> list[SlotRead]:
        """Return the reads of a node that are of computed tensors, in the order of its slots."""
        return [read for _, read in self.inputs(node)]

    def quantization(self, read: SlotRead) -> Quantization | None:
        """Return how a read tensor is quantized already, or None where it is float."""
        if read.quantization:
            return read.quantization
        dequantized = self.dequantized.get(read.tensor, read)
        return dequantized.quantization

    def moved_quantization(self, reads: Iterable[SlotRead], output: str) -> Quantization | None:
        """Return the quantization in which a commuting layer runs, or None where it is float.

        It is that of its inputs if they agree, else the one that all readers of its output require.
        """
        quantization = _single(set(map(self.quantization, reads)))
        return quantization or self.required.get(output)

    def sole_reader(self, tensor: str) -> Node | None:
        """Return the only reader of a tensor, which reads it as it is.

        None if there are several, if one is a Q, and for a graph output.
        """
        if self.quantized_reads.get(tensor) or tensor in self.outputs:
            return None
        readers = self.float_readers.get(tensor, [])
        if not readers:
            return None
        first_reader, _ = readers[0]
        for reader, _ in readers:
            if reader is not first_reader:
                return None
        return first_reader

    def commutes(self, node: Node) -> bool:
        """Whether Q and DQ may move past a node."""
        if node.op == "Pad":
            is_constant_mode = node.attribute("mode", b"constant") == b"constant"
            return bool(is_constant_mode) and self._has_zero_pad_value(node)
        if node.op in ("Resize", "Upsample"):
            return bool(node.attribute("mode", b"nearest") == b"nearest")
        return node.op in _COMMUTES or can_commute_with_quantization(self.index, node)

    def moved_inputs(self, node: Node) -> tuple[SlotRead, ...]:
        """Return the inputs of a commuting node whose values reach its output."""
        if node.op == "Concat":
            return tuple(self.reads(node))
        return tuple(read for slot, read in self.inputs(node) if slot == _DATA_SLOT)

    def weight_type(self, tensor: str) -> str:
        """Return the type in which a constant is stored before its DQ, such as ``Int8``.

        "" for a constant without DQ, and for one with Casts behind it that no kernel takes.
        """
        dequantize = self.index.producers.get(tensor)
        while dequantize is not None and keeps_values(self.index, dequantize):
            dequantize = self.index.producers.get(dequantize.inputs[0])
        if dequantize is None or dequantize.op != DEQUANTIZE:
            return ""
        if not can_cast_dequantized(list_cast_types(self.index, tensor)):
            return ""
        dtype: str = _WEIGHT_TYPES.get(self.index.elem_type(dequantize.inputs[0]), "")
        return dtype

    def pair_labels(self, tensor: str) -> Iterator[str]:
        """Yield the labels of the Q and DQ that a constant passes through, the last one first."""
        for node in walk_back(self.index, tensor):
            if tensor not in self.folded:
                return
            if node.op in PAIR_OPERATORS:
                yield node.label
            tensor = node.inputs[0]

    def find_dequantize_label(self, read: SlotRead) -> str:
        """Return the label of the DQ of a read, also before commuting nodes."""
        dequantized = self.dequantized.get(read.tensor, read)
        return read.dq or dequantized.dq

    def find_quantize_label(self, tensor: str, quantization: Quantization) -> str:
        """Return the label of the Q that requires a quantization, also after commuting nodes."""
        for _ in self.nodes:
            for read in self.quantized_reads.get(tensor, ()):
                if read.quantization == quantization and read.q:
                    return read.q
            readers = self.float_readers.get(tensor, ())
            if not readers:
                return ""
            first_reader, _ = readers[0]
            if not self.commutes(first_reader):
                return ""
            tensor = first_reader.outputs[0]
        return ""

    def _has_zero_pad_value(self, node: Node) -> bool:
        value_tensor = node.inputs[_PAD_VALUE_SLOT] if len(node.inputs) > _PAD_VALUE_SLOT else ""
        if not value_tensor:
            value = float(node.attribute("value", 0.0))
            return value == 0.0
        if not self.index.is_constant(value_tensor):
            return False
        return not np.any(self.index.constant(value_tensor))

    def _collect_nodes(self) -> Iterator[Node]:
        for node in self.index.nodes:
            if self.folded.issuperset(filter(None, node.outputs)) or not self.index.is_live(node):
                continue
            if self._resolve(node):
                continue
            self._register_reads(node)
            self._propagate_dequantize(node)
            yield node

    def _resolve(self, node: Node) -> bool:
        """Return whether a node is no layer, and record the read that its output stands for."""
        if is_alias(self.index, node) or self._is_fused_cast(node):
            self._reads[node.outputs[0]] = self.read(node.inputs[0])
            return True
        if node.op not in PAIR_OPERATORS:
            return False
        quantization = self._find_quantization(node)
        if quantization is None:
            return False
        read = self.read(node.inputs[0])
        if node.op == DEQUANTIZE:
            read = SlotRead(read.tensor, read.quantization or quantization, read.q, node.label)
        elif read.quantization != quantization:
            read = SlotRead(read.tensor, quantization, node.label)
        self._reads[node.outputs[0]] = read
        return True

    def _is_fused_cast(self, node: Node) -> bool:
        """Whether a Cast is fused with the Q after it, or with the DQ before it."""
        if not is_float_cast(self.index, node):
            return False
        if feeds_only_quantize(self.index, node.outputs[0]):
            return True
        is_dequantized = self.quantization(self.read(node.inputs[0])) is not None
        types = list_cast_types(self.index, find_last_cast(self.index, node))
        return is_dequantized and can_cast_dequantized(types)

    def _find_quantization(self, node: Node) -> Quantization | None:
        """Return the quantization of a Q or DQ.

        None for other types, scales per channel and scales that are computed.
        """
        stored = node.outputs[0] if node.op == QUANTIZE else node.inputs[0]
        elem_type = self.index.elem_type(stored) or TensorProto.UINT8
        dtype = _QUANTIZED_TYPES.get(elem_type)
        if dtype is None or len(node.inputs) <= _SCALE_SLOT:
            return None
        scale_tensor = node.inputs[_SCALE_SLOT]
        if not self.index.is_constant(scale_tensor):
            return None
        try:
            scale = self.index.constant(scale_tensor)
        except ModelError:
            return None
        if scale.size != 1:
            return None
        value = float(scale.reshape(-1)[0])
        return Quantization(dtype, value.hex())

    def _register_reads(self, node: Node) -> None:
        for slot, read in self.inputs(node):
            self.readers[read.tensor].append(node)
            if read.quantization:
                self.quantized_reads[read.tensor].append(read)
            else:
                reader = (node, slot)
                self.float_readers[read.tensor].append(reader)
        for name in node.captured:
            read = self.read(name)
            self.float_readers[read.tensor].append((node, _CAPTURED_SLOT))

    def _propagate_dequantize(self, node: Node) -> None:
        """Move the DQ on the inputs of a commuting node forward to its outputs."""
        if not self.commutes(node):
            return
        reads = self.moved_inputs(node)
        quantization = _single(set(map(self.quantization, reads)))
        if quantization is None:
            return
        dq = self.find_dequantize_label(reads[0])
        for output in filter(None, node.outputs):
            self.dequantized[output] = SlotRead(output, quantization, dq=dq)

    def _find_required(self) -> _Requirements:
        for name in self.index.outputs:
            read = self.read(name)
            if read.quantization:
                self.quantized_reads[read.tensor].append(read)
        required: _Requirements = {}
        for node in reversed(self.nodes):
            for output in node.outputs:
                quantization = self._required_of(output, required)
                if quantization is not None:
                    required[output] = quantization
        return required

    def _required_of(self, tensor: str, required: _Requirements) -> Quantization | None:
        """Return the quantization that all readers of a tensor require, or None."""
        output = self.outputs.get(tensor)
        if output is not None and not self.read(output).quantization:
            return None
        quantizations: set[Quantization | None] = set()
        for read in self.quantized_reads.get(tensor, ()):
            quantizations.add(read.quantization)
        for node, slot in self.float_readers.get(tensor, ()):
            quantizations.add(self._required_past(node, slot, required))
        return _single(quantizations)

    def _required_past(self, node: Node, slot: int, required: _Requirements) -> Quantization | None:
        """Return the quantization that is required after a node, if a Q may move past it."""
        is_moved = slot == _DATA_SLOT or (slot > _DATA_SLOT and node.op == "Concat")
        if not is_moved or not self.commutes(node):
            return None
        return _single({required.get(output) for output in filter(None, node.outputs)})


def _single(quantizations: set[Quantization | None]) -> Quantization | None:
    """Return the only member of a set, or None."""
    return next(iter(quantizations)) if len(quantizations) == 1 else None


def _find_folded_tensors(index: GraphIndex) -> set[str]:
    """Return the tensors that the builder computes: constants and arithmetic on fixed shapes."""
    folded = set(index.constants)
    for node in index.nodes:
        if node.op in ("Shape", "Size") or _reads_only(node, folded):
            folded.update(node.outputs)
    return folded


def _reads_only(node: Node, folded: set[str]) -> bool:
    """Whether a node computes from folded inputs alone, and without random numbers."""
    inputs = set(filter(None, node.inputs))
    if not inputs or node.bodies or node.op.startswith("Random"):
        return False
    return inputs <= folded
