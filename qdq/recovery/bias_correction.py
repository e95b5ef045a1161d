"""Bias correction: the mean error of each channel of a quantized layer, added to its bias.

Empirical bias correction (Nagel et al., arXiv 1906.04721, section 4.2 and appendix D; Finkelstein
et al., arXiv 1902.01917): rounding shifts the mean of a layer's output, above all where few weights
make a channel. Layers are corrected in the order of the graph, each with the layers before it
corrected. The pairs stay as they are, and `strip` returns the biases of the float model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from qdq.arrays import Array, Feed, Floats
from qdq.calibration.scales import Scales
from qdq.errors import ModelError
from qdq.graph.index import GraphIndex
from qdq.graph.model_location import ModelLocation
from qdq.graph.pairs import count_readers, stored_tensors
from qdq.graph.source import Source, canonical_bytes, light_copy
from qdq.graph.unique_names import UniqueNames
from qdq.planning.decisions import Plan
from qdq.quantized.corrected_biases import (
    AddedBias,
    ChangedBias,
    CorrectedBias,
    checksum_values,
    read_corrected_biases,
    write_corrected_biases,
)
from qdq.quantized.stripper import strip_model
from qdq.recovery.bias_slots import BiasSlot, find_bias_slots
from qdq.recovery.mean_errors import SHRINKAGE, MeanErrors
from qdq.rewriting.inserter import apply_plan
from qdq.runtime.devices import CPU


class BiasCorrection(msgspec.Struct, frozen=True):
    """The correction of one layer."""

    slot: BiasSlot
    #: What is added to the bias of each channel.
    addend: tuple[float, ...]

    @property
    def layer(self) -> str:
        """Label of the layer."""
        return self.slot.layer

    @property
    def output(self) -> str:
        """The tensor that the layer computes."""
        return self.slot.output


class BiasCorrections(msgspec.Struct, frozen=True):
    """The corrections of a model's layers, in the order of its graph."""

    #: Number of samples that they were measured on.
    samples: int
    layers: tuple[BiasCorrection, ...]


def find_bias_corrections(  # noqa: PLR0913 keyword arguments of a function of the pipeline
    index: GraphIndex,
    plan: Plan,
    scales: Scales,
    samples: Iterable[Feed],
    *,
    rewritten: ModelProto | None = None,
    shrinkage: float = SHRINKAGE,
    providers: Sequence[str] = CPU,
    libraries: Sequence[Path] = (),
) -> BiasCorrections:
    """Return the corrections of the quantized layers, from one pass over some samples.

    Each sample is run once in the float and once in the quantized model, which is `rewritten`
    where the caller has it already. `shrinkage` is that of `MeanErrors.estimate`, 0 for plain
    means. Layers without a bias that could be changed are left out, as are layers in bodies and
    those that need an operator which ONNX Runtime lacks. Raises DataError where ONNX Runtime fails
    on a sample.
    """
    if rewritten is None:
        rewritten = apply_plan(index, plan, scales)
    slots = tuple(find_bias_slots(index, plan))
    errors = MeanErrors(index, rewritten, slots, providers, libraries)
    errors.add_samples(samples)
    estimates = errors.estimate(shrinkage)
    corrections: list[BiasCorrection] = []
    for slot in errors.slots:
        addend = estimates[slot.layer] / slot.factor
        if np.isfinite(addend).all() and addend.any():
            corrections.append(BiasCorrection(slot, tuple(addend.tolist())))
    return BiasCorrections(errors.samples, tuple(corrections))


def read_bias_corrections(model: ModelProto, index: GraphIndex, plan: Plan) -> BiasCorrections:
    """Return the corrections that a quantized model has, for a plan of its float model.

    They are those of planned layers whose bias differs from the one in the float model, whose index
    is `index`. Applied to a model with the same pairs and scales, they give the same biases.
    """
    if not read_corrected_biases(model, index.source.name):
        return BiasCorrections(0, ())
    source = index.source
    corrected_index = GraphIndex(Source(source.path, model, digest=""))
    corrections: list[BiasCorrection] = []
    for slot in find_bias_slots(index, plan):
        corrected_bias = _read_bias(corrected_index, slot)
        if corrected_bias is None:
            continue
        float_bias = _read_bias(index, slot)
        addend = corrected_bias - (0.0 if float_bias is None else float_bias)
        channels = _reduce_to_channels(addend, slot)
        if channels.any():
            corrections.append(BiasCorrection(slot, tuple(channels.tolist())))
    return BiasCorrections(0, tuple(corrections))


def _read_bias(index: GraphIndex, slot: BiasSlot) -> Floats | None:
    """Return the bias in a slot, None where the layer has none."""
    node = index.producers.get(slot.node)
    if (
        node is None
        or len(node.inputs) <= slot.slot
        or not index.is_constant(node.inputs[slot.slot])
    ):
        return None
    return index.constant(node.inputs[slot.slot]).astype(np.float64)


def _reduce_to_channels(addend: Floats, slot: BiasSlot) -> Floats:
    """Return one number for each channel from what was added to a bias of any shape."""
    rank = len(slot.bias_shape)
    padded = addend.reshape((1,) * (rank - addend.ndim) + addend.shape)
    spread = np.broadcast_to(padded, np.broadcast_shapes(padded.shape, slot.bias_shape))
    kept_axis = spread.ndim - rank
    rows = np.moveaxis(spread, kept_axis, 0)
    channels: Floats = rows.reshape(len(rows), -1)[:, 0]
    return channels


def apply_bias_corrections(
    model: ModelProto, corrections: BiasCorrections, folder: Path | None = None
) -> ModelProto:
    """Return a copy of a rewritten model with corrected biases.

    `folder` is that of its external data. A layer whose bias would overflow stays as it is. Raises
    ModelError for a model that is corrected already, for layers that it does not have, and where
    stripping would not undo the corrections.
    """
    corrected = ModelProto()
    corrected.CopyFrom(model)
    name = model.graph.name or "model"
    if read_corrected_biases(model, name):
        raise ModelError(f"{name}: its biases are corrected already. Strip it first.")
    writer = _BiasWriter(corrected, name, folder)
    for correction in corrections.layers:
        writer.correct(correction)
    if writer.biases:
        write_corrected_biases(corrected, tuple(writer.biases))
    location = ModelLocation(name, folder)
    restored = strip_model(light_copy(corrected), location)
    expected = strip_model(light_copy(model), location)
    if canonical_bytes(light_copy(restored)) != canonical_bytes(light_copy(expected)):
        raise ModelError(
            f"{name}: stripping the corrected model does not restore its biases."
            " Report this as a defect of qdq."
        )
    return corrected


class _BiasWriter:
    """Writes biases into a model, and records how to restore them."""

    def __init__(self, model: ModelProto, name: str, folder: Path | None) -> None:
        self._graph = model.graph
        self._name = name
        self._names = UniqueNames(model.graph, include_value_info=True)
        self._readers = count_readers(model.graph)
        self._stored = stored_tensors(model.graph)
        path = folder / name if folder else None
        self._index = GraphIndex(Source(path, model, digest=""))
        self.biases: list[CorrectedBias] = []

    def correct(self, correction: BiasCorrection) -> None:
        """Add a correction to the bias of its layer."""
        slot = correction.slot
        node = self._index.producers.get(slot.node)
        if node is None or len(node.proto.input) < slot.slot:
            raise ModelError(
                f"{self._name}: it has no layer {slot.layer!r} to correct."
                " Pass the quantized copy of the model that the corrections are for."
            )
        name = node.inputs[slot.slot] if len(node.inputs) > slot.slot else ""
        bias = self._index.constant(name) if name else np.zeros(slot.bias_shape)
        total = bias.astype(np.float64) + np.reshape(correction.addend, slot.bias_shape)
        dtype = helper.tensor_dtype_to_np_dtype(slot.elem_type)
        with np.errstate(over="ignore"):
            values = total.astype(dtype)
        if not np.isfinite(values).all():
            return
        if self._can_change(name, values):
            self._change(name, values)
        else:
            self._add(node.proto, slot.slot, name, values)

    def _can_change(self, name: str, values: Array) -> bool:
        """Whether a bias is stored with these dimensions, in the model, for one reader alone."""
        tensor = self._stored.get(name)
        if tensor is None or uses_external_data(tensor):
            return False
        return self._readers[name] == 1 and tuple(tensor.dims) == values.shape

    def _change(self, name: str, values: Array) -> None:
        tensor = self._stored[name]
        producer = self._index.producers.get(name)
        stored = tensor if producer is None else producer.proto
        original = stored.SerializeToString()
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        self.biases.append(ChangedBias(name, original, checksum_values(values)))

    def _add(self, node: NodeProto, slot: int, name: str, values: Array) -> None:
        """Give a node a bias of its own."""
        added = self._names.fresh(f"{name or node.output[0]}_corrected_bias")
        self._graph.initializer.append(numpy_helper.from_array(values, added))
        original = node.input[slot] if len(node.input) > slot else None
        if original is None:
            node.input.append(added)
        else:
            node.input[slot] = added
        self.biases.append(
            AddedBias(added, node.output[0], slot, original, checksum_values(values))
        )
