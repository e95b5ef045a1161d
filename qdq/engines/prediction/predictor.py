"""The engine that TensorRT proper would build, predicted from its documented fusions where it cannot be compiled.

TensorRT chooses among kernels by timing them on the GPU. What does not depend on that is written
down here: which nodes run as one layer (`fusing`), where INT8 reaches (`propagation`), and from
both the type and the memory format of every tensor, the conversions between them, and the Q and
DQ that stay layers of their own. Formats follow NvInferRuntime.h (TensorFormat) and the engines
that NVIDIA published with trt-engine-explorer.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx
from onnx import TensorProto

from qdq.engines.engine import NO_OP, REFORMAT, Engine, EngineLayer
from qdq.engines.prediction.fusion import FusionGroup, fuse_nodes
from qdq.engines.prediction.memory_formats import (
    FLOAT,
    FLOATS,
    LINEAR,
    THIRTY_TWO_WIDE,
    TWO_WIDE,
    Held,
)
from qdq.engines.prediction.qdq_propagation import Quantization, QuantizationFlow, SlotRead
from qdq.engines.prediction.static_shapes import with_static_shapes
from qdq.engines.prediction.weighted_layers import WeightedLayers
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import CONVOLUTIONS, POOLING_LAYERS
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import Source
from qdq.target import Target

#: Layers that read and write one memory format.
_KEEPING_FORMAT = ("Relu", "Concat", "Pad", "Resize", "Upsample", "Slice", "Split")
_LOOK_AHEAD = 4

#: First compute capability with FP8 (TensorRT support matrix).
_FP8 = 89


def predict_engine(
    model: onnx.ModelProto | Source,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    allow_fp16: bool = False,
) -> Engine:
    """Return the engine that TensorRT proper is predicted to build; each layer names the rule it follows.

    `shapes` fixes the dynamic dimensions by input name; those not named become 1. By default the
    network is strongly typed, as always in TensorRT 11: the ONNX types decide. With `allow_fp16`
    the prediction is for TensorRT 10 and earlier, weakly typed and built with FP16 allowed.
    Takes time linear in the number of nodes.
    """
    source = model if isinstance(model, Source) else Source(None, model, "")
    index = with_static_shapes(source, shapes or {})
    typing = "weakly typed, FP16 allowed" if allow_fp16 else "strongly typed"
    compiler = f"TensorRT, {typing}"
    if refusal := _refusal(index, target):
        return Engine(target, compiler, failure=refusal)
    return Engine(
        target, compiler, _Prediction(QuantizationFlow(index), target, allow_fp16).predicted()
    )


def _refusal(index: GraphIndex, target: Target) -> str:
    """Return what the ONNX importer or the builder refuses, in a sentence, or ""."""
    for node in index.nodes:
        if node.op not in (QUANTIZE, DEQUANTIZE):
            continue
        stored = index.elem_type(node.inputs[0] if node.op == DEQUANTIZE else node.outputs[0])
        if stored == TensorProto.FLOAT8E4M3FN and 0 < target.sm < _FP8:
            return f"{node.label}: FP8 needs compute capability 8.9 or higher"
        if stored == TensorProto.INT32:
            return f"{node.label}: a DequantizeLinear of INT32, such as a quantized bias, is not supported"
        if (
            len(node.inputs) > 2
            and index.is_constant(node.inputs[2])
            and index.constant(node.inputs[2]).astype(float).any()
        ):
            return f"{node.label}: a zero point other than zero is not supported"
    return ""


class _Prediction(WeightedLayers):
    """Walks the layers in order and keeps how each tensor lies in memory."""

    def predicted(self) -> tuple[EngineLayer, ...]:
        index = self.flow.index
        for name in index.inputs:
            self.hold(name, self.type_of(name), LINEAR)
        for group in fuse_nodes(self.flow):
            getattr(self, group.family)(group)
        for name in index.outputs:
            if name not in self.flow.folded:
                self._finish(name)
        return tuple(self.layers)

    def pool(self, group: FusionGroup) -> None:
        """A pool, in INT8 with pairs on both sides."""
        node = group.core
        read = self.flow.inputs(node)[0][1]
        quantization, wanted = self.flow.quantization(read), self.flow.wanted.get(group.output)
        if self.flow.commutes(node):
            self._commuting(group, [read], "CudaPooling")
        elif quantization and wanted:
            before = self.int8(read, quantization, THIRTY_TWO_WIDE)
            made = self.hold(group.output, wanted.dtype, THIRTY_TWO_WIDE, wanted)
            self.add_layer(
                "CudaPooling", self.name(group), "quantized-pool", ([before], [made]), [node.label]
            )
        else:
            self._float_pool(group, read, "float-pool")

    def _float_pool(self, group: FusionGroup, read: SlotRead, rule: str) -> None:
        """Pool in float: no kernel reads thirty-two-wide Half, and two-wide is the next."""
        before = self.in_float(read)
        if before.format == THIRTY_TWO_WIDE:
            before = self.convert(before, "", TWO_WIDE)
        made = self.hold(group.output, before.dtype, before.format)
        is_max = group.core.op == "MaxPool"
        kind = (
            "TiledPooling"
            if before.format == TWO_WIDE or (is_max and before.format == LINEAR)
            else "CudaPooling"
            if is_max
            else "CaskPooling"
        )
        self.add_layer(
            kind, self.name(group), rule, ([before], [made]), [n.label for n in group.nodes]
        )

    def _commuting(self, group: FusionGroup, reads: list[SlotRead], kind: str) -> None:
        """A layer past which Q and DQ move: INT8 where its inputs are, or where all its readers want it."""
        quantizations = {self.flow.quantization(r) for r in reads}
        given = quantizations.pop() if len(quantizations) == 1 else None
        form = given or self.flow.wanted.get(group.output)
        if form is None and group.family == "pool":
            self._float_pool(group, reads[0], "moves-float")
            return
        layout = self._layout_of(group, reads, form)
        inputs = [
            self.int8(r, form, layout) if form else self.in_float(r, "", layout) for r in reads
        ]
        dtype = form.dtype if form else inputs[0].dtype
        outputs = [self.hold(o, dtype, layout, form or "") for o in self._outputs(group)]
        self.add_layer(
            kind,
            self.name(group),
            "commutes" if form else "moves-float",
            (inputs, outputs),
            [n.label for n in group.nodes],
        )
        self.wrote(*self._outputs(group))

    def _layout_of(
        self, group: FusionGroup, reads: list[SlotRead], form: Quantization | None
    ) -> str:
        """Return the format in which a commuting layer reads: rows where it moves values across dimensions, else that of its first input."""
        if group.family == "pool":
            return THIRTY_TWO_WIDE
        if group.core.op in _KEEPING_FORMAT:
            held = self.held.get((reads[0].tensor, form or ""))
            return held.format if held else LINEAR
        return LINEAR

    def _vectors_for(self, tensor: str, otherwise: str) -> str:
        """Return the format in which to write an INT8 tensor: thirty-two-wide if a convolution or pool reads it, if only behind a few copies."""
        reached = [tensor]
        for _ in range(_LOOK_AHEAD):
            readers = [n for t in reached for n in self.flow.readers.get(t, ())[:_LOOK_AHEAD]]
            if any(n.op in (*CONVOLUTIONS, *POOLING_LAYERS) for n in readers):
                return THIRTY_TWO_WIDE
            reached = [n.outputs[0] for n in readers if n.op in _KEEPING_FORMAT]
        return otherwise

    def _outputs(self, group: FusionGroup) -> list[str]:
        return [o for o in group.nodes[-1].outputs if o]

    def shuffle(self, group: FusionGroup) -> None:
        """Reshapes and transposes in a row."""
        read = self.flow.inputs(group.nodes[0])[0][1]
        view = all(n.op != "Transpose" or self._moves_nothing(n) for n in group.nodes)
        self._commuting(group, [read], NO_OP if view else "Shuffle")
        self.layers[-1] = msgspec.structs.replace(
            self.layers[-1], fusion_rule="view" if view else self.layers[-1].fusion_rule
        )

    def _moves_nothing(self, node: Node) -> bool:
        """Whether a Transpose leaves the order of values in memory: only dimensions of one change places."""
        dims = self.dims(node.inputs[0])
        order = node.attribute("perm") or tuple(reversed(range(len(dims))))
        kept = [axis for axis in order if axis < len(dims) and dims[axis] != 1]
        return bool(kept == sorted(kept))

    def _is_value(self, read: SlotRead) -> bool:
        return self.flow.quantization(read) is not None or self.type_of(read.tensor) in FLOATS

    def concat(self, group: FusionGroup) -> None:
        """A Concat: its inputs are written into its output, or copied there."""
        reads = [r for _, r in self.flow.inputs(group.core)]
        if not reads or not all(self._is_value(r) for r in reads):
            self.other(group)
            return
        quantizations = {self.flow.quantization(r) for r in reads}
        form = (quantizations.pop() if len(quantizations) == 1 else None) or self.flow.wanted.get(
            group.output
        )
        first = None if form else self.in_float(reads[0])
        dtype, layout = (
            (first.dtype, first.format)
            if first
            else (form.dtype if form else FLOAT, self._vectors_for(group.output, LINEAR))
        )
        made = self.hold(group.output, dtype, layout, form or "")
        for read in reads:
            self._part(group, read, form, made)
        self.wrote(made.name)

    def _part(
        self, group: FusionGroup, read: SlotRead, form: Quantization | None, made: Held
    ) -> None:
        """Bring one input of a Concat into its output, by a copy where no layer could write it there."""
        before = len(self.layers)
        if form is None:
            held = self.in_float(read, made.dtype, made.format)
        else:
            again = read.quantization is not None and read.quantization != form
            held = self.int8(
                msgspec.structs.replace(read, q=self.label_of_q(group.output, form))
                if again
                else read,
                form,
                made.format,
            )
        if len(self.layers) == before and not self._in_place(read.tensor):
            part = msgspec.structs.replace(held, name=group.output)
            self.add_layer(
                REFORMAT, f"{read.tensor} copy", "concat", ([held], [part]), [group.core.label]
            )

    def _in_place(self, tensor: str) -> bool:
        """Whether the layer that wrote a tensor could write it into one Concat's output; it is then taken."""
        free = tensor in self.written and tensor not in self.flow.outputs
        self.written.discard(tensor)
        return free

    def pointwise(self, group: FusionGroup) -> None:
        """A generated kernel of point-wise operators."""
        inside = {o for n in group.nodes for o in n.outputs}
        reads = list(
            dict.fromkeys(
                r
                for n in group.nodes
                for _, r in self.flow.inputs(n)
                if r.tensor not in inside or r.quantization
            )
        )
        if (
            len(reads) == 1
            and self.flow.quantization(reads[0])
            and all(self.flow.commutes(n) for n in group.nodes)
        ):
            self._commuting(group, reads, "PointWiseV2")
            return
        wanted = self.flow.wanted.get(group.output)
        inputs = [self._pointwise_input(r, wanted is not None) for r in reads]
        layout = (
            max(inputs, key=lambda h: len(h.described().dims) and h.described().bytes).format
            if inputs
            else LINEAR
        )
        full = self.dims(group.output)
        inputs = [self.convert(i, "", layout) if i.dims == full else i for i in inputs]
        if wanted:
            made = self.hold(
                group.output, wanted.dtype, self._vectors_for(group.output, layout), wanted
            )
        else:
            made = self.hold(group.output, self._pointwise_type(group.output, inputs), layout)
        name = (
            group.nodes[0].label
            if len(group.nodes) == 1
            else f"PWN({', '.join(n.label for n in group.nodes)})"
        )
        rule = "quantized-pointwise" if wanted else "pointwise"
        self.add_layer("PointWiseV2", name, rule, (inputs, [made]), [n.label for n in group.nodes])
        self.wrote(group.output)

    def _pointwise_input(self, read: SlotRead, int8_too: bool) -> Held:
        quantization = self.flow.quantization(read)
        if quantization and int8_too:
            return self.int8(read, quantization, "")
        return self.in_float(read)

    def _pointwise_type(self, tensor: str, inputs: list[Held]) -> str:
        own = self.type_of(tensor)
        if not self.allow_fp16 or own != FLOAT:
            return own
        return next((i.dtype for i in inputs if i.dtype in FLOATS), own)

    def other(self, group: FusionGroup) -> None:
        """An operator that nothing is fused with."""
        node = group.core
        reads = [r for _, r in self.flow.inputs(node)]
        moved = self.flow.moved_inputs(node) if self.flow.commutes(node) else ()
        kind = _KINDS.get(node.op, node.op)
        if moved and len(moved) == len(reads) and all(self._is_value(r) for r in moved):
            self._commuting(group, list(moved), kind)
            return
        inputs = [self.in_float(r, "", LINEAR) for r in reads]
        quantized = self._generated_int8(node)
        is_float = group.output not in self.flow.wanted or not quantized
        outputs = [
            self.hold(o, self._pointwise_type(o, inputs), LINEAR)
            for n in group.nodes
            for o in n.outputs
            if o and is_float
        ]
        self.add_layer(
            kind,
            self.name(group),
            "generated" if quantized else "alone",
            (inputs, [*outputs, *quantized]),
            [n.label for n in group.nodes],
        )
        self.wrote(*(o.name for o in outputs))

    def _generated_int8(self, node: Node) -> list[Held]:
        """Return the INT8 result that a generated kernel writes because a Q reads it, if all that do agree."""
        asked = {r.quantization for r in self.flow.quantized.get(node.outputs[0], ())} | {
            self.flow.wanted.get(node.outputs[0])
        }
        asked.discard(None)
        if node.op not in _GENERATED or len(asked) != 1 or (quantization := asked.pop()) is None:
            return []
        return [
            self.hold(
                node.outputs[0],
                quantization.dtype,
                self._vectors_for(node.outputs[0], LINEAR),
                quantization,
            )
        ]

    def _finish(self, name: str) -> None:
        """Leave a graph output in the type that the model gives it, in rows."""
        read = self.flow.read(name)
        if read.quantization and self.type_of(name) not in FLOATS:
            self.int8(read, read.quantization, LINEAR)
        else:
            self.in_float(read, self.type_of(name), LINEAR)


#: Operators that become generated kernels, which convert their result themselves.
_GENERATED = (
    "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceMax",
)  # fmt: skip

#: Names of layers as TensorRT's inspector writes them.
_KINDS = {
    "Softmax": "SoftMaxV2", "Resize": "Resize", "Upsample": "Resize", "Split": "Slice", "Slice": "Slice", "Pad": "Slice", "Gather": "Gather",
    **{op: "Reduce" for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd")},
}  # fmt: skip
