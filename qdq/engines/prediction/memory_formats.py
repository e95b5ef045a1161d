"""How each tensor of a predicted engine lies in memory: its type and format, and the layers that convert it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from onnx import TensorProto

from qdq.engines.engine import REFORMAT, EngineLayer, LayerTensor
from qdq.engines.prediction.qdq_propagation import Quantization, QuantizationFlow, SlotRead

LINEAR, CHANNEL_LAST, TWO_WIDE, FOUR_WIDE, THIRTY_TWO_WIDE = (
    "linear",
    "channel-last",
    "2-wide",
    "4-wide",
    "32-wide",
)
FLOAT, HALF, INT8, FP8 = "Float", "Half", "Int8", "FP8"
TYPES: dict[int, str] = {
    TensorProto.FLOAT: FLOAT, TensorProto.FLOAT16: HALF, TensorProto.BFLOAT16: "BFloat16", TensorProto.INT8: INT8, TensorProto.UINT8: "UInt8",
    TensorProto.BOOL: "Bool", TensorProto.INT32: "Int32", TensorProto.INT64: "Int64", TensorProto.FLOAT8E4M3FN: FP8,
}  # fmt: skip
FLOATS = (FLOAT, HALF, "BFloat16")


class Held(msgspec.Struct, frozen=True):
    """A tensor as it lies in memory."""

    name: str
    dims: tuple[int, ...]
    dtype: str
    format: str

    def described(self) -> LayerTensor:
        """Return it as an engine layer lists it."""
        return LayerTensor(self.name, self.dims, self.dtype, self.format)

    @property
    def one_pixel(self) -> bool:
        """Whether channels are all it has, so that every format of a type is the same memory."""
        return all(d == 1 for d in self.dims[2:])


class Memory:
    """The tensors that exist so far, in every form they were written in or converted to, and the layers that did it."""

    def __init__(self, flow: QuantizationFlow, allow_fp16: bool) -> None:
        self.flow, self.allow_fp16 = flow, allow_fp16
        self.layers: list[EngineLayer] = []
        #: By tensor and form: "" as it is written in float, a quantization, or ("dq", quantization).
        self.held: dict[tuple[str, object], Held] = {}
        self.converted: dict[tuple[Held, str, str], Held] = {}

    def dims(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's dimensions, 1 for each unknown one."""
        return tuple(d or 1 for d in self.flow.index.shape(tensor) or ())

    def type_of(self, tensor: str) -> str:
        """Return the type that the model gives a tensor."""
        return TYPES.get(self.flow.index.elem_type(tensor), FLOAT)

    def float_type(self, tensor: str) -> str:
        """Return the float type in which a weighted layer writes a tensor."""
        own = self.type_of(tensor)
        return HALF if self.allow_fp16 and own == FLOAT else own

    def hold(self, tensor: str, dtype: str, layout: str, form: object = "") -> Held:
        """Remember that a tensor lies in memory in a form, and return it."""
        held = Held(tensor, self.dims(tensor), dtype, layout)
        self.held[tensor, form] = held
        return held

    def add_layer(
        self,
        kind: str,
        name: str,
        rule: str,
        tensors: tuple[Iterable[Held], Iterable[Held]],
        nodes: Iterable[str],
        constants: tuple[LayerTensor, ...] = (),
    ) -> None:
        """Append a layer that reads and writes tensors (inputs, outputs)."""
        inputs, outputs = (tuple(t.described() for t in side) for side in tensors)
        self.layers.append(
            EngineLayer(name, kind, inputs, constants, outputs, tuple(dict.fromkeys(nodes)), rule)
        )

    def convert(self, held: Held, dtype: str, layout: str) -> Held:
        """Return a tensor in a type and format, through a copy where it is held otherwise; "" accepts any."""
        dtype, layout = dtype or held.dtype, layout or held.format
        if held.dtype == dtype and (held.format == layout or held.one_pixel):
            return held
        key = (held, dtype, layout)
        if key not in self.converted:
            made = Held(f"Reformatted {held.name}", held.dims, dtype, layout)
            self.add_layer(
                REFORMAT, f"Reformatting CopyNode for {held.name}", "reformat", ([held], [made]), ()
            )
            self.converted[key] = made
        return self.converted[key]

    def int8(self, read: SlotRead, quantization: Quantization, layout: str) -> Held:
        """Return a tensor in INT8, through a stand-alone quantize where nothing wrote it so, and a second one where it has another scale."""
        key = (read.tensor, quantization)
        if key not in self.held:
            again = read.quantization is not None and read.quantization != quantization
            before = (
                self.int8(SlotRead(read.tensor, read.quantization), read.quantization, "")
                if again and read.quantization
                else self.as_written(read.tensor)
            )
            if (
                self.held.get((read.tensor, "")) == before and before.dtype == quantization.dtype
            ):  # a graph input that is INT8 already
                self.held[key] = before
                return self.convert(before, "", layout)
            self.hold(read.tensor, quantization.dtype, layout, quantization)
            labels = [q for q in (read.q or self.label_of_q(read.tensor, quantization),) if q]
            self.add_layer(
                REFORMAT,
                " + ".join(labels) or f"quantize {read.tensor}",
                "stand-alone-quantize",
                ([before], [self.held[key]]),
                labels,
            )
        return self.convert(self.held[key], "", layout)

    def label_of_q(self, tensor: str, quantization: Quantization) -> str:
        """Return the label of the Q that asks for a quantization, here or behind what commutes."""
        for _ in self.flow.nodes:
            label = next(
                (
                    r.q
                    for r in self.flow.quantized.get(tensor, ())
                    if r.quantization == quantization and r.q
                ),
                "",
            )
            readers = [node for node, _ in self.flow.plain.get(tensor, ())]
            if label or not readers or not self.flow.commutes(readers[0]):
                return label
            tensor = readers[0].outputs[0]
        return ""

    def as_written(self, tensor: str) -> Held:
        """Return a tensor in the form it was written in."""
        for form in ("", self.flow.wanted.get(tensor), self.flow.quantization(SlotRead(tensor))):
            if (tensor, form) in self.held:
                return self.held[tensor, form]
        return self.hold(tensor, self.type_of(tensor), LINEAR)

    def in_float(self, read: SlotRead, dtype: str = "", layout: str = "") -> Held:
        """Return a value in float, through a stand-alone dequantize where it lies in INT8."""
        quantization = read.quantization
        if quantization is None and (read.tensor, "") not in self.held:
            quantization = self.flow.quantization(read) or self.flow.wanted.get(read.tensor)
        if quantization is None:
            return self.convert(self.as_written(read.tensor), dtype, layout)
        key = (read.tensor, ("dq", quantization))
        if key not in self.held:
            before = self.int8(read, quantization, "")
            dq = read.dq or self.flow.reached.get(read.tensor, read).dq
            made = (
                self.type_of(self.flow.index.by_label[dq].outputs[0])
                if dq in self.flow.index.by_label
                else FLOAT
            )
            held = Held(f"dequantized {read.tensor}", before.dims, made, layout or LINEAR)
            self.add_layer(
                REFORMAT,
                dq or f"dequantize {read.tensor}",
                "stand-alone-dequantize",
                ([before], [held]),
                [dq] if dq else [],
            )
            self.held[key] = held
        return self.convert(self.held[key], dtype, layout)
