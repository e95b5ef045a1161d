"""Data types and memory formats of the tensors of a predicted engine.

Formats follow NvInferRuntime.h (TensorFormat).
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import TensorProto

from qdq.engines.engine import LayerTensor
from qdq.engines.prediction.qdq_propagation import Quantization, QuantizationFlow, SlotRead
from qdq.graph.operators import CONVOLUTIONS, POOLING_LAYERS

LINEAR = "linear"
CHANNEL_LAST = "channel-last"
TWO_WIDE = "2-wide"
FOUR_WIDE = "4-wide"
THIRTY_TWO_WIDE = "32-wide"

FLOAT = "Float"
HALF = "Half"
BFLOAT16 = "BFloat16"
INT8 = "Int8"
FLOATS = (FLOAT, HALF, BFLOAT16)

#: TensorRT's data type of each ONNX element type.
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: FLOAT,
    TensorProto.FLOAT16: HALF,
    TensorProto.BFLOAT16: BFLOAT16,
    TensorProto.INT8: INT8,
    TensorProto.UINT8: "UInt8",
    TensorProto.BOOL: "Bool",
    TensorProto.INT32: "Int32",
    TensorProto.INT64: "Int64",
    TensorProto.FLOAT8E4M3FN: "FP8",
}

#: Operators whose layers read and write one memory format.
KEEPS_FORMAT = ("Relu", "Concat", "Pad", "Resize", "Upsample", "Slice", "Split")

#: How many operators that keep the format, and how many readers of each tensor, are searched for
#: a convolution or pool.
_SEARCH_DEPTH = 4


class TensorMemory:
    """The tensors that are stored so far, each with its type and memory format.

    A tensor may be stored several times: in float, and once for each of its quantizations.
    """

    def __init__(self, flow: QuantizationFlow, allow_fp16: bool) -> None:
        self.flow = flow
        self.allow_fp16 = allow_fp16
        #: By tensor and quantization, which is None for a tensor as it is written in float.
        self._stored: dict[tuple[str, Quantization | None], LayerTensor] = {}
        #: Tensors whose layer could write them into the output of a Concat.
        self._relocatable: set[str] = set()

    def dims(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's dimensions, 1 for each unknown one."""
        shape = self.flow.index.shape(tensor) or ()
        return tuple(size or 1 for size in shape)

    def onnx_type(self, tensor: str) -> str:
        """Return the type that the model gives a tensor."""
        return _TYPES.get(self.flow.index.elem_type(tensor), FLOAT)

    def float_type(self, tensor: str) -> str:
        """Return the float type in which a weighted layer writes a tensor."""
        dtype = self.onnx_type(tensor)
        if self.allow_fp16 and dtype == FLOAT:
            return HALF
        return dtype

    def is_value(self, read: SlotRead) -> bool:
        """Whether a read tensor holds values, and not indices, masks or lengths."""
        is_quantized = self.flow.quantization(read) is not None
        return is_quantized or self.onnx_type(read.tensor) in FLOATS

    def store(
        self, tensor: str, dtype: str, layout: str, quantization: Quantization | None = None
    ) -> LayerTensor:
        """Record that a tensor is stored in a type and memory format, and return it."""
        stored = LayerTensor(tensor, self.dims(tensor), dtype, layout)
        self._stored[tensor, quantization] = stored
        return stored

    def find(self, tensor: str, quantization: Quantization | None = None) -> LayerTensor | None:
        """Return the stored float or quantized form of a tensor, or None if there is none."""
        return self._stored.get((tensor, quantization))

    def find_as_written(self, tensor: str) -> LayerTensor:
        """Return a tensor in the form in which its layer wrote it; a graph input in rows."""
        read_quantization = self.flow.quantization(SlotRead(tensor))
        for quantization in (None, self.flow.required.get(tensor), read_quantization):
            stored = self.find(tensor, quantization)
            if stored is not None:
                return stored
        return self.store(tensor, self.onnx_type(tensor), LINEAR)

    def quantized_format(self, tensor: str, otherwise: str) -> str:
        """Return the memory format in which to write a quantized tensor.

        It is thirty-two-wide if a convolution or pool reads the tensor, also after a few
        operators that keep the format.
        """
        tensors = [tensor]
        for _ in range(_SEARCH_DEPTH):
            tensors_after = []
            for name in tensors:
                for reader in self.flow.readers.get(name, ())[:_SEARCH_DEPTH]:
                    if reader.op in CONVOLUTIONS or reader.op in POOLING_LAYERS:
                        return THIRTY_TWO_WIDE
                    if reader.op in KEEPS_FORMAT:
                        tensors_after.append(reader.outputs[0])
            tensors = tensors_after
        return otherwise

    def mark_relocatable(self, outputs: Iterable[LayerTensor]) -> None:
        """Record that the layer of some outputs could write them into a Concat's output."""
        self._relocatable.update(output.name for output in outputs)

    def place_in_concat(self, tensor: str) -> bool:
        """Return whether a tensor's layer can write it into a Concat's output.

        That is possible for one Concat only, and not for a graph output.
        """
        is_free = tensor in self._relocatable and tensor not in self.flow.outputs
        self._relocatable.discard(tensor)
        return is_free


def has_one_pixel(tensor: LayerTensor) -> bool:
    """Whether a tensor has channels only, so that all formats of one type are the same memory."""
    return all(size == 1 for size in tensor.dims[2:])
