"""The layers of a predicted engine that multiply: convolutions, deconvolutions and matrix products, with what is fused into them."""

from __future__ import annotations

from qdq.engines.engine import LayerTensor
from qdq.engines.prediction.fusion import FusionGroup, has_few_channels, int8_operands, is_depthwise
from qdq.engines.prediction.memory_formats import (
    CHANNEL_LAST,
    FLOAT,
    FOUR_WIDE,
    HALF,
    INT8,
    LINEAR,
    THIRTY_TWO_WIDE,
    Held,
    Memory,
)
from qdq.engines.prediction.qdq_propagation import Quantization, QuantizationFlow, SlotRead
from qdq.graph.layer_shapes import convolution_channels
from qdq.graph.operators import CONVOLUTIONS
from qdq.target import Target

#: First compute capability with TF32 kernels, which read channels last.
_TF32 = 80


class WeightedLayers(Memory):
    """Adds the layers of weighted groups to the memory."""

    def __init__(self, flow: QuantizationFlow, target: Target, allow_fp16: bool) -> None:
        super().__init__(flow, allow_fp16)
        self.target = target
        #: Tensors that a layer wrote, so that it could write them elsewhere.
        self.written: set[str] = set()

    def name(self, group: FusionGroup) -> str:
        """Return the nodes of a group as TensorRT names a layer."""
        return " + ".join(n.label for n in group.nodes)

    def weighted(self, group: FusionGroup) -> None:
        """A convolution, deconvolution or matrix product, with what is fused into it."""
        dtype, refused = self._multiplies(group)
        if dtype:
            self._int8_layer(group, dtype)
        else:
            self._float_layer(group, refused)

    def _multiplies(self, group: FusionGroup) -> tuple[str, str]:
        """Return the quantized type a weighted layer multiplies in, or "" and the rule that keeps it in float."""
        node, sizes = group.core, convolution_channels(self.flow.index, group.core)
        dtype = int8_operands(self.flow, node)
        if not dtype:
            return "", "float-operands"
        if node.op == "ConvTranspose" and (self.flow.index.rank(node.inputs[1]) or 0) > 4:  # noqa: PLR2004 three spatial dimensions
            return "", "deconvolution-3d"
        grouped = sizes is not None and sizes.groups > 1 and not is_depthwise(self.flow, node)
        if (
            sizes is not None
            and grouped
            and (sizes.inputs % 4 or (sizes.outputs // sizes.groups) % 4)
        ):
            return "", "grouped-channels"
        return dtype, ""

    def _int8_layer(self, group: FusionGroup, dtype: str) -> None:
        node, out = group.core, group.output
        spatial = node.op in CONVOLUTIONS
        vectors = THIRTY_TWO_WIDE if spatial else LINEAR
        few = has_few_channels(self.flow, node)
        wanted = self.flow.wanted.get(out)
        addend = self.flow.quantization(group.addend) if group.addend else None
        writes = wanted if group.addend is None or addend else None
        rule = self._int8_rule(group, few, writes)
        read_in = (LINEAR if group.pooled else FOUR_WIDE) if few else vectors
        data = [
            self.int8(r, q, read_in)
            for r in self._multiplied(group)
            if (q := self.flow.quantization(r))
        ]
        if writes:
            extra = [self.int8(group.addend, addend, vectors)] if group.addend and addend else []
            made = self.hold(out, writes.dtype, vectors, writes)
        else:
            kind, layout = self._float_result(group, few, addend is not None)
            extra = [self.in_float(group.addend, kind, layout)] if group.addend else []
            made = self.hold(out, kind, layout)
        self._done_weighted(group, rule, [*data, *extra], made, dtype)

    def _int8_rule(self, group: FusionGroup, few: bool, writes: Quantization | None) -> str:
        if group.addend is not None:
            return "residual-int8" if writes else "residual-float"
        if group.pooled:
            return "convolution-and-pool"
        if few:
            return "few-channels"
        if not writes:
            return "float-result"
        return "depthwise-int8" if is_depthwise(self.flow, group.core) else "int8-operands"

    def _float_result(self, group: FusionGroup, few: bool, dequantized: bool) -> tuple[str, str]:
        """Return type and format of an INT8 layer's float result.

        Half comes in thirty-two-wide vectors, Float in rows. Where FP16 is merely allowed, the
        result is Float for a four-wide first convolution, which has no other kernel, for a
        graph output, and for an Add with what a stand-alone dequantize wrote.
        """
        dtype = self.float_type(group.output)
        if (
            dtype == HALF
            and self.allow_fp16
            and self.type_of(group.output) == FLOAT
            and (few or dequantized or self._ends_graph(group.output))
        ):
            dtype = FLOAT
        wide = dtype == HALF and group.core.op in CONVOLUTIONS and not few
        return dtype, THIRTY_TWO_WIDE if wide else LINEAR

    def _ends_graph(self, tensor: str) -> bool:
        """Whether a tensor is a graph output, as it is or behind a reshape."""
        for _ in range(len(self.flow.nodes)):
            if tensor in self.flow.outputs:
                return True
            reader = self.flow.sole_reader(tensor)
            if reader is None or reader.op not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
                return False
            tensor = reader.outputs[0]
        return False

    def _float_layer(self, group: FusionGroup, rule: str) -> None:
        node = group.core
        spatial = node.op in CONVOLUTIONS
        dtype = self.float_type(group.output)
        few = has_few_channels(self.flow, node)
        rows = not spatial or (
            dtype == FLOAT and (few or (self.target.sm and self.target.sm < _TF32))
        )
        layout = LINEAR if rows else CHANNEL_LAST
        reads = [*self._multiplied(group), *([group.addend] if group.addend else [])]
        inputs = [self.in_float(r, dtype, layout) for r in reads]
        self._done_weighted(group, rule, inputs, self.hold(group.output, dtype, layout), dtype)

    def _multiplied(self, group: FusionGroup) -> list[SlotRead]:
        """Return the computed operands of a weighted layer, and a computed bias of a Gemm."""
        first = group.padding or group.core
        others = [r for slot, r in self.flow.inputs(group.core) if slot]
        return [*(r for slot, r in self.flow.inputs(first) if slot == 0), *others]

    def _done_weighted(
        self, group: FusionGroup, rule: str, inputs: list[Held], made: Held, dtype: str
    ) -> None:
        node = group.core
        weights = [t for t in node.inputs[:2] if t in self.flow.folded]
        constants = tuple(LayerTensor(t, self.dims(t), dtype) for t in weights)
        pairs = [label for t in weights for label in self.flow.pair_labels(t)]
        names = [*pairs[-1:], *(n.label for n in group.nodes)]
        kind = self._weighted_kind(group, dtype)
        self.add_layer(
            kind,
            " + ".join(names),
            rule,
            (inputs, [made]),
            [*(n.label for n in group.nodes), *pairs],
            constants,
        )
        self.wrote(group.output)

    def _weighted_kind(self, group: FusionGroup, dtype: str) -> str:
        op = group.core.op
        if group.pooled:
            return "ConvActPool"
        if op == "ConvTranspose":
            return "CaskDeconvolution"
        if op == "Conv":
            return (
                "CudaDepthwiseConvolution"
                if is_depthwise(self.flow, group.core) and dtype == INT8
                else "CaskConvolution"
            )
        return "MatrixMultiply"

    def recurrent(self, group: FusionGroup) -> None:
        """An LSTM, GRU or RNN: the product of the whole sequence with W, then the recurrence, in float."""
        node = group.core
        (_, sequence), *states = self.flow.inputs(node)
        quantization = self.flow.quantization(sequence)
        dtype = int8_operands(self.flow, node)
        made = self.float_type(node.outputs[0] or node.outputs[-1])
        read = (
            self.int8(sequence, quantization, LINEAR)
            if dtype and quantization
            else self.in_float(sequence, made, LINEAR)
        )
        outputs = [self.hold(o, made, LINEAR) for o in node.outputs if o]
        gates = Held(
            f"{node.label} gates",
            (*self.dims(node.inputs[0])[:2], *self.dims(node.inputs[1])[:2]),
            made,
            LINEAR,
        )
        weights = LayerTensor(node.inputs[1], self.dims(node.inputs[1]), dtype or made)
        pairs = [*self.flow.pair_labels(node.inputs[1])]
        rule = "recurrent-int8" if dtype else "float-operands"
        self.add_layer(
            "MatrixMultiply",
            " + ".join([*pairs[-1:], node.label]),
            rule,
            ([read], [gates]),
            [node.label, *pairs],
            (weights,),
        )
        self.add_layer(
            "Loop",
            node.label,
            "recurrence",
            ([gates, *(self.in_float(r) for _, r in states)], outputs),
            [node.label],
        )
        self.wrote(*(o.name for o in outputs))

    def wrote(self, *tensors: str) -> None:
        """Remember that a layer wrote some tensors, so that it could write them elsewhere."""
        self.written.update(tensors)
