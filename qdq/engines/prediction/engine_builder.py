"""The layers of a predicted engine under construction, with the conversions between them."""

from __future__ import annotations

from qdq.engines.engine import REFORMAT, EngineLayer, LayerTensor
from qdq.engines.prediction.memory_formats import FLOAT, LINEAR, TensorMemory, has_one_pixel
from qdq.engines.prediction.qdq_propagation import Quantization, QuantizationFlow, SlotRead
from qdq.target import Target


class EngineBuilder:
    """Layers in order, with a conversion where a layer needs another type or format."""

    def __init__(self, flow: QuantizationFlow, target: Target, allow_fp16: bool) -> None:
        self.flow = flow
        self.target = target
        self.memory = TensorMemory(flow, allow_fp16)
        self.layers: list[EngineLayer] = []
        #: By source, type and memory format.
        self._copies: dict[tuple[LayerTensor, str, str], LayerTensor] = {}
        self._dequantized: dict[tuple[str, Quantization], LayerTensor] = {}

    def convert(self, stored: LayerTensor, dtype: str, layout: str) -> LayerTensor:
        """Return a tensor in a type and format, through a copy if it is stored differently.

        An empty type or format accepts any.
        """
        dtype = dtype or stored.dtype
        layout = layout or stored.format
        has_format = stored.format == layout or has_one_pixel(stored)
        if stored.dtype == dtype and has_format:
            return stored
        key = (stored, dtype, layout)
        copy = self._copies.get(key)
        if copy is None:
            copy = LayerTensor(f"Reformatted {stored.name}", stored.dims, dtype, layout)
            name = f"Reformatting CopyNode for {stored.name}"
            self._add_conversion(name, stored, copy, "reformat")
            self._copies[key] = copy
        return copy

    def read_quantized(
        self, read: SlotRead, quantization: Quantization, layout: str
    ) -> LayerTensor:
        """Return a tensor in a quantization, through a separate Q if no layer wrote it so.

        A tensor that is quantized with another scale is dequantized and quantized again.
        """
        stored = self.memory.find(read.tensor, quantization)
        if stored is None:
            stored = self._quantize(read, quantization, layout)
        return self.convert(stored, "", layout)

    def read_float(self, read: SlotRead, dtype: str = "", layout: str = "") -> LayerTensor:
        """Return a tensor in float, through a separate DQ if it is stored quantized."""
        quantization = read.quantization
        if quantization is None and self.memory.find(read.tensor) is None:
            required = self.flow.required.get(read.tensor)
            quantization = self.flow.quantization(read) or required
        if quantization is None:
            return self.convert(self.memory.find_as_written(read.tensor), dtype, layout)
        dequantized = self._dequantize(read, quantization, layout)
        return self.convert(dequantized, dtype, layout)

    def _quantize(self, read: SlotRead, quantization: Quantization, layout: str) -> LayerTensor:
        tensor = read.tensor
        if read.quantization is not None and read.quantization != quantization:
            first_read = SlotRead(tensor, read.quantization)
            source = self.read_quantized(first_read, read.quantization, "")
        else:
            source = self.memory.find_as_written(tensor)
        is_as_written = source == self.memory.find(tensor)
        if is_as_written and source.dtype == quantization.dtype:  # a quantized graph input
            return self.memory.store(tensor, source.dtype, source.format, quantization)
        result = self.memory.store(tensor, quantization.dtype, layout, quantization)
        label = read.q or self.flow.find_quantize_label(tensor, quantization)
        name = label or f"quantize {tensor}"
        self._add_conversion(name, source, result, "stand-alone-quantize", label)
        return result

    def _dequantize(self, read: SlotRead, quantization: Quantization, layout: str) -> LayerTensor:
        tensor = read.tensor
        key = (tensor, quantization)
        result = self._dequantized.get(key)
        if result is None:
            source = self.read_quantized(read, quantization, "")
            label = self.flow.find_dequantize_label(read)
            node = self.flow.index.by_label.get(label)
            dtype = FLOAT if node is None else self.memory.onnx_type(node.outputs[0])
            result = LayerTensor(f"dequantized {tensor}", source.dims, dtype, layout or LINEAR)
            name = label or f"dequantize {tensor}"
            self._add_conversion(name, source, result, "stand-alone-dequantize", label)
            self._dequantized[key] = result
        return result

    def _add_conversion(
        self, name: str, source: LayerTensor, result: LayerTensor, rule: str, label: str = ""
    ) -> None:
        layer = EngineLayer(
            name=name,
            kind=REFORMAT,
            inputs=(source,),
            constants=(),
            outputs=(result,),
            nodes=(label,) if label else (),
            fusion_rule=rule,
        )
        self.layers.append(layer)
