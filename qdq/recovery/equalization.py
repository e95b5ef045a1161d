"""Equalization: factors of channels that make the values of a tensor fit one INT8 scale better.

SmoothQuant (Xiao et al., arXiv:2211.10438) moves a factor per channel from a tensor to the weights
that it is multiplied with; cross-layer equalization (Nagel et al., arXiv:1906.04721, section 4.1)
chooses it by weights alone. Here the factors are powers of two, so that the float model computes
the same values to the last bit and the weights can be restored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from onnx import ModelProto

from qdq.arrays import Feed
from qdq.errors import ModelError
from qdq.graph.compiler_view import CompilerView
from qdq.graph.equalized_weights import (
    Equalization,
    Exponents,
    ScaledWeight,
    find_equalization_entry,
    map_stored_tensors,
    read_scalable_values,
    scale_values,
    scale_weights,
    undo_equalization,
    write_equalizations,
)
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.source import Source, canonical_bytes
from qdq.observers.observer import DEFAULT_RUN, RunSettings
from qdq.planning.decisions import Plan
from qdq.recovery.channel_flow import ChannelFlow, ChannelReader, WeightChannels
from qdq.recovery.channel_layout import ChannelLayout
from qdq.recovery.channel_places import ChannelPlace, find_places
from qdq.recovery.channel_statistics import ChannelStatistics, measure_channels
from qdq.recovery.exponent_bounds import bound_exponents
from qdq.recovery.exponent_choice import choose_exponents, limit_by_largest_channel
from qdq.recovery.layer_noise import LayerNoise
from qdq.recovery.weight_statistics import estimate_channels

#: A smaller predicted gain is not worth other weights, in decibels.
LEAST_GAIN_DB = 0.3


def find_equalizations(
    index: GraphIndex,
    plan: Plan,
    samples: Iterable[Feed] | None,
    settings: RunSettings = DEFAULT_RUN,
) -> tuple[Equalization, ...]:
    """Return the equalizations of a float model that lower the noise of the layers of a plan.

    They are by the ranges and mean squares of channels over the samples, or by weights alone where
    there are none. Raises the errors of `measure_channels`.
    """
    return EqualizationSearch(index, plan).run(samples, settings)


class EqualizationSearch:
    """The tensors of a plan whose channels may have factors, and the choice of these."""

    def __init__(self, index: GraphIndex, plan: Plan) -> None:
        self._index = index
        self._flow = ChannelFlow(CompilerView(index))
        self._places = find_places(self._flow, _list_planned_readers(self._flow, plan))
        edges: set[Edge] = set()
        for place in self._places:
            edges.update(_find_file_edge(self._flow, reader) for reader in place.readers)
        #: The inputs of layers that may get factors.
        self.edges = frozenset(edges)

    def run(
        self, samples: Iterable[Feed] | None, settings: RunSettings = DEFAULT_RUN
    ) -> tuple[Equalization, ...]:
        """Return the equalizations that lower the predicted noise; see `find_equalizations`."""
        if not self._places:
            return ()
        layouts: dict[str, ChannelLayout] = {}
        for place in self._places:
            for reader in place.readers:
                layouts[reader.tensor] = reader.layout
        statistics = _measure(self._index, self._flow, layouts, samples, settings)
        weights = _WorkingWeights(self._index)
        equalizations: list[Equalization] = []
        for place in self._places:
            equalization = _equalize_place(self._flow, place, statistics, weights)
            if equalization is not None:
                equalizations.append(equalization)
        self._index.forget_constants()
        return tuple(equalizations)


def equalize(source: Source, equalizations: Iterable[Equalization]) -> Source:
    """Return a source whose weights are multiplied by the factors, with their record.

    The source itself where there are none. Raises ModelError where it has a record already, and
    where undoing does not restore the weights byte for byte.
    """
    equalizations = tuple(equalizations)
    equalized = scale_source(source, equalizations)
    require_restorable(source, equalized, equalizations)
    return equalized


def scale_source(source: Source, equalizations: tuple[Equalization, ...]) -> Source:
    """Return the same without the check that undoing restores the weights."""
    if not equalizations:
        return source
    if find_equalization_entry(source.model):
        raise ModelError(f"{source.name}: the model is equalized already. Strip it first.")
    model = ModelProto()
    model.CopyFrom(source.model)
    scale_weights(model, equalizations)
    write_equalizations(model, equalizations)
    digest = hashlib.sha256(canonical_bytes(model)).hexdigest()
    notes = (*source.notes, f"{len(equalizations)} groups of channels were equalized.")
    return msgspec.structs.replace(source, model=model, digest=digest, notes=notes)


def require_restorable(
    source: Source, equalized: Source, equalizations: tuple[Equalization, ...]
) -> None:
    """Raise ModelError where undoing does not restore every scaled weight byte for byte."""
    names = {weight.tensor for item in equalizations for weight in item.weights}
    restored = ModelProto()
    write_equalizations(restored, equalizations)
    for name, tensor in map_stored_tensors(equalized.model.graph).items():
        if name in names:
            restored.graph.initializer.add().CopyFrom(tensor)
            restored.graph.initializer[-1].name = name
    undo_equalization(restored, source.name)
    originals = map_stored_tensors(source.model.graph)
    for tensor in restored.graph.initializer:
        original = originals[tensor.name]
        if (tensor.raw_data, tensor.float_data) != (original.raw_data, original.float_data):
            raise ModelError(
                f"{source.name}: undoing the equalization does not restore the weight"
                f" {tensor.name!r}. Report this as a defect of qdq."
            )


def _list_planned_readers(flow: ChannelFlow, plan: Plan) -> list[ChannelReader]:
    """Return the layers whose input the plan quantizes with one scale."""
    planned: set[Edge] = set()
    for placement in plan.placements:
        if placement.quantizer.calibrated:
            planned.add(placement.edge)
    readers: list[ChannelReader] = []
    for reader in flow.readers:
        if _find_file_edge(flow, reader) in planned:
            readers.append(reader)
    return readers


def _find_file_edge(flow: ChannelFlow, reader: ChannelReader) -> Edge:
    """Return the input of a layer as the file has it."""
    return flow.index.file_edge(flow.index.edge(reader.node, 0))


def _measure(
    index: GraphIndex,
    flow: ChannelFlow,
    layouts: Mapping[str, ChannelLayout],
    samples: Iterable[Feed] | None,
    settings: RunSettings,
) -> dict[str, ChannelStatistics]:
    if samples is None:
        return estimate_channels(flow, layouts)
    axes = {tensor: layout.axis for tensor, layout in layouts.items()}
    return measure_channels(index, axes, samples, settings)


class _WorkingWeights:
    """The stored weights as the equalizations so far left them."""

    def __init__(self, index: GraphIndex) -> None:
        self._stored = map_stored_tensors(index.graph)
        self._scaled: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.floating]]] = {}

    def bound(self, weight: WeightChannels) -> tuple[Exponents, Exponents]:
        """Return the least and largest exponents of the factors of a weight's channels."""
        values = self._read(weight.tensor)
        least, most = bound_exponents(values, weight.axis, weight.groups)
        return (least, most) if weight.is_producer else (-most, -least)

    def has_half_values(self, place: ChannelPlace) -> bool:
        """Whether a weight of a place is float16."""
        return any(self._read(weight.tensor).dtype == np.float16 for weight in place.weights)

    def scale(self, weight: ScaledWeight) -> None:
        """Multiply a weight by the factors."""
        exponents = np.array(weight.exponents, np.int32)
        values = self._read(weight.tensor)
        self._scaled[weight.tensor] = scale_values(values, weight.axis, weight.groups, exponents)

    def _read(self, tensor: str) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
        if tensor in self._scaled:
            return self._scaled[tensor]
        return read_scalable_values(self._stored[tensor])


def _equalize_place(
    flow: ChannelFlow,
    place: ChannelPlace,
    statistics: Mapping[str, ChannelStatistics],
    weights: _WorkingWeights,
) -> Equalization | None:
    """Return the best equalization of connected channels, None where it gains little."""
    layers: list[LayerNoise] = []
    for reader in place.readers:
        values = np.asarray(flow.index.constant(reader.node.inputs[1]), np.float32)
        classes = place.number(reader.layout.channels)
        weight = reader.axes.arrange(values)
        layers.append(LayerNoise(weight, classes, statistics[reader.tensor]))
    least, most = _bound_classes(place, weights)
    if weights.has_half_values(place):
        most = np.minimum(most, limit_by_largest_channel(layers, most.size))
        least = np.minimum(least, most)
    exponents, gain_db = choose_exponents(layers, least, most)
    if gain_db < LEAST_GAIN_DB:
        return None
    scaled_weights = _list_scaled_weights(place, exponents)
    for scaled_weight in scaled_weights:
        weights.scale(scaled_weight)
    first = place.readers[0]
    of_channel = exponents[place.number(first.layout.channels)]
    return Equalization(
        tensor=first.tensor,
        exponents=tuple(of_channel.tolist()),
        tensors=_list_scaled_tensors(flow, place, exponents),
        weights=scaled_weights,
        gain_db=round(gain_db, 2),
    )


def _bound_classes(place: ChannelPlace, weights: _WorkingWeights) -> tuple[Exponents, Exponents]:
    """Return the least and largest exponent of each class; both are 0 for the unscaled one."""
    least = np.full(place.class_count, np.iinfo(np.int32).min, np.int32)
    most = np.full(place.class_count, np.iinfo(np.int32).max, np.int32)
    for weight in place.weights:
        classes = place.number(weight.channels)
        lower, upper = weights.bound(weight)
        np.maximum.at(least, classes, lower)
        np.minimum.at(most, classes, upper)
    least[0] = most[0] = 0
    return least, most


def _list_scaled_weights(place: ChannelPlace, exponents: Exponents) -> tuple[ScaledWeight, ...]:
    """Return the weights of which some channels change."""
    scaled_weights: list[ScaledWeight] = []
    for weight in place.weights:
        of_channel = exponents[place.number(weight.channels)]
        if not of_channel.any():
            continue
        signed = of_channel if weight.is_producer else -of_channel
        scaled_weights.append(
            ScaledWeight(weight.tensor, weight.axis, tuple(signed.tolist()), weight.groups)
        )
    return tuple(scaled_weights)


def _list_scaled_tensors(
    flow: ChannelFlow, place: ChannelPlace, exponents: Exponents
) -> tuple[str, ...]:
    """Return the tensors of the file that have other values, with their aliases."""
    scaled: set[str] = set()
    for tensor, layout in flow.layouts.items():
        if exponents[place.number(layout.channels)].any():
            scaled.add(tensor)
    return flow.index.list_aliases(scaled)
