"""Where INT8 reaches in a graph with Q/DQ: DQ moved forward and Q backward through the operators that commute with them.

TensorRT dequantizes as late and quantizes as early as it can: an operator commutes with Q if
Q(Op(x)) == Op(Q(x)), and with DQ if Op(DQ(x)) == DQ(Op(x)) (TensorRT documentation, explicit
quantization, Q/DQ propagation). The documentation proves it for MaxPool and disproves it for
AveragePool; for operators that only move values, and for Relu with a zero point of zero, it
follows from the definition. Behind a Concat the Q moves onto every input (Model Optimizer,
`get_concat_eliminated_tensors`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import onnx
from onnx import TensorProto

from qdq.errors import ModelError
from qdq.graph.bodies import captured_names
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import ALIASES
from qdq.graph.pairs import PAIR_OPERATORS
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE

#: Operators that only move or copy values, and so commute with Q and DQ.
_MOVING = (
    "MaxPool", "GlobalMaxPool", "Relu", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat", "Gather", "Expand", "Tile",
    "DepthToSpace", "SpaceToDepth",
)  # fmt: skip

#: What an importer makes of a quantized ONNX type: UINT8 is taken for INT8 (onnx-tensorrt, QuantDequantLinearHelper).
_QUANTIZED_TYPES: dict[int, str] = {
    TensorProto.INT8: "Int8",
    TensorProto.UINT8: "Int8",
    TensorProto.FLOAT8E4M3FN: "FP8",
}
_STORED_TYPES: dict[int, str] = {**_QUANTIZED_TYPES, getattr(TensorProto, "INT4", -1): "Int4"}
_WEIGHT_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


class Quantization(msgspec.Struct, frozen=True):
    """How a tensor is quantized: two tensors with equal ones can be exchanged without arithmetic."""

    #: ``Int8`` or ``FP8``.
    dtype: str
    #: The scale, written so that equal scales are equal texts.
    scale: str


class SlotRead(msgspec.Struct, frozen=True):
    """What one input slot reads: a tensor as it is, or through a Q and a DQ."""

    tensor: str
    quantization: Quantization | None = None
    #: Labels of the Q and the DQ, "" where there is none.
    q: str = ""
    dq: str = ""


class QuantizationFlow:
    """Which tensors of a graph are read, written and wanted in INT8."""

    def __init__(self, index: GraphIndex) -> None:
        self.index = index
        self.folded = _folded(index)
        #: What each tensor stands for, where it is not itself.
        self._reads: dict[str, SlotRead] = {}
        #: Readers of each tensor: as it is, and through a Q.
        self.plain: dict[str, list[tuple[Node, int]]] = defaultdict(list)
        self.quantized: dict[str, list[SlotRead]] = defaultdict(list)
        #: The nodes that read each tensor, either way.
        self.readers: dict[str, list[Node]] = defaultdict(list)
        #: Tensors that a DQ has moved past: the INT8 tensor is there already.
        self.reached: dict[str, SlotRead] = {}
        #: The nodes that compute: no constants, pairs or copies.
        self.nodes = tuple(self._forward())
        self.outputs = {self.read(name).tensor: name for name in index.outputs}
        #: The quantization that every reader of a tensor asks for.
        self.wanted = self._backward()

    def read(self, tensor: str) -> SlotRead:
        """Return what stands behind a tensor."""
        return self._reads.get(tensor, SlotRead(tensor))

    def inputs(self, node: Node) -> tuple[tuple[int, SlotRead], ...]:
        """Return the slots of a node that read computed values, with what they read."""
        return tuple(
            (slot, self.read(t)) for slot, t in enumerate(node.inputs) if t and t not in self.folded
        )

    def quantization(self, read: SlotRead) -> Quantization | None:
        """Return how a read value is quantized already, or None where it is float."""
        if read.quantization:
            return read.quantization
        reached = self.reached.get(read.tensor)
        return reached.quantization if reached else None

    def sole_reader(self, tensor: str) -> Node | None:
        """Return the one node that reads a tensor, as it is; None if several do, a Q does, or it is a graph output."""
        readers = {id(node): node for node, _ in self.plain.get(tensor, ())}
        if len(readers) != 1 or self.quantized.get(tensor) or tensor in self.outputs:
            return None
        return next(iter(readers.values()))

    def commutes(self, node: Node) -> bool:
        """Whether Q and DQ may move past a node."""
        if node.op == "Pad":
            return node.attribute("mode", b"constant") == b"constant" and self._zero(node, 2)
        if node.op in ("Resize", "Upsample"):
            return bool(node.attribute("mode", b"nearest") == b"nearest")
        return node.op in _MOVING

    def moved_inputs(self, node: Node) -> tuple[SlotRead, ...]:
        """Return the inputs of a commuting node whose values reach its output."""
        return tuple(read for slot, read in self.inputs(node) if slot == 0 or node.op == "Concat")

    def weight_type(self, tensor: str) -> str:
        """Return the type in which a constant is stored before its DQ, such as ``Int8``; "" where no DQ stands before it."""
        while (node := self.index.producers.get(tensor)) is not None and node.inputs:
            if node.op == DEQUANTIZE:
                return _STORED_TYPES.get(self.index.elem_type(node.inputs[0]), "")
            if node.op not in _WEIGHT_MOVES:
                return ""
            tensor = node.inputs[0]
        return ""

    def pair_labels(self, tensor: str) -> Iterator[str]:
        """Yield the labels of the Q and DQ that a constant passes through."""
        while (
            (node := self.index.producers.get(tensor)) is not None
            and node.inputs
            and tensor in self.folded
        ):
            if node.op in PAIR_OPERATORS:
                yield node.label
            tensor = node.inputs[0]

    def _zero(self, node: Node, slot: int) -> bool:
        if len(node.inputs) <= slot or not node.inputs[slot]:
            return float(node.attribute("value", 0.0)) == 0.0
        return self.index.is_constant(node.inputs[slot]) and not np.any(
            self.index.constant(node.inputs[slot])
        )

    def _forward(self) -> Iterator[Node]:
        for node in self.index.nodes:
            if all(o in self.folded for o in node.outputs if o):
                continue
            if not self._resolve(node):
                self._count(node)
                yield node

    def _resolve(self, node: Node) -> bool:
        """Whether a node vanishes: what its output stands for is then known."""
        if node.op in ALIASES:
            self._reads[node.outputs[0]] = self.read(node.inputs[0])
            return True
        if node.op not in PAIR_OPERATORS or (found := self._quantization(node)) is None:
            return False
        before = self.read(node.inputs[0])
        if node.op == QUANTIZE:
            same = before.quantization == found or (
                before.quantization is None and self.quantization(before) == found
            )
            self._reads[node.outputs[0]] = (
                before
                if same and before.quantization
                else SlotRead(before.tensor, found, node.label)
            )
        else:
            self._reads[node.outputs[0]] = SlotRead(
                before.tensor, before.quantization or found, before.q, node.label
            )
        return True

    def _quantization(self, node: Node) -> Quantization | None:
        """Return what a Q or DQ does to a whole tensor, or None for another type, scales per channel and scales that are computed."""
        stored = node.outputs[0] if node.op == QUANTIZE else node.inputs[0]
        dtype = _QUANTIZED_TYPES.get(self.index.elem_type(stored) or TensorProto.UINT8)
        if dtype is None or len(node.inputs) < 2 or not self.index.is_constant(node.inputs[1]):  # noqa: PLR2004 data and scale
            return None
        try:
            scale = self.index.constant(node.inputs[1])
        except ModelError:
            return None
        return Quantization(dtype, float(scale.reshape(-1)[0]).hex()) if scale.size == 1 else None

    def _count(self, node: Node) -> None:
        inputs = self.inputs(node)
        for slot, read in inputs:
            self.readers[read.tensor].append(node)
            if read.quantization:
                self.quantized[read.tensor].append(read)
            else:
                self.plain[read.tensor].append((node, slot))
        for _, body in node.bodies:
            self._count_body(node, body)
        if self.commutes(node):
            moved = self.moved_inputs(node)
            found = {self.quantization(r) for r in moved}
            if len(found) == 1 and (quantization := found.pop()):
                dq = moved[0].dq or self.reached.get(moved[0].tensor, moved[0]).dq
                self.reached.update(
                    {o: SlotRead(o, quantization, dq=dq) for o in node.outputs if o}
                )

    def _count_body(self, node: Node, body: onnx.GraphProto) -> None:
        for name in sorted(captured_names(body)):
            self.plain[self.read(name).tensor].append((node, -1))

    def _backward(self) -> dict[str, Quantization]:
        for name in self.index.outputs:
            read = self.read(name)
            if read.quantization:
                self.quantized[read.tensor].append(read)
        wanted: dict[str, Quantization] = {}
        for node in reversed(self.nodes):
            for output in node.outputs:
                if (asked := self._asked(output, wanted)) is not None:
                    wanted[output] = asked
        return wanted

    def _asked(self, tensor: str, wanted: dict[str, Quantization]) -> Quantization | None:
        through: Iterable[Quantization | None] = (
            r.quantization for r in self.quantized.get(tensor, ())
        )
        past = (
            self._wanted_behind(node, slot, wanted) for node, slot in self.plain.get(tensor, ())
        )
        asked = {*through, *past}
        is_float_output = (
            tensor in self.outputs and not self.read(self.outputs[tensor]).quantization
        )
        return asked.pop() if len(asked) == 1 and not is_float_output else None

    def _wanted_behind(
        self, node: Node, slot: int, wanted: dict[str, Quantization]
    ) -> Quantization | None:
        if slot < 0 or not self.commutes(node) or (slot and node.op != "Concat"):
            return None
        behind = {wanted.get(o) for o in node.outputs if o}
        return behind.pop() if len(behind) == 1 else None


def _folded(index: GraphIndex) -> set[str]:
    """Return the tensors that the builder computes: constants, and arithmetic on shapes, which are fixed."""
    folded = set(index.constants)
    for node in index.nodes:
        read = [i for i in node.inputs if i]
        if node.op in ("Shape", "Size") or (
            read
            and not node.bodies
            and all(i in folded for i in read)
            and not node.op.startswith("Random")
        ):
            folded.update(node.outputs)
    return folded
