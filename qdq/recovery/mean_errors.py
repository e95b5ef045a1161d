"""The mean error of each channel of quantized layers, with the layers before it corrected.

One pass over the samples is enough. The float model returns the channel means of every layer. They
are inputs of the quantized model, which shifts each layer's output to them as it runs, so that a
layer reads what corrected layers compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qdq.arrays import Feed, Floats
from qdq.graph.index import GraphIndex
from qdq.graph.plugins import own_opset
from qdq.graph.source import Source
from qdq.graph.unique_names import UniqueNames
from qdq.optional_packages import onnxruntime as ort
from qdq.recovery.bias_slots import BiasSlot
from qdq.runtime.devices import CPU
from qdq.runtime.session import exact_options, open_partial_session, run_outputs, sample_errors
from qdq.runtime.unknown_operators import find_unknown_node, find_unknown_operators

#: The opset in which the axes of ReduceMean became an input.
_AXES_INPUT_OPSET = 18

#: How much the estimates of noisy means are reduced. With 0, 1 and 3, corrections from 16 samples
#: gained 0.1, 0.2 and 0.6 dB on average, in 11 draws of samples for seven models without the guard.
SHRINKAGE = 3.0


class MeanErrors:
    """Sessions of the float and the quantized model that compare the channel means of layers."""

    def __init__(
        self,
        index: GraphIndex,
        rewritten: ModelProto,
        slots: Sequence[BiasSlot],
        providers: Sequence[str] = CPU,
        libraries: Sequence[Path] = (),
        shifts: bool = True,
    ) -> None:
        self.index = index
        self.slots = tuple(_drop_uncomputable(index, slots, libraries))
        self.samples = 0
        #: Sums over the samples, and those of the squares.
        self._sums: dict[str, Floats] = {}
        self._square_sums: dict[str, Floats] = {}
        for slot in self.slots:
            self._sums[slot.layer] = np.zeros(slot.channel_shape[0])
            self._square_sums[slot.layer] = np.zeros(slot.channel_shape[0])
        self._float_part = _MeasuredModel(index.source, index.source.model, self.slots)
        self._quantized_part = _MeasuredModel(index.source, rewritten, self.slots, shifts)
        self._sessions: list[ort.InferenceSession] = []
        if not self.slots:
            return
        for part in (self._float_part, self._quantized_part):
            session = open_partial_session(
                part.index, part.results, exact_options(), providers, libraries
            )
            self._sessions.append(session)

    def add_samples(self, samples: Iterable[Feed]) -> None:
        """Run samples; each counts the same, whatever its size.

        Raises DataError where ONNX Runtime fails on one.
        """
        for feed in samples:
            self.samples += 1
            if self.slots:
                self._add_sample(feed)

    def _add_sample(self, feed: Feed) -> None:
        float_session, quantized_session = self._sessions
        with sample_errors(self.index):
            means = run_outputs(float_session, self.index, self._float_part.results, feed)
            known = dict(zip(self._quantized_part.float_means, means, strict=True))
            errors = run_outputs(
                quantized_session, self.index, self._quantized_part.results, feed | known
            )
        for slot, error in zip(self.slots, errors, strict=True):
            self._sums[slot.layer] += error
            self._square_sums[slot.layer] += np.square(error, dtype=np.float64)

    def estimate(self, shrinkage: float = SHRINKAGE) -> dict[str, Floats]:
        """Return the mean of float minus quantized output for each channel, by layer.

        A mean is multiplied by 1 - shrinkage * variance of the mean / square of the mean, or by 0
        where that is negative (positive-part shrinkage, James and Stein, 1961).
        """
        count = max(self.samples, 1)
        estimates: dict[str, Floats] = {}
        for layer, total in self._sums.items():
            mean = total / count
            variance = np.maximum(self._square_sums[layer] / count - mean**2, 0.0)
            variance_of_mean = variance / max(count - 1, 1)
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = np.maximum(1.0 - shrinkage * variance_of_mean / mean**2, 0.0)
            estimates[layer] = np.where(mean == 0.0, 0.0, mean * factor)
        return estimates


class _MeasuredModel:
    """A copy of a model that returns the channel means of layers, or their errors.

    `shifts` is None for the float model, else whether errors are corrected for the layers after.
    """

    def __init__(
        self,
        source: Source,
        model: ModelProto,
        slots: Sequence[BiasSlot],
        shifts: bool | None = None,
    ) -> None:
        self._model = ModelProto()
        self._model.CopyFrom(model)
        self._names = UniqueNames(model.graph, include_value_info=True)
        self._takes_axes = own_opset(model.opset_import) >= _AXES_INPUT_OPSET
        self._shifts = shifts
        self._nodes: list[NodeProto] = []
        #: The channel means of each layer, or their errors.
        self.results: list[str] = []
        #: The inputs that take the float model's means.
        self.float_means: list[str] = []
        slots_by_output = {slot.output: slot for slot in slots}
        results: dict[str, str] = {}
        for node in self._model.graph.node:
            self._nodes.append(node)
            slot = slots_by_output.get(node.output[0]) if node.output else None
            if slot is not None:
                results[slot.layer] = self._measure(node, slot)
        for slot in slots:
            self.results.append(results[slot.layer])
        copies = GraphProto(node=self._nodes)
        del self._model.graph.node[:]
        self._model.graph.node.extend(copies.node)
        self.index = GraphIndex(Source(source.path, self._model, source.digest))

    def _measure(self, node: NodeProto, slot: BiasSlot) -> str:
        """Add the nodes that measure a layer, and return the tensor with its means or errors."""
        output = node.output[0]
        if self._shifts:  # the readers of the output then read its sum with the errors
            output = self._names.fresh(f"{slot.output}_quantized")
            node.output[0] = output
        mean = self._add_mean(output, slot)
        if self._shifts is None:
            return mean
        known_mean = self._names.fresh(f"{slot.output}_float_mean")
        self.float_means.append(known_mean)
        value = helper.make_tensor_value_info(
            known_mean, TensorProto.FLOAT, [slot.channel_shape[0]]
        )
        self._model.graph.input.append(value)
        error = self._add_node("Sub", [known_mean, mean])
        if self._shifts:
            self._add_shift(output, error, slot)
        return error

    def _add_mean(self, output: str, slot: BiasSlot) -> str:
        """Return the tensor of a layer's channel means in float32."""
        is_spatial = len(slot.channel_shape) > 1
        shape = [0, 0, -1] if is_spatial else [-1, slot.channel_shape[0]]
        axes = [0, 2] if is_spatial else [0]
        values = self._add_node("Cast", [output], to=TensorProto.FLOAT)
        rows = self._add_node("Reshape", [values, self._add_integers(shape)])
        if self._takes_axes:
            return self._add_node("ReduceMean", [rows, self._add_integers(axes)], keepdims=0)
        return self._add_node("ReduceMean", [rows], axes=axes, keepdims=0)

    def _add_shift(self, output: str, error: str, slot: BiasSlot) -> None:
        """Compute a layer's output from the uncorrected one and its errors."""
        shape = self._add_integers(slot.channel_shape)
        column = self._add_node("Reshape", [error, shape])
        addend = self._add_node("Cast", [column], to=slot.elem_type)
        self._nodes.append(helper.make_node("Add", [output, addend], [slot.output]))

    def _add_node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        result = self._names.fresh(f"{inputs[0]}_{op}")
        self._nodes.append(helper.make_node(op, inputs, [result], **attributes))
        return result

    def _add_integers(self, values: Sequence[int]) -> str:
        name = self._names.fresh("integers")
        tensor = numpy_helper.from_array(np.array(values, np.int64), name)
        self._model.graph.initializer.append(tensor)
        return name


def _drop_uncomputable(
    index: GraphIndex, slots: Sequence[BiasSlot], libraries: Sequence[Path]
) -> Sequence[BiasSlot]:
    """Return the layers that need no operator which ONNX Runtime lacks."""
    model = index.source.model
    unknown = find_unknown_operators(model, libraries)
    if not unknown:
        return slots
    return [slot for slot in slots if find_unknown_node(model, [slot.output], unknown) is None]
